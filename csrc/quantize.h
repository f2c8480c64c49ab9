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
      in for the mantissa, as IEEE does for denormals: least = -126 needs no second case in float32. */
#ifndef COMPRESS_QUANTIZE_H
#define COMPRESS_QUANTIZE_H
#include "philox.h"

enum { ALL_ONES_16 = 0xffff };

/* floor where |y| < 2^31, without an instruction that some machines lack. */
HD i32 floor_f32(f32 y) {
  i32 t = (i32)y;
  return t - (y < (f32)t);
}
HD i32 floor_f64(f64 y) {
  i32 t = (i32)y;
  return t - (y < (f64)t);
}

/* Whether 32 random bits carry out of the 32 bits that follow the first 16 of a fraction (0 <= rest <= 1). */
HD u32 carry32(f64 rest, u32 random) { return rest * 4294967296.0 + (f64)random >= 4294967296.0; }

#define GRID_FORMULAS(REAL, SUFFIX)                                                                                    \
  HD REAL clamp_##SUFFIX(REAL y, REAL top) {                                                                           \
    y = y < top ? y : top;                                                                                             \
    return y > -top ? y : -top;                                                                                        \
  }                                                                                                                    \
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

#endif
