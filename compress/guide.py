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
RATES = (0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0)


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
    """The smallest proven omega in the bits; 0.012 of them are for levels and the last frames."""
    spreads = {width: math.floor(100 * (bits - 0.012) / width) / 100 for width in range(2, 9)}
    return min((Kashin(2**w, r) for w, r in spreads.items() if 1.05 <= r <= 8), key=lambda C: C.omega(1 << 20))


def _dithering(bits: float) -> StandardDithering:
    return StandardDithering(2 ** (int(bits + 0.01) - 1) - 1, "linf", 2048)


def _chunk_topk(bits: float) -> ChunkTopK:
    d = 1 << 20
    return max((C for k in range(1, 1025) if (C := ChunkTopK(4096, k)).bits(d) <= bits * d), key=lambda C: C.k)


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
_KASHIN = _thinned(2.34, _kashin)
_ROTATED = _thinned(3.0, lambda b: Rotated(_dithering(b)))
_DITHERING = _thinned(3.0, _dithering)

# The first row that meets every wish is taken: biased ones first, and of either kind the smallest errors first.
TABLE = [
    Choice(
        lambda bits: Trellis(bits=bits, states=256, context=True),
        *(False, False, "entropy-coded trellis of 256 states with contexts: the least error of all"),
        RATES,
        (0.915, 0.538, 0.265, 0.0662, 0.0162, 0.00404, 1.77e-05),
        (0.4, 0.124, 0.0413, 0.00636, 0.00111, 0.000212, 3.69e-07),
        (0.017, 0.017, 0.021, 0.022, 0.026, 0.027, 0.025),
        (0.46, 0.49, 0.41, 0.35, 0.33, 0.42, 0.45),
    ),
    Choice(
        lambda bits: Trellis(bits=bits, context=True),
        *(False, False, "entropy-coded trellis of 8 states with contexts: on gradients far better than without"),
        RATES,
        (0.911, 0.562, 0.28, 0.069, 0.0172, 0.00428, 1.87e-05),
        (0.412, 0.129, 0.0443, 0.00673, 0.00117, 0.000222, 3.95e-07),
        (0.027, 0.026, 0.03, 0.035, 0.045, 0.045, 0.04),
        (0.47, 0.52, 0.42, 0.37, 0.33, 0.43, 0.44),
    ),
    Choice(
        lambda bits: Trellis(bits=bits),
        *(False, False, "entropy-coded trellis of 8 states: on dense vectors as good as with contexts, and faster"),
        RATES,
        (0.938, 0.56, 0.281, 0.0698, 0.0176, 0.00441, 2.07e-05),
        (0.431, 0.177, 0.0675, 0.0118, 0.00224, 0.000449, 2.89e-06),
        (0.062, 0.12, 0.11, 0.14, 0.23, 0.22, 0.11),
        (2.1, 2.5, 3.5, 2.9, 3.0, 2.9, 2.4),
    ),
    Choice(
        lambda bits: UniformQuantizer(bits=bits),
        *(False, False, "rounding with a dead zone, entropy coded: the least error without a search"),
        RATES,
        (0.966, 0.623, 0.352, 0.0911, 0.0227, 0.00567, 2.22e-05),
        (0.453, 0.178, 0.0693, 0.0126, 0.00261, 0.000526, 2.47e-06),
        (0.51, 0.75, 1.1, 1.3, 1.0, 1.2, 0.83),
        (2.7, 3.7, 3.8, 2.9, 2.9, 2.6, 2.4),
    ),
    Choice(
        lambda bits: Eden(bits=bits),
        *(False, True, "rotation and Lloyd-Max levels, of fixed length: the same error on every dense vector"),
        RATES[2:],
        (0.363, 0.117, 0.0345, 0.00949, 4.11e-05),
        (0.362, 0.117, 0.0344, 0.00941, 4.06e-05),
        (3.3, 3.8, 3.9, 3.7, 3.8),
        (6.7, 7.6, 7.0, 7.4, 7.1),
    ),
    Choice(
        _chunk_topk,
        *(False, True, "the largest of every 4096 coordinates in two bits each, of fixed length"),
        RATES[:2],
        (0.921, 0.658),
        (0.793, 0.389),
        (4.4, 0.67),
        (9.1, 1.1),
    ),
    Choice(
        _topk,
        *(False, True, "the largest coordinates as they are: for sparse vectors"),
        RATES[:4],
        (0.974, 0.899, 0.826, 0.709),
        (0.561, 0.401, 0.307, 0.2),
        (17.0, 13.0, 10.0, 7.1),
        (47.0, 37.0, 27.0, 18.0),
    ),
    Choice(
        lambda bits: Scaled(_KASHIN(bits)),
        *(False, True, "Kashin compression scaled by 1 / (1 + omega)"),
        RATES,
        (0.967, 0.834, 0.667, 0.335, 0.126, 0.0334, 0.000161),
        (0.966, 0.831, 0.666, 0.332, 0.125, 0.033, 0.000159),
        (9.3, 2.0, 1.1, 0.53, 0.64, 0.69, 0.75),
        (15.0, 3.5, 1.8, 0.88, 3.4, 3.3, 3.1),
    ),
    Choice(
        _TRELLIS_256,
        *(True, False, "dithered trellis of 256 states with contexts: the least unbiased error"),
        RATES,
        (9.9, 1.18, 0.359, 0.0709, 0.0169, 0.00422, 1.98e-05),
        (7.69, 0.736, 0.13, 0.0127, 0.00189, 0.000337, 6.01e-07),
        (0.14, 0.045, 0.019, 0.022, 0.028, 0.028, 0.026),
        (2.3, 2.3, 0.37, 0.36, 0.37, 0.36, 0.33),
    ),
    Choice(
        _TRELLIS_CONTEXT,
        *(True, False, "dithered trellis of 8 states with contexts: on gradients better than without"),
        RATES,
        (10.6, 1.32, 0.388, 0.0754, 0.0179, 0.00447, 2.1e-05),
        (8.14, 0.816, 0.142, 0.0136, 0.00203, 0.000359, 6.39e-07),
        (0.46, 0.15, 0.043, 0.05, 0.051, 0.058, 0.05),
        (2.7, 2.4, 0.38, 0.37, 0.36, 0.37, 0.34),
    ),
    Choice(
        _TRELLIS,
        *(True, False, "dithered trellis of 8 states: on dense vectors as good as with contexts, and faster"),
        RATES,
        (10.6, 1.32, 0.39, 0.0758, 0.0179, 0.00439, 1.66e-05),
        (8.14, 0.816, 0.167, 0.0195, 0.00329, 0.000623, 2.62e-06),
        (0.45, 0.17, 0.23, 0.24, 0.18, 0.17, 0.14),
        (2.7, 2.5, 2.5, 1.9, 1.9, 1.9, 1.7),
    ),
    Choice(
        _UNIFORM,
        *(True, False, "subtractive dither, entropy coded: the least unbiased error without a search"),
        RATES,
        (14.2, 2.03, 0.561, 0.099, 0.0231, 0.00564, 2.13e-05),
        (10.1, 1.22, 0.233, 0.0262, 0.00432, 0.000809, 3.32e-06),
        (1.2, 0.39, 0.62, 0.47, 0.45, 0.42, 0.29),
        (4.3, 1.0, 2.8, 2.0, 2.0, 2.0, 1.7),
    ),
    Choice(
        _KASHIN,
        *(True, True, "Kashin compression: one proven constant whatever the dimension"),
        RATES,
        (28.5, 4.9, 1.95, 0.475, 0.132, 0.0338, 0.000161),
        (29.0, 4.92, 1.94, 0.468, 0.131, 0.0334, 0.000159),
        (9.0, 2.1, 1.1, 0.51, 0.62, 0.68, 0.77),
        (15.0, 4.1, 2.1, 0.94, 5.2, 5.1, 5.6),
    ),
    Choice(
        _ROTATED,
        *(True, True, "dithering behind a rotation, of fixed length: nearly the same error on every vector"),
        RATES,
        (36.3, 6.48, 2.73, 0.868, 0.245, 0.045, 0.000137),
        (36.6, 6.34, 2.69, 0.839, 0.24, 0.044, 0.000133),
        (20.0, 5.4, 2.7, 1.3, 6.1, 6.1, 6.4),
        (20.0, 5.7, 2.8, 1.3, 13.0, 14.0, 14.0),
    ),
    Choice(
        _DITHERING,
        *(True, True, "plain dithering, of fixed length: the fastest"),
        RATES,
        (36.4, 6.46, 2.73, 0.864, 0.244, 0.0447, 0.000136),
        (89.6, 16.2, 7.69, 3.35, 0.372, 0.0762, 0.000265),
        (22.0, 5.9, 2.9, 1.3, 13.0, 13.0, 12.0),
        (21.0, 6.0, 2.7, 1.3, 58.0, 58.0, 50.0),
    ),
]


