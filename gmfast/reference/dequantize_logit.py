"""Dequantization and logit in plain PyTorch."""

import math

import torch

from .. import _philox, _seed


def dequantize_logit(x, *, num_levels=256, alpha=0.05, seed=None, inverse=False, noise=None, quantize=True):
    """Reference of `gmfast.functional.dequantize_logit`.

    `seed` is a 0-dim int64 tensor, not used with `noise`.
    """
    constant = math.log1p(-2 * alpha) - math.log(num_levels)
    if inverse:
        log_p, log_q = torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)
        y = (torch.sigmoid(x) - alpha) / (1 - 2 * alpha) * num_levels
        if quantize:
            y = y.floor().clamp(0, num_levels - 1)
        return y, (log_p + log_q - constant).flatten(1).sum(1)
    if noise is None:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        # Away from the edges of a level, so that the level can be recovered from the rounded logit.
        margin = min(0.25, num_levels * (2.0**-50 if dtype == torch.float64 else 2.0**-21))
        noise = _philox.array_uniform(seed, tuple(x.shape), dtype, x.device, _seed.first()).clamp(
            margin, 1 - margin
        )
    x = x.to(torch.promote_types(x.dtype, noise.dtype))
    # Both probabilities separately: 1 - p would cancel.
    least = torch.finfo(x.dtype).tiny
    p = (alpha + (1 - 2 * alpha) / num_levels * (x + noise)).clamp(min=least)
    q = (alpha + (1 - 2 * alpha) / num_levels * ((num_levels - 1 - x) + (1 - noise))).clamp(min=least)
    log_p, log_q = torch.log(p), torch.log(q)
    return log_p - log_q, (constant - log_p - log_q).flatten(1).sum(1)
