"""MPI: the workers of a run on the ranks of an MPI job, through mpi4py.

Design note
-----------
A. A round is one exchange of headers, 24 bytes a message, and one of payloads, both in place. Nothing is padded: what
   travels is what the ledger counts. A round of empty messages ends with its headers. Where process 0 scatters or
   gathers, payloads go to or from it alone; where neighbours exchange them, from rank to rank, to those that host a
   neighbour and no other. Headers go to all, whose ledgers are the same; they also say to whom payloads go, so that
   nobody waits for one that is not on its way.
B. Exchanges are nonblocking, and the wait for them is a loop in Python. Measured with MPICH 5 and two ranks on one
   machine it is no slower than the blocking call, and twice as fast above two megabytes. It lets signals in, gives
   the processor away where others want it, and sees that a rank is gone:
C. A rank that ends tells the next one how many exchanges it took part in, and whoever waits for one more raises. Where
   some ranks have ended and others not, one of those left has such a neighbour, and its error ends the job.
   An exchange that was given up, for this or by a signal, leaves ranks out of step: the ones after it raise at once.
   All messages are on a duplicate of the communicator given, so that none meets the user's own. Nobody receives what
   the last ranks say: MPICH's MPI_Finalize does not mind on a communicator that is never freed, but fails over it on
   COMM_WORLD, and Hydra may then kill the job as if a rank had died.
D. A rank that dies is noticed by the launcher, which ends the others. MPICH's misses one exit without MPI_Finalize
   in a hundred, so that a rank that has waited for long also asks whether its neighbour on the machine lives.
E. An uncaught exception ends the job on every rank, under `python -m mpi4py` and without.
F. The hosted workers get back the very messages they gave. Those of the others are views of one receive buffer, which
   is moved to the GPU where the messages given live there.
"""

from __future__ import annotations

import atexit
import os
import pickle
import sys
import time

import numpy as np

from . import kernels
from .comm import Communicator
from .compressor import Message, positive_int

_ENDED = 0x636F  # the tag of what a rank says when it ends
_SWAP = 0x7377  # the tag of messages from rank to rank
_AGREE = -1  # in place of a message's size: the payload is a value to agree on
_ALLTOALL = -2  # in place of a message's size: what a worker says to all others together
_LONG = 1.0  # seconds of waiting
_FORWARDED = 0.2  # seconds in which the launcher passes on what was printed; it drops the rest when a job is aborted


