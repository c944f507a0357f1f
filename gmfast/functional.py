"""Every public operation in one place: `import gmfast.functional as GF`."""

from .ops.concat_elu import concat_elu
from .ops.discretized_logistic_mixture import (
    discretized_logistic_mixture_nll,
    discretized_logistic_mixture_sample,
)
from .ops.gated_activation import gated_activation

__all__ = [
    "concat_elu",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_mixture_sample",
    "gated_activation",
]
