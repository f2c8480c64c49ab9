"""LowRank against the singular value decomposition, and as a compressor that trusts nobody."""

import struct

import numpy as np
import pytest

import compress
from compress import LowRank
from compress.lowrank import _singular, orthonormal

KEY = compress.Key(3)
SHAPES = ((96, 64), (96,), (30, 4, 3, 3), (7,), (64, 200))


def tensors(shapes=SHAPES, decay=0.7, seed=0, dtype=np.float32):
    """Matrices whose singular values fall as decay^k, and vectors, as one vector."""
    rng, parts = np.random.default_rng(seed), []
    for shape in shapes:
        m, n = shape[0], int(np.prod(shape[1:]))
        if len(shape) == 1:
            parts.append(0.05 * rng.standard_normal(m))
            continue
        r = min(m, n)
        u, v = (np.linalg.qr(rng.standard_normal((size, r)))[0] for size in (m, n))
        parts.append(((u * decay ** np.arange(r)) @ v.T).ravel())
    return np.concatenate(parts).astype(dtype)


def matrices(x, shapes=SHAPES):
    at = 0
    for shape in shapes:
        size = int(np.prod(shape))
        if len(shape) > 1:
            yield x[at : at + size].reshape(shape[0], -1)
        at += size


def error(y, x):
    return float(np.sum((y - x) ** 2) / np.sum(x**2))


def ranks_of(message, count):
    return struct.unpack(f"<{count}I", message.payload[6 : 6 + 4 * count].tobytes())


@pytest.mark.parametrize("seed", range(3))
def test_as_good_as_truncation_where_values_are_fine(seed):
    """With 12 bits a value the error is that of the same ranks of the exact decomposition."""
    x = tensors(seed=seed)
    C = LowRank(3.0, compress.UniformQuantizer(bits=12), SHAPES)
    message = C.encode(x, KEY)
    ranks = ranks_of(message, 3)
    assert min(ranks) > 1
    exact = [np.linalg.svd(matrix, compute_uv=False) ** 2 for matrix in matrices(x)]
    left = sum(np.sum(squares[r:]) for squares, r in zip(exact, ranks, strict=True))
    assert error(C.decode(message, KEY), x) == pytest.approx(left / np.sum(x**2), rel=0.02)
    # the queue: the most energy for each number, as long as it fits
    room, taken = (3.0 * x.size - 12 * 103) / 12, [0, 0, 0]
    sides = [sum(matrix.shape) for matrix in matrices(x)]
    for _, i in sorted((-square / sides[i], i) for i, squares in enumerate(exact) for square in squares):
        if sides[i] <= room:
            room, taken[i] = room - sides[i], taken[i] + 1
    assert ranks == tuple(taken)


@pytest.mark.parametrize("rate", [0.1, 0.3, 1.0])
def test_bits_are_those_asked_for_and_few_where_the_rank_is_low(rate):
    shapes = ((256, 512), (256,), (512, 256))
    x = tensors(shapes)
    C = LowRank(bits=rate, shapes=shapes)
    message = C.encode(x, KEY)
    assert message.bits == 8 * message.payload.nbytes <= 1.05 * rate * x.size + 400
    assert message.bits <= C.bits(x.size)
    y = C.decode(message, KEY)
    other = compress.Trellis(bits=rate, context=True)(x, KEY)
    assert error(y, x) < 0.5 * error(other, x)


@pytest.mark.parametrize("values", [compress.Eden(4), compress.StandardDithering(7), compress.ScaledSign()], ids=repr)
def test_the_rate_is_that_of_whatever_codes_the_values(values):
    """Vectors are within it, and a rank more would not be."""
    shapes = ((256, 256), (2000,))
    x = tensors(shapes, decay=0.99)
    for rate in (0.3, 0.8):
        C = LowRank(rate, values, shapes)
        bits = C.encode(x, KEY).bits
        assert rate * x.size - (values.bits(256) + values.bits(256)) <= bits <= rate * x.size + 8 * 10 + 16


def test_ranks_go_where_the_energy_is():
    """All of the budget to one matrix of many, which is more than its share and more than 255."""
    shapes = ((300, 300),) * 4
    rng = np.random.default_rng(0)
    x = np.concatenate([scale * rng.standard_normal(300 * 300) for scale in (1e-3, 1, 1e-3, 1e-3)]).astype(np.float32)
    ranks = ranks_of(LowRank(0.8, shapes=shapes).encode(x, KEY), 4)
    assert ranks[0] == ranks[2] == ranks[3] == 0 and 255 < ranks[1] == int(0.8 * 4 * 300 * 300 / 1.75 / 600)


