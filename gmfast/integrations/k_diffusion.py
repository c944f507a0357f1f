"""Drop-in replacement of k-diffusion's samplers and schedules, with fused steps.

Names, arguments, callbacks and results are the original's::

    from gmfast.integrations import k_diffusion as sampling  # from k_diffusion import sampling

Arguments of all samplers:

- `model(x, sigma, **extra_args)` returns the denoised x; sigma is `(B,)`, in the dtype of x.
- `x (B, *S)` is the noise to begin with. Sums are computed in float32 at least, with coefficients in float64.
- `sigmas (steps + 1,)`, positive but for the last one. They are read once, before the first step; no step
  synchronises with the device.
- `callback`, if given, is called before each step with a dictionary of x, i, sigma, sigma_hat and denoised;
  the step uses an x that it changes in place.
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
from dataclasses import replace
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import _check, _library, _seed, diffusion
from .. import functional as GF
from ..diffusion import COLUMNS, samplers
from ..diffusion.spacing import evenly_spaced
from ..ops.torch_normal import torch_normal_like

__all__ = [
    "BrownianTreeNoiseSampler",
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_polyexponential",
    "get_sigmas_vp",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_3m_sde",
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
#: Samplers whose original does not compute slopes.
_WITHOUT_SLOPES = samplers.DPMPP2MSampler, samplers.DPMPP2MSDESampler, samplers.DPMPP3MSDESampler

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
    return loop.churned(1, s_churn, s_tmin, s_tmax, s_noise, seed)


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
    return loop.churned(2, s_churn, s_tmin, s_tmax, s_noise, seed)


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
    if seed is None and noise_sampler is None:
        noise_sampler = lambda sigma, sigma_next: torch_normal_like(x)  # noqa: E731
    return loop.run(samplers.EulerAncestralSampler(eta), s_noise, loop.drawing(noise_sampler, seed), seed)


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
            if "noise" in row.weights:
                weights = row.weights | {"noise": s_noise * row.weights["noise"]}
                plan.rows[i] = replace(row, weights=weights)
    return plan


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
        self.values = self.host.tolist()
        self.steps = len(self.values) - 1
        *noisy, last = self.values
        if not all(0 < v < math.inf for v in noisy) or not 0 <= last < math.inf:
            raise ValueError(f"sigmas: expected positive numbers, the last one 0 or more, got {self.values}")

    def churned(self, order, churn, s_min, s_max, s_noise, seed):
        """Run Karras et al.'s algorithm 2 of the given order."""
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
            sampler = samplers.EDMSampler(churn, s_min, s_max, s_noise, order)
        else:
            sampler = samplers.EDMSampler(order=order)

        def draw(step, x):
            """Draw the noise at the start of the next step, used or not, as the original does."""
            return torch_normal_like(x) if step + 1 < self.steps else None

        return self.run(sampler, 1.0, None if seed is not None else draw, seed)

    def sde(self, sampler, s_noise, noise_sampler, seed):
        """Run an SDE solver; without `noise_sampler` and `seed`, on a Brownian path."""
        if any(now <= to for now, to in pairwise(self.values)):
            raise ValueError(f"sigmas: expected falling numbers, got {self.values}")
        if seed is None and noise_sampler is None:
            positive = self.host[self.host > 0]
            if sampler.eta and len(positive) > 1:
                tree = BrownianTreeNoiseSampler(self.x, positive.min(), positive.max())
                return self.run(sampler, s_noise, self.drawing(tree, None, self.host), different=True)
            _draw_seed()  # the original constructs a tree here too
        draw = self.drawing(noise_sampler, seed) if sampler.eta else None
        return self.run(sampler, s_noise, draw, seed, different=True)

    def drawing(self, noise_sampler, seed, sigmas=None):
        """Make the function that draws the noise at the end of a step, or None."""
        if noise_sampler is None:
            return None
        if seed is not None:
            raise ValueError("seed: expected None, as a noise_sampler is given")
        sigmas = self.sigmas if sigmas is None else sigmas
        values = self.values

        def draw(step, x):
            return noise_sampler(sigmas[step], sigmas[step + 1]) if values[step + 1] > 0 else None

        return draw

    def run(self, sampler, s_noise=1.0, draw=None, seed=None, *, different=False):
        """Run a sampler of `gmfast.diffusion`.

        Args:
            sampler: the sampler.
            s_noise: factor of the noise.
            draw: function of (step, x) that returns the step's noise or None; None: no noise, or `seed`'s.
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
        if isinstance(sampler, samplers.EDMSampler):
            noise = draw(-1, x) if draw is not None else None
            if self.first_added:
                # The table's last row is the identity; as a row of its own it has noise of its own.
                table = table.clone()
                table[-1, _NOISE] = self.first_added
                x = GF.diffusion_step(x, x, table, step=len(plan), noise=noise, seed=seed)
        # Where the original computes slopes it divides by sigmas with dimensions, which promote the dtype.
        slope = None if isinstance(sampler, _WITHOUT_SLOPES) else self.host
        history, step, whole = (), 0, True
        with _bar(self.steps, self.disable) as bar:
            for k, row in enumerate(plan.rows):
                denoised = self.model(x, told[k], **self.extra_args)
                if whole and self.callback is not None:
                    self._call_back(step, x, denoised)
                whole = row.whole
                x = _promoted(x, denoised, slope)
                noise = draw(step, x) if whole and draw is not None else None
                if noise is not None:
                    if row.weights.get("noise"):
                        noise = noise if noise.shape == x.shape else noise.expand_as(x)
                        x = _promoted(x, noise)
                    else:
                        noise = None
                kept = "kept" in row.keep
                result = GF.diffusion_step(
                    x, denoised, table, step=k, history=history, noise=noise, seed=seed, kept=kept
                )
                if row.keep:
                    named = {f"h{i}": h for i, h in enumerate(history, 1)}
                    named.update(x=x, x0=denoised, kept=result[1] if kept else None)
                    history = tuple(named[name] for name in row.keep if name in named)
                else:
                    history = ()
                x = result[0] if kept else result
                if whole:
                    step += 1
                    if bar is not None:
                        bar.update()
        return x

    def _told(self, plan):
        """Return the model's sigma at each row of the plan, `(B,)`."""
        if len(plan) == self.steps:
            sigmas = self.raised[: self.steps]
        else:
            ends = [row.whole for row in plan.rows]
            step, picked = 0, []
            for k, end in enumerate(ends):
                second = k > 0 and not ends[k - 1]
                picked.append(self.host[step + 1] if second else self.raised[step])
                step += end
            sigmas = torch.stack(picked)
        x = self.x
        return sigmas.to(x.device, x.dtype)[:, None].expand(-1, x.shape[0]).contiguous().unbind()

    def _call_back(self, step, x, denoised):
        sigma = hat = self.sigmas[step]
        if self.raise_by is not None:
            hat = sigma * (self.raise_by[step] + 1)
        self.callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": hat, "denoised": denoised})


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
