"""What `accelerate` leaves as it was, and what a step does not do."""

import copy
import filecmp
import inspect
import logging
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from integrations.diffusers_cases import OPTIONS, Case, begin, make, missing, quiet, step, visited
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("scipy")

import gmfast.functional as GF  # noqa: E402
from gmfast._table import COLUMNS  # noqa: E402
from gmfast.integrations.diffusers import accelerate, install, unaccelerate  # noqa: E402
from gmfast.integrations.diffusers import state as state_module  # noqa: E402

SCHEDULERS = [name for name in OPTIONS if not missing(name)]
every_scheduler = pytest.mark.parametrize("name", SCHEDULERS)
SHAPE = (2, 3, 4, 5)


@pytest.fixture(autouse=True)
def _quiet():
    """What diffusers says of its options is kept back."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield
    logging.disable(level)


def model(x, t):
    """Of x, and not linear."""
    return torch.tanh(x + 0.1 * x.roll(1, -1)) + 0.01 * abs(float(t)) ** 0.25


def loop(scheduler, x, *, timesteps=None, generator=None, network=model, **options):
    """What a pipeline does with a scheduler."""
    parameters = inspect.signature(scheduler.step).parameters
    if "generator" in parameters:
        options["generator"] = generator
    if (
        hasattr(scheduler, "noise_sampler") and options.get("generator") is None
    ):  # its path is seeded by torch's generator
        torch.manual_seed(0)
    every, path = scheduler.timesteps, []
    for i, t in enumerate(visited(scheduler) if timesteps is None else timesteps):
        if (
            isinstance(t, torch.Tensor)
            and t.untyped_storage().data_ptr() == every.untyped_storage().data_ptr()
        ):
            i = t.storage_offset() - every.storage_offset()
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        old = getattr(scheduler, "old", None) if i > 0 else None
        x, *others = step(scheduler, network(given, t), t, x, i, old, **options, return_dict=False)
        if "old_pred_original_sample" in parameters:
            scheduler.old = others[0]
        path.append(x)
    return torch.stack(path)


def both(name, **config):
    """A scheduler with its time steps set, and an accelerated copy."""
    theirs = make(Case(name, config))
    return theirs, accelerate(copy.deepcopy(theirs))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(ours, theirs, **tolerance):
    tolerance = tolerance or dict(rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
    torch.testing.assert_close(ours, theirs, **tolerance)


# ---- What stays


@every_scheduler
def test_class_signatures_config_and_files_stay(name, tmp_path):
    theirs = make(Case(name))
    ours = accelerate(theirs_copy := copy.deepcopy(theirs))
    assert ours is theirs_copy and type(ours) is type(theirs) and isinstance(ours, diffusers.SchedulerMixin)
    assert getattr(ours, "order", 1) == getattr(theirs, "order", 1)
    assert ours.config == theirs.config and repr(ours) == repr(theirs)
    for method in ("step", "set_timesteps", "add_noise", "scale_noise", "scale_model_input"):
        if hasattr(theirs, method):
            assert inspect.signature(getattr(ours, method)) == inspect.signature(getattr(theirs, method))
            assert getattr(ours, method).__doc__ == getattr(theirs, method).__doc__
    for folder, scheduler in (("theirs", theirs), ("ours", ours)):
        scheduler.save_pretrained(tmp_path / folder)
    assert filecmp.dircmp(tmp_path / "theirs", tmp_path / "ours").diff_files == []
    loaded = type(ours).from_pretrained(tmp_path / "ours")
    assert "step" not in vars(loaded)
    assert loaded.config == type(ours).from_pretrained(tmp_path / "theirs").config
    assert type(ours).from_config(ours.config).config == type(ours).from_config(theirs.config).config
    assert ours.step.__func__ is not type(ours).step and "step" in vars(ours)


@every_scheduler
def test_loops_are_those_of_diffusers(name):
    theirs, ours = both(name)
    x = torch.randn(SHAPE)
    close(loop(ours, x, generator=seeded()), loop(theirs, x, generator=seeded()))
    begin(theirs, Case(name), 9)
    begin(ours, Case(name), 9)  # another table
    close(loop(ours, x, generator=seeded()), loop(theirs, x, generator=seeded()))


@every_scheduler
def test_copies_are_accelerated_and_apart(name):
    _, ours = both(name)
    if hasattr(ours, "noise_sampler"):
        pytest.skip("torchsde's paths cannot be copied")
    x = torch.randn(SHAPE)
    half = len(visited(ours)) // 2
    expected = loop(copy.deepcopy(ours), x, generator=seeded())
    loop(ours, x, timesteps=ours.timesteps[:half])
    begin(ours, Case(name))
    first = loop(ours, x, timesteps=ours.timesteps[:half], generator=(generator := seeded()))
    other = copy.deepcopy(ours)
    assert other.step.__self__ is other and other._gmfast is not ours._gmfast
    state = generator.get_state()
    for scheduler in (other, ours):  # each goes on from where both were
        generator.set_state(state)
        rest = loop(scheduler, first[-1], timesteps=visited(scheduler)[half:], generator=generator)
        close(torch.cat([first, rest]), expected)


@every_scheduler
def test_switching_in_the_middle(name):
    """All that a step keeps is where diffusers keeps it."""
    theirs, ours = both(name)
    x = torch.randn(SHAPE)
    expected = loop(theirs, x, generator=seeded())
    generator, path = seeded(), []
    for i, t in enumerate(visited(ours)):
        (accelerate if i % 3 != 1 else unaccelerate)(ours)
        path.append(loop(ours, path[-1] if path else x, timesteps=[t], generator=generator)[0])
    close(torch.stack(path), expected)


def test_twice_and_back():
    scheduler = diffusers.DDIMScheduler()
    before = set(vars(scheduler))
    assert accelerate(accelerate(scheduler)) is scheduler
    assert scheduler.step.__func__.__wrapped__ is type(scheduler).step
    assert unaccelerate(scheduler) is scheduler and set(vars(scheduler)) == before
    assert unaccelerate(scheduler) is scheduler
    accelerate(scheduler, noise="keyed", seed=3)
    accelerate(scheduler, noise="keyed", seed=4)
    assert scheduler._gmfast.noise.seed == 4
    loaded = pickle.loads(pickle.dumps(scheduler))
    loaded.set_timesteps(3)
    assert not install.is_accelerated(loaded)
    assert install.is_accelerated(accelerate(loaded))
    loop(loaded, torch.randn(SHAPE))


# ---- What pipelines do


@every_scheduler
def test_starting_in_the_middle(name):
    x = torch.randn(SHAPE)
    for begins in (False, True):
        theirs, ours = both(name)
        if begins and not hasattr(theirs, "set_begin_index"):
            continue
        results = []
        for scheduler in (theirs, ours):
            k = min(2 * getattr(scheduler, "order", 1), len(visited(scheduler)) - 1)
            if name == "PNDMScheduler":  # which has to have begun
                loop(scheduler, x, timesteps=scheduler.timesteps[:12])
                k = 12
            if begins:
                scheduler.set_begin_index(k)
            results.append(loop(scheduler, x, timesteps=visited(scheduler)[k:], generator=seeded()))
        close(results[1], results[0])


@pytest.mark.parametrize("name", [n for n in SCHEDULERS if "sigmas" in vars(make(Case(n)))])
def test_sigmas_changed_after_set_timesteps(name):
    x = torch.randn(SHAPE)
    theirs, ours = both(name)
    loop(ours, x)  # so that there is a table
    begin(ours, Case(name))
    for scheduler in (theirs, ours):
        scheduler.sigmas[-2] *= 0.5
        scheduler.sigmas[-1] = 0.001
    close(loop(ours, x, generator=seeded()), loop(theirs, x, generator=seeded()))
    for scheduler in (theirs, ours):
        begin(scheduler, Case(name))
        scheduler.sigmas = scheduler.sigmas * 0.9
    close(loop(ours, x, generator=seeded()), loop(theirs, x, generator=seeded()))


@every_scheduler
def test_strided_patches(name):
    x = torch.randn(2, 6, 9, 11)
    views = x[:, 1:4, 2:7:2, 3:], x.transpose(2, 3)[:, ::2], x.to(memory_format=torch.channels_last)
    for view in views:
        theirs, ours = both(name)
        network = lambda x, t: model(x, t).transpose(2, 3).contiguous().transpose(2, 3)  # noqa: E731
        found = loop(ours, view, generator=seeded(), network=network)
        close(found, loop(theirs, view.clone(), generator=seeded(), network=network))


@pytest.mark.parametrize(
    "name, config",
    [(name, {}) for name in SCHEDULERS]
    + [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        ("HeunDiscreteScheduler", {"prediction_type": "sample"}),
        ("LMSDiscreteScheduler", {"prediction_type": "v_prediction"}),
        ("DEISMultistepScheduler", {"prediction_type": "sample"}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
    ],
)
def test_a_network_may_write_all_its_outputs_into_one_tensor(name, config):
    """As one in a CUDA graph does: of it nothing is kept that diffusers does not keep."""
    theirs, ours = both(name, **config)
    x, output = torch.randn(SHAPE), torch.empty(SHAPE)
    network = lambda x, t: output.copy_(model(x, t))  # noqa: E731
    close(*(loop(s, x, generator=seeded(), network=network) for s in (ours, theirs)))


@every_scheduler
@pytest.mark.parametrize(
    "of_x, of_output",
    [(torch.float64, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_an_output_of_another_dtype(name, of_x, of_output):
    x, m = torch.randn(SHAPE).to(of_x), torch.randn(SHAPE).to(of_output)
    theirs, ours = both(name)
    for i, t in enumerate(visited(theirs)[:3]):
        results = []
        for scheduler in (ours, theirs):
            scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else None
            torch.manual_seed(0)
            results.append(step(scheduler, m, t, x, i, return_dict=False))
        for found, expected in zip(*results, strict=True):
            if not isinstance(expected, torch.Tensor):
                assert found == expected
                continue
            assert found.dtype == expected.dtype
            close(found, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


def test_the_noise_of_v_is_by_way_of_x0_in_deis():
    """Where alpha is small, the last bit of alpha² + sigma² is a thousandth of the result."""
    theirs, ours = both(
        "DEISMultistepScheduler", beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    x = torch.randn(SHAPE, dtype=torch.float64)
    t = theirs.timesteps[0]
    close(*(s.step(x.flip(0), t, x)[0] for s in (ours, theirs)), rtol=1e-8, atol=1e-8)


def test_threads_share_nothing():
    scheduler = accelerate(make(Case("UniPCMultistepScheduler")))
    starts = torch.randn(4, *SHAPE)
    expected = [loop(copy.deepcopy(scheduler), x) for x in starts]
    found = [None] * 4

    def work(i, scheduler):
        for _ in range(5):
            begin(scheduler, Case("UniPCMultistepScheduler"))
            found[i] = loop(scheduler, starts[i])

    threads = [threading.Thread(target=work, args=(i, copy.deepcopy(scheduler))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_scheduler
def test_time_steps_of_other_kinds(name):
    """Numbers, and tensors that are no views."""
    theirs, ours = both(name)
    x = torch.randn(SHAPE)
    whole = not theirs.timesteps.is_floating_point()
    kinds = [lambda t: t.clone(), (lambda t: int(t)) if whole else float]
    if name == "DDIMScheduler":
        kinds += [lambda t: t.reshape(1), np.int64, lambda t: t.int()]
    for kind in kinds:
        for scheduler in (theirs, ours):
            begin(scheduler, Case(name))
        given = [kind(t) for t in visited(theirs)]
        results = [loop(s, x, timesteps=given, generator=seeded()) for s in (ours, theirs)]
        close(*results)


@quiet
def test_errors_are_those_of_diffusers():
    x = torch.randn(SHAPE)
    for name, timestep in [("EulerDiscreteScheduler", 3), ("DDPMScheduler", 12345), ("DDIMScheduler", 10**6)]:
        theirs, ours = both(name)
        errors = []
        for scheduler in (theirs, ours):
            with pytest.raises((ValueError, IndexError)) as error:
                scheduler.step(x, timestep, x)
            errors.append((type(error.value), str(error.value)))
        assert errors[0] == errors[1]
    with pytest.raises(ValueError, match="set_timesteps"):
        accelerate(diffusers.DDIMScheduler()).step(x, 3, x)
    ours = accelerate(make(Case("DDIMScheduler")))
    noise = torch.randn(SHAPE)
    with pytest.raises(ValueError, match="variance_noise"):
        ours.step(x, ours.timesteps[0], x, eta=1.0, generator=seeded(), variance_noise=noise)


def test_noise_that_is_given():
    x, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    for name, config, options in [
        ("DDIMScheduler", {}, {"eta": 0.8}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ]:
        theirs, ours = both(name, **config)
        t = theirs.timesteps[0]
        options["variance_noise"] = noise
        close(ours.step(x, t, x, **options)[0], theirs.step(x, t, x, **options)[0])
    theirs, ours = both("EDMEulerScheduler")
    for scheduler in (theirs, ours):
        scheduler.scale_model_input(x, scheduler.timesteps[0])
    options = {"pred_original_sample": noise}
    close(ours.step(x, t := theirs.timesteps[0], x, **options)[0], theirs.step(x, t, x, **options)[0])
    theirs, ours = both("FlowMatchEulerDiscreteScheduler")
    x = torch.randn(2, 6, 5)
    tokens = torch.rand(2, 6) * 1000
    options = {"per_token_timesteps": tokens}
    close(ours.step(x, t := theirs.timesteps[0], x, **options)[0], theirs.step(x, t, x, **options)[0])


def test_noise_that_is_given_in_another_shape_or_dtype():
    x = torch.randn(SHAPE)
    for noise in (torch.randn(1, *SHAPE[1:]), torch.randn(SHAPE, dtype=torch.float64)):
        for name, config, options in [
            ("DDIMScheduler", {}, {"eta": 0.8}),
            ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
        ]:
            theirs, ours = both(name, **config)
            options["variance_noise"] = noise
            found, expected = (s.step(x, s.timesteps[0], x, **options)[0] for s in (ours, theirs))
            assert found.dtype == expected.dtype
            close(found, expected)


def test_options_changed_after():
    """`register_to_config` may: into what is done, or not."""
    x = torch.randn(SHAPE)
    for name in [n for n in SCHEDULERS if "v_prediction" in OPTIONS[n].get("prediction_type", ())]:
        theirs, ours = both(name)
        loop(ours, x)
        for scheduler in (theirs, ours):
            scheduler.register_to_config(prediction_type="v_prediction")
            begin(scheduler, Case(name))
        close(*(loop(s, x, generator=seeded()) for s in (ours, theirs)))
        begin(ours, Case(name))
        ours.register_to_config(prediction_type="flow")
        with pytest.raises(ValueError, match="scheduler: expected another prediction_type than 'flow'"):
            loop(ours, x)


def test_a_second_stage_of_other_numbers():
    """Heun's, whose length diffusers keeps from the first."""
    x = torch.randn(SHAPE)
    theirs, ours = both("HeunDiscreteScheduler")
    results = []
    for scheduler in (theirs, ours):
        first = loop(scheduler, x, timesteps=scheduler.timesteps[:1])
        scheduler.sigmas[:2] *= 1.5
        results.append(loop(scheduler, first[-1], timesteps=scheduler.timesteps[1:]))
    close(*results)
    results = []
    for scheduler in (theirs, ours):  # at a second stage's time step: it ends with half a step
        begin(scheduler, Case("HeunDiscreteScheduler"))
        results.append(loop(scheduler, x, timesteps=scheduler.timesteps[1:])[:-1])
    close(*results)


