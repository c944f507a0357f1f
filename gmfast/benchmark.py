"""`gmfast bench`: every operation beside eager PyTorch and `torch.compile`, in one run of one process.

What is measured is data: each `benchmarks/bench_STEM.py` has a list `CASES`. How it is measured is here:

- The columns of a case take turns, round after round, so that a change of the machine's state meets all
  of them. A ratio is the median over the rounds of the ratio within a round; its spread is the
  interquartile range.
- eager is the fastest plain PyTorch formulation that the case knows; compile is the fastest of the same
  formulations under `torch.compile(fullgraph=True)`. Both are run on the tensors that gmfast gets.
- copy and clone move as many bytes as the operation must: each input read once, each output written once.
  copy writes into an existing buffer, clone into a fresh one. Operators return fresh outputs, so the share
  of bandwidth is clone's time over gmfast's.
- On a GPU, one CUDA graph runs a column over input sets that together exceed the L2 cache, and its replay
  is timed with events. That is device time, kinder to eager PyTorch than its own launches are.
"""

import contextlib
import csv
import ctypes
import math
import os
import pkgutil
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from statistics import median, quantiles

import torch

import gmfast

from . import _library

SAMPLE_SECONDS = 1e-3  # a timed sample repeats a call until it lasts this long
SMALLEST_COPY = 1 << 20  # bytes; below, a copy measures the call and not the memory
SLOW = 0.02  # seconds; a call that takes longer is not repeated to warm up
QUICK_SECONDS = 60  # of `quick`, beside importing torch and drawing the picture
#: Columns of the project's own targets.
TARGETS = ("target", "target_over_eager", "target_over_compile", "reached")


# ---- What is measured --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Targets of a case: times faster than a column, share of the bandwidth, microseconds a call."""

    eager: float | None = None
    compile: float | None = None
    share: float | None = None
    us: float | None = None
    peer: float | None = None

    def __str__(self):
        parts = {
            "eager": f"≥ {self.eager or 0:g}× eager",
            "compile": f"≥ {self.compile or 0:g}× compile",
            "share": f"≥ {100 * (self.share or 0):g}%",
            "us": f"≤ {self.us or 0:g} µs",
            "peer": f"≥ {self.peer or 0:g}× peer",
        }
        return ", ".join(text for name, text in parts.items() if getattr(self, name) is not None)

    def reached(self, row):
        """True if a row of measurements reaches each of them."""
        at_least = {"eager": "over_eager", "compile": "over_compile", "share": "share", "peer": "over_peer"}
        goals = [(getattr(self, goal), row[column]) for goal, column in at_least.items()]
        return all(goal is None or (got is not None and got >= goal) for goal, got in goals) and (
            self.us is None or row["gmfast_ms"] <= self.us / 1e3
        )


@dataclass(frozen=True)
class Case:
    """An operation on inputs of one shape, dtype and layout, in one direction.

    `inputs(case, device)` makes one tuple of tensors, which `gmfast` and every one of `baselines` and
    `peers` take. Directions: "forward"; "recorded", a forward call that autograd records;
    "forward+backward", with the gradients of the inputs numbered in `wrt`.
    """

    operation: str
    shape: tuple[int, ...]
    inputs: Callable
    gmfast: Callable
    baselines: dict[str, Callable]
    direction: str = "forward"
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    options: dict = field(default_factory=dict)
    wrt: tuple[int, ...] = (0,)
    one_pass: bool = False  # the gradient comes with the result: the inputs are read once
    targets: dict[str, Target] = field(default_factory=dict)  # by device type
    peers: dict[str, Callable] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu", "cuda")
    host_clock: bool = False  # time the call itself, on a GPU too
    compiled: bool = True  # False: a baseline whose loop is unrolled takes minutes to compile
    quick: bool = False  # for `--quick`, rather than the operation's first case with a target

    def __str__(self):
        shape = "(" + ",".join(map(str, self.shape)) + ")"
        options = [f"{name}={value}" for name, value in self.options.items()]
        dtype = "" if self.dtype == torch.float32 else str(self.dtype).removeprefix("torch.")
        layout = "" if self.layout == "contiguous" else self.layout
        return " ".join(part for part in (shape, *options, dtype, layout) if part)


