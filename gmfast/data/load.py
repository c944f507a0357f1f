"""Data by name or path."""

import os
from pathlib import Path

from .. import audio
from .._check import integer, kind, one_of
from . import arrays, images, published, shards, sound, vectors
from .dataset import Dataset
from .decoding import ImageDecoder
from .files import FileIndex, index_files
from .reading import ON_ERROR, read

#: Data that needs no file.
BUILT_IN = ("digits", "binary-digits", "photos", *sound.RECORDINGS, *vectors.TOYS, *vectors.TABLES)


def load(
    name_or_path: str | Path,
    *,
    size: int | None = None,
    rate: int | None = None,
    encoding: str | None = None,
    grayscale: bool | None = None,
    alpha: str = "white",
    on_error: str = "raise",
    in_memory: bool | None = None,
) -> Dataset:
    """Load data by name or path.

    Args:
        name_or_path: A built-in name or a path:

            - `digits`: scikit-learn's 1797 real digits, 8x8, 17 levels, 10 classes; a fifth is held out.
            - `binary-digits`: the same with 2 levels, 1 where the level is 8 or more.
            - `photos`: `size` x `size` crops of scikit-learn's two photographs. Training crops come from the
              left three quarters of each; the right quarter, cut into tiles, is held out.
            - `speech` and `flute`: recordings of 5.8 and 5.5 seconds that the package pyo carries, at `rate`
              Hz (default 8000), treated as a sound file.
            - `moons`, `circles`, `swiss-roll`, `checkerboard`, `gaussians` (eight in a ring) and `spirals`:
              10,000 points of the plane, and 2,000 held out; always the same ones.
            - `wine` (178 vectors of 13), `breast-cancer` (569 of 30) and `diabetes` (442 of 9: without the
              sex, which has two values and no density): scikit-learn's tables, the first two with classes.
              A fifth, drawn at random but always the same, is held out.
            - a folder with `train-images-idx3-ubyte` and its companions, gzipped or not, or with
              torchvision's `MNIST/raw`: MNIST; Fashion-MNIST likewise. Its test set is held out.
            - a folder with `data_batch_1` and its companions, or `data_batch_1.bin`, or with torchvision's
              `cifar-10-batches-py`, or the `.tar.gz` of one: CIFAR-10; CIFAR-100, with its fine labels,
              likewise. Its test set is held out.
            - an `.npz` file: arrays `train` and `heldout`, uint8 (N, H, W) or (N, C, H, W) with C = 1 or 3;
              optionally integers `train_labels` and `heldout_labels` (N,), and `num_levels` (default 256). Or
              floats (N, D): vectors, with labels likewise.
            - an `.npy` file: such an array, or uint8 (N, H, W, C), of which every tenth sample is held out;
              or a folder with `train.npy` and `heldout.npy`, and optionally `train_labels.npy` and
              `heldout_labels.npy`. They are mapped into memory, unless `in_memory` reads them.
            - a `.csv` file: numbers between commas, a vector a line, after one line of names or none. A first
              line is one of names if no cell is a number and some are more than marks of missing values, such
              as NA. A fifth of the lines, drawn as above, is held out.
            - a `.parquet` file or webdataset's `.tar` of images, a folder of them (splits as for images, by
              the names of files too), or one that `save_to_disk` of Hugging Face's datasets wrote: a column
              of images, perhaps with class indices in a column `label`; or columns of numbers, which are
              vectors.
            - a sound file (`gmfast.audio.read`), or a folder with such files in it or below: cut into clips.
              The last fifth of each file is held out and cut end to end; training clips overlap if there
              would be few. They are read when they are needed. What is shorter than a clip is left out, and
              so are hidden files. Splits and classes as for images.
            - any other folder: the images in it and below, in the order of their names, decoded as
              `ImageDecoder` says, shrunk and cropped at the centre to `size` x `size`.

              If all lie in folders `train` (or `training`) and `heldout`, `validation`, `valid`, `val`,
              `test` or `testing`, the first of the latter that is there is held out; else every tenth image
              is. If all (of each split) lie in at least two subfolders, these are classes, in the order of
              their names.
        size: Side of photos and of decoded images (default 32), or length of sound clips (default 4096).
        rate: Sample rate that sound is resampled to, in Hz; by default a file's own.
        encoding: Levels of sound: "mulaw" (256, the default) or "linear" (65536).
        grayscale: Whether decoded images have one channel rather than three. None: if 256 of them, spread
            evenly over the data, have no colours.
        alpha: What transparent pixels of decoded images are composed over, "white" or "black"; or "refuse".
        on_error: "raise", or "skip" to leave out images that cannot be decoded, with a warning; their names
            are in `Dataset.skipped`. One that is not in memory is only known by its first bytes until it is
            decoded: if it then cannot be, the next one stands for it.
        in_memory: Whether to decode all samples of files at once, rather than each when it is indexed; None:
            if they are at most 32,768 and take at most 256 MiB.

    Raises:
        FileNotFoundError: For what does not exist. ValueError: For what cannot be read. ModuleNotFoundError:
            For a missing package. Each says in one sentence what was looked for and where.
    """
    for name, value in (("size", size), ("rate", rate)):
        if value is not None:
            integer(name, value)
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
    if encoding is not None and encoding not in audio.ENCODINGS:
        raise ValueError(f"encoding: expected {' or '.join(audio.ENCODINGS)}, got {encoding!r}")
    one_of("on_error", on_error, ON_ERROR)
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(f"name_or_path: expected a name or a path, got {kind(name_or_path)}")
    if not os.fspath(name_or_path):
        raise ValueError("data: expected a name or a path, got ''")
    decoder = ImageDecoder(size or 32, grayscale, alpha)
    dataset = read(_load(name_or_path, decoder, size, rate, encoding or "mulaw"), in_memory, on_error)
    for name, value in (("rate", rate), ("encoding", encoding)):
        if value is not None and dataset.rate is None:
            raise ValueError(
                f"{name}: expected None for {dataset.name}, which is {dataset.items}, got {value!r}"
            )
    if grayscale is not None and dataset.image_shape[0] != (1 if grayscale else 3):
        raise ValueError(
            f"grayscale: expected None for {dataset.name}, which is not decoded from files, got {grayscale}"
        )
    return dataset


