"""A two-player GAN as a second kind of model: losses that take turns, an optimiser and a ratio each."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import gmfast.functional as GF
from gmfast.data import load, to_unit
from gmfast.models import MODELS, Model, Player
from gmfast.models.base import evaluating
from gmfast.training import Settings, Trainer, evaluate, load_run


def mlp(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, outputs)
    )


def adam(parameters, lr):
    return torch.optim.Adam(parameters, lr, (0.0, 0.99))


def rmsprop(parameters, lr):
    return torch.optim.RMSprop(parameters, lr)


class GAN(Model):
    """Non-saturating GAN of points of the plane (Goodfellow et al., 2014, arXiv:1406.2661)."""

    modalities = frozenset({"vectors"})
    family = "GAN"
    data = "moons"
    metrics = {"mean_distance": "distance of a sample from the data's mean"}  # noqa: RUF012

    def __init__(self, image_shape=(2,), num_levels=None, num_labels=None, latent=4):
        super().__init__(num_levels, num_labels)
        self.image_shape, self.latent = tuple(image_shape), latent
        self.generator, self.critic = mlp(latent, 2), mlp(2, 1)
        self.register_buffer("mean", torch.zeros(2))
        self.spoil = lambda step: 1.0

    def standardize(self, mean, std):
        self.mean.copy_(mean)

    def players(self):
        return {
            "critic": Player(self.critic.parameters(), adam, lr=2.0, ema=False),
            "generator": Player(self.generator.parameters(), rmsprop, ratio=2),
        }

    def training_step(self, batch, step):
        fake = self.generator(torch.randn(len(batch.x), self.latent))
        real_score, fake_score = self.critic(batch.x), self.critic(fake.detach())
        yield (
            "critic",
            {
                "loss": F.softplus(-real_score).mean() + F.softplus(fake_score).mean(),
                "margin": (real_score.mean() - fake_score.mean()).detach(),
            },
        )
        if self.players()["generator"].due(step):
            yield "generator", {"loss": F.softplus(-self.critic(fake)).mean() * self.spoil(step)}

    def evaluate(self, batch):
        return {"mean_distance": (self.sample(len(batch.x), seed=0) - self.mean).norm(dim=1)}

    @torch.no_grad()
    def sample(self, n, *, seed=None):
        request = self.request(n, seed=seed)
        with evaluating(self):
            return self.generator(GF.standard_normal((n, self.latent), seed=request.seed))


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setitem(MODELS, "gan", GAN)
    return Settings(model="gan", batch_size=64, lr=0.002, checkpoint_every=3, max_grad_norm=1.0)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, settings):
    """Every optimiser and every counter is in the checkpoint."""
    Trainer.start(settings, tmp_path / "whole").fit(7, progress=False)
    Trainer.start(settings, tmp_path / "parts").fit(4, progress=False)
    torch.manual_seed(123)  # what the process did meanwhile does not matter
    resumed = Trainer.resume(tmp_path / "parts")
    assert resumed.updates == {"critic": 4, "generator": 2}
    resumed.fit(7, progress=False)
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(tmp_path / run / "last" / name) for run in ("whole", "parts"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    a, b = (torch.load(tmp_path / run / "last/optimizer.pt", weights_only=True) for run in ("whole", "parts"))
    assert a.keys() == b.keys() == {"critic", "generator"}
    for player in a:
        for i, state in a[player]["state"].items():
            assert all(torch.equal(state[key], b[player]["state"][i][key]) for key in state)
    a, b = (
        [{**line, "seconds": None, "items_per_second": None} for line in lines(tmp_path / run)]
        for run in ("whole", "parts")
    )
    assert a == b
    state = json.loads((tmp_path / "whole/last/state.json").read_text())
    assert (state["step"], state["updates"]) == (7, {"critic": 7, "generator": 3})
    for step, line in enumerate(a):
        assert {"critic_loss", "critic_margin", "critic_grad_norm", "lr"} < line.keys()
        assert ("generator_loss" in line) == (step % 2 == 1)
    model, _, step = load_run(tmp_path / "parts")
    assert step == 7 and evaluate(model, load("moons")) == resumed.evaluate()


def test_each_player_is_updated_by_its_own_loss(tmp_path, settings):
    """Against the same loop written out, with torch's own optimisers and averages."""
    trainer = Trainer.start(settings, tmp_path)
    model = copy.deepcopy(trainer.model)
    average = [p.detach().clone() for p in model.generator.parameters()]
    critic = torch.optim.Adam(model.critic.parameters(), betas=(0.0, 0.99))
    generator = torch.optim.RMSprop(model.generator.parameters())
    for step in range(6):
        x = trainer._batch().x
        trainer.fit(step + 1, progress=False)
        torch.manual_seed(_step_seed(settings.seed, step))
        lr = 0.002 * 0.999995**step
        fake = model.generator(torch.randn(64, 4))
        loss = F.softplus(-model.critic(x)).mean() + F.softplus(model.critic(fake.detach())).mean()
        _update(critic, model.critic, loss, 2 * lr)
        if step % 2 == 1:
            _update(generator, model.generator, F.softplus(-model.critic(fake)).mean(), lr)
        decay = min(settings.ema_decay, (step + 1) / (step + 10))
        for mean, parameter in zip(average, model.generator.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
        for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
        for ours, theirs in zip(trainer.ema.generator.parameters(), average, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
        for ours, theirs in zip(
            trainer.ema.critic.parameters(), trainer.model.critic.parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)  # a player without a running average


def _step_seed(seed, step):
    from gmfast.training.random import seed_of

    return seed_of(seed, "step", step)


def _update(optimizer, module, loss, lr):
    parameters = list(module.parameters())
    for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = grad
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()


def test_a_loss_that_is_not_finite_names_its_player(tmp_path, settings):
    trainer = Trainer.start(settings, tmp_path)
    trainer.fit(3, progress=False)
    before = [p.clone() for p in trainer.model.generator.parameters()]
    trainer.model.spoil = lambda step: float("nan")
    with pytest.raises(FloatingPointError, match=r"step 4: the loss of generator is nan .*step-00000003"):
        trainer.fit(5, progress=False)
    assert all(map(torch.equal, before, trainer.model.generator.parameters()))
    assert load_run(tmp_path)[2] == 3 and len(lines(tmp_path)) == 3


def test_it_learns(tmp_path, settings):
    """The energy distance (Szekely and Rizzo, 2013) of fresh samples from held-out data falls."""
    settings.ema_decay, settings.checkpoint_every = 0.9, 1000
    trainer = Trainer.start(settings, tmp_path)
    real = to_unit(trainer.dataset.heldout, None)

    def distance():
        x = trainer.ema.sample(1000, seed=1)
        return torch.cdist(x, real).mean() - (torch.cdist(real, real).mean() + torch.cdist(x, x).mean()) / 2

    before = distance()
    trainer.fit(400, progress=False)
    assert distance() < before / 3


def test_players_are_checked(tmp_path, settings, monkeypatch):
    one, frozen = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1), requires_grad=False)
    assert [Player([one], ratio=3).due(step) for step in range(6)] == [False, False, True] * 2
    assert Player([one, frozen]).parameters == [one]
    with pytest.raises(ValueError, match="ratio: expected at least 1, got 0"):
        Player([one], ratio=0)
    with pytest.raises(ValueError, match="parameters: expected at least one that requires a gradient"):
        Player([frozen])
    trainer = Trainer.start(settings, tmp_path)
    for name, message in [
        ("generator", "training_step: expected an update of generator every 2 steps, got one at step 1"),
        ("teacher", "training_step: expected one of critic, generator, got 'teacher'"),
    ]:
        loss = trainer.model.generator(torch.randn(2, 4)).sum()
        step = [(name, {"loss": loss})]
        monkeypatch.setattr(trainer.model, "training_step", lambda batch, number, step=step: iter(step))
        with pytest.raises(ValueError, match=message):
            trainer.fit(1, progress=False)


def test_groups_keep_their_learning_rates(tmp_path, settings, monkeypatch):
    """An optimiser with groups of its own rates, and players without any running average."""

    def grouped(parameters, lr):
        groups = [{"params": parameters[:2], "lr": 0.01 * lr}, {"params": parameters[2:]}]
        return torch.optim.Adam(groups, lr)

    def players(self):
        return {
            "critic": Player(self.critic.parameters(), grouped, ema=False),
            "generator": Player(self.generator.parameters(), ratio=2, ema=False),
        }

    monkeypatch.setattr(GAN, "players", players)
    settings.lr_decay = 0.5
    Trainer.start(settings, tmp_path).fit(2, progress=False)
    trainer = Trainer.resume(tmp_path)
    trainer.fit(3, progress=False)
    rates = [group["lr"] for group in trainer.optimizers["critic"].param_groups]
    assert rates == pytest.approx([0.01 * 0.002 / 4, 0.002 / 4])
    assert all(map(torch.equal, trainer.ema.parameters(), trainer.model.parameters()))
