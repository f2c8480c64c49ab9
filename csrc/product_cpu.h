/* Rule A of product.h on vectors. Included once an element type, with REAL defined.

   A tile of PRODUCT_ROWS rows by PRODUCT_VECTORS vectors stays in registers while k goes through the factors; lanes
   are columns, so that no operation crosses them. */
#ifndef COMPRESS_PRODUCT_CPU_H
#define COMPRESS_PRODUCT_CPU_H
#include <string.h>
#include "product.h"

#define PRODUCT_JOIN_(a, b) a##_##b
#define PRODUCT_JOIN(a, b) PRODUCT_JOIN_(a, b)

#if defined(__AVX512F__)
enum { PRODUCT_VECTOR = 64 };
#elif defined(__AVX__)
enum { PRODUCT_VECTOR = 32 };
#else
enum { PRODUCT_VECTOR = 16 };
#endif
enum { PRODUCT_ROWS = 4, PRODUCT_VECTORS = 2 };
#endif

#define PRODUCT(name) PRODUCT_JOIN(name, REAL)
#define VEC PRODUCT(product_vec)

typedef REAL VEC __attribute__((vector_size(PRODUCT_VECTOR), may_alias, aligned(sizeof(REAL))));
enum { PRODUCT(PRODUCT_TILE) = PRODUCT_VECTORS * PRODUCT_VECTOR / sizeof(REAL) };

/* Elements [i] by [from, to) of X, one at a time: the same operations. */
static void PRODUCT(product_edge)(const REAL* w, const REAL* b, i64 r, i64 m, i64 n, i64 i, i64 from, i64 to,
                                  REAL* out) {
  i64 j, k;
  for (j = from; j < to; ++j) {
    REAL sum = 0;
    for (k = 0; k < r; ++k) sum += w[k * m + i] * b[k * n + j];
    out[i * n + j] = sum;
  }
}

static void PRODUCT(outer_sum)(const REAL* w, const REAL* b, i64 r, i64 m, i64 n, REAL* out) {
  const i64 tile = PRODUCT(PRODUCT_TILE), half = tile / PRODUCT_VECTORS, columns = n / tile * tile;
  const i64 rows = m / PRODUCT_ROWS * PRODUCT_ROWS;
  i64 i, j, k;
  for (i = 0; i < rows; i += PRODUCT_ROWS) {
    for (j = 0; j < columns; j += tile) {
      VEC a00 = {0}, a01 = {0}, a10 = {0}, a11 = {0}, a20 = {0}, a21 = {0}, a30 = {0}, a31 = {0};
      const REAL *from = w + i, *row = b + j;
      REAL* to = out + i * n + j;
      for (k = 0; k < r; ++k, from += m, row += n) {
        const VEC left = *(const VEC*)row, right = *(const VEC*)(row + half);
        a00 += from[0] * left, a01 += from[0] * right;
        a10 += from[1] * left, a11 += from[1] * right;
        a20 += from[2] * left, a21 += from[2] * right;
        a30 += from[3] * left, a31 += from[3] * right;
      }
      *(VEC*)to = a00, *(VEC*)(to + half) = a01, to += n;
      *(VEC*)to = a10, *(VEC*)(to + half) = a11, to += n;
      *(VEC*)to = a20, *(VEC*)(to + half) = a21, to += n;
      *(VEC*)to = a30, *(VEC*)(to + half) = a31;
    }
    for (k = i; k < i + PRODUCT_ROWS; ++k) PRODUCT(product_edge)(w, b, r, m, n, k, columns, n, out);
  }
  for (i = rows; i < m; ++i) PRODUCT(product_edge)(w, b, r, m, n, i, 0, n, out);
}

#undef VEC
#undef PRODUCT
