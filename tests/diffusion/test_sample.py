"""The loop around the samplers: seeds, guidance, starts, masks, reports and errors; and the schedules."""

import inspect
import math
import pickle
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

import gmfast.functional as GF
from gmfast import diffusion, reference

SHAPE = (4, 3, 5)


def denoiser(x, t):
    """Of each sample alone, and not linear."""
    scale = (1 + t.to(x.dtype)).log().reshape(-1, *[1] * (x.dim() - 1))
    return torch.tanh(x * scale) + 0.1 * x.flip(-1)


class Steps(diffusion.Schedule):
    """Discrete timesteps of one's own."""

    discrete = True

    def level(self, t):
        return diffusion.Level(t, 1.0, t, 1.0)


def draw(shape=SHAPE, *, seed=7, steps=6, **options):
    return diffusion.sample(denoiser, shape, seed=seed, steps=steps, **options)


@pytest.mark.parametrize("name", diffusion.SAMPLERS)
def test_samples_depend_on_the_seed_and_not_on_the_batch(name):
    prediction = "v" if name == "flow_euler" else "x0"
    every = draw(sampler=name, prediction=prediction)
    assert every.isfinite().all()
    assert torch.equal(draw((2, 3, 5), sampler=name, prediction=prediction), every[:2])
    assert not torch.equal(draw(sampler=name, prediction=prediction, seed=8), every)
    each = draw(sampler=name, prediction=prediction, seed=[9, 7, 2**63, -1])
    for i, seed in enumerate([9, 7, 2**63, -1]):
        alone = draw((1, 3, 5), sampler=name, prediction=prediction, seed=seed)
        torch.testing.assert_close(each[i : i + 1], alone)
    tensor = torch.tensor([9, 7, -(2**63), -1])
    assert torch.equal(draw(sampler=name, prediction=prediction, seed=tensor), each)


def test_seeds_of_every_kind():
    assert torch.equal(draw(seed=torch.tensor(7)), draw(seed=7))
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert torch.equal(draw(seed=generators[0]), draw(seed=generators[1]))
    torch.manual_seed(1)
    first = draw(seed=None)
    assert not torch.equal(first, draw(seed=None))
    torch.manual_seed(1)
    assert torch.equal(first, draw(seed=None))


def test_first_noise_is_standard_normal_of_the_seed():
    _, path = draw(trajectory=True)
    assert torch.equal(path[0], GF.standard_normal(SHAPE, seed=7))
    _, path = draw(sampler="euler", trajectory=True)
    torch.testing.assert_close(path[0], 80 * GF.standard_normal(SHAPE, seed=7))


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "unipc"])
def test_trajectory_callback_and_progress(sampler):
    calls, told = [], []
    x, path = draw(
        sampler=sampler,
        trajectory=True,
        callback=lambda step, x, x0: calls.append((step, x.clone(), x0)),
        progress=lambda done, total: told.append((done, total)),
    )
    assert torch.equal(x, draw(sampler=sampler))
    assert path.shape == (7, *SHAPE) and torch.equal(path[-1], x)
    assert [c[0] for c in calls] == list(range(6))
    assert all(torch.equal(c[1], p) for c, p in zip(calls, path[1:], strict=True))
    assert torch.equal(calls[-1][2], x)  # the last step goes to x0
    assert told == [(i, 6) for i in range(1, 7)]


def test_denoisers_are_told_the_time():
    def times(**options):
        told = []
        diffusion.sample(lambda x, t: told.append(t) or x, (2, 3), seed=0, **options)
        assert all(t.shape == (2,) and (t == t[0]).all() for t in told)
        return told[0].dtype, [t[0].item() for t in told]

    assert times(steps=4) == (torch.int64, [999, 749, 499, 249])
    dtype, sigmas = times(sampler="euler", steps=3)
    assert dtype == torch.float32
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert sigmas == pytest.approx([80, middle, 0.002])
    assert times(sampler="flow_euler", steps=2, dtype=torch.float64) == (torch.float64, [1.0, 0.5])
    shifted = diffusion.FlowMatching(shift=3.0)
    assert times(sampler="flow_euler", steps=2, schedule=shifted)[1] == pytest.approx([1, 0.75])
    assert times(times=[900, 100, -1])[1] == [900, 100]
    assert len(times(sampler="heun", steps=5)[1]) == 9
    for name in diffusion.SAMPLERS:  # of the end no denoiser is told, noise or none
        end = diffusion.linear(final_alpha_cumprod=None)
        assert min(times(sampler=name, schedule=end, steps=3)[1]) >= 0
    dtype, fractions = times(schedule=diffusion.linear(spacing="karras"), steps=5)
    assert dtype == torch.float32 and fractions[0] == 999 and fractions[-1] == 0


def test_guidance():
    given = []

    def conditional(x, t, condition):
        given.append(condition)
        return denoiser(x, t) if condition is None else denoiser(x, t) + condition

    def mixed(x, t):
        return denoiser(x, t) + 3 * 0.2

    expected = diffusion.sample(mixed, SHAPE, seed=7, steps=6)
    guided = diffusion.sample(conditional, SHAPE, seed=7, steps=6, guidance=3.0, condition=0.2)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    assert given == [0.2, None] * 6

    def pair(x, t):
        return denoiser(x, t) + 0.2, denoiser(x, t)

    assert torch.equal(diffusion.sample(pair, SHAPE, seed=7, steps=6, guidance=3.0), guided)

    def stretched(x, t):
        return denoiser(x, t), 0.5 * denoiser(x, t)

    wide, rescaled = (
        diffusion.sample(stretched, SHAPE, seed=7, steps=1, guidance=3.0, guidance_rescale=share)
        for share in (0.0, 1.0)
    )
    plain = diffusion.sample(denoiser, SHAPE, seed=7, steps=1)
    torch.testing.assert_close(rescaled, plain)  # here the guided output is twice the conditional one
    assert not torch.allclose(wide, plain)
    plain = diffusion.sample(conditional, SHAPE, seed=7, steps=6, condition=0.2)
    assert torch.equal(plain, diffusion.sample(lambda x, t: denoiser(x, t) + 0.2, SHAPE, seed=7, steps=6))


def test_clip_and_threshold():
    assert draw().abs().max() > 1
    assert draw(clip=1.0).abs().max() == 1
    assert draw(threshold=0.9, threshold_max=3.0).abs().max() <= 1


