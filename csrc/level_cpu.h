/* Levels to symbols and symbols to levels, a chunk at a time. */
#ifndef COMPRESS_LEVEL_CPU_H
#define COMPRESS_LEVEL_CPU_H
#include "entropy_cpu.h"
#include "level.h"
#include "philox_cpu.h"

/* n levels in the order of coding (LEVEL_ESCAPED plus a branch where one is to be escaped) -> symbols, models, and the
   low bits where any are left out. Levels that do not fit become escapes, and are counted. */
HD i64 level_symbols(const LevelCode* code, const i32* level, const u8* phase, i64 n, u8* symbol, u8* model, u16* extra,
                     const int states, const int labels, const int dithered, const int context) {
  const LevelCode local = {states, labels, dithered, context ? code->context : 0, code->shift}, *c = &local;
  const int lanes = entropy_lanes(n);
  LevelLane lane[ENTROPY_LANES];
  i64 p, escapes = 0;
  int i;
  memset(lane, 0, sizeof lane);
  for (p = 0; p < n; p += lanes) {
    const int count = n - p < lanes ? (int)(n - p) : lanes;
    u32 chosen[ENTROPY_LANES], which[ENTROPY_LANES], low[ENTROPY_LANES];
    for (i = 0; i < count; ++i) {
      const u32 q = level_parity(lane[i].state, states), ph = dithered ? phase[p + i] : 0;
      const u32 octave = context ? level_octave(lane[i].sum) : 0, shift = level_shift(c, octave);
      const i32 j = level[p + i], m = level_index(j, q, labels), coded = m - (dithered ? level_wrap(ph, q) : 0);
      const i32 hi = (coded >> shift) + 128;
      const u32 far = j < LEVEL_ESCAPED + 2, out = far || hi < 2 || hi > 255;
      const u32 bit = far ? (u32)(j - LEVEL_ESCAPED) : (u32)m & 1;
      which[i] = level_model(c, q, ph, octave);
      chosen[i] = out ? bit : (u32)hi;
      low[i] = entropy_extra(out ? 0 : (u32)coded & ((1u << shift) - 1), shift);
      escapes += out;
      level_step(c, lane + i, bit, out ? 256u << shift : level_magnitude(j, ph));
    }
    for (i = 0; i < count; ++i) symbol[p + i] = (u8)chosen[i];
    if (model)
      for (i = 0; i < count; ++i) model[p + i] = (u8)which[i];
    if (extra)
      for (i = 0; i < count; ++i) extra[p + i] = (u16)low[i];
  }
  return escapes;
}

typedef struct {
  EntropyReader reader;
  LevelLane lane[ENTROPY_LANES];
} LevelReader;

/* One symbol of `count` lanes. */
HD int level_take_step(LevelReader* r, const LevelCode* c, const u32* table, const u8* phase, int count, i32* level) {
  u32 shift[ENTROPY_LANES], q[ENTROPY_LANES], symbol[ENTROPY_LANES], any = 0;
  int i;
  if (!entropy_refill(&r->reader)) return 0;
  for (i = 0; i < count; ++i) {
    const u32 octave = c->context ? level_octave(r->lane[i].sum) : 0;
    q[i] = level_parity(r->lane[i].state, c->states);
    shift[i] = level_shift(c, octave);
    any |= shift[i];
    symbol[i] =
        entropy_take1(r->reader.x + i, table + ENTROPY_SLOTS * level_model(c, q[i], c->dithered ? phase[i] : 0, octave),
                      &r->reader.word) &
        255;
  }
  if (any && !entropy_refill(&r->reader)) return 0;
  for (i = 0; i < count; ++i) {
    const u32 ph = c->dithered ? phase[i] : 0, out = symbol[i] < 2;
    const u32 low = any ? entropy_take_low(r->reader.x + i, shift[i], &r->reader.word) : 0;
    const i32 m = (i32)(symbol[i] - 128) * (i32)(1u << shift[i]) + (i32)low + (c->dithered ? level_wrap(ph, q[i]) : 0);
    const i32 j = level_from(m, q[i], c->labels);
    const u32 bit = out ? symbol[i] : (u32)m & 1;
    level[i] = out ? LEVEL_ESCAPED + (i32)bit : j;
    level_step(c, r->lane + i, bit, out ? 256u << shift[i] : level_magnitude(j, ph));
  }
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
  __m512i q, phase, octave, shift, symbol;
} Level16;

