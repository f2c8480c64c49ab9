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
/* w of level j where a is, taken in a state of parity q by branch `bit`. */
HD i32 level_taken(i32 j, f32 a, i32 q, i32 bit, int labels) {
  return trellis_far(a) ? LEVEL_ESCAPED + 2 * bit + q : labels ? j + q * (level_sign(j) + 1) : j;
}
HD i32 level_wrap(u32 phase, u32 q, int states) { return states > 1 && phase >= 16 + 8 * q ? 2 : 0; }
HD u32 level_bin(u32 phase, u32 q) { return (phase - 8 * q) & (LEVEL_PHASES - 1); }

/* u and its phase from a random word. */
HD f32 level_dither_of(u32 word, int states) { return (f32)(i32)(word >> 8) * (states > 1 ? 0x1p-22f : 0x1p-23f); }
HD u32 level_phase(u32 word) { return word >> 27; }

/* a = x / step + u, TRELLIS_FAR where |x| / step is. */
HD f32 level_scaled(f64 v, f32 u) { return (v >= -LEVEL_FAR) & (v <= LEVEL_FAR) ? (f32)v + u : TRELLIS_FAR; }

/* w of a uniform quantiser: the even level nearest to a, or towards zero by a dead zone (in units of two levels). */
HD i32 level_uniform(f32 a, f32 dead, f32 rounding, int dithered) {
  const f32 t = (a < 0 ? -a : a) * 0.5f;
  f32 m;
  if (dithered) {
    m = nearest_f32(a * 0.5f);
  } else {
    m = nearest_f32(t + rounding - 0.5f);
    m = m < 1 ? 1 : m;
    m = t < dead ? 0 : m;
    m = a < 0 ? -m : m;
  }
  return trellis_far(a) ? LEVEL_ESCAPED : 2 * (i32)m;
}

/* Low bits of a magnitude up to LEVEL_MOST, its bucket, and back. */
HD u32 level_low_bits(u32 m) { return m < LEVEL_EXACT ? 0 : (u32)exponent_of(m) - 3; }
HD u32 level_bucket(u32 m, u32 bits) { return (m >> bits) + (bits ? 8 * bits + 8 : 0); }
/* The symbol of m', with its low bits as an extra step. What is too large, from LEVEL_EXACT on if not `wide`, escapes. */
HD u32 level_symbol(i32 m, int wide, u32* extra) {
  const i32 size = m < 0 ? -m : m;
  const u32 bits = wide ? level_low_bits((u32)size) : 0, bucket = level_bucket((u32)size, bits);
  const u32 far = size > (wide ? LEVEL_MOST : LEVEL_EXACT - 1);
  *extra = far ? 0 : entropy_extra((u32)size & ((1u << bits) - 1), bits);
  return far ? (u32)m & 1 : m < 0 ? 128 - bucket : 128 + bucket;
}
HD u32 level_bucket_bits(u32 bucket) { return bucket < LEVEL_EXACT ? 0 : (bucket >> 3) - 2; }
HD u32 level_bucket_first(u32 bucket, u32 bits) { return (bits ? 8 + (bucket & 7) : bucket) << bits; }

/* Means of magnitudes, in units of 1/1024, and their logarithm in half octaves: of one, or the middle of two. */
HD u32 level_mean(u32 mean, u32 magnitude, int gain) {
  return (u32)((i32)mean + (((i32)(magnitude << 10) - (i32)mean) >> gain));
}
HD int level_gain(i64 before) { return before < 14 ? exponent_of((u32)before + 2) : 4; }
HD int level_column_gain(i64 rows) { return rows < 31 ? exponent_of((u32)rows + 1) : 5; }
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
/* The magnitude of the nearest integer, with which contexts are guessed. */
HD u32 level_guess(f32 a) { return level_magnitude((i32)nearest_f32(a < 0 ? -a : a), 0); }

/* The lanes of a chunk; a sample, which is not sent, is cut like the whole chunks that it stands for. */
HD int level_lanes(i64 n, f64 scale) { return scale > 1 && n >= 4096 ? ENTROPY_LANES : entropy_lanes(n); }

