"""DDPHook and FSDPHook: real processes on gloo, every job of which ends or is an error."""

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from backends import use

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")

import compress  # noqa: E402
from compress.torch import DDPHook, FSDPHook  # noqa: E402
from compress.torch.hook import Report  # noqa: E402

JOBS = Path(__file__).with_name("ddp_jobs.py")


def launch(jobs, folder, ranks=2, seconds=200):
    """[(exit status, output) of each rank] of jobs; one that hangs is an error."""
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(compress.__file__).parents[1]),
    }
    started, ended = [], []
    for rank in range(ranks):
        output = open(folder / f"rank{rank}", "w+")
        command = [sys.executable, JOBS, jobs, str(rank), str(ranks), folder / "store"]
        started.append(
            (subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment), output)
        )
    until = time.monotonic() + seconds
    try:
        for process, _ in started:
            process.wait(max(0.1, until - time.monotonic()))
    finally:
        for process, output in started:
            process.kill()
            process.wait()
            output.seek(0)
            ended.append((process.returncode, output.read()))
            output.close()
    return ended


@pytest.mark.parametrize(
    ("jobs", "ranks"),
    [
        ("trains,exact,together,dense,interrupted", 2),
        ("refuses,misused,switches,several_tasks,goes_on,power,sharded", 2),
        ("nothing_is_lost,group_of_some,replicated", 4),
    ],
)
def test_on_several_ranks(jobs, ranks, tmp_path):
    for rank, (status, output) in enumerate(launch(jobs, tmp_path, ranks)):
        assert status == 0 and f"rank {rank} is done" in output, output


@pytest.mark.parametrize("job", ["killed", "killed_while_dense", "stalls"])
def test_who_is_left_is_told(job, tmp_path):
    told = launch(job, tmp_path)
    for status, output in told if job == "stalls" else told[:1]:
        assert status == 7 and "noticed" in output, output


@pytest.mark.parametrize("job", ["on_a_gpu", "sharded_on_a_gpu"])
def test_ranks_that_share_a_gpu(job, tmp_path):
    use("gpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU for this build of torch")
    for rank, (status, output) in enumerate(launch(job, tmp_path)):
        assert status == 0 and f"rank {rank} is done" in output, output


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_alone_nothing_travels(alone):
    model = torch.nn.Linear(64, 32)
    plain = torch.nn.Linear(64, 32)
    plain.load_state_dict(model.state_dict())
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    hook = DDPHook(compress.ScaledSign(), warmup_steps=0, pattern="gather")
    hook.register(ddp)
    x = torch.randn(3, 64)
    x[0, 0] = torch.nan  # what DDP does with it
    for each in (plain, ddp):
        each(x).square().sum().backward()
    assert torch.equal(plain.weight.grad[:, 1:].isnan(), model.weight.grad[:, 1:].isnan())
    assert torch.equal(plain.bias.grad.nan_to_num(), model.bias.grad.nan_to_num())
    assert hook.report().mode == "one rank" and hook.comm.ledger.messages == 0
    again = DDPHook(compress.ScaledSign(), warmup_steps=0, pattern="gather")
    again.register(torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 32)))
    again.load_state_dict(hook.state_dict())


def test_a_hook_leaves_no_thread(alone):
    def made():
        hook = DDPHook(compress.ScaledSign(), warmup_steps=0)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 32))
        hook.register(model)
        hook._thread.submit(int).result()
        assert any(thread.name.startswith("DDPHook") for thread in threading.enumerate())

    made()
    gc.collect()
    until = time.monotonic() + 20
    while any(thread.name.startswith("DDPHook") for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"compressor": "sign"}, TypeError, "compressor must be a Compressor"),
        ({"down": 3}, TypeError, "down must be a Compressor"),
        ({"compressor": compress.PowerSGD(2, (8, 8)), "down": None}, ValueError, "must be the same.*PowerSGD"),
        ({"down": compress.PowerSGD(2, (8, 8))}, ValueError, "must be the same.*PowerSGD"),
        ({"decay": 1.5}, ValueError, "decay must be in"),
        ({"pattern": "ring"}, ValueError, "pattern must be one of auto, gather, two-shot"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0, got -1"),
        ({"warmup_steps": 2.5}, TypeError, "warmup_steps must be an integer"),
        ({"min_size": -1}, ValueError, "min_size must be at least 0"),
        ({"dense": torch.int8}, TypeError, "dense must be a floating-point torch.dtype, got torch.int8"),
        ({"dense": "bfloat16"}, TypeError, "dense must be a floating-point torch.dtype, got 'bfloat16'"),
        ({"nonfinite": "skip"}, ValueError, "nonfinite must be one of raise, propagate, got 'skip'"),
        ({"seed": -1}, ValueError, "seed must lie in"),
    ],
)
def test_parameters_are_checked(options, error, match):
    kinds = [DDPHook] if options.keys() & {"down", "pattern"} else [DDPHook, FSDPHook]
    for kind in kinds:
        with pytest.raises(error, match=match):
            kind(**({"compressor": compress.ScaledSign()} | options))


def test_nothing_to_tell_before_a_hook_has_a_model():
    for kind in (DDPHook, FSDPHook):
        for method in ("report", "state_dict"):
            with pytest.raises(RuntimeError, match=f"{kind.__name__}: register the hook first"):
                getattr(kind(compress.ScaledSign()), method)()


def test_reports_read_as_sentences():
    report = Report("compressed", 30, 1000, 900, 1.5, 48.0, 200.0, 0.1, 0.2, 0.3, 0.4, 2.0, 1.0)
    assert report.ratio == 32
    assert str(report).splitlines() == [
        "compressed, 30 compressed steps",
        "received: 1.500 bits a parameter, 32.0 times less than float32 (900 of 1000 parameters travel compressed)",
        "seconds a step: encode 0.1000, decode 0.2000, wait 0.3000, dense part 0.4000",
        "from step to step: 1.0000 s compressed, 2.0000 s dense",
    ]
    nothing = Report("warm-up", 0, 1000, 900, 0.0, 48.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert str(nothing) == "warm-up, 0 compressed steps" and nothing.ratio != nothing.ratio
