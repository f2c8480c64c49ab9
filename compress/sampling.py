"""Samplings: which components a step of SGD looks at, and the two constants that its theory asks of them.

Gower, Loizou, Qian, Sailanbayev, Shulgin, Richtarik: SGD: General Analysis and Improved Rates (ICML 2019).

A sampling is a random vector v with E v_i = 1, zero but for a few i. It makes f = (1/n) sum_i f_i into
f_v = (1/n) sum_i v_i f_i, whose gradient is right in the mean. For a random set S with p_i = P(i in S) > 0,
v_i = 1/p_i where i is in S.

    calL      expected smoothness: E||grad f_v(x) - grad f_v(x*)||^2 <= 2 calL D for all x, D = f(x) - f(x*) without a
              regularizer, and the Bregman divergence f(x) - f(x*) - <grad f(x*), x - x*> with one
    sigma^2   gradient noise: E||grad f_v(x*) - grad f(x*)||^2; grad f(x*) = 0 without a regularizer

Which one? Nice, with the tau of `optimal_batch`. Where few components are far less smooth than the others,
SingleElement.importance as long as the noise does not matter, Independent.partially_biased else: its calL has no L_max.
Partition where components lie together, on a disk for one.

One formula for most of them. Where E v_i v_j = c for all i != j and E v_i^2 = c + e_i, with g_i = grad f_i(x) -
grad f_i(x*),

    E||(1/n) sum_i v_i g_i||^2 = c ||(1/n) sum_i g_i||^2 + (1/n^2) sum_i e_i ||g_i||^2,

and for convex f_i, ||g_i||^2 <= 2 L_i D_i with (1/n) sum_i D_i = D, so calL = c L + (1/n) max_i e_i L_i. The same
identity at h_i = grad f_i(x*) is sigma^2. The table of the paper's section 3 is this line with each sampling's c and e.
Where f_i are not convex, but f is mu-strongly, ||g_i||^2 <= L_i^2 ||x - x*||^2 <= (2 L_i^2 / mu) D gives
calL = c L + (1/(n^2 mu)) sum_i e_i L_i^2: this one is not the paper's.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, combinations_with_replacement, product

import numpy as np

from .compressor import positive_int, settle


class Sampling(ABC):
    """A random vector v with E v_i = 1.

    n: number of components. tau: how many a draw looks at, in the mean.
    """

    n: int
    tau: float

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(indices, weights) of one v, two vectors of a length: v is the sum of weights_j e_(indices_j).

        An index may come twice, and there may be none. The arrays are not the caller's to write to.
        """

    @abstractmethod
    def outcomes(self) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
        """(probability, indices, weights) of everything that `draw` can return, order and repeats aside.

        An oracle for small n: Independent has 2^n of them.
        """

    def _moments(self):
        """(c, e): E v_i v_j = c for i != j, and E v_i^2 = c + e_i with e a number or n of them."""
        raise NotImplementedError

    def expected_smoothness(self, problem) -> float:
        """calL of this sampling on a problem of n components: c L + (1/n) max_i e_i L_i if they are convex.

        Where `problem.convex` says that one is not, c L + (1/(n^2 mu)) sum_i e_i L_i^2. Raises ValueError where the
        problem has another n, and for components that are not convex where mu = 0.
        """
        c, excess = self._moments()
        if self._all_convex(problem):
            return c * problem.L + float(np.max(excess * problem.L_i)) / self.n
        return c * problem.L + float(np.sum(excess * problem.L_i**2)) / (self.n**2 * problem.mu)

    def gradient_noise(self, h) -> float:
        """sigma^2 = (1/n^2) sum_i e_i ||h_i||^2 + (c - 1) ||(1/n) sum_i h_i||^2, exact.

        h: (n, d), the gradients of the components at x*, `problem.gradients_star`. Raises ValueError for another n.
        """
        h = self._rows(h)
        c, excess = self._moments()
        mean = h.mean(axis=0)
        noise = np.sum(excess * np.einsum("ij,ij->i", h, h)) / self.n**2 + (c - 1) * (mean @ mean)
        return max(0.0, float(noise))

    def _all_convex(self, problem) -> bool:
        """Whether all components are, after the checks of expected_smoothness."""
        self._of(problem.n)
        if not (problem.convex or problem.mu > 0):
            raise ValueError("components that are not convex need a strongly convex f, and mu is 0")
        return problem.convex

    def _of(self, n: int):
        if n != self.n:
            raise ValueError(f"{self!r} is over {self.n} components, the problem has {n}")

    def _rows(self, h):
        h = np.asarray(h, np.float64)
        if h.ndim != 2:
            raise ValueError(f"h must have shape (n, d), got {h.shape}")
        self._of(len(h))
        return h


