/* Norms as scales; rounding and packing in one pass, and the way back. A warp has a block of pack.h. */
#include "block.cuh"
#include "norm.cuh"
#include "pack.cuh"
#include "quantize.h"

enum { WARPS = 8, GROUP_WARPS = PLACES_GROUP / PACK_BLOCK, SINGLE = sizeof(real) == 4 };

DEVICE f64 read_scale(const u8* scales, i64 index, int wire) {
  return wire == 4 ? (f64)f32_bits(load_u32(scales + 4 * index)) : f64_bits(load_u64(scales + 8 * index));
}
/* That of 1024 coordinates from `start` on. */
DEVICE f64 scale_at(const u8* scales, i64 start, i64 n, i64 block, int wire) {
  return read_scale(scales, block < n ? (u32)(start / PACK_BLOCK) / (u32)(block / PACK_BLOCK) : 0, wire);
}
DEVICE int length_at(i64 start, i64 n) { return (int)(n - start < PACK_BLOCK ? n - start : PACK_BLOCK); }

/* A warp has a segment, whose terms are summed already or (sums = 0) few enough for it. Of those that fail the first
   leaves the largest number in `status`. */
extern "C" __global__ void __launch_bounds__(256)
    write_scales(const real* x, i64 n, i64 block, i32 norm, const f64* sums, i32 wire, u8* scales, i64 count,
                 u64* status) {
  const i64 index = grid_warp(), start = index * block;
  if (index >= count) return;
  const i64 m = block < n - start ? block : n - start;
  x += start;
  const f64 sum = sums               ? sums[index]
                  : norm == NORM_MAX ? warp_max(x, m)
                  : norm == NORM_L2  ? warp_sum<TERM_SQUARE>(x, m, 1)
                                     : warp_sum<TERM_ABS>(x, m, 1);
  f64 scale = finish_norm(x, lane_of() ? 0 : m, norm, sum);
  if (lane_of()) return;
  f32 single = float_up(scale);
  if (const int failed = scale_status(scale, single, wire, sizeof(real))) {
    atomicMax(status, (u64)(count - index) << 2 | (u64)failed);
    scale = single = 0;
  }
  if (wire == 4) store_u32(scales + 4 * index, bits_f32(single));
  else store_u64(scales + 8 * index, bits_f64(scale));
}

/* left: how many there are from the first bad one on. */
extern "C" __global__ void bad_scale(const u8* scales, i64 count, i32 wire, u64* left) {
  const i64 i = grid_thread();
  if (i < count && !scale_valid(read_scale(scales, i, wire))) atomicMax(left, (u64)(count - i));
}

/* The formulas of an alphabet, whatever type its elements have. */
struct Grid {
  static constexpr int unit = 65536;
  DEVICE u32 sum(f32 x, f32 scale, i32 levels, u32 random) { return grid_sum_f32(x, scale, levels, random); }
  DEVICE u32 sum(f64 x, f64 scale, i32 levels, u32 random) { return grid_sum_f64(x, scale, levels, random); }
  DEVICE u32 code(f32 x, f32 scale, i32 levels, u64 e, dither_bits d) { return grid_code_f32(x, scale, levels, e, d); }
  DEVICE u32 code(f64 x, f64 scale, i32 levels, u64 e, dither_bits d) { return grid_code_f64(x, scale, levels, e, d); }
  DEVICE f32 value(f32, u32 code, i32 levels) { return grid_value_f32(code, levels); }
  DEVICE f64 value(f64, u32 code, i32 levels) { return grid_value_f64(code, levels); }
  DEVICE i32 shape(i32 levels) { return levels; }
  DEVICE f64 steps(i32 levels) { return levels - 1; }
  DEVICE f64 factor(f64 scale, i32 levels) { return recentre_grid(scale, levels); }
  DEVICE f64 inverse(f64 scale, i32 levels) { return grid_inverse(scale, levels); }
  DEVICE u32 with_sign(u32 code, int, i32) { return code; }
};
struct Natural {
  static constexpr int unit = 1;
  DEVICE u32 sum(f32 x, f32 scale, i32 least, u32 random) { return natural_sum_f32(x, scale, least, random); }
  DEVICE u32 sum(f64 x, f64 scale, i32 least, u32 random) { return natural_sum_f64(x, scale, least, random); }
  DEVICE u32 code(f32 x, f32 scale, i32 least, u64 e, dither_bits d) { return natural_code_f32(x, scale, least, e, d); }
  DEVICE u32 code(f64 x, f64 scale, i32 least, u64 e, dither_bits d) { return natural_code_f64(x, scale, least, e, d); }
  DEVICE f32 value(f32, u32 code, i32 levels) {
    const i32 q = (i32)code - levels / 2;
    return natural_value_f32((u32)(q < 0 ? -q : q), q < 0, shape(levels));
  }
  DEVICE f64 value(f64, u32 code, i32 levels) {
    const i32 q = (i32)code - levels / 2;
    return natural_value_f64((u32)(q < 0 ? -q : q), q < 0, shape(levels));
  }
  DEVICE i32 shape(i32 levels) { return 1 - levels / 2; }
  DEVICE f64 steps(i32) { return 1; }
  DEVICE f64 factor(f64 scale, i32) { return recentre(scale); }
  DEVICE f64 inverse(f64 scale, i32) { return natural_inverse(scale); }
  DEVICE u32 with_sign(u32 q, int minus, i32 levels) { return natural_signed(q, minus, levels / 2); }
};
DEVICE u32 nearest_code(f32 x, f32 inv, i32 levels) { return nearest_code_f32(x, inv, levels); }
DEVICE u32 nearest_code(f64 x, f64 inv, i32 levels) { return nearest_code_f64(x, inv, levels); }

