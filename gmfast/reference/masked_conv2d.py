import torch
import torch.nn.functional as F


def conv_mask(weight_shape, mask_type="B", channel_groups=1, device=None):
    """Which entries of a weight (O, I, h, w) are live, as booleans of that shape."""
    out_channels, in_channels, height, width = weight_shape
    row = torch.arange(height, device=device)[:, None] - height // 2
    column = torch.arange(width, device=device) - width // 2
    earlier = (row < 0) | ((row == 0) & (column < 0))
    current = (row == 0) & (column == 0)
    out_group = torch.arange(out_channels, device=device)[:, None] * channel_groups // out_channels
    in_group = torch.arange(in_channels, device=device) * channel_groups // in_channels
    visible = in_group < out_group if mask_type == "A" else in_group <= out_group
    return earlier | (current & visible[:, :, None, None])


def masked_conv2d(x, weight, bias=None, *, mask_type="B", channel_groups=1, dilation=1):
    dilation = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
    mask = conv_mask(weight.shape, mask_type, channel_groups, weight.device)
    padding = [d * (k // 2) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    weight = torch.where(mask, weight, weight.new_zeros(()))
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation)
