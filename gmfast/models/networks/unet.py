"""U-Net of the diffusion, score and flow-matching models."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _check, _seed
from ... import functional as GF
from ..base import check_image_shape


@dataclass(frozen=True)
class UNetConfig:
    """Size of a `UNet`.

    Attributes:
        channels: Channels at the highest resolution, a multiple of 4.
        multipliers: Factor of the channels at each resolution; each resolution is half the one before.
        num_blocks: Residual blocks at each resolution of the encoder; the decoder has one more.
        attention: Heights of the feature maps with self-attention, such as (16, 8).
        dropout: Dropout rate within the residual blocks.

    Raises:
        ValueError: For a field out of range, naming it.
    """

    channels: int
    multipliers: tuple[int, ...]
    num_blocks: int
    attention: tuple[int, ...]
    dropout: float

    def __post_init__(self):
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        object.__setattr__(self, "attention", tuple(self.attention))
        _check.at_least(1, num_blocks=self.num_blocks)
        if self.channels < 4 or self.channels % 4:
            raise ValueError(f"channels: expected a positive multiple of 4, got {self.channels}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: expected at least one positive integer, got {self.multipliers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a number from 0 to below 1, got {self.dropout}")


class UNet(nn.Module):
    """U-Net conditioned on a noise level and a class (Ho et al., 2020, arXiv:2006.11239).

    Residual blocks at each resolution are scaled and shifted by the embedding of noise level and class
    (Nichol and Dhariwal, 2021, arXiv:2102.09672). The last convolution is initialised with zeros.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(config.multipliers) - 1)`.
        out_channels: Channels of the output.
        config: Size of the network.
        num_labels: Number of classes, beside which there is an embedding for no class; None: takes no labels.
        level_scale: Factor that brings noise levels to the scale of time steps, from 1 to 1000.

    Raises:
        ValueError: For an image that cannot be halved as often as `config` asks.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        out_channels: int,
        config: UNetConfig,
        *,
        num_labels: int | None = None,
        level_scale: float = 1.0,
    ):
        super().__init__()
        channels, multipliers, num_blocks = config.channels, config.multipliers, config.num_blocks
        in_channels, *size = check_image_shape(image_shape, multiple=2 ** (len(multipliers) - 1))
        self.channels, self.level_scale, self.dropout = channels, level_scale, config.dropout
        features = 4 * channels
        self.level = nn.Sequential(nn.Linear(channels, features), nn.SiLU(), nn.Linear(features, features))
        self.embedding = None if num_labels is None else nn.Embedding(num_labels + 1, features)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)

        def block(inputs, outputs, height):
            return Block(inputs, outputs, features, config.dropout, height in config.attention)

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

    def forward(
        self, x: Tensor, level: Tensor, label: Tensor | None = None, seed: Tensor | None = None
    ) -> Tensor:
        """Apply the network.

        Args:
            x: Noisy images, `(B, C, H, W)`.
            level: Noise levels, `(B,)`.
            label: Classes, int64 `(B,)`, `num_labels` standing for no class; None: no class for any image.
            seed: Seed of the dropout masks, int64 `()`, for passes with the same masks; None: torch's global
                generator draws them.

        Returns:
            `(B, out_channels, H, W)`.
        """
        _check.no_proxy("x", x)
        features = self.level(sinusoids(level * self.level_scale, self.channels).to(x.dtype))
        if self.embedding is not None:
            if label is None:
                label = torch.full((x.shape[0],), self.embedding.num_embeddings - 1, device=x.device)
            features = features + self.embedding(label)
        features = F.silu(features)
        h = self.stem(x)
        kept = [h]
        for layer in self.down:
            h = layer(h, features, seed)
            kept.append(h)
            seed = _next(seed)
        for layer in self.middle:
            h = layer(h, features, seed)
            seed = _next(seed)
        for layer in self.up:
            h = layer(h if isinstance(layer, Upsample) else torch.cat([h, kept.pop()], 1), features, seed)
            seed = _next(seed)
        return self.out(h)


class Block(nn.Module):
    """Residual block, modulated by `features (B, F)`, with self-attention behind it if `attention`."""

    def __init__(self, inputs: int, outputs: int, features: int, dropout: float, attention: bool):
        super().__init__()
        self.first = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.modulation = nn.Linear(features, 2 * outputs)
        self.norm, self.dropout = _norm(outputs), Dropout(dropout)
        self.second = _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs) if attention else None

    def forward(self, x: Tensor, features: Tensor, seed: Tensor | None = None) -> Tensor:
        """Map `x (B, inputs, H, W)` to `(B, outputs, H, W)`; `seed` is that of the dropout mask, or None."""
        scale, shift = self.modulation(features)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.norm(self.first(x)), 1 + scale)
        h = self.shortcut(x) + self.second(self.dropout(F.silu(h), seed))
        return h if self.attention is None else self.attention(h)


class Dropout(nn.Dropout):
    """Dropout whose mask may have a seed."""

    def __init__(self, p: float):
        super().__init__(p)
        self._quantile = NormalDist().inv_cdf(p) if p else -math.inf

    def forward(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        """Drop elements of `x` in training mode; equal seeds, int64 `()`, drop the same."""
        if seed is None or not (self.training and self.p):
            return super().forward(x)
        normal = GF.standard_normal(x.shape, seed=seed, device=x.device)
        return x * (normal >= self._quantile).to(x.dtype) / (1 - self.p)


class Attention(nn.Module):
    """Residual self-attention over all pixels: a head per 64 channels, or one head if 64 is no divisor."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = channels // 64 if channels % 64 == 0 else 1
        self.norm, self.qkv = _norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x (B, channels, H, W)` to the same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).mT.unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)  # (B, heads, pixels, channels)
        return x + self.out(attended)


class Downsample(nn.Conv2d):
    """Convolution with stride 2, which halves height and width."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        """Map `x (B, channels, H, W)` to `(B, channels, H / 2, W / 2)`; features and seed are not used."""
        return super().forward(x)


class Upsample(nn.Conv2d):
    """Nearest-neighbour interpolation to twice the height and width, and a convolution."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        """Map `x (B, channels, H, W)` to `(B, channels, 2H, 2W)`; features and seed are not used."""
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def sinusoids(level: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding `(B, channels)` of `level (B,)`, with frequencies from 1 down to 1 / 10000."""
    half = channels // 2
    exponents = torch.arange(half, device=level.device, dtype=torch.float32) / half
    angles = level.float()[:, None] * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _next(seed: Tensor | None) -> Tensor | None:
    """Seed of the next layer's mask."""
    return seed if seed is None else _seed.stream(seed, 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
