"""Low-rank compression of a vector that is a matrix, or several of them.

Design note on LowRank
----------------------
A. What many steps have moved a matrix by is nearly of low rank: a few singular vectors hold most of it. They are
   (m + n) numbers each in place of m n, so that each may have more bits.
B. Ranks follow the energy: the singular vectors of all matrices stand in one queue, by sigma^2 for each number to send.
C. With X = sum_k sigma_k u_k v_k', the rows sigma_k u_k of all matrices are one message. Both sides orthonormalise the
   rows as decoded, to Q; the rows of Q X are the other message, and Q'(Q X) is what the receiver has. That mends a part
   of what the first message has lost, and ||X - Q'C(Q X)||^2 = ||X||^2 - ||Q X||^2 + ||Q X - C(Q X)||^2: if C leaves
   out no more than all, neither does this, whatever has become of the rows. An error of Q X counts in X as it is, and
   so does one of a vector, which is why these are in that message: a quantiser's one step then gives bits to what has
   the energy. (In a message of their own they took bits from the matrices of a transformer: 10% more error
   at 0.077 bits.)
D. The receiver orthonormalises and adds outer products in a fixed order (csrc/product.h), without BLAS: the same bits
   everywhere. The sender may use what it likes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from . import kernels
from ._cpu import kernels as _kernels
from .combine import contractive
from .compressor import (
    Compressor,
    Contractive,
    Message,
    add_or_store,
    check_finite,
    finite_number,
    positive_int,
    rate_keyword,
    settle,
)
from .key import Key
from .trellis import Trellis

_LEFT, _RIGHT = 1, 2  # sub-streams of LowRank's key
_HEAD = struct.Struct("<hI")  # the exponent of the scale, bytes of the first message
_POWERS, _MORE = 2, 8  # iterations, and directions beside those that are wanted, of the range finder
_PLAIN = 2.0**40  # between this and its inverse squares need no scale
_NULL = 1e-6  # of the largest singular value: what is none


class PowerSGDState(NamedTuple):
    """The right factor of the last message, a better start than a random one."""

    q: np.ndarray


@dataclass(frozen=True)
class PowerSGD(Contractive):
    """C(X) = P P' X, P an orthonormal basis of X Q: one step of power iteration. Sends P and X' P.

    x is read as an m x n matrix (`shape`, row by row; without one floor(sqrt(d)) columns, the last row filled up
    with zeros); 32 r (m + n) bits, r = min(rank, m, n). Q is random from key.shared, or the right factor of the
    last message: `init` and `encode_warm` keep that state explicitly.

    alpha = 1 - r / min(m, n) with a random Q. P P' X is the best approximation of X in the column space of X Q, so
    it keeps at least ||X P_Q||^2, P_Q the projection on Q's columns. The entries of Q are independent, symmetric
    and continuous, so E P_Q commutes with every signed permutation and is r/n I. Where m < n the transpose is
    compressed. A warm start has no such proof. Vogels, Karimireddy, Jaggi, "PowerSGD", NeurIPS 2019 (their second
    factor is X' P as here; they orthogonalise by Gram-Schmidt, we by QR).

    The products are BLAS's: the bytes may differ in their last bits between machines, and `exact` is False.

    >>> import numpy as np, compress
    >>> X = np.outer(np.float32([1, 2, 3]), np.float32([4, 5]))
    >>> C = PowerSGD(rank=1, shape=(3, 2))
    >>> bool(np.allclose(C(X.ravel(), compress.Key(0)), X.ravel(), rtol=1e-5))
    True
    """

    rank: int
    shape: tuple[int, int] | None = None
    exact: ClassVar[bool] = False

    def __post_init__(self):
        settle(self, "rank", positive_int(self.rank, "rank"))
        if self.shape is None:
            return
        if not isinstance(self.shape, tuple) or len(self.shape) != 2:
            raise ValueError(f"shape must be a pair (m, n), got {self.shape!r}")
        settle(self, "shape", tuple(positive_int(side, "shape") for side in self.shape))

    def _shape(self, d: int) -> tuple[int, int]:
        if self.shape is None:
            columns = max(1, math.isqrt(d))
            return -(-d // columns), columns
        if self.shape[0] * self.shape[1] != d:
            raise ValueError(f"shape={self.shape} holds {self.shape[0] * self.shape[1]} coordinates, x has {d}")
        return self.shape

    def _sides(self, d: int) -> tuple[int, int, int]:
        """(rows, columns, rank) of the matrix that is compressed, the longer side first."""
        shape = self._shape(d)
        return max(shape), min(shape), min(self.rank, *shape)

    def alpha(self, d: int) -> float:
        if d == 0:
            return 0.0
        _, n, r = self._sides(d)
        return 1 - r / n

    def bits(self, d: int, dtype=np.float32) -> int:
        m, n, r = self._sides(d)
        return 32 * r * (m + n)

    def _random_q(self, n: int, r: int, key: Key) -> np.ndarray:
        words = np.empty(-(-n * r // 4) * 4, np.uint32)
        _kernels.philox_words(key.shared.word, 0, _kernels.UNIFORM_STREAM, words)
        return ((words[: n * r].astype(np.float64) + 0.5) * 2.0**-31 - 1).reshape(n, r)

    def _factor(self, x: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(P, X' P) of the tall matrix."""
        largest = check_finite(x)
        rows, columns = self._shape(x.size)
        matrix = x
        if rows * columns > x.size:
            matrix = kernels.empty(x, rows * columns, x.dtype)
            matrix[: x.size] = x
            matrix[x.size :].fill(0)
        matrix = matrix.reshape(rows, columns)
        if rows < columns:
            matrix = matrix.T
        # the product must neither overflow nor lose denormals; a factor has no effect on the basis
        q = np.ldexp(kernels.host(q), min(120, -math.frexp(largest)[1])).astype(x.dtype)
        q = kernels.like(x, q)
        p = np.linalg.qr((matrix @ q).astype(np.float64))[0].astype(np.float32)
        with np.errstate(over="ignore"):
            right = (matrix.T @ p).astype(np.float32)
        size = float(np.abs(right).max())
        if not size <= float(np.finfo(np.float32).max) or (x.itemsize == 8 and 0 < largest < np.finfo(np.float32).tiny):
            raise ValueError(f"max|x| = {largest:g}: a factor leaves float32's range")
        return p, right

    def _pack(self, p: np.ndarray, q: np.ndarray, out) -> np.ndarray:
        payload = kernels.buffer(p.nbytes + q.nbytes, out, p)
        payload[: p.nbytes] = p.reshape(-1).view(np.uint8)
        payload[p.nbytes :] = q.reshape(-1).view(np.uint8)
        return payload

    def _encode(self, x, key, out):
        _, n, r = self._sides(x.size)
        return self._pack(*self._factor(x, self._random_q(n, r, key)), out), self.bits(x.size)

    def _decode(self, message, key, out, weight, add):
        m, n, r = self._sides(message.size)
        values = kernels.values_of(message.payload, np.float32)
        if not np.isfinite(values).all():
            raise ValueError("PowerSGD: a factor in the payload is NaN or Inf")
        p, q = values[: m * r].reshape(m, r), values[m * r :].reshape(n, r)
        with np.errstate(over="ignore", invalid="ignore"):
            matrix = p.astype(out.dtype) @ q.T.astype(out.dtype)
        rows, columns = self._shape(message.size)
        if rows < columns:
            matrix = matrix.T
        add_or_store(matrix.ravel()[: message.size], out, weight, add)

    def init(self, d: int, key: Key) -> PowerSGDState:
        """The state before the first message: the random right factor of key.shared."""
        _, n, r = self._sides(d)
        return PowerSGDState(self._random_q(n, r, key))

    def encode_warm(self, state: PowerSGDState, x) -> tuple[Message, PowerSGDState]:
        """The message for x that starts from the last right factor, and the state after it. Decode as usual."""
        given, x = x, kernels.vector(x)
        _, n, r = self._sides(x.size)
        if state.q.shape != (n, r):
            raise ValueError(f"the state has a factor of shape {state.q.shape}, this compressor one of {(n, r)}")
        p, q = self._factor(x, state.q)
        message = Message(kernels.given(self._pack(p, q, None), given), self.bits(x.size), x.size, x.dtype)
        return message, PowerSGDState(q.astype(np.float64) if q.any() else state.q)

    @classmethod
    def examples(cls):
        return [cls(2)]


@rate_keyword
@dataclass(frozen=True)
class LowRank(Contractive):
    """C(X) = Q' C'(Q X), Q the leading left singular vectors of X, coarsely coded and orthonormalised: as many as fit
    into `rate`, or bits=, a coordinate.

    values: the compressor C' of all numbers that are sent, of a fixed length or with a rate; an unbiased one is used
    as Scaled(it). The rate counts its messages, not the header of 6 bytes and 4 a matrix.
    shapes: of the tensors that x holds one after another, as ((128, 64), (64,), ...). One of more dimensions is the
    matrix of its first by the others; vectors, and what has a single row or column, go through `values` as they are.
    None: x is a matrix of floor(sqrt(d)) rows and a rest of fewer coordinates. Tensors of all sizes share the budget,
    by what their singular vectors hold (note B). Vectors much smaller than matrices drown in the noise of `values` with
    one scale for all numbers, as ScaledSign and Eden(1), though no more is left out of x as a whole.

    What is left out is at most x (note C) as far as that holds for `values`; alpha is not known. PowerSGD (Vogels et
    al., NeurIPS 2019) sends such factors in float32, of one rank for all and by one step of power iteration; here a
    message stands for itself and a factor has a bit or two a number. Singular vectors by Halko, Martinsson, Tropp,
    "Finding structure with randomness", SIAM Review 2011, algorithm 4.4. It is worth its time (a matrix is read 7
    times) where singular values fall fast. The work is done on the host.

    Raises ValueError where the rate has no room for the vectors and a singular vector of each matrix on its own.

    >>> import numpy as np, compress
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 100)) + 0.1 * rng.standard_normal((200, 100))
    >>> x, C = np.float32(X).ravel(), compress.LowRank(0.16, shapes=((200, 100),))
    >>> message = C.encode(x, compress.Key(0))
    >>> y = C.decode(message, compress.Key(0))
    >>> message.bits / x.size < 0.2, bool(np.sum((y - x) ** 2) < 0.1 * np.sum(x**2))
    (True, True)
    """

    rate: float
    values: Compressor = field(default_factory=lambda: Trellis(bits=1.75, context=True))
    shapes: tuple | None = None
    guarantee: ClassVar[str] = "none"
    fixed_length: ClassVar[bool] = False
    exact: ClassVar[bool] = False  # BLAS is in the encoder

    def __post_init__(self):
        settle(self, "rate", finite_number(self.rate, "rate"))
        if not 0 < self.rate <= 64:
            raise ValueError(f"LowRank: rate must be in (0, 64], got {self.rate}")
        if not isinstance(self.values, Compressor):
            raise TypeError(f"LowRank: values must be a Compressor, got {self.values!r}")
        if not self.values.fixed_length and getattr(self.values, "rate", None) is None:
            raise ValueError(f"LowRank: values must have a fixed length or a rate, got {self.values!r}")
        if self.shapes is not None:
            try:
                shapes = tuple(tuple(positive_int(side, "a side", 0) for side in shape) for shape in self.shapes)
            except TypeError:
                raise TypeError(f"LowRank: shapes must be a tuple of shapes, got {self.shapes!r}") from None
            settle(self, "shapes", shapes)

    def alpha(self, d):
        raise TypeError("LowRank has no proven constant")

    def bits(self, d: int, dtype=np.float32) -> int:
        """An upper bound, for any ranks."""
        layout, coder = self._layout(d, dtype), contractive(self.values)
        counts = layout.counts([min(shape) for shape in layout.matrices])
        return 8 * layout.head + sum(coder.bits(count, dtype) + 8 for count in counts if count)

    def _cost(self, count: int, dtype) -> float:
        """Bits of so many numbers."""
        if not self.values.fixed_length:
            return self.values.rate * count
        return self.values.bits(count, dtype) if count else 0

    def _layout(self, d: int, dtype) -> _Layout:
        rows = max(1, math.isqrt(d))
        shapes = ((rows, d // rows), (d % rows,)) if self.shapes is None else self.shapes
        if (own := sum(map(math.prod, shapes))) != d:
            raise ValueError(f"LowRank: shapes are of {own} coordinates, x has {d}")
        layout = _Layout(shapes)
        costs = (self._cost(m, dtype) + self._cost(n + layout.rest, dtype) for m, n in layout.matrices)
        least = max(costs, default=self._cost(layout.rest, dtype))
        if least > self.rate * d:
            raise ValueError(
                f"LowRank: rate={self.rate} is {self.rate * d:.0f} bits for {d} coordinates; vectors, and a singular "
                f"vector of the largest matrix, take {least:.0f}"
            )
        return layout

    def _encode(self, x, key, out):
        largest, layout = check_finite(x), self._layout(x.size, x.dtype)
        given, x = x, kernels.host(x)
        exponent = 0 if not largest or 1 / _PLAIN < largest < _PLAIN else math.frexp(largest)[1]
        matrices, vectors = layout.split(np.ldexp(x, -exponent) if exponent else x)
        coder, none = contractive(self.values), np.zeros(0, x.dtype)
        ranks, rows = self._leading(matrices, layout, key)
        left = coder.encode(np.concatenate([none, *rows]), key.fold(_LEFT))
        rows.clear()
        bases = layout.bases(coder.decode(left, key.fold(_LEFT)), ranks)
        products = [(basis @ matrix).ravel() for basis, matrix in zip(bases, matrices, strict=True)]
        right = coder.encode(np.concatenate([none, *products, *vectors]), key.fold(_RIGHT))
        head = _HEAD.pack(exponent, left.payload.size) + struct.pack(f"<{len(ranks)}I", *ranks)
        whole = np.concatenate([np.frombuffer(head, np.uint8), left.payload, right.payload])
        payload = kernels.buffer(whole.size, out, given)
        kernels.store(payload, whole)
        return payload, 8 * payload.size

    def _leading(self, matrices, layout, key) -> tuple[list[int], list[np.ndarray]]:
        """How many singular vectors of each matrix come before the rate has no more room, and rows sigma_k u_k."""
        if not matrices:
            return [], []
        dtype = matrices[0].dtype
        room = self.rate * layout.size - self._cost(layout.rest, dtype)
        # first as if each had ranks in proportion to its size; what takes all of them is asked for more
        share = room / layout.size / (self._cost(1 << 20, dtype) / (1 << 20))
        wanted = [min(m, n, _MORE + math.ceil(share * m * n / (m + n))) for m, n in layout.matrices]
        found = [(0, None, ())] * len(matrices)
        while True:
            for i, count in enumerate(wanted):
                if count > found[i][0]:
                    found[i] = count, *_singular(matrices[i], count, key.fold(i).word)
            ranks = self._queued(layout, [sizes for _, _, sizes in found], dtype)
            short = [i for i, r in enumerate(ranks) if r == wanted[i] < min(matrices[i].shape)]
            if not short:
                break
            for i in short:
                wanted[i] = min(2 * wanted[i], *matrices[i].shape)
        return ranks, [(u.T[:r] * sizes[:r, None]).ravel() for (_, u, sizes), r in zip(found, ranks, strict=True)]

    def _queued(self, layout, sizes, dtype) -> list[int]:
        shapes, room = layout.matrices, self.rate * layout.size
        queue = sorted((-float(s) / math.sqrt(sum(shapes[i])), i) for i, each in enumerate(sizes) for s in each)
        ranks, left, right = [0] * len(shapes), 0, layout.rest
        for _, i in queue:
            m, n = shapes[i]
            if self._cost(left + m, dtype) + self._cost(right + n, dtype) <= room:
                ranks[i], left, right = ranks[i] + 1, left + m, right + n
        return ranks

    def _decode(self, message, key, out, weight, add):
        layout, payload = self._layout(message.size, message.dtype), kernels.host(message.payload)
        if payload.size < layout.head:
            raise ValueError(f"LowRank: a payload of {payload.size} bytes, of which the header takes {layout.head}")
        exponent, length = _HEAD.unpack(payload[: _HEAD.size].tobytes())
        ranks = struct.unpack(f"<{len(layout.matrices)}I", payload[_HEAD.size : layout.head].tobytes())
        end = layout.head + length
        if end > payload.size or any(r > min(shape) for r, shape in zip(ranks, layout.matrices, strict=True)):
            raise ValueError(f"LowRank: a payload of {payload.size} bytes with a length or ranks no encoder writes")
        coder = contractive(self.values)
        left, right = (
            coder.decode(Message(part, 8 * part.size, count, message.dtype), key.fold(word))
            for part, count, word in zip(
                (payload[layout.head : end], payload[end:]), layout.counts(ranks), (_LEFT, _RIGHT), strict=True
            )
        )
        whole, at = np.zeros(message.size, message.dtype), 0
        matrices, vectors = layout.split(whole)
        with np.errstate(over="ignore", invalid="ignore"):
            for basis, matrix in zip(layout.bases(left, ranks), matrices, strict=True):
                end = at + len(basis) * matrix.shape[1]
                _kernels.outer_sum(basis.reshape(-1), right[at:end], len(basis), *matrix.shape, matrix.reshape(-1))
                at = end
            for vector in vectors:
                vector[...] = right[at : at + vector.size]
                at += vector.size
            if exponent:
                limit = np.ldexp(np.finfo(whole.dtype).max, -exponent)
                np.ldexp(np.clip(whole, -limit, limit, out=whole), exponent, out=whole)
        add_or_store(kernels.like(out, whole), out, weight, add)

    @classmethod
    def examples(cls):
        return [cls(0.5)]


class _Layout:
    """Where matrices and vectors lie in x."""

    def __init__(self, shapes):
        self.matrices, self._pieces, self.size, self.rest = [], [], 0, 0
        for shape in shapes:
            count = math.prod(shape)
            sides = (shape[0], count // shape[0]) if count and len(shape) > 1 else (0, 0)
            self._pieces.append((slice(self.size, self.size + count), sides if min(sides) > 1 else None))
            self.size += count
            if min(sides) > 1:
                self.matrices.append(sides)
            else:
                self.rest += count
        self.head = _HEAD.size + 4 * len(self.matrices)

    def split(self, x):
        """(matrices, vectors) as views of x."""
        return (
            [x[where].reshape(sides) for where, sides in self._pieces if sides],
            [x[where] for where, sides in self._pieces if not sides],
        )

    def counts(self, ranks):
        """How many numbers the two messages carry."""
        each = list(zip(self.matrices, ranks, strict=True))
        return sum(r * m for (m, _), r in each), self.rest + sum(r * n for (_, n), r in each)

    def bases(self, left, ranks) -> list[np.ndarray]:
        """Of each matrix the rows as decoded, made orthonormal in their order (note D)."""
        found, at = [], 0
        for (m, _), r in zip(self.matrices, ranks, strict=True):
            found.append(orthonormal(left[at : at + r * m].reshape(r, m)))
            at += r * m
        return found


def orthonormal(rows):
    """A basis of the rows, in their order; zeros in place of a row that those before it span. NumPy's or CuPy's."""
    basis = kernels.empty(rows, rows.size, rows.dtype)
    if rows.size:
        kernels.of(rows).orthonormal(rows.reshape(-1), len(rows), basis)
    return basis.reshape(rows.shape)


def _singular(matrix, count: int, seed: int):
    """(u, sigma), nearly the first `count` of each, descending; fewer where the rank is less."""
    width = min(count + _MORE, *matrix.shape)
    basis = matrix @ np.random.default_rng(seed).standard_normal((matrix.shape[1], width), matrix.dtype)
    for _ in range(_POWERS if width < min(matrix.shape) else 0):
        basis = matrix @ (matrix.T @ _basis(basis))
    basis = _basis(basis)
    wide = (basis.T @ matrix).astype(np.float64)
    squares, turned = np.linalg.eigh(wide @ wide.T)
    sizes = np.sqrt(np.maximum(squares[::-1][:count], 0)).astype(matrix.dtype)
    kept = np.count_nonzero(sizes > _NULL * sizes[0])
    return basis @ turned[:, ::-1][:, :kept].astype(matrix.dtype), sizes[:kept]


def _basis(matrix):
    return np.linalg.qr(matrix)[0].astype(matrix.dtype, copy=False)
