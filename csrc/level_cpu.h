/* Levels to symbols and symbols to levels, a chunk at a time. */
#ifndef COMPRESS_LEVEL_CPU_H
#define COMPRESS_LEVEL_CPU_H
#include "entropy_cpu.h"
#include "level.h"
#include "philox_cpu.h"

/* What the lanes remember of magnitudes: the mean along their runs, and those of columns. */
typedef struct {
  u32 mean[ENTROPY_LANES], (*above)[ENTROPY_LANES];
} LevelPast;

static void level_forget(LevelPast* past, u32 (*above)[ENTROPY_LANES], int columns) {
  memset(past->mean, 0, sizeof past->mean);
  memset(above, 0, sizeof *above * (size_t)columns);
  past->above = above;
}

/* The octave of every lane at step t. Bits of floats are moved in one piece, or the loops would not vectorise. */
HD void level_octaves(const LevelPast* past, i64 t, int columns, int count, u32* octave) {
  f32 f[2][ENTROPY_LANES];
  u32 b[2][ENTROPY_LANES];
  int i;
  for (i = 0; i < count; ++i) f[0][i] = (f32)(i32)(past->mean[i] + 16);
  memcpy(b[0], f[0], sizeof b[0]);
  if (columns && t >= columns) {
    const u32* above = past->above[t % columns];
    for (i = 0; i < count; ++i) f[1][i] = (f32)(i32)(above[i] + 16);
    memcpy(b[1], f[1], sizeof b[1]);
    for (i = 0; i < count; ++i) octave[i] = level_octave_of((b[0][i] + b[1][i]) >> 23);
  } else
    for (i = 0; i < count; ++i) octave[i] = level_octave_of(b[0][i] >> 22);
}
HD void level_remember(LevelPast* past, i64 t, int columns, int count, const u32* magnitude) {
  const int gain = level_gain(columns ? t % columns : t), column_gain = columns ? level_column_gain(t / columns) : 0;
  u32* above = past->above[columns ? t % columns : 0];
  int i;
  for (i = 0; i < count; ++i) past->mean[i] = level_mean(past->mean[i], magnitude[i], gain);
  if (columns)
    for (i = 0; i < count; ++i) above[i] = level_mean(above[i], magnitude[i], column_gain);
}

/* w of `count` coordinates at step t -> symbols, models where there is more than one, and low bits. */
HD void level_symbols_step(const LevelCode* c, const i32* w, const u8* phase, i64 t, const int count, LevelPast* past,
                           u8* symbol, u8* model, u16* extra, const int labels, const int dithered, const int context,
                           const int wide) {
  u32 chosen[ENTROPY_LANES], low[ENTROPY_LANES], octave[ENTROPY_LANES], magnitude[ENTROPY_LANES];
  int i;
  for (i = 0; i < count; ++i) {
    const u32 q = (u32)w[i] & 1;
    chosen[i] = level_symbol((w[i] >> 1) - (dithered ? level_wrap(phase[i], q, c->states) : 0), wide, low + i);
  }
  for (i = 0; i < count; ++i) symbol[i] = (u8)chosen[i];
  if (extra)
    for (i = 0; i < count; ++i) extra[i] = (u16)low[i];
  if (context) {
    level_octaves(past, t, c->columns, count, octave);
    for (i = 0; i < count; ++i)
      magnitude[i] = level_magnitude(level_from(w[i] >> 1, (u32)w[i] & 1, labels), dithered ? phase[i] : 0);
    level_remember(past, t, c->columns, count, magnitude);
  }
  if (model)
    for (i = 0; i < count; ++i)
      model[i] = (u8)level_model(c, (u32)w[i] & 1, dithered ? phase[i] : 0, context ? octave[i] : 0);
}

/* w of n coordinates in the order of coding. Magnitudes that are too large become escapes; from LEVEL_EXACT on if there
   is no `extra`. */
