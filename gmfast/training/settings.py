"""Settings of a training run, and the model they describe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import data
from ..data import Dataset
from ..models import MODELS
from ..models.base import Model
from .random import seed_of

PRECISIONS = ("float32", "bfloat16")

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
        conditional: Whether the model is conditioned on the data's labels.
        teacher: Run of a model that this one learns from.
        options: Arguments of the model's constructor.
        seed: Seed of the weights, the batches and the noise.
        batch_size: Samples per step.
        lr: Learning rate at the first step.
        lr_decay: Factor of the learning rate each step.
        ema_decay: Decay of the weights' running average, which evaluation and sampling use.
        max_grad_norm: Norm that each player's gradient is clipped to.
        precision: "float32", or "bfloat16" for autocast.
        evaluate_every: Steps between evaluations; 0: never.
        checkpoint_every: Steps between checkpoints.

    Raises:
        ValueError: For values out of range, naming the field.
    """

    model: str = "pixelcnnpp"
    data: str | None = None
    size: int | None = None
    rate: int | None = None
    encoding: str | None = None
    conditional: bool = False
    teacher: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int | None = None
    lr: float | None = None
    lr_decay: float | None = None
    ema_decay: float | None = None
    max_grad_norm: float | None = None
    precision: str | None = None
    evaluate_every: int = 0
    checkpoint_every: int = 500

    def __post_init__(self):
        self.model = MODELS.resolve(self.model)
        cls = MODELS[self.model]
        if self.data is None:
            self.data = cls.data
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
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected {' or '.join(PRECISIONS)}, got {self.precision!r}")
        for name in ("batch_size", "checkpoint_every", "lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("lr_decay", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        if self.evaluate_every < 0:
            raise ValueError(f"evaluate_every: expected 0 or more steps, got {self.evaluate_every}")

    def load_data(self, name_or_path: str | None = None) -> Dataset:
        """Load the run's data, or other data prepared in the same way."""
        return data.load(name_or_path or self.data, size=self.size, rate=self.rate, encoding=self.encoding)


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
    model = cls(**from_data, **settings.options)
    if dataset.modality == "vectors":
        model.standardize(dataset.mean, dataset.std)
    return model
