# Top-K. The k best of everything read so far are kept in a buffer with room for as many again. An element enters
# only above a threshold; when the buffer is full, a radix selection keeps its k best and raises the threshold to
# theirs. So the result is exact whatever the threshold started from, and the time is linear: a selection costs
# about as much as the insertions that made it necessary. The start comes from a sample, and lets in about 1.3 k
# elements where the sample is any good; where it let in fewer than k, the pass is repeated from zero.
# Above k = d/8 the buffer would not be small: the selection runs on the vector itself.

cdef extern from "select.h" nogil:
    enum:
        MASK_BLOCK
        MASK_LANES
    ctypedef struct bijection:
        u32 last
    bijection bijection_of(u64, u64)
    u32 feistel(u32, bijection)
    u32 rotated(u32, bijection)
    i64 sample_place(u32, i64)
    i64 sample_rank(i64, i64, i64)

ctypedef fused real_out:
    f32
    f64

cdef enum:
    TOPK_SAMPLE = 1 << 15
    FLAGS = 4096
    FLAG_GROUPS = 512
    SUBSET_BLOCK = 1024


cdef int check_dimension(u64 d) except -1:
    if d > <u64>1 << 32:
        raise ValueError(f"d = {d}: a vector whose indices are 32 bits has at most 2^32 coordinates")
    return 0


cdef inline u64 magnitude(real x) noexcept nogil:
    if real is f32:
        return magnitude_f32(x)
    else:
        return magnitude_f64(x)


cdef inline u8 reaches(real x, u64 threshold) noexcept nogil:
    if real is f32:
        return <i32>magnitude_f32(x) >= <i32>threshold     # signed: SSE2 compares nothing else
    else:
        return magnitude_f64(x) >= threshold


cdef u64 kth_magnitude(const real* value, i64 n, i64 k, i64* ties) noexcept nogil:
    """The k-th largest magnitude, and how many of the k have exactly it. Radix selection, 12 bits a pass."""
    cdef u32 histogram[4096]
    cdef u64 low = ~<u64>0, high = 0, above, span, bucket
    cdef int shift
    cdef i64 i
    for i in range(n):
        low = min(low, magnitude[real](value[i]))
        high = max(high, magnitude[real](value[i]))
    span = high - low
    while span:
        shift = 0
        while span >> shift > 4095:
            shift += 1
        memset(histogram, 0, sizeof(histogram))
        for i in range(n):
            above = magnitude[real](value[i]) - low
            if above <= span:
                histogram[above >> shift] += 1
        bucket = span >> shift
        while bucket and histogram[bucket] < k:          # bucket 0 ends it even if value changes meanwhile
            k -= histogram[bucket]
            bucket -= 1
        low += bucket << shift
        span = (<u64>1 << shift) - 1
    ties[0] = k
    return low


cdef void keep_largest(const real* value, const u32* index, i64 n, i64 k, u64 kth, i64 ties,
                       real* value_out, u32* index_out) noexcept nogil:
    """The k elements above kth, or among the first `ties` equal to it, in order. index NULL: 0, 1, 2, ..."""
    cdef i64 i = 0, kept = 0
    cdef u64 m
    cdef bint tied
    while kept < k and i < n:
        m = magnitude[real](value[i])
        tied = (m == kth) & (ties > 0)
        ties -= tied
        index_out[kept] = <u32>i if index == NULL else index[i]
        if value_out != NULL:
            value_out[kept] = value[i]
        kept += (m > kth) | tied
        i += 1


cdef inline i64 append_flagged(const u8* flag, int n, u32 first, u32* out) noexcept nogil:
    """Appends first + i for every flag i that is 1: n <= FLAGS, a multiple of 8, and n places may be written.

    Flags are rare: groups of eight that hold one are listed first, so that no branch depends on a flag.
    """
    cdef u32 busy[FLAG_GROUPS]
    cdef u64 eight
    cdef i64 m = 0
    cdef int i, j, groups = 0
    for i in range(0, n, 8):
        memcpy(&eight, flag + i, 8)
        busy[groups] = <u32>i
        groups += eight != 0
    for j in range(groups):
        for i in range(8):
            out[m] = first + busy[j] + <u32>i
            m += flag[busy[j] + <u32>i]
    return m


