"""Sound as tensors: files, companding, and a picture.

A wave is float (T,) in [-1, 1].
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
    """μ-law companding of `x` in [-1, 1], to [-1, 1]: `sign(x) log(1 + mu |x|) / log(1 + mu)`.

    The continuous form of ITU-T G.711; WaveNet then rounds to `mu + 1` levels (`gmfast.data.from_unit`)."""
    return x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)


def mulaw_decode(y: Tensor, mu: int = 255) -> Tensor:
    """The inverse of `mulaw_encode`: `sign(y) ((1 + mu)^|y| - 1) / mu`."""
    return y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu


class Encoding(NamedTuple):
    """How a wave becomes classes: its values, still in [-1, 1], are rounded to `num_levels`."""

    num_levels: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


ENCODINGS = {
    "mulaw": Encoding(256, mulaw_encode, mulaw_decode),
    "linear": Encoding(65536, lambda x: x, lambda x: x),
}


def read(path: Path, rate: int | None = None) -> tuple[Tensor, int]:
    """The wave in a sound file and its rate in Hz. Channels are averaged; with `rate` it is resampled.

    WAV of 8, 16, 24 and 32 bits and of floats, FLAC, Ogg and AIFF: what libsndfile reads. Raises ValueError
    for what it does not, and for samples that are not finite."""
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
    """Writes the wave as a 16-bit WAV file."""
    import soundfile

    soundfile.write(path, x.cpu().numpy(), rate, subtype="PCM_16", format="WAV")


def picture(path: Path, x: Tensor, rate: int) -> None:
    """Writes a PNG of the wave above its spectrogram."""
    from matplotlib.figure import Figure
    from scipy.signal import spectrogram

    x = x.cpu().numpy()
    figure = Figure(figsize=(10, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(np.arange(len(x)) / rate, x, linewidth=0.5)
    above.set(ylim=(-1, 1), ylabel="amplitude")
    window = min(256, len(x))
    frequencies, times, power = spectrogram(x, rate, "hann", nperseg=window, noverlap=window * 3 // 4)
    decibels = 10 * np.log10(power + 1e-12)  # per Hz; silence is a floor
    below.pcolormesh(times, frequencies, decibels, vmin=decibels.max() - 80, shading="nearest")
    below.set(xlabel="seconds", ylabel="Hz")
    figure.savefig(path, format="png")
