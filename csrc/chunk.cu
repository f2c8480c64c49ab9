/* Selection, as on the CPU: the k-th largest of some maxima lets a few more than k keys in, and the k-th of those is found
   by bisection on the bits. A block takes a chunk and reads it once: up to ROWS keys a thread stay in registers, those of
   a longer chunk are read again. A warp has `rows` rows of 32 consecutive keys, so that warps, rows and lanes come in the
   order of indices. */
#include "chunk.h"
#include "norm.cuh"
#include "pack.cuh"

typedef decltype(T(magnitude)(0)) key;

enum {
  KEY_BITS = 8 * sizeof(key) - 1,
  COARSE_BITS = sizeof(key) == 4 ? 15 : 44,
  ROWS = 64 / sizeof(key),
  MOST_SPLIT = ROWS / 4
};
enum { FEW_KEYS = 256 };                     /* are left to one warp */
enum { FITTING = sizeof(key) == 4 ? 5 : 4 }; /* blocks of 256 threads that a multiprocessor has registers for */

struct selection {
  u32 reach[2 * KEY_BITS]; /* how many keys reach a trial: of the first bisection, and of the second */
  u32 count;
  key found;
  u64 scan[WARP + 1];
};

/* The k-th largest key with the bits below `lowest` cleared, or less, where just k keys reach it too. reach(trial, bit)
   tells how many keys reach a trial. */
template <typename Reach>
DEVICE key bisect(u32 k, int lowest, Reach reach) {
  key found = 0;
#pragma unroll 1
  for (int bit = KEY_BITS - 1; bit >= lowest; --bit) {
    const key trial = found | (key)1 << bit;
    const u32 many = reach(trial, bit);
    if (many >= k) found = trial;
    if (many == k) break;
  }
  return found;
}

/* The sum over the warp, of every lane. */
DEVICE u32 warp_count(u32 v) {
#if __CUDA_ARCH__ >= 800
  return __reduce_add_sync(ALL_LANES, v);
#else
  for (int half = WARP / 2; half; half /= 2) v += __shfl_xor_sync(ALL_LANES, v, half);
  return v;
#endif
}

/* The sum over the block, in *total, which was zero. */
DEVICE u32 block_count(u32 v, u32* total) {
  v = warp_count(v);
  if (blockDim.x == WARP) return v;
  if (lane_of() == 0) atomicAdd(total, v);
  __syncthreads();
  return *total;
}

/* bisect() among m keys of shared memory, by all threads of the block; where they are few, by one warp that has them in
   registers: it needs no barriers. */
DEVICE key bisect_shared(const key* keys, int m, u32 k, int lowest, selection* s, u32* many_reach) {
  if (m > FEW_KEYS)
    return bisect(k, lowest, [&](key trial, int bit) {
      u32 many = 0;
      for (int i = (int)threadIdx.x; i < m; i += (int)blockDim.x) many += keys[i] >= trial;
      return block_count(many, many_reach + bit);
    });
  if (warp_of() == 0) {
    key mine[FEW_KEYS / WARP];
#pragma unroll
    for (int j = 0; j < FEW_KEYS / WARP; ++j) mine[j] = WARP * j + lane_of() < m ? keys[WARP * j + lane_of()] : 0;
    const key found = bisect(k, lowest, [&](key trial, int) {
      u32 many = 0;
#pragma unroll
      for (int j = 0; j < FEW_KEYS / WARP; ++j) many += mine[j] >= trial;
      return warp_count(many);
    });
    if (lane_of() == 0) s->found = found;
  }
  __syncthreads();
  return s->found;
}

/* each(place, key) for the thread's keys of a chunk of n, from place `first` on; what lies behind the end is zero. */
template <bool held, typename Each>
DEVICE void for_keys(const real* x, int n, int first, int rows, const key* kept, Each each) {
  if (held) {
#pragma unroll
    for (int row = 0; row < ROWS; ++row)
      if (row < rows) each(first + WARP * row, kept[row]);
  } else {
#pragma unroll 4
    for (int row = 0; row < rows; ++row) {
      const int i = first + WARP * row;
      each(i, i < n ? T(magnitude)(x[i]) : 0);
    }
  }
}

/* The places of the k largest of a chunk. split: of how many maxima a thread the threshold comes, 0 where k is large;
   room: as many keys. */
