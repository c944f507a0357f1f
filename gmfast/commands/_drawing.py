"""Samples of a run's model, all of them or any part."""

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._processes import Processes
from .._seed import first_sample
from .._version import __version__
from ..data import from_unit
from ..models.base import Model
from ..training import Settings


@dataclass(frozen=True)
class Drawing:
    """Samples of a model: sample i is the same for any number of samples, processes and batches.

    Attributes:
        model: The model.
        seed: Seed of the noise.
        label: Class of every sample; None: for a conditional model the classes in turn.
        options: Further keyword arguments of the model's `sample`.
    """

    model: Model
    seed: int
    label: int | None
    options: Mapping[str, Any]

    def labels(self, first: int, count: int) -> Tensor | None:
        """Class indices of samples `first` to `first + count`, int64 `(count,)`; None if they have none."""
        if self.label is not None:
            return torch.full((count,), self.label)
        if self.model.num_labels is None:
            return None
        return torch.arange(first, first + count) % self.model.num_labels

    def draw(self, first: int, count: int, **options: Any) -> Tensor:
        """Draw samples `first` to `first + count`, with further options, as far as the model has them."""
        options = {"label": self.labels(first, count), **self.options, **options}
        has = self.model.sample_options()
        with first_sample(first):
            drawn = self.model.sample(
                count, seed=self.seed, **{name: value for name, value in options.items() if name in has}
            )
        return drawn.cpu()

    def draw_all(self, count: int, batch_size: int | None, processes: Processes, **options: Any) -> Tensor:
        """Draw samples 0 to `count`, each process a part of them, `batch_size` at once or the whole part."""
        part, size = processes.part(count), batch_size or count
        starts = range(part.start, part.stop, size) or [part.start]
        drawn = [self.draw(first, min(size, part.stop - first), **options) for first in starts]
        return processes.gather(torch.cat(drawn))

    def arrays(self, first: int, count: int) -> dict[str, np.ndarray]:
        """Draw samples `first` to `first + count` as a shard has them."""
        drawn, label, levels = self.draw(first, count), self.labels(first, count), self.model.num_levels
        arrays = {"samples": (drawn.float() if levels is None else from_unit(drawn, levels)).numpy()}
        return arrays if label is None else {**arrays, "label": label.numpy()}

    def request(self, run: Path, settings: Settings, step: int) -> dict[str, Any]:
        """Everything that the samples depend on, for the manifest of shards."""
        model = self.model
        sound = {"rate": settings.rate, "encoding": settings.encoding} if model.modality == "sound" else {}
        return {
            "version": __version__,
            "model": settings.model,
            "step": step,
            "weights_sha256": _checksum(run / f"step-{step:08d}" / "ema.safetensors"),
            "modality": model.modality,
            "num_levels": model.num_levels,
            **sound,
            "seed": self.seed,
            "label": "in turn" if model.num_labels is not None and self.label is None else self.label,
            "options": dict(self.options),
        }


def _checksum(path: Path) -> str:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return hashlib.sha256(data).hexdigest()
