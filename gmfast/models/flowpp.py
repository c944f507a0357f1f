"""Flow++: Ho, Chen, Srinivas, Duan and Abbeel, 2019, https://arxiv.org/abs/1902.00275."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from .. import functional as GF
from ..nn import (
    ActNorm,
    Inverse,
    InvertibleConv1x1,
    LogisticMixtureCoupling,
    Permute,
    Sequential,
    Squeeze2d,
    Transform,
)
from ..nn.transform import no_log_det
from .flow_image import ImageFlow, add_label
from .image import label_embedding


class Checkerboard(Transform):
    """`(B, C, H, W)` to `(B, 2C, H, W/2)`: the fields of a checkerboard, as channels. Its own row keeps a
    pixel; where row plus column is even it comes first."""

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        left, right = x.unflatten(3, (-1, 2)).unbind(4)
        return torch.cat(self._exchange_in_odd_rows(left, right), 1), no_log_det(x)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        left, right = self._exchange_in_odd_rows(*z.chunk(2, 1))
        return torch.stack([left, right], 4).flatten(3), no_log_det(z)

    @staticmethod
    def _exchange_in_odd_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        odd = (torch.arange(a.shape[2], device=a.device) % 2 == 1)[:, None]
        return torch.where(odd, b, a), torch.where(odd, a, b)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class GatedConv(nn.Module):
    """`x + a * sigmoid(b)`, with `a, b` from two convolutions of x; the label is a bias of the first one, and
    the context a summand."""

    def __init__(self, channels: int, dropout: float, num_labels: int | None, num_context: int):
        super().__init__()
        self.first = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.context = nn.Conv2d(num_context, channels, 1) if num_context else None
        self.embedding = label_embedding(num_labels, channels)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(2 * channels, 2 * channels, 1)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = self.first(GF.concat_elu(x))
        h = h + self.context(context) if self.context is not None else add_label(h, self.embedding, context)
        return x + F.glu(self.second(self.dropout(GF.concat_elu(h))), 1)


class GatedAttention(nn.Module):
    """`x + a * sigmoid(b)`, with `a, b` from attention between all pixels, each of which knows its place."""

    def __init__(self, channels: int, size: tuple[int, int], num_heads: int, dropout: float):
        super().__init__()
        self.place = nn.Parameter(torch.randn(channels, *size) * 0.01)
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, 2 * channels, 1)
        self.num_heads, self.dropout = num_heads, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.project(x + self.place).flatten(2)
        query, key, value = (
            part.unflatten(1, (self.num_heads, -1)).transpose(2, 3) for part in qkv.chunk(3, 1)
        )
        h = F.scaled_dot_product_attention(query, key, value)  # (B, heads, H * W, C / heads)
        h = h.transpose(2, 3).flatten(1, 2).view_as(x)
        return x + F.glu(self.out(self.dropout(h)), 1)


class AttentionNetwork(nn.Module):
    """Blocks of a gated convolution and gated attention, each followed by layer normalisation, between a
    first convolution and a last one that begins near zero. The context is the label, or with `num_context`
    that many channels."""

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
        h = self.input(x)
        for conv, first_norm, attention, second_norm in self.blocks:
            h = second_norm(attention(first_norm(conv(h, context))))
        return self.out(h)


def coupling(channels: int, size: tuple[int, int], num_components: int, **network) -> Transform:
    """A coupling of the last half of the channels. Its mixtures begin with means apart: components that are
    alike stay so."""
    half, num_params = channels // 2, 2 + 3 * num_components
    network = AttentionNetwork(channels - half, num_params * half, size, **network)
    with torch.no_grad():
        means = network.out.bias.view(half, num_params)[:, 2 + num_components : 2 + 2 * num_components]
        means.copy_(torch.linspace(-1, 1, num_components) if num_components > 1 else torch.zeros(1))
    return LogisticMixtureCoupling(network, num_components=num_components)


def exchange(channels: int) -> Permute:
    """The last half of the channels first."""
    return Permute([*range(channels - channels // 2, channels), *range(channels - channels // 2)])


class Dequantizer(nn.Module):
    """A density of the noise within levels, given the image: a flow from normal noise to (0, 1), of couplings
    whose networks see features of the image."""

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
        """`unit`, the image in [-1, 1], and standard normal noise to u in (0, 1) and its log-density (B,)."""
        first, *blocks = self.features
        h = first(self.split(unit)[0])
        for block in blocks:
            h = block(h, None)
        t, log_det = self.transform(noise, h)
        t = t.to(torch.promote_types(t.dtype, torch.float32))  # halves do not tell places within a level
        log_det = log_det + (F.logsigmoid(t) + F.logsigmoid(-t)).flatten(1).sum(1)
        return torch.sigmoid(t), GF.gaussian_log_prob(noise) - log_det


class FlowPP(ImageFlow):
    """Flow++ (Ho et al., 2019): couplings by the CDFs of logistic mixtures, whose networks have gated
    convolutions and attention, and noise within the levels that a flow of its own learns. The defaults are
    the published CIFAR-10 model.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`; `log_prob` and
    `loss` bound the likelihood (`gmfast.models.flow_image.ImageFlow`). The density `q(u | x)` of the noise is
    learned to make the bound tight: `log p(x + u) - log q(u | x)`.

    Args:
        image_shape: (C, H, W); H and W are multiples of 4.
        num_couplings: of the fields of a checkerboard, then, at half the size, of halves of the channels,
            then of a checkerboard again.
        num_filters: channels of a coupling's network, a multiple of `num_heads`.
        num_blocks: gated convolutions with attention in it.
        num_components: logistics in a mixture.
        num_heads: of the attention.
        dropout: probability inside the networks.
        dequantizer_couplings, dequantizer_filters, dequantizer_blocks: of the noise's flow. Without couplings
            the noise is uniform.
        alpha: keeps the logits of values finite.
        num_levels: values a subpixel can take.
        num_labels: number of classes to condition on; None for an unconditional model.

    Before a coupling come activation normalisation and an invertible 1×1 convolution (Glow,
    arXiv:1807.03039).

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

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
        self.config = {
            "image_shape": self.image_shape,
            "num_couplings": num_couplings,
            "num_filters": num_filters,
            "num_blocks": num_blocks,
            "num_components": num_components,
            "num_heads": num_heads,
            "dropout": dropout,
            "dequantizer_couplings": dequantizer_couplings,
            "dequantizer_filters": dequantizer_filters,
            "dequantizer_blocks": dequantizer_blocks,
            "alpha": alpha,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
        channels, height, width = self.image_shape
        self.noise_shape = (4 * channels, height // 2, width // 2)
        common = {"num_heads": num_heads, "dropout": dropout}
        network = {"num_filters": num_filters, "num_blocks": num_blocks, "num_labels": num_labels, **common}

        def couplings(count, channels, size):
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
        """Images to continuous values, and the log-determinant less the log-density of the noise, (B,)."""
        if self.dequantizer is None:
            return super().dequantize(x, seed)
        dtype = next(self.parameters()).dtype
        noise = GF.standard_normal(x.shape, seed=seed, dtype=dtype, device=x.device)
        u, log_density = self.dequantizer(x.to(dtype), noise)
        y, log_det = self.continuous(x, u)
        return y, log_det - log_density
