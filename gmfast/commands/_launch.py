"""Several processes for a command, on this machine."""

import json
import os
import sys
import time
import uuid
from typing import Annotated

import typer

ProcessCount = Annotated[
    int,
    typer.Option(
        "--processes",
        min=1,
        help="Processes that divide the work on this machine, each on a GPU of its own or all on the CPU. "
        "Over several machines: torchrun ... -m gmfast ...",
    ),
]


def launch(processes: int) -> bool:
    """Run this very command in several processes, through torch's launcher.

    Args:
        processes: Their number.

    Returns:
        Whether the command has been run: False for one process, and in the processes themselves.

    Raises:
        ValueError: What a process failed with, as one sentence. typer.Exit: With the status of a process that
            ended by itself with another one than 0, such as 130 after Ctrl-C.
    """
    if processes == 1 or "GMFAST_LAUNCHED" in os.environ:
        return False
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(f"processes: expected 1 under torchrun, which has --nproc-per-node, got {processes}")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    os.environ["GMFAST_LAUNCHED"] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "gmfast", *sys.argv[1:])
    except SignalException as error:  # the processes have had it too, and time to save
        raise typer.Exit(128 + int(error.sigval)) from None
    except ChildFailedError as error:
        # The one that says why, or that was killed: others only noticed.
        rank, failure = min(
            error.failures.items(),
            key=lambda item: (not isinstance(item[1].message, dict), item[1].exitcode > 0),
        )
        if isinstance(failure.message, dict):  # left by `report`
            raise ValueError(failure.message["message"]) from None
        if failure.exitcode < 0:
            raise ValueError(
                f"processes: expected all {processes} to end by themselves, but process {rank} was ended by "
                f"signal {-failure.exitcode}; the others were stopped"
            ) from None
        raise typer.Exit(failure.exitcode) from None
    return True


def report(sentence: str) -> bool:
    """Leave the sentence that a process fails with where torch's launcher looks for it.

    Returns:
        Whether that launcher is ours, which shows it.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"message": {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}}, file)
    return "GMFAST_LAUNCHED" in os.environ
