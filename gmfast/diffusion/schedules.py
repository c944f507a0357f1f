"""Noise schedules: alpha and sigma of x_t = alpha(t)·x0 + sigma(t)·z, in float64.

Three kinds, by the time that a denoiser is given:

- `VariancePreservingSchedule` (DDPM): the discrete timestep 0 ... T - 1; alpha² + sigma² = 1.
- `VarianceExplodingSchedule` (NCSN, EDM): sigma itself; alpha = 1.
- `FlowMatchingSchedule`: t in [0, 1]; alpha = 1 - t, sigma = t.

`gmfast.diffusion` exports them without the suffix.
"""

import bisect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import _check
from ._naming import PublicRepr, described, public_name
from .spacing import SPACINGS, evenly_spaced


@dataclass(frozen=True)
class Level:
    """Noise level: time `t` as the denoiser is given it, `alpha` of the data, `sigma` of the noise.

    `scale` is that of the coordinates y = x/scale in which the probability flow is dy/du = (y - x0)/u with
    u = sigma/scale (Karras et al., 2022, arXiv:2206.00364, eq. 4).
    """

    t: float
    alpha: float
    sigma: float
    scale: float

    @property
    def u(self) -> float:
        """Noise level sigma/scale of the coordinates y, infinite where `scale` is 0."""
        return self.sigma / self.scale if self.scale else math.inf

    @property
    def log_snr(self) -> float:
        """λ = ln(alpha/sigma), half the log signal-to-noise ratio: the time variable of the DPM-Solvers."""
        if self.alpha == 0 or self.sigma == 0:
            return -math.inf if self.alpha == 0 else math.inf
        return math.log(self.alpha / self.sigma)


