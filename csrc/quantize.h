/* Rounding to a grid, one coordinate at a time.

   A. Grid. `levels` = L points spread evenly on [-m, m], step 2m / (L-1): point j is (2j - (L-1)) m / (L-1).
      Odd L has a point at zero. Messages carry j; the encoder works in steps, y = x inv, inv = (L-1) / (2m).
   B. Stochastic rounding in fixed point. With Y = floor(2^16 y) and 16 random bits r,
          j = (Y + 2^15 (L-1) + r) >> 16,
      one addition and one shift for both signs and both parities of L. Where the low 16 bits of the sum are
      all ones (one coordinate in 65,536) the carry hangs on the rest of y: 32 further random bits are added
      to its next 32 bits. Probabilities are those of the floating-point y to 2^-48, so tiny coordinates do
      not vanish.
   C. To nearest: j = floor(y + L/2), nothing to draw. The nearest of two points is the sign of x, -0.0
      counting as plus.
   D. y is clamped to the grid while it is a float: out-of-range conversions differ between machines.
   E. Natural rounding (to powers of two) adds the same random bits to exponent and mantissa, which already
      are a fixed-point number, and keeps the carry. Below the least power the linear fraction of it stands
      in for the mantissa, as IEEE does for denormals: least = -126 needs no second case in float32.
   F. Where a block's scale is far from 1 its reciprocal, or the unit of the decoder, may leave float32's or
      float64's normal range: such a block is rounded in float64, moved by an exact power of two. */
#ifndef COMPRESS_QUANTIZE_H
#define COMPRESS_QUANTIZE_H
#include "philox.h"
#include "reduce.h"

enum { ALL_ONES_16 = 0xffff };

/* By what a block of this scale is moved. */
HD f64 recentre(f64 scale) {
  if (scale >= 7.9e-31 && scale <= 1.2e30) return 1; /* 2^-100 .. 2^100 */
  return scale < 1 ? RESCALE_UP : RESCALE_DOWN;
}
/* In the encoder of a grid 2^16 inv must stay in float32's range too. */
HD f64 recentre_grid(f64 scale, i32 levels) {
  return scale < (levels - 1) * 0x1.00001p-113 ? RESCALE_UP : recentre(scale);
}

/* inv, of a scale that is no number or zero too. */
HD f64 grid_inverse(f64 scale, i32 levels) { return scale > 0 ? (levels - 1) / (2 * scale) : 0; }
HD f64 natural_inverse(f64 scale) { return scale > 0 ? 1 / scale : 0; }

/* The least float32 that is not below x >= 0. */
HD f32 float_up(f64 x) {
  const f32 y = (f32)x;
  return y < x ? f32_bits(bits_f32(y) + 1) : y;
}

/* Whether a message can carry a scale in `wire` bytes, as `single` if those are 4, for elements of `size` bytes: 0, or 1
   where it is no finite number, or 2 where float32 does not hold it, or holds it without all of its precision. */
HD int scale_status(f64 scale, f32 single, int wire, int size) {
  if (!(scale < f64_bits(INFINITE_F64))) return 1;
  if ((wire == 4 || size == 4) && !(single < f32_bits(INFINITE_F32))) return 2;
  return wire == 4 && size == 8 && scale > 0 && scale < 0x1p-126 ? 2 : 0;
}
/* What no decoder computes with is negative, NaN or Inf. */
HD int scale_valid(f64 scale) { return scale >= 0 && scale < f64_bits(INFINITE_F64); }

/* Whether 32 random bits carry out of the 32 bits that follow the first 16 of a fraction (0 <= rest <= 1). */
HD u32 carry32(f64 rest, u32 random) { return rest * 4294967296.0 + (f64)random >= 4294967296.0; }

#define GRID_FORMULAS(REAL, SUFFIX)                                                                                    \
  HD u32 nearest_code_##SUFFIX(REAL x, REAL inv, i32 levels) {                                                         \
    REAL top = (REAL)(levels - 1) * (REAL)0.5;                                                                         \
    if (levels == 2) return x < 0 ? 0 : 1;                                                                             \
    return (u32)(i32)(clamp_##SUFFIX(x * inv, top) + (top + (REAL)0.5));                                               \
  }                                                                                                                    \
  /* 2^16 y; inv16 = 2^16 inv. */                                                                                      \
  HD REAL grid_position_##SUFFIX(REAL x, REAL inv16, i32 levels) {                                                     \
    return clamp_##SUFFIX(x * inv16, (REAL)(levels - 1) * (REAL)32768);                                                \
  }                                                                                                                    \
  HD u32 grid_sum_##SUFFIX(REAL x, REAL inv16, i32 levels, u32 random16) {                                             \
    i32 floored = floor_##SUFFIX(grid_position_##SUFFIX(x, inv16, levels));                                            \
    return (u32)floored + (u32)(levels - 1) * 32768u + random16;                                                       \
  }                                                                                                                    \
  /* The code of coordinate e: the definition that every fast loop reproduces. */                                      \
  HD u32 grid_code_##SUFFIX(REAL x, REAL inv16, i32 levels, u64 e, dither_bits d) {                                    \
    u32 sum = grid_sum_##SUFFIX(x, inv16, levels, dither16(e, d));                                                     \
    if ((sum & ALL_ONES_16) == ALL_ONES_16) {                                                                          \
      f64 y = (f64)grid_position_##SUFFIX(x, inv16, levels);                                                           \
      sum += carry32(y - (f64)floor_f64(y), tie32(e, d.key));                                                          \
    }                                                                                                                  \
    return sum >> 16;                                                                                                  \
  }                                                                                                                    \
  /* Code j in units of m / (L-1). */                                                                                  \
  HD REAL grid_value_##SUFFIX(u32 code, i32 levels) { return (REAL)(2 * (i32)code - (levels - 1)); }

