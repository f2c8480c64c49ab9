"""recommend(): which compressor to use, from a table of what was measured."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from .chunk import ChunkTopK
from .combine import Composed, Scaled
from .compressor import Compressor
from .eden import Eden
from .kashin import Kashin
from .quantize import StandardDithering
from .rotate import Rotated
from .sparsify import RandK, TopK
from .trellis import Trellis, UniformQuantizer

LEAST, MOST = 0.05, 8.0
RATES = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0)


class Recommendation(NamedTuple):
    """A compressor and why it was chosen."""

    compressor: Compressor
    reason: str

    def __str__(self):
        return f"{self.compressor!r}: {self.reason}"


class Choice(NamedTuple):
    """A row of the table: how to make a compressor of a rate, what it promises, and what was measured.

    rates: bits a coordinate that were measured. normal, gradient: NMSE there on N(0, 1), d = 2^20, and on a network's
    gradient (bench/gradients.py). encode, decode: GB/s of float32, the slower of the two vectors.
    """

    make: Callable[[float], Compressor]
    unbiased: bool
    proven: bool
    why: str
    rates: tuple[float, ...]
    normal: tuple[float, ...]
    gradient: tuple[float, ...]
    encode: tuple[float, ...]
    decode: tuple[float, ...]

    def near(self, bits: float) -> range:
        """Which of the measured rates are next to `bits`, one on either side; none where the row is not for them."""
        least = LEAST if self.rates[0] == RATES[0] else self.rates[0]
        if not least <= bits <= self.rates[-1]:
            return range(0)
        below, above = bisect_right(self.rates, bits) - 1, bisect_left(self.rates, bits)
        return range(max(below, 0), above + 1)

    def speed(self, bits: float) -> float:
        """GB/s that it reaches in both directions at these bits; 0 where it is not for them."""
        return min((min(self.encode[i], self.decode[i]) for i in self.near(bits)), default=0.0)


def _thinned(at: float, inner: Callable[[float], Compressor]) -> Callable[[float], Compressor]:
    """inner(bits), and below `at` bits RandK in front of inner(at): omega grows like 1 / bits there, where a quantiser
    of every coordinate would lose much more."""

    def make(bits):
        return inner(bits) if bits >= at else Composed(RandK(math.floor(1e4 * bits / at) / 1e4), inner(at))

    return make


def _kashin(bits: float) -> Kashin:
    """The smallest proven omega in the bits, nearly 0.01 of which are for the levels of frames."""
    spreads = {width: math.floor(100 * (bits - 0.0095) / width) / 100 for width in range(2, 9)}
    return min((Kashin(2**w, r) for w, r in spreads.items() if 1.05 <= r <= 8), key=lambda C: C.omega(1 << 20))


def _dithering(bits: float) -> StandardDithering:
    """Whole bits a code, and a scale for as few coordinates as the rest allows."""
    width = int(bits + 0.01)
    return StandardDithering(2 ** (width - 1) - 1, "linf", 1024 if width + 32 / 1024 <= 1.01 * bits else 2048)


def _chunk_topk(bits: float) -> ChunkTopK:
    d = 1 << 20
    return ChunkTopK(4096, bisect_right(range(1, 1025), bits * d, key=lambda k: ChunkTopK(4096, k).bits(d)))


def _topk(bits: float) -> TopK:
    """k values of 32 bits and an index each, log2(d/k) + 1.5 bits."""
    k = bits / 40
    for _ in range(20):
        k = bits / (33.5 - math.log2(k))
    return TopK(math.floor(1e5 * k) / 1e5)


_TRELLIS_256 = _thinned(0.5, lambda b: Trellis(bits=b, states=256, unbiased=True, context=b > 0.5))
_TRELLIS_CONTEXT = _thinned(0.5, lambda b: Trellis(bits=b, unbiased=True, context=b > 0.5))
_TRELLIS = _thinned(0.5, lambda b: Trellis(bits=b, unbiased=True))
_UNIFORM = _thinned(0.75, lambda b: UniformQuantizer(bits=b, unbiased=True))
_KASHIN = _thinned(2.33, _kashin)
_ROTATED = _thinned(3.0, lambda b: Rotated(_dithering(b)))
_DITHERING = _thinned(3.0, _dithering)

# The first row that meets every wish is taken: biased ones first, and of either kind the smallest errors first. The
# last is for the constant alone: where that is large, such a scale costs more than it saves.
TABLE = [
    Choice(
        make=lambda bits: Trellis(bits=bits, states=256, context=True),
        unbiased=False,
        proven=False,
        why="entropy-coded trellis of 256 states with contexts: the least error on gradients, nearly so on noise",
        rates=RATES,
        normal=(0.907, 0.761, 0.539, 0.266, 0.0657, 0.0166, 0.00409, 1.6e-05),
        gradient=(0.391, 0.234, 0.122, 0.0399, 0.00601, 0.00106, 0.0002, 1.84e-07),
        encode=(0.019, 0.026, 0.033, 0.033, 0.034, 0.034, 0.032, 0.044),
        decode=(0.58, 0.73, 0.82, 0.73, 0.76, 0.69, 0.69, 0.73),
    ),
    Choice(
        make=lambda bits: Trellis(bits=bits, context=True),
        unbiased=False,
        proven=False,
        why="entropy-coded trellis of 8 states with contexts: on gradients far better than without",
        rates=RATES,
        normal=(0.911, 0.778, 0.563, 0.279, 0.0694, 0.0175, 0.00434, 1.69e-05),
        gradient=(0.396, 0.241, 0.126, 0.0418, 0.00632, 0.00112, 0.00021, 1.93e-07),
        encode=(0.071, 0.088, 0.084, 0.087, 0.089, 0.085, 0.088, 0.087),
        decode=(0.61, 0.75, 0.81, 0.75, 0.75, 0.73, 0.74, 0.72),
    ),
    Choice(
        make=lambda bits: Trellis(bits=bits),
        unbiased=False,
        proven=False,
        why="entropy-coded trellis of 8 states: on dense vectors as good as with contexts, and faster",
        rates=RATES,
        normal=(0.917, 0.771, 0.573, 0.278, 0.07, 0.0178, 0.00441, 1.72e-05),
        gradient=(0.431, 0.295, 0.177, 0.0666, 0.0114, 0.00217, 0.000423, 4.75e-07),
        encode=(0.16, 0.16, 0.25, 0.25, 0.23, 0.34, 0.35, 0.34),
        decode=(0.89, 1.2, 1.2, 1.3, 1.3, 1.2, 1.3, 1.3),
    ),
    Choice(
        make=lambda bits: UniformQuantizer(bits=bits),
        unbiased=False,
        proven=False,
        why="rounding with a dead zone, entropy coded: the least error without a search",
        rates=RATES,
        normal=(0.913, 0.793, 0.621, 0.35, 0.0909, 0.0226, 0.00565, 2.21e-05),
        gradient=(0.449, 0.302, 0.175, 0.0675, 0.0125, 0.00247, 0.0005, 6.04e-07),
        encode=(0.64, 0.63, 0.61, 0.59, 0.8, 0.81, 0.81, 0.74),
        decode=(1.6, 2.0, 2.3, 2.4, 2.5, 2.4, 2.4, 1.9),
    ),
    Choice(
        make=lambda bits: Eden(bits=bits),
        unbiased=False,
        proven=True,
        why="rotation and Lloyd-Max levels, of fixed length: the same error on every dense vector",
        rates=RATES[3:],
        normal=(0.363, 0.117, 0.0345, 0.00949, 4.11e-05),
        gradient=(0.362, 0.117, 0.0344, 0.00941, 4.06e-05),
        encode=(2.0, 2.0, 2.0, 2.0, 1.9),
        decode=(3.5, 3.2, 3.6, 2.9, 3.6),
    ),
    Choice(
        make=_chunk_topk,
        unbiased=False,
        proven=True,
        why="the largest of every 4096 coordinates in two bits each, of fixed length",
        rates=RATES[:3],
        normal=(0.921, 0.812, 0.658),
        gradient=(0.793, 0.591, 0.389),
        encode=(2.6, 1.2, 0.44),
        decode=(5.6, 1.8, 0.8),
    ),
    Choice(
        make=_topk,
        unbiased=False,
        proven=True,
        why="the largest coordinates as they are: for sparse vectors",
        rates=RATES[:5],
        normal=(0.974, 0.943, 0.899, 0.826, 0.709),
        gradient=(0.561, 0.477, 0.401, 0.307, 0.2),
        encode=(6.1, 5.5, 5.1, 4.2, 3.1),
        decode=(20.0, 19.0, 15.0, 11.0, 7.9),
    ),
    Choice(
        make=lambda bits: Scaled(_KASHIN(bits)),
        unbiased=False,
        proven=True,
        why="Kashin compression scaled by 1 / (1 + omega)",
        rates=RATES,
        normal=(0.967, 0.917, 0.833, 0.666, 0.333, 0.126, 0.0327, 0.000161),
        gradient=(0.966, 0.916, 0.831, 0.664, 0.329, 0.125, 0.0324, 0.000159),
        encode=(4.1, 1.9, 1.0, 0.52, 0.26, 0.34, 0.36, 0.42),
        decode=(6.5, 3.3, 1.8, 0.9, 0.45, 1.4, 1.3, 1.4),
    ),
    Choice(
        make=_TRELLIS_256,
        unbiased=True,
        proven=False,
        why="dithered trellis of 256 states with contexts: the least unbiased error, on noise up to 4 bits",
        rates=RATES,
        normal=(9.93, 3.35, 1.17, 0.358, 0.07, 0.0165, 0.00406, 1.56e-05),
        gradient=(7.76, 2.48, 0.733, 0.119, 0.0118, 0.00177, 0.000307, 3.04e-07),
        encode=(0.19, 0.082, 0.063, 0.057, 0.046, 0.033, 0.032, 0.027),
        decode=(1.2, 0.47, 1.0, 0.75, 0.82, 0.69, 0.58, 0.58),
    ),
    Choice(
        make=_TRELLIS_CONTEXT,
        unbiased=True,
        proven=False,
        why="dithered trellis of 8 states with contexts: on gradients better than without",
        rates=RATES,
        normal=(10.7, 3.64, 1.31, 0.386, 0.0741, 0.0175, 0.0043, 1.65e-05),
        gradient=(8.19, 2.64, 0.817, 0.129, 0.0126, 0.00189, 0.000327, 3.23e-07),
        encode=(0.43, 0.2, 0.16, 0.11, 0.11, 0.078, 0.09, 0.06),
        decode=(1.1, 0.48, 0.85, 0.59, 0.82, 0.61, 0.8, 0.75),
    ),
    Choice(
        make=_TRELLIS,
        unbiased=True,
        proven=False,
        why="dithered trellis of 8 states: on dense vectors as good as with contexts, and faster",
        rates=RATES,
        normal=(10.7, 3.64, 1.31, 0.387, 0.0748, 0.0177, 0.00433, 1.62e-05),
        gradient=(8.19, 2.64, 0.817, 0.165, 0.0194, 0.00315, 0.000579, 6.62e-07),
        encode=(0.52, 0.22, 0.17, 0.13, 0.13, 0.15, 0.14, 0.12),
        decode=(1.5, 0.63, 0.97, 0.9, 0.92, 1.0, 1.2, 1.2),
    ),
    Choice(
        make=_UNIFORM,
        unbiased=True,
        proven=False,
        why="subtractive dither, entropy coded: the least unbiased error without a search",
        rates=RATES,
        normal=(14.2, 5.06, 2.02, 0.556, 0.0978, 0.0228, 0.00556, 2.07e-05),
        gradient=(10.1, 3.45, 1.21, 0.233, 0.0259, 0.00411, 0.000744, 8.13e-07),
        encode=(0.69, 0.35, 0.19, 0.17, 0.17, 0.2, 0.17, 0.14),
        decode=(2.2, 0.97, 0.5, 1.3, 1.4, 1.7, 1.5, 1.5),
    ),
    Choice(
        make=_KASHIN,
        unbiased=True,
        proven=True,
        why="Kashin compression: one proven constant whatever the dimension",
        rates=RATES,
        normal=(28.4, 10.8, 4.88, 1.94, 0.469, 0.132, 0.0332, 0.000161),
        gradient=(28.8, 10.7, 4.9, 1.93, 0.462, 0.131, 0.0329, 0.000159),
        encode=(4.0, 1.9, 1.0, 0.52, 0.26, 0.31, 0.33, 0.4),
        decode=(6.4, 3.4, 1.9, 0.92, 0.45, 2.3, 2.7, 3.0),
    ),
    Choice(
        make=_ROTATED,
        unbiased=True,
        proven=True,
        why="dithering behind a rotation, of fixed length: nearly the same error on every vector",
        rates=RATES,
        normal=(36.3, 13.9, 6.48, 2.73, 0.868, 0.245, 0.0406, 0.000123),
        gradient=(36.6, 13.7, 6.34, 2.69, 0.839, 0.24, 0.0402, 0.000122),
        encode=(8.2, 4.4, 2.4, 1.3, 0.65, 2.6, 2.6, 2.4),
        decode=(8.6, 4.6, 2.6, 1.4, 0.68, 5.9, 6.0, 5.9),
    ),
    Choice(
        make=_DITHERING,
        unbiased=True,
        proven=True,
        why="plain dithering, of fixed length: the fastest",
        rates=RATES,
        normal=(36.4, 13.9, 6.46, 2.73, 0.864, 0.244, 0.0404, 0.000123),
        gradient=(89.6, 33.6, 16.2, 7.69, 3.35, 0.372, 0.0629, 0.000211),
        encode=(7.8, 3.6, 2.4, 1.2, 0.67, 5.6, 5.6, 5.7),
        decode=(9.0, 4.5, 2.7, 1.1, 0.71, 18.0, 14.0, 14.0),
    ),
    Choice(
        make=lambda bits: Scaled(_ROTATED(bits)),
        unbiased=False,
        proven=True,
        why="dithering behind a rotation, scaled by 1 / (1 + omega), of fixed length",
        rates=RATES,
        normal=(0.993, 0.982, 0.964, 0.929, 0.858, 0.787, 0.497, 0.000363),
        gradient=(0.993, 0.982, 0.965, 0.928, 0.857, 0.787, 0.497, 0.000361),
        encode=(7.7, 4.1, 2.2, 1.2, 0.62, 2.5, 2.6, 2.5),
        decode=(7.5, 4.2, 2.4, 1.3, 0.64, 2.5, 2.6, 2.5),
    ),
]


def recommend(
    bits: float, unbiased: bool = False, worst_case: bool = False, speed: float = 0.05, shape=None
) -> Recommendation:
    """The compressor of the smallest error that fits the wishes, and the reason with what was measured.

    Smallest in the mean of N(0, 1) and a network's gradient, to a tenth; one choice for vectors of all kinds.

    bits: a coordinate, 0.05 to 8; messages of 2^17 coordinates and more keep to it within 1%, or 2% below 0.25 bits;
    those of an entropy coder that is unbiased scatter about it by 200 / sqrt(bits d) percent.

    unbiased: E C(x) = x, which methods without error feedback need.

    worst_case: a constant omega or alpha proven for every x, for step sizes from a theorem, rather than an error that
    depends on the vector. The smallest constant is then chosen, not the smallest error on some vectors.

    speed: GB/s of float32 that encode and decode must each reach; 0 where time is no matter. A number and no word, as
    there is one to compare it with: a link of 1 Gbit/s carries 0.125 GB/s, and a slower coder saves no time there. It
    is measured on one thread of an Intel Xeon of 2.3 GHz (Sapphire Rapids, AVX-512) on which others work too, at a
    million coordinates; with AVX2 count on half to two thirds of it.

    shape: of the matrix that the vector is, for Trellis(context=True); what was measured was without.

    What holds a budget on a vector of your own: `python -m bench --input yours.npy`. To keep an error rather than a
    rate, proven for any input: UniformQuantizer(nmse=0.01, unbiased=True).

    Raises ValueError for bits outside the range that was measured, and where nothing fits: it says which wish to give
    up.

    >>> compressor, reason = recommend(bits=2, unbiased=True, worst_case=True)
    >>> compressor
    Composed(first=RandK(k=0.8583, wire='float32'), then=Kashin(levels=4, redundancy=1.16, iterations=None))
    >>> print(recommend(bits=4, speed=2))                                                # doctest: +ELLIPSIS
    Eden(rate=4.0, ...): rotation and Lloyd-Max levels, of fixed length: ... NMSE 0.00949 on N(0, 1), 0.00941 on ...
    >>> recommend(bits=4, speed=1000)                                                    # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: nothing measured has 4 bits and speed=1000.0: give up speed (...)
    """
    bits, speed = float(bits), float(speed)
    if not LEAST <= bits <= MOST:
        raise ValueError(f"bits must be in [{LEAST:g}, {MOST:g}], what was measured, got {bits:g}")
    if not 0 <= speed < math.inf:
        raise ValueError(f"speed must be GB/s, 0 or more, got {speed:g}")
    wishes = {"unbiased": bool(unbiased), "worst_case": bool(worst_case), "speed": speed}
    if fitting := _fitting(bits, **wishes):
        found = _recommendation(min(fitting, key=lambda row: _constant(row, bits)) if worst_case else fitting[0], bits)
        if shape is not None and getattr(found.compressor, "context", False):
            found = found._replace(compressor=replace(found.compressor, shape=shape))
        return found
    instead = []
    for wish in ("speed", "worst_case", "unbiased"):
        if wishes[wish] and (others := _fitting(bits, **wishes | {wish: 0})):
            best = max(others, key=lambda row: row.speed(bits)) if wish == "speed" else others[0]
            instead.append(f"{wish} ({best.make(bits)!r} reaches {best.speed(bits):g} GB/s)")
    asked = ", ".join(f"{wish}={value!r}" for wish, value in wishes.items() if value)
    raise ValueError(f"nothing measured has {bits:g} bits and {asked}: give up {' or '.join(instead)}")


def _fitting(bits, unbiased, worst_case, speed):
    return [
        row
        for row in TABLE
        if row.near(bits) and row.unbiased >= unbiased and row.proven >= worst_case and row.speed(bits) >= speed
    ]


def _constant(row, bits):
    """The proven bound on E||C(x) - x||^2 / ||x||^2 at d = 2^20."""
    compressor = row.make(bits)
    return compressor.omega(1 << 20) if row.unbiased else compressor.alpha(1 << 20)


def _recommendation(row, bits):
    def listed(values):
        return " / ".join(f"{values[i]:g}" for i in row.near(bits))

    promise = "no constant"
    if row.proven:
        promise = f"{'omega' if row.unbiased else 'alpha'} = {_constant(row, bits):.6g} proven for every x"
    kind = "unbiased" if row.unbiased else "biased, for error feedback"
    return Recommendation(
        row.make(bits),
        f"{row.why}; {kind}; {promise}. Measured at {listed(row.rates)} bits: NMSE {listed(row.normal)} on N(0, 1), "
        f"{listed(row.gradient)} on a gradient; encodes at {listed(row.encode)}, decodes at {listed(row.decode)} GB/s.",
    )
