"""Multistep solvers, which use the denoised x0 or the slopes of the steps before."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ... import _check
from ..schedules import Level, Schedule
from .base import Row, Sampler
from .singlestep import lowered, slope
from .weights import euler

SOLVERS = ("midpoint", "heun")
FORMULATIONS = ("exact", "published")


def usable_order(order: int, levels: Sequence[Level], k: int) -> int:
    """Return the order of the step from level k, at most `order`.

    Only levels with a finite λ = ln(alpha/sigma) count; a step to data or to pure noise has order 1.
    """
    if levels[k + 1].sigma == 0 or levels[k + 1].alpha == 0:
        return 1
    usable = sum(math.isfinite(level.log_snr) for level in levels[max(k - order + 1, 0) : k + 1])
    return max(usable, 1)


def exponential_step(now: Level, to: Level, eta: float) -> tuple[float, float, dict[str, float]]:
    """Return the factors of SDE-DPM-Solver++ for a step h = λ' - λ, which may be infinite.

    Returns:
        H = (1 + eta)·h; φ = e^-H - 1; and the weights of x, of x0 in a step of order 1, and of the noise.
    """
    if to.alpha == 0:  # to pure noise
        return -math.inf, math.inf, euler(now, to)
    h = to.log_snr - now.log_snr
    stretched = (1 + eta) * h
    eta_h = eta * h if eta else 0.0
    noise = to.sigma * math.sqrt(-math.expm1(-2 * eta_h))
    phi = math.expm1(-stretched)
    return stretched, phi, dict(x=to.sigma / now.sigma * math.exp(-eta_h), x0=-to.alpha * phi, noise=noise)


@dataclass(frozen=True, repr=False)
class DPMPP2MSampler(Sampler):
    """DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095, algorithm 2).

    Args:
        solver: Second-order term, "midpoint" or "heun".
    """

    solver: str = "midpoint"
    invertible = True
    cfg_pp = True

    def __post_init__(self) -> None:
        _check.one_of("solver", self.solver, SOLVERS)

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step, which keeps x0."""
        return DPMPP2MSDESampler(0.0, self.solver).rows(schedule, levels)


@dataclass(frozen=True, repr=False)
class DPMPP3MSampler(Sampler):
    """DPM-Solver++ of third order, multistep (Lu et al., 2022, arXiv:2211.01095).

    Args:
        formulation: "exact" is of third order. "published" is that of the authors' code, diffusers and
            k-diffusion, which take half of the second derivative for all of it and so are of second order
            (the paper's single-step solver takes all of it).
    """

    formulation: str = "exact"
    invertible = True
    cfg_pp = True

    def __post_init__(self) -> None:
        _check.one_of("formulation", self.formulation, FORMULATIONS)

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step, which keeps the last two x0."""
        return DPMPP3MSDESampler(0.0, self.formulation).rows(schedule, levels)


@dataclass(frozen=True, repr=False)
class DPMPP2MSDESampler(Sampler):
    """SDE-DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095).

    Args:
        eta: Amount of noise; 0 is DPM-Solver++(2M).
        solver: Second-order term, "midpoint" or "heun".
    """

    eta: float = 1.0
    solver: str = "midpoint"
    cfg_pp = True

    def __post_init__(self) -> None:
        _check.finite("eta", self.eta, 0)
        _check.one_of("solver", self.solver, SOLVERS)

    @property
    def invertible(self) -> bool:
        """True without noise."""
        return self.eta == 0

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step, which keeps x0."""
        for k, (now, to) in enumerate(pairwise(levels)):
            stretched, phi, weights = exponential_step(now, to, self.eta)
            base = weights["x0"]
            if usable_order(2, levels, k) == 2:
                h = to.log_snr - now.log_snr
                r0 = (now.log_snr - levels[k - 1].log_snr) / h
                slope = base / 2
                if self.solver == "heun":
                    slope = to.alpha * (phi / stretched + 1)
                weights.update(x0=base + slope / r0, h1=-slope / r0)
            yield Row(now, to, weights, keep=("x0",))


