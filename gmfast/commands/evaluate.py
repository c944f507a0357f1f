"""`gmfast evaluate`."""

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._launch import ProcessCount, launch
from ._shared import Device, check_folder, given_path, progress_lines

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Dataset


def evaluate(
    run: Annotated[
        Path, typer.Argument(parser=given_path, metavar="RUN", help="A folder that `gmfast train` wrote.")
    ],
    data: Annotated[str | None, typer.Option(help="Other data than the run's own.")] = None,
    per_sample: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="FILE",
            help="A .csv or .npz for each sample's figures, with its index and its label where it has one.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Further processes that load data, for each process.")
    ] = 0,
    processes: ProcessCount = 1,
    device: Device = None,
) -> None:
    """Evaluate a model on held-out data.

    Bits per dimension, beside a histogram of each pixel, or of a sound's samples; for vectors of real
    numbers, of the density in their own units, beside a Gaussian's. For a model without a likelihood, its
    loss.
    Diffusion models take many passes an image: minutes on a CPU.
    """
    if launch(processes):
        return
    from .._processes import join
    from ..outputs import output_for
    from ..training import evaluate_samples, load_run

    if per_sample is not None and per_sample.suffix.lower() not in (".csv", ".npz"):
        raise ValueError(f"per_sample: expected a .csv or .npz file, got {per_sample}")
    if per_sample is not None:
        check_folder(per_sample.parent, "per_sample")
    team = join(device)
    model, settings, step = load_run(run)
    model.to(team.device)
    team.share(model)  # a run that goes on may show each process another checkpoint
    with team.main_first():  # who leaves an index of the data for the others
        dataset = settings.load_data(data)
    values = evaluate_samples(
        model,
        dataset,
        settings.conditional,
        progress=sys.stderr.isatty() or progress_lines("evaluated", dataset.items),
        processes=team,
        workers=workers,
    )
    if not team.main:
        return
    name = f"{settings.model} at step {step}"
    for metric, unit in model.metrics.items():
        value = values[metric].mean().item()
        if metric == "bits_per_dim":
            print(
                *output_for(model, settings, run).figures(name, value, dataset, settings.conditional),
                sep="\n",
            )
        else:
            print(f"{name}: {value:.4f} ({unit}) on {len(values[metric])} {dataset.items}")
    if per_sample is not None:
        _write(per_sample, dataset, values)


def _write(path: Path, dataset: "Dataset", values: "dict[str, Tensor]") -> None:
    """Write each held-out sample's index, label and figures."""
    import numpy as np
    import torch

    columns = {"index": np.arange(len(next(iter(values.values()))))}
    label = dataset.heldout_labels
    if label is None and dataset.num_labels is not None:  # labels that only decoding shows
        label = torch.cat([batch.label for batch in dataset.split("heldout").batches()])
    if label is not None:
        columns["label"] = label.numpy()
    columns |= {name: value.numpy() for name, value in values.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".npz":
        np.savez(path, **columns)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
