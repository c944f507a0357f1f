"""The samplers: each turns the levels that it visits into a table of coefficients, one row for each call of
the denoiser, in float64. `gmfast.functional.diffusion_step` then does a row in one pass.

A sampler's `rows` says, in the letters of its paper, what the next x is made of: of x, of x0 (what the
denoiser makes of x), of tensors kept from the rows before, and of new noise. With alpha and sigma of each
level from the schedule, one such function serves variance-preserving, variance-exploding and flow-matching
schedules alike.
"""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from .. import _check
from .._table import COLUMNS
from .schedules import Level, VariancePreserving
from .spacing import lcm as lcm_spacing

PREDICTIONS = ("epsilon", "x0", "v", "flow", "score")


@dataclass
class Row:
    """One call of the denoiser: at `now`, from which x gets to `to`.

    `weights` are by the names of `COLUMNS`. `keep` names the history of the next row, h1 first: "x" (before
    the row), "x0", "kept" (the row's second sum), or "h1" ... of this row. `whole`: a step ends here.
    """

    now: Level
    to: Level
    weights: dict
    keep: tuple = ()
    whole: bool = True


def x0_weights(prediction, level):
    """(P, Q) such that x0 = P·x + Q·m.

    m is, with the noise z: "epsilon" z; "x0" x0; "v" (alpha·z - sigma·x0)/√(alpha² + sigma²) (Salimans and
    Ho, 2022, arXiv:2202.00512); "flow" z - x0 (Lipman et al., 2023, arXiv:2210.02747); "score" -z/sigma.
    """
    a, s = level.alpha, level.sigma
    if prediction == "x0":
        return 0.0, 1.0
    if prediction == "v":
        return a / (a * a + s * s), -s / math.hypot(a, s)
    if prediction == "flow":
        return 1 / (a + s), -s / (a + s)
    if a == 0:
        raise ValueError(
            f"prediction: expected 'v', 'x0' or 'flow', as nothing of the data is left at time {level.t:g}, "
            f"got {prediction!r}"
        )
    return 1 / a, (-s / a if prediction == "epsilon" else s * s / a)


@dataclass
class Plan:
    """What `sample` runs: the rows of a sampler for one schedule, and their table, once on each device."""

    rows: list = field(repr=False)
    prediction: str
    start: Level  #: where sampling begins
    learned_range: bool = False
    discrete: bool = False  #: whether times are whole numbers
    _tables: dict = field(default_factory=dict, repr=False)

    def __len__(self):
        return len(self.rows)

    @property
    def steps(self):
        return sum(row.whole for row in self.rows)

    @property
    def single(self):
        """Whether a row needs nothing from the rows before."""
        return not any(row.keep for row in self.rows)

    @property
    def kept(self):
        """Whether the rows have a second sum."""
        return any("kept" in row.keep for row in self.rows)

    def table(self, device="cpu"):
        """`(rows + 1, 20)`, float64, for `gmfast.functional.diffusion_step`: in the order of sampling, from
        noise to data; the last row leaves x as it is, for samples that have arrived before others."""
        device = torch.device(device)
        return self._kept(device, lambda: self._make_table().to(device))

    def _make_table(self):
        table = torch.zeros(len(self.rows) + 1, len(COLUMNS), dtype=torch.float64)
        index = {name: i for i, name in enumerate(COLUMNS)}
        cells, values = [], []
        for i, row in enumerate(self.rows):
            p, q = x0_weights(self.prediction, row.now)
            for name, value in {"x0_x": p, "x0_m": q, **row.weights}.items():
                cells.append((i, index[name]))
                values.append(value)
        where = torch.tensor(cells, dtype=torch.int64).reshape(-1, 2).T
        table[where[0], where[1]] = torch.tensor(values, dtype=torch.float64)
        table[-1, index["x"]] = 1
        return table

    def times(self, device="cpu", dtype=torch.float32):
        """What the denoiser is told at each row, `(rows,)`: int64 of a discrete schedule, else `dtype`."""
        key = torch.device(device), torch.int64 if self.discrete else dtype
        return self._kept(
            key, lambda: torch.tensor([row.now.t for row in self.rows], dtype=key[1]).to(device)
        )

    def _kept(self, key, make):
        """A tensor that every later call uses, even if this one is in inference mode."""
        if key not in self._tables:
            with torch.inference_mode(False), torch.device("cpu"):
                self._tables[key] = make()
        return self._tables[key]


