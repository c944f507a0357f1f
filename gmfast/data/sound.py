"""Sound: recordings and sound files, cut into clips."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import audio
from .dataset import Dataset, from_unit
from .files import FileIndex, layout
from .splits import Samples, Split

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


class ClipSplit(Split):
    """Clips of sound files, read when they are indexed.

    Clip j of a file has its samples `start + j * hop` to `start + j * hop + length`.

    Args:
        index: The files.
        starts: First sample of each file's first clip, int64 `(F,)`.
        counts: Number of each file's clips, int64 `(F,)`.
        labels: Class index of each file, int64 `(F,)`, or None.
        length: Samples in a clip.
        hop: Samples between the starts of two clips.
        rate: Sample rate to resample to, in Hz; None: the files' own.
        encoding: Key of `gmfast.audio.ENCODINGS`.
    """

    def __init__(
        self,
        index: FileIndex,
        starts: np.ndarray,
        counts: np.ndarray,
        labels: np.ndarray | None,
        *,
        length: int,
        hop: int,
        rate: int | None,
        encoding: str,
    ):
        super().__init__((1, length), None if labels is None else torch.from_numpy(labels.repeat(counts)))
        self.index, self.starts, self.ends = index, starts, np.cumsum(counts)
        self.length, self.hop, self.rate, self.encoding = length, hop, rate, encoding

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        return self._read(index, 1)[0], None if self.labels is None else int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """Read a batch; what clips in a row overlap in is read once."""
        indices = np.asarray(indices)
        files = self.ends.searchsorted(indices, side="right")
        breaks = np.flatnonzero((np.diff(indices) != 1) | (np.diff(files) != 0)) + 1
        runs = np.split(indices, breaks)
        x = torch.cat([self._read(int(run[0]), len(run)) for run in runs])
        return Samples(x, None if self.labels is None else self.labels[torch.from_numpy(indices)])

    def describe(self, index: int) -> str:
        """Path of a clip's file, and where in it the clip is."""
        file, start = self._place(index)
        return f"{self.index[file]} from sample {start} on"

    def _place(self, index: int) -> tuple[int, int]:
        """A clip's file and its first sample in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected less than {len(self)}, got {index}")
        file = int(self.ends.searchsorted(index, side="right"))
        before = int(self.ends[file - 1]) if file else 0
        return file, int(self.starts[file]) + (index - before) * self.hop

    def _read(self, index: int, count: int) -> Tensor:
        """Clips `(count, 1, length)` in a row in one file."""
        file, start = self._place(index)
        stop = start + (count - 1) * self.hop + self.length
        wave, _ = audio.read(self.index[file], self.rate, start=start, stop=stop)
        levels, encode, _ = audio.ENCODINGS[self.encoding]
        return from_unit(encode(wave), levels).unfold(0, self.length, self.hop).unsqueeze(1)


def sounds(
    index: FileIndex, name: str, length: int, rate: int | None, encoding: str, train_clips: int = 1024
) -> Dataset:
    """Clips of sound files, with the splits and classes of `layout`, or else the last fifth of each held out.

    Training clips overlap where there would be fewer than `train_clips`.

    Args:
        index: The files.
        name: Name of the data.
        length: Samples in a clip.
        rate: Sample rate to resample to, in Hz; None: the files' own.
        encoding: Key of `gmfast.audio.ENCODINGS`.
        train_clips: Least number of training clips, if there is sound for them.
    """
    splits = layout(index)
    sizes, rates = np.array([audio.length(index[i], rate) for i in range(len(index))]).T
    ends = sizes * 4 // 5
    if splits.train is not None:
        ends, sizes = np.zeros_like(sizes), sizes.copy()
        ends[splits.train] = sizes[splits.train]
        left_out = np.ones(len(index), bool)
        left_out[np.concatenate([splits.train, splits.heldout])] = False
        sizes[left_out] = 0
    if len(set(rates[sizes > 0].tolist())) > 1:
        found = sorted(set(rates[sizes > 0].tolist()))
        raise ValueError(f"rate: expected one to resample to, because the files in {name} have {found} Hz")
    hop = min(length, max(1, int(ends[ends >= length].sum()) // train_clips))
    parts = {}
    for split, starts, stops, step in (
        ("train", np.zeros_like(ends), ends, hop),
        ("heldout", ends, sizes, length),
    ):
        counts = np.maximum(0, (stops - starts - length) // step + 1)
        used = np.flatnonzero(counts)
        if not len(used):
            longest = int((sizes - ends).max())
            whose = "a fifth of the longest" if splits.train is None else "the longest held-out"
            raise ValueError(
                f"size: expected at most {longest} samples, {whose} recording in {name}, got {length}"
            )
        parts[split] = ClipSplit(
            index.take(used),
            starts[used],
            counts[used],
            None if splits.labels is None else splits.labels[used],
            length=length,
            hop=step,
            rate=rate,
            encoding=encoding,
        )
    return Dataset(
        name,
        **parts,
        num_levels=audio.ENCODINGS[encoding].num_levels,
        rate=int(rates[sizes > 0][0]),
        classes=splits.classes,
    )
