"""MAST: f_D and its minimiser, methods against their algorithm boxes and bounds, what workers are sent and hold.

Run as a script, this file is the job that MPI launches.
"""

import itertools
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import compress
from compress.comm import HEADER, Communicator, Ledger
from compress.games import BilinearGame
from compress.optimizers.ist import IST
from compress.optimizers.mast import DSGD, LSVRDSG, SPAGE, Sketched
from compress.sketches import Cyclic, Sketch

N, D = 4, 12
KEY = compress.Key(3)
WIRE = "float64"
RNG = np.random.default_rng(0)
V = RNG.standard_normal(D)
ROWS, LABELS = RNG.standard_normal((40, D)), np.sign(RNG.standard_normal(40))


def quadratic():
    return compress.Quadratic.random(n=N, d=D, mu=1, L=5, seed=1)


def logistic(workers=N):
    return compress.Logistic(ROWS, LABELS, lam=0.1, workers=workers)


class Plain(compress.Problem):
    """A problem of which nothing is known but values and gradients."""

    def __init__(self, problem):
        self.problem, self.n, self.d = problem, problem.n, problem.d

    def value(self, x):
        return self.problem.value(x)

    def gradient(self, i, x, out=None):
        return self.problem.gradient(i, x, out)


SKETCHES = {
    "Rand-K": compress.RandK(3, WIRE),
    "Perm-K": compress.PermK(N, WIRE),
    "Bernoulli": compress.Bernoulli(0.4, WIRE),
    "cyclic": Cyclic(compress.RandK(5, WIRE)),
}
PROBLEMS = {
    "quadratic, Rand-K": lambda: Sketched(quadratic(), SKETCHES["Rand-K"], V),
    "quadratic, Perm-K": lambda: Sketched(quadratic(), SKETCHES["Perm-K"]),
    "quadratic, Bernoulli": lambda: Sketched(quadratic(), SKETCHES["Bernoulli"], V),
    "logistic, cyclic": lambda: Sketched(logistic(), SKETCHES["cyclic"], V),
    "ridge of one worker, cyclic": lambda: Sketched(
        compress.Ridge(ROWS, LABELS, lam=0.1, workers=1), SKETCHES["cyclic"]
    ),
}


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]()


def methods(problem):
    return [DSGD.theoretical(problem), LSVRDSG.theoretical(problem, p=0.2), SPAGE.theoretical(problem, p=0.2)]


def sketched(problem, x, key):
    """G(x), with dense vectors."""
    v = np.zeros(problem.d) if problem.v is None else problem.v
    total = 0
    for i in range(problem.n):
        S = problem.sketch(np.ones(problem.d), key.worker(i))
        total += S * problem.base.gradient(i, v + S * (x - v))
    return total / problem.n


def boxes(method, problem, x, steps):
    """The algorithm boxes, written with dense vectors: the iterates after each step."""
    name, w, full = type(method).__name__, x, problem.full_gradient(x)
    for k in range(steps):
        key = KEY.at(k)
        fell = key.fold(0x636F696E).word < getattr(method, "p", 0) * 2**64
        if name == "DSGD":
            x = x - method.gamma * sketched(problem, x, key)
        elif name == "LSVRDSG":
            g = sketched(problem, x, key) - sketched(problem, w, key) + full
            if fell:
                w, full = x, problem.full_gradient(x)
            x = x - method.gamma * g
        else:
            new = x - method.gamma * full
            if fell:
                full = problem.full_gradient(new)
            else:
                full = full + sketched(problem, new, key) - sketched(problem, x, key)
            x = new
        yield x


