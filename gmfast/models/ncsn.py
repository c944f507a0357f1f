"""NCSN: Song and Ermon, 2019, https://arxiv.org/abs/1907.05600, and 2020, https://arxiv.org/abs/2006.09011."""

import math

import torch
from torch import Tensor

from .. import _check, diffusion
from .. import functional as GF
from .diffusion_image import unet_arguments
from .variance_exploding import VarianceExploding, check_sigmas


class NCSN(VarianceExploding):
    """A noise-conditional score network, sampled by annealed Langevin dynamics (Song and Ermon, 2019,
    arXiv:1907.05600), with the second version's choice of noise levels and steps (2020, arXiv:2006.09011):
    the highest level is the largest distance between two images of the data, the next ones form a geometric
    sequence in which each is likely where the one before it was, and the size of Langevin's steps is the one
    that leaves each level with the variance it should have.

    The network gives the score times -sigma; unlike the published one it is also told sigma, and trained on
    all noise levels from the lowest to the highest (Song et al., 2021, arXiv:2011.13456), as the ODE of the
    density goes through them all.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        channels, multipliers, num_blocks, attention, dropout: of the network (`gmfast.models.unet.UNet`).
        sigma_min: the lowest noise level.
        sigma_max: the highest; 0: the largest distance between two images of the first batch
            (`initialize`; the command gives it up to `initial_images`).
        langevin_steps: at each level.
        label_dropout, dequantize: as of `gmfast.models.diffusion_image.ImageDiffusion`.
        num_levels: values a subpixel can take.
        num_labels: number of classes to condition on; None for an unconditional model.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    family = "score model"
    #: How many of the data's images `initialize` should see.
    initial_images = 2048

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.0,
        sigma_min: float = 0.01,
        sigma_max: float = 0.0,
        langevin_steps: int = 5,
        label_dropout: float = 0.1,
        dequantize: bool = True,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        super().__init__(image_shape, num_levels, num_labels, label_dropout, dequantize)
        check_sigmas(1.0, sigma_min, sigma_max or math.inf, 1.0)
        _check.at_least(1, langevin_steps=langevin_steps)
        unet = unet_arguments(channels, multipliers, num_blocks, attention, dropout)
        self.config = {
            "image_shape": self.image_shape,
            **unet,
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "langevin_steps": langevin_steps,
            "label_dropout": label_dropout,
            "dequantize": dequantize,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
        self.sigma_min, self.langevin_steps = sigma_min, langevin_steps
        self.register_buffer("highest", torch.tensor(sigma_max, dtype=torch.float64))
        self.unet = self.build_unet(unet, 250.0)

    @property
    def sigma_max(self) -> float:
        """The highest noise level. RuntimeError before `initialize` has found it."""
        if not (highest := self.highest.item()) > 0:
            raise RuntimeError("sigma_max: expected a model that has seen data, got a fresh one (initialize)")
        return highest

    @torch.no_grad()
    def initialize(self, x: Tensor, label: Tensor | None = None) -> None:
        """Takes the highest noise level from the images `x`, if it was not given."""
        if not self.config["sigma_max"]:
            largest = torch.cdist(x.flatten(1).double(), x.flatten(1).double()).max()
            self.highest.copy_(largest.clamp(min=10 * self.sigma_min))

    @property
    def sigmas(self) -> Tensor:
        """The noise levels, float64 on the CPU, from the highest to the lowest."""
        ratio = sigma_ratio(math.prod(self.image_shape))
        count = max(2, 1 + round(math.log(self.sigma_max / self.sigma_min) / math.log(ratio)))
        return torch.logspace(
            math.log2(self.sigma_max), math.log2(self.sigma_min), count, base=2.0, dtype=torch.float64
        )

    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The gradient of the log-density of images with noise `sigma (B,)` at `x (B, C, H, W)`."""
        return self.noise(x, sigma, label) / -sigma.view(-1, 1, 1, 1)

    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The expected image given `x (B, C, H, W)` with noise `sigma (B,)`."""
        return x - sigma.view(-1, 1, 1, 1) * self.noise(x, sigma, label)

    def noise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The expected noise, in units of sigma."""
        s = sigma.view(-1, 1, 1, 1)
        return self.unet(x * (s.square() + 1).rsqrt(), sigma.log(), label)

    forward = score

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Denoising score matching, each level weighted by its variance: the mean squared error of the noise
        of levels whose logarithm is uniform. Torch's global generator draws both."""
        label = self.training_label(self.check_input(x, label))
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        sigma = torch.exp(low + (high - low) * torch.rand(len(x), dtype=x.dtype, device=x.device))
        noised, noise = GF.q_sample(self.continuous(x), 1.0, sigma, target="epsilon")
        return (self.noise(noised, sigma, label) - noise).square().mean()

    def draw(
        self,
        n: int,
        seed: Tensor,
        label: Tensor | None,
        *,
        guidance: float | None,
        progress,
        langevin_steps: int | None = None,
    ) -> Tensor:
        """By annealed Langevin dynamics, `langevin_steps` at each level, and at the end the expected image
        (Jolicoeur-Martineau et al., 2021, arXiv:2009.05475).

        Args:
            langevin_steps: by default the model's.
        """
        return self.diffuse(
            self.noise,
            n,
            seed,
            label,
            guidance,
            sampler=diffusion.Langevin(self.langevin_steps if langevin_steps is None else langevin_steps),
            schedule=diffusion.VarianceExploding(self.sigma_min, self.sigma_max),
            steps=len(self.sigmas),
            prediction="epsilon",
            progress=progress,
        )


def sigma_ratio(size: int) -> float:
    """Of neighbouring noise levels for data of `size` values: that at which a level's distances from a point
    lie within three deviations of its neighbour's with probability a half (arXiv:2006.09011, technique 2);
    at most 2."""

    def overlap(ratio):
        centre = math.sqrt(2 * size) * (ratio - 1)
        return _normal_cdf(centre + 3 * ratio) - _normal_cdf(centre - 3 * ratio)

    low, high = 1.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(middle) > 0.5 else (low, middle)
    return low


def _normal_cdf(v: float) -> float:
    return 0.5 * math.erfc(-v / math.sqrt(2))
