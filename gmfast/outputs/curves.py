"""Picture of a run's losses."""

import json
from pathlib import Path

import numpy as np


def draw_losses(metrics: Path, out: Path) -> None:
    """Draw the losses and held-out figures of a run over its steps.

    Args:
        metrics: The run's metrics.jsonl.
        out: A PNG.
    """
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.add_subplot(xlabel="step", ylabel="loss")
    for name in dict.fromkeys(name for line in lines for name in line if name.endswith("loss")):
        points = np.array([(line["step"], line[name]) for line in lines if name in line])
        axis.plot(*points.T, alpha=0.3, linewidth=0.8)
        width = max(1, len(points) // 50)
        smooth = np.convolve(points[:, 1], np.ones(width) / width, "valid")
        axis.plot(
            points[width - 1 :, 0],
            smooth,
            color=axis.lines[-1].get_color(),
            label=name if width == 1 else f"{name}, mean of {width}",
        )
    heldout = np.array([(line["step"], line["heldout"]) for line in lines if "heldout" in line])
    if len(heldout):
        axis.plot(*heldout.T, "o-", color="black", markersize=3, label="held out, averaged weights")
    values = np.concatenate([axis_line.get_ydata() for axis_line in axis.lines])
    values = values[np.isfinite(values)]
    if len(values):  # the first steps may be far above all others
        axis.set_ylim(values.min(), np.quantile(values, 0.99) + 1e-12)
    axis.legend()
    figure.savefig(out, dpi=120)
