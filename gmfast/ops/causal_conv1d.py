"""The causal convolution of WaveNet, dense, grouped or depthwise."""

import torch
import torch.nn.functional as F

from .. import _check, reference
from .._library import has_kernel, operator
from ._layout import (
    cast,
    cast_for_convolution,
    cast_parameters,
    compute_dtype,
    convolution_dtype,
    empty_as,
)
from ._second_order import differentiate, pull_back
from .gated_activation import gated_activation
from .masked_conv2d import Geometry, convolve

ACTIVATIONS = (None, "silu", "gated")
#: causal-conv1d's other name for SiLU.
SYNONYMS = {"swish": "silu"}
#: The depthwise kernel keeps what lies between the first tap and the last in the cache.
LONGEST_SPAN = 1024


def causal_conv1d(
    x,
    weight,
    bias=None,
    *,
    dilation=1,
    groups=1,
    activation=None,
    initial_state=None,
    return_state=False,
    seq_idx=None,
    lengths=None,
    final_states_out=None,
):
    """A convolution along time that never looks ahead, with its bias and activation.

    The causal convolution of WaveNet (van den Oord et al., 2016, arXiv:1609.03499); depthwise with SiLU, that
    of Mamba (Gu & Dao, 2023, arXiv:2312.00752). A long sequence can be given in chunks, each with the state
    that the one before returned; the depthwise results are then the same to the bit.

    Args:
        x: floating, (B, C, T).
        weight: (O, C/groups, k); the last tap is that of the current time. Depthwise also (O, k).
        bias: (O,) or None.
        dilation: time steps from one tap to the next.
        groups: C is depthwise, in one pass over memory; then O is usually C.
        activation: None, "silu" (or "swish"), or "gated": tanh of the first half of the channels times
            sigmoid of the second, O/2 channels out (`gated_activation`).
        initial_state: (B, C, (k-1)*dilation), what came before x, oldest first. None: zeros.
        return_state: also return the state after x, a tensor of its own.
        seq_idx: int32 or int64, (B, T): the sequence that each input belongs to, of several packed one behind
            the other. Taps do not reach into another sequence; the initial state continues the first one, and
            in the state returned inputs of other sequences than the last are zeros. Where it is negative
            there is padding, and the output is 0.
        lengths: int32 or int64, (B,), from 0 to T: the true lengths of a right-padded batch. Outputs beyond
            are 0, whatever x has there, and its gradient is 0; the state is that at a sample's length. On a
            GPU, which is not waited for, lengths beyond the range count as the nearest within it.
        final_states_out: a tensor that the state is written to and that is returned for it.

    initial_state is cast to x's dtype. Weight and bias may be float32 beside a half-precision x; neither they
    nor their gradients are rounded then. Under autocast all are cast as `F.conv1d`'s are, but a depthwise
    convolution of an x that is half-precision already keeps float32 parameters.

    Returns:
        y (B, O, T) in x's dtype, or (y, state). Differentiable to any order.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to::

        padded = torch.cat([initial_state, x], 2)        # F.pad(x, ((k-1)*dilation, 0)) without a state
        y = F.conv1d(padded, weight, bias, dilation=dilation, groups=groups)
        y = F.silu(y)                                    # or gated_activation(y)
        state = padded[:, :, T:]

    With `seq_idx`, the same of each sequence alone; with `lengths`, of `x[i, :, :lengths[i]]`.
    """
    if not isinstance(x, torch.Tensor) or x.dim() != 3:
        _check.floating("x", x)
        raise ValueError(f"x: expected shape (B, C, T), got {tuple(x.shape)}")
    weight, activation = check(x, weight, bias, dilation, groups, activation)
    batch, channels, length = x.shape
    span = (weight.shape[2] - 1) * dilation
    if initial_state is not None:
        check_state("initial_state", initial_state, (batch, channels, span))
    if seq_idx is not None:
        _check.indices("seq_idx", seq_idx, (batch, length))
    if lengths is not None:
        _check.indices("lengths", lengths, (batch,))
        _check.values("lengths", lengths, 0, length)
    if final_states_out is not None:
        check_state("final_states_out", final_states_out, (batch, channels, span))
        if not return_state:
            raise ValueError("final_states_out: expected return_state=True beside it, got False")
    if (seq_idx is not None or lengths is not None) and length == 0:
        seq_idx = lengths = None
    depthwise = is_depthwise(weight, groups) and span <= LONGEST_SPAN
    if depthwise and convolution_dtype(x) == x.dtype:
        weight, bias = cast_parameters(x, weight, bias)
    else:
        x, weight, bias = cast_for_convolution(x, weight, bias)
    if initial_state is not None and initial_state.dtype != x.dtype:
        initial_state = initial_state.to(x.dtype)
    if depthwise:
        y = _depthwise(x, weight, bias, dilation, activation, initial_state, seq_idx, lengths)
    else:
        y = _dense(x, weight, bias, dilation, groups, activation, initial_state, seq_idx, lengths)
    if not return_state:
        return y
    state = _final_state(x, initial_state, span, seq_idx, lengths)
    return y, state if final_states_out is None else final_states_out.copy_(state)


