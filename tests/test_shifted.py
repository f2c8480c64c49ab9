"""The shifted family against its algorithm boxes, its bounds, its bits and its memory."""

import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest

import compress
from compress import kernels
from compress.optimizers.method import coin, omega

N, D = 5, 24
KEY = compress.Key(3)


@pytest.fixture(scope="module")
def problem():
    return compress.Quadratic.random(n=N, d=D, mu=1, L=20, seed=1)


RANDK, TOPK = compress.RandK(0.25, wire="float64"), compress.TopK(0.25, wire="float64")
INDUCED = compress.Induced(TOPK, RANDK)


def methods(problem):
    """Every method at its theoretical step sizes."""
    shifts = np.random.default_rng(0).standard_normal((problem.n, problem.d))
    return [
        compress.DCGD.theoretical(problem, RANDK),
        compress.DCGDShift.theoretical(problem, RANDK, shifts),
        compress.DCGDStar.theoretical(problem, RANDK),
        compress.DCGDStar.theoretical(problem, INDUCED),
        compress.DIANA.theoretical(problem, RANDK),
        compress.DIANA.theoretical(problem, INDUCED),
        compress.RandDIANA.theoretical(problem, RANDK),
        compress.GDCI.theoretical(problem, RANDK),
        compress.VRGDCI.theoretical(problem, RANDK),
        compress.EF14.theoretical(problem, TOPK),
        compress.EF21.theoretical(problem, TOPK),
        compress.MARINA.theoretical(problem, RANDK),
    ]


CONVEX = (compress.DCGD, compress.DCGDStar, compress.DIANA, compress.RandDIANA, compress.GDCI, compress.VRGDCI)
NAMES = [type(m).__name__ for m in methods(compress.Quadratic.random(n=N, d=D, mu=1, L=20, seed=1))]
EXACT = {"DCGDStar", "DIANA", "RandDIANA", "VRGDCI", "EF21", "MARINA"}


@pytest.fixture(params=range(len(NAMES)), ids=[f"{i}-{name}" for i, name in enumerate(NAMES)])
def method(request, problem):
    return methods(problem)[request.param]


@pytest.fixture(params=[i for i, name in enumerate(NAMES) if name != "DCGDStar"], ids=lambda i: f"{i}-{NAMES[i]}")
def learner(request, problem):
    """A method that need not know x*."""
    return methods(problem)[request.param]


def boxes(method, problem, x, steps):
    """The algorithm boxes, written with dense vectors: the iterates after each step."""
    n, gamma, C = problem.n, method.gamma, method.compressor
    name = type(method).__name__
    h = np.zeros((n, problem.d))
    if name == "DCGDShift":
        h = method.shifts.copy()
    if name == "DCGDStar":
        h = problem.gradients_star.copy()
    g = np.mean([problem.gradient(i, x) for i in range(n)], axis=0)  # MARINA's estimate
    for k in range(steps):
        key = KEY.at(k)
        Q = [lambda v, i=i, key=key: C(v, key.worker(i)) for i in range(n)]
        grads = [problem.gradient(i, x) for i in range(n)]
        if name in ("GDCI", "VRGDCI"):
            d = np.array([Q[i](x - gamma * grads[i] - h[i]) for i in range(n)])
            x = (1 - method.eta) * x + method.eta * np.mean(h + d, axis=0)
            if name == "VRGDCI":
                h = h + method.shift_step * d
        elif name == "EF14":
            c = np.array([Q[i](h[i] + gamma * grads[i]) for i in range(n)])
            h = h + gamma * np.array(grads) - c
            x = x - np.mean(c, axis=0)
        elif name == "EF21":
            h = h + np.array([Q[i](grads[i] - h[i]) for i in range(n)])
            x = x - gamma * np.mean(h, axis=0)
        elif name == "MARINA":
            new = x - gamma * g
            after = [problem.gradient(i, new) for i in range(n)]
            if coin(key, method.p):
                g = np.mean(after, axis=0)
            else:
                g = g + np.mean([Q[i](after[i] - grads[i]) for i in range(n)], axis=0)
            x = new
        else:
            m = np.array([Q[i](grads[i] - h[i]) for i in range(n)])
            x = x - gamma * np.mean(h + m, axis=0)
            if name == "DIANA":
                h = h + method.shift_step * m
            if name == "RandDIANA":
                for i in range(n):
                    if coin(key.worker(i), method.p):
                        h[i] += np.float32(grads[i] - h[i])
        yield x


