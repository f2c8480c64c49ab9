"""Compressor: what a compressor promises, and every check at the boundary.

A new compressor is one class. In a module of FAMILIES the catalogue takes it up, and with it the tests,
the golden files and the benchmark; anywhere else it works with Scaled, Rotated, Induced, ErrorFeedback and measure
just the same. All of it:

    @dataclass(frozen=True)
    class BernoulliSign(Unbiased):
        # a docstring: the law, the constant and its proof, an example that runs

        p: float                                             # checked in __post_init__

        def omega(self, d):
            return ...                                       # alpha(d) in a Contractive
        def bits(self, d, dtype=np.float32):
            return d + 32                                    # exact, or a bound and fixed_length = False

        def _encode(self, x, key, out):
            scale = check_finite(x)                          # max|x|; raises where x holds NaN or Inf
            payload = kernels.buffer(-(-self.bits(x.size) // 8), out, x)   # `out` of encode, or a new buffer like x
            random = np.random.Generator(np.random.Philox(key=key.word))   # or key.shared.word, or a kernel
            ...                                              # fill the payload
            return payload, self.bits(x.size)

        def _decode(self, message, key, out, weight, add):
            values = ...                                     # message.payload, .size, .dtype
            add_or_store(values, out, weight, add)           # out = values, or out += weight * values

`_encode` sees a non-empty, contiguous float32 or float64 vector and checks that it is finite in the pass that it makes
anyway. `_decode` sees a payload as long as bits(d) says if fixed_length, and otherwise checks the length itself;
weight is 1 unless add is True.
"""

from __future__ import annotations

import math
import reprlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from importlib import import_module
from typing import ClassVar, NamedTuple

import numpy as np

from . import kernels
from .key import Key

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Message(NamedTuple):
    """What leaves. Equal to another message where all four fields are, byte for byte.

    payload: uint8 vector, what a protocol with agreed configuration sends; the kind of array that was encoded.
    bits: its exact length before padding to a byte; payload.nbytes == ceil(bits / 8).
    size: d, the number of coordinates; dtype: what decode returns. Both are agreed out of band.
    """

    payload: np.ndarray
    bits: int
    size: int
    dtype: np.dtype

    def __eq__(self, other):
        if not isinstance(other, Message) or self[1:] != other[1:]:
            return False
        return np.array_equal(*(kernels.host(kernels.taken(m.payload, "payload")) for m in (self, other)))

    def __ne__(self, other):
        return not self == other

    __hash__ = None


