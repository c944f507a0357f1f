"""Whole flows beside those of zuko, nflows and normflows (the [peers] extra), networks of the same sizes:

    python benchmarks/flows.py [--out FOLDER]

prints a table and, with --out, writes it as flows.csv. A time is the median over rounds in which every
column takes its turn, a ratio the median of the rounds' ratios. Target: sampling a MAF of 64 values, 3
transforms and a batch of 256 at least 30 times as fast as zuko.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from gmfast import benchmark
from gmfast.nn import (
    ActNorm,
    AffineCoupling,
    Flow,
    InvertibleConv1x1,
    MaskedAffineAutoregressive,
    MaskedSplineAutoregressive,
    Permute,
    SplineCoupling,
    naive_inverse,
)

COLUMNS = ("gmfast", "naive", "zuko", "nflows", "normflows")


def without_gradient(function, *inputs):
    """What it takes to call `function`."""

    def run():
        with torch.no_grad():
            function(*inputs)

    return run


def training(log_prob, x, parameters):
    """A step of maximum likelihood without the optimizer."""
    parameters = [p for p in parameters if p.requires_grad]
    return lambda: torch.autograd.grad(-log_prob(x).mean(), parameters, allow_unused=True)


# ---- Autoregressive: zuko ----------------------------------------------------------------------------


def autoregressive(kind, values, batch, transforms=3):
    """Works of a masked autoregressive flow, each with what to call by column; zuko's default networks."""
    cls = {"affine": MaskedAffineAutoregressive, "spline": MaskedSplineAutoregressive}[kind]
    orders = [range(values) if i % 2 == 0 else range(values - 1, -1, -1) for i in range(transforms)]
    ours = Flow((values,), [cls(values, (64, 64), order=order) for order in orders])
    z = torch.randn(batch, values)

    def naive(z):
        with naive_inverse(ours):
            ours.inverse(z)

    def with_gradient(inverse):
        def run():
            x, log_det = inverse(z.clone().requires_grad_())
            (x.square().sum() + log_det.sum()).backward()

        return run

    works = {
        "inverse": {
            "gmfast": without_gradient(ours.inverse, z),
            "naive": without_gradient(naive, z),
        },
        "sample": {"gmfast": lambda: ours.sample(batch, seed=0)},
        "log_prob": {"gmfast": without_gradient(ours.log_prob, z)},
        "inverse, its gradients": {"gmfast": with_gradient(ours.inverse)},
        "training step": {"gmfast": training(ours.log_prob, z, ours.parameters())},
    }
    try:
        import zuko
    except ModuleNotFoundError:
        return works
    theirs = {"affine": zuko.flows.MAF, "spline": zuko.flows.NSF}[kind](values, transforms=transforms)
    columns = {
        "inverse": without_gradient(lambda z: theirs().transform.inv(z), z),
        "sample": without_gradient(lambda: theirs().sample((batch,))),
        "log_prob": without_gradient(lambda z: theirs().log_prob(z), z),
        "inverse, its gradients": with_gradient(lambda z: theirs().transform.inv.call_and_ladj(z)),
        "training step": training(lambda z: theirs().log_prob(z), z, theirs.parameters()),
    }
    for work, function in columns.items():
        works[work]["zuko"] = function
    return works


# ---- Spline couplings of vectors: nflows -------------------------------------------------------------


class Perceptron(nn.Sequential):
    """What nflows calls with a context too."""

    def __init__(self, inputs, outputs, width=128):
        super().__init__(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
        )

    def forward(self, x, context=None):
        return super().forward(x)


def spline_couplings(values, batch, transforms=5, bins=8):
    half = values // 2
    ours = Flow(
        (values,),
        [
            transform
            for _ in range(transforms)
            for transform in (
                SplineCoupling(Perceptron(values - half, half * (3 * bins - 1)), num_bins=bins),
                Permute.reverse(values),
            )
        ],
    )
    x = torch.randn(batch, values)
    works = _works(ours.log_prob, ours.inverse, ours.parameters(), x, "gmfast")
    try:
        from nflows import transforms as their
    except ModuleNotFoundError:
        return works
    mask = [0] * (values - half) + [1] * half
    theirs = their.CompositeTransform(
        [
            transform
            for _ in range(transforms)
            for transform in (
                their.PiecewiseRationalQuadraticCouplingTransform(
                    mask, Perceptron, num_bins=bins, tails="linear", tail_bound=3.0
                ),
                their.ReversePermutation(values),
            )
        ]
    )
    return _merge(works, _works(_log_prob(theirs), theirs.inverse, theirs.parameters(), x, "nflows"))


# ---- Glow's steps: normflows -------------------------------------------------------------------------


def network(inputs, outputs, width):
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, outputs, 3, padding=1),
    )


