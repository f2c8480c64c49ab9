"""Top-K, gather and scatter, keyed subsets, Bernoulli masks: against slow oracles, on every backend."""

import math

import backends
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import _cpu

K = _cpu.kernels


def largest(x, k):
    """The definition: by magnitude, larger first, then by index."""
    order = np.lexsort((np.arange(x.size), -np.abs(x)))
    return np.sort(order[:k]).astype(np.uint32)


def topk(x, k, module=K):
    indices = np.full(k, 0xFFFFFFFF, np.uint32)
    module.topk(x, indices)
    return indices


def mix(x):
    """select.h, in 64-bit arithmetic: where topk samples."""
    x = np.asarray(x, np.uint64)
    x ^= x >> np.uint64(16)
    x = x * np.uint64(0x21F0AAAD) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(15)
    x = x * np.uint64(0x735A2D97) & np.uint64(0xFFFFFFFF)
    return x ^ x >> np.uint64(15)


def inputs(d, dtype, seed=0):
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(d)
    yield "normal", normal
    yield "heavy tails", normal**9
    yield "ascending", np.arange(d) - 3.0
    yield "descending", np.arange(d)[::-1] + 1.0
    yield "organ pipe", np.minimum(np.arange(d), np.arange(d)[::-1])
    yield "all equal", np.full(d, -2.5)
    yield "zeros of both signs", np.where(normal > 0, 0.0, -0.0)
    yield "signs", np.sign(normal)
    yield "few values", rng.integers(-3, 4, d)
    yield "sparse", np.where(rng.random(d) < 0.004, normal, 0)
    yield "denormal", normal * np.finfo(dtype).smallest_subnormal * 40
    yield "extreme", np.where(normal > 1, np.finfo(dtype).max, np.where(normal < -1, np.finfo(dtype).tiny, normal))
    stride = d // (d // 32) if d >= 4096 else 1
    i = np.arange(d // stride)
    seen = i * stride + (mix(i) * np.uint64(stride) >> np.uint64(32)).astype(int)
    sampled = np.zeros(d, bool)
    sampled[seen[: d // 32]] = True
    yield "the sample sees only large values", np.where(sampled, 1e3, 1.0) + np.arange(d) / d
    yield "the sample sees only zeros", np.where(sampled, 0.0, 1.0 + np.arange(d) / d)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [1, 2, 63, 4095, 4096, 50_001])
def test_topk_is_the_definition(d, dtype, kernels):
    for name, x in inputs(d, dtype):
        x = x.astype(dtype)
        few = d > 10_000 and isinstance(kernels, backends.Kernels)
        for k in (d // 9 + 1,) if few else sorted({1, min(d, 7), -(-d // 100), d // 9 + 1, d // 8 + 1, d - d // 3, d}):
            assert np.array_equal(topk(x, k, kernels), largest(x, k)), (name, k)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(4096, 9000),
    st.integers(1, 9000),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 3, 17, 1000, 10**6]),
    st.sampled_from(["float32", "float64"]),
)
def test_topk_with_ties(d, k, seed, values, dtype):
    x = np.random.default_rng(seed).integers(0, values, d).astype(dtype)
    k = min(k, d)
    assert np.array_equal(topk(x, k), largest(x, k))


