"""What score models of images share whose noise grows without the data shrinking."""

import math

from torch import Tensor

from ... import functional as GF
from .image import OdeImageDiffusion


class VarianceExploding(OdeImageDiffusion):
    """Images with noise of standard deviation sigma, from `sigma_min` to `sigma_max`, where they are taken
    for that noise alone. A model writes `denoise(x, sigma, label)`, the expected image."""

    sigma_min: float
    sigma_max: float
    rho: float = 7.0

    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The expected image given `x (B, C, H, W)` with noise `sigma (B,)`."""
        raise NotImplementedError

    def ode(self, label: Tensor | None):
        """Its times are equally spaced in sigma^(1/rho)."""
        low, high = (sigma ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))

        def velocity(y, u):
            root = low + u * (high - low)
            sigma, slope = root**self.rho, self.rho * (high - low) * root ** (self.rho - 1)
            scale = (slope / sigma).view(-1, 1, 1, 1)
            return (y - self.denoise(y, sigma, label)) * scale

        def base_log_prob(z):
            return GF.gaussian_log_prob(z / self.sigma_max) - z[0].numel() * math.log(self.sigma_max)

        return velocity, base_log_prob


def check_sigmas(sigma_data: float, sigma_min: float, sigma_max: float, rho: float) -> None:
    """Raises ValueError for what cannot be noise levels."""
    if not sigma_data > 0:
        raise ValueError(f"sigma_data: expected a positive number, got {sigma_data}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min: expected a positive number below {sigma_max}, got {sigma_min}")
    if not rho > 0:
        raise ValueError(f"rho: expected a positive number, got {rho}")
