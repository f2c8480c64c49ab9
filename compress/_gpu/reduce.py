"""Sums and norms: csrc/reduce.cu."""

import math

import numpy as np

from .._cpu import kernels as host
from .device import empty, launch, read, to_device, view

_LEAF = 4096
_SQUARE, _ABS, _SELF, _MAX = range(4)
_TERM = {host.NORM_L2: _SQUARE, host.NORM_MAX: _MAX, host.NORM_MEAN_ABS: _ABS}


def segment_sums(x, segment, term):
    """The sum of each `segment` elements (the last may be shorter) in float64, by the rule of reduce.h."""
    n, real = x.size, x.dtype
    while True:
        leaves = -(-segment // _LEAF)
        rest = n % segment
        total = n // segment * leaves + -(-rest // _LEAF)
        out = empty(total, np.float64)
        launch("reduce", "sum_leaves", -(-total // 8), 256, x, n, segment, leaves, term, out, total, real=real)
        if leaves == 1:
            return out
        x, n, segment, real, term = out, total, leaves, np.float64, _SELF if term != _MAX else _MAX


def norms(x, segment, which):
    """A norm of each segment, on the device."""
    sums = segment_sums(x, segment, _TERM[which])
    count = sums.size
    launch("reduce", "finish_norms", -(-count // 256), 256, x, x.size, segment, which, sums, count, real=x.dtype)
    return sums


def _one(x, term):
    view(x, "fd")
    return float(read(segment_sums(x, x.size, term))[0]) if x.size else 0.0


def sum_squares(x):
    return _one(x, _SQUARE)


def sum_abs(x):
    return _one(x, _ABS)


def max_abs(x):
    return _one(x, _MAX)


def norm(x, which):
    view(x, "fd")
    if x.size == 0:
        return math.nan if which == host.NORM_MEAN_ABS else 0.0
    return float(read(norms(x, x.size, which))[0])


def count_nonfinite(x):
    view(x, "fd")
    found = to_device(np.array([0, 2**64 - 1], np.uint64))
    launch("reduce", "count_nonfinite", min(-(-x.size // 256), 4096), 256, x, x.size, found, real=x.dtype)
    count, first = read(found).tolist()
    return count, first if count else -1
