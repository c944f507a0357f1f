"""Glow's activation normalization: a shift and a scale for each channel."""

from .. import _check, reference
from .._library import has_kernel, operator
from ._layout import compute_dtype, empty_as
from ._second_order import backward_operator


def actnorm(x, shift, log_scale, *, inverse=False):
    """`(x + shift)·exp(log_scale)` for each channel, and its log-determinant.

    The activation normalization of Glow (Kingma and Dhariwal, 2018, arXiv:1807.03039), one pass forward and
    one backward.

    Args:
        x: floating, `(B, C, *S)`.
        shift: floating, `(C,)` or `(1, C, 1, ...)` of as many dimensions as `x`.
        log_scale: likewise.
        inverse: `x·exp(-log_scale) - shift` instead.

    Returns:
        `(y, log_det)`: y in the shape and dtype of `x`; log_det `(B,)` = |S|·Σ log_scale (negated for the
        inverse), in float64 if an input is float64, else float32. Differentiable to any order.

    Raises:
        ValueError: for shapes. TypeError: for dtypes.

    Equivalent to::

        y = (x + shift.view(1, C, 1, 1)) * torch.exp(log_scale.view(1, C, 1, 1))
        log_det = (H * W * log_scale.sum()).expand(B)
    """
    _check.floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x: expected shape (B, C, *S), got {tuple(x.shape)}")
    shift, log_scale = _per_channel("shift", shift, x), _per_channel("log_scale", log_scale, x)
    if not has_kernel(x, shift, log_scale):
        dtype = compute_dtype(x, shift, log_scale)
        y, log_det = reference.actnorm(x.to(dtype), shift.to(dtype), log_scale.to(dtype), inverse=inverse)
        return y.to(x.dtype), log_det
    return _forward(x, shift, log_scale, bool(inverse))


def _per_channel(name, value, x):
    _check.floating(name, value)
    channels = x.shape[1]
    if value.dim() == 1 and value.shape[0] == channels:
        return value
    if tuple(value.shape) != (1, channels, *[1] * (x.dim() - 2)):
        raise ValueError(f"{name}: expected shape ({channels},), got {tuple(value.shape)}")
    return value.reshape(channels)


def _fake(x, shift, log_scale, inverse):
    log_det = x.new_empty((x.shape[0],), dtype=compute_dtype(x, shift, log_scale))
    return empty_as(x, x.shape), log_det


def _setup_context(ctx, inputs, output):
    x, shift, log_scale, ctx.inverse = inputs
    ctx.save_for_backward(x, shift, log_scale)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_log_det):
    x, shift, log_scale = ctx.saved_tensors
    need_x, need_shift, need_log_scale, _ = ctx.needs_input_grad
    if grad_y is None and grad_log_det is None:
        return None, None, None, None
    grad_x, grad_shift, grad_log_scale = _gradient(
        grad_y, grad_log_det, x, shift, log_scale, ctx.inverse, need_x, need_shift or need_log_scale
    )
    return (
        grad_x if need_x else None,
        grad_shift if need_shift else None,
        grad_log_scale if need_log_scale else None,
        None,
    )


def _gradient_fake(grad_y, grad_log_det, x, shift, log_scale, inverse, want_x, want_channels):
    channels = x.shape[1] if want_channels else 0
    grad_x = empty_as(x, x.shape) if want_x else x.new_empty((0,))
    return grad_x, shift.new_empty((channels,)), log_scale.new_empty((channels,))


def _plain(x, shift, log_scale, inverse, want_x, want_channels):
    dtype = compute_dtype(x, shift, log_scale)
    y, log_det = reference.actnorm(x.to(dtype), shift.to(dtype), log_scale.to(dtype), inverse=inverse)
    return y.to(x.dtype), log_det


_forward = operator("actnorm", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator("actnorm_backward", _plain, fake=_gradient_fake, num_tensors=3, num_results=2)
