"""ADOM against its algorithm box, its invariants, its bound, its rate and its bits; dual oracles."""

import math
import warnings
from dataclasses import replace

import backends
import numpy as np
import pytest

import compress
from compress.graphs import Graph, Network, ring, star
from compress.optimizers.adom import ADOM, dual_oracle, gossip

KEY = compress.Key(3)
NETWORKS = {
    "ring/star": Network.ring_star(8),
    "geometric": Network.geometric(8, 0.5, graphs=10),
    "adversarial": Network.adversarial(8, hold=5, seed=1),
}


def quadratic(kappa=100.0, n=8, d=5, seed=0):
    """Every node as badly conditioned as the mean, in one random basis."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((d, d)))
    A = Q * np.geomspace(1, kappa, d) @ Q.T
    return compress.Quadratic(np.tile((A + A.T) / 2, (n, 1, 1)), rng.standard_normal((n, d)))


def diagonal(n=8, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return compress.Quadratic(rng.uniform(1, 9, (n, d)), rng.standard_normal((n, d)))


def rows(cls, n=8, m=12, d=5, lam=0.3, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n * m, d))
    b = A @ rng.standard_normal(d) + rng.standard_normal(n * m)
    return cls(A, np.sign(b) if cls is compress.Logistic else b, lam=lam, workers=n)


PROBLEMS = {
    "quadratic": quadratic,
    "diagonal": diagonal,
    "ridge": lambda: rows(compress.Ridge),
    "logistic": lambda: rows(compress.Logistic),
}


def dual(problem, z):
    """grad f_i*(z_i) for every row, by Newton's method with a Hessian of differences."""
    result = []
    for i, z_i in enumerate(z):
        x, step = np.zeros(problem.d), np.ones(problem.d)
        while np.linalg.norm(step) > 1e-10:
            H = [(problem.gradient(i, x + h) - problem.gradient(i, x - h)) / 2e-4 for h in 1e-4 * np.eye(problem.d)]
            step = np.linalg.solve(np.array(H), problem.gradient(i, x) - z_i)
            x = x - step
        result.append(x)
    return np.array(result)


def box(method, problem, steps):
    """The algorithm box with dense matrices: (x, z, z_f, m) after each step."""
    eta, theta, tau = method.eta, method.theta, method.eta * method.alpha
    z = z_f = m = np.zeros((problem.n, problem.d))
    for k in range(steps):
        R = np.eye(problem.n)
        for r in range(method.rounds):
            graph = method.network(k * method.rounds + r)
            R = (np.eye(problem.n) - graph.laplacian() / np.linalg.eigvalsh(graph.laplacian())[-1]) @ R
        z_g = tau * z + (1 - tau) * z_f
        g = dual(problem, z_g)
        v = m - eta * g
        delta = v - R @ v
        m, z = v - delta, z + tau * (z_g - z) + delta
        z_f = z_g - theta * (g - R @ g)
        yield g, z, z_f, m


def drive(method, problem, steps, x0=None, key=KEY, comm=None):
    """The states after each step."""
    comm = compress.Local(problem.n) if comm is None else comm
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no convergence is proven: ADOM has")
        state = method.init(problem, comm, np.zeros(problem.d) if x0 is None else x0)
    for k in range(steps):
        state = method.step(problem, comm, state, key.at(k))
        yield state


def curve(method, problem, steps, until=0.0, **more):
    """(1/n) sum_i ||x_i - x*||^2 after each step."""
    errors = []
    for state in drive(method, problem, steps, **more):
        errors.append(float(np.sum((state.x - problem.x_star) ** 2)) / problem.n)
        if errors[-1] <= until * errors[0]:
            break
    return np.array(errors)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("name", PROBLEMS)
