import math
from types import MappingProxyType

import pytest
import torch
from models.diffusion_contracts import UNET, DiffusionContracts, Exact, WithUNet, seen_by
from models.image_contracts import images

from gmfast import diffusion
from gmfast.models import DDPM


def alpha_bars(steps):
    """Of the published schedule, which many steps have in common."""
    beta = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.double)
    return beta, torch.cumprod(1 - beta, 0)


class TestDDPM(DiffusionContracts, WithUNet):
    model = DDPM
    few = MappingProxyType({"num_timesteps": 2})

    def tiny(self):
        return UNET | {"num_timesteps": 16}


class TestDDPMOfTheHybridObjective(TestDDPM):
    def tiny(self):
        return super().tiny() | {"objective": "hybrid", "schedule": "cosine"}


class TestDDPMOfV(TestDDPM):
    def tiny(self):
        return super().tiny() | {"prediction": "v", "objective": "min_snr"}


def build(**options):
    return TestDDPM().build(**options)


def trained_on(model, x):
    """The loss, and what the network saw and said: noisy images, time steps, noise, prediction."""
    with seen_by(model.unet) as calls:
        loss = model.train().loss(x)
    ((noisy, t, _), output) = calls[0]
    _, bars = alpha_bars(model.num_timesteps)
    bar = bars[t].view(-1, 1, 1, 1)
    noise = (noisy - bar.sqrt() * x) / (1 - bar).sqrt()
    return loss, noisy, t, bar, noise, output


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("objective", ["simple", "min_snr"])
def test_losses_are_the_textbook_s(prediction, objective):
    """The simple one by its definition; min-SNR by that of the image's error."""
    model = build(prediction=prediction, objective=objective, min_snr_gamma=0.7, num_timesteps=40)
    x = images(model, 256)
    loss, noisy, t, bar, noise, output = trained_on(model, x)
    assert t.min() < 8 and t.max() >= 32 and t.unique().numel() > 30
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    target = {"epsilon": noise, "x0": x, "v": bar.sqrt() * noise - (1 - bar).sqrt() * x}[prediction]
    if objective == "simple":
        expected = (output - target).square().mean()
    else:
        image = {
            "epsilon": (noisy - (1 - bar).sqrt() * output) / bar.sqrt(),
            "x0": output,
            "v": bar.sqrt() * noisy - (1 - bar).sqrt() * output,
        }[prediction]
        weight = (bar / (1 - bar)).clamp(max=0.7)
        expected = (weight * (image - x).square()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


def steps_bound(x, noisy, t, beta, bars, predicted, log_var):
    """A term of the bound by its definition, with torch.distributions, in nats of each image."""
    terms = []
    for i, k in enumerate(t.tolist()):
        before = bars[k - 1] if k else torch.ones((), dtype=torch.double)
        of_image = before.sqrt() * beta[k] / (1 - bars[k])
        of_noisy = (1 - beta[k]).sqrt() * (1 - before) / (1 - bars[k])
        model = torch.distributions.Normal(
            of_image * predicted[i] + of_noisy * noisy[i], (0.5 * log_var[i]).exp()
        )
        if k == 0:
            up = torch.where(x[i] > 0.999, 1.0, model.cdf(x[i] + 0.25))  # 5 levels: bins of half a unit
            down = torch.where(x[i] < -0.999, 0.0, model.cdf(x[i] - 0.25))
            terms.append(-(up - down).log().sum())
        else:
            variance = beta[k] * (1 - before) / (1 - bars[k])
            true = torch.distributions.Normal(of_image * x[i] + of_noisy * noisy[i], variance.sqrt())
            terms.append(torch.distributions.kl_divergence(true, model).sum())
    return torch.stack(terms)


def test_hybrid_loss_is_the_textbook_s():
    """The published one: the noise's error, and of the bound T thousandths, in bits per dimension."""
    model = build(objective="hybrid", num_timesteps=40)
    x = images(model, 64)
    loss, noisy, t, bar, noise, output = trained_on(model, x)
    epsilon, place = output.chunk(2, 1)
    beta, bars = alpha_bars(40)
    before = torch.cat([torch.ones(1, dtype=torch.double), bars[:-1]])
    small = beta * (1 - before) / (1 - bars)
    small[0] = small[1]
    low, high = small.log()[t].view(-1, 1, 1, 1), beta.log()[t].view(-1, 1, 1, 1)
    log_var = (place + 1) / 2 * high + (1 - place) / 2 * low
    predicted = (noisy - (1 - bar).sqrt() * epsilon) / bar.sqrt()
    bound = steps_bound(x, noisy, t, beta, bars, predicted, log_var).mean() / (16 * math.log(2))
    expected = (epsilon - noise).square().mean() + 0.001 * 40 * bound
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_terms_of_the_bound_are_the_textbook_s():
    """With the posterior's variance and an image that stays in [-1, 1]."""
    model = build(num_timesteps=40)
    x, t = images(model, 40), torch.arange(40)
    with torch.no_grad(), seen_by(model.unet) as calls:
        bound = model.bound(x, t, seed=3)
    ((noisy, _, _), output) = calls[0]
    beta, bars = alpha_bars(40)
    before = torch.cat([torch.ones(1, dtype=torch.double), bars[:-1]])
    small = beta * (1 - before) / (1 - bars)
    small[0] = small[1]
    bar = bars.view(-1, 1, 1, 1)
    predicted = ((noisy - (1 - bar).sqrt() * output) / bar.sqrt()).clamp(-1, 1)
    expected = steps_bound(x, noisy, t, beta, bars, predicted, small.log())
    assert torch.allclose(bound, expected, rtol=1e-7)


class Images(Exact):
    """The exact prediction of the noise in images that are a few given ones with given probabilities."""

    def __init__(self, atoms, weights, bars):
        super().__init__(self.noise)
        self.atoms, self.weights, self.bars = atoms, weights, bars

    def noise(self, x, t, label):
        bar = self.bars[t].view(-1, 1, 1, 1)
        distance = (x[:, None] - bar.sqrt()[:, None] * self.atoms).square().flatten(2).sum(2)
        posterior = (self.weights.log() - distance / (2 * (1 - bar[:, 0, 0]))).softmax(1)
        image = torch.einsum("bk,kchw->bchw", posterior, self.atoms)
        return (x - bar.sqrt() * image) / (1 - bar).sqrt()


def exact(steps):
    """A model of four images with the exact network, the images and their probabilities."""
    model = build(image_shape=(1, 2, 2), num_timesteps=steps, num_levels=3)
    torch.manual_seed(1)
    atoms = images(model, 4)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.double)
    assert atoms.unique(dim=0).shape[0] == 4
    model.unet = Images(atoms, weights, alpha_bars(steps)[1])
    return model, atoms, weights


