/* The search for the best path (Viterbi), 32 lanes at a time: one path a lane, cost by cost in plain loops over the
   lanes that every instruction set vectorises. Decisions are stored as bits, positions where levels will be. */
#ifndef COMPRESS_TRELLIS_CPU_H
#define COMPRESS_TRELLIS_CPU_H
#include <string.h>
#include "entropy_cpu.h"
#include "level.h"
#include "trellis.h"

enum { TRELLIS_LANES = ENTROPY_LANES, TRELLIS_STATES = 256 };

/* Rows of costs, turned so that a vector looks all lanes up at once. */
typedef struct {
  i16 of[6][64];
} TrellisTable;

static void trellis_tabulate(const TrellisCost* cost, TrellisTable* table) {
  i16 row[6];
  int o, k;
  memset(table, 0, sizeof *table);
  for (o = 0; o < LEVEL_CONTEXTS; ++o) {
    trellis_row(cost + o, row);
    for (k = 0; k < 6; ++k) table->of[k][o] = row[k];
  }
}
HD void trellis_look(const i16 table[64], const u8* octave, i16* value) {
#ifdef ENTROPY_VECTOR
  _mm512_storeu_si512(value, _mm512_permutex2var_epi16(_mm512_loadu_si512(table),
                                                       _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)octave)),
                                                       _mm512_loadu_si512(table + 32)));
#else
  int l;
  for (l = 0; l < TRELLIS_LANES; ++l) value[l] = table[octave[l]];
#endif
}

/* Costs of the four cosets, [2 q + branch], at one place of every lane, and positions. `octave` chooses the costs, or
   is NULL. */
HD void trellis_metrics_of(const f32* restrict a, const u8* restrict octave, i16 metric[4][TRELLIS_LANES],
                           i32* restrict position, const TrellisCost* cost, const TrellisTable* table, const int labels,
                           const int plain) {
  i16 fraction[TRELLIS_LANES], near[TRELLIS_LANES], minus[TRELLIS_LANES], look[6][TRELLIS_LANES];
  const TrellisTerms same = trellis_terms(cost);
  const f32 scale = cost->scale, shift = cost->shift;
  int l, k;
  if (octave)
#pragma GCC unroll 6
    for (k = 0; k < 6; ++k) trellis_look(table->of[k], octave, look[k]);
  for (l = 0; l < TRELLIS_LANES; ++l)
    position[l] = trellis_position(a[l], octave ? trellis_row_scale(look[0][l]) : scale,
                                   octave ? trellis_row_shift(look[1][l]) : shift, plain);
  for (l = 0; l < TRELLIS_LANES; ++l) fraction[l] = trellis_fraction(position[l]);
  if (!plain) {
    for (l = 0; l < TRELLIS_LANES; ++l) near[l] = trellis_near(position[l]);
    for (l = 0; l < TRELLIS_LANES; ++l) minus[l] = (i16)(a[l] < 0 ? -1 : 0);
  }
  for (l = 0; l < TRELLIS_LANES; ++l) {
    i16 m[4];
    trellis_metrics(fraction[l], plain ? 0 : near[l], plain ? 0 : minus[l],
                    octave ? (TrellisTerms){look[2][l], look[3][l], look[4][l], look[5][l]} : same, labels, plain,
                    octave != 0, m);
    metric[0][l] = m[0];
    metric[1][l] = m[1];
    metric[2][l] = m[2];
    metric[3][l] = m[3];
  }
}

/* From states 2 k and 2 k + 1 to k and k + states / 2: [from][to] metrics, and one bit a decision. */
HD void trellis_butterfly(const i16* restrict c0, const i16* restrict c1, const i16* restrict m00,
                          const i16* restrict m10, const i16* restrict m01, const i16* restrict m11, i16* restrict n0,
                          i16* restrict n1, i16* restrict d0, i16* restrict d1, const i16 bit0, const i16 bit1) {
  int l;
  for (l = 0; l < TRELLIS_LANES; ++l) {
    const i16 u0 = (i16)(c0[l] + m00[l]), w0 = (i16)(c1[l] + m10[l]);
    const i16 u1 = (i16)(c0[l] + m01[l]), w1 = (i16)(c1[l] + m11[l]);
    n0[l] = least_i16(u0, w0);
    n1[l] = least_i16(u1, w1);
    d0[l] = (i16)(d0[l] | (w0 < u0 ? bit0 : 0));
    d1[l] = (i16)(d1[l] | (w1 < u1 ? bit1 : 0));
  }
}

