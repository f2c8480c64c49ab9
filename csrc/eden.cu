/* A span (eden.h, D) is what a CUDA block encodes or decodes.

   A. Almost all spans are 4096 numbers near 1. Four warps keep such a span in registers: v[j] of lane l and warp w is
      element 1024 w + 32 j + l. That is the order of packed codes, of sums, which go from warp to warp, and of memory.
      For the stages between lanes, and those between warps, numbers change places in shared memory. A span that this
      does not serve (it is recentred, or holds NaN) goes on a list.
   B. Other kernels work off the list, and spans of other lengths, in shared memory.
   C. An alphabet's tables are built once a rate (eden_open). Where the rate is a whole number of bits, one alphabet and
      one digit a field serve a block, and codes are packed in registers; else they go through shared memory. */
#include "eden.h"
#include "hadamard.cuh"
#include "norm.cuh"
#include "philox.h"
#include "quantize.h"

enum {
  SPAN = ROTATION_BLOCK,
  WARPS = 4,
  ROWS = 32,                         /* of a warp */
  QUAD = 16 / sizeof(real),          /* numbers of an access of 16 bytes */
  PITCH = WARP + QUAD,               /* of rows in shared memory: lanes that read their rows meet in no bank */
  SPANS = sizeof(real) == 4 ? 8 : 2, /* that one multiprocessor has registers for */
  MIXED_SPANS = 24 / sizeof(real),
  SPAN_QUADS = PITCH * ROWS * WARPS / QUAD,
  SIGN_WORDS = SPAN / 32
};

struct __align__(16) quad {
  real v[QUAD];
};

typedef struct {
  eden_alphabet a;
  i32 cells, n, bytes; /* coordinates of a block of 4096, and their bytes */
} eden_part;
typedef struct {
  eden_part part[2];
  u32 cell[2][EDEN_CELLS];
  i32 level[2][EDEN_LEVELS];
} eden_plan;
static_assert(sizeof(eden_plan) == 4 * 1808, "compress/_gpu/eden.py makes room for it");

extern "C" __global__ void eden_open(i64 rate, u32* tables) {
  eden_plan* plan = (eden_plan*)tables;
  const eden_split split = eden_split_of(SPAN, rate);
  for (int which = 0; which < 2; ++which) {
    const eden_alphabet a = eden_alphabet_of(split.poorer + which);
    const i32 n = (i32)split.n[which], cells = 2 * EDEN_RANGE * a.density, i = (i32)grid_thread();
    i32 below = 0;
    if (i == 0) plan->part[which] = {a, cells, n, (i32)eden_part_bytes(n, a)};
    if (i < cells) plan->cell[which][i] = eden_cell(a, i, &below);
    if (i < a.levels) plan->level[which][i] = eden_level(a, i);
  }
}

DEVICE f32 position_of(f32 z, f32 per_unit, i32 cells) { return eden_position_f32(z, per_unit, cells); }
DEVICE f64 position_of(f64 z, f64 per_unit, i32 cells) { return eden_position_f64(z, per_unit, cells); }
DEVICE u32 code_at(f32 position, u32 word) { return eden_code_f32(position, word); }
DEVICE u32 code_at(f64 position, u32 word) { return eden_code_f64(position, word); }

template <typename number>
DEVICE void copy_table(const number* from, number* to, int n) {
#pragma unroll 1
  for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) to[i] = from[i];
}

/* The code of z, which becomes z times its level, whose square is added to *squares. */
template <typename number>
DEVICE u32 rounded(number& z, number per_unit, i32 cells, const u32* cell, const i32* level, u64* squares) {
  const number position = position_of(z, per_unit, cells);
  const u32 code = code_at(position, cell[(i32)position]);
  const i32 q = level[code];
  *squares += (u64)((i64)q * q);
  z *= (number)q;
  return code;
}

DEVICE u32 load_word(const u8* p, int whole) { return whole ? *(const u32*)p : load_u32(p); }
DEVICE void store_word(u8* p, int whole, u32 word) {
  if (whole) *(u32*)p = word;
  else store_u32(p, word);
}

