"""`gmfast bench`."""

from pathlib import Path
from typing import Annotated

import typer

from ._shared import check_folder, given_path


def bench(
    operations: Annotated[
        list[str] | None, typer.Argument(help="Words of their names, such as conv; by default all.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            parser=given_path, metavar="PATH", help="Folder for the table, the CSV and the picture."
        ),
    ] = Path("out/bench"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A case of each operation, within 90 seconds.")
    ] = False,
    sampling: Annotated[
        bool,
        typer.Option("--sampling", help="Time cached sampling against full passes and a loop in PyTorch."),
    ] = False,
    targets: Annotated[bool, typer.Option("--targets", help="Show the project's own targets too.")] = False,
) -> None:
    """Time the operations against plain PyTorch and torch.compile.

    A row is printed and written as soon as it is measured. A ratio is how many times as fast gmfast is, a
    share that of the speed of a copy.
    """
    check_folder(out)
    if sampling:
        if operations:
            raise ValueError(f"OPERATIONS: expected none with --sampling, got {' '.join(operations)}")
        from ..benchmarks.sampling import main

        main(out=out, quick=quick, targets=targets)
    else:
        from .. import benchmark

        cases = benchmark.cases_of(operations) if operations else None
        benchmark.main(out=out, quick=quick, cases=cases, targets=targets)