def _load(
    name_or_path: str | Path, decoder: ImageDecoder, size: int | None, rate: int | None, encoding: str
) -> Dataset:
    samples = size or 4096
    if name_or_path in ("digits", "binary-digits"):
        return images.digits(name_or_path)
    if name_or_path == "photos":
        return images.photos(decoder.size)
    if name_or_path in vectors.TOYS:
        return vectors.toy(name_or_path)
    if name_or_path in vectors.TABLES:
        return vectors.table(name_or_path)
    if name_or_path in sound.RECORDINGS:
        index = FileIndex.of(sound.recording(name_or_path))
        return sound.sounds(index, name_or_path, samples, rate or 8000, encoding)
    path = Path(name_or_path)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".npz":
            return arrays.npz_file(path)
        if suffix == ".npy":
            return arrays.npy_file(path)
        if suffix == ".csv":
            return vectors.csv_file(path)
        if path.name.endswith((".tar.gz", ".tgz")):
            return published.archive(path)
        if suffix in shards.READERS:
            return shards.shards(FileIndex.of(path), path.stem, decoder)
        if suffix in audio.SUFFIXES:
            return sound.sounds(FileIndex.of(path), path.stem, samples, rate, encoding)
    if path.is_dir():
        return _folder(path, decoder, samples, rate, encoding)
    if path.exists():
        raise ValueError(
            "data: expected a folder, sound, an .npz, .npy, .csv, .parquet or .tar file or CIFAR's .tar.gz, "
            f"got {path}"
        )
    raise FileNotFoundError(
        f"data: expected {', '.join(BUILT_IN)} or a path, but {path.absolute()} does not exist"
    )


def _folder(path: Path, decoder: ImageDecoder, samples: int, rate: int | None, encoding: str) -> Dataset:
    for known in (published.folder(path), arrays.npy_folder(path), shards.saved(path, decoder)):
        if known is not None:
            return known
    name = path.absolute().name
    index = index_files(path, {*images.IMAGE_SUFFIXES, *audio.SUFFIXES, *shards.READERS})
    recordings, shard_files, image_files = (
        index.with_suffixes(suffixes) for suffixes in (audio.SUFFIXES, shards.READERS, images.IMAGE_SUFFIXES)
    )
    if len(recordings):
        return sound.sounds(recordings, name, samples, rate, encoding)
    if len(shard_files) and len(image_files) < 10:
        return shards.shards(shard_files, name, decoder)
    return images.image_folder(image_files, name, decoder)
