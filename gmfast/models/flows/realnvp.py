"""RealNVP: Dinh, Sohl-Dickstein and Bengio, 2017, https://arxiv.org/abs/1605.08803."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _check
from ...nn import ActNorm, AffineCoupling, Inverse, Permute, Sequential, Split, Squeeze2d, Transform
from ..networks.labels import add_label, label_embedding
from ..networks.parametrized import weight_norm
from .image import PHOTOS, ImageFlow

SCALE_MAPS = ("tanh", "atan")

_DIGITS = {"lr": 0.002, "options": {"num_blocks": 2, "num_filters": 24}}


class ResidualBlock(nn.Module):
    """Residual block of two weight-normalised 3×3 convolutions, each after a ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = weight_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.second = weight_norm(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x (B, C, H, W)` to features of its shape."""
        return x + self.second(F.relu(self.first(F.relu(x))))


class ResidualNetwork(nn.Module):
    """Residual network of weight-normalised convolutions (Salimans & Kingma, 2016, arXiv:1602.07868).

    The first convolution adds a class embedding; the last, of 1×1, is zero at first.

    Args:
        inputs: Number of input channels.
        channels: Number of channels of the blocks.
        num_blocks: Number of residual blocks.
        outputs: Number of output channels.
        num_labels: Number of classes, or None.
    """

    def __init__(self, inputs: int, channels: int, num_blocks: int, outputs: int, num_labels: int | None):
        super().__init__()
        self.input = weight_norm(nn.Conv2d(inputs, channels, 3, padding=1))
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))
        self.out = nn.Conv2d(channels, outputs, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.embedding = label_embedding(num_labels, channels)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map `x (B, inputs, H, W)` to `(B, outputs, H, W)`."""
        h = add_label(self.input(x), self.embedding, label)
        return self.out(F.relu(self.blocks(h)))


def checkerboard(height: int, width: int, odd: bool) -> Tensor:
    """Checkerboard mask `(1, H, W)`: 1 where row plus column is even, or where it is odd."""
    return ((torch.arange(height)[:, None] + torch.arange(width) + odd) % 2 == 0).float()[None]


class RealNVP(ImageFlow):
    """RealNVP (Dinh et al., 2017): multi-scale affine couplings with checkerboard and channel masks.

    At each scale but the last, half of the values are factored out. Images and likelihood are as in
    `gmfast.models.flows.image.ImageFlow`. The defaults are the published CIFAR-10 model.

    In place of the paper's batch normalisation an `ActNorm` follows each coupling, so that the density of a
    sample does not depend on its batch, and networks have weight normalisation alone.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (num_scales - 1)`.
        num_scales: Number of scales; the paper has 2 for images of 32×32.
        num_blocks: Number of residual blocks of a coupling's network.
        num_filters: Channels of a coupling's network at the first scale; each scale doubles them.
        scale_map: Bound of the log-scales, "tanh" or "atan" (`gmfast.functional.affine_coupling`).
        alpha: Keeps the logits of values finite.
        reversible: Whether training recomputes activations, so that its memory does not grow with the number
            of couplings (`gmfast.nn.Sequential`).
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.

    Raises:
        ValueError: For an argument out of its range, naming it. TypeError: For its type.
    """

    settings: ClassVar = {
        "digits": _DIGITS,
        "binary-digits": _DIGITS,
        "photos": {**PHOTOS, "lr": 0.002, "options": {"num_blocks": 2, "num_filters": 32}},
    }

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

        def coupling(channels: int, filters: int, mask: Tensor | None = None) -> AffineCoupling:
            seen, changed = (channels // 2, channels // 2) if mask is None else (channels, channels)
            network = ResidualNetwork(seen, filters, num_blocks, 2 * changed, num_labels)
            return AffineCoupling(network, scale_map=scale_map, mask=mask)

        def scale(number: int, channels: int, height: int, width: int) -> Transform:
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
