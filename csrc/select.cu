/* Top-K by radix selection, 11 bits a pass. A small vector is one block's. Of a larger one the candidates come first: all
   elements that reach a magnitude from a sample, a little more than k. They leave in one pass over x, tile by tile, in
   order within a tile; a table tells where each tile's are. If they are fewer than k, or more than there is room for,
   the passes run on x itself: what is selected is the same. Nothing waits for the host. */
#include "block.cuh"
#include "select.h"

enum {
  DIGIT = 11,
  BINS = 1 << DIGIT,
  KEY_BITS = 8 * sizeof(real) - 1,
  TOPK_PASSES = (KEY_BITS + DIGIT - 1) / DIGIT,
  TOPK_SAMPLE = 8192,
  TOPK_TILE = 8192, /* elements of a tile: a block of 512 threads, 16 rows a warp */
  TILE_ROWS = 16,
  COLLECT_BLOCKS = sizeof(real) == 4 ? 3 : 2, /* at once, so that some load while others write */
  ROWS = 8,                                   /* rows that a warp reads at once */
  PIECE = ROWS * WARP
};
/* Where things are in `control`, u64: what the sample says, how many candidates there are, the selection before each
   pass, the histogram of each pass. */
enum { CONTROL_THRESHOLD, CONTROL_COUNT, CONTROL_STATE, CONTROL_HISTOGRAM = 16 };

typedef decltype(T(magnitude)(real())) key;

DEVICE u32 lanes_before() { return ((u32)1 << lane_of()) - 1; }

/* The elements that are still looked at, as far as is known: those whose key starts with `prefix`; the one looked for is
   the rank-th largest of them. */
struct selection {
  u64 prefix, rank;
};

/* A row of 32 in a histogram. The value of the first lane is counted at once: most of a row may have the same. */
DEVICE void tally(u32* histogram, u32 bin, int valid) {
  const u32 active = __ballot_sync(ALL_LANES, valid);
  if (!active) return;
  const int first = __ffs((int)active) - 1;
  const u32 common = __shfl_sync(ALL_LANES, bin, first);
  const u32 same = __ballot_sync(ALL_LANES, valid && bin == common);
  if (lane_of() == first) atomicAdd(histogram + bin, (u32)__popc(same));
  else if (valid && bin != common) atomicAdd(histogram + bin, 1u);
}

/* ROWS rows, key_at(i) the i-th of n keys: the next `width` bits of those that start with `prefix`, `shift` bits left. */
template <typename Key>
DEVICE void tally_rows(u32* histogram, Key key_at, i64 n, u64 prefix, int shift, int width) {
  decltype(key_at(0)) k[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) k[r] = r * WARP + lane_of() < n ? key_at(r * WARP + lane_of()) : 0;
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
    tally(histogram, (u32)(k[r] >> shift) & (BINS - 1), r * WARP + lane_of() < n && k[r] >> shift >> width == prefix);
}

DEVICE void clear(u32* histogram) {
  for (int i = (int)threadIdx.x; i < BINS; i += (int)blockDim.x) histogram[i] = 0;
}

/* One digit of `width` bits more, by all threads of the block; room: 33 numbers and 2 more. */
template <typename count>
DEVICE selection narrow(selection s, const count* histogram, int width, u64* room) {
  u64 *found = room + WARP + 1, mine = 0, total;
  const int each = BINS / (int)blockDim.x, top = BINS - 1 - each * (int)threadIdx.x;
  for (int j = 0; j < each; ++j) mine += histogram[top - j];
  const u64 before = block_scan(mine, room, &total);
  if (before < s.rank && s.rank <= before + mine) {
    int bin = top;
    u64 rank = s.rank - before;
    while (rank > histogram[bin]) rank -= histogram[bin--];
    found[0] = (u64)bin;
    found[1] = rank;
  }
  __syncthreads();
  s.prefix = s.prefix << width | found[0];
  s.rank = found[1];
  return s;
}

