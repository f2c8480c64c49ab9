"""Games and their constants; extragradient against its formula, its exact laws and its theorem."""

import math
from dataclasses import replace

import numpy as np
import pytest

from compress import kernels
from compress.comm import Local
from compress.games import AffineOperator, BilinearGame, Operator
from compress.key import Key
from compress.optimizers.extragradient import Extragradient
from compress.optimizers.run import run
from compress.optimizers.sgd import SGD
from compress.optimizers.shifted import DIANA, EF21
from compress.problems import L1, L2, Box, Quadratic
from compress.sampling import (
    Arbitrary,
    FullBatch,
    Independent,
    Nice,
    Partition,
    Sampling,
    SingleElement,
    WithReplacement,
)
from compress.sparsify import RandK, TopK

N, D = 8, 6

SAMPLINGS = {
    "single": lambda p: SingleElement.uniform(p.n),
    "importance": lambda p: SingleElement.importance(np.arange(1.0, p.n + 1)),
    "nice": lambda p: Nice(p.n, 3),
    "independent": lambda p: Independent.uniform(p.n, 3),
    "with replacement": lambda p: WithReplacement.uniform(p.n, 3),
    "partition": lambda p: Partition.uniform(np.split(np.arange(p.n), 4)),
    "overlapping": lambda p: Arbitrary([range(5), range(3, p.n)], [0.4, 0.6]),
    "full batch": lambda p: FullBatch(p.n),
}


def quadratic_game(**more):
    return AffineOperator.random(N, D, 0.2, 1.0, **more)


def with_regularizer(game, R):
    return AffineOperator(game.A, game.b, R)


class Scripted(Sampling):
    """Draws that a test has written down: component i at weight n."""

    def __init__(self, n, script):
        self.n, self._script = n, iter(script)

    def draw(self, rng):
        return np.array([next(self._script)]), np.array([float(self.n)])

    def outcomes(self):
        return ((1 / self.n, np.array([i]), np.array([float(self.n)])) for i in range(self.n))


def one_step(game, z, script, **parameters):
    """z after a step whose draws are those of the script."""
    method = Extragradient(Scripted(game.n, script), **parameters)
    return method.step(game, Local(1), method.init(game, Local(1), z), Key(0)).x


def distances(method, game, x0, steps, seed=0):
    """||x^k - x*||^2 for k = 0, ..., steps."""
    comm, star = Local(1), game.x_star
    state = method.init(game, comm, x0)
    result = [np.sum((state.x - star) ** 2)]
    for k in range(steps):
        state = method.step(game, comm, state, Key(seed).at(k))
        result.append(np.sum((state.x - star) ** 2))
    return np.array(result)


# Operators


@pytest.mark.parametrize("make", [quadratic_game, lambda: BilinearGame.random(N, D, 0.1, 1.0)])
def test_values_are_those_of_the_matrices(make):
    game, rng = make(), np.random.default_rng(0)
    x = rng.standard_normal(D)
    F = np.array([game.A[i] @ x - game.b[i] for i in range(N)])
    for i in range(N):
        assert game.gradient(i, x) == pytest.approx(F[i], rel=1e-12)
    indices, weights = np.array([2, 5, 2]), np.array([0.5, 3.0, 1.0])
    assert game.batch_gradient(indices, weights, x) == pytest.approx(weights @ F[indices] / N, rel=1e-12)
    assert game.batch_gradient([], [], x) == pytest.approx(np.zeros(D))
    out = np.empty(D)
    assert game.full_gradient(x, out) is out and out == pytest.approx(F.mean(axis=0), rel=1e-12)
    assert game.value(x) == pytest.approx(np.linalg.norm(out), rel=1e-12)
    assert game.gradient(0, x.astype(np.float32)).dtype == np.float32
    assert game.lipschitz(indices, weights) == pytest.approx(
        np.linalg.svd(np.einsum("i,ijk->jk", weights, game.A[indices]))[1][0], rel=1e-12
    )


