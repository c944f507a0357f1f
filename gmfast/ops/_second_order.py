"""Second derivatives of operations: autograd through the plain PyTorch form.

They are rare (gradient penalties, Hessian-vector products), so they need to be right, not fast. What has none
says so (`without_second_derivative`).
"""

from functools import wraps

import torch

from .._library import in_functorch, operator


def backward_operator(name, forward, fake, *, num_tensors=1, num_results=1, at=None):
    """Complete the operator `gmfast::name` of a gradient with a gradient of its own.

    `gmfast::name(*grads, *tensors, *options)` is the gradient of `forward(*tensors, *options)`. `forward`
    takes `num_tensors` tensors and gives `num_results` of them (one by itself, several in a tuple). There is
    one of `grads` for each result; None is zero. The operator returns a gradient for each tensor, of any
    content for one that is None; the last tensors may go without. Where the gradient is not taken at
    `tensors` themselves, `at(*tensors, *options)` says where.
    """
    count = num_results + num_tensors

    def setup_context(ctx, inputs, output):
        ctx.options = inputs[count:]
        ctx.save_for_backward(*inputs[:count])
        ctx.set_materialize_grads(False)

    def backward(ctx, *grad_gradients):
        def gradients(*saved):
            grads, tensors = saved[:num_results], saved[num_results:]
            # Views: what the others are computed from, `at`, counts for the second derivative only.
            point = tensors if at is None else at(*tensors, *ctx.options)
            point = [t if t is None else t.view_as(t) for t in point]
            results = forward(*point, *ctx.options)
            results = (results,) if num_results == 1 else results
            return differentiate(results, point, grads, create_graph=True)

        return *pull_back(gradients, ctx.saved_tensors, grad_gradients), *(None for _ in ctx.options)

    return operator(name, fake=fake, setup_context=setup_context, backward=backward)


def without_second_derivative(name, instead):
    """Decorator of an `autograd.Function`'s `backward`, whose results raise RuntimeError when differentiated.

    Unlike `once_differentiable` also where the incoming gradient is a constant: the results depend on what
    the function saved too, of which one must be an output. `name` is what the error says has no second
    derivative, `instead` what has.
    """
    message = (
        f"{name}: expected one derivative (once_differentiable), got a second: {instead} has both".encode()
    )

    def decorator(backward):
        @wraps(backward)
        def wrapped(ctx, *grads):
            with torch.no_grad():
                results = backward(ctx, *grads)
            present = [r.detach().requires_grad_() for r in results if r is not None]
            if not (torch.is_grad_enabled() and present):
                return results
            # A node that depends on what the function does, so that no backward pass leaves it out.
            present += [t for t in ctx.saved_tensors if t is not None and t.requires_grad]
            failing = torch._C._functions.DelayedError(message, len(present))(*present)
            failing = iter(failing if isinstance(failing, tuple) else (failing,))
            return tuple(None if r is None else next(failing) for r in results)

        return wrapped

    return decorator


def pull_back(function, tensors, grads):
    """The gradient by each of `tensors` of what `function(*tensors)` returns, given the gradients of that.

    Differentiable again where gradients are enabled. `function` may itself use `differentiate`; any tensor,
    any of its results and any gradient may be None.
    """
    if in_functorch():
        return _pull_back_in_functorch(function, tensors, grads)
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors = [t if t is None or not t.is_floating_point() else _differentiable(t) for t in tensors]
        results = function(*tensors)
        return differentiate(results[: len(grads)], tensors, grads, create_graph=higher)


def _differentiable(tensor):
    """A tensor that requires a gradient, and is a non-leaf whatever was saved."""
    # What a transform of torch.func saved says so after its end too, but its views do not.
    view = tensor.view_as(tensor)
    return view if view.requires_grad else view.detach().requires_grad_()


def _pull_back_in_functorch(function, tensors, grads):
    """`pull_back` within torch.func, where only another transform makes a tensor require a gradient."""
    leaves = [i for i, t in enumerate(tensors) if t is not None and t.is_floating_point()]
    given = []

    def of_leaves(*values):
        everything = list(tensors)
        for i, value in zip(leaves, values, strict=True):
            everything[i] = value
        with torch.enable_grad():
            results = function(*everything)
        pairs = [
            (result, grad)
            for result, grad in zip(results, grads, strict=False)
            if result is not None and grad is not None
        ]
        given[:] = [grad for _, grad in pairs]
        return tuple(result for result, _ in pairs)

    results, pull = torch.func.vjp(of_leaves, *(tensors[i] for i in leaves))
    if not results:
        return [None] * len(tensors)
    found = dict(zip(leaves, pull(tuple(given)), strict=True))
    return [found.get(i) for i in range(len(tensors))]


def differentiate(results, tensors, grads, create_graph):
    """The gradient by each tensor; None for those that nothing depends on. Any of all may be None."""
    pairs = [
        (result, grad)
        for result, grad in zip(results, grads, strict=True)
        if result is not None and grad is not None and result.requires_grad
    ]
    present = [t for t in tensors if t is not None and t.requires_grad]
    if not pairs:
        return [None] * len(tensors)
    results, grads = zip(*pairs, strict=True)
    gradients = iter(
        torch.autograd.grad(results, present, grads, create_graph=create_graph, allow_unused=True)
    )
    return [next(gradients) if t is not None and t.requires_grad else None for t in tensors]