HD void level_symbol16(Level16* l, __m512i* x, __m512i state, __m512i sum, const LevelCode* c, const u32* table,
                       const u8* phase, const u8** word) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i model;
  l->q = c->states > 1 ? level_parity16(state, trellis_parity_polynomial(c->states)) : zero;
  l->phase = c->dithered ? entropy_bytes(phase) : zero;
  l->octave = zero;
  l->shift = _mm512_set1_epi32(c->shift);
  model = c->dithered ? _mm512_and_si512(_mm512_sub_epi32(l->phase, _mm512_slli_epi32(l->q, 3)), _mm512_set1_epi32(15))
                      : l->q;
  if (c->context) {
    const __m512 f = _mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(8)));
    const __m128i wide = _mm_cvtsi32_si128(c->context - 1);
    const __m512i each = _mm512_set1_epi32(level_models_each(c));
    l->octave = _mm512_min_epu32(
        _mm512_sub_epi32(_mm512_srli_epi32(_mm512_castps_si512(f), 22), _mm512_set1_epi32(0x41000000 >> 22)),
        _mm512_set1_epi32(LEVEL_CONTEXTS - 1));
    l->shift = _mm512_min_epi32(
        _mm512_srai_epi32(_mm512_max_epi32(_mm512_sub_epi32(l->octave, _mm512_set1_epi32(20)), zero), 1),
        _mm512_set1_epi32(LEVEL_LARGEST_SHIFT));
    model = _mm512_add_epi32(model, _mm512_mullo_epi32(_mm512_srl_epi32(l->octave, wide), each));
  }
  model = _mm512_or_si512(_mm512_slli_epi32(model, ENTROPY_PRECISION),
                          _mm512_and_si512(*x, _mm512_set1_epi32(ENTROPY_SLOTS - 1)));
  l->symbol = _mm512_and_si512(entropy_take16(x, _mm512_i32gather_epi32(model, (const int*)table, 4), word),
                               _mm512_set1_epi32(255));
}

HD __m512i level_low16(__m512i* x, __m512i shift, const u8** word) {
  const __m512i s = _mm512_and_si512(*x, _mm512_set1_epi32(ENTROPY_SLOTS - 1)),
                left = _mm512_sub_epi32(_mm512_set1_epi32(ENTROPY_PRECISION), shift), low = _mm512_srlv_epi32(s, left),
                offset = _mm512_sub_epi32(s, _mm512_sllv_epi32(low, left)),
                f1 = _mm512_sub_epi32(_mm512_srlv_epi32(_mm512_set1_epi32(ENTROPY_SLOTS), shift), _mm512_set1_epi32(1));
  entropy_take16(x, _mm512_or_si512(_mm512_slli_epi32(f1, 8), _mm512_slli_epi32(offset, 20)), word);
  return low;
}

