"""The cosine transform on the GPU: the bytes of the CPU."""

import numpy as np
import pytest

from compress._cpu import kernels as cpu
from compress._gpu import device

SIZES = [*range(66), 95, 127, 128, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097, 5000, 8191, 70_000]


def inputs(n, dtype):
    """Gaussian, numbers of all sizes whose sums stay finite, denormals alone, zeros of both signs."""
    rng = np.random.default_rng(n)
    info = np.finfo(dtype)
    yield rng.standard_normal(n).astype(dtype)
    yield np.ldexp(rng.standard_normal(n), rng.integers(info.minexp - info.nmant, info.maxexp - 10, n)).astype(dtype)
    yield (info.smallest_subnormal * rng.integers(-300, 300, n)).astype(dtype)
    yield np.where(rng.random(n) < 0.5, 0.0, -0.0).astype(dtype)
    yield np.full(n, -0.0, dtype)


def on_cpu(x, inverse):
    out = np.empty_like(x)
    cpu.dct(x, out, inverse)
    return out.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("inverse", [False, True])
def test_sizes(gpu, inverse, dtype):
    for n in SIZES:
        for x in inputs(n, dtype):
            expected = on_cpu(x, inverse)
            x.flags.writeable = False
            out = np.full_like(x, np.nan)
            gpu.dct(x, out, inverse)
            assert out.tobytes() == expected, n
            place = x.copy()
            gpu.dct(place, place, inverse)
            assert place.tobytes() == expected, n


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("order", range(4))
def test_order_and_alignment_do_not_matter(gpu, order, inverse, dtype):
    module = device.cupy()
    if order and not hasattr(module, "ORDER"):
        pytest.skip("a GPU has an order of its own")
    if order:
        module.ORDER = order
    try:
        for n in (63, 4500):
            for whole in inputs(n + 4, dtype):
                expected = np.concatenate([whole[:3], np.frombuffer(on_cpu(whole[3:-1], inverse), dtype), whole[-1:]])
                gpu.dct(whole[3:-1], whole[3:-1], inverse)
                assert whole.tobytes() == expected.tobytes()
    finally:
        if order:
            module.ORDER = 0
