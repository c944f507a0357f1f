"""From bytes to logits, the noise drawn on the way, and back."""

from functools import partial

import torch

import gmfast.functional as GF
from gmfast.benchmark import Case, Target


def inputs(case, device):
    return (torch.randint(256, case.shape, device=device, dtype=torch.uint8),)


def textbook(x, num_levels=256, alpha=0.05, noise=None):
    """As flows have it, with torch's noise."""
    noise = torch.rand(x.shape, device=x.device) if noise is None else noise
    p = alpha + (1 - 2 * alpha) * (x + noise) / num_levels
    log_p, log_q = torch.log(p), torch.log1p(-p)
    log_det = -log_p - log_q + torch.log(torch.tensor((1 - 2 * alpha) / num_levels))
    return log_p - log_q, log_det.flatten(1).sum(1)


dequantize = partial(
    Case,
    operation="dequantize_logit",
    inputs=inputs,
    gmfast=partial(GF.dequantize_logit, seed=1),
    baselines={"textbook": textbook},
)

CASES = [
    dequantize(shape=(64, 3, 32, 32), targets={"cpu": Target(compile=1.0)}),
    dequantize(shape=(16, 3, 64, 64)),
    dequantize(shape=(256, 3, 64, 64), devices=("cuda",), targets={"cuda": Target(share=0.8)}),
]
