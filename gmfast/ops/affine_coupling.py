"""The affine coupling of NICE, RealNVP and Glow, with its log-determinant."""

import torch

from .. import _check, reference
from .._library import has_kernel, operator
from ._layout import compute_dtype, empty_as
from ._second_order import backward_operator
from ._views import join

#: In the order of ScaleMap in csrc/math/affine_coupling.h; None is the additive coupling's.
_MAPS = (None, "exp", "sigmoid", "tanh", "atan", "softclip")
_PACKINGS = (None, "chunk", "interleaved")


def affine_coupling(
    x,
    shift,
    scale,
    *,
    scale_map="exp",
    shift_first=False,
    clamp=2.0,
    mask=None,
    inverse=False,
    packed=None,
    recompute=False,
):
    """Scale and shift the last channels, `y = x·s + t`, with the log-determinant, in one pass.

    `s` and `t` are computed from the first channels: the coupling of NICE (Dinh et al., 2014,
    arXiv:1410.8516), RealNVP (2016, arXiv:1605.08803) and Glow (Kingma and Dhariwal, 2018, arXiv:1807.03039).
    Transform, sum of log s per sample and copy of the channels that pass are one kernel, and so is the
    gradient of everything.

    Args:
        x: `(B, C, *S)`, any number of spatial dimensions; `(B, D)` for tables.
        shift: t, `(B, C2, *S)` with C2 ≤ C: the last C2 channels are transformed, the first C - C2 copied.
        scale: the raw scale a, of the shape of `shift`; None for the additive coupling, s = 1. Both may be
            views of a network's output (`chunk`, `[:, ::2]`): they are read where they are, and where they
            cover it, shifts first, its gradient comes in one piece.
        scale_map: log s of a. `"exp"`: a. `"sigmoid"`: log σ(a + 2). `"tanh"`: clamp·tanh(a/clamp).
            `"atan"`: clamp·0.636·atan(a) (FrEIA). `"softclip"`: a/(1 + |a/ln 1e-3|) (zuko).
        shift_first: `y = (x + t)·s` (Glow).
        clamp: a bound of log s in "tanh" and, nearly, "atan"; 1e-3 to 80.
        mask: broadcastable to `(C, *S)`, with C2 = C: where it is not 0 an element passes unchanged.
        inverse: from y to x; the log-determinant is then the inverse's.
        packed: `"chunk"` or `"interleaved"` where `shift` is the network's whole output `(B, 2*C2, *S)`, and
            `scale` None: all shifts and then all raw scales, or in turns. The same as passing the two views.
        recompute: save the result for the gradient instead of `x`; the time stays the same within 5 % (four
            couplings with a gain after each, forward and backward, on a CPU). Where the next layer saves its
            input anyway (an ActNorm, an invertible convolution) and nothing else holds `x`, it halves what a
            stack saves; but a network whose first layer saves a view of `x` holds all of it.
            y - t stands for x·s: where |t| is 2^k times as large as |x·s|, the gradient of `scale` loses k
            bits (not with `shift_first`, or `inverse` without it, which need no t).

    Returns:
        `(y, log_det)`: y in `x`'s shape and dtype; log_det `(B,)`, float64 if an input is float64, else
        float32. Differentiable to any order, beyond the first by way of plain PyTorch. Finite for finite
        inputs unless y itself is too large: with "tanh", "atan" and "softclip" for any a; with "exp" for
        |a| ≤ 87 (float64: 708); with "sigmoid" for any a forward, for a ≥ -89 (-709) in the inverse.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to, for "exp"::

        kept, tail = x[:, :-C2], x[:, -C2:]
        y = torch.cat([kept, tail * torch.exp(scale) + shift], 1)
        log_det = scale.flatten(1).sum(1)
    """
    mask = _check_arguments(x, shift, scale, scale_map, clamp, mask, packed)
    tensors = [t for t in (x, shift, scale, mask) if t is not None]
    if not has_kernel(*tensors):
        dtype = compute_dtype(*tensors[: 2 if scale is None else 3])
        y, log_det = reference.affine_coupling(
            *(t if t is None else t.to(dtype) for t in (x, shift, scale)),
            scale_map=scale_map,
            shift_first=shift_first,
            clamp=clamp,
            mask=mask,
            inverse=inverse,
            packed=packed,
        )
        return y.to(x.dtype), log_det
    additive = scale is None and packed is None
    if packed is None and not additive:
        for packing in _PACKINGS[1:]:
            joined = join((shift, scale), 1, interleaved=packing == "interleaved")
            if joined is not None:
                shift, scale, packed = joined, None, packing
                break
    return _forward(
        x,
        shift,
        scale,
        mask,
        0 if additive else _MAPS.index(scale_map),
        _PACKINGS.index(packed),
        bool(shift_first),
        float(clamp),
        bool(inverse),
        bool(recompute),
    )


