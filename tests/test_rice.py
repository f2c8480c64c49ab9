"""Rice-coded gaps: against a coder that works bit by bit, and against bytes that nobody encoded."""

import math

import backends
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import _cpu

K = _cpu.kernels
CHUNK = 4096


def encode(indices, d, module=K):
    """(bytes, bits), with the room that rice_bound promises and not a byte more."""
    out = np.full((module.rice_bound(d, indices.size) + 7) // 8, 0xA5, np.uint8)
    bits = module.rice_encode(indices, d, out)
    return out[: (bits + 7) // 8], bits


def decode(data, d, k, module=K):
    indices = np.empty(k, np.uint32)
    return indices, module.rice_decode(data, d, indices)


def encode_slowly(indices, d):
    """rice.h, A to C, as strings of bits; every parameter is tried."""
    gaps = np.diff(indices.astype(np.int64), prepend=-1) - 1
    table, strings = [], []
    for start in range(0, gaps.size, CHUNK):
        chunk = [int(g) for g in gaps[start : start + CHUNK]]
        bits, l = min((sum(g >> l for g in chunk) + len(chunk) * (l + 1), l) for l in range(32))
        low = "".join(format(g & (1 << l) - 1, f"0{l}b")[::-1] for g in chunk) if l else ""
        string = low + "".join("0" * (g >> l) + "1" for g in chunk)
        assert len(string) == bits
        table.append(l << 27 | bits)
        strings.append(string + "0" * (-bits % 8))
    bits = 32 * len(table) + sum(map(len, strings[:-1])) + table[-1] % 2**27
    data = np.packbits([int(b) for b in "".join(strings)], bitorder="little")
    return np.r_[np.array(table, "<u4").view(np.uint8), data], bits


def index_sets():
    rng = np.random.default_rng(0)
    yield np.array([0]), 1
    yield np.array([2**32 - 1]), 2**32
    yield np.array([0, 2**32 - 1]), 2**32
    yield np.arange(5000), 5000
    yield np.arange(CHUNK), 2**32
    yield np.arange(2**32 - 5000, 2**32), 2**32
    for d, k in ((10, 3), (1000, 500), (10**6, CHUNK), (10**6, CHUNK + 1), (10**7, 9000), (2**32, 8300)):
        yield np.sort(rng.choice(d, k, replace=False)) if d < 2**32 else np.unique(rng.integers(0, d, k)), d
    yield np.unique(rng.integers(0, 2**16, 9000) ** 2), 2**32
    skewed = np.arange(2 * CHUNK)
    skewed[CHUNK - 1 :] += 2**31  # one gap far from the rest: the longest unary strings a chunk can have
    yield skewed, 2**32
    spread = np.linspace(0, 2**32 - 1, CHUNK).astype(np.uint64)
    yield spread, 2**32


def test_bytes_of_the_slow_coder_and_back(kernels):
    for indices, d in index_sets():
        indices = indices.astype(np.uint32)
        data, bits = encode(indices, d, kernels)
        expected, expected_bits = encode_slowly(indices, d)
        assert bits == expected_bits <= kernels.rice_bound(d, indices.size)
        assert np.array_equal(data, expected)
        for extra in (0, 1, 9):
            decoded, used = decode(np.r_[data, np.full(extra, 255, np.uint8)], d, indices.size, kernels)
            assert used == bits and np.array_equal(decoded, indices)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 2**32), st.integers(0, 5000), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 5]))
def test_round_trip(d, k, seed, clustering):
    u = np.random.default_rng(seed).random(k) ** clustering
    indices = np.unique((u * d).astype(np.uint64)).astype(np.uint32)
    data, bits = encode(indices, d)
    decoded, used = decode(data, d, indices.size)
    assert used == bits <= K.rice_bound(d, indices.size) and np.array_equal(decoded, indices)


def test_one_percent_costs_half_a_percent_more_than_the_entropy():
    d, k = 2**22, 2**22 // 100
    indices = np.sort(np.random.default_rng(3).choice(d, k, replace=False)).astype(np.uint32)
    entropy = (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2)
    assert encode(indices, d)[1] < 1.005 * entropy


def test_the_bound_holds_for_every_subset_of_a_small_vector(kernels):
    for d in range(1, 6 if isinstance(kernels, backends.Kernels) else 11):
        for word in range(2**d):
            indices = np.flatnonzero(word >> np.arange(d) & 1).astype(np.uint32)
            data, bits = encode(indices, d, kernels)
            assert bits <= kernels.rice_bound(d, indices.size)
            assert np.array_equal(decode(data, d, indices.size, kernels)[0], indices)


def test_no_indices_no_bits(kernels):
    assert kernels.rice_bound(0, 0) == kernels.rice_bound(9, 0) == 0
    assert encode(np.empty(0, np.uint32), 9, kernels)[1] == 0
    assert decode(np.empty(0, np.uint8), 9, 0, kernels)[1] == 0


