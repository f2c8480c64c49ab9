"""Compressors made of compressors, and error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import kernels
from .compressor import Carrier, Compressor, Contractive, Identity, Message, Unbiased, add_or_store
from .key import Key
from .quantize import NaturalCompression, ScaledSign, StandardDithering
from .sparsify import RandK, Sparsifier, TopK

_FIRST, _SECOND = 1, 2


def _must_be(value, kind: type, name: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {value!r}")


@dataclass(frozen=True)
class Scaled(Carrier, Contractive):
    """C(x) = C_inner(x) / (1 + omega), for an unbiased inner: the same bytes, the least error they allow.

    alpha = omega / (1 + omega): with s = 1/(1+omega), E ||s C(x) - x||^2 <= s^2 omega ||x||^2 + (1-s)^2 ||x||^2.
    Safaryan, Shulgin, Richtarik, arXiv 2002.08958, sec. 2.

    >>> import compress
    >>> Scaled(compress.RandK(1)).alpha(4)
    0.75
    """

    inner: Unbiased

    def __post_init__(self):
        _must_be(self.inner, Unbiased, "inner")

    def alpha(self, d: int) -> float:
        omega = self.inner.omega(d)
        return omega / (1 + omega)

    def _encode(self, x, key, out):
        return self.inner._encode(x, key, out)

    def _decode(self, message, key, out, weight, add):
        if not add:
            out.fill(0)
        self.inner._decode(message, key, out, weight / (1 + self.inner.omega(message.size)), True)

    @classmethod
    def examples(cls):
        return [cls(RandK(0.1)), cls(StandardDithering(1))]


def contractive(compressor: Compressor) -> Compressor:
    """What error feedback takes in a compressor's place: an unbiased one as Scaled(it), but for Identity."""
    return compressor if isinstance(compressor, (Contractive, Identity)) else Scaled(compressor)


