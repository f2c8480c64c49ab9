/* Trellis codes for entropy-coded trellis quantisation, and the formulas that encoder and decoder share.

   A. Levels are the integers j (in units of the step) in four cosets j mod 4. A state s of v bits allows the levels of
      one parity, q(s); of those, bit 1 of j says which of two branches is taken. One level of step 1 is chosen as if
      from a quantiser of step 2, and the freedom to take another path is what the error gains (Ungerboeck, IEEE
      Trans. Inf. Theory 28, 1982; Marcellin, Fischer, IEEE Trans. Commun. 38, 1990; with entropy coding Fischer,
      Wang, IEEE Trans. Inf. Theory 38, 1992).
   B. The code is a shift register: from s the input b leads to s >> 1 | b << (v - 1). With two binary polynomials
          q(s) = parity(Q & s),   bit 1 of j = b xor parity(B & s)
      they are Ungerboeck's codes for amplitude modulation, in octal below. Bit v of B is one and of Q zero, so the
      parity of a level depends on the state alone.
   C. A level is coded as m = (j - q) / 2, whose lowest bit is bit 1 of j. With the labels of Versatile Video Coding
      (Schwarz et al., Data Compression Conference 2019) the levels of odd states are 0, +-1, +-3, ...: m = (j + sign j)
      / 2. Zero in every state is worth more than evenly spaced cosets where most of a vector is zero.
   D. The encoder looks for the path of least (a - j)^2 + lambda bits(j). The bits are modelled as
          bits(0) = base[q],   bits(j) = rest[q] + slope |j| + curve j^2
      for each context: exact for Gaussian and Laplacian vectors. With t = |a|, c = lambda curve and
          s = (t - lambda slope / 2) / (1 + c)
      the cost of a level j of the sign of a is (1 + c) (j - s)^2 + lambda rest[q] + what all levels share. So the best
      level of a coset is the nearest to s, and only s modulo 4 matters but near zero: 0 costs lambda (base - rest)
      more, -1 four times the shift of s.
   E. Costs are 16 bits wide, 1/256 of a squared step: 32 of them are a vector of AVX-512. That steers the search as well
      as float32 to 1e-3 of what a path can save. Sums are only compared, so what all states share is taken off now and
      then. Should the sums of some path leave 16 bits, a worse path is found, and a path nonetheless.
   F. A coordinate too large for a symbol is escaped. On the path it counts like any multiple of 4, which is arbitrary,
      but known without the dither.
   G. With dither a is compared as it is, without regard to bits, modulo 4 in units of 2^-12, and nothing
      else: the error depends on a mod 4 alone. */
#ifndef COMPRESS_TRELLIS_H
#define COMPRESS_TRELLIS_H
#include "portable.h"

HD u32 trellis_parity_polynomial(int states) {
  return states == 4 ? 02 : states == 8 || states == 16 ? 04 : states == 32 ? 010 : states == 64 ? 024 : 0362;
}
HD u32 trellis_branch_polynomial(int states) {
  return states == 4 ? 05 : states == 8 ? 013 : states == 16 ? 023 : states == 32 ? 045 : states == 64 ? 0103 : 0515;
}
HD u32 trellis_q(u32 s, int states) { return parity(s & trellis_parity_polynomial(states)); }
HD f32 max_f32(f32 x, f32 y) { return x < y ? y : x; }
HD f32 nearest_f32(f32 x) { return (x + 12582912.0f) - 12582912.0f; }

/* Design note D for one context: s = scale |a| - shift; then, over 1 + c: what a zero costs more than the other levels of
   even states; with labels the same of odd states, without what -1 costs more; what odd states cost more;
   and 1 + c itself, which counts where there are contexts. */
typedef struct {
  f32 scale, shift, zero, other, odd, unit;
} TrellisCost;
/* The last four as integers: in units of costs, at most 8 or (odd) 4 squared steps, so that no sum of them and of squares
   leaves 16 bits; and 1 + c in 1/8192, at most 4. */
typedef struct {
  i16 zero, other, odd, unit;
} TrellisTerms;

#define TRELLIS_FAR 1e9f
HD int trellis_far(f32 a) { return a >= TRELLIS_FAR; }

enum { TRELLIS_FINE = 12, TRELLIS_ONE = 1 << TRELLIS_FINE };

HD i16 trellis_fixed(f32 x, f32 unit, i32 least, i32 most) {
  const f32 v = x * unit;
  return (i16)(v<(f32)least ? least : v>(f32) most ? most : (i32)nearest_f32(v));
}
HD TrellisTerms trellis_terms(const TrellisCost* c) {
  const TrellisTerms terms = {trellis_fixed(c->zero, 256, -2047, 2047), trellis_fixed(c->other, 256, -2047, 2047),
                              trellis_fixed(c->odd, 256, -1023, 1023), trellis_fixed(c->unit, 8192, 8192, 32767)};
  return terms;
}

/* A row that an octave looks up, as integers: scale in 1/16384, shift in 1/4096, and the terms. */
HD void trellis_row(const TrellisCost* c, i16 row[6]) {
  const TrellisTerms terms = trellis_terms(c);
  row[0] = trellis_fixed(c->scale, 16384, 0, 32767);
  row[1] = trellis_fixed(c->shift, 4096, 0, 32767);
  row[2] = terms.zero;
  row[3] = terms.other;
  row[4] = terms.odd;
  row[5] = terms.unit;
}
HD f32 trellis_row_scale(i16 scale) { return scale * (1 / 16384.0f); }
HD f32 trellis_row_shift(i16 shift) { return shift * (1 / 4096.0f); }

