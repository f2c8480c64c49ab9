cdef extern from "kashin.h" nogil:
    enum:
        KASHIN_ATTEMPTS
        KASHIN_SMALLEST
        KASHIN_LARGEST
    u32 kashin_draw(i64, i64, i64, u32)
    i64 floor_log2(f64)
    f32 kashin_shift_f32(f32, i64)
    f64 kashin_shift_f64(f64, i64)
    u32 kashin_word(f64, i64, i64)
    f64 kashin_word_level(u32)
    i64 kashin_word_exponent(u32)
    i64 kashin_word_attempt(u32)
    bint kashin_word_valid(u32)
    f32 kashin_saturate_f32(f32)
    f64 kashin_saturate_f64(f64)

cdef extern from *:
    """
    #define REAL f32
    #include "kashin_cpu.h"
    #undef REAL
    #define REAL f64
    #include "kashin_cpu.h"
    #undef REAL
    """
    ctypedef struct kashin_frame:
        i64 rows
        i64 coordinates
        i64 steps
        f64 limit
        u32 data[KASHIN_LARGEST // 32]
        u16 row[KASHIN_LARGEST]
    f32 kashin_max_f32(const f32*, i64) nogil
    f64 kashin_max_f64(const f64*, i64) nogil
    i64 kashin_represent_f32(const kashin_frame*, const f32*, f64, f32*, f32*, f32*, u64, u64, f64*) nogil
    i64 kashin_represent_f64(const kashin_frame*, const f64*, f64, f64*, f64*, f64*, u64, u64, f64*) nogil
    void kashin_synthesize_f32(const kashin_frame*, f32*, f32*, i64, u64, u64) nogil
    void kashin_synthesize_f64(const kashin_frame*, f64*, f64*, i64, u64, u64) nogil

# What a frame cannot be: the kernels return the index of the frame, or one of these.
cdef enum:
    KASHIN_DONE = -1
    KASHIN_NONFINITE = -2

cdef struct Workspace:
    void* block
    kashin_frame frame
    f64* x                 # a frame's worth each, of either element type
    f64* a
    f64* e
    f64* v
    f64* stage


cdef int check_frame(i64 rows, i64 coordinates, View data) except -1:
    """A power of two of rows, coordinates on some of them, and a mask with as many bits set."""
    if rows < KASHIN_SMALLEST or rows > KASHIN_LARGEST or rows & (rows - 1) or not 1 <= coordinates <= rows:
        raise ValueError(f"a frame has a power of two in [{KASHIN_SMALLEST}, {KASHIN_LARGEST}] of rows and at most "
                         f"as many coordinates, got {rows} and {coordinates}")
    return need(data, rows // 32, "data")


cdef int check_steps(i64 steps) except -1:
    if steps < 0 or steps > 4096:
        raise ValueError(f"steps must lie in [0, 4096], got {steps}")
    return 0


cdef int check_mask(i64 rows, i64 coordinates, const u32* data) except -1:
    cdef i64 r, bits = 0
    for r in range(rows):
        bits += data[r >> 5] >> (r & 31) & 1
    if bits != coordinates:
        raise ValueError(f"data has {bits} of {rows} bits set for {coordinates} coordinates")
    return 0


cdef int check_run(View x, View a, View words, i64 rows, i64 coordinates, View data) except -1:
    check_frame(rows, coordinates, data)
    check_mask(rows, coordinates, data.u32s())
    if x.kind != a.kind:
        raise TypeError(f"x and a must have one element type, got {chr(x.kind)!r} and {chr(a.kind)!r}")
    need(x, words.n * coordinates, "x")
    return need(a, words.n * rows, "a")


cdef i64 check_layout(View x, View layout, View data, View payload, i64 offset, i32 levels) except -1:
    """Whether the buffers hold what the runs of a layout name; the number of rows of all frames."""
    cdef const u64* plan = <const u64*>layout.buffer.buf
    cdef i64 run, frames = 0, rows = 0, coordinates = 0, masks = 0
    if levels < 2 or levels > 65536:
        raise ValueError(f"levels must lie in [2, 65536], got {levels}")
    for run in range(layout.n // 3):
        check_frame(<i64>plan[3 * run + 1], <i64>plan[3 * run + 2], data)
        if run and plan[3 * run + 1] > plan[3 * run - 2]:
            raise ValueError(f"rows must fall from run to run, got {plan[3 * run + 1]} after {plan[3 * run - 2]}")
        if plan[3 * run] > <u64>x.n:                     # a frame has a coordinate at least
            raise ValueError(f"{plan[3 * run]} frames for a vector of {x.n}")
        need(data, masks + <i64>plan[3 * run + 1] // 32, "data")
        check_mask(<i64>plan[3 * run + 1], <i64>plan[3 * run + 2], data.u32s() + masks)
        masks += <i64>plan[3 * run + 1] // 32
        frames += <i64>plan[3 * run]
        rows += <i64>(plan[3 * run] * plan[3 * run + 1])
        coordinates += <i64>(plan[3 * run] * plan[3 * run + 2])
    need(x, coordinates, "x")
    if offset < packed_bytes(rows, code_width(levels)):
        raise ValueError(f"offset {offset} lies inside the codes")
    if offset > payload.n - 4 * frames:
        raise ValueError(f"payload has {payload.n} bytes, {frames} levels from byte {offset} on are needed")
    return rows


cdef Workspace* workspace() except NULL:
    """Everything a frame needs, aligned to a vector; the caller frees it."""
    cdef Workspace* w = <Workspace*>malloc(sizeof(Workspace))
    cdef void* block = malloc(5 * KASHIN_LARGEST * sizeof(f64) + 64)
    cdef f64* start
    if w == NULL or block == NULL:
        free(w)
        free(block)
        raise MemoryError("no memory for a Kashin frame")
    start = <f64*>((<u64>block + 63) & ~<u64>63)
    w.block = block
    w.x = start
    w.a = start + KASHIN_LARGEST
    w.e = start + 2 * KASHIN_LARGEST
    w.v = start + 3 * KASHIN_LARGEST
    w.stage = start + 4 * KASHIN_LARGEST
    return w


cdef void release(Workspace* w) noexcept nogil:
    free(w.block)
    free(w)


cdef void set_frame(kashin_frame* f, i64 rows, i64 coordinates, const u32* data, f64 limit, i64 steps) noexcept nogil:
    cdef i64 r, j = 0
    f.rows = rows
    f.coordinates = coordinates
    f.limit = limit
    f.steps = steps
    memcpy(f.data, data, rows // 8)
    for r in range(rows):
        if data[r >> 5] >> (r & 31) & 1:
            f.row[j] = <u16>r
            j += 1


cdef i64 solve(Workspace* w, const real* x, u64 offset, u64 key, f64* level, u32* word) noexcept nogil:
    """w.a = a representation of x, in units of 2^floor(log2 max|x|); a zero frame is word 0 and a = 0."""
    cdef kashin_frame* f = &w.frame
    cdef real* y = <real*>w.x
    cdef real* a = <real*>w.a
    cdef f64 largest, norm
    cdef i64 exponent, attempt, i
    if real is f32:
        largest = kashin_max_f32(x, f.coordinates)
    else:
        largest = kashin_max_f64(x, f.coordinates)
    word[0] = 0
    level[0] = 1
    if not largest - largest == 0:
        return KASHIN_NONFINITE
    if largest == 0:
        memset(a, 0, f.rows * sizeof(real))
        return KASHIN_DONE
    exponent = floor_log2(largest)
    for i in range(f.coordinates):
        if real is f32:
            y[i] = kashin_shift_f32(x[i], -exponent)
        else:
            y[i] = kashin_shift_f64(x[i], -exponent)
    norm = sqrt(sum_leaf(y, f.coordinates, SQUARE))
    if real is f32:
        attempt = kashin_represent_f32(f, y, norm, a, <f32*>w.e, <f32*>w.v, offset, key, level)
    else:
        attempt = kashin_represent_f64(f, y, norm, a, <f64*>w.e, <f64*>w.v, offset, key, level)
    if attempt == KASHIN_ATTEMPTS:
        return 0
    word[0] = kashin_word(level[0], exponent, attempt)
    return KASHIN_DONE


cdef inline void synthesize(Workspace* w, real* a, real* x, u32 word, u64 offset, u64 key) noexcept nogil:
    """x = U a, a overwritten."""
    if real is f32:
        kashin_synthesize_f32(&w.frame, a, x, kashin_word_attempt(word), offset, key)
    else:
        kashin_synthesize_f64(&w.frame, a, x, kashin_word_attempt(word), offset, key)


cdef inline void saturate(real* x, i64 n) noexcept nogil:
    cdef i64 i
    for i in range(n):
        x[i] = kashin_saturate_f32(x[i]) if real is f32 else kashin_saturate_f64(x[i])


cdef inline void shift(real* x, i64 n, i64 exponent) noexcept nogil:
    cdef i64 i
    for i in range(n):
        if real is f32:
            x[i] = kashin_shift_f32(x[i], exponent)
        else:
            x[i] = kashin_shift_f64(x[i], exponent)


def kashin_rows(i64 rows, i64 coordinates, data) -> None:
    """Which of the rows of a frame carry coordinates, one bit each, into data (u32, rows / 32): part of the format."""
    cdef View v = view(data, b"I", True)
    cdef u32* bits = v.u32s()
    cdef u16 row[KASHIN_LARGEST]
    cdef i64 j, other
    check_frame(rows, coordinates, v)
    with nogil:
        for j in range(rows):
            row[j] = <u16>j
        for j in range(rows // 32):
            bits[j] = 0
        for j in range(coordinates):
            other = j + kashin_draw(rows, coordinates, j, <u32>(rows - j))
            row[j], row[other] = row[other], row[j]
            bits[row[j] >> 5] |= <u32>1 << (row[j] & 31)


cdef i64 represent_run(Workspace* w, const real* x, real* a, u32* words, i64 frames, u64 key) noexcept nogil:
    cdef i64 rows = w.frame.rows, frame, status
    cdef f64 level
    for frame in range(frames):
        status = solve(w, x + frame * w.frame.coordinates, frame * rows, key, &level, words + frame)
        if status != KASHIN_DONE:
            return status if status < 0 else frame
        memcpy(a + frame * rows, w.a, rows * sizeof(real))
        if words[frame]:
            shift(a + frame * rows, rows, kashin_word_exponent(words[frame]) - floor_log2(level))
    return KASHIN_DONE


def kashin_representation(x, a, words, i64 rows, i64 coordinates, data, double limit, i64 steps, u64 key) -> int:
    """x = U a for len(words) equal frames, one after the other: x (coordinates each) -> a (rows each), words (u32).

    max|a| sqrt(rows) / ||x|| <= limit in every frame. data: from kashin_rows. A word holds the level, rounded
    up, and the attempt. Returns -1; -2 where x is not finite; or the frame for which no attempt succeeded.
    """
    cdef View v = view(x, b"fd"), o = view(a, b"fd", True), s = view(words, b"I", True), d = view(data, b"I")
    cdef Workspace* w
    cdef i64 status
    check_run(v, o, s, rows, coordinates, d)
    check_steps(steps)
    w = workspace()
    with nogil:
        set_frame(&w.frame, rows, coordinates, d.u32s(), limit, steps)
        if v.kind == c"f":
            status = represent_run[f32](w, v.f32s(), o.f32s(), s.u32s(), s.n, key)
        else:
            status = represent_run[f64](w, v.f64s(), o.f64s(), s.u32s(), s.n, key)
        release(w)
    return status


cdef void synthesize_run(Workspace* w, real* a, real* x, const u32* words, i64 frames, u64 key) noexcept nogil:
    cdef i64 rows = w.frame.rows, frame
    for frame in range(frames):
        synthesize(w, a + frame * rows, x + frame * w.frame.coordinates, words[frame], frame * rows, key)


def kashin_synthesis(a, x, words, i64 rows, i64 coordinates, data, u64 key) -> None:
    """x = U a for len(words) equal frames; a is overwritten. Arguments as in kashin_representation."""
    cdef View v = view(a, b"fd", True), o = view(x, b"fd", True), s = view(words, b"I"), d = view(data, b"I")
    cdef Workspace* w
    check_run(o, v, s, rows, coordinates, d)
    w = workspace()
    with nogil:
        set_frame(&w.frame, rows, coordinates, d.u32s(), 0, 0)
        if v.kind == c"f":
            synthesize_run[f32](w, v.f32s(), o.f32s(), s.u32s(), s.n, key)
        else:
            synthesize_run[f64](w, v.f64s(), o.f64s(), s.u32s(), s.n, key)
        release(w)


# A message is frames of falling size, so that blocks of 1024 codes never straddle a larger frame's end: a large
# frame is whole blocks, small ones share a block.

cdef i64 encode_frames(Workspace* w, const real* x, const u64* layout, i64 runs, const u32* data, f64 limit,
                       i64 steps, i32 levels, u64 frame_key, u64 key, u8* codes, u8* words) noexcept nogil:
    cdef dither_bits d = independent_bits(key)
    cdef u32 code[CODE_BUFFER]
    cdef real* stage = <real*>w.stage
    cdef const real* a = <const real*>w.a
    cdef int width = code_width(levels), n
    cdef i64 run, frame, status, i, frames = 0, held = 0, done = 0
    cdef f64 level
    cdef real inv
    cdef u32 word
    for run in range(runs):
        set_frame(&w.frame, <i64>layout[3 * run + 1], <i64>layout[3 * run + 2], data, limit, steps)
        data += w.frame.rows // 32
        for frame in range(<i64>layout[3 * run]):
            status = solve(w, x, <u64>(done + held), frame_key, &level, &word)
            if status != KASHIN_DONE:
                return status if status < 0 else frames
            memcpy(words + 4 * frames, &word, 4)
            frames += 1
            x += w.frame.coordinates
            inv = <real>((levels - 1) / (2 * level))
            for i in range(w.frame.rows):
                stage[held + i] = a[i] * inv
            held += w.frame.rows
            i = 0
            while held - i >= PACK_BLOCK or (i < held and run == runs - 1 and frame == <i64>layout[3 * run] - 1):
                n = <int>min(<i64>PACK_BLOCK, held - i)
                grid_round(stage + i, n, <real>1, levels, DITHER, <u64>done, &d, code)
                pack_codes(code, n, width, codes)
                codes += packed_block_bytes(width)
                done += n
                i += n
            held -= i
    return KASHIN_DONE


def kashin_encode(x, layout, data, double limit, i64 steps, i32 levels, u64 frame_key, u64 key, payload,
                  i64 offset) -> int:
    """Codes of a Kashin representation of x into payload (u8), its levels (4 bytes a frame) at offset.

    layout (u64): frames, rows, coordinates of each run of equal frames, rows falling; data (u32): the
    kashin_rows of each run in turn. Returns as kashin_representation does.
    """
    cdef View v = view(x, b"fd"), r = view(layout, b"Q"), d = view(data, b"I"), o = view(payload, b"B", True)
    cdef const u64* plan = <const u64*>r.buffer.buf
    cdef Workspace* w
    cdef i64 status
    check_layout(v, r, d, o, offset, levels)
    check_steps(steps)
    w = workspace()
    with nogil:
        if v.kind == c"f":
            status = encode_frames[f32](w, v.f32s(), plan, r.n // 3, d.u32s(), limit, steps, levels, frame_key, key,
                                        o.u8s(), o.u8s() + offset)
        else:
            status = encode_frames[f64](w, v.f64s(), plan, r.n // 3, d.u32s(), limit, steps, levels, frame_key, key,
                                        o.u8s(), o.u8s() + offset)
        release(w)
    return status


cdef i64 decode_frames(Workspace* w, const u8* codes, const u8* words, const u64* layout, i64 runs, const u32* data,
                       i32 levels, u64 frame_key, i64 total, real* x) noexcept nogil:
    cdef u32 code[KASHIN_LARGEST + CODE_BUFFER]
    cdef int width = code_width(levels), n
    cdef i64 run, _frame, rows, frames = 0, held = 0, used = 0, done = 0
    cdef u32 word
    for run in range(runs):
        set_frame(&w.frame, <i64>layout[3 * run + 1], <i64>layout[3 * run + 2], data, 0, 0)
        rows = w.frame.rows
        data += rows // 32
        for _frame in range(<i64>layout[3 * run]):
            if used == held:
                used = held = 0
                while held < rows:
                    n = <int>min(<i64>PACK_BLOCK, total - done - held)
                    unpack_codes(codes, n, width, code + held)
                    codes += packed_block_bytes(width)
                    held += n
            memcpy(&word, words + 4 * frames, 4)
            if not kashin_word_valid(word):
                return frames
            if word == 0:
                memset(x, 0, w.frame.coordinates * sizeof(real))
            else:
                grid_scale(code + used, <int>rows, <real>(kashin_word_level(word) / (levels - 1)), levels, False,
                           <real*>w.a)
                synthesize(w, <real*>w.a, x, word, <u64>done, frame_key)
                shift(x, w.frame.coordinates, kashin_word_exponent(word))
                if kashin_word_exponent(word) > 100:
                    saturate(x, w.frame.coordinates)
            frames += 1
            used += rows
            done += rows
            x += w.frame.coordinates
    return KASHIN_DONE


def kashin_decode(payload, i64 offset, layout, data, i32 levels, u64 frame_key, out) -> int:
    """The inverse of kashin_encode. Returns -1, or the frame whose level no encoder writes."""
    cdef View p = view(payload, b"B"), r = view(layout, b"Q"), d = view(data, b"I"), o = view(out, b"fd", True)
    cdef const u64* plan = <const u64*>r.buffer.buf
    cdef Workspace* w
    cdef i64 status
    cdef i64 rows = check_layout(o, r, d, p, offset, levels)
    w = workspace()
    with nogil:
        if o.kind == c"f":
            status = decode_frames[f32](w, p.u8s(), p.u8s() + offset, plan, r.n // 3, d.u32s(), levels, frame_key, rows,
                                        o.f32s())
        else:
            status = decode_frames[f64](w, p.u8s(), p.u8s() + offset, plan, r.n // 3, d.u32s(), levels, frame_key, rows,
                                        o.f64s())
        release(w)
    return status
