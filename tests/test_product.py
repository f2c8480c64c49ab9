"""Products of factors and orthonormal bases, in sums of a fixed order."""

import importlib

import numpy as np
import pytest
from conftest import INSTRUCTION_SETS

SHAPES = [(1, 1, 1), (3, 4, 32), (2, 5, 33), (7, 9, 100), (16, 130, 67), (4, 3, 16), (0, 6, 40), (2, 0, 5), (2, 5, 0)]


def in_order(w, b):
    x = np.zeros((w.shape[1], b.shape[1]), w.dtype)
    for left, right in zip(w, b, strict=True):
        x += np.multiply.outer(left, right)
    return x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_is_the_sum_of_outer_products_in_order(kernels, dtype):
    rng = np.random.default_rng(0)
    for r, m, n in SHAPES:
        w, b = rng.standard_normal((r, m)).astype(dtype), rng.standard_normal((r, n)).astype(dtype)
        out = np.full(m * n, np.nan, dtype)
        kernels.outer_sum(w.ravel(), b.ravel(), r, m, n, out)
        assert out.tobytes() == in_order(w, b).tobytes(), (r, m, n)


def test_what_is_not_finite_stays_where_it_is(kernels):
    w, b = np.ones((2, 9), np.float32), np.ones((2, 70), np.float32)
    w[1, 4], b[0, 66] = np.inf, np.nan
    out = np.empty(9 * 70, np.float32)
    kernels.outer_sum(w.ravel(), b.ravel(), 2, 9, 70, out)
    np.testing.assert_array_equal(out.reshape(9, 70), in_order(w, b))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("r, m", [(1, 1), (1, 50), (5, 5), (8, 300), (16, 1000)])
def test_a_basis_is_orthonormal_and_spans_the_rows_in_order(kernels, r, m, dtype):
    w = np.random.default_rng(r).standard_normal((r, m)).astype(dtype)
    q = np.empty_like(w)
    kernels.orthonormal(w.ravel(), r, q.ravel())
    wide, tolerance = q.astype(np.float64), 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(wide @ wide.T, np.eye(r), atol=tolerance * 4)
    along = w.astype(np.float64) @ wide.T  # row i of W is made of the first i rows of the basis
    np.testing.assert_allclose(np.triu(along, 1), 0, atol=tolerance * np.sqrt(m) * 4)
    assert (np.diag(along) > 0).all()
    np.testing.assert_allclose(along @ wide, w, atol=tolerance * np.abs(w).max() * r * 4)


def test_rows_that_depend_on_others_become_zeros(kernels):
    rng = np.random.default_rng(1)
    w = rng.standard_normal((5, 40)).astype(np.float32)
    w[1], w[3] = 0, 2 * w[0] - w[2]
    q = np.empty_like(w)
    kernels.orthonormal(w.ravel(), 5, q.ravel())
    np.testing.assert_allclose(q @ q.T, np.diag([1, 0, 1, 0, 1]), atol=1e-6)
    assert not q[1].any() and not q[3].any()
    for bad in (np.nan, np.inf):
        w[2, 7] = bad
        kernels.orthonormal(w.ravel(), 5, q.ravel())
        np.testing.assert_allclose(q @ q.T, np.diag([1, 0, 0, 1, 1]), atol=1e-6)  # the fourth is no sum of others now
    nothing = np.zeros(12, np.float32)
    kernels.orthonormal(nothing, 3, nothing)
    assert not nothing.any()


@pytest.mark.parametrize("scale", [1e-38, 1e-44, 1e38])
def test_any_scale(kernels, scale):
    w = (np.random.default_rng(2).standard_normal((3, 30)).clip(-3, 3) * scale).astype(np.float32)
    q = np.empty_like(w)
    kernels.orthonormal(w.ravel(), 3, q.ravel())
    np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-6)


def test_in_place(kernels):
    w = np.random.default_rng(3).standard_normal(200)
    q = np.empty_like(w)
    kernels.orthonormal(w, 4, q)
    kernels.orthonormal(w, 4, w)
    np.testing.assert_array_equal(w, q)


def test_every_instruction_set_and_the_gpu_round_alike(gpu):
    modules = [*(importlib.import_module(f"compress._cpu.{name}") for name in INSTRUCTION_SETS), gpu]
    rng = np.random.default_rng(4)
    for dtype in (np.float32, np.float64):
        w = (rng.standard_normal((9, 517)) * np.exp(rng.standard_normal((9, 517)) * 5)).astype(dtype)
        found = set()
        for module in modules:
            q = np.empty_like(w)
            module.orthonormal(w.ravel(), 9, q.ravel())
            found.add(q.tobytes())
        assert len(found) == 1


def test_wrong_buffers_are_refused(kernels):
    x, short, out = np.ones(12, np.float32), np.ones(11, np.float32), np.ones(12, np.float32)
    for arguments, name in (
        ((short, x, 3, 4, 4, np.ones(16, np.float32)), "w"),
        ((x, short, 3, 4, 4, np.ones(16, np.float32)), "b"),
        ((x, x, 3, 3, 4, short), "out"),
    ):
        with pytest.raises(ValueError, match=f"{name} has 11 elements, 12 are needed"):
            kernels.outer_sum(*arguments)
    with pytest.raises(ValueError, match="one type"):
        kernels.outer_sum(x, np.ones(12), 3, 4, 4, np.ones(16, np.float32))
    with pytest.raises(ValueError, match="must not be negative"):
        kernels.outer_sum(x, x, -1, 4, 4, np.ones(16, np.float32))
    with pytest.raises(ValueError, match="12 elements are no 5 rows"):
        kernels.orthonormal(x, 5, out)
    with pytest.raises(ValueError, match="out must match x"):
        kernels.orthonormal(x, 3, np.ones(12))
