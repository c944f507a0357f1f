"""Singlestep solvers in λ = ln(alpha/sigma), which call the denoiser between the two levels of a step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ... import _check
from ..schedules import Level, Schedule
from .base import EtaSampler, Row
from .weights import euler, implicit


def slope(level: Level) -> dict[str, float]:
    """Return the weights that keep ε = (x - alpha·x0)/sigma, the noise that x0 implies."""
    return dict(kept_x=1 / level.sigma, kept_x0=-level.alpha / level.sigma)


def stage(schedule: Schedule, now: Level, to: Level, log_snr: float) -> Level:
    """Return the level with a given λ inside a step; for discrete schedules, that of the nearest timestep.

    It differs from `now`, so that a difference quotient between the two exists.
    """
    level = schedule.level_of_log_snr(log_snr)
    if not schedule.discrete:
        return level
    low, high = (0, now.t - 1) if now.t > to.t else (now.t + 1, to.t)
    return schedule.level(min(max(round(level.t), low), high))


def lowered(now: Level, to: Level, eta: float, floor: float = 0.0) -> tuple[Level, float]:
    """Split an ancestral step: the level that its deterministic part ends at, and the new noise's sigma.

    Args:
        now: Level at which the step starts.
        to: Level at which it ends.
        eta: Standard deviation of the new noise over the posterior's.
        floor: Smallest sigma/alpha of the deterministic part.

    Raises:
        ValueError: If eta is too large for this level: the step's new noise would exceed its sigma.
    """
    noise = implicit(now, to, eta)["noise"] if eta else 0.0
    sigma = math.sqrt(max(to.sigma**2 - noise**2, 0.0))
    if noise and sigma < floor * to.alpha:
        sigma = min(floor * to.alpha, to.sigma)
        noise = math.sqrt(to.sigma**2 - sigma**2)
    return (replace(to, sigma=sigma) if noise else to), noise


def one_step(now: Level, to: Level) -> bool:
    """Return whether only a first-order step is possible: of no length, from or to pure noise, or to data."""
    finite = math.isfinite(now.log_snr) and math.isfinite(to.log_snr)
    return not finite or now.log_snr == to.log_snr or to.t < 0


@dataclass(frozen=True, repr=False)
class DPMPP2SAncestralSampler(EtaSampler):
    """DPM-Solver++(2S) (Lu et al., 2022, arXiv:2211.01095, algorithm 1) with ancestral noise.

    Two calls of the denoiser a step, one in the last; as in k-diffusion.

    Args:
        eta: Standard deviation of a step's noise over the posterior's; 0 is the solver itself.
    """

    schedule = "karras"

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield two rows a step, and one in a step from pure noise or to data."""
        for now, to in pairwise(levels):
            down, noise = lowered(now, to, self.eta)
            base = euler(now, down)
            if one_step(now, down):
                yield Row(now, to, base | {"noise": noise})
                continue
            h = down.log_snr - now.log_snr
            middle = stage(schedule, now, to, now.log_snr + h / 2)
            share = h / (2 * (middle.log_snr - now.log_snr))
            yield Row(now, middle, euler(now, middle), keep=("x", "x0"), whole=False)
            weights = dict(h1=base["x"], h2=base["x0"] * (1 - share), x0=base["x0"] * share, noise=noise)
            yield Row(middle, to, weights)


@dataclass(frozen=True, repr=False)
class DPMPPSDESampler(EtaSampler):
    """SDE-DPM-Solver++ of second order, singlestep, as in k-diffusion.

    The stochastic form of DPM-Solver++(2S) (Lu et al., 2022, arXiv:2211.01095). Two calls of the denoiser a
    step, one in the last.

    Args:
        eta: Standard deviation of the noise over the posterior's.
        r: Position in λ of the second call within a step.
        brownian: Whether the noise at r is part of the whole step's, as on one path of a Brownian motion; the
            variance of the samples is then of second order too. Otherwise the two are independent.
    """

    r: float = 0.5
    brownian: bool = True
    schedule = "karras"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.number("r", self.r, 0, 1)
        _check.positive("r", self.r)

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield two rows a step, and one in a step from pure noise or to data."""
        for now, to in pairwise(levels):
            down, noise = lowered(now, to, self.eta)
            base = euler(now, down)
            if one_step(now, to) or down.sigma == 0:
                yield Row(now, to, base | {"noise": noise})
                continue
            h = to.log_snr - now.log_snr
            middle = stage(schedule, now, to, now.log_snr + self.r * h)
            before = middle.log_snr - now.log_snr
            share = h / (2 * before)
            first = implicit(now, middle, self.eta)
            weights = dict(h1=base["x"], h2=base["x0"] * (1 - share), x0=base["x0"] * share, noise=noise)
            keep = ("x", "x0")
            if self.brownian and noise and first["noise"]:
                # The part of the path before `middle` has this correlation with the whole step's noise.
                common = math.exp(before - h) * math.sqrt(math.expm1(-2 * before) / math.expm1(-2 * h))
                weights["noise"] = noise * math.sqrt(max(1 - common**2, 0.0))
                weights["h3"] = common * noise / first["noise"]
                first["kept_noise"] = first["noise"]
                keep = ("x", "x0", "kept")
            yield Row(now, middle, first, keep=keep, whole=False)
            yield Row(middle, to, weights)


@dataclass(frozen=True, repr=False)
class DPM2AncestralSampler(EtaSampler):
    """DPM-Solver-2 (Lu et al., 2022, arXiv:2206.00927, algorithm 1) with ancestral noise, as in k-diffusion.

    Two calls of the denoiser a step, one in the last.

    Args:
        eta: Standard deviation of a step's noise over the posterior's; 0 is DPM-Solver-2.
    """

    schedule = "karras"

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield two rows a step, and one in a step from pure noise or to data."""
        for now, to in pairwise(levels):
            down, noise = lowered(now, to, self.eta)
            yield from dpm_solver(schedule, now, to, 2, down, noise)


