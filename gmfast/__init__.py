"""gmfast: fused kernels that make generative models in PyTorch fast."""

from . import decode, distributions, functional, models, nn, reference
from ._doctor import doctor
from ._version import __version__

__all__ = ["__version__", "decode", "distributions", "doctor", "functional", "models", "nn", "reference"]
