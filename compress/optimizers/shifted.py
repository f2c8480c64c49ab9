"""The shifted compression framework and its neighbours: gradients compressed around shifts that are learnt.

Shulgin, Richtarik, "Shifted Compression Framework: Generalizations and Improvements", UAI 2022, arXiv 2206.10452:
DCGD, DCGDShift, DCGDStar, DIANA and RandDIANA compress gradients, GDCI and VRGDCI iterates. Then their neighbours EF14,
EF21 and MARINA.

Design note
-----------
A. f = (1/n) sum_i f_i, worker i holds f_i, convex (but for EF21 and MARINA) and L_i-smooth, L_max = max_i L_i; f is
   L-smooth and mu-strongly convex. Q is unbiased with constant omega, and its errors are independent over workers (of
   Perm-K, see `method.omega`); C is contractive, alpha = 1 - delta.
B. A worker's shift h_i is kept where the worker lives; every process keeps the mean of all n, which the same messages
   move. A step makes no vector but those of its state: n shifts, x, the mean, one of scratch.
C. The biased part of generalised DIANA and of DCGD-STAR is a compressor, `Induced(C, Q)`: it sends C(v) and
   Q(v - C(v)), is unbiased, and has constant omega (1 - delta), which is all that the theorems ask.
D. `bound(problem, x0, k)` is what E ||x^k - x*||^2 is at most where the parameters keep to `limits`, the expectation
   being over the compressors: for every k, and what the tests and `python -m bench papers shifted` measure against.
   Lyapunov functions are bounded through their value at x0, whatever the shifts are there. Theorems know no rounding:
   bounds end where float32 values on the wire, or the type of x, do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .. import kernels
from ..compressor import Contractive, Identity, Unbiased, settle, wire_bytes
from ..key import Key
from ..sparsify import check_range
from .method import (
    Method,
    add,
    alpha,
    checked,
    coin,
    covered,
    gradient,
    mean,
    omega,
    parameter,
    prox,
    worker_keys,
    zeros_like,
)


class GradientState(NamedTuple):
    """Nothing to remember but the iterate."""

    x: np.ndarray
    oracle: int
    scratch: np.ndarray


class ShiftState(NamedTuple):
    """shifts: h_i of the workers hosted here. mean: of the shifts of all n workers."""

    x: np.ndarray
    shifts: list[np.ndarray]
    mean: np.ndarray
    oracle: int
    scratch: np.ndarray


class ErrorState(NamedTuple):
    """errors: what the messages of the workers hosted here have left out so far."""

    x: np.ndarray
    errors: list[np.ndarray]
    oracle: int
    scratch: np.ndarray


class EstimateState(NamedTuple):
    """estimate: g, of the gradient at x, the same on every process."""

    x: np.ndarray
    estimate: np.ndarray
    oracle: int
    scratch: list[np.ndarray]


def _residual(problem, i, x, h_i, out):
    """out = grad f_i(x) - h_i; returns out."""
    gradient(problem, i, x, out)
    add(h_i, out, -1)
    return out


def _zero_shifts(x, comm) -> ShiftState:
    return ShiftState(x, [zeros_like(x) for _ in comm.workers], zeros_like(x), 0, zeros_like(x))


def _squared(x) -> float:
    return float(np.vdot(x, x))


def _noise_at_optimum(problem, shifts=0.0) -> float:
    """(1/n) sum_i ||grad f_i(x*) - h_i||^2."""
    return _squared(problem.gradients_star - shifts) / problem.n


def _distance(problem, x0) -> float:
    if np.shape(x0) != (problem.d,):
        raise ValueError(f"x0 must have shape ({problem.d},), got {np.shape(x0)}")
    return _squared(np.asarray(x0, np.float64) - problem.x_star)


# Gradient compression


@dataclass(frozen=True)
class DCGD(Method):
    """Distributed compressed gradient descent: x <- prox(x - gamma (1/n) sum_i Q(grad f_i(x))).

    With gamma <= 1/(L + 2 omega L_max / n), linear to a neighbourhood of x*:
    E ||x^k - x*||^2 <= (1 - gamma mu)^k ||x^0 - x*||^2 + (2 gamma omega / (mu n^2)) sum_i ||grad f_i(x*)||^2.
    Khirirat, Feyzmahdavian, Johansson 2018; 2206.10452, section 3.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.DCGD.theoretical(problem, compress.RandK(0.5))
    >>> trace = compress.run(method, problem, compress.Local(4), np.ones(20), steps=100)
    >>> bool(trace.error[-1] < trace.error[0])
    True
    """

    compressor: Unbiased
    gamma: float

    needs = Unbiased
    proximal = True
    _weight = 2  # of omega L_max / n in the step size

    def __post_init__(self):
        checked(self, gamma="step")

    @classmethod
    def theoretical(cls, problem, compressor: Unbiased) -> DCGD:
        """gamma = 1/(L + 2 omega L_max / n)."""
        return cls(compressor, cls._limit(problem, compressor))

    @classmethod
    def _limit(cls, problem, compressor):
        covered(cls, problem)
        return 1 / (problem.L + cls._weight * omega(cls, compressor, problem.d) * problem.L_max / problem.n)

    def limits(self, problem):
        return {"gamma": self._limit(problem, self.compressor)}

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k."""
        covered(type(self), problem, strongly=True)
        rate = (1 - self.gamma * problem.mu) ** np.asarray(k)
        noise = omega(type(self), self.compressor, problem.d) * _noise_at_optimum(problem, self._shifts(problem))
        return rate * _distance(problem, x0) + 2 * self.gamma * noise / (problem.mu * problem.n)

    def _shifts(self, problem):
        return 0.0

    def init(self, problem, comm, x0) -> GradientState:
        x = self._start(problem, comm.n, x0)
        return GradientState(x, 0, zeros_like(x))

    def step(self, problem, comm, state, key):
        x, v = state.x, state.scratch
        messages, keys = [], worker_keys(comm, key)
        for i in comm.workers:
            gradient(problem, i, x, v)
            messages.append(self.compressor.encode(v, keys[i]))
        add(mean(comm, self.compressor, messages, keys, out=v), x, -self.gamma)
        prox(problem, x, self.gamma)
        return state._replace(oracle=state.oracle + comm.n)


