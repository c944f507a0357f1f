"""Adjacent slices of one tensor, as the tensor that they make up.

The gradient of a slice is a whole tensor that autograd fills with zeros and adds to those of the other slices.
An operation that takes its parameters packed gives their gradient in one piece; `join` finds what to pass it.
"""

import math
import weakref

import torch
from torch.autograd import forward_ad

from .._library import _functorch_is_active

#: Numbers from which one gradient fewer is worth the call of a function of Python's.
_LEAST = 1 << 13

#: Functions of autograd whose result has each element of a part of their input once.
_SLICING = frozenset(
    f"{name}Backward0"
    for name in ("Slice", "Split", "SplitWithSizes", "Unbind", "Select", "View", "UnsafeView", "Permute")
) | {"TransposeBackward0", "TBackward0", "UnsqueezeBackward0", "SqueezeBackward1", "AliasBackward0"}

_will_execute = getattr(torch._C, "_will_engine_execute_node", None)

# An input of each function that nobody asks a gradient of: a backward pass visits it exactly if it visits all.
_everything = torch.zeros((), device="cpu", requires_grad=True)


def join(parts, dim, interleaved=False):
    """Return what `parts`, adjacent slices along `dim`, are slices of; None unless its gradient costs less.

    Gradients reach the tensor that the slices are views of directly. Where a gradient by one of the slices
    itself is asked for, by `torch.autograd.grad`, `retain_grad` or a hook, all of them go by way of the slices.

    Args:
        parts: tensors of the same sizes but along `dim`; views of one tensor, which they cover, else the
            answer is None.
        dim: dimension of `parts`, from 0.
        interleaved: whether the slices take turns along `dim`, else they follow one another.
    """
    first = parts[0]
    base = first._base
    if base is None or base.numel() < _LEAST or torch.compiler.is_compiling():
        return None
    if not (torch.is_grad_enabled() and base.requires_grad) or type(base) is not torch.Tensor:
        return None
    if forward_ad._current_level >= 0 or _functorch_is_active() or torch.jit.is_tracing():
        return None
    for part in parts:
        if part._base is not base or not part.requires_grad or part._backward_hooks or part.retains_grad:
            return None
    geometry = _joined(parts, dim, interleaved)
    if geometry is None or math.prod(geometry[0]) != base.numel():
        return None
    if not (_is_dense(*geometry) and _is_dense(base.shape, base.stride())):
        return None
    if not all(_is_slice(part.grad_fn, base) for part in parts):
        return None
    return _Join.apply(_everything, base, geometry, dim, interleaved, *parts)


def _joined(parts, dim, interleaved):
    """Return the sizes and strides of the tensor that the parts make up, or None."""
    first = parts[0]
    sizes, strides, offset = list(first.shape), first.stride(), first.storage_offset()
    step = strides[dim] // len(parts) if interleaved else strides[dim]
    sizes[dim] = 0
    for part in parts:
        if part.stride() != strides or part.storage_offset() != offset:
            return None
        offset += step * (1 if interleaved else part.shape[dim])
        sizes[dim] += part.shape[dim]
    return sizes, [*strides[:dim], step, *strides[dim + 1 :]]


def _is_dense(sizes, strides):
    expected = 1
    for stride, size in sorted((stride, n) for n, stride in zip(sizes, strides, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _is_slice(node, base):
    """Return whether autograd gets from `base` to the output of `node` by slicing alone."""
    while node is not None and node is not base.grad_fn:
        if node.name() not in _SLICING:
            return base.is_leaf and getattr(node, "variable", None) is base
        ((node, _),) = node.next_functions
    return node is not None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, everything, base, geometry, dim, interleaved, *parts):
        ctx.set_materialize_grads(False)
        ctx.parts = [weakref.ref(part) for part in parts]
        ctx.lengths = [part.shape[dim] for part in parts]
        ctx.dim, ctx.interleaved, ctx.geometry = dim, interleaved, geometry
        ctx.base = base.shape, base.stride()
        return base.as_strided(*geometry, parts[0].storage_offset())

    @staticmethod
    def backward(ctx, grad):
        parts = (None,) * len(ctx.parts)
        if grad is None:
            base = None
        elif _wants_parts(ctx):
            base = None
            if ctx.interleaved:
                parts = grad.unflatten(ctx.dim, (-1, len(parts))).unbind(ctx.dim + 1)
            else:
                parts = grad.split(ctx.lengths, ctx.dim)
        else:
            sizes, strides = ctx.geometry
            if list(grad.stride()) != strides:
                grad = torch.empty_strided(sizes, strides, dtype=grad.dtype, device=grad.device).copy_(grad)
            base = grad.as_strided(*ctx.base)
        return None, base, None, None, None, *parts


def _wants_parts(ctx):
    """Return whether the gradient by a slice itself may be asked for: only by who still holds it."""
    held = [part for part in (ref() for ref in ctx.parts) if part is not None]
    if not held:
        return False
    if any(part._backward_hooks or part.retains_grad for part in held) or _will_execute is None:
        return True
    return not _will_execute(ctx.next_functions[0][0])
