"""Samples of any number as a folder of shards, drawn by one process or by several.

A folder is:

    manifest.json                     what was drawn; each shard's file, first sample, count and SHA-256
    samples-00000-of-00010.npz        `samples`: levels, uint8, or above 256 int32; or vectors, float32.
                                      `label`, for a conditional model: class indices, int64

Files are written atomically. A shard's bytes depend on its arrays alone. The manifest has no checksums before
all shards are there.
"""

import hashlib
import io
import json
import os
import re
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._files import fsync
from .._processes import Processes
from .._progress import Progress, reporting

#: Raised when an older version could not read what this one writes.
FORMAT = 1

MANIFEST = "manifest.json"
_SHARD = re.compile(r"samples-\d{5,}-of-\d{5,}\.npz")
_TEMPORARY = re.compile(r"\.(samples-.*\.npz|manifest\.json)\.[0-9a-f]{32}")

Arrays = dict[str, np.ndarray]


def read(folder: str | Path) -> Iterator[Arrays]:
    """Yield the arrays of each shard in order, after comparing it with its checksum.

    Args:
        folder: A folder that `gmfast sample` wrote.

    Yields:
        `samples`, levels `(n, *S)` or vectors `(n, D)`, and `label (n,)` for a conditional model.
        `gmfast.data.to_unit` maps levels to the models' [-1, 1].

    Raises:
        FileNotFoundError: For a manifest or a shard that is missing. ValueError: For samples that are not
            complete, and for a damaged file.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if shard["sha256"] is None:
            raise ValueError(
                f"folder: expected {len(manifest['shards'])} shards, but {folder} is not complete: the same "
                "`gmfast sample` makes what is missing"
            )
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != shard["sha256"]:
            raise ValueError(f"folder: expected {path} with the checksum in {MANIFEST}, but it is damaged")
        yield _unpack(data)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Contents of a folder's manifest.json.

    Raises:
        FileNotFoundError: Where there is none. ValueError: For a damaged one, or one of a newer version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
        _ = [(shard["file"], shard["first"], shard["count"], shard["sha256"]) for shard in manifest["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"folder: expected a manifest of samples, but {path} is damaged ({error!r})"
        ) from None
    if version != FORMAT:
        raise ValueError(f"folder: expected a manifest of format {FORMAT}, got {version} in {path}")
    return manifest


def write(
    folder: Path,
    request: Mapping[str, Any],
    draw: Callable[[int, int], Arrays],
    *,
    num: int,
    shard_size: int,
    batch_size: int,
    processes: Processes | None = None,
    progress: Progress = False,
    overwrite: bool = False,
) -> int:
    """Write `num` samples, but for the shards that the folder holds already.

    Args:
        folder: The folder, which all processes share.
        request: What is drawn, as JSON: all that the samples depend on. That of the main process counts.
        draw: Function from the first sample and a number of samples to their arrays.
        num: Number of samples.
        shard_size: Samples in a shard; the last may have fewer.
        batch_size: Greatest number of samples to draw at once.
        processes: The processes that take shards in turn and all call this; None: this one alone.
        progress: True shows a bar; a function is called with the numbers of samples done and to do.
        overwrite: Delete samples that are in the folder, and begin anew.

    Returns:
        Number of shards.

    Raises:
        ValueError: When the folder holds other files, or samples of another request. OSError: When a file
            cannot be written; finished shards are kept.
    """
    processes = processes or Processes(0, 1, torch.device("cpu"))
    if processes.main:
        _begin(folder, _manifest(request, num, shard_size), overwrite)
    processes.wait()
    shards = read_manifest(folder)["shards"]
    own = range(processes.rank, len(shards), processes.count)
    digests = {i: digest for i in own if (digest := _intact(folder, shards[i])) is not None}
    missing = processes.gather(torch.tensor([i for i in own if i not in digests], dtype=torch.int64))
    missing = missing.sort().values.tolist()
    total = sum(shards[i]["count"] for i in missing)
    with reporting(progress if processes.main else False, total, "sample") as advance:
        for turn in range(0, len(missing), processes.count):
            group = missing[turn : turn + processes.count]
            chosen = group[processes.rank] if processes.rank < len(group) else None
            parts = []
            for start in range(0, shard_size, batch_size):
                sizes = [min(batch_size, max(0, shards[i]["count"] - start)) for i in group]
                if chosen is not None and sizes[processes.rank]:
                    parts.append(draw(shards[chosen]["first"] + start, sizes[processes.rank]))
                processes.wait()  # after each batch: nobody waits for longer than one takes
                advance(sum(sizes))
            if chosen is not None:
                data = _pack({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
                _replace(folder / shards[chosen]["file"], data)
                digests[chosen] = hashlib.sha256(data).hexdigest()
    indices = processes.gather(torch.tensor([*digests], dtype=torch.int64)).tolist()
    rows = torch.tensor([[*bytes.fromhex(digest)] for digest in digests.values()], dtype=torch.uint8)
    rows = processes.gather(rows.reshape(-1, 32)).tolist()
    if processes.main:
        _finish(folder, dict(zip(indices, rows, strict=True)))
    return len(shards)


def names_folder(path: str) -> bool:
    """True for a path to a folder, without a suffix, or with a slash at its end."""
    return path.endswith(os.sep) or Path(path).is_dir() or not Path(path).suffix


def _manifest(request: Mapping[str, Any], num: int, shard_size: int) -> dict[str, Any]:
    """A manifest of samples that are yet to be drawn."""
    firsts = range(0, num, shard_size)
    shards = [
        {
            "file": f"samples-{i:05d}-of-{len(firsts):05d}.npz",
            "first": first,
            "count": min(shard_size, num - first),
            "sha256": None,
        }
        for i, first in enumerate(firsts)
    ]
    return {"format": FORMAT, **request, "num": num, "shard_size": shard_size, "shards": shards}


def _begin(folder: Path, manifest: dict[str, Any], overwrite: bool) -> None:
    """Leave a folder with the manifest, its shards as far as they are there, and no other files.

    Samples of another request are in the way as long as one of their shards is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(os.listdir(folder))
    held = [name for name in names if _SHARD.fullmatch(name)]
    temporary = [name for name in names if _TEMPORARY.fullmatch(name)]
    foreign = [name for name in names if name not in (*held, MANIFEST) and not name.startswith(".")]
    if not foreign and held and MANIFEST not in names and not overwrite:
        foreign = held
    if foreign:
        raise ValueError(
            f"out: expected a new folder, or one that `gmfast sample` wrote, but {folder} holds {foreign[0]}"
        )
    again = bool(held) and not overwrite
    if again:
        found = read_manifest(folder)
        for name, (was, now) in _differences(found, json.loads(json.dumps(manifest))).items():
            raise ValueError(
                f"{name}: expected {was!r}, as in {folder / MANIFEST}, got {now!r} (--overwrite begins anew)"
            )
    for name in temporary if again else (*temporary, *held):
        (folder / name).unlink()
    if not again:
        _write_manifest(folder, manifest)


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Requests on which two manifests differ: by name, both values."""
    flat = [{**m, **m.get("options", {})} for m in (was, now)]
    names = dict.fromkeys(name for m in flat for name in m if name not in ("options", "shards"))
    pairs = {name: (flat[0].get(name), flat[1].get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _intact(folder: Path, shard: Mapping[str, Any]) -> str | None:
    """Checksum of a shard that is there and whole, or None."""
    try:
        data = (folder / shard["file"]).read_bytes()
    except FileNotFoundError:
        return None
    digest = hashlib.sha256(data).hexdigest()
    if shard["sha256"] is not None:
        return digest if digest == shard["sha256"] else None
    try:  # of an interrupted job: zip has checksums of its own, and packing gives the same bytes
        arrays = _unpack(data)
    except Exception:  # of any kind: zipfile and NumPy raise what damaged files lead them to
        return None
    counts = {array.shape[:1] for array in arrays.values()}
    return digest if counts == {(shard["count"],)} and _pack(arrays) == data else None


def _finish(folder: Path, digests: Mapping[int, list[int]]) -> None:
    """Complete the manifest, given the checksum of each shard as bytes."""
    manifest = read_manifest(folder)
    for i, shard in enumerate(manifest["shards"]):
        if not (folder / shard["file"]).is_file():
            raise ValueError(
                f"out: expected a folder that all processes share, but {folder / shard['file']} is not there"
            )
        shard["sha256"] = bytes(digests[i]).hex()
    _write_manifest(folder, manifest)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    _replace(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _pack(arrays: Arrays) -> bytes:
    """The arrays as an .npz without times, which `np.savez` puts in."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _unpack(data: bytes) -> Arrays:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return dict(file)


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or not there, whenever the process or the machine stops."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"out: expected to write {path} ({error.strerror})") from None
