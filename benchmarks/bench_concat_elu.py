"""concat_elu, the activation of PixelCNN++."""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal


def inputs(case, device):
    return (normal(case, device),)


concat_elu = partial(
    both_directions,
    operation="concat_elu",
    inputs=inputs,
    gmfast=GF.concat_elu,
    baselines={"textbook": reference.concat_elu},
)

# Targets are ratios in float32 on two CPU cores; on a GPU, the share of bandwidth from 64 MiB on.
CASES = [
    *concat_elu(shape=(16, 48, 32, 32), forward={"cpu": Target(eager=6, compile=2.5)}),
    *concat_elu(shape=(16, 160, 32, 32)),
    *concat_elu(shape=(16, 160, 32, 32), layout="channels_last"),
    *concat_elu(shape=(16, 160, 32, 32), dtype=torch.bfloat16),
    *concat_elu(
        shape=(64, 160, 64, 64),
        devices=("cuda",),
        forward={"cuda": Target(share=0.8)},
        backward={"cuda": Target(share=0.8)},
    ),
]
