"""Samplers against what is known of the data: the probability flow's solution, and mean and variance."""

import math

import pytest
import torch
from diffusion.gaussians import Mixture

import gmfast.functional as GF
from gmfast import diffusion
from gmfast.diffusion.samplers.langevin import best_step_size

VE = diffusion.VarianceExploding()
VP = diffusion.linear(spacing="exponential")
FLOW = diffusion.FlowMatching()
TWO = Mixture([-1.0, 0.5], 0.4)


def geometric(schedule, steps):
    """Times equally spaced in ln(sigma/alpha), which end where there is noise still."""
    return [schedule.level_of(50.0 * 0.002 ** (i / steps)).t for i in range(steps + 1)]


def even(schedule, steps):
    return [1 - 0.9 * i / steps for i in range(steps + 1)]


def error(sampler, schedule, prediction, times):
    """How far the cumulative probability gets from where it was, which the exact flow never does."""
    x, path = diffusion.sample(
        TWO.denoiser(schedule, prediction),
        (9, 1),
        sampler=sampler,
        schedule=schedule,
        prediction=prediction,
        times=times,
        seed=3,
        dtype=torch.float64,
        trajectory=True,
    )
    start, end = schedule.level(times[0]), schedule.level(times[-1])
    before = TWO.probability(path[0], start.alpha, start.sigma)
    return (TWO.probability(x, end.alpha, end.sigma) - before).abs().max().item()


@pytest.mark.parametrize(
    "sampler, order",
    [
        (diffusion.DDIM(), 1),
        (diffusion.Euler(), 1),
        (diffusion.EulerAncestral(eta=0.0), 1),
        (diffusion.Heun(), 2),
        (diffusion.EDM(), 2),
        (diffusion.DPMPP2M(), 2),
        (diffusion.DPMPP2M(solver="heun"), 2),
        (diffusion.DPMPP2MSDE(eta=0.0), 2),
        (diffusion.DPMPP2MSDE(eta=0.0, solver="heun"), 2),
        (diffusion.DPMPP3M(formulation="published"), 2),
        (diffusion.DPMPP3M(), 3),
        (diffusion.DPMPP3MSDE(eta=0.0), 3),
        (diffusion.DPMPP3MSDE(eta=0.0, formulation="published"), 2),
        (diffusion.EDM(order=1), 1),
        (diffusion.LMS(2), 2),
        (diffusion.LMS(3), 3),
        (diffusion.UniPC(1, lower_order_final=False), 2),
        (diffusion.UniPC(2, lower_order_final=False), 3),
        (diffusion.UniPC(3, lower_order_final=False), 4),
        (diffusion.UniPC(2, lower_order_final=False, solver="bh1"), 3),
        (diffusion.DEIS(2), 2),
        (diffusion.DEIS(4), 4),
        (diffusion.RESMultistep(), 2),
        (diffusion.DPM2(), 2),
        (diffusion.DPM2Ancestral(eta=0.0), 2),
        (diffusion.DPMPP2SAncestral(eta=0.0), 2),
        (diffusion.DPMPPSDE(eta=0.0, r=0.3), 2),
        (diffusion.DPMFast(), 2),  # of its last two steps
    ],
    ids=str,
)
@pytest.mark.parametrize("schedule, prediction", [(VE, "x0"), (VP, "epsilon")], ids=["ve", "vp"])
def test_order_of_convergence(sampler, order, schedule, prediction):
    coarse, fine = (error(sampler, schedule, prediction, geometric(schedule, n)) for n in (64, 128))
    assert fine < 0.005
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_slopes_are_weighted_as_adams_and_bashforth_have_it():
    """At equal distances the weights are known (Hairer et al., "Solving ODEs I", III.1)."""
    levels = [diffusion.Level(u, 1.0, u, 1.0) for u in (6.0, 5.0, 4.0, 3.0, 2.0, 1.0)]
    known = {
        2: [3 / 2, -1 / 2],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
        5: [1901 / 720, -2774 / 720, 2616 / 720, -1274 / 720, 251 / 720],
    }
    for order, (first, *others) in known.items():
        row = list(diffusion.LMS(order).rows(VE, levels))[-1]
        assert row.weights["x0"] == pytest.approx(first / 2)  # the slope is (x - x0)/2, and the step -1
        assert row.weights["x"] == pytest.approx(1 - first / 2)
        assert [row.weights[f"h{i}"] for i in range(1, order)] == pytest.approx([-w for w in others])


