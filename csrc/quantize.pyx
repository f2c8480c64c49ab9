cdef extern from "quantize_cpu.h" nogil:
    void grid_codes_f32(const f32*, int, f32, i32, u64, const dither_bits*, u32*)
    void grid_codes_f64(const f64*, int, f64, i32, u64, const dither_bits*, u32*)
    void natural_codes_f32(const f32*, int, f32, i32, u64, const dither_bits*, u32*)
    void natural_codes_f64(const f64*, int, f64, i32, u64, const dither_bits*, u32*)
    void nearest_codes_f32(const f32*, int, f32, i32, u32*)
    void nearest_codes_f64(const f64*, int, f64, i32, u32*)
    f32 grid_value_f32(u32, i32)
    f64 grid_value_f64(u32, i32)
    f32 natural_value_f32(u32, i32, i32)
    f64 natural_value_f64(u32, i32, i32)
    f64 recentre(f64)
    f64 recentre_grid(f64, i32)
    f64 grid_inverse(f64, i32)
    f64 natural_inverse(f64)
    f32 float_up(f64)
    bint scale_valid(f64)
    int scale_status(f64, f32, int, int)
    u32 natural_signed(u32, bint, i32)
    u32 power_code(u32)
    f64 power_shifted(u32, i32, i32, f64)
    f64 shift_f64(f64, i32)
    enum:
        POWER_LEAST

# What a code means: a point of a grid of `levels`, or a signed power of two (levels = 2s + 1).
ctypedef enum Alphabet:
    GRID
    NATURAL

ctypedef enum Rounding:
    DITHER
    NEAREST


cdef inline void grid_round(const real* x, int n, real inv, i32 levels, Rounding rounding, u64 e, const dither_bits* d,
                            u32* code) noexcept nogil:
    if real is f32:
        if rounding == DITHER:
            grid_codes_f32(x, n, inv * 65536, levels, e, d, code)
        else:
            nearest_codes_f32(x, n, inv, levels, code)
    else:
        if rounding == DITHER:
            grid_codes_f64(x, n, inv * 65536, levels, e, d, code)
        else:
            nearest_codes_f64(x, n, inv, levels, code)


cdef inline void natural_round(const real* x, int n, real inv, i32 least, u64 e, const dither_bits* d,
                               u32* code) noexcept nogil:
    if real is f32:
        natural_codes_f32(x, n, inv, least, e, d, code)
    else:
        natural_codes_f64(x, n, inv, least, e, d, code)


cdef inline void natural_sign(const real* x, int n, i32 s, u32* code) noexcept nogil:
    cdef int i
    for i in range(n):
        code[i] = natural_signed(code[i], x[i] < 0, s)


cdef inline f64 read_scale(const u8* scales, i64 index, int wire) noexcept nogil:
    cdef f32 single
    cdef f64 double_
    if wire == 4:
        memcpy(&single, scales + 4 * index, 4)
        return single
    memcpy(&double_, scales + 8 * index, 8)
    return double_