@dataclass(frozen=True, eq=False)
class DCGDShift(DCGD):
    """DCGD-SHIFT: x <- prox(x - gamma (1/n) sum_i (h_i + Q(grad f_i(x) - h_i))), with shifts that stay.

    shifts: the h_i, n vectors of d. Step size and bound are DCGD's with grad f_i(x*) - h_i in place of grad f_i(x*):
    the better the guess, the smaller the neighbourhood. 2206.10452, sections 2 and 3.

    >>> import numpy as np, compress
    >>> problem, x0 = compress.Quadratic.random(n=4, d=20, mu=1, L=10), np.ones(20)
    >>> shifts = np.array([problem.gradient(i, x0) for i in range(4)])
    >>> method = compress.DCGDShift.theoretical(problem, compress.RandK(0.5), shifts)
    >>> trace = compress.run(method, problem, compress.Local(4), x0, steps=100)
    >>> bool(trace.error[-1] < trace.error[0])
    True
    """

    shifts: np.ndarray = field(repr=False)

    __eq__, __hash__ = object.__eq__, object.__hash__  # arrays have no truth value

    def __post_init__(self):
        super().__post_init__()
        shifts = np.array(self.shifts, np.float64)
        if not np.isfinite(shifts).all():
            raise ValueError(f"{type(self).__name__}: shifts hold {np.sum(~np.isfinite(shifts))} NaN or Inf")
        shifts.flags.writeable = False
        settle(self, "shifts", shifts)

    @classmethod
    def theoretical(cls, problem, compressor: Unbiased, shifts) -> DCGDShift:
        """gamma = 1/(L + 2 omega L_max / n)."""
        return cls(compressor, cls._limit(problem, compressor), shifts)

    def _shifts(self, problem):
        if self.shifts.shape != (problem.n, problem.d):
            raise ValueError(f"shifts must be {problem.n} vectors of {problem.d}, got shape {self.shifts.shape}")
        return self.shifts

    def init(self, problem, comm, x0) -> ShiftState:
        state = _zero_shifts(self._start(problem, comm.n, x0), comm)
        shifts = self._shifts(problem)
        for i, h_i in zip(comm.workers, state.shifts, strict=True):
            h_i[...] = kernels.like(h_i, shifts[i].astype(h_i.dtype))
        for h_i in shifts:
            add(kernels.like(state.mean, h_i.astype(state.mean.dtype)), state.mean, 1 / problem.n)
        return state

    def step(self, problem, comm, state, key):
        x, v = state.x, state.scratch
        messages, keys = [], worker_keys(comm, key)
        for i, h_i in zip(comm.workers, state.shifts, strict=True):
            v = _residual(problem, i, x, h_i, out=v)
            messages.append(self.compressor.encode(v, keys[i]))
        m = mean(comm, self.compressor, messages, keys, out=v)
        add(state.mean, x, -self.gamma)
        add(m, x, -self.gamma)
        prox(problem, x, self.gamma)
        return state._replace(oracle=state.oracle + comm.n)


