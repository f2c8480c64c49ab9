"""Samplings against the enumeration of everything that they can draw."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from compress.problems import L1, Logistic, Quadratic, Ridge
from compress.sampling import (
    Arbitrary,
    FullBatch,
    Independent,
    Nice,
    Partition,
    SingleElement,
    WithReplacement,
    optimal_batch,
)

N, D = 12, 10


def rows(seed=0, n=N, d=D):
    """Gaussian rows of norms a decade apart, and noisy observations."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, d)) * np.geomspace(0.3, 3, n)[:, None]
    return A, A @ rng.standard_normal(d) + rng.standard_normal(n)


def ridge(seed=0, **more):
    return Ridge(*rows(seed), lam=1 / N, **more)


def samplings(L_i):
    """One of every kind, and every constructor, by name."""
    n = len(L_i)
    rng = np.random.default_rng(1)
    blocks = np.array_split(rng.permutation(n), 4)
    skewed = rng.dirichlet(np.ones(n)) / 2 + 1 / (2 * n)
    overlapping = [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8], [*range(8, n), 0], []]
    return {
        "single": SingleElement(skewed),
        "single uniform": SingleElement.uniform(n),
        "single importance": SingleElement.importance(L_i),
        "single partially biased": SingleElement.partially_biased(L_i),
        "independent": Independent(np.linspace(0.1, 1, n)),
        "independent uniform": Independent.uniform(n, 3),
        "independent importance": Independent.importance(L_i, 3),
        "independent partially biased": Independent.partially_biased(L_i, 3),
        "1-nice": Nice(n, 1),
        "2-nice": Nice(n, 2),
        "6-nice": Nice(n, n // 2),
        "n-nice": Nice(n, n),
        "full batch": FullBatch(n),
        "with replacement": WithReplacement(skewed, 2),
        "with replacement uniform": WithReplacement.uniform(n, 3),
        "with replacement importance": WithReplacement.importance(L_i, 3),
        "with replacement partially biased": WithReplacement.partially_biased(L_i, 2),
        "partition": Partition(blocks, [0.1, 0.2, 0.3, 0.4]),
        "partition uniform": Partition.uniform(blocks),
        "overlapping": Arbitrary(overlapping, [0.3, 0.3, 0.3, 0.1]),
    }


NAMES = list(samplings(np.ones(N)))


@pytest.fixture(params=NAMES)
def sampling(request):
    return samplings(ridge().L_i)[request.param]


def enumerated(sampling):
    """(probabilities, v) of all outcomes, v one a row."""
    probabilities, vectors = [], []
    for probability, indices, weights in sampling.outcomes():
        v = np.zeros(sampling.n)
        np.add.at(v, indices, weights)
        probabilities.append(probability)
        vectors.append(v)
    return np.array(probabilities), np.array(vectors)


def noise(sampling, h):
    probabilities, v = enumerated(sampling)
    return probabilities @ np.sum((v @ h / sampling.n - h.mean(axis=0)) ** 2, axis=1)


def matrices(problem):
    """The Hessians of quadratic components, from their gradients."""
    origin = np.zeros(problem.d)
    return np.array(
        [[problem.gradient(i, e) - problem.gradient(i, origin) for e in np.eye(problem.d)] for i in range(problem.n)]
    )


def exact_smoothness(sampling, problem):
    """lambda_max(M^-1/2 E M_v^2 M^-1/2): calL itself, where f_i are quadratic."""
    M = matrices(problem)
    second = np.zeros(M.shape[1:])
    for probability, v in zip(*enumerated(sampling), strict=True):
        M_v = np.einsum("i,ijk->jk", v, M) / sampling.n
        second += probability * M_v @ M_v
    eigenvalues, Q = np.linalg.eigh(M.mean(axis=0))
    root = Q / np.sqrt(eigenvalues) @ Q.T
    return np.linalg.eigvalsh(root @ second @ root)[-1]


def test_outcomes_are_a_distribution_with_weights_of_mean_one(sampling):
    probabilities, v = enumerated(sampling)
    assert np.all(probabilities >= 0) and probabilities.sum() == pytest.approx(1, rel=1e-12)
    assert probabilities @ v == pytest.approx(np.ones(N), rel=1e-12)
    sizes = [indices.size for _, indices, _ in sampling.outcomes()]
    assert probabilities @ sizes == pytest.approx(sampling.tau, rel=1e-12)


def test_draws_come_from_the_outcomes_at_their_probabilities(sampling):
    """Means and second moments of v over many draws, within five standard errors; no draw that outcomes do not have."""
    probabilities, v = enumerated(sampling)
    possible = {row.tobytes() for row in v.round(9)[probabilities > 0]}
    rng, trials = np.random.default_rng(5), 8000
    drawn = np.zeros((trials, N))
    for row in drawn:
        indices, weights = sampling.draw(rng)
        np.add.at(row, indices, weights)
    assert {row.tobytes() for row in drawn.round(9)} <= possible

    def features(v):
        return np.hstack([v, (v[:, :, None] * v[:, None]).reshape(len(v), -1)])

    expected = probabilities @ features(v)
    variance = np.maximum(probabilities @ features(v) ** 2 - expected**2, 0)
    error = np.abs(features(drawn).mean(axis=0) - expected)
    assert np.all(error <= 5 * np.sqrt(variance / trials) + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_noise_is_exact(sampling, seed):
    h = ridge(seed).gradients_star
    assert sampling.gradient_noise(h) == pytest.approx(noise(sampling, h), rel=1e-10, abs=1e-25)
    h = h + 1.0  # what a regularizer leaves: gradients whose mean is not zero
    assert sampling.gradient_noise(h) == pytest.approx(noise(sampling, h), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_expected_smoothness_is_a_bound_and_no_loose_one(name, seed):
    problem = ridge(seed)
    sampling = samplings(problem.L_i)[name]
    exact = exact_smoothness(sampling, problem)
    assert exact * (1 - 1e-12) <= sampling.expected_smoothness(problem) <= 1.15 * exact


@pytest.mark.parametrize("regularizer", [None, L1(0.05)], ids=["smooth", "l1"])
def test_expected_smoothness_of_logistic_losses(sampling, regularizer):
    """E||grad f_v(x) - grad f_v(x*)||^2 <= 2 calL D(x, x*), at x near and far."""
    A, b = rows()
    problem = Logistic(A, np.sign(b), lam=1 / N, regularizer=regularizer)
    star, h = problem.x_star, problem.gradients_star
    calL = sampling.expected_smoothness(problem)
    probabilities, v = enumerated(sampling)
    smooth = Logistic(A, np.sign(b), lam=1 / N)
    rng = np.random.default_rng(2)
    for scale in (1e-3, 1, 30):
        x = star + scale * rng.standard_normal(D)
        change = np.array([problem.gradient(i, x) for i in range(N)]) - h
        bregman = smooth.value(x) - smooth.value(star) - h.mean(axis=0) @ (x - star)
        assert probabilities @ np.sum((v @ change / N) ** 2, axis=1) <= 2 * calL * bregman * (1 + 1e-6)


def indefinite(seed=0):
    """x'(nu I - a_i a_i')x/2 - b'x: PCA's components, of which none is convex, and a strongly convex mean."""
    A, _ = rows(seed)
    A[:5] *= 3
    nu = 1.2 * np.linalg.eigvalsh(A.T @ A / N)[-1]
    outer = np.einsum("ij,ik->ijk", A, A)
    return Quadratic(nu * np.eye(D) - outer, np.tile(A.mean(axis=0), (N, 1)))


def test_expected_smoothness_of_components_that_are_not_convex(sampling):
    problem = indefinite()
    assert not problem.convex and problem.mu > 0
    exact = exact_smoothness(sampling, problem)
    assert exact * (1 - 1e-12) <= sampling.expected_smoothness(problem)


def test_the_formula_for_convex_components_would_be_too_small():
    problem, sampling = indefinite(), SingleElement.uniform(N)
    assert exact_smoothness(sampling, problem) > 1.5 * problem.L_max


def test_the_table():
    """Section 3 of the paper, row by row."""
    problem, tau = ridge(), 3
    L, L_i, L_max, L_mean, h = problem.L, problem.L_i, problem.L_max, problem.L_mean, problem.gradients_star
    squares = np.sum(h**2, axis=1)
    hbar = squares.mean()
    p, q = np.linspace(0.1, 1, N), np.linspace(1, 2, N) / 18
    blocks = np.split(np.arange(N), 3)
    M = matrices(problem)
    table = [
        (SingleElement(q), np.max(L_i / q) / N, np.sum(squares / q) / N**2),
        (SingleElement.uniform(N), L_max, hbar),
        (SingleElement.importance(L_i), L_mean, L_mean / N * np.sum(squares / L_i)),
        (Independent(p), L + np.max((1 - p) / p * L_i) / N, np.sum((1 - p) / p * squares) / N**2),
        (Independent.uniform(N, tau), L + (1 / tau - 1 / N) * L_max, (1 / tau - 1 / N) * hbar),
        (
            Nice(N, tau),
            N * (tau - 1) / (tau * (N - 1)) * L + (N - tau) / (tau * (N - 1)) * L_max,
            (N - tau) / (tau * (N - 1)) * hbar,
        ),
        (
            Partition(blocks, [0.2, 0.3, 0.5]),
            max(np.linalg.eigvalsh(M[C].sum(axis=0))[-1] / p_C for C, p_C in zip(blocks, (0.2, 0.3, 0.5), strict=True))
            / N,
            sum(np.sum(h[C].sum(axis=0) ** 2) / p_C for C, p_C in zip(blocks, (0.2, 0.3, 0.5), strict=True)) / N**2,
        ),
        (
            WithReplacement(q, tau),
            (1 - 1 / tau) * L + np.max(L_i / q) / tau / N,
            np.sum(squares / q) / tau / N**2,
        ),
        (FullBatch(N), L, 0.0),
    ]
    for sampling, calL, sigma2 in table:
        assert sampling.expected_smoothness(problem) == pytest.approx(calL, rel=1e-12), sampling
        assert sampling.gradient_noise(h) == pytest.approx(sigma2, rel=1e-12, abs=1e-25), sampling


def test_samplings_that_are_the_same():
    problem = ridge()
    h, singles = problem.gradients_star, [[i] for i in range(N)]
    q = np.linspace(1, 2, N) / 18
    for ours, theirs in (
        (Nice(N, N), FullBatch(N)),
        (Independent(np.ones(N)), FullBatch(N)),
        (Partition([range(N)], [1.0]), FullBatch(N)),
        (Nice(N, 1), SingleElement.uniform(N)),
        (WithReplacement(q, 1), SingleElement(q)),
        (Partition(singles, q), SingleElement(q)),
        (Independent.importance(problem.L_i, N), FullBatch(N)),
    ):
        assert ours.expected_smoothness(problem) == pytest.approx(theirs.expected_smoothness(problem), rel=1e-12)
        assert ours.gradient_noise(h) == pytest.approx(theirs.gradient_noise(h), rel=1e-12, abs=1e-25)


@pytest.mark.parametrize("tau", [0.5, 1, 3, 11.9, 12])
def test_independent_importance_is_the_best_of_its_size(tau):
    problem = ridge()
    L_i = problem.L_i
    sampling = Independent.importance(L_i, tau)
    assert sampling.tau == pytest.approx(tau, rel=1e-12)
    assert np.ptp((1 - sampling.p) / sampling.p * L_i) <= 1e-9 * problem.L_max  # delta, the same for all
    calL = sampling.expected_smoothness(problem)
    assert calL <= Independent.uniform(N, tau).expected_smoothness(problem)
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = sampling.p * (1 + 0.05 * rng.standard_normal(N))
        p = np.clip(p * tau / p.sum(), None, 1)
        if p.sum() <= tau * (1 + 1e-12):
            assert calL <= Independent(p).expected_smoothness(problem) * (1 + 1e-12)


@pytest.mark.parametrize("tau", [1, 3, 12])
def test_partially_biased_pays_at_most_twice(tau):
    problem = ridge()
    L, L_mean, h = problem.L, problem.L_mean, problem.gradients_star
    hbar = np.sum(h**2) / N
    single = SingleElement.partially_biased(problem.L_i)
    assert single.expected_smoothness(problem) <= 2 * L_mean and single.gradient_noise(h) <= 2 * hbar
    several = Independent.partially_biased(problem.L_i, tau)
    assert several.expected_smoothness(problem) <= L + 2 * L_mean / tau
    assert several.gradient_noise(h) <= (2 / tau - 1 / N) * hbar
    assert several.tau <= tau * (1 + 1e-12)
    repeated = WithReplacement.partially_biased(problem.L_i, tau)
    assert repeated.expected_smoothness(problem) <= (1 - 1 / tau) * L + 2 * L_mean / tau


OF_SIZE = {Nice: Nice, Independent: Independent.uniform, WithReplacement: WithReplacement.uniform}


@pytest.mark.parametrize("kind", OF_SIZE)
@pytest.mark.parametrize("eps", [1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize(
    "make", [ridge, lambda: ridge(regularizer=L1(0.3)), lambda: indefinite()], ids=["smooth", "l1", "pca"]
)
def test_optimal_batch_has_the_least_work_of_all_sizes(kind, eps, make):
    problem = make()
    n, mu, h = problem.n, problem.mu, problem.gradients_star

    def work(tau):
        sampling = OF_SIZE[kind](n, tau)
        return tau * max(sampling.expected_smoothness(problem), 2 * sampling.gradient_noise(h) / (eps * mu))

    best = min(range(1, n + 1), key=work)
    tau = optimal_batch(problem, eps, kind)
    if kind is WithReplacement:  # level up to tau, then rising
        assert work(tau) <= work(best) * (1 + problem.L / problem.L_max)
        assert work(max(1, tau - 1)) == pytest.approx(work(best), rel=1e-12)
    else:
        assert abs(tau - best) <= 1
    assert 1 <= tau <= n


@pytest.mark.parametrize("kind", OF_SIZE)
def test_optimal_batch_grows_with_noise_and_accuracy(kind):
    problem = ridge()
    sizes = [optimal_batch(problem, eps, kind) for eps in np.geomspace(1e-4, 1e2, 30)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == N and sizes[-1] == 1
    assert optimal_batch(Quadratic.random(N, D, 1, 10, interpolation=True), 1e-6, kind) == 1


def test_optimal_batch_refuses_what_has_no_answer():
    with pytest.raises(ValueError, match="eps and mu must be positive, got 0 "):
        optimal_batch(ridge(), 0)
    flat = Quadratic(np.array([[1.0, 0.0]]), np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"got 0.1 and 0\.0"):
        optimal_batch(flat, 0.1)
    with pytest.raises(ValueError, match="Partition"):
        optimal_batch(ridge(), 0.1, Partition)


def test_independent_draws_of_many_components_look_at_few():
    class Counting:
        """A generator that remembers how many numbers it was asked for."""

        def __init__(self):
            self.rng, self.most = np.random.default_rng(0), 0

        def __getattr__(self, name):
            return getattr(self.rng, name)

        def random(self, size):
            self.most = max(self.most, size)
            return self.rng.random(size)

    rng = Counting()
    indices, weights = Independent.uniform(1_000_000, 5).draw(rng)
    assert rng.most < 100 and indices.size < 100 and np.all(weights == pytest.approx(200_000))


def test_empty_draws_are_legal():
    sampling = Independent.uniform(2, 1e-9)
    indices, weights = sampling.draw(np.random.default_rng(0))
    assert indices.size == weights.size == 0
    problem = Quadratic.random(2, 3, 1, 2)
    assert not problem.batch_gradient(indices, weights, np.ones(3)).any()
    empty = Arbitrary([[], [0, 1]], [0.5, 0.5])
    assert empty.tau == 1 and empty.expected_smoothness(problem) == pytest.approx(2 * problem.L)


BAD = [
    (lambda: SingleElement([0.5, 0.6]), "sum 1.1"),
    (lambda: SingleElement([1.0, 0.0]), "positive"),
    (lambda: SingleElement([]), "non-empty"),
    (lambda: SingleElement([[1.0]]), "vector"),
    (lambda: SingleElement([np.nan, 1.0]), "finite"),
    (lambda: SingleElement.uniform(0), "n must be at least 1, got 0"),
    (lambda: SingleElement.importance([1.0, 0.0]), "positive"),
    (lambda: Independent([0.5, 1.1]), r"\(0, 1\]"),
    (lambda: Independent([0.5, 0.0]), r"\(0, 1\]"),
    (lambda: Independent.uniform(3, 4), r"tau must lie in \(0, 3\], got 4"),
    (lambda: Independent.importance([1.0, 2.0], 0), "got 0"),
    (lambda: Nice(3, 4), r"tau must be in \[1, 3\], got 4"),
    (lambda: Nice(3, 0), "got 0"),
    (lambda: FullBatch(0), "got 0"),
    (lambda: WithReplacement.uniform(3, 0), "tau must be at least 1"),
    (lambda: Partition([[0, 1], [1, 2]], [0.5, 0.5]), "in common"),
    (lambda: Partition([[0, 1], [3]], [0.5, 0.5]), r"\[2\] are in none"),
    (lambda: Partition([[1, 2]], [1.0]), r"\[0\] are in none"),
    (lambda: Partition([[0], [1]], [1.0]), "2 sets and 1 probabilities"),
    (lambda: Arbitrary([[0, 0]], [1.0]), "once"),
    (lambda: Arbitrary([[0, -1]], [1.0]), "component numbers"),
    (lambda: Arbitrary([[0.5]], [1.0]), "component numbers"),
    (lambda: Arbitrary([[]], [1.0]), "in none"),
]


@pytest.mark.parametrize("make, message", BAD, ids=range(len(BAD)))
def test_what_is_no_sampling_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_sizes_are_named(sampling):
    with pytest.raises(ValueError, match=f"over {N} components, the problem has 3"):
        sampling.expected_smoothness(Quadratic.random(3, 2, 1, 2))
    with pytest.raises(ValueError, match=f"over {N} components, the problem has 3"):
        sampling.gradient_noise(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"shape \(n, d\)"):
        sampling.gradient_noise(np.zeros(N))


def test_components_that_are_not_convex_need_a_strongly_convex_sum(sampling):
    problem = indefinite()
    problem.mu = 0.0
    with pytest.raises(ValueError, match="strongly convex"):
        sampling.expected_smoothness(problem)


def test_samplings_are_frozen_and_tell_themselves_apart():
    one, other = samplings(ridge().L_i), samplings(ridge().L_i * np.linspace(1, 1.01, N))
    reprs = {repr(s) for s in [*one.values(), *other.values()]}
    biased = [name for name in NAMES if "importance" in name or "biased" in name]
    assert len(reprs) == len(NAMES) + len(biased)
    assert all(repr(one[name]) == repr(again) for name, again in samplings(ridge().L_i).items())
    with pytest.raises(FrozenInstanceError):
        one["single"].p = np.ones(2) / 2
    with pytest.raises(ValueError, match="read-only"):
        one["single"].p[0] = 1
