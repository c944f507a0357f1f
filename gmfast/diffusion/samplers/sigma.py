"""One-step solvers of the probability flow in sigma."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ... import _check
from ..schedules import Level, Schedule
from .base import Row, Sampler
from .singlestep import dpm_solver
from .weights import euler, renoised


def heun(now: Level, to: Level) -> dict[str, float]:
    """Return the weights of Heun's second stage: the mean of the slopes dy/du = (y - x0)/u at both ends.

    h1 is x at `now`; the first stage's x0 is contained in the x that it led to.
    """
    du = to.u - now.u
    return dict(h1=0.5 * to.scale / now.scale, x=0.5 * (1 + du / to.u), x0=-0.5 * to.scale * du / to.u)


@dataclass(frozen=True, repr=False)
class EulerSampler(Sampler):
    """Euler's method for the probability flow, the same as DDIM with eta = 0.

    Karras et al., 2022, arXiv:2206.00364, algorithm 1 without the correction.
    """

    schedule = "karras"
    invertible = True
    cfg_pp = True

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step."""
        for now, to in pairwise(levels):
            yield Row(now, to, euler(now, to))


@dataclass(frozen=True, repr=False)
class HeunSampler(Sampler):
    """Heun's method for the probability flow (Karras et al., 2022, arXiv:2206.00364, algorithm 1).

    Two calls of the denoiser a step, one in the last.

    Steps are taken in sigma/alpha, which falls from thousands to 6 within one of ten even timesteps of a
    "cosine" or "sigmoid" schedule: there the result is off by 20% of the probability with 20 calls, less with
    those schedules' spacing "exponential". Multistep samplers do not have this error.
    """

    schedule = "karras"
    invertible = True

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield two rows a step, prediction and correction, and one in the last."""
        return EDMSampler().rows(schedule, levels)


@dataclass(frozen=True, repr=False)
class ChurnedSampler(Sampler):
    """Base class of samplers that add noise before a step (Karras et al., 2022, arXiv:2206.00364, alg. 2)."""

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    schedule = "karras"

    def __post_init__(self) -> None:
        for name in ("churn", "s_min", "s_noise"):
            _check.finite(name, getattr(self, name), 0)
        _check.number("s_max", self.s_max, self.s_min, math.inf)

    @property
    def invertible(self) -> bool:
        """True without churn."""
        return self.churn == 0

    def _raised(self, schedule: Schedule, levels: Sequence[Level]) -> tuple[list[Level], list[float]]:
        """Return the levels after the noise is added, the last as it is, and the added deviation of y."""
        gamma = min(self.churn / (len(levels) - 1), math.sqrt(2) - 1)
        raised, added = [], []
        for level in levels[:-1]:
            if gamma > 0 and self.s_min <= level.u <= self.s_max and math.isfinite(level.u):
                if level.alpha != level.scale:
                    raise ValueError(
                        f"churn: expected 0, as this schedule's data shrink where noise is added, got "
                        f"{self.churn}"
                    )
                t = schedule.level_of(level.u * (1 + gamma)).t
                raised.append(schedule.level(round(t) if schedule.discrete else t))
                added.append(self.s_noise * math.sqrt(raised[-1].u ** 2 - level.u**2))
            else:
                raised.append(level)
                added.append(0.0)
        return [*raised, levels[-1]], [*added, 0.0]

    def begin(self, schedule: Schedule, levels: Sequence[Level]) -> Level:
        """Return the first level after its noise is added."""
        (first, *_), (added, *_) = self._raised(schedule, levels)
        return replace(first, sigma=first.scale * math.hypot(levels[0].u, added)) if added else first

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield the rows of each step, the last of which adds the next step's noise."""
        raised, added = self._raised(schedule, levels)
        for k, to in enumerate(levels[1:]):
            after = raised[k + 1]
            *rows, last = self._step(schedule, raised[k], to)
            yield from rows
            rise = after.scale / to.scale if to.scale else 1.0
            weights = {name: rise * w for name, w in last.weights.items()} | {
                "noise": after.scale * added[k + 1]
            }
            yield replace(last, to=after, weights=weights)

    def _step(self, schedule: Schedule, now: Level, to: Level) -> Iterator[Row]:
        """Yield the rows of a step without noise."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class EDMSampler(ChurnedSampler):
    """Heun's method with churn (Karras et al., 2022, arXiv:2206.00364, algorithm 2).

    A step between `s_min` and `s_max` first adds noise that raises sigma by the factor
    1 + min(`churn`/steps, √2 - 1). The result of a step already contains the next step's added noise. For
    discrete schedules sigma is raised to that of the nearest timestep, which the denoiser is given. The
    restriction of `Heun` on schedules applies.

    Args:
        churn: S_churn.
        s_min: Smallest sigma at which noise is added.
        s_max: Largest sigma at which noise is added.
        s_noise: Factor of the added noise's standard deviation.
        order: 2, or 1 for Euler's method with the same noise.
    """

    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.one_of("order", self.order, (1, 2))

    def _step(self, schedule: Schedule, now: Level, to: Level) -> Iterator[Row]:
        # No denoiser call at the end of discrete timesteps, even if some noise is left there.
        if self.order == 1 or to.sigma == 0 or to.t < 0 or now.scale == 0 or to.scale == 0:
            yield Row(now, to, euler(now, to))
        else:
            yield Row(now, to, euler(now, to), keep=("x",), whole=False)
            yield Row(to, to, heun(now, to))


@dataclass(frozen=True, repr=False)
class DPM2Sampler(ChurnedSampler):
    """DPM-Solver-2 (Lu et al., 2022, arXiv:2206.00927, algorithm 1) with churn, as in k-diffusion.

    Two calls of the denoiser a step, one in the last. Noise is added as by `EDM`.

    Args:
        churn: S_churn.
        s_min: Smallest sigma at which noise is added.
        s_max: Largest sigma at which noise is added.
        s_noise: Factor of the added noise's standard deviation.
    """

    def _step(self, schedule: Schedule, now: Level, to: Level) -> Iterator[Row]:
        return dpm_solver(schedule, now, to, 2, to, 0.0)


@dataclass(frozen=True, repr=False)
class FlowEulerSampler(Sampler):
    """Euler's method x' = x + (t' - t)·m for the velocity m of flow matching.

    Lipman et al., 2023, arXiv:2210.02747; rectified flow: Liu et al., 2023, arXiv:2209.03003.

    Args:
        stochastic: Whether a step draws new noise, x' = (1 - t')·x0 + t'·z with x0 = x - t·m.
    """

    stochastic: bool = False
    schedule = "flow"
    cfg_pp = True

    @property
    def invertible(self) -> bool:
        """True without noise."""
        return not self.stochastic

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step."""
        for now, to in pairwise(levels):
            if self.stochastic:
                alpha, sigma = renoised(to)
                yield Row(now, to, dict(x0=alpha, noise=sigma))
            else:
                yield Row(now, to, euler(now, to))