HD __m512i level_finish16(const Level16* l, __m512i low, __m512i* state, __m512i* sum, const LevelCode* c) {
  const __m512i one = _mm512_set1_epi32(1), zero = _mm512_setzero_si512();
  const __mmask16 out = _mm512_cmplt_epi32_mask(l->symbol, _mm512_set1_epi32(2));
  __m512i m = _mm512_add_epi32(_mm512_sllv_epi32(_mm512_sub_epi32(l->symbol, _mm512_set1_epi32(128)), l->shift), low);
  __m512i j, bit;
  if (c->dithered)
    m = _mm512_add_epi32(
        m, _mm512_srai_epi32(
               _mm512_sub_epi32(_mm512_add_epi32(l->phase, _mm512_set1_epi32(8)), _mm512_slli_epi32(l->q, 3)), 4));
  j = _mm512_add_epi32(m, m);
  if (c->labels) {
    const __mmask16 odd = _mm512_test_epi32_mask(l->q, l->q);
    j = _mm512_mask_sub_epi32(j, odd & _mm512_cmpgt_epi32_mask(m, zero), j, one);
    j = _mm512_mask_add_epi32(j, odd & _mm512_cmplt_epi32_mask(m, zero), j, one);
  } else j = _mm512_add_epi32(j, l->q);
  bit = _mm512_mask_mov_epi32(_mm512_and_si512(m, one), out, l->symbol);
  if (c->context) {
    __m512i magnitude = _mm512_abs_epi32(_mm512_sub_epi32(j, _mm512_srli_epi32(l->phase, 3)));
    magnitude = _mm512_mask_mov_epi32(magnitude, out, _mm512_sllv_epi32(_mm512_set1_epi32(256), l->shift));
    magnitude = _mm512_min_epu32(magnitude, _mm512_set1_epi32(32768));
    *sum = _mm512_add_epi32(_mm512_srli_epi32(_mm512_mullo_epi32(*sum, _mm512_set1_epi32(27)), 5),
                            _mm512_slli_epi32(magnitude, 6));
  }
  if (c->states > 1) {
    const u32 polynomial = trellis_branch_polynomial(c->states) & ((u32)c->states - 1);
    const __m512i b = _mm512_xor_si512(bit, level_parity16(*state, polynomial));
    *state = _mm512_or_si512(_mm512_srli_epi32(*state, 1), _mm512_mullo_epi32(b, _mm512_set1_epi32(c->states >> 1)));
  }
  return _mm512_mask_add_epi32(j, out, _mm512_set1_epi32(LEVEL_ESCAPED), bit);
}
#endif