/* The rank-th largest of n keys of `bits` bits by one block, and its rank among those that equal it. */
template <typename Key>
DEVICE selection block_select(Key key_at, i64 n, u64 rank, int bits, u32* histogram, u64* room) {
  selection s = {0, rank};
  while (bits) {
    const int width = bits < DIGIT ? bits : DIGIT;
    bits -= width;
    clear(histogram);
    __syncthreads();
    for (i64 start = warp_of() * PIECE; start < n; start += blockDim.x * ROWS)
      tally_rows(histogram, [&](int i) { return key_at(start + i); }, n - start, s.prefix, bits, width);
    __syncthreads();
    s = narrow(s, histogram, width, room);
  }
  return s;
}

/* PIECE keys of x, of which n exist; the others are zeros. */
DEVICE void load_keys(const real* x, i64 n, key* k) {
#pragma unroll
  for (int r = 0; r < ROWS; ++r) k[r] = r * WARP + lane_of() < n ? T(magnitude)(x[r * WARP + lane_of()]) : 0;
}

/* How many of n elements are larger than the k-th (upper half) and how many equal it (lower half), lane 0's. */
DEVICE u64 warp_count(const real* x, i64 n, key kth) {
  u64 above = 0, same = 0;
  for (; n > 0; n -= PIECE, x += PIECE) {
    key k[ROWS];
    load_keys(x, n, k);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      above += k[r] > kth;
      same += k[r] == kth && r * WARP + lane_of() < n;
    }
  }
  return warp_fold(above << 32 | same);
}

/* Those that belong to the k largest to their places, where `before` counts as warp_count does. index NULL: first + i. */
DEVICE void warp_keep(const real* x, const u32* index, u32 first, i64 n, selection kth, u64 before, u32* out) {
  u64 above = before >> 32, same = (u32)before;
  for (i64 start = 0; start < n; start += PIECE) {
    key k[ROWS];
    u32 place[ROWS];
    load_keys(x + start, n - start, k);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const i64 i = start + r * WARP + lane_of();
      place[r] = index && i < n ? index[i] : first + (u32)i;
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const i64 i = start + r * WARP + lane_of();
      const u32 larger = __ballot_sync(ALL_LANES, k[r] > (key)kth.prefix);
      const u32 tied = __ballot_sync(ALL_LANES, k[r] == (key)kth.prefix && i < n);
      const u64 ties = same + (u32)__popc(tied & lanes_before());
      const u64 at = above + (u32)__popc(larger & lanes_before()) + (ties < kth.rank ? ties : kth.rank);
      if (larger >> lane_of() & 1 || (tied >> lane_of() & 1 && ties < kth.rank)) out[at] = place[r];
      above += (u32)__popc(larger);
      same += (u32)__popc(tied);
    }
  }
}

extern "C" __global__ void __launch_bounds__(1024, 1) topk_small(const real* x, i64 n, u32* out, i64 k) {
  __shared__ u32 histogram[BINS];
  __shared__ u64 room[WARP + 3];
  const selection kth = block_select([&](i64 i) { return T(magnitude)(x[i]); }, n, (u64)k, KEY_BITS, histogram, room);
  const i64 each = (n + blockDim.x - 1) / blockDim.x * WARP, start = warp_of() * each;
  const i64 mine = n - start < each ? n - start : each;
  const u64 count = warp_count(x + start, mine, (key)kth.prefix);
  u64 total;
  const u64 before = block_scan(lane_of() == 0 ? count : (u64)0, room, &total);
  warp_keep(x + start, nullptr, (u32)start, mine, kth, __shfl_sync(ALL_LANES, before, 0), out);
}

/* The magnitude that a little more than k of n elements reach, or less: its upper 31 bits. */
extern "C" __global__ void __launch_bounds__(1024) topk_sample(const real* x, i64 n, i64 k, u64* control) {
  __shared__ u32 sample[TOPK_SAMPLE], histogram[BINS];
  __shared__ u64 room[WARP + 3];
  const i64 stride = n / TOPK_SAMPLE, rank = sample_rank(TOPK_SAMPLE, k, n);
#pragma unroll
  for (int j = 0; j < TOPK_SAMPLE / 1024; ++j) {
    const u32 i = j * 1024 + threadIdx.x;
    sample[i] = (u32)(T(magnitude)(x[sample_place(i, stride)]) >> (KEY_BITS - 31));
  }
  __syncthreads();
  const selection s = block_select([&](i64 i) { return sample[i]; }, TOPK_SAMPLE,
                                   (u64)(rank < TOPK_SAMPLE ? rank : TOPK_SAMPLE), 31, histogram, room);
  if (threadIdx.x == 0) control[CONTROL_THRESHOLD] = s.prefix << (KEY_BITS - 31);
}

