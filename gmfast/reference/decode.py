"""Decode programs in plain PyTorch: one matrix product a layer and position, from what is remembered."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .concat_elu import concat_elu

_ACTIVATIONS = {
    "none": lambda y: y,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
    "glu": lambda y: F.glu(y, -1),
    "gate": lambda y: torch.tanh(y.chunk(2, -1)[0]) * torch.sigmoid(y.chunk(2, -1)[1]),
    "concat_elu": lambda y: concat_elu(y, -1),
}


class Decoder:
    """Runs a `gmfast.decode.Program` that has been started."""

    def __init__(self, program):
        self._program, self._steps = program, program._steps()
        self._width = program._builder.width
        self.cursor = (0, 0)
        self._weights, self._offsets = {}, {}
        for layer in program._layers():
            with torch.no_grad():
                dense = [tap.matrix for tap in layer.taps if not tap.depthwise]
                if dense:
                    weight = torch.cat(dense, 1).to(program.weight_dtype)
                    self._weights[layer] = weight.to(program.dtype)
                offset = torch.zeros(layer.sums, dtype=program.dtype, device=program.device)
                if layer.bias is not None:
                    offset = offset + layer.bias
                if layer.embedding is not None:
                    offset = offset + layer.embedding[program._label]
                self._offsets[layer] = offset.to(program.dtype)

    @torch.no_grad()
    def step(self, fed, features, end):
        position, step = self.cursor
        while position < end:
            for index in range(step, len(self._steps)):
                at = self._steps[index]
                if at is None:
                    self._put(self._program._builder.features, position, features[:, :, 0])
                elif isinstance(at, list):
                    self._run(at, position)
                elif fed is None:
                    self.cursor = (position, index)
                    return
                else:
                    self._put_drawn(at, position, fed)
                    fed = None
            position, step = position + 1, 0
        self.cursor = (position, 0)

    @torch.no_grad()
    def sample(self, x, keep, samples, features, seed, temperature, end, progress):
        position, step = self.cursor
        while position < end:
            for at in self._steps[step:]:
                if at is None:
                    self._put(self._program._builder.features, position, features[:, :, position])
                elif isinstance(at, list):
                    self._run(at, position)
                else:
                    self._draw(at, position, x, keep, samples, seed, temperature)
            position, step = position + 1, 0
            self.cursor = (position, 0)
            if progress:
                progress(1)

    def _run(self, layers, position):
        for layer in layers:
            when = layer.when
            row, column = divmod(position, self._width)
            if row < when.first_row or row % when.row_step != when.row_phase:
                continue
            if when.whole_row:
                if column == 0:
                    columns = slice(when.column_phase, self._width, when.column_step)
                    self._compute(layer, row, columns)
            elif column % when.column_step == when.column_phase:
                self._compute(layer, row, slice(column, column + 1, when.column_step))

    def _compute(self, layer, row, columns):
        """`columns`, in a row: a slice of the positions."""

        def see(value, row_away=0, column_away=0, channel=0, channels=None):
            memory = self._program._values[value.index]
            ring_row = (row // value.scale + row_away) % len(memory)
            if value.local:
                seen = memory[ring_row, :1]
            else:
                first = columns.start // value.scale + column_away + self._program._left[value.index]
                count = -(-(columns.stop - columns.start) // columns.step)
                step = columns.step // value.scale
                seen = memory[ring_row, first : first + (count - 1) * step + 1 : step]
            return seen[..., channel : None if channels is None else channel + channels]

        y = self._offsets[layer]
        dense = [tap for tap in layer.taps if not tap.depthwise]
        if dense:
            seen = [see(t.value, t.row, t.column, t.channel, t.weight.shape[1]) for t in dense]
            y = F.linear(torch.cat(seen, -1), self._weights[layer]) + y
        for tap in layer.taps:
            if tap.depthwise:
                w = tap.weight.to(self._program.weight_dtype).to(self._program.dtype)
                y = y + w * see(tap.value, tap.row, tap.column, tap.channel, len(w))
        if layer.add:
            sums = layer.sums
            y = y + see(layer.add.value, channel=layer.add.channel, channels=sums)
        y = _ACTIVATIONS[layer.activation](y)
        if layer.residual:
            residual = layer.residual
            y = y + see(residual.value, channel=residual.channel, channels=layer.outputs)
        for slot, activation in ((layer.out, "none"), (layer.activated, layer.activated_by)):
            if slot:
                made = _ACTIVATIONS[activation](y)
                see(slot.value, channel=slot.channel, channels=made.shape[-1]).copy_(made)

    def _at(self, value, position) -> Tensor:
        """What a value holds at a position, (B, channels)."""
        row, column = divmod(position, self._width)
        memory = self._program._values[value.index]
        column = 0 if value.local else column // value.scale + self._program._left[value.index]
        return memory[row // value.scale % len(memory), column]

    def _put(self, value, position, x):
        self._at(value, position)[:, : x.shape[1]] = x

    def _put_drawn(self, draw, position, x):
        to = self._at(draw.value.value, position)[:, draw.value.channel :]
        to[:, : draw.channels] = x
        if draw.ones:
            to[:, draw.channels] = 1

    def _draw(self, draw, position, x, keep, samples, seed, temperature):
        at = position if draw.position is None else draw.position
        mine = slice(draw.first_channel, draw.first_channel + draw.channels)
        kept = None if keep is None else keep[:, mine, at].bool()
        if kept is None or not kept.all():
            count = draw.head.num_params(draw.total_channels)
            params = self._at(draw.params, position)[:, :count].unsqueeze(2)
            if not torch.equal(samples, torch.arange(len(samples), device=samples.device)):
                # The head counts from 0.
                rows = params.new_zeros(int(samples.max()) + 1, *params.shape[1:])
                params = rows.index_copy(0, samples, params)
            drawn = draw.head.sample(
                params, draw.total_channels, seed=seed, temperature=temperature, position=at
            )[samples][:, mine, 0]
            x[:, mine, at] = drawn if kept is None else torch.where(kept, x[:, mine, at], drawn)
        self._put_drawn(draw, position, x[:, mine, at])
