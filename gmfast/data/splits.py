"""Splits: samples that are indexed one at a time or a batch at a time."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.utils.data
from torch import Tensor

#: Elements of the batches that statistics are computed in.
CHUNK = 2**22


class Samples(NamedTuple):
    """A batch in the data's own units.

    Attributes:
        x: `(B, *S)`: levels (uint8 or int32), token indices or real numbers.
        label: Class indices, int64 `(B,)`, or None.
    """

    x: Tensor
    label: Tensor | None = None


class Split(torch.utils.data.Dataset, ABC):
    """Training or held-out samples that are read when they are indexed.

    `split[i]` is a pair of a tensor and a class index or None. A DataLoader's fetcher asks `__getitems__` for
    whole batches: give it `collate_fn=lambda samples: samples` or any function of `Samples`. A split can be
    pickled, for workers.

    Attributes:
        shape: Shape of one sample.
        labels: Class indices of all samples, int64 `(N,)`, or None if they are not known without decoding.
    """

    def __init__(self, shape: Sequence[int], labels: Tensor | None = None):
        self.shape, self.labels = tuple(shape), labels

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int | None]: ...

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """Read a batch."""
        return stack([self[index] for index in indices])

    def take(self, positions: Tensor) -> "Split":
        """The samples at `positions`, int64 `(N,)`."""
        return Subset(self, positions)

    def describe(self, index: int) -> str:
        """Name of a sample for messages."""
        return f"sample {index}"

    def check(self, index: int) -> None:
        """Check cheaply, as far as that goes, that a sample can be read.

        Raises:
            ValueError: If it cannot.
        """
        return

    def batches(self, size: int | None = None) -> Iterator[Samples]:
        """Read all samples in their order, `size` at a time or as many as have four million elements."""
        size = size or max(1, CHUNK // math.prod(self.shape))
        for start in range(0, len(self), size):
            yield self.__getitems__(range(start, min(start + size, len(self))))


class TensorSplit(Split):
    """Samples in memory.

    Args:
        x: Samples `(N, *S)`.
        labels: Class indices, int64 `(N,)`, or None.
    """

    def __init__(self, x: Tensor, labels: Tensor | None = None):
        super().__init__(x.shape[1:], labels)
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        return self.x[index], None if self.labels is None else int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """Read a batch; a range of step 1 is a view."""
        if isinstance(indices, range) and indices.step == 1:
            chosen = slice(indices.start, indices.stop)
        else:
            chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Samples(self.x[chosen], None if self.labels is None else self.labels[chosen])


class Skipping(Split):
    """A split in which the next sample that can be read stands for one that cannot, with a warning.

    Args:
        source: The split, whose samples raise ValueError if they cannot be read. `labels` are its own; a
            batch has those of the samples in it.
    """

    def __init__(self, source: Split):
        super().__init__(source.shape, source.labels)
        self.source = source
        self._skipped = torch.zeros(len(source), dtype=torch.bool).share_memory_()  # with workers

    @property
    def skipped(self) -> list[int]:
        """Indices of the samples that were skipped so far, in this process and its workers."""
        return self._skipped.nonzero()[:, 0].tolist()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"index: expected less than {count}, got {index}")
        for candidate in range(index, index + count):
            try:
                return self.source[candidate % count]
            except ValueError as error:
                if not self._skipped[candidate % count]:
                    self._skipped[candidate % count] = True
                    warnings.warn(f"skipped: {error}", stacklevel=2)
        raise ValueError("data: expected samples that can be read, found none")


class Subset(Split):
    """Some samples of another split.

    Args:
        source: The other split.
        positions: Indices into it, int64 `(N,)`.
    """

    def __init__(self, source: Split, positions: Tensor):
        super().__init__(source.shape, None if source.labels is None else source.labels[positions])
        self.source, self.positions = source, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        return self.source[int(self.positions[index])]

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """Read a batch."""
        return self.source.__getitems__(self.positions[torch.as_tensor(indices, dtype=torch.int64)].tolist())


def stack(pairs: Sequence[tuple[Tensor, int | None]]) -> Samples:
    """Stack samples to a batch, which has labels if each of them has one."""
    labels = [label for _, label in pairs]
    label = None if None in labels else torch.tensor(labels, dtype=torch.int64)
    return Samples(torch.stack([x for x, _ in pairs]), label)


def every_tenth(count: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the held-out samples where every tenth is held out, or else the last."""
    held = torch.arange(count) % 10 == 9
    held[-1] |= count < 10
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]