def test_steps_are_those_of_the_algorithm_box(name, rounds):
    problem = PROBLEMS[name]()
    method = ADOM.theoretical(problem, NETWORKS["ring/star"], rounds=rounds)
    for state, expected in zip(drive(method, problem, 15), box(method, problem, 15), strict=True):
        for ours, theirs in zip(state[:4], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)
    assert state.k == 15 and state.oracle == 15 * problem.n


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("compressor", [compress.Identity(), compress.StandardDithering(3)], ids=repr)
def test_sums_stay_zero_and_the_shadow_iterate_is_exact(network, compressor):
    problem = quadratic()
    exact = ADOM.theoretical(problem, NETWORKS[network])
    method = ADOM(exact.network, exact.eta, exact.theta, exact.alpha, compressor=compressor)

    def centred(rows):
        return rows - rows.mean(axis=0)

    z = z_f = m = np.zeros((problem.n, problem.d))
    for state in drive(method, problem, 300):
        z_g = method.tau * z + (1 - method.tau) * z_f
        expected = z + centred(m) + method.tau * (z_g - z) - method.eta * centred(state.x)
        np.testing.assert_allclose(state.z + centred(state.memory), expected, atol=1e-12)
        assert np.abs(state.z.sum(axis=0)).max() < 1e-10 and np.abs(state.fast.sum(axis=0)).max() < 1e-10
        z, z_f, m = state.z.copy(), state.fast.copy(), state.memory.copy()


