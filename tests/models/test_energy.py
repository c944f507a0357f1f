import math

import pytest
import torch
from models.diffusion_contracts import DiffusionContracts, Exact, seen_by
from models.image_contracts import images

from gmfast.models import EnergyModel


class TestEnergyModel(DiffusionContracts):
    model = EnergyModel
    guided = False
    pickles = False

    def tiny(self):
        return {"channels": 4, "num_scales": 2, "langevin_steps": 4, "buffer_size": 64}

    def test_samples_depend_on_the_seed_and_not_on_their_number(self, monkeypatch):
        """After 200 steps: 400 lead this tiny model to the same corners from everywhere."""
        monkeypatch.setitem(EnergyModel.sample.__kwdefaults__, "langevin_steps", 200)
        super().test_samples_depend_on_the_seed_and_not_on_their_number()

    def test_training_lowers_the_loss(self):
        """The loss is a difference; what training lowers is the energy of data, beside that of noise."""
        torch.manual_seed(0)
        model = EnergyModel(self.image_shape, **{"num_labels": 2, "penalty": 0.01} | self.tiny())
        x = images(model, 128).float()
        x = x * 0.2 + 0.6
        label = torch.arange(128) % 2
        optimizer = torch.optim.Adam(model.parameters(), 0.01)

        def difference():
            with torch.no_grad():
                return model.energy(x, label).mean() - model.energy(torch.rand_like(x) * 2 - 1, label).mean()

        before = difference()
        for _ in range(30):
            loss = model.loss(x, label)
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad.isfinite().all() for p in model.parameters())
            optimizer.step()
        assert difference() < before - 0.15


def build(**options):
    return TestEnergyModel().build(**options)


def test_score_is_minus_the_gradient():
    model = build(num_labels=2)
    x, label = images(model, 2) * 0.9, torch.tensor([0, 1])
    with torch.no_grad():
        score = model.score(x, label)
    assert not score.requires_grad
    for i in ((0, 0, 1, 2), (1, 0, 3, 3)):
        shift = torch.zeros_like(x)
        shift[i] = 1e-6
        slope = (model.energy(x + shift, label) - model.energy(x - shift, label))[i[0]] / 2e-6
        assert score[i].item() == pytest.approx(-slope.item(), rel=1e-5)
    each = torch.cat([model.energy(x[i : i + 1], label[i : i + 1]) for i in range(2)])
    assert torch.allclose(model.energy(x, label), each)
    assert not torch.isclose(model.energy(x, label), model.energy(x, 1 - label)).any()


def test_langevin_dynamics_is_the_textbook_s():
    """Steps down the energy with noise, which stay within the images' range."""
    model = build(step_size=2.0, noise=0.01)
    model.network = Exact(lambda x, label: 0.002 * (x - 0.3).square().flatten(1).sum(1))
    x = images(model, 512)
    one = model.langevin(x, None, 1, seed=torch.tensor(3))
    moved = x - 2.0 * 0.004 * (x - 0.3)
    inside = (moved.abs() < 0.95).nonzero(as_tuple=True)
    noise = (one - moved)[inside]
    assert one.abs().max() <= 1 and abs(noise.std() - 0.01) < 5e-4 and abs(noise.mean()) < 1e-3
    many = model.langevin(x, None, 600, seed=torch.tensor(3))
    # At rest: the variance of v' = (1 - a)·v + noise.
    a = 2.0 * 0.004
    assert abs(many.mean() - 0.3) < 0.01
    assert many.std().item() == pytest.approx(0.01 / math.sqrt(1 - (1 - a) ** 2), rel=0.05)
    model.network = Exact(lambda x, label: 5.0 * x.flatten(1).sum(1))
    steep = model.langevin(x * 0, None, 1, seed=torch.tensor(3))
    assert abs(steep.mean() + 2.0 * 0.01) < 1e-3  # of an element's gradient, at most 0.01 counts


def test_loss_is_the_textbook_s():
    model = build(penalty=0.5)
    x = images(model, 16)
    with seen_by(model.network) as calls:
        loss = model.train().loss(x)
    *langevin, ((both, _), energies) = calls
    assert len(langevin) == 4 and both.shape[0] == 32
    data, found = energies.chunk(2)
    expected = data.mean() - found.mean() + 0.5 * (data**2 + found**2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert (both[:16] - x).abs().max() < 0.05 and not both.requires_grad


def test_buffer_holds_what_chains_found():
    model = build(fresh=0.0, num_labels=2)
    x, label = images(model, 8), torch.arange(8) % 2
    before = model.buffer.clone()
    with seen_by(model.network) as calls:
        model.train().loss(x, label)
    (_, _), *_, ((both, labels), _) = [(c[0], c[1]) for c in calls]
    changed = (model.buffer != before).flatten(1).any(1)
    assert 5 <= changed.sum() <= 8
    found = both[8:]
    where = (model.buffer[changed][:, None] == found).flatten(2).all(2)
    assert where.any(1).all()  # each is one of the chains' ends
    for row, known in zip(where, model.buffer_label[changed], strict=True):
        assert known in labels[8:][row]
    distance = (model.buffer - before)[changed].abs().max()
    assert distance < 4 * (10.0 * 0.01 + 6 * 0.005)  # chains began in the buffer
    model.eval().loss(x, label)
    assert torch.equal((model.buffer != before).flatten(1).any(1), changed)


def test_fresh_chains_begin_with_noise():
    model = build(fresh=1.0, langevin_steps=1, num_labels=2)
    model.buffer.fill_(0.0)
    x, label = images(model, 64), torch.ones(64, dtype=torch.int64)
    model.train().loss(x, label)
    changed = (model.buffer != 0).flatten(1).any(1)
    assert model.buffer[changed].std() > 0.4 and (model.buffer_label[changed] == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"langevin_steps": 0}, "langevin_steps: expected at least 1, got 0"),
        ({"step_size": 0.0}, "step_size: expected a positive number, got 0.0"),
        ({"noise": -1.0}, "noise: expected a positive number, got -1.0"),
        ({"fresh": 1.5}, "fresh: expected a number from 0 to 1, got 1.5"),
        ({"penalty": -1.0}, "penalty: expected 0 or more, got -1.0"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        EnergyModel(**options)
