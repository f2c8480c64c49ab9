/* The transform on vectors. Included once an element type, with REAL defined.

   A. Depth first: a transform of n is 8 transforms of n / 8, then one pass over all of it that does the
      last three stages in registers. Every level of the cache then sees few passes, without a block size
      tuned to it. Radix 16 only in the first-level cache: 16 lines a power of two apart fall into one of
      its sets, and with 12 ways the pass runs at a quarter of the speed.
   B. The recursion ends at RADIX vectors, which stay in registers for all their stages: first the stages
      within a vector, as a shuffle plus a multiplication by +-1 (exact, so a + (-1) b is a - b), then
      butterflies between vectors.
   C. Every pass multiplies by its scale, 1 but for the last: the multiplier is idle otherwise.
   D. Arrays are rarely aligned to a 64-byte vector, and a vector that straddles two cache lines costs two
      accesses. Columns are independent, so a pass computes its first and last WIDTH columns unaligned,
      keeps them, runs over the aligned columns between, and stores the two last: where they overlap they
      hold the same values.
   E. The width follows the instruction set the file is compiled for. */

#ifndef COMPRESS_HADAMARD_CPU_H
#define COMPRESS_HADAMARD_CPU_H
#include <string.h>

#include "hadamard.h"
#include "philox.h"

#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, RADIX = 16 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, RADIX = 8 };
#else
enum { VECTOR_BYTES = 16, RADIX = 8 };
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define UNROLL _Pragma("GCC unroll 16")
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define T(name) JOIN(name, REAL)

/* The sign words of coordinates e0 ... e0 + 128 calls, e0 a multiple of 128: lanes of one Philox each. */
static void sign_words(u32* words, i64 calls, u64 e0, u64 key) {
  for (i64 c = 0; c < calls; ++c) {
    philox_out r = random_at((e0 >> 7) + c, STREAM_SIGNS, key);
    for (int i = 0; i < 4; ++i) words[4 * c + i] = r.w[i];
  }
}

/* +1 in the lanes whose bit is clear, -1 in the others; one row a bit. */
#define LANE_SIGNS                                                                                                     \
  {{1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},                                                           \
   {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},                                                           \
   {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},                                                           \
   {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1}}
#endif

#define VEC T(vec)
#define WIDTH ((int)(VECTOR_BYTES / sizeof(REAL)))

typedef REAL VEC __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

static const REAL T(lane_signs)[4][16] __attribute__((aligned(64))) = LANE_SIGNS;

INLINE VEC T(load)(const REAL* p) { return *(const VEC*)p; }
INLINE void T(store)(REAL* p, VEC v) { *(VEC*)p = v; }

/* The stage of stride 2^bit within a vector. */
INLINE VEC T(stage_within)(VEC v, int bit) {
  VEC other;
  UNROLL
  for (int i = 0; i < WIDTH; ++i) other[i] = v[i ^ 1 << bit];
  return other + v * T(load)(T(lane_signs)[bit]);
}

/* The stages between `count` vectors, count a compile-time power of two. */
INLINE void T(stages_between)(VEC* v, int count) {
  UNROLL
  for (int stride = 1; stride < count; stride *= 2) {
    UNROLL
    for (int i = 0; i < count; ++i) {
      if (i & stride) continue;
      VEC a = v[i], b = v[i + stride];
      v[i] = a + b;
      v[i + stride] = a - b;
    }
  }
}

/* `count` vectors, `step` elements apart. */
INLINE void T(load_rows)(VEC* v, const REAL* x, i64 step, int count) {
  UNROLL
  for (int j = 0; j < count; ++j) v[j] = T(load)(x + j * step);
}
INLINE void T(store_rows)(REAL* x, i64 step, int count, const VEC* v) {
  UNROLL
  for (int j = 0; j < count; ++j) T(store)(x + j * step, v[j]);
}
INLINE void T(scale_rows)(VEC* v, int count, REAL scale) {
  UNROLL
  for (int j = 0; j < count; ++j) v[j] *= scale;
}

/* All stages of count * WIDTH consecutive elements. */
INLINE void T(base)(REAL* x, int count, REAL scale) {
  VEC v[RADIX];
  T(load_rows)(v, x, WIDTH, count);
  UNROLL
  for (int j = 0; j < count; ++j) {
    UNROLL
    for (int bit = 0; 1 << bit < WIDTH; ++bit) v[j] = T(stage_within)(v[j], bit);
  }
  T(stages_between)(v, count);
  T(scale_rows)(v, count, scale);
  T(store_rows)(x, WIDTH, count, v);
}

