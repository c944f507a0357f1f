"""From pixels to logits and back: the first layer of a flow on images."""

import torch

from .. import _check, _seed, reference
from .._library import has_kernel, operator
from ._layout import compute_dtype, empty_as
from ._second_order import backward_operator

_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def dequantize_logit(x, *, num_levels=256, alpha=0.05, seed=None, inverse=False, noise=None, quantize=True):
    """Levels 0 .. num_levels - 1 with uniform noise, as logits; the log-determinant of that.

    Noise makes the levels continuous (Theis et al., 2016, arXiv:1511.01844), and the logit of
    p = alpha + (1 - 2·alpha)·(x + u) / num_levels takes them to the whole line (Dinh et al., "Density
    estimation using Real NVP", 2017, arXiv:1605.08803). One pass, which draws the noise as well.

    Args:
        x: `(B, *S)` levels, uint8, int16, int32, int64 or floating; with `inverse`, logits.
        num_levels: 1 to 2**24.
        alpha: in [0, 0.5). Away from 0 it bounds the logits.
        seed: an int, an int64 tensor on the device of `x`, or a `torch.Generator`. The noise of sample *i* of
            a batch is the same whatever the batch size, the threads, the memory format and the device.
        inverse: from logits to levels.
        noise: u in [0, 1] in the shape of `x`, instead of drawn noise, such as that of variational
            dequantization (Ho et al., "Flow++", 2019, arXiv:1902.00275).
        quantize: for the inverse: round down to levels, which have a zero gradient; False gives x + u.

    Returns:
        `(y, log_det)`. y has the dtype of `x`; of integers that of `noise`, or float32. log_det `(B,)` = Σ
        -log p - log(1 - p) + log(1 - 2·alpha) - log num_levels (negated for the inverse), in float64 if
        computed in it, else float32. Differentiable to any order in `x` and `noise`.
        With `quantize` and drawn noise the inverse gives `x` back exactly from a float32 or float64 y
        (float32: up to 65536 levels), because drawn noise keeps a distance from 0 and 1, for float32
        num_levels·2^-21. With alpha = 0 and given noise of exactly 0 the logit is that of the dtype's
        smallest normal number.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to::

        p = alpha + (1 - 2 * alpha) * (x + torch.rand(x.shape)) / num_levels
        y = torch.log(p) - torch.log1p(-p)
        log_det = -torch.log(p) - torch.log1p(-p) + math.log(1 - 2 * alpha) - math.log(num_levels)
        log_det = log_det.flatten(1).sum(1)
    """
    _check.tensor("x", x)
    if inverse or x.dtype not in _INTEGERS:
        _check.floating("x", x)
    if x.dim() == 0:
        raise ValueError("x: expected shape (B, *S), got a scalar")
    _check.integer("num_levels", num_levels)
    if not 1 <= num_levels <= 2**24:
        raise ValueError(f"num_levels: expected 1 to 2**24, got {num_levels}")
    _check.number("alpha", alpha, 0, 0.5)
    if alpha == 0.5:
        raise ValueError("alpha: expected a number in [0, 0.5), got 0.5")
    if noise is not None:
        if inverse:
            raise ValueError("noise: expected None for the inverse")
        _check.floating("noise", noise)
        if noise.shape != x.shape:
            raise ValueError(f"noise: expected shape {tuple(x.shape)}, got {tuple(noise.shape)}")
        if x.dtype in _INTEGERS:
            x = x.to(noise.dtype)
        seed = None
    elif not inverse:
        seed = _seed.as_tensor(seed, x.device)
    else:
        seed = None
    if x.dim() == 1:
        y, log_det = dequantize_logit(
            x[:, None],
            num_levels=num_levels,
            alpha=alpha,
            seed=seed,
            inverse=inverse,
            noise=noise if noise is None else noise[:, None],
            quantize=quantize,
        )
        return y[:, 0], log_det
    options = (seed, num_levels, float(alpha), bool(inverse), bool(quantize), _seed.first())
    if not has_kernel(x, *(() if noise is None else (noise,))):
        return _plain(x, noise, *options)
    return _forward(x, noise, *options)


def _dtypes(x, noise):
    """Dtypes of the computation and of the result."""
    floating = x.dtype not in _INTEGERS
    given = [t for t in (x if floating else None, noise) if t is not None]
    computed = compute_dtype(*given) if given else torch.float32
    return computed, x.dtype if floating else torch.float32 if noise is None else noise.dtype


def _plain(x, noise, seed, num_levels, alpha, inverse, quantize, first, *_):
    computed, dtype = _dtypes(x, noise)
    with _seed.first_sample(first):  # a gradient may be wanted elsewhere
        y, log_det = reference.dequantize_logit(
            x.to(computed),
            num_levels=num_levels,
            alpha=alpha,
            seed=seed,
            inverse=inverse,
            noise=noise if noise is None else noise.to(computed),
            quantize=quantize,
        )
    return y.to(dtype), log_det


def _fake(x, noise, seed, num_levels, alpha, inverse, quantize, first=0):
    computed, dtype = _dtypes(x, noise)
    return empty_as(x, x.shape, dtype), x.new_empty((x.shape[0],), dtype=computed)


def _setup_context(ctx, inputs, output):
    x, noise, seed, *ctx.options = inputs
    ctx.save_for_backward(x, noise, seed)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_log_det):
    x, noise, seed = ctx.saved_tensors
    need_x, need_noise = ctx.needs_input_grad[:2]
    grad_x = grad_noise = None
    if grad_y is not None or grad_log_det is not None:
        grad_x, grad_noise = _gradient(grad_y, grad_log_det, x, noise, seed, *ctx.options, need_x, need_noise)
    return grad_x if need_x else None, grad_noise if need_noise else None, *(None,) * 6


def _gradient_fake(grad_y, grad_log_det, x, noise, *rest):
    want_x, want_noise = rest[-2:]
    like = x if noise is None else noise
    return (
        empty_as(x, x.shape if want_x else (0,)),
        empty_as(x, x.shape if want_noise and noise is not None else (0,), like.dtype),
    )


_forward = operator("dequantize_logit", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator(
    "dequantize_logit_backward", _plain, fake=_gradient_fake, num_tensors=2, num_results=2
)
