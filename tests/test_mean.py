"""Means over workers: correlated dither, and measure() of n vectors."""

import numpy as np
import pytest
from test_philox import philox

import compress
from compress import Correlated, Identity, RandK, Rotated, StandardDithering, TernGrad, measure

KEY, SHARED = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
N = 16


def words(index, stream, key):
    return philox((index & 0xFFFFFFFF, index >> 32, stream, 0), (key & 0xFFFFFFFF, key >> 32))


def bits16(e, stream, key):
    return words((e >> 8) * 32 + (e & 31), stream, key)[e >> 6 & 3] >> (16 * (e >> 5 & 1)) & 0xFFFF


def place(worker, n, group):
    """A whole permutation by Fisher and Yates, from the last place down."""
    at = list(range(n))
    for last in range(n - 1, 0, -1):
        other = words(group << 16 | last >> 2, 9, SHARED)[last & 3] * (last + 1) >> 32
        at[last], at[other] = at[other], at[last]
    return at.index(worker)


def strata(n):
    """Where the strata start: the least w with floor(w n / 2^16) = 0, 1, ..., n - 1, and the end."""
    return [-(-k * 65536 // n) for k in range(n + 1)]


def dither(shared, own, offset, n):
    w = (shared + offset) % 65536
    k = w * n // 65536
    start, end = strata(n)[k : k + 2]
    return start + (w - start + (own * (end - start) >> 16)) % (end - start)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 16, 100, 1000, 1023, 1024])
