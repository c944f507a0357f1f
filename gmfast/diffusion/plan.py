"""Plan of a run: the times that it visits and the coefficient tables of its steps."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from .. import _check
from . import samplers, schedules
from ._naming import public_name
from .samplers import Plan, Sampler
from .schedules import Schedule, VariancePreservingSchedule


def plan(
    sampler: str | Sampler = "ddim",
    schedule: str | Schedule | None = None,
    *,
    steps: int = 50,
    prediction: str | None = None,
    times: Sequence[float] | Tensor | None = None,
) -> Plan:
    """Make the plan that `sample` executes, for a loop of one's own.

    `Plan.table()` is what `gmfast.functional.diffusion_step` takes, `Plan.times()` what the denoiser is given
    at each row, and `Plan.rows` name the tensors that a row keeps for the next. x begins as noise times
    `schedule.start(plan.start)`, which is 1 for variance-preserving schedules. For a sampler that keeps
    nothing (`plan.single`)::

        plan = gmfast.diffusion.plan("ddim", "cosine", steps=20, prediction="v")
        table = plan.table(x.device)
        with torch.no_grad():  # a step that records gradients runs in plain PyTorch
            for k, t in enumerate(plan.times(x.device)):
                x = gmfast.functional.diffusion_step(x, denoiser(x, t.expand(len(x))), table, step=k, seed=0)

    Args:
        sampler: As in `sample`.
        schedule: As in `sample`.
        steps: As in `sample`.
        prediction: As in `sample`; by default the schedule's.
        times: As in `sample`.

    Raises:
        ValueError: For names and values.
        TypeError: For types.
    """
    sampler, schedule = resolve(sampler, schedule)
    if isinstance(sampler, samplers.DPMAdaptiveSampler):
        raise ValueError("sampler: expected one whose steps are known beforehand, got DPMAdaptive")
    return make_plan(sampler, schedule, steps, prediction, times)


def resolve(sampler: str | Sampler, schedule: str | Schedule | None) -> tuple[Sampler, Schedule]:
    """Look up a sampler and a schedule by name; without a schedule, the sampler's default."""
    sampler = samplers.sampler(sampler)
    return sampler, schedules.schedule(sampler.schedule if schedule is None else schedule)


def make_plan(
    sampler: Sampler,
    schedule: Schedule,
    steps: int,
    prediction: str | None,
    times: Iterable[float] | None,
    strength: float = 1.0,
) -> Plan:
    """Make a plan, or return that of an earlier call with equal arguments and with its cached tables.

    Args:
        sampler: Sampler.
        schedule: Schedule.
        steps: Number of steps.
        prediction: What the denoiser returns; by default the schedule's.
        times: Times to visit in place of the sampler's.
        strength: Fraction of the steps to execute, at least one of them: the last ones.
    """
    _check.at_least(1, steps=steps)
    arguments = sampler, schedule, int(steps), prediction, _ordered(times), strength
    try:
        hash(arguments)
    except TypeError:  # a user's own sampler or schedule, which may change between calls
        return _plan.__wrapped__(*arguments)
    return _plan(*arguments)


@functools.lru_cache(64)
def _plan(sampler, schedule, steps, prediction, times, strength):
    if times is None:
        if schedule.discrete and steps > len(schedule):
            raise ValueError(f"steps: expected at most the {len(schedule)} of the schedule, got {steps}")
        times = sampler.times(schedule, steps)
    elif schedule.discrete and any(t != int(t) for t in times):
        if not isinstance(schedule, VariancePreservingSchedule):
            raise ValueError(f"times: expected whole numbers, as the schedule has time steps, got {times}")
        schedule = replace(schedule, spacing="exponential")  # that of times between the timesteps
    if times[0] < times[-1] and not sampler.invertible:
        name = public_name(type(sampler))
        raise ValueError(
            f"times: expected falling numbers, as {name} does not lead to noise, got {list(times)}"
        )
    skipped = len(times) - 1 - max(int((len(times) - 1) * strength + 1e-9), 1)
    return sampler.plan(schedule, times[skipped:], prediction)


def _ordered(times):
    """Return `times` as a tuple of strictly falling or strictly rising numbers, or None."""
    if times is None:
        return None
    try:
        times = tuple(times.tolist() if hasattr(times, "tolist") else times)
    except TypeError:
        raise TypeError(f"times: expected numbers, got {type(times).__name__}") from None
    for t in times:
        _check.real("times", t)
    steps = [a > b if times[0] > times[-1] else a < b for a, b in pairwise(times)]
    if not steps or not all(steps):
        raise ValueError(
            f"times: expected at least two falling numbers, or rising ones from data to noise, got {times}"
        )
    return times


def with_cfg_pp(plan: Plan, guidance: float) -> Plan:
    """Return the plan of CFG++ (Chung et al., 2024, arXiv:2406.08070) for a plan and a guidance scale g.

    A row takes the unconditional output u for m and has the conditional output c as its last history. It
    steps by the unconditional x0 and adds alpha'·(x0 - unconditional x0) = alpha'·Q·g·(c - u), where
    x0 = P·x + Q·m.
    """

    def make() -> Plan:
        rows, present = [], 0
        for row in plan.rows:
            weight = row.to.alpha * samplers.x0_weights(plan.prediction, row.now)[1] * guidance
            added = {"m": -weight, f"h{present + 1}": weight}
            rows.append(replace(row, weights=row.weights | added))
            present = len(row.keep)
        return replace(plan, rows=rows, _cached={})

    return plan.cached(("cfg_pp", guidance), make)
