"""Low-rank compression of a vector that is a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from . import kernels
from ._cpu import kernels as _kernels
from .compressor import Contractive, Message, add_or_store, check_finite, positive_int, settle
from .key import Key


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
