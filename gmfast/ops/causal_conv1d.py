"""The causal convolution of WaveNet, dense, grouped or depthwise."""

import torch
import torch.nn.functional as F

from .. import _check, reference
from .._library import has_kernel, operator
from ._layout import cast, compute_dtype, convolution_dtype, empty_as
from ._second_order import differentiate, pull_back
from .gated_activation import gated_activation
from .masked_conv2d import Geometry, convolve

ACTIVATIONS = (None, "silu", "gated")
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
):
    """A convolution along time that never looks ahead, with its bias and activation.

    The causal convolution of WaveNet (van den Oord et al., 2016, arXiv:1609.03499); depthwise with SiLU, that
    of Mamba (Gu & Dao, 2023, arXiv:2312.00752). A long sequence can be given in chunks, each with the state
    that the one before returned; the depthwise results are then the same to the bit.

    Args:
        x: floating, (B, C, T).
        weight: (O, C/groups, k); the last tap is that of the current time.
        bias: (O,) or None.
        dilation: time steps from one tap to the next.
        groups: C is depthwise, in one pass over memory; then O is usually C.
        activation: None, "silu", or "gated": tanh of the first half of the channels times sigmoid of the
            second, O/2 channels out (`gated_activation`).
        initial_state: (B, C, (k-1)*dilation), what came before x, oldest first. None: zeros.
        return_state: also return the state after x, a tensor of its own.

    Weight, bias and initial_state are cast to x's dtype; under autocast all are cast as `F.conv1d`'s are.

    Returns:
        y (B, O, T) in x's dtype, or (y, state). Differentiable to any order.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to::

        padded = torch.cat([initial_state, x], 2)        # F.pad(x, ((k-1)*dilation, 0)) without a state
        y = F.conv1d(padded, weight, bias, dilation=dilation, groups=groups)
        y = F.silu(y)                                    # or gated_activation(y)
        state = padded[:, :, T:]
    """
    if not isinstance(x, torch.Tensor) or x.dim() != 3:
        _check.floating("x", x)
        raise ValueError(f"x: expected shape (B, C, T), got {tuple(x.shape)}")
    check(x, weight, bias, dilation, groups, activation)
    span = (weight.shape[2] - 1) * dilation
    if initial_state is not None:
        check_state("initial_state", initial_state, (*x.shape[:2], span))
    x, weight, bias, initial_state = cast(convolution_dtype(x), x, weight, bias, initial_state)
    if is_depthwise(weight, groups) and span <= LONGEST_SPAN:
        y = _depthwise(x, weight, bias, dilation, activation, initial_state)
    else:
        y = _dense(x, weight, bias, dilation, groups, activation, initial_state)
    return (y, _final_state(x, initial_state, span)) if return_state else y


# ---- Arguments, for causal_conv1d_update too ---------------------------------------------------------


def check(x, weight, bias, dilation, groups, activation):
    """Raises for what x (B, C, ...) cannot be convolved with."""
    _check.floating("x", x)
    _check.floating("weight", weight)
    for name, value in (("dilation", dilation), ("groups", groups)):
        _check.integer(name, value)
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if activation not in ACTIVATIONS:
        _check.one_of("activation", activation, ACTIVATIONS)
    channels = x.shape[1]
    if channels % groups:
        raise ValueError(f"groups: expected a divisor of x's {channels} channels, got {groups}")
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


def check_state(name, state, expected):
    _check.floating(name, state)
    if tuple(state.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}, got {tuple(state.shape)}")


def is_depthwise(weight, groups):
    return groups == weight.shape[0] and weight.shape[1] == 1


def activate(y, activation):
    if activation == "gated":
        return gated_activation(y)
    return F.silu(y) if activation == "silu" else y


# ---- The ways to compute it --------------------------------------------------------------------------


