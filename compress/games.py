"""Monotone operators and games: find a zero of F = (1/n) sum_i F_i, or the solution of its variational inequality.

    find x* with <F(x*), x - x*> + R(x) - R(x*) >= 0 for all x

A minimum of f + R has F = grad f. A saddle point of f, least in its players' x and largest in y, has z = (x, y) and
F(z) = (grad_x f, -grad_y f): each player follows a gradient, and the field of both need not be the gradient of
anything. What stands in for convexity is monotonicity, <F(u) - F(v), u - v> >= 0.

An operator of your own is a class with n, d and one method, `gradient`, which is F_i:

    class Rotation(Operator):  # min over x, max over y of xy
        n, d, monotone, mu, L_i = 1, 2, True, 0.0, np.ones(1)

        def gradient(self, i, x, out=None):
            out = np.empty_like(x) if out is None else out
            out[:] = x[1], -x[0]
            return out
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from .compressor import positive_int
from .problems import (
    EPS,
    Problem,
    Regularizer,
    _finite,
    _frozen,
    _operands,
    _regularizer,
    _rounded,
    _weighted,
    _weighted_sum,
)

_STEPS = 2**17  # of extragradient towards x_star where there is a regularizer


class Operator(Problem):
    """Find x* with <F(x*), x - x*> + R(x) - R(x*) >= 0 for all x, F = (1/n) sum_i F_i.

    It is a `Problem` whose `gradient(i, x)` is F_i(x), `full_gradient(x)` F(x), and so on, so that every method that
    asks for gradients alone runs on it: SGD is stochastic gradient descent-ascent. Constants of minimisation (L,
    smoothness) it does not have, and step sizes that follow from them raise NotImplementedError: with those of
    minimisation games diverge. It has, if it is told,

    monotone  whether every F_i is known to be; False unless it is told
    L_i       (n,): Lipschitz constants of the F_i
    mu        every F_i is mu-strongly monotone: <F_i(u) - F_i(v), u - v> >= mu ||u - v||^2
    x_star    (d,): a solution. Where nobody knows one, `run` measures the natural residual, error=operator.value
    """

    monotone: bool = False

    @property
    def convex(self) -> bool:
        """`monotone`, which of gradients says the same."""
        return self.monotone

    def value(self, x) -> float:
        """||x - prox_R(x - F(x))||, the natural residual: 0 at solutions and nowhere else."""
        y = x - self.full_gradient(x)
        if self.regularizer is not None:
            self.regularizer.prox(y, 1.0)
        return float(np.linalg.norm(x - y))

    def smoothness(self, indices, weights) -> float:
        """Raises NotImplementedError, as L does."""
        raise NotImplementedError(
            f"L and smoothness are constants of minimisation, and {self!r} is an operator: give step sizes of your "
            "own, or take Extragradient, which has proven ones"
        )

    @property
    def L(self) -> float:
        """Raises NotImplementedError: it is a constant of minimisation. Lipschitz constants are L_i."""
        return self.smoothness(np.arange(self.n), np.ones(self.n))

    @cached_property
    def L_i(self) -> np.ndarray:
        """(n,): Lipschitz constants of the F_i."""
        raise NotImplementedError(f"{type(self).__name__} does not know its Lipschitz constants")

    def lipschitz(self, indices: np.ndarray, weights: np.ndarray) -> float:
        """A Lipschitz constant of sum_k weights_k F_{indices_k}, weights >= 0: sum_k weights_k L_{indices_k}, or less
        where an operator knows better."""
        return float(np.dot(weights, self.L_i[indices]))

    @cached_property
    def x_star(self) -> np.ndarray:
        """(d,): a solution."""
        raise NotImplementedError(
            f"{type(self).__name__} does not know a solution: set x_star, or give run() an error=, for example its "
            "natural residual, `value`"
        )


class AffineOperator(Operator):
    """F_i(x) = A_i x - b_i.

    A: (n, d, d). b: (n, d). monotone where no symmetric part of an A_i has a negative eigenvalue, but for rounding;
    mu is the least of them, or 0. L_i are spectral norms. Of several solutions x_star is the shortest.

    Raises ValueError for other shapes, NaN or Inf.

    >>> operator = AffineOperator([[[1.0, 2.0], [-2.0, 1.0]]], [[3.0, -1.0]])
    >>> operator.monotone, operator.mu, operator.x_star
    (True, 1.0, array([1., 1.]))
    """

    def __init__(self, A, b, regularizer: Regularizer | None = None):
        A, b = _finite(A, "A"), _finite(b, "b")
        if b.ndim != 2 or 0 in b.shape or A.shape != (*b.shape, b.shape[1]):
            raise ValueError(f"A must be (n, d, d) and b (n, d), got {A.shape} and {b.shape}")
        self.n, self.d = b.shape
        self.A, self.b, self.regularizer = _frozen(A), _frozen(b), _regularizer(regularizer)
        self._mean = A.mean(axis=0), b.mean(axis=0)

    @classmethod
    def random(cls, n: int, d: int, mu: float, L: float, interpolation: bool = False, seed=0) -> AffineOperator:
        """Quadratic games min over x, max over y of (1/n) sum_i x'P_i x/2 + x'B_i y - y'Q_i y/2 about (x, y) = c_i.

        Both players have d/2 coordinates. P_i, Q_i and B_i have singular vectors of their own, random ones, such that
        A_i is normal, with eigenvalues r_j exp(+- i t_j): r_j evenly spaced on a log scale from mu to L, t_j random
        with r_j cos t_j >= mu. Every L_i is L, and mu that of every component. Centres c_i are N(0, I), or with
        interpolation a single one, at which all F_i are then zero.

        Raises ValueError unless d is even and 0 < mu <= L, both finite.

        >>> game = AffineOperator.random(n=3, d=4, mu=0.1, L=2.0)
        >>> game.mu, game.L_max, game.monotone
        (0.1, 2.0, True)
        """
        n, half = positive_int(n, "n"), _half(d)
        if not 0 < mu <= L < math.inf:
            raise ValueError(f"eigenvalues from mu to L need 0 < mu <= L, got {mu} and {L}")
        rng = np.random.default_rng(seed)
        r = np.geomspace(mu, L, half)
        r[-1] = L
        most = np.arccos(np.minimum(1, mu / r))
        A = np.empty((n, d, d))
        for A_i in A:
            U, V = (np.linalg.qr(rng.standard_normal((half, half)))[0] for _ in range(2))
            t = rng.random(half) * most
            t[-1] = most[-1]
            growth, turn = r * np.cos(t), (U * (r * np.sin(t))) @ V.T
            A_i[:] = np.block([[(U * growth) @ U.T, turn], [-turn.T, (V * growth) @ V.T]])
        centres = _centres(rng, n, d, interpolation)
        game = cls(A, np.einsum("nij,nj->ni", A, centres))
        game.mu, game.L_i = float(mu), _frozen(np.full(n, float(L)))  # what they are but for rounding
        return game

    def _component(self, i, x, out):
        np.matmul(self.A[i], x, out=out)
        out -= self.b[i]

    def gradient(self, i, x, out=None):
        if not 0 <= i < self.n:
            raise IndexError(f"component {i} of an operator of {self.n}")
        x, wide, out = _operands(x, out, self.d)
        self._component(i, x, wide)
        return _rounded(wide, out)

    def batch_gradient(self, indices, weights, x, out=None):
        indices, weights = _weighted(indices, weights, self.n)
        x, wide, out = _operands(x, out, self.d)
        _weighted_sum(self._component, indices, weights, self.n, x, wide)
        return _rounded(wide, out)

    def full_gradient(self, x, out=None):
        x, wide, out = _operands(x, out, self.d)
        A, b = self._mean
        np.matmul(A, x, out=wide)
        wide -= b
        return _rounded(wide, out)

    def lipschitz(self, indices, weights):
        """||sum_k weights_k A_{indices_k}||."""
        indices, weights = _weighted(indices, weights, self.n)
        return float(np.linalg.norm(np.tensordot(weights, self.A[indices], 1), 2))

    @cached_property
    def L_i(self) -> np.ndarray:
        """(n,): ||A_i||, spectral norms."""
        return _frozen(np.linalg.norm(self.A, 2, axis=(1, 2)))

    @cached_property
    def _least(self) -> float:
        """The least eigenvalue of a symmetric part, or 0 where it is that but for rounding."""
        least = float(np.linalg.eigvalsh((self.A + self.A.transpose(0, 2, 1)) / 2).min())
        return least if abs(least) > EPS * self.d * self.L_max else 0.0

    @cached_property
    def monotone(self) -> bool:
        """Whether (A_i + A_i')/2 is positive semi-definite for all i."""
        return self._least >= 0

    @cached_property
    def mu(self) -> float:
        """The least eigenvalue of all (A_i + A_i')/2, or 0."""
        return max(0.0, self._least)

    @cached_property
    def x_star(self) -> np.ndarray:
        """(d,): a solution, read-only; without a regularizer the shortest.

        Raises RuntimeError where there is none, and where extragradient has not found the face of R it lies on.
        """
        if self.regularizer is None:
            x, tried = self._solved(np.zeros(self.d), np.ones(self.d, bool), 0.0, 0.0), "least squares"
            if self._solves(x):
                return _frozen(x)
        else:
            A, prox = self._mean[0], self.regularizer.prox
            eta = 1 / (math.sqrt(2) * np.linalg.norm(A, 2) or 1.0)
            x, tried = prox(np.zeros(self.d), eta), f"{_STEPS} steps of extragradient"
            for k in range(1, _STEPS + 1):
                u = prox(x - eta * self.full_gradient(x), eta)
                x = prox(x - eta * self.full_gradient(u), eta)
                if k & (k - 1) == 0 and self._solves(y := self._solved(x, *self.regularizer.face(x))):
                    return _frozen(y)
        raise RuntimeError(f"x_star of {self!r} not found: after {tried} the natural residual is {self.value(x):.3g}")

    def _solved(self, x, free, linear, curvature):
        """x with the free coordinates where F(x) + linear + curvature x is zero."""
        A, b = self._mean
        M, y = A[np.ix_(free, free)] + curvature * np.eye(np.count_nonzero(free)), x.copy()
        y[free] = 0
        for _ in range(3):  # refined with residuals that see more digits
            residual = (b - linear - A.astype(np.longdouble) @ y - curvature * y)[free]
            y[free] += np.linalg.lstsq(M, residual.astype(np.float64), rcond=None)[0]
        return y

    def _solves(self, x) -> bool:
        A, b = self._mean
        terms = np.linalg.norm(np.abs(A) @ np.abs(x)) + np.linalg.norm(b) + np.linalg.norm(x)
        return self.value(x) <= 4 * EPS * self.d * terms


class BilinearGame(AffineOperator):
    """min over x, max over y of (1/n) sum_i x'B_i y + a_i'x + b_i'y, plus mu/2 (||x||^2 - ||y||^2).

    B: (n, p, q). a: (n, p), b: (n, q), zero unless given. z = (x, y) has d = p + q coordinates. Without mu every F_i
    turns about its own zero, and gradient descent-ascent leaves it for ever.

    Raises ValueError for other shapes, NaN or Inf, mu < 0.

    >>> game = BilinearGame([[[2.0]]])
    >>> game.gradient(0, np.array([1.0, 3.0])), game.L_max
    (array([ 6., -2.]), 2.0)
    """

    def __init__(self, B, a=None, b=None, mu: float = 0.0, regularizer: Regularizer | None = None):
        B = _finite(B, "B")
        if B.ndim != 3 or 0 in B.shape:
            raise ValueError(f"B must be (n, p, q), got {B.shape}")
        n, p, q = B.shape
        a = np.zeros((n, p)) if a is None else _finite(a, "a")
        b = np.zeros((n, q)) if b is None else _finite(b, "b")
        if a.shape != (n, p) or b.shape != (n, q):
            raise ValueError(f"B of {B.shape} needs a of {(n, p)} and b of {(n, q)}, got {a.shape} and {b.shape}")
        if not 0 <= mu < math.inf:
            raise ValueError(f"mu must be finite and at least 0, got {mu}")
        A = np.zeros((n, p + q, p + q))
        A[:, :p, p:], A[:, p:, :p] = B, -B.transpose(0, 2, 1)
        A[:, range(p + q), range(p + q)] = mu
        super().__init__(A, np.hstack([-a, b]), regularizer)

    @classmethod
    def chavdarova(cls, n: int, biased: bool = False, mu: float = 0.0, seed=0) -> BilinearGame:
        """The game on which extragradient with independent samples diverges: B_i = e_i e_i', n components in 2n
        coordinates, L_i = 1 and F(z) = (y, -x)/n. a_i and b_i are zero or, biased, N(0, I/n).

        Chavdarova, Gidel, Fleuret, Lacoste-Julien, "Reducing Noise in GAN Training with Variance Reduced
        Extragradient", NeurIPS 2019, arXiv 1904.08598.

        >>> BilinearGame.chavdarova(3).gradient(1, np.arange(6.0))
        array([ 0.,  4.,  0.,  0., -1.,  0.])
        """
        n, rng = positive_int(n, "n"), np.random.default_rng(seed)
        B = np.zeros((n, n, n))
        B[range(n), range(n), range(n)] = 1
        a, b = rng.standard_normal((2, n, n)) / math.sqrt(n) if biased else (None, None)
        return cls(B, a, b, mu)

    @classmethod
    def random(cls, n: int, d: int, low: float, high: float, interpolation: bool = False, seed=0) -> BilinearGame:
        """n components, whose mean B has singular values evenly spaced on a log scale from low to high.

        Both players have d/2 coordinates. B_i - B are N(0, 2 high^2/d) entries, less their mean. Centres, about which
        the components turn, are N(0, I), or with interpolation a single one, at which all F_i are then zero.

        Raises ValueError unless d is even and 0 < low <= high, both finite.

        >>> game = BilinearGame.random(n=5, d=8, low=0.1, high=1.0)
        >>> np.linalg.svd(game.A.mean(axis=0)[:4, 4:], compute_uv=False).round(3)
        array([1.   , 0.464, 0.215, 0.1  ])
        """
        n, half = positive_int(n, "n"), _half(d)
        if not 0 < low <= high < math.inf:
            raise ValueError(f"singular values from low to high need 0 < low <= high, got {low} and {high}")
        rng = np.random.default_rng(seed)
        U, V = (np.linalg.qr(rng.standard_normal((half, half)))[0] for _ in range(2))
        spread = rng.standard_normal((n, half, half)) * (high / math.sqrt(half))
        B = (U * np.geomspace(high, low, half)) @ V.T + spread - spread.mean(axis=0)
        x, y = np.split(_centres(rng, n, d, interpolation), 2, axis=1)
        return cls(B, -np.einsum("nij,nj->ni", B, y), -np.einsum("nij,ni->nj", B, x))


def _half(d) -> int:
    d = positive_int(d, "d")
    if d % 2:
        raise ValueError(f"d must be even, half of it for each player, got {d}")
    return d // 2


def _centres(rng, n, d, interpolation):
    return np.broadcast_to(rng.standard_normal((1 if interpolation else n, d)), (n, d))
