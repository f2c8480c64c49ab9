"""DiLoCo: workers train apart for many steps, then an outer optimizer steps by the mean of how far they have come.

Design note
-----------
A. A round is: all agree that they are in step (5 bytes each), AllReduce averages, everybody takes the same outer step.
   The global parameters are a vector of their own, float32 also where the model is bfloat16; what a worker has moved is
   told from these parameters as its model had them, rounded, or each round would take the rounding for progress.
B. All tensors of a fragment are one vector and one message. Biases and norms are 0.9% of a transformer of width 128; in
   float32 they would be twice the message of a ChunkTopK(). Under an inner Adam they move as far as matrices do, and
   what is left out is remembered. Who wants them exact has `min_size`.
C. Whatever fails leaves global parameters, momentum, errors and the model as they were: states are replaced at the end.
   What a worker cannot send it says as they agree, so that all raise and nobody waits.
D. Errors belong to a worker, everything else is the same for all: who joins needs global parameters and momentum alone.
   The error of a slice that a worker owned ("two-shot") goes into its own, n times, when the group changes: the next
   mean then has what that mean was to have.
E. The arithmetic sees a Communicator: n workers in one process, each with a model, run the code of n ranks.
F. Error feedback is a momentum already: what is left out comes later, several rounds at once. An outer momentum of 0.9
   makes 10 lr of it, which diverges where few coordinates travel.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from time import perf_counter
from typing import NamedTuple
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from .. import kernels
from ..allreduce import AllReduce, AllReduceState, Refused, Spent, slices
from ..comm import Communicator
from ..compressor import Compressor, Identity, Message, add_or_store, finite_number, positive_int
from ..key import Key
from .comm import Distributed
from .hook import same_stream

_MEMBER = struct.Struct("<Iqq?I")  # configuration, rounds, steps, whether it is new, global parameters and momentum
_DOES = {b"r": "does a round", b"g": "regroups", b"s": "compares settings"}  # the first byte of what workers say
_PIECE = 1 << 24  # coordinates of a vector that are passed on at a time: each receiver's copy is in memory

# Of the settings, what a state depends on in any case, and what it does not with errors either.
_SHAPE, _FREE = ("fragments", "tensors"), ("period", "lr", "momentum", "nesterov", "decay", "seed")
_WAY_OUT = "; load_state_dict(state, errors=False) takes all but the errors"
_LAST = WeakKeyDictionary()  # of each model the DiLoCo that was made last


def _on_device(method):
    """The method without gradients, CuPy's work on torch's device and current stream."""

    @wraps(method)
    def called(self, *args, **named):
        with torch.no_grad(), same_stream(self._fragments[0].tensors[0][0].device):
            return method(self, *args, **named)

    return called


class FragmentState(NamedTuple):
    """Of tensors that are synchronised together: global parameters and outer momentum, (d,) each and the same on every
    worker, what messages have left out, which is each worker's own, and by how much of that its model is ahead."""

    start: np.ndarray
    momentum: np.ndarray | None
    memory: AllReduceState
    shift: float = 0.0


@dataclass(frozen=True)
class Report:
    """Of the rounds so far, the mean of a worker and round. Messages of `regroup` are not among them.

    sent, received: bytes, headers of 24 a message with them; a message that goes to all counts once where it is sent,
    also where n - 1 copies leave. bits: received, for each parameter, without headers; dense: the same of a float32
    all-reduce. seconds: of a round, and in it those spent in encoders, in decoders and in waiting; of all workers
    hosted here together.
    """

    rounds: int
    parameters: int
    workers: int
    sent: float
    received: float
    bits: float
    dense: float
    seconds: float
    encode: float
    decode: float
    wait: float

    @property
    def ratio(self) -> float:
        """How many times fewer bits are received than by a float32 all-reduce; inf where none are."""
        return self.dense / self.bits if self.bits else math.inf

    def __str__(self):
        return (
            f"{self.rounds} rounds of {self.workers} workers, {self.parameters:,} parameters: "
            f"{self.sent:,.0f} bytes sent and {self.received:,.0f} received, {self.bits:.4g} bits a parameter, "
            f"{self.ratio:.4g} x fewer than float32; {self.seconds:.3g} s a round, of them {self.encode:.3g} for "
            f"encoding, {self.decode:.3g} for decoding, {self.wait:.3g} of waiting"
        )