template <bool held>
DEVICE void select_chunk(const real* x, int n, u32 k, int rows, int split, u32 start, u32* out, selection* s,
                         key* room) {
  const int lane = lane_of(), thread = (int)threadIdx.x, threads = (int)blockDim.x;
  const int first = warp_of() * rows * WARP + lane, some = split * threads;
  key kept[ROWS]; /* keys, or the largest of every ROWS-th row */
#pragma unroll
  for (int row = 0; row < ROWS; ++row) kept[row] = 0;
  for (int base = 0; base < rows; base += ROWS) {
    const int there = n > first ? (n - first + WARP - 1) / WARP : 0, end = (there < rows ? there : rows) - base;
    real v[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; ++row) v[row] = row < end ? x[first + WARP * (base + row)] : (real)0;
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      const key a = T(magnitude)(v[row]);
      kept[row] = a > kept[row] ? a : kept[row];
    }
  }
  for (int i = thread; i < 2 * KEY_BITS; i += threads) s->reach[i] = 0;
  if (thread == 0) s->count = 0;
  if (split) {
    enum { MOST = held ? MOST_SPLIT : ROWS };
    key most[MOST];
#pragma unroll
    for (int row = 0; row < ROWS; ++row)
      most[row % MOST] = row < MOST || kept[row] > most[row % MOST] ? kept[row] : most[row % MOST];
#pragma unroll
    for (int half = MOST / 2; half; half /= 2)
#pragma unroll
      for (int i = 0; i < MOST / 2; ++i)
        if (i < half && half >= split && most[i + half] > most[i]) most[i] = most[i + half];
#pragma unroll
    for (int i = 0; i < MOST; ++i)
      if (i < split) room[i * threads + thread] = most[i];
  }
  __syncthreads();

  key kth = 0, threshold = 0;
  u32 let_in = ~(u32)0;
  if (split) {
    threshold = bisect_shared(room, some, k, COARSE_BITS, s, s->reach);
    if (threshold == 0) threshold = 1; /* fewer than k maxima are not zero */
    __syncthreads();
    for_keys<held>(x, n, first, rows, kept, [&](int, key a) {
      if (a < threshold) return;
      const u32 at = atomicAdd(&s->count, 1u);
      if (at < (u32)some) room[at] = a;
    });
    __syncthreads();
    let_in = s->count;
  }
  if (let_in == k) kth = threshold;
  else if (let_in > (u32)some)
    kth = bisect(k, 0, [&](key trial, int bit) {
      u32 many = 0;
      for_keys<held>(x, n, first, rows, kept, [&](int, key a) { many += a >= trial; });
      return block_count(many, s->reach + KEY_BITS + bit);
    });
  else if (let_in > k) kth = bisect_shared(room, (int)let_in, k, 0, s, s->reach + KEY_BITS);

  u32 above = 0, tied = 0; /* keys above the k-th, and equal to it: the thread's, and then those before the warp's */
  for_keys<held>(x, n, first, rows, kept, [&](int, key a) {
    above += a > kth;
    tied += a == kth;
  });
  u64 total;
  const u64 before = __shfl_sync(ALL_LANES, block_scan((u64)above << 32 | tied, s->scan, &total), 0);
  const u32 ties = k - (u32)(total >> 32), lower = ((u32)1 << lane) - 1;
  above = (u32)(before >> 32);
  tied = (u32)before;
  for_keys<held>(x, n, first, rows, kept, [&](int i, key a) {
    const u32 over = __ballot_sync(ALL_LANES, a > kth), same = __ballot_sync(ALL_LANES, a == kth);
    if (!over && (!same || tied >= ties)) return;
    const u32 rank = tied + __popc(same & lower);
    if (a > kth || (a == kth && rank < ties))
      out[above + __popc(over & lower) + (rank < ties ? rank : ties)] = start + (u32)i;
    above += __popc(over);
    tied += __popc(same);
  });
}

template <bool held>
DEVICE void select_chunks(const real* x, i64 n, i32 chunk, i32 k, i32 rows, i32 split, u32* out, selection* s,
                          key* room) {
  for (i64 c = blockIdx.x; c * chunk < n; c += gridDim.x) {
    const i64 start = c * chunk, left = n - start;
    const int length = (int)(left < chunk ? left : chunk);
    select_chunk<held>(x + start, length, length < chunk ? (u32)ceil_div((i64)k * length, chunk) : (u32)k, rows, split,
                       (u32)start, out + c * k, s, room);
  }
}

#define CHUNK_TOPK(held)                                                                                               \
  __shared__ selection s;                                                                                              \
  DYNAMIC_SHARED(key, room);                                                                                           \
  select_chunks<held>(x, n, chunk, k, rows, split, out, &s, room)

