"""MAST: f_D and its minimiser, methods against their algorithm boxes and bounds, what workers are sent and hold.

Run as a script, this file is the job that MPI launches.
"""

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

    def _gather(self, messages, graph=None):
        raise AssertionError("a worker must not be sent what others send")

    _exchange = _gather

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
    """Where no closed form gives them: L and mu of f_D of Ridge problems against the Hessian, of the Quadratic."""
    scales = np.random.default_rng(5).uniform(0.2, 3, (N, D))
    base = compress.Ridge(ROWS, LABELS, lam=0.1, workers=N)
    f_D = Sketched(base, Sketch(SKETCHES["Perm-K"], scales))
    whole = Sketched(compress.Quadratic([base.hessian(i, V) for i in range(N)], np.zeros((N, D))), f_D.sketch)
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
    with pytest.raises(TypeError, match=r"a Problem with a loss f, got BilinearGame"):
        Sketched(BilinearGame([[[2.0]]]), compress.RandK(1))
    for cls in (DSGD, LSVRDSG, SPAGE):
        with pytest.raises(ValueError, match="has sets for 3 workers, not for 4"):
            cls.theoretical(Sketched(quadratic(), compress.PermK(3)))
    with pytest.raises(ValueError, match="has sets for 3 workers, not for 4"):
        DSGD(1e-3).init(Sketched(logistic(), compress.PermK(3)), compress.Local(N), np.ones(D))


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
