"""Negative log-likelihood of levels under a normal distribution."""

from .. import _check, reference
from .._library import has_kernel, operator
from . import _broadcast
from ._layout import compute_dtype, empty_as
from ._second_order import backward_operator

#: Names of the formulas of a level's probability.
FORMULATIONS = ("exact", "improved_ddpm")


def discretized_gaussian_nll(x, mean, log_scale, *, num_classes=256, formulation="exact"):
    """-log P(x) of levels in [-1, 1] under a normal distribution, in nats: DDPM's decoder.

    P is the distribution's mass in the level's bin, which reaches to infinity at -1 and 1 (Ho et al., 2020,
    arXiv:2006.11239).

    Args:
        x: floating, levels -1, -1 + 2/(num_classes - 1), ... 1.
        mean: a floating tensor, broadcastable to `x`, or a number.
        log_scale: logarithm of the standard deviation, likewise.
        num_classes: levels, 2 to 2**24.
        formulation: "exact", or "improved_ddpm": the published approximation of Φ by tanh, with the mass at
            least 1e-12 and the levels at the ends told by |x| > 0.999 (Nichol and Dhariwal, 2021,
            arXiv:2102.09672).

    Returns:
        In the shape of `x`, in float64 if an input is float64, else float32. Differentiable to any order in
        all three; all gradients come from one pass over the inputs. "exact" is accurate however far the mean
        is and however wide or narrow the distribution, and finite as long as the square of the distance in
        standard deviations is a number. A log_scale below -80 (float64: -600) counts as that and has no
        gradient.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to (but where that cancels or overflows)::

        half, inverse = 1 / (num_classes - 1), torch.exp(-log_scale)
        upper, lower = inverse * (x - mean + half), inverse * (x - mean - half)
        cdf = torch.special.ndtr(upper).where(x <= 1 - half, 1) - torch.special.ndtr(lower).where(
            x >= half - 1, 0)
        -torch.log(cdf)
    """
    _check.floating("x", x)
    mean, log_scale = _broadcast.tensors(x=x, mean=mean, log_scale=log_scale)[1:]
    for name, tensor in (("mean", mean), ("log_scale", log_scale)):
        if tensor.shape != x.shape and _broadcast.shape_of([x, tensor]) != tuple(x.shape):
            raise ValueError(
                f"{name}: expected a shape that broadcasts to {tuple(x.shape)}, got {tuple(tensor.shape)}"
            )
    check_options(num_classes, formulation)
    exact = formulation == "exact"
    if not has_kernel(x, mean, log_scale):
        return _plain(x, mean, log_scale, num_classes, exact)
    shape = tuple(x.shape)
    nll = _forward(*(_broadcast.at_least_2d(t, shape) for t in (x, mean, log_scale)), num_classes, exact)
    return nll if len(shape) > 1 else nll.reshape(shape)


def check_options(num_classes, formulation):
    """Check the options of `discretized_gaussian_nll`."""
    _check.integer("num_classes", num_classes)
    if not 2 <= num_classes <= 2**24:
        raise ValueError(f"num_classes: expected 2 to 2**24, got {num_classes}")
    _check.one_of("formulation", formulation, FORMULATIONS)


def _plain(x, mean, log_scale, num_classes, exact, *_):
    dtype = compute_dtype(x, mean, log_scale)
    return reference.discretized_gaussian_nll(
        x.to(dtype),
        mean.to(dtype),
        log_scale.to(dtype),
        num_classes=num_classes,
        formulation=FORMULATIONS[not exact],
    )


def _fake(x, mean, log_scale, num_classes, exact):
    return empty_as(x, x.shape, compute_dtype(x, mean, log_scale))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_classes, ctx.exact = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    needed = ctx.needs_input_grad[:3]
    gradients = _gradient(grad, *ctx.saved_tensors, ctx.num_classes, ctx.exact, *needed)
    return *(g if need else None for g, need in zip(gradients, needed, strict=True)), None, None


def _gradient_fake(grad, x, mean, log_scale, num_classes, exact, *wanted):
    return tuple(
        empty_as(x, x.shape if want else (0,), t.dtype)
        for t, want in zip((x, mean, log_scale), wanted, strict=True)
    )


_forward = operator("discretized_gaussian_nll", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator("discretized_gaussian_nll_backward", _plain, fake=_gradient_fake, num_tensors=3)
