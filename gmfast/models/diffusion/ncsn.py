"""NCSN: Song and Ermon, 2019, https://arxiv.org/abs/1907.05600, and 2020, https://arxiv.org/abs/2006.09011."""

import math
from typing import Any

import torch
from torch import Tensor

from ... import _check, diffusion
from ... import functional as GF
from ..._progress import Progress
from ..base import Batch
from ..networks.unet import UNetConfig
from .settings import unet_settings
from .variance_exploding import VarianceExploding, check_sigmas


class NCSN(VarianceExploding):
    """Noise-conditional score network (Song and Ermon, 2019, arXiv:1907.05600).

    It is sampled by annealed Langevin dynamics. Noise levels and step size follow the second version (2020,
    arXiv:2006.09011): the highest level is the largest distance between two training images; the levels form
    a geometric sequence in which typical samples of one are likely at the next; the step size leaves each
    level with its own variance.

    The network predicts the score times -sigma. Unlike the published one it is conditioned on sigma, and
    trained on all noise levels in between (Song et al., 2021, arXiv:2011.13456), which the probability-flow
    ODE passes through.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        sigma_min: Lowest noise level.
        sigma_max: Highest noise level; 0: the largest distance between two images that `prepare` sees.
        langevin_steps: Langevin steps at each noise level.
        label_dropout: Share of training images whose class the network does not see, for guidance.
        dequantize: Train on uniformly dequantized images, of which `log_prob` is the density.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.
        network: Fields of `gmfast.models.networks.unet.UNetConfig` other than the published ones.

    Raises:
        ValueError: For an argument out of range, naming it. TypeError: For an unknown one.
    """

    family = "score model"
    settings = unet_settings()
    network = UNetConfig(channels=128, multipliers=(1, 2, 2, 2), num_blocks=2, attention=(16,), dropout=0.0)
    prepare_size = 2048

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        *,
        sigma_min: float = 0.01,
        sigma_max: float = 0.0,
        langevin_steps: int = 5,
        label_dropout: float = 0.1,
        dequantize: bool = True,
        num_levels: int = 256,
        num_labels: int | None = None,
        **network: Any,
    ):
        super().__init__(image_shape, num_levels, num_labels, label_dropout, dequantize)
        check_sigmas(sigma_min, sigma_max or math.inf)
        _check.at_least(1, langevin_steps=langevin_steps)
        self.sigma_min, self.langevin_steps = sigma_min, langevin_steps
        self._finds_sigma_max = not sigma_max
        self.register_buffer("highest", torch.tensor(sigma_max, dtype=torch.float64))
        self.unet = self.build_unet(network, 250.0)

    @property
    def sigma_max(self) -> float:
        """Highest noise level.

        Raises:
            RuntimeError: Before `initialize` has found it.
        """
        if not (highest := self.highest.item()) > 0:
            raise RuntimeError("sigma_max: expected a model that has seen data, got a fresh one (initialize)")
        return highest

    def prepare(self, batch: Batch) -> None:
        """Initialise the highest noise level from training images."""
        self.initialize(*batch)

    @torch.no_grad()
    def initialize(self, x: Tensor, label: Tensor | None = None) -> None:
        """Set the highest noise level to the largest distance between two of the images `x (B, C, H, W)`.

        A `sigma_max` given to the constructor stays.
        """
        if self._finds_sigma_max:
            largest = torch.cdist(x.flatten(1).double(), x.flatten(1).double()).max()
            self.highest.copy_(largest.clamp(min=10 * self.sigma_min))

    @property
    def sigmas(self) -> Tensor:
        """Noise levels from the highest to the lowest, float64 on the CPU."""
        ratio = sigma_ratio(math.prod(self.image_shape))
        count = max(2, 1 + round(math.log(self.sigma_max / self.sigma_min) / math.log(ratio)))
        return torch.logspace(
            math.log2(self.sigma_max), math.log2(self.sigma_min), count, base=2.0, dtype=torch.float64
        )

    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Gradient of the log-density of images with noise `sigma (B,)` at `x (B, C, H, W)`."""
        return self.noise(x, sigma, label) / -sigma.view(-1, 1, 1, 1)

    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Expected image, given `x (B, C, H, W)` with noise `sigma (B,)`."""
        return x - sigma.view(-1, 1, 1, 1) * self.noise(x, sigma, label)

    def noise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Expected noise, in units of sigma, given `x (B, C, H, W)` with noise `sigma (B,)`."""
        s = sigma.view(-1, 1, 1, 1)
        return self.unet(x * (s.square() + 1).rsqrt(), sigma.log(), label)

    forward = score

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Denoising score matching with each noise level weighted by its variance.

        That is the mean squared error of the noise, at log-uniform noise levels. Torch's global generator
        draws noise and noise levels.
        """
        label = self.training_label(self.check_input(x, label))
        low = math.log(self.sigma_min)
        # Where it is traced, a fresh model's loss is NaN instead of an error.
        high = math.log(self.sigma_max) if _check.known(self.highest) else self.highest.log()
        sigma = torch.exp(low + (high - low) * torch.rand(x.shape[0], dtype=x.dtype, device=x.device))
        noised, noise = GF.q_sample(self.continuous(x), 1.0, sigma, target="epsilon")
        return (self.noise(noised, sigma, label) - noise).square().mean()

    def draw(
        self,
        n: int,
        seed: Tensor,
        label: Tensor | None,
        *,
        guidance: float | None,
        progress: Progress,
        langevin_steps: int | None = None,
    ) -> Tensor:
        """Draw `n` images by annealed Langevin dynamics.

        The last step is the expected image (Jolicoeur-Martineau et al., 2021, arXiv:2009.05475).

        Args:
            n: Number of images.
            seed: int64 tensor `()`.
            label: Classes, int64 `(n,)`, or None.
            guidance: Guidance scale, or None.
            progress: See `sample`.
            langevin_steps: Langevin steps at each noise level; None: the constructor's.
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
    """Ratio of neighbouring noise levels for data of `size` values, at most 2.

    At this ratio, the norm of one level's noise lies within three standard deviations of the mean norm at the
    next level with probability 1/2 (arXiv:2006.09011, technique 2).
    """

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
