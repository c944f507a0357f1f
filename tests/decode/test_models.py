"""Models as decode programs: parameters and samples against full forward passes; bits, states, signals,
threads and forks."""

import copy
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from decode.stepping import EXECUTORS, on, predictions, started

from gmfast import _library, decode
from gmfast._seed import first_sample
from gmfast.models import MADE, PixelCNN, PixelCNNPP, WaveNet
from gmfast.models.autoregressive.gated_pixelcnn import GatedPixelCNN

TIMES = 13  # positions of a sound

compiled_only = pytest.mark.skipif(_library._C is None, reason="needs the compiled library")


@dataclass(frozen=True, eq=False)
class Case:
    """A small model and the arguments it is called with."""

    model: type
    shape: tuple = ()
    options: dict = field(default_factory=dict)
    order: int = 0

    @functools.cached_property
    def built(self):
        torch.manual_seed(1)
        options = {"num_levels": 9, "nr_logistic_mix": 3} | self.options
        shape = {} if self.model is WaveNet else {"image_shape": self.shape}
        model = self.model(**shape, **options).double().eval()
        if self.model is PixelCNNPP:
            model.initialize(self.whole(self.data(8)), self.label(8))
        return model

    @property
    def positions(self):
        """(channels, positions)."""
        if self.model is WaveNet:
            return 1, TIMES
        channels, height, width = self.shape
        return (1, channels * height * width) if self.model is MADE else (channels, height * width)

    def data(self, n):
        levels = self.options.get("num_levels", 9)
        x = torch.randint(levels, (n, *self.positions), generator=torch.Generator().manual_seed(2))
        return x.double() * (2 / (levels - 1)) - 1

    def whole(self, x):
        """`x` (n, channels, positions) in the shape that the model takes."""
        return x if self.model is WaveNet else x.view(-1, *self.shape)

    def label(self, n):
        classes = self.options.get("num_labels")
        return None if classes is None else torch.arange(n) % classes

    def local(self, n):
        channels = self.options.get("local_channels")
        generator = torch.Generator().manual_seed(3)
        return channels and torch.randn(n, channels, TIMES, generator=generator, dtype=torch.double)

    def conditions(self, n):
        return {"local": self.local(n)} if "local_channels" in self.options else {}

    def program(self, dtype=torch.float64, weights=None):
        order = {"order": self.order} if self.model is MADE else {}
        program = decode.compile(self.built.to(dtype), weights=weights, **order)
        self.built.double()
        return program

    def params(self, x):
        """Parameters from the full forward pass, (n, parameters, positions), in the program's order."""
        given = {"label": self.label(len(x))} | self.conditions(len(x))
        with torch.no_grad():
            if self.model is MADE:
                params = self.built(self.whole(x), order=self.order, **given).flatten(2)
                return params[:, :, self.built.orders[self.order]]
            return self.built(self.whole(x), **given).flatten(2)

    def stepped(self, program, x):
        """Parameters from the program step by step, as `params`."""
        if self.model is MADE:
            in_order = x.transpose(1, 2)[:, self.built.orders[self.order]]
            said = predictions(program, in_order, draws=x.shape[2])
            return said.unflatten(1, (x.shape[2], -1)).squeeze(3).transpose(1, 2)
        draws = 1 if self.built.head.joint else x.shape[1]
        return predictions(program, x, draws, local=self.local(len(x)))

    def sample(self, program, n, x=None, keep=None, seed=5, **options):
        x = torch.zeros(n, *self.positions, dtype=program.dtype) if x is None else x
        return program.sample(x, keep, seed=seed, **self.conditions(n), **options)

    def given(self, n):
        """Data and a mask of given elements: some positions in all samples, others in some."""
        keep = torch.rand(n, *self.positions, generator=torch.Generator().manual_seed(4)) < 0.4
        if self.built.head.joint:
            keep = keep[:, :1].expand_as(keep).clone()
        keep[:, :, 2:4] = True
        return self.data(n), keep


GATED = {"nr_filters": 6, "nr_layers": 3, "kernel_size": 3, "nr_out_filters": 12}
PLAIN = {"nr_filters": 6, "nr_resnet": 2, "nr_out_filters": 12}
RESNET = {"nr_filters": 10, "nr_resnet": 1}
WAVE = {"num_cycles": 2, "layers_per_cycle": 2, "residual_channels": 10, "skip_channels": 20}
CLASSES = {"num_labels": 3}

