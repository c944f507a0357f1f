"""Reading of lazy splits: to tensors in memory if they are small, and without what cannot be read."""

import math
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from .._progress import reporting
from .dataset import Dataset
from .splits import Samples, Skipping, Split

#: Bytes and samples that a data set is held in memory up to, unless it is said.
MEMORY = 2**28
COUNT = 2**15

#: Names of skipped samples that a warning has room for.
NAMED = 5

#: Samples that a thread reads at a time.
CHUNK = 64

#: Samples from which on a bar shows how many are read.
BAR_FROM = 2000

#: What may become of a sample that cannot be read.
ON_ERROR = ("raise", "skip")


def read(dataset: Dataset, in_memory: bool | None, on_error: str) -> Dataset:
    """Data as they are, or with their lazy splits in memory.

    With `on_error` "skip", samples that cannot be read are left out, and named in a warning: all of them if
    they are read to memory, else those that `Split.check` finds; others are replaced when they are read.

    Args:
        dataset: The data.
        in_memory: Whether to read all of it; None: up to 256 MiB and 32,768 samples.
        on_error: "raise" or "skip".
    """
    splits = {name: getattr(dataset, name) for name in ("train", "heldout")}
    splits = {name: split for name, split in splits.items() if isinstance(split, Split)}
    count = sum(map(len, splits.values()))
    if in_memory is None:
        size = math.prod(dataset.image_shape) * (4 if dataset.real_valued else 1) if splits else 0
        in_memory = count <= COUNT and count * size <= MEMORY
    if not in_memory and on_error == "raise":
        return dataset
    changes, skipped = {}, []
    for name, split in splits.items():
        if in_memory:
            samples, bad = _decoded(split, on_error)
        else:
            bad = _unreadable(split)
        if len(bad) == len(split):
            raise next(iter(bad.values()))
        good = torch.ones(len(split), dtype=torch.bool)
        good[list(bad)] = False
        if in_memory:
            changes[name] = samples.x if not bad else samples.x[good]
            labels = samples.label
            changes[f"{name}_labels"] = labels if labels is None or not bad else labels[good]
        else:
            changes[name] = Skipping(split.take(good.nonzero()[:, 0]) if bad else split)
            changes[f"{name}_labels"] = None
        skipped += [split.describe(index) for index in bad]
    if skipped:
        first = ", ".join(skipped[:NAMED]) + f" and {len(skipped) - NAMED} more" * (len(skipped) > NAMED)
        warnings.warn(f"{dataset.name}: skipped {len(skipped)} of {count}: {first}", stacklevel=3)
    return replace(dataset, **changes, skipped=tuple(skipped))


def _unreadable(split: Split) -> dict[int, ValueError]:
    """Errors, by index, of the samples that `Split.check` finds."""

    def some(chunk: range) -> None:
        for index in chunk:
            split.check(index)

    return _each(some, len(split), "skip", "reading headers")


def _decoded(split: Split, on_error: str) -> tuple[Samples, dict[int, ValueError]]:
    """All samples, zeros for those that cannot be read, and these ones' errors by index."""
    x, labels = None, torch.full((len(split),), -1)
    first = threading.Lock()

    def some(chunk: range) -> None:
        nonlocal x
        samples = split.__getitems__(chunk)
        with first:
            if x is None:
                x = samples.x.new_zeros(len(split), *samples.x.shape[1:])
        x[chunk.start : chunk.stop] = samples.x
        if samples.label is not None:
            labels[chunk.start : chunk.stop] = samples.label

    bad = _each(some, len(split), on_error, "decoding")
    good = torch.ones(len(split), dtype=torch.bool)
    good[list(bad)] = False
    return Samples(x, labels if (labels[good] >= 0).all() else None), bad


def _each(
    function: Callable[[range], object], count: int, on_error: str, doing: str
) -> dict[int, ValueError]:
    """Call a function with ranges of indices, in threads; the errors by index, unless the first is raised.

    If it takes long and stderr is a terminal, a bar shows how much is done.
    """
    bad = {}

    def some(start: int) -> int:
        chunk = range(start, min(start + CHUNK, count))
        try:
            function(chunk)
        except ValueError:
            if on_error == "raise":
                raise
            for index in chunk:
                try:
                    function(range(index, index + 1))
                except ValueError as error:
                    bad[index] = error
        return len(chunk)

    bar = count >= BAR_FROM and sys.stderr.isatty()
    with ThreadPoolExecutor() as threads, reporting(bar, count, "sample", doing) as advance:
        for done in threads.map(some, range(0, count, CHUNK)):
            advance(done)
    return dict(sorted(bad.items()))