def recommend(bits: float, unbiased: bool = False, worst_case: bool = False, speed: float = 0.1) -> Recommendation:
    """The compressor with the smallest error that fits the wishes, and the reason with what was measured.

    bits: a coordinate, 0.05 to 8; the message keeps to it within 1% from d = 2^17 on. unbiased: E C(x) = x, which
    methods without error feedback need. worst_case: a constant omega or alpha proven for every x, for step sizes from a
    theorem, rather than an error that depends on the vector; the choice is then by the constant. speed: GB/s of
    float32 that encode and decode each must reach. It is a number and no word since there is one to compare it with:
    a link of 1 Gbit/s carries 0.125 GB/s, so a coder that is slower than that saves nothing there. GB/s are those of
    one thread of a Zen 5 core with AVX-512, on vectors of a million; AVX2 has about half.

    Which one holds what, on a vector of your own: `python -m bench --input yours.npy`. An error rather than a rate to
    keep, proven for any input: UniformQuantizer(nmse=0.01, unbiased=True).

    Raises ValueError for bits outside the range that was measured, and where nothing fits: it says which wish to give
    up.

    >>> import compress
    >>> compressor, reason = recommend(bits=2, unbiased=True, worst_case=True)
    >>> compressor
    Composed(first=RandK(k=0.8547, wire='float32'), then=Kashin(levels=4, redundancy=1.16, iterations=None))
    >>> print(recommend(bits=4, speed=3))
    @@EDEN@@
    >>> recommend(bits=2, speed=50)
    Traceback (most recent call last):
    ValueError: @@ERROR@@
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