cdef u64 sampled_threshold(const real* x, i64 n, i64 k, real* sample) noexcept nogil:
    """A magnitude that a little more than k elements reach, from one element of each of n/32 or fewer strata."""
    cdef i64 size = min(<i64>TOPK_SAMPLE, n // 32), stride = n // size, rank = sample_rank(size, k, n), i, ties
    for i in range(size):
        sample[i] = x[sample_place(<u32>i, stride)]
    return kth_magnitude[real](sample, size, rank, &ties) if rank < size else 0


cdef i64 collect(const real* x, i64 n, i64 k, u64 threshold, real* value, u32* index, i64 room) noexcept nogil:
    """The elements that reach the threshold, in order, or a subset of them that holds the k largest."""
    cdef u8 flag[FLAGS]
    cdef i64 block, start, count, m = 0, end, i, ties
    for block in range(ceil_div(n, FLAGS)):
        start = block * FLAGS
        count = min(<i64>FLAGS, n - start)
        for i in range(count):
            flag[i] = reaches[real](x[start + i], threshold)
        memset(flag + count, 0, FLAGS - count)
        end = m + append_flagged(flag, FLAGS, <u32>start, index + m)
        for i in range(m, end):
            value[i] = x[index[i]]
        m = end
        if m > room - FLAGS:
            threshold = kth_magnitude[real](value, m, k, &ties)
            keep_largest[real](value, index, m, k, threshold, ties, value, index)
            threshold += 1      # a later element that only equals the k-th loses the tie
            m = k
    return m


cdef int select_largest(const real* x, i64 n, i64 k, u32* out) noexcept nogil:
    cdef i64 room = 2 * k + n // 32 + 2 * FLAGS, m, ties
    cdef real* value
    cdef u32* index
    cdef u64 kth
    if n < 4096 or k > n // 8:
        kth = kth_magnitude[real](x, n, k, &ties)
        keep_largest[real](x, NULL, n, k, kth, ties, NULL, out)
        return 0
    value = <real*>malloc(room * (sizeof(real) + sizeof(u32)))
    if value == NULL:
        return -1
    index = <u32*>(value + room)
    m = collect[real](x, n, k, sampled_threshold[real](x, n, k, value), value, index, room)
    if m < k:
        m = collect[real](x, n, k, 0, value, index, room)
    kth = kth_magnitude[real](value, m, k, &ties)
    keep_largest[real](value, index, m, k, kth, ties, NULL, out)
    free(value)
    return 0


def topk(x, indices) -> None:
    """indices (u32, length k, 1 <= k <= d): the places of the k largest |x|, ascending; ties go to the lowest.

    x is finite. Extra memory: (4 + itemsize) bytes for each of 2k + d/32 + 8192 candidates while k <= d/8, then none.
    """
    cdef View v = view(x, b"fd")
    cdef View o = view(indices, b"I", True)
    cdef int failed
    check_dimension(<u64>v.n)
    if not 1 <= o.n <= v.n:
        raise ValueError(f"k = {o.n}: expected 1 <= k <= {v.n}, the length of x")
    with nogil:
        if v.kind == c"f":
            failed = select_largest[f32](v.f32s(), v.n, o.n, o.u32s())
        else:
            failed = select_largest[f64](v.f64s(), v.n, o.n, o.u32s())
    if failed:
        raise MemoryError("topk: no memory for the candidates")


cdef int check_indices(View indices, i64 size) except -1:
    """ValueError unless every index is below size."""
    cdef const u32* p = indices.u32s()
    cdef u32 largest = 0
    cdef i64 i, n = indices.n
    with nogil:
        for i in range(n):
            largest = max(largest, p[i])
    if n > 0 and largest >= size:
        raise ValueError(f"index {largest} is outside a vector of size {size}")
    return 0


cdef int check_lengths(View values, View indices) except -1:
    if values.n != indices.n:
        raise ValueError(f"{values.n} values for {indices.n} indices")
    return 0


cdef void gather_to(const real* x, const u32* index, i64 n, real_out* out) noexcept nogil:
    cdef i64 i
    for i in range(n):
        out[i] = <real_out>x[index[i]]


def gather(x, indices, out, bint trusted=False) -> None:
    """out[j] = x[indices[j]], rounded to the type of out; ValueError, and nothing written, for an index outside x.

    trusted: the indices come from a kernel that keeps them below the length of x, and are not looked at first.
    """
    cdef View v = view(x, b"fd")
    cdef View p = view(indices, b"I")
    cdef View o = view(out, b"fd", True)
    check_lengths(o, p)
    if not trusted:
        check_indices(p, v.n)
    with nogil:
        if v.kind == c"f" and o.kind == c"f":
            gather_to[f32, f32](v.f32s(), p.u32s(), p.n, o.f32s())
        elif v.kind == c"f":
            gather_to[f32, f64](v.f32s(), p.u32s(), p.n, o.f64s())
        elif o.kind == c"f":
            gather_to[f64, f32](v.f64s(), p.u32s(), p.n, o.f32s())
        else:
            gather_to[f64, f64](v.f64s(), p.u32s(), p.n, o.f64s())


cdef void scatter_add_to(const real* value, const u32* index, i64 n, real_out* out, real_out weight) noexcept nogil:
    cdef i64 i
    for i in range(n):
        out[index[i]] += weight * <real_out>value[i]


def scatter_add(values, indices, out, f64 weight=1.0, bint trusted=False) -> None:
    """out[indices[j]] += weight * values[j] for j = 0, 1, ..., product and sum in the type of out.

    ValueError, and nothing written, for an index outside out; trusted as in gather.
    """
    cdef View v = view(values, b"fd")
    cdef View p = view(indices, b"I")
    cdef View o = view(out, b"fd", True)
    check_lengths(v, p)
    if not trusted:
        check_indices(p, o.n)
    with nogil:
        if v.kind == c"f" and o.kind == c"f":
            scatter_add_to[f32, f32](v.f32s(), p.u32s(), p.n, o.f32s(), <f32>weight)
        elif v.kind == c"f":
            scatter_add_to[f32, f64](v.f32s(), p.u32s(), p.n, o.f64s(), weight)
        elif o.kind == c"f":
            scatter_add_to[f64, f32](v.f64s(), p.u32s(), p.n, o.f32s(), <f32>weight)
        else:
            scatter_add_to[f64, f64](v.f64s(), p.u32s(), p.n, o.f64s(), weight)


cdef void add_or_store_to(const real* value, i64 n, real_out* out, real_out weight, bint add) noexcept nogil:
    cdef i64 i
    if add:
        for i in range(n):
            out[i] += weight * <real_out>value[i]
    else:
        for i in range(n):
            out[i] = <real_out>value[i]


def add_or_store(values, out, f64 weight=1.0, bint add=True) -> None:
    """out[j] += weight * values[j], product and sum in the type of out; without `add`, out[j] = values[j]."""
    cdef View v = view(values, b"fd")
    cdef View o = view(out, b"fd", True)
    if v.n != o.n:
        raise ValueError(f"{v.n} values for a vector of {o.n}")
    with nogil:
        if v.kind == c"f" and o.kind == c"f":
            add_or_store_to[f32, f32](v.f32s(), v.n, o.f32s(), <f32>weight, add)
        elif v.kind == c"f":
            add_or_store_to[f32, f64](v.f32s(), v.n, o.f64s(), weight, add)
        elif o.kind == c"f":
            add_or_store_to[f64, f32](v.f64s(), v.n, o.f32s(), <f32>weight, add)
        else:
            add_or_store_to[f64, f64](v.f64s(), v.n, o.f64s(), weight, add)


cdef void subset_block(bijection p, u32 start, int n, u32* out) noexcept nogil:
    """out[i] = subset_index(start + i). All walk together, and those that have landed leave."""
    cdef u32 value[SUBSET_BLOCK]
    cdef u32 place[SUBSET_BLOCK]
    cdef int i, walking, still
    for i in range(n):
        out[i] = feistel(start + <u32>i, p)
    walking = 0
    for i in range(n):
        place[walking] = i
        walking += out[i] > p.last
    while walking:
        for i in range(walking):
            value[i] = feistel(out[place[i]], p)
        still = 0
        for i in range(walking):
            out[place[i]] = value[i]
            place[still] = place[i]
            still += value[i] > p.last
        walking = still
    for i in range(n):
        out[i] = rotated(out[i], p)


def random_subset(u64 key, u64 d, u64 start, indices) -> None:
    """indices[j] = (pi(start + j) + r) mod d: distinct, unsorted, each coordinate with probability len/d.

    pi is the bijection of [0, d) and r the uniform shift that belong to the key; d <= 2^32.
    """
    cdef View o = view(indices, b"I", True)
    cdef u32* out = o.u32s()
    cdef bijection p
    cdef i64 block, base, n = o.n
    check_dimension(d)
    if start > d or <u64>n > d - start:
        raise ValueError(f"positions {start} to {start + n} of a permutation of {d}")
    with nogil:
        p = bijection_of(key, d)
        for block in range(ceil_div(n, SUBSET_BLOCK)):
            base = block * SUBSET_BLOCK
            subset_block(p, <u32>start + <u32>base, <int>min(n - base, <i64>SUBSET_BLOCK), out + base)


cdef void mask_flags(u64 key, u64 block, u32 last, u8* flag) noexcept nogil:
    """flag[i] = 1 where the 32 bits of coordinate 128 block + i are at most `last`."""
    cdef philox_out r
    cdef int lane
    for lane in range(MASK_LANES):
        r = random_at(block * MASK_LANES + <u64>lane, STREAM_MASK, key)
        flag[lane] = r.w[0] <= last
        flag[lane + MASK_LANES] = r.w[1] <= last
        flag[lane + 2 * MASK_LANES] = r.w[2] <= last
        flag[lane + 3 * MASK_LANES] = r.w[3] <= last


cdef i64 bernoulli(u64 key, i64 d, u64 threshold, u32* out, i64 room) noexcept nogil:
    """How many coordinates are kept; the first `room` of them go to out."""
    cdef u8 flag[MASK_BLOCK]
    cdef u32 kept[MASK_BLOCK]
    cdef i64 block, total = 0, m
    if threshold == 0:
        return 0
    threshold = min(threshold, <u64>1 << 32)
    for block in range(ceil_div(d, MASK_BLOCK)):
        mask_flags(key, <u64>block, <u32>(threshold - 1), flag)
        if d - block * MASK_BLOCK < MASK_BLOCK:
            memset(flag + (d - block * MASK_BLOCK), 0, MASK_BLOCK - (d - block * MASK_BLOCK))
        m = append_flagged(flag, MASK_BLOCK, <u32>(block * MASK_BLOCK), kept)
        if total < room:
            memcpy(out + total, kept, min(m, room - total) * sizeof(u32))
        total += m
    return total


def bernoulli_count(u64 key, u64 d, u64 threshold) -> int:
    """How many coordinates of [0, d) have 32 random bits below the threshold, 0 <= threshold <= 2^32."""
    cdef i64 total
    check_dimension(d)
    with nogil:
        total = bernoulli(key, <i64>d, threshold, NULL, 0)
    return total


def bernoulli_indices(u64 key, u64 d, u64 threshold, out) -> int:
    """out (u32): the coordinates that bernoulli_count counts, ascending, as many as fit; returns how many there are."""
    cdef View o = view(out, b"I", True)
    cdef i64 total
    check_dimension(d)
    with nogil:
        total = bernoulli(key, <i64>d, threshold, o.u32s(), o.n)
    return total
