"""Kernels and compressors on another backend behind the face they have on NumPy arrays, so that one test serves all.

cpu: NumPy arrays. grid: the .cu files on the host (cuda_on_cpu). gpu: CuPy arrays on a device, where there is one.
"""

import importlib
import inspect

import numpy as np
import pytest

import compress
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


class Kernels:
    """compress._gpu with NumPy arrays in and out."""

    def __init__(self, name):
        use(name)
        self._module = importlib.import_module("compress._gpu")

    def __getattr__(self, name):
        function = getattr(self._module, name)
        if not callable(function) or inspect.isclass(function):
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
