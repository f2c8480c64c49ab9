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
enum { CHUNK_SCALES = 255, CHUNK_RATIOS = 15, CHUNK_HEADER = 12, CHUNK_MAX_LEVELS = 128, LLOYD_STEPS = 6 };

typedef struct {
  u32 bottom, top, span; /* span <= LINE_SPAN: a product with a nibble stays within 32 bits */
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
  return distance >= line.span ? most : distance * most / line.span;
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
  l.step = levels > 1 ? line.span * (r < most ? r : most) / (most * l.last) : 0;
  l.from_zero = levels > 1 && r == CHUNK_RATIOS;
  return l;
}
HD f64 chunk_level(chunk_levels l, u32 c) {
  u32 down = (l.last - c) * l.step;
  return (l.from_zero && c == 0) || down >= l.high ? 0 : line_value(l.high - down);
}

/* Magnitudes from here on are nearer to the upper one of two neighbours. */
HD f64 chunk_threshold(f64 lower, f64 upper) { return (lower + upper) / 2; }

/* What levels a chunk wants, as places on the line; high = 0: it is zero. */
typedef struct {
  u32 high, low, mean;
} chunk_fit;

/* A step of Lloyd's iteration on k values of sum `total`, of which `count`, some but not all, reach a threshold and have
   the sum `above`: the two means, and the next threshold. */
HD f64 lloyd_step(f64 total, f64 above, i64 count, i64 k, f64* low, f64* high) {
  *high = above / (f64)count;
  *low = (above < total ? total - above : 0) / (f64)(k - count);
  return chunk_threshold(*low, *high);
}
/* The energy that the means capture. */
HD f64 lloyd_energy(f64 total, f64 above, f64 low, f64 high) { return above * high + (total - above) * low; }

/* More than two levels, evenly between a least magnitude and a largest that is not zero. */
HD chunk_fit chunk_spread(f64 mean, f64 least, f64 most, u32 levels) {
  chunk_fit fit;
  u32 width;
  fit.mean = line_of(mean);
  fit.high = line_of(most);
  fit.low = line_of(least > most / 256 ? least : most / 256);
  width = (fit.high - fit.low) / levels;
  fit.high -= width / 4;
  fit.low += width / 2;
  return fit;
}

/* The line of a message: line_empty(), each of its chunks added in any order, line_closed(). */
HD level_line line_empty() {
  const level_line line = {0x7fffffffu, 0, 0};
  return line;
}
HD level_line line_add(level_line line, chunk_fit fit) {
  const u32 most = fit.high > fit.mean ? fit.high : fit.mean, least = fit.high < fit.mean ? fit.high : fit.mean;
  if (fit.high == 0) return line;
  if (line.top < most) line.top = most;
  if (line.bottom > least) line.bottom = least;
  if (fit.high - fit.low <= (u32)LINE_SPAN && line.span < fit.high - fit.low) line.span = fit.high - fit.low;
  return line;
}
HD level_line line_closed(level_line line) {
  const u32 lowest = line.top > (u32)LINE_RANGE ? line.top - (u32)LINE_RANGE : 0;
  if (line.bottom < lowest) line.bottom = lowest;
  if (line.bottom > line.top) line.bottom = line.top;
  return line;
}

/* Design note C: what an encoder tries, in this order, and takes the first of the best. Six pairs of a byte and a nibble,
   two without a nibble for the single level. A chunk below the line's bottom is sent as zero. */
enum { CHUNK_TRIALS = 8, CHUNK_PAIRS = 6 };
typedef struct {
  u32 high, mean, ratio; /* next below what is wanted */
} chunk_start;
HD int chunk_sent(level_line line, chunk_fit fit) { return fit.high && fit.mean >= line.bottom; }
HD chunk_start chunk_start_of(level_line line, chunk_fit fit) {
  chunk_start start;
  start.high = line_scale_below(line, fit.high);
  start.mean = line_scale_below(line, fit.mean);
  start.ratio = line_ratio_below(line, fit.high - fit.low);
  return start;
}
/* Whether there is a trial t with so many levels. */
HD int chunk_trial(chunk_start start, u32 levels, int t, u32* s, u32* r) {
  const int pair = t < CHUNK_PAIRS, second = pair ? t >= 3 : t > CHUNK_PAIRS, nibble = pair ? t - 3 * second : 0;
  *s = pair ? start.high : start.mean;
  *s += second && *s < CHUNK_SCALES;
  *r = !pair ? 0 : nibble == 2 ? (u32)CHUNK_RATIOS : start.ratio + (u32)nibble;
  return levels > 1 || nibble == 0;
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
