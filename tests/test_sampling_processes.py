"""Samples in shards, and sampling and evaluation by several processes."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from models.test_contract import SMALL, build

from gmfast._processes import Processes
from gmfast.commands._drawing import Drawing
from gmfast.data import from_unit
from gmfast.outputs import shards
from gmfast.training import Settings, Trainer, evaluate, load_run

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Only a CPU promises the same bits."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A conditional PixelCNN++ after a step."""
    out = tmp_path_factory.mktemp("runs") / "pixelcnnpp"
    settings = Settings(model="pixelcnnpp", options=SMALL["pixelcnnpp"], conditional=True, batch_size=8)
    Trainer.start(settings, out, "cpu").fit(1, progress=False)
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def drawn(folder):
    """Samples and labels of all shards."""
    parts = list(shards.read(folder))
    return tuple(np.concatenate([part[name] for part in parts]) for name in parts[0])


# ---- Shards, without processes and models


def numbers(first, count):
    """Sample i is filled with i."""
    index = np.arange(first, first + count)
    return {"samples": np.tile(index[:, None], 3).astype(np.uint8), "label": index % 10}


def write(folder, request=None, draw=numbers, num=10, shard_size=4, batch_size=3, **options):
    return shards.write(
        folder, request or {"seed": 0}, draw, num=num, shard_size=shard_size, batch_size=batch_size, **options
    )


def recording():
    """`numbers` that records the batches drawn."""
    batches = []

    def draw(first, count):
        batches.append((first, count))
        return numbers(first, count)

    return draw, batches


def test_shards(tmp_path):
    draw, batches = recording()
    done = []
    assert write(tmp_path / "new" / "samples", draw=draw, progress=lambda *n: done.append(n)) == 3
    folder = tmp_path / "new" / "samples"
    assert batches == [(0, 3), (3, 1), (4, 3), (7, 1), (8, 2)]
    assert done[-1] == (10, 10)
    files = [f"samples-0000{i}-of-00003.npz" for i in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *files]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {name: manifest[name] for name in ("format", "seed", "num", "shard_size")} == {
        "format": 1,
        "seed": 0,
        "num": 10,
        "shard_size": 4,
    }
    for i, shard in enumerate(manifest["shards"]):
        digest = hashlib.sha256((folder / files[i]).read_bytes()).hexdigest()
        assert shard == {"file": files[i], "first": 4 * i, "count": (4, 4, 2)[i], "sha256": digest}
    with np.load(folder / files[1]) as file:  # an ordinary .npz
        assert sorted(file) == ["label", "samples"] and file["samples"].dtype == np.uint8
    samples, label = drawn(folder)
    assert (samples == np.arange(10)[:, None]).all() and label.tolist() == list(range(10))
    again = contents(folder)
    write(folder, batch_size=100)
    assert contents(folder) == again
    write(tmp_path / "other", batch_size=1)
    assert contents(tmp_path / "other") == again  # no times, no order of writing


def test_what_is_missing_or_damaged_is_made_again(tmp_path):
    write(tmp_path)
    whole = contents(tmp_path)
    names = [shard["file"] for shard in shards.read_manifest(tmp_path)["shards"]]
    (tmp_path / names[0]).unlink()
    data = bytearray(whole[names[2]])
    data[len(data) // 2] ^= 1
    (tmp_path / names[2]).write_bytes(data)
    (tmp_path / f".{names[0]}.{'0' * 32}").write_bytes(b"half")
    (tmp_path / f".manifest.json.{'f' * 32}").write_bytes(b"{")
    with pytest.raises(FileNotFoundError, match=names[0]):
        list(shards.read(tmp_path))
    draw, batches = recording()
    write(tmp_path, draw=draw)
    assert batches == [(0, 3), (3, 1), (8, 2)] and contents(tmp_path) == whole
    (tmp_path / names[1]).write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"folder: expected .*{names[1]} with the checksum in manifest.json"
    ):
        list(shards.read(tmp_path))


