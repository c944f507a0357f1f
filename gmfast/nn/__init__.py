"""Modules around the operations of `gmfast.functional`."""

from .activation import ConcatELU, GatedActivation
from .conv import CausalConv1d, MaskedConv2d
from .made import MaskedLinear, MaskedMLP

__all__ = ["CausalConv1d", "ConcatELU", "GatedActivation", "MaskedConv2d", "MaskedLinear", "MaskedMLP"]
