"""The log-density of normal distributions in plain PyTorch."""

import math

import torch


def gaussian_log_prob(z, mean=None, log_std=None):
    """Reference of `gmfast.functional.gaussian_log_prob`."""
    if mean is not None:
        z = z - mean
    log_p = -0.5 * math.log(2 * math.pi)
    if log_std is not None:
        z, log_p = z * torch.exp(-log_std), log_p - log_std
    return (log_p - 0.5 * z.square()).flatten(1).sum(1)
