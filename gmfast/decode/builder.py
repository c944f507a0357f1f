"""Description of a decode program: values, layers and draws, before anything is packed or run.

`docs/decode.md` defines the words. A model's `decoder()` fills a `Builder`; `Builder.plan` completes it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

#: Activations of two sums each: of a and b, tanh(a)·sigmoid(b) and a·sigmoid(b).
GATES = ("gate", "glu")


@dataclass(eq=False)
class Value:
    """Feature map that a layer, a draw or the local features write at each position of a grid.

    The grid has every `scale`-th row and column of the image. `above`, `left` and `right` are the farthest
    offsets at which layers read the value: so many rows and columns are kept besides the current ones.
    """

    channels: int
    scale: int = 1
    index: int = 0
    above: int = 0
    left: int = 0
    right: int = 0
    #: Whether layers read it only where it was just written: then a row of its ring has one column.
    local: bool = True

    def __getitem__(self, channel: int) -> "Slot":
        """Return the slot of the channels from `channel` on."""
        return Slot(self, channel)

    @property
    def first_column(self) -> int:
        """Column of the ring where column 0 of the grid is, behind the padding."""
        return 0 if self.local else self.left

    def ring_shape(self, width: int, batch: int) -> tuple[int, int, int, int]:
        """Shape of the ring: rows, columns, samples, and channels rounded up to a multiple of 16."""
        columns = 1 if self.local else self.left + math.ceil(width / self.scale) + self.right
        return self.above + 1, columns, batch, -(-self.channels // 16) * 16


@dataclass(frozen=True)
class Slot:
    """Channels of a value from `channel` on."""

    value: Value
    channel: int = 0


@dataclass(frozen=True, eq=False)
class Tap:
    """One offset of a convolution's kernel: `weight` times the channels of a value from `channel` on.

    The value is read `row` rows and `column` columns of its grid from the layer's position. `weight` is
    (sums, channels), or (sums,) for a depthwise tap, whose sum c reads channel c alone.
    """

    value: Value
    weight: Tensor
    row: int = 0
    column: int = 0
    channel: int = 0

    @property
    def depthwise(self) -> bool:
        """True if each sum reads its own channel alone."""
        return self.weight.dim() == 1

    @property
    def channels(self) -> int:
        """Number of channels that are read."""
        return self.weight.shape[0] if self.depthwise else self.weight.shape[1]

    @property
    def matrix(self) -> Tensor:
        """Weight as a matrix, (sums, channels), or (sums, 1) if depthwise."""
        return self.weight.unsqueeze(1) if self.depthwise else self.weight


@dataclass(frozen=True)
class When:
    """Positions at which a layer runs.

    Rows from `first_row` on and columns which, modulo the steps, equal the phases. With `whole_row` the layer
    runs for all its columns at once, before the row's first pixel.
    """

    row_step: int = 1
    column_step: int = 1
    row_phase: int = 0
    column_phase: int = 0
    whole_row: bool = False
    first_row: int = 0

    def runs(self, row: int, column: int) -> bool:
        """Return whether the layer runs at a position; with `whole_row`, at the row's first one."""
        if row < self.first_row or row % self.row_step != self.row_phase:
            return False
        return column == 0 if self.whole_row else column % self.column_step == self.column_phase


@dataclass(eq=False)
class Layer:
    """Layer of a program: y = activation(bias + embedding + taps + add) + residual.

    `out` receives y and `activated` receives `activated_by`(y); one of them may be None. `embedding`
    (labels, sums) is a bias for each class. `add` and `residual` are read at the layer's own position.
    """

    taps: list[Tap]
    outputs: int
    activation: str
    bias: Tensor | None
    embedding: Tensor | None
    add: Slot | None
    residual: Slot | None
    out: Slot | None
    activated: Slot | None
    activated_by: str
    when: When

    @property
    def sums(self) -> int:
        """Number of arguments of the activation: two for each output of a gate."""
        return self.outputs * (2 if self.activation in GATES else 1)

    @property
    def reads(self) -> set[Value]:
        """Values that the layer reads."""
        operands = {slot.value for slot in (self.add, self.residual) if slot}
        return operands | {tap.value for tap in self.taps}

    @property
    def writes(self) -> set[Value]:
        """Values that the layer writes."""
        return {slot.value for slot in (self.out, self.activated) if slot}

    def copy_weights(self, packed: bool) -> None:
        """Replace weights by copies, which further training of the model does not change.

        Once the layer is `packed`, only the embedding is still read.
        """
        self.embedding = _copy(self.embedding)
        if not packed:
            self.bias = _copy(self.bias)
            self.taps = [replace(tap, weight=_copy(tap.weight)) for tap in self.taps]


