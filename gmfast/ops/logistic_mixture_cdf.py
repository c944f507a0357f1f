"""The transform of Flow++: the logit of a logistic mixture's CDF."""

import torch

from .. import _check, reference
from .._library import has_kernel, operator
from ._layout import compute_dtype, empty_as, empty_in_order
from ._second_order import differentiate, pull_back

REDUCTIONS = ("sum", "none")


def logistic_mixture_cdf(x, logits, means, log_scales, *, inverse=False, reduction="sum"):
    """Compute y = logit(Σ_k π_k σ((x − μ_k) / s_k)) of each element under its own mixture, or the inverse.

    The transform of Flow++ (Ho et al., 2019, arXiv:1902.00275): π the softmax of `logits`, μ `means`,
    s = exp(`log_scales`). Tails are exact: of one component, y = (x − μ) / s however far x lies from μ. The
    inverse is found for each element by itself, by Halley's method within a bracket, to the rounding error
    of y; both directions run in one pass, and so do their gradients, the inverse's by the implicit function
    theorem.

    Args:
        x: `(B, *D)`; with `inverse` the y to invert.
        logits: `(B, *D, K)`, any strides: permuted views of a convolution's output and slices of one tensor
            are read in place.
        means: likewise.
        log_scales: likewise; those beyond ±80 (float64: ±600) count as ±80 (±600).
        inverse: return x for y, and the log-determinant of that direction.
        reduction: `"sum"` gives `log_det (B,)`, `"none"` each element's log-derivative `(B, *D)`.

    Returns:
        `(y, log_det)`: y of x's shape and dtype; log_det in float64 if an input is float64, else float32 (for
        half inputs too). Both differentiable to any order in all inputs, beyond the first by way of plain
        PyTorch. Between components that are far apart y hardly depends on x, so that there the inverse's
        error is that of y times a large dx/dy, and its gradient by the logits is bounded at 1e30 times the
        incoming one (float64: 1e290). Finite for |x|, |means| and, in the inverse, |y·s| to 1e36 (float64:
        1e300).

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to::

        log_pi = logits.log_softmax(-1)
        z = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
        log_cdf = torch.logsumexp(log_pi + F.logsigmoid(z), -1)
        log_survival = torch.logsumexp(log_pi + F.logsigmoid(-z), -1)
        log_density = torch.logsumexp(log_pi + F.logsigmoid(z) + F.logsigmoid(-z) - log_scales, -1)
        y = log_cdf - log_survival
        log_det = (log_density - log_cdf - log_survival).flatten(1).sum(1)
    """
    _check.floating("x", x)
    if x.dim() == 0:
        raise ValueError("x: expected shape (B, *D), got a scalar")
    params = {"logits": logits, "means": means, "log_scales": log_scales}
    for name, param in params.items():
        _check.floating(name, param)
        if param.shape[:-1] != x.shape or param.dim() != x.dim() + 1 or param.shape[-1] == 0:
            raise ValueError(
                f"{name}: expected shape (B, *D, K) for x {tuple(x.shape)}, got {tuple(param.shape)}"
            )
        if param.shape[-1] != logits.shape[-1]:
            raise ValueError(
                f"{name}: expected the {logits.shape[-1]} components of logits, got {param.shape[-1]}"
            )
    _check.one_of("reduction", reduction, REDUCTIONS)
    inverse = bool(inverse)
    if not has_kernel(x, logits, means, log_scales):
        dtype = compute_dtype(x, logits, means, log_scales)
        y, log_det = reference.logistic_mixture_cdf(
            x.to(dtype),
            *(p.to(dtype) for p in params.values()),
            inverse=inverse,
            reduction=reduction,
        )
        return y.to(x.dtype), log_det
    want_solution = inverse and torch.is_grad_enabled()
    if want_solution:
        want_solution = any(t.requires_grad for t in (x, logits, means, log_scales))
    return _forward(x, logits, means, log_scales, inverse, reduction == "none", want_solution)[:2]


