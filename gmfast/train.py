"""Training of any model that has `loss(x, label)`, and the runs it leaves on disk.

A run is a folder:

    metrics.jsonl        one line a step: loss, gradient norm, learning rate, seconds
    step-00001000/       a checkpoint: model.safetensors, ema.safetensors, optimizer.pt, state.json
    last                 a symbolic link to the newest checkpoint, which is always a complete one

Everything random at a step is a function of (seed, step): the batch, and the generator that dropout draws
from. So a resumed run goes on to the numbers of an uninterrupted one (on a CPU to the bit).
"""

import copy
import hashlib
import inspect
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from . import data
from ._progress import Progress, reporting
from .data import Dataset
from .models import DATA, DEFAULTS, MODELS
from .models.autoregressive import evaluating

#: How often training tells a file how far it is.
LINE_SECONDS = 30


@dataclass
class Settings:
    """What determines a run's numbers, and how often it stops to look and to save.

    What is None becomes what `gmfast.models.DEFAULTS` has for the model and the data; `options` that are not
    given do too.

    The optimiser's defaults are those of PixelCNN++ (Salimans et al., 2017): Adam with betas (0.95, 0.9995),
    the learning rate multiplied by 0.999995 each step, and Polyak averaging of the weights with 0.9995.
    """

    model: str = "pixelcnnpp"
    data: str | None = None  # None: what suits the model
    size: int | None = None  # these three as in `gmfast.data.load`; for sound Trainer puts in the last two
    rate: int | None = None
    encoding: str | None = None
    conditional: bool = False
    teacher: str | None = None  # a run whose model this one learns from (`distill`)
    options: dict = field(default_factory=dict)  # arguments of the model's constructor
    seed: int = 0
    batch_size: int | None = None  # 64 where nothing else suits
    lr: float | None = None  # 0.001
    lr_decay: float = 0.999995
    ema_decay: float = 0.9995
    max_grad_norm: float = 1.0
    precision: str = "float32"
    evaluate_every: int = 0  # 0: never
    checkpoint_every: int = 500

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {self.model!r}")
        if self.data is None:
            self.data = DATA.get(self.model, "digits")
        if self.data not in data.BUILT_IN:
            self.data = str(Path(self.data).absolute())
        if self.teacher is not None:
            self.teacher = str(Path(self.teacher).absolute())
        suited = {"batch_size": 64, "lr": 1e-3, "options": {}}
        suited |= DEFAULTS.get((self.model, self.data)) or DEFAULTS.get((self.model, None), {})
        options = suited.pop("options")
        for name, value in suited.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.model == "wavenet" and self.encoding == "linear":
            options = {**options, "head": "mixture"}  # a softmax over 65536 levels would be all of the model
        # Lists, as a run's state.json has them.
        self.options = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in {**options, **self.options}.items()
        }
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision: expected float32 or bfloat16, got {self.precision!r}")
        for name in ("batch_size", "checkpoint_every", "lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("lr_decay", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        if self.evaluate_every < 0:
            raise ValueError(f"evaluate_every: expected 0 or more steps, got {self.evaluate_every}")

    def load_data(self, name_or_path: str | None = None) -> Dataset:
        """The run's data, or other data prepared in the same way."""
        return data.load(name_or_path or self.data, size=self.size, rate=self.rate, encoding=self.encoding)


def build_model(settings: Settings, dataset: Dataset) -> nn.Module:
    """A fresh model for the data. Raises ValueError for an option that the model does not have."""
    cls = MODELS[settings.model]
    if settings.conditional and dataset.num_labels is None:
        raise ValueError(f"conditional: expected data with labels, but {dataset.name} has none")
    kinds = {name: type(parameter.default) for name, parameter in inspect.signature(cls).parameters.items()}
    if settings.conditional and "num_labels" not in kinds:
        raise ValueError(f"conditional: expected a model of classes, but {settings.model} is none")
    if dataset.rate is None:
        from_data = {"image_shape": dataset.image_shape, "num_levels": dataset.num_levels}
    else:
        from_data = {"length": dataset.train.shape[2], "num_levels": dataset.num_levels, "local_channels": 0}
    real_valued = getattr(cls, "real_valued", False)
    if not from_data.keys() <= kinds.keys() or (dataset.real_valued and not real_valued):
        expected = "images" if "image_shape" in kinds else "sound"
        if real_valued:
            expected += " or vectors"
        raise ValueError(
            f"data: expected {expected} for {settings.model}, but {dataset.name} is {dataset.items}"
        )
    if "num_labels" in kinds:
        from_data["num_labels"] = dataset.num_labels if settings.conditional else None
    names = ", ".join(name for name in kinds if name not in from_data)
    for name, value in settings.options.items():
        if name not in kinds or name in from_data:
            raise ValueError(f"options: expected some of {names} for {settings.model}, got {name!r}")
        # JSON has no tuples, and may write a float as an integer.
        accepted = {tuple: (tuple, list), float: (float, int)}.get(kinds[name], (kinds[name],))
        if type(value) not in accepted:
            expected = "a list such as [100]" if kinds[name] is tuple else kinds[name].__name__
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
    torch.manual_seed(_seed(settings.seed, "weights"))
    model = cls(**from_data, **settings.options)
    if dataset.real_valued:
        model.standardize(dataset.mean, dataset.std)
    return model


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: Dataset, conditional: bool = False, *, progress: Progress = False
) -> float:
    """The model's loss over the held-out data, in bits per dimension for a likelihood; of a model that trains
    on something else, its `heldout_loss`. The unit is the model's `unit`, where it has one. `progress`: True
    shows a bar, a function is called with how many are done and of how many.

    Raises ValueError when data and model do not go together."""
    levels = model.config["num_levels"]
    if dataset.num_levels != levels:
        expected, got = (
            "vectors" if count is None else f"{count} levels" for count in (levels, dataset.num_levels)
        )
        raise ValueError(f"data: expected {expected}, as the model has, got {got}")
    shape = model.config.get("image_shape")
    if shape is None and dataset.rate is None:
        raise ValueError(f"data: expected sound, as the model has, got {dataset.name}, which is images")
    if shape is not None and (dataset.rate is not None or tuple(shape) != dataset.image_shape):
        expected = "vectors" if levels is None else "images"
        raise ValueError(
            f"data: expected {expected} of shape {tuple(shape)}, as the model has, got {dataset.items} of "
            f"shape {tuple(dataset.train.shape[1:])}"
        )
    images, labels = dataset.heldout, dataset.heldout_labels if conditional else None
    if conditional and labels is None:
        raise ValueError(f"data: expected labels for a conditional model, but {dataset.name} has none")
    device = next(model.parameters()).device
    total = 0.0
    loss = getattr(model, "heldout_loss", model.loss)
    largest = getattr(model, "heldout_batch", 128)
    size = max(1, min(largest, 2**17 // images[0, 0].numel()))
    # What a loss draws, such as the noise of a flow, is the same each time and leaves training alone.
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        evaluating(model),
        reporting(progress, len(images), dataset.items[:-1], "evaluating") as advance,
    ):
        torch.manual_seed(0)
        for start in range(0, len(images), size):
            batch = slice(start, start + size)
            x = data.to_unit(images[batch].to(device), levels)
            total += _loss(loss, x, None if labels is None else labels[batch].to(device)).item() * len(x)
            advance(len(x))
    return total / len(images)


def load_run(run: Path) -> tuple[nn.Module, Settings, int]:
    """The averaged model of a run's last checkpoint, in eval mode on the CPU, its settings, and its step."""
    checkpoint, state = _last(run)
    settings = Settings(**state["settings"])
    model = MODELS[settings.model](**state["model"])
    model.load_state_dict(load_file(checkpoint / "ema.safetensors"))
    return model.eval(), settings, state["step"]


def column_names(run: Path) -> list[str] | None:
    """The names of the columns of the table that a run is trained on, where it had any."""
    return _last(run)[1].get("columns")


class Trainer:
    """One run. Use `Trainer.start` or `Trainer.resume`, then `fit`.

    `model` is being trained; `ema` is its running average, which is what a user evaluates and samples.
    """

    def __init__(self, settings: Settings, out: Path, device: str | None = None):
        self.out = Path(out)
        self.device = find_device(device)
        self.dataset = settings.load_data()
        self.settings = settings = replace(
            settings,
            rate=self.dataset.rate,
            encoding=None if self.dataset.rate is None else settings.encoding or "mulaw",
        )
        self.labels = self.dataset.train_labels if settings.conditional else None
        if settings.batch_size > len(self.dataset.train):
            raise ValueError(
                f"batch_size: expected at most the {len(self.dataset.train)} training {self.dataset.items} "
                f"of {self.dataset.name}, got {settings.batch_size}"
            )
        self.model = build_model(settings, self.dataset).to(self.device)
        if settings.teacher is not None:
            if not hasattr(self.model, "distill"):
                raise ValueError(f"teacher: expected a model that learns from one, got {settings.model}")
            self.model.distill(load_run(settings.teacher)[0].requires_grad_(False).to(self.device))
        self.optimizer = torch.optim.Adam(self.model.parameters(), settings.lr, (0.95, 0.9995), fused=True)
        self.step = 0

    @classmethod
    def start(cls, settings: Settings, out: Path, device: str | None = None) -> "Trainer":
        """A new run in the folder `out`, initialised from its first batch and saved. Raises ValueError when
        a run is there already."""
        trainer = cls(settings, out, device)
        if (trainer.out / "last").exists():
            raise ValueError(f"out: expected a new folder, but {out} holds a run (--resume continues it)")
        if hasattr(trainer.model, "initialize"):
            torch.manual_seed(_seed(settings.seed, "initialize"))
            trainer.model.initialize(*trainer._first_images())
        trainer.ema = copy.deepcopy(trainer.model).requires_grad_(False)
        trainer.out.mkdir(parents=True, exist_ok=True)
        trainer._cut_metrics()
        trainer.save()
        return trainer

    @classmethod
    def resume(cls, out: Path, device: str | None = None, **settings) -> "Trainer":
        """The run in `out` as its last checkpoint left it. Metrics of later steps are dropped: they will come
        again. `settings`, where given, must be those of the run, except how often to evaluate and to save."""
        checkpoint, state = _last(out)
        saved = asdict(Settings(**state["settings"]))
        settings = Settings(**{**saved, **settings})
        for name, value in asdict(settings).items():
            if name not in ("evaluate_every", "checkpoint_every") and value != saved[name]:
                raise ValueError(
                    f"{name}: expected {saved[name]!r}, as the run in {out} began, got {value!r}"
                )
        trainer = cls(settings, out, device)
        trainer.model.load_state_dict(load_file(checkpoint / "model.safetensors"))
        trainer.ema = copy.deepcopy(trainer.model).requires_grad_(False)
        trainer.ema.load_state_dict(load_file(checkpoint / "ema.safetensors"))
        trainer.optimizer.load_state_dict(
            torch.load(checkpoint / "optimizer.pt", trainer.device, weights_only=True)
        )
        trainer.step = state["step"]
        trainer._cut_metrics()
        return trainer

    def fit(self, steps: int, *, tensorboard: bool = False, progress: bool = True) -> bool:
        """Trains until step `steps` and saves. Ctrl-C or SIGTERM ends the current step, saves and returns
        False; a second one interrupts at once. Raises FloatingPointError for a loss or gradient that is not
        finite, before the model has seen it. `progress` is a bar on stderr, or, where that is no terminal, a
        line every half minute and at the end."""
        with ExitStack() as stack:
            stop = stack.enter_context(_stop_on_signal())
            metrics = stack.enter_context(open(self.out / "metrics.jsonl", "a", buffering=1))
            bar = stack.enter_context(
                tqdm(
                    total=steps,
                    initial=self.step,
                    desc="training",
                    unit="step",
                    disable=None if progress else True,  # None: where stderr is no terminal
                )
            )
            lines, due = progress and bar.disable, time.monotonic() + LINE_SECONDS
            writer = None
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                writer = stack.enter_context(
                    SummaryWriter(self.out / "tensorboard", purge_step=self.step + 1)
                )
            shown = {}
            while self.step < steps and not stop.is_set():
                record = self._advance()
                metrics.write(json.dumps(record) + "\n")
                if writer is not None:
                    for name in record.keys() - {"step"}:
                        writer.add_scalar(name, record[name], self.step)
                shown |= {name: f"{record[name]:.3f}" for name in ("loss", "heldout") if name in record}
                bar.set_postfix(shown, refresh=False)
                bar.update()
                if lines and (self.step == steps or time.monotonic() >= due):
                    numbers = ", ".join(f"{name} {number}" for name, number in shown.items())
                    print(f"step {self.step} of {steps}: {numbers}", file=sys.stderr, flush=True)
                    due = time.monotonic() + LINE_SECONDS
                if self.step % self.settings.checkpoint_every == 0:
                    self.save()
        self.save()
        return self.step >= steps

    def evaluate(self) -> float:
        """The averaged model's loss on the held-out images."""
        return evaluate(self.ema, self.dataset, self.settings.conditional)

    def save(self) -> None:
        """Writes a checkpoint. Killed at any moment, `last` still names a complete one; the one before it is
        kept too."""
        target, last = self.out / f"step-{self.step:08d}", self.out / "last"
        previous = os.readlink(last) if last.is_symlink() else None
        if previous == target.name:
            return
        temporary = self.out / ".saving"
        for leftover in (temporary, target):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        save_file(self.model.state_dict(), temporary / "model.safetensors")
        save_file(self.ema.state_dict(), temporary / "ema.safetensors")
        torch.save(self.optimizer.state_dict(), temporary / "optimizer.pt")
        state = {
            "step": self.step,
            "settings": asdict(self.settings),
            "model": self.model.config,
            "columns": self.dataset.columns,
        }
        (temporary / "state.json").write_text(json.dumps(state, indent=2))
        for path in (*temporary.iterdir(), temporary):
            _fsync(path)
        temporary.rename(target)
        link = self.out / ".last"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        link.replace(last)
        _fsync(self.out)
        for old in self.out.glob("step-*"):
            if old.name not in (target.name, previous):
                shutil.rmtree(old)

    def _advance(self) -> dict:
        """One step of training; returns its line of metrics."""
        settings, started = self.settings, time.perf_counter()
        x, label = self._batch()
        torch.manual_seed(_seed(settings.seed, "step", self.step))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = _loss(self.model.loss, x, label)
        self.optimizer.zero_grad()
        loss.backward()
        parameters = list(self.model.parameters())
        grad_norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm).item()
        if not (math.isfinite(loss.item()) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"step {self.step + 1}: the loss is {loss.item()} and the gradient's norm {grad_norm}; "
                f"the last good checkpoint is {self.out / os.readlink(self.out / 'last')}"
            )
        lr = settings.lr * settings.lr_decay**self.step
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        # The average of a young run reaches back over a tenth of it, not to its first steps.
        decay = min(settings.ema_decay, self.step / (self.step + 9))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), parameters, 1 - decay)
            for average, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):
                average.copy_(buffer)
        record = {"step": self.step, "loss": loss.item(), "grad_norm": grad_norm, "lr": lr}
        if settings.evaluate_every and self.step % settings.evaluate_every == 0:
            record["heldout"] = self.evaluate()
        record["seconds"] = time.perf_counter() - started
        return record

    def _batch(self) -> tuple[Tensor, Tensor | None]:
        """The images (in [-1, 1]) and labels of the current step: each epoch is a permutation of its own,
        without what is left over after its last full batch."""
        images, size = self.dataset.train, self.settings.batch_size
        epoch, position = divmod(self.step, len(images) // size)
        generator = torch.Generator().manual_seed(_seed(self.settings.seed, "epoch", epoch))
        chosen = torch.randperm(len(images), generator=generator)[position * size : (position + 1) * size]
        x = data.to_unit(images[chosen].to(self.device), self.dataset.num_levels)
        return x, None if self.labels is None else self.labels[chosen].to(self.device)

    def _first_images(self) -> tuple[Tensor, Tensor | None]:
        """The first batch, or as many images as the model asks for to be initialised."""
        images, count = self.dataset.train, getattr(self.model, "initial_images", 0)
        if count <= self.settings.batch_size:
            return self._batch()
        x = data.to_unit(images[:count].to(self.device), self.dataset.num_levels)
        return x, None if self.labels is None else self.labels[:count].to(self.device)

    def _cut_metrics(self) -> None:
        """Drops the metrics of steps after the current one, and a line that was cut short."""
        path, kept = self.out / "metrics.jsonl", []
        for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
            if not line.endswith("\n") or json.loads(line)["step"] > self.step:
                break
            kept.append(line)
        temporary = self.out / ".metrics.jsonl"
        temporary.write_text("".join(kept))
        temporary.replace(path)


def _loss(loss: Callable, x: Tensor, label: Tensor | None) -> Tensor:
    return loss(x) if label is None else loss(x, label)


def _seed(*key) -> int:
    """A seed of its own for each key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def find_device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected a name such as cpu or cuda, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: expected one that this machine has, got cuda, but torch finds no CUDA device"
        )
    return device


def _last(run: Path) -> tuple[Path, dict]:
    """The last checkpoint of a run and its state.json."""
    checkpoint = Path(run) / "last"
    if not checkpoint.exists():
        raise FileNotFoundError(
            f"run: expected a folder that `gmfast train` wrote, but {checkpoint} does not exist"
        )
    checkpoint = checkpoint.resolve()
    return checkpoint, json.loads((checkpoint / "state.json").read_text())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second has its usual effect. Only the main thread
    may handle signals: in another one the event is never set."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in usual.items():
            signal.signal(number, handler)

    def handle(*_):
        stop.set()
        restore()

    for number in usual:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