def test_steps_are_those_of_the_algorithm_box(problem):
    for method in methods(problem):
        comm, x0 = compress.Local(problem.n), np.linspace(-1, 2, D)
        state = method.init(problem, comm, x0)
        for k, expected in enumerate(boxes(method, problem, x0, 25)):
            state = method.step(problem, comm, state, KEY.at(k))
            np.testing.assert_allclose(state.x, expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_array_equal(x0, np.linspace(-1, 2, D))


def test_every_bit_is_counted(problem):
    n, sketch = problem.n, problem.sketch
    for method in methods(problem):
        comm, points = compress.Local(n), 1 if isinstance(method, DSGD) else 2
        state = method.init(problem, comm, np.ones(D))
        up = down = 0 if points == 1 else 64 * D * n
        oracle = 0 if points == 1 else n * problem.evaluations
        for k in range(20):
            key = KEY.at(k)
            state = method.step(problem, comm, state, key)
            kept = sum(sketch.indices(D, key.worker(i)).size for i in range(n))
            fell = points == 2 and key.fold(0x636F696E).word < method.p * 2**64
            whole = fell and isinstance(method, SPAGE)  # which then sends no sketches
            up, down = up + 64 * kept * (not whole), down + 64 * points * kept * (not whole)
            oracle += n * points * (not whole) + n * problem.evaluations * fell
            if fell:
                up, down = up + 64 * D * n, down + 64 * D * n
        assert (comm.ledger.bits_up, comm.ledger.bits_down) == (up, down)
        assert state.oracle == oracle


def test_the_mean_of_20_runs_keeps_to_its_bound(problem):
    steps, x0, comm = 60, np.ones(D), compress.Local(problem.n)
    for method in methods(problem):
        squares = np.empty((20, steps + 1))
        for run in range(20):
            state = method.init(problem, comm, x0)
            squares[run, 0] = np.sum((x0 - problem.x_star) ** 2)
            for k in range(steps):
                state = method.step(problem, comm, state, compress.Key(run).at(k))
                squares[run, k + 1] = np.sum((state.x - problem.x_star) ** 2)
        bound = method.bound(problem, x0, np.arange(steps + 1))
        assert np.all(squares.mean(axis=0) <= bound * (1 + 1e-12))  # equal at k = 0


def test_variance_reduction_is_exact_and_dsgd_is_not(problem):
    for method in methods(problem):
        comm, noisy = compress.Local(problem.n), isinstance(method, DSGD)
        steps = 1000 if noisy else 10_000
        trace = compress.run(method, problem, comm, np.ones(D), steps=steps, until=1e-12, every=10)
        assert (trace.error[-1] <= 1e-12) == (not noisy), trace.reason


def test_f_d_is_the_mean_over_all_sketches():
    """The closed form of a Quadratic, and the mean over the pool, against the definition."""
    sketch, x = SKETCHES["cyclic"], np.linspace(-1, 1, D)
    for base in (quadratic(), logistic()):
        f_D = Sketched(base, sketch, V)
        diagonals = [np.isin(np.arange(D), kept) * sketch.scale(D) for kept in sketch.pool(D)]
        points = [V + S * (x - V) for S in diagonals]
        assert np.isclose(f_D.value(x), np.mean([base.value(point) for point in points]), rtol=1e-12)
        for i in (0, N - 1):
            expected = np.mean([S * base.gradient(i, p) for S, p in zip(diagonals, points, strict=True)], axis=0)
            np.testing.assert_allclose(f_D.gradient(i, x), expected, rtol=1e-10, atol=1e-12)
        gradients = np.mean([f_D.gradient(i, x) for i in range(N)], axis=0)
        np.testing.assert_allclose(f_D.full_gradient(x), gradients, rtol=1e-10, atol=1e-12)
        assert np.linalg.norm(f_D.full_gradient(f_D.x_star)) <= 1e-12 * f_D.L * np.linalg.norm(f_D.x_star)
        assert f_D.L <= sketch.L_D(D) * base.L * (1 + 1e-12) and f_D.mu >= sketch.mu_D(D) * base.mu * (1 - 1e-12)


def test_a_diagonal_quadratic_is_sketched_on_its_diagonal():
    A, b = np.random.default_rng(1).uniform(1, 5, (N, D)), np.random.default_rng(2).standard_normal((N, D))
    one, whole = (Sketched(compress.Quadratic(M, b), SKETCHES["Rand-K"], V) for M in (A, [np.diag(a) for a in A]))
    np.testing.assert_allclose(one.x_star, whole.x_star, rtol=1e-12)
    assert np.isclose(one.value(V), whole.value(V)) and np.isclose(one.A, whole.A)


@pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES)
def test_theorem_1_bounds_the_minimum(sketch):
    f_D = Sketched(quadratic(), sketch, V)
    low, high = f_D.minimum_bounds()
    assert f_D.base.value(f_D.base.x_star) <= low <= f_D.value(f_D.x_star) <= high


def test_a_shift_at_the_minimiser_leaves_no_bias_and_no_noise():
    base = logistic(workers=1)
    f_D = Sketched(base, SKETCHES["cyclic"], base.x_star)
    np.testing.assert_allclose(f_D.x_star, base.x_star, rtol=1e-8)
    assert np.isclose(f_D.value(base.x_star), base.value(base.x_star), rtol=1e-14)
    method, comm = DSGD.theoretical(f_D), compress.Local(1)
    state = method.init(f_D, comm, base.x_star)
    for k in range(50):
        state = method.step(f_D, comm, state, KEY.at(k))
    np.testing.assert_allclose(state.x, base.x_star, atol=1e-13)


def test_expected_smoothness_holds(problem):
    """E ||G(x) - G(y)||^2 <= 2 calL (Bregman divergence of f_D), within 4 standard errors."""
    rng = np.random.default_rng(4)
    for scale in (0.01, 3.0):
        x, y = problem.x_star + scale * rng.standard_normal((2, D))
        draws = [np.sum((sketched(problem, x, KEY.at(k)) - sketched(problem, y, KEY.at(k))) ** 2) for k in range(150)]
        divergence = problem.value(x) - problem.value(y) - problem.full_gradient(y) @ (x - y)
        error = np.std(draws) / np.sqrt(len(draws))
        assert np.mean(draws) - 4 * error <= 2 * problem.expected_smoothness * divergence


def test_noise_and_infimum_are_those_of_their_definitions():
    f_D = PROBLEMS["logistic, cyclic"]()
    draws = np.array([sketched(f_D, f_D.x_star, KEY.at(k)) for k in range(3000)])
    squares = np.sum(draws**2, axis=1)
    assert abs(squares.mean() - f_D.noise) < 4 * squares.std() / np.sqrt(len(squares))
    f_D = PROBLEMS["quadratic, Perm-K"]()
    minima = [-b @ np.linalg.lstsq(A, b, rcond=None)[0] / 2 for A, b in zip(f_D.base.A, f_D.base.b, strict=True)]
    assert np.isclose(f_D.infimum, np.mean(minima))


