"""Drop-in replacement of k-diffusion's samplers and schedules, with fused steps.

Names, arguments, callbacks and results are the original's::

    from gmfast.integrations import k_diffusion as sampling  # from k_diffusion import sampling

Arguments of all samplers:

- `model(x, sigma, **extra_args)` returns the denoised x; sigma is `(B,)`, in the dtype of x.
- `x (B, *S)` is the noise to begin with. Sums are computed in float32 at least, with coefficients in float64.
- `sigmas (steps + 1,)`, positive but for the last one. They are read once, before the first step; no step
  synchronises with the device, but for those of `sample_dpm_adaptive`.
- `callback`, if given, is called before each step with a dictionary of x, i, sigma, sigma_hat and denoised.
  What it changes in place has the original's effect: `sample_euler`, `sample_heun`, `sample_dpm_2`,
  `sample_lms` and `sample_dpm_fast` take the slope before they call back, so that a changed x is where the
  step begins and a changed `denoised` has no effect; the others use both as they are left.
- `disable` disables the progress bar.
- `noise_sampler(sigma, sigma_next)` returns a step's noise. Without it, and without `seed`, noise is drawn
  from torch's global generator, whose final state is the original's.
- `seed`, which the original does not have: an int, an int64 tensor, a `torch.Generator`, or one for each
  sample. The kernel draws the noise, the same for sample *i* whatever the batch size and the device. This is
  the fastest.

Errors are ValueError for shapes and values, TypeError for dtypes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import _check, _library, _seed, diffusion
from .. import functional as GF
from ..diffusion import COLUMNS, samplers
from ..diffusion.samplers import Plan
from ..diffusion.spacing import evenly_spaced
from ..ops.torch_normal import torch_normal_like

__all__ = [
    "BrownianTreeNoiseSampler",
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_polyexponential",
    "get_sigmas_vp",
    "log_likelihood",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
]

Model = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], Any]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
Seed = int | Tensor | torch.Generator | Sequence[int] | None

_NOISE = COLUMNS.index("noise")
#: Samplers whose original takes a step's slope before it calls back.
_SLOPE_FIRST = samplers.ChurnedSampler, samplers.LMSSampler, samplers.DPMFastSampler
#: Samplers whose original divides by sigmas with dimensions, which promote the dtype: in every step, or in
#: that to data.
_PROMOTING = (
    samplers.ChurnedSampler,
    samplers.LMSSampler,
    samplers.EulerAncestralSampler,
    samplers.DPM2AncestralSampler,
)
_PROMOTING_LAST = samplers.DPMPP2SAncestralSampler, samplers.DPMPPSDESampler

# ---- Schedules --------------------------------------------------------------------------------------------


def get_sigmas_karras(
    n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: torch.device | str = "cpu"
) -> Tensor:
    """Make `n` sigmas evenly spaced in sigma^(1/ρ), then 0 (Karras et al., 2022, arXiv:2206.00364, eq. 5)."""
    return _sigmas(diffusion.Karras(float(sigma_min), float(sigma_max), rho).times(n), device)


def get_sigmas_exponential(
    n: int, sigma_min: float, sigma_max: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Make `n` sigmas evenly spaced in ln sigma, then 0."""
    return _sigmas(diffusion.VarianceExploding(float(sigma_min), float(sigma_max)).times(n), device)


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: torch.device | str = "cpu"
) -> Tensor:
    """Make `n` sigmas, then 0; ln sigma is affine in the ρ-th power of the position."""
    low, high = math.log(sigma_min), math.log(sigma_max)
    return _sigmas(
        [math.exp(low + r**rho * (high - low)) for r in evenly_spaced(1.0, 0.0, n)] + [0.0], device
    )


