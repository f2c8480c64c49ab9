/* Rule A of product.h, a thread an element. */
#include "block.cuh"
#include "product.h"

extern "C" __global__ void __launch_bounds__(256)
    outer_sum(const real* w, const real* b, i64 r, i64 m, i64 n, real* out) {
  for (i64 at = grid_thread(); at < m * n; at += grid_threads()) {
    const real *left = w + at / n, *right = b + at % n;
    real sum = 0;
    for (i64 k = 0; k < r; ++k) sum += left[k * m] * right[k * n];
    out[at] = sum;
  }
}
