"""Problems against slow oracles: definitions, finite differences, dense matrices, exact fractions, every face of R."""

import itertools
import math
import pickle
import textwrap
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import scipy.optimize

import compress.problems
from compress.problems import L1, L2, Box, Logistic, Problem, Quadratic, Ridge

M, D = 23, 5
RNG = np.random.default_rng(0)
A = RNG.standard_normal((M, D))
TARGETS = A @ RNG.standard_normal(D) + RNG.standard_normal(M)
SIGNS = np.where(TARGETS > 0.3, 1.0, -1.0)
PARTS = [
    np.array(p) for p in ([3, 22, 0], [7], [1, 2, 4, 5, 6, 8, 9, 10], [21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11])
]
BLOCKS = [np.arange(0, 6), np.arange(6, 12), np.arange(12, 18), np.arange(18, 23)]
ROWS = [np.array([j]) for j in range(M)]


def symmetric(n, d, least):
    """n random symmetric matrices with eigenvalues from `least` to 3."""
    bases = [np.linalg.qr(RNG.standard_normal((d, d)))[0] for _ in range(n)]
    made = np.array([Q * np.r_[least, RNG.uniform(least, 3, d - 2), 3] @ Q.T for Q in bases])
    return (made + made.transpose(0, 2, 1)) / 2


class Dense:
    """The definition of a problem, one component and one row at a time, in extended precision."""

    def __init__(self, problem, parts=None, matrices=None):
        self.problem, self.parts, self.matrices = problem, parts, matrices

    def component(self, i, x):
        p, x = self.problem, x.astype(np.longdouble)
        if self.parts is None:
            return x @ self.matrices[i] @ x / 2 - p.b[i] @ x
        total = np.longdouble(0)
        for j in self.parts[i]:
            z = A[j] @ x
            total += (z - TARGETS[j]) ** 2 / 2 if isinstance(p, Ridge) else np.log1p(np.exp(-SIGNS[j] * z))
        return len(self.parts) * (total / M if p.mean else total) + np.longdouble(p.lam) / 2 * (x @ x)

    def gradient(self, i, x, h=1e-6):
        steps = h * np.eye(len(x), dtype=np.longdouble)
        return np.array([(self.component(i, x + e) - self.component(i, x - e)) / (2 * h) for e in steps], np.float64)

    def M(self, i):
        if self.parts is None:
            return self.matrices[i]
        p, rows = self.problem, A[self.parts[i]]
        gram = sum(np.outer(a, a) for a in rows) * (1 if isinstance(p, Ridge) else 0.25)
        return len(self.parts) * (gram / M if p.mean else gram) + p.lam * np.eye(D)

    def hessian(self, i, x):
        p = self.problem
        if not isinstance(p, Logistic):
            return self.M(i)
        rows = A[self.parts[i]]
        gram = sum(np.outer(a, a) / (2 + np.exp(a @ x) + np.exp(-a @ x)) for a in rows)
        return len(self.parts) * (gram / M if p.mean else gram) + p.lam * np.eye(D)


def instances():
    dense = symmetric(4, D, 0.2)
    saddles = symmetric(4, D, -0.5)
    saddles += np.eye(D) * (0.1 - np.linalg.eigvalsh(saddles.mean(axis=0))[0])
    diagonal, b = RNG.uniform(0.1, 4, (4, D)), RNG.standard_normal((4, D))
    yield "dense", Dense(Quadratic(dense, b), matrices=dense)
    yield "saddles", Dense(Quadratic(saddles, b), matrices=saddles)
    yield "diagonal", Dense(Quadratic(diagonal, b), matrices=np.array([np.diag(row) for row in diagonal]))
    random = Quadratic.random(4, D, 0.1, 7.0)
    yield "random", Dense(random, matrices=random.A)
    for name, cls, labels in ("ridge", Ridge, TARGETS), ("logistic", Logistic, SIGNS):
        yield f"{name} rows", Dense(cls(A, labels, 0.05), ROWS)
        yield f"{name} blocks", Dense(cls(A, labels, 0.05, workers=4), BLOCKS)
        yield f"{name} parts", Dense(cls(A, labels, 0.05, parts=PARTS), PARTS)
        yield f"{name} sum", Dense(cls(A, labels, 0.05, parts=PARTS, mean=False), PARTS)