@pytest.mark.parametrize(
    "sampler, order", [(diffusion.FlowEuler(), 1), (diffusion.Heun(), 2), (diffusion.DPMPP2M(), 2)], ids=str
)
@pytest.mark.parametrize("prediction", ["flow", "v"])
def test_order_of_convergence_of_flows(sampler, order, prediction):
    coarse, fine = (error(sampler, FLOW, prediction, even(FLOW, n)) for n in (64, 128))
    assert fine < 0.005
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)


#: How far the cumulative probability gets from where it was between the first and the last noisy time: its
#: mean in percent, with 20 and with 100 calls of the exact denoiser. docs/guides/diffusion.md has this table.
ERRORS = {
    "linear": {"ddim": (1.8, 0.36), "dpmpp_2m": (0.65, 0.038), "dpmpp_3m": (0.48, 0.024)}
    | {"unipc": (0.21, 0.018), "heun": (1.0, 0.034)}
    | {"deis": (0.18, 0.0064), "res_multistep": (0.85, 0.046), "dpm_2": (0.61, 0.034)},
    "cosine": {"ddim": (1.1, 0.23), "dpmpp_2m": (0.15, 0.012), "dpmpp_3m": (0.37, 0.009)}
    | {"unipc": (0.13, 0.0036), "heun": (24, 3.1)}
    | {"deis": (0.14, 0.0051), "res_multistep": (0.21, 0.015), "dpm_2": (0.45, 0.023)},
    "sigmoid": {"ddim": (1.1, 0.23), "dpmpp_2m": (0.047, 0.015), "dpmpp_3m": (0.21, 0.022)}
    | {"unipc": (0.074, 0.011), "heun": (20, 4.4)}
    | {"deis": (0.15, 0.022), "res_multistep": (0.044, 0.014), "dpm_2": (0.98, 0.31)},
    diffusion.cosine(spacing="exponential"): {"ddim": (4.3, 0.82), "dpmpp_2m": (0.89, 0.035)}
    | {"dpmpp_3m": (0.066, 0.0023), "unipc": (0.69, 0.0056), "heun": (9.1, 0.28)}
    | {"deis": (0.23, 0.001), "res_multistep": (1.7, 0.056), "dpm_2": (5.2, 0.14)},
    "laplace": {"ddim": (1.1, 0.43), "dpmpp_2m": (0.78, 0.21), "dpmpp_3m": (0.78, 0.23)}
    | {"unipc": (0.17, 0.067), "heun": (2.5, 0.55)}
    | {"deis": (0.78, 0.23), "res_multistep": (0.77, 0.21), "dpm_2": (0.4, 0.11)},
    "karras": {"ddim": (3.0, 0.57), "dpmpp_2m": (1.1, 0.03), "dpmpp_3m": (0.73, 0.0032)}
    | {"unipc": (0.6, 0.0036), "heun": (4.2, 0.12)}
    | {"deis": (0.086, 0.00088), "res_multistep": (1.6, 0.041), "dpm_2": (2.2, 0.069)},
    "exponential": {"ddim": (3.0, 0.58), "dpmpp_2m": (0.48, 0.017), "dpmpp_3m": (0.051, 0.00084)}
    | {"unipc": (0.26, 0.002), "heun": (4.9, 0.14)}
    | {"deis": (0.08, 0.00033), "res_multistep": (0.83, 0.028), "dpm_2": (2.3, 0.068)},
    "flow": {"ddim": (1.3, 0.25), "dpmpp_2m": (0.16, 0.011), "dpmpp_3m": (0.32, 0.0088)}
    | {"unipc": (0.09, 0.00057), "heun": (0.087, 0.0031)}
    | {"deis": (0.1, 0.0026), "res_multistep": (0.23, 0.013), "dpm_2": (0.27, 0.012)},
}


