"""PixelCNN++: Salimans, Karpathy, Chen and Kingma, 2017, https://arxiv.org/abs/1701.05517.

Two streams of features run through the network. The receptive field of stream u is the rows above; that of
stream ul also has the pixels to the left in the pixel's own row. Convolutions that look only up, or only up
and
left, keep it so: their inputs are padded at the top (and left), so nothing is masked and no dead tap is
computed. Downsampling, upsampling and the skip connections between them form a U-Net.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _check
from ... import functional as GF
from ...decode.builder import Builder, Tap, Value, When, conv_taps, matrix
from ..base import Batch
from ..networks.labels import label_embedding
from ..networks.parametrized import weight_norm
from .image import ImageModel, down_shift


def normalized(layer: nn.Module, init_scale: float = 1.0) -> nn.Module:
    """Add weight normalisation, one gain per output channel (Salimans and Kingma, 2016, arXiv:1602.07868).

    `PixelCNNPP.initialize` gives the layer's outputs the standard deviation `init_scale`.
    """
    nn.init.normal_(layer.weight, 0.0, 0.05)
    nn.init.zeros_(layer.bias)
    layer = weight_norm(layer, dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0)
    # A norm over dimension 1 has other strides than its gradient, which DistributedDataParallel compares.
    gain = layer.parametrizations.weight.original0
    gain.data = torch.empty_like(gain, memory_format=torch.contiguous_format).copy_(gain.data)
    layer.init_scale = init_scale
    return layer


def down_shifted_conv(in_channels, out_channels, kernel_size=(2, 3), stride=1, init_scale=1.0):
    """Convolution over the pixel's row and the rows above, to both sides."""
    height, width = kernel_size
    pad = nn.ZeroPad2d((width // 2, width // 2, height - 1, 0))
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride)
    return nn.Sequential(pad, normalized(conv, init_scale))


def down_right_shifted_conv(in_channels, out_channels, kernel_size=(2, 2), stride=1, init_scale=1.0):
    """Convolution over the pixel itself, the pixels above it, and those to their left."""
    height, width = kernel_size
    pad = nn.ZeroPad2d((width - 1, 0, height - 1, 0))
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride)
    return nn.Sequential(pad, normalized(conv, init_scale))


def down_shifted_deconv(channels):
    """Transposed convolution that doubles height and width; an output row sees input rows up to its own."""
    return normalized(
        nn.ConvTranspose2d(channels, channels, (2, 3), 2, padding=(0, 1), output_padding=(0, 1))
    )


def down_right_shifted_deconv(channels):
    """Transposed convolution that doubles height and width; an output pixel sees the pixel it lies in."""
    return normalized(nn.ConvTranspose2d(channels, channels, 2, 2))


def nin(in_channels, out_channels):
    """Network in network: a 1×1 convolution."""
    return normalized(nn.Conv2d(in_channels, out_channels, 1))


def right_shift(x: Tensor) -> Tensor:
    """Shift images one column right; zeros enter at the left."""
    return F.pad(x[..., :-1], (1, 0))


