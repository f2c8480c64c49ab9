# Selection. The k-th largest of some maxima is no larger than the k-th largest of all: 4k interleaved groups give a
# threshold that at least k elements reach, and on data without structure about 1.2 k. Those are collected and the
# k-th among them is found by bisection on the bits, counting with vector comparisons: nothing leaves the first-level
# cache, nothing depends on a guess. Above k = chunk/16 the bisection runs on the whole chunk.

cdef extern from "chunk.h" nogil:
    enum:
        CHUNK_TRIALS
        CHUNK_HEADER
        LLOYD_STEPS
    ctypedef struct level_line:
        u32 bottom
        u32 top
        u32 span
    ctypedef struct chunk_levels:
        pass
    ctypedef struct chunk_fit:
        u32 high
        u32 low
        u32 mean
    ctypedef struct chunk_start:
        pass
    u32 line_of(f64)
    f64 chunk_threshold(f64, f64)
    f64 lloyd_step(f64, f64, i64, i64, f64*, f64*)
    f64 lloyd_energy(f64, f64, f64, f64)
    chunk_fit chunk_spread(f64, f64, f64, u32)
    level_line line_empty()
    level_line line_add(level_line, chunk_fit)
    level_line line_closed(level_line)
    bint chunk_sent(level_line, chunk_fit)
    chunk_start chunk_start_of(level_line, chunk_fit)
    bint chunk_trial(chunk_start, u32, int, u32*, u32*)
    chunk_levels chunk_levels_of(level_line, u32, u32, u32)
    f64 chunk_level(chunk_levels, u32)
    bint line_valid(level_line, f64)
    i64 chunk_codes_start(i64, int)
    i64 chunk_bytes(i64, i64, int)

cdef enum:
    CHUNK_MAX = 1 << 16
    CHUNK_GROUPS = 4            # groups for each of the k


cdef i64 count_reaching(const real* x, i64 n, u64 threshold) noexcept nogil:
    cdef i32 count = 0
    cdef i64 wide = 0, i
    if real is f32:
        for i in range(n):
            count += <i32>magnitude_f32(x[i]) >= <i32>threshold
        return count
    else:
        for i in range(n):
            wide += <i64>magnitude_f64(x[i]) >= <i64>threshold
        return wide


cdef u64 bisect_magnitude(const real* x, i64 n, i64 k, int lowest) noexcept nogil:
    """The k-th largest magnitude, with the bits below `lowest` cleared."""
    cdef u64 found = 0
    cdef int bit = 31 if real is f32 else 63
    while bit > lowest:
        bit -= 1
        if count_reaching[real](x, n, found | <u64>1 << bit) >= k:
            found |= <u64>1 << bit
    return found


cdef inline real larger(real x, real largest) noexcept nogil:
    """max(|x|, largest), largest >= 0, through integers."""
    if real is f32:
        return f32_bits(<u32>max(<i32>magnitude_f32(x), <i32>bits_f32(largest)))
    else:
        return f64_bits(<u64>max(<i64>magnitude_f64(x), <i64>bits_f64(largest)))


cdef void group_maxima(const real* x, i64 n, i64 groups, real* maximum) noexcept nogil:
    """maximum[g] has the largest magnitude among x[g], x[g + groups], ..."""
    cdef i64 row, i, m
    for i in range(groups):
        maximum[i] = 0
    for row in range(ceil_div(n, groups)):
        m = min(groups, n - row * groups)
        for i in range(m):
            maximum[i] = larger(x[row * groups + i], maximum[i])


cdef i64 collect_reaching(const real* x, i64 n, u64 threshold, real* value, u32* index) noexcept nogil:
    """The elements that reach the threshold, in order; index has room for a block of flags more than n."""
    cdef u8 flag[FLAGS]
    cdef i64 start = 0, count, m = 0, end, i
    while start < n:
        count = min(<i64>FLAGS, n - start)
        for i in range(count):
            flag[i] = reaches[real](x[start + i], threshold)
        memset(flag + count, 0, -count & 7)
        end = m + append_flagged(flag, <int>(count + 7 & ~7), <u32>start, index + m)
        for i in range(m, end):
            value[i] = x[index[i]]
        m = end
        start += FLAGS
    return m


