#include "block.cuh"
#include "philox.h"

/* A thread makes a call: 128 bits. */
extern "C" __global__ void philox_words(u64 key, u64 start, u32 stream, u32* out, i64 calls) {
  const i64 i = grid_thread();
  if (i >= calls) return;
  const philox_out r = random_at(start + (u64)i, stream, key);
  for (int j = 0; j < 4; ++j) out[4 * i + j] = r.w[j];
}

extern "C" __global__ void correlated_dither(u64 key, u64 shared, u32 worker, u32 workers, u64 start, u32* out, i64 n) {
  const i64 i = grid_thread();
  if (i >= n) return;
  const u64 e = start + (u64)i;
  out[i] = dither16(e, correlated_bits(key, shared, worker, workers, e));
}
