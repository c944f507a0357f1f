"""Log-density by an ODE: continuous normalizing flows (Chen et al., 2018, https://arxiv.org/abs/1806.07366)."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ... import _check
from ... import functional as GF

DIVERGENCES = ("hutchinson", "exact")

#: Velocity dx/dt, `(B, *S)`, of x `(B, *S)` and the time `(B,)`.
Velocity = Callable[[Tensor, Tensor], Tensor]
#: Log-density, `(B,)`, of x `(B, *S)`.
LogDensity = Callable[[Tensor], Tensor]


def ode_log_prob(
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    base_log_prob: LogDensity,
    *,
    divergence: str = "hutchinson",
    seed: int | Tensor | torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-density, `(B,)`, in nats, of the data that dx/dt = velocity(x, t) carries to a base distribution.

    log p(x) = base_log_prob(x at the last time) + ∫ div velocity dt, both integrated by the classical
    Runge-Kutta method of order 4. The error falls as N⁻⁴ for N steps and smooth velocities: 16/15 of the
    difference that doubling N makes estimates it.

    Args:
        velocity: Function of x `(B, *S)` and the time `(B,)`.
        x: Samples at the first time, `(B, *S)`.
        times: Ends of the steps, `(N + 1,)`.
        base_log_prob: Log-density of the base distribution, `(B,)`.
        divergence: "exact": a gradient for each element of a sample; "hutchinson": an unbiased estimate from
            random signs, the same at all times (Grathwohl et al., 2019, arXiv:1810.01367).
        seed: Seed of the signs: an int, an int64 tensor, or a `torch.Generator`.

    Returns:
        The log-density, and x at the last time; neither has a gradient.
    """
    _check.one_of("divergence", divergence, DIVERGENCES)
    times = times.tolist()
    signs = None
    if divergence == "hutchinson":
        signs = GF.standard_normal(x.shape, seed=seed, dtype=x.dtype, device=x.device).sign()

    def slope(x, time):
        """Velocity and divergence at one time."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, x.new_full((x.shape[0],), time))
            if signs is not None:
                (grad,) = torch.autograd.grad((v * signs).sum(), x)
                return v.detach(), (grad * signs).flatten(1).sum(1)
            total = x.new_zeros(x.shape[0])
            flat = v.flatten(1).sum(0)
            for i, one in enumerate(flat):
                (grad,) = torch.autograd.grad(one, x, retain_graph=i + 1 < len(flat))
                total += grad.flatten(1)[:, i]
            return v.detach(), total

    integral = x.new_zeros(x.shape[0], dtype=torch.float64)
    x = x.detach()
    for start, end in pairwise(times):
        h = end - start
        v1, d1 = slope(x, start)
        v2, d2 = slope(x + h / 2 * v1, start + h / 2)
        v3, d3 = slope(x + h / 2 * v2, start + h / 2)
        v4, d4 = slope(x + h * v3, end)
        x = x + h / 6 * (v1 + 2 * (v2 + v3) + v4)
        integral += h / 6 * (d1 + 2 * (d2 + d3) + d4)
    return (base_log_prob(x) + integral).to(x.dtype), x
