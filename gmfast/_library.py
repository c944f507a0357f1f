"""The compiled library: loaded once, here. Importing never fails; what is missing is remembered."""

import contextlib

import torch
from torch.autograd import forward_ad

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


def in_forward_mode():
    """True where forward-mode derivatives are taken, which are those of plain PyTorch."""
    return forward_ad._current_level >= 0


def has_kernel(*tensors):
    """True if the compiled operators take these tensors, which must be on one device."""
    device = tensors[0].device
    for tensor in tensors[1:]:
        if tensor.device != device:
            raise ValueError(f"expected all tensors on one device, got {device} and {tensor.device}")
    # On the meta device an operator is its fake kernel.
    known = device.type in devices or (device.type == "meta" and bool(devices))
    return known and not in_forward_mode()


# Private to torch, so their absence is provided for: calls then take the registered gradient's slower way.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext)
_functorch_is_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def differentiated(*tensors):
    """True if a derivative by one of them may be wanted, of any kind: for operators that have none."""
    if not torch.compiler.is_compiling() and (_functorch_is_active() or forward_ad._current_level >= 0):
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


@contextlib.contextmanager
def plain_pytorch():
    """Have every operation be computed by plain PyTorch, as `torch.onnx.export` needs it.

    ONNX has no operators of gmfast. Within, `torch.onnx.export(model, (x,), dynamo=True)` exports models and
    modules of `gmfast.nn`. It holds for all threads.
    """
    global devices
    kept, devices = devices, frozenset()
    try:
        yield
    finally:
        devices = kept


def leave_graph(why):
    """Run the caller in Python under torch.compile; its fullgraph=True raises this sentence."""
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(msg=why)


def in_functorch():
    """True within a transform of torch.func."""
    return not torch.compiler.is_compiling() and _functorch_is_active()


def in_functorch_or_trace():
    """True within a transform of torch.func, and while torch.jit.trace records."""
    return not torch.compiler.is_compiling() and (_functorch_is_active() or torch.jit.is_tracing())


def operator(name, *, fake, setup_context=None, backward=None):
    """Complete operator `gmfast::name` with its fake kernel and its gradient, and return how to call it.

    `backward` finds `ctx.private` true where nobody else can see the operator's outputs. Without the library
    there is no operator, and nothing to return.
    """
    global devices, load_error
    op = getattr(torch.ops.gmfast, name, None) if _C else None
    if op is None:
        if _C:
            devices, load_error = frozenset(), f"it lacks {name}: build it again"
        return None
    op = op.default
    torch.library.register_fake(f"gmfast::{name}", fake)
    if backward is None:

        def call(*args):
            if torch.compiler.is_compiling() or _functorch_is_active():
                return op(*args)
            with _below_autograd():
                return op(*args)

        return call

    torch.library.register_autograd(f"gmfast::{name}", backward, setup_context=setup_context)

    # The registered gradient is what torch.compile and torch.export see. It costs a call 7 µs, needed or not,
    # so eager calls go around it: to the same formula where a gradient is wanted, else straight down.
    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            with _below_autograd():
                output = op(*args)
            ctx.private = True
            setup_context(ctx, args, output)
            return output

    # The form that torch.func takes. Neither form has a forward-mode derivative: see `has_kernel`.
    class Transformed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args):
            return op(*args)

    Recorded.backward = Transformed.backward = staticmethod(backward)
    Transformed.setup_context = staticmethod(setup_context)

    def call(*args):
        if torch.compiler.is_compiling():
            return op(*args)
        if _functorch_is_active():
            return Transformed.apply(*args)
        if torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, torch.Tensor) and arg.requires_grad:
                    return op(*args) if torch.jit.is_tracing() else Recorded.apply(*args)
        if forward_ad._current_level >= 0:
            return Recorded.apply(*args)
        with _below_autograd():
            return op(*args)

    return call


def without_gradient(name):
    """Operator `gmfast::name` for eager calls of who has seen that nobody wants a derivative.

    Nothing in Python lies between, which else takes a third of a short call's time.
    """
    op = getattr(torch.ops.gmfast, name, None) if _C else None
    return op and getattr(op.default, "_op", op.default)
