"""MAST: training a model so that its sketches are good, because sketches are all that workers are ever sent.

Demidovich, Malinovsky, Shulgin, Richtarik, "MAST: Model-Agnostic Sparsified Training", ICLR 2025, arXiv 2311.16086.

Design note
-----------
A. f_D(x) = (1/n) sum_i E f_i(v + S_i (x - v)) is a problem, `Sketched`, of n components as f is. Methods take that
   problem, so that errors are distances from its minimiser x_D*, not from that of f.
B. There is a server, process 0, which alone has the iterate: x is empty on every other process. Worker i is sent the
   coordinates of v + S_i (x - v) that S_i keeps and answers with the same coordinates of grad f_i. It has their places
   from the key. Where v is zero a step of DSGD gives it no vector of d; where it is not, v is agreed on and frozen (a
   v that follows x is that of `ShiftedIST`, in ist.py). What is around steps costs more: `init` takes an x0 of d on
   every process, LSVRDSG and SPAGE send x in full when they take a new gradient, and `run` has the iterate broadcast
   to every process for each row (uncounted, like all measuring).
C. Let A = max_i L_i L_S^max. G(x) = (1/n) sum_i S_i grad f_i(v + S_i (x - v)) is unbiased for grad f_D, and
   E ||G(x) - G(y)||^2 <= 2 calL (f_D(x) - f_D(y) - grad f_D(y)'(x - y)) with calL = A by Jensen's inequality;
   L + A/n where sketches are independent over workers, L of f_D; A/n where their sets are disjoint, so that squares
   add. With n workers this beats the paper's A; with one it is A. Neither this nor the rates ask that E S = I.
   The f_i are convex wherever calL is used. S-PAGE takes E ||G(x) - G(y) - (grad f_D(x) - grad f_D(y))||^2 <=
   S^2 ||x - y||^2, S^2 = L_S^max L_D (1/n^2) sum_i L_i^2, of smooth f_i: squares of workers that are independent, or
   disjoint, add, ||S_i u||^2 <= L_S^max ||u||^2 for the difference u of gradients, and ||u||^2 <= L_i^2
   ||S_i (x - y)||^2, in expectation at most L_i^2 L_D ||x - y||^2.
D. What f_D needs beyond one sketch (its value, gradient and minimiser) it has where f is a `Quadratic`, or a `Ridge`
   of no more than 1 GiB of Hessians, whose f_D is a Quadratic too, and where all sketches can be listed (`Cyclic`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..compressor import Identity
from ..games import Operator
from ..key import Key
from ..problems import EPS, Logistic, Problem, Quadratic, Ridge
from ..sampling import Sampling
from ..sketches import Sketch
from .method import Method, checked, coin, covered, generator, parameter, same_components


class Sketched(Problem):
    """f_D(x) = (1/n) sum_i E f_i(v + S_i (x - v)): the mean loss of a model whose sketches around v are used.

    problem: f, without a regularizer; its L2 terms are sketched as the rest is. sketch: a Sketch, or a sparsifier. v:
    the shift, vector of d, such as a model that was trained before; zero where None.

    f_D is L_D L-smooth and mu_D mu-strongly convex, or where workers have scales of their own as the mean of its
    components is; for a Quadratic or a Ridge L, mu and L_i are exact. Where f is convex and S unbiased, f_D >= f.

    Raises TypeError for an Operator, of which there is no f, and for what is sketched already; ValueError for a problem
    with a regularizer, another v, and a sketch for other n or d; NotImplementedError for a value or gradient where f is
    neither Quadratic nor Ridge (or its Hessians are too large) and the sketches cannot be listed.

    >>> import numpy as np, compress
    >>> f = compress.Quadratic.random(n=3, d=6, mu=1, L=10)
    >>> f_D = Sketched(f, compress.RandK(3))
    >>> low, high = f_D.minimum_bounds()
    >>> bool(f.value(f.x_star) <= low <= f_D.value(f_D.x_star) <= high)
    True
    >>> bool(np.allclose(Sketched(f, compress.RandK(3), v=f.x_star).x_star, f.x_star))
    True
    """

    def __init__(self, problem, sketch, v=None):
        if isinstance(problem, Operator) or not isinstance(problem, Problem):
            raise TypeError(f"f_D is the mean loss of sketches, of a Problem with a loss f, got {problem!r}")
        if isinstance(problem, Sketched):
            raise TypeError(f"{problem!r} is sketched already: give the f that it is of")
        if problem.regularizer is not None:
            raise ValueError(f"{problem!r} has a regularizer, which sketches have no theorem for: put L2 terms into f")
        self.base, self.sketch, self.n, self.d = problem, Sketch.of(sketch), problem.n, problem.d
        self.sketch.check(self.n, self.d)
        self.convex, self.shared = problem.convex, problem.shared
        if v is not None:
            v = np.array(v, np.float64)
            if v.shape != (self.d,) or not np.isfinite(v).all():
                raise ValueError(f"v must be a finite vector of {self.d}, got shape {v.shape}: {v}")
            v.flags.writeable = False
        self.v = v

    def __repr__(self):
        return f"Sketched({self.base!r}, {self.sketch!r}{'' if self.v is None else ', v'})"

    def made_of(self):
        return self.base, (self.sketch, self.v)

    @cached_property
    def _quadratic_base(self) -> Quadratic | None:
        try:
            return Quadratic.of(self.base)
        except (TypeError, ValueError):  # not quadratic, or too large
            return None

    @cached_property
    def _quadratic(self) -> Quadratic | None:
        """f_D of a Quadratic but for a constant: with z = x - v, f_i is z'(A_i o E ss')z/2 + (E S_i grad f_i(v))'z."""
        f = self._quadratic_base
        if f is None:
            return None
        A, b, v = np.empty_like(f.A), np.empty_like(f.b), self._v
        for i in range(self.n):
            mean = self.sketch.mean(self.d, i)
            if A.ndim == 2:
                A[i] = f.A[i] * mean * self.sketch.scale(self.d, i)
                b[i] = A[i] * v
            else:
                A[i] = f.A[i] * self.sketch.second_moment(self.d, i)
                b[i] = A[i] @ v
            b[i] -= mean * f.gradient(i, v)
        return Quadratic(A, b)

    @property
    def _v(self) -> np.ndarray:
        return np.zeros(self.d) if self.v is None else self.v

    @cached_property
    def _pool(self) -> list[np.ndarray]:
        pool = self.sketch.pool(self.d)
        if pool is None:
            raise NotImplementedError(
                f"{self!r}: the value and gradient of f_D are known where f is a Quadratic or a Ridge (of at most 2^27 "
                "numbers in its Hessians), and where sketches can be listed, as those of Cyclic"
            )
        return pool

    def check_known(self) -> None:
        """NotImplementedError unless values and gradients of f_D are known."""
        if self._quadratic is None:
            _ = self._pool

    @property
    def evaluations(self) -> int:
        """Gradients of f_i that one of its component of f_D takes."""
        return 1 if self._quadratic else len(self._pool)

    def _submodels(self, x):
        """v + S(x - v) for every S of the pool, after the coordinates that S keeps."""
        v = self._v.astype(x.dtype)
        scaled = v + self.sketch.scale(self.d) * (x - v)
        for indices in self._pool:
            point = v.copy()
            point[indices] = scaled[indices]
            yield indices, point

    def value(self, x):
        if quadratic := self._quadratic:
            return quadratic.value(x) + self.base.value(self._v) - quadratic.value(self._v)
        return float(np.mean([self.base.value(point) for _, point in self._submodels(x)]))

    def gradient(self, i, x, out=None):
        return self._mean_gradient(lambda problem, *where: problem.gradient(i, *where), x, out)

    def hessian(self, i, x):
        return self._quadratic.hessian(i, x) if self._quadratic else super().hessian(i, x)

    def full_gradient(self, x, out=None):
        return self._mean_gradient(lambda problem, *where: problem.full_gradient(*where), x, out)

    def _mean_gradient(self, gradient, x, out):
        if quadratic := self._quadratic:
            return gradient(quadratic, x, out)
        out = np.empty_like(x) if out is None else out
        out.fill(0)
        for indices, point in self._submodels(x):
            out[indices] += gradient(self.base, point)[indices]
        out *= self.sketch.scale(self.d) / len(self._pool)
        return out

    @cached_property
    def L_i(self) -> np.ndarray:
        """(n,): L_D L_i of f, exact for a Quadratic or a Ridge."""
        return self._quadratic.L_i if self._quadratic else self._of_workers(self.sketch.L_D) * self.base.L_i

    @cached_property
    def L(self) -> float:
        """L_D L of f, or the mean of the L_i where workers have scales of their own; exact as the L_i are."""
        if self._quadratic:
            return self._quadratic.L
        return float(np.mean(self.L_i)) if self.sketch.own_scales else self.sketch.L_D(self.d) * self.base.L

    @cached_property
    def mu(self) -> float:
        """mu_D mu of f, or the mean of the mu_i where workers have scales of their own; exact as the mu_i are."""
        if self._quadratic:
            return self._quadratic.mu
        return float(np.mean(self.mu_i)) if self.sketch.own_scales else self.sketch.mu_D(self.d) * self.base.mu

    @cached_property
    def mu_i(self) -> np.ndarray:
        """(n,): mu_D mu_i of f, exact for a Quadratic or a Ridge."""
        return self._quadratic.mu_i if self._quadratic else self._of_workers(self.sketch.mu_D) * self.base.mu_i

    def _of_workers(self, constant) -> np.ndarray:
        if not self.sketch.own_scales:
            return np.full(self.n, constant(self.d))
        return np.array([constant(self.d, i) for i in range(self.n)])

    @cached_property
    def x_star(self) -> np.ndarray:
        """(d,): x_D*, read-only. That of a Quadratic, or by Nesterov's method, as near as its rounding allows.

        Raises ValueError where gradients of f_D are not known and where f is not strongly convex, RuntimeError where
        rounding keeps it from 1e-10 ||x_D*||.
        """
        if quadratic := self._quadratic:
            return quadratic.x_star
        try:
            self.check_known()
        except NotImplementedError as error:
            raise ValueError(f"no x_D*: {error}; or give run() an error=, a function of the iterate") from None
        L, mu = self.L, self.mu
        if not mu > 0:
            raise ValueError(f"{self!r} is not known to be strongly convex, mu is {mu}")
        root = math.sqrt(mu / L)
        x = y = np.zeros(self.d)
        start = np.linalg.norm(self.full_gradient(x))
        for _ in range(math.ceil(80 / root)):  # (1 - root)^(80 / root) < 1e-34, the square of the rounding
            g = self.full_gradient(y)
            if np.linalg.norm(g) <= 4 * EPS * (L * np.linalg.norm(y) + start):
                break
            new = y - g / L
            x, y = new, new + (1 - root) / (1 + root) * (new - x)
        error, size = np.linalg.norm(g) / mu, np.linalg.norm(y)
        if error > 1e-10 * size + EPS * start / mu:
            raise RuntimeError(f"x_star of {self!r}: at ||x|| = {size:.3g} the error is up to {error:.3g}")
        y.flags.writeable = False
        return y

    def minimum_bounds(self) -> tuple[float, float]:
        """f* + (mu_D - 1)(mu/2) ||x_D* - v||^2 and f* + (L_D - 1)(L/2) ||x* - v||^2, with L and mu of f: what
        f_D(x_D*) lies between, where f is convex and E S = I (theorem 1). ValueError for another S."""
        sketch, f, d = self.sketch, self.base, self.d
        sketch.check_unbiased(d, "theorem 1")
        least = f.value(f.x_star)
        below, above = (float(np.sum((x - self._v) ** 2)) / 2 for x in (self.x_star, f.x_star))
        return least + (sketch.mu_D(d) - 1) * f.mu * below, least + (sketch.L_D(d) - 1) * f.L * above

    @cached_property
    def A(self) -> float:
        """max_i L_i L_S^max; where f is quadratic and sketches keep one coordinate, its diagonal in place of L_i."""
        sketch, f = self.sketch, None
        if sketch.sets.most_values(self.d) == 1:
            f = self._quadratic_base
        if f is None:
            return float(self.base.L_max * sketch.L_S_max(self.d))
        diagonals = f.A if f.A.ndim == 2 else np.diagonal(f.A, axis1=1, axis2=2)
        return max(float(np.max(D * np.square(sketch.scale(self.d, i)))) for i, D in enumerate(diagonals))

    @property
    def expected_smoothness(self) -> float:
        """calL: E ||G(x) - G(y)||^2 <= 2 calL (f_D(x) - f_D(y) - grad f_D(y)'(x - y)), G of one round of sketches."""
        return self.A / self.n if self.sketch.disjoint else min(self.A, self.L + self.A / self.n)

    @cached_property
    def noise(self) -> float:
        """E ||G(x_D*)||^2, for sketches that can be listed."""
        total = 0.0
        for i, expected in enumerate(self.gradients_star):
            for indices, point in self._submodels(self.x_star):
                total += self.sketch.L_S_max(self.d) * np.sum(self.base.gradient(i, point)[indices] ** 2)
            total -= len(self._pool) * np.sum(expected**2)  # independent over workers
        return total / (len(self._pool) * self.n**2)

    @cached_property
    def infimum(self) -> float:
        """(1/n) sum_i inf f_i, or what it is at least: 0 for Ridge and Logistic of several workers."""
        if self.n == 1:
            return self.base.value(self.base.x_star)
        if isinstance(self.base, (Ridge, Logistic)):
            return 0.0
        if isinstance(self.base, Quadratic):
            parts = (Quadratic(self.base.A[i : i + 1], self.base.b[i : i + 1]) for i in range(self.n))
            return float(np.mean([part.value(part.x_star) for part in parts]))
        raise NotImplementedError(f"the minima of the components of {self.base!r} are not known")


