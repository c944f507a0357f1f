"""Flow++: Ho, Chen, Srinivas, Duan and Abbeel, 2019, https://arxiv.org/abs/1902.00275."""

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _check
from ... import functional as GF
from ...nn import (
    ActNorm,
    Inverse,
    InvertibleConv1x1,
    LogisticMixtureCoupling,
    Permute,
    Sequential,
    Squeeze2d,
    Transform,
)
from ...nn.transform import no_log_det
from ..networks.labels import add_label, label_embedding
from .image import PHOTOS, ImageFlow

_OPTIONS = {
    "num_couplings": (4, 2, 3),
    "num_filters": 32,
    "num_blocks": 1,
    "num_components": 4,
    "dequantizer_couplings": 2,
    "dequantizer_filters": 16,
    "dequantizer_blocks": 1,
}
_DIGITS = {"lr": 0.002, "options": {**_OPTIONS, "dropout": 0.1}}


class Checkerboard(Transform):
    """Checkerboard squeeze, `(B, C, H, W)` to `(B, 2C, H, W/2)`: the two fields become channels.

    A pixel stays in its row. The field where row plus column is even comes first.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Squeeze `x (B, C, H, W)`; the log-determinant is 0."""
        left, right = x.unflatten(3, (-1, 2)).unbind(4)
        return torch.cat(self._exchange_in_odd_rows(left, right), 1), no_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unsqueeze `z (B, 2C, H, W/2)`; the log-determinant is 0."""
        left, right = self._exchange_in_odd_rows(*z.chunk(2, 1))
        return torch.stack([left, right], 4).flatten(3), no_log_det(z)

    @staticmethod
    def _exchange_in_odd_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        odd = (torch.arange(a.shape[2], device=a.device) % 2 == 1)[:, None]
        return torch.where(odd, b, a), torch.where(odd, a, b)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x (B, C, H, W)`."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class GatedConv(nn.Module):
    """Gated residual convolution: `x + a * sigmoid(b)`, with `a, b` from two convolutions of x.

    The first convolution adds a class embedding, or a 1×1 convolution of the context.

    Args:
        channels: Number of channels.
        dropout: Probability of dropout between the convolutions.
        num_labels: Number of classes, or None.
        num_context: Channels of the context; with 0 the context is the label.
    """

    def __init__(self, channels: int, dropout: float, num_labels: int | None, num_context: int):
        super().__init__()
        self.first = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.context = nn.Conv2d(num_context, channels, 1) if num_context else None
        self.embedding = label_embedding(num_labels, channels)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(2 * channels, 2 * channels, 1)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map `x (B, C, H, W)` to its shape; `context` is `(B, num_context, H, W)` or the label."""
        h = self.first(GF.concat_elu(x))
        h = h + self.context(context) if self.context is not None else add_label(h, self.embedding, context)
        return x + F.glu(self.second(self.dropout(GF.concat_elu(h))), 1)


