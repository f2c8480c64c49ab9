"""Distributed: the bits of Local on the ranks of a process group, and no rank that waits for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import compress

pytest.importorskip("torch")
from compress.torch import Distributed

JOBS = Path(__file__).with_name("torch_jobs.py")


def launch(job, ranks, folder):
    """(exit status, output) of every rank; a job that hangs is an error."""
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(compress.__file__).parents[1]),
    }
    command = [sys.executable, str(JOBS), job]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(folder / "store")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=150)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


@pytest.mark.parametrize(("job", "ranks"), [("same_as_local", 3), ("counts", 3), ("errors", 3), ("killed", 2)])
def test_job(job, ranks, tmp_path):
    for rank, (status, said) in enumerate(launch(job, ranks, tmp_path)):
        assert status == 0 and f"rank {rank} is done" in said, said


def test_it_needs_a_process_group():
    with pytest.raises(RuntimeError, match="there is no process group"):
        Distributed()
