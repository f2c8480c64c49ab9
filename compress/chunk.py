"""ChunkTopK: Top-K inside chunks, with the indices at their information bound and the values in a few bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import kernels
from ._cpu import kernels as _shapes
from .compressor import Contractive, check_finite, positive_int, settle, wire_bytes
from .sparsify import _gather_into, _values, check_range

_LONGEST_CHUNK = 1 << 16


@dataclass(frozen=True)
class ChunkTopK(Contractive):
    """C(x)_i = Q(x_i) for the k largest |x_i| of every `chunk` coordinates, else 0; ties go to the lowest index.

    chunk: 16 to 65,536; k: at most chunk. A last chunk of n < chunk coordinates sends ceil(k n / chunk). value_bits:
    1 to 8 for each value, sign included; None sends the values as they are, in `wire`. Rounds nothing at random.

    Bits. A chunk's indices are one number of ceil(log2 C(chunk, k)) bits, give or take a byte (csrc/subset.h), so the
    length is fixed and chunks decode independently; its values have 2^(value_bits-1) levels placed by a byte and, from
    2 bits on, a nibble (csrc/chunk.h). The default is 76.5 bytes a chunk, 9.56 bits a value, where SparseLoCo (Sarfi
    et al. 2025), with the same chunks, 12-bit indices and one codebook a tensor, has 14 and 3 to 7 times the error.
    DCT(ChunkTopK(...)) is what DeMo sends (Peng, Quesnelle, Kingma 2024), with one-dimensional blocks.

    alpha = 1 - k/chunk where value_bits is None, and otherwise 1 - 0.85 min(k/chunk, 1/k), for every x. Proof, chunk by
    chunk. Let S be the sum of the k magnitudes, n the chunk's length, u the smallest of them. (1) Of all k magnitudes
    of sum S that are at least u, the squares sum to most where k-1 are u, so ||x||^2 <= (S - (k-1) u)^2 + (n-1) u^2,
    which is convex in u and at the ends u = 0 and u = S/k no more than S^2 and n S^2/k^2. (2) Sending all k at their
    mean S/k would leave ||x||^2 - S^2/k, which by (1) is at most (1 - min(1/k, k/n)) ||x||^2. (3) The mean becomes a
    level of the line, off by at most 0.376 of itself: that leaves ||x||^2 - (1 - 0.376^2) S^2/k. (4) The encoder
    computes the error of this single level and takes other levels only where theirs is smaller. A chunk whose mean is
    2^-280 or less of the largest, which float32 cannot have, is sent as zero; its energy is beyond the last digit of
    alpha. A last chunk has k' <= k with k'/n >= k/chunk.

    One giant in a chunk of dwarfs keeps its level, and the dwarfs get the level zero. Chunks share 255 places for
    their scales, evenly spread over the range that the message needs: a place is at most 3% off where the scales
    lie within 1 : 30,000, and at most 28% with 1e-30 beside 1e30.

    ValueError for float64 whose max|x| lies outside [1e-140, 1e140]; value_bits=None with wire="float64" carries it.

    >>> import numpy as np, compress
    >>> x = np.zeros(64, np.float32); x[[3, 20, 40]] = 8, -8, 1
    >>> C = ChunkTopK(chunk=64, k=3)
    >>> C(x, compress.Key(0))[[3, 20, 40]].tolist(), C.bits(1 << 20) / (1 << 14) / 3
    ([8.0, -8.0, 1.0], 11.335286458333334)
    """

    chunk: int = 4096
    k: int = 64
    value_bits: int | None = 2
    wire: str = "float32"

    def __post_init__(self):
        settle(self, "chunk", positive_int(self.chunk, "chunk", 16, _LONGEST_CHUNK))
        settle(self, "k", positive_int(self.k, "k", 1, self.chunk))
        if self.value_bits is not None:
            settle(self, "value_bits", positive_int(self.value_bits, "value_bits", 1, 8))
        wire_bytes(self.wire)

    def alpha(self, d: int) -> float:
        if not d:
            return 0.0
        sent = self.k / self.chunk
        return 1 - sent if self.value_bits is None else 1 - 0.85 * min(sent, 1 / self.k)

    def count(self, d: int) -> int:
        """How many values a message of d coordinates has."""
        return d // self.chunk * self.k + self._last(d)

    def bits(self, d: int, dtype=np.float32) -> int:
        """Exact: sections of whole bytes."""
        _, last = self._split(d)
        return 8 * (last + _shapes.subset_bytes(d % self.chunk, self._last(d))) if d else 0

    def _last(self, d: int) -> int:
        """The values of the last chunk, where it is a short one."""
        return -(-self.k * (d % self.chunk) // self.chunk)

    def _split(self, d: int) -> tuple[int, int]:
        """Where the records of whole chunks start, and where that of the last chunk does."""
        if self.value_bits is None:
            values = self.count(d) * wire_bytes(self.wire)
        else:
            values = _shapes.chunk_values_bytes(self.count(d), self.k, self.value_bits)
        return values, values + d // self.chunk * _shapes.subset_bytes(self.chunk, self.k)

    def _parts(self, payload, indices, d):
        """(records, their indices, first coordinate, coordinates and indices a record) of whole chunks and the last."""
        values, last = self._split(d)
        whole, left = indices.size - self._last(d), d % self.chunk
        yield payload[values:last], indices[:whole], 0, self.chunk, self.k
        if left:
            yield payload[last:], indices[whole:], d - left, left, self._last(d)

    def _encode(self, x, key, out):
        kernel, d = kernels.of(x), x.size
        self._check(x)
        indices = kernels.empty(x, self.count(d), np.uint32)
        kernel.chunk_topk(x, self.chunk, self.k, indices)
        payload = kernels.buffer(self.bits(d) // 8, out, x)
        section = payload[: self._split(d)[0]]
        if self.value_bits is None:
            _gather_into(section, x, indices, np.dtype(self.wire))
        else:
            values = kernels.empty(x, indices.size, x.dtype)
            kernel.gather(x, indices, values, True)
            kernel.chunk_values_encode(values, self.k, self.value_bits, section)
        for records, part, start, n, k in self._parts(payload, indices, d):
            kernel.subset_encode(part, start, n, k, records)
        return payload, 8 * payload.size

    def _check(self, x) -> None:
        if self.value_bits is None:
            check_range(x, np.dtype(self.wire))
            return
        largest = check_finite(x)
        if x.dtype == np.float64 and largest and not 1e-140 <= largest <= 1e140:
            raise ValueError(
                f"max|x| = {largest:g} leaves the range of the levels, [1e-140, 1e140]; "
                "value_bits=None with wire='float64' carries it"
            )

    def _decode(self, message, key, out, weight, add):
        kernel, d, payload = kernels.of(out), message.size, message.payload
        indices = kernels.empty(out, self.count(d), np.uint32)
        for records, part, start, n, k in self._parts(payload, indices, d):
            kernel.subset_decode(records, start, n, k, part)
        section = payload[: self._split(d)[0]]
        if self.value_bits is None:
            values = _values(section, np.dtype(self.wire))
        else:
            values = kernels.empty(out, indices.size, message.dtype)
            kernel.chunk_values_decode(section, self.k, self.value_bits, values)
        if not add:
            out.fill(0)
        kernel.scatter_add(values, indices, out, weight, True)

    @classmethod
    def examples(cls):
        return [cls(), cls(64, 8, 4), cls(1000, 30, 1), cls(256, 16, None)]