def test_topk_where_the_buffer_fills_again_and_again(kernels):
    d = 400_000
    x = np.arange(d, dtype="f4")
    x[mix(np.arange(d // 32)).astype(np.int64) * 32 // 2**32 + np.arange(d // 32) * 32] = 0
    for k in (1, 100, d // 20, d // 8):
        assert np.array_equal(topk(x, k, kernels), largest(x, k))


def test_topk_refuses_k_outside_the_vector(kernels):
    with pytest.raises(ValueError, match=r"k = 0: expected 1 <= k <= 3"):
        topk(np.ones(3, "f4"), 0, kernels)
    with pytest.raises(ValueError, match=r"k = 4: expected 1 <= k <= 3"):
        topk(np.ones(3, "f4"), 4, kernels)
    with pytest.raises(TypeError, match="expected a vector"):
        topk(np.ones(3, "i4"), 1, kernels)


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("target", ["float32", "float64"])
def test_gather_scatter_add_and_add_or_store(source, target, kernels):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(1000).astype(source)
    x[:3] = 0.0, -0.0, np.finfo(source).smallest_subnormal
    indices = rng.integers(0, 1000, 4000).astype(np.uint32)
    out = np.empty(4000, target)
    kernels.gather(x, indices, out)
    assert np.array_equal(out, x[indices].astype(target))

    if isinstance(kernels, backends.Kernels):  # there the indices of scatter_add must be distinct
        indices = rng.permutation(1000)[:700].astype(np.uint32)
    y = rng.standard_normal(1000).astype(target)
    values = x[indices]
    for weight in (0.3, 1.0, -1e-40):
        w = np.dtype(target).type(weight)
        expected = y.copy()
        np.add.at(expected, indices, w * values.astype(target))
        kernels.scatter_add(values, indices, y, weight)
        assert np.array_equal(y, expected)
        expected = y + w * x.astype(target)
        kernels.add_or_store(x, y, weight)
        assert np.array_equal(y.view(np.uint8), expected.view(np.uint8))
    expected = y + x.astype(target)
    kernels.add_or_store(x, y)
    assert np.array_equal(y, expected)


def test_add_or_store_refuses_other_lengths(kernels):
    y = np.zeros(4, "f4")
    with pytest.raises(ValueError, match="3 values for a vector of 4"):
        kernels.add_or_store(np.ones(3, "f4"), y)
    with pytest.raises(TypeError, match="expected a vector"):
        kernels.add_or_store(np.ones(4, "u4"), y)
    assert not y.any()
    kernels.add_or_store(y[:0], y[:0])


@pytest.mark.parametrize("bad", [10, 2**31, 2**32 - 1])
def test_an_index_outside_is_named_and_nothing_is_written(bad, kernels):
    indices = np.array([3, bad, 1], np.uint32)
    y = np.zeros(10, "f4")
    with pytest.raises(ValueError, match=f"index {bad} is outside a vector of size 10"):
        kernels.scatter_add(np.ones(3, "f4"), indices, y, 1.0)
    assert not y.any()
    out = np.zeros(3, "f4")
    with pytest.raises(ValueError, match=f"index {bad} is outside a vector of size 10"):
        kernels.gather(np.ones(10, "f4"), indices, out)
    assert not out.any()
    with pytest.raises(ValueError, match="3 values for 2 indices"):
        kernels.scatter_add(np.ones(3, "f4"), indices[:2], y, 1.0)


def subset(key, d, k, start=0, module=K):
    indices = np.empty(k, np.uint32)
    module.random_subset(key, d, start, indices)
    return indices


@pytest.mark.parametrize("d", [1, 2, 3, 7, 100, 255, 256, 257, 1000, 4096, 5000, 65_537])
def test_a_full_subset_is_a_permutation(d, kernels):
    for key in (0, 1, 0x9E3779B97F4A7C15):
        whole = subset(key, d, d, module=kernels)
        assert np.array_equal(np.sort(whole), np.arange(d))
        cut = d // 3
        assert np.array_equal(np.r_[subset(key, d, cut, 0, kernels), subset(key, d, d - cut, cut, kernels)], whole)


def test_subsets_reach_the_largest_dimension(kernels):
    indices = subset(5, 2**32, 20_000, module=kernels)
    assert np.unique(indices).size == 20_000 and indices.max() > 2**32 * 0.999
    assert np.array_equal(subset(5, 2**32, 1, 2**32 - 1, kernels), subset(5, 2**32, 1, 2**32 - 1))
    with pytest.raises(ValueError, match="at most 2\\^32"):
        subset(5, 2**32 + 1, 1, module=kernels)
    with pytest.raises(ValueError, match="positions 3 to 6 of a permutation of 5"):
        subset(5, 5, 3, 3, kernels)


@pytest.mark.parametrize("d,k", [(3, 1), (5, 2), (6, 3), (13, 2), (16, 5), (100, 10), (300, 30)])
def test_marginals_and_pairs_of_subsets(d, k):
    """Over keys: each coordinate and each pair is as frequent as in a uniform subset, to five standard errors."""
    trials = 6000
    hits = np.zeros((trials, d))
    for key in range(trials):
        hits[key, subset(key, d, k)] = 1
    p, q = k / d, k * (k - 1) / (d * (d - 1))
    z = (hits.mean(0) - p) / np.sqrt(p * (1 - p) / trials)
    assert np.abs(z).max() < 5
    assert abs(z @ z - d) < 5 * np.sqrt(2 * d * d / (d - 1))  # the counts sum to k trials: d - 1 are free
    if k > 1:
        pairs = (hits.T @ hits / trials)[np.triu_indices(d, 1)]
        assert np.abs(pairs - q).max() < 5.5 * np.sqrt(q * (1 - q) / trials)


@pytest.mark.parametrize("d,k", [(4, 2), (5, 2), (6, 3), (9, 4), (12, 3)])
def test_every_small_subset_is_equally_likely(d, k):
    """Chi-square over all C(d, k) subsets."""
    trials = 12_000
    codes = [int(np.sum(1 << subset(key, d, k).astype(int))) for key in range(trials)]
    counts = np.bincount(np.unique(codes, return_inverse=True)[1])
    cells = math.comb(d, k)
    assert counts.size == cells
    chi = np.sum((counts - trials / cells) ** 2) * cells / trials
    assert abs(chi - (cells - 1)) < 5 * np.sqrt(2 * (cells - 1))


def test_order_and_neighbours_of_a_permutation_look_random():
    """Differences of neighbours in the permutation are uniform, which PermK's position ranges rely on."""
    d, trials = 64, 400
    counts = np.zeros(d)
    for key in range(trials):
        p = subset(key, d, d).astype(int)
        counts += np.bincount((p[1:] - p[:-1]) % d, minlength=d)
    z = (counts[1:] - trials) / np.sqrt(trials)  # d - 1 neighbours fall on d - 1 differences
    assert counts[0] == 0 and abs(np.mean(z**2) - 1) < 5 * np.sqrt(2 / z.size) and np.abs(z).max() < 5


def kept_by_definition(key, d, threshold):
    """select.h, E, one coordinate at a time."""
    blocks = -(-d // 128)
    words = np.empty(4 * 32 * blocks, np.uint32)
    K.philox_words(key, 0, 5, words)
    e = np.arange(d)
    return np.flatnonzero(words[4 * (e // 128 * 32 + e % 32) + e // 32 % 4] < threshold)


@pytest.mark.parametrize("d", [1, 31, 128, 129, 5000])
def test_bernoulli_indices_are_the_definition(d, kernels):
    for threshold in (0, 1, 2**31, 43_000_000, 2**32 - 1, 2**32):
        expected = kept_by_definition(77, d, threshold)
        assert kernels.bernoulli_count(77, d, threshold) == expected.size
        out = np.empty(expected.size, np.uint32)
        assert kernels.bernoulli_indices(77, d, threshold, out) == expected.size
        assert np.array_equal(out, expected)
        short = np.full(expected.size // 2 + 1, 9, np.uint32)
        assert kernels.bernoulli_indices(77, d, threshold, short[:-1]) == expected.size
        assert np.array_equal(short[:-1], expected[: expected.size // 2]) and short[-1] == 9


def test_bernoulli_frequencies():
    d, p = 2000, 0.1
    hits = np.zeros(d)
    for key in range(300):
        kept = np.empty(K.bernoulli_count(key, d, round(p * 2**32)), np.uint32)
        K.bernoulli_indices(key, d, round(p * 2**32), kept)
        hits[kept] += 1
    z = (hits - 300 * p) / np.sqrt(300 * p * (1 - p))
    assert abs(z.sum() / np.sqrt(d)) < 5 and abs(np.mean(z**2) - 1) < 5 * np.sqrt(2 / d)
