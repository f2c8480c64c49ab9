"""The way to the GPU: whether there is one, how kernels are built and launched, what mixed arguments get."""

import importlib.util
import inspect
import json
import struct
import subprocess
import sys
import types
from pathlib import Path

import backends
import numpy as np
import pytest
import test_golden

import compress
from compress import kernels
from compress._gpu import device

KEY = compress.Key(1).worker(0)


@pytest.fixture
def grid():
    backends.use("grid")
    yield device.cupy()
    device._cupy = None


@pytest.fixture
def unasked(monkeypatch):
    """device.status() as if for the first time."""
    monkeypatch.setattr(device, "_cupy", None)
    for cached in (device._status, device._imported):
        cached.cache_clear()
    yield monkeypatch
    for cached in (device._status, device._imported):
        cached.cache_clear()


# Is there one?


def test_without_cupy(unasked):
    unasked.setattr(importlib.util, "find_spec", lambda name: None)
    assert compress.backends()["gpu"] == "unavailable: CuPy is not installed; install compress-kernels[gpu]"
    with pytest.raises(RuntimeError, match=r"'gpu' is unavailable: CuPy is not installed"):
        compress.asarray(np.ones(3), "gpu")


def test_without_a_driver(unasked):
    unasked.setattr(importlib.util, "find_spec", lambda name: True)

    def missing(name):
        raise OSError("cannot open shared object file")

    unasked.setattr(device.ctypes, "CDLL", missing)
    assert compress.backends()["gpu"] == "unavailable: no NVIDIA driver (libcuda.so.1 is not found)"


@pytest.mark.parametrize(("code", "count"), [(100, 0), (0, 0)])
def test_without_a_device(unasked, code, count):
    unasked.setattr(importlib.util, "find_spec", lambda name: True)
    driver = types.SimpleNamespace(cuInit=lambda flags: code, cuDeviceGetCount=lambda pointer: 0)
    unasked.setattr(device.ctypes, "CDLL", lambda name: driver)
    expected = f"unavailable: there is a driver, but no usable device (cuInit says {code})"
    assert compress.backends()["gpu"] == expected


@pytest.fixture
def driver(unasked):
    """A driver with a device."""
    unasked.setattr(importlib.util, "find_spec", lambda name: True)

    def one(pointer):
        pointer._obj.value = 1
        return 0

    found = types.SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGetCount=one)
    unasked.setattr(device.ctypes, "CDLL", lambda name: found)
    return unasked


def test_a_cupy_that_does_not_load(driver):
    driver.setitem(sys.modules, "cupy", None)  # import raises
    assert compress.backends()["gpu"].startswith("unavailable: CuPy cannot be imported")


def test_without_nvrtc(driver):
    broken = types.ModuleType("cupy")
    broken.__path__ = []
    broken.cuda = types.ModuleType("cupy.cuda")
    driver.setitem(sys.modules, "cupy", broken)
    driver.setitem(sys.modules, "cupy.cuda", broken.cuda)
    for _ in range(2):
        assert "unavailable: cannot import name 'nvrtc'" in compress.backends()["gpu"]


def test_a_device_that_is_too_old(driver):
    old = types.ModuleType("cupy")
    old.__path__ = []
    old.cuda = types.ModuleType("cupy.cuda")
    old.cuda.nvrtc = types.SimpleNamespace(getVersion=lambda: (13, 0))
    old.cuda.Device = lambda: types.SimpleNamespace(id=0, compute_capability="75")
    old.cuda.runtime = types.SimpleNamespace(getDeviceProperties=lambda number: {"name": b"Tesla T4"})
    driver.setitem(sys.modules, "cupy", old)
    driver.setitem(sys.modules, "cupy.cuda", old.cuda)
    assert compress.backends()["gpu"] == "unavailable: Tesla T4 is sm_75, the kernels need sm_80"


def test_the_cpu_asks_nothing_of_a_gpu(unasked):
    unasked.setattr(device, "status", lambda: pytest.fail("asked"))
    x = np.ones(5, np.float32)
    assert compress.asarray(x) is x
    assert np.array_equal(compress.loads(compress.dumps(x, compress.Identity(), KEY)), x)
    with pytest.raises(TypeError, match="out or backend"):
        compress.loads(compress.dumps(x, compress.Identity(), KEY), out=x, backend="cpu")


def test_it_takes_milliseconds_and_imports_nothing():
    if device.status().startswith("available"):
        pytest.skip("there is a GPU, and CuPy is imported to name it")
    code = """if True:
        import sys, time, compress.kernels
        start = time.perf_counter()
        compress.backends()
        print("cupy" in sys.modules, time.perf_counter() - start)"""
    imported, seconds = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert imported == "False" and float(seconds) < 0.2


