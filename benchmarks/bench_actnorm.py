"""Glow's activation normalization: a shift and a scale for each channel, and its log-determinant."""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal


def inputs(case, device):
    channels = case.shape[1]
    return normal(case, device), torch.randn(channels, device=device), torch.randn(channels, device=device)


actnorm = partial(
    both_directions,
    operation="actnorm",
    inputs=inputs,
    gmfast=GF.actnorm,
    baselines={"textbook": reference.actnorm},
    wrt=(0, 1, 2),
)

# Memory bound: the target is the share of the bandwidth of a copy.
CASES = [
    *actnorm(shape=(16, 48, 32, 32), forward={"cpu": Target(share=0.7)}),
    *actnorm(shape=(64, 12, 32, 32)),
    *actnorm(shape=(64, 96, 8, 8)),
    *actnorm(shape=(16, 48, 32, 32), layout="channels_last"),
    *actnorm(shape=(16, 48, 32, 32), dtype=torch.bfloat16),
    *actnorm(shape=(4096, 64)),
    *actnorm(
        shape=(64, 96, 64, 64),
        devices=("cuda",),
        forward={"cuda": Target(share=0.8)},
        backward={"cuda": Target(share=0.8)},
    ),
]