def test_start_from_data():
    data = torch.linspace(-1, 1, 60).reshape(SHAPE)
    noise = GF.standard_normal(SHAPE, seed=7)
    schedule = diffusion.linear()
    x, path = draw(init=data, strength=0.5, trajectory=True)
    assert len(path) == 4
    start = schedule.level(schedule.times(6)[3])
    torch.testing.assert_close(path[0], start.alpha * data + start.sigma * noise)
    rest = draw(init=data, times=schedule.times(6)[3:])
    assert torch.equal(rest, x)


def test_start_of_each_sample():
    data = torch.linspace(-1, 1, 60).reshape(SHAPE)
    strengths = [0.5, 1.0, 0.2, 0.9]
    for sampler in ("ddim", diffusion.DDIM(eta=1.0)):
        x = draw(init=data, strength=strengths, sampler=sampler)
        for i, strength in enumerate(strengths):
            if sampler == "ddim":  # noise is keyed by the step, of which a shorter loop has others
                alone = draw(init=data, strength=strength)
                torch.testing.assert_close(x[i], alone[i])
        again = draw(init=data, strength=torch.tensor([0.5, 0.1, 0.1, 0.1]), sampler=sampler)
        torch.testing.assert_close(again[0], x[0])
    with pytest.raises(ValueError, match="strength: expected a number"):
        draw(init=data, strength=strengths, sampler="dpmpp_2m")


def test_start_of_each_sample_with_a_mask():
    """Which a sample that has not begun has nothing of."""
    data = torch.linspace(-1, 1, 60).reshape(SHAPE)
    strengths = [0.5, 1.0, 0.2, 0.9]
    for mask in (torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0]), torch.tensor([True, False, True, False, False])):
        x, path = draw(init=data, mask=mask, strength=strengths, trajectory=True)
        for i, strength in enumerate(strengths):
            alone, its_path = draw(init=data, mask=mask, strength=strength, trajectory=True)
            torch.testing.assert_close(x[i], alone[i])
            torch.testing.assert_close(path[-len(its_path) :, i], its_path[:, i])
            waiting = path[: len(path) - len(its_path), i]
            assert torch.equal(waiting, its_path[:1, i].expand_as(waiting))


def test_start_from_latents():
    latents = torch.randn(SHAPE)
    _, path = draw(latents=latents, trajectory=True)
    assert torch.equal(path[0], latents)
    noise = GF.standard_normal(SHAPE, seed=7)
    assert torch.equal(draw(latents=noise), draw())
    assert torch.equal(draw(latents=80 * noise, sampler="euler"), draw(sampler="euler"))
    assert draw(latents=latents.double()).dtype == torch.float64


def test_a_callback_replaces_x():
    half = draw(callback=lambda step, x, x0: x / 2 if step == 2 else None)
    _, path = draw(trajectory=True)
    rest = draw(latents=path[3] / 2, times=diffusion.linear().times(6)[3:])
    assert torch.equal(half, rest)
    edited = draw(callback=lambda step, x, x0: x.div_(2) and None if step == 9 else x)
    assert torch.equal(edited, draw())


def test_times_between_timesteps():
    """The denoiser is told them, and the levels are those of the schedule between its timesteps."""
    told, schedule = [], diffusion.linear()
    times = [900.5, 300.25, 10.0, -1]
    _, path = diffusion.sample(
        lambda x, t: told.append(t) or torch.zeros_like(x), SHAPE, times=times, seed=7, trajectory=True
    )
    assert [t[0].item() for t in told] == times[:-1] and told[0].dtype == torch.float32
    levels = [schedule.level(t) for t in times]
    for level, passed in zip(levels, path, strict=True):  # without noise x is alpha·x0
        torch.testing.assert_close(passed, path[0] * level.alpha / levels[0].alpha)


