import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution

import gmfast.functional as GF
from gmfast.distributions import DiscretizedLogisticMixture, FlowTransform
from gmfast.nn import AffineCoupling, Flow, InvertibleConv1x1, Sequential, Squeeze2d


def params_of(channels, *shape, mixtures=3, device="cpu", dtype=torch.float32):
    batch, *spatial = shape
    count = (3 if channels == 1 else 10) * mixtures
    params = torch.randn(batch, count, *spatial, generator=torch.Generator().manual_seed(0)) * 0.5
    if channels == 1:
        params[:, 2 * mixtures :] -= 3
    else:
        for colour in range(3):
            params[:, (2 + 3 * colour) * mixtures : (3 + 3 * colour) * mixtures] -= 3
    return params.to(device, dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spatial", [(), (7,), (4, 5)])
def test_log_prob_is_the_likelihood(device, channels, spatial):
    params = params_of(channels, 2, *spatial, device=device).requires_grad_()
    options = {"num_classes": 16, "log_scale_min": -4.0}
    distribution = DiscretizedLogisticMixture(params, channels=channels, **options)
    assert distribution.batch_shape == (2,) and distribution.event_shape == (channels, *spatial)
    x = distribution.sample(seed=1)
    assert x.shape == (2, channels, *spatial) and not x.requires_grad
    log_prob = distribution.log_prob(x)
    expected = -GF.discretized_logistic_mixture_nll(x, params, reduction="batch", **options)
    assert torch.equal(log_prob, expected)
    grad, expected_grad = (torch.autograd.grad(v.sum(), params)[0] for v in (log_prob, expected))
    assert torch.equal(grad, expected_grad) and grad.abs().sum() > 0


@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 3)])
def test_sample_shapes(device, sample_shape):
    distribution = DiscretizedLogisticMixture(params_of(3, 2, 4, 5, device=device))
    x = distribution.sample(sample_shape, seed=1)
    assert x.shape == (*sample_shape, 2, 3, 4, 5)
    log_prob = distribution.log_prob(x)
    assert log_prob.shape == (*sample_shape, 2)
    one_by_one = [distribution.log_prob(image) for image in x.reshape(-1, 2, 3, 4, 5)]
    assert torch.equal(log_prob, torch.stack(one_by_one).reshape(*sample_shape, 2))
    # The first of many is the one drawn alone, and they differ.
    images = x.reshape(-1, 2, 3, 4, 5)
    assert torch.equal(images[0], distribution.sample(seed=1))
    assert len(images) == 1 or not torch.equal(images[0], images[1])


def test_log_prob_broadcasts_one_image_over_the_batch(device):
    distribution = DiscretizedLogisticMixture(params_of(1, 4, 5, device=device), channels=1)
    x = distribution.sample(seed=2)[:1]
    assert torch.equal(distribution.log_prob(x), distribution.log_prob(x.expand(4, -1, -1)))
    assert torch.equal(distribution.log_prob(x[0]), distribution.log_prob(x.expand(4, -1, -1)))


def test_samples_take_the_options(device):
    params = params_of(1, 2, 50, device=device)
    x = DiscretizedLogisticMixture(params, channels=1, num_classes=5).sample(seed=1)
    assert set(x.unique().tolist()) <= {-1, -0.5, 0, 0.5, 1}
    assert torch.equal(x, GF.discretized_logistic_mixture_sample(params, channels=1, num_classes=5, seed=1))
    torch.manual_seed(3)
    distribution = DiscretizedLogisticMixture(params, channels=1)
    first, second = distribution.sample(), distribution.sample()
    torch.manual_seed(3)
    assert torch.equal(distribution.sample(), first) and not torch.equal(first, second)


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_is_that_of_the_samples(device, channels):
    """Nothing is clamped here, and rounding to 65536 classes moves a sample by 1.5e-5 at most."""
    draws = 40_000
    params = params_of(channels, 2, device=device, dtype=torch.float64) * 0.4
    log_scales = slice(6, 9) if channels == 1 else [2 * 3 + 9 * c + i for c in range(3) for i in range(3)]
    params[:, log_scales] = -5.0
    distribution = DiscretizedLogisticMixture(params, channels=channels, num_classes=65536)
    x = distribution.sample((draws,), seed=1)
    assert x.abs().max() < 1 and distribution.mean.shape == (2, channels)
    error = (x.mean(0) - distribution.mean).abs()
    assert (error < 4 * x.std(0) / math.sqrt(draws) + 1.6e-5).all()
    if channels == 3:  # the coupling counts
        means = params[:, 3:].unflatten(1, (3, 3, 3))[:, :, 0]
        weights = params[:, :3].softmax(1)
        uncoupled = (weights[:, None] * means).sum(2)
        assert ((uncoupled - distribution.mean).abs()[:, 1:] > 0.002).any()


