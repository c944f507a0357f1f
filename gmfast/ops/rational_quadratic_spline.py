"""The monotone rational-quadratic spline of neural spline flows."""

from .. import _check, reference
from .._library import has_kernel, operator
from ._layout import compute_dtype, empty_as, empty_in_order
from ._second_order import backward_operator
from ._views import join

TAILS = ("linear", None)
REDUCTIONS = ("sum", "none")


def rational_quadratic_spline(
    x,
    widths,
    heights,
    derivatives,
    *,
    bound=3.0,
    tails="linear",
    min_bin_width=1e-3,
    min_bin_height=1e-3,
    min_derivative=1e-3,
    inverse=False,
    reduction="sum",
    packed=False,
):
    """A monotone rational-quadratic spline of each element, and the logarithm of its derivative, in one pass.

    `[-bound, bound]` is cut into K bins, each with its width, its height and the slopes at its two knots, and
    maps onto itself (Durkan et al., "Neural Spline Flows", 2019, arXiv:1906.04032). The softmax of widths and
    heights and the softplus of slopes are inside.

    Args:
        x: `(B, *D)`; with `inverse`, what the forward direction made.
        widths: `(B, *D, K)`, raw. Bin k has the share `min + (1 - K·min)·softmax(raw)_k` of `2·bound`. Any
            strides: views of a convolution's output and slices of a tensor that holds all three are read in
            place.
        heights: likewise.
        derivatives: raw; the slope at a knot is `min_derivative + softplus(raw)`. `(B, *D, K-1)`, those of
            the inner knots, for linear tails; `(B, *D, K+1)` for `tails=None`.
        bound: positive.
        tails: `"linear"` is the identity outside `[-bound, bound]`; the slope at ±bound is exactly 1. `None`
            goes on as a line of the slope that the spline has at that end.
        min_bin_width: from 0 to 1/K.
        min_bin_height: from 0 to 1/K.
        min_derivative: from 0.
        inverse: the other direction, and its log-derivative.
        reduction: `"sum"` over each sample, or `"none"`.
        packed: True where `widths` is the network's whole output `(B, *D, 3·K-1)`, with `tails=None`
            `(B, *D, 3·K+1)`: widths, heights and derivatives in this order, and the other two are None. The
            same as passing the three slices, whose gradient comes in one piece too where they cover a tensor.

    Returns:
        `(y, log_det)`: y as x; log_det `(B,)`, or `(B, *D)` for `reduction="none"`, float64 if an input is
        float64, else float32 (also for half inputs). It is of the direction called. Both are differentiable
        in all four inputs, in both directions, to any order, beyond the first by way of plain PyTorch.
        At a knot the bin to its right counts. Finite for finite inputs, in float32 with raw derivatives to
        1e18, where the three minima are positive. The inverse of y is accurate as far as y determines it:
        where the spline's slope is small, rounding y moves x by that over the slope.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to `gmfast.reference.rational_quadratic_spline`; forward, without the tails::

        w = 2 * bound * (min_bin_width + (1 - K * min_bin_width) * widths.softmax(-1))
        h = 2 * bound * (min_bin_height + (1 - K * min_bin_height) * heights.softmax(-1))
        d = F.pad(min_derivative + F.softplus(derivatives), (1, 1), value=1.0)
        left, floor = w.cumsum(-1) - w - bound, h.cumsum(-1) - h - bound
        k = (x[..., None] >= left[..., 1:]).sum(-1, keepdim=True)
        w, h, left, floor, d0, d1 = (
            t.gather(-1, i)[..., 0] for t, i in ((w, k), (h, k), (left, k), (floor, k), (d, k), (d, k + 1))
        )
        s, theta = h / w, (x - left) / w
        m = theta * (1 - theta)
        denominator = s + (d0 + d1 - 2 * s) * m
        y = floor + h * (s * theta**2 + d0 * m) / denominator
        slope = s**2 * (d1 * theta**2 + 2 * s * m + d0 * (1 - theta) ** 2) / denominator**2
        log_det = slope.log().flatten(1).sum(1)
    """
    _check.one_of("tails", tails, TAILS)
    _check.one_of("packed", packed, (False, True))
    bins = _check_tensors(x, widths, heights, derivatives, tails, packed)
    _check.number("bound", bound, 1e-30, 1e30)
    _check.number("min_bin_width", min_bin_width, 0, 1 / bins)
    _check.number("min_bin_height", min_bin_height, 0, 1 / bins)
    _check.number("min_derivative", min_derivative, 0, 1e15)
    _check.one_of("inverse", inverse, (False, True))
    _check.one_of("reduction", reduction, REDUCTIONS)

    options = (
        float(bound),
        tails == "linear",
        float(min_bin_width),
        float(min_bin_height),
        float(min_derivative),
        inverse,
        reduction == "sum",
    )
    tensors = (x, widths, heights, derivatives)
    if not has_kernel(*(t for t in tensors if t is not None)):
        return _plain(*tensors, *options)
    if not packed:
        joined = join(tensors[1:], x.dim())
        tensors = tensors if joined is None else (x, joined, None, None)
    return _forward(*tensors, *options)


