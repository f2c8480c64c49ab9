"""Eden against an independent Lloyd-Max quantiser and a slow oracle of the whole."""

import math

import numpy as np
import pytest
from scipy.linalg import solve_banded
from scipy.special import ndtr

import compress
from compress import Eden, kernels

KEY = compress.Key(5).at(2).worker(3)
KERNELS = kernels.of(np.zeros(1))
ALPHABETS = KERNELS.eden_alphabets()


def density(t):
    return np.exp(-t * t / 2) / math.sqrt(2 * math.pi)


def lloyd_max(count):
    """(levels, mean squared error) of N(0, 1) in `count` cells: Newton's method on level = mean of its cell."""
    levels = np.linspace(-1, 1, count) * (1 + math.log(count) / 1.5)
    for _ in range(500):
        edges = np.concatenate([[-40.0], (levels[1:] + levels[:-1]) / 2, [40.0]])
        a, b = edges[:-1], edges[1:]
        mass = np.where(a > 0, ndtr(-a) - ndtr(-b), ndtr(b) - ndtr(a))
        mean = (density(a) - density(b)) / mass
        by_a, by_b = (mean - a) * density(a) / mass / 2, (b - mean) * density(b) / mass / 2
        matrix = np.zeros((3, count))
        matrix[1], matrix[0, 1:], matrix[2, :-1] = by_a + by_b - 1, by_b[:-1], by_a[1:]
        step, size = solve_banded((1, 1), matrix, levels - mean), 1.0
        while (np.diff(levels + size * step) <= 0).any() or np.abs(size * step).max() > 0.5:
            size /= 2
        levels = levels + size * step
        if np.abs(step).max() < 1e-12:
            break
    return levels, float(1 - np.sum(mass * mean**2))


LEVELS, ERRORS = zip(*(lloyd_max(count) for count, _, _ in ALPHABETS), strict=True)
RATES = [width / digits for _, digits, width in ALPHABETS]


def theory(rate):
    """What Lloyd-Max reaches, mixed between the two alphabets around a rate."""
    return float(np.interp(rate, RATES, ERRORS))


def nmse(y, x):
    error = y.astype(float) - x
    return float(error @ error / (x.astype(float) @ x))


def test_levels_are_those_of_lloyd_and_max():
    for which, levels in enumerate(LEVELS):
        np.testing.assert_allclose(KERNELS.eden_levels(which), levels, rtol=0, atol=2.0**-13)
    assert ERRORS[0] == pytest.approx(1 - 2 / math.pi) and ERRORS[2] == pytest.approx(0.11748, abs=1e-5)
    with pytest.raises(ValueError, match="20"):
        KERNELS.eden_levels(20)


def test_no_alphabet_is_beaten_by_a_mixture_of_two_others():
    slopes = np.diff(ERRORS) / np.diff(RATES)
    assert (np.diff(RATES) > 0).all() and (np.diff(slopes) > 0).all()
    assert all(levels**digits <= 2**width <= 2**16 for levels, digits, width in ALPHABETS)


def test_the_facts_that_the_constant_rests_on():
    for which in range(len(ALPHABETS)):
        levels = np.array(KERNELS.eden_levels(which))
        v = np.linspace(0, 80, 400_001)
        q = np.abs(levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, v)])
        assert (q[v >= 0.66] >= 0.45).all() and (q[v < 1] <= 1.52).all() and (q[v >= 1] <= 1.52 * v[v >= 1]).all()
    low = 0.25
    assert low**2 / (1.52**2 + 1.52 * low) >= 1 / 50


@pytest.mark.parametrize("rate", [1, 1.5, 2, 2.3, 3, 4, 5.25, 6, 7, 8])
def test_error_is_within_a_percent_of_theory_at_the_bits_it_says(rate):
    found = []
    for seed in range(6 if rate >= 6 else 1):  # at many bits a few outliers hold much of the error
        x = np.random.default_rng(seed).standard_normal(1 << 20).astype(np.float32)
        message = Eden(rate).encode(x, KEY)
        assert rate <= message.bits / x.size + 0.005 and 8 * message.payload.nbytes / x.size <= rate + 0.02
        found.append(nmse(Eden(rate).decode(message, KEY), x))
    assert np.mean(found) == pytest.approx(theory(rate), rel=0.01)


def test_between_whole_bits_it_is_better_than_a_mixture_of_widths():
    for rate, gain in ((1.5, 0.92), (2.5, 0.88), (4.5, 0.86), (6.5, 0.82)):
        low, high = (ERRORS[RATES.index(r)] for r in (math.floor(rate), math.ceil(rate)))
        assert theory(rate) < gain * (low + high) / 2


@pytest.mark.parametrize("d", [4096, 5000, 8191, 12_289, 100_000])
def test_bits_stay_below_the_rate(d):
    for rate in np.linspace(1, 8, 141):
        assert rate - 0.01 < Eden(rate).bits(d) / d < rate + 0.02 + 2 * 40 / d


def oracle(x, rate, scale):
    """Block by block, straight from the definition."""
    d, block = x.size, 4096
    while block > x.size:
        block //= 2
    ends = [*range(block, d - d % block + 1, block)]
    if d % block:
        ends = [*ends[:-1], d - block, d]
    z, y = np.empty_like(x), np.empty_like(x)
    KERNELS.rotate(x, z, KEY.shared.word)
    low = max(i for i, r in enumerate(RATES) if r <= rate)
    for start, end in zip([0, *ends], ends, strict=False):
        part = z[start:end]
        n, rms = end - start, math.sqrt(np.mean(part**2))
        rich = int(n * (rate - RATES[low]) / (RATES[low + 1] - RATES[low]) + 1e-6)
        q = np.empty(n)
        for which, cut in ((low, slice(0, n - rich)), (low + 1, slice(n - rich, n))):
            edges = (LEVELS[which][1:] + LEVELS[which][:-1]) / 2
            q[cut] = LEVELS[which][np.searchsorted(edges, part[cut] / rms)]
        y[start:end] = q * ((part @ q) / (q @ q) if scale == "biased" else (part @ part) / (part @ q))
    KERNELS.rotate(y, y, KEY.shared.word, True)
    return y