def test_beta_spacing():
    scipy = pytest.importorskip("scipy.stats")
    expected = [round(999 * scipy.beta.ppf(1 - i / 20, 0.6, 0.6)) for i in range(20)]
    assert diffusion.linear(spacing="beta").times(20) == [*expected, -1]
    assert diffusion.linear(50, spacing="beta").times(50) == [*range(49, -2, -1)]


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", diffusion.EulerAncestral(), "res_multistep"])
def test_cfg_pp(sampler):
    """A step by the unconditional x0, plus alpha'·(guided x0 - unconditional x0)."""
    schedule, scale = diffusion.cosine(), 0.6
    seen = []

    def conditional(x, t, condition):
        m = denoiser(x, t) if condition is None else denoiser(x, t) + condition
        return m

    options = dict(schedule=schedule, sampler=sampler, steps=5, seed=7, prediction="v")
    _, path = diffusion.sample(
        conditional,
        SHAPE,
        guidance=scale,
        cfg_pp=True,
        condition=0.2,
        trajectory=True,
        callback=lambda step, x, x0: seen.append(x0),
        **options,
    )
    plan, history = diffusion.plan(sampler, schedule, steps=5, prediction="v"), ()
    table, expected = plan.table(), GF.standard_normal(SHAPE, seed=7)
    for k, row in enumerate(plan.rows):
        t = torch.full((4,), row.now.t)
        u, c = (conditional(expected, t, condition) for condition in (None, 0.2))
        step, x0 = GF.diffusion_step(expected, u, table, step=k, history=history, seed=7, x0=True)
        guided = row.now.alpha * expected - row.now.sigma * (u + scale * (c - u))
        history = (x0,)
        expected = step + row.to.alpha * (guided - x0)
        torch.testing.assert_close(path[k + 1], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(seen[k], guided, rtol=1e-4, atol=1e-4)
    if sampler == "ddim":  # the paper's form: the guided x0, and the unconditional noise
        level, to = plan.rows[0].now, plan.rows[0].to
        start, t = path[0], torch.full((4,), level.t)
        u = conditional(start, t, None)
        noise = level.alpha * u + level.sigma * start
        torch.testing.assert_close(path[1], to.alpha * seen[0] + to.sigma * noise, rtol=1e-4, atol=1e-4)


def test_known_values_stay():
    known = torch.linspace(-1, 1, 60).reshape(SHAPE)
    mask = torch.zeros(5, dtype=torch.bool)
    mask[:2] = True
    x, path = draw(known=known, mask=mask, trajectory=True)
    assert torch.equal(x[..., :2], known[..., :2])
    assert not torch.allclose(x[..., 2:], draw()[..., 2:])  # their neighbours know of them
    schedule = diffusion.linear()
    noise = GF.standard_normal(SHAPE, seed=7)
    for level, passed in zip(map(schedule.level, schedule.times(6)), path, strict=True):
        expected = (level.alpha * known + level.sigma * noise)[..., :2]
        torch.testing.assert_close(passed[..., :2], expected)
    torch.testing.assert_close(draw(known=known, mask=mask.float()), x)
    assert torch.equal(draw(init=known, mask=mask), draw(init=known, known=known, mask=mask))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    x = draw(dtype=dtype, sampler="unipc")
    assert x.dtype == dtype and x.isfinite().all()
    if dtype != torch.float64:
        torch.testing.assert_close(x.float(), draw(sampler="unipc"), rtol=0.1, atol=0.5)


def test_denoisers_that_return_their_input_or_keep_it():
    seen = []
    _, path = diffusion.sample(
        lambda x, t: seen.append(x) or x, SHAPE, seed=1, steps=5, sampler="dpmpp_3m", trajectory=True
    )
    assert all(torch.equal(a, b) for a, b in zip(seen, path, strict=False))
    data = torch.ones(SHAPE)
    diffusion.sample(denoiser, SHAPE, seed=1, steps=5, init=data, strength=0.3)
    assert torch.equal(data, torch.ones(SHAPE))


def test_no_gradient_and_empty_batches():
    weight = torch.ones((), requires_grad=True)
    assert not diffusion.sample(lambda x, t: x * weight, SHAPE, steps=2, seed=0).requires_grad
    assert draw((0, 3, 5)).shape == (0, 3, 5)
    assert draw((0, 3, 5), seed=[]).shape == (0, 3, 5)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(sampler="dim"), ValueError, "sampler: expected .*ddim.*unipc.*got 'dim'"),
        (dict(schedule="line"), ValueError, "schedule: expected .*linear.*flow, got 'line'"),
        (dict(sampler=diffusion.DDIM), ValueError, "sampler: expected a Sampler object .*got the class DDIM"),
        (dict(schedule=torch.ones(9)), ValueError, "schedule: expected a Schedule object .*, got Tensor"),
        (dict(prediction="eps"), ValueError, "prediction: expected one of 'epsilon'"),
        (dict(steps=0), ValueError, "steps: expected at least 1, got 0"),
        (dict(steps=2.0), TypeError, "steps: expected an int"),
        (dict(steps=1001), ValueError, "steps: expected at most the 1000"),
        (dict(sampler="lcm", steps=51), ValueError, "steps: expected at most 50"),
        (dict(times=[1, 2]), ValueError, "times: expected at least two falling"),
        (dict(times=[9, math.nan, -1]), ValueError, "times: expected at least two falling"),
        (dict(times=[1500, 9, -1]), ValueError, "times: expected at least -1 and at most 999"),
        (dict(times=[9, -5]), ValueError, "times: expected at least -1 and at most 999"),
        (dict(times=[1.5, 0], schedule="flow"), ValueError, "times: expected at least 0 and at most 1"),
        (dict(times=[1.5, -1], schedule="karras"), ValueError, "times: expected at least 0"),
        (dict(callback=5), TypeError, "callback: expected a function or None, got int"),
        (dict(times=5), TypeError, "times: expected numbers, got int"),
        (dict(times="ab"), TypeError, "times: expected a number, got str"),
        (dict(times=[9.5, -1], schedule=Steps()), ValueError, "times: expected whole numbers"),
        (dict(latents=torch.zeros(4, 3, 4)), ValueError, "latents: expected shape"),
        (dict(latents=torch.zeros(SHAPE), init=torch.zeros(SHAPE)), ValueError, "latents: expected None"),
        (
            dict(latents=torch.zeros(SHAPE), times=[-1, 9], sampler="ddpm"),
            ValueError,
            "times: expected falling numbers, as DDPM",
        ),
        (dict(cfg_pp=True), ValueError, "guidance: expected a number, as `cfg_pp`"),
        (dict(cfg_pp=True, guidance=1.0, clip=1.0), ValueError, "clip: expected none, as `cfg_pp`"),
        (
            dict(cfg_pp=True, guidance=1.0, sampler="heun"),
            ValueError,
            "cfg_pp: expected False for Heun",
        ),
        (dict(callback=lambda step, x, x0: x[:1]), ValueError, "callback: expected x of shape"),
        (dict(graph=True, sampler="dpm_adaptive"), ValueError, "graph: expected False"),
        (
            dict(sampler="dpm_adaptive", schedule="flow", prediction="v"),
            ValueError,
            "schedule: expected one that leaves",
        ),
        (
            dict(schedule=diffusion.linear(spacing="leading", steps_offset=1), steps=1000),
            ValueError,
            "steps: expected fewer, as with steps_offset 1",
        ),
        (dict(sampler="lcm", schedule=diffusion.linear(20), steps=4), ValueError, "original_steps: expected"),
        (dict(sampler="tcd", schedule=diffusion.linear(20), steps=4), ValueError, "original_steps: expected"),
        (
            dict(sampler=diffusion.EDM(churn=9), schedule="flow", prediction="v"),
            ValueError,
            "churn: expected",
        ),
        (dict(known=torch.zeros(SHAPE), mask=torch.ones(9, *SHAPE)), ValueError, "mask: expected a shape"),
        (dict(seed=[1, 2]), ValueError, "seed: expected 4"),
        (dict(seed=2**64), ValueError, "seed: expected an int from -2.*got 18446744073709551616"),
        (dict(seed=[0, 1, 2, -(2**63) - 1]), ValueError, "seed: expected an int from"),
        (dict(seed=True), TypeError, "seed: expected an int"),
        (dict(sampler=diffusion.DDIM(eta=1.5), steps=4), ValueError, "eta: expected at most 1.0[0-9]*,"),
        (dict(sampler=diffusion.EulerAncestral(eta=2)), ValueError, "eta: expected at most 1.0"),
        (dict(seed=torch.zeros(3, dtype=torch.int64)), ValueError, "seed: expected"),
        (dict(seed=torch.zeros(4)), TypeError, "seed: expected an int64 tensor"),
        (dict(dtype=torch.int64), TypeError, "dtype: expected one of torch.float32"),
        (dict(dtype="float32"), TypeError, "dtype: expected one of torch.float32.* got 'float32'"),
        (dict(strength=0.5), ValueError, "init: expected a tensor"),
        (dict(init=torch.zeros(4, 3, 4)), ValueError, "init: expected shape"),
        (dict(init=torch.zeros(SHAPE), strength=0.0), ValueError, "strength: expected a number above 0"),
        (
            dict(init=torch.zeros(SHAPE), strength=None),
            TypeError,
            "strength: expected a number, got NoneType",
        ),
        (dict(init=torch.zeros(SHAPE), strength=math.nan), ValueError, "strength: expected .* got nan"),
        (dict(init=torch.zeros(SHAPE), strength=1.5), ValueError, "strength: expected a number above 0"),
        (dict(init=torch.zeros(SHAPE), strength=[0.5]), ValueError, r"strength: expected shape \(4,\)"),
        (
            dict(init=torch.zeros(SHAPE), strength=[0.5, 1.0, 1.1, 1]),
            ValueError,
            "strength: .*from 0.5 to 1.1",
        ),
        (dict(init=torch.zeros(SHAPE), strength=[0.5, 0, 1, 1]), ValueError, "strength: .* above 0"),
        (dict(init=torch.zeros(SHAPE), strength=[0.5, math.nan, 1, 1]), ValueError, "strength: .* nan"),
        (dict(init=torch.zeros(SHAPE), strength=["a"] * 4), TypeError, "strength: expected numbers"),
        (dict(init=torch.zeros(SHAPE).numpy()), TypeError, "init: expected a torch.Tensor, got ndarray"),
        (dict(init=torch.zeros(SHAPE, dtype=torch.uint8)), TypeError, "init: expected float32.* got uint8"),
        (dict(known=torch.zeros(SHAPE), mask=torch.full(SHAPE, 255)), ValueError, "mask: .*to 255"),
        (dict(known=torch.zeros(SHAPE), mask=torch.full(SHAPE, math.nan)), ValueError, "mask: .*nan"),
        (dict(known=torch.zeros(SHAPE), mask=[1, 0, 1, 0, 0]), TypeError, "mask: expected a tensor"),
        (dict(known=torch.zeros(SHAPE), mask=torch.zeros(5, dtype=torch.complex64)), TypeError, "mask:"),
        (dict(known=torch.zeros(SHAPE)), ValueError, "mask: expected a tensor"),
        (dict(mask=torch.ones(5)), ValueError, "known: expected a tensor"),
        (dict(guidance=2.0), ValueError, "guidance: expected a `condition`.*got Tensor"),
        (dict(guidance=torch.ones(4), condition=1), TypeError, "guidance: expected a number, got Tensor"),
        (dict(guidance=math.nan, condition=1), ValueError, "guidance: expected a number in"),
        (dict(guidance_rescale=0.7), ValueError, "guidance: expected a number, as `guidance_rescale`"),
        (dict(condition=1, unconditional=0), ValueError, "guidance: expected a number, as `unconditional`"),
        (dict(clip=1.0, threshold=0.9), ValueError, "clip: expected None, as `threshold`"),
        (dict(threshold_max=2.0), ValueError, "threshold: expected a number, as `threshold_max`"),
        (dict(clip="1"), TypeError, "clip: expected a number, got str"),
        (dict(threshold=math.nan), ValueError, "threshold: expected a number in"),
        (dict(sampler=diffusion.DDPM("learned_range")), ValueError, r"denoiser: .*\(4, 6, 5\), half of its"),
        (dict(schedule="flow", prediction="epsilon"), ValueError, "prediction: expected 'v', 'x0' or 'flow'"),
        (dict(schedule=diffusion.linear().zero_terminal_snr()), ValueError, "prediction: expected 'v'"),
        (dict(graph=True), RuntimeError, "graph: expected samples on a CUDA device"),
        (dict(graph=True, trajectory=True), ValueError, "graph: expected no trajectory"),
        (dict(progress=3), TypeError, "progress: expected True, False or a function"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        draw(**options)


def test_impossible_schedules_and_samplers():
    for numbers, message in (([1.0, 0.5], r"in \[0, 1\)"), ([0.1, 0.9], "rising")):
        with pytest.raises(ValueError, match=f"alphas_cumprod: expected .*{message}"):
            diffusion.VariancePreserving(numbers)
    with pytest.raises(ValueError, match="alphas_cumprod: expected at least two"):
        diffusion.linear(1).zero_terminal_snr()
    nothing_left = diffusion.linear().zero_terminal_snr().alphas_cumprod
    for spacing in ("karras", "exponential"):
        with pytest.raises(ValueError, match="spacing: expected one of time steps"):
            draw(schedule=diffusion.VariancePreserving(nothing_left, spacing=spacing), prediction="v")
    for build, message in (
        (lambda: diffusion.Langevin(per_level=0), "per_level: expected"),
        (lambda: diffusion.Langevin(step_size=0.0), "step_size: expected"),
        (lambda: diffusion.Langevin(per_level=2.5), "per_level: expected an int"),
        (lambda: diffusion.DDIM(eta=-1), "eta: expected a finite number of at least 0"),
        (lambda: diffusion.DDIM(eta="1"), "eta: expected a number, got str"),
        (lambda: diffusion.EulerAncestral(eta=math.nan), "eta: expected a finite"),
        (lambda: diffusion.DPMPP2MSDE(eta=math.inf), "eta: expected a finite"),
        (lambda: diffusion.TCD(eta=2), r"eta: expected a number in \[0, 1\]"),
        (lambda: diffusion.TCD(original_steps=0), "original_steps: expected at least 1"),
        (lambda: diffusion.LCM(sigma_data=0), "sigma_data: expected a finite positive"),
        (lambda: diffusion.EDM(churn=-1), "churn: expected a finite number of at least 0"),
        (lambda: diffusion.EDM(s_noise=math.nan), "s_noise: expected a finite"),
        (lambda: diffusion.EDM(s_min=2.0, s_max=1.0), r"s_max: expected a number in \[2.0, inf\], got 1.0"),
        (lambda: diffusion.Karras("0.1"), "sigma_min: expected a number, got str"),
        (lambda: diffusion.Karras(sigma_max=math.inf), "sigma_max: expected a finite"),
        (lambda: diffusion.VarianceExploding(2.0, 1.0), "sigma_max: expected a finite number of at least 2"),
        (lambda: diffusion.FlowMatching(math.nan), "shift: expected a finite positive"),
        (lambda: diffusion.linear(spacing="even"), "spacing: expected one of"),
        (lambda: diffusion.linear(steps_offset=-1), "steps_offset: expected at least 0"),
        (lambda: diffusion.linear(final_alpha_cumprod=0.5), "final_alpha_cumprod: expected a number in"),
        (lambda: diffusion.linear(0), "num_timesteps: expected at least 1"),
        (lambda: diffusion.cosine(10.5), "num_timesteps: expected an int, got float"),
        (lambda: diffusion.VariancePreserving("cosine"), "alphas_cumprod: expected numbers, got str"),
        (lambda: diffusion.sample(None, SHAPE), "denoiser: expected a function of x and t, got NoneType"),
        (lambda: diffusion.plan("dpm_adaptive"), "sampler: expected one whose steps are known"),
        (lambda: diffusion.invert(denoiser, torch.ones(2, 3), seed=1), "unexpected keyword argument 'seed'"),
        (lambda: diffusion.plan(prediction="eps"), "prediction: expected one of"),
        (lambda: diffusion.DDIM().plan(diffusion.linear(), [9, -1], "eps"), "prediction: expected one of"),
        (lambda: diffusion.training_table("karras"), "schedule: expected one of time steps, got Karras"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            build()


def test_churn_is_of_the_level_that_a_discrete_denoiser_is_told():
    schedule, sampler = diffusion.linear(), diffusion.EDM(churn=4, s_noise=1.5)
    rows = sampler.plan(schedule, schedule.times(4), "x0").rows
    assert any(row.now.t not in schedule.times(4) for row in rows)
    for row in rows:
        assert row.now == schedule.level(int(row.now.t))


def test_churn_of_the_first_noise_has_its_size():
    schedule, sampler = diffusion.Karras(), diffusion.EDM(churn=40, s_noise=1.5)
    start = sampler.plan(schedule, schedule.times(4), "x0").start
    assert start.t == pytest.approx(80 * 2**0.5)
    assert start.sigma == pytest.approx(80 * (1 + 1.5**2) ** 0.5)


def test_learned_range_of_a_last_step():
    index = diffusion.COLUMNS.index
    low, high = index("log_var_min"), index("log_var_max")
    for end in (1.0, None):  # with None the last step has nothing to do
        schedule = diffusion.linear(10, final_alpha_cumprod=end)
        table = diffusion.DDPM("learned_range").plan(schedule, schedule.times(10)).table(torch.device("cpu"))
        assert table.isfinite().all()
        if end:
            assert table[9, low] == table[8, low] and table[9, index("noise")] == 0
            assert table[9, high].item() == pytest.approx(math.log(1e-4))


def test_a_sampler_that_has_no_hash():
    @dataclass
    class Own(diffusion.Sampler):
        def rows(self, schedule, levels):
            return diffusion.Euler().rows(schedule, levels)

    assert torch.equal(draw(sampler=Own(), steps=3), draw(sampler="ddim", steps=3))


def test_noise_of_the_data_and_of_times_between_steps():
    x = torch.ones(2, 3)
    table = diffusion.linear().zero_terminal_snr().alphas_cumprod
    for spacing, dtype in (("trailing", torch.int64), ("karras", torch.float32)):
        schedule = diffusion.VariancePreserving(table, spacing=spacing)
        assert torch.equal(diffusion.add_noise(x, torch.tensor([-1, -1], dtype=dtype), schedule), x)
        t = torch.tensor([998, 999], dtype=dtype)
        noised = diffusion.add_noise(x, t, schedule, noise=torch.zeros_like(x))
        assert torch.equal(noised[:, 0].double(), table[[998, 999]].sqrt().float().double())
    between = torch.tensor([17.25, 500.5], dtype=torch.float64)
    levels = [diffusion.linear().level(t) for t in between.tolist()]
    alpha, sigma = diffusion.linear().alpha_sigma(between)
    assert torch.allclose(alpha, torch.tensor([level.alpha for level in levels], dtype=torch.float64))
    assert torch.allclose(sigma, torch.tensor([level.sigma for level in levels], dtype=torch.float64))


def test_consistency_sampling_visits_distinct_times():
    schedule = diffusion.linear(10)
    times = diffusion.Consistency().times(schedule, 10)
    assert times == [*range(9, -1, -1), -1]


def test_denoisers_of_a_wrong_shape():
    for returned, error, message in (
        (torch.zeros(4, 1, 5), ValueError, r"a tensor of shape \(4, 3, 5\), got \(4, 1, 5\)"),
        (torch.zeros(4), ValueError, r"a tensor of shape \(4, 3, 5\), got \(4,\)"),
        (None, TypeError, "a torch.Tensor, got NoneType"),
        (torch.zeros(SHAPE, dtype=torch.int64), TypeError, "float32, .* got int64"),
        ((torch.zeros(SHAPE),) * 2, TypeError, "a torch.Tensor, got tuple"),
        ({"sample": torch.zeros(SHAPE)}, TypeError, "a torch.Tensor, got dict"),
    ):
        with pytest.raises(error, match=f"denoiser: expected {message}"):
            diffusion.sample(lambda x, t, returned=returned: returned, SHAPE, seed=0)
    with pytest.raises(TypeError, match=r"denoiser: expected a torch.Tensor, got NoneType"):
        diffusion.sample(lambda x, t: (x, None), SHAPE, seed=0, guidance=2.0)
    for shape, error in ((5, TypeError), ((), ValueError), ((2, -1), ValueError), ((2, 1.5), TypeError)):
        with pytest.raises(error, match="shape: expected"):
            diffusion.sample(denoiser, shape)


@pytest.mark.parametrize("name", [*diffusion.SCHEDULES])
def test_levels_of_schedules(name):
    schedule = diffusion.schedules.schedule(name)
    times = schedule.times(20)
    levels = [schedule.level(t) for t in times]
    assert len(times) == 21 and all(a.u > b.u for a, b in pairwise(levels))
    assert levels[-1].sigma == 0 and levels[-1].alpha == 1
    alpha, sigma = schedule.alpha_sigma(torch.tensor(times[:-1]))
    for level, a, s in zip(levels, alpha.tolist(), sigma.tolist(), strict=False):
        assert (a, s) == (pytest.approx(level.alpha), pytest.approx(level.sigma, rel=1e-6))
        if math.isfinite(level.u):
            assert schedule.level_of(level.u).t == pytest.approx(level.t, rel=1e-6, abs=1e-6)


def test_schedules_of_known_values():
    assert diffusion.linear().alphas_cumprod[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert diffusion.linear().zero_terminal_snr().alphas_cumprod[-1] == 0
    half = diffusion.laplace(1000, mean=0.6).alphas_cumprod[499:501].mean()
    assert math.log(half / (1 - half)) == pytest.approx(0.6, abs=1e-2)  # the median
    middle = diffusion.sigmoid().alphas_cumprod[499]
    assert middle.item() == pytest.approx(0.5, abs=1e-3)


def test_add_noise():
    x = torch.randn(3, 2)
    for name, t in [("linear", torch.tensor([0, 500, 999])), ("karras", torch.tensor([0.1, 1.0, 80.0]))]:
        schedule = diffusion.schedules.schedule(name)
        noised, target = diffusion.add_noise(x, t, name, seed=3, target="v")
        noise = GF.standard_normal((3, 2), seed=3)
        for i, level in enumerate(schedule.level(v) for v in t.tolist()):
            torch.testing.assert_close(noised[i], level.alpha * x[i] + level.sigma * noise[i])
            v = level.alpha * noise[i] - level.sigma * x[i]
            torch.testing.assert_close(target[i], v / math.hypot(level.alpha, level.sigma))


@pytest.mark.parametrize("schedule", ["cosine", "karras", "flow"])
@pytest.mark.parametrize("target", ["epsilon", "x0", "v", "flow"])
def test_what_is_trained_is_what_is_sampled(schedule, target):
    """A denoiser that returns add_noise's target of one known image leads to that image."""
    if (target, schedule) == ("epsilon", "flow"):
        pytest.skip("refused: at time 1 nothing of the data is left")
    image = torch.tensor([[0.3, -0.7, 0.9]])

    def denoiser(x, t):
        # The noise that x has been made with, and the target of that.
        one = torch.ones_like(x)
        signal = diffusion.add_noise(one, t, schedule, noise=0 * one)
        spread = diffusion.add_noise(0 * one, t, schedule, noise=one)
        return diffusion.add_noise(
            image.expand_as(x), t, schedule, noise=(x - signal * image) / spread, target=target
        )[1]

    x = diffusion.sample(
        denoiser, (2, 3), sampler="dpmpp_2m", schedule=schedule, steps=8, prediction=target, seed=0
    )
    torch.testing.assert_close(x, image.expand(2, 3), rtol=1e-3, atol=1e-3)


def test_edm_preconditioning():
    sigma = torch.tensor([0.002, 0.5, 80.0])
    network = torch.nn.Identity()
    network.forward = lambda x, c_noise: c_noise.reshape(-1, 1) + x
    x = torch.randn(3, 4)
    total = sigma.square() + 0.25
    expected = 0.25 / total[:, None] * x + (sigma * 0.5 / total.sqrt())[:, None] * (
        (sigma.log() / 4)[:, None] + x / total.sqrt()[:, None]
    )
    torch.testing.assert_close(diffusion.EDMPrecond(network)(x, sigma), expected)
    consistency = diffusion.EDMPrecond(network, sigma_min=0.002)
    torch.testing.assert_close(consistency(x, sigma)[0], x[0])  # the identity at sigma_min
    x = diffusion.sample(consistency, (2, 4), sampler="consistency", prediction="x0", steps=3, seed=0)
    assert x.isfinite().all()


def test_predictions_by_default():
    def told(schedule="linear", sampler="euler", **options):
        """Which prediction a denoiser's numbers are taken for."""

        def numbers(x, t):
            return 0.1 * x

        for name, value in options.items():
            setattr(numbers, name, value)
        call = dict(schedule=schedule, sampler=sampler, steps=3, seed=1)
        x = diffusion.sample(numbers, SHAPE, **call)
        predictions = [
            p for p in diffusion.PREDICTIONS if (schedule, p[:2]) not in (("flow", "ep"), ("flow", "sc"))
        ]
        (only,) = (
            p for p in predictions if torch.equal(x, diffusion.sample(numbers, SHAPE, prediction=p, **call))
        )
        return only

    assert told() == told("karras") == told(sampler="flow_euler") == "epsilon"
    assert told("flow") == told("flow", "flow_euler") == "flow"
    assert told(prediction="v") == told("flow", prediction="v") == "v"
    assert told("karras", prediction=torch.nn.Identity()) == "epsilon"  # a module of that name says nothing
    network = diffusion.EDMPrecond(lambda x, c_noise: torch.tanh(x))
    for denoise in (network, torch.compile(network, backend="eager")):
        x = diffusion.sample(denoise, SHAPE, sampler="edm", steps=4, seed=1)
        assert torch.equal(
            x, diffusion.sample(network, SHAPE, sampler="heun", prediction="x0", steps=4, seed=1)
        )
    with pytest.raises(ValueError, match="prediction: expected 'v', 'x0' or 'flow', as nothing"):
        draw(sampler="flow_euler", prediction="epsilon")
    with pytest.raises(ValueError, match=r"prediction: expected one of 'epsilon'.*got 'noise'"):
        told(prediction="noise")


def test_guidance_of_1_is_the_conditional_denoiser_called_once():
    given = []

    def conditional(x, t, condition):
        given.append(condition)
        return denoiser(x, t) + condition

    options = dict(seed=7, steps=6, condition=0.2)
    x = diffusion.sample(conditional, SHAPE, guidance=1.0, guidance_rescale=0.5, **options)
    assert given == [0.2] * 6
    assert torch.equal(x, diffusion.sample(conditional, SHAPE, **options))

    def pair(x, t):
        return denoiser(x, t) + 0.2, denoiser(x, t)

    assert torch.equal(x, diffusion.sample(pair, SHAPE, seed=7, steps=6, guidance=1))


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_a_callback_ends_sampling(sampler):
    _, whole = draw(sampler=sampler, trajectory=True)
    told = []
    x, path = draw(
        sampler=sampler,
        trajectory=True,
        callback=lambda step, x, x0: step < 2,
        progress=lambda done, total: told.append(done),
    )
    assert torch.equal(path, whole[:4]) and torch.equal(x, whole[3]) and told == [1, 2, 3]
    assert torch.equal(draw(sampler=sampler, callback=lambda *_: 0), whole[-1])  # False alone does


def test_the_bar_is_closed_whatever_happens(monkeypatch):
    tqdm = pytest.importorskip("tqdm")
    closed = []
    close = tqdm.tqdm.close
    monkeypatch.setattr(tqdm.tqdm, "close", lambda bar: closed.append(bar.n) or close(bar))

    def interrupted(x, t):
        if t[0] < 500:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        diffusion.sample(interrupted, SHAPE, steps=4, seed=0, progress=True)
    assert closed[0] == 2


def test_schedules_do_not_change():
    schedule = diffusion.linear()
    for one, name in (
        (schedule, "spacing"),
        (diffusion.Karras(), "rho"),
        (diffusion.FlowMatching(), "shift"),
    ):
        with pytest.raises(AttributeError):
            setattr(one, name, getattr(one, name))
    other = replace(schedule, spacing="leading")
    assert torch.equal(draw(schedule=other), draw(schedule=diffusion.linear(spacing="leading")))
    assert not torch.equal(draw(schedule=other), draw(schedule=schedule))
    given = schedule.alphas_cumprod.clone()
    kept = diffusion.VariancePreserving(given)
    given[:] = 0.5
    assert torch.equal(kept.alphas_cumprod, schedule.alphas_cumprod)


def test_schedules_of_ones_own_may_change():
    class Own(diffusion.Schedule):
        top = 10.0

        def times(self, steps):
            return [self.top * (1 - i / steps) for i in range(steps + 1)]

        def level(self, t):
            return diffusion.Level(t, 1.0, t, 1.0)

    own = Own()
    before = draw(schedule=own)
    own.top = 5.0
    after = draw(schedule=own)
    assert not torch.equal(before, after)
    assert torch.equal(after, draw(schedule="karras", times=own.times(6)))


def test_noise_at_times_of_every_kind():
    x = torch.randn(2, 3)
    steps = torch.full((2,), 5)
    for t in (5, torch.tensor(5), steps, steps.int()):
        assert torch.equal(diffusion.add_noise(x, t, seed=1), diffusion.add_noise(x, steps, seed=1))
    for t in (2, 2.0, torch.tensor(2.0, dtype=torch.float64)):
        sigmas = torch.full((2,), 2.0)
        noised = diffusion.add_noise(x, t, "karras", seed=1, target="v")
        torch.testing.assert_close(noised, diffusion.add_noise(x, sigmas, "karras", seed=1, target="v"))
    for t, schedule, error, message in (
        ([3, 3], "linear", TypeError, "expected a number, got list"),
        (torch.tensor([True, False]), "linear", TypeError, "expected times, got bool"),
        (math.inf, "karras", ValueError, r"expected values in \[0, .* inf"),
        (True, "linear", TypeError, "expected a number, got bool"),
        (torch.tensor([5, 1000]), "linear", ValueError, r"expected values in \[-1, 999\].*from 5 to 1000"),
        (-2, "linear", ValueError, r"expected values in \[-1, 999\]"),
        (torch.tensor([5.0, 6.0]), "linear", TypeError, "expected int64, as the schedule has time steps"),
        (torch.tensor([5, 6, 7]), "linear", ValueError, r"expected shape \(\) or \(2,\), got \(3,\)"),
        (torch.tensor([[5], [6]]), "linear", ValueError, r"expected shape \(\) or \(2,\)"),
        (1.5, "flow", ValueError, r"expected values in \[0, 1\]"),
        (torch.tensor([0.5, math.nan]), "flow", ValueError, r"expected values in \[0, 1\], got .* nan"),
        (-1.0, "karras", ValueError, r"expected values in \[0, "),
    ):
        with pytest.raises(error, match=f"t: {message}"):
            diffusion.add_noise(x, t, schedule)
    # What a device that nobody waits for does with time steps that there are not.
    for spacing, dtype in (("trailing", torch.int64), ("karras", torch.float64)):
        t = torch.tensor([999, 1000, -1], dtype=dtype)
        alpha, sigma = diffusion.linear(spacing=spacing).alpha_sigma(t)
        assert alpha.isnan().tolist() == sigma.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "schedule", ["linear", "karras", "flow", diffusion.cosine(spacing="karras")], ids=str
)
def test_training_compiles(schedule):
    """The loss of a network of one weight, with the noise in the graph."""
    torch._dynamo.reset()
    weight = torch.tensor(0.3, requires_grad=True)

    def loss(x, t):
        noised, target = diffusion.add_noise(x, t, schedule, seed=3, target="v")
        return (weight * noised - target).square().mean()

    x = torch.randn(4, 3)
    named = diffusion.schedules.schedule(schedule)
    t = torch.tensor([0, 3, 500, 999]) if named.discrete else torch.rand(4)
    expected = loss(x, t)
    (gradient,) = torch.autograd.grad(expected, weight)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, t)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled, weight)[0], gradient)


