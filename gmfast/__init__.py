"""gmfast: fused kernels that make generative models in PyTorch fast."""

from . import decode, diffusion, distributions, functional, models, nn, reference
from ._doctor import doctor
from ._library import plain_pytorch
from ._version import __version__

__all__ = [
    "__version__",
    "decode",
    "diffusion",
    "distributions",
    "doctor",
    "functional",
    "models",
    "nn",
    "plain_pytorch",
    "reference",
]
