/* Integer levels as symbols of the entropy coder: which model, which symbol, how many low bits.

   A. A level j belongs to a state of a trellis code (trellis.h; with one state the quantiser is uniform and j even).
      Given the parity q that the state allows it is told by m, with j = 2 m + q, or with the labels of Versatile Video
      Coding j = 2 m - sign(m) where q = 1: then zero is a level of every state, which sparse vectors need. Bit 0 of m
      is the branch taken.
   B. With subtractive dither, u uniform on [0, 4) and known to both sides, the level nearest to x + u is coded as the
      distance of 2 m + q - u from zero: m' = m - wrap. Its distribution depends on where the levels of this parity lie
      around zero, (u - q) mod 2, in 16 bins: a model each. `phase` is floor(8 u).
   C. With context every lane keeps the decayed sum a <- 27/32 a + 64 |j| of what it coded before, and the model follows
      log2(a) in half octaves. To have neighbours close, a lane then owns a run of coordinates (level_place) and not
      every 32nd. Where a is large the low bits of m are left to extra steps (entropy.h, E): alphabets stay small.
   D. Symbols: m' >> shift + 128 for 2..255, and 0, 1 for an escape that takes branch 0, 1. Escaped levels follow in a
      string of bits; for the context they count as 256 << shift. */
#ifndef COMPRESS_LEVEL_H
#define COMPRESS_LEVEL_H
#include "entropy.h"
#include "trellis.h"

enum {
  LEVEL_CONTEXTS = 48,
  LEVEL_PHASES = 16,
  LEVEL_LARGEST_SHIFT = 12,
  LEVEL_ESCAPED = -(1 << 30), /* plus the branch */
  LEVEL_FAR = 250             /* in units of 1 << shift: levels beyond are escaped */
};

typedef struct {
  int states, labels, dithered;
  int context; /* 0, or 1 + log2 of half octaves a model */
  int shift;   /* of all levels, where context = 0 */
} LevelCode;

HD int level_models_each(const LevelCode* c) { return c->dithered ? LEVEL_PHASES : c->states > 1 ? 2 : 1; }
HD int level_models(const LevelCode* c) {
  return level_models_each(c) * (c->context ? ((LEVEL_CONTEXTS - 1) >> (c->context - 1)) + 1 : 1);
}

HD u32 level_parity(u32 state, int states) { return states > 1 ? trellis_q(state, states) : 0; }
HD i32 level_sign(i32 m) { return (m > 0) - (m < 0); }
HD i32 level_from(i32 m, u32 q, int labels) { return 2 * m + (q ? labels ? -level_sign(m) : 1 : 0); }
HD i32 level_index(i32 j, u32 q, int labels) { return q && labels ? (j + level_sign(j)) / 2 : (j - (i32)q) >> 1; }
HD i32 level_wrap(u32 phase, u32 q) { return (i32)(phase + 8 - 8 * q) >> 4; }
HD u32 level_bin(u32 phase, u32 q) { return (phase - 8 * q) & 15; }

/* Half octaves of the decayed sum of magnitudes. */
HD u32 level_octave(u32 sum) {
  const u32 v = (bits_f32((f32)(sum + 8)) >> 22) - (0x41000000u >> 22);
  return v < LEVEL_CONTEXTS ? v : LEVEL_CONTEXTS - 1;
}
HD u32 level_decay(u32 sum, u32 magnitude) { return (sum * 27 >> 5) + ((magnitude < 32768 ? magnitude : 32768) << 6); }
HD u32 level_shift(const LevelCode* c, u32 octave) {
  const u32 s = octave > 20 ? (octave - 20) >> 1 : 0;
  return !c->context ? (u32)c->shift : s < LEVEL_LARGEST_SHIFT ? s : LEVEL_LARGEST_SHIFT;
}
HD u32 level_magnitude(i32 j, u32 phase) {
  const i32 d = j - (i32)(phase >> 3);
  return (u32)(d < 0 ? -d : d);
}

/* Coordinate of place p among n coded by `lanes` lanes. */
HD i64 level_place(i64 p, i64 n, int lanes, int context) {
  const i64 lane = p % lanes, left = n % lanes;
  return context ? lane * (n / lanes) + (lane < left ? lane : left) + p / lanes : p;
}

/* A lane between two levels. */
typedef struct {
  u32 state, sum;
} LevelLane;

HD u32 level_model(const LevelCode* c, u32 q, u32 phase, u32 octave) {
  const u32 each = (u32)level_models_each(c), inner = c->dithered ? level_bin(phase, q) : q;
  return (c->context ? octave >> (c->context - 1) : 0) * each + inner;
}
HD void level_step(const LevelCode* c, LevelLane* lane, u32 bit, u32 magnitude) {
  if (c->states > 1) lane->state = trellis_next(lane->state, bit, c->states);
  if (c->context) lane->sum = level_decay(lane->sum, magnitude);
}

#endif
