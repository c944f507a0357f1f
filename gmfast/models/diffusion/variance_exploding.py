"""Base class of the models whose noise grows while the image keeps its scale."""

import math
from abc import abstractmethod

from torch import Tensor

from ... import functional as GF
from .image import OdeImageDiffusion
from .ode import LogDensity, Velocity


class VarianceExploding(OdeImageDiffusion):
    """Model of images with noise of standard deviation sigma, from `sigma_min` to `sigma_max`.

    At `sigma_max`, the noisy image is taken for noise alone.
    """

    sigma_min: float
    sigma_max: float
    rho: float = 7.0

    @abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Expected image, given `x (B, C, H, W)` with noise `sigma (B,)`."""

    def ode(self, label: Tensor | None) -> tuple[Velocity, LogDensity]:
        """Probability-flow ODE (Song et al., 2021, arXiv:2011.13456), its time linear in sigma^(1/rho)."""
        low, high = (sigma ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))

        def velocity(y, u):
            root = low + u * (high - low)
            sigma, slope = root**self.rho, self.rho * (high - low) * root ** (self.rho - 1)
            scale = (slope / sigma).view(-1, 1, 1, 1)
            return (y - self.denoise(y, sigma, label)) * scale

        def base_log_prob(z):
            return GF.gaussian_log_prob(z / self.sigma_max) - math.prod(self.image_shape) * math.log(
                self.sigma_max
            )

        return velocity, base_log_prob


def check_sigmas(sigma_min: float, sigma_max: float, **positive: float) -> None:
    """Check the range of noise levels, and other parameters of theirs that are positive.

    Raises:
        ValueError: Naming the argument.
    """
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min: expected a positive number below {sigma_max}, got {sigma_min}")
