/* A frame is a block of 256 threads: thread t holds rows t, t + 256, ... of everything that has rows, so that it is
   lane t of the sums of a step (kashin.h, B), and all steps of a frame happen on chip. A frame of fewer than 4096 rows,
   of which a message has a few, is one of 4096 whose other rows are zero and whose last stages are left out. */
#include "hadamard.cuh"
#include "norm.cuh"
#include "pack.cuh"
#include "kashin.h"
#include "quantize.h"

enum {
  THREADS = KASHIN_LANES,
  EACH = KASHIN_LARGEST / THREADS, /* rows of a thread */
  COLUMN = 16,                     /* rows of four stages of the transform */
  NOTHING = 0xffff,                /* on a row */
  NO_ATTEMPT = 1,
  NOT_FINITE = 2,
  RESIDENT = sizeof(real) == 4 ? 3 : 1, /* encoders of a multiprocessor */
  RESIDENT_DECODERS = sizeof(real) == 4 ? 4 : 2
};

struct Frame {
  i64 row, coordinate; /* where it starts among those of all frames */
  const u16* holds;    /* the coordinate on a row, or NOTHING */
  int rows, coordinates;
};

struct __align__(2 * sizeof(real)) Sums {
  real all, clipped;
};
DEVICE Sums operator+(Sums a, Sums b) { return {a.all + b.all, a.clipped + b.clipped}; }

/* What the threads of a frame have in common: registers are for what each has of its own. */
struct Shared {
  union {
    Sums sums[KASHIN_LANES];
    u16 codes[KASHIN_LARGEST / PACK_BLOCK][PACK_ROOM];
  };
  Frame frame;
  f64 promise;
  u64 most[THREADS / WARP];
  u32 signs[KASHIN_LARGEST / 32 + 2];
  int exponent;
};

/* Frame `index` of runs of equal frames, a run (frames, rows, coordinates, entries of `holds` before it; rows,
   coordinates). */
DEVICE void find_frame(Shared* s, i64 index, const i64* plan, int runs, const u16* holds) {
  if (threadIdx.x == 0) {
    for (; runs > 1 && plan[6] <= index; --runs) plan += 6;
    const i64 inside = index - plan[0];
    s->frame = {plan[1] + inside * plan[4], plan[2] + inside * plan[5], holds + plan[3], (int)plan[4], (int)plan[5]};
  }
  __syncthreads();
}

DEVICE int row_of(int k) { return (int)threadIdx.x + THREADS * k; }

/* The signs of 4096 rows from e on, by the last warp. */
DEVICE void load_signs(u32* signs, u64 e, u64 key) {
  const int call = (int)threadIdx.x - (THREADS - WARP);
  if (call < 0) return;
  const philox_out r = random_at((e >> 7) + (u64)call, STREAM_SIGNS, key);
#pragma unroll
  for (int j = 0; j < 4; ++j) signs[4 * call + j] = r.w[j];
}

/* x, negated where the sign of coordinate e + i says so: a frame of 64 rows may start in the middle of a call. */
DEVICE real signed_by(real x, const u32* signs, int i, u64 e) {
  return T(flip_sign)(x, signs[i / 32 + (int)(e >> 5 & 2)], i & 31);
}

/* The largest of all threads' magnitudes. */
DEVICE f64 block_max(u64 most, u64* room) {
  for (int half = WARP / 2; half; half /= 2) {
    const u64 other = __shfl_xor_sync(ALL_LANES, most, half);
    most = most > other ? most : other;
  }
  if (lane_of() == 0) room[warp_of()] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < THREADS / WARP; ++w) most = most > room[w] ? most : room[w];
  return of_magnitude(most, real());
}

/* Row i is kept at place(i): 16 bytes are left out after every 128, and 64 more of float32 after every 1024, so that
   neither columns of 16 rows as 16-byte accesses nor rows 16 or 256 apart meet in a bank. It is linear in multiples of
   256 and, within one, of 16, which makes every offset but the thread's own a constant. */
DEVICE constexpr int place(int i) {
  return i + i / (128 / (int)sizeof(real)) * (16 / (int)sizeof(real)) + (sizeof(real) == 4 ? i / 256 * 16 : 0);
}

struct __align__(16) Chunk {
  real at[16 / sizeof(real)];
};

/* The transform, not scaled, of n rows of shared memory, into registers. Stages 1 to 8 are within columns of
   neighbours, 16 to 128 within what a half of a warp has just written, the rest within a thread's rows; where n < 4096
   they follow one by one. */