class DiLoCo:
    """Local steps of an inner optimizer, and every `period` of them an outer step with the compressed mean.

        g = mean_i C(x - x_i + e_i),  m <- mu m + g,  x <- x - lr (g + mu m),  x_i <- x

    Worker i has moved from the global parameters x to x_i, and e_i is what its messages have left out. After a round
    all have x, bit for bit; whatever else the inner optimizers hold stays with them.

    model: the module that is trained, or one for each worker hosted here where these are several. Its parameters that
    require gradients are synchronised, as one float32 vector a fragment (float64 where a parameter is); one without a
    gradient has not moved. The others must be the same everywhere. Means and variances of BatchNorm are averaged, in
    float32 and without outer step, with the first fragment; no other buffer is.
    compressor: of what has been moved, Identity unless given; a `compress.LowRank` is told the shapes. down, pattern:
    as of `compress.allreduce.AllReduce`.
    error_feedback: remember what messages leave out; `decay` of it is kept from round to round, and 1 loses nothing.
    period: inner steps between two rounds. lr, momentum, nesterov: of the outer SGD; `lr` may be set between rounds, on
    all workers. The defaults are DiLoCo's, for dense messages and those of 2 bits or more. Where few coordinates
    travel, momentum must be 0, with lr of 1 or less (note F); `LowRank`, which tells most of a move, bears 0.4 at lr 1.
    ahead: in [0, 1]. A round sets models to x - ahead lr e_i, not to x, so that a worker goes on with what it has
    learned and not yet told; x is the same everywhere, and what models hold inside of `averaged`. For workers whose
    data are alike: others stay near their own optima, as the second half of the method, to average the errors now and
    then, is left out (Xu, Huo, Huang, "Step-ahead error feedback for distributed training with compressed gradient",
    AAAI 2021; with local steps Redie, Arablouei, Werner, "SA-PEF", arXiv 2601.20738, where a fraction does best). What
    is untold at the end is lost.
    fragments: the parameters are cut in so many parts, by whole tensors, in their order, and part p of P has its rounds
    p period // P steps before the others' (Streaming DiLoCo): messages are smaller and more frequent.
    min_size: tensors of fewer elements, and vectors, travel in float32; 0: none do (note B). seed: of what is random.
    group: a torch.distributed process group, the default one unless given, or a Communicator.

    Making one is collective: configurations are compared and the parameters of worker 0 go to all, or those of whoever
    has gone furthest, as by `regroup`. An earlier one of the same model refuses rounds from then on, and so does one
    whose model's tensors were replaced. `step` is called after each inner step, on every worker equally often. With one
    worker nothing travels and nothing is compressed: it is the outer optimizer alone.

    Raises TypeError or ValueError for other parameters, and for a model without parameters to train, on several devices
    or with tensors that cannot be averaged, with their name. RuntimeError on every worker where their configurations
    differ, with what differs.

    Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", arXiv 2311.08105; Douillard
    et al., "Streaming DiLoCo with overlapping communication", 2501.18512, without the overlap. With ChunkTopK(), lr=1,
    momentum=0, decay=0.95 and pattern="gather" it is SparseLoCo (Sarfi et al., 2508.15706): by "two-shot" the mean is
    made sparse as well.

    Two workers in one process; with a process group it is the same with one model:

    >>> import compress
    >>> from compress.torch import DiLoCo
    >>> _ = torch.manual_seed(0)
    >>> models = [nn.Linear(500, 10), nn.Linear(500, 10)]
    >>> inner = [torch.optim.SGD(model.parameters(), lr=0.02) for model in models]
    >>> outer = DiLoCo(models, compress.Eden(2), period=10, group=compress.Local(2))
    >>> inputs = torch.randn(2, 8, 500)
    >>> for _ in range(100):
    ...     for model, x, optimizer in zip(models, inputs, inner):
    ...         optimizer.zero_grad()
    ...         loss = (model(x) - x[:, :10]).square().mean()
    ...         loss.backward()
    ...         optimizer.step()
    ...     _ = outer.step()
    >>> bool(loss < 0.2), torch.equal(models[0].weight, models[1].weight)
    (True, True)
    >>> outer.report().rounds, outer.report().ratio > 14
    (10, True)
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        compressor: Compressor | None = None,
        period: int = 30,
        lr: float = 0.7,
        momentum: float = 0.9,
        nesterov: bool = True,
        error_feedback: bool = True,
        decay: float = 1.0,
        ahead: float = 0.0,
        down: Compressor | None = None,
        pattern: str = "auto",
        fragments: int = 1,
        min_size: int = 0,
        seed: int = 0,
        group=None,
    ):
        compressor = Identity() if compressor is None else compressor
        lossless = isinstance(compressor, Identity) and (down is None or isinstance(down, Identity))
        memory = "error" if error_feedback and not lossless else "none"
        self.ahead, shaped = finite_number(ahead, "ahead"), hasattr(compressor, "shapes")
        if not 0 <= self.ahead <= 1:
            raise ValueError(f"DiLoCo: ahead must be in [0, 1], got {ahead}")
        if self.ahead and memory == "none":
            raise ValueError("DiLoCo: ahead is by what messages leave out, and nothing of it is remembered")
        if down is not None and pattern == "gather":
            raise ValueError("DiLoCo: down is of averaged slices, and there are none with pattern='gather'")
        for whole, why in (
            (shaped, "the shapes of a compressor are those of whole tensors, and slices have none"),
            (self.ahead, "ahead of the mean is what a worker's own message has left out, and slices have more"),
        ):
            if whole and (pattern == "two-shot" or down is not None):
                raise ValueError(f"DiLoCo: {why}: pattern='gather', no down")
        if shaped or self.ahead:
            down, pattern = Identity(), "gather"
        self.period, self.min_size = positive_int(period, "period"), positive_int(min_size, "min_size", 0)
        fragments = positive_int(fragments, "fragments", 1, self.period)
        self.lr, self.momentum, self.nesterov = lr, finite_number(momentum, "momentum"), bool(nesterov)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"DiLoCo: momentum must be in [0, 1), got {momentum}")
        self.steps, self.rounds, self._key, self._new = 0, 0, Key(seed), True
        self._totals = dict.fromkeys(("rounds", "sent", "received", "bits", "dense", "moved"), 0)
        self._totals |= dict.fromkeys(("seconds", "encode", "decode", "wait"), 0.0)
        self._models = list(model) if isinstance(model, (list, tuple)) else [model]
        self._fragments, self._parts = _cut(self._models, fragments, self.min_size, self.period), fragments
        self._exact, self._options = AllReduce(Identity()), {"compressor": repr(compressor), "down": repr(down)}
        self._options |= {"pattern": pattern, "error_feedback": memory == "error", "decay": float(decay)}
        self._options |= {"ahead": self.ahead}
        for fragment in self._fragments:
            free = shaped and compressor.shapes is None
            coder = replace(compressor, shapes=fragment.shapes) if free else compressor
            fragment.reduce = AllReduce(coder, down, pattern, memory, decay)
        self.comm = None
        self._start()
        self.regroup(group)
        for each in self._models:
            _LAST[each] = ref(self)

    @_on_device
    def _start(self):
        for fragment in self._fragments:
            start = fragment.vector(0)
            momentum = _zeros(start[: fragment.parameters]) if self.momentum else None
            fragment.state = FragmentState(start, momentum, AllReduceState())

    @property
    def lr(self) -> float:
        """The outer step size."""
        return self._lr

    @lr.setter
    def lr(self, lr):
        if finite_number(lr, "lr") <= 0:
            raise ValueError(f"DiLoCo: lr must be positive, got {lr}")
        self._lr = float(lr)

    # Training

    @_on_device
    def step(self) -> bool:
        """Count an inner step, and do the round of the fragment that is due; whether there was one. Collective then.

        Raises compress.allreduce.Refused, a RuntimeError, on every worker, and nothing has changed but the count, where
        a worker has NaN or Inf, with the parameter's name: `restore` takes its model back to the global parameters, and
        the next round is `period` steps later. Refused too where tensors of a model are no longer those that they were,
        or a newer DiLoCo has it. RuntimeError on every worker where configurations, rounds or global parameters differ,
        with what differs, and where the outer step leaves the range of a tensor's type. What torch raises where a
        worker is gone: see `regroup`.
        """
        self.steps += 1
        for fragment in self._fragments:
            if (self.steps + fragment.lead) % self.period == 0:
                self._round(fragment)
                return True  # leads differ
        return False

    @_on_device
    def synchronise(self) -> None:
        """A round of every fragment now, as at the end of training. Collective; raises as `step`, but fragments before
        the one that is refused have had their rounds."""
        for fragment in self._fragments:
            self._round(fragment)

    @_on_device
    def restore(self) -> None:
        """Set the model to what the last round had set it to: what it has learned since is gone. The state of the inner
        optimizer, which may hold NaN as well, is the caller's. Not collective."""
        for fragment in self._fragments:
            fragment.write()

    @contextmanager
    def averaged(self):
        """The model with the global parameters, to evaluate or to save it, and then as it was. Not collective."""
        tensors = [tensor.detach() for f in self._fragments for each in f.tensors for tensor in each]
        kept = [tensor.clone() for tensor in tensors]
        self._show()
        try:
            yield
        finally:
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)

    @_on_device
    def _show(self):
        for fragment in self._fragments:
            fragment.write(ahead=False)

    def _round(self, fragment):
        began, n, before, spent = perf_counter(), self.comm.n, replace(self.comm.ledger), Spent()
        rows, refusals = [], [self._replaced(fragment, i) for i in range(len(self._models))]
        if not any(refusals):
            rows = fragment.moved()
            refusals = [fragment.refusal(row) for row in rows]
        self._agree(fragment, refusals)
        mean, memory = self._mean(fragment, rows, self._key.at(self.rounds), spent)
        fragment.state = self._outer(fragment, mean, memory)
        fragment.write()
        self.rounds += 1
        after = self.comm.ledger
        for name, amount in {
            "rounds": 1,
            "sent": (after.wire_up - before.wire_up) / n,
            "received": (after.wire_down - before.wire_down) / n,
            "bits": (after.bits_down - before.bits_down) / n,
            "dense": self._exact.received_bits(n, fragment.size),
            "moved": fragment.size,
            "seconds": perf_counter() - began,
            **vars(spent),
        }.items():
            self._totals[name] += amount

    def _replaced(self, fragment, i) -> str:
        """Why model i is not what it was when this was made; empty where it is."""
        if _LAST.get(self._models[i], ref(self))() is not self:
            return "a newer DiLoCo has the model"
        return fragment.replaced(i, self._models[i])

    def _mean(self, fragment, rows, key, spent):
        """The mean of the workers' rows, and what is remembered after it."""
        cut, memory, mean = fragment.compressed, fragment.state.memory, rows[0].copy()
        if self.comm.n == 1:
            for kept in memory.up:
                add_or_store(kept, mean[:cut], 1.0, True)
            return mean, fragment.reduce.init(self.comm, like=mean[:cut])
        if cut:
            parts = [row[:cut] for row in rows]
            _, memory = fragment.reduce.mean(self.comm, memory, parts, key, mean[:cut], spent)
        if cut < fragment.size:
            parts = [row[cut:] for row in rows]
            self._exact.mean(self.comm, AllReduceState(), parts, key, mean[cut:], spent)
        return mean, memory

    def _outer(self, fragment, mean, memory) -> FragmentState:
        """The state after the outer step. Without fma, and in one order: the same bits wherever it is done."""
        cut, (start, momentum, *_) = fragment.parameters, fragment.state
        start, g = start.copy(), mean[:cut]
        x = start[:cut]
        if self.momentum:
            momentum = momentum.copy()
            momentum *= momentum.dtype.type(self.momentum)
            add_or_store(g, momentum, 1.0, True)
            if self.nesterov:
                add_or_store(g, x, -self.lr, True)
            add_or_store(momentum, x, -self.lr * (self.momentum if self.nesterov else 1.0), True)
        else:
            add_or_store(g, x, -self.lr, True)
        kernels.negate(mean[cut:])
        start[cut:] = mean[cut:]
        if beyond := fragment.beyond(start):
            raise RuntimeError(f"DiLoCo: the outer step takes {beyond}: lr = {self.lr}")
        return FragmentState(start, momentum, memory, self.ahead * self.lr)

    # Agreement

    def _settings(self) -> dict:
        """What must be the same on all workers."""
        return {
            **self._options,
            "period": self.period,
            "lr": self.lr,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "fragments": self._parts,
            "min_size": self.min_size,
            "seed": self._key.seed,
            "tensors": [each for fragment in self._fragments for each in fragment.described()],
        }

    def _agree(self, fragment, refusals: list[str]) -> None:
        """Refused on all where a worker refuses, RuntimeError where they are not at one round with the same global
        parameters."""
        start = fragment.state.start
        mine = self._settings() | {
            "rounds": self.rounds,
            "sum of |x| of the global parameters": float(kernels.of(start).sum_abs(start)),
        }
        head = struct.pack("<I", _checksum(mine))
        heard = self._hear(b"r", [head + refusal.encode() for refusal in refusals])
        if refused := {i: text[4:].decode() for i, text in enumerate(heard) if text[4:]}:
            reasons = "; ".join(f"worker {i}: {reason}" for i, reason in refused.items())
            raise Refused(f"DiLoCo: round {self.rounds} is refused, {reasons}")
        self._same([text[:4] for text in heard], mine)

    def _same(self, sums: list, mine: dict, comm=None) -> None:
        """RuntimeError, on all and with what differs, unless the checksums of all workers are one."""
        if len(set(sums)) > 1:
            heard = self._hear(b"s", [json.dumps(mine).encode()] * len(self._models), comm)
            raise RuntimeError(f"DiLoCo: workers differ: {_difference([json.loads(text) for text in heard])}")

    def _hear(self, does: bytes, texts: list[bytes], comm=None) -> list[bytes]:
        """Those of all workers, from those of the workers hosted here. RuntimeError where not all do this."""
        if (comm or self.comm).n == 1:
            return texts
        messages = [_message(np.frombuffer(does + text, np.uint8)) for text in texts]
        heard = (comm or self.comm).allgather(messages)
        heard = [kernels.host(kernels.taken(message.payload)).tobytes() for message in heard]
        if len({text[:1] for text in heard}) > 1:
            said = (f"worker {i} {_DOES.get(text[:1], 'does something else')}" for i, text in enumerate(heard))
            raise RuntimeError(f"DiLoCo: workers take different steps: {', '.join(said)}")
        return [text[1:] for text in heard]

    # The group

    @_on_device
    def regroup(self, group=None) -> None:
        """Go on with the workers of another group: after some have left, to let some in, or both.

        group: as of the class; all its members call it, after the same inner steps, or make a new DiLoCo with it. Who
        is new, has missed a round, or has done as many apart, is sent the global parameters and the outer momentum, in
        full, by the first of those who have done the most rounds: its model is set to them, and it starts without
        errors. Whoever has the sender's global parameters and momentum keeps model and errors. `steps` becomes that of
        the sender everywhere. What a worker that left had still to say is lost with it.

        A worker that dies ends the round of the others with torch's error, after the group's timeout at most, and
        nothing has changed. Survivors go on in a new group, for which torch.distributed.new_group(ranks,
        use_local_synchronization=True) does not ask the dead, or in a new world: destroy_process_group() and
        init_process_group(...) with another store. A process that was started anew can join that one only.

        Raises as the class, and RuntimeError where another worker does a round meanwhile; then nothing has changed.
        """
        comm = group if isinstance(group, Communicator) else Distributed(group)
        models = len(self._models)
        if len(comm.workers) != models:
            raise ValueError(f"DiLoCo: {models} models, of {len(comm.workers)} workers hosted here")
        mine = self._settings()
        has = 0
        for fragment in self._fragments:
            has = fragment.checksum(has)
        packed = _MEMBER.pack(_checksum(mine), self.rounds, self.steps, self._new, has)
        members = [_MEMBER.unpack(text) for text in self._hear(b"g", [packed] * models, comm)]
        self._same([member[0] for member in members], mine, comm)
        first = max(range(comm.n), key=lambda i: (not members[i][3], members[i][1], -i))
        _, rounds, steps, _, theirs = members[first]
        behind = {i for i, (_, done, _, new, has) in enumerate(members) if new or done < rounds or has != theirs}
        here = comm.workers[0] in behind
        states = [fragment.state for fragment in self._fragments]
        if behind - {first}:
            states = [self._passed(comm, state, first, behind, rounds > 0) for state in states]
        memories = [
            fragment.reduce.init(comm, like=state.start[: fragment.compressed])
            for fragment, state in zip(self._fragments, states, strict=True)
        ]
        if not here:
            memories = [
                self._carried(comm, state.memory, memory) for state, memory in zip(states, memories, strict=True)
            ]
        for fragment, state, memory in zip(self._fragments, states, memories, strict=True):
            fragment.state = state._replace(memory=memory)
        self.comm, self.rounds, self.steps, self._new = comm, rounds, steps, False
        if here:
            self.restore()

    def _passed(self, comm, state, first, behind, started) -> FragmentState:
        """The state as worker `first` has it, where this one is behind; zeros before the first round do not travel."""
        here = comm.workers[0] in behind and first not in comm.workers

        def passed(vector):
            vector, silence = vector.copy() if here else vector, _message(kernels.empty(vector, 0, np.uint8))
            for at in range(0, vector.size, _PIECE):
                piece = vector[at : at + _PIECE]
                whole = _message(piece.view(np.uint8))
                heard = comm.alltoall(
                    [whole if j == first and i in behind else silence for i in range(comm.n)] for j in comm.workers
                )
                if here:
                    piece[...] = kernels.values_of(kernels.taken(heard[0][first].payload), piece.dtype)
            return vector

        momentum = state.momentum
        if started and momentum is not None:
            momentum = passed(momentum)
        return state._replace(start=passed(state.start), momentum=momentum)

    def _carried(self, comm, old: AllReduceState, new: AllReduceState) -> AllReduceState:
        """What is remembered, for another number of workers (note D)."""
        up = tuple(error.copy() for error in old.up)
        if old.down:
            for worker, error, owned in zip(self.comm.workers, up, old.down, strict=True):
                add_or_store(owned, error[slices(self.comm.n, error.size)[worker]], float(comm.n), True)
        return new._replace(up=up)

    # Records

    def report(self) -> Report:
        """What rounds have cost this object so far: bytes by the ledger of its communicator, seconds by the clock."""
        totals = self._totals
        rounds, moved = max(1, totals["rounds"]), max(1, totals["moved"])
        return Report(
            rounds=totals["rounds"],
            parameters=sum(fragment.size for fragment in self._fragments),
            workers=self.comm.n,
            bits=totals["bits"] / moved,
            dense=totals["dense"] / moved,
            **{name: totals[name] / rounds for name in ("sent", "received", "seconds", "encode", "decode", "wait")},
        )

    @_on_device
    def state_dict(self) -> dict:
        """Everything that a later round depends on, but for the models: numbers, strings and tensors, for torch.save,
        and torch.load with weights_only=True. It is this worker's own: each saves one, with its model and its inner
        optimizer."""
        return {
            "workers": self.comm.n,
            "hosted": list(self.comm.workers),
            "steps": self.steps,
            "rounds": self.rounds,
            "settings": self._settings(),
            "fragments": [fragment.saved() for fragment in self._fragments],
        }

    @_on_device
    def load_state_dict(self, state: dict, errors: bool = True) -> None:
        """Go on from there, to the same bits where the model and the inner optimizer do as well, and seed, period, lr,
        momentum, nesterov and decay are the same: these are the constructor's. Every worker loads its own, or all the
        same one with errors=False; the model is not touched, `restore` sets it.

        errors: with what messages had left out. That is of one worker among so many and of one way to compress; global
        parameters and momentum are not, so that errors=False takes the state of any worker of any group, and what was
        left out is lost. Raises ValueError, and changes nothing, where the state is of other tensors, fragments or
        momentum, and unless errors=False of another worker, another number of them, or other settings.
        """
        try:
            saved, settings, mine = state["fragments"], state["settings"], self._settings()
            for name in _SHAPE if not errors else mine:
                if settings[name] != mine[name] and name not in _FREE:
                    what = _difference([mine, settings], [name], ("here are", "the state has"))
                    raise ValueError(what + ("" if name in _SHAPE else _WAY_OUT))
            here = [self.comm.n, list(self.comm.workers)]
            if errors and (there := [state["workers"], state["hosted"]]) != here:
                raise ValueError(
                    "the state is of worker {1} of {0}, this is worker {3} of {2}".format(*there, *here) + _WAY_OUT
                )
            states = [fragment.loaded(each, errors) for fragment, each in zip(self._fragments, saved, strict=True)]
            steps, rounds = int(state["steps"]), int(state["rounds"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"DiLoCo: this is not the state of a DiLoCo: {error!r}") from None
        except ValueError as error:
            raise ValueError(f"DiLoCo: {error}") from None
        for fragment, new in zip(self._fragments, states, strict=True):
            fragment.state = new
        self.steps, self.rounds = steps, rounds

    def __repr__(self):
        settings = [f"{name}={value}" for name, value in self._settings().items() if name != "tensors"]
        return f"DiLoCo({', '.join(settings)}; round {self.rounds}, {self.comm.n} workers)"


class _Fragment:
    """Tensors that are synchronised together, as one vector: those that are compressed, those that are not, and then
    statistics, which are no parameters."""

    reduce: AllReduce
    state: FragmentState

    def __init__(self, lead: int, groups: list[list[tuple[str, list[torch.Tensor]]]]):
        self.lead, entries = lead, [entry for group in groups for entry in group]
        self.names = [name for name, _ in entries]
        self.tensors = list(zip(*(tensors for _, tensors in entries), strict=True))  # of each model
        self.sizes = [tensor.numel() for tensor in self.tensors[0]]
        ends = [sum(tensors[0].numel() for _, tensors in group) for group in groups]
        self.shapes = tuple(tuple(tensors[0].shape) for _, tensors in groups[0])
        self.compressed, self.parameters, self.size = ends[0], ends[0] + ends[1], sum(ends)
        self._kinds = [(tensor.dtype, tensor.device) for tensor in self.tensors[0]]
        dtypes = {tensor.dtype for tensor in self.tensors[0]}
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.narrow = dtypes != {self.dtype}

    def vector(self, i: int):
        """What model i has."""
        return _array(torch.cat([tensor.detach().reshape(-1).to(self.dtype) for tensor in self.tensors[i]]))

    def pieces(self, i: int, ahead: bool = True) -> list[torch.Tensor]:
        """The global parameters, or what model i is ahead of them, in the shapes and types that it has them in."""
        start, _, memory, shift = self.state
        if ahead and shift:
            start = start.copy()
            add_or_store(memory.up[i], start[: self.compressed], -shift, True)
        parts = kernels.given(start, self.tensors[i][0]).split(self.sizes)
        return [part.view_as(each).to(each.dtype) for part, each in zip(parts, self.tensors[i], strict=True)]

    def moved(self) -> list:
        """How far each model has moved from where a round set it (note A); of statistics, what they are, negative."""
        rows = []
        for i in range(len(self.tensors)):
            start, row = self.state.start, self.vector(i)
            if self.narrow or self.state.shift:
                start = _array(torch.cat([piece.reshape(-1).to(self.dtype) for piece in self.pieces(i)]))
            kernels.negate(row)
            add_or_store(start[: self.parameters], row[: self.parameters], 1.0, True)
            rows.append(row)
        return rows

    def write(self, ahead: bool = True) -> None:
        """Set the models to the global parameters, or ahead of them as far as they go."""
        for i, tensors in enumerate(self.tensors):
            for tensor, piece in zip(tensors, self.pieces(i, ahead), strict=True):
                tensor.detach().copy_(piece)

    def replaced(self, i: int, model) -> str:
        """What is no longer the tensor that it was in a model, and what to do; empty where all are."""
        now = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        for name, tensor, kind in zip(self.names, self.tensors[i], self._kinds, strict=True):
            if now.get(name) is not tensor or (tensor.dtype, tensor.device) != kind:
                return f"{name} is not the tensor it was: after to() or load_state_dict(assign=True) make a new DiLoCo"
        return ""

    def beyond(self, start) -> str:
        """What is out of the range of a tensor's type, and that; empty where nothing is."""
        at = 0
        for name, size, (dtype, _) in zip(self.names, self.sizes, self._kinds, strict=True):
            if not kernels.of(start).max_abs(start[at : at + size]) <= torch.finfo(dtype).max:
                return f"{name} out of the range of {dtype}".replace("torch.", "")
            at += size
        return ""

    def checksum(self, value: int) -> int:
        """Of the global parameters and the momentum, after others of this value."""
        for vector in self.state[:2]:
            value = value if vector is None else zlib.crc32(kernels.host(vector), value)
        return value

    def refusal(self, row) -> str:
        """Why a row cannot be sent, with the tensor's name; empty where it can."""
        count_nonfinite = kernels.of(row).count_nonfinite
        if not count_nonfinite(row)[0]:
            return ""
        bad, at = [], 0
        for name, size in zip(self.names, self.sizes, strict=True):
            if count := int(count_nonfinite(row[at : at + size])[0]):
                bad.append(f"{name} has {count} NaN or Inf among {size} elements")
            at += size
        return bad[0] + (f", and {len(bad) - 1} more tensors" if bad[1:] else "")

    def described(self) -> list[str]:
        return [
            f"{name} {list(each.shape)} {each.dtype}" for name, each in zip(self.names, self.tensors[0], strict=True)
        ]

    def saved(self) -> dict:
        start, momentum, memory, shift = self.state
        like = self.tensors[0][0]
        return {
            "shift": shift,
            "start": kernels.given(start, like),
            "momentum": None if momentum is None else kernels.given(momentum, like),
            "up": [kernels.given(error, like) for error in memory.up],
            "down": [kernels.given(error, like) for error in memory.down],
        }

    def loaded(self, saved: dict, errors: bool) -> FragmentState:
        """The state that was saved; with the errors that are here, forgotten, unless they are wanted."""
        start, momentum, memory, _ = self.state

        def taken(tensor, like):
            if tuple(tensor.shape) != (like.size,) or tensor.dtype != self.dtype:
                raise ValueError(f"a vector of {list(tensor.shape)} {tensor.dtype}, expected {like.size} {self.dtype}")
            return kernels.like(like, tensor.detach().to("cpu", copy=True).numpy())

        if (momentum is None) != (saved["momentum"] is None):
            raise ValueError("the state has no momentum, or there is none here: momentum = 0 needs none")
        up, down = (tuple(map(_zeros, own)) for own in memory[:2])
        if errors:
            up = tuple(taken(*pair) for pair in zip(saved["up"], up, strict=True))
            down = tuple(taken(*pair) for pair in zip(saved["down"], down, strict=True))
        momentum = None if momentum is None else taken(saved["momentum"], momentum)
        memory = memory._replace(up=up, down=down)
        return FragmentState(taken(saved["start"], start), momentum, memory, float(saved["shift"]))


def _cut(models, count: int, min_size: int, period: int) -> list[_Fragment]:
    """The fragments of models, one for each worker hosted here: each tensor is in that of count equal parts of all
    parameters in which its middle lies. Parts without a tensor are left out."""
    for model in models:
        if not isinstance(model, nn.Module):
            raise TypeError(f"DiLoCo: model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(model, DistributedDataParallel):
            raise TypeError("DiLoCo: a DistributedDataParallel averages gradients in every step, give its `module`")
    kinds = [[_parameters(model) for model in models], [_statistics(model) for model in models]]
    for named in kinds:
        shapes = [[(name, tensor.shape, tensor.dtype) for name, tensor in each.items()] for each in named]
        if any(each != shapes[0] for each in shapes):
            raise ValueError("DiLoCo: the models differ in their parameters")
    every = [id(tensor) for each in kinds[0] for tensor in each.values()]
    if len(set(every)) < len(every):
        raise ValueError("DiLoCo: models share parameters")
    parameters, statistics = (
        [(name, [each[name] for each in named]) for name in named[0]] if named else [] for named in kinds
    )
    total = sum(tensors[0].numel() for _, tensors in parameters)
    if not total:
        raise ValueError("DiLoCo: the model has no parameters that require gradients")
    devices = {tensor.device for _, tensors in parameters + statistics for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"DiLoCo: the model is on several devices, {', '.join(sorted(map(str, devices)))}")
    parts, at = [([], [], []) for _ in range(count)], 0
    for entry in parameters:
        tensor = entry[1][0]
        exact = min_size > 0 and (tensor.ndim < 2 or tensor.numel() < min_size)
        parts[(2 * at + tensor.numel()) * count // (2 * total)][exact].append(entry)
        at += tensor.numel()
    found = [(p * period // count, part) for p, part in enumerate(parts) if part[0] or part[1]]
    found[0][1][2].extend(statistics)
    return [_Fragment(lead, part) for lead, part in found]


def _parameters(model) -> dict[str, torch.Tensor]:
    """Those that are trained, by name. TypeError for those that cannot be averaged."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, p in found.items():
        plain = p.layout == torch.strided and p.dtype.is_floating_point and p.dtype.itemsize > 1
        if is_lazy(p) or p.is_meta or hasattr(p, "to_local") or not plain:
            what = "without a shape yet" if is_lazy(p) else f"a {type(p.data).__name__} of {p.dtype} on {p.device}"
            raise TypeError(
                f"DiLoCo: {name} is {what}: parameters must be whole, dense tensors of float16 to float64 with memory"
            )
    return {name: p for name, p in found.items() if p.numel()}


def _statistics(model) -> dict[str, torch.Tensor]:
    """Means and variances of BatchNorm, by name."""
    return {
        f"{prefix}.{name}".lstrip("."): buffer
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name in ("running_mean", "running_var")
        if (buffer := getattr(module, name)) is not None
    }


def _array(flat: torch.Tensor):
    """A flat tensor's memory as a NumPy or CuPy array."""
    return flat.numpy() if flat.device.type == "cpu" else kernels.vector(flat)


def _zeros(like):
    vector = like.copy()
    vector.fill(0)
    return vector


def _message(payload) -> Message:
    return Message(payload, 8 * payload.size, payload.size, np.dtype(np.float32))


def _checksum(plain) -> int:
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def _difference(those: list[dict], names=None, who=None) -> str:
    """The first thing in which others differ from the first of those."""
    for i, other in enumerate(those):
        for name in names or other:
            mine, theirs = those[0][name], other[name]
            if mine == theirs:
                continue
            if isinstance(mine, list):
                n = min(len(mine), len(theirs))
                k = next((k for k in range(n) if mine[k] != theirs[k]), n)
                name = f"tensor {k}"
                mine, theirs = ([*each, "none"][k] if k <= len(each) else "none" for each in (mine, theirs))
            first, second = who or ("worker 0 has", f"worker {i} has")
            return f"{name}: {first} {mine}, {second} {theirs}"
    return "in nothing that can be named"
