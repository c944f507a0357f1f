"""`Sequential(…, reversible=True)`: the same training with activations recomputed from results."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nn.transform_contracts import DIRECTIONS, Conditioner, directed
from torch import nn

from gmfast.nn import (
    ActNorm,
    AffineCoupling,
    Flow,
    Inverse,
    InvertibleConv1x1,
    Permute,
    Sequential,
    Split,
    Squeeze2d,
    Transform,
)


class Net(nn.Module):
    """A convolutional conditioner with what makes recomputing hard: dropout and batch statistics."""

    def __init__(self, inputs, outputs, *, context=0, dropout=0.3, norm=True):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs + context, 8, 3, padding=1, bias=not norm),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Conv2d(8, outputs, 1),
        )

    def forward(self, x, context=None):
        if context is not None:
            image, vector = context["image"], context["vector"]
            image = nn.functional.interpolate(image, x.shape[2:])
            x = torch.cat([x, image + vector[:, :, None, None]], 1)
        return self.body(x)


def step(channels, **options):
    changed = channels // 2
    net = Net(channels - changed, 2 * changed, **options)
    return [ActNorm(channels), InvertibleConv1x1(channels), AffineCoupling(net, scale_map="sigmoid")]


def multi_scale(reversible, **options):
    """Glow's steps on two scales, a coupling with a mask and one in the other direction."""
    torch.manual_seed(1)
    board = (torch.arange(16).view(4, 4) % 2).float()
    inner = Sequential(
        *step(6, **options),
        Inverse(AffineCoupling(Net(3, 6, **options), scale_map="tanh")),
        AffineCoupling(Net(6, 12, **options), scale_map="tanh", mask=board),
        reversible=reversible,  # inside another it adds nothing
    )
    steps = [s for _ in range(3) for s in step(12, **options)]
    return Sequential(
        Squeeze2d(), *steps, Split(inner), Permute.random(12), Inverse(Squeeze2d()), reversible=reversible
    )


def results(flow, inverse=False, dtype=torch.float64, context=False, batches=2):
    """Results and gradients of the last of some batches, buffers, and what the generator draws next."""
    flow = flow.to(dtype)
    for seed in range(batches):
        torch.manual_seed(seed)
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64).to(dtype).requires_grad_()
        given = None
        if context:
            given = {"image": torch.randn(4, 2, 8, 8), "vector": torch.randn(4, 2), "label": torch.arange(4)}
            given["image"], given["vector"] = (
                given[name].to(dtype).requires_grad_() for name in ("image", "vector")
            )
        y, log_det = directed(flow, inverse)(x, given)
        flow.zero_grad()
        ((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + (log_det * log_det).sum()).backward()
    grads = [x.grad, *(given[name].grad for name in ("image", "vector") if context)]
    grads += [p.grad for p in flow.parameters()]
    return [y, log_det], grads, [*(b.double() for b in flow.buffers()), torch.rand(2)]


def assert_same(actual, expected, tolerance):
    """Relative to the largest number of each tensor."""
    for kind_a, kind_e in zip(actual, expected, strict=True):
        largest = max(e.abs().max() for e in kind_e)
        for a, e in zip(kind_a, kind_e, strict=True):
            a, e = a.detach().double(), e.detach().double()
            # Some gradients are zero but for rounding: those of a bias before a normalization.
            scale = max(e.abs().max(), 1e-3 * largest)
            assert (a - e).abs().max() <= tolerance * scale, ((a - e).abs().max() / scale, e.shape)


@DIRECTIONS
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-3)], ids=str)
def test_gradients(inverse, context, dtype, tolerance):
    """With dropout, batch statistics, first batches and contexts."""
    options = {"inverse": inverse, "dtype": dtype, "context": context}
    channels = {"context": 2} if context else {}
    expected = results(multi_scale(False, **channels), **options)
    actual = results(multi_scale(True, **channels), **options)
    assert_same(actual, expected, tolerance)
    assert torch.equal(actual[2][-1], expected[2][-1]), "other random numbers follow"


def test_shared_and_frozen_parameters():
    def build(reversible):
        torch.manual_seed(2)
        net, conv = Net(3, 6), InvertibleConv1x1(6)
        steps = [AffineCoupling(net, scale_map="tanh"), conv, Permute.reverse(6)] * 2
        flow = Sequential(*steps, *step(6))
        conv.lower.requires_grad_(False)
        whole = Sequential(InvertibleConv1x1(3), Squeeze2d(), Split(flow, kept=6), reversible=reversible)
        return whole.double()

    outcomes = []
    for flow in (build(False), build(True)):
        torch.manual_seed(0)
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64)  # asks for no gradient
        y, log_det = flow(x)
        (y.square().sum() - log_det.sum()).backward()
        outcomes.append([p.grad for p in flow.parameters()])
    assert sum(g is None for g in outcomes[0]) == 1
    for a, e in zip(*outcomes, strict=True):
        assert (a is None) == (e is None)
        if e is not None:
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


