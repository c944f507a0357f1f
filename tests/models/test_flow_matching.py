import math

import pytest
import torch
from models.diffusion_contracts import UNET, DiffusionContracts, Exact, WithUNet, gaussian_log_prob, seen_by
from models.image_contracts import images

from gmfast.models import FlowMatching

MEAN, VARIANCE = -0.1, 0.4


class TestFlowMatching(DiffusionContracts, WithUNet):
    model = FlowMatching
    learns = 0.93

    def tiny(self):
        return UNET


def build(**options):
    return TestFlowMatching().build(**options)


def exact(x, t, *_):
    """The expected velocity, noise - data, of values of a normal distribution."""
    t = t.view(-1, 1, 1, 1)
    slope = (t - (1 - t) * VARIANCE) / ((1 - t) ** 2 * VARIANCE + t**2)
    return slope * (x - (1 - t) * MEAN) - MEAN


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
def test_loss_is_the_textbook_s(times):
    model = build(times=times, dequantize=False)
    x = images(model, 512)
    with seen_by(model.unet) as calls:
        loss = model.train().loss(x)
    ((noisy, t, _), output) = calls[0]
    s = t.view(-1, 1, 1, 1)
    noise = (noisy - (1 - s) * x) / s
    assert loss.item() == pytest.approx((output - (noise - x)).square().mean().item(), rel=1e-9)
    assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.05
    quantiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)
    if times == "logit_normal":
        assert (t.logit().quantile(quantiles) - torch.special.ndtri(quantiles)).abs().max() < 0.25
    else:
        assert (t.quantile(quantiles) - quantiles).abs().max() < 0.1


def test_log_prob_of_a_gaussian_is_its_density():
    model = build(dequantize=False)
    model.unet = Exact(exact)
    x = images(model, 4)
    expected = gaussian_log_prob(x, MEAN, VARIANCE) + 16 * math.log(0.5)
    for divergence in ("exact", "hutchinson"):  # the Jacobian is a multiple of the identity
        assert torch.allclose(model.log_prob(x, divergence=divergence), expected, rtol=1e-5)
    errors = [(model.log_prob(x, steps=n) - expected).abs().max() for n in (4, 8, 16)]
    assert errors[0] / errors[1] > 8 and errors[1] / errors[2] > 10


def test_log_prob_is_a_bound_of_the_levels_probabilities():
    """The density of what fills a level, on average over it, against the mass that the level has."""
    model = build(image_shape=(1, 2, 2), num_levels=3)
    model.unet = Exact(exact)
    x = images(model, 1)
    edges = torch.stack([x - 0.5, x + 0.5]).double()
    mass = torch.special.ndtr((edges - MEAN) / math.sqrt(VARIANCE)).diff(dim=0).log().sum()
    found = model.log_prob(x.expand(1024, -1, -1, -1), seed=2, steps=16)
    error = found.std() / 32
    assert found.mean() < mass + 4 * error  # Jensen
    assert abs(found.exp().mean().log() - mass) < 5 * found.exp().std() / 32 / mass.exp()


@pytest.mark.parametrize("how", [{}, {"sampler": "flow_euler", "steps": 200}])
def test_samples_of_a_gaussian(how):
    model = build(num_levels=2**16)
    model.unet = Exact(exact)
    x = model.sample(512, seed=1, **how)
    reference = (MEAN + math.sqrt(VARIANCE) * torch.randn(2**16, dtype=torch.double)).clamp(-1, 1)
    assert abs(x.mean() - reference.mean()) < 0.03 and abs(x.std() - reference.std()) < 0.03


def test_unknown_times():
    with pytest.raises(ValueError, match="times: expected one of 'uniform', 'logit_normal', got 'cosine'"):
        FlowMatching(times="cosine")