@dataclass(frozen=True, eq=False, repr=False)
class SingleElement(Sampling):
    """One component, i with probability p_i: v_i = 1/p_i. calL = (1/n) max_i L_i/p_i; c = 0, e_i = 1/p_i.

    p: n positive numbers of sum 1. Raises ValueError for others.

    >>> L_i = np.array([1.0, 1.0, 8.0])
    >>> SingleElement.importance(L_i).p
    array([0.1, 0.1, 0.8])
    >>> SingleElement.uniform(3).draw(np.random.default_rng(0))
    (array([1]), array([3.]))
    """

    p: np.ndarray
    tau = 1

    def __post_init__(self):
        settle(self, "p", _distribution(self.p))

    @classmethod
    def uniform(cls, n: int) -> SingleElement:
        """p_i = 1/n: calL = L_max."""
        return cls(_equal(n))

    @classmethod
    def importance(cls, L_i) -> SingleElement:
        """p_i = L_i / sum L: the least calL, which is L_mean. It may raise sigma^2 without bound."""
        return cls(_proportional(L_i))

    @classmethod
    def partially_biased(cls, L_i) -> SingleElement:
        """p_i = 1/(2n) + L_i / (2 sum L): calL <= 2 L_mean, and sigma^2 at most twice that of uniform p."""
        return cls(_half_proportional(L_i))

    @property
    def n(self) -> int:
        return self.p.size

    def draw(self, rng):
        i = bisect(self._cumulative, rng.random())
        return self._indices[i : i + 1], self._weights[i : i + 1]

    def outcomes(self):
        for i in range(self.n):
            yield float(self.p[i]), self._indices[i : i + 1], self._weights[i : i + 1]

    def _moments(self):
        return 0.0, self._weights

    @cached_property
    def _cumulative(self):
        return _cumulative(self.p).tolist()

    @cached_property
    def _indices(self):
        return _frozen(np.arange(self.n))

    @cached_property
    def _weights(self):
        return _frozen(1 / self.p)

    def __repr__(self):
        return f"SingleElement({_digest(self.p)})"


