/* The rounding loops: up to 1024 coordinates into codes.

   A. Rounding and packing meet in a block of 1024 codes (4 KB, in L1): one loop for every alphabet, one
      packing loop for every width. Fusing them would save two instructions of a dozen and cost an
      instance of every rounding for every width.
   B. A group is the 256 coordinates that share 32 calls of the generator. Rounding notes the largest low
      half of its sums; where that is all ones (one group in 256) some coordinate needs the second look,
      and those coordinates are redone by the definition in quantize.h. */
#ifndef COMPRESS_QUANTIZE_CPU_H
#define COMPRESS_QUANTIZE_CPU_H
#include "pack.h"
#include "philox_cpu.h"
#include "quantize.h"

enum { DITHER_GROUP = 256 };

/* 16 random bits of coordinate i of a group. */
HD u32 group_random(const u32* words, int i) { return words[CALLS * (i >> 6) + (i & 31)] >> (i >> 1 & 16) & 0xffffu; }

/* The words of the group that starts at e. */
HD void dither_words(u64 e, const dither_bits* d, u32* words) {
  u32 shared[4 * CALLS];
  int i;
  philox_calls(dither_call(e), STREAM_DITHER, d->key, words);
  if (!d->workers) return;
  philox_calls(dither_call(e), STREAM_SHARED, d->shared, shared);
  for (i = 0; i < 4 * CALLS; ++i)
    words[i] = correlated16(shared[i] & 0xffffu, words[i] & 0xffffu, *d) |
               correlated16(shared[i] >> 16, words[i] >> 16, *d) << 16;
}

/* KIND is grid (scale = 2^16 inv, shape = levels) or natural (scale = inv, shape = least exponent). */
#define DITHER_LOOPS(REAL, SUFFIX, KIND)                                                                               \
  HD void KIND##_group_##SUFFIX(const REAL* x, REAL scale, i32 shape, u64 e, const dither_bits* d, u32* code) {        \
    u32 words[4 * CALLS], largest = 0;                                                                                 \
    int pair, i;                                                                                                       \
    dither_words(e, d, words);                                                                                         \
    for (pair = 0; pair < 4; ++pair) {                                                                                 \
      const u32* word = words + CALLS * pair;                                                                          \
      const REAL* p = x + 64 * pair;                                                                                   \
      u32* c = code + 64 * pair;                                                                                       \
      for (i = 0; i < CALLS; ++i) {                                                                                    \
        u32 even = KIND##_sum_##SUFFIX(p[i], scale, shape, word[i] & 0xffffu);                                         \
        u32 odd = KIND##_sum_##SUFFIX(p[i + CALLS], scale, shape, word[i] >> 16);                                      \
        u32 low = even & ALL_ONES_16;                                                                                  \
        largest = largest > low ? largest : low;                                                                       \
        low = odd & ALL_ONES_16;                                                                                       \
        largest = largest > low ? largest : low;                                                                       \
        c[i] = even >> 16;                                                                                             \
        c[i + CALLS] = odd >> 16;                                                                                      \
      }                                                                                                                \
    }                                                                                                                  \
    if (largest == ALL_ONES_16)                                                                                        \
      for (i = 0; i < DITHER_GROUP; ++i) {                                                                             \
        u32 low = KIND##_sum_##SUFFIX(x[i], scale, shape, group_random(words, i)) & ALL_ONES_16;                       \
        if (low == ALL_ONES_16) code[i] = KIND##_code_##SUFFIX(x[i], scale, shape, e + (u64)i, *d);                    \
      }                                                                                                                \
  }                                                                                                                    \
  /* n <= 1024 coordinates from element e (a multiple of 256): whole groups fast, the rest one by one. */              \
  static void KIND##_codes_##SUFFIX(const REAL* x, int n, REAL scale, i32 shape, u64 e, const dither_bits* d,          \
                                    u32* code) {                                                                       \
    int i = 0;                                                                                                         \
    for (; i + DITHER_GROUP <= n; i += DITHER_GROUP)                                                                   \
      KIND##_group_##SUFFIX(x + i, scale, shape, e + (u64)i, d, code + i);                                             \
    for (; i < n; ++i) code[i] = KIND##_code_##SUFFIX(x[i], scale, shape, e + (u64)i, *d);                             \
  }

#define NEAREST_LOOPS(REAL, SUFFIX)                                                                                    \
  /* By itself, or its pointers do not stay in registers. */                                                           \
  static __attribute__((noinline)) void nearest_codes_##SUFFIX(const REAL* x, int n, REAL inv, i32 levels,             \
                                                               u32* code) {                                            \
    int i;                                                                                                             \
    if (levels == 2)                                                                                                   \
      for (i = 0; i < n; ++i) code[i] = nearest_code_##SUFFIX(x[i], inv, 2);                                           \
    else                                                                                                               \
      for (i = 0; i < n; ++i) code[i] = nearest_code_##SUFFIX(x[i], inv, levels);                                      \
  }

DITHER_LOOPS(f32, f32, grid)
DITHER_LOOPS(f64, f64, grid)
DITHER_LOOPS(f32, f32, natural)
DITHER_LOOPS(f64, f64, natural)
NEAREST_LOOPS(f32, f32)
NEAREST_LOOPS(f64, f64)

#endif