def test_a_plan_is_what_sample_goes_through():
    for name in ("ddim", "ddpm", "lcm"):
        plan = diffusion.plan(name, "cosine", steps=5, prediction="v")
        assert plan.single and plan.steps == 5
        x, table = GF.standard_normal(SHAPE, seed=7), plan.table()
        assert table.shape == (6, 20)
        for k, t in enumerate(plan.times()):
            x = GF.diffusion_step(x, denoiser(x, t.expand(len(x))), table, step=k, seed=7)
        assert torch.equal(x, draw(sampler=name, schedule="cosine", steps=5, prediction="v"))
    assert diffusion.plan("euler", steps=3).times(dtype=torch.float64).dtype == torch.float64


def test_plans_made_in_inference_mode_or_elsewhere_serve_training():
    """They are kept for every later call."""
    options = dict(sampler="flow_euler", steps=23, prediction="v", dtype=torch.float64)
    with torch.inference_mode(), torch.device("meta"):
        diffusion.sample(denoiser, SHAPE, seed=0, device="cpu", **options)
        diffusion.sample(denoiser, SHAPE, seed=0, device="cpu", **{**options, "sampler": diffusion.UniPC(3)})
        schedule = diffusion.cosine(30)
    (schedule.alphas_cumprod * torch.ones((), requires_grad=True)).sum().backward()
    plan = diffusion.plan("flow_euler", steps=23, prediction="v")
    x = torch.ones(SHAPE, dtype=torch.float64, requires_grad=True)
    t = plan.times(dtype=torch.float64)[0]
    GF.diffusion_step(x, x * t, plan.table()).sum().backward()
    assert x.grad.isfinite().all()


