"""Tables beside diffusers' schedulers, probed with unit vectors, and k-diffusion's functions."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusion.gaussians import Mixture

import gmfast.functional as GF
from gmfast import diffusion

pytestmark = pytest.mark.peers


def run(plan, x, model, noise):
    """What `sample` does, with noise that is given; x after each step."""
    table, history, passed = plan.table(x.device), (), []
    for k, row in enumerate(plan.rows):
        result, x0, kept = GF.diffusion_step(
            x, model(x, row), table, step=k, history=history, noise=noise(k), x0=True, kept=True
        )
        named = {"x": x, "x0": x0, "kept": kept, **{f"h{i}": h for i, h in enumerate(history, 1)}}
        history = tuple(named[name] for name in row.keep if name in named)
        x = result
        if row.whole:
            passed.append(x)
    return torch.stack(passed)


def unit(index, size):
    return torch.eye(size, dtype=torch.float64)[None, index]


def probe_ours(sampler, schedule, times, prediction, size):
    """Each step's result as weights of the first x, of each model output and of each noise."""
    calls = iter(range(1, size))
    plan = sampler.plan(schedule, times, prediction)
    x = unit(0, size) * (plan.start.scale if isinstance(sampler, SCALED) else 1)
    passed = run(plan, x, lambda x, row: unit(next(calls), size), lambda k: unit(1 + len(plan) + k, size))
    if isinstance(sampler, SCALED):
        passed = passed / torch.tensor([row.to.scale for row in plan.rows if row.whole])[:, None, None]
    return passed


#: diffusers takes these for methods of x/alpha
SCALED = diffusion.Euler, diffusion.EulerAncestral, diffusion.Heun


def probe_theirs(scheduler, size, monkeypatch, **options):
    number = len(scheduler.timesteps)
    x = unit(0, size)
    passed = []
    for k, t in enumerate(scheduler.timesteps):
        noise = unit(1 + number + k, size)
        module = sys.modules[type(scheduler).__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *a, noise=noise, **k: noise, raising=False)
        x = scheduler.step(unit(1 + k, size), t, x, return_dict=False, **options)[0]
        passed.append(x.double())
    return torch.stack(passed)