/* The stages of strides h, 2h, ..., count/2 h on WIDTH columns of `count` rows of h elements. */
INLINE void T(columns)(VEC* v, const REAL* x, i64 h, int count, REAL scale) {
  T(load_rows)(v, x, h, count);
  T(stages_between)(v, count);
  T(scale_rows)(v, count, scale);
}
INLINE void T(sweep)(REAL* x, i64 h, i64 end, int count, REAL scale) {
  VEC v[RADIX];
  for (i64 i = 0; i + WIDTH <= end; i += WIDTH) {
    T(columns)(v, x + i, h, count, scale);
    T(store_rows)(x + i, h, count, v);
  }
}
INLINE void T(pass)(REAL* x, i64 h, int count, REAL scale) {
  VEC first[RADIX], last[RADIX];
  i64 skip = (0 - (u64)x) % VECTOR_BYTES / sizeof(REAL);
  if (!skip) {
    T(sweep)(x, h, h, count, scale);
    return;
  }
  T(columns)(first, x, h, count, scale);
  T(columns)(last, x + h - WIDTH, h, count, scale);
  T(sweep)(x + skip, h, h - skip, count, scale);
  T(store_rows)(x, h, count, first);
  T(store_rows)(x + h - WIDTH, h, count, last);
}

/* Fewer elements than a vector has. */
static void T(fwht_short)(REAL* x, i64 n, REAL scale) {
  for (i64 stride = 1; stride < n; stride *= 2)
    for (i64 i = 0; i < n; ++i) {
      if (i & stride) continue;
      REAL a = x[i], b = x[i + stride];
      x[i] = a + b;
      x[i + stride] = a - b;
    }
  for (i64 i = 0; i < n; ++i) x[i] *= scale;
}

/* All stages of n elements, n a power of two; the sums are multiplied by `scale` at the end. */
static void T(fwht)(REAL* x, i64 n, REAL scale) {
  const i64 leaf = RADIX * WIDTH;
  if (n <= leaf) {
    switch (n / WIDTH) {
      case 0: T(fwht_short)(x, n, scale); return;
      case 1: T(base)(x, 1, scale); return;
      case 2: T(base)(x, 2, scale); return;
      case 4: T(base)(x, 4, scale); return;
      case 8: T(base)(x, 8, scale); return;
      default: T(base)(x, RADIX, scale); return;
    }
  }
  i64 count = n / leaf <= RADIX ? n / leaf : 8, h = n / count;
  for (i64 j = 0; j < count; ++j) T(fwht)(x + j * h, h, 1);
  switch (count) {
    case 2: T(pass)(x, h, 2, scale); return;
    case 4: T(pass)(x, h, 4, scale); return;
    case 8: T(pass)(x, h, 8, scale); return;
    default: T(pass)(x, h, RADIX, scale); return;
  }
}

/* out = x, negated where the sign of coordinate e0 + i is minus; n <= ROTATION_BLOCK, and e0 a multiple of
   n or of 128. */
static void T(flip)(const REAL* x, REAL* out, i64 n, u64 e0, u64 key) {
  u32 words[ROTATION_BLOCK / 32];
  i64 i = 0;
  sign_words(words, ceil_div(n, 128), e0 & ~(u64)127, key);
  if (n < 128) {
    for (; i < n; ++i) out[i] = T(flip_sign)(x[i], words[(e0 + i) >> 5 & 3], (int)(e0 + i) & 31);
    return;
  }
  for (; i < n; i += 32)
    for (int j = 0; j < 32; ++j) out[i + j] = T(flip_sign)(x[i + j], words[i >> 5], j);
}

/* x = H S x, or S H x, on one block whose signs start at e. */
static void T(rotate_block)(REAL* x, i64 block, u64 e, u64 key, int inverse) {
  const REAL scale = (REAL)hadamard_scale(block);
  if (!inverse) T(flip)(x, x, block, e, key);
  T(fwht)(x, block, scale);
  if (inverse) T(flip)(x, x, block, e, key);
}

/* out = the rotation of x, or the inverse; out is x, or does not overlap it. Block by block, so that a block is
   copied, signed and transformed while it is in the cache; only the overlapping block comes back to it. */
static void T(rotate)(const REAL* x, REAL* out, i64 n, u64 key, int inverse) {
  const i64 block = n ? rotation_block(n) : 1, whole = n / block * block;
  REAL* last = out + n - block;
  if (inverse && whole < n) {
    if (out != x) memcpy(out + whole - block, x + whole - block, (size_t)(n - whole + block) * sizeof(REAL));
    T(rotate_block)(last, block, ROTATION_LAST_SIGNS, key, 1);
  }
  for (i64 e = 0; e < whole; e += block) {
    int copied = inverse && whole < n && e == whole - block;
    if (out != x && !copied) memcpy(out + e, x + e, (size_t)block * sizeof(REAL));
    T(rotate_block)(out + e, block, (u64)e, key, inverse);
  }
  if (!inverse && whole < n) {
    if (out != x) memcpy(out + whole, x + whole, (size_t)(n - whole) * sizeof(REAL));
    T(rotate_block)(last, block, ROTATION_LAST_SIGNS, key, 0);
  }
}

#undef VEC
#undef WIDTH
