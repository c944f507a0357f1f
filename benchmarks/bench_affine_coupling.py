"""The affine coupling as a flow runs it: shift and raw scale from one output of the conditioner, the channels
that pass concatenated, the log-determinant summed per sample. The peer is normflows, whose conditioners give
shifts and scales in turns."""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal

try:
    from normflows.flows import AffineCouplingBlock
except ImportError:
    AffineCouplingBlock = None


def inputs(case, device):
    """x, and the conditioner's output: half the channels are transformed."""
    batch, channels, *spatial = case.shape
    params = normal(case, device, (batch, channels // 2 * 2, *spatial))
    return normal(case, device), params / 4


def plain(x, params, packed, **options):
    shift, scale = params.chunk(2, 1) if packed == "chunk" else (params[:, ::2], params[:, 1::2])
    return reference.affine_coupling(x, shift, scale, **options)


class Given(torch.nn.Module):
    """A conditioner whose result is there already."""

    def __init__(self, params):
        super().__init__()
        self.params = params

    def forward(self, x):
        return self.params


def normflows(x, params):
    return AffineCouplingBlock(Given(params))(x)


def coupling(scale_map="exp", packed="chunk", peer=False, **case):
    options = {"map": scale_map, "packed": packed}
    usual = {"map": "exp", "packed": "chunk"}
    return both_directions(
        operation="affine_coupling",
        inputs=inputs,
        gmfast=partial(GF.affine_coupling, scale=None, packed=packed, scale_map=scale_map),
        baselines={"textbook": partial(plain, packed=packed, scale_map=scale_map)},
        peers={"normflows": normflows} if peer and AffineCouplingBlock else {},
        wrt=(0, 1),
        options={name: value for name, value in options.items() if value != usual[name]},
        **case,
    )


# Targets are ratios in float32 on two CPU cores; on a GPU, the share of bandwidth from 64 MiB on.
CASES = [
    *coupling(
        shape=(16, 48, 32, 32),
        forward={"cpu": Target(eager=6, compile=2.5, share=0.7)},
        backward={"cpu": Target(eager=6, compile=5)},
    ),
    *coupling(packed="interleaved", peer=True, shape=(16, 48, 32, 32)),
    *coupling("sigmoid", shape=(16, 48, 32, 32)),
    *coupling("tanh", shape=(16, 48, 32, 32)),
    *coupling("atan", shape=(16, 48, 32, 32)),
    *coupling("softclip", shape=(16, 48, 32, 32)),
    *coupling(shape=(16, 48, 32, 32), layout="channels_last"),
    *coupling(packed="interleaved", shape=(16, 48, 32, 32), layout="channels_last"),
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
