import math

import pytest
import torch
from models.diffusion_contracts import (
    UNET,
    DiffusionContracts,
    Exact,
    WithUNet,
    gaussian_log_prob,
    seen_by,
    unet_of,
)
from models.image_contracts import images

from gmfast.models import EDM

MEAN, VARIANCE = 0.2, 0.3


class TestEDM(DiffusionContracts, WithUNet):
    model = EDM
    learns = 0.93

    def tiny(self):
        return UNET | {"sigma_min": 0.01, "sigma_max": 10.0}


def build(**options):
    return TestEDM().build(**options)


def exact(x, sigma, *_):
    """What remains of values of a normal distribution under noise."""
    s = sigma.view(-1, 1, 1, 1).square()
    return (VARIANCE * x + s * MEAN) / (VARIANCE + s)


def test_loss_is_the_textbook_s():
    """That of the network's own target (Karras et al., eq. 8), whose weight is 1 at all noise levels."""
    model = build(sigma_data=0.6)
    x = images(model, 512)
    with seen_by(model.precond) as outer, seen_by(unet_of(model)) as inner:
        model.train().loss(x)
    ((noisy, sigma, _), _), ((seen, level, _), _) = outer[0], inner[0]
    log_sigma = sigma.log()
    assert abs(log_sigma.mean() + 1.2) < 5 * 1.2 / math.sqrt(512) and abs(log_sigma.std() - 1.2) < 0.2
    s, d = sigma.view(-1, 1, 1, 1), 0.6
    assert torch.allclose(level, log_sigma / 4) and torch.allclose(seen, noisy / (s**2 + d**2).sqrt())
    model.dequantize = False
    torch.manual_seed(3)
    with seen_by(model.precond) as outer, seen_by(unet_of(model)) as inner:
        loss = model.loss(x)
    ((noisy, sigma, _), _), (_, output) = outer[0], inner[0]
    s = sigma.view(-1, 1, 1, 1)
    skip, out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
    expected = (output - (x - skip * noisy) / out).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    noise = (noisy - x) / s
    assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.05


def test_log_prob_of_a_gaussian_is_the_closed_form():
    """The ODE takes x - mean times a factor of sigma alone, from the lowest noise to the highest, where the
    model takes it for noise about 0."""
    model = build(dequantize=False)
    model.precond = Exact(exact)
    x = images(model, 4)
    factor = (VARIANCE + 10.0**2) / (VARIANCE + 0.01**2)
    end = MEAN + (x - MEAN) * math.sqrt(factor)
    expected = gaussian_log_prob(end, 0.0, 10.0**2) + 8 * math.log(factor) + model.log_level_volume
    for divergence in ("exact", "hutchinson"):  # the Jacobian is a multiple of the identity
        found = model.log_prob(x, divergence=divergence, steps=128)
        assert torch.allclose(found, expected, rtol=1e-6)
    # And that is the density of the data, but for the lowest noise and the highest's distance from noise.
    near = gaussian_log_prob(x, MEAN, VARIANCE) + model.log_level_volume
    assert torch.allclose(expected, near, atol=0.15) and not torch.allclose(expected, near, atol=1e-4)
    errors = [(model.log_prob(x, steps=n, divergence="exact") - expected).abs().max() for n in (4, 8, 16)]
    assert errors[0] / errors[1] > 8 and errors[1] / errors[2] > 10


def test_log_prob_is_of_levels_that_noise_fills():
    model = build()
    model.precond = Exact(exact)
    x = images(model, 3)
    found = model.log_prob(x, seed=5)
    y = model.continuous(x, 5)
    model.dequantize = False
    filled = gaussian_log_prob(y, MEAN, VARIANCE) + 16 * math.log(0.5)
    assert torch.allclose(found, filled, atol=0.1) and (y - x).abs().max() > 0.2


@pytest.mark.parametrize("sampler", ["edm", "dpmpp_2m"])
def test_samples_of_a_gaussian(sampler):
    model = build(num_levels=2**16, sigma_min=0.02)
    model.precond = Exact(exact)
    x = model.sample(512, seed=1, sampler=sampler, steps=40)
    # Values beyond [-1, 1] become these, in samples and in the normal distribution.
    reference = (MEAN + math.sqrt(VARIANCE) * torch.randn(2**16, dtype=torch.double)).clamp(-1, 1)
    assert abs(x.mean() - reference.mean()) < 0.03 and abs(x.std() - reference.std()) < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_data": 0.0}, "sigma_data: expected a positive number, got 0.0"),
        ({"sigma_min": 90.0}, "sigma_min: expected a positive number below 80.0, got 90.0"),
        ({"rho": 0.0}, "rho: expected a positive number, got 0.0"),
        ({"log_sigma_std": -1.0}, "log_sigma_std: expected a positive number, got -1.0"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        EDM(**options)
