"""Checkpoints of a run, and models loaded from them.

A run is a folder:

    metrics.jsonl        a line for each step: losses, gradient norms, learning rate, seconds
    settings.toml        the settings, all of them: `gmfast train --config settings.toml` repeats the run
    step-00001000/       a checkpoint: model.safetensors, ema.safetensors, optimizer.pt, state.json;
                         stream.pt for an iterable dataset
    last                 a symbolic link to the newest checkpoint, which is always a complete one
    lock                 held by the process that trains
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .._files import fsync as _fsync
from .._version import __version__
from ..models import MODELS
from ..models.base import Model
from .settings import Settings

#: Raised when an older version could not read what this one writes.
FORMAT = 2


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run's lock, which ends with the process.

    Raises:
        ValueError: When another process holds it.
    """
    lock = FileLock(out / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"out: expected a run that is not being trained, but another process has {out}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def save_checkpoint(
    out: Path,
    step: int,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizers: Mapping[str, Any],
    state: Mapping[str, Any],
    stream: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint and make it the last one.

    Killed at any moment, `last` still names a complete checkpoint; the one before it is kept too.

    Args:
        out: The run's folder.
        step: Number of training steps done.
        model: Weights of the model being trained.
        ema: Their running average.
        optimizers: State of each player's optimiser.
        state: What state.json holds.
        stream: Position in an iterable dataset, or None.

    Raises:
        OSError: When the disk is full or the folder cannot be written; the last checkpoint is as it was.
    """
    target, last = out / f"step-{step:08d}", out / "last"
    previous = os.readlink(last) if last.is_symlink() else None
    if previous == target.name:
        return
    temporary = out / ".saving"
    try:
        for leftover in (temporary, target):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        save_file(_dense(model), temporary / "model.safetensors")
        save_file(_dense(ema), temporary / "ema.safetensors")
        torch.save(optimizers, temporary / "optimizer.pt")
        if stream is not None:
            torch.save(stream, temporary / "stream.pt")
        (temporary / "state.json").write_text(json.dumps(state, indent=2))
        for path in (*temporary.iterdir(), temporary):
            _fsync(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        good = f"; the last good checkpoint is {out / previous}" if previous else ""
        raise OSError(f"out: expected to write a checkpoint in {out.absolute()} ({error}){good}") from None
    temporary.rename(target)
    link = out / ".last"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.replace(last)
    _fsync(out)
    for old in out.glob("step-*"):
        if old.name not in (target.name, previous):
            shutil.rmtree(old)


def _dense(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as safetensors takes them: contiguous, and none that shares memory with another."""
    seen, dense = set(), {}
    for name, tensor in weights.items():
        shared = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        dense[name] = tensor.clone() if shared else tensor.contiguous()
    return dense


def last_checkpoint(run: Path) -> tuple[Path, dict[str, Any]]:
    """Folder of a run's last checkpoint, and its state.json.

    Raises:
        FileNotFoundError: For a folder that is no run.
        ValueError: For a damaged checkpoint, or one of a newer version.
    """
    checkpoint = Path(run) / "last"
    if not checkpoint.exists():
        raise FileNotFoundError(
            f"run: expected a folder that `gmfast train` wrote, but {checkpoint} does not exist"
        )
    checkpoint = checkpoint.resolve()
    path = checkpoint / "state.json"
    with reading(path):
        state = json.loads(path.read_text(encoding="utf-8"))
        known = {setting.name for setting in fields(Settings)}
        newer = sorted(state["settings"].keys() - known)
        if state.get("format", 1) > FORMAT or newer:
            what = f"settings {', '.join(newer)}" if newer else f"format {state['format']}"
            by = f"version {state['version']}" if "version" in state else "a newer version"
            raise ValueError(f"it is of gmfast {by}, with {what} that {__version__} does not know")
        if not isinstance(state["step"], int) or not isinstance(state["model"], dict):
            raise TypeError("step and model")
    return checkpoint, state


def load_weights(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of a checkpoint: the trained ones, and their running average."""
    return _weights(checkpoint / "model.safetensors"), _weights(checkpoint / "ema.safetensors")


def _weights(path: Path) -> dict[str, Tensor]:
    with reading(path):
        return load_file(path)


def load_into(model: torch.nn.Module, path: Path, weights: Mapping[str, Tensor]) -> None:
    """Give a model the weights from the file `path`.

    Raises:
        ValueError: For those of another model.
    """
    with reading(path):
        model.load_state_dict(weights)


def load_optimizers(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """State of each player's optimiser in a checkpoint, by the player's name."""
    path = checkpoint / "optimizer.pt"
    with reading(path):
        states = torch.load(path, device, weights_only=True)
        # Before there were players, the state was that of the only optimiser.
        return {"model": states} if "param_groups" in states else states


def load_stream(checkpoint: Path) -> dict[str, Any]:
    """Position in the iterable dataset that the run learns from."""
    path = checkpoint / "stream.pt"
    with reading(path):
        return torch.load(path, weights_only=True)


def load_run(run: Path) -> tuple[Model, Settings, int]:
    """Load the averaged model of a run's last checkpoint, in eval mode on the CPU.

    Returns:
        The model, its settings, and its step.

    Raises:
        FileNotFoundError: For a folder that is no run.
        ValueError: For a damaged checkpoint, or one of a newer version.
    """
    checkpoint, state = last_checkpoint(run)
    settings = settings_of(checkpoint, state)
    with reading(checkpoint / "state.json"):
        model = MODELS[settings.model](**state["model"])
    path = checkpoint / "ema.safetensors"
    load_into(model, path, _weights(path))
    return model.eval(), settings, state["step"]


def settings_of(checkpoint: Path, state: Mapping[str, Any]) -> Settings:
    """The settings in a checkpoint's state."""
    with reading(checkpoint / "state.json"):
        return Settings(**state["settings"])


def column_names(run: Path) -> list[str] | None:
    """Column names of the table that a run is trained on, or None."""
    return last_checkpoint(run)[1].get("columns")


def state_of(
    settings: Settings, model: Model, step: int, updates: Mapping[str, int], columns: tuple[str, ...] | None
) -> dict[str, Any]:
    """Contents of state.json."""
    return {
        "format": FORMAT,
        "version": __version__,
        "step": step,
        "updates": dict(updates),
        "settings": asdict(settings),
        "model": model.config,
        "columns": columns,
    }


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file it was that could not be read.

    Raises:
        ValueError: For anything that a damaged, foreign or malicious file raises: unpickling is restricted to
            tensors and plain values.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"run: expected a checkpoint, but {path} cannot be used: {reason}") from error
