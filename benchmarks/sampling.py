"""`gmfast bench --sampling`: cached sampling beside one full pass for each position, a cached loop in plain
PyTorch (python_loops.py), and what the machine can do at most.

- gmfast's column is a whole batch of samples by a compiled program, without the compiling, which has a column
  of its own: the median of three runs, one before and one after each of the baselines, or one run where it is
  long.
- The baselines take minutes and more, so a part of a long one is timed and the whole estimated. The columns
  naive_is and loop_is say which: "measured", or "from N of M passes" (of the loop, positions). The passes are
  spread evenly over the positions; the positions of the loop are the first ones, whole rows of an image.
- The floor is the larger of two times. One reads what the program reads, each weight once a position, or once
  a row where a layer computes whole rows, at the bandwidth of reading a buffer as large as all weights. The
  other does its arithmetic at the peak. Both rates are the best that torch shows in the same run on as many
  threads (a sum, a dot product, a product with a vector; products of matrices, a convolution): a rate that
  the program exceeds makes a share of more than 100%.
"""

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gmfast import _library, benchmark, data, decode
from gmfast.decode.builder import Layer
from gmfast.models import MADE, GatedPixelCNN, PixelCNN, PixelCNNPP, WaveNet

from .python_loops import LOOPS

LONG = 2.0  # seconds: what takes longer is run once

# ---- What is measured --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a work must reach: times faster than a baseline, thousands of samples of each sound a second."""

    naive: float | None = None
    loop: float | None = None
    khz: float | None = None

    def __str__(self):
        parts = {"naive": "≥ {:g}× naive", "loop": "≥ {:g}× loop", "khz": "≥ {:g} kHz"}
        goals = {name: getattr(self, name) for name in parts}
        return ", ".join(text.format(goals[name]) for name, text in parts.items() if goals[name] is not None)

    def reached(self, row):
        goals = ((self.naive, row["over_naive"]), (self.loop, row["over_loop"]), (self.khz, row["kHz"]))
        return all(goal is None or (got is not None and got >= goal) for goal, got in goals)


@dataclass(frozen=True)
class Work:
    """A batch of samples to be drawn by a model. `length`: of a sound. `targets` by number of threads."""

    name: str
    make: Callable[[], nn.Module]
    batch: int
    threads: int
    weights: str | None = None
    length: int | None = None
    targets: dict[int, Target] = field(default_factory=dict)
    baselines: bool = True
    quick: bool = False  # among the few of --quick

    def __str__(self):
        return f"{self.name} batch {self.batch}, {self.threads} thread{'s' * (self.threads > 1)}"


SMALL = partial(PixelCNNPP, nr_resnet=2, nr_filters=64)
SOUND = partial(WaveNet, num_cycles=2)
IMAGES = {
    "Gated PixelCNN": partial(GatedPixelCNN, nr_layers=10, nr_filters=60, kernel_size=3, nr_out_filters=60),
    "PixelCNN": partial(PixelCNN, nr_resnet=10, nr_filters=60, nr_out_filters=60),
}
SCALING = (1, 2, 4, 8, 16, 32, 64)


def load_works(threads=(1, 2)):
    works = []
    for count in threads:
        works += [
            Work(
                "PixelCNN++ 32×32",
                PixelCNNPP,
                batch,
                count,
                targets={2: Target(naive=400, loop=5)} if batch == 16 else {},
            )
            for batch in (1, 16, 64)
            if (batch, count) != (64, 1)  # which takes minutes
        ]
        works += [
            Work("PixelCNN++ 32×32 small", SMALL, batch, count, quick=batch == 16 and count == threads[-1])
            for batch in (1, 16)
        ]
        works += [
            Work(
                "WaveNet",
                SOUND,
                batch,
                count,
                weights,
                length=16000,
                targets={1: Target(khz=24), 2: Target(khz=32, loop=40)} if batch == 1 else {},
                quick=batch == 1 and count == threads[-1],
            )
            for batch in (1, 8)
            for weights in (None, "bfloat16")
        ]
        works += [
            Work("MADE 28×28", MADE, batch, count, quick=batch == 1 and count == threads[-1])
            for batch in (1, 64)
        ]
        works += [Work(f"{name} 32×32 small", make, 16, count) for name, make in IMAGES.items()]
    for name, make, length in (("PixelCNN++ 32×32 small", SMALL, None), ("WaveNet", SOUND, 2000)):
        works += [
            Work(name, make, batch, count, length=length, baselines=False)
            for count in threads
            for batch in SCALING
        ]
    return works