/* What a lane has of rows row .. row + 7: element(i), 0 where there is no i. */
template <typename number, typename Has, typename Element>
DEVICE void load_rows(int row, Has has, Element element, number* x) {
#pragma unroll
  for (int r = 0; r < PACK_PIECE; ++r) {
    const int i = PACK_LANES * (row + r) + lane_of();
    x[r] = has(i) ? element(i) : (number)0;
  }
}

template <typename Has, typename number, typename Out>
DEVICE void store_rows(int row, Has has, const number* v, Out* out) {
#pragma unroll
  for (int r = 0; r < PACK_PIECE; ++r) {
    const int i = PACK_LANES * (row + r) + lane_of();
    if (has(i)) out[i] = (Out)v[r];
  }
}

/* Their codes, before they have a sign, with 16 bits each of one call of the generator. A bit is set for every row that
   asks for the second look (one in 65,536) and is to be taken again, by the definition; so are all that are moved to
   float64, for they are rare, and this would take the registers of every other block. */
template <typename Kind, int correlated, typename number>
DEVICE u32 dither_rows(const number* x, number scale, i32 shape, u64 call, dither_bits d, u32* code) {
  u32 carried = 0, again = 0;
  if (sizeof(number) > sizeof(real)) {
#pragma unroll
    for (int r = 0; r < PACK_PIECE; ++r) code[r] = 0;
    return 0xff;
  }
  philox_out bits = random_at(call, STREAM_DITHER, d.key);
  if (correlated) {
    const philox_out shared = random_at(call, STREAM_SHARED, d.shared);
    if (even_strata(d)) {
#pragma unroll
      for (int w = 0; w < 4; ++w)
        bits.w[w] = correlated16_even(shared.w[w] & 0xffffu, bits.w[w] & 0xffffu, d) |
                    correlated16_even(shared.w[w] >> 16, bits.w[w] >> 16, d) << 16;
    } else {
#pragma unroll
      for (int w = 0; w < 4; ++w)
        bits.w[w] = correlated16(shared.w[w] & 0xffffu, bits.w[w] & 0xffffu, d) |
                    correlated16(shared.w[w] >> 16, bits.w[w] >> 16, d) << 16;
    }
  }
#pragma unroll
  for (int r = 0; r < PACK_PIECE; ++r) {
    code[r] = Kind::sum(x[r], scale, shape, bits.w[r / 2] >> 16 * (r & 1) & 0xffffu);
    carried |= code[r] ^ (code[r] + 1); /* beyond the low half where that is all ones */
  }
  if (carried > ALL_ONES_16) {
#pragma unroll
    for (int r = 0; r < PACK_PIECE; ++r) again |= (u32)((code[r] & ALL_ONES_16) == ALL_ONES_16) << r;
  }
#pragma unroll
  for (int r = 0; r < PACK_PIECE; ++r) code[r] >>= 16;
  return again;
}

/* The place of a worker as place_of finds it, by a warp: first all others that places change with, in `room`, then from
   one change of this worker's place to the next. */
