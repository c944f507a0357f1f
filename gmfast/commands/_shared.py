"""Pieces of several commands."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[
    str | None, typer.Option(help="Where to run; by default a GPU where there is one.", metavar="DEVICE")
]


def check_folder(out: Path) -> None:
    """Create the folder of results, or raise ValueError for a path that can be none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: expected a folder, or to make one, at {out} ({error.strerror})") from None
    if not os.access(out, os.W_OK):
        raise ValueError(f"out: expected a folder that can be written, got {out}")


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
