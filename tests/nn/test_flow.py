import math

import pytest
import torch
from nn.transform_contracts import Conditioner, NoSynchronisation
from torch import nn
from torch.distributions import Independent, Normal, Uniform

from gmfast._seed import first_sample
from gmfast.nn import (
    ActNorm,
    AffineCoupling,
    Flow,
    Inverse,
    InvertibleConv1x1,
    MaskedAffineAutoregressive,
    MaskedSplineAutoregressive,
    Permute,
    Sequential,
    SplineCoupling,
    Squeeze2d,
    Transform,
)


def small(**options):
    return Flow(
        (4,),
        [
            ActNorm(4),
            InvertibleConv1x1(4),
            AffineCoupling(Conditioner(2, 4, **options), scale_map="tanh"),
            Permute.reverse(4),
            SplineCoupling(Conditioner(2, 22, **options), num_bins=4),
        ],
    )


def test_log_prob():
    flow, x = small().double(), torch.randn(5, 4, dtype=torch.float64)
    z, log_det = flow(x)
    expected = Normal(0.0, 1.0).log_prob(z).sum(1) + log_det
    torch.testing.assert_close(flow.log_prob(x), expected)
    back, log_det_back = flow.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)


def test_density_integrates_to_one():
    torch.manual_seed(0)
    flow = Flow((2,), [AffineCoupling(Conditioner(1, 2), scale_map="tanh"), InvertibleConv1x1(2)]).double()
    axis = torch.linspace(-12, 12, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(total.item(), 1.0, rtol=0, atol=1e-4)


def test_base_of_one_s_own():
    base = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
    scale = AffineCoupling(lambda x: x.new_full((len(x), 4), math.log(2.0)), transformed=2)
    flow = Flow(base, Inverse(scale))
    x = flow.sample(100, seed=3)
    assert x.shape == (100, 2) and torch.equal(x, flow.sample(100, seed=3))
    with first_sample(40):
        assert torch.equal(flow.sample(60, seed=3), x[40:])
    torch.testing.assert_close(flow.log_prob(x), torch.full((100,), -2 * math.log(2.0)))
    with pytest.raises(ValueError, match=r"temperature: expected 1 .*, got 0\.5"):
        flow.sample(1, temperature=0.5)


def test_sample():
    flow = small().eval()
    x = flow.sample(6, seed=1)
    assert x.shape == (6, 4) and not x.requires_grad
    torch.testing.assert_close(flow.sample(3, seed=1), x[:3])
    assert not torch.allclose(flow.sample(6, seed=2), x) and flow.sample(0).shape == (0, 4)
    z = flow(x)[0]
    torch.testing.assert_close(flow(flow.sample(6, seed=1, temperature=0.5))[0], z / 2, rtol=1e-3, atol=1e-4)


def test_transforms_say_the_dtype_of_samples():
    flow = Flow((4,), AffineCoupling(Conditioner(2, 4)).double())
    assert flow.sample(3, seed=0).dtype == torch.float64
    assert flow.float().sample(3, seed=0).dtype == torch.float32


def test_contexts():
    flow, context = small(context=3).double(), torch.randn(5, 3, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(flow.inverse(flow(x, context)[0], context)[0], x)
    assert not torch.allclose(flow.log_prob(x, context), flow.log_prob(x, -context))
    assert flow.sample(5, seed=0, context=context).dtype == torch.float64


def test_one_context_for_all():
    """One row stands for all samples, in either direction, also for a transform that takes it literally."""
    torch.manual_seed(0)
    c, x = torch.randn(5, 3), torch.randn(5, 4)
    for flow in (small(context=3).eval(), Flow((4,), MaskedAffineAutoregressive(4, num_context=3))):
        rows = c[:1].repeat(5, 1)
        assert torch.equal(flow.log_prob(x, c[:1]), flow.log_prob(x, rows))
        assert torch.equal(flow.sample(5, seed=0, context=c[:1]), flow.sample(5, seed=0, context=rows))
        assert flow.sample(0, context=c[:1]).shape == (0, 4)
        with pytest.raises(ValueError, match="context: expected 5 rows, or one, got 3"):
            flow.log_prob(x, c[:3])
        state = torch.get_rng_state()
        with pytest.raises(ValueError, match="context: expected 5 rows, or one, got 3"):
            flow.sample(5, context=c[:3])
        assert torch.equal(torch.get_rng_state(), state)
        with pytest.raises(ValueError, match="context: expected 5 rows, or one, got a scalar"):
            flow.sample(5, context=torch.tensor(1.0))


def test_repr():
    assert "base=(4,)" in repr(small())
    assert "base=Normal" in repr(Flow(Normal(torch.tensor(0.0), 1.0), []))


def test_no_synchronisation():
    flow, x = small(), torch.randn(5, 4)
    flow(x)
    with NoSynchronisation():
        flow.log_prob(x).sum().backward()
        seed = torch.zeros((), dtype=torch.int64)
        flow.sample(3, seed=seed)


def test_torch_compile():
    """Log-density and a whole step of training, each one graph."""
    torch.manual_seed(0)
    flow, x = small(), torch.randn(64, 4)
    flow(x)
    torch.compiler.reset()
    compiled = torch.compile(flow.log_prob, fullgraph=True)
    torch.testing.assert_close(compiled(x), flow.log_prob(x), rtol=1e-4, atol=1e-4)
    expected = torch.autograd.grad(-flow.log_prob(x).mean(), list(flow.parameters()))
    actual = torch.autograd.grad(-compiled(x).mean(), list(flow.parameters()))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)


def banana(n):
    """x1 = 2·z1, x2 = z2 + x1²/2: entropy log(2) + log(2πe)."""
    z = torch.randn(n, 2)
    return torch.stack([2 * z[:, 0], z[:, 1] + 0.5 * (2 * z[:, 0]) ** 2], 1)


def two_ridges(n):
    """A mixture of two narrow normals, far from each other: entropy log(2) + log(2πe·0.1)."""
    z = torch.randn(n, 2) * torch.tensor([1.0, 0.1])
    return z + torch.tensor([0.0, 2.0]) * (torch.randint(2, (n, 1)) * 2 - 1)


@pytest.mark.parametrize(
    ("density", "entropy", "bound"),
    [
        (banana, math.log(2) + math.log(2 * math.pi * math.e), 0.05),
        (two_ridges, math.log(2) + math.log(2 * math.pi * math.e * 0.1), 0.1),
    ],
)
@pytest.mark.parametrize("reversible", [False, True], ids=["stored", "reversible"])
def test_reaches_the_entropy_of_a_known_density(density, entropy, bound, reversible):
    """The mean of -log p over fresh data is the entropy plus the divergence, within a bound of nats."""
    torch.manual_seed(0)

    def coupling():
        net = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 23))
        return SplineCoupling(net, num_bins=8, bound=4.0)

    steps = [s for _ in range(3) for s in (coupling(), Permute.reverse(2))]
    flow = Flow((2,), Sequential(ActNorm(2), *steps, reversible=reversible))
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        (-flow.log_prob(density(256)).mean()).backward()
        optimizer.step()
        schedule.step()
    flow.eval()
    with torch.no_grad():
        x = density(20000)
        reached = -flow.log_prob(x).mean().item()
        drawn = flow.sample(20000, seed=0)
    assert entropy - 0.03 < reached < entropy + bound, reached - entropy
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0, atol=0.15)


