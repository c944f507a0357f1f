import torch

from . import philox


def standard_normal(shape, *, seed, dtype=torch.float32, device=None):
    """`seed` is an int64 tensor, () or (B,), on the device of the result."""
    return philox.array_normal(seed, tuple(shape), dtype, device or seed.device)