@dataclass(frozen=True)
class DCGDStar(DCGDShift):
    """DCGD-STAR: DCGD-SHIFT around h_i = grad f_i(x*), which nobody knows: the benchmark that learning h_i aims at.

    With gamma <= 1/(L + omega L_max / n): E ||x^k - x*||^2 <= (1 - gamma mu)^k ||x^0 - x*||^2, to x* itself.
    The paper's h_i = grad f_i(x*) + C(grad f_i(x) - grad f_i(x*)) is `DCGDStar(Induced(C, Q), ...)`.
    2206.10452, sections 2 and 3.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.DCGDStar.theoretical(problem, compress.Induced(compress.TopK(0.2), compress.RandK(0.2)))
    >>> trace = compress.run(method, problem, compress.Local(4), np.ones(20), steps=2000, until=1e-12)
    >>> trace.reason
    'error 1e-12 reached'
    """

    shifts: None = field(default=None, init=False, repr=False, compare=False)

    _weight = 1  # around the gradients at x* nothing is left of the noise there, which costs a factor of 2

    def __post_init__(self):
        DCGD.__post_init__(self)

    @classmethod
    def theoretical(cls, problem, compressor: Unbiased) -> DCGDStar:
        """gamma = 1/(L + omega L_max / n)."""
        return cls(compressor, cls._limit(problem, compressor))

    def _shifts(self, problem):
        return problem.gradients_star


@dataclass(frozen=True)
class DIANA(Method):
    """DIANA: shifts learn the gradients at x* from the messages themselves, at no bits.

        m_i = Q(grad f_i(x) - h_i),  x <- prox(x - gamma (1/n) sum_i (h_i + m_i)),  h_i <- h_i + shift_step m_i

    With shift_step <= 1/(1 + omega) and M > 2 omega / (n shift_step), gamma <= 1/(L + 2 omega L_max / n +
    M shift_step L_max): V^k = ||x^k - x*||^2 + M gamma^2 (1/n) sum_i ||h_i^k - grad f_i(x*)||^2 falls as
    max(1 - gamma mu, 1 - shift_step + 2 omega / (n M))^k in expectation, to x* itself.
    `DIANA(Induced(C, Q), ...)` is the paper's generalised DIANA, with a biased part C.
    Mishchenko, Gorbunov, Takac, Richtarik 2019; 2206.10452, sections 2 and 3.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.DIANA.theoretical(problem, compress.RandK(0.5))
    >>> trace = compress.run(method, problem, compress.Local(4), np.ones(20), steps=5000, until=1e-12)
    >>> trace.reason
    'error 1e-12 reached'
    """

    compressor: Unbiased
    gamma: float
    shift_step: float

    needs = Unbiased
    proximal = True

    def __post_init__(self):
        checked(self, gamma="step", shift_step="share")

    @classmethod
    def theoretical(cls, problem, compressor: Unbiased, b: float = 2.0) -> DIANA:
        """shift_step = 1/(1 + omega), gamma = 1/(L + 2 (1 + b) omega L_max / n), from M = 2 b omega/(n shift_step).

        b > 1: a larger one takes smaller steps, and lets the shifts learn at 1 - shift_step (1 - 1/b).
        """
        covered(cls, problem)
        shift_step = 1 / (1 + omega(cls, compressor, problem.d))
        return cls(compressor, _learning_step(cls, problem, compressor, b), shift_step)

    def limits(self, problem):
        limit = _learning_limit(type(self), problem, self.compressor)
        return {"gamma": limit, "shift_step": 1 / (1 + omega(type(self), self.compressor, problem.d))}

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k: V^0 and the rate at the largest M gamma allows."""
        return _learning_bound(self, problem, x0, k, self.shift_step)

    def init(self, problem, comm, x0) -> ShiftState:
        return _zero_shifts(self._start(problem, comm.n, x0), comm)

    def step(self, problem, comm, state, key):
        x, v = state.x, state.scratch
        messages, keys = [], worker_keys(comm, key)
        for i, h_i in zip(comm.workers, state.shifts, strict=True):
            v = _residual(problem, i, x, h_i, out=v)
            m_i = self.compressor.encode(v, keys[i])
            self.compressor.decode_add(m_i, keys[i], h_i, self.shift_step)
            messages.append(m_i)
        m = mean(comm, self.compressor, messages, keys, out=v)
        add(state.mean, x, -self.gamma)
        add(m, x, -self.gamma)
        prox(problem, x, self.gamma)
        add(m, state.mean, self.shift_step)
        return state._replace(oracle=state.oracle + comm.n)


@dataclass(frozen=True)
class RandDIANA(Method):
    """Rand-DIANA: with probability p a worker's shift becomes the gradient it has just computed.

        m_i = Q(grad f_i(x) - h_i),  x <- prox(x - gamma (1/n) sum_i (h_i + m_i)),  h_i <- grad f_i(x) with prob. p

    Coins are independent over workers. A worker whose coin falls sends grad f_i(x) - h_i on a float32 wire, 32 d bits
    more (or wire="float64"); rounding is relative to the difference, so that it fades with it. As DIANA with p in place
    of shift_step.
    2206.10452, sections 2 and 3.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.RandDIANA.theoretical(problem, compress.RandK(0.5), p=0.1)
    >>> trace = compress.run(method, problem, compress.Local(4), np.ones(20), steps=5000, until=1e-12)
    >>> trace.reason
    'error 1e-12 reached'
    """

    compressor: Unbiased
    gamma: float
    p: float
    wire: str = "float32"

    needs = Unbiased
    proximal = True

    def __post_init__(self):
        checked(self, gamma="step", p="share")
        wire_bytes(self.wire)

    @classmethod
    def theoretical(
        cls, problem, compressor: Unbiased, p: float | None = None, b: float = 2.0, wire: str = "float32"
    ) -> RandDIANA:
        """gamma = 1/(L + 2 (1 + b) omega L_max / n), whatever p is; p = 1/(1 + omega) where none is given.

        p may fall to about 2 gamma mu before the rate, max(1 - gamma mu, 1 - p (1 - 1/b)), suffers at b = 2.
        """
        covered(cls, problem)
        p = 1 / (1 + omega(cls, compressor, problem.d)) if p is None else p
        return cls(compressor, _learning_step(cls, problem, compressor, b), p, wire)

    def limits(self, problem):
        return {"gamma": _learning_limit(type(self), problem, self.compressor)}

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k: V^0 and the rate at the largest M gamma allows."""
        return _learning_bound(self, problem, x0, k, self.p)

    def init(self, problem, comm, x0) -> ShiftState:
        return _zero_shifts(self._start(problem, comm.n, x0), comm)

    def step(self, problem, comm, state, key):
        x, v = state.x, state.scratch
        keys = worker_keys(comm, key)
        refreshed = [coin(each, self.p) for each in keys]
        messages, refreshes, whole = [], [], Identity()
        for i, h_i in zip(comm.workers, state.shifts, strict=True):
            v = _residual(problem, i, x, h_i, out=v)
            messages.append(self.compressor.encode(v, keys[i]))
            if refreshed[i]:
                wire = min(np.dtype(self.wire), v.dtype)
                check_range(v, wire)
                refreshes.append(whole.encode(v.astype(wire, copy=False), key))
                whole.decode_add(refreshes[-1], key, h_i)
            else:
                refreshes.append(whole.encode(v[:0], key))
        m = mean(comm, self.compressor, messages, keys, out=v)
        add(state.mean, x, -self.gamma)
        add(m, x, -self.gamma)
        prox(problem, x, self.gamma)
        if any(refreshed):
            for message in comm.allgather(refreshes):
                if message.size:
                    whole.decode_add(message, key, state.mean, 1 / comm.n)
        return state._replace(oracle=state.oracle + comm.n)