CASES = {
    "pixelcnn": Case(PixelCNN, (3, 3, 4), PLAIN),
    "pixelcnn-mixture": Case(PixelCNN, (3, 4, 5), PLAIN | {"head": "mixture"}),
    "pixelcnn-bernoulli": Case(PixelCNN, (1, 4, 3), PLAIN | {"head": "bernoulli", "num_levels": 2}),
    "gated": Case(GatedPixelCNN, (3, 4, 3), GATED | CLASSES),
    "gated-grey": Case(GatedPixelCNN, (1, 5, 4), GATED | {"kernel_size": 5}),
    "gated-mixture": Case(GatedPixelCNN, (3, 3, 5), GATED | CLASSES | {"head": "mixture"}),
    "pixelcnnpp": Case(PixelCNNPP, (3, 8, 4), RESNET),
    "pixelcnnpp-grey": Case(PixelCNNPP, (1, 4, 12), RESNET | CLASSES),
    "wavenet": Case(WaveNet, (), WAVE),
    "wavenet-conditional": Case(WaveNet, (), WAVE | CLASSES | {"local_channels": 5, "kernel_size": 3}),
    "wavenet-mixture": Case(WaveNet, (), WAVE | {"head": "mixture", "kernel_size": 3}),
    "made": Case(MADE, (1, 3, 4), {"hidden": (50, 35), "num_orders": 3}, order=2),
    "made-linear": Case(MADE, (3, 2, 2), {"hidden": (), "head": "categorical"} | CLASSES),
    "made-one-layer": Case(
        MADE, (1, 4, 3), {"hidden": (70,), "head": "bernoulli", "num_levels": 2, "num_orders": 2}, order=1
    ),
    "made-classes": Case(
        MADE, (1, 3, 3), {"hidden": (40, 5), "head": "categorical", "num_orders": 2} | CLASSES, order=1
    ),
}

models = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
executors = pytest.mark.parametrize("executor", EXECUTORS)
some = pytest.mark.parametrize("name", ["gated", "pixelcnnpp", "wavenet-conditional", "made"])


@functools.cache
def naive(case, completed=False):
    """Three samples by full passes, or completions of `case.given(3)` at temperature 0.5."""
    options = {"label": case.label(3)} | case.conditions(3)
    if case.model is MADE:
        options["order"] = case.order
    if case.model is WaveNet:
        options["length"] = TIMES
    if completed:
        given, keep = case.given(3)
        options |= {"given": case.whole(given), "mask": case.whole(keep), "temperature": 0.5}
    return case.built.sample(3, seed=5, method="naive", **options).reshape(3, *case.positions)


# ---- What a program computes ----------------------------------------------------------------------------


@executors
@models
def test_parameters_are_those_of_the_full_pass(case, executor):
    x = case.data(3)
    expected = case.params(x)
    scale = 1 + expected.abs().max()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        if dtype == torch.float32 and executor == "reference":
            continue  # torch's own products
        params = case.stepped(started(case.program(dtype), executor, 3, case.label(3)), x)
        assert params.dtype == dtype and params.shape == expected.shape
        assert (params - expected).abs().max() <= tolerance * scale, dtype


@models
def test_a_model_in_half_precision_computes_in_float32_with_its_weights(case):
    """Derived weights too, such as sums of biases and normalised weights, are not rounded."""
    case = replace(case)  # with a model of its own
    x, program = case.data(2), case.program(torch.float16)
    assert program.dtype == program.weight_dtype == torch.float32
    expected = case.params(x)
    params = case.stepped(program.start(2, case.label(2)), x)
    assert (params - expected).abs().max() <= 1e-5 * (1 + expected.abs().max())


@executors
@models
def test_samples_are_those_of_the_full_pass(case, executor):
    program = case.program()
    for n in (3, 1):
        drawn = case.sample(started(program, executor, n, case.label(n)), n)
        assert torch.equal(drawn, naive(case)[:n])


@executors
@models
def test_completion_keeps_what_is_given_and_draws_the_rest(case, executor):
    given, keep = case.given(3)
    x = torch.where(keep, given, torch.nan)
    run = started(case.program(), executor, 3, case.label(3))
    drawn = case.sample(run, 3, x, keep, temperature=0.5)
    assert torch.equal(drawn, naive(case, completed=True))
    assert torch.equal(drawn[keep], given[keep]) and not torch.equal(drawn, naive(case))


