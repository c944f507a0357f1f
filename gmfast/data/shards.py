"""Parquet files, webdataset shards and Arrow folders, which Hugging Face's datasets maps into memory."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .dataset import Dataset
from .decoding import ImageDecoder
from .files import HELDOUT, TRAIN, FileIndex
from .images import chosen_gray
from .splits import Subset, every_tenth
from .vectors import table_of
from .wrapping import LABEL_KEYS, SAMPLE_KEYS, Converter, WrappedSplit, known_classes, known_labels

#: The reader of a file, by its suffix.
READERS = {".parquet": "parquet", ".tar": "webdataset"}


def shards(index: FileIndex, name: str, decoder: ImageDecoder) -> Dataset:
    """Parquet files or webdataset shards, with splits by the names of files or of the folders they are in.

    Without them every tenth sample is held out.
    """
    datasets = _datasets()
    files = [index[i] for i in range(len(index))]
    kinds = {READERS[Path(file).suffix.lower()] for file in files}
    if len(kinds) > 1:
        raise ValueError(f"data: expected parquet files or tar shards in {index.root}, found some of each")
    parts = _by_split(index)
    try:
        loaded = datasets.load_dataset(kinds.pop(), data_files=parts)
    except OSError:
        raise
    except Exception as error:  # of any kind: pyarrow, tarfile and datasets raise what damaged files lead to
        reason, where = error.__cause__ or error, files[0] if len(files) == 1 else index.root
        raise ValueError(f"data: expected parquet files or tar shards, got {where} ({reason})") from None
    return _dataset(loaded, name, decoder)


def saved(path: Path, decoder: ImageDecoder) -> Dataset | None:
    """A folder that `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, or None."""
    one = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    if not one and not (path / "dataset_dict.json").is_file():
        return None
    datasets = _datasets()
    try:
        loaded = datasets.load_from_disk(str(path))
    except OSError:
        raise
    except Exception as error:  # of any kind, as above
        raise ValueError(f"data: expected a folder of datasets, got {path} ({error})") from None
    return _dataset({"train": loaded} if one else loaded, path.absolute().name, decoder)


def _datasets() -> ModuleType:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ModuleNotFoundError(
            "datasets is missing: pip install 'gmfast[data]' brings it", name="datasets"
        ) from None
    return datasets


def _by_split(index: FileIndex) -> dict[str, list[str]]:
    """Files by the names of splits if each, or a folder it is in, is named after one; else one split."""
    parts = {}
    for i, name in enumerate(index.names):
        words = (re.match("[A-Za-z]*", part)[0].lower() for part in name.decode(errors="replace").split("/"))
        split = next((word for word in words if word in (*TRAIN, *HELDOUT)), None)
        parts.setdefault(split, []).append(index[i])
    if None in parts or _names(parts) is None:
        return {"train": [index[i] for i in range(len(index))]}
    return parts


def _names(splits: Any) -> tuple[str, str] | None:
    """Names of the training and the held-out split, or None."""
    train = next((name for name in TRAIN if name in splits), None)
    heldout = next((name for name in HELDOUT if name in splits), None)
    return None if train is None or heldout is None else (train, heldout)


def _dataset(loaded: Any, name: str, decoder: ImageDecoder) -> Dataset:
    """Data of Hugging Face's splits: a column of images, or columns of numbers."""
    if (names := _names(loaded)) is not None:
        parts = [loaded[split] for split in names]
    elif len(loaded) == 1:
        parts = [*loaded.values()]
    else:
        raise ValueError(f"data: expected splits to train on and to hold out in {name}, found {[*loaded]}")
    if not all(map(len, parts)) or (len(parts) == 1 and len(parts[0]) < 2):
        raise ValueError(f"data: expected samples to train on and to hold out in {name}, found too few")
    features = parts[0].features
    label = next((key for key in (*LABEL_KEYS, "fine_label") if key in features), None)
    image = _image_column(features)
    if image is None:
        return _table(parts, name, label)
    columns = {image: "image"} | ({} if label is None else {label: "label"})
    parts = [part.select_columns([*columns]).rename_columns(columns) for part in parts]
    encoded = [part.cast_column("image", _datasets().Image(decode=False)) for part in parts]
    decoder, channels = chosen_gray(decoder, lambda i: encoded[0][i]["image"], len(encoded[0]))
    converter = Converter(name, "images", (channels, decoder.size, decoder.size), 256, decoder)
    splits = [WrappedSplit(part, converter, known_labels(part)) for part in encoded]
    if len(splits) == 1:
        splits = [Subset(splits[0], part) for part in every_tenth(len(splits[0]))]
    return Dataset(name, *splits, classes=known_classes(encoded[0]))


def _image_column(features: Any) -> str | None:
    """Name of the column of images: by its type, or by its name if it holds files' bytes."""
    images = [key for key, feature in features.items() if type(feature).__name__ == "Image"]
    if images:
        return images[0]
    held = [key for key in SAMPLE_KEYS if key in features]
    return next((key for key in held if getattr(features[key], "dtype", None) == "binary"), None)


def _table(parts: list[Any], name: str, label: str | None) -> Dataset:
    """Vectors from columns of numbers."""
    columns = [key for key in parts[0].features if key != label and not key.startswith("__")]
    wrong = [key for key in columns if not re.match("u?int|float|double", str(_dtype(parts[0], key)))]
    if wrong or not columns:
        raise ValueError(
            f"data: expected a column of images or columns of numbers in {name}, found {[*parts[0].features]}"
        )
    arrays = []
    for part in parts:
        part = part.with_format("numpy")
        x = np.stack([np.asarray(part[key][:], np.float64) for key in columns], 1)
        arrays.append((x, None if label is None else np.asarray(part[label][:])))
    return table_of(name, arrays, tuple(columns))


def _dtype(part: Any, key: str) -> Any:
    return getattr(part.features[key], "dtype", None)
