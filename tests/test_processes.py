"""Training in several processes: the numbers of one process, and how such a job ends."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import process_cases
import pytest
import torch
from safetensors.torch import load_file

from gmfast.models import MODELS
from gmfast.training import Trainer

TESTS = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    "GLOO_SOCKET_IFNAME": "lo",
}
CASES = [*process_cases.TRAINED, "stream", "players"]

#: Cases that are no slow tests, for each mechanism: initialisation by data, drawn noise, dropout, averages,
#: sequences, several players.
USUAL = ("ddpm", "glow", "maf", "pixelcnnpp", "wavenet", "accumulate", "augment", "stream", "players")

#: Cases that other tests than theirs look at.
NEEDED = ("ddpm", "made", "accumulate")

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without torch.distributed"
)


def torchrun(*arguments, processes=2, restarts=0):
    """The command of a job on this machine."""
    options = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "--rdzv-backend=c10d"]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *options,
        "--rdzv-endpoint=localhost:0",
        *arguments,
    ]


def gmfast(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "gmfast", *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        **options,
    )


def selected(items):
    """Cases of the tests that are to run."""
    chosen = {*NEEDED}
    for item in items:
        if item.path == Path(__file__) and hasattr(item, "callspec"):
            chosen.add(item.callspec.params.get("case"))
    return [case for case in CASES if case in chosen]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """The same runs in this process and in two others, some of them begun here and continued there."""
    chosen = selected(request.session.items)
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setitem(MODELS, "gan", process_cases.GAN)
        process_cases.prepare(one)
        process_cases.prepare(two)
        for case in chosen:
            process_cases.run(case, one)
        process_cases.run("begin-ddpm", two)
        (two / "begin-ddpm").rename(two / "begun")
    sharded = [f"shard-{case}" for case in process_cases.SHARDED if case in chosen]
    cases = [*chosen, *sharded, "continue-begun", "begin-made"]
    job = subprocess.run(
        torchrun(TESTS / "process_cases.py", two, *cases),
        env=ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert job.returncode == 0, job.stderr[-4000:]
    assert "Grad strides" not in job.stderr and "find_unused_parameters" not in job.stderr
    return one, two


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_close_runs(run, other):
    """To the rounding of float32, which Adam's first steps magnify."""
    lines, others = metrics(run), metrics(other)
    assert [line["step"] for line in lines] == [line["step"] for line in others] and len(lines) > 3
    for line, another in zip(lines, others, strict=True):
        assert line.keys() - {"heldout"} == another.keys() - {"heldout"}
        for name in line.keys() & another.keys() - {"seconds", "items_per_second"}:
            assert line[name] == pytest.approx(another[name], rel=2e-4, abs=2e-5), name
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = load_file(run / "last" / name), load_file(other / "last" / name)
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in USUAL else [pytest.mark.slow]) for case in CASES]
)
def test_two_processes_have_the_numbers_of_one(runs, case):
    """Data-dependent initialisation, dropout, noise, averages, losses and held-out figures."""
    one, two = runs
    assert_close_runs(one / case, two / case)
    assert not list((two / case).glob(".*"))


@pytest.mark.parametrize("case", process_cases.SHARDED)
def test_divided_weights(runs, case):
    """FSDP2: begun, resumed, and its checkpoints are those of other runs."""
    one, two = runs
    assert_close_runs(one / case, two / f"shard-{case}")
    trainer = Trainer.resume(two / f"shard-{case}")
    assert trainer.step == 4 and {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    trainer.fit(5, progress=False)


def test_any_number_of_processes_continues_a_run(runs):
    one, two = runs
    assert_close_runs(one / "ddpm", two / "begun")  # begun by one, continued by two
    process_cases.small(Trainer.resume(two / "begin-made")).fit(4, progress=False)
    assert_close_runs(one / "made", two / "begin-made")


def test_accumulated_parts_have_the_numbers_of_whole_batches(runs):
    one, two = runs
    assert_close_runs(one / "ddpm", one / "accumulate")
    assert_close_runs(one / "ddpm", two / "accumulate")


TINY = ["--set=nr_resnet=1", "--set=nr_filters=4", "--batch-size=8", "--checkpoint-every=3", "--device=cpu"]


def test_the_command_starts_processes_and_says_once_what_is_wrong(tmp_path):
    done = gmfast("train", "pixelcnnpp", *TINY, "--steps=4", "--processes=2", f"--out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished at step 4") == 1 and "2 processes" in done.stderr
    assert len(metrics(tmp_path / "run")) == 4
    wrong = gmfast(
        "train", "pixelcnnpp", *TINY, "--batch-size=9", "--processes=2", f"--out={tmp_path / 'no'}"
    )
    assert wrong.returncode == 2 and not (tmp_path / "no").exists()
    assert wrong.stderr.count("batch_size: expected a multiple of 2") == 1 and "Traceback" not in wrong.stderr


@contextmanager
def started(*command):
    """A job, killed at the end whatever happens."""
    job = subprocess.Popen(
        list(map(str, command)),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield job
    finally:
        for pid in [*children(job.pid), job.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_for(run, lines, job):
    path, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < lines:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_and_torchrun_restarts_it(tmp_path):
    run = tmp_path / "run"
    command = ["-m", "gmfast", "train", "pixelcnnpp", *TINY, "--steps=100000", f"--out={run}"]
    with started(*torchrun(*command, restarts=1)) as job:
        wait_for(run, 4, job)
        os.kill(children(job.pid)[1], signal.SIGKILL)
        time.sleep(1)
        wait_for(run, len(metrics(run)) + 4, job)  # restarted from the last checkpoint
        begun = time.monotonic()
        os.kill(children(job.pid)[1], signal.SIGKILL)
        _, error = job.communicate(timeout=120)
        assert job.returncode != 0 and time.monotonic() - begun < 60
    steps = [line["step"] for line in metrics(run)]
    assert steps == list(range(1, len(steps) + 1))
    assert "processes: expected all of the job to go on" in error
    assert Trainer.resume(run).step >= 3


@pytest.mark.slow
def test_ctrl_c_ends_the_step_of_all_processes_and_saves(tmp_path):
    run = tmp_path / "run"
    command = [
        "-m",
        "gmfast",
        "train",
        "pixelcnnpp",
        *TINY,
        "--steps=100000",
        "--processes=2",
        f"--out={run}",
    ]
    with started(sys.executable, *command) as job:
        wait_for(run, 4, job)
        os.killpg(job.pid, signal.SIGINT)
        out, error = job.communicate(timeout=120)
        assert job.returncode == 130, error
    step = Trainer.resume(run).step
    assert f"stopped at step {step}" in out and len(metrics(run)) == step and "Traceback" not in error
