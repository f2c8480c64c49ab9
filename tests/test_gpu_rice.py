"""The GPU's Rice coder: the bytes, the indices and the complaints of the CPU's."""

import numpy as np
from cuda_on_cpu import cupy_on_cpu

from compress import _cpu

K = _cpu.kernels
CHUNK = 4096


def encoded(kernels, indices, d, room, start=0):
    """The bytes of a buffer with more room than is given away, or what is said."""
    out = np.full(start + room + 9, 0xA5, np.uint8)
    try:
        bits = kernels.rice_encode(indices, d, out[start : start + room])
    except ValueError as error:
        assert np.all(out[:start] == 0xA5) and np.all(out[start + room :] == 0xA5)
        return str(error)
    return bits, out.tobytes()


def decoded(kernels, data, d, k):
    indices = np.full(k + 1, 7, np.uint32)
    try:
        bits = kernels.rice_decode(data, d, indices[:k])
    except ValueError as error:
        assert indices[k] == 7
        return str(error)
    return bits, indices.tobytes()


def sets():
    rng = np.random.default_rng(0)
    for k in (1, 2, 15, 16, 17, 255, 4095, CHUNK, CHUNK + 1, 2 * CHUNK, 9001):
        for d in (k, 2 * k + 1, 100 * k, 2**32):
            gaps = rng.exponential(max(d / k - 1, 0), k).astype(np.uint64)
            indices = np.cumsum(gaps) + np.arange(k, dtype=np.uint64)
            yield np.unique(np.minimum(indices, d - 1)).astype(np.uint32), d
    yield np.array([2**32 - 1], np.uint32), 2**32
    yield np.r_[np.arange(CHUNK), np.arange(2**32 - CHUNK, 2**32)].astype(np.uint32), 2**32
    skewed = np.arange(2 * CHUNK)
    skewed[CHUNK - 1 :] += 2**31
    yield skewed.astype(np.uint32), 2**32
    yield np.linspace(0, 2**32 - 1, CHUNK).astype(np.uint32), 2**32  # the longest code there is


def test_bytes_and_indices_of_every_set(gpu):
    for j, (indices, d) in enumerate(sets()):
        cupy_on_cpu.ORDER = j % 4
        room = -(-K.rice_bound(d, indices.size) // 8)
        bits, data = encoded(K, indices, d, room, j % 5)
        assert encoded(gpu, indices, d, room, j % 5) == (bits, data)
        code = np.frombuffer(data, np.uint8)[j % 5 :]
        for extra in (code, code[: -(-bits // 8)]):
            assert decoded(gpu, extra, d, indices.size) == (bits, indices.tobytes() + b"\7\0\0\0")


def test_what_the_encoder_says(gpu):
    d = 10**6
    indices = np.sort(np.random.default_rng(1).choice(d, 3 * CHUNK + 5, replace=False)).astype(np.uint32)
    size = -(-encoded(K, indices, d, 100_000)[0] // 8)
    for at in (1, CHUNK - 1, CHUNK, 2 * CHUNK, 3 * CHUNK + 4):
        for value in (0, indices[at - 1], 2**32 - 1):
            for room in (size, size // 2, 15):
                wrong = indices.copy()
                wrong[at] = value
                cupy_on_cpu.ORDER = at % 4
                assert encoded(gpu, wrong, d, room) == encoded(K, wrong, d, room), (at, value, room)
    for room in (0, 15, 16, size // 3, size - 1, size):
        assert encoded(gpu, indices, d, room) == encoded(K, indices, d, room)
        assert encoded(gpu, indices, int(indices[2 * CHUNK]), room) == encoded(
            K, indices, int(indices[2 * CHUNK]), room
        )


def test_what_the_decoder_says_of_hostile_bytes(gpu):
    rng = np.random.default_rng(2)
    outcomes = set()
    for k, d in ((3, 12), (40, 2**32), (700, 10**5), (2 * CHUNK + 3, 10**6)):
        indices = np.sort(rng.choice(d, k, replace=False)) if d < 2**32 else np.unique(rng.integers(0, d, k))
        indices = indices.astype(np.uint32)
        k, chunks = indices.size, -(-indices.size // CHUNK)
        bits, data = encoded(K, indices, d, -(-K.rice_bound(d, k) // 8))
        data = np.frombuffer(data, np.uint8)[: -(-bits // 8)]
        for trial in range(60):
            wrong = data.copy()
            cupy_on_cpu.ORDER = trial % 4
            if trial % 3 == 0:
                wrong = wrong[: rng.integers(0, data.size)]
            for _ in range(trial % 4):
                at = rng.integers(0, wrong.size if trial % 2 else min(4 * chunks, wrong.size)) if wrong.size else None
                if at is not None:
                    wrong[at] ^= 1 << rng.integers(0, 8)
            expected = decoded(K, wrong, d, k)
            assert decoded(gpu, wrong, d, k) == expected
            outcomes.add(expected.split(":")[1][:12] if isinstance(expected, str) else "fine")
        assert decoded(gpu, data, int(indices[-1]), k) == decoded(K, data, int(indices[-1]), k)
    assert len(outcomes) > 5


def test_a_table_of_the_largest_entries(gpu):
    """Lengths and totals at the end of their range."""
    rng = np.random.default_rng(3)
    for n, l, bits in ((CHUNK, 21, 90_112), (CHUNK, 20, 90_112), (2816, 31, 90_112), (1, 31, 90_112), (1, 31, 32)):
        for k in (n, CHUNK + n):
            entries = np.full(-(-k // CHUNK), l << 27 | bits, "<u4")
            body = rng.integers(0, 256, entries.size * -(-bits // 8)).astype(np.uint8)
            for fill in (body, body | 255, body & 0):
                data = np.r_[entries.view(np.uint8), fill]
                assert decoded(gpu, data, 2**32, k) == decoded(K, data, 2**32, k)


def test_the_same_codes_in_any_order_of_threads(grid):
    indices = np.unique(np.random.default_rng(4).integers(0, 10**5, 6000)).astype(np.uint32)
    bits, data = encoded(K, indices, 10**5, 20_000)
    for cupy_on_cpu.ORDER in range(4):
        assert encoded(grid, indices, 10**5, 20_000) == (bits, data)
        code = np.frombuffer(data, np.uint8)
        assert decoded(grid, code, 10**5, indices.size) == (bits, indices.tobytes() + b"\7\0\0\0")
