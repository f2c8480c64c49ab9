"""The workers of a run on the ranks of a torch.distributed process group.

Design note
-----------
A. A round is one exchange of headers, 64 bytes a message, and one of payloads, both all_to_all_single: what a rank
   sends is what its receivers are owed, no payload is padded, and uneven lengths are fine with gloo and NCCL alike.
   The ledger counts 24 bytes for a header, as on every engine.
B. Headers go to all, and say what the round is: ranks that do different things all raise.
C. Payloads travel where they live if the group has a backend there: NumPy's by gloo, CuPy's by NCCL. Otherwise they are
   moved to where it has one, and back.
D. A rank that is gone is noticed by the group, whose error or timeout ends the wait of the others.
"""

from __future__ import annotations

import pickle

import numpy as np
import torch
import torch.distributed as dist

from .. import kernels
from ..comm import Communicator
from ..compressor import Message

_KINDS = "gather", "alltoall", "scatter", "collect", "exchange", "agree"
_WORDS = 8  # of a header, int64
_FLOAT = np.dtype(np.float32)


class Distributed(Communicator):
    """A worker on each rank of a torch.distributed process group.

    group: the process group, the default one unless given. Making one is free; its methods are collective. received:
    bytes that this rank has been sent by others, headers and all.

    Iterates and ledger are those of `Local(n)` of as many workers, bit for bit. Raises RuntimeError where there is no
    process group, or this process is not in it; from its methods, RuntimeError on every rank where ranks take different
    steps, and what torch raises where a rank is gone.

    One process here, `torchrun --nproc-per-node 2 script.py` for two:

    >>> import tempfile, compress
    >>> file = f"file://{tempfile.mkdtemp()}/store"
    >>> dist.init_process_group("gloo", init_method=file, rank=0, world_size=1)
    >>> comm, C, key = Distributed(), compress.RandK(0.1), compress.Key(0)
    >>> sent = [C.encode(np.ones(100), key.worker(i)) for i in comm.workers]
    >>> len(comm.allgather(sent)), comm.ledger.messages
    (1, 1)
    >>> dist.destroy_process_group()
    """

    def __init__(self, group=None):
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "Distributed: there is no process group, call torch.distributed.init_process_group first"
            )
        rank = dist.get_rank(group)
        if rank < 0:
            raise RuntimeError("Distributed: this process is not in the group")
        super().__init__(dist.get_world_size(group), range(rank, rank + 1), rank, dist.get_world_size(group))
        self.group, self.received = group, 0
        self._backends = dict(each.split(":") for each in dist.get_backend_config(group).split(","))

    def _gather(self, messages):
        heard, _ = self._deliver("gather", messages * self.n)
        return heard

    def _swap(self, messages):
        bits, wire = self._weight(messages)
        heard, said = self._deliver("alltoall", messages[0], (bits, wire))
        return [heard], *said.sum(axis=0).tolist()

    def _scatter(self, messages):
        bits = self.agree(None if self.process else [message.bits for message in messages])
        heard, _ = self._deliver("scatter", [_silence()] * self.n if self.process else messages)
        return [heard[0]], bits

    def _collect(self, messages):
        heard, _ = self._deliver("collect", messages * self.n, to={0})
        return None if self.process else heard, [message.bits for message in heard]

    def _exchange(self, messages, graph):
        near = {int(i) for i in graph.neighbours(self.process)}
        heard, checks = self._deliver("exchange", messages * self.n, (graph.checksum, 0), to=near)
        if len(set(checks[:, 0].tolist())) > 1:
            raise RuntimeError("ranks exchange messages on different graphs: every rank must take the same steps")
        return {i: heard[i] for i in sorted(near | {self.process})}, [message.bits for message in heard]

    def agree(self, value):
        data = np.frombuffer(pickle.dumps(value) if self.process == 0 else b"", np.uint8)
        heard, _ = self._deliver("agree", [Message(data, 8 * data.size, 0, _FLOAT)] * self.n)
        return value if self.process == 0 else pickle.loads(kernels.host(kernels.taken(heard[0].payload)).tobytes())

    def _deliver(self, kind, messages, said=(0, 0), to=None):
        """The messages of all n workers to this one, from those of this one to all n; and two numbers of each.

        to: the workers that are sent payloads, all unless given; the others have headers, and messages without payload.
        """
        payloads = [kernels.taken(message.payload, "payload") for message in messages]
        for message, payload in zip(messages, payloads, strict=True):
            if payload.nbytes != -(-message.bits // 8):
                raise ValueError(f"a message of {message.bits} bits in {payload.nbytes} bytes")
        own, lengths = self.process, [payload.nbytes for payload in payloads]
        for r in range(self.n):
            if r == own or (to is not None and r not in to):
                lengths[r] = 0
        speaks = any(lengths)
        rows = [
            [_KINDS.index(kind), message.bits, message.size, np.dtype(message.dtype).itemsize, length, speaks, *said]
            for message, length in zip(messages, lengths, strict=True)
        ]
        device = self._device(payloads[0])
        headers = torch.empty((self.n, _WORDS), dtype=torch.int64, device=device)
        dist.all_to_all_single(headers, torch.tensor(rows, device=device), group=self.group)
        headers = headers.cpu().numpy()
        self.received += 8 * _WORDS * (self.n - 1)
        if kinds := {_KINDS[k] for k in headers[:, 0]} - {kind}:
            raise RuntimeError(f"ranks take different steps: {kind} here, {', '.join(sorted(kinds))} elsewhere")
        expected = headers[:, 4].tolist()
        if headers[:, 5].any():  # also where this rank has no part in it: payloads are a collective
            parts = self._travel(payloads, lengths, expected, device)
        else:
            parts = [torch.empty(0, dtype=torch.uint8)] * self.n
        heard = []
        for i, (_, bits, size, itemsize, *_) in enumerate(headers.tolist()):
            if i == own:
                heard.append(messages[i])
                continue
            payload = kernels.like(payloads[i], kernels.taken(parts[i]))
            payload = kernels.given(payload, messages[i].payload)
            heard.append(Message(payload, bits, size, np.dtype(f"f{itemsize}")))
        return heard, headers[:, 6:]

    def _travel(self, payloads, lengths, expected, device):
        """The bytes of every rank to this one, of those to every rank."""
        sent = torch.cat([_tensor(payload, device)[:n] for payload, n in zip(payloads, lengths, strict=True)])
        received = torch.empty(sum(expected), dtype=torch.uint8, device=device)
        dist.all_to_all_single(received, sent, expected, lengths, group=self.group)
        self.received += received.nbytes
        return received.split(expected)

    def _device(self, payload):
        """Where payloads travel (note C)."""
        on_gpu = not isinstance(payload, np.ndarray)
        if "nccl" in self._backends.get("cuda", "") and (on_gpu or "cpu" not in self._backends):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def __repr__(self):
        return f"Distributed({self.n})"


def _silence() -> Message:
    return Message(np.empty(0, np.uint8), 0, 0, _FLOAT)


def _tensor(payload, device):
    """An array of bytes as a tensor, there."""
    if isinstance(payload, np.ndarray):
        return torch.from_numpy(payload if payload.flags.writeable else payload.copy()).to(device)
    return torch.from_dlpack(payload).to(device)
