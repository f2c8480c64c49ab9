# Nodes of a power of two positions that hold at most SUBSET_KNOWN have their sums in a table, made when the module is
# imported; the others (tails, and the topmost nodes where k is large) compute them where they stand.

cdef extern from "subset.h" nogil:
    enum:
        SUBSET_BITS
        SUBSET_LEVELS
        SUBSET_MAX
    ctypedef struct subset_reader:
        pass
    ctypedef struct subset_writer:
        u64 low
        u64 range
        u8* next
    ctypedef struct subset_part:
        u64 start
        u64 size
    int subset_level(u32)
    u32 subset_cut(u32)
    u32 subset_least(u32, u32)
    u32 subset_most(u32, u32)
    void subset_sums(u32, u32, u32, f64*, u32*)
    subset_reader subset_open(const u8*, u32)
    subset_part subset_symbol(u64, const u32*, u32)
    u64 subset_share(u64, u32)
    void subset_take(subset_reader*, subset_part)
    u32 subset_find(const subset_reader*, const u32*, u32, subset_part*)
    u32 subset_find_position(const subset_reader*, u32, subset_part*)
    void subset_put(subset_writer*, subset_part)
    void subset_close(subset_writer*, u8*)

cdef enum:
    SUBSET_KNOWN = 64

cdef u32 subset_table[SUBSET_LEVELS][SUBSET_KNOWN + 1][SUBSET_KNOWN + 2]


cdef void fill_subset_table() noexcept nogil:
    cdef f64 weight[SUBSET_KNOWN + 2]
    cdef int level
    cdef u32 m
    for level in range(1, SUBSET_LEVELS):
        for m in range(2, min(<u32>SUBSET_KNOWN + 1, <u32>1 << level)):
            subset_sums(<u32>1 << level - 1, <u32>1 << level - 1, m, weight, subset_table[level][m])


fill_subset_table()


cdef struct subset_room:
    f64* weight                 # k + 2 of both
    u32* sum


cdef inline const u32* node_sums(u32 n, int level, u32 a, u32 m, subset_room room) noexcept nogil:
    """The frequency sums of a node of n positions; level is log2 n, or -1 where n is no power of two."""
    if level >= 0 and m <= SUBSET_KNOWN:
        return subset_table[level][m]
    subset_sums(a, n - a, m, room.weight, room.sum)
    return room.sum


cdef inline int level_of(u32 n) noexcept nogil:
    return subset_level(n) if n & (n - 1) == 0 else -1


cdef void write_node(subset_writer* c, const u32* index, u32 start, u32 n, u32 m, subset_room room) noexcept nogil:
    """The code of the m indices of [start, start + n)."""
    cdef u32 a, j = 0
    cdef subset_part part
    if m == 0 or m == n:
        return
    if m == 1:
        part.size = subset_share(c.range, n)
        part.start = (index[0] - start) * part.size
        subset_put(c, part)
        return
    a = subset_cut(n)
    while j < m and index[j] < start + a:
        j += 1
    subset_put(c, subset_symbol(c.range, node_sums(n, level_of(n), a, m, room), j - subset_least(n - a, m)))
    write_node(c, index, start, a, j, room)
    write_node(c, index + j, start + a, n - a, m - j, room)


cdef void read_node(subset_reader* c, u32* index, u32 start, u32 n, u32 m, subset_room room) noexcept nogil:
    cdef u32 a, j, least
    cdef subset_part part
    if m == 0:
        return
    if m == n:
        for j in range(m):
            index[j] = start + j
        return
    if m == 1:
        index[0] = start + subset_find_position(c, n, &part)
        subset_take(c, part)
        return
    a = subset_cut(n)
    least = subset_least(n - a, m)
    j = least + subset_find(c, node_sums(n, level_of(n), a, m, room), subset_most(a, m) - least + 1, &part)
    subset_take(c, part)
    read_node(c, index, start, a, j, room)
    read_node(c, index + j, start + a, n - a, m - j, room)


cdef subset_room subset_rooms(i64 k) noexcept nogil:
    cdef subset_room room
    room.weight = <f64*>malloc((k + 2) * (sizeof(f64) + sizeof(u32)))
    room.sum = <u32*>(room.weight + k + 2)
    return room


@lru_cache(maxsize=256)
def subset_bytes(n: int, k: int) -> int:
    """The length of the record of a k-subset of n positions, 0 <= k <= n <= 2^16 (subset.h, D)."""
    if not 0 <= k <= n <= SUBSET_MAX:
        raise ValueError(f"{k} of {n}: a subset is of at most {SUBSET_MAX} positions, and no larger than they are")
    total = 1 << SUBSET_BITS
    number = -(-comb(n, k) * total // (total - 4 * k * (n - 1).bit_length()))
    return ((number - 1).bit_length() + 7) // 8 if 0 < k < n else 0


cdef i64 check_records(i64 indices, i64 k, i64 room, i64 bytes) except -1:
    """How many records: as many as `indices` has k-subsets, and there must be room for them."""
    cdef i64 count = indices // k if k else 0
    if indices != count * k:
        raise ValueError(f"{indices} indices are not {k} a range")
    if room < count * bytes:
        raise ValueError(f"{room} bytes for {count} records of {bytes}")
    return count


def subset_encode(indices, u32 start, i64 n, i64 k, out) -> None:
    """Records of subset_bytes(n, k) for consecutive ranges of n positions from `start` on, k of the indices in each.

    indices (u32) ascend; ValueError where a range does not hold k of them.
    """
    cdef View p = view(indices, b"I"), o = view(out, b"B", True)
    cdef i64 bytes = subset_bytes(n, k), count = check_records(p.n, k, o.n, bytes), i = 0, j
    cdef u32 first
    cdef bint bad = False
    cdef subset_writer c
    cdef subset_room room
    with nogil:
        room = subset_rooms(k)
        if room.weight != NULL:
            for i in range(count):
                first = start + <u32>(i * n)
                for j in range(i * k, (i + 1) * k):
                    bad |= p.u32s()[j] - first >= n or (j > i * k and p.u32s()[j] <= p.u32s()[j - 1])
                if bad:
                    break
                c.low = 0
                c.range = ~<u64>0
                c.next = o.u8s() + i * bytes
                write_node(&c, p.u32s() + i * k, first, <u32>n, <u32>k, room)
                if bytes:
                    subset_close(&c, o.u8s() + (i + 1) * bytes)
            free(room.weight)
    if room.weight == NULL:
        raise MemoryError("subset_encode: no memory for the frequencies")
    if bad:
        raise ValueError(f"indices of range {i} do not ascend within it")


def subset_decode(data, u32 start, i64 n, i64 k, indices) -> None:
    """The inverse: whatever the bytes of data are, each record gives k ascending indices of its range."""
    cdef View p = view(data, b"B"), o = view(indices, b"I", True)
    cdef i64 bytes = subset_bytes(n, k), count = check_records(o.n, k, p.n, bytes), i
    cdef subset_reader c
    cdef subset_room room
    with nogil:
        room = subset_rooms(k)
        if room.weight != NULL:
            for i in range(count):
                c = subset_open(p.u8s() + i * bytes, <u32>bytes)
                read_node(&c, o.u32s() + i * k, start + <u32>(i * n), <u32>n, <u32>k, room)
            free(room.weight)
    if room.weight == NULL:
        raise MemoryError("subset_decode: no memory for the frequencies")