@pytest.mark.parametrize("schedule", ERRORS, ids=lambda s: s if isinstance(s, str) else "cosine_exponential")
def test_errors_by_schedule(schedule):
    named = diffusion.schedules.schedule(schedule)
    prediction = "flow" if schedule == "flow" else "x0"
    for sampler, expected in ERRORS[schedule].items():
        for calls, percent in zip((20, 100), expected, strict=True):
            times = named.times(calls // (2 if sampler in ("heun", "dpm_2") else 1))
            times = [t for t in times if t >= 0 and named.level(t).sigma > 0]
            x, path = diffusion.sample(
                TWO.denoiser(named, prediction),
                (64, 4),
                sampler=sampler,
                schedule=named,
                prediction=prediction,
                times=times,
                seed=3,
                dtype=torch.float64,
                trajectory=True,
            )
            start, end = named.level(times[0]), named.level(times[-1])
            moved = TWO.probability(x, end.alpha, end.sigma)
            moved -= TWO.probability(path[0], start.alpha, start.sigma)
            assert 100 * moved.abs().mean().item() == pytest.approx(percent, rel=0.1), (sampler, calls)


MEAN, STD = 0.3, 0.6
ONE = Mixture([MEAN], STD)


def endpoint(schedule, prediction):
    """Where the exact flow from x ends: the consistency function of Gaussian data."""

    def function(x, t):
        alpha, sigma = (v.reshape(-1, 1).to(x.dtype) for v in schedule.alpha_sigma(t))
        x0 = MEAN + STD * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
        return {"x0": x0, "epsilon": (x - alpha * x0) / sigma, "flow": (x - x0) / sigma}[prediction]

    return function


def check_law(denoiser, sampler, schedule, prediction, steps):
    x = diffusion.sample(
        denoiser,
        (4000, 2),
        sampler=sampler,
        schedule=schedule,
        prediction=prediction,
        steps=steps,
        seed=1,
    ).double()
    # 4.5 standard errors of 8000 numbers, and 1% for the steps' length
    assert x.mean().item() == pytest.approx(MEAN, abs=4.5 * STD / 89 + 0.003)
    assert x.std().item() == pytest.approx(STD, rel=4.5 / 126 + 0.01)
    assert (x[:, 0] * x[:, 1]).mean().item() == pytest.approx(MEAN**2, abs=0.05)  # independent


@pytest.mark.parametrize(
    "sampler, schedule, steps",
    [
        (diffusion.DDPM(), "linear", 400),
        (diffusion.DDPM("large"), "linear", 500),
        (diffusion.DDPM(), "exponential", 300),
        (diffusion.DDPM(), "cosine", 500),
        (diffusion.DDIM(), "sigmoid", 250),
        (diffusion.DDIM(eta=0.5), "scaled_linear", 250),
        (diffusion.DDIM(eta=1.0), "sigmoid", 500),
        (diffusion.DPMPP2MSDE(), "linear", 250),
        (diffusion.DPMPP2MSDE(solver="heun"), "karras", 100),
        (diffusion.DPMPP2MSDE(), "karras", 100),
        (diffusion.DPMPP3MSDE(), "karras", 100),
        (diffusion.DPMPP3MSDE(eta=0.5), "linear", 250),
        (diffusion.EDM(churn=30, s_max=30, order=1), "karras", 300),
        (diffusion.LMS(), "karras", 100),
        (diffusion.DPMPP3M(), "linear", 100),
        (diffusion.UniPC(), "linear", 100),
        (diffusion.EulerAncestral(), "karras", 300),
        (diffusion.EDM(churn=30, s_min=0.01, s_max=30, s_noise=1.0), "karras", 100),
        (diffusion.FlowEuler(), "flow", 200),
        (diffusion.DPM2(churn=30, s_min=0.01, s_max=30), "karras", 100),
        (diffusion.DPM2Ancestral(), "karras", 150),
        (diffusion.DPMPP2SAncestral(), "karras", 150),
        (diffusion.DPMPP2SAncestral(), "linear", 150),
        (diffusion.DPMPPSDE(), "karras", 60),
        (diffusion.DPMPPSDE(eta=0.5, r=0.3), "linear", 100),
        (diffusion.DPMPPSDE(brownian=False), "karras", 200),
        (diffusion.DPMFast(eta=1.0), "exponential", 60),
        (diffusion.DPMAdaptive(eta=1.0, rtol=0.02), "karras", 50),
        (diffusion.DPMAdaptive(rtol=0.01), "linear", 200),
        (diffusion.RESMultistep(eta=1.0), "karras", 150),
    ],
    ids=str,
)
def test_mean_and_variance_of_gaussian_data(sampler, schedule, steps):
    named = diffusion.schedules.schedule(schedule)
    prediction = "flow" if schedule == "flow" else "x0"
    check_law(ONE.denoiser(named, prediction), sampler, schedule, prediction, steps)


@pytest.mark.parametrize(
    "sampler, schedule, prediction, steps",
    [
        (diffusion.Consistency(), "karras", "x0", 1),
        (diffusion.Consistency(), "karras", "x0", 6),
        (diffusion.LCM(), "linear", "epsilon", 1),
        (diffusion.LCM(), "linear", "epsilon", 8),
        (diffusion.TCD(eta=1.0), "linear", "epsilon", 8),
        (diffusion.FlowEuler(stochastic=True), "flow", "flow", 4),
    ],
    ids=str,
)
def test_the_exact_consistency_function_gives_the_data_in_any_number_of_steps(
    sampler, schedule, prediction, steps
):
    named = diffusion.schedules.schedule(schedule)
    check_law(endpoint(named, prediction), sampler, schedule, prediction, steps)


def test_langevin_has_the_variance_of_its_recursion():
    """Of Gaussian data the score is linear: v' = (1 - step/(s² + sigma²))²·v + 2·step, at every sigma."""
    schedule = diffusion.VarianceExploding(0.05, 20.0)
    sampler = diffusion.Langevin(per_level=4, step_size=0.1)
    variance, mean = 20.0**2, 0.0
    for sigma in schedule.times(12)[:-1]:
        for _ in range(4):
            step = 0.1 * sigma**2
            pull = step / (STD**2 + sigma**2)
            variance = (1 - pull) ** 2 * variance + 2 * step
            mean += pull * (MEAN - mean)
    shrink = STD**2 / (STD**2 + 0.05**2)
    variance, mean = shrink**2 * variance, MEAN + shrink * (mean - MEAN)
    calls = []
    denoise = ONE.denoiser(schedule, "score")
    x = diffusion.sample(
        lambda x, t: calls.append(t) or denoise(x, t),
        (5000, 2),
        sampler=sampler,
        schedule=schedule,
        prediction="score",
        steps=12,
        seed=5,
    )
    assert len(calls) == 12 * 4 + 1
    assert x.var().item() == pytest.approx(variance, rel=4.5 / 71)
    assert x.mean().item() == pytest.approx(mean, abs=4.5 * math.sqrt(variance) / 100)


def test_step_size_of_langevin_keeps_the_variance_of_noise():
    for falls, times in [(1.04, 5), (1.25, 10), (1.0, 3)]:
        r, variance = best_step_size(falls, times), falls**2
        for _ in range(times):
            variance = (1 - r) ** 2 * variance + 2 * r
        assert variance == pytest.approx(1, abs=0.1)


def test_learned_range_lies_between_small_and_large():
    def denoiser(v):
        return lambda x, t: torch.cat([torch.zeros_like(x), torch.full_like(x, v)], 1)

    def draw(sampler, denoiser):
        return diffusion.sample(denoiser, (3, 2, 4), sampler=sampler, steps=20, seed=2)

    for v, variance in [(-1.0, "small"), (1.0, "large")]:
        learned = draw(diffusion.DDPM("learned_range"), denoiser(v))
        fixed = draw(diffusion.DDPM(variance), lambda x, t: torch.zeros_like(x))
        torch.testing.assert_close(learned, fixed, rtol=1e-4, atol=1e-4)


def test_ancestral_sampling_is_ddim_with_eta_1():
    denoiser = ONE.denoiser(VP)
    draws = [
        diffusion.sample(denoiser, (5, 2), sampler=s, schedule=VP, steps=20, seed=2)
        for s in (diffusion.DDPM(), diffusion.DDIM(eta=1.0), diffusion.EulerAncestral())
    ]
    torch.testing.assert_close(draws[0], draws[1])
    torch.testing.assert_close(draws[0], draws[2])


@pytest.mark.parametrize("name", [name for name in diffusion.SAMPLERS if name != "langevin"])
def test_constant_data_are_found_exactly(name):
    """Where x0 is 0.7 whatever x is, every sampler that ends at the data ends there."""
    schedule = diffusion.schedules.schedule(diffusion.SAMPLERS[name].schedule)
    x = diffusion.sample(
        lambda x, t: torch.full_like(x, 0.7),
        (2, 3),
        sampler=name,
        schedule=schedule,
        prediction="x0",
        steps=7,
        seed=0,
    )
    torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=2e-3 if name == "lcm" else 1e-6, atol=0)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "karras"])
