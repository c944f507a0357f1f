"""Second derivatives of operations: autograd through the plain PyTorch form.

They are rare (gradient penalties, Hessian-vector products), so they need to be right, not fast. What has none
says so (`without_second_derivative`).
"""

from functools import wraps

import torch

from .._library import operator


def backward_operator(name, forward, fake, *, num_tensors=1, num_results=1, at=None):
    """Operator `gmfast::name(*grads, *tensors, *options)`, the gradient of `forward(*tensors, *options)`,
    with a gradient of its own.

    `forward` takes `num_tensors` tensors and gives `num_results` of them (one by itself, several in a tuple).
    There is one of `grads` for each result; None is zero. The operator returns a gradient for each tensor, of
    any content for one that is None; the last tensors may go without. Where the gradient is not taken at
    `tensors` themselves, `at(*tensors, *options)` says where.
    """
    count = num_results + num_tensors

    def setup_context(ctx, inputs, output):
        ctx.options = inputs[count:]
        ctx.save_for_backward(*inputs[:count])
        ctx.set_materialize_grads(False)

    def backward(ctx, *grad_gradients):
        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views, so that what is differentiated is a non-leaf whatever was saved.
            saved = [
                t if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
                for t in ctx.saved_tensors
            ]
            grads, tensors = saved[:num_results], saved[num_results:]
            # Views again: what the others are computed from, `at`, counts for the second derivative only.
            point = tensors if at is None else at(*tensors, *ctx.options)
            point = [t if t is None else t.view_as(t) for t in point]
            results = forward(*point, *ctx.options)
            results = (results,) if num_results == 1 else results
            gradients = _differentiate(results, point, grads, create_graph=True)[: len(grad_gradients)]
            again = _differentiate(gradients, saved, grad_gradients, create_graph=higher)
        return *again, *(None for _ in ctx.options)

    return operator(name, fake=fake, setup_context=setup_context, backward=backward)


def without_second_derivative(name):
    """Decorator of an `autograd.Function`'s `backward`, whose results raise RuntimeError when differentiated.

    Unlike `once_differentiable` also where the incoming gradient is a constant: the results depend on what
    the function saved too. `name` is what the error says has no second derivative.
    """
    message = f"{name}: expected one derivative (once_differentiable), got a second".encode()

    def decorator(backward):
        @wraps(backward)
        def wrapped(ctx, *grads):
            with torch.no_grad():
                results = backward(ctx, *grads)
            present = [r.detach().requires_grad_() for r in results if r is not None]
            if not (torch.is_grad_enabled() and present):
                return results
            failing = torch._C._functions.DelayedError(message, len(present))(*present)
            failing = iter(failing if isinstance(failing, tuple) else (failing,))
            return tuple(None if r is None else next(failing) for r in results)

        return wrapped

    return decorator


def _differentiate(results, tensors, grads, create_graph):
    """The gradient by each tensor; None for those that nothing depends on. Any of all may be None."""
    pairs = [
        (result, grad)
        for result, grad in zip(results, grads, strict=True)
        if result is not None and grad is not None and result.requires_grad
    ]
    present = [t for t in tensors if t is not None]
    if not pairs:
        return [None] * len(tensors)
    results, grads = zip(*pairs, strict=True)
    gradients = iter(
        torch.autograd.grad(results, present, grads, create_graph=create_graph, allow_unused=True)
    )
    return [None if t is None else next(gradients) for t in tensors]
