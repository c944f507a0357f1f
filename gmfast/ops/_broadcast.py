"""Arguments that broadcast to each other, for operations whose kernels want them of one shape."""

import torch

from .. import _check
from ._layout import compute_dtype


def tensors(**arguments):
    """Floating tensors as they are, numbers as tensors () in what is computed in, on the others' device."""
    given = []
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            _check.floating(name, value)
            given.append(value)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}: expected a torch.Tensor or a number, got {type(value).__name__}")
    if not given:
        raise TypeError(f"{', '.join(arguments)}: expected at least one torch.Tensor, got numbers")
    if len(given) == len(arguments):
        return given
    dtype, device = compute_dtype(*given), given[0].device
    return [
        v if isinstance(v, torch.Tensor) else torch.full((), v, dtype=dtype, device=device)
        for v in arguments.values()
    ]


def shape_of(tensors):
    """The shape that tensors broadcast to; None where they do not."""
    shape = tensors[0].shape
    if all(t.shape == shape for t in tensors[1:]):
        return tuple(shape)
    dims = max(t.dim() for t in tensors)
    sizes = [1] * dims
    for t in tensors:
        for d, n in enumerate(t.shape, dims - t.dim()):
            if sizes[d] == 1:
                sizes[d] = n
            elif n != 1 and n != sizes[d]:
                return None
    return tuple(sizes)


def at_least_2d(tensor, shape):
    """Expanded to `shape`, and as a view of two dimensions where that has fewer."""
    tensor = tensor if tensor.shape == shape else tensor.expand(shape)
    return tensor if len(shape) > 1 else tensor[None] if shape else tensor.reshape(1, 1)
