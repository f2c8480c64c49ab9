"""AllReduce: the mean of the workers' vectors over compressed messages, the same bits on every worker.

Design note
-----------
A. Two patterns. "gather": every worker sends its message to all others, which average them; a worker receives n - 1
   messages. "two-shot": every worker owns a slice of d/n coordinates, is sent the slices of all others (alltoall),
   averages them and sends the average, compressed once more, to all (allgather); a worker receives 2 (n - 1)/n of a
   message, as with the reduce-scatter and all-gather of an uncompressed all-reduce.
B. What a worker would send itself stays as it is: its own slice goes into the mean in full.
C. The error of the mean has two parts: the mean of what the uplinks lose, and what the downlink loses of that. With
   memory="error" both stay with whoever lost them and go into the next message: with the worker, and with the owner of
   the slice (Tang et al., "DoubleSqueeze", ICML 2019). With memory="shift" both ends compress differences from what
   they have said before: DIANA (Mishchenko et al. 2019) where the compressor is unbiased, EF21 (Richtarik et al. 2021)
   where it is contractive; the owner of a slice holds the mean of the workers' shifts, and all hold that of the mean.
D. A worker that cannot encode, because of a NaN for one, says why in place of its message. That reaches all before
   anything has changed, and all raise: nobody waits for a message that never comes.
E. States are replaced, never written to: what failed has no effect, and a state can be kept, saved and shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np

from . import kernels
from .combine import Scaled, contractive
from .comm import Communicator
from .compressor import Compressor, Message, Unbiased, add_or_store, check_finite, finite_number
from .key import Key

PATTERNS, MEMORIES = ("auto", "gather", "two-shot"), ("none", "error", "shift")
_UP, _DOWN = 0x7570, 0x646F776E  # sub-streams of a round's key
_REFUSED = 2**62  # in place of a message's size: the payload says why there is none


class AllReduceState(NamedTuple):
    """What a process remembers: of each worker that it hosts, of the slice that this worker owns, and of the mean.

    up: errors, or shifts, (d,) each. down: errors of slices, or the means of the workers' shifts there. shared: the
    shift of the mean, (d,), which all hold.
    """

    up: tuple = ()
    down: tuple = ()
    shared: np.ndarray | None = None


@dataclass
class Spent:
    """Seconds in encoders, in decoders, and in waiting for messages, which is where they travel."""

    encode: float = 0.0
    decode: float = 0.0
    wait: float = 0.0

    @contextmanager
    def on(self, what: str):
        start = perf_counter()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + perf_counter() - start)


@dataclass(frozen=True)
class AllReduce:
    """How n workers average their vectors.

    compressor: of what workers send. down: of the averaged slices, as `compressor` unless given; with "gather" there
    is no such message. pattern: "gather", "two-shot", or "auto", whichever receives less (note A).
    memory: of what messages leave out, "none", "error" or "shift" (note C). With "error" an unbiased compressor is
    used as Scaled(it). decay: of a remembered error, by 1 it is kept in full. shift_step: by how much of a message a
    shift moves; 1/(1 + omega) of an unbiased compressor and 1 of a contractive one unless given.

    init(comm, d) gives the first state, mean(comm, state, rows, key) the mean and the next state. Every process has
    the same configuration, key and d. The randomness of a round is that of key, which must be new in every round.

    Raises TypeError or ValueError for other parameters.

    >>> import compress
    >>> comm, key, rng = compress.Local(4), compress.Key(0), np.random.default_rng(0)
    >>> reduce = AllReduce(compress.Eden(4))
    >>> state, rows = reduce.init(comm, 10_000), rng.standard_normal((4, 10_000)).astype(np.float32)
    >>> mean, state = reduce.mean(comm, state, rows, key.at(0))
    >>> bool(np.sum((mean - rows.mean(axis=0)) ** 2) < 0.02 * np.sum(rows.mean(axis=0) ** 2))
    True
    >>> comm.ledger.bits_down / 4 / 10_000 < 2 * 3 / 4 * 4.2  # received by each; gather would take 3 * 4
    True
    """

    compressor: Compressor
    down: Compressor | None = None
    pattern: str = "auto"
    memory: str = "none"
    decay: float = 1.0
    shift_step: float | None = None

    def __post_init__(self):
        for name in ("compressor", "down"):
            value = getattr(self, name)
            if not isinstance(value, Compressor) and not (name == "down" and value is None):
                raise TypeError(f"AllReduce: {name} must be a Compressor, got {value!r}")
        for name, known in (("pattern", PATTERNS), ("memory", MEMORIES)):
            if getattr(self, name) not in known:
                raise ValueError(f"AllReduce: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= finite_number(self.decay, "decay") <= 1:
            raise ValueError(f"AllReduce: decay must be in [0, 1], got {self.decay}")
        if self.shift_step is not None and not 0 < finite_number(self.shift_step, "shift_step") <= 1:
            raise ValueError(f"AllReduce: shift_step must be in (0, 1], got {self.shift_step}")

    # What travels

    @property
    def up_coder(self) -> Compressor:
        """What workers encode with."""
        return contractive(self.compressor) if self.memory == "error" else self.compressor

    @property
    def down_coder(self) -> Compressor:
        """What owners of slices encode with."""
        down = self.compressor if self.down is None else self.down
        return contractive(down) if self.memory == "error" else down

    def two_shot(self, n: int, d: int) -> bool:
        """Whether the pattern is "two-shot", for n workers and d coordinates."""
        if self.pattern != "auto":
            return self.pattern == "two-shot"
        return self._received(n, d, True) < self._received(n, d, False)

    def received_bits(self, n: int, d: int) -> int:
        """Payload bits that a worker receives in a round, the one that receives most; an upper bound where a
        compressor's length varies."""
        return self._received(n, d, self.two_shot(n, d))

    def _received(self, n, d, two_shot):
        if not two_shot:
            return (n - 1) * self.up_coder.bits(d)
        sizes = [_length(piece) for piece in slices(n, d)]
        down = [self.down_coder.bits(size) for size in sizes]
        return max((n - 1) * self.up_coder.bits(size) + sum(down) - own for size, own in zip(sizes, down, strict=True))

    # State

    def init(self, comm: Communicator, d: int | None = None, dtype=np.float32, like=None) -> AllReduceState:
        """The state before the first round: zeros, of NumPy vectors of d coordinates, or of vectors like `like`.

        Raises TypeError or ValueError where a compressor does not suit d, or has no omega and one is needed.
        """
        if (d is None) == (like is None):
            raise TypeError("give d, or like=x")
        like = np.empty(d, dtype) if like is None else kernels.vector(like, "like")
        d, two_shot = like.size, self.two_shot(comm.n, like.size)
        sizes = [_length(piece) for piece in slices(comm.n, d)]
        for coder, size in ((self.up_coder, sizes[-1] if two_shot else d), (self.down_coder, sizes[-1])):
            coder.bits(size, like.dtype)
            if isinstance(coder, Scaled):
                coder.alpha(size)
            if self.memory == "shift":
                self._step(coder, size)

        def zeros(size):
            vector = kernels.empty(like, size, like.dtype)
            vector.fill(0)
            return vector

        if not self._remembers:
            return AllReduceState()
        up = tuple(zeros(d) for _ in comm.workers)
        down = tuple(zeros(sizes[j]) for j in comm.workers) if two_shot else ()
        return AllReduceState(up, down, zeros(d) if self.memory == "shift" else None)

    def _step(self, coder, d):
        if self.shift_step is not None:
            return self.shift_step
        return 1 / (1 + coder.omega(d)) if isinstance(coder, Unbiased) else 1.0

    # A round

    def mean(
        self,
        comm: Communicator,
        state: AllReduceState,
        rows: Sequence,
        key: Key,
        out=None,
        spent: Spent | None = None,
    ) -> tuple[np.ndarray, AllReduceState]:
        """The mean of the vectors of all n workers, the same bits everywhere, and the state after it.

        rows: of the workers hosted here, in their order, vectors of d float32 or float64 (float16 and bfloat16 are
        widened), NumPy's, CuPy's or torch's. key: of this round, the same everywhere. out: for the mean. spent: adds
        up the seconds. Collective.

        Raises Refused, a RuntimeError, on every process, and no state has changed, where a worker has a vector that
        cannot be encoded: with the worker and the reason. ValueError for rows of another number or length than the
        state's; either of them, on every process, where d is not the same on all.
        """
        spent = Spent() if spent is None else spent
        given, rows = rows[0], self._rows(comm, state, rows)
        n, d, two_shot = comm.n, rows[0].size, self.two_shot(comm.n, rows[0].size)
        mean = kernels.output(out, d, rows[0].dtype, rows[0])
        if two_shot:
            coder, pieces = self.down_coder, slices(n, d)
            keys = [key.worker(j).fold(_DOWN) for j in range(n)]
        else:
            coder, pieces = self.up_coder, [slice(0, d)]
            keys = [key.worker(i).fold(_UP) for i in range(n)]
        try:
            parts, own = rows, state.up
            if two_shot:
                parts, up, down = self._scatter(comm, state, rows, key, spent)
                own = down if self.memory == "error" else [state.shared[pieces[j]] for j in comm.workers if state.up]
            with spent.on("encode"):
                targets = self._targets(parts, own)
                sent = [_said(coder, target, keys[i]) for i, target in zip(comm.workers, targets, strict=True)]
        except ValueError as error:  # of what was heard in the first shot: others may not know
            sent = [_refusal(error, row) for row in rows]
        with spent.on("wait"):
            heard = comm.allgather(sent)
        for i, message in enumerate(heard):
            _heed(i, message, _length(pieces[i if two_shot else 0]))
        with spent.on("decode"):
            if two_shot:
                for message, k, piece in zip(heard, keys, pieces, strict=True):
                    coder.decode(message, k, mean[piece])
            else:
                mean.fill(0)
                for message, k in zip(heard, keys, strict=True):
                    coder.decode_add(message, k, mean, 1 / n)
        with spent.on("encode"):
            if not two_shot or self.memory == "error":
                said = [[(slice(None), message, keys[i])] for i, message in zip(comm.workers, sent, strict=True)]
                left = self._left(coder, targets, own, said)
                up, down = (up, left) if two_shot else (left, ())
            shared = self._shared(coder, state.shared, mean, pieces)
        shown = kernels.given(mean, given if out is None else out)
        return (shown if out is None else out), AllReduceState(up, down, shared)

    def reduce_scatter(
        self,
        comm: Communicator,
        state: AllReduceState,
        rows: Sequence,
        key: Key,
        spent: Spent | None = None,
    ) -> tuple[list[np.ndarray], AllReduceState]:
        """The first half of "two-shot": for each worker hosted here its slice of the mean, where worker j owns
        coordinates j d // n to (j + 1) d // n; nobody else is told. Otherwise as `mean`, for the state of a "two-shot"
        without a shift."""
        given, rows = rows[0], self._rows(comm, state, rows)
        parts, up, down = self._scatter(comm, state, rows, key, Spent() if spent is None else spent)
        return [kernels.given(part, given) for part in parts], state._replace(up=up, down=down)

    def _scatter(self, comm, state, rows, key, spent):
        """(the mean in the slices owned here, the states `up` and `down` after it): the first shot."""
        coder, n, dtype = self.up_coder, comm.n, rows[0].dtype
        pieces, keys = slices(n, rows[0].size), [key.worker(i).fold(_UP) for i in range(n)]
        with spent.on("encode"):
            targets = self._targets(rows, state.up)
            sent = []
            for i, target in zip(comm.workers, targets, strict=True):
                row = [_said(coder, target[pieces[j]], keys[i].fold(j), j == i) for j in range(n)]
                refused = [message for message in row if message.size == _REFUSED]
                sent.append([_said(coder, target, keys[i])] * n if refused else row)  # with the index in the whole
        with spent.on("wait"):
            heard = comm.alltoall(sent)
        for j, row in zip(comm.workers, heard, strict=True):
            for i, message in enumerate(row):
                _heed(i, message, 0 if i == j and message.size != _REFUSED else _length(pieces[j]))
        with spent.on("decode"):
            parts = []
            for j, row, target in zip(comm.workers, heard, targets, strict=True):
                part = kernels.empty(target, _length(pieces[j]), dtype)
                part.fill(0)
                for i, message in enumerate(row):
                    if i == j:
                        add_or_store(target[pieces[j]], part, 1 / n, True)
                    else:
                        coder.decode_add(message, keys[i].fold(j), part, 1 / n)
                parts.append(part)
        with spent.on("encode"):
            said = [
                [(pieces[j], None if j == i else row[j], keys[i].fold(j)) for j in range(n)]
                for i, row in zip(comm.workers, sent, strict=True)
            ]
            up, down = self._left(coder, targets, state.up, said), state.down
            if self.memory == "shift":
                down = tuple(
                    self._shared(coder, mine, part, [slice(0, part.size)])
                    for mine, part in zip(state.down, parts, strict=True)
                )
        return parts, up, down

    @property
    def _remembers(self) -> bool:
        return self.memory != "none"

    def _rows(self, comm, state, rows):
        rows = [kernels.vector(row, "a row") for row in rows]
        if len(rows) != len(comm.workers):
            raise ValueError(f"{len(rows)} rows, of {len(comm.workers)} workers hosted here")
        if len({(row.size, row.dtype) for row in [*rows, *state.up]}) != 1 or bool(state.up) != self._remembers:
            raise ValueError(
                f"rows of {[row.size for row in rows]} coordinates, {rows[0].dtype}; "
                f"the state is of {[row.size for row in state.up]}: make one by init"
            )
        return rows

    def _targets(self, rows, own):
        """What is encoded: x + error, x - shift, or x itself without a memory."""
        if not self._remembers:
            return rows
        with np.errstate(over="ignore"):  # encoders see it
            both = zip(rows, own, strict=True)
            return [row + kept if self.memory == "error" else row - kept for row, kept in both]

    def _left(self, coder, targets, own, said):
        """What is remembered after these messages: of each target [(coordinates, message, key), ...], where no message
        says that nothing was lost. Errors take the place of targets."""
        if not self._remembers:
            return ()
        errors, after = self.memory == "error", []
        for target, kept, parts in zip(targets, own, said, strict=True):
            left = target if errors else kept.copy()
            for part, message, key in parts:
                weight = -1.0 if errors else self._step(coder, left[part].size)
                if message is None:
                    add_or_store(target[part].copy() if errors else target[part], left[part], weight, True)
                else:
                    coder.decode_add(message, key, left[part], weight)
            if errors and self.decay != 1:
                left *= left.dtype.type(self.decay)
            after.append(left)
        return tuple(after)

    def _shared(self, coder, shift, mean, pieces):
        """A shift after a mean of differences from it; the mean, in place, becomes that of what they differ from it."""
        if self.memory != "shift":
            return None
        moved = shift.copy()
        for piece in pieces:
            add_or_store(mean[piece], moved[piece], self._step(coder, _length(piece)), True)
        add_or_store(shift, mean, 1.0, True)
        return moved