/* Whole steps of 32 lanes while there are 128 bytes to read; returns the next step. */
HD i64 level_take_steps(LevelReader* r, const LevelCode* c, i64 t, i64 steps, const u32* table, const u8* phase,
                        i32* level) {
#ifdef ENTROPY_VECTOR
  const u8 *word = r->reader.word, *const stop = r->reader.stop - 4 * ENTROPY_LANES;
  __m512i x[2], state[2], sum[2];
  i32 lanes[2][ENTROPY_LANES];
  int i;
  for (i = 0; i < ENTROPY_LANES; ++i) lanes[0][i] = (i32)r->lane[i].state, lanes[1][i] = (i32)r->lane[i].sum;
  for (i = 0; i < 2; ++i) {
    x[i] = _mm512_loadu_si512(r->reader.x + 16 * i);
    state[i] = _mm512_loadu_si512(lanes[0] + 16 * i);
    sum[i] = _mm512_loadu_si512(lanes[1] + 16 * i);
  }
  for (; t < steps && word <= stop; ++t) {
    const i64 p = t * ENTROPY_LANES;
    Level16 l[2];
    __m512i low[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
#pragma GCC unroll 2
    for (i = 0; i < 2; ++i)
      level_symbol16(l + i, x + i, state[i], sum[i], c, table, c->dithered ? phase + p + 16 * i : 0, &word);
    if (c->context ? _mm512_test_epi32_mask(_mm512_or_si512(l[0].shift, l[1].shift), _mm512_set1_epi32(15)) != 0
                   : c->shift != 0)
#pragma GCC unroll 2
      for (i = 0; i < 2; ++i) low[i] = level_low16(x + i, l[i].shift, &word);
#pragma GCC unroll 2
    for (i = 0; i < 2; ++i)
      _mm512_storeu_si512(level + p + 16 * i, level_finish16(l + i, low[i], state + i, sum + i, c));
  }
  for (i = 0; i < 2; ++i) {
    _mm512_storeu_si512(r->reader.x + 16 * i, x[i]);
    _mm512_storeu_si512(lanes[0] + 16 * i, state[i]);
    _mm512_storeu_si512(lanes[1] + 16 * i, sum[i]);
  }
  for (i = 0; i < ENTROPY_LANES; ++i) r->lane[i].state = (u32)lanes[0][i], r->lane[i].sum = (u32)lanes[1][i];
  r->reader.word = word;
#else
  (void)r, (void)c, (void)steps, (void)table, (void)phase, (void)level;
#endif
  return t;
}

/* n levels of a chunk at `data`, in the order of coding. */
HD EntropyFault level_decode(const u8* data, i64 size, u32 words, i64 n, const LevelCode* code, const u32* table,
                             const u8* phase, i32* level, i64* used, const int states, const int labels,
                             const int dithered, const int context) {
  const LevelCode local = {states, labels, dithered, context ? code->context : 0, code->shift}, *c = &local;
  const int lanes = entropy_lanes(n);
  LevelReader r;
  i64 t = 0;
  const EntropyFault fault = entropy_open(&r.reader, data, size, words, lanes, used);
  if (fault != ENTROPY_FINE) return fault;
  memset(r.lane, 0, sizeof r.lane);
  for (; t * lanes < n; ++t) {
    if (lanes == ENTROPY_LANES) t = level_take_steps(&r, c, t, n / lanes, table, phase, level);
    if (t * lanes < n && !level_take_step(&r, c, table, dithered ? phase + t * lanes : 0,
                                          n - t * lanes < lanes ? (int)(n - t * lanes) : lanes, level + t * lanes))
      return ENTROPY_TRUNCATED;
  }
  return entropy_close(&r.reader);
}

/* The same with the code's parameters as constants where that is worth an instance. */
#define LEVEL_CASES(CALL)                                                                                              \
  if (c->context) {                                                                                                    \
    if (c->dithered) CALL(c->states, 0, 1, 1);                                                                         \
    if (c->labels) CALL(c->states, 1, 0, 1);                                                                           \
    CALL(c->states, 0, 0, 1);                                                                                          \
  }                                                                                                                    \
  if (c->dithered && c->states == 1) CALL(1, 0, 1, 0);                                                                 \
  if (c->dithered && c->states == 8) CALL(8, 0, 1, 0);                                                                 \
  if (c->dithered) CALL(c->states, 0, 1, 0);                                                                           \
  if (c->states == 1) CALL(1, 0, 0, 0);                                                                                \
  if (c->labels) CALL(c->states, 1, 0, 0);                                                                             \
  if (c->states == 8) CALL(8, 0, 0, 0);                                                                                \
  CALL(c->states, 0, 0, 0);

static i64 level_symbols_of(const LevelCode* c, const i32* level, const u8* phase, i64 n, u8* symbol, u8* model,
                            u16* extra) {
#define CALL(...) return level_symbols(c, level, phase, n, symbol, model, extra, __VA_ARGS__)
  LEVEL_CASES(CALL)
#undef CALL
}

static EntropyFault level_decode_of(const u8* data, i64 size, u32 words, i64 n, const LevelCode* c, const u32* table,
                                    const u8* phase, i32* level, i64* used) {
#define CALL(...) return level_decode(data, size, words, n, c, table, phase, level, used, __VA_ARGS__)
  LEVEL_CASES(CALL)
#undef CALL
}

/* Subtractive dither of n coordinates from `first` on, a multiple of 128: u uniform on [0, 4), or [0, 2) with one state,
   and floor(8 u). Room for whole 128s. */
static void level_dither(u64 first, i64 n, u64 key, int states, f32* u, u8* phase) {
  u32 word[4 * CALLS];
  i64 p;
  int i;
  for (p = 0; p < n; p += 4 * CALLS) {
    philox_calls((first + (u64)p) / 4, STREAM_SUBTRACT, key, word);
    for (i = 0; i < 4 * CALLS; ++i) {
      const i32 r = (i32)(word[i] >> 8);
      u[p + i] = (f32)r * (states > 1 ? 0x1p-22f : 0x1p-23f);
    }
    for (i = 0; i < 4 * CALLS; ++i) phase[p + i] = (u8)(word[i] >> (states > 1 ? 27 : 28));
  }
}

#endif
