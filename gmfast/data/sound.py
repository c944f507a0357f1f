"""Sound: recordings and sound files, cut into clips."""

from importlib import metadata
from pathlib import Path

import torch

from .. import audio
from .dataset import Dataset, from_unit

#: Recordings that the package pyo carries for its examples (LGPL; read where it is installed, never copied).
RECORDINGS = {"speech": "baseballmajeur_m.aif", "flute": "flute.aif"}


def recording(name: str) -> Path:
    """Path of a recording in the installed package pyo."""
    try:
        files = metadata.files("pyo") or []
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"data: expected the package pyo, whose recording {name!r} is (pip install pyo, where it has a "
            "wheel), or a WAV file instead",
            name="pyo",
        ) from None
    for file in files:
        if file.name == RECORDINGS[name]:
            return Path(file.locate())
    raise FileNotFoundError(f"data: expected {RECORDINGS[name]} among the files of the package pyo")


def sounds(
    name: str, files: list[Path], length: int, rate: int | None, encoding: str, train_clips: int = 1024
) -> Dataset:
    """Clips of `length` samples from sound files; the last fifth of each file is held out.

    Training clips overlap where there would be fewer than `train_clips`.
    """
    levels, encode, _ = audio.ENCODINGS[encoding]
    waves = {file: audio.read(file, rate) for file in files}
    rates = {file_rate for _, file_rate in waves.values()}
    if len(rates) > 1:
        raise ValueError(
            f"rate: expected one to resample to, because the files in {name} have {sorted(rates)} Hz"
        )
    waves = [from_unit(encode(wave), levels) for wave, _ in waves.values()]
    splits = [len(wave) * 4 // 5 for wave in waves]
    hop = min(length, max(1, sum(split for split in splits if split >= length) // train_clips))
    train, heldout = (
        [part.unfold(0, length, step) for part in parts if len(part) >= length]
        for parts, step in (
            ([wave[:split] for wave, split in zip(waves, splits, strict=True)], hop),
            ([wave[split:] for wave, split in zip(waves, splits, strict=True)], length),
        )
    )
    if not train or not heldout:
        longest = max(len(wave) - split for wave, split in zip(waves, splits, strict=True))
        raise ValueError(
            f"size: expected at most {longest} samples, a fifth of the longest recording in {name}, "
            f"got {length}"
        )
    train, heldout = (torch.cat(clips).unsqueeze(1) for clips in (train, heldout))
    return Dataset(name, train, heldout, num_levels=levels, rate=rates.pop())
