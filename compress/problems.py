"""Problems: min over x of f(x) + R(x), where f = (1/n) sum_i f_i, with gradients, exact constants and the minimiser.

n components f_i over d coordinates: one a worker for distributed methods, one a data point for SGD. f_i has the
smoothness matrix M_i: f_i(x + v) <= f_i(x) + grad f_i(x)'v + v'M_i v/2 for all x and v. Every component holds what f
adds to the data (the lam/2 ||x||^2 of Ridge and Logistic), so that the mean of the f_i is f.

A problem of your own is a class with n, d and two methods, on any kind of array:

    class Rosenbrock(Problem):
        n, d, convex = 1, 2, False

        def value(self, x):
            return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

        def gradient(self, i, x, out=None):
            out = np.empty_like(x) if out is None else out
            out[1] = 200 * (x[1] - x[0] ** 2)
            out[0] = -2 * (1 - x[0]) - 2 * x[0] * out[1]
            return out

That is enough for a method with given step sizes. What else it knows (L_i, L, mu, x_star) it sets as attributes, and
it defines smoothness where a sampling asks for that.

Quadratic, Ridge and Logistic take NumPy vectors, float32 or float64. For float32 they work in float64 and round the
gradient once. They raise TypeError or ValueError for another x or out, IndexError for a component that is not there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from .compressor import finite_number, positive_int, settle

EPS = np.finfo(np.float64).eps
_LARGEST = 2**27  # numbers of the Hessians that `Quadratic.of` makes


class Regularizer(ABC):
    """R: convex, with a proximal operator."""

    @abstractmethod
    def value(self, x: np.ndarray) -> float:
        """R(x)."""

    @abstractmethod
    def prox(self, x: np.ndarray, gamma: float) -> np.ndarray:
        """argmin over y of gamma R(y) + ||y - x||^2 / 2, in x, which is returned."""

    def face(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """(free, linear, curvature): for y near x that differ from it on free coordinates alone,
        R(y) = linear'y + curvature ||y||^2 / 2 + constant. free: boolean (d,), linear: (d,).

        What x_star needs beside prox; optional.
        """
        raise NotImplementedError(f"{type(self).__name__} has no face(), which x_star needs")


@dataclass(frozen=True)
class L1(Regularizer):
    """R(x) = lam sum_j |x_j|. Raises ValueError unless lam is finite and at least 0.

    >>> L1(1.0).prox(np.array([3.0, -0.5]), gamma=2.0)
    array([1., 0.])
    """

    lam: float

    def __post_init__(self):
        settle(self, "lam", _nonnegative(self.lam, "lam"))

    def value(self, x):
        return self.lam * float(np.abs(x).sum())

    def prox(self, x, gamma):
        threshold = gamma * self.lam
        x -= np.clip(x, -threshold, threshold)
        return x

    def face(self, x):
        return x != 0, self.lam * np.sign(x), 0.0


@dataclass(frozen=True)
class L2(Regularizer):
    """R(x) = lam/2 ||x||^2. Raises ValueError unless lam is finite and at least 0.

    >>> L2(1.0).prox(np.array([3.0, -0.5]), gamma=1.0)
    array([ 1.5 , -0.25])
    """

    lam: float

    def __post_init__(self):
        settle(self, "lam", _nonnegative(self.lam, "lam"))

    def value(self, x):
        return self.lam / 2 * float(x @ x)

    def prox(self, x, gamma):
        x /= 1 + gamma * self.lam
        return x

    def face(self, x):
        return np.ones(x.shape, bool), np.zeros(x.shape), self.lam


@dataclass(frozen=True)
class Box(Regularizer):
    """R(x) = 0 where low <= x_j <= high for all j, infinite elsewhere. A bound may be infinite.

    Raises ValueError unless low <= high.

    >>> Box(0.0, math.inf).prox(np.array([3.0, -0.5]), gamma=1.0)
    array([3., 0.])
    """

    low: float
    high: float

    def __post_init__(self):
        settle(self, "low", float(self.low))
        settle(self, "high", float(self.high))
        if not self.low <= self.high or self.low == math.inf or self.high == -math.inf:
            raise ValueError(f"Box needs low <= high and a finite number between them, got {self.low} and {self.high}")

    def value(self, x):
        return 0.0 if ((self.low <= x) & (x <= self.high)).all() else math.inf

    def prox(self, x, gamma):
        return np.clip(x, self.low, self.high, out=x)

    def face(self, x):
        return (self.low < x) & (x < self.high), np.zeros(x.shape), 0.0


class Problem(ABC):
    """min over x of f(x) + R(x), f = (1/n) sum_i f_i.

    n: components. d: coordinates. regularizer: R, or None for zero. convex: whether every f_i is. shared: whether every
    process of an MPI job has all the data; False where each has those of its own workers alone.
    Constants are of f, without R, and computed when first asked for; one that a problem does not know raises
    NotImplementedError. `out`, a vector like x that does not overlap it, is written and returned.
    """

    n: int
    d: int
    regularizer: Regularizer | None = None
    convex: bool = True
    shared: bool = True

    def __repr__(self):
        return f"{type(self).__name__}(n={self.n}, d={self.d}, regularizer={self.regularizer})"

    @abstractmethod
    def value(self, x: np.ndarray) -> float:
        """f(x) + R(x)."""

    @abstractmethod
    def gradient(self, i: int, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """grad f_i(x)."""

    def batch_gradient(
        self, indices: np.ndarray, weights: np.ndarray, x: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """(1/n) sum_k weights_k grad f_{indices_k}(x).

        indices: integers in [0, n), which may repeat; weights: as many numbers. None at all give zero.
        """
        out = np.empty_like(x) if out is None else out
        _weighted_sum(self._own_gradient, *_weighted(indices, weights, self.n), self.n, x, out)
        return out

    def _own_gradient(self, i, x, out):
        """out = grad f_i(x), also where `gradient` leaves out alone and returns a vector of its own."""
        out[...] = self.gradient(i, x, out)

    def full_gradient(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """grad f(x)."""
        return self.batch_gradient(np.arange(self.n), np.ones(self.n), x, out)

    def partial_gradient(self, i: int, indices: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The coordinates `indices` of grad f_i at the point that is y there and zero elsewhere, in y's dtype.

        What a worker that holds these coordinates alone computes. Quadratic, Ridge and Logistic touch nothing else of
        their data; of another problem the point and its gradient are made in full, unless it has a way of its own.
        """
        point = np.zeros(self.d, y.dtype)
        point[indices] = y
        return self.gradient(i, point)[indices]

    def made_of(self) -> tuple[Problem, tuple]:
        """(problem, more): one whose value and gradients tell the data of this one, and what else this one depends on.

        By both `run` knows that processes and checkpoints have the same problem. A problem that is made of another, and
        does not know its own value, says so here.
        """
        return self, ()

    def hessian(self, i: int, x: np.ndarray) -> np.ndarray:
        """The Hessian of f_i at x, float64: (d, d), or (d,), its diagonal where the others are zero for every x."""
        raise NotImplementedError(f"{type(self).__name__} does not know its Hessians")

    def smoothness(self, indices: np.ndarray, weights: np.ndarray) -> float:
        """lambda_max(sum_k weights_k M_{indices_k}), 0 for none. Raises ValueError for a negative weight."""
        raise NotImplementedError(
            f"{type(self).__name__} does not know its smoothness: set L_i and L, or pass step sizes of your own"
        )

    @cached_property
    def L_i(self) -> np.ndarray:
        """(n,): Lipschitz constants of the grad f_i; lambda_max(M_i) where f_i is convex."""
        return _frozen(np.array([self.smoothness([i], [1.0]) for i in range(self.n)]))

    @cached_property
    def L(self) -> float:
        """lambda_max((1/n) sum_i M_i), a Lipschitz constant of grad f."""
        return self.smoothness(np.arange(self.n), np.full(self.n, 1 / self.n))

    @cached_property
    def mu(self) -> float:
        """The largest mu for which f is known to be mu-strongly convex."""
        raise NotImplementedError(
            f"{type(self).__name__} does not know its strong convexity: set mu, or pass step sizes of your own"
        )

    @cached_property
    def mu_i(self) -> np.ndarray:
        """(n,): the largest mu_i for which f_i is known to be mu_i-strongly convex."""
        raise NotImplementedError(f"{type(self).__name__} does not know the strong convexity of its components")

    @property
    def L_max(self) -> float:
        """max_i L_i."""
        return float(np.max(self.L_i))

    @property
    def L_mean(self) -> float:
        """(1/n) sum_i L_i."""
        return float(np.mean(self.L_i))

    @cached_property
    def x_star(self) -> np.ndarray:
        """(d,): a minimiser of f + R."""
        raise NotImplementedError(
            f"{type(self).__name__} does not know its minimiser: set x_star, or give run() an error= of your own"
        )

    @cached_property
    def gradients_star(self) -> np.ndarray:
        """(n, d): grad f_i(x_star), read-only."""
        h = np.empty((self.n, self.d))
        for i, row in enumerate(h):
            row[...] = self.gradient(i, self.x_star, row)
        return _frozen(h)


