"""Memory of a decode program: formats, rings of values, panels of weights, and structs that point to both.

`docs/decode.md` defines the words, `csrc/args/decode.h` the structs. `pack` and what follows need the
compiled library.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _library
from .builder import GATES, Draw, Layer, Plan, Slot, Step, Tap, Value


@dataclass(frozen=True)
class Format:
    """Storage format of a program's numbers, and the kernels that compute with them.

    `dtype` is that of values and arithmetic. `kernels` is a device type, or None for plain PyTorch.
    """

    dtype: torch.dtype
    weight_dtype: torch.dtype
    device: torch.device
    kernels: str | None

    @classmethod
    def of(cls, like: Tensor, weights: str | None = None) -> "Format":
        """Return the format for a model with the dtype and device of `like`.

        Raises:
            ValueError: `weights` is neither None nor "bfloat16", or that for a model in float64.
        """
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        if weights not in (None, "bfloat16", _name(dtype)):
            raise ValueError(
                f'weights: expected None or "bfloat16" for a model in {_name(like.dtype)}, got {weights!r}'
            )
        weight_dtype = dtype
        if weights == "bfloat16" or (weights is None and like.dtype == torch.bfloat16):
            if dtype == torch.float64:
                raise ValueError("weights: expected None for a model in float64, got 'bfloat16'")
            weight_dtype = torch.bfloat16
        kernels = like.device.type if like.device.type in _library.devices else None
        return cls(dtype, weight_dtype, like.device, kernels)


# ---- Values: rings ----------------------------------------------------------------------------------------


@dataclass
class State:
    """Cached activations of one batch: the ring of each value, (rows, columns, samples, channels)."""

    batch: int
    label: Tensor | None
    rings: list[Tensor]

    @classmethod
    def zeros(cls, plan: Plan, form: Format, batch: int, label: Tensor | None) -> "State":
        """Return the state before the first position."""
        rings = []
        for value in plan.values:
            shape = torch.Size(value.ring_shape(plan.width, batch))
            # A vector load may reach beyond the last channel.
            memory = torch.zeros(shape.numel() + 64, dtype=form.dtype, device=form.device)
            rings.append(memory[: shape.numel()].view(shape))
        return cls(batch, label, rings)


# ---- Weights: panels --------------------------------------------------------------------------------------


class Weights(NamedTuple):
    """A layer's weight, [panel][channel of all taps][sum], and bias, [panel][sum]."""

    weight: Tensor
    bias: Tensor


@dataclass
class Packed:
    """Packed weights of a program, and the structs that are the same for all batches.

    `taps` are empty on a GPU: strips hold addresses of rings, which each batch has of its own.
    """

    plan: Plan
    form: Format
    weights: list[Weights]

    @functools.cached_property
    def structs(self) -> dict[str, list[Any]]:
        """Arguments of `_C.DecodeProgram`: taps, layers without a label's bias, draws and steps."""
        taps, layers, first = [], [], 0
        for layer, (weight, bias) in zip(self.plan.layers, self.weights, strict=True):
            if self.form.kernels == "cuda":
                count = sum(len(_split(tap)) for tap in layer.taps)
            else:
                count = len(layer.taps)
                taps += map(_tap, layer.taps)
            layers.append(_layer(layer, first, count, weight, bias, None))
            first += count
        draws = [_draw(draw) for draw in self.plan.draws]
        return {"taps": taps, "layers": layers, "draws": draws, "steps": list(_steps(self.plan.steps))}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the structs, which hold addresses, from copies and pickles."""
        return {name: value for name, value in vars(self).items() if name != "structs"}


@torch.no_grad()
def pack(plan: Plan, form: Format) -> Packed:
    """Pack the weights of each layer into panels."""
    weights = []
    for layer in plan.layers:
        bias = torch.zeros(layer.sums, device=form.device) if layer.bias is None else layer.bias
        weights.append(Weights(_pack_weight(layer, form), _pack_biases(layer, bias.unsqueeze(0), form)))
    return Packed(plan, form, weights)


def _pack_weight(layer: Layer, form: Format) -> Tensor:
    """Pack the matrices of all taps into panels.

    In bfloat16 on the CPU, pairs of channels of a tap are interleaved: [panel][pair][sum][2].
    """
    if not layer.taps:
        return torch.zeros(0, dtype=form.weight_dtype, device=form.device)
    pairs = form.weight_dtype == torch.bfloat16 and form.kernels == "cpu"
    matrices = [tap.matrix.to(form.weight_dtype) for tap in layer.taps]
    if pairs:
        matrices = [F.pad(m, (0, m.shape[1] % 2)) for m in matrices]
    panels = _panels(layer, torch.cat(matrices, 1), form)
    if pairs:
        panels = panels.unflatten(2, (-1, 2))
    return panels.transpose(1, 2).contiguous()


def _pack_biases(layer: Layer, biases: Tensor, form: Format) -> Tensor:
    """Pack N biases, (N, sums), into panels: [n][panel][sum]."""
    panels = _panels(layer, biases.detach().to(form.dtype).t(), form)
    return panels.permute(2, 0, 1).contiguous()


def _panels(layer: Layer, rows: Tensor, form: Format) -> Tensor:
    """Split (sums, N) into (panels, sums of a panel, N), padded with zeros.

    The second half of a gate's panel holds the gates of the first half.
    """
    if form.kernels == "cuda":
        width = _library._C.decode_cuda_panel
    else:
        width = _library._C.decode_panel(element_size=form.dtype.itemsize)
    parts = rows.split(layer.outputs) if layer.activation in GATES else (rows,)
    width //= len(parts)
    missing = -layer.outputs % width
    parts = [F.pad(part, (0, 0, 0, missing)).unflatten(0, (-1, width)) for part in parts]
    return torch.cat(parts, 1)


# ---- Structs that point to both ---------------------------------------------------------------------------


class Structs(NamedTuple):
    """Keyword arguments of `_C.DecodeProgram`, and the tensors whose memory they point to."""

    arguments: dict[str, Any]
    memory: list[Tensor]


@torch.no_grad()
def structs(packed: Packed, state: State) -> Structs:
    """Describe a program on one batch to the kernels."""
    plan, form = packed.plan, packed.form
    memory = [*state.rings, *itertools.chain(*packed.weights)]
    values = [_value(value, ring) for value, ring in zip(plan.values, state.rings, strict=True)]
    arguments = {**packed.structs, "layers": [*packed.structs["layers"]], "values": values}
    for i, (layer, (weight, bias)) in enumerate(zip(plan.layers, packed.weights, strict=True)):
        if layer.embedding is not None:
            context = _pack_biases(layer, layer.embedding[state.label], form)
            memory.append(context)
            without = arguments["layers"][i]
            arguments["layers"][i] = _layer(layer, without.first_tap, without.taps, weight, bias, context)
    if form.kernels == "cuda":
        pairs = zip(plan.layers, packed.weights, strict=True)
        arguments["taps"] = [s for layer, own in pairs for s in _strips(layer, own.weight, values)]
    scales = [draw.head.log_scale_min for draw in plan.draws if hasattr(draw.head, "log_scale_min")]
    arguments |= {
        "dtype": _library._C.DType[_name(form.dtype)],
        "weight_dtype": _library._C.DType[_name(form.weight_dtype)],
        "columns": plan.width,
        "features": _slot(plan.features and Slot(plan.features)),
        "num_features": plan.features.channels if plan.features else 0,
        "log_scale_min": scales[-1] if scales else -7.0,
    }
    return Structs(arguments, memory)


def pointer(tensor: Tensor | None) -> int:
    """Return the address of a tensor's first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _value(value: Value, ring: Tensor) -> Any:
    row, column, sample, _ = ring.stride()
    return _library._C.DecodeValue(
        data=ring.data_ptr() + value.first_column * column * ring.element_size(),
        scale=value.scale,
        rows=len(ring),
        row_stride=row,
        column_stride=0 if value.local else column,
        sample_stride=sample,
    )