def both_directions(forward=None, backward=None, **case):
    """The case forward and forward+backward, with the targets of each, by device type."""
    return [
        Case(direction="forward", targets=forward or {}, **case),
        Case(direction="forward+backward", targets=backward or {}, **case),
    ]


def normal(case, device, shape=None):
    """Normal numbers in the case's dtype and layout, of its shape if no other is given."""
    x = torch.randn(shape or case.shape, device=device).to(case.dtype)
    return x.to(memory_format=torch.channels_last) if case.layout == "channels_last" else x


def load_cases():
    """The CASES of every benchmarks/bench_*.py, which a wheel carries as the package gmfast.benchmarks."""
    try:
        package = import_module("gmfast.benchmarks")
    except ModuleNotFoundError:
        raise FileNotFoundError(
            f"no folder benchmarks beside {__file__}: the benchmarks are not installed"
        ) from None
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("bench_"))
    # The cost of a call comes last: it is about all operations.
    names.sort(key=lambda name: name == "bench_overhead")
    return [case for name in names for case in import_module(f"gmfast.benchmarks.{name}").CASES]


# ---- How it is timed ---------------------------------------------------------------------------------


def cases_of(operations):
    """Those of operations with one of these words in their names."""
    cases = load_cases()
    names = ", ".join(dict.fromkeys(case.operation.split(",")[0] for case in cases))
    for word in operations:
        if not any(word in case.operation for case in cases):
            raise ValueError(f"operations: expected some of {names}, got {word!r}")
    return [case for case in cases if any(word in case.operation for word in operations)]


def bind(function, case, inputs):
    """A call without arguments that does the case's work on one set of inputs."""
    if case.direction == "forward":
        return lambda: function(*inputs)
    inputs = list(inputs)
    for i in case.wrt:
        inputs[i] = inputs[i].detach().requires_grad_()
    leaves = [inputs[i] for i in case.wrt]
    if case.direction == "recorded":
        return lambda: function(*inputs)
    grad_outputs = [torch.randn_like(t) if t.dim() else None for t in as_tuple(function(*inputs))]
    return lambda: torch.autograd.grad(as_tuple(function(*inputs)), leaves, grad_outputs)


def as_tuple(outputs):
    """The outputs of an operation that has one or several."""
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


def host_clock(calls):
    """A function that returns the seconds of one call by the host's clock."""

    def timed(repeats):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    call = calls[0]
    repeats = _repeats(timed(3), most=1000) if timed(1) < SLOW or timed(1) < SLOW else 1
    return lambda: timed(repeats)


