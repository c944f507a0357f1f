"""`python benchmarks/bench_maf.py`: masked autoregressive flows beside zuko's (the [peers] extra), both ways.

Networks of both have hidden layers of 64 and 64, ReLU, and random weights; what is timed does not depend on
them. Each cell is the median over rounds that time every column in turn, and a ratio the median of the
rounds' ratios, so that a busy machine slows all columns alike. Target: sampling at 64 values, 3 transforms
and a batch of 256 at least 30 times as fast as zuko.
"""

import argparse
import time
from statistics import median

import torch

from gmfast.nn import (
    Flow,
    MaskedAffineAutoregressive,
    MaskedSplineAutoregressive,
    naive_inverse,
)

TRANSFORMS = 3


def orders(values):
    return [range(values) if i % 2 == 0 else range(values - 1, -1, -1) for i in range(TRANSFORMS)]


def columns(kind, values, batch):
    """For each work, what to call by column."""
    cls = {"affine": MaskedAffineAutoregressive, "spline": MaskedSplineAutoregressive}[kind]
    ours = Flow((values,), [cls(values, (64, 64), order=order) for order in orders(values)])
    z = torch.randn(batch, values)

    def inverse():
        with torch.no_grad():
            return ours.inverse(z)

    def naive():
        with naive_inverse(ours):
            return inverse()

    def log_prob():
        with torch.no_grad():
            return ours.log_prob(z)

    def step(function):
        def run():
            x, log_det = function(z.clone().requires_grad_())
            (x.square().sum() + log_det.sum()).backward()

        return run

    works = {
        "inverse": {"gmfast": inverse, "naive": naive},
        "log_prob": {"gmfast": log_prob},
        "inverse + backward": {"gmfast": step(ours.inverse)},
    }
    try:
        import zuko
    except ModuleNotFoundError:
        return works
    theirs = {"affine": zuko.flows.MAF, "spline": zuko.flows.NSF}[kind](values, transforms=TRANSFORMS)

    def zuko_inverse():
        with torch.no_grad():
            return theirs().transform.inv(z)

    def zuko_log_prob():
        with torch.no_grad():
            return theirs().log_prob(z)

    works["inverse"]["zuko"] = zuko_inverse
    works["log_prob"]["zuko"] = zuko_log_prob
    works["inverse + backward"]["zuko"] = step(lambda z: theirs().transform.inv.call_and_ladj(z))
    return works


def milliseconds(function):
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kinds", nargs="+", default=["affine", "spline"], choices=["affine", "spline"])
    rounds, kinds = (lambda a: (a.rounds, a.kinds))(parser.parse_args())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {TRANSFORMS} transforms, ms")
    print(
        f"{'':8}{'values':>7}{'batch':>7}  {'work':20}{'gmfast':>10}{'naive':>10}{'zuko':>10}"
        f"{'zuko/gmfast':>13}"
    )
    for kind in kinds:
        for values, batch in [(64, 256)] if kind == "spline" else [(64, 256), (64, 1), (8, 256), (256, 256)]:
            torch.manual_seed(0)
            for work, functions in columns(kind, values, batch).items():
                for function in functions.values():
                    function()
                times = {name: [] for name in functions}
                for _ in range(rounds):
                    for name, function in functions.items():
                        times[name].append(milliseconds(function))
                cells = [
                    f"{median(times[n]):10.3f}" if n in times else f"{'':10}"
                    for n in ("gmfast", "naive", "zuko")
                ]
                ratio = ""
                if "zuko" in times:
                    pairs = zip(times["zuko"], times["gmfast"], strict=True)
                    ratio = f"{median(a / b for a, b in pairs):12.1f}×"
                print(f"{kind:8}{values:7}{batch:7}  {work:20}{''.join(cells)}{ratio}", flush=True)


if __name__ == "__main__":
    main()