/* A block takes a tile. table[tile]: where its candidates start, times 2^16, and how many there are. */
extern "C" __global__ void __launch_bounds__(512, COLLECT_BLOCKS)
    topk_collect(const real* x, i64 n, u64* control, real* value, u32* index, i64 most, u64* table) {
  __shared__ u32 room[WARP + 1];
  __shared__ u64 place;
  const i64 start = (i64)blockIdx.x * TOPK_TILE + warp_of() * (TILE_ROWS * WARP) + lane_of();
  const int left = n - start < TOPK_TILE ? (int)(n - start) : TOPK_TILE; /* negative where nothing is */
  const key threshold = (key)control[CONTROL_THRESHOLD];
  const real* from = x + start;
  real v[TILE_ROWS];
  u32 count = 0, total;
#pragma unroll
  for (int r = 0; r < TILE_ROWS; ++r) v[r] = r * WARP < left ? from[r * WARP] : 0;
#pragma unroll
  for (int r = 0; r < TILE_ROWS; ++r)
    count += (u32)__popc(__ballot_sync(ALL_LANES, T(magnitude)(v[r]) >= threshold && r * WARP < left));
  const u32 before = __shfl_sync(ALL_LANES, block_scan(lane_of() == 0 ? count : 0u, room, &total), 0);
  if (threadIdx.x == 0) {
    place = atomicAdd(control + CONTROL_COUNT, (u64)total);
    table[blockIdx.x] = place << 16 | total;
  }
  __syncthreads();
  if (place + total > (u64)most || count == 0) return;
  value += place + before;
  index += place + before;
#pragma unroll
  for (int r = 0; r < TILE_ROWS; ++r) {
    const u32 kept = __ballot_sync(ALL_LANES, T(magnitude)(v[r]) >= threshold && r * WARP < left);
    if (kept >> lane_of() & 1) {
      value[__popc(kept & lanes_before())] = v[r];
      index[__popc(kept & lanes_before())] = (u32)(start + r * WARP);
    }
    value += __popc(kept);
    index += __popc(kept);
  }
}

/* Whether all of the k largest are among the candidates, and all candidates were stored. */
DEVICE int candidates_serve(const u64* control, i64 k, i64 most) {
  return control[CONTROL_COUNT] >= (u64)k && control[CONTROL_COUNT] <= (u64)most;
}

/* What is not yet known of a key before a pass. */
DEVICE int bits_left(int pass) { return KEY_BITS - DIGIT * pass > 0 ? KEY_BITS - DIGIT * pass : 0; }

/* The selection before a pass: every block reads the histogram of the pass before it, and the first block leaves what it
   finds to the kernels after this one. */
DEVICE selection selection_before(int pass, i64 k, u64* control, u64* room) {
  selection s = {0, (u64)k};
  u64* state = control + CONTROL_STATE + 2 * pass;
  if (pass) {
    s.prefix = state[-2];
    s.rank = state[-1];
    s = narrow(s, control + CONTROL_HISTOGRAM + (pass - 1) * BINS, bits_left(pass - 1) - bits_left(pass), room);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    state[0] = s.prefix;
    state[1] = s.rank;
  }
  return s;
}

