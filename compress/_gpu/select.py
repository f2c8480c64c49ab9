"""Top-K, gather and scatter, keyed subsets: csrc/select.cu."""

import numpy as np

from .device import empty, launch, read, view, zeros
from .scan import exclusive_scan

_MOST_BLOCKS = 1024  # of kernels whose threads take piece after piece: what a GPU runs at once, about
_SMALL = 1 << 16  # elements that one block selects from
_TILE = 8192  # elements of a tile of topk
_CONTROL, _DIGIT = 16, 11
_MASK_TILE = 4096  # coordinates of a warp of bernoulli


def check_dimension(d):
    if d > 1 << 32:
        raise ValueError(f"d = {d}: a vector whose indices are 32 bits has at most 2^32 coordinates")


def topk(x, indices):
    """Extra memory: (4 + itemsize) bytes for each of 1.5 k + d/32 candidates while 2^16 < d and k <= d/4, then none."""
    view(x, "fd"), view(indices, "I")
    n, k, real = x.size, indices.size, x.dtype
    check_dimension(n)
    if not 1 <= k <= n:
        raise ValueError(f"k = {k}: expected 1 <= k <= {n}, the length of x")
    if n <= _SMALL:
        launch("select", "topk_small", 1, 1024, x, n, indices, k, real=real)
        return
    tiles = -(-n // _TILE)
    passes = -(-(8 * x.itemsize - 1) // _DIGIT)
    control = zeros(_CONTROL + (passes << _DIGIT), np.uint64)
    value = index = table = None
    room = 0
    if 4 * k <= n:
        room = k + k // 2 + n // 32
        value, index, table = empty(room, real), empty(room, np.uint32), empty(tiles, np.uint64)
        launch("select", "topk_sample", 1, 1024, x, n, k, control, real=real)
        launch("select", "topk_collect", tiles, 512, x, n, control, value, index, room, table, real=real)
    blocks = min(-(-n // 2048), _MOST_BLOCKS)
    for number in range(passes):
        launch("select", "topk_histogram", blocks, 256, x, n, k, control, value, room, number, real=real)
    counts = empty(tiles, np.uint64)
    blocks = min(-(-tiles // 8), _MOST_BLOCKS)
    launch("select", "topk_count", blocks, 256, x, n, k, control, value, room, table, counts, tiles, real=real)
    exclusive_scan(counts)
    found = x, n, k, control, value, index, room, table, counts, tiles, indices
    launch("select", "topk_keep", blocks, 256, *found, real=real)


def _check_indices(indices, size):
    """Waits for the largest index."""
    if indices.size == 0:
        return
    largest = zeros(1, np.uint32)
    blocks = min(-(-indices.size // 256), _MOST_BLOCKS)
    launch("select", "largest_index", blocks, 256, indices, indices.size, largest)
    if (index := int(read(largest)[0])) >= size:
        raise ValueError(f"index {index} is outside a vector of size {size}")


def _check_lengths(values, indices):
    if values.size != indices.size:
        raise ValueError(f"{values.size} values for {indices.size} indices")


def _typed(name, out):
    return f"{name}_f{8 * out.itemsize}"


def gather(x, indices, out, trusted=False):
    view(x, "fd"), view(indices, "I"), view(out, "fd")
    _check_lengths(out, indices)
    if not trusted:
        _check_indices(indices, x.size)
    n = indices.size
    launch("select", _typed("gather", out), -(-n // 256), 256, x, indices, n, out, real=x.dtype)


def scatter_add(values, indices, out, weight=1.0, trusted=False):
    """The indices are distinct; with repeated ones any of the additions may be lost."""
    view(values, "fd"), view(indices, "I"), view(out, "fd")
    _check_lengths(values, indices)
    if not trusted:
        _check_indices(indices, out.size)
    n, name = indices.size, _typed("scatter_add", out)
    launch("select", name, -(-n // 256), 256, values, indices, n, out, weight, real=values.dtype)


def add_or_store(values, out, weight=1.0, add=True):
    view(values, "fd"), view(out, "fd")
    n = values.size
    if n != out.size:
        raise ValueError(f"{n} values for a vector of {out.size}")
    launch("select", _typed("add_or_store", out), -(-n // 1024), 256, values, n, out, weight, add, real=values.dtype)


def random_subset(key, d, start, indices):
    view(indices, "I")
    check_dimension(d)
    n = indices.size
    if start > d or n > d - start:
        raise ValueError(f"positions {start} to {start + n} of a permutation of {d}")
    blocks = min(-(-n // 256), max(-(-n // 2048), _MOST_BLOCKS))
    launch("select", "random_subset", blocks, 256, key, d, start, n, indices)


def _mask(key, d, threshold, mask):
    """Sums over tiles of what is kept: those before each, and the sum of all, on the device."""
    tiles = -(-d // _MASK_TILE)
    counts = empty(tiles, np.uint64)
    last = min(threshold, 1 << 32) - 1
    launch("select", "bernoulli_mask", -(-tiles // 8), 256, key, d, last, mask, counts, tiles)
    return counts, exclusive_scan(counts)


def bernoulli_count(key, d, threshold):
    check_dimension(d)
    if threshold == 0 or d == 0:
        return 0
    return int(read(_mask(key, d, threshold, None)[1])[0])


def bernoulli_indices(key, d, threshold, out):
    view(out, "I")
    check_dimension(d)
    if threshold == 0 or d == 0:
        return 0
    tiles = -(-d // _MASK_TILE)
    mask = empty(tiles * _MASK_TILE // 32, np.uint32)
    before, total = _mask(key, d, threshold, mask)
    launch("select", "bernoulli_indices", -(-tiles // 8), 256, mask, before, tiles, out, out.size)
    return int(read(total)[0])
