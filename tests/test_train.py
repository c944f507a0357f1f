import itertools
import json
import math
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
from models.test_contract import SMALL as CONTRACT_SMALL
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import gmfast.data
from gmfast import audio
from gmfast.data import Dataset, load, to_unit
from gmfast.models import MADE, MODELS, Model, WaveNet
from gmfast.training import Settings, Trainer, build_model, evaluate, load_run, read_config

TINY = {"nr_resnet": 1, "nr_filters": 4, "nr_logistic_mix": 2, "dropout": 0.5}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Only a CPU promises the same bits."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def tiny(**settings):
    return Settings(**{"options": TINY, "batch_size": 8, "checkpoint_every": 3} | settings)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(run, other):
    """Bit for bit: weights, average, optimiser and the metrics but for the time they took."""
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = load_file(run / "last" / name), load_file(other / "last" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    players, others = (torch.load(path / "last/optimizer.pt", weights_only=True) for path in (run, other))
    assert players.keys() == others.keys()
    for name in players:
        a, b = players[name]["state"], others[name]["state"]
        assert a.keys() == b.keys() and all(torch.equal(a[i][key], b[i][key]) for i in a for key in a[i])
    updates = (json.loads((path / "last/state.json").read_text())["updates"] for path in (run, other))
    assert next(updates) == next(updates)
    timing = {"seconds": None, "items_per_second": None}
    a, b = ([line | timing for line in metrics(path)] for path in (run, other))
    assert a == b


class Toy(Model):
    """Predicts each pixel with a bias; the least that a model needs."""

    modalities = frozenset({"images"})
    family = "toy"

    def __init__(self, image_shape=(1, 8, 8), num_levels=17, num_labels=None):
        super().__init__(num_levels, num_labels)
        self.image_shape = tuple(image_shape)
        self.mean = nn.Parameter(torch.zeros(image_shape))
        self.calls = 0

    def before(self, call):
        """What a test lets happen in the given call of `loss`."""

    def loss(self, x, label=None):
        self.calls += 1
        return (x - self.mean).square().mean() * (self.before(self.calls) or 1.0)

    def sample(self, n, *, seed=None):
        return self.mean.expand(n, *self.image_shape)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(MODELS, "toy", Toy)
    return Settings(model="toy", batch_size=100, checkpoint_every=2, lr=0.05)


def test_training_learns(tmp_path):
    trainer = Trainer.start(tiny(lr=0.01, batch_size=32, evaluate_every=10), tmp_path)
    before = trainer.evaluate()
    assert trainer.fit(40, progress=False)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert [line["step"] for line in lines if "heldout" in line] == [10, 20, 30, 40]
    assert lines[-1]["heldout"] == trainer.evaluate() < before - 0.5
    assert lines[9]["lr"] == pytest.approx(0.01 * 0.999995**9, rel=1e-12)
    model, settings, step = load_run(tmp_path)
    assert step == 40 and settings == trainer.settings and not model.training
    assert evaluate(model, load("digits")) == trainer.evaluate()


@pytest.mark.parametrize("conditional", [False, True])
def test_resumed_run_is_the_uninterrupted_one(tmp_path, conditional):
    settings = tiny(conditional=conditional, seed=3)
    Trainer.start(settings, tmp_path / "whole").fit(7, progress=False)
    Trainer.start(settings, tmp_path / "parts").fit(4, progress=False)
    torch.manual_seed(123)  # what the process did meanwhile is of no consequence
    Trainer.resume(tmp_path / "parts").fit(7, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    Trainer.start(tiny(conditional=conditional, seed=4), tmp_path / "other").fit(7, progress=False)
    assert metrics(tmp_path / "other")[0]["loss"] != metrics(tmp_path / "whole")[0]["loss"]


def test_a_run_from_before_there_were_players_is_resumed(tmp_path):
    """The file was the only optimiser's state, without the rates that decay starts from; no counters."""
    settings = tiny(lr_decay=0.5)
    Trainer.start(settings, tmp_path / "whole").fit(5, progress=False)
    Trainer.start(settings, tmp_path / "old").fit(3, progress=False)
    checkpoint = tmp_path / "old/last"
    states = torch.load(checkpoint / "optimizer.pt", weights_only=True)["model"]
    for group in states["param_groups"]:
        del group["initial_lr"]
    torch.save(states, checkpoint / "optimizer.pt")
    state = json.loads((checkpoint / "state.json").read_text())
    del state["updates"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    Trainer.resume(tmp_path / "old").fit(5, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "old")


def test_killed_run_resumes_to_the_uninterrupted_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = [f"--set={name}={value}" for name, value in TINY.items()]
    command = [
        sys.executable,
        "-c",
        "from gmfast.cli import main; main()",
        "train",
        "pixelcnnpp",
        "--out",
        killed,
    ]
    command += ["--steps=1000000000", "--batch-size=8", "--checkpoint-every=3", "--device=cpu", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        log = killed / "metrics.jsonl"
        while not log.exists() or log.read_text().count("\n") < 7:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    trainer = Trainer.resume(killed)
    assert 6 <= trainer.step < 10**9 and trainer.step % 3 == 0 and len(metrics(killed)) == trainer.step
    steps = trainer.step + 4
    trainer.fit(steps, progress=False)
    Trainer.start(tiny(), whole).fit(steps, progress=False)
    assert_same_run(whole, killed)


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize(
    "moment",
    [
        "gmfast.training.checkpoint.save_file",
        "gmfast.training.checkpoint.torch.save",
        "pathlib.Path.write_text",
        "gmfast.training.checkpoint._fsync",
        "pathlib.Path.rename",
        "pathlib.Path.symlink_to",
        "pathlib.Path.replace",
        "gmfast.training.checkpoint.shutil.rmtree",
    ],
)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_checkpoint_is_whole_or_not_there(tmp_path, toy, monkeypatch, moment, done):
    trainer = Trainer.start(toy, tmp_path / "run")
    trainer.fit(4, progress=False)
    reference = load_file(tmp_path / "run/last/model.safetensors")["mean"]
    original = pkgutil.resolve_name(moment)
    killed = []

    def dies(*args, **kwargs):
        if done:
            original(*args, **kwargs)
        killed.append(moment)
        raise Killed

    trainer.settings.checkpoint_every = 100
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(moment, dies)
        trainer.fit(5, progress=False)
    assert killed
    _, _, step = load_run(tmp_path / "run")
    assert step in (4, 5)
    resumed = Trainer.resume(tmp_path / "run")
    assert resumed.step == step and len(metrics(tmp_path / "run")) == step
    if step == 4:
        assert torch.equal(resumed.model.mean, reference)
    resumed.fit(8, progress=False)
    Trainer.start(toy, tmp_path / "whole").fit(8, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*")) and len(list((tmp_path / "run").glob("step-*"))) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, toy, monkeypatch, bad):
    monkeypatch.setattr(Toy, "before", lambda self, call: bad if call == 4 else None)
    trainer = Trainer.start(toy, tmp_path)
    with pytest.raises(
        FloatingPointError, match=rf"step 4: the loss is {bad} .* checkpoint is .*step-00000002"
    ):
        trainer.fit(10, progress=False)
    assert torch.isfinite(trainer.model.mean).all() and torch.isfinite(trainer.ema.mean).all()
    assert len(metrics(tmp_path)) == 3
    _, _, step = load_run(tmp_path)
    assert step == 2


def test_interrupt_finishes_the_step_and_saves(tmp_path, toy, monkeypatch):
    monkeypatch.setattr(
        Toy, "before", lambda self, call: os.kill(os.getpid(), signal.SIGINT) if call == 3 else None
    )
    handler = signal.getsignal(signal.SIGINT)
    trainer = Trainer.start(toy, tmp_path / "parts")
    assert not trainer.fit(10, progress=False)
    assert trainer.step == 3 == load_run(tmp_path / "parts")[2]
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    monkeypatch.setitem(MODELS, "toy", Toy)
    Trainer.resume(tmp_path / "parts").fit(6, progress=False)
    Trainer.start(toy, tmp_path / "whole").fit(6, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_optimiser_is_adam_with_polyak_averaging(tmp_path, toy):
    toy.lr_decay, toy.ema_decay, toy.max_grad_norm = 0.5, 0.4, 0.01
    trainer = Trainer.start(toy, tmp_path)
    trainer.model.double()
    trainer.ema.double()
    weight, average = torch.zeros(64, dtype=torch.double), torch.zeros(64, dtype=torch.double)
    first, second, beta1, beta2 = 0.0, 0.0, 0.95, 0.9995
    for step in range(1, 6):
        x, _ = trainer._batch()
        gradient = 2 * (weight - x.double().flatten(1)).mean(0) / 64
        norm = gradient.norm().item()
        gradient *= min(1, 0.01 / (norm + 1e-6))
        first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
        corrected = (second / (1 - beta2**step)).sqrt() + 1e-8
        weight = weight - 0.05 * 0.5 ** (step - 1) * first / (1 - beta1**step) / corrected
        decay = min(0.4, step / (step + 9))
        average = decay * average + (1 - decay) * weight
        trainer.fit(step, progress=False)
        assert torch.allclose(trainer.model.mean.flatten(), weight, rtol=1e-6, atol=1e-9)
        assert torch.allclose(trainer.ema.mean.flatten(), average, rtol=1e-6, atol=1e-9)
        assert metrics(tmp_path)[-1]["grad_norm"] == pytest.approx(norm, rel=1e-6)


def test_an_epoch_shows_each_image_once(tmp_path, toy):
    trainer = Trainer.start(toy, tmp_path)
    images = to_unit(trainer.dataset.train, 17)
    seen = []
    for trainer.step in range(28):
        x, label = trainer._batch()
        assert x.shape == (100, 1, 8, 8) and label is None
        seen.append(x)
    first, second = torch.cat(seen[:14]), torch.cat(seen[14:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        shown, counts = torch.unique(epoch.flatten(1), dim=0, return_counts=True)
        known, known_counts = torch.unique(images.flatten(1), dim=0, return_counts=True)
        index = {tuple(image): i for i, image in enumerate(known.tolist())}
        where = torch.tensor([index[tuple(image)] for image in shown.tolist()])
        assert (counts <= known_counts[where]).all()


def test_bfloat16_is_close_to_float32(tmp_path):
    runs = {}
    for precision in ("float32", "bfloat16"):
        Trainer.start(tiny(precision=precision, batch_size=64), tmp_path / precision).fit(5, progress=False)
        runs[precision] = [line["loss"] for line in metrics(tmp_path / precision)]
        assert {
            value.dtype for value in load_file(tmp_path / precision / "last/model.safetensors").values()
        } == {
            torch.float32,
            torch.bool,
        }
    assert runs["float32"] != runs["bfloat16"]
    assert runs["bfloat16"] == pytest.approx(runs["float32"], rel=0.02)


def test_tensorboard(tmp_path, toy):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    Trainer.start(toy, tmp_path).fit(3, tensorboard=True, progress=False)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(line["step"], pytest.approx(line["loss"])) for line in metrics(tmp_path)]


def test_a_run_is_not_overwritten_and_resumes_as_it_began(tmp_path, toy):
    Trainer.start(toy, tmp_path).fit(2, progress=False)
    with pytest.raises(
        ValueError, match=r"out: expected a new folder, but .* holds a run \(--resume continues it\)"
    ):
        Trainer.start(toy, tmp_path)
    with pytest.raises(ValueError, match=r"lr: expected 0.05, as the run in .* began, got 0.1"):
        Trainer.resume(tmp_path, lr=0.1)
    assert Trainer.resume(tmp_path, checkpoint_every=7).settings.checkpoint_every == 7
    with pytest.raises(
        FileNotFoundError, match=r"run: expected a folder that `gmfast train` wrote, but .*/last does not"
    ):
        Trainer.resume(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut short", "empty", "other bytes", "gone"])
def test_a_damaged_checkpoint_is_named(tmp_path, toy, name, damage):
    Trainer.start(toy, tmp_path).fit(2, progress=False)
    path = (tmp_path / "last").resolve() / name
    content = path.read_bytes()
    damaged = {"cut short": content[: len(content) * 2 // 3], "empty": b"", "other bytes": b"\x93" * 900}
    path.unlink() if damage == "gone" else path.write_bytes(damaged[damage])
    loads = [] if name in ("optimizer.pt", "model.safetensors") else [load_run]
    for load_it in (Trainer.resume, *loads):
        with pytest.raises(
            ValueError, match=rf"run: expected a checkpoint, but .*{re.escape(name)} cannot be"
        ) as e:
            load_it(tmp_path)
        assert "\n" not in str(e.value)


def test_newer_foreign_and_malicious_checkpoints_are_refused(tmp_path, toy):
    Trainer.start(toy, tmp_path).fit(2, progress=False)
    path = tmp_path / "last" / "state.json"
    state = json.loads(path.read_text())
    for change, message in [
        (
            {"settings": state["settings"] | {"newsetting": 1}, "version": "9.0"},
            "version 9.0, with settings newsett",
        ),
        ({"format": 99}, "with format 99 that"),
        ({"model": {"image_shape": [1, 4, 4], "num_levels": 17}}, "ema.safetensors cannot be used"),
        (
            {"settings": state["settings"] | {"batch_size": "many"}},
            "batch_size: expected int or None, got 'many'",
        ),
        ({"step": "two"}, "state.json cannot be used"),
        ({"settings": []}, "state.json cannot be used"),
    ]:
        path.write_text(json.dumps(state | change))
        with pytest.raises(ValueError, match=message):
            load_run(tmp_path)
    path.write_text(json.dumps(state))

    class Runs:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"model": Runs()}, tmp_path / "last/optimizer.pt")
    with pytest.raises(ValueError, match=r"optimizer.pt cannot be used"):
        Trainer.resume(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, toy, monkeypatch):
    trainer = Trainer.start(toy, tmp_path)
    trainer.fit(2, progress=False)
    for function, error in [
        ("save_file", SafetensorError("IoError: No space left on device")),
        ("torch.save", RuntimeError("PytorchStreamWriter failed writing file")),
        ("_fsync", OSError(28, "No space left on device")),
    ]:
        with monkeypatch.context() as patch:

            def fails(*args, error=error, **kwargs):
                raise error

            patch.setattr(f"gmfast.training.checkpoint.{function}", fails)
            with pytest.raises(OSError, match=r"out: .*; the last good checkpoint is .*step-00000002"):
                Trainer.resume(tmp_path).fit(4, progress=False)
        assert load_run(tmp_path)[2] == 2 and not list(tmp_path.glob(".*"))
    Trainer.resume(tmp_path).fit(4, progress=False)


def test_a_run_has_one_trainer_at_a_time(tmp_path, toy, monkeypatch):
    trainer = Trainer.start(toy, tmp_path)

    def another(self, call):
        with pytest.raises(ValueError, match=r"out: expected a run that is not being trained, but another"):
            Trainer.resume(tmp_path)

    monkeypatch.setattr(Toy, "before", another)
    assert trainer.fit(2, progress=False) and len(metrics(tmp_path)) == 2
    assert Trainer.resume(tmp_path).step == 2


def test_a_run_is_repeated_from_its_own_settings(tmp_path, toy):
    toy.warmup, toy.seed = 3, 5
    Trainer.start(toy, tmp_path / "one").fit(3, progress=False)
    settings = Settings(**read_config(tmp_path / "one/settings.toml"))
    assert settings == toy
    Trainer.start(settings, tmp_path / "two").fit(3, progress=False)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    (tmp_path / "wrong.toml").write_text("steps = 3")
    with pytest.raises(ValueError, match=r"config: expected some of model, .*, got 'steps'"):
        read_config(tmp_path / "wrong.toml")
    (tmp_path / "wrong.toml").write_text("steps 3")
    with pytest.raises(ValueError, match=r"config: expected TOML in .*wrong.toml"):
        read_config(tmp_path / "wrong.toml")


def test_schedules_of_the_learning_rate():
    cosine = Settings(lr_schedule="cosine", lr_steps=100, warmup=10)
    assert [cosine.lr_factor(step) for step in (0, 4, 50, 100, 1000)] == pytest.approx(
        [0.1, 0.5 * (0.5 + 0.5 * math.cos(0.04 * math.pi)), 0.5, 0, 0], abs=1e-12
    )
    assert Settings(lr_decay=0.5, warmup=2).lr_factor(3) == 0.125
    for wrong, message in [
        ({"lr_schedule": "linear"}, "lr_schedule: expected exponential or cosine, got 'linear'"),
        ({"lr_schedule": "cosine"}, "lr_steps: expected the length of the cosine schedule"),
        ({"warmup": -1}, "warmup: expected 0 or more steps, got -1"),
        ({"batch_size": "8"}, "batch_size: expected int or None, got '8'"),
        ({"flip": 1}, "flip: expected bool, got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            Settings(**wrong)


class Items(torch.utils.data.Dataset):
    """Digits as a user's own map-style data set."""

    def __init__(self):
        self.digits = load("digits")

    def __len__(self):
        return 200

    def __getitem__(self, index):
        return self.digits.train[index], int(self.digits.train_labels[index])


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        items = Items()
        yield from (items[i] for i in range(50))


@pytest.mark.parametrize("data", [Items, Stream])
def test_a_data_set_of_ones_own(tmp_path, data):
    """Workers change no numbers, a run is resumed in the middle of an epoch, and no folder is needed."""

    def fresh():
        torch.manual_seed(0)
        return MADE((1, 8, 8), num_levels=17, hidden=(8,), num_labels=10)

    settings = Settings(batch_size=8)
    whole = Trainer(fresh(), data(), settings, tmp_path / "whole")
    assert whole.settings.model == "made" and whole.fit(10, progress=False)
    Trainer(fresh(), data(), settings, tmp_path / "parts").fit(4, progress=False)
    resumed = Trainer.resume(tmp_path / "parts", model=fresh(), dataset=data())
    assert resumed.step == 4 and resumed.fit(10, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    nowhere = Trainer(fresh(), data(), settings, workers=2 if data is Items else 0)
    assert nowhere.fit(10, progress=False)
    for parameter, another in zip(whole.model.parameters(), nowhere.model.parameters(), strict=True):
        assert torch.equal(parameter, another)
    model, loaded, step = load_run(tmp_path / "whole")
    assert isinstance(model, MADE) and loaded.conditional and step == 10
    with pytest.raises(ValueError, match="data: expected images of shape"):
        Trainer(MADE((1, 4, 4), num_levels=17), Items(), settings)


def test_pictures_of_a_run(tmp_path):
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "gmfast", "train", "pixelcnnpp", "--steps=4", "--batch-size=8", "--device=cpu"]
        + ["--sample-every=2", "--evaluate-every=2", "--track=tensorboard", f"--out={out}"]
        + [f"--set={name}={value}" for name, value in TINY.items()],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in ("samples-00000002.png", "samples-00000004.png", "losses.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 50
    assert list((out / "tensorboard").rglob("events*")) and metrics(out)[0]["items_per_second"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "pixelrnn"}, "model: expected one of .*pixelcnnpp.*, got 'pixelrnn'"),
        ({"precision": "float8"}, "precision: expected float32 or bfloat16, got 'float8'"),
        ({"batch_size": 0}, "batch_size: expected a positive number, got 0"),
        ({"lr": float("nan")}, "lr: expected a positive number, got nan"),
        ({"ema_decay": 1.5}, "ema_decay: expected a number from 0 to 1, got 1.5"),
        ({"evaluate_every": -1}, "evaluate_every: expected 0 or more steps, got -1"),
        ({"batch_size": 5000}, "batch_size: expected at most the 1437 training images of digits, got 5000"),
        ({"options": {"depth": 3}}, "options: expected some of nr_resnet, .* for pixelcnnpp, got 'depth'"),
        (
            {"options": {"num_levels": 3}},
            "options: expected some of nr_resnet, .* for pixelcnnpp, got 'num_levels'",
        ),
        ({"model": "made", "options": {"hidden": 100}}, r"hidden: expected a list such as \[100\], got 100"),
        ({"rate": 8000}, "rate: expected None for digits, which is images, got 8000"),
        ({"encoding": "linear"}, "encoding: expected None for digits, which is images, got 'linear'"),
        ({"options": {"nr_filters": "many"}}, "nr_filters: expected int, got 'many'"),
        (
            {"data": "photos", "conditional": True},
            "conditional: expected data with labels, but photos has none",
        ),
        (
            {"model": "pixelcnn", "conditional": True},
            "conditional: expected a model of classes, but pixelcnn is none",
        ),
    ],
)
def test_wrong_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Trainer.start(Settings(**settings), tmp_path)
    assert not list(tmp_path.iterdir())


def test_evaluating_on_other_data_says_what_does_not_fit(tmp_path, toy):
    with pytest.raises(ValueError, match="data: expected 17 levels, as the model has, got 256"):
        evaluate(Toy(), load("photos", size=8))
    with pytest.raises(
        ValueError, match="data: expected labels for a conditional model, but photos has none"
    ):
        evaluate(Toy((3, 8, 8), num_levels=256), load("photos", size=8), conditional=True)
    with pytest.raises(
        ValueError, match=r"data: expected images of shape \(3, 4, 4\), .* got images of shape \(3, 8, 8\)"
    ):
        evaluate(Toy((3, 4, 4), num_levels=256), load("photos", size=8))
    with pytest.raises(ValueError, match="data: expected sound, as the model has, got digits"):
        evaluate(WaveNet(num_levels=17, **SMALL["wavenet"]), load("digits"))


SMALL = {**CONTRACT_SMALL, "pixelcnnpp": TINY}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_resumes_evaluates_and_samples(tmp_path, model):
    data = "digits"
    if model == "wavenet":
        pytest.importorskip("soundfile")
        data = tmp_path / "noise.wav"
        audio.write(data, torch.rand(1000) - 0.5, 8000)
    settings = {"model": model, "data": str(data), "options": SMALL[model], "batch_size": 4}
    settings |= {"size": 50} if model == "wavenet" else {"conditional": model != "pixelcnn"}
    Trainer.start(Settings(**settings), tmp_path / "whole").fit(3, progress=False)
    Trainer.start(Settings(**settings), tmp_path / "parts").fit(2, progress=False)
    trainer = Trainer.resume(tmp_path / "parts", **settings)
    trainer.fit(3, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    trained, loaded, step = load_run(tmp_path / "parts")
    assert step == 3 and loaded == trainer.settings
    whole = loaded.load_data()
    labels = None if whole.heldout_labels is None else whole.heldout_labels[:8]  # some densities take long
    trainer.dataset = replace(whole, heldout=whole.heldout[:8], heldout_labels=labels)
    assert evaluate(trained, trainer.dataset, loaded.conditional) == trainer.evaluate() < 20
    label = 1 if loaded.conditional else None
    options = {"length": 5} if model == "wavenet" else {}
    x = trained.sample(2, seed=0, label=label, **options)
    assert x.shape == ((2, 1, 5) if options else (2, 1, 8, 8)) and x.abs().max() <= 1


@pytest.mark.parametrize("model", ["iaf", "maf", "spline_flow"])
def test_real_valued_data(tmp_path, model):
    """Trains, resumes, evaluates and samples, in the data's units."""
    settings = {"model": model, "data": "wine", "options": SMALL[model], "batch_size": 16}
    settings["conditional"] = model == "maf"
    Trainer.start(Settings(**settings), tmp_path / "whole").fit(3, progress=False)
    Trainer.start(Settings(**settings), tmp_path / "parts").fit(2, progress=False)
    Trainer.resume(tmp_path / "parts", **settings).fit(3, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    trained, loaded, _ = load_run(tmp_path / "parts")
    dataset = loaded.load_data()
    assert torch.equal(trained.mean, dataset.mean) and torch.equal(trained.std, dataset.std)
    bits = evaluate(trained, dataset, loaded.conditional)
    labels = dataset.heldout_labels if loaded.conditional else None
    with torch.no_grad():
        log_prob = trained.log_prob(dataset.heldout, labels)
    assert bits == pytest.approx(-log_prob.mean().item() / (13 * math.log(2)), rel=1e-5)
    x = trained.sample(200, seed=0, label=torch.arange(200) % 3 if loaded.conditional else None)
    assert ((x.median(0).values - dataset.mean) / dataset.std).abs().max() < 3  # alcohol: 13.0 ± 0.8


def test_consistency_model_learns_from_a_run(tmp_path):
    options = {"data": "digits", "batch_size": 4}
    teacher = Trainer.start(Settings(model="edm", options=SMALL["edm"], **options), tmp_path / "edm")
    settings = Settings(
        model="consistency", options=SMALL["consistency"], teacher=str(tmp_path / "edm"), **options
    )
    teacher.fit(1, progress=False)
    losses = {}
    for name, chosen in (("distilled", settings), ("alone", replace(settings, teacher=None))):
        Trainer.start(chosen, tmp_path / name).fit(2, progress=False)
        losses[name] = [line["loss"] for line in metrics(tmp_path / name)]
    assert losses["distilled"] != losses["alone"]
    Trainer.start(settings, tmp_path / "parts").fit(1, progress=False)
    Trainer.resume(tmp_path / "parts").fit(2, progress=False)
    assert_same_run(tmp_path / "distilled", tmp_path / "parts")
    model, loaded, _ = load_run(tmp_path / "parts")
    assert loaded.teacher == str(tmp_path / "edm") and model.steps_taken == 2
    with pytest.raises(ValueError, match="teacher: expected a model that learns from one, got ddpm"):
        Trainer.start(
            Settings(model="ddpm", teacher=settings.teacher, options=SMALL["ddpm"]), tmp_path / "no"
        )


def test_models_of_images_take_no_vectors(tmp_path):
    with pytest.raises(ValueError, match="data: expected images for made, but wine is vectors"):
        Trainer.start(Settings(model="made", data="wine"), tmp_path)
    model = build_model(Settings(model="maf", data="wine"), load("wine"))
    with pytest.raises(ValueError, match="data: expected vectors, as the model has, got 17 levels"):
        evaluate(model, load("digits"))
    with pytest.raises(ValueError, match=r"vectors of shape \(13,\), .* got vectors of shape \(2,\)"):
        evaluate(model, load("moons"))


VECTORS = (*gmfast.data.TOYS, *gmfast.data.TABLES)
IMAGES = [name for name in gmfast.data.BUILT_IN if name not in (*gmfast.data.RECORDINGS, *VECTORS)]


@pytest.mark.parametrize(
    ("model", "data", "encoding"),
    [
        *itertools.product([model for model in MODELS if model != "wavenet"], IMAGES, [None]),
        *itertools.product(["wavenet"], gmfast.data.RECORDINGS, ["mulaw", "linear"]),
    ],
)
def test_defaults_for_built_in_data_are_small(model, data, encoding):
    """The recordings need a package, and are nothing but clips here."""
    settings = Settings(model=model, data=data, encoding=encoding)
    if encoding:
        clips = torch.zeros(1, 1, 4096, dtype=torch.int32)
        dataset = Dataset(data, clips, clips, None, None, audio.ENCODINGS[encoding].num_levels, 8000)
    else:
        dataset = settings.load_data()
    with torch.device("meta"):
        count = sum(p.numel() for p in build_model(settings, dataset).parameters())
        published = sum(p.numel() for p in MODELS[model]().parameters())
    assert count < 3e6 and (count < published / 3 or model == "made" or "vectors" in MODELS[model].modalities)
    assert settings.options.get("head") == {"linear": "mixture"}.get(
        encoding, "bernoulli" if (model, data) == ("made", "binary-digits") else None
    )


def test_what_is_given_goes_before_what_suits_the_model(tmp_path):
    suited, given = Settings(model="pixelcnn"), {"lr": 0.1, "batch_size": 7, "options": {"nr_resnet": 9}}
    chosen = Settings(model="pixelcnn", **given)
    assert (suited.lr, suited.batch_size, suited.options["nr_resnet"]) == (0.002, 64, 4)
    assert (chosen.lr, chosen.batch_size) == (0.1, 7) and chosen.options == suited.options | given["options"]
    photos = Settings(model="made", data="photos")
    assert (photos.size, Settings(model="made", data="photos", size=4).size) == (8, 4)
    elsewhere = Settings(model="pixelcnn", data=str(tmp_path))
    assert (elsewhere.lr, elsewhere.batch_size, elsewhere.options) == (1e-3, 64, {})
    assert Settings(**asdict(chosen)) == chosen
    categorical = Settings(model="wavenet", encoding="linear", options={"head": "categorical"})
    clips = torch.zeros(1, 1, 8, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"num_levels: expected at most 4096 for .*, got 65536"):
        build_model(categorical, Dataset("toy", clips, clips, num_levels=65536, rate=8000))
    with pytest.raises(ValueError, match=r"options: expected some of num_cycles, .*, got 'local_channels'"):
        build_model(
            Settings(model="wavenet", options={"local_channels": 4}), Dataset("toy", clips, clips, rate=8000)
        )