def _fake(x, logits, means, log_scales, inverse, per_element, want_solution):
    dtype = compute_dtype(x, logits, means, log_scales)
    return (
        empty_as(x, x.shape),
        x.new_empty(x.shape if per_element else x.shape[:1], dtype=dtype),
        x.new_empty(x.shape if want_solution and x.dtype != dtype else (0,), dtype=dtype),
    )


def _setup_context(ctx, inputs, output):
    x, *params, ctx.inverse, ctx.per_element, _ = inputs
    y, _, solution = output
    ctx.x_dtype = x.dtype
    ctx.set_materialize_grads(False)
    # What the gradient is computed from: the data, of the inverse its output, unrounded where that is half.
    data = x
    if ctx.inverse:
        data = y if solution.shape != x.shape or y.dtype == solution.dtype else solution
    ctx.save_for_backward(data, *params)


def _backward(ctx, grad_y, grad_log_det, grad_solution):
    data, *params = ctx.saved_tensors
    # Of a second derivative, where y is the solution rounded; of no elements where there is none.
    if grad_solution is not None and grad_solution.shape == data.shape:
        grad_y = grad_solution if grad_y is None else grad_y + grad_solution
    if grad_y is None and grad_log_det is None:
        return (None,) * 7
    wanted = sum(bit << i for i, bit in enumerate(ctx.needs_input_grad[:4]))
    grads = _gradients(grad_y, grad_log_det, data, *params, ctx.inverse, ctx.per_element, wanted)
    grads = [g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)]
    if grads[0] is not None:
        grads[0] = grads[0].to(ctx.x_dtype)
    return *grads, None, None, None


def _gradients_fake(grad_y, grad_log_det, x, logits, means, log_scales, inverse, per_element, wanted):
    empty = (empty_as, empty_in_order, empty_in_order, empty_in_order)
    return tuple(
        make(t, t.shape) if wanted >> i & 1 else t.new_empty((0,))
        for i, (make, t) in enumerate(zip(empty, (x, logits, means, log_scales), strict=True))
    )


def _gradients_setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.inverse, ctx.per_element, ctx.wanted = inputs[6:]
    ctx.set_materialize_grads(False)


def _plain_gradients(grad_y, grad_log_det, x, params, inverse, per_element):
    """Compute what the operator does, in differentiable PyTorch.

    Of the inverse x(y), with T its forward and L the log of T's derivative: dx = (dy - dT) / exp(L), and the
    log-derivative is -L.
    """
    dtype = compute_dtype(x, *params)
    y, log_derivative = reference.logistic_mixture_cdf(
        x.to(dtype), *(p.to(dtype) for p in params), reduction="none"
    )
    zero = torch.zeros_like(y)
    grad_y = zero if grad_y is None else grad_y.to(dtype)
    grad_log_derivative = zero if grad_log_det is None else grad_log_det.to(dtype)
    if not per_element and grad_log_det is not None:
        ones = [1] * (x.dim() - 1)
        grad_log_derivative = grad_log_derivative.reshape(-1, *ones).expand_as(y)
    if not inverse:
        return differentiate([y, log_derivative], [x, *params], [grad_y, grad_log_derivative], True)
    (slope,) = torch.autograd.grad(log_derivative, x, torch.ones_like(y), create_graph=True)
    grad_x = (grad_y - grad_log_derivative * slope) * torch.exp(-log_derivative)
    outputs, incoming = [y, log_derivative], [-grad_x, -grad_log_derivative]
    return [grad_x, *differentiate(outputs, params, incoming, True)]


def _gradients_backward(ctx, *grad_gradients):
    def gradients(grad_y, grad_log_det, x, *params):
        found = _plain_gradients(grad_y, grad_log_det, x, params, ctx.inverse, ctx.per_element)
        # In the dtypes of what the operator returned.
        return [None if g is None else g.to(t.dtype) for g, t in zip(found, (x, *params), strict=True)]

    wanted = [g if ctx.wanted >> i & 1 else None for i, g in enumerate(grad_gradients)]
    return *pull_back(gradients, ctx.saved_tensors, wanted), None, None, None


_forward = operator("logistic_mixture_cdf", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradients = operator(
    "logistic_mixture_cdf_backward",
    fake=_gradients_fake,
    setup_context=_gradients_setup_context,
    backward=_gradients_backward,
)
