"""Every operation and module under every transform of torch, as docs/transforms.md says."""

import importlib

import pytest
import torch
from transforms import harness

import gmfast.functional as GF
import gmfast.nn as gnn

MODULES = ["transforms.operations", "transforms.modules"]
PARTS = 2  # of the subjects, for the workers to share
SUBJECTS = [(module, s) for module in MODULES for s in importlib.import_module(module).SUBJECTS]


@pytest.fixture(scope="module")
def documented():
    return {module: harness.read(module) for module in MODULES}


@pytest.mark.parametrize(("module", "subject"), SUBJECTS, ids=lambda value: getattr(value, "name", ""))
def test_in_this_process(module, subject, documented):
    found = {title: harness.outcome(title, subject) for title in harness.HERE}
    assert found == {title: documented[module][subject.name][title] for title in harness.HERE}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("module", MODULES)
def test_in_a_fresh_process(module, part, documented):
    subjects = importlib.import_module(module).SUBJECTS[part::PARTS]
    rows = {s.name: documented[module][s.name] for s in subjects}
    found = harness.in_processes(module, 1, part, PARTS)
    assert found == {name: {title: row[title] for title in harness.FRESH} for name, row in rows.items()}


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_in_two_processes(documented):
    found = harness.in_processes("transforms.modules", 2)
    rows = documented["transforms.modules"].items()
    assert found == {name: {title: row[title] for title in harness.PROCESSES} for name, row in rows}


def test_every_public_name_is_in_the_matrix(documented):
    operations = {name.split()[0] for name in documented["transforms.operations"]}
    assert operations == set(GF.__all__)
    abstract = {"BaseDistribution", "ConditionalBase", "DistributionBase", "Elementwise", "Transform"}
    parts = {"SplineFunction", "linear_spline", "quadratic_spline", "cubic_spline"}  # of the rows of Spline
    modules = set(gnn.__all__) - abstract - parts - {"naive_inverse"}
    rows = " ".join(documented["transforms.modules"])
    assert {name for name in modules if name not in rows} == set()


def test_no_cell_fails(documented):
    cells = {cell for rows in documented.values() for row in rows.values() for cell in row.values()}
    assert not [cell for cell in cells if cell.startswith("fails")]