cdef inline void quantize_block(const real* x, int n, f64 scale, i32 levels, Alphabet alphabet, Rounding rounding,
                                u64 e, const dither_bits* d, u32* code) noexcept nogil:
    if alphabet == GRID:
        grid_round(x, n, <real>grid_inverse(scale, levels), levels, rounding, e, d, code)
    else:
        natural_round(x, n, <real>natural_inverse(scale), 1 - levels // 2, e, d, code)
        natural_sign(x, n, levels // 2, code)


cdef void quantize_blocks(const real* x, i64 n, const u8* scales, int wire, i64 block, i32 levels,
                          Alphabet alphabet, Rounding rounding, u64 key, u64 shared, u32 worker, u32 workers,
                          u8* out) noexcept nogil:
    cdef dither_bits d = independent_bits(key)
    cdef u32 code[CODE_BUFFER]
    cdef f64 moved[1024]
    cdef f64 scale, factor
    cdef int width = code_width(levels), m, i
    cdef i64 index, start
    for index in range(ceil_div(n, PACK_BLOCK)):
        start = index * PACK_BLOCK
        m = <int>min(<i64>PACK_BLOCK, n - start)
        scale = read_scale(scales, start // block, wire)
        factor = recentre_grid(scale, levels) if alphabet == GRID else recentre(scale)
        if workers and start % PLACES_GROUP == 0:
            d = correlated_bits(key, shared, worker, workers, start)
        if factor == 1:
            quantize_block(x + start, m, scale, levels, alphabet, rounding, start, &d, code)
        else:
            for i in range(m):
                moved[i] = x[start + i] * factor
            quantize_block[f64](moved, m, scale * factor, levels, alphabet, rounding, start, &d, code)
        pack_codes(code, m, width, out + index * packed_block_bytes(width))


cdef inline void grid_scale(const u32* code, int n, real unit, i32 levels, bint add, real* out) noexcept nogil:
    """out = unit * value, or out += unit * value: one multiplication, one addition, never fused."""
    cdef int i
    if add:
        for i in range(n):
            out[i] += unit * (grid_value_f32(code[i], levels) if real is f32 else grid_value_f64(code[i], levels))
    else:
        for i in range(n):
            out[i] = unit * (grid_value_f32(code[i], levels) if real is f32 else grid_value_f64(code[i], levels))


cdef inline void natural_scale(const u32* q, const u32* minus, int n, real unit, i32 least, bint add,
                               real* out) noexcept nogil:
    """The same for magnitude codes q whose sign is minus (0 or 1)."""
    cdef int i
    cdef real value[CODE_BUFFER]
    for i in range(n):
        if real is f32:
            value[i] = natural_value_f32(q[i], <i32>minus[i], least)
        else:
            value[i] = natural_value_f64(q[i], <i32>minus[i], least)
    if add:
        for i in range(n):
            out[i] += unit * value[i]
    else:
        for i in range(n):
            out[i] = unit * value[i]


cdef inline void natural_unsign(u32* code, u32* minus, int n, i32 s) noexcept nogil:
    """The inverse of natural_sign."""
    cdef int i
    cdef i32 q
    for i in range(n):
        q = <i32>code[i] - s
        minus[i] = <u32>q >> 31
        code[i] = <u32>(-q if q < 0 else q)


cdef inline void unpack_block(u32* code, int n, real unit, i32 levels, Alphabet alphabet, bint add,
                              real* out) noexcept nogil:
    cdef u32 minus[CODE_BUFFER]
    if alphabet == GRID:
        grid_scale(code, n, unit, levels, add, out)
    else:
        natural_unsign(code, minus, n, levels // 2)
        natural_scale(code, minus, n, unit, 1 - levels // 2, add, out)


cdef void unpack_blocks(const u8* data, const u8* scales, int wire, i64 block, i32 levels, Alphabet alphabet,
                        f64 weight, bint add, real* out, i64 n) noexcept nogil:
    cdef u32 code[CODE_BUFFER]
    cdef f64 moved[1024]
    cdef f64 scale, factor, steps = levels - 1 if alphabet == GRID else 1
    cdef int width = code_width(levels), m, i
    cdef i64 index, start
    for index in range(ceil_div(n, PACK_BLOCK)):
        start = index * PACK_BLOCK
        m = <int>min(<i64>PACK_BLOCK, n - start)
        unpack_codes(data + index * packed_block_bytes(width), m, width, code)
        scale = read_scale(scales, start // block, wire)
        factor = recentre(scale)
        if factor == 1:
            unpack_block(code, m, <real>(weight * (scale / steps)), levels, alphabet, add, out + start)
        else:
            unpack_block[f64](code, m, weight * (scale * factor / steps), levels, alphabet, False, moved)
            for i in range(m):
                moved[i] = moved[i] / factor
                out[start + i] = <real>(out[start + i] + moved[i] if add else moved[i])


cdef int check_blocks(i64 n, i64 block, i32 levels) except -1:
    if block < 1 or (block < n and block % PACK_BLOCK):
        raise ValueError(f"block must be a multiple of {PACK_BLOCK} or at least {n}, got {block}")
    if levels < 2 or levels > 65536:
        raise ValueError(f"levels must lie in [2, 65536], got {levels}")
    return 0


cdef int need_scales(View scales, i64 offset, i64 count, int wire, str name) except -1:
    if wire != 4 and wire != 8:
        raise ValueError(f"wire must be 4 or 8 bytes, got {wire}")
    if count < 0 or count > scales.n // wire or offset < 0 or offset > scales.n - count * wire:
        raise ValueError(f"{name} has {scales.n} bytes, {count} scales of {wire} bytes "
                         f"from byte {offset} on are needed")
    return 0


def write_scales(x, i64 block, int which, int wire, payload, i64 offset) -> int:
    """A norm of each block of x, rounded up to float32 (wire=4) or as float64 (8), into payload (u8) at offset.

    0, or 1 where x holds NaN or Inf or a norm leaves float64's range, or 2 where one leaves float32's: what
    float32 x can be decoded to, or the wire can carry without losing all precision (a float64 x below 2^-126). Of
    several such blocks the first one says; their scales are written as 0.
    """
    cdef View v = view(x, b"fd"), o = view(payload, b"B", True)
    cdef u8* scales = o.u8s() + offset
    cdef f64 scale
    cdef f32 single
    cdef i64 index, start, m
    cdef int status = 0, failed
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    need_scales(o, offset, ceil_div(v.n, block), wire, "payload")
    with nogil:
        for index in range(ceil_div(v.n, block)):
            start = index * block
            m = min(block, v.n - start)
            scale = norm_of[f32](v.f32s() + start, m, <Norm>which) if v.kind == c"f" \
                else norm_of[f64](v.f64s() + start, m, <Norm>which)
            single = float_up(scale)
            failed = scale_status(scale, single, wire, 4 if v.kind == c"f" else 8)
            if failed:
                status = status or failed
                scale = single = 0
            if wire == 4:
                memcpy(scales + 4 * index, &single, 4)
            else:
                memcpy(scales + 8 * index, &scale, 8)
    return status


def bad_scale(payload, i64 offset, i64 count, int wire) -> int:
    """Index of the first scale that is negative, NaN or Inf, or -1: no decoder computes with such a one."""
    cdef View d = view(payload, b"B")
    cdef i64 index
    cdef f64 scale
    need_scales(d, offset, count, wire, "payload")
    for index in range(count):
        scale = read_scale(d.u8s() + offset, index, wire)
        if not scale_valid(scale):
            return index
    return -1


def quantize_pack(x, scales, i64 offset, int wire, i64 block, i32 levels, u64 key, out,
                  bint nearest=False, bint natural=False, u64 shared=0, i64 worker=0, i64 workers=0) -> None:
    """Round x (n) to `levels` points and pack the codes into out (u8, ceil(pack_bits(n, pack_width(levels)) / 8)).

    scales (u8, from offset on, ceil(n / block) numbers of `wire` bytes; may be `out` itself, behind the codes):
    the m of each block, points at (2j - (levels-1)) m / (levels-1), or with natural=True at 0 and the
    levels // 2 powers of two up to m and their negatives. block is a multiple of 1024, or at least n.
    Dithered by `key` unless nearest=True (grids only); with workers > 0 the dither is the one of `worker`, correlated
    with that of the others under the key `shared` (philox.h, D).
    """
    cdef View v = view(x, b"fd"), s = view(scales, b"B"), o = view(out, b"B", True)
    cdef Alphabet alphabet = NATURAL if natural else GRID
    cdef Rounding rounding = NEAREST if nearest else DITHER
    cdef const u8* m = s.u8s() + offset
    check_blocks(v.n, block, levels)
    if workers and not (0 <= worker < workers <= MOST_WORKERS):
        raise ValueError(f"workers must lie in [1, {MOST_WORKERS}] and worker below it, got {worker} of {workers}")
    need_scales(s, offset, ceil_div(v.n, block), wire, "scales")
    need(o, packed_bytes(v.n, code_width(levels)), "out")
    with nogil:
        if v.kind == c"f":
            quantize_blocks[f32](v.f32s(), v.n, m, wire, block, levels, alphabet, rounding, key, shared,
                                 <u32>worker, <u32>workers, o.u8s())
        else:
            quantize_blocks[f64](v.f64s(), v.n, m, wire, block, levels, alphabet, rounding, key, shared,
                                 <u32>worker, <u32>workers, o.u8s())


def unpack_scale(data, scales, i64 offset, int wire, i64 block, i32 levels, f64 weight, out,
                 bint add=False, bint natural=False) -> None:
    """The inverse of quantize_pack: out (n) = or += (weight * m / (levels-1)) * code, m alone if natural."""
    cdef View d = view(data, b"B"), s = view(scales, b"B"), o = view(out, b"fd", True)
    cdef Alphabet alphabet = NATURAL if natural else GRID
    cdef const u8* m = s.u8s() + offset
    check_blocks(o.n, block, levels)
    need_scales(s, offset, ceil_div(o.n, block), wire, "scales")
    need(d, packed_bytes(o.n, code_width(levels)), "data")
    with nogil:
        if o.kind == c"f":
            unpack_blocks[f32](d.u8s(), m, wire, block, levels, alphabet, weight, add, o.f32s(), o.n)
        else:
            unpack_blocks[f64](d.u8s(), m, wire, block, levels, alphabet, weight, add, o.f64s(), o.n)


cdef void power_blocks(const real* x, i64 n, u64 key, int shift, u8* exponent, u8* sign) noexcept nogil:
    cdef dither_bits d = independent_bits(key)
    cdef u32 code[CODE_BUFFER]
    cdef f64 moved[1024]
    cdef int m, i
    cdef i64 index, start
    for index in range(ceil_div(n, PACK_BLOCK)):
        start = index * PACK_BLOCK
        m = <int>min(<i64>PACK_BLOCK, n - start)
        if shift:
            for i in range(m):
                moved[i] = shift_f64(x[start + i], shift)
            natural_round[f64](moved, m, 1, POWER_LEAST, start, &d, code)
        else:
            natural_round(x + start, m, <real>1, POWER_LEAST, start, &d, code)
        for i in range(m):
            exponent[start + i] = <u8>code[i]
        if shift:
            for i in range(m):
                code[i] = moved[i] < 0
        else:
            for i in range(m):
                code[i] = x[start + i] < 0
        pack_codes(code, m, 1, sign + start // 8)


cdef void unpower_blocks(const u8* exponent, const u8* sign, real scale, bint add, int shift, real* out,
                         i64 n) noexcept nogil:
    cdef u32 code[CODE_BUFFER]
    cdef u32 minus[CODE_BUFFER]
    cdef real value[1024]
    cdef f64 top = f32_bits(INFINITE_F32 - 1) if real is f32 else f64_bits(INFINITE_F64 - 1)
    cdef int m, i
    cdef i64 index, start
    for index in range(ceil_div(n, PACK_BLOCK)):
        start = index * PACK_BLOCK
        m = <int>min(<i64>PACK_BLOCK, n - start)
        unpack_codes(sign + start // 8, m, 1, minus)
        for i in range(m):
            code[i] = power_code(exponent[start + i])
        if not shift:
            natural_scale(code, minus, m, scale, POWER_LEAST, add, out + start)
            continue
        for i in range(m):
            value[i] = <real>power_shifted(code[i], <i32>minus[i], shift, top)
        for i in range(m):
            out[start + i] = out[start + i] + scale * value[i] if add else scale * value[i]


def power_pack(x, u64 key, out, int shift=0) -> None:
    """Natural compression: |x| 2^shift < 2^127 to a power of two, 8 bits of exponent (n bytes), then n sign bits.

    With a shift it is done in float64.
    """
    cdef View v = view(x, b"fd"), o = view(out, b"B", True)
    need(o, v.n + ceil_div(v.n, 8), "out")
    with nogil:
        if v.kind == c"f":
            power_blocks[f32](v.f32s(), v.n, key, shift, o.u8s(), o.u8s() + v.n)
        else:
            power_blocks[f64](v.f64s(), v.n, key, shift, o.u8s(), o.u8s() + v.n)


def unpower_scale(data, double scale, out, bint add=False, int shift=0) -> None:
    """The inverse of power_pack: out (n) = or += scale * power, what the shift has taken out of the range of out's type
    being the largest number there."""
    cdef View d = view(data, b"B"), o = view(out, b"fd", True)
    need(d, o.n + ceil_div(o.n, 8), "data")
    with nogil:
        if o.kind == c"f":
            unpower_blocks[f32](d.u8s(), d.u8s() + o.n, <f32>scale, add, shift, o.f32s(), o.n)
        else:
            unpower_blocks[f64](d.u8s(), d.u8s() + o.n, scale, add, shift, o.f64s(), o.n)
