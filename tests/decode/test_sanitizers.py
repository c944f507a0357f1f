"""The CPU's executor (tests/native/decode.cpp) on recorded decode programs, under ThreadSanitizer and under
AddressSanitizer with UndefinedBehaviorSanitizer."""

import pytest
import torch
from cuda_on_cpu.emulator import SANITIZERS, run_program
from decode.stepping import recorded, started
from decode.test_models import CASES
from native.harness import build, simd_levels

from gmfast import _library, decode
from gmfast.decode.builder import Builder, Tap
from gmfast.decode.packing import structs
from gmfast.models.autoregressive.heads import Categorical

pytestmark = pytest.mark.skipif(_library._C is None, reason="needs the compiled library")

#: Not v4, whose masked loads and stores no sanitizer sees.
LEVEL = [level for level in simd_levels() if level != "v4"][-1]


class Depthwise(torch.nn.Module):
    """Depthwise taps alone, with other taps and in a gate, on 19 channels; no model has them."""

    def __init__(self):
        super().__init__()
        self.input = torch.nn.Parameter(torch.randn(38, 1) * 2)
        self.depthwise = torch.nn.Parameter(torch.randn(4, 38))
        self.output = torch.nn.Parameter(torch.randn(9, 19))

    def decoder(self):
        builder = Builder(None, 1)
        x, wide, mixed, gated, params = (builder.value(channels) for channels in (1, 38, 76, 19, 9))
        builder.layer([Tap(x, self.input, -1)], out=wide, activation="silu")
        taps = [Tap(wide, weight, row) for row, weight in enumerate(self.depthwise[:3], -2)]
        builder.layer(taps, activated=mixed, activated_by="concat_elu")
        taps = [Tap(mixed, self.depthwise[3], channel=38), Tap(x, self.input, -3)]
        builder.layer(taps, activation="gate", out=gated)
        builder.layer([Tap(gated, self.output)], out=params)
        builder.draw(Categorical(9), params, x)
        return builder


def compile_program(sanitizer):
    flags = [*simd_levels()[LEVEL], f"-DGMFAST_LEVEL={LEVEL}", "-std=c++20", "-g1", "-pthread"]
    flags += ["-O1" if sanitizer == "thread" else "-O0"]  # which is long to compile, not to run
    flags += ["-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # as CMakeLists.txt
    flags += [f"-fsanitize={SANITIZERS[sanitizer]}", "-fno-sanitize-recover=undefined"]
    flags += ["-Wl,--wrap=_ZN6gmfast4Team7barrierEv"]
    sources = ["tests/native/decode.cpp", "csrc/cpu/decode.cpp", "csrc/common/team.cpp"]
    return build(sources, flags=flags, name=f"decode-{LEVEL}-{sanitizer}")


def record(program, label, x, keep=None, local=None, *, barriers=True):
    """The items of a case for tests/native/decode.cpp: the program at its start, and a sample's arguments."""
    program.start(len(x), label)
    arguments, memory = structs(program._packed, program._state)
    case = [int(not barriers), *recorded(arguments)]
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in memory if tensor.numel()}
    case.append(len(storages))
    for address, tensor in storages.items():
        case += [address, tensor.untyped_storage().nbytes(), tensor]
    end = x.shape[2] if program.length is None else program.length
    case += [len(x), end, x.shape[1], x.shape[2], 5, 1.0, x]
    keep = None if keep is None else keep.to(torch.uint8).contiguous()
    return [*case, keep, torch.arange(len(x)), None if local is None else local.to(program.dtype)]


def cases(monkeypatch):
    """Programs with all kinds of layers and draws, and arguments of a sample: batches of one, two and many,
    which have tiles of their own."""
    panel = {"v3": 64}.get(LEVEL, 32)  # bytes
    monkeypatch.setattr(_library._C, "decode_panel", lambda element_size: panel // element_size)
    names = ["gated", "pixelcnnpp", "pixelcnnpp-grey", "wavenet-conditional", "pixelcnn-bernoulli", "made"]
    forms = [(torch.float64, None), (torch.float32, None), (torch.float32, "bfloat16")]
    for i, name in enumerate(names):
        case, (dtype, weights) = CASES[name], forms[i % 3]
        for n in (1, 2, 11) if name == "gated" else ((1, 2, 11)[i % 3],):
            program = case.program(dtype, weights)
            given, keep = case.given(n) if i % 2 else (torch.zeros(n, *case.positions), None)
            x = given.to(dtype)
            yield program, case.label(n), x, keep, case.local(n)
    torch.manual_seed(2)
    module = Depthwise()
    for n in (1, 2, 11):
        for weights in (None, "bfloat16"):
            yield decode.compile(module, weights=weights), None, torch.zeros(n, 1, 12), None, None


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_nothing_is_reported(sanitizer, monkeypatch):
    """No race and no access out of bounds on 1 to 4 threads, all with the same bits; the samples are the
    reference's."""
    items, drawn = [], []
    for program, label, x, keep, local in cases(monkeypatch):
        expected = started(program, "reference", len(x), label)
        expected.sample(y := x.clone(), keep, seed=5, local=local)
        items.append(record(program, label, x, keep, local))
        drawn.append((x, y))
    run_program(compile_program(sanitizer), items)
    for x, expected in drawn:
        assert x.unique().numel() > 1
        if x.dtype == torch.float64:  # a draw in float32 may lie within rounding of a boundary
            assert torch.equal(x, expected)


def test_a_missing_barrier_is_a_race(monkeypatch):
    """The sanitizer reports one: without barriers the executor's threads read what others write."""
    program, label, x, keep, local = next(cases(monkeypatch))
    case = record(program, label, x, keep, local, barriers=False)
    with pytest.raises(AssertionError, match="data race"):
        run_program(compile_program("thread"), [case])
