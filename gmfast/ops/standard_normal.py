import torch

from .. import reference
from . import _seed


def standard_normal(shape, *, seed=None, dtype=torch.float32, device=None):
    device = torch.device(device or "cpu")
    return reference.standard_normal(shape, seed=_seed.as_tensor(seed, device), dtype=dtype)
