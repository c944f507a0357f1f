"""Cached sampling: autoregressive models one position after another, with nothing computed twice."""

from .builder import Builder
from .compile import compile
from .program import Program

__all__ = ["Builder", "Program", "compile"]
