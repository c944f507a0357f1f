"""Weight and spectral normalisation whose layers can be pickled."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize


def weight_norm(layer: nn.Module, dim: int = 0) -> nn.Module:
    """Add torch's weight normalisation, over all dimensions of the weight but `dim`, to a layer."""
    return _picklable(parametrizations.weight_norm(layer, dim=dim))


def spectral_norm(layer: nn.Module) -> nn.Module:
    """Add torch's spectral normalisation to a layer."""
    return _picklable(parametrizations.spectral_norm(layer))


def _picklable(layer: nn.Module) -> nn.Module:
    """Let a parametrized layer be pickled, which torch refuses: its class is made anew for each layer."""
    type(layer).__reduce_ex__ = _reduce
    # A local function, which renames the entries of state dicts older than this package.
    layer._load_state_dict_pre_hooks.clear()
    return layer


def _reduce(layer: nn.Module, protocol: int) -> tuple:
    return _rebuild, (type(layer).__bases__[0], tuple(layer.parametrizations)), dict(vars(layer))


def _rebuild(cls: type[nn.Module], names: tuple[str, ...]) -> Any:
    """Make a layer of class `cls` with parametrized tensors, whose state follows."""
    layer = cls.__new__(cls)
    nn.Module.__init__(layer)
    for name in names:
        layer.register_parameter(name, nn.Parameter(torch.empty(0)))
        parametrize.register_parametrization(layer, name, nn.Identity())
    return _picklable(layer)
