"""CPU kernels, one module an instruction set (setup.py), every topic included from its own file.

A. Arrays come in through `view`, the one place where a Python object becomes a pointer. It checks the
   element type and contiguity; values are checked by the callers in compress/, once.
B. Whatever takes time runs without the GIL.
C. Lengths are 64-bit. Every entry point checks that its buffers hold what it will read and write (`need`):
   a wrong length is a ValueError, never an access out of range.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_WRITABLE, PyObject_GetBuffer, PyBuffer_Release
from functools import lru_cache
from math import comb

from libc.math cimport sqrt
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strchr

cdef extern from "portable.h" nogil:
    ctypedef unsigned char u8
    ctypedef unsigned short u16
    ctypedef unsigned int u32
    ctypedef int i32
    ctypedef unsigned long long u64
    ctypedef long long i64
    ctypedef float f32
    ctypedef double f64
    u32 bits_f32(f32)
    u64 bits_f64(f64)
    f32 f32_bits(u32)
    f64 f64_bits(u64)
    i64 ceil_div(i64, i64)

ctypedef fused real:
    f32
    f64


cdef class View:
    """A borrowed, C-contiguous, one-dimensional buffer: released when the View goes."""
    cdef Py_buffer buffer
    cdef bint held
    cdef i64 n
    cdef char kind       # struct format character: f d B I Q ...

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.buffer)

    cdef inline f32* f32s(self) noexcept nogil:
        return <f32*>self.buffer.buf

    cdef inline f64* f64s(self) noexcept nogil:
        return <f64*>self.buffer.buf

    cdef inline u8* u8s(self) noexcept nogil:
        return <u8*>self.buffer.buf

    cdef inline u32* u32s(self) noexcept nogil:
        return <u32*>self.buffer.buf


cdef View view(object x, const char* kinds, bint writable=False):
    """x as a View whose element type is one of `kinds`; TypeError or BufferError otherwise."""
    cdef View v = View.__new__(View)
    cdef char kind
    PyObject_GetBuffer(x, &v.buffer, PyBUF_ND | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0))
    v.held = True
    kind = v.buffer.format[0] if v.buffer.format != NULL else c"B"
    if kind == c"L" and v.buffer.itemsize == 8:
        kind = c"Q"
    if kind == c"L" and v.buffer.itemsize == 4:
        kind = c"I"
    if v.buffer.ndim != 1 or strchr(kinds, kind) == NULL:
        raise TypeError(f"expected a vector of one of {kinds.decode()!r} "
                        f"(struct format), got {v.buffer.ndim} dimensions of {chr(kind)!r}")
    v.kind = kind
    v.n = v.buffer.len // v.buffer.itemsize
    return v


cdef int need(View v, i64 n, str name) except -1:
    """The buffer called `name` must have at least n elements."""
    if v.n < n:
        raise ValueError(f"{name} has {v.n} elements, {n} are needed")
    return 0


cdef int match(View v, View o, str name) except -1:
    """out must be a vector of x's type and length."""
    if o.kind != v.kind or o.n != v.n:
        raise ValueError(f"{name}: out must match x, got {o.n} of {chr(o.kind)!r} for {v.n} of {chr(v.kind)!r}")
    return 0


cdef extern from *:
    """
    static int runs_avx2(void) {
    #if defined(__x86_64__) && defined(__GNUC__)
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
    #else
      return 0;
    #endif
    }
    static int runs_avx512(void) {
    #if defined(__x86_64__) && defined(__GNUC__)
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    #else
      return 0;
    #endif
    }
    """
    bint runs_avx2()
    bint runs_avx512()


def instruction_sets() -> tuple:
    """The instruction sets this processor runs, from least to most."""
    if not runs_avx2():
        return ("default",)
    return ("default", "avx2", "avx512") if runs_avx512() else ("default", "avx2")


include "philox.pyx"
include "reduce.pyx"
include "pack.pyx"
include "quantize.pyx"
include "hadamard.pyx"
include "eden.pyx"
include "kashin.pyx"
include "select.pyx"
include "rice.pyx"
include "subset.pyx"
include "chunk.pyx"
include "dct.pyx"
include "entropy.pyx"
include "trellis.pyx"
include "level.pyx"
include "product.pyx"
