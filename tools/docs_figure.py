"""Draw benchmarks/results/overview.png, the figure of the README and the home page, from the CSVs there.

A bar is the ratio to the fastest alternative that was measured: eager PyTorch, `torch.compile`, a cached loop
in plain PyTorch, or another library.
"""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

#: Label, file, the values that select one row, and the columns of ratios to alternatives by their names.
OPERATION = {"over_eager": "eager PyTorch", "over_compile": "torch.compile", "over_peer": "peer"}
BARS = (
    (
        "logistic mixture likelihood, with gradient",
        "cpu",
        {
            "operation": "discretized_logistic_mixture_nll",
            "case": "(16,3,32,32) K=10",
            "direction": "forward+backward",
        },
        OPERATION,
    ),
    (
        "masked convolution 5×5, with gradients",
        "cpu",
        {
            "operation": "masked_conv2d",
            "case": "(16,128,32,32) kernel=5×5 type=B out=128",
            "direction": "forward+backward",
        },
        OPERATION,
    ),
    (
        "depthwise causal convolution, with gradients",
        "cpu",
        {
            "operation": "causal_conv1d, depthwise, silu",
            "case": "(8,512,2048)",
            "direction": "forward+backward",
        },
        OPERATION,
    ),
    (
        "rational-quadratic spline, with gradients",
        "cpu",
        {"operation": "rational_quadratic_spline", "case": "(64,3072) K=8", "direction": "forward+backward"},
        OPERATION,
    ),
    (
        "Glow, 8 steps, width 64: training step",
        "flows",
        {"flow": "Glow, 8 steps, (16,12,16,16), width 64", "work": "training step"},
        {"over_peer": "normflows"},
    ),
    (
        "neural spline flow (autoregressive): training step",
        "flows",
        {"flow": "NSF autoregressive, 64 values, 3 transforms, batch 256", "work": "training step"},
        {"over_peer": "zuko"},
    ),
    (
        "MAF, 64 values: sampling",
        "flows",
        {"flow": "MAF, 64 values, 3 transforms, batch 256", "work": "sample"},
        {"over_peer": "zuko"},
    ),
    (
        "PixelCNN++ 32×32, batch 1: sampling",
        "sampling",
        {"work": "PixelCNN++ 32×32", "weights": "float32", "batch": "1", "threads": "2"},
        {"over_loop": "cached PyTorch loop"},
    ),
    (
        "WaveNet, batch 1: sampling",
        "sampling",
        {"work": "WaveNet", "weights": "float32", "batch": "1", "threads": "2"},
        {"over_loop": "cached PyTorch loop"},
    ),
    (
        "UniPC loop on latents, network left out",
        "diffusion",
        {"sampler": "unipc", "shape": "1x4x64x64", "denoiser": "none"},
        {"over_diffusers": "diffusers"},
    ),
)


def main() -> None:
    """Read the rows, draw the bars and write the PNG."""
    labels, ratios, notes, machines, commits = [], [], [], {}, {}
    for label, file, selected, alternatives in BARS:
        with open(RESULTS / f"{file}.csv", newline="") as opened:
            rows = csv.DictReader(opened)
            row = next(row for row in rows if all(row[name] == value for name, value in selected.items()))
        column = min((name for name in alternatives if row[name]), key=lambda name: float(row[name]))
        other = alternatives[column]
        labels.append(label)
        ratios.append(float(row[column]))
        notes.append(f"{ratios[-1]:.1f}× {row['peer'] if other == 'peer' else other}")
        machines[f"{row['processor']}, {row['cores']} cores, torch {row['torch']}, {row['date'][:10]}"] = None
        commits[row["commit"].strip("+")[:7]] = None

    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    bars = axes.barh(labels, ratios, color="#4477aa")
    axes.bar_label(bars, notes, padding=4, fontsize=9)
    axes.set(xscale="log", xlim=(1, 300), xticks=[1, 10, 100], xticklabels=["1×", "10×", "100×"])
    axes.set_xlabel("times faster than the fastest alternative measured", fontsize=9)
    source = f"{'; '.join(machines)}, commits {', '.join(commits)}"
    figure.text(0.99, 0.99, source, ha="right", va="top", fontsize=7, color="#666666")
    axes.invert_yaxis()
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "overview.png", dpi=130)


if __name__ == "__main__":
    main()