def test_predictions_of_the_same_data_give_the_same_samples(prediction, name):
    schedule = diffusion.schedules.schedule(name)
    draws = [
        diffusion.sample(
            TWO.denoiser(schedule, p),
            (4, 3),
            sampler="dpmpp_2m",
            schedule=schedule,
            prediction=p,
            steps=15,
            seed=4,
            dtype=torch.float64,
        )
        for p in ("x0", prediction)
    ]
    torch.testing.assert_close(draws[0], draws[1], rtol=1e-9, atol=1e-9)


def variance_error(sampler, steps):
    """How far the variance of data of variance 0.36 gets from that of the last level, without sampling.

    A step is linear, so that each sample is a sum of independent noises; x here is that of their weights.
    """
    plan = sampler.plan(VE, geometric(VE, steps), "x0")
    size = 1 + len(plan)
    table, history = plan.table(), ()
    x = math.sqrt(50.0**2 + 0.36) * torch.eye(size, dtype=torch.float64)[:1]
    for k, row in enumerate(plan.rows):
        named = {"x": x, "x0": x * 0.36 / (0.36 + row.now.sigma**2)}
        noise = torch.eye(size, dtype=torch.float64)[None, 1 + k]
        x, named["kept"] = GF.diffusion_step(
            x, named["x0"], table, step=k, history=history, noise=noise, kept=True
        )
        history = tuple(named[name] for name in row.keep)
    return abs(x.square().sum().item() / (0.36 + plan.rows[-1].to.sigma ** 2) - 1)


