"""What makes a network a denoiser at every sigma."""

import torch
from torch import nn


class EDMPrecond(nn.Module):
    """A denoiser x0 = c_skip·x + c_out·network(c_in·x, c_noise) (Karras et al., 2022, arXiv:2206.00364, eq. 7
    and table 1), of a "karras" schedule; `sample` reads from it that it predicts x0.

    c_skip = σd²/(s² + σd²), c_out = s·σd/√(σ² + σd²), c_in = 1/√(σ² + σd²) and c_noise = ln(σ)/4, with
    s = σ - `sigma_min`. A `sigma_min` above 0 makes a consistency function of it, which is the identity there
    (Song et al., 2023, arXiv:2303.01469, appendix C).

    Args:
        network: called as `network(c_in·x, c_noise, *more)` with c_noise `(B,)`.
        sigma_data: σd, the standard deviation of the data.
    """

    prediction = "x0"

    def __init__(self, network, sigma_data=0.5, sigma_min=0.0):
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min

    def coefficients(self, sigma):
        """c_skip, c_out, c_in and c_noise at sigma, a tensor."""
        data, above = self.sigma_data, sigma - self.sigma_min
        total = (sigma.square() + data**2).sqrt()
        c_skip = data**2 / (above.square() + data**2)
        return c_skip, above * data / total, 1 / total, torch.log(sigma) / 4

    def forward(self, x, sigma, *more):
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        c_skip, c_out, c_in = (c.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype) for c in (c_skip, c_out, c_in))
        return c_skip * x + c_out * self.network(c_in * x, c_noise, *more)
