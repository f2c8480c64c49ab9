"""The Walsh-Hadamard transform and the rotation against ten-line oracles, on every backend."""

import numpy as np
import pytest

from compress._cpu import kernels as host

DTYPES = [np.float32, np.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)


def oracle_fwht(x, block):
    """The format: ascending strides, (a, b) -> (a + b, a - b), the scale last."""
    y, stride = x.reshape(-1, block).copy(), 1
    while stride < block:
        pairs = y.reshape(len(y), -1, 2, stride)
        a, b = pairs[:, :, 0].copy(), pairs[:, :, 1].copy()
        pairs[:, :, 0], pairs[:, :, 1] = a + b, a - b
        stride *= 2
    log = block.bit_length() - 1
    return (y * x.dtype.type(0.5 ** (log // 2) * (0.5**0.5 if log % 2 else 1))).reshape(-1)


def signs(n, key, start=0):
    words = np.empty(4 * -(-n // 128), np.uint32)
    host.philox_words(key, start >> 7, 2, words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:n]
    return 1.0 - 2.0 * bits


def oracle_rotation(x, key):
    """hadamard.h, C: blocks that fit, then one that overlaps and ends where x ends."""
    y = x.copy()
    if x.size == 0:
        return y
    block = min(4096, 1 << (x.size.bit_length() - 1))
    starts = [(e, e) for e in range(0, x.size - block + 1, block)]
    if x.size % block:
        starts.append((x.size - block, 1 << 40))
    for start, sign in starts:
        part = y[start : start + block] * signs(block, key, sign).astype(x.dtype)
        y[start : start + block] = oracle_fwht(part, block)
    return y


@dtypes
@pytest.mark.parametrize("log", range(18))
def test_fwht_is_bit_equal_to_the_oracle(kernels, dtype, log):
    n = max(1 << log, 1 << 13)
    x = np.random.default_rng(log).standard_normal(n).astype(dtype)
    y = x.copy()
    kernels.fwht(y, 1 << log)
    assert y.tobytes() == oracle_fwht(x, 1 << log).tobytes()


@dtypes
@pytest.mark.parametrize("offset", [1, 3, 7, 15])
def test_alignment_does_not_matter(kernels, dtype, offset):
    x = np.random.default_rng(offset).standard_normal((1 << 16) + 16).astype(dtype)
    y = x.copy()
    kernels.fwht(y[offset : offset + (1 << 16)], 1 << 16)
    assert y[offset : offset + (1 << 16)].tobytes() == oracle_fwht(x[offset : offset + (1 << 16)], 1 << 16).tobytes()
    assert np.array_equal(y[:offset], x[:offset])
    assert np.array_equal(y[offset + (1 << 16) :], x[offset + (1 << 16) :])


@dtypes
def test_fwht_is_orthonormal_and_an_involution(kernels, dtype):
    x = np.random.default_rng(0).standard_normal(1 << 15).astype(dtype)
    for block in (1, 2, 8, 512, 1 << 15):
        y = x.copy()
        kernels.fwht(y, block)
        tolerance = 20 * float(np.finfo(dtype).eps)
        assert np.linalg.norm(y) == pytest.approx(np.linalg.norm(x), rel=tolerance)
        kernels.fwht(y, block)
        assert np.linalg.norm(y - x) <= tolerance * np.linalg.norm(x)


def test_empty_and_wrong_blocks(kernels):
    kernels.fwht(np.empty(0, np.float32), 64)
    for block in (0, -2, 3, 24, 2048):
        with pytest.raises(ValueError, match=f"block {block} and length 1000"):
            kernels.fwht(np.zeros(1000, np.float32), block)


@dtypes
@pytest.mark.parametrize("n", [0, 1, 3, 31, 63, 64, 100, 127, 128, 1000, 4095, 4096, 4097, 9999])
def test_rotation(kernels, dtype, n):
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    key = 0x1234567890ABCDEF
    wanted = oracle_rotation(x, key)
    out = np.full_like(x, np.nan)
    kernels.rotate(x, out, key)
    assert out.tobytes() == wanted.tobytes()
    back = np.full_like(x, np.nan)
    kernels.rotate(out, back, key, inverse=True)
    assert np.linalg.norm(back - x) <= 10 * np.finfo(dtype).eps * np.linalg.norm(x)
    in_place = x.copy()
    kernels.rotate(in_place, in_place, key)
    assert in_place.tobytes() == wanted.tobytes()
    kernels.rotate(in_place, in_place, key, inverse=True)
    assert in_place.tobytes() == back.tobytes()


@pytest.mark.parametrize("n", [1000, 4097, 5000, 8191, 100_003])
def test_rotation_leaves_no_coordinate_alone(kernels, n):
    """A unit vector spreads over a block at least, wherever it stands."""
    block = min(4096, 1 << (n.bit_length() - 1))
    for place in (0, n // 2, n - block - 1, n - block, n - 2, n - 1):
        x = np.zeros(n, np.float32)
        x[place] = 1
        kernels.rotate(x, x, 99)
        assert np.abs(x).max() <= 5 / np.sqrt(block)


def test_rotation_wants_an_output_like_its_input(kernels):
    with pytest.raises(ValueError, match=r"got 9 of 'f' for 10 of 'd'"):
        kernels.rotate(np.zeros(10), np.zeros(9, np.float32), 0)
