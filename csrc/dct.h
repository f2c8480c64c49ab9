/* The orthonormal cosine transform of blocks of 64, DCT-II, and its inverse.

   A. X_i = s_i sum_j x_j cos(pi (2j + 1) i / 2n), s_0 = sqrt(1/n), s_i = sqrt(2/n). The vector is cut in blocks of 64;
      what is left over, fewer than 64, is cut in blocks of 32, 16, ..., 1, largest first: nothing is padded.
   B. Even and odd. With e_j = x_j + x_(n-1-j) and o_j = x_j - x_(n-1-j), j < n/2, the even rows are the transform of e
      on n/2 points and the odd ones X_(2i+1) = sum_j w[i][j] o_j, w[i][j] = s cos(pi (2j + 1)(2i + 1) / 2n), added in
      the order j = 0, 1, ..., n/2 - 1. A block of one is its only sum times s_0. The inverse is the transpose: the even
      half backwards, o_j = sum_i w[i][j] X_(2i+1) in the order of i, x_j = e_j + o_j and x_(n-1-j) = e_j - o_j.
      1365 multiplications for 64 points, and an order of roundings that no width of vectors changes.
   C. The cosines are constants rounded once from real numbers; a weight is s times one of them, rounded to float64
      and then to the type of x. */
#ifndef COMPRESS_DCT_H
#define COMPRESS_DCT_H
#include "portable.h"

enum { DCT_BLOCK = 64, DCT_WEIGHTS = 1365 };

/* cos(pi i / 128), i = 0 ... 64. */
#define DCT_COSINES                                                                                                    \
  {1,                                                                                                                  \
   0x1.ffd886084cd0dp-1,                                                                                               \
   0x1.ff621e3796d7ep-1,                                                                                               \
   0x1.fe9cdad01883ap-1,                                                                                               \
   0x1.fd88da3d12526p-1,                                                                                               \
   0x1.fc26470e19fd3p-1,                                                                                               \
   0x1.fa7557f08a517p-1,                                                                                               \
   0x1.f8764fa714ba9p-1,                                                                                               \
   0x1.f6297cff75cb0p-1,                                                                                               \
   0x1.f38f3ac64e589p-1,                                                                                               \
   0x1.f0a7efb9230d7p-1,                                                                                               \
   0x1.ed740e7684963p-1,                                                                                               \
   0x1.e9f4156c62ddap-1,                                                                                               \
   0x1.e6288ec48e112p-1,                                                                                               \
   0x1.e212104f686e5p-1,                                                                                               \
   0x1.ddb13b6ccc23cp-1,                                                                                               \
   0x1.d906bcf328d46p-1,                                                                                               \
   0x1.d4134d14dc93ap-1,                                                                                               \
   0x1.ced7af43cc773p-1,                                                                                               \
   0x1.c954b213411f5p-1,                                                                                               \
   0x1.c38b2f180bdb1p-1,                                                                                               \
   0x1.bd7c0ac6f952ap-1,                                                                                               \
   0x1.b728345196e3ep-1,                                                                                               \
   0x1.b090a58150200p-1,                                                                                               \
   0x1.a9b66290ea1a3p-1,                                                                                               \
   0x1.a29a7a0462782p-1,                                                                                               \
   0x1.9b3e047f38741p-1,                                                                                               \
   0x1.93a22499263fbp-1,                                                                                               \
   0x1.8bc806b151741p-1,                                                                                               \
   0x1.83b0e0bff976ep-1,                                                                                               \
   0x1.7b5df226aafafp-1,                                                                                               \
   0x1.72d0837efff96p-1,                                                                                               \
   0x1.6a09e667f3bcdp-1,                                                                                               \
   0x1.610b7551d2cdfp-1,                                                                                               \
   0x1.57d69348ceca0p-1,                                                                                               \
   0x1.4e6cabbe3e5e9p-1,                                                                                               \
   0x1.44cf325091dd6p-1,                                                                                               \
   0x1.3affa292050b9p-1,                                                                                               \
   0x1.30ff7fce17035p-1,                                                                                               \
   0x1.26d054cdd12dfp-1,                                                                                               \
   0x1.1c73b39ae68c8p-1,                                                                                               \
   0x1.11eb3541b4b23p-1,                                                                                               \
   0x1.073879922ffeep-1,                                                                                               \
   0x1.f8ba4dbf89abap-2,                                                                                               \
   0x1.e2b5d3806f63bp-2,                                                                                               \
   0x1.cc66e9931c45ep-2,                                                                                               \
   0x1.b5d1009e15cc0p-2,                                                                                               \
   0x1.9ef7943a8ed8ap-2,                                                                                               \
   0x1.87de2a6aea963p-2,                                                                                               \
   0x1.7088530fa459fp-2,                                                                                               \
   0x1.58f9a75ab1fddp-2,                                                                                               \
   0x1.4135c94176601p-2,                                                                                               \
   0x1.294062ed59f06p-2,                                                                                               \
   0x1.111d262b1f677p-2,                                                                                               \
   0x1.f19f97b215f1bp-3,                                                                                               \
   0x1.c0b826a7e4f63p-3,                                                                                               \
   0x1.8f8b83c69a60bp-3,                                                                                               \
   0x1.5e214448b3fc6p-3,                                                                                               \
   0x1.2c8106e8e613ap-3,                                                                                               \
   0x1.f564e56a9730ep-4,                                                                                               \
   0x1.917a6bc29b42cp-4,                                                                                               \
   0x1.2d52092ce19f6p-4,                                                                                               \
   0x1.91f65f10dd814p-5,                                                                                               \
   0x1.92155f7a3667ep-6,                                                                                               \
   0}

/* cos(pi i / 128) for any i >= 0, from the table. */
HD f64 dct_cosine(const f64* table, u32 i) {
  i &= 255;
  if (i > 128) i = 256 - i;
  return i > 64 ? -table[128 - i] : table[i];
}

/* s_0 (which = 0) and s_i of a block of n, a power of two up to 64. */
HD f64 dct_scale(u32 n, int which) {
  f64 scale = 1;
  u32 rest = which ? n / 2 : n;
  if (n == 1) return 1;
  for (; rest >= 4; rest /= 4) scale *= 0.5;
  return rest == 2 ? scale * 0.70710678118654752440 : scale;
}

/* w[i][j] of `size` points within a block of n. */
HD f64 dct_weight(const f64* table, u32 n, u32 size, u32 i, u32 j) {
  return dct_scale(n, 1) * dct_cosine(table, (2 * i + 1) * (2 * j + 1) * (DCT_BLOCK / size));
}

/* The block at `start` of a vector of n: its length. */
HD i64 dct_block(i64 n, i64 start) {
  i64 block = DCT_BLOCK;
  while (block > n - start) block /= 2;
  return block;
}

#endif
