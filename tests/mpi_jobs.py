"""The jobs of test_mpi.py: `mpiexec -n 2 python -m mpi4py mpi_jobs.py NAME` calls the function NAME on every rank."""

import atexit
import importlib.util
import os
import re
import signal
import sys
import tempfile
import time

import numpy as np
from cuda_on_cpu import cupy_on_cpu

import compress
from compress._gpu import device
from compress.allreduce import AllReduce
from compress.graphs import Graph, Network
from compress.optimizers.adom import ADOM

KEY = compress.Key(0)


def same_as_local():
    """Runs and rounds of messages by MPI(n) and Local(n), whatever the number of ranks."""
    problem = compress.Quadratic.random(n=5, d=30, mu=1, L=10)
    randk, dithering, topk = compress.RandK(0.3), compress.StandardDithering(3), compress.TopK(0.1)
    diana = compress.DIANA.theoretical(problem, randk)
    for method, dtype in (
        (diana, np.float64),
        (diana, np.float32),
        (compress.RandDIANA.theoretical(problem, dithering), np.float64),
        (compress.GDCI.theoretical(problem, randk), np.float64),
        (compress.VRGDCI.theoretical(problem, dithering), np.float64),
        (compress.MARINA.theoretical(problem, randk), np.float64),
        (compress.EF14.theoretical(problem, topk), np.float64),
        (compress.EF21.theoretical(problem, topk), np.float64),
    ):
        comm, local = compress.MPI(5), compress.Local(5)
        x0 = np.ones(30, dtype)
        trace, expected = (compress.run(method, problem, c, x0, KEY, steps=40) for c in (comm, local))
        assert trace.x.dtype == dtype and trace.error[-1] < trace.error[0]
        same(trace, expected)
        assert comm.ledger == local.ledger
    goes_on(problem, diana)
    rounds_of_any_length(comm, local)
    kinds_of_arrays(comm)
    assert comm.agree(("said", comm.process)) == ("said", 0)
    assert comm.agree(None) is None
    share = len(comm.workers)
    assert (comm.processes, share) == (1, 5) or share in (2, 3)
    assert (sys.excepthook is sys.__excepthook__) == (comm.processes == 1)
    print(f"rank {comm.process} of {comm.processes} has workers {comm.workers}")


def federated():
    """Federated averaging, a mixture too, with clients that drop and fail, by MPI(5) and Local(5); and gone on with."""
    import torch

    from compress.federated import FedAvg, Links, LocalTraining
    from compress.federated.models import SmallCNN

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    shards = [(rng.random((9 + i, 1, 8, 8), np.float32), rng.integers(3, size=9 + i)) for i in range(5)]
    shards[3][1][0] = 7  # a label that the model has not
    torch.manual_seed(0)
    model = SmallCNN(1, 3, width=4, norm="batch")
    training = LocalTraining(batch=4, momentum=0.9, milestones=2)
    links = Links(compress.Kashin(3), compress.Eden(1), "shift")

    def make(comm, mixture):
        return FedAvg(
            model, shards, training, links, comm, sample=4, mixture=mixture, drops=lambda r, i: (r + i) % 4 == 0
        )

    for mixture in (None, 1.0):
        fed, local = (make(comm, mixture) for comm in (compress.MPI(5), compress.Local(5)))
        comm, rows = fed.comm, []
        rows = fed.run(3)
        resumed = make(compress.MPI(5), mixture)
        resumed.load_state_dict(fed.state_dict())
        rows += fed.run(2)
        expected = local.run(5)
        assert [row._replace(seconds=0) for row in rows] == [row._replace(seconds=0) for row in expected]
        assert any(row.left_out for row in rows) and any("to 7, the model" in str(row) for row in rows)
        assert comm.ledger == local.comm.ledger
        assert list(fed.clients) == list(comm.workers)
        resumed.run(2)
        for other in (fed, resumed):
            for i, client in other.clients.items():
                same_arrays(client.state_dict(), local.clients[i].state_dict())
                if mixture is not None and client.own is not None:
                    same_arrays(other.personal(i).state_dict(), local.personal(i).state_dict())
            if comm.process == 0:
                same_arrays(other.server.state_dict(), local.server.state_dict())
                same_arrays(other.model.state_dict(), local.model.state_dict())
    print(f"rank {comm.process} of {comm.processes} has trained clients {list(fed.clients)}")


