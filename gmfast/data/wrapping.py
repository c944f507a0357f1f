"""Data sets of other libraries: torch's map-style and iterable ones, and Hugging Face's."""

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset
from .decoding import ImageDecoder
from .splits import Samples, Split, Subset, every_tenth, stack

#: Keys that an item's sample and its label may have, in the order in which they are tried.
SAMPLE_KEYS = ("image", "img", "pixel_values", "x", "audio", "input_ids")
LABEL_KEYS = ("label", "labels", "y", "class", "cls")

#: How far float images may exceed [-1, 1] by rounding.
SLACK = 1e-4


def convert(item: Any, *, decoder: ImageDecoder | None = None) -> tuple[Tensor, int | None]:
    """Convert an item of a data set to a tensor and a class index, or None without one.

    Args:
        item: A tensor, a NumPy array or a PIL image; or a pair of such a sample and a label; or a mapping
            with one of `SAMPLE_KEYS` and perhaps one of `LABEL_KEYS`. Tensors have channels first, arrays
            `(H, W, C)` or `(C, H, W)`. A label that is no class index, such as -1
            or a vector of attributes, is none.
        decoder: `ImageDecoder` of PIL images and of encoded ones; by default one that leaves their size.

    Returns:
        Levels (uint8), integers (int64) or real numbers (float32), and the class.

    Raises:
        TypeError: For what is none of these. ValueError: For an image that cannot be decoded.
    """
    sample, label = _pair(item)
    return _tensor(sample, decoder), _class_index(label)


def _pair(item: Any) -> tuple[Any, Any]:
    """The sample and the label of an item."""
    if isinstance(item, Mapping):
        if "bytes" in item or "array" in item:
            return item, None
        for key in SAMPLE_KEYS:
            if key in item:
                return item[key], next((item[name] for name in LABEL_KEYS if name in item), None)
        raise TypeError(f"data: expected items with one of {', '.join(SAMPLE_KEYS)}, got {', '.join(item)}")
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise TypeError(f"data: expected items of a sample and a label, got a tuple of {len(item)}")
        return (*item, None)[:2]
    return item, None


def _class_index(label: Any) -> int | None:
    if isinstance(label, np.ndarray | Tensor | np.generic):
        label = label.item() if label.ndim == 0 or label.shape == (1,) else None
    return int(label) if isinstance(label, int) and label >= 0 else None


def _tensor(sample: Any, decoder: ImageDecoder | None) -> Tensor:
    """A sample as levels (uint8), integers (int64) or real numbers (float32)."""
    if isinstance(sample, Mapping) and "array" in sample:  # Hugging Face's sound
        sample = torch.as_tensor(np.asarray(sample["array"]))
    elif isinstance(sample, list):  # tokens or features, as Hugging Face's tables have them
        sample = torch.tensor(sample)
    elif isinstance(sample, np.ndarray):
        if sample.ndim == 3 and sample.shape[2] in (1, 3):
            sample = sample.transpose(2, 0, 1)
        sample = torch.from_numpy(np.array(sample, order="C"))
    elif not isinstance(sample, Tensor):
        return (decoder or ImageDecoder())(sample)
    if sample.dtype == torch.bool:
        return sample.to(torch.uint8)
    if sample.is_floating_point():
        return sample.float()
    return sample if sample.dtype == torch.uint8 else sample.long()