HD void level_symbols(const LevelCode* code, const i32* w, const u8* phase, i64 n, const int coders,
                      u32 (*above)[ENTROPY_LANES], u8* symbol, u8* model, u16* extra, const int labels,
                      const int dithered, const int context, const int wide) {
  const LevelCode local = {code->states, labels, dithered ? code->dithered : 0, context ? code->context : 0,
                           code->columns},
                  *c = &local;
  const int lanes = context ? coders : ENTROPY_LANES;
  LevelPast past;
  i64 t, p = 0;
  level_forget(&past, above, context ? c->columns : 0);
  for (t = 0; lanes == ENTROPY_LANES && p + lanes <= n; ++t, p += lanes)
    level_symbols_step(c, w + p, phase + p, t, ENTROPY_LANES, &past, symbol + p, model ? model + p : 0,
                       extra ? extra + p : 0, labels, dithered, context, wide);
  for (; p < n; ++t, p += lanes)
    level_symbols_step(c, w + p, phase + p, t, n - p < lanes ? (int)(n - p) : lanes, &past, symbol + p,
                       model ? model + p : 0, extra ? extra + p : 0, labels, dithered, context, wide);
}

typedef struct {
  EntropyReader reader;
  LevelPast past;
  u32 state[ENTROPY_LANES];
} LevelReader;

/* One symbol of `count` lanes; false where words are missing. */
HD int level_take_step(LevelReader* r, const LevelCode* c, i64 t, const u32* table, const u8* phase, int count,
                       i32* level) {
  u32 octave[ENTROPY_LANES], q[ENTROPY_LANES], symbol[ENTROPY_LANES], bucket[ENTROPY_LANES], bits[ENTROPY_LANES],
      magnitude[ENTROPY_LANES], any = 0;
  int i;
  if (!entropy_refill(&r->reader)) return 0;
  if (c->context) level_octaves(&r->past, t, c->columns, count, octave);
  for (i = 0; i < count; ++i) {
    q[i] = c->states > 1 ? trellis_q(r->state[i], c->states) : 0;
    symbol[i] = entropy_take1(r->reader.x + i * r->reader.stride,
                              table + ENTROPY_SLOTS *
                                          level_model(c, q[i], c->dithered ? phase[i] : 0, c->context ? octave[i] : 0),
                              &r->reader.word) &
                255;
    bucket[i] = symbol[i] < 2 ? 0 : symbol[i] < 128 ? 128 - symbol[i] : symbol[i] - 128;
    bits[i] = level_bucket_bits(bucket[i]);
    any |= bits[i];
  }
  if (any && !entropy_refill(&r->reader)) return 0;
  for (i = 0; i < count; ++i) {
    const u32 ph = c->dithered ? phase[i] : 0, out = symbol[i] < 2;
    const u32 low = any ? entropy_take_low(r->reader.x + i * r->reader.stride, bits[i], &r->reader.word) : 0;
    const i32 size = (i32)(level_bucket_first(bucket[i], bits[i]) | low);
    const i32 m = (symbol[i] < 128 ? -size : size) + (c->dithered ? level_wrap(ph, q[i], c->states) : 0);
    const u32 bit = out ? symbol[i] : (u32)m & 1;
    const i32 j = level_from(m, q[i], c->labels);
    level[i] = out ? LEVEL_ESCAPED + (i32)(2 * bit + q[i]) : j;
    magnitude[i] = out ? LEVEL_CAP : level_magnitude(j, ph);
    if (c->states > 1) r->state[i] = trellis_next(r->state[i], bit, c->states);
  }
  if (c->context) level_remember(&r->past, t, c->columns, count, magnitude);
  return 1;
}

#ifdef ENTROPY_VECTOR
HD __m512i level_parity16(__m512i s, u32 polynomial) {
  s = _mm512_and_si512(s, _mm512_set1_epi32((int)polynomial));
  s = _mm512_xor_si512(s, _mm512_srli_epi32(s, 8));
  s = _mm512_xor_si512(s, _mm512_srli_epi32(s, 4));
  s = _mm512_xor_si512(s, _mm512_srli_epi32(s, 2));
  s = _mm512_xor_si512(s, _mm512_srli_epi32(s, 1));
  return _mm512_and_si512(s, _mm512_set1_epi32(1));
}

