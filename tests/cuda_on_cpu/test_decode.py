"""The GPU's executor of decode programs, compiled as C++, against the CPU's."""

import contextlib
import ctypes
import itertools
from dataclasses import replace

import pytest
import torch
from cuda_on_cpu.emulator import SANITIZERS, run
from decode.stepping import recorded
from torch import nn

import gmfast.nn as gnn
from gmfast import _library, decode, models
from gmfast.decode.executors import kind_of, stretches
from gmfast.decode.packing import pack, structs

pytestmark = [
    pytest.mark.cuda_on_cpu,
    pytest.mark.skipif("cpu" not in _library.devices, reason="compares with the compiled executor"),
]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def pixelcnnpp():
    return models.PixelCNNPP((3, 4, 8), 1, 3, 2, num_levels=16, num_labels=3).eval()


def gated_pixelcnn():  # more channels than a strip has
    return models.GatedPixelCNN((1, 3, 3), 2, 17, 3, 4, "categorical", 1, 5, num_labels=3).eval()


def pixelcnn():  # a draw for each colour
    return models.PixelCNN((3, 2, 3), 1, 6, 6, "categorical", 1, 4).eval()


def wavenet():  # more strips than warps in the layer that sums what skips, and more panels than one
    return models.WaveNet(40, 3, 6, 2, 9, 35, "mixture", 2, 32, num_labels=3, local_channels=2).eval()


def made():
    return models.MADE((1, 2, 3), (40,), 1, "bernoulli", 1, num_levels=2).eval()


def depthwise():
    return nn.Sequential(
        gnn.CausalConv1d(36, 36, 3, groups=36, activation="silu"),
        nn.Conv1d(36, 80, 1),
        gnn.GatedActivation(),
        gnn.CausalConv1d(40, 40, 2, groups=40),
        nn.Conv1d(40, 3, 1),
        gnn.ConcatELU(),
    )