class Schedule(PublicRepr):
    """Base class of noise schedules; a user's own overrides what its sampler needs.

    The schedules defined here are immutable; `dataclasses.replace(schedule, spacing="karras")` makes a new
    one. Plans are cached by the schedule's hash, so a user's own schedule must be immutable if it is hashable
    (by default it is not).

    Attributes:
        discrete: Whether times are integers, given to the denoiser as int64.
        prediction: Default prediction of a denoiser that does not state its own.
        sigma_min: Smallest sigma at which a distilled network was trained.
        span: Smallest and largest time.
    """

    discrete: bool = False
    prediction: str = "epsilon"
    sigma_min: float = 0.0
    span: tuple[float, float] = (0.0, sys.float_info.max)
    __hash__ = None

    def times(self, steps: int) -> list[float]:
        """Return the `steps + 1` times of a run from noise to data; sampling ends at the last."""
        raise NotImplementedError

    def level(self, t: float) -> Level:
        """Return the noise level at time t."""
        raise NotImplementedError

    def level_of(self, u: float) -> Level:
        """Return the noise level at which sigma/scale is u."""
        raise NotImplementedError

    def level_of_log_snr(self, log_snr: float) -> Level:
        """Return the noise level at which ln(alpha/sigma) is `log_snr`; by default for a scale of alpha."""
        return self.level_of(math.exp(-log_snr))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at times t, in float64, each in the shape and on the device of `t`.

        Both are NaN at times beyond the schedule's table.
        """
        raise NotImplementedError

    def start(self, level: Level) -> float:
        """Return the standard deviation of the noise that sampling starts from at a level."""
        return level.sigma


@dataclass(frozen=True, eq=False, repr=False)
class VariancePreservingSchedule(Schedule):
    """Schedule of discrete timesteps as in DDPM (Ho et al., 2020, arXiv:2006.11239).

    Between timesteps ln(sigma/alpha) is interpolated linearly in t; t < 0 is the data.

    Args:
        alphas_cumprod: ᾱ of each timestep, shape `(T,)`, in [0, 1) and non-increasing: alpha² of the levels.
        spacing: Timesteps that a sampler with fewer steps visits, one of `gmfast.diffusion.SPACINGS`:
            "trailing", "leading", "linspace", "lcm", "beta", or "karras" or "exponential", which space
            sigma/alpha between the last timestep and the first.
        steps_offset: Added to the timesteps of spacing "leading" (1 for Stable Diffusion).
        final_alpha_cumprod: ᾱ at the end of sampling; 1 is the data, None is ᾱ of timestep 0.

    Raises:
        ValueError: For numbers out of range or an unknown spacing.
        TypeError: For arguments that are not numbers.
    """

    alphas_cumprod: Tensor
    spacing: str = field(default="trailing", kw_only=True)
    steps_offset: int = field(default=0, kw_only=True)
    final_alpha_cumprod: float | None = field(default=1.0, kw_only=True)

    def __repr__(self) -> str:
        table = self.alphas_cumprod
        return (
            f"{public_name(type(self))}("
            f"alphas_cumprod=({len(table)} from {table[0]:.6g} to {table[-1]:.6g}), "
            f"spacing={self.spacing!r}, steps_offset={self.steps_offset}, "
            f"final_alpha_cumprod={self.final_alpha_cumprod:.6g})"
        )

    @torch.inference_mode(False)  # autograd may save these tensors later
    def __post_init__(self) -> None:
        try:
            table = torch.as_tensor(self.alphas_cumprod, dtype=torch.float64, device="cpu").clone()
        except (TypeError, ValueError):
            given = type(self.alphas_cumprod).__name__
            raise TypeError(f"alphas_cumprod: expected numbers, got {given}") from None
        if table.dim() != 1 or len(table) == 0 or not ((table >= 0) & (table < 1)).all():
            raise ValueError("alphas_cumprod: expected (T,) numbers in [0, 1)")
        if (table.diff() > 0).any():
            raise ValueError("alphas_cumprod: expected numbers that fall from data to noise, got rising ones")
        _check.one_of("spacing", self.spacing, SPACINGS)
        _check.at_least(0, steps_offset=self.steps_offset)
        first, final = table[0].item(), self.final_alpha_cumprod
        final = first if final is None else final
        _check.number("final_alpha_cumprod", final, first * (1 - 1e-9), 1)
        alpha, sigma = table.sqrt(), (1 - table).sqrt()
        tables = alpha, sigma, (1 - table).log() / 2 - table.log() / 2
        attributes = {
            "alphas_cumprod": table,
            "final_alpha_cumprod": final,
            "_on_device": {table.device: tables},
        }
        attributes |= zip(("_alpha", "_sigma", "_log_u"), (t.tolist() for t in tables), strict=True)
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float], **options: Any) -> "VariancePreservingSchedule":
        """Make the schedule of β_t, the fraction of the variance that timestep t replaces by noise.

        Args:
            betas: β_t of each timestep, shape `(T,)`.
            **options: The other arguments of the class.
        """
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        return cls(torch.cumprod(1 - betas, 0), **options)

    __hash__ = object.__hash__

    @property
    def discrete(self) -> bool:
        """True if times are integers; spacings "karras" and "exponential" visit times between them."""
        return self.spacing not in ("karras", "exponential")

    @property
    def span(self) -> tuple[int, int]:
        """Smallest and largest time: -1, the data, and the last timestep."""
        return -1, len(self) - 1

    def __len__(self) -> int:
        return len(self._alpha)

    def times(self, steps: int) -> list[float]:
        """Return the timesteps that the schedule's spacing selects, then -1."""
        return SPACINGS[self.spacing](self, steps)

    def level(self, t: float) -> Level:
        """Return the noise level at t; below 0, that of the end of sampling.

        Raises:
            ValueError: If t is beyond the last timestep.
        """
        if t < 0:
            a = self.final_alpha_cumprod
            return Level(t, math.sqrt(a), math.sqrt(1 - a), math.sqrt(a))
        if t > len(self) - 1:
            raise ValueError(f"times: expected at most {len(self) - 1}, the last time step, got {t:g}")
        low = int(t)
        if low == t:
            return Level(t, self._alpha[low], self._sigma[low], self._alpha[low])
        low_u, high_u = self._log_u[low], self._log_u[low + 1]
        u = math.exp(low_u + (t - low) * (high_u - low_u))
        return self._level_between(t, u)

    def level_of(self, u: float) -> Level:
        """Return the noise level at which sigma/alpha is u, with the time clamped to the table's."""
        if u <= 0:
            return self.level(-1.0)
        log_u = math.log(u)
        high = bisect.bisect_left(self._log_u, log_u)
        if high == 0:
            return self._level_between(0.0, u)
        if high == len(self):
            return self._level_between(float(len(self) - 1), u)
        low_u, high_u = self._log_u[high - 1], self._log_u[high]
        return self._level_between(high - 1 + (log_u - low_u) / (high_u - low_u), u)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at times t without synchronising with the device."""
        if t.device not in self._on_device:
            tables = self._on_device[self.alphas_cumprod.device]
            self._on_device[t.device] = [table.to(t.device) for table in tables]
        alpha, sigma, log_u = self._on_device[t.device]
        last = len(self) - 1
        whole = t.long().clamp(0, last)

        def at(table, rows):  # indexing with a 0-dim tensor would synchronise with the device
            return table.index_select(0, rows.reshape(-1)).reshape(rows.shape)

        if t.is_floating_point():
            after = (whole + 1).clamp(max=last)
            u = torch.lerp(at(log_u, whole), at(log_u, after), (t - whole).double()).exp()
            between = (t > whole) & (after > whole)
            alpha = torch.where(between, (1 + u * u).rsqrt(), at(alpha, whole))
            sigma = torch.where(between, (1 + u**-2).rsqrt(), at(sigma, whole))
        else:
            alpha, sigma = at(alpha, whole), at(sigma, whole)
        end = self.final_alpha_cumprod
        data, there = t < 0, t <= last
        alpha = torch.where(there, torch.where(data, math.sqrt(end), alpha), math.nan)
        return alpha, torch.where(there, torch.where(data, math.sqrt(1 - end), sigma), math.nan)

    @staticmethod
    def _level_between(t, u):
        alpha = 1 / math.hypot(1, u)
        return Level(t, alpha, u * alpha if alpha else 1.0, alpha)

    def start(self, level: Level) -> float:
        """Return 1: sampling starts from standard normal noise."""
        return 1.0

    def zero_terminal_snr(self) -> "VariancePreservingSchedule":
        """Return this schedule rescaled to zero terminal SNR (Lin et al., 2024, arXiv:2305.08891).

        The last timestep is then pure noise, where a network that predicts the noise says nothing of the
        data: sample with prediction "v", "x0" or "flow".

        Raises:
            ValueError: If all of `alphas_cumprod` are equal.
        """
        first, last = self._alpha[0], self._alpha[-1]
        if first == last:
            raise ValueError("alphas_cumprod: expected at least two different ones, got one")
        alpha = (self.alphas_cumprod.sqrt() - last) * (first / (first - last))
        return replace(self, alphas_cumprod=alpha.square())


def linear(
    num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, **options: Any
) -> VariancePreservingSchedule:
    """β linear in the timestep (Ho et al., 2020, arXiv:2006.11239).

    Args:
        num_timesteps: T.
        beta_start: β of the first timestep.
        beta_end: β of the last timestep.
        **options: `spacing`, `steps_offset` and `final_alpha_cumprod` of `VariancePreserving`.
    """
    _check.at_least(1, num_timesteps=num_timesteps)
    betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64, device="cpu")
    return VariancePreservingSchedule.from_betas(betas, **options)


def scaled_linear(
    num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, **options: Any
) -> VariancePreservingSchedule:
    """√β linear in the timestep, as in latent diffusion (Rombach et al., 2022, arXiv:2112.10752).

    Args:
        num_timesteps: T.
        beta_start: β of the first timestep.
        beta_end: β of the last timestep.
        **options: `spacing`, `steps_offset` and `final_alpha_cumprod` of `VariancePreserving`.
    """
    _check.at_least(1, num_timesteps=num_timesteps)
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64, device="cpu")
    return VariancePreservingSchedule.from_betas(roots.square(), **options)


def cosine(
    num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999, **options: Any
) -> VariancePreservingSchedule:
    """ᾱ = cos²(π/2·(t + s)/(1 + s)) of t in [0, 1] (Nichol and Dhariwal, 2021, arXiv:2102.09672).

    Args:
        num_timesteps: T.
        offset: s.
        max_beta: Upper bound of β.
        **options: `spacing`, `steps_offset` and `final_alpha_cumprod` of `VariancePreserving`.
    """
    return _from_alpha_bar(
        lambda t: math.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2, num_timesteps, max_beta, options
    )


def sigmoid(
    num_timesteps: int = 1000,
    start: float = -3.0,
    end: float = 3.0,
    temperature: float = 1.0,
    max_beta: float = 0.999,
    **options: Any,
) -> VariancePreservingSchedule:
    """ᾱ a segment of a sigmoid, rescaled to fall from 1 to 0 (Jabri et al., 2023, arXiv:2212.11972).

    Args:
        num_timesteps: T.
        start: Where the segment begins.
        end: Where the segment ends.
        temperature: Divides the sigmoid's argument.
        max_beta: Upper bound of β.
        **options: `spacing`, `steps_offset` and `final_alpha_cumprod` of `VariancePreserving`.
    """

    def value(v):
        return 1 / (1 + math.exp(-v / temperature))

    def alpha_bar(t):
        return (value(end) - value(t * (end - start) + start)) / (value(end) - value(start))

    return _from_alpha_bar(alpha_bar, num_timesteps, max_beta, options)


def laplace(
    num_timesteps: int = 1000, mean: float = 0.0, width: float = 0.5, **options: Any
) -> VariancePreservingSchedule:
    """Laplace-distributed log SNR, ln(alpha²/sigma²) (Hang et al., 2024, arXiv:2407.03297).

    Args:
        num_timesteps: T.
        mean: Mean of the distribution.
        width: Scale of the distribution.
        **options: `spacing`, `steps_offset` and `final_alpha_cumprod` of `VariancePreserving`.
    """
    _check.at_least(1, num_timesteps=num_timesteps)
    t = (torch.arange(num_timesteps, dtype=torch.float64, device="cpu") + 0.5) / num_timesteps
    log_snr = mean - width * torch.sign(0.5 - t) * torch.log(1 - 2 * (t - 0.5).abs())
    return VariancePreservingSchedule(torch.sigmoid(log_snr), **options)


def _from_alpha_bar(alpha_bar: Callable[[float], float], num_timesteps: int, max_beta: float, options: dict):
    _check.at_least(1, num_timesteps=num_timesteps)
    bars = [alpha_bar(i / num_timesteps) for i in range(num_timesteps + 1)]
    betas = [min(1 - after / before, max_beta) for before, after in pairwise(bars)]
    return VariancePreservingSchedule.from_betas(betas, **options)


@dataclass(frozen=True, repr=False)
class VarianceExplodingSchedule(Schedule):
    """Schedule whose times are sigmas, equally spaced in ln sigma as in NCSN, then 0.

    Song and Ermon, 2019, arXiv:1907.05600.

    Args:
        sigma_min: Last sigma that a sampler visits before 0.
        sigma_max: First sigma.

    Raises:
        ValueError: For numbers out of range.
        TypeError: For arguments that are not numbers.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check.positive("sigma_min", self.sigma_min)
        _check.finite("sigma_max", self.sigma_max, self.sigma_min)

    def times(self, steps: int) -> list[float]:
        """Return `steps` sigmas equally spaced in ln sigma, then 0."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return [math.exp(s) for s in evenly_spaced(high, low, steps)] + [0.0]

    def level(self, t: float) -> Level:
        """Return the noise level with sigma t."""
        return Level(t, 1.0, t, 1.0)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and t in float64."""
        return torch.ones_like(t, dtype=torch.float64), t.double()

    def level_of(self, u: float) -> Level:
        """Return the noise level with sigma u."""
        return self.level(u)