typedef struct {
  __m512i q, phase, symbol, bucket, bits;
} Level16;

HD __m512i level_logarithm16(__m512i mean) {
  return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_add_epi32(mean, _mm512_set1_epi32(16))));
}
HD __m512i level_octave16(__m512i bits) {
  return _mm512_min_epu32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x41800000 >> 22)),
                          _mm512_set1_epi32(LEVEL_CONTEXTS - 1));
}
HD __m512i level_mean16(__m512i mean, __m512i magnitude, int gain) {
  return _mm512_add_epi32(
      mean, _mm512_sra_epi32(_mm512_sub_epi32(_mm512_slli_epi32(magnitude, 10), mean), _mm_cvtsi32_si128(gain)));
}

HD void level_symbol16(Level16* l, __m512i* x, __m512i state, __m512i octave, const LevelCode* c, const u32* table,
                       const u8* phase, const u8** word, const __mmask16 here) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i model;
  l->q = c->states > 1 ? level_parity16(state, trellis_parity_polynomial(c->states)) : zero;
  l->phase = c->dithered ? entropy_bytes(phase) : zero;
  model = l->q;
  if (c->dithered)
    model = _mm512_srl_epi32(
        _mm512_and_si512(_mm512_sub_epi32(l->phase, _mm512_slli_epi32(l->q, 3)), _mm512_set1_epi32(LEVEL_PHASES - 1)),
        _mm_cvtsi32_si128(c->dithered - 1));
  if (c->context)
    model = _mm512_add_epi32(model, _mm512_mullo_epi32(_mm512_srl_epi32(octave, _mm_cvtsi32_si128(c->context - 1)),
                                                       _mm512_set1_epi32(level_models_each(c))));
  model = _mm512_or_si512(_mm512_slli_epi32(model, ENTROPY_PRECISION),
                          _mm512_and_si512(*x, _mm512_set1_epi32(ENTROPY_SLOTS - 1)));
  l->symbol = _mm512_and_si512(entropy_take16(x, _mm512_i32gather_epi32(model, (const int*)table, 4), word, here),
                               _mm512_set1_epi32(255));
  l->bucket = _mm512_abs_epi32(_mm512_sub_epi32(l->symbol, _mm512_set1_epi32(128)));
  l->bucket = _mm512_maskz_mov_epi32(_mm512_cmpgt_epi32_mask(l->symbol, _mm512_set1_epi32(1)), l->bucket);
  l->bits = _mm512_maskz_sub_epi32(_mm512_mask_cmpge_epi32_mask(here, l->bucket, _mm512_set1_epi32(LEVEL_EXACT)),
                                   _mm512_srli_epi32(l->bucket, 3), _mm512_set1_epi32(2));
}

HD __m512i level_low16(__m512i* x, __m512i shift, const u8** word, const __mmask16 here) {
  const __m512i s = _mm512_and_si512(*x, _mm512_set1_epi32(ENTROPY_SLOTS - 1)),
                left = _mm512_sub_epi32(_mm512_set1_epi32(ENTROPY_PRECISION), shift), low = _mm512_srlv_epi32(s, left),
                offset = _mm512_sub_epi32(s, _mm512_sllv_epi32(low, left)),
                f1 = _mm512_sub_epi32(_mm512_srlv_epi32(_mm512_set1_epi32(ENTROPY_SLOTS), shift), _mm512_set1_epi32(1));
  entropy_take16(x, _mm512_or_si512(_mm512_slli_epi32(f1, 8), _mm512_slli_epi32(offset, 20)), word, here);
  return low;
}

