from libc.math cimport fabs, floor

cdef extern from "level_cpu.h" nogil:
    enum:
        LEVEL_CONTEXTS
        LEVEL_COLUMNS
        LEVEL_EXACT
        LEVEL_BUCKETS
        LEVEL_FAR
        LEVEL_ESCAPED
        LEVEL_MOMENTS
        LEVEL_MOMENT_STEPS
    ctypedef struct LevelCode:
        int states
        int labels
        int dithered
        int context
        int columns
    ctypedef struct LevelPast:
        u32 mean[32]
    int level_models_each(const LevelCode*)
    int level_models(const LevelCode*)
    i32 level_from(i32, u32, int)
    i32 level_wrap(u32, u32, int)
    u32 level_bucket_bits(u32)
    u32 level_bucket_first(u32, u32)
    u32 level_magnitude(i32, u32)
    i64 level_place(i64, i64, int, int)
    int level_lanes(i64, f64)
    f32 level_scaled(f64, f32)
    i32 level_uniform(f32, f32, f32, int)
    u32 level_guess(f32)
    void level_forget(LevelPast*, u32 (*)[32], int)
    void level_octaves(const LevelPast*, i64, int, int, u32*)
    void level_remember(LevelPast*, i64, int, int, const u32*)
    void level_symbols_of(const LevelCode*, const i32*, const u8*, i64, int, u32 (*)[32], u8*, u8*, u16*)
    EntropyFault level_decode_of(const u8*, i64, u32, i64, const LevelCode*, const u32*, const u8*, u32 (*)[32], i32*)
    f64 level_moved(i32, f64, f64, f64)
    f64 level_undithered(i32, f32)
    f32 level_finite_f32(f64)
    f64 level_finite_f64(f64)
    int level_is_more(u32)
    f64 level_read_escape(EntropyBits*, int*)
    int level_count_few(const u8*, const u8*, i64, int, u32*)
    void level_moments(const f32*, const i32*, i64, int, int, i64, int, f64*, i64)
    void level_dither(u64, i64, u64, int, f32*, u8*)

LEVEL_OCTAVES = <int>LEVEL_CONTEXTS
LEVEL_MOST_COLUMNS = <int>LEVEL_COLUMNS
LEVEL_NARROW = <int>LEVEL_EXACT


def level_model_count(tuple code) -> int:
    """How many models levels of this code have."""
    cdef LevelCode c = code_of(code)
    return level_models(&c)


# What a thread works with on one chunk.
ctypedef struct LevelRoom:
    int lanes
    f32* u              # dither of the chunk's coordinates
    u8* natural         # ... and its phase
    u8* phase           # ... in the order of coding
    f32* a              # scaled coordinates, [step][32], or [step][lanes] where that is_packed
    u8* octave
    u8* decision
    u32 (*above)[32]    # means of magnitudes by column and lane
    i32* level          # what encoders call w, decoders the level, in the order of coding


cdef int open_room(LevelRoom* room, const LevelCode* c, i64 n, bint coding) noexcept nogil:
    cdef i64 most = min(n, <i64>ENTROPY_CHUNK)
    # with fewer than 32 lanes the [step][32] arrays are longer than n: at most 2,048 steps
    cdef i64 places = max(ceil_div(most, 128) * 128, <i64>min(most, 2048) * ENTROPY_LANES)
    memset(room, 0, sizeof(LevelRoom))
    room.u = <f32*>malloc(4 * places if c.dithered else 1)
    room.natural = <u8*>malloc(places if c.dithered else 1)
    room.phase = <u8*>malloc(places if c.dithered else 1)
    room.a = <f32*>malloc(4 * places if coding else 1)
    room.octave = <u8*>malloc(places if coding and c.context else 1)
    room.decision = <u8*>malloc(places * trellis_planes(c.states) if coding and c.states > 1 else 1)
    room.above = <u32 (*)[32]>malloc(128 * max(c.columns, 1))
    room.level = <i32*>malloc(4 * places)
    if room.u == NULL or room.natural == NULL or room.phase == NULL or room.a == NULL:
        return -1
    return -1 if room.octave == NULL or room.decision == NULL or room.above == NULL or room.level == NULL else 0


cdef void close_room(LevelRoom* room) noexcept nogil:
    free(room.u)
    free(room.natural)
    free(room.phase)
    free(room.a)
    free(room.octave)
    free(room.decision)
    free(room.above)
    free(room.level)


cdef LevelCode code_of(tuple code) except *:
    """(states, labels, dithered, context, columns)"""
    cdef LevelCode c
    c.states, c.labels, c.dithered, c.context, c.columns = code
    if c.states not in (1, 4, 8, 16, 32, 64, 256) or not 0 <= c.dithered <= 6 or not 0 <= c.context <= 7 or \
            not 0 <= c.columns <= <int>LEVEL_COLUMNS:
        raise ValueError(f"{code} is not a code")
    if level_models(&c) > 256:
        raise ValueError(f"{code} has {level_models(&c)} models, more than 256")
    return c


# A lane's run of coordinates where there are contexts: from `start` on, `length` of them.
ctypedef struct Run:
    i64 start, length