# One surface


def test_cpu_and_gpu_have_one_surface():
    from compress._cpu import kernels as cpu
    from compress._gpu import kernels as _gpu

    names = {n for n in dir(cpu) if not n.startswith("_") and (n.isupper() or inspect.isroutine(getattr(cpu, n)))}
    names -= {"instruction_sets", "comb", "lru_cache"}  # of this processor; Python's
    for name in names:
        ours, theirs = getattr(_gpu, name), getattr(cpu, name)
        if callable(theirs) and ours is not theirs:
            parameters = [list(inspect.signature(f).parameters.values()) for f in (ours, theirs)]
            found, wanted = ([(p.name, p.default) for p in ps] for ps in parameters)
            assert found == wanted, name
        elif not callable(theirs):
            assert ours == theirs, name


def test_what_stands_in_for_cupy_is_in_cupy(grid):
    cupy = pytest.importorskip("cupy")

    def public(x):
        return {n for n in dir(x) if not n.startswith("_")}

    own = {"annotations", "HERE", "SANITIZE", "FLAGS", "NVRTCError", "ORDER", "nvrtc", "CUDARuntimeError"}
    modules = {n for n in public(grid) if isinstance(getattr(grid, n), types.ModuleType)}
    classes = {"Path", "SimpleNamespace"}
    assert public(grid) - own - modules - classes <= public(cupy)
    assert public(grid.ndarray) <= public(cupy.ndarray)
    assert set(vars(grid.cuda)) <= public(cupy.cuda) | {"nvrtc"}
    assert set(vars(grid.cuda.runtime)) <= public(cupy.cuda.runtime)
    from cupy.cuda import nvrtc

    assert set(vars(grid.cuda.nvrtc)) <= public(nvrtc)


# Building


def test_a_kernel_is_built_once_and_again_when_a_header_changes(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE_DIR", str(tmp_path))
    first = device.compile("philox", "f32", "host")
    made = first.stat().st_mtime_ns
    assert device.compile("philox", "f32", "host") == first and first.stat().st_mtime_ns == made
    texts = device.sources()
    monkeypatch.setattr(device, "sources", lambda: texts | {"philox.h": texts["philox.h"] + "\n"})
    second = device.compile("philox", "f32", "host")
    assert second != first and device.compile("philox", "f64", "host") not in (first, second)
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".cubin"]  # no half-written file is left


