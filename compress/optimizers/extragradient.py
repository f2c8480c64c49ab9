"""Stochastic extragradient, for monotone operators and games, with one sample for both half steps.

Mishchenko, Kovalev, Shulgin, Richtarik, Malitsky, "Revisiting Stochastic Extragradient", AISTATS 2020,
arXiv 1905.11373. Operators and games are in `compress.games`, samplings in `compress.sampling`.

Design note
-----------
A. A draw of the sampling is F_v = (1/n) sum_i v_i F_i. x+ = x - eta F_v(x+) would be a stochastic proximal point; the
   method is one step of a fixed-point iteration towards it, which is why F_v must be the same in both half steps.
B. Where F_v is L_v-Lipschitz and mu_v-strongly monotone, a step without momentum, eta = gamma, has
       ||x+ - x*||^2 <= ||x - x*||^2 - (1 - eta^2 L_v^2) ||u - x||^2 - 2 eta mu_v ||u - x*||^2 - 2 eta <w, u - x*>,
   w = F_v(x*) - F(x*). Put ||u - x*||^2 >= ||x - x*||^2/3 - ||u - x||^2/2, and in place of u - x* in the last term
   u - x, as E <w, x - x*> = 0. With 1 - eta^2 L_v^2 - eta mu_v >= s > 0 what remains is
       E||x+ - x*||^2 <= (1 - 2 eta mu/3) ||x - x*||^2 + (eta^2/s) sigma^2.
   This is the paper's theorem, its 3 eta sigma^2/mu being 3 eta sigma^2/(2 s mu) at s = 1/2, for an F_v that is
   strongly monotone where the paper has a strongly convex R.
C. Linear F_v with singular values up to L, skew and with a common zero: E||x+||^2 = x'(I - eta^2 E K + eta^4 E K^2)x,
   K = A_v'A_v. At best, eta = 1/(sqrt(2) L), it falls by lambda_min(E K)/(4 L^2).
D. mu = 0. Where x* is a solution for every draw, F_v(x*) = F(x*), w is 0 and the first line of B leaves
       ||x+ - x*||^2 <= ||x - x*||^2 - (1 - eta^2 L^2) ||u - x||^2.
   For eta < 1/L the sum of all ||u - x||^2 is finite in the mean, so that x converges, almost surely, to such a
   solution; for affine F_i without R linearly, as u - x = -eta A_v (x - x*). With noise at x* there is no such law:
   on F_1 = 1 and F_2 = -1, both monotone, x is a random walk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..compressor import settle
from ..games import Operator
from ..problems import EPS
from ..sampling import Independent, Nice, Sampling, SingleElement, WithReplacement
from .method import Method, add, checked, generator, prox, same_components, zeros_like


class ExtragradientState(NamedTuple):
    """k: steps taken. iterate: x^k where x is the average, else None. previous: x^(k-1), for momentum, else None."""

    x: np.ndarray
    k: int
    iterate: np.ndarray | None
    previous: np.ndarray | None
    oracle: int
    scratch: list[np.ndarray]


@dataclass(frozen=True)
class Extragradient(Method):
    """Stochastic extragradient: look ahead, then step from where one stood by what was seen there.

        v a draw of the sampling,  F_v = (1/n) sum_i v_i F_i
        u = prox_{gamma R}(x - gamma F_v(x)),  x <- prox_{eta R}(x - eta F_v(u) + beta (x - x_previous))

    Of all F_v that can be drawn let L be the largest Lipschitz constant, m the largest constant of strong monotonicity,
    mu max_v (1/n) sum_i v_i, and sigma^2 = E ||F_v(x*) - F(x*)||^2. Monotone F_i, gamma = eta, beta = 0,
    s = 1 - (eta L)^2 - eta m > 0: linear to a neighbourhood of x* whose size is that of the noise at x* alone,
    E ||x^k - x*||^2 <= (1 - 2 eta mu/3)^k ||x^0 - x*||^2 + 3 eta sigma^2/(2 s mu);
    at most the paper's 3 eta sigma^2/mu where eta <= 1/(2 L) and m <= L/2. On bilinear games, mu = 0, linear to x* for
    every eta < 1/L where the components have a common zero; where they have not, x stays at a distance that does
    not fall with eta, and the average of the u comes closer than x. For other monotone F_i with mu = 0, too, x is known
    to converge only where all draws have a solution in common.

    The components are one process's own and nothing is sent, so the communicator is Local(1).

    sampling: over the n components of the problem. eta: the step size; gamma: that of looking ahead, eta unless given.
    beta: momentum, in (-1, 1); negative ones are faster on bilinear games. same_sample: whether F_v(u) is of the draw
    that F_v(x) was of. False is stochastic Mirror-Prox (Juditsky, Nemirovski, Tauvel 2011), which diverges on bilinear
    games without bounds whatever its steps. average: whether x of the state, which `run` measures and returns, is the
    mean of all u so far in place of the last iterate.

    Warns at `init` where a component is not known to be monotone, where mu = 0 and draws have no solution in common or
    samples are independent, and for eta above the limit. Raises TypeError or ValueError for other parameters.

    >>> import numpy as np
    >>> from compress import Local, SingleElement, run
    >>> from compress.games import BilinearGame
    >>> game = BilinearGame.random(n=10, d=6, low=0.5, high=1.0, interpolation=True)
    >>> method = Extragradient.theoretical(game, SingleElement.uniform(10))
    >>> run(method, game, Local(1), np.zeros(6), steps=5000, until=1e-12).reason
    'error 1e-12 reached'
    """

    sampling: Sampling
    eta: float
    gamma: float | None = None
    beta: float = 0.0
    same_sample: bool = True
    average: bool = False

    proximal = True

    def __post_init__(self):
        if not isinstance(self.sampling, Sampling):
            raise TypeError(f"Extragradient: sampling must be a Sampling, got {self.sampling!r}")
        if self.gamma is None:
            settle(self, "gamma", self.eta)
        checked(self, eta="step", gamma="step")
        if isinstance(self.beta, bool) or not isinstance(self.beta, (int, float, np.integer, np.floating)):
            raise TypeError(f"Extragradient: beta must be a number, got {self.beta!r}")
        if not -1 < self.beta < 1:
            raise ValueError(f"Extragradient: beta must lie in (-1, 1), got {self.beta}")
        settle(self, "beta", float(self.beta))
        for name in ("same_sample", "average"):
            if not isinstance(value := getattr(self, name), (bool, np.bool_)):
                raise TypeError(f"Extragradient: {name} must be True or False, got {value!r}")

    @classmethod
    def theoretical(cls, problem: Operator, sampling: Sampling) -> Extragradient:
        """eta = 1/(2 L), the paper's, or 1/(sqrt(2) L), the best for bilinear games, where mu = 0.

        L is the largest Lipschitz constant of a draw. Raises ValueError where a component is not known to be monotone,
        for L = 0, where mu = 0 and x_star is not a solution for every draw, and for a sampling over other components.
        """
        L, mu = _covered(problem, sampling)
        return cls(sampling, 1 / (2 * L) if mu > 0 else 1 / (math.sqrt(2) * L))

    def limits(self, problem):
        """As of all methods; none for momentum, two step sizes, independent samples and averages, and for a problem
        that is no Operator."""
        _monotone(problem)
        if not isinstance(problem, Operator):
            return {}
        same_components(self.sampling, problem)
        if not (self.same_sample or problem.mu > 0 or _alike(self.sampling)):
            raise ValueError(
                "Extragradient: with independent samples and mu = 0 it diverges on bilinear games, whatever its steps: "
                "same_sample=True does not"
            )
        L, mu = _covered(problem, self.sampling)
        return {"eta": 2 / (mu + math.sqrt(mu**2 + 4 * L**2))} if self._proven else {}

    @property
    def _proven(self) -> bool:
        """Whether the method is the one that the theorem is about."""
        return self.same_sample and self.gamma == self.eta and self.beta == 0 and not self.average

    def bound(self, problem: Operator, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k.

        Raises ValueError where the theorem says nothing: for mu = 0 or a component that is not monotone, for eta at
        the limit or above, momentum, two step sizes, independent samples, averages.
        """
        L, mu = _roughest(problem, self.sampling)
        slack = 1 - (self.eta * L) ** 2 - self.eta * mu
        if not (self._proven and problem.monotone and mu > 0 and slack > 0):
            raise ValueError(f"no bound is proven for {self!r} with mu = {problem.mu} and L = {L:.6g}")
        distance = np.sum((np.asarray(x0, np.float64) - _solution(problem)) ** 2)
        noise = self.sampling.gradient_noise(problem.gradients_star)
        rate = (1 - 2 * self.eta * problem.mu / 3) ** np.asarray(k)
        return rate * distance + 3 * self.eta * noise / (2 * slack * problem.mu)

    def init(self, problem, comm, x0) -> ExtragradientState:
        if comm.n != 1:
            raise ValueError(f"Extragradient sends nothing: it needs a communicator of one worker, got {comm.n}")
        same_components(self.sampling, problem)
        x = self._start(problem, problem.n, x0)
        iterate, previous = (x.copy() if kept else None for kept in (self.average, self.beta))
        return ExtragradientState(x, 0, iterate, previous, 0, [zeros_like(x), zeros_like(x)])

    def step(self, problem, comm, state, key):
        x = state.iterate if self.average else state.x
        rng, (u, F) = generator(key), state.scratch
        first = second = self.sampling.draw(rng)
        problem.batch_gradient(*first, x, out=F)
        u[...] = x
        add(F, u, -self.gamma)
        prox(problem, u, self.gamma)
        if not self.same_sample:
            second = self.sampling.draw(rng)
        problem.batch_gradient(*second, u, out=F)
        previous = state.previous
        if previous is not None:  # it becomes x + beta (x - previous), and x the next one's previous
            previous *= -self.beta
            add(x, previous, 1 + self.beta)
            x, previous = previous, x
        add(F, x, -self.eta)
        prox(problem, x, self.eta)
        k, oracle = state.k + 1, state.oracle + first[0].size + second[0].size
        if not self.average:
            return ExtragradientState(x, k, None, previous, oracle, state.scratch)
        mean = state.x
        mean *= state.k / k
        add(u, mean, 1 / k)
        return ExtragradientState(mean, k, x, previous, oracle, state.scratch)


