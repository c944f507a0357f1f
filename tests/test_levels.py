"""The numerical tests once more under each lower SIMD level, in a process of its own: the level is fixed when
the library is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gmfast import _library

LEVELS = ["v2", "v3", "v4"]
TESTS = Path(__file__).parent / "ops"
PARTS = 2  # of the files, for the workers to share

#: Tests, by parts of their names, of what is the same at every level: what torch does with operators, fake
#: kernels, checks of arguments, shapes and strides of results, which derivatives are wanted, and second
#: derivatives, which are plain PyTorch's. A level's gradients are measured by the tests of accuracy.
ALIKE = [
    "test_torch_ and not test_torch_normal",  # the second is a file
    "what_pytorch_does",
    "compile",
    "opcheck",
    "test_empty",
    "derivatives_by_all",
    "without_gradients",
    "export",
    "fake_kernel",
    "bad_arguments",
    "test_errors",
    "layout_of_results",
    "gradcheck",
    "second_derivative",
]


def lower_levels():
    if _library._C is None or _library._C.cpu_level() not in LEVELS:
        return []
    return LEVELS[: LEVELS.index(_library._C.cpu_level())]


def marked_levels():
    """The lowest level, and further ones as slow tests."""
    return [
        pytest.param(level, marks=[pytest.mark.slow] if number else [])
        for number, level in enumerate(lower_levels())
    ]


def run(level, *command):
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "GMFAST_CPU_ISA": level},
        cwd=TESTS.parents[1],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("level", marked_levels())
def test_operations_under(level, part, device):
    if device.type != "cpu":
        pytest.skip("SIMD levels are the CPU's")
    tests = map(str, sorted(TESTS.glob("test_*.py"))[part::PARTS])
    kept = f"not ({' or '.join(ALIKE)})"
    options = ["-p", "no:cacheprovider", "-x", "--hypothesis-profile=few", "-k", kept]
    done = run(level, "-m", "pytest", *options, *tests)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"SIMD level {level}" in done.stdout


@pytest.mark.parametrize("level", marked_levels())
def test_decode_programs_under(level, device):
    if device.type != "cpu":
        pytest.skip("SIMD levels are the CPU's")
    kept = "(parameters or bits or convolutions or wide or bfloat16) and not reference"
    tests = [str(TESTS.parent / "decode" / name) for name in ("test_compile.py", "test_models.py")]
    done = run(level, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-k", kept, *tests)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"SIMD level {level}" in done.stdout


def test_level_that_the_machine_lacks_is_not_used():
    """GMFAST_CPU_ISA only lowers the level."""
    if not lower_levels():
        pytest.skip("this machine has one level")
    show = "from gmfast import _library; print(_library._C.cpu_level())"
    assert run("v4", "-c", show).stdout.strip() == _library._C.cpu_level()
    assert run("v2", "-c", show).stdout.strip() == "v2"
