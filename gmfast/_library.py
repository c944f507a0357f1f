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


def register(name, *, fake, setup_context=None, backward=None):
    """Give operator `gmfast::name` its fake kernel and its gradient. Without the library there is none."""
    if _C is None:
        return
    torch.library.register_fake(f"gmfast::{name}", fake)
    if backward is not None:
        torch.library.register_autograd(f"gmfast::{name}", backward, setup_context=setup_context)
