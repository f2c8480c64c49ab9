cdef extern from "quantize_cpu.h" nogil:
    void grid_codes_f32(const f32*, int, f32, i32, u64, u64, u32*)
    void grid_codes_f64(const f64*, int, f64, i32, u64, u64, u32*)
    void natural_codes_f32(const f32*, int, f32, i32, u64, u64, u32*)
    void natural_codes_f64(const f64*, int, f64, i32, u64, u64, u32*)
    void nearest_codes_f32(const f32*, int, f32, i32, u32*)
    void nearest_codes_f64(const f64*, int, f64, i32, u32*)
    f32 grid_value_f32(u32, i32)
    f64 grid_value_f64(u32, i32)
    f32 natural_value_f32(u32, i32, i32)
    f64 natural_value_f64(u32, i32, i32)

# What a code means: a point of a grid of `levels`, or a signed power of two (levels = 2s + 1).
ctypedef enum Alphabet:
    GRID
    NATURAL

ctypedef enum Rounding:
    DITHER
    NEAREST


cdef inline void grid_round(const real* x, int n, real inv, i32 levels, Rounding rounding, u64 e, u64 key,
                            u32* code) noexcept nogil:
    if real is f32:
        if rounding == DITHER:
            grid_codes_f32(x, n, inv * 65536, levels, e, key, code)
        else:
            nearest_codes_f32(x, n, inv, levels, code)
    else:
        if rounding == DITHER:
            grid_codes_f64(x, n, inv * 65536, levels, e, key, code)
        else:
            nearest_codes_f64(x, n, inv, levels, code)


cdef inline void natural_round(const real* x, int n, real inv, i32 least, u64 e, u64 key, u32* code) noexcept nogil:
    if real is f32:
        natural_codes_f32(x, n, inv, least, e, key, code)
    else:
        natural_codes_f64(x, n, inv, least, e, key, code)


cdef inline void natural_sign(const real* x, int n, i32 s, u32* code) noexcept nogil:
    """Magnitude codes 0..s to signed ones, s - q or s + q; rounding of inv may have pushed q to s + 1."""
    cdef int i
    cdef u32 q
    for i in range(n):
        q = min(code[i], <u32>s)
        code[i] = <u32>s - q if x[i] < 0 else <u32>s + q


