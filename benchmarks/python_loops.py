"""Cached sampling in plain PyTorch, as fast as a Python loop reasonably gets: the baseline of sampling.py.

Each class does for one model what gmfast's decode program does, with nothing of gmfast's inside:

- Nothing is computed twice: what later positions look at lies in caches that are allocated once.
- What depends on finished rows (in sound: on finished blocks as long as the dilation) is computed for all
  columns at once; at a position only the rest is left.
- A convolution at a position is one matrix product over a view of its cache, its weights flattened
  beforehand; where a product's addend is taken, the bias is the weight of a channel of ones.
- Views, weights and noise are made before the loop; results go where they are read (`out=`).

A loop is made for a model and a batch. `sample(uniform)` draws from numbers in (0, 1) of shape (positions,
batch, num_uniforms), fewer positions than the model has stopping early, and returns (batch, C, positions).
With the numbers that `gmfast._philox` gives for a seed, the model draws the same.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._nn import glu  # F.glu has no out=

from gmfast.models import MADE, GatedPixelCNN, PixelCNN, PixelCNNPP, WaveNet

# ---- Draws -------------------------------------------------------------------------------------------


class CategoricalDraw:
    """One of the levels by its logits (B, L), inverting the distribution function."""

    def __init__(self, head, like: Tensor):
        levels = torch.arange(head.num_levels, dtype=like.dtype) * (2 / (head.num_levels - 1)) - 1
        self.levels = torch.cat([levels, levels[-1:]])  # where rounding leaves a number above all

    def __call__(self, logits: Tensor, uniform: Tensor, out: Tensor) -> None:
        """`uniform` and `out`: (B, 1)."""
        cumulative = torch.softmax(logits, 1).cumsum(1)
        out.copy_(self.levels[torch.searchsorted(cumulative, uniform.contiguous(), right=True)])


class MixtureDraw:
    """A pixel, of one or three colours, from K discretized logistics."""

    def __init__(self, head):
        self.head = head

    def __call__(self, params: Tensor, uniform: Tensor, out: Tensor) -> None:
        """`params` (B, 3K or 10K), `uniform` (B, 1 + C), `out` (B, C)."""
        mixtures, colours = self.head.num_components, out.shape[1]
        cumulative = torch.softmax(params[:, :mixtures], 1).cumsum(1)
        chosen = torch.searchsorted(cumulative, uniform[:, :1].contiguous(), right=True).clamp_(
            max=mixtures - 1
        )
        rest = params[:, mixtures:].unflatten(1, (-1, mixtures))
        picked = rest.gather(2, chosen.unsqueeze(2).expand(-1, rest.shape[1], 1))
        picked = picked.view(len(params), colours, -1)
        scale = picked[..., 1].clamp(min=self.head.log_scale_min).exp_()
        values = torch.addcmul(picked[..., 0], scale, torch.logit(uniform[:, 1:])).unbind(1)
        red = self._quantize(values[0], out[:, 0])
        if colours == 3:
            weight = torch.tanh(picked[..., 2]).unbind(1)
            green = self._quantize(torch.addcmul(values[1], weight[0], red), out[:, 1])
            blue = torch.addcmul(values[2], weight[1], red).addcmul_(weight[2], green)
            self._quantize(blue, out[:, 2])

    def _quantize(self, value: Tensor, out: Tensor) -> Tensor:
        steps = (self.head.num_levels - 1) / 2
        return torch.sub(value.clamp_(-1, 1).add_(1).mul_(steps).round_().div_(steps), 1, out=out)


def make_draw(head, like: Tensor):
    return MixtureDraw(head) if head.joint else CategoricalDraw(head, like)


# ---- Weights and caches ------------------------------------------------------------------------------


def columns(weight: Tensor) -> Tensor:
    """(outputs, channels, 1, taps) as the matrix (taps · channels, outputs) that a view of pixels meets."""
    return weight[:, :, 0].permute(2, 1, 0).flatten(0, 1).contiguous()


def with_bias(matrix: Tensor, bias: Tensor) -> Tensor:
    """(inputs, outputs), the bias being the weight of a one in front."""
    return torch.cat([bias.unsqueeze(0), matrix])


def image(row: Tensor) -> Tensor:
    """Rows (B, R, W, C) or one (B, W, C) as convolutions take them, (B, C, R, W) channels_last, a view."""
    row = row.unsqueeze(1) if row.dim() == 3 else row
    return row.permute(0, 3, 1, 2)


def pixels(row: Tensor) -> tuple[Tensor, ...]:
    """What a convolution makes of a row, (B, C, 1, W), as (B, C) for each column."""
    return row.squeeze(2).unbind(2)


def windows(row: Tensor, taps: int) -> list[Tensor]:
    """Of a row (B, columns, C) a view (B, taps · C) that begins in each column."""
    return [row[:, i : i + taps].flatten(1) for i in range(row.shape[1] - taps + 1)]


def kernel(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


# ---- WaveNet -----------------------------------------------------------------------------------------


class WaveNetLayer(NamedTuple):
    dilation: int
    seen: tuple[Tensor, ...]  # the block's inputs (B, R), by sample
    seen_rows: Tensor  # the same, (dilation · B, R)
    said: tuple[Tensor, ...]  # what the block before says to this one (B, 2R), by sample
    said_rows: Tensor
    past: Tensor
    now: Tensor
    bias: Tensor
    gate: Tensor
    gate_and_one: Tensor
    residual: Tensor | None


class WaveNetLoop:
    """A layer of dilation d sees the sample d before its own: its products with these are made for d samples
    at once, when the last of them is there."""

    @torch.inference_mode()
    def __init__(self, model: WaveNet, batch: int):
        if model.config["kernel_size"] != 2 or model.num_labels or model.local_channels:
            raise ValueError("model: expected a WaveNet of kernel_size 2 without conditions")
        self.batch, new = batch, model.input.weight.new_empty
        size, count = model.input.out_channels, len(model.layers)
        self.input = model.input.weight[:, 0].t().contiguous(), model.input.bias
        self.gated = new(batch, count, size + 1)
        self.sums = new(batch, 2 * size)
        self.layers = []
        for i, layer in enumerate(model.layers):
            dilation, residual = layer.conv.dilation[0], layer.residual
            past, now = layer.conv.weight.permute(2, 1, 0).contiguous()
            seen, said = new(dilation, batch, size), new(dilation, batch, 2 * size)
            self.layers.append(
                WaveNetLayer(
                    dilation=dilation,
                    seen=seen.unbind(0),
                    seen_rows=seen.flatten(0, 1),
                    said=said.unbind(0),
                    said_rows=said.flatten(0, 1),
                    past=past,
                    now=now,
                    bias=layer.conv.bias,
                    gate=self.gated[:, i, 1:],
                    gate_and_one=self.gated[:, i],
                    residual=residual and with_bias(residual.weight[:, :, 0].t(), residual.bias),
                )
            )
        skips = [with_bias(layer.skip.weight[:, :, 0].t(), layer.skip.bias) for layer in model.layers]
        self.skip = torch.cat(skips)
        self.output = [(conv.weight[:, :, 0].t().contiguous(), conv.bias) for conv in model.output[1::2]]
        self.num_uniforms = 1 + model.head.joint
        self.draw = make_draw(model.head, model.input.weight)

    @torch.inference_mode()
    def sample(self, uniform: Tensor) -> Tensor:
        addmm = torch.addmm
        sums, first_half = self.sums, self.sums[:, : self.sums.shape[1] // 2]
        gated = self.gated.flatten(1)
        gated.fill_(1)
        for layer in self.layers:
            layer.said_rows.copy_(layer.bias)
        wave = uniform.new_zeros(self.batch, len(uniform) + 2)
        past, outs = windows(wave.unsqueeze(2), 2), wave[:, 2:].split(1, 1)
        weight, bias = self.input
        (hidden, hidden_bias), (last, last_bias) = self.output
        for t, (noise, out) in enumerate(zip(uniform.unbind(0), outs, strict=True)):
            h = [layer.seen[t % layer.dilation] for layer in self.layers]
            addmm(bias, past[t], weight, out=h[0])
            for i, layer in enumerate(self.layers):
                slot = t % layer.dilation
                addmm(layer.said[slot], h[i], layer.now, out=sums)
                first_half.tanh_()
                glu(sums, 1, out=layer.gate)
                if layer.residual is not None:
                    addmm(h[i], layer.gate_and_one, layer.residual, out=h[i + 1])
                if slot == layer.dilation - 1:
                    addmm(layer.bias, layer.seen_rows, layer.past, out=layer.said_rows)
            y = torch.mm(gated, self.skip).relu_()
            y = addmm(hidden_bias, y, hidden).relu_()
            self.draw(addmm(last_bias, y, last), noise, out)
        return wave[:, 2:].unsqueeze(1)


# ---- PixelCNN++ --------------------------------------------------------------------------------------


class RowFeatures:
    """Of stream u: the features of a row and of the one above it, and their concatenated ELU."""

    def __init__(self, new, batch: int, width: int, features: int):
        self.raw, self.elu = new(batch, 2, width, features), new(batch, 2, width, 2 * features)

    def append(self, raw: Tensor) -> None:
        """The next row, (B, C, 1, W)."""
        for kept, row in ((self.raw, raw), (self.elu, F.elu(torch.cat([raw, -raw], 1)))):
            kept[:, 0] = kept[:, 1]
            image(kept[:, 1]).copy_(row)


class PixelFeatures:
    """Of stream ul: the features of the current row, and behind the current column still of the one above it,
    with a column of zeros to the left, and their concatenated ELU."""

    def __init__(self, new, batch: int, width: int, features: int):
        self.raw, self.elu = new(batch, width + 1, features), new(batch, width + 1, 2 * features)
        self.raws, self.elus = self.raw[:, 1:].unbind(1), self.elu[:, 1:].unbind(1)
        self.halves = [elu.chunk(2, 1) for elu in self.elus]
        self.raw_windows, self.elu_windows = windows(self.raw, 2), windows(self.elu, 2)

    def activate(self, column: int, raw: Tensor | None = None) -> None:
        """Concatenated ELU of `raw`, or of what its first half holds already."""
        positive, negative = self.halves[column]
        if raw is not None:
            positive.copy_(raw)
        torch.neg(positive, out=negative)
        F.elu_(self.elus[column])


class PixelConv:
    """A down-right-shifted convolution: the row above for all columns at once, the own row at a pixel."""

    def __init__(self, conv: nn.Conv2d):
        weight = conv.weight
        self.above, self.own = kernel(weight[:, :, :1]), columns(weight[:, :, 1:])
        self.bias, self.stride = conv.bias, conv.stride[0]

    def begin(self, row: Tensor) -> Tensor:
        return F.conv2d(image(row), self.above, self.bias, (1, self.stride))


class Resnet:
    """A gated residual layer of both streams."""

    def __init__(self, new, block, below, skip, out):
        (self.u, self.ul), (self.u_out, self.ul_out), self.skip = below, out, skip
        self.scale = self.ul_out.scale
        features, batch = self.ul.raw.shape[2], len(self.ul.raw)
        width = self.u.raw.shape[2]
        self.u_hidden = RowFeatures(new, batch, width, features)
        self.hidden = PixelFeatures(new, batch, width, features)
        self.sums = new(batch, 2 * features)
        self.u_first, self.u_second = (
            (kernel(conv[-1].weight), conv[-1].bias) for conv in (block.u.conv_input, block.u.conv_out)
        )
        self.first, self.second = PixelConv(block.ul.conv_input[-1]), PixelConv(block.ul.conv_out[-1])
        nin = block.ul.nin_aux
        if skip is None:
            self.from_u = kernel(nin.weight), nin.bias
        else:
            # Concatenated: the positive parts of u and of the short-cut, then the negative ones.
            parts = nin.weight.split(features, 1)
            self.from_u = kernel(torch.cat(parts[::2], 1)), nin.bias
            self.from_skip = torch.cat(parts[1::2], 1)[:, :, 0, 0].t().contiguous()
            self.u_from_skip = kernel(block.u.nin_aux.weight), block.u.nin_aux.bias

    def begin_row(self) -> None:
        h = F.conv2d(image(self.u.elu), *self.u_first, padding=(0, 1))
        if self.skip is not None:
            h += F.conv2d(image(self.skip[0].elu[:, 1]), *self.u_from_skip)
        self.u_hidden.append(h)
        h = F.conv2d(image(self.u_hidden.elu), *self.u_second, padding=(0, 1))
        self.u_out.append(image(self.u.raw[:, 1]) + F.glu(h, 1))
        said = F.conv2d(image(self.u_out.elu[:, 1]), *self.from_u)
        self.first_said = pixels(said.add_(self.first.begin(self.ul.elu)))
        self.second_said = pixels(self.second.begin(self.hidden.elu))

    def pixel(self, c: int) -> None:
        h = self.hidden.halves[c][0]
        torch.addmm(self.first_said[c], self.ul.elu_windows[c], self.first.own, out=h)
        if self.skip is not None:
            h.addmm_(self.skip[1].elus[c], self.from_skip)
        self.hidden.activate(c)
        torch.addmm(self.second_said[c], self.hidden.elu_windows[c], self.second.own, out=self.sums)
        raw = torch.add(self.ul.raws[c], glu(self.sums, 1), out=self.ul_out.raws[c])
        self.ul_out.activate(c, raw)


class Downsample:
    def __init__(self, layer, below, out):
        (self.u, self.ul), (self.u_out, self.ul_out) = below, out
        self.scale = self.ul_out.scale
        self.u_conv, self.conv = (kernel(layer.u[-1].weight), layer.u[-1].bias), PixelConv(layer.ul[-1])

    def begin_row(self) -> None:
        self.u_out.append(F.conv2d(image(self.u.raw), *self.u_conv, (1, 2), (0, 1)))
        self.said = pixels(self.conv.begin(self.ul.raw))

    def pixel(self, c: int) -> None:
        raw = torch.addmm(self.said[c], self.ul.raw_windows[2 * c], self.conv.own, out=self.ul_out.raws[c])
        self.ul_out.activate(c, raw)


class Upsample:
    """Makes two rows at once, of which the second waits."""

    def __init__(self, new, layer, below, out):
        (self.u, self.ul), (self.u_out, self.ul_out) = below, out
        self.scale = self.ul.scale
        self.u_layer, bias = layer.u, layer.ul.bias
        # A pixel becomes four, in the order of the rows.
        self.weight = layer.ul.weight.permute(0, 2, 3, 1).flatten(1).contiguous()
        self.bias = bias.repeat(4)
        features, batch = len(bias), len(self.ul.raw)
        self.made = new(batch, 4 * features)
        self.now, self.later = self.made.unflatten(1, (2, 2, features)).unbind(1)
        raw, elu = self.ul_out.raw[:, 1:], self.ul_out.elu[:, 1:]
        self.raw_pairs, self.elu_pairs = raw.split(2, 1), elu.split(2, 1)
        self.waiting = new(batch, raw.shape[1], features)
        self.waiting_pairs = self.waiting.split(2, 1)

    def begin_row(self) -> None:
        layer = self.u_layer
        rows = F.conv_transpose2d(
            image(self.u.raw[:, 1]), layer.weight, layer.bias, 2, layer.padding, layer.output_padding
        )
        self.u_rows = rows.split(1, 2)
        self.u_out.append(self.u_rows[0])

    def begin_second_row(self) -> None:
        self.u_out.append(self.u_rows[1])

    def take_second_row(self) -> None:
        """Once nobody looks at the first one any more."""
        self._store(self.ul_out.raw[:, 1:], self.ul_out.elu[:, 1:], self.waiting)

    def pixel(self, c: int) -> None:
        torch.addmm(self.bias, self.ul.raws[c], self.weight, out=self.made)
        self._store(self.raw_pairs[c], self.elu_pairs[c], self.now)
        self.waiting_pairs[c].copy_(self.later)

    @staticmethod
    def _store(raw: Tensor, elu: Tensor, made: Tensor) -> None:
        raw.copy_(made)
        positive, negative = elu.chunk(2, 2)
        positive.copy_(made)
        torch.neg(made, out=negative)
        F.elu_(elu)


class PixelCNNPPLoop:
    """Stream u a row at a time, stream ul a pixel at a time."""

    @torch.inference_mode()
    def __init__(self, model: PixelCNNPP, batch: int):
        if model.num_labels:
            raise ValueError("model: expected a PixelCNN++ without classes")
        self.batch, (self.channels, self.height, self.width) = batch, model.image_shape
        self.num_uniforms = 1 + self.channels
        features = model.config["nr_filters"]
        self.caches = []

        def new(*shape):
            self.caches.append(model.nin_out.weight.new_zeros(shape))
            return self.caches[-1]

        def stored(scale):
            values = [cls(new, batch, self.width // scale, features) for cls in (RowFeatures, PixelFeatures)]
            for value in values:
                value.scale = scale
            return values

        # Zeros enter with the pixels of the padding: the bias is a weight of a pixel's channel of ones.
        def weight_of(conv, middle):
            weight = conv.weight.clone()
            weight[:, -1, -1, middle] += conv.bias
            return weight

        above, left = weight_of(model.ul_input_above[-1], 1), weight_of(model.ul_input_left[-1], 0)
        above[:, :, 0, 0] += left[:, :, 0, 0]
        self.u_input, self.above = kernel(weight_of(model.u_input[-1], 1)), kernel(above)
        self.left = left[:, :, 1, 0].t().contiguous()

        scale = 1
        self.features = at = stored(scale)
        self.layers, skips = [], [at]
        for stage in range(3):
            if stage > 0:
                below, scale = at, 2 * scale
                at = stored(scale)
                self.layers.append(Downsample(model.downsample[stage - 1], below, at))
                skips.append(at)
            for block in model.up[stage]:
                below, at = at, stored(scale)
                self.layers.append(Resnet(new, block, below, None, at))
                skips.append(at)
        at = skips.pop()
        for stage in range(3):
            if stage > 0:
                below, scale = at, scale // 2
                at = stored(scale)
                self.layers.append(Upsample(new, model.upsample[stage - 1], below, at))
            for block in model.down[stage]:
                below, at = at, stored(scale)
                self.layers.append(Resnet(new, block, below, skips.pop(), at))
        self.last = at[1]
        self.nin = model.nin_out.weight[:, :, 0, 0].t().contiguous(), model.nin_out.bias
        self.draw = make_draw(model.head, model.nin_out.weight)

    @torch.inference_mode()
    def sample(self, uniform: Tensor) -> Tensor:
        width = self.width
        rows = -(-len(uniform) // width)
        for cache in self.caches:
            cache.zero_()
        # Two rows of zeros above, a column to each side.
        canvas = uniform.new_zeros(self.batch, self.height + 2, width + 2, self.channels + 1)
        canvas[:, 2:, 1:-1, -1] = 1
        ul, last = self.features[1], [positive for positive, _ in self.last.halves]
        weight, bias = self.nin
        upsamples = [layer for layer in self.layers if isinstance(layer, Upsample)]
        running = [  # by the place in a square of 4 pixels: the layers that run, and how they count columns
            [[layer for layer in self.layers if not (r % layer.scale or c % layer.scale)] for c in range(4)]
            for r in range(4)
        ]
        noise = uniform.unbind(0)
        for r in range(rows):
            self.features[0].append(F.conv2d(image(canvas[:, r : r + 2]), self.u_input))
            said = pixels(F.conv2d(image(canvas[:, r + 1]), self.above))
            for layer in self.layers:
                if r % layer.scale == 0:
                    layer.begin_row()
                elif isinstance(layer, Upsample) and r % layer.ul_out.scale == 0:
                    layer.begin_second_row()
            for layer in upsamples:
                if r % layer.scale == layer.ul_out.scale:
                    layer.take_second_row()
            left = canvas[:, r + 2, :-1].unbind(1)
            outs = canvas[:, r + 2, 1:-1, :-1].unbind(1)
            for c in range(min(width, len(uniform) - r * width)):
                ul.activate(c, torch.addmm(said[c], left[c], self.left, out=ul.raws[c]))
                for layer in running[r % 4][c % 4]:
                    layer.pixel(c // layer.scale)
                self.draw(torch.addmm(bias, last[c], weight), noise[r * width + c], outs[c])
        return canvas[:, 2:, 1:-1, :-1].flatten(1, 2)[:, : len(uniform)].transpose(1, 2)


# ---- Gated PixelCNN and PixelCNN ---------------------------------------------------------------------


class GroupConv:
    """What a `MaskedConv2d` says in its own row, for one group of colours after another: a group's outputs
    see the whole pixels to the left and a first part of their own pixel's channels."""

    def __init__(self, conv, bias: bool = False):
        """With `bias`, a one lies in front of what is seen."""
        groups, taps = conv.channel_groups, conv.kernel_size[1] // 2 + 1
        inputs = conv.in_channels // groups
        self.left = taps - 1
        weight = conv.weight[:, :, -(conv.kernel_size[0] // 2) - 1 :][:, :, :1, :taps]
        self.weights = []
        for group, own in enumerate(weight.chunk(groups)):
            seen = self.left * conv.in_channels + inputs * (group + (conv.mask_type == "B"))
            matrix = columns(own)[:seen]
            if bias:
                matrix = with_bias(matrix, conv.bias.chunk(groups)[group])
            self.weights.append(matrix.contiguous())

    def of_row(self, row: Tensor) -> list[list[Tensor]]:
        """What is seen of a row (B, left + W, C), for each column and group."""
        return [self.of_pixel(window) for window in windows(row, self.left + 1)]

    def of_pixel(self, pixel: Tensor) -> list[Tensor]:
        return [pixel[:, : len(weight)] for weight in self.weights]


class Row:
    """A row of what a convolution sees, with zeros to the left."""

    def __init__(self, loop: "ImageLoop", conv: GroupConv, channels: int):
        self.cells = loop.new(loop.batch, conv.left + loop.width, channels)
        self.at = [cell.chunk(loop.groups, 1) for cell in self.cells[:, conv.left :].unbind(1)]
        self.seen = conv.of_row(self.cells)


class Pixel:
    """What a convolution of one tap sees, behind a one."""

    def __init__(self, loop: "ImageLoop", conv):
        self.conv = GroupConv(conv, bias=True)
        cell = loop.like.new_ones(loop.batch, 1 + conv.in_channels)
        self.at = cell[:, 1:].chunk(loop.groups, 1)
        self.seen = self.conv.of_pixel(cell)

    def __call__(self, g: int, out: Tensor | None = None) -> Tensor:
        return torch.mm(self.seen[g], self.conv.weights[g], out=out)


class ImageLoop:
    """What the two models share: one colour after another, or all where the head draws them together; and the
    layers behind the stack."""

    def __init__(self, model, batch: int):
        if model.num_labels:
            raise ValueError("model: expected a model without classes")
        self.batch, (self.channels, self.height, self.width) = batch, model.image_shape
        self.groups = model.channel_groups
        self.num_uniforms = self.channels + model.head.joint
        self.like = model.conv_out.weight
        self.draw = make_draw(model.head, self.like)
        self.caches = []
        self.hidden, self.out = Pixel(self, model.hidden), Pixel(self, model.conv_out)

    def new(self, *shape: int) -> Tensor:
        self.caches.append(self.like.new_zeros(shape))
        return self.caches[-1]

    @torch.inference_mode()
    def sample(self, uniform: Tensor) -> Tensor:
        for cache in self.caches:
            cache.zero_()
        width, groups = self.width, self.groups
        noise = [u.split(self.num_uniforms // groups, 1) for u in uniform.unbind(0)]
        # The first layer sees three pixels above and to each side.
        canvas = uniform.new_zeros(self.batch, self.height + 3, width + 6, self.channels)
        for r in range(-(-len(uniform) // width)):
            self.begin_row(r, canvas)
            row = canvas[:, r + 3, :-3]
            seen = self.first.of_row(row)
            outs = [cell.chunk(groups, 1) for cell in row[:, 3:].unbind(1)]
            for c in range(min(width, len(uniform) - r * width)):
                for g in range(groups):
                    torch.clamp_min(self.features(g, c, seen[c][g]), 0, out=self.hidden.at[g])
                    self.hidden(g, out=self.out.at[g]).relu_()
                    self.draw(self.out(g), noise[r * width + c][g], outs[c][g])
        return canvas[:, 3:, 3:-3].flatten(1, 2)[:, : len(uniform)].transpose(1, 2)


class GatedPixelCNNLoop(ImageLoop):
    """The vertical stack a row at a time."""

    @torch.inference_mode()
    def __init__(self, model: GatedPixelCNN, batch: int):
        super().__init__(model, batch)
        layers, features = model.layers, model.hidden.in_channels
        self.vertical = [(kernel(layer.vertical.weight), layer.vertical.bias) for layer in layers]
        self.above = [(kernel(layer.above.weight), layer.above.bias) for layer in layers]
        self.rows = [
            self.new(batch, layer.vertical.kernel_size[0], self.width, features) for layer in layers[1:]
        ]
        self.biases = [layer.horizontal.bias for layer in layers]
        self.horizontal = [GroupConv(layer.horizontal) for layer in layers]
        self.first = self.horizontal[0]
        self.h = [Row(self, conv, features) for conv in self.horizontal[1:]]
        self.residual = [GroupConv(layer.residual, bias=True) for layer in layers[:-1]]
        # The gates of all layers side by side, each behind a one, for one product that sums what skips.
        self.gated = self.like.new_ones(batch, len(layers), 1 + features)
        self.gate = [gate[:, 1:].chunk(self.groups, 1) for gate in self.gated.unbind(1)]
        self.gate_seen = [
            conv.of_pixel(gate) for conv, gate in zip(self.residual, self.gated.unbind(1), strict=False)
        ]
        skips = [GroupConv(layer.skip, bias=True).weights for layer in layers]
        self.skip = [
            torch.cat([F.pad(weights[g], (0, 0, 0, 1 + features - len(weights[g]))) for weights in skips])
            for g in range(self.groups)
        ]
        self.sums = self.like.new_empty(batch, 2 * features // self.groups)

    def begin_row(self, r: int, canvas: Tensor) -> None:
        if r == 0:  # nothing is above
            said = [bias.expand(self.batch, self.width, -1).permute(0, 2, 1) for bias in self.biases]
        else:
            said, seen = [], image(canvas[:, r - 1 : r + 3])
            for i, (conv, above) in enumerate(zip(self.vertical, self.above, strict=True)):
                v = F.conv2d(seen, *conv, padding=(0, conv[0].shape[3] // 2 if i else 0))
                said.append(F.conv2d(v, *above).squeeze(2) + self.biases[i][:, None])
                if i < len(self.rows):
                    row = self.rows[i]
                    row[:, :-1] = row[:, 1:].clone()
                    signal, gate = v.chunk(2, 1)
                    image(row[:, -1]).copy_(torch.tanh(signal) * torch.sigmoid(gate))
                    seen = image(row)
        self.said = [[cell.chunk(self.groups, 1) for cell in row.unbind(2)] for row in said]

    def features(self, g: int, c: int, first: Tensor) -> Tensor:
        sums, seen = self.sums, first
        half = sums[:, : sums.shape[1] // 2]
        for i, conv in enumerate(self.horizontal):
            torch.addmm(self.said[i][c][g], seen, conv.weights[g], out=sums)
            half.tanh_()
            glu(sums, 1, out=self.gate[i][g])
            if i < len(self.residual):
                h, weight = self.h[i].at[c][g], self.residual[i].weights[g]
                if i == 0:
                    torch.mm(self.gate_seen[i][g], weight, out=h)
                else:
                    torch.addmm(self.h[i - 1].at[c][g], self.gate_seen[i][g], weight, out=h)
                seen = self.h[i].seen[c][g]
        return torch.mm(self.gated.flatten(1), self.skip[g])


class PixelCNNLoop(ImageLoop):
    """What the rows above say to a layer, for the columns of a row at once."""

    @torch.inference_mode()
    def __init__(self, model: PixelCNN, batch: int):
        super().__init__(model, batch)
        convs = [model.conv_in, *(block.conv for block in model.blocks)]
        self.above = [(kernel(conv.weight[:, :, : conv.kernel_size[0] // 2]), conv.bias) for conv in convs]
        self.own = [GroupConv(conv) for conv in convs]
        self.first = self.own[0]
        self.blocks = [
            (
                Pixel(self, block.reduce),
                Row(self, own, block.reduce.out_channels),
                Pixel(self, block.expand),
            )
            for own, block in zip(self.own[1:], model.blocks, strict=True)
        ]

    def begin_row(self, r: int, canvas: Tensor) -> None:
        said = [F.conv2d(image(canvas[:, r : r + 3]), *self.above[0])]
        for (_, row, _), above in zip(self.blocks, self.above[1:], strict=True):
            said.append(F.conv2d(image(row.cells), *above, padding=(0, 1))[..., 1:])
        self.said = [[cell.chunk(self.groups, 1) for cell in pixels(row)] for row in said]

    def features(self, g: int, c: int, first: Tensor) -> Tensor:
        h = torch.addmm(self.said[0][c][g], first, self.own[0].weights[g])
        for i, (reduce, row, expand) in enumerate(self.blocks, 1):
            torch.clamp_min(h, 0, out=reduce.at[g])
            reduce(g, out=row.at[c][g]).relu_()
            torch.addmm(self.said[i][c][g], row.seen[c][g], self.own[i].weights[g], out=expand.at[g]).relu_()
            h = torch.addmm(h, expand.seen[g], expand.conv.weights[g])
        return h


# ---- MADE --------------------------------------------------------------------------------------------


class MADELoop:
    """Of the first order: hidden units are computed as their degree is reached."""

    @torch.inference_mode()
    def __init__(self, model: MADE, batch: int):
        if model.num_labels:
            raise ValueError("model: expected a MADE without classes")
        net, order = model.net, model.orders[0]
        self.order = order
        self.x = net.direct.weight.new_empty(batch, model.num_values)
        hidden = [self.x.new_empty(batch, layer.out_features) for layer in net.layers[:-1]]
        weights = [net.layers[0].weight[:, order], *(layer.weight for layer in net.layers[1:])]
        direct = net.direct.weight[:, order]
        if not hidden:
            direct = direct + weights[0]
        known = [0] * len(hidden)
        self.steps = []
        for rank, index in enumerate(order.tolist()):
            units, below = [], self.x[:, :rank]
            for i, (layer, values) in enumerate(zip(net.layers[:-1], hidden, strict=True)):
                # The units of a degree up to the rank come first.
                degrees = 1 + torch.arange(layer.out_features) * (model.num_values - 1) // layer.out_features
                new = slice(known[i], int((degrees <= rank).sum()))
                if new.stop > new.start:
                    weight = weights[i][new, : below.shape[1]].t()
                    units.append((layer.bias[new], below, weight, values[:, new]))
                known[i], below = new.stop, values[:, : new.stop]
            mine = slice(index * net.num_params, (index + 1) * net.num_params)
            terms = [(self.x[:, :rank], direct[mine, :rank].t())]
            if hidden:
                terms.append((below, weights[-1][mine, : below.shape[1]].t()))
            self.steps.append((units, net.layers[-1].bias[mine], terms))
        self.num_uniforms = 1 + model.head.joint
        self.draw = make_draw(model.head, self.x)

    @torch.inference_mode()
    def sample(self, uniform: Tensor) -> Tensor:
        """`uniform` by rank, as the values come."""
        outs = self.x.split(1, 1)
        for (units, bias, terms), noise, out in zip(self.steps, uniform.unbind(0), outs, strict=False):
            for unit_bias, below, weight, values in units:
                torch.addmm(unit_bias, below, weight, out=values).relu_()
            params = bias.expand(len(noise), -1)
            for below, weight in terms:
                params = torch.addmm(params, below, weight)
            self.draw(params, noise, out)
        x = torch.empty_like(self.x).index_copy_(1, self.order, self.x)
        return x[:, : len(uniform)].unsqueeze(1)


#: The loop of each model.
LOOPS = {
    PixelCNNPP: PixelCNNPPLoop,
    WaveNet: WaveNetLoop,
    MADE: MADELoop,
    GatedPixelCNN: GatedPixelCNNLoop,
    PixelCNN: PixelCNNLoop,
}
