import math

import torch

from . import philox


def standard_normal(shape, *, seed, dtype=torch.float32):
    """`seed` is a 0-dim int64 tensor, on the device of the result."""
    batch, *spatial = shape
    u, angle = philox.uniform(seed, batch, spatial, 2, torch.float64, seed.device).unbind(1)
    return (torch.sqrt(-2 * torch.log(u)) * torch.cos(2 * math.pi * angle)).to(dtype)
