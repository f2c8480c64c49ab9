"""Subsets as records: csrc/subset.cu."""

import functools

import numpy as np

from .._cpu import kernels as host
from .device import cupy, empty, launch, read, view, zeros

_LEVELS = 17  # ranges of 2^0 ... 2^16 positions
_MOST_BLOCKS = 1 << 16
_WORKSPACE = 64 << 20  # bytes for the frequencies that are in no table


@functools.cache
def _table(module, device, known):
    """The frequencies of ranges of a power of two positions that hold at most `known`, on a device."""
    rows = [min(known, 1 << level) + 1 for level in range(_LEVELS)]
    size = _LEVELS + sum(m * (m + 3) // 2 for m in rows)
    table = empty(size, np.uint32)
    launch("subset", "subset_table", -(-_LEVELS * (known + 1) // 128), 128, known, empty(size, np.float64), table)
    read(table[:1])  # whatever stream uses it next
    return table


def _plan(n, k, count):
    """(blocks of 32 records, table, known, weights and sums of each thread)."""
    known = 64 if k <= 64 else 256 if k <= 256 else 1024
    module = cupy()
    table = _table(module, module.cuda.Device().id, known)
    blocks = min(-(-count // 32), _MOST_BLOCKS)
    if n & (n - 1) == 0 and k <= known:
        return blocks, table, known, None, None
    blocks = min(blocks, max(1, _WORKSPACE // (32 * 12 * (k + 2))))
    room = 32 * blocks * (k + 2)
    return blocks, table, known, empty(room, np.float64), empty(room, np.uint32)


def _check_records(indices, k, room, size):
    count = indices // k if k else 0
    if indices != count * k:
        raise ValueError(f"{indices} indices are not {k} a range")
    if room < count * size:
        raise ValueError(f"{room} bytes for {count} records of {size}")
    return count


def subset_encode(indices, start, n, k, out):
    """Waits for the kernel, which finds what is wrong with the indices."""
    view(indices, "I"), view(out, "B")
    size = host.subset_bytes(n, k)
    count = _check_records(indices.size, k, out.size, size)
    if count == 0:
        return
    bad = zeros(1, np.uint64)
    blocks, *source = _plan(n, k, count)
    launch("subset", "subset_encode", blocks, 32, indices, start, n, k, count, size, *source, out, bad)
    if wrong := int(read(bad)[0]):
        raise ValueError(f"indices of range {count - wrong} do not ascend within it")


def subset_decode(data, start, n, k, indices):
    view(data, "B"), view(indices, "I")
    size = host.subset_bytes(n, k)
    count = _check_records(indices.size, k, data.size, size)
    if count:
        blocks, *source = _plan(n, k, count)
        launch("subset", "subset_decode", blocks, 32, data, start, n, k, count, size, *source, indices)
