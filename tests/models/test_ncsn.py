import math
from functools import partial

import pytest
import torch
from models.diffusion_contracts import UNET, DiffusionContracts, Exact, WithUNet, gaussian_log_prob, unet_of
from models.image_contracts import images

from gmfast.models import NCSN
from gmfast.models.diffusion.ncsn import sigma_ratio

MEAN, VARIANCE = 0.2, 0.3


class TestNCSN(DiffusionContracts, WithUNet):
    model = NCSN

    def tiny(self):
        return UNET | {"sigma_min": 0.1, "langevin_steps": 2}


def build(**options):
    return TestNCSN().build(**options)


def exact_noise(x, log_sigma, *_, variance=VARIANCE):
    """The network's: it sees x over the square root of sigma² + 1, and the logarithm of sigma."""
    s = log_sigma.exp().view(-1, 1, 1, 1)
    x = x * (s**2 + 1).sqrt()
    return s * (x - MEAN) / (variance + s**2)


def test_highest_level_is_the_largest_distance_of_the_data():
    model = build()
    x = images(model, 8)
    largest = max((a - b).norm().item() for a in x for b in x)
    assert model.sigma_max == pytest.approx(largest, rel=1e-9)
    assert build(sigma_max=7.0).sigma_max == 7.0
    fresh = NCSN((1, 4, 4), **TestNCSN().tiny())
    with pytest.raises(RuntimeError, match="sigma_max: expected a model that has seen data, got a fresh one"):
        fresh.loss(x.float())
    fresh.load_state_dict(model.state_dict())
    assert fresh.sigma_max == pytest.approx(largest)
    fresh.initialize(torch.zeros(2, 1, 4, 4))  # images that are all alike
    assert fresh.sigma_max == pytest.approx(1.0)


def test_levels_are_the_published_ones():
    """CIFAR-10's: from 50 to 0.01 in 232, for an overlap of about a half (Song and Ermon, 2020)."""
    with torch.device("meta"):
        model = NCSN(sigma_max=50.0)
    model.highest = torch.tensor(50.0)
    sigmas = model.sigmas
    assert len(sigmas) == pytest.approx(232, abs=15)
    ratios = sigmas[:-1] / sigmas[1:]
    assert sigmas[0].item() == pytest.approx(50) and sigmas[-1].item() == pytest.approx(0.01)
    assert torch.allclose(ratios, ratios[0]) and ratios[0].item() == pytest.approx(
        sigma_ratio(3072), rel=2e-3
    )


@pytest.mark.parametrize("size", [32, 64, 3072])
def test_neighbouring_levels_overlap_by_half(size):
    """By simulation of the normal distribution that the distances of a level's noise from its centre have."""
    ratio = sigma_ratio(size)
    draws = math.sqrt(size) + torch.randn(2**16, dtype=torch.double) / math.sqrt(2)
    # The lower level's: within three deviations of the higher one's half of the time.
    within = (draws - math.sqrt(size) * ratio).abs() < 3 * ratio / math.sqrt(2)
    assert abs(within.double().mean() - 0.5) < 0.02
    assert sigma_ratio(4) == pytest.approx(2)


def test_loss_is_denoising_score_matching():
    """sigma²·‖score + noise/sigma‖², the levels' logarithms being uniform."""
    model = build(dequantize=False)
    x = images(model, 512)
    seen = []
    noise_of = model.noise
    model.noise = lambda *arguments: seen.append((*arguments, noise_of(*arguments))) or seen[-1][-1]
    loss = model.train().loss(x)
    noisy, sigma, _, _ = seen[0]
    s = sigma.view(-1, 1, 1, 1)
    score = model.score(noisy, sigma)
    expected = (s**2 * (score + (noisy - x) / s**2).square()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    place = (sigma / model.sigma_min).log() / math.log(model.sigma_max / model.sigma_min)
    assert place.min() >= 0 and place.max() <= 1
    quantiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)
    assert (place.quantile(quantiles) - quantiles).abs().max() < 0.1
    denoised = model.denoise(noisy, sigma)
    assert torch.allclose(denoised, noisy + s**2 * score)


def test_log_prob_of_a_gaussian_is_the_closed_form():
    model = build(dequantize=False, sigma_max=20.0, sigma_min=0.01)
    model.unet = Exact(exact_noise)
    x = images(model, 4)
    factor = (VARIANCE + 20.0**2) / (VARIANCE + 0.01**2)
    end = MEAN + (x - MEAN) * math.sqrt(factor)
    expected = gaussian_log_prob(end, 0.0, 20.0**2) + 8 * math.log(factor) + 16 * math.log(0.5)
    assert torch.allclose(model.log_prob(x, steps=128), expected, rtol=1e-6)


def test_samples_of_a_gaussian():
    """Annealed Langevin dynamics, of data as narrow as the lowest levels: of wider data, chains are not at
    rest when the level falls."""
    model = build(num_levels=2**16, sigma_max=5.0, sigma_min=0.02)
    model.unet = Exact(partial(exact_noise, variance=0.05**2))
    x = model.sample(256, seed=1, langevin_steps=10)
    assert abs(x.mean() - MEAN) < 0.01 and x.std().item() == pytest.approx(0.05, rel=0.25)


def test_network_is_told_the_level():
    model = build(sigma_max=3.0)
    assert unet_of(model) is model.unet
    x, sigma = torch.randn(2, 1, 4, 4).double(), torch.tensor([0.1, 2.0]).double()
    expected = model.unet(x / (sigma.view(2, 1, 1, 1) ** 2 + 1).sqrt(), sigma.log())
    assert torch.allclose(model.noise(x, sigma), expected)
