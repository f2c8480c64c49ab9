"""IST: the moments of its estimator, the exact statements about quadratics, and the shifted variant without bias."""

import numpy as np
import pytest
from test_mast import rounds, states

import compress
from compress.optimizers.ist import IST, ShiftedIST, jacobi, scaled_permutation
from compress.optimizers.mast import Sketched
from compress.sketches import Cyclic, Sketch

KEY = compress.Key(7)
WIRE = "float64"


def random(n, d, seed=0, zero=False, alike=False):
    """A Quadratic of random positive definite A_i, alike or not."""
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((1 if alike else n, d, d))
    A = np.broadcast_to(roots @ roots.transpose(0, 2, 1) / d + 0.5 * np.eye(d), (n, d, d))
    return compress.Quadratic(A, np.zeros((n, d)) if zero else rng.standard_normal((n, d)))


def estimator(problem, sketch, key):
    """B and c of a round, dense: (1/n) sum_i C_i A_i C_i and (1/n) sum_i C_i b_i."""
    n, d = problem.n, problem.d
    C = [np.diag(sketch(np.ones(d), key.worker(i))) for i in range(n)]
    B = sum(S @ A @ S for S, A in zip(C, problem.A, strict=True)) / n
    return B, sum(S @ b for S, b in zip(C, problem.b, strict=True)) / n


def iterates(method, problem, x0, steps, key=KEY):
    comm = compress.Local(problem.n)
    state = method.init(problem, comm, x0)
    out = [state.x.copy()]
    for k in range(steps):
        state = method.step(problem, comm, state, key.at(k))
        out.append(state.x.copy())
    return np.array(out)


@pytest.mark.parametrize(("n", "d"), [(6, 6), (3, 12), (3, 8), (5, 3)])
def test_steps_are_those_of_the_algorithm_box(n, d):
    problem, x0 = random(n, d), np.linspace(-1, 2, d)
    sketches = [compress.PermK(n, WIRE), compress.RandK(2, WIRE)]
    if n == d:
        sketches.append(scaled_permutation(problem, WIRE))
    for method in (IST.theoretical(problem, sketch) for sketch in sketches):
        x = x0
        for k, got in enumerate(iterates(method, problem, x0, 30)[1:]):
            B, c = estimator(problem, method.sketch, KEY.at(k))
            x = x - method.gamma * (B @ x - c)
            np.testing.assert_allclose(got, x, rtol=1e-10, atol=1e-12)


def test_the_mean_of_b_is_the_tikhonov_form():
    """n (r Abar + (1 - r) Diag(Abar)), r = (q - 1)/(d - 1), against the mean of 4000 rounds and f_D's Hessian."""
    n, q = 4, 3
    d, problem = n * q, random(n, n * q)
    mean, r = problem.A.mean(axis=0), (q - 1) / (d - 1)
    exact = n * (r * mean + (1 - r) * np.diag(np.diag(mean)))
    f_D = Sketched(problem, compress.PermK(n))
    columns = [f_D.full_gradient(e) - f_D.full_gradient(np.zeros(d)) for e in np.eye(d)]
    np.testing.assert_allclose(columns, exact, rtol=1e-10, atol=1e-12)
    draws = np.array([estimator(problem, f_D.sketch, KEY.at(k))[0] for k in range(4000)])
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert np.abs((draws.mean(axis=0) - exact) / error).max() < 4.5


def test_perm_1_alike_has_no_randomness():
    problem = random(7, 7, alike=True)
    D = np.diag(np.diag(problem.A[0]))
    for k in range(20):
        B, _ = estimator(problem, Sketch(compress.PermK(7)), KEY.at(k))
        np.testing.assert_allclose(B, 7 * D, rtol=1e-12)
    problem = compress.Quadratic(problem.A, np.broadcast_to(problem.b[0], (7, 7)))
    method = IST.theoretical(problem, compress.PermK(7, WIRE))
    runs = [iterates(method, problem, np.ones(7), 50, compress.Key(seed)) for seed in range(2)]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-12, atol=1e-14)