GRID_FORMULAS(f32, f32)
GRID_FORMULAS(f64, f64)

/* Natural rounding of a = |x| inv to 0 (code 0) or 2^(least + q - 1) (code q >= 1): exponent and mantissa of a
   float are already a fixed-point number whose integer part is the exponent. */
#define NATURAL_FORMULAS(REAL, BITS, SUFFIX, MANTISSA, BIAS)                                                           \
  HD REAL natural_magnitude_##SUFFIX(REAL x, REAL inv) { return (x < 0 ? -x : x) * inv; }                              \
  HD i32 natural_linear_##SUFFIX(REAL a, i32 least) { return least > 1 - BIAS && a < power_##SUFFIX(least); }          \
  HD u32 natural_sum_##SUFFIX(REAL x, REAL inv, i32 least, u32 random16) {                                             \
    REAL a = natural_magnitude_##SUFFIX(x, inv);                                                                       \
    u32 power = (u32)(bits_##SUFFIX(a) >> (MANTISSA - 16)) - ((u32)(least + BIAS - 1) << 16);                          \
    REAL linear = a * power_##SUFFIX(least > 17 - BIAS ? 16 - least : 0);                                              \
    linear = linear < (REAL)65535 ? linear : (REAL)65535;                                                              \
    return (natural_linear_##SUFFIX(a, least) ? (u32)(i32)linear : power) + random16;                                  \
  }                                                                                                                    \
  HD f64 natural_rest_##SUFFIX(REAL a, i32 least) {                                                                    \
    const BITS mask = ((BITS)1 << (MANTISSA - 16)) - 1;                                                                \
    f64 y = (f64)a * power_f64(16 - least);                                                                            \
    if (natural_linear_##SUFFIX(a, least)) return y - (f64)floor_f64(y);                                               \
    return (f64)(bits_##SUFFIX(a) & mask) / (f64)(mask + 1);                                                           \
  }                                                                                                                    \
  HD u32 natural_code_##SUFFIX(REAL x, REAL inv, i32 least, u64 e, dither_bits d) {                                    \
    u32 sum = natural_sum_##SUFFIX(x, inv, least, dither16(e, d));                                                     \
    if ((sum & ALL_ONES_16) == ALL_ONES_16)                                                                            \
      sum += carry32(natural_rest_##SUFFIX(natural_magnitude_##SUFFIX(x, inv), least), tie32(e, d.key));               \
    return sum >> 16;                                                                                                  \
  }                                                                                                                    \
  /* The value of q >= 0, its sign that of minus (0 or -1). */                                                         \
  HD REAL natural_value_##SUFFIX(u32 q, i32 minus, i32 least) {                                                        \
    BITS power = (BITS)(least + (i32)q - 1 + BIAS) << MANTISSA;                                                        \
    return SUFFIX##_bits((q ? power : 0) | (BITS)(u32)(minus & 1) << (sizeof(REAL) * 8 - 1));                          \
  }

NATURAL_FORMULAS(f64, u64, f64, 52, 1023)
NATURAL_FORMULAS(f32, u32, f32, 23, 127)

/* Magnitude codes 0 .. s to signed ones, s - q or s + q; rounding of inv may have pushed q to s + 1. */
HD u32 natural_signed(u32 q, int minus, i32 s) {
  q = q < (u32)s ? q : (u32)s;
  return minus ? (u32)s - q : (u32)s + q;
}

/* Natural compression: every power that float32 has, so |x| < 2^127, with an exponent shift for what lies elsewhere. */
enum { POWER_LEAST = -126 };

/* A power is a byte; 255 would be an infinity, and no encoder writes it. */
HD u32 power_code(u32 byte) { return byte < 255 ? byte : 254; }

/* A power in float64, shifted back: rounding up may leave the range of the type that is decoded to, whose top this is. */
HD f64 power_shifted(u32 code, i32 minus, i32 shift, f64 top) {
  return clamp_f64(shift_f64(natural_value_f64(code, minus, POWER_LEAST), -shift), top);
}

#endif
