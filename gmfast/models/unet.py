"""The U-Net of the diffusion and score models."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check


class UNet(nn.Module):
    """A U-Net of an image and its noise level (Ho et al., 2020, arXiv:2006.11239): at each resolution
    residual blocks, which the noise level and the class scale and shift (Nichol and Dhariwal, 2021,
    arXiv:2102.09672), and at low ones attention; the way up sees what the way down left at its resolution.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        out_channels: of the result.
        channels: at the highest resolution.
        multipliers: of the channels at each resolution; each is half the one before.
        num_blocks: residual blocks at each resolution on the way down; one more on the way up.
        attention: heights at which blocks are followed by attention, such as (16, 8).
        dropout: within the blocks.
        num_labels: classes; one more stands for none. None: it takes no labels.
        level_scale: what noise levels are multiplied by to get them on a scale on which 1 makes a small
            difference and 1000 a large one.

    What it gives begins at zero.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        out_channels: int,
        channels: int,
        multipliers: tuple[int, ...],
        num_blocks: int,
        attention: tuple[int, ...],
        dropout: float,
        num_labels: int | None = None,
        level_scale: float = 1.0,
    ):
        super().__init__()
        multipliers = tuple(multipliers)
        _check.at_least(1, num_blocks=num_blocks)
        if channels < 4 or channels % 4:
            raise ValueError(f"channels: expected a positive multiple of 4, got {channels}")
        if not multipliers or min(multipliers) < 1:
            raise ValueError(f"multipliers: expected at least one positive integer, got {multipliers}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a number from 0 to below 1, got {dropout}")
        in_channels, *size = image_shape
        multiple = 2 ** (len(multipliers) - 1)
        if any(n % multiple for n in size):
            raise ValueError(
                f"image_shape: expected H and W to be multiples of {multiple}, which are halved "
                f"{len(multipliers) - 1} times, got {tuple(image_shape)}"
            )
        self.channels, self.level_scale = channels, level_scale
        features = 4 * channels
        self.level = nn.Sequential(nn.Linear(channels, features), nn.SiLU(), nn.Linear(features, features))
        self.embedding = None if num_labels is None else nn.Embedding(num_labels + 1, features)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)

        def block(inputs, outputs, height):
            return Block(inputs, outputs, features, dropout, height in attention)

        height, width, kept = size[0], channels, [channels]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for number, multiplier in enumerate(multipliers):
            if number:
                self.down.append(Downsample(width))
                height //= 2
                kept.append(width)
            for _ in range(num_blocks):
                self.down.append(block(width, multiplier * channels, height))
                width = multiplier * channels
                kept.append(width)
        self.middle = nn.ModuleList([block(width, width, height), block(width, width, None)])
        for number, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(num_blocks + 1):
                self.up.append(block(width + kept.pop(), multiplier * channels, height))
                width = multiplier * channels
            if number:
                self.up.append(Upsample(width))
                height *= 2
        self.out = nn.Sequential(_norm(width), nn.SiLU(), _zero(nn.Conv2d(width, out_channels, 3, padding=1)))

    def forward(self, x: Tensor, level: Tensor, label: Tensor | None = None) -> Tensor:
        """`level` (B,): the noise level. `label` (B,): classes, their number for none; None: none for all."""
        features = self.level(sinusoids(level * self.level_scale, self.channels).to(x.dtype))
        if self.embedding is not None:
            if label is None:
                label = torch.full((len(x),), self.embedding.num_embeddings - 1, device=x.device)
            features = features + self.embedding(label)
        features = F.silu(features)
        h = self.stem(x)
        kept = [h]
        for layer in self.down:
            h = layer(h, features)
            kept.append(h)
        for layer in self.middle:
            h = layer(h, features)
        for layer in self.up:
            h = layer(h if isinstance(layer, Upsample) else torch.cat([h, kept.pop()], 1), features)
        return self.out(h)


class Block(nn.Module):
    """Two convolutions beside a shortcut, `features (B, F)` scaling and shifting the second's input; and
    attention where asked for."""

    def __init__(self, inputs: int, outputs: int, features: int, dropout: float, attention: bool):
        super().__init__()
        self.first = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.modulation = nn.Linear(features, 2 * outputs)
        self.norm, self.dropout = _norm(outputs), nn.Dropout(dropout)
        self.second = _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs) if attention else None

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        scale, shift = self.modulation(features)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.norm(self.first(x)), 1 + scale)
        h = self.shortcut(x) + self.second(self.dropout(F.silu(h)))
        return h if self.attention is None else self.attention(h)


class Attention(nn.Module):
    """Of every pixel to all of them, with a head for each 64 channels (one where they do not divide), beside
    a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = channels // 64 if channels % 64 == 0 else 1
        self.norm, self.qkv = _norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).mT.unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)  # (B, heads, pixels, channels)
        return x + self.out(attended)


class Downsample(nn.Conv2d):
    """To half the size."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return super().forward(x)


class Upsample(nn.Conv2d):
    """To twice the size."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def sinusoids(level: Tensor, channels: int) -> Tensor:
    """Cosines and sines (B, channels) of `level` (B,) times frequencies from 1 to 1 / 10000."""
    half = channels // 2
    exponents = torch.arange(half, device=level.device, dtype=torch.float32) / half
    angles = level.float()[:, None] * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
