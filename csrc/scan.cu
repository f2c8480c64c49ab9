/* Prefix sums over a whole vector, in place: tiles first, then the totals of tiles by the same rule, then these onto the
   tiles. */
#include "block.cuh"

enum { SCAN_THREADS = 1024, SCAN_ROWS = 8, SCAN_TILE = SCAN_THREADS * SCAN_ROWS };

/* A warp has SCAN_ROWS rows of 32 neighbours. */
DEVICE i64 scan_place(int row) { return (grid_warp() * SCAN_ROWS + row) * WARP + lane_of(); }

template <typename integer>
DEVICE void scan_tile(integer* v, i64 n, integer* totals, integer* room) {
  integer row[SCAN_ROWS], sum = 0, total;
#pragma unroll
  for (int r = 0; r < SCAN_ROWS; ++r) row[r] = scan_place(r) < n ? v[scan_place(r)] : 0;
#pragma unroll
  for (int r = 0; r < SCAN_ROWS; ++r) {
    const integer upto = warp_scan(row[r]);
    row[r] = sum + upto - row[r];
    sum += __shfl_sync(ALL_LANES, upto, WARP - 1);
  }
  const integer before = __shfl_sync(ALL_LANES, block_scan<integer>(lane_of() == 0 ? sum : 0, room, &total), 0);
#pragma unroll
  for (int r = 0; r < SCAN_ROWS; ++r)
    if (scan_place(r) < n) v[scan_place(r)] = before + row[r];
  if (threadIdx.x == 0) totals[blockIdx.x] = total;
}

template <typename integer>
DEVICE void add_tile(integer* v, i64 n, const integer* before) {
  const integer sum = before[blockIdx.x];
#pragma unroll
  for (int r = 0; r < SCAN_ROWS; ++r)
    if (scan_place(r) < n) v[scan_place(r)] += sum;
}

extern "C" __global__ void __launch_bounds__(1024) scan_u32(u32* v, i64 n, u32* totals) {
  __shared__ u32 room[WARP + 1];
  scan_tile(v, n, totals, room);
}
extern "C" __global__ void __launch_bounds__(1024) scan_u64(u64* v, i64 n, u64* totals) {
  __shared__ u64 room[WARP + 1];
  scan_tile(v, n, totals, room);
}
extern "C" __global__ void __launch_bounds__(1024) add_u32(u32* v, i64 n, const u32* before) { add_tile(v, n, before); }
extern "C" __global__ void __launch_bounds__(1024) add_u64(u64* v, i64 n, const u64* before) { add_tile(v, n, before); }