def test_bound_is_above_the_exact_likelihood_and_near_it_with_many_steps():
    gaps = []
    for steps in (25, 100, 400):
        model, atoms, weights = exact(steps)
        x = atoms.repeat_interleave(128, 0)
        nats = -model.log_prob(x, seed=2).view(4, 128)
        error = (weights.square() * nats.var(1) / 128).sum().sqrt()
        gap = (weights * (nats.mean(1) + weights.log())).sum()
        assert gap > -4 * error
        gaps.append(gap)
    assert gaps[0] > 0.3 and gaps[0] > 3 * gaps[1] and gaps[2] < 0.05, gaps  # of 1.28 nats


def test_few_time_steps_stand_for_all_on_average():
    model, atoms, _ = exact(100)
    x = atoms.repeat_interleave(512, 0)
    whole = model.log_prob(atoms.repeat_interleave(64, 0), seed=2).view(4, 64)
    few = model.log_prob(x, seed=3, num_timesteps=5).view(4, 512)
    error = (whole.var(1) / 64 + few.var(1) / 512).sqrt()
    assert ((whole.mean(1) - few.mean(1)).abs() < 5 * error).all()
    assert (few.var(1) > whole.var(1)).all()
    for wrong in (0, 100):
        with pytest.raises(ValueError, match=f"num_timesteps: expected a number from 1 to 99, got {wrong}"):
            model.log_prob(x, num_timesteps=wrong)


