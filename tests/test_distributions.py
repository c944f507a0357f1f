import math

import pytest
import torch

import gmfast.functional as GF
from gmfast.distributions import DiscretizedLogisticMixture


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
