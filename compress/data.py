"""Data sets for the problems, and ways to split their rows over workers."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import zlib
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from .compressor import positive_int

BUNDLED = ("breast_cancer", "diabetes", "digits")

_MNIST = {"train": ("train-images", "train-labels"), "test": ("t10k-images", "t10k-labels")}
_CIFAR = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def load(source: str | Path, scale: bool = False, limit: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """(A, b): m x d features and m targets or labels, float64.

    source: a name, or the path of a file.

    | name | m x d | b |
    |---|---|---|
    | "breast_cancer" | 569 x 30 | class 0 or 1 |
    | "diabetes" (columns of norm 1) | 442 x 10 | a quantity, 25 to 346: for regression |
    | "digits" | 1797 x 64 | digit 0 to 9 |

    A file is .npz with arrays A or X and b or y, or else LIBSVM text (also .gz, .bz2), which is made dense.
    `binary` makes labels for Logistic from classes.

    scale: centre each column and divide it by its standard deviation; a constant one becomes zero.
    limit: GiB that LIBSVM text may take when dense.

    Raises ImportError, which names the extra, where a name or LIBSVM text needs scikit-learn and it is missing;
    FileNotFoundError where source is neither a name nor a file; ValueError for a file that does not hold A and b, or is
    beyond the limit.

    >>> A, b = load("digits")
    >>> A.shape, b[:4]
    ((1797, 64), array([0., 1., 2., 3.]))
    """
    path = Path(source)
    if source in BUNDLED:
        A, b = getattr(_sklearn(), f"load_{source}")(return_X_y=True)
    elif not path.is_file():
        raise FileNotFoundError(f"{source} is neither a file nor one of {', '.join(BUNDLED)}")
    elif path.suffix == ".npz":
        with _reading(path):
            A, b = _npz(path)
    else:
        read = _sklearn().load_svmlight_file
        with _reading(path):
            A, b = read(str(path))
        m, d = A.shape
        if 8 * m * d > limit * 2**30:
            raise ValueError(f"{path}: {m} x {d} dense takes {m * d / 2**27:.1f} GiB, limit is {limit}")
        A = A.toarray()
    A, b = np.asarray(A, np.float64), np.asarray(b, np.float64)
    if A.ndim != 2 or b.shape != A.shape[:1]:
        raise ValueError(f"{source}: A must be (m, d) and b (m,), got {A.shape} and {b.shape}")
    if scale:
        varies = np.ptp(A, axis=0) > 0
        A = np.where(varies, A - A.mean(axis=0), 0)
        A /= np.where(varies, A.std(axis=0), 1)
    return A, b


def images(source: str | Path, part: str = "train", limit: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels): m x c x h x w float32 in [0, 1], and m int64 classes. Nothing is downloaded.

    source: "digits", or a folder, or the IDX file of images, with that of labels beside it, which says its part itself.

    | source | c x h x w | train, test |
    |---|---|---|
    | "digits", of scikit-learn | 1 x 8 x 8 | 1442, 355: of each digit, every fifth image is for tests |
    | MNIST: train-images-idx3-ubyte and so on, or a set in its format; also .gz | 1 x 28 x 28 | 60,000, 10,000 |
    | CIFAR-10: data_batch_1.bin to _5.bin, test_batch.bin | 3 x 32 x 32 | 50,000, 10,000 |
    | CIFAR-10 for Python: data_batch_1 to _5, test_batch | 3 x 32 x 32 | 50,000, 10,000 |

    A folder may be the one above that of the files: raw, MNIST/raw, cifar-10-batches-bin or cifar-10-batches-py. The
    files for Python are pickles: they are read by one that knows arrays of bytes and plain values and runs nothing.

    part: "train" or "test". limit: GiB that the images may take.

    Raises ImportError, which names the extra, for "digits" without scikit-learn; FileNotFoundError, which says what was
    expected where; ValueError, with the path, for a file that is cut, damaged, of another kind or beyond the limit.

    >>> x, y = images("digits", part="test")
    >>> x.shape, float(x.max()), y[:5]
    ((355, 1, 8, 8), 1.0, array([5, 0, 9, 8, 7]))
    """
    if part not in _MNIST:
        raise ValueError(f'part must be "train" or "test", got {part!r}')
    path = Path(source)
    if source == "digits":
        pixels, labels, white = *_digits(part), 16
    elif path.is_file():
        pixels, labels, white = *_idx_pair(path, _labels_beside(path), limit), 255
    elif path.is_dir():
        pixels, labels, white = *_folder(path, part, limit), 255
    else:
        raise FileNotFoundError(f'{source} is neither a file, nor a folder, nor "digits"')
    return np.divide(pixels, np.float32(white), dtype=np.float32), labels.astype(np.int64)