@dataclass(frozen=True, repr=False)
class DPMFastSampler(EtaSampler):
    """DPM-Solver-fast (Lu et al., 2022, arXiv:2206.00927): singlestep steps of third order.

    Three calls of the denoiser a step, two in the last but one and one in the last: the order of the steps of
    the paper for a number of calls that is divisible by 3. Made for times equally spaced in λ, such as those
    of the schedule "exponential".

    Args:
        eta: Standard deviation of a step's noise over the posterior's.
    """

    eta: float = 0.0
    schedule = "exponential"

    def orders(self, steps: int) -> list[int]:
        """Return the order of each step."""
        return [3] * (steps - 2) + [2, 1][-steps:]

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield as many rows a step as its order, and one in a step from pure noise or to data."""
        floor = levels[-1].sigma / levels[-1].alpha if levels[-1].alpha else 0.0
        for (now, to), order in zip(pairwise(levels), self.orders(len(levels) - 1), strict=True):
            down, noise = lowered(now, to, self.eta, floor)
            yield from dpm_solver(schedule, now, to, order, down, noise)


def dpm_solver(
    schedule: Schedule,
    now: Level,
    to: Level,
    order: int,
    down: Level,
    noise: float,
    ratio: float | None = None,
    lower: bool = False,
) -> Iterator[Row]:
    """Yield the rows of a DPM-Solver step (Lu et al., 2022, arXiv:2206.00927, algorithms 1 and 2).

    Args:
        schedule: Schedule of the levels at which the denoiser is called.
        now: Level at which the step starts.
        to: Level at which it ends.
        order: 1, 2 or 3.
        down: Level at which the deterministic part ends.
        noise: Sigma of the new noise.
        ratio: Position in λ of the second call; by default 1/2 of order 2 and 1/3 of order 3.
        lower: Whether the last row's kept sum is the solution of one order less, without noise.
    """
    if order == 1 or one_step(now, down):
        yield Row(now, to, euler(now, down) | {"noise": noise})
        return
    h = down.log_snr - now.log_snr
    first = stage(
        schedule, now, to, now.log_snr + h * ((1 / 2 if order == 2 else 1 / 3) if ratio is None else ratio)
    )
    r1 = (first.log_snr - now.log_snr) / h

    def of_slope(end: Level) -> float:
        return -end.sigma * math.expm1(end.log_snr - now.log_snr)

    def corrected(end: Level, at: Level, of_difference: float) -> dict[str, float]:
        """Weights of x at `end`, by the difference of ε at the level `at` of this call and at `now`."""
        return dict(
            h1=end.alpha / now.alpha,
            h2=of_slope(end) - of_difference,
            x=of_difference / at.sigma,
            x0=-of_difference * at.alpha / at.sigma,
        )

    def kept(weights: dict[str, float]) -> dict[str, float]:
        return {f"kept_{name}": w for name, w in weights.items()}

    second_order = corrected(down, first, of_slope(down) / (2 * r1))
    yield Row(now, first, euler(now, first) | slope(now), keep=("x", "kept"), whole=False)
    if order == 2:
        low = kept(dict(h1=down.alpha / now.alpha, h2=of_slope(down))) if lower else {}
        yield Row(first, to, second_order | {"noise": noise} | low)
        return
    second = stage(schedule, now, to, now.log_snr + 2 / 3 * h)
    h2 = second.log_snr - now.log_snr
    of_difference = -second.sigma * h2 / (r1 * h) * (math.expm1(h2) / h2 - 1)
    low = kept(second_order) if lower else {}
    keep = ("h1", "h2", "kept") if lower else ("h1", "h2")
    yield Row(first, second, corrected(second, first, of_difference) | low, keep=keep, whole=False)
    of_difference = -down.sigma * h / h2 * (math.expm1(h) / h - 1)
    low = {"kept_h3": 1.0} if lower else {}
    yield Row(second, to, corrected(down, second, of_difference) | {"noise": noise} | low)
