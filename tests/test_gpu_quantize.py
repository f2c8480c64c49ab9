"""The GPU's quantisers: what the CPU writes, to the byte, on the host's grid and where there is a GPU."""

import zlib

import numpy as np
import pytest
from cuda_on_cpu import cupy_on_cpu
from test_philox import random16

from compress import _cpu
from compress._gpu import device

K = _cpu.kernels
KEY, SHARED = 0x9E3779B97F4A7C15, 0xDEADBEEFCAFEF00D
SIZES = [0, 1, 2, 31, 32, 33, 1023, 1024, 1025, 4095, 4096, 4097, 5000, 70_000]
LEVELS = [2, 3, 4, 5, 15, 33, 127, 255, 257, 1025, 8191, 65535, 65536]
TYPES = [np.float32, np.float64]
SCALES = [0.0, 5e-324, 1e-300, 1e-45, 1e-31, 8e-31, 3e-30, 1.0, 1e29, 1e31, 3e38, 1e39, 1e308]
NO_SCALES = [-1.0, np.inf, -np.inf, np.nan]


@pytest.fixture
def rng(request):
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


def vector(rng, n, dtype, scale=1.0):
    """Numbers of many sizes up to scale, both zeros, denormals, at an address that is one of theirs alone."""
    with np.errstate(all="ignore"):
        x = (rng.uniform(-1, 1, n + 1) * 2.0 ** -rng.integers(0, 30, n + 1) * scale).astype(dtype)[1:]
    tiny = np.finfo(dtype).smallest_subnormal
    for i, value in enumerate([0.0, -0.0, tiny, -3 * tiny, scale, -scale, 2 * scale]):
        x[i + 5 :: 97] = np.clip(value, -np.finfo(dtype).max, np.finfo(dtype).max)
    return x


def payload(size, offset):
    """Bytes at an odd address, or as aligned as they come."""
    return np.full(size + offset + 3, 0xA5, np.uint8)[offset:]


def scales_of(scales, wire, offset):
    with np.errstate(over="ignore"):
        data = np.asarray(scales, np.float64).astype(f"f{wire}").view(np.uint8)
    return np.concatenate([np.full(offset, 7, np.uint8), data])


def same(gpu, name, out, *arguments, **named):
    """Both kernels on copies of `out`; nothing behind it changes."""
    found = []
    for kernels in (K, gpu):
        copy = payload(out.nbytes, out.ctypes.data % 4)[: out.nbytes + 3]
        copy[: out.nbytes] = out.reshape(-1).view(np.uint8)
        target = copy[: out.nbytes].view(out.dtype) if out.itemsize == 1 else out.copy()
        getattr(kernels, name)(*[target if a is out else a for a in arguments], **named)
        assert out.itemsize > 1 or (copy[out.nbytes :] == 0xA5).all()
        found.append(target)
    np.testing.assert_array_equal(*found, err_msg=f"{name} {named}")  # NaN is as good as NaN
    assert found[0].itemsize == 1 or (np.signbit(found[0]) == np.signbit(found[1]))[~np.isnan(found[0])].all()
    return found[0]