def same_arrays(a, b):
    """Two structures of numbers and arrays, bit for bit."""
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = list(a.values()), list(b.values())
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for each, other in zip(a, b, strict=True):
            same_arrays(each, other)
    elif hasattr(a, "dtype"):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    else:
        assert a == b, (a, b)


def same(trace, expected):
    """Bit for bit, but for seconds."""
    assert trace.x.tobytes() == expected.x.tobytes()
    assert len(trace) == 41
    for column in ("step", "error", "bits_up", "bits_down", "wire_bytes", "oracle"):
        assert np.array_equal(getattr(trace, column), getattr(expected, column)), column


class Own(compress.Quadratic):
    """A quadratic whose value says which rank asks, as one that holds the data of its own workers alone."""

    shared = False

    def value(self, x):
        return super().value(x) + world().rank


def goes_on(problem, method):
    """A run that is saved, begun again and ended by new engines."""
    problem, x0 = Own(problem.A, problem.b), np.zeros(30)
    with tempfile.TemporaryDirectory() as folder:
        for steps in (15, 40):
            comm = compress.MPI(5)
            path = comm.agree(f"{folder}/run.npz")
            trace = compress.run(method, problem, comm, x0, KEY, steps=steps, checkpoint=path)
        world().Barrier()  # all have saved
        saved = comm.agree(sorted(os.listdir(folder)))
        assert len(saved) == (1 if comm.processes == 1 else 2 * comm.processes), saved
        world().Barrier()  # process 0 removes the folder
    same(trace, compress.run(method, problem, compress.Local(5), x0, KEY, steps=40))


def neighbours():
    """Exchanges and runs on networks by MPI(n) and Local(n), whatever the number of ranks."""
    graph = Graph([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (1, 4)])
    comm, local = compress.MPI(6), compress.Local(6)
    here, rng = comm.workers, np.random.default_rng(0)
    for k in range(30):
        sizes = [0, int(rng.integers(60)), 100, 1, 0, 7] if k else [0] * 6
        sent = [compress.UniformQuantizer(bits=2).encode(rng.standard_normal(d), KEY.at(k)) for d in sizes]
        heard, everyone = comm.exchange([sent[i] for i in here], graph), local.exchange(sent, graph)
        assert list(heard) == graph.neighbourhood(here).tolist() == sorted({*here}.union(*map(graph.neighbours, here)))
        assert heard == {i: everyone[i] for i in heard} and all(heard[i] is sent[i] for i in here)
        assert comm.ledger == local.ledger
    rows = rng.standard_normal((6, 3))
    rows[4] = np.inf
    assert np.array_equal(comm.observe(rows[here.start : here.stop]), rows) and comm.ledger == local.ledger

    A = rng.standard_normal((60, 5))
    for problem, network, more in (
        (compress.Ridge(A, A.sum(axis=1), 1.0, workers=6), Network.ring_star(6), {}),
        (compress.Logistic(A, np.sign(A[:, 0]), 0.1, workers=6), Network.adversarial(6, 3), {"rounds": 2}),
        (compress.Ridge(A, A.sum(axis=1), 1.0, workers=6), Network([graph]), {"local_steps": 3}),
        (
            compress.Quadratic(np.tile(np.eye(5), (6, 1, 1)), A[:6]),
            Network.geometric(6, 0.7, graphs=5),
            {"compressor": compress.Scaled(compress.RandK(0.3))},
        ),
    ):
        method = ADOM.theoretical(problem, network, **more)
        states, ledgers = [], []
        for engine in (compress.MPI(6), compress.Local(6)):
            state = method.init(problem, engine, np.ones(5))
            for k in range(40):
                state = method.step(problem, engine, state, KEY.at(k))
            states.append(state)
            ledgers.append(engine.ledger)
        for ours, theirs in zip(states[0][:4], states[1][:4], strict=True):
            assert ours.shape == (len(here), 5) and ours.tobytes() == theirs[here.start : here.stop].tobytes()
        assert ledgers[0] == ledgers[1] and states[0].oracle == states[1].oracle
        trace, expected = (
            compress.run(method, problem, engine, np.ones(5), KEY, steps=40, every=4)
            for engine in (compress.MPI(6), compress.Local(6))
        )
        assert trace.x.tobytes() == expected.x.tobytes() and trace.error[-1] < trace.error[0]
        for column in ("step", "error", "bits_up", "bits_down", "wire_bytes", "oracle"):
            assert np.array_equal(getattr(trace, column), getattr(expected, column)), column
    print(f"rank {comm.process} of {comm.processes} has heard its neighbours")


