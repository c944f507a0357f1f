"""The gate of PixelCNN and WaveNet: tanh of one half of the channels times sigmoid of the other."""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal


def inputs(case, device):
    x = normal(case, device)
    if not case.options.get("residual"):
        return (x,)
    batch, channels, *spatial = case.shape
    return x, normal(case, device, (batch, channels // 2, *spatial))


gate = partial(
    both_directions,
    operation="gated_activation",
    inputs=inputs,
    gmfast=GF.gated_activation,
    baselines={"textbook": reference.gated_activation},
)

# Targets are ratios in float32 on two CPU cores; on a GPU, the share of bandwidth from 64 MiB on.
CASES = [
    *gate(shape=(16, 256, 32, 32), forward={"cpu": Target(eager=10, compile=4)}),
    *gate(shape=(16, 256, 32, 32), options={"residual": True}),
    *gate(shape=(16, 256, 32, 32), layout="channels_last"),
    *gate(shape=(16, 256, 32, 32), dtype=torch.bfloat16),
    *gate(shape=(8, 128, 16000)),
    *gate(
        shape=(64, 256, 64, 64),
        devices=("cuda",),
        forward={"cuda": Target(share=0.8)},
        backward={"cuda": Target(share=0.8)},
    ),
]