def test_a_kernel_that_does_not_compile_says_which_and_why(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE_DIR", str(tmp_path))
    texts = device.sources()
    monkeypatch.setattr(device, "sources", lambda: texts | {"philox.cu": 'extern "C" __global__ void f(u32* x) { y; }'})
    with pytest.raises(device.KernelError, match=r"csrc/philox.cu does not compile for sm_90: (.|\n)*u32"):
        device.compile("philox", "f32", "90")


def test_machine_code_through_cupy_is_whole(tmp_path, monkeypatch):
    """CuPy's NVRTC takes headers as bytes alone, and cuts the last byte off what it returns: seen without a driver."""
    monkeypatch.setattr(device, "_cupy", pytest.importorskip("cupy"))
    monkeypatch.setenv("COMPRESS_CACHE_DIR", str(tmp_path))
    code = device.compile("philox", "f32", "90").read_bytes()
    (table,), (size, count) = struct.unpack_from("<Q", code, 32), struct.unpack_from("<HH", code, 54)
    assert code[:4] == b"\x7fELF" and len(code) >= table + size * count  # program headers, last in the file


def test_a_folder_that_cannot_be_written_is_named(grid, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESS_CACHE_DIR", str(tmp_path / "file" / "folder"))
    with pytest.raises(device.KernelError, match=r"cannot be kept in .*folder: .*; set COMPRESS_CACHE_DIR"):
        device.compile("philox", "f32", "host")


def test_a_damaged_file_is_built_again(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE_DIR", str(tmp_path))
    device.compile("pack", "f64", "host").write_bytes(b"not code")
    assert device._module.__wrapped__(grid, "pack", "f64", "host").get_function("pack")


# Launching


def test_a_launch_checks_what_it_is_given(grid):
    out = grid.zeros(8, np.uint32)
    with pytest.raises(TypeError, match="takes 5 arguments, got 4"):
        device.launch("philox", "philox_words", 1, 32, 0, 0, 0, out)
    with pytest.raises(TypeError, match="contiguous uint32, got float32"):
        device.launch("philox", "philox_words", 1, 32, 0, 0, 0, out.view(np.float32), 2)
    with pytest.raises(TypeError, match="contiguous"):
        device.launch("philox", "philox_words", 1, 32, 0, 0, 0, grid.zeros(16, np.uint32)[::2], 2)
    with pytest.raises(TypeError, match=r"mixed arguments: argument 3 of philox_words .* a ndarray"):
        device.launch("philox", "philox_words", 1, 32, 0, 0, 0, np.zeros(8, np.uint32), 2)


def test_arrays_on_different_devices(grid, monkeypatch):
    class Elsewhere(grid.ndarray):
        device = property(lambda self: grid.cuda.Device(1))

        @property
        def data(self):
            memory = super().data
            memory.device_id = 1
            return memory

    x = Elsewhere(np.ones(100, np.float32))
    with pytest.raises(ValueError, match=r"lives on GPU 1, the current device is GPU 0: .* share the current device"):
        compress.TernGrad().encode(x, KEY)


def test_memory_runs_out(grid, monkeypatch):
    """CuPy's own error passes through: a MemoryError that says how much was wanted."""

    def full(*_):
        raise MemoryError("Out of memory allocating 4,096 bytes (allocated so far: 0 bytes).")

    x = grid.asarray(np.ones(1000, np.float32))
    monkeypatch.setattr(grid, "empty", full)
    with pytest.raises(MemoryError, match="allocating 4,096 bytes"):
        compress.StandardDithering(7).encode(x, KEY)


def test_mixed_backends_are_named(grid):
    C, x = compress.StandardDithering(7), np.ones(2000, np.float32)
    there = grid.asarray(x)
    message = C.encode(there, KEY)
    with pytest.raises(TypeError, match="mixed backends: x is a CuPy array, out a NumPy one"):
        C.encode(there, KEY, out=np.empty(4000, np.uint8))
    with pytest.raises(TypeError, match="mixed backends: x is a NumPy array, out a CuPy one"):
        C.encode(x, KEY, out=grid.empty(4000, np.uint8))
    with pytest.raises(TypeError, match="mixed backends: payload is a CuPy array, out a NumPy one"):
        C.decode(message, KEY, np.empty(2000, np.float32))
    with pytest.raises(TypeError, match="mixed backends: payload is a NumPy array, out a CuPy one"):
        C.decode_add(C.encode(x, KEY), KEY, there)
    with pytest.raises(TypeError, match=r"mixed arguments: a numpy\.ndarray among CuPy arrays"):
        kernels.of(there).topk(there, np.empty(3, np.uint32))
    with pytest.raises(TypeError, match=r"mixed backends: x is a CuPy array, state\.error a NumPy one"):
        feedback = compress.ErrorFeedback(compress.TopK(3))
        feedback.encode(feedback.init(2000), there, KEY)


# What goes in comes out


class Tensor:
    """A foreign library's array, as torch's: DLPack both ways, nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.fixture
def library(monkeypatch):
    module = types.ModuleType("foreign")
    module.from_dlpack = Tensor
    monkeypatch.setattr(Tensor, "__module__", "foreign")
    monkeypatch.setitem(sys.modules, "foreign", module)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("C", [compress.StandardDithering(7), compress.TopK(0.1), compress.Trellis(2)], ids=repr)
def test_a_foreign_array_comes_back_as_one(grid, library, where, C):
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    own = grid.asarray if where == "cuda" else np.asarray
    given = Tensor(own(x))
    message = C.encode(given, KEY)
    assert isinstance(message.payload, Tensor)
    assert np.array_equal(kernels.host(message.payload.array), C.encode(x, KEY).payload)
    decoded = C.decode(message, KEY)
    assert isinstance(decoded, Tensor) and np.array_equal(kernels.host(decoded.array), C(x, KEY))
    out = Tensor(own(np.empty(5000, np.float32)))
    assert C.decode(message, KEY, out) is out and np.array_equal(kernels.host(out.array), C(x, KEY))
    assert C.decode_add(message, KEY, out) is out and np.array_equal(kernels.host(out.array), 2 * C(x, KEY))
    feedback = compress.ErrorFeedback(compress.TopK(0.1))
    state = feedback.init(like=given)
    sent, state = feedback.encode(state, given, KEY)
    assert isinstance(state.error, Tensor) and isinstance(sent.payload, Tensor)


def test_torch_tensors_come_back_as_torch_tensors():
    torch = pytest.importorskip("torch")
    x = torch.linspace(-1, 1, 5000)
    C = compress.StandardDithering(7)
    message = C.encode(x, KEY)
    assert message.payload.dtype == torch.uint8
    decoded = C.decode(message, KEY)
    assert isinstance(decoded, torch.Tensor) and np.array_equal(decoded.numpy(), C(x.numpy(), KEY))
    out = torch.empty(5000)
    assert C.decode(message, KEY, out) is out and torch.equal(out, decoded)


def test_what_torch_tensors_may_be():
    torch = pytest.importorskip("torch")
    C, x = compress.StandardDithering(7), torch.linspace(-1, 1, 1000)
    for half in (torch.float16, torch.bfloat16):
        decoded = C(x.to(half), KEY)
        assert decoded.dtype == torch.float32 and np.array_equal(decoded, C(x.to(half).float(), KEY))
    with pytest.raises(TypeError, match=r"x requires a gradient: pass x.detach\(\)"):
        C.encode(x.clone().requires_grad_(), KEY)
    with pytest.raises(ValueError, match=r"x must be contiguous, .*; pass x.contiguous\(\)"):
        C.encode(x[::2], KEY)
    message = C.encode(x[:500], KEY)
    with pytest.raises(ValueError, match=r"out must be a contiguous vector, .* decode into one and copy it"):
        C.decode(message, KEY, out=x[::2])
    with pytest.raises(TypeError, match="out must be float32 or float64, got float16"):
        C.decode(message, KEY, out=torch.empty(500, dtype=torch.float16))
    with pytest.raises(TypeError, match="kernels take NumPy or CuPy arrays, got Tensor"):
        kernels.of(x)
    feedback = compress.ErrorFeedback(compress.TopK(0.1))
    state = feedback.init(like=x.double())
    assert state.error.dtype == torch.float64 and state.error.shape == x.shape
    with pytest.raises(ValueError, match="d = 3, but like has 1000"):
        feedback.init(3, like=x)
    with pytest.raises(TypeError, match="give d, or like=x"):
        feedback.init()


def test_a_cuda_tensor_of_torch_on_a_gpu():
    backends.use("gpu")
    torch = pytest.importorskip("torch")
    x = torch.linspace(-1, 1, 5000, device="cuda")
    C = compress.StandardDithering(7)
    decoded = C(x, KEY)
    assert decoded.is_cuda and np.array_equal(decoded.cpu().numpy(), C(x.cpu().numpy(), KEY))


def test_asarray_moves_both_ways(grid):
    x = np.arange(5, dtype=np.float32)
    there = compress.asarray(x, "gpu")
    assert isinstance(there, grid.ndarray) and compress.asarray(there, "gpu") is there
    back = compress.asarray(there, "cpu")
    assert isinstance(back, np.ndarray) and np.array_equal(back, x) and compress.asarray(x, "cpu") is x


def test_another_device_is_refused():
    class Strange(Tensor):
        def __dlpack_device__(self):
            return 10, 0

    with pytest.raises(TypeError, match="DLPack type 10"):
        compress.TernGrad().encode(Strange(np.ones(3)), KEY)


# Threads and memory


@pytest.mark.parametrize("C", test_golden.ENTRIES, ids=repr)
def test_golden_bytes_on_a_gpu(C):
    backends.use("gpu")
    pinned = json.loads(test_golden.FILE.read_text())[repr(C)]
    assert test_golden.here(backends.OnDevice(C), pinned) == pinned


ORDERS = """if True:
    import json, sys
    sys.path[:0] = {path!r}
    import backends, numpy as np, test_golden
    from cuda_on_cpu import cupy_on_cpu
    backends.use("grid")
    known, wrong = json.loads(test_golden.FILE.read_text()), []
    for order in {orders}:
        cupy_on_cpu.ORDER = order
        for C in test_golden.ENTRIES:
            if test_golden.here(backends.OnDevice(C), known[repr(C)]) != known[repr(C)]:
                wrong.append(f"{{C!r}} in order {{order}}")
    print(*wrong, sep="\\n")
    sys.exit(len(wrong))"""


def golden_on_grid(orders, **environment):
    here = str(Path(__file__).parent)
    code = ORDERS.format(path=[here], orders=orders)
    import os

    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_bytes_do_not_depend_on_the_order_of_threads(order):
    golden_on_grid((order,))


def test_no_kernel_leaves_its_buffers():
    """The same once more with AddressSanitizer, and with every access aligned."""
    from test_sanitizer import runtime

    library = runtime()
    if library is None:
        pytest.skip("no AddressSanitizer here")
    both = f"{library} {library.replace('libasan', 'libstdc++')}"
    golden_on_grid((0,), LD_PRELOAD=both, ASAN_OPTIONS="detect_leaks=0", COMPRESS_GRID_SANITIZE="1")
