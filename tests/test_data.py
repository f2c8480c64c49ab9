"""Data sets and splits: files come back as they went, every row is in one part, shares follow their law."""

import gzip
import math
import sys

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given
from hypothesis import strategies as st

from compress.data import binary, load, make_regression, split, split_dirichlet, split_sorted

RNG = np.random.default_rng(0)
A = np.where(RNG.random((9, 4)) < 0.5, 0, RNG.standard_normal((9, 4)))
A[0, 3] = 1.5  # LIBSVM text tells d from the largest index
B = RNG.standard_normal(9)


@pytest.mark.parametrize(
    ("name", "shape", "values"),
    [("breast_cancer", (569, 30), 2), ("diabetes", (442, 10), 214), ("digits", (1797, 64), 10)],
)
def test_bundled_sets(name, shape, values):
    features, b = load(name)
    assert features.shape == shape and b.shape == shape[:1] and np.unique(b).size == values
    assert features.dtype == b.dtype == np.float64
    scaled, same = load(name, scale=True)
    assert np.array_equal(same, b)
    constant = (features == features[0]).all(axis=0)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-13)
    np.testing.assert_allclose(scaled.std(axis=0), np.where(constant, 0, 1), rtol=1e-12)
    assert (scaled[:, constant] == 0).all()
    assert constant.any() == (name == "digits")


@pytest.mark.parametrize("names", ["Ab", "Xy", "Ay"])
def test_npz(tmp_path, names):
    path = tmp_path / "set.npz"
    np.savez(path, **dict(zip(names, (A.astype(np.float32), np.arange(9)), strict=True)))
    for source in (path, str(path)):
        features, b = load(source)
        assert np.array_equal(features, A.astype(np.float32)) and np.array_equal(b, np.arange(9))
        assert features.dtype == b.dtype == np.float64


def test_libsvm(tmp_path):
    path = tmp_path / "set.txt"
    sklearn.datasets.dump_svmlight_file(A, B, str(path))
    (tmp_path / "set.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    for source in (path, tmp_path / "set.txt.gz"):
        features, b = load(source)
        assert isinstance(features, np.ndarray) and features.flags.c_contiguous
        np.testing.assert_allclose(features, A, rtol=1e-15)
        np.testing.assert_allclose(b, B, rtol=1e-15)


def test_a_file_too_large_to_be_dense(tmp_path):
    path = tmp_path / "wide"
    path.write_text("1 1000000000:1\n")
    with pytest.raises(ValueError, match=r"1 x 1000000000 dense takes 7.5 GiB, limit is 4.0"):
        load(path)
    path.write_text("1 1000:1\n")
    assert load(path, limit=1e-5)[0].shape == (1, 1000)
    with pytest.raises(ValueError, match="limit is 1e-06"):
        load(path, limit=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad", b"not libsvm at all", "cannot be read"),
        ("bad.npz", b"", "bad.npz cannot be read"),
        ("bad.npz", b"PK\x03\x04 cut", "bad.npz cannot be read"),
        ("bad.npz", b"something", "bad.npz cannot be read"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"A": A, "labels": B}, "holds A, labels; A or X, and b or y are needed"),
        ({}, "holds nothing"),
        ({"A": A, "b": B[1:]}, r"got \(9, 4\) and \(8,\)"),
        ({"X": B, "y": B}, r"got \(9,\) and \(9,\)"),
        ({"A": A.astype(object), "b": B}, "cannot be read"),
    ],
)
def test_npz_without_the_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "set.npz")


def test_an_array_alone_under_the_name_of_npz(tmp_path):
    with open(tmp_path / "set.npz", "wb") as file:
        np.save(file, A)
    with pytest.raises(ValueError, match="holds nothing"):
        load(tmp_path / "set.npz")


def test_neither_a_name_nor_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="iris is neither a file nor one of breast_cancer, diabetes, digits"):
        load("iris")
    with pytest.raises(FileNotFoundError):
        load(tmp_path)


def test_the_extra_is_named_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    np.savez(tmp_path / "set.npz", A=A, b=B)
    (tmp_path / "set").write_text("1 1:1\n")
    for call in (make_regression, lambda: load("digits"), lambda: load(tmp_path / "set")):
        with pytest.raises(ImportError, match=r"compress-kernels\[bench\]"):
            call()
    load(tmp_path / "set.npz")


