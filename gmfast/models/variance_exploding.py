"""What score models of images share whose noise grows without the data shrinking."""

import math

import torch
from torch import Tensor

from .. import functional as GF
from ..ops import _seed
from .autoregressive import check_at_least
from .diffusion_image import ImageDiffusion, seed_of_signs
from .ode import ode_log_prob


class VarianceExploding(ImageDiffusion):
    """Images with noise of standard deviation sigma, from `sigma_min` to `sigma_max`, where they are taken
    for that noise alone. A model writes `denoise(x, sigma, label)`, the expected image."""

    sigma_min: float
    sigma_max: float
    rho: float = 7.0
    unit = "bits per dimension"

    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The expected image given `x (B, C, H, W)` with noise `sigma (B,)`."""
        raise NotImplementedError

    def log_prob(
        self,
        x: Tensor,
        label: Tensor | None = None,
        *,
        seed=None,
        steps: int = 32,
        divergence: str = "hutchinson",
    ) -> Tensor:
        """Log-probability of each image, (B,), in nats, by the probability-flow ODE (Song et al., 2021,
        arXiv:2011.13456), without a gradient.

        It is the log-density of a continuous image, whose levels noise has filled (a lower bound on average,
        by Jensen's inequality, as of a flow); that density is exact but for the steps (`gmfast.models.ode`,
        equally spaced in sigma^(1/rho)), and with "hutchinson" on average over the seed's signs.

        Args:
            seed: of that noise and the signs: an int, an int64 tensor, or a `torch.Generator`.
            steps: of the Runge-Kutta method, four passes and their gradients each.
            divergence: "hutchinson", or "exact", as many gradients as an image has values.
        """
        label = self.check_input(x, label)
        check_at_least(1, steps=steps)
        seed = _seed.as_tensor(seed, x.device)
        y = self.continuous(x.to(self.dtype), seed)
        low, high = (sigma ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))

        def velocity(y, u):
            root = low + u * (high - low)
            sigma, slope = root**self.rho, self.rho * (high - low) * root ** (self.rho - 1)
            scale = (slope / sigma).view(-1, 1, 1, 1)
            return (y - self.denoise(y, sigma, label)) * scale

        def base_log_prob(z):
            return GF.gaussian_log_prob(z / self.sigma_max) - z[0].numel() * math.log(self.sigma_max)

        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        if not len(x):
            return x.new_empty(0)
        log_prob, _ = ode_log_prob(
            velocity, y, times, base_log_prob, divergence=divergence, seed=seed_of_signs(seed)
        )
        return log_prob + self.log_level_volume

    def heldout_loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Bits per dimension, by `log_prob` in 16 steps."""
        return self.bits_per_dim(self.log_prob(x, label, steps=16))


def check_sigmas(sigma_data: float, sigma_min: float, sigma_max: float, rho: float) -> None:
    """Raises ValueError for what cannot be noise levels."""
    if not sigma_data > 0:
        raise ValueError(f"sigma_data: expected a positive number, got {sigma_data}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min: expected a positive number below {sigma_max}, got {sigma_min}")
    if not rho > 0:
        raise ValueError(f"rho: expected a positive number, got {rho}")