DEVICE void frame_fwht(real (&v)[EACH], real* room, int n) {
  constexpr int chunk = 16 / sizeof(real);
  const int t = (int)threadIdx.x;
  __syncthreads();
  if (COLUMN * t < n) {
    Chunk* column = (Chunk*)(room + place(COLUMN * t));
#pragma unroll
    for (int k = 0; k < COLUMN; ++k) v[k] = column[k / chunk].at[k % chunk];
    butterflies(v, 0, 4, 0);
#pragma unroll
    for (int k = 0; k < COLUMN / chunk; ++k) {
      Chunk c;
#pragma unroll
      for (int j = 0; j < chunk; ++j) c.at[j] = v[chunk * k + j];
      column[k] = c;
    }
  }
  if (n == KASHIN_LARGEST) {
    real* at = room + place(t / COLUMN * 256) + t % COLUMN;
    __syncwarp();
#pragma unroll
    for (int k = 0; k < COLUMN; ++k) v[k] = at[place(COLUMN * k)];
    butterflies(v, 0, 4, 0);
#pragma unroll
    for (int k = 0; k < COLUMN; ++k) at[place(COLUMN * k)] = v[k];
  } else {
    for (int stride = COLUMN; stride < n; stride *= 2) {
      __syncthreads();
#pragma unroll 1
      for (int i = t; i < n / 2; i += THREADS) {
        const int at = 2 * i - (i & (stride - 1));
        const real low = room[place(at)], high = room[place(at + stride)];
        room[place(at)] = low + high;
        room[place(at + stride)] = low - high;
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < EACH; ++k) v[k] = room[place(t) + place(THREADS) * k];
  if (n == KASHIN_LARGEST) butterflies(v, 0, 4, 0);
}

/* The same from registers. A thread has read its rows before it writes them again. */
DEVICE void frame_fwht_of(real (&v)[EACH], real* room, int n) {
#pragma unroll
  for (int k = 0; k < EACH; ++k) room[place((int)threadIdx.x) + place(THREADS) * k] = v[k];
  frame_fwht(v, room, n);
}

/* The rotation of a later attempt, or its inverse, of the coordinates in shared memory. Barriers before and after.
   Rare, and not in line, where it would take registers of every attempt. */
static __device__ __attribute__((noinline)) void rotate_coordinates(Shared* s, real* x, int attempt, u64 key,
                                                                    bool inverse) {
  const int block = (int)rotation_block(s->frame.coordinates);
  const real scale = (real)hadamard_scale(block);
  for (int turn = 0; turn < 2; ++turn) {
    const int end = inverse ? 1 - turn : turn;
    real* part = end ? x + s->frame.coordinates - block : x;
    const u64 e = kashin_signs(attempt, 1 + end, (u64)s->frame.row);
    __syncthreads();
    load_signs(s->signs, e, key);
    __syncthreads();
    if (inverse) block_fwht(part, block, scale);
    for (int i = (int)threadIdx.x; i < block; i += THREADS) part[i] = signed_by(part[i], s->signs, i, e);
    if (!inverse) block_fwht(part, block, scale);
  }
  __syncthreads();
}

/* a = rows from coordinates; which of the thread's rows hold one, a bit each. The first attempt finds the norm. */
DEVICE u32 embed(Shared* s, const real* x, int attempt, u64 key, f64 limit, real* room, real (&a)[EACH]) {
  const u64 e = kashin_signs(attempt, 0, (u64)s->frame.row);
#pragma unroll 4
  for (int i = (int)threadIdx.x; i < s->frame.coordinates; i += THREADS)
    room[i] = T(kashin_shift)(x[s->frame.coordinate + i], -s->exponent);
  if (attempt) rotate_coordinates(s, room, attempt, key, false);
  load_signs(s->signs, e, key);
  __syncthreads();
  if (attempt == 0 && warp_of() == 0) {
    const f64 squares = warp_sum<TERM_SQUARE>(room, s->frame.coordinates, 1);
    if (threadIdx.x == 0) s->promise = limit * (sqrt(squares) / sqrt((f64)s->frame.rows));
  }
  u32 data = 0;
#pragma unroll
  for (int k = 0; k < EACH; ++k) {
    const int j = s->frame.holds[row_of(k)];
    data |= (u32)(j != NOTHING) << k;
    a[k] = signed_by(j != NOTHING ? room[j] : 0, s->signs, row_of(k), e);
  }
  __syncthreads();
  return data;
}

/* t of the step that clips a at m, from |g|^2 and |g on the clipped places|^2. */
DEVICE real block_gain(Shared* s, const real (&a)[EACH], const real (&g)[EACH], real m) {
  Sums sums = {0, 0};
#pragma unroll
  for (int k = 0; k < EACH; ++k) {
    const real square = g[k] * g[k];
    sums.all += square;
    sums.clipped += a[k] > m || a[k] < -m ? square : 0;
  }
  s->sums[threadIdx.x] = sums;
  __syncthreads();
  const Sums* lane = s->sums + lane_of();
  sums = (lane[0] + lane[128] + (lane[64] + lane[192])) + (lane[32] + lane[160] + (lane[96] + lane[224]));
#pragma unroll
  for (int half = WARP / 2; half; half /= 2) { /* every lane comes to the sum of lane 0: addition commutes */
    sums.all += __shfl_xor_sync(ALL_LANES, sums.all, half);
    sums.clipped += __shfl_xor_sync(ALL_LANES, sums.clipped, half);
  }
  return T(kashin_gain)(sums.all, sums.clipped);
}

/* a = a representation of the frame's part of x, in units of 2^floor(log2 max|x|), or zeros, and its level; what
   kashin_represent does on the CPU. 0 and the word, or what is wrong, of all threads the same. */
DEVICE int solve(Shared* s, const real* x, f64 limit, int steps, u64 key, real* room, real (&a)[EACH], f64* level,
                 u32* word) {
  u64 most = 0;
#pragma unroll
  for (int k = 0; k < EACH; ++k) {
    const u64 size = row_of(k) < s->frame.coordinates ? magnitude_of(x[s->frame.coordinate + row_of(k)]) : 0;
    most = most > size ? most : size;
  }
  const f64 largest = block_max(most, s->most);
  *word = 0;
  *level = 1;
  if (!(largest < f64_bits(INFINITE_F64))) return NOT_FINITE;
  if (largest == 0) {
#pragma unroll
    for (int k = 0; k < EACH; ++k) a[k] = 0;
    return 0;
  }
  if (threadIdx.x == 0) s->exponent = (int)floor_log2(largest);
  __syncthreads();
  for (int attempt = 0; attempt < KASHIN_ATTEMPTS; ++attempt) {
    const u32 data = embed(s, x, attempt, key, limit, room, a);
    real g[EACH], v[EACH], clips = 0;
    frame_fwht_of(a, room, s->frame.rows);
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      a[k] *= (real)hadamard_scale(s->frame.rows);
      v[k] = 0;
    }
    for (int step = 0;; ++step) {
      if (step == steps || step == 2 * steps) {
        most = 0;
#pragma unroll
        for (int k = 0; k < EACH; ++k) most = most > magnitude_of(a[k]) ? most : magnitude_of(a[k]);
        *level = kashin_round_up(block_max(most, s->most));
        if (*level <= s->promise) {
          *word = kashin_word(*level, s->exponent, attempt);
          return 0;
        }
        if (step == 2 * steps) break;
      }
      if (step % WARP == 0) clips = (real)(s->promise * kashin_clip(step + lane_of(), steps)); /* of 32 steps */
      const real m = __shfl_sync(ALL_LANES, clips, step % WARP);
#pragma unroll
      for (int k = 0; k < EACH; ++k) g[k] = T(kashin_excess)(a[k], m);
      frame_fwht_of(g, room, s->frame.rows);
#pragma unroll
      for (int k = 0; k < EACH; ++k) g[k] = T(kashin_null)(g[k], data, k);
      frame_fwht_of(g, room, s->frame.rows);
#pragma unroll
      for (int k = 0; k < EACH; ++k) g[k] *= (real)(1 / (f64)s->frame.rows);
      const real gain = block_gain(s, a, g, m);
#pragma unroll
      for (int k = 0; k < EACH; ++k) {
        v[k] = T(kashin_velocity)(v[k], gain, g[k]);
        a[k] += v[k];
      }
    }
  }
  return NO_ATTEMPT;
}

/* n <= 1024 codes of y, whose first is element e (a multiple of 1024) of the message, by a warp. */
DEVICE void pack_rounded(const real* y, int n, u64 e, i32 levels, u64 key, u8* out, u16* room) {
  const int width = code_width((u32)levels), lane = lane_of();
  u32 again = 0; /* rows that ask for the second look of the definition */
  const auto rounded = [&](int row, u32* code) {
    const philox_out bits = random_at(dither_call(e + (u64)(PACK_LANES * row + lane)), STREAM_DITHER, key);
#pragma unroll
    for (int r = 0; r < PACK_PIECE; ++r) {
      const int i = PACK_LANES * (row + r) + lane;
      const u32 sum = i < n ? T(grid_sum)(y[i], 65536, levels, bits.w[r / 2] >> 16 * (r & 1) & 0xffff) : 0;
      again |= (u32)((sum & ALL_ONES_16) == ALL_ONES_16) << (row + r);
      code[r] = sum >> 16;
    }
  };
  const bool words = n == PACK_BLOCK && width;
  if (words) warp_pack_words(width, out, room, rounded);
#pragma unroll 1
  for (int row = 0; !words && PACK_LANES * row < n; row += PACK_PIECE) {
    u32 code[PACK_PIECE];
    rounded(row, code);
#pragma unroll
    for (int r = 0; r < PACK_PIECE; ++r)
      if (PACK_LANES * (row + r) + lane < n) room[PACK_LANES * (row + r) + lane] = (u16)code[r];
  }
#pragma unroll 1
  for (; again; again &= again - 1) {
    const int row = __ffs((int)again) - 1, i = PACK_LANES * row + lane;
    const u32 code = T(grid_code)(y[i], 65536, levels, e + (u64)i, independent_bits(key));
    if (words) lane_repack(width, out, row, code);
    else room[i] = (u16)code;
  }
  if (!words) warp_pack_room(n, width, out, room);
}

/* A level for every frame, and the codes of frames that are whole blocks of them; of other frames (from row `small` on)
   a, in steps of the grid, to `rest`. levels = 0: no codes, a representation of x to `rest`. The first frame that fails
   leaves ~(2 index + 1) in `failed` where x is not finite, ~(2 index) where no attempt succeeded. */
extern "C" __global__ void __launch_bounds__(256, RESIDENT)
    kashin_encode(const real* x, const i64* plan, i32 runs, const u16* holds, f64 limit, i32 steps, u64 frame_key,
                  i32 levels, u64 key, u8* codes, u8* words, real* rest, i64 small, u64* failed) {
  DYNAMIC_SHARED(real, room);
  __shared__ Shared s;
  const i64 index = gridDim.x - 1 - blockIdx.x; /* small frames are last in the message, and would end alone */
  real a[EACH];
  f64 level;
  u32 word;
  find_frame(&s, index, plan, runs, holds);
  const int wrong = solve(&s, x, limit, steps, frame_key, room, a, &level, &word);
  if (threadIdx.x == 0) {
    if (wrong) atomicMax(failed, ~(2 * (u64)index + (wrong == NOT_FINITE)));
    else store_u32(words + 4 * index, word);
  }
  if (wrong) return;
  const i64 row = s.frame.row;
  const real inv = (real)((levels - 1) / (2 * level));
  if (row >= small) {
    const i64 shift = word ? kashin_word_exponent(word) - floor_log2(level) : 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k)
      if (row_of(k) < s.frame.rows) rest[row - small + row_of(k)] = levels ? a[k] * inv : T(kashin_shift)(a[k], shift);
    return;
  }
#pragma unroll
  for (int k = 0; k < EACH; ++k) room[row_of(k)] = a[k] * inv;
  __syncthreads();
  const int block = warp_of(), start = PACK_BLOCK * block;
  if (start < s.frame.rows)
    pack_rounded(room + start, PACK_BLOCK, (u64)row + (u64)start, levels, key,
                 codes + (row / PACK_BLOCK + block) * packed_block_bytes(code_width((u32)levels)), s.codes[block]);
}

