"""What the diffusion, score and energy models of images share: checks, labels, noise levels, sampling."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import _check, _seed, diffusion
from .. import functional as GF
from .autoregressive import Progress, check_label, evaluating, labels_of
from .ode import ode_log_prob
from .unet import UNet


class ImageDiffusion(nn.Module):
    """Images that are drawn from noise, step by step.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`. A model gives
    its constructor's arguments to `config`, and writes `loss(x, label)` and `draw(n, seed, label, ...)`.

    Args:
        label_dropout: the share of training images whose class the network does not see: what guidance needs.
        dequantize: train on levels that noise has filled, `v + u` for v, with u in (0, 1): a density then is
            one of images (Theis et al., 2016, arXiv:1511.01844). Without it, training takes levels as they
            are, and a density grows on them without bound.
    """

    #: What the command calls such a model, where it says what it is not.
    family = "diffusion model"
    #: Images at a time where held-out ones are evaluated, which takes many passes.
    heldout_batch = 32

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int,
        num_labels: int | None,
        label_dropout: float = 0.0,
        dequantize: bool = False,
    ):
        super().__init__()
        image_shape = tuple(image_shape)
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(f"image_shape: expected positive (C, H, W), got {image_shape}")
        _check.at_least(2, num_levels=num_levels)
        if num_labels is not None:
            _check.at_least(1, num_labels=num_labels)
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout: expected a number from 0 to below 1, got {label_dropout}")
        self.image_shape, self.num_levels, self.num_labels = image_shape, num_levels, num_labels
        self.label_dropout, self.dequantize = label_dropout, dequantize

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def build_unet(self, unet: dict, level_scale: float, out_channels: int | None = None) -> UNet:
        """The network, `unet` being the constructor's arguments for it."""
        out_channels = out_channels or self.image_shape[0]
        return UNet(
            self.image_shape, out_channels, **unet, num_labels=self.num_labels, level_scale=level_scale
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
        **options,
    ) -> Tensor:
        """Draws `n` images, (n, C, H, W) in [-1, 1].

        Args:
            n: how many; 0 is allowed.
            seed: an int, an int64 tensor, or a `torch.Generator`; image i is the same whatever `n` is, unless
                a value lies within rounding of the boundary between two levels.
            label: one class or (n,) of them, for a conditional model.
            guidance: of a conditional model trained with `label_dropout`, how much of the class there is
                (Ho and Salimans, 2022, arXiv:2207.12598): 1 is the model, more is more of it; None: 1.
            progress: True shows a bar.
            options: of the model's `draw`.

        Values beyond the lowest or the highest level become these. The model is in eval mode meanwhile and in
        its former mode afterwards.

        Raises ValueError or TypeError, naming the argument.
        """
        _check.integer("n", n)
        if n < 0:
            raise ValueError(f"n: expected a number of images, got {n}")
        if guidance is not None:
            _check.number("guidance", guidance, 0, 1e6)
            if self.num_labels is None or not self.label_dropout:
                raise ValueError(
                    f"guidance: expected None, because the model was not trained both with classes and "
                    f"without, got {guidance}"
                )
        label = labels_of(label, n, self.num_labels, self.device)
        seed = _seed.as_tensor(seed, self.device)
        if n == 0:
            return torch.empty(0, *self.image_shape, dtype=self.dtype, device=self.device)
        with evaluating(self):
            x = self.draw(n, seed, label, guidance=guidance, progress=progress, **options)
        return self.quantize(x)

    def draw(self, n: int, seed: Tensor, label: Tensor | None, *, guidance, progress) -> Tensor:
        """Continuous values of `n` images."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """Continuous values to images on the levels' grid."""
        scale = (self.num_levels - 1) / 2
        return ((x + 1) * scale).round().clamp(0, self.num_levels - 1) / scale - 1

    def continuous(self, x: Tensor, seed=None) -> Tensor:
        """Images with their levels filled by noise: what the density is of, where `dequantize` is set. The
        volume of a level is `level_volume` of an image's."""
        if not self.dequantize:
            return x
        normal = GF.standard_normal(x.shape, seed=seed, dtype=x.dtype, device=x.device)
        return x + (2 * torch.special.ndtr(normal) - 1) / (self.num_levels - 1)

    @property
    def log_level_volume(self) -> float:
        """Log of the volume that an image's levels have among continuous values."""
        return math.prod(self.image_shape) * math.log(2 / (self.num_levels - 1))

    def diffuse(
        self, denoiser, n: int, seed: Tensor, label: Tensor | None, guidance: float | None, **options
    ) -> Tensor:
        """`gmfast.diffusion.sample`, which has the `options`, of a function of x, the level and labels."""
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
        """Labels of which, in training, some are taken away, with noise from torch's global generator."""
        if label is None or not self.training or not self.label_dropout:
            return label
        unseen = torch.rand(label.shape, device=label.device) < self.label_dropout
        return torch.where(unseen, self.num_labels, label)

    def bits_per_dim(self, log_prob: Tensor) -> Tensor:
        """Of log-probabilities (B,), in nats."""
        return -log_prob.mean() / (math.prod(self.image_shape) * math.log(2))

    def check_input(self, x: Tensor, label: Tensor | None) -> Tensor | None:
        """The labels as int64. Raises ValueError or TypeError for what is not a batch of images and its
        labels. Values beyond [-1, 1] are looked for on the CPU only."""
        if x.dim() != 4 or tuple(x.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"x: expected shape (B, {expected}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating point numbers in [-1, 1], got {x.dtype}")
        if x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
            low, high = x.aminmax()
            if not (low >= -1 - 1e-6 and high <= 1 + 1e-6):
                raise ValueError(
                    f"x: expected values in [-1, 1], got values from {low.item():g} to {high.item():g}"
                )
        return check_label(label, len(x), self.num_labels)


def unet_arguments(channels, multipliers, num_blocks, attention, dropout) -> dict:
    """A model's arguments for its network, as `config` has them."""
    return {
        "channels": channels,
        "multipliers": tuple(multipliers),
        "num_blocks": num_blocks,
        "attention": tuple(attention),
        "dropout": dropout,
    }


class OdeImageDiffusion(ImageDiffusion):
    """Images whose density an ODE gives, which carries them to noise: a model says which, by `ode`."""

    unit = "bits per dimension"

    def ode(self, label: Tensor | None) -> tuple[Callable, Callable]:
        """The velocity, of y (B, C, H, W) and a time (B,), 0 at data, 1 at noise; the log-density there."""
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
        by Jensen's inequality, as of a flow); that density is exact but for the steps (`gmfast.models.ode`),
        and with "hutchinson" on average over the seed's signs.

        Args:
            seed: of that noise and the signs: an int, an int64 tensor, or a `torch.Generator`.
            steps: of the Runge-Kutta method, four passes and their gradients each.
            divergence: "hutchinson", or "exact", as many gradients as an image has values.
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
            seed=seed ^ 0x5DEECE66D,  # another one than that of the noise within levels
        )
        return log_prob + self.log_level_volume

    def heldout_loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Bits per dimension, by `log_prob` in 32 steps."""
        return self.bits_per_dim(self.log_prob(x, label))
