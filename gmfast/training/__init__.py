"""Training and evaluation of models, and the runs that training leaves on disk."""

from .checkpoint import column_names, load_run
from .evaluation import evaluate
from .settings import Settings, build_model
from .trainer import Trainer

__all__ = ["Settings", "Trainer", "build_model", "column_names", "evaluate", "load_run"]
