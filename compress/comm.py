"""Communicator: how messages get from workers to workers, and the ledger of what they weighed.

Who counts: the communicator, where bytes leave, and nobody else. A method that forgets to send a message cannot
decode it either, and a bit that was counted is one that somebody received.

A communicator has n workers, and this process hosts some of them: all for `Local`, a share of them on each rank for
`compress.mpi.MPI`. There is no server. Every worker sends its message to every other one, and every process does what
the server of a paper would do with the n messages, in the order of workers: all hold the same iterate, bit for bit,
on every engine and however workers are spread over processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from .compressor import Message, positive_int

# What a message needs beside its payload where nothing is agreed: its bits, its size and its dtype, 8 bytes each.
HEADER = 24


@dataclass
class Ledger:
    """What has been sent so far, all workers together.

    bits_up: payload bits that workers sent, each message counted once, as up a link to whoever passes it on.
    bits_down: payload bits that workers received: each message n - 1 times.
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
    def _gather(self, messages: list[Message]) -> list[Message]:
        """Those of all n workers, from those of the hosted ones."""

    @abstractmethod
    def agree(self, value):
        """What process 0 passed, on every process: for decisions that a clock or a file takes."""

    def allgather(self, messages: Sequence[Message]) -> list[Message]:
        """The messages of all n workers, in their order, from those of the workers hosted here, in theirs.

        Collective: every process calls it, with messages of any length, also of none (size 0). Raises TypeError for
        what is no Message, ValueError where their number is not that of the workers hosted.
        """
        messages = list(messages)
        for message in messages:
            if not isinstance(message, Message):
                raise TypeError(f"messages must be compress.Message, got {type(message).__name__}")
        if len(messages) != len(self.workers):
            raise ValueError(f"{len(messages)} messages of {len(self.workers)} workers hosted here")
        everyone = self._gather(messages)
        bits = sum(message.bits for message in everyone)
        wire = sum(message.payload.nbytes + HEADER for message in everyone)
        ledger = self.ledger
        ledger.bits_up += bits
        ledger.bits_down += (self.n - 1) * bits
        ledger.wire_up += wire
        ledger.wire_down += (self.n - 1) * wire
        ledger.messages += self.n
        return everyone


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

    def _gather(self, messages):
        return messages

    def agree(self, value):
        return value

    def __repr__(self):
        return f"Local({self.n})"
