"""Loading, memory, step times over processes, and recovery after a kill:

    python benchmarks/scaling.py [--out FOLDER] [--files 200000] [--rounds 5]

prints a table and, with --out, writes it as scaling.csv. The image files are generated: 200 PNGs of noise of
40x36 pixels, and hard links to them. Loading: images a second in batches of 64 by `load_batches` and
by DataLoader over a plain dataset that opens, crops and stacks the same files with Pillow, in turns,
medians over rounds. Steps: seconds of a training step in one process and in two, which share the cores.
Memory: the largest resident set of `gmfast train made`, a small one, over the number of files. Recovery:
seconds from the kill of one of two processes under torchrun to the first new line of metrics.
"""

import argparse
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from gmfast import benchmark, data
from gmfast.data.loader import EpochOrder, load_batches

SIZE, BATCH = 32, 64


def make_files(folder, count):
    """`count` image files, a thousand in a folder."""
    random = np.random.RandomState(0)
    sources = folder.parent / "sources"
    sources.mkdir(exist_ok=True)
    for i in range(200):
        Image.fromarray(random.randint(0, 256, (40, 36, 3)).astype(np.uint8)).save(sources / f"{i}.png")
    for i in range(count):
        if i % 1000 == 0:
            (folder / f"{i // 1000:04d}").mkdir(parents=True)
        os.link(sources / f"{i % 200}.png", folder / f"{i // 1000:04d}/{i % 1000:03d}.png")


class Plain(Dataset):
    """What a user would write."""

    def __init__(self, folder):
        self.files = sorted(folder.rglob("*.png"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with Image.open(self.files[index]) as image:
            image = ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def rate(batches, count):
    """Images a second over `count` batches, after two that fill what loads ahead."""
    batches = iter(batches)
    for _ in range(2):
        next(batches)
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.perf_counter() - started)


def loading(folder, rounds):
    split, plain = data.load(folder, size=SIZE, in_memory=False).split("train"), Plain(folder)
    for workers in (0, 1, 2):
        ours, theirs = [], []
        for seed in range(rounds):
            order = EpochOrder(len(split), BATCH, lambda epoch, seed=seed: seed)
            batches = load_batches(split, map(order, itertools.count()), workers=workers)
            ours.append(rate(batches, 20))
            theirs.append(rate(DataLoader(plain, BATCH, shuffle=True, num_workers=workers), 20))
        yield {
            "what": "images a second",
            "case": f"{workers} workers",
            "value": median(ours),
            "beside": median(theirs),
            "beside_is": "plain DataLoader",
            "ratio": median(a / b for a, b in zip(ours, theirs, strict=True)),
        }


def train(*arguments, processes=1, **options):
    command = [sys.executable, "-m", "gmfast", "train", *map(str, arguments), "--device=cpu"]
    return subprocess.Popen(
        [*command, f"--processes={processes}"] if processes > 1 else command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finished(process):
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(output)


def lines_of(run):
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps(folder, rounds):
    for name, options in {
        "pixelcnnpp, digits": ["pixelcnnpp", "--batch-size=64"],
        "edm, digits": ["edm", "--batch-size=64"],
    }.items():
        seconds = {1: [], 2: []}
        for _ in range(rounds):
            for processes, times in seconds.items():
                run = folder / "steps"
                environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, os.cpu_count() // processes))}
                finished(
                    train(
                        *options,
                        "--steps=12",
                        f"--out={run}",
                        "--overwrite",
                        processes=processes,
                        env=environment,
                    )
                )
                times.append(median(line["seconds"] for line in lines_of(run)[4:]))
        yield {
            "what": "seconds a step",
            "case": name,
            "value": median(seconds[2]),
            "beside": median(seconds[1]),
            "beside_is": "one process, as many threads in all",
            "ratio": median(a / b for a, b in zip(*seconds.values(), strict=True)),
        }


def memory(folder, files):
    for count in (files // 10, files):
        images = folder / f"{count}"
        if not images.exists():
            make_files(images, count)
        run, started = folder / "memory", time.time()
        # In half the side, so that the model's own memory is small.
        options = [f"--data={images}", f"--size={SIZE // 2}", "--set=hidden=[64]", "--set=num_orders=1"]
        process = train("made", *options, "--steps=20", f"--out={run}", "--overwrite")
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"training on {count} files failed")
        first = (run / "settings.toml").stat().st_mtime - started + lines_of(run)[0]["seconds"]
        yield {"what": "MiB at most, made", "case": f"{count} files", "value": usage.ru_maxrss / 1024}
        yield {"what": "seconds to the first step", "case": f"{count} files", "value": first}


def recovery(folder):
    run = folder / "recovery"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "gmfast", "train", "pixelcnnpp"]
    command += ["--steps=100000", "--checkpoint-every=5", "--device=cpu", f"--out={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        while len(lines_of(run)) < 7:
            time.sleep(0.1)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        killed = time.time()
        while not (run / "metrics.jsonl").stat().st_mtime > killed + 1 or len(lines_of(run)) < 6:
            time.sleep(0.1)
        recovered = time.time() - killed
        job.send_signal(signal.SIGTERM)
    yield {
        "what": "seconds from a kill to the next step",
        "case": "2 processes, torchrun",
        "value": recovered,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        images = folder / f"{options.files // 10}"
        make_files(images, options.files // 10)
        for row in itertools.chain(
            loading(images, options.rounds),
            memory(folder, options.files),
            steps(folder, options.rounds),
            recovery(folder),
        ):
            numbers = ", ".join(
                f"{name} {row[name]:.4g}" for name in ("value", "beside", "ratio") if name in row
            )
            print(f"{row['what']}, {row['case']}: {numbers}", flush=True)
            rows.append(row)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        names = ["what", "case", "value", "beside", "beside_is", "ratio"]
        where = benchmark.environment(torch.device("cpu"))
        with open(options.out / "scaling.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, [*names, *where], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, **where} for row in rows)


if __name__ == "__main__":
    main()
