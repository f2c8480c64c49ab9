"""Which kernels serve an array, and how a Python object becomes a vector they take.

The kernel contract
-------------------
`of(array)` is a module of functions with the same names and signatures on every backend. They take
C-contiguous vectors on that backend and write into buffers the caller made. They check element types, lengths
and bytes that came over a wire; values are checked here and in `compressor.py`, once. A buffer must not change
while a kernel runs: the GIL is released.
"""

from __future__ import annotations

import numpy as np

from ._cpu import instruction_set
from ._cpu import kernels as _cpu

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def of(array):
    """The module of kernels for the backend that `array` lives on."""
    return _cpu


def backends() -> dict[str, str]:
    """What can be used here, and why not.

    >>> sorted(backends())
    ['cpu', 'gpu']
    """
    return {"cpu": f"available: {instruction_set} kernels", "gpu": "unavailable: this version has CPU kernels only"}


def asarray(x, backend: str = "cpu"):
    """x as a vector on a backend. Data moves only here.

    Raises ValueError where the backend is not known, RuntimeError with the reason where it cannot be used.
    """
    if backend not in (known := backends()):
        raise ValueError(f"backend={backend!r}: known are {', '.join(sorted(known))}")
    if not known[backend].startswith("available"):
        raise RuntimeError(f"backend {backend!r} is {known[backend]}")
    return vector(np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x)


def vector(x, name: str = "x") -> np.ndarray:
    """x as a C-contiguous float32 or float64 vector; without a copy where it is one already.

    float16 and bfloat16 are widened. Anything with DLPack is taken. TypeError for another element type,
    ValueError for another shape or layout: a copy behind the caller's back would cost more than the kernel.
    """
    if type(x) is np.ndarray and x.ndim == 1 and (x.dtype is _FLOAT32 or x.dtype is _FLOAT64):
        flags = x.flags
        if flags.c_contiguous and flags.aligned:
            return x
    elif not isinstance(x, np.ndarray):
        if not hasattr(x, "__dlpack__"):
            raise TypeError(f"{name} must be an array, got {type(x).__name__}")
        x = np.from_dlpack(x)
    if x.dtype.name in ("float16", "bfloat16"):
        x = x.astype(_FLOAT32)
    if x.dtype not in (_FLOAT32, _FLOAT64) or not x.dtype.isnative:
        raise TypeError(f"{name} must be float32 or float64 (float16 and bfloat16 are widened), got {x.dtype}")
    if x.ndim != 1:
        raise ValueError(f"{name} must be a vector, got shape {x.shape}; pass {name}.ravel()")
    if not x.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous, got strides {x.strides}; pass np.ascontiguousarray({name})")
    return np.require(np.asarray(x), requirements="A")


def output(out, size: int, dtype) -> np.ndarray:
    """A vector to decode into: `out` checked, or a new one of the message's dtype."""
    if out is None:
        return np.empty(size, dtype)
    if not isinstance(out, np.ndarray) or vector(out, "out") is not out:
        raise TypeError(f"out must be an aligned float32 or float64 NumPy vector, got {type(out).__name__}")
    if out.size != size:
        raise ValueError(f"out has {out.size} elements, the message {size}")
    if out.itemsize < np.dtype(dtype).itemsize:
        raise TypeError(f"out is {out.dtype}, narrower than the message's {np.dtype(dtype)}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    return out


def buffer(nbytes: int, out=None) -> np.ndarray:
    """nbytes of payload: a view of `out` (uint8) where given, so that a loop reuses its memory."""
    if out is None:
        return np.empty(nbytes, np.uint8)
    if not isinstance(out, np.ndarray) or out.dtype != np.uint8 or out.ndim != 1 or not out.flags.c_contiguous:
        raise TypeError("out must be a contiguous uint8 vector")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    if out.size < nbytes:
        raise ValueError(f"out holds {out.size} bytes, the payload needs {nbytes}")
    return out[:nbytes]
