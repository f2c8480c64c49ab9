"""Ascending indices as Rice-coded gaps: csrc/rice.cu."""

import numpy as np

from .device import empty, launch, read, view, zeros
from .scan import exclusive_scan
from .select import check_dimension

_CHUNK = 4096
_FINE, _NOT_ASCENDING, _LENGTH, _TRUNCATED, _UNARY, _INDEX, _ROOM = range(7)  # rice.h


def _outcome(status):
    """The first fault, its chunk, and the bits of the code: waits for the device."""
    first, bits = read(status).tolist()
    first = 2**64 - 1 - first if first else 0
    return first & 7, first >> 3, bits


def rice_encode(indices, d, out):
    view(indices, "I"), view(out, "B")
    k = indices.size
    chunks = -(-k // _CHUNK)
    fault = chunk = bits = 0
    if 4 * chunks > out.size:
        fault = _ROOM
    elif k:
        status, entry, bytes_ = zeros(2, np.uint64), empty(chunks, np.uint32), empty(chunks, np.uint64)
        launch("rice", "rice_measure", chunks, 256, indices, k, d, entry, bytes_, status)
        exclusive_scan(bytes_)
        launch("rice", "rice_write", chunks, 256, indices, k, entry, bytes_, out, out.size, status)
        fault, chunk, bits = _outcome(status)
    if fault == _NOT_ASCENDING:
        raise ValueError(f"indices are not strictly ascending near position {chunk * _CHUNK}")
    if fault == _INDEX:
        raise ValueError(f"an index near position {chunk * _CHUNK} is outside a vector of size {d}")
    if fault == _ROOM:
        raise ValueError(f"{k} indices need more than the {out.size} bytes of out")
    return bits


def rice_decode(data, d, indices):
    view(data, "B"), view(indices, "I")
    check_dimension(d)
    k = indices.size
    chunks = -(-k // _CHUNK)
    fault = chunk = bits = 0
    if 4 * chunks > data.size:
        fault = _TRUNCATED
    elif k:
        status, before, first = zeros(2, np.uint64), empty(chunks, np.uint64), empty(chunks + 1, np.uint64)
        launch("rice", "rice_table", -(-chunks // 256), 256, data, k, before, chunks, status)
        exclusive_scan(before)
        launch("rice", "rice_read", chunks, 256, data, data.size, k, before, indices, first, status)
        exclusive_scan(first)
        launch("rice", "rice_shift", chunks, 256, indices, k, d, first, status)
        fault, chunk, bits = _outcome(status)
    if fault == _TRUNCATED:
        raise ValueError(f"coded indices: truncated at chunk {chunk}, {data.size} bytes for {k} indices")
    if fault == _LENGTH:
        raise ValueError(f"coded indices: chunk {chunk} cannot have the parameter and length its table entry says")
    if fault == _UNARY:
        raise ValueError(f"coded indices: the codes of chunk {chunk} do not end where its table entry says")
    if fault == _INDEX:
        raise ValueError(f"coded indices: chunk {chunk} leaves a vector of size {d}")
    return bits
