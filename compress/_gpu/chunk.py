"""Top-K inside chunks and the levels of its values: csrc/chunk.cu."""

import numpy as np

from .._cpu import kernels as host
from .device import empty, launch, need, read, view, zeros
from .pack import pack, warps_of
from .select import check_dimension

_CHUNK_MAX = 1 << 16
_HEADER = 12
_MOST_BLOCKS = 1 << 16  # chunks beyond them come second to the same blocks


def _topk_plan(chunk, k, itemsize):
    """(kernel, warps, rows of 32 a warp, maxima a thread): those of csrc/chunk.cu."""
    kept = 64 // itemsize  # rows in registers
    warps = min(32, -(-chunk // (32 * kept)))
    rows = -(-chunk // (32 * warps))
    kernel = "chunk_topk_long" if rows > kept else "chunk_topk" if warps <= 8 else "chunk_topk_wide"
    split = 1
    while 32 * warps * split < 4 * k:
        split *= 2
    # maxima of fewer than four keys would spare nothing
    return kernel, warps, rows, split if 4 * split <= rows and split <= kept else 0


def chunk_topk(x, chunk, k, indices):
    view(x, "fd"), view(indices, "I")
    if not 1 <= k <= chunk <= _CHUNK_MAX:
        raise ValueError(f"k = {k} of chunk = {chunk}: expected 1 <= k <= chunk <= {_CHUNK_MAX}")
    check_dimension(x.size)
    expected = x.size // chunk * k + -(-k * (x.size % chunk) // chunk)
    if indices.size != expected:
        raise ValueError(f"{indices.size} indices, {k} of every {chunk} of {x.size} are {expected}")
    kernel, warps, rows, split = _topk_plan(chunk, k, x.itemsize)
    blocks, room = min(-(-x.size // chunk), _MOST_BLOCKS), split * 32 * warps * x.itemsize
    launch("chunk", kernel, blocks, 32 * warps, x, x.size, chunk, k, rows, split, indices, real=x.dtype, shared=room)


def chunk_values_encode(values, k, width, out):
    view(values, "fd"), view(out, "B")
    n, real = values.size, values.dtype
    need(out, host.chunk_values_bytes(n, k, width), "out")
    if n == 0:
        return
    chunks = -(-n // k)
    fits, extremes, codes = empty(3 * chunks, np.uint32), zeros(3, np.uint32), empty(n, np.uint16)
    blocks = min(-(-chunks // 8), _MOST_BLOCKS)
    launch("chunk", "chunk_fits", min(blocks, 2048), 256, values, n, k, 1 << width - 1, fits, extremes, real=real)
    launch("chunk", "chunk_choose", -(-blocks // 2), 256, values, n, k, width, fits, extremes, out, codes, real=real)
    pack(codes, width, out[_HEADER + chunks + (-(-chunks // 2) if width > 1 else 0) :])


def chunk_values_decode(data, k, width, values):
    """Reads the header, twelve bytes, and waits for it."""
    view(data, "B"), view(values, "fd")
    n, real = values.size, values.dtype
    need(data, host.chunk_values_bytes(n, k, width), "data")
    if n == 0:
        return
    # the CPU judges the header, as that of a single value
    one = np.zeros(host.chunk_values_bytes(1, 1, width), np.uint8)
    one[:_HEADER] = read(data[:_HEADER])
    host.chunk_values_decode(one, 1, width, np.empty(1, real))
    launch("chunk", "chunk_values", warps_of(n), 256, data, n, k, width, values, real=real)
