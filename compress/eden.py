"""Eden: a rotation, then the quantiser that is best for a Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import kernels
from ._cpu import kernels as _shapes
from .compressor import Contractive, rate_keyword, refuse_nonfinite, settle, wire_bytes

_ONE = 65536  # a bit, in the units that the kernels take a rate in
_WORST = 50  # alpha = 1 - 1 / (_WORST n) in a block of n


@rate_keyword
@dataclass(frozen=True)
class Eden(Contractive):
    """C(x) = U' s Q(y), y = sqrt(n) U x / ||x||: Q the Lloyd-Max quantiser of N(0, 1), s a scale for each block.

    U is the rotation of `Rotated` (random signs and Walsh-Hadamard, blocks of n <= 4096, nothing padded), which makes
    the coordinates of y nearly Gaussian whatever x is; signs come from key.shared. `rate`, or `bits=`, a coordinate, 1
    to 8: alphabets of 2, 3, 4, 5, 6, 8, 10, 11, 13, 16, ... 256 levels, and between two of them a mixture, the first
    coordinates of a block in the one and the rest in the other (csrc/eden.h). With 32 bits of scale for a block,
    bits(d) <= (rate + 0.02) d from d = 4096 on.

    scale="biased": s = <U x, Q> / ||Q||^2, the least squares. On a dense vector NMSE is that of Lloyd-Max: 0.363,
    0.117, 0.0345, 0.0095, ... at 1, 2, 3, 4 bits, 0.219 at 1.5. For every x and every key alpha = 1 - 1 / (50 n),
    n = min(d, 4096), says no more than that it contracts. Let v = |y_i|, q = |Q_i|: thresholds and levels give
    q >= 0.45 where v >= 0.66, q <= 1.52 where v < 1 and q <= 1.52 v elsewhere. Coordinates with v < 0.66 have less
    than 0.44 n of sum v^2 = n, and v <= sqrt(n), so S = <y, Q> >= 0.45 * 0.56 n / sqrt(n) >= 0.25 sqrt(n), and
    ||Q||^2 <= 1.52^2 n + 1.52 S. The error relative to ||x||^2 is 1 - S^2 / (n ||Q||^2) <= 1 - 1 / (50 n).

    scale="unbiased": s = ||x||^2 / <U x, Q>, with which E C(x) = x if U were uniform over all rotations, and NMSE is
    D / (1 - D), D that of the biased one. guarantee is "none" and alpha(d) a TypeError: signs and one Hadamard
    transform are not a uniform rotation. Measured, ||E C(x) - x||^2 / ||x||^2 at d = 4096 and 1 / 2 / 4 bits: below
    3e-5 / 6e-6 / 6e-7, what 1000 keys resolve, on Gaussian and +-1 vectors; 0 on one-hot ones; 8e-4 / 1e-4 / 4e-7 on
    41 Gaussians among zeros; and, the worst found, 0.10 / 6e-5 / 8e-7 on a spike that holds 70% of the energy of a
    Gaussian vector: take two bits or more where that may occur. NMSE at one bit is at most 1, on two equal coordinates.

    Vargaftik, Ben Basat, Portnoy, Mendelson, Ben-Itzhak, Mitzenmacher, "EDEN: Communication-efficient and robust
    distributed mean estimation for federated learning", ICML 2022. It departs from the paper in blocks that fill x
    exactly, in a table of levels that is part of the format, and in rates between those of whole alphabets, which the
    paper reaches by random sparsification.

    ValueError where a scale leaves the range of `wire`; huge and tiny blocks are otherwise rotated in float64.

    >>> import numpy as np, compress
    >>> x, key = np.random.default_rng(0).standard_normal(2**16).astype(np.float32), compress.Key(0).worker(1)
    >>> message = Eden(2).encode(x, key)
    >>> error = Eden(2).decode(message, key) - x
    >>> round(message.bits / x.size, 3), round(float(error @ error / (x @ x)), 2)
    (2.008, 0.12)
    """

    rate: float
    scale: str = "biased"
    wire: str = "float32"

    def __post_init__(self):
        if isinstance(self.rate, bool) or not isinstance(self.rate, (int, float, np.number)):
            raise TypeError(f"rate must be a number, got {self.rate!r}")
        if not 1 <= self.rate <= 8:
            raise ValueError(f"rate must lie in [1, 8] bits, got {self.rate}")
        settle(self, "rate", float(self.rate))
        if self.scale not in ("biased", "unbiased"):
            raise ValueError(f"scale must be 'biased' or 'unbiased', got {self.scale!r}")
        wire_bytes(self.wire)

    @property
    def guarantee(self) -> str:
        return "proven" if self.scale == "biased" else "none"

    def alpha(self, d: int) -> float:
        if self.scale == "unbiased":
            raise TypeError(f"{self!r} has no proven constant")
        return 1 - 1 / (_WORST * min(max(d, 1), 4096))

    @property
    def _rate(self) -> int:
        return math.ceil(self.rate * _ONE)

    def bits(self, d: int, dtype=np.float32) -> int:
        """Codes of every block in whole bytes and a scale for each block, exactly."""
        codes, scales = _shapes.eden_layout(d, self._rate)
        return 8 * (codes + scales * wire_bytes(self.wire))

    def _encode(self, x, key, out):
        k, d, wire = kernels.of(x), x.size, wire_bytes(self.wire)
        bits = self.bits(d)
        payload = kernels.buffer(bits // 8, out, x)
        status = k.eden_encode(x, self._rate, self.scale == "unbiased", wire, key.shared.word, payload)
        if status:
            refuse_nonfinite(x)
            what = "float32" if status == 2 else "float64"
            hint = "; wire='float64' carries it" if status == 2 and x.itemsize == 8 else ""
            raise ValueError(f"a scale of x (max|x| = {k.max_abs(x):g}) leaves {what}'s range{hint}")
        return payload, bits

    def _decode(self, message, key, out, weight, add):
        k, payload, wire = kernels.of(out), message.payload, wire_bytes(self.wire)
        codes, count = k.eden_layout(message.size, self._rate)
        if (bad := k.bad_scale(payload, codes, count, wire)) >= 0:
            raise ValueError(f"Eden: scale {bad} of {count} in the payload is negative, NaN or Inf")
        k.eden_decode(payload, self._rate, wire, key.shared.word, weight, out, add)

    @classmethod
    def examples(cls):
        return [cls(1), cls(2.3), cls(4, scale="unbiased"), cls(6.2, wire="float64")]