def test_subclasses_that_override_a_direction():
    """What a class knows of its parts or its conditioner does not hold for a subclass that changes them."""

    class Doubled(AffineCoupling):
        def params(self, x, context=None):
            return 2 * super().params(x, context)

    class Shifted(Sequential):
        def forward(self, x, context=None):
            z, log_det = super().forward(x, context)
            return z + 1, log_det

        def inverse(self, z, context=None):
            return super().inverse(z - 1, context)

    grads = []
    for reversible in (False, True):
        torch.manual_seed(2)
        steps = [Doubled(Net(2, 4, norm=False), scale_map="tanh"), Shifted(*step(4, norm=False))]
        flow = Sequential(*steps, Inverse(Shifted(*step(4, norm=False))), reversible=reversible).double()
        x = torch.randn(4, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        y, log_det = flow(x)
        (y.square().sum() - log_det.sum()).backward()
        grads.append([x.grad, *(p.grad for p in flow.parameters())])
    for actual, expected in zip(*grads, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_autocast():
    """Conditioners in bfloat16, the flow's own numbers in float32; weights cast once do not lose their
    gradient, inside the flow or after it."""

    def run(reversible):
        torch.manual_seed(2)
        flow = Sequential(*step(4, norm=False), *step(4, norm=False), reversible=reversible)
        head = flow[2].conditioner.body[4]
        x = torch.randn(8, 4, 4, 4)
        with torch.autocast("cpu", torch.bfloat16):
            y, log_det = flow(x)
            more = head(torch.ones(1, 8, 4, 4))
        (y.square().sum() - log_det.sum() + more.sum()).backward()
        return y, [p.grad for p in flow.parameters()]

    (y, expected), (other, actual) = run(False), run(True)
    assert y.dtype == torch.float32 and torch.equal(y, other)
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= 0.05 * e.abs().max()


def saved_bytes(flow, x):
    """Most bytes that autograd holds on to for one pass, parameters aside."""
    parameters, seen = {p.untyped_storage().data_ptr() for p in flow.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    flow(x)  # the first batch
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y, log_det = flow(x)
    return sum(seen.values()), (y, log_det)


@pytest.mark.parametrize("nested", [False, True])
def test_memory_does_not_grow_with_depth(nested):
    def build(depth, reversible):
        steps = [s for _ in range(depth) for s in step(4, norm=False, dropout=0.0)]
        return Sequential(Split(Sequential(*steps)) if nested else Sequential(*steps), reversible=reversible)

    x = torch.randn(2, 8 if nested else 4, 8, 8)
    kept = {
        (depth, reversible): saved_bytes(build(depth, reversible), x)[0]
        for depth in (2, 8)
        for reversible in (False, True)
    }
    assert kept[8, False] > 3 * kept[2, False] > 6 * x.nbytes
    assert kept[8, True] == kept[2, True] <= 2 * x.nbytes


def test_backward_holds_one_transform():
    """The peak inside backward is that of one transform, too."""

    class Counting(Transform):
        alive = most = 0

        def forward(self, x, context=None):
            return Tracked.apply(x), x.new_zeros(len(x))

        def inverse(self, z, context=None):
            return z / 2, z.new_zeros(len(z))

    class Tracked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if torch.is_grad_enabled() or ctx.needs_input_grad[0]:
                ctx.token = Token()
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    class Token:
        def __init__(self):
            Counting.alive += 1
            Counting.most = max(Counting.most, Counting.alive)

        def __del__(self):
            Counting.alive -= 1

    x = torch.randn(2, 4, requires_grad=True)
    for reversible, most in ((False, 6), (True, 1)):
        Counting.most = 0
        y, _ = Sequential(*[Counting() for _ in range(6)], reversible=reversible)(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert Counting.most == most and torch.equal(grad, torch.full_like(x, 64.0))
        del y, grad


def test_drift_over_depth():
    """32 steps of Glow in float32: what backward recomputes last is the input, to 1e-3 of its size."""
    torch.manual_seed(0)
    flow = Sequential(*[s for _ in range(32) for s in step(4, norm=False, dropout=0.0)], reversible=True)
    x = torch.randn(4, 4, 8, 8)
    flow(x)
    seen = []
    flow[0].register_forward_hook(lambda module, inputs, result: seen.append(inputs[0].detach()))
    y, log_det = flow(x)
    (y.square().sum() - log_det.sum()).backward()
    first, again = seen
    assert torch.equal(first, x) and (again - x).abs().max() <= 1e-3 * x.abs().max()


def test_conditioner_runs_twice_for_a_step():
    """Once in forward and once in backward: it sees what its coupling does not change."""
    calls = []
    net = Net(2, 4)
    net.register_forward_hook(lambda *_: calls.append(1))
    y, _ = Sequential(AffineCoupling(net), reversible=True)(torch.randn(2, 4, 3, 3))
    y.sum().backward()
    assert len(calls) == 2


def test_without_gradients():
    flow = Sequential(*step(4, dropout=0.0), reversible=True).eval()
    x = torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        y, _ = flow(x)
    assert not y.requires_grad
    with torch.inference_mode():
        assert torch.equal(flow(x)[0], y)
    assert not flow.requires_grad_(False)(x)[0].requires_grad


def test_switches_without_a_trace():
    """The same state dict, and an attribute that may change at any time."""
    flow = multi_scale(False)
    assert multi_scale(True).load_state_dict(flow.state_dict()) == ([], [])
    flow.reversible = True
    assert "_Run" in type(flow(torch.randn(2, 3, 8, 8))[0].grad_fn).__name__
    assert copy.deepcopy(flow).reversible


def test_a_whole_flow():
    x = torch.randn(16, 4, dtype=torch.float64)
    grads = []
    for reversible in (False, True):
        torch.manual_seed(0)
        steps = [
            AffineCoupling(Conditioner(2, 4), scale_map="tanh"),
            InvertibleConv1x1(4),
            AffineCoupling(Conditioner(2, 4), scale_map="tanh"),
        ]
        flow = Flow((4,), Sequential(steps, reversible=reversible)).double()
        grads.append(torch.autograd.grad(-flow.log_prob(x).mean(), list(flow.parameters())))
    for a, e in zip(*grads, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


class TestErrors:
    def test_parameters_from_elsewhere(self):
        net = nn.Linear(2, 4)
        flow = Sequential(AffineCoupling(lambda x: net(x)), reversible=True)
        x = torch.randn(3, 4, requires_grad=True)
        y, _ = flow(x)
        with pytest.raises(
            RuntimeError, match=r"reversible: expected gradients of the input, .* from elsewhere"
        ):
            y.sum().backward()
        assert net.weight.grad is None

    def test_parameters_changed_before_backward(self):
        flow = Sequential(AffineCoupling(nn.Linear(2, 4)), reversible=True)
        y, _ = flow(torch.randn(3, 4))
        with torch.no_grad():
            flow[0].conditioner.weight.add_(1)
        with pytest.raises(RuntimeError, match="reversible: expected the parameters of the forward pass"):
            y.sum().backward()

    def test_results_changed_before_backward(self):
        flow = Sequential(AffineCoupling(nn.Linear(2, 4)), reversible=True)
        y, _ = flow(torch.randn(3, 4))
        y.detach().add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    def test_second_derivatives(self):
        flow = Sequential(AffineCoupling(nn.Linear(2, 4)), reversible=True)
        x = torch.randn(3, 4, requires_grad=True)
        y, _ = flow(x)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
        # Not dropped either where the incoming gradient is a constant and there is another loss to differentiate.
        (grad,) = torch.autograd.grad(flow(x)[0].sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="reversible: expected one derivative"):
            (grad.square().sum() + flow(x)[1].sum()).backward()


def _replica(rank, store, x, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        gradients = []
        for reversible in (False, True):
            torch.manual_seed(3)
            flow = Flow((4, 3, 3), Sequential(*step(4, norm=False, dropout=0.0), reversible=reversible))
            parallel = nn.parallel.DistributedDataParallel(flow.double())
            z, log_det = parallel(x[rank::2])
            (z.square().sum() - log_det.sum()).backward()
            gradients.append([p.grad for p in flow.parameters()])
        torch.save(gradients, f"{results}/{rank}")
    finally:
        dist.destroy_process_group()


def test_data_parallel(tmp_path):
    """Hooks of DistributedDataParallel average the gradients as they do without."""
    x = torch.randn(8, 4, 3, 3, dtype=torch.float64)
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_replica, args=(rank, tmp_path / "store", x, tmp_path)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    one, other = (torch.load(tmp_path / str(rank)) for rank in range(2))
    for stored, recomputed, elsewhere in zip(one[0], one[1], other[1], strict=True):
        assert stored.abs().sum() > 0
        torch.testing.assert_close(recomputed, stored, rtol=1e-10, atol=1e-10)
        assert torch.equal(recomputed, elsewhere)
