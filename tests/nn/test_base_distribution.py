import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from nn.transform_contracts import Conditioner
from torch import distributions as D
from torch import nn

from gmfast.nn import (
    AffineCoupling,
    BoxUniform,
    ConditionalBase,
    ConditionalDiagonalNormal,
    DiagonalNormal,
    Flow,
    GaussianMixture,
    StandardNormal,
)


def parameter(*values):
    return nn.Parameter(torch.tensor(values))


def mixture():
    weights = D.Categorical(logits=parameter(0.3, -0.2))
    means = nn.Parameter(torch.tensor([[0.0] * 4, [1.0] * 4]))
    scales = nn.Parameter(torch.full((2, 4), 0.1)).exp()
    return D.MixtureSameFamily(weights, D.Independent(D.Normal(means, scales), 1))


def tailed():
    return D.Independent(D.StudentT(parameter(3.0, 4.0, 5.0, 6.0), 0.5, F.softplus(parameter(0.0))), 1)


def transformed():
    normal = D.Independent(D.Normal(torch.zeros(4), torch.ones(4)), 1)
    affine = D.AffineTransform(parameter(1.0, 2.0, 3.0, 4.0), torch.full((4,), 2.0), event_dim=1)
    return D.TransformedDistribution(normal, [affine.inv])


#: How users make one, and the names of its parameters.
GIVEN = {
    "constant": (lambda: D.Independent(D.Normal(torch.zeros(4), torch.ones(4)), 1), set()),
    "leaf": (lambda: D.Independent(D.Laplace(parameter(1.0, 2.0, 3.0, 4.0), 2.0), 1), {"loc"}),
    "exp": (
        lambda: D.Independent(D.Normal(torch.zeros(4), nn.Parameter(torch.zeros(4)).exp()), 1),
        {"raw_scale"},
    ),
    "matrix": (
        lambda: D.MultivariateNormal(torch.zeros(4), nn.Parameter(2 * torch.eye(4))),
        {"covariance_matrix"},
    ),
    "mixture": (mixture, {"raw_logits", "loc", "raw_scale"}),
    "computed inside": (tailed, {"df", "raw_scale"}),
    "transformed": (transformed, {"loc"}),
}


def flow(base):
    torch.manual_seed(0)
    return Flow(base, AffineCoupling(Conditioner(2, 4), scale_map="tanh"))


@pytest.mark.parametrize("name", GIVEN)
def test_a_distribution_is_part_of_the_flow(name):
    make, names = GIVEN[name]
    given = make()
    module = flow(given)
    assert {n for n, _ in module.base.named_parameters()} == names
    z = given.sample((3,)).detach()
    torch.testing.assert_close(module.base.log_prob(z), given.log_prob(z))

    optimizer = torch.optim.SGD(module.base.parameters() if names else module.parameters(), 0.05)
    x = torch.randn(5, 4)
    before = module.log_prob(x).mean().item()
    for _ in range(3):
        optimizer.zero_grad()
        (-module.log_prob(x).mean()).backward()
        optimizer.step()
    after = module.log_prob(x)
    assert after.mean().item() > before

    drawn = module.sample(4, seed=1)
    loaded = flow(make())
    loaded.load_state_dict(module.state_dict())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        torch.testing.assert_close(other.log_prob(x), after)
        assert torch.equal(other.sample(4, seed=1), drawn)
    for dtype in (torch.float64, torch.bfloat16):
        moved = copy.deepcopy(module).to(dtype)
        assert moved.sample(2).dtype == dtype
        result = moved.log_prob(x.to(dtype)).double()
        torch.testing.assert_close(result, after.double(), rtol=0.05, atol=0.3)
    assert copy.deepcopy(module).to("meta")(x.to("meta"))[0].is_meta
    named = {n: p.detach() + 0.1 for n, p in module.named_parameters()}
    replaced = torch.func.functional_call(Scored(module), {f"flow.{n}": p for n, p in named.items()}, (x,))
    module.load_state_dict(named, strict=False)
    torch.testing.assert_close(replaced, module.log_prob(x))


