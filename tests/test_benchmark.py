"""The harness behind `gmfast bench`, on cases whose ratios are known, and the cases that it ships."""

import csv
import io
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gmfast
from gmfast import benchmark
from gmfast.benchmark import Case, Target

BENCHMARKS = Path(gmfast.__file__).parents[1] / "benchmarks"


@pytest.fixture
def ledger(monkeypatch):
    """Time by the book: a call takes the seconds it adds here, or half a second if it adds none (a copy).
    What is "compiled" takes 2."""
    book = [0.0]

    def clock(calls):
        def sample():
            before = book[0]
            calls[0]()
            return book[0] - before or 0.5

        sample()
        return sample

    def compile(function, *, fullgraph, dynamic):
        assert fullgraph
        return costing(2, book)

    monkeypatch.setattr(benchmark, "host_clock", clock)
    monkeypatch.setattr(torch, "compile", compile)
    return book


def costing(seconds, book):
    def function(x):
        book[0] += seconds
        return 2 * x

    return function


def fake_case(book, **changes):
    case = Case(
        operation="fake",
        shape=(2, 3),
        inputs=lambda case, device: (torch.ones(case.shape, device=device),),
        gmfast=costing(1, book),
        baselines={"slow": costing(7, book), "fast": costing(5, book)},
    )
    return replace(case, **changes)


def measured(book, **changes):
    return benchmark.measure(fake_case(book, **changes), torch.device("cpu"), seconds=0)


@pytest.mark.parametrize("direction", ["forward", "recorded", "forward+backward"])
def test_known_ratios(ledger, direction):
    row = measured(ledger, direction=direction, peers={"peer": costing(4, ledger)})
    assert row["eager_variant"] == "fast"
    assert (row["over_eager"], row["over_compile"], row["over_peer"]) == (5, 2, 4)
    assert (row["eager_ms"], row["compile_ms"], row["gmfast_ms"]) == (5000, 2000, 1000)
    assert (row["over_eager_q1"], row["over_eager_q3"]) == (5, 5)
    assert row["slower_than_compile"] == "no" and row["reached"] == row["note"] == ""


def test_ratio_is_taken_within_a_round():
    # The machine slows down tenfold in the second half; the ratio does not notice.
    times = {"slow": iter([0, 6, 4, 40, 60, 50]), "fast": iter([0, 3, 2, 20, 30, 25])}
    samplers = {name: times[name].__next__ for name in times}
    rounds = benchmark.rounds_of(samplers, seconds=0, fewest=5)
    assert rounds["slow"] == [6, 4, 40, 60, 50]
    assert benchmark.ratio(rounds["slow"], rounds["fast"]) == (2, 2, 2)


def test_targets(ledger):
    def reached(target):
        return measured(ledger, targets={"cpu": target})["reached"]

    assert reached(Target(eager=5, compile=2)) == "yes"
    assert reached(Target(eager=5.1, compile=2)) == "no"
    assert reached(Target(eager=5, compile=2.1)) == "no"
    assert reached(Target(us=1e6)) == "yes"
    assert reached(Target(us=0.9e6)) == "no"
    assert reached(Target(share=0.8)) == "no"  # too small for a share
    assert measured(ledger, targets={"cuda": Target(eager=5)})["reached"] == ""
    assert str(Target(eager=10, compile=4.5)) == "≥ 10× eager, ≥ 4.5× compile"


def test_share_of_bandwidth(ledger):
    row = measured(ledger, shape=(512, 512), targets={"cpu": Target(share=0.5)})
    assert row["bytes"] == 2 * 512 * 512 * 4
    assert row["copy_GB_s"] == row["clone_GB_s"] == row["bytes"] / 0.5 / 1e9
    assert row["share"] == 0.5 and row["reached"] == "yes"


def test_slower_than_compile_is_loud(ledger):
    rows = [measured(ledger, gmfast=costing(4, ledger), targets={"cpu": Target(eager=1)})]
    assert rows[0]["slower_than_compile"] == "yes" and rows[0]["over_compile"] == 0.5
    text = io.StringIO()
    benchmark.Table([fake_case(ledger)], file=text).add(rows[0])
    assert "slower than compile" in text.getvalue() and "reached" not in text.getvalue()
    assert benchmark.summary(rows).splitlines() == [
        "faster than eager PyTorch in 1 of 1 cases, torch.compile in 0 of 1 cases",
        "slower than torch.compile: fake (2,3) forward",
    ]
    assert benchmark.summary(rows, targets=True).startswith("1 of 1 targets reached; faster than")
    assert benchmark.cells(rows[0], targets=True)[-1] == "slower than compile, ≥ 1× eager reached"


