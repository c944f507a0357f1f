"""Noised data and the training target: the first lines of a diffusion model's training step.

With noise given, and with noise drawn on the way, where the baseline's comes from `torch.randn`.
"""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast.benchmark import Case, Target, normal


def inputs(case, device):
    """x, alpha and sigma of each sample; and noise where it is given."""
    angle = torch.rand(case.shape[0], device=device) * torch.pi / 2
    tensors = normal(case, device), angle.cos(), angle.sin()
    return tensors if case.options.get("noise") == "drawn" else (*tensors, normal(case, device))


def textbook(x, alpha, sigma, noise=None, target=None):
    noise = torch.randn_like(x) if noise is None else noise
    alpha, sigma = (v.to(x.dtype).view(-1, *[1] * (x.dim() - 1)) for v in (alpha, sigma))
    noised = alpha * x + sigma * noise
    if target is None:
        return noised
    return noised, {"epsilon": noise, "v": alpha * noise - sigma * x, "flow": noise - x}[target]


def fused(x, alpha, sigma, noise=None, seed=1, target=None):
    return GF.q_sample(x, alpha, sigma, noise=noise, seed=seed, target=target)


def q_sample(target=None, drawn=False, **case):
    options = ({"target": target} if target else {}) | ({"noise": "drawn"} if drawn else {})
    return Case(
        operation="q_sample",
        inputs=inputs,
        gmfast=partial(fused, target=target),
        baselines={"textbook": partial(textbook, target=target)},
        options=options,
        **case,
    )


# Memory bound with noise given: the target is the share of the bandwidth of a copy.
GIVEN = {"cpu": Target(share=0.7, compile=1)}
# Elsewhere conversions or the noise take longer than memory does.
COMPILE = {"cpu": Target(compile=1)}

CASES = [
    q_sample(shape=(64, 3, 32, 32), targets=GIVEN),
    q_sample(shape=(64, 3, 32, 32), target="v", targets=GIVEN),
    q_sample(shape=(64, 3, 64, 64), targets=GIVEN),
    q_sample(shape=(64, 3, 64, 64), target="v", targets=GIVEN),
    q_sample(shape=(64, 3, 64, 64), target="v", dtype=torch.bfloat16, targets=COMPILE),
    q_sample(shape=(64, 3, 64, 64), target="v", layout="channels_last"),
    q_sample(shape=(64, 3, 32, 32), target="v", direction="forward+backward", wrt=(0, 3)),
    q_sample(shape=(64, 3, 32, 32), drawn=True, targets=COMPILE),
    q_sample(shape=(64, 3, 32, 32), target="epsilon", drawn=True, targets=COMPILE),
    q_sample(shape=(64, 3, 64, 64), target="v", drawn=True, targets=COMPILE),
    q_sample(shape=(64, 3, 64, 64), target="v", drawn=True, dtype=torch.bfloat16, targets=COMPILE),
    q_sample(shape=(64, 3, 64, 64), target="v", drawn=True, layout="channels_last"),
    q_sample(
        shape=(256, 3, 256, 256),
        target="v",
        devices=("cuda",),
        targets={"cuda": Target(share=0.8, compile=1)},
    ),
    q_sample(
        shape=(256, 3, 256, 256),
        target="v",
        drawn=True,
        devices=("cuda",),
        targets={"cuda": Target(compile=1)},
    ),
]