# What a worker does


def gradient_around(v, problem, i, indices, y):
    """The coordinates `indices` of grad f_i at the point that is y there and v elsewhere, zero where v is None."""
    if v is None:
        return problem.partial_gradient(i, indices, y)
    point = v.astype(y.dtype)
    point[indices] = y
    return problem.gradient(i, point)[indices]


_PLAIN, _KEY = Identity(), Key()


def _sent(values):
    return _PLAIN.encode(np.ascontiguousarray(values), _KEY)


def _read(message):
    return _PLAIN.decode(message, _KEY)


def sketched_round(comm, sketch, points, v, key, answer, d, out) -> None:
    """out = (1/n) sum_i S_i answer(i, indices, y, ...) on process 0: one message down and one up a worker.

    points: vectors x of d on process 0, as many of anything on the others. Worker i is sent y = v + S_i (x - v) on
    `indices`, for every x; answer gives as many values.
    """
    sets, down = [], None
    if comm.process == 0:
        sets, down = [sketch.indices(d, key.worker(i)) for i in range(comm.n)], []
        for i, indices in enumerate(sets):
            shift, scale = 0.0 if v is None else v[indices], sketch.at(indices, d, i)
            parts = [shift + scale * (x[indices] - shift) for x in points]
            down.append(_sent(np.concatenate(parts, dtype=sketch.wire)))
    up = []
    for i, message in zip(comm.workers, comm.scatter(down), strict=True):
        indices = sketch.indices(d, key.worker(i))
        up.append(_sent(answer(i, indices, *_read(message).reshape(len(points), -1))))
    replies = comm.gather(up)
    if comm.process == 0:
        out.fill(0)
        for i, (indices, reply) in enumerate(zip(sets, replies, strict=True)):
            out[indices] += sketch.at(indices, d, i) * _read(reply) / comm.n