INSTANCES = dict(instances())
REGULARIZERS = [None, L1(0.1), L2(0.3), Box(-0.15, 0.2), Box(0, math.inf)]


@pytest.fixture(params=INSTANCES.values(), ids=INSTANCES)
def dense(request):
    return request.param


@pytest.fixture
def points():
    return list(np.random.default_rng(1).standard_normal((3, D)))


def test_value_is_the_mean_of_components_and_the_regularizer(dense, points):
    p = dense.problem
    for x in points:
        f = np.mean([dense.component(i, x) for i in range(p.n)])
        assert p.value(x) == pytest.approx(float(f), rel=1e-13)
        for R in REGULARIZERS[1:]:
            p.regularizer = R
            assert p.value(x) == pytest.approx(float(f) + R.value(x), rel=1e-13)
        p.regularizer = None


def test_gradients_are_finite_differences(dense, points):
    p = dense.problem
    for x in points:
        expected = np.array([dense.gradient(i, x) for i in range(p.n)])
        actual = np.array([p.gradient(i, x) for i in range(p.n)])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
        np.testing.assert_allclose(p.full_gradient(x), actual.mean(axis=0), rtol=0, atol=1e-14 * np.abs(actual).max())


@pytest.mark.parametrize("size", [0, 1, 3, 50])
def test_batch_gradient_is_a_weighted_sum(dense, points, size):
    p, rng = dense.problem, np.random.default_rng(size)
    indices, weights = rng.integers(p.n, size=size), rng.uniform(-1, 2, size)
    expected = sum((w * p.gradient(i, points[0]) for i, w in zip(indices, weights, strict=True)), np.zeros(D)) / p.n
    scale = max(np.abs(p.gradient(i, points[0])).max() for i in range(p.n)) * max(size, 1)
    np.testing.assert_allclose(p.batch_gradient(indices, weights, points[0]), expected, rtol=0, atol=1e-14 * scale)
    np.testing.assert_allclose(
        p.batch_gradient(indices.tolist(), weights.tolist(), points[0]), expected, rtol=0, atol=1e-14 * scale
    )


def test_float32_is_the_float64_gradient_rounded_once(dense, points):
    p, x = dense.problem, points[0].astype(np.float32)
    wide, some = x.astype(np.float64), (np.array([0, 1]), np.array([2.0, 0.5]))
    for out in None, np.full(D, np.nan, np.float32):
        for call in (
            lambda *x: p.gradient(1, *x),
            lambda *x: p.batch_gradient(*some, *x),
            lambda *x: p.full_gradient(*x),
        ):
            narrow = call(x, out)
            assert narrow.dtype == np.float32 and np.array_equal(narrow, call(wide).astype(np.float32))
            assert out is None or narrow is out
    assert p.value(x) == p.value(wide)


def test_out_is_written_and_returned(dense, points):
    p, out = dense.problem, np.full(D, np.nan)
    assert p.gradient(2, points[0], out) is out and np.array_equal(out, p.gradient(2, points[0]))
    assert p.full_gradient(points[0], out=out) is out and np.array_equal(out, p.full_gradient(points[0]))
    assert p.batch_gradient([1], [1.0], points[0], out=out) is out


def test_constants_are_eigenvalues_of_dense_matrices(dense):
    p = dense.problem
    matrices = np.array([dense.M(i) for i in range(p.n)])
    spectra = np.linalg.eigvalsh(matrices)
    mean = np.linalg.eigvalsh(matrices.mean(axis=0))
    np.testing.assert_allclose(p.L_i, np.abs(spectra).max(axis=1), rtol=1e-12)
    assert p.L == pytest.approx(mean[-1], rel=1e-12)
    assert p.mu == pytest.approx(p.lam if isinstance(p, Logistic) else mean[0], rel=1e-11)
    assert (p.L_max, p.L_mean) == pytest.approx((p.L_i.max(), p.L_i.mean()))
    assert p.convex == (spectra.min() >= -1e-12)


