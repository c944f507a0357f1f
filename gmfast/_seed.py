"""`seed=` of every operation that draws noise, and the sample that a batch's noise counts from."""

import contextlib
import threading
from collections.abc import Iterator

import torch

from . import _check


# An attribute of the instance, on which torch.compile guards; of a ContextVar, or of the class, it does not.
class _Local(threading.local):
    def __init__(self):
        self.first = 0


_local = _Local()


def first() -> int:
    """Index in the noise of the first sample of a batch: 0 outside of `first_sample`."""
    return _local.first


@contextlib.contextmanager
def first_sample(first: int) -> Iterator[None]:
    """Let batches be part of a larger batch, from its sample `first` on: they get the noise of those samples.

    Within the context, sample i of a batch has the noise that sample `first + i` has outside of it, in every
    operation and sampler that draws noise from a seed. Samples with seeds of their own, `(B,)`, keep theirs.
    Contexts nest: the innermost counts. A context holds for its thread. torch.compile makes code for each
    value.

    Args:
        first: Index of the sample, from 0 to 2**32 - 1.

    Raises:
        ValueError: For another int.
        TypeError: For no int.
    """
    _check.integer("first", first)
    if not 0 <= first < 2**32:
        raise ValueError(f"first: expected an int from 0 to 2**32 - 1, got {first}")
    outer, _local.first = _local.first, int(first)
    try:
        yield
    finally:
        _local.first = outer


def as_tensor(seed, device):
    """The seed as a 0-dim int64 tensor on `device`, without synchronising with it.

    An int is from -2**63 to 2**64 - 1, as torch's own seeds, those of the upper half being the negative ones;
    a tensor is used as it is, so that a CUDA graph can replay with new seeds; from a generator (None: torch's
    global one) one seed is drawn, which takes a copy if it is on the CPU and the tensors are not.
    """
    if isinstance(seed, torch.Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed: expected an int64 tensor, got {str(seed.dtype)[6:]}")
        if seed.numel() != 1:
            raise ValueError(f"seed: expected a tensor of one element, got {tuple(seed.shape)}")
        if seed.device != device:
            raise ValueError(f"seed: expected a tensor on {device}, got one on {seed.device}")
        return seed.reshape(())
    if seed is None or isinstance(seed, torch.Generator):
        source = device if seed is None else seed.device
        drawn = torch.randint(-(2**63), 2**63 - 1, (), generator=seed, device=source, dtype=torch.int64)
        return drawn.to(device)
    if isinstance(seed, bool) or not (isinstance(seed, int) or hasattr(seed, "__index__")):
        raise TypeError(
            f"seed: expected an int, an int64 tensor, a torch.Generator or None, got {type(seed).__name__}"
        )
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed: expected an int from -2**63 to 2**64 - 1, got {seed}")
    if not isinstance(seed, int):
        seed = int(seed)  # NumPy's know no numbers beyond theirs
    # A condition, as torch.compile makes no code of the remainder of a number that differs from call to call.
    return torch.full((), seed if seed < 2**63 else seed - 2**64, dtype=torch.int64, device=device)


def of_samples(seed, batch, device):
    """Convert a seed by `as_tensor`, or check an int64 tensor `(B,)`: sample i is sample 0 of its seed."""
    if not isinstance(seed, torch.Tensor) or seed.dim() == 0 or (seed.numel() == 1 and batch != 1):
        return as_tensor(seed, device)
    if seed.dtype != torch.int64:
        raise TypeError(f"seed: expected an int64 tensor, got {str(seed.dtype)[6:]}")
    if seed.dim() != 1 or seed.shape[0] != batch:
        raise ValueError(f"seed: expected shape () or ({batch},), got {tuple(seed.shape)}")
    if seed.device != device:
        raise ValueError(f"seed: expected a tensor on {device}, got one on {seed.device}")
    return seed


def of_batch(seed, batch, device):
    """Convert seeds from any device by `of_samples`; a list or tuple has a seed for each sample."""
    if isinstance(seed, list | tuple):
        if len(seed) != batch:
            raise ValueError(f"seed: expected {batch}, one for each sample, got {len(seed)}")
        if not seed:
            return torch.empty(0, dtype=torch.int64, device=device)
        return torch.stack([as_tensor(s, torch.device("cpu")) for s in seed]).to(device)
    if isinstance(seed, torch.Tensor) and seed.dim():
        if seed.dtype != torch.int64:
            raise TypeError(f"seed: expected an int64 tensor, got {str(seed.dtype)[6:]}")
        if tuple(seed.shape) != (batch,):
            raise ValueError(f"seed: expected () or ({batch},), got {tuple(seed.shape)}")
        return seed.to(device)
    if isinstance(seed, torch.Tensor):
        seed = seed.to(device)
    return as_tensor(seed, device)


def stream(seed, k):
    """Seed of the k-th draw of one call, distinct from those of neighbouring seeds' calls.

    The odd factor of the golden ratio spreads the calls over all seeds.
    """
    return seed * -0x61C8864680B583EB + k
