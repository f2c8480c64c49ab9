"""The Walsh-Hadamard transform and the rotation: csrc/hadamard.cu."""

from .device import launch, limits, match, view

_LOG_MOST = {4: 15, 8: 14}  # by element size: the numbers that fit the registers of a CUDA block
_LOG_ROTATION = 12
_TILE = 1024  # numbers of a warp


def _launch(name, tiles, warps, *arguments, real):
    shared = _TILE * warps * real.itemsize if warps > 1 else 0
    launch("hadamard", name, tiles, 32 * warps, *arguments, real=real, shared=shared)


def passes(log, most):
    """The stages of each pass over memory: of neighbours, then of tiles of 32 columns, which hold five stages fewer."""
    count = 1 + max(0, -(-(log - most) // (most - 5)))
    first, *others = [(log - 5 + i) // count for i in reversed(range(count))]
    return [first + 5, *others]


def fwht(x, block):
    view(x, "fd")
    n, real = x.size, x.dtype
    if block < 1 or block & (block - 1) or n % block:
        raise ValueError(
            f"fwht: the block must be a power of two that divides the length, got block {block} and length {n}"
        )
    log = block.bit_length() - 1
    most = min(_LOG_MOST[real.itemsize], (limits()[1] // real.itemsize).bit_length() - 1)
    done, *columns = passes(log, most)
    warps = 1 << max(0, done - 10)
    scaled = 0 if columns else block
    _launch("fwht_rows", -(-n // (_TILE * warps)), warps, x, n, done, scaled, real=real)
    for stages in columns:
        warps = 1 << (stages - 5)
        scaled = block if done + stages == log else 0
        _launch("fwht_columns", n // (_TILE * warps), warps, x, done, scaled, real=real)
        done += stages


def rotate(x, out, key, inverse=False):
    view(x, "fd"), view(out, "fd")
    match(x, out, "rotate")
    n, real = x.size, x.dtype
    if n == 0:
        return
    log = min(_LOG_ROTATION, n.bit_length() - 1)
    overlaps = n % (1 << log) > 0
    for overlap in sorted({False, overlaps}, reverse=bool(inverse)):
        tiles = 1 if overlap else n >> log
        _launch("rotate", tiles, 1 << max(0, log - 10), x, out, n, log, key, inverse, overlap, real=real)