def _check_tensors(x, widths, heights, derivatives, tails, packed):
    """Raises, or gives the number of bins."""
    _check.floating("x", x)
    _check.floating("widths", widths)
    if x.dim() == 0:
        raise ValueError("x: expected shape (B, *D), got a scalar")
    shape = tuple(x.shape)
    more = -1 if tails == "linear" else 1
    count = widths.shape[-1] if widths.dim() else 0
    if packed:
        for name, tensor in (("heights", heights), ("derivatives", derivatives)):
            if tensor is not None:
                raise ValueError(f"{name}: expected None, as widths holds all (packed=True), got a tensor")
        bins = (count - more) // 3
        if tuple(widths.shape[:-1]) != shape or bins < 1 or count != 3 * bins + more:
            expected = _bins_of(shape, f"3*K{more:+}")
            raise ValueError(f"widths: expected shape {expected} (packed=True), got {tuple(widths.shape)}")
        return bins
    _check.floating("heights", heights)
    _check.floating("derivatives", derivatives)
    if widths.dim() != x.dim() + 1 or tuple(widths.shape[:-1]) != shape or count == 0:
        raise ValueError(f"widths: expected shape {_bins_of(shape, 'K')}, got {tuple(widths.shape)}")
    for name, tensor, size in (("heights", heights, count), ("derivatives", derivatives, count + more)):
        if tuple(tensor.shape) != (*shape, size):
            raise ValueError(f"{name}: expected shape {_bins_of(shape, size)}, got {tuple(tensor.shape)}")
    return count


def _bins_of(shape, size):
    return "(" + ", ".join(map(str, (*shape, size))) + ")"


def _plain(
    x,
    widths,
    heights,
    derivatives,
    bound,
    linear_tails,
    min_bin_width,
    min_bin_height,
    min_derivative,
    inverse,
    reduce,
    *_,
):
    tensors = (x, widths, heights, derivatives)
    dtype = compute_dtype(*(t for t in tensors if t is not None))
    y, log_det = reference.rational_quadratic_spline(
        *(t if t is None else t.to(dtype) for t in tensors),
        bound=bound,
        tails="linear" if linear_tails else None,
        min_bin_width=min_bin_width,
        min_bin_height=min_bin_height,
        min_derivative=min_derivative,
        inverse=inverse,
        reduction="sum" if reduce else "none",
        packed=heights is None,
    )
    return y.to(x.dtype), log_det


def _fake(x, widths, heights, derivatives, *options):
    reduce = options[6]
    dtype = compute_dtype(*(t for t in (x, widths, heights, derivatives) if t is not None))
    return empty_as(x, x.shape), x.new_empty(x.shape[:1] if reduce else x.shape, dtype=dtype)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.bound, ctx.linear, ctx.width, ctx.height, ctx.slope, ctx.inverse, ctx.reduce = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_log):
    tensors = ctx.saved_tensors
    needed = [n and t is not None for n, t in zip(ctx.needs_input_grad, tensors, strict=False)]
    nothing = (None,) * 7
    if grad_y is None and grad_log is None:
        return None, None, None, None, *nothing
    options = ctx.bound, ctx.linear, ctx.width, ctx.height, ctx.slope, ctx.inverse, ctx.reduce
    gradients = _gradient(grad_y, grad_log, *tensors, *options, *needed)
    return *(g if need else None for g, need in zip(gradients, needed, strict=True)), *nothing


def _gradient_fake(grad_y, grad_log, x, widths, heights, derivatives, *options):
    tensors, wanted = (x, widths, heights, derivatives), options[7:]
    empty = (empty_as, empty_in_order, empty_in_order, empty_in_order)
    return tuple(
        make(t, t.shape) if t is not None and want else (widths if t is None else t).new_empty((0,))
        for make, t, want in zip(empty, tensors, wanted, strict=True)
    )


_forward = operator("rational_quadratic_spline", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator(
    "rational_quadratic_spline_backward", _plain, fake=_gradient_fake, num_tensors=4, num_results=2
)
