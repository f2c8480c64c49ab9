/* The search for the best path (Viterbi), 32 lanes at a time: one path a lane, cost by cost in plain loops over the
   lanes that every instruction set vectorises. Decisions are stored as bits, and the levels are computed again on the
   way back: cheaper than storing them. */
#ifndef COMPRESS_TRELLIS_CPU_H
#define COMPRESS_TRELLIS_CPU_H
#include <string.h>
#include "entropy_cpu.h"
#include "level.h"
#include "trellis.h"

enum { TRELLIS_LANES = ENTROPY_LANES, TRELLIS_STATES = 256 };

/* Costs that depend on the octave: [number][2 octave's table of 64], in 1/512, so that a vector looks all lanes up at
   once. They only steer the search: rounding them costs nothing that can be measured. */
typedef struct {
  i16 of[2][8][64];
} TrellisTable;
typedef struct {
  f32 of[8][TRELLIS_LANES];
} TrellisCosts;

static void trellis_tabulate(const TrellisCost* cost, TrellisTable* table) {
  int o, q, k;
  memset(table, 0, sizeof *table);
  for (o = 0; o < LEVEL_CONTEXTS; ++o)
    for (q = 0; q < 2; ++q)
      for (k = 0; k < 8; ++k) {
        const f32 v = nearest_f32(((const f32*)(cost + 2 * o + q))[k] * 512);
        table->of[q][k][o] = (i16)(v > 32767 ? 32767 : v < -32767 ? -32767 : v);
      }
}
HD void trellis_look(const i16 table[64], const u8* octave, f32* value) {
#ifdef ENTROPY_VECTOR
  const __m512i found = _mm512_permutex2var_epi16(_mm512_loadu_si512(table),
                                                  _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)octave)),
                                                  _mm512_loadu_si512(table + 32));
  const __m512 unit = _mm512_set1_ps(1 / 512.0f);
  _mm512_storeu_ps(value,
                   _mm512_mul_ps(unit, _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(found)))));
  _mm512_storeu_ps(value + 16,
                   _mm512_mul_ps(unit, _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(found, 1)))));
#else
  int l;
  for (l = 0; l < TRELLIS_LANES; ++l) value[l] = (f32)table[octave[l]] * (1 / 512.0f);
#endif
}
HD void trellis_look_up(const TrellisTable* table, int q, const u8* octave, TrellisCosts* costs) {
  int k;
#pragma GCC unroll 8
  for (k = 0; k < 8; ++k) trellis_look(table->of[q][k], octave, costs->of[k]);
}
HD TrellisCost trellis_at(const TrellisCosts* c, int l) {
  const TrellisCost cost = {c->of[0][l], c->of[1][l], c->of[2][l], c->of[3][l],
                            c->of[4][l], c->of[5][l], c->of[6][l], c->of[7][l]};
  return cost;
}

/* Costs of the four cosets, [2 q + branch], at one place of every lane. `octave` chooses the costs, or is NULL. */
HD void trellis_metrics(const f32* restrict a, const u8* restrict octave, f32 metric[4][TRELLIS_LANES],
                        const TrellisCost* cost, const TrellisTable* table, const int labels) {
  TrellisCosts look;
  int q, l;
#pragma GCC unroll 2
  for (q = 0; q < 2; ++q) {
    const TrellisCost same = cost[q];
    if (octave) trellis_look_up(table, q, octave, &look);
    for (l = 0; l < TRELLIS_LANES; ++l) {
      const f32 v = a[l], keep = trellis_far(v) ? 0.0f : 1.0f;
      const TrellisCost c = octave ? trellis_at(&look, l) : same;
      metric[2 * q][l] = keep * trellis_cost(v, trellis_level(v, (f32)q, 0, &c, labels), &c);
      metric[2 * q + 1][l] = keep * trellis_cost(v, trellis_level(v, (f32)q, 1, &c, labels), &c);
    }
  }
}

/* From states 2 k and 2 k + 1 to k and k + states / 2: [from][to] metrics, and one bit a decision. */
HD void trellis_butterfly(const f32* restrict c0, const f32* restrict c1, const f32* restrict m00,
                          const f32* restrict m10, const f32* restrict m01, const f32* restrict m11, f32* restrict n0,
                          f32* restrict n1, i32* restrict d0, i32* restrict d1, const i32 bit0, const i32 bit1) {
  int l;
  for (l = 0; l < TRELLIS_LANES; ++l) {
    const f32 u0 = c0[l] + m00[l], w0 = c1[l] + m10[l], u1 = c0[l] + m01[l], w1 = c1[l] + m11[l];
    n0[l] = w0 < u0 ? w0 : u0;
    n1[l] = w1 < u1 ? w1 : u1;
    d0[l] |= w0 < u0 ? bit0 : 0;
    d1[l] |= w1 < u1 ? bit1 : 0;
  }
}

/* The metric of the branch with input b from state s. */
HD int trellis_metric(u32 s, u32 b, int states) {
  return (int)(2 * trellis_q(s, states) + (b ^ parity(s & trellis_branch_polynomial(states) & ((u32)states - 1))));
}

HD int trellis_planes(int states) { return states > 8 ? states / 8 : 1; }