def get_sigmas_vp(
    n: int,
    beta_d: float = 19.9,
    beta_min: float = 0.1,
    eps_s: float = 1e-3,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Make `n` sigmas of the variance-preserving SDE with β = beta_min + beta_d·t, t from 1 to eps_s, then 0.

    From Song et al. (2021, arXiv:2011.13456), in the form of Karras et al. (2022, arXiv:2206.00364, table 1).
    The last ones have four digits left after cancellation in float32, the same as the original's.
    """
    t = _sigmas([*evenly_spaced(1.0, eps_s, n), 0.0], "cpu")
    return (torch.exp(beta_d * t**2 / 2 + beta_min * t) - 1).sqrt().to(device)


def _sigmas(values, device):
    return torch.tensor(values, dtype=torch.get_default_dtype()).to(device)


# ---- Samplers ---------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    *,
    seed: Seed = None,
) -> Tensor:
    """Sample by Euler's method, with churn (Karras et al., 2022, arXiv:2206.00364, algorithm 2).

    The sampler is `gmfast.diffusion.EDM` of order 1.
    """
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    edm = functools.partial(samplers.EDMSampler, order=1)
    return loop.churned(edm, s_churn, s_tmin, s_tmax, s_noise, seed)


@torch.no_grad()
def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    *,
    seed: Seed = None,
) -> Tensor:
    """Sample by Heun's method, with churn (Karras et al., 2022, arXiv:2206.00364, algorithm 2).

    The sampler is `gmfast.diffusion.EDM`.
    """
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.churned(samplers.EDMSampler, s_churn, s_tmin, s_tmax, s_noise, seed)


@torch.no_grad()
def sample_euler_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    seed: Seed = None,
) -> Tensor:
    """Sample by ancestral Euler steps: `gmfast.diffusion.EulerAncestral`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.ancestral(samplers.EulerAncestralSampler(eta), s_noise, noise_sampler, seed)


@torch.no_grad()
def sample_dpm_2(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    *,
    seed: Seed = None,
) -> Tensor:
    """Sample by DPM-Solver-2 (Lu et al., 2022, arXiv:2206.00927), with churn: `gmfast.diffusion.DPM2`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    loop.middle = _geometric_mean
    return loop.churned(samplers.DPM2Sampler, s_churn, s_tmin, s_tmax, s_noise, seed)


@torch.no_grad()
def sample_dpm_2_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    seed: Seed = None,
) -> Tensor:
    """Sample by DPM-Solver-2 with ancestral noise: `gmfast.diffusion.DPM2Ancestral`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    loop.middle = lambda now, to: _geometric_mean(now, _lowered(now, to, eta))
    return loop.ancestral(samplers.DPM2AncestralSampler(eta), s_noise, noise_sampler, seed)


@torch.no_grad()
def sample_dpm_fast(
    model: Model,
    x: Tensor,
    sigma_min: float | Tensor,
    sigma_max: float | Tensor,
    n: int,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    seed: Seed = None,
) -> Tensor:
    """Sample by DPM-Solver-fast (Lu et al., 2022, arXiv:2206.00927) with `n` calls of the model.

    From `sigma_max` to `sigma_min`, where it ends, or with `eta=0` the other way round. The steps are those
    of `gmfast.diffusion.DPMFast`.
    """
    _check.at_least(1, n=n)
    start, end = _ends(sigma_max, sigma_min, eta)
    m = n // 3 + 1
    orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
    loop = _LogLoop(model, x, torch.linspace(start, end, m + 1), n, eta, extra_args, callback, disable)
    return loop.ancestral(_Fast(eta, tuple(orders)), s_noise, noise_sampler, seed)


@torch.no_grad()
def sample_dpm_adaptive(
    model: Model,
    x: Tensor,
    sigma_min: float | Tensor,
    sigma_max: float | Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    return_info: bool = False,
    *,
    seed: Seed = None,
) -> Tensor | tuple[Tensor, dict[str, int]]:
    """Sample by DPM-Solver-12 or 23, with steps by the error of the whole batch.

    Lu et al., 2022, arXiv:2206.00927, algorithm 3; the attempts are those of `gmfast.diffusion.DPMAdaptive`.
    From `sigma_max` to `sigma_min`, where it ends, or with `eta=0` the other way round. `callback` is called
    after each attempt, also with t, t_up, error, h, steps, nfe, n_accept and n_reject.

    Returns:
        The samples; with `return_info`, also a dictionary of steps, nfe, n_accept and n_reject.
    """
    start, end = _ends(sigma_max, sigma_min, eta)
    sampler = samplers.DPMAdaptiveSampler(
        order, rtol, atol, h_init, pcoeff, icoeff, dcoeff, accept_safety, eta
    )
    loop = _LogLoop(model, x, torch.stack([start, end]), None, eta, extra_args, callback, disable)
    x, info = loop.adapt(sampler, s_noise, noise_sampler, seed)
    return (x, info) if return_info else x


@torch.no_grad()
def sample_dpmpp_2s_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    seed: Seed = None,
) -> Tensor:
    """Sample by DPM-Solver++(2S) with ancestral noise: `gmfast.diffusion.DPMPP2SAncestral`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    loop.middle = lambda now, to: _on_the_way(now, _lowered(now, to, eta), 0.5)
    return loop.ancestral(samplers.DPMPP2SAncestralSampler(eta), s_noise, noise_sampler, seed)


@torch.no_grad()
def sample_dpmpp_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    r: float = 0.5,
    *,
    seed: Seed = None,
) -> Tensor:
    """Sample by SDE-DPM-Solver++ of second order, singlestep: `gmfast.diffusion.DPMPPSDE`.

    Without `noise_sampler` and `seed`, noise is from a `BrownianTreeNoiseSampler`, which needs torchsde. With
    a `seed`, too, the noise inside a step is part of the whole step's.
    """
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    loop.middle = lambda now, to: _on_the_way(now, to, r)
    return loop.sde(samplers.DPMPPSDESampler(eta, r, seed is not None), s_noise, noise_sampler, seed)


@torch.no_grad()
def sample_lms(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 4,
) -> Tensor:
    """Sample by the linear multistep method, of `order` 1 to 5: `gmfast.diffusion.LMS`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.run(samplers.LMSSampler(order), different=True)


