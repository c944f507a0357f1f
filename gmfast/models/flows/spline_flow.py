"""Neural spline flows: Durkan, Bekasov, Murray and Papamakarios, 2019, https://arxiv.org/abs/1906.04032."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _check
from ...nn import (
    ActNorm,
    Inverse,
    InvertibleConv1x1,
    MaskedSplineAutoregressive,
    Sequential,
    SplineCoupling,
    Squeeze2d,
    Transform,
)
from ...nn.coupling import spline_bias_
from ..networks.labels import add_label, label_embedding
from .image import PHOTOS
from .vector import PLANE, VECTORS, OfVectors, VectorFlow, stacked

_IMAGES = {"lr": 0.002, "options": {"num_transforms": 4, "width": 48}}


class ResidualMLP(nn.Module):
    """Residual multilayer perceptron with ReLUs; the first layer sees the context, the last is zero at first.

    Args:
        inputs: Number of input features.
        outputs: Number of output features.
        width: Units of each layer.
        num_blocks: Number of residual blocks, of two layers each.
        num_context: Number of features of the context.
    """

    def __init__(self, inputs: int, outputs: int, width: int, num_blocks: int, num_context: int = 0):
        super().__init__()
        self.input = nn.Linear(inputs + num_context, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(num_blocks)
        )
        self.out = nn.Linear(width, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map `x (B, inputs)` and `context (B, num_context)` to `(B, outputs)`."""
        h = self.input(x if context is None else torch.cat([x, context], 1))
        for block in self.blocks:
            h = h + block(h)
        return self.out(F.relu(h))


class ResidualConv(nn.Module):
    """Residual network of convolutions; the first adds a class embedding, the last is zero at first.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        width: Channels of each layer.
        num_blocks: Number of residual blocks, of two convolutions each.
        num_labels: Number of classes, or None.
    """

    def __init__(self, inputs: int, outputs: int, width: int, num_blocks: int, num_labels: int | None):
        super().__init__()
        self.input = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(num_blocks)
        )
        self.out = nn.Conv2d(width, outputs, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.embedding = label_embedding(num_labels, width)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map `x (B, inputs, H, W)` to `(B, outputs, H, W)`."""
        h = add_label(self.input(x), self.embedding, label)
        for block in self.blocks:
            h = h + block(h)
        return self.out(F.relu(h))


class SplineFlow(VectorFlow):
    """Neural spline flow: monotonic rational-quadratic splines, whose bins depend on other values.

    Real-valued vectors (D,) have couplings of half of the values, conditioned by a residual multilayer
    perceptron, each after a learned linear map. With `autoregressive`, and for D = 1, each value has a spline
    conditioned on the values before it, and sampling goes value by value.

    Images (C, H, W), as dequantized logits, have couplings of channels, conditioned by a residual
    convolutional network, each after an invertible 1×1 convolution. Each of the `num_scales` scales first
    squeezes squares of 2×2 pixels into channels, as long as height and width are even.

    Args:
        image_shape: (D,) for real-valued data, (C, H, W) for images.
        num_transforms: Number of couplings or autoregressive transforms; for images, at each scale.
        num_bins: Number of bins of a spline.
        bound: Splines act in [-bound, bound], the identity outside.
        width: Units or channels of the networks' layers.
        num_blocks: Number of residual blocks of a coupling's network, or of hidden layers of an
            autoregressive one.
        autoregressive: Whether transforms are autoregressive; for vectors only.
        num_scales: Number of scales; for images only.
        alpha: Keeps the logits of images finite.
        num_levels: Number of values of a subpixel; None for real-valued data.
        num_labels: Number of classes to condition on; None for an unconditional model.

    Raises:
        ValueError: For an argument out of its range, naming it. TypeError: For its type.
    """

    settings: ClassVar = {
        "digits": _IMAGES,
        "binary-digits": _IMAGES,
        "photos": {**PHOTOS, **_IMAGES},
        **dict.fromkeys(PLANE, VECTORS),
    }

    def __init__(
        self,
        image_shape: tuple[int, ...] = (2,),
        num_transforms: int = 5,
        num_bins: int = 8,
        bound: float = 3.0,
        width: int = 64,
        num_blocks: int = 2,
        autoregressive: bool = False,
        num_scales: int = 1,
        alpha: float = 0.05,
        num_levels: int | None = None,
        num_labels: int | None = None,
    ):
        super().__init__(image_shape, num_levels, num_labels, alpha)
        _check.at_least(
            1, num_transforms=num_transforms, num_bins=num_bins, width=width, num_scales=num_scales
        )
        _check.at_least(0, num_blocks=num_blocks)
        if not bound > 0:
            raise ValueError(f"bound: expected a positive number, got {bound}")
        spline = {"num_bins": num_bins, "bound": float(bound)}
        if num_levels is not None:
            if autoregressive:
                raise ValueError("autoregressive: expected False for images, got True")
            self.transform = _of_images(
                self.image_shape, num_scales, num_transforms, width, num_blocks, num_labels, spline
            )
            return
        values = math.prod(self.image_shape)
        if autoregressive or values == 1:

            def make(order: Sequence[int]) -> MaskedSplineAutoregressive:
                return MaskedSplineAutoregressive(
                    values, (width,) * num_blocks, order=order, num_context=num_labels or 0, **spline
                )

            transform = stacked(make, num_transforms, values, inverted=False)
        else:
            transform = _couplings(
                values,
                num_transforms,
                lambda seen, outputs: ResidualMLP(seen, outputs, width, num_blocks, num_labels or 0),
                spline,
            )
        self.transform = OfVectors(transform, num_labels)


def _couplings(
    channels: int, count: int, network: Callable[[int, int], nn.Module], spline: dict[str, Any]
) -> Sequential:
    """Stack `count` times an ActNorm, a linear map of the channels and a spline coupling.

    Args:
        channels: Number of channels.
        count: Number of couplings.
        network: Makes a conditioner from its numbers of inputs and outputs.
        spline: `num_bins` and `bound`.
    """
    changed, num_params = channels // 2, 3 * spline["num_bins"] - 1
    transforms = []
    for _ in range(count):
        conditioner = network(channels - changed, num_params * changed)
        spline_bias_(conditioner.out.bias.view(changed, num_params))
        transforms += [
            ActNorm(channels),
            InvertibleConv1x1(channels),
            SplineCoupling(conditioner, transformed=changed, **spline),
        ]
    return Sequential(*transforms)


def _of_images(
    shape: tuple[int, ...],
    num_scales: int,
    count: int,
    width: int,
    num_blocks: int,
    num_labels: int | None,
    spline: dict[str, Any],
) -> Transform:
    """Stack the scales of images of `shape`; the arguments are those of `SplineFlow` and `_couplings`."""
    channels, transforms, squeezes = shape[0], [], 0
    for _ in range(num_scales):
        if not any(size % 2 ** (squeezes + 1) for size in shape[1:]):
            transforms.append(Squeeze2d())
            channels, squeezes = 4 * channels, squeezes + 1
        if channels < 2:
            raise ValueError(f"image_shape: expected several channels, or even height and width, got {shape}")
        transforms += _couplings(
            channels,
            count,
            lambda seen, outputs: ResidualConv(seen, outputs, width, num_blocks, num_labels),
            spline,
        )
    return Sequential(*transforms, *(Inverse(Squeeze2d()) for _ in range(squeezes)))