@dataclass(frozen=True, eq=False, repr=False)
class Independent(Sampling):
    """Every component by a coin of its own, i with probability p_i: v_i = 1/p_i. c = 1, e_i = (1 - p_i)/p_i.

    calL = L + (1/n) max_i ((1 - p_i)/p_i) L_i. Weights divide by expected, not by actual numbers; a draw may be empty,
    and the step then is zero. A draw costs O(n max p), not O(n).

    p: n numbers in (0, 1]. Raises ValueError for others.

    >>> sampling = Independent.importance(np.array([1.0, 1.0, 8.0]), tau=1.5)
    >>> sampling.p.round(3), round(sampling.tau, 12)
    (array([0.346, 0.346, 0.809]), 1.5)
    """

    p: np.ndarray

    def __post_init__(self):
        p = _vector(self.p, "p")
        if not (np.all(p > 0) and np.all(p <= 1)):
            raise ValueError(f"probabilities must lie in (0, 1], got {_range(p)}")
        settle(self, "p", _frozen(p))

    @classmethod
    def uniform(cls, n: int, tau: float) -> Independent:
        """p_i = tau/n: calL = L + (1/tau - 1/n) L_max."""
        n = positive_int(n, "n")
        return cls(np.full(n, _size(tau, n) / n))

    @classmethod
    def importance(cls, L_i, tau: float) -> Independent:
        """The least calL for a sum of p_i that is tau: p_i = L_i/(L_i + delta), calL = L + delta/n.

        delta is found by bisection, to the last bit.
        """
        L_i = _smoothness(L_i)
        tau = _size(tau, L_i.size)
        low, high = 0.0, L_i.sum() / tau  # the sum of p falls from n to below tau
        while low < (delta := (low + high) / 2) < high:
            if np.sum(L_i / (L_i + delta)) > tau:
                low = delta
            else:
                high = delta
        return cls(L_i / (L_i + low))

    @classmethod
    def partially_biased(cls, L_i, tau: float) -> Independent:
        """p_i = min(1, tau/(2n) + tau L_i / (2 sum L)): calL <= L + 2 L_mean/tau, without L_max, and
        sigma^2 <= (2/tau - 1/n) (1/n) sum_i ||h_i||^2. The sum of p_i is tau or, where the minimum is 1, less."""
        p = _half_proportional(L_i)
        return cls(np.minimum(1, _size(tau, p.size) * p))

    @property
    def n(self) -> int:
        return self.p.size

    @property
    def tau(self) -> float:
        """sum_i p_i"""
        return float(self.p.sum())

    def draw(self, rng):
        # A set at equal probability max p, thinned: the number of its members is binomial, and they are any of them.
        some = rng.choice(self.n, rng.binomial(self.n, self._most), replace=False, shuffle=False)
        some = some[rng.random(some.size) < self._kept[some]]
        return some, self._weights[some]

    def outcomes(self):
        for chosen in product((False, True), repeat=self.n):
            yield float(np.prod(np.where(chosen, self.p, 1 - self.p))), np.flatnonzero(chosen), self._weights[[*chosen]]

    def _moments(self):
        return 1.0, (1 - self.p) / self.p

    @cached_property
    def _most(self):
        return float(self.p.max())

    @cached_property
    def _kept(self):
        return _frozen(self.p / self._most)

    @cached_property
    def _weights(self):
        return _frozen(1 / self.p)

    def __repr__(self):
        return f"Independent({_digest(self.p)})"


@dataclass(frozen=True)
class Nice(Sampling):
    """A subset of tau components, every one of that size equally likely: v_i = n/tau.

    calL = (n (tau - 1) L + (n - tau) L_max) / (tau (n - 1)): from L_max at tau = 1 to L at tau = n.
    sigma^2 = (n - tau)/(tau (n - 1)) times that of tau = 1.

    >>> Nice(5, 2).draw(np.random.default_rng(0))
    (array([3, 4]), array([2.5, 2.5]))
    """

    n: int
    tau: int

    def __post_init__(self):
        settle(self, "n", positive_int(self.n, "n"))
        settle(self, "tau", positive_int(self.tau, "tau", most=self.n))

    def draw(self, rng):
        return rng.choice(self.n, self.tau, replace=False, shuffle=False), self._weights

    def outcomes(self):
        probability = 1 / math.comb(self.n, self.tau)
        for chosen in combinations(range(self.n), self.tau):
            yield probability, np.array(chosen), self._weights

    def _moments(self):
        n, tau = self.n, self.tau
        if tau == n:
            return 1.0, 0.0
        return n * (tau - 1) / (tau * (n - 1)), n * (n - tau) / (tau * (n - 1))

    @cached_property
    def _weights(self):
        return _frozen(np.full(self.tau, self.n / self.tau))