def test_inexact_gradients_keep_to_their_bound_and_to_the_box():
    base = compress.Logistic(ROWS, LABELS, lam=0.05)
    f_D, comm, x0 = Sketched(base, SKETCHES["cyclic"], V), compress.Local(1), np.ones(D)
    method = DSGD.theoretical(f_D, compress.Nice(40, 8))
    squares = np.empty((20, 61))
    for run in range(20):
        state, x = method.init(f_D, comm, x0), x0
        squares[run, 0] = np.sum((x0 - f_D.x_star) ** 2)
        for k in range(60):
            key = compress.Key(run).at(k)
            state = method.step(f_D, comm, state, key)
            squares[run, k + 1] = np.sum((state.x - f_D.x_star) ** 2)
            if run == 0:
                S = f_D.sketch(np.ones(D), key.worker(0))
                drawn = method.sampling.draw(np.random.Generator(np.random.Philox(key=key.worker(0).word)))
                x = x - method.gamma * S * base.batch_gradient(*drawn, V + S * (x - V))
                np.testing.assert_allclose(state.x, x, rtol=1e-9, atol=1e-12)
    assert np.all(squares.mean(axis=0) <= method.bound(f_D, x0, np.arange(61)) * (1 + 1e-12))
    assert state.oracle == 480 and comm.ledger.bits_down == 20 * 60 * 5 * 64


def test_partial_gradients_are_coordinates_of_gradients():
    y, indices = np.array([1.0, -2.0, 0.5]), np.array([7, 0, 3], np.uint32)
    point = np.zeros(D)
    point[indices] = y
    diagonal = compress.Quadratic(RNG.uniform(1, 2, (N, D)), RNG.standard_normal((N, D)))
    for base in (quadratic(), diagonal, logistic(), compress.Ridge(ROWS, LABELS, lam=0.1), Plain(quadratic())):
        for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
            partial = base.partial_gradient(2, indices, y.astype(dtype))
            assert partial.dtype == dtype
            np.testing.assert_allclose(partial, base.gradient(2, point)[indices], rtol=tolerance, atol=tolerance)


def test_float32_runs_in_float32(problem):
    for method in methods(problem):
        comm = compress.Local(problem.n)
        state = method.init(problem, comm, np.ones(D, np.float32))
        for k in range(5):
            state = method.step(problem, comm, state, KEY.at(k))
        for value in state:
            for array in value if isinstance(value, list) else [value]:
                assert isinstance(array, int) or array.dtype == np.float32


class Worker(Communicator):
    """One worker that is not on the server's process: it is given messages that were recorded, and its answers kept."""

    def __init__(self, n, worker, recorded):
        super().__init__(n, range(worker, worker + 1), process=1, processes=2)
        self.recorded, self.answers = recorded, []

    def _scatter(self, messages):
        assert messages is None
        return [self.recorded.pop(0)[self.workers.start]], [0] * self.n

    def _collect(self, messages):
        self.answers.append(messages[0])
        return None, [0] * self.n

    def _gather(self, messages, lengths=None, graph=None):
        raise AssertionError("a worker must not be sent what others send")

    _exchange = _swap = _gather

    def agree(self, value):
        raise AssertionError("nothing is agreed on in a step")


class Recording(compress.Local):
    def __init__(self, n):
        super().__init__(n)
        self.down, self.up = [], []

    def scatter(self, messages):
        self.down.append(super().scatter(messages))
        return self.down[-1]

    def gather(self, messages):
        self.up.append(super().gather(messages))
        return self.up[-1]


@pytest.mark.parametrize("n", [10, 40])
def test_a_worker_holds_no_more_than_its_share(n):
    """A worker's process, apart from the server's: memory of O(d/n), and the very answers of Local."""
    d, steps = 100_000, 3
    rng = np.random.default_rng(0)
    base = compress.Quadratic(rng.uniform(1, 2, (n, d)), rng.standard_normal((n, d)))
    sketch = Sketch(compress.PermK(n))
    cases = ((IST(sketch, 1e-3), base), (DSGD(1e-3), Sketched(base, sketch)))
    for method, problem in cases:
        server = Recording(n)
        step = type(method).step  # without init, which computes limits
        x = np.ones(d)
        state = IST(sketch, 1e-3).init(Plain(base), server, x)
        for k in range(steps):
            state = step(method, problem, server, state, KEY.at(k))
        worker = Worker(n, 3, server.down)
        mine = state._replace(x=x[:0].copy(), scratch=x[:0].copy())
        tracemalloc.start()
        for k in range(steps):
            mine = step(method, problem, worker, mine, KEY.at(k))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert mine.x.size == 0
        assert all(answer == up[3] for answer, up in zip(worker.answers, server.up, strict=True))
        # indices, y, what the gradient gathers and makes of them, and the answers that are kept here
        assert peak < 8 * d / n * (7 + steps) + 20_000


