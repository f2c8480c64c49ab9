"""The GPU behind CuPy: whether it can be used and why not, and how a kernel of csrc/*.cu is built, kept and launched.

A. CuPy's own compiler flushes denormals to zero (it appends -ftz=true to whatever it is given), so kernels go through
   NVRTC here, without that flag and without contraction into fma, and reach CuPy as finished machine code.
B. Machine code is kept in $COMPRESS_CACHE_DIR (~/.cache/compress) under a hash of everything it depends on: the text of
   the kernel and of every header, the flags, the architecture, the compiler's version.
C. A kernel's parameters are read from its text. `launch` makes Python numbers of the right width and refuses arrays of
   another type: a mistake is an exception, not a wrong byte.
D. A .cu file is built once for each element type it is used with: `real` is f32 or f64 in it.
E. Nothing here waits for the device but `read` and a `Status` that is looked at.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np

OPTIONS = (
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--extra-device-vectorization",
    "--device-as-default-execution-space",  # generic lambdas too, which NVRTC 13.0 took for the host's
    "--generate-line-info",
)
_TYPES = {
    "u8": np.uint8,
    "u16": np.uint16,
    "i16": np.int16,
    "u32": np.uint32,
    "i32": np.int32,
    "int": np.int32,
    "u64": np.uint64,
    "i64": np.int64,
    "f32": np.float32,
    "f64": np.float64,
}
_REAL = {kind: name for t, name in ((np.float32, "f32"), (np.float64, "f64")) for kind in (t, np.dtype(t))}
_KIND = {np.dtype(kind): kind for kind in "fdBHIQ"}  # struct format
_LEAST_CAPABILITY = 80  # the kernels use what sm_80 has
_FREE_SHARED = 16 << 10  # bytes beyond which dynamic shared memory is asked for: with a kernel's own, 48 KB are free
_NULL = np.uintp(0)
_asking = threading.Lock()

_cupy = None  # what serves as CuPy in tests


def cupy():
    """The CuPy module; ImportError with the extra to install where there is none."""
    return _cupy or _imported()


@functools.cache
def _imported():
    try:
        import cupy as module
    except ImportError as error:
        raise ImportError(f"CuPy cannot be imported ({error}); install compress-kernels[gpu]") from error
    return module


def is_array(x) -> bool:
    """Whether x is a CuPy array; imports nothing."""
    module = _cupy or sys.modules.get("cupy")
    return module is not None and isinstance(x, getattr(module, "ndarray", ()))


def status() -> str:
    """ "available: ..." with the device's name, or "unavailable: ..." with the reason."""
    if _cupy is not None:
        return f"available: {name()}"
    return _status()


@functools.cache
def _status() -> str:
    """Cheap questions first: without a driver CuPy is never imported."""
    if importlib.util.find_spec("cupy") is None:
        return "unavailable: CuPy is not installed; install compress-kernels[gpu]"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "unavailable: no NVIDIA driver (libcuda.so.1 is not found)"
    code, count = driver.cuInit(0), ctypes.c_int()
    if code or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return f"unavailable: there is a driver, but no usable device (cuInit says {code})"
    try:
        module = cupy()
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
        capability = module.cuda.Device().compute_capability
        if int(capability) < _LEAST_CAPABILITY:
            return f"unavailable: {name()} is sm_{capability}, the kernels need sm_{_LEAST_CAPABILITY}"
        return f"available: {name()}"
    except ImportError as error:
        return f"unavailable: {error}"
    except Exception as error:  # CUDA's own errors are classes of the module that may not be there
        return f"unavailable: {type(error).__name__}: {error}"


def name() -> str:
    """The current device's."""
    module = cupy()
    found = module.cuda.runtime.getDeviceProperties(module.cuda.Device().id)["name"]
    return found.decode() if isinstance(found, bytes) else str(found)


# Arrays


def empty(n, dtype):
    """n elements of scratch on the current device."""
    return cupy().empty(n, dtype)


def zeros(n, dtype):
    return cupy().zeros(n, dtype)


def to_device(array: np.ndarray):
    """A copy of a host array."""
    return cupy().asarray(array)