class Case:
    """Two started programs of a model: one for the CPU, one whose weights are packed for the GPU."""

    def __init__(self, model, batch, dtype, weights=None, positions=None):
        torch.manual_seed(0)
        self.model, self.batch = model().to(dtype), batch
        with torch.no_grad():
            for p in self.model.parameters():  # also those that begin at zero
                p.add_(0.3 * torch.randn_like(p) / max(p[0].numel(), 1) ** 0.5)
        label = torch.arange(batch) % 3 if model in (pixelcnnpp, gated_pixelcnn, wavenet) else None
        self.on_cpu, self.program = (
            decode.compile(self.model, weights=weights).start(batch, label) for _ in range(2)
        )
        self.plan, form = self.program._plan, replace(self.program._form, kernels="cuda")
        self.arguments, self.memory = structs(pack(self.plan, form), self.program._state)
        self.draws = self.plan.draws
        self.positions = positions or self.program.length
        if self.draws[0].position is not None:
            self.positions = len(self.draws)
        self.cursor = torch.zeros(2, dtype=torch.int64)
        self.position = torch.zeros((), dtype=torch.int64)

    def _random(self, *shape):
        return torch.randn(shape, dtype=self.program.dtype)

    def _items(self, steps, end, x, keep, samples, features, seed, temperature, said, seen, like):
        memory = {m.untyped_storage().data_ptr(): m for m in self.memory if m.numel()}
        return [
            *recorded(self.arguments),
            len(memory),
            *itertools.chain(*memory.items()),
            self.batch,
            end,
            steps,
            self.draws[0].params is not None,
            x.shape[1] if steps == 0 else x.shape[2],
            x.shape[2],
            temperature,
            self.position,
            seed,
            x,
            keep,
            samples,
            features,
            self.cursor,
            said,
            *((0, 0) if seen is None else (seen.numel() * seen.element_size(), seen.data_ptr())),
            like,
        ]

    def sample(self):
        """The items of a case that draws, with the launches of the first position of each kind, and a check
        of the result."""
        draw = self.draws[0]
        x = self._random(self.batch, draw.total_channels, self.positions).clamp(-1, 1)
        keep = (torch.rand(self.batch, 1, self.positions) < 0.2).expand(x.shape).to(torch.uint8).contiguous()
        samples = torch.arange(self.batch) + 2
        value = self.plan.features
        local = None if value is None else self._random(self.batch, value.channels, self.positions)
        seed, expected = torch.tensor(5), x.clone()
        self.on_cpu.sample(expected, keep, seed=5, temperature=0.9, samples=samples, local=local)
        end = self.program.length or self.positions
        first, kind = {}, kind_of(self.plan)
        like = torch.tensor([first.setdefault(kind(range(p, p + 1)), p) for p in range(end)])
        items = self._items(0, end, x, keep, samples, local, seed, 0.9, None, None, like)

        def check():
            assert len(first) < end or end == 1, "no launches would be replayed"
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)  # levels are further apart
            self._check_values(end)

        return items, check

    def steps(self, count, x=None):
        """The items of a case that is fed `x` step by step, and a check of the predictions."""
        draws, value = self.draws, self.plan.features
        x = self._random(count, self.batch, draws[0].channels) if x is None else x.clone()
        local = None if value is None else self._random(count, self.batch, value.channels)
        expected = []
        for i in range(count):
            fed = None if i == 0 and draws[0].params is not None else x[i]
            expected.append(self.on_cpu.step(fed, None if local is None else local[i]))
        source = self.plan.output or draws[0].params
        seen = self.program._state.rings[source.index][0, 0]
        said = torch.full((count, *seen.shape), float("nan"), dtype=seen.dtype)
        items = self._items(
            count, self.program.length or 2**62, x, None, None, local, None, 1.0, said, seen, None
        )

        def check():
            for i, e in enumerate(expected):
                first = 0 if self.plan.output else draws[i % len(draws)].params_channel
                got = said[i, :, first : first + e.shape[1]]
                torch.testing.assert_close(got, e, rtol=0, atol=TOLERANCE[e.dtype])
            assert tuple(self.cursor.tolist()) == self.on_cpu._executor.cursor
            self._check_values(self.cursor[0])

        return items, check

    def _check_values(self, position):
        """Compare the rings with their padding."""
        assert self.position == position
        for got, e in zip(self.program._state.rings, self.on_cpu._state.rings, strict=True):
            torch.testing.assert_close(got, e, rtol=0, atol=TOLERANCE[e.dtype])


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sample(sanitizer):
    cases = [
        Case(pixelcnnpp, 2, torch.float32),
        Case(gated_pixelcnn, 3, torch.float64),
        Case(gated_pixelcnn, 1, torch.float32, "bfloat16"),
        Case(pixelcnn, 9, torch.float32),
        Case(wavenet, 1, torch.float64, positions=3),
        Case(wavenet, 2, torch.float32, "bfloat16", positions=3),
        Case(made, 5, torch.float32),
    ]
    items, checks = zip(*(case.sample() for case in cases), strict=True)
    run("decode", sanitizer, items)
    for check in checks:
        check()


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_step(sanitizer):
    cases = [
        (Case(pixelcnnpp, 1, torch.float64), 11),
        (Case(gated_pixelcnn, 2, torch.float32), 7),
        (Case(pixelcnn, 2, torch.float64), 10),
        (Case(wavenet, 5, torch.float32), 3),
        (Case(made, 2, torch.float64), 4),
        (Case(depthwise, 3, torch.float32), 4),
        (Case(depthwise, 1, torch.float32, "bfloat16"), 4),
    ]
    items, checks = zip(*(case.steps(count) for case, count in cases), strict=True)
    run("decode", sanitizer, items)
    for check in checks:
        check()


