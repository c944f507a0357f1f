"""k-diffusion's samplers and schedules: its names, arguments, callbacks and results, each step one pass::

    from gmfast.integrations import k_diffusion as sampling  # from k_diffusion import sampling

`model(x, sigma, **extra_args)` returns the denoised x; sigma is `(B,)`, of the dtype of x. A `callback` is
given a dictionary with x, i, sigma, sigma_hat and denoised before each step; what it changes in x, the step
begins with. Noise comes from `noise_sampler(sigma, sigma_next)` or, as there, from torch's global generator,
which ends where it would have ended there.

With `seed=`, which the original does not have (an int, an int64 tensor, a `torch.Generator`, or one for each
sample), each step makes its noise itself, the same for sample *i* whatever the batch size and the device, and
nothing is drawn elsewhere: that is the fastest.

All but the last of `sigmas` are positive. The host reads them once, before the first step, and waits for
nothing afterwards. Sums are computed in float32 at least, with coefficients in float64.
"""

import functools
import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import torch

from .. import _check, diffusion
from .. import functional as GF
from ..diffusion import COLUMNS
from ..diffusion.sampling import _seeds
from ..diffusion.schedules import _between
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

_NOISE = COLUMNS.index("noise")
_WITHOUT_SLOPES = diffusion.DPMPP2M, diffusion.DPMPP2MSDE, diffusion.DPMPP3MSDE

# ---- Schedules --------------------------------------------------------------------------------------------


def get_sigmas_karras(n, sigma_min, sigma_max, rho=7.0, device="cpu"):
    """n sigmas, equally spaced in sigma^(1/ρ), then 0 (Karras et al., 2022, arXiv:2206.00364, eq. 5)."""
    return _sigmas(diffusion.Karras(float(sigma_min), float(sigma_max), rho).times(n), device)


def get_sigmas_exponential(n, sigma_min, sigma_max, device="cpu"):
    """n sigmas, equally spaced in ln sigma, then 0."""
    return _sigmas(diffusion.VarianceExploding(float(sigma_min), float(sigma_max)).times(n), device)


def get_sigmas_polyexponential(n, sigma_min, sigma_max, rho=1.0, device="cpu"):
    """n sigmas, of which ln sigma goes as the power ρ of the place, then 0."""
    low, high = math.log(sigma_min), math.log(sigma_max)
    return _sigmas([math.exp(low + r**rho * (high - low)) for r in _between(1.0, 0.0, n)] + [0.0], device)


def get_sigmas_vp(n, beta_d=19.9, beta_min=0.1, eps_s=1e-3, device="cpu"):
    """n sigmas of the variance-preserving diffusion with β = beta_min + beta_d·t, t from 1 to eps_s, then 0
    (Song et al., 2021, arXiv:2011.13456; Karras et al., 2022, arXiv:2206.00364, table 1).

    The last ones cancel to four digits of float32, which are the original's."""
    t = _sigmas([*_between(1.0, eps_s, n), 0.0], "cpu")
    return (torch.exp(beta_d * t**2 / 2 + beta_min * t) - 1).sqrt().to(device)


def _sigmas(values, device):
    return torch.tensor(values, dtype=torch.get_default_dtype()).to(device)


# ---- Samplers ---------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_euler(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    s_churn=0.0,
    s_tmin=0.0,
    s_tmax=math.inf,
    s_noise=1.0,
    *,
    seed=None,
):
    """Algorithm 2 of Karras et al. (2022, arXiv:2206.00364) with Euler's method: `gmfast.diffusion.EDM` of
    order 1."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.churned(1, s_churn, s_tmin, s_tmax, s_noise, seed)


@torch.no_grad()
def sample_heun(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    s_churn=0.0,
    s_tmin=0.0,
    s_tmax=math.inf,
    s_noise=1.0,
    *,
    seed=None,
):
    """Algorithm 2 of Karras et al. (2022, arXiv:2206.00364): `gmfast.diffusion.EDM`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.churned(2, s_churn, s_tmin, s_tmax, s_noise, seed)


@torch.no_grad()
def sample_euler_ancestral(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    eta=1.0,
    s_noise=1.0,
    noise_sampler=None,
    *,
    seed=None,
):
    """Euler's method to a level below, then noise: `gmfast.diffusion.EulerAncestral`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    if seed is None and noise_sampler is None:
        noise_sampler = lambda sigma, sigma_next: torch_normal_like(x)  # noqa: E731
    return loop.run(diffusion.EulerAncestral(eta), s_noise, loop.drawing(noise_sampler, seed), seed)


@torch.no_grad()
def sample_lms(model, x, sigmas, extra_args=None, callback=None, disable=None, order=4):
    """The linear multistep method, of an `order` from 1 to 5: `gmfast.diffusion.LMS`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.run(diffusion.LMS(order), different=True)


@torch.no_grad()
def sample_dpmpp_2m(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095): `gmfast.diffusion.DPMPP2M`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.run(diffusion.DPMPP2M(), different=True)


@torch.no_grad()
def sample_dpmpp_2m_sde(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    eta=1.0,
    s_noise=1.0,
    noise_sampler=None,
    solver_type="midpoint",
    *,
    seed=None,
):
    """SDE-DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095): `gmfast.diffusion.DPMPP2MSDE`.

    Without a `noise_sampler` and a `seed` the noise is `BrownianTreeNoiseSampler`'s, which needs torchsde.
    """
    _check.one_of("solver_type", solver_type, ("heun", "midpoint"))
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.sde(diffusion.DPMPP2MSDE(eta, solver_type), s_noise, noise_sampler, seed)