class _ArrayProblem(Problem):
    """Checks at the boundary, and the minimiser. Hooks see float64 vectors, and an `out` that they fill."""

    @abstractmethod
    def _value(self, x: np.ndarray) -> float:
        """f(x)."""

    @abstractmethod
    def _gradient(self, i: int, x: np.ndarray, out: np.ndarray) -> None:
        """grad f_i(x), for an x of long double too."""

    @abstractmethod
    def _full_gradient(self, x: np.ndarray, out: np.ndarray) -> None:
        """grad f(x)."""

    @abstractmethod
    def _hessian(self, i: int, x: np.ndarray) -> np.ndarray:
        """As `hessian`."""

    @abstractmethod
    def _smoothness(self, indices: np.ndarray, weights: np.ndarray) -> float:
        """lambda_max(sum_k weights_k M_{indices_k})."""

    @abstractmethod
    def _inverse_hessian(self, x: np.ndarray, free: np.ndarray, shift: float):
        """The function g -> (H + shift I)^+ g, H the rows and columns `free` of the Hessian of f at x."""

    def _batch_gradient(self, indices: np.ndarray, weights: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        """(1/n) sum_k weights_k grad f_{indices_k}(x)."""
        _weighted_sum(self._gradient, indices, weights, self.n, x, out)

    def _precise_gradient(self, x: np.ndarray) -> np.ndarray:
        """grad f(x) for an x of long double, and as precise."""
        out = np.empty_like(x)
        self._batch_gradient(np.arange(self.n), np.ones(self.n), x, out)
        return out

    def value(self, x):
        _check(x, self.d)
        smooth = float(self._value(x.astype(np.float64, copy=False)))
        return smooth if self.regularizer is None else smooth + self.regularizer.value(x)

    def gradient(self, i, x, out=None):
        if not 0 <= i < self.n:
            raise IndexError(f"component {i} of a problem of {self.n}")
        x, wide, out = _operands(x, out, self.d)
        self._gradient(i, x, wide)
        return _rounded(wide, out)

    def batch_gradient(self, indices, weights, x, out=None):
        indices, weights = _weighted(indices, weights, self.n)
        x, wide, out = _operands(x, out, self.d)
        self._batch_gradient(indices, weights, x, wide)
        return _rounded(wide, out)

    def full_gradient(self, x, out=None):
        x, wide, out = _operands(x, out, self.d)
        self._full_gradient(x, wide)
        return _rounded(wide, out)

    def hessian(self, i, x):
        if not 0 <= i < self.n:
            raise IndexError(f"component {i} of a problem of {self.n}")
        _check(x, self.d)
        return self._hessian(i, x.astype(np.float64, copy=False))

    def smoothness(self, indices, weights):
        indices, weights = _weighted(indices, weights, self.n)
        if not (weights >= 0).all():
            raise ValueError(f"weights must be at least 0, got {weights.min()}")
        return float(self._smoothness(indices, weights)) if indices.size else 0.0

    @cached_property
    def x_star(self) -> np.ndarray:
        """(d,): a minimiser of f + R, read-only; of several where R is zero the shortest.

        Its error is at most 1e-12 ||x_star||, or less than gradients in float64 can tell. Newton's method with
        gradients in long double, on the face of R that accelerated proximal gradients have led to. Raises
        RuntimeError, with what was reached, where f + R has no minimiser or is too badly conditioned.
        """
        return _frozen(_minimiser(self))


class Quadratic(_ArrayProblem):
    """f_i(x) = x'A_i x / 2 - b_i'x.

    A: (n, d, d), symmetric, or (n, d), diagonals. b: (n, d). M_i = A_i. A component need not be convex, f must be.
    mu and L are the extreme eigenvalues of the mean of the A_i; mu is 0 where that is below the rounding of L.

    Raises ValueError for other shapes, NaN or Inf, asymmetry, and where f is not convex.

    >>> problem = Quadratic(np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[1.0, 0.0], [3.0, 4.0]]))
    >>> problem.L, problem.mu, problem.x_star
    (2.0, 2.0, array([1., 1.]))
    """

    def __init__(self, A, b, regularizer: Regularizer | None = None):
        A, b = _finite(A, "A"), _finite(b, "b")
        if b.ndim != 2 or 0 in b.shape or A.shape not in (b.shape, (*b.shape, b.shape[1])):
            raise ValueError(f"A must be (n, d, d) or (n, d) and b (n, d), got {A.shape} and {b.shape}")
        self.n, self.d = b.shape
        for i, matrix in enumerate(A if A.ndim == 3 else ()):
            asymmetry = np.abs(matrix - matrix.T).max()
            if asymmetry > 1e-12 * np.abs(matrix).max():
                raise ValueError(f"A[{i}] differs from its transpose by {asymmetry:.3g}")
        self.A, self.b, self.regularizer = _frozen(A), _frozen(b), _regularizer(regularizer)
        self._mean = A.mean(axis=0), b.mean(axis=0)
        eigenvalues = _eigenvalues(self._mean[0])
        self.L, least = float(eigenvalues.max()), float(eigenvalues.min())
        rounding = EPS * self.d * max(self.L, -least)
        if least < -rounding:
            raise ValueError(f"f is not convex: the mean of A has the eigenvalue {least:.6g}")
        self.mu = least if least > rounding else 0.0

    @classmethod
    def random(cls, n: int, d: int, mu: float, L: float, interpolation: bool = False, seed=0) -> Quadratic:
        """n components (x - c_i)'A_i(x - c_i)/2, up to a constant, with random A_i, all positive semi-definite.

        The eigenvalues of the mean of the A_i, in random directions, are evenly spaced on a log scale from mu to L.
        Centres c_i are N(0, I), or with interpolation a single one, at which all grad f_i are then zero.

        Raises ValueError unless 0 < mu <= L, both finite, and mu = L where d = 1.

        >>> problem = Quadratic.random(n=3, d=5, mu=0.1, L=10.0)
        >>> problem.mu, problem.L, problem.L_max > 10
        (0.1, 10.0, True)
        """
        n, d = positive_int(n, "n"), positive_int(d, "d")
        if not 0 < mu <= L < math.inf or (d == 1 and mu != L):
            raise ValueError(
                f"eigenvalues from mu to L need 0 < mu <= L, and d > 1 unless equal; got {mu}, {L}, d = {d}"
            )
        rng = np.random.default_rng(seed)
        # with G = [G_1 ... G_n] normal and GG' = R'R, A_i = T R'^-1 (n G_i G_i') R^-1 T', where TT' is the mean
        G = rng.standard_normal((n, d, d))
        R = np.linalg.qr(G.transpose(0, 2, 1).reshape(n * d, d), mode="r")
        basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
        T = basis * np.sqrt(np.geomspace(mu, L, d))
        G = T @ np.linalg.solve(R.T, math.sqrt(n) * G)
        A = G @ G.transpose(0, 2, 1)
        A = (A + A.transpose(0, 2, 1)) / 2
        centres = np.broadcast_to(rng.standard_normal((1 if interpolation else n, d)), (n, d))
        problem = cls(A, np.einsum("nij,nj->ni", A, centres))
        problem.mu, problem.L = float(mu), float(L)  # what they are but for rounding
        return problem

    @classmethod
    def of(cls, problem) -> Quadratic:
        """A Quadratic as it is, and of a Ridge the Quadratic with its Hessians and gradients: f but for a constant.

        Raises TypeError for another problem, ValueError where the Hessians are more than 2^27 numbers, 1 GiB.

        >>> problem = Ridge(np.array([[1.0, 0.0], [1.0, 2.0]]), np.array([1.0, 3.0]), lam=0.0)
        >>> Quadratic.of(problem).A.tolist(), Quadratic.of(problem).b.tolist()
        ([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [2.0, 4.0]]], [[1.0, 0.0], [3.0, 6.0]])
        """
        if isinstance(problem, Quadratic):
            return problem
        if not isinstance(problem, Ridge):
            raise TypeError(f"a Quadratic or a Ridge is quadratic, got {problem!r}")
        n, d = problem.n, problem.d
        if n * d * d > _LARGEST:
            raise ValueError(f"{problem!r} has Hessians of {n} x {d} x {d} numbers, more than {_LARGEST:,}")
        A, b, zero = np.empty((n, d, d)), np.empty((n, d)), np.zeros(d)
        for i in range(n):
            H = problem.hessian(i, zero)
            A[i], b[i] = (H + H.T) / 2, 0 - problem.gradient(i, zero)
        quadratic = cls(A, b, problem.regularizer)
        quadratic.mu, quadratic.L = problem.mu, problem.L  # from singular values, which see more digits
        return quadratic

    def _product(self, A, x, out):
        return np.multiply(A, x, out=out) if A.ndim == 1 else np.matmul(A, x, out=out)

    def _value(self, x):
        A, b = self._mean
        return x @ self._product(A, x, None) / 2 - b @ x

    def _gradient(self, i, x, out):
        self._product(self.A[i], x, out)
        out -= self.b[i]

    def _full_gradient(self, x, out):
        A, b = self._mean
        self._product(A, x, out)
        out -= b

    def partial_gradient(self, i, indices, y):
        A = self.A[i]
        product = A[indices] * y if A.ndim == 1 else A[indices[:, None], indices] @ y
        return (product - self.b[i][indices]).astype(y.dtype, copy=False)

    def _hessian(self, i, x):
        return self.A[i]

    def _smoothness(self, indices, weights):
        flat = weights @ self.A[indices].reshape(indices.size, -1)
        return _eigenvalues(flat.reshape(self.A.shape[1:])).max()

    @cached_property
    def _spectra(self):
        """(n, d): the eigenvalues of the A_i."""
        return np.linalg.eigvalsh(self.A) if self.A.ndim == 3 else self.A

    @cached_property
    def L_i(self) -> np.ndarray:
        """(n,): ||A_i||, spectral norms."""
        return _frozen(np.abs(self._spectra).max(axis=1))

    @cached_property
    def mu_i(self) -> np.ndarray:
        """(n,): lambda_min(A_i), 0 where that is negative or below the rounding of L_i."""
        least = self._spectra.min(axis=1)
        return _frozen(np.where(least > EPS * self.d * self.L_i, least, 0.0))

    @cached_property
    def convex(self) -> bool:
        """Whether no A_i has a negative eigenvalue, but for rounding."""
        return bool((self._spectra >= -EPS * self.d * self.L_i[:, None]).all())

    def _inverse_hessian(self, x, free, shift):
        A, _ = self._mean
        if A.ndim == 1:
            inverse = _reciprocal(A[free] + shift, EPS * (self.L + shift))
            return lambda g: inverse * g
        eigenvalues, V = np.linalg.eigh(A[np.ix_(free, free)])
        inverse = _reciprocal(eigenvalues + shift, EPS * self.d * (self.L + shift))
        return lambda g: V @ (inverse * (g @ V))


class _LinearModel(_ArrayProblem):
    """Losses of a_j'x: f(x) = s sum_j phi(a_j'x, b_j) + lam/2 ||x||^2, s = 1/m, or 1 with mean=False.

    A subclass has phi, its first two derivatives in z = a_j'x, and `_curvature`, the least upper bound of the second:
    M_i = n s _curvature sum_{j in part i} a_j a_j' + lam I.
    """

    _curvature: ClassVar[float]

    def __init__(self, A, b, lam: float, workers=None, parts=None, mean: bool = True, regularizer=None):
        A, b = _finite(A, "A"), _finite(b, "b")
        if A.ndim != 2 or 0 in A.shape or b.shape != A.shape[:1]:
            raise ValueError(f"A must be (m, d) and b (m,), got {A.shape} and {b.shape}")
        m, self.d = A.shape
        if parts is None:
            self.n = m if workers is None else positive_int(workers, "workers", most=m)
            sizes = np.full(self.n, m // self.n)
            sizes[: m % self.n] += 1
        elif workers is not None:
            raise ValueError(f"workers={workers} and parts of their own: give one of them")
        else:
            order, sizes = _partition(parts, m)
            self.n, A, b = len(sizes), A[order], b[order]
        self.A, self.b, self.regularizer = _frozen(A), _frozen(b), _regularizer(regularizer)
        self.lam, self.mean = _nonnegative(lam, "lam"), mean
        self._scale = 1 / m if mean else 1.0
        self._ends = [0, *np.cumsum(sizes).tolist()]  # component i has rows ends[i] to ends[i + 1]

    def _rows(self, i):
        return slice(self._ends[i], self._ends[i + 1])

    def _sum(self, A, b, scale, lam, x, out):
        """out = sum_j scale_j phi'(a_j'x, b_j) a_j + lam x."""
        slopes = self._slope(A @ x, b)
        slopes *= scale
        np.matmul(slopes, A, out=out)
        if lam:
            out += lam * x

    def _value(self, x):
        return self._scale * self._loss(self.A @ x, self.b).sum() + self.lam / 2 * (x @ x)

    def _gradient(self, i, x, out):
        rows = self._rows(i)
        self._sum(self.A[rows], self.b[rows], self.n * self._scale, self.lam, x, out)

    def _batch_gradient(self, indices, weights, x, out):
        if self.n < len(self.b):
            super()._batch_gradient(indices, weights, x, out)
            return
        lam = self.lam * float(weights.sum()) / self.n
        self._sum(self.A[indices], self.b[indices], weights * self._scale, lam, x, out)

    def _full_gradient(self, x, out):
        self._sum(self.A, self.b, self._scale, self.lam, x, out)

    def _precise_gradient(self, x):
        out = np.empty_like(x)
        self._full_gradient(x, out)
        return out

    def partial_gradient(self, i, indices, y):
        rows, out = self._rows(i), np.empty(y.size)
        self._sum(self.A[rows][:, indices], self.b[rows], self.n * self._scale, self.lam, y, out)
        return out.astype(y.dtype, copy=False)

    def _hessian(self, i, x):
        A, b = self.A[self._rows(i)], self.b[self._rows(i)]
        hessian = A.T @ (self.n * self._scale * self._second(A @ x, b)[:, None] * A)
        hessian.flat[:: self.d + 1] += self.lam
        return hessian

    def _smoothness(self, indices, weights):
        rows = np.concatenate([np.arange(self._ends[i], self._ends[i + 1]) for i in indices.tolist()])
        sizes = np.diff(self._ends)[indices]
        B = np.repeat(np.sqrt(weights), sizes)[:, None] * self.A[rows]
        return self.n * self._scale * self._curvature * _gram_norm(B) + self.lam * weights.sum()

    @cached_property
    def L_i(self) -> np.ndarray:
        """(n,): lambda_max(M_i)."""
        if self.n < len(self.b):
            norms = [_gram_norm(self.A[self._rows(i)]) for i in range(self.n)]
        else:
            norms = np.einsum("ij,ij->i", self.A, self.A)
        return _frozen(self.n * self._scale * self._curvature * np.asarray(norms) + self.lam)

    @cached_property
    def L(self) -> float:
        """s lambda_max(A'A) + lam, for Logistic s/4 lambda_max(A'A) + lam."""
        return self._scale * self._curvature * _gram_norm(self.A) + self.lam

    def _inverse_hessian(self, x, free, shift):
        """(B'B + shift)^+ from the singular vectors of B, which see twice the digits that B'B has."""
        curvatures = self._second(self.A @ x.astype(np.float64), self.b)
        B = np.sqrt(self._scale * curvatures)[:, None] * self.A[:, free]
        shift += self.lam
        singular, V = _right_singular(B)
        inside = _reciprocal(singular**2 + shift, (EPS * max(B.shape) * singular[0]) ** 2)
        outside = 1 / shift if shift and singular.size < B.shape[1] else 0.0
        return lambda g: outside * g + (inside - outside) * (V @ g) @ V

    def __repr__(self):
        return (
            f"{type(self).__name__}(m={len(self.b)}, d={self.d}, n={self.n}, lam={self.lam}, mean={self.mean}, "
            f"regularizer={self.regularizer})"
        )


class Ridge(_LinearModel):
    """f(x) = s/2 sum_j (a_j'x - b_j)^2 + lam/2 ||x||^2, s = 1/m, or 1 with mean=False.

    A: (m, d). b: (m,). Component i has the rows of a part: f_i = n s/2 sum_{j in part i} (a_j'x - b_j)^2 +
    lam/2 ||x||^2, with M_i = n s sum_{j in part i} a_j a_j' + lam I. workers=k makes k parts of consecutive rows, whose
    sizes differ by one at most; parts gives them as index arrays (`compress.data` splits); with neither, every row is
    a part. self.A and self.b are float64 copies, read-only, with the rows in the order of parts.

    Raises ValueError for other shapes, NaN or Inf, lam < 0, more workers than rows, and parts that are empty, overlap
    or leave rows out.

    >>> A, b = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0]]), np.array([1.0, 2.0, 3.0])
    >>> problem = Ridge(A, b, lam=0.0)
    >>> problem.L_i, problem.x_star
    (array([1., 4., 5.]), array([1., 1.]))
    """

    _curvature = 1.0

    @staticmethod
    def _loss(z, b):
        return (z - b) ** 2 / 2

    @staticmethod
    def _slope(z, b):
        return z - b

    @staticmethod
    def _second(z, b):
        return np.ones_like(z)

    @cached_property
    def mu(self) -> float:
        """s lambda_min(A'A) + lam, where A'A counts as singular below rounding."""
        return min(self.lam + self._scale * _least_square(self.A), self.L)

    @cached_property
    def mu_i(self) -> np.ndarray:
        """(n,): n s lambda_min(sum_{j in part i} a_j a_j') + lam, where a sum counts as singular below rounding."""
        least = [_least_square(self.A[self._rows(i)]) for i in range(self.n)]
        return _frozen(np.minimum(self.lam + self.n * self._scale * np.array(least), self.L_i))


class Logistic(_LinearModel):
    """f(x) = s sum_j log(1 + exp(-b_j a_j'x)) + lam/2 ||x||^2, s = 1/m, or 1 with mean=False.

    As Ridge, with labels b_j of -1 and 1 (`compress.data.binary` makes them), M_i = n s/4 sum_{j in part i} a_j a_j' +
    lam I, and mu = lam. Raises ValueError for other labels, and from x_star for lam = 0 without a regularizer: f has no
    minimiser where a plane separates the classes.

    >>> problem = Logistic(np.array([[2.0], [-2.0]]), np.array([1.0, -1.0]), lam=0.5)
    >>> problem.L, problem.mu, problem.value(np.zeros(1))
    (1.5, 0.5, 0.6931471805599453)
    """

    _curvature = 0.25

    def __init__(self, A, b, lam, workers=None, parts=None, mean=True, regularizer=None):
        super().__init__(A, b, lam, workers, parts, mean, regularizer)
        others = np.unique(self.b[np.abs(self.b) != 1])
        if others.size:
            raise ValueError(f"labels must be -1 and 1, got {others[:5].tolist()}; compress.data.binary makes them")

    @staticmethod
    def _loss(z, b):
        return np.logaddexp(0, -b * z)

    @staticmethod
    def _slope(z, b):
        return -b * _expit(-b * z)

    @staticmethod
    def _second(z, b):
        return _expit(z) * _expit(-z)

    @cached_property
    def mu(self) -> float:
        """lam."""
        return self.lam

    @cached_property
    def mu_i(self) -> np.ndarray:
        """(n,): lam."""
        return _frozen(np.full(self.n, self.lam))

    @cached_property
    def x_star(self):
        if self.lam == 0 and self.regularizer is None:
            raise ValueError("Logistic with lam = 0 and no regularizer need not have a minimiser")
        return super().x_star


def _minimiser(problem: _ArrayProblem) -> np.ndarray:
    """Of f + R: proximal gradients find the face of R it lies on, Newton's method its place there."""
    R = L2(0.0) if problem.regularizer is None else problem.regularizer
    gamma = 1 / problem.L if problem.L else 1.0
    x = R.prox(np.zeros(problem.d), gamma)
    for steps in [0] if isinstance(R, L2) else [0, *(100 * 2**k for k in range(11))]:
        x = _accelerated(problem, R, x, gamma, steps)
        y, error = _newton(problem, x.astype(np.longdouble), *R.face(x))
        residual = np.linalg.norm(y - R.prox(y - gamma * problem._precise_gradient(y), gamma))
        size, found = np.linalg.norm(y), y.astype(np.float64)
        unseen = EPS * gamma * max(np.linalg.norm(problem.gradient(i, found)) for i in range(problem.n))
        if error <= 1e-12 * size + unseen and residual <= 4 * EPS * size + unseen:
            return found
    raise RuntimeError(
        f"x_star of {problem!r} not found: at ||x|| = {size:.3g} the next Newton step is {error:.3g} long, that of "
        f"proximal gradients {residual:.3g}"
    )


def _accelerated(problem, R, x, gamma, steps):
    """x after some steps of accelerated proximal gradients, whose momentum is dropped where it points uphill.

    O'Donoghue and Candes, Adaptive restart for accelerated gradient schemes (2015, arXiv 1204.3982), section 3.2.
    """
    y, t = x, 1.0
    for _ in range(steps):
        new = R.prox(y - gamma * problem.full_gradient(y), gamma)
        if (y - new) @ (new - x) > 0:
            t = 1.0
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        y = new + (t - 1) / after * (new - x)
        x, t = new, after
    return x


def _newton(problem, x, free, linear, curvature):
    """x with the free coordinates where f + linear'x + curvature/2 ||x||^2 is least, and the length of the next step.

    A step is halved until the gradient is shorter by its share, and the last when none makes it so.
    """
    if not free.any():
        return x, 0.0
    linear = linear[free]

    def gradient(x):
        return problem._precise_gradient(x)[free] + linear + curvature * x[free]

    g = gradient(x)
    while True:
        step = problem._inverse_hessian(x, free, curvature)(g)
        length, slope = np.linalg.norm(step), np.linalg.norm(g)
        if length <= EPS / 4 * np.linalg.norm(x):
            return x, length
        for share in 0.5 ** np.arange(20):
            y = x.copy()
            y[free] -= share * step
            g = gradient(y)
            if np.linalg.norm(g) < (1 - share / 8) * slope:
                break
        else:
            return x, length
        x = y


def _check(x, d):
    if not isinstance(x, np.ndarray) or x.dtype.char not in "fd":
        what = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else f"{type(x).__module__}.{type(x).__name__}"
        raise TypeError(f"x must be a NumPy array of float32 or float64, got {what}")
    if x.shape != (d,):
        raise ValueError(f"x has shape {x.shape}, the problem has {d} coordinates")


def _operands(x, out, d):
    """x and a vector for the gradient, both float64, and out."""
    _check(x, d)
    if out is None:
        out = np.empty(d, x.dtype)
    elif out is x or not isinstance(out, np.ndarray) or out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(f"out must be an array of {d} {x.dtype} beside x, got {out!r}")
    if x.dtype.char == "d":
        return x, out, out
    return x.astype(np.float64), np.empty(d), out


def _rounded(wide, out):
    if wide is not out:
        out[...] = wide
    return out


def _weighted(indices, weights, n):
    """Both as arrays. TypeError unless indices are integers, IndexError unless they lie in [0, n)."""
    indices, weights = np.asarray(indices), np.asarray(weights, np.float64)
    if indices.ndim != 1 or indices.shape != weights.shape:
        raise ValueError(f"indices of shape {indices.shape} and weights of shape {weights.shape}")
    if indices.size and indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {indices.dtype}")
    indices = indices.astype(np.intp, copy=False)
    if indices.size and indices.view(np.uintp).max() >= n:  # negative ones are larger still
        raise IndexError(f"components must lie in [0, {n}), got {indices.min()} to {indices.max()}")
    return indices, weights


def _weighted_sum(gradient, indices, weights, n, x, out):
    """out = (1/n) sum_k weights_k gradient(indices_k, x)."""
    out[...] = 0
    one = np.empty_like(x)
    for i, weight in zip(indices.tolist(), (weights / n).tolist(), strict=True):
        gradient(i, x, one)
        one *= weight
        out += one


def _finite(values, name):
    """A copy of values as contiguous float64."""
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be an array of real numbers, got {values.dtype}")
    values = np.array(values, np.float64, order="C")
    wrong = values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise ValueError(f"{name} has {wrong} of {values.size} entries that are NaN or Inf")
    return values


def _nonnegative(value, name):
    value = finite_number(value, name)
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value


def _regularizer(value):
    if value is not None and not isinstance(value, Regularizer):
        raise TypeError(f"regularizer must be a Regularizer or None, got {value!r}")
    return value


def _partition(parts, m):
    """(order, sizes): the rows of all parts one after another, and how many each has."""
    if not np.iterable(parts):
        raise TypeError(f"parts must be a list of vectors of row numbers, got {parts!r}; their number is `workers`")
    parts = [np.asarray(part) for part in parts]
    for i, part in enumerate(parts):
        if part.ndim != 1 or part.size == 0 or part.dtype.kind not in "iu":
            raise ValueError(f"parts[{i}] must be a non-empty vector of row numbers, got {part.dtype} {part.shape}")
    order = np.concatenate(parts) if parts else np.empty(0, np.intp)
    if order.size and not 0 <= order.min() <= order.max() < m:
        raise ValueError(f"parts must hold rows 0 to {m - 1}, got {order.min()} to {order.max()}")
    counts = np.bincount(order, minlength=m)
    if (counts != 1).any():
        row = int(np.flatnonzero(counts != 1)[0])
        raise ValueError(f"parts must hold every row once, row {row} is there {counts[row]} times")
    return order, [part.size for part in parts]


def _frozen(array):
    array.flags.writeable = False
    return array


def _expit(t):
    """1 / (1 + exp(-t)), without an exponential that overflows."""
    return np.exp(np.minimum(t, 0)) / (1 + np.exp(-np.abs(t)))


def _eigenvalues(A):
    """Of a symmetric matrix, or of a diagonal one from its diagonal."""
    return A if A.ndim == 1 else np.linalg.eigvalsh(A)


def _gram_norm(B):
    """lambda_max(B'B), from the smaller of B'B and BB'."""
    return float(np.linalg.eigvalsh(B @ B.T if B.shape[0] < B.shape[1] else B.T @ B)[-1])


def _right_singular(B):
    """(singular values, right singular vectors as rows) of B: min(B.shape) of them."""
    if B.shape[0] > B.shape[1]:
        B = np.linalg.qr(B, mode="r")  # has both, and fewer rows
    return np.linalg.svd(B, full_matrices=False)[1:]


def _least_square(B):
    """lambda_min(B'B), 0 where that is below rounding."""
    if B.shape[0] < B.shape[1]:
        return 0.0
    singular, _ = _right_singular(B)
    return float(singular[-1]) ** 2 if singular[-1] > EPS * max(B.shape) * singular[0] else 0.0


def _reciprocal(values, rounding):
    """1 / values, and 0 where they are 0 but for rounding."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > rounding)
