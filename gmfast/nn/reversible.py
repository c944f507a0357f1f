"""Training without stored activations: they are recomputed from outputs by the inverse."""

import contextlib

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from .actnorm import ActNorm
from .coupling import Coupling
from .transform import Inverse, Sequential, Split, no_log_det


@torch.compiler.disable
def run(transform: Sequential, x: Tensor, context=None, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """`transform(x, context)`, or its inverse, of which autograd keeps only the result.

    Gradients reach `x`, the tensors in `context` (any nesting of tuples, lists and dicts) and the parameters
    of `transform`. `Sequential(…, reversible=True)` calls this; its docstring says what to expect.
    """
    tensors, spec = tree_flatten(context)
    differentiable = [isinstance(t, Tensor) and t.requires_grad for t in tensors]
    parameters = [p for p in transform.parameters() if p.requires_grad]
    if not (torch.is_grad_enabled() and (x.requires_grad or any(differentiable) or parameters)):
        return transform._one_by_one(x, context, inverse)
    call = _Call(transform, inverse, tensors, spec, differentiable, parameters, x.device.type)
    # Gradients of the parameters are the function's results: hooks of DistributedDataParallel see them.
    wanted = [t for t, needed in zip(tensors, differentiable, strict=True) if needed]
    return _Run.apply(call, x, *wanted, *parameters)


class _Run(torch.autograd.Function):
    """One pass through a transform of transforms. Forward stores the result, and the state of the random
    number generators before each step that draws; backward goes through the steps from the last to the
    first."""

    @staticmethod
    def forward(ctx, call, x, *inputs):
        y, log_det = call.forward(x)
        ctx.call = call
        ctx.save_for_backward(y, *inputs[: len(inputs) - len(call.parameters)])
        return y, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_log_det):
        y, *wanted = ctx.saved_tensors
        return None, *ctx.call.backward(y, wanted, grad_y, grad_log_det, ctx.needs_input_grad[1])


class _Call:
    """What one call of `run` has to remember."""

    def __init__(self, transform, inverse, tensors, spec, differentiable, parameters, device_type):
        self.transform, self.inverse = transform, inverse
        self.constants = [None if needed else t for t, needed in zip(tensors, differentiable, strict=True)]
        self.spec, self.differentiable, self.parameters = spec, differentiable, parameters
        self.autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in dict.fromkeys([device_type, "cpu"])
        }
        self.rng_states = []  # one entry for each step, in the order of the forward pass
        # Through the inverse an ActNorm sets itself by the first batch only where there are gradients.
        self.first_batch = any(
            isinstance(m, ActNorm) and m.training and not m._known_initialized for m in transform.modules()
        )
        self.context = tree_unflatten(tensors, spec)

    def forward(self, x):
        with self.settings(), torch.set_grad_enabled(self.first_batch):
            y, log_det = self.forward_through(self.transform, x.detach(), self.inverse)
        self.versions = [p._version for p in self.parameters]  # after a first batch
        del self.context  # what is needed of it is saved where autograd watches it
        return y.detach(), log_det.detach()

    def forward_through(self, transform, x, inverse):
        """The result of `transform`, its steps one by one."""
        if _is(transform, Sequential):
            total = no_log_det(x)
            for step in reversed(transform.transforms) if inverse else transform.transforms:
                x, log_det = self.forward_through(step, x, inverse)
                total = total + log_det
            return x, total
        if _is(transform, Inverse):
            return self.forward_through(transform.transform, x, not inverse)
        if _is(transform, Split):
            first, rest = transform.split(x)
            first, log_det = self.forward_through(transform.transform, first, inverse)
            return torch.cat([first, rest], 1), log_det
        before = _rng_state(x)
        y, log_det = (transform.inverse if inverse else transform)(x, self.context)
        after = _rng_state(x)
        drew = any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        self.rng_states.append(before if drew else None)
        return y.detach(), log_det.detach()

    def backward(self, y, wanted, grad_y, grad_log_det, needs_x):
        """Gradients of x, of the context's tensors and of the parameters."""
        current = [p for p in self.transform.parameters() if p.requires_grad]
        if list(map(id, current)) != list(map(id, self.parameters)) or self.versions != [
            p._version for p in current
        ]:
            raise RuntimeError("reversible: expected the parameters of the forward pass, got changed ones")
        with self.settings():
            leaves = iter([t.detach().requires_grad_() for t in wanted])
            tensors = [
                next(leaves) if needed else constant
                for constant, needed in zip(self.constants, self.differentiable, strict=True)
            ]
            backward = _Backward(
                tree_unflatten(tensors, self.spec),
                [t for t, needed in zip(tensors, self.differentiable, strict=True) if needed],
                list(self.rng_states),
                check=not getattr(self.transform, "_reversible_checked", False),
            )
            grad_x = backward.through(self.transform, y, grad_y, grad_log_det, self.inverse)[1]
        self.transform._reversible_checked = True
        found = (backward.grads.get(id(t)) for t in [*backward.wanted, *self.parameters])
        return grad_x if needs_x else None, *found

    @contextlib.contextmanager
    def settings(self):
        """Autocast as at the call. Weights cast without gradients must not serve where there are some: no
        cache."""
        with contextlib.ExitStack() as stack:
            for kind, (enabled, dtype) in self.autocast.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield


