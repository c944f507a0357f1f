"""The `gmfast` command: its subcommands, and what it says when one fails."""

import os
import sys
from typing import Annotated

import typer

from . import commands
from ._version import __version__
from .commands._launch import report

#: Extras that bring modules, other than `train`.
EXTRAS = {"soundfile": "audio", "scipy": "audio", "datasets": "data", "pyarrow": "data"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # which would take [default: ...] for markup
    pretty_exceptions_enable=False,
)
app.command()(commands.train)
app.command()(commands.sample)
app.command()(commands.evaluate)
app.command("list")(commands.list_models)
app.command()(commands.doctor)
app.command()(commands.bench)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"gmfast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fast operations for generative models in PyTorch, and models that use them."""


def main() -> None:
    """Run the command. An error that a user can mend is one sentence on stderr and exit status 2."""
    try:
        app()
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing == "gmfast":
            raise
        if missing in ("", "pyo"):  # which no extra brings where it has no wheel
            _fail(str(error))
        _fail(f"{missing} is missing: pip install 'gmfast[{EXTRAS.get(missing, 'train')}]' brings it")
    except OSError as error:
        if error.filename is None or error.strerror is None:
            _fail(str(error))
        _fail(f"expected to read or write {os.fsdecode(error.filename)} ({error.strerror})")
    except (ValueError, FloatingPointError, ImportError) as error:
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if _of_memory(error):
            _fail(
                "memory: expected enough for the model and the batch, but there is too little; a smaller "
                "--batch-size or model needs less, and in training --accumulate or --checkpoint-activations "
                f"({str(error).splitlines()[0] if str(error) else 'out of memory'})"
            )
        if not _of_another_process(error):
            raise
        sentence = (
            "processes: expected all of the job to go on, but another one has ended or cannot be reached"
        )
        print(f"gmfast: {sentence}", file=sys.stderr)  # not for the launcher, which says why
        raise SystemExit(2) from None


def _of_memory(error: MemoryError | RuntimeError) -> bool:
    """True for what Python, NumPy and torch raise where memory does not suffice, on any device."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _of_another_process(error: RuntimeError) -> bool:
    """True for what gloo and NCCL raise where a process of the job has ended."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and any(
        word in str(error) for word in ("gloo", "NCCL", "Connection", "timed out", "Socket")
    )


def _fail(sentence: str) -> None:
    if not report(sentence):
        print(f"gmfast: {sentence}", file=sys.stderr)
    raise SystemExit(2)
