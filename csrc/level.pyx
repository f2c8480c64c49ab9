from libc.math cimport fabs, floor

cdef extern from "level_cpu.h" nogil:
    enum:
        LEVEL_CONTEXTS
        LEVEL_ESCAPED
        LEVEL_FAR
        LEVEL_LARGEST_SHIFT
    ctypedef struct LevelCode:
        int states
        int labels
        int dithered
        int context
        int shift
    int level_models(const LevelCode*)
    u32 level_octave(u32)
    u32 level_decay(u32, u32)
    u32 level_shift(const LevelCode*, u32)
    i64 level_place(i64, i64, int, int)
    i64 level_symbols_of(const LevelCode*, const i32*, const u8*, i64, u8*, u8*, u16*)
    EntropyFault level_decode_of(const u8*, i64, u32, i64, const LevelCode*, const u32*, const u8*, i32*, i64*)
    void level_dither(u64, i64, u64, int, f32*, u8*)

LEVEL_OCTAVES = <int>LEVEL_CONTEXTS
LEVEL_LIMIT = <int>LEVEL_FAR
LEVEL_MOST_SHIFT = <int>LEVEL_LARGEST_SHIFT


def level_model_count(tuple code) -> int:
    """How many models levels of this code have."""
    cdef LevelCode c = code_of(code[0], code[1], code[2], code[3], code[4])
    return level_models(&c)


# What a thread works with on one chunk.
ctypedef struct LevelRoom:
    f32* u          # dither of the chunk's coordinates
    u8* phase       # ... and its phase, in the order of coding
    u8* natural     # ... and of coordinates
    f32* a          # scaled coordinates, [step][32]
    u8* octave
    u8* decision
    i32* level


cdef int open_room(LevelRoom* room, i64 n, int states, bint searching) noexcept nogil:
    cdef i64 most = min(n, <i64>ENTROPY_CHUNK)
    # with fewer than 32 lanes the [step][32] arrays are longer than n: at most 2,048 steps
    cdef i64 places = max(ceil_div(most, 128) * 128, <i64>min(most, 2048) * ENTROPY_LANES)
    memset(room, 0, sizeof(LevelRoom))
    room.u = <f32*>malloc(4 * places)
    room.phase = <u8*>malloc(places)
    room.natural = <u8*>malloc(places)
    room.a = <f32*>malloc(4 * places)
    room.level = <i32*>malloc(4 * places)
    if searching:
        room.octave = <u8*>malloc(places)
        room.decision = <u8*>malloc(places * trellis_planes(states))
        if room.octave == NULL or room.decision == NULL:
            return -1
    if room.u == NULL or room.phase == NULL or room.natural == NULL or room.a == NULL or room.level == NULL:
        return -1
    return 0


cdef void close_room(LevelRoom* room) noexcept nogil:
    free(room.u)
    free(room.phase)
    free(room.natural)
    free(room.a)
    free(room.octave)
    free(room.decision)
    free(room.level)


cdef void draw_dither(const LevelCode* c, LevelRoom* room, i64 first, i64 n, u64 key) noexcept nogil:
    cdef int lanes = entropy_lanes(n)
    cdef i64 p
    level_dither(<u64>first, n, key, c.states, room.u, room.natural)
    if c.context:
        for p in range(n):
            room.phase[p] = room.natural[level_place(p, n, lanes, 1)]
    else:
        memcpy(room.phase, room.natural, n)


cdef inline f32 scaled(f64 v, f64 far, f32 u) noexcept nogil:
    return TRELLIS_FAR if not fabs(v) <= far else <f32>v + u


