"""Batches of a split or a stream, loaded by torch's DataLoader."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from .splits import Samples, Split, stack


class EpochOrder:
    """Indices of the batches of an endless run: each epoch is a seeded permutation of all samples.

    What is left over after the last full batch of an epoch is left out of it. A permutation is made once an
    epoch, so a batch costs time in proportion to its size.

    Args:
        count: Number of samples.
        batch_size: Number of samples in a batch, at most `count`.
        seed: Maps an epoch to its seed.
    """

    def __init__(self, count: int, batch_size: int, seed: Callable[[int], int]):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Indices of the batch of step `step`, int64 `(batch_size,)`."""
        epoch, position = divmod(step, self.count // self.batch_size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed(epoch))
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator)
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


def load_batches(
    split: Split, batches: Iterable[Sequence[int]], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Samples]:
    """Load the batches with the given indices, in their order.

    Args:
        split: The samples.
        batches: Indices of each batch; they may have no end.
        workers: Number of processes that load, each two batches ahead; 0: none but this one.
        pin_memory: Whether batches are put into pinned memory, from which copies to a GPU overlap its work.

    Raises:
        ValueError, OSError: What the split raises for a sample that cannot be read, workers or not.
    """
    loader = DataLoader(
        _Careful(split),
        batch_sampler=_Given(batches),
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
    )
    for samples in loader:
        if isinstance(samples, Exception):
            raise samples
        yield samples


class Stream:
    """Batches of an iterable dataset, without end: after its last item it begins again.

    Args:
        dataset: Its items are what `convert` takes. If it has `set_epoch`, as Hugging Face's do, that is
            called before each pass.
        convert: Maps an item to a sample and its class, an int or None.
        batch_size: Number of samples in a batch. What is left over at the end is left out.
        workers: Number of processes that load, as in `load_batches`. Each iterates the dataset: for
            several it must divide itself by `torch.utils.data.get_worker_info`, as Hugging Face's do.
        pin_memory: As in `load_batches`.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        convert: Callable[[Any], tuple[Tensor, int | None]],
        batch_size: int,
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ):
        try:
            from torchdata.stateful_dataloader import StatefulDataLoader
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "torchdata is missing: pip install 'gmfast[train]' brings it", name="torchdata"
            ) from None
        self.dataset, self.epoch, self.workers = dataset, 0, workers
        with warnings.catch_warnings():  # it calls a function that torch has deprecated
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")
            self._loader = StatefulDataLoader(
                dataset,
                batch_size,
                num_workers=workers,
                collate_fn=_Collate(convert),
                pin_memory=pin_memory,
                drop_last=True,
            )

    def __iter__(self) -> Iterator[Samples]:
        while True:
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(self.epoch)
            empty = True
            for samples in self._loader:
                empty = False
                yield samples
            if empty and not self._resumed:
                raise ValueError("data: expected at least one batch from the iterable dataset, got none")
            self._resumed = False
            self.epoch += 1

    #: True until the first pass after `load_state_dict` has ended, which may have nothing left.
    _resumed = False

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream, for `load_state_dict`."""
        return {"epoch": self.epoch, "workers": self.workers, "loader": self._loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position.

        Raises:
            ValueError: For another number of workers.
        """
        if state["workers"] != self.workers:
            raise ValueError(f"workers: expected {state['workers']}, as the run began, got {self.workers}")
        self.epoch, self._resumed = state["epoch"], True
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)
        self._loader.load_state_dict(state["loader"])


class _Collate:
    """Stacks items; a class, as workers may be spawned."""

    def __init__(self, convert: Callable[[Any], tuple[Tensor, int | None]]):
        self.convert = convert

    def __call__(self, items: list) -> Samples:
        return stack([self.convert(item) for item in items])


class _Careful:
    """A split that returns its errors: one that a worker raises becomes a traceback in a string."""

    def __init__(self, split: Split):
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: list[int]) -> Samples | Exception:
        try:
            return self.split.__getitems__(indices)
        except (ValueError, OSError) as error:
            return error


class _Given(Sampler):
    """Batches of indices as they are given."""

    def __init__(self, batches: Iterable[Sequence[int]]):
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch.tolist() if isinstance(batch, Tensor) else list(batch)


def _as_is(samples: Samples | Exception) -> Samples | Exception:
    return samples
