cdef extern from "pack_cpu.h" nogil:
    enum:
        PACK_BLOCK
        CODE_BUFFER
    int code_width(u32 symbols)
    i64 packed_bits(i64 n, int width)
    i64 packed_bytes(i64 n, int width)
    i64 packed_block_bytes(int width)
    void pack_codes(u32* code, int n, int width, u8* out)
    void unpack_codes(const u8* data, int n, int width, u32* code)


def pack_width(u32 symbols) -> int:
    """Bits a code of that many symbols takes; 0 for three symbols, which are packed five to a byte."""
    return code_width(symbols)


def pack_bits(i64 n, int width) -> int:
    """Exact length in bits of n packed codes; the bytes are that, rounded up."""
    return packed_bits(n, width)


cdef int check_width(int width) except -1:
    if width < 0 or width > 16:
        raise ValueError(f"width must lie in [0, 16], got {width}")
    return 0


def pack(codes, int width, out) -> None:
    """codes (u16, below 2^width; width 0: below 3) -> out (u8, ceil(pack_bits / 8) bytes)."""
    cdef View c = view(codes, b"H"), o = view(out, b"B", True)
    cdef const u16* p = <const u16*>c.buffer.buf
    cdef u8* q = o.u8s()
    cdef u32 block[CODE_BUFFER]
    cdef i64 index, start
    cdef int i, n
    check_width(width)
    need(o, packed_bytes(c.n, width), "out")
    with nogil:
        for index in range(ceil_div(c.n, PACK_BLOCK)):
            start = index * PACK_BLOCK
            n = <int>min(<i64>PACK_BLOCK, c.n - start)
            for i in range(n):
                block[i] = p[start + i]
            pack_codes(block, n, width, q + index * packed_block_bytes(width))


def unpack(data, int width, out) -> None:
    """The inverse of pack: data (u8) -> out (u16, as many codes as it has room for)."""
    cdef View d = view(data, b"B"), o = view(out, b"H", True)
    cdef const u8* p = d.u8s()
    cdef u16* q = <u16*>o.buffer.buf
    cdef u32 block[CODE_BUFFER]
    cdef i64 index, start
    cdef int i, n
    check_width(width)
    need(d, packed_bytes(o.n, width), "data")
    with nogil:
        for index in range(ceil_div(o.n, PACK_BLOCK)):
            start = index * PACK_BLOCK
            n = <int>min(<i64>PACK_BLOCK, o.n - start)
            unpack_codes(p + index * packed_block_bytes(width), n, width, block)
            for i in range(n):
                q[start + i] = <u16>block[i]