def whole_gradient(comm, problem, x, out):
    """out = grad f(x) on process 0; vectors of d travel in full both ways, in the dtype of x.

    Returns what the workers hosted here have then seen: x, and their gradients.
    """
    received = comm.scatter([_sent(x)] * comm.n if comm.process == 0 else None)
    x = _read(received[0])
    gradients = [problem.gradient(i, x) for i in comm.workers]
    replies = comm.gather([_sent(g) for g in gradients])
    if comm.process == 0:
        out.fill(0)
        for reply in replies:
            out += _read(reply) / comm.n
    return x, gradients


def from_server(comm, x):
    """x of process 0, on every process."""
    return comm.agree(x if comm.process == 0 else None)


def on_server(comm, x):
    """x on process 0, and of no size on the others."""
    return x if comm.process == 0 else x[:0].copy()


# Methods


class SketchedState(NamedTuple):
    """x: on process 0, and empty on the others."""

    x: np.ndarray
    oracle: int
    scratch: np.ndarray


class ReferenceState(NamedTuple):
    """reference: w, where the gradient of f_D was last evaluated in full; full: that gradient."""

    x: np.ndarray
    reference: np.ndarray
    full: np.ndarray
    oracle: int
    scratch: np.ndarray


class EstimatorState(NamedTuple):
    """estimate: h, of the gradient of f_D at x."""

    x: np.ndarray
    estimate: np.ndarray
    oracle: int
    scratch: list[np.ndarray]