def asynchronous_host_clock(calls):
    """The seconds that the host spends in one call on a GPU; the launch queue is empty at the start."""

    def timed(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    call = calls[0]
    timed(3)
    return lambda: timed(100)


def device_clock(calls):
    """The seconds of one call on the GPU: a graph of all `calls` is replayed, or else they run."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in (*calls, *calls):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = [call() for call in calls]  # alive together: every call writes to memory of its own
        run = graph.replay
    except RuntimeError:
        torch.cuda.synchronize()
        kept = None

        def run():
            for call in calls:
                call()

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(repeats):
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats / len(calls)

    timed(2)
    repeats = _repeats(timed(3) * len(calls), most=100)
    sample = lambda: timed(repeats)  # noqa: E731
    sample.kept = kept
    sample.captured = kept is not None
    return sample


def _repeats(seconds, most):
    return max(1, min(most, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9))))


def keep_freed_memory():
    """Tell glibc to give no freed memory back to the system, as other allocators do not.

    Otherwise it depends on what lies where in the heap which column's tensors are new pages at each call,
    and faulting those in takes longer than most operations.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(parameter, 1 << 30)


def rounds_of(samplers, seconds, fewest=5, most=200):
    """Every sampler once a round, for about `seconds`: a list of times for each."""
    start = time.perf_counter()
    for sample in samplers.values():  # the round that warms up also says how long a round is
        sample()
    rounds = max(fewest, min(most, int(seconds / (time.perf_counter() - start))))
    times = {name: [] for name in samplers}
    for _ in range(rounds):
        for name, sample in samplers.items():
            times[name].append(sample())
    return times


def ratio(numerator, denominator):
    """Median and quartiles of the ratio within a round."""
    ratios = [n / d for n, d in zip(numerator, denominator, strict=True)]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


# ---- One case ----------------------------------------------------------------------------------------


def bytes_moved(case, inputs, output):
    """Each input read once and each output written once; a backward of its own also reads what it needs."""
    outputs = sum(t.nbytes for t in as_tuple(output))
    size = sum(t.nbytes for t in inputs) + outputs
    if case.direction == "forward+backward":
        gradients = sum(inputs[i].nbytes for i in case.wrt)
        size += gradients
        if not case.one_pass:
            size += gradients + outputs
    return size


def input_sets(case, device):
    """One set of inputs; on a GPU so many that together they are three times its L2 cache, at most 64."""
    torch.manual_seed(0)
    sets = [case.inputs(case, device)]
    if device.type == "cuda" and not case.host_clock:
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
        count = math.ceil(3 * cache / max(1, sum(t.nbytes for t in sets[0])))
        sets += [case.inputs(case, device) for _ in range(min(count, 64) - 1)]
    return sets


def fastest(samplers):
    """The name of the sampler with the smallest median; a sampler that failed (None) is left out."""
    samplers = {name: sample for name, sample in samplers.items() if sample is not None}
    if len(samplers) < 2:
        return next(iter(samplers), None)
    times = rounds_of(samplers, seconds=0, fewest=5)
    return min(times, key=lambda name: median(times[name]))


def measure(case, device, *, seconds=3.0, compiling="all"):
    """One row of the results. `compiling`: "all" baselines, the "fastest" eager one alone, or "none"."""
    torch._dynamo.reset()
    sets = input_sets(case, device)
    notes = []
    if device.type == "cpu":
        clock = host_clock
    else:
        clock = asynchronous_host_clock if case.host_clock else device_clock

    def sampler(function, what):
        try:
            return clock([bind(function, case, inputs) for inputs in sets])
        except Exception as error:  # one column less, and the row says so
            notes.append(f"{what} failed: {str(error).strip().splitlines()[0][:200]}")
            return None

    def fullgraph(function):
        return torch.compile(function, fullgraph=True, dynamic=False)

    columns = {"gmfast": clock([bind(case.gmfast, case, inputs) for inputs in sets])}
    eager = {name: sampler(function, f"eager {name}") for name, function in case.baselines.items()}
    eager_best = fastest(eager)
    names = {"all": [*case.baselines], "fastest": [eager_best], "none": []}[
        compiling if case.compiled else "none"
    ]
    compiled = {name: sampler(fullgraph(case.baselines[name]), f"compile {name}") for name in names}
    compile_best = fastest(compiled)
    columns["eager"], columns["compile"] = eager.get(eager_best), compiled.get(compile_best)
    columns |= {name: sampler(function, name) for name, function in case.peers.items()}

    size = bytes_moved(case, sets[0], case.gmfast(*sets[0]))
    if size >= SMALLEST_COPY:
        pairs = [[torch.randn(size // 8, device=device) for _ in range(2)] for _ in sets]
        columns["copy"] = clock([lambda to=to, source=source: to.copy_(source) for to, source in pairs])
        columns["clone"] = clock([lambda source=source: source.clone() for _, source in pairs])

    columns = {name: sample for name, sample in columns.items() if sample is not None}
    captured = {name for name, sample in columns.items() if getattr(sample, "captured", False)}
    if clock is device_clock and captured != set(columns):
        notes.append("not captured as a graph: " + ", ".join(sorted(set(columns) - captured)))
    times = rounds_of(columns, seconds)

    def over(name):
        return ratio(times[name], times["gmfast"]) if name in times else (None, None, None)

    row = {
        "operation": case.operation,
        "case": str(case),
        "direction": case.direction,
        "dtype": str(case.dtype).removeprefix("torch."),
        "layout": case.layout,
        **{
            f"{name}_ms": median(times[name]) * 1e3 if name in times else None
            for name in ("eager", "compile", "gmfast")
        },
        **dict(zip(("over_eager", "over_eager_q1", "over_eager_q3"), over("eager"), strict=True)),
        **dict(zip(("over_compile", "over_compile_q1", "over_compile_q3"), over("compile"), strict=True)),
        "peer": "",
        "peer_ms": None,
        "over_peer": None,
        "bytes": size,
        "copy_GB_s": size / median(times["copy"]) / 1e9 if "copy" in times else None,
        "clone_GB_s": size / median(times["clone"]) / 1e9 if "clone" in times else None,
        "share": over("clone")[0],
        "eager_variant": eager_best,
        "compile_variant": compile_best,
        "clock": {host_clock: "host", device_clock: "device"}.get(clock, "host, asynchronous"),
        "rounds": len(times["gmfast"]),
    }
    if peers := [name for name in case.peers if name in times]:
        row["peer"] = min(peers, key=lambda name: median(times[name]))
        row |= {"peer_ms": median(times[row["peer"]]) * 1e3, "over_peer": over(row["peer"])[0]}
    target = case.targets.get(device.type)
    row |= {"target_over_eager": target and target.eager, "target_over_compile": target and target.compile}
    row["target"] = str(target or "")
    row["reached"] = "" if target is None else ("yes" if target.reached(row) else "no")
    row["slower_than_compile"] = "yes" if "compile" in slower_than(row) else "no"
    row["note"] = "; ".join(notes)
    return row


def slower_than(row):
    """Names of the columns that gmfast is slower than in a row."""
    columns = {"eager": row["over_eager"], "compile": row["over_compile"], row["peer"]: row["over_peer"]}
    return [name for name, over in columns.items() if over is not None and over < 1]


# ---- Where it was measured ---------------------------------------------------------------------------


def environment(device):
    """Describe the machine and the software, without which a figure means nothing."""
    level = _library._C.cpu_level() if _library._C else "no compiled library"
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "gmfast": gmfast.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "device": device.type,
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": level,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "load": round(os.getloadavg()[0], 2),
    }


def _commit():
    """The commit these sources are at, with a + where they differ; GMFAST_COMMIT says it for a copy."""
    if commit := os.environ.get("GMFAST_COMMIT"):
        return commit

    def git(*arguments):
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "_version.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def describe(environment):
    """The environment in a sentence."""
    e = environment
    where = (
        e["gpu"]
        or f"{e['processor'] or e['machine']}, {e['threads']} of {e['cores']} cores, SIMD {e['simd']}"
    )
    commit = f" ({e['commit']})" if e["commit"] else ""
    return f"gmfast {e['gmfast']}{commit}, torch {e['torch']}, {where}, {e['date']}"


# ---- Results -----------------------------------------------------------------------------------------

HEADINGS = ("case", "direction", "eager", "compile", "gmfast", "× eager", "× compile", "share", "")


def cells(row, targets=False):
    """One line of the table, as text; with the project's targets or without."""

    def milliseconds(value):
        if value is None:
            return "—"
        return (
            f"{value * 1e3:.3g} µs"
            if value < 0.1
            else f"{value:.3g} ms"
            if value < 100
            else f"{value:.0f} ms"
        )

    def times(name):
        if row[name] is None:
            return "—"
        spread = (row[f"{name}_q3"] - row[f"{name}_q1"]) / row[name] / 2
        return f"{row[name]:.{0 if row[name] >= 100 else 1 if row[name] >= 9.95 else 2}f} ±{spread:.0%}"

    slower = slower_than(row)
    remarks = [
        f"{row['over_peer']:.3g}× {row['peer']}" if row["peer"] else "",
        f"slower than {' and '.join(slower)}" if slower else "",
        f"{row['target']} {'reached' if row['reached'] == 'yes' else 'MISSED'}"
        if targets and row["reached"]
        else "",
        f"({row['note']})" if row["note"] else "",
    ]
    return (
        row["case"],
        row["direction"],
        milliseconds(row["eager_ms"]),
        milliseconds(row["compile_ms"]),
        milliseconds(row["gmfast_ms"]),
        times("over_eager"),
        times("over_compile"),
        "" if row["share"] is None else f"{row['share']:.0%}",
        ", ".join(remark for remark in remarks if remark),
    )


def aligned(lines):
    """Lines of cells as text, the columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [_line(cells, widths) for cells in lines]


def _line(cells, widths):
    return "  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


class Table:
    """A table that is printed line by line, as results come.

    Args:
        cases: The cases whose rows may come: their names give the columns' widths.
        targets: Whether the project's targets are shown.
        file: Where to print; by default to stdout.
    """

    def __init__(self, cases, targets=False, file=None):
        first = max([len(HEADINGS[0]), *(len(str(case)) for case in cases)])
        self._widths = (
            first,
            *map(len, ("forward+backward", *["1.23e+03 ms"] * 3, *["12.3 ±45%"] * 2, "100%", "")),
        )
        self._targets, self._file, self._operation = targets, file or sys.stdout, None

    def add(self, row):
        """Print a row, under its operation's name unless that of the row before was the same."""
        if row["operation"] != self._operation:
            self._operation = row["operation"]
            print("", self._operation, _line(HEADINGS, self._widths), sep="\n", file=self._file)
        print(_line(cells(row, self._targets), self._widths), file=self._file, flush=True)


def summary(rows, targets=False):
    """One sentence: in how many cases gmfast is faster than each column, and which ones are not."""
    counts, slower = [], []
    for column in ("eager PyTorch", "torch.compile"):
        over = f"over_{column.split()[0].removeprefix('torch.')}"
        there = [row for row in rows if row[over] is not None]
        counts.append(f"{column} in {sum(row[over] >= 1 for row in there)} of {len(there)} cases")
        names = "; ".join(
            f"{row['operation']} {row['case']} {row['direction']}" for row in there if row[over] < 1
        )
        if names:
            slower.append(f"slower than {column}: {names}")
    text = f"faster than {', '.join(counts)}"
    if targets:
        with_target = [row for row in rows if row["reached"]]
        reached = sum(row["reached"] == "yes" for row in with_target)
        text = f"{reached} of {len(with_target)} targets reached; {text}"
    return "\n".join((text, *slower))


def write_csv(rows, where, path):
    """All of it, the environment on every line."""
    lines = [row | where for row in rows]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else list(where))
        writer.writeheader()
        for line in lines:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})