DEVICE void emit(real z, real weight, int add, real* out) { *out = add ? *out + weight * z : z; }

DEVICE f64 load_scale(const u8* scales, i64 index, int wire) {
  return wire == 4 ? (f64)f32_bits(load_u32(scales + 4 * index)) : f64_bits(load_u64(scales + 8 * index));
}

/* The scale of block number `index`, or word that it cannot be carried, of which the first block's counts. */
DEVICE void put_scale(f64 scale, i64 index, int wire, u8* scales, u64* found) {
  const int status = scale_status(scale, (f32)scale, wire, sizeof(real));
  if (status) atomicMax(found, (((u64)1 << 40) - (u64)index) << 8 | (u64)status);
  else if (wire == 4) store_u32(scales + 4 * index, bits_f32((f32)scale));
  else store_u64(scales + 8 * index, bits_f64(scale));
}

/* found[1] spans lie on the list. */
DEVICE void postpone(i64 span, u64* found, u32* list) { list[atomicAdd(found + 1, (u64)1)] = (u32)span; }

/* Signs of n coordinates from e on: every thread takes calls. */
DEVICE void draw_signs(u32* signs, int n, u64 e, u64 key, int thread, int threads) {
  for (int c = thread; 128 * c < n; c += threads) {
    const philox_out r = random_at((e >> 7) + (u64)c, STREAM_SIGNS, key);
#pragma unroll
    for (int i = 0; i < 4; ++i) signs[4 * c + i] = r.w[i];
  }
}

/* Fields */

/* Field i of q (pack.h, E). */
DEVICE u32 field_of(const u8* code, int n, eden_alphabet a, int q, int i) {
  u32 field = 0;
  for (int at = i + (a.digits - 1) * q; at >= 0; at -= q) field = field * (u32)a.levels + (at < n ? code[at] : 0);
  return field;
}

/* n codes to eden_part_bytes(n, a) bytes by the whole block, a thread a word. */
DEVICE void pack_fields(const u8* code, int n, eden_alphabet a, u8* out) {
  const int q = (n + a.digits - 1) / a.digits, whole = q & ~(PACK_BLOCK - 1), words = whole / 32 * a.width;
  const int tail = ((q - whole) * a.width + 7) / 8, fit = aligned(out, 4);
  for (int t = (int)threadIdx.x; 4 * (t - words) < tail; t += (int)blockDim.x) {
    /* the word's fields: first + step (row, row + 1, ...), those of a lane or of the tail */
    const int inside = t % (32 * a.width), lane = t < words ? inside % 32 : 0, step = t < words ? 32 : 1;
    const int first = t < words ? PACK_BLOCK * (t / (32 * a.width)) + lane : whole;
    const int rows = t < words ? 32 : q - whole, bit = 32 * (t < words ? inside / 32 : t - words);
    int row = bit / a.width, at = row * a.width - bit;
    u32 word = 0;
    for (; at < 32 && row < rows; ++row, at += a.width) {
      const u32 field = field_of(code, n, a, q, first + step * row);
      word |= at < 0 ? field >> -at : field << at;
    }
    const int left = t < words ? 4 : tail - 4 * (t - words);
    if (left >= 4) store_word(out + 4 * t, fit, word);
    else
      for (int b = 0; b < left; ++b) out[4 * t + b] = (u8)(word >> 8 * b);
  }
}