HD __m512i level_finish16(const Level16* l, __m512i low, int any, __m512i* state, __m512i* magnitude,
                          const LevelCode* c) {
  const __m512i one = _mm512_set1_epi32(1), zero = _mm512_setzero_si512();
  const __mmask16 out = _mm512_cmplt_epi32_mask(l->symbol, _mm512_set1_epi32(2));
  const __mmask16 minus = _mm512_cmplt_epi32_mask(l->symbol, _mm512_set1_epi32(128));
  __m512i m = l->bucket, j, bit;
  if (any) {
    const __mmask16 large = _mm512_test_epi32_mask(l->bits, l->bits);
    const __m512i first = _mm512_or_si512(_mm512_and_si512(m, _mm512_set1_epi32(7)), _mm512_set1_epi32(8));
    m = _mm512_mask_or_epi32(m, large, _mm512_sllv_epi32(first, l->bits), low);
  }
  m = _mm512_mask_sub_epi32(m, minus, zero, m);
  if (c->dithered && c->states > 1) {
    const __m512i from = _mm512_add_epi32(_mm512_set1_epi32(16), _mm512_slli_epi32(l->q, 3));
    m = _mm512_mask_add_epi32(m, _mm512_cmpge_epi32_mask(l->phase, from), m, _mm512_set1_epi32(2));
  }
  j = _mm512_add_epi32(m, m);
  if (c->labels) {
    const __mmask16 odd = _mm512_test_epi32_mask(l->q, l->q);
    j = _mm512_mask_sub_epi32(j, odd & _mm512_cmpgt_epi32_mask(m, zero), j, one);
    j = _mm512_mask_add_epi32(j, odd & _mm512_cmplt_epi32_mask(m, zero), j, one);
  } else j = _mm512_add_epi32(j, l->q);
  bit = _mm512_mask_mov_epi32(_mm512_and_si512(m, one), out, l->symbol);
  if (c->context) {
    *magnitude = _mm512_min_epi32(_mm512_abs_epi32(_mm512_sub_epi32(j, _mm512_srli_epi32(l->phase, 3))),
                                  _mm512_set1_epi32(LEVEL_CAP));
    *magnitude = _mm512_mask_mov_epi32(*magnitude, out, _mm512_set1_epi32(LEVEL_CAP));
  }
  if (c->states > 1) {
    const u32 polynomial = trellis_branch_polynomial(c->states) & ((u32)c->states - 1);
    const __m512i b = _mm512_xor_si512(bit, level_parity16(*state, polynomial));
    *state = _mm512_or_si512(_mm512_srli_epi32(*state, 1), _mm512_mullo_epi32(b, _mm512_set1_epi32(c->states >> 1)));
  }
  return _mm512_mask_add_epi32(j, out, _mm512_set1_epi32(LEVEL_ESCAPED),
                               _mm512_add_epi32(_mm512_add_epi32(bit, bit), l->q));
}

#endif

/* Whole steps of all lanes while there are 128 bytes to read; returns the next step. With 16 lanes or fewer there is one
   vector, of which more is written than is `here`: what follows goes there later. */
