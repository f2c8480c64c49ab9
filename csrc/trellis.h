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
          bits(0) = base,   bits(j) = rest + slope |j| + curve j^2
      for each parity (and context): exact for Gaussian and Laplacian vectors, and the best level of a coset is then
      the nearest to a shrunk a. Tables of the true costs gave the same error to a thousandth.
   E. A coordinate too large for a symbol is escaped: it costs nothing on any branch (trellis_far). */
#ifndef COMPRESS_TRELLIS_H
#define COMPRESS_TRELLIS_H
#include "portable.h"

HD u32 trellis_parity_polynomial(int states) {
  return states == 4 ? 02 : states == 8 || states == 16 ? 04 : states == 32 ? 010 : states == 64 ? 024 : 0362;
}
HD u32 trellis_branch_polynomial(int states) {
  return states == 4 ? 05 : states == 8 ? 013 : states == 16 ? 023 : states == 32 ? 045 : states == 64 ? 0103 : 0515;
}
HD u32 parity(u32 s) {
  s ^= s >> 8;
  s ^= s >> 4;
  s ^= s >> 2;
  s ^= s >> 1;
  return s & 1;
}
HD u32 trellis_q(u32 s, int states) { return parity(s & trellis_parity_polynomial(states)); }
HD f32 nearest_f32(f32 x) { return (x + 12582912.0f) - 12582912.0f; }
HD f32 max_f32(f32 x, f32 y) { return x < y ? y : x; }

/* lambda times the model of design note D; the best level of a coset is the nearest to sign(a) max(scale |a| - shift,
   0), but 0 and not 3 or 4 where |a| is below zero3 or zero4. */
typedef struct {
  f32 scale, shift, base, rest, slope, curve, zero3, zero4;
} TrellisCost;

#define TRELLIS_FAR 1e9f
HD int trellis_far(f32 a) { return a >= TRELLIS_FAR; }

/* The best level at a with parity q and branch `bit`. Branches on q, bit and labels are on constants. */
HD f32 trellis_level(f32 a, f32 q, f32 bit, const TrellisCost* c, int labels) {
  const f32 t = a < 0 ? -a : a, sign = a < 0 ? -1.0f : 1.0f, s = max_f32(t * c->scale - c->shift, 0);
  if (labels) { /* |j| = 0 4 8, 2 6, 0 3 7, 1 5 */
    const f32 offset = 2 * bit - q, zero = bit > 0 ? 0 : q > 0 ? c->zero3 : c->zero4, least = bit > 0 ? 2 - q : 4 - q;
    return t < zero ? 0.0f : sign * max_f32(4 * nearest_f32((s - offset) * 0.25f) + offset, least);
  } else { /* j = 0 mod 4, 2, 1, -1 */
    const f32 offset = sign * (q + 2 * bit - 4 * q * bit), j = 4 * nearest_f32((s - offset) * 0.25f) + offset;
    return sign * (q + bit > 0 ? j : t < c->zero4 ? 0.0f : max_f32(j, 4));
  }
}
HD f32 trellis_cost(f32 a, f32 j, const TrellisCost* c) {
  const f32 d = a - j, t = j < 0 ? -j : j;
  return d * d + (t > 0 ? t * (c->slope + c->curve * t) + c->rest : c->base);
}

/* The state after s when a level with this bit 1 is taken. */
HD u32 trellis_next(u32 s, u32 bit, int states) {
  const u32 b = bit ^ parity(s & trellis_branch_polynomial(states) & ((u32)states - 1));
  return s >> 1 | (b ? (u32)states >> 1 : 0);
}

#endif