def test_what_the_encoder_refuses(kernels):
    room = np.empty(100, np.uint8)
    for indices in ([3, 3], [5, 2], [0, 0, 1]):
        with pytest.raises(ValueError, match="not strictly ascending near position 0"):
            kernels.rice_encode(np.array(indices, np.uint32), 10, room)
    with pytest.raises(ValueError, match="outside a vector of size 10"):
        kernels.rice_encode(np.array([3, 10], np.uint32), 10, room)
    across = np.arange(CHUNK + 5, dtype=np.uint32)
    across[CHUNK] = CHUNK - 1
    with pytest.raises(ValueError, match=f"not strictly ascending near position {CHUNK}"):
        kernels.rice_encode(across, 10_000, np.empty(5000, np.uint8))
    with pytest.raises(ValueError, match="k = 11 indices below d = 10"):
        kernels.rice_bound(10, 11)
    with pytest.raises(ValueError, match="at most 2\\^32"):
        kernels.rice_bound(2**32 + 1, 1)


def test_the_encoder_never_writes_past_out(kernels):
    indices = np.sort(np.random.default_rng(1).choice(10**6, 5000, replace=False)).astype(np.uint32)
    data, _ = encode(indices, 10**6, kernels)
    guarded = np.full(data.size + 64, 0xA5, np.uint8)
    for room in (0, 3, 7, 8, 9, 100, data.size - 1):
        with pytest.raises(ValueError, match=f"more than the {room} bytes"):
            kernels.rice_encode(indices, 10**6, guarded[:room])
        assert np.all(guarded[room:] == 0xA5)
    kernels.rice_encode(indices, 10**6, guarded[: data.size])
    assert np.array_equal(guarded[: data.size], data) and np.all(guarded[data.size :] == 0xA5)


def accepts(data, d, k, module=K):
    """Decoded indices, which must be ascending and below d, or None where the decoder refused."""
    try:
        indices, bits = decode(data, d, k, module)
    except ValueError as error:
        assert str(error).startswith("coded indices: ")
        return None
    assert bits <= 8 * data.size
    assert np.all(np.diff(indices.astype(np.int64)) > 0) and (k == 0 or indices[-1] < d)
    return indices


def hostile():
    rng = np.random.default_rng(2)
    for d, k in ((50, 7), (10**5, 300), (2**32, 40), (10**6, CHUNK + 3)):
        yield np.unique(rng.integers(0, d, k)).astype(np.uint32), d


def test_every_prefix_is_refused(kernels):
    for indices, d in hostile():
        data, _ = encode(indices, d, kernels)
        every = 100 if isinstance(kernels, backends.Kernels) else 1000
        for size in range(data.size) if data.size < every else rng_sizes(data.size)[:: 1000 // every]:
            assert accepts(data[:size].copy(), d, indices.size, kernels) is None


def rng_sizes(size):
    return np.r_[0:40, np.random.default_rng(4).integers(0, size, 200), size - 40 : size]


def test_flips_give_an_error_or_ascending_indices(kernels):
    rng = np.random.default_rng(5)
    for indices, d in hostile():
        data, bits = encode(indices, d)
        for bit in rng.integers(0, 8 * data.size, 40 if isinstance(kernels, backends.Kernels) else 400):
            flipped = data.copy()
            flipped[bit >> 3] ^= 1 << (bit & 7)
            decoded = accepts(flipped, d, indices.size, kernels)
            assert decoded is None or not np.array_equal(decoded, indices)
        for bit in range(bits, 8 * data.size):
            flipped = data.copy()
            flipped[-1] ^= 1 << (bit & 7)
            assert accepts(flipped, d, indices.size, kernels) is None


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 2**32), st.integers(0, 60))
def test_random_bytes(data, d, k):
    accepts(np.frombuffer(data, np.uint8), d, k)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 31), st.integers(0, 1700))
def test_random_bytes_under_a_plausible_table(data, d, k, l, bits):
    accepts(np.r_[np.array([l << 27 | bits], "<u4").view(np.uint8), np.frombuffer(data, np.uint8)], d, k)


def test_what_a_table_entry_can_say_wrongly(kernels):
    data = encode(np.array([1, 4, 9], np.uint32), 12, kernels)[0]
    entry = int(data[:4].view("<u4")[0])
    l, bits = entry >> 27, entry & 2**27 - 1

    def patched(l, bits, tail=400):
        return np.r_[np.array([l << 27 | bits], "<u4").view(np.uint8), data[4:], np.zeros(tail, np.uint8)]

    assert accepts(patched(l, bits), 12, 3, kernels) is not None
    with pytest.raises(ValueError, match="truncated at chunk 0"):
        decode(patched(l, 90_000), 12, 3, kernels)
    with pytest.raises(ValueError, match="parameter and length"):
        decode(patched(l, 2**27 - 1), 12, 3, kernels)
    with pytest.raises(ValueError, match="parameter and length"):
        decode(patched(31, bits), 12, 3, kernels)
    with pytest.raises(ValueError, match="do not end where"):
        decode(patched(l, bits + 1), 12, 3, kernels)
    with pytest.raises(ValueError, match="leaves a vector of size 9"):
        decode(patched(l, bits), 9, 3, kernels)
