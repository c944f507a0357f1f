"""RealNVP: Dinh, Sohl-Dickstein and Bengio, 2017, https://arxiv.org/abs/1605.08803."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .. import _check
from ..nn import ActNorm, AffineCoupling, Inverse, Permute, Sequential, Split, Squeeze2d, Transform
from .flow_image import ImageFlow, add_label
from .image import label_embedding

SCALE_MAPS = ("tanh", "atan")


class ResidualBlock(nn.Module):
    """`x` and what two rectified 3×3 convolutions make of it."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = weight_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.second = weight_norm(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class ResidualNetwork(nn.Module):
    """Residual blocks of rectified, weight-normalised convolutions (Salimans & Kingma, 2016,
    arXiv:1602.07868) between a first one and a last one of 1×1, which begins at zero; the label is a bias of
    the first."""

    def __init__(self, inputs: int, channels: int, num_blocks: int, outputs: int, num_labels: int | None):
        super().__init__()
        self.input = weight_norm(nn.Conv2d(inputs, channels, 3, padding=1))
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))
        self.out = nn.Conv2d(channels, outputs, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.embedding = label_embedding(num_labels, channels)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h = add_label(self.input(x), self.embedding, label)
        return self.out(F.relu(self.blocks(h)))


def checkerboard(height: int, width: int, odd: bool) -> Tensor:
    """1 where row plus column is even, or odd; (1, H, W)."""
    return ((torch.arange(height)[:, None] + torch.arange(width) + odd) % 2 == 0).float()[None]


class RealNVP(ImageFlow):
    """RealNVP (Dinh et al., 2017): affine couplings of the fields of a checkerboard, then of halves of the
    channels, at several scales; half of the values leave at each. The defaults are the published CIFAR-10
    model.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`; `log_prob` and
    `loss` bound the likelihood (`gmfast.models.flow_image.ImageFlow`).

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (num_scales - 1)`.
        num_scales: the paper has 2 for images of 32×32.
        num_blocks: residual blocks in a coupling's network.
        num_filters: its channels; twice as many at each scale than at the one before.
        scale_map: how a log-scale is bounded, "tanh" or "atan" (`gmfast.functional.affine_coupling`).
        alpha: keeps the logits of values finite.
        reversible: memory for training that does not grow with the number of couplings, at the cost of
            computing activations again (`gmfast.nn.Sequential`).
        num_levels: values a subpixel can take.
        num_labels: number of classes to condition on; None for an unconditional model.

    Where the paper has batch normalisation, couplings are followed by `ActNorm`, whose density at a sample
    does not depend on the others of its batch, and networks are normalised by weight alone.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_scales: int = 2,
        num_blocks: int = 8,
        num_filters: int = 64,
        scale_map: str = "tanh",
        alpha: float = 0.05,
        reversible: bool = False,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        _check.at_least(1, num_scales=num_scales, num_filters=num_filters)
        _check.at_least(0, num_blocks=num_blocks)
        super().__init__(image_shape, num_levels, num_labels, alpha, 2 ** (num_scales - 1))
        if scale_map not in SCALE_MAPS:
            raise ValueError(f"scale_map: expected {' or '.join(SCALE_MAPS)}, got {scale_map!r}")
        channels, height, width = self.image_shape
        if height * width >> 2 * (num_scales - 1) < 2:
            raise ValueError(
                f"num_scales: expected the last scale of {self.image_shape} to have two pixels or more, "
                f"got {num_scales}"
            )
        self.config = {
            "image_shape": self.image_shape,
            "num_scales": num_scales,
            "num_blocks": num_blocks,
            "num_filters": num_filters,
            "scale_map": scale_map,
            "alpha": alpha,
            "reversible": reversible,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }

        def coupling(channels, filters, mask=None):
            seen, changed = (channels // 2, channels // 2) if mask is None else (channels, channels)
            network = ResidualNetwork(seen, filters, num_blocks, 2 * changed, num_labels)
            return AffineCoupling(network, scale_map=scale_map, mask=mask)

        def scale(number, channels, height, width) -> Transform:
            last, filters = number == num_scales - 1, num_filters * 2**number
            transforms = []
            for i in range(4 if last else 3):
                mask = checkerboard(height, width, odd=bool(i % 2))
                transforms += [coupling(channels, filters, mask), ActNorm(channels)]
            if last:
                return Sequential(*transforms)
            half = 2 * channels
            exchange = [*range(half, 2 * half), *range(half)]
            transforms.append(Squeeze2d())
            for i in range(3):
                if i > 0:
                    transforms.append(Permute(exchange))
                transforms += [coupling(2 * half, 2 * filters), ActNorm(2 * half)]
            transforms += [Split(scale(number + 1, half, height // 2, width // 2), half)]
            return Sequential(*transforms, Inverse(Squeeze2d()))

        self.transform = scale(0, channels, height, width)
        self.transform.reversible = reversible
