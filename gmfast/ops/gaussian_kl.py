"""The divergence of two diagonal normal distributions."""

from .. import reference
from .._library import has_kernel, operator
from . import _broadcast
from ._layout import compute_dtype, empty_as
from ._second_order import backward_operator


def gaussian_kl(mean1, logvar1, mean2, logvar2):
    """KL(N(mean1, exp(logvar1)) ‖ N(mean2, exp(logvar2))), elementwise, in nats.

    Args:
        mean1: mean of the first distribution. All four are floating tensors or numbers, at least one a
            tensor, that broadcast to each other: of one shape, `(B, 1, 1, 1)`, scalars.
        logvar1: logarithm of its variance.
        mean2: mean of the second distribution.
        logvar2: logarithm of its variance.

    Returns:
        In the shape they broadcast to, in float64 if one of them is float64, else float32. Differentiable to
        any order in all of them; all gradients come from one pass over the inputs. Accurate also where the
        two distributions are nearly equal. A logvar2 below -175 (float64: -1417) counts as that.

    Raises:
        ValueError: for shapes. TypeError: for dtypes, and without a tensor.

    Equivalent to::

        ratio = logvar1 - logvar2
        0.5 * (torch.expm1(ratio) - ratio + (mean1 - mean2).square() * torch.exp(-logvar2))

    The prior's and the posterior's divergence of a variational autoencoder (Kingma and Welling, 2013,
    arXiv:1312.6114), and the terms of a diffusion model's bound (Ho et al., 2020, arXiv:2006.11239).
    """
    tensors = _broadcast.tensors(mean1=mean1, logvar1=logvar1, mean2=mean2, logvar2=logvar2)
    shape = _broadcast.shape_of(tensors)
    if shape is None:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(f"mean1, logvar1, mean2, logvar2: expected shapes that broadcast, got {shapes}")
    if not has_kernel(*tensors):
        return _plain(*tensors)
    kl = _forward(*(_broadcast.at_least_2d(t, shape) for t in tensors))
    return kl if len(shape) > 1 else kl.reshape(shape)


def _plain(*tensors):
    tensors = tensors[:4]
    dtype = compute_dtype(*tensors)
    return reference.gaussian_kl(*(t.to(dtype) for t in tensors))


def _leader(tensors):
    """Whose memory order all are walked in; `csrc/ops/gaussian_kl.cpp` says which."""
    for t in tensors:
        if not any(n > 1 and stride == 0 for n, stride in zip(t.shape, t.stride(), strict=True)):
            return t
    return tensors[0]


def _fake(*tensors):
    leader = _leader(tensors)
    return empty_as(leader, leader.shape, compute_dtype(*tensors))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    needed = ctx.needs_input_grad
    gradients = _gradient(grad, *ctx.saved_tensors, *needed)
    return tuple(g if need else None for g, need in zip(gradients, needed, strict=True))


def _gradient_fake(grad, *rest):
    tensors, wanted = rest[:4], rest[4:]
    leader = _leader(tensors)
    return tuple(
        empty_as(leader, leader.shape if want else (0,), t.dtype)
        for t, want in zip(tensors, wanted, strict=True)
    )


_forward = operator("gaussian_kl", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator("gaussian_kl_backward", _plain, fake=_gradient_fake, num_tensors=4)
