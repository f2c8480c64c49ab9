"""Vectors as symbols of levels: csrc/trellis.cu."""

import numpy as np

from .._cpu import kernels as host
from .device import empty, is_array, launch, need, read, to_device, view, zeros

_CHUNK = host.ENTROPY_LARGEST_CHUNK
_LANES = 32
_GROUPS = 64  # of steps of a chunk, whose moments are added first
_WINDOWS = 342  # pieces of a path through a chunk, at most
_ROOM = 512 << 20  # bytes of scratch, where a chunk does not take more
_LARGE_GRID = 528


def level_encode_symbols(x, code, inverse, key, costs, dead, rounding, scale, symbol, model, extra, counts, moments):
    """As on the CPU. Waits for counts, to know what is rare, and again where something is escaped. costs, and counts
    with moments, may be NumPy arrays: what is read anyway is then left there."""
    if not is_array(counts):
        return _told_to_host(x, code, inverse, key, costs, dead, rounding, scale, symbol, model, extra, counts, moments)
    return _encode(x, code, inverse, key, costs, dead, rounding, scale, symbol, model, extra, counts, moments, read)


def _told_to_host(x, *arguments):
    """Counts and moments in one piece of memory, so that they are read at once."""
    *arguments, counts, moments = arguments
    size = counts.nbytes
    room = empty(size + 56, np.uint8)
    there = room[:size].view(np.uint32)

    def tell(_):
        both = read(room)
        counts[:] = both[:size].view(np.uint32)
        if moments is not None:
            moments[:] = both[size:].view(np.float64)
        return counts

    averages = None if moments is None else room[size:].view(np.float64)
    return _encode(x, *arguments, there, averages, tell)


def _encode(x, code, inverse, key, costs, dead, rounding, scale, symbol, model, extra, counts, moments, tell):
    """tell(counts): the counts on the host, asked for whenever they have changed."""
    view(x, "fd")
    view(symbol, "B"), view(counts, "I")
    states, _, dithered, context, _ = code
    if is_array(costs):
        view(costs, "f")
    elif states > 1 and not dithered:  # what weighs them
        costs = to_device(costs)
    n, models = x.size, host.level_model_count(code)
    need(costs, 6 * (host.LEVEL_OCTAVES if context else 1), "costs")
    need(symbol, n, "symbol")
    need(counts, 256 * models, "counts")
    if model is not None or models > 1:
        need(view(model, "B"), n, "model")
    if extra is not None:
        need(view(extra, "H"), n, "extra")
    if moments is not None:
        need(view(moments, "d"), 7, "moments")
    counts = counts[: 256 * models]
    counts.fill(0)
    chunks = -(-n // _CHUNK)
    sums = None if moments is None else zeros(7 * max(chunks, 1) * _GROUPS, np.float64)
    if n:
        _tell(x, code, inverse, key, costs, dead, rounding, scale, symbol, model, extra, sums)
    if moments is not None:
        groups = sums.size // 7
        launch("trellis", "level_moments", 7, 256, sums, groups, moments, shared=8 * -(-groups // 4096), real=x.dtype)
    least, width = (0, 256) if models <= 32 else (96, 64)
    copies = 1 << max(8192 // (models * width), 1).bit_length() - 1
    launch(
        "trellis", "level_count", min(-(-n // 4096), _LARGE_GRID), 256,
        symbol, model, n, models, least, width, copies, counts,
        shared=4 * models * width * copies, real=x.dtype,
    )  # fmt: skip
    found = tell(counts)
    keep = host.level_keep(code, found, scale)
    rare = np.abs(np.arange(256) - 128) > np.frombuffer(keep, np.uint8)[:, None]
    escapes = int(found.reshape(models, 256)[rare].sum(dtype=np.int64))
    if not escapes:
        return 0, b"", bytes(4 * chunks)
    listed = empty(2 * escapes, np.uint64)
    launch(
        "trellis", "level_list", min(-(-n // 256), 4 * _LARGE_GRID), 256,
        x, symbol, model, extra, counts, to_device(np.frombuffer(keep, np.uint8)), listed, zeros(1, np.uint64), escapes,
        n, scale, inverse, key, states, dithered, context,
        real=x.dtype,
    )  # fmt: skip
    pairs = read(listed).reshape(-1, 2)
    tell(counts)
    return escapes, *host.level_escape_bytes(pairs[np.argsort(pairs[:, 0])].ravel(), n)


def _tell(x, code, inverse, key, costs, dead, rounding, scale, symbol, model, extra, sums):
    """Symbols, models, low bits and sums of moments, as many chunks at a time as there is scratch for."""
    states, labels, dithered, context, columns = code
    n, real = x.size, x.dtype
    chunks, team = -(-n // _CHUNK), max(states // 8, 1)
    searched = states > 1
    guessed = searched and context and not dithered
    weighed = costs if searched and not dithered else None
    follows = context and model is not None
    needed = searched * _WINDOWS * _LANES * (16 * team + 4)
    needed += _CHUNK * (4 * bool(context) + bool(context and dithered) + bool(guessed) + 4 * bool(follows))
    waves = -(-chunks // max(_ROOM // max(needed, 1), 1))
    wave = -(-chunks // waves)  # all of them alike
    places = wave * _CHUNK
    a = empty(places, np.float32) if context else None
    phase = empty(places, np.uint8) if context and dithered else None
    octave = empty(places, np.uint8) if guessed else None
    past = empty(places, np.uint32) if follows else None
    path = empty(wave * _WINDOWS * _LANES, np.uint32) if searched else None
    history = empty(2 * wave * _WINDOWS * _LANES * team, np.uint64) if searched else None
    parts = 4 if states == 256 else 1
    lanes, window = _LANES // parts, 12 if team > 1 else 16
    threads = lanes * team + -(-lanes * window // 4 // 32) * 32
    shared = 768 + 32 * window * lanes + (40 * lanes * team if team > 1 else 0)
    for base in range(0, chunks, wave):
        now = min(wave, chunks - base)
        if context:
            launch(
                "trellis", "level_arrange", 32 * now, 256,
                x, a, phase, n, base, scale, inverse, key, states, dithered,
                real=real,
            )  # fmt: skip
        if guessed:
            launch(
                "trellis", "level_guess_octaves", now, 32, a, octave, n, base, scale, columns,
                shared=128 * columns, real=real,
            )  # fmt: skip
        if searched:
            launch(
                "trellis", "trellis_search", parts * now, threads,
                x, a, octave, weighed, history, path, n, base, scale, inverse, key, states, labels, dithered, context,
                shared=shared, real=real,
            )  # fmt: skip
        launch(
            "trellis", "level_tell", 8 * now, 256,
            x, a, phase, octave, weighed, path, symbol, model, extra, past, sums, chunks * _GROUPS, n, base,
            scale, inverse, key, dead, rounding, states, labels, dithered, context,
            real=real,
        )  # fmt: skip
        if follows:
            launch(
                "trellis", "level_contexts", now, 32,
                past, model, n, base, scale, states, dithered, context, columns,
                shared=128 * columns, real=real,
            )  # fmt: skip
