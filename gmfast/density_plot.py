"""Pictures of densities in the plane."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def density_plot(path: str | Path, log_prob, data: Tensor, samples: Tensor, points: int = 200) -> None:
    """Writes a PNG: held-out data, samples, and the density on a grid over both.

    Args:
        log_prob: of points (N, 2), in nats, (N,).
        data, samples: (N, 2). The frame is that of the data, a tenth wider on each side.
        points: of the grid along each side.
    """
    from matplotlib.figure import Figure

    low, high = data.min(0).values, data.max(0).values
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    horizontal, vertical = (torch.linspace(low[i], high[i], points) for i in (0, 1))
    grid = torch.cartesian_prod(horizontal, vertical)
    density = torch.cat([log_prob(part) for part in grid.split(8192)]).double().exp()
    density = density.view(points, points).t().numpy()

    figure = Figure(figsize=(12, 4.3), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, shown, title in zip(axes[:2], (data, samples), ("data", "samples"), strict=True):
        size = float(np.clip(3000 / len(shown), 1, 20))
        shown = shown.numpy()
        axis.scatter(shown[:, 0], shown[:, 1], s=size, linewidths=0)
        axis.set(title=f"{len(shown)} {title}")
    # A few sharp peaks do not leave the rest dark.
    picture = axes[2].pcolormesh(
        horizontal.numpy(),
        vertical.numpy(),
        density,
        vmin=0,
        vmax=np.quantile(density, 0.995),
        shading="nearest",
    )
    figure.colorbar(picture, ax=axes[2])
    axes[2].set(title="density")
    for axis in axes:
        axis.set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()), aspect="equal")
    figure.savefig(path, format="png", dpi=100)