class _OnSketched(Method):
    """What the methods for f_D share."""

    def iterate(self, comm, state):
        return from_server(comm, state.x)

    def _on_server(self, problem, comm, x0, components=None):
        """x^0 of a problem that has a component for every worker, unless told how many."""
        return on_server(comm, self._start(_sketched(self, problem), components or comm.n, x0))

    def _differences(self, problem, comm, points, key, out):
        """out = G(x) - G(y) for the points x and y."""

        def answer(i, indices, x, y):
            g = gradient_around(problem.v, problem.base, i, indices, x)
            return g - gradient_around(problem.v, problem.base, i, indices, y)

        sketched_round(comm, problem.sketch, points, problem.v, key, answer, problem.d, out)


def proven(method, problem, f) -> None:
    """ValueError unless a bound is proven: parameters keep to the limits on this problem, f is strongly convex."""
    for name, limit in method.limits(problem).items():
        if getattr(method, name) > limit * (1 + 1e-9):
            value, cls = getattr(method, name), type(method).__name__
            raise ValueError(f"{cls}: no bound is proven for {name} = {value:.6g}, which is above {limit:.6g}")
    if not f.mu > 0:
        raise ValueError(f"{type(method).__name__}: its bound needs mu > 0 of f_D, got {f.mu}")