def _copy(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach().clone()


@dataclass(eq=False)
class Draw:
    """Draw of `channels` channels from `first_channel` on, out of `total_channels`.

    `head` samples them from `num_params` parameters, the channels of `params` from `params_channel` on;
    `value` receives them, followed by a 1 if `ones`. `position` is the index in the result and in the noise,
    if that is not the program's position. Without a head the channels are always given.
    """

    head: Any
    params: Value | None
    num_params: int
    params_channel: int
    value: Slot
    channels: int
    first_channel: int
    total_channels: int
    ones: bool
    position: int | None


#: What a program executes in turn at each position: independent layers, a draw, or (None) the loading of the
#: local features.
Step = list[Layer] | Draw | None


@dataclass(frozen=True)
class Plan:
    """Complete description of a program, with the layers ordered into steps.

    `height` (None: without end) and `width` are those of the image. `output` is the value that
    `Program.step` returns, for a program whose only draw is its given input.
    """

    height: int | None
    width: int
    values: list[Value]
    steps: list[Step]
    features: Value | None
    output: Value | None

    @property
    def length(self) -> int | None:
        """Number of positions, or None without end."""
        return None if self.height is None else self.height * self.width

    @property
    def end(self) -> int:
        """Position behind the last one."""
        return 2**62 if self.length is None else self.length

    @property
    def layers(self) -> list[Layer]:
        """All layers in the order of the steps."""
        return [layer for step in self.steps if isinstance(step, list) for layer in step]

    @property
    def draws(self) -> list[Draw]:
        """All draws in the order of the steps."""
        return [step for step in self.steps if isinstance(step, Draw)]

    def draw_at(self, position: int, step: int) -> Draw | None:
        """Return the draw at which a cursor is; None elsewhere, and behind the last position."""
        at = self.steps[step] if position < self.end else None
        return at if isinstance(at, Draw) else None

    def is_last_draw(self, position: int, step: int) -> bool:
        """Return whether a cursor is at the draw behind which the program predicts nothing more."""
        if self.output is not None or position + 1 != self.length or not self.draw_at(position, step):
            return False
        return not any(isinstance(later, Draw) for later in self.steps[step + 1 :])


@dataclass
class Builder:
    """Collects a program for images of `height` rows (None: without end) and `width` columns."""

    height: int | None
    width: int
    values: list[Value] = field(default_factory=list)
    #: Layers of whole rows, which run before all others.
    rows: list[Layer] = field(default_factory=list)
    steps: list[Layer | Draw] = field(default_factory=list)
    features: Value | None = None
    #: Value that `Program.step` returns, where no draw has parameters.
    output: Value | None = None

    def value(self, channels: int, scale: int = 1) -> Value:
        """Append a value whose grid has every `scale`-th row and column."""
        self.values.append(Value(channels, scale, len(self.values)))
        return self.values[-1]

    def local_features(self, channels: int) -> Value:
        """Append the value of the local features, which come with each position from outside."""
        self.features = self.value(channels)
        return self.features

    def layer(
        self,
        taps: Sequence[Tap],
        bias: Tensor | None = None,
        *,
        outputs: int | None = None,
        embedding: Tensor | None = None,
        activation: str = "none",
        add: Value | Slot | None = None,
        residual: Value | Slot | None = None,
        out: Value | Slot | None = None,
        activated: Value | Slot | None = None,
        activated_by: str = "none",
        when: When | None = None,
    ) -> None:
        """Append a layer; `Layer` describes the arguments.

        `outputs` is needed without taps. Layers of whole rows run before all others, in their own order.
        """
        if taps:
            outputs = taps[0].weight.shape[0] // (2 if activation in GATES else 1)
        layer = Layer(
            taps=list(taps),
            outputs=outputs,
            activation=activation,
            bias=bias,
            embedding=embedding,
            add=_slot(add),
            residual=_slot(residual),
            out=_slot(out),
            activated=_slot(activated),
            activated_by=activated_by,
            when=when or When(),
        )
        (self.rows if layer.when.whole_row else self.steps).append(layer)

    def draw(
        self,
        head: Any,
        params: Value | None,
        value: Value | Slot,
        *,
        channels: int = 1,
        first_channel: int = 0,
        total_channels: int | None = None,
        ones: bool = False,
        position: int | None = None,
    ) -> None:
        """Append a draw by one of the heads of `gmfast.models`; `Draw` describes the arguments.

        Where the head predicts channels independently, each has a draw of its own.
        """
        total_channels = total_channels or channels
        if head is None:
            num_params = 0 if params is None else params.channels * channels // total_channels
        else:
            num_params = head.num_params(channels)
        self.steps.append(
            Draw(
                head=head,
                params=params,
                num_params=num_params,
                params_channel=num_params * first_channel // channels,
                value=_slot(value),
                channels=channels,
                first_channel=first_channel,
                total_channels=total_channels,
                ones=ones,
                position=position,
            )
        )

    def plan(self) -> Plan:
        """Complete the program: move work to whole rows, size the rings, and order layers into steps."""
        self._split_rows()
        self._measure()
        return Plan(self.height, self.width, self.values, self._ordered(), self.features, self.output)

    def _split_rows(self) -> None:
        """Move the taps that read finished rows into layers of whole rows.

        One matrix product, with one reading of the weights, then does what each pixel would do by itself.
        """
        if self.width == 1:
            return
        by_row = {value for layer in self.rows for value in layer.writes}
        for layer in self.steps:
            if isinstance(layer, Draw) or (layer.add and layer.add.value not in by_row):
                continue
            finished = [tap for tap in layer.taps if tap.row < 0 or tap.value in by_row]
            if finished:
                sums = self.value(layer.sums, (layer.out or layer.activated).value.scale)
                self.layer(finished, add=layer.add, out=sums, when=replace(layer.when, whole_row=True))
                layer.taps = [tap for tap in layer.taps if tap not in finished]
                layer.add = Slot(sums)

    def _measure(self) -> None:
        """Find how far back and to the sides each value is read."""
        for layer in (*self.rows, *self.steps):
            if isinstance(layer, Draw):
                continue
            when = layer.when
            for value in layer.writes:
                value.local &= not when.whole_row
            for tap in layer.taps:
                value = tap.value
                value.above = max(value.above, -tap.row)
                value.left = max(value.left, -tap.column)
                value.right = max(value.right, tap.column)
                at_once = when == When(value.scale, value.scale)
                value.local &= at_once and tap.row == tap.column == 0
            for slot in (layer.add, layer.residual):
                if slot and when.whole_row:
                    slot.value.local = False

    def _ordered(self) -> list[Step]:
        """Return draws and layers in their order, with successive independent layers in one step."""
        steps: list[Step] = [] if self.features is None else [None]
        for item in (*self.rows, *self.steps):
            last = steps[-1] if steps else None
            if isinstance(item, Layer) and isinstance(last, list) and _independent(last, item):
                last.append(item)
            else:
                steps.append([item] if isinstance(item, Layer) else item)
        return steps


def _slot(operand: Value | Slot | None) -> Slot | None:
    return Slot(operand) if isinstance(operand, Value) else operand


def _independent(group: list[Layer], layer: Layer) -> bool:
    """Return whether a layer can run at the same time as those of a group."""
    if layer.when.whole_row != group[0].when.whole_row:
        return False
    for other in group:
        if layer.reads & other.writes or layer.writes & other.reads:
            return False
        if layer.writes & other.writes and layer.when == other.when:
            return False
    return True


def conv_taps(value: Value, weight: Tensor, row: int, column: int) -> list[Tap]:
    """Return the taps of a kernel (sums, channels, height, width), the first of them at (row, column)."""
    return [
        Tap(value, weight[:, :, i, j], row + i, column + j)
        for i in range(weight.shape[2])
        for j in range(weight.shape[3])
    ]


def masked_conv_taps(value: Value, layer: nn.Conv2d, group: int = 0) -> tuple[list[Tap], Tensor | None]:
    """Return the taps and the bias of the outputs of a `MaskedConv2d` in one of its channel groups."""
    groups = layer.channel_groups
    outputs, inputs = layer.out_channels // groups, layer.in_channels // groups
    mine = slice(group * outputs, (group + 1) * outputs)
    weight = layer.weight[mine]
    (height, width), (down, right) = layer.kernel_size, layer.dilation
    taps = []
    for i in range(height // 2 + 1):
        for j in range(width):
            row, column = (i - height // 2) * down, (j - width // 2) * right
            if row < 0 or column < 0:
                taps.append(Tap(value, weight[:, :, i, j], row, column))
    seen = inputs * (group + (layer.mask_type == "B"))
    if seen:
        taps.append(Tap(value, weight[:, :seen, height // 2, width // 2]))
    return taps, None if layer.bias is None else layer.bias[mine]


def causal_conv_taps(value: Value, layer: nn.Conv1d, row: int = 0, group: int = 0) -> list[Tap]:
    """Return the taps of the outputs of a `CausalConv1d` in one of its groups, the last of them at `row`.

    A depthwise convolution has depthwise taps for all of its channels.
    """
    depthwise = layer.groups == layer.in_channels == layer.out_channels > 1
    outputs, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    taps, size = [], layer.kernel_size[0]
    for i in range(size):
        weight = layer.weight[group * outputs : (group + 1) * outputs, :, i]
        weight = layer.weight[:, 0, i] if depthwise else weight
        back = row - (size - 1 - i) * layer.dilation[0]
        taps.append(Tap(value, weight, back, channel=group * inputs))
    return taps


def matrix(layer: nn.Module) -> Tensor:
    """Return the matrix (outputs, inputs) of a linear layer or of a convolution with one tap."""
    return torch.flatten(layer.weight, 1)
