"""The masked convolution of PixelCNN."""

from .. import reference
from . import _check


def masked_conv2d(x, weight, bias=None, *, mask_type="B", channel_groups=1, dilation=1):
    """A convolution that sees, in raster order, the pixels before its own; no arithmetic on masked taps.

    Zero padding keeps the image's size. Type A leaves out the current pixel, type B keeps it. PixelCNN
    (van den Oord, Kalchbrenner & Kavukcuoglu, 2016, arXiv:1601.06759).

    Args:
        x: floating, (B, I, H, W).
        weight: (O, I, h, w), the full kernel, h and w odd. Masked entries are never read, whatever they
            hold, and get a gradient of exactly zero.
        bias: (O,) or None.
        mask_type: "A" or "B".
        channel_groups: with 3, input and output channels fall into three equal contiguous groups in the
            order R, G, B; at the current pixel a group sees the earlier groups (A) or also itself (B).
        dilation: one int, or two for rows and columns.

    Returns:
        (B, O, H, W) in x's dtype. Differentiable to any order.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to::

        F.conv2d(x, weight * mask, bias, padding="same", dilation=dilation)
    """
    _check.floating("x", x)
    return reference.masked_conv2d(
        x, weight, bias, mask_type=mask_type, channel_groups=channel_groups, dilation=dilation
    )
