"""Gated PixelCNN: van den Oord, Kalchbrenner, Vinyals et al., 2016, https://arxiv.org/abs/1606.05328.

Two stacks of features run through the network. The receptive field of the vertical stack is the rows up to
the pixel's own, to both sides; shifted down by a row it enters the horizontal stack, which also sees the
pixels to the left. Together they see every earlier pixel: there is no blind spot.

Colours that are predicted one by one fall into ordered groups of features in the horizontal stack alone: the
rows above are known in full, so the vertical stack mixes their colours freely.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ... import _check
from ... import functional as GF
from ...decode.builder import Builder, Tap, When, conv_taps, masked_conv_taps, matrix
from ...nn import MaskedConv2d
from ..networks.labels import add_label, label_embedding
from .image import ImageModel, down_shift


class VerticalConv2d(nn.Conv2d):
    """Upper part of a square convolution: `kernel_size // 2` rows above the pixel's own, and its own.

    Zero padding keeps the image's size.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        above = kernel_size // 2
        super().__init__(in_channels, out_channels, (above + 1, kernel_size), padding=(0, above))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x (B, C, H, W)`."""
        return super().forward(F.pad(x, (0, 0, self.kernel_size[0] - 1, 0)))


class GatedLayer(nn.Module):
    """One layer of both stacks (figure 2), p features each.

    The `first` layer takes the image, of which the horizontal stack does not see its own pixel (mask type A).
    The `last` layer returns None for both stacks, which nothing reads.
    """

    def __init__(
        self,
        in_channels: int,
        nr_filters: int,
        kernel_size: int,
        channel_groups: int,
        num_labels: int | None,
        first: bool = False,
        last: bool = False,
    ):
        super().__init__()
        self.groups, self.first, self.last = channel_groups, first, last
        self.vertical = VerticalConv2d(in_channels, 2 * nr_filters, kernel_size)
        self.above = nn.Conv2d(2 * nr_filters, 2 * nr_filters, 1)
        self.horizontal = MaskedConv2d(
            in_channels,
            2 * nr_filters,
            (1, kernel_size),
            mask_type="A" if first else "B",
            channel_groups=channel_groups,
        )
        self.residual = (
            None if last else MaskedConv2d(nr_filters, nr_filters, 1, channel_groups=channel_groups)
        )
        self.skip = MaskedConv2d(nr_filters, nr_filters, 1, channel_groups=channel_groups)
        self.embed_v = None if last else label_embedding(num_labels, 2 * nr_filters)
        self.embed_h = label_embedding(num_labels, 2 * nr_filters)

    def forward(
        self, v: Tensor, h: Tensor, label: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return the vertical stack, the horizontal stack and the skip output, `(B, p, H, W)` each."""
        v = self.vertical(v)
        y = self._gate_h(self.horizontal(h) + down_shift(self.above(v)), label)
        if self.last:
            return None, None, self.skip(y)
        residual = self.residual(y)
        return self._gate_v(v, label), residual if self.first else h + residual, self.skip(y)

    def _gate_v(self, y: Tensor, label: Tensor | None) -> Tensor:
        return GF.gated_activation(add_label(y, self.embed_v, label))

    def _gate_h(self, y: Tensor, label: Tensor | None) -> Tensor:
        """Gate each group of colours by its own two halves."""
        y = add_label(y, self.embed_h, label).unflatten(1, (self.groups, -1))
        return GF.gated_activation(y, dim=2).flatten(1, 2)


def _settings(nr_filters: int, nr_out_filters: int) -> dict:
    return {
        "lr": 0.002,
        "options": {
            "nr_layers": 5,
            "nr_filters": nr_filters,
            "kernel_size": 3,
            "nr_out_filters": nr_out_filters,
        },
    }


class GatedPixelCNN(ImageModel):
    """Gated PixelCNN (van den Oord et al., 2016, arXiv:1606.05328), with classes or without.

    The defaults, 20 layers of 384 features with 5×5 filters, are of the size of the published models. Images
    are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`.

    Args:
        image_shape: (C, H, W); C is 1 or 3.
        nr_layers: Number of gated layers; the first has a kernel of 7.
        nr_filters: Features p of each stack.
        kernel_size: Kernel size k of the other layers, odd: k//2 + 1 rows of k for the vertical stack, as far
            to the left for the horizontal one.
        nr_out_filters: Features between the two last layers.
        head: "categorical", a softmax over the levels of each colour given the ones before it; "mixture", a
            mixture of discretized logistics that couples the colours itself (Salimans et al., 2017,
            arXiv:1701.05517); "bernoulli" for two levels.
        nr_logistic_mix: Components of the mixture head.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.

    Without the mixture head, the horizontal stack's features of colour images fall into three equal groups,
    R, G and B, which see each other in that order: `nr_filters` and `nr_out_filters` are then multiples of 3.

    Raises:
        ValueError: For values out of range, naming the argument.
    """

    settings: ClassVar = {
        "digits": _settings(32, 64),
        "binary-digits": _settings(32, 64),
        "photos": {"size": 16, "batch_size": 32, **_settings(48, 96)},
    }

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        nr_layers: int = 20,
        nr_filters: int = 384,
        kernel_size: int = 5,
        nr_out_filters: int = 1023,
        head: str = "categorical",
        nr_logistic_mix: int = 10,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        super().__init__(image_shape, num_levels, num_labels, head, nr_logistic_mix)
        _check.at_least(1, nr_layers=nr_layers)
        self.check_grouped(nr_filters=nr_filters, nr_out_filters=nr_out_filters)
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number from 3, got {kernel_size}")
        channels, groups = self.image_shape[0], self.channel_groups
        self.layers = nn.ModuleList(
            GatedLayer(
                nr_filters if i else channels,
                nr_filters,
                kernel_size if i else 7,
                groups,
                num_labels,
                first=i == 0,
                last=i == nr_layers - 1,
            )
            for i in range(nr_layers)
        )
        self.hidden = MaskedConv2d(nr_filters, nr_out_filters, 1, channel_groups=groups)
        self.conv_out = MaskedConv2d(nr_out_filters, self.head.num_params(channels), 1, channel_groups=groups)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Head parameters at every pixel given the pixels, and for groups the colours, before it.

        Args:
            x: Images `(B, C, H, W)` in [-1, 1].
            label: Class indices `(B,)` for a conditional model.

        Returns:
            `(B, P, H, W)`: for the categorical head P = C·num_levels logits, colour by colour; for the
            mixture as `gmfast.functional.discretized_logistic_mixture_nll` takes them.
        """
        label = self.check_input(x, label)
        v, h, out = x, x, 0
        for layer in self.layers:
            v, h, skip = layer(v, h, label)
            out = out + skip
        return self.conv_out(F.relu(self.hidden(F.relu(out))))

    def decoder(self) -> Builder:
        """The model as a decode program.

        The vertical stack is only read shifted down by a row: its row r is computed when row r + 1 begins, so
        its layers begin with row 1.
        """
        channels, *size = self.image_shape
        builder = Builder(*size)
        x, params = builder.value(channels), builder.value(self.conv_out.out_channels)
        above = When(whole_row=True, first_row=1)
        below = []  # by layer, the vertical stack's input to the horizontal one
        v = x
        for layer in self.layers:
            conv = layer.vertical
            rows, columns = conv.kernel_size
            seen, said = builder.value(conv.out_channels), builder.value(conv.out_channels)
            row = 1 - rows - layer.first
            builder.layer(conv_taps(v, conv.weight, row, -(columns // 2)), conv.bias, out=seen, when=above)
            builder.layer([Tap(seen, matrix(layer.above))], layer.above.bias, out=said, when=above)
            below.append(said)
            if not layer.last:
                v = builder.value(conv.out_channels // 2)
                embedding = None if layer.embed_v is None else layer.embed_v.weight
                builder.layer(
                    [],
                    outputs=v.channels,
                    embedding=embedding,
                    add=seen,
                    activation="gate",
                    out=v,
                    when=above,
                )

        groups, features = self.channel_groups, self.hidden.in_channels
        gated = [builder.value(features) for _ in self.layers]
        horizontal = [x, *(builder.value(features) for _ in self.layers[1:])]
        total = builder.value(features)
        hidden = builder.value(self.hidden.out_channels)
        for group in range(groups):
            own = group * features // groups
            skips, skip_bias = [], 0.0
            for i, layer in enumerate(self.layers):
                h, y = horizontal[i], gated[i]
                taps, bias = masked_conv_taps(h, layer.horizontal, group)
                embedding = layer.embed_h
                if embedding is not None:
                    embedding = embedding.weight[:, 2 * own : 2 * own + 2 * features // groups]
                builder.layer(
                    taps,
                    bias,
                    embedding=embedding,
                    add=below[i][2 * own],
                    activation="gate",
                    out=y[own],
                )
                taps, bias = masked_conv_taps(y, layer.skip, group)
                skips, skip_bias = skips + taps, skip_bias + bias
                if not layer.last:
                    taps, bias = masked_conv_taps(y, layer.residual, group)
                    residual = None if layer.first else h[own]
                    builder.layer(taps, bias, residual=residual, out=horizontal[i + 1][own])
            # One layer sums the skip connections of all layers.
            builder.layer(skips, skip_bias, activation="relu", out=total[own])
            for source, conv, made, activation in (
                (total, self.hidden, hidden, "relu"),
                (hidden, self.conv_out, params, "none"),
            ):
                taps, bias = masked_conv_taps(source, conv, group)
                out = made[group * conv.out_channels // groups]
                builder.layer(taps, bias, activation=activation, out=out)
            self.draw_group(builder, params, x, group)
        return builder