def packed_bytes(n, levels):
    return -(-K.pack_bits(n, K.pack_width(levels)) // 8)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", SIZES)
def test_quantize_and_back(n, dtype, gpu, rng):
    for turn in range(len(LEVELS) if n < 5000 else 4):
        levels = LEVELS[turn] if n < 5000 else int(rng.choice(LEVELS))
        block = int(rng.choice([max(n, 1), n + 5, 1024, 4096]))
        count, wire, offset = -(-n // block), int(rng.choice([4, 8])), int(rng.integers(0, 4))
        scales = scales_of(rng.choice(SCALES[7:8] * 3 + SCALES, max(count, 1)), wire, offset)
        x = vector(rng, n, dtype, float(rng.choice([1.0, 1e-31, 1e30])))
        codes = payload(packed_bytes(n, levels), int(rng.integers(0, 4)))[: packed_bytes(n, levels)]
        how = [
            {},
            {"nearest": True},
            {"natural": levels % 2 == 1 and levels < 200},
            {"shared": SHARED, "worker": 3, "workers": 10},
        ][turn % 4]
        arguments = scales, offset, wire, block, levels
        codes = same(gpu, "quantize_pack", codes, x, *arguments, KEY, codes, **how)
        for kind in TYPES:
            out = vector(rng, n, kind)
            natural = how.get("natural", False)
            same(gpu, "unpack_scale", out, codes, *arguments, 1.0, out, add=False, natural=natural)
            same(gpu, "unpack_scale", out, codes, *arguments, -0.3, out, add=True, natural=natural)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_scale(dtype, gpu, rng):
    """And numbers that are none: they end in some code, the same one."""
    n = 1100
    for scale in SCALES + NO_SCALES:
        for levels, how in [(15, {}), (65535, {}), (3, {"natural": True}), (65535, {"nearest": True})]:
            x = vector(rng, n, dtype, min(abs(scale), 1e300) if np.isfinite(scale) else 1.0)
            x[3::50], x[4::50], x[5::50] = np.nan, np.inf, -np.inf
            codes = np.zeros(packed_bytes(n, levels), np.uint8)
            arguments = scales_of([scale], 8, 0), 0, 8, n, levels
            with np.errstate(all="ignore"):
                codes = same(gpu, "quantize_pack", codes, x, *arguments, KEY, codes, **how)
                out = vector(rng, n, dtype)
                same(gpu, "unpack_scale", out, codes, *arguments, 0.7, out, True, how.get("natural", False))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("levels", [3, 5, 17, 33, 257, 1025, 32769])
def test_every_coordinate_is_looked_at_twice(levels, dtype, gpu, rng):
    """Sums whose low half is all ones, everywhere: in whole blocks and tails, of words and of trits."""
    n = 2300
    random = np.array([random16(e, KEY) for e in range(n)])
    steps = rng.integers(-(levels - 1) // 2, (levels - 1) // 2, n)
    position = steps * 65536.0 + 65535 - random + rng.integers(0, 16, n) / 16
    x = (position / 65536 * 2 / (levels - 1)).astype(dtype)
    scales, size = scales_of([1.0], 4, 0), packed_bytes(n, levels)
    for offset in (0, 1):
        out = payload(size, offset)[:size]
        same(gpu, "quantize_pack", out, x, scales, 0, 4, n, levels, KEY, out)
    if levels < 100:
        magnitude = 1 + (65535 - random + rng.uniform(0, 1, n)) / 65536
        x = (magnitude * 2.0 ** -rng.integers(1, 9, n) * rng.choice([-1, 1], n)).astype(dtype)
        x[::3] = (65535 - random[::3] + 0.5) / 65536 * 2.0 ** (1 - levels // 2)
        same(gpu, "quantize_pack", out, x, scales, 0, 4, n, levels, KEY, out, natural=True)
        powers = np.zeros(n + -(-n // 8), np.uint8)
        same(gpu, "power_pack", powers, x, KEY, powers)


@pytest.mark.parametrize("workers", [1, 2, 3, 16, 31, 100, 1024])
def test_every_worker_has_its_place(workers, gpu, rng):
    n, levels = 9000, 5
    x, scales = vector(rng, n, np.float32), scales_of([1.0], 4, 0)
    for worker in sorted({0, workers - 1, workers // 2, *rng.integers(0, workers, 4).tolist()}):
        named = {"shared": SHARED + worker % 3, "worker": worker, "workers": workers}
        for natural in (False, True):
            out = np.zeros(packed_bytes(n, levels), np.uint8)
            same(gpu, "quantize_pack", out, x, scales, 0, 4, n, levels, KEY, out, natural=natural, **named)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", [1, 33, 1024, 4096, 4097, 9000, 20_000])
def test_scales(n, dtype, gpu, rng):
    for block in {1024, 1500, 4096, 5000, n, n + 3} | ({1, 7} if n < 100 else set()):
        for which in (K.NORM_L2, K.NORM_MAX, K.NORM_MEAN_ABS):
            wire, offset, count = int(rng.choice([4, 8])), int(rng.integers(0, 8)), -(-n // block)
            x = vector(rng, n, dtype, float(rng.choice([1.0, 1e-40, 1e30, 1e300 if dtype == np.float64 else 1e38])))
            if rng.random() < 0.5:
                for at in rng.integers(0, n, 2):
                    x[at] = rng.choice([np.nan, np.inf, -np.inf, np.finfo(dtype).max, 1e-39])
            out = np.full(offset + count * wire, 0x5A, np.uint8)
            other = out.copy()
            status = K.write_scales(x, block, which, wire, out, offset)
            assert gpu.write_scales(x, block, which, wire, other, offset) == status
            np.testing.assert_array_equal(other, out)
            bad = K.bad_scale(out, offset, count, wire)
            assert gpu.bad_scale(out, offset, count, wire) == bad == -1


def test_the_first_failure_says(gpu):
    x = np.ones(5000)
    for at, value in [(4999, 1e300), (3000, np.nan), (1500, 1e39), (20, 1e-300), (21, np.inf)]:
        x[at // 1024 * 1024 : at // 1024 * 1024 + 1024] = 0
        x[at] = value
        for wire in (4, 8):
            out, other = np.ones((2, 5 * wire), np.uint8)
            status = K.write_scales(x, 1024, K.NORM_MAX, wire, out, 0)
            assert gpu.write_scales(x, 1024, K.NORM_MAX, wire, other, 0) == status
            np.testing.assert_array_equal(other, out)
    assert status == 1 and (out.view(np.float64) == [0, 1e39, 0, 1, 1e300]).all()


def test_bad_scale_is_the_first(gpu, rng):
    for wire, count in [(4, 1), (8, 40), (4, 3000)]:
        for offset in (0, 3):
            scales = rng.uniform(0, 1, count)
            for bad in (-1e-40, np.nan, np.inf):
                scales[rng.integers(0, count)] = bad
                data = scales_of(scales, wire, offset)
                assert gpu.bad_scale(data, offset, count, wire) == K.bad_scale(data, offset, count, wire) >= 0
            assert gpu.bad_scale(data, offset, 0, wire) == -1


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", SIZES)
def test_powers(n, dtype, gpu, rng):
    top = np.finfo(dtype).maxexp
    for shift, scale in [(0, 1.0), (0, 1e-38), (3, 2.0**120), (126 - top, 2.0 ** (top - 1)), (227, 1e-31), (1200, 0.0)]:
        x = vector(rng, n, dtype, scale)
        most = min(2.0 ** min(126 - shift, 1023), float(np.finfo(dtype).max))
        x = np.clip(x, -most, most) if shift < 1000 else x * 0
        out = payload(n + -(-n // 8), n % 4)[: n + -(-n // 8)]
        out = same(gpu, "power_pack", out, x, KEY, out, shift=shift)
        for kind, add, back in [
            (np.float32, False, shift),
            (np.float64, True, shift),
            (np.float32, True, -int(shift / 2)),
        ]:
            y = vector(rng, n, kind)
            same(gpu, "unpower_scale", y, out, 0.3 if add else 1.0, y, add, back)


def test_any_bytes_unpack(gpu, rng):
    for n in (5, 1024, 2047, 3000):
        data = rng.integers(0, 256, 2 * n + 4, dtype=np.uint8)
        for levels in LEVELS:
            for natural in (False, True):
                scales = rng.integers(0, 256, 8, dtype=np.uint8)
                for dtype in TYPES:
                    out = vector(rng, n, dtype)
                    with np.errstate(all="ignore"):
                        same(gpu, "unpack_scale", out, data, scales, 0, 8, n, levels, 0.5, out, True, natural)
        for shift in (0, -1000, 1300, 5000, -5000):
            same(gpu, "unpower_scale", out, data, 0.5, out, True, shift)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_no_order_of_threads_shows(order, gpu, rng):
    cupy_on_cpu.ORDER = order
    n = 9500
    x = vector(rng, n, np.float32)
    x[5000] = np.nan
    for levels, block, offset, how in [
        (3, 1024, 0, {}),
        (15, n, 1, {"shared": 1, "worker": 9, "workers": 50}),
        (255, 4096, 0, {"nearest": True}),
        (15, 2048, 3, {"natural": True}),
    ]:
        scales, count = np.zeros(4 * -(-n // block), np.uint8), -(-n // block)
        status = K.write_scales(x, block, K.NORM_L2, 4, scales, 0)
        other = np.zeros_like(scales)
        assert gpu.write_scales(x, block, K.NORM_L2, 4, other, 0) == status == 1
        np.testing.assert_array_equal(other, scales)
        assert gpu.bad_scale(scales, 0, count, 4) == -1
        size = packed_bytes(n, levels)
        codes = payload(size, offset)[:size]
        codes = same(gpu, "quantize_pack", codes, x, scales, 0, 4, block, levels, KEY, codes, **how)
        out = vector(rng, n, np.float32)
        same(gpu, "unpack_scale", out, codes, scales, 0, 4, block, levels, 0.5, out, True, how.get("natural", False))
    powers = np.zeros(n + -(-n // 8), np.uint8)
    powers = same(gpu, "power_pack", powers, x[:4000], KEY, powers, shift=order)
    same(gpu, "unpower_scale", out, powers, 0.5, out, True, shift=order)


def test_errors_read_the_same(gpu):
    x, out, scale = np.ones(3000, np.float32), np.zeros(3400, np.uint8), np.ones(1, np.float32).view(np.uint8)
    calls = [
        ("quantize_pack", x, scale, 0, 4, 3000, 15, 1, out[:1499]),
        ("quantize_pack", x, scale, 1, 4, 3000, 15, 1, out),
        ("quantize_pack", x, scale, 2**63 - 4, 4, 3000, 15, 1, out),
        ("quantize_pack", x, scale, 0, 4, 1000, 15, 1, out),
        ("quantize_pack", x, scale, 0, 4, 0, 15, 1, out),
        ("quantize_pack", x, scale, 0, 4, 3000, 1, 1, out),
        ("quantize_pack", x, scale, 0, 4, 3000, 65537, 1, out),
        ("quantize_pack", x, scale, -1, 4, 3000, 15, 1, out),
        ("quantize_pack", x, scale, 0, 2, 3000, 15, 1, out),
        ("quantize_pack", x, scale, 0, 4, 3000, 15, 1, out, False, False, 0, 3, 3),
        ("quantize_pack", x, scale, 0, 4, 3000, 15, 1, out, False, False, 0, 3, 1025),
        ("quantize_pack", out, scale, 0, 4, 3000, 15, 1, out),
        ("unpack_scale", out[:10], scale, 0, 4, 3000, 15, 1.0, x),
        ("unpack_scale", out, scale, 0, 4, 1024, 15, 1.0, x),
        ("write_scales", x, 0, 0, 4, scale, 0),
        ("write_scales", x, 3000, 0, 16, scale, 0),
        ("write_scales", x, 1000, 0, 4, scale, 0),
        ("bad_scale", scale, 0, 2, 4),
        ("bad_scale", scale, 1, 1, 4),
        ("power_pack", x, 1, out[:3374]),
        ("unpower_scale", out[:3374], 1.0, x),
    ]
    for name, *arguments in calls:
        errors = []
        for kernels in (K, gpu):
            with pytest.raises((ValueError, TypeError)) as caught:
                getattr(kernels, name)(*arguments)
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1], name


def test_a_status_waits_until_it_is_looked_at(gpu):
    x, out = device.cupy().asarray(np.float32([1, np.nan])), device.zeros(8, np.uint8)
    status = gpu._module.write_scales(x, 1, K.NORM_MAX, 4, out, 0)
    assert isinstance(status, device.Status) and status and status == 1
    assert isinstance(bad := gpu._module.bad_scale(out, 0, 2, 4), device.Status) and not bad >= 0
