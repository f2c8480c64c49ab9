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

/* 2^exponent, a normal number. */
HD f32 power_f32(i32 exponent) { return f32_bits((u32)(exponent + 127) << 23); }
HD f64 power_f64(i32 exponent) { return f64_bits((u64)(exponent + 1023) << 52); }

/* floor(value / n), value < 2^16 and inverse = 1 / n: half a unit away from an integer float32 cannot miss it. */
HD u32 quotient16(u32 value, f32 inverse) { return (u32)(i32)(((f32)(i32)value + 0.5f) * inverse); }

HD i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

#endif