/* The inverse, a thread a field. A field that no encoder writes gives codes below a.levels all the same. */
DEVICE void unpack_fields(const u8* in, int n, eden_alphabet a, u8* code) {
  const int q = (n + a.digits - 1) / a.digits, whole = q & ~(PACK_BLOCK - 1);
  const int bytes = whole / 8 * a.width + ((q - whole) * a.width + 7) / 8, fit = aligned(in, 4);
  const f32 inverse = 1.0f / (f32)a.levels;
  const u32 mask = ((u32)1 << a.width) - 1, top = (u32)a.levels - 1;
  for (int i = (int)threadIdx.x; i < q; i += (int)blockDim.x) {
    const int row = i < whole ? i % PACK_BLOCK / 32 : i - whole, bit = row * a.width;
    u32 field = 0;
    if (i < whole) {
      const u8* from = in + i / PACK_BLOCK * (128 * a.width) + 4 * (i % 32) + 128 * (bit >> 5);
      u64 two = load_word(from, fit);
      if ((bit & 31) + a.width > 32) two |= (u64)load_word(from + 128, fit) << 32;
      field = (u32)(two >> (bit & 31));
    } else {
      const int first = whole / 8 * a.width + (bit >> 3);
      for (int b = 0; b < 3 && first + b < bytes; ++b) field |= (u32)in[first + b] << 8 * b;
      field >>= bit & 7;
    }
    field &= mask;
    for (int at = i, digit = 1; digit < a.digits; at += q, ++digit) {
      const u32 rest = quotient16(field, inverse);
      if (at < n) code[at] = (u8)(field - rest * (u32)a.levels);
      field = rest;
    }
    const int last = i + (a.digits - 1) * q;
    if (last < n) code[last] = (u8)(field < top ? field : top);
  }
}

/* A span in registers */

/* A warp's rows of x to its rows of shared memory; meanwhile() is done while they are on their way. */
template <typename Work>
DEVICE void load_rows(const real* x, real* room, Work meanwhile) {
  if (aligned(x, sizeof(quad))) {
    const int row = lane_of() * QUAD / WARP, column = lane_of() * QUAD % WARP;
    quad q[ROWS / QUAD];
#pragma unroll
    for (int k = 0; k < ROWS / QUAD; ++k) q[k] = *(const quad*)(x + WARP * (QUAD * k + row) + column);
    meanwhile();
#pragma unroll
    for (int k = 0; k < ROWS / QUAD; ++k) *(quad*)(room + PITCH * (QUAD * k + row) + column) = q[k];
  } else {
    real v[ROWS];
#pragma unroll
    for (int j = 0; j < ROWS; ++j) v[j] = x[WARP * j + lane_of()];
    meanwhile();
#pragma unroll
    for (int j = 0; j < ROWS; ++j) room[PITCH * j + lane_of()] = v[j];
  }
}

/* The stages of strides 1 to 512, which a warp does by itself, from its rows of shared memory to v; the lane's row has
   `signs`. */
DEVICE void warp_stages(real* room, u32 signs, real (&v)[ROWS]) {
  quad* row = (quad*)(room + PITCH * lane_of());
#pragma unroll
  for (int k = 0; k < ROWS / QUAD; ++k) {
    const quad q = row[k];
#pragma unroll
    for (int i = 0; i < QUAD; ++i) v[QUAD * k + i] = flip_sign(q.v[i], signs, QUAD * k + i);
  }
  butterflies(v, 0, 5, 0);
#pragma unroll
  for (int k = 0; k < ROWS / QUAD; ++k) {
    quad q;
#pragma unroll
    for (int i = 0; i < QUAD; ++i) q.v[i] = v[QUAD * k + i];
    row[k] = q;
  }
  __syncwarp();
#pragma unroll
  for (int j = 0; j < ROWS; ++j) v[j] = room[PITCH * j + lane_of()];
  butterflies(v, 0, 5, 0);
}

/* The last two stages and the scale: sink(row, value) takes the columns of eight rows of each warp. */
template <typename Sink>
DEVICE void block_stages(const real (&v)[ROWS], real* room, Sink sink) {
  const real scale = (real)hadamard_scale(SPAN);
#pragma unroll
  for (int j = 0; j < ROWS; ++j) room[PITCH * (ROWS * warp_of() + j) + lane_of()] = v[j];
  __syncthreads();
#pragma unroll
  for (int r = 0; r < ROWS / WARPS; ++r) {
    const int row = ROWS / WARPS * warp_of() + r;
    real u[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; ++w) u[w] = room[PITCH * (ROWS * w + row) + lane_of()];
    butterflies(u, 0, 2, 0);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sink(ROWS * w + row, u[w] * scale);
  }
}

