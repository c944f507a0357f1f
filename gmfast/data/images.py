"""Images: digits and photographs that scikit-learn ships, and folders of image files."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset
from .decoding import ImageDecoder, check_header, is_gray
from .files import FileIndex, layout
from .splits import Split, every_tenth

IMAGE_SUFFIXES = {
    ".bmp",
    ".gif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
}

#: Images that are looked at to know if a folder's are grey, spread evenly over it.
LOOKED_AT = 256


def digits(name: str) -> Dataset:
    """scikit-learn's digits, (1, 8, 8): 17 levels, or 2 for "binary-digits"."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, levels = torch.from_numpy(digits.images.astype(np.uint8))[:, None], 17
    if name == "binary-digits":
        images, levels = (images >= 8).to(torch.uint8), 2
    labels = torch.from_numpy(digits.target.astype(np.int64))
    split = len(images) * 4 // 5
    return Dataset(name, images[:split], images[split:], labels[:split], labels[split:], levels)


def photos(size: int, train_crops: int = 8192) -> Dataset:
    """Crops (3, `size`, `size`) of scikit-learn's two photographs, their right quarters held out."""
    from sklearn.datasets import load_sample_images

    random = np.random.RandomState(0)
    train, heldout = [], []
    for photo in load_sample_images().images:
        photo = torch.from_numpy(photo.copy()).permute(2, 0, 1)
        split = photo.shape[2] * 3 // 4
        left, right = photo[:, :, :split], photo[:, :, split:]
        if size > min(right.shape[1:]):
            raise ValueError(f"size: expected at most {min(right.shape[1:])} for photos, got {size}")
        for _ in range(train_crops // 2):
            top = random.randint(left.shape[1] - size + 1)
            start = random.randint(left.shape[2] - size + 1)
            train.append(left[:, top : top + size, start : start + size])
        tiles = right.unfold(1, size, size).unfold(2, size, size)  # (C, rows, columns, size, size)
        heldout.append(tiles.permute(1, 2, 0, 3, 4).flatten(0, 1))
    return Dataset("photos", torch.stack(train), torch.cat(heldout))


class FolderSplit(Split):
    """Image files, decoded when they are indexed.

    Args:
        index: The files.
        labels: Class index of each, int64 `(N,)`, or None.
        decoder: Decodes a file.
        shape: What it decodes to: `(C, size, size)`.
    """

    def __init__(
        self, index: FileIndex, labels: Tensor | None, decoder: ImageDecoder, shape: tuple[int, ...]
    ):
        super().__init__(shape, labels)
        self.index, self.decoder = index, decoder

    def take(self, positions: Tensor) -> "FolderSplit":
        """The files at `positions`."""
        labels = None if self.labels is None else self.labels[positions]
        return FolderSplit(self.index.take(positions), labels, self.decoder, self.shape)

    def describe(self, index: int) -> str:
        """Path of a file."""
        return self.index[index]

    def check(self, index: int) -> None:
        """Read the first bytes of a file; ValueError if they are not an image's."""
        check_header(self.index[index])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        x = self.decoder(self.index[index])
        if x.shape != self.shape:
            raise ValueError(
                f"grayscale: expected True or False, because {self.index[index]} has colours, and the others "
                "seem to have none"
            )
        return x, None if self.labels is None else int(self.labels[index])


def image_folder(index: FileIndex, name: str, decoder: ImageDecoder) -> Dataset:
    """Image files, decoded lazily, with the splits and classes of `layout` or else every tenth held out.

    Args:
        index: The files.
        name: Name of the data.
        decoder: Decodes them. If its `grayscale` is None, the images have one channel if `look_gray`.
    """
    if len(index) < 10:
        raise ValueError(
            f"data: expected CIFAR-10, MNIST or at least 10 images ({', '.join(sorted(IMAGE_SUFFIXES))}) "
            f"in {index.root}, found {len(index)} images"
        )
    splits = layout(index)
    parts = every_tenth(len(index)) if splits.train is None else map(torch.from_numpy, splits[:2])
    labels = None if splits.labels is None else torch.from_numpy(splits.labels)
    decoder, channels = chosen_gray(decoder, index.__getitem__, len(index))
    split = FolderSplit(index, labels, decoder, (channels, decoder.size, decoder.size))
    train, heldout = (split.take(part) for part in parts)
    return Dataset(name, train, heldout, classes=splits.classes)


def chosen_gray(decoder: ImageDecoder, source: Callable[[int], Any], count: int) -> tuple[ImageDecoder, int]:
    """A decoder to one number of channels, and that number.

    If the decoder's `grayscale` is None, images have one channel if none of 256 of them, spread evenly over
    the `count` that `source` gives, has colours. The decoder then still gives three for one with colours.
    """
    if decoder.grayscale is None:
        positions = {i * (count - 1) // max(1, LOOKED_AT - 1) for i in range(LOOKED_AT)}
        if all(is_gray(source(position)) for position in sorted(positions)):
            return decoder, 1
        decoder = replace(decoder, grayscale=False)
    return decoder, 1 if decoder.grayscale else 3
