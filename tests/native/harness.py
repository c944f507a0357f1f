"""Compiles C++ for the tests, and reuses what was compiled before.

A result is identified by its preprocessed text, the flags and the compiler, so a change in any included
header compiles anew. Processes that need the same result at the same time wait for the first one to
compile it. CUDA sources compile too, as plain C++.
"""

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "tests"
FLAGS = ["-std=c++17", "-O2", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}"]


def compiler() -> str:
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise RuntimeError(f"these tests compile C++ and need {name}, which is not on the PATH")
    return path


def build(sources: Sequence[str | Path], *, flags: Sequence[str] = (), name: str) -> Path:
    """Links a program (or, by the flags, a library).

    Args:
        sources: Paths from the root.
        flags: Added after the harness's own.
        name: First part of the result's file name.
    """
    return _build(tuple(map(str, sources)), tuple(flags), name)


@functools.cache
def _build(sources: tuple[str, ...], flags: tuple[str, ...], name: str) -> Path:
    cxx = compiler()
    files = [str(ROOT / source) for source in sources]
    command = [cxx, *FLAGS, *flags, "-x", "c++"]
    version = _run([cxx, "--version"])
    text = [_run([*command, "-w", "-E", "-P", file]) for file in files]
    digest = hashlib.sha256("\0".join([version, *command, *text]).encode()).hexdigest()[:16]
    target = CACHE / f"{name}-{digest}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(f"{target}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                unfinished = target.with_name(f"{target.name}.{os.getpid()}")
                _run([*command, *files, "-o", str(unfinished)])
                unfinished.replace(target)
    return target


def compile_library(sources: Sequence[str | Path], *, flags: Sequence[str] = (), name: str) -> ctypes.CDLL:
    """`sources` as a loaded shared library."""
    return ctypes.CDLL(str(build(sources, flags=["-shared", "-fPIC", *flags], name=name)))


def simd_levels() -> dict[str, list[str]]:
    """The flags for each SIMD level that this machine runs, from the least to the best."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {"native": []}
    needed = {
        "v2": {"sse4_2", "ssse3", "popcnt"},
        "v3": {"avx2", "fma", "f16c", "bmi2"},
        "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    }
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    has = set(next(line for line in lines if line.startswith("flags")).split())
    return {level: [f"-march=x86-64-{level}"] for level, flags in needed.items() if flags <= has}


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout
