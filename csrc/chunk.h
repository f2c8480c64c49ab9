/* The k values of a chunk in a few bits each: sign, and a level that the chunk's own byte and nibble describe.

   A. Magnitudes live on a line of integers: u(v) = the upper 32 bits of the float64 v, sign aside. It is log2 v with
      straight pieces between the powers of two, 2^20 steps an octave; a difference on it is a ratio, and no logarithm
      is ever taken.
   B. The message names a range [bottom, top] of the line and a longest distance `span` (LINE_SPAN at most). A chunk has
      a byte s for its highest level, u_s = bottom + (top - bottom) (s - 1) / 254, 0 for a chunk of zeros, and, where
      there is more than one level, a nibble r for the distance to the lowest: of L levels number c lies at
      u_s - (L - 1 - c) step, step = span min(r, 14) / (14 (L - 1)). With r = 15 the lowest level is zero itself.
      Divisions of integers round down.
   C. Two levels are the best that a chunk can have, found by Lloyd's iteration; more are spread over the chunk's
      range evenly on the line, which for tails between Gaussian and Pareto is close to the best. The encoder tries
      the neighbouring bytes and nibbles, and the single level at the mean, and sends what errs least.
   D. Why the error is bounded, whatever the chunk: that single level is among the candidates. compress/chunk.py has
      the proof; it needs that a neighbouring u_s is never far, which LINE_RANGE sees to: 254 steps reach from top to
      the smallest mean within 280 octaves below it, which is all of float32. In steps of 280/254 octaves neighbours
      stand at most as 2.205 to 1, and the nearer of them errs by 0.376 of the value at most.
   E. Payload: bottom, top, span as u32; the bytes; the nibbles, two a byte, the even chunk in the low half; then the
      codes, sign bit above the level's number, packed as in pack.h. */
#ifndef COMPRESS_CHUNK_H
#define COMPRESS_CHUNK_H
#include "pack.h"
#include "reduce.h"

enum { LINE_OCTAVE = 1 << 20, LINE_RANGE = 280 * LINE_OCTAVE, LINE_SPAN = 8 * LINE_OCTAVE };
enum { CHUNK_SCALES = 255, CHUNK_RATIOS = 15, CHUNK_HEADER = 12, CHUNK_MAX_LEVELS = 128 };

typedef struct {
  u32 bottom, top, span;
} level_line;

HD u32 line_of(f64 magnitude) { return (u32)(bits_f64(magnitude) >> 32); }
HD f64 line_value(u32 u) { return f64_bits((u64)u << 32); }

/* The highest level of scale s = 1 ... 255. */
HD u32 line_scale(level_line line, u32 s) {
  return line.bottom + (u32)((u64)(line.top - line.bottom) * (s - 1) / (CHUNK_SCALES - 1));
}
/* The scale at u or next below it. */
HD u32 line_scale_below(level_line line, u32 u) {
  if (u <= line.bottom) return 1;
  if (u >= line.top) return CHUNK_SCALES;
  return 1 + (u32)((u64)(u - line.bottom) * (CHUNK_SCALES - 1) / (line.top - line.bottom));
}
/* The nibble that stands for a distance, or next below it. */
HD u32 line_ratio_below(level_line line, u32 distance) {
  const u32 most = CHUNK_RATIOS - 1;
  return distance >= line.span ? most : (u32)((u64)distance * most / line.span);
}

/* The levels of a chunk: scale s > 0, ratio r. */
typedef struct {
  u32 high, step, last;
  int from_zero;
} chunk_levels;

HD chunk_levels chunk_levels_of(level_line line, u32 s, u32 r, u32 levels) {
  const u32 most = CHUNK_RATIOS - 1;
  chunk_levels l;
  l.high = line_scale(line, s);
  l.last = levels - 1;
  l.step = levels > 1 ? (u32)((u64)line.span * (r < most ? r : most) / (most * l.last)) : 0;
  l.from_zero = levels > 1 && r == CHUNK_RATIOS;
  return l;
}
HD f64 chunk_level(chunk_levels l, u32 c) {
  u32 down = (l.last - c) * l.step;
  return (l.from_zero && c == 0) || down >= l.high ? 0 : line_value(l.high - down);
}

/* Whether an encoder writes such a header; `largest` is that of the type that is decoded. */
HD int line_valid(level_line line, f64 largest) {
  return line.bottom <= line.top && line.top < 0x7ff00000u && line_value(line.top) <= largest && line.span <= LINE_SPAN;
}

/* Bytes of the payload before the codes, and in all: `values` values, k a chunk, in `width` bits each. */
HD i64 chunk_codes_start(i64 chunks, int width) {
  return CHUNK_HEADER + chunks + (width > 1 ? ceil_div(chunks, 2) : 0);
}
HD i64 chunk_bytes(i64 values, i64 k, int width) {
  return values ? chunk_codes_start(ceil_div(values, k), width) + packed_bytes(values, width) : 0;
}

#endif