# ---- gmfast and the baselines ------------------------------------------------------------------------


@cache
def model_of(make):
    torch.manual_seed(0)
    model = make().eval()
    if isinstance(model, PixelCNNPP):  # the only one that is initialised from data
        model.initialize(torch.rand(8, *model.image_shape) * 2 - 1)
    return model


def shape_of(model: nn.Module, length: int | None = None) -> tuple[int, int]:
    """Channels that are drawn at a position, and positions of a sample."""
    if length is not None:
        return 1, length
    if isinstance(model, MADE):
        return 1, model.num_values
    channels, height, width = model.image_shape
    return channels, height * width


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compiled(model, work) -> tuple[decode.Program, Callable[[], float], float]:
    """A program; a function that samples once and returns the seconds; the seconds of compiling."""
    start = time.perf_counter()
    program = decode.compile(model, weights=work.weights)
    seconds = time.perf_counter() - start
    channels, positions = shape_of(model, work.length)
    x = torch.zeros(work.batch, channels, positions)
    return program, lambda: seconds_of(lambda: program.start(work.batch).sample(x, seed=0)), seconds


def time_naive(model, work, budget: float) -> tuple[float, str]:
    """Seconds of sampling with a full pass for each value, and how they are known."""
    channels, positions = shape_of(model, work.length)
    colours = 1 if model.head.joint else channels
    passes = positions * colours

    if work.length is not None:
        shape, options = (work.length,), {"length": work.length}
    else:
        shape, options = model.image_shape if isinstance(model, MADE) else model.image_shape[1:], {}
    given = torch.zeros(())

    def some(count):
        """Draws at `count` positions; the others are given, which costs no pass."""
        mask = torch.ones(positions)
        mask[(2 * torch.arange(count) + 1) * positions // (2 * count)] = 0
        mask = mask.view(shape)
        return seconds_of(
            lambda: model.sample(work.batch, seed=0, method="naive", given=given, mask=mask, **options)
        )

    seconds, count = some(1), 1
    if seconds < budget:
        count = min(positions, max(1, int(budget / seconds)))
        seconds = some(count)
    if count == positions:
        return seconds, "measured"
    return seconds * positions / count, f"from {count * colours} of {passes} passes"


class Count(TorchDispatchMode):
    """Counts the operations that Python calls."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def time_loop(model, work, budget: float) -> tuple[float, str, float]:
    """Seconds of the loop in plain PyTorch, how they are known, and its operations a position."""
    loop = LOOPS[type(model)](model, work.batch)
    _, positions = shape_of(model, work.length)
    step = positions  # a part as typical as the whole
    if work.length is not None:
        step = min(positions, 1024)  # twice the longest dilation
    elif not isinstance(model, MADE):
        step = min(positions, 4 * model.image_shape[2])  # rows, of every resolution

    def some(count):
        return seconds_of(lambda: loop.sample(torch.rand(count, work.batch, loop.num_uniforms)))

    some(step)
    count, seconds = step, some(step)
    if seconds < budget:
        count = min(positions, step * max(1, int(budget / seconds)))
        seconds = some(count)
    with Count() as counter:
        some(step)
    known = "measured" if count == positions else f"from {count} of {positions} positions"
    return seconds * positions / count, known, counter.count / step


# ---- The floor ---------------------------------------------------------------------------------------


def reads_and_products(builder: decode.Builder, length: int | None = None) -> tuple[int, int]:
    """What a program does for one sample, which is an image or `length` samples long: how many weights it
    reads, each once at a position or for a row, and how many products it adds up."""
    rows = builder.height or length
    reads = products = 0
    for layer in (*builder.rows, *builder.steps):
        if isinstance(layer, Layer):
            weights, when = sum(tap.weight.numel() for tap in layer.taps), layer.when
            count = sum(row % when.row_step == when.row_phase for row in range(when.first_row, rows))
            places = len(range(when.column_phase, builder.width, when.column_step))
            reads += weights * count * (1 if when.whole_row else places)
            products += weights * count * places
    return reads, products


def best_rate(amount: float, calls: list[Callable[[], object]], seconds: float = 0.1) -> float:
    """`amount` over the time of the fastest of `calls`, each repeated for so many seconds."""
    fastest = math.inf
    for call in calls:
        call()
        repeats = max(1, int(seconds / 5 / max(seconds_of(call), 1e-7)))
        for _ in range(5):
            fastest = min(fastest, seconds_of(lambda: [call() for _ in range(repeats)]) / repeats)  # noqa: B023
    return amount / fastest


@cache
def bandwidth(size: int, threads: int) -> float:
    """Bytes a second of reading a buffer of `size` bytes again and again: one so large that the calls do not
    count."""
    size = max(size, benchmark.SMALLEST_COPY) // 4096 * 1024
    buffer = torch.rand(size)
    matrix, vector = buffer.view(-1, 1024), torch.rand(1024)
    with on_threads(threads), torch.inference_mode():
        return best_rate(4 * size, [buffer.sum, lambda: buffer.dot(buffer), lambda: matrix @ vector])


@cache
def peak(threads: int) -> float:
    """Floating-point operations a second, a multiply-add being two."""
    size = 1024
    a, b = torch.rand(size, size), torch.rand(size, size)
    image, weight = torch.rand(4, 256, 32, 32), torch.rand(256, 256, 3, 3)
    image, weight = (t.to(memory_format=torch.channels_last) for t in (image, weight))
    with on_threads(threads), torch.inference_mode():
        products = best_rate(2 * size**3, [lambda: a @ b, lambda: a @ b.t()])
        convolution = 2 * image.numel() * weight[0].numel()
        return max(products, best_rate(convolution, [lambda: F.conv2d(image, weight, padding=1)]))


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- One work ----------------------------------------------------------------------------------------


def measure(work: Work, budget: float, known: dict) -> dict:
    """One row of the results. `budget`: seconds for a part of each baseline. `known` keeps what they took:
    for works that differ in the weights alone."""
    model = model_of(work.make)
    with on_threads(work.threads):
        program, run, compile_seconds = compiled(model, work)
        runs, naive, loop = [run()], None, None

        def again():
            if runs[0] < LONG:
                runs.append(run())

        if work.baselines:
            key = work.name, work.batch, work.threads
            naive, loop = known.get(key, (None, None))
            naive = naive or time_naive(model, work, budget)
            again()
            loop = loop or time_loop(model, work, budget)
            known[key] = naive, loop
        else:
            again()
        again()
    seconds = median(runs)

    _, positions = shape_of(model, work.length)
    reads, products = reads_and_products(model.decoder(), work.length)
    read_bytes, flops = reads * program.weight_dtype.itemsize, 2 * products * work.batch
    rates = bandwidth(program.weight_bytes, work.threads), peak(work.threads)
    reading, arithmetic = read_bytes / rates[0], flops / rates[1]
    row = {
        "work": work.name,
        "weights": work.weights or "float32",
        "batch": work.batch,
        "threads": work.threads,
        "positions": positions,
        "naive_s": naive and naive[0],
        "naive_is": naive and naive[1],
        "loop_s": loop and loop[0],
        "loop_is": loop and loop[1],
        "loop_operations": loop and loop[2],
        "compile_s": compile_seconds,
        "gmfast_s": seconds,
        "gmfast_runs": len(runs),
        "over_naive": naive and naive[0] / seconds,
        "over_loop": loop and loop[0] / seconds,
        "kHz": positions / seconds / 1e3 if work.length is not None else None,
        "read_MB_a_position": read_bytes / positions / 1e6,
        "read_GB_s": rates[0] / 1e9,
        "gflop": flops / 1e9,
        "peak_gflop_s": rates[1] / 1e9,
        "reading_s": reading,
        "arithmetic_s": arithmetic,
        "floor_s": max(reading, arithmetic),
        "floor_is": "reading" if reading > arithmetic else "arithmetic",
        "share": max(reading, arithmetic) / seconds,
    }
    target = work.targets.get(work.threads) if work.baselines else None
    row |= {"target_over_naive": target and target.naive, "target_over_loop": target and target.loop}
    row["target"] = str(target or "")
    row["reached"] = "" if target is None else "yes" if target.reached(row) else "no"
    return row


# ---- What bfloat16 weights do to the likelihood -------------------------------------------------------


@torch.no_grad()
def bits_per_dim(model: nn.Module, x: Tensor, weights: str | None = None) -> float:
    """Of samples (B, 1, *S) by a compiled program, one position after another."""
    flat = x.flatten(2)
    program = decode.compile(model, weights=weights).start(len(x))
    params, nats = program.step(), 0.0
    for t, value in enumerate(flat.unbind(2)):
        nats += model.head.nll(flat[:, :, t : t + 1], params.unsqueeze(2)).sum().item()
        if t + 1 < flat.shape[2]:
            params = program.step(value)
    return nats / (x.numel() * math.log(2))


def measure_rounding(steps: dict[str, int]) -> list[dict]:
    """Held-out bits per dimension with float32 and bfloat16 weights, of models trained for so many steps on
    the data that `gmfast train` gives them."""
    from gmfast.training import Settings, Trainer

    rows = []
    for name, count in steps.items():
        with tempfile.TemporaryDirectory() as run:
            trainer = Trainer.start(Settings(model=name), Path(run) / "run", "cpu")
            trainer.fit(count, progress=False)
        model, dataset = trainer.model.eval(), trainer.dataset
        x = data.to_unit(dataset.heldout, dataset.num_levels)
        full, rounded = (bits_per_dim(model, x, weights) for weights in (None, "bfloat16"))
        rows.append(
            {
                "model": name,
                "data": dataset.name,
                "steps": count,
                "heldout": f"{len(x)} {dataset.items}",
                "float32": full,
                "bfloat16": rounded,
                "difference": rounded - full,
            }
        )
    return rows


# ---- Results -----------------------------------------------------------------------------------------

#: Columns of the project's own targets.
TARGETS = ("target", "target_over_naive", "target_over_loop", "reached")
HEADINGS = (
    "work", "weights", "batch", "threads", "naive", "Python loop", "gmfast", "× naive", "× loop", "kHz",
    "floor", "share",
)  # fmt: skip


def cells(row: dict, targets: bool = False) -> tuple[str, ...]:
    """One line of the table, as text; ~ before what is estimated. With the project's targets or without."""

    def seconds(name, known="measured"):
        if row[name] is None:
            return ""
        value = row[name]
        text = f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s" if value < 1e3 else f"{value:.0f} s"
        return text if known == "measured" else f"~{text}"

    def number(name):
        return "" if row[name] is None else f"{row[name]:.0f}" if row[name] >= 100 else f"{row[name]:.1f}"

    return (
        row["work"],
        row["weights"],
        str(row["batch"]),
        str(row["threads"]),
        seconds("naive_s", row["naive_is"]),
        seconds("loop_s", row["loop_is"]),
        seconds("gmfast_s"),
        number("over_naive"),
        number("over_loop"),
        number("kHz"),
        f"{seconds('floor_s')} {row['floor_is']}",
        f"{row['share']:.0%}",
        *([row["target"], {"yes": "reached", "no": "MISSED", "": ""}[row["reached"]]] if targets else []),
    )


def print_table(rows: list[dict], targets: bool = False, file=None) -> None:
    headings = (*HEADINGS, "target", "") if targets else HEADINGS
    lines = benchmark.aligned([headings, *(cells(row, targets) for row in rows)])
    print("", *lines, sep="\n", file=file or sys.stdout)


def write_png(rows: list[dict], where: dict, path: Path, targets: bool = False) -> None:
    """Bars of how many times faster gmfast is; of works without baselines, what a second yields by batch."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    bars = [row for row in rows if row["over_naive"] is not None]
    curves = {}
    for row in rows:
        if row["over_naive"] is None:
            curves.setdefault(row["work"], {}).setdefault(row["threads"], []).append(row)
    colours = {"over_naive": "#4477aa", "over_loop": "#ee8866"}
    height = 0.42 * len(bars) + 1 if bars else 0
    figure = Figure(figsize=(10, 1.3 + height + (4 if curves else 0)), layout="constrained")
    parts = [part for part, there in (("bars", bars), ("curves", curves)) if there]
    heights = [{"bars": height, "curves": 4}[part] for part in parts]
    grid = figure.add_gridspec(len(parts), max(1, len(curves)), height_ratios=heights)

    if bars:
        panel = figure.add_subplot(grid[0, :])
        for place, name in ((-0.2, "over_naive"), (0.2, "over_loop")):
            for y, row in enumerate(bars):
                panel.barh(y + place, row[name] - 1, left=1, height=0.38, color=colours[name], zorder=2)
                if goal := targets and row[f"target_{name}"]:
                    panel.plot(goal, y + place, marker="D", ms=4, mfc="white", mec="#222222", zorder=4)
                panel.text(
                    1.01,
                    y + place,
                    f"{row[name]:.{0 if row[name] >= 100 else 1}f}×",
                    transform=panel.get_yaxis_transform(),
                    va="center",
                    fontsize=8,
                    color="#222222" if row[name] >= 1 else "#cc3311",
                )
        labels = [
            f"{row['work']}{', bfloat16' if row['weights'] == 'bfloat16' else ''}\n"
            f"batch {row['batch']}, {row['threads']} thread{'s' * (row['threads'] > 1)}"
            for row in bars
        ]
        panel.set_yticks(range(len(bars)), labels, fontsize=8)
        panel.set_ylim(len(bars) - 0.4, -0.6)
        panel.set_xscale("log")
        ticks = (0.1, 1, 10, 100, 1000, 10000, 100000)
        panel.set_xticks(ticks, [f"{tick:,g}×" for tick in ticks])
        panel.minorticks_off()
        values = [row[name] for row in bars for name in colours]
        panel.set_xlim(0.8 * min([1, *values]), 1.5 * max([1, *values]))
        panel.axvline(1, color="#222222", lw=1, zorder=3)
        panel.grid(axis="x", color="#dddddd", lw=0.6)
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
        panel.set_xlabel("times faster", fontsize=8)

    for i, (work, by_threads) in enumerate(curves.items()):
        panel = figure.add_subplot(grid[-1, i])
        for (threads, members), colour in zip(by_threads.items(), ("#4477aa", "#228833"), strict=False):
            sound = members[0]["kHz"] is not None
            batches = [row["batch"] for row in members]
            for key, style in (("gmfast_s", "o-"), ("floor_s", "--")):
                rates = [row["batch"] * (row["positions"] if sound else 1) / row[key] for row in members]
                label = f"{threads} thread{'s' * (threads > 1)}" if key == "gmfast_s" else None
                panel.plot(batches, rates, style, color=colour, label=label, ms=4, lw=1.2)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(batches, [str(batch) for batch in batches])
        panel.set_title(work, loc="left", fontsize=10, weight="bold")
        panel.set_xlabel("batch", fontsize=8)
        panel.set_ylabel("samples a second, of all sounds" if sound else "images a second", fontsize=8)
        panel.grid(color="#dddddd", lw=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    diamond = Line2D([], [], ls="", marker="D", ms=4, mfc="white", mec="#222222", label="target")
    figure.legend(
        handles=[
            Patch(color=colours["over_naive"], label="than a full pass for each value"),
            Patch(color=colours["over_loop"], label="than a cached loop in PyTorch"),
            *([diamond] if targets else []),
            Line2D([], [], ls="--", color="#444444", label="the machine's limit"),
        ],
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=9,
        title=benchmark.describe(where),
        title_fontsize=8,
        alignment="left",
    )
    figure.savefig(path, dpi=130)


# ---- The command -------------------------------------------------------------------------------------


def main(
    out="out/bench",
    quick: bool = False,
    *,
    works: list[Work] | None = None,
    rounding: dict[str, int] | None = None,
    targets: bool = False,
) -> list[dict]:
    """Measure, print, and write `sampling.csv`, `sampling.png` and, of the rounding, `bfloat16.csv` into
    folder `out`. Returns the rows of the first.

    Args:
        quick: only a few works, in less than a minute, and no rounding.
        works: what to measure, by default all of `load_works`.
        rounding: training steps of the models that `measure_rounding` looks at.
        targets: show the project's own targets, too.
    """
    if works is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        works = load_works([count for count in (1, 2) if count <= cores])
        works = [work for work in works if work.quick or not quick]
    if rounding is None:
        rounding = {} if quick else {"pixelcnnpp": 300, "wavenet": 100}
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    where = benchmark.environment(torch.device("cpu"))
    print(benchmark.describe(where))
    if "cpu" not in _library.devices:
        print("no compiled kernels for the CPU: the gmfast column is plain PyTorch")
    if where["load"] > 0.5:
        print(f"the machine is busy (load {where['load']} on {where['cores']} cores): figures will scatter")
    own = {name: value for name, value in where.items() if name != "threads"}  # each row has its own

    start, rows, known = time.perf_counter(), [], {}
    try:
        for count, work in enumerate(works, 1):
            print(f"{count}/{len(works)} {work}", file=sys.stderr, flush=True)
            rows.append(measure(work, 1.0 if quick else 3.0, known))
            hidden = () if targets else TARGETS
            shown = [{k: v for k, v in row.items() if k not in hidden} for row in rows]
            benchmark.write_csv(shown, own, out / "sampling.csv")
    except KeyboardInterrupt:
        print(f"interrupted: {len(works) - len(rows)} of {len(works)} works left out")
        rounding = {}
    print_table(rows, targets)
    if rows:
        try:
            write_png(rows, where, out / "sampling.png", targets)
        except ModuleNotFoundError as error:
            print(f"no picture: {error.name} is not installed")
    if rounding:
        try:
            rounded = measure_rounding(rounding)
        except ModuleNotFoundError as error:
            print(f"bfloat16 weights left out: {error.name} is not installed")
        else:
            benchmark.write_csv(rounded, own, out / "bfloat16.csv")
            for row in rounded:
                print(
                    f"{row['model']} after {row['steps']} steps on {row['data']}: {row['float32']:.5f} bits "
                    f"per dimension, {row['difference']:+.5f} with bfloat16 weights"
                )
    print(f"\nwritten to {out} after {time.perf_counter() - start:.0f} s")
    if targets:
        with_target = [row for row in rows if row["reached"]]
        reached = sum(row["reached"] == "yes" for row in with_target)
        print(f"{reached} of {len(with_target)} targets reached")
    return rows
