"""The log-density of a diagonal normal distribution: the base of every flow."""

import math

from .. import _check, reference
from .._library import has_kernel, operator
from ._layout import compute_dtype, empty_as
from ._second_order import backward_operator


def gaussian_log_prob(z, mean=None, log_std=None):
    """Log-density N(z; mean, exp(log_std)²), summed over each sample, in nats.

    Args:
        z: floating, `(B, *S)`.
        mean: floating, broadcastable to `z`, such as a half of a network's output, `(C, 1, 1)` or a scalar
            tensor; None is 0.
        log_std: logarithm of the standard deviation, likewise.

    Returns:
        `(B,)` in float64 if an input is float64, else float32. Differentiable to any order; gradients have
        the shapes of the inputs. One pass over the inputs forward, one backward.

    Raises:
        ValueError: for shapes. TypeError: for dtypes.

    Equivalent to::

        log_prob = -0.5 * ((z - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2 * math.pi)
        log_prob.flatten(1).sum(1)
    """
    _check.floating("z", z)
    if z.dim() == 0:
        raise ValueError("z: expected shape (B, *S), got a scalar")
    mean, log_std = _parameter("mean", mean, z), _parameter("log_std", log_std, z)
    if z.dim() == 1:
        z = z[:, None]
    given = [t for t in (mean, log_std) if t is not None]
    if not has_kernel(z, *given):
        return _plain(z, mean, log_std)
    return _forward(z, mean, log_std)


def _parameter(name, value, z):
    """In the shape of z, or where samples and pixels share it, (C, 1, ...) of one dimension less."""
    if value is None:
        return None
    _check.floating(name, value)
    shape = tuple(z.shape)
    missing = len(shape) - value.dim()
    sizes = (*[1] * missing, *value.shape)
    if missing < 0 or any(n != size and n != 1 for n, size in zip(sizes, shape, strict=True)):
        raise ValueError(f"{name}: expected a shape that broadcasts to {shape}, got {tuple(value.shape)}")
    if len(shape) == 1:
        return value.reshape(1) if sizes == (1,) else value[:, None]
    if missing == 0 and sizes == shape:
        return value
    if math.prod(sizes) == sizes[1]:
        return value.reshape(sizes[1:]).expand(shape[1], *sizes[2:])
    return value.expand(shape)


def _plain(z, mean, log_std, *_):
    dtype = compute_dtype(*(t for t in (z, mean, log_std) if t is not None))
    z, mean, log_std = (t if t is None else t.to(dtype) for t in (z, mean, log_std))
    return reference.gaussian_log_prob(z, mean, log_std)


def _fake(z, mean, log_std):
    dtype = compute_dtype(*(t for t in (z, mean, log_std) if t is not None))
    return z.new_empty((z.shape[0],), dtype=dtype)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    needed = ctx.needs_input_grad
    gradients = _gradient(grad, *ctx.saved_tensors, *needed)
    return tuple(g if need else None for g, need in zip(gradients, needed, strict=True))


def _gradient_fake(grad, z, mean, log_std, *wanted):
    def gradient(tensor, want):
        if tensor is None or not want:
            return (z if tensor is None else tensor).new_empty((0,))
        if tensor.dim() == z.dim():
            return empty_as(z, z.shape, tensor.dtype)
        return tensor.new_empty(tensor.shape)

    return tuple(gradient(t, want) for t, want in zip((z, mean, log_std), wanted, strict=True))


_forward = operator("gaussian_log_prob", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator("gaussian_log_prob_backward", _plain, fake=_gradient_fake, num_tensors=3)
