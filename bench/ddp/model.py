"""Arithmetic on what was measured: steps to a target, seconds against bandwidth, and a model of n ranks.

T(B) = a + c / B is a step's time at B Mbit/s: a for what the link has no part in, c in Mbit for what it carries.

The model of n ranks is that of alpha and beta: a step takes

    compute + encode * coordinates encoded + decode * coordinates decoded
    + alpha * messages that wait for each other + overhead * messages that do not + bits / beta

with the seconds of a step without communication and of a coordinate, alpha, overhead and beta of the link as measured,
and the rest by `settings.Work`, from the sizes of messages. It knows of no overlap of backward and communication, and
of no switch that is shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SHARE = 0.85  # of the baseline's steps: where its loss is the target
SMOOTH = 5  # tests in the mean that is compared to it


def smoothed(tests):
    """(steps, losses): losses as the mean of the last SMOOTH tests. tests: rows of (step, loss, accuracy)."""
    steps, losses = (np.array([row[k] for row in tests], float) for k in (0, 1))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - SMOOTH)
    return steps, (sums[ends] - sums[starts]) / (ends - starts)


def target(tests):
    """The loss that the baseline reaches by SHARE of its steps."""
    steps, losses = smoothed(tests)
    return float(losses[steps <= SHARE * steps[-1]].min())


def steps_to(tests, loss):
    """Steps until the smoothed loss is there, between two tests along a line; None where it never is."""
    steps, losses = smoothed(tests)
    below = np.flatnonzero(losses <= loss)
    if not below.size:
        return None
    i = below[0]
    if i == 0:
        return float(steps[0])
    share = (losses[i - 1] - loss) / (losses[i - 1] - losses[i])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def total(steps, warmup, dense, step):
    """Seconds of `steps` steps, the first `warmup` of which take `dense` seconds, and the others `step`."""
    warm = min(steps, warmup)
    return warm * dense + (steps - warm) * step


@dataclass(frozen=True)
class Line:
    """T(B) = a + c / B: seconds, and Mbit."""

    a: float
    c: float

    def __call__(self, rate):
        return self.a + self.c / rate

    def __add__(self, other):
        return Line(self.a + other.a, self.c + other.c)

    def __rmul__(self, factor):
        return Line(factor * self.a, factor * self.c)


def fit(rates, seconds) -> Line:
    """The line of least relative squared error, neither part below 0."""
    rates, seconds = np.asarray(rates, float), np.asarray(seconds, float)
    columns = np.stack([np.ones_like(rates), 1 / rates], 1) / seconds[:, None]
    candidates = [np.zeros(2)]
    for used in ([0, 1], [0], [1]):
        found = np.zeros(2)
        found[used] = np.linalg.lstsq(columns[:, used], np.ones_like(rates), rcond=None)[0]
        if (found >= 0).all():
            candidates.append(found)
    return Line(*map(float, min(candidates, key=lambda x: np.sum((columns @ x - 1) ** 2))))


def pays_below(line: Line, baseline: Line) -> float:
    """The bandwidth below which `line` takes less time: infinite where it always does, 0 where nowhere down to 0."""
    if line.c >= baseline.c:
        return 0.0
    return math.inf if line.a <= baseline.a else (baseline.c - line.c) / (line.a - baseline.a)


@dataclass(frozen=True)
class Link:
    """alpha: seconds of a short message, overhead: of one more in a burst of them. beta: Mbit/s."""

    alpha: float
    overhead: float
    beta: float


def predict(work, link: Link, compute, encode, decode) -> float:
    """Seconds of a step by the model."""
    return (
        compute
        + encode * work.encoded
        + decode * work.decoded
        + link.alpha * work.waits
        + link.overhead * work.messages
        + work.bits / (link.beta * 1e6)
    )
