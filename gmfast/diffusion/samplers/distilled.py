"""Samplers of distilled networks: latent consistency, trajectory consistency and consistency models."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ... import _check
from ..schedules import Level, Schedule, VariancePreservingSchedule
from ..spacing import lcm
from .base import Row, Sampler
from .weights import euler, renoised


class DistilledSampler(Sampler):
    """Base class of samplers that visit a subset of the timesteps at which the network was distilled."""

    original_steps: int

    def __post_init__(self) -> None:
        _check.at_least(1, original_steps=self.original_steps)

    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """Return timesteps of the distillation for discrete schedules, else the schedule's times."""
        if isinstance(schedule, VariancePreservingSchedule) and schedule.discrete:
            return lcm(schedule, steps, self.original_steps)
        return schedule.times(steps)


@dataclass(frozen=True, repr=False)
class LCMSampler(DistilledSampler):
    """Latent consistency models (Luo et al., 2023, arXiv:2310.04378, algorithm 3).

    Boundary scalings c_skip = s²/(τ² + s²) and c_out = τ/√(τ² + s²) with τ = `timestep_scaling`·t and
    s = `sigma_data`, then noise up to the next level.

    Args:
        original_steps: Number of timesteps of the distillation.
        timestep_scaling: Factor of the timestep in the boundary scalings.
        sigma_data: Standard deviation of the data in the boundary scalings.
    """

    original_steps: int = 50
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.finite("timestep_scaling", self.timestep_scaling, 0)
        _check.positive("sigma_data", self.sigma_data)

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step."""
        for now, to in pairwise(levels):
            alpha, sigma = renoised(to)
            tau, s = self.timestep_scaling * now.t, self.sigma_data
            c_skip, c_out = s * s / (tau * tau + s * s), tau / math.hypot(tau, s)
            yield Row(now, to, dict(x=alpha * c_skip, x0=alpha * c_out, noise=sigma))


@dataclass(frozen=True, repr=False)
class TCDSampler(DistilledSampler):
    """Trajectory consistency distillation (Zheng et al., 2024, arXiv:2402.19159, algorithm 4).

    A step goes to time (1 - `eta`)·t' without noise, then adds noise up to t'.

    Args:
        original_steps: Number of timesteps of the distillation.
        eta: γ of the paper, in [0, 1]; 0 is deterministic.
    """

    original_steps: int = 50
    eta: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.number("eta", self.eta, 0, 1)

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step."""
        for now, to in pairwise(levels):
            s = to
            if to.sigma > 0:
                t = (1 - self.eta) * to.t
                s = schedule.level(math.floor(t) if schedule.discrete else t)
            rise = to.alpha / s.alpha
            weights = {name: rise * w for name, w in euler(now, s).items()}
            weights["noise"] = math.sqrt(max(to.sigma**2 - (rise * s.sigma) ** 2, 0.0))
            yield Row(now, to, weights)


@dataclass(frozen=True, repr=False)
class ConsistencySampler(Sampler):
    """Multistep consistency sampling (Song et al., 2023, arXiv:2303.01469, algorithm 1).

    A step takes x0, then adds noise up to the next sigma. The network's smallest sigma is not visited, as a
    consistency function is the identity there.
    """

    schedule = "karras"

    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """Return the schedule's times without its `sigma_min`."""
        if not schedule.sigma_min:
            return schedule.times(steps)
        times = schedule.times(steps + 1)
        return [*times[:-2], times[-1]]

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step."""
        for now, to in pairwise(levels):
            alpha, sigma = renoised(to)
            noise = math.sqrt(max(sigma**2 - (alpha * schedule.sigma_min) ** 2, 0.0))
            yield Row(now, to, dict(x0=alpha, noise=noise))
