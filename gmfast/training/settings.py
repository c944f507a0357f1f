"""Settings of a training run, and the model they describe."""

import math
import sys
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch

from .. import data
from ..data import Dataset
from ..models import MODELS
from ..models.base import Model
from .random import seed_of

PRECISIONS = ("float32", "bfloat16")
LR_SCHEDULES = ("exponential", "cosine")

#: Settings that a resumed run may change: they decide what is written, not the numbers.
WRITING = ("evaluate_every", "checkpoint_every", "sample_every")

#: Settings that neither the user nor the model's class chooses.
DEFAULTS = {
    "batch_size": 64,
    "lr": 1e-3,
    "lr_decay": 0.999995,
    "ema_decay": 0.9995,
    "max_grad_norm": 1.0,
    "precision": "float32",
    "options": {},
}


@dataclass
class Settings:
    """Everything that determines a run's numbers, and how often it evaluates and saves.

    Fields that are None take what the model's class suggests for the data (`Model.settings_for`), and so do
    `options` that are not given.

    The optimiser's defaults are those of PixelCNN++ (Salimans et al., 2017, arXiv:1701.05517): Adam with
    betas (0.95, 0.9995), a learning rate that decays by 0.999995 each step, and Polyak averaging with 0.9995.

    Attributes:
        model: Name in `gmfast.models.MODELS`, in any spelling.
        data: Built-in data set or path; None: the model's own default.
        size: Side of photos and of a folder's images, or length of sound clips, as in `gmfast.data.load`.
        rate: Sample rate of sound, in Hz.
        encoding: Levels of sound, "mulaw" or "linear".
        grayscale: Whether image files are read as one channel; None: where their own are.
        alpha: Background of image files with transparency, "white" or "black", or "refuse".
        on_error: "raise" for files that cannot be read, or "skip".
        conditional: Whether the model is conditioned on the data's labels.
        teacher: Run of a model that this one learns from.
        options: Arguments of the model's constructor.
        seed: Seed of the weights, the batches and the noise.
        batch_size: Samples per step.
        accumulate: Parts that a batch is computed in, one after another, before the update: less memory, the
            same numbers to rounding.
        lr: Learning rate at the first step, or after the warm-up.
        lr_decay: Factor of the learning rate each step, by the schedule "exponential".
        lr_schedule: "exponential"; or "cosine", half a period from `lr` to 0 at step `lr_steps`.
        lr_steps: Length of the schedule "cosine", in steps.
        warmup: Steps in which the learning rate rises linearly to that of the schedule.
        ema_decay: Decay of the weights' running average, which evaluation and sampling use.
        max_grad_norm: Norm that each player's gradient is clipped to.
        precision: "float32", or "bfloat16" for autocast.
        compile: Whether `torch.compile` compiles the loss.
        checkpoint_activations: Whether the blocks of the network are computed again in the backward pass,
            rather than kept.
        flip: Whether half of the training images, drawn at random, are mirrored.
        crop: Training images are padded by that many reflected pixels and cropped at random; 0: not.
        evaluate_every: Steps between evaluations; 0: never.
        checkpoint_every: Steps between checkpoints.
        sample_every: Steps between pictures of samples and of the losses; 0: none.

    Raises:
        ValueError: For values out of range, naming the field.
    """

    model: str = "pixelcnnpp"
    data: str | None = None
    size: int | None = None
    rate: int | None = None
    encoding: str | None = None
    grayscale: bool | None = None
    alpha: str = "white"
    on_error: str = "raise"
    conditional: bool = False
    teacher: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int | None = None
    accumulate: int = 1
    lr: float | None = None
    lr_decay: float | None = None
    lr_schedule: str = "exponential"
    lr_steps: int | None = None
    warmup: int = 0
    ema_decay: float | None = None
    max_grad_norm: float | None = None
    precision: str | None = None
    compile: bool = False
    checkpoint_activations: bool = False
    flip: bool = False
    crop: int = 0
    evaluate_every: int = 0
    checkpoint_every: int = 500
    sample_every: int = 0

    def __post_init__(self):
        self._given = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        self._check_types()
        self.model = MODELS.resolve(self.model)
        cls = MODELS[self.model]
        if self.data is None:
            self.data = cls.data
        if not str(self.data):
            raise ValueError("data: expected a name or a path, got ''")
        if self.data not in data.BUILT_IN:
            self.data = str(Path(self.data).absolute())
        if self.teacher is not None:
            self.teacher = str(Path(self.teacher).absolute())
        suggested = {**DEFAULTS, **cls.settings_for(self.data, encoding=self.encoding)}
        options = suggested.pop("options")
        for name, value in suggested.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        # Lists, as a run's state.json has them.
        self.options = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in {**options, **self.options}.items()
        }
        for name, choices in (("precision", PRECISIONS), ("lr_schedule", LR_SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected {' or '.join(choices)}, got {getattr(self, name)!r}")
        if self.lr == math.inf:
            raise ValueError("lr: expected a finite number, got inf")
        for name in ("batch_size", "accumulate", "checkpoint_every", "lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.lr_steps is not None and self.lr_steps < 1:
            raise ValueError(f"lr_steps: expected a positive number, got {self.lr_steps}")
        if self.lr_schedule == "cosine" and self.lr_steps is None:
            raise ValueError("lr_steps: expected the length of the cosine schedule in steps, got None")
        for name in ("lr_decay", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        for name in ("evaluate_every", "sample_every", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more steps, got {getattr(self, name)}")
        if self.crop < 0:
            raise ValueError(f"crop: expected 0 or more pixels, got {self.crop}")

    def _check_types(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            kinds = get_args(kind) if isinstance(kind, UnionType) else (get_origin(kind) or kind,)
            value = getattr(self, name)
            accepted = (*kinds, *((int,) if float in kinds else ()), *((PathLike,) if str in kinds else ()))
            if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
                expected = " or ".join("None" if k is NoneType else k.__name__ for k in kinds)
                raise ValueError(f"{name}: expected {expected}, got {value!r}")

    def for_model(self, model: str, data: str, *, conditional: bool) -> "Settings":
        """The settings as they were given, with what suits another model; `data` unless that was given."""
        given = {**self._given, "data": self._given["data"] or data}
        return Settings(**given | {"model": model, "conditional": conditional})

    def lr_factor(self, step: int) -> float:
        """Factor of the learning rate at training step `step`, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.lr_schedule == "exponential":
            return warm * self.lr_decay**step
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.lr_steps)))

    def load_data(self, name_or_path: str | None = None) -> Dataset:
        """Load the run's data, or other data prepared in the same way."""
        return data.load(
            name_or_path or self.data,
            size=self.size,
            rate=self.rate,
            encoding=self.encoding,
            grayscale=self.grayscale,
            alpha=self.alpha,
            on_error=self.on_error,
        )


def read_config(path: Path) -> dict[str, Any]:
    """Read settings from a TOML file, such as the settings.toml of a run.

    Raises:
        FileNotFoundError: For a file that does not exist.
        ValueError: For one that is no TOML, or a name that is no setting.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"config: expected a TOML file, but {path} does not exist") from None
    except OSError as error:
        raise ValueError(f"config: expected a TOML file, got {path} ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config: expected TOML in {path} ({error})") from None
    names = [setting.name for setting in fields(Settings)]
    for name in given:
        if name not in names:
            raise ValueError(f"config: expected some of {', '.join(names)} in {path}, got {name!r}")
    return given


def write_config(path: Path, settings: Settings) -> None:
    """Write settings as TOML, which has no None: what is left out is None."""
    import tomli_w

    given = {name: value for name, value in asdict(settings).items() if value is not None}
    Path(path).write_text(tomli_w.dumps(given), encoding="utf-8")


def build_model(settings: Settings, dataset: Dataset) -> Model:
    """Build a fresh model for the data.

    Raises:
        ValueError: For data of another modality than the model's, labels that are not there, and options that
            the model does not have.
    """
    cls = MODELS[settings.model]
    defaults = cls.options()
    if settings.conditional and dataset.num_labels is None:
        raise ValueError(f"conditional: expected data with labels, but {dataset.name} has none")
    if settings.conditional and "num_labels" not in defaults:
        raise ValueError(f"conditional: expected a model of classes, but {settings.model} is none")
    if dataset.modality not in cls.modalities:
        expected = " or ".join(sorted(cls.modalities))
        raise ValueError(
            f"data: expected {expected} for {settings.model}, but {dataset.name} is {dataset.items}"
        )
    from_data = cls.data_arguments(dataset.image_shape, dataset.num_levels)
    if "num_labels" in defaults:
        from_data["num_labels"] = dataset.num_labels if settings.conditional else None
    names = ", ".join(name for name in defaults if name not in from_data)
    for name, value in settings.options.items():
        if name not in defaults or name in from_data:
            raise ValueError(f"options: expected some of {names} for {settings.model}, got {name!r}")
        kind = type(defaults[name])
        # JSON has no tuples, and may write a float as an integer.
        accepted = {tuple: (tuple, list), float: (float, int)}.get(kind, (kind,))
        if type(value) not in accepted:
            expected = "a list such as [100]" if kind is tuple else kind.__name__
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
    torch.manual_seed(seed_of(settings.seed, "weights"))
    try:
        model = cls(**from_data, **settings.options)
    except TypeError as error:  # of options, which come from the command line or a file
        raise ValueError(str(error)) from None
    if dataset.modality == "vectors":
        model.standardize(dataset.mean, dataset.std)
    return model
