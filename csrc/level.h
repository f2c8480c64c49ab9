/* Integer levels as symbols of the entropy coder: which model, which symbol, how many low bits.

   A. A level j belongs to a state of a trellis code (trellis.h; with one state the quantiser is uniform and j even).
      Given the parity q that the state allows it is told by m, with j = 2 m + q, or with the labels of Versatile Video
      Coding j = 2 m - sign(m) where q = 1: then zero is a level of every state, which sparse vectors need. Bit 0 of m
      is the branch taken. An encoder passes w = 2 m + q around, which is j itself without the labels.
   B. With subtractive dither, u known to both sides and uniform on [0, 4) (on [0, 2) with one state), the level nearest
      to x + u is coded as m' = m - wrap, wrap = 0 or 2, near zero where x is. Its distribution depends on where the
      levels of this parity lie around zero: bins of u - q, a model each, 32 of them or a power of two fewer. `phase` is 32 times u over its
      range.
   C. With context every lane follows the mean magnitude of what it coded before (a 16th of it new with each level,
      more at its start), and the model its logarithm in half octaves. To have neighbours close, a lane then owns a run
      of coordinates (level_place) and not every 32nd. With `columns` the vector is a matrix of that many columns: the
      lane starts anew in every row, keeps such a mean of each column too, down the rows, and the model follows
      the mean of both logarithms, as a gradient is nearly a sum of few products of a row's and a column's scale.
      Their product says 0.1 to 0.4 bits a level more than their sum does.
   D. A symbol is 128 +- bucket: a magnitude |m'| below 32 is a bucket, those beyond share eight an octave, and their
      low bits are extra steps (entropy.h, E). A power of two for all, left out of every symbol, was tried: it has to be
      chosen, and it costs most where zeros stand out from large levels.
   E. 0 and 1 are escapes that take branch 0 and 1: magnitudes from 2^16 on, and whatever is so rare in its model that
      its share of 4096 would cost more. They follow in a string of bits. */
#ifndef COMPRESS_LEVEL_H
#define COMPRESS_LEVEL_H
#include "entropy.h"
#include "trellis.h"

enum {
  LEVEL_CONTEXTS = 48,
  LEVEL_PHASES = 32,
  LEVEL_COLUMNS = 128, /* at most */
  LEVEL_EXACT = 32,
  LEVEL_MOST = 65535,
  LEVEL_BUCKETS = 120,
  LEVEL_FAR = 130000,        /* |x| / step beyond is escaped: m' of the rest is within LEVEL_MOST */
  LEVEL_CAP = 32768,         /* of magnitudes in contexts */
  LEVEL_ESCAPED = -(1 << 30) /* plus 2 branch + q: w, or the level, of an escape */
};

typedef struct {
  int states, labels;
  int dithered; /* 0, or 1 + log2 of phases a model */
  int context;  /* 0, or 1 + log2 of half octaves a model */
  int columns;  /* 0, or the columns of a matrix */
} LevelCode;

HD int level_models_each(const LevelCode* c) {
  return c->dithered ? LEVEL_PHASES >> (c->dithered - 1) : c->states > 1 ? 2 : 1;
}
HD int level_models(const LevelCode* c) {
  return level_models_each(c) * (c->context ? ((LEVEL_CONTEXTS - 1) >> (c->context - 1)) + 1 : 1);
}

HD i32 level_sign(i32 m) { return (m > 0) - (m < 0); }
HD i32 level_from(i32 m, u32 q, int labels) { return 2 * m + (q ? labels ? -level_sign(m) : 1 : 0); }
HD i32 level_wrap(u32 phase, u32 q, int states) { return states > 1 && phase >= 16 + 8 * q ? 2 : 0; }
HD u32 level_bin(u32 phase, u32 q) { return (phase - 8 * q) & (LEVEL_PHASES - 1); }

/* u and its phase from a random word. */
HD f32 level_dither_of(u32 word, int states) { return (f32)(i32)(word >> 8) * (states > 1 ? 0x1p-22f : 0x1p-23f); }
HD u32 level_phase(u32 word) { return word >> 27; }

/* Low bits of a magnitude up to LEVEL_MOST, its bucket, and back. */
HD u32 level_low_bits(u32 m) {
  return (u32)(2 * (m >= 1 << 5) + (m >= 1 << 6) + (m >= 1 << 7) + (m >= 1 << 8) + (m >= 1 << 9) + (m >= 1 << 10) +
               (m >= 1 << 11) + (m >= 1 << 12) + (m >= 1 << 13) + (m >= 1 << 14) + (m >= 1 << 15));
}
HD u32 level_bucket(u32 m, u32 bits) { return (m >> bits) + (bits ? 8 * bits + 8 : 0); }
HD u32 level_bucket_bits(u32 bucket) { return bucket < LEVEL_EXACT ? 0 : (bucket >> 3) - 2; }
HD u32 level_bucket_first(u32 bucket, u32 bits) { return (bits ? 8 + (bucket & 7) : bucket) << bits; }

/* Means of magnitudes, in units of 1/1024, and their logarithm in half octaves: of one, or the middle of two. */
HD u32 level_mean(u32 mean, u32 magnitude, int gain) {
  return (u32)((i32)mean + (((i32)(magnitude << 10) - (i32)mean) >> gain));
}
HD int level_gain(i64 before) { return 1 + (before >= 2) + (before >= 6) + (before >= 14); }
HD int level_column_gain(i64 rows) { return (rows >= 1) + (rows >= 3) + (rows >= 7) + (rows >= 15) + (rows >= 31); }
HD u32 level_octave_of(u32 bits) {
  const u32 v = bits - (0x41800000u >> 22);
  return v < LEVEL_CONTEXTS ? v : LEVEL_CONTEXTS - 1;
}
HD u32 level_octave(u32 mean) { return level_octave_of(bits_f32((f32)(i32)(mean + 16)) >> 22); }
HD u32 level_octave_between(u32 mean, u32 above) {
  return level_octave_of((bits_f32((f32)(i32)(mean + 16)) + bits_f32((f32)(i32)(above + 16))) >> 23);
}
HD u32 level_magnitude(i32 j, u32 phase) {
  const i32 d = j - (i32)(phase >> 3), size = d < 0 ? -d : d;
  return (u32)(size < LEVEL_CAP ? size : LEVEL_CAP);
}

/* Coordinate of place p among n coded by `lanes` lanes. */
HD i64 level_place(i64 p, i64 n, int lanes, int context) {
  const i64 lane = p % lanes, left = n % lanes;
  return context ? lane * (n / lanes) + (lane < left ? lane : left) + p / lanes : p;
}

HD u32 level_model(const LevelCode* c, u32 q, u32 phase, u32 octave) {
  return (c->context ? octave >> (c->context - 1) : 0) * (u32)level_models_each(c) +
         (c->dithered ? level_bin(phase, q) >> (c->dithered - 1) : q);
}

#endif
