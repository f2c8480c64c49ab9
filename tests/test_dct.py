"""The block cosine transform against SciPy's, forwards and backwards, and the compressor built on it."""

import numpy as np
import pytest
from conftest import families

import compress

fft = pytest.importorskip("scipy.fft")

KEY = compress.Key(5)


def blocks(d):
    start = 0
    while start < d:
        block = 64
        while block > d - start:
            block //= 2
        yield start, block
        start += block


def by_scipy(x, inverse=False):
    out = np.empty(x.size)
    for start, n in blocks(x.size):
        part = x[start : start + n].astype(np.float64)
        out[start : start + n] = fft.idct(part, norm="ortho") if inverse else fft.dct(part, norm="ortho")
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 2, 3, 31, 63, 64, 65, 127, 1000, 1024, 1088, 5003])
def test_transform(kernels, d, dtype):
    x = families(d, seed=d, dtype=dtype)["gaussian"]
    tolerance = 8 * np.finfo(dtype).eps * np.abs(x).max()
    for inverse in (False, True):
        out = np.empty_like(x)
        kernels.dct(x, out, inverse)
        np.testing.assert_allclose(out, by_scipy(x, inverse), rtol=0, atol=tolerance)
        place = x.copy()
        kernels.dct(place, place, inverse)
        np.testing.assert_array_equal(place, out)
        back = np.empty_like(x)
        kernels.dct(out, back, not inverse)
        np.testing.assert_allclose(back, x, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_block_is_the_same_alone_and_in_company(kernels, dtype):
    x = families(64 * 37 + 21, dtype=dtype)["student"]
    whole = np.empty_like(x)
    kernels.dct(x, whole)
    for start, n in blocks(x.size):
        alone = np.empty(n, dtype)
        kernels.dct(x[start : start + n], alone)
        np.testing.assert_array_equal(whole[start : start + n], alone)


def test_every_instruction_set_rounds_alike():
    import importlib

    from conftest import INSTRUCTION_SETS

    modules = [importlib.import_module(f"compress._cpu.{name}") for name in INSTRUCTION_SETS]
    for dtype in (np.float32, np.float64):
        x = families(5003, dtype=dtype)["student"]
        for inverse in (False, True):
            outs = [np.empty_like(x) for _ in modules]
            for module, out in zip(modules, outs, strict=True):
                module.dct(x, out, inverse)
            assert all(np.array_equal(out, outs[0]) for out in outs)


def test_mismatched_buffers_are_refused(kernels):
    with pytest.raises(ValueError, match="out must match x"):
        kernels.dct(np.ones(5), np.ones(5, np.float32))


def test_smooth_vectors_need_fewer_coefficients():
    t = np.linspace(0, 20, 1 << 14)
    x = (np.sin(t) + 0.3 * np.sin(7 * t)).astype(np.float32)
    inner = compress.ChunkTopK()
    plain, transformed = (compress.measure(C, x, trials=2).nmse for C in (inner, compress.DCT(inner)))
    assert transformed < 0.1 * plain


def test_types_and_constants_are_those_of_the_inner():
    biased, unbiased = compress.DCT(compress.TopK(0.1)), compress.DCT(compress.RandK(0.1))
    assert isinstance(biased, compress.Contractive) and biased.alpha(1000) == compress.TopK(0.1).alpha(1000)
    assert isinstance(unbiased, compress.Unbiased) and unbiased.omega(1000) == compress.RandK(0.1).omega(1000)
    assert repr(biased) == "DCT(TopK(k=0.1, wire='float32'))"
    with pytest.raises(TypeError, match="inner must be a Compressor"):
        compress.DCT(3)
    with pytest.raises(ValueError, match="too large to transform"):
        biased.encode(np.full(1000, 3e38, np.float32), KEY)