DEVICE u32 warp_place_of(u32 worker, u32 workers, u64 group, u64 key, u16* room) {
  for (u32 last = 4 * (u32)lane_of(); last < workers; last += 4 * WARP) {
    const philox_out draws = random_at(place_call(last, group), STREAM_PLACES, key);
#pragma unroll
    for (u32 j = 0; j < 4; ++j) room[last + j] = (u16)place_other(last + j, draws.w[j]);
  }
  __syncwarp();
  int place = (int)worker, end = (int)workers; /* the places from `end` on have changed */
  for (;;) {
    for (int first = end - 1; first > place; first -= WARP) {
      const int last = first - lane_of();
      const u32 hits = __ballot_sync(ALL_LANES, last > place && room[last] == place);
      if (hits) return (u32)(first + 1 - __ffs((int)hits)); /* it is taken there, and no later change asks for it */
    }
    end = place;
    if (place == 0 || room[place] == place) return (u32)place;
    place = room[place];
  }
}

/* The dither of the warp's block; of a block of threads all warps call it. */
template <int correlated>
DEVICE dither_bits block_dither(u64 key, u64 shared, u32 worker, u32 workers, i64 start, i64 n, u16* room) {
  if (!correlated) return independent_bits(key);
  __shared__ u32 places[WARPS / GROUP_WARPS];
  u32* place = places + warp_of() / GROUP_WARPS;
  if (warp_of() % GROUP_WARPS == 0 && start < n) {
    const u32 found = warp_place_of(worker, workers, (u64)start / PLACES_GROUP, shared, room);
    if (lane_of() == 0) *place = found;
  }
  __syncthreads();
  return placed_bits(key, shared, workers, *place);
}

/* n <= 1024 elements, e the lane's first coordinate. What float32 and its own scale cannot do is done in float64, moved
   (quantize.h, F). */
template <typename number, typename Kind, int correlated>
DEVICE void quantize_block(const real* x, int n, f64 scale, f64 factor, i32 levels, u64 e, dither_bits d, int width,
                           u8* out, u16* room) {
  const number inv = (number)Kind::inverse(scale * factor, levels) * (number)Kind::unit;
  const u64 call = dither_call(e);
  u32 again = 0;
  auto element = [&](int i) { return sizeof(number) == 4 ? (number)x[i] : (number)(x[i] * factor); };
  auto round = [&](int row, auto has, u32* code) {
    number v[PACK_PIECE];
    load_rows(row, has, element, v);
    again |= dither_rows<Kind, correlated>(v, inv, Kind::shape(levels), call + (u64)(4 * row), d, code) << row;
#pragma unroll
    for (int r = 0; r < PACK_PIECE; ++r) code[r] = Kind::with_sign(code[r], v[r] < 0, levels);
  };
  auto define = [&](int row) {
    const number v = element(PACK_LANES * row + lane_of());
    return Kind::with_sign(Kind::code(v, inv, Kind::shape(levels), e + (u64)(PACK_LANES * row), d), v < 0, levels);
  };
  auto within = [&](int i) { return i < n; };
  if (n == PACK_BLOCK && width) {
    warp_pack_words(width, out, room, [&](int row, u32* code) { round(row, [](int) { return true; }, code); });
#pragma unroll 1
    for (; again; again &= again - 1) {
      const int row = __ffs((int)again) - 1;
      lane_repack(width, out, row, define(row));
    }
    return;
  }
#pragma unroll 1
  for (int row = 0; PACK_LANES * row < n; row += PACK_PIECE) {
    u32 code[PACK_PIECE];
    round(row, within, code);
    store_rows(row, within, code, room);
  }
#pragma unroll 1
  for (; again; again &= again - 1) {
    const int row = __ffs((int)again) - 1, i = PACK_LANES * row + lane_of();
    if (i < n) room[i] = (u16)define(row);
  }
  warp_pack_room(n, width, out, room);
}

template <typename Kind, int correlated>
DEVICE void quantize(const real* x, i64 n, const u8* scales, i32 wire, i64 block, i32 levels, i32 width, u64 key,
                     u64 shared, u32 worker, u32 workers, u8* out) {
  __shared__ u16 rooms[WARPS][PACK_ROOM];
  u16* room = rooms[warp_of()];
  const i64 index = grid_warp(), start = index * PACK_BLOCK;
  const dither_bits d = block_dither<correlated>(key, shared, worker, workers, start, n, room);
  if (start >= n) return;
  const f64 scale = scale_at(scales, start, n, block, wire), factor = Kind::factor(scale, levels);
  const int m = length_at(start, n);
  const u64 e = (u64)(start + lane_of());
  x += start;
  out += index * packed_block_bytes(width);
  if (SINGLE && factor == 1) quantize_block<f32, Kind, correlated>(x, m, scale, 1, levels, e, d, width, out, room);
  else quantize_block<f64, Kind, correlated>(x, m, scale, factor, levels, e, d, width, out, room);
}

