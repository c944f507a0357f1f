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


def nll(formulation, **case):
    call = lambda module: lambda *t: module.discretized_gaussian_nll(*t, formulation=formulation)  # noqa: E731
    return both_directions(
        operation="discretized_gaussian_nll",
        inputs=inputs,
        gmfast=call(GF),
        baselines={"textbook": call(reference)},
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