@executors
@some
def test_samples_have_the_noise_of_their_index(name, executor):
    case = CASES[name]
    label, local, program = case.label(5), case.local(5), case.program()
    every = case.sample(started(program, executor, 5, label), 5)
    assert torch.unique(every, dim=0).shape[0] == 5
    for index in ([4, 0, 3], [2, 0, 1]):
        run = started(program, executor, 3, None if label is None else label[index])
        x = torch.zeros(3, *case.positions, dtype=torch.double)
        run.sample(x, seed=5, samples=torch.tensor(index), local=None if local is None else local[index])
        assert torch.equal(x, every[index])
    run = started(program, executor, 3, None if label is None else label[2:])
    x = torch.zeros(3, *case.positions, dtype=torch.double)
    with first_sample(2):
        run.sample(x, seed=5, local=None if local is None else local[2:])
    assert torch.equal(x, every[2:])


@executors
def test_cold_samples_do_not_depend_on_the_noise(executor):
    case = CASES["gated-mixture"]
    program = case.program()
    cold = [
        case.sample(started(program, executor, 2, case.label(2)), 2, seed=s, temperature=0.0) for s in (1, 2)
    ]
    warm = [case.sample(started(program, executor, 2, case.label(2)), 2, seed=s) for s in (1, 2)]
    assert torch.equal(*cold) and not torch.equal(*warm)


@executors
@some
def test_training_leaves_a_program_as_it_is(name, executor, monkeypatch):
    if executor == "reference":
        monkeypatch.setattr(_library, "devices", frozenset())
    case = CASES[name]
    model = copy.deepcopy(case.built)
    program = decode.compile(model, **({"order": case.order} if name == "made" else {}))
    x = case.data(3)
    before = case.stepped(program.start(3, case.label(3)), x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert torch.equal(case.stepped(program.start(3, case.label(3)), x), before)


# ---- Bits -----------------------------------------------------------------------------------------------


@compiled_only
@pytest.mark.parametrize("form", ["float32", "float64", "bfloat16"])
@models
def test_bits_depend_neither_on_the_batch_nor_on_threads(case, form, threads):
    """Compared are all rings of a program at the end of its samples."""
    weights = "bfloat16" if form == "bfloat16" else None
    program = case.program(torch.float64 if form == "float64" else torch.float32, weights)
    most = 19
    conditions = case.conditions(most)

    def remembered(n):
        program.start(n, None if case.label(most) is None else case.label(most)[:n])
        x = torch.zeros(n, *case.positions, dtype=program.dtype)
        program.sample(x, seed=5, **{name: value[:n] for name, value in conditions.items()})
        state = program.state_dict()
        return [x, *(state[f"values.{i}"].transpose(0, 2) for i in range(len(program._plan.values)))]

    threads(1)
    whole = remembered(most)
    assert any(value.unique().numel() > 100 for value in whole[1:])
    for count, n in ((1, 1), (1, 2), (1, 5), (2, 1), (2, most), (3, 2), (3, 7), (3, most)):
        threads(count)
        for value, expected in zip(remembered(n), whole, strict=True):
            assert torch.equal(value, expected[:n]), (count, n)


@compiled_only
def test_bits_of_a_large_batch():
    case = CASES["wavenet-mixture"]
    program = case.program(torch.float32)
    many = case.sample(program.start(1500), 1500)
    assert torch.equal(many[:3], case.sample(program.start(3), 3)) and many[-1].unique().numel() > 3


@executors
@models
def test_empty_batches(case, executor):
    label = None if case.label(1) is None else torch.empty(0, dtype=torch.long)
    run = started(case.program(), executor, 0, label)
    assert case.sample(run, 0).shape == (0, *case.positions)
    local = case.local(0)
    said = run.start(0, label).step(None, *(() if local is None else [local[:, :, 0]]))
    assert said.shape[0] == 0 and said.shape[1] > 0
    before = run.state_dict()["cursor"].tolist()
    run.step(torch.empty(0, run._waiting.channels), *(() if local is None else [local[:, :, 0]]))
    assert run.state_dict()["cursor"].tolist() > before


# ---- States ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["compiled to compiled", "compiled to reference", "reference to compiled"])
@some
def test_a_state_continues_elsewhere(name, route, tmp_path):
    """The first half of a sample is fed value by value; another program of the model draws the rest."""
    if _library._C is None:
        pytest.skip("needs the compiled library")
    source, target = route.split(" to ")
    case = CASES[name]
    whole = case.sample(started(case.program(), "compiled", 2, case.label(2)), 2)
    if name == "made":
        order = case.built.orders[case.order]
        values = whole[:, :, order].unbind(2)
    else:
        draws = 3 if name == "gated" else 1
        values = [value for position in whole.unbind(2) for value in position.chunk(draws, 1)]
    half = len(values) // 2

    run = started(case.program(), source, 2, case.label(2))
    local = case.local(2)
    for i, value in enumerate([None, *values[:half]]):
        run.step(value, *(() if local is None else [local[:, :, i]]))
    torch.save(run.state_dict(), tmp_path / "state.pt")
    other = on(case.program().load_state_dict(torch.load(tmp_path / "state.pt")), target)
    assert other.batch == 2 and other.position == run.position
    x = whole.clone()
    if name == "made":
        x[:, :, order[half:]] = torch.nan
    else:
        x[:, :, run.position + 1 :] = torch.nan
    for continued in (run, other):
        assert torch.equal(case.sample(continued, 2, x.clone()), whole)
    if route == "compiled to compiled":
        state = other.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in run.state_dict().items())