class Sampler:
    """What every sampler has. One of one's own that can be hashed is taken not to change: plans are kept."""

    schedule = "linear"  #: unless `sample` is told another
    __hash__ = None

    def times(self, schedule, steps):
        """Times from noise to data, and where to end: `steps + 1`."""
        return schedule.times(steps)

    def rows(self, schedule, levels):
        """The `Row`s that lead through the levels."""
        raise NotImplementedError

    def plan(self, schedule, times, prediction=None):
        """The `Plan` of times from noise to where to end. `prediction`: by default the schedule's."""
        prediction = schedule.prediction if prediction is None else prediction
        _check.one_of("prediction", prediction, PREDICTIONS)
        low, high = schedule.span
        if not (times[0] <= high and low <= times[-1]):
            raise ValueError(f"times: expected at least {low:g} and at most {high:g}, got {list(times)}")
        levels = [schedule.level(t) for t in times]
        learned_range = getattr(self, "variance", "") == "learned_range"
        return Plan(
            list(self.rows(schedule, levels)),
            prediction,
            self.begin(schedule, levels),
            learned_range,
            schedule.discrete,
        )

    def begin(self, schedule, levels):
        return levels[0]


# ---- Ancestral and implicit -------------------------------------------------------------------------------


def posterior(now, to):
    """q(x' | x, x0) of two levels of one process: the weights of x and x0, and the variance (Kingma et al.,
    2021, arXiv:2107.00630, appendix A; Ho et al., 2020, arXiv:2006.11239, eqs. 6 and 7)."""
    a = now.alpha / to.alpha
    fresh = max(now.sigma**2 - (a * to.sigma) ** 2, 0.0)  # the variance of q(x | x'): β of DDPM
    return a * (to.sigma / now.sigma) ** 2, to.alpha * fresh / now.sigma**2, fresh, to.sigma**2 / now.sigma**2