/* Up to ROWS rows a warp, in up to 8 warps or 32. */
extern "C" __global__ void __launch_bounds__(256, FITTING)
    chunk_topk(const real* x, i64 n, i32 chunk, i32 k, i32 rows, i32 split, u32* out) {
  CHUNK_TOPK(true);
}
extern "C" __global__ void __launch_bounds__(1024, 1)
    chunk_topk_wide(const real* x, i64 n, i32 chunk, i32 k, i32 rows, i32 split, u32* out) {
  CHUNK_TOPK(true);
}
/* Any number of rows. */
extern "C" __global__ void __launch_bounds__(1024, 1)
    chunk_topk_long(const real* x, i64 n, i32 chunk, i32 k, i32 rows, i32 split, u32* out) {
  CHUNK_TOPK(false);
}

/* Values: a warp takes a chunk of k, and its lanes are those of reduce.h. */

/* The sum over the warp in the order of reduce.h, of every lane. */
DEVICE f64 warp_sum_all(f64 v) { return __shfl_sync(ALL_LANES, warp_fold(v), 0); }

/* Two levels by Lloyd's iteration from a threshold; returns the energy that they capture. */
DEVICE f64 warp_lloyd(const real* x, int k, f64 total, f64 threshold, f64* low, f64* high) {
  f64 above = 0;
  for (int step = 0; step < LLOYD_STEPS; ++step) {
    f64 sum = 0;
    int count = 0;
    for (int base = 0; base < k; base += WARP) {
      const int i = base + lane_of();
      const f64 a = i < k ? term_abs((f64)x[i]) : -1;
      const int reaches = a >= threshold;
      if (reaches) sum += a;
      count += __popc(__ballot_sync(ALL_LANES, reaches));
    }
    if (count == 0 || count == k) {
      *low = *high = total / (f64)k;
      return total * *high;
    }
    above = warp_sum_all(sum);
    threshold = lloyd_step(total, above, count, k, low, high);
  }
  return lloyd_energy(total, above, *low, *high);
}

DEVICE chunk_fit warp_fit(const real* x, int k, u32 levels) {
  const f64 total = __shfl_sync(ALL_LANES, warp_sum<TERM_ABS>(x, k, 1), 0), mean = total / (f64)k;
  key least = T(magnitude)(x[0]), most = least;
  for (int i = lane_of(); i < k; i += WARP) {
    const key a = T(magnitude)(x[i]);
    least = a < least ? a : least;
    most = a > most ? a : most;
  }
  for (int half = WARP / 2; half; half /= 2) {
    const key a = __shfl_xor_sync(ALL_LANES, least, half), b = __shfl_xor_sync(ALL_LANES, most, half);
    least = a < least ? a : least;
    most = b > most ? b : most;
  }
  const f64 from = of_magnitude(least, real()), to = of_magnitude(most, real());
  const chunk_fit one = {line_of(mean), line_of(mean), line_of(mean)};
  if (to == 0 || levels == 1) return one;
  if (levels > 2) return chunk_spread(mean, from, to, levels);
  f64 low[2], high[2];
  const f64 energy = warp_lloyd(x, k, total, mean, low, high);
  const int second = energy < warp_lloyd(x, k, total, chunk_threshold(from, to), low + 1, high + 1);
  const chunk_fit two = {line_of(second ? high[1] : high[0]), line_of(second ? low[1] : low[0]), one.mean};
  return two;
}

/* The level nearest to a magnitude, of a power of two. */
DEVICE u32 nearest_level(chunk_levels l, u32 levels, f64 a) {
  u32 c = 0;
  for (u32 half = levels / 2; half; half /= 2) {
    const u32 upper = c + half;
    if (a >= chunk_threshold(chunk_level(l, upper - 1), chunk_level(l, upper))) c = upper;
  }
  return c;
}

DEVICE f64 warp_error(const real* x, int k, chunk_levels l, u32 levels) {
  f64 sum = 0;
  for (int i = lane_of(); i < k; i += WARP) {
    const f64 a = term_abs((f64)x[i]);
    sum += term_square(chunk_level(l, nearest_level(l, levels, a)) - a);
  }
  return warp_sum_all(sum);
}