@pytest.mark.parametrize("damage", [None, "cut", "flip"])
def test_shards_of_an_interrupted_job_are_kept_if_they_are_whole(tmp_path, damage):
    def dies(first, count):
        if first >= 8:
            raise KeyboardInterrupt
        return numbers(first, count)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, draw=dies)
    held = contents(tmp_path)
    assert len(held) == 3 and all(s["sha256"] is None for s in shards.read_manifest(tmp_path)["shards"])
    with pytest.raises(
        ValueError, match=r"folder: expected 3 shards, but .* is not complete: the same `gmfast"
    ):
        list(shards.read(tmp_path))
    path = tmp_path / "samples-00001-of-00003.npz"
    if damage == "cut":
        path.write_bytes(held[path.name][:100])
    elif damage == "flip":
        at = held[path.name].index(b"\x05\x05\x05")
        path.write_bytes(held[path.name][:at] + b"\x06" + held[path.name][at + 1 :])
    draw, batches = recording()
    write(tmp_path, draw=draw)
    assert batches == ([] if damage is None else [(4, 3), (7, 1)]) + [(8, 2)]
    assert drawn(tmp_path)[1].tolist() == list(range(10))


def test_other_options_and_other_files_are_refused(tmp_path):
    request = {"seed": 0, "options": {"method": "cached"}}
    write(tmp_path, request)
    whole = contents(tmp_path)
    for change, sentence in [
        ({"request": {**request, "seed": 1}}, "seed: expected 0, as in .*, got 1"),
        ({"request": {"seed": 0, "options": {}}}, "method: expected 'cached', as in .*, got None"),
        ({"num": 11}, "num: expected 10, as in .*, got 11"),
        ({"shard_size": 5}, "shard_size: expected 4, as in .*manifest.json, got 5"),
    ]:
        with pytest.raises(ValueError, match=rf"^{sentence} \(--overwrite begins anew\)$"):
            write(tmp_path, **{"request": request, **change})
        assert contents(tmp_path) == whole
    write(tmp_path, {"seed": 1}, num=3, overwrite=True)
    assert sorted(contents(tmp_path)) == ["manifest.json", "samples-00000-of-00001.npz"]
    (tmp_path / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"out: expected a new folder, or one that .* holds thesis\.tex"):
            write(tmp_path, {"seed": 1}, num=3, overwrite=overwrite)
    (tmp_path / "thesis.tex").unlink()
    for damaged in ("{", "{}", "[1]"):
        (tmp_path / "manifest.json").write_text(damaged)
        with pytest.raises(
            ValueError, match=r"expected a manifest of samples, but .*manifest.json is damaged"
        ):
            write(tmp_path, {"seed": 1}, num=3)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"but .* holds samples-00000-of-00001\.npz"):
        write(tmp_path, {"seed": 1}, num=3)
    write(tmp_path, {"seed": 1}, num=3, overwrite=True)
    assert len(drawn(tmp_path)[0]) == 3


def test_a_request_without_a_finished_shard_is_in_nobody_s_way(tmp_path):
    def refuses(first, count):
        raise ValueError("sampler: expected another")

    with pytest.raises(ValueError, match="sampler"):
        write(tmp_path, {"sampler": "x"}, draw=refuses)
    write(tmp_path, {"sampler": "ddim"})
    assert shards.read_manifest(tmp_path)["sampler"] == "ddim"


def test_a_manifest_of_a_newer_version_is_refused(tmp_path):
    write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(ValueError, match="folder: expected a manifest of format 1, got 2"):
        list(shards.read(tmp_path))


def test_a_full_disk_keeps_finished_shards(tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 4:  # the manifest and its folder, a shard and its folder
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"^out: expected to write .*00001-of-00003.npz \(No space left"):
            write(tmp_path)
    assert sorted(contents(tmp_path)) == ["manifest.json", "samples-00000-of-00003.npz"]


# ---- Samples of models


