cdef extern from "rice.h" nogil:
    enum:
        RICE_CHUNK
        RICE_MAX_PARAMETER
        RICE_MAX_BITS
        RICE_WORDS
        RICE_FINE
        RICE_NOT_ASCENDING
        RICE_LENGTH
        RICE_TRUNCATED
        RICE_UNARY
        RICE_INDEX
        RICE_ROOM
    u32 rice_entry(int, u32)
    int rice_parameter(u32)
    u32 rice_length(u32)
    u64 rice_code_bits(u64, int, u64)
    int rice_entry_fits(u32, u64)
    int rice_first_parameter(u64, u64)
    u32 rice_field(const u64*, u32, int)
    u64 rice_bound_bits(u64, u64)

cdef extern from "rice_cpu.h" nogil:
    int lowest_one(u64)

cdef u64 quotient_sum(const u32* gap, i64 n, int l) noexcept nogil:
    cdef u64 total = 0
    cdef i64 i
    for i in range(n):
        total += gap[i] >> l
    return total


cdef int best_parameter(const u32* gap, i64 n, u64* bits) noexcept nogil:
    """Design note C of rice.h: from the logarithm of the mean gap, downhill."""
    cdef int l = rice_first_parameter(<u64>n, quotient_sum(gap, n, 0))
    cdef u64 here = rice_code_bits(<u64>n, l, quotient_sum(gap, n, l)), other
    while l < RICE_MAX_PARAMETER:
        other = rice_code_bits(<u64>n, l + 1, quotient_sum(gap, n, l + 1))
        if other >= here:
            break
        here = other
        l += 1
    while l > 0:
        other = rice_code_bits(<u64>n, l - 1, quotient_sum(gap, n, l - 1))
        if other > here:
            break
        here = other
        l -= 1
    bits[0] = here
    return l


cdef void encode_chunk(const u32* gap, i64 n, int l, u64* word) noexcept nogil:
    """Into zeroed words: the fields of low bits, then the unary strings."""
    cdef u32 mask = (<u32>1 << l) - 1
    cdef u64 filling = 0, value, at = 0, to = 0
    cdef i64 i
    for i in range(n):
        value = gap[i] & mask
        filling |= value << (at & 63)
        if (at & 63) + l >= 64:
            word[at >> 6] = filling
            filling = value >> (64 - (at & 63))     # l < 32, so this shift is never by 64
        at += l
    to = at >> 6
    for i in range(n):
        at += gap[i] >> l
        if at >> 6 != to:
            word[to] = filling
            filling = 0
            to = at >> 6
        filling |= <u64>1 << (at & 63)
        at += 1
    word[to] = filling


cdef int encode_rice(const u32* index, i64 k, u64 d, u8* out, i64 room, u64* bits, i64* chunk) noexcept nogil:
    cdef i64 chunks = ceil_div(k, RICE_CHUNK), c, n, i, used = 4 * chunks
    cdef u64 length = 0
    cdef u32 gap[RICE_CHUNK]
    cdef u64 word[RICE_WORDS]
    cdef u32 entry, before = <u32>-1
    cdef bint descends
    cdef const u32* p
    cdef int l
    bits[0] = 0
    if used > room:
        return RICE_ROOM
    for c in range(chunks):
        chunk[0] = c
        p = index + c * RICE_CHUNK
        n = min(<i64>RICE_CHUNK, k - c * RICE_CHUNK)
        gap[0] = p[0] - before - 1
        descends = c > 0 and p[0] <= before
        for i in range(1, n):
            gap[i] = p[i] - p[i - 1] - 1
            descends |= p[i] <= p[i - 1]
        if descends:
            return RICE_NOT_ASCENDING
        before = p[n - 1]
        if before >= d:
            return RICE_INDEX
        l = best_parameter(gap, n, &length)
        if used + ceil_div(<i64>length, 8) > room:
            return RICE_ROOM
        memset(word, 0, sizeof(word))
        encode_chunk(gap, n, l, word)
        entry = rice_entry(l, <u32>length)
        memcpy(out + 4 * c, &entry, 4)
        memcpy(out + used, word, ceil_div(<i64>length, 8))
        bits[0] = 8 * <u64>used + length
        used += ceil_div(<i64>length, 8)
    return RICE_FINE


