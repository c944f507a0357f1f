"""Samples as files: a module a modality, each with its `Output`."""

from importlib import import_module
from pathlib import Path

from ..models.base import Model
from ..training import Settings
from .base import Output


def output_for(model: Model, settings: Settings, run: Path) -> Output:
    """Output of the model's modality: the `Output` of the module of that name in this package."""
    return import_module(f"{__name__}.{model.modality}").Output(model, settings, run)


__all__ = ["Output", "output_for"]
