/* A CUDA block takes a tile (hadamard.cuh, B): whatever its shape, it is read once and written once. */
#include "hadamard.cuh"
#include "philox.h"

/* The largest tile that fits the registers of a block. */
enum { LOG_WARPS = sizeof(real) == 4 ? 5 : 4, MOST_THREADS = WARP << LOG_WARPS };

template <int value>
struct Constant {
  static constexpr int is = value;
};

/* work(log2 of the block's warps), a constant to it. */
template <int most, int log_warps = 0, typename Work>
DEVICE void by_warps(Work work) {
  if constexpr (log_warps < most)
    if ((int)blockDim.x > WARP << log_warps) return by_warps<most, log_warps + 1>(work);
  work(Constant<log_warps>());
}

/* The bytes of so many rows, by one multiplication: a step has fewer than 2^32. */
DEVICE u64 bytes_of(int rows, i64 step) { return (u64)(u32)rows * (u32)(step * sizeof(real)); }

/* Rows of 32, `step` apart, the first `left` numbers of them; but for single warps a tile is full. */
template <int log_warps>
DEVICE void load_tile(real (&v)[TILE_ROWS], const real* x, i64 step, int left) {
  const int first = tile_row(0), i = first * WARP + lane_of();
  const u8* at = (const u8*)(x + first * step + lane_of());
#pragma unroll
  for (int k = 0; k < TILE_ROWS; ++k) {
    const int rows = tile_row(k) - first;
    v[k] = log_warps || i + rows * WARP < left ? *(const real*)(at + bytes_of(rows, step)) : 0;
  }
}
template <int log_warps>
DEVICE void store_tile(const real (&v)[TILE_ROWS], real* x, i64 step, int left) {
  const int first = tile_row_after<log_warps>(0), i = first * WARP + lane_of();
  u8* at = (u8*)(x + first * step + lane_of());
#pragma unroll
  for (int k = 0; k < TILE_ROWS; ++k) {
    const int rows = tile_row_after<log_warps>(k) - first;
    if (log_warps || i + rows * WARP < left) *(real*)(at + bytes_of(rows, step)) = v[k];
  }
}

/* The stages of a tile that is 2^log neighbours, or more blocks of so many. */
template <int log_warps>
DEVICE void fwht_tile(real (&v)[TILE_ROWS], int log, real* room) {
  tile_fwht<log_warps>(v, log_warps || log > 5 ? 5 : log, log_warps ? 5 : log - 5, room);
}
DEVICE void scale_tile(real (&v)[TILE_ROWS], real scale) {
#pragma unroll
  for (int k = 0; k < TILE_ROWS; ++k) v[k] *= scale;
}

/* The stages of strides 1, 2, ... 2^(log - 1) of n numbers; then the scale of `block` numbers, none where it is 0. */
extern "C" __global__ void __launch_bounds__(MOST_THREADS) fwht_rows(real* x, i64 n, i32 log, i64 block) {
  DYNAMIC_SHARED(real, room);
  by_warps<LOG_WARPS>([&](auto log_warps) {
    constexpr int w = log_warps.is, tile = TILE_ROWS * WARP << w;
    const i64 start = (i64)blockIdx.x * tile;
    const int left = (int)(n - start < tile ? n - start : tile);
    real v[TILE_ROWS];
    load_tile<w>(v, x + start, WARP, left);
    fwht_tile<w>(v, log, room);
    if (block) scale_tile(v, (real)hadamard_scale(block));
    store_tile<w>(v, x + start, WARP, left);
  });
}

/* Those of strides 2^log_step, ... as many as the block's tiles have rows, 32 columns a tile. */
extern "C" __global__ void __launch_bounds__(MOST_THREADS) fwht_columns(real* x, i32 log_step, i64 block) {
  DYNAMIC_SHARED(real, room);
  by_warps<LOG_WARPS>([&](auto log_warps) {
    constexpr int w = log_warps.is, rows = TILE_ROWS << w;
    const i64 step = (i64)1 << log_step, column = (i64)blockIdx.x * WARP;
    real* from = x + (column & ~(step - 1)) * rows + (column & (step - 1));
    real v[TILE_ROWS];
    load_tile<w>(v, from, step, rows * WARP);
    tile_fwht<w>(v, 0, 5, room);
    if (block) scale_tile(v, (real)hadamard_scale(block));
    store_tile<w>(v, from, step, rows * WARP);
  });
}

/* The signs of a tile, a word a row: lane l has made the call for v[4 l] and the next three, which are neighbours. */
DEVICE void flip_tile(real (&v)[TILE_ROWS], const philox_out& signs) {
#pragma unroll
  for (int k = 0; k < TILE_ROWS; ++k) v[k] = flip_sign(v[k], __shfl_sync(ALL_LANES, signs.w[k & 3], k >> 2), lane_of());
}

/* Every whole block of a rotation of n numbers, 2^log to a CUDA block, or the one that overlaps (hadamard.h, C). What
   the launch before has written comes from `out`, everything else from x. */
extern "C" __global__ void __launch_bounds__(128)
    rotate(const real* x, real* out, i64 n, i32 log, u64 key, i32 inverse, i32 overlap) {
  DYNAMIC_SHARED(real, room);
  const int block = 1 << log;
  const i64 whole = n >> log << log, start = overlap ? n - block : (i64)blockIdx.x << log;
  const real* head = overlap && !inverse ? out : x; /* numbers below `cut` */
  const real* tail = inverse && !overlap ? out : x; /* and those after it */
  const i64 cut = (overlap ? whole : whole < n ? n - block : n) - start;
  const u64 signs = overlap ? ROTATION_LAST_SIGNS : (u64)start;
  by_warps<2>([&](auto log_warps) {
    constexpr int w = log_warps.is;
    real v[TILE_ROWS];
    if (cut >= block) {
      load_tile<w>(v, head + start, WARP, block);
    } else {
#pragma unroll
      for (int k = 0; k < TILE_ROWS; ++k) {
        const int i = tile_row(k) * WARP + lane_of();
        v[k] = i < block ? (i < cut ? head : tail)[start + i] : 0;
      }
    }
    const int row = inverse ? tile_row_after<w>(4 * lane_of()) : tile_row(4 * lane_of());
    const philox_out words = random_at(signs / 128 + row / 4, STREAM_SIGNS, key);
    if (!inverse) flip_tile(v, words);
    fwht_tile<w>(v, log, room);
    scale_tile(v, (real)hadamard_scale(block));
    if (inverse) flip_tile(v, words);
    store_tile<w>(v, out + start, WARP, block);
  });
}
