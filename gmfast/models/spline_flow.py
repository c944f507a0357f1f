"""Neural spline flows: Durkan, Bekasov, Murray and Papamakarios, 2019, https://arxiv.org/abs/1906.04032."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from ..nn import (
    ActNorm,
    Inverse,
    InvertibleConv1x1,
    MaskedSplineAutoregressive,
    Sequential,
    SplineCoupling,
    Squeeze2d,
    Transform,
)
from .flow_image import add_label
from .flow_vector import OfVectors, VectorFlow, stacked
from .image import label_embedding


class ResidualMLP(nn.Module):
    """Residual blocks of two rectified layers between a first layer, which sees the context too, and a last
    one, which begins at zero."""

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
        h = self.input(x if context is None else torch.cat([x, context], 1))
        for block in self.blocks:
            h = h + block(h)
        return self.out(F.relu(h))


class ResidualConv(nn.Module):
    """The same of 3×3 convolutions; the label is a bias of the first layer's channels."""

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
        h = add_label(self.input(x), self.embedding, label)
        for block in self.blocks:
            h = h + block(h)
        return self.out(F.relu(h))


class SplineFlow(VectorFlow):
    """Neural spline flow: monotonic rational-quadratic splines of the values, whose bins a network computes
    from other values.

    The data's shape chooses the network. Real-valued vectors (D,): couplings of half of the values, given by
    a residual multilayer perceptron, each after a learned linear map; with `autoregressive`, splines of every
    value given those before it, which samples value by value (and is what a single value, D = 1, gets).
    Images (C, H, W), as dequantized logits: couplings of channels, given by a residual convolutional network,
    each after an invertible 1×1 convolution, with pixels in twos squeezed into channels (as long as height
    and width are even) `num_scales` times, `num_transforms` couplings at each.

    Args:
        image_shape: (D,), or (C, H, W) of images.
        num_transforms: couplings, or autoregressive transforms; of images at each scale.
        num_bins: of a spline.
        bound: splines reach from -bound to bound; beyond, values pass as they are.
        width: of the networks.
        num_blocks: residual blocks of a coupling's network. Autoregressive: hidden layers.
        autoregressive: for vectors only.
        num_scales: for images only.
        alpha: keeps the logits of images finite.
        num_levels: values a subpixel can take; None for real-valued data.
        num_labels: number of classes to condition on; None for an unconditional model.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

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
        self.config = {
            "image_shape": self.image_shape,
            "num_transforms": num_transforms,
            "num_bins": num_bins,
            "bound": bound,
            "width": width,
            "num_blocks": num_blocks,
            "autoregressive": autoregressive,
            "num_scales": num_scales,
            "alpha": alpha,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
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

            def make(order):
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


def _couplings(channels: int, count: int, network, spline: dict) -> Sequential:
    """`count` times ActNorm, a linear map of the channels and a coupling; `network(seen, outputs)`."""
    changed, num_params = channels // 2, 3 * spline["num_bins"] - 1
    transforms = []
    for _ in range(count):
        conditioner = network(channels - changed, num_params * changed)
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
    spline: dict,
) -> Transform:
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
