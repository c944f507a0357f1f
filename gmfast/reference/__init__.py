"""Every operation in plain PyTorch: the tests' oracle, the benchmarks' baseline, and what runs on a
device that has no kernel. Same names and arguments as `gmfast.functional`, in any floating dtype."""

from .causal_conv1d import causal_conv1d
from .causal_conv1d_update import causal_conv1d_update
from .concat_elu import concat_elu
from .discretized_logistic_mixture import (
    discretized_logistic_mixture_nll,
    discretized_logistic_mixture_sample,
)
from .gated_activation import gated_activation
from .masked_conv2d import conv_mask, masked_conv2d

__all__ = [
    "causal_conv1d",
    "causal_conv1d_update",
    "concat_elu",
    "conv_mask",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_mixture_sample",
    "gated_activation",
    "masked_conv2d",
]