@dataclass(frozen=True)
class FullBatch(Sampling):
    """All components, v_i = 1: gradient descent. calL = L, sigma^2 = 0.

    >>> FullBatch(3).draw(np.random.default_rng(0))
    (array([0, 1, 2]), array([1., 1., 1.]))
    """

    n: int

    def __post_init__(self):
        settle(self, "n", positive_int(self.n, "n"))

    @property
    def tau(self) -> int:
        return self.n

    def draw(self, rng):
        return self._all

    def outcomes(self):
        yield (1.0, *self._all)

    def _moments(self):
        return 1.0, 0.0

    @cached_property
    def _all(self):
        return _frozen(np.arange(self.n)), _frozen(np.ones(self.n))


@dataclass(frozen=True, eq=False, repr=False)
class WithReplacement(Sampling):
    """tau independent draws, i with probability p_i each: v_i = (how often i came) / (tau p_i).

    calL = (1 - 1/tau) L + (1/(tau n)) max_i L_i/p_i; c = 1 - 1/tau, e_i = 1/(tau p_i).

    p: n positive numbers of sum 1. tau >= 1. Raises ValueError or TypeError for others.

    >>> WithReplacement.uniform(5, tau=3).draw(np.random.default_rng(1))
    (array([2, 4, 0]), array([1.66666667, 1.66666667, 1.66666667]))
    """

    p: np.ndarray
    tau: int

    def __post_init__(self):
        settle(self, "p", _distribution(self.p))
        settle(self, "tau", positive_int(self.tau, "tau"))

    @classmethod
    def uniform(cls, n: int, tau: int) -> WithReplacement:
        """p_i = 1/n."""
        return cls(_equal(n), tau)

    @classmethod
    def importance(cls, L_i, tau: int) -> WithReplacement:
        """p_i = L_i / sum L: the least calL, (1 - 1/tau) L + L_mean/tau."""
        return cls(_proportional(L_i), tau)

    @classmethod
    def partially_biased(cls, L_i, tau: int) -> WithReplacement:
        """p_i = 1/(2n) + L_i / (2 sum L): calL <= (1 - 1/tau) L + 2 L_mean/tau."""
        return cls(_half_proportional(L_i), tau)

    @property
    def n(self) -> int:
        return self.p.size

    def draw(self, rng):
        some = self._cumulative.searchsorted(rng.random(self.tau), side="right")
        return some, self._weights[some]

    def outcomes(self):
        for some in combinations_with_replacement(range(self.n), self.tau):
            repeats = math.prod(map(math.factorial, Counter(some).values()))
            some = np.array(some)
            yield math.factorial(self.tau) / repeats * float(np.prod(self.p[some])), some, self._weights[some]

    def _moments(self):
        return 1 - 1 / self.tau, self._weights

    @cached_property
    def _cumulative(self):
        return _cumulative(self.p)

    @cached_property
    def _weights(self):
        return _frozen(1 / (self.tau * self.p))

    def __repr__(self):
        return f"WithReplacement({_digest(self.p)}, tau={self.tau})"


