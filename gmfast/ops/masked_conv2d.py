"""The masked convolution of PixelCNN, and the one form of it that the causal convolution of WaveNet takes."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import _check
from .._conv_mask import conv_mask
from .._library import has_kernel, operator
from ._layout import cast, cast_for_convolution, compute_dtype, empty_as


def masked_conv2d(x, weight, bias=None, *, mask_type="B", channel_groups=1, dilation=1):
    """A convolution that sees, in raster order, the pixels before its own; no arithmetic on masked taps.

    Zero padding keeps the image's size. Type A leaves out the current pixel, type B keeps it. From PixelCNN
    (van den Oord, Kalchbrenner & Kavukcuoglu, 2016, arXiv:1601.06759).

    Args:
        x: floating, (B, I, H, W).
        weight: (O, I, h, w), the full kernel, h and w odd. Masked entries are never read, whatever they
            hold, and get a gradient of exactly zero.
        bias: (O,) or None. Beside a half-precision x, it and the weight may be float32: the convolution is
            then computed in float32, and so are their gradients.
        mask_type: "A" or "B".
        channel_groups: with 3, input and output channels fall into three equal contiguous groups in the
            order R, G, B; at the current pixel a group sees the earlier groups (A), or also itself (B).
        dilation: one int, or two for rows and columns.

    Returns:
        (B, O, H, W) in x's dtype; under autocast, which casts all arguments, in autocast's. Differentiable to
        any order. The same bits for any number of threads, but where torch's own convolution is faster and
        used: bfloat16 on a CPU with AMX, and GPUs beyond 4 input channels.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to::

        F.conv2d(x, weight * mask, bias, padding="same", dilation=dilation)
    """
    x, weight, bias, geometry = check(x, weight, bias, mask_type, channel_groups, dilation)
    return convolve(x, weight, bias, geometry)


class Geometry(NamedTuple):
    """Arguments of the operators of `csrc/ops/masked_conv2d.cpp` besides their tensors."""

    kernel_width: int
    sees_itself: bool
    channel_groups: int = 1
    row_dilation: int = 1
    column_dilation: int = 1
    groups: int = 1
    left: int = 0


def check(x, weight, bias, mask_type, channel_groups, dilation):
    """Arguments of `masked_conv2d`, as it computes with them."""
    for name, tensor in (("x", x), ("weight", weight), *([] if bias is None else [("bias", bias)])):
        _check.floating(name, tensor)
    if x.dim() != 4:
        raise ValueError(f"x: expected (B, I, H, W), got {tuple(x.shape)}")
    if weight.dim() != 4 or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"weight: expected (O, {x.shape[1]}, h, w) for x of {x.shape[1]} channels, "
            f"got {tuple(weight.shape)}"
        )
    if not (weight.shape[2] % 2 and weight.shape[3] % 2):
        raise ValueError(f"weight: expected odd kernel sizes, got {tuple(weight.shape[2:])}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    _check.one_of("mask_type", mask_type, ("A", "B"))
    _check.integer("channel_groups", channel_groups)
    if channel_groups < 1 or any(size % channel_groups for size in weight.shape[:2]):
        raise ValueError(
            f"channel_groups: expected a divisor of {weight.shape[1]} input and {weight.shape[0]} output "
            f"channels, got {channel_groups}"
        )
    down, right = _pair("dilation", dilation)
    x, weight, bias = cast_for_convolution(x, weight, bias)
    return x, weight, bias, Geometry(weight.shape[3], mask_type == "B", channel_groups, down, right)


def _pair(name, value):
    pair = (value, value) if not isinstance(value, tuple | list) else value
    for number in pair:
        _check.integer(name, number)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name}: expected a positive int or two, got {value!r}")
    return pair


def convolve(x, weight, bias, geometry):
    """The convolution of arguments that were checked."""
    if any(t is not None and t.dtype != x.dtype for t in (weight, bias)):
        return convolve(*cast(compute_dtype(x), x, weight, bias), geometry).to(x.dtype)
    if has_kernel(x, weight, *(() if bias is None else (bias,))) and not _torch_is_faster(weight):
        return _forward(x, weight, bias, *geometry)
    return plain(x, weight, bias, geometry)


has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def _torch_is_faster(weight):
    """True if torch's library (oneDNN, cuDNN) on the live rows beats the kernel here.

    The kernel leaves out every masked tap, but multiplies in full precision, and on a GPU is made for few
    input channels.
    """
    if weight.device.type == "cpu":
        return weight.dtype == torch.bfloat16 and has_amx
    return weight.device.type == "cuda" and weight.shape[1] > 4


def plain(x, weight, bias, geometry):
    """The same by torch's convolution."""
    width, sees_itself, channel_groups, down, right, groups, left = geometry
    (out_channels, in_channels, height, columns), above = weight.shape, weight.shape[2] // 2
    # Without colours every pair of channels has the same mask.
    shape = (out_channels, in_channels, height, width) if channel_groups > 1 else (1, 1, height, width)
    mask = conv_mask(shape, "B" if sees_itself else "A", channel_groups, weight.device)
    live = torch.where(mask[..., :columns], weight, weight.new_zeros(()))
    before = width // 2 * right
    if height == 3 and left == 0:
        # Padding by hand costs more than the third row of a kernel.
        return F.conv2d(x, live, bias, padding=(down, before), dilation=(down, right), groups=groups)
    padded = F.pad(x, (before - left, (columns - 1) * right - before, above * down, 0))
    return F.conv2d(padded, live[:, :, : above + 1], bias, dilation=(down, right), groups=groups)


