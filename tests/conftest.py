import os
import signal
import sys

import hypothesis
import pytest

# Threads that wait for work leave the cores to the other worker. Read when the first library that uses OpenMP
# is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch._inductor import cpp_builder

from gmfast import _library

# The tests are about graphs: inductor's C++ is compiled with -O1, which takes a fraction of -O3's time.
_optimization_flags = cpp_builder._get_optimization_cflags
cpp_builder._get_optimization_cflags = lambda compiler, *_: _optimization_flags(compiler, True)

# The same examples in every run, and no verdict by the clock.
hypothesis.settings.register_profile(
    "gmfast",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.differing_executors, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("few", parent=hypothesis.settings.get_profile("gmfast"), max_examples=10)
hypothesis.settings.load_profile("gmfast")


def pytest_addoption(parser):
    parser.addoption(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where the operations' tests run"
    )


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; tests send it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no GPU")


def pytest_collection_modifyitems(items):
    """The files of the longest tests first, for the workers to end together."""
    longest = ("test_levels", "test_torch_inductor", "test_sanitizers", "test_masked_conv2d")
    items.sort(key=lambda item: item.path.stem not in longest)


def pytest_terminal_summary(terminalreporter, config):
    """At the end, where -q does not leave it out."""
    if not _library.devices:
        kernels = f"none, plain PyTorch runs ({_library.load_error})"
    else:
        kernels = f"SIMD level {_library._C.cpu_level()} of {_library._C.build_info()['cpu_levels']}"
    device = config.getoption("device")
    gpu = f" ({torch.cuda.get_device_name()})" if device == "cuda" else ""
    terminalreporter.write_line(
        f"gmfast: device {device}{gpu}, CPU kernels: {kernels}, torch {torch.__version__}"
    )


@pytest.fixture(scope="session")
def device(pytestconfig):
    return torch.device(pytestconfig.getoption("device"))


@pytest.fixture
def gmfast_command(monkeypatch, capsys):
    """Run the command in this process: its exit status, stdout and stderr."""

    def run(*arguments):
        from gmfast import cli

        monkeypatch.setattr(sys, "argv", ["gmfast", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _threads():
    """One thread: most tests' tensors are too small for more, and the tests' own workers share the cores."""
    torch.set_num_threads(1)