def test_a_column_that_fails_is_noted(ledger, monkeypatch):
    def no_compiler(function, **options):
        def fail(x):
            raise RuntimeError("no C++ compiler\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    row = measured(ledger, targets={"cpu": Target(compile=1)})
    assert row["over_eager"] == 5 and row["over_compile"] is None and row["reached"] == "no"
    assert row["note"] == "compile slow failed: no C++ compiler; compile fast failed: no C++ compiler"
    assert "—" in benchmark.cells(row)


def test_quick_compiles_only_the_fastest_eager(ledger, monkeypatch):
    compiled = []
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(f) or original(f, **options))
    case = fake_case(ledger)
    row = benchmark.measure(case, torch.device("cpu"), seconds=0, compiling="fastest")
    assert compiled == [case.baselines["fast"]] and row["compile_variant"] == "fast"
    row = benchmark.measure(case, torch.device("cpu"), seconds=0, compiling="none")
    assert len(compiled) == 1 and row["over_compile"] is None


def test_bytes_moved():
    x, y = torch.ones(4, 6), torch.ones(4, 3)
    case = fake_case([0.0])
    assert benchmark.bytes_moved(case, (x,), y) == 96 + 48
    # Forward as above; backward reads the output's gradient and x, and writes x's gradient.
    backward = replace(case, direction="forward+backward")
    assert benchmark.bytes_moved(backward, (x,), y) == 144 + 48 + 96 + 96
    assert benchmark.bytes_moved(replace(backward, one_pass=True), (x,), y) == 144 + 96


@pytest.fixture
def now(monkeypatch):
    """The time that the benchmark's clock shows: a test moves it on, and reading it by a nanosecond."""
    time = [0.0]

    def perf_counter():
        time[0] += 1e-9
        return time[0]

    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=perf_counter))
    return time


def test_host_clock_is_that_of_the_wall():
    assert benchmark.host_clock([lambda: time.sleep(2e-3)])() >= 2e-3


def test_host_clock(now):
    calls = []

    def lasting(seconds):
        def call():
            calls.append(seconds)
            now[0] += seconds

        return call

    assert benchmark.host_clock([lasting(2e-3)])() == pytest.approx(2e-3)
    sample = benchmark.host_clock([lasting(1e-6)])
    before = len(calls)
    assert sample() == pytest.approx(1e-6) and len(calls) - before > 10  # short calls are repeated