def test_smoothness_of_subsets(dense):
    p, rng = dense.problem, np.random.default_rng(2)
    for size in (1, 2, 3, 4, 12):
        indices, weights = rng.integers(p.n, size=size), rng.uniform(0, 2, size)
        total = sum(w * dense.M(i) for i, w in zip(indices, weights, strict=True))
        assert p.smoothness(indices, weights) == pytest.approx(np.linalg.eigvalsh(total)[-1], rel=1e-12)
    assert p.smoothness([], []) == 0
    with pytest.raises(ValueError, match="-1"):
        p.smoothness([0], [-1.0])


def test_smoothness_matrices_bound_the_hessians(dense, points):
    """Everywhere, and tightly: the logistic loss reaches 1/4 at zero."""
    for i in range(dense.problem.n):
        for x in points:
            assert np.linalg.eigvalsh(dense.M(i) - dense.hessian(i, x))[0] >= -1e-12
        np.testing.assert_allclose(dense.M(i), dense.hessian(i, np.zeros(D)), atol=1e-12)


def test_strong_convexity_bounds_the_hessian(dense, points):
    p = dense.problem
    for x in points:
        assert np.linalg.eigvalsh(np.mean([dense.hessian(i, x) for i in range(p.n)], axis=0))[0] >= p.mu * (1 - 1e-12)


# The minimiser


def minimise(matrix, linear, R):
    """argmin of x'matrix x/2 - linear'x + R(x): the best of the minimisers on every face of R."""
    d, best = len(linear), (math.inf, None)
    choices = {L1: (-1, 0, 1), Box: ("low", "free", "high")}.get(type(R), (1,))
    for face in itertools.product(choices, repeat=d):
        x, b, H = np.zeros(d), linear.copy(), matrix.copy()
        if isinstance(R, L1):
            free = np.array(face) != 0
            b -= R.lam * np.array(face)
        elif isinstance(R, Box):
            free = np.array([c == "free" for c in face])
            x = np.array([{"low": R.low, "high": R.high}.get(c, 0.0) for c in face])
            if not np.isfinite(x).all():
                continue
        else:
            free, H = np.ones(d, bool), H + (R.lam if R else 0) * np.eye(d)
        x[free] = np.linalg.solve(H[np.ix_(free, free)], (b - H @ np.where(free, 0, x))[free])
        value = x @ matrix @ x / 2 - linear @ x + (R.value(x) if R else 0)
        best = min(best, (value, tuple(x)))
    return np.array(best[1])


@pytest.mark.parametrize("R", REGULARIZERS, ids=repr)
@pytest.mark.parametrize("name", [n for n in INSTANCES if "logistic" not in n])
def test_x_star_is_the_best_over_all_faces(name, R):
    dense = INSTANCES[name]
    p = pickle.loads(pickle.dumps(dense.problem))  # a copy of its own: x_star is kept
    p.regularizer = R
    matrix = np.mean([dense.M(i) for i in range(p.n)], axis=0)
    linear = -np.mean([dense.gradient(i, np.zeros(D)) for i in range(p.n)], axis=0)
    expected = minimise(matrix, linear, R)
    np.testing.assert_allclose(p.x_star, expected, rtol=0, atol=1e-9 * np.linalg.norm(expected))
    assert np.array_equal(p.x_star == 0, np.abs(expected) < 1e-12) or not isinstance(R, L1)
    assert R is None or not isinstance(R, Box) or R.value(p.x_star) == 0


@pytest.mark.parametrize("R", REGULARIZERS, ids=repr)
def test_logistic_x_star_is_where_scipy_goes(R):
    p = Logistic(A, SIGNS, 0.05, regularizer=R)
    if isinstance(R, L1):  # x = u - v with u, v >= 0 is smooth
        smooth = Logistic(A, SIGNS, 0.05)

        def value(w):
            g = smooth.full_gradient(w[:D] - w[D:])
            return smooth.value(w[:D] - w[D:]) + R.lam * w.sum(), np.r_[g, -g] + R.lam

        w = scipy.optimize.minimize(value, np.zeros(2 * D), jac=True, bounds=[(0, None)] * (2 * D), tol=1e-14).x
        found = w[:D] - w[D:]
    else:
        extra = R.lam if isinstance(R, L2) else 0
        bounds = [(R.low, R.high)] * D if isinstance(R, Box) else None
        found = scipy.optimize.minimize(
            p.value,
            np.zeros(D),
            jac=lambda x: p.full_gradient(x) + extra * x,
            bounds=bounds,
            method="L-BFGS-B",
            tol=1e-14,
        ).x
    np.testing.assert_allclose(p.x_star, found, atol=1e-5)
    assert p.value(p.x_star) <= p.value(found) + 1e-15
    # it is a fixed point of proximal gradients, to rounding
    moved = p.x_star - p.full_gradient(p.x_star) / p.L
    moved = moved if R is None else R.prox(moved, 1 / p.L)
    np.testing.assert_allclose(moved, p.x_star, rtol=0, atol=1e-15)


