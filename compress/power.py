"""PowerIteration: the mean of the workers' matrices by a few of its singular vectors, in messages of few bits.

Design note
-----------
A. With X_i the matrix of worker i and X their mean, a step of power iteration needs two means: of X_i Q, whose columns
   span nearly the leading left singular vectors of X, and of what fits X_i best in them. Both are linear in X_i, so
   that an `AllReduce` of (m + n) r numbers serves each, and their number does not grow with the workers' (Vogels,
   Karimireddy, Jaggi, "PowerSGD", NeurIPS 2019, whose factors travel in float32).
B. Factors may be coarse. W is an orthonormal basis of the mean of X_i Q as it was decoded, and a worker sends
   B_i = W' X_i: W W' X is the nearest to X in that span, however coarse it is, and what is lost of B is lost of the
   mean once. One step of a quantiser serves all matrices: errors of all B count alike in X.
C. Q is the B of the round before, orthonormalised by every worker for itself: W is made of what all have decoded,
   whatever the last bit of Q is here, in sums of a fixed order, and so is the mean: the same bits everywhere.
D. A worker keeps X_i + e_i - W B_i with B_i as it was decoded, and what the mean of the B_i loses on its way down.
   PowerSGD tells errors from the mean: they then walk away with what workers differ in, which is no error, and coarse
   factors of what has grown are lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from . import kernels
from ._cpu import kernels as _kernels
from .allreduce import AllReduce, AllReduceState, Spent, slices
from .comm import Communicator
from .compressor import Compressor, positive_int
from .key import Key
from .trellis import UniformQuantizer

_LEFT, _RIGHT = 0x6C, 0x72  # sub-streams of a round's key
_DEPENDENT = 1e-10  # of a row's square, what is not in the span of those before
_BLOCK = 1 << 15  # coordinates of a product at a time: they stay in cache


@dataclass(frozen=True)
class PowerIteration:
    """Means of matrices of low rank, over compressed messages: in the place of a compressor in `DDPHook` and `DiLoCo`.

    rank: r, at most that of a matrix. values: the compressor of factors, biased, and of what is no matrix. pattern: as
    of `AllReduce`. Gradients and pseudo-gradients have most of their energy in few singular vectors, and r (m + n)
    numbers of 4 bits are far fewer than m n. What a mean leaves out goes into the next: there is always error feedback.

    decay: of errors. of(shapes) is the reduction of a vector that holds tensors of these shapes one after another, used
    as an `AllReduce` is. A tensor of more dimensions is the matrix of its first one by the others.

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
    >>> comm.ledger.bits_down / 4 / 3 / 20_000 < 0.5  # bits received a coordinate and round
    True
    """

    rank: int = 8
    values: Compressor = field(default_factory=lambda: UniformQuantizer(bits=4))
    pattern: str = "auto"
    decay: float = 1.0
    memory: ClassVar[str] = "error"

    def __post_init__(self):
        positive_int(self.rank, "rank")
        AllReduce(self.values, pattern=self.pattern, decay=self.decay)

    def of(self, shapes: Sequence) -> _Reduction:
        """The reduction of a vector that holds tensors of these shapes."""
        return _Reduction(self, tuple(tuple(map(int, shape)) for shape in shapes))


@dataclass(frozen=True)
class _Reduction:
    """See `PowerIteration.of`. The surface of an `AllReduce` with memory="error"; a state's `shared` are the factors Q."""

    how: PowerIteration
    shapes: tuple
    memory: ClassVar[str] = "error"

    @property
    def _factors(self) -> AllReduce:
        return AllReduce(self.how.values, pattern=self.how.pattern)

    def _matrices(self):
        """(rows, columns, rank) of each, the tensors of one dimension among them with rank 0."""
        for shape in self.shapes:
            m, n = (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))
            yield m, n, min(self.how.rank, m, n) if min(m, n) > 1 else 0

    def _sizes(self) -> tuple[int, int]:
        """How many numbers the two messages have."""
        left = sum(r * m for m, _, r in self._matrices())
        return left, sum(r * n if r else m * n for m, n, r in self._matrices())

    def received_bits(self, n: int, d: int) -> int:
        """As of `AllReduce`."""
        return sum(self._factors.received_bits(n, size) for size in self._sizes())

    def init(self, comm: Communicator, d: int | None = None, dtype=np.float32, like=None) -> AllReduceState:
        """No error yet, and Q at random. Raises ValueError where the shapes hold another number of coordinates."""
        like = np.empty(d, dtype) if like is None else kernels.vector(like, "like")
        own = sum(m * n for m, n, _ in self._matrices())
        if like.size != own:
            raise ValueError(f"PowerIteration: tensors of {own} coordinates in a vector of {like.size}")

        def zeros():
            vector = kernels.empty(like, own, like.dtype)
            vector.fill(0)
            return vector

        words = np.empty(-(-sum(r * n for _, n, r in self._matrices()) // 4) * 4, np.uint32)
        _kernels.philox_words(Key(0).word, 0, _kernels.UNIFORM_STREAM, words)
        q = (words[: sum(r * n for _, n, r in self._matrices())] * 2.0**-31 - 1).astype(like.dtype)
        return AllReduceState(tuple(zeros() for _ in comm.workers), (), kernels.like(like, q))

    def mean(self, comm: Communicator, state, rows: Sequence, key: Key, out=None, spent: Spent | None = None):
        """As `AllReduce.mean`."""
        spent = Spent() if spent is None else spent
        given, rows = rows[0], [kernels.vector(row, "a row") for row in rows]
        if len(rows) != len(state.up) or any(row.size != error.size for row, error in zip(rows, state.up, strict=True)):
            raise ValueError(
                f"rows of {[row.size for row in rows]} coordinates, the state is of others: make one by init"
            )
        mean, factors, bare = kernels.output(out, rows[0].size, rows[0].dtype, rows[0]), self._factors, AllReduceState()
        with spent.on("encode"), np.errstate(over="ignore", invalid="ignore"):  # the factors' encoder sees it
            targets = [row + error for row, error in zip(rows, state.up, strict=True)]
            bases = [_xp(q).linalg.qr(q.T)[0] for q in self._cut(state.shared, 1)]
            left = [self._left(target, bases) for target in targets]
        w, _ = factors.mean(comm, bare, left, key.fold(_LEFT), spent=spent)
        with spent.on("encode"), np.errstate(over="ignore", invalid="ignore"):
            ws = [_orthonormal(part) for part in self._cut(w, 0)]
            right = [self._right(target, ws) for target in targets]
        told = replace(factors, memory="error")  # of this round: what it leaves out counts by W, which the next has not
        b, (lost, owned, _) = told.mean(comm, told.init(comm, like=right[0]), right, key.fold(_RIGHT), spent=spent)
        with spent.on("decode"):
            q = self._product(ws, b, state.shared, mean)
        with spent.on("encode"):
            for k, (i, target) in enumerate(zip(comm.workers, targets, strict=True)):
                if owned:  # the owner of a slice owes its error to the mean: n times that in its own
                    lost[k][slices(comm.n, b.size)[i]] += comm.n * owned[k]
                self._less(target, ws, right[k] - lost[k])
                if self.how.decay != 1:
                    target *= target.dtype.type(self.how.decay)
        shown = kernels.given(mean, given if out is None else out)
        return (shown if out is None else out), AllReduceState(tuple(targets), (), q)

    def _split(self, x):
        """The matrices of a vector, as views."""
        at = 0
        for m, n, _ in self._matrices():
            yield x[at : at + m * n].reshape(m, n)
            at += m * n

    def _cut(self, x, side):
        """The factors of each matrix in their vector, rows of its side; those of rank 0 left out."""
        at = 0
        for size in self._matrices():
            if r := size[2]:
                yield x[at : at + r * size[side]].reshape(r, size[side])
                at += r * size[side]

    def _left(self, target, bases):
        found, bases = [], iter(bases)
        for matrix, (_, _, r) in zip(self._split(target), self._matrices(), strict=True):
            if r:
                found.append((next(bases).T.astype(target.dtype) @ matrix.T).ravel())
        return _joined(found, target)

    def _right(self, target, ws):
        """W X of each matrix, and what is no matrix."""
        found, ws = [], iter(ws)
        for matrix, (_, _, r) in zip(self._split(target), self._matrices(), strict=True):
            found.append((next(ws) @ matrix).ravel() if r else matrix.ravel())
        return _joined(found, target)

    def _less(self, target, ws, b):
        """target -= W B. What a worker keeps for itself may be BLAS's."""
        at, ws = 0, iter(ws)
        for matrix, (m, n, r) in zip(self._split(target), self._matrices(), strict=True):
            size = r * n if r else m * n
            part, at = b[at : at + size].reshape(-1, n), at + size
            matrix -= next(ws).T @ part if r else part

    def _product(self, ws, b, q, mean):
        """The mean from its factors; and the next Q, which is B, but for rows of zeros, which stay what they were."""
        at, ws, q, after = 0, iter(ws), self._cut(q, 1), []
        for matrix, (m, n, r) in zip(self._split(mean), self._matrices(), strict=True):
            size = r * n if r else m * n
            part, at = b[at : at + size].reshape(-1, n), at + size
            if not r:
                matrix[...] = part
                continue
            w, old = next(ws), next(q)
            step = max(1, _BLOCK // n) if isinstance(mean, np.ndarray) else m
            for i in range(0, m, step):
                block = matrix[i : i + step]
                np.multiply(w[0, i : i + step, None], part[0], out=block)
                room = _xp(w).empty_like(block)
                for k in range(1, r):
                    np.multiply(w[k, i : i + step, None], part[k], out=room)
                    block += room
            dead = ~part.any(axis=1)
            after.append(_xp(w).where(dead[:, None], old, part).ravel())
        return _joined(after, mean)


def _xp(x):
    """NumPy, or the array's own library."""
    return np if isinstance(x, np.ndarray) else kernels._device.cupy()


def _orthonormal(w):
    """An orthonormal basis of the rows of W, in order, with rows of zeros for those that depend on the ones before.

    Cholesky's factor of W W', in float64, from sums of a fixed order: the same bits everywhere.
    """
    xp, r = _xp(w), len(w)
    largest = abs(w).max()
    wide = w.astype(np.float64) / float(largest if largest else 1)
    gram = kernels.host(_sum(wide[:, None] * wide[None])).tolist()
    lower = [[0.0] * r for _ in range(r)]
    rows = []
    for i in range(r):
        for j in range(i + 1):
            rest = gram[i][j] - _dot(lower[i][:j], lower[j][:j])
            if i == j:
                lower[i][i] = math.sqrt(rest) if rest > _DEPENDENT * gram[i][i] else 0.0
            elif lower[j][j]:
                lower[i][j] = rest / lower[j][j]
        row = wide[i] if lower[i][i] else xp.zeros_like(wide[i])
        for j in range(i if lower[i][i] else 0):
            row = row - lower[i][j] * rows[j]
        rows.append(row / (lower[i][i] or 1.0))
    return xp.stack(rows).astype(w.dtype)


def _dot(x, y):
    total = 0.0
    for a, b in zip(x, y, strict=True):
        total += a * b
    return total


def _sum(x):
    """Over the last axis, by halves."""
    while (n := x.shape[-1]) > 1:
        half = n // 2
        pairs = x[..., :half] + x[..., half : 2 * half]
        x = pairs if n % 2 == 0 else _xp(x).concatenate([pairs, x[..., -1:]], axis=-1)
    return x[..., 0]


def _joined(parts, like):
    if not parts:
        return kernels.empty(like, 0, like.dtype)
    return _xp(like).ascontiguousarray(_xp(like).concatenate(parts))