@torch.no_grad()
def sample_dpmpp_3m_sde(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    eta=1.0,
    s_noise=1.0,
    noise_sampler=None,
    *,
    seed=None,
):
    """SDE-DPM-Solver++(3M) as published, `gmfast.diffusion.DPMPP3MSDE(formulation="published")`, which is of
    second order; noise as of `sample_dpmpp_2m_sde`."""
    loop = _Loop(model, x, sigmas, extra_args, callback, disable)
    return loop.sde(diffusion.DPMPP3MSDE(eta, "published"), s_noise, noise_sampler, seed)


class BrownianTreeNoiseSampler:
    """Noise of a Brownian motion in sigma, of which a seed fixes the whole path: samplers with different
    sigmas follow the same one. Needs torchsde, whose tree it is.

    Args:
        x: the noise has its shape, dtype and device.
        sigma_min, sigma_max: where the path begins and ends.
        seed: an int, or a list of one for each sample; None draws one from torch's global generator.
        transform: of sigma to the path's time.

    Raises:
        RuntimeError: without torchsde.
    """

    def __init__(self, x, sigma_min, sigma_max, seed=None, transform=lambda x: x):
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

    def __call__(self, sigma, sigma_next):
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
    """What all samplers share."""

    def __init__(self, model, x, sigmas, extra_args, callback, disable):
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
        self.raise_by = None  # of the algorithm with churn: gamma
        self.first_added = 0.0  # the standard deviation of the noise before the first step
        self.values = self.host.tolist()
        self.steps = len(self.values) - 1
        *noisy, last = self.values
        if not all(0 < v < math.inf for v in noisy) or not 0 <= last < math.inf:
            raise ValueError(f"sigmas: expected positive numbers, the last one 0 or more, got {self.values}")

    def churned(self, order, churn, s_min, s_max, s_noise, seed):
        if not self.steps:
            return self.x
        # As numbers of the sigmas' dtype, as which torch compares them.
        s_min, s_max = torch.tensor([s_min, s_max], dtype=self.host.dtype).tolist()
        gamma = min(churn / self.steps, 2**0.5 - 1)
        within = (self.host >= s_min) & (self.host <= s_max)
        if gamma > 0 and within.any():
            self.raise_by = [gamma if raised else 0.0 for raised in within.tolist()]
            self.raised = torch.where(within, self.host * (gamma + 1), self.host)
            self.first_added = s_noise * math.sqrt(self.raise_by[0] * (2 + self.raise_by[0])) * self.values[0]
            sampler = diffusion.EDM(churn, s_min, s_max, s_noise, order)
        else:
            sampler = diffusion.EDM(order=order)

        def draw(step, x):
            """The noise that the next step begins with, whether or not it wants any."""
            return torch_normal_like(x) if step + 1 < self.steps else None

        return self.run(sampler, 1.0, None if seed is not None else draw, seed)

    def sde(self, sampler, s_noise, noise_sampler, seed):
        if any(now <= to for now, to in pairwise(self.values)):
            raise ValueError(f"sigmas: expected falling numbers, got {self.values}")
        if seed is None and noise_sampler is None:
            positive = self.host[self.host > 0]
            if sampler.eta and len(positive) > 1:
                tree = BrownianTreeNoiseSampler(self.x, positive.min(), positive.max())
                return self.run(sampler, s_noise, self.drawing(tree, None, self.host), different=True)
            _draw_seed()  # theirs plants a tree nevertheless
        draw = self.drawing(noise_sampler, seed) if sampler.eta else None
        return self.run(sampler, s_noise, draw, seed, different=True)

    def drawing(self, noise_sampler, seed, sigmas=None):
        """What draws the noise at the end of a step."""
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
        x, values = self.x, self.values
        if different and any(now == to for now, to in pairwise(values)):
            raise ValueError(f"sigmas: expected each to differ from the one before, got {values}")
        seed = None if seed is None else _seeds(seed, x.shape[0], x.device)
        plan = _plan(sampler, tuple(values), float(s_noise))
        table = plan.table(x.device)
        told = self._told(plan)
        if isinstance(sampler, diffusion.EDM):
            noise = draw(-1, x) if draw is not None else None
            if self.first_added:
                # The row behind the sampler's leaves x as it is: its noise is no other row's.
                table = table.clone()
                table[-1, _NOISE] = self.first_added
                x = GF.diffusion_step(x, x, table, step=len(plan), noise=noise, seed=seed)
        # Theirs divide by sigmas of as many dimensions as x, whose dtype counts, where they take slopes.
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
        """For each row, the sigma that the model is told: `(B,)`."""
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
    """In the dtype that torch gives to their sum."""
    for other in others:
        if other is not None and other.dtype != x.dtype:
            x = x.to(torch.promote_types(x.dtype, other.dtype))
    return x


def _bar(steps, disable):
    """tqdm's, as far as it is there."""
    if disable is True:
        return nullcontext()
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError:
        return nullcontext()
    return tqdm(total=steps, disable=disable)


def __getattr__(name):
    if name.startswith(("sample_", "get_sigmas_")):
        raise AttributeError(f"{name} is not among those that gmfast has: k_diffusion.sampling's is there")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