/* The codes of small frames: n numbers from element e (a multiple of 1024) on. */
extern "C" __global__ void __launch_bounds__(256)
    kashin_pack(const real* y, i64 n, u64 e, i32 levels, u64 key, u8* codes) {
  __shared__ u16 room[THREADS / WARP][PACK_ROOM];
  const i64 block = grid_warp(), start = block * PACK_BLOCK;
  if (start >= n) return;
  pack_rounded(y + start, (int)(n - start < PACK_BLOCK ? n - start : PACK_BLOCK), e + (u64)start, levels, key,
               codes + ((i64)(e / PACK_BLOCK) + block) * packed_block_bytes(code_width((u32)levels)), room[warp_of()]);
}

/* The frame's part of x = 2^exponent U a, where the rows of a are in shared memory. */
DEVICE void synthesize(Shared* s, real* x, int attempt, i64 exponent, u64 key, real* room) {
  const u64 e = kashin_signs(attempt, 0, (u64)s->frame.row);
  const real scale = (real)hadamard_scale(s->frame.rows);
  const auto restored = [&](real y) {
    y = T(kashin_shift)(y, exponent);
    return exponent > 100 ? T(kashin_saturate)(y) : y;
  };
  real v[EACH];
  x += s->frame.coordinate;
  load_signs(s->signs, e, key);
  frame_fwht(v, room, s->frame.rows);
  if (attempt) __syncthreads();
#pragma unroll
  for (int k = 0; k < EACH; ++k) {
    const int j = s->frame.holds[row_of(k)];
    if (j == NOTHING) continue;
    const real y = signed_by(v[k] * scale, s->signs, row_of(k), e);
    if (attempt) room[j] = y;
    else x[j] = restored(y);
  }
  if (attempt == 0) return;
  rotate_coordinates(s, room, attempt, key, true);
  for (int i = (int)threadIdx.x; i < s->frame.coordinates; i += THREADS) x[i] = restored(room[i]);
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT_DECODERS)
    kashin_synthesis(const real* a, const i64* plan, i32 runs, const u16* holds, const u32* words, u64 key, real* x) {
  DYNAMIC_SHARED(real, room);
  __shared__ Shared s;
  const i64 index = blockIdx.x;
  find_frame(&s, index, plan, runs, holds);
  for (int i = (int)threadIdx.x; i < s.frame.rows; i += THREADS) room[place(i)] = a[s.frame.row + i];
  synthesize(&s, x, (int)kashin_word_attempt(words[index]), 0, key, room);
}

