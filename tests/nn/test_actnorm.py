import copy
import math
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nn.transform_contracts import Contracts

from gmfast.nn import ActNorm, Flow, Inverse


class TestActNorm(Contracts):
    shape = (5, 3)

    def build(self):
        return ActNorm(5)


def data(*shape, dtype=torch.float32):
    """Channels with means and deviations of their own."""
    channels = torch.arange(1, shape[1] + 1, dtype=torch.float64).view(1, -1, *[1] * (len(shape) - 2))
    return (torch.randn(shape, dtype=torch.float64) * channels + 10 * channels).to(dtype)


def moments(y):
    y = y.detach().double().transpose(0, 1).flatten(1)
    return y.mean(1), y.var(1, unbiased=False)


def assert_normal(y, atol):
    mean, variance = moments(y)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=atol)
    torch.testing.assert_close(variance, torch.ones_like(mean), rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(64, 3), (8, 3, 5), (8, 3, 4, 5)])
def test_first_batch(shape):
    layer, x = ActNorm(3), data(*shape)
    y, _ = layer(x)
    assert_normal(y, 1e-5)
    assert layer.initialized and layer.shift.requires_grad and layer.shift.grad_fn is None
    again, _ = layer(x + 1)
    torch.testing.assert_close(again, y + layer.log_scale.exp().view(-1, *[1] * (len(shape) - 2)))


def test_first_batch_in_the_other_direction():
    """As in a flow that is trained from noise to data; drawing samples sets nothing."""
    z = data(64, 3)
    layer = ActNorm(3)
    with torch.no_grad():
        assert torch.equal(layer.inverse(z)[0], z) and not layer.initialized
    assert_normal(layer.inverse(z)[0], 1e-5)
    outside = Inverse(ActNorm(3))
    assert_normal(outside(z)[0], 1e-5)
    assert outside.transform.initialized


def test_sampling_before_training():
    flow = Flow((3,), [ActNorm(3)])
    assert flow.sample(4, seed=0).shape == (4, 3) and not flow.transform[0].initialized
    flow.eval()
    x = data(16, 3)
    assert torch.equal(flow(x)[0], x) and not flow.transform[0].initialized


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_channels_that_do_not_vary(dtype, value):
    x = data(32, 3, dtype=dtype)
    x[:, 1] = value
    layer = ActNorm(3)
    y, log_det = layer(x.float() if dtype in (torch.bfloat16, torch.float16) else x)
    assert y.isfinite().all() and log_det.isfinite().all()
    assert layer.log_scale[1] == 0
    torch.testing.assert_close(layer.shift[1].double(), -x[0, 1].double())
    assert y[:, 1].abs().max() <= 1e-3


def test_scales_are_bounded():
    x = data(32, 3)
    x[:, 1] = torch.randn(32) * 1e-20
    layer = ActNorm(3)
    y, _ = layer(x)
    assert y.isfinite().all() and layer.log_scale.max() <= math.log(1e6) + 1e-5
    one = ActNorm(3)
    assert torch.equal(one(x[:1])[0], torch.zeros(1, 3))  # one sample varies nowhere


def test_batches_that_say_nothing():
    layer = ActNorm(3)
    layer(torch.randn(0, 3))
    assert not layer.initialized
    with pytest.raises(ValueError, match="x: expected finite numbers in the batch that initialises"):
        layer(torch.tensor([[1.0, 2.0, math.nan], [0.0, 1.0, 2.0]]))
    assert not layer.initialized and not layer.shift.any()
    assert_normal(layer(data(16, 3))[0], 1e-5)


def test_initialize():
    layer, x = ActNorm(3), data(16, 3)
    layer.initialize(data(16, 3) * 7)
    layer.initialize(x)
    assert_normal(layer.eval()(x)[0], 1e-5)
    layer.initialize(x, inverse=True)
    assert_normal(layer.inverse(x)[0], 1e-5)


