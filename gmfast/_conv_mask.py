"""Mask of a convolution that is autoregressive in raster order, for the operation and its oracle alike."""

from collections.abc import Sequence

import torch
from torch import Tensor


def conv_mask(
    weight_shape: Sequence[int],
    mask_type: str = "B",
    channel_groups: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Make the mask of a convolution's weight (van den Oord et al., 2016, arXiv:1601.06759).

    Args:
        weight_shape: (O, I, h, w), h and w odd.
        mask_type: "A" masks the current pixel, "B" does not.
        channel_groups: number of equal, contiguous channel groups (colours); at the current pixel a group
            sees the groups before it, with type B also itself.
        device: of the mask.

    Returns:
        Booleans of `weight_shape`, true where the weight is used.
    """
    out_channels, in_channels, height, width = weight_shape
    row = torch.arange(height, device=device)[:, None] - height // 2
    column = torch.arange(width, device=device) - width // 2
    earlier = (row < 0) | ((row == 0) & (column < 0))
    current = (row == 0) & (column == 0)
    out_group = torch.arange(out_channels, device=device)[:, None] * channel_groups // out_channels
    in_group = torch.arange(in_channels, device=device) * channel_groups // in_channels
    visible = in_group < out_group if mask_type == "A" else in_group <= out_group
    return earlier | (current & visible[:, :, None, None])
