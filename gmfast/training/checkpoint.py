"""Checkpoints of a run, and models loaded from them.

A run is a folder:

    metrics.jsonl        a line for each step: losses, gradient norms, learning rate, seconds
    step-00001000/       a checkpoint: model.safetensors, ema.safetensors, optimizer.pt, state.json
    last                 a symbolic link to the newest checkpoint, which is always a complete one
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..models import MODELS
from ..models.base import Model
from .settings import Settings


def save_checkpoint(
    out: Path, step: int, model: Model, ema: Model, optimizers: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Write a checkpoint and make it the last one.

    Killed at any moment, `last` still names a complete checkpoint; the one before it is kept too.

    Args:
        out: The run's folder.
        step: Number of training steps done.
        model: The model being trained.
        ema: Its running average.
        optimizers: State of each player's optimiser.
        state: What state.json holds.
    """
    target, last = out / f"step-{step:08d}", out / "last"
    previous = os.readlink(last) if last.is_symlink() else None
    if previous == target.name:
        return
    temporary = out / ".saving"
    for leftover in (temporary, target):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    save_file(model.state_dict(), temporary / "model.safetensors")
    save_file(ema.state_dict(), temporary / "ema.safetensors")
    torch.save(optimizers, temporary / "optimizer.pt")
    (temporary / "state.json").write_text(json.dumps(state, indent=2))
    for path in (*temporary.iterdir(), temporary):
        _fsync(path)
    temporary.rename(target)
    link = out / ".last"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.replace(last)
    _fsync(out)
    for old in out.glob("step-*"):
        if old.name not in (target.name, previous):
            shutil.rmtree(old)


def last_checkpoint(run: Path) -> tuple[Path, dict[str, Any]]:
    """Folder of a run's last checkpoint, and its state.json.

    Raises:
        FileNotFoundError: For a folder that is no run.
    """
    checkpoint = Path(run) / "last"
    if not checkpoint.exists():
        raise FileNotFoundError(
            f"run: expected a folder that `gmfast train` wrote, but {checkpoint} does not exist"
        )
    checkpoint = checkpoint.resolve()
    return checkpoint, json.loads((checkpoint / "state.json").read_text())


def load_weights(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of a checkpoint: the trained ones, and their running average."""
    return load_file(checkpoint / "model.safetensors"), load_file(checkpoint / "ema.safetensors")


def load_optimizers(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """State of each player's optimiser in a checkpoint, by the player's name."""
    states = torch.load(checkpoint / "optimizer.pt", device, weights_only=True)
    # Before there were players, the state was that of the only optimiser.
    return {"model": states} if "param_groups" in states else states


def load_run(run: Path) -> tuple[Model, Settings, int]:
    """Load the averaged model of a run's last checkpoint, in eval mode on the CPU.

    Returns:
        The model, its settings, and its step.

    Raises:
        FileNotFoundError: For a folder that is no run.
    """
    checkpoint, state = last_checkpoint(run)
    settings = Settings(**state["settings"])
    model = MODELS[settings.model](**state["model"])
    model.load_state_dict(load_weights(checkpoint)[1])
    return model.eval(), settings, state["step"]


def column_names(run: Path) -> list[str] | None:
    """Column names of the table that a run is trained on, or None."""
    return last_checkpoint(run)[1].get("columns")


def state_of(
    settings: Settings, model: Model, step: int, updates: Mapping[str, int], columns: tuple[str, ...] | None
) -> dict[str, Any]:
    """Contents of state.json."""
    return {
        "step": step,
        "updates": dict(updates),
        "settings": asdict(settings),
        "model": model.config,
        "columns": columns,
    }


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
