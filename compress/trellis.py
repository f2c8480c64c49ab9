"""UniformQuantizer and Trellis: levels of a grid, entropy coded, at any rate.

Both turn a vector into whole multiples of a step, chosen so that the message meets a rate or an error, and code them
with static models (csrc/level.h, csrc/entropy.h). What they promise is decided by the message, not by a constant of the
class: guarantee is "none", except for an unbiased one whose error is set by `nmse`.

Payload: one byte (labels, low bits left out, a float64 step, how finely contexts are told apart), three bytes (where
levels 1, 2 and beyond are moved to, in 1/256 of a step; none if unbiased), the step, then models, chunks and escapes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from . import kernels
from ._cpu import kernels as _shapes
from .compressor import (
    Compressor,
    Contractive,
    Unbiased,
    name_of,
    positive_int,
    rate_keyword,
    refuse_nonfinite,
    settle,
)

_CHUNK = _shapes.ENTROPY_LARGEST_CHUNK
_OCTAVES = _shapes.LEVEL_OCTAVES
_SAMPLE = 2**15
_MOST_SHIFT = _shapes.LEVEL_MOST_SHIFT
_STEPS = 12  # corrections of the step at most
_LESSONS = 4  # of them with a new plan, on the sample
_NEAR = 0.006  # as near as bits and error come to what was asked for; 0.01 is promised
_SIGN = 1
_TRIAL = 2
_BIT = 0.35  # squared steps that the search may give for a bit; .3 to .46 are within a thousandth


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
            raise ValueError(f"give exactly one of bits, nmse{', step' if hasattr(self, 'step') else ''}: got {given}")
        value = float(getattr(self, names[0]))
        most = {"rate": 16.0, "nmse": 1.0, "step": math.inf}[names[0]]
        if not 0 < value < math.inf or value > most:
            raise ValueError(f"{'bits' if names[0] == 'rate' else names[0]} must be in (0, {most:g}], got {value}")
        settle(self, names[0], value)
        if not isinstance(self.unbiased, (bool, np.bool_)):
            raise TypeError(f"unbiased must be True or False, got {self.unbiased!r}")
        settle(self, "unbiased", bool(self.unbiased))

    def bits(self, d: int, dtype=np.float32) -> int:
        """An upper bound for any input; a message meets the rate where the vector is not told losslessly before."""
        if d == 0:
            return 0
        chunks = -(-d // _CHUNK)
        return 8 * (12 + 400 * 96) + chunks * (64 + 32 * 40) + 110 * d

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
            payload = kernels.buffer(0, out)
            return payload, 0
        rms = size / math.sqrt(x.size)
        largest = float(k.max_abs(x))
        if rms < 1e-290 or largest > 1e290:
            raise ValueError(f"the norm of x is {size:g}: out of the range 1e-290 to 1e290")
        data = self._search(x, key, rms, largest)
        payload = kernels.buffer(len(data), out)
        payload[:] = np.frombuffer(data, np.uint8)
        return payload, 8 * len(data)

    def _search(self, x, key, rms, largest):
        """The payload whose bits or error are what was asked for: first on a sample, then on all of x."""
        if self.step is not None or self._exact_error():
            step = (math.sqrt(12 * self.nmse) * rms if self.step is None else self.step) / self._unit
            return _Attempt(self, x, key, step, self._guess(x, key, step)).payload()
        # the step must not know the dither, or the error would depend on it: another one is tried out
        trial = key.fold(_TRIAL) if self.unbiased else key
        finest = max(largest * 2.0**-22, 1e-300)
        target = self.rate if self.rate is not None else self.nmse
        step = rms * (2.0**-target * 1.6 if self.rate is not None else math.sqrt(12 * self.nmse) / 2)
        plan, step = self._plan(_sample(x, self.context), trial, rms, step, finest, x.size)
        search, best, unseen = _Bracket(self, finest), (math.inf, step), 0.0
        for _ in range(_STEPS):
            attempt = None  # frees its arrays before the next takes its own
            attempt = _Attempt(self, x, trial, step, plan, unseen=unseen)
            miss = attempt.miss(rms)
            if abs(miss) <= _NEAR or (step <= finest and miss < 0):
                data = attempt.payload()
                real = 8 * len(data) / x.size
                if self.rate is None or miss < -_NEAR or abs(real / self.rate - 1) < 0.008:
                    return _Attempt(self, x, key, step, plan).payload() if self.unbiased else data
                unseen += real - attempt.rate()  # headers were estimated
                miss, search = real / self.rate - 1, _Bracket(self, finest)
            best = min(best, (abs(miss), step))
            step = search.next(step, miss)
        return _Attempt(self, x, key, best[1], plan).payload()

    def _plan(self, part, key, rms, step, finest, size):
        """What a sample teaches: costs, shift and labels, and the step that would meet the target there."""
        best = None
        for labels in self._labels():
            plan, search = _Plan(labels=labels), _Bracket(self, finest)
            for turn in range(_LESSONS + _STEPS):
                attempt = _Attempt(self, part, key, step, plan, whole=size)
                miss = attempt.miss(rms)
                if turn >= _LESSONS and abs(miss) < _NEAR / 2:
                    break
                if turn < _LESSONS:
                    plan, search = attempt.learn(), _Bracket(self, finest)
                step = search.next(step, miss)
            merit = math.log2(max(attempt.error(rms), 1e-300)) + 2 * attempt.rate() + 10 * abs(miss)
            if best is None or merit < best[0]:
                best = merit, plan, attempt.step
        return best[1], best[2]

    def _guess(self, x, key, step):
        """A plan for a step that is given."""
        part, plan = _sample(x, self.context), _Plan(labels=0)
        for _ in range(_LESSONS):
            plan = _Attempt(self, part, key, step, plan, whole=x.size).learn()
        return plan

    # Decoding

    def _decode(self, message, key, out, weight, add):
        payload = message.payload
        if payload.size == 0:
            if not add:
                out[...] = 0
            return
        flags = int(payload[0])
        at = 1 if self.unbiased else 4
        width = 8 if flags & 2 else 4
        if payload.size < at + width:
            raise ValueError(f"coded levels: truncated, {payload.size} bytes")
        offsets = np.zeros(3) if self.unbiased else payload[1:4].view(np.int8) / 256
        (step,) = struct.unpack("<d" if width == 8 else "<f", payload[at : at + width].tobytes())
        if not 0 < step < math.inf:
            raise ValueError(f"coded levels: the step is {step}")
        shift = flags >> 2 & 15
        if shift > _MOST_SHIFT or (self.unbiased and flags & 1):
            raise ValueError("coded levels: no encoder sets these flags")
        code = self._code(flags & 1, shift, flags >> 6)
        kernels.of(payload).level_decode(
            payload[at + width :],
            code,
            message.size,
            key.word if self.unbiased else 0,
            step * self._sign(key),
            offsets,
            out,
            weight,
            add,
        )

    def _code(self, labels, shift, merged):
        return self._states, bool(labels), self.unbiased, 1 + merged if self.context else 0, shift

    def _sign(self, key):
        """With a random sign the error is symmetric (trellis codes need not be)."""
        return -1.0 if self.unbiased and self._states > 1 and key.fold(_SIGN).word & 1 else 1.0


class _Plan:
    """What is learned from a sample: how to weigh bits, where zero begins, how many low bits to leave out."""

    def __init__(self, labels=0, shift=0, costs=None, dead=0.6, rounding=0.4, offsets=(0.0, 0.0, 0.0)):
        self.labels, self.shift, self.costs = labels, shift, costs
        self.dead, self.rounding, self.offsets = dead, rounding, offsets


class _Attempt:
    """x at one step: levels, symbols and counts, and what they would cost."""

    def __init__(self, compressor, x, key, step, plan, whole=None, unseen=0.0):
        c = compressor
        measured = whole is not None or c.nmse is not None  # a sample teaches, and an error must be known
        self.c, self.x, self.key, self.plan = c, x, key, plan
        self.whole, self.unseen = whole or x.size, unseen
        self.wide = not 2.0**-100 < step < 2.0**100
        self.step = step if self.wide else float(np.float32(step))
        merged = 2 if c.unbiased else 0
        self.code = c._code(plan.labels, plan.shift, merged)
        k = kernels.of(x)
        self.inverse = c._sign(key) / self.step
        far = 1e6 if c.context else float(_shapes.LEVEL_LIMIT << plan.shift)
        costs = plan.costs
        if costs is None or c.unbiased:
            costs = np.zeros((_OCTAVES * 2, 8), np.float32)
            costs[:, 0], costs[:, 6], costs[:, 7] = 1, 1.5, 2
        models = k.level_model_count(self.code)
        self.symbol = np.empty(x.size, np.uint8)
        self.model = np.empty(x.size, np.uint8) if models > 1 else None
        self.extra = np.empty(x.size, np.uint16) if plan.shift or c.context else None
        self.counts = np.empty(models * 256, np.uint32)
        moments = np.empty(7) if measured else None
        self.escapes, *self.escaped = k.level_encode_symbols(
            x,
            self.code,
            self.inverse,
            far,
            key.word if c.unbiased else 0,
            costs.ravel(),
            plan.dead,
            plan.rounding,
            self.symbol,
            self.model,
            self.extra,
            self.counts,
            moments,
        )
        self.moments = moments.tolist() if measured else None

    def rate(self):
        """Bits a coordinate, of x as large as `whole`."""
        n, chunks = self.x.size, self.whole / _CHUNK
        low = float((self.extra >> 12).mean()) if self.extra is not None else 0.0
        lanes = 32 * max(chunks, 1) if self.whole >= 2**15 else max(1, self.whole / 1024)
        header = 64 + 32 * math.ceil(chunks) * (2 if self.escapes else 1) + 19.5 * lanes
        symbols, models = kernels.of(self.x).entropy_bits(self.counts)
        return (symbols + 24.0 * self.escapes) / n + low + (header + models) / self.whole + self.unseen

    def error(self, rms):
        """NMSE after the levels are moved to where the plan says."""
        total, *pairs = self.moments
        for (count, off), move in zip(zip(pairs[::2], pairs[1::2], strict=True), self.plan.offsets, strict=True):
            total += count * move * move - 2 * off * move
        return max(total, 0.0) * self.step**2 / (rms * rms * self.x.size)

    def miss(self, rms):
        """By how much, relatively, the bits or the error are above what was asked for."""
        if self.c.rate is not None:
            return self.rate() / self.c.rate - 1
        return self.error(rms) / self.c.nmse - 1

    def learn(self):
        """A better plan for this step."""
        old, k = self.plan, kernels.of(self.x)
        plan = _Plan(old.labels, old.shift)
        if not self.c.unbiased:
            _, *pairs = self.moments
            plan.offsets = tuple(
                min(max(round(256 * off / count) / 256, -0.49), 0.49) if count else 0.0
                for count, off in zip(pairs[::2], pairs[1::2], strict=True)
            )
            if self.c._states > 1:
                costs = np.empty((len(self.counts) // 256, 8), np.float32)
                k.level_costs(self.counts, _BIT, bool(self.c.context), bool(old.labels), costs.ravel())
                plan.costs = costs
            else:
                plan.dead, plan.rounding = _thresholds(self.counts)
        if not self.c.context:
            far = self.escapes / self.x.size
            wide = far > 0.002 or self._spread() > 100
            plan.shift = min(old.shift + 1, _MOST_SHIFT) if wide and self._spread() > 32 else old.shift
        return plan

    def _spread(self):
        """How many symbols share the vector, none of them rare: where many do, the lowest bit is as good as random."""
        return np.count_nonzero(self.counts.reshape(-1, 256).sum(0) > self.x.size / 1024)

    def payload(self):
        plan, code = self.plan, self.code
        flags = (1 if plan.labels else 0) | (2 if self.wide else 0) | plan.shift << 2 | (max(code[3] - 1, 0)) << 6
        head = bytes([flags])
        if not self.c.unbiased:
            head += np.array([round(256 * o) for o in plan.offsets], np.int8).tobytes()
        head += struct.pack("<d" if self.wide else "<f", self.step)
        return head + kernels.of(self.x).level_encode(
            code, self.symbol, self.model, self.extra, self.counts, *self.escaped
        )


def _thresholds(counts):
    """Dead zone and rounding of a uniform quantiser for a cost of ln 2 / 6 squared steps a bit: where the next level's
    error and bits together become the smaller sum."""
    c = counts.reshape(-1, 256).sum(0).astype(np.float64)
    near, zero = c[127] + c[129], c[128]
    if zero == 0 or near == 0:
        return 0.5, 0.5
    weight = math.log(2) / 6
    dead = 0.5 + weight / 2 * math.log2(max(2 * zero / near, 1.0))
    ups, downs = c[129:255], c[130:256]
    below, above = c[3:128][::-1], c[2:127][::-1]
    here, after = float(ups.sum() + below.sum()), float(downs.sum() + above.sum())
    slope = math.log2(here / after) if after > 0 else 4.0  # geometric tails: the same ratio at every level
    return dead, 0.5 - min(weight / 2 * slope, 0.3)


def _sample(x, contexts):
    """Rows of x from all over it: of 32 coordinates, or long runs where neighbours matter."""
    if x.size <= 2 * _SAMPLE:
        return x
    row = 1024 if contexts else 32
    rows = _SAMPLE // row
    first = (np.arange(rows) * ((x.size - row) / (rows - 1))).astype(np.int64)
    return np.ascontiguousarray(x[first[:, None] + np.arange(row)].ravel())


class _Bracket:
    """The next step to try: by the slope that rate or error have, and between the nearest on either side."""

    def __init__(self, compressor, finest):
        self.c, self.finest, self.fine, self.coarse = compressor, finest, 0.0, math.inf

    def next(self, step, miss):
        if (miss > 0) == (self.c.rate is not None):  # too many bits, or too small an error
            self.fine = max(self.fine, step)
        else:
            self.coarse = min(self.coarse, step)
        if self.c.rate is not None:
            # an octave of the step is a bit at high rates, and a factor of five or six of the bits at low ones
            octaves = max(self.c.rate * abs(miss), math.log2(1 + abs(miss)) / 2.5)
            guess = step * 2.0 ** math.copysign(min(octaves, 2.0), miss)
        else:
            guess = step * min(max((1 + miss) ** -0.5, 0.25), 4.0)
        if not self.fine < guess < self.coarse:
            guess = math.sqrt(self.fine * self.coarse)
        return max(guess, self.finest)


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
    before), `nmse` (||C(x) - x||^2 / ||x||^2, within 1%) and `step`.

    unbiased=False: x -> k step with a dead zone, thresholds and levels as rate and error together want them
    (Sullivan, IEEE Trans. Inf. Theory 42, 1996): near the bound at low rates, 1.42 x the bound at high ones.
    unbiased=True: subtractive dither, C(x) = step (round(x / step + u) - u) with u uniform on [0, 1) from the key, the
    worker's own. The error is uniform on [-step/2, step/2] whatever x is (Schuchman, IEEE Trans. Commun. Tech. 12,
    1964), so E C(x) = x and E||C(x) - x||^2 = d step^2 / 12; with `nmse` that is nmse ||x||^2, and omega = nmse is
    proven (to the 2^-24 of a step that u is drawn with). With
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

    context: ClassVar[int] = 0
    _states: ClassVar[int] = 1
    _unit: ClassVar[float] = 2.0  # its levels are the even ones

    def __post_init__(self):
        self._check()

    def _labels(self):
        return (0,)

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

    Exactly one of `bits` and `nmse`, as in UniformQuantizer. context=True: the models follow the magnitudes just coded,
    worth much on gradients, nothing on noise. rotate is Rotated(Trellis(...)).

    unbiased=True: subtractive dither. Let Q be the nearest path, without regard to bits, and u uniform on [0, 4)^d in
    steps, s a sign, both from the key: C(x) = s step (Q(s x / step + u) - u). The set of paths is unchanged when 4
    times any integer vector is added, so e(y) = Q(y) - y depends on y mod 4 alone, and y = s x / step + u is uniform
    there: e is independent of x and of s. Hence the error s step e has the same law for every x, is symmetric, and
    E C(x) = x.
    With G the second moment of the cells of Q, coding Q given u takes at most log2(2 pi e G) / 2 bits a coordinate more
    than the rate-distortion function of any x (Zamir, Feder, IEEE Trans. Inf. Theory 38, 1992).

    guarantee is "none", so omega and alpha are TypeErrors: the rate decides what is lost. ValueError for a norm
    below 1e-290 or above 1e290.

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
    unbiased: bool = False

    step: ClassVar[None] = None
    _unit: ClassVar[float] = 1.0

    def __post_init__(self):
        self._check()
        settle(self, "states", positive_int(self.states, "states"))
        if self.states not in (4, 8, 16, 32, 64, 256):
            raise ValueError(f"states must be 4, 8, 16, 32, 64 or 256, got {self.states}")
        if not isinstance(self.context, (bool, np.bool_)):
            raise TypeError(f"context must be True or False, got {self.context!r}")
        settle(self, "context", bool(self.context))

    @property
    def _states(self):
        return self.states

    def _labels(self):
        return (0,) if self.unbiased else (0, 1)

    @classmethod
    def examples(cls):
        if cls is not Trellis:
            return []
        return [cls(bits=2.0), cls(bits=0.5, states=4), cls(nmse=0.01, context=True), cls(bits=1.0, unbiased=True)]


class _TrellisBiased(Trellis, _Biased):
    pass


class _TrellisUnbiased(Trellis, _Subtractive):
    pass
