"""Images and sounds as integers, and vectors of real numbers: what can be had without a download, and what
lies in local files.

`load` returns every kind as the same `Dataset`. `to_unit` and `from_unit` go between the integers and the
[-1, 1] that models take.
"""

import csv
import gzip
import io
import math
import pickle
import tarfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import audio

#: Recordings that the package pyo carries for its examples (LGPL; read where it is installed, never copied).
RECORDINGS = {"speech": "baseballmajeur_m.aif", "flute": "flute.aif"}

#: Densities in the plane.
TOYS = ("moons", "circles", "swiss-roll", "checkerboard", "gaussians", "spirals")

#: scikit-learn's tables of measurements that come with it.
TABLES = ("wine", "breast-cancer", "diabetes")

#: Data that needs no file.
BUILT_IN = ("digits", "binary-digits", "photos", *RECORDINGS, *TOYS, *TABLES)

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Dataset:
    """Images `train` and `heldout`, uint8 (N, C, H, W) with values below `num_levels`, and where the data
    has classes their labels, int64 (N,). Or clips of sound, uint8 or int32 (N, 1, T), of `rate` Hz. Or
    vectors of real numbers, float32 (N, D) in their own units, with `num_levels` None, and where the data
    names them the names of the D numbers."""

    name: str
    train: Tensor
    heldout: Tensor
    train_labels: Tensor | None = None
    heldout_labels: Tensor | None = None
    num_levels: int | None = 256
    rate: int | None = None
    columns: tuple[str, ...] | None = None

    @property
    def items(self) -> str:
        """What there are N of."""
        if self.real_valued:
            return "vectors"
        return "images" if self.rate is None else "clips"

    @property
    def real_valued(self) -> bool:
        """Whether it is of real numbers rather than of levels."""
        return self.num_levels is None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W), or (D,) of vectors."""
        return tuple(self.train.shape[1:])

    @property
    def mean(self) -> Tensor:
        """Of each number of real-valued data over the training vectors, (D,)."""
        return self.train.double().mean(0).float()

    @property
    def std(self) -> Tensor:
        """Standard deviation of the same, (D,)."""
        return self.train.double().std(0, correction=0).float()

    @property
    def num_labels(self) -> int | None:
        """Number of classes, or None."""
        return None if self.train_labels is None else int(self.train_labels.max()) + 1

    def gaussian_bits_per_dim(self) -> float:
        """Bits per dimension on the held-out vectors of the simplest model of real-valued data: one Gaussian
        with the mean and the full covariance of the training vectors, in the data's units. Variances are
        raised by a millionth of what each number has, lest it be singular."""
        train, heldout = self.train.double(), self.heldout.double()
        mean, std = train.mean(0), train.std(0, correction=0)
        train, heldout = (train - mean) / std, (heldout - mean) / std
        size = train.shape[1]
        covariance = train.t() @ train / len(train) + 1e-6 * torch.eye(size, dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance)
        z = torch.linalg.solve_triangular(factor, heldout.t(), upper=False)
        log_det = factor.diagonal().log().sum() + std.log().sum()
        nats = 0.5 * z.square().sum(0).mean() + log_det + size / 2 * math.log(2 * math.pi)
        return nats.item() / (size * math.log(2))

    def histogram_bits_per_dim(self, conditional: bool = False) -> float:
        """Bits per dimension on the held-out images of the simplest model: every subpixel (of every class, if
        `conditional`) has a categorical distribution of its own, counted on the training images with one
        added to each count. The samples of a sound, which has no places, have one distribution in common."""
        size, levels = self.train[0].numel(), self.num_levels
        cells = size if self.rate is None else 1
        cell = torch.arange(size) % cells * levels
        total = 0.0
        for label in range(self.num_labels) if conditional else [None]:
            train, heldout = (
                images.flatten(1) if label is None else images[labels == label].flatten(1)
                for images, labels in ((self.train, self.train_labels), (self.heldout, self.heldout_labels))
            )
            counts = torch.ones(cells * levels, dtype=torch.int64)
            for images in train.split(1024):
                counts += torch.bincount((images + cell).flatten(), minlength=len(counts))
            bits = -torch.log2(counts / (len(train) * size // cells + levels))
            total += bits[heldout + cell].double().sum().item()
        return total / self.heldout.numel()


def to_unit(images: Tensor, num_levels: int | None) -> Tensor:
    """Integers 0 … num_levels - 1 as float32 in [-1, 1]. Real numbers (None) stay as they are."""
    if num_levels is None:
        return images.float()
    return images.float() * (2 / (num_levels - 1)) - 1


def from_unit(x: Tensor, num_levels: int) -> Tensor:
    """The inverse of `to_unit`, rounding to the nearest level: uint8, or int32 for more than 256 levels."""
    dtype = torch.uint8 if num_levels <= 256 else torch.int32
    return ((x + 1) * ((num_levels - 1) / 2)).round().clamp(0, num_levels - 1).to(dtype)


def load(
    name_or_path: str | Path,
    *,
    size: int | None = None,
    rate: int | None = None,
    encoding: str | None = None,
) -> Dataset:
    """The data called `name_or_path`. `size` is the side of a photo or of a folder's images (default 32), or
    the length of a clip of sound (default 4096). `rate` and `encoding` are for sound alone.

    - `digits`: scikit-learn's 1797 real digits, 8×8, 17 levels, 10 classes; the last fifth is held out.
    - `binary-digits`: the same, 1 where the level is 8 or more and 0 elsewhere: 2 levels.
    - `photos`: `size`×`size` crops of scikit-learn's two photographs. Training crops come from the left
      three quarters of each; the right quarter, cut into tiles, is held out.
    - a folder with `train-images-idx3-ubyte` and its companions, gzipped or not: MNIST; its test set is held
      out.
    - a folder with `data_batch_1` and its companions, or the `.tar.gz` of one: CIFAR-10, python version; its
      test set is held out.
    - an `.npz` file: arrays `train` and `heldout`, uint8 (N, H, W) or (N, C, H, W) with C = 1 or 3;
      optionally integers `train_labels` and `heldout_labels` (N,), and `num_levels` (default 256).
    - `speech` and `flute`: recordings of 5.8 and 5.5 seconds that the package pyo carries, at `rate` Hz
      (default 8000), treated as a sound file.
    - a sound file (`gmfast.audio.read`), or a folder with such files in it or below: resampled to `rate` if
      given, in the `encoding` "mulaw" (256 levels, the default) or "linear" (65536), and cut into clips.
      The last fifth of each file is held out and cut end to end; training clips overlap if there would be
      few. What is shorter than a clip is left out, and so are files whose names begin with a dot.
    - `moons`, `circles`, `swiss-roll`, `checkerboard`, `gaussians` (eight in a ring) and `spirals`: 10,000
      points of the plane with some noise, and 2,000 to hold out; always the same ones.
    - `wine` (178 vectors of 13), `breast-cancer` (569 of 30) and `diabetes` (442 of 9: without the sex, which
      has two values and no density): scikit-learn's tables, the first two with classes. A fifth, drawn at
      random but always the same one, is held out.
    - an `.npz` file with arrays `train` and `heldout` of floats (N, D): vectors, with labels as above.
    - a `.csv` file: numbers between commas, a line a vector, after one line of names or none. A fifth of the
      lines, drawn as above, is held out.
    - any other folder: the images in it and below, in the order of their names, shrunk and cropped at the
      centre to `size`×`size` RGB. Every tenth is held out.

    Raises FileNotFoundError, ValueError or, for a missing package, ModuleNotFoundError, each saying in one
    sentence what was looked for and where.
    """
    for name, value in (("size", size), ("rate", rate)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    if encoding is not None and encoding not in audio.ENCODINGS:
        raise ValueError(f"encoding: expected {' or '.join(audio.ENCODINGS)}, got {encoding!r}")
    dataset = _load(name_or_path, size, rate, encoding or "mulaw")
    for name, value in (("rate", rate), ("encoding", encoding)):
        if value is not None and dataset.rate is None:
            raise ValueError(
                f"{name}: expected None for {dataset.name}, which is {dataset.items}, got {value!r}"
            )
    return dataset


def _load(name_or_path, size, rate, encoding) -> Dataset:
    pixels, samples = size or 32, size or 4096
    if name_or_path in ("digits", "binary-digits"):
        return _digits(name_or_path)
    if name_or_path == "photos":
        return _photos(pixels)
    if name_or_path in TOYS:
        return _toy(name_or_path)
    if name_or_path in TABLES:
        return _table(name_or_path)
    if name_or_path in RECORDINGS:
        return _sounds(name_or_path, [_recording(name_or_path)], samples, rate or 8000, encoding)
    path = Path(name_or_path)
    if path.is_file():
        if path.suffix == ".npz":
            return _npz(path)
        if path.suffix.lower() == ".csv":
            return _csv(path)
        if path.name.endswith((".tar.gz", ".tgz")):
            return _cifar10(path, _tar_files(path))
        if path.suffix.lower() in audio.SUFFIXES:
            return _sounds(path.stem, [path], samples, rate, encoding)
    if path.is_dir():
        files = {file.name: file.read_bytes for file in path.iterdir() if file.is_file()}
        if "data_batch_1" in files:
            return _cifar10(path, files)
        if any(name.startswith("train-images") for name in files):
            return _mnist(path, files)
        sounds = _files(path, audio.SUFFIXES)
        if sounds:
            return _sounds(path.name, sounds, samples, rate, encoding)
        return _image_folder(path, pixels)
    if path.exists():
        raise ValueError(
            f"data: expected a folder, sound, an .npz or .csv file or CIFAR-10's .tar.gz, got {path}"
        )
    raise FileNotFoundError(
        f"data: expected {', '.join(BUILT_IN)} or a path, but {path.absolute()} does not exist"
    )


def _files(path: Path, suffixes: set[str]) -> list[Path]:
    """The files in a folder and below with such names, sorted; hidden ones are not meant."""
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )


def _digits(name: str) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, levels = torch.from_numpy(digits.images.astype(np.uint8))[:, None], 17
    if name == "binary-digits":
        images, levels = (images >= 8).to(torch.uint8), 2
    labels = torch.from_numpy(digits.target.astype(np.int64))
    split = len(images) * 4 // 5
    return Dataset(name, images[:split], images[split:], labels[:split], labels[split:], levels)


def _photos(size: int, train_crops: int = 8192) -> Dataset:
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


def _toy(name: str, train: int = 10_000, heldout: int = 2_000) -> Dataset:
    from sklearn import datasets

    count, random = train + heldout, np.random.RandomState(0)
    noise = random.randn(count, 2)
    if name == "moons":
        x = datasets.make_moons(count, noise=0.07, random_state=random)[0]
    elif name == "circles":
        x = datasets.make_circles(count, noise=0.06, factor=0.5, random_state=random)[0]
    elif name == "swiss-roll":
        x = datasets.make_swiss_roll(count, noise=0.5, random_state=random)[0][:, [0, 2]] / 5
    elif name == "checkerboard":
        column = random.randint(4, size=count)
        row = 2 * random.randint(2, size=count) + column % 2
        x = np.stack([column, row], 1) + random.rand(count, 2) - 2
    elif name == "gaussians":
        angle = random.randint(8, size=count) * np.pi / 4
        x = 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.2 * noise
    else:
        angle = 3 * np.pi * np.sqrt(random.rand(count))
        side = 2 * random.randint(2, size=count) - 1
        x = (side * angle / 3)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * noise
    x = torch.from_numpy(x[random.permutation(count)].astype(np.float32))
    return Dataset(name, x[:train], x[train:], num_levels=None)


def _table(name: str) -> Dataset:
    from sklearn import datasets

    if name == "diabetes":
        bunch = datasets.load_diabetes(scaled=False)
        names = list(bunch.feature_names)
        return _vectors(name, np.delete(bunch.data, names.index("sex"), 1))
    bunch = datasets.load_wine() if name == "wine" else datasets.load_breast_cancer()
    return _vectors(name, bunch.data, bunch.target)


def _csv(path: Path) -> Dataset:
    names, rows = None, []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if cells in ([], [""]):
                continue
            numbers = [_number(cell) for cell in cells]
            if (
                not rows
                and names is None
                and any(cell and number is None for cell, number in zip(cells, numbers, strict=True))
            ):
                names = tuple(cells)
                continue
            line, expected = f"line {reader.line_num} of {path}", len(names or (rows or [cells])[0])
            if len(cells) != expected:
                raise ValueError(f"data: expected {expected} numbers in {line}, got {len(cells)}")
            for column, number in enumerate(numbers):
                if number is None or not math.isfinite(number):
                    raise ValueError(
                        f"data: expected finite numbers between commas, got {cells[column]!r} in {line}, "
                        f"{_column(column, expected, names)}"
                    )
            rows.append(numbers)
    if len(rows) < 10:
        raise ValueError(f"data: expected at least 10 lines of numbers in {path}, found {len(rows)}")
    return _vectors(path.stem, np.array(rows), columns=names)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _column(index: int, count: int, names: tuple[str, ...] | None) -> str:
    return f"column {index + 1} of {count}" if names is None else f"column {names[index]!r}"


def _vectors(
    name: str, x: np.ndarray, labels: np.ndarray | None = None, columns: tuple[str, ...] | None = None
) -> Dataset:
    """A table split at random."""
    order = np.random.RandomState(0).permutation(len(x))
    split = len(x) * 4 // 5
    train, heldout = (torch.from_numpy(x[part].astype(np.float32)) for part in (order[:split], order[split:]))
    if labels is not None:
        labels = [torch.from_numpy(labels[part].astype(np.int64)) for part in (order[:split], order[split:])]
    labels = labels or (None, None)
    return _checked(Dataset(name, train, heldout, *labels, num_levels=None, columns=columns))


def _checked(dataset: Dataset) -> Dataset:
    """Raises ValueError for vectors that have no density, or that are none."""
    for split in (dataset.train, dataset.heldout):
        if not len(split) or not split.isfinite().all():
            raise ValueError(f"data: expected finite numbers in {dataset.name}, training and held out")
    for column, std in enumerate(dataset.std.tolist()):
        if not std > 1e-6 * dataset.mean[column].abs():
            raise ValueError(
                f"data: expected numbers that vary, but all those of "
                f"{_column(column, len(dataset.mean), dataset.columns)} in the training vectors of "
                f"{dataset.name} are {dataset.mean[column].item():g}: they have no density"
            )
    return dataset


def _image_folder(path: Path, size: int) -> Dataset:
    from PIL import Image, ImageOps, UnidentifiedImageError

    files = _files(path, IMAGE_SUFFIXES)
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


def _recording(name: str) -> Path:
    try:
        files = metadata.files("pyo") or []
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"data: expected the package pyo, whose recording {name!r} is (pip install pyo, where it has a "
            "wheel), or a WAV file instead",
            name="pyo",
        ) from None
    for file in files:
        if file.name == RECORDINGS[name]:
            return Path(file.locate())
    raise FileNotFoundError(f"data: expected {RECORDINGS[name]} among the files of the package pyo")


def _sounds(
    name: str, files: list[Path], length: int, rate: int | None, encoding: str, train_clips: int = 1024
) -> Dataset:
    levels, encode, _ = audio.ENCODINGS[encoding]
    waves = {file: audio.read(file, rate) for file in files}
    rates = {file_rate for _, file_rate in waves.values()}
    if len(rates) > 1:
        raise ValueError(
            f"rate: expected one to resample to, because the files in {name} have {sorted(rates)} Hz"
        )
    waves = [from_unit(encode(wave), levels) for wave, _ in waves.values()]
    splits = [len(wave) * 4 // 5 for wave in waves]
    hop = min(length, max(1, sum(split for split in splits if split >= length) // train_clips))
    train, heldout = (
        [part.unfold(0, length, step) for part in parts if len(part) >= length]
        for parts, step in (
            ([wave[:split] for wave, split in zip(waves, splits, strict=True)], hop),
            ([wave[split:] for wave, split in zip(waves, splits, strict=True)], length),
        )
    )
    if not train or not heldout:
        longest = max(len(wave) - split for wave, split in zip(waves, splits, strict=True))
        raise ValueError(
            f"size: expected at most {longest} samples, a fifth of the longest recording in {name}, "
            f"got {length}"
        )
    train, heldout = (torch.cat(clips).unsqueeze(1) for clips in (train, heldout))
    return Dataset(name, train, heldout, num_levels=levels, rate=rates.pop())


def _npz(path: Path) -> Dataset:
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
            labels |= _npz_labels(path, arrays, split, len(array))
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
        labels |= _npz_labels(path, arrays, split, len(array))
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
        return _checked(Dataset(path.stem, **images, **labels, num_levels=None))
    return Dataset(path.stem, **images, **labels, num_levels=num_levels)


def _npz_labels(path: Path, arrays: dict, split: str, count: int) -> dict[str, Tensor]:
    key = f"{split}_labels"
    if key not in arrays:
        return {}
    if arrays[key].shape != (count,) or arrays[key].dtype.kind not in "iu":
        raise ValueError(
            f"data: expected {key!r} in {path} to be {count} integers, "
            f"got {arrays[key].dtype} {arrays[key].shape}"
        )
    return {key: torch.from_numpy(arrays[key].astype(np.int64))}


def _tar_files(path: Path) -> dict:
    """The files in an archive by their base names, each a function that reads it."""
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
    """CIFAR-10 is distributed as pickles of NumPy arrays; anything else in one is refused, so that a file
    from elsewhere runs no code."""

    def find_class(self, module, name):
        if (module.split(".")[0], name) in {
            ("numpy", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _cifar10(path: Path, files: dict) -> Dataset:
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


def _mnist(path: Path, files: dict) -> Dataset:
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