/* Coordinate of place p among n coded by `lanes` lanes. */
HD i64 level_place(i64 p, i64 n, int lanes, int context) {
  const i64 lane = p % lanes, left = n % lanes;
  return context ? lane * (n / lanes) + (lane < left ? lane : left) + p / lanes : p;
}

/* What a coordinate adds to moments: (a - j)^2 and, for |j| = 1, 2 and more, 1 and (a - j) sign(j); zeros if escaped or
   not `here`. They are added in float32 along LEVEL_MOMENT_STEPS of a lane; such sums of all lanes fold in halves in
   float64, and those of all groups are added by the rule of reduce.h. */
enum { LEVEL_MOMENT_STEPS = 64, LEVEL_MOMENTS = 7 };
typedef struct {
  f32 of[LEVEL_MOMENTS];
} LevelMoment;
HD LevelMoment level_moment(f32 a, i32 w, int here, int labels) {
  const i32 j = level_from(w >> 1, (u32)w & 1, labels), size = j < 0 ? -j : j;
  const f32 counts = here && w >= LEVEL_ESCAPED + 4 ? 1.0f : 0.0f, d = counts > 0 ? a - (f32)j : 0.0f,
            out = j < 0 ? -d : d;
  const f32 one = size == 1 ? counts : 0.0f, two = size == 2 ? counts : 0.0f, more = size > 2 ? counts : 0.0f;
  const LevelMoment m = {{d * d, one, one * out, two, two * out, more, more * out}};
  return m;
}

/* The number that a level stands for, in steps: moved by its magnitude, or without its dither. */
HD f64 level_moved(i32 j, f64 near, f64 mid, f64 rest) {
  const i32 size = j < 0 ? -j : j;
  const f64 v = size > 0 ? size + (size > 2 ? rest : size == 2 ? mid : near) : 0;
  return j < 0 ? -v : v;
}
HD f64 level_undithered(i32 j, f32 u) { return (f64)((f32)j - u); }

/* The nearest finite value. */
HD f32 level_finite_f32(f64 v) {
  const f64 most = 3.4028234663852886e38;
  return (f32)(v > most ? most : v < -most ? -most : v);
}
HD f64 level_finite_f64(f64 v) {
  const f64 most = 1.7976931348623157e308;
  return v > most ? most : v < -most ? -most : v;
}

/* Is there more to a symbol than itself: low bits, or an escape? */
HD int level_is_more(u32 symbol) { return symbol <= 128 - LEVEL_EXACT || symbol >= 128 + LEVEL_EXACT; }

/* The next escape: a level, or a far coordinate in whole steps. far?, sign, then the exponent in Elias' gamma code and 23
   (52 where needed) bits below it. Where no encoder wrote it, at > stop. */
HD f64 level_read_escape(EntropyBits* r, int* far) {
  int n = 1, e, below, minus;
  u64 b;
  *far = (int)entropy_bits(r, 1);
  minus = (int)entropy_bits(r, 1);
  while (!entropy_bits(r, 1))
    if (++n > 11 || r->at > r->stop + 8) {
      r->at = r->stop + 9;
      return 0;
    }
  e = (int)((u64)1 << (n - 1) | entropy_bits(r, n - 1)) - 2;
  if (e < 0) return 0;
  if (e > 1023 || (e > 16 && !*far)) {
    r->at = r->stop + 9;
    return 0;
  }
  below = e < 52 ? e : 52;
  b = entropy_bits(r, below < 32 ? below : 32);
  if (below > 32) b |= entropy_bits(r, below - 32) << 32;
  b = (u64)(e + 1023) << 52 | b << (52 - below);
  return minus ? -f64_bits(b) : f64_bits(b);
}

HD u32 level_model(const LevelCode* c, u32 q, u32 phase, u32 octave) {
  return (c->context ? octave >> (c->context - 1) : 0) * (u32)level_models_each(c) +
         (c->dithered ? level_bin(phase, q) >> (c->dithered - 1) : q);
}

#endif
