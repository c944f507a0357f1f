"""The causal convolution in plain PyTorch."""

import torch
import torch.nn.functional as F

from .gated_activation import gated_activation

ACTIVATIONS = {None: lambda y: y, "silu": F.silu, "gated": gated_activation}


def causal_conv1d(
    x,
    weight,
    bias=None,
    *,
    dilation=1,
    groups=1,
    activation=None,
    initial_state=None,
    return_state=False,
):
    """Reference of `gmfast.functional.causal_conv1d`."""
    length = (weight.shape[2] - 1) * dilation
    if initial_state is None:
        initial_state = x.new_zeros(*x.shape[:2], length)
    padded = torch.cat([initial_state, x], 2)
    y = ACTIVATIONS[activation](F.conv1d(padded, weight, bias, dilation=dilation, groups=groups))
    return (y, padded[:, :, padded.shape[2] - length :]) if return_state else y
