"""Which kernels serve an array, and how a Python object becomes a vector they take.

The kernel contract
-------------------
`of(array)` is a module of functions with the same names and signatures on every backend. They take
C-contiguous vectors on that backend and write into buffers the caller made. They check element types, lengths
and bytes that came over a wire; values are checked here and in `compressor.py`, once. A buffer must not change
while a kernel runs: the GIL is released, and a GPU works after the call has returned. A GPU kernel runs on CuPy's
current stream; an integer that it returns may be one that waits for the device when it is looked at.
"""

from __future__ import annotations

import sys

import numpy as np

from ._cpu import instruction_set
from ._cpu import kernels as _cpu
from ._gpu import device as _device

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_DLPACK_CPU, _DLPACK_CUDA = (1, 3), (2, 13)  # pinned host memory counts as the host's, managed memory as the device's


def of(array):
    """The module of kernels for the backend that `array` lives on."""
    if type(array) is not np.ndarray and _device.is_array(array):
        from ._gpu import kernels

        return kernels
    if not isinstance(array, np.ndarray):
        raise TypeError(f"kernels take NumPy or CuPy arrays, got {type(array).__name__}: see compress.kernels.vector")
    return _cpu


def backends() -> dict[str, str]:
    """What can be used here, and why not.

    >>> sorted(backends())
    ['cpu', 'gpu']
    """
    return {"cpu": f"available: {instruction_set} kernels", "gpu": _device.status()}


def asarray(x, backend: str = "cpu"):
    """x as a vector on a backend: NumPy's on "cpu", CuPy's on "gpu". Data moves only here, and only if it has to.

    Raises ValueError where the backend is not known, RuntimeError with the reason where it cannot be used.
    """
    if backend not in ("cpu", "gpu"):
        raise ValueError(f"backend must be 'cpu' or 'gpu', got {backend!r}")
    if backend == "gpu" and not (status := _device.status()).startswith("available"):
        raise RuntimeError(f"backend {backend!r} is {status}")
    if isinstance(x, np.ndarray):
        x = np.ascontiguousarray(x)
    elif _device.is_array(x) and x.ndim == 1 and not x.flags.c_contiguous:
        x = x.copy()
    x = vector(x)
    return host(x) if backend == "cpu" else on_device(x)


# Kinds of arrays


def taken(x, name: str = "x"):
    """x as the NumPy or CuPy array that shares its memory: that itself, or anything with DLPack."""
    if isinstance(x, np.ndarray) or _device.is_array(x):
        return x
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"{name} must be an array, got {type(x).__name__}")
    if getattr(x, "requires_grad", False):
        raise TypeError(f"{name} requires a gradient: pass {name}.detach()")
    try:
        where = x.__dlpack_device__()[0]
        if where in _DLPACK_CPU:
            return np.from_dlpack(x)
        if where in _DLPACK_CUDA:
            return _device.cupy().from_dlpack(x)
    except (RuntimeError, BufferError, ValueError) as error:
        kind = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"{name} ({kind}) does not give its memory by DLPack: {error}") from None
    raise TypeError(f"{name} lives on a device of DLPack type {int(where)}: neither the host's memory nor CUDA's")


def given(array, x):
    """A NumPy or CuPy array as the kind of array that x is, without a copy; itself where x's library takes none.

    Exporting from CuPy also makes the other library's current stream wait for what CuPy's is doing.
    """
    if isinstance(x, np.ndarray) or _device.is_array(x):
        return array
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__().from_dlpack(array)
    for cls in type(x).__mro__:
        library = sys.modules.get(cls.__module__.partition(".")[0])
        if hasattr(library, "from_dlpack"):
            return library.from_dlpack(array)
    return array


def empty(x, n: int, dtype):
    """n elements without values on the backend of x, or NumPy's where that is None."""
    if type(x) is np.ndarray or x is None:
        return np.empty(n, dtype)
    return _device.empty(n, dtype) if _device.is_array(taken(x)) else np.empty(n, dtype)


def zeros(x, n: int):
    """n zeros of the dtype and on the backend of x."""
    found = empty(x, n, x.dtype)
    found.fill(0)
    return found


def host(array) -> np.ndarray:
    """The array in host memory; waits for the device where it has to come from there."""
    return _device.read(array) if _device.is_array(array) else array


def like(x, array):
    """A host or device array on the backend of x."""
    return on_device(array) if _device.is_array(x) else host(array)


def on_device(array):
    """The array in the current GPU's memory."""
    return array if _device.is_array(array) else _device.to_device(array)


def store(section, data) -> None:
    """section = data, for bytes or uint8 arrays that may be the host's."""
    if not isinstance(data, np.ndarray) and not _device.is_array(data):
        data = np.frombuffer(data, np.uint8)
    section[...] = like(section, data)


def values_of(payload, dtype):
    """The bytes of a payload as numbers: a view, or a copy where they start at an odd address."""
    values = payload.view(dtype)
    if isinstance(values, np.ndarray):
        return values if values.flags.aligned else payload.copy().view(dtype)
    return values if values.data.ptr % values.itemsize == 0 else payload.copy().view(dtype)


def negate(x) -> None:
    """x = -x, by the bit of the sign: no arithmetic that could flush a denormal."""
    bits = x.view(np.uint32 if x.itemsize == 4 else np.uint64)
    bits ^= bits.dtype.type(1 << (8 * x.itemsize - 1))