@dataclass(frozen=True)
class Converter:
    """`convert`, checked: what one sample has, all have.

    Attributes:
        name: Name of the data for messages.
        modality: Kind of data.
        shape: Shape of a sample.
        num_levels: Number of values of an element; None for real numbers.
        decoder: `ImageDecoder`, or None.
    """

    name: str
    modality: str
    shape: tuple[int, ...]
    num_levels: int | None
    decoder: ImageDecoder | None = None

    def __call__(self, item: Any) -> tuple[Tensor, int | None]:
        """Convert an item.

        Raises:
            ValueError: For a sample of another shape or kind than the first one, or out of range.
        """
        x, label = convert(item, decoder=self.decoder)
        x = shaped(x, self.modality)
        if tuple(x.shape) != self.shape:
            advice = "; an ImageDecoder with size and grayscale makes images equal"
            raise ValueError(
                f"data: expected samples of one shape in {self.name}, got {self.shape} and {tuple(x.shape)}"
                f"{advice}"
            )
        if x.is_floating_point() != (self.num_levels is None):
            raise ValueError(f"data: expected integers or real numbers in {self.name}, got some of each")
        lowest, highest = (value.item() for value in x.aminmax())
        if self.num_levels is not None:
            if lowest < 0 or highest >= self.num_levels:
                raise ValueError(
                    f"data: expected integers from 0 to {self.num_levels - 1} in {self.name}, got "
                    f"{lowest if lowest < 0 else highest}"
                )
            if self.modality != "text":
                x = x.to(torch.uint8 if self.num_levels <= 256 else torch.int32)
        elif self.modality in ("images", "sound") and not (lowest >= -1 - SLACK and highest <= 1 + SLACK):
            raise ValueError(
                f"data: expected {self.modality} of real numbers in [-1, 1], or uint8, in {self.name}, got "
                f"values from {lowest:g} to {highest:g}"
            )
        return x, label


def shaped(x: Tensor, modality: str) -> Tensor:
    """A sample with its axis of channels: `(C, H, W)` for images, `(1, T)` for sound."""
    ndim = {"images": 3, "sound": 2}.get(modality)
    return x[None] if ndim is not None and x.ndim == ndim - 1 else x


class WrappedSplit(Split):
    """A map-style data set of another library.

    Args:
        source: The data set.
        converter: Converts its items.
        labels: Class indices, int64 `(N,)`, if they are known without reading the samples.
    """

    def __init__(self, source: Sequence, converter: Converter, labels: Tensor | None = None):
        super().__init__(converter.shape, labels)
        self.source, self.converter = source, converter

    def __len__(self) -> int:
        return len(self.source)

    def describe(self, index: int) -> str:
        """Name of a sample for messages."""
        return f"sample {index} of {self.converter.name}"

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        return self._convert(self.source[index], index)

    def _convert(self, item: Any, index: int) -> tuple[Tensor, int | None]:
        try:
            return self.converter(item)
        except ValueError as error:
            raise ValueError(f"{error} ({self.describe(index)})") from None

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """Read a batch, by the source's own `__getitems__` if it has one."""
        if hasattr(self.source, "__getitems__"):
            items = self.source.__getitems__(list(indices))
        else:
            items = (self.source[index] for index in indices)
        return stack([self._convert(item, index) for item, index in zip(items, indices, strict=True)])