class GatedAttention(nn.Module):
    """Gated self-attention between pixels, with a learned position embedding: `x + a * sigmoid(b)`.

    Args:
        channels: Number of channels, a multiple of `num_heads`.
        size: Height and width.
        num_heads: Number of attention heads.
        dropout: Probability of dropout after the attention.
    """

    def __init__(self, channels: int, size: tuple[int, int], num_heads: int, dropout: float):
        super().__init__()
        self.place = nn.Parameter(torch.randn(channels, *size) * 0.01)
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, 2 * channels, 1)
        self.num_heads, self.dropout = num_heads, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x (B, C, H, W)` to features of its shape."""
        qkv = self.project(x + self.place).flatten(2)
        query, key, value = (
            part.unflatten(1, (self.num_heads, -1)).transpose(2, 3) for part in qkv.chunk(3, 1)
        )
        h = F.scaled_dot_product_attention(query, key, value)  # (B, heads, H * W, C / heads)
        h = h.transpose(2, 3).flatten(1, 2).view_as(x)
        return x + F.glu(self.out(self.dropout(h)), 1)


class AttentionNetwork(nn.Module):
    """Conditioner of a coupling: gated convolutions and gated attention, each before layer normalisation.

    The weights of the last convolution are near zero at first, its bias zero.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        size: Height and width.
        num_filters: Channels of the blocks, a multiple of `num_heads`.
        num_blocks: Number of blocks.
        num_heads: Number of attention heads.
        dropout: Probability of dropout.
        num_labels: Number of classes, or None.
        num_context: Channels of the context; with 0 the context is the label.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: tuple[int, int],
        *,
        num_filters: int,
        num_blocks: int,
        num_heads: int,
        dropout: float,
        num_labels: int | None = None,
        num_context: int = 0,
    ):
        super().__init__()
        self.input = nn.Conv2d(inputs, num_filters, 3, padding=1)
        self.blocks = nn.ModuleList()
        for _ in range(num_blocks):
            block = [
                GatedConv(num_filters, dropout, num_labels, num_context),
                ChannelNorm(num_filters),
                GatedAttention(num_filters, size, num_heads, dropout),
                ChannelNorm(num_filters),
            ]
            self.blocks.append(nn.ModuleList(block))
        self.out = nn.Conv2d(num_filters, outputs, 3, padding=1)
        nn.init.normal_(self.out.weight, 0.0, 1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map `x (B, inputs, H, W)` to `(B, outputs, H, W)`; `context` is as in `GatedConv`."""
        h = self.input(x)
        for conv, first_norm, attention, second_norm in self.blocks:
            h = second_norm(attention(first_norm(conv(h, context))))
        return self.out(h)


def coupling(channels: int, size: tuple[int, int], num_components: int, **network) -> Transform:
    """Logistic mixture coupling of the last half of the channels.

    The mixtures' means are spread over [-1, 1] at first: components that are equal would stay equal.

    Args:
        channels: Number of channels.
        size: Height and width.
        num_components: Number of logistics in a mixture.
        network: Arguments of `AttentionNetwork`.
    """
    half, num_params = channels // 2, 2 + 3 * num_components
    network = AttentionNetwork(channels - half, num_params * half, size, **network)
    with torch.no_grad():
        means = network.out.bias.view(half, num_params)[:, 2 + num_components : 2 + 2 * num_components]
        means.copy_(torch.linspace(-1, 1, num_components) if num_components > 1 else torch.zeros(1))
    return LogisticMixtureCoupling(network, num_components=num_components)


def exchange(channels: int) -> Permute:
    """Permutation that puts the last half of the channels first."""
    return Permute([*range(channels - channels // 2, channels), *range(channels - channels // 2)])


class Dequantizer(nn.Module):
    """Variational dequantization: a flow from normal noise to (0, 1), conditioned on features of the image.

    Args:
        image_shape: (C, H, W), with even W.
        num_couplings: Number of couplings.
        num_components: Number of logistics in a mixture.
        num_filters: Channels of the features and of the couplings' networks.
        network: `num_blocks`, `num_heads` and `dropout` of `AttentionNetwork`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_couplings: int,
        num_components: int,
        *,
        num_filters: int,
        **network,
    ):
        super().__init__()
        channels, height, width = image_shape
        size = (height, width // 2)
        self.split = Checkerboard()
        self.features = nn.ModuleList([nn.Conv2d(2 * channels, num_filters, 3, padding=1)])
        for _ in range(network["num_blocks"]):
            self.features.append(GatedConv(num_filters, network["dropout"], None, 0))
        transforms = [self.split]
        for i in range(num_couplings):
            if i > 0:
                transforms.append(exchange(2 * channels))
            transforms.append(
                coupling(
                    2 * channels,
                    size,
                    num_components,
                    num_filters=num_filters,
                    num_context=num_filters,
                    **network,
                )
            )
        self.transform = Sequential(*transforms, Inverse(self.split))

    def forward(self, unit: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Map standard normal noise to dequantization noise.

        Args:
            unit: Images `(B, C, H, W)` in [-1, 1].
            noise: Standard normal noise of the same shape.

        Returns:
            Noise u in (0, 1), at least float32, and its log-density given the image, `(B,)`, in nats.
        """
        first, *blocks = self.features
        h = first(self.split(unit)[0])
        for block in blocks:
            h = block(h, None)
        t, log_det = self.transform(noise, h)
        t = t.to(torch.promote_types(t.dtype, torch.float32))  # halves do not resolve a level
        log_det = log_det + (F.logsigmoid(t) + F.logsigmoid(-t)).flatten(1).sum(1)
        return torch.sigmoid(t), GF.gaussian_log_prob(noise) - log_det


class FlowPP(ImageFlow):
    """Flow++ (Ho et al., 2019): mixture-of-logistics couplings with attention, variational dequantization.

    Images and likelihood are as in `gmfast.models.flows.image.ImageFlow`, but a flow learns the density
    `q(u | x)` of the dequantization noise, which tightens the bound `log p(x + u) - log q(u | x)`. The
    defaults are the published CIFAR-10 model.

    Activation normalisation and an invertible 1×1 convolution (Glow, arXiv:1807.03039) precede each coupling.

    Args:
        image_shape: (C, H, W); H and W are multiples of 4.
        num_couplings: Numbers of couplings: of checkerboard fields; at half the size, of halves of the
            channels; and there of checkerboard fields again.
        num_filters: Channels of a coupling's network, a multiple of `num_heads`.
        num_blocks: Number of blocks, of a gated convolution and attention, of a coupling's network.
        num_components: Number of logistics in a mixture.
        num_heads: Number of attention heads.
        dropout: Probability of dropout in the networks, in [0, 1).
        dequantizer_couplings: Number of couplings of the dequantization flow; with 0 the noise is uniform.
        dequantizer_filters: Channels of the dequantization flow's networks, a multiple of `num_heads`.
        dequantizer_blocks: Number of blocks of the dequantization flow's networks.
        alpha: Keeps the logits of values finite.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.

    Raises:
        ValueError: For an argument out of its range, naming it. TypeError: For its type.
    """

    settings: ClassVar = {
        "digits": _DIGITS,
        "binary-digits": _DIGITS,
        "photos": {**PHOTOS, "lr": 0.002, "options": {**_OPTIONS, "dropout": 0.0}},
    }

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_couplings: tuple[int, ...] = (4, 2, 3),
        num_filters: int = 96,
        num_blocks: int = 10,
        num_components: int = 32,
        num_heads: int = 4,
        dropout: float = 0.2,
        dequantizer_couplings: int = 4,
        dequantizer_filters: int = 32,
        dequantizer_blocks: int = 2,
        alpha: float = 0.05,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        super().__init__(image_shape, num_levels, num_labels, alpha, 4)
        num_couplings = tuple(num_couplings)
        if len(num_couplings) != 3 or min(num_couplings) < 0:
            raise ValueError(f"num_couplings: expected three numbers, got {num_couplings}")
        _check.at_least(
            1,
            num_filters=num_filters,
            num_components=num_components,
            num_heads=num_heads,
            dequantizer_filters=dequantizer_filters,
        )
        _check.at_least(
            0,
            num_blocks=num_blocks,
            dequantizer_couplings=dequantizer_couplings,
            dequantizer_blocks=dequantizer_blocks,
        )
        for name, filters in (("num_filters", num_filters), ("dequantizer_filters", dequantizer_filters)):
            if filters % num_heads:
                raise ValueError(f"{name}: expected a multiple of num_heads={num_heads}, got {filters}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        channels, height, width = self.image_shape
        self.noise_shape = (4 * channels, height // 2, width // 2)
        common = {"num_heads": num_heads, "dropout": dropout}
        network = {"num_filters": num_filters, "num_blocks": num_blocks, "num_labels": num_labels, **common}

        def couplings(count: int, channels: int, size: tuple[int, int]) -> Iterator[Transform]:
            for i in range(count):
                if i > 0:
                    yield exchange(channels)
                yield ActNorm(channels)
                yield InvertibleConv1x1(channels)
                yield coupling(channels, size, num_components, **network)

        half = (height // 2, width // 2)
        self.transform = Sequential(
            Checkerboard(),
            *couplings(num_couplings[0], 2 * channels, (height, width // 2)),
            Inverse(Checkerboard()),
            Squeeze2d(),
            *couplings(num_couplings[1], 4 * channels, half),
            Checkerboard(),
            *couplings(num_couplings[2], 8 * channels, (half[0], half[1] // 2)),
            Inverse(Checkerboard()),
        )
        self.dequantizer = None
        if dequantizer_couplings:
            self.dequantizer = Dequantizer(
                self.image_shape,
                dequantizer_couplings,
                num_components,
                num_filters=dequantizer_filters,
                num_blocks=dequantizer_blocks,
                **common,
            )

    def dequantize(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to continuous values, with learned noise within a level.

        Returns:
            Values of the shape of `x` and the log-determinant `(B,)`, less the log-density of the noise.
        """
        if self.dequantizer is None:
            return super().dequantize(x, seed)
        noise = GF.standard_normal(x.shape, seed=seed, dtype=self.dtype, device=x.device)
        u, log_density = self.dequantizer(x.to(self.dtype), noise)
        y, log_det = self.continuous(x, u)
        return y, log_det - log_density