@dataclass(frozen=True, repr=False)
class DPMPP3MSDESampler(Sampler):
    """SDE-DPM-Solver++ of third order, multistep (Lu et al., 2022, arXiv:2211.01095).

    Args:
        eta: Amount of noise; 0 is `DPMPP3M`.
        formulation: "exact" or "published", as in `DPMPP3M`.
    """

    eta: float = 1.0
    formulation: str = "exact"
    cfg_pp = True

    def __post_init__(self) -> None:
        _check.finite("eta", self.eta, 0)
        _check.one_of("formulation", self.formulation, FORMULATIONS)

    @property
    def invertible(self) -> bool:
        """True without noise."""
        return self.eta == 0

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step, which keeps the last two x0."""
        for k, (now, to) in enumerate(pairwise(levels)):
            stretched, phi, weights = exponential_step(now, to, self.eta)
            base = weights["x0"]
            order = usable_order(3, levels, k)
            if order > 1:
                h = to.log_snr - now.log_snr
                c1 = to.alpha * (phi / stretched + 1)
                r0 = (now.log_snr - levels[k - 1].log_snr) / h
                if order == 2:
                    weights.update(x0=base + c1 / r0, h1=-c1 / r0)
                else:
                    c2 = -to.alpha * ((phi + stretched) / stretched**2 - 0.5)
                    if self.formulation == "exact":
                        c2 *= 2  # the second divided difference is half the second derivative
                    r1 = (levels[k - 1].log_snr - levels[k - 2].log_snr) / h
                    u = (c1 * (1 + r0 / (r0 + r1)) + c2 / (r0 + r1)) / r0
                    w = (c1 * r0 + c2) / ((r0 + r1) * r1)
                    weights.update(x0=base + u, h1=-(u + w), h2=w)
            yield Row(now, to, weights, keep=("x0", "h1")[: k + 1])


@dataclass(frozen=True, repr=False)
class RESMultistepSampler(Sampler):
    """Second-order exponential multistep solver (Zhang et al., 2023, arXiv:2308.02157), "res_multistep".

    Without noise it is `DPMPP2M(solver="heun")`.

    Args:
        eta: Standard deviation of a step's ancestral noise over the posterior's.
    """

    eta: float = 0.0
    schedule = "karras"
    cfg_pp = True

    def __post_init__(self) -> None:
        _check.finite("eta", self.eta, 0)

    @property
    def invertible(self) -> bool:
        """True without noise."""
        return self.eta == 0

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step, which keeps x0."""
        for k, (now, to) in enumerate(pairwise(levels)):
            down, noise = lowered(now, to, self.eta)
            weights = euler(now, down) | {"noise": noise}
            if usable_order(2, levels, k) == 2 and down.sigma > 0:
                h = down.log_snr - now.log_snr
                slope_of_x0 = (
                    down.alpha * (math.expm1(-h) / h + 1) * h / (now.log_snr - levels[k - 1].log_snr)
                )
                weights["x0"] += slope_of_x0
                weights["h1"] = -slope_of_x0
            yield Row(now, to, weights, keep=("x0",))


@dataclass(frozen=True, repr=False)
class DEISSampler(Sampler):
    """Diffusion exponential integrator, ρAB-DEIS in ln ρ (Zhang and Chen, 2022, arXiv:2204.13902).

    The polynomial in ln(sigma/alpha) through the last noises ε is integrated exactly over sigma/alpha.

    Args:
        order: Number of noises, 1 to 4.
    """

    order: int = 3
    invertible = True

    def __post_init__(self) -> None:
        _check.one_of("order", self.order, (1, 2, 3, 4))

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step, which keeps the last noises."""
        for k, (now, to) in enumerate(pairwise(levels)):
            weights = euler(now, to)
            order = usable_order(self.order, levels, k)
            if order > 1:
                points = [now.log_snr - level.log_snr for level in reversed(levels[k - order + 1 : k + 1])]
                of_noise, *others = exponential_adams(points, now.log_snr - to.log_snr)
                scale = to.alpha * now.sigma / now.alpha
                weights = dict(x=to.alpha / now.alpha * (1 + of_noise), x0=-to.alpha * of_noise)
                weights.update({f"h{i}": scale * w for i, w in enumerate(others, 1)})
            keep = ("kept", "h1", "h2")[: min(k + 1, self.order - 1)]
            yield Row(now, to, weights | slope(now), keep=keep)


def exponential_adams(points: Sequence[float], end: float) -> list[float]:
    """Integrate each Lagrange polynomial of the points, times e^s, over s from 0 to `end`."""

    def moment(k: int) -> float:
        """∫ (s/end)^k·e^s ds, by its series, or where that cancels by parts."""
        if abs(end) < 2:
            terms = (end**n / (math.factorial(n) * (k + n + 1)) for n in range(30))
            return end * math.fsum(terms)
        value = math.expm1(end)
        for i in range(1, k + 1):
            value = math.exp(end) - i / end * value
        return value

    weights = []
    for j, point in enumerate(points):
        coefficients = [1.0]  # of the Lagrange polynomial in s/end, lowest first
        for other in (p for i, p in enumerate(points) if i != j):
            scale = 1 / (point - other)
            shifted = [0.0, *(c * end * scale for c in coefficients)]
            coefficients = [s - other * scale * c for s, c in zip(shifted, [*coefficients, 0.0], strict=True)]
        weights.append(math.fsum(c * moment(i) for i, c in enumerate(coefficients)))
    return weights


@dataclass(frozen=True, repr=False)
class UniPCSampler(Sampler):
    """Unified predictor-corrector (Zhao et al., 2023, arXiv:2302.04867, algorithms 5 and 6).

    Each row first corrects x with the x0 found at its level, then predicts the next x from the corrected
    one, which it keeps.

    Args:
        order: Order of the predictor, 1 to 3; the corrector's is one higher.
        lower_order_final: Whether the order falls in the last steps.
        solver: "bh2" for B(h) = e^h - 1, or "bh1" for B(h) = h.
    """

    order: int = 2
    lower_order_final: bool = True
    solver: str = "bh2"
    invertible = True

    def __post_init__(self) -> None:
        _check.one_of("order", self.order, (1, 2, 3))
        _check.one_of("solver", self.solver, ("bh1", "bh2"))

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step, which keeps the corrected x (h1) and the last x0s (h2 ...)."""
        steps = len(levels) - 1
        last_order = 0  # of the step that led to this level
        for k, (now, to) in enumerate(pairwise(levels)):
            corrected = dict(x=1.0)  # weights of the corrected x
            if k:
                last, *others, new = self._weights(levels, k - 1, last_order, correct=True)
                corrected = dict(h1=last, x0=new)
                corrected.update({f"h{2 + i}": w for i, w in enumerate(others)})
            order = usable_order(self.order, levels, k)
            if self.lower_order_final:
                order = min(order, steps - k)
            of_x, of_x0, *others = self._weights(levels, k, order, correct=False)
            weights = {name: of_x * w for name, w in corrected.items()}
            for name, w in {"x0": of_x0, **{f"h{2 + i}": w for i, w in enumerate(others)}}.items():
                weights[name] = weights.get(name, 0.0) + w
            weights.update({f"kept_{name}": w for name, w in corrected.items()})
            last_order = order
            yield Row(now, to, weights, keep=("kept", "x0", "h2", "h3")[: min(self.order, k + 1) + 1])

    def _weights(self, levels: Sequence[Level], k: int, order: int, correct: bool) -> list[float]:
        """Return the weights, for the step from level k, of x and of the x0 of levels k, k - 1, ...

        There are `order` of the latter; the corrector's list ends with the weight of x0 at level k + 1.
        """
        now, to = levels[k], levels[k + 1]
        if to.alpha == 0:  # to pure noise
            return list(euler(now, to).values())
        h = to.log_snr - now.log_snr
        b = -h if self.solver == "bh1" and math.isfinite(h) else math.expm1(-h)
        ratios = [(levels[k - i].log_snr - now.log_snr) / h for i in range(1, order)]
        if correct:
            rho = [0.5] if order == 1 else unipc_coefficients([*ratios, 1.0], h, b)
        else:
            rho = [0.5] if order == 2 else unipc_coefficients(ratios, h, b)
        size = -to.alpha * math.expm1(-h)
        differences = [-to.alpha * b * r / ratio for r, ratio in zip(rho, [*ratios, 1.0], strict=False)]
        x0s = [size - sum(differences), *differences]
        return [to.sigma / now.sigma, *x0s]


