"""The device that a command or a run uses."""

import torch


def find_device(name: str | None) -> torch.device:
    """Device called `name`; None: a GPU where there is one, else the CPU.

    Raises:
        ValueError: For a name that is none, for a device that this machine or torch's build has not, and for
            one that holds no values.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected a name such as cpu or cuda, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: expected one that this machine has, got {name}, but torch finds no CUDA device"
        )
    try:
        torch.zeros(1, device=device).item()  # which meta tensors have not
    except Exception:  # of any kind, by what is missing: torch's own, AssertionError, ModuleNotFoundError
        raise ValueError(f"device: expected one that this machine and torch have, got {name}") from None
    return device
