"""`gmfast bench`."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    operations: Annotated[
        list[str] | None, typer.Argument(help="Words of their names, such as conv; by default all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table, the CSV and the picture.")] = Path(
        "out/bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few repetitions.")] = False,
    sampling: Annotated[
        bool,
        typer.Option("--sampling", help="Time cached sampling against full passes and a loop in PyTorch."),
    ] = False,
) -> None:
    """Time the operations against plain PyTorch and torch.compile."""
    if sampling:
        if operations:
            raise ValueError(f"OPERATIONS: expected none with --sampling, got {' '.join(operations)}")
        from ..benchmarks.sampling import main

        main(out=out, quick=quick)
    else:
        from .. import benchmark

        benchmark.main(out=out, quick=quick, cases=benchmark.cases_of(operations) if operations else None)
