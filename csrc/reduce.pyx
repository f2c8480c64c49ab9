cdef extern from "reduce.h" nogil:
    enum:
        REDUCE_LANES
        REDUCE_LEAF
    f64 term_square(f64)
    f64 term_abs(f64)
    f64 term_self(f64)
    u32 magnitude_f32(f32)
    u64 magnitude_f64(f64)
    const u32 INFINITE_F32
    const u64 INFINITE_F64
    ctypedef enum Norm:
        L2_NORM "NORM_L2"
        MAX_NORM "NORM_MAX"
        MEAN_ABS "NORM_MEAN_ABS"
    const f64 RESCALE_UP
    const f64 RESCALE_DOWN

ctypedef enum Term:
    SQUARE
    ABS
    SELF


cdef inline f64 fold_lanes(f64* lane) noexcept nogil:
    cdef int half = REDUCE_LANES // 2, i
    while half:
        for i in range(half):
            lane[i] += lane[i + half]
        half //= 2
    return lane[0]


cdef inline void add_row(f64* lane, const real* x, i64 n, Term term) noexcept nogil:
    cdef i64 i
    if term == SQUARE:
        for i in range(n):
            lane[i] += term_square(<f64>x[i])
    elif term == ABS:
        for i in range(n):
            lane[i] += term_abs(<f64>x[i])
    else:
        for i in range(n):
            lane[i] += term_self(<f64>x[i])


cdef inline f64 sum_rows(const real* x, i64 n, Term term) noexcept nogil:
    cdef f64 lane[32]
    cdef i64 row = 0, i
    for i in range(REDUCE_LANES):
        lane[i] = 0
    while row + REDUCE_LANES <= n:
        add_row(lane, x + row, REDUCE_LANES, term)
        row += REDUCE_LANES
    add_row(lane, x + row, n - row, term)
    return fold_lanes(lane)


cdef inline f64 sum_leaf(const real* x, i64 n, Term term) noexcept nogil:
    """n <= REDUCE_LEAF elements: lanes first, then the lanes in halves. The term is a constant in every call, so
    that no row asks for it and the lanes stay in registers."""
    if term == SQUARE:
        return sum_rows(x, n, SQUARE)
    return sum_rows(x, n, ABS) if term == ABS else sum_rows(x, n, SELF)


cdef f64 sum_terms(const real* x, i64 n, Term term) noexcept nogil:
    """The whole sum: leaves, then the leaves' sums by the same rule. NaN where memory runs out."""
    cdef i64 leaves = ceil_div(n, REDUCE_LEAF), i
    cdef f64 buffer[1024]
    cdef f64* partial = buffer
    cdef f64 total
    if leaves <= 1:
        return sum_leaf(x, n, term)
    if leaves > 1024:
        partial = <f64*>malloc(leaves * sizeof(f64))
        if partial == NULL:
            return f64_bits(<u64>0x7ff8000000000000)
    for i in range(leaves):
        partial[i] = sum_leaf(x + i * REDUCE_LEAF, min(<i64>REDUCE_LEAF, n - i * REDUCE_LEAF), term)
    total = sum_terms[f64](partial, leaves, SELF)
    if leaves > 1024:
        free(partial)
    return total


cdef f64 sum_of(View v, Term term) noexcept:
    cdef f64 total
    with nogil:
        if v.kind == c"f":
            total = sum_terms[f32](v.f32s(), v.n, term)
        else:
            total = sum_terms[f64](v.f64s(), v.n, term)
    return total


def sum_squares(x) -> float:
    """sum_i x_i^2 in float64, order fixed by the length. Not finite: see design note D of reduce.h."""
    return sum_of(view(x, b"fd"), SQUARE)


def sum_abs(x) -> float:
    """sum_i |x_i| in float64, order fixed by the length."""
    return sum_of(view(x, b"fd"), ABS)


