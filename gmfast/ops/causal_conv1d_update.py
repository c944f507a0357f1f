"""One or a few steps of a causal convolution that is fed sample by sample."""

import torch
import torch.nn.functional as F

from .. import _check, reference
from .._library import has_kernel, in_functorch, operator
from ._layout import cast, cast_parameters, compute_dtype, convolution_dtype, empty_as
from .causal_conv1d import activate, check, is_depthwise
from .gated_activation import gated_activation

#: Of a dense convolution, whose taps take k times the memory of x.
SAMPLES_TOGETHER = 64


@torch.no_grad()
def causal_conv1d_update(
    x,
    state,
    weight,
    bias=None,
    *,
    dilation=1,
    groups=1,
    activation=None,
    state_indices=None,
    cache_seqlens=None,
):
    """`causal_conv1d` continued by a few samples, its state updated in place.

    Step by step it gives what one pass over the whole sequence gives: the same state, to the bit; the same
    outputs, depthwise to the bit (before a gate to its rounding), else to the rounding of another order of
    additions.

    Args:
        x: floating, (B, C), or (B, C, L) for L samples at once.
        state: (B, C, N), the last N >= (k-1)*dilation inputs, oldest first; of any strides, such as a slice
            of a larger buffer. With `state_indices` it may have any number of rows.
        weight: as for `causal_conv1d`.
        bias: likewise.
        dilation: likewise.
        groups: likewise.
        activation: likewise.
        state_indices: int32 or int64, (B,): the row of `state` that each sample continues. Where it is
            negative the output is 0 and no row is touched. No row may be named twice. An index beyond the
            state is an error on the CPU; on a GPU, which is not waited for, it touches no row either.
        cache_seqlens: int32 or int64, (B,): the number of inputs that came before. The state is then a
            circular buffer, input number i at entry i modulo N, and only the new inputs' entries are written.

    Computed in `state`'s dtype, whatever that of x, with parameters as for `causal_conv1d`; under autocast a
    dense product in autocast's.

    Returns:
        (B, O) or (B, O, L) in x's dtype (under autocast in its), O halved by a gate. Not differentiable:
        nothing is recorded.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to::

        y, new = causal_conv1d(x, weight, bias, …, initial_state=state, return_state=True)
        state.copy_(new)
    """
    if not isinstance(x, torch.Tensor) or x.dim() not in (2, 3):
        _check.floating("x", x)
        raise ValueError(f"x: expected shape (B, C) or (B, C, L), got {tuple(x.shape)}")
    weight, activation = check(x, weight, bias, dilation, groups, activation)
    _check_streams(x, state, (weight.shape[2] - 1) * dilation, state_indices)
    if cache_seqlens is not None:
        _check.indices("cache_seqlens", cache_seqlens, x.shape[:1])
    steps = x.unsqueeze(2) if x.dim() == 2 else x
    (steps,) = cast(state.dtype, steps)
    weight, bias = cast_parameters(steps, weight, bias)
    tensors = [t for t in (steps, state, weight, bias, state_indices, cache_seqlens) if t is not None]
    if in_functorch() or not has_kernel(*tensors):  # vmap has no rule for operators that write to a tensor
        steps, weight, bias = cast(compute_dtype(state), steps, weight, bias)
        y = reference.causal_conv1d_update(
            steps,
            state,
            weight,
            bias,
            dilation=dilation,
            groups=groups,
            activation=activation,
            state_indices=state_indices,
            cache_seqlens=cache_seqlens,
        )
    else:
        if not torch.compiler.is_compiling() and not state.is_inference():
            torch.autograd.graph.increment_version(state)  # who saved it for a gradient must find out
        if is_depthwise(weight, groups):
            silu = activation == "silu"
            y = _update(steps, state, weight, bias, state_indices, dilation, silu, cache_seqlens)
            y = gated_activation(y) if activation == "gated" else y
        else:
            indices = state_indices, cache_seqlens
            y = _dense(steps, state, weight, bias, indices, dilation, groups, activation)
    return (y.squeeze(2) if x.dim() == 2 else y).to(convolution_dtype(x))


def _check_streams(x, state, span, state_indices):
    _check.floating("state", state)
    rows = x.shape[0]
    if state_indices is not None:
        _check.indices("state_indices", state_indices, x.shape[:1])
        rows = "rows"
        if _check.readable(state_indices) and x.shape[0]:
            largest = int(state_indices.max())
            if largest >= state.shape[0]:
                raise ValueError(f"state_indices: expected less than {state.shape[0]}, got {largest}")
    got = tuple(state.shape)
    channels = x.shape[1]
    if len(got) != 3 or got[1] != channels or got[2] < span or (rows != "rows" and got[0] != rows):
        longer = " (its last size may be larger)"
        raise ValueError(f"state: expected shape ({rows}, {channels}, {span}), got {got}{longer}")
    if state.numel() and any(
        size > 1 and stride == 0 for size, stride in zip(got, state.stride(), strict=True)
    ):
        raise ValueError("state: expected memory of its own for each element, got an expanded tensor")


def _dense(x, state, weight, bias, indices, dilation, groups, activation):
    """A product of the weight with the inputs under its taps, gathered for a few samples at once."""
    state_indices, seen = indices
    if x.shape[2] > SAMPLES_TOGETHER:
        outputs, options = [], (dilation, groups, activation)
        for piece in x.split(SAMPLES_TOGETHER, 2):
            outputs.append(_dense(piece, state, weight, bias, (state_indices, seen), *options))
            seen = seen if seen is None else seen + piece.shape[2]
        return torch.cat(outputs, 2)
    batch, channels, length = x.shape
    taps = weight.shape[2]
    window = _window(x, state, state_indices, taps, dilation, seen)
    if any(t is not None and t.dtype != x.dtype for t in (weight, bias)):
        window, weight, bias = cast(compute_dtype(x), window, weight, bias)
    if groups == 1:
        y = F.linear(window.flatten(2), weight.flatten(1), bias)
    else:
        y = F.conv1d(window.view(batch * length, channels, taps), weight, bias, groups=groups)
        y = y.view(batch, length, weight.shape[0])
    y = activate(y.transpose(1, 2), activation)
    return y if state_indices is None else torch.where(state_indices[:, None, None] >= 0, y, 0.0)


_update = operator("causal_conv1d_update", fake=lambda x, state, *_: empty_as(x, x.shape))
_window = operator(
    "causal_conv1d_window",
    fake=lambda x, state, state_indices, taps, dilation, cache_seqlens=None: x.new_empty(
        (x.shape[0], x.shape[2], x.shape[1], taps)
    ),
)
