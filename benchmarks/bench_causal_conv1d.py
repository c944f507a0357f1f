"""The causal convolution: depthwise as in Mamba and its kin (4 taps, a bias and SiLU), where memory is what
it costs, and dense as in WaveNet, where arithmetic is."""

import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal

TAPS = 4


def inputs(case, device):
    """x, weight, bias. "channels_last" is what `x.transpose(1, 2)` makes of (B, T, C)."""
    channels = case.shape[1]
    contiguous = replace(case, layout="contiguous")
    x, weight, bias = (normal(contiguous, device, s) for s in (None, (channels, 1, TAPS), (channels,)))
    if case.layout == "channels_last":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    return x, weight, bias


def gmfast(x, weight, bias):
    return GF.causal_conv1d(x, weight, bias, groups=x.shape[1], activation="silu")


def padded(x, weight, bias):
    """Zeros before the start, and no output behind the end."""
    return reference.causal_conv1d(x, weight, bias, groups=x.shape[1], activation="silu")


def sliced(x, weight, bias):
    """Zeros at both ends, and the outputs behind the end cut off."""
    y = F.conv1d(x, weight, bias, padding=TAPS - 1, groups=x.shape[1])
    return F.silu(y[:, :, : x.shape[2]])


conv = partial(
    both_directions,
    operation="causal_conv1d, depthwise, silu",
    inputs=inputs,
    gmfast=gmfast,
    baselines={"sliced": sliced, "padded": padded},
    wrt=(0, 1, 2),
)
goal, faster = Target(compile=1, share=0.7), Target(compile=1)


def wavenet(shape, out_channels, taps, dilation, **case):
    """Cases of x (B, C, T)."""

    def inputs(case, device):
        size = (out_channels, shape[1], taps)
        weight = normal(case, device, size) / math.sqrt(shape[1] * taps)
        return normal(case, device), weight, normal(case, device, (out_channels,))

    def sliced(x, weight, bias):
        span = (taps - 1) * dilation
        return F.conv1d(x, weight, bias, padding=span, dilation=dilation)[:, :, : x.shape[2]]

    return both_directions(
        operation="causal_conv1d",
        shape=shape,
        inputs=inputs,
        gmfast=partial(GF.causal_conv1d, dilation=dilation),
        baselines={"padded": partial(reference.causal_conv1d, dilation=dilation), "sliced": sliced},
        options={"out": out_channels, "k": taps, "dilation": dilation},
        wrt=(0, 1, 2),
        **case,
    )


# Channels of 2048 float32 numbers lie a multiple of 4 KiB apart, in one set of the cache.
CASES = [
    *conv(shape=(8, 512, 2048), forward={"cpu": goal}, backward={"cpu": goal}),
    *conv(shape=(8, 512, 2048), layout="channels_last", forward={"cpu": goal}, backward={"cpu": goal}),
    *conv(shape=(8, 512, 2048), dtype=torch.bfloat16),
    *conv(shape=(8, 512, 2048), dtype=torch.bfloat16, layout="channels_last"),
    *conv(shape=(1, 256, 512), forward={"cpu": faster}, backward={"cpu": faster}),
    *conv(shape=(1, 256, 512), layout="channels_last"),
    *conv(
        shape=(16, 4096, 2048),
        dtype=torch.bfloat16,
        devices=("cuda",),
        forward={"cuda": Target(share=0.8, compile=1)},
        backward={"cuda": Target(compile=1)},
    ),
    *wavenet((1, 64, 16000), 128, taps=2, dilation=1, forward={"cpu": faster}, backward={"cpu": faster}),
    *wavenet((1, 64, 16000), 128, taps=2, dilation=512, forward={"cpu": faster}, backward={"cpu": faster}),
    *wavenet((8, 128, 4096), 256, taps=3, dilation=16, forward={"cpu": faster}, backward={"cpu": faster}),
]
