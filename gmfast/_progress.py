"""`progress=` of whatever takes long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Whether to show a bar, or a function to call now and then with how much is done and of how much.
Progress = bool | Callable[[int, int], object]


@contextmanager
def reporting(
    progress: Progress, total: int, unit: str, doing: str = "sampling"
) -> Iterator[Callable[[int], object]]:
    """Gives the function to call with how many more of `total` are done. `doing` is what a bar says."""
    if callable(progress):
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            progress(done, total)

        yield advance
    elif progress is True:
        from tqdm import tqdm

        with tqdm(total=total, desc=doing, unit=unit) as bar:
            yield bar.update
    elif progress is False:
        yield lambda more: None
    else:
        raise TypeError(f"progress: expected True, False or a function, got {type(progress).__name__}")
