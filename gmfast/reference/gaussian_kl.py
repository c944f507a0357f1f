"""The divergence of normal distributions in plain PyTorch."""

import torch


def gaussian_kl(mean1, logvar1, mean2, logvar2):
    """Reference of `gmfast.functional.gaussian_kl`."""
    ratio = logvar1 - logvar2
    return 0.5 * (torch.expm1(ratio) - ratio + (mean1 - mean2).square() * torch.exp(-logvar2))
