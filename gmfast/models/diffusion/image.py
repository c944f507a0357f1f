"""Base classes of the diffusion models of images: noise levels, class dropout, sampling and likelihood."""

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import _check, _seed, diffusion
from ... import functional as GF
from ..._progress import Progress
from ..base import Guided, Likelihood, Model, check_image_shape, evaluating, quantize
from ..networks.unet import UNet, UNetConfig
from .ode import LogDensity, Velocity, ode_log_prob


class ImageDiffusion(Guided, Model):
    """Model that draws images from noise, step by step, with a U-Net.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`. A subclass sets
    `network`, takes its fields as `**network`, and defines `loss` and `draw`.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.
        label_dropout: Share of training images whose class the network does not see, for guidance.
        dequantize: Train on uniformly dequantized images (Theis et al., 2016, arXiv:1511.01844), whose
            density bounds the images' probability. Without it, training takes levels as they are, on which a
            density grows without bound.

    Attributes:
        network: Published size of the U-Net.

    Raises:
        ValueError: For an argument out of range, naming it.
    """

    modalities = frozenset({"images"})
    family = "diffusion model"
    evaluate_size = 32

    network: ClassVar[UNetConfig]

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int,
        num_labels: int | None,
        label_dropout: float,
        dequantize: bool = False,
    ):
        super().__init__(num_levels, num_labels)
        self.image_shape = check_image_shape(image_shape)
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout: expected a number from 0 to below 1, got {label_dropout}")
        self.label_dropout, self.dequantize = label_dropout, dequantize

    def build_unet(
        self, network: Mapping[str, Any], level_scale: float, out_channels: int | None = None
    ) -> UNet:
        """U-Net of the published size, but for the fields in `network`, with as many outputs as inputs.

        Raises:
            TypeError: For a name in `network` that is no field of `UNetConfig`.
        """
        for name in network.keys() - self._network_options().keys():
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {name!r}")
        return UNet(
            self.image_shape,
            out_channels or self.image_shape[0],
            replace(self.network, **network),
            num_labels=self.num_labels,
            level_scale=level_scale,
        )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        label: Tensor | int | None = None,
        guidance: float | None = None,
        progress: Progress = False,
        **options: Any,
    ) -> Tensor:
        """Draw `n` images, `(n, C, H, W)`, with values clamped to [-1, 1] and rounded to the nearest level.

        Args:
            n: Number of images, 0 or more.
            seed: An int, an int64 tensor, or a `torch.Generator`; image i is the same whatever `n` is, unless
                a value lies within rounding of the boundary between two levels.
            label: One class or `(n,)` of them, for a conditional model.
            guidance: Guidance scale of a conditional model trained with `label_dropout` (Ho and Salimans,
                2022, arXiv:2207.12598): 1, as None, is the conditional model, 0 the unconditional one.
            progress: True shows a bar; a function is called with the steps done and their number.
            options: Keyword arguments of the model's `draw`.

        Raises:
            ValueError: For values, naming the argument. TypeError: For types.
        """
        if guidance is not None:
            _check.number("guidance", guidance, 0, 1e6)
            if not self.guided:
                raise ValueError(
                    f"guidance: expected None, because the model was not trained both with classes and "
                    f"without, got {guidance}"
                )
        n, seed, label = self.request(n, seed=seed, label=label)
        if n == 0:
            return torch.empty(0, *self.image_shape, dtype=self.dtype, device=self.device)
        with evaluating(self):
            x = self.draw(n, seed, label, guidance=guidance, progress=progress, **options)
        return self.quantize(x)

    @classmethod
    def sample_options(cls) -> Sequence[str]:
        """Names of the keyword arguments of `sample`, those of `draw` included."""
        own = [
            name
            for name, parameter in inspect.signature(cls.draw).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
        ]
        return list(dict.fromkeys([*super().sample_options(), *own]))

    @classmethod
    def _network_options(cls) -> dict[str, Any]:
        return asdict(cls.network)

    @abstractmethod
    def draw(
        self, n: int, seed: Tensor, label: Tensor | None, *, guidance: float | None, progress: Progress
    ) -> Tensor:
        """Continuous values of `n` images, from the checked arguments of `sample`."""

    def quantize(self, x: Tensor) -> Tensor:
        """Continuous values to the nearest levels."""
        return quantize(x, self.num_levels)

    def continuous(self, x: Tensor, seed: int | Tensor | torch.Generator | None = None) -> Tensor:
        """Dequantize images with uniform noise, or return them as they are without `dequantize`."""
        if not self.dequantize:
            return x
        normal = GF.standard_normal(x.shape, seed=seed, dtype=x.dtype, device=x.device)
        return x + (2 * torch.special.ndtr(normal) - 1) / (self.num_levels - 1)

    @property
    def log_level_volume(self) -> float:
        """Log of the volume that dequantization spreads an image over."""
        return math.prod(self.image_shape) * math.log(2 / (self.num_levels - 1))

    def diffuse(
        self,
        denoiser: Callable[..., Tensor],
        n: int,
        seed: Tensor,
        label: Tensor | None,
        guidance: float | None,
        **options: Any,
    ) -> Tensor:
        """Draw `n` images from `denoiser(x, level, label)` by `gmfast.diffusion.sample` with `options`."""
        return diffusion.sample(
            denoiser,
            (n, *self.image_shape),
            seed=seed,
            condition=label,
            guidance=None if guidance == 1 else guidance,
            device=self.device,
            dtype=self.dtype,
            **options,
        )

    def training_label(self, label: Tensor | None) -> Tensor | None:
        """Labels, of which in training mode `label_dropout` become `num_labels`: no class."""
        if label is None or not self.training or not self.label_dropout:
            return label
        unseen = torch.rand(label.shape, device=label.device) < self.label_dropout
        return torch.where(unseen, self.num_labels, label)

    def check_input(self, x: Tensor, label: Tensor | None = None) -> Tensor | None:
        """Check a batch of images and return its labels as int64; values are checked on the CPU only.

        Raises:
            ValueError: For the shape or values of `x`, or labels that do not fit. TypeError: For integers.
        """
        label = super().check_input(x, label)
        _check.values("x", x, -1 - 1e-6, 1 + 1e-6)
        return label