@pytest.mark.parametrize("kappa", [10, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("network", NETWORKS)
def test_linear_at_least_as_fast_as_promised(network, kappa):
    problem = quadratic(kappa)
    method = ADOM.theoretical(problem, NETWORKS[network])
    assert method.tau == pytest.approx(math.sqrt(1 / kappa) / (7 * method.network.chi), rel=1e-9)
    errors = curve(method, problem, 20_000, 1e-6)
    assert errors[-1] <= 1e-6 * errors[0]
    later = np.argmax(errors <= 1e-3 * errors[0])
    slope = np.polyfit(np.arange(later, len(errors)), np.log(errors[later:]), 1)[0]
    assert slope <= -method.tau
    assert np.all(errors <= method.bound(problem, np.zeros(problem.d), np.arange(1, len(errors) + 1)))


def psi(method, problem, state, z_star):
    """The Lyapunov function, for quadratics, of a state."""
    tau, H = method.tau, np.stack([problem.hessian(i, problem.x_star) for i in range(problem.n)])

    def conjugate(z):
        b = z + problem.b
        return np.einsum("ni,nij,nj->", b, np.linalg.inv(H), b) / 2

    shadow, memory = state.z + state.memory - state.memory.mean(0), state.memory - state.memory.mean(0)
    gap = conjugate(state.fast) - conjugate(z_star)
    return np.sum((shadow - z_star) ** 2) + 2 * (1 - tau) / method.alpha * gap + 6 * np.sum(memory**2)


def factors(method, problem, steps=300):
    """By what the Lyapunov function falls in each step."""
    values = [psi(method, problem, state, problem.gradients_star) for state in drive(method, problem, steps)]
    return np.divide(values[1:], np.array(values[:-1]) + 1e-13)


@pytest.mark.parametrize("network, rounds", [*((name, 1) for name in NETWORKS), ("ring/star", 4)])
def test_the_lyapunov_function_falls_at_every_step_of_the_largest_size(network, rounds):
    """At the limits, where eta is nearly twice the paper's."""
    problem = quadratic(30.0)
    paper = ADOM.theoretical(problem, NETWORKS[network], rounds=rounds)
    method = ADOM(paper.network, **paper.limits(problem), rounds=rounds)
    assert 1 < method.eta / paper.eta < 2 and (rounds > 1 or method.eta > 1.6 * paper.eta)
    assert factors(method, problem).max() <= 1 - method.tau


@pytest.mark.parametrize("theta, alpha", [(1e-3, 0.3), (0.1, 1.0), (0.8, 0.03)])
@pytest.mark.parametrize("network", NETWORKS)
def test_limits_and_bound_are_those_of_any_smaller_theta_and_alpha(network, theta, alpha):
    """A smaller theta pays for less of eta."""
    problem = quadratic(30.0)
    paper = ADOM.theoretical(problem, NETWORKS[network])
    small = replace(paper, theta=theta * paper.theta, alpha=alpha * paper.alpha)
    eta = small.limits(problem)["eta"]
    assert eta == pytest.approx(paper.limits(problem)["eta"] * math.sqrt(theta / alpha))
    for size in (eta, eta / 10):
        method = replace(small, eta=size)
        assert factors(method, problem).max() <= 1 - method.tau
        errors = curve(method, problem, 300)
        assert np.all(errors <= method.bound(problem, np.zeros(problem.d), np.arange(1, 301)))


def test_there_is_no_bound_where_the_theorem_says_nothing():
    problem = quadratic(30.0)
    paper = ADOM.theoretical(problem, NETWORKS["ring/star"])
    largest = paper.limits(problem)
    within = replace(paper, eta=largest["eta"], theta=0.01 * paper.theta)
    with pytest.warns(UserWarning, match="ADOM: eta = .* is above"):
        assert factors(within, problem).max() > 1  # the eta that is proven for theta = mu alone
    above = [replace(paper, **{name: 1.01 * limit}) for name, limit in largest.items()]
    for method in (within, *above):
        with pytest.raises(ValueError, match=r"no bound is proven for ADOM\(.* with mu = 1 and L = 30"):
            method.bound(problem, np.zeros(problem.d), 3)
    for name, method in zip(largest, above, strict=True):
        with pytest.warns(UserWarning, match=f"ADOM: {name} = .* is above"):
            started(method, problem)
    for more, why in (
        ({"local_steps": 5}, "ADOM has a theorem for exact dual gradients, and local_steps = 5"),
        ({"compressor": compress.TopK(2)}, r"ADOM has no theorem for messages of TopK\(k=2"),
    ):
        unproven = replace(paper, **more)
        with pytest.raises(ValueError, match=why):
            unproven.bound(problem, np.zeros(problem.d), 3)
        with pytest.warns(UserWarning, match=f"no convergence is proven: {why}"):
            started(unproven, problem)


def test_the_bound_is_that_of_a_mean_over_nodes():
    """At the start it is ||x0 - x*||^2, as of every method; twice the nodes with the same functions change nothing."""
    problem, x0 = diagonal(), np.ones(5)
    twice = compress.Quadratic(np.tile(problem.A, (2, 1)), np.tile(problem.b, (2, 1)))
    small, large = (ADOM.theoretical(f, Network([star(f.n)])) for f in (problem, twice))
    large = replace(large, eta=small.eta / 2)
    small = replace(small, eta=small.eta / 2)
    k = np.arange(50)
    bound = small.bound(problem, x0, k)
    assert bound[0] == pytest.approx(np.sum((x0 - problem.x_star) ** 2), rel=1e-12)
    assert large.bound(twice, x0, k) == pytest.approx(bound, rel=1e-12)
    trace = compress.run(small, problem, compress.Local(8), x0, KEY, steps=49)
    assert np.all(trace.error * bound[0] <= bound * (1 + 1e-12))


def test_many_gossip_rounds_leave_the_dual_gradients_independent_of_chi():
    problem, network = quadratic(), NETWORKS["ring/star"]
    one, many = (
        len(curve(ADOM.theoretical(problem, network, rounds=rounds), problem, 20_000, 1e-8))
        for rounds in (1, math.ceil(network.chi * math.log(2)))
    )
    assert many <= one / 4


def test_memory_is_what_keeps_momentum_from_being_misled():
    """The same steps without m take far more rounds where graphs are held; Nesterov as if W were fixed diverges."""
    problem, network = quadratic(1e3, n=10, d=10), Network.adversarial(10, hold=5, seed=1)
    method = ADOM.theoretical(problem, network)
    H, b = problem.A[0], problem.b
    W = [graph.laplacian() / graph.spectrum[1] for graph in network.graphs]

    def without():
        z = z_f = np.zeros_like(b)
        for k in range(40_000):
            z_g = method.tau * z + (1 - method.tau) * z_f
            g, w = np.linalg.solve(H, (z_g + b).T).T, W[k // 5 % 3]
            yield g
            z, z_f = z + method.tau * (z_g - z) - method.eta * (w @ g), z_g - method.theta * (w @ g)

    def naive():
        y = z = np.zeros_like(b)
        root = math.sqrt(1e3 * network.chi)
        for k in range(600):
            g = np.linalg.solve(H, (y + b).T).T
            yield g
            after = y - W[k // 5 % 3] @ g
            y, z = after + (root - 1) / (root + 1) * (after - z), after

    errors = np.array([np.sum((g - problem.x_star) ** 2) for g in naive()])
    assert errors[-1] > 1e6 * errors[0]
    ours = curve(method, problem, 40_000, 1e-8)
    theirs = next(k for k, g in enumerate(without()) if np.sum((g - problem.x_star) ** 2) <= 1e-8 * errors[0])
    assert theirs >= 1.5 * len(ours)


# Dual oracles


@pytest.mark.parametrize("name", PROBLEMS)
def test_dual_oracles_invert_gradients(name):
    problem, rng = PROBLEMS[name](), np.random.default_rng(1)
    x = 3 * rng.standard_normal((problem.n, problem.d))
    z = np.stack([problem.gradient(i, row) for i, row in enumerate(x)])
    for nodes in (range(problem.n), range(2, 5)):
        found = np.zeros((len(nodes), problem.d))
        dual_oracle(problem, nodes)(z[nodes.start : nodes.stop], found)
        np.testing.assert_allclose(found, x[nodes.start : nodes.stop], rtol=1e-9, atol=1e-9)
        found = np.zeros_like(found)
        for _ in range(300):  # each goes on from where the last one came to
            dual_oracle(problem, nodes, 3)(z[nodes.start : nodes.stop], found)
        np.testing.assert_allclose(found, x[nodes.start : nodes.stop], rtol=1e-3, atol=1e-3)


def test_newton_finds_the_way_from_far_off():
    """Where full steps overshoot: labels that are nearly separated, and little curvature."""
    problem = rows(compress.Logistic, lam=1e-4)
    z = np.zeros((problem.n, problem.d))
    found = np.full((problem.n, problem.d), 50.0)
    dual_oracle(problem, range(problem.n))(z, found)
    residuals = [np.linalg.norm(problem.gradient(i, x)) for i, x in enumerate(found)]
    assert max(residuals) < 1e-12


class Flattening(compress.Problem):
    """f_i(x) = sum_j a_ij (x_j arctan x_j - log(1 + x_j^2) / 2) + lam ||x||^2 / 2, with a diagonal Hessian."""

    n, d = 8, 3

    def __init__(self, lam):
        self.a, self.lam, self.asked = np.random.default_rng(4).uniform(1, 9, (self.n, self.d)), lam, []

    def value(self, x):
        return float(self.a.mean(axis=0) @ (x * np.arctan(x) - np.log1p(x * x) / 2) + self.lam * (x @ x) / 2)

    def gradient(self, i, x, out=None):
        return self.a[i] * np.arctan(x) + self.lam * x

    def hessian(self, i, x):
        self.asked.append(i)
        return self.a[i] / (1 + x * x) + self.lam


def test_newton_takes_diagonal_hessians():
    problem, rng = Flattening(1.0), np.random.default_rng(1)
    x = 3 * rng.standard_normal((problem.n, problem.d))
    z, found = np.stack([problem.gradient(i, row) for i, row in enumerate(x)]), np.zeros_like(x)
    oracle = dual_oracle(problem, range(2, 5))
    assert problem.asked == [2]  # one is enough to know that there are some
    oracle(z[2:5], found[2:5])
    np.testing.assert_allclose(found[2:5], x[2:5], rtol=1e-9)


def test_few_local_steps_are_as_good_as_exact_ones():
    problem, network = rows(compress.Logistic, lam=0.2), NETWORKS["ring/star"]
    exact, five = (
        len(curve(ADOM.theoretical(problem, network, local_steps=steps), problem, 10_000, 1e-8)) for steps in (None, 5)
    )
    assert five == pytest.approx(exact, rel=0.1)
    *_, state = drive(ADOM.theoretical(problem, network, local_steps=5), problem, 10)
    assert state.oracle == 10 * 5 * problem.n


@pytest.mark.parametrize("name", PROBLEMS)
def test_hessians_and_strong_convexity(name):
    problem, rng = PROBLEMS[name](), np.random.default_rng(2)
    for i in range(problem.n):
        x, h = rng.standard_normal(problem.d), 1e-5
        H = problem.hessian(i, x)
        H = np.diag(H) if H.ndim == 1 else H
        differences = [
            (problem.gradient(i, x + e) - problem.gradient(i, x - e)) / (2 * h) for e in h * np.eye(problem.d)
        ]
        np.testing.assert_allclose(H, differences, rtol=1e-6, atol=1e-7)
        least, largest = np.linalg.eigvalsh(H)[[0, -1]]
        assert problem.mu_i[i] <= least * (1 + 1e-12) and largest <= problem.L_i[i] * (1 + 1e-12)
        if name != "logistic":
            assert problem.mu_i[i] == pytest.approx(least, rel=1e-9)
    with pytest.raises(IndexError, match=f"component {problem.n}"):
        problem.hessian(problem.n, np.zeros(problem.d))


# Messages


def test_every_bit_to_every_neighbour_is_counted():
    problem, network = quadratic(), NETWORKS["ring/star"]
    for compressor, bits in ((compress.Identity(), 64 * 10), (compress.Scaled(compress.RandK(0.3)), 32 * 3)):
        comm = compress.Local(8)
        list(drive(ADOM.theoretical(problem, network, compressor=compressor), problem, 4, comm=comm))
        links = 2 * (2 * 8 + 2 * 7)  # a ring and a star, twice each, both ways
        assert comm.ledger.bits_up == comm.ledger.bits_down == links * bits
        assert comm.ledger.messages == links and comm.ledger.wire_up == links * (bits // 8 + compress.comm.HEADER)


def test_coordinates_that_all_nodes_share_keep_it_linear():
    problem, network = quadratic(10.0), NETWORKS["geometric"]
    quarter = compress.Scaled(compress.RandK(0.3, wire="float64"))
    whole, part = (ADOM.theoretical(problem, network, compressor=C) for C in (compress.Identity(), quarter))
    assert part.eta == pytest.approx(0.3 * whole.eta)
    errors = [curve(part, problem, 1200, key=compress.Key(seed)) for seed in range(3)]
    assert max(error[-1] / error[0] for error in errors) < 1e-4
    mean = np.mean(errors, axis=0)
    assert np.all(mean <= part.bound(problem, np.zeros(problem.d), np.arange(1, 1201)))


def test_nodes_that_agree_hear_nothing_new_whatever_the_compressor():
    row = np.random.default_rng(0).standard_normal(12)
    graph, comm = Graph(star(5)), compress.Local(5)
    for compressor in (compress.Identity(), compress.StandardDithering(2), compress.TopK(3), compress.RandK(4)):
        assert not gossip(comm, graph, compressor, np.tile(row, (5, 1)), KEY).any()


def test_gossip_hears_neighbours_alone():
    """A row that is not a number reaches them, and nobody else."""
    graph, values = Graph(ring(np.arange(6))), np.ones((6, 3))

    class Silent(compress.Local):
        def exchange(self, messages, graph):
            heard = super().exchange(messages, graph)
            return {i: m._replace(payload=np.full(24, 255, np.uint8)) if i == 2 else m for i, m in heard.items()}

    found = gossip(Silent(6), graph, compress.Identity(), values, KEY)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, True, True, False, False]


# What it is given


def test_theoretical_parameters_and_warnings():
    problem, network = rows(compress.Ridge), NETWORKS["geometric"]
    mu, L = problem.mu_i.min(), problem.L_max
    method = ADOM.theoretical(problem, network)
    assert mu < problem.mu and problem.L < L
    assert (method.theta, method.alpha) == (mu, 1 / (2 * L))
    assert method.eta == pytest.approx(2 * math.sqrt(mu * L) / (7 * network.chi))
    assert ADOM.theoretical(problem, network, c=2).eta == pytest.approx(3.5 * method.eta)
    three = ADOM.theoretical(problem, network, rounds=3)
    assert three.eta == pytest.approx(2 * math.sqrt(mu * L) * (1 - (1 - 1 / network.chi) ** 3) / 7)
    for fine in (method, three, ADOM.theoretical(problem, network, compressor=compress.Scaled(compress.RandK(2)))):
        fine.init(problem, compress.Local(8), np.zeros(problem.d))
    with pytest.warns(UserWarning, match="ADOM: eta = .* is above"):
        ADOM.theoretical(problem, network, c=2).init(problem, compress.Local(8), np.zeros(problem.d))


def test_float32_runs_in_float32():
    problem, network = quadratic(10.0), NETWORKS["geometric"]
    method, x0 = ADOM.theoretical(problem, network), np.ones(problem.d, np.float32)
    for state in drive(method, problem, 400, x0):
        assert {array.dtype for array in state[:4]} == {np.dtype(np.float32)}
    assert np.sum((state.x - problem.x_star) ** 2) < 1e-3 * np.sum((x0 - problem.x_star) ** 2)
    assert np.all(x0 == 1)


class Unknown(compress.Problem):
    n, d = 8, 2

    def value(self, x):
        return 0.0

    def gradient(self, i, x, out=None):
        return x


FLAT = np.where(np.arange(8) == 3, 0.0, 1.0)[:, None] * np.array([1.0, 2.0])


class Level(Unknown):
    """The Hessians of f_i are FLAT_i and not known to be so."""

    def hessian(self, i, x):
        return FLAT[i]


def oracle(problem):
    dual_oracle(problem, range(problem.n))(np.zeros((problem.n, problem.d)), np.ones((problem.n, problem.d)))


def with_step(**more):
    return ADOM(NETWORKS["ring/star"], **({"eta": 0.1, "theta": 1.0, "alpha": 0.1} | more))


def started(method, problem, n=8):
    return method.init(problem, compress.Local(n), np.zeros(problem.d))


BAD = [
    (lambda: ADOM("ring", 0.1, 1.0, 0.1), TypeError, "network must be a Network, .* got 'ring'"),
    *(
        (lambda given=given: ADOM.theoretical(quadratic(), given), TypeError, "ADOM: network must be a Network")
        for given in ([star(8)], None, quadratic())
    ),
    (lambda: ADOM.theoretical(NETWORKS["ring/star"], quadratic()), TypeError, "ADOM: problem must be .* got Network"),
    (lambda: ADOM.theoretical(None, NETWORKS["ring/star"]), TypeError, "ADOM: problem must be .* got None"),
    (lambda: ADOM.theoretical(quadratic(), NETWORKS["ring/star"], c="x"), TypeError, "c must be a number, got 'x'"),
    *(
        (lambda C=C: with_step(compressor=C), ValueError, r"all nodes encode with one key, and .* must know the worker")
        for C in (
            compress.PermK(8),
            compress.Scaled(compress.PermK(8)),
            compress.Correlated(compress.StandardDithering(4), 8),
        )
    ),
    (lambda: with_step(compressor=3), TypeError, "compressor must be a Compressor, got 3"),
    (lambda: with_step(eta=0.0), ValueError, "eta must be positive, got 0"),
    (lambda: with_step(eta=20.0), ValueError, r"tau = eta alpha must be at most 1, got 2"),
    (lambda: with_step(local_steps=0), ValueError, "local_steps must be at least 1, got 0"),
    (lambda: with_step(rounds=1.5), TypeError, "rounds must be an integer"),
    (lambda: ADOM.theoretical(quadratic(), NETWORKS["ring/star"], c=0), ValueError, "c must be positive, got 0"),
    (
        lambda: ADOM.theoretical(quadratic(), NETWORKS["ring/star"], compressor=compress.TopK(2)),
        TypeError,
        "no step size is proven with TopK",
    ),
    (
        lambda: ADOM.theoretical(rows(compress.Ridge, m=3, lam=0.0), NETWORKS["ring/star"]),
        ValueError,
        "component 0 is not",
    ),
    (
        lambda: started(with_step(), quadratic(n=7), 7),
        ValueError,
        "the network has 8 nodes, the communicator 7 workers",
    ),
    (lambda: started(with_step(), quadratic(n=7)), ValueError, "the problem has 7 components, the communicator 8"),
    (lambda: started(with_step(), Unknown()), ValueError, "Unknown does not know its Hessians: give local_steps"),
    *(
        (lambda problem=problem: oracle(problem), ValueError, "component 3 is not strongly convex")
        for problem in (compress.Quadratic(FLAT, FLAT), compress.Quadratic(FLAT[:, :, None] * np.eye(2), FLAT), Level())
    ),
    (
        lambda: started(with_step(), compress.Quadratic(np.ones((8, 2)), np.ones((8, 2)), compress.L1(1.0))),
        ValueError,
        "no prox",
    ),
]


@pytest.mark.parametrize("make, error, match", BAD, ids=range(len(BAD)))
def test_bad_input_is_named(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("compressor", [compress.RandK(11), compress.Scaled(compress.RandK(11))], ids=repr)
def test_a_compressor_that_does_not_suit_the_messages_is_refused_at_the_start(compressor):
    problem, method = quadratic(), with_step(compressor=compressor)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="k = 11 of a vector of 10 coordinates"):
        started(method, problem)


def test_arrays_on_a_device_are_refused_by_name():
    backends.use("grid")
    try:
        x0 = backends.device.cupy().asarray(np.zeros(5))
        with pytest.raises(TypeError, match=r"ADOM runs on the CPU: x0 is a CuPy array, pass compress.asarray\(x0\)"):
            ADOM.theoretical(quadratic(), NETWORKS["ring/star"]).init(quadratic(), compress.Local(8), x0)
    finally:
        backends.device._cupy = None


# run


def test_a_run_measures_all_nodes(tmp_path):
    problem, network = quadratic(10.0), NETWORKS["geometric"]
    method, x0 = ADOM.theoretical(problem, network), np.ones(problem.d)
    trace = compress.run(method, problem, compress.Local(8), x0, KEY, steps=300, every=1)
    expected = curve(method, problem, 300, x0=x0) / np.sum((x0 - problem.x_star) ** 2)
    assert trace.error[0] == 1 and trace.error[1:] == pytest.approx(expected, rel=1e-12)
    *_, last = drive(method, problem, 300, x0)
    assert trace.x == pytest.approx(last.x.mean(axis=0), rel=1e-12)
    file = tmp_path / "run.npz"
    compress.run(method, problem, compress.Local(8), x0, KEY, steps=100, every=10, checkpoint=file)
    resumed = compress.run(method, problem, compress.Local(8), x0, KEY, steps=300, every=10, checkpoint=file)
    assert np.array_equal(resumed.x, trace.x) and resumed.error[-1] == trace.error[-1]
    assert resumed.bits_up[-1] == trace.bits_up[-1]


def test_a_function_that_measures_a_run_is_given_the_mean_of_the_nodes():
    problem = quadratic(10.0)
    method = ADOM.theoretical(problem, NETWORKS["geometric"])
    means = [np.zeros(problem.d), *(state.x.mean(axis=0) for state in drive(method, problem, 20))]
    trace = compress.run(method, problem, compress.Local(8), means[0], KEY, steps=20, error=problem.value)
    assert trace.error == pytest.approx([problem.value(x) for x in means], rel=1e-12)
    assert trace.error[-1] == problem.value(trace.x) and trace.measure == "value"


def test_a_run_that_diverges_is_seen_at_the_next_row_as_of_several_processes():
    """No process holds all that an earlier look would need: an engine that does must not stop before the others."""
    problem, x0 = quadratic(10.0), np.ones(5)
    method = with_step(eta=8.0, theta=50.0)
    with pytest.warns(UserWarning, match="is above"), pytest.warns(RuntimeWarning, match="diverged at step 200"):
        trace = compress.run(method, problem, compress.Local(8), x0, KEY, steps=10**6, every=200)
    assert trace.step.tolist() == [0, 200]


def test_the_quickest_statements_of_the_reproduction():
    pytest.importorskip("rich")
    from bench.papers import adom

    assert adom.normalised().ok and adom.invariants(adom.Setup.quadratic(1e2, NETWORKS["ring/star"]), 100).ok
    setup = adom.Setup.quadratic(10.0, NETWORKS["geometric"])
    peers = {
        "dual GD": adom.dual_descent(setup),
        "DIGing": adom.diging(setup, 0.12 / setup.L),
        "Acc-GT": adom.acc_gt(setup, 0.25 / setup.L),
        "ADOM+": adom.adom_plus(setup),
    }
    for name, iterates in peers.items():
        found = adom.errors(setup, iterates, 3000, target=1e-3)
        assert found[-1] <= 1e-3, (name, found[-1])
