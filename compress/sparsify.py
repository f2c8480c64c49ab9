"""Sparsifiers: some coordinates travel, the others are zero at the receiver.

Which one? RandK where the length must be fixed and the theory simple. PermK where n workers send in the same round
and their vectors are alike: together they send every coordinate once. Bernoulli where coordinates must be kept
independently. TopK where few coordinates carry the energy: it is biased (ErrorFeedback, EF21) and pays for its
indices, about log2(d/k) + 1.5 bits each. The other three send values only: the receiver has the indices from the key.

Values travel as float32 unless wire="float64". The constants below are those of exact values; on a float32 wire
float64 input is rounded, by at most 2^-24 of a value or 2^-150.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from . import kernels
from ._cpu import kernels as _shapes
from .compressor import Contractive, Unbiased, check_finite, positive_int, settle, wire_bytes
from .key import Key

_TURN = 1


class Sparsifier(Unbiased):
    """An unbiased compressor whose index set is a function of d and the key: C(x)_i = scale(d) x_i on the set, else 0.

    A family member says which indices, how many at most, and the scale; `Composed` compresses the values further.
    """

    wire: str

    @abstractmethod
    def indices(self, d: int, key: Key, like=None) -> np.ndarray:
        """The coordinates that travel, uint32, in the order of the payload: a CuPy array where `like` lives on a GPU,
        else NumPy's."""

    @abstractmethod
    def counts(self, d: int) -> tuple[int, ...] | None:
        """The numbers of values that messages of d coordinates have; None where any up to d occurs."""

    def most_values(self, d: int) -> int:
        """The largest number of values of a message."""
        counts = self.counts(d)
        return d if counts is None else max(counts)

    @abstractmethod
    def scale(self, d: int) -> float:
        """One over the probability that a coordinate travels."""

    def omega(self, d: int) -> float:
        """scale - 1: a coordinate kept with probability 1/s and multiplied by s has variance (s - 1) x_i^2."""
        return self.scale(d) - 1 if d else 0.0

    def bits(self, d: int, dtype=np.float32) -> int:
        """The most values a message has, on the wire."""
        return 8 * wire_bytes(self.wire) * self.most_values(d)

    def count(self, d: int, key: Key) -> int:
        """How many values this key's message has."""
        return self.indices(d, key).size

    def values(self, x: np.ndarray, key: Key) -> np.ndarray:
        """The values that travel, not scaled, in x's type."""
        self._check(x, x.dtype)
        indices = self.indices(x.size, key, x)
        values = kernels.empty(x, indices.size, x.dtype)
        kernels.of(x).gather(x, indices, values, True)
        return values

    def scatter_add(self, values: np.ndarray, key: Key, out: np.ndarray, weight: float) -> None:
        """out[i] += weight * scale * value, for each index and its value."""
        d = out.size
        kernels.of(out).scatter_add(values, self.indices(d, key, out), out, weight * self.scale(d), True)

    def _check(self, x, wire) -> None:
        largest, scale = check_range(x, wire), self.scale(x.size)
        if largest * scale > float(np.finfo(x.dtype).max):
            raise ValueError(f"max|x| = {largest:g} times {scale:g} leaves {x.dtype}'s range")

    def _encode(self, x, key, out):
        wire = np.dtype(self.wire)
        self._check(x, wire)
        indices = self.indices(x.size, key, x)
        payload = kernels.buffer(indices.size * wire.itemsize, out, x)
        _gather_into(payload, x, indices, wire)
        return payload, 8 * payload.size

    def _decode(self, message, key, out, weight, add):
        d = message.size
        indices = self.indices(d, key, out)
        expected = indices.size * wire_bytes(self.wire)
        if message.payload.size != expected:
            raise ValueError(
                f"{type(self).__name__}: payload has {message.payload.size} bytes, this key's message of {d} "
                f"coordinates has {expected}"
            )
        if not add:
            out.fill(0)
        values = _values(message.payload, np.dtype(self.wire))
        kernels.of(out).scatter_add(values, indices, out, weight * self.scale(d), True)


def _checked_k(k) -> int | float:
    if not isinstance(k, (int, float, np.number)):
        raise TypeError(f"k must be a count or a fraction in (0, 1), got {k!r}")
    if not isinstance(k, (float, np.floating)):
        return positive_int(k, "k")
    if not 0 < k < 1:
        raise ValueError(f"k must be a count of at least 1 or a fraction in (0, 1), got {k}")
    return float(k)


@lru_cache(typed=True)
def _count(k: int | float, d: int) -> int:
    """k, or the fraction k of d coordinates rounded up; 0.1 of 30 is 3, though the float 0.1 is a little more."""
    if d == 0:
        return 0
    if isinstance(k, float):
        return max(1, math.ceil(k * d * (1 - 2.0**-50)))
    if k > d:
        raise ValueError(f"k = {k} of a vector of {d} coordinates")
    return k


def check_range(x: np.ndarray, wire: np.dtype) -> float:
    """max |x|; ValueError where x is not finite, or its largest value would be Inf on the wire."""
    largest = check_finite(x)
    if largest > float(np.finfo(wire).max):
        raise ValueError(f"max|x| = {largest:g} leaves {wire}'s range; wire='float64' carries it")
    return largest


