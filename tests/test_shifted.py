"""The shifted family against its algorithm boxes, its bounds, its bits and its memory."""

import tracemalloc
import warnings

import numpy as np
import pytest

import compress
from compress import kernels

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


NAMES = [type(m).__name__ for m in methods(compress.Quadratic.random(n=N, d=D, mu=1, L=20, seed=1))]
EXACT = {"DCGDStar", "DIANA", "RandDIANA", "VRGDCI", "EF21", "MARINA"}


@pytest.fixture(params=range(len(NAMES)), ids=[f"{i}-{name}" for i, name in enumerate(NAMES)])
def method(request, problem):
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
            if key.fold(0x636F696E).word < method.p * 2**64:
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
                    if key.worker(i).fold(0x636F696E).word < method.p * 2**64:
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


def test_every_bit_is_counted(method, problem):
    comm, name = compress.Local(N), type(method).__name__
    state = method.init(problem, comm, start())
    expected, oracle = 0, 0
    if name == "MARINA":
        expected, oracle = N * 64 * D, N
    assert comm.ledger.bits_up == expected
    for k in range(40):
        state = method.step(problem, comm, state, KEY.at(k))
        whole = [KEY.at(k).worker(i).fold(0x636F696E).word < getattr(method, "p", 0) * 2**64 for i in range(N)]
        if name == "MARINA" and KEY.at(k).fold(0x636F696E).word < method.p * 2**64:
            expected, oracle = expected + N * 64 * D, oracle + N
        else:
            expected += N * method.compressor.bits(D)
            oracle += 2 * N if name == "MARINA" else N
        if name == "RandDIANA":
            expected += 32 * D * sum(whole)
    ledger = comm.ledger
    assert ledger.bits_up == expected or (ledger.bits_up < expected and not method.compressor.fixed_length)
    assert ledger.bits_down == (N - 1) * ledger.bits_up
    padding = 8 * (ledger.wire_up - compress.comm.HEADER * ledger.messages) - ledger.bits_up
    assert 0 <= padding < 8 * ledger.messages
    assert state.oracle == oracle


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
    method = compress.DCGD(compress.PermK(4), 0.05)
    state = method.init(same, compress.Local(4), np.zeros(8))
    for k in range(5):
        expected = state.x - 0.05 * same.full_gradient(state.x)
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


def test_state_lives_where_x0_does_and_has_the_same_bits(method, backend):
    """The same steps on the grid: a GPU where there is one."""
    if isinstance(method, compress.DCGDStar):
        pytest.skip("needs x* as a NumPy vector: GPU or not, its step is that of DCGDShift")
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


# Bad input


def test_parameters_are_checked(problem):
    with pytest.raises(ValueError, match="DIANA: gamma must be positive and finite, got 0"):
        compress.DIANA(RANDK, 0, 0.1)
    with pytest.raises(ValueError, match=r"DIANA: shift_step must lie in \(0, 1\], got 2"):
        compress.DIANA(RANDK, 0.1, 2)
    with pytest.raises(TypeError, match="RandDIANA: p must be a number"):
        compress.RandDIANA(RANDK, 0.1, "half")
    with pytest.raises(TypeError, match="DCGD: compressor must be a Compressor, got 3"):
        compress.DCGD(3, 0.1)
    with pytest.raises(ValueError, match="b must be larger than 1"):
        compress.DIANA.theoretical(problem, RANDK, b=0.5)


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
    from dataclasses import replace

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
    with pytest.raises(ValueError, match="NaN"):
        method.init(problem, compress.Local(N), np.full(D, np.nan))
    with pytest.raises(ValueError, match="shifts must be 5 vectors of 24"):
        compress.DCGDShift(RANDK, 0.01, np.zeros((3, D))).init(problem, compress.Local(N), start())
