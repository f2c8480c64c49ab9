cdef extern from *:
    """
    #define REAL f32
    #include "dct_cpu.h"
    #undef REAL
    #define REAL f64
    #include "dct_cpu.h"
    #undef REAL
    """
    void dct_f32(const f32*, f32*, i64, bint) nogil
    void dct_f64(const f64*, f64*, i64, bint) nogil


def dct(x, out, bint inverse=False) -> None:
    """out = the orthonormal cosine transform of x in blocks of 64 (dct.h, A), or its inverse; out may be x itself."""
    cdef View v = view(x, b"fd")
    cdef View o = view(out, b"fd", True)
    match(v, o, "dct")
    with nogil:
        if v.kind == c"f":
            dct_f32(v.f32s(), o.f32s(), v.n, inverse)
        else:
            dct_f64(v.f64s(), o.f64s(), v.n, inverse)
