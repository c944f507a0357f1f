"""Models and integrations under torch's transforms, as docs/transforms.md says."""

import tempfile
import warnings

import pytest
import torch
from transforms import harness
from transforms.models import SUBJECTS, build

import gmfast
import gmfast.diffusion
from gmfast.models import MODELS, Objective

LOSSES = [subject for subject in SUBJECTS if subject.name.endswith(".loss")]
OTHERS = [subject for subject in SUBJECTS if not subject.name.endswith(".loss")]
QUICK = ("vjp", "vmap(grad)", "checkpoint", "reentrant", "copies", "meta", "fake")


@pytest.fixture(autouse=True)
def _without_warnings(recwarn):
    """vmap warns of each operator without a batching rule."""
    yield


@pytest.mark.slow
@pytest.mark.parametrize("subject", LOSSES, ids=lambda subject: subject.name)
def test_loss_is_one_graph_and_the_model_can_be_copied(subject):
    found = {title: harness.outcome(title, subject) for title in ("fullgraph", "copies", "fake")}
    assert found == dict.fromkeys(found, harness.WORKS)


@pytest.mark.slow
@pytest.mark.parametrize("subject", OTHERS, ids=lambda subject: subject.name)
def test_likelihood_and_network(subject):
    found = {title: harness.outcome(title, subject) for title in QUICK}
    assert {title: cell for title, cell in found.items() if cell != harness.WORKS} == {}
    assert "torch.export.export makes an fx graph" in harness.outcome("fx", subject)


def _batch(name):
    if name in ("iaf", "maf", "spline_flow"):
        return torch.randn(4, 3, dtype=torch.double)
    return torch.randint(4, (4, 1, 8) if name == "wavenet" else (4, 1, 4, 4)).double() * 2 / 3 - 1


def _gradients_of_two(rank, store):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_warn_always(True)
    warnings.simplefilter("error")
    for name in MODELS:
        torch.manual_seed(0)
        # The energy model's processes exchange their samples in training.
        model = build(name, training=name != "energy").double()
        x = _batch(name)
        parameters, averaged = list(model.parameters()), []
        for part in (x[:2], x[2:]):
            torch.manual_seed(1)
            averaged.append(torch.autograd.grad(model.loss(part), parameters, materialize_grads=True))
        wrapper = torch.nn.parallel.DistributedDataParallel(Objective(model), find_unused_parameters=True)
        torch.manual_seed(1)
        wrapper(x[2 * rank : 2 * rank + 2]).backward()
        for p, a, b in zip(parameters, *averaged, strict=True):
            torch.testing.assert_close(p.grad if p.grad is not None else 0 * p, (a + b) / 2)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_objective_averages_gradients_of_two_processes(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_gradients_of_two, (f"{folder}/store",), 2)


def test_accelerated_steps_are_one_graph_with_the_same_results():
    diffusers = pytest.importorskip("diffusers")
    from gmfast.integrations.diffusers import accelerate

    for name in ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"):
        torch._dynamo.reset()
        results = []
        for full in (True, False):
            scheduler = accelerate(getattr(diffusers, name)())
            scheduler.set_timesteps(3)
            x = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)

            def step(m, t, x, scheduler=scheduler):
                return scheduler.step(m, t, x, return_dict=False)[0]

            if full:
                step = torch.compile(step, backend="eager", fullgraph=True)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(0)
            for t in scheduler.timesteps:
                x = step(x.sin(), t, x)
            results.append(x)
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    keyed = accelerate(diffusers.DPMSolverMultistepScheduler(), noise="keyed", seed=0)
    keyed.set_timesteps(3)
    with pytest.raises(Exception, match="noise: expected 'generator' under torch"):
        torch.compile(lambda x: keyed.step(x, 1, x)[0], backend="eager", fullgraph=True)(
            torch.ones(1, 1, 2, 2)
        )


def test_sampling_loops_stay_in_python_and_say_so():
    def draw():
        return gmfast.diffusion.sample(lambda x, t: x / 2, (1, 2), steps=2, seed=0)

    torch._dynamo.reset()
    assert torch.equal(torch.compile(draw, backend="eager")(), draw())
    torch._dynamo.reset()
    with pytest.raises(Exception, match="as its loop is Python; compile the denoiser"):
        torch.compile(draw, backend="eager", fullgraph=True)()


def test_onnx_takes_plain_pytorch():
    pytest.importorskip("onnxscript")
    from transforms.models import Call

    module, x = Call(build("pixelcnn").float(), "log_prob"), torch.zeros(2, 1, 4, 4)
    with gmfast.plain_pytorch():
        program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    assert torch.allclose(torch.as_tensor(program.call_reference({"x": x})[0]), module(x), atol=1e-4)
