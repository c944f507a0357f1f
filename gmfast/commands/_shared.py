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
    """Create the folder of an option, or raise ValueError for a path where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{name}: expected a folder, or to make one, at {folder} ({error.strerror})"
        ) from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{name}: expected a folder that can be written, got {folder}")


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
