"""The two terms of improved DDPM's loss."""

import torch

from .. import _check, reference
from .._library import has_kernel, operator
from .._table import COLUMNS
from ..reference.discretized_gaussian_nll import FORMULATIONS
from ._layout import compute_dtype, empty_as
from ._second_order import backward_operator
from .discretized_gaussian_nll import _check_options

_X0_X, _X0_M = COLUMNS.index("x0_x"), COLUMNS.index("x0_m")
_RANGE = slice(COLUMNS.index("log_var_min"), None)


def diffusion_hybrid_loss(
    model_output, x0, x_t, noise, table, timestep, *, num_classes=256, formulation="exact"
):
    """Both terms of the hybrid loss of improved DDPM (Nichol and Dhariwal, 2021, arXiv:2102.09672).

    Args:
        model_output: floating `(B, 2C, *S)`: the predicted noise, then v, the place of the log-variance in
            [log_var_min, log_var_max] of the table, from -1 to 1.
        x0, x_t, noise: floating `(B, C, *S)`: the data in [-1, 1], noised, and the noise.
        table: float64 `(T, 20)`, of the DDPM sampler with a learned range, row t for the step from t to
            t - 1, as `gmfast.diffusion.training_table` gives it. Other tables are an error on the CPU;
            elsewhere nobody waits for a check.
        timestep: int64 `(B,)`, rows of the table. At 0 the second term is the decoder's. Of a row that the
            table does not have the second term is NaN: nobody waits for a check.
        num_classes, formulation: of `discretized_gaussian_nll`.

    Returns:
        `(simple, bound)`, both `(B,)`, float64 if an input but the table is float64, else float32: the mean
        squared error of the noise, and a term of the variational bound in bits per dimension. The loss is
        `simple + 0.001 · T · bound`, averaged, or as the paper scales it.

        Differentiable to any order in `model_output` alone: `simple` in the predicted noise, `bound` in v
        (the gradient of its mean is stopped, as in the paper). All other inputs are constants, as if
        detached. One pass over the inputs forward, one backward.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to (a column of the table at the time steps as `row.NAME`, (B, 1, ...))::

        epsilon, v = model_output.chunk(2, 1)
        simple = (epsilon - noise).square().flatten(1).mean(1)
        mean = row.x * x_t + row.x0 * (row.x0_x * x_t + row.x0_m * epsilon.detach())
        log_var = 0.5 * (row.log_var_max + row.log_var_min) + 0.5 * (row.log_var_max - row.log_var_min) * v
        kl = gaussian_kl(row.x * x_t + row.x0 * x0, row.log_var_min, mean, log_var)
        decoder = discretized_gaussian_nll(x0, mean, 0.5 * log_var)
        bound = torch.where(timestep == 0, decoder, kl).flatten(1).mean(1) / math.log(2)
    """
    for name, tensor in (("model_output", model_output), ("x0", x0), ("x_t", x_t), ("noise", noise)):
        _check.floating(name, tensor)
    _check.tensor("table", table)
    _check.tensor("timestep", timestep)
    if model_output.dim() < 2 or model_output.shape[1] % 2:
        raise ValueError(f"model_output: expected shape (B, 2C, *S), got {tuple(model_output.shape)}")
    batch, channels, *spatial = model_output.shape
    shape = (batch, channels // 2, *spatial)
    for name, tensor in (("x0", x0), ("x_t", x_t), ("noise", noise)):
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if table.dtype != torch.float64:
        raise TypeError(f"table: expected float64, got {str(table.dtype)[6:]}")
    if table.dim() != 2 or table.shape[1] != len(COLUMNS) or table.shape[0] == 0:
        raise ValueError(f"table: expected shape (T, {len(COLUMNS)}), got {tuple(table.shape)}")
    if _check.readable(table):
        first, last = table[0].tolist(), table[-1].tolist()
        if first[_X0_X] < 1 or first[_X0_M] > 0:  # 1/alpha and -sigma/alpha of predicted noise
            raise ValueError("table: expected that of prediction 'epsilon', got another's")
        if first[_X0_X] > last[_X0_X]:
            raise ValueError(
                "table: expected row t for the step from t to t - 1, as of training_table, got the order of "
                "sampling"
            )
        if not any(first[_RANGE] + last[_RANGE]):
            raise ValueError("table: expected that of a learned range, as of training_table, got none")
    if timestep.dtype != torch.int64:
        raise TypeError(f"timestep: expected int64, got {str(timestep.dtype)[6:]}")
    if timestep.shape != (batch,):
        raise ValueError(f"timestep: expected shape {(batch,)}, got {tuple(timestep.shape)}")
    _check_options(num_classes, formulation)
    tensors = (model_output, x0, x_t, noise, table, timestep)
    options = (num_classes, formulation == "exact")
    if not has_kernel(*tensors):
        return _plain(*tensors, *options)
    return _forward(model_output, *(t.detach() for t in tensors[1:]), *options)


def _plain(model_output, x0, x_t, noise, table, timestep, num_classes, exact, *_):
    dtype = compute_dtype(model_output, x0, x_t, noise)
    return reference.diffusion_hybrid_loss(
        *(t.to(dtype) for t in (model_output, x0, x_t, noise)),
        table,
        timestep,
        num_classes=num_classes,
        formulation=FORMULATIONS[not exact],
    )


def _fake(model_output, x0, x_t, noise, table, timestep, num_classes, exact):
    dtype = compute_dtype(model_output, x0, x_t, noise)
    batch = (model_output.shape[0],)
    return model_output.new_empty(batch, dtype=dtype), model_output.new_empty(batch, dtype=dtype)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_classes, ctx.exact = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_simple, grad_bound):
    gradient = None
    if ctx.needs_input_grad[0] and (grad_simple is not None or grad_bound is not None):
        gradient = _gradient(grad_simple, grad_bound, *ctx.saved_tensors, ctx.num_classes, ctx.exact)
    return gradient, *(None,) * 7


def _gradient_fake(grad_simple, grad_bound, model_output, *_):
    return empty_as(model_output, model_output.shape)


_forward = operator("diffusion_hybrid_loss", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator(
    "diffusion_hybrid_loss_backward", _plain, fake=_gradient_fake, num_tensors=5, num_results=2
)