CASES = {
    "DDIM": ("DDIMScheduler", dict(clip_sample=False), {}, diffusion.DDIM()),
    "DDIM eta": ("DDIMScheduler", dict(clip_sample=False), dict(eta=0.7), diffusion.DDIM(eta=0.7)),
    "DDPM": ("DDPMScheduler", dict(clip_sample=False), {}, diffusion.DDPM()),
    "DPM++2M": ("DPMSolverMultistepScheduler", {}, {}, diffusion.DPMPP2M()),
    "DPM++2M heun": (
        "DPMSolverMultistepScheduler",
        dict(solver_type="heun"),
        {},
        diffusion.DPMPP2M("heun"),
    ),
    "DPM++3M": (
        "DPMSolverMultistepScheduler",
        dict(solver_order=3, solver_type="heun"),
        {},
        diffusion.DPMPP3M("published"),
    ),
    "SDE-DPM++2M": (
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="sde-dpmsolver++"),
        {},
        diffusion.DPMPP2MSDE(),
    ),
    "UniPC-1": ("UniPCMultistepScheduler", dict(solver_order=1), {}, diffusion.UniPC(1)),
    "UniPC-2": ("UniPCMultistepScheduler", dict(solver_order=2), {}, diffusion.UniPC(2)),
    "UniPC-3": ("UniPCMultistepScheduler", dict(solver_order=3), {}, diffusion.UniPC(3)),
    "UniPC-2 bh1": (
        "UniPCMultistepScheduler",
        dict(solver_order=2, solver_type="bh1", final_sigmas_type="sigma_min"),  # to 0 it is NaN
        {},
        diffusion.UniPC(2, solver="bh1"),
    ),
    "UniPC-3 bh1": (
        "UniPCMultistepScheduler",
        dict(solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min"),
        {},
        diffusion.UniPC(3, solver="bh1"),
    ),
    "DEIS-2": ("DEISMultistepScheduler", dict(solver_order=2), {}, diffusion.DEIS(2)),
    "DEIS-3": ("DEISMultistepScheduler", dict(solver_order=3), {}, diffusion.DEIS(3)),
    "Euler": ("EulerDiscreteScheduler", dict(timestep_spacing="trailing"), {}, diffusion.Euler()),
    "Euler ancestral": (
        "EulerAncestralDiscreteScheduler",
        dict(timestep_spacing="trailing"),
        {},
        diffusion.EulerAncestral(),
    ),
    "Heun": ("HeunDiscreteScheduler", dict(timestep_spacing="trailing"), {}, diffusion.Heun()),
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("case", CASES)
def test_table_is_that_of_diffusers(case, prediction, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    name, config, options, sampler = CASES[case]
    theirs = getattr(diffusers, name)(prediction_type=prediction, **config)
    theirs.set_timesteps(20)
    last = theirs.sigmas[-1].item() if hasattr(theirs, "sigmas") else 0.0
    schedule = diffusion.VariancePreserving(
        theirs.alphas_cumprod,
        final_alpha_cumprod=None if name.startswith(("DEIS", "UniPC")) and last else 1.0,
    )
    times = [t.item() for t in theirs.timesteps.unique().flip(0)] + [-1]
    assert len(times) == 21
    size = 1 + 2 * len(theirs.timesteps)
    ours = probe_ours(sampler, schedule, times, prediction.split("_")[0], size)
    expected = probe_theirs(theirs, size, monkeypatch, **options)
    if case == "Heun":
        # their two stages of a step are two steps, and they scale v by x as it is at its stage
        expected = expected[[*range(1, len(expected) - 1, 2), -1]]
    # their tables are float32: λ of the first levels has few digits left
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())
    assert expected.abs().amax(0).count_nonzero() > 20  # of x, and of every model output


def test_schedules_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    for name, ours in [
        ("linear", diffusion.linear()),
        ("squaredcos_cap_v2", diffusion.cosine()),
        ("scaled_linear", diffusion.scaled_linear(beta_start=1e-4, beta_end=0.02)),
    ]:
        theirs = diffusers.DDPMScheduler(beta_schedule=name).alphas_cumprod
        torch.testing.assert_close(ours.alphas_cumprod.float(), theirs, rtol=2e-4, atol=1e-7)
    theirs = diffusers.DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod
    ours = diffusion.linear().zero_terminal_snr().alphas_cumprod
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-3, atol=1e-6)
    for spacing in ("linspace", "leading", "trailing"):
        theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
        for steps in (7, 50):
            theirs.set_timesteps(steps)
            ours = diffusion.linear(spacing=spacing, steps_offset=1).times(steps)
            assert ours == [*theirs.timesteps.tolist(), -1]


