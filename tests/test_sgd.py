"""SGD: its step against the formula, its constants, and its two theorems over many runs."""

import math
import threading

import numpy as np
import pytest

from compress import Key, Local
from compress.optimizers.method import generator
from compress.optimizers.sgd import SGD
from compress.problems import L1, Box, Logistic, Quadratic, Ridge
from compress.sampling import FullBatch, Independent, Nice, Partition, SingleElement, WithReplacement, optimal_batch

N, D = 30, 4


def data(seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((N, D)) * np.geomspace(0.5, 2, N)[:, None]
    return A, A @ rng.standard_normal(D) + rng.standard_normal(N)


def ridge(**more):
    return Ridge(*data(), lam=1 / N, **more)


def logistic(**more):
    A, b = data()
    return Logistic(A, np.sign(b), lam=1 / N, **more)


SAMPLINGS = {
    "single": lambda p: SingleElement.uniform(p.n),
    "importance": lambda p: SingleElement.importance(p.L_i),
    "independent": lambda p: Independent.partially_biased(p.L_i, 4),
    "nice": lambda p: Nice(p.n, 4),
    "with replacement": lambda p: WithReplacement.uniform(p.n, 4),
    "partition": lambda p: Partition.uniform(np.split(np.arange(p.n), 6)),
    "full batch": lambda p: FullBatch(p.n),
}


def distances(method, problem, x0, steps, seed=0):
    """||x^k - x*||^2 for k = 0, ..., steps."""
    comm, star = Local(1), problem.x_star
    state = method.init(problem, comm, x0)
    result = [np.sum((state.x - star) ** 2)]
    for k in range(steps):
        state = method.step(problem, comm, state, Key(seed).at(k))
        result.append(np.sum((state.x - star) ** 2))
    return np.array(result)


def assert_bound_holds(method, problem, x0, steps, runs=20):
    """At every step: the mean of the runs, less three of its standard errors, is no larger than the bound."""
    errors = np.array([distances(method, problem, x0, steps, seed) for seed in range(runs)])
    mean, spread = errors.mean(axis=0), errors.std(axis=0, ddof=1) / math.sqrt(runs)
    bound = method.bound(problem, x0, np.arange(steps + 1))
    assert np.all(mean - 3 * spread <= bound * (1 + 1e-12) + 1e-26)


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("regularizer", [None, L1(0.1), Box(-0.5, 0.5)], ids=["smooth", "l1", "box"])
def test_a_step_is_the_formula(name, regularizer):
    problem = ridge(regularizer=regularizer)
    sampling = SAMPLINGS[name](problem)
    method, comm = SGD(sampling, 1e-2, switch=300, mu=problem.mu), Local(1)
    x, seen = np.ones(D), 0
    state = method.init(problem, comm, x)._replace(k=298)
    for k in range(298, 304):
        key = Key(7).at(k)
        rng = np.random.Generator(np.random.Philox(key=key.word))
        indices, weights = sampling.draw(rng)
        gamma = 1e-2 if k <= 300 else (2 * k + 1) / ((k + 1) ** 2 * problem.mu)
        x = x - gamma * sum(w * problem.gradient(i, x) for i, w in zip(indices, weights, strict=True)) / N
        x = x if regularizer is None else regularizer.prox(x, gamma)
        seen += len(indices)
        state = method.step(problem, comm, state, key)
        assert state.x == pytest.approx(x, rel=1e-12) and method.step_size(k) == gamma
    assert state.k == 304 and state.oracle == seen
    assert comm.ledger.messages == comm.ledger.bits_up == 0


@pytest.mark.parametrize("everything", [FullBatch(N), Nice(N, N), Independent.uniform(N, N)], ids=repr)
def test_all_components_are_gradient_descent(everything):
    problem, comm = ridge(), Local(1)
    method = SGD.theoretical(problem, everything)
    assert method.gamma == pytest.approx(1 / (2 * problem.L), rel=1e-12)
    x, state = np.ones(D), method.init(problem, comm, np.ones(D))
    for k in range(50):
        x = x - method.gamma * problem.full_gradient(x)
        state = method.step(problem, comm, state, Key(0).at(k))
    assert state.x == pytest.approx(x, rel=1e-12) and state.oracle == 50 * N


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("make", [ridge, logistic])
def test_theorem_3_1(name, make):
    problem = make()
    assert_bound_holds(SGD.theoretical(problem, SAMPLINGS[name](problem)), problem, np.full(D, 2.0), 200)


@pytest.mark.parametrize("name", ["single", "importance", "nice"])
def test_theorem_3_2(name):
    problem = ridge()
    method = SGD.theoretical(problem, SAMPLINGS[name](problem), switching=True)
    x0, steps = np.full(D, 2.0), 4 * method.switch
    assert_bound_holds(method, problem, x0, steps)
    k = np.arange(method.switch, 100 * method.switch)
    noise = method.sampling.gradient_noise(problem.gradients_star) / problem.mu**2
    published = 8 * noise / k + (method.switch / (math.e * k)) ** 2 * np.sum((x0 - problem.x_star) ** 2)
    assert np.all(method.bound(problem, x0, k) <= published * (1 + 1e-12))
    assert method.bound(problem, x0, int(k[-1])) == pytest.approx(method.bound(problem, x0, k)[-1])


@pytest.mark.parametrize("regularizer", [L1(0.3), Box(-0.2, 0.2)], ids=["l1", "box"])
def test_theorem_3_1_with_a_proximal_step(regularizer):
    problem = ridge(regularizer=regularizer)
    assert np.linalg.norm(problem.gradients_star.mean(axis=0)) > 0.01  # so that it matters what noise is about
    assert_bound_holds(SGD.theoretical(problem, Nice(N, 4)), problem, np.full(D, 2.0), 200)
    everything = SGD.theoretical(problem, FullBatch(N))
    assert distances(everything, problem, np.ones(D), 1500)[-1] < 1e-20


def test_without_noise_it_converges_linearly():
    problem = Quadratic.random(N, D, 1, 10, interpolation=True)
    method = SGD.theoretical(problem, SingleElement.importance(problem.L_i), eps=1e-9)
    assert method == SGD.theoretical(problem, method.sampling)
    assert_bound_holds(method, problem, np.ones(D), 300)
    assert distances(method, problem, np.ones(D), 4000)[-1] < 1e-20


def test_components_that_are_not_convex():
    A, _ = data()
    nu = 1.3 * np.linalg.eigvalsh(A.T @ A / N)[-1]
    problem = Quadratic(nu * np.eye(D) - np.einsum("ij,ik->ijk", A, A), np.tile(A.mean(axis=0), (N, 1)))
    assert not problem.convex
    method = SGD.theoretical(problem, Nice(N, 8))
    assert_bound_holds(method, problem, np.ones(D), 200)


def test_theoretical_parameters():
    problem, sampling = ridge(), Nice(N, 3)
    calL = sampling.expected_smoothness(problem)
    noise = sampling.gradient_noise(problem.gradients_star)
    assert SGD.theoretical(problem, sampling) == SGD(sampling, 1 / (2 * calL))
    for eps in (1e-3, 1e3):
        gamma = min(1 / (2 * calL), eps * problem.mu / (4 * noise))
        assert SGD.theoretical(problem, sampling, eps).gamma == pytest.approx(gamma, rel=1e-12)
    switching = SGD.theoretical(problem, sampling, switching=True)
    assert (switching.switch, switching.mu) == (4 * math.ceil(calL / problem.mu), problem.mu)
    assert switching.step_size(switching.switch) == switching.gamma > switching.step_size(switching.switch + 1)


def test_an_accuracy_is_reached_in_the_steps_that_the_theorem_says():
    problem, x0 = ridge(), np.full(D, 2.0)
    start = np.sum((x0 - problem.x_star) ** 2)
    eps = 0.01 * start
    sampling = Nice(N, optimal_batch(problem, eps))
    method = SGD.theoretical(problem, sampling, eps)
    assert 1 < sampling.tau < N and method.gamma < 1 / (1.99 * sampling.expected_smoothness(problem))
    steps = math.ceil(math.log(2 * start / eps) / (method.gamma * problem.mu))
    assert method.bound(problem, x0, steps) <= eps
    assert np.mean([distances(method, problem, x0, steps, seed)[-1] for seed in range(5)]) <= eps


def test_a_step_above_the_limit_warns():
    problem = ridge()
    good = SGD.theoretical(problem, Nice(N, 3), switching=True)
    good.init(problem, Local(1), np.ones(D))
    with pytest.warns(UserWarning, match=r"SGD: gamma = .* is above"):
        SGD(good.sampling, 1.01 * good.gamma).init(problem, Local(1), np.ones(D))
    with pytest.warns(UserWarning, match=r"SGD: mu = .* is above"):
        SGD(good.sampling, good.gamma, good.switch, 2 * problem.mu).init(problem, Local(1), np.ones(D))


BAD = [
    (lambda: SGD(Nice(3, 1), 0.0), ValueError, "gamma must be positive.*, got 0"),
    (lambda: SGD(Nice(3, 1), -1.0), ValueError, "got -1"),
    (lambda: SGD(Nice(3, 1), math.nan), ValueError, "got nan"),
    (lambda: SGD(Nice(3, 1), "fast"), TypeError, "'fast'"),
    (lambda: SGD(3, 0.1), TypeError, "sampling must be a Sampling, got 3"),
    (lambda: SGD(Nice(3, 1), 0.1, switch=5), ValueError, "switch and mu, or neither, got 5 and None"),
    (lambda: SGD(Nice(3, 1), 0.1, mu=1.0), ValueError, "None and 1.0"),
    (lambda: SGD(Nice(3, 1), 0.1, switch=0, mu=1.0), ValueError, "switch must be at least 1"),
    (lambda: SGD(Nice(3, 1), 0.1, switch=5, mu=0.0), ValueError, "mu must be positive"),
    (lambda: SGD(Nice(3, 1), 0.1, switch=5, mu=1.0), ValueError, r"grow from 0\.1 to 0\.265306 after switch = 5"),
    (lambda: SGD.theoretical(ridge(), Nice(N, 1), eps=0.0), ValueError, "eps must be positive, got 0"),
    (lambda: SGD.theoretical(ridge(), Nice(N, 1), eps=0.1, switching=True), ValueError, "eps or switching"),
    (lambda: SGD.theoretical(ridge(), Nice(N + 1, 1)), ValueError, f"over {N + 1} components"),
    (lambda: SGD.theoretical(flat(), Nice(1, 1), switching=True), ValueError, "strongly convex problem, mu is 0"),
    (lambda: SGD(Nice(N, 1), 0.1).init(ridge(), Local(2), np.ones(D)), ValueError, "one worker, got 2"),
    (lambda: SGD(Nice(9, 1), 0.1).init(ridge(), Local(1), np.ones(D)), ValueError, f"over 9 components.* has {N}"),
    (lambda: SGD(Nice(N, 1), 0.1).init(ridge(), Local(1), np.ones(D + 1)), ValueError, f"x0 has {D + 1} coordinates"),
    (lambda: SGD(Nice(N, 1), 0.1).init(ridge(), Local(1), np.full(D, np.nan)), ValueError, "NaN"),
]


def flat():
    return Quadratic(np.array([[1.0, 0.0]]), np.zeros((1, 2)))


@pytest.mark.parametrize("make, error, message", BAD, ids=range(len(BAD)))
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_x0_stays_and_float32_is_kept():
    problem, x0 = ridge(), np.ones(D, np.float32)
    method = SGD.theoretical(problem, Nice(N, 4))
    state = method.init(problem, Local(1), x0)
    for k in range(100):
        state = method.step(problem, Local(1), state, Key(0).at(k))
    assert state.x.dtype == np.float32 and np.all(x0 == 1)
    assert distances(method, problem, np.ones(D), 100)[-1] == pytest.approx(
        np.sum((state.x - problem.x_star) ** 2), rel=1e-3
    )


def test_the_generator_of_a_key_is_its_own():
    """Whatever was drawn before, half a word included, and on every thread."""

    def draws(rng):
        return rng.integers(0, 9, dtype=np.uint32), rng.random(3).tolist(), rng.choice(20, 4, replace=False).tolist()

    keys = [Key(1).at(k) for k in (0, 1, 2**63, 0)]
    expected = [draws(np.random.Generator(np.random.Philox(key=key.word))) for key in keys]
    assert [draws(generator(key)) for key in keys] == expected
    elsewhere = []
    held = generator(keys[0])
    thread = threading.Thread(target=lambda: elsewhere.extend(draws(generator(key)) for key in keys))
    thread.start()
    thread.join()
    assert elsewhere == expected and draws(held) == expected[0]


def test_runs_of_a_key_are_the_same_bit_for_bit():
    problem = ridge()
    method = SGD.theoretical(problem, Independent.uniform(N, 5))
    one, same, other = (distances(method, problem, np.ones(D), 50, seed) for seed in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_the_quickest_statements_of_the_reproduction():
    pytest.importorskip("rich")
    from bench.papers import sgd

    assert sgd.constants(seeds=1).ok and sgd.ends(40, 5, steps=50).ok
    curves, check = sgd.importance(100, 5)
    assert check.ok and all(curve[-1] <= 1e-2 < curve[-2] < curve[0] for curve in curves.values())