def overlap(x, y) -> bool:
    """Whether two contiguous arrays of one backend may share memory."""
    if isinstance(x, np.ndarray):
        return np.may_share_memory(x, y)
    return x.data.ptr < y.data.ptr + y.nbytes and y.data.ptr < x.data.ptr + x.nbytes


def together(x, y, names: tuple[str, str]) -> None:
    """TypeError unless x and y live on one backend, ValueError where that is two GPUs."""
    if type(x) is np.ndarray and type(y) is np.ndarray:
        return
    on_gpu = [_device.is_array(a) for a in (x, y)]
    if on_gpu[0] != on_gpu[1]:
        kinds = ["CuPy" if gpu else "NumPy" for gpu in on_gpu]
        raise TypeError(
            f"mixed backends: {names[0]} is a {kinds[0]} array, {names[1]} a {kinds[1]} one; asarray moves data"
        )
    if on_gpu[0] and x.device.id != y.device.id:
        raise ValueError(f"{names[0]} lives on GPU {x.device.id}, {names[1]} on GPU {y.device.id}: they must share one")


# Checks at the boundary


def vector(x, name: str = "x"):
    """x as a C-contiguous float32 or float64 vector; without a copy where it is one already.

    float16 and bfloat16 are widened. Anything with DLPack is taken. TypeError for another element type,
    ValueError for another shape or layout: a copy behind the caller's back would cost more than the kernel.
    """
    if type(x) is np.ndarray and x.ndim == 1 and (x.dtype is _FLOAT32 or x.dtype is _FLOAT64):
        flags = x.flags
        if flags.c_contiguous and flags.aligned:
            return x
    elif _device.is_array(x) and x.dtype in (_FLOAT32, _FLOAT64) and x.ndim == 1 and x.flags.c_contiguous:
        if x.data.ptr % x.itemsize == 0:
            return x
    given, x = x, _widened(x, name)
    if x.dtype not in (_FLOAT32, _FLOAT64) or not x.dtype.isnative:
        raise TypeError(f"{name} must be float32 or float64 (float16 and bfloat16 are widened), got {x.dtype}")
    if x.ndim != 1:
        raise ValueError(f"{name} must be a vector, got shape {x.shape}; pass {name}.ravel()")
    if not x.flags.c_contiguous:
        library = "np" if isinstance(x, np.ndarray) else "cupy"
        way = f"{name}.contiguous()" if hasattr(given, "contiguous") else f"{library}.ascontiguousarray({name})"
        raise ValueError(f"{name} must be contiguous, got strides of {x.strides} bytes; pass {way}")
    if _device.is_array(x):
        return x if x.data.ptr % x.itemsize == 0 else values_of(x.view(np.uint8), x.dtype)
    return np.require(np.asarray(x), requirements="A")


def _widened(x, name: str):
    """x as a NumPy or CuPy array, float16 and bfloat16 as float32."""
    if str(getattr(x, "dtype", "")).endswith("bfloat16"):
        # the upper half of a float32, moved as integers: denormals stay, and DLPack need not know the type
        own = isinstance(x, np.ndarray) or _device.is_array(x)
        words = x.view((np if own else sys.modules[type(x).__module__.partition(".")[0]]).uint16)
        return (taken(words, name).astype(np.uint32) << np.uint32(16)).view(_FLOAT32)
    x = taken(x, name)
    return x.astype(_FLOAT32) if x.dtype.name == "float16" else x


def output(out, size: int, dtype, payload=None):
    """A vector to decode into: `out` checked, or a new one of the message's dtype on the payload's backend."""
    if out is None:
        return empty(payload, size, dtype)
    if type(out) is np.ndarray and type(payload) is np.ndarray and out.shape == (size,):  # nearly always
        fits = out.dtype is _FLOAT64 or (out.dtype is _FLOAT32 and np.dtype(dtype) is _FLOAT32)
        if fits and out.flags.carray:
            return out
    out = taken(out, "out")
    if payload is not None:
        together(payload, out, ("payload", "out"))
    if out.dtype not in (_FLOAT32, _FLOAT64):
        raise TypeError(f"out must be float32 or float64, got {out.dtype}")
    if out.ndim != 1 or not out.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous vector, got shape {out.shape}: decode into one and copy it")
    if vector(out, "out") is not out:
        raise TypeError(f"out must be an aligned vector in native byte order, got {out.dtype} {type(out).__name__}")
    if out.size != size:
        raise ValueError(f"out has {out.size} elements, the message {size}")
    if out.itemsize < np.dtype(dtype).itemsize:
        raise TypeError(f"out is {out.dtype}, narrower than the message's {np.dtype(dtype)}")
    _writeable(out)
    return out


def buffer(nbytes: int, out=None, x=None):
    """nbytes of payload on the backend of x (NumPy's): a view of `out` (uint8) where given, to use it again.

    `Compressor.encode` has seen to it that x and out live together.
    """
    if out is None:
        return empty(x, nbytes, np.uint8)
    if (
        not (isinstance(out, np.ndarray) or _device.is_array(out))
        or out.dtype != np.uint8
        or out.ndim != 1
        or not out.flags.c_contiguous
    ):
        raise TypeError("out must be a contiguous uint8 vector")
    _writeable(out)
    if out.size < nbytes:
        raise ValueError(f"out holds {out.size} bytes, the payload needs {nbytes}")
    return out[:nbytes]


def _writeable(out) -> None:
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out is read-only")
