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


# ---- What is measured --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a case must reach: times faster than a column, share of the bandwidth, microseconds a call."""

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
    for _ in range(2):
        call()
    repeats = _repeats(timed(3), most=1000)
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


def measure(case, device, *, seconds=3.0, compile_all=True):
    """One row of the results. `compile_all`: compile every baseline, or only the fastest eager one."""
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
    names = [] if not case.compiled else case.baselines if compile_all else [eager_best]
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
    row["slower_than_compile"] = (
        "yes" if row["over_compile"] is not None and row["over_compile"] < 1 else "no"
    )
    row["note"] = "; ".join(notes)
    return row


# ---- Where it was measured ---------------------------------------------------------------------------


def environment(device):
    """What a figure means nothing without."""
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

HEADINGS = ("case", "direction", "eager", "compile", "gmfast", "× eager", "× compile", "share", "target", "")


def cells(row):
    """One line of the table, as text."""

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

    peer = f"{row['over_peer']:.3g}× {row['peer']}" if row["peer"] else ""
    reached = {"yes": "reached", "no": "MISSED", "": ""}[row["reached"]]
    slower = "SLOWER THAN COMPILE" if row["slower_than_compile"] == "yes" else ""
    return (
        row["case"],
        row["direction"],
        milliseconds(row["eager_ms"]),
        milliseconds(row["compile_ms"]),
        milliseconds(row["gmfast_ms"]),
        times("over_eager"),
        times("over_compile"),
        "" if row["share"] is None else f"{row['share']:.0%}",
        row["target"],
        ", ".join(part for part in (reached, slower, peer, row["note"] and "see note") if part),
    )


def aligned(lines):
    """Lines of cells as text, the columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def print_table(rows, file=None):
    """A rich table on a terminal, aligned text elsewhere (and where rich is not installed)."""
    file = file or sys.stdout
    groups = {}
    for row in rows:
        groups.setdefault(row["operation"], []).append(row)
    try:
        from rich.console import Console
        from rich.table import Table

        fancy = file.isatty()
    except ModuleNotFoundError:
        fancy = False

    if fancy:
        for operation, members in groups.items():
            table = Table(title=operation, title_justify="left", title_style="bold")
            for heading in HEADINGS:
                table.add_column(
                    heading, justify="left" if heading in ("case", "direction", "target", "") else "right"
                )
            for row in members:
                bad = row["slower_than_compile"] == "yes" or row["reached"] == "no"
                table.add_row(
                    *cells(row), style="red" if bad else "green" if row["reached"] == "yes" else None
                )
            Console(file=file).print(table)
    else:
        headings, *lines = aligned([HEADINGS, *map(cells, rows)])
        texts = dict(zip(map(id, rows), lines, strict=True))
        for operation, members in groups.items():
            print("", operation, headings, *(texts[id(row)] for row in members), sep="\n", file=file)
    for row in rows:
        if row["note"]:
            print(f"note: {row['operation']} {row['case']} {row['direction']}: {row['note']}", file=file)


def summary(rows):
    """One sentence: targets reached, and the cases that torch.compile wins."""
    with_target = [row for row in rows if row["reached"]]
    slower = [row for row in rows if row["slower_than_compile"] == "yes"]
    reached = sum(row["reached"] == "yes" for row in with_target)
    text = f"{reached} of {len(with_target)} targets reached; "
    if not slower:
        return text + f"none of {len(rows)} cases slower than torch.compile"
    names = "; ".join(f"{row['operation']} {row['case']} {row['direction']}" for row in slower)
    return text + f"SLOWER THAN torch.compile: {names}"


def write_csv(rows, where, path):
    """All of it, the environment on every line."""
    lines = [row | where for row in rows]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else list(where))
        writer.writeheader()
        for line in lines:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})


def write_png(rows, where, path):
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
                if goal := row[f"target_{name}"]:
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
    figure.legend(
        handles=[
            *(Patch(color=colours[name], label=labels[name]) for name in colours),
            Line2D([], [], ls="", marker="D", ms=4, mfc="white", mec="#222222", label="target"),
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


def main(out="out/bench", quick=False, device=None, *, cases=None, seconds=None):
    """Measure, print, and write `bench.csv` and `bench.png` into folder `out`. Returns the rows.

    Args:
        quick: only the cases that have a target, and few rounds.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        cases: what to measure, by default every benchmarks/bench_*.py.
        seconds: start no case after this time; those with targets come first. To save time, this and
            `quick` compile only the fastest eager formulation.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cases = [case for case in (load_cases() if cases is None else cases) if device.type in case.devices]
    if quick:
        cases = [case for case in cases if case.targets]
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
    order = sorted(range(len(cases)), key=lambda i: not cases[i].targets) if seconds else range(len(cases))
    measured = {}
    try:
        for count, index in enumerate(order, 1):
            case = cases[index]
            if seconds and time.perf_counter() - start > seconds:
                print(f"time is up: {len(cases) - len(measured)} of {len(cases)} cases left out")
                break
            progress = f"{count}/{len(cases)} {case.operation} {case} {case.direction}"
            print(progress, file=sys.stderr, flush=True)
            budget = 0.7 if quick else 2.0
            measured[index] = measure(case, device, seconds=budget, compile_all=not (quick or seconds))
            write_csv([measured[i] for i in sorted(measured)], where, out / "bench.csv")
    except KeyboardInterrupt:
        print(f"interrupted: {len(cases) - len(measured)} of {len(cases)} cases left out")
    rows = [measured[i] for i in sorted(measured)]
    print_table(rows)
    if rows:
        try:
            write_png(rows, where, out / "bench.png")
        except ModuleNotFoundError as error:
            print(f"no picture: {error.name} is not installed")
    print(f"\nwritten to {out} after {time.perf_counter() - start:.0f} s")
    print(summary(rows))
    return rows
