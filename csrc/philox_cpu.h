/* 32 consecutive Philox calls at once, the unit that every fast loop reads.

   Written on 64-bit lanes: the product of Philox needs them, and the widening multiply reads the low half of
   its lanes only, so the high halves may hold anything until the end. Compilers do not find that
   instruction in plain C at every width, hence the three lines of intrinsics. */
#ifndef COMPRESS_PHILOX_CPU_H
#define COMPRESS_PHILOX_CPU_H
#include "philox.h"

enum { CALLS = 32 };

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512i wide;
#define WIDE_SET(x) _mm512_set1_epi64((i64)(x))
#define WIDE_IOTA(x) _mm512_add_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), WIDE_SET(x))
#define WIDE_MUL(a, b) _mm512_mul_epu32(a, b)
#define WIDE_MIX(high, a, b) _mm512_ternarylogic_epi64(_mm512_srli_epi64(high, 32), a, b, 0x96)
#define WIDE_STORE(p, x) _mm256_storeu_si256((__m256i*)(p), _mm512_cvtepi64_epi32(x))
enum { WIDE = 8, CHAINS = 4 };
#elif defined(__AVX2__)
#include <immintrin.h>
typedef __m256i wide;
#define WIDE_SET(x) _mm256_set1_epi64x((i64)(x))
#define WIDE_IOTA(x) _mm256_add_epi64(_mm256_setr_epi64x(0, 1, 2, 3), WIDE_SET(x))
#define WIDE_MUL(a, b) _mm256_mul_epu32(a, b)
#define WIDE_MIX(high, a, b) _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(high, 32), a), b)
#define WIDE_STORE(p, x)                                                                                               \
  _mm_storeu_si128((__m128i*)(p),                                                                                      \
                   _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6))))
enum { WIDE = 4, CHAINS = 2 };
#endif

/* out[32 w + i] = word w of call first + i of a stream; first is a multiple of 32. */
HD void philox_calls(u64 first, u32 stream, u64 key, u32* out) {
#ifdef WIDE_SET
  wide a[CHAINS], b[CHAINS], c[CHAINS], d[CHAINS];
  const wide m0 = WIDE_SET(PHILOX_M0), m1 = WIDE_SET(PHILOX_M1);
  int g, j, round;
  for (g = 0; g < CALLS; g += WIDE * CHAINS) {
#pragma GCC unroll 4
    for (j = 0; j < CHAINS; ++j) {
      a[j] = WIDE_IOTA((u32)first + (u32)(g + WIDE * j));
      b[j] = WIDE_SET(first >> 32);
      c[j] = WIDE_SET(stream);
      d[j] = WIDE_SET(0);
    }
#pragma GCC unroll 10
    for (round = 0; round < 10; ++round) {
      const wide k0 = WIDE_SET((u32)key + (u32)round * PHILOX_W0);
      const wide k1 = WIDE_SET((u32)(key >> 32) + (u32)round * PHILOX_W1);
#pragma GCC unroll 4
      for (j = 0; j < CHAINS; ++j) {
        wide p = WIDE_MUL(a[j], m0), q = WIDE_MUL(c[j], m1);
        a[j] = WIDE_MIX(q, b[j], k0);
        c[j] = WIDE_MIX(p, d[j], k1);
        b[j] = q;
        d[j] = p;
      }
    }
#pragma GCC unroll 4
    for (j = 0; j < CHAINS; ++j) {
      WIDE_STORE(out + g + WIDE * j, a[j]);
      WIDE_STORE(out + CALLS + g + WIDE * j, b[j]);
      WIDE_STORE(out + 2 * CALLS + g + WIDE * j, c[j]);
      WIDE_STORE(out + 3 * CALLS + g + WIDE * j, d[j]);
    }
  }
#else
  u32 *a = out, *b = out + CALLS, *c = out + 2 * CALLS, *d = out + 3 * CALLS;
  u32 k0 = (u32)key, k1 = (u32)(key >> 32);
  int i, round;
  for (i = 0; i < CALLS; ++i) {
    a[i] = (u32)first + (u32)i;
    b[i] = (u32)(first >> 32);
    c[i] = stream;
    d[i] = 0;
  }
  for (round = 0; round < 10; ++round) {
    for (i = 0; i < CALLS; ++i) {
      u64 p = (u64)a[i] * PHILOX_M0, q = (u64)c[i] * PHILOX_M1;
      a[i] = (u32)(q >> 32) ^ b[i] ^ k0;
      c[i] = (u32)(p >> 32) ^ d[i] ^ k1;
      b[i] = (u32)q;
      d[i] = (u32)p;
    }
    k0 += PHILOX_W0;
    k1 += PHILOX_W1;
  }
#endif
}

#endif
