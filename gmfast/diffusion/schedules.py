"""How much data and how much noise there is at each time: x_t = alpha(t)·x0 + sigma(t)·z, in float64.

Three kinds, by what a denoiser is told of the time:

- `VariancePreserving` (DDPM): the discrete time step 0 ... T - 1; alpha² + sigma² = 1.
- `VarianceExploding` (NCSN, EDM): sigma itself; alpha = 1.
- `FlowMatching`: t in [0, 1]; alpha = 1 - t, sigma = t.
"""

import bisect
import math
import sys
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from .. import _check
from .spacing import SPACINGS


@dataclass(frozen=True)
class Level:
    """A point of a schedule: time `t` as the denoiser is told it, `alpha` of data, `sigma` of noise.

    `scale` is that of the coordinates y = x/scale in which the probability flow is dy/du = (y - x0)/u with
    u = sigma/scale (Karras et al., 2022, arXiv:2206.00364, eq. 4).
    """

    t: float
    alpha: float
    sigma: float
    scale: float

    @property
    def u(self):
        return self.sigma / self.scale if self.scale else math.inf

    @property
    def log_snr(self):
        """λ = ln(alpha/sigma), the time of the DPM-Solvers: half of the signal-to-noise ratio's logarithm."""
        if self.alpha == 0 or self.sigma == 0:
            return -math.inf if self.alpha == 0 else math.inf
        return math.log(self.alpha / self.sigma)


class Schedule:
    """What a sampler asks of a schedule. Those of one's own override these.

    The schedules here never change; `dataclasses.replace(schedule, spacing="karras")` gives another one. Of
    one's own, those that can be hashed are taken not to change either: plans are kept.
    """

    discrete = False  #: whether times are whole numbers, which the denoiser is given as int64
    prediction = "epsilon"  #: what a denoiser returns, unless it or `sample`'s caller says otherwise
    sigma_min = 0.0
    span = (0.0, sys.float_info.max)  #: the least and the greatest time
    __hash__ = None

    def times(self, steps):
        """Times from noise to data, a list of `steps + 1`; the last is where sampling ends."""
        raise NotImplementedError

    def level(self, t):
        """The `Level` at time t."""
        raise NotImplementedError

    def level_of(self, u):
        """The `Level` at which sigma/scale is u."""
        raise NotImplementedError

    def alpha_sigma(self, t):
        """alpha and sigma at times t, a tensor, in float64 and in its shape and on its device; NaN at times
        that a table does not have."""
        raise NotImplementedError

    def start(self, level):
        """The standard deviation of what sampling begins with at a level."""
        return level.sigma


@dataclass(frozen=True, eq=False)
class VariancePreserving(Schedule):
    """Discrete times, as DDPM's (Ho et al., 2020, arXiv:2006.11239).

    Between whole time steps ln(sigma/alpha) is linear in t; t < 0 is the data.

    Args:
        alphas_cumprod: ᾱ of each time step, `(T,)`, in [0, 1), none above the one before: alpha² of the
            levels.
        spacing: which time steps a sampler with fewer visits (`gmfast.diffusion.SPACINGS`): "trailing",
            "leading", "linspace", "lcm", or "karras" or "exponential" in sigma/alpha, between those of the
            first and last time steps.
        steps_offset: added to time steps of spacing "leading" (Stable Diffusion: 1).
        final_alpha_cumprod: ᾱ at the end; 1 is the data, None is ᾱ of time step 0.
    """

    alphas_cumprod: torch.Tensor
    spacing: str = field(default="trailing", kw_only=True)
    steps_offset: int = field(default=0, kw_only=True)
    final_alpha_cumprod: float | None = field(default=1.0, kw_only=True)

    def __repr__(self):
        table = self.alphas_cumprod
        return (
            f"{type(self).__name__}(alphas_cumprod=({len(table)} from {table[0]:.6g} to {table[-1]:.6g}), "
            f"spacing={self.spacing!r}, steps_offset={self.steps_offset}, "
            f"final_alpha_cumprod={self.final_alpha_cumprod:.6g})"
        )

    @torch.inference_mode(False)  # training may save the tensors
    def __post_init__(self):
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
    def from_betas(cls, betas, **options):
        """Of β_t, the share of the variance that a time step replaces by noise."""
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        return cls(torch.cumprod(1 - betas, 0), **options)

    __hash__ = object.__hash__

    @property
    def discrete(self):
        return self.spacing not in ("karras", "exponential")

    @property
    def span(self):
        return -1, len(self) - 1

    def __len__(self):
        return len(self._alpha)

    def times(self, steps):
        return SPACINGS[self.spacing](self, steps)

    def level(self, t):
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
        return self._of(t, u)

    def level_of(self, u):
        if u <= 0:
            return self.level(-1.0)
        log_u = math.log(u)
        high = bisect.bisect_left(self._log_u, log_u)
        if high == 0:
            return self._of(0.0, u)
        if high == len(self):
            return self._of(float(len(self) - 1), u)
        low_u, high_u = self._log_u[high - 1], self._log_u[high]
        return self._of(high - 1 + (log_u - low_u) / (high_u - low_u), u)

    def alpha_sigma(self, t):
        if t.device not in self._on_device:
            tables = self._on_device[self.alphas_cumprod.device]
            self._on_device[t.device] = [table.to(t.device) for table in tables]
        alpha, sigma, log_u = self._on_device[t.device]
        last = len(self) - 1
        whole = t.long().clamp(0, last)

        def at(table, rows):  # brackets would wait for the device to say what a scalar tensor is
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
    def _of(t, u):
        alpha = 1 / math.hypot(1, u)
        return Level(t, alpha, u * alpha if alpha else 1.0, alpha)

    def start(self, level):
        return 1.0

    def zero_terminal_snr(self):
        """The same with nothing of the data left at the last time step (Lin et al., 2024, arXiv:2305.08891).

        A network that predicts the noise says nothing of the data there: predictions "v", "x0" or "flow".
        """
        first, last = self._alpha[0], self._alpha[-1]
        if first == last:
            raise ValueError("alphas_cumprod: expected at least two different ones, got one")
        alpha = (self.alphas_cumprod.sqrt() - last) * (first / (first - last))
        return replace(self, alphas_cumprod=alpha.square())


