"""Sound as tensors: files and companding.

A waveform is float `(T,)` in [-1, 1].
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SUFFIXES = {".wav", ".flac", ".ogg", ".aif", ".aiff"}


def mulaw_encode(x: Tensor, mu: int = 255) -> Tensor:
    """Compress the range of `x` in [-1, 1] by the μ-law: `sign(x) log(1 + mu |x|) / log(1 + mu)`, in [-1, 1].

    The continuous form of ITU-T G.711; WaveNet then rounds to `mu + 1` levels (`gmfast.data.from_unit`).
    """
    return x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)


def mulaw_decode(y: Tensor, mu: int = 255) -> Tensor:
    """Invert `mulaw_encode`: `sign(y) ((1 + mu)^|y| - 1) / mu`."""
    return y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu


class Encoding(NamedTuple):
    """Map between a waveform and values in [-1, 1] that are rounded to `num_levels` classes."""

    num_levels: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


ENCODINGS = {
    "mulaw": Encoding(256, mulaw_encode, mulaw_decode),
    "linear": Encoding(65536, lambda x: x, lambda x: x),
}


def read(path: Path, rate: int | None = None) -> tuple[Tensor, int]:
    """Read a sound file that libsndfile knows: WAV of 8 to 32 bits or floats, FLAC, Ogg, AIFF.

    Args:
        path: The file; its channels are averaged.
        rate: Sample rate to resample to, in Hz; None: the file's own.

    Returns:
        The waveform and its sample rate in Hz.

    Raises:
        ValueError: For a file that cannot be read, and for samples that are not finite.
    """
    import soundfile

    try:
        wave, own_rate = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"data: expected a sound file, got {path} ({error.error_string})") from None
    if not np.isfinite(wave).all():
        raise ValueError(f"data: expected finite samples in {path}, got NaN or infinity")
    wave = wave.mean(1)
    if rate is not None and rate != own_rate:
        from scipy.signal import resample_poly

        common = math.gcd(rate, own_rate)
        wave = resample_poly(wave, rate // common, own_rate // common)
    return torch.from_numpy(wave).float().clamp(-1, 1), rate or own_rate


def write(path: Path, x: Tensor, rate: int) -> None:
    """Write a waveform as a 16-bit WAV file."""
    import soundfile

    soundfile.write(path, x.cpu().numpy(), rate, subtype="PCM_16", format="WAV")