@pytest.mark.parametrize("scale", ["biased", "unbiased"])
@pytest.mark.parametrize("rate", [1, 1.5, 1.6, 2, 2.45, 3.9, 6.2])
@pytest.mark.parametrize("d", [1, 3, 100, 4096, 9000, 16_383])
def test_against_the_definition(d, rate, scale):
    x = np.random.default_rng(d).standard_t(3, d)
    y, expected = Eden(rate, scale, wire="float64")(x, KEY), oracle(x, rate, scale)
    # coordinates within 2^-16 of a threshold may fall on its other side, which changes the vector but not the error
    assert (y - expected) @ (y - expected) <= 0.05 * theory(rate) * (x @ x)
    assert nmse(y, x) == pytest.approx(nmse(expected, x), rel=2e-3, abs=1e-7)
    narrow = Eden(rate, scale)(x.astype(np.float32), KEY)
    assert nmse(narrow, x) == pytest.approx(nmse(expected, x), rel=2e-3, abs=1e-7)


@pytest.mark.parametrize("d", [5000, 4097, 8000])
def test_the_tail_is_as_good_as_the_rest(d):
    """All the energy where the overlapping block is, or before it."""
    for start, end in ((4096, d), (0, 1), (d - 1, d)):
        x = np.zeros(d, np.float32)
        x[start:end] = np.random.default_rng(1).standard_normal(end - start)
        assert nmse(Eden(3)(x, KEY), x) < 1.25 * theory(3)


def test_extreme_inputs_keep_their_error():
    x = np.random.default_rng(2).standard_normal(10_000)
    spike, sparse, mixed = x.copy(), np.where(np.arange(x.size) % 1000, 0, x), x * 10.0 ** np.linspace(-30, 30, x.size)
    spike[17] = 1e30
    for values in (x * 1e-38, x * 1e-30, x * 1e30, spike, sparse, mixed, np.ones(10_000), np.full(10_000, -3e37)):
        for dtype in (np.float32, np.float64):
            y = Eden(4, wire="float64")(values.astype(dtype), KEY)
            unit = np.abs(values).max()
            assert nmse(y / unit, values.astype(dtype) / unit) < 1.3 * theory(4)
    tiny = x * 1e-300
    assert nmse(Eden(4, wire="float64")(tiny, KEY) * 1e300, x) < 1.05 * theory(4)
    for far in (x * 1e300, tiny):
        with pytest.raises(ValueError, match="wire='float64' carries it"):
            Eden(4).encode(far, KEY)


def test_the_unbiased_scale():
    rng = np.random.default_rng(3)
    for x in (rng.standard_normal(4096), rng.choice([-1.0, 1.0], 4096)):
        for rate in (1, 2):
            found = compress.measure(Eden(rate, "unbiased"), x, trials=100)
            assert found.nmse == pytest.approx(theory(rate) / (1 - theory(rate)), rel=0.02)
            assert abs(found.bias) < 5 * found.bias_se
            assert abs(compress.measure(Eden(rate), x, trials=5).nmse / theory(rate) - 1) < 0.03
    spike = rng.standard_normal(4096)
    spike[5] = 100
    assert 0.08 < compress.measure(Eden(1, "unbiased"), spike, trials=50).bias < 0.12  # as the docstring warns
    assert (Eden(2).guarantee, Eden(2, "unbiased").guarantee) == ("proven", "none")
    with pytest.raises(TypeError, match="no proven constant"):
        Eden(2, "unbiased").alpha(100)


def test_signs_are_shared_by_all_workers():
    x = np.random.default_rng(4).standard_normal(5000)
    assert Eden(2).encode(x, KEY) == Eden(2).encode(x, KEY.worker(9)) != Eden(2).encode(x, KEY.at(3))


def test_parameters_are_checked():
    for rate in (0.99, 8.01, float("nan")):
        with pytest.raises(ValueError, match="rate"):
            Eden(rate)
    assert Eden(bits=2.5, scale="unbiased") == Eden(2.5, "unbiased") and repr(Eden(bits=2)) == repr(Eden(2))
    for twice in ({"args": (2,)}, {"rate": 2}):
        with pytest.raises(TypeError, match="give the bits once"):
            Eden(*twice.pop("args", ()), bits=2, **twice)
    for rate in ("2", True, None):
        with pytest.raises(TypeError, match="rate"):
            Eden(rate)
    with pytest.raises(ValueError, match="scale"):
        Eden(2, "least")
    with pytest.raises(ValueError, match="wire"):
        Eden(2, wire="float16")


def test_kernels_check_their_buffers(kernels):
    x, room = np.ones(5000, np.float32), np.empty(2000, np.uint8)
    with pytest.raises(ValueError, match="payload"):
        kernels.eden_encode(x, 4 * 65536, False, 4, 1, room)
    with pytest.raises(ValueError, match="payload"):
        kernels.eden_decode(room, 4 * 65536, 4, 1, 1.0, x)
    for rate in (65535, 8 * 65536 + 1):
        with pytest.raises(ValueError, match="rate"):
            kernels.eden_layout(100, rate)
    with pytest.raises(ValueError, match="wire"):
        kernels.eden_encode(x, 65536, False, 2, 1, room)
