"""EDM: Karras et al., 2022, https://arxiv.org/abs/2206.00364."""

import torch
from torch import Tensor

from ... import diffusion
from ... import functional as GF
from .image import unet_arguments
from .variance_exploding import VarianceExploding, check_sigmas


class EDM(VarianceExploding):
    """Elucidated diffusion (Karras et al., 2022, arXiv:2206.00364): a denoiser whose network's input, output
    and target have unit variance at every noise level, trained on noise levels of a log-normal distribution.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        channels, multipliers, num_blocks, attention, dropout: of the network (`gmfast.models.unet.UNet`).
        sigma_data: standard deviation of the data.
        sigma_min, sigma_max, rho: the noise levels of sampling, equally spaced in sigma^(1/rho).
        log_sigma_mean, log_sigma_std: of the noise levels of training.
        label_dropout, dequantize: as of `gmfast.models.diffusion_image.ImageDiffusion`.
        num_levels: values a subpixel can take.
        num_labels: number of classes to condition on; None for an unconditional model.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        channels: int = 128,
        multipliers: tuple[int, ...] = (2, 2, 2),
        num_blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.13,
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
    ):
        super().__init__(image_shape, num_levels, num_labels, label_dropout, dequantize)
        check_sigmas(sigma_data, sigma_min, sigma_max, rho)
        if not log_sigma_std > 0:
            raise ValueError(f"log_sigma_std: expected a positive number, got {log_sigma_std}")
        unet = unet_arguments(channels, multipliers, num_blocks, attention, dropout)
        self.config = {
            "image_shape": self.image_shape,
            **unet,
            "sigma_data": sigma_data,
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "rho": rho,
            "log_sigma_mean": log_sigma_mean,
            "log_sigma_std": log_sigma_std,
            "label_dropout": label_dropout,
            "dequantize": dequantize,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
        self.sigma_data, self.sigma_min, self.sigma_max, self.rho = sigma_data, sigma_min, sigma_max, rho
        self.log_sigma_mean, self.log_sigma_std = log_sigma_mean, log_sigma_std
        self.precond = diffusion.EDMPrecond(self.build_unet(unet, 1000.0), sigma_data)

    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The expected image given `x (B, C, H, W)` with noise `sigma (B,)`."""
        return self.precond(x, sigma, label)

    forward = denoise

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The denoiser's squared error, each noise level weighted such that an untrained network's is 1, with
        noise from torch's global generator."""
        label = self.training_label(self.check_input(x, label))
        y = self.continuous(x)
        normal = torch.randn(len(x), dtype=x.dtype, device=x.device)
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
        progress,
        sampler="edm",
        steps: int = 18,
    ) -> Tensor:
        """By a sampler of `gmfast.diffusion`.

        Args:
            sampler: a name or an object, such as `gmfast.diffusion.EDM(churn=40)`; "edm" is Heun's method.
            steps: of the sampler.
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