/* The inverse of kashin_encode for a message of `rows` rows. The first frame whose level no encoder writes leaves
   ~index in `failed`. */
extern "C" __global__ void __launch_bounds__(256, RESIDENT_DECODERS)
    kashin_decode(const u8* codes, const u8* words, const i64* plan, i32 runs, const u16* holds, i32 levels, u64 key,
                  i64 rows, real* x, u64* failed) {
  DYNAMIC_SHARED(real, room);
  __shared__ Shared s;
  const i64 index = blockIdx.x;
  const u32 word = load_u32(words + 4 * index);
  if (!kashin_word_valid(word)) {
    if (threadIdx.x == 0) atomicMax(failed, ~(u64)index);
    return;
  }
  find_frame(&s, index, plan, runs, holds);
  if (word == 0) {
    for (int i = (int)threadIdx.x; i < s.frame.coordinates; i += THREADS) x[s.frame.coordinate + i] = 0;
    return;
  }
  const int width = code_width((u32)levels), count = s.frame.rows;
  const real unit = (real)(kashin_word_level(word) / (levels - 1));
  const i64 row = s.frame.row, first = row / PACK_BLOCK;
  for (int b = width ? warp_of() : 0; (first + b) * PACK_BLOCK < row + count; b += width ? THREADS / WARP : 1) {
    const i64 start = (first + b) * PACK_BLOCK;
    const int n = (int)(rows - start < PACK_BLOCK ? rows - start : PACK_BLOCK), before = (int)(start - row);
    const u8* in = codes + (first + b) * packed_block_bytes(width);
    /* a small frame shares its block */
    const auto store = [&](int i, u32 code) {
      if (before + i >= 0 && before + i < count) room[place(before + i)] = unit * T(grid_value)(code, levels);
    };
    if (width) {
      warp_unpack(in, n, width, [&](int, int i, u32 code) { store(i, code); });
    } else { /* a thread has a byte, which is five codes */
      const int bytes = (n + TRIT_DIGITS - 1) / TRIT_DIGITS;
      for (int i = (int)threadIdx.x; i < bytes; i += THREADS)
#pragma unroll
        for (int j = 0; j < TRIT_DIGITS; ++j)
          if (i + j * bytes < n) store(i + j * bytes, trit_digit(in[i], j));
    }
  }
  synthesize(&s, x, (int)kashin_word_attempt(word), kashin_word_exponent(word), key, room);
}