def _gather_into(payload: np.ndarray, x: np.ndarray, indices: np.ndarray, dtype: np.dtype) -> None:
    """payload = x[indices] as dtype; a payload that starts at an odd address takes a copy."""
    values = kernels.values_of(payload, dtype)
    kernels.of(x).gather(x, indices, values, True)
    if not kernels.overlap(values, payload):
        payload[...] = values.view(np.uint8)


def _values(payload: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values of a payload, refused where one is NaN or Inf: no encoder writes those."""
    values = kernels.values_of(payload, dtype)
    bad, first = kernels.of(values).count_nonfinite(values)
    if bad:
        raise ValueError(f"payload has {bad} NaN or Inf among {values.size} values, the first at position {first}")
    return values


@dataclass(frozen=True)
class RandK(Sparsifier):
    """C(x)_i = d/k x_i for i in S, else 0; S has k of the d coordinates and comes from the key.

    k: a count, or a fraction in (0, 1) of d, rounded up. ValueError where k > d. Payload: the k values.

    omega = d/k - 1, an equality for every x: P(i in S) = k/d exactly, because S = (S' + r) mod d with r uniform,
    whatever S' is (csrc/select.h). Sets of different keys are independent; give workers keys of their own.
    Beznosikov, Horvath, Richtarik, Safaryan, "On biased compression for distributed learning", JMLR 2023, sec. 2.

    >>> import numpy as np, compress
    >>> C, x = RandK(2), np.float32([1, 2, 3, 4])
    >>> message = C.encode(x, compress.Key(0))
    >>> message.bits, C.omega(4)
    (64, 1.0)
    >>> y = C.decode(message, compress.Key(0))
    >>> int(np.count_nonzero(y)), bool(np.all((y == 0) | (y == 2 * x)))
    (2, True)
    """

    k: int | float
    wire: str = "float32"

    def __post_init__(self):
        settle(self, "k", _checked_k(self.k))
        wire_bytes(self.wire)

    def counts(self, d: int) -> tuple[int, ...]:
        return (_count(self.k, d),)

    def count(self, d: int, key: Key) -> int:
        return _count(self.k, d)

    def scale(self, d: int) -> float:
        return d / _count(self.k, d)

    def indices(self, d: int, key: Key, like=None) -> np.ndarray:
        indices = kernels.empty(like, _count(self.k, d), np.uint32)
        kernels.of(indices).random_subset(key.word, d, 0, indices)
        return indices

    @classmethod
    def examples(cls):
        return [cls(0.1), cls(1), cls(0.5, wire="float64")]


@dataclass(frozen=True)
class PermK(Sparsifier):
    """C_w(x)_i = n x_i if coordinate i is worker w's this round, else 0: n workers share out the d coordinates.

    One permutation of the coordinates, the same for all workers (key.shared), is cut into n ranges that differ by
    one at most; worker w takes range (w + r) mod n, r uniform and shared. A worker's payload has about d/n values.
    ValueError for a key without a worker, or with a worker outside [0, n).

    omega = n - 1, an equality: i falls in one range, which is worker w's with probability 1/n. What it buys: the n
    messages of a round that carry the same x average to x itself. Szlendak, Tyurin, Richtarik, "Permutation
    compressors for provably faster distributed nonconvex optimization", ICLR 2022, definitions 2 and 3; any d and n.

    >>> import numpy as np, compress
    >>> C, x, key = PermK(2), np.float32([1, 2, 3, 4]), compress.Key(0)
    >>> sum(C(x, key.worker(w)) / 2 for w in range(2)).tolist()
    [1.0, 2.0, 3.0, 4.0]
    """

    n: int
    wire: str = "float32"
    fixed_length: ClassVar[bool] = False

    def __post_init__(self):
        settle(self, "n", positive_int(self.n, "n"))
        wire_bytes(self.wire)

    def counts(self, d: int) -> tuple[int, ...]:
        return tuple({d // self.n, -(-d // self.n)})

    def scale(self, d: int) -> float:
        return float(self.n)

    def _range(self, d: int, key: Key) -> tuple[int, int]:
        worker, n = key.worker_index, self.n
        if worker is None:
            raise ValueError("PermK needs to know the worker: encode and decode with key.worker(i)")
        if worker >= n:
            raise ValueError(f"PermK({n}) has workers 0 to {n - 1}, the key has worker {worker}")
        turn = key.shared.fold(_TURN).word * n >> 64
        part = (worker + turn) % n
        return part * d // n, (part + 1) * d // n

    def count(self, d: int, key: Key) -> int:
        start, end = self._range(d, key)
        return end - start

    def indices(self, d: int, key: Key, like=None) -> np.ndarray:
        start, end = self._range(d, key)
        indices = kernels.empty(like, end - start, np.uint32)
        kernels.of(indices).random_subset(key.shared.word, d, start, indices)
        return indices

    @classmethod
    def examples(cls):
        return [cls(4), cls(10)]


@dataclass(frozen=True)
class Bernoulli(Sparsifier):
    """C(x)_i = x_i / p with probability p, else 0, independently for every coordinate.

    p in (0, 1] is rounded to a multiple of 2^-32, and 1/p is one over the rounded p, so C is unbiased exactly.
    Payload: the kept values, p d of them on average; bits(d) allows for all d.

    omega = 1/p - 1, an equality for every x: the variance of a coordinate is x_i^2 (1/p - 1). Khaled, Richtarik,
    "Gradient descent with compressed iterates", 2019.

    >>> import numpy as np, compress
    >>> C, x = Bernoulli(0.25), np.ones(1000, np.float32)
    >>> y = C(x, compress.Key(0))
    >>> np.unique(y).tolist(), C.omega(1000)
    ([0.0, 4.0], 3.0)
    """

    p: float
    wire: str = "float32"
    fixed_length: ClassVar[bool] = False

    def __post_init__(self):
        if isinstance(self.p, bool) or not isinstance(self.p, (int, float, np.floating)):
            raise TypeError(f"p must be a number, got {self.p!r}")
        settle(self, "p", float(self.p))
        if not 2.0**-32 <= self.p <= 1:
            raise ValueError(f"p must lie in [2^-32, 1], got {self.p}")
        wire_bytes(self.wire)

    @property
    def _threshold(self) -> int:
        return round(self.p * 2**32)

    def counts(self, d: int) -> None:
        return None

    def scale(self, d: int) -> float:
        return 2**32 / self._threshold

    def indices(self, d: int, key: Key, like=None) -> np.ndarray:
        p = self._threshold / 2**32
        likely = min(d, int(p * d + 6 * math.sqrt(p * (1 - p) * d)) + 16)
        indices = kernels.empty(like, likely, np.uint32)
        k = kernels.of(indices)
        kept = k.bernoulli_indices(key.word, d, self._threshold, indices)
        if kept > likely:
            indices = kernels.empty(like, kept, np.uint32)
            k.bernoulli_indices(key.word, d, self._threshold, indices)
        return indices[:kept]

    def count(self, d: int, key: Key) -> int:
        return _shapes.bernoulli_count(key.word, d, self._threshold)

    @classmethod
    def examples(cls):
        return [cls(0.1), cls(0.5)]


@dataclass(frozen=True)
class TopK(Contractive):
    """C(x)_i = x_i for the k largest |x_i|, else 0; of equal magnitudes the lowest index goes first.

    k: a count, or a fraction in (0, 1) of d, rounded up. ValueError where k > d. Payload: the k values in ascending
    order of index, then the indices as Rice-coded gaps (csrc/rice.h): 8.12 bits each at k = d/100, of 8.08 that any
    code needs on average. bits(d) is the bound for the worst index set.

    alpha = 1 - k/d: what is left out is ||x||^2 less the k largest squares, which average at least ||x||^2/d.
    Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", NeurIPS 2018, lemma A.1.

    >>> import numpy as np, compress
    >>> TopK(2)(np.float32([1, -5, 0, 3]), compress.Key(0)).tolist()
    [0.0, -5.0, 0.0, 3.0]
    """

    k: int | float
    wire: str = "float32"
    fixed_length: ClassVar[bool] = False

    def __post_init__(self):
        settle(self, "k", _checked_k(self.k))
        wire_bytes(self.wire)

    def alpha(self, d: int) -> float:
        return 1 - _count(self.k, d) / d if d else 0.0

    def bits(self, d: int, dtype=np.float32) -> int:
        k = _count(self.k, d)
        return 8 * wire_bytes(self.wire) * k + _shapes.rice_bound(d, k)

    def _encode(self, x, key, out):
        kernel, d, wire = kernels.of(x), x.size, np.dtype(self.wire)
        check_range(x, wire)
        indices = kernels.empty(x, _count(self.k, d), np.uint32)
        kernel.topk(x, indices)
        payload = kernels.buffer(-(-self.bits(d) // 8), out, x)
        split = indices.size * wire.itemsize
        _gather_into(payload[:split], x, indices, wire)
        bits = 8 * split + kernel.rice_encode(indices, d, payload[split:])
        return payload[: -(-bits // 8)], bits

    def _decode(self, message, key, out, weight, add):
        kernel, d, payload, wire = kernels.of(out), message.size, message.payload, np.dtype(self.wire)
        indices = kernels.empty(out, _count(self.k, d), np.uint32)
        split = indices.size * wire.itemsize
        if payload.size < split:
            raise ValueError(f"TopK: payload has {payload.size} bytes, {indices.size} values alone have {split}")
        bits = kernel.rice_decode(payload[split:], d, indices)
        if payload.size != split + -(-bits // 8):
            raise ValueError(f"TopK: payload has {payload.size} bytes, its codes end at {split + -(-bits // 8)}")
        if not add:
            out.fill(0)
        kernel.scatter_add(_values(payload[:split], wire), indices, out, weight, True)

    @classmethod
    def examples(cls):
        return [cls(0.05), cls(1), cls(0.5, wire="float64")]