def silent():
    """A rank without a neighbour on another one gets no payload from there."""
    comm, graph = compress.MPI(3), Graph([(0, 1), (1, 2)])
    received = []
    swap = comm._link.swap

    def watched(sent, buffers):
        received.append({rank: buffer.size for rank, buffer in buffers.items()})
        swap(sent, buffers)

    comm._link.swap = watched
    key = KEY.worker(comm.process)
    heard = comm.exchange([compress.Identity().encode(np.full(4, 1.0 + comm.process), key)], graph)
    assert received == [{0: {1: 32}, 1: {0: 32, 2: 32}, 2: {1: 32}}[comm.process]]
    assert list(heard) == [[0, 1], [0, 1, 2], [1, 2]][comm.process]
    print(f"rank {comm.process} is done")


def neighbour_dies():
    """Between two exchanges, unseen by the launcher."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    comm, graph = compress.MPI(2), Graph([(0, 1)])
    message = compress.Message(np.zeros(8, np.uint8), 64, 1, np.dtype("f8"))
    comm.exchange([message], graph)
    if comm.process == 1:
        os._exit(3)
    comm.exchange([message], graph)


def another_method():
    """A step size that differs between the ranks."""
    comm, problem = compress.MPI(2), compress.Quadratic.random(n=2, d=8, mu=1, L=10)
    method = compress.DIANA(compress.RandK(0.3), 0.01 * (1 + comm.process), 0.1)
    compress.run(method, problem, comm, np.ones(8), steps=10)


def other_data():
    """A problem that differs between the ranks."""
    comm = compress.MPI(2)
    problem = compress.Quadratic.random(n=2, d=8, mu=1, L=10, seed=comm.process)
    problem.x_star = np.zeros(8)
    compress.run(compress.DIANA(compress.RandK(0.3), 0.01, 0.1), problem, comm, np.ones(8), steps=10)


def rounds_of_any_length(comm, local):
    rng = np.random.default_rng(0)
    C = compress.UniformQuantizer(bits=2)
    for k in range(30):
        key = KEY.at(k)
        sizes = [0, int(rng.integers(60)), 100, 1, 0] if k else [0] * 5
        sent = [C.encode(rng.standard_normal(d), key.worker(i)) for i, d in enumerate(sizes)]
        received = comm.allgather(sent[i] for i in comm.workers)
        assert received == local.allgather(sent)
        assert all(received[i] is sent[i] for i in comm.workers)
        assert comm.ledger == local.ledger


def kinds_of_arrays(comm):
    """What is given comes back: a tensor, and CuPy's arrays, here those of the host's grid."""
    sizes = [3, 0, 70, 1, 8]
    plain = [compress.Message(np.full(d, i, np.uint8), 8 * d, d, np.dtype("f4")) for i, d in enumerate(sizes)]
    kinds = [(cupy_on_cpu.asarray, cupy_on_cpu.ndarray)]
    if importlib.util.find_spec("torch"):
        import torch

        kinds.append((torch.from_numpy, torch.Tensor))
    device._cupy = cupy_on_cpu
    for convert, kind in kinds:
        received = comm.allgather(plain[i]._replace(payload=convert(plain[i].payload)) for i in comm.workers)
        assert all(isinstance(message.payload, kind) for message in received)
        assert received == plain
    device._cupy = None


def reductions():
    """All-to-all and AllReduce are those of Local, whatever the number of ranks."""
    comm, local = compress.MPI(5), compress.Local(5)
    C, sent = compress.Eden(2), []
    for i in range(5):
        rows = [np.ones(7 * i + 50 * j, np.float32) for j in range(5)]
        sent.append([C.encode(x, KEY.worker(i)) for x in rows])
    heard, expected = comm.alltoall(sent[i] for i in comm.workers), local.alltoall(sent)
    assert heard == [expected[j] for j in comm.workers]
    device._cupy = cupy_on_cpu
    moved = [[m._replace(payload=cupy_on_cpu.asarray(m.payload)) for m in sent[i]] for i in comm.workers]
    heard = comm.alltoall(moved)
    assert all(isinstance(m.payload, cupy_on_cpu.ndarray) for row in heard for m in row)
    expected = local.alltoall(sent)
    assert heard == [expected[j] for j in comm.workers]
    device._cupy = None
    rng = np.random.default_rng(0)
    for d in (0, 3, 2001):
        rows = rng.standard_normal((5, d)).astype(np.float32)
        for memory in ("none", "error", "shift"):
            for C in (compress.Eden(1), compress.Trellis(bits=1)):
                reduce = AllReduce(C, memory=memory)
                mine, theirs = reduce.init(comm, d), reduce.init(local, d)
                for t in range(3):
                    mean, mine = reduce.mean(comm, mine, [rows[i] for i in comm.workers], KEY.at(t))
                    same, theirs = reduce.mean(local, theirs, rows, KEY.at(t))
                    assert mean.tobytes() == same.tobytes()
                assert all(np.array_equal(mine.up[k], theirs.up[i]) for k, i in enumerate(comm.workers) if mine.up)
    reduce = compress.PowerIteration(3).of([(40, 50), (1,)])
    mine, theirs = reduce.init(comm, 2001), reduce.init(local, 2001)
    for t in range(3):
        mean, mine = reduce.mean(comm, mine, [rows[i] for i in comm.workers], KEY.at(t))
        same, theirs = reduce.mean(local, theirs, rows, KEY.at(t))
        assert mean.tobytes() == same.tobytes()
    assert comm.ledger == local.ledger
    bad = [np.full(2001, np.nan if i == 3 else 1.0) for i in comm.workers]
    try:
        reduce = AllReduce(compress.Eden(1))
        reduce.mean(comm, reduce.init(comm, 2001), bad, KEY)
    except RuntimeError as error:
        assert "worker 3: x has 2001 NaN or Inf" in str(error)
        print(f"rank {comm.process} has heard why")
    mine = [sent[i] for i in comm.workers]
    try:  # of which another rank does something else
        comm.alltoall(mine) if comm.process else comm.agree(0)
    except RuntimeError as error:
        assert "every rank must take the same steps" in str(error)
    if comm.processes > 1 and comm.process == 0:  # what a rank sees by itself it sees before it has said anything
        try:
            comm.alltoall([[message._replace(bits=7) for message in row] for row in mine])
        except ValueError as error:
            assert "the message of worker 0 has 7 bits" in str(error)
        else:
            raise AssertionError("no ValueError")
    assert comm.alltoall(mine) == [expected[j] for j in comm.workers]


def errors_on_both_ranks():
    """Mismatches that every rank sees, and can go on from."""
    rank = world().rank
    for make, error, match in (
        (lambda: compress.MPI(4 + rank), ValueError, r"n must be the same on every rank, got \[4, 5\]"),
        (lambda: compress.MPI(1), ValueError, "1 workers on 2 ranks"),
        (lambda: compress.MPI(2.0), TypeError, "n must be an integer"),
        (lambda: compress.MPI(2, "world"), TypeError, "comm must be an mpi4py intracommunicator, got 'world'"),
        (lambda: messages(agree=rank == 1), RuntimeError, "some ranks send messages, others agree"),
        (lambda: exchange(rank), RuntimeError, "ranks exchange messages on different graphs"),
        (lambda: exchange() if rank else messages(), RuntimeError, "ranks exchange messages on different graphs"),
        (lambda: messages(bits=65), ValueError, f"message of worker {2 * rank} has 65 bits in 8 bytes"),
    ):
        try:
            make()
        except error as caught:
            assert re.search(match, str(caught)), caught
        else:
            raise AssertionError(f"no {error.__name__} about {match}")
    messages()
    print(f"rank {rank} has seen all")


def worker_error():
    """An exception on one rank, with a hook that was there before."""
    plain = sys.excepthook

    def hook(*error):
        print("the first hook", file=sys.stderr)
        plain(*error)

    sys.excepthook = hook
    messages()
    if world().rank == 1:
        compress.Identity().encode(np.array([1.0, np.nan]), KEY.worker(3))
    world().Barrier()  # where no message is waited for


def killed():
    messages()
    if world().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    messages()


def dies():
    """A rank that dies unseen by the launcher, which is told to leave the others alone."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # how it would tell them
    messages()
    if world().rank == 1:
        os._exit(3)
    messages()


