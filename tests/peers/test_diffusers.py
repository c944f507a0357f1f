"""diffusers' own tests of its schedulers, with every scheduler that they construct accelerated.

They are not in its wheel: GMFAST_DIFFUSERS_TESTS is the folder `tests` of a checkout of diffusers, whose
version need not be the installed one. `python tests/peers/test_diffusers.py` also writes what they found to
docs/results/diffusers_tests.csv and docs/diffusers.md.
"""

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "diffusers_tests.csv"
PAGE = ROOT / "docs" / "diffusers.md"
MARKED = re.compile(r"(<!-- diffusers_tests: .*? -->\n).*?(<!-- end of diffusers_tests -->)", re.DOTALL)

pytestmark = pytest.mark.peers


def outcomes(tests, selected=("schedulers",), accelerate=True):
    """Run tests of diffusers in a process of their own.

    Args:
        tests: the folder `tests` of a checkout.
        selected: files, folders or node ids, from there.
        accelerate: whether schedulers are accelerated when they are constructed.

    Returns:
        Outcomes by node id, and numbers of accelerated and of refused schedulers by class.
    """
    tests = Path(tests).resolve()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.json"
        paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "GMFAST_OUTCOMES": str(file),
            "GMFAST_ACCELERATE": str(int(accelerate)),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
        command += ["-p", "accelerated_schedulers", "-k", "not PushToHub", f"--rootdir={tests.parent}"]
        command += [str(tests / name) for name in selected]
        run = subprocess.run(command, cwd=tests.parent, env=environment, capture_output=True, text=True)
        assert file.exists(), run.stdout[-2000:] + run.stderr[-2000:]
        return json.loads(file.read_text())


def broken(tests, found):
    """Return the tests that fail only where schedulers are accelerated; some need a network, or more."""
    failed = [node.removeprefix("tests/") for node, what in found["outcomes"].items() if what == "failed"]
    if not failed:
        return []
    anyway = outcomes(tests, failed, accelerate=False)["outcomes"]
    return [node for node in failed if anyway[f"tests/{node}"] != "failed"]


def test_diffusers_own_tests_pass_with_every_scheduler_accelerated():
    pytest.importorskip("diffusers")
    tests = os.environ.get("GMFAST_DIFFUSERS_TESTS")
    if not tests:
        pytest.skip("GMFAST_DIFFUSERS_TESTS names no folder of diffusers' tests, which its wheel lacks")
    found = outcomes(tests)
    assert len(found["accelerated"]) > 25
    assert broken(tests, found) == []


def write(found):
    """Write a line for each file of tests, and their sum into the page."""
    counts = {}
    for node, what in found["outcomes"].items():
        file = Path(node.partition("::")[0]).stem
        counts.setdefault(file, Counter())[what] += 1
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tests", "passed", "failed", "skipped"])
        for name, count in sorted(counts.items()):
            writer.writerow([name, *(count[what] for what in ("passed", "failed", "skipped"))])
    total = sum(counts.values(), Counter())
    schedulers = sum(found["accelerated"].values())
    line = (
        f"diffusers' own tests of its schedulers, with the {schedulers} schedulers of"
        f" {len(found['accelerated'])} classes\nthat they construct accelerated: {total['passed']} pass,"
        f" {total['failed']} fail with diffusers' own steps too (they need its hub), {total['skipped']} are"
        f" skipped\n([by file](results/diffusers_tests.csv), `tests/peers/test_diffusers.py`).\n"
    )
    PAGE.write_text(MARKED.sub(lambda match: match[1] + line + match[2], PAGE.read_text()))


if __name__ == "__main__":
    folder = os.environ["GMFAST_DIFFUSERS_TESTS"]
    results = outcomes(folder)
    assert broken(folder, results) == []
    write(results)