cdef void select_in_chunk(const real* x, i64 n, i64 k, u32 start, real* value, u32* index, u32* out) noexcept nogil:
    """The k largest of a chunk, ascending; value and index are room for n + FLAGS elements."""
    cdef i64 m = n, i
    cdef u64 threshold
    if k * 16 <= n:
        group_maxima[real](x, n, CHUNK_GROUPS * k, value)
        threshold = bisect_magnitude[real](value, CHUNK_GROUPS * k, k, 15 if real is f32 else 44)
        m = collect_reaching[real](x, n, threshold, value, index)
    else:
        memcpy(value, x, n * sizeof(real))
        for i in range(n):
            index[i] = <u32>i
    threshold = bisect_magnitude[real](value, m, k, 0)
    keep_largest[real](value, index, m, k, threshold, k - count_reaching[real](value, m, threshold + 1), NULL, out)
    for i in range(k):
        out[i] += start


cdef int select_chunks(const real* x, i64 n, i64 chunk, i64 k, u32* out) noexcept nogil:
    cdef i64 room = chunk + FLAGS, start = 0, length, count
    cdef real* value = <real*>malloc(room * (sizeof(real) + sizeof(u32)))
    cdef u32* index = <u32*>(value + room)
    if value == NULL:
        return -1
    while start < n:
        length = min(chunk, n - start)
        count = ceil_div(k * length, chunk)
        select_in_chunk[real](x + start, length, count, <u32>start, value, index, out)
        out += count
        start += length
    free(value)
    return 0


cdef int check_chunk(i64 chunk, i64 k) except -1:
    if not 1 <= k <= chunk <= CHUNK_MAX:
        raise ValueError(f"k = {k} of chunk = {chunk}: expected 1 <= k <= chunk <= {CHUNK_MAX}")
    return 0


def chunk_topk(x, i64 chunk, i64 k, indices) -> None:
    """indices (u32): the places of the k largest |x| of every chunk, ascending; ties go to the lowest.

    Of a last chunk of n < chunk elements the ceil(k n / chunk) largest. x is finite.
    """
    cdef View v = view(x, b"fd")
    cdef View o = view(indices, b"I", True)
    cdef int failed
    cdef i64 expected
    check_chunk(chunk, k)
    check_dimension(<u64>v.n)
    expected = v.n // chunk * k + ceil_div(k * (v.n % chunk), chunk)
    if o.n != expected:
        raise ValueError(f"{o.n} indices, {k} of every {chunk} of {v.n} are {expected}")
    with nogil:
        if v.kind == c"f":
            failed = select_chunks[f32](v.f32s(), v.n, chunk, k, o.u32s())
        else:
            failed = select_chunks[f64](v.f64s(), v.n, chunk, k, o.u32s())
    if failed:
        raise MemoryError("chunk_topk: no memory for the candidates")


# Values. Two passes over the chunks: what levels each wants, as places on the line; then, with the range of the line
# known, its byte, nibble and codes. Sums are in the order of reduce.h.

cdef f64 lloyd(const f64* a, i64 k, f64 total, f64 threshold, f64* work, f64* low, f64* high) noexcept nogil:
    """Two levels by Lloyd's iteration from a threshold; returns the energy that they capture."""
    cdef f64 above = 0
    cdef i64 count, i
    cdef int _step
    for _step in range(LLOYD_STEPS):
        count = 0
        for i in range(k):
            work[i] = a[i] if a[i] >= threshold else 0
            count += a[i] >= threshold
        if count == 0 or count == k:
            low[0] = high[0] = total / k
            return total * high[0]
        above = sum_leaf[f64](work, k, SELF)
        threshold = lloyd_step(total, above, count, k, low, high)
    return lloyd_energy(total, above, low[0], high[0])


cdef chunk_fit fit_chunk(const f64* a, i64 k, u32 levels, f64* work) noexcept nogil:
    cdef chunk_fit fit
    cdef f64 total = sum_leaf[f64](a, k, SELF), least = a[0], most = 0
    cdef f64 low[2]
    cdef f64 high[2]
    cdef int best
    cdef i64 i
    for i in range(k):
        least = min(least, a[i])
        most = max(most, a[i])
    fit.high = fit.low = fit.mean = line_of(total / k)
    if most == 0 or levels == 1:
        return fit
    if levels == 2:
        best = lloyd(a, k, total, total / k, work, low, high) < \
            lloyd(a, k, total, (least + most) / 2, work, low + 1, high + 1)
        fit.high = line_of(high[best])
        fit.low = line_of(low[best])
        return fit
    return chunk_spread(total / k, least, most, levels)


