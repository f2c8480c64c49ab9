"""The part of CuPy that compress uses, on the host: its device runs the kernels through cuda_cpu.h.

As strict as CuPy where the two differ from NumPy: nothing mixes with NumPy arrays, nothing becomes one silently, and
float32 arithmetic outside our own kernels flushes denormals to zero, as CuPy's kernels do.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

HERE = Path(__file__).parent
SANITIZE = bool(os.environ.get("COMPRESS_GRID_SANITIZE"))
FLAGS = ["g++", "-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-w", "-fno-gnu-unique", f"-I{HERE}"]
FLAGS += ["-g", "-fsanitize=address,alignment", "-fno-sanitize-recover=all"] if SANITIZE else []


def _flushed(a):
    """float32 denormals as CuPy's own kernels see them."""
    if isinstance(a, np.ndarray) and a.dtype == np.float32:
        a = np.where(np.abs(a) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), a), a)
    return a


class _Memory:
    def __init__(self, host):
        self.host, self.ptr, self.device_id = host, host.ctypes.data, 0

    def copy_from_device_async(self, source, size):
        self.host.view(np.uint8)[:size] = source.host.view(np.uint8)[:size]


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """A vector in device memory, which happens to be the host's."""

    def __init__(self, array: np.ndarray):
        self._host = array

    shape = property(lambda self: self._host.shape)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    dtype = property(lambda self: self._host.dtype)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: SimpleNamespace(c_contiguous=self._host.flags.c_contiguous))
    data = property(lambda self: _Memory(self._host))
    device = property(lambda self: cuda.Device(0))
    T = property(lambda self: ndarray(self._host.T))

    def get(self):
        return self._host.copy()

    def tobytes(self):
        return self._host.tobytes()

    def tolist(self):
        return self._host.tolist()

    def item(self):
        return self._host.item()

    def view(self, dtype):
        return ndarray(self._host.view(dtype))

    def ravel(self):
        return ndarray(self._host.ravel())

    def reshape(self, *shape):
        return ndarray(self._host.reshape(*shape))

    def transpose(self, *axes):
        return ndarray(self._host.transpose(*axes))

    def copy(self):
        return ndarray(self._host.copy())

    def fill(self, value):
        self._host.fill(value)

    def astype(self, dtype, copy=True):
        if not copy and self.dtype == dtype:
            return self
        return ndarray(_flushed(self._host).astype(dtype))

    def max(self):
        return ndarray(np.array(self._host.max()))

    def any(self, axis=None):
        return ndarray(np.array(self._host.any(axis=axis)))

    def all(self):
        return ndarray(np.array(self._host.all()))

    def __len__(self):
        return len(self._host)

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    __index__ = __int__

    def __float__(self):
        return float(self._host)

    def __repr__(self):
        return f"device {self._host!r}"

    def __format__(self, spec):
        return format(self._host[()] if self.ndim == 0 else self._host, spec)

    def __getitem__(self, index):
        return ndarray(np.asarray(self._host[_indices(index)]))

    def __setitem__(self, index, value):
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("a NumPy array cannot be stored in a device array")
        self._host[_indices(index)] = value._host if isinstance(value, ndarray) else value

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **named):
        if method != "__call__":
            return NotImplemented
        given = [_flushed(_unwrap(v)) for v in inputs]
        result = getattr(ufunc, method)(*given, **named)
        if out is None:
            return (
                tuple(ndarray(np.asarray(_flushed(r))) for r in result)
                if isinstance(result, tuple)
                else ndarray(np.asarray(_flushed(result)))
            )
        (target,) = out
        target._host[...] = _flushed(result)
        return target

    def __array_function__(self, function, types, arguments, named):
        # the names that CuPy serves too: the ones that compress may use
        served = {"empty_like", "zeros_like", "concatenate", "linalg.qr"}
        name = f"{function.__module__}.{function.__name__}".removeprefix("numpy.")
        if name not in served:
            return NotImplemented
        result = function(*_deep(arguments), **_deep(named))
        if name == "linalg.qr":
            return tuple(map(ndarray, result))
        return ndarray(np.asarray(result))

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        return self


def _unwrap(value):
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def _indices(index):
    return tuple(map(_unwrap, index)) if isinstance(index, tuple) else _unwrap(index)


def _deep(value):
    if isinstance(value, (tuple, list)):
        return type(value)(map(_deep, value))
    if isinstance(value, dict):
        return {k: _deep(v) for k, v in value.items()}
    return _unwrap(value)