extern "C" __global__ void __launch_bounds__(256)
    quantize_grid(const real* x, i64 n, const u8* scales, i32 wire, i64 block, i32 levels, i32 width, u64 key,
                  u64 shared, u32 worker, u32 workers, u8* out) {
  quantize<Grid, 0>(x, n, scales, wire, block, levels, width, key, shared, worker, workers, out);
}
extern "C" __global__ void __launch_bounds__(256)
    quantize_grid_correlated(const real* x, i64 n, const u8* scales, i32 wire, i64 block, i32 levels, i32 width,
                             u64 key, u64 shared, u32 worker, u32 workers, u8* out) {
  quantize<Grid, 1>(x, n, scales, wire, block, levels, width, key, shared, worker, workers, out);
}
extern "C" __global__ void __launch_bounds__(256)
    quantize_natural(const real* x, i64 n, const u8* scales, i32 wire, i64 block, i32 levels, i32 width, u64 key,
                     u64 shared, u32 worker, u32 workers, u8* out) {
  quantize<Natural, 0>(x, n, scales, wire, block, levels, width, key, shared, worker, workers, out);
}
extern "C" __global__ void __launch_bounds__(256)
    quantize_natural_correlated(const real* x, i64 n, const u8* scales, i32 wire, i64 block, i32 levels, i32 width,
                                u64 key, u64 shared, u32 worker, u32 workers, u8* out) {
  quantize<Natural, 1>(x, n, scales, wire, block, levels, width, key, shared, worker, workers, out);
}

/* To the nearest code: no dither, and nothing to look at twice. */
template <typename number>
DEVICE void nearest_block(const real* x, int n, f64 scale, f64 factor, i32 levels, int width, u8* out, u16* room) {
  const number inv = (number)Grid::inverse(scale * factor, levels);
  auto element = [&](int i) { return sizeof(number) == 4 ? (number)x[i] : (number)(x[i] * factor); };
  if (levels == 2) warp_pack(n, width, out, room, [&](int, int i) { return nearest_code(element(i), inv, 2); });
  else warp_pack(n, width, out, room, [&](int, int i) { return nearest_code(element(i), inv, levels); });
}

extern "C" __global__ void __launch_bounds__(256)
    quantize_nearest(const real* x, i64 n, const u8* scales, i32 wire, i64 block, i32 levels, i32 width, u8* out) {
  __shared__ u16 rooms[WARPS][PACK_ROOM];
  u16* room = rooms[warp_of()];
  const i64 index = grid_warp(), start = index * PACK_BLOCK;
  if (start >= n) return;
  const f64 scale = scale_at(scales, start, n, block, wire), factor = Grid::factor(scale, levels);
  const int m = length_at(start, n);
  x += start;
  out += index * packed_block_bytes(width);
  if (SINGLE && factor == 1) nearest_block<f32>(x, m, scale, 1, levels, width, out, room);
  else nearest_block<f64>(x, m, scale, factor, levels, width, out, room);
}

/* out = or += unit value, one product and one sum; in float64, moved, where the scale is out of bounds. */
template <typename number, typename Kind>
DEVICE void unpack_block(const u8* in, int n, number unit, f64 factor, i32 levels, int width, i32 add, real* out) {
  const f64 back = 1 / factor;
  warp_unpack_rows(in, n, width, [&](int row, auto has, const u32* code) {
    number v[PACK_PIECE];
#pragma unroll
    for (int r = 0; r < PACK_PIECE; ++r) {
      v[r] = unit * Kind::value(number(), code[r], levels);
      if (sizeof(number) == 8) v[r] = (number)(v[r] * back);
    }
    if (add) {
      number old[PACK_PIECE];
      load_rows(row, has, [&](int i) { return (number)out[i]; }, old);
#pragma unroll
      for (int r = 0; r < PACK_PIECE; ++r) v[r] = old[r] + v[r];
    }
    store_rows(row, has, v, out);
  });
}

template <typename Kind>
DEVICE void unpack(const u8* data, i64 n, const u8* scales, i32 wire, i64 block, i32 levels, i32 width, f64 weight,
                   i32 add, real* out) {
  const i64 index = grid_warp(), start = index * PACK_BLOCK;
  if (start >= n) return;
  const f64 scale = scale_at(scales, start, n, block, wire), factor = recentre(scale), steps = Kind::steps(levels);
  const int m = length_at(start, n);
  data += index * packed_block_bytes(width);
  out += start;
  if (SINGLE && factor == 1)
    unpack_block<f32, Kind>(data, m, (f32)(weight * (scale / steps)), 1, levels, width, add, out);
  else unpack_block<f64, Kind>(data, m, weight * (scale * factor / steps), factor, levels, width, add, out);
}

