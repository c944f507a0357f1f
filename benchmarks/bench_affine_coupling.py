"""The affine coupling as a flow runs it: shift and raw scale from one output of the conditioner, the channels
that pass concatenated, the log-determinant summed per sample."""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal


def inputs(case, device):
    """x, and the conditioner's output: half the channels are transformed."""
    batch, channels, *spatial = case.shape
    params = normal(case, device, (batch, channels // 2 * 2, *spatial))
    return normal(case, device), params / 4


def plain(x, params, **options):
    shift, scale = params.chunk(2, 1)
    return reference.affine_coupling(x, shift, scale, **options)


def coupling(scale_map="exp", **case):
    return both_directions(
        operation="affine_coupling",
        inputs=inputs,
        gmfast=partial(GF.affine_coupling, scale=None, packed="chunk", scale_map=scale_map),
        baselines={"textbook": partial(plain, scale_map=scale_map)},
        wrt=(0, 1),
        options={} if scale_map == "exp" else {"map": scale_map},
        **case,
    )


# Targets are ratios in float32 on two CPU cores; on a GPU, the share of bandwidth from 64 MiB on.
CASES = [
    *coupling(
        shape=(16, 48, 32, 32),
        forward={"cpu": Target(eager=6, compile=2.5, share=0.7)},
        backward={"cpu": Target(eager=6, compile=5)},
    ),
    *coupling("sigmoid", shape=(16, 48, 32, 32)),
    *coupling("tanh", shape=(16, 48, 32, 32)),
    *coupling("atan", shape=(16, 48, 32, 32)),
    *coupling("softclip", shape=(16, 48, 32, 32)),
    *coupling(shape=(16, 48, 32, 32), layout="channels_last"),
    *coupling(shape=(16, 48, 32, 32), dtype=torch.bfloat16),
    *coupling("tanh", shape=(4096, 64)),
    *coupling("tanh", shape=(65536, 2)),
    *coupling(
        shape=(64, 96, 64, 64),
        devices=("cuda",),
        forward={"cuda": Target(share=0.8)},
        backward={"cuda": Target(share=0.8)},
    ),
]
