"""Annealed Langevin dynamics."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ... import _check
from ..schedules import Level, Schedule
from .base import Row, Sampler
from .weights import euler


@dataclass(frozen=True, repr=False)
class LangevinSampler(Sampler):
    """Annealed Langevin dynamics (Song and Ermon, 2019, arXiv:1907.05600).

    At each sigma, `per_level` updates x' = x + r·sigma²·score + √(2r)·sigma·z; at the last one, also a step
    to x0 (Jolicoeur-Martineau et al., 2021, arXiv:2009.05475).

    Args:
        per_level: Number of updates at each level.
        step_size: r; by default the one that best keeps the variance of the noise at sigma² at each level
            (Song and Ermon, 2020, arXiv:2006.09011, technique 4).
    """

    per_level: int = 10
    step_size: float | None = None
    schedule = "exponential"

    def __post_init__(self) -> None:
        _check.at_least(1, per_level=self.per_level)
        if self.step_size is not None:
            _check.positive("step_size", self.step_size)

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield `per_level` rows at each level, then one to x0."""
        *noisy, end = levels
        if noisy[0].scale == 0:
            raise ValueError("schedule: expected one that leaves some of the data at its first time")
        for k, now in enumerate(noisy):
            ratio = noisy[k - 1].u / now.u if k else 1.0
            r = self.step_size or best_step_size(ratio, self.per_level)
            last = k + 1 == len(noisy)
            after = now if last else noisy[k + 1]
            for i in range(self.per_level):
                to = after if i == self.per_level - 1 else now
                rise = to.scale / now.scale
                noise = rise * math.sqrt(2 * r) * now.sigma
                weights = dict(x=rise * (1 - r), x0=rise * r * now.alpha, noise=noise)
                yield Row(now, to, weights, whole=i == self.per_level - 1 and not last)
        yield Row(now, end, euler(now, end))


def best_step_size(ratio: float, updates: int) -> float:
    """Return the r in (0, ½] that brings the noise's variance nearest to that of its level.

    Args:
        ratio: Standard deviation of the noise before the updates, relative to the level's.
        updates: Number of updates v' = (1 - r)²·v + 2r of the relative variance v.
    """

    def error(r):
        still = 2 / (2 - r)  # the fixed point, v' = v
        return abs((1 - r) ** (2 * updates) * (ratio**2 - still) + still - 1)

    return min((0.5 * 1.02 ** (-i) for i in range(400)), key=error)
