"""Data sets and splits: files come back as they went, every row is in one part, shares follow their law."""

import gzip
import math
import pickle
import sys
import tempfile

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given
from hypothesis import strategies as st

from compress.data import _cifar_pickle, binary, images, load, make_regression, split, split_dirichlet, split_sorted

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


def write_idx(path, array, magic=None):
    head = bytes((0, 0, 8, array.ndim)) if magic is None else magic
    content = head + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


PIXELS = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)
CLASSES = np.arange(7, dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (15, 3, 32, 32), dtype=np.uint8)


def write_mnist(folder, dash="-", end=""):
    for stem, rows in (("train", slice(0, 5)), ("t10k", slice(5, 7))):
        write_idx(folder / f"{stem}-images{dash}idx3-ubyte{end}", PIXELS[rows])
        write_idx(folder / f"{stem}-labels{dash}idx1-ubyte{end}", CLASSES[rows])


def test_digits_split_alike_each_time_and_by_class():
    parts = {part: images("digits", part=part) for part in ("train", "test")}
    A, b = load("digits")
    both = np.concatenate([x.reshape(-1, 64) for x, _ in parts.values()])
    assert sorted(map(bytes, (both * 16).astype(np.uint8))) == sorted(map(bytes, A.astype(np.uint8)))
    for x, y in parts.values():
        assert x.shape[1:] == (1, 8, 8) and x.dtype == np.float32 and y.dtype == np.int64
        assert x.min() == 0 and x.max() == 1
        for row, label in zip((x.reshape(-1, 64) * 16)[:50], y, strict=False):
            assert label in b[(A == row).all(axis=1)]
    counts = np.bincount(parts["test"][1])
    assert (counts == np.bincount(b.astype(int)) // 5).all()


@pytest.mark.parametrize(("dash", "end"), [("-", ""), (".", ""), ("-", ".gz")])
@pytest.mark.parametrize("inner", ["", "raw", "MNIST/raw"])
def test_mnist_folders_and_files(tmp_path, dash, end, inner):
    write_mnist(tmp_path / inner, dash, end)
    for part, rows in (("train", slice(0, 5)), ("test", slice(5, 7))):
        name = "train" if part == "train" else "t10k"
        file = tmp_path / inner / f"{name}-images{dash}idx3-ubyte{end}"
        for source in (tmp_path, str(file)):
            x, y = images(source, part)
            assert x.dtype == np.float32 and x.shape[1:] == (1, 5, 4) and y.dtype == np.int64
            assert np.array_equal(np.rint(x[:, 0] * 255), PIXELS[rows]) and np.array_equal(y, CLASSES[rows])
            assert x.max() <= 1 and (x[:, 0][PIXELS[rows] == 255] == 1).all()


def test_an_idx_file_with_labels_packed_otherwise(tmp_path):
    write_idx(tmp_path / "images-idx3.gz", PIXELS)
    write_idx(tmp_path / "labels-idx1", CLASSES)
    assert np.array_equal(images(tmp_path / "images-idx3.gz")[1], CLASSES)


def damaged(change):
    def make(folder):
        write_mnist(folder)
        file = folder / "train-images-idx3-ubyte"
        file.write_bytes(change(file.read_bytes()))

    return make


def write_gzipped(folder, change):
    write_mnist(folder, end=".gz")
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (damaged(lambda data: data[:-1]), "header says 5 x 5 x 4 values, 99 are there"),
        (damaged(lambda data: data + b"0"), "header says 5 x 5 x 4 values, more are there"),
        (damaged(lambda data: data[:9]), "ends after 9 bytes, within the header"),
        (damaged(lambda data: b""), "begin with 00000803, got nothing"),
        (damaged(lambda data: b"\0\0\x08\x01" + data[4:]), "begin with 00000803, got 00000801"),
        (damaged(lambda data: data[:4] + b"\xff" * 12), "GiB, limit is 4.0"),
        (damaged(lambda data: data[:4] + bytes(12)), "header says 0 x 0 x 0"),
        (lambda folder: write_gzipped(folder, lambda data: data[:-20]), "cannot be read"),
        (lambda folder: write_gzipped(folder, lambda data: data[:-9] + b"x" + data[-8:]), "cannot be read"),
        (lambda folder: write_gzipped(folder, lambda data: b"not gzip"), "cannot be read"),
    ],
)
def test_damaged_idx_files(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte.*{message}"):
        images(tmp_path)


def test_files_of_mnist_that_do_not_fit_or_are_missing(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", CLASSES)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte has 5 images, .*train-labels-idx1-ubyte 7 labels"):
        images(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte, or the same with \.gz, is missing"):
        images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte, the labels of train-images-idx3-ubyte"):
        images(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(ValueError, match="is not the IDX file of images"):
        images(tmp_path / "t10k-labels-idx1-ubyte")
    with pytest.raises(ValueError, match=r"200 values take .* GiB, limit is 1e-07"):
        write_idx(tmp_path / "more-images", np.zeros((5, 8, 5), np.uint8))
        write_idx(tmp_path / "more-labels", CLASSES[:5])
        images(tmp_path / "more-images", limit=1e-7)


def test_no_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither MNIST .* nor CIFAR-10"):
        images(tmp_path)
    with pytest.raises(FileNotFoundError, match='mnist is neither a file, nor a folder, nor "digits"'):
        images("mnist")
    with pytest.raises(ValueError, match="part must be"):
        images("digits", part="valid")


BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def batch_of(i):
    """(pixels, labels) of file i: two images of a training batch, five of the tests."""
    rows = slice(2 * i, 2 * i + 2) if i < 5 else slice(10, 15)
    return COLOURS[rows], np.arange(15)[rows] % 10


def write_cifar(folder, protocol=None):
    """In the binary form, or pickled."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(BATCHES):
        pixels, labels = batch_of(i)
        pixels = pixels.reshape(-1, 3072)
        if protocol is None:
            records = np.hstack([labels[:, None].astype(np.uint8), pixels])
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            content = {b"batch_label": name, b"labels": labels.tolist(), b"data": pixels, b"filenames": [b"x.png"]}
            (folder / name).write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_cifar(tmp_path, protocol, nested):
    inner = "cifar-10-batches-bin" if protocol is None else "cifar-10-batches-py"
    write_cifar(tmp_path / inner if nested else tmp_path, protocol)
    for part, rows in (("train", slice(0, 10)), ("test", slice(10, 15))):
        x, y = images(tmp_path, part)
        assert x.dtype == np.float32 and y.dtype == np.int64
        assert np.array_equal(np.rint(x * 255), COLOURS[rows]) and np.array_equal(y, np.arange(15)[rows] % 10)


def test_a_pickle_of_python_2(tmp_path):
    """The published files: protocol 2 with byte strings, arrays by numpy.core.multiarray._reconstruct."""
    for i, name in enumerate(BATCHES):
        pixels, labels = batch_of(i)
        raw = pixels.tobytes()
        array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
        array += b"M" + len(pixels).to_bytes(2, "little") + b"M\x00\x0c\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        array += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + len(raw).to_bytes(4, "little") + raw
        listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        (tmp_path / name).write_bytes(b"\x80\x02}(U\x04data" + array + b"tbU\x06labels" + listed + b"u.")
    x, y = images(tmp_path)
    assert np.array_equal(np.rint(x * 255), COLOURS[:10]) and np.array_equal(y, np.arange(10))


class Runs:
    """Pickles to a call."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


def pickled(**changes):
    pixels, labels = batch_of(0)
    return pickle.dumps({"data": pixels.reshape(-1, 3072), "labels": labels.tolist()} | changes, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled(labels=Runs(print, "run")), "asks for (__builtin__|builtins).print, which is not read here"),
        (pickled(data=np.zeros((2, 3072), object)), "an array of other than bytes"),
        (pickled(data=np.zeros((2, 3072))), "an array of other than bytes"),
        (pickled(data=np.zeros((2, 3071), np.uint8)), r"must be m x 3072 bytes, got \(2, 3071\)"),
        (pickled(data=b"x" * 6144), "must be m x 3072 bytes, got bytes"),
        (pickled(labels=[0]), "labels must be 2 integers"),
        (pickled(labels=[0, 0.5]), "labels must be 2 integers, got float64"),
        (pickled(labels=[0, -1]), "labels must be 2 integers"),
        (pickled(labels=[0, 10]), "has a label 10, above 9"),
        (pickle.dumps({"labels": [], "data": np.zeros((0, 3072), np.uint8)}), "has no image"),
        (pickle.dumps({"data": 1}), "it has no labels"),
        (pickle.dumps([1]), "it holds a list, a dict is needed"),
        (pickled()[:-100], "cannot be read"),
        (pickled()[:3000], "cannot be read"),
        (b"", "EOFError"),
        (pickle.dumps({"data": 1}, 2)[:-1] + b"b.", "cannot be read"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "it holds a NoneType"),  # a place in a list of 2^32: no such list is made
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "cannot be read"),  # bytes as many as 2^63
    ],
)
def test_pickles_that_are_not_cifar(tmp_path, content, message, capsys):
    write_cifar(tmp_path, 2)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_1.*{message}"):
        images(tmp_path)
    assert "run" not in capsys.readouterr().out


@given(st.binary(max_size=60), st.integers(0, 6300), st.integers(1, 40))
def test_hostile_pickles_are_refused_or_read(insert, at, gone):
    content = pickled()
    changed = content[:at] + insert + content[at + gone :]
    with tempfile.NamedTemporaryFile() as file:
        file.write(changed)
        file.flush()
        try:
            labels, pixels = _cifar_pickle(file.name)
        except ValueError:
            return
        assert pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3072)


def test_cifar_that_is_cut_or_not_whole(tmp_path):
    write_cifar(tmp_path)
    third = tmp_path / "data_batch_3.bin"
    whole = third.read_bytes()
    third.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin cannot be read: 6145 bytes are no multiple of the 3073"):
        images(tmp_path)
    third.write_bytes(whole[:3073])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has 1 images, data_batch_1\.bin has 2"):
        images(tmp_path)
    third.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has a label 10, above 9"):
        images(tmp_path)
    third.write_bytes(b"")
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has no image"):
        images(tmp_path)
    third.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin is missing"):
        images(tmp_path)
    with pytest.raises(ValueError, match=r"15365 values take 0\.0 GiB, limit is 1e-05"):
        images(tmp_path, part="test", limit=1e-5)