def test_a_range_finder_is_as_good_as_a_decomposition():
    matrix = tensors(((300, 400),), decay=0.9).reshape(300, 400)
    exact = np.linalg.svd(matrix, compute_uv=False)
    for transposed in (matrix, np.ascontiguousarray(matrix.T)):
        for count in (20, 120):
            u, sizes = _singular(transposed, count, seed=5)
            assert sizes == pytest.approx(exact[:count], rel=1e-2, abs=1e-5)
            assert np.abs(u.T @ u - np.eye(len(sizes))).max() < 1e-5
            assert np.linalg.norm(u.T @ transposed) ** 2 == pytest.approx(np.sum(exact[:count] ** 2), rel=1e-4)
    low = tensors(((50, 3),)).reshape(50, 3) @ tensors(((3, 400),)).reshape(3, 400)
    assert _singular(low, 20, seed=5)[0].shape == (50, 3)


def gram_schmidt(rows):
    """An obviously right one, in float128."""
    found = []
    for row in rows.astype(np.longdouble):
        left = row - sum((np.sum(row * q) * q for q in found), np.zeros_like(row))
        length = np.sqrt(np.sum(left * left))
        found.append(left / length if length > 1e-5 * np.sqrt(np.sum(row * row)) else 0 * left)
    return np.array(found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_as_decoded_become_orthonormal(dtype):
    rng = np.random.default_rng(0)
    for r, m in ((1, 1), (1, 9), (7, 7), (12, 33), (20, 64)):
        rows = np.sign(rng.standard_normal((r, m)) + 0.5).astype(dtype)
        rows[r // 2] = rows[0] + 1e-3 * rng.standard_normal(m)
        rows[r // 3] *= 0 if r > 3 else 1
        found = orthonormal(rows)
        assert found.dtype == dtype and found == pytest.approx(gram_schmidt(rows).astype(float), abs=1e-6)
        gram = found.astype(float) @ found.T
        assert gram == pytest.approx(np.diag(np.diag(gram).round()), abs=1e-6)
    rows[5], rows[9, 3] = rows[2], np.inf  # spanned before, or nothing an encoder writes
    found = orthonormal(rows)
    assert np.isfinite(found).all() and not found[5].any() and not found[9].any()


def test_the_receiver_adds_outer_products_in_order():
    """What a message says in a few lines; bit for bit, whatever BLAS is there, and in any blocks."""
    shapes = ((700, 90), (50,))
    x = tensors(shapes)
    C = LowRank(0.5, shapes=shapes)
    message = C.encode(x, KEY)
    exponent, length, r = struct.unpack("<hII", message.payload[:10].tobytes())
    parts = message.payload[10 : 10 + length], message.payload[10 + length :]
    left, right = (
        C.values.decode(compress.Message(part, 8 * part.size, count, x.dtype), KEY.fold(word))
        for part, count, word in zip(parts, (r * 700, r * 90 + 50), (1, 2), strict=True)
    )
    whole = np.zeros((700, 90), np.float32)
    for row, other in zip(orthonormal(left.reshape(r, 700)), right[:-50].reshape(r, 90), strict=True):
        whole += row[:, None] * other
    y = C.decode(message, KEY)
    assert r > 1 and exponent == 0 and np.array_equal(y, np.concatenate([whole.ravel(), right[-50:]]))
    assert C.encode(x, KEY) == message
    out = np.ones_like(x)
    C.decode_add(message, KEY, out, -0.5)
    assert np.array_equal(out, 1 - np.float32(0.5) * y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-300, 1e-36, 1.0, 1e20, 1e38, 1e300])
def test_any_size_of_numbers(dtype, scale):
    if dtype is np.float32 and not 1e-40 < scale < 1e40:
        return
    x = tensors(dtype=dtype) * dtype(scale)
    y = LowRank(0.5, shapes=SHAPES)(x, KEY)
    assert y.dtype == dtype
    assert error(y.astype(np.float64) / scale, x.astype(np.float64) / scale) < 0.2


def test_what_has_no_rank():
    for shapes in (((20, 10), (5,)), ((1, 1),), ((1, 40),), ((40, 1), (3, 1, 1)), ((9,),), ((3, 0), (4,)), None):
        C = LowRank(2.0, shapes=shapes)
        d = 117 if shapes is None else sum(int(np.prod(shape)) for shape in shapes)
        assert not np.any(C(np.zeros(d, np.float32), KEY))
        x = tensors([shape for shape in shapes or ((10, 11), (7,)) if np.prod(shape)], seed=1)
        assert error(C(x, KEY), x) < 1
    x = np.random.default_rng(0).standard_normal(64 * 64).astype(np.float32)
    assert error(LowRank(8.0, compress.Trellis(bits=4), ((64, 64),))(x, KEY), x) < 0.02
    assert LowRank(2.0, shapes=((3, 0), ())).bits(1) and LowRank(1.0, shapes=()).bits(0) == 48


VALUES = [
    compress.Trellis(bits=1.75, context=True),
    compress.Trellis(bits=0.5),
    compress.Eden(1),
    compress.ScaledSign(),
    compress.ChunkTopK(64, 4),
    compress.RandK(0.1),
]


@pytest.mark.parametrize("values", VALUES, ids=repr)
def test_what_is_left_out_is_never_more_than_all(values):
    """Nor where decoded rows are nothing like orthogonal, or vectors of another scale."""
    rng = np.random.default_rng(0)
    for rate in (0.5, 2.0, 8.0):
        C = LowRank(rate, values, SHAPES)
        for decay in (1.0, 0.9, 0.5):
            assert error(C(x := tensors(decay=decay), KEY), x) < 1
        for x in (rng.standard_normal(tensors().size), rng.standard_cauchy(tensors().size)):
            x = x.astype(np.float32)
            assert error(C(x, KEY), x) < 1
    x = tensors(((64, 64), (2000,)), decay=0.5)
    x[4096:] *= 1e-3
    y = LowRank(4.0, values, ((64, 64), (2000,)))(x, KEY)
    assert error(y, x) < 1


@pytest.mark.parametrize("values", VALUES[:4], ids=repr)
def test_errors_do_not_grow_under_feedback(values):
    x, C = tensors(((64, 64),), decay=0.9), LowRank(2.0, values, ((64, 64),))
    left = np.zeros_like(x)
    for step in range(40):
        left = left + x
        left -= C(left, KEY.at(step))
    assert np.linalg.norm(left) < 20 * np.linalg.norm(x)


def test_hostile_bytes():
    x = tensors()
    C = LowRank(1.0, shapes=SHAPES)
    message, rng = C.encode(x, KEY), np.random.default_rng(0)
    payloads = [message.payload[:k] for k in (0, 1, 5, 6, 17, 18, 60, message.payload.size - 1)]
    payloads.append(np.concatenate([message.payload, np.zeros(9, np.uint8)]))
    for at in [*range(18), *rng.integers(18, message.payload.size, 60)]:
        flipped = message.payload.copy()
        flipped[at] ^= rng.integers(1, 256)
        payloads.append(flipped)
    outcomes = set()
    for payload in payloads:
        try:
            y = C.decode(message._replace(payload=payload, bits=8 * payload.size), KEY)
            outcomes.add("vector")
            assert y.shape == x.shape
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"vector", "refused"}


def test_what_is_refused():
    for arguments, kind, what in (
        ((0,), ValueError, r"rate must be in \(0, 64\], got 0"),
        ((0.1, "Trellis"), TypeError, "values must be a Compressor"),
        ((0.1, compress.Trellis(nmse=0.1)), ValueError, "values must have a fixed length or a rate"),
        ((0.1, compress.Eden(2), 7), TypeError, "shapes must be a tuple of shapes, got 7"),
        ((0.1, compress.Eden(2), ((3, -1),)), ValueError, "a side must be at least 0, got -1"),
    ):
        with pytest.raises(kind, match=what):
            LowRank(*arguments)
    C = LowRank(0.5, shapes=[[30, 20], [3]])
    assert C == LowRank(bits=0.5, shapes=((30, 20), (3,))) and hash(C)
    x = np.ones(603, np.float32)
    with pytest.raises(ValueError, match="shapes are of 603 coordinates, x has 602"):
        C.encode(x[:-1], KEY)
    x[77] = np.nan
    with pytest.raises(ValueError, match="1 NaN or Inf among 603 elements, the first at index 77"):
        C.encode(x, KEY)
    with pytest.raises(TypeError, match="no proven constant"):
        C.alpha(603)
    for shapes in (((30, 20), (300,)), ((10, 10),), ((300,),)):
        with pytest.raises(ValueError, match=r"rate=0.2 is \d+ bits for \d+ coordinates; vectors, and a singular"):
            LowRank(0.2, shapes=shapes).bits(sum(int(np.prod(shape)) for shape in shapes))
