from libc.stdlib cimport realloc

cdef extern from "entropy_cpu.h" nogil:
    enum:
        ENTROPY_LANES
        ENTROPY_CHUNK
        ENTROPY_SLOTS
        ENTROPY_HEAD
        ENTROPY_SYMBOLS
        ENTROPY_TAIL
    ctypedef enum EntropyFault:
        ENTROPY_FINE
        ENTROPY_TRUNCATED
        ENTROPY_DAMAGED
    ctypedef struct EntropySource:
        const u8* symbol
        const u8* model
        const u16* extra
        const u32* table
    int entropy_lanes(i64)
    u32 entropy_code(u32, u32)
    u32 entropy_slot(u32, u32, u32)
    u32 entropy_order(int)
    u32 entropy_entry(u32, u32, u32)
    i64 entropy_chunk_bytes(u32)
    u32 entropy_head_bytes(int, u32)
    ctypedef struct EntropyBits:
        i64 at, stop
    EntropyBits entropy_bits_at(const u8*, i64, i64)
    u64 entropy_bits(EntropyBits*, int)
    u16* entropy_encode_chunk(const EntropySource*, i64, u16*, u8*, int*, u32*)

ENTROPY_LARGEST_CHUNK = <int>ENTROPY_CHUNK
ENTROPY_LONGEST_TAIL = <int>ENTROPY_TAIL


def entropy_lane_count(i64 n) -> int:
    """The lanes of a chunk of n symbols."""
    return entropy_lanes(n)


# A growing string of bytes and bits, least significant first.
ctypedef struct Writer:
    u8* data
    i64 used, room
    u64 held
    int bits
    bint failed


cdef void reserve(Writer* w, i64 more) noexcept nogil:
    cdef i64 room
    cdef void* data
    if w.used + more > w.room and not w.failed:
        room = 2 * w.room + more
        data = realloc(w.data, room)
        if data == NULL:
            w.failed = True
            return
        w.data = <u8*>data
        w.room = room


cdef void write_bytes(Writer* w, const void* p, i64 n) noexcept nogil:
    reserve(w, n)
    if not w.failed:
        memcpy(w.data + w.used, p, n)
        w.used += n


cdef void write_bits(Writer* w, u64 value, int n) noexcept nogil:
    """n <= 32 bits."""
    cdef u8 byte
    w.held |= value << w.bits
    w.bits += n
    while w.bits >= 8:
        byte = <u8>w.held
        write_bytes(w, &byte, 1)
        w.held >>= 8
        w.bits -= 8


cdef void write_end(Writer* w) noexcept nogil:
    if w.bits:
        write_bits(w, 0, 8 - w.bits)


cdef f64 log2_of(f64 x) noexcept nogil:
    """The same bits on every machine; x > 0 and normal, to 1e-13."""
    cdef u64 b = bits_f64(x)
    cdef i64 e = <i64>(b >> 52) - 1023
    cdef f64 m = f64_bits((b & <u64>0xfffffffffffff) | <u64>1023 << 52), s, z
    if m > 1.4142135623730951:
        m *= 0.5
        e += 1
    s = (m - 1) / (m + 1)
    z = s * s
    s *= 1 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11 + z * (1.0 / 13 + z / 15))))))
    return <f64>e + s * 2.8853900817779268


cdef void frequencies(const u32* count, u32* f) noexcept nogil:
    """4096 shared out by counts, at least one to each: the shortest code, one unit at a time (all zero if n = 0)."""
    cdef u64 n = 0
    cdef i64 total = 0
    cdef f64 gain, best
    cdef int i, k, chosen, used = 0
    cdef u8 which[256]
    memset(f, 0, 1024)
    for i in range(256):
        n += count[i]
    for i in range(256):
        if count[i]:
            f[i] = <u32>(<u64>count[i] * ENTROPY_SLOTS // n)
            f[i] = f[i] if f[i] else 1
            total += f[i]
            which[used] = <u8>i
            used += 1
    while n and total != ENTROPY_SLOTS:
        chosen = -1
        best = 0
        for k in range(used):
            i = which[k]
            if total < ENTROPY_SLOTS:
                gain = count[i] / (f[i] + 0.5)
                if chosen < 0 or gain > best:
                    chosen = i
                    best = gain
            elif f[i] > 1:
                gain = count[i] / (f[i] - 0.5)
                if chosen < 0 or gain < best:
                    chosen = i
                    best = gain
        if total < ENTROPY_SLOTS:
            f[chosen] += 1
            total += 1
        else:
            f[chosen] -= 1
            total -= 1


cdef inline int width_of(u32 x) noexcept nogil:
    cdef int n = 0
    while x >> n:
        n += 1
    return n


cdef void write_model(Writer* w, const u32* f) noexcept nogil:
    """One bit: used? Then frequencies in entropy_order, each in the bits of what is left, until nothing is."""
    cdef u32 left = 0
    cdef int i
    for i in range(256):
        left += f[i]
    write_bits(w, left != 0, 1)
    i = 0 if f[0] + f[1] else 2
    if left:        # escapes are rare: one bit says that there are none
        write_bits(w, i == 0, 1)
    while left:
        write_bits(w, f[entropy_order(i)], width_of(left))
        left -= f[entropy_order(i)]
        i += 1


cdef int read_model(EntropyBits* r, u32* f) noexcept nogil:
    cdef u32 left = ENTROPY_SLOTS
    cdef int i
    memset(f, 0, 4 * 256)
    if not entropy_bits(r, 1):
        return 0
    i = 0 if entropy_bits(r, 1) else 2
    while left:
        if i == ENTROPY_SYMBOLS or r.at > r.stop:
            return -1
        f[entropy_order(i)] = <u32>entropy_bits(r, width_of(left))
        if f[entropy_order(i)] > left:
            return -1
        left -= f[entropy_order(i)]
        i += 1
    return 0


cdef bint is_empty(const u32* count) noexcept nogil:
    cdef u32 any = 0
    cdef int i
    for i in range(256):
        any |= count[i]
    return any == 0


cdef f64 symbol_bits(const u32* count, int models, i64* header) noexcept nogil:
    """Bits of the symbols counted, and of their models, as the coder would write them; header = -1: no memory."""
    cdef u32 f[256]
    cdef f64 bits = 0
    cdef int m, i
    cdef Writer w
    memset(&w, 0, sizeof(w))
    for m in range(models):
        if is_empty(count + 256 * m):
            write_bits(&w, 0, 1)        # as write_model does
            continue
        frequencies(count + 256 * m, f)
        for i in range(256):
            if f[i] and f[i] < <u32>ENTROPY_SLOTS:
                bits += count[256 * m + i] * (12 - log2_of(f[i]))
        write_model(&w, f)
    header[0] = -1 if w.failed else 8 * w.used + w.bits
    free(w.data)
    return bits
