"""One step of any linear diffusion sampler."""

import torch

from .. import reference
from . import _check, _seed


def diffusion_step(
    x,
    model_output,
    table,
    *,
    step=0,
    unconditional=None,
    guidance=1.0,
    guidance_rescale=0.0,
    variance=None,
    clip=None,
    threshold=None,
    threshold_max=1.0,
    history=(),
    noise=None,
    seed=None,
    x0=False,
    kept=False,
    out=None,
):
    """One step of any linear sampler of a diffusion, score or flow model, in one pass.

    With m the model's output (guided: `unconditional` + g·(m - `unconditional`)) and one row of the table::

        x0 = f(x0_x·x + x0_m·m)                       # f: the identity, a clamp or dynamic thresholding
        result = x·X + m·M + x0·E + Σ h_k·C_k + z·D

    Args:
        x: floating, `(B, *S)`.
        model_output: in the shape of `x`: of whatever the table's columns `x0_x` and `x0_m` turn into x0.
        table: float64 `(steps, 20)` on the device of `x`, columns as `gmfast.diffusion.COLUMNS`.
        step: the row: an int; an int64 tensor on the device, which nobody waits for, `()` or, for a row for
            each sample, `(B,)`.
        unconditional: the model's output without the condition, for classifier-free guidance (Ho and
            Salimans, 2022, arXiv:2207.12598).
        guidance: g.
        guidance_rescale: φ of Lin et al. (2024, arXiv:2305.08891), 0 to 1: the share of the guided output that
            is rescaled to the standard deviation of `model_output`, for each sample.
        variance: v of a learned range (Nichol and Dhariwal, 2021, arXiv:2102.09672), in the shape of `x`: the
            noise's coefficient is multiplied by exp(¼(max + min) + ¼(max - min)·v) of the columns
            `log_var_min` and `log_var_max`.
        clip: f clamps to [-clip, clip].
        threshold: f clamps to ±s and divides by s, with s the quantile of |x0| of each sample, at least 1 and
            at most `threshold_max` (Saharia et al., "Imagen", 2022, arXiv:2205.11487).
        history: up to four tensors in the shape of `x`, for `h1` ... `h4`.
        noise: z, in the shape of `x`; else it is drawn, where a row's `noise` is not 0.
        seed: an int, an int64 tensor on the device, `()` or `(B,)` (one for each sample), or a
            `torch.Generator`; None: no noise unless given. Sample *i* and step *k* have the same noise
            whatever the batch size, the threads and the device.
        x0, kept: also return x0, or a second sum with the table's columns `kept_...`.
        out: where to write the result, such as `x` itself.

    Returns:
        The result, in the shape and dtype of `x`; or a tuple with x0 and the kept sum behind it, where asked
        for. Computed in float32 (float64 where an input is float64), rounded once. Where a gradient is wanted,
        plain PyTorch computes it.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.
    """
    _check.floating("x", x)
    if seed is not None and not (isinstance(seed, torch.Tensor) and seed.dim()):
        seed = _seed.as_tensor(seed, x.device)
    result = reference.diffusion_step(
        x,
        model_output,
        table,
        step=step,
        unconditional=unconditional,
        guidance=guidance,
        guidance_rescale=guidance_rescale,
        variance=variance,
        clip=clip,
        threshold=threshold,
        threshold_max=threshold_max,
        history=history,
        noise=noise,
        seed=seed,
        x0=x0,
        kept=kept,
    )
    if out is None:
        return result
    first, *others = result if isinstance(result, tuple) else (result,)
    out.copy_(first)
    return (out, *others) if others else out