extern "C" __global__ void __launch_bounds__(256)
    unpack_grid(const u8* data, i64 n, const u8* scales, i32 wire, i64 block, i32 levels, i32 width, f64 weight,
                i32 add, real* out) {
  unpack<Grid>(data, n, scales, wire, block, levels, width, weight, add, out);
}
extern "C" __global__ void __launch_bounds__(256)
    unpack_natural(const u8* data, i64 n, const u8* scales, i32 wire, i64 block, i32 levels, i32 width, f64 weight,
                   i32 add, real* out) {
  unpack<Natural>(data, n, scales, wire, block, levels, width, weight, add, out);
}

/* A byte for each power, then the signs, a bit for each row in `minus` before they are packed. */
template <typename number>
DEVICE void power_block(const real* x, int n, i32 shift, u64 e, dither_bits d, u8* exponent, u8* sign, u16* room) {
  const u64 call = dither_call(e);
  u32 again = 0, minus = 0;
  auto element = [&](int i) { return sizeof(number) == 4 ? (number)x[i] : (number)shift_f64(x[i], shift); };
  auto rows = [&](int row, auto has) {
    number v[PACK_PIECE];
    u32 code[PACK_PIECE];
    load_rows(row, has, element, v);
    again |= dither_rows<Natural, 0>(v, (number)1, POWER_LEAST, call + (u64)(4 * row), d, code) << row;
#pragma unroll
    for (int r = 0; r < PACK_PIECE; ++r) minus |= (u32)(v[r] < 0) << (row + r);
    store_rows(row, has, code, exponent);
  };
#pragma unroll 1
  for (int row = 0; PACK_LANES * row < n; row += PACK_PIECE)
    if (PACK_LANES * (row + PACK_PIECE) <= n) rows(row, [](int) { return true; });
    else rows(row, [&](int i) { return i < n; });
#pragma unroll 1
  for (; again; again &= again - 1) {
    const int row = __ffs((int)again) - 1, i = PACK_LANES * row + lane_of();
    if (i < n) exponent[i] = (u8)Natural::code(element(i), (number)1, POWER_LEAST, e + (u64)(PACK_LANES * row), d);
  }
  warp_pack(n, 1, sign, room, [&](int row, int) { return minus >> row & 1; });
}

extern "C" __global__ void __launch_bounds__(256, 5) power_pack(const real* x, i64 n, u64 key, i32 shift, u8* out) {
  __shared__ u16 rooms[WARPS][PACK_ROOM];
  const i64 index = grid_warp(), start = index * PACK_BLOCK;
  if (start >= n) return;
  const int m = length_at(start, n);
  const u64 e = (u64)(start + lane_of());
  const dither_bits d = independent_bits(key);
  u8 *exponent = out + start, *sign = out + n + index * packed_block_bytes(1);
  if (SINGLE && !shift) power_block<f32>(x + start, m, 0, e, d, exponent, sign, rooms[warp_of()]);
  else power_block<f64>(x + start, m, shift, e, d, exponent, sign, rooms[warp_of()]);
}

extern "C" __global__ void __launch_bounds__(256)
    unpower_scale(const u8* data, i64 n, f64 scale, i32 add, i32 shift, real* out) {
  const i64 index = grid_warp(), start = index * PACK_BLOCK;
  if (start >= n) return;
  const u8* exponent = data + start;
  const real unit = (real)scale;
  const f64 top = sizeof(real) == 4 ? (f64)f32_bits(INFINITE_F32 - 1) : f64_bits(INFINITE_F64 - 1);
  out += start;
  warp_unpack_rows(
      data + n + index * packed_block_bytes(1), length_at(start, n), 1, [&](int row, auto has, const u32* minus) {
        u32 q[PACK_PIECE];
        real v[PACK_PIECE];
        load_rows(row, has, [&](int i) { return (u32)exponent[i]; }, q);
#pragma unroll
        for (int r = 0; r < PACK_PIECE; ++r) {
          const u32 code = power_code(q[r]);
          const i32 sign = (i32)minus[r];
          v[r] =
              unit * (shift ? (real)power_shifted(code, sign, shift, top) : T(natural_value)(code, sign, POWER_LEAST));
        }
        if (add) {
          real old[PACK_PIECE];
          load_rows(row, has, [&](int i) { return out[i]; }, old);
#pragma unroll
          for (int r = 0; r < PACK_PIECE; ++r) v[r] = old[r] + v[r];
        }
        store_rows(row, has, v, out);
      });
}
