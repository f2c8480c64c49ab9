"""A rank: reads jobs from its standard input, one JSON object a line, and answers each with one on its standard output.

    python -m bench.ddp.worker RANK RANKS INTERFACE tcp://ADDRESS:PORT

It ends with its parent, whose end of the pipe closes, in whatever it is then.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
import zlib
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from . import settings
from .tasks import TASKS

TIMEOUT = timedelta(minutes=5)
INTERFACE = "lo"
BURST = 64  # messages
PAUSE = 0.01  # seconds between single bytes, or they would fill a slow link


def traffic() -> tuple[int, int]:
    """Bytes that this rank's interface has received and sent so far; on loopback those of all processes."""
    with open("/proc/net/dev") as file:
        for line in file:
            name, _, counts = line.partition(":")
            if name.strip() == INTERFACE:
                columns = counts.split()
                return int(columns[0]), int(columns[8])
    raise ValueError(f"no interface {INTERFACE}")


class Training:
    """A model in training, from scratch, by one of the settings."""

    def __init__(self, task, setting, seed, warmup, auto):
        self.task, setting = TASKS[task], settings.named(setting)
        self.seed, self.rank, self.n, self.step = seed, dist.get_rank(), dist.get_world_size(), 0
        torch.manual_seed(seed)
        self.model = DistributedDataParallel(self.task.model(), **setting.ddp)
        self.hook = setting.attach(self.model, n=self.n, warmup=warmup, auto=auto)
        self.optimizer = self.task.optimizer(self.model.parameters())
        self.full = [group["lr"] for group in self.optimizer.param_groups]
        self.tests = self.task.share(self.task.tests(), self.rank, self.n)

    def advance(self):
        for group, rate in zip(self.optimizer.param_groups, self.full, strict=True):
            group["lr"] = rate * self.task.rate(self.step)
        batch = self.task.share(self.task.batch(self.seed, self.step), self.rank, self.n)
        self.optimizer.zero_grad()
        loss, _ = self.task.scores(self.model, batch)
        loss.backward()
        self.optimizer.step()
        self.step += 1

    @torch.no_grad()
    def tested(self):
        """(steps so far, loss, accuracy) over the tests of all ranks."""
        loss, right = self.task.scores(self.model.module, self.tests)
        rows = len(self.tests[1])
        sums = torch.tensor([loss.item() * rows, right.item() * rows, rows], dtype=torch.float64)
        dist.all_reduce(sums)
        return self.step, float(sums[0] / sums[2]), float(sums[1] / sums[2])


training = None


def begin(task, setting, seed, warmup, auto=False):
    """Start from scratch; what was there before is forgotten."""
    global training
    training = None
    training = Training(task, setting, seed, warmup, auto)


def steps(number, test_every=0):
    """So many steps more: seconds, bytes received and bytes sent of each, and the tests in between."""
    rows, tests = [], []
    dist.barrier()
    for _ in range(number):
        start, before = time.perf_counter(), traffic()
        training.advance()
        seconds, after = time.perf_counter() - start, traffic()
        rows.append((seconds, after[0] - before[0], after[1] - before[1]))
        if test_every and training.step % test_every == 0:
            tests.append(training.tested())
    seconds, received, sent = map(list, zip(*rows, strict=True))
    return {"seconds": seconds, "received": received, "sent": sent, "tests": tests}


def end():
    """The checksum of the parameters, what the hook reports, and its mode."""
    global training
    parameters = torch.cat([p.detach().flatten() for p in training.model.parameters()])
    report = training.hook.report() if hasattr(training.hook, "report") else None
    training = None
    return {
        "checksum": zlib.crc32(parameters.numpy().tobytes()),
        "report": None if report is None else str(report),
        "mode": getattr(report, "mode", None),
    }


def code(task, setting, repeats=5):
    """Seconds to encode and to decode a gradient of the task, a coordinate, while all ranks do so; and the bits of the
    message, a coordinate, where it says them."""
    task, setting = TASKS[task], settings.named(setting)
    torch.manual_seed(0)
    model = task.model()
    task.scores(model, task.share(task.batch(0, 0), 0, dist.get_world_size()))[0].backward()
    shapes = [tuple(p.shape) for p in model.parameters()]
    x = torch.cat([p.grad.flatten() for p in model.parameters()])
    encode, decode = setting.coder(shapes)
    times = []
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter()
        message = encode(x)
        middle = time.perf_counter()
        decode(message)
        times.append((middle - start, time.perf_counter() - middle))
    encoding, decoding = np.median(times[1:], axis=0) / x.numel()
    return {"encode": float(encoding), "decode": float(decoding), "bits": getattr(message, "bits", 0) / x.numel()}


def link(size, repeats=30):
    """Seconds for a byte to the next rank, half of there and back; for each of a burst of such messages; and Mbit/s of
    `size` bytes, all ranks to the next at once."""
    rank, n = dist.get_rank(), dist.get_world_size()
    byte, times = torch.zeros(1, dtype=torch.uint8), []
    for _ in range(repeats):
        time.sleep(PAUSE)
        start = time.perf_counter()
        if rank < 2:
            (dist.send if rank == 0 else dist.recv)(byte, 1 - rank)
            (dist.recv if rank == 0 else dist.send)(byte, 1 - rank)
        times.append((time.perf_counter() - start) / 2)
    dist.barrier()
    start = time.perf_counter()
    if rank < 2:
        for each in [(dist.isend if rank == 0 else dist.irecv)(byte.clone(), 1 - rank) for _ in range(BURST)]:
            each.wait()
    burst = (time.perf_counter() - start) / BURST
    data, other = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    dist.barrier()
    start = time.perf_counter()
    both = [dist.isend(data, (rank + 1) % n), dist.irecv(other, (rank - 1) % n)]
    for each in both:
        each.wait()
    rate = 8 * size / (time.perf_counter() - start) / 1e6
    return {"latency": float(np.median(times)), "overhead": burst, "rate": rate}


JOBS = {job.__name__: job for job in (begin, steps, end, code, link)}


def _lines():
    """Jobs, as they come. The process ends with its parent, even in the midst of one."""
    jobs = queue.SimpleQueue()

    def read():
        for line in sys.stdin:
            jobs.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield jobs.get()


def main(rank, n, interface, address):
    global INTERFACE
    INTERFACE = interface
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=n, timeout=TIMEOUT)
    print(json.dumps({"result": "ready"}), file=answers)
    for job in _lines():
        try:
            answer = {"result": JOBS[job.pop("job")](**job)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
