"""The causal convolution of WaveNet, dense, grouped or depthwise."""

from .. import reference
from . import _check


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
    """A convolution whose output at time t sees inputs up to t, with bias and activation in the same pass."""
    _check.floating("x", x)
    return reference.causal_conv1d(
        x,
        weight,
        bias,
        dilation=dilation,
        groups=groups,
        activation=activation,
        initial_state=initial_state,
        return_state=return_state,
    )