@pytest.mark.parametrize("assign", [False, True])
def test_a_loaded_state_is_kept(assign):
    trained, x = ActNorm(3), data(16, 3)
    trained(x)
    fresh = ActNorm(3)
    fresh.load_state_dict(copy.deepcopy(trained.state_dict()), assign=assign)
    fresh(data(16, 3) * 5)
    assert torch.equal(fresh.shift, trained.shift) and torch.equal(fresh.log_scale, trained.log_scale)
    # A state from before the first batch is one that waits for it.
    fresh.load_state_dict(ActNorm(3).state_dict())
    assert_normal(fresh(x)[0], 1e-5)


def test_copies_know_whether_they_are_initialised():
    layer, x = ActNorm(3), data(16, 3)
    early = copy.deepcopy(layer)
    layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other(x * 3 + 1)
        assert torch.equal(other.shift, layer.shift)
    assert_normal(early(x * 3)[0], 1e-5)


def test_set_by_hand():
    layer = ActNorm(3)
    layer.initialized.fill_(True)
    x = data(16, 3)
    assert torch.equal(layer(x)[0], x)


def test_first_batch_under_torch_compile():
    layer, x = ActNorm(3), data(16, 3)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_normal(compiled(x)[0], 1e-5)
    assert layer.initialized
    expected = ActNorm(3)
    expected(x)
    torch.testing.assert_close(compiled(x + 1)[0], expected(x + 1)[0])


def test_set_by_hand_is_kept_under_torch_compile():
    torch.manual_seed(0)
    layer = ActNorm(3)
    with torch.no_grad():
        layer.shift.fill_(7)
    layer.initialized.fill_(True)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(8, 3)
    torch.testing.assert_close(compiled(x)[0], x + 7)
    assert layer.shift.tolist() == [7, 7, 7]


def test_errors():
    with pytest.raises(ValueError, match="channels: expected at least 1, got 0"):
        ActNorm(0)
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        ActNorm(1)([[1.0]])
    with pytest.raises(ValueError, match=r"x: expected 3 channels in dimension 1, got shape \(2, 4\)"):
        ActNorm(3)(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"z: expected 3 channels in dimension 1, got shape \(3,\)"):
        ActNorm(3).inverse(torch.randn(3))


def _replica(rank, store, whole, results):
    """One of two processes, with a part of the batch; the parts differ in size."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        x = whole[:5] if rank == 0 else whole[5:]
        flow = torch.nn.parallel.DistributedDataParallel(Flow((3, 4), [ActNorm(3), ActNorm(3)]))
        z, log_det = flow(x)
        (z.square().sum() - log_det.sum()).backward()
        first = flow.module.transform[0]
        late = ActNorm(3)
        if rank == 0:  # a state loaded by one process reaches the others by DistributedDataParallel
            late.load_state_dict(first.state_dict())
        late = torch.nn.parallel.DistributedDataParallel(late)
        late(x * 100)
        torch.save(
            {
                "z": z.detach(),
                "parameters": [p.detach() for p in flow.parameters()],
                "gradients": [p.grad for p in flow.parameters()],
                "late": late.module.state_dict(),
            },
            f"{results}/{rank}",
        )
    finally:
        dist.destroy_process_group()


def test_data_parallel_processes_agree(tmp_path):
    whole = data(12, 3, 4)
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_replica, args=(rank, tmp_path / "store", whole, tmp_path))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    one, other = (torch.load(tmp_path / str(rank)) for rank in range(2))
    alone = ActNorm(3)
    alone(whole)
    for i in range(4):
        assert torch.equal(one["parameters"][i], other["parameters"][i])
        assert torch.equal(one["gradients"][i], other["gradients"][i])
    torch.testing.assert_close(one["parameters"][0], alone.shift.detach())
    torch.testing.assert_close(one["parameters"][1], alone.log_scale.detach())
    assert_normal(torch.cat([one["z"], other["z"]]), 1e-5)
    for name, value in one["late"].items():
        assert torch.equal(value, other["late"][name])
    torch.testing.assert_close(one["late"]["shift"], one["parameters"][0])
