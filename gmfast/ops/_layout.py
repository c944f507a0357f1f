"""The dtype and memory layout of outputs, one rule for every operator; `csrc/ops/layout.h` has it in C++."""

import contextlib

import torch

# Asked once: not every torch that is supported can trace the question.
_AUTOCAST_DEVICES = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)]


def compute_dtype(*tensors):
    """Dtype that tensors are computed in: float64 if one of them is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def convolution_dtype(x):
    """Return the dtype of x, or under autocast the one that it prescribes, but for float64."""
    return torch.get_autocast_dtype(x.device.type) if _is_autocast(x) else x.dtype


def _is_autocast(x):
    device = x.device.type
    return x.dtype != torch.float64 and device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def without_autocast(tensor):
    """Context manager that turns autocast off where a tensor is; devices such as meta have none."""
    device = tensor.device.type
    if device not in _AUTOCAST_DEVICES:
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def cast(dtype, *tensors):
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]


def cast_parameters(x, *parameters):
    """Weights and biases beside x, none rounded: in x's dtype, or in the one that x is computed in."""
    dtype = x.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [t if t is None or t.dtype in (dtype, wide) else t.to(wide) for t in parameters]


def cast_for_convolution(x, weight, bias):
    """Cast to autocast's dtype where it is on, else widen only the parameters, so that none is rounded."""
    dtype = convolution_dtype(x)
    if _is_autocast(x):
        return cast(dtype, x, weight, bias)
    return [x, *cast_parameters(x, weight, bias)]


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