def _sketched(method, problem):
    """The problem; TypeError that names the method unless it is f_D."""
    if not isinstance(problem, Sketched):
        name = (method if isinstance(method, type) else type(method)).__name__
        raise TypeError(f"{name} minimises f_D: give Sketched(problem, sketch), got {problem!r}")
    return problem


def _with_gradients(method, problem):
    """The problem; TypeError that names the method unless it is f_D, NotImplementedError unless that is known."""
    _sketched(method, problem).check_known()
    return problem


def _distance(problem, x0) -> float:
    return float(np.sum((np.asarray(x0, np.float64) - problem.x_star) ** 2))


@dataclass(frozen=True)
class DSGD(_OnSketched):
    """Double sketched gradient descent: x <- x - gamma (1/n) sum_i S_i grad f_i(v + S_i (x - v)).

    With gamma <= 1/calL (`Sketched.expected_smoothness`; 1/(L_f L_S^max) for one worker), linear to a neighbourhood of
    x_D*: E ||x^k - x_D*||^2 <= (1 - gamma mu)^k ||x^0 - x_D*||^2 + 2 gamma B (f_D(x_D*) - (1/n) sum_i inf f_i) / mu,
    B = A/n where calL is not A, else A. With gamma <= 1/(2 calL) the last term may be 2 gamma E ||G(x_D*)||^2 / mu,
    which is smaller in general. mu that of f_D. 2311.16086, theorem 2, whose proof gives these constants.

    sampling: None where worker i has f_i. With a Sampling of the components, one worker has them all, draws some a step
    (the paper's inexact gradients) under one sketch, so that scales of each component's own raise ValueError, and
    gamma <= 1/(2 calL' L_S^max), calL' and sigma^2 the sampling's, E ||x^k - x_D*||^2 <= (1 - gamma mu)^k
    ||x^0 - x_D*||^2 + (2 gamma L_S^max / mu) (2 calL' (f_D(x_D*) - f*) + sigma^2).

    >>> import numpy as np, compress
    >>> f_D = Sketched(compress.Quadratic.random(n=4, d=20, mu=1, L=10), compress.RandK(0.5))
    >>> trace = compress.run(DSGD.theoretical(f_D), f_D, compress.Local(4), np.ones(20), steps=500)
    >>> bool(trace.error[-1] < trace.error[0]), int(trace.bits_up[1]), int(trace.bits_down[1])
    (True, 1280, 1280)
    """

    gamma: float
    sampling: Sampling | None = None

    def __post_init__(self):
        checked(self, gamma="step")
        if not (self.sampling is None or isinstance(self.sampling, Sampling)):
            raise TypeError(f"DSGD: sampling must be a Sampling or None, got {self.sampling!r}")

    @classmethod
    def theoretical(cls, problem, sampling: Sampling | None = None) -> DSGD:
        """The largest gamma proven."""
        return cls(cls._limit(_sketched(cls, problem), sampling), sampling)

    @classmethod
    def _limit(cls, problem, sampling):
        if sampling is None or problem.convex:  # a sampling has constants of other components too
            covered(cls, problem.base)
        if sampling is None:
            return 1 / problem.expected_smoothness
        cls._check_sampling(problem, sampling)
        return 1 / (2 * sampling.expected_smoothness(problem.base) * problem.sketch.L_S_max(problem.d))

    @staticmethod
    def _check_sampling(problem, sampling):
        same_components(sampling, problem)
        if problem.sketch.own_scales:
            raise ValueError(
                f"DSGD with a sampling has one sketch for all components, the scales of {problem.sketch!r} are "
                f"{problem.sketch.scales.shape}: each component's own, which is another f_D"
            )

    def limits(self, problem):
        return {"gamma": self._limit(problem, self.sampling)}

    def bound(self, problem, x0, k):
        """What E ||x^k - x_D*||^2 is at most, for step numbers k. ValueError for gamma above `limits` and mu = 0."""
        proven(self, problem, problem)
        rate = (1 - self.gamma * problem.mu) ** np.asarray(k)
        return rate * _distance(problem, x0) + 2 * self.gamma * min(self._floors(problem)) / problem.mu

    def _floors(self, problem):
        """The terms that 2 gamma / mu multiplies in the bound."""
        least = problem.value(problem.x_star)
        if self.sampling is not None:
            squared, f = problem.sketch.L_S_max(problem.d), problem.base
            smooth = self.sampling.expected_smoothness(f)
            yield squared * (2 * smooth * (least - f.value(f.x_star)) + self.sampling.gradient_noise(f.gradients_star))
            return
        calL = problem.expected_smoothness
        yield (problem.A if calL == problem.A else problem.A / problem.n) * (least - problem.infimum)
        if self.gamma <= (1 + 1e-9) / (2 * calL) and problem.sketch.pool(problem.d) is not None:
            yield problem.noise

    def init(self, problem, comm, x0) -> SketchedState:
        if self.sampling is not None:
            if comm.n != 1:
                raise ValueError(f"DSGD with a sampling has one worker, got a communicator of {comm.n}")
            self._check_sampling(_sketched(self, problem), self.sampling)
        x = self._on_server(problem, comm, x0, None if self.sampling is None else problem.n)
        return SketchedState(x, 0, np.empty_like(x))

    def step(self, problem, comm, state, key):
        f, v, evaluated = problem.base, problem.v, comm.n
        if self.sampling is None:

            def answer(i, indices, y):
                return gradient_around(v, f, i, indices, y)
        else:
            drawn = self.sampling.draw(generator(key.worker(0)))
            evaluated = drawn[0].size

            def answer(i, indices, y):
                point = problem._v.astype(y.dtype)
                point[indices] = y
                return f.batch_gradient(*drawn, point)[indices]

        x, g = state.x, state.scratch
        sketched_round(comm, problem.sketch, [x], v, key, answer, problem.d, out=g)
        g *= self.gamma
        x -= g
        return state._replace(oracle=state.oracle + evaluated)