def test_neighbouring_seeds_of_a_likelihood_share_no_noise():
    model = build(num_timesteps=6)
    x, bars = images(model, 2), model.schedule.alphas_cumprod
    seen = []
    for seed in (0, 1):
        with seen_by(model.unet) as calls:
            model.log_prob(x, seed=seed)
        for (noisy, t, _), _ in calls:
            bar = bars[t].view(-1, 1, 1, 1)
            seen.append(((noisy - bar.sqrt() * x) / (1 - bar).sqrt()).flatten())
    assert len(seen) == 12
    correlation = torch.corrcoef(torch.stack(seen)) - torch.eye(12)
    assert correlation.abs().max() < 0.9  # it is 1 where noise is shared


def test_a_likelihood_in_inference_mode_leaves_training_as_it_was():
    model = build(objective="hybrid", num_timesteps=6)
    x = images(model, 2)
    with torch.inference_mode():
        model.log_prob(x, seed=0)
    model.loss(x).backward()


@pytest.mark.parametrize("how", [{}, {"sampler": diffusion.DDIM(eta=1.0), "steps": 100}, {"sampler": "heun"}])
def test_samples_of_the_exact_network_are_the_images_as_often_as_they_should(how):
    model, atoms, weights = exact(100)
    n = 1024
    x = model.sample(n, seed=5, **how)
    counts = torch.stack([(x == atom).flatten(1).all(1).sum() for atom in atoms])
    assert counts.sum() > 0.99 * n
    deviation = (weights * (1 - weights) / n).sqrt()
    assert ((counts / n - weights).abs() < 5 * deviation + 0.02).all(), (counts / n).tolist()


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", diffusion.DDPM("large")])
def test_learned_variances_are_left_out_by_other_samplers(sampler):
    model = build(objective="hybrid", num_timesteps=20)
    drawn = model.draw(2, torch.tensor(3), None, guidance=None, progress=False, sampler=sampler)
    expected = diffusion.sample(
        lambda x, t: model(x, t).chunk(2, 1)[0],
        (2, *model.image_shape),
        sampler=sampler,
        schedule=model.schedule,
        steps=20,
        seed=3,
        clip=1.0,
        dtype=torch.float64,
    )
    assert torch.allclose(drawn, expected)


def test_learned_variances_are_sampled_with():
    """A place in the range of -1 or 1 is a fixed variance, the posterior's or β."""
    model = build(objective="hybrid", num_timesteps=20)
    network = model.unet
    for place, variance in ((-1.0, "small"), (1.0, "large")):
        model.unet = Exact(
            lambda x, t, label, place=place: torch.cat([network(x, t, label)[:, :1], x * 0 + place], 1)
        )
        seed = torch.tensor(3)
        learned = model.draw(2, seed, None, guidance=None, progress=False)
        fixed = diffusion.sample(
            lambda x, t: network(x, t)[:, :1],
            (2, *model.image_shape),
            sampler=diffusion.DDPM(variance),
            schedule=model.schedule,
            steps=20,
            seed=seed,
            clip=1.0,
            dtype=torch.float64,
        )
        assert torch.allclose(learned, fixed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_timesteps": 1}, "num_timesteps: expected at least 2, got 1"),
        ({"beta_start": 0.1}, "beta_start: expected a number between 0 and 0.02, got 0.1"),
        ({"schedule": "sqrt"}, "schedule: expected one of 'linear', 'cosine', got 'sqrt'"),
        ({"prediction": "flow"}, "prediction: expected one of 'epsilon', 'x0', 'v', got 'flow'"),
        ({"objective": "p2"}, "objective: expected one of 'simple', 'min_snr', 'hybrid', got 'p2'"),
        (
            {"objective": "hybrid", "prediction": "v"},
            "prediction: expected 'epsilon' with objective 'hybrid', got 'v'",
        ),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma: expected a positive number, got 0.0"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DDPM(**options)


def test_parameter_count_of_the_published_model():
    """35.7 million in the paper, whose time embedding shifts only; here it scales too."""
    with torch.device("meta"):
        count = sum(p.numel() for p in DDPM(attention=(16,)).parameters())
    assert 35e6 < count < 40e6
