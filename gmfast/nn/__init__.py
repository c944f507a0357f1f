"""Modules around the operations of `gmfast.functional`."""

from .activation import ConcatELU, GatedActivation

__all__ = ["ConcatELU", "GatedActivation"]