HD i64 level_take_steps(LevelReader* r, const LevelCode* c, i64 t, i64 steps, int lanes, const u32* table,
                        const u8* phase, i32* level, const int vectors) {
#ifdef ENTROPY_VECTOR
  const u16 here = vectors == 2 ? 0xffff : (u16)((1u << lanes) - 1);
  const u8* word = r->reader.word;
  const i64 columns = c->context ? c->columns : 0;
  i64 column = columns ? t % columns : t, row = columns ? t / columns : 0;
  __m512i x[2], state[2], mean[2];
  int i;
  for (i = 0; i < 2; ++i) {
    x[i] = _mm512_loadu_si512(r->reader.x + 16 * i);
    state[i] = _mm512_loadu_si512(r->state + 16 * i);
    mean[i] = _mm512_loadu_si512(r->past.mean + 16 * i);
  }
  for (; t < steps && r->reader.stop - word >= 4 * ENTROPY_LANES; ++t) {
    const i64 p = t * (vectors == 2 ? ENTROPY_LANES : lanes);
    u32* const above = r->past.above[columns ? column : 0];
    Level16 l[2];
    __m512i low[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, octave[2] = {low[0], low[0]}, magnitude[2];
    int any;
    if (c->context)
#pragma GCC unroll 2
      for (i = 0; i < vectors; ++i) {
        const __m512i bits = level_logarithm16(mean[i]);
        octave[i] = level_octave16(
            row ? _mm512_srli_epi32(_mm512_add_epi32(bits, level_logarithm16(_mm512_loadu_si512(above + 16 * i))), 23)
                : _mm512_srli_epi32(bits, 22));
      }
#pragma GCC unroll 2
    for (i = 0; i < vectors; ++i)
      level_symbol16(l + i, x + i, state[i], octave[i], c, table, c->dithered ? phase + p + 16 * i : 0, &word, here);
    any = _mm512_test_epi32_mask(vectors == 2 ? _mm512_or_si512(l[0].bits, l[1].bits) : l[0].bits,
                                 _mm512_set1_epi32(15)) != 0;
    if (any)
#pragma GCC unroll 2
      for (i = 0; i < vectors; ++i) low[i] = level_low16(x + i, l[i].bits, &word, here);
#pragma GCC unroll 2
    for (i = 0; i < vectors; ++i)
      _mm512_storeu_si512(level + p + 16 * i, level_finish16(l + i, low[i], any, state + i, magnitude + i, c));
    if (c->context) {
      const int gain = level_gain(column), column_gain = level_column_gain(row);
#pragma GCC unroll 2
      for (i = 0; i < vectors; ++i) {
        mean[i] = level_mean16(mean[i], magnitude[i], gain);
        if (columns)
          _mm512_storeu_si512(above + 16 * i,
                              level_mean16(_mm512_loadu_si512(above + 16 * i), magnitude[i], column_gain));
      }
      if (++column == columns) column = 0, ++row;
    }
  }
  for (i = 0; i < 2; ++i) {
    _mm512_storeu_si512(r->reader.x + 16 * i, x[i]);
    _mm512_storeu_si512(r->state + 16 * i, state[i]);
    _mm512_storeu_si512(r->past.mean + 16 * i, mean[i]);
  }
  r->reader.word = word;
#else
  (void)r, (void)c, (void)steps, (void)lanes, (void)table, (void)phase, (void)level, (void)vectors;
#endif
  return t;
}

/* n levels of a chunk at `data`, in the order of coding. */
HD EntropyFault level_decode(const u8* data, i64 size, u32 entry, i64 n, const LevelCode* code, const u32* table,
                             const u8* phase, u32 (*above)[ENTROPY_LANES], i32* level, const int states,
                             const int labels, const int dithered, const int context) {
  const LevelCode local = {states, labels, dithered ? code->dithered : 0, context ? code->context : 0, code->columns},
                  *c = &local;
  const int lanes = entropy_lanes(n);
  const i64 tail = entropy_tail(entry), steps = ceil_div(n, lanes), whole = steps - tail;
  LevelReader r;
  i64 t = 0;
  EntropyFault fault = entropy_open(&r.reader, data, size, entry, lanes);
  if (fault != ENTROPY_FINE) return fault;
  if (whole < 0) return ENTROPY_DAMAGED;
  level_forget(&r.past, above, context ? c->columns : 0);
  memset(r.state, 0, sizeof r.state);
  for (; t < steps; ++t) {
    if (t < whole && lanes == ENTROPY_LANES)
      t = level_take_steps(&r, c, t, tail ? whole : n / lanes, lanes, table, phase, level, 2);
    else if (t < whole && lanes > 2 && !context) /* with contexts it would be as much code again */
      t = level_take_steps(&r, c, t, tail ? whole : n / lanes, lanes, table, phase, level, 1);
    if (tail && t == whole && (fault = entropy_open_tail(&r.reader, lanes)) != ENTROPY_FINE) return fault;
    if (t * lanes < n && !level_take_step(&r, c, t, table, dithered ? phase + t * lanes : 0,
                                          n - t * lanes < lanes ? (int)(n - t * lanes) : lanes, level + t * lanes))
      return ENTROPY_TRUNCATED;
  }
  return entropy_close(&r.reader);
}

/* The two with the code's parameters as constants where that is worth an instance. */
static void level_symbols_of(const LevelCode* c, const i32* w, const u8* phase, i64 n, int lanes,
                             u32 (*above)[ENTROPY_LANES], u8* symbol, u8* model, u16* extra) {
#define CALL(labels, dithered, context)                                                                                \
  if (extra) level_symbols(c, w, phase, n, lanes, above, symbol, model, extra, labels, dithered, context, 1);          \
  else level_symbols(c, w, phase, n, lanes, above, symbol, model, 0, labels, dithered, context, 0)
  if (c->dithered && c->context) CALL(0, 1, 1);
  else if (c->dithered) CALL(0, 1, 0);
  else if (c->labels && c->context) CALL(1, 0, 1);
  else if (c->context) CALL(0, 0, 1);
  else CALL(0, 0, 0); /* without context labels make no difference */
#undef CALL
}

static EntropyFault level_decode_of(const u8* data, i64 size, u32 entry, i64 n, const LevelCode* c, const u32* table,
                                    const u8* phase, u32 (*above)[ENTROPY_LANES], i32* level) {
#define CALL(states, labels, dithered, context)                                                                        \
  return level_decode(data, size, entry, n, c, table, phase, above, level, states, labels, dithered, context)
  if (c->context) {
    if (c->dithered) CALL(c->states, 0, 1, 1);
    if (c->labels) CALL(c->states, 1, 0, 1);
    CALL(c->states, 0, 0, 1);
  }
  if (c->dithered && c->states == 1) CALL(1, 0, 1, 0);
  if (c->dithered && c->states == 8) CALL(8, 0, 1, 0);
  if (c->dithered) CALL(c->states, 0, 1, 0);
  if (c->states == 1) CALL(1, 0, 0, 0);
  if (c->labels) CALL(c->states, 1, 0, 0);
  if (c->states == 8) CALL(8, 0, 0, 0);
  CALL(c->states, 0, 0, 0);
#undef CALL
}

HD void level_compare(const u8* restrict at, const u8 wanted, u8* restrict seen) {
  int l;
  for (l = 0; l < 64; ++l) seen[l] = (u8)(seen[l] + (at[l] == wanted ? 1 : 0));
}

/* count[model][symbol] += their numbers, for one model or two of few symbols: 64 symbols at once are compared with each
   of those in use. False, and nothing counted, where these are too many. */
static int level_count_few(const u8* restrict symbol, const u8* restrict model, i64 n, const int models,
                           u32* restrict count) {
  enum { WIDTH = 64, ROWS = 64, MOST = 16 };
  u8 least = 255, most = 0, key[ROWS * WIDTH], seen[2 * MOST][WIDTH];
  i64 p, first;
  int m, v, l;
  if (models > 2) return 0;
  for (p = 0; p < n; ++p) least = symbol[p] < least ? symbol[p] : least;
  for (p = 0; p < n; ++p) most = symbol[p] > most ? symbol[p] : most;
  if (n == 0 || most - least >= MOST || least < 64 || most >= 192) return 0; /* bit 7 of symbol - 64 is clear */
  for (first = 0; first + WIDTH <= n; first += ROWS * WIDTH) {
    const int rows = n - first < ROWS * WIDTH ? (int)((n - first) / WIDTH) : ROWS;
    const u8* at = symbol + first;
    int r;
    if (models == 2) {
      for (l = 0; l < rows * WIDTH; ++l) key[l] = (u8)((at[l] - 64) | model[first + l] << 7);
      at = key;
    }
    memset(seen, 0, sizeof seen);
    for (r = 0; r < rows; ++r)
      for (m = 0; m < models; ++m)
        for (v = 0; v <= most - least; ++v)
          level_compare(at + r * WIDTH, (u8)(models == 2 ? (least + v - 64) | m << 7 : least + v), seen[MOST * m + v]);
    for (m = 0; m < models; ++m)
      for (v = 0; v <= most - least; ++v) {
        u32 sum = 0;
        for (l = 0; l < WIDTH; ++l) sum += seen[MOST * m + v][l];
        count[256 * m + least + v] += sum;
      }
  }
  for (p = n - n % WIDTH; p < n; ++p) ++count[(models == 2 ? 256 * model[p] : 0) + symbol[p]];
  return 1;
}

/* Sums of moments by groups of steps (level.h), sum[k][group], of `lanes` lanes in rows of `stride`. */
static inline void level_moments_of(const f32* a, const i32* w, i64 steps, int stride, int lanes, i64 n, int labels,
                                    f64* sum, i64 groups) {
  f32 part[LEVEL_MOMENTS][ENTROPY_LANES];
  f64 lane[ENTROPY_LANES];
  i64 t, first;
  int i, k, half;
  for (first = 0; first < steps; first += LEVEL_MOMENT_STEPS, ++sum) {
    memset(part, 0, sizeof part);
    for (t = first; t < steps && t < first + LEVEL_MOMENT_STEPS; ++t) {
      const f32* v = a + t * stride;
      const i32* wt = w + t * stride;
      const int count = n - t * lanes < lanes ? (int)(n - t * lanes) : lanes;
      for (i = 0; i < stride; ++i) {
        const LevelMoment m = level_moment(v[i], wt[i], i < count, labels);
        part[0][i] += m.of[0];
        part[1][i] += m.of[1];
        part[2][i] += m.of[2];
        part[3][i] += m.of[3];
        part[4][i] += m.of[4];
        part[5][i] += m.of[5];
        part[6][i] += m.of[6];
      }
    }
    for (k = 0; k < LEVEL_MOMENTS; ++k) {
      for (i = 0; i < ENTROPY_LANES; ++i) lane[i] = part[k][i];
      for (half = ENTROPY_LANES / 2; half; half /= 2)
        for (i = 0; i < half; ++i) lane[i] += lane[i + half];
      sum[k * groups] = lane[0];
    }
  }
}

static void level_moments(const f32* a, const i32* w, i64 steps, int stride, int lanes, i64 n, int labels, f64* sum,
                          i64 groups) {
  switch (stride) { /* a constant, or loops are not vectors */
    case 32: level_moments_of(a, w, steps, 32, lanes, n, labels, sum, groups); break;
    case 16: level_moments_of(a, w, steps, 16, lanes, n, labels, sum, groups); break;
    case 8: level_moments_of(a, w, steps, 8, lanes, n, labels, sum, groups); break;
    case 4: level_moments_of(a, w, steps, 4, lanes, n, labels, sum, groups); break;
    case 2: level_moments_of(a, w, steps, 2, lanes, n, labels, sum, groups); break;
    case 1: level_moments_of(a, w, steps, 1, lanes, n, labels, sum, groups); break;
  }
}

/* Subtractive dither of n coordinates from `first` on, a multiple of 128: u uniform on [0, 4), or [0, 2) with one state,
   and its phase. Room for whole 128s. */
static void level_dither(u64 first, i64 n, u64 key, int states, f32* u, u8* phase) {
  u32 word[4 * CALLS];
  i64 p;
  int i;
  for (p = 0; p < n; p += 4 * CALLS) {
    philox_calls((first + (u64)p) / 4, STREAM_SUBTRACT, key, word);
    for (i = 0; i < 4 * CALLS; ++i) u[p + i] = level_dither_of(word[i], states);
    for (i = 0; i < 4 * CALLS; ++i) phase[p + i] = (u8)level_phase(word[i]);
  }
}

#endif
