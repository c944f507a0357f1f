"""The logistic-mixture transform of Flow++ and its inverse, K = 32 components as there.

The baseline forward is the reference; the inverse is what Flow++ and its descendants in PyTorch run: a fixed
number of bisections of the whole tensor, each a forward, and one more for the log-derivative.
"""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Case, Target, both_directions, normal
from gmfast.reference.logistic_mixture_cdf import transform

BISECTIONS = 100


def inputs(case, device):
    """`convolution`: the parameters are views of one (B, C·3K, *S), else slices of (B, *D, 3K)."""
    x, components = normal(case, device), case.options["K"]
    batch, channels, *spatial = case.shape
    if case.options.get("convolution"):
        params = normal(case, device, (batch, channels * 3 * components, *spatial))
        params = params.unflatten(1, (channels, -1)).movedim(2, -1)
    else:
        params = normal(case, device, (*case.shape, 3 * components))
    return x, *params.split(components, -1)


def bisection(y, *params):
    """x with its log-determinant, as plain PyTorch finds it."""
    means, log_scales = params[1:]
    solutions = means + torch.exp(log_scales) * y.unsqueeze(-1)
    low, high = solutions.amin(-1), solutions.amax(-1)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        below = transform(middle, *params)[0] < y
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    x = 0.5 * (low + high)
    return x, -transform(x, *params)[1].flatten(1).sum(1)


cdf = partial(
    both_directions,
    operation="logistic_mixture_cdf",
    inputs=inputs,
    gmfast=GF.logistic_mixture_cdf,
    baselines={"textbook": reference.logistic_mixture_cdf},
    wrt=(0, 1, 2, 3),
)
inverse = partial(
    Case,
    operation="logistic_mixture_cdf inverse",
    inputs=inputs,
    gmfast=partial(GF.logistic_mixture_cdf, inverse=True),
    baselines={"bisection": bisection},
    compiled=False,
)

# Targets are ratios in float32 on two CPU cores; on a GPU, the share of bandwidth from 64 MiB on.
CASES = [
    *cdf(shape=(16, 6, 32, 32), options={"K": 32}, forward={"cpu": Target(eager=8)}),
    *cdf(shape=(16, 6, 32, 32), options={"K": 32, "convolution": True}, forward={"cpu": Target(eager=8)}),
    *cdf(shape=(16, 6, 32, 32), options={"K": 8}),
    *cdf(shape=(16, 6, 32, 32), options={"K": 32}, dtype=torch.bfloat16),
    *cdf(shape=(256, 64), options={"K": 4}),
    inverse(shape=(16, 6, 32, 32), options={"K": 32}, targets={"cpu": Target(eager=200)}),
    inverse(shape=(4, 6, 32, 32), options={"K": 32, "convolution": True}),
    inverse(shape=(256, 64), options={"K": 4}, quick=True),
    *cdf(
        shape=(64, 12, 32, 32),
        options={"K": 32},
        devices=("cuda",),
        forward={"cuda": Target(share=0.8)},
        backward={"cuda": Target(share=0.8)},
    ),
]