/* Decisions of all states: planes of 8 states, a byte a lane. `costs` receives those of the last step. */
HD void trellis_forward(const f32* restrict a, const u8* restrict octave, i64 steps, const TrellisCost* cost,
                        const TrellisTable* table, u8* restrict decision, f32 (*costs)[TRELLIS_LANES], const int states,
                        const int labels) {
  f32 here[TRELLIS_STATES][TRELLIS_LANES], next[TRELLIS_STATES][TRELLIS_LANES], metric[4][TRELLIS_LANES];
  i32 bits[2][TRELLIS_LANES];
  const int half = states / 2, planes = trellis_planes(states);
  u8 index[2][TRELLIS_STATES];
  i64 t;
  int l, s, k, j;
  for (s = 0; s < states; ++s) {
    for (j = 0; j < 2; ++j) index[j][s] = (u8)trellis_metric((u32)s, (u32)j, states);
    for (l = 0; l < TRELLIS_LANES; ++l) here[s][l] = s ? 1e6f : 0;
  }
  for (t = 0; t < steps; ++t) {
    u8* d = decision + t * planes * TRELLIS_LANES;
    f32(*from)[TRELLIS_LANES] = t & 1 ? next : here, (*to)[TRELLIS_LANES] = t & 1 ? here : next;
    trellis_metrics(a + t * TRELLIS_LANES, octave ? octave + t * TRELLIS_LANES : 0, metric, cost, table, labels);
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
    if (t % 64 == 63) /* differences are all that matters: keep them small */
      for (s = states - 1; s >= 0; --s)
        for (l = 0; l < TRELLIS_LANES; ++l) to[s][l] -= to[0][l];
  }
  memcpy(costs, steps & 1 ? next : here, sizeof(f32) * TRELLIS_LANES * (size_t)states);
}

/* The best path of every lane as w (level.h, A): LEVEL_ESCAPED + 2 branch + q where a is far. */
HD void trellis_backward(const f32* restrict a, const u8* restrict octave, i64 steps, const TrellisCost* cost,
                         const TrellisTable* table, const u8* restrict decision, f32 (*costs)[TRELLIS_LANES],
                         i32* restrict w, const int states, const int labels) {
  const int half = states / 2, planes = trellis_planes(states);
  const TrellisCost first = cost[0], second = cost[1];
  i32 state[TRELLIS_LANES] = {0};
  f32 best[TRELLIS_LANES];
  TrellisCosts look[2];
  i64 t;
  int l, s;
  memcpy(best, costs[0], sizeof best);
  for (s = 1; s < states; ++s)
    for (l = 0; l < TRELLIS_LANES; ++l) {
      state[l] = costs[s][l] < best[l] ? s : state[l];
      best[l] = costs[s][l] < best[l] ? costs[s][l] : best[l];
    }
  for (t = steps - 1; t >= 0; --t) {
    const u8* d = decision + t * planes * TRELLIS_LANES;
    const f32* restrict v = a + t * TRELLIS_LANES;
    i32 taken[TRELLIS_LANES];
    if (states <= 8)
      for (l = 0; l < TRELLIS_LANES; ++l) taken[l] = d[l];
    else
      for (l = 0; l < TRELLIS_LANES; ++l) taken[l] = d[(state[l] >> 3) * TRELLIS_LANES + l];
    if (octave)
      for (s = 0; s < 2; ++s) trellis_look_up(table, s, octave + t * TRELLIS_LANES, look + s);
    for (l = 0; l < TRELLIS_LANES; ++l) {
      const u32 n = (u32)state[l], e = (u32)taken[l] >> (n & 7) & 1, from = (2 * n & ((u32)states - 1)) | e;
      const i32 q = (i32)trellis_q(from, states);
      const i32 bit =
          (i32)((u32)(n >= (u32)half) ^ parity(from & trellis_branch_polynomial(states) & ((u32)states - 1)));
      /* sums of products by 0 and 1 select without a branch, which would keep the loop from vectorising */
      const f32 odd = (f32)q, even = (f32)(1 - q);
      const TrellisCost c0 = octave ? trellis_at(look, l) : first, c1 = octave ? trellis_at(look + 1, l) : second;
      const TrellisCost c = {even * c0.scale + odd * c1.scale, even * c0.shift + odd * c1.shift, 0, 0, 0, 0,
                             even * c0.zero3 + odd * c1.zero3, even * c0.zero4 + odd * c1.zero4};
      const i32 j = (i32)trellis_level(v[l], odd, (f32)bit, &c, labels);
      state[l] = (i32)from;
      w[t * TRELLIS_LANES + l] = trellis_far(v[l]) ? LEVEL_ESCAPED + 2 * bit + q
                                 : labels          ? j + q * (level_sign(j) + 1)
                                                   : j;
    }
  }
}

HD void trellis_search(const f32* a, const u8* octave, i64 steps, const TrellisCost* cost, u8* decision, i32* w,
                       const int states, const int labels) {
  f32 costs[TRELLIS_STATES][TRELLIS_LANES];
  TrellisTable table;
  if (octave) trellis_tabulate(cost, &table);
  trellis_forward(a, octave, steps, cost, &table, decision, costs, states, labels);
  trellis_backward(a, octave, steps, cost, &table, decision, costs, w, states, labels);
}

#define TRELLIS_INSTANCE(S)                                                                                            \
  static void trellis_search_##S(const f32* a, const u8* octave, i64 steps, const TrellisCost* cost, u8* decision,     \
                                 i32* w, int labels) {                                                                 \
    if (octave && labels) trellis_search(a, octave, steps, cost, decision, w, S, 1);                                   \
    else if (octave) trellis_search(a, octave, steps, cost, decision, w, S, 0);                                        \
    else if (labels) trellis_search(a, 0, steps, cost, decision, w, S, 1);                                             \
    else trellis_search(a, 0, steps, cost, decision, w, S, 0);                                                         \
  }
TRELLIS_INSTANCE(4)
TRELLIS_INSTANCE(8)
TRELLIS_INSTANCE(16)
TRELLIS_INSTANCE(32)
TRELLIS_INSTANCE(64)
TRELLIS_INSTANCE(256)
#undef TRELLIS_INSTANCE

/* The best paths through `steps` places of 32 lanes; `decision` has steps * 32 * trellis_planes(states) bytes. */
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
