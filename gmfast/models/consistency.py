"""Consistency models: Song et al., 2023, https://arxiv.org/abs/2303.01469, trained as by Song and Dhariwal,
2024, https://arxiv.org/abs/2310.14189."""

import math

import torch
from torch import Tensor

from .. import _check, diffusion
from .. import functional as GF
from .autoregressive import evaluating
from .diffusion_image import ImageDiffusion, unet_arguments
from .edm import EDM
from .variance_exploding import check_sigmas


class ConsistencyModel(ImageDiffusion):
    """A consistency model (Song et al., 2023, arXiv:2303.01469): one pass from noise to an image, the end of
    the path that the probability-flow ODE takes from there; or a few, with noise in between.

    `loss` is the distance of what the network says of two neighbouring points of such a path. By itself (the
    improved training of Song and Dhariwal, 2024, arXiv:2310.14189) they are an image with two amounts of the
    same noise; after `distill(teacher)` the less noisy one is where a step of the teacher, an `EDM`, leads.
    The noise levels come closer as training goes on, in doublings over `total_steps` calls of `loss` in
    training mode, which the model counts.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        channels, multipliers, num_blocks, attention, dropout: of the network (`gmfast.models.unet.UNet`).
        sigma_data: standard deviation of the data.
        sigma_min, sigma_max, rho: the noise levels, equally spaced in sigma^(1/rho).
        first_levels, last_levels: how many intervals there are between noise levels, at first and at last.
        total_steps: from the first number to the last.
        log_sigma_mean, log_sigma_std: of the noise levels of training.
        label_dropout, dequantize: as of `gmfast.models.diffusion_image.ImageDiffusion`.
        num_levels: values a subpixel can take.
        num_labels: number of classes to condition on; None for an unconditional model.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    family = "consistency model"
    unit = "consistency loss"

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        channels: int = 128,
        multipliers: tuple[int, ...] = (2, 2, 2),
        num_blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.3,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        first_levels: int = 10,
        last_levels: int = 1280,
        total_steps: int = 400_000,
        log_sigma_mean: float = -1.1,
        log_sigma_std: float = 2.0,
        label_dropout: float = 0.0,
        dequantize: bool = False,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        super().__init__(image_shape, num_levels, num_labels, label_dropout, dequantize)
        check_sigmas(sigma_data, sigma_min, sigma_max, rho)
        _check.at_least(1, total_steps=total_steps)
        _check.at_least(2, first_levels=first_levels)
        _check.at_least(first_levels, last_levels=last_levels)
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
            "first_levels": first_levels,
            "last_levels": last_levels,
            "total_steps": total_steps,
            "log_sigma_mean": log_sigma_mean,
            "log_sigma_std": log_sigma_std,
            "label_dropout": label_dropout,
            "dequantize": dequantize,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
        self.sigma_data, self.sigma_min, self.sigma_max, self.rho = sigma_data, sigma_min, sigma_max, rho
        self.log_sigma_mean, self.log_sigma_std = log_sigma_mean, log_sigma_std
        self.register_buffer("steps_taken", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.precond = diffusion.EDMPrecond(self.build_unet(unet, 1000.0), sigma_data, sigma_min)
        self.teacher = ()  # a tuple, lest it become a module of this one

    def distill(self, teacher: EDM) -> None:
        """From now on `loss` follows the steps of `teacher`, whose images and classes must be these. It is
        used as it is, in eval mode, and no part of the state dict."""
        if not isinstance(teacher, EDM):
            raise ValueError(f"teacher: expected an EDM, got {type(teacher).__name__}")
        for name in ("image_shape", "num_levels", "num_labels"):
            if getattr(teacher, name) != getattr(self, name):
                raise ValueError(
                    f"teacher: expected {name} {getattr(self, name)}, got {getattr(teacher, name)}"
                )
        self.teacher = (teacher,)

    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The end of the path through `x (B, C, H, W)` with noise `sigma (B,)`; at `sigma_min` it is `x`."""
        return self.precond(x, sigma, label)

    forward = denoise

    @property
    def num_intervals(self) -> int:
        """Between noise levels, at the current step of training."""
        first, last, total = (self.config[name] for name in ("first_levels", "last_levels", "total_steps"))
        stage = total // (math.floor(math.log2(last // first)) + 1)
        doublings = int(self.steps_taken) // max(1, stage)
        return min(first * 2 ** min(doublings, 40), last)

    def levels(self, count: int) -> Tensor:
        """`count` + 1 noise levels, float64, from the lowest to the highest."""
        low, high = (sigma ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))
        return torch.linspace(low, high, count + 1, dtype=torch.float64, device="cpu") ** self.rho

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The pseudo-Huber distance of what the network says of two neighbouring noise levels, over the
        distance of these, with noise from torch's global generator."""
        label = self.training_label(self.check_input(x, label))
        count = self.num_intervals
        if self.training:
            self.steps_taken += 1
        levels = self.levels(count)
        z = (levels.log() - self.log_sigma_mean) / self.log_sigma_std
        shares = torch.special.ndtr(z).diff().to(x.device, x.dtype)
        levels = levels.to(x.device, x.dtype)
        interval = torch.multinomial(shares.clamp(min=1e-12), len(x), replacement=True)
        low, high = levels[interval], levels[interval + 1]
        y = self.continuous(x)
        noisy, noise = GF.q_sample(y, 1.0, high, target="epsilon")
        with torch.no_grad(), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            # Forked: dropout is that of the pass with gradients.
            target = self.denoise(self._earlier(noisy, high, low, noise, label), low, label)
        difference = (self.denoise(noisy, high, label) - target).flatten(1)
        c = 0.00054 * math.sqrt(difference.shape[1])
        distance = (difference.square().sum(1) + c**2).sqrt() - c
        return (distance / (high - low)).mean()

    def _earlier(self, noisy, high, low, noise, label) -> Tensor:
        """The point at noise `low` of the path through `noisy` at noise `high`."""
        step = (low - high).view(-1, 1, 1, 1)
        if not self.teacher:
            return noisy + step * noise
        (teacher,) = self.teacher
        with evaluating(teacher):  # Heun's step
            slope = (noisy - teacher.denoise(noisy, high, label)) / high.view(-1, 1, 1, 1)
            there = noisy + step * slope
            other = (there - teacher.denoise(there, low, label)) / low.view(-1, 1, 1, 1)
        return noisy + step / 2 * (slope + other)

    def draw(
        self,
        n: int,
        seed: Tensor,
        label: Tensor | None,
        *,
        guidance: float | None,
        progress,
        steps: int = 2,
    ) -> Tensor:
        """By passes with noise in between.

        Args:
            steps: passes.
        """
        return self.diffuse(
            self,
            n,
            seed,
            label,
            guidance,
            sampler="consistency",
            schedule=diffusion.Karras(self.sigma_min, self.sigma_max, self.rho),
            steps=steps,
            prediction="x0",
            progress=progress,
        )
