"""Distributed: the bits of Local on the ranks of a process group, and no rank that waits for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from backends import use

import compress

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
from compress.torch import Distributed  # noqa: E402

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


@pytest.mark.parametrize(
    ("job", "ranks"), [("same_as_local", 3), ("expectations", 3), ("counts", 3), ("errors", 3), ("killed", 2)]
)
def test_job(job, ranks, tmp_path):
    for rank, (status, said) in enumerate(launch(job, ranks, tmp_path)):
        assert status == 0 and f"rank {rank} is done" in said, said


def test_it_needs_a_process_group():
    with pytest.raises(RuntimeError, match="there is no process group"):
        Distributed()


@pytest.mark.parametrize("agreed", [False, True])
def test_payloads_on_a_gpu_travel_by_nccl(agreed, tmp_path):
    """One rank, as NCCL takes one for a GPU: what it sends to itself goes where it would go to others."""
    use("gpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU for this build of torch")
    device, key, d = torch.device("cuda", 0), compress.Key(0), 12_000
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, device_id=device)
    try:
        comm, local = Distributed(), compress.Local(1)
        rows = torch.randn(3, d, generator=torch.Generator(device).manual_seed(0), device=device)
        comm.agreed = agreed
        for C in (compress.Eden(2), compress.Trellis(bits=1), compress.ChunkTopK(64, 4)):
            for reduce in (
                compress.AllReduce(C, pattern="two-shot", memory="error"),
                compress.AllReduce(C, pattern="gather", memory="shift"),
                compress.PowerIteration(3, C).of([(100, 70), (50, 100)]),
            ):
                mine, theirs = (reduce.init(each, like=rows[0]) for each in (comm, local))
                for t, row in enumerate(rows):
                    mean, mine = reduce.mean(comm, mine, [row], key.at(t))
                    same, theirs = reduce.mean(local, theirs, [row], key.at(t))
                    assert mean.device == device and torch.equal(mean, same)
        assert comm.ledger == local.ledger and comm.agree("a word") == "a word"
    finally:
        dist.destroy_process_group()