@pytest.mark.parametrize("brownian, order", [(True, 2), (False, 1)])
def test_order_of_the_variance_on_one_brownian_path(brownian, order):
    sampler = diffusion.DPMPPSDE(brownian=brownian)
    coarse, fine = (variance_error(sampler, n) for n in (200, 400))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(
    "schedule, prediction, samplers",
    [
        ("linear", "epsilon", ["ddim", "dpmpp_2m", "unipc", "deis", "dpm_2", "heun"]),
        ("cosine", "v", ["dpmpp_3m", "res_multistep", "dpm_fast"]),
        ("karras", "x0", ["euler", "lms", "deis", "dpm_fast"]),
        ("flow", "flow", ["flow_euler", "heun", "dpmpp_2m", "unipc", "deis", "dpm_2"]),
    ],
)
def test_inversion_is_the_flow_backwards(schedule, prediction, samplers):
    """Of Gaussian data the noise that a sample comes from is known, and sampling leads back."""
    named = diffusion.schedules.schedule(schedule)
    denoiser = ONE.denoiser(named, prediction)
    top = named.level(named.times(100)[0])
    x = MEAN + STD * torch.randn(5, 2, dtype=torch.float64)
    spread = math.sqrt(top.alpha**2 * STD**2 + top.sigma**2)
    expected = top.alpha * MEAN + (x - MEAN) * spread / STD
    for sampler in samplers:
        options = dict(sampler=sampler, schedule=schedule, prediction=prediction, steps=100)
        noise = diffusion.invert(denoiser, x, **options)
        error = 0.15 if "euler" in sampler or sampler == "ddim" else 0.02
        torch.testing.assert_close(noise, expected, rtol=error, atol=error * top.sigma)
        back = diffusion.sample(denoiser, x.shape, latents=noise, **options)
        torch.testing.assert_close(back, x, rtol=0, atol=error)


def test_inversion_converges():
    def error(steps, sampler):
        x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(8, 1)
        times = geometric(VP, steps)
        noise = diffusion.invert(
            TWO.denoiser(VP), x, sampler=sampler, schedule=VP, times=times[::-1], steps=steps
        )
        start, end = VP.level(times[-1]), VP.level(times[0])
        moved = TWO.probability(noise, end.alpha, end.sigma) - TWO.probability(x, start.alpha, start.sigma)
        return moved.abs().max().item()

    for sampler, order in (("ddim", 1), ("dpmpp_2m", 2), ("dpm_2", 2)):
        ratio = error(64, sampler) / error(128, sampler)
        assert math.log2(ratio) == pytest.approx(order, abs=0.2), sampler


@pytest.mark.parametrize(
    "make",
    [
        lambda: diffusion.DDPM("wide"),
        lambda: diffusion.DPMPP2M("euler"),
        lambda: diffusion.DPMPP2MSDE(solver="euler"),
        lambda: diffusion.DPMPP3M("fast"),
        lambda: diffusion.UniPC(4),
        lambda: diffusion.UniPC(solver="bh3"),
        lambda: diffusion.DEIS(5),
        lambda: diffusion.DPMPPSDE(r=0.0),
        lambda: diffusion.DPMAdaptive(order=4),
        lambda: diffusion.DPMAdaptive(h_init=0.0),
    ],
)
def test_samplers_refuse_what_they_do_not_know(make):
    with pytest.raises(ValueError, match="expected"):
        make()