def test_noise_of_another_shape_than_the_data():
    flow = Flow((12, 2, 2), [Squeeze2d()])
    x = flow.sample(5, seed=0)
    assert x.shape == (5, 3, 4, 4)
    torch.testing.assert_close(flow.log_prob(x), Normal(0, 1).log_prob(x).flatten(1).sum(1))


class NoInverse(Transform):
    pass


def test_errors():
    with pytest.raises(ValueError, match=r"x: expected .* noise of shape \(B, 3, 4, 4\), .*12, 2, 2"):
        Flow((3, 4, 4), Squeeze2d()).log_prob(torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match="n: expected a number of samples, got -1"):
        small().sample(-1)
    with pytest.raises(ValueError, match=r"temperature: expected a number in .*, got -1"):
        small().sample(1, temperature=-1)
    with pytest.raises(ValueError, match="base: expected no batch_shape"):
        Flow(Normal(torch.zeros(2), torch.ones(2)), [])
    with pytest.raises(TypeError, match="base: expected a shape or a Distribution, got int"):
        Flow(4, [])
    for call, name in ((small().log_prob, "x"), (small().inverse, "z")):
        with pytest.raises(TypeError, match=f"{name}: expected a tensor, got ndarray"):
            call(torch.randn(3, 4).numpy())
    with pytest.raises(NotImplementedError, match="NoInverse has no inverse"):
        Flow((2,), [NoInverse()]).sample(1)


def test_forward_mode():
    """Directional derivatives through transforms in both directions, and of the density."""
    torch.manual_seed(0)
    transforms = [
        *small().double().transform,
        MaskedAffineAutoregressive(4, (8,)).double(),
        MaskedSplineAutoregressive(4, (8,), num_bins=4).double(),
    ]
    flow = Flow((4,), transforms).double().eval()
    x, v = torch.randn(2, 3, 4, dtype=torch.float64)
    for call in (flow.log_prob, lambda x: flow(x)[0], lambda z: flow.inverse(z)[0]):
        _, actual = torch.func.jvp(call, (x,), (v,))
        jacobian = torch.autograd.functional.jacobian(call, x)
        expected = torch.tensordot(jacobian, v, 2)
        torch.testing.assert_close(actual, expected)