def test_preconditioning_ends_after_one_step():
    x0 = np.linspace(1, 3, 9)
    different, alike = random(9, 9, zero=True), random(9, 9, zero=True, alike=True)
    method = IST.theoretical(different, scaled_permutation(different, WIRE))
    assert np.isclose(method.gamma, 1, rtol=1e-12)
    assert np.sum(iterates(method, different, x0, 1)[1] ** 2) < 1e-25
    changed = jacobi(alike)
    np.testing.assert_allclose(np.diagonal(changed.A, axis1=1, axis2=2), 1, rtol=1e-12)
    method = IST.theoretical(changed, compress.PermK(9, WIRE))
    assert np.isclose(method.gamma, 1 / 9, rtol=1e-12)
    assert np.sum(iterates(method, changed, x0, 1)[1] ** 2) < 1e-25


def test_jacobi_is_a_change_of_variables():
    problem = random(3, 5)
    changed, root = jacobi(problem), np.sqrt(np.diag(problem.A.mean(axis=0)))
    np.testing.assert_allclose(changed.x_star, root * problem.x_star, rtol=1e-10)
    diagonal = compress.Quadratic(np.array([np.diag(A) for A in problem.A]), problem.b)
    np.testing.assert_allclose(jacobi(diagonal).A.mean(axis=0), 1, rtol=1e-12)


def test_scaled_permutations_contract_exactly():
    problem = random(8, 8, zero=True)
    for gamma in (0.1, 0.5):
        x = iterates(IST(scaled_permutation(problem, WIRE), gamma), problem, np.ones(8), 20)
        np.testing.assert_allclose(x, (1 - gamma) ** np.arange(21)[:, None] * np.ones(8), rtol=1e-12)


def test_an_unscaled_step_can_increase_f():
    """Remark 1: L = [[a, c], [c, b]] with c > 2ab/(a + b) has W indefinite, and f rises from some x^0 at any gamma."""
    L = np.array([[10.0, 3.0], [3.0, 1.0]])
    problem = compress.Quadratic(np.array([L, L]), np.zeros((2, 2)))
    D = np.diag(np.diag(L))
    W = D @ L + L @ D
    eigenvalues, vectors = np.linalg.eigh(W)
    assert np.linalg.eigvalsh(L)[0] > 0 > eigenvalues[0]
    for gamma in (1e-6, IST.theoretical(problem, compress.PermK(2)).gamma):
        before, after = iterates(IST(compress.PermK(2, WIRE), gamma), problem, vectors[:, 0].copy(), 1)
        assert problem.value(after) > problem.value(before)


def test_x_infinity_and_bias_are_the_closed_forms():
    problem = random(8, 8)
    scaled, plain = IST(scaled_permutation(problem, WIRE), 0.5), IST(compress.PermK(8, WIRE), 0.01)
    diagonals = np.diagonal(problem.A, axis1=1, axis2=2)
    Db = np.mean(problem.b / np.sqrt(diagonals), axis=0)
    np.testing.assert_allclose(scaled.x_infinity(problem), Db / np.sqrt(8), rtol=1e-10)
    mean = problem.A.mean(axis=0), problem.b.mean(axis=0)
    np.testing.assert_allclose(plain.x_infinity(problem), mean[1] / np.diag(mean[0]) / 8, rtol=1e-10)
    h = scaled.bias(problem)
    np.testing.assert_allclose(h, np.linalg.solve(*mean) - Db / np.sqrt(8), rtol=1e-9)
    assert np.isclose(
        problem.value(scaled.x_infinity(problem)) - problem.value(problem.x_star), h @ mean[0] @ h / 2, rtol=1e-8
    )


@pytest.mark.parametrize("make", [lambda f: scaled_permutation(f, WIRE), lambda f: compress.PermK(6, WIRE)])
def test_the_mean_iterate_is_gradient_descent_on_f_d(make):
    problem, x0, steps, runs = random(6, 6), np.ones(6), 20, 100
    method = IST.theoretical(problem, make(problem))
    x = np.array([iterates(method, problem, x0, steps, compress.Key(seed))[-1] for seed in range(runs)])
    f_D, expected = Sketched(problem, method.sketch), x0
    for _ in range(steps):
        expected = expected - method.gamma * f_D.full_gradient(expected)
    assert np.abs((x.mean(axis=0) - expected) / (x.std(axis=0) / np.sqrt(runs))).max() < 4