@torch.no_grad()
def sample_dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Sample by DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095): `gmfast.diffusion.DPMPP2M`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.run(samplers.DPMPP2MSampler(), different=True)


@torch.no_grad()
def sample_dpmpp_2m_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
    *,
    seed: Seed = None,
) -> Tensor:
    """Sample by SDE-DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095): `gmfast.diffusion.DPMPP2MSDE`.

    Without `noise_sampler` and `seed`, noise is from a `BrownianTreeNoiseSampler`, which needs torchsde.
    """
    _check.one_of("solver_type", solver_type, ("heun", "midpoint"))
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.sde(samplers.DPMPP2MSDESampler(eta, solver_type), s_noise, noise_sampler, seed)


@torch.no_grad()
def sample_dpmpp_3m_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    seed: Seed = None,
) -> Tensor:
    """Sample by SDE-DPM-Solver++(3M) as published, which is of second order; noise as `sample_dpmpp_2m_sde`.

    The sampler is `gmfast.diffusion.DPMPP3MSDE(formulation="published")`.
    """
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.sde(samplers.DPMPP3MSDESampler(eta, "published"), s_noise, noise_sampler, seed)


def log_likelihood(
    model: Model,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    extra_args: dict[str, Any] | None = None,
    atol: float = 1e-4,
    rtol: float = 1e-4,
) -> tuple[Tensor, dict[str, int]]:
    """Estimate the log-likelihood of data under the probability flow, in nats for each sample.

    Song et al., 2021, arXiv:2011.13456, section 4.3: the flow's divergence is estimated with one random
    vector of ±1 from torch's global generator (Skilling and Hutchinson), and the flow is integrated by
    torchdiffeq's "dopri5". Gradients of the model are taken.

    Args:
        model: As in the samplers.
        x: Data, shape `(B, *S)`.
        sigma_min: Sigma at which the data are taken to be.
        sigma_max: Sigma of the prior, a normal distribution.
        extra_args: As in the samplers.
        atol: Absolute tolerance of the integration.
        rtol: Relative tolerance of the integration.

    Returns:
        Shape `(B,)`, and a dictionary with `fevals`, the number of calls of the model.

    Raises:
        RuntimeError: If torchdiffeq is not installed.
    """
    try:
        from torchdiffeq import odeint
    except ModuleNotFoundError:
        raise RuntimeError("torchdiffeq: expected it to be installed, as it integrates the flow") from None
    _check.floating("x", x)
    extra_args = {} if extra_args is None else extra_args
    signs = torch.randint_like(x, 2) * 2 - 1
    calls = 0

    def change(sigma: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            slope = (x - model(x, sigma.expand(len(x)), **extra_args)) / sigma
            (product,) = torch.autograd.grad((slope * signs).sum(), x)
        return slope.detach(), (signs * product).flatten(1).sum(1)

    with torch.no_grad():
        times = x.new_tensor([float(sigma_min), float(sigma_max)])
        state = x, x.new_zeros(len(x))
        latents, changes = odeint(change, state, times, atol=atol, rtol=rtol, method="dopri5")
        prior = torch.distributions.Normal(0, sigma_max).log_prob(latents[-1]).flatten(1).sum(1)
    return prior + changes[-1], {"fevals": calls}


class BrownianTreeNoiseSampler:
    """Noise from increments of a Brownian path in sigma (torchsde's Brownian tree).

    The seed determines the whole path, so samplers with different sigmas follow the same one.

    Args:
        x: the noise has its shape, dtype and device.
        sigma_min, sigma_max: ends of the path.
        seed: an int, or a list of one for each sample; None draws one from torch's global generator.
        transform: function from sigma to the path's time.

    Raises:
        RuntimeError: if torchsde is not installed.
        ValueError: for another number of seeds than samples.
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: float | Tensor,
        sigma_max: float | Tensor,
        seed: int | Sequence[int] | Tensor | None = None,
        transform: Callable[[Tensor], Tensor] = lambda x: x,
    ):
        try:
            import torchsde
        except ModuleNotFoundError:
            raise RuntimeError(
                "torchsde: expected it to be installed, as the Brownian tree is its; else give a sampler a "
                "noise_sampler or a seed"
            ) from None
        self.transform = transform
        start, end, self._sign = self._sorted(sigma_min, sigma_max)
        if seed is None:
            seed = _draw_seed().item()
        self._batched = isinstance(seed, list | tuple | torch.Tensor)
        if self._batched and len(seed) != len(x):
            raise ValueError(f"seed: expected {len(x)}, one for each sample, got {len(seed)}")
        first = torch.zeros_like(x)
        self._trees = [
            torchsde.BrownianTree(start, first[0] if self._batched else first, end, entropy=int(s))
            for s in (seed if self._batched else [seed])
        ]

    def _sorted(self, *sigmas):
        start, end = (self.transform(torch.as_tensor(s)) for s in sigmas)
        return (start, end, 1) if start < end else (end, start, -1)

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return the noise of the step from `sigma` to `sigma_next`, of unit variance."""
        start, end, sign = self._sorted(sigma, sigma_next)
        noises = [tree(start, end) for tree in self._trees]
        noise = torch.stack(noises) if self._batched else noises[0]
        return noise * (self._sign * sign) / (end - start).sqrt()


def _draw_seed():
    return torch.randint(0, 2**63 - 1, [])


@functools.lru_cache(64)
def _plan(sampler, sigmas, s_noise):
    plan = sampler.plan(diffusion.VarianceExploding(), sigmas, "x0")
    if s_noise != 1:
        for i, row in enumerate(plan.rows):
            noises = {name: s_noise * w for name, w in row.weights.items() if name in ("noise", "kept_noise")}
            plan.rows[i] = replace(row, weights=row.weights | noises)
    return plan


@functools.lru_cache(64)
def _slope_plans(sampler, sigmas, s_noise):
    """Plans whose rows take the slope d = (x - x0)/sigma of x, and the step from x along d, given as m."""
    plan = _plan(sampler, sigmas, s_noise)
    slopes, steps = [], []
    for row in plan.rows:
        sigma, weights = row.now.sigma, dict(row.weights)
        of_x, of_x0 = (weights.pop(name, 0.0) for name in ("x", "x0"))
        slopes.append(replace(row, weights=dict(x=1 / sigma, x0=-1 / sigma)))
        # x·X + x0·E with x0 = x - sigma·d
        steps.append(replace(row, weights=weights | dict(x=of_x + of_x0, m=-sigma * of_x0)))
    return replace(plan, rows=slopes, _cached={}), replace(plan, rows=steps, _cached={})


@dataclass(frozen=True, repr=False)
class _Fast(samplers.DPMFastSampler):
    """DPM-Solver-fast with given orders."""

    sequence: tuple[int, ...] = ()

    def orders(self, steps):
        return self.sequence


def _noise_table(step, sigma):
    """Make a table whose row `step`, which keys the noise, adds noise to x."""
    table = torch.zeros(step + 1, len(COLUMNS), dtype=torch.float64)
    table[step, COLUMNS.index("x")] = 1.0
    table[step, _NOISE] = sigma
    return table


def _lowered(now, to, eta):
    """Sigma at which the deterministic part of an ancestral step ends, by the operations of the original."""
    if not eta:
        return to
    up = torch.minimum(to, eta * (to**2 * (now**2 - to**2) / now**2) ** 0.5)
    return (to**2 - up**2) ** 0.5


def _geometric_mean(now, to):
    return now.log().lerp(to.log(), 0.5).exp()


def _on_the_way(now, to, r):
    """Sigma at the position r in ln sigma."""
    start, end = now.log().neg(), to.log().neg()
    return (start + (end - start) * r).neg().exp()


def _ends(sigma_max, sigma_min, eta):
    """Check the sigmas of a path in λ = -ln sigma and return its start and end, 0-dim on the CPU."""
    ends = []
    for name, sigma in (("sigma_max", sigma_max), ("sigma_min", sigma_min)):
        sigma = sigma.detach().cpu() if isinstance(sigma, torch.Tensor) else torch.tensor(float(sigma))
        _check.positive(name, sigma.item())
        ends.append(sigma.log().neg())
    if eta and not ends[1] > ends[0]:
        raise ValueError(f"eta: expected 0, as the path leads from data to noise, got {eta}")
    return ends


class _Loop:
    """One call of a sampler: its arguments, and the loop over its steps."""

    def __init__(self, model, x, sigmas, extra_args, callback, disable):
        _library.leave_graph(
            "sigmas: expected a call outside of fullgraph=True, as they are read; compile the model"
        )
        _check.floating("x", x)
        if x.dim() == 0:
            raise ValueError("x: expected shape (B, *S), got a scalar")
        _check.floating("sigmas", sigmas)
        if sigmas.dim() != 1 or not len(sigmas):
            raise ValueError(f"sigmas: expected shape (steps + 1,), got {tuple(sigmas.shape)}")
        self.model, self.x, self.callback, self.disable = model, x, callback, disable
        self.extra_args = {} if extra_args is None else extra_args
        self.sigmas = sigmas.unbind()
        self.host = self.raised = sigmas.detach().cpu()
        self.raise_by = None  # gamma of each step, with churn
        self.first_added = 0.0  # the standard deviation of the noise before the first step
        self.middle = lambda now, to: to  # sigma of a step's second call of the model
        self.calls = None  # what the bar counts in place of steps: the number of calls of the model
        self.values = self.host.tolist()
        self.steps = len(self.values) - 1
        *noisy, last = self.values
        if not all(0 < v < math.inf for v in noisy) or not 0 <= last < math.inf:
            raise ValueError(f"sigmas: expected positive numbers, the last one 0 or more, got {self.values}")

    def churned(self, make, churn, s_min, s_max, s_noise, seed):
        """Run the sampler that `make` makes, by Karras et al.'s algorithm 2."""
        if not self.steps:
            return self.x
        # Rounded to the dtype of the sigmas, in which torch compares them.
        s_min, s_max = torch.tensor([s_min, s_max], dtype=self.host.dtype).tolist()
        gamma = min(churn / self.steps, 2**0.5 - 1)
        within = (self.host >= s_min) & (self.host <= s_max)
        if gamma > 0 and within.any():
            self.raise_by = [gamma if raised else 0.0 for raised in within.tolist()]
            self.raised = torch.where(within, self.host * (gamma + 1), self.host)
            self.first_added = s_noise * math.sqrt(self.raise_by[0] * (2 + self.raise_by[0])) * self.values[0]
            sampler = make(churn, s_min, s_max, s_noise)
        else:
            sampler = make()

        def draw(step, x, whole):
            """Draw the noise at the start of the next step, used or not, as the original does."""
            return torch_normal_like(x) if whole and step + 1 < self.steps else None

        return self.run(sampler, 1.0, None if seed is not None else draw, seed)

    def ancestral(self, sampler, s_noise, noise_sampler, seed):
        """Run a sampler with ancestral noise, by default from torch's global generator."""
        if seed is None and noise_sampler is None:
            x = self.x
            noise_sampler = lambda sigma, sigma_next: torch_normal_like(x)  # noqa: E731
        return self.run(sampler, s_noise, self.drawing(noise_sampler, seed), seed)

    def sde(self, sampler, s_noise, noise_sampler, seed):
        """Run an SDE solver; without `noise_sampler` and `seed`, on a Brownian path."""
        if any(now <= to for now, to in pairwise(self.values)):
            raise ValueError(f"sigmas: expected falling numbers, got {self.values}")
        if seed is None and noise_sampler is None:
            positive = self.host[self.host > 0]
            if sampler.eta and len(positive) > 1:
                tree = BrownianTreeNoiseSampler(self.x, positive.min(), positive.max())
                draw = self.drawing(tree, None, self.host, isinstance(sampler, samplers.DPMPPSDESampler))
                return self.run(sampler, s_noise, draw, different=True)
            _draw_seed()  # the original constructs a tree here too
        inside = isinstance(sampler, samplers.DPMPPSDESampler)
        draw = self.drawing(noise_sampler, seed, inside=inside) if sampler.eta or inside else None
        return self.run(sampler, s_noise, draw, seed, different=True)

    def drawing(self, noise_sampler, seed, sigmas=None, inside=False):
        """Make the function that draws the noise of a row, or None.

        Args:
            noise_sampler: that of the sampler.
            seed: that of the sampler.
            sigmas: what the noise sampler is given; by default those on their device.
            inside: whether a step also has noise at its second call of the model.
        """
        if noise_sampler is None:
            return None
        if seed is not None:
            raise ValueError("seed: expected None, as a noise_sampler is given")
        sigmas = self.sigmas if sigmas is None else sigmas
        values = self.values

        def draw(step, x, whole):
            if values[step + 1] == 0:
                return None
            now, to = sigmas[step], sigmas[step + 1]
            if inside:  # by the operations of the original, so that a Brownian path gives its noise
                end = to.log().exp() if whole else self.middle(now, to)
                return noise_sampler(now.log().exp(), end)
            return noise_sampler(now, to) if whole else None

        return draw

    def run(self, sampler, s_noise=1.0, draw=None, seed=None, *, different=False):
        """Run a sampler of `gmfast.diffusion`.

        Args:
            sampler: the sampler.
            s_noise: factor of the noise.
            draw: function of (step, x, whether the step ends) that returns a row's noise or None; None: no
                noise, or `seed`'s.
            seed: as of the samplers.
            different: whether equal neighbouring sigmas are an error.
        """
        x, values = self.x, self.values
        if different and any(now == to for now, to in pairwise(values)):
            raise ValueError(f"sigmas: expected each to differ from the one before, got {values}")
        seed = None if seed is None else _seed.of_batch(seed, x.shape[0], x.device)
        plan = _plan(sampler, tuple(values), float(s_noise))
        table = plan.table(x.device)
        told = self._told(plan)
        if isinstance(sampler, samplers.ChurnedSampler):
            noise = draw(-1, x, True) if draw is not None else None
            if self.first_added:
                # The table's last row is the identity; as a row of its own it has noise of its own.
                table = table.clone()
                table[-1, _NOISE] = self.first_added
                x = GF.diffusion_step(x, x, table, step=len(plan), noise=noise, seed=seed)
        promoting = isinstance(sampler, _PROMOTING)
        promoting_last = isinstance(sampler, _PROMOTING_LAST)
        along = None
        if self.callback is not None and isinstance(sampler, _SLOPE_FIRST):
            slopes, along = (p.table(x.device) for p in _slope_plans(sampler, tuple(values), float(s_noise)))
        history, step, whole = (), 0, True
        with _bar(self.steps if self.calls is None else self.calls, self.disable) as bar:
            for k, row in enumerate(plan.rows):
                m = denoised = self.model(x, told[k], **self.extra_args)
                used, slope = table, None
                wider = self.host if promoting or (promoting_last and row.to.sigma == 0) else None
                if whole and self.callback is not None:
                    if along is not None:
                        m = slope = GF.diffusion_step(_promoted(x, denoised, wider), denoised, slopes, step=k)
                        used = along
                    self._call_back(step, x, denoised)
                whole = row.whole
                x = _promoted(x, m, wider)
                noise = draw(step, x, whole) if draw is not None else None
                if noise is not None:
                    if row.weights.get("noise"):
                        noise = noise if noise.shape == x.shape else noise.expand_as(x)
                        x = _promoted(x, noise)
                    else:
                        noise = None
                kept = "kept" in row.keep and slope is None
                result = GF.diffusion_step(
                    x, m, used, step=k, history=history, noise=noise, seed=seed, kept=kept
                )
                if row.keep:
                    named = {f"h{i}": h for i, h in enumerate(history, 1)}
                    named.update(x=x, x0=denoised, kept=result[1] if kept else slope)
                    history = tuple(named[name] for name in row.keep if name in named)
                else:
                    history = ()
                x = result[0] if kept else result
                step += whole
                if bar is not None and (whole or self.calls is not None):
                    bar.update()
        return x

    def _told(self, plan):
        """Return the model's sigma at each row of the plan, `(B,)`."""
        if len(plan) == self.steps:
            sigmas = self.raised[: self.steps]
        else:
            ends = [row.whole for row in plan.rows]
            wide = torch.promote_types(self.host.dtype, torch.float32)  # of halves, rounded once
            raised, host = self.raised.to(wide), self.host.to(wide)
            step, picked = 0, []
            for k, end in enumerate(ends):
                second = k > 0 and not ends[k - 1]
                now = raised[step]
                picked.append(self.middle(now, host[step + 1]) if second else now)
                step += end
            sigmas = torch.stack(picked)
        return self._each(sigmas)

    def _each(self, sigmas):
        """Return each sigma as the model is given it, `(B,)`."""
        x = self.x
        return sigmas.to(x.device, x.dtype)[:, None].expand(-1, x.shape[0]).contiguous().unbind()

    def _call_back(self, step, x, denoised):
        sigma = hat = self.sigmas[step]
        if self.raise_by is not None:
            hat = sigma * (self.raise_by[step] + 1)
        self.callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": hat, "denoised": denoised})


class _LogLoop(_Loop):
    """One call of a DPM-Solver: a path in λ = -ln sigma, of which the original computes in its dtype."""

    def __init__(self, model, x, path, calls, eta, extra_args, callback, disable):
        super().__init__(model, x, path.neg().exp().to(x.device), extra_args, callback, disable)
        self.path, self.calls, self.eta = path, calls, eta
        self.steps = len(path) - 1

    def _end(self, t, t_next):
        """Return the end of a step's deterministic part, in λ."""
        if not self.eta:
            return t_next
        down = _lowered(t.neg().exp(), t_next.neg().exp(), self.eta)
        return torch.minimum(self.path[-1], down.log().neg())

    def _told(self, plan):
        """Return the model's sigma at each row of the plan, `(B,)`."""
        step, part, told = 0, 0, []
        for row, after in zip(plan.rows, [*plan.rows[1:], None], strict=True):
            t = self.path[step]
            if part == 0:
                of = 1 if row.whole else 2 if after.whole else 3  # calls in this step
            told.append((t + part / of * (self._end(t, self.path[step + 1]) - t)).neg().exp())
            step, part = (step + 1, 0) if row.whole else (step, part + 1)
        return self._each(torch.stack(told))

    def _call_back(self, step, x, denoised):
        t = self.path[step].to(x.device)
        sigma = t.neg().exp()
        times = {"sigma": sigma, "sigma_hat": sigma.clone()}
        self.callback({**times, "x": x, "i": step, "t": t, "t_up": t, "denoised": denoised})

    def adapt(self, sampler, s_noise, noise_sampler, seed):
        """Run a solver whose steps adapt to the error; return x and the counts of calls and attempts."""
        x, schedule = self.x, diffusion.VarianceExploding()
        if seed is None and noise_sampler is None:
            noise_sampler = lambda sigma, sigma_next: torch_normal_like(self.x)  # noqa: E731
        elif seed is not None and noise_sampler is not None:
            raise ValueError("seed: expected None, as a noise_sampler is given")
        seed = None if seed is None else _seed.of_batch(seed, x.shape[0], x.device)
        t, end = self.path
        falling = bool(end > t)
        size = sampler.step_size(falling)
        info = {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}
        denoised = None
        low = x
        with _bar(None, self.disable) as bar:
            while t < end - 1e-5 if falling else t > end + 1e-5:
                t_next = torch.minimum(end, t + size.h) if falling else torch.maximum(end, t + size.h)
                now, to = (schedule.level(v.neg().exp().item()) for v in (t, t_next))
                rows, added = sampler.attempt(schedule, now, to, self.values[-1])
                plan = Plan(rows, "x0", now)
                table, history, result = plan.table(x.device), (), x
                length = self._end(t, t_next) - t
                told = torch.stack([(t + k / len(rows) * length).neg().exp() for k in range(len(rows))])
                for k, (row, sigma) in enumerate(zip(rows, self._each(told), strict=True)):
                    m = self.model(result, sigma, **self.extra_args)
                    denoised = denoised if k else m
                    before = _promoted(result, m)
                    result, kept = GF.diffusion_step(before, m, table, step=k, history=history, kept=True)
                    named = {f"h{i}": h for i, h in enumerate(history, 1)} | {"x": before, "kept": kept}
                    history = tuple(named[name] for name in row.keep)
                    if bar is not None:
                        bar.update()
                scale = torch.maximum(kept.abs(), low.abs()).mul_(sampler.rtol).clamp_(min=sampler.atol)
                error = torch.linalg.norm((kept - result) / scale) / x.numel() ** 0.5
                accepted = size.accepts(error.item())
                if accepted:
                    low, x = kept, result
                    if seed is None:
                        noise = noise_sampler(t.neg().exp(), t_next.neg().exp())
                        x = x + noise * (added * s_noise) if added else x
                    elif added:
                        table = _noise_table(info["steps"], added * s_noise).to(x.device)
                        x = GF.diffusion_step(x, x, table, step=info["steps"], seed=seed)
                    t = t_next
                info["n_accept" if accepted else "n_reject"] += 1
                info["nfe"] += sampler.order
                info["steps"] += 1
                if self.callback is not None:
                    sigma = t.neg().exp()
                    report = {"sigma": sigma, "sigma_hat": sigma.clone(), "x": x, "i": info["steps"] - 1}
                    report |= {"t": t, "t_up": t, "denoised": denoised, "error": error, "h": size.h}
                    self.callback(report | info)
        return x, info


def _promoted(x, *others):
    """Convert `x` to the promoted dtype of all arguments that are not None."""
    for other in others:
        if other is not None and other.dtype != x.dtype:
            x = x.to(torch.promote_types(x.dtype, other.dtype))
    return x


def _bar(steps, disable):
    """Make tqdm's progress bar, or a null context if it is disabled or not installed."""
    if disable is True:
        return nullcontext()
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError:
        return nullcontext()
    return tqdm(total=steps, disable=disable)


def __getattr__(name: str) -> NoReturn:
    if name.startswith(("sample_", "get_sigmas_")):
        raise AttributeError(f"{name} is not among those that gmfast has: k_diffusion.sampling's is there")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
