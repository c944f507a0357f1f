"""Pieces of several commands."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def given_path(text: str) -> Path:
    """Path of an option; one without a character, as an unset variable of the shell has it, is refused."""
    if not text:
        raise ValueError("expected a path, got ''")
    return Path(text)


Device = Annotated[
    str | None, typer.Option(help="Where to run; by default a GPU where there is one.", metavar="DEVICE")
]


def check_folder(folder: Path, name: str = "out") -> None:
    """Raise ValueError for an option's folder that neither can be written nor made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{name}: expected a folder, or a place for one, but {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: expected a folder that can be written, got {there}")


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
