/* What the threads of a warp or a block do together, and how kernels touch bytes. */
#ifndef COMPRESS_BLOCK_CUH
#define COMPRESS_BLOCK_CUH
#include "portable.h"

#define DEVICE static __device__ __forceinline__
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define T(name) JOIN(name, real) /* the instance of a formula for the element type of this build */

enum { WARP = 32 };
#define ALL_LANES 0xffffffffu

/* Dynamic shared memory, aligned for 16-byte accesses. */
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name)                                                                                     \
  extern __shared__ __align__(16) unsigned char dynamic[];                                                             \
  type* name = reinterpret_cast<type*>(dynamic)
#endif

DEVICE int lane_of() { return (int)(threadIdx.x & (WARP - 1)); }
DEVICE int warp_of() { return (int)(threadIdx.x / WARP); }
/* The warp's number in the grid, and how many there are: what a warp that takes every k-th piece of work needs. */
DEVICE i64 grid_warp() { return ((i64)blockIdx.x * blockDim.x + threadIdx.x) / WARP; }
DEVICE i64 grid_warps() { return (i64)gridDim.x * blockDim.x / WARP; }
DEVICE i64 grid_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE i64 grid_threads() { return (i64)gridDim.x * blockDim.x; }

/* Sums of 32 lanes in halves (reduce.h, B); the result is lane 0's. */
template <typename number>
DEVICE number warp_fold(number v) {
  for (int half = WARP / 2; half; half /= 2) v = v + __shfl_down_sync(ALL_LANES, v, half);
  return v;
}

/* v of the lanes up to this one, added: integers alone. */
template <typename integer>
DEVICE integer warp_scan(integer v) {
  for (int by = 1; by < WARP; by *= 2) {
    const integer other = __shfl_up_sync(ALL_LANES, v, by);
    if (lane_of() >= by) v += other;
  }
  return v;
}

/* The sum of v over the threads before this one, and *total over all; every thread of the block calls it, blockDim is a
   multiple of 32, and `room` is shared memory for 33 numbers that nothing else uses. */
template <typename integer>
DEVICE integer block_scan(integer v, integer* room, integer* total) {
  const integer upto = warp_scan(v);
  const int warps = (int)blockDim.x / WARP;
  if (lane_of() == WARP - 1) room[warp_of()] = upto;
  __syncthreads();
  if (threadIdx.x < WARP) {
    const integer mine = lane_of() < warps ? room[lane_of()] : 0;
    const integer sums = warp_scan(mine);
    room[lane_of()] = sums - mine;
    if (lane_of() == WARP - 1) room[WARP] = sums;
  }
  __syncthreads();
  *total = room[WARP];
  const integer before = room[warp_of()] + upto - v;
  __syncthreads();
  return before;
}

/* Numbers at any address: payloads start where they please, and a GPU faults on a word that is not aligned. */
DEVICE int aligned(const void* p, int bytes) { return ((u64)p & (u64)(bytes - 1)) == 0; }
DEVICE u32 load_u32(const u8* p) { return (u32)p[0] | (u32)p[1] << 8 | (u32)p[2] << 16 | (u32)p[3] << 24; }
DEVICE u64 load_u64(const u8* p) { return load_u32(p) | (u64)load_u32(p + 4) << 32; }
DEVICE void store_u32(u8* p, u32 v) {
  p[0] = (u8)v;
  p[1] = (u8)(v >> 8);
  p[2] = (u8)(v >> 16);
  p[3] = (u8)(v >> 24);
}
DEVICE void store_u64(u8* p, u64 v) {
  store_u32(p, (u32)v);
  store_u32(p + 4, (u32)(v >> 32));
}

#endif
