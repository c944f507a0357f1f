"""The masked convolution in plain PyTorch."""

import torch
import torch.nn.functional as F

from .._conv_mask import conv_mask


def masked_conv2d(x, weight, bias=None, *, mask_type="B", channel_groups=1, dilation=1):
    """Reference of `gmfast.functional.masked_conv2d`."""
    dilation = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
    mask = conv_mask(weight.shape, mask_type, channel_groups, weight.device)
    padding = [d * (k // 2) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    weight = torch.where(mask, weight, weight.new_zeros(()))
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation)