cdef void quantize_blocks(const real* x, i64 n, const real* inv, i64 block, i32 levels, Alphabet alphabet,
                          Rounding rounding, u64 key, u8* out) noexcept nogil:
    cdef u32 code[CODE_BUFFER]
    cdef int width = code_width(levels), m
    cdef i64 index, start
    cdef real scale
    for index in range(ceil_div(n, PACK_BLOCK)):
        start = index * PACK_BLOCK
        m = <int>min(<i64>PACK_BLOCK, n - start)
        scale = inv[start // block]
        if alphabet == GRID:
            grid_round(x + start, m, scale, levels, rounding, start, key, code)
        else:
            natural_round(x + start, m, scale, 1 - levels // 2, start, key, code)
            natural_sign(x + start, m, levels // 2, code)
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


cdef void unpack_blocks(const u8* data, const real* unit, i64 block, i32 levels, Alphabet alphabet, bint add,
                        real* out, i64 n) noexcept nogil:
    cdef u32 code[CODE_BUFFER]
    cdef u32 minus[CODE_BUFFER]
    cdef int width = code_width(levels), m
    cdef i64 index, start
    for index in range(ceil_div(n, PACK_BLOCK)):
        start = index * PACK_BLOCK
        m = <int>min(<i64>PACK_BLOCK, n - start)
        unpack_codes(data + index * packed_block_bytes(width), m, width, code)
        if alphabet == GRID:
            grid_scale(code, m, unit[start // block], levels, add, out + start)
        else:
            natural_unsign(code, minus, m, levels // 2)
            natural_scale(code, minus, m, unit[start // block], 1 - levels // 2, add, out + start)


def quantize_pack(x, inv, i64 block, i32 levels, u64 key, out, bint nearest=False, bint natural=False) -> None:
    """Round x (n) to `levels` points and pack the codes into out (u8, ceil(pack_bits(n, pack_width(levels)) / 8)).

    inv (x's dtype, ceil(n / block)): steps per unit, (levels-1) / (2m) for a grid over [-m, m]; with
    natural=True 1 / m for zero and the levels // 2 powers of two up to m and their negatives. block is a
    multiple of 1024, or at least n. Dithered by `key` unless nearest=True (grids only).
    """
    cdef View v = view(x, b"fd"), s = view(inv, b"fd"), o = view(out, b"B", True)
    cdef Alphabet alphabet = NATURAL if natural else GRID
    cdef Rounding rounding = NEAREST if nearest else DITHER
    with nogil:
        if v.kind == c"f":
            quantize_blocks[f32](v.f32s(), v.n, s.f32s(), block, levels, alphabet, rounding, key, o.u8s())
        else:
            quantize_blocks[f64](v.f64s(), v.n, s.f64s(), block, levels, alphabet, rounding, key, o.u8s())


def unpack_scale(data, unit, i64 block, i32 levels, out, bint add=False, bint natural=False) -> None:
    """out (n) = or += unit * value of its code; unit (out's dtype, ceil(n / block)): m / (levels-1), or m if natural."""
    cdef View d = view(data, b"B"), s = view(unit, b"fd"), o = view(out, b"fd", True)
    cdef Alphabet alphabet = NATURAL if natural else GRID
    with nogil:
        if o.kind == c"f":
            unpack_blocks[f32](d.u8s(), s.f32s(), block, levels, alphabet, add, o.f32s(), o.n)
        else:
            unpack_blocks[f64](d.u8s(), s.f64s(), block, levels, alphabet, add, o.f64s(), o.n)


cdef void power_blocks(const real* x, i64 n, u64 key, u8* exponent, u8* sign) noexcept nogil:
    cdef u32 code[CODE_BUFFER]
    cdef int m, i
    cdef i64 index, start
    for index in range(ceil_div(n, PACK_BLOCK)):
        start = index * PACK_BLOCK
        m = <int>min(<i64>PACK_BLOCK, n - start)
        natural_round(x + start, m, <real>1, -126, start, key, code)
        for i in range(m):
            exponent[start + i] = <u8>code[i]
        for i in range(m):
            code[i] = x[start + i] < 0
        pack_codes(code, m, 1, sign + start // 8)


cdef void unpower_blocks(const u8* exponent, const u8* sign, real scale, bint add, real* out, i64 n) noexcept nogil:
    cdef u32 code[CODE_BUFFER]
    cdef u32 minus[CODE_BUFFER]
    cdef int m, i
    cdef i64 index, start
    for index in range(ceil_div(n, PACK_BLOCK)):
        start = index * PACK_BLOCK
        m = <int>min(<i64>PACK_BLOCK, n - start)
        unpack_codes(sign + start // 8, m, 1, minus)
        for i in range(m):
            code[i] = min(exponent[start + i], <u8>254)      # 255 would be an infinity; no encoder writes it
        natural_scale(code, minus, m, scale, -126, add, out + start)


def power_pack(x, u64 key, out) -> None:
    """Natural compression: |x| < 2^127 to a power of two, 8 bits of exponent (n bytes), then n sign bits."""
    cdef View v = view(x, b"fd"), o = view(out, b"B", True)
    with nogil:
        if v.kind == c"f":
            power_blocks[f32](v.f32s(), v.n, key, o.u8s(), o.u8s() + v.n)
        else:
            power_blocks[f64](v.f64s(), v.n, key, o.u8s(), o.u8s() + v.n)


def unpower_scale(data, double scale, out, bint add=False) -> None:
    """The inverse of power_pack: out (n) = or += scale * power."""
    cdef View d = view(data, b"B"), o = view(out, b"fd", True)
    with nogil:
        if o.kind == c"f":
            unpower_blocks[f32](d.u8s(), d.u8s() + o.n, <f32>scale, add, o.f32s(), o.n)
        else:
            unpower_blocks[f64](d.u8s(), d.u8s() + o.n, scale, add, o.f64s(), o.n)
