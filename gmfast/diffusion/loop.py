"""Sampling loop: `sample`, `capture`, and the loop that both run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import _check, _library, _seed
from .. import functional as GF
from .._progress import reporting
from .._table import COLUMNS
from .options import Denoiser, SampleOptions, Seed, takes
from .plan import resolve
from .samplers import DPMAdaptiveSampler, Row, x0_weights


@torch.no_grad()
@takes(SampleOptions)
def sample(denoiser: Denoiser, shape: Sequence[int], **options: Any) -> Tensor | tuple[Tensor, Tensor]:
    """Draw samples of a diffusion, score, consistency or flow model.

    Args:
        denoiser: Callable of x `(B, *S)` and t `(B,)` that returns, in the shape of x, what `prediction`
            names. t is the discrete timestep for variance-preserving schedules (int64; for spacings "karras"
            and "exponential" float32 between timesteps), sigma for "karras" and "exponential", and t in
            [0, 1] from data to noise for "flow" (float32; float64 where x is). With `times` between the
            timesteps it is float32 too.
        shape: `(B, *S)`.
        **options: See Keyword Args.

    Keyword Args:
        sampler (str | Sampler): One of `gmfast.diffusion.SAMPLERS`, or an object such as
            `gmfast.diffusion.DDIM(eta=0.5)`. Default "ddim".
        schedule (str | Schedule | None): One of `gmfast.diffusion.SCHEDULES`, or an object; by default the
            sampler's: "linear" for ddpm, ddim, dpmpp_2m, dpmpp_3m, dpmpp_2m_sde, dpmpp_3m_sde, unipc, deis,
            lcm and tcd, "karras" for euler, euler_ancestral, heun, edm, dpm_2, dpm_2_ancestral,
            dpmpp_2s_ancestral, dpmpp_sde, res_multistep, lms and consistency, "exponential" for dpm_fast and
            langevin, "flow" for flow_euler.
        steps (int): Number of steps, default 50. The denoiser is called once a step; heun, edm, dpm_2,
            dpm_2_ancestral, dpmpp_2s_ancestral and dpmpp_sde call it twice, but once in the last; dpm_fast
            three times, but twice and once in the last two; langevin `per_level` times, and once more at the
            end. dpm_adaptive takes only the first and the last noisy time from the steps; its progress is in
            percent of λ.
        prediction (str | None): What the denoiser returns: "epsilon" (the noise), "x0", "v", "flow" or
            "score". By default the denoiser's attribute `prediction` where it has one, as `EDMPrecond` does;
            else "flow" for a "flow" schedule and "epsilon" for others.
        guidance (float | None): Scale g of classifier-free guidance (Ho and Salimans, 2022,
            arXiv:2207.12598), unconditional + g·(m - unconditional). The denoiser is called as
            `denoiser(x, t, condition)` and `denoiser(x, t, unconditional)` or, without a `condition`, returns
            the pair (m, unconditional). With g = 1, which gives m, it is called once.
        seed (int | Tensor | torch.Generator | Sequence[int] | None): An int, an int64 tensor or a generator;
            B ints or an int64 tensor `(B,)` are a seed for each sample. Sample *i* does not depend on the
            batch size; with a seed for each sample, it is sample 0 of a call with its seed. By default a seed
            is drawn from torch's global generator.
        device (torch.device | str | None): Device of the samples. By default that of `init` or `known`, else
            of a seed tensor or of the denoiser's parameters, else the CPU.
        dtype (torch.dtype | None): Dtype of the samples. By default that of `init` or `known`, else float32.
        progress (bool | Callable): True shows a progress bar; a function is called with the number of steps
            done and their total.
        callback (Callable | None): Called as `callback(step, x, x0)` after each step; x0 is 0 for samples
            that a `strength` has not started yet. If it returns False, sampling ends with that step's x; if
            it returns a tensor, that is x for the steps that follow.
        trajectory (bool): Also return x before the first and after each step.
        clip (float | None): Clamps x0 to [-clip, clip]; excludes `threshold`.
        threshold (float | None): Quantile of dynamic thresholding, see `gmfast.functional.diffusion_step`.
        threshold_max (float | None): Limit of dynamic thresholding, see `gmfast.functional.diffusion_step`.
        guidance_rescale (float): See `gmfast.functional.diffusion_step`.
        cfg_pp (bool): Guide as CFG++ (Chung et al., 2024, arXiv:2406.08070): the sampler steps by the
            unconditional x0, and the guided one less it is added at the step's end, so that only the data are
            guided and not the noise; `guidance` is then usually in [0, 1]. For ddim, euler, euler_ancestral,
            flow_euler, the dpmpp multistep samplers and res_multistep; excludes `clip`, `threshold` and
            `guidance_rescale`.
        condition (Any): Third argument of the denoiser, also without guidance, unless it is None.
        unconditional (Any): Third argument of the denoiser for guidance's unconditional output.
        init (Tensor | None): Data `(B, *S)` to start from, noised to the level at which `strength` of the
            steps are left (Meng et al., "SDEdit", 2022, arXiv:2108.01073).
        latents (Tensor | None): x `(B, *S)` of the first call of the denoiser, in place of noise, which is
            standard normal times the first level's sigma (for variance-preserving schedules times 1). Such as
            `invert` returns; excludes `init`.
        strength (float | Sequence[float] | Tensor): Fraction of the steps to execute, in (0, 1], or one for
            each sample, `(B,)`; the latter only with samplers whose steps are independent of the steps before
            (not dpmpp, unipc, lms, heun and edm). A device's values are not checked.
        known (Tensor | None): Data that the samples have where `mask` is True or 1, by default `init`; noised
            to each step's level (RePaint, arXiv:2201.09865, without its resampling).
        mask (Tensor | None): Bool or numbers in [0, 1], broadcastable to `shape`; between 0 and 1 `known` and
            sample are interpolated. A device's values are not checked.
        times (Sequence[float] | Tensor | None): The `steps + 1` times themselves, from noise to where
            sampling ends: -1 is the data of discrete schedules, 0 of others. `steps` is then ignored. Times
            between the timesteps of a variance-preserving schedule interpolate its noise levels. Rising times
            lead from `latents`, the data, to noise; `invert` makes them.
        graph (bool): Capture the whole loop as a CUDA graph and replay it once; `capture` keeps the graph.

    Returns:
        Samples of shape `(B, *S)`; with `trajectory`, a tuple with x after each step,
        `(steps + 1, B, *S)`.

    Raises:
        ValueError: For shapes, values and names.
        TypeError: For types.
        RuntimeError: For `graph` without CUDA.

    Equivalent to, for `sampler="ddim"`::

        x = torch.randn(shape)
        for t, after in pairwise(times):
            epsilon = denoiser(x, t)
            x0 = (x - sigma[t] * epsilon) / alpha[t]
            x = alpha[after] * x0 + sigma[after] * epsilon
    """
    _library.leave_graph(
        "sample: expected a call outside of fullgraph=True, as its loop is Python; compile the denoiser"
    )
    loop = Loop(SampleOptions(denoiser, shape, **options))
    return CapturedLoop(loop)() if loop.options.graph else loop.run()


def invert(denoiser: Denoiser, x: Tensor, **options: Any) -> Tensor | tuple[Tensor, Tensor]:
    """Map data to the noise from which the same sampler leads back to them.

    The sampler's steps are taken backwards, from the data to the schedule's first time: for "ddim" DDIM
    inversion (Song et al., 2021, arXiv:2010.02502, section 4.3), with the denoiser called at the level that a
    step starts from; the first step, from the data, calls it at the level that it leads to. `sample` with the
    result as `latents` returns x, to the error of the steps of both. heun and lms step in sigma/alpha: they
    are not for schedules such as "cosine", on which that rises a hundredfold within a step.

    Args:
        denoiser: As in `sample`.
        x: Data, shape `(B, *S)`.
        **options: Keyword arguments of `sample` but init, latents, seed and strength. The sampler must add no
            noise. `times`, if given, are rising.

    Returns:
        As `sample`.

    Raises:
        ValueError: For shapes, values and names, and for samplers that add noise.
        TypeError: For types.
    """
    _check.floating("x", x)
    for name in ("init", "latents", "seed", "strength"):
        if name in options:
            raise TypeError(f"invert() got an unexpected keyword argument {name!r}")
    if options.get("times") is None:
        sampler, schedule = resolve(options.get("sampler", "ddim"), options.get("schedule"))
        steps = options.get("steps", 50)
        _check.at_least(1, steps=steps)
        options["times"] = sampler.times(schedule, steps)[::-1]
    return sample(denoiser, x.shape, latents=x, seed=0, **options)


def capture(denoiser: Denoiser, shape: Sequence[int], **options: Any) -> "CapturedLoop":
    """Capture the loop of `sample` as a CUDA graph.

    The denoiser must not synchronise with the host, and its parameters must stay in place; their values may
    change.

    Args:
        denoiser: As in `sample`.
        shape: As in `sample`.
        **options: Keyword arguments of `sample` but callback and trajectory; progress has no effect.

    Returns:
        A function of `seed=` that replays the graph to draw new samples. Its seeds must have the shape of the
        captured one, () or `(B,)`.

    Raises:
        ValueError: For shapes, values and names.
        TypeError: For types.
        RuntimeError: If the samples are not on a CUDA device.
    """
    return CapturedLoop(Loop(SampleOptions(denoiser, shape, graph=True, **options)))


class CapturedLoop:
    """CUDA graph of a loop; each call replays it with a new seed."""

    def __init__(self, loop: "Loop") -> None:
        device = loop.options.device
        if device.type != "cuda":
            raise RuntimeError(
                f"graph: expected samples on a CUDA device, as others have no graphs, got {device}"
            )
        loop.seed = loop.seed.clone()  # replays overwrite it: the caller's tensor must keep its value
        self._loop = loop
        self._first = _seed.first()
        self._fresh = True
        with torch.no_grad(), torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                loop.run()
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._x = loop.run()

    def __call__(self, seed: Seed = None) -> Tensor:
        """Draw samples.

        Args:
            seed: As in `sample`; by default drawn from torch's global generator, in the first call that of
                the capture.

        Raises:
            ValueError: If the seed's shape differs from the captured one's, or the noise counts from another
                sample than then.
        """
        if _seed.first() != self._first:
            raise ValueError(f"first_sample: expected {self._first} as captured, got {_seed.first()}")
        held = self._loop.seed
        if seed is not None or not self._fresh:
            seed = _seed.of_batch(seed, self._loop.options.shape[0], held.device)
            if seed.shape != held.shape:
                raise ValueError(f"seed: expected {tuple(held.shape)} as captured, got {tuple(seed.shape)}")
            held.copy_(seed)
        self._fresh = False
        self._graph.replay()
        return self._x.clone()


class Loop:
    """Loop of one call of `sample`, with seeds and data on the device; `run` draws the samples."""

    def __init__(self, options: SampleOptions) -> None:
        self.options = options
        self.shape, self.dtype, self.plan = options.shape, options.dtype, options.plan
        self.device = device = options.device
        self.seed = _seed.of_batch(options.seed, self.shape[0], device)
        self.init, self.latents, self.known, self.mask = (
            None if v is None else v.to(device)
            for v in (options.init, options.latents, options.known, options.mask)
        )
        self.guided = options.guided
        self.paired = options.guidance is not None and options.condition is None
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.first = None  # with a strength for each sample: the row at which it starts
        if isinstance(options.strength, Tensor):
            rows = self.plan.rows
            strength = options.strength.to(device)
            self.first = len(rows) - (strength * len(rows) + 1e-9).long().clamp(1, len(rows))
            levels = torch.tensor(
                [(row.now.alpha, row.now.sigma) for row in rows], dtype=torch.float64, device="cpu"
            )
            self.first_level = levels.to(device, self.wide)[self.first].unbind(1)  # alpha and sigma there

    def run(self) -> Tensor | tuple[Tensor, Tensor]:
        """Draw the samples; with `trajectory`, also return x before the first and after each step."""
        plan, options = self.plan, self.options
        callback, mask, step_options = options.callback, self.mask, options.step_options
        table = plan.table(self.device)
        t = self._times()
        noise = GF.standard_normal(self.shape, seed=self.seed, dtype=self.dtype, device=self.device)
        x = self._begin(noise)
        if mask is None:
            noise = None  # only known values are noised again
        passed = [x] if options.trajectory else None
        history = ()
        step = 0
        adapting = isinstance(options.sampler, DPMAdaptiveSampler)
        total, unit = (100, "%") if adapting else (plan.steps, "step")
        with reporting(False if options.graph else options.progress, total, unit) as advance:
            adapted = 0
            if adapting and plan.rows[0].to.sigma > 0:
                x, step, going = self._adapt(x, noise, passed, advance)
                adapted = 1 if going else len(plan)
            for k, row in enumerate(plan.rows):
                if k < adapted:
                    continue
                m, extra = self._denoise(x, t[k])
                taken = history
                if options.cfg_pp:
                    conditional, m = m, extra.pop("unconditional")
                    taken = (*history, conditional)
                wants_x0 = "x0" in row.keep or (callback is not None and row.whole)
                wants_kept = "kept" in row.keep
                results = GF.diffusion_step(
                    x,
                    m,
                    table,
                    step=k if self.first is None else torch.where(self.first > k, len(plan), k),
                    history=taken,
                    seed=self.seed,
                    x0=wants_x0,
                    kept=wants_kept,
                    **extra,
                    **step_options,
                )
                named = {"x": x, **{f"h{i}": h for i, h in enumerate(history, 1)}}
                if wants_x0 or wants_kept:
                    x, *others = results
                    named.update(zip(["x0"] * wants_x0 + ["kept"] * wants_kept, others, strict=True))
                else:
                    x = results
                history = tuple(named[name] for name in row.keep if name in named)
                if not row.whole:
                    continue
                if mask is not None:
                    mixed = self._put_known(x, row.to.alpha, row.to.sigma, noise)
                    x = mixed if self.first is None else torch.where(self._waiting(k), x, mixed)
                going = True
                if callback is not None:
                    x0 = named["x0"]
                    if options.cfg_pp:
                        of_m = x0_weights(plan.prediction, row.now)[1]
                        x0 = x0 + options.guidance * of_m * (conditional - m)
                    x, going = self._call_back(step, x, x0)
                if passed is not None:
                    passed.append(x)
                step += 1
                if not adapting:
                    advance(1)
                if not going:
                    break
        return x if passed is None else (x, torch.stack(passed))

    def _call_back(self, step: int, x: Tensor, x0: Tensor) -> tuple[Tensor, bool]:
        """Call back; return x, or what the callback returned for it, and whether sampling goes on."""
        answer = self.options.callback(step, x, x0)
        if isinstance(answer, Tensor):
            _check.floating("callback", answer)
            if tuple(answer.shape) != self.shape:
                raise ValueError(f"callback: expected x of shape {self.shape}, got {tuple(answer.shape)}")
            x = answer.to(self.device, self.dtype)
        return x, answer is not False

    def _adapt(
        self, x: Tensor, noise: Tensor | None, passed: list[Tensor] | None, advance: Callable[[int], object]
    ) -> tuple[Tensor, int, bool]:
        """Lead x along the plan's first row in steps by their errors, each sample by its own.

        Returns:
            x, the number of attempts, and whether sampling goes on.
        """
        options, batch = self.options, self.shape[0]
        sampler, schedule, order = options.sampler, options.schedule, options.sampler.order
        start, goal = self.plan.rows[0].now, self.plan.rows[0].to
        floor = goal.sigma / goal.alpha
        levels, sizes = [start] * batch, [sampler.step_size() for _ in range(batch)]
        # What a sample does that has arrived.
        still = [Row(goal, goal, {"x": 1.0, "kept_x": 1.0})] * order
        at = torch.arange(batch, device=self.device) * order
        low, attempts, shown, going = x, 0, 0, True
        while going and any(level is not goal for level in levels):
            to = [
                level if level is goal else sampler.next_level(schedule, level, goal, size.h)
                for level, size in zip(levels, sizes, strict=True)
            ]
            rows, added = zip(
                *(
                    (still, 0.0) if now is goal else sampler.attempt(schedule, now, end, floor)
                    for now, end in zip(levels, to, strict=True)
                ),
                strict=True,
            )
            keeps = next([row.keep for row in r] for r in rows if r is not still)
            plan = replace(self.plan, rows=[row for r in rows for row in r], _cached={})
            table, t = plan.table(self.device), plan.times(self.device, self.wide)
            high, history, x0 = x, (), None
            for k, keep in enumerate(keeps):
                m, extra = self._denoise(high, t[at + k])
                before = high
                high, predicted, kept = GF.diffusion_step(
                    high,
                    m,
                    table,
                    step=at + k,
                    history=history,
                    x0=True,
                    kept=True,
                    **extra,
                    **options.step_options,
                )
                x0 = predicted if x0 is None else x0
                named = {"x": before, "kept": kept, **{f"h{i}": h for i, h in enumerate(history, 1)}}
                history = tuple(named[name] for name in keep)
            scale = torch.maximum(kept.abs(), low.abs()).mul_(sampler.rtol).clamp_(min=sampler.atol)
            errors = ((kept - high) / scale).to(self.wide).square().flatten(1).mean(1).sqrt().tolist()
            accepted = [
                now is not goal and size.accepts(error)
                for now, size, error in zip(levels, sizes, errors, strict=True)
            ]
            levels = [end if ok else now for now, end, ok in zip(levels, to, accepted, strict=True)]
            if any(added):
                high = high + self._per_sample(added) * self._noise_of(attempts)
            chosen = self._per_sample(accepted).bool()
            x, low = torch.where(chosen, high.to(x.dtype), x), torch.where(chosen, kept, low)
            if self.mask is not None:
                alpha, sigma = (
                    self._per_sample([getattr(level, name) for level in levels]).flatten()
                    for name in ("alpha", "sigma")
                )
                x = self._put_known(x, alpha, sigma, noise)
            if options.callback is not None:
                x, going = self._call_back(attempts, x, x0)
            if passed is not None:
                passed.append(x)
            attempts += 1
            least = min(level.log_snr for level in levels) - start.log_snr
            percent = int(100 * least / (goal.log_snr - start.log_snr))
            advance(percent - shown)
            shown = percent
        return x, attempts, going

    def _per_sample(self, values: Sequence[float]) -> Tensor:
        """Return a number for each sample, in a shape that broadcasts to x."""
        values = torch.tensor(values, dtype=self.wide, device="cpu").to(self.device)
        return values.reshape(-1, *[1] * (len(self.shape) - 1))

    def _noise_of(self, attempt: int) -> Tensor:
        """Draw the noise of an attempt, which row `attempt` of a table keys."""
        table = torch.zeros(attempt + 1, len(COLUMNS), dtype=torch.float64)
        table[attempt, COLUMNS.index("noise")] = 1.0
        zeros = torch.zeros(self.shape, dtype=self.wide, device=self.device)
        return GF.diffusion_step(zeros, zeros, table.to(self.device), step=attempt, seed=self.seed)

    def _waiting(self, k: int) -> Tensor:
        """True if each sample starts after row k, in a shape that broadcasts to x."""
        return (self.first > k).reshape(-1, *[1] * (len(self.shape) - 1))

    def _times(self) -> tuple[Tensor, ...]:
        """Times `(B,)` that the denoiser is given, one tensor for each row."""
        times = self.plan.times(self.device, self.wide)
        rows, batch = len(self.plan), self.shape[0]
        if self.first is None:
            return times[:, None].expand(rows, batch).contiguous().unbind()
        at = torch.arange(rows, device=self.device)[:, None].maximum(self.first)
        return times[at].unbind()

    def _begin(self, noise: Tensor) -> Tensor:
        """Return the initial x."""
        level = self.plan.start
        alpha, sigma = (level.alpha, level.sigma) if self.first is None else self.first_level
        if self.init is not None:
            x = GF.q_sample(self.init.to(self.dtype), alpha, sigma, noise=noise)
        elif self.latents is not None:
            x = self.latents.to(self.dtype)
        else:
            scale = self.options.schedule.start(level)
            x = noise if scale == 1 else noise * scale
        return x if self.mask is None else self._put_known(x, alpha, sigma, noise)

    def _put_known(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, noise: Tensor) -> Tensor:
        """Put the known values, noised to a level, into x where the mask selects them."""
        known = GF.q_sample(self.known.to(self.dtype), alpha, sigma, noise=noise)
        if self.mask.dtype == torch.bool:
            return torch.where(self.mask, known, x)
        return torch.lerp(x, known, self.mask.to(self.dtype).expand(self.shape))

    def _denoise(self, x: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Call the denoiser; return its output and the tensors that a step takes by name."""
        options = self.options
        if options.condition is None:
            m, unconditional = options.denoiser(x, t), None
            if self.paired:
                if not isinstance(m, tuple | list) or len(m) != 2:
                    raise ValueError(
                        "guidance: expected a `condition`, or a denoiser that returns the pair (m, "
                        f"unconditional), got {type(m).__name__}"
                    )
                m, unconditional = m
        else:
            m, unconditional = options.denoiser(x, t, options.condition), None
            if self.guided:
                unconditional = options.denoiser(x, t, options.unconditional)
        extra = {}
        m, variance = self._split(m)
        if variance is not None:
            extra["variance"] = variance
        if self.guided:
            extra["unconditional"], _ = self._split(unconditional)
        return m, extra

    def _split(self, m: Tensor) -> tuple[Tensor, Tensor | None]:
        """Check the denoiser's output and split a learned variance off."""
        if not isinstance(m, Tensor) and hasattr(m, "sample"):  # as networks of diffusers return
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