/* The sum of term(j) over rows, in the order of reduce.h, warp after warp: finish(sum), lane 0's, in the last one before
   the last barrier. */
template <typename Term, typename Finish>
DEVICE void sum_of_rows(f64* lanes, Term term, Finish finish) {
#pragma unroll
  for (int turn = 0; turn < WARPS; ++turn) {
    if (warp_of() == turn) {
      f64 sum = turn ? lanes[lane_of()] : 0;
#pragma unroll
      for (int j = 0; j < ROWS; ++j) sum += term(j);
      if (turn < WARPS - 1) lanes[lane_of()] = sum;
      else finish(warp_fold(sum));
    }
    __syncthreads();
  }
}

struct encode_room {
  quad z[SPAN_QUADS];
  u32 signs[SIGN_WORDS];
  f64 lanes[WARP], square, unit;
  u64 levels[WARPS];
  u32 usual; /* recentre has nothing to do */
};

/* Codes of `width` bits, the lane's rows in turn, to out: v becomes v level; returns the sum of level^2. */
template <int width>
DEVICE u64 round_rows(real (&v)[ROWS], f64 unit, const u32* cell, const i32* level, u8* out) {
  constexpr int which[9] = {-1, 0, 2, 5, 9, 12, 15, 17, 19}; /* the alphabets of 2^width levels */
  const i32 density = eden_alphabet_of(which[width]).density, fit = aligned(out, 4);
  const real per_unit = (real)(unit * density);
  u64 squares = 0;
  u32 held = 0;
#pragma unroll
  for (int j = 0; j < ROWS; ++j) {
    const u32 code = rounded(v[j], per_unit, 2 * EDEN_RANGE * density, cell, level, &squares);
    const int bit = j * width & 31;
    held |= code << bit;
    if (bit + width >= 32) {
      store_word(out + 128 * (j * width / 32) + 4 * lane_of(), fit, held);
      held = bit + width > 32 ? code >> (32 - bit) : 0;
    }
  }
  return squares;
}