@dataclass(frozen=True)
class LSVRDSG(_OnSketched):
    """L-SVRDSG: the noise of sketches taken out by a point w at which grad f_D is known.

        g = G(x) - G(w) + grad f_D(w),  x+ = x - gamma g;  with probability p  w+ = x

    G(x) and G(w) are of the same sketches. A worker is sent both its sketches and answers with one vector, of the
    difference; a new w goes to all in full, and grad f_{D,i}(w) comes back. With gamma <= 1/(6 calL), V^k =
    ||x^k - x_D*||^2 + (4 gamma^2 / p) E ||G(w^k) - G(x_D*)||^2 falls as 1 - min(gamma mu, p/2) in expectation, to x_D*
    itself. 2311.16086, section on variance reduction; the constants are those of loopless SVRG (Kovalev, Horvath,
    Richtarik 2020) with calL that of `Sketched.expected_smoothness`.

    >>> import numpy as np, compress
    >>> f_D = Sketched(compress.Quadratic.random(n=4, d=20, mu=1, L=10), compress.RandK(0.5, wire="float64"))
    >>> trace = compress.run(LSVRDSG.theoretical(f_D), f_D, compress.Local(4), np.ones(20), steps=5000, until=1e-12)
    >>> trace.reason
    'error 1e-12 reached'
    """

    gamma: float
    p: float

    def __post_init__(self):
        checked(self, gamma="step", p="share")

    @classmethod
    def theoretical(cls, problem, p: float | None = None) -> LSVRDSG:
        """gamma = 1/(6 calL); p = 1/d where none is given."""
        return cls(cls._limit(_with_gradients(cls, problem)), 1 / problem.d if p is None else p)

    @classmethod
    def _limit(cls, problem):
        covered(cls, problem.base)
        return 1 / (6 * problem.expected_smoothness)

    def limits(self, problem):
        return {"gamma": self._limit(_with_gradients(self, problem))}

    def bound(self, problem, x0, k):
        """What E ||x^k - x_D*||^2 is at most, for step numbers k: V^0 through E ||G(x^0) - G(x_D*)||^2 <=
        calL L ||x^0 - x_D*||^2. Raises ValueError for gamma above `limits`, mu = 0."""
        proven(self, problem, problem)
        rate = 1 - min(self.gamma * problem.mu, self.p / 2)
        start = 1 + 4 * self.gamma**2 / self.p * problem.expected_smoothness * problem.L
        return rate ** np.asarray(k) * start * _distance(problem, x0)

    def init(self, problem, comm, x0) -> ReferenceState:
        x = self._on_server(_with_gradients(self, problem), comm, x0)
        full = np.empty_like(x)
        whole_gradient(comm, problem, x, out=full)
        return ReferenceState(x, x.copy(), full, comm.n * problem.evaluations, np.empty_like(x))

    def step(self, problem, comm, state, key):
        x, w, full, g, oracle = state.x, state.reference, state.full, state.scratch, state.oracle + 2 * comm.n
        self._differences(problem, comm, [x, w], key, out=g)
        g += full
        if coin(key, self.p):
            w[...] = x
            whole_gradient(comm, problem, w, out=full)
            oracle += comm.n * problem.evaluations
        g *= self.gamma
        x -= g
        return state._replace(oracle=oracle)