def test_training_table():
    """By the posterior of DDPM's eqs. 6 and 7."""
    schedule = diffusion.linear(50)
    betas = torch.linspace(1e-4, 0.02, 50, dtype=torch.float64)
    after = schedule.alphas_cumprod
    before = torch.cat([torch.ones(1, dtype=torch.float64), after[:-1]])
    small = betas * (1 - before) / (1 - after)
    small[0] = small[1]
    expected = {
        "x0_x": after.rsqrt(),
        "x0_m": -(1 / after - 1).sqrt(),
        "x": (1 - betas).sqrt() * (1 - before) / (1 - after),
        "x0": before.sqrt() * betas / (1 - after),
        "noise": (torch.arange(50) > 0).double(),
        "log_var_min": small.log(),
        "log_var_max": betas.log(),
    }
    with torch.inference_mode():
        table = diffusion.training_table(schedule)
    assert table.shape == (50, 20) and not table.is_inference()
    for name, values in expected.items():
        torch.testing.assert_close(table[:, diffusion.COLUMNS.index(name)], values, rtol=1e-9, atol=1e-12)
    spaced = replace(schedule, spacing="karras")  # of the time steps all the same
    assert torch.equal(diffusion.training_table(spaced), table)
    assert not torch.equal(diffusion.training_table(schedule, "v"), table)


