"""The GPU's Top-K, gather, scatter and subsets: what the CPU writes, to the byte."""

import numpy as np
import pytest
from cuda_on_cpu import cupy_on_cpu
from test_select import inputs, mix

from compress import _cpu
from compress._gpu import device

K = _cpu.kernels
SMALL = 1 << 16  # one block selects up to here
SIZES = [1, 2, 31, 32, 33, 1023, 1024, 1025, 4095, 4096, 4097, 8193, SMALL, SMALL + 1, 70_000]
ORDERS = (0, 1, 2, 3)


def same_topk(gpu, x, k):
    expected, found = np.empty(k, np.uint32), np.full(k + 1, 7, np.uint32)
    K.topk(x, expected)
    gpu.topk(x, found[:k])
    return np.array_equal(found[:k], expected) and found[k] == 7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", SIZES)
def test_topk_of_every_size(d, dtype, gpu):
    x = np.random.default_rng(d).standard_normal(d + 1).astype(dtype)[1:]  # not aligned to 16 bytes
    x[d // 2] = -x[d // 3]
    for k in sorted({1, -(-d // 100), d // 4 + 1, d}):
        assert same_topk(gpu, x, k), k


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_topk_of_one_block_on_every_family(dtype, gpu):
    for name, x in inputs(4096, dtype):
        for order, k in zip(ORDERS, (40, 500, 3000, 4095), strict=True):
            cupy_on_cpu.ORDER = order
            assert same_topk(gpu, x.astype(dtype), k), (name, k, order)


def large_inputs(d, dtype):
    """Those of test_select, and what misleads the GPU's sample, 8192 of strata of d // 8192."""
    yield from inputs(d, dtype)
    stride = d // 8192
    sampled = np.zeros(d, bool)
    i = np.arange(8192)
    sampled[i * stride + (mix(i) * np.uint64(stride) >> np.uint64(32)).astype(int)] = True
    yield "too few candidates", np.where(sampled, 1e3 + np.arange(d) / d, 1.0 + np.arange(d) / d)
    yield "too many candidates", np.where(sampled, 0.0, 1.0 + np.arange(d) / d)
    yield "candidates in few tiles", np.where(np.arange(d) < d // 50, 1e3, 1.0) * np.random.default_rng(1).random(d)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_topk_of_many_blocks_on_every_family(dtype, gpu):
    d = SMALL + 5
    for j, (name, x) in enumerate(large_inputs(d, dtype)):
        cupy_on_cpu.ORDER = ORDERS[j % 2]
        for k in (d // 100, d // 5) if dtype == "float32" else (d // 100,):
            assert same_topk(gpu, x.astype(dtype), k), (name, k)


@pytest.mark.parametrize("k", [1, 700, 20_000])
def test_topk_in_any_order_of_threads(k, grid):
    x = np.round(np.random.default_rng(k).standard_normal(SMALL + 9) * 50).astype("f4")
    for cupy_on_cpu.ORDER in ORDERS:
        assert same_topk(grid, x, k)


def test_topk_waits_for_nothing(grid, monkeypatch):
    x, indices = device.to_device(np.ones(SMALL + 1, "f4")), device.empty(99, np.uint32)
    monkeypatch.setattr(cupy_on_cpu.ndarray, "get", None)
    grid._module.topk(x, indices)


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("target", ["float32", "float64"])
def test_gather_scatter_add_and_add_or_store(source, target, gpu):
    rng = np.random.default_rng(2)
    for n in (0, 1, 255, 256, 257, 1023, 1024, 1025, 5000):
        x = rng.standard_normal(n + 1).astype(source)[1:]
        x[: n // 3] *= np.finfo(source).smallest_subnormal * 10
        x[n // 2 : n // 2 + 2] = -0.0
        k = n - n // 4
        indices = rng.permutation(n)[:k].astype(np.uint32)
        results = []
        for kernels in (K, gpu):
            gathered, y = np.full(k, 7, target), np.linspace(-1, 1, n).astype(target)
            y[: n // 2] *= np.finfo(target).smallest_subnormal * 100
            kernels.gather(x, indices, gathered)
            kernels.scatter_add(gathered, indices, y, 0.1)
            kernels.scatter_add(x[:k], indices, y)
            kernels.add_or_store(x, y)
            kernels.add_or_store(x, y, weight=-1 / 3)
            results.append((gathered.tobytes(), y.tobytes()))
        assert results[0] == results[1], n


def test_random_subsets(gpu):
    for d, start, n in ((1, 0, 1), (2, 1, 1), (5, 0, 5), (129, 0, 129), (4097, 11, 4000), (2**32, 2**32 - 3000, 3000)):
        for cupy_on_cpu.ORDER in (0, 2):
            expected, found = np.empty(n, np.uint32), np.full(n + 1, 7, np.uint32)
            K.random_subset(2**64 - d, d, start, expected)
            gpu.random_subset(2**64 - d, d, start, found[:n])
            assert np.array_equal(found[:n], expected) and found[n] == 7
    gpu.random_subset(1, 0, 0, expected[:0])


@pytest.mark.parametrize("threshold", [0, 1, 2**20, 43_000_000, 2**31, 2**32 - 1, 2**32, 2**40])
def test_bernoulli(threshold, gpu):
    for d in (0, 1, 127, 128, 129, 4095, 4096, 4097, 40_000):
        cupy_on_cpu.ORDER = d % 4
        kept = K.bernoulli_count(5, d, threshold)
        assert gpu.bernoulli_count(5, d, threshold) == kept
        for room in {0, kept // 2, kept, kept + 3}:
            expected, found = np.full(room, 7, np.uint32), np.full(room + 1, 7, np.uint32)
            K.bernoulli_indices(5, d, threshold, expected)
            assert gpu.bernoulli_indices(5, d, threshold, found[:room]) == kept
            assert np.array_equal(found[:room], expected) and found[room] == 7
    with pytest.raises(ValueError, match="at most 2\\^32"):
        gpu.bernoulli_count(5, 2**32 + 1, threshold)
