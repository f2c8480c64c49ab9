/* One frame at a time, all of it in the first-level cache. Included once an element type, after
   hadamard_cpu.h, with REAL defined. Everything is bit for bit the same at every vector width: the transform
   is, elementwise loops are, and the two sums run over lanes that fold in halves. */

#ifndef COMPRESS_KASHIN_CPU_H
#define COMPRESS_KASHIN_CPU_H
#include <math.h>
#include <string.h>
#include "kashin.h"
#include "reduce.h"

typedef u32 word_f32;
typedef u64 word_f64;
INLINE f32 real_f32(word_f32 bits) { return f32_bits(bits); }
INLINE f64 real_f64(word_f64 bits) { return f64_bits(bits); }

typedef struct {
  i64 rows, coordinates; /* D and d */
  i64 steps;
  f64 limit;                     /* the level that is promised */
  u32 data[KASHIN_LARGEST / 32]; /* bit r: row r holds a coordinate */
  u16 row[KASHIN_LARGEST];       /* the row of a coordinate */
} kashin_frame;
#endif

#define VEC T(vec)
#define WIDTH ((int)(VECTOR_BYTES / sizeof(REAL)))

typedef T(word) T(mask) __attribute__((vector_size(VECTOR_BYTES)));

/* Rows from coordinates; `turned` holds the rotated coordinates of a later attempt. */
static void T(kashin_embed)(const kashin_frame* f, const REAL* x, REAL* turned, REAL* a, i64 attempt, u64 offset,
                            u64 key) {
  const i64 n = f->coordinates, block = rotation_block(n);
  if (attempt) {
    memcpy(turned, x, n * sizeof(REAL));
    for (int end = 0; end < 2; ++end) {
      REAL* part = end ? turned + n - block : turned;
      T(rotate_block)(part, block, kashin_signs(attempt, 1 + end, offset), key, 0);
    }
    x = turned;
  }
  memset(a, 0, f->rows * sizeof(REAL));
  for (i64 j = 0; j < n; ++j) a[f->row[j]] = x[j];
  T(flip)(a, a, f->rows, kashin_signs(attempt, 0, offset), key);
}

/* Coordinates from rows, the inverse of the above; a is overwritten. */
static void T(kashin_extract)(const kashin_frame* f, REAL* a, REAL* x, i64 attempt, u64 offset, u64 key) {
  const i64 n = f->coordinates, block = rotation_block(n);
  T(flip)(a, a, f->rows, kashin_signs(attempt, 0, offset), key);
  for (i64 j = 0; j < n; ++j) x[j] = a[f->row[j]];
  if (attempt)
    for (int end = 1; end >= 0; --end) {
      REAL* part = end ? x + n - block : x;
      T(rotate_block)(part, block, kashin_signs(attempt, 1 + end, offset), key, 1);
    }
}

/* x = U a, a overwritten. */
static void T(kashin_synthesize)(const kashin_frame* f, REAL* a, REAL* x, i64 attempt, u64 offset, u64 key) {
  T(fwht)(a, f->rows, (REAL)hadamard_scale(f->rows));
  T(kashin_extract)(f, a, x, attempt, offset, key);
}

/* Sums to one, in halves. */
static REAL T(kashin_fold)(REAL* lane, i64 lanes) {
  for (i64 half = lanes / 2; half >= WIDTH; half /= 2)
    for (i64 i = 0; i < half; i += WIDTH) T(store)(lane + i, T(load)(lane + i) + T(load)(lane + i + half));
  for (int half = WIDTH / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

/* |g|^2 / |g where |a| > m|^2, a stripe of the lanes at a time. */
static REAL T(kashin_step)(const REAL* a, const REAL* g, i64 n, REAL m) {
  enum { VECTORS = 4 };
  const i64 lanes = n < KASHIN_LANES ? n : KASHIN_LANES;
  REAL all[KASHIN_LANES], clipped[KASHIN_LANES];
  for (i64 stripe = 0; stripe < lanes; stripe += VECTORS * WIDTH) {
    VEC sum[VECTORS] = {{0}}, part[VECTORS] = {{0}};
    for (i64 row = stripe; row < n; row += lanes) {
      UNROLL
      for (int j = 0; j < VECTORS; ++j) {
        VEC at = T(load)(a + row + j * WIDTH), square = T(load)(g + row + j * WIDTH);
        square *= square;
        sum[j] += square;
        part[j] += (VEC)((T(mask))square & (T(mask))((at > m) | (at < -m)));
      }
    }
    T(store_rows)(all + stripe, WIDTH, VECTORS, sum);
    T(store_rows)(clipped + stripe, WIDTH, VECTORS, part);
  }
  return T(kashin_gain)(T(kashin_fold)(all, lanes), T(kashin_fold)(clipped, lanes));
}

static REAL T(kashin_max)(const REAL* a, i64 n) {
  T(word) max = 0;
  for (i64 i = 0; i < n; ++i) {
    T(word) size = T(magnitude)(a[i]);
    max = max > size ? max : size;
  }
  return T(real)(max);
}

/* a: a representation of x (of order one, not zero) of the promised level; e and v hold D elements. Returns the
   attempt that succeeded, or KASHIN_ATTEMPTS; the level is max|a| rounded up. */
static i64 T(kashin_represent)(const kashin_frame* f, const REAL* x, f64 norm, REAL* a, REAL* e, REAL* v, u64 offset,
                               u64 key, f64* level) {
  const i64 n = f->rows;
  const f64 unit = norm / sqrt((f64)n), promise = f->limit * unit;
  for (i64 attempt = 0; attempt < KASHIN_ATTEMPTS; ++attempt) {
    T(kashin_embed)(f, x, v, a, attempt, offset, key);
    T(fwht)(a, n, (REAL)hadamard_scale(n));
    memset(v, 0, n * sizeof(REAL));
    for (i64 step = 0;; ++step) {
      if (step == f->steps || step == 2 * f->steps) {
        *level = kashin_round_up((f64)T(kashin_max)(a, n));
        if (*level <= promise) return attempt;
        if (step == 2 * f->steps) break;
      }
      REAL m = (REAL)(promise * kashin_clip(step, f->steps));
      for (i64 i = 0; i < n; ++i) e[i] = T(kashin_excess)(a[i], m);
      T(fwht)(e, n, 1);
      for (i64 row = 0; row < n; row += 32)
        for (int i = 0; i < 32; ++i) e[row + i] = T(kashin_null)(e[row + i], f->data[row >> 5], i);
      T(fwht)(e, n, (REAL)(1 / (f64)n));
      REAL t = T(kashin_step)(a, e, n, m);
      for (i64 i = 0; i < n; ++i) {
        v[i] = T(kashin_velocity)(v[i], t, e[i]);
        a[i] += v[i];
      }
    }
  }
  return KASHIN_ATTEMPTS;
}

#undef VEC
#undef WIDTH