class Refused(RuntimeError):
    """A worker has a vector that cannot be encoded. All know, there is no mean, and no state has changed."""


def slices(n: int, d: int) -> list[slice]:
    """The coordinates that each of n workers owns: j d // n to (j + 1) d // n."""
    return [slice(j * d // n, (j + 1) * d // n) for j in range(n)]


def _length(piece: slice) -> int:
    return piece.stop - piece.start


def _said(coder, x, key, own: bool = False) -> Message:
    """The message for x; an empty one for what is its own; or in its place why there is none."""
    try:
        if own:
            check_finite(x)
            return Message(kernels.empty(x, 0, np.uint8), 0, 0, x.dtype)
        return coder.encode(x, key)
    except ValueError as error:
        return _refusal(error, x)


def _refusal(error, x) -> Message:
    reason = kernels.like(x, np.frombuffer(str(error).encode(), np.uint8))
    return Message(reason, 8 * reason.size, _REFUSED, x.dtype)


def _heed(i: int, message: Message, size: int) -> None:
    """Raise what worker i has said in place of a message, or where that is of another length."""
    if message.size == _REFUSED:
        raise Refused(f"worker {i}: {kernels.host(message.payload).tobytes().decode()}")
    if message.size != size:
        raise ValueError(
            f"worker {i} sends {message.size} coordinates, {size} are expected: d must be the same everywhere"
        )
