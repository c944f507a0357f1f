"""The rational-quadratic spline with its log-determinant, in both directions.

Layouts of the parameters: a tensor each; slices of one tensor (B, *D, 3K - 1), as a linear layer gives it; a
view of a convolution's output (B, C·(3K - 1), H, W). The peer is nflows.
"""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal

try:
    from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline
except ImportError:
    unconstrained_rational_quadratic_spline = None


def inputs(case, device):
    bins, layout = case.options["K"], case.options.get("bins", "apart")
    counts = [bins, bins, bins - 1]
    x = 1.5 * normal(case, device)
    if layout == "apart":
        return x, *(normal(case, device, (*case.shape, count)) for count in counts)
    total = sum(counts)
    if layout == "slices":
        params = normal(case, device, (*case.shape, total))
    else:
        batch, channels, height, width = case.shape
        params = normal(case, device, (batch, channels * total, height, width))
        params = params.view(batch, channels, total, height, width).movedim(2, -1)
    return x, *params.split(counts, -1)


def nflows(x, widths, heights, derivatives, inverse=False):
    y, log_derivative = unconstrained_rational_quadratic_spline(
        x, widths, heights, derivatives, inverse=inverse, tail_bound=3.0
    )
    return y, log_derivative.flatten(1).sum(1)


def spline(inverse=False, peer=False, **case):
    direction = {"inverse": inverse}
    if inverse:
        case["options"] = {**case["options"], "inverse": True}
    return both_directions(
        operation="rational_quadratic_spline",
        inputs=inputs,
        gmfast=partial(GF.rational_quadratic_spline, **direction),
        baselines={"reference": partial(reference.rational_quadratic_spline, **direction)},
        peers={"nflows": partial(nflows, **direction)}
        if peer and unconstrained_rational_quadratic_spline
        else {},
        wrt=(0, 1, 2, 3),
        **case,
    )


# Targets are ratios in float32 on two CPU cores; on a GPU, the share of bandwidth from 64 MiB on. The peer's
# are set where it is installed.
def peer(times):
    return {
        "cpu": Target(peer=times, compile=1) if unconstrained_rational_quadratic_spline else Target(compile=1)
    }


CASES = [
    *spline(shape=(64, 3072), options={"K": 8}, peer=True, forward=peer(30), backward=peer(25)),
    *spline(shape=(64, 3072), options={"K": 8}, peer=True, inverse=True, forward=peer(25)),
    *spline(shape=(64, 3072), options={"K": 8, "bins": "slices"}),
    *spline(shape=(64, 3, 32, 32), options={"K": 8, "bins": "channels"}),
    *spline(shape=(64, 3072), options={"K": 32}),
    *spline(shape=(4096, 6), options={"K": 8, "bins": "slices"}),
    *spline(shape=(1, 3072), options={"K": 8}),
    *spline(shape=(64, 3072), options={"K": 8}, dtype=torch.bfloat16),
    *spline(
        shape=(64, 3, 64, 64),
        options={"K": 8, "bins": "channels"},
        devices=("cuda",),
        forward={"cuda": Target(share=0.8)},
        backward={"cuda": Target(share=0.8)},
    ),
]
