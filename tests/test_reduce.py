import numpy as np
import pytest

LENGTHS = [0, 1, 31, 32, 33, 4095, 4096, 4097, 20000]


def ordered_sum(terms):
    """The order reduce.h defines, slowly."""
    if terms.size <= 4096:
        lane = np.zeros(32)
        for start in range(0, terms.size, 32):
            row = terms[start : start + 32]
            lane[: row.size] += row
        half = 16
        while half:
            lane[:half] += lane[half : 2 * half]
            half //= 2
        return lane[0]
    return ordered_sum(np.array([ordered_sum(terms[i : i + 4096]) for i in range(0, terms.size, 4096)]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", LENGTHS)
def test_sums_follow_the_defined_order(kernels, n, dtype):
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    wide = x.astype(np.float64)
    assert kernels.sum_squares(x) == ordered_sum(wide * wide)
    assert kernels.sum_abs(x) == ordered_sum(np.abs(wide))
    assert kernels.max_abs(x) == (np.abs(wide).max() if n else 0)


def test_three_levels_of_leaves(kernels):
    x = np.random.default_rng(0).standard_normal(4096 * 4096 + 5, dtype=np.float32)
    wide = x.astype(np.float64)
    partials = np.array([kernels.sum_squares(wide[i : i + 4096]) for i in range(0, x.size, 4096)])
    upper = np.array([ordered_sum(partials[i : i + 4096]) for i in range(0, partials.size, 4096)])
    assert kernels.sum_squares(x) == ordered_sum(upper)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_not_finite(kernels, dtype):
    x = np.ones(1000, dtype)
    assert kernels.count_nonfinite(x) == (0, -1)
    x[[700, 30, 999]] = np.nan, np.inf, -np.inf
    assert kernels.count_nonfinite(x) == (3, 30)
    assert not np.isfinite(kernels.sum_squares(x))
    assert not np.isfinite(kernels.max_abs(x))
    assert not np.isfinite(kernels.norm(x, kernels.NORM_L2))


@pytest.mark.parametrize("power", [-1060, -500, -150, 0, 120, 500, 1010])
def test_norm_survives_the_range_of_its_type(kernels, power):
    with np.errstate(over="ignore", under="ignore"):
        x = np.ldexp(np.array([3.0, 0, -4]), power)
        single = x.astype(np.float32)
    assert kernels.norm(x, kernels.NORM_L2) == pytest.approx(np.ldexp(5.0, power), rel=1e-12)
    if np.isfinite(single).all():
        assert kernels.norm(single, kernels.NORM_L2) == pytest.approx(np.linalg.norm(single.astype(float)), rel=1e-12)


def test_wrong_types_are_refused(kernels):
    with pytest.raises(TypeError, match="vector"):
        kernels.sum_squares(np.ones(3, np.int32))
    with pytest.raises(TypeError, match="2 dimensions"):
        kernels.sum_squares(np.ones((3, 3)))
    with pytest.raises((BufferError, ValueError)):
        kernels.sum_squares(np.ones(6)[::2])