cdef void scale_chunk(const LevelCode* c, const real* x, i64 n, f64 inverse, f64 far, LevelRoom* room) noexcept nogil:
    """a[step][lane] = x / step + u, TRELLIS_FAR where |x| / step > far; zeros where there is no coordinate."""
    cdef int lanes = entropy_lanes(n)
    cdef i64 p, at, to
    if lanes == ENTROPY_LANES and not c.context:
        if c.dithered:
            for p in range(n):
                room.a[p] = scaled(x[p] * inverse, far, room.u[p])
        else:
            for p in range(n):
                room.a[p] = scaled(x[p] * inverse, far, 0)
        for p in range(n, ceil_div(n, lanes) * lanes):
            room.a[p] = 0
        return
    memset(room.a, 0, 4 * ENTROPY_LANES * ceil_div(n, lanes))
    for p in range(n):
        at = level_place(p, n, lanes, c.context)
        to = p // lanes * ENTROPY_LANES + p % lanes
        room.a[to] = scaled(x[at] * inverse, far, room.u[at] if c.dithered else 0)


cdef void guess_octaves(const LevelCode* c, i64 steps, LevelRoom* room) noexcept nogil:
    """The contexts as they would be if every level were the nearest integer."""
    cdef u32 total[32]
    cdef u32 octave
    cdef i64 t, p
    cdef int l
    cdef f32 v
    memset(total, 0, sizeof(total))
    for t in range(steps):
        for l in range(ENTROPY_LANES):
            p = t * ENTROPY_LANES + l
            octave = level_octave(total[l])
            room.octave[p] = <u8>octave
            v = room.a[p]
            v = -v if v < 0 else v
            total[l] = level_decay(total[l], <u32>nearest_f32(v) if v < 32768 else
                                   (<u32>256 << level_shift(c, octave) if v >= TRELLIS_FAR else 32768))


cdef void uniform_chunk(const LevelCode* c, i64 places, f32 dead, f32 rounding, LevelRoom* room) noexcept nogil:
    """Even levels: nearest to a, or towards zero by a dead zone (in units of two levels)."""
    cdef i64 p
    cdef f32 v, t, m
    for p in range(places):
        v = room.a[p]
        if c.dithered:
            m = nearest_f32(v * <f32>0.5)
        else:
            t = (-v if v < 0 else v) * <f32>0.5
            m = nearest_f32(t + rounding - <f32>0.5)
            m = 1 if m < 1 else m
            m = 0 if t < dead else m
            m = -m if v < 0 else m
        room.level[p] = <i32>LEVEL_ESCAPED if v >= TRELLIS_FAR else 2 * <i32>m


