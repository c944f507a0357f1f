"""Every operation in plain PyTorch: the tests' oracle, the benchmarks' baseline, and what runs on a
device that has no kernel. Same names and arguments as `gmfast.functional`, in any floating dtype."""

from .concat_elu import concat_elu
from .discretized_logistic_mixture import (
    discretized_logistic_mixture_nll,
    discretized_logistic_mixture_sample,
)
from .gated_activation import gated_activation

__all__ = [
    "concat_elu",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_mixture_sample",
    "gated_activation",
]
