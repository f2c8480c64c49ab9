"""The rounding kernels against their definition in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from test_philox import philox, random16

KEY = 0x9E3779B97F4A7C15


def tie32(e, key):
    call = e >> 2
    return philox((call & 0xFFFFFFFF, call >> 32, 1, 0), (key & 0xFFFFFFFF, key >> 32))[e & 3]


def quantize(kernels, x, scale, levels, key=KEY, **options):
    """Codes of one block with a given scale."""
    width = kernels.pack_width(levels)
    out = np.zeros(-(-kernels.pack_bits(x.size, width) // 8), np.uint8)
    scales = np.array([scale], np.float64).view(np.uint8)
    kernels.quantize_pack(x, scales, 0, 8, x.size, levels, key, out, **options)
    codes = np.empty(x.size, np.uint16)
    kernels.unpack(out, width, codes)
    return out, codes.astype(int)


def unpack(kernels, packed, scale, levels, d, dtype, **options):
    out = np.empty(d, dtype)
    scales = np.array([scale], np.float64).view(np.uint8)
    kernels.unpack_scale(packed, scales, 0, 8, d, levels, 1.0, out, **options)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [2, 3, 4, 15, 16, 255, 65536])
def test_dither_is_48_bit_fixed_point(kernels, levels, dtype):
    rng = np.random.default_rng(levels)
    x = rng.standard_normal(1500).astype(dtype)
    x[::7] *= dtype(1e-6)
    x[:4] = 0, -0.0, 5e-5, -5e-5
    scale = float(np.abs(x).max())
    inv16 = dtype(dtype((levels - 1) / (2 * scale)) * dtype(65536))
    _, codes = quantize(kernels, x, scale, levels)
    top = Fraction((levels - 1) * 32768)
    for e in range(x.size):
        y = max(-top, min(top, Fraction(float(x[e] * inv16)))) / 65536
        random48 = Fraction(random16(e, KEY) * 2**32 + tie32(e, KEY), 2**48)
        exact = y + Fraction(levels - 1, 2) + random48
        # the rest of y is compared in float64, so a sum within 2^-48 of an integer may fall either way
        assert abs(codes[e] - int(exact // 1)) <= (abs(exact - round(exact)) < Fraction(1, 2**47))


def test_second_look_keeps_tiny_coordinates(kernels):
    """Coordinates of 2^-20 step: 16 bits alone would lose them, or round up 16 times too often."""
    d, levels = 1 << 22, 3
    x = np.full(d, 2.0**-20, np.float32)
    _, codes = quantize(kernels, x, 1.0, levels)
    ups = int((codes == 2).sum())
    mean = d * 2.0**-20
    assert (codes >= 1).all()
    assert abs(ups - mean) < 5 * np.sqrt(mean) + 1
    negative = -x
    _, codes = quantize(kernels, negative, 1.0, levels)
    assert abs(int((codes == 0).sum()) - mean) < 5 * np.sqrt(mean) + 1
    assert (codes <= 1).all()


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 16, 255])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest(kernels, levels, dtype):
    x = np.random.default_rng(1).uniform(-1, 1, 3000).astype(dtype)
    _, codes = quantize(kernels, x, 1.0, levels, nearest=True)
    values = (2 * codes - (levels - 1)) / (levels - 1)
    assert np.abs(values - x).max() <= 1 / (levels - 1) * (1 + 1e-6)


def test_nearest_of_two_is_the_sign(kernels):
    x = np.array([1e-45, -1e-45, 0.0, -0.0, 3e38, -3e38], np.float32)
    _, codes = quantize(kernels, x, 1.0, 2, nearest=True)
    assert codes.tolist() == [1, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("levels", [2, 3, 15, 255])
@pytest.mark.parametrize("natural", [False, True])
def test_every_scale_is_unbiased(kernels, scale, levels, natural):
    if natural and levels % 2 == 0:
        return
    d = 1 << 16
    grid = np.array([-1, -0.3, 0.2, 0.7])
    x = (np.repeat(grid, d // 4) * scale).astype(np.float32)
    m = float(np.abs(x).max())
    packed, _ = quantize(kernels, x, m, levels, natural=natural)
    y = unpack(kernels, packed, m, levels, d, np.float32, natural=natural).astype(float) / m
    groups = y.reshape(4, -1)
    truth = (x.astype(float) / m).reshape(4, -1)[:, 0]
    error = np.abs(groups.mean(1) - truth)
    resolution = 2.0**-149 / m  # what a denormal output can hold
    assert (error <= 5 * groups.std(1) / np.sqrt(d / 4) + 1e-6 + resolution).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("s", [1, 3, 7, 60])
def test_natural_rounds_to_neighbouring_powers(kernels, s, dtype):
    rng = np.random.default_rng(s)
    x = (rng.uniform(-1, 1, 5000) * 2.0 ** -rng.integers(0, s + 3, 5000)).astype(dtype)
    packed, codes = quantize(kernels, x, 1.0, 2 * s + 1, natural=True)
    y = unpack(kernels, packed, 1.0, 2 * s + 1, x.size, dtype, natural=True).astype(float)
    q = codes - s
    np.testing.assert_array_equal(y, np.where(q == 0, 0, np.sign(q) * 2.0 ** (np.abs(q) - s)))
    a = np.abs(x.astype(float))
    low = np.where(a < 2.0 ** (1 - s), 0, 2.0 ** np.floor(np.log2(np.maximum(a, 1e-300))))
    high = np.where(low == 0, 2.0 ** (1 - s), np.where(low == a, low, 2 * low))
    assert ((np.abs(y) == low) | (np.abs(y) == high)).all()
    assert (y * x >= 0).all()
    np.testing.assert_allclose((np.abs(y) - a).sum(), 0, atol=5 * np.sqrt(((high - low) ** 2 / 4).sum()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_pack_is_natural_compression(kernels, dtype):
    d = 1 << 16
    x = np.repeat(np.array([1.5, -0.75, 3 * 2.0**-140, -1e-30, 1e30, 0, 1.0, -1.3]), d // 8).astype(dtype)
    packed = np.empty(d + d // 8, np.uint8)
    kernels.power_pack(x, KEY, packed)
    y = np.empty(d, np.float64)
    kernels.unpower_scale(packed, 1.0, y)
    for group, value in zip(y.reshape(8, -1), x.reshape(8, -1)[:, 0].astype(float), strict=True):
        magnitudes = np.unique(np.abs(group))
        assert len(magnitudes) <= 2
        assert abs(group.mean() - value) <= 5 * group.std() / np.sqrt(group.size)
    assert (y.reshape(8, -1)[5] == 0).all() and (y.reshape(8, -1)[6] == 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [-700, -3, -2, 5, 300, 1200])
def test_a_shift_is_ldexp_in_float64(kernels, shift, dtype):
    shift = min(shift, 127 - np.finfo(dtype).minexp + np.finfo(dtype).nmant - 4)  # of the smallest numbers
    rng = np.random.default_rng(abs(shift))
    least, most = max(np.finfo(dtype).minexp - 60, -300 - shift), min(np.finfo(dtype).maxexp, 127 - shift)
    x = np.ldexp(rng.uniform(-1, 1, 3000), rng.integers(min(least, most - 1), most, 3000)).astype(dtype)
    x[:8] = np.finfo(dtype).smallest_subnormal * np.array([-1, -2, -3, -5, -7, 3, 0, -0.0])
    packed, expected = np.zeros((2, 3000 + 375), np.uint8)
    kernels.power_pack(x, KEY, packed, shift)
    kernels.power_pack(np.ldexp(x.astype(np.float64), shift), KEY, expected)
    np.testing.assert_array_equal(packed, expected)
    values, top = np.empty(3000), np.finfo(dtype).max
    packed[:256] = np.arange(256)
    kernels.unpower_scale(packed, 1.0, values)
    with np.errstate(over="ignore"):
        values = np.clip(np.ldexp(values, -shift), -top, top).astype(dtype)
    out = rng.standard_normal(3000).astype(dtype)
    expected = out + dtype(0.3) * values
    kernels.unpower_scale(packed, 0.3, out, True, shift)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("scale", [7.9e-31, 1e-30, 6e-30, 1e-29])
def test_many_levels_of_a_small_scale(kernels, scale):
    """2^16 inv would leave float32's range."""
    x = np.zeros(1024, np.float32)
    x[0] = scale
    _, codes = quantize(kernels, x, scale, 65535)
    assert codes[0] in (65533, 65534) and (codes[1:] == 32767).all()


