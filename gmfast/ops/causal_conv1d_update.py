"""One or a few steps of a causal convolution that is fed sample by sample."""

import torch
import torch.nn.functional as F

from .. import _check, reference
from .._library import has_kernel, in_functorch, operator
from ._layout import cast, compute_dtype, convolution_dtype, empty_as
from .causal_conv1d import activate, check, is_depthwise
from .gated_activation import gated_activation

#: Of a dense convolution, whose taps take k times the memory of x.
SAMPLES_TOGETHER = 64


@torch.no_grad()
def causal_conv1d_update(
    x, state, weight, bias=None, *, dilation=1, groups=1, activation=None, state_indices=None
):
    """`causal_conv1d` continued by a few samples, its state updated in place.

    Step by step it gives what one pass over the whole sequence gives: the same state, to the bit; the same
    outputs, depthwise to the bit (before a gate to its rounding), else to the rounding of another order of
    additions.

    Args:
        x: floating, (B, C), or (B, C, L) for L samples at once.
        state: (B, C, (k-1)*dilation), the last inputs, oldest first; of any strides, such as a slice of a
            larger buffer. With `state_indices` it may have any number of rows.
        weight, bias, dilation, groups, activation: as for `causal_conv1d`.
        state_indices: int32 or int64, (B,): the row of `state` that each sample continues. Where it is
            negative the output is 0 and no row is touched. No row may be named twice. An index beyond the
            state is an error on the CPU; on a GPU, which is not waited for, it touches no row either.

    Computed in `state`'s dtype, whatever that of the others; under autocast a dense product in autocast's.

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
    check(x, weight, bias, dilation, groups, activation)
    _check_streams(x, state, (weight.shape[2] - 1) * dilation, state_indices)
    steps = x.unsqueeze(2) if x.dim() == 2 else x
    steps, weight, bias = cast(state.dtype, steps, weight, bias)
    tensors = [t for t in (steps, state, weight, bias, state_indices) if t is not None]
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
        )
    else:
        if not torch.compiler.is_compiling() and not state.is_inference():
            torch.autograd.graph.increment_version(state)  # who saved it for a gradient must find out
        if is_depthwise(weight, groups):
            y = _update(steps, state, weight, bias, state_indices, dilation, activation == "silu")
            y = gated_activation(y) if activation == "gated" else y
        else:
            y = _dense(steps, state, weight, bias, state_indices, dilation, groups, activation)
    return (y.squeeze(2) if x.dim() == 2 else y).to(convolution_dtype(x))


def _check_streams(x, state, span, state_indices):
    _check.floating("state", state)
    rows = x.shape[0]
    if state_indices is not None:
        if not isinstance(state_indices, torch.Tensor):
            raise TypeError(f"state_indices: expected a torch.Tensor, got {type(state_indices).__name__}")
        if state_indices.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"state_indices: expected int32 or int64, got {str(state_indices.dtype)[6:]}")
        if state_indices.shape != x.shape[:1]:
            raise ValueError(f"state_indices: expected shape ({rows},), got {tuple(state_indices.shape)}")
        rows = "rows"
        if state_indices.device.type == "cpu" and x.shape[0] and not torch.compiler.is_compiling():
            largest = int(state_indices.max())
            if largest >= state.shape[0]:
                raise ValueError(f"state_indices: expected less than {state.shape[0]}, got {largest}")
    got = tuple(state.shape)
    if len(got) != 3 or got[1:] != (x.shape[1], span) or (rows != "rows" and got[0] != rows):
        raise ValueError(f"state: expected shape ({rows}, {x.shape[1]}, {span}), got {got}")
    if state.numel() and any(
        size > 1 and stride == 0 for size, stride in zip(got, state.stride(), strict=True)
    ):
        raise ValueError("state: expected memory of its own for each element, got an expanded tensor")


def _dense(x, state, weight, bias, state_indices, dilation, groups, activation):
    """A product of the weight with the inputs under its taps, gathered for a few samples at once."""
    if x.shape[2] > SAMPLES_TOGETHER:
        pieces = x.split(SAMPLES_TOGETHER, 2)
        options = (state, weight, bias, state_indices, dilation, groups, activation)
        return torch.cat([_dense(piece, *options) for piece in pieces], 2)
    batch, channels, length = x.shape
    taps = weight.shape[2]
    window = _window(x, state, state_indices, taps, dilation)
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
    fake=lambda x, state, state_indices, taps, dilation: x.new_empty(
        (x.shape[0], x.shape[2], x.shape[1], taps)
    ),
)
