"""The gated activation in plain PyTorch."""

import torch


def gated_activation(x, residual=None, *, dim=1):
    """Reference of `gmfast.functional.gated_activation`."""
    first, second = x.chunk(2, dim)
    y = torch.tanh(first) * torch.sigmoid(second)
    return y if residual is None else y + residual
