"""Consistency models: Song et al., 2023, https://arxiv.org/abs/2303.01469.

They are trained as by Song and Dhariwal, 2024, https://arxiv.org/abs/2310.14189.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import _check, _library, _seed, diffusion
from ... import functional as GF
from ..._progress import Progress
from ..base import Batch, Model, evaluating
from ..networks.unet import UNetConfig
from .edm import EDM
from .image import ImageDiffusion
from .settings import unet_settings
from .variance_exploding import check_sigmas


class ConsistencyModel(ImageDiffusion):
    """Consistency model (Song et al., 2023, arXiv:2303.01469).

    One pass maps any point of a path of the probability-flow ODE to its end, an image; sampling takes one or
    a few, with noise in between.

    The loss compares two neighbouring points of a path: an image with two amounts of the same noise (the
    improved training of Song and Dhariwal, 2024, arXiv:2310.14189); after `distill(teacher)`, a noisy image
    and the point that a step of the teacher leads to. The number of noise levels doubles in stages over
    `total_steps` calls of `loss` in training mode, which the model counts in `steps_taken`; transforms of
    `torch.func` allow no counting, so that a loop of them adds to it itself.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        sigma_data: Standard deviation of the data.
        sigma_min: Lowest noise level.
        sigma_max: Highest noise level.
        rho: The noise levels are equally spaced in sigma^(1/rho).
        first_levels: Number of intervals between noise levels at the first step of training.
        last_levels: Number of intervals between noise levels at the last step of training.
        total_steps: Steps of training over which the number of intervals doubles.
        log_sigma_mean: Mean of the logarithms of the noise levels in training.
        log_sigma_std: Standard deviation of the logarithms of the noise levels in training.
        label_dropout: Share of training images whose class the network does not see, for guidance.
        dequantize: Train on uniformly dequantized images.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.
        network: Fields of `gmfast.models.networks.unet.UNetConfig` other than the published ones.

    Raises:
        ValueError: For an argument out of range, naming it. TypeError: For an unknown one.
    """

    family = "consistency model"
    settings = unet_settings(
        digits={"sigma_data": 0.75}, first_levels=10, last_levels=160, total_steps=2000, log_sigma_std=1.6
    )
    network = UNetConfig(channels=128, multipliers=(2, 2, 2), num_blocks=4, attention=(16,), dropout=0.3)
    requires: ClassVar = {"teacher": "edm"}
    metrics: ClassVar = {"loss": "consistency loss"}

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        *,
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
        **network: Any,
    ):
        super().__init__(image_shape, num_levels, num_labels, label_dropout, dequantize)
        check_sigmas(sigma_min, sigma_max, sigma_data=sigma_data, rho=rho, log_sigma_std=log_sigma_std)
        _check.at_least(1, total_steps=total_steps)
        _check.at_least(2, first_levels=first_levels)
        _check.at_least(first_levels, last_levels=last_levels)
        self.sigma_data, self.sigma_min, self.sigma_max, self.rho = sigma_data, sigma_min, sigma_max, rho
        self.first_levels, self.last_levels, self.total_steps = first_levels, last_levels, total_steps
        self.log_sigma_mean, self.log_sigma_std = log_sigma_mean, log_sigma_std
        self.register_buffer("steps_taken", torch.zeros((), dtype=torch.int64, device="cpu"))
        unet = self.build_unet(network, 1000.0)
        self.dropout = unet.dropout
        self.precond = diffusion.EDMPrecond(unet, sigma_data, sigma_min)
        self.teacher = ()  # in a tuple, so that it is not registered as a submodule

    def build_on(self, **models: Model) -> None:
        """Distill the model "teacher"."""
        teacher = models.pop("teacher", None)
        super().build_on(**models)
        if teacher is not None:
            self.distill(teacher)

    def distill(self, teacher: EDM) -> None:
        """Train on the steps of `teacher`, an `EDM` of the same images and classes, from now on.

        It is used in eval mode, and is no part of the state dict.

        Raises:
            ValueError: For a teacher that does not fit.
        """
        if not isinstance(teacher, EDM):
            raise ValueError(f"teacher: expected an EDM, got {type(teacher).__name__}")
        for name in ("image_shape", "num_levels", "num_labels"):
            if getattr(teacher, name) != getattr(self, name):
                raise ValueError(
                    f"teacher: expected {name} {getattr(self, name)}, got {getattr(teacher, name)}"
                )
        self.teacher = (teacher,)

    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, *dropout_seed: Tensor) -> Tensor:
        """End of the path through `x (B, C, H, W)` with noise `sigma (B,)`; at `sigma_min` it is `x`.

        `dropout_seed`, int64 `()`, gives calls in training mode equal dropout masks.
        """
        return self.precond(x, sigma, label, *dropout_seed)

    forward = denoise

    @property
    def num_intervals(self) -> int:
        """Number of intervals between noise levels at the current step of training."""
        return int(self._count())

    def _count(self) -> Tensor:
        """`num_intervals` as an int64 tensor `()` on the model's device."""
        doublings = math.floor(math.log2(self.last_levels // self.first_levels))
        stage = max(1, self.total_steps // (doublings + 1))
        doubled = self.first_levels * 2 ** (self.steps_taken // stage).clamp(max=doublings + 1)
        return doubled.clamp(max=self.last_levels)

    def levels(self, count: int | Tensor) -> Tensor:
        """Ends of `count` intervals between noise levels, ascending, float64 `(count + 1,)`.

        Where `count` is a tensor `()`, `(last_levels + 1,)`: those beyond `count` are the highest level.
        """
        low, high = (sigma ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))
        most = self.last_levels if isinstance(count, Tensor) else count
        place = torch.arange(most + 1, dtype=torch.float64, device=self.steps_taken.device) / count
        return (low + (high - low) * place.clamp(max=1)) ** self.rho

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Mean consistency loss of a batch; torch's global generator draws noise and noise levels."""
        return self._losses(x, label).mean()

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`: consistency loss of each image, `(B,)`."""
        return {"loss": self._losses(*batch)}

    def _losses(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Pseudo-Huber distance of predictions at neighbouring noise levels over their difference, `(B,)`."""
        label = self.training_label(self.check_input(x, label))
        # Tensors of one size whatever the stage of training is, so that nothing waits for a number.
        count = self._count()
        if self.training and not _library._functorch_is_active():
            self.steps_taken += 1
        levels = self.levels(count)
        z = (levels.log() - self.log_sigma_mean) / self.log_sigma_std
        shares = torch.special.ndtr(z).diff().clamp(min=1e-12)
        shares = torch.where(torch.arange(shares.shape[0], device=count.device) < count, shares, 0.0)
        shares, levels = (v.to(x.device, x.dtype) for v in (shares, levels))
        interval = torch.multinomial(shares, x.shape[0], replacement=True)
        low, high = levels[interval], levels[interval + 1]
        y = self.continuous(x)
        noisy, noise = GF.q_sample(y, 1.0, high, target="epsilon")
        # Both passes have the same dropout.
        dropout = (_seed.as_tensor(None, x.device),) if self.training and self.dropout else ()
        with torch.no_grad():
            target = self.denoise(self._earlier(noisy, high, low, noise, label), low, label, *dropout)
        difference = (self.denoise(noisy, high, label, *dropout) - target).flatten(1)
        c = 0.00054 * math.sqrt(difference.shape[1])
        distance = (difference.square().sum(1) + c**2).sqrt() - c
        return distance / (high - low)

    def _earlier(
        self, noisy: Tensor, high: Tensor, low: Tensor, noise: Tensor, label: Tensor | None
    ) -> Tensor:
        """Point at noise level `low (B,)` of the path through `noisy (B, C, H, W)` at level `high (B,)`."""
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
        progress: Progress,
        steps: int = 2,
    ) -> Tensor:
        """Draw `n` images by passes with noise in between.

        Args:
            n: Number of images.
            seed: int64 tensor `()`.
            label: Classes, int64 `(n,)`, or None.
            guidance: Guidance scale, or None.
            progress: See `sample`.
            steps: Number of passes.
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