def test_scales_of_each_worker_have_constants_of_each():
    """Where no closed form gives them: L and mu of f_D of Ridge problems that are not known to be."""
    scales = np.random.default_rng(5).uniform(0.2, 3, (N, D))
    ridge = compress.Ridge(ROWS, LABELS, lam=0.1, workers=N)
    base, sketch = Plain(ridge), Sketch(SKETCHES["Perm-K"], scales)
    base.L, base.mu, base.L_i, base.mu_i = ridge.L, ridge.mu, ridge.L_i, ridge.mu_i
    f_D, whole = Sketched(base, sketch), Sketched(ridge, sketch)
    assert f_D.L >= whole.L and f_D.mu <= whole.mu
    assert np.all(f_D.L_i >= whole.L_i * (1 - 1e-12)) and np.all(f_D.mu_i <= whole.mu_i * (1 + 1e-12))
    np.testing.assert_allclose(f_D.L_i, [base.L_i[i] * f_D.sketch.L_D(D, i) for i in range(N)])
    assert np.isclose(f_D.mu, np.mean(f_D.mu_i)) and f_D.mu > 0
    with pytest.raises(ValueError, match=r"has one sketch for all components, the scales of .* are \(4, 12\)"):
        DSGD.theoretical(f_D, compress.Nice(N, 2))
    with pytest.raises(ValueError, match="has one sketch for all components"):
        DSGD(1e-3, compress.Nice(N, 2)).init(f_D, compress.Local(1), np.ones(D))


def test_s_page_has_the_constant_of_its_variance():
    """E ||G(x) - G(y) - (grad f_D(x) - grad f_D(y))||^2 <= S^2 ||x - y||^2, and gamma = 1/(L + S sqrt((1 - p)/p))."""
    for sketch in (SKETCHES["Rand-K"], SKETCHES["Perm-K"], SKETCHES["Bernoulli"]):
        f_D = Sketched(compress.Quadratic(np.tile(np.linspace(0.5, 2, D), (N, 1)), np.zeros((N, D))), sketch)
        S2 = f_D.sketch.L_S_max(D) * f_D.sketch.L_D(D) * 4 / N
        assert np.isclose(SPAGE.theoretical(f_D, 0.9).gamma, 1 / (f_D.L + np.sqrt(S2 / 9)))
        x, y = np.random.default_rng(2).standard_normal((2, D))
        draws = [sketched(f_D, x, KEY.at(k)) - sketched(f_D, y, KEY.at(k)) for k in range(500)]
        squares = np.sum((np.array(draws) - f_D.full_gradient(x) + f_D.full_gradient(y)) ** 2, axis=1)
        assert squares.mean() - 4 * squares.std() / np.sqrt(500) <= S2 * np.sum((x - y) ** 2)


# Constants, by hand and by expectations over every round


def rounds(sketch, n, d):
    """All rounds of a sketch, equally likely: the diagonals of n workers, (n, d) each."""
    sketch = Sketch.of(sketch)
    if sketch.disjoint:
        sets = (np.split(np.array(order), n) for order in itertools.permutations(range(d)))
    else:
        pool = sketch.pool(d) or itertools.combinations(range(d), sketch.sets.k)
        sets = itertools.product(pool, repeat=n)
    return np.array([[np.isin(np.arange(d), kept) * sketch.scale(d) for kept in drawn] for drawn in sets])


def drawn(f_D, x):
    """G(x) in every round, a row each."""
    v = f_D._v
    return np.array(
        [
            np.mean([s * f_D.base.gradient(i, v + s * (x - v)) for i, s in enumerate(S)], axis=0)
            for S in rounds(f_D.sketch, f_D.n, f_D.d)
        ]
    )


def squares(rows):
    return np.mean(np.sum(rows**2, axis=-1))


def spheres(n, d, L=3.0):
    """f_i = L ||x||^2 / 2, for which all inequalities about a sketch are equalities."""
    return compress.Quadratic(np.full((n, d), L), np.zeros((n, d)))


S1, S2 = compress.RandK(2, WIRE), compress.RandK(3, WIRE)  # of 4 coordinates: s = 2, 4/3
SPHERES = {  # sketch, n; calL / L, and what it is exactly
    "one worker": (S1, 1, 4, 4),
    "disjoint": (compress.PermK(2, WIRE), 2, 2, 2),
    "disjoint, more": (compress.PermK(4, WIRE), 4, 4, 4),
    "independent": (S1, 3, 2 + 4 / 3, 2 * 2 / 3 + 4 / 3),
    "independent, cyclic": (Cyclic(S1), 3, 2 + 4 / 3, 2 * 2 / 3 + 4 / 3),
    "independent, where Jensen's inequality is better": (S2, 2, 16 / 9, 4 / 3 / 2 + 16 / 9 / 2),
}


@pytest.mark.parametrize("sketch, n, known, exact", SPHERES.values(), ids=SPHERES)
def test_expected_smoothness_is_met_by_spheres(sketch, n, known, exact):
    f_D, x = Sketched(spheres(n, 4), sketch), np.array([1.0, -2.0, 3.0, 0.5])
    assert np.isclose(f_D.expected_smoothness, 3 * known) and exact <= known
    assert np.isclose(squares(drawn(f_D, x)), 2 * 3 * exact * f_D.value(x))


