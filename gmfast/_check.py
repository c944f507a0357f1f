"""Argument checks that operations share. Each raises one sentence: the name, what was expected, what came."""

import math
import operator

import torch
import torch.fx

from . import _library

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _proxy(name):
    raise TypeError(f"{name}: expected a tensor, got torch.fx's Proxy: trace gmfast's modules as leaves")


def tensor(name, value):
    if not isinstance(value, torch.Tensor):
        if isinstance(value, torch.fx.Proxy):
            _proxy(name)
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def no_proxy(name, value):
    if isinstance(value, torch.fx.Proxy):
        raise TypeError(
            f"{name}: expected a tensor, got torch.fx's Proxy, which cannot follow a model's checks; "
            "torch.export.export makes an fx graph of the model"
        )


def kind(value):
    """Describe a value for an error message."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def floating(name, tensor):
    if not isinstance(tensor, torch.Tensor):
        if isinstance(tensor, torch.fx.Proxy):
            _proxy(name)
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name}: expected float32, float64, bfloat16 or float16, got {str(tensor.dtype)[6:]}"
        )


def one_of(name, value, choices):
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def integer(name, value):
    # The type first: torch.compile knows that of its symbolic sizes, but not their attributes.
    if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "__index__")):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")


def axis(name, dim, ndim):
    integer(name, dim)
    if ndim == 0:
        raise ValueError("x: expected at least one dimension, got a scalar")
    if not -ndim <= dim < ndim:
        raise ValueError(f"{name}: expected a dimension in [{-ndim}, {ndim - 1}], got {dim}")
    return dim % ndim


def real(name, value):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")


def number(name, value, low, high):
    real(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number in [{low}, {high}], got {value}")


def finite(name, value, low):
    real(name, value)
    if not low <= value < math.inf:
        raise ValueError(f"{name}: expected a finite number of at least {low:g}, got {value}")


def positive(name, value):
    real(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite positive number, got {value}")


def at_least(low, **arguments):
    for name, value in arguments.items():
        integer(name, value)
        if value < low:
            raise ValueError(f"{name}: expected at least {low}, got {value}")


def shape(value):
    """Return the sizes of a `shape=` argument, (B, *S), as a list; symbolic sizes stay symbolic."""
    try:
        sizes = [n if isinstance(n, torch.SymInt) else operator.index(n) for n in value]
    except TypeError:
        raise TypeError(f"shape: expected a sequence of ints, got {value!r}") from None
    if not sizes or any(n < 0 for n in sizes):
        raise ValueError(f"shape: expected (B, *S), got {tuple(sizes)}")
    return sizes


def channels(name, value, count):
    tensor(name, value)
    if value.dim() < 2 or value.shape[1] != count:
        raise ValueError(f"{name}: expected {count} channels in dimension 1, got shape {tuple(value.shape)}")


def known(tensor):
    """True if Python may branch on a buffer's values, which may mean to wait for its device.

    That is outside of compilation and tracing; meta and fake tensors have no values.
    """
    return (
        type(tensor) is torch.Tensor
        and not tensor.is_meta
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def readable(tensor):
    """True if a tensor's values are `known` without waiting for a device, outside of torch.func."""
    return tensor.device.type == "cpu" and known(tensor) and not _library._functorch_is_active()


def values(name, tensor, low, high):
    """Looks at the numbers where they are `readable`, and says whether it did."""
    if not readable(tensor) or not tensor.numel():
        return False
    least, greatest = (v.item() for v in tensor.aminmax())
    if not (low <= least and greatest <= high):
        raise ValueError(
            f"{name}: expected values in [{low:g}, {high:g}], got values from {least:g} to {greatest:g}"
        )
    return True
