"""Trains a small PixelCNN++ on scikit-learn's handwritten digits, draws new ones, and times the loss.

    python examples/demo.py [--out out] [--steps 400]

Everything goes through the same code as `gmfast train`, `evaluate` and `sample`. Pictures and the trained run
are left in the output folder.
"""

import argparse
import json
import math
import shutil
import statistics
import time
from pathlib import Path

import matplotlib
import torch
from tqdm import tqdm

import gmfast
import gmfast.functional as GF
from gmfast import reference
from gmfast.data import from_unit
from gmfast.outputs.images import image_grid
from gmfast.training import Settings, Trainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_samples(trainer: Trainer, path: Path, rows: int = 6) -> None:
    """Held-out digits beside sampled ones, a column for each class."""
    dataset = trainer.dataset
    label = torch.arange(10).repeat(rows)
    samples = trainer.ema.sample(len(label), seed=0, label=label.to(trainer.device), progress=True).cpu()
    by_class = [dataset.heldout[dataset.heldout_labels == digit] for digit in range(10)]
    # Spread over the held-out set: neighbours in it are by the same writer.
    real = torch.stack([images[:: len(images) // rows][:rows] for images in by_class], 1).flatten(0, 1)
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.4), layout="constrained")
    titles = ("real digits, held out", "digits drawn by the model")
    for axis, images, title in zip(axes, (real, from_unit(samples, dataset.num_levels)), titles, strict=True):
        axis.imshow(image_grid(images, dataset.num_levels, columns=10), interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=100)


def draw_curve(metrics: list[dict], histogram: float, path: Path) -> None:
    """Training and held-out loss by step."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(
        [m["step"] for m in metrics], [m["loss"] for m in metrics], lw=0.7, alpha=0.6, label="training batch"
    )
    heldout = [(m["step"], m["heldout"]) for m in metrics if "heldout" in m]
    axis.plot(*zip(*heldout, strict=True), "o-", label="held out, averaged weights")
    axis.axhline(histogram, color="grey", ls="--", label="per-pixel histogram, held out")
    axis.set(xlabel="step", ylabel="bits per dimension", ylim=(1.3, histogram + 0.7))
    axis.legend()
    figure.savefig(path, dpi=100)


def time_losses(repeats: int = 15) -> dict[str, float]:
    """Median milliseconds of loss and gradient on the same tensors, the two implementations in turn:
    32 RGB images of 32×32 and 10 components, as the published model has them. A CPU uses one thread: with
    more, whatever else the machine does would be part of the result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = (torch.randint(256, (32, 3, 32, 32), generator=generator) / 127.5 - 1).to(device)
    params = torch.randn(32, 100, 32, 32, generator=generator).to(device).requires_grad_()
    implementations = {
        "plain PyTorch": reference.discretized_logistic_mixture_nll,
        "gmfast": GF.discretized_logistic_mixture_nll,
    }
    times = {name: [] for name in implementations}
    values = {}
    for repeat in tqdm(range(repeats + 2), desc="timing", unit="round"):
        for name, nll in implementations.items():
            params.grad = None
            started = time.perf_counter()
            loss = nll(x, params, reduction="bits_per_dim")
            loss.backward()
            values[name] = loss.item()  # waits for the device
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:
                times[name].append(1e3 * (time.perf_counter() - started))
    torch.set_num_threads(threads)
    if not math.isclose(*values.values(), rel_tol=1e-4):
        raise SystemExit(f"the two losses differ: {values}")
    return {name: statistics.median(samples) for name, samples in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    out, run = arguments.out, arguments.out / "run"
    shutil.rmtree(run, ignore_errors=True)
    started = time.perf_counter()

    print(gmfast.doctor(), end="\n\n")
    settings = Settings(
        model="pixelcnnpp",
        data="digits",
        conditional=True,
        batch_size=32,
        lr=3e-3,
        evaluate_every=max(1, arguments.steps // 8),
    )
    trainer = Trainer.start(settings, run)
    dataset = trainer.dataset
    print(
        f"PixelCNN++ with {sum(p.numel() for p in trainer.model.parameters()):,} parameters, given the "
        f"class; {len(dataset.train)} training images, {len(dataset.heldout)} held out"
    )
    before = trainer.evaluate()
    if not trainer.fit(arguments.steps):
        raise SystemExit(130)
    after, histogram = trainer.evaluate(), dataset.histogram_bits_per_dim(conditional=True)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    draw_samples(trainer, out / "samples.png")
    draw_curve(metrics, histogram, out / "curve.png")
    milliseconds = time_losses()

    print(
        "\nheld-out bits per dimension\n"
        f"  uniform                      {math.log2(dataset.num_levels):.3f}\n"
        f"  histogram per pixel, class   {histogram:.3f}\n"
        f"  PixelCNN++ before training   {before:.3f}\n"
        f"  PixelCNN++ after {trainer.step:4} steps   {after:.3f}\n"
        "\nloss and gradient, 32 images of 32x32 RGB, 10 components, median, "
        f"{'GPU' if torch.cuda.is_available() else 'one CPU thread'}\n"
        f"  plain PyTorch   {milliseconds['plain PyTorch']:8.2f} ms\n"
        f"  gmfast          {milliseconds['gmfast']:8.2f} ms   "
        f"{milliseconds['plain PyTorch'] / milliseconds['gmfast']:.1f} times faster\n"
        f"\n{time.perf_counter() - started:.0f} seconds in all; written:\n"
        f"  {out / 'samples.png'}   real and sampled digits\n"
        f"  {out / 'curve.png'}     loss by step\n"
        f"  {run}           the run: try `gmfast sample {run}` and `gmfast evaluate {run}`"
    )
    if after >= min(before, histogram):
        raise SystemExit("the model did not learn")


if __name__ == "__main__":
    main()
