"""Concatenated ELU in plain PyTorch."""

import torch
import torch.nn.functional as F


def concat_elu(x, dim=1):
    """Reference of `gmfast.functional.concat_elu`."""
    return F.elu(torch.cat([x, -x], dim))