def wrap(
    dataset: Any,
    heldout: Any = None,
    *,
    name: str | None = None,
    modality: str | None = None,
    num_levels: int | None = None,
    rate: int | None = None,
    decoder: ImageDecoder | None = None,
) -> Dataset:
    """Wrap data of another library for training.

    Args:
        dataset: A map-style or iterable `torch.utils.data.Dataset`, or Hugging Face's `datasets.Dataset` or
            `IterableDataset`; items as `convert` takes them. Images are uint8, or floats in [-1, 1].
        heldout: Held-out samples, map-style. By default every tenth of `dataset`, or none of an iterable one.
        name: Name for messages; by default the class's.
        modality: "images", "sound", "vectors", "text" or another that a model takes. By default images for
            two or three axes, sound with a `rate`, vectors for real numbers and text for integers along one
            axis.
        num_levels: Number of values of an element: the size of the vocabulary for text; by default 256 for
            uint8.
        rate: Sample rate of sound, in Hz.
        decoder: `ImageDecoder` of PIL images and of encoded ones; by default one that leaves their size, so
            that all must have the same.

    Warns:
        UserWarning: For float images without a negative value, which look like [0, 1].

    Raises:
        TypeError: For items of another kind. ValueError: For samples that do not go together or are out of
            range.
    """
    name = name or type(dataset).__name__
    source = _encoded(dataset)
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if not indexed and not isinstance(source, Iterable):
        raise TypeError(f"dataset: expected a map-style or iterable data set, got {type(dataset).__name__}")
    count = len(source) if indexed else None
    if count == 0 or (count == 1 and heldout is None):
        raise ValueError(f"data: expected samples to train on and to hold out in {name}, found {count}")
    first = source[0] if indexed else next(iter(source), None)
    if first is None:
        raise ValueError(f"data: expected samples in {name}, found none")
    x, label = convert(first, decoder=decoder)
    if modality is None:
        if rate is not None:
            modality = "sound"
        elif x.ndim == 1:
            modality = "vectors" if x.is_floating_point() else "text"
        else:
            modality = "images"
    x = shaped(x, modality)
    if modality == "images" and x.ndim != 3:
        raise ValueError(f"data: expected images (C, H, W) or (H, W) in {name}, got {tuple(x.shape)}")
    if x.is_floating_point():
        num_levels = None
    elif num_levels is None:
        if x.dtype != torch.uint8 or modality == "text":
            raise ValueError(f"num_levels: expected the number of values of the integers in {name}, got None")
        num_levels = 256
    converter = Converter(name, modality, tuple(x.shape), num_levels, decoder)
    converter(first)
    if modality == "images" and num_levels is None:
        some = (source[i] for i in range(min(8, count))) if indexed else itertools.islice(source, 8)
        if all(converter(item)[0].min() >= 0 for item in some):
            warnings.warn(
                f"{name}: the first images have no negative value; models take [-1, 1], so images in [0, 1] "
                "need x * 2 - 1, or stay uint8",
                stacklevel=2,
            )
    options = {
        "num_levels": num_levels,
        "rate": rate,
        "modality": modality,
        "classes": known_classes(source) if label is not None else None,
    }
    held = None
    if heldout is not None:
        other = _encoded(heldout)
        held = WrappedSplit(other, converter, known_labels(other))
        held[0]
    if not indexed:
        return Dataset(name, source, held, convert=converter, **options)
    train = WrappedSplit(source, converter, known_labels(source))
    if held is None:
        train, held = (Subset(train, part) for part in every_tenth(count))
    return Dataset(name, train, held, **options)


def _encoded(dataset: Any) -> Any:
    """Hugging Face data with their images as encoded bytes, for `ImageDecoder`; other data as they are."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping) or not hasattr(dataset, "cast_column"):
        return dataset
    from datasets import Image

    for column, feature in features.items():
        if isinstance(feature, Image) and feature.decode:
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def known_labels(source: Any) -> Tensor | None:
    """Class indices of a map-style data set, if it has them apart from its samples."""
    if isinstance(source, torch.utils.data.Subset):
        labels = known_labels(source.dataset)
        return None if labels is None else labels[torch.as_tensor(source.indices)]
    if getattr(source, "target_transform", None) is not None:
        return None
    if isinstance(getattr(source, "features", None), Mapping):
        column = next((key for key in LABEL_KEYS if key in source.features), None)
        labels = None if column is None else source.with_format("numpy")[column][:]
    else:
        labels = getattr(source, "targets", getattr(source, "labels", None))
    if labels is None:
        return None
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None
    fits = labels.shape == (len(source),) and not labels.is_floating_point()
    if not fits or labels[0].item() != _class_index(_pair(source[0])[1]):
        return None
    return labels.long() if (labels >= 0).all() else None


def known_classes(source: Any) -> tuple[str, ...] | None:
    """Names of a data set's classes, if it has them."""
    if isinstance(source, torch.utils.data.Subset):
        return known_classes(source.dataset)
    features = getattr(source, "features", None)
    if isinstance(features, Mapping):
        names = next((getattr(features[key], "names", None) for key in LABEL_KEYS if key in features), None)
    else:
        names = getattr(source, "classes", None)
    return tuple(str(name) for name in names) if isinstance(names, list | tuple) else None