def _learning_step(cls, problem, compressor, b):
    """1/(L + 2 (1 + b) omega L_max / n): DIANA's and Rand-DIANA's step for M = 2 b omega / (n shift_step), b > 1."""
    if not b > 1:
        raise ValueError(f"{cls.__name__}: b must be larger than 1, got {b}")
    covered(cls, problem)
    return 1 / (problem.L + 2 * (1 + b) * omega(cls, compressor, problem.d) * problem.L_max / problem.n)


def _learning_limit(cls, problem, compressor):
    """What _learning_step comes near to as b falls to 1."""
    return _learning_step(cls, problem, compressor, math.nextafter(1, 2))


def _learning_bound(method, problem, x0, k, share):
    """max(1 - gamma mu, 1 - share + 2 omega / (n M))^k V^0 for shifts that start at 0 and learn by a share a step."""
    w, gamma = omega(type(method), method.compressor, problem.d), method.gamma
    M = (1 / gamma - problem.L - 2 * w * problem.L_max / problem.n) / (share * problem.L_max)
    learning = 1 - share + (2 * w / (problem.n * M) if w else 0)
    start = _distance(problem, x0) + M * gamma**2 * _noise_at_optimum(problem)
    return max(1 - gamma * problem.mu, learning) ** np.asarray(k) * start


# Compressed iterates


