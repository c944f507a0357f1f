"""Training and evaluation of models, and the runs that training leaves on disk."""

from .checkpoint import column_names, load_run
from .evaluation import evaluate, evaluate_samples
from .settings import Settings, build_model, read_config
from .trainer import Trainer

__all__ = [
    "Settings",
    "Trainer",
    "build_model",
    "column_names",
    "evaluate",
    "evaluate_samples",
    "load_run",
    "read_config",
]