HD int trellis_planes(int states) { return states > 8 ? states / 8 : 1; }

/* Decisions of all states: planes of 8 states, a byte a lane. `costs` receives those of the last step. */
HD void trellis_forward(const f32* restrict a, const u8* restrict octave, i64 steps, const TrellisCost* cost,
                        const TrellisTable* table, u8* restrict decision, i32* restrict position,
                        i16 (*costs)[TRELLIS_LANES], const int states, const int labels, const int plain) {
  i16 here[TRELLIS_STATES][TRELLIS_LANES], next[TRELLIS_STATES][TRELLIS_LANES], metric[4][TRELLIS_LANES];
  i16 bits[2][TRELLIS_LANES];
  const int half = states / 2, planes = trellis_planes(states);
  u8 index[2][TRELLIS_STATES];
  i64 t;
  int l, s, k, j;
  for (s = 0; s < states; ++s) {
    for (j = 0; j < 2; ++j) index[j][s] = (u8)trellis_metric((u32)s, (u32)j, states);
    for (l = 0; l < TRELLIS_LANES; ++l) here[s][l] = s ? 14000 : 0;
  }
  for (t = 0; t < steps; ++t) {
    u8* d = decision + t * planes * TRELLIS_LANES;
    i16(*from)[TRELLIS_LANES] = t & 1 ? next : here, (*to)[TRELLIS_LANES] = t & 1 ? here : next;
    trellis_metrics_of(a + t * TRELLIS_LANES, octave ? octave + t * TRELLIS_LANES : 0, metric,
                       position + t * TRELLIS_LANES, cost, table, labels, plain);
    if (states <= 8) { /* few enough for the indices to be constants */
      memset(bits, 0, sizeof bits);
#pragma GCC unroll 4
      for (k = 0; k < half; ++k)
        trellis_butterfly(from[2 * k], from[2 * k + 1], metric[trellis_metric(2 * k, 0, states)],
                          metric[trellis_metric(2 * k + 1, 0, states)], metric[trellis_metric(2 * k, 1, states)],
                          metric[trellis_metric(2 * k + 1, 1, states)], to[k], to[k + half], bits[0], bits[1], 1 << k,
                          1 << (k + half));
      for (l = 0; l < TRELLIS_LANES; ++l) d[l] = (u8)(bits[0][l] | bits[1][l]);
    } else {
      for (k = 0; k < half; k += 8) {
        memset(bits, 0, sizeof bits);
#pragma GCC unroll 8
        for (j = 0; j < 8; ++j) {
          const int s0 = 2 * (k + j);
          trellis_butterfly(from[s0], from[s0 + 1], metric[index[0][s0]], metric[index[0][s0 + 1]],
                            metric[index[1][s0]], metric[index[1][s0 + 1]], to[k + j], to[k + j + half], bits[0],
                            bits[1], 1 << j, 1 << j);
        }
        for (l = 0; l < TRELLIS_LANES; ++l) d[k / 8 * TRELLIS_LANES + l] = (u8)bits[0][l];
        for (l = 0; l < TRELLIS_LANES; ++l) d[(k + half) / 8 * TRELLIS_LANES + l] = (u8)bits[1][l];
      }
    }
    if (t % 4 == 3) /* differences are all that matters: keep them small */
      for (s = states - 1; s >= 0; --s)
        for (l = 0; l < TRELLIS_LANES; ++l) to[s][l] = (i16)(to[s][l] - to[0][l]);
  }
  memcpy(costs, steps & 1 ? next : here, sizeof(i16) * TRELLIS_LANES * (size_t)states);
}

