/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

   A. Every random bit of the package is philox(counter, key): the counter names what the bit is for,
      never which thread asks. counter = (index low, index high, stream, word), key = 64 bits of Key.
   B. Rounding takes 16 bits a coordinate. Coordinate e reads call dither_call(e), word dither_word(e),
      half dither_half(e): 256 coordinates (8 rows of 32 lanes) share 32 calls, so a row of 32
      neighbours reads one word of 32 neighbouring calls, without a shuffle on any machine.
   C. A tie of those 16 bits (one in 65,536) is decided by 32 bits of its own stream.
   D. Correlated dither (Suresh, Sun, Ro, Yu, "Correlated quantization for distributed mean estimation and
      optimization", ICML 2022) takes other 16 bits, so that n workers never round the same way by chance. [0, 2^16)
      is cut into n strata; every coordinate has a shared draw, uniform on [0, 2^16), and every worker moves it by
      whole strata, as many as its place in a permutation that changes every 4096 coordinates, then at random
      within the stratum. For given places and own bits that is a bijection of the shared draw, so the bits of
      one worker are exactly uniform, whatever n is. Two workers are in different strata, every two equally
      often: of two events "at least t", the strata that both may fall in are ordered alike, so by Chebyshev's
      inequality they are negatively correlated (to n 2^-16 where n is no power of two), and the error of a mean is
      never larger than with independent bits. Ties draw their further bits independently. */
#ifndef COMPRESS_PHILOX_H
#define COMPRESS_PHILOX_H
#include "portable.h"

enum {
  STREAM_DITHER = 0,
  STREAM_TIE = 1,
  STREAM_SIGNS = 2,
  STREAM_ROWS = 3,
  STREAM_SELECT = 4,
  STREAM_MASK = 5,
  STREAM_UNIFORM = 6,
  STREAM_DERIVE = 7,
  STREAM_SHARED = 8,
  STREAM_PLACES = 9,
  STREAM_SUBTRACT = 10
};

enum { PLACES_GROUP = 4096, MOST_WORKERS = 1024 };

#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u
#define PHILOX_W1 0xBB67AE85u

typedef struct {
  u32 w[4];
} philox_out;

HD philox_out philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
  philox_out out;
  int round;
  for (round = 0; round < 10; ++round) {
    u64 p = product_u32(c0, PHILOX_M0), q = product_u32(c2, PHILOX_M1);
    u32 n0 = (u32)(q >> 32) ^ c1 ^ k0, n2 = (u32)(p >> 32) ^ c3 ^ k1;
    c0 = n0;
    c1 = (u32)q;
    c2 = n2;
    c3 = (u32)p;
    k0 += PHILOX_W0;
    k1 += PHILOX_W1;
  }
  out.w[0] = c0;
  out.w[1] = c1;
  out.w[2] = c2;
  out.w[3] = c3;
  return out;
}

/* The call of a stream: 128 random bits for one 64-bit index. */
HD philox_out random_at(u64 index, u32 stream, u64 key) {
  return philox((u32)index, (u32)(index >> 32), stream, 0, (u32)key, (u32)(key >> 32));
}

/* One of its words, chosen without an address: a GPU has no indexed registers. */
HD u32 word_at(u64 index, u32 stream, u64 key, int i) {
  const philox_out r = random_at(index, stream, key);
  const u32 even = i & 2 ? r.w[2] : r.w[0], odd = i & 2 ? r.w[3] : r.w[1];
  return i & 1 ? odd : even;
}

HD u64 dither_call(u64 e) { return (e >> 8) * 32 + (e & 31); }
HD int dither_word(u64 e) { return (int)(e >> 6) & 3; }
HD int dither_half(u64 e) { return (int)(e >> 5) & 1; }

HD u32 stream16(u64 e, u32 stream, u64 key) {
  return word_at(dither_call(e), stream, key, dither_word(e)) >> (16 * dither_half(e)) & 0xffffu;
}