template <bool mixed>
DEVICE void encode_span(const real* x, i64 spans, u64 key, const eden_plan* plan, int width, int unbiased, u8* codes,
                        u8* scales, int wire, u64* found, u32* list) {
  __shared__ encode_room room;
  __shared__ u32 cell[mixed ? 2 : 1][EDEN_CELLS];
  __shared__ i32 level[mixed ? 2 : 1][EDEN_LEVELS];
  const int lane = lane_of(), warp = warp_of(), only = plan->part[0].n == 0; /* the part that is not empty */
  real *all = room.z[0].v, *z = all + PITCH * ROWS * warp;
#pragma unroll
  for (int p = 0; p < (mixed ? 2 : 1); ++p) {
    const int which = mixed ? p : only;
    copy_table(plan->cell[which], cell[p], plan->part[which].cells);
    copy_table(plan->level[which], level[p], plan->part[which].a.levels);
  }
  for (i64 span = blockIdx.x; span < spans; span += gridDim.x) {
    const real* from = x + span * SPAN + PACK_BLOCK * warp;
    load_rows(from, z, [&] {
      if (warp == 0) draw_signs(room.signs, SPAN, (u64)span * SPAN, key, lane, WARP);
    });
    __syncthreads();
    real v[ROWS];
    warp_stages(z, room.signs[threadIdx.x], v);
    block_stages(v, all, [&](int row, real value) { all[PITCH * row + lane] = value; });
    __syncthreads();
#pragma unroll
    for (int j = 0; j < ROWS; ++j) v[j] = z[PITCH * j + lane];
    sum_of_rows(
        room.lanes, [&](int j) { return term_square((f64)v[j]); },
        [&](f64 sum) {
          if (lane) return;
          const f64 norm = sqrt(sum); /* max |x| lies between norm / 64 and norm, but for rounding */
          room.usual = sum == 0 || (recentre(0.99 / 64 * norm) == 1 && recentre(1.01 * norm) == 1);
          room.square = sum;
          room.unit = sqrt(eden_precision(sum, SPAN));
        });
    if (room.square == 0) { /* zeros, or what is too small to be seen */
      int zero = 1;
      for (int j = 0; j < ROWS; ++j) zero &= from[WARP * j + lane] == 0;
      if (!zero) room.usual = 0;
      __syncthreads();
    }
    if (!room.usual) {
      if (threadIdx.x == 0) postpone(span, found, list);
      continue;
    }

    u64 squares = 0;
    if constexpr (!mixed) {
      u8* out = codes + (span * WARPS + warp) * 128 * width;
      switch (width) {
        case 1: squares = round_rows<1>(v, room.unit, cell[0], level[0], out); break;
        case 2: squares = round_rows<2>(v, room.unit, cell[0], level[0], out); break;
        case 3: squares = round_rows<3>(v, room.unit, cell[0], level[0], out); break;
        case 4: squares = round_rows<4>(v, room.unit, cell[0], level[0], out); break;
        case 5: squares = round_rows<5>(v, room.unit, cell[0], level[0], out); break;
        case 6: squares = round_rows<6>(v, room.unit, cell[0], level[0], out); break;
        case 7: squares = round_rows<7>(v, room.unit, cell[0], level[0], out); break;
        default: squares = round_rows<8>(v, room.unit, cell[0], level[0], out);
      }
    } else {
      u8* code = (u8*)all;
      const eden_part a = plan->part[0], b = plan->part[1];
      const real unit_a = (real)(room.unit * a.a.density), unit_b = (real)(room.unit * b.a.density);
#pragma unroll
      for (int j = 0; j < ROWS; ++j) {
        const int i = PACK_BLOCK * warp + WARP * j + lane, p = i >= a.n;
        code[i] = (u8)rounded(v[j], p ? unit_b : unit_a, p ? b.cells : a.cells, cell[p], level[p], &squares);
      }
      __syncthreads();
      u8* out = codes + span * (a.bytes + b.bytes);
      pack_fields(code, a.n, a.a, out);
      pack_fields(code + a.n, b.n, b.a, out + a.bytes);
    }
    squares = warp_fold(squares);
    if (lane == 0) room.levels[warp] = squares;
    __syncthreads();
    sum_of_rows(
        room.lanes, [&](int j) { return term_self((f64)v[j]); },
        [&](f64 sum) {
          if (lane) return;
          u64 levels = 0; /* an integer below 2^53, whatever the order */
          for (int w = 0; w < WARPS; ++w) levels += room.levels[w];
          put_scale(eden_scale(room.square, sum, (f64)levels, unbiased), span, wire, scales, found);
        });
  }
}

extern "C" __global__ void __launch_bounds__(128, SPANS)
    eden_encode(const real* x, i64 spans, u64 key, const u32* tables, i32 width, i32 unbiased, u8* payload, i64 offset,
                i32 wire, u64* found, u32* list) {
  encode_span<false>(x, spans, key, (const eden_plan*)tables, width, unbiased, payload, payload + offset, wire, found,
                     list);
}

extern "C" __global__ void __launch_bounds__(128, MIXED_SPANS)
    eden_encode_mixed(const real* x, i64 spans, u64 key, const u32* tables, i32 width, i32 unbiased, u8* payload,
                      i64 offset, i32 wire, u64* found, u32* list) {
  encode_span<true>(x, spans, key, (const eden_plan*)tables, width, unbiased, payload, payload + offset, wire, found,
                    list);
}

/* The values of a lane's codes of `width` bits. */
template <int width>
DEVICE void value_rows(const u8* in, const real* value, real (&v)[ROWS]) {
  const int fit = aligned(in, 4);
  u32 word[width];
#pragma unroll
  for (int k = 0; k < width; ++k) word[k] = load_word(in + 128 * k + 4 * lane_of(), fit);
#pragma unroll
  for (int j = 0; j < ROWS; ++j) {
    const int first = j * width / 32, bit = j * width & 31;
    u32 code = word[first] >> bit;
    if (bit + width > 32) code |= word[first + 1] << (32 - bit);
    v[j] = value[code & ((1u << width) - 1)];
  }
}