class OdeImageDiffusion(Likelihood, ImageDiffusion):
    """Model of images with the likelihood of an ODE that carries images to noise."""

    @abstractmethod
    def ode(self, label: Tensor | None) -> tuple[Velocity, LogDensity]:
        """Velocity, at times from 0 at data to 1 at noise, and log-density of the noise."""

    def log_prob(
        self,
        x: Tensor,
        label: Tensor | None = None,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        steps: int = 32,
        divergence: str = "hutchinson",
    ) -> Tensor:
        """Log-probability of each image, `(B,)`, in nats, by the probability-flow ODE, without a gradient.

        It is the log-density of the dequantized image (Song et al., 2021, arXiv:2011.13456): on average over
        the noise a lower bound, by Jensen's inequality. That density is exact but for the integration error
        (`ode_log_prob`), with "hutchinson" on average over the seed's signs.

        Args:
            x: Images, `(B, C, H, W)`.
            label: Classes, `(B,)`, for a conditional model.
            seed: Seed of dequantization and signs: an int, an int64 tensor, or a `torch.Generator`.
            steps: Runge-Kutta steps, of four passes with their gradients each.
            divergence: "hutchinson", an estimate, or "exact", a gradient for each value of an image.
        """
        label = self.check_input(x, label)
        _check.at_least(1, steps=steps)
        if not len(x):
            return x.new_empty(0)
        seed = _seed.as_tensor(seed, x.device)
        velocity, base_log_prob = self.ode(label)
        log_prob, _ = ode_log_prob(
            velocity,
            self.continuous(x.to(self.dtype), seed),
            torch.linspace(0, 1, steps + 1, dtype=torch.float64),
            base_log_prob,
            divergence=divergence,
            seed=seed ^ 0x5DEECE66D,  # not the noise of dequantization
        )
        return log_prob + self.log_level_volume
