"""Kernels and compressors on another backend behind the face they have on NumPy arrays, so that one test serves all.

cpu: NumPy arrays. grid: the .cu files on the host (cuda_on_cpu). gpu: CuPy arrays on a device, where there is one.
"""

import importlib
import inspect

import numpy as np
import pytest

from compress._cpu import kernels as host
from compress._gpu import device
from compress.compressor import Message

NAMES = ("cpu", "grid", "gpu")


def use(name: str) -> None:
    """Make grid's CuPy, or the real one, what compress takes for CuPy; skips where there is no GPU."""
    if name == "grid":
        device._cupy = importlib.import_module("cuda_on_cpu.cupy_on_cpu")
        return
    device._cupy = None
    if not (status := device.status()).startswith("available"):
        pytest.skip(f"no GPU: {status}")


def moved(value, seen: list):
    """value with NumPy arrays on the device: at an address as little aligned, and where two overlap in one memory."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or not value.dtype.isnative:
        return value
    if not value.flags.c_contiguous:
        whole = device.cupy().asarray(np.repeat(value.ravel(), 2))  # as little contiguous as value is
        return whole[::2]
    data = value.reshape(-1).view(np.uint8)
    for other, copy in seen:
        if np.may_share_memory(other, data):
            start = data.ctypes.data - other.ctypes.data
            assert 0 <= start <= other.size - data.size, "give the larger one first"
            return copy[start : start + data.size].view(value.dtype).reshape(value.shape)
    skip = data.ctypes.data % 16
    copy = device.cupy().asarray(np.concatenate([np.zeros(skip, np.uint8), data]))[skip:]
    seen.append((data, copy))
    return copy.view(value.dtype).reshape(value.shape)


def fetched(seen: list) -> None:
    """What the device wrote, back in the NumPy arrays."""
    for data, copy in seen:
        if data.flags.writeable:
            data[...] = copy.get()
        else:
            np.testing.assert_array_equal(data, copy.get(), "what must not be written was")


class Kernels:
    """compress._gpu.kernels with NumPy arrays in and out."""

    def __init__(self, name):
        use(name)
        self.name = name
        self._module = importlib.import_module("compress._gpu.kernels")

    def __getattr__(self, name):
        function = getattr(self._module, name)
        if not callable(function) or inspect.isclass(function) or function is getattr(host, name, None):
            return function

        def call(*arguments, **named):
            seen = []
            given = [moved(a, seen) for a in arguments]
            result = function(*given, **{k: moved(v, seen) for k, v in named.items()})
            if isinstance(result, device.Status):
                result = int(result)
            if isinstance(result, tuple):
                result = tuple(r.get() if device.is_array(r) else r for r in result)
            if device.is_array(result):
                result = result.get()
            fetched(seen)
            return result

        return call


class OnDevice:
    """A compressor whose arrays live on the device, with NumPy arrays in and out."""

    def __init__(self, plain):
        self.plain = plain

    __class__ = property(lambda self: type(self.plain))

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def __repr__(self):
        return repr(self.plain)

    def __eq__(self, other):
        return self.plain == getattr(other, "plain", other)

    def encode(self, x, key, out=None):
        seen = []
        room = moved(out, seen) if out is not None else None
        message = self.plain.encode(moved(x, seen), key, room)
        fetched(seen)
        payload = message.payload if isinstance(message.payload, np.ndarray) else message.payload.get()
        if out is not None:
            payload = out[: payload.size]
        return message._replace(payload=payload)

    def _decode(self, decode, message, out, *arguments):
        seen = []
        target = moved(out, seen) if out is not None else None
        if isinstance(message, Message):
            message = message._replace(payload=moved(message.payload, seen))
        result = decode(message, *arguments[:1], target, *arguments[1:])
        fetched(seen)
        return out if out is not None else result.get() if device.is_array(result) else result

    def decode(self, message, key, out=None):
        return self._decode(self.plain.decode, message, out, key)

    def decode_add(self, message, key, out, weight=1.0):
        return self._decode(self.plain.decode_add, message, out, key, weight)

    def __call__(self, x, key):
        return self.decode(self.encode(x, key), key)


class Backend:
    """One of NAMES: backend(C) is C with its work there."""

    def __init__(self, name):
        self.name = name
        if name != "cpu":
            use(name)

    def __call__(self, C):
        return C if self.name == "cpu" else OnDevice(C)


def same_on_the_grid(reduce, comm, rows, key) -> None:
    """Two rounds of a reduction on the grid have the bits that they have on NumPy's arrays."""
    state, there = reduce.init(comm, like=rows[0]), None
    use("grid")
    grid = device.cupy()
    try:
        for t in range(2):
            mean, state = reduce.mean(comm, state, rows, key.at(t))
            moved = [grid.asarray(row.copy()) for row in rows]
            there = reduce.init(comm, like=moved[0]) if there is None else there
            other, there = reduce.mean(comm, there, moved, key.at(t))
            assert isinstance(other, grid.ndarray) and other.get().tobytes() == mean.tobytes()
    finally:
        device._cupy = None