@dataclass(frozen=True)
class GDCI(Method):
    """Gradient descent with compressed iterates: x <- (1 - eta) x + eta (1/n) sum_i Q(x - gamma grad f_i(x)).

    With eta <= 1/(L/mu + (2 omega/n)(L_max/mu - 1)) and gamma = (1 + 2 eta omega/n) / (eta (L + 2 L_max omega/n)),
    which is 1/mu at the largest eta, linear to a neighbourhood that even interpolation leaves:
    E ||x^k - x*||^2 <= (1 - eta)^k ||x^0 - x*||^2 + eta (2 omega / n) (1/n) sum_i ||x* - gamma grad f_i(x*)||^2.
    Khaled, Richtarik 2019; Chraibi et al. 2019; 2206.10452, section 4.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.GDCI.theoretical(problem, compress.RandK(0.5))
    >>> trace = compress.run(method, problem, compress.Local(4), np.ones(20), steps=100)
    >>> bool(trace.error[-1] < trace.error[0])
    True
    """

    compressor: Unbiased
    gamma: float
    eta: float

    needs = Unbiased

    def __post_init__(self):
        checked(self, gamma="step", eta="share")

    @classmethod
    def theoretical(cls, problem, compressor: Unbiased) -> GDCI:
        """The largest eta, and gamma = 1/mu."""
        covered(cls, problem)
        eta = _largest_eta(cls, problem, 2 * omega(cls, compressor, problem.d) / problem.n)
        return cls(compressor, 1 / problem.mu, eta)

    def limits(self, problem):
        w = 2 * omega(type(self), self.compressor, problem.d) / problem.n
        return {"gamma": _largest_gamma(problem, w, self.eta), "eta": _largest_eta(type(self), problem, w)}

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k. Raises ValueError where gamma is too far below 1/mu.

        For any gamma it is (1 - r)^k ||x^0 - x*||^2 + (eta^2 / r) (2 omega / n) (1/n) sum_i ||x* - gamma
        grad f_i(x*)||^2, r = gamma mu (eta + 2 omega eta^2 / n) - 2 omega eta^2 / n: eta, where gamma = 1/mu.
        """
        w = 2 * omega(type(self), self.compressor, problem.d) / problem.n
        r = _contraction(self, problem, w)
        noise = w * _squared(problem.x_star - self.gamma * problem.gradients_star) / problem.n
        return (1 - r) ** np.asarray(k) * _distance(problem, x0) + self.eta**2 / r * noise

    def init(self, problem, comm, x0) -> GradientState:
        x = self._start(problem, comm.n, x0)
        return GradientState(x, 0, zeros_like(x))

    def step(self, problem, comm, state, key):
        x, v = state.x, state.scratch
        messages, keys = [], worker_keys(comm, key)
        for i in comm.workers:
            _local_step(problem, i, x, self.gamma, out=v)
            messages.append(self.compressor.encode(v, keys[i]))
        m = mean(comm, self.compressor, messages, keys, out=v)
        x *= 1 - self.eta
        add(m, x, self.eta)
        return state._replace(oracle=state.oracle + comm.n)


@dataclass(frozen=True)
class VRGDCI(Method):
    """Variance-reduced GDCI: what is compressed is the distance of a local step from its shift.

        d_i = Q(x - gamma grad f_i(x) - h_i),  x <- (1 - eta) x + eta (1/n) sum_i (h_i + d_i),
        h_i <- h_i + shift_step d_i

    With shift_step <= 1/(1 + omega), eta <= 1/(L/mu + (6 omega/n)(L_max/mu - 1)) and gamma =
    (1 + 6 eta omega/n) / (eta (L + 6 L_max omega/n)): V^k = ||x^k - x*||^2 + (4 eta^2 omega / (shift_step n)) sigma^k,
    sigma^k = (1/n) sum_i ||h_i^k - x* + gamma grad f_i(x*)||^2, falls as (1 - min(eta, shift_step / 2))^k in
    expectation, to x* itself. 2206.10452, section 4.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.VRGDCI.theoretical(problem, compress.RandK(0.5))
    >>> trace = compress.run(method, problem, compress.Local(4), np.ones(20), steps=5000, until=1e-12)
    >>> trace.reason
    'error 1e-12 reached'
    """

    compressor: Unbiased
    gamma: float
    eta: float
    shift_step: float

    needs = Unbiased

    def __post_init__(self):
        checked(self, gamma="step", eta="share", shift_step="share")

    @classmethod
    def theoretical(cls, problem, compressor: Unbiased) -> VRGDCI:
        """The largest eta and shift_step, and gamma = 1/mu."""
        covered(cls, problem)
        w = omega(cls, compressor, problem.d)
        eta = _largest_eta(cls, problem, 6 * w / problem.n)
        return cls(compressor, 1 / problem.mu, eta, 1 / (1 + w))

    def limits(self, problem):
        constant = omega(type(self), self.compressor, problem.d)
        w = 6 * constant / problem.n
        limits = {"gamma": _largest_gamma(problem, w, self.eta), "eta": _largest_eta(type(self), problem, w)}
        return limits | {"shift_step": 1 / (1 + constant)}

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k. Raises ValueError where gamma is too far below 1/mu.

        For any gamma the rate is 1 - min(r, shift_step / 2), r = gamma mu (eta + c) - c with c = 6 omega eta^2 / n.
        """
        r = _contraction(self, problem, 6 * omega(type(self), self.compressor, problem.d) / problem.n)
        sigma = _squared(problem.x_star - self.gamma * problem.gradients_star) / problem.n
        weight = 4 * self.eta**2 * omega(type(self), self.compressor, problem.d) / (self.shift_step * problem.n)
        rate = (1 - min(r, self.shift_step / 2)) ** np.asarray(k)
        return rate * (_distance(problem, x0) + weight * sigma)

    def init(self, problem, comm, x0) -> ShiftState:
        return _zero_shifts(self._start(problem, comm.n, x0), comm)

    def step(self, problem, comm, state, key):
        x, v = state.x, state.scratch
        messages, keys = [], worker_keys(comm, key)
        for i, h_i in zip(comm.workers, state.shifts, strict=True):
            _local_step(problem, i, x, self.gamma, out=v)
            add(h_i, v, -1)
            d_i = self.compressor.encode(v, keys[i])
            self.compressor.decode_add(d_i, keys[i], h_i, self.shift_step)
            messages.append(d_i)
        d = mean(comm, self.compressor, messages, keys, out=v)
        x *= 1 - self.eta
        add(state.mean, x, self.eta)
        add(d, x, self.eta)
        add(d, state.mean, self.shift_step)
        return state._replace(oracle=state.oracle + comm.n)


