"""Communicator: how messages get from workers to workers, and the ledger of what they weighed.

Who counts: the communicator, where bytes leave, and nobody else. A method that forgets to send a message cannot
decode it either, and a bit that was counted is one that somebody received.

A communicator has n workers, and this process hosts some of them: all for `Local`, a share of them on each rank for
`compress.mpi.MPI`. With `allgather` there is no server. Every worker sends its message to every other one, and every
process does what the server of a paper would do with the n messages, in the order of workers: all hold the same
iterate, bit for bit, on every engine and however workers are spread over processes. Where workers must not see the
whole iterate, process 0 is a server beside them: it `scatter`s a message to each and `gather`s what they answer.
In a network there is neither: with `exchange` a worker hears its neighbours in a graph. With `alltoall` every worker
has a message of its own for every other one, as when each averages a part of a vector (`compress.allreduce`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import kernels
from .compressor import Message, positive_int

# What a message needs beside its payload where nothing is agreed: its bits, its size and its dtype, 8 bytes each. The
# ledger counts so many on every engine; `compress.torch.Distributed` sends more, and says in `received` how many.
HEADER = 24


@dataclass
class Ledger:
    """What has been sent so far, all workers together.

    bits_up: payload bits that workers sent, each message counted once, as up a link to whoever passes it on; in an
        exchange once for each neighbour.
    bits_down: payload bits that workers received: each message of an allgather n - 1 times, of a scatter or an
        alltoall once, of an exchange once for each neighbour.
    wire_up, wire_down: the same in bytes, with the padding of every payload to a byte and a header of 24 bytes.
    messages: their number, empty ones among them.

    Workers that share a process are counted as if each had a machine of its own, so that the ledger says the same on
    every engine.
    """

    bits_up: int = 0
    bits_down: int = 0
    wire_up: int = 0
    wire_down: int = 0
    messages: int = 0

    @property
    def wire_bytes(self) -> int:
        """wire_up + wire_down."""
        return self.wire_up + self.wire_down


class Communicator(ABC):
    """n workers, and the ledger of their messages.

    n: workers in all. workers: those that this process hosts, a range. ledger: what has been sent.
    process, processes: which process this is, of how many.
    """

    def __init__(self, n: int, workers: range, process: int = 0, processes: int = 1):
        self.n, self.workers = n, workers
        self.process, self.processes = process, processes
        self.ledger = Ledger()

    @abstractmethod
    def _gather(self, messages: list[Message], lengths=None) -> list[Message]:
        """Those of all n workers, from those of the hosted ones."""

    @abstractmethod
    def _swap(self, messages: list[list[Message]], lengths=None) -> tuple[list[list[Message]], int, int]:
        """Those to the hosted workers, from those of the hosted ones; and the bits and wire bytes of all n."""

    @abstractmethod
    def agree(self, value):
        """What process 0 passed, on every process: for decisions that a clock or a file takes."""

    # An engine whose processes are apart has ways of its own for these three, by which nobody gets more than is his.

    def _scatter(self, messages: list[Message] | None) -> tuple[list[Message], list[int]]:
        """Those to the hosted workers, from those that process 0 has for all n; and the bits of all n."""
        messages = self.agree(messages)
        return [messages[i] for i in self.workers], [message.bits for message in messages]

    def _collect(self, messages: list[Message]) -> tuple[list[Message] | None, list[int]]:
        """Those of all n workers on process 0, from those of the hosted ones; and the bits of all n."""
        everyone = self._gather(messages)
        return None if self.process else everyone, [message.bits for message in everyone]

    def _exchange(self, messages: list[Message], graph) -> tuple[dict[int, Message], list[int]]:
        """Those of the hosted workers and of their neighbours, by worker; and the bits of all n."""
        everyone = self._gather(messages)
        heard = {i: everyone[i] for i in graph.neighbourhood(self.workers).tolist()}
        return heard, [message.bits for message in everyone]

    def allgather(self, messages: Sequence[Message], lengths: Sequence[int] | None = None) -> list[Message]:
        """The messages of all n workers, in their order, from those of the workers hosted here, in theirs.

        lengths: bytes that the payload of each of the n workers is expected to have, the same numbers on every process:
        an engine may then send so many before anybody is told how long they are. Collective: every process calls it,
        with messages of any length, also of none (size 0). Raises TypeError for what is no Message, ValueError where
        their number is not that of the workers hosted.
        """
        everyone = self._gather(_messages(messages, len(self.workers), "of {} workers hosted here"), lengths)
        bits = sum(message.bits for message in everyone)
        wire = sum(message.payload.nbytes + HEADER for message in everyone)
        ledger = self.ledger
        ledger.bits_up += bits
        ledger.bits_down += (self.n - 1) * bits
        ledger.wire_up += wire
        ledger.wire_down += (self.n - 1) * wire
        ledger.messages += self.n
        return everyone

    def scatter(self, messages: Sequence[Message] | None) -> list[Message]:
        """From the server to every worker a message of its own: those to the workers hosted here, in their order.

        messages: n of them on process 0, which is the server; None on every other. Collective. Each is counted once,
        as received. Raises as `allgather`, and ValueError for messages on another process.
        """
        if self.process:
            if messages is not None:
                raise ValueError(f"process 0 is the server, process {self.process} has nothing to scatter")
        else:
            messages = _messages(messages, self.n, "to {} workers")
        mine, bits = self._scatter(messages)
        self.ledger.bits_down += sum(bits)
        self.ledger.wire_down += _wire(bits)
        self.ledger.messages += self.n
        return mine

    def gather(self, messages: Sequence[Message]) -> list[Message] | None:
        """From every worker to the server: the messages of all n, in their order, on process 0, None on every other.

        messages: of the workers hosted here, in their order. Collective. Each is counted once, as sent. Raises as
        `allgather`.
        """
        everyone, bits = self._collect(_messages(messages, len(self.workers), "of {} workers hosted here"))
        self.ledger.bits_up += sum(bits)
        self.ledger.wire_up += _wire(bits)
        self.ledger.messages += self.n
        return everyone

    def exchange(self, messages: Sequence[Message], graph) -> dict[int, Message]:
        """From every worker to its neighbours in a graph: the messages of the workers hosted here and of all their
        neighbours, by worker, ascending.

        messages: of the workers hosted here, in their order. graph: a `compress.graphs.Graph` of n nodes, the same on
        every process. Collective. A message is counted once for each neighbour, as sent and as received: nobody is
        there to pass it on. Where several neighbours share a process it travels there once, and they hold it together.
        Raises as `allgather`, and ValueError for a graph of other than n nodes.
        """
        messages = _messages(messages, len(self.workers), "of {} workers hosted here")
        if graph.n != self.n:
            raise ValueError(f"the graph has {graph.n} nodes, the communicator {self.n} workers")
        heard, bits = self._exchange(messages, graph)
        bits, copies = np.array(bits), graph.degrees
        sent, wire = int(copies @ bits), int(copies @ (HEADER - -bits // 8))
        ledger = self.ledger
        ledger.bits_up += sent
        ledger.bits_down += sent
        ledger.wire_up += wire
        ledger.wire_down += wire
        ledger.messages += int(copies.sum())
        return heard

    def alltoall(
        self, messages: Sequence[Sequence[Message]], lengths: Sequence[int] | None = None
    ) -> list[list[Message]]:
        """From every worker to every other one a message of its own: for each worker hosted here the messages to it of
        all n, in their order.

        messages: for each worker hosted here, in their order, those to all n, in theirs. lengths: bytes expected of a
        payload to each of the n workers, as in `allgather`. Collective. What a worker says to itself travels nowhere
        and is not counted; the others are counted once, as sent and as received. Raises as `allgather`.
        """
        messages = list(messages)
        if len(messages) != len(self.workers):
            raise ValueError(f"{len(messages)} rows of messages, of {len(self.workers)} workers hosted here")
        messages = [_messages(row, self.n, "to {} workers") for row in messages]
        heard, bits, wire = self._swap(messages, lengths)
        ledger = self.ledger
        ledger.bits_up += bits
        ledger.bits_down += bits
        ledger.wire_up += wire
        ledger.wire_down += wire
        ledger.messages += self.n * (self.n - 1)
        return heard

    def _weight(self, messages: list[list[Message]]) -> tuple[int, int]:
        """Bits, and bytes on the wire, of what the workers hosted here say to others."""
        bits = [
            message.bits
            for i, row in zip(self.workers, messages, strict=True)
            for j, message in enumerate(row)
            if i != j
        ]
        return sum(bits), _wire(bits)

    def observe(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Vectors of all n workers, in their order, from those of the workers hosted here: for whoever measures a run
        from outside. Nothing is counted, and no method may call it. Collective."""
        messages = [Message(row.view(np.uint8), 8 * row.nbytes, row.size, row.dtype) for row in rows]
        return [kernels.values_of(message.payload, message.dtype) for message in self._gather(messages)]