def solve(matrix, right):
    """The exact solution of a system of Fractions, by elimination."""
    rows = [[*row, r] for row, r in zip(matrix, right, strict=True)]
    d = len(rows)
    for k in range(d):
        pivot = next(i for i in range(k, d) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [v / rows[k][k] for v in rows[k]]
        for i in range(d):
            if i != k:
                rows[i] = [a - rows[i][k] * b for a, b in zip(rows[i], rows[k], strict=True)]
    return np.array([float(row[-1]) for row in rows])


@pytest.mark.parametrize("condition", [1, 1e3, 1e6, 1e9, 1e12])
def test_x_star_is_exact_however_badly_conditioned(condition):
    """Against fractions, up to a condition number of 10^12 of the Hessian."""
    rng, d, m = np.random.default_rng(3), 6, 12
    U, V = np.linalg.qr(rng.standard_normal((m, d)))[0], np.linalg.qr(rng.standard_normal((d, d)))[0]
    rows, b = U * np.geomspace(1, condition**0.5, d) @ V, rng.standard_normal(m)
    p = Ridge(rows, b, lam=2.0**-20, mean=False)
    exact = [[Fraction(v) for v in row] for row in rows.tolist()]
    gram = [[sum(r[i] * r[j] for r in exact) + (i == j) * Fraction(2) ** -20 for j in range(d)] for i in range(d)]
    right = [sum(r[i] * Fraction(v) for r, v in zip(exact, b.tolist(), strict=True)) for i in range(d)]
    expected = solve(gram, right)
    assert np.linalg.norm(p.x_star - expected) <= 1e-12 * np.linalg.norm(expected)
    q = Quadratic(np.array([rows.T @ rows] * 2) * np.array([1, 2])[:, None, None], np.array([rows.T @ b, rows.T @ b]))
    if condition <= 1e9:
        mean = [
            [Fraction(v) + Fraction(w) for v, w in zip(*pair, strict=True)] for pair in zip(*q.A.tolist(), strict=True)
        ]
        expected = solve(mean, [Fraction(v) + Fraction(w) for v, w in zip(*q.b.tolist(), strict=True)])
        assert np.linalg.norm(q.x_star - expected) <= 1e-12 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_the_shortest_of_many_minimisers(shape):
    """Rank 3, lam = 0."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
    b = rng.standard_normal(shape[0])
    expected = np.linalg.pinv(rows, rcond=1e-10) @ b
    for p in (Ridge(rows, b, 0.0), Quadratic((rows.T @ rows)[None], (rows.T @ b)[None])):
        assert p.mu == 0
        np.testing.assert_allclose(p.x_star, expected, rtol=0, atol=1e-12 * np.linalg.norm(expected))
    diagonal = Quadratic(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0]]))
    assert diagonal.mu == 0 and np.array_equal(diagonal.x_star, [0.5, 0])


@pytest.mark.parametrize("regularizer", [L1(0.3), Box(-0.1, 0.3)])
def test_more_coordinates_than_rows(regularizer):
    """f is not strongly convex: the optimality conditions say enough."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((20, 60))
    p = Ridge(rows, rows[:, :3].sum(axis=1), 0.0, workers=3, regularizer=regularizer)
    x, g = p.x_star, p.full_gradient(p.x_star)
    assert p.mu == 0
    if isinstance(regularizer, L1):
        assert np.abs(g[x == 0]).max() <= 0.3 and np.allclose(g[x != 0], -0.3 * np.sign(x[x != 0]), rtol=1e-12)
        assert 0 < np.count_nonzero(x) < 20
    else:
        free = (x > -0.1) & (x < 0.3)
        assert np.abs(g[free]).max() <= 1e-12
        assert (g[x == -0.1] >= -1e-12).all() and (g[x == 0.3] <= 1e-12).all()


@pytest.mark.parametrize("lam", [1e-9, 1e-3, 1.0])
def test_logistic_of_separable_classes(lam):
    """The gradient at the minimiser is zero to the rounding of its terms, however far away it is."""
    p = Logistic(A, np.where(A[:, 0] > 0, 1.0, -1.0), lam)
    assert np.linalg.norm(p.full_gradient(p.x_star)) <= 1e-15 * np.linalg.norm(p.gradients_star, axis=1).max()
    assert p.mu == lam


def test_a_minimiser_that_is_zero_but_for_rounding():
    rng = np.random.default_rng(6)
    b = rng.standard_normal((7, D))
    p = Quadratic(rng.uniform(1, 2, (7, D)), b - b.mean(axis=0))
    assert np.abs(p.x_star).max() < 1e-15
    assert np.array_equal(Ridge(A, np.zeros(M), 0.1, regularizer=L1(0.1)).x_star, np.zeros(D))
    assert np.array_equal(Ridge(np.zeros((3, 2)), np.ones(3), 0.0).x_star, np.zeros(2))


def test_gradients_star_and_kept_arrays(dense):
    p = dense.problem
    h = p.gradients_star
    np.testing.assert_allclose(h, [p.gradient(i, p.x_star) for i in range(p.n)], rtol=0, atol=0)
    assert np.linalg.norm(h.mean(axis=0)) <= 1e-14 * np.linalg.norm(h, axis=1).max()
    for kept in (p.x_star, h, p.L_i, p.A, p.b):
        with pytest.raises(ValueError, match="read-only"):
            kept[0] = 1


def test_what_has_no_minimiser_says_how_far_it_came():
    with pytest.raises(RuntimeError, match=r"Quadratic\(n=1, d=2.*proximal gradients 1"):
        _ = Quadratic(np.array([[1.0, 0.0]]), np.ones((1, 2))).x_star
    with pytest.raises(ValueError, match="lam = 0"):
        _ = Logistic(A, SIGNS, 0.0).x_star
    assert np.isfinite(Logistic(A, SIGNS, 0.0, regularizer=L2(0.1)).x_star).all()


# Construction


def test_a_ridge_is_a_quadratic_but_for_a_constant(monkeypatch):
    ridge, x = Ridge(A, TARGETS, lam=0.1, parts=PARTS, regularizer=L1(0.1)), np.linspace(-1, 2, D)
    problem = Quadratic.of(ridge)
    assert Quadratic.of(problem) is problem and problem.regularizer is ridge.regularizer
    for i in range(ridge.n):
        np.testing.assert_allclose(problem.gradient(i, x), ridge.gradient(i, x), rtol=1e-12, atol=1e-12)
    assert np.isclose(problem.value(x) - problem.value(-x), ridge.value(x) - ridge.value(-x), rtol=1e-12)
    np.testing.assert_allclose(problem.x_star, ridge.x_star, rtol=1e-11)
    np.testing.assert_allclose(problem.L_i, ridge.L_i, rtol=1e-12)
    assert (problem.mu, problem.L) == (ridge.mu, ridge.L)
    with pytest.raises(TypeError, match="a Quadratic or a Ridge is quadratic, got Logistic"):
        Quadratic.of(Logistic(A, SIGNS, lam=0.1))
    monkeypatch.setattr(compress.problems, "_LARGEST", len(PARTS) * D * D - 1)
    with pytest.raises(ValueError, match=r"Ridge.* has Hessians of 4 x 5 x 5 numbers, more than 99"):
        Quadratic.of(ridge)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 30), (3, 1), (3, 8), (10, 40)])
