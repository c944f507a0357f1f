"""gmfast: fused kernels that make generative models in PyTorch fast."""

from ._doctor import doctor
from ._version import __version__
from . import distributions, functional, nn, reference  # noqa: E402  (operators register before use)

__all__ = ["__version__", "distributions", "doctor", "functional", "nn", "reference"]