@every_scheduler
def test_gradients_and_inference_mode(name):
    theirs, ours = both(name)
    gradients = []
    for scheduler in (theirs, ours):
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 3, 4, 1).requires_grad_()
        loop(scheduler, x, generator=seeded())[-1].square().sum().backward()
        gradients.append(x.grad)
    close(gradients[1], gradients[0])
    with torch.inference_mode():
        for scheduler in (theirs, ours):
            begin(scheduler, Case(name))
            if hasattr(scheduler, "sigmas"):
                scheduler.sigmas[-2] *= 0.8
        x = torch.randn(SHAPE)
        close(loop(ours, x, generator=seeded()), loop(theirs, x, generator=seeded()))


# ---- Noise


NOISY = {
    "DDPMScheduler": {},
    "DDIMScheduler": {"eta": 1.0},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "EDMDPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "EulerDiscreteScheduler": {"s_churn": 3.0},
    "EDMEulerScheduler": {"s_churn": 3.0},
    "EulerAncestralDiscreteScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {"stochastic_sampling": True},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "CMStochasticIterativeScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "CogVideoXDPMScheduler": {},
    "UnCLIPScheduler": {},
    "DDPMWuerstchenScheduler": {},
    "DDIMParallelScheduler": {"eta": 1.0},
    "DDPMParallelScheduler": {},
    "SASolverScheduler": {},
    "SCMScheduler": {},
    "ConsistencyDecoderScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {"s_churn": 1.0},
    "FlowMatchLCMScheduler": {},
    "LTXEulerAncestralRFScheduler": {},
}
every_noisy = pytest.mark.parametrize("name", [name for name in NOISY if name in SCHEDULERS])


