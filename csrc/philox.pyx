cdef extern from "philox.h" nogil:
    ctypedef struct philox_out:
        u32 w[4]
    ctypedef struct dither_bits:
        pass
    enum:
        PLACES_GROUP
        MOST_WORKERS
    dither_bits independent_bits(u64)
    dither_bits correlated_bits(u64, u64, u32, u32, u64)
    u32 place_of(u32, u32, u64, u64)
    u32 dither16(u64, dither_bits)
    enum:
        STREAM_DITHER
        STREAM_TIE
        STREAM_SIGNS
        STREAM_ROWS
        STREAM_SELECT
        STREAM_MASK
        STREAM_UNIFORM
        STREAM_DERIVE
    philox_out philox(u32, u32, u32, u32, u32, u32)
    philox_out random_at(u64, u32, u64)
    u32 sign_bit(u64, u64)


def derive(u64 key, u64 word, u32 stream=0) -> int:
    """A new 64-bit key from a key and a word: the first half of one Philox call."""
    cdef philox_out r = philox(<u32>word, <u32>(word >> 32), STREAM_DERIVE, stream, <u32>key, <u32>(key >> 32))
    return r.w[0] | <u64>r.w[1] << 32


def philox_words(u64 key, u64 start, u32 stream, out) -> None:
    """out (u32, length a multiple of 4): the words of calls start, start+1, ... of a stream."""
    cdef View o = view(out, b"I", True)
    cdef u32* p = o.u32s()
    cdef i64 i, calls = o.n // 4
    cdef philox_out r
    with nogil:
        for i in range(calls):
            r = random_at(start + <u64>i, stream, key)
            p[4 * i] = r.w[0]
            p[4 * i + 1] = r.w[1]
            p[4 * i + 2] = r.w[2]
            p[4 * i + 3] = r.w[3]


def philox_block(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) -> tuple:
    """One call on an explicit counter and key, for the published known answers."""
    cdef philox_out r = philox(c0, c1, c2, c3, k0, k1)
    return r.w[0], r.w[1], r.w[2], r.w[3]


def correlated_dither(u64 key, u64 shared, i64 worker, i64 workers, u64 start, out) -> None:
    """out (u32): the 16 bits that a worker rounds coordinates start, start + 1, ... with (philox.h, D)."""
    cdef View o = view(out, b"I", True)
    cdef u32* p = o.u32s()
    cdef i64 i
    if not 0 <= worker < workers <= MOST_WORKERS:
        raise ValueError(f"workers must lie in [1, {MOST_WORKERS}] and worker below it, got {worker} of {workers}")
    with nogil:
        for i in range(o.n):
            p[i] = dither16(start + i, correlated_bits(key, shared, <u32>worker, <u32>workers, start + i))


UNIFORM_STREAM = <int>STREAM_UNIFORM
