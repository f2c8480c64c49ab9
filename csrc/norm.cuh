/* Sums and norms of what one warp looks at. */
#ifndef COMPRESS_NORM_CUH
#define COMPRESS_NORM_CUH
#include "block.cuh"
#include "reduce.h"

enum { TERM_SQUARE, TERM_ABS, TERM_SELF, TERM_MAX };

DEVICE u64 magnitude_of(f32 x) { return magnitude_f32(x); }
DEVICE u64 magnitude_of(f64 x) { return magnitude_f64(x); }
DEVICE f64 of_magnitude(u64 bits, f32) { return (f64)f32_bits((u32)bits); }
DEVICE f64 of_magnitude(u64 bits, f64) { return f64_bits(bits); }
DEVICE int is_finite(f32 x) { return magnitude_f32(x) < INFINITE_F32; }
DEVICE int is_finite(f64 x) { return magnitude_f64(x) < INFINITE_F64; }

/* The sum of the terms of factor x for a leaf of n <= REDUCE_LEAF elements, lane 0's (reduce.h, A and B). */
template <int term, typename number>
DEVICE f64 warp_sum(const number* x, i64 n, f64 factor) {
  const int lane = lane_of(), count = (int)n;
  f64 sum = 0;
  int i = lane;
  for (; i + 7 * WARP < count; i += 8 * WARP) {
    number v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = x[i + j * WARP];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const f64 y = (f64)v[j] * factor;
      sum += term == TERM_SQUARE ? term_square(y) : term == TERM_ABS ? term_abs(y) : term_self(y);
    }
  }
  for (; i < count; i += WARP) {
    const f64 y = (f64)x[i] * factor;
    sum += term == TERM_SQUARE ? term_square(y) : term == TERM_ABS ? term_abs(y) : term_self(y);
  }
  return warp_fold(sum);
}

/* max |x|, of every lane: NaN where one is. */
template <typename number>
DEVICE f64 warp_max(const number* x, i64 n) {
  u64 most = 0;
  for (i64 i = lane_of(); i < n; i += WARP) {
    const u64 m = magnitude_of(x[i]);
    most = most > m ? most : m;
  }
  for (int half = WARP / 2; half; half /= 2) {
    const u64 other = __shfl_xor_sync(ALL_LANES, most, half);
    most = most > other ? most : other;
  }
  return of_magnitude(most, number());
}

/* Leaf after leaf: the sum of factor x where that of x leaves float64's range; of every lane. */
template <int term, typename number>
DEVICE f64 warp_sum_scaled(const number* x, i64 n, f64 factor) {
  f64 total = 0;
  for (i64 start = 0; start < n; start += REDUCE_LEAF)
    total += warp_sum<term>(x + start, n - start < REDUCE_LEAF ? n - start : REDUCE_LEAF, factor);
  return __shfl_sync(ALL_LANES, total, 0);
}

/* The norm of n elements by the whole warp, where the sum of their terms is `sum`. */
template <typename number>
DEVICE f64 warp_rescued_norm(const number* x, i64 n, int norm, f64 sum) {
  const f64 largest = warp_max(x, n);
  if (norm == NORM_MEAN_ABS) {
    if (!(largest < f64_bits(INFINITE_F64))) return sum / (f64)n;
    return warp_sum_scaled<TERM_ABS>(x, n, RESCALE_DOWN) / (f64)n * RESCALE_UP;
  }
  if (largest == 0 || !(largest < f64_bits(INFINITE_F64))) return largest;
  const f64 up = largest < 1 ? RESCALE_UP : RESCALE_DOWN, down = largest < 1 ? RESCALE_DOWN : RESCALE_UP;
  return sqrt(warp_sum_scaled<TERM_SQUARE>(x, n, up)) * down;
}

/* Every lane has a segment (n = 0: none) and the sum of its terms; a sum that has left the range is taken again, rarely,
   by all lanes together. float32 never comes to that: its squares stay within the range. */
template <typename number>
DEVICE f64 finish_norm(const number* x, i64 n, int norm, f64 sum) {
  const int small = sum > 1e-280 && sum < 1e300, whole = sum < f64_bits(INFINITE_F64);
  const int lost = n && (norm == NORM_L2         ? !small && (sizeof(number) == 8 || !whole)
                         : norm == NORM_MEAN_ABS ? !whole
                                                 : 0);
  f64 result = norm == NORM_L2 ? sqrt(sum) : norm == NORM_MEAN_ABS && n ? sum / (f64)n : sum;
  for (u32 left = __ballot_sync(ALL_LANES, lost); left; left &= left - 1) {
    const int lane = __ffs((int)left) - 1;
    const u64 at = __shfl_sync(ALL_LANES, (u64)x, lane);
    const i64 m = __shfl_sync(ALL_LANES, n, lane);
    const f64 again = warp_rescued_norm((const number*)at, m, norm, __shfl_sync(ALL_LANES, sum, lane));
    if (lane_of() == lane) result = again;
  }
  return result;
}

#endif
