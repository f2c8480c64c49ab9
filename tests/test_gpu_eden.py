"""Eden on the GPU: the bytes and vectors of the CPU, whatever the rate, the size, the range or the order of threads."""

import numpy as np
import pytest

from compress._cpu import kernels as cpu
from compress._gpu import device, eden

ONE = 65536
DTYPES = (np.float32, np.float64)
RATES = [ONE, ONE + 1, 98304, 104858, 2 * ONE, 150_000, 3 * ONE, 4 * ONE, 300_000, 6 * ONE, 7 * ONE, 510_000, 8 * ONE]
KEY = 0x0123456789ABCDEF
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)


def gaussian(d, dtype=np.float32, seed=0):
    return np.random.default_rng(seed + d).standard_normal(d).astype(dtype)


def room(d, rate, wire, skip=0):
    """A payload full of what must be overwritten, at an odd address if wanted, with four bytes more than it needs."""
    codes, scales = cpu.eden_layout(d, rate, wire)
    return np.full(skip + codes + scales * wire + 4, 0xC3, np.uint8)[skip:]


def same_bytes(gpu, x, rate, unbiased=False, wire=4, skip=0):
    """The payload, which the CPU and the GPU write alike."""
    expected, found = room(x.size, rate, wire), room(x.size, rate, wire, skip)
    status = cpu.eden_encode(x, rate, unbiased, wire, KEY, expected)
    assert gpu.eden_encode(x, rate, unbiased, wire, KEY, found) == status == 0
    np.testing.assert_array_equal(found, expected)
    return found


def same_vector(gpu, payload, d, dtype, rate, wire=4):
    for add, weight in ((False, 1.0), (True, 1.0), (True, -0.3)):
        expected = gaussian(d, dtype, 1)
        found = expected.copy()
        with np.errstate(all="ignore"):
            cpu.eden_decode(payload, rate, wire, KEY, weight, expected, add)
        gpu.eden_decode(payload, rate, wire, KEY, weight, found, add)
        assert found.tobytes() == expected.tobytes()


def same(gpu, x, rate, unbiased=False, wire=4, skip=0):
    same_vector(gpu, same_bytes(gpu, x, rate, unbiased, wire, skip), x.size, x.dtype, rate, wire)


@dtypes
@pytest.mark.parametrize("rate", RATES)
def test_every_rate(gpu, rate, dtype):
    same(gpu, gaussian(9000, dtype), rate, unbiased=rate % 2 == 1, wire=8 if dtype == np.float64 else 4)
    same(gpu, gaussian(8192, dtype), rate, unbiased=rate % 2 == 0)


@pytest.mark.parametrize("d", [*range(1, 40), 63, 64, 65, 127, 128, 129, 200, 1023, 1024, 1025, 4095, 4096, 4097])
def test_every_short_size(gpu, d):
    x = gaussian(d, DTYPES[d % 2])
    same(gpu, x, RATES[d % len(RATES)], d % 3 == 0, 4 if d % 2 else 8)


@pytest.mark.parametrize("d", [5000, 8191, 8192, 8193, 12_287, 12_288, 12_289, 20_000])
def test_sizes(gpu, d):
    for i, dtype in enumerate(DTYPES):
        for rate in (2 * ONE, RATES[(d + i) % len(RATES)]):
            same(gpu, gaussian(d, dtype), rate, d % 2 == 0, 8 if i else 4)


@pytest.mark.parametrize("rate", [ONE, 98304, 3 * ONE, 300_000])
def test_no_order_of_threads_counts(gpu, order, rate):
    x = gaussian(12_300)
    x[4096:8192] *= np.float32(1e-38)
    same(gpu, x, rate)


@pytest.mark.parametrize("rate", [4 * ONE, 98304])
def test_a_block_takes_many_spans(gpu, order, rate, monkeypatch):
    monkeypatch.setattr(eden, "_SHARES", 2)
    monkeypatch.setattr(eden, "_BLOCKS", 2)
    x = gaussian(7 * 4096 + 100)
    for span in (0, 2, 3, 5):
        x[span * 4096 : (span + 1) * 4096] *= np.float32(1e-38 if span % 2 else 1e36)
    same(gpu, x, rate)


@pytest.mark.parametrize("skip", [1, 2, 3, 4, 7])
def test_payloads_and_vectors_at_any_address(gpu, skip):
    for rate in (2 * ONE, 3 * ONE, 150_000, 8 * ONE):
        same(gpu, gaussian(9000 + skip)[skip:], rate, skip=skip)
        same(gpu, gaussian(9000 + skip, np.float64)[skip:], rate, wire=8, skip=skip)