def noisy(name):
    config = {k: v for k, v in NOISY[name].items() if k in ("algorithm_type", "stochastic_sampling")}
    return make(Case(name, config)), {k: v for k, v in NOISY[name].items() if k not in config}


@every_noisy
def test_generators_are_left_as_diffusers_leaves_them(name):
    """Also where there are so many numbers that the kernel makes torch's noise: of one generator, torch's
    global one, and a list, whose last one is not used."""
    theirs, options = noisy(name)
    ours = accelerate(copy.deepcopy(theirs))
    x = torch.randn(2, 3, 17, 21)
    listed = hasattr(inspect.getmodule(type(theirs)), "randn_tensor")
    for generators in ([seeded(3)], [None], [seeded(i) for i in range(3)])[: 3 if listed else 2]:
        given = generators if len(generators) > 1 else generators[0]
        results, left = [], []
        states = [(g or torch.default_generator).get_state() for g in generators]
        for scheduler in (theirs, ours):
            for g, state in zip(generators, states, strict=True):
                (g or torch.default_generator).set_state(state)
            results.append(loop(scheduler, x, generator=given, **options))
            left.append([(g or torch.default_generator).get_state() for g in generators])
            begin(scheduler, Case(name))
        close(*results)
        assert not torch.equal(states[0], left[0][0])
        assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))