/* The best path of every lane as w (level.h, A), in place of positions: LEVEL_ESCAPED + 2 branch + q where a is far. */
HD void trellis_backward(const f32* restrict a, const u8* restrict octave, i64 steps, const TrellisCost* cost,
                         const TrellisTable* table, const u8* restrict decision, i16 (*costs)[TRELLIS_LANES],
                         i32* restrict w, const int states, const int labels, const int plain) {
  const int half = states / 2, planes = trellis_planes(states);
  const TrellisTerms same = trellis_terms(cost);
  const i64 free_from = trellis_memory(states);
  const u32 never = trellis_never(states, steps);
  i32 state[TRELLIS_LANES] = {0};
  i16 best[TRELLIS_LANES], look[2][TRELLIS_LANES];
  i64 t;
  int l, s;
  memcpy(best, costs[0], sizeof best);
  for (s = 1; s < states; ++s)
    for (l = 0; l < TRELLIS_LANES && !((u32)s & never); ++l) {
      state[l] = costs[s][l] < best[l] ? s : state[l];
      best[l] = costs[s][l] < best[l] ? costs[s][l] : best[l];
    }
  for (t = steps - 1; t >= 0; --t) {
    const u8* d = decision + t * planes * TRELLIS_LANES;
    const f32* restrict v = a + t * TRELLIS_LANES;
    i32* restrict out = w + t * TRELLIS_LANES;
    const u32 choice = t >= free_from;
    i32 taken[TRELLIS_LANES];
    if (states <= 8)
      for (l = 0; l < TRELLIS_LANES; ++l) taken[l] = d[l];
    else
      for (l = 0; l < TRELLIS_LANES; ++l) taken[l] = d[(state[l] >> 3) * TRELLIS_LANES + l];
    if (octave)
      for (s = 0; s < 2; ++s) trellis_look(table->of[2 + s], octave + t * TRELLIS_LANES, look[s]);
    for (l = 0; l < TRELLIS_LANES; ++l) {
      const u32 n = (u32)state[l], e = (u32)taken[l] >> (n & 7) & choice, from = (2 * n & ((u32)states - 1)) | e;
      const i32 q = (i32)trellis_q(from, states);
      const i32 bit =
          (i32)((u32)(n >= (u32)half) ^ parity(from & trellis_branch_polynomial(states) & ((u32)states - 1)));
      const i32 j = trellis_level(out[l], v[l] < 0 ? 1 : 0, q, bit,
                                  octave ? (TrellisTerms){look[0][l], look[1][l], 0, 0} : same, labels, plain);
      state[l] = (i32)from;
      out[l] = level_taken(j, v[l], q, bit, labels);
    }
  }
}

static const TrellisCost trellis_nearest = {1, 0, 0, 0, 0, 1};

HD void trellis_search(const f32* a, const u8* octave, i64 steps, const TrellisCost* cost, u8* decision, i32* w,
                       const int states, const int labels, const int plain) {
  i16 costs[TRELLIS_STATES][TRELLIS_LANES];
  TrellisTable table;
  if (octave) trellis_tabulate(cost, &table);
  trellis_forward(a, octave, steps, cost, &table, decision, w, costs, states, labels, plain);
  trellis_backward(a, octave, steps, cost, &table, decision, costs, w, states, labels, plain);
}

#define TRELLIS_INSTANCE(S)                                                                                            \
  static void trellis_search_##S(const f32* a, const u8* octave, i64 steps, const TrellisCost* cost, u8* decision,     \
                                 i32* w, int labels) {                                                                 \
    if (!cost) trellis_search(a, 0, steps, &trellis_nearest, decision, w, S, 0, 1);                                    \
    else if (octave && labels) trellis_search(a, octave, steps, cost, decision, w, S, 1, 0);                           \
    else if (octave) trellis_search(a, octave, steps, cost, decision, w, S, 0, 0);                                     \
    else if (labels) trellis_search(a, 0, steps, cost, decision, w, S, 1, 0);                                          \
    else trellis_search(a, 0, steps, cost, decision, w, S, 0, 0);                                                      \
  }
TRELLIS_INSTANCE(4)
TRELLIS_INSTANCE(8)
TRELLIS_INSTANCE(16)
TRELLIS_INSTANCE(32)
TRELLIS_INSTANCE(64)
TRELLIS_INSTANCE(256)
#undef TRELLIS_INSTANCE

/* The best paths through `steps` places of 32 lanes, without a cost the nearest; `decision` has
   steps * 32 * trellis_planes(states) bytes. */
static void trellis_search_of(const f32* a, const u8* octave, i64 steps, const TrellisCost* cost, u8* decision, i32* w,
                              int labels, int states) {
  switch (states) {
    case 4: trellis_search_4(a, octave, steps, cost, decision, w, labels); break;
    case 8: trellis_search_8(a, octave, steps, cost, decision, w, labels); break;
    case 16: trellis_search_16(a, octave, steps, cost, decision, w, labels); break;
    case 32: trellis_search_32(a, octave, steps, cost, decision, w, labels); break;
    case 64: trellis_search_64(a, octave, steps, cost, decision, w, labels); break;
    default: trellis_search_256(a, octave, steps, cost, decision, w, labels);
  }
}

#endif
