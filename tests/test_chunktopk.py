"""Top-K inside chunks: selection against a sort, records of subsets against counting, levels against their promise."""

import itertools
import math

import numpy as np
import pytest
from conftest import families

import compress

KEY = compress.Key(1)


def largest(x, chunk, k):
    """The indices of chunk_topk, by a stable sort."""
    parts = []
    for start in range(0, x.size, chunk):
        part = np.abs(x[start : start + chunk])
        count = -(-k * part.size // chunk)
        parts.append(start + np.sort(np.argsort(-part, kind="stable")[:count]))
    return np.concatenate(parts).astype(np.uint32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "chunk, k, d", [(4096, 64, 20_000), (64, 8, 1000), (1000, 30, 4321), (16, 16, 50), (5000, 1, 9999)]
)
def test_selection(kernels, chunk, k, d, dtype):
    rng = np.random.default_rng(d)
    tiny = np.finfo(dtype).smallest_subnormal
    inputs = {
        "normal": rng.standard_normal(d),
        "ties": np.round(2 * rng.standard_normal(d)),
        "equal": np.full(d, -3.0),
        "zero": np.zeros(d),
        "sparse": rng.standard_normal(d) * (rng.random(d) < 0.001),
        "denormal": rng.integers(-9, 10, d) * tiny,
        "mixed": rng.standard_normal(d) * 10.0 ** rng.uniform(-30, 30, d),
        "rising": np.arange(d),
    }
    for name, x in inputs.items():
        x = x.astype(dtype)
        expected = largest(x, chunk, k)
        indices = np.empty(expected.size, np.uint32)
        kernels.chunk_topk(x, chunk, k, indices)
        np.testing.assert_array_equal(indices, expected, name)


def test_selection_names_what_is_wrong(kernels):
    x = np.ones(100, np.float32)
    with pytest.raises(ValueError, match="k = 5 of chunk = 4"):
        kernels.chunk_topk(x, 4, 5, np.empty(100, np.uint32))
    with pytest.raises(ValueError, match="7 indices, 1 of every 10 of 100 are 10"):
        kernels.chunk_topk(x, 10, 1, np.empty(7, np.uint32))


def round_trip(kernels, indices, n, k, start=0):
    indices = np.array(indices, np.uint32)
    room = np.full(kernels.subset_bytes(n, k) * (indices.size // k) + 3, 0xAA, np.uint8)
    kernels.subset_encode(indices, start, n, k, room[:-3])
    assert (room[-3:] == 0xAA).all()
    back = np.empty_like(indices)
    kernels.subset_decode(room[:-3], start, n, k, back)
    np.testing.assert_array_equal(back, indices)
    return room[:-3]


def test_every_small_subset(kernels):
    for n in range(1, 12):
        for k in range(1, n + 1):
            records = {round_trip(kernels, s, n, k).tobytes() for s in itertools.combinations(range(n), k)}
            assert len(records) == math.comb(n, k)


@pytest.mark.parametrize(
    "n, k", [(4096, 64), (4095, 64), (4097, 65), (100, 50), (64, 32), (3000, 2990), (65536, 900), (7, 3)]
)
def test_subsets_from_scattered_to_clustered(kernels, n, k):
    rng = np.random.default_rng(n)
    for trial in range(40):
        spread = rng.random(n) ** rng.choice([0.05, 1, 20, 300])
        shapes = [np.argsort(spread)[:k], np.arange(k), np.arange(n - k, n), np.argsort(-np.arange(n) % 64 * n)[:k]]
        round_trip(kernels, np.sort(shapes[trial % 4]), n, k)


def test_records_are_as_long_as_counting_says():
    kernels = compress.kernels.of(np.empty(0))
    for n, k in [(4096, 64), (64, 8), (1000, 30), (65536, 1024), (17, 1), (4096, 2048)]:
        least = -(-(math.comb(n, k) - 1).bit_length() // 8)
        assert least <= kernels.subset_bytes(n, k) <= least + 1
    assert kernels.subset_bytes(4096, 64) == 59
    assert kernels.subset_bytes(5, 0) == kernels.subset_bytes(5, 5) == 0
    with pytest.raises(ValueError, match="6 of 5"):
        kernels.subset_bytes(5, 6)


def test_any_record_is_some_subset(kernels):
    rng = np.random.default_rng(0)
    for n, k in [(4096, 64), (1000, 100), (65, 3), (300, 299)]:
        size = kernels.subset_bytes(n, k)
        for fill in [np.zeros(size), np.full(size, 255), *rng.integers(0, 256, (200, size))]:
            out = np.empty(k, np.uint32)
            kernels.subset_decode(fill.astype(np.uint8), 50, n, k, out)
            assert (np.diff(out.astype(int)) > 0).all() and out[0] >= 50 and out[-1] < 50 + n


def test_subsets_name_what_is_wrong(kernels):
    out = np.empty(1000, np.uint8)
    for bad in ([1, 1, 2], [0, 3, 2], [1, 2, 10]):
        with pytest.raises(ValueError, match="range 0"):
            kernels.subset_encode(np.array(bad, np.uint32), 0, 10, 3, out)
    with pytest.raises(ValueError, match="2 bytes for 1 records of 59"):
        kernels.subset_decode(out[:2], 0, 4096, 64, np.empty(64, np.uint32))
    with pytest.raises(ValueError, match="65 indices"):
        kernels.subset_decode(out, 0, 4096, 64, np.empty(65, np.uint32))


def sparse_loco(values):
    """Four bins 1.5 standard deviations wide about the mean, each decoded to its own mean: one codebook a tensor."""
    centred = values - values.mean()
    step = 1.5 * centred.std(ddof=1)
    code = np.clip(np.round(centred / step + 2), 0, 3).astype(int)
    means = [centred[code == c].mean() if (code == c).any() else 0.0 for c in range(4)]
    return np.array(means)[code] + values.mean()


@pytest.mark.parametrize("family", ["normal", "student"])
def test_fewer_bits_and_less_error_than_sparse_loco(family):
    rng, d = np.random.default_rng(3), 1 << 18
    x = (rng.standard_normal(d) if family == "normal" else rng.standard_t(3, d)).astype(np.float32)
    C = compress.ChunkTopK()
    indices = largest(x, 4096, 64)
    values = x[indices].astype(float)
    ours = np.sum((C(x, KEY)[indices] - values) ** 2)
    assert ours < 0.5 * np.sum((sparse_loco(values) - values) ** 2)
    assert C.bits(1 << 20) / (1 << 14) <= 9.57 and C.encode(x, KEY).bits / indices.size <= 9.6


def inputs(d, chunk, dtype):
    rng = np.random.default_rng(d)
    normal = rng.standard_normal(d)
    outlier = np.full(d, 1e-30)
    outlier[::chunk] = 1e30
    harmonic = 1 / np.sqrt(1 + np.arange(d) % chunk)
    scales = normal * 10.0 ** np.repeat(rng.uniform(-30, 30, -(-d // chunk)), chunk)[:d]
    found = families(d, dtype=dtype) | {
        "outlier": outlier,
        "harmonic": harmonic,
        "scales": scales,
        "mixed": normal * 10.0 ** rng.uniform(-30, 30, d),
        "denormal": normal * 1e-40,
        "sparse": normal * (rng.random(d) < 0.001) + (np.arange(d) == d // 2),
        "worst": np.where(np.arange(d) % chunk == 0, math.sqrt(chunk), 1.0),
    }
    return {name: x.astype(dtype) for name, x in found.items()}


@pytest.mark.parametrize("value_bits", [1, 2, 3, 5, 8, None])
@pytest.mark.parametrize("chunk, k", [(4096, 64), (64, 8), (100, 40), (32, 32), (50, 1)])
def test_every_chunk_keeps_to_alpha(chunk, k, value_bits):
    """alpha holds chunk by chunk, so that no chunk pays for another: except for the wire's own rounding."""
    C = compress.ChunkTopK(chunk, k, value_bits)
    d = 5 * chunk + chunk // 3
    for dtype in (np.float32, np.float64):
        for name, x in inputs(d, chunk, dtype).items():
            if dtype == np.float64 and name == "denormal" and value_bits is None:
                continue  # float32 does not carry them
            y = C(x, KEY).astype(float)
            for start in range(0, d, chunk):
                part, got = x[start : start + chunk].astype(float), y[start : start + chunk]
                unit = np.abs(part).max() or 1.0
                error = np.sum((got / unit - part / unit) ** 2)
                assert error <= (C.alpha(d) * (1 + 1e-6) + 1e-12) * np.sum((part / unit) ** 2), (name, start)


def test_what_is_not_selected_is_zero_and_zeros_stay():
    x = families(10_000)["student"]
    x[4096:8192] = 0
    for value_bits in (1, 2, 8, None):
        C = compress.ChunkTopK(value_bits=value_bits)
        y = C(x, KEY)
        chosen = np.zeros(x.size, bool)
        chosen[largest(x, 4096, 64)] = True
        assert not y[~chosen].any() and not y[4096:8192].any()
        assert (np.sign(y[chosen]) * np.sign(x[chosen]) >= 0).all()
        if value_bits is None:
            np.testing.assert_array_equal(y[chosen], x[chosen])


def test_giants_do_not_drag_dwarfs_along():
    """An outlier keeps its value, the dwarfs beside it become zero, and other chunks keep their levels."""
    x = families(3 * 4096)["gaussian"]
    x[:4096] *= np.float32(1e-30)
    x[7] = 1e30
    plain, y = compress.ChunkTopK()(x[4096:], KEY), compress.ChunkTopK()(x, KEY)
    assert y[7] == pytest.approx(1e30, rel=0.15) and np.abs(y[:4096]).sum() == abs(y[7])
    error = lambda got: np.sum((got - x[4096:]) ** 2) / np.sum(x[4096:] ** 2)  # noqa: E731
    assert error(y[4096:]) < 1.02 * error(plain)


def test_more_bits_mean_less_error():
    x = families(1 << 16)["student"]
    indices = largest(x, 4096, 64)
    errors = [np.sum((compress.ChunkTopK(value_bits=b)(x, KEY)[indices] - x[indices]) ** 2) for b in range(1, 9)]
    assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(errors))


def test_short_vectors():
    for d in (1, 2, 15, 63, 64, 4095, 4096, 4097):
        for C in (compress.ChunkTopK(), compress.ChunkTopK(value_bits=None), compress.ChunkTopK(16, 16, 8)):
            x = families(d, seed=d)["gaussian"]
            message = C.encode(x, KEY)
            assert message.bits == C.bits(d)
            assert np.count_nonzero(C.decode(message, KEY)) <= C.count(d) == largest(x, C.chunk, C.k).size


def test_parameters_and_ranges_are_checked():
    for wrong, named in [
        ({"chunk": 8}, r"\[16, 65536\], got 8"),
        ({"k": 4097}, r"\[1, 4096\], got 4097"),
        ({"value_bits": 9}, r"\[1, 8\], got 9"),
        ({"wire": "float16"}, "float16"),
    ]:
        with pytest.raises(ValueError, match=named):
            compress.ChunkTopK(**wrong)
    with pytest.raises(TypeError, match="k must be an integer"):
        compress.ChunkTopK(k=0.1)
    for scale in (1e-150, 1e150):
        x = np.full(100, scale)
        with pytest.raises(ValueError, match="value_bits=None with wire='float64' carries it"):
            compress.ChunkTopK().encode(x, KEY)
        assert np.count_nonzero(compress.ChunkTopK(64, 8, None, "float64")(x, KEY) == scale) == 8 + 5
    with pytest.raises(ValueError, match="wire='float64' carries it"):
        compress.ChunkTopK(value_bits=None).encode(np.full(100, 1e40), KEY)


def test_headers_that_no_encoder_writes_are_refused():
    C, x = compress.ChunkTopK(), families(5000)["gaussian"]
    for at, word in [(0, 0x7FF00000), (4, 0x7FF00000), (4, 0x48000000), (8, (8 << 20) + 1)]:
        message = C.encode(x, KEY)
        message.payload[at : at + 4] = np.frombuffer(np.uint32(word).tobytes(), np.uint8)
        with pytest.raises(ValueError, match="not an encoder's"):
            C.decode(message, KEY)


def test_float64_has_the_levels_of_float32():
    x = families(9000)["student"]
    a, b = compress.ChunkTopK()(x, KEY), compress.ChunkTopK()(x.astype(float), KEY)
    np.testing.assert_array_equal(a, b.astype(np.float32))