def read(array) -> np.ndarray:
    """The array on the host, once everything before it has run: the one place where the host waits."""
    return array.get()


class Status:
    """An integer that a kernel will have written: reading it waits for the device, passing it on does not.

    of: what it is of the number array[at].
    """

    def __init__(self, array, at: int = 0, of=int):
        self._array, self._at, self._of, self._value = array, at, of, None
        self._stream = cupy().cuda.get_current_stream()

    def __int__(self):
        if self._value is None:
            with self._stream:  # of the kernel that writes it, wherever it is looked at
                self._value = self._of(int(read(self._array)[self._at]))
        return self._value

    __index__ = __int__

    def __bool__(self):
        return int(self) != 0

    def __eq__(self, other):
        return int(self) == other

    def __ge__(self, other):
        return int(self) >= other

    def __lt__(self, other):
        return int(self) < other

    def __repr__(self):
        return str(int(self))

    __hash__ = None


def view(x, kinds: str):
    """x, a vector whose element type is one of `kinds` (struct format); TypeError or BufferError otherwise."""
    if not is_array(x):
        raise TypeError(f"mixed arguments: a {type(x).__module__}.{type(x).__name__} among CuPy arrays")
    kind = _KIND.get(x.dtype) or x.dtype.str
    if x.ndim != 1 or kind not in kinds:
        raise TypeError(f"expected a vector of one of {kinds!r} (struct format), got {x.ndim} dimensions of {kind!r}")
    if not x.flags.c_contiguous:
        raise BufferError("the vector is not contiguous")
    return x


def need(x, n: int, name: str) -> None:
    """The vector called `name` must have at least n elements."""
    if x.size < n:
        raise ValueError(f"{name} has {x.size} elements, {n} are needed")


def match(x, out, name: str) -> None:
    """out must be a vector of x's type and length."""
    if out.dtype != x.dtype or out.size != x.size:
        kinds = [_KIND[a.dtype] for a in (out, x)]
        raise ValueError(f"{name}: out must match x, got {out.size} of {kinds[0]!r} for {x.size} of {kinds[1]!r}")


# Kernels


def limits() -> tuple[int, int]:
    """Multiprocessors of the current device, and bytes of shared memory that a block can have."""
    module = cupy()
    return _limits(module, module.cuda.Device().id)


@functools.cache
def _limits(module, device):
    attributes = module.cuda.Device(device).attributes
    return attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"]


class KernelError(RuntimeError):
    """A kernel does not compile: the name, the architecture and the compiler's log."""


def sources() -> dict[str, str]:
    """The texts of csrc that a kernel may include, by name."""
    from importlib.resources import files

    return {
        p.name: p.read_text(encoding="utf8")
        for p in files("compress._csrc").iterdir()
        if p.name.endswith((".h", ".cuh", ".cu")) and not p.name.endswith("_cpu.h")
    }


def _with_includes(name: str, texts: dict[str, str], seen: dict[str, str]) -> dict[str, str]:
    """name and everything it includes, in the order of inclusion."""
    if name not in seen:
        seen[name] = texts[name]
        for other in re.findall(r'#include "([^"]+)"', texts[name]):
            _with_includes(other, texts, seen)
    return seen


def compile(topic: str, real: str, arch: str) -> Path:
    """The file with the machine code of csrc/<topic>.cu, built where it is not there yet."""
    import hashlib

    nvrtc = cupy().cuda.nvrtc
    texts = _with_includes(f"{topic}.cu", sources(), {})
    options = (f"-arch=sm_{arch}", *OPTIONS, f"-Dreal={real}")
    key = hashlib.sha256("\0".join([*texts, *texts.values(), *options, repr(nvrtc.getVersion())]).encode())
    root = Path(os.environ.get("COMPRESS_CACHE_DIR") or Path.home() / ".cache" / "compress")
    path = root / f"{topic}-{real}-sm{arch}-{key.hexdigest()[:24]}.cubin"
    if path.exists():
        return path
    source = texts.pop(f"{topic}.cu")
    headers, names = ([t.encode() for t in part] for part in (texts.values(), texts))  # CuPy encodes the source alone
    program = nvrtc.createProgram(source, f"{topic}.cu", headers, names)
    try:
        nvrtc.compileProgram(program, options)
        code = nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise KernelError(f"csrc/{topic}.cu does not compile for sm_{arch}: {error}\n{log}") from None
    finally:
        nvrtc.destroyProgram(program)
    _keep(path, code + b"\0")  # CuPy has cut off the last byte, as it does for text
    return path


