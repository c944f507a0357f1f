"""MAF, IAF and spline flows: what they have in common."""

import copy
import math

import pytest
import torch
from torch.autograd.functional import jacobian

from gmfast.models import IAF, MAF, SplineFlow

VECTORS = {
    "maf": (MAF, {"hidden": (9, 7), "num_transforms": 3}),
    "iaf": (IAF, {"hidden": (9, 7), "num_transforms": 3}),
    "spline couplings": (SplineFlow, {"num_transforms": 2, "width": 8, "num_blocks": 1}),
    "spline autoregressive": (SplineFlow, {"num_transforms": 2, "width": 8, "autoregressive": True}),
}
IMAGES = {
    "maf": (MAF, {"hidden": (9,), "num_transforms": 2}),
    "iaf": (IAF, {"hidden": (9,), "num_transforms": 2}),
    "spline": (SplineFlow, {"num_transforms": 1, "width": 4, "num_blocks": 1}),
}


def build(cls, options, dtype=torch.float64):
    """A model of which no parameter is where training begins."""
    torch.manual_seed(0)
    model = cls(**options).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(params=VECTORS)
def vectors(request):
    cls, options = VECTORS[request.param]
    model = build(cls, {**options, "image_shape": (4,)})
    model.standardize(torch.tensor([1.0, -20, 300, 0]), torch.tensor([0.1, 2, 30, 1]))
    return model


def test_log_prob_is_the_density_of_the_numbers_as_they_come(vectors):
    x = vectors.sample(3, seed=0)
    for one in x:
        matrix = jacobian(lambda one: vectors(one[None])[0][0], one)
        z, log_det = vectors(one[None])
        torch.testing.assert_close(log_det[0], matrix.slogdet().logabsdet, rtol=1e-8, atol=1e-8)
        expected = torch.distributions.Normal(0, 1).log_prob(z).sum() + log_det[0]
        torch.testing.assert_close(vectors.log_prob(one[None])[0], expected)
    loss = -vectors.log_prob(x).mean() / (4 * math.log(2))
    torch.testing.assert_close(vectors.loss(x), loss)


def test_samples(vectors):
    x = vectors.sample(6, seed=5)
    assert x.shape == (6, 4)
    torch.testing.assert_close(vectors.sample(2, seed=5), x[:2])
    assert not torch.equal(vectors.sample(6, seed=6), x)
    torch.testing.assert_close(vectors.sample(6, seed=5, method="naive"), x, rtol=1e-9, atol=1e-9)
    z = vectors(x)[0]
    torch.testing.assert_close(vectors(vectors.sample(6, seed=5, temperature=0.5))[0], z / 2)
    assert vectors.sample(0).shape == (0, 4)


@pytest.mark.parametrize("name", VECTORS)
def test_density_of_one_class_integrates_to_one(name):
    """In the plane, by quadrature; the classes differ."""
    cls, options = VECTORS[name]
    model = build(cls, {**options, "image_shape": (2,), "num_labels": 3})
    side = torch.linspace(-8, 8, 800, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    densities = []
    with torch.no_grad():
        for label in (0, 2):
            densities.append(model.log_prob(grid, torch.full((len(grid),), label)).exp())
            assert densities[-1].sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=0.01)
    assert (densities[0] - densities[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="label: expected 2 integers below 3, got None"):
        model.log_prob(grid[:2])


@pytest.mark.parametrize("name", IMAGES)
def test_images(name):
    cls, options = IMAGES[name]
    shape = {"image_shape": (1, 4, 2), "num_levels": 5, "num_labels": 3}
    model = build(cls, {**options, **shape})
    label = torch.tensor([0, 2, 1])
    x = model.sample(3, seed=0, label=label)
    assert x.shape == (3, 1, 4, 2) and set(((x + 1) * 2).flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    y = torch.randn(3, 1, 4, 2, dtype=torch.float64)
    z, log_det = model.transform(y, label)
    torch.testing.assert_close(model.transform.inverse(z, label)[0], y)
    matrix = jacobian(lambda y: model.transform(y[None], label[:1])[0].flatten(), y[0]).view(8, 8)
    torch.testing.assert_close(log_det[0], matrix.slogdet().logabsdet, rtol=1e-8, atol=1e-8)
    assert model.loss(x, label).isfinite()


@pytest.mark.parametrize("name", VECTORS)
def test_training_reaches_a_known_entropy(name):
    """A banana: x0 normal, x1 normal about x0²/2: 2·ln(2πe)/2 + ln 0.5 nats. Within 0.05 of it."""
    cls, options = VECTORS[name]
    torch.manual_seed(0)
    model = cls(**{**options, "image_shape": (2,), "num_transforms": 3})
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    def draw(n):
        x = torch.randn(n, 2)
        return torch.stack([x[:, 0], 0.5 * x[:, 0] ** 2 + 0.5 * x[:, 1]], 1)

    for step in range(250):
        optimizer.zero_grad()
        model.loss(draw(256)).backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / 250)
        optimizer.step()
    x = draw(8192)
    # Of the same points, so that how they fall does not count.
    shifted = x[:, 1] - 0.5 * x[:, 0] ** 2
    exact = 0.5 * (x[:, 0] ** 2 + (shifted / 0.5) ** 2) + math.log(2 * math.pi) + math.log(0.5)
    with torch.no_grad():
        assert 0 < (-model.eval().log_prob(x)).mean() - exact.mean() < 0.05


def test_states_and_config():
    for cls, options in VECTORS.values():
        model = build(cls, {**options, "image_shape": (3,)})
        model.standardize(torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5, 6]))
        again = cls(**model.config).double().eval()
        again.load_state_dict(model.state_dict())
        x = model.sample(4, seed=1)
        torch.testing.assert_close(again.log_prob(x), model.log_prob(x))


@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("data", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_data_and_weights_of_any_dtypes(vectors, weights, data):
    model = copy.deepcopy(vectors).to(weights)
    x = vectors.sample(3, seed=0).to(data)
    with torch.no_grad():
        expected = vectors.log_prob(x.double())
        tolerance = 2.0 if torch.bfloat16 in (weights, data) else 1e-2
        torch.testing.assert_close(model.log_prob(x).double(), expected, rtol=0.2, atol=tolerance)


@pytest.mark.parametrize("name", VECTORS)
def test_a_state_is_assigned_to_a_model_without_memory(name):
    cls, options = VECTORS[name]
    model = build(cls, {**options, "image_shape": (3,)})
    with torch.device("meta"):
        again = cls(**model.config)
    again.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(again.eval().log_prob(x), model.log_prob(x))


def test_errors():
    with pytest.raises(ValueError, match=r"image_shape: expected \(D,\) for real-valued data"):
        MAF(image_shape=(1, 2, 2))
    with pytest.raises(ValueError, match="autoregressive: expected False for images"):
        SplineFlow(image_shape=(1, 2, 2), num_levels=4, autoregressive=True)
    with pytest.raises(ValueError, match="num_transforms: expected at least 1, got 0"):
        IAF(num_transforms=0)
    model = MAF()
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 2\), got \(3, 4\)"):
        model.log_prob(torch.zeros(3, 4))
    with pytest.raises(ValueError, match='method: expected "cached" or "naive"'):
        model.sample(1, method="fast")
    with pytest.raises(ValueError, match="std: expected positive numbers, got 0"):
        model.standardize(torch.zeros(2), torch.tensor([1.0, 0]))
    with pytest.raises(ValueError, match="standardize: expected a model of real-valued data"):
        MAF(image_shape=(1, 2, 2), num_levels=4).standardize(torch.zeros(2), torch.ones(2))
