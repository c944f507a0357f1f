"""Every configuration of every accelerated scheduler beside diffusers' own."""

import inspect
import itertools
import math
import re

import pytest
import torch
from integrations import diffusers_cases as cases

pytestmark = pytest.mark.peers
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("scipy")  # of the betas' and the linear multistep's options

from gmfast.integrations.diffusers import accelerate, install  # noqa: E402
from gmfast.integrations.diffusers.rule import RULES, WITHOUT_RULE  # noqa: E402

LATEST = diffusers.__version__.split(".")[:2] >= ["0", "42"]


@pytest.mark.parametrize("case", cases.EVERY, ids=str)
@cases.quiet
def test_results_are_those_of_diffusers(case):
    """To 1e-5 of the largest; or, where diffusers' own rounding is more than that (and for halves), no
    further from its results in float64 than its own."""
    if cases.missing(case.scheduler):
        pytest.skip("a scheduler of later versions, or of torchsde")
    try:
        cases.make(case)
    except (TypeError, NotImplementedError):
        if LATEST:
            raise
        pytest.skip("an option of later versions")
    for dtype in cases.DTYPES:
        for theirs, ours, exact in zip(*cases.run(case, dtype, accelerate), strict=True):
            finite = theirs.isfinite() & exact.isfinite()
            if not finite.any():
                continue
            largest = exact[finite].abs().max()
            apart, error, their_error = (
                (v - w)[finite].abs().max() / largest
                for v, w in ((ours, theirs), (ours, exact), (theirs, exact))
            )
            if dtype.itemsize < 4:
                assert error <= max(their_error, torch.finfo(dtype).eps)
            else:  # their float64 has float32 in it: the coefficients, and what they round x to
                assert (
                    apart <= (1e-5 if dtype == torch.float32 else 3e-6) or error <= 1.5 * their_error < 1e-3
                )


@pytest.mark.parametrize("scheduler", cases.OPTIONS)
def test_every_option_is_decided_on(scheduler):
    """A new version's option fails here until somebody adds it to the cases, and to the rule's `known`."""
    if cases.missing(scheduler):
        pytest.skip("a scheduler of later versions, or of torchsde")
    parameters = inspect.signature(cases.class_of(scheduler).__init__).parameters.values()
    options = {p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}
    tried = set(cases.OPTIONS[scheduler])
    tried |= {option for name, _, option in cases.REFUSED if name == scheduler}
    assert options <= tried
    assert options <= install.find(cases.class_of(scheduler)).rule.known


def test_every_rule_has_cases():
    assert set(RULES) == set(cases.OPTIONS)