def _keep(path: Path, code: bytes) -> None:
    """The file in one piece: many processes may build at once."""
    import tempfile

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(code)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except OSError as error:
        raise KernelError(
            f"kernels cannot be kept in {path.parent}: {error}; set COMPRESS_CACHE_DIR to a folder that can be written"
        ) from None


_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)')


def parameters(text: str) -> dict[str, list[tuple[str, bool]]]:
    """Of every kernel of a .cu file, the type of each parameter and whether it is a pointer."""
    kernels = {}
    for name, arguments in _KERNEL.findall(text):
        kernels[name] = []
        for argument in arguments.split(","):
            words = argument.replace("*", " * ").split()
            kernels[name].append((next(w for w in words if w in _TYPES or w == "real"), "*" in words))
    return kernels


@functools.cache
def _parameters(topic: str):
    return parameters(sources()[f"{topic}.cu"])


@functools.cache
def _module(module, topic: str, real: str, arch: str):
    path = compile(topic, real, arch)
    try:
        return module.RawModule(path=str(path))
    except Exception:  # a damaged file: the driver's error is a class of the module
        path.unlink(missing_ok=True)
        return module.RawModule(path=str(compile(topic, real, arch)))


@functools.cache
def _function(module, topic: str, real: str, name: str, device: int):
    function = _module(module, topic, real, module.cuda.Device(device).compute_capability).get_function(name)
    types = [(np.dtype(_TYPES[real if t == "real" else t]), pointer) for t, pointer in _parameters(topic)[name]]
    return function, [(t, t.type, pointer) for t, pointer in types], [_FREE_SHARED]


def _refuse(name, i, value, dtype, device):
    """Why argument i of a kernel cannot be this one."""
    if not is_array(value):
        raise TypeError(f"mixed arguments: argument {i} of {name} is no CuPy array but a {type(value).__name__}")
    if value.dtype != dtype or not value.flags.c_contiguous:
        raise TypeError(f"argument {i} of {name} must be contiguous {dtype}, got {value.dtype}")
    there = value.data.device_id
    raise ValueError(
        f"an array lives on GPU {there}, the current device is GPU {device}: arrays of one call must "
        f"share the current device (with cupy.cuda.Device({there}): ...)"
    )


def launch(topic: str, name: str, blocks: int, threads: int, *arguments, real=np.float32, shared: int = 0) -> None:
    """Runs kernel `name` of csrc/<topic>.cu on the current stream: 1-D, `shared` bytes of dynamic shared memory.

    A pointer takes a CuPy array of its type, or None; numbers are converted. real: the element type of `real`.
    """
    if blocks == 0:
        return
    module = _cupy or _imported()
    device = module.cuda.runtime.getDevice()
    function, types, granted = _function(module, topic, _REAL[real], name, device)
    if len(arguments) != len(types):
        raise TypeError(f"{name} takes {len(types)} arguments, got {len(arguments)}")
    values, kind = [], module.ndarray
    for value, (dtype, number, pointer) in zip(arguments, types, strict=True):
        if not pointer:
            value = number(value)
        elif value is None:
            value = _NULL
        elif (
            not isinstance(value, kind)
            or value.dtype != dtype
            or not value.flags.c_contiguous
            or value.data.device_id != device
        ):
            _refuse(name, len(values), value, dtype, device)
        values.append(value)
    if shared > granted[0]:
        with _asking:  # what another thread launches may need more
            granted[0] = max(granted[0], shared)
            function.max_dynamic_shared_size_bytes = granted[0]
    function((blocks,), (threads,), tuple(values), shared_mem=shared)
