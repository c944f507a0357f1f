"""Trackers of metrics, those of accelerate: TensorBoard, wandb and others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def check_trackers(names: Sequence[str]) -> None:
    """Check names of accelerate's trackers.

    Raises:
        ValueError: For a name that is none.
    """
    if names:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in names:
            if name not in LOGGER_TYPE_TO_CLASS:
                known = ", ".join(LOGGER_TYPE_TO_CLASS)
                raise ValueError(f"trackers: expected some of {known}, got {name!r}")


def tracker(name: str, out: Path, step: int) -> Any:
    """One of accelerate's trackers, which continues after `step`."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    cls = LOGGER_TYPE_TO_CLASS[name]
    options = {"logging_dir": out} if cls.requires_logging_directory else {}
    if name == "tensorboard":
        options["purge_step"] = step + 1
    made = cls(name if name == "tensorboard" else out.name, **options)
    try:
        made.start()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"trackers: expected one that is installed, but {name} needs the package {error.name}"
        ) from None
    except Exception as error:  # of any kind: each tracker raises its own, such as wandb without a key
        raise ValueError(
            f"trackers: expected {name} to start, but it says: {' '.join(str(error).split())}"
        ) from None
    return made