@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling (Ho et al., "Denoising diffusion probabilistic models", 2020, arXiv:2006.11239).

    `variance`: of the noise, "small" (the posterior's) or "large" (β); "learned_range": the denoiser returns
    v as a second half of its channels (Nichol and Dhariwal, 2021, arXiv:2102.09672).
    """

    variance: str = "small"

    def __post_init__(self):
        _check.one_of("variance", self.variance, ("small", "large", "learned_range"))

    def rows(self, schedule, levels):
        small = None
        for now, to in pairwise(levels):
            of_x, of_x0, beta, share = posterior(now, to)
            weights = dict(x=of_x, x0=of_x0)
            # A last step to data has no noise; its range, the decoder's, begins where that of the step before
            # did.
            if to.sigma > 0:
                small = beta * share
            elif small is None:
                small = beta
            if self.variance == "learned_range":
                low, high = (math.log(max(v, 1e-20)) for v in (small, beta))
                weights.update(noise=float(to.sigma > 0), log_var_min=low, log_var_max=high)
            elif to.sigma > 0:
                weights["noise"] = math.sqrt(small if self.variance == "small" else beta)
            yield Row(now, to, weights)


def implicit(now, to, eta=0.0):
    """x' = alpha'·x0 + √(sigma'² - s²)·ε + s·z, with ε = (x - alpha·x0)/sigma."""
    *_, beta, share = posterior(now, to)
    s = eta * math.sqrt(beta * share)
    if s > to.sigma and eta > 1:
        raise ValueError(
            f"eta: expected at most {eta * to.sigma / s:.6g}, with which all the noise of time {to.t:g} is "
            f"new, got {eta}"
        )
    s = min(s, to.sigma)
    of_epsilon = math.sqrt(to.sigma**2 - s * s)
    return dict(x=of_epsilon / now.sigma, x0=to.alpha - of_epsilon * now.alpha / now.sigma, noise=s)


@dataclass(frozen=True)
class DDIM(Sampler):
    """Denoising diffusion implicit models (Song et al., 2021, arXiv:2010.02502), eq. 12; `eta` 0 is
    deterministic, 1 is DDPM. More is refused where a step would have more new noise than noise."""

    eta: float = 0.0

    def __post_init__(self):
        _check.finite("eta", self.eta, 0)

    def rows(self, schedule, levels):
        for now, to in pairwise(levels):
            yield Row(now, to, implicit(now, to, self.eta))


# ---- Solvers in the time λ = ln(alpha/sigma) --------------------------------------------------------------


def _order(order, levels, k):
    """How many of levels k, k - 1, ... the step from level k may use: at most `order`, of finite λ."""
    if levels[k + 1].sigma == 0:
        return 1
    usable = sum(math.isfinite(level.log_snr) for level in levels[max(k - order + 1, 0) : k + 1])
    return max(usable, 1)


SOLVERS = ("midpoint", "heun")
FORMULATIONS = ("exact", "published")


def _with_noise(now, to, eta):
    """Of SDE-DPM-Solver++, with h = λ' - λ, which may be infinite: (1 + eta)·h, φ = e^-(1 + eta)h - 1, and
    the weights of x and of the noise."""
    h = to.log_snr - now.log_snr
    stretched = (1 + eta) * h
    eta_h = eta * h if eta else 0.0
    noise = to.sigma * math.sqrt(-math.expm1(-2 * eta_h))
    return stretched, math.expm1(-stretched), dict(x=to.sigma / now.sigma * math.exp(-eta_h), noise=noise)


@dataclass(frozen=True)
class DPMPP2M(Sampler):
    """DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095), algorithm 2. `solver`: "midpoint", or "heun"."""

    solver: str = "midpoint"

    def __post_init__(self):
        _check.one_of("solver", self.solver, SOLVERS)

    def rows(self, schedule, levels):
        return DPMPP2MSDE(0.0, self.solver).rows(schedule, levels)


@dataclass(frozen=True)
class DPMPP3M(Sampler):
    """DPM-Solver++ of third order, multistep (Lu et al., 2022, arXiv:2211.01095).

    `formulation`: "exact" is of third order; "published" is what the authors' code, diffusers and k-diffusion
    do, which take half of the second derivative for all of it and so are of second order (the paper's
    single-step solver takes all of it).
    """

    formulation: str = "exact"

    def __post_init__(self):
        _check.one_of("formulation", self.formulation, FORMULATIONS)

    def rows(self, schedule, levels):
        return DPMPP3MSDE(0.0, self.formulation).rows(schedule, levels)


@dataclass(frozen=True)
class DPMPP2MSDE(Sampler):
    """SDE-DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095). `eta` 0 is without noise."""

    eta: float = 1.0
    solver: str = "midpoint"

    def __post_init__(self):
        _check.finite("eta", self.eta, 0)
        _check.one_of("solver", self.solver, SOLVERS)

    def rows(self, schedule, levels):
        for k, (now, to) in enumerate(pairwise(levels)):
            stretched, phi, weights = _with_noise(now, to, self.eta)
            base = -to.alpha * phi
            weights.update(x0=base)
            if _order(2, levels, k) == 2:
                h = to.log_snr - now.log_snr
                r0 = (now.log_snr - levels[k - 1].log_snr) / h
                slope = base / 2
                if self.solver == "heun":
                    slope = to.alpha * (phi / stretched + 1)
                weights.update(x0=base + slope / r0, h1=-slope / r0)
            yield Row(now, to, weights, keep=("x0",))


@dataclass(frozen=True)
class DPMPP3MSDE(Sampler):
    """SDE-DPM-Solver++ of third order, multistep (Lu et al., 2022, arXiv:2211.01095): `DPMPP3M`, whose
    `formulation` it has, with noise; `eta` 0 is without."""

    eta: float = 1.0
    formulation: str = "exact"

    def __post_init__(self):
        _check.finite("eta", self.eta, 0)
        _check.one_of("formulation", self.formulation, FORMULATIONS)

    def rows(self, schedule, levels):
        for k, (now, to) in enumerate(pairwise(levels)):
            stretched, phi, weights = _with_noise(now, to, self.eta)
            base = -to.alpha * phi
            weights.update(x0=base)
            order = _order(3, levels, k)
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


@dataclass(frozen=True)
class UniPC(Sampler):
    """Unified predictor-corrector, B(h) of kind 2 (Zhao et al., 2023, arXiv:2302.04867), algorithms 5 and 6.

    Each row first corrects the step that led to it, with the x0 that it found there, and then predicts; the
    corrected x is kept. The corrector adds an order to `order`, 1 to 3. `lower_order_final`: the last steps
    have lower orders.
    """

    order: int = 2
    lower_order_final: bool = True

    def __post_init__(self):
        _check.one_of("order", self.order, (1, 2, 3))

    def rows(self, schedule, levels):
        steps = len(levels) - 1
        before = 0  # the order of the step that led here
        for k, (now, to) in enumerate(pairwise(levels)):
            # What the corrected x consists of. History: h1 the last corrected x, h2 ... the x0s before.
            fixed = dict(x=1.0)
            if k:
                last, *others, new = self._weights(levels, k - 1, before, correct=True)
                fixed = dict(h1=last, x0=new)
                fixed.update({f"h{2 + i}": w for i, w in enumerate(others)})
            order = _order(self.order, levels, k)
            if self.lower_order_final:
                order = min(order, steps - k)
            of_x, of_x0, *others = self._weights(levels, k, order, correct=False)
            weights = {name: of_x * w for name, w in fixed.items()}
            for name, w in {"x0": of_x0, **{f"h{2 + i}": w for i, w in enumerate(others)}}.items():
                weights[name] = weights.get(name, 0.0) + w
            weights.update({f"kept_{name}": w for name, w in fixed.items()})
            before = order
            yield Row(now, to, weights, keep=("kept", "x0", "h2", "h3")[: min(self.order, k + 1) + 1])

    @staticmethod
    def _weights(levels, k, order, correct):
        """Of the step from level k: the weights of x, of the x0s of levels k, k - 1, ... (`order` of them),
        and, to correct, of that of level k + 1."""
        now, to = levels[k], levels[k + 1]
        h = to.log_snr - now.log_snr
        ratios = [(levels[k - i].log_snr - now.log_snr) / h for i in range(1, order)]
        if correct:
            rho = [0.5] if order == 1 else _unipc_solve([*ratios, 1.0], h)
        else:
            rho = [0.5] if order == 2 else _unipc_solve(ratios, h)
        size = -to.alpha * math.expm1(-h)  # alpha'·(1 - e^-h), B(h) among it
        differences = [size * r / ratio for r, ratio in zip(rho, [*ratios, 1.0], strict=False)]
        x0s = [size - sum(differences), *differences]
        return [to.sigma / now.sigma, *x0s]


def _unipc_solve(ratios, h):
    """ρ of Σ_m ρ_m·r_m^(i-1) = i!·φ_(i+1)(-h)·(-h)/B(h) for i = 1 ..., with B(h) = e^-h - 1."""
    if not ratios:
        return []
    n = len(ratios)
    b, factorial, phi = [], 1, math.expm1(-h) / -h - 1
    for i in range(1, n + 1):
        b.append(phi * factorial / math.expm1(-h))
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    with torch.device("cpu"):
        matrix = torch.tensor([[r ** (i - 1) for r in ratios] for i in range(1, n + 1)], dtype=torch.float64)
        return torch.linalg.solve(matrix, torch.tensor(b, dtype=torch.float64)).tolist()


# ---- Solvers in sigma -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method for the probability flow (Karras et al., 2022, arXiv:2206.00364, algorithm 1 without the
    correction); the same as DDIM with eta = 0."""

    schedule = "karras"

    def rows(self, schedule, levels):
        for now, to in pairwise(levels):
            yield Row(now, to, _euler(now, to))


@dataclass(frozen=True)
class EulerAncestral(Sampler):
    """Euler's method to a level below, then noise up to the next one, as k-diffusion does; with eta = 1 the
    posterior of DDPM (Ho et al., 2020, arXiv:2006.11239) at sigmas of one's own choice. More is refused where
    the level would lie below the data."""

    eta: float = 1.0
    schedule = "karras"

    def __post_init__(self):
        _check.finite("eta", self.eta, 0)

    def rows(self, schedule, levels):
        for now, to in pairwise(levels):
            yield Row(now, to, implicit(now, to, self.eta))


def _euler(now, to):
    q = to.sigma / now.sigma
    return dict(x=q, x0=to.alpha - q * now.alpha)


def _heun(now, to):
    """The second stage: the mean of the slopes at both ends, dy/du = (y - x0)/u; h1 is x at `now`. The x0 of
    the first stage is in the x that it led to."""
    du = to.u - now.u
    return dict(h1=0.5 * to.scale / now.scale, x=0.5 * (1 + du / to.u), x0=-0.5 * to.scale * du / to.u)


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method for the probability flow (Karras et al., 2022, arXiv:2206.00364, algorithm 1): two calls
    of the denoiser a step, one at the last.

    Its steps are in sigma/alpha, which of a "cosine" or a "sigmoid" schedule falls from thousands to 6 in one
    of ten even time steps: there it is far off, by 20% of the probability with 20 calls (README). With their
    spacing "exponential" it is less so; multistep samplers are not.
    """

    schedule = "karras"

    def rows(self, schedule, levels):
        return EDM().rows(schedule, levels)


@dataclass(frozen=True)
class EDM(Sampler):
    """Heun's method with churn (Karras et al., "Elucidating the design space", 2022, arXiv:2206.00364,
    algorithm 2): between `s_min` and `s_max` each step first adds noise, as much as raises sigma by
    min(`churn`/steps, √2 - 1) of it, times `s_noise`. What `Heun` says of schedules holds for it too.

    A step's result has the next step's added noise in it already. Of discrete schedules sigma is raised to
    that of the nearest time step, which the denoiser is told. `order` 1 is Euler's method with that noise.
    """

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    order: int = 2
    schedule = "karras"

    def __post_init__(self):
        for name in ("churn", "s_min", "s_noise"):
            _check.finite(name, getattr(self, name), 0)
        _check.number("s_max", self.s_max, self.s_min, math.inf)
        _check.one_of("order", self.order, (1, 2))

    def _raised(self, schedule, levels):
        """The levels with the added noise (the last has none), and the standard deviations added, of y."""
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

    def begin(self, schedule, levels):
        (first, *_), (added, *_) = self._raised(schedule, levels)
        return replace(first, sigma=first.scale * math.hypot(levels[0].u, added)) if added else first

    def rows(self, schedule, levels):
        raised, added = self._raised(schedule, levels)
        for k, to in enumerate(levels[1:]):
            now, after = raised[k], raised[k + 1]
            noise = after.scale * added[k + 1]
            rise = after.scale / to.scale

            def ending(weights, rise=rise, noise=noise):
                return {name: rise * w for name, w in weights.items()} | {"noise": noise}

            # Of the end of time steps the denoiser knows nothing, even if there is noise.
            if self.order == 1 or to.sigma == 0 or to.t < 0 or now.scale == 0:
                yield Row(now, after, ending(_euler(now, to)))
            else:
                yield Row(now, to, _euler(now, to), keep=("x",), whole=False)
                yield Row(to, after, ending(_heun(now, to)))


@dataclass(frozen=True)
class LMS(Sampler):
    """The linear multistep method of Adams and Bashforth for the probability flow dy/du = (y - x0)/u (Karras
    et al., 2022, arXiv:2206.00364, eq. 4) at levels of any distance: the polynomial through the last `order`
    slopes, 1 to 5, integrated exactly."""

    order: int = 4
    schedule = "karras"

    def __post_init__(self):
        _check.one_of("order", self.order, (1, 2, 3, 4, 5))

    def rows(self, schedule, levels):
        for k, (now, to) in enumerate(pairwise(levels)):
            kept = dict(kept_x=1 / now.sigma, kept_x0=-1 / now.u)  # the slope
            if now.scale == 0:
                weights = _euler(now, to)
            else:
                usable = [level.u for level in levels[max(k + 1 - self.order, 0) : k + 1] if level.scale]
                of_slope, *others = (to.scale * w for w in _adams_bashforth(usable[::-1], to.u))
                weights = dict(x=to.scale / now.scale + of_slope / now.sigma, x0=-of_slope / now.u)
                weights.update({f"h{i}": w for i, w in enumerate(others, 1)})
            yield Row(now, to, weights | kept, keep=("kept", "h1", "h2", "h3")[: min(k + 1, self.order - 1)])


def _adams_bashforth(points, end):
    """Of values at points, their weights in the integral of the polynomial through them, from the first point
    to `end`: by Gauss's rule of three nodes, which is exact to degree 5."""
    start = points[0]
    half = (end - start) / 2
    weights = [0.0] * len(points)
    for node, share in ((-math.sqrt(0.6), 5 / 9), (0.0, 8 / 9), (math.sqrt(0.6), 5 / 9)):
        at = start + half * (1 + node)
        for j, point in enumerate(points):
            others = (p for i, p in enumerate(points) if i != j)
            weights[j] += half * share * math.prod((at - p) / (point - p) for p in others)
    return weights


# ---- Distilled networks -----------------------------------------------------------------------------------


class _Distilled(Sampler):
    """Those visit some of the time steps at which the network was distilled."""

    def __post_init__(self):
        _check.at_least(1, original_steps=self.original_steps)

    def times(self, schedule, steps):
        if isinstance(schedule, VariancePreserving) and schedule.discrete:
            return lcm_spacing(schedule, steps, self.original_steps)
        return schedule.times(steps)


def _noised(to):
    """Of x0 with a level's noise: the weights of x0 and of the noise. At the end of time steps it is x0,
    whatever `final_alpha_cumprod` says."""
    return (1.0, 0.0) if to.t < 0 else (to.alpha, to.sigma)


@dataclass(frozen=True)
class LCM(_Distilled):
    """Latent consistency models (Luo et al., 2023, arXiv:2310.04378), algorithm 3: the boundary scalings
    c_skip = s²/(τ² + s²) and c_out = τ/√(τ² + s²) of τ = `timestep_scaling`·t, s = `sigma_data`, then
    noise."""

    original_steps: int = 50
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        _check.finite("timestep_scaling", self.timestep_scaling, 0)
        _check.positive("sigma_data", self.sigma_data)

    def rows(self, schedule, levels):
        for now, to in pairwise(levels):
            alpha, sigma = _noised(to)
            tau, s = self.timestep_scaling * now.t, self.sigma_data
            c_skip, c_out = s * s / (tau * tau + s * s), tau / math.hypot(tau, s)
            yield Row(now, to, dict(x=alpha * c_skip, x0=alpha * c_out, noise=sigma))


@dataclass(frozen=True)
class TCD(_Distilled):
    """Trajectory consistency distillation (Zheng et al., 2024, arXiv:2402.19159), algorithm 4: to time
    (1 - `eta`)·t' without noise, then noise up to t'."""

    original_steps: int = 50
    eta: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        _check.number("eta", self.eta, 0, 1)

    def rows(self, schedule, levels):
        for now, to in pairwise(levels):
            s = to
            if to.sigma > 0:
                t = (1 - self.eta) * to.t
                s = schedule.level(math.floor(t) if schedule.discrete else t)
            rise = to.alpha / s.alpha
            weights = {name: rise * w for name, w in _euler(now, s).items()}
            weights["noise"] = math.sqrt(max(to.sigma**2 - (rise * s.sigma) ** 2, 0.0))
            yield Row(now, to, weights)


@dataclass(frozen=True)
class Consistency(Sampler):
    """Multistep consistency sampling (Song et al., 2023, arXiv:2303.01469), algorithm 1: x0, then noise up to
    the next sigma.

    The network's last sigma, sigma_min, is not visited: there a consistency function is the identity.
    """

    schedule = "karras"

    def times(self, schedule, steps):
        if not schedule.sigma_min:
            return schedule.times(steps)
        times = schedule.times(steps + 1)
        return [*times[:-2], times[-1]]

    def rows(self, schedule, levels):
        for now, to in pairwise(levels):
            alpha, sigma = _noised(to)
            noise = math.sqrt(max(sigma**2 - (alpha * schedule.sigma_min) ** 2, 0.0))
            yield Row(now, to, dict(x0=alpha, noise=noise))


# ---- Flow matching, score matching ------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowEuler(Sampler):
    """Euler's method x' = x + (t' - t)·m for the velocity m of flow matching (Lipman et al., 2023,
    arXiv:2210.02747) and of rectified flow (Liu et al., 2023, arXiv:2209.03003).

    `stochastic`: x' = (1 - t')·x0 + t'·z, with x0 = x - t·m.
    """

    stochastic: bool = False
    schedule = "flow"

    def rows(self, schedule, levels):
        for now, to in pairwise(levels):
            if self.stochastic:
                alpha, sigma = _noised(to)
                yield Row(now, to, dict(x0=alpha, noise=sigma))
            else:
                yield Row(now, to, _euler(now, to))


@dataclass(frozen=True)
class Langevin(Sampler):
    """Annealed Langevin dynamics (Song and Ermon, 2019, arXiv:1907.05600): `per_level` times
    x' = x + r·sigma²·score + √(2r)·sigma·z at each sigma, and at the last one a step to x0
    (Jolicoeur-Martineau et al., 2021, arXiv:2009.05475).

    `step_size` r: by default, for each sigma, what best keeps the variance of a point's noise at sigma²
    (Song and Ermon, 2020, arXiv:2006.09011, technique 4).
    """

    per_level: int = 10
    step_size: float | None = None
    schedule = "exponential"

    def __post_init__(self):
        _check.at_least(1, per_level=self.per_level)
        if self.step_size is not None:
            _check.positive("step_size", self.step_size)

    def rows(self, schedule, levels):
        *noisy, end = levels
        if noisy[0].scale == 0:
            raise ValueError("schedule: expected one that leaves some of the data at its first time")
        for k, now in enumerate(noisy):
            falls = noisy[k - 1].u / now.u if k else 1.0
            r = self.step_size or _langevin_step_size(falls, self.per_level)
            last = k + 1 == len(noisy)
            after = now if last else noisy[k + 1]
            for i in range(self.per_level):
                to = after if i == self.per_level - 1 else now
                rise = to.scale / now.scale
                noise = rise * math.sqrt(2 * r) * now.sigma
                weights = dict(x=rise * (1 - r), x0=rise * r * now.alpha, noise=noise)
                yield Row(now, to, weights, whole=i == self.per_level - 1 and not last)
        yield Row(now, end, _euler(now, end))


def _langevin_step_size(falls, times):
    """r in (0, ½] for which the variance, falls² before, is nearest to 1 after as many steps
    v' = (1 - r)²·v + 2r."""

    def error(r):
        still = 2 / (2 - r)  # where v' = v
        return abs((1 - r) ** (2 * times) * (falls**2 - still) + still - 1)

    return min((0.5 * 1.02 ** (-i) for i in range(400)), key=error)


#: What `sampler=` may name.
SAMPLERS = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "dpmpp_2m": DPMPP2M,
    "dpmpp_3m": DPMPP3M,
    "dpmpp_2m_sde": DPMPP2MSDE,
    "dpmpp_3m_sde": DPMPP3MSDE,
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "heun": Heun,
    "edm": EDM,
    "lms": LMS,
    "lcm": LCM,
    "tcd": TCD,
    "consistency": Consistency,
    "flow_euler": FlowEuler,
    "unipc": UniPC,
    "langevin": Langevin,
}


def sampler(value):
    """A sampler, or the one that a string names."""
    if isinstance(value, Sampler):
        return value
    if isinstance(value, str) and value in SAMPLERS:
        return SAMPLERS[value]()
    given = repr(value) if isinstance(value, str) else _check.kind(value)
    raise ValueError(f"sampler: expected a Sampler object or one of {', '.join(SAMPLERS)}, got {given}")