class GatedResnet(nn.Module):
    """Gated residual layer `x + a * sigmoid(b)`, with `a, b` from two convolutions of x.

    A skip connection from `aux_channels` channels of another layer enters before the second convolution, and
    the label's embedding before the gate.
    """

    def __init__(self, conv, nr_filters: int, aux_channels: int, dropout: float, num_labels: int | None):
        super().__init__()
        self.conv_input = conv(2 * nr_filters, nr_filters)
        self.nin_aux = nin(2 * aux_channels, nr_filters) if aux_channels else None
        self.dropout = nn.Dropout(dropout)
        self.conv_out = conv(2 * nr_filters, 2 * nr_filters, init_scale=0.1)
        self.embedding = label_embedding(num_labels, 2 * nr_filters)

    def forward(self, x: Tensor, aux: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Apply the layer to features `x (B, C, H, W)`."""
        h = self.conv_input(GF.concat_elu(x))
        if self.nin_aux is not None:
            h = h + self.nin_aux(GF.concat_elu(aux))
        h = self.conv_out(self.dropout(GF.concat_elu(h)))
        if self.embedding is not None:
            h = h + self.embedding(label)[:, :, None, None]
        return x + F.glu(h, dim=1)


class Block(nn.Module):
    """One gated residual layer of each stream: u first, then ul, which reads u.

    In the second half of the U-Net (`skip`) both also read a layer of the first half.
    """

    def __init__(self, nr_filters: int, skip: bool, dropout: float, num_labels: int | None):
        super().__init__()
        self.u = GatedResnet(down_shifted_conv, nr_filters, skip * nr_filters, dropout, num_labels)
        self.ul = GatedResnet(
            down_right_shifted_conv, nr_filters, (1 + skip) * nr_filters, dropout, num_labels
        )

    def forward(
        self,
        u: Tensor,
        ul: Tensor,
        u_skip: Tensor | None = None,
        ul_skip: Tensor | None = None,
        label: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply the layers to both streams `(B, C, H, W)`."""
        u = self.u(u, u_skip, label)
        ul = self.ul(ul, u if ul_skip is None else torch.cat([u, ul_skip], 1), label)
        return u, ul


class Resample(nn.Module):
    """One strided layer of each stream."""

    def __init__(self, u: nn.Module, ul: nn.Module):
        super().__init__()
        self.u, self.ul = u, ul

    def forward(self, u: Tensor, ul: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the layers to both streams `(B, C, H, W)`."""
        return self.u(u), self.ul(ul)


class Features(NamedTuple):
    """Values of a layer in a decode program: its features, and their concatenated ELU."""

    raw: Value
    elu: Value


def shifted_taps(value: Value, conv: nn.Conv2d, both_sides: bool) -> list[Tap]:
    """Taps of a down-shifted convolution (`both_sides`), or of one that is shifted down and right."""
    height, width = conv.kernel_size
    return conv_taps(value, conv.weight, 1 - height, -(width // 2) if both_sides else 1 - width)


_DIGITS = {"options": {"nr_resnet": 1, "nr_filters": 32, "nr_logistic_mix": 5, "dropout": 0.3}}


class PixelCNNPP(ImageModel):
    """PixelCNN++ (Salimans et al., 2017, arXiv:1701.05517): a discretized logistic mixture at each pixel.

    The defaults are the published CIFAR-10 model. Images are floats in [-1, 1], class `v` of `num_levels` at
    `2 * v / (num_levels - 1) - 1`.

    Args:
        image_shape: (C, H, W); C is 1 or 3, H and W are multiples of 4.
        nr_resnet: Residual layers per resolution.
        nr_filters: Features of each stream.
        nr_logistic_mix: Mixture components K.
        dropout: Dropout probability inside the residual layers.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.

    Weights are normalised. Call `initialize` (or `prepare`) once with a batch before training, as the paper
    does: it sets gains and biases from the data. Whether that happened is part of the state dict.

    Raises:
        ValueError: For values out of range, naming the argument.
    """

    settings: ClassVar = {
        "digits": _DIGITS,
        "binary-digits": _DIGITS,
        "photos": {
            "size": 16,
            "batch_size": 32,
            "options": {"nr_resnet": 1, "nr_filters": 32, "dropout": 0.0},
        },
    }

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        nr_resnet: int = 5,
        nr_filters: int = 160,
        nr_logistic_mix: int = 10,
        dropout: float = 0.5,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        super().__init__(image_shape, num_levels, num_labels, "mixture", nr_logistic_mix)
        if any(size % 4 for size in self.image_shape[1:]):
            raise ValueError(
                f"image_shape: expected H and W to be positive multiples of 4, got {self.image_shape}"
            )
        _check.at_least(1, nr_resnet=nr_resnet, nr_filters=nr_filters)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")

        def blocks(count, skip):
            return nn.ModuleList(Block(nr_filters, skip, dropout, num_labels) for _ in range(count))

        self.nr_filters = nr_filters
        in_channels = image_shape[0] + 1
        self.u_input = down_shifted_conv(in_channels, nr_filters, (2, 3))
        self.ul_input_above = down_shifted_conv(in_channels, nr_filters, (1, 3))
        self.ul_input_left = down_right_shifted_conv(in_channels, nr_filters, (2, 1))
        self.up = nn.ModuleList(blocks(nr_resnet, skip=False) for _ in range(3))
        self.downsample = nn.ModuleList(
            Resample(
                down_shifted_conv(nr_filters, nr_filters, stride=2),
                down_right_shifted_conv(nr_filters, nr_filters, stride=2),
            )
            for _ in range(2)
        )
        self.down = nn.ModuleList(
            blocks(count, skip=True) for count in (nr_resnet, nr_resnet + 1, nr_resnet + 1)
        )
        self.upsample = nn.ModuleList(
            Resample(down_shifted_deconv(nr_filters), down_right_shifted_deconv(nr_filters)) for _ in range(2)
        )
        self.nin_out = nin(nr_filters, (3 if image_shape[0] == 1 else 10) * nr_logistic_mix)
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Parameters of every pixel's mixture given the pixels before it.

        Args:
            x: Images `(B, C, H, W)` in [-1, 1].
            label: Class indices `(B,)` for a conditional model.

        Returns:
            `(B, 10K, H, W)`, or `(B, 3K, H, W)` for one channel, laid out as
            `gmfast.functional.discretized_logistic_mixture_nll` takes them.
        """
        label = self.check_input(x, label)
        # A channel of ones tells the image from the zeros of the padding.
        x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        u = down_shift(self.u_input(x))
        ul = down_shift(self.ul_input_above(x)) + right_shift(self.ul_input_left(x))

        skips = [(u, ul)]
        for stage in range(3):
            if stage > 0:
                u, ul = self.downsample[stage - 1](u, ul)
                skips.append((u, ul))
            for block in self.up[stage]:
                u, ul = block(u, ul, label=label)
                skips.append((u, ul))

        u, ul = skips.pop()
        for stage in range(3):
            if stage > 0:
                u, ul = self.upsample[stage - 1](u, ul)
            for block in self.down[stage]:
                u, ul = block(u, ul, *skips.pop(), label=label)
        return self.nin_out(F.elu(ul))

    def decoder(self) -> Builder:
        """The model as a decode program.

        Stream u, which sees whole rows only, is computed a row at a time; a layer at half resolution runs at
        every second row and column.
        """
        channels, *size = self.image_shape
        builder = Builder(*size)
        x = builder.value(channels + 1)  # the last one is 1: it tells the image from what is around it
        features = self.nr_filters

        def stored(scale):
            """Values of a layer at a scale."""
            return Features(builder.value(features, scale), builder.value(2 * features, scale))

        def append(taps, bias, out, when, **form):
            builder.layer(
                taps, bias, out=out.raw, activated=out.elu, activated_by="concat_elu", when=when, **form
            )
            return out

        def when(scale, whole_row):
            return When(scale, scale, whole_row=whole_row)

        def residual(layer, below, aux, whole_row):
            scale = below.raw.scale
            first, second = layer.conv_input[-1], layer.conv_out[-1]
            taps, bias = shifted_taps(below.elu, first, whole_row), first.bias
            if aux:
                # Concatenated: the positive parts of all, then the negative ones.
                blocks = matrix(layer.nin_aux).split(features, 1)
                for i, other in enumerate(aux):
                    taps.append(Tap(other.elu, torch.cat([blocks[i], blocks[len(aux) + i]], 1)))
                bias = bias + layer.nin_aux.bias
            hidden = builder.value(2 * features, scale)
            at = when(scale, whole_row)
            builder.layer(taps, bias, activated=hidden, activated_by="concat_elu", when=at)
            return append(
                shifted_taps(hidden, second, whole_row),
                second.bias,
                stored(scale),
                at,
                embedding=None if layer.embedding is None else layer.embedding.weight,
                activation="glu",
                residual=below.raw,
            )

        def downsample(layer, below, whole_row):
            scale = 2 * below.raw.scale
            taps = shifted_taps(below.raw, layer[-1], whole_row)
            return append(taps, layer[-1].bias, stored(scale), when(scale, whole_row))

        def upsample(layer, below, whole_row):
            scale = below.raw.scale
            out, weight = stored(scale // 2), layer.weight.transpose(0, 1)
            for row in range(2):
                for column in range(2):
                    seen = [(column, 0)]
                    if whole_row:  # three taps wide, the second one on the even columns
                        seen = [(0, 1), (2, 0)] if column else [(1, 0)]
                    taps = [Tap(below.raw, weight[:, :, row, tap], 0, away) for tap, away in seen]
                    at = When(scale, scale, row * scale // 2, column * scale // 2, whole_row)
                    append(taps, layer.bias, out, at)
            return out

        def stream_input(convs, whole_row):
            """Append convolutions of the image that are shifted by a row or column, where zeros enter.

            The bias is a weight of the ones, so that it is shifted too.
            """
            taps = []
            for conv, row, column in convs:
                weight = conv.weight.clone()
                height, width = conv.kernel_size
                middle = width // 2
                weight[:, -1, -1, middle] += conv.bias
                taps += conv_taps(x, weight, row - (height - 1), column - middle)
            return append(taps, None, stored(1), when(1, whole_row))

        with torch.no_grad():
            u = stream_input([(self.u_input[-1], -1, 0)], True)
            ul = stream_input([(self.ul_input_above[-1], -1, 0), (self.ul_input_left[-1], 0, -1)], False)

            def block(layers, u, ul, skip=None):
                u = residual(layers.u, u, [skip[0]] if skip else [], True)
                return u, residual(layers.ul, ul, [u, skip[1]] if skip else [u], False)

            skips = [(u, ul)]
            for stage in range(3):
                if stage > 0:
                    layers = self.downsample[stage - 1]
                    u, ul = downsample(layers.u, u, True), downsample(layers.ul, ul, False)
                    skips.append((u, ul))
                for layers in self.up[stage]:
                    u, ul = block(layers, u, ul)
                    skips.append((u, ul))
            u, ul = skips.pop()
            for stage in range(3):
                if stage > 0:
                    layers = self.upsample[stage - 1]
                    u, ul = upsample(layers.u, u, True), upsample(layers.ul, ul, False)
                for layers in self.down[stage]:
                    u, ul = block(layers, u, ul, skips.pop())
            params = builder.value(self.nin_out.out_channels)
            # The first half of a concatenated ELU is the ELU.
            builder.layer([Tap(ul.elu, matrix(self.nin_out))], self.nin_out.bias, out=params)
        builder.draw(self.head, params, x, channels=channels, ones=True)
        return builder

    @torch.no_grad()
    def initialize(self, x: Tensor, label: Tensor | None = None) -> None:
        """Set gains and biases so that each channel of each layer is standardised over the batch `x`.

        The standard deviation is 1, and 0.1 before a gate. Does nothing when the model was initialised
        before, in this process or in the one that saved its state dict.
        """
        if self.initialized:
            return

        def standardize(layer, _, y):
            variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
            # A channel that is constant over the batch (small images have some) keeps its gain.
            scale = torch.where(variance > 1e-8, layer.init_scale * variance.rsqrt(), layer.init_scale)
            gain = layer.parametrizations.weight.original0
            gain.mul_(scale.view_as(gain))
            layer.bias.copy_((layer.bias - mean) * scale)
            return (y - mean[:, None, None]) * scale[:, None, None]

        # In one pass: the inputs that a layer is measured on are standardised already.
        hooks = [
            layer.register_forward_hook(standardize)
            for layer in self.modules()
            if hasattr(layer, "init_scale")
        ]
        try:
            self(x, label)
        finally:
            for hook in hooks:
                hook.remove()
        self.initialized.fill_(True)

    def prepare(self, batch: Batch) -> None:
        """Initialise the weights from a batch, as `initialize`."""
        self.initialize(*batch)