def _local_step(problem, i, x, gamma, out):
    """out = x - gamma grad f_i(x)."""
    gradient(problem, i, x, out)
    out *= -gamma
    add(x, out, 1)


def _largest_eta(cls, problem, w):
    """1/(L/mu + w (L_max/mu - 1)): up to it gamma may be 1/mu."""
    covered(cls, problem, strongly=True)
    return min(1.0, problem.mu / (problem.L + w * (problem.L_max - problem.mu)))


def _largest_gamma(problem, w, eta):
    """(1 + w eta)/(eta (L + w L_max)): up to it a step does not raise f."""
    return (1 + w * eta) / (eta * (problem.L + w * problem.L_max))


def _contraction(method, problem, w):
    """r: a step takes ||x - x*||^2 to at most (1 - r) ||x - x*||^2, noise aside."""
    covered(type(method), problem, strongly=True)
    spread = w * method.eta**2
    r = method.gamma * problem.mu * (method.eta + spread) - spread
    if not r > 0:
        raise ValueError(
            f"{type(method).__name__}: no contraction is proven for gamma = {method.gamma:.6g}, mu = {problem.mu:.6g} "
            f"and eta = {method.eta:.6g}: gamma mu must exceed {spread / (method.eta + spread):.6g}"
        )
    return r


# Neighbours