/* Where the 16 bits of the coordinates of one PLACES_GROUP come from. */
typedef struct {
  u64 key, shared;
  u32 workers; /* 0: independent bits, from `key` alone */
  u32 offset;  /* where the stratum starts that stands at the worker's place */
  u32 size;    /* of a stratum whose first draw leaves at most `least` over, one more than of the others */
  u32 least;
  f32 inverse; /* 1 / workers */
} dither_bits;

/* What changes with `last` in a random permutation: a place up to it. Call last / 4 of the group, word last % 4. */
HD u64 place_call(u32 last, u64 group) { return group << 16 | last >> 2; }
HD u32 place_other(u32 last, u32 word) { return (u32)((u64)word * (last + 1) >> 32); }

/* The place of a worker in a random permutation of n: Fisher and Yates from the last place down, following one. */
HD u32 place_of(u32 worker, u32 n, u64 group, u64 key) {
  philox_out draws;
  u32 last, call = 0xffffffffu;
  for (last = n - 1; last > 0; --last) {
    u32 other;
    if (call != last >> 2) draws = random_at(place_call(last, group), STREAM_PLACES, key);
    call = last >> 2;
    other = place_other(last, draws.w[last & 3]);
    worker = worker == last ? other : worker == other ? last : worker;
  }
  return worker;
}

HD dither_bits independent_bits(u64 key) {
  dither_bits d;
  d.key = d.shared = key;
  d.workers = d.offset = d.size = d.least = 0;
  d.inverse = 0;
  return d;
}
HD dither_bits placed_bits(u64 key, u64 shared, u32 workers, u32 place) {
  dither_bits d;
  d.key = key;
  d.shared = shared;
  d.workers = workers;
  d.offset = ((place << 16) + workers - 1) / workers;
  d.size = 0xffffu / workers + 1;
  d.least = 0xffffu % workers;
  d.inverse = 1.0f / (f32)workers;
  return d;
}
/* Those of the group of element e. */
HD dither_bits correlated_bits(u64 key, u64 shared, u32 worker, u32 workers, u64 e) {
  return placed_bits(key, shared, workers, place_of(worker, workers, e / PLACES_GROUP, shared));
}

/* The bits of a worker, from the 16 that all share and 16 of its own. */
HD u32 correlated16(u32 shared, u32 own, dither_bits d) {
  u32 w = (shared + d.offset) & 0xffffu, rest = w * d.workers & 0xffffu;
  u32 within = quotient16(rest, d.inverse); /* w is the within-th of its stratum, which has `size` */
  u32 size = d.size - (rest - within * d.workers > d.least);
  u32 moved = within + (own * size >> 16);
  return w - within + (moved < size ? moved : moved - size);
}

/* The same where all strata are as large: the workers are a power of two. */
HD int even_strata(dither_bits d) { return d.least + 1 == d.workers; }
HD u32 correlated16_even(u32 shared, u32 own, dither_bits d) {
  u32 w = shared + d.offset, mask = d.size - 1;
  return (w & ~mask & 0xffffu) | ((w + (own * d.size >> 16)) & mask);
}

HD u32 dither16(u64 e, dither_bits d) {
  u32 own = stream16(e, STREAM_DITHER, d.key);
  return d.workers ? correlated16(stream16(e, STREAM_SHARED, d.shared), own, d) : own;
}
HD u32 tie32(u64 e, u64 key) { return word_at(e >> 2, STREAM_TIE, key, (int)(e & 3)); }

/* Random sign of coordinate e of a rotation or frame: one bit, 1 means minus. */
HD u32 sign_word(u64 e, u64 key) { return word_at(e >> 7, STREAM_SIGNS, key, (int)(e >> 5) & 3); }
HD u32 sign_bit(u64 e, u64 key) { return sign_word(e, key) >> (e & 31) & 1; }

/* The word behind the subtractive dither of coordinate e: 128 coordinates to 32 calls. */
HD u64 subtract_call(u64 e) { return (e >> 7) * 32 + (e & 31); }
HD int subtract_place(u64 e) { return (int)(e >> 5) & 3; }
HD u32 subtract_word(u64 e, u64 key) { return word_at(subtract_call(e), STREAM_SUBTRACT, key, subtract_place(e)); }

#endif