def ends_early():
    """Rank 0 waits in vain, and is told so again where it goes on."""
    messages()
    if world().rank == 1:
        return
    try:
        messages()
    except RuntimeError as first:
        try:
            messages()
        except RuntimeError as second:
            assert re.search(f"an exchange before this one has failed.*RuntimeError: {first}", str(second)), second
            print("told again", flush=True)
            raise first from None


def ends_late():
    """What the rank before says when it ends has arrived before this one ends, and MPI_Finalize does not mind."""

    def finalize():  # at exit, after the link's own word: mpi4py finalizes too, but ignores what it is told
        try:
            MPI.Finalize()
        except MPI.Exception as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(5)
        print(f"rank {rank} is done", flush=True)

    from mpi4py import MPI

    rank = world().rank
    atexit.register(finalize)
    link = compress.MPI(4)._link
    messages()
    if rank == 1:
        time.sleep(0.5)
        link.comm.Iprobe(tag=1)


def ends_early_on_one_of_two():
    """Rank 0 waits for messages on the communicator that it had first."""
    first, second = compress.MPI(4), compress.MPI(4, world().Dup())
    for comm in first, second, *[first] * (world().rank == 0):
        messages(comm=comm)


def exits():
    """With a status that the job has to end with, while rank 0 waits for no message."""
    messages()
    if world().rank == 1:
        sys.exit(3)
    world().Barrier()