def test_random_quadratics(n, d):
    mu, L = (0.5, 0.5) if d == 1 else (1e-4, 20.0)
    p, same = Quadratic.random(n, d, mu, L, interpolation=True), Quadratic.random(n, d, mu, L)
    for q in (p, same):
        spectrum = np.linalg.eigvalsh(q.A.mean(axis=0))
        np.testing.assert_allclose(spectrum, np.geomspace(mu, L, d), rtol=0, atol=1e-14 * L * d)
        assert (q.mu, q.L, q.convex) == (mu, L, True)
        assert np.linalg.eigvalsh(q.A).min() >= -1e-13 * L
    assert np.abs(p.gradients_star).max() <= 1e-13 * p.L_max * np.linalg.norm(p.x_star)
    if n > 1:
        assert np.linalg.norm(same.gradients_star, axis=1).min() > 1e-3
        assert np.abs(same.A[0] - same.A[1]).max() > 1e-2 * L
    assert np.array_equal(Quadratic.random(n, d, mu, L).A, same.A)
    if d > 1:
        assert not np.array_equal(Quadratic.random(n, d, mu, L, seed=1).A, same.A)


def test_rows_follow_parts_and_the_data_is_copied():
    rows, b = A.copy(), TARGETS.copy()
    p, whole = Ridge(rows, b, 0.1, parts=PARTS), Ridge(rows, b, 0.1)
    assert np.array_equal(p.A, A[np.concatenate(PARTS)]) and np.array_equal(p.b, TARGETS[np.concatenate(PARTS)])
    rows[:], b[:] = 0, 0
    assert np.array_equal(whole.A, A) and np.array_equal(whole.b, TARGETS)
    assert rows.flags.writeable
    assert Ridge(A.astype(np.float32), TARGETS, 0.1).A.dtype == np.float64