template <bool mixed>
DEVICE void decode_span(const u8* codes, const u8* scales, int wire, u64 key, const eden_plan* plan, int width,
                        real weight, int add, real* out, u64* found, u32* list) {
  __shared__ quad memory[SPAN_QUADS];
  __shared__ real value[mixed ? 2 : 1][EDEN_LEVELS];
  __shared__ u32 signs[SIGN_WORDS];
  real* room = memory[0].v;
  const i64 span = blockIdx.x;
  const int lane = lane_of(), warp = warp_of(), only = plan->part[0].n == 0;
  const f64 scale = load_scale(scales, span, wire);
  if (recentre(scale) != 1) {
    if (threadIdx.x == 0) postpone(span, found, list);
    return;
  }
  const real unit = (real)(scale * EDEN_UNIT);
#pragma unroll
  for (int p = 0; p < (mixed ? 2 : 1); ++p) {
    const int which = mixed ? p : only;
    for (int i = (int)threadIdx.x; i < plan->part[which].a.levels; i += (int)blockDim.x)
      value[p][i] = unit * (real)plan->level[which][i];
  }
  if (warp == WARPS - 1) draw_signs(signs, SPAN, (u64)span * SPAN, key, lane, WARP);
  real v[ROWS];
  if constexpr (!mixed) {
    __syncthreads();
    const u8* in = codes + (span * WARPS + warp) * 128 * width;
    switch (width) {
      case 1: value_rows<1>(in, value[0], v); break;
      case 2: value_rows<2>(in, value[0], v); break;
      case 3: value_rows<3>(in, value[0], v); break;
      case 4: value_rows<4>(in, value[0], v); break;
      case 5: value_rows<5>(in, value[0], v); break;
      case 6: value_rows<6>(in, value[0], v); break;
      case 7: value_rows<7>(in, value[0], v); break;
      default: value_rows<8>(in, value[0], v);
    }
  } else {
    u8* code = (u8*)room;
    const eden_part a = plan->part[0], b = plan->part[1];
    const u8* in = codes + span * (a.bytes + b.bytes);
    unpack_fields(in, a.n, a.a, code);
    unpack_fields(in + a.bytes, b.n, b.a, code + a.n);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < ROWS; ++j) {
      const int i = PACK_BLOCK * warp + WARP * j + lane;
      v[j] = value[i >= a.n][code[i]];
    }
    __syncthreads();
  }
  real* z = room + PITCH * ROWS * warp;
#pragma unroll
  for (int j = 0; j < ROWS; ++j) z[PITCH * j + lane] = v[j];
  __syncwarp();
  warp_stages(z, 0, v);
  real* to = out + span * SPAN + lane;
  block_stages(v, room, [&](int row, real y) { emit(flip_sign(y, signs[row], lane), weight, add, to + WARP * row); });
}

extern "C" __global__ void __launch_bounds__(128, SPANS)
    eden_decode(const u8* payload, i64 offset, i32 wire, u64 key, const u32* tables, i32 width, f64 weight, i32 add,
                real* out, u64* found, u32* list) {
  decode_span<false>(payload, payload + offset, wire, key, (const eden_plan*)tables, width, (real)weight, add, out,
                     found, list);
}

extern "C" __global__ void __launch_bounds__(128, SPANS)
    eden_decode_mixed(const u8* payload, i64 offset, i32 wire, u64 key, const u32* tables, i32 width, f64 weight,
                      i32 add, real* out, u64* found, u32* list) {
  decode_span<true>(payload, payload + offset, wire, key, (const eden_plan*)tables, width, (real)weight, add, out,
                    found, list);
}

/* A span in shared memory */

