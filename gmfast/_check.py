"""Argument checks that operations share. Each raises one sentence: the name, what was expected, what came."""

import contextlib
import inspect
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

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


def indices(name, tensor, shape):
    """An int32 or int64 tensor of a shape."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected int32 or int64, got {str(tensor.dtype)[6:]}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")


def one_of(name, value, choices):
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def integer(name, value):
    # The type first: torch.compile knows that of its symbolic sizes, but not their attributes.
    if not _is_integer(value):
        raise TypeError(f"{name}: expected an int, got {kind(value)}")


def _is_integer(value):
    if isinstance(value, torch.Tensor):
        return value.dim() == 0 and not (value.is_floating_point() or value.dtype == torch.bool)
    return not isinstance(value, bool | type) and (isinstance(value, int) or hasattr(value, "__index__"))


def annotated(cls):
    """Check the arguments of a class's constructor by its annotations (`arguments`), before it runs."""
    init = cls.__init__
    signature = inspect.signature(init)

    @wraps(init)
    def __init__(self, *args, **kwargs):
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:  # a missing or unknown argument, which Python names
            given = {}
        arguments(cls, given)
        init(self, *args, **kwargs)

    cls.__init__ = __init__


#: What annotations are called in error messages, and what has the type.
_NAMES = {
    int: "an int",
    float: "a number",
    bool: "True or False",
    str: "a string",
    NoneType: "None",
    torch.Tensor: "a tensor",
}
_IS = {
    int: _is_integer,
    float: lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool),
    bool: lambda value: hasattr(value, "__bool__") and not isinstance(value, type | torch.Tensor),
    str: lambda value: isinstance(value, str),
    NoneType: lambda value: value is None,
    torch.Tensor: lambda value: isinstance(value, torch.Tensor),
}


def arguments(cls, given):
    """Check arguments of a class's constructor, by name, against its annotations and those of its bases.

    Only what is annotated as numbers, strings, booleans, None, sequences of those and unions is looked at.

    Raises:
        TypeError: For the first one of another type.
    """
    hints = _annotations(cls)
    for name, value in given.items():
        hint = hints.get(name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if all(map(_described, kinds)) and not any(_has_type(value, one) for one in kinds):
            expected = " or ".join(dict.fromkeys(map(_described, kinds)))
            raise TypeError(f"{name}: expected {expected}, got {_got(value)}")


def _described(annotation):
    """Name of an annotation in error messages; None for one that is not checked."""
    if annotation in _NAMES:
        return _NAMES[annotation]
    if _is_called(annotation):
        return "a module"
    if (get_origin(annotation) or annotation) not in (tuple, list, Sequence, Iterable):
        return None
    of = {int: " of ints", float: " of numbers", str: " of strings"}
    return f"a sequence{of.get((get_args(annotation) or (None,))[0], '')}"


def _is_called(annotation):
    return get_origin(annotation) is Callable or (
        isinstance(annotation, type) and issubclass(annotation, torch.nn.Module)
    )


def _has_type(value, annotation):
    if annotation in _IS:
        return _IS[annotation](value)
    if _is_called(annotation):
        return callable(value)
    if (get_origin(annotation) or annotation) is Iterable:  # whose elements reading may use up
        return isinstance(value, Iterable) and not isinstance(value, str | bytes)
    if not isinstance(value, Sequence | torch.Size) or isinstance(value, str | bytes):
        return False
    element = (get_args(annotation) or (None,))[0]
    element = float if element is int else element  # a fraction is a wrong value, which the class names
    return element not in _IS or all(map(_IS[element], value))


def _got(value):
    return repr(value) if isinstance(value, tuple | list) else kind(value)


@cache
def _annotations(cls):
    """Annotations of the constructors of a class and its bases, the nearest one's first."""
    hints = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            own = inspect.signature(base.__init__).parameters
            hints = {name: hint for name, hint in hints.items() if name not in own}
            with contextlib.suppress(NameError):  # a name for type checkers alone
                hints |= get_type_hints(base.__init__)
    return hints


def axis(name, dim, ndim):
    integer(name, dim)
    if ndim == 0:
        raise ValueError("x: expected at least one dimension, got a scalar")
    if not -ndim <= dim < ndim:
        raise ValueError(f"{name}: expected a dimension in [{-ndim}, {ndim - 1}], got {dim}")
    return dim % ndim


def real(name, value):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {kind(value)}")


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
        sizes = [n if isinstance(n, int | torch.SymInt) else operator.index(n) for n in value]
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
