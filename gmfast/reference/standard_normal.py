import torch

from . import philox


def standard_normal(shape, *, seed, dtype=torch.float32, device=None):
    """`seed` is an int64 tensor, () or (B,), on the device of the result."""
    if seed.dim():
        device = device or seed.device
        drawn = [philox.array_normal(s, (1, *shape[1:]), dtype, device) for s in seed]
        return torch.cat(drawn) if drawn else torch.empty(tuple(shape), dtype=dtype, device=device)
    return philox.array_normal(seed, tuple(shape), dtype, device or seed.device)