@dataclass(frozen=True, eq=False, repr=False)
class Arbitrary(Sampling):
    """One of the sets given, C with probability q_C: v_i = 1/p_i for i in C, p_i the sum of q_C over sets with i.

    calL = max_i sum_{C with i} (q_C/p_i) L_C, where L_C = (1/n) lambda_max(sum_{i in C} M_i/p_i): it knows which
    components are alike, where the other samplings know their L_i alone. Components that are not convex have
    calL = (1/mu) sum_C q_C ((1/n) sum_{i in C} L_i/p_i)^2.
    sigma^2 = sum_C q_C ||(1/n) sum_{i in C} h_i/p_i - (1/n) sum_i h_i||^2.

    sets: of component numbers 0, ..., n - 1, each number in one set at least; a set may be empty. q: their
    probabilities, positive and of sum 1. Raises ValueError for others.

    >>> Arbitrary([[0, 1], [1, 2]], [0.5, 0.5]).draw(np.random.default_rng(0))
    (array([1, 2]), array([1., 2.]))
    """

    sets: tuple[np.ndarray, ...]
    q: np.ndarray

    def __post_init__(self):
        q = _distribution(self.q, "q")
        sets = tuple(_members(C) for C in self.sets)
        if len(sets) != q.size:
            raise ValueError(f"{len(sets)} sets and {q.size} probabilities")
        covered = np.unique(np.concatenate(sets))
        if not covered.size or covered[0] != 0 or covered[-1] != covered.size - 1:
            missing = np.setdiff1d(np.arange(covered.max(initial=0) + 1), covered)
            raise ValueError(f"every component must be in a set, from 0 on: {missing[:5].tolist()} are in none")
        settle(self, "sets", sets)
        settle(self, "q", q)

    @cached_property
    def p(self) -> np.ndarray:
        """(n,) probabilities that a component is drawn."""
        members = np.concatenate(self.sets)
        return _frozen(np.bincount(members, np.repeat(self.q, [C.size for C in self.sets])))

    @property
    def n(self) -> int:
        return self.p.size

    @property
    def tau(self) -> float:
        """sum_i p_i"""
        return float(self.p.sum())

    def draw(self, rng):
        return self._drawn[bisect(self._cumulative, rng.random())]

    def outcomes(self):
        for probability, drawn in zip(self.q, self._drawn, strict=True):
            yield (float(probability), *drawn)

    def expected_smoothness(self, problem) -> float:
        if not self._all_convex(problem):
            return sum(q * float(w @ problem.L_i[some] / self.n) ** 2 for q, some, w in self.outcomes()) / problem.mu
        total = np.zeros(self.n)
        for probability, some, weights in self.outcomes():
            if some.size:
                total[some] += probability * problem.smoothness(some, weights) / self.n
        return float(np.max(total / self.p))

    def gradient_noise(self, h) -> float:
        h = self._rows(h)
        mean = h.mean(axis=0)
        return float(sum(q * np.sum((w @ h[some] / self.n - mean) ** 2) for q, some, w in self.outcomes()))

    @cached_property
    def _cumulative(self):
        return _cumulative(self.q).tolist()

    @cached_property
    def _drawn(self):
        return [(C, _frozen(1 / self.p[C])) for C in self.sets]

    def __repr__(self):
        members = zlib.crc32(b"".join(C.tobytes() + b"\n" for C in self.sets))
        return f"{type(self).__name__}({len(self.sets)} sets, crc32 {members:08x}, {_digest(self.q)})"


class Partition(Arbitrary):
    """One of the sets given, which are disjoint. calL = (1/n) max_C lambda_max(sum_{i in C} M_i) / q_C.

    >>> sampling = Partition.uniform([[0, 1], [2, 3, 4]])
    >>> sampling.n, sampling.tau, sampling.draw(np.random.default_rng(0))
    (5, 2.5, (array([2, 3, 4]), array([2., 2., 2.])))
    """

    def __post_init__(self):
        super().__post_init__()
        if sum(C.size for C in self.sets) > self.n:
            raise ValueError("the sets of a partition must have no component in common")

    @classmethod
    def uniform(cls, sets) -> Partition:
        """Every set equally likely."""
        sets = list(sets)
        return cls(sets, _equal(len(sets)))


