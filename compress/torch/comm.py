"""The workers of a run on the ranks of a torch.distributed process group.

Design note
-----------
A. A round is one exchange of headers, 64 bytes a message, and one of payloads, both all_to_all_single: what a rank
   sends is what its receivers are owed, no payload is padded there, and uneven lengths are fine with gloo and NCCL
   alike. The ledger counts 24 bytes for a header, as on every engine.
   Where every rank expects the same lengths, and is known to do the same (`agreed`), a header travels in front of its
   payload, in one exchange: on a fast link that is half of the time of a small message. A payload that is shorter is
   padded; where one is longer, the rest of it follows in another exchange, of which the headers tell all.
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
    bytes that this rank has been sent by others, headers and all. agreed: to be set on all ranks where they have made
    sure that they are configured alike; ranks that then expect other lengths get what torch makes of it.

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
        self.group, self.received, self.agreed = group, 0, False
        self._backends = dict(each.split(":") for each in dist.get_backend_config(group).split(","))

    def _gather(self, messages, lengths=None):
        known = None if lengths is None else (lengths, [lengths[self.process]] * self.n)
        heard, _ = self._deliver("gather", messages * self.n, known=known)
        return heard

    def _swap(self, messages, lengths=None):
        bits, wire = self._weight(messages)
        known = None if lengths is None else ([lengths[self.process]] * self.n, lengths)
        heard, said = self._deliver("alltoall", messages[0], (bits, wire), known=known)
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

    def _deliver(self, kind, messages, said=(0, 0), to=None, known=None):
        """The messages of all n workers to this one, from those of this one to all n; and two numbers of each.

        to: the workers that are sent payloads, all unless given; the others have headers, and messages without payload.
        known: bytes expected of the payloads from all n and to all n, which are to all.
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
        if known is not None and self.agreed:
            headers, parts = self._at_once(rows, payloads, *known, device)
        else:
            headers = torch.empty((self.n, _WORDS), dtype=torch.int64, device=device)
            dist.all_to_all_single(headers, torch.tensor(rows, device=device), group=self.group)
            headers, parts = headers.cpu().numpy(), None
            self.received += 8 * _WORDS * (self.n - 1)
        if kinds := {_KINDS[k] for k in headers[:, 0]} - {kind}:
            raise RuntimeError(f"ranks take different steps: {kind} here, {', '.join(sorted(kinds))} elsewhere")
        if parts is None:
            if headers[:, 5].any():  # also where this rank has no part in it: payloads are a collective
                sent = [_tensor(payload, device)[:n] for payload, n in zip(payloads, lengths, strict=True)]
                parts = self._travel(sent, lengths, headers[:, 4].tolist(), device)
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

    def _at_once(self, rows, payloads, incoming, outgoing, device):
        """(headers, payloads), in one exchange, or two where a payload is longer than expected."""
        header, own = 8 * _WORDS, self.process
        incoming, outgoing = ([0 if i == own else n for i, n in enumerate(each)] for each in (incoming, outgoing))
        rest = [max(0, row[4] - n) for row, n in zip(rows, outgoing, strict=True)]
        heads = torch.tensor([[*row[:5], any(rest), *row[6:]] for row in rows], device=device).view(torch.uint8)
        around = [0 if i == own else header for i in range(self.n)]
        lengths = [h + n for h, n in zip(around, outgoing, strict=True)]
        sent = torch.zeros(sum(lengths), dtype=torch.uint8, device=device).split(lengths)
        payloads = [_tensor(payload, device) for payload in payloads]
        for r, (part, head, payload) in enumerate(zip(sent, heads, payloads, strict=True)):
            if r != own:
                part[:header] = head
                begun = payload[: outgoing[r]]
                part[header : header + begun.numel()] = begun
        expected = [h + n for h, n in zip(around, incoming, strict=True)]
        parts = list(self._travel(sent, lengths, expected, device))
        parts[own] = heads[own]
        headers = torch.stack([part[:header] for part in parts]).view(torch.int64).cpu().numpy()
        parts = [part[header : header + length] for part, length in zip(parts, headers[:, 4].tolist(), strict=True)]
        if headers[:, 5].any():
            missing = [length - part.numel() for length, part in zip(headers[:, 4].tolist(), parts, strict=True)]
            sent = [payload[n : n + more] for payload, n, more in zip(payloads, outgoing, rest, strict=True)]
            parts = list(map(torch.cat, zip(parts, self._travel(sent, rest, missing, device), strict=True)))
        return headers, parts

    def _travel(self, sent, lengths, expected, device):
        """The bytes of every rank to this one, of those to every rank."""
        received = torch.empty(sum(expected), dtype=torch.uint8, device=device)
        dist.all_to_all_single(received, torch.cat(list(sent)), expected, lengths, group=self.group)
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
