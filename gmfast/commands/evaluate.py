"""`gmfast evaluate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ._shared import Device, progress_lines


def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `gmfast train` wrote.")],
    data: Annotated[str | None, typer.Option(help="Other data than the run's own.")] = None,
    device: Device = None,
) -> None:
    """Evaluate a model on held-out data.

    Bits per dimension, beside a histogram of each pixel, or of a sound's samples; for vectors of real
    numbers, of the density in their own units, beside a Gaussian's. For a model without a likelihood, its
    loss.
    Diffusion models take many passes an image: minutes on a CPU.
    """
    from .._device import find_device
    from ..outputs import output_for
    from ..training import evaluate, load_run

    model, settings, step = load_run(run)
    dataset = settings.load_data(data)
    model.to(find_device(device))
    progress = True if sys.stderr.isatty() else progress_lines("evaluated", dataset.items)
    value = evaluate(model, dataset, settings.conditional, progress=progress)
    name, (metric, unit) = f"{settings.model} at step {step}", next(iter(model.metrics.items()))
    if metric != "bits_per_dim":
        print(f"{name}: {value:.4f} ({unit}) on {len(dataset.heldout)} {dataset.items}")
        return
    for line in output_for(model, settings, run).figures(name, value, dataset, settings.conditional):
        print(line)