@dtypes
@pytest.mark.parametrize("rate", [2 * ONE, 150_000])
def test_ranges_mixed(gpu, rate, dtype):
    """Spans that are recentred, in either direction or hardly, between others; the edges of the range; zeros."""
    sizes = [1, 1e37, 1e-40, 0, 1, 7.9e-31, 7.8e-31, 1.2e30, 1.3e30, 1, 1e-45, 1, 1e-31, 4e29]
    x = np.concatenate([gaussian(4096, np.float64, i) * size for i, size in enumerate(sizes)])
    x[4096 * 4 + 5] = 1e28  # a spike
    x[4096 * 6 : 4096 * 7] = 0
    x[4096 * 6] = 7.9e-31  # max |x| decides, which the norm leaves open
    x[4096 * 9 : 4096 * 10] = np.where(np.arange(4096) % 7, -0.0, 1e-44)
    x[4096 * 11 : 4096 * 12] = np.where(np.arange(4096) % 4095, -0.0, 0.0)
    x = x.astype(dtype)
    same(gpu, x, rate, wire=8 if dtype == np.float64 else 4)
    same(gpu, np.concatenate([x, gaussian(100, dtype) * dtype(1e-35)]), rate, True, 8)
    for size in (1e37, 1e-40, 0, -0.0, 1e-45):
        for d in (1, 2, 100, 5000):
            same(gpu, gaussian(d, dtype) * dtype(size), rate, wire=8)


def test_one_that_vanishes_in_the_transform(gpu):
    """The least denormal times 1 / 64 is zero in float32, and not what is encoded."""
    x = np.zeros(8192, np.float32)
    x[17] = 1e-45
    same(gpu, x, 2 * ONE, wire=8)


@pytest.mark.parametrize("rate", [2 * ONE, 150_000])
def test_the_first_failure_is_reported(gpu, rate):
    def status(x, wire):
        expected, found = room(x.size, rate, wire), room(x.size, rate, wire)
        with np.errstate(all="ignore"):
            first = cpu.eden_encode(x, rate, False, wire, KEY, expected)
        assert gpu.eden_encode(x, rate, False, wire, KEY, found) == first
        return first

    for d in (100, 4096, 8191, 8192, 20_000):
        for value in (np.nan, -np.inf, np.inf):
            for at in {0, d // 2, d - 1}:
                for dtype in DTYPES:
                    x = gaussian(d, dtype)
                    x[at] = value
                    assert status(x, 4) == 1
    x = gaussian(16_384, np.float64)
    x[5000:5100] *= 1e300  # leaves float32's range
    assert (status(x, 4), status(x, 8)) == (2, 0)
    x[9000] = np.nan
    assert (status(x, 4), status(x, 8)) == (2, 1)
    x[17] = np.inf
    assert status(x, 4) == 1
    x = gaussian(7000, np.float64) * 1e-300
    x[6000] = 1e-310
    assert status(x, 4) == 2
    assert status(np.full(9000, np.finfo(np.float32).max), 4) == status(np.full(9000, np.finfo(np.float32).max), 8)


def test_a_status_is_not_waited_for(gpu):
    x, payload = device.to_device(gaussian(5000)), device.zeros(3000, np.uint8)
    status = gpu._module.eden_encode(x, 2 * ONE, False, 4, KEY, payload)
    assert isinstance(status, device.Status) and not status and status == 0
    assert gpu._module.eden_encode(device.zeros(0, np.float32), 2 * ONE, False, 4, KEY, payload) == 0


@dtypes
@pytest.mark.parametrize("rate", RATES)
def test_bytes_that_no_encoder_writes(gpu, rate, dtype):
    rng = np.random.default_rng(rate)
    for d in (7, 4096, 8200, 12_288):
        for wire in (4, 8):
            payload = rng.integers(0, 256, room(d, rate, wire).size, np.uint8)
            codes, count = cpu.eden_layout(d, rate, wire)
            scales = payload[codes : codes + count * wire].view(f"f{wire}")
            scales[:] = rng.choice([0, 1, 1e-42, 3e38, -1.5, np.inf], count)
            same_vector(gpu, payload, d, dtype, rate, wire)
            payload[:] = 255
            scales[:] = 1e-3
            same_vector(gpu, payload, d, dtype, rate, wire)


def test_arguments(gpu):
    x, payload = gaussian(5000), room(5000, 2 * ONE, 4)
    with pytest.raises(ValueError, match="payload has 1000 elements"):
        gpu.eden_encode(x, 2 * ONE, False, 4, KEY, payload[:1000])
    with pytest.raises(ValueError, match="payload has 1000 elements"):
        gpu.eden_decode(payload[:1000], 2 * ONE, 4, KEY, 1.0, x)
    for rate in (ONE - 1, 8 * ONE + 1):
        with pytest.raises(ValueError, match="rate must lie"):
            gpu.eden_encode(x, rate, False, 4, KEY, payload)
    with pytest.raises(ValueError, match="wire must be 4 or 8"):
        gpu.eden_decode(payload, 2 * ONE, 2, KEY, 1.0, x)
    with pytest.raises(TypeError, match="expected a vector"):
        gpu.eden_encode(payload, 2 * ONE, False, 4, KEY, payload)