def write_png(rows, where, path, targets=False):
    """Bars of the speed-up over eager PyTorch and over torch.compile, on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    groups = {}
    for row in rows:
        groups.setdefault(row["operation"], []).append(row)
    heights = [len(members) + 0.7 for members in groups.values()]
    figure = Figure(figsize=(10, 1.3 + 0.42 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    colours = {"over_eager": "#4477aa", "over_compile": "#ee8866"}
    labels = {"over_eager": "over eager PyTorch", "over_compile": "over torch.compile"}
    values = [row[name] for row in rows for name in colours if row[name] is not None]

    for panel, (operation, members) in zip(panels, groups.items(), strict=True):
        for place, name in ((-0.2, "over_eager"), (0.2, "over_compile")):
            for y, row in enumerate(members):
                value = row[name]
                if value is None:
                    continue
                # A bar starts at 1: to its left torch is faster.
                panel.barh(y + place, value - 1, left=1, height=0.38, color=colours[name], zorder=2)
                panel.plot(
                    [row[f"{name}_q1"], row[f"{name}_q3"]], [y + place] * 2, color="#222222", lw=1, zorder=3
                )
                if goal := targets and row[f"target_{name}"]:
                    panel.plot(goal, y + place, marker="D", ms=4, mfc="white", mec="#222222", zorder=4)
                panel.text(
                    1.01,
                    y + place,
                    f"{value:.3g}×",
                    transform=panel.get_yaxis_transform(),
                    va="center",
                    fontsize=8,
                    color="#222222" if value >= 1 else "#cc3311",
                    weight="normal" if value >= 1 else "bold",
                )
        panel.set_yticks(
            range(len(members)), [f"{row['case']}\n{row['direction']}" for row in members], fontsize=8
        )
        panel.set_ylim(len(members) - 0.4, -0.6)
        panel.set_title(operation, loc="left", fontsize=10, weight="bold")
        panel.axvline(1, color="#222222", lw=1, zorder=3)
        panel.grid(axis="x", color="#dddddd", lw=0.6)
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
    panel.set_xscale("log")
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    panel.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlim(0.8 * min([1, *values]), 1.5 * max([1, *values]))
    panel.set_xlabel(
        "times faster: median of the rounds; the line on a bar is the interquartile range", fontsize=8
    )
    diamond = Line2D([], [], ls="", marker="D", ms=4, mfc="white", mec="#222222", label="target")
    figure.legend(
        handles=[
            *(Patch(color=colours[name], label=labels[name]) for name in colours),
            *([diamond] if targets else []),
        ],
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=9,
        title=describe(where),
        title_fontsize=8,
        alignment="left",
    )
    figure.savefig(path, dpi=130)


# ---- The command -------------------------------------------------------------------------------------


def main(out="out/bench", quick=False, device=None, *, cases=None, seconds=None, targets=False):
    """Measure, print, and write `bench.csv` and `bench.png` into folder `out`. Returns the rows.

    A row is printed and written as soon as it is measured.

    Args:
        out: the folder.
        quick: a case of each operation and direction, within `QUICK_SECONDS`.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        cases: what to measure, by default every benchmarks/bench_*.py.
        seconds: start no case after this time; those with targets come first. To save time, this and
            `quick` compile only the fastest eager formulation, and none where there is no time for it.
        targets: show the project's own targets, too.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cases = [case for case in (load_cases() if cases is None else cases) if device.type in case.devices]
    if quick:
        cases, seconds = _representative(cases), seconds or QUICK_SECONDS
    if seconds:
        cases = sorted(cases, key=lambda case: not case.targets)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    where = environment(device)
    print(describe(where))
    if device.type not in _library.devices:
        print(f"no compiled kernels for {device.type}: the gmfast column is plain PyTorch")
    if device.type == "cpu" and where["load"] > 0.5:
        print(f"the machine is busy (load {where['load']} on {where['cores']} cores): figures will scatter")

    keep_freed_memory()
    start = time.perf_counter()
    budget = Budget(seconds, len(cases)) if seconds else None
    if seconds and any(case.compiled for case in cases):
        torch.compile(torch.sin, fullgraph=True, dynamic=False)(
            torch.ones(9, device=device)
        )  # loads Inductor
    table, rows, left_out = Table(cases, targets), [], ""
    try:
        for count, case in enumerate(cases, 1):
            if budget and budget.spent():
                left_out = "time is up"
                break
            if sys.stderr.isatty() or not sys.stdout.isatty():
                print(
                    f"{count}/{len(cases)} {case.operation} {case} {case.direction}",
                    file=sys.stderr,
                    flush=True,
                )
            if budget:
                with budget.case() as options:
                    rows.append(measure(case, device, **options))
            else:
                rows.append(measure(case, device, seconds=2.0))
            shown = [row if targets else {k: v for k, v in row.items() if k not in TARGETS} for row in rows]
            write_csv(shown, where, out / "bench.csv")
            table.add(rows[-1])
    except KeyboardInterrupt:
        left_out = "interrupted"
    print()
    if left_out:
        print(f"{left_out}: {len(cases) - len(rows)} of {len(cases)} cases left out")
    if rows:
        try:
            write_png(rows, where, out / "bench.png", targets)
        except ModuleNotFoundError as error:
            print(f"no picture: {error.name} is not installed")
    print(f"written to {out} after {time.perf_counter() - start:.0f} s")
    print(summary(rows, targets))
    return rows


