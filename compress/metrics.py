"""measure(): what a compressor does to a vector, with standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import kernels
from .compressor import Compressor, Unbiased, check_finite
from .key import Key


@dataclass(frozen=True)
class Measurement:
    """Over independent keys, errors relative to ||x||^2 and each with its standard error.

    nmse: ||C(x) - x||^2 / ||x||^2. bias: an unbiased estimate of ||E C(x) - x||^2 / ||x||^2, so it may come out
    negative. bits: length of the messages. distance: nmse 4^(bits/d), or for an unbiased compressor
    nmse / (1 + nmse) 4^(bits/d): the uncertainty principle keeps its worst case over x above 1, this x may fall
    below (arXiv 2002.08958, theorem 1).

    Of n vectors x_i, one a worker, errors are relative to the mean of ||x_i||^2: nmse and bits are means over workers;
    mean_nmse is ||(1/n) sum_i (C(x_i) - x_i)||^2 over that norm, nmse / n where errors are unbiased and independent and
    nmse itself for one vector; bias is that of the mean.
    """

    nmse: float
    nmse_se: float
    bias: float
    bias_se: float
    bits: float
    bits_se: float
    distance: float
    trials: int
    size: int
    workers: int
    mean_nmse: float
    mean_nmse_se: float

    @property
    def bits_per_coordinate(self) -> float:
        return self.bits / self.size


def uncertainty(error: float, bits_per_coordinate: float, unbiased: bool) -> float:
    """alpha 4^(b/d), with alpha = omega / (1 + omega) for an unbiased compressor of variance omega."""
    alpha = error / (1 + error) if unbiased else error
    return alpha * 4.0**bits_per_coordinate


def measure(compressor: Compressor, x, trials: int = 10, key: Key | None = None) -> Measurement:
    """Compress x under `trials` independent keys (sub-streams of `key`, worker 0 unless it names one).

    x: a vector, or n vectors of one length (an n x d array or a list): worker i encodes the i-th with key.worker(i).

    Raises ValueError for zero or empty vectors, for which relative errors mean nothing, and for trials < 2.

    >>> import numpy as np, compress
    >>> m = measure(compress.Identity(), np.float32([1, 2]))
    >>> m.nmse, m.bits_per_coordinate
    (0.0, 32.0)
    >>> x = np.ones((8, 1000), np.float32)
    >>> m = measure(compress.RandK(0.1), x)
    >>> m.workers, round(m.nmse, 9), 0.9 < m.mean_nmse < 1.35
    (8, 9.0, True)
    """
    if not isinstance(compressor, Compressor):
        raise TypeError(f"compressor must be a Compressor, got {compressor!r}")
    if trials < 2:
        raise ValueError(f"trials must be at least 2, got {trials}")
    vectors = _vectors(x)
    n, size = len(vectors), vectors[0].size
    shift = -math.frexp(max(map(check_finite, vectors)))[1]  # squares of what is left neither overflow nor vanish

    def scaled(v):
        return np.ldexp(v.astype(np.float64), shift)

    at_hand = [kernels.host(v) for v in vectors]
    norm2 = math.fsum(float(e @ e) for e in map(scaled, at_hand)) / n
    if not norm2:
        raise ValueError(f"x is zero or empty ({size} elements): relative errors mean nothing")
    key = Key(0) if key is None else key
    first = key.worker_index or 0

    def draw(t):
        """(bits of each worker, squares of their errors, the error of the mean) of trial t; drawn again rather than
        kept, since all of them may not fit in memory."""
        lengths, squares, mean = [], [], np.zeros(size)
        for i, v in enumerate(vectors):
            k = key.worker(i if n > 1 else first).fold(t)
            message = compressor.encode(v, k)
            error = scaled(kernels.host(compressor.decode(message, k))) - scaled(at_hand[i])
            lengths.append(message.bits)
            squares.append(error @ error)
            mean += error
        return np.mean(lengths), np.mean(squares), mean / n

    total = np.zeros(size)
    lengths, squares, means = np.empty(trials), np.empty(trials), np.empty(trials)
    for t in range(trials):
        lengths[t], square, error = draw(t)
        squares[t], means[t] = square / norm2, error @ error / norm2
        total += error
    overlaps = np.array([total @ draw(t)[2] for t in range(trials)]) / norm2
    root = math.sqrt(trials)
    nmse, bits = float(squares.mean()), float(lengths.mean())
    return Measurement(
        nmse,
        float(squares.std(ddof=1)) / root,
        *_bias(float(total @ total) / norm2, means, overlaps),
        bits,
        float(lengths.std(ddof=1)) / root,
        uncertainty(nmse, bits / size, isinstance(compressor, Unbiased)),
        trials,
        size,
        n,
        float(means.mean()),
        float(means.std(ddof=1)) / root,
    )


def _vectors(x) -> list[np.ndarray]:
    """One vector, or as many as x has rows, checked."""
    rows = [x]
    if isinstance(x, (list, tuple)) or getattr(x, "ndim", 1) == 2:
        rows = list(x)
        if not rows:
            raise ValueError("x holds no vectors")
    vectors = [kernels.vector(row, "x" if len(rows) == 1 else f"x[{i}]") for i, row in enumerate(rows)]
    if len({v.size for v in vectors}) > 1:
        raise ValueError(f"vectors of different lengths: {', '.join(str(v.size) for v in vectors)}")
    return vectors


def _bias(sum2: float, squares: np.ndarray, overlaps: np.ndarray) -> tuple[float, float]:
    """Mean over pairs of <e_s, e_t> / ||x||^2 and its jackknife standard error.

    sum2, squares, overlaps: |sum e|^2, |e_t|^2 and <sum e, e_t>, all over ||x||^2.
    """
    n = len(squares)
    estimate = float((sum2 - squares.sum()) / (n * (n - 1)))
    if n < 3:
        return estimate, math.nan
    left_out = (sum2 - 2 * overlaps + 2 * squares - squares.sum()) / ((n - 1) * (n - 2))
    return estimate, math.sqrt((n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum()))
