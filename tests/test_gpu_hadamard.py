"""The Walsh-Hadamard transform on the GPU: the bytes of the CPU, whatever the size, the block or the order."""

import numpy as np
import pytest

from compress._cpu import kernels as cpu
from compress._gpu import device, hadamard

DTYPES = [np.float32, np.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
ORDERS = range(4)

PROBE = """
#include "hadamard.cuh"
/* n numbers by the whole block, or by each of its warps. */
extern "C" __global__ void __launch_bounds__(1024) by_block(real* x, i32 n) {
  DYNAMIC_SHARED(real, shared);
  for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) shared[i] = x[i];
  block_fwht(shared, n, (real)hadamard_scale(n));
  for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) x[i] = shared[i];
}
extern "C" __global__ void __launch_bounds__(1024) by_warp(real* x, i32 n) {
  DYNAMIC_SHARED(real, shared);
  real* mine = shared + n * warp_of();
  x += n * warp_of();
  for (int i = lane_of(); i < n; i += WARP) mine[i] = x[i];
  warp_fwht(mine, n, (real)hadamard_scale(n));
  for (int i = lane_of(); i < n; i += WARP) x[i] = mine[i];
}
/* Without a copy: from the vector, and back to it. */
extern "C" __global__ void __launch_bounds__(1024) fused(const real* x, real* out, i32 n) {
  DYNAMIC_SHARED(real, shared);
  shared_fwht(shared, n, (int)threadIdx.x, (int)blockDim.x, [&](int i) { return x[i]; },
              [&](int i, real v) { out[i] = v; });
}
"""


@pytest.fixture(params=ORDERS)
def order(request, gpu):
    """Of threads and blocks, where it can be chosen."""
    module = device.cupy()
    if not hasattr(module, "ORDER"):
        if request.param:
            pytest.skip("a GPU has an order of its own")
        yield
        return
    module.ORDER = request.param
    yield request.param
    module.ORDER = 0


@pytest.fixture
def probe(gpu, monkeypatch):
    texts = {**device.sources(), "probe_hadamard.cu": PROBE}
    monkeypatch.setattr(device, "sources", lambda: texts)

    def run(name, threads, x, *arguments, shared):
        on_device = [device.to_device(x)]
        if name == "fused":
            on_device.append(device.zeros(x.size, x.dtype))
        device.launch("probe_hadamard", name, 1, threads, *on_device, *arguments, real=x.dtype, shared=shared)
        return on_device[-1].get()

    return run


def hard(n, dtype):
    """Numbers of all sizes whose sums stay finite, zeros of both signs, and equal ones that cancel."""
    rng = np.random.default_rng(n)
    info = np.finfo(dtype)
    x = np.ldexp(rng.standard_normal(n), rng.integers(info.minexp - info.nmant, info.maxexp - 36, n)).astype(dtype)
    kind = rng.integers(0, 8, n)
    x[kind == 0] = 0
    x[kind == 1] = -0.0
    x[kind == 2] = info.smallest_subnormal * rng.integers(-3, 4, n)[kind == 2]
    x[kind == 3] = 1.5
    return x


def inputs(n, dtype):
    yield hard(n, dtype)
    yield np.random.default_rng(n).standard_normal(n).astype(dtype)
    yield np.full(n, -0.0, dtype)
    yield np.where(np.random.default_rng(n).random(n) < 0.5, 0.0, -0.0).astype(dtype)


def on_cpu(x, block):
    y = x.copy()
    cpu.fwht(y, block)
    return y.tobytes()


@dtypes
@pytest.mark.parametrize("log", range(17))
def test_fwht(gpu, log, dtype):
    block = 1 << log
    rows = {1, 3, *((33, 1025) if log < 5 else (5,) if log < 12 else ())}
    for n in (block * r for r in rows):
        for x in inputs(n, dtype):
            y = x.copy()
            gpu.fwht(y, block)
            assert y.tobytes() == on_cpu(x, block), n


@dtypes
@pytest.mark.parametrize("log", [3, 9, 10, 12, 16])
def test_the_order_of_threads_does_not_matter(gpu, order, log, dtype):
    x = hard(max(1 << log, 5000 >> log << log), dtype)
    y = x.copy()
    gpu.fwht(y, 1 << log)
    assert y.tobytes() == on_cpu(x, 1 << log)


@dtypes
def test_two_and_three_passes(gpu, monkeypatch, dtype):
    for log, most, count in ((18, None, 2), (20, 12, 3)):
        if most:
            monkeypatch.setattr(hadamard, "_LOG_MOST", {4: most, 8: most})
        assert len(hadamard.passes(log, hadamard._LOG_MOST[np.dtype(dtype).itemsize])) == count
        x = hard(1 << log, dtype)
        y = x.copy()
        gpu.fwht(y, 1 << log)
        assert y.tobytes() == on_cpu(x, 1 << log)


@pytest.mark.parametrize("most", [14, 15])
def test_passes_are_few_and_fit(most):
    for log in range(36):
        first, *others = hadamard.passes(log, most)
        assert first + sum(others) == log and first <= most and all(5 <= p <= most - 5 for p in others)
        assert len(others) == max(0, -(-(log - most) // (most - 5)))


@dtypes
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_nothing_around_a_vector_changes(gpu, offset, dtype):
    for block, n in ((8, 808), (1024, 3072), (1 << 16, 1 << 16)):
        whole = hard(n + 8, dtype)
        y = whole.copy()
        gpu.fwht(y[offset : offset + n], block)
        expected = whole.copy()
        cpu.fwht(expected[offset : offset + n], block)
        assert y.tobytes() == expected.tobytes()


SIZES = [0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 127, 128, 129, 1023, 1024, 1025, 2047, 2048, 3000, 4095, 4096, 4097, 5000]


@dtypes
@pytest.mark.parametrize("n", [*SIZES, 8191, 8192, 8193, 70_000])
@pytest.mark.parametrize("inverse", [False, True])
def test_rotate(gpu, inverse, n, dtype):
    for key, x in zip((0, 1, 2**64 - 1, 0x123456789ABCDEF0), inputs(n, dtype), strict=True):
        x.flags.writeable = False
        expected = np.empty_like(x)
        cpu.rotate(x, expected, key, inverse)
        out = np.full_like(x, np.nan)
        gpu.rotate(x, out, key, inverse)
        assert out.tobytes() == expected.tobytes()
        place = x.copy()
        gpu.rotate(place, place, key, inverse)
        assert place.tobytes() == expected.tobytes()


@dtypes
@pytest.mark.parametrize("inverse", [False, True])
def test_the_order_of_threads_does_not_matter_to_a_rotation(gpu, order, inverse, dtype):
    for n in (100, 1500, 3000, 13_000):
        x = hard(n + 1, dtype)[1:]
        expected, out = np.empty_like(x), np.empty_like(x)
        cpu.rotate(x, expected, 7, inverse)
        gpu.rotate(x, out, 7, inverse)
        assert out.tobytes() == expected.tobytes()


@dtypes
@pytest.mark.parametrize("threads", [32, 64, 96, 256, 1024])
def test_of_shared_memory(probe, threads, dtype):
    itemsize = np.dtype(dtype).itemsize
    for log in range(16 if itemsize == 4 else 15):
        n = 1 << log
        x = hard(n, dtype)
        assert probe("by_block", threads, x, n, shared=n * itemsize).tobytes() == on_cpu(x, n), n
        rows = hard(n * threads // 32, dtype)
        if rows.nbytes <= 1 << 17:
            assert probe("by_warp", threads, rows, n, shared=rows.nbytes).tobytes() == on_cpu(rows, n), n


@dtypes
def test_of_shared_memory_in_every_order(probe, order, dtype):
    for log in range(15):
        n = 1 << log
        x = hard(n, dtype)
        for threads in (64, 256):
            assert probe("by_block", threads, x, n, shared=x.nbytes).tobytes() == on_cpu(x, n), n
            scale = dtype(0.5 ** (log // 2) * (0.5**0.5 if log % 2 else 1))
            assert (probe("fused", threads, x, n, shared=x.nbytes) * scale).tobytes() == on_cpu(x, n), n