def test_random_quadratic_games_have_the_constants_asked_for():
    game = AffineOperator.random(4, 10, 0.05, 3.0, seed=1)
    fresh = AffineOperator(game.A, game.b)
    assert fresh.L_i == pytest.approx(game.L_i, rel=1e-12) and fresh.mu == pytest.approx(game.mu, rel=1e-10)
    assert game.monotone and fresh.monotone and np.all(game.L_i == 3.0) and game.mu == 0.05
    for A_i in game.A:  # a zero-sum game: players' own blocks symmetric, the others each other's negative transpose
        assert np.allclose(A_i[:5, :5], A_i[:5, :5].T) and np.allclose(A_i[5:, 5:], A_i[5:, 5:].T)
        assert np.array_equal(A_i[:5, 5:], -A_i[5:, :5].T)
    assert np.linalg.norm(game.A.mean(axis=0) @ game.x_star - game.b.mean(axis=0)) < 1e-14
    common = AffineOperator.random(4, 2, 0.05, 3.0, interpolation=True)
    assert np.abs(common.gradients_star).max() < 1e-13


def test_the_game_of_chavdarova():
    n = 5
    game = BilinearGame.chavdarova(n, biased=True, seed=3)
    a, b = -game.b[:, :n], game.b[:, n:]
    assert game.mu == 0 and game.monotone and np.all(game.L_i == 1)
    assert game.x_star == pytest.approx(np.concatenate([-n * b.mean(axis=0), -n * a.mean(axis=0)]), rel=1e-12)
    z = np.random.default_rng(0).standard_normal(2 * n)
    x, y = z[:n], z[n:]
    for i in range(n):
        e = np.eye(n)[i]
        assert game.gradient(i, z) == pytest.approx(np.concatenate([e * y[i] + a[i], -e * x[i] - b[i]]), rel=1e-12)
    assert not BilinearGame.chavdarova(n).x_star.any()
    assert BilinearGame.chavdarova(n, mu=0.5).mu == 0.5


