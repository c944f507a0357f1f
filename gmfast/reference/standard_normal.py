"""Standard normal noise in plain PyTorch."""

import torch

from .. import _philox


def standard_normal(shape, *, seed, dtype=torch.float32, device=None, first=0):
    """Reference of `gmfast.functional.standard_normal`.

    `seed`: an int64 tensor, () or (B,), on the result's device. `first`: index of the first sample.
    """
    return _philox.array_normal(seed, tuple(shape), dtype, device or seed.device, first=first)