def _slot(slot: Slot | None) -> Any:
    return _channels(-1, 0) if slot is None else _channels(slot.value.index, slot.channel)


@functools.lru_cache(4096)  # programs of thousands of layers repeat few slots
def _channels(value: int, channel: int) -> Any:
    return _library._C.DecodeSlot(value=value, channel=channel)


def _tap(tap: Tap) -> Any:
    return _library._C.DecodeTap(
        value=tap.value.index,
        row=tap.row,
        column=tap.column,
        channel=tap.channel,
        channels=tap.channels,
        depthwise=tap.depthwise,
    )


def _strips(layer: Layer, weight: Tensor, values: list[Any]) -> Iterator[Any]:
    """Yield the taps in strips of at most as many channels as a panel of the GPU has sums."""
    panel, row = _library._C.decode_cuda_panel, 0
    for tap in layer.taps:
        for first, channels in _split(tap):
            yield _library._C.DecodeStrip(
                value=values[tap.value.index],
                row=tap.row,
                column=tap.column,
                channel=tap.channel + first,
                channels=channels,
                depthwise=tap.depthwise,
                weight=weight.data_ptr() + row * panel * weight.element_size(),
                panel_size=weight.stride(0),
            )
            row += 1 if tap.depthwise else channels


def _split(tap: Tap) -> list[tuple[int, int]]:
    """Return the first channel and the number of channels of each of a tap's strips."""
    if tap.depthwise:
        return [(0, tap.channels)]
    most = _library._C.decode_cuda_panel
    return [(first, min(most, tap.channels - first)) for first in range(0, tap.channels, most)]


def _layer(
    layer: Layer, first_tap: int, taps: int, weight: Tensor, bias: Tensor, context: Tensor | None
) -> Any:
    C, when = _library._C, layer.when
    return C.DecodeLayer(
        first_tap=first_tap,
        taps=taps,
        weight=pointer(weight),
        bias=pointer(bias),
        context=pointer(context),
        outputs=layer.outputs,
        whole_row=when.whole_row,
        first_row=when.first_row,
        row_step=when.row_step,
        row_phase=when.row_phase,
        column_step=when.column_step,
        column_phase=when.column_phase,
        add=_slot(layer.add),
        residual=_slot(layer.residual),
        activation=C.DecodeActivation[layer.activation],
        out=_slot(layer.out),
        activated=_slot(layer.activated),
        activated_by=C.DecodeActivation[layer.activated_by],
    )


def _draw(draw: Draw) -> Any:
    C, head = _library._C, draw.head
    return C.DecodeDraw(
        params=_slot(draw.params and draw.params[draw.params_channel]),
        value=_slot(draw.value),
        channels=draw.channels,
        first_channel=draw.first_channel,
        ones=draw.ones,
        position=-1 if draw.position is None else draw.position,
        head=C.DecodeHead[head.name if head else "none"],
        levels=head.num_levels if head else 0,
        mixtures=getattr(head, "num_components", 0),
    )


def _steps(steps: list[Step]) -> Iterator[Any]:
    C = _library._C
    layers = draws = 0
    for step in steps:
        if step is None:
            yield C.DecodeStep(kind=C.DecodeStepKind.features, begin=0, end=0)
        elif isinstance(step, Draw):
            yield C.DecodeStep(kind=C.DecodeStepKind.draw, begin=draws, end=draws + 1)
            draws += 1
        else:
            yield C.DecodeStep(kind=C.DecodeStepKind.layers, begin=layers, end=layers + len(step))
            layers += len(step)
