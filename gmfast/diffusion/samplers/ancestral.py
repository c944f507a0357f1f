"""Ancestral and implicit samplers: steps by the posterior of one process."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ... import _check
from ..schedules import Level, Schedule
from .base import EtaSampler, Row, Sampler
from .weights import implicit, posterior


@dataclass(frozen=True, repr=False)
class DDPMSampler(Sampler):
    """Ancestral sampling (Ho et al., 2020, arXiv:2006.11239).

    Args:
        variance: Variance of a step's noise: "small", the posterior's, or "large", β; "learned_range": the
            denoiser returns the position between the two in a second half of its channels (Nichol and
            Dhariwal, 2021, arXiv:2102.09672).
    """

    variance: str = "small"

    def __post_init__(self) -> None:
        _check.one_of("variance", self.variance, ("small", "large", "learned_range"))

    @property
    def learned_range(self) -> bool:
        """True if the denoiser returns a variance in a second half of its channels."""
        return self.variance == "learned_range"

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step, with the mean and the variance of the posterior."""
        small = None
        for now, to in pairwise(levels):
            of_x, of_x0, beta, ratio = posterior(now, to)
            weights = dict(x=of_x, x0=of_x0)
            # The last step to data adds no noise. Its learned range, the decoder's, then has the lower end
            # of the step before.
            if to.sigma > 0:
                small = beta * ratio
            elif small is None:
                small = beta
            if self.learned_range:
                low, high = (math.log(max(v, 1e-20)) for v in (small, beta))
                weights.update(noise=float(to.sigma > 0), log_var_min=low, log_var_max=high)
            elif to.sigma > 0:
                weights["noise"] = math.sqrt(small if self.variance == "small" else beta)
            yield Row(now, to, weights)


@dataclass(frozen=True, repr=False)
class DDIMSampler(EtaSampler):
    """Denoising diffusion implicit models (Song et al., 2021, arXiv:2010.02502, eq. 12).

    Args:
        eta: Standard deviation of a step's noise over the posterior's: 0 is deterministic, 1 is DDPM. A step
            whose noise would exceed its sigma is an error.
    """

    eta: float = 0.0
    cfg_pp = True

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step."""
        for now, to in pairwise(levels):
            yield Row(now, to, implicit(now, to, self.eta))


@dataclass(frozen=True, repr=False)
class EulerAncestralSampler(EtaSampler):
    """Euler's method to a lower level, then noise up to the next one, as in k-diffusion.

    With eta = 1 it is the posterior of DDPM (Ho et al., 2020, arXiv:2006.11239) at any sequence of sigmas.

    Args:
        eta: Standard deviation of a step's noise over the posterior's. A step whose noise would exceed its
            sigma is an error.
    """

    schedule = "karras"
    cfg_pp = True

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step."""
        for now, to in pairwise(levels):
            yield Row(now, to, implicit(now, to, self.eta))