class _Backward:
    """One backward pass: `context` and its differentiable tensors, and what has been found so far."""

    def __init__(self, context, wanted, rng_states, check):
        self.context, self.wanted, self.rng_states, self.check = context, wanted, rng_states, check
        self.grads = {}

    def through(self, transform, y, grad_y, grad_log_det, inverse):
        """From a transform's result and the gradients there to its input and the gradient there."""
        if _is(transform, Sequential):
            for step in transform.transforms if inverse else reversed(transform.transforms):
                y, grad_y = self.through(step, y, grad_y, grad_log_det, inverse)
            return y, grad_y
        if _is(transform, Inverse):
            return self.through(transform.transform, y, grad_y, grad_log_det, not inverse)
        if _is(transform, Split):
            (y, rest), (grad_y, grad_rest) = transform.split(y), transform.split(grad_y)
            x, grad_x = self.through(transform.transform, y, grad_y, grad_log_det, inverse)
            return torch.cat([x, rest], 1), torch.cat([grad_x, grad_rest], 1)
        state = self.rng_states.pop()
        parameters = [p for p in transform.parameters() if p.requires_grad]
        with _random_numbers_of(state, y), _running_statistics_kept(transform):
            coupling = _is(transform, Coupling) and type(transform).params is Coupling.params
            step = self.through_coupling if coupling else self.through_any
            return step(transform, parameters, state, y, grad_y, grad_log_det, inverse)

    def through_any(self, transform, parameters, state, y, grad_y, grad_log_det, inverse):
        back, again = transform.inverse, transform
        if inverse:
            back, again = again, back
        with torch.no_grad():
            x = back(y, self.context)[0]
        x = x.detach().requires_grad_()
        _set_rng_state(state, y)
        with torch.enable_grad():
            y, log_det = again(x, self.context)
        (grad_x,) = self.add((y, log_det), (grad_y, grad_log_det), [x], parameters)
        return x.detach(), torch.zeros_like(x) if grad_x is None else grad_x

    def through_coupling(self, transform, parameters, state, y, grad_y, grad_log_det, inverse):
        """The conditioner sees what the coupling does not change, so it runs once."""
        seen = transform.seen(y).detach().requires_grad_()
        with torch.enable_grad():
            params = transform.condition(y, seen, self.context)
        with torch.no_grad():
            x = transform.transform(y, params, inverse=not inverse)[0]
        leaf, x = params.detach().requires_grad_(), x.detach().requires_grad_()
        with torch.enable_grad():
            y, log_det = transform.transform(x, leaf, inverse=inverse)
        grad_x, grad_params = self.add((y, log_det), (grad_y, grad_log_det), [x, leaf], parameters)
        if params.requires_grad and grad_params is not None:
            (grad_seen,) = self.add((params,), (grad_params,), [seen], parameters)
            if grad_seen is not None:
                grad_x = transform.add_seen(grad_x, grad_seen)
        return x.detach(), grad_x

    def add(self, outputs, grads, inputs, parameters):
        """Adds to the gradients of context and parameters, and returns those of `inputs`."""
        others = [*self.wanted, *parameters]
        if self.check:
            _check_leaves(outputs, [*inputs, *others])
        found = _grad(outputs, grads, [*inputs, *others])
        for tensor, grad in zip(others, found[len(inputs) :], strict=True):
            if grad is not None:
                before = self.grads.get(id(tensor))
                self.grads[id(tensor)] = grad if before is None else before + grad
        return found[: len(inputs)]


def _grad(outputs, grads, inputs):
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    outputs, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, inputs, grads, allow_unused=True)


def _check_leaves(outputs, inputs) -> None:
    """Raises RuntimeError for a leaf behind `outputs` that is none of `inputs`: it would get no gradient."""
    known, visited = set(map(id, inputs)), set()
    nodes = [o.grad_fn for o in outputs if o.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if node in visited:
            continue
        visited.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            raise RuntimeError(
                "reversible: expected gradients of the input, the context and the transform's own parameters "
                f"only, got a tensor {tuple(variable.shape)} from elsewhere that requires one, such as a "
                "parameter inside a function that serves as conditioner"
            )
        nodes += [following for following, _ in node.next_functions if following is not None]


def _is(transform, kind) -> bool:
    """Whether both directions are those of `kind`."""
    own = type(transform)
    return isinstance(transform, kind) and own.forward is kind.forward and own.inverse is kind.inverse


def _rng_state(x: Tensor) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if x.device.type != "cpu":
        states.append(torch.get_device_module(x.device).get_rng_state(x.device))
    return states


def _set_rng_state(states: list[Tensor] | None, x: Tensor) -> None:
    if states is not None:
        torch.set_rng_state(states[0])
        if x.device.type != "cpu":
            torch.get_device_module(x.device).set_rng_state(states[1], x.device)


@contextlib.contextmanager
def _random_numbers_of(states: list[Tensor] | None, x: Tensor):
    """Draws what was drawn from there; afterwards the generators are as before."""
    if states is None:
        yield
        return
    now = _rng_state(x)
    _set_rng_state(states, x)
    try:
        yield
    finally:
        _set_rng_state(now, x)


@contextlib.contextmanager
def _running_statistics_kept(transform: nn.Module):
    """A batch counts once in the running statistics of a conditioner."""
    kept = [
        (buffer, buffer.clone())
        for module in transform.modules()
        if isinstance(module, (_BatchNorm, nn.InstanceNorm1d)) and module.training
        for buffer in module.buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