def test_gammas_are_those_computed_by_hand():
    x = np.ones(4)
    one = Sketched(spheres(1, 4), S1)  # L = mu = 6, calL = 12
    assert np.isclose(DSGD.theoretical(one).gamma, 1 / 12)
    assert np.isclose(LSVRDSG.theoretical(one).gamma, 1 / 72) and LSVRDSG.theoretical(one).p == 0.25
    assert np.isclose(LSVRDSG(1 / 72, 0.1).limits(one)["gamma"], 1 / 72)
    # gamma mu = 1/12: V falls by p/2 for p = 0.1, V^0 = (1 + 4 calL L gamma^2 / p) ||x^0||^2
    assert np.isclose(LSVRDSG(1 / 72, 0.1).bound(one, x, 3), 0.95**3 * (1 + 40 * 72 / 72**2) * 4)
    assert np.isclose(LSVRDSG(1 / 72, 1.0).bound(one, x, 3), (11 / 12) ** 3 * (1 + 4 * 72 / 72**2) * 4)
    base = compress.Quadratic([[1.0, 1.0, 1.0, 8.0]], np.zeros((1, 4)))
    f_D = Sketched(base, S1)  # L = 16, mu = 2, S^2 = 4 x 2 x 64 = 512
    assert np.isclose(SPAGE.theoretical(f_D, 1.0).gamma, 1 / 16)
    assert np.isclose(SPAGE.theoretical(f_D, 0.2).gamma, 1 / (16 + math.sqrt(512 * 4)))
    assert np.isclose(SPAGE.theoretical(f_D, 1 / 16).gamma, 1 / (16 + math.sqrt(512 * 30)))
    assert np.isclose(SPAGE.theoretical(f_D, 1e-3).gamma, 1e-3 / 4)
    assert np.isclose(SPAGE(0.01, 0.2).bound(f_D, x, 3), 0.98**3 * 11)  # (2 / mu) (f_D(x^0) - f_D*)
    several = Sketched(compress.Quadratic(np.tile(base.A, (4, 1)), np.zeros((4, 4))), S1)  # S^2 = 128
    assert np.isclose(SPAGE.theoretical(several, 0.2).gamma, 1 / (16 + math.sqrt(128 * 4)))


def test_floors_are_those_computed_by_hand():
    """The bound from x_D* on, by note C: of the gap with A/n, or A; of the noise; of a sampling."""
    A, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [3.0, 4.0]])
    # Rand-1 of 2: f_D has 2 A, its mean diag(4, 6); b mean (2, 2): x_D* = (1/2, 1/3), f_D* = -(1 + 2/3)/2;
    # inf f_i = -1/2 and -(3 + 4)/2, A = 4 x 4, calL = 6 + 16/2
    independent = Sketched(compress.Quadratic(A, b), compress.RandK(1, WIRE))
    gap = 2 - 5 / 6
    # PermK(2) of 2: the same f_D, calL = 16/2
    disjoint = Sketched(compress.Quadratic(A, b), compress.PermK(2, WIRE))
    for f_D, calL in ((independent, 14), (disjoint, 8)):
        method = DSGD.theoretical(f_D)
        np.testing.assert_allclose(f_D.x_star, [1 / 2, 1 / 3])
        assert np.isclose(method.gamma, 1 / calL)
        assert np.isclose(method.bound(f_D, f_D.x_star, 5), 2 / calL * 8 * gap / 4)
    # Rand-3 of 4, s = 4/3, two alike: calL = A = 16/9 L, so that no A/n is proven
    base = compress.Quadratic(np.full((2, 4), 3.0), np.ones((2, 4)))
    f_D = Sketched(base, S2)
    assert np.isclose(f_D.expected_smoothness, 16 / 3) and np.isclose(f_D.mu, 4)
    gap = -4 / 4 / 2 + 4 / 3 / 2  # -||b||^2 / (2 L), of f_D and of f_i
    assert np.isclose(DSGD(3 / 16).bound(f_D, f_D.x_star, 5), 2 * 3 / 16 * 16 / 3 * gap / 4)
    # listed sketches: the noise, at half the step
    f_D = Sketched(logistic(), SKETCHES["cyclic"])
    calL, noise = f_D.expected_smoothness, listed_noise(f_D)
    gap = f_D.value(f_D.x_star)  # infima are at least 0
    B = f_D.base.L_max * (D / 5) ** 2 / N
    assert noise < B * gap and calL < B * N
    assert np.isclose(DSGD(1 / calL).bound(f_D, f_D.x_star, 5), 2 / calL * B * gap / f_D.mu)
    assert np.isclose(DSGD(1 / (2 * calL)).bound(f_D, f_D.x_star, 5), noise / calL / f_D.mu)
    # one worker that draws one of both components: calL' = max L_i = 4, sigma^2 = sum_i ||grad f_i(x*)||^2 / 2
    f_D, sampling = Sketched(compress.Quadratic(A, b), compress.RandK(1, WIRE)), compress.Nice(2, 1)
    method, x = DSGD.theoretical(f_D, sampling), np.array([1.0, 2 / 3])
    sigma = np.mean(np.sum((A * x - b) ** 2, axis=1))
    gap = -5 / 6 + 5 / 3
    assert np.isclose(method.gamma, 1 / (2 * 4 * 4))
    assert np.isclose(method.bound(f_D, f_D.x_star, 5), 2 * method.gamma * 4 / 4 * (2 * 4 * gap + sigma))


