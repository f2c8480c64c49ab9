"""Quantisers: every coordinate becomes one of a few levels of a scale.

Payload of all but NaturalCompression: packed codes, then one scale per block. A scale is a norm of the block,
rounded up to float32 (or kept as float64 with wire="float64") before any code depends on it. The constants
below hold up to that rounding: a relative error of at most 2^-23 in every code's value, so sqrt(omega) may be
larger by 2^-23 sqrt(d) m / ||x||, 2^-23 where m = ||x|| and d = 1. A float32 vector whose scale is denormal (below
2^-126) is decoded to what float32 has there, multiples of 2^-149.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import kernels
from ._cpu import kernels as _shapes
from .compressor import (
    Carrier,
    Contractive,
    Unbiased,
    check_finite,
    positive_int,
    refuse_nonfinite,
    settle,
    wire_bytes,
)

_NORMS = {"l2": _shapes.NORM_L2, "linf": _shapes.NORM_MAX, "mean": _shapes.NORM_MEAN_ABS}


def levels_bits(d: int, levels: int) -> int:
    """Bits of d packed codes of an alphabet of `levels` symbols."""
    return _shapes.pack_bits(d, _shapes.pack_width(levels))


class _Scaled:
    """Shared by the quantisers: codes of `_points` levels, then a scale per block of `_norm`."""

    _points: int
    _norm: int
    _natural: ClassVar[bool] = False
    _nearest: ClassVar[bool] = False
    wire = "float32"
    block = None

    def _block(self, d: int) -> int:
        return d if self.block is None else min(self.block, d)

    def bits(self, d: int, dtype=np.float32) -> int:
        """Codes of a fixed width (three symbols: five to a byte) and a scale for each block, exactly."""
        if d == 0:
            return 0
        return levels_bits(d, self._points) + 8 * -(-d // self._block(d)) * wire_bytes(self.wire)

    def _layout(self, d: int) -> tuple[int, int, int]:
        """(byte offset of the scales, block, wire bytes)."""
        return -(-levels_bits(d, self._points) // 8), self._block(d), wire_bytes(self.wire)

    def _encode(self, x, key, out, correlated=()):
        """correlated: (shared word, worker, workers) where the dither is."""
        k, d = kernels.of(x), x.size
        offset, block, wire = self._layout(d)
        payload = kernels.buffer(offset + -(-d // block) * wire, out, x)
        status = k.write_scales(x, block, self._norm, wire, payload, offset)
        points, how = self._points, (self._nearest, self._natural, *correlated)
        k.quantize_pack(x, payload, offset, wire, block, points, key.word, payload, *how)
        if status:  # looked at last: a GPU is asked once, and rounding by scales of zero does no harm
            refuse_nonfinite(x)
            what = "float32" if status == 2 else "float64"
            hint = "; wire='float64' carries it" if status == 2 and x.itemsize == 8 else ""
            raise ValueError(f"the scale of x (max|x| = {k.max_abs(x):g}) leaves {what}'s range{hint}")
        return payload, self.bits(d)

    def _decode(self, message, key, out, weight, add):
        k, payload = kernels.of(out), message.payload
        offset, block, wire = self._layout(message.size)
        count = -(-message.size // block)
        if (bad := k.bad_scale(payload, offset, count, wire)) >= 0:
            raise ValueError(f"{type(self).__name__}: scale {bad} of {count} in the payload is negative, NaN or Inf")
        k.unpack_scale(payload, payload, offset, wire, block, self._points, weight, out, add, self._natural)


class _Dithering(_Scaled):
    """`levels` positive levels, as many negative ones, and zero, of a `norm`."""

    @property
    def _points(self):
        return 2 * self.levels + 1

    @property
    def _norm(self):
        return _NORMS[self.norm]

    def _check(self, most: int) -> None:
        settle(self, "levels", positive_int(self.levels, "levels", 1, most))
        if self.norm not in ("l2", "linf"):
            raise ValueError(f"norm must be 'l2' or 'linf', got {self.norm!r}")
        wire_bytes(self.wire)


@dataclass(frozen=True)
class StandardDithering(_Dithering, Unbiased):
    """C(x)_i = m / s * sign(x_i) * xi(s |x_i| / m), xi rounding up or down at random with mean its argument.

    m is the norm of x ("l2" or "linf"), s = `levels` the number of positive levels: 2s+1 symbols in
    ceil(log2(2s+1)) bits, three in 1.6. With `block` (a multiple of 1024) every block has a scale of its own.

    omega (QSGD, Alistarh et al. 2017, lemma 3.1, with both constants sharpened here). With t = s|x_i|/m and
    f its fraction the variance of a coordinate is f(1-f) m^2/s^2, and f(1-f) <= 1/4 and <= t. Summing,
    omega ||x||^2 <= d m^2 / (4 s^2) and <= m ||x||_1 / s. For l2, m = ||x||: omega = min(d/(4s^2), sqrt(d)/s),
    and at s = 1, where the variance is m ||x||_1 - ||x||^2 exactly, sqrt(d) - 1. For linf m <= ||x||, the largest
    coordinate is exact, and m ||x||_1 <= (1+sqrt(d))/2 ||x||^2 (largest where one coordinate is m and the others
    m/(1+sqrt(d))): omega = min((d-1)/(4s^2), (1+sqrt(d))/(2s)), at s = 1 (sqrt(d)-1)/2.

    >>> import numpy as np, compress
    >>> C, key = StandardDithering(7), compress.Key(0).worker(2)
    >>> message = C.encode(np.float32([3, -4, 0, 0]), key)
    >>> message.bits, [round(float(v), 3) for v in C.decode(message, key)]
    (48, [2.857, -4.286, 0.0, 0.0])
    """

    levels: int
    norm: str = "l2"
    block: int | None = None
    wire: str = "float32"

    def __post_init__(self):
        self._check(most=32767)
        if self.block is not None:
            settle(self, "block", positive_int(self.block, "block"))
            if self.block % 1024:
                raise ValueError(f"block must be a multiple of 1024, got {self.block}")

    def omega(self, d: int) -> float:
        d, s = self._block(d), self.levels
        if self.norm == "l2":
            dense, sparse = d / (4 * s * s), math.sqrt(d) / s
        else:
            dense, sparse = (d - 1) / (4 * s * s), (1 + math.sqrt(d)) / (2 * s)
        return max(0.0, min(dense, sparse - (s == 1)))

    @classmethod
    def examples(cls):
        return [cls(1), cls(7), cls(7, norm="linf"), cls(127, block=1024), cls(3, wire="float64")]


@dataclass(frozen=True)
class TernGrad(_Scaled, Unbiased):
    """C(x)_i = m sign(x_i) b_i, m = max|x|, b_i = 1 with probability |x_i|/m: five trits a byte, 1.602 bits each.

    omega = (sqrt(d)-1)/2: the variance is m ||x||_1 - ||x||^2 exactly, largest as in StandardDithering.
    Wen et al., "TernGrad", NeurIPS 2017, without their clipping, which would bias it.

    >>> import numpy as np, compress
    >>> TernGrad()(np.float32([2, -2, 0, 2]), compress.Key(1)).tolist()
    [2.0, -2.0, 0.0, 2.0]
    """

    wire: str = "float32"
    _points: ClassVar[int] = 3
    _norm: ClassVar[int] = _NORMS["linf"]

    def __post_init__(self):
        wire_bytes(self.wire)

    def omega(self, d: int) -> float:
        return max(0.0, (math.sqrt(d) - 1) / 2)


@dataclass(frozen=True)
class Correlated(Carrier, Unbiased):
    """C_i(x) = C_inner(x) for worker i of n, with a dither that is correlated across workers: the same bits.

    `inner` is StandardDithering or TernGrad. What one worker sends has exactly the law of C_inner, so omega is that
    of `inner` and C_i(x_i) unbiased; but where one worker happens to round up others tend to round down, and the error
    of the mean (1/n) sum C_i(x_i) is smaller: at most that of independent workers for any x_1, ..., x_n, since
    Cov(C_i(x), C_j(y)) <= 0 for i != j, coordinate by coordinate (csrc/philox.h, D; to n 2^-16 where n is no power of
    two). Measured at n = 16, norm "linf": 0.06-0.07 of it where the x_i are equal, 0.13 / 0.25 / 0.44 at 1 / 3 / 7
    levels where they differ by a tenth, half where they have nothing in common. With norm "l2" and few levels most
    coordinates are rarely sent at all, and it gains little.

    Suresh, Sun, Ro, Yu, "Correlated quantization for distributed mean estimation and optimization", ICML 2022; here
    all n workers share 16 random bits a coordinate and a permutation of the workers every 4096 coordinates, in place of
    a permutation for each.

    The natural quantisers are left out: they round magnitudes, and of workers with opposite signs the errors would
    add up. ValueError where the key names no worker, or one that is not below `workers` (2 to 1024).

    >>> import numpy as np, compress
    >>> x, key = np.random.default_rng(0).standard_normal(10_000), compress.Key(0)
    >>> one, all16 = TernGrad(), Correlated(TernGrad(), 16)
    >>> errors = [sum(C(x, key.worker(i)) - x for i in range(16)) / 16 for C in (one, all16)]
    >>> round(float(np.sum(errors[1] ** 2) / np.sum(errors[0] ** 2)), 2)
    0.07
    """

    inner: StandardDithering | TernGrad
    workers: int

    def __post_init__(self):
        if not isinstance(self.inner, (StandardDithering, TernGrad)):
            raise TypeError(f"inner must be StandardDithering or TernGrad, got {self.inner!r}")
        settle(self, "workers", positive_int(self.workers, "workers", 2, 1024))

    def omega(self, d: int) -> float:
        return self.inner.omega(d)

    def _encode(self, x, key, out):
        worker = key.worker_index
        if worker is None or worker >= self.workers:
            raise ValueError(f"Correlated needs a key of one of {self.workers} workers, got {key!r}")
        return self.inner._encode(x, key, out, (key.shared.word, worker, self.workers))

    def _decode(self, message, key, out, weight, add):
        self.inner._decode(message, key, out, weight, add)

    @classmethod
    def examples(cls):
        return [cls(StandardDithering(1, norm="linf"), 16), cls(TernGrad(), 10)]


@dataclass(frozen=True)
class NaturalDithering(_Dithering, Unbiased):
    """C(x)_i = m sign(x_i) xi(|x_i| / m), xi rounding to 0, 2^(1-s), ..., 1/2, 1 at random with mean its argument.

    m is the norm of x ("l2" or "linf"), s = `levels`: 2s+1 symbols in ceil(log2(2s+1)) bits.

    omega = 1/8 + c min(1, c) with c = sqrt(d) 2^(1-s) (Horvath et al., "Natural compression for distributed deep
    learning", 2019, theorem on natural dithering): above the least level rounding between neighbouring powers
    costs at most x_i^2/8; below it the variance is at most u(l-u) m^2 with l = 2^(1-s), which sums to at most
    l ||x||_1 m <= c ||x||^2, and to at most d l^2 m^2/4 <= c^2 ||x||^2.

    >>> import numpy as np, compress
    >>> NaturalDithering(3, norm="linf")(np.float32([1, -0.5, 0.25, 0]), compress.Key(0)).tolist()
    [1.0, -0.5, 0.25, 0.0]
    """

    levels: int
    norm: str = "l2"
    wire: str = "float32"
    _natural: ClassVar[bool] = True

    def __post_init__(self):
        self._check(most=100)

    def omega(self, d: int) -> float:
        c = math.sqrt(d) * 2.0 ** (1 - self.levels)
        return 1 / 8 + c * min(1.0, c)

    @classmethod
    def examples(cls):
        return [cls(3), cls(7, norm="linf")]


@dataclass(frozen=True)
class ScaledSign(_Scaled, Contractive):
    """C(x) = ||x||_1 / d sign(x), the sign of zero counting as plus: one bit a coordinate and a scale.

    alpha = 1 - 1/d: ||C(x) - x||^2 = ||x||^2 - ||x||_1^2/d, and ||x||_1 >= ||x||. On a Gaussian vector it is
    1 - 2/pi. Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019.

    >>> import numpy as np, compress
    >>> ScaledSign()(np.float32([3, -1, 2, -2]), compress.Key(0)).tolist()
    [2.0, -2.0, 2.0, -2.0]
    """

    wire: str = "float32"
    _points: ClassVar[int] = 2
    _norm: ClassVar[int] = _NORMS["mean"]
    _nearest: ClassVar[bool] = True

    def __post_init__(self):
        wire_bytes(self.wire)

    def alpha(self, d: int) -> float:
        return 1 - 1 / max(d, 1)


@dataclass(frozen=True)
class NaturalCompression(Unbiased):
    """C(x)_i = sign(x_i) times a neighbouring power of two, up or down at random with mean |x_i|: 9 bits each.

    omega = 1/8: with |x_i| = (1+f) 2^e the variance is f(1-f) 4^e, at most x_i^2/8 (at f = 1/3). Horvath et al.,
    "Natural compression for distributed deep learning", 2019. Departs from the paper in sending 16 bits of
    exponent shift, 0 unless max|x| lies outside [2^-100, 2^127): float64 and denormals keep their meaning. A
    coordinate below 2^-126 of the shifted range is rounded to 0 or that power; all of them together add less than
    d 2^-52 to omega.

    >>> import numpy as np, compress
    >>> NaturalCompression()(np.float32([1, -0.25, 0, 3]), compress.Key(0)).tolist()
    [1.0, -0.25, 0.0, 4.0]
    """

    def omega(self, d: int) -> float:
        return 1 / 8

    def bits(self, d: int, dtype=np.float32) -> int:
        """8 d exponent bits, d signs, 16 of shift."""
        return 9 * d + 16 if d else 0

    def _encode(self, x, key, out):
        largest = check_finite(x)
        shift = 0
        if largest and not 2.0**-100 <= largest < 2.0**127:
            shift = 127 - math.frexp(largest)[1]
        codes = x.size + -(-x.size // 8)
        payload = kernels.buffer(codes + 2, out, x)
        kernels.of(x).power_pack(x, key.word, payload, shift)
        kernels.store(payload[codes:], shift.to_bytes(2, "little", signed=True))
        return payload, self.bits(x.size)

    def _decode(self, message, key, out, weight, add):
        shift = int.from_bytes(kernels.host(message.payload[-2:]).tobytes(), "little", signed=True)
        if not -1000 <= shift <= 1300:
            raise ValueError(f"NaturalCompression: exponent shift {shift} in the payload")
        kernels.of(out).unpower_scale(message.payload, weight, out, add, shift)
