"""Second derivatives of operations: autograd through the plain PyTorch form.

They are rare (gradient penalties, Hessian-vector products), so they need to be right, not fast.
"""

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
