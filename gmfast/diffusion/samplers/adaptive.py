"""DPM-Solver with a step size by the error of each step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ... import _check
from ..schedules import Level, Schedule
from .base import Plan, Row, Sampler
from .singlestep import dpm_solver, lowered
from .weights import euler


class StepSize:
    """Step size h in λ, by a PID controller of the error (Hairer and Wanner, "Solving ODEs II", IV.2).

    Args:
        h: First step size; negative from data to noise.
        order: Order of the error in h.
        proportional: Coefficient of the error.
        integral: Coefficient of the error's sum.
        derivative: Coefficient of the error's difference.
        accept: Smallest factor of h with which a step is accepted.
    """

    def __init__(
        self, h: float, order: float, proportional: float, integral: float, derivative: float, accept: float
    ) -> None:
        self.h = h
        self._accept = accept
        self._exponents = [
            (proportional + integral + derivative) / order,
            -(proportional + 2 * derivative) / order,
            derivative / order,
        ]
        self._last = ()  # inverse errors of the accepted steps, the latest first

    def accepts(self, error: float) -> bool:
        """Set the size of the next attempt, and return whether the step with this error is accepted."""
        inverse = 1 / (error + 1e-8)
        last = self._last or (inverse, inverse)
        factor = math.prod(v**e for v, e in zip((inverse, *last), self._exponents, strict=True))
        factor = 1 + math.atan(factor - 1)
        accepted = factor >= self._accept
        if accepted or not self._last:
            self._last = (inverse, last[0]) if accepted else last
        self.h *= factor
        return accepted


@dataclass(frozen=True, repr=False)
class DPMAdaptiveSampler(Sampler):
    """DPM-Solver-12 and 23 (Lu et al., 2022, arXiv:2206.00927, algorithm 3), whose steps adapt to the error.

    Each sample has steps of its own, so that it does not depend on the others of the batch. A step is an
    attempt of all samples, after which the host waits for the errors; samples whose attempt is rejected
    repeat it with a smaller size. The steps lead from the first to the last noisy time; a last one leads to
    the data.

    Args:
        order: 2 or 3, also the number of calls of the denoiser in an attempt.
        rtol: Relative tolerance of the error.
        atol: Absolute tolerance of the error.
        h_init: First step size in λ.
        pcoeff: Proportional coefficient of the step size's controller.
        icoeff: Integral coefficient.
        dcoeff: Derivative coefficient.
        accept_safety: Smallest factor of the step size with which a step is accepted.
        eta: Standard deviation of a step's noise over the posterior's.
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    eta: float = 0.0
    schedule = "karras"

    def __post_init__(self) -> None:
        _check.one_of("order", self.order, (2, 3))
        for name in ("rtol", "atol", "pcoeff", "icoeff", "dcoeff", "accept_safety", "eta"):
            _check.finite(name, getattr(self, name), 0)
        _check.real("h_init", self.h_init)
        if not 0 < abs(self.h_init) < math.inf:
            raise ValueError(f"h_init: expected a finite number other than 0, got {self.h_init}")

    def step_size(self, falling: bool = True) -> StepSize:
        """Return the controller of one run, from noise to data or, not `falling`, back."""
        return StepSize(
            abs(self.h_init) if falling else -abs(self.h_init),
            1.5 if self.eta else self.order,
            self.pcoeff,
            self.icoeff,
            self.dcoeff,
            self.accept_safety,
        )

    def plan(self, schedule: Schedule, times: Sequence[float], prediction: str | None = None) -> Plan:
        """Make the plan of the path: a row to the last noisy time, which `sample` adapts, and one to data.

        Raises:
            ValueError: As in `Sampler.plan`, and if nothing of the data is left at the first time.
        """
        to_data = schedule.level(times[-1]).sigma == 0 or times[-1] < 0
        ends = dict.fromkeys([times[0], *times[-1 - to_data :]])
        plan = super().plan(schedule, list(ends), prediction)
        if plan.start.alpha == 0:
            raise ValueError("schedule: expected one that leaves some of the data at its first time")
        return plan

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield Euler's rows."""
        for now, to in pairwise(levels):
            yield Row(now, to, euler(now, to))

    def attempt(
        self, schedule: Schedule, now: Level, to: Level, floor: float = 0.0
    ) -> tuple[list[Row], float]:
        """Return the rows of one step without its noise, and the noise's sigma.

        The last row keeps the solution of one order less.
        """
        down, noise = lowered(now, to, self.eta, floor)
        ratio = 1 / 3 if self.order == 3 else 1 / 2
        return list(dpm_solver(schedule, now, to, self.order, down, 0.0, ratio, lower=True)), noise

    def next_level(self, schedule: Schedule, now: Level, goal: Level, h: float) -> Level:
        """Return the level that an attempt of size h leads to, `goal` at most."""
        log_snr = now.log_snr + h
        if log_snr >= goal.log_snr - 1e-5:
            return goal
        level = schedule.level_of_log_snr(log_snr)
        if schedule.discrete:
            level = schedule.level(min(round(level.t), now.t - 1))
        return goal if level.t == goal.t else level
