"""Data sets for the problems, and ways to split their rows over workers."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from .compressor import positive_int

BUNDLED = ("breast_cancer", "diabetes", "digits")


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
        A, b = _read(path, _npz)
    else:
        A, b = _read(path, _sklearn().load_svmlight_file)
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


def _read(path, reader):
    try:
        return reader(str(path))
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _npz(path):
    with open(path, "rb") as file:
        arrays = np.load(file)
        names = getattr(arrays, "files", [])  # an array alone has none
        found = [next((arrays[name] for name in pair if name in names), None) for pair in ("AX", "by")]
    if any(array is None for array in found):
        raise ValueError(f"it holds {', '.join(names) or 'nothing'}; A or X, and b or y are needed")
    return found


def _labels(labels):
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels must be a vector, got shape {labels.shape}")
    return labels


def _sizes(m, n):
    m = positive_int(m, "m")
    return m, positive_int(n, "n", most=m)
