"""The discretized logistic mixture likelihood, summed over a batch, and its gradient.

Two plain PyTorch forms compete for the baseline: the published one, as PyTorch ports of PixelCNN++ have
it, and the exact one. The CSV says which won.
"""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal


def inputs(case, device):
    batch, channels, *spatial = case.shape
    per_component = 3 if channels == 1 else 10
    x = torch.randint(256, case.shape, device=device) / 127.5 - 1
    if case.layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    return x, normal(case, device, (batch, per_component * case.options["K"], *spatial))


likelihood = partial(
    both_directions,
    operation="discretized_logistic_mixture_nll",
    inputs=inputs,
    gmfast=partial(GF.discretized_logistic_mixture_nll, reduction="sum"),
    baselines={
        "exact": partial(reference.discretized_logistic_mixture_nll, reduction="sum"),
        "published": partial(
            reference.discretized_logistic_mixture_nll, reduction="sum", formulation="pixelcnnpp"
        ),
    },
    wrt=(1,),
    one_pass=True,
)

# Targets are ratios in float32 on two CPU cores; on a GPU, the share of bandwidth from 64 MiB on.
CASES = [
    *likelihood(
        shape=(16, 3, 32, 32),
        options={"K": 10},
        forward={"cpu": Target(eager=10, compile=4.5)},
        backward={"cpu": Target(eager=16, compile=20)},
    ),
    *likelihood(shape=(1, 3, 32, 32), options={"K": 10}),
    *likelihood(shape=(64, 3, 32, 32), options={"K": 10}),
    *likelihood(shape=(64, 1, 28, 28), options={"K": 5}),
    *likelihood(shape=(16, 3, 32, 32), options={"K": 10}, layout="channels_last"),
    *likelihood(shape=(16, 3, 32, 32), options={"K": 10}, dtype=torch.bfloat16),
    *likelihood(shape=(16, 1, 8, 8), options={"K": 5}),
    *likelihood(
        shape=(64, 3, 64, 64),
        options={"K": 10},
        devices=("cuda",),
        forward={"cuda": Target(share=0.8)},
        backward={"cuda": Target(share=0.8)},
    ),
]