def test_lcm_and_tcd_are_those_of_diffusers(monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    for name, sampler, end, to_one in [
        ("LCMScheduler", diffusion.LCM(), -1, True),
        ("LCMScheduler", diffusion.LCM(), -1, False),
        ("TCDScheduler", diffusion.TCD(), 0, True),
        ("TCDScheduler", diffusion.TCD(), 0, False),
    ]:
        theirs = getattr(diffusers, name)(set_alpha_to_one=to_one)
        theirs.set_timesteps(4)
        final = 1.0 if to_one else None
        schedule = diffusion.VariancePreserving(theirs.alphas_cumprod, final_alpha_cumprod=final)
        times = sampler.times(schedule, 4)
        assert times[:-1] == theirs.timesteps.tolist()
        ours = probe_ours(sampler, schedule, [*times[:-1], end], "epsilon", 9)
        expected = probe_theirs(theirs, 9, monkeypatch)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_flow_euler_and_consistency_are_those_of_diffusers(monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(6)
    times = theirs.sigmas.tolist()
    ours = probe_ours(diffusion.FlowEuler(), diffusion.FlowMatching(), times, "flow", 13)
    torch.testing.assert_close(ours, probe_theirs(theirs, 13, monkeypatch), rtol=1e-5, atol=1e-5)

    theirs = diffusers.CMStochasticIterativeScheduler(clip_denoised=False)
    theirs.set_timesteps(4)
    times = [*theirs.sigmas.tolist()[:-1], 0.0]
    schedule = diffusion.Karras()
    plan = diffusion.Consistency().plan(schedule, times, "x0")
    calls = iter(range(1, 9))

    def function(x, row):
        """Their network is within the boundary scalings."""
        skip, out = theirs.get_scalings_for_boundary_condition(torch.tensor(row.now.sigma))
        return skip.double() * x + out.double() * unit(next(calls), 9)

    ours = run(plan, unit(0, 9), function, lambda k: unit(5 + k, 9))
    theirs.is_scale_input_called = True
    expected = probe_theirs(theirs, 9, monkeypatch)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def k_diffusion():
    """Its `sampling`, without what the rest of the package needs."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed")
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(Path(spec.origin).parent)]
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, dims: x.reshape(*x.shape, *[1] * (dims - x.dim()))
    package.utils = utils
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {"k_diffusion": package, "k_diffusion.utils": utils}.items():
            patch.setitem(sys.modules, name, module)
        yield pytest.importorskip("k_diffusion.sampling")
        sys.modules.pop("k_diffusion.sampling", None)


@pytest.mark.parametrize(
    "function, options, sampler",
    [
        ("sample_euler", {}, diffusion.Euler()),
        ("sample_euler_ancestral", {}, diffusion.EulerAncestral()),
        ("sample_euler_ancestral", dict(eta=0.5), diffusion.EulerAncestral(0.5)),
        ("sample_heun", {}, diffusion.Heun()),
        (
            "sample_heun",
            dict(s_churn=5.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.1),
            diffusion.EDM(5.0, 0.05, 50.0, 1.1),
        ),
        ("sample_dpmpp_2m", {}, diffusion.DPMPP2M()),
        ("sample_dpmpp_2m_sde", {}, diffusion.DPMPP2MSDE()),
        ("sample_dpmpp_2m_sde", dict(eta=0.6, solver_type="heun"), diffusion.DPMPP2MSDE(0.6, "heun")),
        ("sample_dpmpp_3m_sde", dict(eta=0.0), diffusion.DPMPP3M("published")),
    ],
)
def test_samples_are_those_of_k_diffusion(k_diffusion, function, options, sampler, monkeypatch):
    schedule = diffusion.Karras(0.03, 80.0)
    sigmas = torch.tensor(schedule.times(12), dtype=torch.float64)
    torch.testing.assert_close(sigmas.float(), k_diffusion.get_sigmas_karras(12, 0.03, 80.0))
    data = Mixture([-1.0, 0.5], 0.4)
    denoise = data.denoiser(schedule, "x0")
    start = 80 * torch.randn(8, 3, dtype=torch.float64)
    noises = torch.randn(12, 8, 3, dtype=torch.float64)

    if function == "sample_heun":
        drawn = iter(noises)
        monkeypatch.setattr(k_diffusion.torch, "randn_like", lambda x: next(drawn))
    elif options.get("eta") != 0 and ("ancestral" in function or "sde" in function):
        drawn = iter(noises)
        options = dict(options, noise_sampler=lambda *_: next(drawn))
    expected = getattr(k_diffusion, function)(denoise, start, sigmas, disable=True, **options)
    monkeypatch.undo()

    plan = sampler.plan(schedule, sigmas.tolist(), "x0")
    x, given = start, lambda k: noises[min(k, 11)]
    if plan.rows[1].whole is False or not plan.rows[0].whole:  # Heun: a step's end adds the noise of the next
        scale = (plan.start.sigma**2 - 80.0**2) ** 0.5
        x = start + (1.1 * scale * noises[0] if scale > 0 else 0)
        given = lambda k: noises[min((k + 1) // 2, 11)]  # noqa: E731
    times = lambda row: torch.full((8,), row.now.t, dtype=torch.float64)  # noqa: E731
    ours = run(plan, x, lambda x, row: denoise(x, times(row)), given)[-1]
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
