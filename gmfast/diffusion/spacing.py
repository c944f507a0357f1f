"""Timestep spacings: which timesteps of a discrete schedule a sampler with fewer steps visits.

Each returns `steps + 1` times from noise to data, the last of them -1. Table 2 of Lin et al. (2024,
arXiv:2305.08891) compares "linspace", "leading" and "trailing".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .schedules import VariancePreservingSchedule


def linspace(schedule: VariancePreservingSchedule, steps: int) -> list[int]:
    """Equally spaced timesteps, including the first and the last."""
    last = len(schedule) - 1
    times = [round(last - last * i / max(steps - 1, 1)) for i in range(steps)]
    return [*times, -1]


def leading(schedule: VariancePreservingSchedule, steps: int) -> list[int]:
    """Multiples of T // steps, which include timestep 0 but not the last one.

    Raises:
        ValueError: If the schedule's `steps_offset` moves the first of them beyond the last timestep.
    """
    ratio, offset = len(schedule) // steps, schedule.steps_offset
    if ratio * (steps - 1) + offset >= len(schedule):
        raise ValueError(
            f"steps: expected fewer, as with steps_offset {offset} the first of them lies beyond the last of "
            f"{len(schedule)} time steps, got {steps}"
        )
    return [ratio * i + offset for i in reversed(range(steps))] + [-1]


def trailing(schedule: VariancePreservingSchedule, steps: int) -> list[int]:
    """Timesteps at a distance of T / steps, counted back from the last one."""
    total = len(schedule)
    return [round(total - total * i / steps) - 1 for i in range(steps)] + [-1]


def lcm(schedule: VariancePreservingSchedule, steps: int, original_steps: int = 50) -> list[int]:
    """Subset of the `original_steps` timesteps at which a latent consistency model was distilled.

    Raises:
        ValueError: If there are fewer of those than `steps`, or more than the schedule has timesteps.
    """
    if steps > original_steps:
        raise ValueError(f"steps: expected at most {original_steps}, those of the distillation, got {steps}")
    ratio = len(schedule) // original_steps
    if ratio == 0:
        raise ValueError(
            f"original_steps: expected at most the {len(schedule)} of the schedule, got {original_steps}"
        )
    original = [ratio * i - 1 for i in range(original_steps, 0, -1)]
    return [original[original_steps * i // steps] for i in range(steps)] + [-1]


def beta(
    schedule: VariancePreservingSchedule, steps: int, alpha: float = 0.6, beta: float = 0.6
) -> list[int]:
    """Timesteps at quantiles of the Beta distribution (Lee et al., 2024, arXiv:2407.12173).

    They are the nearest ones that are all different.
    """
    last = len(schedule) - 1
    times, lowest = [], steps - 1
    for i in range(steps):
        time = round(last * beta_quantile(1 - i / steps, alpha, beta))
        times.append(max(min(time, times[-1] - 1) if times else time, lowest - i))
    return [*times, -1]


def beta_quantile(p: float, a: float, b: float) -> float:
    """Return x at which the cumulative Beta(a, b) is p."""
    if p in (0, 1):
        return float(p)
    total = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    if _beta_integral(0.5, a, b) < p * total * (1 - 1e-12):
        return 1 - beta_quantile(1 - p, b, a)
    low, high = 0.0, 0.5
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_integral(middle, a, b) < p * total else (low, middle)
    return round((low + high) / 2, 12)


def _beta_integral(x: float, a: float, b: float) -> float:
    """∫ s^(a - 1)·(1 - s)^(b - 1) ds from 0 to x, at most ½, by the series of the second factor."""
    term, total = 1.0, 1 / a
    for k in range(1, 60):
        term *= (k - b) / k * x
        total += term / (a + k)
    return x**a * total


def karras(schedule: VariancePreservingSchedule, steps: int, rho: float = 7.0) -> list[float]:
    """Times equally spaced in (sigma/alpha)^(1/ρ) (Karras et al., 2022, arXiv:2206.00364, eq. 5)."""
    return _spaced(schedule, steps, lambda u: u ** (1 / rho), lambda v: v**rho)


def exponential(schedule: VariancePreservingSchedule, steps: int) -> list[float]:
    """Times equally spaced in ln(sigma/alpha)."""
    return _spaced(schedule, steps, math.log, math.exp)


def _spaced(
    schedule: VariancePreservingSchedule,
    steps: int,
    forward: Callable[[float], float],
    inverse: Callable[[float], float],
) -> list[float]:
    """Times equally spaced in `forward(sigma/alpha)`, from the last timestep to timestep 0."""
    last = float(len(schedule) - 1)
    if schedule.level(last).alpha == 0:
        raise ValueError(
            f"spacing: expected one of time steps, as nothing of the data is left at the last of them, got "
            f"{schedule.spacing!r}"
        )
    high, low = forward(schedule.level(last).u), forward(schedule.level(0.0).u)
    between = [high + (low - high) * i / max(steps - 1, 1) for i in range(1, steps - 1)]
    times = [last, *(schedule.level_of(inverse(v)).t for v in between), *([0.0] if steps > 1 else [])]
    return [*times, -1.0]


def evenly_spaced(start: float, end: float, count: int) -> list[float]:
    """`count` equally spaced numbers from `start` to `end`, both included."""
    if count == 1:
        return [start]
    return [start + (end - start) * i / (count - 1) for i in range(count - 1)] + [end]


#: Spacings by the names that `spacing=` takes.
SPACINGS = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "lcm": lcm,
    "beta": beta,
    "karras": karras,
    "exponential": exponential,
}