def test_rank_deficient_ridge_has_mu_lam_exactly():
    wide = RNG.standard_normal((5, 8))
    assert Ridge(wide, np.ones(5), 0.3).mu == 0.3
    twice = np.repeat(RNG.standard_normal((9, 3)), 2, axis=1)
    assert Ridge(twice, np.ones(9), 0.3).mu == 0.3
    assert Ridge(np.ones((4, 1)), np.ones(4), 0.0).mu == Ridge(np.ones((4, 1)), np.ones(4), 0.0).L == 1.0


GOOD = {"A": A, "b": TARGETS, "lam": 0.1}
EYES = np.array([np.eye(2)] * 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ridge(A[0], TARGETS, 0.1), ValueError, r"\(5,\) and \(23,\)"),
        (lambda: Ridge(A, TARGETS[1:], 0.1), ValueError, r"\(23, 5\) and \(22,\)"),
        (lambda: Ridge(A[:0], TARGETS[:0], 0.1), ValueError, r"\(0, 5\)"),
        (lambda: Ridge(A.astype(str), TARGETS, 0.1), TypeError, "A must be an array of real numbers"),
        (lambda: Ridge(np.where(A > 2, np.nan, A), TARGETS, 0.1), ValueError, r"A has \d+ of 115 entries"),
        (lambda: Ridge(A, np.r_[TARGETS[1:], np.inf], 0.1), ValueError, "b has 1 of 23 entries"),
        (lambda: Ridge(A, TARGETS, -0.1), ValueError, "-0.1"),
        (lambda: Ridge(A, TARGETS, math.nan), ValueError, "nan"),
        (lambda: Ridge(A, TARGETS, "1"), TypeError, "lam must be a number"),
        (lambda: Ridge(A, TARGETS, 0.1, workers=24), ValueError, r"workers must be in \[1, 23\], got 24"),
        (lambda: Ridge(A, TARGETS, 0.1, workers=2.0), TypeError, "workers must be an integer"),
        (lambda: Ridge(A, TARGETS, 0.1, workers=4, parts=PARTS), ValueError, "workers=4 and parts"),
        (lambda: Ridge(A, TARGETS, 0.1, parts=[]), ValueError, "row 0 is there 0 times"),
        (lambda: Ridge(A, TARGETS, 0.1, parts=PARTS[1:]), ValueError, "row 0 is there 0 times"),
        (lambda: Ridge(A, TARGETS, 0.1, parts=[*PARTS, [7]]), ValueError, "row 7 is there 2 times"),
        (lambda: Ridge(A, TARGETS, 0.1, parts=[*PARTS, []]), ValueError, r"parts\[4\] must be a non-empty"),
        (lambda: Ridge(A, TARGETS, 0.1, parts=[*PARTS, [23]]), ValueError, "rows 0 to 22, got 0 to 23"),
        (lambda: Ridge(A, TARGETS, 0.1, parts=[*PARTS, [-1]]), ValueError, "got -1 to 22"),
        (lambda: Ridge(A, TARGETS, 0.1, regularizer=0.1), TypeError, "must be a Regularizer or None, got 0.1"),
        (lambda: Logistic(A, TARGETS, 0.1), ValueError, "labels must be -1 and 1"),
        (lambda: Logistic(A, SIGNS > 0, 0.1), ValueError, r"\[0.0\]; compress.data.binary"),
        (lambda: Quadratic(EYES, np.ones(2)), ValueError, r"\(3, 2, 2\) and \(2,\)"),
        (lambda: Quadratic(EYES, np.ones((2, 2))), ValueError, r"\(3, 2, 2\) and \(2, 2\)"),
        (lambda: Quadratic(EYES + np.eye(2, k=1) / 2, np.ones((3, 2))), ValueError, r"A\[0\] .* by 0.5"),
        (lambda: Quadratic(-EYES, np.ones((3, 2))), ValueError, "not convex: .* eigenvalue -1"),
        (lambda: Quadratic(EYES * np.inf, np.ones((3, 2))), ValueError, "NaN or Inf"),
        (lambda: Quadratic.random(2, 3, 2.0, 1.0), ValueError, "got 2.0, 1.0"),
        (lambda: Quadratic.random(2, 1, 1.0, 2.0), ValueError, "d = 1"),
        (lambda: Quadratic.random(0, 1, 1.0, 1.0), ValueError, "n must be"),
        (lambda: L1(-1.0), ValueError, "-1"),
        (lambda: L2(math.inf), ValueError, "inf"),
        (lambda: Box(1.0, 0.0), ValueError, "got 1.0 and 0.0"),
        (lambda: Box(math.nan, 0.0), ValueError, "nan"),
        (lambda: Box(math.inf, math.inf), ValueError, "inf"),
    ],
)
def test_bad_arguments(make, error, message):
    with np.errstate(invalid="ignore"), pytest.raises(error, match=message):
        make()


