"""Samplers against what is known of the data: the probability flow's solution, and mean and variance."""

import math

import pytest
import torch
from diffusion.gaussians import Mixture

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
    | {"unipc": (0.21, 0.018), "heun": (1.0, 0.034)},
    "cosine": {"ddim": (1.1, 0.23), "dpmpp_2m": (0.15, 0.012), "dpmpp_3m": (0.37, 0.009)}
    | {"unipc": (0.13, 0.0036), "heun": (24, 3.1)},
    "sigmoid": {"ddim": (1.1, 0.23), "dpmpp_2m": (0.047, 0.015), "dpmpp_3m": (0.21, 0.022)}
    | {"unipc": (0.074, 0.011), "heun": (20, 4.4)},
    diffusion.cosine(spacing="exponential"): {"ddim": (4.3, 0.82), "dpmpp_2m": (0.89, 0.035)}
    | {"dpmpp_3m": (0.066, 0.0023), "unipc": (0.69, 0.0056), "heun": (9.1, 0.28)},
    "laplace": {"ddim": (1.1, 0.43), "dpmpp_2m": (0.78, 0.21), "dpmpp_3m": (0.78, 0.23)}
    | {"unipc": (0.17, 0.067), "heun": (2.5, 0.55)},
    "karras": {"ddim": (3.0, 0.57), "dpmpp_2m": (1.1, 0.03), "dpmpp_3m": (0.73, 0.0032)}
    | {"unipc": (0.6, 0.0036), "heun": (4.2, 0.12)},
    "exponential": {"ddim": (3.0, 0.58), "dpmpp_2m": (0.48, 0.017), "dpmpp_3m": (0.051, 0.00084)}
    | {"unipc": (0.26, 0.002), "heun": (4.9, 0.14)},
    "flow": {"ddim": (1.3, 0.25), "dpmpp_2m": (0.16, 0.011), "dpmpp_3m": (0.32, 0.0088)}
    | {"unipc": (0.09, 0.00057), "heun": (0.087, 0.0031)},
}


@pytest.mark.parametrize("schedule", ERRORS, ids=lambda s: s if isinstance(s, str) else "cosine_exponential")
def test_errors_by_schedule(schedule):
    named = diffusion.schedules.schedule(schedule)
    prediction = "flow" if schedule == "flow" else "x0"
    for sampler, expected in ERRORS[schedule].items():
        for calls, percent in zip((20, 100), expected, strict=True):
            times = named.times(calls // (2 if sampler == "heun" else 1))
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: diffusion.DDPM("wide"),
        lambda: diffusion.DPMPP2M("euler"),
        lambda: diffusion.DPMPP2MSDE(solver="euler"),
        lambda: diffusion.DPMPP3M("fast"),
        lambda: diffusion.UniPC(4),
    ],
)
def test_samplers_refuse_what_they_do_not_know(make):
    with pytest.raises(ValueError, match="expected"):
        make()
