"""A decode program in the making: the values that layers make at each position, the layers, and the draws.

Positions are the pixels of an image in raster order, or the samples of a sound, which is an image one column
wide. csrc/decode.h says what a layer computes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

#: Activations of two sums each: of a and b, tanh(a)·sigmoid(b) and a·sigmoid(b).
GATES = ("gate", "glu")
#: In the order of DecodeActivation.
ACTIVATIONS = ("none", "relu", "elu", "silu", *GATES, "concat_elu")


@dataclass(eq=False)
class Value:
    """What a layer makes at each position of a grid that has every `scale`-th row and column."""

    channels: int
    scale: int = 1
    index: int = 0
    # How far its readers look, in rows up and columns to both sides.
    above: int = 0
    left: int = 0
    right: int = 0
    # Whether it is only looked at where it has just been made: then one position is kept.
    local: bool = True

    def __getitem__(self, channel: int) -> "Slot":
        """The channels from `channel` on."""
        return Slot(self, channel)


@dataclass(frozen=True)
class Slot:
    """Channels of a value from `channel` on."""

    value: Value
    channel: int = 0


@dataclass(frozen=True, eq=False)
class Tap:
    """`weight` (sums, channels) times as many channels of a value from `channel` on, `row` rows and `column`
    columns of the value's grid away; depthwise for a weight (sums,), which sees its own channels."""

    value: Value
    weight: Tensor
    row: int = 0
    column: int = 0
    channel: int = 0

    @property
    def depthwise(self) -> bool:
        return self.weight.dim() == 1

    @property
    def matrix(self) -> Tensor:
        """A column for each row of a panel."""
        return self.weight.unsqueeze(1) if self.depthwise else self.weight


@dataclass(frozen=True)
class When:
    """The positions where a layer runs: rows from `first_row` on and columns that leave the phases when
    divided by the steps. With `whole_row`, all columns at once before a row's first pixel."""

    row_step: int = 1
    column_step: int = 1
    row_phase: int = 0
    column_phase: int = 0
    whole_row: bool = False
    first_row: int = 0

    def runs(self, row: int, column: int) -> bool:
        """Whether it runs at a position; with `whole_row` at the row's first."""
        if row < self.first_row or row % self.row_step != self.row_phase:
            return False
        return column == 0 if self.whole_row else column % self.column_step == self.column_phase


@dataclass(eq=False)
class Layer:
    taps: list[Tap]
    outputs: int
    activation: str
    bias: Tensor | None
    embedding: Tensor | None  # (labels, sums): a bias for each label
    add: Slot | None
    residual: Slot | None
    out: Slot | None
    activated: Slot | None
    activated_by: str
    when: When

    @property
    def sums(self) -> int:
        return self.outputs * (2 if self.activation in GATES else 1)

    @property
    def reads(self) -> set[Value]:
        operands = {slot.value for slot in (self.add, self.residual) if slot}
        return operands | {tap.value for tap in self.taps}

    @property
    def writes(self) -> set[Value]:
        return {slot.value for slot in (self.out, self.activated) if slot}


@dataclass(eq=False)
class Draw:
    """`channels` channels from `first_channel` on of `total_channels`, drawn by `head` from what a value
    holds for all of them, and put into `value` (with a 1 behind them if `ones`). `position`: in the result
    and in the noise, if that is not where the program is. Without a head the values are always given."""

    head: object
    params: Value | None
    num_params: int
    params_channel: int
    value: Slot
    channels: int
    first_channel: int
    total_channels: int
    ones: bool
    position: int | None


@dataclass
class Builder:
    """Collects a program for images of `height` rows (None: without end) and `width` columns."""

    height: int | None
    width: int
    values: list[Value] = field(default_factory=list)
    rows: list[Layer] = field(default_factory=list)
    steps: list[Layer | Draw] = field(default_factory=list)
    features: Value | None = None
    #: What `step` returns, where there is no draw: what has been made of the input.
    output: Value | None = None

    def value(self, channels: int, scale: int = 1) -> Value:
        self.values.append(Value(channels, scale, len(self.values)))
        return self.values[-1]

    def local_features(self, channels: int) -> Value:
        """What comes with each position from outside."""
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
        """Appends a layer. `activated` gets what `out` gets, through `activated_by`; `outputs` is needed
        without taps. Layers of whole rows come before all others, in their own order."""
        if taps:
            outputs = taps[0].weight.shape[0] // (2 if activation in GATES else 1)
        layer = Layer(
            list(taps),
            outputs,
            activation,
            bias,
            embedding,
            *(Slot(s) if isinstance(s, Value) else s for s in (add, residual, out, activated)),
            activated_by,
            when or When(),
        )
        (self.rows if layer.when.whole_row else self.steps).append(layer)

    def draw(
        self,
        head,
        params: Value | None,
        value: Value | Slot,
        *,
        channels: int = 1,
        first_channel: int = 0,
        total_channels: int | None = None,
        ones: bool = False,
        position: int | None = None,
    ) -> None:
        """Appends a draw by one of `gmfast.models.heads`: of all `total_channels` together or, where the head
        predicts each by itself, of one."""
        total_channels = total_channels or channels
        if head is None:
            num_params = 0 if params is None else params.channels * channels // total_channels
        else:
            num_params = head.num_params(channels)
        params_channel = num_params * first_channel // channels
        value = Slot(value) if isinstance(value, Value) else value
        self.steps.append(
            Draw(
                head,
                params,
                num_params,
                params_channel,
                value,
                channels,
                first_channel,
                total_channels,
                ones,
                position,
            )
        )

    def split_rows(self) -> None:
        """Moves what pixels see of finished rows into layers of whole rows: these do in one product of
        matrices, and with one reading of the weights, what each pixel would do by itself."""
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

    def measure(self) -> None:
        """Works out how much of each value its readers need."""
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

    def stages(self) -> list[list[Layer] | Draw]:
        """Layers in their order, those that do not look at each other together, and draws."""
        stages = []
        for step in (*self.rows, *self.steps):
            stage = stages[-1] if stages else None
            if isinstance(step, Layer) and isinstance(stage, list) and _independent(stage, step):
                stage.append(step)
            else:
                stages.append([step] if isinstance(step, Layer) else step)
        return stages


def _independent(stage: list[Layer], layer: Layer) -> bool:
    if layer.when.whole_row != stage[0].when.whole_row:
        return False
    for other in stage:
        if layer.reads & other.writes or layer.writes & other.reads:
            return False
        if layer.writes & other.writes and layer.when == other.when:
            return False
    return True


def conv_taps(value: Value, weight: Tensor, row: int, column: int) -> list[Tap]:
    """The taps of a kernel (sums, channels, height, width) whose first one is at (row, column)."""
    return [
        Tap(value, weight[:, :, i, j], row + i, column + j)
        for i in range(weight.shape[2])
        for j in range(weight.shape[3])
    ]


def masked_conv_taps(value: Value, layer: nn.Conv2d, group: int = 0) -> tuple[list[Tap], Tensor | None]:
    """What the outputs of a `MaskedConv2d` in a group of channels see, and their bias."""
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
    """What the outputs of a `CausalConv1d` in a group see, or all of a depthwise one's, the last of it `row`
    rows away."""
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
    """The matrix of a linear layer, or of a convolution with one tap."""
    return torch.flatten(layer.weight, 1)
