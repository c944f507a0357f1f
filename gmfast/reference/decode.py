"""Executor of decode programs in plain PyTorch: one matrix product for each layer and position.

`docs/decode.md` defines the words: value, ring, tap, step, draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _seed
from .concat_elu import concat_elu

if TYPE_CHECKING:
    from ..decode.builder import Draw, Layer, Plan, Value
    from ..decode.packing import Format, State
    from ..decode.request import SampleRequest

#: By the names of DecodeActivation (csrc/args/decode.h); the second half of a gate's sums are the gates.
ACTIVATIONS = {
    "none": lambda y: y,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gate": lambda y: torch.tanh(y.chunk(2, -1)[0]) * torch.sigmoid(y.chunk(2, -1)[1]),
    "glu": lambda y: F.glu(y, -1),
    "concat_elu": lambda y: concat_elu(y, -1),
}


class ReferenceExecutor:
    """Runs a program on one batch; `cursor` is the position and the step that come next."""

    def __init__(self, plan: Plan, form: Format, state: State):
        self._plan, self._form, self._rings = plan, form, state.rings
        self.cursor = (0, 0)
        self._weights, self._biases = {}, {}
        for layer in plan.layers:
            with torch.no_grad():
                dense = [tap.matrix for tap in layer.taps if not tap.depthwise]
                if dense:
                    self._weights[layer] = self._rounded(torch.cat(dense, 1))
                bias = torch.zeros(layer.sums, dtype=form.dtype, device=form.device)
                if layer.bias is not None:
                    bias = bias + layer.bias
                if layer.embedding is not None:
                    bias = bias + layer.embedding[state.label]
                self._biases[layer] = bias.to(form.dtype)

    @torch.no_grad()
    def step(self, fed: Tensor | None, features: Tensor | None, end: int) -> None:
        """Feed the draw at the cursor and run to the next one, or to the position `end`."""
        position, step = self.cursor
        while position < end:
            for index in range(step, len(self._plan.steps)):
                at = self._plan.steps[index]
                if at is None:
                    self._put(self._plan.features, position, features[:, :, 0])
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
    def sample(self, request: SampleRequest) -> None:
        """Draw the requested positions from the cursor on."""
        position, step = self.cursor
        while position < request.end:
            for at in self._plan.steps[step:]:
                if at is None:
                    self._put(self._plan.features, position, request.features[:, :, position])
                elif isinstance(at, list):
                    self._run(at, position)
                else:
                    self._draw(at, position, request)
            position, step = position + 1, 0
            self.cursor = (position, 0)
            if request.progress:
                request.progress(1)

    def _rounded(self, weight: Tensor) -> Tensor:
        """Return a weight as stored in the program, in the dtype of arithmetic."""
        return weight.to(self._form.weight_dtype).to(self._form.dtype)

    def _run(self, layers: list[Layer], position: int) -> None:
        """Run those of the layers whose phase it is."""
        row, column = divmod(position, self._plan.width)
        for layer in layers:
            when = layer.when
            if not when.runs(row, column):
                continue
            if when.whole_row:
                self._compute(layer, row, slice(when.column_phase, self._plan.width, when.column_step))
            else:
                self._compute(layer, row, slice(column, column + 1, when.column_step))

    def _compute(self, layer: Layer, row: int, columns: slice) -> None:
        """Compute a layer at some columns of a row of the image."""

        def read(value, row_offset=0, column_offset=0, channel=0, channels=None):
            ring = self._rings[value.index]
            ring_row = (row // value.scale + row_offset) % len(ring)
            if value.local:
                seen = ring[ring_row, :1]
            else:
                first = columns.start // value.scale + column_offset + value.first_column
                count = -(-(columns.stop - columns.start) // columns.step)
                step = columns.step // value.scale
                seen = ring[ring_row, first : first + (count - 1) * step + 1 : step]
            return seen[..., channel : None if channels is None else channel + channels]

        y = self._biases[layer]
        dense = [tap for tap in layer.taps if not tap.depthwise]
        if dense:
            seen = [read(t.value, t.row, t.column, t.channel, t.channels) for t in dense]
            y = F.linear(torch.cat(seen, -1), self._weights[layer]) + y
        for tap in layer.taps:
            if tap.depthwise:
                seen = read(tap.value, tap.row, tap.column, tap.channel, tap.channels)
                y = y + self._rounded(tap.weight) * seen
        if layer.add:
            y = y + read(layer.add.value, channel=layer.add.channel, channels=layer.sums)
        y = ACTIVATIONS[layer.activation](y)
        if layer.residual:
            y = y + read(layer.residual.value, channel=layer.residual.channel, channels=layer.outputs)
        for slot, activation in ((layer.out, "none"), (layer.activated, layer.activated_by)):
            if slot:
                made = ACTIVATIONS[activation](y)
                read(slot.value, channel=slot.channel, channels=made.shape[-1]).copy_(made)

    def _at(self, value: Value, position: int) -> Tensor:
        """Return a view of a value at a position, (batch, channels)."""
        row, column = divmod(position, self._plan.width)
        ring = self._rings[value.index]
        column = 0 if value.local else column // value.scale + value.first_column
        return ring[row // value.scale % len(ring), column]

    def _put(self, value: Value, position: int, x: Tensor) -> None:
        self._at(value, position)[:, : x.shape[1]] = x

    def _put_drawn(self, draw: Draw, position: int, x: Tensor) -> None:
        to = self._at(draw.value.value, position)[:, draw.value.channel :]
        to[:, : draw.channels] = x
        if draw.ones:
            to[:, draw.channels] = 1

    def _draw(self, draw: Draw, position: int, request: SampleRequest) -> None:
        """Draw the channels that are not given, into the result and into the draw's value."""
        at = position if draw.position is None else draw.position
        mine = slice(draw.first_channel, draw.first_channel + draw.channels)
        x, samples = request.x, request.samples
        kept = None if request.keep is None else request.keep[:, mine, at].bool()
        if kept is None or not kept.all():
            count = draw.head.num_params(draw.total_channels)
            params = self._at(draw.params, position)[:, :count].unsqueeze(2)
            first = min(samples.tolist(), default=0)
            rows = samples - first  # the head draws for consecutive samples
            if not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
                spread = params.new_zeros(int(rows.max()) + 1, *params.shape[1:])
                params = spread.index_copy(0, rows, params)
            noise = {"seed": request.seed, "temperature": request.temperature, "position": at}
            with _seed.first_sample(first):
                drawn = draw.head.sample(params, draw.total_channels, **noise)[rows][:, mine, 0]
            x[:, mine, at] = drawn if kept is None else torch.where(kept, x[:, mine, at], drawn)
        self._put_drawn(draw, position, x[:, mine, at])
