import math

import pytest
import torch
from models.diffusion_contracts import UNET, DiffusionContracts, Exact, WithUNet, seen_by, unet_of
from models.image_contracts import images

from gmfast.models import DDPM, EDM, ConsistencyModel

SIGMAS = {"sigma_min": 0.01, "sigma_max": 10.0}


class TestConsistencyModel(DiffusionContracts, WithUNet):
    model = ConsistencyModel
    learns = 0.96

    def tiny(self):
        return (
            UNET | SIGMAS | {"first_levels": 4, "last_levels": 16, "total_steps": 1000, "label_dropout": 0.1}
        )


def build(**options):
    return TestConsistencyModel().build(**options)


def test_lowest_noise_is_the_end_of_the_path():
    model = build()
    x = torch.randn(3, 1, 4, 4, dtype=torch.double)
    at_end = torch.full((3,), 0.01, dtype=torch.double)
    assert torch.allclose(model.denoise(x, at_end), x, rtol=1e-12)
    above, s, d = at_end * 50, 0.5, 0.5
    network = unet_of(model)(x / math.sqrt(s**2 + d**2), above.log() / 4, None)
    expected = x * d**2 / ((s - 0.01) ** 2 + d**2) + network * d * (s - 0.01) / math.sqrt(s**2 + d**2)
    assert torch.allclose(model.denoise(x, above), expected)


def test_noise_levels_come_closer():
    model = build(first_levels=10, last_levels=80, total_steps=400).train()
    intervals = []
    for model.steps_taken[...] in torch.tensor([0, 99, 100, 199, 200, 299, 300, 1000]):
        intervals.append(model.num_intervals)
    assert intervals == [10, 10, 20, 20, 40, 40, 80, 80]
    levels = model.levels(10)
    roots = levels ** (1 / 7)
    assert levels[0].item() == pytest.approx(0.01) and levels[-1].item() == pytest.approx(10)
    assert torch.allclose(roots.diff(), roots.diff()[0])
    x = images(model, 4)
    before = int(model.steps_taken)
    model.loss(x), model.loss(x), model.eval().loss(x)
    assert model.steps_taken == before + 2
    assert build(**model.config).load_state_dict(model.state_dict())


def test_loss_is_the_textbook_s():
    model = build(num_labels=3, label_dropout=0.0)
    x, label = images(model, 512), torch.arange(512) % 3
    with seen_by(model.precond) as calls:
        loss = model.train().loss(x, label)
    ((earlier, low, _), target), ((noisy, high, _), output) = calls
    noise = (noisy - x) / high.view(-1, 1, 1, 1)
    assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.05
    assert torch.allclose(earlier, x + low.view(-1, 1, 1, 1) * noise)
    c = 0.00054 * 4
    distance = ((output - target).square().sum((1, 2, 3)) + c**2).sqrt() - c
    assert loss.item() == pytest.approx((distance / (high - low)).mean().item(), rel=1e-9)
    levels = model.levels(4)
    assert torch.allclose(low.unique(), levels[:-1]) and torch.allclose(high.unique(), levels[1:])
    shares = torch.special.ndtr((levels.log() + 1.1) / 2).diff()
    shares = shares / shares.sum()
    counts = torch.stack([(low == level).sum() for level in low.unique()])
    assert ((counts / 512 - shares).abs() < 5 * (shares * (1 - shares) / 512).sqrt() + 1e-3).all()


def test_gradient_is_of_the_noisier_pass_alone_with_the_same_dropout():
    """Where both passes see the same, dropout makes no difference."""
    model = build(dropout=0.5).train()
    x = images(model, 8)
    model._earlier = lambda noisy, *_: noisy
    model.levels = lambda count: torch.tensor([1.0 - 1e-12, 1.0], dtype=torch.double)
    with seen_by(model.precond) as calls:
        model.loss(x)
    (_, target), (_, output) = calls
    assert torch.allclose(target, output, atol=1e-9)
    assert not target.requires_grad and output.requires_grad


def point_denoiser(x, sigma, *_):
    """Of data that are one image: it."""
    return torch.full_like(x, 0.25)


def point_consistency(x, sigma, *_):
    return 0.25 + (x - 0.25) * (0.01 / sigma.view(-1, 1, 1, 1))


@pytest.mark.parametrize("distilled", [False, True])
def test_exact_consistency_function_has_no_loss(distilled):
    """Of data that are one image, where both ways to the less noisy point are exact."""
    model = build(num_levels=9)
    x = torch.full((16, 1, 4, 4), 0.25, dtype=torch.double)
    if distilled:
        teacher = EDM((1, 4, 4), **UNET, **SIGMAS, num_levels=9)
        teacher.precond = Exact(point_denoiser)
        model.distill(teacher)
        x = x + 0.125  # what the paths lead to is the teacher's
    assert model.train().loss(x) > 0.1
    model.precond = Exact(point_consistency)
    assert model.loss(x) < 1e-12
    assert (model.sample(4, seed=0, steps=3) == 0.25).all()


def test_distillation_follows_the_teacher_s_heun_step():
    model = build(num_labels=2, label_dropout=0.0)
    teacher = EDM((1, 4, 4), **UNET, **SIGMAS, num_levels=5, num_labels=2).double().train()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    keys = model.state_dict().keys()
    model.build_on(teacher=teacher)
    assert model.state_dict().keys() == keys and len(list(model.parameters())) < len(keys) + 1
    x, label = images(model, 4), torch.tensor([0, 1, 1, 0])
    with seen_by(model.precond) as calls:
        model.train().loss(x, label)
    assert teacher.training
    ((earlier, low, _), _), ((noisy, high, _), _) = calls
    teacher.eval()
    h, s, e = (v.view(-1, 1, 1, 1) for v in (low - high, high, low))
    with torch.no_grad():
        first = (noisy - teacher.denoise(noisy, high, label)) / s
        euler = noisy + h * first
        second = (euler - teacher.denoise(euler, low, label)) / e
    assert torch.allclose(earlier, noisy + h * (first + second) / 2)


def test_wrong_teachers():
    model = build()
    with pytest.raises(ValueError, match="teacher: expected an EDM, got DDPM"):
        model.distill(DDPM((1, 4, 4), **UNET))
    with pytest.raises(ValueError, match="teacher: expected num_levels 5, got 9"):
        model.distill(EDM((1, 4, 4), **UNET, num_levels=9))
    with pytest.raises(
        ValueError, match="autoencoder: expected a model that is built on one, got Consistency"
    ):
        model.build_on(autoencoder=model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_levels": 1}, "first_levels: expected at least 2, got 1"),
        ({"last_levels": 9}, "last_levels: expected at least 10, got 9"),
        ({"total_steps": 0}, "total_steps: expected at least 1, got 0"),
        ({"log_sigma_std": 0.0}, "log_sigma_std: expected a positive number, got 0.0"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ConsistencyModel(**options)
