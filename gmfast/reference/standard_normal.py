import torch

from .. import _philox


def standard_normal(shape, *, seed, dtype=torch.float32, device=None):
    """`seed` is an int64 tensor, () or (B,), on the device of the result."""
    return _philox.array_normal(seed, tuple(shape), dtype, device or seed.device)
