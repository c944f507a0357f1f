"""Training under the name of the command: the public names of `gmfast.training`."""

from ._device import find_device
from .training import Settings, Trainer, build_model, column_names, evaluate, load_run

__all__ = ["Settings", "Trainer", "build_model", "column_names", "evaluate", "find_device", "load_run"]
