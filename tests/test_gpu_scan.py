"""Prefix sums of the GPU."""

import backends
import numpy as np
import pytest
from cuda_on_cpu import cupy_on_cpu

from compress._gpu import device
from compress._gpu.scan import exclusive_scan


@pytest.fixture(params=["gpu", 0, 1, 2])
def order(request):
    """A GPU, or the order of threads of the grid."""
    if request.param == "gpu":
        backends.use("gpu")
        yield
        return
    backends.use("grid")
    cupy_on_cpu.ORDER = request.param
    yield request.param
    cupy_on_cpu.ORDER = 0
    device._cupy = None


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 255, 256, 257, 8191, 8192, 8193, 70_000])
def test_sums_of_those_before(n, dtype, order):
    values = np.random.default_rng(n).integers(0, 2 ** (8 * np.dtype(dtype).itemsize - 8), n).astype(dtype)
    sums = np.cumsum(values, dtype=dtype)  # wraps around, as ours do
    moved = device.to_device(np.r_[values, np.full(3, 7, dtype)])
    total = exclusive_scan(moved[:n])
    assert total.dtype == dtype and total.get().tolist() == [sums[-1] if n else 0]
    assert np.array_equal(moved.get(), np.r_[(sums - values), np.full(3, 7, dtype)])
