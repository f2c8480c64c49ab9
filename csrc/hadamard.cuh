/* The Walsh-Hadamard transform by a block or a warp: of shared memory, and of registers. The stages run in ascending
   order in every one of them, so all give the same bits (hadamard.h, B).

   A. Shared memory (`block_fwht`, `warp_fwht`): a pass takes WINDOW bits of the index into the registers of a thread,
      16 numbers, and does their stages. Neighbouring lanes hold neighbours where those bits are high. Where they are
      low ones and choose the bank, register k of a thread holds digit k ^ mask, another mask in every lane: no two
      lanes meet in a bank, though the numbers lie in their natural order, and a butterfly whose halves have changed
      places costs a change of sign.
   B. Registers (`tile_fwht`): a tile is rows of 32, a lane a column, 32 rows a warp in v[0] ... v[31], and 1, 2, ... 32
      warps. Stages between lanes are shuffles; those between a warp's rows stay in its registers; for those between
      warps, the rows change places through shared memory once. */
#ifndef COMPRESS_HADAMARD_CUH
#define COMPRESS_HADAMARD_CUH
#include "block.cuh"
#include "hadamard.h"

enum { WINDOW = 4, TILE_ROWS = 32 };

DEVICE f32 flip_sign(f32 x, u32 signs, int i) { return flip_sign_f32(x, signs, i); }
DEVICE f64 flip_sign(f64 x, u32 signs, int i) { return flip_sign_f64(x, signs, i); }

/* The stages of register strides 2^first ... 2^(last - 1), where v[k] holds digit k ^ mask. */
template <typename number, int count>
DEVICE void butterflies(number (&v)[count], int first, int last, u32 mask) {
#pragma unroll
  for (int bit = 0; 1 << bit < count; ++bit) {
    if (bit < first || bit >= last) continue;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      if (k >> bit & 1) continue;
      const number a = v[k], b = v[k + (1 << bit)];
      v[k] = flip_sign(a, mask, bit) + b;
      v[k + (1 << bit)] = a - flip_sign(b, mask, bit);
    }
  }
}

/* The stages of strides 1, 2, ... 2^(bits - 1) between the lanes of every v[k]. */
template <typename number, int count>
DEVICE void lane_butterflies(number (&v)[count], int bits) {
#pragma unroll
  for (int bit = 0; 1 << bit < WARP; ++bit) {
    if (bit >= bits) continue;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const number other = __shfl_xor_sync(ALL_LANES, v[k], 1 << bit);
      v[k] = flip_sign(v[k], threadIdx.x, bit) + other;
    }
  }
}

/* The stages 2^first ... 2^(last - 1) of n numbers, all of them among WINDOW bits from bit `from` on. `spread`: those
   bits choose the bank. */
template <typename number, typename Load, typename Store>
DEVICE void window_stages(int n, int from, int first, int last, bool spread, int thread, int threads, Load load,
                          Store store) {
  constexpr int bank_bits = sizeof(number) == 4 ? 5 : 4, radix = 1 << WINDOW;
  for (int t = thread; t < n / radix; t += threads) {
    const int low = t & ((1 << from) - 1), start = (t - low) * radix + low;
    const int mask = spread ? t >> max(from, bank_bits - WINDOW) & ((1 << bank_bits >> from) - 1) & (radix - 1) : 0;
    number v[radix];
#pragma unroll
    for (int k = 0; k < radix; ++k) v[k] = load(start + ((k ^ mask) << from));
    butterflies(v, first - from, last - from, mask);
#pragma unroll
    for (int k = 0; k < radix; ++k) store(start + ((k ^ mask) << from), v[k]);
  }
}

/* All stages of n numbers, a power of two, by `threads` threads: the whole block (a multiple of 32) or a warp. load(i)
   gives number i and store(i, v) takes sum i, not scaled, each once and by any thread; x is shared memory for n numbers
   in between, of which load(i) may read and store(i, v) may write x[i]. So what comes before a transform or after it
   needs no pass of its own. Ends with a barrier, begins with none. */
template <typename number, typename Load, typename Store>
DEVICE void shared_fwht(number* x, int n, int thread, int threads, Load load, Store store) {
  const int log = 31 - __clz(n);
  const auto get = [&](int i) { return x[i]; };
  const auto put = [&](int i, number v) { x[i] = v; };
  const auto barrier = [&]() {
    if (threads == WARP) __syncwarp();
    else __syncthreads();
  };
  if (n <= WARP) {
    if (thread < WARP) {
      number v[1] = {thread < n ? load(thread) : 0};
      lane_butterflies(v, log);
      if (thread < n) store(thread, v[0]);
    }
  } else {
    window_stages<number>(n, 0, 0, WINDOW, true, thread, threads, load, put);
    __syncwarp(); /* the next pass takes the same numbers to a warp */
    int done = WINDOW;
    if (log > 2 * WINDOW) {
      window_stages<number>(n, WINDOW, WINDOW, 2 * WINDOW, true, thread, threads, get, put);
      barrier();
      done = 2 * WINDOW;
    }
    if (log > 3 * WINDOW) {
      window_stages<number>(n, 2 * WINDOW, 2 * WINDOW, 3 * WINDOW, false, thread, threads, get, put);
      barrier();
      done = 3 * WINDOW;
    }
    window_stages<number>(n, log - WINDOW, done, log, false, thread, threads, get, store);
  }
  barrier();
}

/* The transform of n numbers of shared memory, n a power of two, times `scale`, by all threads of the block (blockDim a
   multiple of 32), with barriers before and after; and by each warp for itself. */
template <typename number>
DEVICE void block_fwht(number* x, int n, number scale) {
  __syncthreads();
  shared_fwht(
      x, n, (int)threadIdx.x, (int)blockDim.x, [&](int i) { return x[i]; }, [&](int i, number v) { x[i] = v * scale; });
}
template <typename number>
DEVICE void warp_fwht(number* x, int n, number scale) {
  __syncwarp();
  shared_fwht(x, n, lane_of(), WARP, [&](int i) { return x[i]; }, [&](int i, number v) { x[i] = v * scale; });
}

/* The row of v[k] in a tile of 2^log_warps warps: before the transform, and after it. */
DEVICE int tile_row(int k) { return TILE_ROWS * warp_of() + k; }
template <int log_warps>
DEVICE int tile_row_after(int k) {
  constexpr int rest = 5 - log_warps; /* bits of k that no warp's number has taken */
  return (k >> rest) * TILE_ROWS + (warp_of() << rest) + (k & ((1 << rest) - 1));
}

/* The stages of a tile that a whole block holds: the first lane_bits of those between lanes, the first row_bits <= 5 of
   those between rows of a warp, and all between warps. Not scaled. `room`: 1024 numbers of shared memory a warp, for
   more warps than one; nobody writes there before the block's next barrier. */
template <int log_warps, typename number>
DEVICE void tile_fwht(number (&v)[TILE_ROWS], int lane_bits, int row_bits, number* room) {
  lane_butterflies(v, lane_bits);
  butterflies(v, 0, row_bits, 0);
  if constexpr (log_warps > 0) {
#pragma unroll
    for (int k = 0; k < TILE_ROWS; ++k) room[tile_row(k) * WARP + lane_of()] = v[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < TILE_ROWS; ++k) v[k] = room[tile_row_after<log_warps>(k) * WARP + lane_of()];
    butterflies(v, 5 - log_warps, 5, 0);
  }
}

#endif