cdef Run run_of(i64 n, int lanes, int lane) noexcept nogil:
    cdef Run r
    r.start = level_place(lane, n, lanes, 1)
    r.length = n // lanes + (lane < n % lanes)
    return r


cdef void draw_dither(const LevelCode* c, LevelRoom* room, i64 first, i64 n, u64 key) noexcept nogil:
    cdef int lanes = room.lanes, lane
    cdef i64 t
    cdef Run r
    level_dither(<u64>first, n, key, c.states, room.u, room.natural)
    if not c.context:
        memcpy(room.phase, room.natural, n)
        return
    for lane in range(lanes):
        r = run_of(n, lanes, lane)
        for t in range(r.length):
            room.phase[t * lanes + lane] = room.natural[r.start + t]


cdef bint is_packed(const LevelCode* c) noexcept nogil:
    """Do steps of fewer lanes follow each other without a gap? Each level is then its coordinate's alone."""
    return c.states == 1 and not c.context


cdef void scale_chunk(const LevelCode* c, const real* x, i64 n, f64 inverse, LevelRoom* room) noexcept nogil:
    """a[step][lane] = x / step + u, TRELLIS_FAR where |x| / step is; zeros where there is no coordinate. A row has 32
    lanes, or `lanes` where it is_packed."""
    cdef bint packed = is_packed(c)
    cdef int lanes = room.lanes, lane
    cdef i64 p, t, block, steps = ceil_div(n, lanes)
    cdef f32* to
    cdef Run r
    if packed:
        memset(room.a + n, 0, 4 * (steps * lanes - n))
    elif lanes < ENTROPY_LANES or n % ENTROPY_LANES:
        memset(room.a, 0, 4 * ENTROPY_LANES * steps)
    if c.context:
        for block in range(0, steps, 16):       # a few lines of memory at a time
            for lane in range(lanes):
                r = run_of(n, lanes, lane)
                for t in range(block, min(block + 16, r.length)):
                    p = r.start + t
                    room.a[t * ENTROPY_LANES + lane] = level_scaled(x[p] * inverse, room.u[p] if c.dithered else 0)
    elif lanes < ENTROPY_LANES and not packed:
        for t in range(steps):
            to = room.a + t * ENTROPY_LANES - t * lanes
            for p in range(t * lanes, min(n, (t + 1) * lanes)):
                to[p] = level_scaled(x[p] * inverse, room.u[p] if c.dithered else 0)
    elif c.dithered:
        for p in range(n):
            room.a[p] = level_scaled(x[p] * inverse, room.u[p])
    else:
        for p in range(n):
            room.a[p] = level_scaled(x[p] * inverse, 0)


cdef void guess_octaves(const LevelCode* c, i64 steps, LevelRoom* room) noexcept nogil:
    """The contexts as they would be if every level were the nearest integer."""
    cdef LevelPast past
    cdef u32 octave[32]
    cdef u32 magnitude[32]
    cdef const f32* a
    cdef i64 t
    cdef int l
    level_forget(&past, room.above, c.columns)
    for t in range(steps):
        level_octaves(&past, t, c.columns, ENTROPY_LANES, octave)
        a = room.a + t * ENTROPY_LANES
        for l in range(ENTROPY_LANES):
            room.octave[t * ENTROPY_LANES + l] = <u8>octave[l]
            magnitude[l] = level_guess(a[l])
        level_remember(&past, t, c.columns, ENTROPY_LANES, magnitude)


cdef void uniform_chunk(bint dithered, i64 places, f32 dead, f32 rounding, LevelRoom* room) noexcept nogil:
    cdef i64 p
    for p in range(places):
        room.level[p] = level_uniform(room.a[p], dead, rounding, dithered)


cdef void quantize_chunk(const LevelCode* c, const real* x, i64 n, f64 inverse, const TrellisCost* cost, f32 dead,
                         f32 rounding, LevelRoom* room, f64* moment, i64 groups) noexcept nogil:
    """room.level: w of n coordinates in the order of coding; moment: sums of their groups (level.h), or NULL."""
    cdef int lanes = room.lanes, stride = lanes if is_packed(c) else ENTROPY_LANES
    cdef i64 p, t, steps = ceil_div(n, lanes)
    cdef bint follow = c.context and not c.dithered
    cdef i32* at
    scale_chunk(c, x, n, inverse, room)
    if c.states == 1:
        uniform_chunk(c.dithered != 0, steps * stride, dead, rounding, room)
    else:
        if follow:
            guess_octaves(c, steps, room)
        trellis_search_of(room.a, room.octave if follow else NULL, steps, NULL if c.dithered else cost, room.decision,
                          room.level, c.labels, c.states)
    if moment != NULL:
        level_moments(room.a, room.level, steps, stride, lanes, n, c.labels, moment, groups)
    if lanes < stride:
        for t in range(steps):
            at = room.level + t * ENTROPY_LANES - t * lanes
            for p in range(t * lanes, min(n, (t + 1) * lanes)):
                room.level[p] = at[p]


cdef enum:
    FEW = 32        # models that are counted in four tables
    GROUP = 2048    # coordinates of whole steps that level_moments adds at once
    SPAN = 4096     # coordinates in the nearest cache; a multiple of those


