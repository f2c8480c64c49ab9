cdef extern from "eden_cpu.h" nogil:
    enum:
        EDEN_ALPHABETS
        EDEN_RATE_ONE
    f64 EDEN_UNIT
    ctypedef struct eden_alphabet:
        i32 levels
        i32 digits
        i32 width
    ctypedef struct eden_split:
        int poorer
        i64 n[2]
    ctypedef struct eden_book:
        eden_alphabet a
    eden_alphabet eden_alphabet_of(int)
    i32 eden_level(eden_alphabet, i32)
    eden_split eden_split_of(i64, i64)
    i64 eden_span(i64, i64, i64)
    f64 eden_precision(f64, i64)
    f64 eden_scale(f64, f64, f64, bint)
    f32 eden_restore_f32(f64, f64)
    f64 eden_restore_f64(f64, f64)
    i64 eden_part_bytes(i64, eden_alphabet)
    i64 eden_block_bytes(i64, i64)
    void eden_open(eden_book*, int)
    void eden_round_f32(const eden_book*, const f32*, i64, f64, u32*, f32*)
    void eden_round_f64(const eden_book*, const f64*, i64, f64, u32*, f64*)
    void eden_values_f32(const eden_book*, u32*, i64, f32, f32*)
    void eden_values_f64(const eden_book*, u32*, i64, f64, f64*)
    void eden_pack(u32*, i64, eden_alphabet, u8*)
    void eden_unpack(const u8*, i64, eden_alphabet, u32*)

cdef extern from "hadamard.h" nogil:
    enum:
        ROTATION_BLOCK
    i64 rotation_block(i64)
    u64 ROTATION_LAST_SIGNS

cdef extern from *:
    void rotate_block_f32(f32*, i64, u64, u64, bint) nogil
    void rotate_block_f64(f64*, i64, u64, u64, bint) nogil

cdef struct Eden:
    eden_book book[2]
    i64 rate
    int wire
    bint unbiased
    f64* z                               # a span of either element type: two blocks at most
    f64* level
    u32* code
    void* room


cdef Eden* eden_workspace(i64 rate, int wire, bint unbiased) except NULL:
    """Everything a span needs, aligned to a vector; the caller releases it."""
    cdef Eden* w = <Eden*>malloc(sizeof(Eden))
    cdef void* room = malloc((4 * ROTATION_BLOCK + 32) * sizeof(f64))
    cdef int poorer = eden_split_of(ROTATION_BLOCK, rate).poorer
    if w == NULL or room == NULL:
        free(w)
        free(room)
        raise MemoryError("no memory for a block of Eden")
    w.room = room
    w.z = <f64*>((<u64>room + 63) & ~<u64>63)
    w.level = w.z + 2 * ROTATION_BLOCK
    w.code = <u32*>(w.level + ROTATION_BLOCK)
    w.rate = rate
    w.wire = wire
    w.unbiased = unbiased
    eden_open(&w.book[0], poorer)
    eden_open(&w.book[1], poorer + 1)
    return w


cdef void eden_release(Eden* w) noexcept nogil:
    free(w.room)
    free(w)


cdef inline void rotate_span(real* z, i64 n, i64 block, u64 start, u64 key, bint inverse) noexcept nogil:
    cdef real* last = z + n - block
    if inverse and n > block:
        if real is f32:
            rotate_block_f32(last, block, ROTATION_LAST_SIGNS, key, True)
        else:
            rotate_block_f64(last, block, ROTATION_LAST_SIGNS, key, True)
    if real is f32:
        rotate_block_f32(z, block, start, key, inverse)
    else:
        rotate_block_f64(z, block, start, key, inverse)
    if not inverse and n > block:
        if real is f32:
            rotate_block_f32(last, block, ROTATION_LAST_SIGNS, key, False)
        else:
            rotate_block_f64(last, block, ROTATION_LAST_SIGNS, key, False)


cdef inline f64 eden_encode_block(Eden* w, real* z, i64 n, u8* out) noexcept nogil:
    """The codes of n coordinates, z overwritten; returns the scale."""
    cdef eden_split split = eden_split_of(n, w.rate)
    cdef real* level = <real*>w.level
    cdef f64 square = sum_leaf(z, n, SQUARE), product, levels
    cdef f64 unit = sqrt(eden_precision(square, n))
    cdef i64 start = 0, i
    cdef int part
    for part in range(2):
        if real is f32:
            eden_round_f32(&w.book[part], z + start, split.n[part], unit, w.code, level + start)
        else:
            eden_round_f64(&w.book[part], z + start, split.n[part], unit, w.code, level + start)
        eden_pack(w.code, split.n[part], w.book[part].a, out)
        out += eden_part_bytes(split.n[part], w.book[part].a)
        start += split.n[part]
    for i in range(n):
        z[i] *= level[i]
    product = sum_leaf(z, n, SELF)
    levels = sum_leaf(level, n, SQUARE)
    return eden_scale(square, product, levels, w.unbiased)


