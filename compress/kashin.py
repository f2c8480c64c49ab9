"""Kashin: uniform dithering of a representation whose coefficients are all of the same order."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import kernels
from ._cpu import kernels as _shapes
from .compressor import Unbiased, add_or_store, positive_int, refuse_nonfinite, settle
from .quantize import levels_bits

_LARGEST, _SMALLEST = 4096, 64
_LEVEL_BYTES = 4
_HEADER_ROWS = 20  # rows that cost what a level does, at three symbols a coefficient
_THIN = 1.05  # below this redundancy the null space is too thin to descend in
_STEPS = 8


def kashin_layout(d: int, redundancy: float) -> list[tuple[int, int, int]]:
    """Runs of equal frames that carry d coordinates: (frames, rows, coordinates), rows falling.

    As many frames of 4096 rows as fill up, floor(4096 / redundancy) coordinates each; then the rest in falling
    powers of two down to 64, the last frame part empty, whichever cut needs the fewest rows and levels. No frame
    has less redundancy than asked for.

    >>> kashin_layout(100_000, 1.25)
    [(30, 4096, 3276), (1, 2048, 1638), (1, 128, 82)]
    """

    def rest(left):
        if left == 0:
            return 0, []
        rows = _SMALLEST
        while rows // redundancy < left:
            rows *= 2
        best = rows + _HEADER_ROWS, [(1, rows, left)]
        if rows > _SMALLEST:
            full = int(rows // 2 // redundancy)
            cost, runs = rest(left - full)
            best = min(best, (rows // 2 + _HEADER_ROWS + cost, [(1, rows // 2, full), *runs]))
        return best

    full = int(_LARGEST // redundancy)
    runs = [(d // full, _LARGEST, full)] if d >= full else []
    return runs + rest(d % full)[1]


def kashin_level(redundancy: float, iterations: int = _STEPS) -> float:
    """The level K that Kashin's encoder enforces: max|a| sqrt(D) <= K ||x|| in every frame.

    A fit, with a margin, to what null-space descent reaches on dense vectors in all but a few frames in a hundred of
    the smallest size: 2.06 at redundancy 1.25, 1.87 at 1.5, 1.71 at 2. More than 16 iterations lower only what is
    measured. Below redundancy 1.05 the frame is a rotation, and K the trivial sqrt(4096) and a hundredth for rounding.

    >>> [kashin_level(r) for r in (1.0, 1.25, 1.5, 2.0)], kashin_level(1.25, 16)
    ([64.01, 2.06, 1.87, 1.71], 1.99)
    """
    if redundancy < _THIN:
        return math.sqrt(_LARGEST) + 0.01
    fit = 0.892 + 0.68 * (redundancy - 1) ** -0.3 + 1.07 / min(iterations, 16)
    return math.ceil(100 * max(1.55, fit)) / 100


class _Plan(NamedTuple):
    layout: np.ndarray  # runs x (frames, rows, coordinates), flat, as the kernels take it
    data: np.ndarray  # which rows carry coordinates, a bit each, run after run
    frames: int
    rows: int


@functools.lru_cache(maxsize=256)
def _plan(d: int, redundancy: float) -> _Plan:
    runs = kashin_layout(d, redundancy)
    masks = [np.empty(rows // 32, np.uint32) for _, rows, _ in runs]
    for (_, rows, coordinates), mask in zip(runs, masks, strict=True):
        _shapes.kashin_rows(rows, coordinates, mask)
    return _Plan(
        np.array(runs, np.uint64).reshape(-1),
        np.concatenate(masks),
        sum(frames for frames, _, _ in runs),
        sum(frames * rows for frames, rows, _ in runs),
    )


@dataclass(frozen=True)
class Kashin(Unbiased):
    """C(x) = U Q(a): x = U a with every |a_i| <= m <= K ||x|| / sqrt(D), Q dithering on [-m, m].

    U is d x D with U U' = I, D = redundancy * d; Q rounds a_i to one of `levels` = L evenly spaced points of [-m, m] at
    random with mean a_i. x is cut into frames of at most 4096 rows (`kashin_layout`), each with its own m: D log2 L
    bits (three symbols: five to a byte) and 32 for every m. Frames come from key.shared, rounding from key.

    omega = K^2 / ((L-1)^2 redundancy), whatever d. The variance of a rounded coefficient is at most a quarter of the
    squared step, (m / (L-1))^2, roundings are independent, and a column of U has squared norm d/D:
        E ||U (Q(a) - a)||^2 = d/D sum_i Var Q(a_i) <= d/D D m^2 / (L-1)^2 = K^2 ||x||^2 / ((L-1)^2 redundancy).
    With L = 2 the variance is m^2 - a_i^2 and ||a|| >= ||U a|| = ||x||, hence omega = (K^2 - 1) / redundancy.
    K = kashin_level(redundancy, iterations) is not an estimate: the encoder measures max|a| sqrt(D) / ||x|| of every
    frame and draws another frame where it is larger. RuntimeError if 32 fail in a row: of those after the first at most
    a quarter fail, for any family of vectors tried.

    Safaryan, Shulgin, Richtarik, "Uncertainty principle for communication compression in distributed and federated
    learning and the search for an optimal compressor", arXiv 2002.08958. Departures from it:
    1. a is found by null-space descent (csrc/kashin.h): U a = x holds after every step, and K after 8 steps is 2.06 at
       redundancy 1.25 where clipping and adding, the paper's iteration, needs about 60 for 2.36.
    2. U is a Hadamard transform with random signs on fixed random rows, not a random orthogonal matrix: D log D.
    3. K is enforced, not assumed with high probability; and frames are small and of fixed size.

    levels: 2 to 32767. redundancy: 1 (a rotation, K = sqrt(D)) to 8. iterations: 1 to 64, 8 unless given.

    >>> import numpy as np, compress
    >>> C, key = Kashin(levels=3, redundancy=1.25), compress.Key(0).worker(3)
    >>> x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    >>> message = C.encode(x, key)
    >>> round(message.bits / x.size, 3), round(C.omega(x.size), 3)
    (2.022, 0.849)
    >>> bool(np.sum((C.decode(message, key) - x)**2) < 0.849 * np.sum(x**2))
    True
    """

    levels: int = 3
    redundancy: float = 1.25
    iterations: int | None = None

    def __post_init__(self):
        settle(self, "levels", positive_int(self.levels, "levels", 2, 32767))
        if isinstance(self.redundancy, bool) or not isinstance(self.redundancy, (int, float, np.number)):
            raise TypeError(f"redundancy must be a number, got {self.redundancy!r}")
        if not 1 <= self.redundancy <= 8:
            raise ValueError(f"redundancy must lie in [1, 8], got {self.redundancy}")
        settle(self, "redundancy", float(self.redundancy))
        if self.iterations is not None:
            settle(self, "iterations", positive_int(self.iterations, "iterations", 1, 64))

    @property
    def level(self) -> float:
        """K: the encoder keeps max|a| sqrt(D) <= K ||x|| in every frame."""
        return kashin_level(self.redundancy, self._steps)

    @property
    def _steps(self) -> int:
        return _STEPS if self.iterations is None else self.iterations

    def omega(self, d: int) -> float:
        if d == 0:
            return 0.0
        if self.levels == 2:
            return (self.level**2 - 1) / self.redundancy
        return self.level**2 / ((self.levels - 1) ** 2 * self.redundancy)

    def bits(self, d: int, dtype=np.float32) -> int:
        """Codes of all rows and 32 bits a frame, exactly."""
        if d == 0:
            return 0
        plan = _plan(d, self.redundancy)
        return levels_bits(plan.rows, self.levels) + 8 * _LEVEL_BYTES * plan.frames

    def _encode(self, x, key, out):
        plan = _plan(x.size, self.redundancy)
        offset = -(-levels_bits(plan.rows, self.levels) // 8)
        payload = kernels.buffer(offset + _LEVEL_BYTES * plan.frames, out, x)
        steps = self._steps if self.redundancy >= _THIN else 0
        failed = kernels.of(x).kashin_encode(
            x, plan.layout, plan.data, self.level, steps, self.levels, key.shared.word, key.word, payload, offset
        )
        if failed == -2:
            refuse_nonfinite(x)
        if failed >= 0:
            raise RuntimeError(
                f"frame {failed} of {plan.frames} has no representation of level {self.level} under this key"
            )
        return payload, self.bits(x.size)

    def _decode(self, message, key, out, weight, add):
        plan, k = _plan(message.size, self.redundancy), kernels.of(out)
        offset = -(-levels_bits(plan.rows, self.levels) // 8)
        values = np.empty_like(out) if add else out
        bad = k.kashin_decode(message.payload, offset, plan.layout, plan.data, self.levels, key.shared.word, values)
        if bad >= 0:
            raise ValueError(f"Kashin: level {bad} of {plan.frames} in the payload is out of range")
        if add:
            add_or_store(values, out, weight, add)

    @classmethod
    def examples(cls):
        return [cls(), cls(levels=2, redundancy=2.0), cls(levels=16, redundancy=1.5, iterations=3)]
