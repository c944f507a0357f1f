"""Training and held-out data of one modality."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.utils.data
from torch import Tensor

from .splits import CHUNK, Skipping, Split, Subset, TensorSplit, stack

#: Samples of a stream, which has no end, that statistics are computed from.
STREAM_SAMPLES = 2**14


@dataclass(frozen=True)
class Dataset:
    """Training and held-out samples of one modality.

    Attributes:
        name: Name for messages.
        train: Images, uint8 `(N, C, H, W)`, or clips of sound, uint8 or int32 `(N, 1, T)`, with values below
            `num_levels`; or vectors, float32 `(N, D)` in their own units; or a `Split` that reads such
            samples when it is indexed; or a `torch.utils.data.IterableDataset`, a stream.
        heldout: Held-out samples, likewise; None if there are none.
        train_labels: Class indices, int64 `(N,)`, or None. A split's own by default.
        heldout_labels: Class indices of the held-out samples.
        num_levels: Number of values of an element; None for real numbers.
        rate: Sample rate of sound, in Hz; None for other data.
        columns: Names of the vectors' elements, where the data have them.
        modality: Kind of data: "images", "sound", "vectors" or another that a model takes, such as "text". By
            default vectors without `num_levels`, sound with a `rate`, else images.
        classes: Names of the classes, where the data have them.
        skipped: Names of files that could not be read and were left out.
        convert: For a stream: the function from one of its items to a pair of a tensor and a class index or
            None.
    """

    name: str
    train: Tensor | Split | torch.utils.data.IterableDataset
    heldout: Tensor | Split | None
    train_labels: Tensor | None = None
    heldout_labels: Tensor | None = None
    num_levels: int | None = 256
    rate: int | None = None
    columns: tuple[str, ...] | None = None
    modality: str | None = None
    classes: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    convert: Callable[[Any], tuple[Tensor, int | None]] | None = None

    def __post_init__(self):
        if self.modality is None:
            modality = "images" if self.rate is None else "sound"
            object.__setattr__(self, "modality", "vectors" if self.real_valued else modality)
        for name in ("train", "heldout"):
            split = getattr(self, name)
            if isinstance(split, Split) and getattr(self, f"{name}_labels") is None:
                object.__setattr__(self, f"{name}_labels", split.labels)

    @property
    def real_valued(self) -> bool:
        """True if the samples are real numbers rather than levels."""
        return self.num_levels is None

    @property
    def streamed(self) -> bool:
        """True if the training samples are a stream, which cannot be indexed."""
        return not isinstance(self.train, Tensor | Split)

    @property
    def items(self) -> str:
        """Name of the items for messages: images, clips, vectors or samples."""
        return {"sound": "clips", "images": "images", "vectors": "vectors"}.get(self.modality, "samples")

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one sample: `(C, H, W)`, `(1, T)` or `(D,)`."""
        if self.streamed:
            return tuple(self.convert(next(iter(self.train)))[0].shape)
        return self.split("train").shape

    @cached_property
    def mean(self) -> Tensor:
        """Per-feature mean over the training vectors, shape `(D,)`."""
        return self._moments[0].float()

    @cached_property
    def std(self) -> Tensor:
        """Per-feature standard deviation over the training vectors, shape `(D,)`."""
        return self._moments[1].float()

    @cached_property
    def num_labels(self) -> int | None:
        """Number of classes, or None. Labels that only decoding shows are read once, all of them."""
        if self.classes is not None:
            return len(self.classes)
        if self.train_labels is not None:
            return int(self.train_labels.max()) + 1
        if not isinstance(self.train, Split) or self.train[0][1] is None:
            return None
        return 1 + int(self._labels["train"].max())

    def unreadable(self) -> list[str]:
        """Names of the files that were skipped so far: `skipped`, and those that reading has shown since."""
        splits = [split for split in (self.train, self.heldout) if isinstance(split, Skipping)]
        return [*self.skipped, *(split.source.describe(index) for split in splits for index in split.skipped)]

    def split(self, name: str) -> Split:
        """Split `name`, "train" or "heldout".

        Raises:
            ValueError: For another name, data without held-out samples, and a stream.
        """
        if name not in ("train", "heldout"):
            raise ValueError(f"split: expected 'train' or 'heldout', got {name!r}")
        samples = getattr(self, name)
        if isinstance(samples, Tensor):
            return TensorSplit(samples, getattr(self, f"{name}_labels"))
        if samples is None:
            raise ValueError(f"data: expected held-out samples, but {self.name} has none")
        if not isinstance(samples, Split):
            raise ValueError(f"data: expected samples that can be indexed, but {self.name} is a stream")
        return samples

    def as_input(self, x: Tensor) -> Tensor:
        """Map samples to what models take.

        Levels of images and sound become float32 in [-1, 1], tokens of text int64, and real numbers float32.
        """
        if self.modality in ("images", "sound"):
            return to_unit(x, self.num_levels)
        return x.float() if self.real_valued else x.long()

    def gaussian_bits_per_dim(self) -> float:
        """Held-out bits per dimension of a Gaussian with the training vectors' mean and full covariance.

        The density is that of the data's units. Each variance is raised by a millionth of itself, so that the
        covariance is not singular.
        """
        mean, std = self._moments
        size = len(mean)
        covariance, count = torch.zeros(size, size, dtype=torch.float64), 0
        for x in self._batches("train"):
            x = (x.double() - mean) / std
            covariance += x.t() @ x
            count += len(x)
        covariance = covariance / count + 1e-6 * torch.eye(size, dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance)
        log_det = factor.diagonal().log().sum() + std.log().sum()
        total, heldout = 0.0, self.split("heldout")
        for x in self._batches("heldout"):
            z = torch.linalg.solve_triangular(factor, ((x.double() - mean) / std).t(), upper=False)
            total += z.square().sum().item()
        nats = 0.5 * total / len(heldout) + log_det + size / 2 * math.log(2 * math.pi)
        return nats.item() / (size * math.log(2))

    def histogram_bits_per_dim(self, conditional: bool = False) -> float:
        """Held-out bits per dimension of independent categorical distributions, one for each subpixel.

        They are counted on the training images, for each class if `conditional`, and one is added to each.
        The samples of sound, which is stationary, share one distribution.
        """
        size, levels = math.prod(self.image_shape), self.num_levels
        cells = size if self.rate is None else 1
        cell = torch.arange(size) % cells * levels
        total, heldout = 0.0, self.split("heldout")
        for label in range(self.num_labels) if conditional else [None]:
            counts = torch.ones(cells * levels, dtype=torch.int64)
            for x in self._batches("train", label):
                counts += torch.bincount((x.flatten(1) + cell).flatten(), minlength=len(counts))
            # Each cell has counted the same number of levels.
            bits = -torch.log2(counts.double() * cells / counts.sum())
            for x in self._batches("heldout", label):
                total += bits[x.flatten(1) + cell].sum().item()
        return total / (len(heldout) * size)

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training vectors, float64."""
        total, count = 0, 0
        for x in self._batches("train"):
            total = total + x.double().sum(0)
            count += len(x)
        mean = total / count
        squares = sum((x.double() - mean).square().sum(0) for x in self._batches("train"))
        return mean, (squares / count).sqrt()

    def _batches(self, name: str, label: int | None = None) -> Iterator[Tensor]:
        """Batches of a split, or of the first samples of a stream; of one class if `label` is given."""
        if name == "train" and self.streamed:
            items = itertools.islice(self.train, STREAM_SAMPLES)
            size = max(1, CHUNK // math.prod(self.image_shape))
            while pairs := [self.convert(item) for item in itertools.islice(items, size)]:
                batch = stack(pairs)
                yield batch.x if label is None else batch.x[batch.label == label]
            return
        split = self.split(name)
        if label is not None:
            split = Subset(split, (self._labels[name] == label).nonzero()[:, 0])
        for batch in split.batches():
            yield batch.x

    @cached_property
    def _labels(self) -> dict[str, Tensor]:
        """Class indices of the splits; those that only decoding shows are read."""
        return {
            name: torch.cat([batch.label for batch in self.split(name).batches()])
            if getattr(self, f"{name}_labels") is None
            else getattr(self, f"{name}_labels")
            for name in ("train", "heldout")
        }


def to_unit(images: Tensor, num_levels: int | None) -> Tensor:
    """Map integers 0 … `num_levels` - 1 to float32 in [-1, 1]; with None, real numbers stay as they are."""
    if num_levels is None:
        return images.float()
    return images.float() * (2 / (num_levels - 1)) - 1


def from_unit(x: Tensor, num_levels: int) -> Tensor:
    """Invert `to_unit`, rounding to the nearest level: uint8, or int32 for more than 256 levels."""
    dtype = torch.uint8 if num_levels <= 256 else torch.int32
    return ((x + 1) * ((num_levels - 1) / 2)).round().clamp(0, num_levels - 1).to(dtype)
