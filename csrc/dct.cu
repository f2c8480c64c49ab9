/* A thread takes a block of 64, all of it in registers, with its weights in the instructions; a warp takes 32 blocks in
   and out through shared memory, so that its accesses are of neighbours. The few numbers behind the last whole block
   are smaller blocks, a warp each, a lane a number. */
#include "block.cuh"
#include "dct.h"

enum { DCT_WARPS = 2, DCT_PITCH = DCT_BLOCK + 1 /* 32 lanes at one place of their blocks: 32 banks */ };

static __device__ constexpr f64 dct_cosines[] = DCT_COSINES;

DEVICE real weight(int n, int size, int i, int j) { return (real)dct_weight(dct_cosines, n, size, i, j); }
DEVICE real first_weight(int n) { return (real)dct_scale(n, 0); }

/* `size` numbers of x; number i of the transform goes to out[i * (64 / size)]. */
template <int size>
DEVICE void forward(const real (&x)[size], real* out) {
  constexpr int half = size / 2, step = DCT_BLOCK / size;
  real even[half], odd[half];
#pragma unroll
  for (int j = 0; j < half; ++j) {
    even[j] = x[j] + x[size - 1 - j];
    odd[j] = x[j] - x[size - 1 - j];
  }
#pragma unroll
  for (int i = 0; i < half; ++i) {
    real sum = weight(DCT_BLOCK, size, i, 0) * odd[0];
#pragma unroll
    for (int j = 1; j < half; ++j) sum += weight(DCT_BLOCK, size, i, j) * odd[j];
    out[(2 * i + 1) * step] = sum;
  }
  if constexpr (size > 2) forward(even, out);
  else out[0] = even[0] * first_weight(DCT_BLOCK);
}

/* The inverse: store(j, v) takes number j of `size`, once all that it needs of `in` has been read. */
template <int size, typename Store>
DEVICE void inverse(const real* in, Store store) {
  constexpr int half = size / 2, step = DCT_BLOCK / size;
  real even[half], odd[half];
  if constexpr (size > 2) inverse<half>(in, [&](int j, real v) { even[j] = v; });
  else even[0] = in[0] * first_weight(DCT_BLOCK);
#pragma unroll
  for (int i = 0; i < half; ++i) odd[i] = in[(2 * i + 1) * step];
#pragma unroll
  for (int j = 0; j < half; ++j) {
    real sum = weight(DCT_BLOCK, size, 0, j) * odd[0];
#pragma unroll
    for (int i = 1; i < half; ++i) sum += weight(DCT_BLOCK, size, i, j) * odd[i];
    store(j, even[j] + sum);
    store(size - 1 - j, even[j] - sum);
  }
}

/* transform(block) for up to 32 blocks of x, one a lane, in shared memory. */
template <typename Transform>
DEVICE void each_block(const real* x, real* out, i64 blocks, Transform transform) {
  __shared__ real room[DCT_WARPS][WARP * DCT_PITCH];
  const i64 first = grid_warp() * WARP;
  if (first >= blocks) return;
  real* mine = room[warp_of()];
  const int count = (int)(blocks - first < WARP ? blocks - first : WARP);
  x += first * DCT_BLOCK + lane_of();
  out += first * DCT_BLOCK + lane_of();
#pragma unroll 16
  for (int r = 0; r < 2 * count; ++r) mine[r / 2 * DCT_PITCH + r % 2 * WARP + lane_of()] = x[r * WARP];
  __syncwarp();
  if (lane_of() < count) transform(mine + lane_of() * DCT_PITCH);
  __syncwarp();
#pragma unroll 16
  for (int r = 0; r < 2 * count; ++r) out[r * WARP] = mine[r / 2 * DCT_PITCH + r % 2 * WARP + lane_of()];
}

extern "C" __global__ void __launch_bounds__(64) dct_forward(const real* x, real* out, i64 blocks) {
  each_block(x, out, blocks, [](real* block) {
    real v[DCT_BLOCK];
#pragma unroll
    for (int j = 0; j < DCT_BLOCK; ++j) v[j] = block[j];
    forward(v, block);
  });
}

extern "C" __global__ void __launch_bounds__(64) dct_inverse(const real* x, real* out, i64 blocks) {
  each_block(x, out, blocks, [](real* block) { inverse<DCT_BLOCK>(block, [&](int j, real v) { block[j] = v; }); });
}

/* n < 64 numbers: warp w has the block of 32 >> w, if there is one. */
extern "C" __global__ void dct_tail(const real* x, real* out, i32 n, i32 inverse) {
  const int block = WARP >> warp_of(), lane = lane_of(), start = n & ~(2 * block - 1);
  if (!(n & block)) return;
  const real v = lane < block ? x[start + lane] : 0;
  real now = v; /* of the lanes below `size` */
  out += start;
  if (!inverse) {
    for (int size = block; size > 1; size /= 2) {
      const int half = size / 2;
      const real mirror = __shfl_sync(ALL_LANES, now, (size - 1 - lane) & (WARP - 1)), odd = now - mirror;
      real sum = weight(block, size, lane, 0) * __shfl_sync(ALL_LANES, odd, 0);
      for (int j = 1; j < half; ++j) sum += weight(block, size, lane, j) * __shfl_sync(ALL_LANES, odd, j);
      if (lane < half) out[(2 * lane + 1) * (block / size)] = sum;
      now = now + mirror;
    }
    if (lane == 0) out[0] = now * first_weight(block);
  } else {
    now = v * first_weight(block);
    for (int size = 2; size <= block; size *= 2) {
      const int half = size / 2, j = lane < half ? lane : size - 1 - lane, step = block / size;
      const real even = __shfl_sync(ALL_LANES, now, j & (WARP - 1));
      real sum = weight(block, size, 0, j) * __shfl_sync(ALL_LANES, v, step);
      for (int i = 1; i < half; ++i) sum += weight(block, size, i, j) * __shfl_sync(ALL_LANES, v, (2 * i + 1) * step);
      now = lane < half ? even + sum : even - sum;
    }
    if (lane < block) out[lane] = now;
  }
}
