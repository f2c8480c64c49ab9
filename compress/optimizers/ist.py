"""Independent subnetwork training: every worker trains a part of the model that it alone holds in that round.

Shulgin, Richtarik, "Towards a Better Theoretical Understanding of Independent Subnetwork Training", ICML 2024,
arXiv 2306.16484. Sketches are those of `compress.sketches`, server and messages those of `compress.optimizers.mast`.

Design note
-----------
A. IST follows the gradient of f_D (`Sketched`) with v = 0 and is judged by f. For a Quadratic f_D is one too:
   x+ = x - gamma (B x - c), B = (1/n) sum_i C_i A_i C_i, c = (1/n) sum_i C_i b_i, so that the mean iterate is that of
   gradient descent on f_D and goes to its minimiser x_infinity = (E B)^-1 E c, not to x*: the bias h = x* - x_infinity.
B. With PermK(n), E B = n (r Abar + (1 - r) Diag(Abar)), r = (d/n - 1)/(d - 1) where n divides d: a Tikhonov term that
   grows with n. PermK needs no padding where n does not divide d: its sets then differ by one.
C. The paper calls h irreducible. It is for v = 0: `ShiftedIST` moves v to x, and has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..compressor import positive_int, settle
from ..problems import EPS, Quadratic
from ..sketches import Sketch
from ..sparsify import PermK
from .mast import (
    DSGD,
    Sketched,
    SketchedState,
    from_server,
    gradient_around,
    on_server,
    proven,
    sketched_round,
    whole_gradient,
)
from .method import Method, checked, coin, covered, parameter


def jacobi(problem: Quadratic) -> Quadratic:
    """The problem in the coordinates D^1/2 x, D = Diag(Abar): D^-1/2 A_i D^-1/2 and D^-1/2 b_i.

    Homogeneous preconditioning (2306.16484, section 5.1): where all A_i are the same, their diagonal becomes 1, B = n I
    for Perm-1, and IST with gamma = 1/n is where it ends after one step. Raises ValueError for a zero on the diagonal.

    >>> import numpy as np
    >>> jacobi(Quadratic(np.array([[[4.0, 1.0], [1.0, 1.0]]]), np.ones((1, 2)))).A[0].tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    root = np.sqrt(_diagonals(problem).mean(axis=0))
    A = problem.A / (np.outer(root, root) if problem.A.ndim == 3 else root**2)
    return Quadratic(A, problem.b / root)


def scaled_permutation(problem: Quadratic, wire: str = "float32") -> Sketch:
    """Scaled Perm-1: C_i = sqrt(n) [D_i^-1/2]_jj e_j e_j', j the coordinate of worker i, D_i = Diag(A_i).

    Heterogeneous preconditioning (2306.16484, section 5.2, D_i where the text prints L_i), for n = d: B = I surely, so
    that IST with gamma = 1 minimises f_D in one step where all b_i are 0, and x_infinity =
    (1/sqrt n) (1/n) sum_i D_i^-1/2 b_i. It is biased: E C_i = n^-1/2 D_i^-1/2. Raises ValueError where n is not d.

    >>> problem = Quadratic.random(n=5, d=5, mu=1, L=10)
    >>> scaled_permutation(problem).unbiased(5)
    False
    """
    if problem.n != problem.d:
        raise ValueError(f"scaled Perm-1 gives every worker one coordinate: n = {problem.n} must be d = {problem.d}")
    return Sketch(PermK(problem.n, wire), np.sqrt(problem.n / _diagonals(problem)))


def _diagonals(problem) -> np.ndarray:
    """(n, d): the diagonals of the A_i, all positive."""
    if not isinstance(problem, Quadratic):
        raise TypeError(f"preconditioning is known for a Quadratic, got {problem!r}")
    diagonals = problem.A if problem.A.ndim == 2 else np.diagonal(problem.A, axis1=1, axis2=2)
    if not (diagonals > 0).all():
        i, j = np.argwhere(~(diagonals > 0))[0]
        raise ValueError(f"A[{i}] has {diagonals[i, j]:.6g} on its diagonal, at {j}: it must be positive")
    return diagonals


