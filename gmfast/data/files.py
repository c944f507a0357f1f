"""Files of a folder by their suffixes: an index that is compact in memory and cached on disk."""

import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Names of folders that hold splits; of several held-out ones, the first counts.
TRAIN = ("train", "training")
HELDOUT = ("heldout", "validation", "valid", "val", "test", "testing")

#: Files from which on an index is cached.
CACHED_FROM = 1000

#: Age in ns from which on a folder's time of modification shows every change.
SETTLED = 2_000_000_000

_FORMAT = 1


class Names:
    """A sequence of file names in one array of bytes."""

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, names: Iterable[bytes]) -> "Names":
        """Pack names."""
        names = list(names)
        ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(names), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[bytes]:
        content = self.blob.tobytes()
        for start, end in itertools.pairwise(self.ends.tolist()):
            yield content[start:end]

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.blob[self.ends[index] : self.ends[index + 1]].tobytes()


class FileIndex:
    """Files of a folder, in the order of their names.

    `index[i]` is a path. Pickling takes what the names have of bytes, and eight more for each.

    Attributes:
        root: The folder.
        names: Names relative to it.
    """

    def __init__(self, root: str, names: Names):
        self.root, self.names = root, names

    @classmethod
    def of(cls, file: Path) -> "FileIndex":
        """Index of one file."""
        return cls(str(file.absolute().parent), Names.of([os.fsencode(file.name)]))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def take(self, positions: Sequence[int]) -> "FileIndex":
        """The files at `positions`."""
        names = list(self.names)
        return FileIndex(self.root, Names.of(names[position] for position in np.asarray(positions).tolist()))

    def with_suffixes(self, suffixes: set[str]) -> "FileIndex":
        """Files whose suffix is one of `suffixes`."""
        wanted = {suffix.encode() for suffix in suffixes}
        return FileIndex(
            self.root, Names.of(name for name in self.names if os.path.splitext(name)[1].lower() in wanted)
        )


class Layout(NamedTuple):
    """Splits and classes of files, by the folders they are in.

    Attributes:
        train: Positions of the training files, or None if no folders are named after splits.
        heldout: Positions of the held-out files, likewise.
        labels: Class index of each file, int64, or None.
        classes: Names of the classes, or None.
    """

    train: np.ndarray | None
    heldout: np.ndarray | None
    labels: np.ndarray | None
    classes: tuple[str, ...] | None


def layout(index: FileIndex) -> Layout:
    """Splits and classes by the names of folders.

    If all files lie in folders named after splits, such as `train` and `val`, these are the splits. If then
    (in each split) all files lie in at least two subfolders, these are classes, in the order of their names.
    """
    parts = [name.split(b"/") for name in index.names]
    tops = {part[0].decode(errors="replace").lower() if len(part) > 1 else "" for part in parts}
    train_name = next((name for name in TRAIN if name in tops), None)
    heldout_name = next((name for name in HELDOUT if name in tops), None)
    train = heldout = None
    kept, depth = range(len(parts)), 0
    if train_name and heldout_name and tops <= {*TRAIN, *HELDOUT}:
        depth = 1
        train, heldout = (
            np.array([i for i, part in enumerate(parts) if part[0].lower() == name.encode()], np.int64)
            for name in (train_name, heldout_name)
        )
        kept = np.concatenate([train, heldout])
    if not len(parts) or any(len(parts[i]) < depth + 2 for i in kept):
        return Layout(train, heldout, None, None)
    classes = sorted({parts[i][depth] for i in kept})
    if len(classes) < 2:
        return Layout(train, heldout, None, None)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.full(len(parts), -1)
    labels[kept] = [number[parts[i][depth]] for i in kept]
    return Layout(train, heldout, labels, tuple(os.fsdecode(name) for name in classes))


def index_files(path: Path, suffixes: Iterable[str]) -> FileIndex:
    """Index of the files in a folder and below whose suffix is one of `suffixes`; hidden ones are left out.

    A large index is cached in `$XDG_CACHE_HOME/gmfast/index` (`~/.cache` by default) and read from there as
    long as no folder of the tree was modified.
    """
    suffixes, root = sorted(suffixes), os.path.abspath(path)
    cache = _cache_file(root, suffixes)
    names = _read(cache, root)
    if names is None:
        started = time.time_ns()
        names, folders, times = _scan(root, {suffix.encode() for suffix in suffixes})
        if len(names) >= CACHED_FROM:
            _write(cache, names, folders, times, started)
    return FileIndex(root, names)


def _scan(root: str, suffixes: set[bytes]) -> tuple[Names, Names, np.ndarray]:
    """Names of the files below a folder; the folders visited, and when each was modified, in ns."""
    found, folders, times = [], [], []

    def visit(folder: bytes, above: tuple[tuple[int, int], ...]) -> None:
        path = os.path.join(os.fsencode(root), folder)
        status = os.stat(path)
        identity = status.st_dev, status.st_ino
        if identity in above:  # a symbolic link to a folder around it
            return
        folders.append(folder)
        times.append(status.st_mtime_ns)
        with os.scandir(path) as entries:
            entries = sorted(
                (entry.name, entry.is_dir(), entry.is_file())
                for entry in entries
                if not entry.name.startswith(b".")
            )
        for name, is_folder, is_file in entries:
            if is_folder:
                visit(os.path.join(folder, name), (*above, identity))
            elif is_file and os.path.splitext(name)[1].lower() in suffixes:
                found.append(os.path.join(folder, name))

    visit(b"", ())
    return Names.of(found), Names.of(folders), np.array(times, np.int64)


def _cache_file(root: str, suffixes: list[str]) -> str:
    key = hashlib.blake2b(repr((root, suffixes)).encode(errors="surrogateescape"), digest_size=16)
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(folder, "gmfast", "index", f"{key.hexdigest()}.npz")


def _read(cache: str, root: str) -> Names | None:
    """Names from a cache that is there, whole and not out of date."""
    try:
        with np.load(cache, allow_pickle=False) as file:
            arrays = dict(file)
        if int(arrays["format"]) != _FORMAT:
            return None
        names, folders = (Names(arrays[name], arrays[f"{name}_ends"]) for name in ("names", "folders"))
        for folder, modified in zip(folders, arrays["times"].tolist(), strict=True):
            now = os.stat(os.path.join(os.fsencode(root), folder)).st_mtime_ns
            if now != modified or modified > int(arrays["started"]) - SETTLED:
                return None
        if len(arrays["names"]) != arrays["names_ends"][-1]:
            return None
        return names
    except Exception:  # of any kind, from a file that is damaged: the index is then made anew
        return None


def _write(cache: str, names: Names, folders: Names, times: np.ndarray, started: int) -> None:
    """Write a cache atomically, if its folder can be written."""
    temporary = None
    try:
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(cache))
        with os.fdopen(descriptor, "wb") as file:
            np.savez(
                file,
                format=_FORMAT,
                started=started,
                names=names.blob,
                names_ends=names.ends,
                folders=folders.blob,
                folders_ends=folders.ends,
                times=times,
            )
        os.replace(temporary, cache)
    except OSError:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
