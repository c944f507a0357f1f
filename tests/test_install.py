"""How pip installs the package, without a build: the Python sources alone, by setuptools' own hooks."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = """
from setuptools import build_meta

build_meta.build_editable("editable")
build_meta.build_wheel("wheel")
"""


def python(*arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder named gmfast with a package that imports nothing, and the wheels of an editable install and a
    plain one, built with the project's configuration."""
    pytest.importorskip("setuptools", "77")
    clone = tmp_path_factory.mktemp("clones") / "gmfast"
    (clone / "gmfast" / "benchmarks").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "gmfast/py.typed", "gmfast/_version.py"):
        shutil.copy(ROOT / name, clone / name)
    (clone / "gmfast" / "__init__.py").write_text("")
    python("-c", BUILD, cwd=clone)
    return clone


def wheel(folder):
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.parametrize("started_in", ["the folder that holds the clone", "the clone", "elsewhere"])
def test_an_editable_install_is_found_from_every_folder(clone, started_in, tmp_path):
    with wheel(clone / "editable") as file:
        file.extractall(tmp_path / "site")
    folders = {"the folder that holds the clone": clone.parent, "the clone": clone, "elsewhere": tmp_path}
    # -S leaves out this environment's packages, of which gmfast may be one.
    code = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import gmfast; print(gmfast.__file__)"
    found = python("-S", "-c", code, cwd=folders[started_in])
    assert Path(found).resolve() == (clone / "gmfast" / "__init__.py").resolve()


def test_a_wheel_holds_the_package_alone_and_says_that_it_is_typed(clone):
    with wheel(clone / "wheel") as file:
        names = file.namelist()
    assert "gmfast/py.typed" in names
    assert all(name.startswith(("gmfast/", "gmfast-")) for name in names)
