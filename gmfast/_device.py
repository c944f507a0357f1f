"""The device that a command or a run uses."""

import torch


def find_device(name: str | None) -> torch.device:
    """Device called `name`; None: a GPU where there is one, else the CPU.

    Raises:
        ValueError: For a name that is none, and for CUDA where there is none.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected a name such as cpu or cuda, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: expected one that this machine has, got cuda, but torch finds no CUDA device"
        )
    return device
