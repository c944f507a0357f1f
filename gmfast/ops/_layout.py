"""The dtype and memory layout of outputs, one rule for every operator; `csrc/ops/layout.h` has it in C++."""

import contextlib

import torch

# Asked once: not every torch that is supported can trace the question.
_AUTOCAST_DEVICES = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)]


def compute_dtype(*tensors):
    """What they are computed in: float64 if one of them is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def convolution_dtype(x):
    """x's dtype, or under autocast the one that it prescribes, but for float64."""
    device = x.device.type
    if x.dtype == torch.float64 or device not in _AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def without_autocast(tensor):
    """Context manager that turns autocast off where a tensor is; devices such as meta have none."""
    device = tensor.device.type
    if device not in _AUTOCAST_DEVICES:
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def cast(dtype, *tensors):
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]


def empty_as(tensor, shape, dtype=None):
    """A dense tensor: channels_last where `tensor` (B, C, *S) has its channels innermost, else contiguous."""
    if len(shape) > 2 and tensor.dim() > 2 and tensor.stride(1) == 1 and not tensor.is_contiguous():
        batch, channels, *spatial = shape
        return tensor.new_empty((batch, *spatial, channels), dtype=dtype).movedim(-1, 1)
    return tensor.new_empty(shape, dtype=dtype)


def empty_in_order(tensor, shape):
    """Dense, its dimensions in memory in the order of the tensor's: contiguous for an expanded one."""
    strides = tensor.stride()
    if any(n > 1 and stride == 0 for n, stride in zip(shape, strides, strict=True)):
        return tensor.new_empty(shape)
    order = sorted(range(len(shape)), key=lambda d: -strides[d])
    return tensor.new_empty([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])