def _monotone(problem) -> None:
    if not problem.convex:
        raise ValueError(f"Extragradient: not every component of {problem!r} is known to be monotone")


def _covered(problem, sampling) -> tuple[float, float]:
    """(L, mu) of `_roughest`; ValueError where no step size is proven."""
    L, mu = _roughest(problem, sampling)
    _monotone(problem)
    if not L > 0:
        raise ValueError(f"Extragradient: its theorem needs L > 0, got {L}")
    if mu > 0:
        return L, mu
    try:
        size, h = (L * np.linalg.norm(_solution(problem))) ** 2, problem.gradients_star
    except NotImplementedError:
        if _alike(sampling):
            return L, mu
        raise
    except RuntimeError as error:
        raise ValueError(f"Extragradient: its theorem needs a solution: {error}") from error
    size += np.sum(h**2)
    if sampling.gradient_noise(h) > EPS * size:  # which is that of rounding
        raise ValueError(f"Extragradient: with mu = 0 it needs an x_star that every draw of {problem!r} has in common")
    return L, mu


def _solution(problem) -> np.ndarray:
    """x_star, of the right length."""
    if (shape := np.shape(problem.x_star)) != (problem.d,):
        raise ValueError(f"x_star has shape {shape}, {problem!r} has {problem.d} coordinates")
    return problem.x_star


