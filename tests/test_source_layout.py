"""The rooms of csrc: which may include which (csrc/README.md)."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"

#: The rooms that the files of a room may include, besides single files.
MAY_INCLUDE = {
    "math": {"math"},
    "common": {"common", "math"},
    "args": {"args", "common", "math"},
    "ops": {"ops", "args", "common", "math"},
    "cpu": {"cpu", "args", "common", "math"},
    "cuda": {"cuda", "args", "common", "math"},
    "bindings": {"bindings", "args", "common", "math"},
}
EXCEPTIONS = {"common/decode.h": {"args/decode.h"}, "bindings/codes.cpp": {"ops/codes.h"}}
#: Where the headers of a library may be included; all others are of the standard library or the system.
LIBRARIES = {"torch/": {"ops"}, "pybind11/": {"bindings"}, "cuda": {"cuda"}}


def included(path, quotes):
    """The names in `#include "..."` or `#include <...>` lines, by the `quotes` around them."""
    opening, closing = quotes
    pattern = rf"^\s*#\s*include {opening}([^{closing}]+){closing}"
    return re.findall(pattern, path.read_text(), re.MULTILINE)


def room_of(path):
    parts = path.relative_to(CSRC).parts
    return "bindings" if parts == ("bindings.cpp",) else parts[0]


FILES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu"})


def test_rooms():
    assert {p.name for p in CSRC.iterdir()} == {*MAY_INCLUDE, "bindings.cpp", "README.md"}


@pytest.mark.parametrize("room", MAY_INCLUDE)
def test_includes_between_rooms(room):
    files = [path for path in FILES if room_of(path) == room]
    assert files
    for path in files:
        name = path.relative_to(CSRC).as_posix()
        for include in included(path, '""'):
            target = (path.parent / include).resolve()
            assert target.is_relative_to(CSRC) and target.is_file(), f"{name} includes {include}"
            allowed = room_of(target) in MAY_INCLUDE[room]
            exception = target.relative_to(CSRC).as_posix() in EXCEPTIONS.get(name, ())
            assert allowed or exception, f"{name} includes {include}"


@pytest.mark.parametrize("prefix", LIBRARIES)
def test_includes_of_libraries(prefix):
    for path in FILES:
        if any(include.startswith(prefix) for include in included(path, "<>")):
            assert room_of(path) in LIBRARIES[prefix], path.relative_to(CSRC)


def test_stems():
    """Each operation has a file in `args`, `ops` and a kernel on CPUs."""
    stems = {path.stem for path in (CSRC / "args").iterdir()}
    for room in ("ops", "cpu"):
        missing = stems - {path.stem for path in (CSRC / room).glob("*.cpp")}
        assert missing <= ({"decode"} if room == "ops" else set())
    assert {path.stem for path in (CSRC / "cuda").glob("*.cu")} <= stems