@every_noisy
def test_a_list_of_generators(name):
    theirs, options = noisy(name)
    if not hasattr(inspect.getmodule(type(theirs)), "randn_tensor"):
        pytest.skip("earlier versions did not use generators here")
    ours = accelerate(copy.deepcopy(theirs))
    x = torch.randn(SHAPE)
    results = [loop(s, x, generator=[seeded(3), seeded(4)], **options) for s in (ours, theirs)]
    close(*results)
    begin(ours, Case(name))
    assert not torch.equal(*loop(ours, torch.zeros(SHAPE), generator=[seeded(3), seeded(4)], **options)[-1])


@every_noisy
def test_keyed_noise_is_of_the_sample(name):
    scheduler, options = noisy(name)
    accelerate(scheduler, noise="keyed", seed=7)
    x = torch.randn(1, 3, 4, 5).expand(4, -1, -1, -1)

    def sample(x, **more):
        begin(scheduler, Case(name))
        return loop(scheduler, x, **options, **more)

    every = sample(x)
    assert every.isfinite().all() and not torch.equal(every[-1, 0], every[-1, 1])
    close(sample(x[:2]), every[:, :2])
    assert torch.equal(sample(x), every)
    accelerate(scheduler, noise="keyed", seed=8)
    assert not torch.equal(sample(x), every)
    accelerate(scheduler, noise="keyed", seed=[7, 2**63, -1, 7])
    each = sample(x)
    close(each[:, 0], each[:, 3])
    close(each[:, :1], every[:, :1])
    assert not torch.equal(each[:, 1], each[:, 2])
    accelerate(scheduler, noise="keyed")  # seeds from the generators
    each = sample(x, generator=[seeded(i) for i in (1, 2, 3, 1)])
    close(each[:, 0], each[:, 3])
    assert torch.equal(sample(x, generator=seeded(5)), sample(x, generator=seeded(5)))
    torch.manual_seed(2)
    first = sample(x)
    assert not torch.equal(first, sample(x))