def test_the_hybrid_loss_knows_its_table():
    x0, noise = torch.rand(2, 3, 4) * 2 - 1, torch.randn(2, 3, 4)
    t = torch.tensor([0, 17])
    table = diffusion.training_table(diffusion.linear(50))
    x_t = diffusion.add_noise(x0, t, diffusion.linear(50), noise=noise)
    output = torch.randn(2, 6, 4)
    assert all(v.isfinite().all() for v in GF.diffusion_hybrid_loss(output, x0, x_t, noise, table, t))
    plan = diffusion.plan(diffusion.DDPM("learned_range"), diffusion.linear(50), steps=50)
    ddim = diffusion.plan("ddim", diffusion.linear(50), steps=50)
    for wrong, message in (
        (plan.table(), "row t .*got the order of sampling"),
        (table.flip(0), "row t .*got the order of sampling"),
        (ddim.table()[:-1].flip(0), "that of a learned range"),
        *(
            (diffusion.training_table(diffusion.linear(50), other), "that of prediction 'epsilon'")
            for other in ("x0", "v", "flow", "score")
        ),
        (table[:0], "shape"),
    ):
        with pytest.raises(ValueError, match=f"table: expected {message}"):
            GF.diffusion_hybrid_loss(output, x0, x_t, noise, wrong, t)
    nowhere = torch.tensor([-1, 50])
    for functions in (GF, reference):
        simple, bound = functions.diffusion_hybrid_loss(output, x0, x_t, noise, table, nowhere)
        assert simple.isfinite().all() and bound.isnan().all()


