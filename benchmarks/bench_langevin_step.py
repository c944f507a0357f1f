"""A step of Langevin dynamics: with a step size, and with one from the norms of score and noise."""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast.benchmark import Case, Target, normal


def inputs(case, device):
    """x and score; and noise where it is given."""
    return tuple(normal(case, device) for _ in range(2 if case.options.get("noise") == "drawn" else 3))


def textbook(x, score, noise=None, step_size=None, snr=None):
    """With norms as score_sde_pytorch's LangevinCorrector has them."""
    noise = torch.randn_like(x) if noise is None else noise
    if snr is not None:
        norms = [torch.norm(t.reshape(t.shape[0], -1), dim=-1).mean() for t in (noise, score)]
        step_size = (snr * norms[0] / norms[1]) ** 2 * 2
    mean = x + step_size * score
    return mean + (2 * step_size) ** 0.5 * noise


def fused(x, score, noise=None, seed=1, **options):
    return GF.langevin_step(x, score, noise=noise, seed=seed, **options)


def langevin(drawn=False, snr=None, **case):
    step = {"step_size": 0.01} if snr is None else {"snr": snr}
    return Case(
        operation="langevin_step",
        inputs=inputs,
        gmfast=partial(fused, **step),
        baselines={"textbook": partial(textbook, **step)},
        options=({"snr": snr} if snr else {}) | ({"noise": "drawn"} if drawn else {}),
        **case,
    )


# Memory bound with noise given: the target is the share of the bandwidth of a copy.
COMPILE = {"cpu": Target(compile=1)}

CASES = [
    langevin(shape=(64, 3, 32, 32), targets={"cpu": Target(share=0.7, compile=1)}),
    langevin(shape=(64, 3, 64, 64), targets={"cpu": Target(share=0.7, compile=1)}),
    langevin(shape=(64, 3, 64, 64), dtype=torch.bfloat16),
    langevin(shape=(64, 3, 32, 32), drawn=True, targets=COMPILE),
    langevin(shape=(64, 3, 64, 64), drawn=True, targets=COMPILE),
    langevin(shape=(64, 3, 32, 32), snr=0.16, targets={"cpu": Target(compile=1)}),
    langevin(shape=(64, 3, 32, 32), snr=0.16, drawn=True, targets=COMPILE),
    langevin(shape=(64, 3, 64, 64), snr=0.16, drawn=True, targets=COMPILE),
    langevin(shape=(64, 3, 64, 64), snr=0.16, drawn=True, dtype=torch.bfloat16),
    langevin(shape=(256, 3, 256, 256), devices=("cuda",), targets={"cuda": Target(share=0.8, compile=1)}),
    langevin(
        shape=(256, 3, 256, 256),
        snr=0.16,
        drawn=True,
        devices=("cuda",),
        targets={"cuda": Target(compile=1)},
    ),
]