def unipc_coefficients(ratios: list[float], h: float, size: float) -> list[float]:
    """Solve Σ_m ρ_m·r_m^(i-1) = i!·φ_(i+1)(-h)·(-h)/B for ρ, i = 1 ..., with B = `size`."""
    if not ratios:
        return []
    n = len(ratios)
    b, factorial, phi = [], 1, math.expm1(-h) / -h - 1
    for i in range(1, n + 1):
        b.append(phi * factorial / size)
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    with torch.device("cpu"):
        matrix = torch.tensor([[r ** (i - 1) for r in ratios] for i in range(1, n + 1)], dtype=torch.float64)
        return torch.linalg.solve(matrix, torch.tensor(b, dtype=torch.float64)).tolist()


@dataclass(frozen=True, repr=False)
class LMSSampler(Sampler):
    """Linear multistep method of Adams and Bashforth for the probability flow dy/du = (y - x0)/u.

    Karras et al., 2022, arXiv:2206.00364, eq. 4. The polynomial through the last slopes is integrated
    exactly, whatever the spacing of the levels.

    Args:
        order: Number of slopes, 1 to 5.
    """

    order: int = 4
    schedule = "karras"
    invertible = True

    def __post_init__(self) -> None:
        _check.one_of("order", self.order, (1, 2, 3, 4, 5))

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield one row a step, which keeps the last slopes."""
        for k, (now, to) in enumerate(pairwise(levels)):
            kept = dict(kept_x=1 / now.sigma, kept_x0=-1 / now.u)  # the slope
            if now.scale == 0:
                weights = euler(now, to)
            else:
                usable = [level.u for level in levels[max(k + 1 - self.order, 0) : k + 1] if level.scale]
                of_slope, *others = (to.scale * w for w in adams_bashforth(usable[::-1], to.u))
                weights = dict(x=to.scale / now.scale + of_slope / now.sigma, x0=-of_slope / now.u)
                weights.update({f"h{i}": w for i, w in enumerate(others, 1)})
            yield Row(now, to, weights | kept, keep=("kept", "h1", "h2", "h3")[: min(k + 1, self.order - 1)])


def adams_bashforth(points: Sequence[float], end: float) -> list[float]:
    """Integrate each Lagrange polynomial of the points, from the first point to `end`.

    By Gauss-Legendre quadrature with three nodes, which is exact to degree 5.
    """
    start = points[0]
    half = (end - start) / 2
    weights = [0.0] * len(points)
    for node, share in ((-math.sqrt(0.6), 5 / 9), (0.0, 8 / 9), (math.sqrt(0.6), 5 / 9)):
        at = start + half * (1 + node)
        for j, point in enumerate(points):
            others = (p for i, p in enumerate(points) if i != j)
            weights[j] += half * share * math.prod((at - p) / (point - p) for p in others)
    return weights
