"""recommend(): which compressor to use, from a table of what was measured."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
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
        lambda bits: Trellis(bits=bits, states=256, context=True),
        *(
            False,
            False,
            "entropy-coded trellis of 256 states with contexts: the least error on gradients, nearly so on noise",
        ),
        RATES,
        (0.915, 0.821, 0.538, 0.265, 0.0662, 0.0162, 0.00404, 1.77e-05),
        (0.4, 0.24, 0.124, 0.0413, 0.00636, 0.00111, 0.000212, 3.69e-07),
        (0.017, 0.019, 0.018, 0.022, 0.023, 0.029, 0.029, 0.028),
        (0.5, 0.53, 0.52, 0.45, 0.38, 0.36, 0.46, 0.53),
    ),
    Choice(
        lambda bits: Trellis(bits=bits, context=True),
        *(False, False, "entropy-coded trellis of 8 states with contexts: on gradients far better than without"),
        RATES,
        (0.911, 0.813, 0.562, 0.28, 0.069, 0.0172, 0.00428, 1.87e-05),
        (0.412, 0.246, 0.129, 0.0443, 0.00673, 0.00117, 0.000222, 3.95e-07),
        (0.035, 0.031, 0.033, 0.033, 0.039, 0.049, 0.048, 0.045),
        (0.53, 0.56, 0.57, 0.46, 0.39, 0.37, 0.46, 0.51),
    ),
    Choice(
        lambda bits: Trellis(bits=bits),
        *(False, False, "entropy-coded trellis of 8 states: on dense vectors as good as with contexts, and faster"),
        RATES,
        (0.938, 0.771, 0.56, 0.281, 0.0698, 0.0176, 0.00441, 2.07e-05),
        (0.431, 0.298, 0.177, 0.0675, 0.0118, 0.00224, 0.000449, 2.89e-06),
        (0.065, 0.13, 0.13, 0.12, 0.15, 0.25, 0.24, 0.12),
        (2.3, 2.9, 3.5, 4.0, 3.3, 3.4, 3.3, 2.7),
    ),
    Choice(
        lambda bits: UniformQuantizer(bits=bits),
        *(False, False, "rounding with a dead zone, entropy coded: the least error without a search"),
        RATES,
        (0.966, 0.797, 0.623, 0.352, 0.0911, 0.0227, 0.00567, 2.22e-05),
        (0.453, 0.305, 0.178, 0.0693, 0.0126, 0.00261, 0.000526, 2.47e-06),
        (0.56, 0.55, 0.82, 1.2, 1.4, 1.2, 1.4, 0.95),
        (3.0, 3.8, 4.1, 4.3, 3.4, 3.5, 3.4, 2.8),
    ),
    Choice(
        lambda bits: Eden(bits=bits),
        *(False, True, "rotation and Lloyd-Max levels, of fixed length: the same error on every dense vector"),
        RATES[3:],
        (0.363, 0.117, 0.0345, 0.00949, 4.11e-05),
        (0.362, 0.117, 0.0344, 0.00941, 4.06e-05),
        (4.3, 4.4, 4.5, 4.3, 4.2),
        (8.5, 8.5, 8.3, 8.5, 7.8),
    ),
    Choice(
        _chunk_topk,
        *(False, True, "the largest of every 4096 coordinates in two bits each, of fixed length"),
        RATES[:3],
        (0.921, 0.812, 0.658),
        (0.793, 0.591, 0.389),
        (4.7, 2.2, 0.73),
        (10.0, 2.9, 1.2),
    ),
    Choice(
        _topk,
        *(False, True, "the largest coordinates as they are: for sparse vectors"),
        RATES[:5],
        (0.974, 0.943, 0.899, 0.826, 0.709),
        (0.561, 0.477, 0.401, 0.307, 0.2),
        (18.0, 16.0, 13.0, 11.0, 7.5),
        (53.0, 50.0, 42.0, 30.0, 20.0),
    ),
    Choice(
        lambda bits: Scaled(_KASHIN(bits)),
        *(False, True, "Kashin compression scaled by 1 / (1 + omega)"),
        RATES,
        (0.967, 0.917, 0.833, 0.666, 0.333, 0.126, 0.0327, 0.000161),
        (0.966, 0.916, 0.831, 0.664, 0.329, 0.125, 0.0324, 0.000159),
        (10.0, 4.5, 2.4, 1.2, 0.58, 0.69, 0.77, 0.87),
        (16.0, 8.2, 4.3, 2.1, 1.0, 3.7, 4.1, 3.7),
    ),
    Choice(
        _TRELLIS_256,
        *(True, False, "dithered trellis of 256 states with contexts: the least unbiased error, on noise up to 4 bits"),
        RATES,
        (9.9, 3.35, 1.18, 0.359, 0.0709, 0.0169, 0.00422, 1.98e-05),
        (7.69, 2.46, 0.736, 0.13, 0.0127, 0.00189, 0.000337, 6.01e-07),
        (0.17, 0.07, 0.051, 0.022, 0.026, 0.031, 0.03, 0.026),
        (2.8, 1.2, 2.5, 0.43, 0.41, 0.41, 0.4, 0.35),
    ),
    Choice(
        _TRELLIS_CONTEXT,
        *(True, False, "dithered trellis of 8 states with contexts: on gradients better than without"),
        RATES,
        (10.6, 3.64, 1.32, 0.388, 0.0754, 0.0179, 0.00447, 2.1e-05),
        (8.14, 2.63, 0.816, 0.142, 0.0136, 0.00203, 0.000359, 6.39e-07),
        (0.5, 0.2, 0.17, 0.047, 0.054, 0.054, 0.063, 0.052),
        (2.6, 1.2, 2.7, 0.41, 0.41, 0.39, 0.39, 0.36),
    ),
    Choice(
        _TRELLIS,
        *(True, False, "dithered trellis of 8 states: on dense vectors as good as with contexts, and faster"),
        RATES,
        (10.6, 3.64, 1.32, 0.39, 0.0758, 0.0179, 0.00439, 1.66e-05),
        (8.14, 2.63, 0.816, 0.167, 0.0195, 0.00329, 0.000623, 2.62e-06),
        (0.45, 0.2, 0.18, 0.25, 0.24, 0.18, 0.18, 0.15),
        (3.1, 1.3, 2.6, 2.7, 1.9, 2.0, 2.0, 1.8),
    ),
    Choice(
        _UNIFORM,
        *(True, False, "subtractive dither, entropy coded: the least unbiased error without a search"),
        RATES,
        (14.2, 5.08, 2.03, 0.561, 0.099, 0.0231, 0.00564, 2.13e-05),
        (10.1, 3.46, 1.22, 0.233, 0.0262, 0.00432, 0.000809, 3.32e-06),
        (1.2, 0.61, 0.37, 0.53, 0.45, 0.48, 0.43, 0.3),
        (4.6, 1.8, 0.97, 3.0, 2.1, 2.2, 2.1, 1.8),
    ),
    Choice(
        _KASHIN,
        *(True, True, "Kashin compression: one proven constant whatever the dimension"),
        RATES,
        (28.4, 10.8, 4.88, 1.94, 0.469, 0.132, 0.0332, 0.000161),
        (28.8, 10.7, 4.9, 1.93, 0.462, 0.131, 0.0329, 0.000159),
        (9.6, 4.4, 2.2, 1.1, 0.54, 0.68, 0.75, 0.85),
        (16.0, 7.9, 4.1, 1.9, 0.95, 6.0, 6.2, 6.0),
    ),
    Choice(
        _ROTATED,
        *(True, True, "dithering behind a rotation, of fixed length: nearly the same error on every vector"),
        RATES,
        (36.3, 13.9, 6.48, 2.73, 0.868, 0.245, 0.0406, 0.000123),
        (36.6, 13.7, 6.34, 2.69, 0.839, 0.24, 0.0402, 0.000122),
        (22.0, 11.0, 5.7, 2.8, 1.4, 6.4, 6.6, 6.7),
        (21.0, 11.0, 6.1, 3.0, 1.4, 14.0, 14.0, 15.0),
    ),
    Choice(
        _DITHERING,
        *(True, True, "plain dithering, of fixed length: the fastest"),
        RATES,
        (36.4, 13.9, 6.46, 2.73, 0.864, 0.244, 0.0404, 0.000123),
        (89.6, 33.6, 16.2, 7.69, 3.35, 0.372, 0.0629, 0.000211),
        (24.0, 11.0, 6.3, 3.1, 1.5, 14.0, 14.0, 14.0),
        (22.0, 11.0, 6.5, 3.2, 1.5, 69.0, 53.0, 51.0),
    ),
    Choice(
        lambda bits: Scaled(_ROTATED(bits)),
        *(False, True, "dithering behind a rotation, scaled by 1 / (1 + omega), of fixed length"),
        RATES,
        (0.993, 0.982, 0.964, 0.929, 0.858, 0.787, 0.497, 0.000363),
        (0.993, 0.982, 0.965, 0.928, 0.857, 0.787, 0.497, 0.000361),
        (21.0, 11.0, 5.8, 2.9, 1.4, 6.2, 6.3, 6.3),
        (21.0, 11.0, 6.1, 3.0, 1.4, 7.0, 7.7, 7.7),
    ),
]


def recommend(bits: float, unbiased: bool = False, worst_case: bool = False, speed: float = 0.1) -> Recommendation:
    """The compressor of the smallest error that fits the wishes, and the reason with what was measured.

    Smallest in the mean of N(0, 1) and a network's gradient, to a tenth; one choice for vectors of all kinds.

    bits: a coordinate, 0.05 to 8; messages of 2^17 coordinates and more keep to it within 1%, or 2% below 0.25 bits.

    unbiased: E C(x) = x, which methods without error feedback need.

    worst_case: a constant omega or alpha proven for every x, for step sizes from a theorem, rather than an error that
    depends on the vector. The smallest constant is then chosen, not the smallest error on some vectors.

    speed: GB/s of float32 that encode and decode must each reach; 0 where time is no matter. A number and no word, as
    there is one to compare it with: a link of 1 Gbit/s carries 0.125 GB/s, and a slower coder saves no time there. It
    is measured on one thread of an AVX-512 core, at a million coordinates; with AVX2 count on half of it.

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
        return _recommendation(min(fitting, key=lambda row: _constant(row, bits)) if worst_case else fitting[0], bits)
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
