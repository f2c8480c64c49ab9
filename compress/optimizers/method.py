"""Method: what an optimizer promises, and the checks and sums that all of them share.

A method is a frozen description: compressor, step sizes, probabilities. What changes from step to step is its state,
a NamedTuple whose fields are arrays, lists of arrays (one for each worker hosted here), numbers or None:

    x        the iterate: the same on every process, or a part of it where `Method.iterate` puts it together
    oracle   gradients of components f_i evaluated so far, all workers together
    scratch  memory without meaning between steps

Randomness comes from the key of the step alone, bytes move through the communicator alone, and sums over workers run
in their order: a step gives the same state, bit for bit, on every engine.
"""

from __future__ import annotations

import sys
import threading
import warnings
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from .. import kernels
from ..compressor import Compressor, Contractive, Identity, Unbiased, finite_number, settle
from ..games import Operator
from ..problems import Problem
from ..quantize import Correlated
from ..sparsify import PermK

_COIN = 0x636F696E  # the sub-stream of coins, which no compressor draws from


class Method(ABC):
    """An optimizer: `init` makes the state, `step` takes the next one.

    needs: the kind of compressor whose constant its theorem uses, Unbiased or Contractive, or None.
    convex: whether its theorem asks that every component be convex.
    proximal: whether it takes problems with a regularizer.

    Every method has a class method `theoretical(problem, compressor, ...)`, itself at the step sizes of its theorem
    (TypeError for a compressor without the constant, ValueError for a problem that the theorem does not cover), and
    `bound(problem, x0, k)`, what the theorem then says of E ||x^k - x*||^2; the error of a trace is relative to
    ||x^0 - x*||^2.
    """

    needs: ClassVar[type | None] = None
    convex: ClassVar[bool] = True
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

    def iterate(self, comm, state):
        """The iterate on every process, for whoever measures a run from outside: (d,), or (n, d) where every worker has
        its own. Collective, nothing is counted, and no step may call it."""
        return state.x

    @abstractmethod
    def limits(self, problem) -> dict[str, float]:
        """The least upper bound of each parameter for which convergence on this problem is proven.

        Raises ValueError where it is proven for none, TypeError where the compressor has no proven constant,
        NotImplementedError where the problem does not know its own.
        """

    def _start(self, problem, workers: int, x0):
        """x0 checked and copied, after the checks of `init`."""
        if not isinstance(problem, Problem):
            raise TypeError(f"problem must be a compress.Problem, or of a class derived from it, got {problem!r}")
        x = kernels.vector(x0, "x0")
        if workers != problem.n:
            raise ValueError(f"the problem has {problem.n} components, the communicator {workers} workers")
        if x.size != problem.d:
            raise ValueError(f"x0 has {x.size} coordinates, the problem {problem.d}")
        bad, first = kernels.of(x).count_nonfinite(x)
        if bad:
            raise ValueError(f"x0 has {bad} NaN or Inf among {x.size} elements, the first at index {first}")
        if problem.regularizer is not None and not self.proximal:
            raise ValueError(
                f"{type(self).__name__} has no proximal step, and the problem a regularizer; "
                "DCGD, DCGDShift, DCGDStar, DIANA, RandDIANA and SGD have one"
            )
        self._warn_above(problem)
        return x.copy()

    def _warn_above(self, problem):
        try:
            limits = self.limits(problem)
        except (NotImplementedError, TypeError):  # constants that the problem does not know or the compressor has not
            return
        except ValueError as error:
            warnings.warn(f"no convergence is proven: {error}", stacklevel=_outside())
            return
        for name, limit in limits.items():
            value = getattr(self, name)
            if value > limit * (1 + 1e-9):
                warnings.warn(
                    f"{type(self).__name__}: {name} = {value:.6g} is above {limit:.6g}, the largest for which "
                    "convergence on this problem is proven",
                    stacklevel=_outside(),
                )


def _outside() -> int:
    """The stack level, where a warning is given, of the first caller outside this package."""
    package, frame, level = __name__.partition(".")[0], sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level


def checked(method, **kinds) -> None:
    """Check the parameters of a method at construction: kinds are "step" (> 0) or "share" (in (0, 1]) by name."""
    cls = type(method)
    if method.needs is not None:
        needed(cls, method.compressor, method.needs)
    for field, kind in kinds.items():
        settle(method, field, parameter(cls, field, getattr(method, field), kind))


def parameter(cls, name: str, value, kind: str) -> float:
    """A "step" (> 0) or a "share" (in (0, 1]) as a float; TypeError or ValueError that names the class."""
    value = finite_number(value, f"{cls.__name__}: {name}")
    if not (value > 0 and (kind == "step" or value <= 1)):
        bound = "be positive" if kind == "step" else "lie in (0, 1]"
        raise ValueError(f"{cls.__name__}: {name} must {bound}, got {value}")
    return value