def listed_noise(f_D):
    """E ||G(x_D*)||^2 of workers that are independent: the square of the mean, and the variances over n^2."""
    x, sketch, total = f_D.x_star, f_D.sketch, 0.0
    for i in range(f_D.n):
        masks = [np.isin(np.arange(f_D.d), kept) * sketch.scale(f_D.d) for kept in sketch.pool(f_D.d)]
        rows = np.array([s * f_D.base.gradient(i, s * x) for s in masks])
        total += squares(rows - rows.mean(axis=0))
    return total / f_D.n**2


def test_theorem_1_is_that_computed_by_hand():
    # diag(1, 4), b = (1, 4): x* = (1, 1), f* = -5/2; Rand-1: x_D* = x*/2
    f_D = Sketched(compress.Quadratic([[1.0, 4.0]], [[1.0, 4.0]]), compress.RandK(1))
    np.testing.assert_allclose(f_D.minimum_bounds(), (-2.5 + 1 / 2 * 1 / 2, -2.5 + 4 / 2 * 2))
    f_D = Sketched(f_D.base, compress.RandK(1), v=[1.0, 0.0])  # x_D* = (1, 1/2)
    np.testing.assert_allclose(f_D.minimum_bounds(), (-2.5 + 1 / 2 * 1 / 4, -2.5 + 4 / 2 * 1))


SMALL = {
    "cyclic, one worker": lambda: Sketched(small(1), Cyclic(S1), V[:4]),
    "cyclic, two workers": lambda: Sketched(small(2), Cyclic(S1)),
    "Perm-K": lambda: Sketched(small(2), compress.PermK(2, WIRE), V[:4]),
    "spheres": lambda: Sketched(spheres(1, 4), S1),
}


def small(n, d=4):
    rng = np.random.default_rng(6)
    roots = rng.standard_normal((n, d, d))
    return compress.Quadratic(roots @ roots.transpose(0, 2, 1) + 0.2 * np.eye(d), rng.standard_normal((n, d)))


def states(problem, count=6):
    """Pairs of points, either of which may be x*."""
    x = problem.x_star + np.random.default_rng(8).standard_normal((count, 2, problem.d))
    x[-1, 0] = x[-2, 1] = problem.x_star
    return x


def rate(method, problem):
    after, before = method.bound(problem, np.ones(problem.d), np.array([1, 0]))
    return after / before


