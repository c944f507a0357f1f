"""Vectors of real numbers: densities in the plane, tables of measurements and .csv files."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .dataset import Dataset

#: Densities in the plane.
TOYS = ("moons", "circles", "swiss-roll", "checkerboard", "gaussians", "spirals")

#: How tables mark a missing value, in lower case.
MISSING = {"", "-", "?", "na", "n/a", "#n/a", "<na>", "nan", "none", "null", "nil", "missing"}

#: scikit-learn's tables of measurements that come with it.
TABLES = ("wine", "breast-cancer", "diabetes")


def toy(name: str, train: int = 10_000, heldout: int = 2_000) -> Dataset:
    """Points of a density in the plane, always the same ones."""
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


def table(name: str) -> Dataset:
    """One of scikit-learn's tables, a fifth of it held out."""
    from sklearn import datasets

    if name == "diabetes":
        bunch = datasets.load_diabetes(scaled=False)
        names = list(bunch.feature_names)
        return _vectors(name, np.delete(bunch.data, names.index("sex"), 1))
    bunch = datasets.load_wine() if name == "wine" else datasets.load_breast_cancer()
    return _vectors(name, bunch.data, bunch.target)


def csv_file(path: Path) -> Dataset:
    """Numbers of a .csv file, a vector a line, after one line of names or none."""
    names, rows = None, []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        for cells in _lines(reader, path):
            cells = [cell.strip() for cell in cells]
            if cells in ([], [""]):
                continue
            numbers = [_number(cell) for cell in cells]
            if not rows and names is None and _is_header(cells):
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


def _lines(reader: "csv.Reader", path: Path) -> Iterator[list[str]]:
    """Lines of a .csv file; what is no such file is named."""
    try:
        yield from reader
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data: expected a .csv file in UTF-8, got {path} ({error})") from None


def _is_header(cells: list[str]) -> bool:
    """True if no cell is a number, and some are more than marks of missing values, which data may have."""
    names = [cell for cell in cells if cell.lower() not in MISSING]
    return bool(names) and all(_number(cell) is None for cell in cells)


def _vectors(
    name: str, x: np.ndarray, labels: np.ndarray | None = None, columns: tuple[str, ...] | None = None
) -> Dataset:
    """Vectors `x (N, D)` of which a fifth, drawn at random but always the same, is held out."""
    order = np.random.RandomState(0).permutation(len(x))
    split = len(x) * 4 // 5
    train, heldout = (torch.from_numpy(x[part].astype(np.float32)) for part in (order[:split], order[split:]))
    if labels is not None:
        labels = [torch.from_numpy(labels[part].astype(np.int64)) for part in (order[:split], order[split:])]
    labels = labels or (None, None)
    return checked(Dataset(name, train, heldout, *labels, num_levels=None, columns=columns))


def table_of(
    name: str, parts: list[tuple[np.ndarray, np.ndarray | None]], columns: tuple[str, ...]
) -> Dataset:
    """Vectors `(N, D)` with labels or without: one table, of which a fifth is held out, or two splits."""
    if len(parts) == 1:
        return _vectors(name, *parts[0], columns=columns)
    samples = [torch.from_numpy(x.astype(np.float32)) for x, _ in parts]
    labels = [None if y is None else torch.from_numpy(y.astype(np.int64)) for _, y in parts]
    return checked(Dataset(name, *samples, *labels, num_levels=None, columns=columns))


def checked(dataset: Dataset) -> Dataset:
    """Return the data set, or raise ValueError for vectors that are not finite or have no density."""
    for name in ("train", "heldout"):
        split = dataset.split(name)
        if not len(split) or not all(batch.x.isfinite().all() for batch in split.batches()):
            raise ValueError(f"data: expected finite numbers in {dataset.name}, training and held out")
    for column, std in enumerate(dataset.std.tolist()):
        if not std > 1e-6 * dataset.mean[column].abs():
            raise ValueError(
                f"data: expected numbers that vary, but all those of "
                f"{_column(column, len(dataset.mean), dataset.columns)} in the training vectors of "
                f"{dataset.name} are {dataset.mean[column].item():g}: they have no density"
            )
    return dataset


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _column(index: int, count: int, names: tuple[str, ...] | None) -> str:
    return f"column {index + 1} of {count}" if names is None else f"column {names[index]!r}"