def test_keyed_noise_is_the_operator_s():
    scheduler = accelerate(make(Case("DDPMScheduler", {"clip_sample": False})), noise="keyed", seed=7)
    x, m, t = torch.randn(SHAPE), torch.randn(SHAPE), scheduler.timesteps[1]
    variance = scheduler._get_variance(t)
    noise = scheduler.step(m, t, x)[0]
    given = unaccelerate(scheduler)
    quietly = given.step(m, t, x, generator=seeded())[0] - variance**0.5 * torch.randn(
        SHAPE, generator=seeded()
    )
    zeros = torch.zeros(int(t) + 1, 20, dtype=torch.float64)
    zeros[int(t), COLUMNS.index("noise")] = 1.0
    drawn = GF.diffusion_step(x, m, zeros, step=int(t), seed=7)
    torch.testing.assert_close(noise, quietly + variance**0.5 * drawn, rtol=1e-4, atol=1e-4)


# ---- add_noise


@every_scheduler
def test_add_noise(name):
    theirs, ours = both(name)
    x, noise = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    add = "scale_noise" if name.startswith("FlowMatch") else "add_noise"
    if not hasattr(theirs, add):
        pytest.skip("it has none")
    if name == "FlowMatchHeunDiscreteScheduler":  # at one level
        times = theirs.timesteps[2]
        calls = [times]
    elif name == "IPNDMScheduler":
        pytest.skip("diffusers' raises")
    else:
        times = theirs.timesteps[torch.tensor([2, 0, 1, 2])]
        calls = [times, theirs.timesteps[2:3], theirs.timesteps[:1].repeat(4)]
    if "alphas_cumprod" in vars(theirs) and "sigmas" not in vars(theirs):
        calls += [torch.tensor([0, 999, 7, 400]), torch.tensor([0, 999, 7, 400], dtype=torch.int32)]
    for dtype in (torch.float32, torch.float64):
        for t in calls:
            arguments = (
                (x.to(dtype), noise.to(dtype), t) if add == "add_noise" else (x.to(dtype), t, noise.to(dtype))
            )
            # a half's would be worse: they round ᾱ and sigma to it
            found, expected = (getattr(s, add)(*arguments) for s in (ours, theirs))
            assert found.dtype == expected.dtype
            close(found, expected, rtol=3e-5, atol=3e-5 * expected.abs().max().item())
    if hasattr(theirs, "set_begin_index") and "sigmas" in vars(theirs):
        for scheduler in (theirs, ours):
            scheduler.set_begin_index(1)
        arguments = (x, noise, times) if add == "add_noise" else (x, times, noise)
        close(*(getattr(s, add)(*arguments) for s in (ours, theirs)))
        for scheduler in (theirs, ours):
            loop(scheduler, x, timesteps=scheduler.timesteps[1:3])
        close(*(getattr(s, add)(*arguments) for s in (ours, theirs)))