def test_random_bilinear_games():
    game = BilinearGame.random(N, D, 0.1, 2.0, interpolation=True)
    B = game.A.mean(axis=0)[: D // 2, D // 2 :]
    assert np.linalg.svd(B)[1] == pytest.approx(np.geomspace(2.0, 0.1, D // 2), rel=1e-12)
    assert game.mu == 0 and game.monotone and np.abs(game.gradients_star).max() < 1e-12
    rectangular = BilinearGame(np.ones((2, 3, 1)))
    assert rectangular.d == 4 and rectangular.L_max == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("R", [L1(0.3), L2(0.7), Box(-0.4, 0.2)], ids=repr)
@pytest.mark.parametrize("make", [quadratic_game, lambda: BilinearGame.random(N, D, 0.3, 1.0)])
def test_x_star_solves_the_variational_inequality(make, R):
    game = with_regularizer(make(), R)
    star, F = game.x_star, game.full_gradient(game.x_star)
    assert game.value(star) < 1e-13 and (isinstance(R, L2) or np.any(R.prox(star.copy(), 1.0) != star - F))
    for x in np.random.default_rng(0).standard_normal((200, D)) * 2:
        x = R.prox(x, 1.0) if isinstance(R, Box) else x
        assert F @ (x - star) + R.value(x) - R.value(star) >= -1e-12


def test_an_operator_of_ones_own():
    class Rotation(Operator):
        n, d, monotone, mu, L_i = 1, 2, True, 0.0, np.ones(1)
        x_star = np.zeros(2)

        def gradient(self, i, x, out=None):
            out = np.empty_like(x) if out is None else out
            out[:] = x[1], -x[0]
            return out

    game = Rotation()
    method = Extragradient.theoretical(game, FullBatch(1))
    assert method.eta == pytest.approx(1 / math.sqrt(2))
    assert run(method, game, Local(1), np.ones(2), steps=99, until=1e-9).error[-1] <= 1e-9
    residuals = run(method, game, Local(1), np.ones(2), steps=5, error=game.value).error
    assert residuals == pytest.approx(math.sqrt(2) * math.sqrt(0.75) ** np.arange(6))
    del Rotation.monotone  # nobody knows, then
    with pytest.raises(ValueError, match=r"Rotation\(.* is known to be monotone"):
        Extragradient.theoretical(game, FullBatch(1))
    for more in ({}, {"beta": -0.2}):
        with pytest.warns(UserWarning, match=r"not every component of Rotation\(.* is known to be monotone"):
            Extragradient(FullBatch(1), 0.1, **more).init(game, Local(1), np.ones(2))


def test_constants_of_minimisation_are_refused():
    """Also where someone has set them: rotations have L = 1, and gradient descent leaves them for ever."""

    class Rotations(BilinearGame):
        L = 1.0

        def smoothness(self, indices, weights):
            return float(np.sum(weights))

    game, sampling = BilinearGame(np.ones((2, 1, 1))), SingleElement.uniform(2)
    for read in (lambda: game.L, lambda: game.smoothness([0], [1.0]), lambda: sampling.expected_smoothness(game)):
        with pytest.raises(
            NotImplementedError, match=r"constants of minimisation, and BilinearGame\(n=2.* is an operator"
        ):
            read()
    with pytest.raises(AttributeError, match="L"):
        game.L = 1.0
    for operator in (game, Rotations(np.ones((2, 1, 1)))):
        for make in (
            lambda operator: SGD.theoretical(operator, sampling),
            lambda operator: DIANA.theoretical(operator, RandK(0.5)),
            lambda operator: EF21.theoretical(operator, TopK(0.5)),
            lambda operator: SGD(sampling, 0.1).bound(operator, np.ones(2), 1),
        ):
            with pytest.raises(NotImplementedError, match=r"(SGD|DIANA|EF21): its theorem is about minimisation, and "):
                make(operator)
        assert run(SGD(sampling, 0.1), operator, Local(1), np.ones(2), steps=9).error[-1] > 1


def rotation(n):
    """n times the same rotation, whose zero nobody has told."""

    class Rotation(Operator):
        d, monotone, mu, L_i = 2, True, 0.0, np.ones(n)

        def gradient(self, i, x, out=None):
            out = np.empty_like(x) if out is None else out
            out[0], out[1] = x[1], -x[0]
            return out

    Rotation.n = n
    return Rotation()


FULL = {  # samplings of which every draw is all components
    "full batch": FullBatch(3),
    "nice": Nice(3, 3),
    "independent": Independent.uniform(3, 3),
    "partition": Partition.uniform([range(3)]),
    "one component": SingleElement.uniform(1),
    "one component twice": WithReplacement.uniform(1, 2),
}


@pytest.mark.parametrize("name", FULL)
def test_without_noise_no_solution_need_be_known(name):
    sampling = FULL[name]
    operator = rotation(sampling.n)
    method = Extragradient.theoretical(operator, sampling)
    assert method.eta == pytest.approx(1 / math.sqrt(2)) and method.limits(operator)["eta"] == pytest.approx(1)
    trace = run(method, operator, Local(1), np.ones(2), steps=99, error=operator.value)
    assert trace.error[-1] < 1e-5 * trace.error[0]
    assert replace(method, same_sample=False).limits(operator) == {}  # the same method, which diverges nowhere


def test_with_noise_a_solution_must_be_known():
    operator = rotation(2000)
    message = "Rotation does not know a solution: set x_star, or give run.* an error=, for example its natural residual"
    for sampling in (SingleElement.uniform(2000), Nice(2000, 1999), Independent.uniform(2000, 1999)):
        with pytest.raises(NotImplementedError, match=message):
            Extragradient.theoretical(operator, sampling)


# The step


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("beta", [0.0, -0.3])
@pytest.mark.parametrize("same_sample", [True, False])
@pytest.mark.parametrize("R", [None, L1(0.1), Box(-0.5, 0.5)], ids=repr)
@pytest.mark.parametrize("name", ["single", "nice", "independent"])
def test_a_step_is_the_formula(name, R, same_sample, beta, average):
    game = with_regularizer(quadratic_game(), R)
    sampling = SAMPLINGS[name](game)
    eta, gamma = 0.1, 0.15
    method = Extragradient(sampling, eta, gamma, beta, same_sample, average)
    x = before = np.random.default_rng(1).standard_normal(D)
    state, comm, looked, seen = method.init(game, Local(1), x), Local(1), [], 0
    for k in range(6):
        rng = np.random.Generator(np.random.Philox(key=Key(7).at(k).word))
        draws = [sampling.draw(rng)]
        draws.append(draws[0] if same_sample else sampling.draw(rng))

        def F(draw, x):
            return sum((w * (game.A[i] @ x - game.b[i]) for i, w in zip(*draw, strict=True)), np.zeros(D)) / N

        u = x - gamma * F(draws[0], x)
        u = u if R is None else R.prox(u, gamma)
        after = x - eta * F(draws[1], u) + beta * (x - before)
        x, before = (after if R is None else R.prox(after, eta)), x
        looked.append(u)
        seen += sum(indices.size for indices, _ in draws)
        state = method.step(game, comm, state, Key(7).at(k))
        assert state.x == pytest.approx(np.mean(looked, axis=0) if average else x, rel=1e-11, abs=1e-14)
        assert state.oracle == seen and state.k == k + 1
    assert comm.ledger.messages == 0


def test_one_component_makes_both_samplings_the_same():
    game = quadratic_game()
    one = AffineOperator(game.A[:1], game.b[:1])
    same, independent = (Extragradient(SingleElement.uniform(1), 0.4, same_sample=s) for s in (True, False))
    assert np.array_equal(distances(same, one, np.ones(D), 50), distances(independent, one, np.ones(D), 50))


def test_gradient_descent_ascent_is_sgd():
    game = BilinearGame.chavdarova(6)
    method, z = SGD(SingleElement.uniform(6), 0.3), np.random.default_rng(0).standard_normal(12)
    squares = []
    for i in range(6):
        state = replace(method, sampling=Scripted(6, [i])).init(game, Local(1), z)
        squares.append(np.sum(replace(method, sampling=Scripted(6, [i])).step(game, Local(1), state, Key(0)).x ** 2))
    assert np.mean(squares) == pytest.approx((1 + 0.3**2 / 6) * (z @ z), rel=1e-12)


# Exact laws of bilinear games


@pytest.mark.parametrize("gamma, eta", [(0.4, 0.4), (0.6, 0.2), (0.2, 0.7)])
def test_laws_of_one_step(gamma, eta):
    """The mean of ||z+||^2 over everything that can be drawn, for both samplings and two step sizes."""
    game = BilinearGame.random(N, D, 0.3, 1.0, interpolation=True)
    game = AffineOperator(game.A, np.zeros((N, D)))
    z = np.random.default_rng(2).standard_normal(D)
    K = np.array([J.T @ J for J in game.A])
    J, EK = game.A.mean(axis=0), K.mean(axis=0)
    EK2 = np.mean(K @ K, axis=0)
    same = np.mean([np.sum(one_step(game, z, [i], eta=eta, gamma=gamma) ** 2) for i in range(N)])
    law = z @ z - eta * (2 * gamma - eta) * (z @ EK @ z) + (eta * gamma) ** 2 * (z @ EK2 @ z)
    assert same == pytest.approx(law, rel=1e-12)

    pairs = [(i, j) for i in range(N) for j in range(N)]
    steps = [one_step(game, z, pair, eta=eta, gamma=gamma, same_sample=False) for pair in pairs]
    both = np.mean([np.sum((game.A[j] @ game.A[i] @ z) ** 2) for i, j in pairs])
    law = z @ z + eta**2 * (z @ EK @ z) - 2 * eta * gamma * (z @ J.T @ J @ z)
    law += (eta * gamma) ** 2 * both - 2 * eta**2 * gamma * (z @ EK @ J @ z)
    assert np.mean([step @ step for step in steps]) == pytest.approx(law, rel=1e-12)


@pytest.mark.parametrize("eta", [0.05, 0.3, 0.7])
def test_factors_of_the_game_of_chavdarova(eta):
    n = 5
    game, z = BilinearGame.chavdarova(n), np.random.default_rng(0).standard_normal(2 * n)
    same = np.mean([np.sum(one_step(game, z, [i], eta=eta) ** 2) for i in range(n)]) / (z @ z)
    assert same == pytest.approx(1 - (eta**2 - eta**4) / n, rel=1e-12)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    fresh = [np.sum(one_step(game, z, pair, eta=eta, same_sample=False) ** 2) for pair in pairs]
    assert np.mean(fresh) / (z @ z) == pytest.approx(1 + eta**2 * (1 / n - 2 / n**2) + eta**4 / n**2, rel=1e-12)


def test_same_sample_converges_where_independent_samples_explode():
    game, x0 = BilinearGame.chavdarova(20), np.random.default_rng(0).standard_normal(40)
    same, independent = (Extragradient(SingleElement.uniform(20), 0.7, same_sample=s) for s in (True, False))
    assert run(same, game, Local(1), x0, steps=4000).error[-1] < 1e-20
    with (
        pytest.warns(RuntimeWarning, match="diverged"),
        pytest.warns(UserWarning, match="independent samples and mu = 0"),
    ):
        assert run(independent, game, Local(1), x0, steps=4000).error[-1] > 1e12


def test_momentum_on_an_orthogonal_game():
    """The best step sizes have spectral radii sqrt(3)/2 without momentum, and 1/sqrt(5) with beta = -1/5."""
    B, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    game = BilinearGame(B[None])
    for beta, eta, radius in ((0.0, 1 / math.sqrt(2), math.sqrt(3) / 2), (-0.2, 2 / math.sqrt(5), 1 / math.sqrt(5))):
        errors = distances(Extragradient(FullBatch(1), eta, beta=beta), game, np.ones(6), 40)
        # the two roots are one with beta, and the error then falls as k radius^k
        k = np.arange(1, 41) if beta else np.ones(40)
        rates = (errors[1:] / k**2) ** (1 / (2 * np.arange(1, 41)))
        assert rates[-1] == pytest.approx(radius, rel=0.03)


# The theorem


def assert_bound_holds(method, game, x0, steps, runs=20):
    """At every step: the mean of the runs, less three of its standard errors, is no larger than the bound."""
    errors = np.array([distances(method, game, x0, steps, seed) for seed in range(runs)])
    mean, spread = errors.mean(axis=0), errors.std(axis=0, ddof=1) / math.sqrt(runs)
    assert np.all(mean - 3 * spread <= method.bound(game, x0, np.arange(steps + 1)) * (1 + 1e-12) + 1e-26)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_bound(name):
    game = quadratic_game()
    assert_bound_holds(Extragradient.theoretical(game, SAMPLINGS[name](game)), game, np.full(D, 3.0), 120)


@pytest.mark.parametrize("R", [L1(0.2), Box(-0.3, 0.3)], ids=repr)
def test_bound_with_a_proximal_step(R):
    game = with_regularizer(quadratic_game(), R)
    assert np.linalg.norm(game.full_gradient(game.x_star)) > 0.1  # so that it matters what noise is about
    assert_bound_holds(Extragradient.theoretical(game, SingleElement.uniform(N)), game, np.full(D, 3.0), 120)
    everything = Extragradient.theoretical(game, FullBatch(N))
    assert distances(everything, game, np.ones(D), 400)[-1] < 1e-20


@pytest.mark.parametrize("share", [0.2, 1.0, 1.7])
def test_bound_for_other_steps(share):
    """Below the paper's and above it, near the limit."""
    game = BilinearGame.chavdarova(6, biased=True, mu=0.1)
    method = Extragradient.theoretical(game, SingleElement.uniform(6))
    method = replace(method, eta=share * method.eta, gamma=None)
    assert method.eta < method.limits(game)["eta"]
    assert_bound_holds(method, game, np.full(12, 5.0), 400)


@pytest.mark.parametrize("mu, holds", [(0.01, True), (0.5, True), (0.8, False)])
def test_the_bound_is_the_papers_or_better(mu, holds):
    """Up to mu = L/2 for eta = 1/(2 L)."""
    game = AffineOperator.random(N, D, mu, 1.0)
    method, x0, k = Extragradient(SingleElement.uniform(N), 0.5), np.ones(D), np.arange(1000)
    noise = method.sampling.gradient_noise(game.gradients_star)
    published = (1 - mu / 3) ** k * np.sum((x0 - game.x_star) ** 2) + 1.5 * noise / mu
    assert np.all(method.bound(game, x0, k) <= published * (1 + 1e-12)) == holds


def test_a_common_zero_is_reached_linearly():
    game = quadratic_game(interpolation=True)
    method = Extragradient.theoretical(game, SingleElement.uniform(N))
    assert_bound_holds(method, game, np.ones(D), 200)
    assert distances(method, game, np.ones(D), 600)[-1] < 1e-20


@pytest.mark.parametrize("name", SAMPLINGS)
def test_constants_of_a_draw_are_not_too_small(name):
    """Against everything that can be drawn; and equal where the components are alike in size and L is that of one."""
    rng = np.random.default_rng(0)
    game = AffineOperator(0.1 * np.eye(D) + BilinearGame.random(N, D, 0.1, 1.0).A, rng.standard_normal((N, D)))
    sampling = SAMPLINGS[name](game)
    L = max(game.lipschitz(i, w / N) for _, i, w in sampling.outcomes())
    mu = 0.1 * max(w.sum() / N for _, _, w in sampling.outcomes())
    limit = Extragradient(sampling, 1e-3).limits(game)["eta"]
    exact = 2 / (mu + math.sqrt(mu**2 + 4 * L**2))
    assert limit <= exact * (1 + 1e-12)
    if name in ("single", "importance", "partition", "overlapping", "full batch"):
        assert limit == pytest.approx(exact, rel=1e-9)
    assert Extragradient.theoretical(game, sampling).eta < limit


def test_theoretical_parameters():
    game, sampling = quadratic_game(), SingleElement.uniform(N)
    assert Extragradient.theoretical(game, sampling) == Extragradient(sampling, 1 / (2 * game.L_max))
    bilinear = BilinearGame.chavdarova(N)
    assert Extragradient.theoretical(bilinear, sampling).eta == 1 / math.sqrt(2)
    assert Extragradient(sampling, 0.1).limits(bilinear) == {"eta": 1.0}
    for more in ({"beta": -0.2}, {"gamma": 0.2}, {"average": True}):
        assert Extragradient(sampling, 0.1, **more).limits(bilinear) == {}
    assert Extragradient(sampling, 0.1, same_sample=False).limits(game) == {}
    assert Extragradient(sampling, 0.1).limits(Quadratic.random(N, D, 1, 2)) == {}


# Averages, and what `run` makes of a state


def test_averages_come_closer_on_biased_games():
    game, x0 = BilinearGame.chavdarova(5, biased=True), np.full(10, 3.0)
    method = Extragradient(SingleElement.uniform(5), 0.1, average=True)
    with pytest.warns(UserWarning, match="no convergence is proven: .* has in common"):
        state = method.init(game, Local(1), x0)
    last = []
    for k in range(20_000):
        state = method.step(game, Local(1), state, Key(0).at(k))
        if k >= 10_000:
            last.append(np.sum((state.iterate - game.x_star) ** 2))
    with pytest.warns(UserWarning, match="no convergence is proven: .* has in common"):
        trace = run(method, game, Local(1), x0, steps=20_000, every=20_000)
    assert np.array_equal(trace.x, state.x)
    assert trace.error[-1] * np.sum((x0 - game.x_star) ** 2) < 0.05 * np.mean(last)


@pytest.mark.parametrize("more", [{}, {"beta": -0.2}, {"average": True}, {"average": True, "beta": -0.2}])
def test_a_run_goes_on_from_a_checkpoint(tmp_path, more):
    game, x0 = BilinearGame.chavdarova(5, biased=True, mu=0.1), np.ones(10)
    method = Extragradient(SingleElement.uniform(5), 0.3, **more)
    whole = run(method, game, Local(1), x0, steps=60)
    run(method, game, Local(1), x0, steps=25, checkpoint=tmp_path / "run.npz")
    broken = run(method, game, Local(1), x0, steps=60, checkpoint=tmp_path / "run.npz")
    assert np.array_equal(whole.x, broken.x) and np.array_equal(whole.error, broken.error)
    assert np.array_equal(whole.oracle, broken.oracle) and whole.oracle[-1] == 120


def test_x0_stays_and_float32_is_kept():
    game, x0 = quadratic_game(), np.ones(D, np.float32)
    method = Extragradient(SingleElement.uniform(N), 0.3, beta=-0.1, average=True)
    state = method.init(game, Local(1), x0)
    for k in range(50):
        state = method.step(game, Local(1), state, Key(0).at(k))
    assert state.x.dtype == state.iterate.dtype == np.float32 and np.all(x0 == 1)
    exact = distances(method, game, np.ones(D), 50)[-1]
    assert np.sum((state.x - game.x_star) ** 2) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("more", [{}, {"beta": -0.2}, {"average": True}, {"average": True, "beta": -0.2}])
def test_state_lives_where_x0_does(more, backend):
    """An operator on any kind of array; those of this package are NumPy's."""
    operator, x0 = rotation(3), np.array([1.0, 2.0], np.float32)
    operator.regularizer = L2(0.5)
    method, ends = Extragradient(Nice(3, 2), 0.3, **more), []
    move = kernels.on_device if backend.name != "cpu" else np.copy
    for x in (x0, move(x0)):
        state = method.init(operator, Local(1), x)
        for k in range(20):
            state = method.step(operator, Local(1), state, Key(0).at(k))
        assert type(state.x) is type(x)
        ends.append(kernels.host(state.x))
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)


# Bad input


def not_monotone():
    A = quadratic_game().A.copy()
    A[3] -= 0.3 * np.eye(D)
    return AffineOperator(A, np.zeros((N, D)))


def test_what_is_not_monotone_is_flagged():
    operator, sampling = not_monotone(), SingleElement.uniform(N)
    assert not operator.monotone and operator.mu == 0
    with pytest.warns(UserWarning, match=r"not every component of AffineOperator\(n=8.* is known to be monotone"):
        Extragradient(sampling, 0.1).init(operator, Local(1), np.ones(D))
    with pytest.raises(ValueError, match=r"not every component of AffineOperator\(n=8.* is known to be monotone"):
        Extragradient.theoretical(operator, sampling)


RANDOM_WALK = AffineOperator([[[0, 0], [0, 1]]] * 2, [[1, 0], [-1, 0]])  # F_i(x, y) = (-+ 1, y)
UNPROVEN = {
    "random walk": (RANDOM_WALK, "every draw of .* has in common"),
    "biased": (BilinearGame.chavdarova(2, biased=True), "every draw of .* has in common"),
    "no solution": (AffineOperator([[[0, 0], [0, 1]]] * 2, [[1, 0]] * 2), "needs a solution: x_star of .* not found"),
    "constant": (AffineOperator(np.zeros((2, 2, 2)), np.zeros((2, 2))), "needs L > 0, got 0"),
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_no_step_is_proven_where_draws_have_no_solution_in_common(name):
    operator, message = UNPROVEN[name]
    sampling = SingleElement.uniform(2)
    assert operator.monotone and operator.mu == 0
    method = Extragradient(sampling, 0.1)
    for call in (lambda: Extragradient.theoretical(operator, sampling), lambda: method.limits(operator)):
        with pytest.raises(ValueError, match=message):
            call()
    for more in ({}, {"beta": -0.2}, {"gamma": 0.2}, {"average": True}):
        with pytest.warns(UserWarning, match=f"no convergence is proven: .*{message}"):
            replace(method, **more).init(operator, Local(1), np.ones(operator.d))
    with pytest.warns(UserWarning, match="independent samples and mu = 0 it diverges on bilinear games"):
        replace(method, same_sample=False).init(operator, Local(1), np.ones(operator.d))


def test_the_random_walk():
    """No step size keeps it near, and the full batch, which has no noise, is proven and converges."""
    with pytest.warns(UserWarning, match="no convergence is proven"):
        ends = [
            distances(Extragradient(SingleElement.uniform(2), 0.1), RANDOM_WALK, np.ones(2), 1000, seed)[-1]
            for seed in range(20)
        ]
    assert np.mean(ends) > 4
    whole = Extragradient.theoretical(RANDOM_WALK, FullBatch(2))
    assert whole.limits(RANDOM_WALK) == {"eta": 1.0}
    assert run(whole, RANDOM_WALK, Local(1), np.array([0.0, 1.0]), steps=200).error[-1] < 1e-20


@pytest.mark.parametrize("R", [None, L2(0.5), Box(-9, 9)], ids=repr)
def test_a_solution_in_common_is_reached_without_strong_monotonicity(R):
    """Monotone, neither skew nor strongly monotone, below the limit."""
    A = quadratic_game().A.copy()
    A[:, 0, :] = A[:, :, 0] = 0
    operator = AffineOperator(A, A @ (np.zeros(D) if isinstance(R, L2) else np.arange(D)), R)
    method = Extragradient.theoretical(operator, SingleElement.uniform(N))
    assert operator.mu == 0 and operator.monotone
    method = replace(method, eta=0.9 * method.limits(operator)["eta"], gamma=None)
    x0 = np.where(np.arange(D) > 0, 1.0, operator.x_star)
    assert distances(method, operator, x0, 1500)[-1] < 1e-20


def test_a_step_above_the_limit_warns():
    game, sampling = BilinearGame.chavdarova(N), SingleElement.uniform(N)
    with pytest.warns(UserWarning, match="Extragradient: eta = 1.1 is above 1, the largest"):
        Extragradient(sampling, 1.1).init(game, Local(1), np.ones(2 * N))


def misplaced(**more):
    game = BilinearGame(np.ones((N, D // 2, D // 2)), **more)
    game.x_star = np.zeros(3)
    return game


ONE = SingleElement.uniform(N)
BAD = [
    (lambda: Extragradient(3, 0.1), TypeError, "sampling must be a Sampling, got 3"),
    (lambda: Extragradient(ONE, 0.0), ValueError, "eta must be positive, got 0"),
    (lambda: Extragradient(ONE, math.nan), ValueError, "got nan"),
    (lambda: Extragradient(ONE, "fast"), TypeError, "'fast'"),
    (lambda: Extragradient(ONE, 0.1, gamma=-1.0), ValueError, "gamma must be positive, got -1"),
    (lambda: Extragradient(ONE, 0.1, beta=1), ValueError, r"beta must lie in \(-1, 1\), got 1"),
    (lambda: Extragradient(ONE, 0.1, beta=math.nan), ValueError, "got nan"),
    (lambda: Extragradient(ONE, 0.1, beta="no"), TypeError, "beta must be a number, got 'no'"),
    (
        lambda: Extragradient(ONE, 0.1, same_sample="no"),
        TypeError,
        "same_sample must be True or False, got 'no'",
    ),
    (lambda: Extragradient(ONE, 0.1, average=1), TypeError, "average must be True or False, got 1"),
    (lambda: Extragradient.theoretical(quadratic_game(), 3), TypeError, "sampling must be a Sampling, got 3"),
    *(
        (lambda make=make: make(Nice(9, 3)), ValueError, "the sampling is over 9 components, the problem has 8")
        for make in (
            lambda sampling: Extragradient.theoretical(quadratic_game(), sampling),
            lambda sampling: Extragradient(sampling, 0.1).limits(quadratic_game()),
            lambda sampling: Extragradient(sampling, 0.1, beta=-0.1).limits(quadratic_game()),
            lambda sampling: Extragradient(sampling, 0.1).bound(quadratic_game(), np.ones(D), 1),
        )
    ),
    (
        lambda: Extragradient.theoretical(quadratic_game(), SingleElement.uniform(3)),
        ValueError,
        "over 3 components, the problem has 8",
    ),
    (lambda: Extragradient.theoretical(misplaced(), ONE), ValueError, r"x_star has shape \(3,\), .* has 6 coordinates"),
    (
        lambda: Extragradient(ONE, 0.1).bound(misplaced(mu=0.1), np.ones(D), 1),
        ValueError,
        r"x_star has shape \(3,\), .* has 6 coordinates",
    ),
    (lambda: Extragradient(ONE, 0.1).init(quadratic_game(), Local(2), np.ones(D)), ValueError, "one worker, got 2"),
    (
        lambda: Extragradient(Nice(9, 1), 0.1).init(quadratic_game(), Local(1), np.ones(D)),
        ValueError,
        "over 9 components, the problem has 8",
    ),
    (lambda: Extragradient(ONE, 0.1).init(quadratic_game(), Local(1), np.ones(3)), ValueError, "x0 has 3 coordinates"),
    (lambda: Extragradient.theoretical(Quadratic.random(N, D, 1, 2), ONE), TypeError, "compress.games.Operator"),
    (lambda: Extragradient(ONE, 2.0).bound(quadratic_game(), np.ones(D), 1), ValueError, "no bound is proven"),
    (
        lambda: Extragradient(ONE, 0.1).bound(BilinearGame.chavdarova(N), np.ones(2 * N), 1),
        ValueError,
        r"no bound .* mu = 0\.0 and L = 1",
    ),
    (lambda: SGD.theoretical(quadratic_game(), ONE), NotImplementedError, "SGD: its theorem is about"),
    (lambda: AffineOperator(np.ones((2, 3, 3)), np.ones((2, 2))), ValueError, r"got \(2, 3, 3\) and \(2, 2\)"),
    (lambda: AffineOperator([[[math.inf]]], [[1.0]]), ValueError, "A has 1 of 1 entries"),
    (lambda: AffineOperator([[[0.0]]], [[1.0]]).x_star, RuntimeError, "not found: .* least squares .* residual is 1"),
    (lambda: AffineOperator.random(2, 5, 0.1, 1), ValueError, "d must be even, half of it for each player, got 5"),
    (lambda: AffineOperator.random(2, 4, 2, 1), ValueError, "0 < mu <= L, got 2 and 1"),
    (lambda: BilinearGame(np.ones((2, 3))), ValueError, r"B must be \(n, p, q\), got \(2, 3\)"),
    (lambda: BilinearGame(np.ones((2, 3, 1)), a=np.ones((2, 1))), ValueError, r"a of \(2, 3\) .* got \(2, 1\)"),
    (lambda: BilinearGame(np.ones((2, 3, 1)), mu=-1.0), ValueError, "mu must be finite and at least 0, got -1"),
    (lambda: BilinearGame.random(2, 4, 0, 1), ValueError, "0 < low <= high, got 0 and 1"),
    (lambda: quadratic_game().gradient(N, np.ones(D)), IndexError, "component 8 of an operator of 8"),
]


@pytest.mark.parametrize("make, error, message", BAD, ids=range(len(BAD)))
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_quickest_statements_of_the_reproduction():
    pytest.importorskip("rich")
    from bench.papers import extragradient

    assert extragradient.factors(10, 300, 3).ok and extragradient.deterministic(50).ok and extragradient.spectra().ok
    (mean, bound, published), check = extragradient.bounds(60)
    assert check.ok and np.all(bound <= published) and mean[0] == pytest.approx(1)
