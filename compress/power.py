"""PowerIteration: the mean of the workers' matrices by a few of its singular vectors, in messages of few bits.

Design note
-----------
A. With X_i the matrix of worker i and X their mean, a step of power iteration needs two means: of Q X_i', whose rows
   span nearly the leading left singular vectors of X, and of what fits X_i best in them. Both are linear in X_i, so
   that an `AllReduce` of (m + n) r numbers serves each, and their number does not grow with the workers' (Vogels,
   Karimireddy, Jaggi, "PowerSGD", NeurIPS 2019, whose factors travel in float32).
B. Factors may be coarse. W is an orthonormal basis of the mean of Q X_i' as it was decoded, and a worker sends
   B_i = W X_i: W' W X is the nearest to X in that span, however coarse it is, and what is lost of B is lost of the
   mean once. One step of a quantiser serves all matrices: errors of all B count alike in X.
C. The next Q is a basis of B, and W and the mean are made of what all have decoded, in sums of a fixed order
   (csrc/product.h): the same bits everywhere. What a worker computes for itself is BLAS's.
D. A worker keeps X_i + e_i - W' B_i with B_i as it was decoded, and what the mean of the B_i loses on its way down.
   PowerSGD tells errors from the mean: they then walk away with what workers differ in, which is no error, and coarse
   factors of what has grown are lost.
E. Where a process fails by itself before a factor's exchange, the others are told in it, as by `AllReduce`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from . import kernels
from .allreduce import AllReduce, AllReduceState, Spent, slices
from .combine import contractive
from .comm import Communicator
from .compressor import Compressor, positive_int
from .eden import Eden
from .key import Key
from .lowrank import orthonormal

_LEFT, _RIGHT = 0x6C, 0x72  # sub-streams of a round's key
_FEW = 8 * 32 * 1024  # bits, that take less time than an exchange does


@dataclass(frozen=True)
class PowerIteration:
    """Means of matrices of low rank, over compressed messages: in the place of a compressor in `DDPHook`.

    rank: r, at most that of a matrix. values: the compressor of factors, and of what is no matrix; an unbiased one is
    scaled to be contractive. decay: of errors, in [0, 1]. Gradients have most of their energy in few singular vectors,
    and r (m + n) numbers of 3 or 4 bits are far fewer than m n. What a mean leaves out goes into the next: there is
    always error feedback, and r singular vectors are found over rounds, as Q converges.

    pattern: as of `AllReduce`, for each factor; but with "auto" a factor of which a worker receives 32 KiB at most is
    gathered, which is one exchange and not two: their time is that of exchanges.

    of(shapes) is the reduction of a vector that holds tensors of these shapes one after another, used as an `AllReduce`
    is. A tensor of more than two dimensions is the matrix of its first one by the others. What has fewer, or is no
    larger than its factors, travels whole, coded by `values`.

    TypeError or ValueError for other parameters.

    >>> import compress
    >>> rng, comm = np.random.default_rng(0), compress.Local(4)
    >>> X = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 100)) + 0.1 * rng.standard_normal((4, 200, 100))
    >>> rows, reduce = X.reshape(4, -1).astype(np.float32), PowerIteration(4, compress.Eden(4)).of([(200, 100)])
    >>> state = reduce.init(comm, like=rows[0])
    >>> for t in range(3):  # of the same matrices: Q converges
    ...     mean, state = reduce.mean(comm, state, rows, compress.Key(0).at(t))
    >>> bool(np.sum((mean - rows.mean(axis=0)) ** 2) < 0.1 * np.sum(rows.mean(axis=0) ** 2))
    True
    >>> comm.ledger.bits_down / 4 / 3 / 20_000 < 0.8  # bits received a coordinate and round
    True
    """

    rank: int = 8
    values: Compressor = field(default_factory=lambda: Eden(4))
    pattern: str = "auto"
    decay: float = 1.0
    memory: ClassVar[str] = "error"

    def __post_init__(self):
        positive_int(self.rank, "rank")
        if not isinstance(self.values, Compressor):
            raise TypeError(f"PowerIteration: values must be a Compressor, got {self.values!r}")
        AllReduce(self.values, pattern=self.pattern, decay=self.decay)

    def of(self, shapes: Sequence) -> _Reduction:
        """The reduction of a vector that holds tensors of these shapes."""
        matrices = []
        for shape in shapes:
            m, n = (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))
            r = min(self.rank, m, n)
            matrices.append((int(m), int(n), r if r * (m + n) < m * n else 0))
        return _Reduction(self, tuple(matrices))


@dataclass(frozen=True)
class _Reduction:
    """See `PowerIteration.of`. The surface of an `AllReduce` with memory="error"; a state's `shared` are the factors Q.

    matrices: (m, n, r) of each; r is 0 for what is no matrix, and B then is the vector itself."""

    how: PowerIteration
    matrices: tuple

    def _factor(self, n: int, size: int) -> AllReduce:
        """The means of a factor of so many numbers, of n workers."""
        values, pattern = contractive(self.how.values), self.how.pattern
        expected = values.expected_bits(size)
        if pattern == "auto" and (n - 1) * (values.bits(size) if expected is None else expected) <= _FEW:
            pattern = "gather"
        return AllReduce(values, pattern=pattern)

    # Vectors as the matrices that they hold

    def _whole(self, x):
        return _cut(x, [(m, n) for m, n, _ in self.matrices])

    def _left(self, x):
        return _cut(x, [(r, m) for m, _, r in self.matrices])

    def _right(self, x):
        return _cut(x, [(r or m, n) for m, n, r in self.matrices])

    def _bases(self, x):
        return _cut(x, [(r, n) for _, n, r in self.matrices])

    def parts(self, n: int) -> list[tuple[int, AllReduce]]:
        """How many numbers the two factors have, and how their means of n workers are found."""
        sizes = sum(r * m for m, _, r in self.matrices), sum((r or m) * n for m, n, r in self.matrices)
        return [(size, self._factor(n, size)) for size in sizes]

    def received_bits(self, n: int, d: int) -> int:
        """As of `AllReduce`."""
        return sum(reduce.received_bits(n, size) for size, reduce in self.parts(n))

    def init(self, comm: Communicator, d: int | None = None, dtype=np.float32, like=None) -> AllReduceState:
        """No error yet, and Q at random. Raises ValueError where the shapes hold another number of coordinates."""
        if (d is None) == (like is None):
            raise TypeError("give d, or like=x")
        like = np.empty(d, dtype) if like is None else kernels.vector(like, "like")
        own = sum(m * n for m, n, _ in self.matrices)
        if like.size != own:
            raise ValueError(f"PowerIteration: tensors of {own} coordinates in a vector of {like.size}")
        size = sum(r * n for _, n, r in self.matrices)
        words, host = np.empty(-(-size // 4) * 4, np.uint32), kernels.of(np.empty(0))
        host.philox_words(Key(0).word, 0, host.UNIFORM_STREAM, words)
        q = (words[:size] * 2.0**-31 - 1).astype(like.dtype)
        return AllReduceState(tuple(kernels.zeros(like, own) for _ in comm.workers), (), kernels.like(like, q))

    def mean(self, comm: Communicator, state, rows: Sequence, key: Key, out=None, spent: Spent | None = None):
        """As `AllReduce.mean`."""
        spent, like, made, targets, ws = Spent() if spent is None else spent, state.up[0], [], [], []
        (left_size, by_left), (right_size, by_right) = self.parts(comm.n)

        def left():
            vectors = [kernels.vector(row, "a row") for row in rows]
            if [(x.size, x.dtype) for x in vectors] != [(error.size, error.dtype) for error in state.up]:
                sizes = [x.size for x in vectors]
                raise ValueError(f"{len(sizes)} rows of {sizes} numbers, not of the state: make one by init")
            made.append(kernels.output(out, like.size, like.dtype, like))
            targets.extend(x + error for x, error in zip(vectors, state.up, strict=True))
            bases = [orthonormal(q) for q in self._bases(state.shared)]
            return [_joined(map(_times, bases, self._whole(target)), target) for target in targets]

        def right():
            if isinstance(factors, _Failed):  # nobody has been told where there is no left factor
                raise factors.error
            ws.extend(orthonormal(basis) for basis in self._left(w))
            return [_joined(map(_within, ws, self._whole(target)), target) for target in targets]

        with spent.on("encode"):
            factors = _made(left, like, left_size)
        w = like[:0]
        if left_size:
            w, _ = by_left.mean(comm, AllReduceState(), factors, key.fold(_LEFT), spent=spent)
        with spent.on("encode"):
            told = _made(right, like, right_size)
            by_right = replace(by_right, memory="error")  # of this round: the next has another W
            start = by_right.init(comm, like=kernels.empty(like, right_size, like.dtype))
        b, (lost, owned, _) = by_right.mean(comm, start, told, key.fold(_RIGHT), spent=spent)
        (mean,) = made
        with spent.on("decode"):
            for x, w, part in zip(self._whole(mean), ws, self._right(b), strict=True):
                if w.size:
                    kernels.of(x).outer_sum(_flat(w), _flat(part), len(w), *x.shape, _flat(x))
                else:
                    x[...] = part
        with spent.on("encode"):
            for k, (i, target) in enumerate(zip(comm.workers, targets, strict=True)):
                if owned:  # the owner of a slice owes its error to the mean: n times that in its own
                    lost[k][slices(comm.n, b.size)[i]] += comm.n * owned[k]
                for x, w, part in zip(self._whole(target), ws, self._right(told[k] - lost[k]), strict=True):
                    x -= w.T @ part if w.size else part
                if self.how.decay != 1:
                    target *= target.dtype.type(self.how.decay)
        shown = kernels.given(mean, rows[0] if out is None else out)
        return (shown if out is None else out), AllReduceState(tuple(targets), (), self._next(state.shared, b))

    def _next(self, q, b):
        """The next Q, which is B, but for rows of zeros, which stay what they were."""
        after = []
        for old, part, (_, _, r) in zip(self._bases(q), self._right(b), self.matrices, strict=True):
            if r:
                after.append(_xp(q).where(part.any(axis=1)[:, None], part, old))
        return _joined(after, q)


class _Failed(list):
    """In the place of rows: what has failed, raised where they are read, which is within an exchange (note E)."""

    def __init__(self, like, error):
        super().__init__([like])
        self.error = error

    def __iter__(self):
        raise self.error


def _made(make, like, size):
    """What make() gives: vectors of that size."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # their encoder sees it
            return make()
    except Exception as error:
        return _Failed(kernels.empty(like, size, like.dtype), error)


def _times(q, x):
    return q @ x.T


def _within(w, x):
    return w @ x if w.size else x


def _cut(x, shapes):
    """The matrices that a vector holds, as views."""
    at = 0
    for m, n in shapes:
        yield x[at : at + m * n].reshape(m, n)
        at += m * n


def _joined(matrices, like):
    """Matrices as one vector."""
    xp = _xp(like)
    return xp.concatenate([xp.empty(0, like.dtype), *map(_flat, matrices)])


def _flat(x):
    return x.reshape(-1)


def _xp(x):
    """NumPy, or the array's own library."""
    return np if isinstance(x, np.ndarray) else kernels._device.cupy()
