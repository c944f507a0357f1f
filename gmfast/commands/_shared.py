"""Pieces of several commands."""

import sys
import time
from collections.abc import Callable
from typing import Annotated

import typer

Device = Annotated[
    str | None, typer.Option(help="Where to run; by default a GPU where there is one.", metavar="DEVICE")
]


def progress_lines(done_is: str, items: str) -> Callable[[int, int], None]:
    """`progress=` for where stderr is no terminal: a line every half minute."""
    from ..training import trainer

    due = time.monotonic() + trainer.LINE_SECONDS

    def progress(done: int, total: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            print(f"{done_is} {done} of {total} {items}", file=sys.stderr, flush=True)
            due = time.monotonic() + trainer.LINE_SECONDS

    return progress