def glow_steps(channels, size, batch, width, steps=8):
    half = channels // 2
    shape = (channels, size, size)
    ours = Flow(
        shape,
        [
            transform
            for _ in range(steps)
            for transform in (
                ActNorm(channels),
                InvertibleConv1x1(channels),
                AffineCoupling(
                    network(channels - half, 2 * half, width),
                    scale_map="sigmoid",
                    shift_first=True,
                    interleaved=True,
                ),
            )
        ],
    )
    x = torch.randn(batch, *shape)
    works = _works(ours.log_prob, ours.inverse, ours.parameters(), x, "gmfast")
    try:
        from normflows import flows as their
    except ModuleNotFoundError:
        return works
    theirs = nn.ModuleList(
        flow
        for _ in range(steps)
        for flow in (
            their.ActNorm((channels, 1, 1)),
            their.Invertible1x1Conv(channels, use_lu=True),
            their.AffineCouplingBlock(network(channels - half, 2 * half, width), scale_map="sigmoid"),
        )
    )

    def run(x, flows, direction):  # their `inverse` goes from data to noise
        total = x.new_zeros(len(x))
        for flow in flows:
            x, log_det = getattr(flow, direction)(x)
            total = total + log_det
        return x, total

    def to_noise(x):
        return run(x, theirs, "inverse")

    def to_data(z):
        return run(z, reversed(theirs), "forward")

    return _merge(works, _works(_log_prob(to_noise), to_data, theirs.parameters(), x, "normflows"))


def _log_prob(transform):
    def log_prob(x):
        z, log_det = transform(x)
        return torch.distributions.Normal(0, 1).log_prob(z).flatten(1).sum(1) + log_det

    return log_prob


def _works(log_prob, inverse, parameters, x, column):
    parameters = list(parameters)
    with torch.no_grad():
        log_prob(x)  # where the first batch initialises
    return {
        "log_prob": {column: without_gradient(log_prob, x)},
        "inverse": {column: without_gradient(inverse, x)},
        "training step": {column: training(log_prob, x, parameters)},
    }


def _merge(ours, theirs):
    return {work: {**columns, **theirs[work]} for work, columns in ours.items()}


# ---- Measuring ---------------------------------------------------------------------------------------

FLOWS = {
    "MAF, 64 values, 3 transforms, batch 256": lambda: autoregressive("affine", 64, 256),
    "MAF, 64 values, 3 transforms, batch 1": lambda: autoregressive("affine", 64, 1),
    "MAF, 8 values, 3 transforms, batch 256": lambda: autoregressive("affine", 8, 256),
    "MAF, 256 values, 3 transforms, batch 256": lambda: autoregressive("affine", 256, 256),
    "NSF autoregressive, 64 values, 3 transforms, batch 256": lambda: autoregressive("spline", 64, 256),
    "spline couplings, 64 values, 5 transforms, batch 256": lambda: spline_couplings(64, 256),
    "spline couplings, 8 values, 5 transforms, batch 2048": lambda: spline_couplings(8, 2048),
    "Glow, 8 steps, (16,12,16,16), width 64": lambda: glow_steps(12, 16, 16, 64),
    "Glow, 8 steps, (16,48,8,8), width 256": lambda: glow_steps(48, 8, 16, 256),
}


def milliseconds(function):
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3


def measure(functions, rounds):
    """The times of each column, round by round."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(milliseconds(function))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="folder for flows.csv")
    parser.add_argument("--only", default="", help="flows whose name contains this")
    arguments = parser.parse_args()
    where = benchmark.environment(torch.device("cpu"))
    print(benchmark.describe(where))
    print(f"{'ms':55}{'':24}" + "".join(f"{name:>11}" for name in COLUMNS) + "  fastest peer")
    rows = []
    for flow, make in FLOWS.items():
        if arguments.only not in flow:
            continue
        torch.manual_seed(0)
        for work, functions in make().items():
            times = measure(functions, arguments.rounds)
            medians = {name: median(times[name]) for name in times}
            row = {"flow": flow, "work": work}
            row |= {f"{name}_ms": medians.get(name) for name in COLUMNS}
            peers = [name for name in medians if name not in ("gmfast", "naive")]
            if peers:
                pairs = zip(times[min(peers, key=medians.get)], times["gmfast"], strict=True)
                row["over_peer"] = median(theirs / ours for theirs, ours in pairs)
            else:
                row["over_peer"] = None
            rows.append(row)
            cells = "".join(f"{medians[n]:11.3f}" if n in medians else f"{'':11}" for n in COLUMNS)
            ratio = "" if row["over_peer"] is None else f"{row['over_peer']:13.2f}×"
            print(f"{flow:55}{work:24}{cells}{ratio}", flush=True)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        benchmark.write_csv(rows, where, arguments.out / "flows.csv")


if __name__ == "__main__":
    main()
