"""Every public operation in one place: `import gmfast.functional as GF`."""

from .ops.causal_conv1d import causal_conv1d
from .ops.causal_conv1d_update import causal_conv1d_update
from .ops.concat_elu import concat_elu
from .ops.discretized_logistic_mixture import (
    discretized_logistic_mixture_nll,
    discretized_logistic_mixture_sample,
)
from .ops.gated_activation import gated_activation
from .ops.masked_conv2d import masked_conv2d

__all__ = [
    "causal_conv1d",
    "causal_conv1d_update",
    "concat_elu",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_mixture_sample",
    "gated_activation",
    "masked_conv2d",
]
