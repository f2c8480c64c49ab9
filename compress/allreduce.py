"""AllReduce: the mean of the workers' vectors over compressed messages, the same bits on every worker where compressors
are `exact`.

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
D. A worker that cannot encode, because of a NaN for one, says why in place of its message, and so does a process that
   fails in another way before it has anything to send. That reaches all before anything has changed, and all raise:
   nobody waits for a message that never comes. What fails after the last exchange fails alone.
E. States are replaced, never written to: what failed has no effect, and a state can be kept, saved and shared.
F. The owner of a slice adds up messages as it decodes them, one `decode_add` each, without a vector in between, and
   encodes what that has made: n - 1 kernels and one, not a single one that does all.
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
    shift of the mean, (d,), which all hold; Q of a `PowerIteration`.
    """

    up: tuple = ()
    down: tuple = ()
    shared: np.ndarray | None = None


@dataclass
class Spent:
    """Seconds in encoders, in decoders, and in waiting for messages, which is where they travel.

    A GPU works on after its kernels have been launched: what they take is then in `wait`, which needs their results.
    """

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
    Compressors that are not `exact` may decode to other last bits on another kind of machine.

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
        up, down = self.up_coder, self.down_coder
        if not two_shot:
            return (n - 1) * up.bits(d)
        size, longer = divmod(d, n)  # so many slices have a coordinate more
        sizes = [(size, n - longer), (size + 1, longer)] if longer else [(size, n)]
        averages = sum(count * down.bits(size) for size, count in sizes)
        return averages + max((n - 1) * up.bits(size) - down.bits(size) for size, _ in sizes)

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
        if not self._remembers:
            return AllReduceState()
        up = tuple(kernels.zeros(like, d) for _ in comm.workers)
        down = tuple(kernels.zeros(like, sizes[j]) for j in comm.workers) if two_shot else ()
        return AllReduceState(up, down, kernels.zeros(like, d) if self.memory == "shift" else None)

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
        cannot be encoded, with the worker and the reason; and where one of several processes fails by itself before it
        has sent its messages, with that failure as its cause there. Refused or ValueError, on every process, where d or
        the dtype is not the same on all. ValueError, with one process, for rows of another number or length than the
        state's.
        """
        spent, n, d = Spent() if spent is None else spent, comm.n, _like(state, rows).size
        shots = self._two_shots if self.two_shot(n, d) else self._gather
        mean, after = shots(comm, state, rows, key, out, spent)
        shown = kernels.given(mean, rows[0] if out is None else out)
        return (shown if out is None else out), after

    def reduce_scatter(
        self,
        comm: Communicator,
        state: AllReduceState,
        rows: Sequence,
        key: Key,
        spent: Spent | None = None,
    ) -> tuple[list[np.ndarray], AllReduceState]:
        """The first half of "two-shot": for each worker hosted here its slice of the mean, where worker j owns
        coordinates j d // n to (j + 1) d // n; nobody else is told.

        Otherwise as `mean`, for the state of a "two-shot", of which `down` is left alone and may be (). Where d is not
        the same on all some may not notice. Raises ValueError for memory="shift", of which there is no such half.
        """
        if self.memory == "shift":
            raise ValueError("AllReduce: a reduce-scatter has errors or no memory, not shifts")
        spent = Spent() if spent is None else spent
        shot = self._send_slices(comm, state, rows, key, spent)
        parts, after = self._average(comm, state, shot, spent)
        return [kernels.given(part, rows[0]) for part in parts], after

    def _gather(self, comm, state, rows, key, out, spent):
        coder, n, keys = self.up_coder, comm.n, [key.worker(i).fold(_UP) for i in range(comm.n)]
        with _Sent(state, rows) as sent, spent.on("encode"):
            rows = self._rows(comm, state, rows)
            mean = kernels.output(out, rows[0].size, rows[0].dtype, rows[0])
            targets = self._targets(rows, state.up)
            sent.messages = [_encoded(coder, x, keys[i]) for i, x in zip(comm.workers, targets, strict=True)]
        received = sent.allgather(comm, spent, coder, [_like(state, rows).size] * n)
        _check(received, [mean.size] * n, rows[0].dtype)
        with spent.on("decode"):
            mean.fill(0)
            for message, k in zip(received, keys, strict=True):
                coder.decode_add(message, k, mean, 1 / n)
        with spent.on("encode"):
            whole = slice(0, mean.size)
            lost = [[(whole, m, keys[i])] for i, m in zip(comm.workers, sent.messages, strict=True)]
            up, shared = self._left(coder, targets, state.up, lost), None
            if self.memory == "shift":
                shared = self._moved(coder, state.shared, mean, [whole])
        return mean, AllReduceState(up, (), shared)

    def _two_shots(self, comm, state, rows, key, out, spent):
        coder, keys = self.down_coder, [key.worker(j).fold(_DOWN) for j in range(comm.n)]
        shot = self._send_slices(comm, state, rows, key, spent)
        with _Sent(state, rows) as sent:
            parts, after = self._average(comm, state, shot, spent)
            with spent.on("encode"):
                row = shot.rows[0]
                mean, pieces = kernels.output(out, row.size, row.dtype, row), slices(comm.n, row.size)
                own = [state.shared[pieces[j]] for j in comm.workers] if self.memory == "shift" else state.down
                targets = self._targets(parts, own)
                sent.messages = [_encoded(coder, x, keys[j]) for j, x in zip(comm.workers, targets, strict=True)]
        received = sent.allgather(comm, spent, coder, _sizes(comm.n, shot.rows[0]))
        _check(received, map(_length, pieces), row.dtype)
        with spent.on("decode"):
            for message, k, piece in zip(received, keys, pieces, strict=True):
                coder.decode(message, k, mean[piece])
        with spent.on("encode"):
            if self.memory == "error":
                lost = [[(slice(None), m, keys[j])] for j, m in zip(comm.workers, sent.messages, strict=True)]
                after = after._replace(down=self._left(coder, targets, own, lost))
            elif self.memory == "shift":
                after = after._replace(shared=self._moved(coder, state.shared, mean, pieces))
        return mean, after

    def _send_slices(self, comm, state, rows, key, spent) -> _Shot:
        """To every owner of a slice what the workers hosted here have of it."""
        coder, n, keys = self.up_coder, comm.n, [key.worker(i).fold(_UP) for i in range(comm.n)]
        with _Sent(state, rows) as sent, spent.on("encode"):
            rows = self._rows(comm, state, rows)
            targets, pieces = self._targets(rows, state.up), slices(n, rows[0].size)
            for i, target in zip(comm.workers, targets, strict=True):
                row = [_encoded(coder, target[pieces[j]], keys[i].fold(j), j == i) for j in range(n)]
                if refused := [message for message in row if message.size == _REFUSED]:
                    whole = _encoded(coder, target, keys[i])  # says the index in the whole
                    row = [whole if whole.size == _REFUSED else refused[0]] * n
                sent.messages.append(row)
        received = sent.alltoall(comm, spent, coder, _sizes(n, _like(state, rows)))
        return _Shot(rows, targets, keys, sent.messages, received)

    def _average(self, comm, state, shot, spent):
        """(the mean in the slices owned here, the state after the first shot)."""
        coder, n, (rows, targets, keys, sent, received) = self.up_coder, comm.n, shot
        pieces, parts = slices(n, rows[0].size), []
        for j, messages in zip(comm.workers, received, strict=True):
            _check(messages, [0 if i == j else _length(pieces[j]) for i in range(n)], rows[0].dtype)
        with spent.on("decode"):
            for j, messages, target in zip(comm.workers, received, targets, strict=True):
                part = kernels.zeros(target, _length(pieces[j]))
                for i, message in enumerate(messages):
                    if i == j:
                        add_or_store(target[pieces[j]], part, 1 / n, True)
                    else:
                        coder.decode_add(message, keys[i].fold(j), part, 1 / n)
                parts.append(part)
        with spent.on("encode"):
            lost = [
                [(pieces[j], None if j == i else row[j], keys[i].fold(j)) for j in range(n)]
                for i, row in zip(comm.workers, sent, strict=True)
            ]
            up, down = self._left(coder, targets, state.up, lost), state.down
            if self.memory == "shift":
                down = tuple(
                    self._moved(coder, mine, part, [slice(0, part.size)])
                    for mine, part in zip(state.down, parts, strict=True)
                )
        return parts, state._replace(up=up, down=down)

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

    def _left(self, coder, targets, own, lost):
        """What is remembered after these messages: of each target [(coordinates, message, key), ...], where no message
        says that nothing was lost. Errors take the place of targets."""
        if not self._remembers:
            return ()
        errors, after = self.memory == "error", []
        for target, kept, parts in zip(targets, own, lost, strict=True):
            left = target if errors else kept.copy()
            for part, message, key in parts:
                weight = -1.0 if errors else self._step(coder, left[part].size)
                if message is not None:
                    coder.decode_add(message, key, left[part], weight)
                elif errors:
                    left[part].fill(0)
                else:
                    add_or_store(target[part], left[part], weight, True)
            if errors and self.decay != 1:
                left *= left.dtype.type(self.decay)
            after.append(left)
        return tuple(after)

    def _moved(self, coder, shift, mean, pieces):
        """A shift after a mean of differences from it; the mean, in place, becomes that of what they differ from it."""
        moved = shift.copy()
        for piece in pieces:
            add_or_store(mean[piece], moved[piece], self._step(coder, _length(piece)), True)
        add_or_store(shift, mean, 1.0, True)
        return moved


class Refused(RuntimeError):
    """A worker has a vector that cannot be encoded. All know, there is no mean, and no state has changed."""


class _Shot(NamedTuple):
    """Of the workers hosted here: vectors, what of them was encoded, the keys of all n, messages sent and received."""

    rows: list
    targets: list
    keys: list
    sent: list
    received: list


class _Sent:
    """The messages of the workers hosted here. What fails in its context is what they are told instead (note D)."""

    def __init__(self, state, rows):
        self.messages, self.failure, self._given = [], None, (state, rows)

    def __enter__(self):
        return self

    def __exit__(self, kind, failure, trace):
        if isinstance(failure, Exception):
            self.failure = failure
            return True

    def allgather(self, comm, spent, coder, sizes) -> list[Message]:
        """Of all n workers, where worker i sends sizes[i] coordinates."""
        lengths = self._lengths(coder, sizes)
        (received,) = self._exchange(comm, spent, lambda messages: [comm.allgather(messages, lengths)])
        return received

    def alltoall(self, comm, spent, coder, sizes) -> list[list[Message]]:
        """Of all n workers, where worker j is sent sizes[j] coordinates."""
        lengths = self._lengths(coder, sizes)
        return self._exchange(comm, spent, lambda messages: comm.alltoall(messages, lengths), comm.n)

    def _lengths(self, coder, sizes):
        """Bytes that payloads are expected to have, where something can be."""
        dtype = _like(*self._given).dtype
        bits = {size: coder.expected_bits(size, dtype) for size in set(sizes)}
        return None if None in bits.values() else [-(-bits[size] // 8) for size in sizes]

    def _exchange(self, comm, spent, send, copies=None):
        """What is heard of all, unless somebody refuses."""
        if self.failure is not None:
            if comm.processes == 1:
                raise self.failure
            refusal = _refusal(f"{type(self.failure).__name__}: {self.failure}", _like(*self._given))
            self.messages = [[refusal] * copies if copies else refusal for _ in comm.workers]
        with spent.on("wait"):
            received = send(self.messages)
        for messages in received:
            for i, message in enumerate(messages):
                if message.size == _REFUSED:
                    reason = kernels.host(kernels.taken(message.payload)).tobytes()
                    raise Refused(f"worker {i}: {reason.decode(errors='replace')}") from self.failure
        return received


def slices(n: int, d: int) -> list[slice]:
    """The coordinates that each of n workers owns: j d // n to (j + 1) d // n."""
    return [slice(j * d // n, (j + 1) * d // n) for j in range(n)]


def _sizes(n: int, row) -> list[int]:
    """Of the slices of a vector."""
    return [_length(piece) for piece in slices(n, row.size)]


def _length(piece: slice) -> int:
    return piece.stop - piece.start


def _like(state, rows):
    """An array of the kind and size of rows, as far as can be told of what has not been checked: so that a process that
    fails takes part in the exchange of the others."""
    try:
        return state.up[0] if state.up else kernels.vector(rows[0])
    except (IndexError, TypeError, ValueError):
        return np.empty(0, np.float32)


def _encoded(coder, x, key, own: bool = False) -> Message:
    """The message for x; an empty one for what is its own; or in its place why there is none."""
    try:
        if own:
            check_finite(x)
            return Message(kernels.empty(x, 0, np.uint8), 0, 0, x.dtype)
        return coder.encode(x, key)
    except ValueError as error:
        return _refusal(str(error), x)


def _refusal(reason: str, x) -> Message:
    reason = kernels.like(x, np.frombuffer(reason.encode(), np.uint8))
    return Message(reason, 8 * reason.size, _REFUSED, np.dtype(np.float32))


def _check(messages, sizes, dtype) -> None:
    """ValueError where a worker's message is not of these coordinates."""
    for i, (message, size) in enumerate(zip(messages, sizes, strict=True)):
        if (message.size, message.dtype) != (size, dtype):
            raise ValueError(
                f"worker {i} sends {message.size} coordinates, {message.dtype}, {size}, {dtype}, are expected: "
                "d and the dtype must be the same everywhere"
            )
