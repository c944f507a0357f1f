"""Cached sampling: autoregressive models compiled to programs that compute one position after another."""

from .builder import Builder
from .compile import compile
from .program import Program

__all__ = ["Builder", "Program", "compile"]
