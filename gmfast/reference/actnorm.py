"""Activation normalisation in plain PyTorch."""

import math

import torch


def actnorm(x, shift, log_scale, *, inverse=False):
    """Reference of `gmfast.functional.actnorm`."""
    per_channel = (1, -1, *[1] * (x.dim() - 2))
    shift, log_s = shift.view(per_channel), log_scale.view(per_channel)
    log_det = log_scale.sum() * math.prod(x.shape[2:])
    if inverse:
        return x * torch.exp(-log_s) - shift, (-log_det).expand(x.shape[0])
    return (x + shift) * torch.exp(log_s), log_det.expand(x.shape[0])