def linear(num_timesteps=1000, beta_start=1e-4, beta_end=0.02, **options):
    """β linear in the time (Ho et al., 2020, arXiv:2006.11239)."""
    _check.at_least(1, num_timesteps=num_timesteps)
    betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64, device="cpu")
    return VariancePreserving.from_betas(betas, **options)


def scaled_linear(num_timesteps=1000, beta_start=0.00085, beta_end=0.012, **options):
    """√β linear in the time, as latent diffusion has it (Rombach et al., 2022, arXiv:2112.10752)."""
    _check.at_least(1, num_timesteps=num_timesteps)
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64, device="cpu")
    return VariancePreserving.from_betas(roots.square(), **options)


def cosine(num_timesteps=1000, offset=0.008, max_beta=0.999, **options):
    """ᾱ = cos²(π/2·(t + s)/(1 + s)) (Nichol and Dhariwal, 2021, arXiv:2102.09672)."""
    return _of_alpha_bar(
        lambda t: math.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2, num_timesteps, max_beta, options
    )


def sigmoid(num_timesteps=1000, start=-3.0, end=3.0, temperature=1.0, max_beta=0.999, **options):
    """ᾱ a sigmoid's piece from `start` to `end`, stretched to 1 ... 0 (Jabri et al., 2023,
    arXiv:2212.11972)."""

    def value(v):
        return 1 / (1 + math.exp(-v / temperature))

    def alpha_bar(t):
        return (value(end) - value(t * (end - start) + start)) / (value(end) - value(start))

    return _of_alpha_bar(alpha_bar, num_timesteps, max_beta, options)


def laplace(num_timesteps=1000, mean=0.0, width=0.5, **options):
    """The logarithm of alpha²/sigma² distributed as Laplace's (Hang et al., 2024, arXiv:2407.03297)."""
    _check.at_least(1, num_timesteps=num_timesteps)
    t = (torch.arange(num_timesteps, dtype=torch.float64, device="cpu") + 0.5) / num_timesteps
    log_snr = mean - width * torch.sign(0.5 - t) * torch.log(1 - 2 * (t - 0.5).abs())
    return VariancePreserving(torch.sigmoid(log_snr), **options)


def _of_alpha_bar(alpha_bar, num_timesteps, max_beta, options):
    _check.at_least(1, num_timesteps=num_timesteps)
    bars = [alpha_bar(i / num_timesteps) for i in range(num_timesteps + 1)]
    betas = [min(1 - after / before, max_beta) for before, after in pairwise(bars)]
    return VariancePreserving.from_betas(betas, **options)


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """Times are sigmas; those that a sampler visits are equally spaced in ln sigma, as NCSN's (Song and
    Ermon, 2019, arXiv:1907.05600), then 0."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        _check.positive("sigma_min", self.sigma_min)
        _check.finite("sigma_max", self.sigma_max, self.sigma_min)

    def times(self, steps):
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return [math.exp(s) for s in _between(high, low, steps)] + [0.0]

    def level(self, t):
        return Level(t, 1.0, t, 1.0)

    def alpha_sigma(self, t):
        return torch.ones_like(t, dtype=torch.float64), t.double()

    def level_of(self, u):
        return self.level(u)


@dataclass(frozen=True)
class Karras(VarianceExploding):
    """Sigmas equally spaced in sigma^(1/ρ), then 0 (Karras et al., 2022, arXiv:2206.00364, eq. 5)."""

    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        _check.positive("rho", self.rho)

    def times(self, steps):
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return [s**self.rho for s in _between(high, low, steps)] + [0.0]


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """Straight paths from noise (t = 1) to data (t = 0) (Lipman et al., 2023, arXiv:2210.02747; Liu et al.,
    2023, arXiv:2209.03003), visited at shift·t/(1 + (shift - 1)·t) of equally spaced t (Esser et al., 2024,
    arXiv:2403.03206)."""

    shift: float = 1.0
    prediction = "flow"
    span = (0.0, 1.0)

    def __post_init__(self):
        _check.positive("shift", self.shift)

    def times(self, steps):
        return [self.shift * t / (1 + (self.shift - 1) * t) for t in _between(1.0, 0.0, steps + 1)]

    def level(self, t):
        return Level(t, 1 - t, t, 1.0)

    def alpha_sigma(self, t):
        return 1 - t.double(), t.double()

    def level_of(self, u):
        return self.level(u)


def _between(start, end, count):
    """`count` numbers, both ends among them."""
    if count == 1:
        return [start]
    return [start + (end - start) * i / (count - 1) for i in range(count - 1)] + [end]


#: What `schedule=` may name.
SCHEDULES = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "laplace": laplace,
    "karras": Karras,
    "exponential": VarianceExploding,
    "flow": FlowMatching,
}


#: One object of each name, made before a graph could be made of making it.
_NAMED = {name: make() for name, make in SCHEDULES.items()}


def schedule(value):
    """A schedule, or the one that a string names."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str) and value in _NAMED:
        return _NAMED[value]
    given = repr(value) if isinstance(value, str) else _check.kind(value)
    raise ValueError(f"schedule: expected a Schedule object or one of {', '.join(_NAMED)}, got {given}")