/* s of design note D, at least -1, or a itself, in 2^-12 steps. What was learned from small levels shrinks an outlier by
   two steps at most. */
#define TRELLIS_MOST_SHIFT 2.0f
HD i32 trellis_position(f32 a, f32 scale, f32 shift, int plain) {
  const f32 t = a < 0 ? -a : a, s = plain ? a : max_f32(max_f32(t * scale - shift, t - TRELLIS_MOST_SHIFT), -1);
  const f32 v = s > 262144.0f ? 262144.0f : s, fours = nearest_f32(v * 0.25f);
  /* what is left is exact and below 2: it says nothing about the sign of a, nor does its rounding */
  return (i32)fours * (4 << TRELLIS_FINE) + (i32)nearest_f32((v - 4 * fours) * (f32)TRELLIS_ONE);
}

/* What trellis_metrics looks at of a position. */
HD i16 trellis_fraction(i32 position) { return (i16)(u16)((u32)position << 2); }
HD i16 trellis_near(i32 position) { return (i16)(position < 7 * TRELLIS_ONE ? position : 7 * TRELLIS_ONE - 1); }

HD i16 trellis_square(u16 distance) { return (i16)((u16)((u32)distance * distance >> 16) >> 4); }
HD i16 least_i16(i16 x, i16 y) { return x < y ? x : y; }
HD i32 most_i32(i32 x, i32 y) { return x < y ? y : x; }

/* What the best levels of the four cosets cost, [2 q + branch]. fraction: the position modulo 4, in 2^-14; near: the
   position, at most 7 steps; minus: -1 where a < 0. */
HD void trellis_metrics(i16 fraction, i16 near, i16 minus, TrellisTerms c, int labels, int plain, int contexts,
                        i16 metric[4]) {
  i16 turned = (i16)(fraction - 16384);
  const u16 e0 = (u16)(fraction < 0 ? -fraction : fraction), e1 = (u16)(turned < 0 ? -turned : turned);
  const u16 e2 = (u16)(32768 - (!plain && near < 0 ? fraction : (i16)e0)), e3 = (u16)(32768 - e1);
  i16 m0 = trellis_square(e0), m1 = trellis_square(e1), m2 = trellis_square(e2), m3 = trellis_square(e3);
  if (!plain) {
    const i16 square = (i16)((i32)near * near >> 16), after = (i16)(near + TRELLIS_ONE);
    const i16 rest = (i16)((labels ? square : (i16)((i32)after * after >> 16)) + c.other);
    const i16 zero = (i16)(square + c.zero);
    m0 = near < 2 * TRELLIS_ONE ? zero : least_i16(m0, zero);
    m3 = near < TRELLIS_ONE ? rest : labels ? least_i16(m3, rest) : m3;
    m1 = (i16)(m1 + c.odd);
    m3 = (i16)(m3 + c.odd);
    if (contexts) {
      m0 = (i16)((i32)(i16)(m0 * 8) * c.unit >> 16);
      m1 = (i16)((i32)(i16)(m1 * 8) * c.unit >> 16);
      m2 = (i16)((i32)(i16)(m2 * 8) * c.unit >> 16);
      m3 = (i16)((i32)(i16)(m3 * 8) * c.unit >> 16);
    }
    turned = (i16)((m1 ^ m3) & (labels ? -1 : minus)); /* where the coset of 1 is that of branch 1 */
    m1 = (i16)(m1 ^ turned);
    m3 = (i16)(m3 ^ turned);
  }
  metric[0] = m0;
  metric[1] = m2;
  metric[2] = m1;
  metric[3] = m3;
}

/* The level that such a cost is of; minus: 1 where a < 0. No branches: those would keep the loop from vectorising. */
HD i32 trellis_level(i32 position, i32 minus, i32 q, i32 bit, TrellisTerms c, int labels, int plain) {
  const i32 s = plain || position > 0 ? position : 0, turned = plain ? 0 : labels ? q : q & minus;
  const i32 coset = q + 2 * (bit ^ turned), after = s - (coset << TRELLIS_FINE) + 2 * TRELLIS_ONE;
  const i32 j = (after >> (TRELLIS_FINE + 2)) * 4 + coset;
  const i32 four = 2 * (TRELLIS_ONE - c.zero), three = 3 * TRELLIS_ONE / 2 - (c.other * 683 >> 8);
  const i32 zero = coset == 0             ? most_i32(four, 2 * TRELLIS_ONE)
                   : labels && coset == 3 ? most_i32(three, TRELLIS_ONE)
                                          : 0;
  const i32 size = s < zero ? 0 : j;
  return plain ? j : (size ^ -minus) + minus;
}

/* Which of the four costs the branch with input b from state s has. */
HD int trellis_metric(u32 s, u32 b, int states) {
  return (int)(2 * trellis_q(s, states) + (b ^ parity(s & trellis_branch_polynomial(states) & ((u32)states - 1))));
}
HD int trellis_memory(int states) {
  int v = 0;
  while (states >> v > 1) ++v;
  return v;
}
/* After t steps from state 0 the low bits of a state but t are clear, and before them there is one way back. */
HD u32 trellis_never(int states, i64 steps) { return steps < trellis_memory(states) ? (u32)(states >> steps) - 1 : 0; }

/* The state after s when a level with this bit 1 is taken. */
HD u32 trellis_next(u32 s, u32 bit, int states) {
  const u32 b = bit ^ parity(s & trellis_branch_polynomial(states) & ((u32)states - 1));
  return s >> 1 | (b ? (u32)states >> 1 : 0);
}

#endif
