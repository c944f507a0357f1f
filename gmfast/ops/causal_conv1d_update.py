"""One or a few steps of a causal convolution that is fed sample by sample."""

from .. import reference
from . import _check


def causal_conv1d_update(
    x, state, weight, bias=None, *, dilation=1, groups=1, activation=None, state_indices=None
):
    """`causal_conv1d` continued by a few samples, its state updated in place."""
    _check.floating("x", x)
    return reference.causal_conv1d_update(
        x,
        state,
        weight,
        bias,
        dilation=dilation,
        groups=groups,
        activation=activation,
        state_indices=state_indices,
    )