cdef f64 levels_error(const f64* a, i64 k, chunk_levels l, u32 levels, f64* work) noexcept nogil:
    """The squared error of the nearest of the levels."""
    cdef f64 level = chunk_level(l, 0), before, threshold
    cdef u32 c
    cdef i64 i
    for i in range(k):
        work[i] = level
    for c in range(1, levels):
        before = level
        level = chunk_level(l, c)
        threshold = chunk_threshold(before, level)
        for i in range(k):
            work[i] = level if a[i] >= threshold else work[i]
    for i in range(k):
        work[i] -= a[i]
    return sum_leaf[f64](work, k, SQUARE)


cdef void choose_levels(const f64* a, i64 k, level_line line, chunk_fit fit, u32 levels, f64* work,
                        u32* scale, u32* ratio) noexcept nogil:
    """The byte and the nibble of a chunk that is not zero."""
    cdef chunk_start start = chunk_start_of(line, fit)
    cdef f64 error, least = 0
    cdef u32 s, r
    cdef int t
    scale[0] = 0
    for t in range(CHUNK_TRIALS):
        if not chunk_trial(start, levels, t, &s, &r):
            continue
        error = levels_error(a, k, chunk_levels_of(line, s, r, levels), levels, work)
        if scale[0] == 0 or error < least:
            least = error
            scale[0] = s
            ratio[0] = r


cdef void chunk_codes(const real* x, const f64* a, i64 k, chunk_levels l, int width, u8* code) noexcept nogil:
    """The sign and the number of the nearest level."""
    cdef f64 level = chunk_level(l, 0), before, threshold
    cdef u32 c
    cdef i64 i
    for i in range(k):
        code[i] = <u8>((x[i] < 0) << (width - 1))
    for c in range(1, <u32>1 << (width - 1)):
        before = level
        level = chunk_level(l, c)
        threshold = chunk_threshold(before, level)
        for i in range(k):
            code[i] += a[i] >= threshold


cdef void magnitudes_of(const real* x, i64 n, f64* a) noexcept nogil:
    cdef i64 i
    for i in range(n):
        a[i] = term_abs(x[i])


cdef void pack_bytes(const u8* code, i64 n, int width, u8* out) noexcept nogil:
    cdef u32 block[CODE_BUFFER]
    cdef i64 index, m, i
    for index in range(ceil_div(n, PACK_BLOCK)):
        m = min(<i64>PACK_BLOCK, n - index * PACK_BLOCK)
        for i in range(m):
            block[i] = code[index * PACK_BLOCK + i]
        pack_codes(block, <int>m, width, out + index * packed_block_bytes(width))


cdef void unpack_bytes(const u8* data, i64 n, int width, u8* code) noexcept nogil:
    cdef u32 block[CODE_BUFFER]
    cdef i64 index, m, i
    for index in range(ceil_div(n, PACK_BLOCK)):
        m = min(<i64>PACK_BLOCK, n - index * PACK_BLOCK)
        unpack_codes(data + index * packed_block_bytes(width), <int>m, width, block)
        for i in range(m):
            code[index * PACK_BLOCK + i] = <u8>block[i]


cdef int encode_chunks(const real* x, i64 n, i64 k, int width, u8* out) noexcept nogil:
    cdef i64 chunks = ceil_div(n, k), index, m
    cdef u32 levels = <u32>1 << (width - 1), scale, ratio
    cdef chunk_fit* fit = <chunk_fit*>malloc(chunks * sizeof(chunk_fit) + 2 * k * sizeof(f64) + n + 8)
    cdef f64* a
    cdef f64* work
    cdef u8* code
    cdef u8* ratios = out + CHUNK_HEADER + chunks
    cdef u8* packed = out + chunk_codes_start(chunks, width)
    cdef level_line line = line_empty()
    if fit == NULL:
        return -1
    a = <f64*>(<u8*>fit + (chunks * <i64>sizeof(chunk_fit) + 7 & ~<i64>7))
    work = a + k
    code = <u8*>(work + k)
    for index in range(chunks):
        m = min(k, n - index * k)
        magnitudes_of[real](x + index * k, m, a)
        fit[index] = fit_chunk(a, m, levels, work)
        line = line_add(line, fit[index])
    line = line_closed(line)
    memcpy(out, &line, CHUNK_HEADER)
    memset(ratios, 0, packed - ratios)
    memset(code, 0, n)
    for index in range(chunks):
        m = min(k, n - index * k)
        scale = ratio = 0
        if chunk_sent(line, fit[index]):
            magnitudes_of[real](x + index * k, m, a)
            choose_levels(a, m, line, fit[index], levels, work, &scale, &ratio)
            chunk_codes[real](x + index * k, a, m, chunk_levels_of(line, scale, ratio, levels), width, code + index * k)
        out[CHUNK_HEADER + index] = <u8>scale
        if width > 1:
            ratios[index >> 1] |= <u8>(ratio << 4 * (index & 1))
    pack_bytes(code, n, width, packed)
    free(fit)
    return 0


