cdef extern from *:
    """
    #define REAL f32
    #include "product_cpu.h"
    #undef REAL
    #define REAL f64
    #include "product_cpu.h"
    #undef REAL
    """
    enum:
        PRODUCT_LANES
    const f64 PRODUCT_DEPENDENT
    void outer_sum_f32(const f32*, const f32*, i64, i64, i64, f32*) nogil
    void outer_sum_f64(const f64*, const f64*, i64, i64, i64, f64*) nogil


def outer_sum(w, b, i64 r, i64 m, i64 n, out) -> None:
    """out = W' B, an m x n matrix in rows, of w and b, r rows of m and of n elements (product.h, A)."""
    cdef View u = view(w, b"fd")
    cdef View v = view(b, b"fd")
    cdef View o = view(out, b"fd", True)
    if r < 0 or m < 0 or n < 0:
        raise ValueError(f"outer_sum: sizes must not be negative, got {r}, {m} and {n}")
    if u.kind != v.kind or u.kind != o.kind:
        raise ValueError("outer_sum: w, b and out must be of one type")
    need(u, r * m, "w")
    need(v, r * n, "b")
    need(o, m * n, "out")
    with nogil:
        if u.kind == c"f":
            outer_sum_f32(u.f32s(), v.f32s(), r, m, n, o.f32s())
        else:
            outer_sum_f64(u.f64s(), v.f64s(), r, m, n, o.f64s())


cdef f64 inner(const f64* x, const f64* y, i64 n) noexcept nogil:
    cdef f64 lane[PRODUCT_LANES]
    cdef i64 i = 0, l
    cdef int half = PRODUCT_LANES // 2
    for l in range(PRODUCT_LANES):
        lane[l] = 0
    while i + PRODUCT_LANES <= n:
        for l in range(PRODUCT_LANES):
            lane[l] += x[i + l] * y[i + l]
        i += PRODUCT_LANES
    for l in range(n - i):
        lane[l] += x[i + l] * y[i + l]
    while half:
        for l in range(half):
            lane[l] += lane[l + half]
        half //= 2
    return lane[0]


cdef void gram_schmidt(const real* w, i64 r, i64 m, f64* q, real* out) noexcept nogil:
    cdef i64 i, j, l
    cdef f64 largest = 0, before, after, along
    cdef f64* row
    for i in range(r * m):
        along = term_abs(w[i])
        largest = along if along > largest else largest
    if not (0 < largest <= <f64>1.7976931348623157e308):
        largest = 1
    for i in range(r):
        row = q + i * m
        for l in range(m):
            row[l] = w[i * m + l] / largest
        before = inner(row, row, m)
        for j in range(i):
            along = inner(q + j * m, row, m)
            for l in range(m):
                row[l] -= along * q[j * m + l]
        after = inner(row, row, m)
        if not after > PRODUCT_DEPENDENT * before:  # nor where something is not finite
            memset(row, 0, m * sizeof(f64))
            after = 1
        after = 1 / sqrt(after)
        for l in range(m):
            row[l] *= after
            out[i * m + l] = <real>row[l]


def orthonormal(w, i64 r, out) -> None:
    """out = an orthonormal basis of w's r rows, in their order, zeros for a row that depends on those before it
    (product.h, B); out may be w itself."""
    cdef View u = view(w, b"fd")
    cdef View o = view(out, b"fd", True)
    cdef f64* room
    match(u, o, "orthonormal")
    if r < 1 or u.n % r:
        raise ValueError(f"orthonormal: {u.n} elements are no {r} rows")
    room = <f64*>malloc(max(u.n, <i64>1) * sizeof(f64))
    if room == NULL:
        raise MemoryError
    with nogil:
        if u.kind == c"f":
            gram_schmidt(u.f32s(), r, u.n // r, room, o.f32s())
        else:
            gram_schmidt(u.f64s(), r, u.n // r, room, o.f64s())
        free(room)
