cdef extern from "hadamard.h" nogil:
    f64 hadamard_scale(i64)

cdef extern from *:
    """
    #define REAL f32
    #include "hadamard_cpu.h"
    #undef REAL
    #define REAL f64
    #include "hadamard_cpu.h"
    #undef REAL
    """
    void fwht_f32(f32*, i64, f32) nogil
    void fwht_f64(f64*, i64, f64) nogil
    void rotate_f32(const f32*, f32*, i64, u64, bint) nogil
    void rotate_f64(const f64*, f64*, i64, u64, bint) nogil


def fwht(x, i64 block) -> None:
    """The orthonormal Walsh-Hadamard transform of every `block` consecutive elements, in place."""
    cdef View v = view(x, b"fd", True)
    cdef i64 row
    cdef f64 scale
    if block < 1 or block & (block - 1) or v.n % block:
        raise ValueError(f"fwht: the block must be a power of two that divides the length, "
                         f"got block {block} and length {v.n}")
    with nogil:
        scale = hadamard_scale(block)
        if v.kind == c"f":
            for row in range(v.n // block):
                fwht_f32(v.f32s() + row * block, block, <f32>scale)
        else:
            for row in range(v.n // block):
                fwht_f64(v.f64s() + row * block, block, scale)


def rotate(x, out, u64 key, bint inverse=False) -> None:
    """out = the randomised rotation of x (hadamard.h, C), or its inverse; out may be x itself."""
    cdef View v = view(x, b"fd")
    cdef View o = view(out, b"fd", True)
    match(v, o, "rotate")
    with nogil:
        if v.kind == c"f":
            rotate_f32(v.f32s(), o.f32s(), v.n, key, inverse)
        else:
            rotate_f64(v.f64s(), o.f64s(), v.n, key, inverse)
