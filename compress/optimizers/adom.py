"""ADOM: decentralised optimization over networks that change in every round.

Kovalev, Shulgin, Richtarik, Rogozin, Gasnikov, "ADOM: Accelerated Decentralized Optimization Method for Time-Varying
Networks", ICML 2021, arXiv 2102.09234. Networks and their gossip matrices are in `compress.graphs`.

Design note
-----------
A. Node i holds f_i, mu-strongly convex and L-smooth, kappa = L / mu: worst cases over nodes, not those of their mean.
   Minimising sum_i f_i(x) is minimising F*(z) = sum_i f_i*(z_i) over z_1 + ... + z_n = 0, and grad f_i*(z_i) =
   argmin over x of f_i(x) - z_i'x, the dual oracle, is x* for every i at the minimum.
B. Accelerated gradients for F* would project a gradient on sum_i z_i = 0, which takes an average over the network. A
   gossip round is used as a compressor of that projection, and m, error feedback, keeps what it leaves out: z + P m
   moves as if the projection P were exact, whatever the graph of the round.
C. Arrays have a row for each node hosted here. Nodes hear their neighbours alone, and nothing is the same on all
   processes but z = 0 at the start: so is what a node starts from, x^0 = x0.
D. Each graph is divided by its own lambda_max: theorems hold with lambda_max = 1, lambda_min = 1 / chi.
E. The theorem is about theta = mu, alpha = 1/(2L). Where f_i is mu-strongly convex and L-smooth it is so with any
   smaller mu and larger L too, and the theorem for those is about all theta <= mu and alpha <= 1/(2L).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from ..combine import Scaled
from ..compressor import Compressor, Identity, positive_int, settle
from ..graphs import Network
from ..problems import Problem, Quadratic, Ridge
from ..sparsify import RandK
from .method import Method, _dependent, checked, parameter


class ADOMState(NamedTuple):
    """Arrays have a row for each node hosted here.

    x: the primal iterates grad f_i*(z_g). z, fast, memory: z, z_f and m of the paper. k: steps taken.
    """

    x: np.ndarray
    z: np.ndarray
    fast: np.ndarray
    memory: np.ndarray
    k: int
    oracle: int
    scratch: Callable


@dataclass(frozen=True)
class ADOM(Method):
    """ADOM: one dual gradient per node and one message of 2 d numbers to each neighbour a step.

        z_g = tau z + (1 - tau) z_f,  x_i = grad f_i*(z_g,i),  v = m - eta x,  tau = eta alpha
        m <- v - W v,  z <- z + tau (z_g - z) + W v,  z_f <- z_g - theta W x

    W is the gossip matrix of the step's graph. With theta <= mu, alpha <= 1/(2L) and eta <= q sqrt(2 theta/alpha) / 7,
    q = 1/chi, Psi^k = ||z + P m - z*||^2 + (2 (1 - tau) / alpha) (F*(z_f) - F*(z*)) + 6 ||P m||^2 falls as (1 - tau)^k
    and 2 mu^2 sum_i ||x_i^k - x*||^2 <= Psi^k. The largest theta and alpha, with eta = 2 q sqrt(mu L) / 7, are the
    paper's: eps is reached in O(chi sqrt(kappa) log(1/eps)) rounds. The proof asks of W only ||v - W v||^2 <= (1 - q)
    ||v||^2 for v of mean zero, which a symmetric W meets with q = 1 - (1 - 1/chi)^2, nearly twice the paper's: that is
    what `limits` has.

    network: who talks to whom, round by round. eta, theta, alpha: as above.
    local_steps: None where dual gradients are exact: quadratics by an inverse that is made once, others by Newton's
        method from the last x_i. Otherwise so many gradient steps from there, of 2/(L_i + mu_i): nothing is proven of
        them, and `theoretical` gives the step sizes of exact ones.
    rounds: gossip rounds a step. W v is then what all of them take off v, q = 1 - (1 - 1/chi)^(2 rounds): for rounds =
        ceil(chi log 2) dual gradients are the O(sqrt(kappa) log(1/eps)) that is optimal, at as many rounds as before.
    compressor: of the messages. Scaled(RandK(...)), in which all nodes draw the same K of the 2 d coordinates, is a
        projection that commutes with W, and adds nothing where neighbours agree: linear as before in expectation, with
        K / (2 d) times q a round. Of any other nothing is proven: measured, sparsifiers that keep half went to x*,
        RandK diverged where it keeps a quarter, and dithering left a neighbourhood. Nodes encode with one key:
        ValueError for PermK and Correlated, which must know the worker.

    x of the state has a row for each node hosted here, the error of a run is the mean over nodes, and x of its trace
    the mean of the nodes' x_i. `oracle` counts dual gradients, or the local steps they take.

    >>> import numpy as np, compress
    >>> A = np.random.default_rng(0).standard_normal((80, 5))
    >>> problem, network = compress.Ridge(A, A.sum(axis=1), lam=1.0, workers=4), compress.Network.ring_star(4)
    >>> method = compress.ADOM.theoretical(problem, network)
    >>> trace = compress.run(method, problem, compress.Local(4), np.zeros(5), steps=5000, until=1e-12)
    >>> trace.reason
    'error 1e-12 reached'
    """

    network: Network
    eta: float
    theta: float
    alpha: float
    local_steps: int | None = None
    rounds: int = 1
    compressor: Compressor = Identity()  # noqa: RUF009 (it is frozen)

    def __post_init__(self):
        _check_network(self.network)
        if not isinstance(self.compressor, Compressor):
            raise TypeError(f"ADOM: compressor must be a Compressor, got {self.compressor!r}")
        if _dependent(self.compressor):
            raise ValueError(f"ADOM: all nodes encode with one key, and {self.compressor!r} must know the worker")
        checked(self, eta="step", theta="step", alpha="step")
        if self.local_steps is not None:
            settle(self, "local_steps", positive_int(self.local_steps, "local_steps"))
        settle(self, "rounds", positive_int(self.rounds, "rounds"))
        if self.eta * self.alpha > 1:
            raise ValueError(f"ADOM: tau = eta alpha must be at most 1, got {self.eta * self.alpha:.6g}")

    @classmethod
    def theoretical(
        cls,
        problem,
        network: Network,
        c: float = 7.0,
        local_steps: int | None = None,
        rounds: int = 1,
        compressor: Compressor = Identity(),  # noqa: B008 (it is frozen)
    ) -> ADOM:
        """alpha = 1/(2L), theta = mu, eta = 2 q sqrt(mu L) / c with q = 1/chi, or 1 - (1 - delta/chi)^rounds.

        c: 7 is the paper's; 2 is past what is proven, and was stable wherever it was measured. delta: K / (2 d) where
        messages are Scaled(RandK(...)). Raises ValueError where a component is not strongly convex, TypeError for a
        compressor that no step size is proven with.
        """
        mu, L = _constants(problem)
        _check_network(network)
        c, delta = parameter(cls, "c", c, "step"), _delta(compressor, problem.d)
        if delta is None:
            raise TypeError(f"ADOM: no step size is proven with {compressor!r}: give eta, theta and alpha")
        q = 1 - (1 - delta / network.chi) ** positive_int(rounds, "rounds")
        return cls(network, 2 * q * math.sqrt(mu * L) / c, mu, 1 / (2 * L), local_steps, rounds, compressor)

    def limits(self, problem):
        """As of every method. That of eta is for the theta and alpha of this one, or their limits where those are less:
        a smaller theta allows less, a smaller alpha more."""
        mu, L = _constants(problem)
        if self.local_steps is not None:
            raise ValueError(f"ADOM has a theorem for exact dual gradients, and local_steps = {self.local_steps}")
        if (delta := _delta(self.compressor, problem.d)) is None:
            raise ValueError(f"ADOM has no theorem for messages of {self.compressor!r}")
        q = 1 - (1 - delta * (1 - (1 - 1 / self.network.chi) ** 2)) ** self.rounds
        theta, alpha = min(self.theta, mu), min(self.alpha, 1 / (2 * L))
        return {"eta": q * math.sqrt(2 * theta / alpha) / 7, "theta": mu, "alpha": 1 / (2 * L)}

    @property
    def tau(self) -> float:
        """eta alpha, the share by which Psi falls in a step."""
        return self.eta * self.alpha

    def bound(self, problem, x0, k):
        """What (E) (1/n) sum_i ||x_i^k - x*||^2 is at most, for step numbers k.

        Psi^0 / (2 n mu^2) (1 - tau)^(k - 1), where F*(0) - F*(z*) = sum_i (f_i(x*) - min f_i) is at most
        sum_i ||grad f_i(x*)||^2 / (2 mu). Raises ValueError where the theorem says nothing: where `limits` does, and
        for parameters above them.
        """
        mu, L = _constants(problem)
        if not all(getattr(self, name) <= limit * (1 + 1e-9) for name, limit in self.limits(problem).items()):
            raise ValueError(f"no bound is proven for {self!r} with mu = {mu:.6g} and L = {L:.6g}")
        k, h = np.asarray(k), np.sum(problem.gradients_star**2) / problem.n
        psi = h * (1 + (1 - self.tau) / (self.alpha * mu))
        start = np.sum((np.asarray(x0, np.float64) - problem.x_star) ** 2)
        return np.where(k == 0, start, psi / (2 * mu**2) * (1 - self.tau) ** (np.maximum(k, 1) - 1))

    def init(self, problem, comm, x0) -> ADOMState:
        if self.network.n != comm.n:
            raise ValueError(f"the network has {self.network.n} nodes, the communicator {comm.n} workers")
        x = self._start(problem, comm.n, x0)
        if not isinstance(x, np.ndarray):
            raise TypeError("ADOM runs on the CPU: x0 is a CuPy array, pass compress.asarray(x0)")
        self.compressor.bits(2 * problem.d)  # refuses a size that does not suit it
        x = np.tile(x, (len(comm.workers), 1))
        z, fast, memory = (np.zeros_like(x) for _ in range(3))
        return ADOMState(x, z, fast, memory, 0, 0, dual_oracle(problem, comm.workers, self.local_steps))

    def iterate(self, comm, state):
        return np.array(comm.observe(state.x))

    def step(self, problem, comm, state, key):
        x, z, fast, memory, k, oracle, dual = state
        d, tau = problem.d, self.tau
        fast *= 1 - tau
        fast += tau * z  # z_g from here on
        dual(fast, x)
        memory -= self.eta * x  # v
        left = np.concatenate((memory, x), axis=1)
        for r in range(self.rounds):
            left -= gossip(comm, self.network(k * self.rounds + r), self.compressor, left, key.fold(r))
        z += tau * (fast - z)
        z += memory - left[:, :d]
        fast -= self.theta * (x - left[:, d:])
        memory[...] = left[:, :d]
        return state._replace(k=k + 1, oracle=oracle + comm.n * (self.local_steps or 1))


def gossip(comm, graph, compressor, values, key):
    """W C(values) for the rows of the nodes hosted here: what each makes of its own message and its neighbours'.

    The key is the same for all nodes, so that whatever C adds, it adds nothing to the differences of equal rows.
    """
    heard = comm.exchange([compressor.encode(row, key) for row in values], graph)
    known = np.empty((len(heard), values.shape[1]), values.dtype)
    for row, message in zip(known, heard.values(), strict=True):
        compressor.decode(message, key, out=row)
    return graph.gossip(known, comm.workers)


def dual_oracle(problem, nodes: range, steps: int | None = None) -> Callable[[np.ndarray, np.ndarray], None]:
    """The function (z, x) that moves the row x_i of every node to grad f_i*(z_i) = argmin over x of f_i(x) - z_i'x.

    steps: None for the minimum itself; otherwise of so many gradient steps from the x_i that is there.

    >>> import numpy as np, compress
    >>> x, problem = np.zeros((1, 2)), compress.Quadratic(np.array([[1.0, 2.0]]), np.array([[0.0, 2.0]]))
    >>> dual_oracle(problem, range(1))(np.array([[3.0, 2.0]]), x)
    >>> x
    array([[3., 2.]])
    """
    if steps is not None:
        return partial(_descend, problem, nodes, steps)
    origin, linear = np.zeros(problem.d), isinstance(problem, (Quadratic, Ridge))
    try:
        hessians = [problem.hessian(i, origin) for i in (nodes if linear else nodes[:1])]
    except NotImplementedError as failure:
        raise ValueError(f"{failure}: give local_steps, the gradient steps of a dual oracle") from failure
    if not linear:
        return partial(_newton, problem, nodes)
    for i in nodes:
        if not problem.mu_i[i] > 0:
            raise _flat(i)
    hessians = np.stack(hessians)
    inverses = 1 / hessians if hessians.ndim == 2 else np.linalg.inv(hessians)
    return partial(_solve, inverses, np.stack([-problem.gradient(i, origin) for i in nodes]))


def _flat(i):
    return ValueError(f"component {i} is not strongly convex: x -> f_{i}(x) - z'x need not have one minimum for each z")


def _solve(inverses, b, z, x):
    """x_i = H_i^-1 (z_i + b_i)."""
    b = z + b
    x[...] = inverses * b if inverses.ndim == 2 else np.matmul(inverses, b[:, :, None])[:, :, 0]


def _descend(problem, nodes, steps, z, x):
    """Steps x_i <- x_i - 2/(L_i + mu_i) (grad f_i(x_i) - z_i)."""
    slope = np.empty(problem.d, x.dtype)
    for i, z_i, x_i in zip(nodes, z, x, strict=True):
        size = 2 / (problem.L_i[i] + problem.mu_i[i])
        for _ in range(steps):
            problem.gradient(i, x_i, out=slope)
            slope -= z_i
            slope *= size
            x_i -= slope


def _newton(problem, nodes, z, x):
    """Newton's method for grad f_i(x_i) = z_i, to rounding. A step is halved until the residual is shorter."""
    for i, z_i, x_i in zip(nodes, z.astype(np.float64), x, strict=True):
        y = x_i.astype(np.float64)
        residual = problem.gradient(i, y) - z_i
        size = math.inf
        while size > 1e-8 * np.linalg.norm(y):  # the step after one so short is shorter than rounding
            step = _newton_step(problem.hessian(i, y), residual, i)
            slope, before = np.linalg.norm(residual), y
            for share in 0.5 ** np.arange(20):
                y = before - share * step
                residual = problem.gradient(i, y) - z_i
                if np.linalg.norm(residual) < (1 - share / 8) * slope:
                    break
            else:
                break
            size = share * np.linalg.norm(step)
        x_i[...] = y