def start(seed=0):
    return np.random.default_rng(seed).standard_normal(D) * 3


def test_steps_are_those_of_the_algorithm_box(method, problem):
    comm, x0 = compress.Local(N), start()
    state = method.init(problem, comm, x0)
    for k, expected in enumerate(boxes(method, problem, x0, 60)):
        state = method.step(problem, comm, state, KEY.at(k))
        np.testing.assert_allclose(state.x, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(x0, start())


class Recorder(compress.Local):
    """Local, with the messages that have been sent."""

    def __init__(self, n):
        super().__init__(n)
        self.sent = []

    def allgather(self, messages):
        self.sent += messages
        return super().allgather(messages)


def test_every_bit_is_counted(method, problem):
    comm, name = Recorder(N), type(method).__name__
    state = method.init(problem, comm, start())
    whole = oracle = N if name == "MARINA" else 0  # messages that carry a vector in full
    for k in range(40):
        before = len(comm.sent)
        state = method.step(problem, comm, state, KEY.at(k))
        refreshed = sum(m.bits == (32 if name == "RandDIANA" else 64) * D for m in comm.sent[before:])
        whole += refreshed
        oracle += 2 * N if name == "MARINA" and not refreshed else N
    coded = [m for m in comm.sent if m.size and m.bits not in (32 * D, 64 * D)]
    rounds = 40 - (whole // N - 1) if name == "MARINA" else 40
    assert len(coded) == rounds * N and (whole > 0) == (name in ("MARINA", "RandDIANA"))
    assert all(m.bits <= method.compressor.bits(D) for m in coded)
    assert all(m.bits == method.compressor.bits(D) for m in coded) or not method.compressor.fixed_length
    ledger, bits = comm.ledger, sum(m.bits for m in comm.sent)
    assert ledger.bits_up == bits and ledger.bits_down == (N - 1) * bits
    assert ledger.messages == len(comm.sent)
    assert ledger.wire_up == sum(m.payload.nbytes for m in comm.sent) + compress.comm.HEADER * ledger.messages
    assert state.oracle == oracle


def test_coins_fall_as_often_as_they_should():
    """Each of two workers with frequency p, and both with p^2, within 4 standard errors."""
    p, trials = 0.3, 20_000
    falls = np.array([[coin(KEY.at(k).worker(i), p) for i in range(2)] for k in range(trials)])
    for share, probability in [*((f, p) for f in falls.mean(axis=0)), (falls.all(axis=1).mean(), p * p)]:
        assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / trials)
    assert coin(KEY, 1.0)


def test_the_mean_of_20_runs_keeps_to_its_bound(method, problem):
    steps, x0, comm = 200, start(), compress.Local(N)
    squares = np.empty((20, steps + 1))
    for run in range(20):
        state = method.init(problem, comm, x0)
        squares[run, 0] = np.sum((x0 - problem.x_star) ** 2)
        for k in range(steps):
            state = method.step(problem, comm, state, compress.Key(run).at(k))
            squares[run, k + 1] = np.sum((state.x - problem.x_star) ** 2)
    bound = method.bound(problem, x0, np.arange(steps + 1))
    assert np.all(squares.mean(axis=0) <= bound * (1 + 1e-12))  # equal at k = 0
    assert squares.mean(axis=0)[-1] < squares[0, 0]


def test_what_is_proven_exact_is(method, problem):
    exact = type(method).__name__ in EXACT
    trace = compress.run(
        method, problem, compress.Local(N), start(), steps=12_000 if exact else 3000, until=1e-20, every=10
    )
    assert (trace.error[-1] <= 1e-20) == exact, trace.reason


def test_the_neighbourhood_of_dcgd_shrinks_with_gamma(problem):
    floors = []
    full = compress.DCGD.theoretical(problem, RANDK).gamma
    for gamma in (full, full / 4):
        trace = compress.run(compress.DCGD(RANDK, gamma), problem, compress.Local(N), start(), steps=4000, every=5)
        floors.append(np.mean(trace.error[-400:]))
    assert 3 < floors[0] / floors[1] < 5.5


def test_interpolation_leaves_dcgd_and_ef14_no_neighbourhood():
    problem = compress.Quadratic.random(n=N, d=D, mu=1, L=20, interpolation=True, seed=1)
    for method in (compress.DCGD.theoretical(problem, RANDK), compress.EF14.theoretical(problem, TOPK)):
        trace = compress.run(method, problem, compress.Local(N), start(), steps=12_000, until=1e-8, every=10)
        assert trace.error[-1] <= 1e-8, trace.reason
    trace = compress.run(compress.GDCI.theoretical(problem, RANDK), problem, compress.Local(N), start(), steps=4000)
    assert trace.error[-1] > 1e-9  # its messages are of x itself, which is not 0 at x*


@pytest.mark.parametrize("regularizer", [compress.L1(2.0), compress.L2(0.5), compress.Box(-0.05, 0.05)])
def test_proximal_steps_reach_the_composite_minimum(regularizer):
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((40, 10)), rng.standard_normal(40) * 5
    problem = compress.Ridge(A, b, lam=0.5, workers=4, regularizer=regularizer)
    assert np.linalg.norm(problem.gradients_star.mean(axis=0)) > 1e-3
    for cls in (compress.DCGDStar, compress.DIANA, compress.RandDIANA):
        method = cls.theoretical(problem, compress.RandK(0.5))
        trace = compress.run(method, problem, compress.Local(4), np.ones(10), steps=20_000, until=1e-18, every=20)
        assert trace.error[-1] <= 1e-18, trace.reason
    with pytest.raises(ValueError, match="GDCI has no proximal step"):
        compress.GDCI.theoretical(problem, RANDK).init(problem, compress.Local(4), np.ones(10))


def test_workers_that_share_permutations_average_without_error(problem):
    """Perm-K with n workers of equal gradients sends the mean exactly: gradient descent."""
    same = compress.Quadratic(np.broadcast_to(np.diag(np.arange(1.0, 9)), (4, 8, 8)), np.ones((4, 8)))
    method = compress.DCGD.theoretical(same, compress.PermK(4))
    state = method.init(same, compress.Local(4), np.zeros(8))
    for k in range(5):
        expected = state.x - method.gamma * same.full_gradient(state.x)
        state = method.step(same, compress.Local(4), state, KEY.at(k))
        np.testing.assert_allclose(state.x, expected, rtol=1e-6)


def test_float32_runs_in_float32(method, problem):
    comm = compress.Local(N)
    state = method.init(problem, comm, start().astype(np.float32))
    for k in range(5):
        state = method.step(problem, comm, state, KEY.at(k))
    for value in state:
        for array in value if isinstance(value, list) else [value]:
            assert isinstance(array, int) or array.dtype == np.float32


class Distances(compress.Problem):
    """f_i = ||x - c_i||^2 / 2 on any backend, without constants."""

    regularizer = None

    def __init__(self, centres):
        self.centres, self.n, self.d = centres, len(centres), len(centres[0])

    def value(self, x):
        raise NotImplementedError

    def gradient(self, i, x, out=None):
        out = x.copy() if out is None else out
        out[...] = x
        kernels.of(out).add_or_store(self.centres[i], out, -1.0, True)
        return out


def test_state_lives_where_x0_does_and_has_the_same_bits(learner, backend):
    """The same steps on the grid: a GPU where there is one."""
    method = learner
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((N, D)).astype(np.float32)
    x0 = rng.standard_normal(D).astype(np.float32)
    on = (lambda a: a) if backend.name == "cpu" else kernels.on_device
    runs = []
    for move in (lambda a: a, on):
        problem, comm = Distances([move(c) for c in centres]), compress.Local(N)
        state = method.init(problem, comm, move(x0))
        for k in range(4):
            state = method.step(problem, comm, state, KEY.at(k))
        runs.append((kernels.host(state.x), comm.ledger))
    assert np.array_equal(runs[0][0].view(np.uint32), runs[1][0].view(np.uint32)) and runs[0][1] == runs[1][1]


def test_no_more_memory_than_the_shifts_and_four_vectors():
    n, d = 10, 200_000
    problem = Distances([np.float32(np.full(d, i)) for i in range(n)])
    x0 = np.zeros(d, np.float32)
    C = compress.RandK(0.01)
    for method in (compress.DIANA(C, 0.1, 0.01), compress.VRGDCI(C, 0.1, 0.1, 0.01), compress.MARINA(C, 0.1, 1e-9)):
        comm = compress.Local(n)
        tracemalloc.start()
        state = method.init(problem, comm, x0)
        tracemalloc.reset_peak()  # of MARINA's first gradients, which are sent in full
        for k in range(3):
            state = method.step(problem, comm, state, KEY.at(k))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= (n + 4) * 4 * d


@pytest.mark.parametrize("cls", [compress.GDCI, compress.VRGDCI])
def test_the_bound_of_compressed_iterates_holds_for_smaller_gamma(problem, cls):
    method = cls.theoretical(problem, RANDK)
    method = replace(method, gamma=0.9 * method.gamma, eta=0.3 * method.eta)
    x0, steps, squares = start(), 150, []
    for run in range(20):
        trace = compress.run(method, problem, compress.Local(N), x0, compress.Key(run), steps=steps)
        squares.append(trace.error * np.sum((x0 - problem.x_star) ** 2))
    assert np.all(np.mean(squares, axis=0) <= method.bound(problem, x0, np.arange(steps + 1)) * (1 + 1e-12))
    with pytest.raises(ValueError, match="no contraction is proven for gamma = "):
        replace(cls.theoretical(problem, RANDK), gamma=1e-3).bound(problem, x0, 1)


def test_perm_k_counts_as_dependent_workers():
    """The variance of the mean is that of independent errors with omega = n where the vectors sum to zero."""
    n, d, trials = 3, 6, 4000
    C, v = compress.PermK(n), np.random.default_rng(0).standard_normal((n, d))
    v -= v.mean(axis=0)
    squares = []
    for k in range(trials):
        errors = [C(v[i], KEY.at(k).worker(i)) - v[i] for i in range(n)]
        squares.append(np.sum(np.mean(errors, axis=0) ** 2))
    expected = omega(compress.DCGD, C, d) / n**2 * np.sum(v**2)
    assert abs(np.mean(squares) - expected) < 4 * np.std(squares) / np.sqrt(trials)
    assert omega(compress.DCGD, C, d) == n == C.omega(d) + 1
    for dependent in (compress.Correlated(compress.StandardDithering(3), n), compress.Induced(TOPK, C)):
        with pytest.raises(TypeError, match=r"DIANA: the errors of .* depend on each other over workers"):
            omega(compress.DIANA, dependent, d)


def test_refreshes_of_any_range_on_a_float64_wire():
    rng = np.random.default_rng(0)
    for scale, refused in ((1e45, True), (1e-55, False)):
        problem = compress.Quadratic(np.full((2, 4), 2.0), scale * rng.standard_normal((2, 4)))
        method = compress.RandDIANA(compress.RandK(2, wire="float64"), 0.1, 0.5, wire="float64")
        trace = compress.run(method, problem, compress.Local(2), np.zeros(4), steps=800, until=1e-20)
        assert trace.error[-1] <= 1e-20
        if refused:
            with pytest.raises(ValueError, match="leaves float32's range; wire='float64' carries it"):
                compress.run(replace(method, wire="float32"), problem, compress.Local(2), np.zeros(4), steps=50)


class OutOfPlace(Distances):
    """A problem that leaves `out` alone."""

    def gradient(self, i, x, out=None):
        return x - self.centres[i]


def test_a_gradient_may_be_a_vector_of_its_own(learner):
    method = learner
    centres, states = list(np.random.default_rng(0).standard_normal((N, D))), []
    for cls in (Distances, OutOfPlace):
        problem, comm = cls(centres), compress.Local(N)
        state = method.init(problem, comm, start())
        for k in range(4):
            state = method.step(problem, comm, state, KEY.at(k))
        states.append(state.x)
    assert np.array_equal(*states)
    assert np.array_equal(problem.full_gradient(start()), Distances(centres).full_gradient(start()))


@pytest.mark.parametrize("wrong", [None, [0.0] * D, np.zeros(3), np.zeros(D, np.int64)])
def test_a_gradient_of_another_kind_is_named(wrong):
    problem = OutOfPlace([np.zeros(D)] * N)
    problem.gradient = lambda i, x, out: wrong
    comm, method = compress.Local(N), compress.DIANA(RANDK, 0.1, 0.1)
    with pytest.raises((TypeError, ValueError)):
        method.step(problem, comm, method.init(problem, comm, start()), KEY)


def test_identity_goes_with_every_method(problem):
    """Gradient descent, whatever the method."""
    for cls in (compress.DCGD, compress.DIANA, compress.EF21, compress.EF14):
        method = cls.theoretical(problem, compress.Identity())
        trace = compress.run(method, problem, compress.Local(N), start(), steps=5)
        x = start()
        for _ in range(5):
            x -= method.gamma * problem.full_gradient(x)
        np.testing.assert_allclose(trace.x, x, rtol=1e-12)


def test_smooth_functions_without_mu_have_steps_for_ef21_and_marina():
    problem = Distances([np.zeros(D)] * N)
    problem.L_i, problem.L = np.ones(N), 1.0
    for cls, C in ((compress.EF21, TOPK), (compress.MARINA, RANDK)):
        assert 0 < cls.theoretical(problem, C).gamma <= 1
    with pytest.raises(NotImplementedError, match="Distances does not know its strong convexity: set mu, or"):
        compress.VRGDCI.theoretical(problem, RANDK)


# Bad input


def test_parameters_are_checked(problem):
    with pytest.raises(ValueError, match=r"DIANA: gamma must be positive, got 0\.0"):
        compress.DIANA(RANDK, 0, 0.1)
    with pytest.raises(ValueError, match=r"DIANA: shift_step must lie in \(0, 1\], got 2"):
        compress.DIANA(RANDK, 0.1, 2)
    with pytest.raises(TypeError, match="RandDIANA: p must be a number"):
        compress.RandDIANA(RANDK, 0.1, "half")
    with pytest.raises(TypeError, match="DCGD: compressor must be a Compressor, got 3"):
        compress.DCGD(3, 0.1)
    with pytest.raises(ValueError, match="b must be larger than 1"):
        compress.DIANA.theoretical(problem, RANDK, b=1)
    with pytest.raises(ValueError, match=r"MARINA: p must lie in \(0, 1\], got 2"):
        compress.MARINA.theoretical(problem, RANDK, p=2)


def test_the_kind_of_compressor_is_named(problem):
    for cls in (compress.DCGD, compress.DCGDStar, compress.DIANA, compress.RandDIANA, compress.GDCI, compress.MARINA):
        with pytest.raises(TypeError, match=f"{cls.__name__} needs an unbiased compressor, and TopK"):
            cls.theoretical(problem, TOPK)
    for cls in (compress.EF14, compress.EF21):
        with pytest.raises(TypeError, match=f"{cls.__name__} needs a contractive compressor, and RandK"):
            cls.theoretical(problem, RANDK)
    adaptive = compress.Trellis(bits=2, unbiased=True)
    with pytest.raises(TypeError, match=r"DIANA: Trellis.* has no proven omega"):
        compress.DIANA.theoretical(problem, adaptive)
    compress.DIANA(adaptive, 0.01, 0.5).init(problem, compress.Local(N), start())  # with steps of one's own it runs


def test_steps_above_the_proven_limit_warn_and_run(method, problem):
    (limit,) = [v for k, v in method.limits(problem).items() if k == "gamma"]
    assert method.gamma <= limit * (1 + 1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.init(problem, compress.Local(N), start())
    with pytest.warns(UserWarning, match=f"gamma = .* is above {limit:.6g}"):
        replace(method, gamma=1.01 * limit).init(problem, compress.Local(N), start())


def test_sizes_are_checked(problem):
    method = compress.DIANA.theoretical(problem, RANDK)
    with pytest.raises(ValueError, match="the problem has 5 components, the communicator 4 workers"):
        method.init(problem, compress.Local(4), start())
    with pytest.raises(ValueError, match="x0 has 3 coordinates, the problem 24"):
        method.init(problem, compress.Local(N), np.zeros(3))
    with pytest.raises(ValueError, match="x0 has 24 NaN or Inf among 24"):
        method.init(problem, compress.Local(N), np.full(D, np.nan))
    with pytest.raises(ValueError, match=r"x0 must have shape \(24,\), got \(3,\)"):
        method.bound(problem, np.zeros(3), 1)
    with pytest.raises(TypeError, match=r"DIANA: problem must be a compress\.Problem"):
        compress.DIANA.theoretical(RANDK, problem)
    with pytest.raises(TypeError, match=r"problem must be a compress\.Problem"):
        method.init(object(), compress.Local(N), start())
    with pytest.raises(ValueError, match="shifts must be 5 vectors of 24"):
        compress.DCGDShift(RANDK, 0.01, np.zeros((3, D))).init(problem, compress.Local(N), start())
    with pytest.raises(ValueError, match="DCGDShift: shifts hold 1 NaN or Inf"):
        compress.DCGDShift(RANDK, 0.01, [[0.0, np.nan]])
    given = np.ones((2, 3))
    method = compress.DCGDShift(RANDK, 0.01, given.tolist())
    assert np.array_equal(method.shifts, given) and method != compress.DCGDShift(RANDK, 0.01, given + 1)


def test_components_that_are_not_convex_have_no_steps_but_those_of_ef21_and_marina():
    problem = compress.Quadratic(np.array([np.full(4, 50.0), np.full(4, -48.0)]), np.ones((2, 4)))
    comm, x0 = compress.Local(2), np.zeros(4)
    for cls, C in (*((c, RANDK) for c in CONVEX), (compress.EF14, TOPK)):
        with pytest.raises(ValueError, match=f"{cls.__name__}: its theorem needs convex components"):
            cls.theoretical(problem, C)
    with pytest.warns(UserWarning, match="no convergence is proven: DIANA: its theorem needs convex components"):
        compress.DIANA(RANDK, 1e-3, 0.1).init(problem, comm, x0)
    for method in (compress.EF21.theoretical(problem, TOPK), compress.MARINA.theoretical(problem, RANDK)):
        trace = compress.run(method, problem, comm, x0, steps=4000, until=1e-7, every=10)
        assert trace.error[-1] <= 1e-7


def test_where_mu_is_zero_it_is_said():
    flat = compress.Quadratic(np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert flat.mu == 0
    C, comm, x0 = compress.RandK(1, wire="float64"), compress.Local(2), np.zeros(2)
    for cls in (compress.GDCI, compress.VRGDCI):
        with pytest.raises(ValueError, match=f"{cls.__name__}: its theorem needs mu > 0, got 0"):
            cls.theoretical(flat, C)
    with pytest.warns(UserWarning, match="no convergence is proven: GDCI: its theorem needs mu > 0"):
        compress.GDCI(C, 0.1, 0.1).init(flat, comm, x0)
    for cls in (compress.DCGD, compress.MARINA, compress.EF21):
        method = cls.theoretical(flat, compress.TopK(1) if cls is compress.EF21 else C)
        method.init(flat, comm, x0)
        with pytest.raises(ValueError, match=f"{cls.__name__}: its theorem needs mu > 0, got 0"):
            method.bound(flat, x0, 3)
