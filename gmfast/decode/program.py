"""Decode programs: a model compiled to layers that run for one position after another."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _check, _library, _seed
from ..reference.decode import Decoder as ReferenceDecoder
from .builder import ACTIVATIONS, GATES, Builder, Draw, Layer, Slot, Value

_HEADS = (None, "categorical", "bernoulli", "mixture")
_LAYERS, _DRAW, _FEATURES = range(3)


class Program:
    """A model that goes from position to position and remembers what it has seen; `gmfast.decode.compile`
    makes one.

    The weights are those at the time of compiling, packed for the machine. `start` begins a batch, `step`
    takes it one position further:

        program = gmfast.decode.compile(wavenet)
        params = program.start(batch=1).step()          # of the first sample's distribution
        while True:
            params = program.step(draw(params))         # feed a sample, get the next distribution

    A program belongs to one thread at a time; it computes with torch's number of threads.
    """

    def __init__(self, builder: Builder, like: Tensor, weights: str | None = None):
        """`like` has the model's dtype and device."""
        builder.split_rows()
        builder.measure()
        self._builder, self.device = builder, like.device
        self.dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.weight_dtype = self.dtype
        if weights not in (None, "bfloat16", str(self.dtype)[6:]):
            raise ValueError(
                f'weights: expected None or "bfloat16" for a model in {str(like.dtype)[6:]}, got {weights!r}'
            )
        if weights == "bfloat16" or (weights is None and like.dtype == torch.bfloat16):
            if self.dtype == torch.float64:
                raise ValueError("weights: expected None for a model in float64, got 'bfloat16'")
            self.weight_dtype = torch.bfloat16
        self._stages = builder.stages()
        # Whose kernels run it; None: the reference does.
        self._kernels = self.device.type if self.device.type in _library.devices else None
        self._packed = None if self._kernels is None else _pack_all(self)
        self._copy_weights()
        self.batch = None

    def __repr__(self) -> str:
        weights = (
            f"{self.weight_bytes / 2**20:.2f} MiB of {str(self.weight_dtype)[6:]} weights on {self.device}"
        )
        if self.batch is None:
            return f"Program({weights}, not started)"
        end = "" if self.length is None else f" of {self.length}"
        return f"Program({weights}, batch {self.batch}, at position {self.position}{end})"

    @property
    def length(self) -> int | None:
        """Positions, or None without end."""
        height = self._builder.height
        return None if height is None else height * self._builder.width

    @property
    def _end(self) -> int:
        """The position behind the last."""
        return 2**62 if self.length is None else self.length

    @property
    def position(self) -> int:
        """The position that comes next, or whose value is waited for."""
        self._check_started()
        return self._decoder.cursor[0]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        taps = (tap for layer in self._layers() for tap in layer.taps)
        return sum(tap.matrix.numel() for tap in taps) * self.weight_dtype.itemsize

    def start(self, batch: int = 1, label: Tensor | None = None) -> "Program":
        """Forgets what was seen, and begins `batch` samples, of the classes `label` (batch,) int64 for a
        conditional model. Returns the program."""
        _check.integer("batch", batch)
        if batch < 0:
            raise ValueError(f"batch: expected a number of samples, got {batch}")
        self.batch, self._label = batch, self._check_label(label, batch)
        self._values, self._left = [], []
        for value in self._builder.values:
            shape = self._shape(value, batch)
            # A vector may read beyond the last channel.
            memory = torch.zeros(math.prod(shape) + 64, dtype=self.dtype, device=self.device)
            self._values.append(memory[: math.prod(shape)].view(shape))
            self._left.append(0 if value.local else value.left)
        decoders = {"cpu": _Decoder, "cuda": _CudaDecoder, None: ReferenceDecoder}
        # An empty batch has no memory that kernels could be given.
        self._decoder = decoders[self._kernels if batch else None](self)
        if self._builder.output is not None:  # layers of whole rows come before the input
            self._decoder.step(None, None, self._end)
        return self

    def step(self, x: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """Feeds `x` (batch, channels), the value that was waited for, and returns what the model says about
        the next one, (batch, parameters). Where each colour of a pixel has a prediction of its own, each is
        fed by itself, (batch, 1).

        A model that predicts takes None at the start. One that does not (a `Sequential` that sees its own
        position) takes the input at a position and returns its output there. `local` (batch, features): the
        local features of the position that is computed.

        Raises ValueError for what does not fit, and behind the last position.
        """
        self._check_started()
        waiting = self._at_draw()
        if self.position == self.length or self._at_last_draw():
            raise ValueError(f"x: expected a position to come, got one behind all {self.length}")
        if (x is None) == (waiting is not None):
            if x is not None:
                raise ValueError("x: expected None at the start, got a value")
            raise ValueError(
                f"x: expected a tensor of shape ({self.batch}, {waiting.channels}), the value at position "
                f"{self.position}, got None"
            )
        if x is not None:
            _check.tensor("x", x)
            if tuple(x.shape) != (self.batch, waiting.channels):
                raise ValueError(
                    f"x: expected shape ({self.batch}, {waiting.channels}), got {tuple(x.shape)}"
                )
            x = x.to(self.device, self.dtype).contiguous()
        features = self._check_features(local)
        self._decoder.step(x, features, self._end)
        if self._builder.output is not None:
            return self._read(self._builder.output, 0, self._builder.output.channels)
        at = self._at_draw()
        return self._read(at.params, at.params_channel, at.num_params)

    def sample(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        temperature: float = 1.0,
        samples: Tensor | None = None,
        local: Tensor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Fills `x` (batch, channels, positions), of the program's dtype and contiguous, from where the
        program is; what `keep` marks (a tensor like x) is taken as given. Returns x.

        `samples` (batch,): the index of each sample in the noise, all different and below 2**32; 0, 1, … by
        default.
        `progress(n)` is called now and then, after n more positions. Ctrl-C, or an exception from `progress`,
        stops between positions and leaves x drawn up to there; another call goes on.
        """
        self._check_started()
        draws = [stage for stage in self._stages if isinstance(stage, Draw)]
        if any(draw.head is None for draw in draws):
            raise ValueError("sample: expected a program that ends in a distribution, got one without a head")
        _check.number("temperature", temperature, 0, 1e30)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress: expected a function, got {type(progress).__name__}")
        self._check_drawn(x, draws)
        keep = None if keep is None else self._check_keep(keep, x, draws)
        samples = self._check_samples(samples)
        features = self._check_features(local, x.shape[2])
        seed = _seed.as_tensor(seed, self.device)
        end = x.shape[2] if self.length is None else self.length
        if self.batch:
            self._decoder.sample(x, keep, samples, features, seed, temperature, end, progress)
        return x

    def state_dict(self) -> dict[str, Tensor]:
        """What the program has seen, as tensors: load it into a program of the same model, anywhere."""
        self._check_started()
        state = {f"values.{i}": value.clone() for i, value in enumerate(self._values)}
        state["cursor"] = torch.tensor(self._decoder.cursor)
        if self._label is not None:
            state["label"] = self._label.clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> "Program":
        """Continues from a `state_dict`. Raises ValueError for one of another model."""
        first, label, cursor = (state.get(name) for name in ("values.0", "label", "cursor"))
        if not isinstance(first, Tensor) or first.dim() != 4 or cursor is None:
            raise ValueError(
                "state: expected what state_dict of a program returns, got no values or no cursor"
            )
        batch = first.shape[2]
        for i, value in enumerate(self._builder.values):
            saved, expected = state.get(f"values.{i}"), self._shape(value, batch)
            if saved is None or tuple(saved.shape) != expected:
                came = None if saved is None else tuple(saved.shape)
                raise ValueError(f"state: expected values.{i} of shape {expected}, got {came}")
        cursor = self._check_cursor(cursor)
        self.start(batch, label)
        for i, value in enumerate(self._values):
            value.copy_(state[f"values.{i}"])
        self._decoder.cursor = cursor
        return self

    def _layers(self) -> list[Layer]:
        return [layer for stage in self._stages if isinstance(stage, list) for layer in stage]

    def _check_started(self) -> None:
        if self.batch is None:
            raise ValueError("start: expected a call of start before this one")

    def _check_label(self, label: Tensor | None, batch: int) -> Tensor | None:
        """A copy of the labels as int64. Their values are looked at on the CPU only."""
        embedding = next((layer.embedding for layer in self._layers() if layer.embedding is not None), None)
        if (embedding is None) != (label is None):
            expected = (
                "None, because the model is not conditional" if embedding is None else f"{batch} classes"
            )
            raise ValueError(f"label: expected {expected}, got {'None' if label is None else 'classes'}")
        if label is None:
            return None
        _check.tensor("label", label)
        integers = not (label.is_floating_point() or label.is_complex() or label.dtype == torch.bool)
        if label.shape != (batch,) or not integers:
            raise ValueError(
                f"label: expected {batch} classes, got {label.dtype} of shape {tuple(label.shape)}"
            )
        label, last = label.to(self.device, torch.int64, copy=True), len(embedding) - 1
        if label.device.type == "cpu" and batch and (label.min() < 0 or label.max() > last):
            raise ValueError(
                f"label: expected classes from 0 to {last}, got values from {label.min()} to {label.max()}"
            )
        return label

    def _check_drawn(self, x: Tensor, draws: list[Draw]) -> None:
        """Raises ValueError unless the draws fill `x`, and TypeError for what is no tensor."""
        _check.tensor("x", x)
        positions = x.shape[-1:].numel() if self.length is None else self.length
        if any(draw.position is not None for draw in draws):
            positions = 1 + max(draw.position for draw in draws)
        expected = (self.batch, draws[0].total_channels, positions)
        fits = x.dtype == self.dtype and x.device == self.device and x.is_contiguous()
        if tuple(x.shape) != expected or not fits:
            raise ValueError(
                f"x: expected a contiguous tensor of {self.dtype} of shape {expected} on {self.device}, got "
                f"{x.dtype} of shape {tuple(x.shape)} on {x.device}"
            )

    def _check_keep(self, keep: Tensor, x: Tensor, draws: list[Draw]) -> Tensor:
        """What is kept of each number in `x`, as bytes on its device."""
        _check.tensor("keep", keep)
        try:
            keep = (keep != 0).expand(x.shape)
        except RuntimeError:
            raise ValueError(
                f"keep: expected a shape that expands to {tuple(x.shape)}, got {tuple(keep.shape)}"
            ) from None
        if draws[0].channels > 1 and (keep != keep[:, :1]).any():
            raise ValueError("keep: expected the same for all channels, which are drawn together")
        return keep.to(x.device, torch.uint8).contiguous()

    def _check_samples(self, samples: Tensor | None) -> Tensor:
        """The samples' indices in the noise. Their values are looked at on the CPU only."""
        if samples is None:
            return torch.arange(self.batch, device=self.device)
        _check.tensor("samples", samples)
        if samples.shape != (self.batch,) or samples.dtype != torch.int64 or samples.device != self.device:
            raise ValueError(
                f"samples: expected {self.batch} int64 indices on {self.device}, got {samples.dtype} of "
                f"shape {tuple(samples.shape)} on {samples.device}"
            )
        if samples.device.type == "cpu" and self.batch:
            low, high = samples.aminmax()
            if low < 0 or high >= 2**32:
                raise ValueError(
                    f"samples: expected indices from 0 to 2**32 - 1, got values from {low} to {high}"
                )
        return samples.contiguous()

    def _check_cursor(self, cursor: Tensor) -> tuple[int, int]:
        """Raises ValueError for a place where this program never stops."""
        place = tuple(cursor.tolist()) if isinstance(cursor, Tensor) and cursor.dim() == 1 else ()
        if len(place) == 2 and all(type(n) is int for n in place):
            (position, step), steps = place, self._steps()
            at_draw = 0 <= step < len(steps) and isinstance(steps[step], Draw)
            if 0 <= position <= self._end and (step == 0 or (at_draw and position < self._end)):
                return place
        raise ValueError(f"state: expected a cursor at a draw or between positions, got {cursor}")

    def _check_features(self, features: Tensor | None, *length: int) -> Tensor | None:
        """Local features of a length, or of one position, as (batch, features, length)."""
        value = self._builder.features
        if value is None:
            if features is not None:
                raise ValueError("local: expected None, because the model takes none, got features")
            return None
        expected = (self.batch, value.channels, *length)
        if features is not None:
            _check.tensor("local", features)
        if features is None or tuple(features.shape) != expected:
            came = None if features is None else tuple(features.shape)
            raise ValueError(f"local: expected shape {expected}, got {came}")
        features = features if length else features.unsqueeze(2)
        return features.to(self.device, self.dtype).contiguous()

    def _shape(self, value: Value, batch: int) -> tuple[int, ...]:
        """Rows, columns, samples and channels that are kept of a value."""
        columns = 1
        if not value.local:
            columns = value.left + math.ceil(self._builder.width / value.scale) + value.right
        return value.above + 1, columns, batch, -(-value.channels // 16) * 16

    def _copy_weights(self) -> None:
        """Lets further training of the model leave the program as it is."""

        def copy(weight):
            return None if weight is None else weight.detach().clone()

        for layer in self._layers():
            layer.embedding = copy(layer.embedding)
            if self._kernels is None:  # else they are packed
                layer.bias = copy(layer.bias)
                layer.taps = [dataclasses.replace(tap, weight=copy(tap.weight)) for tap in layer.taps]

    def _steps(self) -> list[list[Layer] | Draw | None]:
        """The stages; None stands for taking the features in."""
        return [None, *self._stages] if self._builder.features else self._stages

    def _at_draw(self) -> Draw | None:
        step = self._decoder.cursor[1]
        if self.length is not None and self._decoder.cursor[0] >= self.length:
            return None
        at = self._steps()[step]
        return at if isinstance(at, Draw) else None

    def _at_last_draw(self) -> bool:
        """Whether nothing is said after what is waited for."""
        position, step = self._decoder.cursor
        if self._builder.output is not None or position + 1 != self.length:
            return False
        return (
            not any(isinstance(stage, Draw) for stage in self._steps()[step + 1 :])
            and self._at_draw() is not None
        )

    def _read(self, value: Value, channel: int, channels: int) -> Tensor:
        return self._values[value.index][0, 0, :, channel : channel + channels].clone()


class _Structs(NamedTuple):
    """A program as the kernels take it: the structs of csrc/decode.h as tuples of their fields."""

    dtype: str
    weight_dtype: str
    values: list[tuple[int, ...]]
    taps: list[tuple[int, ...]]
    layers: list[tuple[int, ...]]
    draws: list[tuple[int, ...]]
    steps: list[tuple[int, ...]]
    columns: int
    features: tuple[int, int]
    num_features: int
    log_scale_min: float


def _structs(program: Program, taps_of: Callable) -> tuple[_Structs, list]:
    """Of a program that has been started, and the tensors they point to. `taps_of(layer, weight, values)`
    gives the fields of a layer's taps, `weight` being packed and `values` the fields of all values."""
    values = []
    for value, memory, left in zip(program._builder.values, program._values, program._left, strict=True):
        row, column, sample, _ = memory.stride()
        data = memory.data_ptr() + left * column * memory.element_size()
        values.append((data, value.scale, len(memory), row, 0 if value.local else column, sample))
    taps, layers, draws, steps = [], [], [], []
    memory = [*program._values]
    log_scale_min = -7.0
    for stage in program._steps():
        if stage is None:
            steps.append((_FEATURES, 0, 0))
        elif isinstance(stage, Draw):
            steps.append((_DRAW, len(draws), 0))
            draws.append(_draw_fields(stage))
            log_scale_min = getattr(stage.head, "log_scale_min", log_scale_min)
        else:
            steps.append((_LAYERS, len(layers), len(layers) + len(stage)))
            for layer in stage:
                weight, bias = program._packed[len(layers)]
                context = None
                if layer.embedding is not None:
                    context = _pack_sums(program, layer, layer.embedding[program._label])
                    memory.append(context)
                memory += weight, bias
                own = taps_of(layer, weight, values)
                layers.append(_layer_fields(layer, len(taps), len(own), weight, bias, context))
                taps += own
    features = program._builder.features
    structs = _Structs(
        str(program.dtype)[6:],
        str(program.weight_dtype)[6:],
        values,
        taps,
        layers,
        draws,
        steps,
        program._builder.width,
        (-1, 0) if features is None else (features.index, 0),
        0 if features is None else features.channels,
        log_scale_min,
    )
    return structs, memory


class _Decoder:
    """Runs a program in C++ on the CPU."""

    def __init__(self, program: Program):
        self._batch = program.batch
        structs, self._memory = _structs(program, _taps)
        self._decoder = _library._C.Decoder(_library._C.DecodeProgram(*structs), torch.get_num_threads())

    @property
    def cursor(self) -> tuple[int, int]:
        return self._decoder.cursor

    @cursor.setter
    def cursor(self, cursor: tuple[int, int]) -> None:
        self._decoder.cursor = cursor

    def step(self, fed, features, end):
        self._decoder.step(self._batch, end, _pointer(fed), _pointer(features))

    def sample(self, x, keep, samples, features, seed, temperature, end, progress):
        self._decoder.sample(
            self._batch,
            end,
            _pointer(x),
            x.shape[1],
            x.shape[2],
            _pointer(keep),
            _pointer(samples),
            _pointer(features),
            int(seed),
            temperature,
            progress,
        )


class _CudaDecoder:
    """Runs a program on a GPU.

    Kernels find the position in the GPU's memory, so launches are the same wherever the same layers run.
    `sample` launches those of a kind of position one by one when it first comes to it, captures them as a
    CUDA graph the second time, and replays that from then on. It waits for the GPU at its end only, or, to
    call `progress`, also now and then.
    """

    def __init__(self, program: Program):
        self._batch, self._device = program.batch, program.device
        structs, memory = _structs(program, _strips)
        strips = torch.tensor(structs.taps, dtype=torch.int64).to(self._device)
        self._position = torch.zeros((), dtype=torch.int64, device=self._device)
        self._memory = [memory, strips]
        self._decoder = _library._C.CudaDecoder(
            _library._C.DecodeProgram(*structs._replace(taps=[])), _pointer(strips), _pointer(self._position)
        )
        self._kind_of = _kind_of(program)
        # A position of a sound is like any other, and short: a graph has several.
        self._longest = 16 if program.length is None else 1

    @property
    def cursor(self) -> tuple[int, int]:
        return self._decoder.cursor

    @cursor.setter
    def cursor(self, cursor: tuple[int, int]) -> None:
        self._decoder.cursor = cursor
        self._position.fill_(cursor[0])

    def step(self, fed, features, end):
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream().cuda_stream
            self._decoder.step(self._batch, end, _pointer(fed), _pointer(features), stream)

    def sample(self, x, keep, samples, features, seed, temperature, end, progress):
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))

        def launch(end):
            self._decoder.sample(
                self._batch,
                end,
                _pointer(x),
                x.shape[1],
                x.shape[2],
                _pointer(keep),
                _pointer(samples),
                _pointer(features),
                _pointer(seed),
                temperature,
                stream.cuda_stream,
            )

        start, graphs = self.cursor, {}
        reported = start[0]
        try:
            with torch.cuda.stream(stream):
                for behind, kind in _stretches(start, end, self._longest, self._kind_of):
                    if kind in graphs:
                        if graphs[kind] is None:
                            graphs[kind] = _captured(lambda behind=behind: launch(behind))
                        graphs[kind].replay()
                        self._decoder.cursor = (behind, 0)
                    else:
                        launch(behind)
                        graphs[kind] = None
                    due = behind == end or behind - reported >= 64 * self._longest
                    if progress is not None and due:
                        stream.synchronize()
                        progress(behind - reported)
                        reported = behind
        finally:
            stream.synchronize()
            # Interrupted between a replay and the next line, only the GPU knows how far it is.
            position = int(self._position)
            if position != start[0]:
                self._decoder.cursor = (position, 0)


def _kind_of(program: Program) -> Callable[[range], tuple[bool, ...]]:
    """A function that says which layers run at each of some positions: where it says the same, the launches
    are the same."""
    width = program._builder.width
    whens = list(dict.fromkeys(layer.when for layer in program._layers()))
    return lambda positions: tuple(when.runs(*divmod(p, width)) for p in positions for when in whens)


def _stretches(cursor: tuple[int, int], end: int, longest: int, kind_of: Callable) -> Iterator[tuple]:
    """The way from the cursor to `end` in stretches of `longest` positions, or of one where those do not fit:
    the position behind each and its kind, None for what is left of a position that has begun."""
    position, step = cursor
    while position < end:
        length = longest if step == 0 and position + longest <= end else 1
        kind = None if step else kind_of(range(position, position + length))
        position, step = position + length, 0
        yield position, kind


def _captured(launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """What `launch` puts on the current stream, as a graph; none of it runs."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        launch()
    finally:
        graph.capture_end()
    return graph


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _slot_fields(slot: Slot | None) -> tuple[int, int]:
    return (-1, 0) if slot is None else (slot.value.index, slot.channel)


def _tap_fields(tap) -> tuple[int, ...]:
    channels = tap.weight.shape[0] if tap.depthwise else tap.weight.shape[1]
    return tap.value.index, tap.row, tap.column, tap.channel, channels, tap.depthwise


def _taps(layer: Layer, weight, values) -> list[tuple[int, ...]]:
    return [_tap_fields(tap) for tap in layer.taps]


def _strips(layer: Layer, weight: Tensor, values: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Taps for the GPU, in strips of as many channels as a panel has sums."""
    strips, row, panel = [], 0, _library._C.decode_cuda_panel
    for tap in layer.taps:
        value, row_away, column_away, channel, channels, depthwise = _tap_fields(tap)
        width = channels if depthwise else panel
        for first in range(0, channels, width):
            count = min(width, channels - first)
            data = weight.data_ptr() + row * panel * weight.element_size()
            place = row_away, column_away, channel + first, count, depthwise
            strips.append((*values[value], *place, data, weight.stride(0)))
            row += 1 if depthwise else count
    return strips


def _layer_fields(layer: Layer, first_tap: int, taps: int, weight, bias, context) -> tuple[int, ...]:
    when = layer.when
    return (
        first_tap,
        taps,
        _pointer(weight),
        _pointer(bias),
        _pointer(context),
        layer.outputs,
        when.whole_row,
        when.first_row,
        when.row_step,
        when.row_phase,
        when.column_step,
        when.column_phase,
        *_slot_fields(layer.add),
        *_slot_fields(layer.residual),
        ACTIVATIONS.index(layer.activation),
        *_slot_fields(layer.out),
        *_slot_fields(layer.activated),
        ACTIVATIONS.index(layer.activated_by),
    )


def _draw_fields(draw: Draw) -> tuple[int, ...]:
    head = draw.head
    return (
        *((-1, 0) if draw.params is None else (draw.params.index, draw.params_channel)),
        *_slot_fields(draw.value),
        draw.channels,
        draw.first_channel,
        draw.ones,
        -1 if draw.position is None else draw.position,
        _HEADS.index(head and head.name),
        head.num_levels if head else 0,
        getattr(head, "num_components", 0),
    )


# ---- Packing: sums in panels of two vectors, of which a gate's second holds what gates the first ------


def _pack_all(program: Program) -> list[tuple[Tensor, Tensor]]:
    """Weight [panel][channel of all taps][panel's sums] and bias [panel][panel's sums] of each layer."""
    packed = []
    with torch.no_grad():
        for layer in program._layers():
            if layer.taps:
                weight = _pack_weight(program, layer)
            else:
                weight = torch.zeros(0, dtype=program.weight_dtype, device=program.device)
            bias = torch.zeros(layer.sums, device=program.device) if layer.bias is None else layer.bias
            packed.append((weight, _pack_sums(program, layer, bias.unsqueeze(0))))
    return packed


def _pack_weight(program: Program, layer: Layer) -> Tensor:
    """The matrices of all taps, [panel][channel][panel's sums]; in bfloat16, on the CPU, two channels of a
    tap share a row: [panel][pair][panel's sums][2]."""
    pairs = program.weight_dtype == torch.bfloat16 and program._kernels == "cpu"
    matrices = [tap.matrix.to(program.weight_dtype) for tap in layer.taps]
    if pairs:
        matrices = [torch.nn.functional.pad(m, (0, m.shape[1] % 2)) for m in matrices]
    panels = _pack_rows(program, layer, torch.cat(matrices, 1))
    if pairs:
        panels = panels.unflatten(2, (-1, 2))
    return panels.transpose(1, 2).contiguous()


def _pack_sums(program: Program, layer: Layer, rows: Tensor) -> Tensor:
    """(N, sums) to [n][panel][panel's sums]."""
    rows = rows.detach().to(program.dtype)
    packed = _pack_rows(program, layer, rows.t())
    return packed.permute(2, 0, 1).contiguous()


def _pack_rows(program: Program, layer: Layer, rows: Tensor) -> Tensor:
    """(sums, N) to (panels, sums of a panel, N); zeros where a panel has more."""
    if program._kernels == "cuda":
        width = _library._C.decode_cuda_panel
    else:
        width = _library._C.decode_panel(program.dtype.itemsize)
    parts = rows.split(layer.outputs) if layer.activation in GATES else (rows,)
    width //= len(parts)
    missing = -layer.outputs % width
    parts = [torch.nn.functional.pad(part, (0, 0, 0, missing)).unflatten(0, (-1, width)) for part in parts]
    return torch.cat(parts, 1)
