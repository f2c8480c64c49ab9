/* Sums whose order depends on the length alone.

   A. A leaf is 4096 elements over 32 lanes: lane l adds elements l, l+32, l+64, ... in that order.
   B. The 32 lanes fold in halves: l += l+16, l += l+8, ... l += l+1.
   C. The leaves' sums are summed by the same rule, until one number remains: one warp a leaf on a GPU,
      one vector register set on a CPU.
   D. float32 is squared exactly in float64. A sum that is not finite therefore means NaN or Inf in the
      input (float32), or possibly an overflow of the square (float64): the caller rescales and asks again. */
#ifndef COMPRESS_REDUCE_H
#define COMPRESS_REDUCE_H
#include "portable.h"

enum { REDUCE_LANES = 32, REDUCE_LEAF = 4096 };

HD f64 term_square(f64 x) { return x * x; }
HD f64 term_abs(f64 x) { return f64_bits(bits_f64(x) & 0x7fffffffffffffffull); }
HD f64 term_self(f64 x) { return x; }

/* |x| as an integer orders as |x| does, and NaN and Inf come last. */
HD u32 magnitude_f32(f32 x) { return bits_f32(x) & 0x7fffffffu; }
HD u64 magnitude_f64(f64 x) { return bits_f64(x) & 0x7fffffffffffffffull; }
#define INFINITE_F32 0x7f800000u
#define INFINITE_F64 0x7ff0000000000000ull

typedef enum { NORM_L2, NORM_MAX, NORM_MEAN_ABS } Norm;

/* Exact factors between the range of float64 and the middle of it. */
#define RESCALE_UP 0x1p600
#define RESCALE_DOWN 0x1p-600

#endif
