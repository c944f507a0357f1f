"""Sound: recordings and sound files, cut into clips."""

from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from .. import audio
from .dataset import Dataset, from_unit
from .files import FileIndex, layout

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


def sound_folder(index: FileIndex, name: str, length: int, rate: int | None, encoding: str) -> Dataset:
    """Clips from the sound files of a folder, with the splits and classes of `layout`."""
    splits = layout(index)
    kept = range(len(index)) if splits.train is None else np.concatenate([splits.train, splits.heldout])
    files = {Path(index[int(i)]): None if splits.labels is None else int(splits.labels[i]) for i in kept}
    training = None if splits.train is None else {Path(index[int(i)]) for i in splits.train}
    return sounds(name, files, length, rate, encoding, training=training, classes=splits.classes)


def sounds(
    name: str,
    files: Mapping[Path, int | None],
    length: int,
    rate: int | None,
    encoding: str,
    *,
    training: Collection[Path] | None = None,
    classes: tuple[str, ...] | None = None,
    train_clips: int = 1024,
) -> Dataset:
    """Clips of `length` samples from sound files; the last fifth of each file is held out.

    Training clips overlap where there would be fewer than `train_clips`.

    Args:
        name: Name of the data.
        files: Class index of each file, or None.
        length: Samples in a clip.
        rate: Sample rate to resample to, in Hz; None: the files' own.
        encoding: Key of `gmfast.audio.ENCODINGS`.
        training: Files to train on, the others being held out.
        classes: Names of the classes.
        train_clips: Least number of training clips, if there is sound for them.
    """
    levels, encode, _ = audio.ENCODINGS[encoding]
    waves = {file: audio.read(file, rate) for file in files}
    rates = {file_rate for _, file_rate in waves.values()}
    if len(rates) > 1:
        raise ValueError(
            f"rate: expected one to resample to, because the files in {name} have {sorted(rates)} Hz"
        )
    waves = {file: from_unit(encode(wave), levels) for file, (wave, _) in waves.items()}
    ends = {file: len(wave) * 4 // 5 for file, wave in waves.items()}
    if training is not None:
        ends = {file: len(wave) if file in training else 0 for file, wave in waves.items()}
    hop = min(length, max(1, sum(end for end in ends.values() if end >= length) // train_clips))
    train, heldout = (
        {file: part.unfold(0, length, step) for file, part in parts.items() if len(part) >= length}
        for parts, step in (
            ({file: wave[: ends[file]] for file, wave in waves.items()}, hop),
            ({file: wave[ends[file] :] for file, wave in waves.items()}, length),
        )
    )
    if not train or not heldout:
        longest = max(len(wave) - ends[file] for file, wave in waves.items())
        whose = "a fifth of the longest" if training is None else "the longest held-out"
        raise ValueError(
            f"size: expected at most {longest} samples, {whose} recording in {name}, got {length}"
        )
    samples = [torch.cat([*clips.values()]).unsqueeze(1) for clips in (train, heldout)]
    labels = [None, None]
    if classes is not None:
        labels = [
            torch.cat([torch.full((len(clip),), files[file]) for file, clip in clips.items()])
            for clips in (train, heldout)
        ]
    return Dataset(name, *samples, *labels, num_levels=levels, rate=rates.pop(), classes=classes)
