"""Preconditioning that makes a network a denoiser at every sigma."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _check


class EDMPrecond(nn.Module):
    """Preconditioned denoiser x0 = c_skip·x + c_out·network(c_in·x, c_noise), for a "karras" schedule.

    With s = σ - `sigma_min`, the coefficients are c_skip = σd²/(s² + σd²), c_out = s·σd/√(σ² + σd²),
    c_in = 1/√(σ² + σd²) and c_noise = ln(σ)/4 (Karras et al., 2022, arXiv:2206.00364, eq. 7 and table 1). A
    positive `sigma_min` makes it a consistency function, the identity at `sigma_min` (Song et al., 2023,
    arXiv:2303.01469, appendix C).

    Args:
        network: Called as `network(c_in·x, c_noise, *more)` with c_noise of shape `(B,)`.
        sigma_data: σd, the standard deviation of the data.
        sigma_min: Sigma at which the output is x itself.

    Attributes:
        prediction: "x0", from which `sample` learns what the output is.
    """

    prediction = "x0"

    def __init__(
        self, network: Callable[..., Tensor], sigma_data: float = 0.5, sigma_min: float = 0.0
    ) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c_skip, c_out, c_in and c_noise in the shape of `sigma`."""
        data, above = self.sigma_data, sigma - self.sigma_min
        total = (sigma.square() + data**2).sqrt()
        c_skip = data**2 / (above.square() + data**2)
        return c_skip, above * data / total, 1 / total, torch.log(sigma) / 4

    def forward(self, x: Tensor, sigma: Tensor, *more: Any) -> Tensor:
        """Denoise x of shape `(B, *S)` at sigma of shape `(B,)`; `more` is passed on to the network."""
        _check.no_proxy("x", x)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        c_skip, c_out, c_in = (c.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype) for c in (c_skip, c_out, c_in))
        return c_skip * x + c_out * self.network(c_in * x, c_noise, *more)