@pytest.mark.parametrize("name", ["pixelcnnpp", "ddpm", "glow", "maf", "wavenet"])
def test_any_part_of_the_samples_is_drawn(name):
    for model, _ in build(name):
        drawing = Drawing(model, 3, None, {})
        whole, part = drawing.draw(0, 7), drawing.arrays(4, 3)
        label = drawing.labels(4, 3)
        assert (label is None) == (model.num_labels is None) == ("label" not in part)
        if label is not None:
            assert label.tolist() == part["label"].tolist() == [1, 2, 0]
        if model.num_levels is None:
            torch.testing.assert_close(torch.from_numpy(part["samples"]), whole[4:], rtol=1e-4, atol=1e-4)
        else:
            levels = from_unit(whole[4:], model.num_levels)
            # The batch size decides the last bits of a convolution, which may decide a level.
            exact = 1.0 if name in ("pixelcnnpp", "wavenet") else 0.98
            assert (part["samples"] == levels.numpy()).mean() >= exact and levels.dtype == torch.uint8


class Alone(Processes):
    """One of several processes, that sees only its own part."""

    def gather(self, tensor):
        return tensor


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_file_s_samples_are_divided(batch_size):
    ((model, _),) = build("pixelcnnpp")
    drawing = Drawing(model, 0, 2, {})
    whole = drawing.draw(0, 5)
    for count in (1, 3, 8):
        parts = [drawing.draw_all(5, batch_size, Alone(rank, count, CPU)) for rank in range(count)]
        assert torch.equal(torch.cat(parts), whole)


def test_the_command_refuses_what_cannot_be_divided(gmfast_command, run, tmp_path):
    folder = tmp_path / "folder"
    for arguments, sentence in [
        (["--complete", "--out", folder], f"out: expected a file with --complete, got {folder}"),
        (["--compare", "--batch-size", "2"], "batch_size: expected none with --compare, got 2"),
        (
            ["--shard-size", "2", "--out", "x.png"],
            "shard_size: expected a folder as --out, got x.png",
        ),
        (["--overwrite"], "overwrite: expected a folder as --out, got samples.png"),
    ]:
        assert gmfast_command("sample", run, *arguments) == (2, "", f"gmfast: {sentence}\n")
    assert not folder.exists()


def test_paths_of_folders(tmp_path):
    (tmp_path / "is.png").mkdir()
    for path in ("samples", "samples.v1/", str(tmp_path / "is.png")):
        assert shards.names_folder(path)
    assert not shards.names_folder("samples.png")


def test_vectors_and_a_chosen_class(gmfast_command, run, tmp_path):
    maf = tmp_path / "maf"
    Trainer.start(Settings(model="maf", data="moons", options=SMALL["maf"]), maf, "cpu").fit(
        1, progress=False
    )
    folder = tmp_path / "new.folder"
    status, out, _ = gmfast_command("sample", maf, "-n", 5, "--out", f"{folder}/", "--temperature", 0.5)
    assert (status, out) == (0, f"5 samples in 1 shards: {folder}/\n")
    (samples,) = drawn(folder)
    expected = load_run(maf)[0].sample(5, seed=0, temperature=0.5)
    assert samples.dtype == np.float32 and np.array_equal(samples, expected.numpy())
    manifest = shards.read_manifest(folder)
    assert manifest["options"] == {"method": "cached", "temperature": 0.5} and manifest["num_levels"] is None
    status, _, _ = gmfast_command("sample", run, "--n", 2, "--label", 7, "--out", tmp_path / "sevens")
    assert status == 0 and drawn(tmp_path / "sevens")[1].tolist() == [7, 7]
    assert shards.read_manifest(tmp_path / "sevens")["label"] == 7


# ---- Processes

#: Runs the commands in its argument, one after another.
SEVERAL = """
import json, sys
from gmfast import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["gmfast", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code:
            raise
"""


@pytest.fixture(scope="module")
def whole(run):
    """Levels and classes of 7 samples."""
    model, _, _ = load_run(run)
    label = torch.arange(7) % 10
    return from_unit(model.sample(7, seed=0, label=label), 17).numpy(), label.numpy()


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*command, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def test_torchrun_draws_what_one_process_draws(gmfast_command, run, whole, tmp_path):
    options = ["-n", 7, "--shard-size", 2]
    job = torchrun(2, "-m", "gmfast", "sample", run, *options, "--out", tmp_path / "two")
    assert (job.returncode, job.stdout) == (0, f"7 samples in 4 shards: {tmp_path / 'two'}\n"), job.stderr
    for got, expected in zip(drawn(tmp_path / "two"), whole, strict=True):
        assert np.array_equal(got, expected)
    assert gmfast_command("sample", run, *options, "--out", tmp_path / "one", "--batch-size", 1)[0] == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    manifest = shards.read_manifest(tmp_path / "two")
    weights = hashlib.sha256((run / "last/ema.safetensors").read_bytes()).hexdigest()
    described = {"model": "pixelcnnpp", "step": 1, "weights_sha256": weights, "seed": 0, "label": "in turn"}
    assert described.items() <= manifest.items() and manifest["options"] == {"method": "cached"}


