"""A step of Langevin dynamics, in plain PyTorch."""

import torch

from .. import _philox, _seed


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
    """Reference of `gmfast.functional.langevin_step`.

    `step_size`: a number or (B,), `seed`: an int64 tensor, () or (B,).
    """
    if noise is None:
        noise = _philox.array_normal(seed, tuple(x.shape), x.dtype, x.device, draw, _seed.first())
    if snr is not None:
        norms = [v.reshape(x.shape[0], x[:1].numel()).norm(dim=1).mean() for v in (noise, score)]
        step_size = 2 * alpha * (snr * norms[0] / norms[1]).square()
    if isinstance(step_size, torch.Tensor) and step_size.dim():
        step_size = step_size.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    mean = x + step_size * score
    spread = (2 * temperature * torch.as_tensor(step_size, dtype=x.dtype, device=x.device)).sqrt()
    moved = mean + spread * noise
    return (moved, mean) if return_mean else moved