def test_decode_add_order(kernels):
    """out[i] += unit * code, one multiplication and one addition in out's type."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(3000).astype(np.float32)
    scale = float(np.abs(x).max())
    packed, codes = quantize(kernels, x, scale, 15)
    out = rng.standard_normal(3000).astype(np.float32)
    unit = np.float32(0.3 * (scale / 14))
    expected = out + unit * (2 * codes - 14).astype(np.float32)
    kernels.unpack_scale(packed, np.array([scale]).view(np.uint8), 0, 8, 3000, 15, 0.3, out, True)
    np.testing.assert_array_equal(out, expected)


def test_blocks_have_their_own_scale(kernels):
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    x[2048:4096] *= 1e-20
    payload = np.empty(3 * 4, np.uint8)
    assert kernels.write_scales(x, 2048, kernels.NORM_MAX, 4, payload, 0) == 0
    scales = payload.view(np.float32)
    np.testing.assert_array_equal(scales, [np.abs(x[i : i + 2048]).max() for i in (0, 2048, 4096)])


def test_scales_round_up_and_report_their_range(kernels):
    payload = np.empty(8, np.uint8)
    x = np.array([1 + 2.0**-40])
    assert kernels.write_scales(x, 1, kernels.NORM_MAX, 4, payload, 0) == 0
    assert payload[:4].view(np.float32)[0] == np.nextafter(np.float32(1), np.float32(2))
    assert kernels.write_scales(np.array([1e39]), 1, kernels.NORM_MAX, 4, payload, 0) == 2
    assert kernels.write_scales(np.array([1e-39]), 1, kernels.NORM_MAX, 4, payload, 0) == 2
    assert kernels.write_scales(np.array([1e-39], np.float32), 1, kernels.NORM_MAX, 4, payload, 0) == 0
    largest = np.full(4, 3e38, np.float32)
    assert kernels.write_scales(largest, 4, kernels.NORM_L2, 8, payload, 0) == 2
    assert kernels.write_scales(np.array([1e39]), 1, kernels.NORM_MAX, 8, payload, 0) == 0
    assert payload.view(np.float64)[0] == 1e39
    assert kernels.write_scales(np.array([np.nan]), 1, kernels.NORM_L2, 8, payload, 0) == 1
    assert kernels.bad_scale(np.array([1, -1], np.float32).view(np.uint8), 0, 2, 4) == 1
    assert (
        kernels.write_scales(np.array([1, 1e39, np.nan, 2]), 1, kernels.NORM_MAX, 4, (four := np.ones(16, np.uint8)), 0)
        == 2
    )
    assert four.view(np.float32).tolist() == [1, 0, 0, 2]


def test_wrong_lengths_are_refused(kernels):
    x, out, scale = np.ones(3000, np.float32), np.empty(1500, np.uint8), np.ones(1, np.float32).view(np.uint8)
    kernels.quantize_pack(x, scale, 0, 4, 3000, 15, 1, out)
    for arguments, what in [
        ((x, scale, 0, 4, 3000, 15, 1, out[:-1]), "out has 1499"),
        ((x, scale, 1, 4, 3000, 15, 1, out), "scales has 4 bytes, 1 scales of 4 bytes from byte 1"),
        ((x, scale, 2**63 - 4, 4, 3000, 15, 1, out), "scales has 4"),
        ((x, scale, 0, 8, 3000, 15, 1, out), "scales has 4"),
        ((x, scale, 0, 4, 1024, 15, 1, out), "scales has 4"),
        ((x, scale, 0, 4, 1000, 15, 1, out), "block"),
        ((x, scale, 0, 4, 3000, 1, 1, out), "levels"),
        ((x, scale, -1, 4, 3000, 15, 1, out), "byte -1"),
        ((x, scale, 0, 2, 3000, 15, 1, out), "wire"),
    ]:
        with pytest.raises(ValueError, match=what):
            kernels.quantize_pack(*arguments)
    with pytest.raises(ValueError, match="data has 1499"):
        kernels.unpack_scale(out[:-1], scale, 0, 4, 3000, 15, 1.0, x)
    with pytest.raises(ValueError, match="out has"):
        kernels.power_pack(x, 1, np.empty(3374, np.uint8))
    with pytest.raises(ValueError, match="data has"):
        kernels.unpower_scale(np.empty(3374, np.uint8), 1.0, x)
    for wire in (0, 2, 16):
        with pytest.raises(ValueError, match="wire"):
            kernels.write_scales(x, 3000, 0, wire, scale.copy(), 0)
    with pytest.raises(ValueError, match="scales"):
        kernels.bad_scale(scale, 0, 2, 4)