@dataclass(frozen=True)
class Induced(Unbiased):
    """C(x) = B(x) + U(x - B(x)): an unbiased compressor made of a contractive B and an unbiased U on the rest.

    omega = alpha_B omega_U: E ||C(x) - x||^2 <= omega_U E ||x - B(x)||^2. Horvath, Richtarik, "A better alternative
    to error feedback", ICLR 2021, theorem 3. The message is B's, then U's; where the length of B's varies, 32 bits in
    front say how many bytes it has.

    >>> import compress
    >>> Induced(compress.TopK(1), compress.RandK(2)).omega(4)
    0.75
    """

    biased: Contractive
    unbiased: Unbiased

    def __post_init__(self):
        _must_be(self.biased, Contractive, "biased")
        _must_be(self.unbiased, Unbiased, "unbiased")

    @property
    def fixed_length(self):
        return self.biased.fixed_length and self.unbiased.fixed_length

    @property
    def exact(self):
        return self.biased.exact and self.unbiased.exact

    @property
    def guarantee(self):
        return max(self.biased.guarantee, self.unbiased.guarantee, key=("proven", "high probability", "none").index)

    def _start(self) -> int:
        """Bytes in front of the first part."""
        return 0 if self.biased.fixed_length else 4

    def omega(self, d: int) -> float:
        return self.biased.alpha(d) * self.unbiased.omega(d)

    def bits(self, d: int, dtype=np.float32) -> int:
        """B's bits rounded up to a byte, U's bits, and 32 for the length of B's where that varies."""
        if d == 0:
            return 0
        return 8 * self._start() + -(-self.biased.bits(d, dtype) // 8) * 8 + self.unbiased.bits(d, dtype)

    def _encode(self, x, key, out):
        first = self.biased.encode(x, key.fold(_FIRST))
        rest = x.copy()
        kernels.negate(rest)
        self.biased.decode_add(first, key.fold(_FIRST), rest)
        kernels.negate(rest)
        second = self.unbiased.encode(rest, key.fold(_SECOND))
        start = self._start()
        split = start + first.payload.nbytes
        payload = kernels.buffer(split + second.payload.nbytes, out, x)
        if start:
            kernels.store(payload[:start], first.payload.nbytes.to_bytes(start, "little"))
        payload[start:split] = first.payload
        payload[split:] = second.payload
        return payload, 8 * split + second.bits

    def _decode(self, message, key, out, weight, add):
        payload, start = message.payload, self._start()
        if payload.size < start:
            raise ValueError(f"Induced: payload of {payload.size} bytes has no length in front")
        if self.biased.fixed_length:
            length = -(-self.biased.bits(message.size, message.dtype) // 8)
        else:
            length = int.from_bytes(kernels.host(payload[:start]).tobytes(), "little")
        split = start + length
        if split > payload.size:
            raise ValueError(f"Induced: first part of {length} bytes in a payload of {payload.size}")
        if not add:
            out.fill(0)
        for part, bytes_, word in (
            (self.biased, payload[start:split], _FIRST),
            (self.unbiased, payload[split:], _SECOND),
        ):
            part.decode_add(message._replace(payload=bytes_), key.fold(word), out, weight)

    @classmethod
    def examples(cls):
        return [cls(TopK(0.05), RandK(0.1)), cls(ScaledSign(), StandardDithering(1))]


@dataclass(frozen=True)
class Composed(Unbiased):
    """C(x) = C_then on the values that a sparsifier keeps: k values in C_then's bits, indices from the key.

    omega = (1 + omega_first)(1 + omega_then) - 1, both unbiased and independent: E ||C(x)||^2 <= (1+omega_then)
    E ||C_first(x)||^2. Safaryan, Shulgin, Richtarik, arXiv 2002.08958, sec. 2 (composition). omega_then is the larger
    one where the number of values may differ by one (PermK).

    TypeError for Bernoulli, whose number of values may be anything: omega_then would have no bound. ValueError for a
    `first` with a `wire` of its own: the values travel in C_then's format. ValueError where x is so large that a
    decoded value could leave the range of its type.

    >>> import compress
    >>> C = Composed(compress.RandK(0.25), compress.NaturalCompression())
    >>> C.omega(100), C.bits(100) < compress.RandK(0.25).bits(100)
    (3.5, True)
    """

    first: Sparsifier
    then: Unbiased

    def __post_init__(self):
        _must_be(self.first, Sparsifier, "first")
        _must_be(self.then, Unbiased, "then")
        if self.first.counts(1) is None:
            raise TypeError(f"first must keep a number of values that d determines, {self.first!r} does not")
        if self.first.wire != "float32":
            raise ValueError(f"first has wire={self.first.wire!r}, but its values travel as {self.then!r} sends them")

    @property
    def fixed_length(self):
        return self.first.fixed_length and self.then.fixed_length

    @property
    def guarantee(self):
        return self.then.guarantee

    @property
    def exact(self):
        return self.then.exact

    def omega(self, d: int) -> float:
        return (1 + self.first.omega(d)) * (1 + max(map(self.then.omega, self.first.counts(d)))) - 1

    def bits(self, d: int, dtype=np.float32) -> int:
        """C_then's for as many values as the sparsifier keeps."""
        return max(self.then.bits(count, dtype) for count in self.first.counts(d))

    def _encode(self, x, key, out):
        values, scale = self.first.values(x, key.fold(_FIRST)), self.first.scale(x.size)
        largest = kernels.of(values).max_abs(values)
        if largest * scale * max(2, values.size) > float(np.finfo(x.dtype).max):
            raise ValueError(f"max|x| = {largest:g} is too large: {values.size} values times {scale:g} leave {x.dtype}")
        message = self.then.encode(values, key.fold(_SECOND), out)
        return message.payload, message.bits

    def _decode(self, message, key, out, weight, add):
        first = key.fold(_FIRST)
        inner = message._replace(size=self.first.count(message.size, first))
        values = self.then.decode(inner, key.fold(_SECOND))
        if not add:
            out.fill(0)
        self.first.scatter_add(values, first, out, weight)

    @classmethod
    def examples(cls):
        return [cls(RandK(0.1), NaturalCompression()), cls(RandK(0.25), StandardDithering(7))]


class ErrorFeedbackState(NamedTuple):
    """What the messages so far have left out."""

    error: np.ndarray


@dataclass(frozen=True)
class ErrorFeedback:
    """Error feedback: compress x plus what earlier messages left out, and keep what this one leaves out.

    Not a compressor: its state is explicit, one for each worker. Decode with the compressor itself, which must be
    contractive; an unbiased one is after `Scaled`.
    Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", NeurIPS 2018; Karimireddy et al., ICML 2019.

    >>> import numpy as np, compress
    >>> feedback, key = ErrorFeedback(compress.TopK(1)), compress.Key(0)
    >>> state = feedback.init(3)
    >>> message, state = feedback.encode(state, np.float32([3, 2, 1]), key)
    >>> state.error.tolist()
    [0.0, 2.0, 1.0]
    >>> message, state = feedback.encode(state, np.float32([3, 2, 1]), key)
    >>> feedback.compressor.decode(message, key).tolist()
    [0.0, 4.0, 0.0]
    """

    compressor: Contractive

    def __post_init__(self):
        if isinstance(self.compressor, Unbiased):
            raise TypeError(f"{self.compressor!r} is not contractive, its errors would grow: use Scaled(it)")
        _must_be(self.compressor, Contractive, "compressor")

    def init(self, d: int | None = None, dtype=np.float32, like=None) -> ErrorFeedbackState:
        """Nothing left out yet, of NumPy vectors of d coordinates, or of vectors like `like`, wherever that lives."""
        if like is None:
            if d is None:
                raise TypeError("give d, or like=x")
            return ErrorFeedbackState(np.zeros(d, dtype))
        x = kernels.vector(like, "like")
        if d is not None and d != x.size:
            raise ValueError(f"d = {d}, but like has {x.size} coordinates")
        return ErrorFeedbackState(kernels.given(kernels.zeros(x, x.size), like))

    def encode(self, state: ErrorFeedbackState, x, key: Key) -> tuple[Message, ErrorFeedbackState]:
        """The message for x + state.error, and the state after it; `state` itself is not changed."""
        given, x, left = x, kernels.vector(x), kernels.vector(state.error, "state.error")
        kernels.together(x, left, ("x", "state.error"))
        if left.shape != x.shape:
            raise ValueError(f"the state has {left.size} coordinates, x has {x.size}")
        error = x.copy()
        add_or_store(left, error, 1.0, True)
        message = self.compressor.encode(error, key)
        self.compressor.decode_add(message, key, error, -1.0)
        message = message._replace(payload=kernels.given(message.payload, given))
        return message, ErrorFeedbackState(kernels.given(error, given))