class Scored(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow.log_prob(x)


def test_parameters_are_the_user_s_own():
    loc, log_scale = nn.Parameter(torch.zeros(4)), torch.zeros(4, requires_grad=True)
    module = flow(D.Independent(D.Normal(loc, log_scale.exp()), 1))
    assert module.base.loc is loc and module.base.raw_scale is log_scale
    module.log_prob(torch.randn(3, 4)).sum().backward()
    assert loc.grad is not None and log_scale.grad is not None


def test_a_distribution_that_a_network_computed_keeps_its_graph():
    net, seen = nn.Linear(3, 4), torch.randn(3)
    module = flow(D.Independent(D.Normal(net(seen), 1.0), 1))
    module.log_prob(torch.randn(2, 4)).sum().backward()
    assert net.weight.grad.abs().sum() > 0
    assert not copy.deepcopy(module).base.loc.requires_grad


def test_torch_compile():
    for base in (mixture(), GaussianMixture((4,), 3), BoxUniform(-9.0, 9.0, (4,))):
        module, x = flow(base), torch.randn(3, 4)
        torch.compiler.reset()
        compiled = torch.compile(module.log_prob, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), module.log_prob(x))


class Heads(nn.Module):
    """A distribution of the context."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 8)

    def forward(self, context):
        mean, log_std = self.net(context).chunk(2, -1)
        return D.Independent(D.Normal(mean, log_std.exp()), 1)


def test_conditional_bases():
    """The module that returns a distribution, and the one of moments, on the same weights."""
    context, x = torch.randn(5, 3), torch.randn(5, 4)
    heads = Heads()
    module = flow(heads)
    assert isinstance(module.base, ConditionalBase)
    z, log_det = (t.detach() for t in module(x))
    expected = heads(context).log_prob(z) + log_det
    conditional = flow(ConditionalDiagonalNormal((4,), heads.net))
    mixed = flow(GaussianMixture((4,), 1, lambda c: F.pad(heads.net(c), (1, 0), value=7.0)))
    for each in (module, conditional, mixed):
        actual = each.base_log_prob(z, context) + log_det
        torch.testing.assert_close(actual, expected)
        assert each.base.sample(5, context, seed=0).shape == (5, 4)
        each.base.log_prob(z, context).sum().backward()
    one = context[:1]
    expected = heads(one).log_prob(z)
    for each in (module, conditional, mixed):
        torch.testing.assert_close(each.base_log_prob(z, one), expected)
    mean, log_std = heads.net(context).chunk(2, 1)
    noise = StandardNormal((4,)).sample(5, seed=3)
    torch.testing.assert_close(conditional.base.sample(5, context, seed=3), mean + log_std.exp() * noise)
    with pytest.raises(ValueError, match="context: expected one, as the base is a function of it, got None"):
        conditional.base.log_prob(z)
    with pytest.raises(TypeError, match=r"base: expected a shape, .* got one that returns Tensor"):
        flow(nn.Identity()).base.log_prob(z, context)
    with pytest.raises(ValueError, match=r"net: expected a result of shape \(B, 8\), got \(5, 7\)"):
        ConditionalDiagonalNormal((4,), nn.Linear(3, 7)).log_prob(z, context)


def test_log_prob_of_modules():
    torch.manual_seed(1)
    z = torch.randn(6, 2, 3, dtype=torch.float64)
    normal = DiagonalNormal((2, 3), dtype=torch.float64)
    for p in normal.parameters():
        p.data.normal_()
    expected = D.Normal(normal.mean, normal.log_std.exp()).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(normal.log_prob(z), expected)
    mixed = GaussianMixture((2, 3), 4, dtype=torch.float64)
    for p in mixed.parameters():
        p.data.normal_()
    components = D.Independent(D.Normal(mixed.mean, mixed.log_std.exp()), 2)
    expected = D.MixtureSameFamily(D.Categorical(logits=mixed.logits), components).log_prob(z)
    torch.testing.assert_close(mixed.log_prob(z), expected)
    box = BoxUniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0]))
    inside = torch.tensor([[-1.0, 4.0], [0.0, 1.0], [1.1, 1.0]])
    expected = torch.tensor([-math.log(8), -math.log(8), -math.inf])
    torch.testing.assert_close(box.log_prob(inside), expected)
    with pytest.raises(ValueError, match="low: expected numbers below high, got others"):
        BoxUniform(1.0, 0.0, (2,))


def test_samples_of_modules():
    """They have the density's moments; sample i does not depend on n."""
    mixed = GaussianMixture((2,), 2)
    with torch.no_grad():
        mixed.logits.copy_(torch.tensor([0.2, 0.8]).log())
        mixed.mean.copy_(torch.tensor([[-4.0, 0.0], [3.0, 1.0]]))
        mixed.log_std.fill_(math.log(0.5))
    x = mixed.sample(20000, seed=0)
    first = x[:, 0] < 0
    assert abs(first.double().mean() - 0.2) < 0.01
    torch.testing.assert_close(x[~first].mean(0), mixed.mean[1].detach(), rtol=0, atol=0.02)
    torch.testing.assert_close(x[first].std(0), torch.full((2,), 0.5), rtol=0, atol=0.02)
    box = BoxUniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0]))
    u = box.sample(20000, seed=0)
    assert box.log_prob(u).isfinite().all()
    torch.testing.assert_close(u.mean(0), torch.tensor([0.0, 2.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(u.var(0), torch.tensor([4.0, 16.0]) / 12, rtol=0.03, atol=0)
    for base in (mixed, box, DiagonalNormal((2,))):
        whole = base.sample(7, seed=5)
        assert torch.equal(base.sample(3, seed=5), whole[:3]) and base.sample(0).shape == (0, 2)
    assert torch.equal(mixed.sample(20000, seed=0), x)


def test_rsample_and_densities_of_samples():
    context = torch.randn(3, 2)
    bases = [
        (4,),
        DiagonalNormal((4,)),
        ConditionalDiagonalNormal((4,), nn.Linear(2, 8)),
        BoxUniform(-1.0, 1.0, (4,)),
    ]
    for base in [*bases, GIVEN["exp"][0](), GaussianMixture((4,), 2)]:
        torch.manual_seed(0)
        module = Flow(base, AffineCoupling(Conditioner(2, 4, context=2), scale_map="tanh"))
        rows = context.repeat_interleave(5, 0)
        x, log_prob = module.sample_and_log_prob(5, seed=2, context=context, per_context=True)
        assert x.shape == (3, 5, 4) and log_prob.shape == (3, 5)
        torch.testing.assert_close(x.flatten(0, 1), module.sample(15, seed=2, context=rows))
        torch.testing.assert_close(
            module.log_prob(x.flatten(0, 1), rows), log_prob.flatten(), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(module.sample(5, seed=2, context=context, per_context=True), x)
        if not module.base.has_rsample:
            assert not x.requires_grad
            with pytest.raises(NotImplementedError, match="rsample: expected a base with"):
                module.rsample(2)
            continue
        assert torch.equal(module.rsample(15, seed=2, context=rows), x.flatten(0, 1))
        again, log_prob = module.rsample_and_log_prob(15, seed=2, context=rows)
        assert again.requires_grad
        log_prob.sum().backward()
        assert all(p.grad is not None for p in module.parameters())
    with pytest.raises(ValueError, match=r"context: expected a tensor with a row .*, got NoneType"):
        module.sample(2, per_context=True)


def test_reverse_divergence_finds_a_density():
    """Gradients of `rsample_and_log_prob` are those of KL(q || p): q becomes p, a normal."""
    base = DiagonalNormal((2,))
    target = D.Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0]))
    module = Flow(base, [])
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.1 if step < 100 else 0.01
        optimizer.zero_grad()
        x, log_prob = module.rsample_and_log_prob(64, seed=step)
        (log_prob - target.log_prob(x).sum(1)).mean().backward()
        optimizer.step()
    torch.testing.assert_close(base.mean.detach(), target.loc, rtol=0, atol=0.05)
    torch.testing.assert_close(base.log_std.exp().detach(), target.scale, rtol=0.05, atol=0)
