"""One step of any linear diffusion sampler in plain PyTorch: `gmfast.functional.diffusion_step` says what."""

import torch

from .. import _philox, _seed
from .._table import COLUMNS


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
    threshold_max=None,
    history=(),
    noise=None,
    seed=None,
    x0=False,
    kept=False,
    out=None,
):
    """`seed` is an int64 tensor, () or (B,); `step` an int, or an int64 tensor, () or (B,)."""
    if isinstance(step, torch.Tensor):
        step = step.clamp(0, table.shape[0] - 1)
    rows = table[step].to(x.dtype)  # (20,) or (B, 20)
    column = {
        name: rows[..., i].reshape(-1, *[1] * (x.dim() - 1)) if rows.dim() > 1 else rows[i]
        for i, name in enumerate(COLUMNS)
    }
    m = model_output
    if unconditional is not None:
        m = unconditional + guidance * (model_output - unconditional)
        if guidance_rescale:
            std, guided_std = _std(model_output), _std(m)
            varies = guided_std > 0  # else there is nothing to rescale
            ratio = torch.where(varies, std, 1.0) / torch.where(varies, guided_std, 1.0)
            m = guidance_rescale * ratio * m + (1 - guidance_rescale) * m
    predicted = column["x0_x"] * x + column["x0_m"] * m
    if threshold is not None and x.numel():
        largest = torch.quantile(_flat(predicted.abs()), threshold, dim=1).clamp(1, threshold_max)
        largest = largest.reshape(-1, *[1] * (x.dim() - 1))
        predicted = predicted.clamp(-largest, largest) / largest
    elif clip is not None:
        predicted = predicted.clamp(-clip, clip)
    if noise is None and seed is not None:
        # Draw 0 is the noise that a sampler begins with.
        noise = _philox.array_normal(seed, tuple(x.shape), x.dtype, x.device, step + 1, _seed.first())
    spread = 1
    if variance is not None:
        low, high = column["log_var_min"], column["log_var_max"]
        spread = torch.exp(0.25 * (high + low) + 0.25 * (high - low) * variance)

    def result(prefix):
        total = column[prefix + "x"] * x + column[prefix + "m"] * m + column[prefix + "x0"] * predicted
        for i, h in enumerate(history, 1):
            total = total + column[f"{prefix}h{i}"] * h
        if noise is not None:
            total = total + column[prefix + "noise"] * spread * noise
        return total

    results = [result("")]
    if x0:
        results.append(predicted)
    if kept:
        results.append(result("kept_"))
    if out is not None:
        results = [out.copy_(results[0]), *results[1:]]
    return results[0] if len(results) == 1 else tuple(results)


def _std(m):
    """Per-sample standard deviation; only ratios of two are used, in which the correction cancels."""
    return _flat(m).std(1, correction=0).reshape(-1, *[1] * (m.dim() - 1))


def _flat(m):
    return m.flatten(1) if m.dim() > 1 else m[:, None]