@dataclass(frozen=True)
class SPAGE(_OnSketched):
    """S-PAGE: an estimate that follows the gradient of f_D by differences of sketched gradients.

        x+ = x - gamma h;  with probability p  h+ = grad f_D(x+), otherwise  h+ = h + G(x+) - G(x)

    G(x+) and G(x) are of the same sketches; bits as LSVRDSG. Let S^2 = L_S^max L_D (1/n^2) sum_i L_i^2 (note C of
    compress.optimizers.mast), L and mu of f_D. With gamma <= 1/(L + S sqrt((1 - p)/p)), a point drawn evenly from the
    first T has E ||grad f_D(x)||^2 <= 2 (f_D(x^0) - inf f_D) / (gamma T); f need only be smooth, and a mu that is not
    known counts as 0. Where f_D is strongly convex, and p >= mu/L, f_D(x^k) - f_D* + (gamma / (2 (p - gamma mu)))
    ||h^k - grad f_D(x^k)||^2 falls as (1 - gamma mu)^k in expectation; where p < mu/L, with gamma <=
    min(1/(L + S sqrt(2 (1 - p)/p)), p/(2 mu)). 2311.16086; Li, Bao, Zhang, Richtarik, "PAGE", ICML 2021.

    >>> import numpy as np, compress
    >>> f_D = Sketched(compress.Quadratic.random(n=4, d=20, mu=1, L=10), compress.RandK(0.5, wire="float64"))
    >>> trace = compress.run(SPAGE.theoretical(f_D), f_D, compress.Local(4), np.ones(20), steps=5000, until=1e-12)
    >>> trace.reason
    'error 1e-12 reached'
    """

    gamma: float
    p: float

    convex = False

    def __post_init__(self):
        checked(self, gamma="step", p="share")

    @classmethod
    def theoretical(cls, problem, p: float | None = None) -> SPAGE:
        """gamma at its limit; p = 1/d where none is given."""
        d = _with_gradients(cls, problem).d
        p = parameter(cls, "p", 1 / d if p is None else p, "share")
        return cls(cls._limit(problem, p), p)

    @classmethod
    def _limit(cls, problem, p):
        covered(cls, problem.base)
        sketch, n, d, L = problem.sketch, problem.n, problem.d, problem.L
        try:
            mu = problem.mu
        except NotImplementedError:  # which the theorem of smooth f does not ask for
            mu = 0.0
        S = math.sqrt(sketch.L_S_max(d) * sketch.L_D(d) * np.mean(np.square(problem.base.L_i)) / n)
        if p * L >= mu:
            return 1 / (L + S * math.sqrt((1 - p) / p))
        return min(1 / (L + S * math.sqrt(2 * (1 - p) / p)), p / (2 * mu))

    def limits(self, problem):
        return {"gamma": self._limit(_with_gradients(self, problem), self.p)}

    def bound(self, problem, x0, k):
        """What E ||x^k - x_D*||^2 is at most, for step numbers k: (2/mu) (1 - gamma mu)^k (f_D(x^0) - f_D*).
        Raises ValueError for gamma above `limits`, mu = 0."""
        proven(self, problem, problem)
        gap = problem.value(np.asarray(x0, np.float64)) - problem.value(problem.x_star)
        return 2 / problem.mu * (1 - self.gamma * problem.mu) ** np.asarray(k) * gap

    def init(self, problem, comm, x0) -> EstimatorState:
        x = self._on_server(_with_gradients(self, problem), comm, x0)
        estimate = np.empty_like(x)
        whole_gradient(comm, problem, x, out=estimate)
        return EstimatorState(x, estimate, comm.n * problem.evaluations, [np.empty_like(x) for _ in range(2)])

    def step(self, problem, comm, state, key):
        x, h, (before, g) = state.x, state.estimate, state.scratch
        before[...] = x
        x -= np.multiply(h, self.gamma, out=g)
        if coin(key, self.p):
            whole_gradient(comm, problem, x, out=h)
            return state._replace(oracle=state.oracle + comm.n * problem.evaluations)
        self._differences(problem, comm, [x, before], key, out=g)
        h += g
        return state._replace(oracle=state.oracle + 2 * comm.n)
