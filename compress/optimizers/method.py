"""Method: what an optimizer promises, and the checks and sums that all of them share.

A method is a frozen description: compressor, step sizes, probabilities. What changes from step to step is its state,
a NamedTuple whose fields are arrays, lists of arrays (one for each worker hosted here), numbers or None:

    x        the iterate, the same on every process
    oracle   gradients of components f_i evaluated so far, all workers together
    scratch  memory without meaning between steps

Randomness comes from the key of the step alone, bytes move through the communicator alone, and sums over workers run
in their order: a step gives the same state, bit for bit, on every engine.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from .. import kernels
from ..compressor import Compressor, Contractive, Unbiased, check_finite, settle

_COIN = 0x636F696E  # the sub-stream of coins, which no compressor draws from


class Method(ABC):
    """An optimizer: `init` makes the state, `step` takes the next one.

    needs: the kind of compressor whose constant its theorem uses, Unbiased or Contractive, or None.
    proximal: whether it takes problems with a regularizer.
    """

    needs: ClassVar[type | None] = None
    proximal: ClassVar[bool] = False

    @abstractmethod
    def init(self, problem, comm, x0):
        """The state before the first step.

        problem: a `compress.problems.Problem` of n components of d coordinates. comm: a Communicator of as many
        workers. x0: float32 or float64 vector of d; it is copied, and its dtype and backend are those of the run.

        Raises ValueError where sizes do not match, where x0 holds NaN or Inf, and where the problem has a regularizer
        and the method no proximal step. Warns where a step size is above the limit that is proven for this problem.
        """

    @abstractmethod
    def step(self, problem, comm, state, key):
        """The state after one more step; `key` is that of the step, without a worker.

        The arrays of `state` are used again: go on with what is returned.
        """

    def limits(self, problem) -> dict[str, float]:
        """The largest value of each parameter for which convergence on this problem is proven."""
        return {}

    def _start(self, problem, comm, x0):
        """x0 checked and copied, after the checks of `init`."""
        x = kernels.vector(x0, "x0")
        if comm.n != problem.n:
            raise ValueError(f"the problem has {problem.n} components, the communicator {comm.n} workers")
        if x.size != problem.d:
            raise ValueError(f"x0 has {x.size} coordinates, the problem {problem.d}")
        check_finite(x)
        if problem.regularizer is not None and not self.proximal:
            raise ValueError(f"{type(self).__name__} has no proximal step: the problem must have no regularizer")
        compressor = getattr(self, "compressor", None)
        if compressor is None or compressor.guarantee != "none":
            self._warn_above(problem)
        return x.copy()

    def _warn_above(self, problem):
        try:
            limits = self.limits(problem)
        except NotImplementedError:  # a problem that does not know its constants
            return
        for name, limit in limits.items():
            value = getattr(self, name)
            if value > limit * (1 + 1e-9):
                warnings.warn(
                    f"{type(self).__name__}: {name} = {value:.6g} is above {limit:.6g}, the largest for which "
                    "convergence on this problem is proven",
                    stacklevel=4,
                )


def checked(method, **kinds) -> None:
    """Check the parameters of a method at construction: kinds are "step" (> 0) or "share" (in (0, 1]) by name."""
    name = type(method).__name__
    if method.needs is not None:
        needed(type(method), method.compressor, method.needs)
    for field, kind in kinds.items():
        value = getattr(method, field)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(f"{name}: {field} must be a number, got {value!r}")
        if not (math.isfinite(value) and value > 0 and (kind == "step" or value <= 1)):
            bound = "be positive and finite" if kind == "step" else "lie in (0, 1]"
            raise ValueError(f"{name}: {field} must {bound}, got {value}")
        settle(method, field, float(value))


def needed(cls, compressor, kind: type) -> None:
    """TypeError that names the method class unless the compressor is of the kind its theorem is about."""
    if isinstance(compressor, kind):
        return
    if not isinstance(compressor, Compressor):
        raise TypeError(f"{cls.__name__}: compressor must be a Compressor, got {compressor!r}")
    if kind is Unbiased:
        raise TypeError(
            f"{cls.__name__} needs an unbiased compressor, and {compressor!r} is biased: "
            "Induced(it, an unbiased one) is unbiased; EF21 and EF14 take biased ones"
        )
    raise TypeError(f"{cls.__name__} needs a contractive compressor, and {compressor!r} is not: use Scaled(it)")


def omega(method, compressor, d: int) -> float:
    """The constant of an unbiased compressor that a theorem of this method uses; TypeError where it has none."""
    return _constant(method, compressor, Unbiased, "omega", d)


def alpha(method, compressor, d: int) -> float:
    """The constant of a contractive compressor that a theorem of this method uses; TypeError where it has none."""
    return _constant(method, compressor, Contractive, "alpha", d)


def _constant(method, compressor, kind, name, d):
    cls = method if isinstance(method, type) else type(method)
    needed(cls, compressor, kind)
    if compressor.guarantee == "none":
        raise TypeError(
            f"{cls.__name__}: {compressor!r} has no proven {name}, so no step size follows from it: give gamma"
        )
    return getattr(compressor, name)(d)


def add(values, out, weight: float) -> None:
    """out += weight * values, for vectors of one backend."""
    kernels.of(out).add_or_store(values, out, weight, True)


def prox(problem, x, gamma: float) -> None:
    """x <- prox_{gamma R}(x), in place."""
    if problem.regularizer is not None:
        problem.regularizer.prox(x, gamma)


def mean(comm, compressor, messages, key, out):
    """out = (1/n) sum_i of the vectors that the workers' messages stand for; returns out."""
    out.fill(0)
    for i, message in enumerate(comm.allgather(messages)):
        compressor.decode_add(message, key.worker(i), out, 1 / comm.n)
    return out


def coin(key, p: float) -> bool:
    """True with probability p: the same for all who hold the key."""
    return key.fold(_COIN).word < p * 2.0**64


def zeros_like(x):
    """A zero vector of x's dtype on its backend."""
    zeros = kernels.empty(x, x.size, x.dtype)
    zeros.fill(0)
    return zeros
