"""Constants of a model that keep their precision when the model is converted."""

import contextlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils import _python_dispatch


class Constants(nn.Module):
    """Float64 tensors, as attributes, that follow a model from device to device but not from dtype to dtype.

    They are made on the CPU, also where the model is made on the meta device, and are no part of the state
    dict: the constructor's arguments decide them.

    Args:
        **numbers: By name, nested sequences of numbers.
    """

    def __init__(self, **numbers: Sequence):
        super().__init__()
        for name, value in numbers.items():
            constant = torch.tensor(value, dtype=torch.float64, device="cpu")
            self.register_buffer(name, constant, persistent=False)

    def _apply(self, fn, recurse=True):
        for name, constant in self._buffers.items():
            self._buffers[name] = constant.to(fn(constant).device)
        return self


@contextlib.contextmanager
def real_tensors():
    """Make tensors with values on the CPU, also where a model is made of fake or meta tensors."""
    # Private to torch, so its absence is provided for: fake tensors are then an error.
    without_modes = getattr(_python_dispatch, "_disable_current_modes", contextlib.nullcontext)
    with without_modes(), torch.device("cpu"):
        yield