extern "C" __global__ void __launch_bounds__(256)
    topk_histogram(const real* x, i64 n, i64 k, u64* control, const real* value, i64 most, i32 pass) {
  __shared__ u32 histogram[BINS];
  __shared__ u64 room[WARP + 3];
  if (candidates_serve(control, k, most)) {
    x = value;
    n = (i64)control[CONTROL_COUNT];
  }
  if (blockIdx.x && blockIdx.x * (i64)blockDim.x * ROWS >= n) return;
  const selection s = selection_before(pass, k, control, room);
  const int shift = bits_left(pass + 1), width = bits_left(pass) - shift;
  clear(histogram);
  __syncthreads();
  for (i64 start = grid_warp() * PIECE; start < n; start += grid_warps() * PIECE)
    tally_rows(histogram, [&](int i) { return T(magnitude)(x[start + i]); }, n - start, s.prefix, shift, width);
  __syncthreads();
  u64* sums = control + CONTROL_HISTOGRAM + pass * BINS;
  for (int i = (int)threadIdx.x; i < BINS; i += (int)blockDim.x)
    if (histogram[i]) atomicAdd(sums + i, (u64)histogram[i]);
}

/* Where the elements of a tile are that may belong to the k largest. */
struct tile_part {
  const real* x;
  const u32* index;
  i64 n;
};
DEVICE tile_part part_of(i64 tile, const real* x, i64 n, int candidates, const real* value, const u32* index,
                         const u64* table) {
  const i64 start = candidates ? (i64)(table[tile] >> 16) : tile * TOPK_TILE;
  if (candidates) return {value + start, index + start, (i64)(table[tile] & 0xffff)};
  return {x + start, nullptr, n - start < TOPK_TILE ? n - start : TOPK_TILE};
}

extern "C" __global__ void __launch_bounds__(256)
    topk_count(const real* x, i64 n, i64 k, u64* control, const real* value, i64 most, const u64* table, u64* counts,
               i64 tiles) {
  __shared__ u64 room[WARP + 3];
  const selection kth = selection_before(TOPK_PASSES, k, control, room);
  const int candidates = candidates_serve(control, k, most);
  for (i64 tile = grid_warp(); tile < tiles; tile += grid_warps()) {
    const tile_part part = part_of(tile, x, n, candidates, value, nullptr, table);
    const u64 count = warp_count(part.x, part.n, (key)kth.prefix);
    if (lane_of() == 0) counts[tile] = count;
  }
}

extern "C" __global__ void __launch_bounds__(256)
    topk_keep(const real* x, i64 n, i64 k, const u64* control, const real* value, const u32* index, i64 most,
              const u64* table, const u64* before, i64 tiles, u32* out) {
  const u64* state = control + CONTROL_STATE + 2 * TOPK_PASSES;
  const selection kth = {state[0], state[1]};
  const int candidates = candidates_serve(control, k, most);
  for (i64 tile = grid_warp(); tile < tiles; tile += grid_warps()) {
    const tile_part part = part_of(tile, x, n, candidates, value, index, table);
    warp_keep(part.x, part.index, (u32)(tile * TOPK_TILE), part.n, kth, before[tile], out);
  }
}

/* Sparse vectors. Kernels have the type of out in their names; `real` is that of the other vector. */
extern "C" __global__ void __launch_bounds__(256) largest_index(const u32* index, i64 n, u32* largest) {
  u32 most = 0;
  for (i64 i = grid_thread(); i < n; i += grid_threads()) most = most > index[i] ? most : index[i];
  for (int half = WARP / 2; half; half /= 2) {
    const u32 other = __shfl_xor_sync(ALL_LANES, most, half);
    most = most > other ? most : other;
  }
  if (lane_of() == 0) atomicMax(largest, most);
}

enum { ADD_THREADS = 256, ADD_ROWS = 4 };

template <typename result>
DEVICE void gather(const real* x, const u32* index, i64 n, result* out) {
  const i64 i = grid_thread();
  if (i < n) out[i] = (result)x[index[i]];
}
extern "C" __global__ void __launch_bounds__(256) gather_f32(const real* x, const u32* index, i64 n, f32* out) {
  gather(x, index, n, out);
}
extern "C" __global__ void __launch_bounds__(256) gather_f64(const real* x, const u32* index, i64 n, f64* out) {
  gather(x, index, n, out);
}

template <typename result>
DEVICE void scatter_add(const real* value, const u32* index, i64 n, result* out, result weight) {
  const i64 i = grid_thread();
  if (i < n) out[index[i]] += weight * (result)value[i];
}
extern "C" __global__ void __launch_bounds__(256)
    scatter_add_f32(const real* value, const u32* index, i64 n, f32* out, f64 weight) {
  scatter_add(value, index, n, out, (f32)weight);
}
extern "C" __global__ void __launch_bounds__(256)
    scatter_add_f64(const real* value, const u32* index, i64 n, f64* out, f64 weight) {
  scatter_add(value, index, n, out, weight);
}