# ---- Arguments, for causal_conv1d_update too ---------------------------------------------------------


def check(x, weight, bias, dilation, groups, activation):
    """Raises for what x (B, C, ...) cannot be convolved with; returns weight (O, C/groups, k), activation."""
    _check.floating("x", x)
    _check.floating("weight", weight)
    for name, value in (("dilation", dilation), ("groups", groups)):
        _check.integer(name, value)
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if activation not in ACTIVATIONS:
        if isinstance(activation, str) and activation in SYNONYMS:
            return check(x, weight, bias, dilation, groups, SYNONYMS[activation])
        _check.one_of("activation", activation, ACTIVATIONS)
    channels = x.shape[1]
    if channels % groups:
        raise ValueError(f"groups: expected a divisor of x's {channels} channels, got {groups}")
    if weight.dim() == 2 and channels == groups:
        weight = weight.unsqueeze(1)
    if weight.dim() != 3 or weight.shape[1] != channels // groups or weight.shape[2] < 1:
        raise ValueError(f"weight: expected shape (O, {channels // groups}, k), got {tuple(weight.shape)}")
    multiple = 2 if activation == "gated" else 1
    if weight.shape[0] % groups or weight.shape[0] % multiple:
        expected = f"a multiple of groups={groups}" + (", even for a gate" if multiple == 2 else "")
        raise ValueError(f"weight: expected {expected}, as its first size, got {weight.shape[0]}")
    if bias is not None:
        _check.floating("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    return weight, activation


def check_state(name, state, expected):
    """Check that a state is floating and has the shape `expected`."""
    _check.floating(name, state)
    if tuple(state.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}, got {tuple(state.shape)}")


def is_depthwise(weight, groups):
    """True if each output channel sees one input channel, its own."""
    return groups == weight.shape[0] and weight.shape[1] == 1


def activate(y, activation):
    """Apply the activation of that name, or none."""
    if activation == "gated":
        return gated_activation(y)
    return F.silu(y) if activation == "silu" else y


# ---- The ways to compute it --------------------------------------------------------------------------


def _depthwise(x, weight, bias, dilation, activation, initial_state, seq_idx, lengths):
    silu = activation == "silu"
    tensors = (x, weight, bias, initial_state, seq_idx, lengths)
    if not has_kernel(*(t for t in tensors if t is not None)):
        *inputs, state = cast(compute_dtype(x), *tensors[:4])
        options = {"dilation": dilation, "groups": x.shape[1], "activation": "silu" if silu else None}
        options |= {"initial_state": state, "seq_idx": seq_idx, "lengths": lengths}
        y = reference.causal_conv1d(*inputs, **options).to(x.dtype)
    else:
        y = _forward(x, weight, bias, initial_state, dilation, silu, seq_idx, lengths)
    return gated_activation(y) if activation == "gated" else y


def _dense(x, weight, bias, dilation, groups, activation, initial_state, seq_idx, lengths):
    """Compute a masked convolution of images of one row, whose kernel of 2k - 1 columns has k live ones."""
    taps, left = weight.shape[2], 0
    sequence = _sequence(x, seq_idx, lengths)
    if sequence is not None:
        present = (sequence >= 0)[:, None]
        x = torch.where(present, x, 0.0)  # 0 times an infinite input beyond a length would be a NaN
    if seq_idx is not None:  # the inputs under each tap as channels of a convolution of one tap
        batch, channels, length = x.shape
        window = torch.stack(_under_taps(x, initial_state, taps, dilation, sequence), 2)
        x, taps, initial_state = window.reshape(batch, channels * taps, length), 1, None
        weight = weight.flatten(1).unsqueeze(2)
    if initial_state is not None:
        x, left = torch.cat([initial_state, x], 2), initial_state.shape[2]
    if x.shape[1] == 1 and torch.compiler.is_dynamo_compiling():
        # Inductor takes an image of one channel, one row and open length for channels_last, and fails.
        y = F.conv1d(F.pad(x, ((taps - 1) * dilation - left, 0)), weight, bias, dilation=dilation)
        return activate(y, activation)
    geometry = Geometry(2 * taps - 1, True, column_dilation=dilation, groups=groups, left=left)
    y = convolve(x.unsqueeze(2), weight.unsqueeze(2), bias, geometry)
    y = activate(y.squeeze(2), activation)
    return y if sequence is None else torch.where(present, y, 0.0)


def _sequence(x, seq_idx, lengths):
    """The sequence (B, T) of each input, negative for padding; None where there is one without padding."""
    if lengths is None:
        return seq_idx
    inside = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
    return torch.where(inside, 0 if seq_idx is None else seq_idx, -1)


def _under_taps(x, initial_state, taps, dilation, sequence):
    """The inputs that each output has under a tap, (B, C, T) a tap; zeros for those of another sequence."""
    span, length = (taps - 1) * dilation, x.shape[2]
    if initial_state is None:
        initial_state = x.new_zeros(*x.shape[:2], span)
    padded = torch.cat([initial_state, x], 2)
    inputs = [padded.narrow(2, tap * dilation, length) for tap in range(taps)]
    if sequence is None:
        return inputs
    of_input = torch.cat([sequence[:, :1].expand(-1, span), sequence], 1)
    seen = [of_input.narrow(1, tap * dilation, length) == sequence for tap in range(taps)]
    return [torch.where(s[:, None], i, 0.0) for s, i in zip(seen, inputs, strict=True)]


def _final_state(x, initial_state, span, seq_idx, lengths):
    """The last `span` of initial_state and x, to a sample's length, in its last sequence."""
    length = x.shape[2]
    if seq_idx is not None or lengths is not None:
        end = torch.full_like(seq_idx[:, 0], length) if lengths is None else lengths.clamp(0, length)
        end = end.long()[:, None]
        time = end + torch.arange(-span, 0, device=x.device)
        within = time.clamp(min=0)
        state = x.gather(2, within[:, None].expand(-1, x.shape[1], -1))
        before = 0.0
        if initial_state is not None:
            index = (time + span).clamp(max=span - 1)[:, None]
            before = initial_state.gather(2, index.expand(-1, x.shape[1], -1))
        state = torch.where((time < 0)[:, None], before, state)
        if seq_idx is None:
            return state
        last = seq_idx.gather(1, (end - 1).clamp(min=0))
        same = (seq_idx.gather(1, within) == last) & (last >= 0)
        return torch.where(same[:, None], state, 0.0)
    if length >= span:
        return x[:, :, length - span :].clone()
    if initial_state is None:
        return F.pad(x, (span - length, 0))
    return torch.cat([initial_state[:, :, length:], x], 2)


# ---- The depthwise operator --------------------------------------------------------------------------


def _plain(x, weight, bias, initial_state, dilation, silu, seq_idx=None, lengths=None):
    """Tap by tap: torch 2.11's convolution has no second derivative for sizes that a compiler leaves open."""
    dtype = x.dtype
    x, weight, bias, initial_state = cast(compute_dtype(x), x, weight, bias, initial_state)
    sequence = _sequence(x, seq_idx, lengths)
    inputs = _under_taps(x, initial_state, weight.shape[2], dilation, sequence)
    y = sum(weight[:, :, tap] * part for tap, part in enumerate(inputs))
    y = y if bias is None else y + bias[:, None]
    y = F.silu(y) if silu else y
    return (y if sequence is None else torch.where((sequence >= 0)[:, None], y, 0.0)).to(dtype)


def _fake(x, weight, bias, initial_state, dilation, silu, seq_idx=None, lengths=None):
    return empty_as(x, x.shape)


def _setup_context(ctx, inputs, output):
    ctx.dilation, ctx.silu = inputs[4:6]
    ctx.save_for_backward(*inputs[:4], *inputs[6:])


def _backward(ctx, grad):
    x, weight, bias, initial_state, *indices = ctx.saved_tensors
    needed = ctx.needs_input_grad
    # In the order of the operator's results: x, weight, bias, initial_state.
    grads = _gradient(grad, x, weight, bias, initial_state, ctx.dilation, ctx.silu, *needed[:4], *indices)
    return *(g if need else None for g, need in zip(grads, needed, strict=False)), *([None] * 4)


def _gradient_fake(grad, x, weight, bias, initial_state, dilation, silu, *wanted):
    want_x, want_weight, want_bias, want_state = wanted[:4]
    state = (*x.shape[:2], (weight.shape[2] - 1) * dilation)
    return (
        empty_as(x, x.shape if want_x else (0,)),
        weight.new_empty(weight.shape if want_weight else (0,)),
        (weight if bias is None else bias).new_empty(x.shape[1:2] if want_bias else (0,)),
        empty_as(x, state if want_state else (0,)),
    )


def _gradient_setup_context(ctx, inputs, output):
    ctx.options, ctx.wanted = inputs[5:7], inputs[7:11]
    ctx.save_for_backward(*inputs[:5], *inputs[11:])


def _gradient_backward(ctx, *grads):
    """Second derivatives, by way of plain PyTorch."""
    tensors, indices = ctx.saved_tensors[:5], ctx.saved_tensors[5:]

    def gradients(grad, *tensors):
        wanted = [t if want else None for want, t in zip(ctx.wanted, tensors, strict=True)]
        plain = _plain(*tensors, *ctx.options, *indices)
        return differentiate([plain], wanted, [grad], create_graph=True)

    given = [g if want else None for want, g in zip(ctx.wanted, grads, strict=True)]
    return *pull_back(gradients, tensors, given), *([None] * 8)


_forward = operator("causal_conv1d", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = operator(
    "causal_conv1d_backward",
    fake=_gradient_fake,
    setup_context=_gradient_setup_context,
    backward=_gradient_backward,
)
