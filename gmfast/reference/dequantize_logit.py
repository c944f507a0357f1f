import math

import torch

from . import philox


def dequantize_logit(x, *, num_levels=256, alpha=0.05, seed=None, inverse=False, noise=None, quantize=True):
    """`seed` is a 0-dim int64 tensor; with `noise` it is not used."""
    constant = math.log(1 - 2 * alpha) - math.log(num_levels)
    if inverse:
        log_p, log_q = torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)
        y = (torch.sigmoid(x) - alpha) / (1 - 2 * alpha) * num_levels
        if quantize:
            y = y.floor().clamp(0, num_levels - 1)
        return y, (log_p + log_q - constant).flatten(1).sum(1)
    if noise is None:
        noise = philox.uniform(seed, len(x), (x[0].numel(),), 1, x.dtype, x.device).view(x.shape)
    p = alpha + (1 - 2 * alpha) * (x + noise) / num_levels
    log_p, log_q = torch.log(p), torch.log1p(-p)
    return log_p - log_q, (constant - log_p - log_q).flatten(1).sum(1)
