"""The jobs of test_torch_comm.py: `python torch_jobs.py NAME RANK RANKS FILE` calls the function NAME on a rank."""

import itertools
import os
import sys
from datetime import timedelta
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist

import compress
from compress.allreduce import AllReduce, Refused
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
    for d, comm.agreed in ((0, False), (1, True), (2001, False), (0, True), (1, False), (2001, True)):
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
    rows = rng.standard_normal((n, 2001)).astype(np.float32)
    for pattern in ("gather", "two-shot"):
        reduce = compress.PowerIteration(3, pattern=pattern).of([(40, 50), (1,)])
        mine, theirs = reduce.init(comm, 2001), reduce.init(local, 2001)
        for t in range(3):
            mean, mine = reduce.mean(comm, mine, [torch.from_numpy(rows[rank])], KEY.at(t))
            same, theirs = reduce.mean(local, theirs, rows, KEY.at(t))
            assert mean.numpy().tobytes() == same.tobytes() and mine.shared.tobytes() == theirs.shared.tobytes()
    assert comm.ledger == local.ledger


def expectations():
    """Payloads that are shorter or longer than expected arrive as they are, in one exchange or in two."""
    comm, exchanges, swap = Distributed(), [0], dist.all_to_all_single
    n, local, rng = comm.n, compress.Local(comm.n), np.random.default_rng(0)
    comm.agreed = True

    def counted(*args, **named):
        exchanges[0] += 1
        return swap(*args, **named)

    def message(length):
        return compress.Message(rng.integers(0, 256, length, np.uint8), 8 * length, 2 * length, np.dtype(np.float32))

    dist.all_to_all_single = counted
    for lengths, more in (([7] * n, 0), ([0] * n, 0), ([9, 8, 300][:n], 0), ([7, 11, 7][:n], 1), ([500] * n, 1)):
        for expected in (lengths, [9 if length == 7 else length for length in lengths]):
            expected = [min(length, 300) - (length == 11) for length in expected]
            sent = [message(length) for length in lengths]
            rows = [[message(length) for length in lengths] for _ in range(n)]
            exchanges[0] = 0
            assert comm.allgather([sent[comm.process]], expected) == local.allgather(sent)
            assert exchanges[0] == 1 + more
            assert comm.alltoall([rows[comm.process]], expected) == [local.alltoall(rows)[comm.process]]
            assert exchanges[0] == 2 * (1 + more)
    assert comm.ledger == local.ledger
    dist.all_to_all_single = swap


def counts():
    """What a rank has received is what torch has carried to it from others."""
    comm, swap, carried = Distributed(), dist.all_to_all_single, [0]

    def watched(output, sent, expected=None, lengths=None, group=None):
        parts = output.tensor_split(comm.n) if expected is None else output.split(expected)
        carried[0] += sum(part.nbytes for j, part in enumerate(parts) if j != comm.process)
        return swap(output, sent, expected, lengths, group)

    dist.all_to_all_single = watched
    for pattern in ("gather", "two-shot"):
        reduce = AllReduce(compress.Eden(2), pattern=pattern)
        reduce.mean(comm, reduce.init(comm, 1000), [np.ones(1000, np.float32)], KEY)
        comm.agree("a word")
    dist.all_to_all_single = swap
    assert comm.received == carried[0] > comm.ledger.wire_down / comm.n > 0


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
    comm.agreed = True  # what is said in place of a message has its length, 29 bytes with Eden, or less
    for pattern in ("gather", "two-shot"):
        reduce = AllReduce(compress.Eden(2), pattern=pattern, memory="error")
        raises(Refused, "worker 1: x has", reduce.mean, comm, reduce.init(comm, 100), [row], KEY)
    comm.agreed = False
    fails_alone(comm)
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


class Fails(compress.Eden):
    """Eden, which on rank 1 has no memory for some vectors."""

    size: ClassVar[int]

    def _encode(self, x, key, out):
        if dist.get_rank() == 1 and x.size == self.size:
            raise MemoryError("no room")
        return super()._encode(x, key, out)


def fails_alone(comm):
    """Whatever a rank fails of before an exchange all others are told in it, and all can go on."""
    rank, row = comm.process, np.ones(100, np.float32)
    bad = rank == 1
    low = compress.PowerIteration(2, Fails(4), "gather").of([(10, 10)])
    state = low.init(comm, 100)
    for size in (0, 20):  # before the left factor, and in one of the encoders
        Fails.size, given = size, [row[bad:]] if size == 0 else [row]
        reason = r"ValueError: 1 rows of \[99\]" if size == 0 else "MemoryError: no room"
        raises(Refused, f"worker 1: {reason}", low.mean, comm, state, given, KEY)
    for pattern, memory in itertools.product(("gather", "two-shot"), ("none", "error")):
        reduce = AllReduce(compress.Eden(2), pattern=pattern, memory=memory)
        down = AllReduce(compress.Eden(3), Fails(2), pattern=pattern, memory=memory)
        up = AllReduce(Fails(2), pattern=pattern, memory=memory)
        state = reduce.init(comm, 100)
        for each, arguments, size, cause, reason in (
            (reduce, ([row] * (1 + bad), KEY), 0, ValueError, "2 rows, of 1 workers hosted here"),
            (reduce, ([row[bad:]], KEY), 0, ValueError, r"rows of \[99\]"),
            (reduce, ([row], KEY, np.empty(100 - bad, np.float32)), 0, ValueError, "out has 99 elements"),
            (up, ([row], KEY), 100 if pattern == "gather" else 34, MemoryError, "no room"),  # slices have 33, 33, 34
            (down, ([row], KEY), 33, MemoryError, "no room"),
        ):
            if (reason.startswith("rows") and memory == "none") or (each is down and pattern == "gather"):
                continue
            Fails.size = size
            error = raises(Refused, f"worker 1: {cause.__name__}: {reason}", each.mean, comm, state, *arguments)
            assert isinstance(error.__cause__, cause) if bad else error.__cause__ is None
        x = row.astype(np.float64) if bad else row
        raises((ValueError, Refused), "float64.* are expected", reduce.mean, comm, reduce.init(comm, like=x), [x], KEY)
        x = np.ones(101 if bad else 100, np.float32)  # of a refusal all hear, whatever else they see
        x[:2] = np.nan if rank == 2 else 1
        raises(Refused, "worker 2: x has 2 NaN", reduce.mean, comm, reduce.init(comm, like=x), [x], KEY)
        assert comm.agree(7) == 7
        mean, _ = reduce.mean(comm, state, [row], KEY)
        assert np.sum((mean - 1) ** 2) < 0.2 * 100


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
        return error
    raise AssertionError(f"{match} was not raised")


if __name__ == "__main__":
    name, rank, ranks, file = sys.argv[1:]
    torch.set_num_threads(1)
    store = dist.FileStore(file, int(ranks))
    timeout = timedelta(seconds=10 if name == "killed" else 60)
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=int(ranks), timeout=timeout)
    globals()[name]()
    print(f"rank {rank} is done", flush=True)
    if name == "killed":
        os._exit(0)  # torch may abort where a group is left behind
    dist.destroy_process_group()
