"""A step of Langevin dynamics."""

import math

import torch

from .. import _check, _seed, reference
from .._library import differentiated, has_kernel, operator
from ._layout import compute_dtype, empty_as


def langevin_step(
    x,
    score,
    *,
    step_size=None,
    snr=None,
    alpha=1.0,
    temperature=1.0,
    noise=None,
    seed=None,
    draw=0,
    return_mean=False,
):
    """x + ε·score + √(2·temperature·ε)·z: a step of unadjusted Langevin dynamics, with standard normal z.

    With `snr` = r instead of a step size, ε = 2·alpha·(r·‖z‖/‖score‖)², the norms those of samples, averaged
    over the batch: the corrector of Song et al. (2021, arXiv:2011.13456). One pass over the data; with `snr`
    a second over the score. Nobody waits for the device.

    Args:
        x, score: floating, `(B, *S)`; the score is the gradient of log p.
        step_size: ε, a number, a floating tensor `()` or `(B,)`, not negative; either this or `snr`.
        snr: r, a number, not negative. The score of some sample must not be 0.
        alpha: a number, 1 for variance-exploding processes.
        temperature: a number, not negative; 0 leaves the noise out.
        noise: floating z, in the shape of `x`; else drawn.
        seed: an int, an int64 tensor on the device of `x`, `()` or `(B,)`, or a `torch.Generator`; None draws
            one from torch's. The noise of sample *i* is the same whatever the batch size, the threads, the
            memory format and the device; with seeds `(B,)` it is that of sample 0 of its own seed.
        draw: an int in [0, 2**32): which of the seed's noises, such as 1 + the number of the step.
        return_mean: also return x + ε·score.

    Returns:
        The new x, or a tuple of it and the mean, in the shape and dtype of `x`. Computed in float32, in
        float64 where `x`, `score` or `noise` is float64; norms are summed in float64. Where a gradient is
        wanted, plain PyTorch computes it.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

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
    options = (step, snr is not None, alpha, temperature, draw, bool(return_mean))
    if not has_kernel(*given) or differentiated(*given):
        moved, mean = _plain(x, score, noise, seed, steps, *options)
    else:
        flat = x.dim() == 1
        tensors = [t[:, None] if flat and t is not None else t for t in (x, score, noise)]
        numbers = (float(step), snr is not None, float(alpha), float(temperature), draw, bool(return_mean))
        results = _step(*tensors, seed, steps, *numbers)
        moved, mean = (t[:, 0] if flat and t.dim() > 1 else t for t in results)
    return (moved, mean) if return_mean else moved


def _plain(x, score, noise, seed, steps, step, adaptive, alpha, temperature, draw, want_mean):
    dtype = compute_dtype(*(t for t in (x, score, noise) if t is not None))
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


def _fake(x, score, noise, seed, steps, step, adaptive, alpha, temperature, draw, want_mean):
    return empty_as(x, x.shape), empty_as(x, x.shape if want_mean else (0,))


_step = operator("langevin_step", fake=_fake)
