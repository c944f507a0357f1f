"""Training of any model on the contract of `gmfast.models.base.Model`.

Everything random at a step is a function of (seed, step): the batch, and the generator that dropout and noise
draw from. A resumed run therefore continues with the numbers of an uninterrupted one, on a CPU to the bit.
"""

import copy
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._device import find_device
from ..data import to_unit
from ..models import MODELS
from ..models.base import Batch
from .checkpoint import last_checkpoint, load_optimizers, load_run, load_weights, save_checkpoint, state_of
from .evaluation import evaluate
from .random import seed_of
from .settings import Settings, build_model

#: Seconds between lines of progress where stderr is no terminal.
LINE_SECONDS = 30


class Trainer:
    """A training run: use `Trainer.start` or `Trainer.resume`, then `fit`.

    Attributes:
        model: The model being trained.
        ema: Its running average, which is evaluated and sampled from. Players without EMA, and buffers, have
            their last values in it.
        optimizers: Each player's optimiser, by the player's name.
        step: Number of training steps done.
        updates: Number of updates of each player.
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
            if "teacher" not in self.model.requires:
                raise ValueError(f"teacher: expected a model that learns from one, got {settings.model}")
            teacher = load_run(settings.teacher)[0].requires_grad_(False).to(self.device)
            self.model.build_on(teacher=teacher)
        self.players = dict(self.model.players())
        self.optimizers = {
            name: player.optimizer(player.parameters, settings.lr * player.lr)
            for name, player in self.players.items()
        }
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]  # a factory may give groups rates of their own
        trained = {id(p) for p in self.model.parameters() if p.requires_grad}
        # Whether one player is all of the model: any backward then does, with checkpointing too.
        self._whole = [trained] == [{id(p) for p in player.parameters} for player in self.players.values()]
        self.step, self.updates = 0, dict.fromkeys(self.players, 0)
        self.ema = None

    @classmethod
    def start(cls, settings: Settings, out: Path, device: str | None = None) -> "Trainer":
        """Start a run in the folder `out`: prepare the model from its first batch, and save it.

        Raises:
            ValueError: When there is a run already.
        """
        trainer = cls(settings, out, device)
        if (trainer.out / "last").exists():
            raise ValueError(f"out: expected a new folder, but {out} holds a run (--resume continues it)")
        torch.manual_seed(seed_of(settings.seed, "initialize"))
        trainer.model.prepare(trainer._first_batch())
        trainer.ema = copy.deepcopy(trainer.model).requires_grad_(False)
        trainer.out.mkdir(parents=True, exist_ok=True)
        trainer._cut_metrics()
        trainer.save()
        return trainer

    @classmethod
    def resume(cls, out: Path, device: str | None = None, **settings) -> "Trainer":
        """Resume the run in `out` from its last checkpoint.

        Metrics of later steps are dropped: they will be computed again.

        Args:
            out: The run's folder.
            device: Where to run.
            **settings: Settings, which must be those of the run, but for how often to evaluate and to save.

        Raises:
            FileNotFoundError: For a folder that is no run. ValueError: For other settings.
        """
        checkpoint, state = last_checkpoint(out)
        saved = asdict(Settings(**state["settings"]))
        if "model" in settings:
            settings["model"] = MODELS.resolve(settings["model"])
        settings = Settings(**{**saved, **settings})
        for name, value in asdict(settings).items():
            if name not in ("evaluate_every", "checkpoint_every") and value != saved[name]:
                raise ValueError(
                    f"{name}: expected {saved[name]!r}, as the run in {out} began, got {value!r}"
                )
        trainer = cls(settings, out, device)
        trained, averaged = load_weights(checkpoint)
        trainer.model.load_state_dict(trained)
        trainer.ema = copy.deepcopy(trainer.model).requires_grad_(False)
        trainer.ema.load_state_dict(averaged)
        for name, optimizer_state in load_optimizers(checkpoint, trainer.device).items():
            groups = trainer.optimizers[name].param_groups
            trainer.optimizers[name].load_state_dict(optimizer_state)
            for group, before in zip(trainer.optimizers[name].param_groups, groups, strict=True):
                group.setdefault("initial_lr", before["initial_lr"])  # which runs before players have not
        trainer.step = state["step"]
        trainer.updates |= state.get("updates", {"model": trainer.step})
        trainer._cut_metrics()
        return trainer

    def fit(self, steps: int, *, tensorboard: bool = False, progress: bool = True) -> bool:
        """Train until step `steps` and save.

        Ctrl-C or SIGTERM ends the current step, saves and returns False; a second one interrupts at once.

        Args:
            steps: The last step, counted from the run's beginning.
            tensorboard: Also write metrics for TensorBoard.
            progress: Show a bar on stderr, or, where that is no terminal, a line every half minute and at the
                end.

        Returns:
            Whether training reached `steps`.

        Raises:
            FloatingPointError: For a loss or gradient that is not finite, before that player is updated.
            ValueError: For an update of a player that there is not, or that is not due.
        """
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
                shown |= {
                    name: f"{number:.3f}"
                    for name, number in record.items()
                    if name.endswith("loss") or name == "heldout"
                }
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
        """Evaluate the averaged model on the held-out data, as `gmfast.training.evaluate`."""
        return evaluate(self.ema, self.dataset, self.settings.conditional)

    def save(self) -> None:
        """Write a checkpoint. Killed at any moment, the run still has a complete one."""
        save_checkpoint(
            self.out,
            self.step,
            self.model,
            self.ema,
            {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            state_of(self.settings, self.model, self.step, self.updates, self.dataset.columns),
        )

    def _advance(self) -> dict[str, float]:
        """Do one training step and return its line of metrics."""
        settings, started = self.settings, time.perf_counter()
        batch = self._batch()
        torch.manual_seed(seed_of(settings.seed, "step", self.step))
        record = {"step": self.step + 1}
        updates = self.model.training_step(batch, self.step)
        while True:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                update = next(updates, None)
            if update is None:
                break
            record |= self._update(*update)
        record["lr"] = settings.lr * settings.lr_decay**self.step
        self.step += 1
        self._average()
        if settings.evaluate_every and self.step % settings.evaluate_every == 0:
            record["heldout"] = self.evaluate()
        record["seconds"] = time.perf_counter() - started
        return record

    def _update(self, name: str, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Update a player by the gradient of its loss, and return its metrics."""
        if name not in self.players:
            raise ValueError(f"training_step: expected one of {', '.join(self.players)}, got {name!r}")
        player, optimizer = self.players[name], self.optimizers[name]
        if not player.due(self.step):
            raise ValueError(
                f"training_step: expected an update of {name} every {player.ratio} steps, got one at step "
                f"{self.step + 1}"
            )
        several = len(self.players) > 1
        optimizer.zero_grad()
        # A loss may reach through parameters of other players, or of none, whose gradients nobody asked for.
        losses["loss"].backward(inputs=None if self._whole else player.parameters)
        norm = nn.utils.clip_grad_norm_(player.parameters, self.settings.max_grad_norm).item()
        numbers = {key: value.item() for key, value in losses.items()}
        if not (math.isfinite(numbers["loss"]) and math.isfinite(norm)):
            whose = f"the loss of {name}" if several else "the loss"
            raise FloatingPointError(
                f"step {self.step + 1}: {whose} is {numbers['loss']} and the gradient's norm {norm}; "
                f"the last good checkpoint is {self.out / os.readlink(self.out / 'last')}"
            )
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.settings.lr_decay**self.step
        optimizer.step()
        self.updates[name] += 1
        numbers["grad_norm"] = norm
        return {f"{name}_{key}": number for key, number in numbers.items()} if several else numbers

    @torch.no_grad()
    def _average(self) -> None:
        """Move the running average on by one step."""
        # The average of a young run reaches back over a tenth of it, not to its first steps.
        decay = min(self.settings.ema_decay, self.step / (self.step + 9))
        averaged = {id(p) for player in self.players.values() if player.ema for p in player.parameters}
        averages, trained = [], []
        copied = list(zip(self.ema.buffers(), self.model.buffers(), strict=True))
        for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            if id(parameter) in averaged:
                averages.append(average)
                trained.append(parameter)
            else:
                copied.append((average, parameter))
        if averages:
            torch._foreach_lerp_(averages, trained, 1 - decay)
        for average, value in copied:
            average.copy_(value)

    def _batch(self) -> Batch:
        """The batch of the current step.

        Each epoch is a permutation of its own, without what is left over after its last full batch.
        """
        samples, size = self.dataset.train, self.settings.batch_size
        epoch, position = divmod(self.step, len(samples) // size)
        generator = torch.Generator().manual_seed(seed_of(self.settings.seed, "epoch", epoch))
        chosen = torch.randperm(len(samples), generator=generator)[position * size : (position + 1) * size]
        return self._samples(chosen)

    def _first_batch(self) -> Batch:
        """The first batch, or as many samples as the model is to be prepared with."""
        count = self.model.prepare_size
        return self._batch() if count <= self.settings.batch_size else self._samples(slice(count))

    def _samples(self, chosen: Tensor | slice) -> Batch:
        x = to_unit(self.dataset.train[chosen].to(self.device), self.dataset.num_levels)
        return Batch(x, None if self.labels is None else self.labels[chosen].to(self.device))

    def _cut_metrics(self) -> None:
        """Drop the metrics of steps after the current one, and a line that was cut short."""
        path, kept = self.out / "metrics.jsonl", []
        for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
            if not line.endswith("\n") or json.loads(line)["step"] > self.step:
                break
            kept.append(line)
        temporary = self.out / ".metrics.jsonl"
        temporary.write_text("".join(kept))
        temporary.replace(path)


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second has its usual effect.

    Only the main thread may handle signals: in another one the event is never set.
    """
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
