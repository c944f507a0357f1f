"""PixelCNN: van den Oord, Kalchbrenner and Kavukcuoglu, 2016, https://arxiv.org/abs/1601.06759.

A stack of masked convolutions, each of which sees the pixels before its own. It has the blind spot that
Gated PixelCNN was made to remove: a 3×3 layer looks one column to the right for each row up, so however deep
the stack, what lies further to the right than the first layer's reach plus the rows above is never seen.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from ..decode.builder import Builder, masked_conv_taps
from ..nn import MaskedConv2d
from .image import ImageModel


class ResidualBlock(nn.Module):
    """`x + conv1x1(relu(conv3x3(relu(conv1x1(relu(x))))))` on 2h features, h of them inside (figure 5)."""

    def __init__(self, nr_filters: int, channel_groups: int):
        super().__init__()
        self.reduce = MaskedConv2d(2 * nr_filters, nr_filters, 1, channel_groups=channel_groups)
        self.conv = MaskedConv2d(nr_filters, nr_filters, 3, channel_groups=channel_groups)
        self.expand = MaskedConv2d(nr_filters, 2 * nr_filters, 1, channel_groups=channel_groups)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(F.relu(self.conv(F.relu(self.reduce(F.relu(x))))))


class PixelCNN(ImageModel):
    """PixelCNN (van den Oord et al., 2016). The defaults are of the size of the published CIFAR-10 model,
    with numbers of features that three colours divide.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`. The model is
    not class-conditional: every `label` is None.

    Args:
        image_shape: (C, H, W); C is 1 or 3.
        nr_resnet: residual blocks.
        nr_filters: features h inside a block; 2h run from block to block.
        nr_out_filters: features between the two last layers.
        head: "categorical", a softmax over the levels of each colour given the ones before it; "mixture", a
            mixture of discretized logistics that couples the colours itself (Salimans et al., 2017,
            arXiv:1701.05517); "bernoulli" for two levels.
        nr_logistic_mix: components of the mixture head.
        num_levels: values a subpixel can take.

    Without the mixture head, features of colour images fall into three equal groups, R, G and B, which see
    each other in that order: `nr_filters` and `nr_out_filters` are then multiples of 3.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        nr_resnet: int = 15,
        nr_filters: int = 126,
        nr_out_filters: int = 1023,
        head: str = "categorical",
        nr_logistic_mix: int = 10,
        num_levels: int = 256,
    ):
        super().__init__(image_shape, num_levels, None, head, nr_logistic_mix)
        _check.at_least(0, nr_resnet=nr_resnet)
        self.check_grouped(nr_filters=nr_filters, nr_out_filters=nr_out_filters)
        self.config = {
            "image_shape": self.image_shape,
            "nr_resnet": nr_resnet,
            "nr_filters": nr_filters,
            "nr_out_filters": nr_out_filters,
            "head": head,
            "nr_logistic_mix": nr_logistic_mix,
            "num_levels": num_levels,
        }
        channels, groups = self.image_shape[0], self.channel_groups
        self.conv_in = MaskedConv2d(channels, 2 * nr_filters, 7, mask_type="A", channel_groups=groups)
        self.blocks = nn.ModuleList(ResidualBlock(nr_filters, groups) for _ in range(nr_resnet))
        self.hidden = MaskedConv2d(2 * nr_filters, nr_out_filters, 1, channel_groups=groups)
        self.conv_out = MaskedConv2d(nr_out_filters, self.head.num_params(channels), 1, channel_groups=groups)

    def forward(self, x: Tensor, label: None = None) -> Tensor:
        """The head's parameters at every pixel given the pixels, and for groups the colours, before it.

        `x (B, C, H, W)` in [-1, 1]. Returns `(B, P, H, W)`: for the categorical head P = C·num_levels logits,
        colour after colour; for the mixture as `discretized_logistic_mixture_nll` takes them.
        """
        self.check_input(x, label)
        y = self.conv_in(x)
        for block in self.blocks:
            y = block(y)
        return self.conv_out(F.relu(self.hidden(F.relu(y))))

    def decoder(self) -> Builder:
        """The model as a decode program."""
        channels, *size = self.image_shape
        builder = Builder(*size)
        x, params = builder.value(channels), builder.value(self.conv_out.out_channels)
        features = self.conv_in.out_channels
        residual = [(builder.value(features), builder.value(features)) for _ in range(len(self.blocks) + 1)]
        inside = [
            (builder.value(block.reduce.out_channels), builder.value(block.conv.out_channels))
            for block in self.blocks
        ]
        hidden = builder.value(self.hidden.out_channels)

        for group in range(self.channel_groups):

            def layer(source, conv, made, activated=None, residual=None, group=group):
                """A group's channels of a convolution; its sums are stored rectified in `activated`."""
                first = group * conv.out_channels // self.channel_groups
                taps, bias = masked_conv_taps(source, conv, group)
                out, activated, residual = (v and v[first] for v in (made, activated, residual))
                builder.layer(
                    taps, bias, residual=residual, out=out, activated=activated, activated_by="relu"
                )

            layer(x, self.conv_in, *residual[0])
            for i, block in enumerate(self.blocks):
                reduced, seen = inside[i]
                layer(residual[i][1], block.reduce, None, reduced)
                layer(reduced, block.conv, None, seen)
                layer(seen, block.expand, *residual[i + 1], residual[i][0])
            layer(residual[-1][1], self.hidden, None, hidden)
            layer(hidden, self.conv_out, params)
            self.draw_group(builder, params, x, group)
        return builder
