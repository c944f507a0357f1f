"""MNIST and CIFAR in the files that their authors published, and in torchvision's folders of them."""

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset

#: Where torchvision puts the files, below its root; the files may also lie in the folder itself.
FOLDERS = (
    ".",
    "cifar-10-batches-py",
    "cifar-100-python",
    "cifar-10-batches-bin",
    "cifar-100-binary",
    "raw",
    "MNIST/raw",
    "FashionMNIST/raw",
)

#: Names of CIFAR's batches, the last one held out, by data set and version.
CIFAR = {
    ("cifar10", "python"): [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
    ("cifar10", "binary"): [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"],
    ("cifar100", "python"): ["train", "test"],
    ("cifar100", "binary"): ["train.bin", "test.bin"],
}

#: Names of MNIST's files, gzipped or not.
MNIST = [
    f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
]

#: A file's name, and the function that reads it.
Files = Mapping[str, Callable[[], bytes]]


def folder(path: Path) -> Dataset | None:
    """MNIST or CIFAR in a folder, or None.

    Raises:
        ValueError: For several of them, and damaged files. FileNotFoundError: For some of the files alone.
    """
    names = {"meta", *MNIST, *(f"{name}.gz" for name in MNIST)}.union(*CIFAR.values())
    found = {}
    for below in FOLDERS:
        files = {name: (path / below / name).read_bytes for name in names if (path / below / name).is_file()}
        if (which := _which(files)) is not None:
            found[path / below] = which, files
    if len(found) > 1:
        raise ValueError(
            f"data: expected one data set in {path.absolute()}, found {', '.join(map(str, found))}"
        )
    for at, (which, files) in found.items():
        return mnist(at, files) if which == "mnist" else cifar(at, files, *which)
    return None


def archive(path: Path) -> Dataset:
    """CIFAR in the .tar.gz that is published."""
    try:
        with tarfile.open(path) as tar:
            files = {
                Path(member.name).name: tar.extractfile(member).read() for member in tar if member.isfile()
            }
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"data: expected CIFAR-10's .tar.gz, got {path} ({error})") from None
    which = _which(files)
    if which in (None, "mnist"):
        raise ValueError(f"data: expected CIFAR-10's .tar.gz, got {path}, which holds {_some(files)}")
    return cifar(path, {name: lambda content=content: content for name, content in files.items()}, *which)


def _which(files: Files) -> str | tuple[str, str] | None:
    """Data set and version of files, by the names of some; None for others."""
    if any(name in files or f"{name}.gz" in files for name in MNIST):
        return "mnist"
    for which, names in CIFAR.items():
        if which == ("cifar100", "python"):  # whose names say little
            if all(name in files for name in (*names, "meta")):
                return which
        elif names[0] in files:
            return which
    return None


def mnist(path: Path, files: Files) -> Dataset:
    """MNIST, or another data set in its form; its test set is held out."""

    def idx(name: str) -> Tensor:
        for candidate in (name, f"{name}.gz"):
            if candidate in files:
                break
        else:
            raise FileNotFoundError(
                f"data: expected MNIST's {name}[.gz] in {path.absolute()}, found {_some(files)}"
            )
        try:
            content = files[candidate]()
            content = gzip.decompress(content) if candidate.endswith(".gz") else content
            # Magic number: two zeros, 8 for unsigned bytes, the number of dimensions; then big-endian sizes.
            ndim = {b"\0\0\x08\x01": 1, b"\0\0\x08\x03": 3}[content[:4]]
            shape = np.frombuffer(content, ">i4", ndim, offset=4)
            array = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)
        except Exception as error:  # of any kind: gzip and NumPy raise what damaged files lead them to
            raise ValueError(
                f"data: expected an idx file of bytes, got {path / candidate} ({error})"
            ) from None
        if ndim != (3 if "images" in name else 1) or not len(array):
            raise ValueError(f"data: expected MNIST's {name}, got {array.shape} in {path / candidate}")
        return torch.from_numpy(array.copy())

    splits, labels = [], []
    for split in ("train", "t10k"):
        splits.append(idx(f"{split}-images-idx3-ubyte")[:, None])
        labels.append(idx(f"{split}-labels-idx1-ubyte").long())
        _check_count(path / f"{split}-labels-idx1-ubyte", splits[-1], labels[-1])
    if splits[0].shape[1:] != splits[1].shape[1:]:
        shapes = " and ".join(str(tuple(x.shape[1:])) for x in splits)
        raise ValueError(f"data: expected images of one shape in {path}, got {shapes}")
    name = "fashion-mnist" if "fashion" in str(path.absolute()).lower() else "mnist"
    return Dataset(name, *splits, *labels)


def cifar(path: Path, files: Files, name: str, version: str) -> Dataset:
    """CIFAR-10 or CIFAR-100, python or binary version; its test set is held out."""
    *training, test = CIFAR[name, version]
    read = _pickled if version == "python" else _binary
    batches, title = [], name.replace("cifar", "CIFAR-")
    for batch in (*training, test):
        if batch not in files:
            raise FileNotFoundError(
                f"data: expected {title}'s {batch} in {path.absolute()}, found {_some(files)}"
            )
        try:
            images, labels = read(files[batch](), name)
        except Exception as error:  # of any kind: pickle and NumPy raise what damaged files lead them to
            raise ValueError(f"data: expected a batch of {title}, got {path / batch} ({error})") from None
        _check_count(path / batch, images, labels)
        batches.append((images, labels))
    images, labels = zip(*batches, strict=True)
    return Dataset(name, torch.cat(images[:-1]), images[-1], torch.cat(labels[:-1]), labels[-1])


def _pickled(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    data, labels = batch[b"data"], batch[b"labels" if name == "cifar10" else b"fine_labels"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
        raise ValueError(f"its data are {getattr(data, 'dtype', type(data).__name__)}, not uint8")
    return torch.from_numpy(data.reshape(-1, 3, 32, 32).copy()), _class_indices(labels, name)


def _binary(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    """Records of one label, or a coarse and a fine one, and 3072 bytes."""
    before = 1 if name == "cifar10" else 2
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, before + 3072)
    return records[:, before:].reshape(-1, 3, 32, 32).clone(), _class_indices(records[:, before - 1], name)


def _class_indices(labels, name: str) -> Tensor:
    labels, classes = torch.as_tensor(labels), 10 if name == "cifar10" else 100
    if labels.is_floating_point() or labels.ndim != 1 or not ((labels >= 0) & (labels < classes)).all():
        raise ValueError(f"its labels are not integers from 0 to {classes - 1}")
    return labels.long()


def _check_count(path: Path, images: Tensor, labels: Tensor) -> None:
    if len(images) != len(labels) or not len(images):
        raise ValueError(
            f"data: expected a label for each of {len(images)} images, got {len(labels)} in {path}"
        )


def _some(files: Files) -> str:
    """The names of files, for messages."""
    return f"{sorted(files)[:8]}"


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of NumPy arrays alone.

    CIFAR is distributed as pickles; anything else in one is refused, so that a file from elsewhere runs no
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