/* All reads before the first write: the compiler cannot know that the vectors are apart. */
template <typename result>
DEVICE void add_or_store(const real* value, i64 n, result* out, result weight, int add) {
  const i64 start = (i64)blockIdx.x * (ADD_ROWS * ADD_THREADS) + threadIdx.x;
  result v[ADD_ROWS], o[ADD_ROWS];
#pragma unroll
  for (int r = 0; r < ADD_ROWS; ++r)
    if (start + r * ADD_THREADS < n) {
      v[r] = (result)value[start + r * ADD_THREADS];
      if (add) o[r] = out[start + r * ADD_THREADS];
    }
#pragma unroll
  for (int r = 0; r < ADD_ROWS; ++r)
    if (start + r * ADD_THREADS < n) out[start + r * ADD_THREADS] = add ? o[r] + weight * v[r] : v[r];
}
extern "C" __global__ void __launch_bounds__(256)
    add_or_store_f32(const real* value, i64 n, f32* out, f64 weight, i32 add) {
  add_or_store(value, n, out, (f32)weight, add);
}
extern "C" __global__ void __launch_bounds__(256)
    add_or_store_f64(const real* value, i64 n, f64* out, f64 weight, i32 add) {
  add_or_store(value, n, out, weight, add);
}

/* Keyed subsets. A lane goes to its next index when it has landed, whatever the others do. */
extern "C" __global__ void __launch_bounds__(256) random_subset(u64 key, u64 d, u64 start, i64 n, u32* out) {
  __shared__ bijection shared;
  if (threadIdx.x == 0) shared = bijection_of(key, d);
  __syncthreads();
  const bijection p = shared;
  const i64 step = grid_threads();
  i64 i = grid_thread();
  u32 v = (u32)(start + (u64)i);
  while (i < n) {
    v = feistel(v, p);
    if (v > p.last) continue;
    out[i] = rotated(v, p);
    i += step;
    v = (u32)(start + (u64)i);
  }
}

/* Bernoulli: a warp has 4096 coordinates, its lanes the calls of 128 at a time. A bit of the mask tells what is kept. */
enum { MASK_TILE = 4096, MASK_WORDS = MASK_TILE / 32 };

extern "C" __global__ void __launch_bounds__(256)
    bernoulli_mask(u64 key, i64 d, u32 last, u32* mask, u64* counts, i64 tiles) {
  const i64 tile = grid_warp();
  if (tile >= tiles) return;
  u64 count = 0;
  for (int b = 0; b < MASK_TILE / MASK_BLOCK; ++b) {
    const i64 e = tile * MASK_TILE + b * MASK_BLOCK + lane_of();
    const philox_out r = random_at(mask_call((u64)e), STREAM_MASK, key);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u32 word = __ballot_sync(ALL_LANES, r.w[j] <= last && e + j * MASK_LANES < d);
      if (mask && lane_of() == j) mask[tile * MASK_WORDS + 4 * b + j] = word;
      count += (u32)__popc(word);
    }
  }
  if (lane_of() == 0) counts[tile] = count;
}

extern "C" __global__ void __launch_bounds__(256)
    bernoulli_indices(const u32* mask, const u64* before, i64 tiles, u32* out, i64 room) {
  const i64 tile = grid_warp();
  if (tile >= tiles) return;
  i64 at = (i64)before[tile];
  for (int w = 0; w < MASK_WORDS; w += WARP) {
    const u32 mine = mask[tile * MASK_WORDS + w + lane_of()];
    for (int r = 0; r < WARP; ++r) {
      const u32 word = __shfl_sync(ALL_LANES, mine, r);
      const i64 to = at + __popc(word & lanes_before());
      if (word >> lane_of() & 1 && to < room) out[to] = (u32)(tile * MASK_TILE + (w + r) * 32 + lane_of());
      at += __popc(word);
    }
  }
}
