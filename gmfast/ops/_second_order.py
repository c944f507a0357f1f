"""Second derivatives of pointwise operations: autograd through the plain PyTorch form.

They are rare (gradient penalties, Hessian-vector products), so they need to be right, not fast.
"""

import torch

from .._library import operator


def backward_operator(name, forward, fake):
    """Operator `gmfast::name(grad, x, dim)`, which is the gradient of `forward(x, dim)`, with its own."""

    def setup_context(ctx, inputs, output):
        grad, x, ctx.dim = inputs
        ctx.save_for_backward(grad, x)

    def backward(ctx, grad_grad_x):
        grad, x = ctx.saved_tensors
        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views, so that what is differentiated is a non-leaf whatever was saved.
            grad, x = (t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (grad, x))
            (grad_x,) = torch.autograd.grad(forward(x, dim=ctx.dim), x, grad, create_graph=True)
            again = torch.autograd.grad(grad_x, (grad, x), grad_grad_x, create_graph=higher)
        return *again, None

    return operator(name, fake=fake, setup_context=setup_context, backward=backward)
