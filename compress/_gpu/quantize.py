"""Rounding to a grid or to powers of two: csrc/quantize.cu."""

import numpy as np

from .._cpu import kernels as host
from .device import Status, launch, need, view, zeros
from .pack import packed_bytes, warps_of
from .philox import check_workers
from .reduce import _LEAF, _TERM, segment_sums


def _check_blocks(n, block, levels):
    if block < 1 or (block < n and block % 1024):
        raise ValueError(f"block must be a multiple of 1024 or at least {n}, got {block}")
    if not 2 <= levels <= 65536:
        raise ValueError(f"levels must lie in [2, 65536], got {levels}")


def _scales(scales, offset, count, wire, name):
    """The bytes from the first scale on."""
    if wire not in (4, 8):
        raise ValueError(f"wire must be 4 or 8 bytes, got {wire}")
    if not (count <= scales.size // wire and 0 <= offset <= scales.size - count * wire):
        raise ValueError(
            f"{name} has {scales.size} bytes, {count} scales of {wire} bytes from byte {offset} on are needed"
        )
    return scales[offset:]


def write_scales(x, block, which, wire, payload, offset):
    view(x, "fd"), view(payload, "B")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    count = -(-x.size // block)
    scales = _scales(payload, offset, count, wire, "payload")
    status = zeros(1, np.uint64)
    segment = min(block, x.size)
    sums = segment_sums(x, segment, _TERM[which]) if segment > _LEAF else None
    arguments = x, x.size, block, which, sums, wire, scales, count, status
    launch("quantize", "write_scales", -(-count // 8), 256, *arguments, real=x.dtype)
    return Status(status, of=lambda first: first & 3)


def bad_scale(payload, offset, count, wire):
    view(payload, "B")
    scales, left = _scales(payload, offset, count, wire, "payload"), zeros(1, np.uint64)
    launch("quantize", "bad_scale", -(-count // 256), 256, scales, count, wire, left)
    return Status(left, of=lambda left: count - left if left else -1)


def quantize_pack(
    x, scales, offset, wire, block, levels, key, out, nearest=False, natural=False, shared=0, worker=0, workers=0
):
    view(x, "fd"), view(scales, "B"), view(out, "B")
    n = x.size
    _check_blocks(n, block, levels)
    if workers:
        check_workers(worker, workers)
    scales = _scales(scales, offset, -(-n // block), wire, "scales")
    width = host.pack_width(levels)
    need(out, packed_bytes(n, width), "out")
    name, arguments = "quantize_natural" if natural else "quantize_grid", (x, n, scales, wire, block, levels, width)
    if nearest and not natural:
        launch("quantize", "quantize_nearest", warps_of(n), 256, *arguments, out, real=x.dtype)
        return
    if workers:
        name += "_correlated"
    launch("quantize", name, warps_of(n), 256, *arguments, key, shared, worker, workers, out, real=x.dtype)


def unpack_scale(data, scales, offset, wire, block, levels, weight, out, add=False, natural=False):
    view(data, "B"), view(scales, "B"), view(out, "fd")
    n = out.size
    _check_blocks(n, block, levels)
    scales = _scales(scales, offset, -(-n // block), wire, "scales")
    width = host.pack_width(levels)
    need(data, packed_bytes(n, width), "data")
    name = "unpack_natural" if natural else "unpack_grid"
    arguments = data, n, scales, wire, block, levels, width, weight, add, out
    launch("quantize", name, warps_of(n), 256, *arguments, real=out.dtype)


def power_pack(x, key, out, shift=0):
    view(x, "fd"), view(out, "B")
    need(out, x.size + -(-x.size // 8), "out")
    launch("quantize", "power_pack", warps_of(x.size), 256, x, x.size, key, shift, out, real=x.dtype)


def unpower_scale(data, scale, out, add=False, shift=0):
    view(data, "B"), view(out, "fd")
    need(data, out.size + -(-out.size // 8), "data")
    launch("quantize", "unpower_scale", warps_of(out.size), 256, data, out.size, scale, add, shift, out, real=out.dtype)
