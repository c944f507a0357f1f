"""Training of any model on the contract of `gmfast.models.base.Model`.

Everything random at a step is a function of (seed, step): the batch, and the generator that dropout and noise
draw from. A resumed run therefore continues with the numbers of an uninterrupted one, on a CPU to the bit. A
run of several processes, or of batches in parts, has the numbers of a run of one, to rounding: each part
draws for its samples what the whole batch would (`draws.py`).
"""

import copy
import functools
import itertools
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from .. import _processes
from .._processes import Processes
from ..data import Dataset, wrap
from ..data.augment import augment
from ..data.loader import EpochOrder, Stream, load_batches
from ..data.splits import Samples
from ..models import MODELS
from ..models.base import Batch, Model
from .averaging import averager
from .checkpoint import (
    last_checkpoint,
    load_into,
    load_optimizers,
    load_run,
    load_stream,
    load_weights,
    locked,
    reading,
    save_checkpoint,
    settings_of,
    state_of,
)
from .draws import part_of_batch
from .evaluation import check_data, evaluate_samples
from .random import seed_of
from .settings import WRITING, Settings, build_model, write_config
from .tracking import check_trackers, tracker

#: Files of a run, by patterns.
RUN_FILES = (
    "step-*",
    "last",
    "metrics.jsonl",
    "settings.toml",
    "skipped.txt",
    "tensorboard",
    "losses.png",
    "samples-*",
)

#: Seconds between lines of progress where stderr is no terminal.
LINE_SECONDS = 30


