"""Images: digits and photographs that scikit-learn ships, folders of image files, MNIST and CIFAR-10."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch

from .dataset import Dataset
from .files import files_below

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


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


def image_folder(path: Path, size: int) -> Dataset:
    """Images in a folder and below, shrunk and cropped at the centre; every tenth is held out."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    files = files_below(path, IMAGE_SUFFIXES)
    if len(files) < 10:
        raise ValueError(
            f"data: expected CIFAR-10, MNIST or at least 10 images ({', '.join(sorted(IMAGE_SUFFIXES))}) "
            f"in {path.absolute()}, found {len(files)} images"
        )
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"data: expected an image, got {file} ({error})") from None
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    images = torch.stack(images)
    held = torch.arange(len(images)) % 10 == 9
    return Dataset(path.name, images[~held], images[held])


def mnist(path: Path, files: dict) -> Dataset:
    """MNIST in its original idx files, by name a function that reads each; its test set is held out."""

    def idx(name):
        for candidate in (name, f"{name}.gz"):
            if candidate in files:
                break
        else:
            raise FileNotFoundError(
                f"data: expected MNIST's {name}[.gz] in {path.absolute()}, found {sorted(files)}"
            )
        try:
            content = files[candidate]()
            content = gzip.decompress(content) if candidate.endswith(".gz") else content
            # Magic number: two zeros, 8 for unsigned bytes, the number of dimensions; then big-endian sizes.
            ndim = {b"\0\0\x08\x01": 1, b"\0\0\x08\x03": 3}[content[:4]]
            shape = np.frombuffer(content, ">i4", ndim, offset=4)
            return torch.from_numpy(
                np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
            )
        except (OSError, EOFError, KeyError, ValueError) as error:
            raise ValueError(
                f"data: expected an idx file of bytes, got {path / candidate} ({error})"
            ) from None

    train, heldout = idx("train-images-idx3-ubyte")[:, None], idx("t10k-images-idx3-ubyte")[:, None]
    labels = [idx(f"{split}-labels-idx1-ubyte").long() for split in ("train", "t10k")]
    return Dataset("mnist", train, heldout, *labels)


def cifar10(path: Path, files: dict) -> Dataset:
    """CIFAR-10, Python version, by name a function that reads each batch; its test set is held out."""

    def batch(name):
        if name not in files:
            raise FileNotFoundError(
                f"data: expected CIFAR-10's {name} in {path.absolute()}, found {sorted(files)}"
            )
        try:
            content = _ArraysOnly(io.BytesIO(files[name]()), encoding="bytes").load()
            images = torch.from_numpy(content[b"data"].reshape(-1, 3, 32, 32).copy())
            return images, torch.tensor(content[b"labels"])
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"data: expected a batch of CIFAR-10, got {path / name} ({error})") from None

    images, labels = zip(*(batch(f"data_batch_{i}") for i in range(1, 6)), strict=True)
    heldout, heldout_labels = batch("test_batch")
    return Dataset("cifar10", torch.cat(images), heldout, torch.cat(labels), heldout_labels)


def tar_files(path: Path) -> dict:
    """Files of a tar archive by their base names, each a function that reads it."""
    try:
        with tarfile.open(path) as archive:
            contents = {
                Path(member.name).name: archive.extractfile(member).read()
                for member in archive
                if member.isfile()
            }
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"data: expected CIFAR-10's .tar.gz, got {path} ({error})") from None
    return {name: lambda content=content: content for name, content in contents.items()}


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of NumPy arrays alone.

    CIFAR-10 is distributed as pickles; anything else in one is refused, so that a file from elsewhere runs no
    code.
    """

    def find_class(self, module, name):
        if (module.split(".")[0], name) in {
            ("numpy", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")
