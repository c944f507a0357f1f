"""Glow: Kingma and Dhariwal, 2018, https://arxiv.org/abs/1807.03039."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _check
from ...nn import ActNorm, AffineCoupling, Inverse, InvertibleConv1x1, Sequential, Split, Squeeze2d, Transform
from ..networks.labels import add_label, label_embedding
from .image import PHOTOS, ImageFlow

COUPLINGS = ("affine", "additive")

_DIGITS = {"lr": 0.002, "options": {"num_scales": 2, "num_steps": 8, "width": 64, "alpha": 0.05}}


class NormalizedConv2d(ActNorm):
    """Convolution of the same size with activation normalisation: `(conv(x) + shift) * exp(log_scale)`.

    The scales are folded into the weights, so that it costs one convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int):
        super().__init__(outputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel_size, kernel_size))
        nn.init.normal_(self.weight, 0.0, 0.05)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x (B, inputs, H, W)` to `(B, outputs, H, W)`."""
        padding = self.weight.shape[2] // 2
        if self.training and not self._known_initialized:
            with torch.no_grad():  # it is no part of the graph, which checkpointing makes twice
                y = F.conv2d(x, self.weight, padding=padding)
            self._first_batch(y, inverse=False)
        scale = torch.exp(self.log_scale)
        return F.conv2d(x, self.weight * scale.view(-1, 1, 1, 1), self.shift * scale, padding=padding)


class ZeroConv2d(nn.Module):
    """3×3 convolution, zero at first, with a learned gain `exp(3 * log_gain)` of each channel."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, 3, 3))
        self.bias, self.log_gain = (nn.Parameter(torch.zeros(outputs)) for _ in range(2))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map `x (B, inputs, H, W)` to `(B, outputs, H, W)`; the label is ignored."""
        gain = torch.exp(3 * self.log_gain)
        return F.conv2d(x, self.weight * gain.view(-1, 1, 1, 1), self.bias * gain, padding=1)


class CouplingNetwork(nn.Module):
    """Convolutions of 3×3, 1×1 and 3×3; the first adds a class embedding, the last is zero at first.

    Args:
        inputs: Number of input channels.
        width: Number of hidden channels.
        outputs: Number of output channels.
        num_labels: Number of classes, or None.
    """

    def __init__(self, inputs: int, width: int, outputs: int, num_labels: int | None):
        super().__init__()
        self.first = NormalizedConv2d(inputs, width, 3)
        self.second = NormalizedConv2d(width, width, 1)
        self.out = ZeroConv2d(width, outputs)
        self.embedding = label_embedding(num_labels, width)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map `x (B, inputs, H, W)` to `(B, outputs, H, W)`."""
        # In place: a convolution's gradient does not need its result.
        h = F.relu(add_label(self.first(x), self.embedding, label), inplace=True)
        return self.out(F.relu(self.second(h), inplace=True))


class Prior(nn.Module):
    """Mean and log-scale of the last scale's prior: one pair for each channel, plus one for each class."""

    def __init__(self, channels: int, num_labels: int | None):
        super().__init__()
        self.params = nn.Parameter(torch.zeros(2 * channels))
        self.log_gain = nn.Parameter(torch.zeros(2 * channels))
        self.embedding = None
        if num_labels is not None:
            self.embedding = nn.Embedding(num_labels, 2 * channels)
            nn.init.zeros_(self.embedding.weight)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Broadcast the parameters over `x (B, _, H, W)`: `(B, 2 * channels, H, W)`."""
        params = self.params if self.embedding is None else self.params + self.embedding(label)
        params = (params * torch.exp(3 * self.log_gain)).expand(x.shape[0], -1)
        return params[:, :, None, None].expand(-1, -1, *x.shape[2:])


class Glow(ImageFlow):
    """Glow (Kingma & Dhariwal, 2018): multi-scale steps of ActNorm, invertible 1×1 convolution and coupling.

    After the steps of each scale but the last, half of the channels are factored out, under a prior
    conditioned on the others. Images and likelihood are as in `gmfast.models.flows.image.ImageFlow`. The
    defaults are the published CIFAR-10 model.

    Convolutions are zero-padded. Class embeddings are added to the prior's parameters at the last scale, as
    published, and to the first layer of the couplings' networks.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** num_scales`.
        num_scales: Number of scales, the paper's L.
        num_steps: Number of steps at each scale, the paper's K.
        width: Hidden channels of a coupling's network.
        coupling: "affine" or "additive".
        lu: Whether the 1×1 convolutions are parametrised by an LU decomposition.
        alpha: 0, as published, models the values themselves; otherwise their logits, as RealNVP does.
        reversible: Whether training recomputes activations, so that its memory does not grow with the number
            of steps (`gmfast.nn.Sequential`).
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.

    Raises:
        ValueError: For an argument out of its range, naming it. TypeError: For its type.
    """

    settings: ClassVar = {
        "digits": _DIGITS,
        "binary-digits": _DIGITS,
        "photos": {**PHOTOS, "lr": 0.002, "options": {"num_scales": 2, "num_steps": 8, "width": 96}},
    }

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_scales: int = 3,
        num_steps: int = 32,
        width: int = 512,
        coupling: str = "affine",
        lu: bool = True,
        alpha: float = 0.0,
        reversible: bool = False,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        _check.at_least(1, num_scales=num_scales, num_steps=num_steps, width=width)
        super().__init__(image_shape, num_levels, num_labels, alpha, 2**num_scales)
        if coupling not in COUPLINGS:
            raise ValueError(f"coupling: expected {' or '.join(COUPLINGS)}, got {coupling!r}")

        def step(channels: int) -> list[Transform]:
            half = channels // 2
            additive = coupling == "additive"
            network = CouplingNetwork(channels - half, width, half if additive else 2 * half, num_labels)
            affine = {} if additive else {"scale_map": "sigmoid", "shift_first": True, "interleaved": True}
            return [
                ActNorm(channels),
                InvertibleConv1x1(channels, lu=lu),
                AffineCoupling(network, additive=additive, **affine),
            ]

        def scale(number: int, channels: int) -> Transform:
            """Scale `number` and those after it, from an input to noise of its shape."""
            transforms = [Squeeze2d()]
            for _ in range(num_steps):
                transforms += step(4 * channels)
            if number == num_scales - 1:
                prior = Prior(4 * channels, num_labels)
                transforms.append(AffineCoupling(prior, shift_first=True, transformed=4 * channels))
            else:
                half = 2 * channels
                prior = ZeroConv2d(half, 2 * half)
                transforms.append(AffineCoupling(prior, shift_first=True, interleaved=True))
                transforms.append(Split(scale(number + 1, half), half))
            return Sequential(*transforms, Inverse(Squeeze2d()))

        self.transform = scale(0, self.image_shape[0])
        self.transform.reversible = reversible