def optimal_batch(problem, eps: float, sampling: type[Sampling] = Nice) -> int:
    """The tau that reaches E||x - x*||^2 <= eps with the least work, tau times the number of steps.

    The paper's section 4, for Nice and, at equal probabilities, Independent and WithReplacement. Work is as
    max{tau calL, 2 tau sigma^2/(eps mu)}. With tau the first term grows and the second falls; they meet where
    c L = (e/n)(theta - L_max), theta = (2/(eps mu)) (1/n) sum_i ||h_i||^2. No noise, or little: tau = 1. With
    replacement the second term is level, and tau is the largest of those that are as good.

    eps: of the squared distance, not of the relative one. Raises ValueError unless eps and problem.mu are positive.

    >>> from compress.problems import Ridge
    >>> rng = np.random.default_rng(0)
    >>> problem = Ridge(rng.standard_normal((300, 10)), rng.standard_normal(300), lam=1 / 300)
    >>> [optimal_batch(problem, eps) for eps in (10, 0.1, 0.01)]
    [1, 135, 269]
    """
    if not (eps > 0 and problem.mu > 0):
        raise ValueError(f"eps and mu must be positive, got {eps} and {problem.mu}")
    n, L, h = problem.n, problem.L, problem.gradients_star
    if sampling is not Independent:  # whose draws do not even out what all gradients at x* have in common
        h = h - h.mean(axis=0)
    single = SingleElement.uniform(n).expected_smoothness(problem)  # L_max where components are convex
    excess = max(0.0, 2 * float(np.sum(h * h)) / (n * eps * problem.mu) - single)
    if sampling is WithReplacement:
        tau = 1 + excess / L
    elif sampling not in (Nice, Independent):
        raise ValueError(f"optimal_batch knows Nice, Independent and WithReplacement, got {sampling!r}")
    elif single > n * L:  # which convex components cannot have: the first term falls as well
        tau = n
    elif sampling is Nice:
        tau = n * (excess + L) / (excess + n * L)
    else:
        tau = excess / (L + excess / n)
    return min(max(round(tau), 1), n)


def _vector(values, name) -> np.ndarray:
    """values as a float64 vector of its own, finite and not empty."""
    values = np.array(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} must be a non-empty vector of finite numbers, got {values!r}")
    return values


def _frozen(array) -> np.ndarray:
    array.flags.writeable = False
    return array


def _distribution(p, name="p") -> np.ndarray:
    p = _vector(p, name)
    if not (np.all(p > 0) and abs(p.sum() - 1) <= 1e-9):
        raise ValueError(f"{name} must be positive and of sum 1, got {_range(p)} of sum {p.sum():.12g}")
    return _frozen(p)


def _cumulative(p) -> np.ndarray:
    """Sums of p that end in exactly 1, so that no number below 1 lies beyond."""
    sums = np.cumsum(p)
    return sums / sums[-1]


def _members(C) -> np.ndarray:
    """A set of component numbers as a sorted vector."""
    members = np.asarray(C)
    if members.ndim != 1 or (members.size and (members.dtype.kind not in "iu" or members.min() < 0)):
        raise ValueError(f"a set must be a list of component numbers, got {C!r}")
    members = members.astype(np.intp)
    unique = np.unique(members)
    if unique.size < members.size:
        raise ValueError(f"a set must name a component once, got {C!r}")
    return _frozen(unique)


def _smoothness(L_i) -> np.ndarray:
    L_i = _vector(L_i, "L_i")
    if not np.all(L_i > 0):
        raise ValueError(f"smoothness constants must be positive, got {_range(L_i)}")
    return L_i


def _size(tau, n) -> float:
    if not 0 < tau <= n:
        raise ValueError(f"tau must lie in (0, {n}], got {tau}")
    return float(tau)


def _equal(n) -> np.ndarray:
    n = positive_int(n, "n")
    return np.full(n, 1 / n)


def _proportional(L_i) -> np.ndarray:
    L_i = _smoothness(L_i)
    return L_i / L_i.sum()


def _half_proportional(L_i) -> np.ndarray:
    p = _proportional(L_i)
    return (1 / p.size + p) / 2


def _range(p) -> str:
    return f"{p.size} numbers in [{p.min():.6g}, {p.max():.6g}]"


def _digest(p) -> str:
    """What a repr says of probabilities: all of it for equal ones, else a check sum so that no two look the same."""
    if np.all(p == p[0]):
        return f"{p.size} x {float(p[0])!r}"
    return f"{_range(p)}, crc32 {zlib.crc32(p.tobytes()):08x}"