def test_main_writes_csv_and_png(ledger, tmp_path, capsys):
    cases = [
        fake_case(ledger, operation="one", targets={"cpu": Target(eager=5)}),
        fake_case(ledger, operation="one", direction="forward+backward", dtype=torch.bfloat16),
        fake_case(ledger, operation="two", options={"K": 3}, baselines={"eager": costing(0.5, ledger)}),
        fake_case(ledger, operation="two", devices=("cuda",)),
    ]
    rows = benchmark.main(tmp_path / "out", device="cpu", cases=cases)
    assert [(row["operation"], row["case"]) for row in rows] == [
        ("one", "(2,3)"),
        ("one", "(2,3) bfloat16"),
        ("two", "(2,3) K=3"),
    ]
    with open(tmp_path / "out" / "bench.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["over_eager"]) for line in lines] == [5, 5, 0.5]
    for line in lines:
        assert line["torch"] == torch.__version__ and line["gmfast"] == gmfast.__version__
        assert int(line["threads"]) == torch.get_num_threads() and line["date"]
    assert (tmp_path / "out" / "bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    printed = capsys.readouterr().out
    assert "faster than eager PyTorch in 2 of 3 cases" in printed and "target" not in printed
    assert not {"target", "reached"} & set(lines[0])

    (row,) = benchmark.main(tmp_path / "quick", quick=True, device="cpu", cases=cases, targets=True)
    assert row["operation"] == "one" and row["reached"] == "yes"
    assert "1 of 1 targets reached" in capsys.readouterr().out
    assert ",reached," in (tmp_path / "quick" / "bench.csv").read_text()


def test_some_operations_are_chosen_by_a_word_of_their_names():
    chosen = benchmark.cases_of(["actnorm", "causal_conv1d"])
    assert {case.operation for case in chosen} == {
        "actnorm",
        "causal_conv1d",
        "causal_conv1d, depthwise, silu",
    }
    with pytest.raises(ValueError, match=r"operations: expected some of actnorm, .*, got 'actnorn'"):
        benchmark.cases_of(["actnorn"])


def test_main_stops_when_time_is_up(ledger, now, tmp_path, capsys):
    target = {"cpu": Target(eager=5)}
    cases = [fake_case(ledger), fake_case(ledger, operation="wanted", targets=target), fake_case(ledger)]
    original = cases[1].gmfast

    def late(x):
        now[0] += 0.05
        return original(x)

    cases[1] = replace(cases[1], gmfast=late)
    rows = benchmark.main(tmp_path, device="cpu", cases=cases, seconds=0.04)
    assert [row["operation"] for row in rows] == ["wanted"]  # those with a target come first
    assert "time is up: 2 of 3 cases left out" in capsys.readouterr().out


def test_a_budget_is_shared_and_decides_what_is_compiled(now):
    budget = benchmark.Budget(10, 4)
    with budget.case() as options:
        assert options == {"seconds": 0.7, "compiling": "fastest"}
        now[0] += 6
    with budget.case() as options:  # another such compilation would leave no time for the others
        assert options == {"seconds": pytest.approx(4 / 9), "compiling": "none"}
        now[0] += 1
    assert not budget.spent()
    now[0] += 3.1
    assert budget.spent()


def test_a_real_case(tmp_path):
    case = next(case for case in benchmark.load_cases() if case.operation == "concat_elu")
    case = replace(case, shape=(2, 4, 5, 5), direction="forward+backward")
    (row,) = benchmark.main(tmp_path, device="cpu", cases=[case])
    assert row["note"] == "" and row["rounds"] >= 5
    assert min(row[f"{column}_ms"] for column in ("eager", "compile", "gmfast")) > 0


CASES = [case for case in benchmark.load_cases() if "cpu" in case.devices and case.direction == "forward"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.operation} {case}")
def test_columns_compute_the_same(case):
    torch.manual_seed(0)
    inputs = case.inputs(case, torch.device("cpu"))
    # In float32 differences of two tanh or erfc cancel, and so do those of knots near each other.
    if case.operation in ("discretized_gaussian_nll", "rational_quadratic_spline"):
        inputs = [t.double() for t in inputs]
    outputs = benchmark.as_tuple(case.gmfast(*inputs, **drawn(case, seed=None)))
    # What a half result is measured by: a baseline that stays in halves may be far off itself.
    exact = [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in inputs]
    for name, baseline in case.baselines.items():
        # The published likelihood is an approximation.
        tolerance = 2e-2 if name == "published" or case.dtype == torch.bfloat16 else 1e-4
        wanted = benchmark.as_tuple(baseline(*exact, **drawn(case)))
        for got, want in zip(outputs, wanted, strict=True):
            assert got.shape == want.shape
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, check_dtype=False)


def drawn(case, **options):
    """For an operation that draws its noise: the same for all columns."""
    draws = case.options.get("noise") == "drawn" or case.options.get("sampler") == "DDPM"
    if case.operation != "dequantize_logit" and not draws:
        return {}
    return options | {"noise": torch.rand(case.shape, generator=torch.Generator().manual_seed(1))}


def test_every_operation_has_a_target():
    operations = {case.operation for case in CASES}
    with_target = {case.operation for case in CASES if case.targets.get("cpu")}
    assert {"discretized_logistic_mixture_nll", "gated_activation", "concat_elu"} <= operations == with_target


def test_gpu_kernels_script():
    from gmfast.benchmarks import gpu_kernels

    gpu_kernels.check(torch.device("cpu"))


def test_gpu_decode_script():
    from gmfast.benchmarks import gpu_decode

    gpu_decode.check(torch.device("cpu"))


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="not in the source tree")
def test_gpu_check_says_how_it_is_used():
    script = BENCHMARKS / "gpu_check.sh"
    subprocess.run(["bash", "-n", script], check=True)
    result = subprocess.run(["bash", script], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr == "usage: benchmarks/gpu_check.sh OUT\n"
