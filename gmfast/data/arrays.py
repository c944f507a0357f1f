"""Arrays of images or vectors in .npz and .npy files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset
from .splits import Samples, Split, Subset, every_tenth
from .vectors import checked

#: Greatest number of levels of an element.
MOST_LEVELS = 256


def npz_file(path: Path) -> Dataset:
    """Images or vectors of an .npz file: arrays `train` and `heldout`, with labels or without."""
    arrays = _read_npz(path)
    images, labels = {}, {}
    num_levels = _num_levels(path, arrays)
    for split in ("train", "heldout"):
        if split not in arrays:
            raise ValueError(f"data: expected an array {split!r} in {path}, found {sorted(arrays)}")
        array = arrays[split]
        if f"{split}_labels" in arrays:
            labels[f"{split}_labels"] = class_indices(
                path, f"{split}_labels", arrays[f"{split}_labels"], array.shape[:1]
            )
        if array.dtype.kind == "f" and array.ndim == 2 and len(array):
            images[split] = torch.from_numpy(array.astype(np.float32))
            continue
        if array.ndim == 3:
            array = array[:, None]
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
            raise ValueError(
                f"data: expected {split!r} in {path} to be uint8 (N, H, W) or (N, C, H, W) with C = 1 or 3, "
                f"or floats (N, D), got {array.dtype} {array.shape}"
            )
        if array.max(initial=0) >= num_levels:
            raise ValueError(
                f"data: expected {split!r} in {path} below num_levels {num_levels}, got {array.max()}"
            )
        images[split] = torch.from_numpy(array)
    if len(labels) == 1:
        raise ValueError(
            f"data: expected labels for both splits or none in {path}, found {next(iter(labels))!r}"
        )
    return _pair(path, path.stem, images["train"], images["heldout"], labels, num_levels)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # of any kind: zipfile, zlib and NumPy raise what damaged files lead them to
        raise ValueError(f"data: expected an .npz file of plain arrays, got {path} ({error})") from None


def _num_levels(path: Path, arrays: dict[str, np.ndarray]) -> int:
    value = arrays.get("num_levels", np.array(256))
    if value.size != 1 or value.dtype.kind not in "iu" or not 2 <= value.item() <= MOST_LEVELS:
        got = value.item() if value.size == 1 else f"{value.dtype} {value.shape}"
        raise ValueError(f"num_levels: expected an integer from 2 to {MOST_LEVELS} in {path}, got {got!r}")
    return value.item()


def class_indices(path: Path, name: str, labels: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Labels, one for each sample, as int64.

    Raises:
        ValueError: For another shape, and for what are not class indices.
    """
    if labels.shape != shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"data: expected {name!r} in {path} to be {shape[0] if shape else 1} integers, "
            f"got {labels.dtype} {labels.shape}"
        )
    if labels.min(initial=0) < 0:
        raise ValueError(f"data: expected class indices from 0 in {name!r} in {path}, got {labels.min()}")
    return torch.from_numpy(labels.astype(np.int64))