struct span_room {
  u32 signs[SIGN_WORDS], cell[EDEN_CELLS];
  i32 level[EDEN_LEVELS];
  f64 square;
  u64 sum;
};

/* work(span) for the spans on the list, found[1] of them, and for all from `first` on. */
template <typename Work>
DEVICE void for_spans(i64 spans, i64 first, const u64* found, const u32* list, Work work) {
  const i64 rest = spans - first, jobs = rest + (first ? (i64)found[1] : 0);
  for (i64 job = blockIdx.x; job < jobs; job += gridDim.x) {
    work(job < rest ? first + job : (i64)list[job - rest]);
    __syncthreads();
  }
}

/* The rotation of a block whose signs start at e, or its inverse. */
template <typename number>
DEVICE void rotate_block(number* z, int n, u64 e, u64 key, bool inverse, u32* signs) {
  __syncthreads();
  draw_signs(signs, n, e, key, (int)threadIdx.x, (int)blockDim.x);
  const auto flip = [&] {
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) z[i] = flip_sign(z[i], signs[i >> 5], i & 31);
  };
  if (!inverse) flip();
  block_fwht(z, n, (number)hadamard_scale(n));
  if (inverse) flip();
}

/* max |x| of n elements, of all threads: NaN or Inf where one is. */
DEVICE f64 block_max(const real* x, int n, u64* room) {
  if (threadIdx.x == 0) *room = 0;
  __syncthreads();
  u64 most = 0;
  for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) most = max(most, magnitude_of(x[i]));
  atomicMax(room, most);
  __syncthreads();
  return of_magnitude(*room, real());
}

/* Shared memory has `longest` numbers and as many bytes of codes. */
extern "C" __global__ void __launch_bounds__(512)
    eden_encode_spans(const real* x, i64 n, i64 first, i64 longest, i64 rate, u64 key, const u32* tables, i32 unbiased,
                      u8* payload, i64 offset, i32 wire, u64* found, const u32* list) {
  __shared__ span_room room;
  DYNAMIC_SHARED(f64, memory);
  const eden_plan* plan = (const eden_plan*)tables;
  const int thread = (int)threadIdx.x, threads = (int)blockDim.x;
  const i64 block = rotation_block(n), bytes = eden_block_bytes(block, rate);
  u8 *code = (u8*)(memory + longest), *scales = payload + offset;

  const auto encode_block = [&](auto* z, int m, i64 index, f64 factor, u8* out) {
    typedef decltype(*z + *z) number;
    const eden_split split = eden_split_of(m, rate);
    __syncthreads();
    if (warp_of() == 0) {
      const f64 square = warp_sum<TERM_SQUARE>(z, m, 1);
      if (lane_of() == 0) {
        room.square = square;
        room.sum = 0;
      }
    }
    for (int part = 0, start = 0; part < 2; ++part) {
      const eden_alphabet a = plan->part[part].a;
      const int cells = plan->part[part].cells, end = start + (int)(part ? split.n[1] : split.n[0]);
      copy_table(plan->cell[part], room.cell, cells);
      copy_table(plan->level[part], room.level, a.levels);
      __syncthreads();
      const number per_unit = (number)(sqrt(eden_precision(room.square, m)) * a.density);
      u64 squares = 0;
      for (int i = start + thread; i < end; i += threads) {
        code[i] = (u8)rounded(z[i], per_unit, cells, room.cell, room.level, &squares);
      }
      atomicAdd(&room.sum, squares);
      __syncthreads();
      pack_fields(code + start, end - start, a, out);
      out += eden_part_bytes(end - start, a);
      start = end;
    }
    if (warp_of() == 0) {
      const f64 product = warp_sum<TERM_SELF>(z, m, 1);
      if (lane_of() == 0)
        put_scale(eden_scale(room.square, product, (f64)room.sum, unbiased) / factor, index, wire, scales, found);
    }
  };

  const auto encode = [&](auto* z, i64 span, f64 factor) {
    typedef decltype(*z + *z) number;
    const i64 start = span * block;
    const int m = (int)eden_span(start, n, block), before = m - (int)block;
    u8* out = payload + span * bytes;
    for (int i = thread; i < m; i += threads)
      z[i] = factor == 1 ? (number)x[start + i] : (number)((f64)x[start + i] * factor);
    for (int r = 0; r <= (before > 0); ++r)
      rotate_block(z + r * before, (int)block, r ? ROTATION_LAST_SIGNS : (u64)start, key, false, room.signs);
    for (int b = before == 0; b < 2; ++b) {
      encode_block(z + b * before, b ? (int)block : before, span, factor, out);
      out += eden_block_bytes(before, rate);
      ++span;
    }
  };

  for_spans(n / block, first, found, list, [&](i64 span) {
    const f64 largest = block_max(x + span * block, (int)eden_span(span * block, n, block), &room.sum);
    const f64 factor = recentre(largest);
    if (!(largest < f64_bits(INFINITE_F64))) {
      if (thread == 0) put_scale(largest, span, wire, scales, found);
    } else if (factor == 1) {
      encode((real*)memory, span, 1);
    } else {
      encode(memory, span, factor);
    }
  });
}

