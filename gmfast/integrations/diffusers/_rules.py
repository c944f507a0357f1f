"""All rules."""

from . import _ancestral, _distilled, _exponential, _pndm, _sigma  # noqa: F401
