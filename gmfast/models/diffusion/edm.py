"""EDM: Karras et al., 2022, https://arxiv.org/abs/2206.00364."""

from typing import Any

import torch
from torch import Tensor

from ... import diffusion
from ... import functional as GF
from ..._progress import Progress
from ..networks.unet import UNetConfig
from .settings import unet_settings
from .variance_exploding import VarianceExploding, check_sigmas


class EDM(VarianceExploding):
    """Elucidated diffusion model (Karras et al., 2022, arXiv:2206.00364).

    A denoiser whose network has inputs, outputs and targets of unit variance at every noise level, trained on
    log-normally distributed noise levels.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        sigma_data: Standard deviation of the data.
        sigma_min: Lowest noise level of sampling.
        sigma_max: Highest noise level of sampling.
        rho: The noise levels of sampling are equally spaced in sigma^(1/rho).
        log_sigma_mean: Mean of the logarithms of the noise levels in training.
        log_sigma_std: Standard deviation of the logarithms of the noise levels in training.
        label_dropout: Share of training images whose class the network does not see, for guidance.
        dequantize: Train on uniformly dequantized images, of which `log_prob` is the density.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.
        network: Fields of `gmfast.models.networks.unet.UNetConfig` other than the published ones.

    Raises:
        ValueError: For an argument out of range, naming it. TypeError: For an unknown one.
    """

    settings = unet_settings(digits={"sigma_data": 0.75})
    network = UNetConfig(channels=128, multipliers=(2, 2, 2), num_blocks=4, attention=(16,), dropout=0.13)

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        *,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        log_sigma_mean: float = -1.2,
        log_sigma_std: float = 1.2,
        label_dropout: float = 0.1,
        dequantize: bool = True,
        num_levels: int = 256,
        num_labels: int | None = None,
        **network: Any,
    ):
        super().__init__(image_shape, num_levels, num_labels, label_dropout, dequantize)
        check_sigmas(sigma_min, sigma_max, sigma_data=sigma_data, rho=rho, log_sigma_std=log_sigma_std)
        self.sigma_data, self.sigma_min, self.sigma_max, self.rho = sigma_data, sigma_min, sigma_max, rho
        self.log_sigma_mean, self.log_sigma_std = log_sigma_mean, log_sigma_std
        self.precond = diffusion.EDMPrecond(self.build_unet(network, 1000.0), sigma_data)

    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Expected image, given `x (B, C, H, W)` with noise `sigma (B,)`."""
        return self.precond(x, sigma, label)

    forward = denoise

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Squared error of the denoiser, weighted such that an untrained network's is 1 at each noise level.

        Torch's global generator draws noise and noise levels.
        """
        label = self.training_label(self.check_input(x, label))
        y = self.continuous(x)
        normal = torch.randn(x.shape[0], dtype=x.dtype, device=x.device)
        sigma = torch.exp(self.log_sigma_mean + self.log_sigma_std * normal)
        error = (self.denoise(GF.q_sample(y, 1.0, sigma), sigma, label) - y).square().flatten(1).mean(1)
        return (error * (sigma**-2 + self.sigma_data**-2)).mean()

    def draw(
        self,
        n: int,
        seed: Tensor,
        label: Tensor | None,
        *,
        guidance: float | None,
        progress: Progress,
        sampler: str | diffusion.Sampler = "edm",
        steps: int = 18,
    ) -> Tensor:
        """Draw `n` images by a sampler of `gmfast.diffusion`.

        Args:
            n: Number of images.
            seed: int64 tensor `()`.
            label: Classes, int64 `(n,)`, or None.
            guidance: Guidance scale, or None.
            progress: See `sample`.
            sampler: Name or object, such as `gmfast.diffusion.EDM(churn=40)`; "edm" is Heun's method.
            steps: Number of steps.
        """
        return self.diffuse(
            self,
            n,
            seed,
            label,
            guidance,
            sampler=sampler,
            schedule=diffusion.Karras(self.sigma_min, self.sigma_max, self.rho),
            steps=steps,
            prediction="x0",
            progress=progress,
        )
