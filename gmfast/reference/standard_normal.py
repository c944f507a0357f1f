"""Standard normal noise in plain PyTorch."""

import torch

from .. import _philox, _seed


def standard_normal(shape, *, seed, dtype=torch.float32, device=None):
    """Reference of `gmfast.functional.standard_normal`.

    `seed`: an int64 tensor, () or (B,), on the result's device.
    """
    return _philox.array_normal(seed, tuple(shape), dtype, device or seed.device, first=_seed.first())