def test_what_ends_at_the_data_has_no_noise_there():
    """Of distilled networks, whatever `final_alpha_cumprod` says: the last step gives x0."""
    ends = [diffusion.linear(final_alpha_cumprod=end) for end in (1.0, None)]
    for sampler in (diffusion.LCM(), diffusion.Consistency(), diffusion.FlowEuler(stochastic=True)):
        draws = [draw(sampler=sampler, schedule=schedule, steps=3) for schedule in ends]
        assert torch.equal(*draws)
        noisy = [draw(sampler=sampler, schedule=ends[1], times=[999, 500], seed=seed) for seed in (1, 2)]
        assert not torch.equal(*noisy)


def test_a_networks_output_object_is_not_its_tensor():
    class Output:
        sample = torch.zeros(SHAPE)

    with pytest.raises(TypeError, match=r"denoiser: expected a tensor, such as its `.sample`, got Output"):
        diffusion.sample(lambda x, t: Output(), SHAPE)


def test_a_schedule_prints_in_a_line():
    assert repr(diffusion.linear(10)).startswith("VariancePreserving(alphas_cumprod=(10 from 0.9999 to 0.90")
    assert "\n" not in repr(diffusion.cosine())


def test_samplers_and_schedules_go_by_their_public_names():
    assert repr(diffusion.DDPM("large")) == "DDPM(variance='large')"
    assert repr(diffusion.EDM(churn=2.0, s_max=5.0)).startswith("EDM(churn=2.0, s_min=0.0, s_max=5.0")
    assert repr(diffusion.FlowMatching()) == "FlowMatching(shift=1.0)"
    for made in [*(make() for make in diffusion.SAMPLERS.values()), diffusion.Karras(rho=5.0)]:
        assert (
            eval(repr(made), vars(diffusion) | {"inf": math.inf}) == made == pickle.loads(pickle.dumps(made))
        )

    @dataclass(frozen=True)
    class OwnSampler(diffusion.Sampler):
        schedule = "karras"

        def rows(self, schedule, levels):
            return diffusion.Heun().rows(schedule, levels)

    with pytest.raises(ValueError, match="strength: expected a number, as OwnSampler needs the steps before"):
        draw(sampler=OwnSampler(), init=torch.zeros(SHAPE), strength=[0.5] * 4)


def test_options_are_those_of_the_signature():
    parameters = inspect.signature(diffusion.sample).parameters
    assert list(parameters)[:4] == ["denoiser", "shape", "sampler", "schedule"]
    assert parameters["steps"].default == 50 and parameters["sampler"].default == "ddim"
    for name in list(parameters)[2:]:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"        {name} (" in diffusion.sample.__doc__
    with pytest.raises(TypeError, match=r"sample\(\) got an unexpected keyword argument 'stepz'"):
        draw(stepz=3)
    with pytest.raises(RuntimeError, match="graph: expected samples on a CUDA device"):
        diffusion.capture(denoiser, SHAPE, sampler="unipc", device="cpu")
