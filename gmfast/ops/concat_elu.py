"""Concatenated exponential linear units."""

from .. import _check, reference
from .._library import has_kernel, operator
from ._layout import compute_dtype, empty_as
from ._second_order import backward_operator


def concat_elu(x, dim=1):
    """Concatenate the ELU of `x` and of `-x` along `dim`, in one pass.

    The activation of PixelCNN++ (Salimans et al., 2017, arXiv:1701.05517), after concatenated ReLU
    (Shang et al., 2016). Finite for every finite input.

    Args:
        x: floating, any shape.
        dim: the dimension that is doubled.

    Returns:
        The shape of `x` with `dim` doubled, in `x`'s dtype. Differentiable to any order.

    Raises:
        ValueError: for `dim`. TypeError: for dtypes.

    Equivalent to::

        torch.nn.functional.elu(torch.cat([x, -x], dim))
    """
    _check.floating("x", x)
    dim = _check.axis("dim", dim, x.dim())
    if not has_kernel(x):
        return reference.concat_elu(x.to(compute_dtype(x)), dim).to(x.dtype)
    return _forward(x, dim)


def _fake(x, dim):
    return empty_as(x, (*x.shape[:dim], 2 * x.shape[dim], *x.shape[dim + 1 :]))


def _setup_context(ctx, inputs, output):
    x, ctx.dim = inputs
    ctx.save_for_backward(x)


def _backward(ctx, grad):
    (x,) = ctx.saved_tensors
    return _gradient(grad, x, ctx.dim), None


_forward = operator("concat_elu", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator(
    "concat_elu_backward",
    reference.concat_elu,
    fake=lambda grad, x, dim: empty_as(x, x.shape),
)
