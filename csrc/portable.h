/* Fixed-width types and bit casts for every compiler that reads the formulas: gcc and clang as C,
   nvcc and NVRTC as C++. Of the headers they share, the only one that asks which compiler it is. */
#ifndef COMPRESS_PORTABLE_H
#define COMPRESS_PORTABLE_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef short i16;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;
typedef double f64;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define HD static __device__ __forceinline__
#define COPY_BITS(to, from) memcpy(&(to), &(from), sizeof(to))
#elif defined(__GNUC__)
#define HD static inline __attribute__((always_inline, unused))
#define COPY_BITS(to, from) __builtin_memcpy(&(to), &(from), sizeof(to))
#else
#include <string.h>
#define HD static inline
#define COPY_BITS(to, from) memcpy(&(to), &(from), sizeof(to))
#endif

HD u32 bits_f32(f32 x) {
  u32 b;
  COPY_BITS(b, x);
  return b;
}
HD u64 bits_f64(f64 x) {
  u64 b;
  COPY_BITS(b, x);
  return b;
}
HD f32 f32_bits(u32 b) {
  f32 x;
  COPY_BITS(x, b);
  return x;
}
HD f64 f64_bits(u64 b) {
  f64 x;
  COPY_BITS(x, b);
  return x;
}

/* The product of two words; floor where |y| < 2^31; y between -top and top > 0, which NaN becomes: instructions of a GPU,
   and what all CPUs have. */
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
HD u64 product_u32(u32 a, u32 b) {
  u64 p;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a), "r"(b)); /* in C it is taken for one of 64-bit numbers */
  return p;
}
HD i32 floor_f32(f32 y) { return __float2int_rd(y); }
HD i32 floor_f64(f64 y) { return __double2int_rd(y); }
HD f32 clamp_f32(f32 y, f32 top) { return fmaxf(fminf(y, top), -top); }
#else
HD u64 product_u32(u32 a, u32 b) { return (u64)a * b; }
HD i32 floor_f32(f32 y) {
  i32 t = (i32)y;
  return t - (y < (f32)t);
}
HD i32 floor_f64(f64 y) {
  i32 t = (i32)y;
  return t - (y < (f64)t);
}
HD f32 clamp_f32(f32 y, f32 top) {
  y = y < top ? y : top;
  return y > -top ? y : -top;
}
#endif
HD f64 clamp_f64(f64 y, f64 top) {
  y = y < top ? y : top;
  return y > -top ? y : -top;
}

/* floor(log2 v), 0 < v < 2^24. */
HD i32 exponent_of(u32 v) { return (i32)(bits_f32((f32)(i32)v) >> 23) - 127; }

/* 2^exponent, a normal number. */
HD f32 power_f32(i32 exponent) { return f32_bits((u32)(exponent + 127) << 23); }
HD f64 power_f64(i32 exponent) { return f64_bits((u64)(exponent + 1023) << 52); }

/* x 2^exponent by two factors, rounded once for exponents from -1022 on, as ldexp does. */
HD f64 shift_f64(f64 x, i32 exponent) {
  const i32 first = exponent < -1022 ? -1022 : exponent > 1023 ? 1023 : exponent;
  return x * power_f64(first) * power_f64(exponent - first);
}

/* The number of ones in s < 2^16, modulo 2. */
HD u32 parity(u32 s) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
  return (u32)__popc((int)s) & 1;
#else
  s ^= s >> 8;
  s ^= s >> 4;
  s ^= s >> 2;
  s ^= s >> 1;
  return s & 1;
#endif
}

/* floor(value / n), value < 2^16 and inverse = 1 / n: half a unit away from an integer float32 cannot miss it. */
HD u32 quotient16(u32 value, f32 inverse) { return (u32)(i32)(((f32)(i32)value + 0.5f) * inverse); }

HD i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

#endif
