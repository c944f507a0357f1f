"""The gate of PixelCNN, WaveNet and their descendants."""

from .. import _check, reference
from .._library import has_kernel, operator
from ._layout import compute_dtype, empty_as
from ._second_order import backward_operator


def gated_activation(x, residual=None, *, dim=1):
    """Multiply tanh of the first half by sigmoid of the second half, in one pass.

    The gate of the gated PixelCNN (van den Oord et al., 2016, arXiv:1606.05328) and of WaveNet
    (arXiv:1609.03499). Finite for every finite input.

    Args:
        x: floating, any shape; its size along `dim` is even.
        residual: added to the result, whose shape it has.
        dim: the dimension that is halved.

    Returns:
        The shape of `x` with `dim` halved, in `x`'s dtype, or the dtype
        that it and `residual`'s promote to. Differentiable to any order.

    Raises:
        ValueError: for shapes. TypeError: for dtypes.

    Equivalent to::

        a, b = x.chunk(2, dim)
        y = torch.tanh(a) * torch.sigmoid(b)      # + residual
    """
    _check.floating("x", x)
    dim = _check.axis("dim", dim, x.dim())
    if x.shape[dim] % 2:
        raise ValueError(f"x: expected an even size along dim {dim}, got {tuple(x.shape)}")
    if residual is not None:
        _check.floating("residual", residual)
        expected = _halved(x.shape, dim)
        if tuple(residual.shape) != expected:
            raise ValueError(f"residual: expected shape {expected}, got {tuple(residual.shape)}")
        if residual.dtype != x.dtype:  # as under autocast: promoted, in a pass of its own
            return gated_activation(x, dim=dim) + residual
    if not has_kernel(x, *(() if residual is None else (residual,))):
        return reference.gated_activation(x.to(compute_dtype(x)), residual, dim=dim).to(x.dtype)
    return _forward(x, residual, dim)


def _halved(shape, dim):
    return (*shape[:dim], shape[dim] // 2, *shape[dim + 1 :])


def _fake(x, residual, dim):
    return empty_as(x, _halved(x.shape, dim))


def _setup_context(ctx, inputs, output):
    x, _, ctx.dim = inputs
    ctx.save_for_backward(x)


def _backward(ctx, grad):
    (x,) = ctx.saved_tensors
    need_x, need_residual, _ = ctx.needs_input_grad
    grad_x = _gradient(grad, x, ctx.dim) if need_x else None
    return grad_x, grad if need_residual else None, None


_forward = operator("gated_activation", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator(
    "gated_activation_backward",
    lambda x, dim: reference.gated_activation(x, dim=dim),
    fake=lambda grad, x, dim: empty_as(x, x.shape),
)