@pytest.mark.parametrize("sketch", ["scaled", "Perm-K"])
def test_bounds_hold(sketch):
    """IST.bound on the mean of 20 runs, and theorem 2: the tail of ||grad f||^2_{L^-1} is at most ||h||_L^2 + gamma
    sigma^2, where B = I."""
    problem, x0, steps = random(6, 6), np.ones(6), 60
    S = scaled_permutation(problem, WIRE) if sketch == "scaled" else compress.PermK(6, WIRE)
    limit = IST.theoretical(problem, S).gamma
    for gamma in (limit, limit / 4):
        method = IST(S, gamma)
        x = np.array([iterates(method, problem, x0, steps, compress.Key(seed)) for seed in range(20)])
        squares = np.mean(np.sum((x - problem.x_star) ** 2, axis=2), axis=0)
        assert np.all(squares <= method.bound(problem, x0, np.arange(steps + 1)))
        if sketch == "scaled" and gamma < limit:  # at 1 the bound is met
            L = problem.A.mean(axis=0)
            h, c = method.bias(problem), [estimator(problem, S, KEY.at(k))[1] for k in range(2000)]
            sigma = np.mean([e @ L @ e for e in c - np.mean(c, axis=0)])
            tail = (x - problem.x_star)[:, steps // 2 :].reshape(-1, 6)
            assert np.mean(np.einsum("ki,ij,kj->k", tail, L, tail)) <= h @ L @ h + gamma * sigma


def test_local_steps_are_those_of_the_workers():
    n, d, steps = 3, 7, 4
    problem, x0 = random(n, d), np.linspace(-1, 1, d)
    method, x = IST(compress.PermK(n, WIRE), 0.02, local_steps=steps), x0
    with pytest.warns(UserWarning, match="theorem for one local step, and local_steps = 4"):
        got = iterates(method, problem, x0, 10)[1:]
    for k in range(10):
        together = np.zeros(d)
        for i in range(n):
            C = method.sketch(np.ones(d), KEY.at(k).worker(i))
            w = C * x
            for _ in range(steps):
                w = w - 0.02 / n * C**2 * problem.gradient(i, w)
            together += w / n  # C_i = n on its set: the workers' coordinates side by side
        x = together
        np.testing.assert_allclose(got[k], x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sketch", [compress.PermK(4, WIRE), compress.RandK(4, WIRE), compress.Bernoulli(0.4, WIRE)])
def test_the_shifted_variant_is_its_box_and_goes_to_x_star(sketch):
    problem, x0 = random(4, 10), np.ones(10)
    method = ShiftedIST.theoretical(problem, sketch)
    got, x = iterates(method, problem, x0, 30)[1:], x0
    v, full = x, problem.full_gradient(x)
    for k in range(30):
        key, g = KEY.at(k), full.copy()
        for i in range(4):
            S = method.sketch(np.ones(10), key.worker(i))
            g += S * (problem.gradient(i, v + S * (x - v)) - problem.gradient(i, v)) / 4
        x = x - method.gamma * g
        if key.fold(0x636F696E).word < method.p * 2**64:
            v, full = x, problem.full_gradient(x)
        np.testing.assert_allclose(got[k], x, rtol=1e-10, atol=1e-12)
    trace = compress.run(method, problem, compress.Local(4), x0, steps=20_000, until=1e-16, every=20)
    assert trace.error[-1] <= 1e-16, trace.reason
    biased = IST(sketch, method.gamma)
    trace = compress.run(biased, problem, compress.Local(4), x0, steps=2000, every=20)
    share = np.sum(biased.bias(problem) ** 2) / np.sum((x0 - problem.x_star) ** 2)
    assert trace.error[-20:].mean() > share / 2 > 1e-3


@pytest.mark.parametrize("sketch", [compress.PermK(4, WIRE), compress.RandK(4, WIRE), compress.Bernoulli(0.4, WIRE)])
def test_the_shifted_variant_keeps_to_its_bound(sketch):
    """Also the two lemmas of its proof, by sampling: variance at most calL ||y||_P^2, and P - Abar >= c P."""
    problem, x0, steps = random(4, 10), np.ones(10), 150
    method = ShiftedIST.theoretical(problem, sketch, 0.5)
    x = np.array([iterates(method, problem, x0, steps, compress.Key(seed)) for seed in range(20)])
    squares = np.mean(np.sum((x - problem.x_star) ** 2, axis=2), axis=0)
    bound = method.bound(problem, x0, np.arange(steps + 1))
    assert np.all(squares <= bound) and bound[-1] < bound[0]
    f_D = Sketched(problem, method.sketch)
    P, A = (np.mean([f.hessian(i, x0) for i in range(4)], axis=0) for f in (f_D, problem))
    _, c, L_P = ShiftedIST._constants(problem, method.sketch, 0.5)
    assert np.isclose(np.linalg.eigvalsh(P)[-1], L_P)
    assert 0 < c < 1 and abs(np.linalg.eigvalsh((1 - c) * P - A)[0]) < 1e-10 * L_P
    y = np.random.default_rng(1).standard_normal(10)
    draws = [np.sum(((estimator(problem, method.sketch, KEY.at(k))[0] - P) @ y) ** 2) for k in range(400)]
    assert np.mean(draws) - 4 * np.std(draws) / 20 <= f_D.expected_smoothness * (y @ P @ y)


@pytest.mark.parametrize("sketch", [compress.PermK(4, WIRE), compress.RandK(3, WIRE)])
def test_a_ridge_is_the_quadratic_that_it_is(sketch):
    """Everything that is in closed form for a Quadratic is for a Ridge, and the same."""
    rng = np.random.default_rng(3)
    ridge = compress.Ridge(rng.standard_normal((24, 6)), rng.standard_normal(24), lam=0.1, workers=4)
    problem, x0, k = compress.Quadratic.of(ridge), np.ones(6), np.arange(50)
    for cls in (IST, ShiftedIST):
        one, other = cls.theoretical(ridge, sketch), cls.theoretical(problem, sketch)
        assert np.isclose(one.gamma, other.gamma, rtol=1e-12)
        if cls is ShiftedIST:
            np.testing.assert_allclose(one.bound(ridge, x0, k), other.bound(problem, x0, k), rtol=1e-9)
        else:  # where infima of parts are only known to be at least zero
            np.testing.assert_allclose(one.bias(ridge), other.bias(problem), rtol=1e-9)
            assert np.all(one.bound(ridge, x0, k) >= other.bound(problem, x0, k) * (1 - 1e-9))


def test_a_ridge_too_large_for_its_hessians_is_known_by_its_sketches(monkeypatch):
    ridge, x = compress.Ridge(np.eye(6) + 1, np.arange(6.0), lam=0.1, workers=3), np.ones(6)
    listed, drawn = Cyclic(compress.RandK(4, WIRE)), compress.PermK(3, WIRE)
    exact = Sketched(ridge, listed, x / 2)
    assert exact.evaluations == 1
    value, gradient, star, L = exact.value(x), exact.full_gradient(x), exact.x_star, exact.L
    monkeypatch.setattr(compress.problems, "_LARGEST", 107)
    large = Sketched(ridge, listed, x / 2)
    assert large.evaluations == 6 and np.isclose(large.value(x), value) and large.L == 1.5 * ridge.L > L
    np.testing.assert_allclose(large.full_gradient(x), gradient, rtol=1e-12)
    np.testing.assert_allclose(large.x_star, star, rtol=1e-9)
    with pytest.raises(NotImplementedError, match=r"a Quadratic or a Ridge .of at most 2.27 numbers in its Hessians"):
        Sketched(ridge, drawn).value(x)
    with pytest.raises(ValueError, match=r"about quadratics: Ridge.* has Hessians of 3 x 6 x 6 numbers, more than 107"):
        ShiftedIST.theoretical(ridge, drawn)


def test_constants_of_the_shifted_variant_are_those_computed_by_hand():
    """f_i = L ||x||^2 / 2 and PermK(2): P = 2 L I, c = 1/2, L_P = calL = 2 L."""
    problem, sketch = compress.Quadratic(np.full((2, 4), 3.0), np.zeros((2, 4))), compress.PermK(2, WIRE)
    gamma, c, L_P = ShiftedIST._constants(problem, Sketch(sketch), 0.5)
    assert np.isclose(gamma, 1 / 24) and np.isclose(c, 0.5) and np.isclose(L_P, 6)  # sqrt(p c / 4) / 6
    # rho = min(gamma mu / 2, p c mu / (8 L_P + 4 mu)) = min(1/16, 1/80); for gamma = 1/1000 it is 3/2000
    x = np.ones(4)
    for share, rho in ((1 / 24, 1 / 80), (1e-3, 1.5e-3)):
        assert np.isclose(ShiftedIST(sketch, share, 0.5).bound(problem, x, 7), (1 - rho) ** 7 * 4)


@pytest.mark.parametrize("p", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("sketch", [compress.PermK(2, WIRE), Cyclic(compress.RandK(2, WIRE))])
def test_the_lyapunov_function_of_the_shifted_variant_falls_in_expectation(sketch, p):
    problem = random(2, 4)
    method = ShiftedIST.theoretical(problem, sketch, p)
    after, before = method.bound(problem, np.ones(4), np.array([1, 0]))
    contraction, f_D, star = after / before, Sketched(problem, sketch), problem.x_star
    A, P = (np.mean([f.hessian(i, star) for i in range(2)], axis=0) for f in (problem, f_D))
    B = [np.mean([np.outer(s, s) * A for s, A in zip(S, problem.A, strict=True)], axis=0) for S in rounds(sketch, 2, 4)]
    np.testing.assert_allclose(np.mean(B, axis=0), P, rtol=1e-12, atol=1e-12)

    def Q(x, v):
        return (x - star) @ A @ (x - star) / 2 + (x - v) @ (P - A) @ (x - v) / 2

    for x, v in states(problem):
        moved = [x - method.gamma * (problem.full_gradient(v) + b @ (x - v)) for b in B]
        mean = np.mean([p * Q(new, new) + (1 - p) * Q(new, v) for new in moved])
        assert mean <= contraction * Q(x, v)
        assert np.isclose(2 * Q(x, x) / problem.mu, method.bound(problem, x, 0))  # v^0 = x^0


def test_nothing_is_claimed_where_no_theorem_says_it():
    problem, flat = random(3, 6), compress.Quadratic(np.zeros((3, 6)) + np.arange(6.0), np.zeros((3, 6)))
    sketch = compress.PermK(3, WIRE)
    with pytest.raises(ValueError, match="theorem for one local step, and local_steps = 2"):
        IST(sketch, 0.01, local_steps=2).bound(problem, np.ones(6), 5)
    for cls, more in ((IST, ()), (ShiftedIST, (0.5,))):
        with pytest.raises(
            ValueError, match=rf"{cls.__name__}: no bound is proven for gamma = 2, which is above 0\.\d"
        ):
            cls(sketch, 2.0, *more).bound(problem, np.ones(6), 5)
        indefinite = compress.Quadratic([[3.0, 3.0], [-1.0, 1.0]], np.ones((2, 2)))
        with pytest.raises(ValueError, match=rf"{cls.__name__}: its theorem needs convex components"):
            cls.theoretical(indefinite, compress.PermK(2))
    with pytest.raises(ValueError, match="IST: its bound needs mu > 0 of f_D, got 0"):
        IST.theoretical(flat, sketch).bound(flat, np.ones(6), 5)
    with pytest.raises(ValueError, match="ShiftedIST: its theorem needs mu > 0, got 0"):
        ShiftedIST.theoretical(flat, sketch)
    with pytest.raises(ValueError, match=r"its theorem needs c > 0, got .* of Sketch\(sets=RandK\(k=6"):
        ShiftedIST.theoretical(problem, compress.RandK(6))
    logistic = compress.Logistic(np.eye(6), np.ones(6), lam=0.1, workers=3)
    with pytest.raises(ValueError, match=r"its theorem is about quadratics: .*, got Logistic"):
        ShiftedIST.theoretical(logistic, sketch)
    with pytest.warns(UserWarning, match="no convergence is proven: ShiftedIST: its theorem is about quadratics"):
        ShiftedIST(sketch, 0.01, 0.5).init(logistic, compress.Local(3), np.ones(6))


def test_every_bit_is_counted():
    problem = random(4, 10)
    comm, method = compress.Local(4), ShiftedIST.theoretical(problem, compress.PermK(4))
    state, whole = method.init(problem, comm, np.ones(10)), 4 * 64 * 10
    up = whole
    for k in range(20):
        state = method.step(problem, comm, state, KEY.at(k))
        up += 32 * 10 + whole * (KEY.at(k).fold(0x636F696E).word < method.p * 2**64)
    assert comm.ledger.bits_up == comm.ledger.bits_down == up
    comm, method = compress.Local(4), IST(compress.PermK(4), 0.01, local_steps=3)
    with pytest.warns(UserWarning, match="no convergence is proven"):
        state = method.step(problem, comm, method.init(problem, comm, np.ones(10)), KEY)
    assert comm.ledger.bits_up == comm.ledger.bits_down == 32 * 10 and state.oracle == 12


def test_bad_input_is_named():
    problem = random(3, 6)
    with pytest.raises(ValueError, match="every worker one coordinate: n = 3 must be d = 6"):
        scaled_permutation(problem)
    flat = compress.Quadratic(np.array([[0.0, 1.0], [2.0, 1.0]]), np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"A\[0\] has 0 on its diagonal, at 0"):
        scaled_permutation(flat)
    with pytest.raises(TypeError, match="preconditioning is known for a Quadratic, got Ridge"):
        jacobi(compress.Ridge(np.eye(3), np.ones(3), lam=0.1))
    square = random(4, 4)
    with pytest.raises(
        ValueError, match=r"ShiftedIST needs an unbiased sketch: E S of .* has 0\.\d+ to \d\.\d+, not 1"
    ):
        ShiftedIST(scaled_permutation(square), 0.1, 0.1).init(square, compress.Local(4), np.ones(4))
    with pytest.raises(TypeError, match="local_steps must be an integer"):
        IST(compress.PermK(3), 0.1, 1.5)
    with pytest.raises(TypeError, match="sets must be RandK"):
        IST(compress.TopK(3), 0.1)
    for method in (IST(compress.PermK(2), 1e-3), ShiftedIST(compress.PermK(2), 1e-3, 0.5)):
        with pytest.raises(ValueError, match=r"PermK\(n=2, .*\) has sets for 2 workers, not for 3"):
            method.init(problem, compress.Local(3), np.ones(6))
        with pytest.raises(ValueError, match="has sets for 2 workers, not for 3"):
            type(method).theoretical(problem, compress.PermK(2))
    for sketch, message in (
        (Sketch(compress.PermK(3), np.ones((4, 6))), "scales are those of 4 workers, not of 3"),
        (Sketch(compress.PermK(3), np.ones(5)), "scales are those of 5 coordinates, not of 6"),
        (compress.RandK(20), r"RandK\(k=20, .*\) has no sets of 6 coordinates: k = 20 of a vector of 6 coordinates"),
    ):
        for method in (IST(sketch, 1e-3), ShiftedIST(sketch, 1e-3, 0.5)):
            with pytest.raises(ValueError, match=message):
                method.init(problem, compress.Local(3), np.ones(6))
    for method in (IST(compress.PermK(3), 1e-3), ShiftedIST(compress.PermK(3), 1e-3, 0.5)):
        with pytest.raises(TypeError, match=r"Sketched\(.*\) is sketched already: give the f that it is of"):
            method.init(Sketched(problem, method.sketch), compress.Local(3), np.ones(6))
    with pytest.warns(UserWarning, match=r"IST: gamma = 2 is above 1,"):
        IST(scaled_permutation(square), 2.0).init(square, compress.Local(4), np.ones(4))