cdef void count_symbols(const u8* symbol, const u8* model, i64 n, int models, u32* count, u32* other) noexcept nogil:
    """count[model][symbol] += their numbers; with few models in four tables, as equal symbols in a row would wait for
    each other."""
    cdef i64 p
    cdef int size = 256 * models
    if level_count_few(symbol, model, n, models, count):
        return
    if models == 1:
        for p in range(0, n - 3, 4):
            count[symbol[p]] += 1
            other[symbol[p + 1]] += 1
            other[256 + symbol[p + 2]] += 1
            other[512 + symbol[p + 3]] += 1
        for p in range(n // 4 * 4, n):
            count[symbol[p]] += 1
    elif models <= FEW:
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


cdef int escape_bits(i32 size) noexcept nogil:
    """Bits of write_escape for a level."""
    cdef int e = width_of(<u32>size) - 1
    return 2 + 2 * width_of(<u32>(e + 2)) - 1 + max(e, 0)


cdef int kept(const LevelCode* c, const u32* count, f64 scale) noexcept nogil:
    """The largest bucket not to be escaped, by the bits of a vector that is `scale` times as long as the one counted.

    A symbol of the model takes 1/4096 of it at least, log2(e) / 4096 bits of everyone else, and about 4 bits to list.
    With contexts all are kept, as what follows an escape depends on its being one.
    """
    cdef f64 n = 0, share, gain, best = 0
    cdef int bucket, sign, s, keep = LEVEL_BUCKETS
    cdef i32 size
    if c.context:
        return keep
    for s in range(256):
        n += count[s]
    share = n * scale * 3.522e-4 + 4
    gain = -2 * share if count[0] + count[1] == 0 else 0
    for bucket in range(LEVEL_BUCKETS - 1, 0, -1):
        for sign in range(2):
            s = 128 - bucket if sign else 128 + bucket
            if count[s]:
                size = <i32>level_bucket_first(bucket, level_bucket_bits(bucket))
                gain += share - count[s] * scale * (escape_bits(size) - <int>level_bucket_bits(bucket))
        if gain > best:
            best = gain
            keep = bucket - 1
        elif gain < best - 100 * share:
            break
    return keep


cdef bint all_kept(const u8* symbol, i64 n, int keep) noexcept nogil:
    """Are these within 128 +- keep?"""
    cdef i64 i
    cdef u32 out = 0
    for i in range(n):
        out |= <u8>(symbol[i] - (128 - keep)) > 2 * keep
    return not out


cdef f64 dither_at(const LevelCode* c, i64 i, u64 key) noexcept nogil:
    cdef f32 u[128]
    cdef u8 phase[128]
    level_dither(<u64>(i // 128 * 128), 128, key, c.states, u, phase)
    return u[i % 128]


cdef i64 settle_escapes(Writer* out, const LevelCode* c, const real* x, i64 first, i64 n, int lanes, f64 inverse,
                        u64 key, const u8* keep, int least, u8* symbol, const u8* model, u16* extra,
                        u32* count) noexcept nogil:
    """Writes what is escaped already and what is larger than its model keeps; returns how many they are."""
    cdef i64 block, p, at, escapes = 0
    cdef int bucket, bits, m
    cdef i32 size
    cdef f64 v
    for block in range(0, n, 64):
        if all_kept(symbol + block, min(64, n - block), least):
            continue
        for p in range(block, min(block + 64, n)):
            m = model[p] if model != NULL else 0
            bucket = symbol[p] - 128 if symbol[p] > 127 else 128 - symbol[p]
            if symbol[p] < 2:
                at = first + level_place(p, n, lanes, c.context)
                v = x[at] * inverse
                if c.dithered:
                    v += dither_at(c, at, key)
                write_far(out, v)
            elif bucket > keep[m]:
                bits = level_bucket_bits(bucket)
                size = <i32>level_bucket_first(bucket, bits) | (extra[p] & 0xfff if extra != NULL else 0)
                write_escape(out, size if symbol[p] > 127 else -size, False)
                count[256 * m + symbol[p]] -= 1
                symbol[p] = size & 1
                count[256 * m + symbol[p]] += 1
                if extra != NULL:
                    extra[p] = 0
            else:
                continue
            escapes += 1
    return escapes


def level_encode_symbols(x, tuple code, f64 inverse, u64 key, costs, f32 dead, f32 rounding, f64 scale, symbol, model,
                         extra, counts, moments) -> tuple:
    """Quantises x / step and tells its levels by symbols; `code` is (states, labels, dithered, context, columns).

    inverse = 1 / step. costs: float32, a TrellisCost for each octave or one, used where states > 1; dead
    and rounding where states = 1 and nothing is dithered. x stands for a vector `scale` times as long when it is
    decided what is rare. Fills symbol (u8), model (u8, or None for one model), extra (u16, or None where magnitudes are
    below LEVEL_NARROW), counts (u32, models x 256), and moments (float64, 7, or None): sum of (x / step - j)^2, then
    for |j| = 1, 2 and more their number and the sum of (x / step - j) sign(j). Returns the number of escapes, their
    bytes and how many of them are each chunk's.
    """
    cdef View v = view(x, b"fd")
    cdef View w = view(costs, b"f")
    cdef View s = view(symbol, b"B", True)
    cdef View m = view(model, b"B", True) if model is not None else None
    cdef View e = view(extra, b"H", True) if extra is not None else None
    cdef View k = view(counts, b"I", True)
    cdef View o = view(moments, b"d", True) if moments is not None else None
    cdef LevelCode c = code_of(code)
    cdef int models = level_models(&c), least = LEVEL_BUCKETS
    cdef LevelRoom room
    cdef i64 chunks = ceil_div(v.n, ENTROPY_CHUNK), first, n, escapes = 0, start, i, p, at, span, size, groups = 0
    cdef const TrellisCost* cost = <const TrellisCost*>w.f32s()
    cdef u8* sp = s.u8s()
    cdef u8* mp = m.u8s() if m is not None else NULL
    cdef u16* ep = <u16*>e.buffer.buf if e is not None else NULL
    cdef u32* count = k.u32s()
    cdef f64* moment = o.f64s() if o is not None else NULL
    cdef f64* to
    cdef u8 keep[256]
    cdef u32* other
    cdef u32* sizes
    cdef f64* sums
    cdef Writer out
    cdef bint failed
    need(w, 6 * (<i64>LEVEL_CONTEXTS if c.context else 1), "costs")
    need(s, v.n, "symbol")
    need(k, 256 * models, "counts")
    if m is not None or models > 1:
        need(m, v.n, "model")
    if e is not None:
        need(e, v.n, "extra")
    if o is not None:
        need(o, 7, "moments")
    memset(&out, 0, sizeof(out))
    other = <u32*>malloc(3 * 1024 * FEW)
    sizes = <u32*>malloc(4 * (chunks + 1))
    if moment != NULL and chunks:
        n = v.n - (chunks - 1) * ENTROPY_CHUNK
        groups = (chunks - 1) * (ENTROPY_CHUNK // GROUP) + \
            ceil_div(ceil_div(n, level_lanes(n, scale)), LEVEL_MOMENT_STEPS)
    sums = <f64*>malloc(8 * LEVEL_MOMENTS * (groups + 1))
    with nogil:
        failed = open_room(&room, &c, v.n, True) != 0 or other == NULL or sizes == NULL or sums == NULL
        if not failed:
            memset(count, 0, 1024 * models)
            memset(other, 0, 3 * 1024 * FEW)
        for i in range(chunks if not failed else 0):
            first = i * ENTROPY_CHUNK
            n = min(<i64>ENTROPY_CHUNK, v.n - first)
            room.lanes = level_lanes(n, scale)
            # where nothing follows from what was before, a piece at a time stays in the nearest cache
            span = n if c.states > 1 or c.context or room.lanes < ENTROPY_LANES else SPAN
            at = first
            while at < first + n:
                size = min(span, first + n - at)
                to = sums + at // GROUP if moment != NULL else NULL
                if c.dithered:
                    draw_dither(&c, &room, at, size, key)
                if v.kind == c"f":
                    quantize_chunk(&c, v.f32s() + at, size, inverse, cost, dead, rounding, &room, to, groups)
                else:
                    quantize_chunk(&c, v.f64s() + at, size, inverse, cost, dead, rounding, &room, to, groups)
                level_symbols_of(&c, room.level, room.phase, size, room.lanes, room.above, sp + at,
                                 mp + at if mp != NULL else NULL, ep + at if ep != NULL else NULL)
                count_symbols(sp + at, mp + at if mp != NULL else NULL, size, models, count, other)
                at += size
        for i in range(LEVEL_MOMENTS if moment != NULL and not failed else 0):
            moment[i] = sum_terms[f64](sums + i * groups, groups, SELF)
        if not failed and models <= FEW:
            for p in range(256 * models):
                count[p] += other[p] + other[256 * models + p] + other[512 * models + p]
        for i in range(models if not failed else 0):
            keep[i] = <u8>kept(&c, count + 256 * i, scale)
            least = min(least, <int>keep[i])
        for i in range(chunks if not failed else 0):
            first = i * ENTROPY_CHUNK
            n = min(<i64>ENTROPY_CHUNK, v.n - first)
            start = out.used
            room.lanes = level_lanes(n, scale)
            if v.kind == c"f":
                escapes += settle_escapes(&out, &c, v.f32s(), first, n, room.lanes, inverse, key, keep, least,
                                          sp + first, mp + first if mp != NULL else NULL,
                                          ep + first if ep != NULL else NULL, count)
            else:
                escapes += settle_escapes(&out, &c, v.f64s(), first, n, room.lanes, inverse, key, keep, least,
                                          sp + first, mp + first if mp != NULL else NULL,
                                          ep + first if ep != NULL else NULL, count)
            write_end(&out)
            sizes[i] = <u32>(out.used - start)
        failed |= out.failed
        close_room(&room)
    try:
        if failed:
            raise MemoryError()
        return escapes, out.data[:out.used], (<u8*>sizes)[:4 * chunks]
    finally:
        free(other)
        free(sizes)
        free(sums)
        free(out.data)


def level_keep(tuple code, counts, f64 scale) -> bytes:
    """Of every model the largest bucket that level_encode_symbols does not escape, given what it counted at first."""
    cdef View k = view(counts, b"I")
    cdef LevelCode c = code_of(code)
    cdef u8 keep[256]
    cdef int models = level_models(&c), i
    need(k, 256 * models, "counts")
    for i in range(models):
        keep[i] = <u8>kept(&c, k.u32s() + 256 * i, scale)
    return keep[:models]


def level_escape_bytes(listed, i64 n) -> tuple:
    """The bytes of escapes among n levels and how many of them are each chunk's, as level_encode_symbols returns them.

    listed: u64, two of each in the order of coding: twice its place, plus 1 where it is far, and the float64 to tell.
    """
    cdef View v = view(listed, b"Q")
    cdef const u64* pair = <const u64*>v.buffer.buf
    cdef i64 chunks = ceil_div(n, ENTROPY_CHUNK), i, at = 0, start
    cdef u32* sizes = <u32*>malloc(4 * (chunks + 1))
    cdef Writer out
    memset(&out, 0, sizeof(out))
    out.failed = sizes == NULL
    with nogil:
        for i in range(chunks if not out.failed else 0):
            start = out.used
            while at < v.n // 2 and <i64>(pair[2 * at] >> 1) < (i + 1) * ENTROPY_CHUNK:
                if pair[2 * at] & 1:
                    write_far(&out, f64_bits(pair[2 * at + 1]))
                else:
                    write_escape(&out, f64_bits(pair[2 * at + 1]), False)
                at += 1
            write_end(&out)
            sizes[i] = <u32>(out.used - start)
    try:
        if out.failed:
            raise MemoryError()
        return out.data[:out.used], (<u8*>sizes)[:4 * chunks]
    finally:
        free(sizes)
        free(out.data)


cdef void write_far(Writer* w, f64 value) noexcept nogil:
    """The nearest whole step."""
    write_escape(w, floor(value + 0.5) if fabs(value) < 4503599627370496.0 else value, True)


cdef void write_escape(Writer* w, f64 value, bint far) noexcept nogil:
    """A level, or a far coordinate in whole steps: far?, sign, then the exponent in Elias' gamma code and 23 (52 where
    needed) bits below it."""
    cdef f64 v = fabs(value)
    cdef u64 b = bits_f64(v)
    cdef int e = <int>(b >> 52) - 1023 if v >= 1 else -1, n = width_of(<u32>(e + 2)), below
    write_bits(w, far, 1)
    write_bits(w, value < 0, 1)
    write_bits(w, 0, n - 1)
    write_bits(w, 1, 1)
    write_bits(w, <u64>(e + 2) & ((<u64>1 << (n - 1)) - 1), n - 1)
    below = min(max(e, 0), 52)
    b = (b & <u64>0xfffffffffffff) >> (52 - below)
    write_bits(w, <u32>b, min(below, 32))
    write_bits(w, b >> 32, max(below - 32, 0))


cdef int coarse_model(const LevelCode* fine, const LevelCode* coarse, int model) noexcept nogil:
    """Which model of a coarser code a model is part of."""
    cdef int each = level_models_each(fine), octave = model // each, inner = model % each
    if fine.context:
        octave >>= coarse.context - fine.context
    if fine.dithered:
        inner >>= coarse.dithered - fine.dithered
    return octave * level_models_each(coarse) + inner


cdef void coarse_counts(const LevelCode* fine, const LevelCode* coarse, const u32* count, u32* out) noexcept nogil:
    cdef int i, j, to
    memset(out, 0, 1024 * level_models(coarse))
    for i in range(level_models(fine)):
        if is_empty(count + 256 * i):
            continue
        to = coarse_model(fine, coarse, i)
        for j in range(256):
            out[256 * to + j] += count[256 * i + j]


def level_bits(tuple code, counts, f64 scale) -> tuple:
    """What symbols of these counts cost: their bits with their low bits, the models' bits, and the code, with models as
    coarse as is best for a vector `scale` times as long."""
    cdef View k = view(counts, b"I")
    cdef LevelCode c = code_of(code)
    cdef LevelCode best = c
    cdef LevelCode next
    cdef int models = level_models(&c), i, which
    cdef u32* coarse = <u32*>malloc(1024 * models)
    cdef f64 bits, least, low = 0
    cdef i64 header, shortest = 0
    cdef bint better
    need(k, 256 * models, "counts")
    if coarse == NULL:
        raise MemoryError()
    with nogil:
        least = symbol_bits(k.u32s(), models, &shortest)
        for which in range(2):          # contexts first, then phases
            better = True
            while better and shortest >= 0:
                next = best
                if which == 0:
                    next.context += 1
                else:
                    next.dithered += 1
                if (not c.context or next.context > 7) if which == 0 else (not c.dithered or next.dithered > 6):
                    break
                coarse_counts(&c, &next, k.u32s(), coarse)
                bits = symbol_bits(coarse, level_models(&next), &header)
                better = bits * scale + header < least * scale + shortest
                if better or header < 0:
                    least = bits
                    shortest = header
                    best = next
        for i in range(256 * models):
            if i % 256 == 0 and is_empty(k.u32s() + i):
                continue
            if k.u32s()[i] and i % 256 > 1:
                low += <f64>k.u32s()[i] * level_bucket_bits(i % 256 - 128 if i % 256 > 127 else 128 - i % 256)
    free(coarse)
    if shortest < 0:
        raise MemoryError()
    return least + low, shortest, (code[0], code[1], best.dithered, best.context, code[4])


cdef int write_models(const LevelCode* fine, const LevelCode* coarse, const u32* counts, Writer* w, u32* codes,
                      bint* choice, bint* escaped) noexcept nogil:
    """Writes the models of `coarse` and makes the codes of the fine ones, models x 256. choice: is there a symbol that
    takes words? escaped: is there an escape? -1: no memory."""
    cdef int models = level_models(coarse), i, j
    cdef u32* count = <u32*>malloc(1024 * level_models(fine))
    cdef u32* table = <u32*>malloc(1024 * models)
    cdef u32 f[256]
    cdef u32 total
    choice[0] = False
    escaped[0] = False
    w.failed |= count == NULL or table == NULL
    if not w.failed:
        coarse_counts(fine, coarse, counts, count)
    for i in range(models if not w.failed else 0):
        frequencies(count + 256 * i, f)
        write_model(w, f)
        total = 0
        for j in range(256):
            table[256 * i + j] = entropy_code(f[j], total)
            total += f[j]
        choice[0] |= needs_words(f)
        escaped[0] |= f[0] + f[1] != 0
    write_end(w)
    for i in range(level_models(fine) if not w.failed else 0):
        memcpy(codes + 256 * i, table + 256 * coarse_model(fine, coarse, i), 1024)
    free(count)
    free(table)
    return -1 if w.failed else 0


cdef int need_coarser(tuple code, tuple sent) except -1:
    cdef LevelCode c = code_of(code)
    cdef LevelCode coarse = code_of(sent)
    if coarse.context < c.context or coarse.dithered < c.dithered or bool(coarse.context) != bool(c.context) or \
            bool(coarse.dithered) != bool(c.dithered) or (coarse.states > 1) != (c.states > 1):
        raise ValueError(f"{sent} is not a coarser code than {code}")
    return 0


def level_models_encode(tuple code, tuple sent, counts) -> tuple:
    """How a payload of level_encode begins, the codes of its models x 256 symbols (u32), and whether words and escapes
    follow."""
    cdef View k = view(counts, b"I")
    cdef LevelCode c = code_of(code)
    cdef LevelCode coarse = code_of(sent)
    cdef i64 bytes_of = 1024 * level_models(&c)
    cdef u32* codes = <u32*>malloc(bytes_of)
    cdef bint choice = False, escaped = False
    cdef Writer w
    memset(&w, 0, sizeof(w))
    w.failed = codes == NULL
    try:
        need(k, 256 * level_models(&c), "counts")
        need_coarser(code, sent)
        if write_models(&c, &coarse, k.u32s(), &w, codes, &choice, &escaped) != 0:
            raise MemoryError()
        return w.data[:w.used], (<u8*>codes)[:bytes_of], bool(choice), bool(escaped)
    finally:
        free(codes)
        free(w.data)


def level_encode(tuple code, tuple sent, symbol, model, extra, counts, bytes escapes, bytes sizes) -> bytearray:
    """Models, chunks and escapes of what level_encode_symbols made with `code`, decoded with the coarser `sent`."""
    cdef View s = view(symbol, b"B")
    cdef View m = view(model, b"B") if model is not None else None
    cdef View e = view(extra, b"H") if extra is not None else None
    cdef View k = view(counts, b"I")
    cdef LevelCode c = code_of(code)
    cdef LevelCode coarse = code_of(sent)
    cdef int models = level_models(&c), i, head_bytes
    cdef i64 n = s.n, chunks = ceil_div(n, ENTROPY_CHUNK), first, size, at
    cdef u32* codes = <u32*>malloc(1024 * models)
    cdef u16* words = <u16*>malloc(2 * (2 * min(n, <i64>ENTROPY_CHUNK) + 64))
    cdef u16* end
    cdef u16* begin
    cdef u8 head[ENTROPY_HEAD]
    cdef const u8* escape_bytes = escapes
    cdef const u8* size_bytes = sizes
    cdef i64 escape_count = len(escapes)
    cdef EntropySource source
    cdef Writer w
    cdef u32 entry, steps
    cdef bint choice = False, escaped = False
    memset(&w, 0, sizeof(w))
    w.failed = codes == NULL or words == NULL
    try:
        if models > 1:
            need(m, n, "model")
        if e is not None:
            need(e, n, "extra")
        if len(sizes) != 4 * chunks:
            raise ValueError(f"{len(sizes)} bytes of sizes for {chunks} chunks")
        need(k, 256 * models, "counts")
        need_coarser(code, sent)
        with nogil:
            if not w.failed:
                write_models(&c, &coarse, k.u32s(), &w, codes, &choice, &escaped)
            at = w.used
            reserve(&w, 4 * chunks)
            if choice and not w.failed:
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
                    source.table = codes
                    end = words + 2 * size + 32
                    begin = entropy_encode_chunk(&source, size, end, head, &head_bytes, &steps)
                    write_bytes(&w, head, head_bytes)
                    write_bytes(&w, begin, 2 * (end - begin))
                    if w.failed:
                        break
                    entry = entropy_entry(<u32>(end - begin), <u32>head_bytes, steps)
                    memcpy(w.data + at + 4 * i, &entry, 4)
            if escaped:
                write_bytes(&w, escape_bytes, escape_count)
        if w.failed:
            raise MemoryError()
        return bytearray(w.data[:w.used])
    finally:
        free(codes)
        free(words)
        free(w.data)


cdef bint needs_words(const u32* f) noexcept nogil:
    """False where a model has one symbol, and that without low bits: its coder never moves."""
    cdef int i
    for i in range(256):
        if 0 < f[i] < <u32>ENTROPY_SLOTS:
            return True
        if f[i] > 0 and i > 1 and level_is_more(i):
            return True
    return False


cdef inline void put_value(real* out, i64 i, f64 value, bint add, real weight) noexcept nogil:
    """The nearest finite value, stored or added."""
    cdef real v
    if real is f32:
        v = level_finite_f32(value)
    else:
        v = level_finite_f64(value)
    if add:
        out[i] += weight * v
    else:
        out[i] = v


# How levels become numbers: step (j +- offset_|j|), or step (j - u) where dithered.
ctypedef struct LevelScale:
    f64 step, near, mid, rest, weight
    bint add


cdef void level_values(const LevelCode* c, const LevelRoom* room, i64 n, const LevelScale* to,
                       real* out) noexcept nogil:
    """The numbers at the places of the levels; where one is escaped, 0."""
    cdef int lanes = room.lanes, lane
    cdef i64 p, t
    cdef f64 v, step = to.step, near = to.near, mid = to.mid, rest = to.rest
    cdef real w = <real>to.weight
    cdef bint add = to.add
    cdef i32 j
    cdef Run r
    if not c.context and not c.dithered and not add and fabs(step) < 1e28:  # no number leaves float32
        for p in range(n):
            out[p] = <real>(step * level_moved(room.level[p], near, mid, rest))
        return
    for lane in range(lanes if c.context else 1):
        if c.context:
            r = run_of(n, lanes, lane)
        else:
            r.start = 0
            r.length = n
        for t in range(r.length):
            j = room.level[t * lanes + lane] if c.context else room.level[t]
            if j < LEVEL_ESCAPED + 4:
                v = 0
            elif c.dithered:
                v = step * level_undithered(j, room.u[r.start + t])
            else:
                v = step * level_moved(j, near, mid, rest)
            put_value(out, r.start + t, v, add, w)


cdef int patch_escapes(const LevelCode* c, const LevelRoom* room, i64 n, const LevelScale* to, EntropyBits* r,
                       real* out) noexcept nogil:
    cdef int lanes = room.lanes, far = 0
    cdef i64 p, at
    cdef i32 j
    cdef u32 q
    cdef f64 v
    for p in range(n):
        if room.level[p] >= LEVEL_ESCAPED + 4:
            continue
        at = level_place(p, n, lanes, c.context)
        v = level_read_escape(r, &far)
        if r.at > r.stop + 8:
            return -1
        if not far:
            q = <u32>room.level[p] & 1
            j = level_from(<i32>v + (level_wrap(room.phase[p], q, c.states) if c.dithered else 0), q, c.labels)
            v = j if c.dithered else level_moved(j, to.near, to.mid, to.rest)
        if c.dithered:
            v -= room.u[at]
        put_value(out, at, v * to.step, to.add, <real>to.weight)
    return 0


cdef enum LevelFault:
    MODELS_DAMAGED = 1, TOO_SHORT, CHUNK_DAMAGED, ESCAPES_DAMAGED, TOO_LONG, NO_MEMORY


LEVEL_TOO_SHORT = <int>TOO_SHORT
LEVEL_TOO_LONG = <int>TOO_LONG


def level_fault(int fault) -> None:
    """Raises what is wrong with coded levels; 0: nothing."""
    if fault == NO_MEMORY:
        raise MemoryError()
    if fault:
        raise ValueError("coded levels: " + ("the models are damaged", "truncated", "a chunk does not decode",
                                             "the escapes do not decode", "longer than coded")[fault - 1])


# What a payload begins with: codes of models x 256 symbols; do words follow, and escapes? Is there more to a symbol?
ctypedef struct LevelModels:
    u32* codes
    bint choice, escaped, more


cdef int read_models(EntropyBits* r, int models, LevelModels* to) noexcept nogil:
    cdef u32 f[256]
    cdef u32 start
    cdef int i, j
    to.choice = to.escaped = to.more = False
    for i in range(models):
        if read_model(r, f) != 0:
            return MODELS_DAMAGED
        to.choice |= needs_words(f)
        to.escaped |= f[0] + f[1] != 0
        start = 0
        for j in range(256):
            to.codes[256 * i + j] = entropy_code(f[j], start)
            start += f[j]
            if f[j] and level_is_more(j):
                to.more = True
        if start == 0:      # never asked for by an encoder: anything safe
            to.codes[256 * i + 128] = entropy_code(ENTROPY_SLOTS, 0)
    return TOO_SHORT if r.at > r.stop else 0


def level_models_decode(head, tuple code) -> tuple:
    """Of a payload that begins with `head`: the codes of models x 256 symbols (u32), the bytes read, whether words
    and escapes follow, and whether there is more to a symbol than itself (level.h)."""
    cdef View h = view(head, b"B")
    cdef LevelCode c = code_of(code)
    cdef i64 bytes_of = 1024 * level_models(&c)
    cdef LevelModels m
    cdef EntropyBits r = entropy_bits_at(h.u8s(), 0, h.n)
    m.codes = <u32*>malloc(bytes_of)
    try:
        level_fault(NO_MEMORY if m.codes == NULL else read_models(&r, level_models(&c), &m))
        return (<u8*>m.codes)[:bytes_of], r.at, bool(m.choice), bool(m.escaped), bool(m.more)
    finally:
        free(m.codes)


cdef int decode_levels(const LevelCode* c, const u8* data, i64 size, i64 n, u64 key, const LevelScale* to,
                       real* out) noexcept nogil:
    """0, or a LevelFault."""
    cdef int models = level_models(c), i, fault = 0
    cdef u32* table = <u32*>malloc(4 * <i64>ENTROPY_SLOTS * models)
    cdef LevelModels coded
    cdef LevelRoom room
    cdef EntropyBits r = entropy_bits_at(data, 0, size)
    cdef i64 chunks = ceil_div(n, ENTROPY_CHUNK), m, entries, escapes, here, listed, k
    cdef u32 entry, code
    cdef int slot
    memset(&coded, 0, sizeof(coded))
    coded.codes = <u32*>malloc(1024 * models)
    if open_room(&room, c, n, False) != 0 or table == NULL or coded.codes == NULL:
        fault = NO_MEMORY
    else:
        fault = read_models(&r, models, &coded)
    for i in range(256 * models if not fault else 0):
        code = coded.codes[i]
        for slot in range(<int>(code & 0xffff)):
            table[ENTROPY_SLOTS * (i // 256) + (code >> 16) + slot] = \
                entropy_slot(<u32>i % 256, code & 0xffff, <u32>slot)
    entries = r.at
    escapes = entries + 4 * chunks * coded.choice
    here = escapes + 4 * chunks * coded.escaped
    if here > size and not fault:
        fault = TOO_SHORT
    # the escapes stand behind all chunks
    listed = here
    if coded.choice and coded.escaped and not fault:
        for k in range(chunks):
            memcpy(&entry, data + entries + 4 * k, 4)
            if entropy_chunk_bytes(entry) > size - listed:
                fault = TOO_SHORT
                break
            listed += entropy_chunk_bytes(entry)
    k = 0
    while k < chunks and not fault:
        m = min(<i64>ENTROPY_CHUNK, n - k * ENTROPY_CHUNK)
        room.lanes = entropy_lanes(m)
        if c.dithered:
            draw_dither(c, &room, k * ENTROPY_CHUNK, m, key)
        if coded.choice:
            memcpy(&entry, data + entries + 4 * k, 4)
            if level_decode_of(data + here, size - here, entry, m, c, table, room.phase, room.above,
                               room.level) != ENTROPY_FINE:
                fault = CHUNK_DAMAGED
                break
            here += entropy_chunk_bytes(entry)
        else:
            only_levels(c, table, m, &room)
        level_values(c, &room, m, to, out + k * ENTROPY_CHUNK)
        if coded.escaped:
            memcpy(&entry, data + escapes + 4 * k, 4)
            if entry > size - listed:
                fault = TOO_SHORT
                break
            r = entropy_bits_at(data, listed, listed + entry)
            if patch_escapes(c, &room, m, to, &r, out + k * ENTROPY_CHUNK) != 0 or r.at > r.stop:
                fault = ESCAPES_DAMAGED
                break
            listed += entry
        k += 1
    if not fault and (listed if coded.escaped else here) != size:
        fault = TOO_LONG
    close_room(&room)
    free(table)
    free(coded.codes)
    return fault


cdef void only_levels(const LevelCode* c, const u32* table, i64 n, LevelRoom* room) noexcept nogil:
    """Every model has one symbol: no words were sent, and a coder of no words says which."""
    cdef u8 nothing[ENTROPY_HEAD]
    cdef int lanes = entropy_lanes(n)
    memset(nothing, 0, sizeof(nothing))
    level_decode_of(nothing, ENTROPY_HEAD, entropy_entry(0, entropy_head_bytes(lanes, 16 * lanes), 0), n, c, table,
                    room.phase, room.above, room.level)


def level_decode(data, tuple code, i64 n, u64 key, f64 step, offsets, out, f64 weight, bint add) -> None:
    """out = or += weight * the vector that level_encode's bytes stand for; ValueError where they are not."""
    cdef View d = view(data, b"B")
    cdef View o = view(out, b"fd", True)
    cdef LevelCode c = code_of(code)
    cdef LevelScale to
    cdef int fault
    to.step = step
    to.near, to.mid, to.rest = offsets
    to.weight = weight
    to.add = add
    need(o, n, "out")
    with nogil:
        if o.kind == c"f":
            fault = decode_levels(&c, d.u8s(), d.n, n, key, &to, o.f32s())
        else:
            fault = decode_levels(&c, d.u8s(), d.n, n, key, &to, o.f64s())
    level_fault(fault)