def _alike(sampling) -> bool:
    """Whether every draw is all of F: what is drawn of numbers without a pattern then has no noise."""
    h = np.random.default_rng(0).standard_normal((sampling.n, 1))
    return sampling.gradient_noise(h) <= 8 * EPS * np.mean(h**2)


def _roughest(problem, sampling) -> tuple[float, float]:
    """(L, mu): over all draws, the largest Lipschitz constant and strong monotonicity of F_v, or more.

    TypeError for a problem that is no Operator: its mu is that of f, and not of every component.
    """
    if not isinstance(problem, Operator):
        raise TypeError(f"Extragradient: constants are those of a compress.games.Operator, got {problem!r}")
    if not isinstance(sampling, Sampling):
        raise TypeError(f"Extragradient: sampling must be a Sampling, got {sampling!r}")
    same_components(sampling, problem)
    n, L_i = problem.n, problem.L_i
    match sampling:
        case SingleElement() | WithReplacement():
            weights = 1 / (n * sampling.p)
            return float(np.max(weights * L_i)), problem.mu * float(weights.max())
        case Nice():
            return float(np.sort(L_i)[-sampling.tau :].mean()), problem.mu
        case Independent():
            weights = 1 / (n * sampling.p)
            return float(weights @ L_i), problem.mu * float(weights.sum())
    draws = [(indices, weights / n) for _, indices, weights in sampling.outcomes()]
    return max(problem.lipschitz(*draw) for draw in draws), problem.mu * max(float(w.sum()) for _, w in draws)
