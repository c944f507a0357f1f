"""The loop that draws samples, and what it is trained on."""

import functools
from itertools import pairwise

import torch

from .. import _check, _seed
from .. import functional as GF
from .._progress import reporting
from ..ops.diffusion_step import _check_options
from ..ops.standard_normal import _shape
from . import samplers, schedules


@torch.no_grad()
def sample(
    denoiser,
    shape,
    *,
    sampler="ddim",
    schedule=None,
    steps=50,
    prediction=None,
    guidance=None,
    seed=None,
    device=None,
    dtype=None,
    progress=False,
    callback=None,
    trajectory=False,
    clip=None,
    threshold=None,
    threshold_max=None,
    guidance_rescale=0.0,
    condition=None,
    unconditional=None,
    init=None,
    strength=1.0,
    known=None,
    mask=None,
    times=None,
    graph=False,
):
    """Samples of a diffusion, score, consistency or flow model.

    Args:
        denoiser: any callable of x `(B, *S)` and t `(B,)` that returns what `prediction` says, in the shape
            of x. t is, for variance-preserving schedules, the discrete time step (int64; spacings "karras"
            and "exponential": float32, between them); for "karras" and "exponential", sigma; for "flow", t in
            [0, 1] from data to noise (float32; float64 where x is).
        shape: `(B, *S)`.
        sampler: one of `gmfast.diffusion.SAMPLERS`, or an object such as `gmfast.diffusion.DDIM(eta=0.5)`.
        schedule: one of `gmfast.diffusion.SCHEDULES`, or an object; by default the sampler's: "linear" for
            ddpm, ddim, dpmpp_2m, dpmpp_3m, dpmpp_2m_sde, dpmpp_3m_sde, unipc, lcm and tcd, "karras" for
            euler, euler_ancestral, heun, edm, lms and consistency, "exponential" for langevin, "flow" for
            flow_euler.
        steps: how many. The denoiser is called once a step (heun, edm: twice, but for the last; langevin: as
            often as it says, and once more).
        prediction: "epsilon" (the noise), "x0", "v", "flow" or "score". By default what the denoiser says of
            itself in an attribute `prediction`, as `EDMPrecond` does; else "flow" of a "flow" schedule and
            "epsilon" of others.
        guidance: g of classifier-free guidance (Ho and Salimans, 2022, arXiv:2207.12598), unconditional +
            g·(m - unconditional). The denoiser is called as `denoiser(x, t, condition)` and `denoiser(x, t,
            unconditional)`, or, without a `condition`, returns the pair (m, unconditional). With g = 1, that
            is m, it is called once.
        guidance_rescale: see `gmfast.functional.diffusion_step`.
        seed: an int, an int64 tensor or a `torch.Generator`; for a seed for each sample, B ints or an int64
            tensor `(B,)`. Sample *i* is the same whatever the batch size; of seeds for each sample, sample
            *i* is sample 0 of a call with that seed.
        device, dtype: of the samples. By default those of `init` or `known`; else that of a seed tensor or of
            the denoiser's parameters (the CPU if it has none), and float32.
        progress: True shows a progress bar; a function is called with how many steps are done and of how
            many.
        callback: called as `callback(step, x, x0)` after each step; x0 is 0 of samples that a `strength` has
            not begun yet. If it returns False, that step is the last, and x is what is returned.
        trajectory: also return x before the first and after each step, `(steps + 1, B, *S)`.
        clip: x0 is clamped to [-clip, clip]; not with `threshold`.
        threshold, threshold_max: dynamic thresholding, as of `gmfast.functional.diffusion_step`.
        condition, unconditional: what the denoiser is given as a third argument; without guidance,
            `condition` alone, unless it is None.
        init: data `(B, *S)` to begin with, noised to the level at which `strength`, above 0 and at most 1, of
            the steps are left (Meng et al., "SDEdit", 2022, arXiv:2108.01073). A `strength` for each sample,
            `(B,)`, is for samplers that need nothing from the steps before: not for dpmpp, unipc, heun and
            edm.
        known, mask: where the mask, of broadcastable shape, is True or 1, the samples are those of `known`
            (by default `init`), which is noised to each step's level (as of RePaint, arXiv:2201.09865,
            without its repetitions); between 0 and 1, both mixed. Values beyond are looked for in masks and
            strengths that are on the CPU.
        times: the times themselves, `steps + 1`, from noise to where to end: -1 for the discrete schedules'
            data, 0 for the others'. `steps` is not looked at.
        graph: capture the whole loop as a CUDA graph; see `capture`, which keeps it.

    Returns:
        `(B, *S)`; with `trajectory`, a pair.

    Raises:
        ValueError: for shapes, values and names. TypeError: for types. RuntimeError: for `graph` without
        CUDA.

    Equivalent to, for `sampler="ddim"`::

        x = torch.randn(shape)
        for t, after in pairwise(times):
            epsilon = denoiser(x, t)
            x0 = (x - sigma[t] * epsilon) / alpha[t]
            x = alpha[after] * x0 + sigma[after] * epsilon
    """
    options = dict(locals())
    reports = {name: options.pop(name) for name in ("progress", "callback", "trajectory")}
    if not options.pop("graph"):
        return _Loop(**options).run(**reports)
    for name in ("callback", "trajectory"):
        if reports[name]:
            raise ValueError(f"graph: expected no {name}, which would have to leave the graph")
    return _Captured(_Loop(**options))()


