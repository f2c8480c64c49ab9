"""SGD with an arbitrary sampling: one theory for every mini-batch.

Gower, Loizou, Qian, Sailanbayev, Shulgin, Richtarik, "SGD: General Analysis and Improved Rates", ICML 2019,
arXiv 1901.09401. Samplings and their constants calL and sigma^2 are in `compress.sampling`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..compressor import positive_int, settle
from ..sampling import Sampling
from .method import Method, add, checked, covered, generator, prox, same_components, zeros_like


class SGDState(NamedTuple):
    """k: steps taken."""

    x: np.ndarray
    k: int
    oracle: int
    scratch: np.ndarray


@dataclass(frozen=True)
class SGD(Method):
    """Stochastic gradient descent: x <- prox(x - gamma (1/n) sum_i v_i grad f_i(x)), v a new draw of the sampling.

    With gamma <= 1/(2 calL), linear to a neighbourhood of x* (theorem 3.1):
    E ||x^k - x*||^2 <= (1 - gamma mu)^k ||x^0 - x*||^2 + 2 gamma sigma^2 / mu.
    With a `switch`, gamma for k <= switch and (2k + 1)/((k + 1)^2 mu) from then on, to x* itself as 1/k (theorem 3.2).
    The components of the problem are data points, or groups of them; one process has them all and nothing is sent, so
    the communicator is Local(1). The proximal step is not the paper's: with sigma^2 about grad f(x*) its proof holds.

    sampling: over the n components of the problem. gamma: the step size. switch, mu: both or neither; the last step at
    gamma, and the strong convexity that later ones trust.

    Raises TypeError or ValueError for other parameters, also where steps would grow after the switch.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=10, d=4, mu=1, L=10)
    >>> method = compress.SGD.theoretical(problem, compress.Nice(10, 2), switching=True)
    >>> trace = compress.run(method, problem, compress.Local(1), np.ones(4), steps=1000)
    >>> bool(trace.error[-1] < 0.1 * trace.error[0])
    True
    """

    sampling: Sampling
    gamma: float
    switch: int | None = None
    mu: float | None = None

    convex = False
    proximal = True

    def __post_init__(self):
        if not isinstance(self.sampling, Sampling):
            raise TypeError(f"SGD: sampling must be a Sampling, got {self.sampling!r}")
        checked(self, gamma="step")
        if (self.switch is None) != (self.mu is None):
            raise ValueError(f"SGD: give switch and mu, or neither, got {self.switch} and {self.mu}")
        if self.switch is not None:
            settle(self, "switch", positive_int(self.switch, "switch"))
            checked(self, mu="step")
            if (after := self.step_size(self.switch + 1)) > self.gamma:
                raise ValueError(
                    f"SGD: the step would grow from {self.gamma:.6g} to {after:.6g} after switch = {self.switch}"
                )

    @classmethod
    def theoretical(cls, problem, sampling: Sampling, eps: float | None = None, switching: bool = False) -> SGD:
        """gamma = 1/(2 calL); for an accuracy E ||x - x*||^2 <= eps, min(1/(2 calL), eps mu / (4 sigma^2)).

        With that eps, log(2 ||x^0 - x*||^2 / eps) / (gamma mu) steps are enough. With switching, the switch is after
        4 ceil(calL / mu) steps. Raises ValueError for an eps that is not positive, for eps with switching, and for
        either where mu = 0.
        """
        gamma = cls._limit(problem, sampling)
        if eps is None and not switching:
            return cls(sampling, gamma)
        if not (mu := problem.mu) > 0:
            raise ValueError(f"SGD: eps and switching need a strongly convex problem, mu is {mu}")
        if switching:
            if eps is not None:
                raise ValueError("SGD: switching goes to every accuracy, give eps or switching")
            return cls(sampling, gamma, 4 * math.ceil(1 / (2 * gamma * mu)), mu)
        if not eps > 0:
            raise ValueError(f"SGD: eps must be positive, got {eps}")
        noise = sampling.gradient_noise(problem.gradients_star)
        return cls(sampling, min(gamma, eps * mu / (4 * noise)) if noise else gamma)

    @classmethod
    def _limit(cls, problem, sampling):
        covered(cls, problem)
        if not isinstance(sampling, Sampling):
            raise TypeError(f"SGD: sampling must be a Sampling, got {sampling!r}")
        return 1 / (2 * sampling.expected_smoothness(problem))

    def limits(self, problem):
        limit = {"gamma": self._limit(problem, self.sampling)}
        return limit if self.switch is None else limit | {"mu": problem.mu}

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k.

        After the switch it is (T/k)^2 times that at T = switch + 1, plus 8 sigma^2 (k - T) / (mu k)^2: what the proof
        of theorem 3.2 has before it rounds up to 8 sigma^2 / (mu^2 k) + (switch / (e k))^2 ||x^0 - x*||^2.
        """
        covered(type(self), problem, strongly=True)
        k = np.asarray(k)
        distance = np.sum((np.asarray(x0, np.float64) - problem.x_star) ** 2)
        noise = self.sampling.gradient_noise(problem.gradients_star)

        def constant(k):
            return (1 - self.gamma * problem.mu) ** k * distance + 2 * self.gamma * noise / problem.mu

        if self.switch is None:
            return constant(k)
        T = self.switch + 1
        later = np.maximum(k, T)
        decreasing = (T / later) ** 2 * constant(T) + 8 * noise * (later - T) / (self.mu * later) ** 2
        return np.where(k <= T, constant(np.minimum(k, T)), decreasing)

    def step_size(self, k: int) -> float:
        """The step size of step k = 0, 1, ..."""
        if self.switch is None or k <= self.switch:
            return self.gamma
        return (2 * k + 1) / ((k + 1) ** 2 * self.mu)

    def init(self, problem, comm, x0) -> SGDState:
        if comm.n != 1:
            raise ValueError(f"SGD sends nothing: it needs a communicator of one worker, got {comm.n}")
        same_components(self.sampling, problem)
        x = self._start(problem, problem.n, x0)
        return SGDState(x, 0, 0, zeros_like(x))

    def step(self, problem, comm, state, key):
        x, gradient = state.x, state.scratch
        indices, weights = self.sampling.draw(generator(key))
        problem.batch_gradient(indices, weights, x, out=gradient)
        gamma = self.step_size(state.k)
        add(gradient, x, -gamma)
        prox(problem, x, gamma)
        return SGDState(x, state.k + 1, state.oracle + indices.size, gradient)
