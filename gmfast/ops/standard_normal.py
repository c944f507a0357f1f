"""Standard normal noise that depends on the seed and the sample, and on nothing else."""

import torch

from .. import _check, _seed, reference
from .._library import devices, operator


def standard_normal(shape, *, seed=None, dtype=torch.float32, device=None):
    """Standard normal numbers, such as the base noise of a flow or of a diffusion model.

    Counter-based (Philox 4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011; Box and
    Muller's transform): sample *i* is the same whatever the batch size, the threads and, to rounding, the
    device.

    Args:
        shape: `(B, *S)`.
        seed: an int, an int64 tensor on `device`, or a `torch.Generator`; None draws one from torch's. Of a
            tensor `(B,)`, sample *i* has the noise of sample 0 of a call with the seed *i*.
        dtype: float32, or a half rounded from it; float64, which are other numbers.
        device: by default that of a `seed` tensor, else the CPU.

    Returns:
        A contiguous tensor. Not differentiable. Numbers in float32 reach ±6.6.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to `torch.randn(shape, dtype=dtype, device=device)`, with noise of its own.
    """
    shape = _check.shape(shape)
    if dtype not in _check.FLOATING:
        raise TypeError(f"dtype: expected float32, float64, bfloat16 or float16, got {dtype}")
    if device is None:
        device = seed.device if isinstance(seed, torch.Tensor) else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    seed = _seed.of_samples(seed, shape[0], device)
    if device.type not in devices:
        return reference.standard_normal(shape, seed=seed, dtype=dtype)
    return _draw(seed, shape, dtype, _seed.first())


def _fake(seed, size, dtype, first=0):
    return seed.new_empty(list(size), dtype=dtype)


_draw = operator("standard_normal", fake=_fake)