@dataclass(frozen=True)
class IST(Method):
    """Independent subnetwork training: x <- x - gamma (1/n) sum_i C_i grad f_i(C_i x), C_i the sketch of worker i.

    With local_steps > 1 the worker goes on from where it is, w <- w - gamma C_i^2 grad f_i(w) / n from w = C_i x, and
    answers with the sum of its gradients: with disjoint sets, all workers' coordinates are then put together.

    With one local step, convex f_i and gamma <= 1/calL (`Sketched.expected_smoothness`): E ||x^k - x_infinity||^2 as
    `DSGD.bound` says, and E ||x^k - x*||^2 <= (its root + ||h||)^2. calL is 1 for `scaled_permutation`, and n for
    Perm-1 after `jacobi` where workers are alike, the paper's theta; there also E ||x^k - x*||_L^2 <=
    (1 - gamma lambda_min(L^-1/2 W L^-1/2))^k ||x^0 - x*||_L^2 where all b_i are 0, L = Abar, W = (L E B + E B L)/2.
    2306.16484, theorems 1 and 2; B and Abar as in the notes of compress.optimizers.ist.

    sketch: a Sketch, or a sparsifier such as PermK(n).

    >>> import numpy as np, compress
    >>> f = compress.Quadratic(compress.Quadratic.random(n=6, d=6, mu=1, L=10).A, np.zeros((6, 6)))
    >>> method = IST.theoretical(f, scaled_permutation(f, wire="float64"))
    >>> trace = compress.run(method, f, compress.Local(6), np.ones(6), steps=1)
    >>> bool(trace.error[1] < 1e-25), int(trace.bits_up[1]), int(trace.bits_down[1])
    (True, 384, 384)
    """

    sketch: Sketch
    gamma: float
    local_steps: int = 1

    def __post_init__(self):
        settle(self, "sketch", Sketch.of(self.sketch))
        settle(self, "local_steps", positive_int(self.local_steps, "local_steps"))
        checked(self, gamma="step")

    @classmethod
    def theoretical(cls, problem, sketch) -> IST:
        """gamma = 1/calL."""
        return cls(sketch, cls._limit(problem, sketch))

    @classmethod
    def _limit(cls, problem, sketch):
        covered(cls, problem)
        return 1 / Sketched(problem, sketch).expected_smoothness

    def limits(self, problem):
        if self.local_steps > 1:
            raise ValueError(f"IST has a theorem for one local step, and local_steps = {self.local_steps}")
        return {"gamma": self._limit(problem, self.sketch)}

    def x_infinity(self, problem) -> np.ndarray:
        """(d,): what the mean iterate goes to, for a Quadratic or a Ridge: (E B)^-1 E c, the minimiser of f_D."""
        return Sketched(problem, self.sketch).x_star

    def bias(self, problem) -> np.ndarray:
        """(d,): h = x* - x_infinity."""
        return problem.x_star - self.x_infinity(problem)

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k. Raises ValueError for more than one local step, for
        gamma above `limits`, and where f_D has mu = 0."""
        f_D = Sketched(problem, self.sketch)
        proven(self, problem, f_D)
        noisy = DSGD(self.gamma).bound(f_D, x0, k)
        return (np.sqrt(noisy) + np.linalg.norm(self.bias(problem))) ** 2

    def init(self, problem, comm, x0) -> SketchedState:
        Sketched(problem, self.sketch)  # which refuses sketches that do not suit
        x = on_server(comm, self._start(problem, comm.n, x0))
        return SketchedState(x, 0, np.empty_like(x))

    def iterate(self, comm, state):
        return from_server(comm, state.x)

    def step(self, problem, comm, state, key):
        x, g, d = state.x, state.scratch, problem.d

        def answer(i, indices, w):
            total = problem.partial_gradient(i, indices, w)
            if self.local_steps > 1:
                rate = (self.gamma / comm.n * np.square(self.sketch.at(indices, d, i))).astype(w.dtype)
                last = total
                for _ in range(self.local_steps - 1):
                    w = w - rate * last
                    last = problem.partial_gradient(i, indices, w)
                    total = total + last
            return total

        sketched_round(comm, self.sketch, [x], None, key, answer, d, out=g)
        g *= self.gamma
        x -= g
        return state._replace(oracle=state.oracle + self.local_steps * comm.n)


class ShiftedState(NamedTuple):
    """reference: v, on every process. gradients: grad f_i(v) of the workers hosted here; full: of f, on process 0."""

    x: np.ndarray
    reference: np.ndarray
    gradients: list[np.ndarray]
    full: np.ndarray
    oracle: int
    scratch: np.ndarray


@dataclass(frozen=True)
class ShiftedIST(Method):
    """IST around a shift that follows x: no bias, and no noise in the end.

        g = grad f(v) + (1/n) sum_i C_i (grad f_i(v + C_i (x - v)) - grad f_i(v)),  x+ = x - gamma g;
        with probability p  v+ = x+

    x* is a fixed point, whatever the workers' data. For a Quadratic or a Ridge with convex f_i, let P = E B, of largest
    eigenvalue L_P, and c > 0 the largest number with P - Abar >= c P (P >= Abar by Jensen's inequality, where
    E C_i = I). With gamma <= min(1/(2 L_P), sqrt(p c / (4 L_P calL)))

        E ||x^k - x*||^2 <= (1 - rho)^k ||x^0 - x*||^2_Abar / mu,  rho = min(gamma mu / 2, p c mu / (8 L_P + 4 mu))

    Not in the paper. Proof: let y = x - v and Q(x, v) = ||x - x*||^2_Abar / 2 + ||y||^2_M / 2, M = P - Abar. The mean
    of g is G = grad_x Q, and g - G = (B - P) y, with E ||(B - P) y||^2 <= calL ||y||^2_P, so that a step
    adds at most -gamma (1 - gamma L_P / 2) ||G||^2 + gamma^2 L_P calL ||y||^2_P / 2 to Q, and v+ = x+ takes
    ||x+ - v||^2_M / 2 off, in the mean at least ||y||^2_M / 4 - gamma^2 L_P ||G||^2 / 2, with probability p. What stays
    is -(gamma/2) ||G||^2 - (p c / 8) ||y||^2_P, and Q <= ||G||^2 / mu + (L_P / mu + 1/2) ||y||^2_P since
    Abar (x - x*) = G - M y. Of other problems the same is measured and not proven: ValueError from `limits`.

    A new v goes to all workers in full, who keep it and grad f_i(v): what they are sent and train is
    d/n numbers, what they hold is not.

    sketch: unbiased, a Sketch or a sparsifier such as PermK(n); ValueError for another.

    >>> import numpy as np, compress
    >>> f = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = ShiftedIST.theoretical(f, compress.PermK(4, wire="float64"))
    >>> trace = compress.run(method, f, compress.Local(4), np.ones(20), steps=20_000, until=1e-12, every=10)
    >>> trace.reason
    'error 1e-12 reached'
    """

    sketch: Sketch
    gamma: float
    p: float

    def __post_init__(self):
        settle(self, "sketch", Sketch.of(self.sketch))
        checked(self, gamma="step", p="share")

    @classmethod
    def theoretical(cls, problem, sketch, p: float | None = None) -> ShiftedIST:
        """gamma at its limit; p = 1/n where none is given: new shifts then cost d values a step each way, as PermK's
        sketches do, but in the dtype of x and not that of the wire."""
        p = parameter(cls, "p", 1 / problem.n if p is None else p, "share")
        return cls(sketch, cls._constants(problem, Sketch.of(sketch), p)[0], p)

    @classmethod
    def _constants(cls, problem, sketch, p):
        """(the largest gamma, c, L_P)."""
        covered(cls, problem, strongly=True)
        try:
            problem = Quadratic.of(problem)
        except (TypeError, ValueError) as error:
            raise ValueError(f"ShiftedIST: its theorem is about quadratics: {error}; give gamma") from None
        sketch.check_unbiased(problem.d, "ShiftedIST")
        f_D, zero = Sketched(problem, sketch), np.zeros(problem.d)
        A, P = (sum(f.hessian(i, zero) for i in range(f.n)) / f.n for f in (problem, f_D))
        if A.ndim == 1:
            share = np.max(A / P)
        else:
            root = np.linalg.inv(np.linalg.cholesky(P))
            share = np.linalg.eigvalsh(root @ A @ root.T)[-1]
        c, L_P = 1 - float(share), f_D.L
        if not c > EPS * problem.d:
            raise ValueError(f"ShiftedIST: its theorem needs c > 0, got {c:.3g} of {sketch!r} on {problem!r}")
        return min(1 / (2 * L_P), math.sqrt(p * c / (4 * L_P * f_D.expected_smoothness))), c, L_P

    def limits(self, problem):
        return {"gamma": self._constants(problem, self.sketch, self.p)[0]}

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k. Raises ValueError for gamma above `limits`, and for a
        problem that the theorem does not cover."""
        proven(self, problem, problem)
        _, c, L_P = self._constants(problem, self.sketch, self.p)
        rho = min(self.gamma * problem.mu / 2, self.p * c * problem.mu / (8 * L_P + 4 * problem.mu))
        gap = problem.value(np.asarray(x0, np.float64)) - problem.value(problem.x_star)
        return (1 - rho) ** np.asarray(k) * 2 * gap / problem.mu

    def init(self, problem, comm, x0) -> ShiftedState:
        Sketched(problem, self.sketch)  # which refuses sketches that do not suit
        self.sketch.check_unbiased(problem.d, "ShiftedIST")
        x = on_server(comm, self._start(problem, comm.n, x0))
        full = np.empty_like(x)
        v, gradients = whole_gradient(comm, problem, x, out=full)
        return ShiftedState(x, v, gradients, full, comm.n, np.empty_like(x))

    def iterate(self, comm, state):
        return from_server(comm, state.x)

    def step(self, problem, comm, state, key):
        x, v, full, g = state.x, state.reference, state.full, state.scratch
        known = dict(zip(comm.workers, state.gradients, strict=True))

        def answer(i, indices, y):
            return gradient_around(v, problem, i, indices, y) - known[i][indices].astype(y.dtype)

        sketched_round(comm, self.sketch, [x], v, key, answer, problem.d, out=g)
        g += full
        g *= self.gamma
        x -= g
        state = state._replace(oracle=state.oracle + comm.n)
        if coin(key, self.p):
            v, gradients = whole_gradient(comm, problem, x, out=full)
            state = state._replace(reference=v, gradients=gradients, oracle=state.oracle + comm.n)
        return state
