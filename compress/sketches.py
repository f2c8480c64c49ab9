"""Sketches: random diagonal maps S = Diag(s), of which a key says the coordinates that s keeps.

A compressor of coordinates is a sketch: where `compress.sparsify` sends S x, a worker here is sent the kept coordinates
of S x, and they are its model. Sets of coordinates and their probabilities are those of RandK, PermK and Bernoulli;
what is added is what they do to a function of S x.

Of all S in the support, S_i that of worker i:
    L_D = lambda_max(E S'S),  mu_D = lambda_min(E S'S),  L_S^max = max lambda_max(S'S)

| sets | k kept of d | E S'S | L_D = mu_D | L_S^max | omega |
|---|---|---|---|---|---|
| RandK(k), Cyclic(RandK(k)) | k | (d/k) I | d/k | (d/k)^2 | d/k - 1 |
| PermK(n) | d/n, rounded up or down | n I | n | n^2 | n - 1 |
| Bernoulli(p) | p d on average | (1/p) I | 1/p | 1/p^2 | 1/p - 1 |
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from .compressor import settle
from .key import Key
from .sparsify import Bernoulli, PermK, RandK, Sparsifier

_SHIFT = 0x73686966  # the sub-stream of cyclic shifts


@dataclass(frozen=True, eq=False, repr=False)
class Sketch:
    """S = Diag(s): s_j is scale_j for the coordinates j of a random set, 0 for the others.

    sets: a sparsifier, which draws the sets, each coordinate with probability 1/sets.scale(d). scales: one number a
    coordinate, (d,), or a row of them for every worker, (n, d), all positive. Where None they are sets.scale(d), and S
    is unbiased: E S = I. Values travel as sets.wire says. Sketches of the same sets and scales are equal.

    Raises TypeError for other sets, ValueError for other scales; where d does not suit them, `check` does.

    >>> import numpy as np, compress
    >>> S = Sketch(compress.PermK(2))
    >>> key, x = compress.Key(0), np.arange(1.0, 5.0)
    >>> sum(S(x, key.worker(i)) for i in range(2)).tolist()
    [2.0, 4.0, 6.0, 8.0]
    >>> S.L_D(4), S.mu_D(4), S.L_S_max(4), S.unbiased(4)
    (2.0, 2.0, 4.0, True)
    """

    sets: Sparsifier
    scales: np.ndarray | None = None

    def __post_init__(self):
        if not isinstance(self.sets, Sparsifier):
            raise TypeError(f"sets must be RandK, PermK, Bernoulli or another sparsifier, got {self.sets!r}")
        if self.scales is None:
            return
        scales = np.array(self.scales, np.float64)
        if scales.ndim not in (1, 2):
            raise ValueError(f"scales must be (d,) or (n, d), got shape {scales.shape}")
        good = np.count_nonzero(np.isfinite(scales) & (scales > 0))
        if good < scales.size:
            raise ValueError(f"scales must be finite and positive, {scales.size - good} of {scales.size} are not")
        scales.flags.writeable = False
        settle(self, "scales", scales)

    def _known_by(self):
        scales = self.scales
        return type(self), self.sets, None if scales is None else (scales.shape, zlib.crc32(scales.tobytes()))

    def __eq__(self, other):
        return self._known_by() == other._known_by() if isinstance(other, Sketch) else NotImplemented

    def __hash__(self):
        return hash(self._known_by())

    def __repr__(self):
        cls, sets, scales = self._known_by()
        told = "" if scales is None else f", scales={scales[0]}, crc32={scales[1]:08x}"
        return f"{cls.__name__}(sets={sets!r}{told})"

    @classmethod
    def of(cls, sketch) -> Sketch:
        """A sketch as it is, and a sparsifier as the unbiased sketch that it is."""
        return sketch if isinstance(sketch, Sketch) else cls(sketch)

    @property
    def wire(self) -> np.dtype:
        """How a value travels."""
        return np.dtype(self.sets.wire)

    @property
    def disjoint(self) -> bool:
        """Whether the sets of a round's workers are disjoint; otherwise they are independent."""
        return isinstance(self.sets, PermK)

    @property
    def own_scales(self) -> bool:
        """Whether every worker has scales of its own, so that the law of S_i depends on i."""
        return self.scales is not None and self.scales.ndim == 2

    def indices(self, d: int, key: Key) -> np.ndarray:
        """The coordinates that S keeps; `key` is a worker's."""
        return self.sets.indices(d, key)

    def scale(self, d: int, worker: int = 0) -> float | np.ndarray:
        """scale_j: one number for all coordinates, or d of them."""
        if self.scales is None:
            return self.sets.scale(d)
        if self.scales.shape[-1] != d or (self.scales.ndim == 2 and worker >= len(self.scales)):
            raise ValueError(f"scales are {self.scales.shape}, asked for worker {worker} and {d} coordinates")
        return self.scales if self.scales.ndim == 1 else self.scales[worker]

    def at(self, indices: np.ndarray, d: int, worker: int = 0) -> float | np.ndarray:
        """scale_j on these coordinates: one number, or as many."""
        scale = self.scale(d, worker)
        return scale if np.ndim(scale) == 0 else scale[indices]

    def __call__(self, x: np.ndarray, key: Key) -> np.ndarray:
        """S x, a vector of d."""
        out, indices = np.zeros_like(x), self.indices(x.size, key)
        out[indices] = x[indices] * self.at(indices, x.size, key.worker_index or 0)
        return out

    def pool(self, d: int) -> list[np.ndarray] | None:
        """Every set that is drawn, all with the same probability; None where they are too many to be listed."""
        return None

    def joint(self, d: int) -> np.ndarray:
        """(d, d): the probabilities that S keeps j and l. Pairs of Rand-K and Perm-K are equal in law."""
        probability = 1 / self.sets.scale(d)
        if isinstance(self.sets, Bernoulli):
            both = probability**2
        elif isinstance(self.sets, (RandK, PermK)):
            mean = d * probability  # of the size, which is that or one of the integers next to it
            low = int(mean * (1 + 1e-12))
            both = (low * (low - 1) + 2 * low * (mean - low)) / max(d * (d - 1), 1)
        else:
            raise NotImplementedError(f"how often {self.sets!r} keeps two coordinates together is not known")
        joint = np.full((d, d), both)
        np.fill_diagonal(joint, probability)
        return joint

    def mean(self, d: int, worker: int = 0) -> np.ndarray:
        """(d,): the diagonal of E S."""
        return np.broadcast_to(self.scale(d, worker) / self.sets.scale(d), d)

    def second_moment(self, d: int, worker: int = 0) -> np.ndarray:
        """(d, d): E s s', so that E S A S is A times it, entry by entry."""
        scale = np.broadcast_to(self.scale(d, worker), d)
        return self.joint(d) * np.outer(scale, scale)

    def _squares(self, d: int, worker: int | None = None) -> np.ndarray:
        if worker is None and self.own_scales:
            self.scale(d)  # which refuses another d
            return np.square(self.scales)
        return np.square(self.scale(d, worker or 0))

    def unbiased(self, d: int) -> bool:
        """Whether E S = I."""
        return bool(np.allclose(np.sqrt(self._squares(d)), self.sets.scale(d), rtol=1e-12, atol=0))

    def check(self, n: int, d: int) -> None:
        """ValueError unless there are sets, and scales where it has some, for n workers and d coordinates."""
        try:
            self.sets.scale(d)
        except ValueError as error:
            raise ValueError(f"{self!r} has no sets of {d} coordinates: {error}") from None
        if self.scales is not None and self.scales.shape[-1] != d:
            raise ValueError(f"scales are those of {self.scales.shape[-1]} coordinates, not of {d}")
        if isinstance(self.sets, PermK) and self.sets.n < n:
            raise ValueError(f"{self.sets!r} has sets for {self.sets.n} workers, not for {n}")
        if self.own_scales and len(self.scales) != n:
            raise ValueError(f"scales are those of {len(self.scales)} workers, not of {n}")

    def check_unbiased(self, d: int, what: str) -> None:
        """ValueError that begins with what needs it, unless E S = I."""
        if not self.unbiased(d):
            means = np.sqrt(self._squares(d)) / self.sets.scale(d)
            raise ValueError(
                f"{what} needs an unbiased sketch: E S of {self!r} has {means.min():.6g} to {means.max():.6g}, not 1"
            )

    def L_D(self, d: int, worker: int | None = None) -> float:
        """lambda_max(E S'S), unless a worker is given the largest over them: omega + 1 for an unbiased sketch."""
        return float(self._squares(d, worker).max() / self.sets.scale(d))

    def mu_D(self, d: int, worker: int | None = None) -> float:
        """lambda_min(E S'S), unless a worker is given the smallest over them."""
        return float(self._squares(d, worker).min() / self.sets.scale(d))

    def L_S_max(self, d: int) -> float:
        """The largest lambda_max(S'S) of the support."""
        return float(self._squares(d).max())


