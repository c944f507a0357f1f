"""Backpropagation without stored activations: inputs are recomputed from outputs by the inverse.

`run` works on any transform with `forward` and `inverse`. A transform's class may define methods that it uses
besides; each counts as long as no subclass overrides `forward` or `inverse` without it:

- `walk(visit, x, inverse) -> (y, log_det)` and `rewind(visit, y, grad, inverse) -> (x, grad_x)`, of a
  transform made of others: apply `visit(part, x, inverse)` to its parts from input to output, and
  `visit(part, y, grad, inverse)` from output to input.
- `backpropagate(y, grad_y, grad_log_det, context, inverse, differentiate) -> (x, grad_x)`, of a transform
  that has a cheaper way than its inverse followed by its forward pass: the input and the gradient there, from
  the output and the gradients there; or NotImplemented. `differentiate(outputs, grads, inputs)` returns
  gradients of `inputs` (None for those not involved) and accumulates those of context and parameters.
- `needs_first_batch() -> bool`, of a transform that initialises its parameters from a batch and does so
  through `inverse` only where gradients are enabled: whether it is yet to do so.
"""

import contextlib
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..ops._second_order import without_second_derivative


def apply(transform: nn.Module, x: Tensor, inverse: bool, context=None) -> tuple[Tensor, Tensor]:
    """Apply a transform in the given direction."""
    return (transform.inverse if inverse else transform)(x, context)


def run(transform: nn.Module, x: Tensor, context=None, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Apply a transform, for whose gradients autograd keeps nothing but the output.

    Gradients reach `x`, the tensors in `context` (any nesting of tuples, lists and dicts) and the parameters
    of `transform`. The docstring of `gmfast.nn.Sequential` states costs and limits.

    Args:
        transform: made of others: it has `walk` and `rewind`.
        x: its input, or of its inverse.
        context: passed to every transform.
        inverse: whether to apply the inverse.

    Returns:
        What the transform returns.

    Raises:
        RuntimeError: in backward, if the parameters have changed since, or a tensor from elsewhere requires
            a gradient.
    """
    tensors, spec = tree_flatten(context)
    differentiable = [isinstance(t, Tensor) and t.requires_grad for t in tensors]
    parameters = [p for p in transform.parameters() if p.requires_grad]
    if not (torch.is_grad_enabled() and (x.requires_grad or any(differentiable) or parameters)):
        return transform.walk(partial(apply, context=context), x, inverse)
    call = _Call(transform, inverse, tensors, spec, differentiable, parameters, x.device.type)
    # Parameters are inputs of the function, so that DistributedDataParallel's hooks see their gradients.
    wanted = [t for t, needed in zip(tensors, differentiable, strict=True) if needed]
    return _Run.apply(call, x, *wanted, *parameters)


class _Run(torch.autograd.Function):
    """One pass through a transform made of others.

    Forward stores the output, and the state of the random number generators before each part that draws;
    backward visits the parts from the last to the first.
    """

    @staticmethod
    def forward(ctx, call, x, *inputs):
        y, log_det = call.forward(x)
        ctx.call = call
        ctx.save_for_backward(y, *inputs[: len(inputs) - len(call.parameters)])
        return y, log_det

    @staticmethod
    @without_second_derivative("reversible", "reversible=False")
    def backward(ctx, grad_y, grad_log_det):
        y, *wanted = ctx.saved_tensors
        return None, *ctx.call.backward(y, wanted, grad_y, grad_log_det, ctx.needs_input_grad[1])


class _Call:
    """The constants of one call of `run`, and both passes.

    Args:
        transform, inverse: as of `run`.
        tensors, spec: the flattened context.
        differentiable: for each of `tensors`, whether a gradient is wanted.
        parameters: those of the transform that require a gradient.
        device_type: of the input.
    """

    def __init__(self, transform, inverse, tensors, spec, differentiable, parameters, device_type):
        self.transform, self.inverse = transform, inverse
        self.constants = [None if needed else t for t, needed in zip(tensors, differentiable, strict=True)]
        self.spec, self.differentiable, self.parameters = spec, differentiable, parameters
        self.autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in dict.fromkeys([device_type, "cpu"])
            if torch.amp.is_autocast_available(kind)
        }
        self.rng_states = []  # one entry for each part, in the order of the forward pass
        self.first_batch = any(map(_needs_first_batch, transform.modules()))
        self.context = tree_unflatten(tensors, spec)

    def forward(self, x):
        """Compute the output and the log-determinant."""
        with self.settings(), torch.set_grad_enabled(self.first_batch):
            y, log_det = self.visit(self.transform, x.detach(), self.inverse)
        self.versions = [p._version for p in self.parameters]  # after a first batch
        del self.context  # its differentiable tensors are saved for backward
        return y.detach(), log_det.detach()

    def visit(self, transform, x, inverse):
        """Apply a transform, part by part if it is made of others."""
        walk = _method(transform, "walk")
        if walk is not None:
            return walk(self.visit, x, inverse)
        before = _rng_state(x)
        y, log_det = apply(transform, x, inverse, self.context)
        after = _rng_state(x)
        drew = any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        self.rng_states.append(before if drew else None)
        return y.detach(), log_det.detach()

    def backward(self, y, wanted, grad_y, grad_log_det, needs_x):
        """Compute the gradients of x (None unless `needs_x`), of the context's tensors and the parameters."""
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
                grad_log_det,
                check=not getattr(self.transform, "_reversible_checked", False),
            )
            grad_x = backward.visit(self.transform, y, grad_y, self.inverse)[1]
        self.transform._reversible_checked = True
        found = (backward.grads.get(id(t)) for t in [*backward.wanted, *self.parameters])
        return grad_x if needs_x else None, *found

    @contextlib.contextmanager
    def settings(self):
        """Restore the call's autocast without its cache, which holds weights cast without gradients."""
        with contextlib.ExitStack() as stack:
            for kind, (enabled, dtype) in self.autocast.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield


class _Backward:
    """One backward pass.

    Args:
        context: with leaves in the place of its differentiable tensors.
        wanted: those leaves.
        rng_states: of the forward pass.
        grad_log_det: the gradient of the log-determinant, which is that of each part's.
        check: whether to look for tensors from elsewhere that require a gradient.
    """

    def __init__(self, context, wanted, rng_states, grad_log_det, check):
        self.context, self.wanted, self.rng_states = context, wanted, rng_states
        self.grad_log_det, self.check = grad_log_det, check
        self.grads = {}  # of the leaves and the parameters, by their id

    def visit(self, transform, y, grad_y, inverse):
        """Compute a transform's input and the gradient there, from its output and the gradient there."""
        rewind = _method(transform, "rewind")
        if rewind is not None:
            return rewind(self.visit, y, grad_y, inverse)
        state = self.rng_states.pop()
        parameters = [p for p in transform.parameters() if p.requires_grad]
        with _random_numbers_of(state, y), _running_statistics_kept(transform):
            differentiate = partial(self.differentiate, parameters=parameters)
            backpropagate = _method(transform, "backpropagate")
            if backpropagate is not None:
                found = backpropagate(y, grad_y, self.grad_log_det, self.context, inverse, differentiate)
                if found is not NotImplemented:
                    return found
            return self.backpropagate(transform, state, y, grad_y, inverse, differentiate)

    def backpropagate(self, transform, state, y, grad_y, inverse, differentiate):
        """Recompute the input by the inverse, then differentiate the transform there."""
        with torch.no_grad():
            x = apply(transform, y, not inverse, self.context)[0]
        x = x.detach().requires_grad_()
        _set_rng_state(state, y)
        with torch.enable_grad():
            y, log_det = apply(transform, x, inverse, self.context)
        (grad_x,) = differentiate((y, log_det), (grad_y, self.grad_log_det), [x])
        return x.detach(), torch.zeros_like(x) if grad_x is None else grad_x

    def differentiate(self, outputs, grads, inputs, parameters):
        """Return gradients of `inputs`; accumulate those of the context and the parameters."""
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
    """Raise RuntimeError if `outputs` depend on a leaf that is not in `inputs`: it would get no gradient."""
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


def _method(transform, name):
    """Return the method `name` if the class that defines it has the forward and inverse in use, else None."""
    own = type(transform)
    for kind in own.__mro__:
        if name in vars(kind):
            same = all(getattr(own, f) is getattr(kind, f, None) for f in ("forward", "inverse"))
            return getattr(transform, name) if same else None
    return None


def _needs_first_batch(module):
    method = getattr(type(module), "needs_first_batch", None)
    return method is not None and method(module)


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
    """Draw the random numbers that follow `states`; afterwards restore the generators."""
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
    """Restore the running statistics of a conditioner, so that each batch counts once."""
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