@pytest.mark.slow
def test_three_processes_agree_with_one(gmfast_command, run, whole, tmp_path):
    """Shards, a picture, and held-out figures; only the first process prints."""
    script = tmp_path / "several.py"
    script.write_text(SEVERAL)
    commands = {
        "shards": ["sample", run, "-n", 7, "--shard-size", 4, "--batch-size", 3, "--out"],
        "grid.png": ["sample", run, "-n", 7, "--out"],
        "figures.csv": ["evaluate", run, "--per-sample"],
    }
    for name, arguments in commands.items():
        commands[name] = [*map(str, arguments), str(tmp_path / name)]
    job = torchrun(3, script, json.dumps([*commands.values()]))
    assert job.returncode == 0, job.stderr
    for got, expected in zip(drawn(tmp_path / "shards"), whole, strict=True):
        assert np.array_equal(got, expected)
    said = job.stdout.splitlines()
    folder, grid, evaluated, _ = said
    assert folder == f"7 samples in 2 shards: {tmp_path / 'shards'}" and grid == str(tmp_path / "grid.png")
    picture = tmp_path / "one.png"
    gmfast_command("sample", run, "-n", 7, "--out", picture)
    assert picture.read_bytes() == (tmp_path / "grid.png").read_bytes()
    out = gmfast_command("evaluate", run, "--per-sample", tmp_path / "figures.npz")[1]
    assert out.splitlines() == said[2:]
    with (tmp_path / "figures.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["index", "label", "bits_per_dim"]
    with np.load(tmp_path / "figures.npz") as one:
        assert list(one) == header and one["index"].tolist() == list(range(360))
        np.testing.assert_allclose(np.array(rows, float), np.stack([*one.values()], 1), rtol=1e-5)
        model, settings, _ = load_run(run)
        dataset = settings.load_data()
        assert one["label"].tolist() == dataset.heldout_labels.tolist()
        mean = torch.from_numpy(one["bits_per_dim"]).mean().item()
        assert evaluate(model, dataset, True) == mean and f": {mean:.4f} bits per dimension on" in evaluated


def test_per_sample_is_a_table_or_arrays(gmfast_command, run, tmp_path):
    status, out, err = gmfast_command("evaluate", run, "--per-sample", tmp_path / "x.txt")
    assert (status, out) == (2, "") and err.startswith(
        "gmfast: per_sample: expected a .csv or .npz file, got "
    )


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
def test_killed_and_started_again(gmfast_command, run, tmp_path):
    """A process of two is killed; the command ends with a sentence, and another one makes what is missing."""
    folder = tmp_path / "samples"
    command = ["sample", run, "-n", 100, "--shard-size", 1, "--out", folder]
    job = subprocess.Popen(
        [sys.executable, "-m", "gmfast", *map(str, command), "--processes", "2"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with job:
        while len(list(folder.glob("samples-*"))) < 2:
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.01)
        os.kill(children(job.pid)[-1], signal.SIGKILL)
        out, err = job.communicate(timeout=120)
    assert (job.returncode, out) == (2, "")
    assert "gmfast: processes: expected " in err
    held = {path: path.stat().st_mtime_ns for path in folder.glob("samples-*")}
    assert 2 <= len(held) < 100
    status, out, _ = gmfast_command(*command)
    assert (status, out) == (0, f"100 samples in 100 shards: {folder}\n")
    assert all(path.stat().st_mtime_ns == time for path, time in held.items())
    label = torch.arange(100) % 10
    expected = from_unit(load_run(run)[0].sample(100, seed=0, label=label), 17)
    assert np.array_equal(drawn(folder)[0], expected.numpy())
    assert not list(folder.glob(".*"))
