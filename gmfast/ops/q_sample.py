"""Forward diffusion: noised data and the training target."""

import math

import torch
from torch import Tensor

from .. import _check, _seed, reference
from .._library import has_kernel, operator
from ._layout import compute_dtype, empty_as
from ._second_order import backward_operator

_NONE, _EPSILON, _VELOCITY, _FLOW = range(4)
_TARGETS = {None: _NONE, "epsilon": _EPSILON, "x0": _NONE, "v": _VELOCITY, "flow": _FLOW}


def q_sample(
    x: Tensor,
    alpha: float | Tensor,
    sigma: float | Tensor,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | torch.Generator | None = None,
    target: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw x_t = alpha·x + sigma·z from q(x_t | x_0), z standard normal, and optionally a training target.

    One pass over the data, which draws the noise as well.

    Args:
        x: Data, floating point, shape `(B, *S)`.
        alpha: Signal level: a number, or a floating point tensor `()`, `(B,)` or `(B, 1, ..., 1)`.
        sigma: Noise level, as `alpha`.
        noise: z, floating point, in the shape of `x`; else drawn.
        seed: An int, an int64 tensor on the device of `x`, `()` or `(B,)`, or a `torch.Generator`; by default
            drawn from torch's global generator. The noise of sample *i* is that of `standard_normal`,
            independent of the batch size, the number of threads, the memory format and the device; with seeds
            `(B,)` that of sample 0 of its own seed.
        target: "epsilon" (z), "x0" (x), "v" (alpha·z - sigma·x: Salimans and Ho, 2022, arXiv:2202.00512) or
            "flow" (z - x: Lipman et al., 2023, arXiv:2210.02747); None for the noised data alone.

    Returns:
        `x_t`, or `(x_t, target)`, in the shape and dtype of `x`. A target that is an input of that dtype, x0
        or given noise, is that tensor itself. Computed in float32, or in float64 where `x` or `noise` is
        float64. Differentiable to any order in `x`, `alpha`, `sigma` and `noise`.

    Raises:
        ValueError: For shapes and values.
        TypeError: For dtypes.

    Equivalent to::

        noise = torch.randn_like(x)
        alpha, sigma = (v.view(-1, *[1] * (x.dim() - 1)) for v in (alpha, sigma))
        x_t = alpha * x + sigma * noise
        target = {"epsilon": noise, "x0": x, "v": alpha * noise - sigma * x, "flow": noise - x}[target]
    """
    _check.floating("x", x)
    if x.dim() == 0:
        raise ValueError("x: expected shape (B, *S), got a scalar")
    if target is not None and not (isinstance(target, str) and target in _TARGETS):
        _check.one_of("target", target, _TARGETS)
    alpha, alphas = _coefficient("alpha", alpha, x)
    sigma, sigmas = _coefficient("sigma", sigma, x)
    if noise is not None:
        _check.floating("noise", noise)
        if noise.shape != x.shape:
            raise ValueError(f"noise: expected shape {tuple(x.shape)}, got {tuple(noise.shape)}")
        seed = None
    else:
        seed = _seed.of_samples(seed, x.shape[0], x.device)
    made = _TARGETS[target] if noise is None or target != "epsilon" else _NONE
    given = [t for t in (x, noise, alphas, sigmas) if t is not None]
    call = _forward if has_kernel(*given) else _plain
    options = (alpha, sigma, made, _seed.first())
    if x.dim() > 1:
        noised, result = call(x, noise, alphas, sigmas, seed, *options)
    else:
        noise_in = noise if noise is None else noise[:, None]
        results = call(x[:, None], noise_in, alphas, sigmas, seed, *options)
        noised, result = (t[:, 0] if t.dim() > 1 else t for t in results)
    if target is None:
        return noised
    if made == _NONE:
        result = x if target == "x0" else noise.to(x.dtype)
    return noised, result


def _coefficient(name, value, x):
    """Split a coefficient into a number and, if it is a tensor, its `(B,)` form, else None."""
    if not isinstance(value, torch.Tensor):
        _check.number(name, value, -math.inf, math.inf)
        return float(value), None
    _check.floating(name, value)
    if value.dim() == 0:
        return 0.0, value.expand(x.shape[0])
    batch = x.shape[:1]
    if value.shape == (*batch, *[1] * (x.dim() - 1)):
        return 0.0, value.reshape(batch)
    if value.shape != batch:
        ones = ", 1" * (x.dim() - 1)
        also = f" or ({batch[0]}{ones})" if ones else ""
        raise ValueError(f"{name}: expected shape ({batch[0]},){also}, got {tuple(value.shape)}")
    return 0.0, value


def _computed(x, noise):
    return compute_dtype(x) if noise is None else compute_dtype(x, noise)


_NAMES = {_NONE: None, _EPSILON: "epsilon", _VELOCITY: "v", _FLOW: "flow"}


def _plain(x, noise, alphas, sigmas, seed, alpha, sigma, target, first, *_):
    dtype = _computed(x, noise)
    with _seed.first_sample(first):  # a gradient may be wanted elsewhere
        results = reference.q_sample(
            x.to(dtype),
            alpha if alphas is None else alphas,
            sigma if sigmas is None else sigmas,
            noise=noise if noise is None else noise.to(dtype),
            seed=seed,
            target=_NAMES[target],
        )
    noised, result = results if target else (results, x.new_empty(0))
    return noised.to(x.dtype), result.to(x.dtype)


def _fake(x, noise, alphas, sigmas, seed, alpha, sigma, target, first=0):
    return empty_as(x, x.shape), empty_as(x, x.shape if target else (0,))


def _setup_context(ctx, inputs, output):
    ctx.options = inputs[5:]
    ctx.save_for_backward(*inputs[:5])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_noised, grad_target):
    x, noise, alphas, sigmas, seed = ctx.saved_tensors
    needs = ctx.needs_input_grad[:4]
    *_, target, first = ctx.options
    if target == _NONE:
        grad_target = None
    if grad_noised is None and grad_target is None:
        return (None,) * 9
    grads = [None] * 4
    if needs[0] or needs[1]:
        tensors = (x, noise, alphas, sigmas)
        by_x, by_noise = _gradient(grad_noised, grad_target, *tensors, seed, *ctx.options, *needs[:2])
        grads[:2] = by_x if needs[0] else None, by_noise if needs[1] else None
    if needs[2] or needs[3]:
        drawn = (seed, target, first)
        grads[2:] = _by_coefficients(grad_noised, grad_target, x, noise, alphas, sigmas, *drawn)
    return *grads, *(None,) * 5


def _by_coefficients(grad_noised, grad_target, x, noise, alphas, sigmas, seed, target, first):
    """Gradients of alpha and sigma, as learned schedules need; in plain PyTorch."""
    dtype = _computed(x, noise)
    if noise is None:
        zero = torch.zeros_like(x, dtype=dtype)
        noise, _ = _forward(zero, None, None, None, seed, 0.0, 1.0, _NONE, first)
    x, noise = x.to(dtype), noise.to(dtype)

    def gradient(coefficients, of_noised, of_target):
        if coefficients is None:
            return None
        total = 0
        if grad_noised is not None:
            total = grad_noised.to(dtype) * of_noised
        if grad_target is not None and target == _VELOCITY:
            total = total + grad_target.to(dtype) * of_target
        if not isinstance(total, torch.Tensor):
            return torch.zeros_like(coefficients)
        return total.flatten(1).sum(1).to(coefficients.dtype)

    return gradient(alphas, x, noise), gradient(sigmas, noise, -x)


def _gradient_fake(grad_noised, grad_target, x, noise, *rest):
    want_x, want_noise = rest[-2:]
    like = x if noise is None else noise
    return (
        empty_as(x, x.shape if want_x else (0,)),
        empty_as(x, x.shape if want_noise and noise is not None else (0,), like.dtype),
    )


_forward = operator("q_sample", fake=_fake, setup_context=_setup_context, backward=_backward)
_gradient = backward_operator("q_sample_backward", _plain, fake=_gradient_fake, num_tensors=4, num_results=2)