class Compressor(ABC):
    """A map from vectors to bytes and back, described by frozen hyper-parameters.

    Use one of the two subclasses: `Unbiased` (E C(x) = x, has omega) or `Contractive` (has alpha).

    guarantee: how strong omega or alpha is: "proven" for every input, "high probability", or "none".
    fixed_length: whether bits(d) is the exact length of every message, or an upper bound.
    exact: whether the bytes are the same on every machine (False where a BLAS product is involved).
    """

    guarantee: ClassVar[str] = "proven"
    fixed_length: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    @abstractmethod
    def bits(self, d: int, dtype=np.float32) -> int:
        """Bits of a message of d coordinates of a dtype: exact where fixed_length, else an upper bound.

        dtype matters where values travel as they are: Identity, alone or inside another compressor.
        """

    def expected_bits(self, d: int, dtype=np.float32) -> int | None:
        """Bits that a message of d coordinates needs as a rule, bits(d) where fixed_length; None where nobody knows."""
        return self.bits(d, dtype) if self.fixed_length else None

    @abstractmethod
    def _encode(self, x: np.ndarray, key: Key, out: np.ndarray | None) -> tuple[np.ndarray, int]: ...

    @abstractmethod
    def _decode(self, message: Message, key: Key, out: np.ndarray, weight: float, add: bool) -> None: ...

    @classmethod
    def examples(cls) -> list[Compressor]:
        """Instances for the catalogue."""
        return [cls()]

    def encode(self, x, key: Key, out: np.ndarray | None = None) -> Message:
        """The message that carries x.

        x: vector of d float32 or float64 (float16 and bfloat16 are widened): NumPy's, CuPy's, or anything with
        DLPack, a torch tensor for one; the work is done where it lives, and the payload is of its kind.
        key: a Key, the same on both sides. out: uint8 buffer for the payload, at least ceil(bits(d) / 8) bytes.

        Raises TypeError for another element type; ValueError for another shape or layout, for NaN or Inf
        (with their count and the first index), and where a parameter does not suit d.
        """
        given = x
        x = kernels.vector(x)
        _check_key(key)
        if out is not None:
            out = kernels.taken(out, "out")
            kernels.together(x, out, ("x", "out"))
            if kernels.overlap(x, out):
                raise ValueError("out shares memory with x: the payload would overwrite what it is made from")
        if x.size == 0:
            return Message(kernels.given(kernels.buffer(0, out, x), given), 0, 0, x.dtype)
        payload, bits = self._encode(x, key, out)
        if payload.nbytes != -(-bits // 8):
            raise AssertionError(f"{name_of(self)} says {bits} bits and sends {payload.nbytes} bytes")
        return Message(kernels.given(payload, given), bits, x.size, x.dtype)

    def decode(self, message: Message, key: Key, out: np.ndarray | None = None) -> np.ndarray:
        """The vector a message stands for, in `out` where given (d elements, the message's dtype or wider), and
        otherwise in a new array of the payload's kind.

        Raises ValueError for a payload that no encoder writes; any other payload gives some vector.
        """
        given = message.payload if out is None and isinstance(message, Message) else out
        message = self._checked(message, key)
        result = kernels.output(out, message.size, message.dtype, message.payload)
        if message.size:
            self._decode(message, key, result, 1.0, False)
        shown = kernels.given(result, given)  # also where it is out's memory: its library then waits for the result
        return shown if out is None else out

    def decode_add(self, message: Message, key: Key, out: np.ndarray, weight: float = 1.0) -> np.ndarray:
        """out += weight * decode(message, key), without the vector in between where the family allows it."""
        message = self._checked(message, key)
        if out is None:
            raise TypeError("decode_add needs the vector it adds to")
        result = kernels.output(out, message.size, message.dtype, message.payload)
        weight = float(weight)
        if not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}")
        if message.size:
            self._decode(message, key, result, weight, True)
        kernels.given(result, out)
        return out

    def __call__(self, x, key: Key) -> np.ndarray:
        """What the other side sees: decode(encode(x)), through the bytes."""
        return self.decode(self.encode(x, key), key)

    def _checked(self, message: Message, key: Key) -> Message:
        _check_key(key)
        if not isinstance(message, Message):
            raise TypeError(f"message must be a compress.Message, got {type(message).__name__}")
        try:
            payload = kernels.taken(message.payload, "payload")
        except TypeError as error:
            raise TypeError(f"payload must be a uint8 vector: {error}") from None
        if payload.dtype != np.uint8 or payload.ndim != 1:
            raise TypeError("payload must be a uint8 vector")
        if not payload.flags.c_contiguous:
            raise ValueError("payload must be contiguous")
        if message.size < 0:
            raise ValueError(f"message size must not be negative, got {message.size}")
        if message.dtype not in _DTYPES:
            raise ValueError(f"message dtype must be float32 or float64, got {message.dtype}")
        if message.size and self.fixed_length:
            expected = -(-self.bits(message.size, message.dtype) // 8)
        else:
            expected = payload.size if message.size else 0
        if payload.size != expected:
            raise ValueError(
                f"{name_of(self)}: payload has {payload.size} bytes, a message of {message.size} "
                f"coordinates has {expected}"
            )
        return message if payload is message.payload else message._replace(payload=payload)


class Unbiased(Compressor):
    """E C(x) = x and E ||C(x) - x||^2 <= omega(d) ||x||^2 for every x of d coordinates."""

    @abstractmethod
    def omega(self, d: int) -> float: ...


class Contractive(Compressor):
    """E ||C(x) - x||^2 <= alpha(d) ||x||^2 with alpha <= 1; biased in general. delta = 1 - alpha."""

    @abstractmethod
    def alpha(self, d: int) -> float: ...


class Carrier:
    """Shared by compressors that send a message of another one, `inner`, as it is."""

    @property
    def fixed_length(self):
        return self.inner.fixed_length

    @property
    def guarantee(self):
        return self.inner.guarantee

    @property
    def exact(self):
        return self.inner.exact

    def bits(self, d: int, dtype=np.float32) -> int:
        """Those of `inner`: nothing is added."""
        return self.inner.bits(d, dtype)

    def expected_bits(self, d: int, dtype=np.float32) -> int | None:
        return self.inner.expected_bits(d, dtype)


@dataclass(frozen=True)
class Identity(Unbiased):
    """C(x) = x, bit for bit: 32 bits a coordinate for float32, 64 for float64. omega = 0.

    >>> import numpy as np
    >>> Identity()(np.array([0.1, -2.5]), Key(0))
    array([ 0.1, -2.5])
    """

    def omega(self, d: int) -> float:
        return 0.0

    def bits(self, d: int, dtype=np.float32) -> int:
        """32 d for float32, 64 d for float64."""
        return 8 * np.dtype(dtype).itemsize * d

    def _encode(self, x, key, out):
        check_finite(x)
        payload = kernels.buffer(x.nbytes, out, x)
        payload[...] = x.view(np.uint8)
        return payload, 8 * x.nbytes

    def _decode(self, message, key, out, weight, add):
        add_or_store(kernels.values_of(message.payload, message.dtype), out, weight, add)


def add_or_store(values, out, weight: float, add: bool) -> None:
    """out = values, or out += weight * values in out's dtype."""
    if isinstance(out, np.ndarray) and not (
        type(values) is np.ndarray
        and values.dtype in (np.float32, np.float64)
        and values.flags.c_contiguous
        and values.shape == out.shape
    ):
        values = np.array(np.broadcast_to(values, out.shape), out.dtype)
    kernels.of(out).add_or_store(values, out, weight, add)


def check_finite(x) -> float:
    """max |x|; ValueError with the count and the first index of NaN and Inf."""
    k = kernels.of(x)
    largest = k.max_abs(x)
    if not math.isfinite(largest):
        refuse_nonfinite(x)
    return largest


def refuse_nonfinite(x: np.ndarray) -> None:
    """ValueError where x holds NaN or Inf; returns where it does not."""
    count, first = kernels.of(x).count_nonfinite(x)
    if count:
        raise ValueError(
            f"x has {count} NaN or Inf among {x.size} elements, the first at index {first}: {float(x[first])}"
        )


def wire_bytes(wire: str) -> int:
    """Bytes of a value or scale on the wire; checks the parameter."""
    if wire not in ("float32", "float64"):
        raise ValueError(f"wire must be 'float32' or 'float64', got {wire!r}")
    return 4 if wire == "float32" else 8


def settle(compressor: Compressor, name: str, value) -> None:
    """Give a frozen parameter its checked value: plain Python numbers, whatever the caller had."""
    object.__setattr__(compressor, name, value)


def positive_int(value, name: str, least: int = 1, most: int | None = None) -> int:
    """value as an int in [least, most]; TypeError or ValueError that names the parameter."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {reprlib.repr(value)}")
    if value < least or (most is not None and value > most):
        bound = f"at least {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be {bound}, got {value}")
    return int(value)


def finite_number(value, name: str) -> float:
    """value as a finite float; TypeError or ValueError that names the parameter."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def rate_keyword(cls):
    """Let `bits=` stand for the field `rate`: an attribute called bits would hide the method."""
    made = cls.__init__

    def __init__(self, *args, bits=None, **named):
        if bits is not None:
            if args or named.get("rate") is not None:
                raise TypeError("give the bits once")
            named["rate"] = bits
        made(self, *args, **named)

    cls.__init__ = __init__
    return cls


def _check_key(key) -> None:
    if not isinstance(key, Key):
        raise TypeError(f"key must be a compress.Key, got {type(key).__name__}")


def _leaves(cls=Compressor):
    """Every concrete compressor class, in order of definition."""
    for sub in cls.__subclasses__():
        if not getattr(sub, "__abstractmethods__", None) and sub.__module__.startswith(__package__ + "."):
            yield sub
        yield from _leaves(sub)


# The modules that hold compressors, in the order of the catalogue.
FAMILIES = ("sparsify", "chunk", "quantize", "combine", "eden", "kashin", "rotate", "trellis", "lowrank")


def classes() -> dict[str, type[Compressor]]:
    """The compressors of the package by name."""
    for module in FAMILIES:  # they import this one, and the package imports them when they are asked for
        import_module(f".{module}", __package__)
    public = [cls for cls in _leaves() if not cls.__name__.startswith("_")]
    public.sort(key=_rank)  # whichever module was imported first
    return {cls.__name__: cls for cls in public}


def _rank(cls) -> tuple[bool, int]:
    module = cls.__module__.rpartition(".")[2]
    return issubclass(cls, Contractive), FAMILIES.index(module) if module in FAMILIES else -1


def public_class(compressor: Compressor) -> type[Compressor]:
    """The class of a compressor, without the private ones that Rotated makes."""
    return next(cls for cls in type(compressor).__mro__ if not cls.__name__.startswith("_"))


def name_of(compressor: Compressor) -> str:
    """The public name of a compressor's class, the key of classes()."""
    return public_class(compressor).__name__


def catalogue() -> list[Compressor]:
    """An instance of every compressor: what the tests, the golden files and the benchmark run over."""
    return [instance for cls in classes().values() for instance in cls.examples()]


def parameters(compressor: Compressor) -> dict:
    """The hyper-parameters of a compressor as plain data; nested compressors become {name: parameters}."""
    plain = {}
    for field in fields(compressor):
        value = getattr(compressor, field.name)
        if isinstance(value, Compressor):
            value = {name_of(value): parameters(value)}
        elif isinstance(value, tuple):
            value = list(value)
        plain[field.name] = value
    return plain


def build(name: str, plain: dict) -> Compressor:
    """The inverse of parameters(): ValueError for a name or a parameter the package does not know."""
    known = classes()
    if name not in known:
        raise ValueError(f"unknown compressor {name!r}; known: {', '.join(known)}")
    if not isinstance(plain, dict):
        raise ValueError(f"parameters of {name} must be a table, got {plain!r}")
    arguments = {}
    for field, value in plain.items():
        if isinstance(value, dict):
            if len(value) != 1:
                raise ValueError(f"{name}.{field}: expected one compressor, got {value!r}")
            value = build(*next(iter(value.items())))
        elif isinstance(value, list):
            value = tuple(value)
        arguments[field] = value
    try:
        return known[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None