@dataclass(frozen=True, repr=False)
class KarrasSchedule(VarianceExplodingSchedule):
    """Sigmas equally spaced in sigma^(1/ρ), then 0 (Karras et al., 2022, arXiv:2206.00364, eq. 5).

    Args:
        sigma_min: Last sigma that a sampler visits before 0.
        sigma_max: First sigma.
        rho: ρ.

    Raises:
        ValueError: For numbers out of range.
        TypeError: For arguments that are not numbers.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.positive("rho", self.rho)

    def times(self, steps: int) -> list[float]:
        """Return `steps` sigmas equally spaced in sigma^(1/ρ), then 0."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return [s**self.rho for s in evenly_spaced(high, low, steps)] + [0.0]


@dataclass(frozen=True, repr=False)
class FlowMatchingSchedule(Schedule):
    """Straight paths from noise at t = 1 to data at t = 0.

    Lipman et al., 2023, arXiv:2210.02747; Liu et al., 2023, arXiv:2209.03003. A sampler visits
    shift·t/(1 + (shift - 1)·t) of equally spaced t (Esser et al., 2024, arXiv:2403.03206).

    Args:
        shift: Above 1 moves the times towards noise.

    Raises:
        ValueError: If `shift` is not positive and finite.
        TypeError: If `shift` is not a number.
    """

    shift: float = 1.0
    prediction = "flow"
    span = (0.0, 1.0)

    def __post_init__(self) -> None:
        _check.positive("shift", self.shift)

    def times(self, steps: int) -> list[float]:
        """Return the `steps + 1` shifted times from 1 to 0."""
        return [self.shift * t / (1 + (self.shift - 1) * t) for t in evenly_spaced(1.0, 0.0, steps + 1)]

    def level(self, t: float) -> Level:
        """Return the noise level with alpha 1 - t and sigma t."""
        return Level(t, 1 - t, t, 1.0)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 - t and t in float64."""
        return 1 - t.double(), t.double()

    def level_of(self, u: float) -> Level:
        """Return the noise level with sigma u: here the scale is 1 at every time."""
        return self.level(u)

    def level_of_log_snr(self, log_snr: float) -> Level:
        """Return the noise level at which ln((1 - t)/t) is `log_snr`."""
        return self.level(1 / (1 + math.exp(log_snr)))


#: Constructors of schedules by the names that `schedule=` takes.
SCHEDULES = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "laplace": laplace,
    "karras": KarrasSchedule,
    "exponential": VarianceExplodingSchedule,
    "flow": FlowMatchingSchedule,
}

#: One schedule of each name, made at import: torch.compile must not trace its construction.
_NAMED = {name: make() for name, make in SCHEDULES.items()}


def schedule(value: str | Schedule) -> Schedule:
    """Return a schedule as it is, or the one of that name.

    Raises:
        ValueError: For an unknown name or an object that is no schedule.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str) and value in _NAMED:
        return _NAMED[value]
    raise ValueError(
        f"schedule: expected a Schedule object or one of {', '.join(_NAMED)}, got {described(value)}"
    )
