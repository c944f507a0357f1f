"""The masked convolution of PixelCNN. Arithmetic is what it costs: 2 operations for each live tap, pair of
channels and pixel, against twice as many where masked taps are multiplied by zeros. The peer is what is in
use: torch's convolution with the weight multiplied by its mask."""

import math
from functools import partial

import torch
import torch.nn.functional as F

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal
from gmfast.ops import masked_conv2d as ops


def masked_conv(shape, kernel, mask_type, out_channels=None, wrt=(0, 1, 2), **case):
    """Cases of x (B, I, H, W), forward and with the gradients by x, weight and bias."""
    in_channels = shape[1]
    size = (out_channels or in_channels, in_channels, kernel, kernel)

    def inputs(case, device):
        weight = torch.randn(size, device=device) / math.sqrt(in_channels * kernel**2)
        return (
            normal(case, device),
            weight.to(case.dtype),
            torch.zeros(size[0], device=device, dtype=case.dtype),
        )

    # The mask is made once, outside, as implementations in use have it.
    masks = {}

    def multiplied(x, weight, bias):
        mask = masks.get((weight.device, weight.dtype))
        if mask is None:
            mask = reference.conv_mask(size, mask_type).to(weight)
            if not torch.compiler.is_compiling():
                masks[weight.device, weight.dtype] = mask
        return F.conv2d(x, weight * mask, bias, padding="same")

    def live_rows(x, weight, bias):
        return ops.plain(x, weight, bias, ops.Geometry(kernel, mask_type == "B"))

    return both_directions(
        operation="masked_conv2d",
        shape=shape,
        inputs=inputs,
        gmfast=partial(GF.masked_conv2d, mask_type=mask_type),
        baselines={"live rows": live_rows, "masked": multiplied},
        peers={"F.conv2d(x, w*mask)": multiplied},
        options={"kernel": f"{kernel}×{kernel}", "type": mask_type, "out": size[0]},
        wrt=wrt,
        **case,
    )


def at_least(times):
    return {"forward": {"cpu": Target(peer=times)}, "backward": {"cpu": Target(peer=times)}}


CASES = [
    *masked_conv((16, 128, 32, 32), 3, "B", **at_least(1.2)),
    *masked_conv((16, 128, 32, 32), 5, "B", **at_least(1.8)),
    *masked_conv((16, 128, 32, 32), 7, "A", **at_least(1.8)),
    *masked_conv((16, 128, 32, 32), 3, "B", layout="channels_last"),
    *masked_conv((16, 128, 32, 32), 5, "B", layout="channels_last"),
    *masked_conv((16, 128, 32, 32), 7, "A", layout="channels_last"),
    *masked_conv((16, 128, 32, 32), 3, "B", dtype=torch.bfloat16),
    *masked_conv((16, 128, 32, 32), 7, "A", dtype=torch.bfloat16),
    # First layers: nobody asks for the gradient by the image.
    *masked_conv((16, 3, 32, 32), 7, "A", out_channels=128, wrt=(1, 2)),
    *masked_conv((64, 1, 28, 28), 7, "A", out_channels=64, wrt=(1, 2)),
    *masked_conv((1, 128, 32, 32), 3, "B"),
    *masked_conv((16, 32, 8, 8), 3, "B"),
]