@dataclass(frozen=True, eq=False, repr=False)
class Cyclic(Sketch):
    """The d cyclic shifts of one set of k coordinates, each with probability 1/d: d sketches that can all be listed.

    sets: RandK, which draws the one set, the same for every key. The constants are those of RandK. Raises TypeError
    for other sets, and for scales.

    >>> import numpy as np, compress
    >>> S = Cyclic(compress.RandK(3))
    >>> mean = np.mean([np.isin(np.arange(5), kept) * S.scale(5) for kept in S.pool(5)], axis=0)
    >>> len(S.pool(5)), mean.tolist()
    (5, [1.0, 1.0, 1.0, 1.0, 1.0])
    """

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.sets, RandK) or self.scales is not None:
            scales = "" if self.scales is None else " with scales"
            raise TypeError(f"Cyclic shifts the set of a RandK and is unbiased, got {self.sets!r}{scales}")

    def _shifted(self, d, shift):
        return (self.sets.indices(d, Key(0)).astype(np.int64) + shift) % d

    def indices(self, d, key):
        return self._shifted(d, key.fold(_SHIFT).word * d >> 64)

    def pool(self, d):
        return [self._shifted(d, shift) for shift in range(d)]

    def joint(self, d):
        kept = np.zeros((d, d))
        for row, indices in zip(kept, self.pool(d), strict=True):
            row[indices] = 1
        return kept.T @ kept / d
