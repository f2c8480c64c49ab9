/* Walsh-Hadamard transform and the randomised rotation built on it.

   A. H is symmetric, orthonormal and its own inverse: H[i][j] = (-1)^popcount(i & j) / sqrt(n).
   B. The stages run in ascending stride order 1, 2, 4, ..., n/2, each (a, b) -> (a + b, a - b), and the
      scale multiplies the result of the last stage. That order is the format: whatever radix, vector
      width or number of threads groups the stages, every output is the same tree of the same roundings.
   C. A rotation is x -> H S x on blocks of 4096 (or of the largest power of two that fits), S random signs:
      one block fits the first-level cache and one CUDA block. Where blocks do not fill the vector, one more
      with signs of its own ends where the vector ends and overlaps the one before. A product of orthogonal
      maps, so nothing is padded, and no coordinate is left unmixed as it would be in small blocks. */
#ifndef COMPRESS_HADAMARD_H
#define COMPRESS_HADAMARD_H
#include "portable.h"

enum { ROTATION_BLOCK = 4096 };

/* The blocks of a rotation of n >= 1 elements: the largest power of two that fits. */
HD i64 rotation_block(i64 n) {
  i64 block = ROTATION_BLOCK;
  while (block > n) block /= 2;
  return block;
}

/* Where the signs of the overlapping block start: no vector is that long. */
#define ROTATION_LAST_SIGNS ((u64)1 << 40)

/* 1 / sqrt(n), n a power of two: exact where the root is, rounded once otherwise. */
HD f64 hadamard_scale(i64 n) {
  f64 scale = 1;
  for (; n >= 4; n /= 4) scale *= 0.5;
  return n == 2 ? scale * 0.70710678118654752440 : scale;
}

/* x, negated where bit i of `signs` is set. */
HD f32 flip_sign_f32(f32 x, u32 signs, int i) { return f32_bits(bits_f32(x) ^ (signs << (31 - i) & 0x80000000u)); }
HD f64 flip_sign_f64(f64 x, u32 signs, int i) { return f64_bits(bits_f64(x) ^ (u64)(signs >> i & 1) << 63); }

#endif
