"""LowRank against the singular value decomposition, and as a compressor that trusts nobody."""

import numpy as np
import pytest

pytest.importorskip("torch")

import compress
from compress.torch import LowRank

KEY = compress.Key(3)
SHAPES = [(96, 64), (96,), (30, 4, 3, 3), (7,), (64, 200)]


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


@pytest.mark.parametrize("seed", range(3))
def test_as_good_as_truncation_where_values_are_fine(seed):
    """With 12 bits a value the error is that of the same ranks of the exact decomposition."""
    x = tensors(seed=seed)
    C = LowRank(3.0, compress.UniformQuantizer(bits=12), 12).of(SHAPES)
    message = C.encode(x, KEY)
    ranks = message.payload[:3].tolist()
    assert min(ranks) > 1
    left = sum(
        np.sum(np.linalg.svd(matrix, compute_uv=False)[r:] ** 2) for matrix, r in zip(matrices(x), ranks, strict=True)
    )
    assert error(C.decode(message, KEY), x) == pytest.approx(left / np.sum(x**2), rel=0.02)
    spread = [decay for matrix, r in zip(matrices(x), ranks, strict=True)
              for decay in (np.linalg.svd(matrix, compute_uv=False) ** 2 / sum(matrix.shape))[[r - 1, r]]]  # fmt: skip
    assert min(spread[::2]) >= max(spread[1::2]) * 0.999  # the queue: what is sent is worth more than what is not


@pytest.mark.parametrize("rate", [0.1, 0.3, 1.0])
def test_bits_are_those_asked_for_and_few_where_the_rank_is_low(rate):
    shapes = [(256, 512), (256,), (512, 256)]
    x = tensors(shapes)
    C = LowRank(bits=rate).of(shapes)
    message = C.encode(x, KEY)
    assert message.bits == 8 * message.payload.nbytes <= 1.05 * rate * x.size + 400
    assert message.bits <= C.bits(x.size)
    y = C.decode(message, KEY)
    other = compress.Trellis(bits=rate, context=True)(x, KEY)
    assert error(y, x) < 0.5 * error(other, x)


def test_a_wide_range_finder_is_as_good_as_a_decomposition():
    from compress.torch.low_rank import _singular

    matrix = tensors([(300, 400)], decay=0.9).reshape(300, 400)
    exact = np.linalg.svd(matrix, compute_uv=False)
    for transposed in (matrix, np.ascontiguousarray(matrix.T)):
        u, sizes = _singular(transposed, 20, seed=5)
        assert sizes == pytest.approx(exact[:20], rel=1e-2)
        assert np.abs(u.T @ u - np.eye(20)).max() < 1e-5
        assert np.linalg.norm(u.T @ transposed) ** 2 == pytest.approx(np.sum(exact[:20] ** 2), rel=1e-2)


def test_the_receiver_adds_outer_products_in_order():
    """Ten lines of what a message says; bit for bit, whatever BLAS is there."""
    shapes = [(40, 30), (50,)]
    x = tensors(shapes)
    C = LowRank(2.0).of(shapes)
    message = C.encode(x, KEY)
    (r,), length = message.payload[:1].tolist(), int.from_bytes(message.payload[1:5].tobytes(), "little")
    parts = message.payload[5 : 5 + length], message.payload[5 + length :]
    counts = r * 40 + 50, r * 30
    left, right = (
        C.values.decode(compress.Message(part, 8 * part.size, count, x.dtype), KEY.fold(word))
        for part, count, word in zip(parts, counts, (1, 2), strict=True)
    )
    whole = np.zeros((40, 30), np.float32)
    for row, other in zip(left[: r * 40].reshape(r, 40), right.reshape(r, 30), strict=True):
        kernel = compress.kernels.of(row)
        unit = row / np.float32(kernel.norm(row, kernel.NORM_L2) or 1)
        whole += unit[:, None] * other
    y = C.decode(message, KEY)
    assert r > 1 and np.array_equal(y, np.concatenate([whole.ravel(), left[r * 40 :]]))
    assert C.encode(x, KEY) == message
    out = np.ones_like(x)
    C.decode_add(message, KEY, out, -0.5)
    assert np.array_equal(out, 1 - np.float32(0.5) * y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e20])
def test_any_size_of_numbers(dtype, scale):
    x = tensors(dtype=dtype) * dtype(scale)
    y = LowRank(0.5).of(SHAPES)(x, KEY)
    assert y.dtype == dtype
    assert error(y.astype(np.float64) / scale, x.astype(np.float64) / scale) < 0.2


def test_what_has_no_rank():
    for shapes in ([(20, 10), (5,)], [(1, 1)], [(1, 40)], [(40, 1)], [(9,)], [(3, 0), (4,)]):
        C = LowRank(1.0).of(shapes)
        d = sum(int(np.prod(shape)) for shape in shapes)
        assert not np.any(C(np.zeros(d, np.float32), KEY))
        x = tensors([shape for shape in shapes if np.prod(shape)], seed=1)
        assert error(C(x, KEY), x) <= 1
    x = np.random.default_rng(0).standard_normal(64 * 64).astype(np.float32)
    assert error(LowRank(1e-4).of([(64, 64)])(x, KEY), x) == 1  # not even one of them fits
    assert error(LowRank(8.0, compress.Trellis(bits=4), 4).of([(64, 64)])(x, KEY), x) < 0.02


def test_what_is_left_out_is_less_than_all():
    rng = np.random.default_rng(0)
    for rate in (0.05, 0.5, 2.0):
        for x in (tensors(), rng.standard_normal(tensors().size), rng.standard_cauchy(tensors().size)):
            x = x.astype(np.float32)
            assert error(LowRank(rate).of(SHAPES)(x, KEY), x) < 1


def test_hostile_bytes():
    x = tensors()
    C = LowRank(1.0).of(SHAPES)
    message, rng = C.encode(x, KEY), np.random.default_rng(0)
    payloads = [message.payload[:k] for k in (0, 1, 3, 6, 7, 20, message.payload.size - 1)]
    payloads.append(np.concatenate([message.payload, np.zeros(9, np.uint8)]))
    for at in [*range(10), *rng.integers(10, message.payload.size, 60)]:
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
        ((0,), ValueError, r"rate must be in \(0, 32\], got 0"),
        ((0.1, "Trellis"), TypeError, "values must be a Compressor"),
        ((0.1, compress.Eden(2), -1), ValueError, "value_bits"),
    ):
        with pytest.raises(kind, match=what):
            LowRank(*arguments)
    C = LowRank(0.5).of([(30, 20), (3,)])
    x = np.ones(603, np.float32)
    with pytest.raises(ValueError, match="tensors of 603 elements, got 602"):
        C.encode(x[:-1], KEY)
    x[77] = np.nan
    with pytest.raises(ValueError, match="1 NaN or Inf among 603 elements, the first at index 77"):
        C.encode(x, KEY)
    with pytest.raises(TypeError, match="no proven constant"):
        C.alpha(603)