def _depthwise(x, weight, bias, dilation, activation, initial_state):
    silu = activation == "silu"
    if not has_kernel(*(t for t in (x, weight, bias, initial_state) if t is not None)):
        *tensors, state = cast(compute_dtype(x), x, weight, bias, initial_state)
        options = {"dilation": dilation, "groups": x.shape[1], "activation": "silu" if silu else None}
        y = reference.causal_conv1d(*tensors, **options, initial_state=state).to(x.dtype)
    else:
        y = _forward(x, weight, bias, initial_state, dilation, silu)
    return gated_activation(y) if activation == "gated" else y


def _dense(x, weight, bias, dilation, groups, activation, initial_state):
    """As a masked convolution of images of one row, whose kernel of 2k - 1 columns has k live ones."""
    taps, left = weight.shape[2], 0
    if initial_state is not None:
        x, left = torch.cat([initial_state, x], 2), initial_state.shape[2]
    if x.shape[1] == 1 and torch.compiler.is_dynamo_compiling():
        # Inductor takes an image of one channel, one row and open length for channels_last, and fails.
        y = F.conv1d(F.pad(x, ((taps - 1) * dilation - left, 0)), weight, bias, dilation=dilation)
        return activate(y, activation)
    geometry = Geometry(2 * taps - 1, True, column_dilation=dilation, groups=groups, left=left)
    y = convolve(x.unsqueeze(2), weight.unsqueeze(2), bias, geometry)
    return activate(y.squeeze(2), activation)


def _final_state(x, initial_state, span):
    """The last `span` of initial_state and x."""
    length = x.shape[2]
    if length >= span:
        return x[:, :, length - span :].clone()
    if initial_state is None:
        return F.pad(x, (span - length, 0))
    return torch.cat([initial_state[:, :, length:], x], 2)


# ---- The depthwise operator --------------------------------------------------------------------------


def _plain(x, weight, bias, initial_state, dilation, silu):
    """Tap by tap: torch 2.11's convolution has no second derivative for sizes that a compiler leaves open."""
    length, taps = x.shape[2], weight.shape[2]
    if initial_state is None:
        initial_state = x.new_zeros(*x.shape[:2], (taps - 1) * dilation)
    padded = torch.cat([initial_state, x], 2)
    y = sum(weight[:, :, tap] * padded[:, :, tap * dilation :][:, :, :length] for tap in range(taps))
    y = y if bias is None else y + bias[:, None]
    return F.silu(y) if silu else y


def _fake(x, weight, bias, initial_state, dilation, silu):
    return empty_as(x, x.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.dilation, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    tensors = ctx.saved_tensors
    needed = ctx.needs_input_grad
    # In the order of the operator's results: x, weight, bias, initial_state.
    grads = _gradient(grad, *tensors, ctx.dilation, ctx.silu, *needed[:4])
    return *(g if need else None for g, need in zip(grads, needed, strict=False)), None, None


def _gradient_fake(grad, x, weight, bias, initial_state, dilation, silu, *wanted):
    want_x, want_weight, want_bias, want_state = wanted
    state = (*x.shape[:2], (weight.shape[2] - 1) * dilation)
    return (
        empty_as(x, x.shape if want_x else (0,)),
        x.new_empty(weight.shape if want_weight else (0,)),
        x.new_empty(x.shape[1:2] if want_bias else (0,)),
        empty_as(x, state if want_state else (0,)),
    )


def _gradient_setup_context(ctx, inputs, output):
    grad, *tensors = inputs[:5]
    ctx.options, ctx.wanted = inputs[5:7], inputs[7:]
    ctx.save_for_backward(grad, *tensors)


def _gradient_backward(ctx, *grads):
    """Second derivatives, by way of plain PyTorch."""

    def gradients(grad, *tensors):
        wanted = [t if want else None for want, t in zip(ctx.wanted, tensors, strict=True)]
        return differentiate([_plain(*tensors, *ctx.options)], wanted, [grad], create_graph=True)

    given = [g if want else None for want, g in zip(ctx.wanted, grads, strict=True)]
    return *pull_back(gradients, ctx.saved_tensors, given), *([None] * 6)


_forward = operator("causal_conv1d", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = operator(
    "causal_conv1d_backward",
    fake=_gradient_fake,
    setup_context=_gradient_setup_context,
    backward=_gradient_backward,
)
