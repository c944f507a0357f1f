"""Hybrid loss of improved DDPM in plain PyTorch."""

import math

import torch

from .._table import COLUMNS
from .discretized_gaussian_nll import discretized_gaussian_nll
from .gaussian_kl import gaussian_kl


def diffusion_hybrid_loss(
    model_output, x0, x_t, noise, table, timestep, *, num_classes=256, formulation="exact"
):
    """Reference of `gmfast.functional.diffusion_hybrid_loss`."""
    x0, x_t, noise = x0.detach(), x_t.detach(), noise.detach()
    last = len(table) - 1
    rows = table.detach()[timestep.clamp(0, last)].to(x_t.dtype)
    rows = torch.where(((timestep >= 0) & (timestep <= last))[:, None], rows, math.nan)
    column = {n: rows[:, i].reshape(-1, *[1] * (x_t.dim() - 1)) for i, n in enumerate(COLUMNS)}
    epsilon, v = model_output.chunk(2, 1)
    simple = (epsilon - noise).square().flatten(1).mean(1)
    predicted = column["x0_x"] * x_t + column["x0_m"] * epsilon.detach()
    mean = column["x"] * x_t + column["x0"] * predicted
    true_mean = column["x"] * x_t + column["x0"] * x0
    low, high = column["log_var_min"], column["log_var_max"]
    log_var = 0.5 * (high + low) + 0.5 * (high - low) * v
    kl = gaussian_kl(true_mean, low, mean, log_var)
    decoder = discretized_gaussian_nll(
        x0, mean, 0.5 * log_var, num_classes=num_classes, formulation=formulation
    )
    bound = torch.where((timestep == 0).reshape(low.shape), decoder, kl).flatten(1).mean(1) / math.log(2)
    return simple, bound