def test_make_regression_is_that_of_scikit_learn():
    for given_, expected in (
        (make_regression(), dict(n_samples=100, n_features=80, random_state=0)),
        (make_regression(30, 7, 2.5, 3), dict(n_samples=30, n_features=7, noise=2.5, random_state=3)),
    ):
        for mine, theirs in zip(given_, sklearn.datasets.make_regression(**expected), strict=True):
            assert np.array_equal(mine, theirs)


def test_binary():
    assert binary([3, 5, 3]).tolist() == [-1, 1, -1]
    assert binary(np.array(["ham", "spam"])).tolist() == [-1, 1]
    assert binary([0, 1, 2, 3], 2).tolist() == [-1, -1, 1, -1]
    assert binary([0.0, 1.0, 2.0, 3.0], [1, 2]).tolist() == [-1, 1, 1, -1]
    for labels, positive, message in (
        ([0, 1, 2], None, "labels have 3 values"),
        ([1, 1], None, "labels have 1 values"),
        ([1, 2], 3, "no label is in 3"),
        ([1, 2], [1, 2], r"every label is in \[1, 2\]"),
        ([[1, 2]], None, r"shape \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            binary(labels, positive)


@given(st.integers(1, 60), st.data())
def test_every_row_is_in_one_part(m, data):
    n, seed = data.draw(st.integers(1, m)), data.draw(st.integers(0, 9))
    labels = data.draw(st.lists(st.integers(0, 4), min_size=m, max_size=m))
    concentration = data.draw(st.sampled_from([1e-3, 0.1, 1.0, 1e3]))
    equal = split(m, n, seed), split_sorted(labels, n)
    for parts in (*equal, split_dirichlet(labels, n, concentration, seed)):
        assert len(parts) == n and all(part.size and part.dtype.kind == "i" for part in parts)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(m))
    for parts in equal:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    ordered = np.array(labels)[np.concatenate(equal[1])]
    assert (np.diff(ordered) >= 0).all()


def test_seeds_fix_a_split():
    labels = np.arange(200) % 3
    for make in (lambda seed: split(200, 7, seed), lambda seed: split_dirichlet(labels, 7, 1.0, seed)):
        first, second, other = (np.concatenate(make(seed)) for seed in (1, 1, 2))
        assert np.array_equal(first, second) and not np.array_equal(first, other)


@pytest.mark.parametrize("concentration", [0.2, 1.0, 20.0])
def test_shares_have_the_moments_of_dirichlet(concentration):
    """Mean 1/n, variance (n - 1)/(n^2 (n a + 1)): within 4 standard errors over 400 seeds."""
    n, m = 4, 1000
    shares = np.array([len(split_dirichlet(np.zeros(m), n, concentration, seed)[1]) / m for seed in range(400)])
    squares = (shares - 1 / n) ** 2
    for sample, expected in ((shares, 1 / n), (squares, (n - 1) / (n * n * (n * concentration + 1)))):
        assert abs(sample.mean() - expected) <= 4 * sample.std(ddof=1) / math.sqrt(400)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: split(3, 4), ValueError, r"n must be in \[1, 3\], got 4"),
        (lambda: split(3, 0), ValueError, r"n must be in \[1, 3\], got 0"),
        (lambda: split(0, 1), ValueError, "m must be at least 1, got 0"),
        (lambda: split(3, 2.0), TypeError, "n must be an integer"),
        (lambda: split_sorted([1, 2], 3), ValueError, "got 3"),
        (lambda: split_sorted([[1, 2]], 1), ValueError, r"shape \(1, 2\)"),
        (lambda: split_dirichlet([1, 2], 3, 1.0), ValueError, "got 3"),
        (lambda: split_dirichlet([1, 2], 2, 0.0), ValueError, "concentration must be positive and finite, got 0.0"),
        (lambda: split_dirichlet([1, 2], 2, math.nan), ValueError, "nan"),
    ],
)
def test_bad_splits(make, error, message):
    with pytest.raises(error, match=message):
        make()
