"""Every operation in plain PyTorch: oracle of tests, baseline of benchmarks, fallback without a kernel.

Names and arguments are those of `gmfast.functional`, in any floating dtype.
"""

from .. import _philox as philox
from .actnorm import actnorm
from .affine_coupling import affine_coupling
from .causal_conv1d import causal_conv1d
from .causal_conv1d_update import causal_conv1d_update
from .concat_elu import concat_elu
from .dequantize_logit import dequantize_logit
from .diffusion_hybrid_loss import diffusion_hybrid_loss
from .diffusion_step import diffusion_step
from .discretized_gaussian_nll import discretized_gaussian_nll
from .discretized_logistic_mixture import (
    discretized_logistic_mixture_nll,
    discretized_logistic_mixture_sample,
)
from .gated_activation import gated_activation
from .gaussian_kl import gaussian_kl
from .gaussian_log_prob import gaussian_log_prob
from .langevin_step import langevin_step
from .logistic_mixture_cdf import logistic_mixture_cdf
from .made_inverse import made_inverse, made_invert, made_solve
from .masked_conv2d import conv_mask, masked_conv2d
from .q_sample import q_sample
from .rational_quadratic_spline import rational_quadratic_spline
from .standard_normal import standard_normal

__all__ = [
    "actnorm",
    "affine_coupling",
    "causal_conv1d",
    "causal_conv1d_update",
    "concat_elu",
    "conv_mask",
    "dequantize_logit",
    "diffusion_hybrid_loss",
    "diffusion_step",
    "discretized_gaussian_nll",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_mixture_sample",
    "gated_activation",
    "gaussian_kl",
    "gaussian_log_prob",
    "langevin_step",
    "logistic_mixture_cdf",
    "made_inverse",
    "made_invert",
    "made_solve",
    "masked_conv2d",
    "philox",
    "q_sample",
    "rational_quadratic_spline",
    "standard_normal",
]
