"""UniformQuantizer and Trellis: levels of a grid, entropy coded, at any rate.

Both turn a vector into whole multiples of a step, chosen so that the message meets a rate or an error, and code them
with static models (csrc/level.h, csrc/entropy.h). What they promise is decided by the message, not by a constant of the
class: guarantee is "none", except for an unbiased one whose error is set by `nmse`.

Payload: one byte (labels, a float64 step, how finely contexts and dither are told apart), three bytes (where
levels 1, 2 and beyond are moved to, in 1/256 of a step; none if unbiased), the step, then models, chunks and escapes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, fields
from numbers import Real
from typing import ClassVar

import numpy as np

from . import kernels
from ._cpu import kernels as _shapes
from .compressor import (
    Compressor,
    Contractive,
    Unbiased,
    add_or_store,
    check_finite,
    name_of,
    positive_int,
    rate_keyword,
    refuse_nonfinite,
    settle,
)

_CHUNK = _shapes.ENTROPY_LARGEST_CHUNK
_SAMPLE = 2**15
_STEPS = 12  # corrections of the step at most
_LESSONS = 2  # of them with a new plan, on each sample
_NEAR = 0.006  # as near as bits and error come to what was asked for; 0.01 is promised
_SHORT = 2048  # bits; in messages of fewer, header and models are more and more on top, or nothing would be left
_SIGN = 1
_TRIAL = 2
_ROTATION = 4096  # coordinates that a rotation mixes
_BIT = 0.35  # squared steps that the search may give for a bit; .3 to .46 are within a thousandth


def _costs(zero=0.0, other=0.0):
    """What zeros of even and odd states cost more than other levels, in squared steps, in any context (trellis.h)."""
    return np.tile(np.array([1, 0, zero, other, 0, 1], np.float32), _shapes.LEVEL_OCTAVES)


_PLAIN = _costs()  # distance alone


class _Coded(Compressor):
    """What the two share: how a step is found, and how levels become bytes."""

    fixed_length: ClassVar[bool] = False

    def __new__(cls, *args, unbiased=False, **named):
        if kinds := [kind for kind in cls.__subclasses__() if kind.__module__ == __name__]:
            cls = next(kind for kind in kinds if issubclass(kind, Unbiased) == bool(unbiased))
        return object.__new__(cls)

    @property
    def guarantee(self):
        return "proven" if self._exact_error() else "none"

    def _exact_error(self):
        return self.unbiased and self.nmse is not None and self._states == 1

    def _check(self):
        names = [name for name in ("rate", "nmse", "step") if getattr(self, name, None) is not None]
        if len(names) != 1:
            given = " and ".join("bits" if n == "rate" else n for n in names) or "none"
            step = ", step" if any(f.name == "step" for f in fields(self)) else ""
            raise ValueError(f"give exactly one of bits, nmse{step}: got {given}")
        value, called = getattr(self, names[0]), "bits" if names[0] == "rate" else names[0]
        if not isinstance(value, Real):
            raise TypeError(f"{called} must be a number, got {value!r}")
        value = float(value)
        most = {"rate": 16.0, "nmse": 1.0, "step": math.inf}[names[0]]
        if not 0 < value < math.inf or value > most:
            raise ValueError(f"{called} must be in (0, {most:g}], got {value}")
        settle(self, names[0], value)
        if self.unbiased and self._states > 1 and names[0] == "rate" and value < 0.25:
            raise ValueError(
                f"an unbiased trellis takes 0.25 bits at least, got {value}: what its path says of the dither to come "
                f"is not in the models. Composed(RandK({2 * value:.2g}), Trellis(bits=0.5, unbiased=True)) thins it"
            )
        if not isinstance(self.unbiased, (bool, np.bool_)):
            raise TypeError(f"unbiased must be True or False, got {self.unbiased!r}")
        settle(self, "unbiased", bool(self.unbiased))

    def bits(self, d: int, dtype=np.float32) -> int:
        """An upper bound for any input; a message meets the rate where the vector is not told losslessly before."""
        if d == 0:
            return 0
        chunks = -(-d // _CHUNK)
        return 8 * (12 + 400 * 96) + chunks * (64 + 32 * 40) + 110 * d

    def expected_bits(self, d: int, dtype=np.float32) -> int | None:
        """What is asked for, and what is as near; of short messages header and models on top."""
        if self.rate is None:
            return None
        asked = self.rate * d
        more = max((0.03 if self.unbiased else _NEAR) * asked, 8) + (264 if asked < 2 * _SHORT else 8)
        return math.ceil(asked + more) if d else 0

    def __repr__(self):
        given = [
            ("bits" if f.name == "rate" else f.name, getattr(self, f.name))
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"{name_of(self)}({', '.join(f'{name}={value!r}' for name, value in given)})"

    # Encoding

    def _encode(self, x, key, out):
        k = kernels.of(x)
        size = float(k.norm(x, k.NORM_L2))
        if not math.isfinite(size):
            refuse_nonfinite(x)
        if size == 0:
            return kernels.buffer(0, out, x), 0
        rms = size / math.sqrt(x.size)
        largest = float(k.max_abs(x))
        if rms < 1e-290 or largest > 1e290:
            raise ValueError(f"the norm of x is {size:g}: out of the range 1e-290 to 1e290")
        head, body = _Search(self, x, key, rms, largest).payload()
        payload = kernels.buffer(len(head) + len(body), out, x)
        kernels.store(payload[: len(head)], head)
        kernels.store(payload[len(head) :], body)
        return payload, 8 * payload.size

    # Decoding

    def _decode(self, message, key, out, weight, add):
        payload = message.payload
        if payload.size == 0:
            if not add:
                out.fill(0)
            return
        head = kernels.host(payload[:12])
        flags = int(head[0])
        at = 1 if self.unbiased else 4
        width = 8 if flags & 2 else 4
        if payload.size < at + width:
            raise ValueError(f"coded levels: truncated, {payload.size} bytes")
        offsets = np.zeros(3) if self.unbiased else head[1:4].view(np.int8) / 256
        (step,) = struct.unpack("<d" if width == 8 else "<f", head[at : at + width].tobytes())
        if not 0 < step < math.inf:
            raise ValueError(f"coded levels: the step is {step}")
        merged, folded = flags >> 2 & 7, flags >> 5
        if merged > 6 * self.context or folded > 5 * self.unbiased or flags & self.unbiased:
            raise ValueError("coded levels: no encoder sets these flags")
        code = self._code(flags & 1, merged, folded)
        kernels.of(payload).level_decode(
            payload[at + width :],
            code,
            message.size,
            key.word if self.unbiased else 0,
            step * self._sign(key),
            tuple(offsets.tolist()),
            out,
            weight,
            add,
        )

    def _code(self, labels, merged, folded):
        """What the kernels take: models are of 2^merged half octaves of context and 2^folded phases of the dither."""
        dithered = 1 + folded if self.unbiased else 0
        return self._states, bool(labels), dithered, 1 + merged if self.context else 0, self._columns

    def _neighbours(self):
        """How many coordinates in a row a sample needs to tell how the vector is coded."""
        return 1024 if self._columns else 128 if self.context else 32

    def _sign(self, key):
        """With a random sign the error is symmetric (trellis codes need not be)."""
        return -1.0 if self.unbiased and self._states > 1 and key.fold(_SIGN).word & 1 else 1.0


class _Search:
    """The message whose bits or error are what was asked for: first on samples of x, then on all of it."""

    def __init__(self, compressor, x, key, rms, largest):
        self.c, self.x, self.key, self.rms, self.largest = compressor, x, key, rms, largest
        self.finest = max(largest * 2.0**-22, 1e-300)
        budget = math.inf if compressor.rate is None else x.size * compressor.rate
        # beyond, a dithered message says as good as nothing and errs the more
        self.coarsest = (1 if budget < _SHORT else 64) * largest
        self.byte = 8 / budget  # what a miss is told to

    def attempt(self, x, key, step, plan, measured=False):
        return _Attempt(self.c, x, key, step, plan, self.x.size, self.largest, measured)

    def payload(self):
        c = self.c
        if c.step is not None or c._exact_error():
            step = (math.sqrt(12 * c.nmse) * self.rms if c.step is None else c.step) / c._unit
            if not (math.isfinite(1 / step) and math.isfinite(self.largest / step)):
                raise ValueError(f"step {step * c._unit:g} is too small for coordinates up to {self.largest:g}")
            plan = _Plan() if c.unbiased else self.taught(step)
            return self.attempt(self.x, self.key, step, plan).payload()
        # the step must not know the dither, or the error would depend on it: another one is tried out
        trial = self.key.fold(_TRIAL) if c.unbiased else self.key
        attempt, slope = self.planned(trial)
        plan, step = attempt.plan, attempt.step
        measured = c.rate is None or self.x.size <= 4 * _SAMPLE
        steps, best = _Steps(self, slope), (math.inf, step)
        if attempt.size < self.x.size:
            attempt = None
        for _ in range(_STEPS):
            if attempt is None:
                attempt = self.attempt(self.x, trial, step, plan, measured)
            miss = attempt.miss(self.rms)
            if abs(miss) <= max(_NEAR, self.byte) or (step <= self.finest and miss < 0):
                if not c.unbiased:
                    return self.unless_nothing(attempt)
                break
            best = min(best, (abs(miss), step))
            step = steps.next(step, miss)
            attempt = None  # frees its arrays before the next takes its own
        else:
            step = best[1]
        attempt = None
        attempt = self.attempt(self.x, self.key, step, plan, measured)
        return attempt.payload() if c.unbiased else self.unless_nothing(attempt)

    def unless_nothing(self, attempt):
        """The payload, or that of the largest coordinates alone where it would tell no more than zeros do: error
        feedback, for one, would wait for ever. Too few bits end so, and costs learned from too few coordinates."""
        if not attempt.moments and not attempt.bits:
            attempt = self.attempt(self.x, self.key, attempt.step, attempt.plan, measured=True)
        if attempt.moments and attempt.error(self.rms) >= 1 - 1e-6:
            attempt = self.attempt(self.x, self.key, *self.c._largest_alone(self.largest))
        return attempt.payload()

    def planned(self, key):
        """The last attempt at a sample, whose plan and step would meet the target, and how the miss goes with the step.
        The sample of a short x is x."""
        c, x = self.c, self.x
        if c.rate is None:
            step = _short(self.rms * math.sqrt(12 * c.nmse) / 2)
        else:  # of what most of x is like: an outlier may be as large as all the rest
            part, k = _sample(x, _SAMPLE, 32), kernels.of(x)
            rms = float(k.norm(part, k.NORM_L2)) / math.sqrt(part.size) or self.rms
            step = _short(rms * 2.0**-c.rate * 1.6)
        tried, few = [], self.sample(_SAMPLE // (2 if c.context else 4))
        for labels in c._labels():
            attempt, _ = self.lessons(key, few, 0.03, step, _Plan(labels=labels))
            step, miss = attempt.step, attempt.miss(self.rms)
            loss = math.log2(max(attempt.error(self.rms), 1e-300)) + 2 * attempt.rate() + 10 * max(abs(miss) - 0.03, 0)
            tried.append((loss + 0.01 * labels, step, attempt.plan))
        _, step, plan = min(tried, key=lambda t: t[0])
        return self.lessons(key, self.sample(_SAMPLE), _NEAR / 2, step, plan)

    def sample(self, size):
        return _sample(self.x, size, self.c._neighbours())

    def lessons(self, key, part, near, step, plan):
        first = not (self.c.unbiased or plan.taught)
        steps, lessons = _Steps(self), 0
        for turn in range(_STEPS):
            attempt = self.attempt(part, key, step, plan, measured=True)
            miss = attempt.miss(self.rms)
            if turn and abs(miss) < max(near, self.byte):
                break
            if not first:  # what costs nothing is coded at another rate
                step = steps.next(step, miss)
            # costs learned far from the rate, and a step found with them, can chase each other for ever
            if first or (lessons < _LESSONS and abs(miss) < 0.3):
                plan, steps, lessons, first = attempt.learn(), _Steps(self, steps.slope), lessons + 1, False
        return attempt, steps.slope

    def taught(self, step):
        """A plan for a step that is given."""
        part, plan = self.sample(_SAMPLE), _Plan()
        for _ in range(_LESSONS + 1):
            plan = self.attempt(part, self.key, step, plan, measured=True).learn()
        return plan


@dataclass(frozen=True)
class _Plan:
    """What is learned from a sample: how to weigh bits, where zero begins, where levels are moved to."""

    labels: int = 0
    taught: bool = False
    costs: np.ndarray | None = None
    dead: float = 0.6
    rounding: float = 0.4
    offsets: tuple = (0.0, 0.0, 0.0)


class _Attempt:
    """A vector, or a sample of one with `whole` coordinates, at one step: symbols, counts, and what they would cost."""

    def __init__(self, compressor, x, key, step, plan, whole, largest, measured):
        c = compressor
        self.c, self.size, self.plan, self.whole = c, x.size, plan, whole
        self.wide = not 2.0**-100 < step < 2.0**100
        self.step = step if self.wide else float(np.float32(step))
        both = bool(c.unbiased and c.context)  # a model is a byte: not all of 48 half octaves times 32 phases
        self.code = c._code(plan.labels, 2 * both, both)
        self.k = k = kernels.of(x)
        costs = _PLAIN if plan.costs is None else plan.costs
        models = k.level_model_count(self.code)
        narrow = largest < (2 * k.LEVEL_NARROW - 8) * self.step
        self.symbol = kernels.empty(x, x.size, np.uint8)
        self.model = kernels.empty(x, x.size, np.uint8) if models > 1 else None
        self.extra = None if narrow else kernels.empty(x, x.size, np.uint16)
        self.counts = np.empty(models * 256, np.uint32)  # on the host, wherever x lives
        moments = np.empty(7) if measured else None
        self.escapes, *self.escaped = k.level_encode_symbols(
            x,
            self.code,
            c._sign(key) / self.step,
            key.word if c.unbiased else 0,
            costs,
            plan.dead,
            plan.rounding,
            whole / x.size,
            self.symbol,
            self.model,
            self.extra,
            self.counts,
            moments,
        )
        self.moments = moments.tolist() if measured else None
        self.bits, self.model_bits, self.sent = k.level_bits(self.code, self.counts, whole / x.size)

    def rate(self):
        """Bits a coordinate of the whole, as far as they count."""
        bits = self.bits / self.size
        whole, rest = divmod(self.whole, _CHUNK)
        chunks = whole + (rest > 0)
        header = 64 + 32 * chunks * (2 if self.escapes else 1) + whole * _lane_bits(32, bits)
        if rest:
            header += _lane_bits(self.k.entropy_lane_count(rest), bits)
        share = 1.0 if self.c.rate is None else min(self.c.rate * self.whole / _SHORT, 1.0)
        fixed = share * header + max(share, 0.25) * self.model_bits
        return bits + 8 * len(self.escaped[0]) / self.size + fixed / self.whole

    def error(self, rms):
        """NMSE after the levels are moved to where the plan says."""
        total, *pairs = self.moments
        for (count, off), move in zip(zip(pairs[::2], pairs[1::2], strict=True), self.plan.offsets, strict=True):
            total += count * move * move - 2 * off * move
        return max(total, 0.0) * self.step**2 / (rms * rms * self.size)

    def miss(self, rms):
        """By how much, relatively, the bits or the error are above what was asked for."""
        if self.c.rate is not None:
            return self.rate() / self.c.rate - 1
        return self.error(rms) / self.c.nmse - 1

    def learn(self):
        """A better plan for this step."""
        if self.c.unbiased:
            return self.plan
        _, *pairs = self.moments
        offsets = tuple(
            min(max(round(256 * off / count) / 256, -0.49), 0.49) if count else 0.0
            for count, off in zip(pairs[::2], pairs[1::2], strict=True)
        )
        if self.c._states == 1:
            dead, rounding = _thresholds(self.counts)
            return _Plan(taught=True, dead=dead, rounding=rounding, offsets=offsets)
        costs = np.empty(6 * (len(self.counts) // 512), np.float32)
        self.k.level_costs(self.counts, _BIT, bool(self.plan.labels), costs)
        return _Plan(self.plan.labels, True, costs, offsets=offsets)

    def payload(self):
        """Head and body."""
        *_, dithered, context, _ = self.sent
        models = max(context - 1, 0) << 2 | max(dithered - 1, 0) << 5
        head = bytes([(1 if self.plan.labels else 0) | (2 if self.wide else 0) | models])
        if not self.c.unbiased:
            head += np.array([round(256 * o) for o in self.plan.offsets], np.int8).tobytes()
        head += struct.pack("<d" if self.wide else "<f", self.step)
        return head, self.k.level_encode(
            self.code, self.sent, self.symbol, self.model, self.extra, self.counts, *self.escaped
        )


def _lane_bits(lanes, bits):
    """What the lanes of a chunk cost beyond its symbols of so many bits each (entropy.h, C and D)."""
    if lanes == 1:
        return 19.5
    step = lanes * bits
    return 19.5 * lanes - step * min(_shapes.ENTROPY_LONGEST_TAIL, (16 * lanes - 8) // max(step, 1e-9))


def _thresholds(counts):
    """Dead zone and rounding of a uniform quantiser for a cost of ln 2 / 6 squared steps a bit: where the next level's
    error and bits together become the smaller sum."""
    c = counts.reshape(-1, 256).sum(0).astype(np.float64)
    near, zero = c[127] + c[129], c[128]
    if zero == 0 or near == 0:
        return 0.5, 0.5
    weight = math.log(2) / 6
    dead = 0.5 + weight / 2 * math.log2(max(2 * zero / near, 1.0))
    ups, downs = c[129:159], c[130:160]
    below, above = c[98:128][::-1], c[97:127][::-1]
    here, after = float(ups.sum() + below.sum()), float(downs.sum() + above.sum())
    slope = math.log2(here / after) if after > 0 else 4.0  # geometric tails: the same ratio at every level
    shift = min(weight / 2 * slope, 0.3)
    if shift < 0.06:  # levels from 3 on are moved alike, which then costs as much as it gains
        shift = 0.0
    # logarithms differ between machines in the last bit: what follows from them is rounded, and bytes do not
    return round(dead * 4096) / 4096, round((0.5 - shift) * 4096) / 4096


def _short(step):
    """16 bits of a step, the same on every machine."""
    fraction, exponent = math.frexp(step)
    return math.ldexp(round(fraction * 65536), exponent - 16)


def _sample(x, size, row):
    """`size` coordinates in rows from all over x."""
    if x.size <= 2 * size:
        return x
    rows = size // row
    first = (np.arange(rows) * ((x.size - row) / (rows - 1))).astype(np.int64)
    places = (first[:, None] + np.arange(row)).ravel().astype(np.uint32)
    sample = kernels.empty(x, places.size, x.dtype)
    kernels.of(x).gather(x, kernels.like(x, places), sample, True)
    return sample


class _Steps:
    """The next step to try: along the line through the last two, and between the nearest on either side."""

    def __init__(self, search, slope=0.0):
        self.c, self.least, self.most = search.c, search.finest, search.coarsest
        self.fine, self.coarse, self.last = 0.0, math.inf, None
        self.slope = slope  # of the miss, an octave of the step

    def next(self, step, miss):
        sign = -1 if self.c.rate is not None else 1
        if miss * sign < 0:
            self.fine = max(self.fine, step)
        else:
            self.coarse = min(self.coarse, step)
        if self.last and step != self.last[0]:
            slope = (miss - self.last[1]) / math.log2(step / self.last[0])
            self.slope = slope if slope * sign > 0.1 else 0.0
        self.last = step, miss
        if abs(miss) < 0.2 and self.slope:
            guess = step * 2.0 ** min(max(-miss / self.slope, -0.5), 0.5)
        elif self.c.rate is not None:
            # an octave of the step is a bit at high rates, and a factor of five or six of the bits at low ones
            octaves = max(self.c.rate * abs(miss), math.log2(1 + abs(miss)) / 2.5)
            guess = step * 2.0 ** math.copysign(min(octaves, 2.0), miss)
        else:
            guess = step * min(max(max(1 + miss, 1e-9) ** -0.5, 0.25), 4.0)
        if not self.fine < guess < self.coarse:
            guess = math.sqrt(self.fine * self.coarse)
        return _short(min(max(guess, self.least), self.most))


class _Biased(Contractive):
    def alpha(self, d: int) -> float:
        """TypeError: what is lost depends on the vector."""
        raise TypeError(f"{type(self).__name__} adapts to the vector: it has no constant")


class _Subtractive(Unbiased):
    def omega(self, d: int) -> float:
        """`nmse` where that sets the step of a uniform quantiser; a TypeError otherwise."""
        if self._exact_error():
            return self.nmse
        raise TypeError(f"{type(self).__name__} adapts to the vector: it has no constant")


@rate_keyword
@dataclass(frozen=True, repr=False)
class UniformQuantizer(_Coded):
    """Multiples of a step, entropy coded: the plainest coder, at any rate, and lossy to taste.

    Exactly one of `bits` (a coordinate, the whole message within 1% for d >= 2^16 unless the vector is told exactly
    before; of a message of less than 2048 bits, header and models, about 200, are partly on top), `nmse`
    (||C(x) - x||^2 / ||x||^2, within 1%) and `step`. A vector of few different values has few rates and errors: it gets
    one near by. Where the bits would tell no more than zeros, the largest coordinates are sent, whatever they take.

    unbiased=False: x -> k step with a dead zone, thresholds and levels as rate and error together want them
    (Sullivan, IEEE Trans. Inf. Theory 42, 1996): near the bound at low rates, 1.42 x the bound at high ones.
    unbiased=True: subtractive dither, C(x) = step (round(x / step + u) - u) with u uniform on [0, 1) from the key, the
    worker's own. The error is uniform on [-step/2, step/2] whatever x is (Schuchman, IEEE Trans. Commun. Tech. 12,
    1964), so E C(x) = x and E||C(x) - x||^2 = d step^2 / 12; with `nmse` that is nmse ||x||^2, and omega = nmse is
    proven, to the 2^-24 of a step that u is drawn with and the 2^-24 of x / step that float32 keeps of their sum. With
    `bits` the step is found with another dither, so that the error stays independent of x, and at low rates the
    bits of one message scatter by a few percent. Symbols are coded given u (Zamir, Feder, 1992). Elsewhere
    guarantee is "none": bits decide what is lost.

    ValueError for a norm below 1e-290 or above 1e290.

    >>> import numpy as np, compress
    >>> x = np.random.default_rng(0).standard_normal(2**16).astype(np.float32)
    >>> message = UniformQuantizer(bits=2.0).encode(x, compress.Key(0))
    >>> 1.98 < message.bits / x.size < 2.02
    True
    """

    rate: float | None = None
    nmse: float | None = None
    step: float | None = None
    unbiased: bool = False

    context: ClassVar[bool] = False
    _states: ClassVar[int] = 1
    _columns: ClassVar[int] = 0
    _unit: ClassVar[float] = 2.0  # its levels are the even ones

    def __post_init__(self):
        self._check()

    def _labels(self):
        return (0,)

    def _largest_alone(self, largest):
        return largest / 2, _Plan(taught=True, dead=0.99, rounding=0.5)

    @classmethod
    def examples(cls):
        if cls is not UniformQuantizer:
            return []
        return [
            cls(bits=2.0),
            cls(bits=0.2),
            cls(nmse=0.01),
            cls(step=0.25),
            cls(bits=2.0, unbiased=True),
            cls(nmse=0.05, unbiased=True),
        ]


class _UniformBiased(UniformQuantizer, _Biased):
    pass


class _UniformUnbiased(UniformQuantizer, _Subtractive):
    pass


@rate_keyword
@dataclass(frozen=True, repr=False)
class Trellis(_Coded):
    """Entropy-coded trellis quantisation: the closest to the uncertainty bound of all here.

    Levels of a grid in four cosets; a path through a trellis of 4 to 256 `states` says which two of them a coordinate
    may take, and the encoder looks for the path with the least error plus bits (Viterbi; Fischer, Wang, IEEE Trans.
    Inf. Theory 38, 1992; csrc/trellis.h). The more states, the smaller the error and the slower the encoder; decoding
    takes the same time.

    Exactly one of `bits` and `nmse`, as in UniformQuantizer. context=True: the probability models follow the magnitudes
    just coded, worth much on gradients, nothing on noise. `shape` then says that the vector is a matrix: a tuple of
    sizes, or the number of columns (the last row may be incomplete). Magnitudes above count as well as those to the
    left, which is worth most where a gradient is a sum of few outer products, as those of linear layers are.
    rotate=True: x is rotated first, in blocks of 4096 by the key all workers share (as in Rotated), and its coordinates
    are nearly Gaussian whatever x is; for inputs that may be anything, where the estimate may be biased.

    unbiased=True: subtractive dither. Let Q be the nearest path, without regard to bits, and u uniform on [0, 4)^d in
    steps, s a sign, both from the key: C(x) = s step (Q(s x / step + u) - u). The set of paths is unchanged when 4
    times any integer vector is added, so e(y) = Q(y) - y depends on y mod 4 alone, and y = s x / step + u is uniform
    there: e is independent of x and of s. Hence the error s step e has the same law for every x, is symmetric, and
    E C(x) = x.
    With G the second moment of the cells of Q, coding Q given u takes at most log2(2 pi e G) / 2 bits a coordinate more
    than the rate-distortion function of any x (Zamir, Feder, IEEE Trans. Inf. Theory 38, 1992).

    guarantee is "none", so alpha (omega, where unbiased) is a TypeError: the rate decides what is lost. ValueError for
    a norm below 1e-290 or above 1e290, for fewer than 0.25 bits where unbiased, and where x is not of the size of
    `shape`.

    >>> import numpy as np, compress
    >>> x = np.random.default_rng(0).standard_normal(2**16).astype(np.float32)
    >>> y = Trellis(bits=2.0)(x, compress.Key(0))
    >>> bool(np.sum((y - x) ** 2) / np.sum(x**2) * 4**2.0 < 1.16)     # 1 is the bound, 1.42 the best scalar quantiser
    True
    """

    rate: float | None = None
    nmse: float | None = None
    states: int = 8
    context: bool = False
    rotate: bool = False
    unbiased: bool = False
    shape: int | tuple | None = None

    step: ClassVar[None] = None
    _unit: ClassVar[float] = 1.0

    def __post_init__(self):
        self._check()
        settle(self, "states", positive_int(self.states, "states"))
        if self.states not in (4, 8, 16, 32, 64, 256):
            raise ValueError(f"states must be 4, 8, 16, 32, 64 or 256, got {self.states}")
        for name in ("context", "rotate"):
            value = getattr(self, name)
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"{name} must be True or False, got {value!r}")
            settle(self, name, bool(value))
        if self.context and self.rotate:
            raise ValueError("context=True has nothing to follow in a vector that rotate=True has made noise")
        if self.shape is not None:
            several = isinstance(self.shape, (tuple, list))
            sizes = tuple(positive_int(n, "shape") for n in (self.shape if several else (self.shape,)))
            settle(self, "shape", sizes if several else sizes[0])
            if not self.context:
                raise ValueError("shape is what context=True looks at: set both")
            if not sizes or self._width < 2:
                raise ValueError(f"shape must have two columns at least, got {self.shape}")

    @property
    def _width(self):
        """Columns of the matrix that shape makes of a vector."""
        return self.shape[-1] if isinstance(self.shape, tuple) else int(self.shape or 0)

    @property
    def _columns(self):
        """... and of the strips that it is cut in, side by side: the lanes of the coder then have rows above them."""
        if self._width <= 128:
            return self._width
        return min((n for n in range(32, 129) if self._width % n == 0), key=lambda n: abs(math.log(n / 64)), default=64)

    def _encode(self, x, key, out):
        if isinstance(self.shape, tuple) and math.prod(self.shape) != x.size:
            raise ValueError(f"x has {x.size} coordinates, shape={self.shape} {math.prod(self.shape)}")
        if self.rotate:
            largest = check_finite(x)
            if largest * x.size * _ROTATION > float(np.finfo(x.dtype).max):
                raise ValueError(f"max|x| = {largest:g} is too large to rotate in {x.dtype}")
            rotated = np.empty_like(x)
            kernels.of(x).rotate(x, rotated, key.shared.word, False)
            x = rotated
        if self._columns < self._width:
            x = np.concatenate([part.ravel() for part in self._strips(x)])
        return super()._encode(x, key, out)

    def _decode(self, message, key, out, weight, add):
        if not self.rotate and self._columns == self._width:
            return super()._decode(message, key, out, weight, add)
        coded = np.empty_like(out)
        super()._decode(message, key, coded, 1.0, False)
        if self.rotate:
            kernels.of(out).rotate(coded, coded, key.shared.word, True)
            return add_or_store(coded, out, weight, add)
        ordered, at = np.empty_like(coded), 0
        for part in self._strips(ordered):
            part[...] = coded[at : at + part.size].reshape(part.shape)
            at += part.size
        add_or_store(ordered, out, weight, add)

    def _strips(self, x):
        """Views of x, as a matrix, in the order of coding: strips from top to bottom, what they leave, the last row."""
        rows, across = x.size // self._width, self._width // self._columns
        matrix = x[: rows * self._width].reshape(rows, self._width)
        strips = matrix[:, : across * self._columns].reshape(rows, across, self._columns).transpose(1, 0, 2)
        return strips, matrix[:, across * self._columns :], x[rows * self._width :]

    @property
    def _states(self):
        return self.states

    def _labels(self):
        return (0,) if self.unbiased else (0, 1)

    def _largest_alone(self, largest):
        """Zeros weigh 8 squared steps less: 3.5 steps are worth a level, 3 are not."""
        return largest / 3.5, _Plan(1, True, _costs(-8, -8))

    @classmethod
    def examples(cls):
        if cls is not Trellis:
            return []
        return [
            cls(bits=2.0),
            cls(bits=0.5, states=4),
            cls(nmse=0.01, context=True, shape=100),
            cls(bits=2.0, rotate=True),
            cls(bits=1.0, unbiased=True),
            cls(bits=2.0, context=True, unbiased=True),
        ]


class _TrellisBiased(Trellis, _Biased):
    pass


class _TrellisUnbiased(Trellis, _Subtractive):
    pass
