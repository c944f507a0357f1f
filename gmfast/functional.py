"""Every public operation in one place: `import gmfast.functional as GF`."""

import torch.fx

from .ops.actnorm import actnorm
from .ops.affine_coupling import affine_coupling
from .ops.causal_conv1d import causal_conv1d
from .ops.causal_conv1d_update import causal_conv1d_update
from .ops.concat_elu import concat_elu
from .ops.dequantize_logit import dequantize_logit
from .ops.diffusion_hybrid_loss import diffusion_hybrid_loss
from .ops.diffusion_step import diffusion_step
from .ops.discretized_gaussian_nll import discretized_gaussian_nll
from .ops.discretized_logistic_mixture import (
    discretized_logistic_mixture_nll,
    discretized_logistic_mixture_sample,
)
from .ops.gated_activation import gated_activation
from .ops.gaussian_kl import gaussian_kl
from .ops.gaussian_log_prob import gaussian_log_prob
from .ops.langevin_step import langevin_step
from .ops.logistic_mixture_cdf import logistic_mixture_cdf
from .ops.masked_conv2d import masked_conv2d
from .ops.q_sample import q_sample
from .ops.rational_quadratic_spline import rational_quadratic_spline
from .ops.standard_normal import standard_normal

__all__ = [
    "actnorm",
    "affine_coupling",
    "causal_conv1d",
    "causal_conv1d_update",
    "concat_elu",
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
    "masked_conv2d",
    "q_sample",
    "rational_quadratic_spline",
    "standard_normal",
]

# Nodes of the graphs that torch.fx.symbolic_trace makes.
for name in __all__:
    torch.fx.wrap(name)