def _newton_step(hessian, residual, i):
    """hessian^-1 residual, for both forms of `Problem.hessian`; ValueError where that of component i is singular."""
    if hessian.ndim == 1 and hessian.all():
        return residual / hessian
    if hessian.ndim == 2:
        with suppress(np.linalg.LinAlgError):
            return np.linalg.solve(hessian, residual)
    raise _flat(i)


def _check_network(network):
    if not isinstance(network, Network):
        raise TypeError(f"ADOM: network must be a Network, such as Network([graph, ...]), got {network!r}")


def _constants(problem):
    """(min_i mu_i, max_i L_i)."""
    if not isinstance(problem, Problem):
        raise TypeError(f"ADOM: problem must be a compress.Problem, or derived from it, got {problem!r}")
    mu, L = float(problem.mu_i.min()), problem.L_max
    if not mu > 0:
        raise ValueError(f"ADOM: every component must be strongly convex, component {problem.mu_i.argmin()} is not")
    return mu, L


def _delta(compressor, d):
    """The share of coordinates in a message, where the others are zero at all nodes; None where that is not so."""
    if isinstance(compressor, Identity):
        return 1.0
    if isinstance(compressor, Scaled) and isinstance(compressor.inner, RandK):
        return 1 - compressor.alpha(2 * d)
    return None
