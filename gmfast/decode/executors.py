"""Executors of decode programs on the CPU and on a GPU; `gmfast.reference.decode` has the one in PyTorch.

An executor has a `cursor`, the position and the step of the program that come next, and two methods: `step`
runs to the next draw, `sample` draws positions.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _library
from ..reference.decode import ReferenceExecutor
from .builder import Plan
from .packing import Format, Packed, State, pointer, structs
from .request import SampleRequest


def executor(plan: Plan, form: Format, state: State, packed: Packed | None) -> Any:
    """Return the executor of a program on one batch."""
    # An empty batch has no memory that kernels could be given.
    if form.kernels is None or state.batch == 0:
        return ReferenceExecutor(plan, form, state)
    return {"cpu": CpuExecutor, "cuda": CudaExecutor}[form.kernels](plan, form, state, packed)


class CpuExecutor:
    """Runs a program in C++ on the CPU, with torch's number of threads."""

    def __init__(self, plan: Plan, form: Format, state: State, packed: Packed):
        self._batch = state.batch
        arguments, self._memory = structs(packed, state)
        self._executor = _library._C.CpuExecutor(
            program=_library._C.DecodeProgram(**arguments), threads=torch.get_num_threads()
        )

    @property
    def cursor(self) -> tuple[int, int]:
        """Position and step that come next."""
        return self._executor.cursor

    @cursor.setter
    def cursor(self, cursor: tuple[int, int]) -> None:
        self._executor.cursor = cursor

    def step(self, fed: Tensor | None, features: Tensor | None, end: int) -> None:
        """Feed the draw at the cursor and run to the next one, or to the position `end`."""
        self._executor.step(batch=self._batch, end=end, fed=pointer(fed), features=pointer(features))

    def sample(self, request: SampleRequest) -> None:
        """Draw the requested positions from the cursor on."""
        self._executor.sample(
            **_pointers(request),
            batch=self._batch,
            end=request.end,
            seed=int(request.seed),
            progress=request.progress,
        )


class CudaExecutor:
    """Runs a program on a GPU.

    Kernels read the position from the GPU's memory, so launches are the same at all positions where the same
    layers run. `sample` launches a kind of position kernel by kernel the first time, captures it as a CUDA
    graph the second time, and replays the graph from then on. The host waits for the GPU at the end only, and
    now and then to call `progress`.
    """

    def __init__(self, plan: Plan, form: Format, state: State, packed: Packed):
        self._batch, self._device = state.batch, form.device
        arguments, memory = structs(packed, state)
        strips = _bytes(_library._C.DecodeStrip.array(arguments["taps"])).to(self._device)
        self._position = torch.zeros((), dtype=torch.int64, device=self._device)
        self._memory = [memory, strips]
        self._executor = _library._C.CudaExecutor(
            program=_library._C.DecodeProgram(**arguments),
            strips=pointer(strips),
            position=pointer(self._position),
        )
        self._kind_of = kind_of(plan)
        # A position of a sound is like any other, and short: a graph has several.
        self._longest = 16 if plan.length is None else 1

    @property
    def cursor(self) -> tuple[int, int]:
        """Position and step that come next."""
        return self._executor.cursor

    @cursor.setter
    def cursor(self, cursor: tuple[int, int]) -> None:
        self._executor.cursor = cursor
        self._position.fill_(cursor[0])

    def step(self, fed: Tensor | None, features: Tensor | None, end: int) -> None:
        """Feed the draw at the cursor and run to the next one, or to the position `end`."""
        with torch.cuda.device(self._device):
            self._executor.step(
                batch=self._batch,
                end=end,
                fed=pointer(fed),
                features=pointer(features),
                stream=torch.cuda.current_stream().cuda_stream,
            )

    def sample(self, request: SampleRequest) -> None:
        """Draw the requested positions from the cursor on."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))

        def launch(end: int) -> None:
            self._executor.sample(
                **_pointers(request),
                batch=self._batch,
                end=end,
                seed=pointer(request.seed),
                stream=stream.cuda_stream,
            )

        start, graphs = self.cursor, {}
        reported = start[0]
        try:
            with torch.cuda.stream(stream):
                for behind, kind in stretches(start, request.end, self._longest, self._kind_of):
                    if kind in graphs:
                        if graphs[kind] is None:
                            graphs[kind] = _captured(lambda behind=behind: launch(behind))
                        graphs[kind].replay()
                        self._executor.cursor = (behind, 0)
                    else:
                        launch(behind)
                        graphs[kind] = None
                    due = behind == request.end or behind - reported >= 64 * self._longest
                    if request.progress is not None and due:
                        stream.synchronize()
                        request.progress(behind - reported)
                        reported = behind
        finally:
            stream.synchronize()
            # Interrupted between a replay and the next line, only the GPU knows how far it is.
            position = int(self._position)
            if position != start[0]:
                self._executor.cursor = (position, 0)


def _pointers(request: SampleRequest) -> dict[str, Any]:
    """Arguments that both C++ executors take from a request."""
    return {
        "x": pointer(request.x),
        "x_channels": request.x.shape[1],
        "x_positions": request.x.shape[2],
        "keep": pointer(request.keep),
        "samples": pointer(request.samples),
        "features": pointer(request.features),
        "temperature": request.temperature,
    }


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def kind_of(plan: Plan) -> Callable[[range], tuple[bool, ...]]:
    """Return a function from positions to the layers that run there. The same layers: the same launches."""
    whens = list(dict.fromkeys(layer.when for layer in plan.layers))
    return lambda positions: tuple(when.runs(*divmod(p, plan.width)) for p in positions for when in whens)


def stretches(
    cursor: tuple[int, int], end: int, longest: int, kind_of: Callable[[range], Any]
) -> Iterator[tuple[int, Any]]:
    """Yield the way from the cursor to `end` in stretches of `longest` positions, or of one at its end.

    Each comes as the position behind it and its kind: None for the rest of a position that has begun.
    """
    position, step = cursor
    while position < end:
        length = longest if step == 0 and position + longest <= end else 1
        kind = None if step else kind_of(range(position, position + length))
        position, step = position + length, 0
        yield position, kind


def _captured(launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Capture what `launch` enqueues on the current stream as a graph, without running it."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        launch()
    finally:
        graph.capture_end()
    return graph