@dataclass(frozen=True)
class EF14(Method):
    """Error feedback: what a message leaves out is added to the next one.

        c_i = C(e_i + gamma grad f_i(x)),  x <- x - (1/n) sum_i c_i,  e_i <- e_i + gamma grad f_i(x) - c_i

    Linear to a neighbourhood of x*, which is x* itself where all grad f_i(x*) = 0. With y = x - (1/n) sum_i e_i, and
    gamma <= min(1/(4 L), delta / sqrt(192 alpha L L_max)), V^k = ||y^k - x*||^2 + (12 gamma L / (delta n))
    sum_i ||e_i^k||^2 obeys E V^{k+1} <= (1 - r) V^k + (48 alpha gamma^3 L / delta^2) (1/n) sum_i ||grad f_i(x*)||^2,
    r = min(gamma mu / 2, delta / 4): from y <- y - gamma grad f(x), and ||C(v) - v||^2 <= alpha ||v||^2 with Young's
    inequality of weight delta / (2 alpha). ||x - x*||^2 <= 2 max(1, delta / (12 gamma L)) V.
    Seide et al. 2014; Stich, Karimireddy, "The error-feedback framework", JMLR 2020, with other constants.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.EF14.theoretical(problem, compress.TopK(0.5))
    >>> trace = compress.run(method, problem, compress.Local(4), np.ones(20), steps=500)
    >>> bool(trace.error[-1] < trace.error[0])
    True
    """

    compressor: Contractive
    gamma: float

    needs = Contractive

    def __post_init__(self):
        checked(self, gamma="step")

    @classmethod
    def theoretical(cls, problem, compressor: Contractive) -> EF14:
        """gamma = min(1/(4 L), delta / sqrt(192 alpha L L_max))."""
        return cls(compressor, cls._limit(problem, compressor))

    @classmethod
    def _limit(cls, problem, compressor):
        covered(cls, problem)
        a = alpha(cls, compressor, problem.d)
        noisy = (1 - a) / math.sqrt(192 * a * problem.L * problem.L_max) if a else math.inf
        return min(1 / (4 * problem.L), noisy)

    def limits(self, problem):
        return {"gamma": self._limit(problem, self.compressor)}

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k."""
        covered(type(self), problem, strongly=True)
        a, gamma, L = alpha(type(self), self.compressor, problem.d), self.gamma, problem.L
        delta = 1 - a
        r = min(gamma * problem.mu / 2, delta / 4)
        floor = 48 * a * gamma**3 * L * _noise_at_optimum(problem) / (delta**2 * r)
        return 2 * max(1, delta / (12 * gamma * L)) * ((1 - r) ** np.asarray(k) * _distance(problem, x0) + floor)

    def init(self, problem, comm, x0) -> ErrorState:
        x = self._start(problem, comm.n, x0)
        return ErrorState(x, [zeros_like(x) for _ in comm.workers], 0, zeros_like(x))

    def step(self, problem, comm, state, key):
        x, v = state.x, state.scratch
        messages, keys = [], worker_keys(comm, key)
        for i, e_i in zip(comm.workers, state.errors, strict=True):
            gradient(problem, i, x, v)
            add(v, e_i, self.gamma)
            c_i = self.compressor.encode(e_i, keys[i])
            self.compressor.decode_add(c_i, keys[i], e_i, -1)
            messages.append(c_i)
        add(mean(comm, self.compressor, messages, keys, out=v), x, -1)
        return state._replace(oracle=state.oracle + comm.n)


@dataclass(frozen=True)
class EF21(Method):
    """EF21: shifts that follow the gradients through a biased compressor, and are the estimate themselves.

        c_i = C(grad f_i(x) - g_i),  g_i <- g_i + c_i,  x <- x - gamma (1/n) sum_i g_i

    It is the shifted framework with a contractive C and shift_step = 1. Let theta = 1 - sqrt(alpha), beta =
    alpha / theta, S^2 = (1/n) sum_i L_i^2. With gamma <= 1/(L + S sqrt(beta / theta)), and theta >= mu / L,
    E (f(x^k) - f* + (gamma / (2 (theta - gamma mu))) (1/n) sum_i ||g_i^k - grad f_i(x^k)||^2) falls as
    (1 - gamma mu)^k, f need only be smooth and Polyak-Lojasiewicz, and x^0 may be anything. Where theta < mu / L,
    gamma <= min(1/(L + S sqrt(2 beta / theta)), theta / (2 mu)).
    Richtarik, Sokolov, Fatkhullin, "EF21", NeurIPS 2021, theorems 1 and 2.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.EF21.theoretical(problem, compress.TopK(0.5))
    >>> trace = compress.run(method, problem, compress.Local(4), np.ones(20), steps=5000, until=1e-12)
    >>> trace.reason
    'error 1e-12 reached'
    """

    compressor: Contractive
    gamma: float

    needs = Contractive
    convex = False

    def __post_init__(self):
        checked(self, gamma="step")

    @classmethod
    def theoretical(cls, problem, compressor: Contractive) -> EF21:
        """The gamma of the theorem."""
        return cls(compressor, _estimate_limit(cls, problem, *cls._recursion(problem, compressor)))

    @classmethod
    def _recursion(cls, problem, compressor):
        """(theta, beta): E G^{k+1} <= (1 - theta) G^k + beta S^2 ||x^{k+1} - x^k||^2."""
        a = alpha(cls, compressor, problem.d)
        theta = 1 - math.sqrt(a)
        return theta, a / theta

    def limits(self, problem):
        return {"gamma": _estimate_limit(type(self), problem, *self._recursion(problem, self.compressor))}

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k."""
        theta, _ = self._recursion(problem, self.compressor)
        a, n = alpha(type(self), self.compressor, problem.d), problem.n
        x0 = np.asarray(x0, np.float64)
        start = a * sum(_squared(problem.gradient(i, x0)) for i in range(n)) / n
        return _estimate_bound(self, problem, x0, k, theta, start)

    def init(self, problem, comm, x0) -> ShiftState:
        return _zero_shifts(self._start(problem, comm.n, x0), comm)

    def step(self, problem, comm, state, key):
        x, v = state.x, state.scratch
        messages, keys = [], worker_keys(comm, key)
        for i, g_i in zip(comm.workers, state.shifts, strict=True):
            v = _residual(problem, i, x, g_i, out=v)
            c_i = self.compressor.encode(v, keys[i])
            self.compressor.decode_add(c_i, keys[i], g_i)
            messages.append(c_i)
        add(mean(comm, self.compressor, messages, keys, out=v), state.mean, 1)
        add(state.mean, x, -self.gamma)
        return state._replace(oracle=state.oracle + comm.n)