def capture(denoiser, shape, **options):
    """The loop of `sample` as a CUDA graph: a function of `seed=` that draws new samples by replaying it.

    Takes the options of `sample` but for progress, callback and trajectory. The denoiser must not synchronise
    with the host, and its parameters must stay where they are (their values may change). If `seed` is one for
    each sample, so is that of each replay.

    Raises:
        RuntimeError: where the samples are not on a CUDA device.
    """
    return _Captured(_Loop(denoiser, shape, **options))


class _Captured:
    def __init__(self, loop):
        if loop.device.type != "cuda":
            raise RuntimeError(
                f"graph: expected samples on a CUDA device, as others have no graphs, got {loop.device}"
            )
        loop.seed = loop.seed.clone()  # a tensor of the caller's keeps its value
        self._loop = loop
        self._fresh = True
        with torch.no_grad(), torch.cuda.device(loop.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                loop.run()
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._x = loop.run()

    def __call__(self, seed=None):
        """New samples; without a seed, torch's generator gives one (the first time: that of the capture)."""
        if seed is not None or not self._fresh:
            seed = _seeds(seed, self._loop.shape[0], self._loop.device)
            if seed.shape != self._loop.seed.shape:
                raise ValueError(
                    f"seed: expected {tuple(self._loop.seed.shape)} as captured, got {tuple(seed.shape)}"
                )
            self._loop.seed.copy_(seed)
        self._fresh = False
        self._graph.replay()
        return self._x.clone()


class _Loop:
    """What a call of `sample` checks and prepares; `run` draws."""

    def __init__(
        self,
        denoiser,
        shape,
        *,
        sampler="ddim",
        schedule=None,
        steps=50,
        prediction=None,
        guidance=None,
        seed=None,
        device=None,
        dtype=None,
        clip=None,
        threshold=None,
        threshold_max=None,
        guidance_rescale=0.0,
        condition=None,
        unconditional=None,
        init=None,
        strength=1.0,
        known=None,
        mask=None,
        times=None,
    ):
        if not callable(denoiser):
            raise TypeError(f"denoiser: expected a function of x and t, got {type(denoiser).__name__}")
        self.denoiser = denoiser
        self.shape = tuple(_shape(shape))
        self._take_guidance(
            guidance, guidance_rescale, condition, unconditional, clip, threshold, threshold_max
        )
        like = self._take_data(init, known, mask)
        self.device = _device(device, seed, like, denoiser)
        self.dtype = dtype or (torch.float32 if like is None else like.dtype)
        if self.dtype not in _check.FLOATING:
            expected = ", ".join(map(str, _check.FLOATING))
            raise TypeError(f"dtype: expected one of {expected}, got {self.dtype!r}")
        self.seed = _seeds(seed, self.shape[0], self.device)
        self.init, self.known, self.mask = (
            None if v is None else v.to(self.device) for v in (self.init, self.known, self.mask)
        )
        first = None  # how much of the steps is left for each sample, where that differs
        if isinstance(strength, torch.Tensor | list | tuple):
            first, strength = self._strengths(strength), 1.0
        else:
            _check.real("strength", strength)
            if not 0 < strength <= 1:
                raise ValueError(f"strength: expected a number above 0 and at most 1, got {strength}")
        if init is None and (first is not None or strength != 1):
            raise ValueError("init: expected a tensor, as `strength` is given, got None")

        sampler = samplers.sampler(sampler)
        self.schedule = schedules.schedule(sampler.schedule if schedule is None else schedule)
        if prediction is None and isinstance(getattr(denoiser, "prediction", None), str):
            prediction = denoiser.prediction
        self.plan = _plan_of(
            sampler, self.schedule, _count(steps), prediction, _tuple(times), float(strength)
        )
        self.first = None  # the row at which each sample begins, and alpha and sigma there
        if first is not None:
            if not self.plan.single or len(self.plan) != self.plan.steps:
                raise ValueError(
                    f"strength: expected a number, as {type(sampler).__name__} needs the steps before, got "
                    "one for each sample"
                )
            whole = len(self.plan)
            self.first = whole - (first * whole + 1e-9).long().clamp(1, whole)
            levels = torch.tensor(
                [(row.now.alpha, row.now.sigma) for row in self.plan.rows], dtype=torch.float64, device="cpu"
            )
            wide = torch.float64 if self.dtype == torch.float64 else torch.float32
            self.begun = levels.to(self.device, wide)[self.first].unbind(1)

    def _take_guidance(self, guidance, rescale, condition, unconditional, clip, threshold, threshold_max):
        _check_options(1.0 if guidance is None else guidance, rescale, clip, threshold, threshold_max)
        for name, given in {"guidance_rescale": rescale, "unconditional": unconditional is not None}.items():
            if guidance is None and given:
                raise ValueError(f"guidance: expected a number, as `{name}` is given, got None")
        if threshold is not None and clip is not None:
            raise ValueError(f"clip: expected None, as `threshold` is given, got {clip}")
        if threshold is None and threshold_max is not None:
            raise ValueError("threshold: expected a number, as `threshold_max` is given, got None")
        self.condition, self.unconditional = condition, unconditional
        self.pairs = guidance is not None and condition is None
        self.guided = guidance is not None and guidance != 1
        self.options = dict(clip=clip, threshold=threshold, threshold_max=threshold_max)
        if self.guided:
            self.options.update(guidance=guidance, guidance_rescale=rescale)

    def _take_data(self, init, known, mask):
        """The tensor whose device and dtype the samples have by default."""
        for name, value in {"init": init, "known": known}.items():
            if value is not None:
                _check.floating(name, value)
                if tuple(value.shape) != self.shape:
                    raise ValueError(f"{name}: expected shape {self.shape}, got {tuple(value.shape)}")
        if known is not None and mask is None:
            raise ValueError("mask: expected a tensor, as `known` is given, got None")
        if mask is not None:
            known = init if known is None else known
            if known is None:
                raise ValueError("known: expected a tensor, or `init`, as `mask` is given, got None")
            _check.tensor("mask", mask)
            if mask.is_complex():
                raise TypeError(f"mask: expected bool or numbers, got {str(mask.dtype)[6:]}")
            sizes = zip(reversed(mask.shape), reversed(self.shape), strict=False)
            if mask.dim() > len(self.shape) or any(n not in (1, size) for n, size in sizes):
                raise ValueError(
                    f"mask: expected a shape that broadcasts to {self.shape}, got {tuple(mask.shape)}"
                )
            _check.values("mask", mask, 0, 1)
        self.init, self.known, self.mask = init, known, mask
        return init if init is not None else known

    def _strengths(self, strength):
        try:
            like = strength.device if isinstance(strength, torch.Tensor) else "cpu"
            strength = torch.as_tensor(strength, dtype=torch.float64, device=like)
        except (TypeError, ValueError):
            raise TypeError(f"strength: expected numbers, got {strength!r}") from None
        if tuple(strength.shape) != self.shape[:1]:
            raise ValueError(f"strength: expected shape {self.shape[:1]}, got {tuple(strength.shape)}")
        if _check.values("strength", strength, 0, 1) and (strength == 0).any():
            raise ValueError("strength: expected numbers above 0, got 0")
        return strength.to(self.device)

    def run(self, *, progress=False, callback=None, trajectory=False):
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: expected a function or None, got {type(callback).__name__}")
        plan = self.plan
        table = plan.table(self.device)
        t = self._times()
        going = True
        noise = GF.standard_normal(self.shape, seed=self.seed, dtype=self.dtype, device=self.device)
        x = self._begin(noise)
        noise = None if self.mask is None else noise
        passed = [x] if trajectory else None
        history = ()
        step = 0
        with reporting(progress, plan.steps, "step") as advance:
            for k, row in enumerate(plan.rows):
                m, extra = self._denoise(x, t[k])
                wants_x0 = "x0" in row.keep or (callback is not None and row.whole)
                wants_kept = "kept" in row.keep
                results = GF.diffusion_step(
                    x,
                    m,
                    table,
                    step=k if self.first is None else torch.where(self.first > k, len(plan), k),
                    history=history,
                    seed=self.seed,
                    x0=wants_x0,
                    kept=wants_kept,
                    **extra,
                    **self.options,
                )
                named = {"x": x, **{f"h{i}": h for i, h in enumerate(history, 1)}}
                if wants_x0 or wants_kept:
                    x, *others = results
                    named.update(zip(["x0"] * wants_x0 + ["kept"] * wants_kept, others, strict=True))
                else:
                    x = results
                history = tuple(named[name] for name in row.keep if name in named)
                if row.whole:
                    if self.mask is not None:
                        mixed = self._put_known(x, row.to.alpha, row.to.sigma, noise)
                        x = mixed if self.first is None else torch.where(self._waiting(k), x, mixed)
                    if callback is not None:
                        going = callback(step, x, named["x0"]) is not False
                    if trajectory:
                        passed.append(x)
                    step += 1
                    advance(1)
                    if not going:
                        break
        return (x, torch.stack(passed)) if trajectory else x

    def _waiting(self, k):
        """Which samples have not begun before row k is done."""
        return (self.first > k).reshape(-1, *[1] * (len(self.shape) - 1))

    def _times(self):
        """For each row, what the denoiser is told: `(B,)`."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        times = self.plan.times(self.device, dtype)
        rows, batch = len(self.plan), self.shape[0]
        if self.first is None:
            return times[:, None].expand(rows, batch).contiguous().unbind()
        at = torch.arange(rows, device=self.device)[:, None].maximum(self.first)
        return times[at].unbind()

    def _begin(self, noise):
        level = self.plan.start
        alpha, sigma = (level.alpha, level.sigma) if self.first is None else self.begun
        if self.init is not None:
            x = GF.q_sample(self.init.to(self.dtype), alpha, sigma, noise=noise)
        else:
            scale = self.schedule.start(level)
            x = noise if scale == 1 else noise * scale
        return x if self.mask is None else self._put_known(x, alpha, sigma, noise)

    def _put_known(self, x, alpha, sigma, noise):
        known = GF.q_sample(self.known.to(self.dtype), alpha, sigma, noise=noise)
        if self.mask.dtype == torch.bool:
            return torch.where(self.mask, known, x)
        return torch.lerp(x, known, self.mask.to(self.dtype).expand(self.shape))

    def _denoise(self, x, t):
        """The model's output, and what else a step needs of it by name."""
        if self.condition is None:
            m, unconditional = self.denoiser(x, t), None
            if self.pairs:
                if not isinstance(m, tuple | list) or len(m) != 2:
                    raise ValueError(
                        "guidance: expected a `condition`, or a denoiser that returns the pair (m, "
                        f"unconditional), got {type(m).__name__}"
                    )
                m, unconditional = m
        else:
            m, unconditional = self.denoiser(x, t, self.condition), None
            if self.guided:
                unconditional = self.denoiser(x, t, self.unconditional)
        extra = {}
        m, variance = self._parts(m)
        if variance is not None:
            extra["variance"] = variance
        if self.guided:
            extra["unconditional"], _ = self._parts(unconditional)
        return m, extra

    def _parts(self, m):
        """What the denoiser predicts, and the variance's place in its range, if it is to say that."""
        if not isinstance(m, torch.Tensor) and hasattr(m, "sample"):  # as networks of diffusers return
            raise TypeError(f"denoiser: expected a tensor, such as its `.sample`, got {type(m).__name__}")
        _check.floating("denoiser", m)
        learned_range = self.plan.learned_range
        expected = list(self.shape)
        if learned_range and len(expected) > 1:
            expected[1] *= 2
        if list(m.shape) != expected:
            raise ValueError(
                f"denoiser: expected a tensor of shape {tuple(expected)}"
                f"{', half of its channels the variance' * learned_range}, got {tuple(m.shape)}"
            )
        return m.chunk(2, 1) if learned_range else (m, None)


def plan(sampler="ddim", schedule=None, *, steps=50, prediction=None, times=None):
    """The `Plan` that `sample` goes through, for a loop of one's own.

    Args: as of `sample`.

    Its `table()` is what `gmfast.functional.diffusion_step` takes, its `times()` what the denoiser is told at
    each row, and its `rows` say what is kept for the next. x begins as noise times
    `schedule.start(plan.start)`, which is 1 of variance-preserving schedules. For a sampler that keeps
    nothing (`plan.single`)::

        plan = gmfast.diffusion.plan("ddim", "cosine", steps=20, prediction="v")
        table = plan.table(x.device)
        with torch.no_grad():  # where gradients are recorded a step is plain PyTorch
            for k, t in enumerate(plan.times(x.device)):
                x = gmfast.functional.diffusion_step(x, denoiser(x, t.expand(len(x))), table, step=k, seed=0)
    """
    sampler = samplers.sampler(sampler)
    schedule = schedules.schedule(sampler.schedule if schedule is None else schedule)
    return _plan_of(sampler, schedule, _count(steps), prediction, _tuple(times), 1.0)


def training_table(schedule="linear", prediction=None, *, device="cpu"):
    """The DDPM sampler's coefficients of every time step, `(T, 20)`, float64, with a learned range: row t for
    the step from t to t - 1, as `gmfast.functional.diffusion_hybrid_loss` takes them.

    Args:
        schedule: one of time steps: "linear", "scaled_linear", "cosine", "sigmoid", "laplace", or a
            `VariancePreserving`.
        prediction: what the network gives; the hybrid loss is of "epsilon", the default.
    """
    schedule = schedules.schedule(schedule)
    if not isinstance(schedule, schedules.VariancePreserving):
        raise ValueError(f"schedule: expected one of time steps, got {type(schedule).__name__}")
    times = tuple(range(len(schedule) - 1, -2, -1))
    plan = samplers.DDPM("learned_range").plan(schedule, times, prediction)
    with torch.inference_mode(False):  # training may save it
        return plan.table("cpu")[:-1].flip(0).to(device)


def _plan_of(*words):
    """A plan and its tables serve every call with the same words, if these can be told from others."""
    try:
        hash(words)
    except TypeError:  # samplers and schedules of one's own
        return _plan.__wrapped__(*words)
    return _plan(*words)


@functools.lru_cache(64)
def _plan(sampler, schedule, steps, prediction, times, strength):
    if times is None:
        if schedule.discrete and steps > len(schedule):
            raise ValueError(f"steps: expected at most the {len(schedule)} of the schedule, got {steps}")
        times = sampler.times(schedule, steps)
    elif schedule.discrete and any(t != int(t) for t in times):
        raise ValueError(f"times: expected whole numbers, as the schedule has time steps, got {times}")
    skipped = len(times) - 1 - max(int((len(times) - 1) * strength + 1e-9), 1)
    return sampler.plan(schedule, times[skipped:], prediction)


def _count(steps):
    _check.at_least(1, steps=steps)
    return int(steps)


def _tuple(times):
    if times is None:
        return None
    try:
        times = tuple(times.tolist() if hasattr(times, "tolist") else times)
    except TypeError:
        raise TypeError(f"times: expected numbers, got {type(times).__name__}") from None
    for t in times:
        _check.real("times", t)
    if len(times) < 2 or not all(a > b for a, b in pairwise(times)):
        raise ValueError(f"times: expected at least two falling numbers, got {times}")
    return times


def _device(device, seed, like, denoiser):
    if device is None:
        if like is not None:
            device = like.device
        elif isinstance(seed, torch.Tensor):
            device = seed.device
        else:
            parameters = getattr(denoiser, "parameters", None)
            parameter = next(iter(parameters()), None) if callable(parameters) else None
            device = "cpu" if parameter is None else parameter.device
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _seeds(seed, batch, device):
    """An int64 tensor, () or (B,)."""
    if isinstance(seed, list | tuple):
        if len(seed) != batch:
            raise ValueError(f"seed: expected {batch}, one for each sample, got {len(seed)}")
        if not seed:
            return torch.empty(0, dtype=torch.int64, device=device)
        return torch.stack([_seed.as_tensor(s, torch.device("cpu")) for s in seed]).to(device)
    if isinstance(seed, torch.Tensor) and seed.dim():
        if seed.dtype != torch.int64:
            raise TypeError(f"seed: expected an int64 tensor, got {str(seed.dtype)[6:]}")
        if tuple(seed.shape) != (batch,):
            raise ValueError(f"seed: expected () or ({batch},), got {tuple(seed.shape)}")
        return seed.to(device)
    if isinstance(seed, torch.Tensor):
        seed = seed.to(device)
    return _seed.as_tensor(seed, device)


def add_noise(x, t, schedule="linear", *, noise=None, seed=None, target=None):
    """`gmfast.functional.q_sample` at times of a schedule: alpha(t)·x + sigma(t)·z.

    Args:
        x: floating, `(B, *S)`.
        t: `(B,)`, as a denoiser of the schedule is told it, or one for all samples, a number or `()`. Times
            beyond the schedule's are an error on the CPU; elsewhere nobody waits for a check, and of time
            steps that there are not the result is NaN.
        schedule: one of `gmfast.diffusion.SCHEDULES`, or an object.
        noise, seed, target: as of `q_sample`; but "v" is (alpha·z - sigma·x)/√(alpha² + sigma²), the same for
            variance-preserving schedules, as `sample(prediction="v")` takes it of every schedule.
    """
    _check.floating("x", x)
    schedule = schedules.schedule(schedule)
    if not isinstance(t, torch.Tensor):
        _check.real("t", t)
        dtype = torch.float64 if isinstance(t, float) else torch.int64
        t = torch.full(x.shape[:1], t, dtype=dtype, device=x.device)
    if schedule.discrete and t.is_floating_point():
        raise TypeError(f"t: expected int64, as the schedule has time steps, got {str(t.dtype)[6:]}")
    if t.dtype == torch.bool or t.is_complex():
        raise TypeError(f"t: expected times, got {str(t.dtype)[6:]}")
    if t.dim() and t.shape != x.shape[:1]:
        raise ValueError(f"t: expected shape () or {tuple(x.shape[:1])}, got {tuple(t.shape)}")
    if t.device != x.device:
        raise ValueError(f"t: expected a tensor on {x.device}, got one on {t.device}")
    _check.values("t", t, *schedule.span)
    alpha, sigma = schedule.alpha_sigma(t)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    noised = GF.q_sample(x, alpha.to(wide), sigma.to(wide), noise=noise, seed=seed, target=target)
    if target != "v":
        return noised
    x_t, v = noised
    scale = torch.hypot(alpha, sigma).to(wide).reshape(-1, *[1] * (x.dim() - 1))
    return x_t, (v / scale).to(v.dtype)
