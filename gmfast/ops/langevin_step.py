"""A step of Langevin dynamics."""

import math

import torch
from torch import Tensor

from .. import _check, _seed, reference
from .._library import differentiated, has_kernel, operator
from ._layout import compute_dtype, empty_as


def langevin_step(
    x: Tensor,
    score: Tensor,
    *,
    step_size: float | Tensor | None = None,
    snr: float | None = None,
    alpha: float = 1.0,
    temperature: float = 1.0,
    noise: Tensor | None = None,
    seed: int | Tensor | torch.Generator | None = None,
    draw: int = 0,
    return_mean: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Take a step of unadjusted Langevin dynamics: x + ε·score + √(2·temperature·ε)·z, z standard normal.

    With `snr` = r in place of a step size, ε = 2·alpha·(r·‖z‖/‖score‖)² with the samples' norms averaged over
    the batch: the corrector of Song et al. (2021, arXiv:2011.13456). One pass over the data; with `snr` a
    second over the score. Never synchronises with the device.

    Args:
        x: Floating point, shape `(B, *S)`.
        score: Gradient of log p at x, floating point, in the shape of `x`.
        step_size: ε, a non-negative number or a floating point tensor `()` or `(B,)`; excludes `snr`.
        snr: r, a non-negative number; at least one sample's score must not be 0.
        alpha: Factor of ε with `snr`; 1 for variance-exploding processes.
        temperature: Non-negative number; 0 adds no noise.
        noise: z, floating point, in the shape of `x`; else drawn.
        seed: An int, an int64 tensor on the device of `x`, `()` or `(B,)`, or a `torch.Generator`; by default
            drawn from torch's global generator. The noise of sample *i* does not depend on the batch size,
            the number of threads, the memory format or the device; with seeds `(B,)` it is that of sample 0
            of its own seed.
        draw: Index of the draw from the seed, in [0, 2**32), such as 1 + the number of the step.
        return_mean: Whether to also return x + ε·score.

    Returns:
        The new x, or a tuple of it and the mean, in the shape and dtype of `x`. Computed in float32, or in
        float64 where `x`, `score` or `noise` is float64; norms are summed in float64. Where a gradient is
        needed, plain PyTorch computes it.

    Raises:
        ValueError: For shapes and values.
        TypeError: For dtypes.

    Equivalent to::

        noise = torch.randn_like(x)
        if snr is not None:
            norms = [t.flatten(1).norm(dim=1).mean() for t in (noise, score)]
            step_size = 2 * alpha * (snr * norms[0] / norms[1]) ** 2
        mean = x + step_size * score
        x = mean + (2 * temperature * step_size) ** 0.5 * noise
    """
    _check.floating("x", x)
    if x.dim() == 0:
        raise ValueError("x: expected shape (B, *S), got a scalar")
    for name, value in (("score", score), ("noise", noise)):
        if value is None and name == "noise":
            continue
        _check.floating(name, value)
        if value.shape != x.shape:
            raise ValueError(f"{name}: expected shape {tuple(x.shape)}, got {tuple(value.shape)}")
    if (step_size is None) == (snr is None):
        raise ValueError("step_size: expected either this or snr")
    steps = step_size if isinstance(step_size, torch.Tensor) else None
    if steps is not None:
        _check.floating("step_size", steps)
        if steps.dim() and steps.shape != x.shape[:1]:
            raise ValueError(f"step_size: expected shape () or ({x.shape[0]},), got {tuple(steps.shape)}")
        _check.values("step_size", steps, 0, math.inf)
        steps, step = steps.expand(x.shape[0]), 0.0
    else:
        step = snr if step_size is None else step_size
        _check.finite("snr" if step_size is None else "step_size", step, 0)
    _check.finite("alpha", alpha, 0)
    _check.finite("temperature", temperature, 0)
    _check.integer("draw", draw)
    if not 0 <= draw < 2**32:
        raise ValueError(f"draw: expected 0 to 2**32 - 1, got {draw}")
    seed = None if noise is not None else _seed.of_samples(seed, x.shape[0], x.device)
    given = [t for t in (x, score, noise, steps) if t is not None]
    options = (step, snr is not None, alpha, temperature, draw, bool(return_mean), _seed.first())
    if not has_kernel(*given) or differentiated(*given):
        moved, mean = _plain(x, score, noise, seed, steps, *options)
    else:
        flat = x.dim() == 1
        tensors = [t[:, None] if flat and t is not None else t for t in (x, score, noise)]
        numbers = (float(step), snr is not None, float(alpha), float(temperature), *options[4:])
        results = _step(*tensors, seed, steps, *numbers)
        moved, mean = (t[:, 0] if flat and t.dim() > 1 else t for t in results)
    return (moved, mean) if return_mean else moved


def _plain(x, score, noise, seed, steps, step, adaptive, alpha, temperature, draw, want_mean, first):
    dtype = compute_dtype(*(t for t in (x, score, noise) if t is not None))
    with _seed.first_sample(first):  # a gradient may be wanted elsewhere
        results = reference.langevin_step(
            x.to(dtype),
            score.to(dtype),
            step_size=None if adaptive else step if steps is None else steps,
            snr=step if adaptive else None,
            alpha=alpha,
            temperature=temperature,
            noise=noise if noise is None else noise.to(dtype),
            seed=seed,
            draw=draw,
            return_mean=True,
        )
    return [t.to(x.dtype) for t in results]


def _fake(x, score, noise, seed, steps, step, adaptive, alpha, temperature, draw, want_mean, first=0):
    return empty_as(x, x.shape), empty_as(x, x.shape if want_mean else (0,))


_step = operator("langevin_step", fake=_fake)