def test_bits_do_not_depend_on_the_batch():
    for model, count in ((pixelcnnpp, 9), (gated_pixelcnn, 4)):
        many, one = Case(model, 9, torch.float32), Case(model, 1, torch.float32)
        x = torch.randn(count, 9, many.draws[0].channels)
        run("decode", "address", [many.steps(count, x)[0], one.steps(count, x[:, :1])[0]])
        for a, b in zip(many.program._state.rings, one.program._state.rings, strict=True):
            assert torch.equal(a[:, :, :1], b)


class FakeGpu:
    """A stand-in for the parts of CUDA that `CudaExecutor` uses. A launch only advances the position; a graph
    that is replayed at a position of another kind fails."""

    def __init__(self, monkeypatch):
        self.captured = None  # the positions whose launches are being captured
        self.replays = self.interrupt_at = 0
        gpu = self

        class CudaExecutor:
            def __init__(self, *, program, strips, position):
                self.cursor, gpu.position = (0, 0), ctypes.c_int64.from_address(position)

            def sample(self, *, end, **rest):
                positions, self.cursor = range(self.cursor[0], end), (end, 0)
                if gpu.captured is None:
                    gpu.run(positions)
                else:
                    gpu.captured = positions

        class Graph:
            def capture_begin(self, capture_error_mode):
                gpu.captured = range(0)

            def capture_end(self):
                self.positions, gpu.captured = gpu.captured, None

            def replay(self):
                gpu.run(self.positions)
                gpu.replays += 1
                if gpu.replays == gpu.interrupt_at:
                    raise KeyboardInterrupt

        class Stream:
            cuda_stream = 0

            def __init__(self, device):
                pass

            def wait_stream(self, other):
                pass

            def synchronize(self):
                pass

        monkeypatch.setattr(_library._C, "CudaExecutor", CudaExecutor, raising=False)
        for name, fake in {"CUDAGraph": Graph, "Stream": Stream, "current_stream": Stream}.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)

    def run(self, positions):
        here = range(self.position.value, self.position.value + len(positions))
        assert self.kind_of(here) == self.kind_of(positions)
        self.position.value += len(positions)

    def program(self, model):
        program = decode.compile(model)
        program._form, self.kind_of = replace(program._form, kernels="cuda"), kind_of(program._plan)
        program._packed = pack(program._plan, program._form)
        return program


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: models.PixelCNNPP((3, 16, 12), 1, 2, 1), (1, 3, 192)),
        (lambda: models.WaveNet(9, 1, 2, 2, 3, 3, num_levels=4), (1, 1, 1200)),
    ],
)
def test_graphs_are_replayed_where_the_same_layers_run(model, shape, monkeypatch):
    gpu = FakeGpu(monkeypatch)
    program, told = gpu.program(model()), []
    x = torch.zeros(shape)
    program.start().sample(x, seed=1, progress=told.append)
    assert program._executor.cursor == (shape[2], 0) and gpu.position.value == shape[2]
    assert len(told) > 1
    assert sum(told) == shape[2]
    assert gpu.replays > 50

    gpu.replays, gpu.interrupt_at = 0, 3
    with pytest.raises(KeyboardInterrupt):
        program.start().sample(x, seed=1)
    stopped = gpu.position.value
    assert 0 < stopped < shape[2] and program._executor.cursor == (stopped, 0)
    told.clear()
    program.sample(x, seed=1, progress=told.append)
    assert sum(told) == shape[2] - stopped and gpu.position.value == shape[2]


@pytest.mark.parametrize("longest", [1, 4])
def test_stretches(longest):
    """From the middle of a position on, all positions come once and in order."""
    kinds = list(stretches((3, 2), 21, longest, tuple))
    assert kinds[0] == (4, None)
    assert [p for _, kind in kinds[1:] for p in kind] == list(range(4, 21))
    assert [behind for behind, _ in kinds[1:]] == [kind[-1] + 1 for _, kind in kinds[1:]]
    assert {len(kind) for _, kind in kinds[1:]} == {1, longest}
