"""measure(): what a compressor does to a vector, with standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .compressor import Compressor, Unbiased, check_finite
from .kernels import vector
from .key import Key


@dataclass(frozen=True)
class Measurement:
    """Over independent keys, errors relative to ||x||^2 and each with its standard error.

    nmse: ||C(x) - x||^2 / ||x||^2. bias: an unbiased estimate of ||E C(x) - x||^2 / ||x||^2, so it may come out
    negative. bits: length of the messages. distance: nmse 4^(bits/d), or for an unbiased compressor
    nmse / (1 + nmse) 4^(bits/d): the uncertainty principle keeps its worst case over x above 1, this x may fall
    below (arXiv 2002.08958, theorem 1).
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

    @property
    def bits_per_coordinate(self) -> float:
        return self.bits / self.size


def uncertainty(error: float, bits_per_coordinate: float, unbiased: bool) -> float:
    """alpha 4^(b/d), with alpha = omega / (1 + omega) for an unbiased compressor of variance omega."""
    alpha = error / (1 + error) if unbiased else error
    return alpha * 4.0**bits_per_coordinate


def measure(compressor: Compressor, x, trials: int = 10, key: Key | None = None) -> Measurement:
    """Compress x under `trials` independent keys (sub-streams of `key`, worker 0 unless it names one).

    Raises ValueError for a zero or empty vector, for which relative errors mean nothing, and for trials < 2.

    >>> import numpy as np, compress
    >>> m = measure(compress.Identity(), np.float32([1, 2]))
    >>> m.nmse, m.bits_per_coordinate
    (0.0, 32.0)
    """
    if not isinstance(compressor, Compressor):
        raise TypeError(f"compressor must be a Compressor, got {compressor!r}")
    x = vector(x)
    largest = check_finite(x)
    if trials < 2:
        raise ValueError(f"trials must be at least 2, got {trials}")
    shift = -math.frexp(largest)[1]  # squares of what is left neither overflow nor vanish
    exact = np.ldexp(x.astype(np.float64), shift)
    norm2 = float(exact @ exact)
    if not norm2:
        raise ValueError(f"x is zero or empty ({x.size} elements): relative errors mean nothing")
    key = Key(0).worker(0) if key is None else key
    if key.worker_index is None:
        key = key.worker(0)

    def draw(t):
        """(bits, error) of trial t; drawn again rather than kept, since all of them may not fit in memory."""
        message = compressor.encode(x, key.fold(t))
        return message.bits, np.ldexp(compressor.decode(message, key.fold(t)).astype(np.float64), shift) - exact

    total = np.zeros_like(exact)
    squares, lengths = np.empty(trials), np.empty(trials)
    for t in range(trials):
        lengths[t], error = draw(t)
        squares[t] = error @ error / norm2
        total += error
    overlaps = np.array([total @ draw(t)[1] for t in range(trials)]) / norm2
    bias, bias_se = _bias(float(total @ total) / norm2, squares, overlaps)
    root = math.sqrt(trials)
    nmse, bits = float(squares.mean()), float(lengths.mean())
    return Measurement(
        nmse,
        float(squares.std(ddof=1)) / root,
        bias,
        bias_se,
        bits,
        float(lengths.std(ddof=1)) / root,
        uncertainty(nmse, bits / x.size, isinstance(compressor, Unbiased)),
        trials,
        x.size,
    )


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