@dataclass(frozen=True)
class MARINA(Method):
    """MARINA: differences of gradients, compressed, and once in a while all gradients in full.

        x+ = x - gamma g;  with probability p  g <- (1/n) sum_i grad f_i(x+),  otherwise
        g <- g + (1/n) sum_i Q(grad f_i(x+) - grad f_i(x))

    One coin for all. Full gradients travel in the dtype of x, also the first ones, which `init` sends. Let S^2 =
    (1/n) sum_i L_i^2. With gamma <= 1/(L + S sqrt((1 - p) omega / (p n))) and p >= mu / L, f(x^k) - f* +
    (gamma / (2 (p - gamma mu))) ||g^k - grad f(x^k)||^2 falls as (1 - gamma mu)^k in expectation; f need only be
    smooth and Polyak-Lojasiewicz. Where p < mu / L, gamma <= min(1/(L + S sqrt(2 (1 - p) omega / (p n))), p / (2 mu)).
    Gorbunov, Burlachenko, Li, Richtarik, "MARINA", ICML 2021, theorem 2.1 and its PL version.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.MARINA.theoretical(problem, compress.RandK(0.5))
    >>> trace = compress.run(method, problem, compress.Local(4), np.ones(20), steps=5000, until=1e-12)
    >>> trace.reason
    'error 1e-12 reached'
    """

    compressor: Unbiased
    gamma: float
    p: float

    needs = Unbiased
    convex = False

    def __post_init__(self):
        checked(self, gamma="step", p="share")

    @classmethod
    def theoretical(cls, problem, compressor: Unbiased, p: float | None = None) -> MARINA:
        """The gamma of the theorem; p = 1/(1 + omega), k/d for Rand-K, where none is given."""
        covered(cls, problem)
        p = 1 / (1 + omega(cls, compressor, problem.d)) if p is None else parameter(cls, "p", p, "share")
        return cls(compressor, _estimate_limit(cls, problem, *cls._recursion(problem, compressor, p)), p)

    @classmethod
    def _recursion(cls, problem, compressor, p):
        """(theta, beta): E ||g^{k+1} - grad f||^2 <= (1 - theta) ||g^k - grad f||^2 + beta S^2 ||x^{k+1} - x^k||^2."""
        return p, (1 - p) * omega(cls, compressor, problem.d) / problem.n

    def limits(self, problem):
        return {"gamma": _estimate_limit(type(self), problem, *self._recursion(problem, self.compressor, self.p))}

    def bound(self, problem, x0, k):
        """What E ||x^k - x*||^2 is at most, for step numbers k."""
        return _estimate_bound(self, problem, np.asarray(x0, np.float64), k, self.p, 0.0)

    def init(self, problem, comm, x0) -> EstimateState:
        x = self._start(problem, comm.n, x0)
        state = EstimateState(x, zeros_like(x), 0, [zeros_like(x) for _ in range(3)])
        return _synchronise(problem, comm, state)

    def step(self, problem, comm, state, key):
        x, g, (before, u, v) = state.x, state.estimate, state.scratch
        before[...] = x
        add(g, x, -self.gamma)
        if coin(key, self.p):
            return _synchronise(problem, comm, state)
        messages, keys = [], worker_keys(comm, key)
        for i in comm.workers:
            gradient(problem, i, before, u)
            gradient(problem, i, x, v)
            add(u, v, -1)
            messages.append(self.compressor.encode(v, keys[i]))
        add(mean(comm, self.compressor, messages, keys, out=v), g, 1)
        return state._replace(oracle=state.oracle + 2 * comm.n)


def _synchronise(problem, comm, state):
    """estimate = (1/n) sum_i grad f_i(x), sent in full."""
    whole, keys, v = Identity(), worker_keys(comm, Key()), state.scratch[-1]
    messages = [whole.encode(gradient(problem, i, state.x, v), keys[i]) for i in comm.workers]
    mean(comm, whole, messages, keys, out=state.estimate)
    return state._replace(oracle=state.oracle + comm.n)


def _estimate_limit(cls, problem, theta, beta):
    """The step of EF21 and MARINA for an estimate whose error falls by theta a step and grows by beta S^2 ||dx||^2.

    With c = gamma / (2 (theta - gamma mu)), f - f* + c G falls as 1 - gamma mu if gamma^2 beta S^2 / (theta - gamma mu)
    + gamma L <= 1: the published step does that where theta >= mu / L, their PL versions always.
    """
    covered(cls, problem)
    S, L = math.sqrt(np.mean(np.square(problem.L_i))), problem.L
    try:
        mu = problem.mu
    except NotImplementedError:  # f is smooth, and that is all that is known
        mu = 0.0
    if theta * L >= mu:
        return 1 / (L + S * math.sqrt(beta / theta))
    return min(1 / (L + S * math.sqrt(2 * beta / theta)), theta / (2 * mu))


def _estimate_bound(method, problem, x0, k, theta, error):
    """(2 / mu) (1 - gamma mu)^k (f(x^0) - f* + c G^0) >= ||x^k - x*||^2, with G^0 = error."""
    covered(type(method), problem, strongly=True)
    gamma, mu = method.gamma, problem.mu
    start = problem.value(x0) - problem.value(problem.x_star)
    if error:
        start += gamma / (2 * (theta - gamma * mu)) * error
    return 2 / mu * (1 - gamma * mu) ** np.asarray(k) * start
