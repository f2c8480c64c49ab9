/* A vector is cut in segments, a segment in leaves of REDUCE_LEAF, and a warp sums a leaf. Only the last segment is
   shorter, so the sums of all leaves lie one after the other and are the next vector to sum, in segments of as many as
   a whole segment has leaves. */
#include "block.cuh"
#include "reduce.h"
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(256)
    sum_leaves(const real* x, i64 n, i64 segment, i64 leaves, i32 term, f64* out, i64 total) {
  const i64 w = grid_warp();
  if (w >= total) return;
  const i64 inside = w % leaves * REDUCE_LEAF, start = w / leaves * segment + inside;
  i64 m = segment - inside < n - start ? segment - inside : n - start;
  m = m < REDUCE_LEAF ? m : REDUCE_LEAF;
  const f64 sum = term == TERM_MAX      ? warp_max(x + start, m)
                  : term == TERM_SQUARE ? warp_sum<TERM_SQUARE>(x + start, m, 1)
                  : term == TERM_ABS    ? warp_sum<TERM_ABS>(x + start, m, 1)
                                        : warp_sum<TERM_SELF>(x + start, m, 1);
  if (lane_of() == 0) out[w] = sum;
}

/* Sums of segments become norms. */
extern "C" __global__ void finish_norms(const real* x, i64 n, i64 segment, i32 norm, f64* sums, i64 segments) {
  const i64 s = grid_thread(), start = s * segment;
  const i64 m = s < segments ? (segment < n - start ? segment : n - start) : 0;
  const f64 result = finish_norm(x + (m ? start : 0), m, norm, m ? sums[s] : 0);
  if (m) sums[s] = result;
}

/* found[0] = how many elements are NaN or Inf, found[1] = where the first one is. */
extern "C" __global__ void count_nonfinite(const real* x, i64 n, u64* found) {
  u32 count = 0;
  u64 first = ~(u64)0;
  for (i64 i = grid_thread(); i < n; i += grid_threads())
    if (!is_finite(x[i])) {
      ++count;
      first = first < (u64)i ? first : (u64)i;
    }
  if (count) {
    atomicAdd(found, (u64)count);
    atomicMin(found + 1, first);
  }
}