class Trainer:
    """A training run: of a model and data of one's own, or from settings by `Trainer.start`; then `fit`.

    Several processes that torchrun started divide each batch. They have the numbers of one process to
    rounding; the first one writes.

    Args:
        model: The model.
        dataset: What it learns from: a `gmfast.data.Dataset`, or any `torch.utils.data.Dataset`, map-style or
            iterable, whose items `gmfast.data.wrap` understands.
        settings: Settings of the run; those that say how data and model are made are not used.
        out: The run's folder; None: nothing is written.
        heldout: Held-out samples beside a torch dataset.
        device: Where to run; None: a GPU where there is one, else the CPU.
        workers: Number of further processes that load data.
        shard: Whether several processes divide the weights and the optimisers' states too (FSDP2), for models
            that do not fit otherwise.

    Attributes:
        model: The model being trained.
        ema: Its running average, which is evaluated and sampled from. Players without EMA, and buffers, have
            their last values in it. None before the first step.
        optimizers: Each player's optimiser, by the player's name.
        step: Number of training steps done.
        updates: Number of updates of each player.
        processes: The processes that divide the batches.

    Raises:
        ValueError: When model, data and settings do not go together, or `out` holds a run.
    """

    def __init__(
        self,
        model: Model,
        dataset: "Dataset | torch.utils.data.Dataset",
        settings: Settings | None = None,
        out: str | Path | None = None,
        *,
        heldout: "torch.utils.data.Dataset | None" = None,
        device: str | None = None,
        workers: int = 0,
        shard: bool = False,
    ):
        if not isinstance(dataset, Dataset):
            dataset = wrap(dataset, heldout, num_levels=model.num_levels, modality=model.modality)
        elif heldout is not None:
            raise ValueError("heldout: expected None beside a gmfast Dataset, which has its own")
        settings = (settings or Settings()).for_model(
            MODELS.name_of(type(model)), dataset.name, conditional=model.num_labels is not None
        )
        self._set_up(model, dataset, settings, out, _processes.join(device), workers, shard)
        self._check_new()

    @classmethod
    def start(
        cls,
        settings: Settings,
        out: str | Path,
        device: str | None = None,
        *,
        workers: int = 0,
        shard: bool = False,
        overwrite: bool = False,
    ) -> "Trainer":
        """Start a run in the folder `out`: load the data, build and prepare the model, and save it.

        Args:
            settings: The settings.
            out: The run's folder.
            device: Where to run.
            workers: Number of further processes that load data.
            shard: Whether several processes divide the weights.
            overwrite: Whether a run that is there is deleted.

        Raises:
            ValueError: When there is a run already.
        """
        trainer = cls._from_settings(settings, out, device, workers, shard)
        if overwrite:
            trainer._delete()
        trainer._check_new()
        trainer._begin()
        return trainer

    @classmethod
    def resume(
        cls,
        out: str | Path,
        device: str | None = None,
        *,
        model: str | Model | None = None,
        dataset: "Dataset | torch.utils.data.Dataset | None" = None,
        heldout: "torch.utils.data.Dataset | None" = None,
        workers: int = 0,
        shard: bool = False,
        **settings: Any,
    ) -> "Trainer":
        """Resume the run in `out` from its last checkpoint, with any number of processes.

        Metrics of later steps are dropped: they will be computed again.

        Args:
            out: The run's folder.
            device: Where to run.
            model: The name of the run's model, or, beside `dataset`, one of one's own, freshly built.
            dataset: Data of one's own that the run began with.
            heldout: Held-out samples beside a torch dataset.
            workers: Number of further processes that load data.
            shard: Whether several processes divide the weights, whatever they did before.
            **settings: Settings, which must be those of the run, but for how often to evaluate and to write.

        Raises:
            FileNotFoundError: For a folder that is no run. ValueError: For other settings, for a damaged
                checkpoint, and when another process trains the run.
        """
        path, state = last_checkpoint(Path(out))
        saved = asdict(settings_of(path, state))
        if isinstance(model, str):
            settings["model"] = MODELS.resolve(model)
        chosen = Settings(**{**saved, **settings})
        for name, value in asdict(chosen).items():
            if name not in WRITING and value != saved[name]:
                raise ValueError(
                    f"{name}: expected {saved[name]!r}, as the run in {out} began, got {value!r}"
                )
        if isinstance(model, Model):
            if dataset is None:
                raise ValueError("dataset: expected the data that the run began with, got None")
            trainer = cls(
                model, dataset, chosen, None, heldout=heldout, device=device, workers=workers, shard=shard
            )
            trainer.out = Path(out)
        elif dataset is not None or heldout is not None:
            raise ValueError(f"model: expected a model of one's own beside data of one's own, got {model!r}")
        else:
            trainer = cls._from_settings(chosen, out, device, workers, shard)
        trainer._load(path, state)
        return trainer

    @classmethod
    def _from_settings(
        cls, settings: Settings, out: str | Path, device: str | None, workers: int, shard: bool
    ) -> "Trainer":
        processes = _processes.join(device)
        with processes.main_first():
            dataset = settings.load_data()
        settings = replace(
            settings,
            rate=dataset.rate,
            encoding=None if dataset.rate is None else settings.encoding or "mulaw",
        )
        trainer = cls.__new__(cls)
        model = build_model(settings, dataset)
        if not shard:
            model.to(processes.device)
        if settings.teacher is not None:
            if "teacher" not in model.requires:
                raise ValueError(f"teacher: expected a model that learns from one, got {settings.model}")
            teacher = load_run(Path(settings.teacher))[0].requires_grad_(False).to(processes.device)
            model.build_on(teacher=teacher)
        trainer._set_up(model, dataset, settings, out, processes, workers, shard)
        return trainer

    def _set_up(
        self,
        model: Model,
        dataset: Dataset,
        settings: Settings,
        out: str | Path | None,
        processes: Processes,
        workers: int,
        shard: bool,
    ) -> None:
        parts = settings.accumulate * processes.count
        if settings.batch_size % parts:
            raise ValueError(
                f"batch_size: expected a multiple of {parts}, as {processes.count} processes compute it in "
                f"{settings.accumulate} parts each, got {settings.batch_size}"
            )
        check_data(model, dataset, settings.conditional)
        by_loss = type(model).training_step is Model.training_step
        for name, wanted in (("compile", settings.compile), ("shard", shard)):
            if wanted and not by_loss:
                raise ValueError(f"{name}: expected a model that is trained by `loss`, got {settings.model}")
        if shard and not model.shardable:
            raise ValueError(
                f"shard: expected a model whose loss takes no gradients itself, got {settings.model}"
            )
        if shard and processes.count == 1:
            raise ValueError("shard: expected several processes, got one")
        for name in ("sample_every", "evaluate_every"):
            if shard and getattr(settings, name):
                raise ValueError(
                    f"{name}: expected 0 where processes divide the weights, which checkpoints have whole"
                )
        self._sharded = shard
        if settings.evaluate_every and dataset.heldout is None:
            raise ValueError(f"evaluate_every: expected 0, as {dataset.name} has no held-out samples")
        if (settings.flip or settings.crop) and dataset.modality != "images":
            raise ValueError(f"flip, crop: expected images, but {dataset.name} is {dataset.items}")
        self.out = None if out is None else Path(out)
        self.processes, self.device, self.dataset, self.settings = (
            processes,
            processes.device,
            dataset,
            settings,
        )
        self.model = model if shard else model.to(self.device)  # a model that is sharded goes there in parts
        loading = {"workers": workers, "pin_memory": self.device.type == "cuda"}
        if dataset.streamed:
            self._stream = Stream(dataset.train, dataset.convert, settings.batch_size, **loading)
        else:
            self._stream, self._split = None, dataset.split("train")
            count, size = len(self._split), settings.batch_size
            if size > count:
                raise ValueError(
                    f"batch_size: expected at most the {count} training {dataset.items} of {dataset.name}, "
                    f"got {size}"
                )
            self._order = EpochOrder(count, size, lambda epoch: seed_of(settings.seed, "epoch", epoch))
            self._load_batches = functools.partial(load_batches, self._split, **loading)
        self._batches: Iterator[Samples] | None = None
        self._next_step = 0  # of the batch that comes next
        self._make_optimizers()
        self._averagers: dict[str, DistributedDataParallel] = {}
        self.step, self.updates = 0, dict.fromkeys(self.players, 0)
        self.ema: Model | None = None
        self._part = (0, settings.batch_size, settings.batch_size)  # of the batch, that is computed now

    def _make_optimizers(self) -> None:
        """Players and their optimisers, for the parameters that the model has now."""
        settings = self.settings
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

    def _check_new(self) -> None:
        if self.out is not None and (self.out / "last").exists():
            raise ValueError(
                f"out: expected a new folder, but {self.out} holds a run (--resume continues it)"
            )

    def _delete(self) -> None:
        """Delete the files of a run that is in `out`, and nothing else."""
        if self.processes.main and (self.out / "last").exists():
            with locked(self.out):
                for path in itertools.chain(*map(self.out.glob, RUN_FILES)):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
        self.processes.wait()

    def _begin(self) -> None:
        """Prepare the model from its first batch, all of it in each process, and save it."""
        settings = self.settings
        if self._stream is not None:
            # A stream of its own, so that the first step has the same batch.
            samples = next(iter(Stream(self.dataset.train, self.dataset.convert, settings.batch_size)))
        elif self.model.prepare_size > settings.batch_size:
            samples = self._split.__getitems__(range(min(self.model.prepare_size, len(self._split))))
        else:
            samples = self._split.__getitems__(self._order(0).tolist())
        batch = self._to_batch(samples, 0)
        torch.manual_seed(seed_of(settings.seed, "initialize"))
        # A model that is to be divided is on the CPU still.
        self.model.prepare(Batch(*(None if t is None else t.to(self.model.device) for t in batch)))
        self._ready()
        if self.out is not None and self.processes.main:
            self.out.mkdir(parents=True, exist_ok=True)
            with locked(self.out):
                self._cut_metrics()
                write_config(self.out / "settings.toml", settings)
        self.save()

    def _load(self, path: Path, state: Mapping[str, Any]) -> None:
        """Take everything from a checkpoint."""
        trained, averaged = load_weights(path)
        load_into(self.model, path / "model.safetensors", trained)
        self._ready(path / "ema.safetensors", averaged)
        states = load_optimizers(path, torch.device("cpu") if self._sharded else self.device)
        if states.keys() != self.optimizers.keys():
            names = ", ".join(self.optimizers)
            raise ValueError(f"run: expected optimisers of {names} in {path}, got {', '.join(states)}")
        for name, optimizer_state in states.items():
            groups = self.optimizers[name].param_groups
            with reading(path / "optimizer.pt"):
                if self._sharded:
                    from . import sharding

                    sharding.load_optimizer(self.optimizers[name], optimizer_state)
                else:
                    self.optimizers[name].load_state_dict(optimizer_state)
            for group, before in zip(self.optimizers[name].param_groups, groups, strict=True):
                group.setdefault("initial_lr", before["initial_lr"])  # which runs before players have not
        self.step = state["step"]
        self.updates |= state.get("updates", {"model": self.step})
        if self._stream is not None:
            with reading(path / "stream.pt"):
                self._stream.load_state_dict(load_stream(path))
        if self.processes.main:
            with locked(self.out):
                self._cut_metrics()

    def _ready(self, path: Path | None = None, averaged: Mapping[str, Tensor] | None = None) -> None:
        """Make the running average, from the weights in a file or the model's, and what needs the weights."""
        self.processes.share(self.model)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        if path is not None:
            load_into(self.ema, path, averaged)
        settings = self.settings
        if self._sharded:
            from . import sharding  # takes long to import

            for model in (self.model, self.ema):
                sharding.shard(model, _blocks(model), self.processes)
            self._make_optimizers()
        if settings.checkpoint_activations:
            for block in _blocks(self.model):
                block.forward = functools.partial(
                    checkpoint, block.forward, use_reentrant=False, context_fn=self._computed_again
                )
        if settings.compile:
            self.model.loss = torch.compile(self.model.loss)

    def fit(
        self,
        steps: int,
        *,
        trackers: Sequence[str] = (),
        tensorboard: bool = False,
        progress: bool = True,
        illustrate: Callable[["Trainer"], object] | None = None,
    ) -> bool:
        """Train until step `steps` and save.

        Ctrl-C or SIGTERM ends the current step, saves and returns False; a second one interrupts at once.

        Args:
            steps: The last step, counted from the run's beginning.
            trackers: Names of accelerate's trackers that get the metrics too: "tensorboard", "wandb", ...
            tensorboard: Short for the tracker of that name.
            progress: Show a bar on stderr, or, where that is no terminal, a line every half minute and at the
                end.
            illustrate: Called by the main process every `settings.sample_every` steps and at the end.

        Returns:
            Whether training reached `steps`.

        Raises:
            FloatingPointError: For a loss or gradient that is not finite, before that player is updated.
            ValueError: For an update of a player that there is not, or that is not due; when another process
                trains the run.
            OSError: When metrics or a checkpoint cannot be written.
        """
        trackers = [*trackers, *(["tensorboard"] if tensorboard and "tensorboard" not in trackers else [])]
        check_trackers(trackers)
        if self.ema is None:
            self._begin()
        main, every = self.processes.main, self.settings.sample_every
        with ExitStack() as stack:
            stop = stack.enter_context(_stop_on_signal())
            write = stack.enter_context(self._writing(trackers))
            bar = stack.enter_context(
                tqdm(
                    total=steps,
                    initial=self.step,
                    desc="training",
                    unit="step",
                    disable=None if progress and main else True,  # None: where stderr is no terminal
                )
            )
            lines, due = progress and main and bar.disable, time.monotonic() + LINE_SECONDS
            shown = {}
            while self.step < steps and not self.processes.any(stop.is_set()):
                record = self._advance()
                write(record)
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
                if illustrate and main and every and (self.step % every == 0 or self.step == steps):
                    illustrate(self)
        self.save()
        return self.step >= steps

    def evaluate(self) -> float:
        """Evaluate the averaged model on the held-out data, as `gmfast.training.evaluate`."""
        values = evaluate_samples(self.ema, self.dataset, self.settings.conditional, processes=self.processes)
        return values[next(iter(self.model.metrics))].mean().item()

    def save(self) -> None:
        """Write a checkpoint. Killed at any moment, the run still has a complete one."""
        if self.out is None:
            return
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        if self._sharded:
            from . import sharding

            weights, averaged = map(sharding.whole_weights, (self.model, self.ema))
            optimizers = sharding.whole(optimizers, keep=self.processes.main)
        else:
            weights, averaged = self.model.state_dict(), self.ema.state_dict()
        if self.processes.main:
            save_checkpoint(
                self.out,
                self.step,
                weights,
                averaged,
                optimizers,
                state_of(self.settings, self.model, self.step, self.updates, self.dataset.columns),
                None if self._stream is None else self._stream.state_dict(),
            )
        self.processes.wait()

    @contextmanager
    def _writing(self, trackers: Sequence[str]) -> Iterator[Callable[[dict[str, float]], None]]:
        """A function that writes a line of metrics to the run and to trackers; it is locked meanwhile."""
        if self.out is None or not self.processes.main:
            if trackers and self.out is None:
                raise ValueError(f"trackers: expected none without a folder, got {', '.join(trackers)}")
            yield lambda record: None
            return
        path = self.out / "metrics.jsonl"
        with locked(self.out), open(path, "a", buffering=1) as metrics:
            tracking = [tracker(name, self.out, self.step) for name in trackers]

            def write(record: dict[str, float]) -> None:
                try:
                    metrics.write(json.dumps(record) + "\n")
                except OSError as error:
                    raise OSError(f"out: expected to write metrics to {path} ({error})") from None
                values = {name: value for name, value in record.items() if name != "step"}
                for each in tracking:
                    each.log(values, step=record["step"])

            try:
                yield write
            finally:
                for each in tracking:
                    each.finish()

    def _advance(self) -> dict[str, float]:
        """Do one training step and return its line of metrics."""
        settings, started = self.settings, time.perf_counter()
        parts = self._parts(self._batch())
        torch.manual_seed(seed_of(settings.seed, "step", self.step, *self._own_draws()))
        record = {"step": self.step + 1}
        updates = [self.model.training_step(batch, self.step) for batch, _ in parts]
        while (done := self._backward(updates, [first for _, first in parts])) is not None:
            record |= self._update(*done)
        record["lr"] = settings.lr * settings.lr_factor(self.step)
        self.step += 1
        self._average()
        record["seconds"] = time.perf_counter() - started
        record["items_per_second"] = settings.batch_size / record["seconds"]
        if settings.evaluate_every and self.step % settings.evaluate_every == 0:
            record["heldout"] = self.evaluate()
        return record

    def _parts(self, batch: Batch) -> list[tuple[Batch, int]]:
        """Parts of this process's batch, and the number of each one's first sample in the whole batch."""
        size = len(batch.x) // self.settings.accumulate
        begin = self.processes.rank * len(batch.x)
        return [
            (Batch(*(None if t is None else t[start : start + size] for t in batch)), begin + start)
            for start in range(0, len(batch.x), size)
        ]

    def _own_draws(self) -> tuple[int, ...]:
        """The rank, where processes draw independently: compiled code draws for its own part only."""
        return (self.processes.rank,) if self.settings.compile and self.processes.count > 1 else ()

    def _backward(
        self, updates: Sequence[Iterator[tuple[str, Mapping[str, Tensor]]]], firsts: Sequence[int]
    ) -> tuple[str, dict[str, float]] | None:
        """Add up the gradients of every part's next loss: the player's name and losses, or None."""
        settings, count, numbers = self.settings, len(updates), {}
        size = settings.batch_size // (count * self.processes.count)
        total = size if self._own_draws() else settings.batch_size
        states = []
        if count > 1 and not self._own_draws():
            states = [(generator, generator.get_state()) for generator in self._generators()]
        for index, (part, first) in enumerate(zip(updates, firsts, strict=True)):
            for generator, state in states:
                generator.set_state(state)  # each part draws what the whole batch would
            self._part = (first, size, total)
            with (
                part_of_batch(*self._part),
                torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"),
            ):
                update = next(part, None)
            if update is None:
                return None
            name, losses = update
            self._check_update(name)
            if index == 0:
                self.optimizers[name].zero_grad()
            self._add_gradient(name, losses["loss"], count, last=index == count - 1)
            for key, value in losses.items():
                numbers[key] = numbers.get(key, 0.0) + value.item() / count
        return name, self.processes.mean(numbers)

    def _computed_again(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Contexts of a block's forward pass and of its repetition in the backward pass, which draws too."""
        return nullcontext(), part_of_batch(*self._part)

    def _generators(self) -> list[torch.Generator]:
        """Torch's own generators that a step may draw from."""
        on_gpu = [torch.cuda.default_generators[self.device.index or 0]] if self.device.type == "cuda" else []
        return [torch.default_generator, *on_gpu]

    def _check_update(self, name: str) -> None:
        if name not in self.players:
            raise ValueError(f"training_step: expected one of {', '.join(self.players)}, got {name!r}")
        player = self.players[name]
        if not player.due(self.step):
            raise ValueError(
                f"training_step: expected an update of {name} every {player.ratio} steps, got one at step "
                f"{self.step + 1}"
            )

    def _add_gradient(self, name: str, loss: Tensor, count: int, *, last: bool) -> None:
        """Add the gradient of one of `count` parts of a player's loss; after the last, processes average."""
        player = self.players[name]
        if count > 1:
            loss = loss / count
        with ExitStack() as stack:
            if self._sharded:
                self.model.set_requires_gradient_sync(last)
            elif self.processes.count > 1:
                averager = self._averager(name, loss)
                if not last:
                    stack.enter_context(averager.no_sync())
                loss = averager(loss)
            # A loss may reach through parameters of other players, or of none, whose gradients nobody wants.
            loss.backward(inputs=None if self._whole else player.parameters)

    def _averager(self, name: str, loss: Tensor) -> DistributedDataParallel:
        if name not in self._averagers:
            self._averagers[name] = averager(self.players[name].parameters, loss, self.processes)
        return self._averagers[name]

    def _update(self, name: str, numbers: dict[str, float]) -> dict[str, float]:
        """Update a player by its gradient, and return its metrics."""
        player, optimizer = self.players[name], self.optimizers[name]
        several = len(self.players) > 1
        norm = nn.utils.clip_grad_norm_(player.parameters, self.settings.max_grad_norm)
        norm = (norm.full_tensor() if self._sharded else norm).item()
        if not (math.isfinite(numbers["loss"]) and math.isfinite(norm)):
            whose = f"the loss of {name}" if several else "the loss"
            last = (
                f"; the last good checkpoint is {self.out / os.readlink(self.out / 'last')}"
                if self.out
                else ""
            )
            raise FloatingPointError(
                f"step {self.step + 1}: {whose} is {numbers['loss']} and the gradient's norm {norm}{last}"
            )
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.settings.lr_factor(self.step)
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
        """This process's part of the batch of the current step."""
        part = self.processes.part(self.settings.batch_size)
        if self._batches is None or (self._stream is None and self._next_step != self.step):
            if self._stream is None:
                self._batches = self._load_batches(
                    self._order(step)[part] for step in itertools.count(self.step)
                )
            else:
                self._batches = (
                    Samples(*(None if t is None else t[part] for t in samples)) for samples in self._stream
                )
        self._next_step = self.step + 1
        return self._to_batch(next(self._batches), part.start)

    def _to_batch(self, samples: Samples, first: int) -> Batch:
        """Samples, from number `first` of the batch on, as the model takes them, on its device."""
        settings, x = self.settings, samples.x.to(self.device, non_blocking=True)
        if settings.flip or settings.crop:
            seed, total = seed_of(settings.seed, "augment", self.step), max(settings.batch_size, len(x))
            x = augment(x, flip=settings.flip, crop=settings.crop, seed=seed, first=first, total=total)
        label = None
        if settings.conditional:
            if samples.label is None:
                raise ValueError(f"data: expected a label with every sample of {self.dataset.name}")
            label = samples.label.to(self.device, non_blocking=True)
        return Batch(self.dataset.as_input(x), label)

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


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with parameters that lie in a ModuleList or a Sequential."""
    listed = isinstance(model, nn.ModuleList | nn.Sequential)
    for module in model.children():
        if listed and not isinstance(module, nn.ModuleList):
            if any(True for _ in module.parameters()):
                yield module
        else:
            yield from _blocks(module)


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

    def handle(number, _):
        # Not of the other signal: a launcher may follow Ctrl-C by SIGTERM.
        stop.set()
        signal.signal(number, usual[number])

    for number in usual:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
