"""The entropy coder: csrc/entropy.cu."""

import numpy as np

from .._cpu import kernels as host
from .device import empty, is_array, launch, limits, need, read, to_device, view, zeros

_CHUNK = host.ENTROPY_LARGEST_CHUNK
_MOST_WARPS = 16  # of a block
_HEAD = 36  # words of a chunk's lengths and states
_INVERSES = 8 * 4096
_RING = 2 * (512 + 32)  # bytes of words that a decoder has at hand
_TILE = 32 * 33  # values of 32 steps, where lanes have runs
_PIECES = 8  # blocks that copy a chunk
_MODEL = 400  # bytes of a model at most
_FIXED = 8192  # more than the kernels have of shared memory beside tables and rooms
_DEFAULT = 48 << 10  # bytes that a block has without asking, `launch` for more; what a kernel has beside them counts
_PLAIN, _DITHERED = 2, 3  # of the decoders in entropy.cu


def spread(chunks, tables, room=_RING):
    """Warps a block, a chunk each, with `room` bytes of shared memory: every multiprocessor has some before one has
    many, and two blocks where the tables are small."""
    processors, shared = limits()
    shared -= _FIXED
    most = _MOST_WARPS if 3 * tables > shared else _MOST_WARPS // 2
    return max(1, min(-(-chunks // processors), most, shared // room))


def level_encode(code, sent, symbol, model, extra, counts, escapes, sizes):
    """As on the CPU; a vector on the device. counts may be on the host."""
    view(symbol, "B")
    if extra is not None:
        view(extra, "H")
    n, models = symbol.size, host.level_model_count(code)
    chunks = -(-n // _CHUNK)
    if models > 1:
        need(view(model, "B"), n, "model")
    if extra is not None:
        need(extra, n, "extra")
    if len(sizes) != 4 * chunks:
        raise ValueError(f"{len(sizes)} bytes of sizes for {chunks} chunks")
    if is_array(counts):
        counts = read(view(counts, "I"))
    head, codes, choice, escaped = host.level_models_encode(code, sent, counts)
    front = to_device(np.frombuffer(b"".join((head, sizes, escapes) if escaped else (head,)), np.uint8))
    if not (choice and n):
        return front

    room = min(n, _CHUNK) * (1 if extra is None else 2) + 1 & ~1
    words, entries = empty(chunks * room, np.uint16), empty(chunks, np.uint32)
    heads, total = empty(_HEAD * chunks, np.uint32), zeros(1, np.uint64)
    tables = _INVERSES + 1024 * models
    resident = tables <= limits()[1] - _FIXED
    tables = tables if resident else _INVERSES
    warps = spread(chunks, tables)
    launch(
        "entropy",
        "level_encode",
        -(-chunks // warps),
        32 * warps,
        symbol,
        model if models > 1 else None,
        extra,
        to_device(np.frombuffer(codes, np.uint32)),
        models,
        resident,
        n,
        words,
        room,
        heads,
        entries,
        total,
        shared=tables,
    )
    listed, told = (len(sizes), len(escapes)) if escaped else (0, 0)
    payload = empty(front.size + 4 * chunks + int(read(total)[0]), np.uint8)
    launch(
        "entropy",
        "level_assemble",
        chunks * _PIECES + min(-(-max(told, 4 * chunks) // 4096), 64),
        256,
        front,
        len(head),
        listed,
        told,
        entries,
        heads,
        words,
        room,
        chunks,
        _PIECES,
        payload,
    )
    return payload


def level_decode(data, code, n, key, step, offsets, out, weight, add):
    view(data, "B"), view(out, "fd")
    models = host.level_model_count(code)
    states, _, dithered, context, columns = code
    need(out, n, "out")
    head = read(data[: _MODEL * models])
    codes, at, choice, escaped, more = host.level_models_decode(head, code)
    chunks = -(-n // _CHUNK)
    if at + 4 * chunks * (choice + escaped) > data.size:
        host.level_fault(host.LEVEL_TOO_SHORT)
    if n == 0:
        host.level_fault(host.LEVEL_TOO_LONG if at != data.size else 0)
        return

    codes = to_device(np.frombuffer(codes, np.uint32))
    if context or dithered:
        kind = _DITHERED + 2 * bool(context) + bool(dithered) - 1
    else:
        kind = _PLAIN if more else int(states > 1)
    real = out.dtype
    room = _RING + (128 * columns + _TILE * real.itemsize if context else 0)
    tables, symbols = (5 << 10 if kind >= _DITHERED else 16 << 10) * models, None
    warps = spread(chunks, tables, room)
    if kind >= _DITHERED and tables + warps * room > limits()[1] - _FIXED:
        symbols, tables = empty(4096 * models, np.uint8), 0
        launch("entropy", "level_tables", models, 256, codes, models, symbols, real=real)
    status = zeros(1, np.uint32)
    launch(
        "entropy",
        "level_decode",
        -(-chunks // warps),
        32 * warps,
        data,
        data.size,
        at,
        choice,
        escaped,
        codes,
        models,
        symbols,
        kind,
        tables,
        room,
        n,
        *code,
        key,
        step,
        *offsets,
        weight,
        add,
        out,
        status,
        real=real,
        shared=512 * real.itemsize + tables + warps * room,
    )
    if found := int(read(status)[0]):
        host.level_fault(~found & 7)