def finalizes():
    """One rank does it by hand."""
    from mpi4py import MPI

    messages()
    if world().rank == 0:
        MPI.Finalize()


def own_messages():
    """Messages of the script's own, from any rank and with any tag, are no messages of the link."""
    messages()
    if world().rank == 0:
        assert sorted(world().recv() for _ in range(1, world().size)) == list(range(1, world().size))
        world().send("done", world().size - 1)
    else:
        world().send(world().rank, 0, tag=compress.mpi._ENDED)
    if world().rank == world().size - 1:
        print(world().recv())


def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


def messages(agree=False, bits=64, comm=None):
    """A round of four messages of 64 bits."""
    comm = comm or compress.MPI(4)
    message = compress.Message(np.zeros(8, np.uint8), bits, 1, np.dtype("f8"))
    return comm.agree(1) if agree else comm.allgather([message] * len(comm.workers))


def exchange(bridge=0):
    """A round of four neighbours, on a ring or, with a bridge, on two triangles."""
    comm = compress.MPI(4)
    message = compress.Message(np.zeros(8, np.uint8), 64, 1, np.dtype("f8"))
    edges = [(0, 1), (1, 2), (2, 3), (3, 0), *[(0, 2)] * bridge]
    return comm.exchange([message] * len(comm.workers), Graph(edges))


if __name__ == "__main__":
    globals()[sys.argv[1]]()
