"""DDPM's decoder: levels under a normal distribution."""

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions


def inputs(case, device):
    """Pixels, a mean near them, and log-scales as of the last step of a diffusion model."""
    x = torch.randint(256, case.shape, device=device) / 127.5 - 1
    mean = x + 0.01 * torch.randn(case.shape, device=device)
    log_scale = -4.5 + 0.3 * torch.randn(case.shape, device=device)
    return tuple(t.to(case.dtype) for t in (x, mean, log_scale))


def with_erfc(x, mean, log_scale):
    """As it is often written: the probability is a difference, which is 0 far from the mean."""
    half, inverse = 1 / 255, torch.exp(-log_scale) * 0.5**0.5
    below_upper, below_lower = (torch.erfc((mean - x - h) * inverse) / 2 for h in (half, -half))
    inside = torch.where(x > 0.999, 1 - below_lower, below_upper - below_lower)
    return -torch.log(torch.where(x < -0.999, below_upper, inside).clamp(min=1e-12))


def nll(formulation, **case):
    call = lambda module: lambda *t: module.discretized_gaussian_nll(*t, formulation=formulation)  # noqa: E731
    return both_directions(
        operation="discretized_gaussian_nll",
        inputs=inputs,
        gmfast=call(GF),
        baselines={"textbook": call(reference)} | ({"erfc": with_erfc} if formulation == "exact" else {}),
        options={"formulation": formulation},
        wrt=(1, 2),
        forward={"cpu": Target(compile=1)},
        backward={"cpu": Target(compile=1)},
        **case,
    )


CASES = [
    *nll("exact", shape=(16, 3, 32, 32)),
    *nll("exact", shape=(64, 3, 32, 32)),
    *nll("improved_ddpm", shape=(16, 3, 32, 32)),
    *nll("improved_ddpm", shape=(64, 3, 32, 32)),
    *nll("exact", shape=(64, 3, 256, 256), devices=("cuda",)),
]