class MPI(Communicator):
    """n workers in contiguous blocks on the ranks of an MPI communicator.

    n: workers in all, at least one a rank, the same number on every rank. comm: an mpi4py intracommunicator,
    COMM_WORLD unless given; messages are on a duplicate of it, apart from the script's own. Making an MPI and calling
    its methods is collective: every rank runs the same script.

    Iterates and ledger are those of `Local(n)`, bit for bit. An exception that nobody catches ends the job on all
    ranks, and so does a rank that ends while another waits for its messages (RuntimeError there).

    Raises ImportError where mpi4py or an MPI library is missing, TypeError unless n is an integer and comm an
    intracommunicator, ValueError where n differs between ranks or is smaller than their number.

    On one rank, as here, all workers are hosted; `mpiexec -n 2 python script.py` has five on each of two:

    >>> import numpy as np, compress
    >>> comm, C, key = MPI(10), compress.RandK(0.1), compress.Key(0)
    >>> sent = [C.encode(np.ones(100), key.worker(i)) for i in comm.workers]
    >>> len(comm.allgather(sent)), comm.ledger.messages
    (10, 10)
    """

    def __init__(self, n: int, comm=None):
        library = _library()
        comm = library.COMM_WORLD if comm is None else comm
        if not isinstance(comm, library.Intracomm):
            raise TypeError(f"comm must be an mpi4py intracommunicator, got {comm!r}")
        self._link = _link(library, comm)
        rank, ranks = comm.rank, comm.size
        n = positive_int(n, "n")
        given = np.full(ranks, n)
        self._link.exchange(given, np.arange(ranks + 1))
        if np.any(given != n):
            raise ValueError(f"n must be the same on every rank, got {given.tolist()}")
        if n < ranks:
            raise ValueError(f"{n} workers on {ranks} ranks: every rank must host at least one")
        self._first = n * np.arange(ranks + 1) // ranks  # rank r hosts workers first[r] to first[r + 1] - 1
        super().__init__(n, range(int(self._first[rank]), int(self._first[rank + 1])), rank, ranks)

    def _gather(self, messages, lengths=None):
        if self.processes == 1:
            return messages
        headers, ends, payloads = self._announce(messages, self.workers, self._first)
        buffer = np.empty(ends[-1], np.uint8)
        for i, payload in zip(self.workers, payloads, strict=True):
            buffer[ends[i] : ends[i + 1]] = kernels.host(payload)
        if buffer.size:
            self._link.exchange(buffer, ends[self._first])
        return self._beside(messages, buffer, headers)

    def _scatter(self, messages):
        if self.processes == 1:
            return messages, [message.bits for message in messages]
        senders, bounds = range(0) if self.process else range(self.n), np.full(self.processes + 1, self.n)
        bounds[0] = 0  # every header is of process 0
        headers, ends, payloads = self._announce(messages or [], senders, bounds)
        blocks = ends[self._first]
        buffer = np.empty(blocks[self.process + 1] - blocks[self.process], np.uint8)
        if ends[-1]:
            self._link.scatter(_joined(payloads), blocks, buffer)
        here = slice(self.workers.start, self.workers.stop)
        return _cut(buffer, headers[here]) if self.process else messages[here], headers[:, 0].tolist()

    def _collect(self, messages):
        if self.processes == 1:
            return messages, [message.bits for message in messages]
        headers, ends, payloads = self._announce(messages, self.workers, self._first)
        buffer = np.empty(0 if self.process else ends[-1], np.uint8)
        if ends[-1]:
            self._link.gather(_joined(payloads), ends[self._first], buffer)
        return None if self.process else self._beside(messages, buffer, headers), headers[:, 0].tolist()

    def _exchange(self, messages, graph):
        if self.processes == 1:
            return super()._exchange(messages, graph)
        headers, ends, payloads = self._announce(messages, self.workers, self._first, graph.checksum)
        sent, known = {}, graph.neighbourhood(self.workers)
        for i, payload in zip(self.workers, payloads, strict=True):
            ranks = np.unique(np.searchsorted(self._first, graph.neighbours(i), side="right") - 1)
            for rank in ranks[ranks != self.process].tolist():
                sent.setdefault(rank, []).append(payload)
        lengths, ranks = np.diff(ends), np.searchsorted(self._first, known, side="right") - 1
        received = {rank: np.empty(lengths[known[ranks == rank]].sum(), np.uint8) for rank in sent}
        self._link.swap({rank: _joined(payloads) for rank, payloads in sent.items()}, received)
        kind = messages[0].payload
        heard = dict(zip(self.workers, messages, strict=True))
        for rank, buffer in received.items():
            theirs = known[ranks == rank]
            buffer = kernels.like(kernels.taken(kind), buffer)
            heard.update(zip(theirs.tolist(), _cut(buffer, headers[theirs], kind), strict=True))
        return dict(sorted(heard.items())), headers[:, 0].tolist()

    def _swap(self, messages, lengths=None):
        if self.processes == 1:
            return [list(column) for column in zip(*messages, strict=True)], *self._weight(messages)
        # a rank is told, and sent, what each of the workers here says to each of its own; what stays here travels not
        blocks = [
            [(i, row[j]) for i, row in zip(self.workers, messages, strict=True) for j in range(*self._first[r : r + 2])]
            for r in range(self.processes)
        ]
        blocks[self.process] = []
        leaving = [(i, message, kernels.taken(message.payload, "payload")) for block in blocks for i, message in block]
        sent = np.array([_header(message, payload, i) for i, message, payload in leaving], np.int64).reshape(-1, 3)
        bits, wire = self._weight(messages)
        totals = np.zeros((self.n, 3), np.int64)
        totals[self.workers.start : self.workers.stop] = 0, _ALLTOALL, 0
        totals[self.workers.start] = bits, _ALLTOALL, wire
        self._told(totals, self._first)
        counts = len(self.workers) * np.diff(self._first)
        counts[self.process] = 0
        ends = np.concatenate(([0], np.cumsum(counts)))
        headers = np.empty((ends[-1], 3), np.int64)
        self._link.alltoall(sent, 3 * ends, headers, 3 * ends)
        starts = [np.concatenate(([0], np.cumsum(-(-each[:, 0] // 8)))) for each in (sent, headers)]
        buffer = np.empty(starts[1][-1], np.uint8)
        if np.any(totals[:, 0]):
            payloads = _joined(payload for _, _, payload in leaving)
            self._link.alltoall(payloads, starts[0][ends], buffer, starts[1][ends])
        kind = messages[0][0].payload
        theirs = iter(_cut(kernels.like(kernels.taken(kind), buffer), headers, kind))
        heard = [[] for _ in self.workers]
        for r in range(self.processes):
            for i in range(*self._first[r : r + 2]):
                for place, j in enumerate(self.workers):
                    heard[place].append(messages[i - self.workers.start][j] if i in self.workers else next(theirs))
        return heard, int(totals[:, 0].sum()), int(totals[:, 2].sum())

    def _told(self, headers, bounds):
        """Fill the headers of all workers, on all ranks; RuntimeError where ranks do different things."""
        self._link.exchange(headers, 3 * bounds)
        if len(set(np.minimum(headers[:, 1], 0).tolist())) > 1:
            raise RuntimeError("some ranks send messages, others agree on a value: every rank must take the same steps")

    def _announce(self, messages, senders, bounds, graph=0):
        """Headers (bits, size, bytes of an element) of n messages, on all ranks from those of `senders` on this one,
        where rank r has headers bounds[r] to bounds[r + 1]; where each payload begins and the last ends; and payloads.

        graph: a checksum of whom they go to, 0 for everyone; it travels in the upper bytes of the last number.
        """
        payloads = [kernels.taken(message.payload, "payload") for message in messages]
        headers = np.empty((self.n, 3), np.int64)
        for i, message, payload in zip(senders, messages, payloads, strict=True):
            headers[i] = _header(message, payload, i)
            headers[i, 2] += graph << 8
        self._told(headers, bounds)
        if np.any(headers[:, 2] >> 8 != graph):
            raise RuntimeError("ranks exchange messages on different graphs: every rank must take the same steps")
        headers[:, 2] &= 0xFF
        return headers, np.concatenate(([0], np.cumsum(-(-headers[:, 0] // 8)))), payloads

    def _beside(self, messages, buffer, headers):
        """The n messages in a buffer, with those of the hosted workers as they were given."""
        payload = messages[0].payload
        everyone = _cut(kernels.like(kernels.taken(payload), buffer), headers, payload)
        everyone[self.workers.start : self.workers.stop] = messages
        return everyone

    def agree(self, value):
        data = np.frombuffer(pickle.dumps(value) if self.process == 0 else b"", np.uint8)
        said = Message(data, 8 * data.size, _AGREE, np.dtype(np.float32))
        silent = said._replace(payload=data[:0], bits=0)
        return pickle.loads(self._gather([said, *[silent] * (len(self.workers) - 1)])[0].payload)

    def __repr__(self):
        return f"MPI({self.n})"


class _Link:
    """The exchanges between the ranks of a communicator, counted. Whatever ends a rank that has one ends the job."""

    def __init__(self, library, given):
        self.given, self._library = given, library
        self.comm = comm = given.Dup()
        self._count = 0
        self._before, self._after = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        self._end = None  # how many exchanges the rank before took part in, once it has ended
        self._broken = None  # by what, and the memory of an exchange that MPI may still write to
        here = os.uname().nodename, os.readlink("/proc/self/ns/pid")  # where a process id says who it is
        pids = {r: pid for r, (there, pid) in enumerate(comm.allgather((here, os.getpid()))) if there == here}
        beside = list(pids)
        self._beside = beside[beside.index(comm.rank) - 1]
        self._pid = pids[self._beside]
        if comm.size > 1:
            self._excepthook, sys.excepthook = sys.excepthook, self._abort
            atexit.register(self._leave)

    def exchange(self, buffer, bounds) -> None:
        """Fill elements bounds[r] to bounds[r + 1] of a buffer with what rank r has there, for every r."""
        sections = [buffer, (np.diff(bounds), bounds[:-1])]
        self._complete(lambda: [self.comm.Iallgatherv(self._library.IN_PLACE, sections)], sections)

    def scatter(self, buffer, bounds, mine) -> None:
        """Fill `mine` on rank r with elements bounds[r] to bounds[r + 1] of the buffer on rank 0."""
        sections = [buffer, (np.diff(bounds), bounds[:-1])]
        self._complete(lambda: [self.comm.Iscatterv(sections, mine, root=0)], sections, mine)

    def gather(self, mine, bounds, buffer) -> None:
        """Fill elements bounds[r] to bounds[r + 1] of the buffer on rank 0 with `mine` on rank r."""
        sections = [buffer, (np.diff(bounds), bounds[:-1])]
        self._complete(lambda: [self.comm.Igatherv(mine, sections, root=0)], sections, mine)

    def alltoall(self, buffer, bounds, received, theirs) -> None:
        """Fill elements theirs[r] to theirs[r + 1] of `received` with what rank r has for this one: its elements
        bounds[s] to bounds[s + 1], where this is rank s."""
        sections = [[buffer, (np.diff(bounds), bounds[:-1])], [received, (np.diff(theirs), theirs[:-1])]]
        self._complete(lambda: [self.comm.Ialltoallv(*sections)], sections)

    def swap(self, sent: dict, received: dict) -> None:
        """Send rank r the bytes sent[r], and fill received[r] with those that it sends here: point to point."""

        def start():
            receive = [self.comm.Irecv(buffer, rank, _SWAP) for rank, buffer in received.items() if buffer.size]
            return receive + [self.comm.Isend(buffer, rank, _SWAP) for rank, buffer in sent.items() if buffer.size]

        self._complete(start, sent, received)

    def _complete(self, start, *buffers) -> None:
        """Start requests and wait for them. Once that has failed every later exchange does, and what may still be under
        way keeps its memory."""
        if self._broken:
            raise RuntimeError(f"an exchange before this one has failed, and ranks are out of step: {self._broken[0]}")
        self._count += 1
        requests = []
        try:
            requests = start()
            self._wait(requests)
        except BaseException as failure:  # KeyboardInterrupt too
            self._broken = f"{type(failure).__name__}: {failure}", requests, buffers
            raise

    def _wait(self, requests) -> None:
        """Until all are complete; RuntimeError where they never will be."""
        start = time.monotonic()
        while not self._library.Request.Testall(requests):
            if self._end is None and self.comm.Iprobe(self._before, _ENDED):
                self._end = self.comm.recv(source=self._before, tag=_ENDED)
            if self._end is not None and self._end < self._count:
                raise RuntimeError(
                    f"rank {self._before} has ended while rank {self.comm.rank} waits for its messages: "
                    "every rank must take the same steps"
                )
            if time.monotonic() > start + _LONG and not _alive(self._pid):
                raise RuntimeError(f"rank {self._beside} has died")
            os.sched_yield()

    def _leave(self):
        if not self._library.Is_finalized():
            self.comm.isend(self._count - bool(self._broken), self._after, _ENDED)

    def _abort(self, *error):
        try:
            self._excepthook(*error)
            sys.stdout.flush()
            time.sleep(_FORWARDED)
        finally:
            if not self._library.Is_finalized():
                self._library.COMM_WORLD.Abort(1)


def _header(message, payload, i) -> tuple[int, int, int]:
    """Bits, size and bytes of an element of a message of worker i; ValueError where its payload is of other length."""
    if payload.nbytes != -(-message.bits // 8):
        raise ValueError(f"the message of worker {i} has {message.bits} bits in {payload.nbytes} bytes")
    return message.bits, message.size, np.dtype(message.dtype).itemsize


def _joined(payloads) -> np.ndarray:
    """Payloads one after another, in host memory."""
    return np.concatenate([np.empty(0, np.uint8), *map(kernels.host, payloads)])


def _cut(buffer, headers, kind=None) -> list[Message]:
    """The messages with these headers, whose payloads lie one after another in a buffer, as the kind of array given."""
    messages, end = [], 0
    for bits, size, itemsize in headers.tolist():
        start, end = end, end - (-bits // 8)
        payload = buffer[start:end] if kind is None else kernels.given(buffer[start:end], kind)
        messages.append(Message(payload, bits, size, np.dtype(f"f{itemsize}")))
    return messages


def _alive(pid: int) -> bool:
    """Whether a process runs: one that has died may still be listed, as a zombie, until its parent asks for it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in b"ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


_links: list[_Link] = []


def _link(library, comm) -> _Link:
    """The one link of a communicator, however many engines use it."""
    for link in _links:
        if link.given == comm:
            return link
    _links.append(_Link(library, comm))
    return _links[-1]


def _library():
    try:
        from mpi4py import MPI as library
    except (ImportError, RuntimeError) as error:  # the latter where there is no MPI to load
        reason = str(error).partition("\n")[0]
        raise ImportError(
            f'MPI needs mpi4py and an MPI library ({reason}): pip install "compress-kernels[mpi]"'
        ) from error
    return library