@pytest.mark.parametrize("p", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_the_lyapunov_function_of_l_svrdsg_falls_in_expectation(make, p):
    f_D = make()
    method = LSVRDSG.theoretical(f_D, p)
    star, gamma, contraction = drawn(f_D, f_D.x_star), method.gamma, rate(method, f_D)
    for x, w in states(f_D):
        Gx, Gw, full = drawn(f_D, x), drawn(f_D, w), f_D.full_gradient(w)
        before = np.sum((x - f_D.x_star) ** 2) + 4 * gamma**2 / p * squares(Gw - star)
        moved = squares(x - gamma * (Gx - Gw + full) - f_D.x_star)
        after = moved + 4 * gamma**2 / p * (p * squares(Gx - star) + (1 - p) * squares(Gw - star))
        assert after <= contraction * before
        whole = np.sum((x - f_D.x_star) ** 2) + 4 * gamma**2 / p * squares(Gx - star)  # of w^0 = x^0
        assert whole <= method.bound(f_D, x, 0) * (1 + 1e-12)


@pytest.mark.parametrize("p", [1e-3, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_the_lyapunov_function_of_s_page_falls_in_expectation(make, p):
    f_D = make()
    method = SPAGE.theoretical(f_D, p)
    gamma, least, contraction = method.gamma, f_D.value(f_D.x_star), rate(method, f_D)
    weight = gamma / (2 * (p - gamma * f_D.mu))
    assert weight > 0
    for x, h in states(f_D):
        h = f_D.full_gradient(h)
        new = x - gamma * h
        errors = h + drawn(f_D, new) - drawn(f_D, x) - f_D.full_gradient(new)
        before = f_D.value(x) - least + weight * np.sum((h - f_D.full_gradient(x)) ** 2)
        after = f_D.value(new) - least + weight * (1 - p) * squares(errors)
        assert after <= contraction * before + 1e-14


def test_nothing_is_claimed_where_no_theorem_says_it():
    flat = Sketched(compress.Logistic(ROWS, LABELS, lam=0, workers=N), SKETCHES["cyclic"])
    for method in methods(flat):
        with pytest.raises(ValueError, match=f"{type(method).__name__}: its bound needs mu > 0 of f_D, got 0"):
            method.bound(flat, np.ones(D), 3)
    f_D = PROBLEMS["quadratic, Rand-K"]()
    for method in (DSGD(9.0), LSVRDSG(9.0, 0.5), SPAGE(9.0, 0.5)):
        with pytest.raises(ValueError, match=f"{type(method).__name__}: no bound is proven for gamma = 9, which is ab"):
            method.bound(f_D, np.ones(D), 3)
    indefinite = Sketched(compress.Quadratic([[3.0, 3.0], [-1.0, 1.0]], np.ones((2, 2))), compress.RandK(1))
    for cls in (DSGD, LSVRDSG):
        with pytest.raises(ValueError, match=f"{cls.__name__}: its theorem needs convex components"):
            cls.theoretical(indefinite)
        with pytest.warns(UserWarning, match="no convergence is proven: .* needs convex components"):
            (DSGD(1e-3) if cls is DSGD else LSVRDSG(1e-3, 0.5)).init(indefinite, compress.Local(2), np.ones(2))
    assert SPAGE.theoretical(indefinite).gamma > 0  # which asks for smooth ones alone
    smooth = Plain(quadratic())
    smooth.L, smooth.L_i = quadratic().L, quadratic().L_i
    unknown = Sketched(smooth, SKETCHES["cyclic"])  # its mu is not known, and counts as zero
    S2 = (12 / 5) ** 3 * np.mean(smooth.L_i**2) / N
    assert np.isclose(SPAGE.theoretical(unknown, 0.2).gamma, 1 / (12 / 5 * 5 + 2 * np.sqrt(S2)))
    with pytest.raises(TypeError, match=r"a Problem with a loss f, got BilinearGame"):
        Sketched(BilinearGame([[[2.0]]]), compress.RandK(1))
    unknown, name = Sketched(logistic(), SKETCHES["Rand-K"]), "value and gradient of f_D are known where f is a Quad"
    for cls in (LSVRDSG, SPAGE):
        with pytest.raises(NotImplementedError, match=name):
            cls.theoretical(unknown)
        for call in (lambda m: m.limits(unknown), lambda m: m.init(unknown, compress.Local(N), np.ones(D))):
            with pytest.raises(NotImplementedError, match=name):
                call(cls(1e-3, 0.5))
    for remedy in ("as those of Cyclic", "give run.. an error=, a function of the iterate"):
        with pytest.raises(ValueError, match=remedy):
            compress.run(DSGD(1e-3), unknown, compress.Local(N), np.ones(D), steps=3)


def gap(x):
    """An error for f_D without a value: that of the model whose sketches it is about."""
    return logistic().value(x)


def test_a_run_without_a_value_of_f_d_is_saved_and_known(tmp_path):
    """Rand-K of Logistic: nothing of f_D is known but its sketches."""
    f_D, comm, path = Sketched(logistic(), SKETCHES["Rand-K"], V), compress.Local(N), tmp_path / "run.npz"
    options = {"error": gap, "every": 5}
    whole = compress.run(DSGD(0.01), f_D, comm, np.ones(D), steps=40, **options)
    compress.run(DSGD(0.01), f_D, comm, np.ones(D), steps=20, checkpoint=path, **options)
    trace = compress.run(DSGD(0.01), f_D, comm, np.ones(D), steps=40, checkpoint=path, **options)
    np.testing.assert_array_equal(trace.x, whole.x)
    scaled = Sketch(SKETCHES["Rand-K"], np.full(D, 2.0))
    for other in (
        Sketched(logistic(), SKETCHES["Rand-K"], V + 1),
        Sketched(logistic(), compress.RandK(4, WIRE), V),
        Sketched(logistic(), scaled, V),
        Sketched(compress.Ridge(ROWS, LABELS, lam=0.1, workers=N), SKETCHES["Rand-K"], V),
    ):
        with pytest.raises(ValueError, match="is of another run: problem was Sketched of n = 4"):
            compress.run(DSGD(0.01), other, comm, np.ones(D), steps=40, checkpoint=path, **options)
    data = Sketched(compress.Logistic(ROWS + 1, LABELS, lam=0.1, workers=N), SKETCHES["Rand-K"], V)
    with pytest.raises(ValueError, match="is of another run: value was"):
        compress.run(DSGD(0.01), data, comm, np.ones(D), steps=40, checkpoint=path, **options)
    apart = logistic()
    apart.shared = False
    assert f_D.shared and not Sketched(apart, SKETCHES["Rand-K"]).shared


def test_bad_input_is_named():
    base, f_D = quadratic(), PROBLEMS["quadratic, Rand-K"]()
    for cls in (DSGD, LSVRDSG, SPAGE):
        with pytest.raises(
            TypeError, match=rf"{cls.__name__} minimises f_D: give Sketched\(problem, sketch\), got Qua"
        ):
            cls.theoretical(base)
        with pytest.raises(TypeError, match=f"{cls.__name__} minimises f_D"):
            methods(f_D)[[DSGD, LSVRDSG, SPAGE].index(cls)].init(base, compress.Local(N), np.ones(D))
    with pytest.raises(ValueError, match=r"v must be a finite vector of 12, got shape \(3,\)"):
        Sketched(base, SKETCHES["Rand-K"], np.ones(3))
    with pytest.raises(ValueError, match="has sets for 3 workers, not for 4"):
        Sketched(base, compress.PermK(3))
    with pytest.raises(ValueError, match="has no sets of 12 coordinates: k = 13 of a vector of 12"):
        Sketched(base, compress.RandK(13))
    with pytest.raises(TypeError, match="is sketched already: give the f that it is of"):
        Sketched(f_D, SKETCHES["Rand-K"])
    for p, error, message in (
        (0, ValueError, r"lie in \(0, 1\], got 0"),
        (2, ValueError, "got 2"),
        ("x", TypeError, "be a number, got 'x'"),
    ):
        for cls in (LSVRDSG, SPAGE):
            with pytest.raises(error, match=f"{cls.__name__}: p must .*{message}"):
                cls.theoretical(f_D, p=p)
    with pytest.raises(ValueError, match="has a regularizer"):
        Sketched(compress.Ridge(ROWS, LABELS, lam=0.1, regularizer=compress.L1(0.1)), SKETCHES["Rand-K"])
    with pytest.raises(NotImplementedError, match="where sketches can be listed, as those of Cyclic"):
        Sketched(logistic(), SKETCHES["Rand-K"]).value(np.ones(D))
    with pytest.raises(ValueError, match=r"theorem 1 needs an unbiased sketch: E S of .* has 0.25 to 0.25, not 1"):
        Sketched(base, Sketch(compress.PermK(N), np.ones(D))).minimum_bounds()
    with pytest.raises(ValueError, match="not known to be strongly convex, mu is 0"):
        _ = Sketched(compress.Logistic(ROWS, LABELS, lam=0), SKETCHES["cyclic"]).x_star
    with pytest.raises(NotImplementedError, match="the minima of the components"):
        _ = Sketched(Plain(base), SKETCHES["cyclic"]).infimum
    with pytest.raises(TypeError, match="sampling must be a Sampling or None, got 3"):
        DSGD(0.1, 3)
    with pytest.raises(ValueError, match="one worker, got a communicator of 4"):
        DSGD(0.1, compress.Nice(N, 2)).init(f_D, compress.Local(4), np.ones(D))
    with pytest.raises(ValueError, match="over 5 components, the problem has 4"):
        DSGD(0.1, compress.Nice(5, 2)).init(f_D, compress.Local(1), np.ones(D))
    with pytest.warns(UserWarning, match=r"DSGD: gamma = 1 is above"):
        DSGD(1.0).init(f_D, compress.Local(N), np.ones(D))


# The server's messages


def messages(sizes):
    return [compress.Identity().encode(np.full(d, 1.5, np.float32), KEY) for d in sizes]


def test_scatter_and_gather_count_a_message_once():
    comm, sent = compress.Local(3), messages([5, 0, 700])
    bits, wire = 32 * 705, 4 * 705 + 3 * HEADER
    assert comm.scatter(sent) == sent
    assert comm.ledger == Ledger(bits_down=bits, wire_down=wire, messages=3)
    assert comm.gather(sent) == sent
    assert comm.ledger == Ledger(bits, bits, wire, wire, 6)
    with pytest.raises(ValueError, match="2 messages to 3 workers"):
        comm.scatter(sent[:2])
    with pytest.raises(ValueError, match="2 messages of 3 workers hosted here"):
        comm.gather(sent[:2])
    with pytest.raises(TypeError, match=r"compress.Message, got int"):
        comm.scatter([1, 2, 3])
    with pytest.raises(ValueError, match="process 0 is the server, process 1 has nothing to scatter"):
        Worker(2, 1, []).scatter(sent[:2])
    assert comm.ledger.messages == 6


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_on_mpi_the_server_has_the_bits_of_local(ranks):
    from test_mpi import mpiexec

    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(compress.__file__).parents[1])}
    job = subprocess.run(
        [mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py", __file__],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert job.returncode == 0, job.stderr
    assert all(f"rank {rank} has the same" in job.stdout for rank in range(ranks))


def same_as_local():
    """Rounds of messages, and steps of all methods with a server, by MPI(n) and Local(n)."""
    from compress.optimizers.ist import ShiftedIST

    comm, local, rng = compress.MPI(N), compress.Local(N), np.random.default_rng(0)
    for k in range(20):
        sent = messages([0, int(rng.integers(60)), 100, 1] if k else [0] * N)
        received = local.scatter(sent)
        assert comm.scatter(None if comm.process else sent) == [received[i] for i in comm.workers]
        answers = comm.gather([sent[i] for i in comm.workers])
        assert local.gather(sent) == sent and (answers is None if comm.process else answers == sent)
        assert comm.ledger == local.ledger
    f, f_D = quadratic(), PROBLEMS["quadratic, Perm-K"]()
    cases = [(method, f_D) for method in methods(f_D)]
    cases += [(IST.theoretical(f, compress.PermK(N)), f), (ShiftedIST.theoretical(f, compress.PermK(N)), f)]
    for method, problem in cases:
        states = [method.init(problem, c, np.ones(D)) for c in (comm, local)]
        for k in range(20):
            states = [method.step(problem, c, s, KEY.at(k)) for c, s in zip((comm, local), states, strict=True)]
        assert comm.ledger == local.ledger
        x, expected = (state.x for state in states)
        assert x.size == 0 if comm.process else x.tobytes() == expected.tobytes()
        assert states[0].oracle == states[1].oracle
    f_D = Sketched(logistic(), SKETCHES["Rand-K"], V)  # which has no value
    traces = [compress.run(DSGD(0.01), f_D, c, np.ones(D), steps=10, error=gap) for c in (comm, local)]
    assert traces[0].x.tobytes() == traces[1].x.tobytes() and np.array_equal(traces[0].error, traces[1].error)
    print(f"rank {comm.process} has the same")


if __name__ == "__main__":
    same_as_local()