cdef bint decode_chunk(const u64* word, i64 n, int l, u64 bits, u64 first, u32* out, u64* after) noexcept nogil:
    """n indices from `first` on; False unless the unary part is n strings that end at `bits`."""
    cdef u64 start = <u64>(n * l), w, at = 0, lows = 0, index = first
    cdef u64 t
    cdef i64 i = 0
    for t in range(start >> 6, (bits + 63) >> 6):
        w = word[t]
        if t == start >> 6:
            w = w >> (start & 63) << (start & 63)
        while w != 0:
            if i == n:
                return False
            at = t * 64 + <u64>lowest_one(w)
            lows += rice_field(word, <u32>i, l)
            index = first + (at - start - <u64>i << l) + lows + <u64>i
            out[i] = <u32>index
            i += 1
            w &= w - 1
    after[0] = index + 1
    return i == n and at + 1 == bits


cdef int decode_rice(const u8* data, i64 size, u64 d, u32* out, i64 k, u64* bits, i64* chunk) noexcept nogil:
    cdef i64 chunks = ceil_div(k, RICE_CHUNK), c, n, used = 4 * chunks, length
    cdef u64 word[RICE_WORDS]
    cdef u64 first = 0
    cdef u32 entry
    cdef int l
    bits[0] = 0
    chunk[0] = 0
    if used > size:
        return RICE_TRUNCATED
    for c in range(chunks):
        chunk[0] = c
        memcpy(&entry, data + 4 * c, 4)
        n = min(<i64>RICE_CHUNK, k - c * RICE_CHUNK)
        l = rice_parameter(entry)
        length = rice_length(entry)
        if not rice_entry_fits(entry, <u64>n):
            return RICE_LENGTH
        if ceil_div(length, 8) > size - used:
            return RICE_TRUNCATED
        memset(<u8*>word + (length >> 6) * 8, 0, 16)
        memcpy(word, data + used, ceil_div(length, 8))
        if not decode_chunk(word, n, l, <u64>length, first, out + c * RICE_CHUNK, &first):
            return RICE_UNARY
        if first > d:
            return RICE_INDEX
        bits[0] = 8 * <u64>used + <u64>length
        used += ceil_div(length, 8)
    return RICE_FINE


def rice_bound(u64 d, u64 k) -> int:
    """At most this many bits encode k indices below d, 0 <= k <= d <= 2^32 (proof: rice.h, D)."""
    check_dimension(d)
    if k > d:
        raise ValueError(f"k = {k} indices below d = {d}")
    return rice_bound_bits(d, k)


def rice_encode(indices, u64 d, out) -> int:
    """Writes ascending indices below d to out (u8, rice_bound(d, k) bits suffice); returns the exact bits."""
    cdef View p = view(indices, b"I")
    cdef View o = view(out, b"B", True)
    cdef u64 bits
    cdef i64 chunk
    cdef int fault
    with nogil:
        fault = encode_rice(p.u32s(), p.n, d, o.u8s(), o.n, &bits, &chunk)
    if fault == RICE_NOT_ASCENDING:
        raise ValueError(f"indices are not strictly ascending near position {chunk * RICE_CHUNK}")
    if fault == RICE_INDEX:
        raise ValueError(f"an index near position {chunk * RICE_CHUNK} is outside a vector of size {d}")
    if fault == RICE_ROOM:
        raise ValueError(f"{p.n} indices need more than the {o.n} bytes of out")
    return bits


def rice_decode(data, u64 d, indices) -> int:
    """Fills indices (u32, length k) from data (u8), which may go on; returns the bits consumed.

    ValueError where data is not the code of k ascending indices below d <= 2^32 (rice.h, F).
    """
    cdef View p = view(data, b"B")
    cdef View o = view(indices, b"I", True)
    cdef u64 bits
    cdef i64 chunk
    cdef int fault
    check_dimension(d)
    with nogil:
        fault = decode_rice(p.u8s(), p.n, d, o.u32s(), o.n, &bits, &chunk)
    if fault == RICE_TRUNCATED:
        raise ValueError(f"coded indices: truncated at chunk {chunk}, {p.n} bytes for {o.n} indices")
    if fault == RICE_LENGTH:
        raise ValueError(f"coded indices: chunk {chunk} cannot have the parameter and length its table entry says")
    if fault == RICE_UNARY:
        raise ValueError(f"coded indices: the codes of chunk {chunk} do not end where its table entry says")
    if fault == RICE_INDEX:
        raise ValueError(f"coded indices: chunk {chunk} leaves a vector of size {d}")
    return bits