extern "C" __global__ void __launch_bounds__(512)
    eden_decode_spans(const u8* payload, i64 offset, i32 wire, i64 n, i64 first, i64 longest, i64 rate, u64 key,
                      const u32* tables, f64 weight, i32 add, real* out, const u64* found, const u32* list) {
  __shared__ span_room room;
  DYNAMIC_SHARED(f64, memory);
  const eden_plan* plan = (const eden_plan*)tables;
  const int thread = (int)threadIdx.x, threads = (int)blockDim.x;
  const i64 block = rotation_block(n), bytes = eden_block_bytes(block, rate);
  const u8* scales = payload + offset;
  u8* code = (u8*)(memory + longest);

  const auto decode_block = [&](auto* z, int m, f64 scale, const u8* in) {
    typedef decltype(*z + *z) number;
    const eden_split split = eden_split_of(m, rate);
    const number unit = (number)(scale * EDEN_UNIT);
    for (int part = 0; part < 2; ++part) {
      const eden_alphabet a = plan->part[part].a;
      const int part_n = (int)(part ? split.n[1] : split.n[0]);
      __syncthreads();
      copy_table(plan->level[part], room.level, a.levels);
      unpack_fields(in, part_n, a, code);
      __syncthreads();
      for (int i = thread; i < part_n; i += threads) z[i] = unit * (number)room.level[code[i]];
      in += eden_part_bytes(part_n, a);
      z += part_n;
    }
  };

  const auto decode = [&](auto* z, i64 span, f64 factor) {
    const i64 start = span * block;
    const int m = (int)eden_span(start, n, block), before = m - (int)block;
    const u8* in = payload + span * bytes;
    for (int b = before == 0; b < 2; ++b) {
      decode_block(z + b * before, b ? (int)block : before, load_scale(scales, span, wire) * factor, in);
      in += eden_block_bytes(before, rate);
      ++span;
    }
    for (int r = before > 0; r >= 0; --r)
      rotate_block(z + r * before, (int)block, r ? ROTATION_LAST_SIGNS : (u64)start, key, true, room.signs);
    for (int i = thread; i < m; i += threads)
      emit(factor == 1 ? (real)z[i] : T(eden_restore)(z[i], factor), (real)weight, add, out + start + i);
  };

  for_spans(n / block, first, found, list, [&](i64 span) {
    const i64 start = span * block;
    const int m = (int)eden_span(start, n, block);
    f64 largest = load_scale(scales, span, wire);
    if (m > block) largest = max(largest, load_scale(scales, span + 1, wire));
    const f64 factor = recentre(largest);
    if (largest == 0) {
      for (int i = thread; i < m; i += threads) emit(0, (real)weight, add, out + start + i);
    } else if (factor == 1) {
      decode((real*)memory, span, 1);
    } else {
      decode(memory, span, factor);
    }
  });
}