def test_add_noise_beyond_the_table(monkeypatch):
    x, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for name in ("DDPMScheduler", "DDIMScheduler", "LCMScheduler", "TCDScheduler", "PNDMScheduler"):
        theirs, ours = both(name)
        times = torch.tensor([-1, 3])
        close(ours.add_noise(x, noise, times), theirs.add_noise(x, noise, times))
        with pytest.raises(IndexError, match="index 1000"):
            ours.add_noise(x, noise, torch.tensor([3, 1000]))
    theirs, ours = both("DPMSolverMultistepScheduler")
    times = torch.stack([theirs.timesteps[2], theirs.timesteps[2] + 1])
    close(ours.add_noise(x, noise, times), theirs.add_noise(x, noise, times))
    monkeypatch.setattr(state_module, "on_host", lambda t: False)  # where nobody may ask whether it is there
    close(ours.add_noise(x, noise, times), theirs.add_noise(x, noise, times))


# ---- No waiting


READS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")


class NoReads(TorchFunctionMode):
    """Raises where a tensor of the given memory, which stands for a device's, is read or copied from."""

    def __init__(self, owned):
        self.owned = owned

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        reads = name in READS or (name == "to" and "cpu" in map(str, args))
        if reads and isinstance(args[0], torch.Tensor) and args[0].untyped_storage().data_ptr() in self.owned:
            raise AssertionError(f"{name} of a tensor on the device")
        return function(*args, **(kwargs or {}))


class NoReadsBelow(TorchDispatchMode):
    def __init__(self, owned):
        super().__init__()
        self.owned = owned

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            assert args[0].untyped_storage().data_ptr() not in self.owned, function
        return function(*args, **(kwargs or {}))