def test_bad_vectors(dense):
    p, x = dense.problem, np.zeros(D)
    calls = [p.value, p.full_gradient, lambda *a: p.gradient(0, *a), lambda *a: p.batch_gradient([0], [1.0], *a)]
    for call in calls:
        for wrong in (np.zeros(D + 1), np.zeros((D, 1))):
            with pytest.raises(ValueError, match=f"the problem has {D}"):
                call(wrong)
        for wrong in (0.0, np.float64(0), [0.0] * D, np.zeros(D, int), np.zeros(D, np.float16), np.zeros(D, complex)):
            with pytest.raises(TypeError, match="x must be a NumPy array of float32 or float64"):
                call(wrong)
    for call in calls[1:]:
        for out in (x, np.zeros(D + 1), np.zeros(D, np.float32), [0.0] * D):
            with pytest.raises(ValueError, match="out must be an array of 5 float64"):
                call(x, out)
    for i in (-1, p.n):
        with pytest.raises(IndexError, match=f"component {i}"):
            p.gradient(i, x)
    with pytest.raises(ValueError, match=r"\(2,\) and weights of shape \(1,\)"):
        p.batch_gradient([0, 1], [1.0], x)
    with pytest.raises(IndexError):
        p.batch_gradient([p.n], [1.0], x)


def test_margins_far_beyond_exp_neither_warn_nor_overflow():
    p, x = Logistic(1e4 * A, SIGNS, 0.1), np.full(D, 1e3)
    margins = SIGNS * (1e4 * A @ x)
    assert p.value(x) == pytest.approx(-margins[margins < 0].sum() / M + 0.05 * (x @ x), rel=1e-12)
    expected = -(SIGNS * (margins < 0)) @ (1e4 * A) / M + 0.1 * x
    np.testing.assert_allclose(p.full_gradient(x), expected, rtol=1e-12)
    assert np.isfinite(p.batch_gradient(np.arange(M), np.ones(M), x)).all()


