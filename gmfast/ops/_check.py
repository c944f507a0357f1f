"""Argument checks that operations share. Each raises one sentence: the name, what was expected, what came."""

import torch

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensor(name, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def floating(name, tensor):
    if not isinstance(tensor, torch.Tensor):
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


def number(name, value, low, high):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number in [{low}, {high}], got {value}")