def _check_arguments(x, shift, scale, scale_map, clamp, mask, packed):
    """Raises, or gives the mask as (1, C, *S)."""
    _check.floating("x", x)
    _check.floating("shift", shift)
    if x.dim() < 2:
        raise ValueError(f"x: expected shape (B, C, *S), got {tuple(x.shape)}")
    _check.one_of("packed", packed, _PACKINGS)
    if shift.dim() != x.dim() or shift.shape[:1] != x.shape[:1] or shift.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"shift: expected the batch and spatial sizes of x {tuple(x.shape)}, got {tuple(shift.shape)}"
        )
    channels = shift.shape[1]
    if packed is not None:
        if scale is not None:
            raise ValueError(f"scale: expected None, as shift holds both (packed={packed!r}), got a tensor")
        if channels % 2:
            raise ValueError(f"shift: expected 2*C2 channels (packed={packed!r}), got {channels}")
        channels //= 2
    if channels > x.shape[1]:
        raise ValueError(f"shift: expected at most the {x.shape[1]} channels of x, got {channels}")
    if scale is not None:
        _check.floating("scale", scale)
        if scale.shape != shift.shape:
            raise ValueError(f"scale: expected shape {tuple(shift.shape)}, got {tuple(scale.shape)}")
    _check.one_of("scale_map", scale_map, _MAPS[1:])
    _check.number("clamp", clamp, 1e-3, 80)
    if mask is not None:
        _check.tensor("mask", mask)
        if channels != x.shape[1]:
            raise ValueError(
                f"mask: expected None unless shift has all {x.shape[1]} channels of x, got {channels}"
            )
        while mask.dim() >= x.dim() and mask.shape[0] == 1:
            mask = mask[0]
        try:
            mask = mask.expand(x.shape[1:])[None]
        except RuntimeError:
            raise ValueError(
                f"mask: expected a shape that broadcasts to {tuple(x.shape[1:])}, got {tuple(mask.shape)}"
            ) from None
        # The kernels read it in the type they compute in, which is float64 for x's sake only.
        if mask.dtype not in _check.FLOATING or (mask.dtype == torch.float64 and x.dtype != mask.dtype):
            mask = (mask != 0).to(x.dtype)
        mask = mask.detach()
    return mask


def _fake(x, shift, scale, mask, *options):
    dtype = compute_dtype(*(t for t in (x, shift, scale) if t is not None))
    return empty_as(x, x.shape), x.new_empty((x.shape[0],), dtype=dtype)


def _backward_fake(grad_y, grad_log_det, x, shift, scale, mask, *options):
    want = options[-3:]
    return tuple(
        empty_as(t, t.shape if wanted else (0,))
        for t, wanted in ((x, want[0]), (shift, want[1]), (scale if scale is not None else shift, want[2]))
    )


def _setup_context(ctx, inputs, output):
    x, shift, scale, mask, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.additive = ctx.options[0] == 0
    if ctx.additive:
        ctx.save_for_backward(mask)
        ctx.dtype, ctx.channels = shift.dtype, shift.shape[1]
    else:
        recompute = ctx.options[-1]
        ctx.save_for_backward(output[0] if recompute else x, shift, scale, mask)


def _backward(ctx, grad_y, grad_log_det):
    if ctx.additive:
        grads = _additive_gradients(ctx, grad_y)
    else:
        need = ctx.needs_input_grad
        saved = ctx.saved_tensors
        want = need[0], need[1], need[2] and saved[2] is not None
        grads = _gradient(grad_y, grad_log_det, *saved, *ctx.options, *want)
        grads = [g if n else None for g, n in zip(grads, want, strict=True)]
    return *grads, None, *(None for _ in ctx.options)


def _additive_gradients(ctx, grad_y):
    """Of y = x + t, or of x = y - t: nothing to save, nothing to compute."""
    if grad_y is None:
        return None, None, None
    (mask,) = ctx.saved_tensors
    inverse = ctx.options[4]
    grad_shift = None
    if ctx.needs_input_grad[1]:
        grad_shift = grad_y[:, grad_y.shape[1] - ctx.channels :]
        grad_shift = -grad_shift if inverse else grad_shift
        if mask is not None:
            grad_shift = torch.where(mask != 0, 0, grad_shift)
        grad_shift = grad_shift.to(ctx.dtype)
    return grad_y, grad_shift, None


def _reference(x, shift, scale, mask, scale_map, packing, shift_first, clamp, inverse, *_):
    tensors = [t for t in (x, shift, scale) if t is not None]
    dtype = compute_dtype(*tensors)
    y, log_det = reference.affine_coupling(
        *(t if t is None else t.to(dtype) for t in (x, shift, scale)),
        scale_map=_MAPS[scale_map],
        shift_first=shift_first,
        clamp=clamp,
        mask=mask,
        inverse=inverse,
        packed=_PACKINGS[packing],
    )
    return y.to(x.dtype), log_det


def _at(x, shift, scale, mask, *options):
    """Tensors at which the gradient was taken: with `recompute`, the x that the saved result comes from."""
    scale_map, packing, shift_first, clamp, inverse, recompute, *_ = options
    if recompute:
        x = _reference(x, shift, scale, mask, scale_map, packing, shift_first, clamp, not inverse)[0]
    return x, shift, scale, mask


_forward = operator("affine_coupling", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator(
    "affine_coupling_backward",
    _reference,
    fake=_backward_fake,
    num_tensors=4,
    num_results=2,
    at=_at,
)
