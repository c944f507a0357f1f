"""The compiled library: loaded once, here. Importing never fails; what is missing is remembered."""

import torch

try:
    from . import _C

    load_error = None
except ImportError as error:  # not built, or built for another Python
    _C = None
    load_error = str(error)


def _devices():
    if _C is None:
        return frozenset()
    return frozenset({"cpu", "cuda"} if _C.build_info()["cuda"] else {"cpu"})


#: Device types that have kernels. Tensors elsewhere are computed by `gmfast.reference`.
devices = _devices()


def has_kernel(*tensors):
    """Whether the compiled operators take these tensors, which must be on one device."""
    device = tensors[0].device
    for tensor in tensors[1:]:
        if tensor.device != device:
            raise ValueError(f"expected all tensors on one device, got {device} and {tensor.device}")
    return device.type in devices


def operator(name, *, fake, setup_context=None, backward=None):
    """Complete operator `gmfast::name` with its fake kernel and its gradient, and return how to call it.

    Without the library there is no operator, and nothing to return.
    """
    if _C is None:
        return None
    full_name = f"gmfast::{name}"
    op = getattr(torch.ops.gmfast, name).default
    torch.library.register_fake(full_name, fake)
    if backward is not None:
        torch.library.register_autograd(full_name, backward, setup_context=setup_context)

    # The registered gradient is what torch.compile, torch.export and torch.func see. It costs a call 7 µs,
    # needed or not, so other calls go around it: to the same formula where a gradient is wanted, else
    # straight to the kernel.
    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*args)
            setup_context(ctx, args, output)
            return output

    if backward is not None:
        Recorded.backward = staticmethod(backward)

    def call(*args):
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return op(*args)
        if backward is not None and torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, torch.Tensor) and arg.requires_grad:
                    return Recorded.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return call
