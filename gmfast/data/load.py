"""Data by name or path."""

from pathlib import Path

from .. import audio
from . import images, sound, vectors
from .arrays import npz_file
from .dataset import Dataset
from .files import files_below

#: Data that needs no file.
BUILT_IN = ("digits", "binary-digits", "photos", *sound.RECORDINGS, *vectors.TOYS, *vectors.TABLES)


def load(
    name_or_path: str | Path,
    *,
    size: int | None = None,
    rate: int | None = None,
    encoding: str | None = None,
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
              sex, which has two values and no density): scikit-learn's tables, the first two with classes. A
              fifth, drawn at random but always the same, is held out.
            - a folder with `train-images-idx3-ubyte` and its companions, gzipped or not: MNIST; its test set
              is held out.
            - a folder with `data_batch_1` and its companions, or the `.tar.gz` of one: CIFAR-10, Python
              version; its test set is held out.
            - an `.npz` file: arrays `train` and `heldout`, uint8 (N, H, W) or (N, C, H, W) with C = 1 or 3;
              optionally integers `train_labels` and `heldout_labels` (N,), and `num_levels` (default 256). Or
              floats (N, D): vectors, with labels likewise.
            - a `.csv` file: numbers between commas, a vector a line, after one line of names or none. A fifth
              of the lines, drawn as above, is held out.
            - a sound file (`gmfast.audio.read`), or a folder with such files in it or below: cut into clips.
              The last fifth of each file is held out and cut end to end; training clips overlap if there
              would be few. What is shorter than a clip is left out, and so are hidden files.
            - any other folder: the images in it and below, in the order of their names, shrunk and cropped at
              the centre to `size` x `size` RGB. Every tenth is held out.
        size: Side of photos and of a folder's images (default 32), or length of sound clips (default 4096).
        rate: Sample rate that sound is resampled to, in Hz; by default a file's own.
        encoding: Levels of sound: "mulaw" (256, the default) or "linear" (65536).

    Raises:
        FileNotFoundError: For what does not exist. ValueError: For what cannot be read. ModuleNotFoundError:
            For a missing package. Each says in one sentence what was looked for and where.
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
        return images.digits(name_or_path)
    if name_or_path == "photos":
        return images.photos(pixels)
    if name_or_path in vectors.TOYS:
        return vectors.toy(name_or_path)
    if name_or_path in vectors.TABLES:
        return vectors.table(name_or_path)
    if name_or_path in sound.RECORDINGS:
        return sound.sounds(name_or_path, [sound.recording(name_or_path)], samples, rate or 8000, encoding)
    path = Path(name_or_path)
    if path.is_file():
        if path.suffix == ".npz":
            return npz_file(path)
        if path.suffix.lower() == ".csv":
            return vectors.csv_file(path)
        if path.name.endswith((".tar.gz", ".tgz")):
            return images.cifar10(path, images.tar_files(path))
        if path.suffix.lower() in audio.SUFFIXES:
            return sound.sounds(path.stem, [path], samples, rate, encoding)
    if path.is_dir():
        files = {file.name: file.read_bytes for file in path.iterdir() if file.is_file()}
        if "data_batch_1" in files:
            return images.cifar10(path, files)
        if any(name.startswith("train-images") for name in files):
            return images.mnist(path, files)
        recordings = files_below(path, audio.SUFFIXES)
        if recordings:
            return sound.sounds(path.name, recordings, samples, rate, encoding)
        return images.image_folder(path, pixels)
    if path.exists():
        raise ValueError(
            f"data: expected a folder, sound, an .npz or .csv file or CIFAR-10's .tar.gz, got {path}"
        )
    raise FileNotFoundError(
        f"data: expected {', '.join(BUILT_IN)} or a path, but {path.absolute()} does not exist"
    )