def test_a_state_is_a_copy():
    """Both the rings and the labels are copied."""
    case = CASES["gated"]
    label = case.label(2)
    program = case.program().start(2, label)
    program.step()
    state = program.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    label.fill_(2)
    program.step(torch.ones(2, 1))
    assert all(torch.equal(before[key], value) for key, value in state.items())
    assert torch.equal(program.state_dict()["label"], torch.tensor([0, 1]))


def test_wrong_states():
    """A state that does not fit is refused before anything changes."""
    case = CASES["gated"]
    program = case.program().start(2, case.label(2))
    program.step()
    state, other = program.state_dict(), CASES["wavenet"].program().start(2).state_dict()
    program.step(torch.ones(2, 1))
    before = program.state_dict()
    for wrong, message in [
        ({}, "state: expected what state_dict of a program returns, got no values or no cursor"),
        ({k: v for k, v in state.items() if k != "cursor"}, "state: expected .* got no values or no cursor"),
        (other, r"state: expected values.0 of shape \(.*\), got \(.*\)"),
        ({k: v for k, v in state.items() if k != "values.3"}, "state: expected values.3 of .*, got None"),
        ({k: v for k, v in state.items() if k != "label"}, "label: expected 2 classes, got None"),
        *(
            (
                state | {"cursor": torch.tensor(cursor)},
                "state: expected a cursor at a draw or between positions",
            )
            for cursor in ([-1, 0], [0, 1], [0, 999], [0, -1], [13, 0], [0], [0, 0, 0], [0.0, 0.0], 0)
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            program.load_state_dict(wrong)
        assert all(torch.equal(value, before[key]) for key, value in program.state_dict().items())


# ---- Interruption ---------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@executors
@some
def test_an_exception_from_progress_stops_and_another_call_goes_on(name, executor):
    case = CASES[name]
    program = started(case.program(), executor, 3, case.label(3))
    reported = []
    whole = case.sample(program, 3, progress=reported.append)
    assert sum(reported) == (1 if name == "made" else case.positions[1])

    def stop(count):
        raise Stop

    run = started(case.program(), executor, 3, case.label(3))
    x, stops = torch.zeros_like(whole), 0
    while run.position < (run.length or TIMES):
        with pytest.raises(Stop):
            case.sample(run, 3, x, progress=stop)
        stops += 1
    assert stops > 1 or name == "made"
    assert torch.equal(x, whole)
    assert torch.equal(case.sample(run.start(3, case.label(3)), 3), whole)


#: Positions that take minutes to sample: a test that waits for their end has failed.
LONG = 2_000_000


def interrupted(sightings):
    """A program interrupted by SIGINT while it samples LONG positions, its `x`, and the positions at which
    another Python thread saw the program before it sent the signal."""
    torch.manual_seed(1)
    model = WaveNet(num_cycles=2, layers_per_cycle=5, residual_channels=64, skip_channels=256, num_levels=9)
    program = decode.compile(model).start(2)
    x, seen, ended = torch.full((2, 1, LONG), torch.nan), [], threading.Event()

    def interrupt():
        while len(seen) < sightings and not ended.wait(0.001):
            position = program.position
            if position not in (0, LONG, *seen[-1:]):
                seen.append(position)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        watcher.start()
        try:
            program.sample(x, seed=5)
        finally:
            ended.set()
            watcher.join()
    return program, x, seen


@compiled_only
def test_a_signal_stops_a_long_sample():
    """Ctrl-C stops between positions: drawn positions stay, and another call continues from there."""
    program, x, seen = interrupted(1)
    position = program.position
    drawn = ~x[0, 0].isnan()
    assert 0 < seen[0] <= position < LONG and drawn[:position].all() and not drawn[position:].any()
    continued = x[:, :, : position + 50].contiguous()
    program.sample(continued, seed=5)
    assert torch.equal(program.start(2).sample(torch.zeros_like(continued), seed=5), continued)


# ---- Threads and processes ------------------------------------------------------------------------------


@compiled_only
def test_programs_of_two_threads_run_at_once(threads):
    expected = {name: naive(CASES[name]) for name in ("gated", "wavenet")}
    threads(2)
    programs = {name: CASES[name].program() for name in expected}
    drawn = {name: [] for name in expected}

    def work(name):
        for _ in range(20):
            program = programs[name].start(3, CASES[name].label(3))
            drawn[name].append(CASES[name].sample(program, 3))

    workers = [threading.Thread(target=work, args=[name]) for name in expected]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for name, samples in drawn.items():
        assert len(samples) == 20 and all(torch.equal(x, expected[name]) for x in samples)


@compiled_only
def test_a_call_within_another_is_refused(threads):
    """From `progress`, or from another Python thread: the program's own threads are busy."""
    case, refused = CASES["wavenet"], []
    threads(2)
    program = case.program().start(1)

    def call(_):
        for again in (program.step, lambda: program.sample(x, seed=5)):
            with pytest.raises(RuntimeError, match="program: expected one call at a time"):
                again()
            refused.append(program.position)

    def call_elsewhere(more):
        worker = threading.Thread(target=call, args=[more])
        worker.start()
        worker.join()

    for progress in (call, call_elsewhere):
        refused.clear()
        x = torch.zeros(1, 1, TIMES, dtype=torch.double)
        program.start(1).sample(x, seed=5, progress=progress)
        assert refused and torch.equal(x, naive(case)[:1])


@compiled_only
@pytest.mark.skipif(sys.platform != "linux", reason="limits threads as Linux does")
def test_without_threads_an_error_is_raised_each_time():
    """Threads that could not start, for lack of memory for their stacks, are not waited for."""
    script = """
import resource
import torch
from decode.test_models import CASES
torch.set_num_threads(64)
program = CASES["wavenet"].program().start(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, before[1]))
for _ in range(2):
    try:
        program.step()
    except RuntimeError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, before)
program.step()
print("stepped")
"""
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, timeout=600)
    said = done.stdout.splitlines()
    assert len(said) == 3 and said[2] == "stepped", done
    assert all(line.startswith("gmfast: cannot start 63 threads: ") for line in said[:2])


@compiled_only
def test_other_python_threads_run_meanwhile():
    """One sees the program at many positions before the sample ends; with the GIL held it would see none."""
    program, _, seen = interrupted(20)
    assert len(seen) == 20 and seen == sorted(seen) and seen[0] > 0 and seen[-1] <= program.position < LONG


@compiled_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_goes_on(threads):
    """The child has none of the parent's threads, which sleep at the fork. It continues the program several
    times, with pauses in which its own threads sleep; starts it again; and frees a program of its parent."""
    case = CASES["wavenet"]
    expected = naive(case)
    threads(3)
    program, other = case.program().start(3), case.program().start(3)
    x = torch.zeros_like(expected)
    first, rest = x[:, :, :3].contiguous(), range(6, TIMES + 1)
    for run in (program, other):
        run.sample(first, seed=5)
    time.sleep(0.2)
    child = os.fork()
    if child == 0:
        signal.alarm(300)  # ends it if it hangs
        status = 1
        try:
            for length in rest:
                begun = torch.zeros(3, 1, length, dtype=torch.double)
                program.sample(begun, seed=5)
                x[:, :, length - 1] = begun[:, :, -1]
                time.sleep(0.02)
            assert torch.equal(x[:, :, 5:], expected[:, :, 5:])
            assert torch.equal(case.sample(program.start(3), 3), expected)
            del other
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    program.sample(x, seed=5)
    assert torch.equal(x[:, :, 3:], expected[:, :, 3:])


# ---- Wrong arguments ------------------------------------------------------------------------------------


def test_wrong_labels_and_features():
    program = CASES["wavenet-conditional"].program()
    for label, message in [
        (None, "label: expected 2 classes, got None"),
        (torch.tensor([0]), r"label: expected 2 classes, got torch.int64 of shape \(1,\)"),
        (torch.tensor([0.0, 1.0]), r"label: expected 2 classes, got torch.float32 of shape \(2,\)"),
        (torch.tensor([0, 3]), "label: expected classes from 0 to 2, got values from 0 to 3"),
        (torch.tensor([-1, 1]), "label: expected classes from 0 to 2, got values from -1 to 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            program.start(2, label)
    for label in (1, [0, 1]):
        with pytest.raises(TypeError, match=f"label: expected a tensor, got {type(label).__name__}"):
            program.start(2, label)
    program.start(2, torch.tensor([0, 1], dtype=torch.uint8))
    with pytest.raises(TypeError, match="local: expected a tensor, got list"):
        program.step(None, [[0.0] * 5] * 2)
    for local, came in [
        (None, "None"),
        (torch.zeros(2, 4), r"\(2, 4\)"),
        (torch.zeros(2, 5, 1), r"\(2, 5, 1\)"),
    ]:
        with pytest.raises(ValueError, match=rf"local: expected shape \(2, 5\), got {came}"):
            program.step(None, local)
    with pytest.raises(ValueError, match=r"local: expected shape \(2, 5, 7\), got \(2, 5, 6\)"):
        program.sample(torch.zeros(2, 1, 7).double(), local=torch.zeros(2, 5, 6))


def test_wrong_samples():
    """Each is refused before anything is drawn."""
    case = CASES["pixelcnn-mixture"]
    program = case.program().start(2)
    x = torch.zeros(2, 3, 20, dtype=torch.double)
    red = torch.tensor([True, False, False])[:, None]
    expected = r"x: expected a contiguous tensor of torch.float64 of shape \(2, 3, 20\) on cpu, got"
    for wrong, options, message in [
        (x[:1], {}, rf"{expected} torch.float64 of shape \(1, 3, 20\)"),
        (x[:, :1], {}, rf"{expected} torch.float64 of shape \(2, 1, 20\)"),
        (x[:, :, :19].contiguous(), {}, rf"{expected} torch.float64 of shape \(2, 3, 19\)"),
        (x.sum(), {}, rf"{expected} torch.float64 of shape \(\)"),
        (x.float(), {}, rf"{expected} torch.float32 of shape \(2, 3, 20\)"),
        (x.transpose(0, 1).contiguous().transpose(0, 1), {}, f"{expected} torch.float64"),
        (
            x,
            {"keep": torch.ones(2, 2, 20)},
            r"keep: expected a shape that expands to \(2, 3, 20\), got \(2, 2,",
        ),
        (x, {"keep": red}, "keep: expected the same for all channels, which are drawn together"),
        (x, {"temperature": -1.0}, r"temperature: expected a number in \[0, 1e\+30\], got -1.0"),
        (
            x,
            {"samples": torch.arange(3)},
            r"samples: expected 2 int64 indices on cpu, got torch.int64 of .*3",
        ),
        *(
            (
                x,
                {"samples": torch.tensor([0, index])},
                "samples: expected indices from 0 to .*, got values from",
            )
            for index in (-1, 2**32)
        ),
        (x, {"samples": torch.ones(2)}, r"samples: expected 2 int64 indices on cpu, got torch.float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            program.sample(wrong, seed=5, **options)
    for wrong, options, message in [
        (x.tolist(), {}, "x: expected a tensor, got list"),
        (x, {"keep": [True]}, "keep: expected a tensor, got list"),
        (x, {"samples": [0, 1]}, "samples: expected a tensor, got list"),
        (x, {"progress": True}, "progress: expected a function, got bool"),
    ]:
        with pytest.raises(TypeError, match=message):
            program.sample(wrong, seed=5, **options)
    assert program.position == 0 and not x.any()
    kept = program.sample(x + 0.5, torch.full((20,), 0.25), seed=5)  # not zero: all is kept
    assert (kept == 0.5).all()
    with pytest.raises(ValueError, match=r"x: expected .* of shape \(1, 1, 12\)"):
        CASES["made"].program().start(1).sample(torch.zeros(1, 1, 1).double())
