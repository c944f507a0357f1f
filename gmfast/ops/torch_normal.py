"""`torch.randn` of a generator on the CPU, the same numbers sooner. Internal: not in `gmfast.functional`."""

import functools
import math
import threading

import torch

from .._library import devices, operator, without_gradient

#: below, torch.randn is sooner: reading and writing the generator's state takes 3 µs
FEWEST = 800

#: get_state, the numbers and set_state are three calls, between which no other thread of ours may draw
_lock = threading.Lock()


def torch_normal(shape, *, generator=None):
    """The standard normal numbers of `torch.randn(shape, generator=generator)` in float32 on the CPU.

    The generator is left in the state that torch's call would leave it in, to the last byte. The numbers have
    the random bits of torch's, and differ by the rounding of log, cos and sin, as torch's own do between
    processors: within 1e-6 (1 + |z|), or where torch has no AVX2, 1e-6 (1 + r), r² = -2 log(1 - u) <= 33.3.

    Args:
        shape: a `torch.Size` or a sequence of ints.
        generator: on the CPU; None is torch's global one.

    Returns:
        A contiguous tensor. Not differentiable. It is `torch.randn`'s below `FEWEST` numbers, where something
        traces or transforms the call, and with a version of torch whose numbers are others, which the first
        call finds out.

    Raises what `torch.randn` does.

    Two threads may draw from one generator with this function. If one of them uses torch's own meanwhile,
    both may get the same numbers.

    Equivalent to `torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)`.
    """
    if (
        torch.compiler.is_compiling()
        or _functorch_is_active()
        or _modes()
        or math.prod(shape) < FEWEST
        or not _is_the_same()
    ):
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
    return _numbers(shape, torch.default_generator if generator is None else generator)


def torch_normal_like(x):
    """`torch.randn_like(x)`, sooner where `torch_normal` is."""
    if x.is_cpu and x.dtype == torch.float32 and x.is_contiguous():
        return torch_normal(x.shape)
    return torch.randn_like(x)


def _numbers(shape, generator):
    with _lock:
        state = generator.get_state()
        numbers = _draw(state, shape)
        generator.set_state(state)
    return numbers


# Private to torch, so their absence is provided for, by torch.randn.
_functorch_is_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)  # fake tensors, for one


@functools.cache
def _is_the_same():
    """Whether this version of torch makes its numbers as the kernel does."""
    if "cpu" not in devices or _draw is None:
        return False
    try:
        for seed in (0, 2**63 + 12345):
            ours, theirs = (torch.Generator("cpu").manual_seed(seed) for _ in range(2))
            for size in (16, 17, 100, 624, 4096, 16384):
                numbers = _numbers((size,), ours)
                expected = torch.randn(size, generator=theirs, device="cpu", dtype=torch.float32)
                # Beyond all rounding: other bits would give other numbers altogether.
                if not torch.allclose(numbers, expected, rtol=0, atol=1e-5) or not torch.equal(
                    ours.get_state(), theirs.get_state()
                ):
                    return False
    except RuntimeError:  # of a state that is not such a one
        return False
    return True


operator("torch_normal", fake=lambda state, size: state.new_empty(list(size), dtype=torch.float32))
_draw = without_gradient("torch_normal")
