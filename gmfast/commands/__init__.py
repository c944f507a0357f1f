"""The commands of `gmfast`: a module each."""

from .bench import bench
from .doctor import doctor
from .evaluate import evaluate
from .list import list_models
from .sample import sample
from .train import train

__all__ = ["bench", "doctor", "evaluate", "list_models", "sample", "train"]
