"""All rules."""

from . import _ancestral, _distilled, _exponential, _sigma  # noqa: F401
