/* The cosine transform on vectors. Included once an element type, with REAL defined.

   A. As many blocks at a time as a vector has lanes, a lane a block, so that no operation crosses lanes and a block's
      roundings are the same alone and in company, whatever the width.
   B. A batch is transposed on its way in and out; four outputs at a time share each load of an input. */
#ifndef COMPRESS_DCT_CPU_H
#define COMPRESS_DCT_CPU_H
#include <string.h>
#include "dct.h"

#define DCT_JOIN_(a, b) a##_##b
#define DCT_JOIN(a, b) DCT_JOIN_(a, b)

#if defined(__AVX512F__)
enum { DCT_VECTOR = 64 };
#elif defined(__AVX__)
enum { DCT_VECTOR = 32 };
#else
enum { DCT_VECTOR = 16 };
#endif

static const f64 dct_cosines[65] = DCT_COSINES;
#endif

#define DCT(name) DCT_JOIN(name, REAL)
#define VEC DCT(dct_vec)
enum { DCT(DCT_LANES) = DCT_VECTOR / sizeof(REAL) };
#define LANES DCT(DCT_LANES)

typedef REAL VEC __attribute__((vector_size(DCT_VECTOR), may_alias));

/* Weights of a block of n: first, s_0, then w[i][j] row by row for n points, n/2 points, ... 2 points. */
typedef struct {
  REAL first, w[DCT_WEIGHTS];
} DCT(dct_weights);

static void DCT(dct_prepare)(DCT(dct_weights) * weights, u32 n) {
  REAL* w = weights->w;
  u32 size, i, j;
  weights->first = (REAL)dct_scale(n, 0);
  for (size = n; size > 1; size /= 2)
    for (i = 0; i < size / 2; ++i)
      for (j = 0; j < size / 2; ++j) *w++ = (REAL)dct_weight(dct_cosines, n, size, i, j);
}

/* to[r * step] = sum_c w[r across, c down] from[c * stride], in the order of c, for r and c below `half`. */
static inline void DCT(dct_product)(const REAL* w, int half, int across, int down, const VEC* from, int stride, VEC* to,
                                    int step) {
  int r, c;
  for (r = 0; r + 4 <= half; r += 4) {
    const REAL* row = w + r * across;
    VEC a0 = row[0] * from[0], a1 = row[across] * from[0], a2 = row[2 * across] * from[0],
        a3 = row[3 * across] * from[0];
    for (c = 1; c < half; ++c) {
      VEC v = from[c * stride];
      row += down;
      a0 += row[0] * v;
      a1 += row[across] * v;
      a2 += row[2 * across] * v;
      a3 += row[3 * across] * v;
    }
    to[r * step] = a0;
    to[(r + 1) * step] = a1;
    to[(r + 2) * step] = a2;
    to[(r + 3) * step] = a3;
  }
  for (; r < half; ++r) {
    VEC a = w[r * across] * from[0];
    for (c = 1; c < half; ++c) a += w[r * across + c * down] * from[c * stride];
    to[r * step] = a;
  }
}

static void DCT(dct_forward)(VEC* x, VEC* out, int n, const DCT(dct_weights) * weights) {
  const REAL* w = weights->w;
  VEC odd[DCT_BLOCK / 2];
  int size, half, stride = 1, j;
  for (size = n; size > 1; size = half) {
    half = size / 2;
    for (j = 0; j < half; ++j) {
      VEC a = x[j], b = x[size - 1 - j];
      x[j] = a + b;
      odd[j] = a - b;
    }
    DCT(dct_product)(w, half, half, 1, odd, 1, out + stride, 2 * stride);
    w += half * half;
    stride *= 2;
  }
  out[0] = x[0] * weights->first;
}

static void DCT(dct_inverse)(const VEC* x, VEC* out, int n, const DCT(dct_weights) * weights) {
  const REAL* w = weights->w + (n * n - 1) / 3;
  VEC odd[DCT_BLOCK / 2];
  int size, half, j;
  out[0] = x[0] * weights->first;
  for (size = 2; size <= n; size *= 2) {
    half = size / 2;
    w -= half * half;
    DCT(dct_product)(w, half, 1, half, x + n / size, 2 * (n / size), odd, 1);
    for (j = 0; j < half; ++j) {
      VEC a = out[j], b = odd[j];
      out[j] = a + b;
      out[size - 1 - j] = a - b;
    }
  }
}

/* out = the transform of `blocks` <= LANES blocks of n; out is x, or does not overlap it. */
static void DCT(dct_batch)(const REAL* x, REAL* out, int blocks, int n, const DCT(dct_weights) * weights, int inverse) {
  VEC in[DCT_BLOCK], result[DCT_BLOCK];
  int lane, j;
  if (blocks < LANES) memset(in, 0, sizeof(in));
  for (lane = 0; lane < blocks; ++lane)
    for (j = 0; j < n; ++j) ((REAL*)(in + j))[lane] = x[lane * n + j];
  if (inverse) DCT(dct_inverse)(in, result, n, weights);
  else DCT(dct_forward)(in, result, n, weights);
  for (lane = 0; lane < blocks; ++lane)
    for (j = 0; j < n; ++j) out[lane * n + j] = ((REAL*)(result + j))[lane];
}

/* The whole vector: blocks of 64, then the tail in smaller ones. */
static void DCT(dct)(const REAL* x, REAL* out, i64 n, int inverse) {
  DCT(dct_weights) weights;
  i64 start = 0, block, count, prepared = 0;
  while (start < n) {
    block = dct_block(n, start);
    count = (n - start) / block;
    if (count > LANES) count = LANES;
    if (block != prepared) DCT(dct_prepare)(&weights, (u32)block);
    prepared = block;
    DCT(dct_batch)(x + start, out + start, (int)count, (int)block, &weights, inverse);
    start += count * block;
  }
}

#undef DCT
#undef VEC
#undef LANES
