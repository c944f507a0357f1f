"""Drives CMake; everything else is in pyproject.toml and CMakeLists.txt."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def find(program, advice):
    # A virtual environment's own programs come first, whether it is activated or not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(program, path=path)
    if found is None:
        sys.exit(f"gmfast: {program} was not found: {advice}")
    return found


class CMakeBuild(build_ext):
    """One CMake project in place of setuptools' compiler calls, configured once, rebuilt incrementally."""

    def build_extension(self, ext):
        cmake = find("cmake", "pip install cmake.")
        ninja = find("ninja", "pip install ninja.")
        find(os.environ.get("CXX", "c++").split()[0], "install a C++ compiler (g++ 12 or newer) or set CXX.")
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        # setuptools carries only the module itself back to the sources; the library goes there with it.
        targets = [Path(self.get_ext_fullpath(ext.name)).parent.resolve()]
        if self.editable_mode:
            targets.append(ROOT / "gmfast")
        configure = [cmake, f"-S{ROOT}", f"-B{build}", "-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        steps = [
            [*configure, f"-DPython_EXECUTABLE={sys.executable}"],
            [cmake, "--build", str(build)],
            *([cmake, "--install", str(build), "--prefix", str(target)] for target in targets),
        ]
        for step in steps:
            if subprocess.run(step).returncode:
                sys.exit("gmfast: the build stopped; the lines above say why.")


setup(ext_modules=[Extension("gmfast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