/* What the chunks want, and in `extremes`, from zeros on, where the line must reach: below its bottom, its top, its span. */
extern "C" __global__ void __launch_bounds__(256)
    chunk_fits(const real* x, i64 n, i32 k, u32 levels, u32* fits, u32* extremes) {
  level_line line = line_empty();
  for (i64 c = grid_warp(); c * k < n; c += grid_warps()) {
    const i64 left = n - c * k;
    const chunk_fit fit = warp_fit(x + c * k, (int)(left < k ? left : k), levels);
    line = line_add(line, fit);
    if (lane_of() == 0) ((chunk_fit*)fits)[c] = fit;
  }
  if (lane_of() == 0) {
    atomicMax(extremes, line_empty().bottom - line.bottom);
    atomicMax(extremes + 1, line.top);
    atomicMax(extremes + 2, line.span);
  }
}

/* The header, a byte and a nibble of each chunk, and its codes, to be packed. A warp takes two chunks, which share a byte
   of nibbles. */
extern "C" __global__ void __launch_bounds__(256)
    chunk_choose(const real* x, i64 n, i32 k, i32 width, const u32* fits, const u32* extremes, u8* out, u16* codes) {
  const level_line line = line_closed({line_empty().bottom - extremes[0], extremes[1], extremes[2]});
  const u32 levels = (u32)1 << (width - 1);
  const i64 chunks = ceil_div(n, k);
  if (grid_thread() == 0) {
    store_u32(out, line.bottom);
    store_u32(out + 4, line.top);
    store_u32(out + 8, line.span);
  }
  for (i64 pair = grid_warp(); 2 * pair < chunks; pair += grid_warps()) {
    u32 ratios = 0;
    for (i64 c = 2 * pair; c < 2 * pair + 2 && c < chunks; ++c) {
      const real* values = x + c * k;
      const int m = (int)(n - c * k < k ? n - c * k : k);
      const chunk_fit fit = ((const chunk_fit*)fits)[c];
      u32 scale = 0, ratio = 0;
      if (chunk_sent(line, fit)) {
        const chunk_start start = chunk_start_of(line, fit);
        f64 least = 0;
        for (int t = 0; t < CHUNK_TRIALS; ++t) {
          u32 s, r;
          if (!chunk_trial(start, levels, t, &s, &r)) continue;
          const f64 error = warp_error(values, m, chunk_levels_of(line, s, r, levels), levels);
          if (scale && !(error < least)) continue;
          least = error;
          scale = s;
          ratio = r;
        }
      }
      const chunk_levels l = chunk_levels_of(line, scale ? scale : 1, ratio, levels);
      for (int i = lane_of(); i < m; i += WARP) {
        const f64 v = (f64)values[i];
        codes[c * k + i] = scale ? (u16)((u32)(v < 0) * levels + nearest_level(l, levels, term_abs(v))) : (u16)0;
      }
      ratios |= ratio << 4 * (c & 1);
      if (lane_of() == 0) out[CHUNK_HEADER + c] = (u8)scale;
    }
    if (width > 1 && lane_of() == 0) out[CHUNK_HEADER + chunks + pair] = (u8)ratios;
  }
}

/* The values of a message: a warp unpacks a block of codes. */
extern "C" __global__ void __launch_bounds__(256) chunk_values(const u8* data, i64 n, i32 k, i32 width, real* out) {
  __shared__ u16 room[256 / WARP][PACK_BLOCK];
  const i64 block = grid_warp(), start = block * PACK_BLOCK, chunks = ceil_div(n, k);
  if (start >= n || width == 0) return; /* the compiler need not think of trits */
  const int m = (int)(n - start < PACK_BLOCK ? n - start : PACK_BLOCK);
  u16* codes = room[warp_of()];
  warp_unpack(data + chunk_codes_start(chunks, width) + block * packed_block_bytes(width), m, width,
              [&](int, int i, u32 code) { codes[i] = (u16)code; });
  __syncwarp();
  const level_line line = {load_u32(data), load_u32(data + 4), load_u32(data + 8)};
  const u32 levels = (u32)1 << (width - 1);
  const i64 first = start / k;
  const u32 inside = (u32)(start - first * k);
  for (int i = lane_of(); i < m; i += WARP) {
    const i64 c = first + (inside + i) / (u32)k;
    const u32 scale = data[CHUNK_HEADER + c], code = codes[i];
    const u32 ratio = width > 1 ? data[CHUNK_HEADER + chunks + (c >> 1)] >> 4 * (c & 1) & 15 : 0;
    const chunk_levels l = chunk_levels_of(line, scale ? scale : 1, ratio, levels);
    const f64 level = scale ? chunk_level(l, code & (levels - 1)) : 0;
    out[start + i] = (real)(code & levels && level != 0 ? -level : level);
  }
}