def test_against_the_definition(kernels, n):
    start, count, worker = 4000, 200, n // 2  # two groups
    out = np.empty(count, np.uint32)
    kernels.correlated_dither(KEY, SHARED, worker, n, start, out)
    offsets = {g: strata(n)[place(worker, n, g)] for g in (0, 1)}
    for e in range(start, start + count):
        expected = dither(bits16(e, 8, SHARED), bits16(e, 0, KEY), offsets[e // 4096], n)
        assert out[e - start] == expected


@pytest.mark.parametrize("n", [2, 3, 10, 16, 1000])
def test_the_bits_of_a_worker_are_exactly_uniform(n):
    """For whatever place and own bits, the map from the shared bits is a bijection."""
    w, starts = np.arange(65536), np.array(strata(n))
    for own in (0, 1, 12345, 65535):
        for k in (0, n // 3, n - 1):
            moved = (w + starts[k]) % 65536
            stratum = moved * n // 65536
            first, size = starts[stratum], starts[stratum + 1] - starts[stratum]
            values = first + (moved - first + (own * size >> 16)) % size
            assert len(set(values.tolist())) == 65536
            assert values[777] == dither(777, own, int(starts[k]), n)


@pytest.mark.parametrize("n", [2, 4, 16, 10])
def test_workers_are_in_different_strata_and_every_two_equally_often(kernels, n):
    d = 4096 * 60
    r = np.empty((n, d), np.uint32)
    for worker in range(n):
        kernels.correlated_dither(KEY + worker, SHARED, worker, n, 0, r[worker])
    stratum = r.astype(np.int64) * n // 65536
    shared = (np.sort(stratum, axis=0) != np.arange(n)[:, None]).any(0).mean()
    assert shared == 0 if n & (n - 1) == 0 else shared < n * n * 2.0**-16
    assert abs(np.corrcoef(r[0, 1:], r[0, :-1])[0, 1]) < 5 / np.sqrt(d)
    distance = (stratum[1] - stratum[0])[::4096] % n  # one draw a group
    counts = np.bincount(distance, minlength=n)[1:]
    assert ((counts - 60 / (n - 1)) ** 2 / (60 / (n - 1))).sum() < n - 1 + 5 * np.sqrt(2 * n)


@pytest.mark.parametrize("workers", [2, 3, 16, 1000])
def test_codes_are_rounded_with_these_bits(kernels, workers):
    d, levels = 9000, 15  # whole groups and a tail
    x = np.random.default_rng(0).uniform(-1, 1, d)
    out, codes, r = np.empty(d // 2 + 100, np.uint8), np.empty(d, np.uint16), np.empty(d, np.uint32)
    scale = np.ones(1).view(np.uint8)
    kernels.quantize_pack(x, scale, 0, 8, d, levels, KEY, out, False, False, SHARED, 1, workers)
    kernels.unpack(out, 4, codes)
    for start in range(0, d, 4096):
        kernels.correlated_dither(KEY, SHARED, 1, workers, start, r[start : start + 4096])
    exact = np.floor(x * 7 * 65536) + 7 * 65536 + r
    tie = exact % 65536 == 65535
    np.testing.assert_array_equal(codes[~tie], (exact // 65536)[~tie])
    for worker, n in ((5, 5), (-1, 5), (0, 1025), (0, -1)):
        with pytest.raises(ValueError, match="workers"):
            kernels.quantize_pack(x, scale, 0, 8, d, levels, KEY, out, False, False, SHARED, worker, n)
        with pytest.raises(ValueError, match="workers"):
            kernels.correlated_dither(KEY, SHARED, worker, n, 0, r)


def spread_out(spread, n=N, d=8192):
    """n vectors that differ by a fraction of their length."""
    rng = np.random.default_rng(int(100 * spread))
    x = rng.standard_normal(d)
    noise = rng.standard_normal((n, d))
    return (x + spread * np.linalg.norm(x) / np.sqrt(d) * noise).astype(np.float32)


def gain(inner, x, trials=12):
    """(error of the mean over that of independent workers, its standard error)."""
    n = len(x)
    ours, theirs = measure(Correlated(inner, n), x, trials), measure(inner, x, trials)
    assert ours.bits == theirs.bits
    assert abs(ours.nmse - theirs.nmse) < 5 * (ours.nmse_se + theirs.nmse_se)  # the law of one worker is the same
    ratio = ours.mean_nmse / theirs.mean_nmse
    return ratio, ratio * np.hypot(ours.mean_nmse_se / ours.mean_nmse, theirs.mean_nmse_se / theirs.mean_nmse)


@pytest.mark.parametrize("inner", [TernGrad(), *(StandardDithering(s, "linf", 1024) for s in (1, 3, 7, 15))], ids=repr)
def test_sixteen_workers(inner):
    """At 10% the gain depends on the spread in steps: 15 levels have steps of a fifth of a standard deviation, and what
    is left then is what it is for vectors that have nothing in common, a half."""
    coarse = getattr(inner, "levels", 1) <= 3
    for spread, bar in ((0, 0.1), (0.1, 0.45 if coarse else 0.52), (1, 0.6), (10, 0.65)):
        ratio, error = gain(inner, spread_out(spread))
        assert ratio + 2 * error < bar


@pytest.mark.parametrize("inner", [StandardDithering(1), StandardDithering(7), StandardDithering(127)], ids=repr)
@pytest.mark.parametrize("n", [3, 10, 16])
def test_never_worse_than_independent_workers(inner, n):
    for x in (spread_out(0.5, n), spread_out(3, n), spread_out(1, n) * np.where(np.arange(n) % 2, 1, -1)[:, None]):
        ratio, error = gain(inner, np.ascontiguousarray(x, np.float32))
        assert ratio < 1.02 + 4 * error


def test_behind_a_rotation():
    x = spread_out(0.1)
    x[:, 100:] *= np.float32(0.01)
    independent = Rotated(StandardDithering(1, "linf", 1024))
    together = Rotated(Correlated(StandardDithering(1, "linf", 1024), N))
    assert measure(together, x, 5).mean_nmse < 0.3 * measure(independent, x, 5).mean_nmse


def test_correlated_wants_one_of_its_workers():
    C, x, key = Correlated(TernGrad(), 4), np.ones(100), compress.Key(0)
    C.encode(x, key.worker(3))
    for wrong in (key, key.worker(4)):
        with pytest.raises(ValueError, match="one of 4 workers"):
            C.encode(x, wrong)
    for inner in (compress.NaturalDithering(3), RandK(1), compress.ScaledSign()):
        with pytest.raises(TypeError, match="inner"):
            Correlated(inner, 4)
    for workers in (1, 1025):
        with pytest.raises(ValueError, match="workers"):
            Correlated(TernGrad(), workers)
    assert Correlated(TernGrad(), 4).omega(100) == TernGrad().omega(100)


def test_measure_of_several_vectors():
    x = spread_out(1, n=8, d=1000)
    for rows in (x, list(x), tuple(x)):
        found = measure(RandK(0.1), rows, trials=40)
        assert (found.workers, found.size, found.bits) == (8, 1000, 3200)
        assert found.nmse == pytest.approx(9, rel=0.05)
        energy = np.mean(np.sum(x.astype(float) ** 2, axis=1))
        assert abs(found.mean_nmse - 9 / 8) < 5 * found.mean_nmse_se and found.mean_nmse_se < 0.1
        assert abs(found.bias) < 5 * found.bias_se
    # two workers that send their halves: the mean is biased by what is the same in every round
    y = np.zeros((2, 100))
    y[:, :10] = [[3], [1]]
    top = measure(compress.TopK(5), y, trials=3)
    assert top.nmse == pytest.approx(0.5) and top.bias == pytest.approx(top.mean_nmse) == pytest.approx(20 / 50)
    assert energy > 0


def test_measure_of_one_vector_is_the_mean_of_one():
    x = spread_out(0, n=1, d=500)
    one, row = measure(TernGrad(), x[0]), measure(TernGrad(), x)
    assert one == row and one.workers == 1
    assert (one.mean_nmse, one.mean_nmse_se) == (one.nmse, one.nmse_se)


def test_measure_says_what_is_wrong():
    with pytest.raises(ValueError, match="different lengths: 3, 4"):
        measure(Identity(), [np.ones(3), np.ones(4)])
    with pytest.raises(ValueError, match="no vectors"):
        measure(Identity(), [])
    with pytest.raises(TypeError, match=r"x\[0\]"):
        measure(Identity(), [1.0, 2.0])
    with pytest.raises(ValueError, match="zero or empty"):
        measure(Identity(), np.zeros((2, 5)))
    with pytest.raises(ValueError, match="NaN"):
        measure(Identity(), np.array([[1.0, 2.0], [1.0, np.nan]]))