def empty(shape, dtype=np.float64):
    """Uninitialised memory is full of what is never right."""
    host = np.empty(shape, dtype)
    host.view(np.uint8).reshape(-1)[...] = 0xAA
    return ndarray(host)


def zeros(shape, dtype=np.float64):
    return ndarray(np.zeros(shape, dtype))


def asarray(value, dtype=None):
    return value if isinstance(value, ndarray) and dtype is None else ndarray(np.array(_unwrap_any(value), dtype))


def ascontiguousarray(value, dtype=None):
    return ndarray(np.ascontiguousarray(_unwrap_any(value), dtype))


def empty_like(value):
    return empty(value.shape, value.dtype)


def concatenate(values):
    return ndarray(np.concatenate([value._host for value in values]))


def where(condition, x, y):
    return ndarray(np.where(condition._host, x._host, y._host))


def _unwrap_any(value):
    return value._host if isinstance(value, ndarray) else value


def asnumpy(value):
    return value.get()


def from_dlpack(value):
    return value.__dlpack__()  # of memory of this device: an array of it stands in for the capsule


# Kernels


class NVRTCError(RuntimeError):
    pass


def _compile(program, options):
    source = program.source
    names = re.findall(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(', source)
    tail = "\nCC_EXPORT_COMMON\n" + "".join(f"CC_EXPORT({name})\n" for name in names)
    defines = [o for o in options if o.startswith("-D")]
    with tempfile.TemporaryDirectory() as folder:
        for name, text in program.headers.items():
            Path(folder, name).write_text(text)
        Path(folder, program.name).write_text(f'#include "cuda_cpu.h"\n#line 1 "csrc/{program.name}"\n{source}{tail}')
        command = [*FLAGS, *defines, f"-I{folder}", "-x", "c++", program.name, "-o", "kernel.so"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        program.log = result.stderr
        if result.returncode:
            raise NVRTCError("NVRTC_ERROR_COMPILATION (6)")
        program.code = Path(folder, "kernel.so").read_bytes()


def _version():
    text = (HERE / "cuda_cpu.h").read_text() + Path(__file__).read_text() + repr(FLAGS)
    return 0, hashlib.sha256(text.encode()).hexdigest()


nvrtc = SimpleNamespace(
    NVRTCError=NVRTCError,
    getVersion=functools.cache(_version),
    createProgram=lambda source, name, headers, names: SimpleNamespace(
        source=source,
        name=name,
        headers={n.decode(): h.decode() for n, h in zip(names, headers, strict=True)},
        log="",
        code=b"",
    ),
    compileProgram=_compile,
    getCUBIN=lambda program: program.code,
    getProgramLog=lambda program: program.log,
    destroyProgram=lambda program: None,
)

ORDER = 0  # of threads and blocks, as cuda_cpu.h has it


class _Function:
    def __init__(self, library, name):
        self.library, self.name, self.launch = library, name, getattr(library, f"cc_launch_{name}")
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid, block, arguments, *, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise RuntimeError(f"{self.name}: {shared_mem} bytes of shared memory were not asked for")
        kept, pointers = [], (ctypes.c_void_p * max(1, len(arguments)))()
        for i, value in enumerate(arguments):
            if isinstance(value, ndarray):
                value = np.uint64(value._host.ctypes.data)
            kept.append(ctypes.create_string_buffer(value.tobytes(), max(value.nbytes, 8)))
            pointers[i] = ctypes.addressof(kept[-1])
        self.library.cc_order(ORDER)
        if self.launch(*grid, *block, shared_mem, pointers):
            raise RuntimeError(f"{self.name}: {self.library.cc_message().decode()}")


class RawModule:
    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.cc_message.restype = ctypes.c_char_p

    @functools.cache  # noqa: B019
    def get_function(self, name):
        return _Function(self.library, name)


class _Device:
    def __init__(self, number=0):
        self.id = number
        self.compute_capability = "host"
        self.attributes = {"MaxSharedMemoryPerBlockOptin": 227 << 10, "MultiProcessorCount": 132}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class CUDARuntimeError(RuntimeError):
    pass


class _Stream:
    def synchronize(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class _Event:
    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass


cuda = SimpleNamespace(
    nvrtc=nvrtc,
    Device=_Device,
    is_available=lambda: True,
    runtime=SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceProperties=lambda number: {"name": b"the host, block by block"},
        getDeviceCount=lambda: 1,
        getDevice=lambda: 0,
    ),
    Event=_Event,
    get_elapsed_time=lambda start, end: 1e3 * (end.at - start.at),
    get_current_stream=lambda: _Stream(),
)