def needed(cls, compressor, kind: type) -> None:
    """TypeError that names the method class unless the compressor is of the kind its theorem is about."""
    if isinstance(compressor, (kind, Identity)):  # which has omega = 0 and alpha = 0
        return
    if not isinstance(compressor, Compressor):
        raise TypeError(f"{cls.__name__}: compressor must be a Compressor, got {compressor!r}")
    if kind is Unbiased:
        raise TypeError(
            f"{cls.__name__} needs an unbiased compressor, and {compressor!r} is biased: "
            "Induced(it, an unbiased one) is unbiased; EF21 and EF14 take biased ones"
        )
    raise TypeError(f"{cls.__name__} needs a contractive compressor, and {compressor!r} is not: use Scaled(it)")


def covered(cls, problem, strongly: bool = False) -> None:
    """ValueError where the theorems of a method class do not cover a problem; strongly: they need mu > 0."""
    if not isinstance(problem, Problem):
        raise TypeError(f"{cls.__name__}: problem must be a compress.Problem, or derived from it, got {problem!r}")
    if isinstance(problem, Operator):  # also where someone has set its L
        raise NotImplementedError(
            f"{cls.__name__}: its theorem is about minimisation, and {problem!r} is an operator: give step sizes of "
            "your own, or take Extragradient, which has proven ones"
        )
    if cls.convex and not problem.convex:
        raise ValueError(f"{cls.__name__}: its theorem needs convex components; those of EF21 and MARINA do not")
    if not problem.L > 0:
        raise ValueError(f"{cls.__name__}: its theorem needs L > 0, got {problem.L}")
    if strongly and not problem.mu > 0:
        raise ValueError(f"{cls.__name__}: its theorem needs mu > 0, got {problem.mu}")


def same_components(sampling, problem) -> None:
    """ValueError unless a sampling is over the components of the problem."""
    if sampling.n != problem.n:
        raise ValueError(f"the sampling is over {sampling.n} components, the problem has {problem.n}")


def omega(cls, compressor, d: int) -> float:
    """The constant of an unbiased compressor that the theorems of a method class use; TypeError where it has none.

    E ||(1/n) sum_i (Q(v_i) - v_i)||^2 <= (omega / n^2) sum_i ||v_i||^2: what workers with independent errors have by
    the compressor's omega. Perm-K's have (1/n^2) (n sum_i ||v_i||^2 - ||sum_i v_i||^2) instead, so its omega is n here.
    """
    w = _constant(cls, compressor, Unbiased, "omega", d)
    if isinstance(compressor, PermK):
        return float(compressor.n)
    if _dependent(compressor):
        raise TypeError(
            f"{cls.__name__}: the errors of {compressor!r} depend on each other over workers, so that no step size "
            "follows from its omega: give gamma"
        )
    return w


def _dependent(compressor) -> bool:
    """Whether the errors of different workers are not independent."""
    parts = [part for part in vars(compressor).values() if isinstance(part, Compressor)]
    return isinstance(compressor, (PermK, Correlated)) or any(map(_dependent, parts))


def alpha(cls, compressor, d: int) -> float:
    """The constant of a contractive compressor that the theorems of a method class use; TypeError where it has none."""
    return 0.0 if isinstance(compressor, Identity) else _constant(cls, compressor, Contractive, "alpha", d)


def _constant(cls, compressor, kind, name, d):
    needed(cls, compressor, kind)
    if compressor.guarantee == "none":
        raise TypeError(
            f"{cls.__name__}: {compressor!r} has no proven {name}, so no step size follows from it: give gamma"
        )
    return getattr(compressor, name)(d)


def gradient(problem, i: int, x, out):
    """out = grad f_i(x); returns out. A problem may write to `out`, or return a vector of its own."""
    found = problem.gradient(i, x, out=out)
    if found is not out:
        kernels.of(out).add_or_store(kernels.vector(found, f"{type(problem).__name__}.gradient()"), out, 1.0, False)
    return out


def add(values, out, weight: float) -> None:
    """out += weight * values, for vectors of one backend."""
    kernels.of(out).add_or_store(values, out, weight, True)


def prox(problem, x, gamma: float) -> None:
    """x <- prox_{gamma R}(x), in place."""
    if problem.regularizer is not None:
        problem.regularizer.prox(x, gamma)


def worker_keys(comm, key) -> list:
    """The keys of all n workers in a step."""
    return [key.worker(i) for i in range(comm.n)]


def mean(comm, compressor, messages, keys, out):
    """out = (1/n) sum_i of the vectors that the workers' messages stand for; returns out."""
    out.fill(0)
    for message, key in zip(comm.allgather(messages), keys, strict=True):
        compressor.decode_add(message, key, out, 1 / comm.n)
    return out


def coin(key, p: float) -> bool:
    """True with probability p: the same for all who hold the key."""
    return key.fold(_COIN).word < p * 2.0**64


def zeros_like(x):
    """A zero vector of x's dtype on its backend."""
    return kernels.zeros(x, x.size)


class _Kept(threading.local):
    """One generator a thread, set to a key's word in a tenth of the time that a new one takes."""

    def __init__(self):
        self.bits = np.random.Philox(key=0)
        self.generator = np.random.Generator(self.bits)
        self.start = self.bits.state


_kept = _Kept()


def generator(key) -> np.random.Generator:
    """np.random.Generator(np.random.Philox(key=key.word)), until the thread asks for the next."""
    kept = _kept
    kept.start["state"]["key"][0] = key.word
    kept.bits.state = kept.start
    return kept.generator
