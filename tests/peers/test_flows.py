"""nflows' and zuko's own tests of their transforms, whose splines and affine maps gmfast computes.

adapted_flows.py has the adapters. The wheels hold no tests: GMFAST_NFLOWS_TESTS and GMFAST_ZUKO_TESTS are the
folders `tests` of checkouts. nflows' need the package torchtestcase. `python tests/peers/test_flows.py` also
writes the counts to docs/migration.md.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "migration.md"
MARKED = re.compile(r"(<!-- flow_tests: .*? -->\n).*?(<!-- end of flow_tests -->)", re.DOTALL)

#: By peer, the files of its tests that are run, and the packages they need.
PEERS = {
    "nflows": (
        [
            "transforms/splines/rational_quadratic_test.py",
            "transforms/coupling_test.py",
            "transforms/autoregressive_test.py",
        ],
        ("nflows", "torchtestcase"),
    ),
    "zuko": (["test_transforms.py"], ("zuko",)),
}

pytestmark = pytest.mark.peers


def outcomes(peer, tests, adapt):
    """Outcomes of a peer's tests by node id, and calls by adapter, from a process of its own."""
    tests = Path(tests).resolve()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.json"
        paths = [str(ROOT), str(Path(__file__).parent), str(tests.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "GMFAST_OUTCOMES": str(file),
            "GMFAST_ADAPT": str(int(adapt)),
            "GMFAST_PEER": peer,
        }
        command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
        command += ["-p", "adapted_flows", f"--rootdir={tests.parent}", "-c", os.devnull]
        command += [str(tests / name) for name in PEERS[peer][0]]
        run = subprocess.run(command, cwd=tests.parent, env=environment, capture_output=True, text=True)
        assert file.exists(), run.stdout[-2000:] + run.stderr[-2000:]
        return json.loads(file.read_text())


def compared(peer):
    """Tests that pass with the peer alone, those of them that fail through the adapters, and the calls."""
    tests = os.environ.get(f"GMFAST_{peer.upper()}_TESTS")
    missing = [name for name in PEERS[peer][1] if importlib.util.find_spec(name) is None]
    if tests is None or missing:
        needs = (
            f"the package {missing[0]}"
            if missing
            else f"GMFAST_{peer.upper()}_TESTS, the folder of its tests"
        )
        pytest.skip(f"{peer}: needs {needs}")
    plain, adapted = (outcomes(peer, tests, adapt) for adapt in (False, True))
    passing = [node for node, outcome in plain["outcomes"].items() if outcome == "passed"]
    return passing, [node for node in passing if adapted["outcomes"].get(node) != "passed"], adapted["calls"]


@pytest.mark.parametrize("peer", PEERS)
def test_what_passes_alone_passes_through_the_adapters(peer):
    passing, failing, calls = compared(peer)
    assert passing and not failing
    assert {name.split()[-1] for name in calls} == {"affine", "spline"}


def main():
    """Write the counts of both peers between the comments in docs/migration.md."""
    lines = [
        "| library | its tests that pass | pass with gmfast inside | calls of gmfast |",
        "|---|--:|--:|--:|",
    ]
    for peer in PEERS:
        passing, failing, calls = compared(peer)
        lines.append(f"| {peer} | {len(passing)} | {len(passing) - len(failing)} | {sum(calls.values())} |")
    table = "\n".join(lines)
    PAGE.write_text(MARKED.sub(rf"\1{table}\n\2", PAGE.read_text()))
    print(table)


if __name__ == "__main__":
    main()
