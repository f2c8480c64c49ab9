/* The Walsh-Hadamard transform of what one block holds in shared memory. */
#ifndef COMPRESS_HADAMARD_CUH
#define COMPRESS_HADAMARD_CUH
#include "block.cuh"
#include "hadamard.h"

/* All stages of n elements of shared memory, n a power of two, by all threads of the block; then times `scale`. Barriers
   before and after. */
template <typename number>
DEVICE void block_fwht(number* x, int n, number scale) {
  __syncthreads();
  for (int stride = 1; stride < n; stride *= 2) {
    for (int i = (int)threadIdx.x; i < n / 2; i += (int)blockDim.x) {
      const int at = 2 * i - (i & (stride - 1));
      const number a = x[at], b = x[at + stride];
      x[at] = a + b;
      x[at + stride] = a - b;
    }
    __syncthreads();
  }
  for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) x[i] *= scale;
  __syncthreads();
}

#endif