#: Tensors that `set_timesteps` puts on the device of the data besides `timesteps`.
ON_DEVICE = {
    **dict.fromkeys(
        [n for n in SCHEDULERS if n.startswith(("Flow", "Helios", "LTX", "MiniMax"))], ("sigmas",)
    ),
    "KDPM2DiscreteScheduler": ("sigmas_interpol",),
    "KDPM2AncestralDiscreteScheduler": ("sigmas_interpol", "sigmas_up", "sigmas_down"),
    "ConsistencyDecoderScheduler": (
        *("c_skip", "c_out", "c_in", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    ),
}


@every_scheduler
@pytest.mark.parametrize("begins", [False, True])
def test_no_step_reads_from_the_device(name, begins, monkeypatch):
    """The time steps and the data stand for a GPU's: nothing may ask for their numbers."""
    owned = set()
    of_device = lambda t: t.untyped_storage().data_ptr() in owned  # noqa: E731
    monkeypatch.setattr(state_module, "on_host", lambda t: not of_device(t))
    scheduler = accelerate(make(Case(name)))
    if begins and not hasattr(scheduler, "set_begin_index"):
        pytest.skip("it has none")
    timesteps = scheduler.timesteps
    own = [timesteps] + [getattr(scheduler, attribute) for attribute in ON_DEVICE.get(name, ("timesteps",))]
    owned.update(t.untyped_storage().data_ptr() for t in own)
    for read in scheduler._gmfast.rule.reads:  # as `set_timesteps` does for a device's
        scheduler._gmfast.numbers(scheduler, read)
    if begins:
        scheduler.set_begin_index(0)
    x = torch.randn(SHAPE)
    owned.add(x.untyped_storage().data_ptr())
    parameters = inspect.signature(scheduler.step).parameters
    options = {"generator": seeded()} if "generator" in parameters else {}
    outputs, old = [x], None
    with NoReads(owned), NoReadsBelow(owned):
        for i, t in enumerate(visited(scheduler)):
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            outputs.append(given * 0.5)
            x = step(scheduler, outputs[-1], t, x, i, old, **options, return_dict=False)
            x, old = x[0], x[-1]
            owned.add(x.untyped_storage().data_ptr())
            outputs.append(x)  # kept, so that no other tensor gets its memory
    with NoReadsBelow(owned), pytest.raises(AssertionError):
        timesteps[0].item()
    with NoReads(owned), pytest.raises(AssertionError):
        timesteps.tolist()


def test_noise_before_there_are_time_steps():
    x, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for name in ("PNDMScheduler", "DDPMScheduler", "LCMScheduler"):
        theirs = getattr(diffusers, name)()
        ours = accelerate(copy.deepcopy(theirs))
        times = torch.tensor([3, 800])
        close(ours.add_noise(x, noise, times), theirs.add_noise(x, noise, times))
        for spacing in (13, 7):
            for scheduler in (theirs, ours):
                scheduler.set_timesteps(spacing)
            close(*(loop(s, x, generator=seeded()) for s in (ours, theirs)))


def test_tables_are_made_once():
    made = []
    scheduler = accelerate(make(Case("DPMSolverMultistepScheduler")))
    plan = scheduler._gmfast.rule.plan
    scheduler._gmfast.rule.plan = lambda *a: made.append(a) or plan(*a)
    try:
        x = torch.randn(SHAPE)
        loop(scheduler, x)
        for steps in (6, 6, 9, 6, 9):
            scheduler.set_timesteps(steps)
            loop(scheduler, x)
    finally:
        del scheduler._gmfast.rule.plan
    assert len(made) == 2


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_a_device_s_own_time_steps_are_not_read(name, monkeypatch):
    """Those that are no views of `timesteps`: the device finds the row itself."""
    theirs, ours = both(name)
    x, t = torch.randn(SHAPE), theirs.timesteps[2]
    expected = theirs.step(x, t, x, generator=seeded())[0]
    other = t.clone()
    owned = {s.untyped_storage().data_ptr() for s in (other, ours.timesteps)}
    monkeypatch.setattr(state_module, "on_host", lambda t: t.untyped_storage().data_ptr() not in owned)
    ours._gmfast.numbers(ours)
    with NoReads(owned), NoReadsBelow(owned):
        found = ours.step(x, other, x, generator=seeded())[0]
    close(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_scheduler
def test_on_a_gpu_no_step_waits_and_a_graph_can_hold_a_loop(name):
    x = torch.randn(SHAPE, device="cuda")
    ours = accelerate(make(Case(name)), noise="keyed", seed=3)
    ours.set_timesteps(4, device="cuda")
    begun = dict(vars(ours))

    def go():
        for key in set(vars(ours)) - set(begun):
            delattr(ours, key)
        vars(ours).update({k: list(v) if isinstance(v, list) else v for k, v in begun.items()})
        return loop(ours, x, network=lambda x, t: torch.tanh(x))[-1]

    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = go()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_host = accelerate(make(Case(name)), noise="keyed", seed=3)
    on_host.set_timesteps(4)
    close(expected.cpu(), loop(on_host, x.cpu(), network=lambda x, t: torch.tanh(x))[-1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = go()
    graph.replay()
    torch.testing.assert_close(result, expected)


# ---- What is refused


def test_what_cannot_be_accelerated_is_refused(monkeypatch):
    with pytest.raises(
        ValueError, match=r"scheduler: expected one of DDIMScheduler, .* got VQDiff.*: .*tokens"
    ):
        accelerate(diffusers.VQDiffusionScheduler(num_vec_classes=8))
    with pytest.raises(ValueError, match=r"got ScoreSdeVe.*: its corrector is not linear"):
        accelerate(diffusers.ScoreSdeVeScheduler())
    if "DPMSolverSDEScheduler" in SCHEDULERS:
        with pytest.raises(ValueError, match="noise: expected 'generator' for DPMSolverSDEScheduler"):
            accelerate(diffusers.DPMSolverSDEScheduler(), noise="keyed")
    for thing in (None, 3, torch.nn.Linear(1, 1)):
        with pytest.raises(TypeError, match="scheduler_or_pipeline: expected a scheduler"):
            accelerate(thing)
    with pytest.raises(ValueError, match="noise: expected 'generator' or 'keyed', got 'torch'"):
        accelerate(diffusers.DDIMScheduler(), noise="torch")
    with pytest.raises(ValueError, match="seed: expected None"):
        accelerate(diffusers.DDIMScheduler(), seed=3)
    with pytest.raises(TypeError, match="seed: expected an int"):
        accelerate(diffusers.DDIMScheduler(), noise="keyed", seed=[1.5])

    class Same(diffusers.DDIMScheduler):
        def more(self):
            return 1

    class Own(diffusers.DDIMScheduler):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    assert type(accelerate(Same())) is Same
    with pytest.raises(ValueError, match="got Own, which has its own step"):
        accelerate(Own())
    patched = diffusers.DDIMScheduler()
    patched.step = lambda *a, **k: None
    with pytest.raises(ValueError, match="expected its class's step"):
        accelerate(patched)

    rule = install.find(diffusers.DDIMScheduler).rule
    monkeypatch.setattr(rule, "known", rule.known - {"set_alpha_to_one"})
    accelerate(diffusers.DDIMScheduler())  # a later version's option, as it is
    with pytest.raises(ValueError, match="another set_alpha_to_one than False"):
        accelerate(diffusers.DDIMScheduler(set_alpha_to_one=False))


def test_importing_needs_no_diffusers():
    code = (
        "import sys; sys.modules['diffusers'] = None; import gmfast.integrations.diffusers as d\n"
        "try: d.accelerate(3)\nexcept TypeError: print('asked')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "asked", found.stderr


def test_seeds_for_other_batches():
    scheduler = accelerate(make(Case("DDPMScheduler")), noise="keyed", seed=[1, 2])
    x = torch.randn(3, 2, 2)
    with pytest.raises(ValueError, match="seed: expected one for each of 3 samples, got 2"):
        scheduler.step(x, scheduler.timesteps[0], x)


# ---- Pipelines


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
@quiet
def test_pipelines(kind):
    pipeline = getattr(diffusers, kind + "Pipeline")(unet(), getattr(diffusers, kind + "Scheduler")())
    pipeline.set_progress_bar_config(disable=True)
    options = dict(batch_size=2, num_inference_steps=4, output_type="np")
    if kind == "DDIM":
        options["eta"] = 0.5
    expected = pipeline(**options, generator=seeded()).images
    scheduler = pipeline.scheduler
    assert accelerate(pipeline) is pipeline and pipeline.scheduler is scheduler
    found = pipeline(**options, generator=seeded()).images
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert unaccelerate(pipeline) is pipeline and "step" not in vars(scheduler)


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"]
)
@quiet
def test_a_latent_pipeline_with_guidance(name):
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=1001,
        norm_num_groups=2,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    pipeline = diffusers.DiTPipeline(transformer.eval(), vae.eval(), getattr(diffusers, name)())
    pipeline.set_progress_bar_config(disable=True)
    options = dict(class_labels=[1, 2], num_inference_steps=5, guidance_scale=3.0, output_type="np")
    torch.manual_seed(1)  # it gives its scheduler no generator
    expected = pipeline(**options, generator=seeded()).images
    torch.manual_seed(1)
    found = accelerate(pipeline)(**options, generator=seeded()).images
    np.testing.assert_allclose(found, expected, atol=1e-4)
