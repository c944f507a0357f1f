"""Which of a discrete schedule's time steps a sampler with fewer steps visits: lists of steps + 1 times, from
noise to data, the last of them -1. Table 2 of Lin et al. (2024, arXiv:2305.08891) compares the first
three."""

import math


def linspace(schedule, steps):
    """Equally spaced, the first and the last time step among them."""
    last = len(schedule) - 1
    times = [round(last - last * i / max(steps - 1, 1)) for i in range(steps)]
    return [*times, -1]


def leading(schedule, steps):
    """Multiples of T // steps: time step 0 is among them, the last one is not."""
    ratio, offset = len(schedule) // steps, schedule.steps_offset
    if ratio * (steps - 1) + offset >= len(schedule):
        raise ValueError(
            f"steps: expected fewer, as with steps_offset {offset} the first of them lies beyond the last of "
            f"{len(schedule)} time steps, got {steps}"
        )
    return [ratio * i + offset for i in reversed(range(steps))] + [-1]


def trailing(schedule, steps):
    """Back from the last time step by T / steps."""
    total = len(schedule)
    return [round(total - total * i / steps) - 1 for i in range(steps)] + [-1]


def lcm(schedule, steps, original_steps=50):
    """Some of the `original_steps` at which a latent consistency model was distilled."""
    if steps > original_steps:
        raise ValueError(f"steps: expected at most {original_steps}, those of the distillation, got {steps}")
    ratio = len(schedule) // original_steps
    if ratio == 0:
        raise ValueError(
            f"original_steps: expected at most the {len(schedule)} of the schedule, got {original_steps}"
        )
    original = [ratio * i - 1 for i in range(original_steps, 0, -1)]
    return [original[original_steps * i // steps] for i in range(steps)] + [-1]


def karras(schedule, steps, rho=7.0):
    """Equally spaced in (sigma/alpha)^(1/7) (Karras et al., 2022, arXiv:2206.00364, eq. 5)."""
    return _spaced(schedule, steps, lambda u: u ** (1 / rho), lambda v: v**rho)


def exponential(schedule, steps):
    """Equally spaced in ln(sigma/alpha)."""
    return _spaced(schedule, steps, math.log, math.exp)


def _spaced(schedule, steps, to, back):
    last = float(len(schedule) - 1)
    if schedule.level(last).alpha == 0:
        raise ValueError(
            f"spacing: expected one of time steps, as nothing of the data is left at the last of them, got "
            f"{schedule.spacing!r}"
        )
    high, low = to(schedule.level(last).u), to(schedule.level(0.0).u)
    between = [high + (low - high) * i / max(steps - 1, 1) for i in range(1, steps - 1)]
    times = [last, *(schedule.level_of(back(v)).t for v in between), *([0.0] if steps > 1 else [])]
    return [*times, -1.0]


SPACINGS = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "lcm": lcm,
    "karras": karras,
    "exponential": exponential,
}