def _messages(messages, count: int, whose: str) -> list[Message]:
    """messages as a list; TypeError for what is no Message, ValueError unless there are so many."""
    messages = list(messages)
    for message in messages:
        if not isinstance(message, Message):
            raise TypeError(f"messages must be compress.Message, got {type(message).__name__}")
    if len(messages) != count:
        raise ValueError(f"{len(messages)} messages {whose.format(count)}")
    return messages


def _wire(bits: list[int]) -> int:
    """Bytes of messages of so many bits, with padding and headers."""
    return sum(-(-each // 8) + HEADER for each in bits)


class Local(Communicator):
    """n workers in this process.

    Raises TypeError or ValueError unless n is an integer of at least 1.

    >>> import numpy as np, compress
    >>> comm, C, key = Local(2), compress.Identity(), compress.Key(0)
    >>> sent = [C.encode(np.ones(3, np.float32), key.worker(i)) for i in comm.workers]
    >>> len(comm.allgather(sent)), comm.ledger.bits_up, comm.ledger.wire_up
    (2, 192, 72)
    """

    def __init__(self, n: int):
        n = positive_int(n, "n")
        super().__init__(n, range(n))

    def _gather(self, messages, lengths=None):
        return messages

    def _swap(self, messages, lengths=None):
        return [list(column) for column in zip(*messages, strict=True)], *self._weight(messages)

    def agree(self, value):
        return value

    def __repr__(self):
        return f"Local({self.n})"