cdef void decode_chunk_values(const u8* code, i64 k, chunk_levels l, bint zero, int width, real* out) noexcept nogil:
    cdef f64 level
    cdef u32 mask = (<u32>1 << (width - 1)) - 1
    cdef i64 i
    for i in range(k):
        level = 0 if zero else chunk_level(l, code[i] & mask)
        out[i] = <real>(-level if code[i] >> (width - 1) and level else level)


cdef int decode_chunks(const u8* data, i64 n, i64 k, int width, level_line line, real* out) noexcept nogil:
    cdef i64 chunks = ceil_div(n, k), index, m
    cdef const u8* ratios = data + CHUNK_HEADER + chunks
    cdef u8* code = <u8*>malloc(n)
    cdef u32 scale, ratio = 0
    if code == NULL:
        return -1
    unpack_bytes(data + chunk_codes_start(chunks, width), n, width, code)
    for index in range(chunks):
        m = min(k, n - index * k)
        scale = data[CHUNK_HEADER + index]
        if width > 1:
            ratio = ratios[index >> 1] >> 4 * (index & 1) & 15
        decode_chunk_values[real](code + index * k, m, chunk_levels_of(line, max(scale, <u32>1), ratio,
                                  <u32>1 << (width - 1)), scale == 0, width, out + index * k)
    free(code)
    return 0


cdef int check_values(i64 k, int width) except -1:
    if not 1 <= k <= CHUNK_MAX or not 1 <= width <= 8:
        raise ValueError(f"k = {k} values in {width} bits each: expected 1 to {CHUNK_MAX}, and 1 to 8")
    return 0


def chunk_values_bytes(i64 n, i64 k, int width) -> int:
    """Bytes of n values, k a chunk, in `width` bits each: the payload of chunk_values_encode."""
    check_values(k, width)
    return chunk_bytes(n, k, width)


def chunk_values_encode(values, i64 k, int width, out) -> None:
    """Every k values in sign and level (chunk.h). values is finite, its squares are within float64's range."""
    cdef View v = view(values, b"fd")
    cdef View o = view(out, b"B", True)
    cdef int failed = 0
    check_values(k, width)
    need(o, chunk_bytes(v.n, k, width), "out")
    with nogil:
        if v.n and v.kind == c"f":
            failed = encode_chunks[f32](v.f32s(), v.n, k, width, o.u8s())
        elif v.n:
            failed = encode_chunks[f64](v.f64s(), v.n, k, width, o.u8s())
    if failed:
        raise MemoryError("chunk_values_encode: no memory for the codes")


def chunk_values_decode(data, i64 k, int width, values) -> None:
    """The inverse. ValueError where the header's levels are none that an encoder writes for the type of values."""
    cdef View p = view(data, b"B")
    cdef View o = view(values, b"fd", True)
    cdef level_line line
    cdef int failed = 0
    check_values(k, width)
    need(p, chunk_bytes(o.n, k, width), "data")
    if o.n == 0:
        return
    memcpy(&line, p.u8s(), CHUNK_HEADER)
    if not line_valid(line, LARGEST_F32 if o.kind == c"f" else LARGEST_F64):
        raise ValueError(f"levels from {line.bottom:#x} to {line.top:#x} with span {line.span:#x} are not an encoder's")
    with nogil:
        if o.kind == c"f":
            failed = decode_chunks[f32](p.u8s(), o.n, k, width, line, o.f32s())
        else:
            failed = decode_chunks[f64](p.u8s(), o.n, k, width, line, o.f64s())
    if failed:
        raise MemoryError("chunk_values_decode: no memory for the codes")


cdef f64 LARGEST_F32 = f32_bits(INFINITE_F32 - 1), LARGEST_F64 = f64_bits(INFINITE_F64 - 1)
