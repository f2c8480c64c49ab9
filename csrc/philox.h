/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

   A. Every random bit of the package is philox(counter, key): the counter names what the bit is for,
      never which thread asks. counter = (index low, index high, stream, word), key = 64 bits of Key.
   B. Rounding takes 16 bits a coordinate. Coordinate e reads call dither_call(e), word dither_word(e),
      half dither_half(e): 256 coordinates (8 rows of 32 lanes) share 32 calls, so a row of 32
      neighbours reads one word of 32 neighbouring calls, without a shuffle on any machine.
   C. A tie of those 16 bits (one in 65,536) is decided by 32 bits of its own stream. */
#ifndef COMPRESS_PHILOX_H
#define COMPRESS_PHILOX_H
#include "portable.h"

enum {
  STREAM_DITHER = 0,
  STREAM_TIE = 1,
  STREAM_SIGNS = 2,
  STREAM_ROWS = 3,
  STREAM_SELECT = 4,
  STREAM_MASK = 5,
  STREAM_UNIFORM = 6,
  STREAM_DERIVE = 7
};

#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u
#define PHILOX_W1 0xBB67AE85u

typedef struct {
  u32 w[4];
} philox_out;

HD philox_out philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
  philox_out out;
  int round;
  for (round = 0; round < 10; ++round) {
    u64 p = (u64)c0 * PHILOX_M0, q = (u64)c2 * PHILOX_M1;
    u32 n0 = (u32)(q >> 32) ^ c1 ^ k0, n2 = (u32)(p >> 32) ^ c3 ^ k1;
    c0 = n0;
    c1 = (u32)q;
    c2 = n2;
    c3 = (u32)p;
    k0 += PHILOX_W0;
    k1 += PHILOX_W1;
  }
  out.w[0] = c0;
  out.w[1] = c1;
  out.w[2] = c2;
  out.w[3] = c3;
  return out;
}

/* The call of a stream: 128 random bits for one 64-bit index. */
HD philox_out random_at(u64 index, u32 stream, u64 key) {
  return philox((u32)index, (u32)(index >> 32), stream, 0, (u32)key, (u32)(key >> 32));
}

HD u64 dither_call(u64 e) { return (e >> 8) * 32 + (e & 31); }
HD int dither_word(u64 e) { return (int)(e >> 6) & 3; }
HD int dither_half(u64 e) { return (int)(e >> 5) & 1; }

HD u32 dither16(u64 e, u64 key) {
  return random_at(dither_call(e), STREAM_DITHER, key).w[dither_word(e)] >> (16 * dither_half(e)) & 0xffffu;
}
HD u32 tie32(u64 e, u64 key) { return random_at(e >> 2, STREAM_TIE, key).w[e & 3]; }

/* Random sign of coordinate e of a rotation or frame: one bit, 1 means minus. */
HD u32 sign_word(u64 e, u64 key) { return random_at(e >> 7, STREAM_SIGNS, key).w[(e >> 5) & 3]; }
HD u32 sign_bit(u64 e, u64 key) { return sign_word(e, key) >> (e & 31) & 1; }

#endif