def make_regression(
    m: int = 100, d: int = 80, noise: float = 0.0, random_state: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(A, b) of scikit-learn's function of this name: A is N(0, 1), b = A x + noise N(0, 1), and 10 of the d
    coordinates of x are U(0, 100), the others zero.

    The data of the experiments on shifted compression (Shulgin and Richtarik, arXiv 2206.10452): m = 100, d = 80, no
    noise. Raises ImportError, which names the extra, without scikit-learn.

    >>> A, b = make_regression()
    >>> A.shape, b.shape
    ((100, 80), (100,))
    """
    return _sklearn().make_regression(m, d, noise=noise, random_state=random_state)


def binary(labels, positive=None) -> np.ndarray:
    """+1 where a label is in `positive`, a label or a sequence of them, and -1 elsewhere: the labels of Logistic.

    Without `positive`, labels must have two values, and the larger one is +1. Raises ValueError where they have not,
    or where one side is empty.

    >>> binary(np.arange(5), positive=range(0, 10, 2))  # even digits against odd ones
    array([ 1., -1.,  1., -1.,  1.])
    """
    labels = _labels(labels)
    values = np.unique(labels)
    if positive is None:
        if values.size != 2:
            raise ValueError(f"labels have {values.size} values, 2 are needed where `positive` is not given")
        positive = values[1]
    signs = np.where(np.isin(labels, positive), 1.0, -1.0)
    if np.unique(signs).size != 2:
        which = "every label is in" if signs[0] > 0 else "no label is in"
        raise ValueError(f"{which} {positive}, labels are {values[:10].tolist()}")
    return signs


def split(m: int, n: int, seed=0) -> list[np.ndarray]:
    """n random parts of m rows, with sizes that differ by one at most. Raises ValueError unless 1 <= n <= m.

    >>> [part.tolist() for part in split(5, 2)]
    [[2, 4, 3], [0, 1]]
    """
    m, n = _sizes(m, n)
    return np.array_split(np.random.default_rng(seed).permutation(m), n)


def split_sorted(labels, n: int) -> list[np.ndarray]:
    """n parts of the rows sorted by label, with sizes that differ by one at most: as different as equal parts can be.

    Raises ValueError unless 1 <= n <= m.

    >>> [part.tolist() for part in split_sorted([1, 0, 1, 0], 2)]
    [[1, 3], [0, 2]]
    """
    labels = _labels(labels)
    _, n = _sizes(labels.size, n)
    return np.array_split(np.argsort(labels, kind="stable"), n)


def split_dirichlet(labels, n: int, concentration: float, seed=0) -> list[np.ndarray]:
    """n parts that share each class in proportions drawn from a Dirichlet distribution.

    concentration: its parameter, alike for all n. Large: every part is a sample of the whole; small: most of a class is
    in one part. Sizes differ too; a part left empty gets a row of the largest. The split of Yurochkin et al., Bayesian
    nonparametric federated learning of neural networks (2019, arXiv 1905.12022).

    Raises ValueError unless 1 <= n <= m and concentration is positive and finite.

    >>> [part.tolist() for part in split_dirichlet([0, 0, 0, 1, 1, 1], 2, concentration=0.5)]
    [[3], [2, 0, 1, 5, 4]]
    """
    labels = _labels(labels)
    _, n = _sizes(labels.size, n)
    if not 0 < concentration < np.inf:
        raise ValueError(f"concentration must be positive and finite, got {concentration}")
    rng = np.random.default_rng(seed)
    parts = [[] for _ in range(n)]
    for value in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == value))
        cuts = np.rint(rows.size * np.cumsum(rng.dirichlet(np.full(n, concentration)))[:-1])
        for part, share in zip(parts, np.split(rows, cuts.astype(int)), strict=True):
            part.extend(share.tolist())
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return [np.array(part) for part in parts]


def _sklearn():
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError('this needs scikit-learn: pip install "compress-kernels[bench]"') from error
    return datasets


@contextmanager
def _reading(path):
    try:
        yield
    except (ValueError, EOFError, BadZipFile, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _npz(path):
    with open(path, "rb") as file:
        arrays = np.load(file)
        names = getattr(arrays, "files", [])  # an array alone has none
        found = [next((arrays[name] for name in pair if name in names), None) for pair in ("AX", "by")]
    if any(array is None for array in found):
        raise ValueError(f"it holds {', '.join(names) or 'nothing'}; A or X, and b or y are needed")
    return found


def _digits(part):
    set_ = _sklearn().load_digits()
    tests = np.concatenate([np.flatnonzero(set_.target == digit)[4::5] for digit in range(10)])
    rows = np.sort(tests) if part == "test" else np.delete(np.arange(set_.target.size), tests)
    return set_.images[rows, None].astype(np.float32), set_.target[rows]


def _folder(path, part, limit):
    """The part of whatever set a folder holds."""
    for folder in (path, path / "raw", path / "MNIST" / "raw"):
        if any(_idx(folder, stem) for pair in _MNIST.values() for stem in pair):
            found = [_idx(folder, stem) for stem in _MNIST[part]]
            for stem, file in zip(_MNIST[part], found, strict=True):
                if file is None:
                    kind = "idx3" if stem.endswith("images") else "idx1"
                    raise FileNotFoundError(f"{folder / stem}-{kind}-ubyte, or the same with .gz, is missing")
            return _idx_pair(*found, limit)
    names = [name for names in _CIFAR.values() for name in names]
    for suffix, inner, reader in (
        (".bin", "cifar-10-batches-bin", _cifar_binary),
        ("", "cifar-10-batches-py", _cifar_pickle),
    ):
        for folder in (path, path / inner):
            if any((folder / f"{name}{suffix}").is_file() for name in names):
                return _cifar([folder / f"{name}{suffix}" for name in _CIFAR[part]], reader, limit)
    raise FileNotFoundError(
        f"{path} holds neither MNIST (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
        "t10k-labels-idx1-ubyte, each also .gz) nor CIFAR-10 (data_batch_1 to data_batch_5 and test_batch, or the same "
        "with .bin)"
    )


def _idx(folder, stem):
    """The file of a set in the format of MNIST, which is published under two spellings."""
    kind = "idx3" if stem.endswith("images") else "idx1"
    names = (f"{stem}{dot}{kind}-ubyte{end}" for dot in "-." for end in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _labels_beside(path):
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    if name == path.name:
        raise ValueError(f"{path} is not the IDX file of images: its name must have images, or idx3, in it")
    ends = (name, name.removesuffix(".gz"), f"{name}.gz")
    found = next((path.with_name(each) for each in ends if path.with_name(each).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path.with_name(name)}, the labels of {path.name}, is missing")
    return found


def _idx_pair(images_path, labels_path, limit):
    with _reading(images_path):
        pixels = _read_idx(images_path, 3, limit)
    with _reading(labels_path):
        labels = _read_idx(labels_path, 1, limit)
    if len(pixels) != len(labels):
        raise ValueError(f"{images_path} has {len(pixels)} images, {labels_path} {len(labels)} labels")
    return pixels[:, None], labels


def _read_idx(path, ndim, limit):
    """The bytes of an IDX file: 0, 0, the type (8), the number of axes, the axes as big-endian uint32, the values."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        head = file.read(4 + 4 * ndim)
        if head[:4] != bytes((0, 0, 8, ndim)):
            raise ValueError(f"it must begin with {bytes((0, 0, 8, ndim)).hex()}, got {head[:4].hex() or 'nothing'}")
        if len(head) < 4 + 4 * ndim:
            raise ValueError(f"it ends after {len(head)} bytes, within the header")
        shape = [int(n) for n in np.frombuffer(head, ">u4", offset=4)]
        size = math.prod(shape)
        _within(size, limit)
        values = file.read(size + 1)
    if size == 0 or len(values) != size:
        had = f"{len(values)}" if len(values) <= size else "more"
        raise ValueError(f"the header says {' x '.join(map(str, shape))} values, {had} are there")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _within(size, limit):
    if 4 * size > limit * 2**30:
        raise ValueError(f"{size} values take {size / 2**28:.1f} GiB, limit is {limit}")


def _cifar(paths, reader, limit):
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")
    with _reading(paths[0].parent):
        _within(sum(path.stat().st_size for path in paths), limit)
    batches = []
    for path in paths:
        with _reading(path):
            batches.append(reader(path))
    for path, (labels, _) in zip(paths, batches, strict=True):
        if labels.size == 0 or labels.max() > 9:
            raise ValueError(
                f"{path} has no image" if labels.size == 0 else f"{path} has a label {labels.max()}, above 9"
            )
        if labels.size != batches[0][0].size:  # a file that is cut between images
            raise ValueError(f"{path} has {labels.size} images, {paths[0].name} has {batches[0][0].size}")
    labels, pixels = (np.concatenate(column) for column in zip(*batches, strict=True))
    return pixels.reshape(-1, 3, 32, 32), labels


def _cifar_binary(path):
    """(labels, pixels): a record is a byte for the label, then 1024 bytes for each colour."""
    data = np.fromfile(path, np.uint8)
    if data.size % 3073:
        raise ValueError(f"{data.size} bytes are no multiple of the 3073 of an image and its label")
    records = data.reshape(-1, 3073)
    return records[:, 0], records[:, 1:]


def _cifar_pickle(path):
    """(labels, pixels) of a dict with b"data", (m, 3072) bytes, and b"labels", a list."""
    found = _unpickled(path)
    found = {name.decode() if isinstance(name, bytes) else name: value for name, value in found.items()}
    if missing := {"data", "labels"} - found.keys():
        raise ValueError(f"it has no {' and no '.join(sorted(missing))}")
    pixels, labels = found["data"], np.array(found["labels"])
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise ValueError(f"its data must be m x 3072 bytes, got {getattr(pixels, 'shape', type(pixels).__name__)}")
    if labels.shape != (len(pixels),) or (labels.size and (labels.dtype.kind != "i" or labels.min() < 0)):
        raise ValueError(f"its labels must be {len(pixels)} integers, got {labels.dtype} of shape {labels.shape}")
    return labels, pixels


def _unpickled(path):
    """What a pickle of plain values and uint8 arrays holds; of anything else it is an error, and nothing runs.

    NumPy's own functions are not called either, for what they make of a hostile state: what stands for them here
    checks the bytes of an array against its shape. All are made anew for each file, which could write to them.
    """

    class Array:
        def __setstate__(self, state):
            _, shape, dtype, fortran, values = state
            self.array = made(values, dtype, shape, "F" if fortran else "C")

    class DType:
        def __init__(self, name, *flags):
            self.name = name

        def __setstate__(self, state):
            pass

    def made(values, dtype, shape, order):
        if type(dtype) is not DType or dtype.name not in ("u1", b"u1"):
            raise pickle.UnpicklingError("it has an array of other than bytes")
        return np.frombuffer(bytes(memoryview(values)), np.uint8).reshape(shape, order=order)

    def from_buffer(values, dtype, shape, order):
        array = Array()
        array.array = made(values, dtype, shape, order)
        return array

    def encode(text, encoding):  # how Python 3 writes bytes for Python 2
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it encodes as {encoding!r}")
        return text.encode("latin1")

    admitted = {("numpy", "ndarray"): Array, ("numpy", "dtype"): DType, ("_codecs", "encode"): encode}
    for core in ("numpy.core", "numpy._core"):
        admitted[f"{core}.multiarray", "_reconstruct"] = lambda kind, shape, code: Array()
        admitted[f"{core}.numeric", "_frombuffer"] = from_buffer

    class Plain(pickle._Unpickler):  # the one in Python: that in C allocates whatever a number in a file says
        def find_class(self, module, name):
            if (module, name) not in admitted:
                raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not read here")
            return admitted[module, name]

    try:
        found = Plain(io.BytesIO(Path(path).read_bytes()), encoding="bytes").load()
        if type(found) is not dict:
            raise TypeError(f"it holds a {type(found).__name__}, a dict is needed")
        return {name: value.array if type(value) is Array else value for name, value in found.items()}
    except Exception as failure:  # of any kind: what a damaged pickle raises is not listed anywhere
        raise ValueError(f"{type(failure).__name__}: {failure}") from failure


def _labels(labels):
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels must be a vector, got shape {labels.shape}")
    return labels


def _sizes(m, n):
    m = positive_int(m, "m")
    return m, positive_int(n, "n", most=m)