cdef void scan_nonfinite(const real* x, i64 n, i64* count, i64* first) noexcept nogil:
    cdef i64 i
    cdef bint bad
    count[0] = 0
    first[0] = -1
    for i in range(n):
        if real is f32:
            bad = magnitude_f32(x[i]) >= INFINITE_F32
        else:
            bad = magnitude_f64(x[i]) >= INFINITE_F64
        if bad:
            if first[0] < 0:
                first[0] = i
            count[0] += 1


def count_nonfinite(x) -> tuple:
    """(how many elements are NaN or Inf, the index of the first one or -1)."""
    cdef View v = view(x, b"fd")
    cdef i64 count, first
    with nogil:
        if v.kind == c"f":
            scan_nonfinite[f32](v.f32s(), v.n, &count, &first)
        else:
            scan_nonfinite[f64](v.f64s(), v.n, &count, &first)
    return count, first


cdef f64 largest_magnitude(const real* x, i64 n) noexcept nogil:
    # signed: magnitudes leave the top bit clear, and SSE2 compares no other way
    cdef i64 i
    cdef i32 m32 = 0
    cdef i64 m64 = 0
    for i in range(n):
        if real is f32:
            m32 = max(m32, <i32>magnitude_f32(x[i]))
        else:
            m64 = max(m64, <i64>magnitude_f64(x[i]))
    return f32_bits(<u32>m32) if real is f32 else f64_bits(<u64>m64)


def max_abs(x) -> float:
    """max_i |x_i| through integer comparisons: Inf or NaN if the vector holds one, 0.0 if it is empty."""
    cdef View v = view(x, b"fd")
    cdef f64 largest
    with nogil:
        largest = largest_magnitude[f32](v.f32s(), v.n) if v.kind == c"f" else largest_magnitude[f64](v.f64s(), v.n)
    return largest


cdef f64 sum_scaled(const real* x, i64 n, f64 factor, Term term) noexcept nogil:
    """The sum for factor x, where that of x leaves float64's range: leaf by leaf, one after the other."""
    cdef f64 leaf[4096]
    cdef i64 leaves = ceil_div(n, REDUCE_LEAF), index, m, i
    cdef f64 total = 0
    for index in range(leaves):
        m = min(<i64>REDUCE_LEAF, n - index * REDUCE_LEAF)
        for i in range(m):
            leaf[i] = x[index * REDUCE_LEAF + i] * factor
        total += sum_leaf[f64](leaf, m, term)
    return total


cdef f64 norm_of(const real* x, i64 n, Norm norm) noexcept nogil:
    """A norm in float64; NaN or Inf exactly where x holds one, or where the norm leaves float64's range."""
    cdef f64 total
    if norm == MAX_NORM:
        return largest_magnitude(x, n)
    if norm == MEAN_ABS:
        total = sum_terms(x, n, ABS)
        if not total < f64_bits(INFINITE_F64) and largest_magnitude(x, n) < f64_bits(INFINITE_F64):
            return sum_scaled(x, n, RESCALE_DOWN, ABS) / n * RESCALE_UP
        return total / n
    total = sum_terms(x, n, SQUARE)
    if total > 1e-280 and total < 1e300:
        return sqrt(total)
    total = largest_magnitude(x, n)
    if total == 0 or not total < f64_bits(INFINITE_F64):
        return total
    if total < 1:
        return sqrt(sum_scaled(x, n, RESCALE_UP, SQUARE)) * RESCALE_DOWN
    return sqrt(sum_scaled(x, n, RESCALE_DOWN, SQUARE)) * RESCALE_UP


def norm(x, int which) -> float:
    """NORM_L2, NORM_MAX or NORM_MEAN_ABS of x; squares that leave float64's range are rescaled."""
    cdef View v = view(x, b"fd")
    cdef f64 result
    with nogil:
        if v.kind == c"f":
            result = norm_of[f32](v.f32s(), v.n, <Norm>which)
        else:
            result = norm_of[f64](v.f64s(), v.n, <Norm>which)
    return result


NORM_L2, NORM_MAX, NORM_MEAN_ABS = <int>L2_NORM, <int>MAX_NORM, <int>MEAN_ABS