cdef inline void eden_decode_block(Eden* w, const u8* data, f64 scale, real* z, i64 n) noexcept nogil:
    cdef eden_split split = eden_split_of(n, w.rate)
    cdef int part
    for part in range(2):
        eden_unpack(data, split.n[part], w.book[part].a, w.code)
        if real is f32:
            eden_values_f32(&w.book[part], w.code, split.n[part], <f32>(scale * EDEN_UNIT), z)
        else:
            eden_values_f64(&w.book[part], w.code, split.n[part], scale * EDEN_UNIT, z)
        data += eden_part_bytes(split.n[part], w.book[part].a)
        z += split.n[part]


cdef inline int write_scale(f64 scale, int wire, bint double_input, u8* out) noexcept nogil:
    """Status as in write_scales."""
    cdef f32 single = <f32>scale
    cdef int status = scale_status(scale, single, wire, 8 if double_input else 4)
    if status:
        return status
    if wire == 4:
        memcpy(out, &single, 4)
    else:
        memcpy(out, &scale, 8)
    return 0


cdef int eden_encode_span(Eden* w, real* z, i64 n, i64 block, u64 start, u64 key, f64 factor, bint double_input,
                          u8* codes, u8* scales) noexcept nogil:
    cdef i64 first = n - block
    cdef f64 scale
    cdef int status
    rotate_span(z, n, block, start, key, False)
    if first:
        scale = eden_encode_block(w, z, first, codes) / factor
        status = write_scale(scale, w.wire, double_input, scales)
        if status:
            return status
        codes += eden_block_bytes(first, w.rate)
        scales += w.wire
    scale = eden_encode_block(w, z + first, block, codes) / factor
    return write_scale(scale, w.wire, double_input, scales)


cdef int eden_encode_all(Eden* w, const real* x, i64 n, u64 key, u8* codes, u8* scales) noexcept nogil:
    cdef i64 block = rotation_block(n), start = 0, m, i
    cdef f64 largest, factor
    cdef int status
    while start < n:
        m = eden_span(start, n, block)
        largest = largest_magnitude(x + start, m)
        if not largest < f64_bits(INFINITE_F64):
            return 1
        factor = recentre(largest)
        if factor == 1:
            memcpy(w.z, x + start, m * sizeof(real))
            status = eden_encode_span[real](w, <real*>w.z, m, block, start, key, 1, real is f64, codes, scales)
        else:
            for i in range(m):
                w.z[i] = x[start + i] * factor
            status = eden_encode_span[f64](w, w.z, m, block, start, key, factor, real is f64, codes, scales)
        if status:
            return status
        start += m
        scales += w.wire
        codes += eden_block_bytes(block, w.rate)
    return 0


cdef void eden_decode_span(Eden* w, const u8* codes, const u8* scales, f64 factor, real* z, i64 n, i64 block,
                           u64 start, u64 key) noexcept nogil:
    cdef i64 first = n - block
    if first:
        eden_decode_block(w, codes, read_scale(scales, 0, w.wire) * factor, z, first)
        codes += eden_block_bytes(first, w.rate)
        scales += w.wire
    eden_decode_block(w, codes, read_scale(scales, 0, w.wire) * factor, z + first, block)
    rotate_span(z, n, block, start, key, True)


cdef inline void eden_emit(const real* z, i64 n, real weight, bint add, real* out) noexcept nogil:
    cdef i64 i
    if add:
        for i in range(n):
            out[i] += weight * z[i]
    else:
        memcpy(out, z, n * sizeof(real))


