"""MPI: the bits of Local on one rank and on two, and no job that hangs."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import pytest

import compress

JOBS = Path(__file__).with_name("mpi_jobs.py")


def mpiexec():
    """The launcher of this environment, or of this machine."""
    found = shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")
    if not found or not importlib.util.find_spec("mpi4py"):
        pytest.skip('needs mpi4py and mpiexec: pip install "compress-kernels[mpi]"')
    return found


def launch(job, ranks=2, options=(), module=True):
    """A job of mpi_jobs.py, ended after a minute; a job that hangs is an error."""
    command = [mpiexec(), *options, "-n", str(ranks), sys.executable, *(["-m", "mpi4py"] if module else [])]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(compress.__file__).parents[1])}
    return subprocess.run(
        [*command, JOBS, job],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_iterates_trace_and_ledger_are_those_of_local(ranks):
    job = launch("same_as_local", ranks)
    assert job.returncode == 0, job.stderr
    hosted = ["range(0, 5)"] if ranks == 1 else ["range(0, 2)", "range(2, 5)"]
    for rank, workers in enumerate(hosted):
        assert f"rank {rank} of {ranks} has workers {workers}" in job.stdout


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_neighbours_hear_what_they_do_on_local(ranks):
    job = launch("neighbours", ranks)
    assert job.returncode == 0, job.stderr
    for rank in range(ranks):
        assert f"rank {rank} of {ranks} has heard its neighbours" in job.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_clients_on_ranks_train_to_the_bits_of_local(ranks):
    pytest.importorskip("torch")
    job = launch("federated", ranks)
    assert job.returncode == 0, job.stderr
    for rank, clients in enumerate(["[0, 1, 2, 3, 4]"] if ranks == 1 else ["[0, 1]", "[2, 3, 4]"]):
        assert f"rank {rank} of {ranks} has trained clients {clients}" in job.stdout


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_reductions_are_those_of_local(ranks):
    job = launch("reductions", ranks)
    assert job.returncode == 0, job.stderr
    assert all(f"rank {rank} has heard why" in job.stdout for rank in range(ranks))


def test_payloads_travel_to_ranks_of_neighbours_alone():
    job = launch("silent", 3)
    assert job.returncode == 0, job.stderr
    assert all(f"rank {rank} is done" in job.stdout for rank in range(3))


def test_a_mismatch_is_an_error_on_every_rank():
    job = launch("errors_on_both_ranks")
    assert job.returncode == 0, job.stderr
    assert "rank 0 has seen all" in job.stdout and "rank 1 has seen all" in job.stdout


@pytest.mark.parametrize("module", [True, False], ids=["with -m mpi4py", "without"])
def test_an_exception_ends_the_job_with_its_message(module):
    job = launch("worker_error", module=module)
    assert job.returncode != 0
    assert "the first hook" in job.stderr
    assert "ValueError: x has 1 NaN or Inf among 2 elements" in job.stderr


def test_another_method_on_one_rank_is_named():
    job = launch("another_method")
    assert job.returncode != 0
    assert "ValueError: every process must make the same run: method is DIANA" in job.stderr


def test_other_data_on_one_rank_are_noticed():
    job = launch("other_data")
    assert job.returncode != 0
    assert "ValueError: every process must have the same data, but f + R is" in job.stderr


def test_a_killed_rank_ends_the_job():
    assert launch("killed").returncode != 0


@pytest.mark.parametrize("name", ["dies", "neighbour_dies"])
def test_a_dead_rank_is_noticed_without_the_launcher(name):
    version = subprocess.run([mpiexec(), "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    if "HYDRA" not in version:
        pytest.skip("needs MPICH's mpiexec, which can be told to leave the others alone")
    job = launch(name, options=["-disable-auto-cleanup"])
    assert job.returncode != 0
    assert "RuntimeError: rank 1 has died" in job.stderr


def test_a_rank_that_ends_early_ends_the_job():
    job = launch("ends_early")
    assert job.returncode != 0
    assert "RuntimeError: rank 1 has ended while rank 0 waits for its messages" in job.stderr
    assert "told again" in job.stdout


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_may_end_after_another(ranks):
    job = launch("ends_late", ranks)
    assert job.returncode == 0, job.stderr
    assert all(f"rank {rank} is done" in job.stdout for rank in range(ranks))


def test_a_rank_that_ends_early_ends_the_job_whichever_communicator_is_waited_on():
    job = launch("ends_early_on_one_of_two")
    assert job.returncode != 0
    assert "RuntimeError: rank 1 has ended while rank 0 waits for its messages" in job.stderr


def test_ranks_may_exit_and_finalize_as_scripts_do():
    assert launch("exits").returncode == 3
    assert launch("finalizes", 3).returncode == 0


def test_messages_of_the_scripts_own_stay_apart():
    job = launch("own_messages", 3)
    assert job.returncode == 0 and "done" in job.stdout, job.stderr


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r'mpi4py.*pip install "compress-kernels\[mpi\]"'):
        compress.MPI(2)

    class NoLibrary(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("cannot load MPI library\nlibmpi.so: cannot open")

    monkeypatch.setitem(sys.modules, "mpi4py", NoLibrary("mpi4py"))
    with pytest.raises(ImportError, match=r'\(cannot load MPI library\): pip install "compress-kernels\[mpi\]"'):
        compress.MPI(2)