def test_expand(device):
    distribution = DiscretizedLogisticMixture(
        params_of(3, 1, 4, device=device), num_classes=16, log_scale_min=-3.0
    )
    wide = distribution.expand((5,))
    assert wide.batch_shape == (5,) and wide.event_shape == (3, 4)
    assert (wide.num_classes, wide.log_scale_min) == (16, -3.0)
    x = wide.sample(seed=1)
    assert torch.equal(wide.log_prob(x), torch.cat([distribution.log_prob(image[None]) for image in x]))


def test_probabilities_sum_to_one(device):
    params = params_of(1, 1, device=device, dtype=torch.float64)
    distribution = DiscretizedLogisticMixture(params, channels=1, num_classes=16)
    x = torch.linspace(-1, 1, 16, device=device, dtype=torch.float64)[:, None, None]
    assert distribution.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_arguments_are_validated(device):
    params = params_of(3, 2, 4, device=device)
    broken = params.clone()
    broken[0, 3, 1] = math.nan
    with pytest.raises(ValueError, match=r"params: expected finite numbers, got NaN or infinity"):
        DiscretizedLogisticMixture(broken, validate_args=True)
    DiscretizedLogisticMixture(broken, validate_args=False)
    distribution = DiscretizedLogisticMixture(params, validate_args=True)
    x = distribution.sample(seed=1)
    for outside in (1.001, -1.001, math.nan):
        bad = x.clone()
        bad[0, 0, 0] = outside
        with pytest.raises(ValueError, match=r"value: expected numbers in \[-1, 1\], got"):
            distribution.log_prob(bad)
    with pytest.raises(ValueError, match=r"value: expected shape"):
        distribution.log_prob(x[:, :, :3])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"params": torch.zeros(2, 31, 4)}, ValueError, r"params: expected 10\*K channels .* got 31"),
        ({"params": torch.zeros(30)}, ValueError, r"params: .* \(B, 10\*K, \*S\), got \(30,\)"),
        ({"params": [0.0]}, TypeError, r"params: expected a torch\.Tensor, got list"),
        ({"params": torch.zeros(2, 30).int()}, TypeError, r"params: expected float32, .* got int32"),
        ({"params": torch.zeros(2, 30), "channels": 2}, ValueError, r"channels: .* 1, 3, got 2"),
        ({"params": torch.zeros(2, 30), "num_classes": 1}, ValueError, r"num_classes: .* 2\*\*24, got 1"),
        ({"params": torch.zeros(2, 30), "log_scale_min": 21}, ValueError, r"log_scale_min: .* number in"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        DiscretizedLogisticMixture(**arguments)


class WithContext(nn.Module):
    """Parameters of a coupling from what it keeps and a context."""

    def __init__(self, kept, context, params):
        super().__init__()
        self.linear = nn.Linear(kept + context, params)

    def forward(self, x, context):
        return self.linear(torch.cat([x, context], 1))


class TestFlowTransform:
    @pytest.fixture
    def transform(self):
        return Sequential(InvertibleConv1x1(4), AffineCoupling(nn.Linear(2, 4))).double()

    @pytest.fixture
    def base(self):
        return Independent(Normal(torch.zeros(4).double(), torch.ones(4).double()), 1)

    @pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
    def test_density_is_the_flow_s(self, transform, base, batch):
        # torch's check of values has no empty batches.
        options = {"validate_args": False} if 0 in batch else {}
        density = TransformedDistribution(base, [FlowTransform(transform, 1).inv], **options)
        x = torch.randn(*batch, 4, dtype=torch.float64)
        expected = Flow((4,), transform).log_prob(x.reshape(-1, 4)).reshape(batch)
        torch.testing.assert_close(density.log_prob(x), expected)
        assert density.rsample(batch).shape == (*batch, 4)
        assert density.support.event_dim == 1

    @torch.no_grad()
    def test_both_directions(self, transform):
        view, x = FlowTransform(transform, 1), torch.randn(2, 3, 4, dtype=torch.float64)
        z, log_det = transform(x.reshape(6, 4))
        assert torch.equal(view(x), z.reshape(2, 3, 4))
        assert torch.equal(view.call_and_ladj(x)[1], log_det.reshape(2, 3))
        assert torch.equal(view.log_abs_det_jacobian(x.clone(), view(x)), log_det.reshape(2, 3))
        torch.testing.assert_close(view.inv(view(x).clone()), x)
        assert view.inv.inv is view and view.bijective

    @pytest.mark.parametrize(("cache_size", "calls"), [(1, 0), (0, 1)])
    def test_what_was_drawn_is_not_transformed_again(self, transform, base, cache_size, calls):
        counted = []
        transform.register_forward_hook(lambda *_: counted.append(1))
        view = FlowTransform(transform, 1).with_cache(cache_size)
        density = TransformedDistribution(base, [view.inv])
        x = density.rsample((6,))
        drawn = density.log_prob(x)
        assert len(counted) == calls
        once = density.log_prob(x.clone())
        assert len(counted) == calls + 1
        torch.testing.assert_close(drawn, once)

    def test_the_same_values_again_after_a_step_of_training(self, transform, base):
        density = TransformedDistribution(base, [FlowTransform(transform, 1).inv])
        x = torch.randn(6, 4, dtype=torch.float64)
        with torch.no_grad():
            density.log_prob(x)
        density.log_prob(x).sum().backward()  # a graph of its own
        with torch.no_grad():
            transform[1].conditioner.weight.add_(1)
            torch.testing.assert_close(density.log_prob(x), Flow((4,), transform).log_prob(x))

    def test_contexts_follow_batch_dimensions(self, base):
        transform = AffineCoupling(WithContext(2, 3, 4)).double()
        context = torch.randn(5, 3, dtype=torch.float64)
        density = TransformedDistribution(base.expand((5,)), [FlowTransform(transform, 1, context).inv])
        x = density.sample((7,))
        assert x.shape == (7, 5, 4)
        for i in range(7):
            expected = Flow((4,), transform).log_prob(x[i], context)
            torch.testing.assert_close(density.log_prob(x)[i], expected)

    def test_gradients_reach_the_transform(self, transform, base):
        density = TransformedDistribution(base, [FlowTransform(transform, 1).inv])
        x = torch.randn(8, 4, dtype=torch.float64)
        parameters = list(transform.parameters())
        actual = torch.autograd.grad(density.log_prob(x).sum(), parameters)
        expected = torch.autograd.grad(Flow((4,), transform).log_prob(x).sum(), parameters)
        for a, e in zip(actual, expected, strict=True):
            assert e.abs().max() > 0
            torch.testing.assert_close(a, e)

    def test_refuses_what_changes_shapes(self):
        with pytest.raises(ValueError, match=r"transform: expected .* \(1, 4, 4\), got \(4, 2, 2\)"):
            FlowTransform(Squeeze2d(), 3)(torch.randn(2, 1, 4, 4))
        with pytest.raises(ValueError, match="event_dim: expected 1 or more, got 0"):
            FlowTransform(Squeeze2d(), 0)
        with pytest.raises(ValueError, match=r"x: expected 3 or more dimensions, got \(2,\)"):
            FlowTransform(Squeeze2d(), 3)(torch.randn(2))

    @pytest.mark.peers
    def test_inside_a_flow_of_zuko(self, transform, base):
        zuko = pytest.importorskip("zuko")
        view = FlowTransform(transform, 1)
        theirs = zuko.distributions.NormalizingFlow(view, base)
        x = torch.randn(3, 5, 4, dtype=torch.float64)
        expected = Flow((4,), transform).log_prob(x.reshape(-1, 4)).reshape(3, 5)
        torch.testing.assert_close(theirs.log_prob(x), expected)
        x, log_prob = theirs.rsample_and_log_prob((6,))
        torch.testing.assert_close(log_prob, Flow((4,), transform).log_prob(x))

        lazy = zuko.flows.Flow(
            zuko.flows.UnconditionalTransform(lambda: view),
            zuko.flows.UnconditionalDistribution(lambda: base),
        )
        torch.testing.assert_close(lazy().log_prob(x), log_prob)
