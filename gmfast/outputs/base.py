"""The contract of outputs: the files of one modality's samples, and how its figures are reported."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ..data import Dataset
from ..models.base import Model
from ..training import Settings


class Output(ABC):
    """Files of samples of one modality.

    Args:
        model: The model that is sampled from.
        settings: The settings it was trained with.
        run: The folder of its run.

    Attributes:
        count: Number of samples to draw unless told otherwise.
        default: File to write unless told otherwise.
        batch: Number of samples to draw at once for a folder of shards.
        options: Options of `gmfast sample` that this modality has and others have not.
        dimension: Name of one element, for "bits per ...".
    """

    count: ClassVar[int]
    default: ClassVar[str]
    batch: ClassVar[int]
    options: ClassVar[frozenset[str]] = frozenset()
    dimension: ClassVar[str] = "dimension"

    def __init__(self, model: Model, settings: Settings, run: Path):
        self.model, self.settings, self.run = model, settings, run

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files that can be written."""
        return (Path(self.default).suffix,)

    def check(self, out: Path) -> None:
        """Check that a file of that name can be written.

        Raises:
            ValueError: For another suffix.
        """
        if out.suffix.lower() not in self.suffixes:
            *others, last = self.suffixes
            names = f"{', '.join(others)} or {last}" if others else last
            article = "an" if self.suffixes[0] == ".npz" else "a"
            raise ValueError(f"out: expected {article} {names} file, got {out}")

    @abstractmethod
    def write(self, out: Path, samples: Tensor) -> list[Path]:
        """Write samples `(n, *S)`, as the model returns them, and return the files."""

    def report(self, samples: Tensor, seconds: float) -> str | None:
        """Return the line that reports how long sampling took, or None."""
        return None

    @abstractmethod
    def baseline(self, dataset: Dataset, conditional: bool) -> tuple[str, float]:
        """Name and held-out bits per dimension of the simplest model of the data."""

    def figures(self, name: str, bits: float, dataset: Dataset, conditional: bool) -> Iterator[str]:
        """Yield the lines with the model's bits per dimension and the baseline's."""
        baseline, baseline_bits = self.baseline(dataset, conditional)
        unit = f"bits per {self.dimension}"
        yield f"{name}: {bits:.4f} {unit} on {len(dataset.split('heldout'))} {dataset.items}"
        yield f"{baseline}: {baseline_bits:.4f} {unit}"