def _representative(cases):
    """A case of each operation and direction that has a target: those forward, then the others.

    It is the first one, or one that is marked as quick.
    """
    first = {}
    for case in sorted(cases, key=lambda case: not case.quick):
        if case.targets or case.quick:
            first.setdefault((case.operation, case.direction), case)
    chosen = [case for case in cases if case is first.get((case.operation, case.direction))]
    return sorted(chosen, key=lambda case: case.direction != "forward")


class Budget:
    """Time that cases share: each takes its part of what the ones before have left.

    Args:
        seconds: The time.
        cases: Number of cases.
    """

    PLAIN = 0.5  # seconds of a case without compiling, about

    def __init__(self, seconds, cases):
        self._end, self._cases = time.perf_counter() + seconds, cases
        self._compilations = [0.0]  # seconds of the cases that compiled

    def spent(self):
        """True if the time is up."""
        return time.perf_counter() > self._end

    @contextlib.contextmanager
    def case(self):
        """Yield the options of `measure` for the next case, which compiles if all others still fit."""
        start = time.perf_counter()
        left = self._end - start
        fits = left - 2 * median(self._compilations) >= self.PLAIN * (self._cases - 1)
        part = left / self._cases / 3
        yield {"seconds": min(0.7, part), "compiling": "fastest" if fits else "none"}
        self._cases -= 1
        if fits:
            self._compilations.append(time.perf_counter() - start)