# Convolution and the gradients are linear in each of two tensors, and each other's gradients.


def _fake_forward(x, weight, bias, *geometry):
    return empty_as(x, (x.shape[0], weight.shape[0], x.shape[2], x.shape[3] - Geometry(*geometry).left))


def _setup_forward(ctx, inputs, output):
    x, weight, _, *ctx.geometry = inputs
    ctx.save_for_backward(x, weight)


def _backward_forward(ctx, grad):
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias, *rest = ctx.needs_input_grad
    grad_x = _grad_input(grad, weight, *ctx.geometry) if need_x else None
    grad_weight = grad_bias = None
    if need_weight or need_bias:
        grad_weight, grad_bias = _grad_weight(grad, x, *weight.shape[2:], need_bias, *ctx.geometry)
    return grad_x, grad_weight, grad_bias if need_bias else None, *(None for _ in rest)


def _fake_grad_input(grad, weight, *geometry):
    g = Geometry(*geometry)
    shape = (grad.shape[0], g.groups * weight.shape[1], grad.shape[2], grad.shape[3] + g.left)
    return empty_as(grad, shape)


def _setup_grad_input(ctx, inputs, output):
    grad, weight, *ctx.geometry = inputs
    ctx.save_for_backward(grad, weight)


def _backward_grad_input(ctx, cotangent):
    grad, weight = ctx.saved_tensors
    need_grad, need_weight, *rest = ctx.needs_input_grad
    by_grad = _forward(cotangent, weight, None, *ctx.geometry) if need_grad else None
    by_weight = None
    if need_weight:
        by_weight, _ = _grad_weight(grad, cotangent, *weight.shape[2:], False, *ctx.geometry)
    return by_grad, by_weight, *(None for _ in rest)


def _fake_grad_weight(grad, x, kernel_height, weight_columns, want_bias, *geometry):
    in_channels = x.shape[1] // Geometry(*geometry).groups
    weight = x.new_empty((grad.shape[1], in_channels, kernel_height, weight_columns))
    return weight, x.new_empty((grad.shape[1] if want_bias else 0,))


def _setup_grad_weight(ctx, inputs, output):
    grad, x, _, _, ctx.want_bias, *ctx.geometry = inputs
    ctx.save_for_backward(grad, x)


def _backward_grad_weight(ctx, weight, bias):
    grad, x = ctx.saved_tensors
    need_grad, need_x, *rest = ctx.needs_input_grad
    bias = bias if ctx.want_bias else None
    by_grad = _forward(x, weight, bias, *ctx.geometry) if need_grad else None
    by_x = _grad_input(grad, weight, *ctx.geometry) if need_x else None
    return by_grad, by_x, *(None for _ in rest)


_forward = operator(
    "masked_conv2d", fake=_fake_forward, setup_context=_setup_forward, backward=_backward_forward
)
_grad_input = operator(
    "masked_conv2d_grad_input",
    fake=_fake_grad_input,
    setup_context=_setup_grad_input,
    backward=_backward_grad_input,
)
_grad_weight = operator(
    "masked_conv2d_grad_weight",
    fake=_fake_grad_weight,
    setup_context=_setup_grad_weight,
    backward=_backward_grad_weight,
)
