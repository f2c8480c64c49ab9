/* The search for the best path (Viterbi), 32 lanes at a time: one path a lane, cost by cost in plain loops over the
   lanes that every instruction set vectorises. Decisions are stored as bits, and the levels are computed again on the
   way back: cheaper than storing them. */
#ifndef COMPRESS_TRELLIS_CPU_H
#define COMPRESS_TRELLIS_CPU_H
#include <string.h>
#include "entropy.h"
#include "level.h"
#include "trellis.h"

enum { TRELLIS_LANES = ENTROPY_LANES, TRELLIS_STATES = 256 };

/* Costs of the four cosets, [2 q + branch], at one place of every lane. `octave` chooses the costs, or is NULL. */
HD void trellis_metrics(const f32* restrict a, const u8* restrict octave, f32 metric[4][TRELLIS_LANES],
                        const TrellisCost* cost, const int labels) {
  const TrellisCost first = cost[0], second = cost[1];
  int l;
  for (l = 0; l < TRELLIS_LANES; ++l) {
    const f32 v = a[l], keep = trellis_far(v) ? 0.0f : 1.0f;
    const TrellisCost even = octave ? cost[2 * octave[l]] : first, odd = octave ? cost[2 * octave[l] + 1] : second;
    metric[0][l] = keep * trellis_cost(v, trellis_level(v, 0, 0, &even, labels), &even);
    metric[1][l] = keep * trellis_cost(v, trellis_level(v, 0, 1, &even, labels), &even);
    metric[2][l] = keep * trellis_cost(v, trellis_level(v, 1, 0, &odd, labels), &odd);
    metric[3][l] = keep * trellis_cost(v, trellis_level(v, 1, 1, &odd, labels), &odd);
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
                        u8* restrict decision, f32 (*costs)[TRELLIS_LANES], const int states, const int labels) {
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
    trellis_metrics(a + t * TRELLIS_LANES, octave ? octave + t * TRELLIS_LANES : 0, metric, cost, labels);
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

/* The levels of the best path of every lane; LEVEL_ESCAPED plus the branch where a is far. */
HD void trellis_backward(const f32* restrict a, const u8* restrict octave, i64 steps, const TrellisCost* cost,
                         const u8* restrict decision, f32 (*costs)[TRELLIS_LANES], i32* restrict level,
                         const int states, const int labels) {
  const int half = states / 2, planes = trellis_planes(states);
  i32 state[TRELLIS_LANES] = {0};
  f32 best[TRELLIS_LANES];
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
    const u8* restrict o = octave ? octave + t * TRELLIS_LANES : 0;
    i32 taken[TRELLIS_LANES];
    if (states <= 8)
      for (l = 0; l < TRELLIS_LANES; ++l) taken[l] = d[l];
    else
      for (l = 0; l < TRELLIS_LANES; ++l) taken[l] = d[(state[l] >> 3) * TRELLIS_LANES + l];
    for (l = 0; l < TRELLIS_LANES; ++l) {
      const u32 n = (u32)state[l], e = (u32)taken[l] >> (n & 7) & 1, from = (2 * n & ((u32)states - 1)) | e;
      const u32 q = trellis_q(from, states);
      const u32 bit = (u32)(n >= (u32)half) ^ parity(from & trellis_branch_polynomial(states) & ((u32)states - 1));
      const TrellisCost c = cost[(o ? 2 * o[l] : 0) + q];
      const i32 j = (i32)trellis_level(v[l], (f32)(i32)q, (f32)(i32)bit, &c, labels);
      state[l] = (i32)from;
      level[t * TRELLIS_LANES + l] = trellis_far(v[l]) ? LEVEL_ESCAPED + (i32)bit : j;
    }
  }
}

HD void trellis_search(const f32* a, const u8* octave, i64 steps, const TrellisCost* cost, u8* decision, i32* level,
                       const int states, const int labels) {
  f32 costs[TRELLIS_STATES][TRELLIS_LANES];
  trellis_forward(a, octave, steps, cost, decision, costs, states, labels);
  trellis_backward(a, octave, steps, cost, decision, costs, level, states, labels);
}

#define TRELLIS_INSTANCE(S)                                                                                            \
  static void trellis_search_##S(const f32* a, const u8* octave, i64 steps, const TrellisCost* cost, u8* decision,     \
                                 i32* level, int labels) {                                                             \
    if (octave && labels) trellis_search(a, octave, steps, cost, decision, level, S, 1);                               \
    else if (octave) trellis_search(a, octave, steps, cost, decision, level, S, 0);                                    \
    else if (labels) trellis_search(a, 0, steps, cost, decision, level, S, 1);                                         \
    else trellis_search(a, 0, steps, cost, decision, level, S, 0);                                                     \
  }
TRELLIS_INSTANCE(4)
TRELLIS_INSTANCE(8)
TRELLIS_INSTANCE(16)
TRELLIS_INSTANCE(32)
TRELLIS_INSTANCE(64)
TRELLIS_INSTANCE(256)
#undef TRELLIS_INSTANCE

/* Levels of `steps` places of 32 lanes; `decision` has steps * 32 * trellis_planes(states) bytes. */
static void trellis_search_of(const f32* a, const u8* octave, i64 steps, const TrellisCost* cost, u8* decision,
                              i32* level, int labels, int states) {
  switch (states) {
    case 4: trellis_search_4(a, octave, steps, cost, decision, level, labels); break;
    case 8: trellis_search_8(a, octave, steps, cost, decision, level, labels); break;
    case 16: trellis_search_16(a, octave, steps, cost, decision, level, labels); break;
    case 32: trellis_search_32(a, octave, steps, cost, decision, level, labels); break;
    case 64: trellis_search_64(a, octave, steps, cost, decision, level, labels); break;
    default: trellis_search_256(a, octave, steps, cost, decision, level, labels);
  }
}

#endif