def test_gradients_make_no_copy_of_the_data():
    m, d = 400, 1000
    rng = np.random.default_rng(7)
    rows, b = rng.standard_normal((m, d)), np.sign(rng.standard_normal(m))
    x, out = np.ones(d), np.empty(d)
    for p in (Ridge(rows, b, 0.1, workers=4), Logistic(rows, b, 0.1, workers=4), Quadratic(rows**2, rows)):
        tracemalloc.start()
        for _ in range(3):
            p.gradient(1, x, out)
            p.full_gradient(x, out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= 8 * (2 * d + 8 * m)


# Regularizers, and problems of one's own


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("R", REGULARIZERS[1:], ids=repr)
def test_prox_is_the_least_of_a_fine_grid(R, dtype):
    grid = np.linspace(-2, 2, 40001)
    values = np.array([R.value(np.array([y])) for y in grid])
    for x in (-1.7, -0.2, -0.05, 0.0, 0.1, 0.31, 1.9):
        for gamma in (0.1, 1.0, 3.0):
            given = np.array([x], dtype)
            result = R.prox(given, gamma)
            assert result is given and result.dtype == dtype
            assert result[0] == pytest.approx(grid[np.argmin(gamma * values + (grid - x) ** 2 / 2)], abs=2e-4)


def test_a_box_holds_what_its_prox_gives():
    """In float32 too, where the bounds themselves are rounded."""
    R = Box(np.float64(0.1), 0.2)
    x = R.prox(np.array([-1, 1, 0.15], np.float32), 1.0)
    assert R.value(x) == 0 and Ridge(np.ones((2, 3)), np.ones(2), 0.1, regularizer=R).value(x) < math.inf


@pytest.mark.parametrize("R", REGULARIZERS[1:], ids=repr)
def test_face_is_where_the_regularizer_is_quadratic(R):
    x = R.prox(np.array([0.0, 0.5, -0.5, 0.05, 2.0]), 0.2)
    free, linear, curvature = R.face(x)
    v = np.where(free, 1e-3, 0.0)
    change = linear @ v + curvature * ((x + v) @ (x + v) - x @ x) / 2
    assert R.value(x + v) - R.value(x) == pytest.approx(change, abs=1e-14)


def test_the_problem_of_the_docstring():
    source = compress.problems.__doc__.split("two methods, on any kind of array:\n")[1].split("That is enough")[0]
    namespace = {"Problem": Problem, "np": np}
    exec(textwrap.dedent(source), namespace)
    p = namespace["Rosenbrock"]()
    for x in (np.ones(2), np.array([0.3, -1.2])):
        expected = scipy.optimize.approx_fprime(x, p.value, 1e-8)
        np.testing.assert_allclose(p.gradient(0, x), expected, atol=1e-4)
        assert np.array_equal(p.full_gradient(x), p.gradient(0, x))
        np.testing.assert_allclose(p.batch_gradient([0, 0], [1.0, 2.0], x), 3 * p.gradient(0, x))
    for unknown in ("L", "mu", "L_i", "L_max", "x_star", "gradients_star"):
        with pytest.raises(NotImplementedError, match="Rosenbrock does not know"):
            getattr(p, unknown)
    assert not p.convex and repr(p) == "Rosenbrock(n=1, d=2, regularizer=None)"
    p.x_star, p.L = np.ones(2), 1002.0
    assert np.array_equal(p.gradients_star, np.zeros((1, 2))) and p.L == 1002.0


def test_a_regularizer_without_face():
    class Half(compress.problems.Regularizer):
        def value(self, x):
            return 0.0

        def prox(self, x, gamma):
            return x

    with pytest.raises(NotImplementedError, match="Half has no face"):
        _ = Ridge(A, TARGETS, 0.1, regularizer=Half()).x_star


def test_repr_says_what_it_is():
    assert repr(Ridge(A, TARGETS, 0.1, workers=3, regularizer=L1(1))) == (
        "Ridge(m=23, d=5, n=3, lam=0.1, mean=True, regularizer=L1(lam=1.0))"
    )
    assert repr(Quadratic(EYES, np.ones((3, 2)))) == "Quadratic(n=3, d=2, regularizer=None)"


def test_components_that_are_not_there_are_named():
    problem = Quadratic.random(3, 2, 1, 2)
    for call in (problem.smoothness, lambda i, w: problem.batch_gradient(i, w, np.zeros(2))):
        for indices in ([-1], [3], [0, -3]):
            with pytest.raises(IndexError, match=r"components must lie in \[0, 3\), got "):
                call(indices, np.ones(len(indices)))
        for indices in ([1.0], [True]):
            with pytest.raises(TypeError, match="indices must be integers, got "):
                call(indices, [1.0])
        call([], [])
