"""Negative log-likelihood of discrete levels under a normal distribution, in plain PyTorch."""

import math

import torch


def discretized_gaussian_nll(x, mean, log_scale, *, num_classes=256, formulation="exact"):
    """Reference of `gmfast.functional.discretized_gaussian_nll`."""
    half = 1 / (num_classes - 1)
    centred, inverse = x - mean, torch.exp(-log_scale)
    upper, lower = inverse * (centred + half), inverse * (centred - half)
    first, last = x < -1 + half, x > 1 - half
    if formulation == "improved_ddpm":
        below, above = cdf_tanh(upper), 1 - cdf_tanh(lower)
        inside = cdf_tanh(upper) - cdf_tanh(lower)
        p = torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))
        return -torch.log(p.clamp(min=1e-12))
    # Bins right of the mean are mirrored to the left tail, where the CDF does not cancel.
    turned = torch.where(centred > 0, -lower, upper), torch.where(centred > 0, -upper, lower)
    log_upper, log_lower = (log_ndtr(v) for v in turned)
    inside = log_upper + torch.log(-torch.expm1(log_lower - log_upper))
    log_p = torch.where(first, log_ndtr(upper), torch.where(last, log_ndtr(-lower), inside))
    return -log_p


def log_ndtr(v):
    """Log of the normal CDF, which PyTorch does not implement in half precision."""
    return torch.special.log_ndtr(v.float()).to(v.dtype) if v.itemsize < 4 else torch.special.log_ndtr(v)


def cdf_tanh(v):
    """Improved DDPM's approximation of the normal CDF."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
