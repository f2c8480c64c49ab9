"""The jobs of test_torch_comm.py: `python torch_jobs.py NAME RANK RANKS FILE` calls the function NAME on a rank."""

import sys
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

import compress
from compress.allreduce import AllReduce
from compress.graphs import Graph
from compress.torch import Distributed

KEY = compress.Key(0)


def same_as_local():
    """Runs, rounds and reductions by Distributed() and Local(n)."""
    comm = Distributed()
    rank, n = comm.process, comm.n
    local = compress.Local(n)
    problem = compress.Quadratic.random(n=n, d=30, mu=1, L=10)
    diana = compress.DIANA.theoretical(problem, compress.RandK(0.3))
    traces = [compress.run(diana, problem, c, np.ones(30), KEY, steps=20) for c in (comm, local)]
    assert traces[0].x.tobytes() == traces[1].x.tobytes() and comm.ledger == local.ledger

    sent = [compress.RandK(0.1).encode(np.ones(50 + 10 * i), KEY.worker(i)) for i in range(n)]
    path = Graph([(i, i + 1) for i in range(n - 1)], n)
    heard, expected = comm.exchange([sent[rank]], path), local.exchange(sent, path)
    assert heard == {i: expected[i] for i in heard} and rank in heard
    assert comm.scatter(None if rank else sent) == [local.scatter(sent)[rank]]
    assert comm.gather([sent[rank]]) == (None if rank else sent) and local.gather(sent)
    rows = [[sent[(i + j) % n] for j in range(n)] for i in range(n)]
    assert comm.alltoall([rows[rank]]) == [local.alltoall(rows)[rank]]
    assert comm.agree(("said", rank)) == ("said", 0)
    tensors = comm.allgather([sent[rank]._replace(payload=torch.from_numpy(sent[rank].payload))])
    assert all(isinstance(message.payload, torch.Tensor) for message in tensors) and tensors == local.allgather(sent)
    assert comm.ledger == local.ledger

    rng = np.random.default_rng(0)
    for d in (0, 1, 2001):
        rows = rng.standard_normal((n, d)).astype(np.float32)
        for memory in ("none", "error", "shift"):
            for pattern in ("gather", "two-shot"):
                for C in (compress.Eden(2), compress.Trellis(bits=1)):
                    reduce = AllReduce(C, pattern=pattern, memory=memory)
                    mine, theirs = reduce.init(comm, d), reduce.init(local, d)
                    for t in range(2):
                        mean, mine = reduce.mean(comm, mine, [torch.from_numpy(rows[rank])], KEY.at(t))
                        same, theirs = reduce.mean(local, theirs, rows, KEY.at(t))
                        assert isinstance(mean, torch.Tensor) and mean.numpy().tobytes() == same.tobytes()
    assert comm.ledger == local.ledger


def errors():
    """What every rank sees, and can go on from."""
    comm = Distributed()
    rank, n = comm.process, comm.n
    row = np.full(100, np.nan if rank == 1 else 1.0, np.float32)
    for pattern in ("gather", "two-shot"):
        reduce = AllReduce(compress.Eden(2), pattern=pattern, memory="error")
        raises(RuntimeError, "worker 1: x has 100 NaN or Inf", reduce.mean, comm, reduce.init(comm, 100), [row], KEY)
        x = np.ones(100 + rank, np.float32)  # another d on each
        raises(
            (RuntimeError, ValueError),
            "coordinates, .* expected",
            reduce.mean,
            comm,
            reduce.init(comm, x.size),
            [x],
            KEY,
        )
    sent = compress.Identity().encode(np.ones(9), KEY)
    step = (lambda: comm.agree(0)) if rank else (lambda: comm.allgather([sent]))
    raises(RuntimeError, "ranks take different steps", step)
    graph = Graph([(0, 1), (1, 2)] if rank else [(0, 1), (0, 2)], n)
    raises(RuntimeError, "different graphs", comm.exchange, [sent], graph)
    raises(ValueError, "a message of 7 bits in 72 bytes", comm.allgather, [sent._replace(bits=7)])
    assert len(comm.allgather([sent])) == n
    first = dist.new_group([0])
    if rank:
        raises(RuntimeError, "not in the group", Distributed, first)
    else:
        assert Distributed(first).n == 1


def killed():
    """A rank ends without a word."""
    comm = Distributed()
    if comm.process == 1:
        return
    raises(RuntimeError, ".", comm.agree, 0)


def raises(kind, match, function, *arguments):
    import re

    try:
        function(*arguments)
    except kind as error:
        assert re.search(match, str(error)), str(error)
    else:
        raise AssertionError(f"{match} was not raised")


if __name__ == "__main__":
    name, rank, ranks, file = sys.argv[1:]
    torch.set_num_threads(1)
    store = dist.FileStore(file, int(ranks))
    timeout = timedelta(seconds=10 if name == "killed" else 60)
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=int(ranks), timeout=timeout)
    globals()[name]()
    print(f"rank {rank} is done")
    if name != "killed":
        dist.destroy_process_group()
