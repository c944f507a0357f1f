"""Makes tests/native importable, and runs a test once for each SIMD level of the machine."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "native"))

from harness import compile_library, simd_levels


@pytest.fixture(scope="module", params=list(simd_levels()))
def library(request):
    """The C++ source named by the test module's SOURCE, compiled at a SIMD level."""
    source = Path(request.module.SOURCE)
    level = request.param
    return compile_library([source], flags=simd_levels()[level], name=f"{source.stem}-{level}")
