"""Sound as tensors: files and companding.

A waveform is float `(T,)` in [-1, 1].
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def read(
    path: str | Path, rate: int | None = None, *, start: int = 0, stop: int | None = None
) -> tuple[Tensor, int]:
    """Read a sound file that libsndfile knows: WAV of 8 to 32 bits or floats, FLAC, Ogg, AIFF.

    A section of it has the samples that the whole has there, and is read without the rest.

    Args:
        path: The file; its channels are averaged.
        rate: Sample rate to resample to, in Hz; None: the file's own.
        start: First sample of the section, at the returned rate.
        stop: The sample after its last one; None: the file's end.

    Returns:
        The waveform and its sample rate in Hz.

    Raises:
        ValueError: For a file that cannot be read, a section that is not in it, and samples that are not
            finite.
    """
    import soundfile

    with _naming(path), soundfile.SoundFile(path) as file:
        up, down = _ratio(rate, file.samplerate)
        whole = _ceil_div(file.frames * up, down)
        stop = whole if stop is None else stop
        if not 0 <= start <= stop <= whole:
            raise ValueError(
                f"start, stop: expected a section of the {whole} samples in {path}, got {start} to {stop}"
            )
        first, last = start, stop
        if up != down:
            # Output n sums the inputs k with |n down - k up| <= reach, half the length of scipy's filter.
            reach = 10 * max(up, down)
            first = max(0, (start * down - reach) // up) // down * down
            last = min(file.frames, _ceil_div((stop - 1) * down + reach, up) + 1)
        file.seek(first)
        wave = file.read(last - first, dtype="float64", always_2d=True)
        own_rate = file.samplerate
    if not np.isfinite(wave).all():
        raise ValueError(f"data: expected finite samples in {path}, got NaN or infinity")
    wave = wave.mean(1)
    if up != down and len(wave):
        from scipy.signal import resample_poly

        skipped = start - first // down * up
        wave = resample_poly(wave, up, down)[skipped : skipped + stop - start]
    if len(wave) < stop - start:
        raise ValueError(
            f"data: expected {stop - start} samples from number {start} on in {path}, got {len(wave)}"
        )
    return torch.from_numpy(wave).float().clamp(-1, 1), rate or own_rate


def length(path: str | Path, rate: int | None = None) -> tuple[int, int]:
    """Number of samples that `read` gives, and their rate, by the file's header."""
    import soundfile

    with _naming(path):
        header = soundfile.info(path)
    up, down = _ratio(rate, header.samplerate)
    return _ceil_div(header.frames * up, down), rate or header.samplerate


def _ratio(rate: int | None, own: int) -> tuple[int, int]:
    """Factors to resample up and down by, without a common divisor."""
    common = math.gcd(rate or own, own)
    return (rate or own) // common, own // common


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Turn libsndfile's errors into a sentence with the file's name."""
    import soundfile

    try:
        yield
    except soundfile.LibsndfileError as error:
        raise ValueError(f"data: expected a sound file, got {path} ({error.error_string})") from None


def write(path: Path, x: Tensor, rate: int) -> None:
    """Write a waveform as a 16-bit WAV file."""
    import soundfile

    soundfile.write(path, x.cpu().numpy(), rate, subtype="PCM_16", format="WAV")
