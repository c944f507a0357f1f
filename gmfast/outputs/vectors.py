"""Vectors as arrays or tables, and pictures of densities in the plane."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import Dataset
from ..training import column_names
from . import base

#: Held-out points in a picture, at most.
SHOWN = 10_000


class Output(base.Output):
    """An .npz or a .csv file; for densities in the plane, a picture beside it or alone."""

    count = 2000
    default = "samples.npz"
    batch = 4096

    @property
    def plane(self) -> bool:
        """True if the model is an unconditional density in the plane, of which there is a picture."""
        return self.model.image_shape == (2,) and self.model.num_labels is None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files that can be written."""
        return (".npz", ".csv", ".png") if self.plane else (".npz", ".csv")

    def write(self, out: Path, samples: Tensor) -> list[Path]:
        """Write vectors `(n, D)` in the data's units."""
        written, suffix = [out], out.suffix.lower()
        if suffix == ".csv":
            columns = column_names(self.run)
            with out.open("w", encoding="utf-8", newline="") as file:
                if columns is not None:
                    csv.writer(file, lineterminator="\n").writerow(columns)
                np.savetxt(file, samples.numpy(), delimiter=",", fmt="%.9g")
        elif suffix == ".npz":
            np.savez(out, samples=samples.numpy())
        if self.plane:
            picture, device = out.with_suffix(".png"), self.model.device
            heldout = self.settings.load_data().split("heldout")
            shown = heldout.__getitems__(range(min(len(heldout), SHOWN))).x
            with torch.no_grad():
                density_plot(picture, lambda x: self.model.log_prob(x.to(device)).cpu(), shown, samples)
            written += [picture] if picture != out else []
        return written

    def report(self, samples: Tensor, seconds: float) -> str:
        """Return the line that reports how long sampling took."""
        return f"{len(samples)} vectors in {seconds:.2f} s"

    def baseline(self, dataset: Dataset, conditional: bool) -> tuple[str, float]:
        """A Gaussian with the data's mean and covariance."""
        return "one Gaussian of full covariance", dataset.gaussian_bits_per_dim()

    def figures(self, name: str, bits: float, dataset: Dataset, conditional: bool) -> Iterator[str]:
        """Yield the lines with both densities, in nats per vector too."""
        nats = dataset.train.shape[1] * np.log(2)
        for whose, value in ((name, bits), self.baseline(dataset, conditional)):
            yield (
                f"{whose}: {value:.4f} bits per dimension, {value * nats:.4f} nats per vector "
                f"on {len(dataset.split('heldout'))} {dataset.items}"
            )


def density_plot(
    path: str | Path, log_prob: Callable[[Tensor], Tensor], data: Tensor, samples: Tensor, points: int = 200
) -> None:
    """Write a PNG of held-out data, samples, and the density on a grid over both.

    Args:
        path: The file.
        log_prob: Function from points `(N, 2)` to their log-densities `(N,)`, in nats.
        data: Points `(N, 2)`. The frame is theirs, a tenth wider on each side.
        samples: Points `(N, 2)`.
        points: Number of grid points along each side.
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
