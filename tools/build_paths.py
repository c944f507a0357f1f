"""For CMake: torch's version and folder, pybind11's headers, as a list. One sentence if one is missing."""

import sys


def main():
    try:
        import torch
    except ImportError as error:
        sys.exit(
            f"gmfast builds against torch, which this Python ({sys.executable}) cannot import ({error}): "
            "install torch first, then build with --no-build-isolation."
        )
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 11):
        sys.exit(f"gmfast needs torch 2.11 or newer; this Python has {torch.__version__}.")
    try:
        import pybind11
    except ImportError:
        sys.exit("gmfast's Python module needs the pybind11 headers: pip install pybind11.")
    print(torch.__version__, torch.__path__[0], pybind11.get_include(), sep=";")


main()
