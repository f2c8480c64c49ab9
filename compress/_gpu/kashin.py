"""Kashin representations: csrc/kashin.cu.

The layout of a message and the masks of its rows are small, come from the host and are the same from call to call: what
the kernels read of them is made and uploaded once, and kept.
"""

import functools
from typing import NamedTuple

import numpy as np

from .._cpu import kernels as host
from . import device
from .device import Status, empty, is_array, launch, need, read, to_device, view, zeros
from .pack import BLOCK, packed_bytes, warps_of

_SMALLEST, _LARGEST = 64, 4096
_NOTHING = 0xFFFF  # on a row
_ROOM = {4: 4864, 8: 4608}  # by element size: places of the largest frame (`place`)


class _Plan(NamedTuple):
    table: object  # of each run: frames, rows, coordinates, entries of holds before it; rows, coordinates
    holds: object  # of each run, for 4096 rows: the coordinate on a row, or NOTHING
    runs: int
    frames: int
    rows: int
    large: int  # rows of frames that are whole blocks of codes
    coordinates: int


def _check_frame(rows, coordinates, data):
    if not _SMALLEST <= rows <= _LARGEST or rows & (rows - 1) or not 1 <= coordinates <= rows:
        raise ValueError(
            f"a frame has a power of two in [{_SMALLEST}, {_LARGEST}] of rows and at most "
            f"as many coordinates, got {rows} and {coordinates}"
        )
    need(data, rows // 32, "data")


def _check_steps(steps):
    if not 0 <= steps <= 4096:
        raise ValueError(f"steps must lie in [0, 4096], got {steps}")


def _bytes(array, kind) -> bytes:
    """Of a vector that lives here or on the device."""
    if is_array(array):
        return read(view(array, kind)).tobytes()
    dtype = {"I": np.uint32, "Q": np.uint64}[kind]
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
        raise TypeError(f"expected a vector of one of {kind!r} (struct format), got {array!r}")
    return array.tobytes()


def _plan(layout: bytes, data: bytes, d: int) -> _Plan:
    module = device.cupy()
    return _uploaded(module, module.cuda.Device().id, layout, data, d)


@functools.lru_cache(maxsize=256)
def _uploaded(module, device_id, layout: bytes, data: bytes, d: int) -> _Plan:
    """Of runs (frames, rows, coordinates) and their masks, checked, for a vector of d."""
    masks, above = np.frombuffer(data, np.uint32), None
    table, holds, before = [], [], np.zeros(4, np.int64)
    large = words = 0
    for frames, rows, coordinates in np.frombuffer(layout, np.int64).reshape(-1, 3).tolist():
        _check_frame(rows, coordinates, masks)
        if above is not None and rows > above:
            raise ValueError(f"rows must fall from run to run, got {rows} after {above}")
        if frames % 2**64 > d:  # a frame has a coordinate at least
            raise ValueError(f"{frames % 2**64} frames for a vector of {d}")
        need(masks, words + rows // 32, "data")
        mask = np.unpackbits(masks[words : words + rows // 32].view(np.uint8), bitorder="little")
        if mask.sum() != coordinates:
            raise ValueError(f"data has {mask.sum()} of {rows} bits set for {coordinates} coordinates")
        hold = np.full(_LARGEST, _NOTHING, np.uint16)
        hold[np.flatnonzero(mask)] = np.arange(coordinates)
        table += [*before.tolist(), rows, coordinates]
        holds.append(hold)
        before += [frames, frames * rows, frames * coordinates, _LARGEST]
        large += frames * rows if rows >= BLOCK else 0
        words, above = words + rows // 32, rows
    frames, rows, coordinates, _ = before.tolist()
    uploaded = [module.asarray(np.array(v, t).reshape(-1)) for v, t in ((table, np.int64), (holds, np.uint16))]
    module.cuda.get_current_stream().synchronize()  # later calls may use another stream
    return _Plan(*uploaded, len(holds), frames, rows, large, coordinates)


def _run(x, a, words, rows, coordinates, data) -> _Plan:
    """That of equal frames, one for each of words."""
    view(x, "fd"), view(a, "fd"), view(words, "I")
    masks = _bytes(data, "I")
    _check_frame(rows, coordinates, np.frombuffer(masks, np.uint32))
    plan = _plan(np.array([words.size, rows, coordinates]).tobytes(), masks, words.size)
    if x.dtype != a.dtype:
        raise TypeError(f"x and a must have one element type, got {x.dtype.char!r} and {a.dtype.char!r}")
    need(x, plan.coordinates, "x")
    need(a, plan.rows, "a")
    return plan


def _launch(name, plan, *arguments, real):
    launch("kashin", name, plan.frames, 256, *arguments, real=real, shared=_ROOM[real.itemsize] * real.itemsize)


def _encode(plan, x, limit, steps, frame_key, levels, key, codes, words, rest, large):
    """Returns -1, the first frame that failed, or -2 where that is not finite."""
    failed = zeros(1, np.uint64)
    arguments = limit, steps, frame_key, levels, key, codes, words, rest, large, failed
    _launch("kashin_encode", plan, x, plan.table, plan.runs, plan.holds, *arguments, real=x.dtype)

    def status(left):
        frame, nonfinite = divmod(2**64 - 1 - left, 2)
        return -1 if left == 0 else -2 if nonfinite else frame

    return Status(failed, of=status)


def kashin_rows(rows, coordinates, data):
    view(data, "I")
    mask = np.empty(data.size, np.uint32)
    host.kashin_rows(rows, coordinates, mask)
    data[: rows // 32] = to_device(mask[: rows // 32])


def kashin_representation(x, a, words, rows, coordinates, data, limit, steps, key):
    plan = _run(x, a, words, rows, coordinates, data)
    _check_steps(steps)
    return _encode(plan, x, limit, steps, key, 0, 0, None, words.view(np.uint8), a, 0)


def kashin_synthesis(a, x, words, rows, coordinates, data, key):
    plan = _run(x, a, words, rows, coordinates, data)
    _launch("kashin_synthesis", plan, a, plan.table, plan.runs, plan.holds, words, key, x, real=a.dtype)


def _check_layout(x, layout, data, payload, offset, levels) -> _Plan:
    """Whether the buffers hold what the runs of a layout name."""
    layout, data = _bytes(layout, "Q"), _bytes(data, "I")
    view(payload, "B")
    if not 2 <= levels <= 65536:
        raise ValueError(f"levels must lie in [2, 65536], got {levels}")
    plan = _plan(layout[: len(layout) // 24 * 24], data, x.size)
    need(x, plan.coordinates, "x")
    if offset < packed_bytes(plan.rows, host.pack_width(levels)):
        raise ValueError(f"offset {offset} lies inside the codes")
    if offset > payload.size - 4 * plan.frames:
        raise ValueError(f"payload has {payload.size} bytes, {plan.frames} levels from byte {offset} on are needed")
    return plan


def kashin_encode(x, layout, data, limit, steps, levels, frame_key, key, payload, offset):
    view(x, "fd")
    plan = _check_layout(x, layout, data, payload, offset, levels)
    _check_steps(steps)
    small = plan.rows - plan.large
    rest = empty(small, x.dtype) if small else None
    words = payload[offset:]
    status = _encode(plan, x, limit, steps, frame_key, levels, key, payload, words, rest, plan.large)
    launch("kashin", "kashin_pack", warps_of(small), 256, rest, small, plan.large, levels, key, payload, real=x.dtype)
    return status


def kashin_decode(payload, offset, layout, data, levels, frame_key, out):
    view(payload, "B"), view(out, "fd")
    plan, failed = _check_layout(out, layout, data, payload, offset, levels), zeros(1, np.uint64)
    arguments = levels, frame_key, plan.rows, out, failed
    words = payload[offset:]
    _launch("kashin_decode", plan, payload, words, plan.table, plan.runs, plan.holds, *arguments, real=out.dtype)
    return Status(failed, of=lambda left: 2**64 - 1 - left if left else -1)
