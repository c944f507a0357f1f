"""Arrays of images or vectors in an .npz file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset
from .vectors import checked


def npz_file(path: Path) -> Dataset:
    """Images or vectors of an .npz file: arrays `train` and `heldout`, with labels or without."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"data: expected an .npz file of plain arrays, got {path} ({error})") from None
    images, labels = {}, {}
    num_levels = int(arrays.get("num_levels", 256))
    for split in ("train", "heldout"):
        if split not in arrays:
            raise ValueError(f"data: expected an array {split!r} in {path}, found {sorted(arrays)}")
        array = arrays[split]
        if array.dtype.kind == "f" and array.ndim == 2 and len(array):
            images[split] = torch.from_numpy(array.astype(np.float32))
            labels |= _labels(path, arrays, split, len(array))
            continue
        if array.ndim == 3:
            array = array[:, None]
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or not len(array):
            raise ValueError(
                f"data: expected {split!r} in {path} to be uint8 (N, H, W) or (N, C, H, W) with C = 1 or 3, "
                f"or floats (N, D), got {array.dtype} {array.shape}"
            )
        if array.max() >= num_levels:
            raise ValueError(
                f"data: expected {split!r} in {path} below num_levels {num_levels}, got {array.max()}"
            )
        images[split] = torch.from_numpy(array)
        labels |= _labels(path, arrays, split, len(array))
    if len(labels) == 1:
        raise ValueError(
            f"data: expected labels for both splits or none in {path}, found {next(iter(labels))!r}"
        )
    if images["train"].shape[1:] != images["heldout"].shape[1:]:
        shapes = " and ".join(str(tuple(images[split].shape[1:])) for split in images)
        raise ValueError(f"data: expected images of one shape in {path}, got {shapes}")
    kinds = {array.dtype for array in images.values()}
    if len(kinds) > 1:
        raise ValueError(f"data: expected images or vectors for both splits in {path}, got one of each")
    if torch.float32 in kinds:
        return checked(Dataset(path.stem, **images, **labels, num_levels=None))
    return Dataset(path.stem, **images, **labels, num_levels=num_levels)


def _labels(path: Path, arrays: dict, split: str, count: int) -> dict[str, Tensor]:
    key = f"{split}_labels"
    if key not in arrays:
        return {}
    if arrays[key].shape != (count,) or arrays[key].dtype.kind not in "iu":
        raise ValueError(
            f"data: expected {key!r} in {path} to be {count} integers, "
            f"got {arrays[key].dtype} {arrays[key].shape}"
        )
    return {key: torch.from_numpy(arrays[key].astype(np.int64))}