cdef void eden_decode_all(Eden* w, const u8* codes, const u8* scales, f64 weight, bint add, real* out, i64 n,
                          u64 key) noexcept nogil:
    cdef i64 block = rotation_block(n), start = 0, m, i
    cdef real* z = <real*>(w.level if real is f32 else w.z)      # what a span in float64 is rounded to
    cdef f64 largest, factor
    while start < n:
        m = eden_span(start, n, block)
        largest = read_scale(scales, 0, w.wire)
        if m > block:
            largest = max(largest, read_scale(scales, 1, w.wire))
        factor = recentre(largest)
        if largest == 0:
            memset(z, 0, m * sizeof(real))
        elif factor == 1:
            eden_decode_span[real](w, codes, scales, 1, z, m, block, start, key)
        else:
            eden_decode_span[f64](w, codes, scales, factor, w.z, m, block, start, key)
            for i in range(m):
                z[i] = eden_restore_f32(w.z[i], factor) if real is f32 else eden_restore_f64(w.z[i], factor)
        eden_emit(z, m, <real>weight, add, out + start)
        codes += eden_block_bytes(block, w.rate)
        if m > block:
            codes += eden_block_bytes(m - block, w.rate)
            scales += w.wire
        scales += w.wire
        start += m


cdef inline i64 eden_blocks(i64 n) noexcept nogil:
    return ceil_div(n, rotation_block(n)) if n else 0


cdef i64 check_eden(i64 n, i64 rate, int wire) except -1:
    """Bytes of the codes of n coordinates."""
    cdef i64 block
    if rate < EDEN_RATE_ONE or rate > 8 * EDEN_RATE_ONE:
        raise ValueError(f"rate must lie in [{EDEN_RATE_ONE}, {8 * EDEN_RATE_ONE}], got {rate}")
    if wire != 4 and wire != 8:
        raise ValueError(f"wire must be 4 or 8 bytes, got {wire}")
    if n < 0:
        raise ValueError(f"length must not be negative, got {n}")
    if n == 0:
        return 0
    block = rotation_block(n)
    return n // block * eden_block_bytes(block, rate) + (eden_block_bytes(n % block, rate) if n % block else 0)


def eden_alphabets() -> list:
    """(levels, digits a field, bits a field) of every alphabet, from the poorest to the richest."""
    cdef eden_alphabet a
    found = []
    for which in range(EDEN_ALPHABETS):
        a = eden_alphabet_of(which)
        found.append((a.levels, a.digits, a.width))
    return found


def eden_levels(int which) -> list:
    """The levels of alphabet `which`, in units of the standard deviation."""
    if not 0 <= which < EDEN_ALPHABETS:
        raise ValueError(f"alphabets are 0 to {EDEN_ALPHABETS - 1}, got {which}")
    cdef eden_alphabet a = eden_alphabet_of(which)
    return [eden_level(a, code) * EDEN_UNIT for code in range(a.levels)]


def eden_layout(i64 n, i64 rate, int wire=4) -> tuple:
    """(bytes of the codes, number of scales) of n coordinates at rate / 65536 bits each."""
    return check_eden(n, rate, wire), eden_blocks(n)


def eden_encode(x, i64 rate, bint unbiased, int wire, u64 key, payload) -> int:
    """Rotate x by key, round it to the levels of a Gaussian; codes, then scales of `wire` bytes, into payload (u8).

    0, or 1 where x holds NaN or Inf or a scale leaves float64's range, or 2 where one leaves float32's.
    """
    cdef View v = view(x, b"fd"), o = view(payload, b"B", True)
    cdef i64 offset = check_eden(v.n, rate, wire)
    cdef Eden* w
    cdef int status
    need(o, offset + wire * eden_blocks(v.n), "payload")
    w = eden_workspace(rate, wire, unbiased)
    with nogil:
        if v.kind == c"f":
            status = eden_encode_all[f32](w, v.f32s(), v.n, key, o.u8s(), o.u8s() + offset)
        else:
            status = eden_encode_all[f64](w, v.f64s(), v.n, key, o.u8s(), o.u8s() + offset)
        eden_release(w)
    return status


def eden_decode(payload, i64 rate, int wire, u64 key, f64 weight, out, bint add=False) -> None:
    """The inverse of eden_encode: out (n) = what the payload says, or += weight times it."""
    cdef View p = view(payload, b"B"), o = view(out, b"fd", True)
    cdef i64 offset = check_eden(o.n, rate, wire)
    cdef Eden* w
    need(p, offset + wire * eden_blocks(o.n), "payload")
    w = eden_workspace(rate, wire, False)
    with nogil:
        if o.kind == c"f":
            eden_decode_all[f32](w, p.u8s(), p.u8s() + offset, weight, add, o.f32s(), o.n, key)
        else:
            eden_decode_all[f64](w, p.u8s(), p.u8s() + offset, weight, add, o.f64s(), o.n, key)
        eden_release(w)