class MappedSplit(Split):
    """Samples of an .npy file that is mapped into memory.

    Args:
        path: The file: uint8 images `(N, H, W)`, `(N, C, H, W)` or `(N, H, W, C)` with C = 1 or 3; or floats
            `(N, D)`.
        labels: Class indices, int64 `(N,)`, or None.

    Raises:
        ValueError: For another array.
    """

    def __init__(self, path: Path, labels: Tensor | None = None):
        self.path = path
        array = self._map()
        vectors = array.dtype.kind == "f" and array.ndim == 2
        images = array.dtype == np.uint8 and (
            array.ndim == 3 or (array.ndim == 4 and (array.shape[1] in (1, 3) or array.shape[3] in (1, 3)))
        )
        if not (vectors or images) or not array.size:
            raise ValueError(
                f"data: expected uint8 (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 or 3, or floats "
                f"(N, D), in {path}, got {array.dtype} {array.shape}"
            )
        self._channels_last = array.ndim == 4 and array.shape[1] not in (1, 3)
        super().__init__(self._batch([0]).shape[1:], labels)

    def _map(self) -> np.ndarray:
        try:
            self._array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            self._array.dtype  # noqa: B018 - which an archive does not have
        except Exception as error:  # of any kind: NumPy raises what damaged files lead it to
            raise ValueError(f"data: expected an .npy file, got {self.path} ({error})") from None
        return self._array

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_array"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._map()

    def __len__(self) -> int:
        return len(self._array)

    def _batch(self, indices: Sequence[int]) -> Tensor:
        if isinstance(indices, range) and indices.step == 1:
            array = self._array[indices.start : indices.stop]
        else:
            array = self._array[np.asarray(indices, np.int64)]
        if array.dtype.kind == "f":
            return torch.from_numpy(array.astype(np.float32))
        if array.ndim == 3:
            array = array[:, None]
        elif self._channels_last:
            array = array.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.array(array, order="C"))

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected at most {len(self) - 1}, got {index}")
        return self._batch([index])[0], None if self.labels is None else int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """Read a batch."""
        label = None if self.labels is None else self.labels[torch.as_tensor(indices, dtype=torch.int64)]
        return Samples(self._batch(indices), label)


def npy_file(path: Path) -> Dataset:
    """Images or vectors of an .npy file, mapped into memory; every tenth is held out."""
    split = MappedSplit(path)
    if len(split) < 10:
        raise ValueError(f"data: expected at least 10 samples in {path}, got {len(split)}")
    train, heldout = (Subset(split, part) for part in every_tenth(len(split)))
    return _pair(path, path.stem, train, heldout, {}, 256)


def npy_folder(path: Path) -> Dataset | None:
    """Images or vectors of `train.npy` and `heldout.npy` in a folder, mapped into memory; or None.

    Labels are in `train_labels.npy` and `heldout_labels.npy`.
    """
    if not (path / "train.npy").is_file():
        return None
    splits = {}
    for name in ("train", "heldout"):
        file, labels = path / f"{name}.npy", path / f"{name}_labels.npy"
        if not file.is_file():
            raise FileNotFoundError(f"data: expected {name}.npy beside train.npy, but {file} does not exist")
        splits[name] = MappedSplit(file)
        if labels.is_file():
            try:
                array = np.load(labels, allow_pickle=False)
                array.dtype  # noqa: B018 - which an archive does not have
            except Exception as error:  # of any kind, as above
                raise ValueError(f"data: expected an .npy file, got {labels} ({error})") from None
            indices = class_indices(labels, f"{name}_labels", array, (len(splits[name]),))
            splits[name] = MappedSplit(file, indices)
    if (splits["train"].labels is None) != (splits["heldout"].labels is None):
        raise ValueError(f"data: expected labels for both splits or none in {path}, found those of one")
    return _pair(path, path.absolute().name, *splits.values(), {}, 256)


def _pair(
    path: Path,
    name: str,
    train: Tensor | Split,
    heldout: Tensor | Split,
    labels: dict[str, Tensor],
    levels: int,
) -> Dataset:
    """Two splits of one kind and shape."""
    dataset = Dataset(name, train, heldout, **labels, num_levels=levels)
    shapes = [dataset.split(split).shape for split in ("train", "heldout")]
    if len({len(shape) for shape in shapes}) > 1:
        raise ValueError(f"data: expected images or vectors for both splits in {path}, got one of each")
    if shapes[0] != shapes[1]:
        what = "vectors" if len(shapes[0]) == 1 else "images"
        raise ValueError(f"data: expected {what} of one shape in {path}, got {shapes[0]} and {shapes[1]}")
    if len(shapes[0]) == 1:
        return checked(Dataset(name, train, heldout, **labels, num_levels=None))
    return dataset