cdef void quantize_chunk(const LevelCode* c, const real* x, i64 n, f64 inverse, f64 far, const TrellisCost* cost,
                         f32 dead, f32 rounding, LevelRoom* room) noexcept nogil:
    """room.level: the levels of n coordinates in the order of coding."""
    cdef int lanes = entropy_lanes(n)
    cdef i64 p, steps = ceil_div(n, lanes)
    scale_chunk(c, x, n, inverse, far, room)
    if c.states == 1:
        uniform_chunk(c, steps * ENTROPY_LANES, dead, rounding, room)
    else:
        if c.context and not c.dithered:
            guess_octaves(c, steps, room)
        trellis_search_of(room.a, room.octave if c.context and not c.dithered else NULL, steps, cost, room.decision,
                          room.level, c.labels, c.states)
    if lanes < ENTROPY_LANES:
        for p in range(n):
            room.level[p] = room.level[p // lanes * ENTROPY_LANES + p % lanes]


cdef LevelCode code_of(int states, bint labels, bint dithered, int context, int shift) except *:
    cdef LevelCode c
    if dithered and 0 < context < 3:        # a model is a byte
        raise ValueError("dithered levels have contexts of four half octaves at least")
    c.states = states
    c.labels = labels
    c.dithered = dithered
    c.context = context
    c.shift = shift
    return c


cdef void count_symbols(const u8* symbol, const u8* model, i64 n, int models, u32* count, u32* other) noexcept nogil:
    """count[model][symbol]; with few models in four tables, as equal symbols in a row would wait for each other."""
    cdef i64 p
    cdef int size = 256 * models
    if models == 1:
        for p in range(0, n - 3, 4):
            count[symbol[p]] += 1
            other[symbol[p + 1]] += 1
            other[256 + symbol[p + 2]] += 1
            other[512 + symbol[p + 3]] += 1
        for p in range(n // 4 * 4, n):
            count[symbol[p]] += 1
    elif models <= 16:
        for p in range(0, n - 3, 4):
            count[256 * model[p] + symbol[p]] += 1
            other[256 * model[p + 1] + symbol[p + 1]] += 1
            other[size + 256 * model[p + 2] + symbol[p + 2]] += 1
            other[2 * size + 256 * model[p + 3] + symbol[p + 3]] += 1
        for p in range(n // 4 * 4, n):
            count[256 * model[p] + symbol[p]] += 1
    else:
        for p in range(n):
            count[256 * model[p] + symbol[p]] += 1


def level_encode_symbols(x, tuple code, f64 inverse, f64 far, u64 key, costs, f32 dead, f32 rounding, symbol, model,
                         extra, counts, moments) -> tuple:
    """Quantises x / step and tells its levels by symbols; `code` is (states, labels, dithered, context, shift).

    inverse = 1 / step; |x inverse| > far is escaped. costs: float32, 8 numbers a row, a row for each parity (and
    octave), used where states > 1; dead and rounding where states = 1 and nothing is dithered. Fills symbol (u8), model
    (u8, or None for one model), extra (u16, or None where no low bits are left out) and counts (u32, models x 256), and
    moments (float64, 7, or None): sum of (x / step - j)^2, then for |j| = 1, 2 and more their number and the sum of
    (x / step - j) sign(j), without escapes. Returns the number of escapes, their bytes and the bytes of each chunk's.
    """
    cdef View v = view(x, b"fd")
    cdef View w = view(costs, b"f")
    cdef View s = view(symbol, b"B", True)
    cdef View m = view(model, b"B", True) if model is not None else None
    cdef View e = view(extra, b"H", True) if extra is not None else None
    cdef View k = view(counts, b"I", True)
    cdef View o = view(moments, b"d", True) if moments is not None else None
    cdef LevelCode c = code_of(code[0], code[1], code[2], code[3], code[4])
    cdef int models = level_models(&c)
    cdef LevelRoom room
    cdef i64 chunks = ceil_div(v.n, ENTROPY_CHUNK), first, n, escapes = 0, here, start, i, p
    cdef u8* sp = s.u8s()
    cdef u8* mp = m.u8s() if m is not None else NULL
    cdef u16* ep = <u16*>e.buffer.buf if e is not None else NULL
    cdef u32* count = k.u32s()
    cdef f64* moment = o.f64s() if o is not None else NULL
    cdef u32* other
    cdef u32* sizes
    cdef Writer out
    cdef bint failed
    need(w, 8 * 2 * (<i64>LEVEL_CONTEXTS if c.context else 1), "costs")
    need(s, v.n, "symbol")
    need(k, 256 * models, "counts")
    if m is not None or models > 1:
        need(m, v.n, "model")
    if e is not None:
        need(e, v.n, "extra")
    if o is not None:
        need(o, 7, "moments")
    memset(&out, 0, sizeof(out))
    other = <u32*>malloc(3 * 16 * 1024)
    sizes = <u32*>malloc(4 * (chunks + 1))
    with nogil:
        failed = open_room(&room, v.n, c.states, c.states > 1) != 0 or other == NULL or sizes == NULL
        if not failed:
            memset(count, 0, 1024 * models)
            memset(other, 0, 3 * 16 * 1024)
            if moment != NULL:
                memset(moment, 0, 56)
        for i in range(chunks if not failed else 0):
            first = i * ENTROPY_CHUNK
            n = min(<i64>ENTROPY_CHUNK, v.n - first)
            if c.dithered:
                draw_dither(&c, &room, first, n, key)
            if v.kind == c"f":
                quantize_chunk(&c, v.f32s() + first, n, inverse, far, <const TrellisCost*>w.f32s(), dead, rounding,
                               &room)
            else:
                quantize_chunk(&c, v.f64s() + first, n, inverse, far, <const TrellisCost*>w.f32s(), dead, rounding,
                               &room)
            here = level_symbols_of(&c, room.level, room.phase, n, sp + first, mp + first if mp != NULL else NULL,
                                    ep + first if ep != NULL else NULL)
            start = out.used
            if here and v.kind == c"f":
                put_escapes(&out, &c, v.f32s() + first, n, inverse, room.level, sp + first)
            elif here:
                put_escapes(&out, &c, v.f64s() + first, n, inverse, room.level, sp + first)
            write_end(&out)
            sizes[i] = <u32>(out.used - start)
            escapes += here
            count_symbols(sp + first, mp + first if mp != NULL else NULL, n, models, count, other)
            if moment != NULL and v.kind == c"f":
                add_moments(&c, v.f32s() + first, n, inverse, &room, moment)
            elif moment != NULL:
                add_moments(&c, v.f64s() + first, n, inverse, &room, moment)
        if not failed and models <= 16:
            for p in range(256 * models):
                count[p] += other[p] + other[256 * models + p] + other[512 * models + p]
        failed |= out.failed
        close_room(&room)
    try:
        if failed:
            raise MemoryError()
        return escapes, out.data[:out.used], (<u8*>sizes)[:4 * chunks]
    finally:
        free(other)
        free(sizes)
        free(out.data)


cdef void write_escape(Writer* w, f64 value, bint far, bint dithered) noexcept nogil:
    """Whole numbers: [far?], sign, then the exponent in Elias' gamma code and 23 (52 where needed) bits below it."""
    cdef f64 v = fabs(value)
    cdef u64 b = bits_f64(v)
    cdef int e = <int>(b >> 52) - 1023 if v >= 1 else -1, n = width_of(<u32>(e + 2)), below
    if dithered:
        write_bits(w, far, 1)
    write_bits(w, value < 0, 1)
    write_bits(w, 0, n - 1)
    write_bits(w, 1, 1)
    write_bits(w, <u64>(e + 2) & ((<u64>1 << (n - 1)) - 1), n - 1)
    below = min(max(e, 0), 52)
    b = (b & <u64>0xfffffffffffff) >> (52 - below)
    write_bits(w, <u32>b, min(below, 32))
    write_bits(w, b >> 32, max(below - 32, 0))


cdef f64 read_escape(Reader* r, bint dithered, bint* far) noexcept nogil:
    cdef bint minus
    cdef int n = 1, e, below
    cdef u64 b
    cdef f64 v
    far[0] = read_bits(r, 1) if dithered else False
    minus = read_bits(r, 1)
    while not read_bits(r, 1):
        n += 1
        if n > 11 or r.at > r.stop + 8:
            r.at = r.stop + 9       # no encoder writes this
            return 0
    e = <int>(<u64>1 << (n - 1) | read_bits(r, n - 1)) - 2
    if e < 0:
        return 0
    if e > 1023:
        r.at = r.stop + 9
        return 0
    below = min(e, 52)
    b = read_bits(r, min(below, 32))
    b |= read_bits(r, max(below - 32, 0)) << 32
    v = f64_bits(<u64>(e + 1023) << 52 | b << (52 - below))
    return -v if minus else v


cdef void put_escapes(Writer* w, const LevelCode* c, const real* x, i64 n, f64 inverse, const i32* level,
                      const u8* symbol) noexcept nogil:
    cdef i64 p
    cdef int lanes = entropy_lanes(n)
    cdef f64 v
    for p in range(n):
        if symbol[p] >= 2:
            continue
        if level[p] < LEVEL_ESCAPED + 2:
            v = x[level_place(p, n, lanes, c.context)] * inverse
            write_escape(w, floor(v + 0.5) if fabs(v) < 4503599627370496.0 else v, True, c.dithered)
        else:
            write_escape(w, level[p], False, c.dithered)


def level_encode(tuple code, symbol, model, extra, counts, bytes escapes, bytes sizes) -> bytearray:
    """Models, chunks and escapes of what level_encode_symbols made."""
    cdef View s = view(symbol, b"B")
    cdef View m = view(model, b"B") if model is not None else None
    cdef View e = view(extra, b"H") if extra is not None else None
    cdef View k = view(counts, b"I")
    cdef LevelCode c = code_of(code[0], code[1], code[2], code[3], code[4])
    cdef int models = level_models(&c), i, j, head_bytes
    cdef i64 n = s.n, chunks = ceil_div(n, ENTROPY_CHUNK), first, size, at
    cdef u32 f[256]
    cdef u32* table = <u32*>malloc(1024 * models)
    cdef u16* words = <u16*>malloc(2 * (2 * min(n, <i64>ENTROPY_CHUNK) + 64))
    cdef u16* end
    cdef u16* begin
    cdef u8 head[ENTROPY_HEAD]
    cdef const u8* escape_bytes = escapes
    cdef const u8* size_bytes = sizes
    cdef i64 escape_count = len(escapes)
    cdef EntropySource source
    cdef Writer w
    cdef u32 total, entry
    cdef bint choice = False, escaped = False
    need(k, 256 * models, "counts")
    if models > 1:
        need(m, n, "model")
    if e is not None:
        need(e, n, "extra")
    if len(sizes) != 4 * chunks:
        raise ValueError(f"{len(sizes)} bytes of sizes for {chunks} chunks")
    memset(&w, 0, sizeof(w))
    w.failed = table == NULL or words == NULL
    with nogil:
        for i in range(models if not w.failed else 0):
            frequencies(k.u32s() + 256 * i, f)
            write_model(&w, f)
            total = 0
            for j in range(256):
                table[256 * i + j] = entropy_code(f[j], total)
                total += f[j]
                choice |= 0 < f[j] < <u32>ENTROPY_SLOTS
            escaped |= f[0] + f[1] != 0
        write_end(&w)
        choice |= e is not None
        at = w.used
        reserve(&w, 4 * chunks)
        if choice and not w.failed:     # one symbol a model needs no words at all
            memset(w.data + at, 0, 4 * chunks)
            w.used += 4 * chunks
        if escaped:
            write_bytes(&w, size_bytes, 4 * chunks)
        if choice and not w.failed:
            for i in range(chunks):
                first = <i64>i * ENTROPY_CHUNK
                size = min(<i64>ENTROPY_CHUNK, n - first)
                source.symbol = s.u8s() + first
                source.model = m.u8s() + first if models > 1 else NULL
                source.extra = <u16*>e.buffer.buf + first if e is not None else NULL
                source.table = table
                end = words + 2 * size + 32
                begin = entropy_encode_chunk(&source, size, end, head, &head_bytes)
                write_bytes(&w, head, head_bytes)
                write_bytes(&w, begin, 2 * (end - begin))
                if w.failed:
                    break
                entry = <u32>(end - begin)
                memcpy(w.data + at + 4 * i, &entry, 4)
        if escaped:
            write_bytes(&w, escape_bytes, escape_count)
    try:
        if w.failed:
            raise MemoryError()
        return bytearray(w.data[:w.used])
    finally:
        free(table)
        free(words)
        free(w.data)


cdef void add_moments(const LevelCode* c, const real* x, i64 n, f64 inverse, const LevelRoom* room,
                      f64* moment) noexcept nogil:
    cdef int lanes = entropy_lanes(n), which
    cdef i64 p, at
    cdef i32 j
    cdef f64 d
    for p in range(n):
        j = room.level[p]
        if j < LEVEL_ESCAPED + 2:
            continue
        at = level_place(p, n, lanes, 1) if c.context else p
        d = x[at] * inverse - j
        if c.dithered:
            d += room.u[at]
        moment[0] += d * d
        if j != 0:
            which = 2 * min(-j if j < 0 else j, 3)
            moment[which - 1] += 1
            moment[which] += -d if j < 0 else d


cdef inline void put_value(real* out, i64 i, f64 value, bint add, real weight) noexcept nogil:
    """The nearest finite value, stored or added."""
    cdef f64 most
    if real is f32:
        most = 3.4028234663852886e38
    else:
        most = 1.7976931348623157e308
    value = most if value > most else -most if value < -most else value
    if add:
        out[i] += weight * <real>value
    else:
        out[i] = <real>value


cdef inline f64 moved_level(i32 j, f64 near, f64 mid, f64 rest) noexcept nogil:
    cdef i32 size = -j if j < 0 else j
    cdef f64 v = rest
    if size < 3:
        v = mid if size == 2 else near
    v = size + v if size > 0 else 0
    return -v if j < 0 else v


cdef void level_values(const LevelCode* c, LevelRoom* room, i64 n, f64 step, const f64* offset, bint add,
                       f64 weight, real* out) noexcept nogil:
    """out = step (j +- offset_|j|) or step (j - u), at the places of the levels; 0 where a level is escaped."""
    cdef int lanes = entropy_lanes(n)
    cdef i64 p, at
    cdef f64 v, near = offset[0], mid = offset[1], rest = offset[2]
    cdef real w = <real>weight
    if c.context or c.dithered or add or fabs(step) > 1e28:     # beyond, a level may leave float32
        for p in range(n):
            at = level_place(p, n, lanes, 1) if c.context else p
            if room.level[p] < LEVEL_ESCAPED + 2:
                v = 0
            elif c.dithered:
                v = step * (room.level[p] - room.u[at])
            else:
                v = step * moved_level(room.level[p], near, mid, rest)
            put_value(out, at, v, add, w)
    else:
        for p in range(n):
            out[p] = <real>(step * moved_level(room.level[p], near, mid, rest))


cdef int patch_escapes(const LevelCode* c, const LevelRoom* room, i64 n, f64 step, bint add, f64 weight, Reader* r,
                       real* out) noexcept nogil:
    cdef int lanes = entropy_lanes(n)
    cdef i64 p, at
    cdef bint far = False
    cdef f64 v
    for p in range(n):
        if room.level[p] >= LEVEL_ESCAPED + 2:
            continue
        at = level_place(p, n, lanes, c.context)
        v = read_escape(r, c.dithered, &far)
        if r.at > r.stop + 8:
            return -1
        v = v - room.u[at] if c.dithered and not far else v
        put_value(out, at, v * step, add, <real>weight)
    return 0


cdef int decode_levels(const LevelCode* c, const u8* data, i64 size, i64 n, u64 key, f64 step, const f64* offset,
                       bint add, f64 weight, real* out) noexcept nogil:
    """0, or the kind of damage: 1 models, 2 truncated, 3 a chunk, 4 escapes, 5 longer than coded, 6 no memory."""
    cdef int models = level_models(c), i, j, fault = 0
    cdef u32 f[256]
    cdef u32* table = <u32*>malloc(4 * <i64>ENTROPY_SLOTS * models)
    cdef LevelRoom room
    cdef Reader r, tail
    cdef i64 chunks = ceil_div(n, ENTROPY_CHUNK), m, used, entries, escapes, here
    cdef u32 start, entry
    cdef int slot
    cdef bint choice = c.shift > 0 or c.context, escaped = False
    memset(&r, 0, sizeof(r))
    r.data = data
    r.stop = size
    if open_room(&room, n, c.states, False) != 0 or table == NULL:
        fault = 6
    for i in range(models if not fault else 0):
        if read_model(&r, f) != 0:
            fault = 1
            break
        start = 0
        for j in range(256):
            for slot in range(<int>f[j]):
                table[ENTROPY_SLOTS * i + start + slot] = entropy_slot(<u32>j, f[j], <u32>slot)
            start += f[j]
            choice |= 0 < f[j] < <u32>ENTROPY_SLOTS
        if start == 0:      # never asked for by an encoder: anything safe
            for slot in range(ENTROPY_SLOTS):
                table[ENTROPY_SLOTS * i + slot] = entropy_slot(128, ENTROPY_SLOTS, <u32>slot)
        escaped |= f[0] + f[1] != 0
    if r.at > r.stop and not fault:
        fault = 2
    entries = r.at
    escapes = entries + 4 * chunks * choice
    here = escapes + 4 * chunks * escaped
    if here > size and not fault:
        fault = 2
    # the escapes stand behind all chunks: their place is known once the chunks have been passed
    tail = r
    tail.at = here
    tail.bits = 0
    tail.held = 0
    if choice and escaped and not fault:
        for i in range(chunks):
            m = min(<i64>ENTROPY_CHUNK, n - <i64>i * ENTROPY_CHUNK)
            memcpy(&entry, data + entries + 4 * i, 4)
            used = chunk_size(data + tail.at, size - tail.at, m, entry)
            if used < 0:
                fault = 2
                break
            tail.at += used
    i = 0
    while i < chunks and not fault:
        m = min(<i64>ENTROPY_CHUNK, n - <i64>i * ENTROPY_CHUNK)
        if c.dithered:
            draw_dither(c, &room, <i64>i * ENTROPY_CHUNK, m, key)
        if choice:
            memcpy(&entry, data + entries + 4 * i, 4)
            if level_decode_of(data + here, size - here, entry, m, c, table, room.phase, room.level,
                               &used) != ENTROPY_FINE:
                fault = 3
                break
            here += used
        else:
            only_levels(c, table, m, &room)
        level_values(c, &room, m, step, offset, add, weight, out + <i64>i * ENTROPY_CHUNK)
        if escaped:
            memcpy(&entry, data + escapes + 4 * i, 4)
            tail.bits = 0
            tail.held = 0
            if entry > size - tail.at:
                fault = 2
                break
            tail.stop = tail.at + entry
            if patch_escapes(c, &room, m, step, add, weight, &tail, out + <i64>i * ENTROPY_CHUNK) != 0 or \
                    tail.at > tail.stop:
                fault = 4
                break
            tail.at = tail.stop
        i += 1
    if not fault and (tail.at if escaped else here) != size:
        fault = 5
    close_room(&room)
    free(table)
    return fault


cdef i64 chunk_size(const u8* data, i64 left, i64 n, u32 words) noexcept nogil:
    """Bytes of a chunk from its lengths, -1 where they are not there."""
    cdef int lanes = entropy_lanes(n), i
    cdef i64 bits = 0, total
    if left < (lanes + 1) // 2:
        return -1
    for i in range(lanes):
        bits += 16 + (data[i // 2] >> (i % 2 * 4) & 15)
    total = (lanes + 1) // 2 + (bits + 7) // 8 + 2 * <i64>words
    return total if total <= left else -1


cdef void only_levels(const LevelCode* c, const u32* table, i64 n, LevelRoom* room) noexcept nogil:
    """Every model has one symbol: no words were sent, and a coder of no words says which."""
    cdef u8 nothing[ENTROPY_HEAD]
    cdef i64 used
    memset(nothing, 0, sizeof(nothing))
    level_decode_of(nothing, ENTROPY_HEAD, 0, n, c, table, room.phase, room.level, &used)


def level_decode(data, tuple code, i64 n, u64 key, f64 step, offsets, out, f64 weight, bint add) -> None:
    """out = or += weight * the vector that level_encode's bytes stand for; ValueError where they are not."""
    cdef View d = view(data, b"B")
    cdef View o = view(out, b"fd", True)
    cdef View off = view(offsets, b"d")
    cdef LevelCode c = code_of(code[0], code[1], code[2], code[3], code[4])
    cdef int fault
    need(o, n, "out")
    need(off, 3, "offsets")
    with nogil:
        if o.kind == c"f":
            fault = decode_levels(&c, d.u8s(), d.n, n, key, step, off.f64s(), add, weight, o.f32s())
        else:
            fault = decode_levels(&c, d.u8s(), d.n, n, key, step, off.f64s(), add, weight, o.f64s())
    if fault == 6:
        raise MemoryError()
    if fault:
        raise ValueError("coded levels: " + ("the models are damaged", "truncated", "a chunk does not decode",
                                             "the escapes do not decode", "longer than coded")[fault - 1])