@pytest.mark.skipif(not LATEST, reason="a class of later versions may be missing")
def test_every_class_has_a_rule_or_a_reason():
    """A new version's class fails here until somebody gives it one."""
    names = {name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")}
    assert names == set(RULES) | set(WITHOUT_RULE)
    for name, why in WITHOUT_RULE.items():
        if not hasattr(diffusers.schedulers, name):  # diffusers cannot import it itself
            continue
        with pytest.raises(ValueError, match=f"got {name}: ") as error:
            install.find(cases.class_of(name))
        assert str(error.value).endswith(why)


_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction", "original_sample", "trigflow")
_SIGMAS = ("none", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")


@pytest.mark.parametrize("name", cases.OPTIONS)
@cases.quiet
def test_predictions_and_sigmas_in_every_combination(name):
    """Equal to diffusers, or refused: with the solver for noise too, where there is one."""
    if cases.missing(name):
        pytest.skip("a scheduler of later versions, or of torchsde")
    options = inspect.signature(cases.class_of(name).__init__).parameters
    predictions = _PREDICTIONS if "prediction_type" in options else (None,)
    sigmas = [s for s in (*_SIGMAS, "use_lu_lambdas") if s in options or s == "none"]
    solvers = [{}]
    if name.startswith("DPMSolver") and "algorithm_type" in options:
        solvers.append({"algorithm_type": "dpmsolver"})
    if "predict_x0" in options:
        solvers.append({"predict_x0": False})
    if name == "SASolverScheduler":
        solvers.append({"algorithm_type": "noise_prediction"})
    if name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"):
        solvers[1]["final_sigmas_type"] = "sigma_min"
    compared = 0
    for prediction, sigma, solver in itertools.product(predictions, sigmas, solvers):
        config = {} if prediction is None else {"prediction_type": prediction}
        config.update({} if sigma == "none" else {sigma: True}, **solver)
        if name.startswith(("KDPM2", "DPMSolverSDE", "Heun", "LMS")):  # slow to make for many timesteps
            config["num_train_timesteps"] = 100
        case = cases.Case(name, config)
        try:
            accelerate(cases.make(case))
        except (NotImplementedError, ValueError):
            continue
        for theirs, ours, exact in zip(
            *cases.run(case, torch.float32, accelerate, (1, 3, 2, 1)), strict=True
        ):
            if not theirs.isfinite().all():
                break
            # Where x and the prediction cancel, both round: then to three times diffusers' own error.
            allowed = max(1e-5, 3 * cases.relative([theirs], [exact]))
            assert min(cases.relative([ours], [e]) for e in (theirs, exact)) <= allowed, case
            compared += 1
    assert compared > 0


def test_a_flow_s_noise_in_deis_is_of_the_raw_sigma():
    """The first step by hand: x0 = x - s·m, eps = (x - a·x0)/s, x' = a'/a·x - s'a'·(e^h - 1)·eps."""
    scheduler = diffusers.DEISMultistepScheduler(prediction_type="flow_prediction", use_karras_sigmas=True)
    scheduler.set_timesteps(5)
    s, to = (scheduler.sigmas[i].item() for i in (0, 1))
    a, a_to = 1 / math.hypot(1, s), 1 / math.hypot(1, to)
    noise = (1.0 - a * (1.0 - s * 0.5)) / s
    expected = a_to / a - to * a_to * math.expm1(math.log(s / to)) * noise
    x, m = torch.tensor([[1.0]]), torch.tensor([[0.5]])
    found = accelerate(scheduler).step(m, scheduler.timesteps[0], x, return_dict=False)[0].item()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["DDIMParallelScheduler", "DDPMParallelScheduler"])
def test_samples_at_timesteps_of_their_own(name):
    """`batch_step_no_noise`, as ParaDiGMS calls it: one row for each sample, in float32 at least."""
    theirs, ours = (cases.make(cases.Case(name)) for _ in range(2))
    accelerate(ours)
    x, m = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    for dtype in (torch.float32, torch.float16):
        for times in (theirs.timesteps[:4], theirs.timesteps[-4:], torch.tensor([0, 7, 999, 500])):
            pair = [s.batch_step_no_noise(m.to(dtype), times, x.to(dtype)) for s in (ours, theirs)]
            assert pair[0].dtype == pair[1].dtype == torch.float32
            torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheduler, config, option", cases.REFUSED)
@cases.quiet
def test_what_is_not_done_is_refused_by_name(scheduler, config, option):
    if cases.missing(scheduler):
        pytest.skip("a scheduler of later versions, or of torchsde")
    made = cases.class_of(scheduler)(**config)
    with pytest.raises(ValueError, match=re.escape(f"expected another {option} than {config[option]!r}")):
        accelerate(made)
    assert "step" not in vars(made)


def test_the_documentation_has_every_configuration():
    """`python tests/integrations/diffusers_cases.py` writes it."""
    lines = cases.PAGE.read_text().partition(cases.MARK)[2].split("\n")[4:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line]
    assert [tuple(c[:2]) for c in cells] == list(cases.labels())
    for i, c in enumerate(cells):
        assert c[2].startswith("equal" if i < len(cases.EVERY) else "refused")
