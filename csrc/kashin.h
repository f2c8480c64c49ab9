/* Kashin representations: x = U a with every |a_i| of the order of ||x|| / sqrt(D).

   A. Frame: d coordinates on d of D rows, in order, random signs, then H: U' = H S E, U = E' S H, U U' = I.
      The rows are a random subset fixed for ever by (D, d): zeros at the tail or evenly spaced rows leave
      levels two or three times higher. The signs come from the key.
   B. Null-space descent. a = U'x, then steps that move a only within the null space of U, so that U a = x
      at every one of them:  e = clip(a, M) - a,  g = N e,  v = momentum v + t g,  a += v,
      N = H (rows without data) H.  t = |g|^2 / |g on the clipped places|^2 is the step that would be exact
      if no place entered or left the clip: it needs no table and adapts to redundancy, size and data, where
      a fixed step that is good for dense vectors diverges on vectors of eight equal coordinates.
      Lane i of 256 (of as many as there are rows) adds elements i, i + 256, ... of either sum, and the lanes
      fold in halves.
   C. M rises from CLIP_FIRST to CLIP_LAST of the level that is promised.
   D. Level K = max|a| sqrt(D) / ||x|| is measured after rounding up to what the message carries, and
      compared with the promise: as many steps again, then the next attempt. Nothing else is needed for the
      proof. Attempts after the first have signs of their own, and first rotate the coordinates themselves
      (two overlapping blocks, the largest power of two that fits at either end). That makes them
      independent of how x lies in the frame: a vector of four equal coordinates whose triple products are
      all data rows has no representation below level 2, whatever the signs. Measured over families of
      vectors, sizes and redundancies, the first attempt fails on half of one at most, averaged over positions
      (three equal coordinates), a later one on at most a quarter, and there are 32.
   E. x is scaled by a power of two to max|x| in [1, 2), so that neither denormal nor huge blocks lose
      anything; the exponent returns with the level.
   F. The level travels in 32 bits: 12 of exponent (biased by 2048, the range of float64 and more), 15 of
      mantissa after the leading one, 5 of attempt. A zero frame is the word 0. */
#ifndef COMPRESS_KASHIN_H
#define COMPRESS_KASHIN_H
#include "hadamard.h"
#include "philox.h"

enum { KASHIN_ATTEMPTS = 32, KASHIN_SMALLEST = 64, KASHIN_LARGEST = 4096, KASHIN_LANES = 256 };

#define KASHIN_ROWS_KEY 0x6b617368696e0001ull
#define KASHIN_CLIP_FIRST 0.72
#define KASHIN_CLIP_LAST 0.92
#define KASHIN_MOMENTUM 0.2

/* A number below n from draw j of the rows of a frame. */
HD u32 kashin_draw(i64 rows, i64 coordinates, i64 j, u32 n) {
  u64 call = (u64)rows << 40 | (u64)coordinates << 20 | (u64)j >> 2;
  return (u32)((u64)random_at(call, STREAM_ROWS, KASHIN_ROWS_KEY).w[j & 3] * n >> 32);
}

/* Where the signs of an attempt start: the frame's, and those of the two blocks of its own rotation. */
HD u64 kashin_signs(i64 attempt, int block, u64 offset) { return ((u64)attempt << 40) + ((u64)block << 38) + offset; }

/* floor(log2 x), x > 0, denormals too. */
HD i64 floor_log2(f64 x) {
  i64 shift = x < 0x1p-1022 ? 64 : 0;
  if (shift) x *= 0x1p64;
  return (i64)(bits_f64(x) >> 52) - 1023 - shift;
}

/* x 2^e by two factors, each a normal number for every e that a finite x can ask for. */
HD f32 kashin_shift_f32(f32 x, i64 e) { return x * (f32)power_f64((i32)(e / 2)) * (f32)power_f64((i32)(e - e / 2)); }
HD f64 kashin_shift_f64(f64 x, i64 e) { return x * power_f64((i32)(e / 2)) * power_f64((i32)(e - e / 2)); }

/* The level: 16 significant bits, rounded up. */
HD f64 kashin_round_up(f64 level) { return f64_bits((bits_f64(level) + 0x1fffffffffull) & ~0x1fffffffffull); }
HD u32 kashin_word(f64 level, i64 exponent, i64 attempt) {
  u64 b = bits_f64(level);
  return (u32)((i64)(b >> 52) - 1023 + exponent + 2048) << 20 | (u32)(b >> 37 & 0x7fff) << 5 | (u32)attempt;
}
/* Its parts: a level in [1, 2), the power of two that scales the frame, the attempt. */
HD f64 kashin_word_level(u32 word) { return 1 + (f64)(word >> 5 & 0x7fff) * 0x1p-15; }
HD i64 kashin_word_exponent(u32 word) { return (i64)(word >> 20) - 2048; }
HD i64 kashin_word_attempt(u32 word) { return word & 31; }
/* No finite vector asks for more. */
HD int kashin_word_valid(u32 word) {
  i64 e = kashin_word_exponent(word);
  return word == 0 || (e >= -1100 && e <= 1100);
}

/* The part of the promise that step `step` clips at. */
HD f64 kashin_clip(i64 step, i64 steps) {
  const f64 rise = step + 1 < steps ? (f64)step / (f64)(steps - 1) : 1;
  return KASHIN_CLIP_FIRST + (KASHIN_CLIP_LAST - KASHIN_CLIP_FIRST) * rise;
}

/* e = clip(a, m) - a */
HD f32 kashin_excess_f32(f32 a, f32 m) { return clamp_f32(a, m) - a; }
HD f64 kashin_excess_f64(f64 a, f64 m) { return clamp_f64(a, m) - a; }

/* z where bit i of `data` is clear, 0 where it is set. */
HD f32 kashin_null_f32(f32 z, u32 data, int i) { return f32_bits(bits_f32(z) & ((data >> i & 1) - 1)); }
HD f64 kashin_null_f64(f64 z, u32 data, int i) { return f64_bits(bits_f64(z) & ((u64)(data >> i & 1) - 1)); }

/* t, or 0 where it is 0 / 0. */
HD f32 kashin_gain_f32(f32 all, f32 clipped) { return clipped > 0 ? all / clipped : 0; }
HD f64 kashin_gain_f64(f64 all, f64 clipped) { return clipped > 0 ? all / clipped : 0; }

/* v */
HD f32 kashin_velocity_f32(f32 v, f32 t, f32 g) { return (f32)KASHIN_MOMENTUM * v + t * g; }
HD f64 kashin_velocity_f64(f64 v, f64 t, f64 g) { return (f64)KASHIN_MOMENTUM * v + t * g; }

/* What rounding has carried beyond the range of the type becomes its largest number. */
HD f32 kashin_saturate_f32(f32 x) { return clamp_f32(x, 0x1.fffffep127f); }
HD f64 kashin_saturate_f64(f64 x) { return clamp_f64(x, 0x1.fffffffffffffp1023); }

#endif
