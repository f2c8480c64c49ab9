/* Which coordinates travel: the keyed bijection of Rand-K and Perm-K, the coin of Bernoulli, the order of Top-K.

   A. Top-K orders coordinates by magnitude as an integer (reduce.h), larger first, and by index where
      magnitudes tie: a total order, so every algorithm that respects it returns the same set. A sample tells which
      magnitude a little more than k elements reach: one element of each of many strata of equal length.
   B. Index j of a random subset is (pi(j) + r) mod d. pi is a Feistel network on the smallest power of two that
      holds d, walked along its cycles until it lands below d: a bijection of [0, d) that needs no table. r is
      uniform, so P(i in S) = k/d exactly, whatever pi is. Six rounds, because four random ones already make a
      strong pseudorandom permutation (Luby, Rackoff, SIAM J. Comput. 17, 1988); at least 8 bits, because
      halves of one or two bits reach few permutations. The walk takes fewer than two steps on average from
      d = 129 on, and never more than 256 in all below.
   C. The halves are never swapped: rounds alternate between low ^= f(high) and high ^= f(low), so an odd number
      of bits needs no case of its own.
   D. r = floor(u d / 2^64) for 64 random bits u: each value has probability 1/d to within 2^-64.
   E. Bernoulli: 128 coordinates share 32 calls, as for dither (philox.h, B): lane e mod 32 of a block makes call
      32 (e / 128) + e mod 32, and row (e / 32) mod 4 takes that word. */
#ifndef COMPRESS_SELECT_H
#define COMPRESS_SELECT_H
#include "philox.h"
#include "reduce.h"

enum { FEISTEL_ROUNDS = 6, FEISTEL_MIN_BITS = 8, MASK_BLOCK = 128, MASK_LANES = 32 };

/* floor(u d / 2^64) for d <= 2^32: uniform on [0, d) if u is uniform. */
HD u32 uniform_below(u64 u, u64 d) { return (u32)(((u >> 32) * d + ((u & 0xffffffffu) * d >> 32)) >> 32); }

typedef struct {
  u32 round_key[FEISTEL_ROUNDS];
  int low_bits;
  u32 low_mask, high_mask;
  u32 last;        /* d - 1 */
  u32 shift, wrap; /* r, and the largest value that r does not carry past d - 1 */
} bijection;

HD bijection bijection_of(u64 key, u64 d) {
  bijection p;
  philox_out a = random_at(0, STREAM_SELECT, key), b = random_at(1, STREAM_SELECT, key);
  int bits = FEISTEL_MIN_BITS;
  while (((u64)1 << bits) < d) ++bits;
  p.round_key[0] = a.w[0];
  p.round_key[1] = a.w[1];
  p.round_key[2] = a.w[2];
  p.round_key[3] = a.w[3];
  p.round_key[4] = b.w[0];
  p.round_key[5] = b.w[1];
  p.low_bits = bits / 2;
  p.low_mask = ((u32)1 << p.low_bits) - 1;
  p.high_mask = ((u32)1 << (bits - p.low_bits)) - 1;
  p.last = (u32)(d - 1);
  p.shift = uniform_below(b.w[2] | (u64)b.w[3] << 32, d);
  p.wrap = p.last - p.shift;
  return p;
}

/* A bijection of 32 bits whose output bits each depend on every input bit: multiply and xor-shift, twice. */
HD u32 mix(u32 x) {
  x ^= x >> 16;
  x *= 0x21f0aaadu;
  x ^= x >> 15;
  x *= 0x735a2d97u;
  return x ^ x >> 15;
}

/* Element i of a sample, from a stratum of `stride`. */
HD i64 sample_place(u32 i, i64 stride) { return i * stride + ((i64)mix(i) * stride >> 32); }
/* The rank, in a sample of `size` of n, that is almost surely behind the k-th largest of all: about five standard
   deviations behind, at any rank. */
HD i64 sample_rank(i64 size, i64 k, i64 n) {
  i64 rank = size * k / n;
  return rank + rank / 8 + 48;
}

HD u32 feistel(u32 v, bijection p) {
  u32 low = v & p.low_mask, high = v >> p.low_bits;
  int round;
  for (round = 0; round < FEISTEL_ROUNDS; round += 2) {
    low ^= mix(high ^ p.round_key[round]) & p.low_mask;
    high ^= mix(low ^ p.round_key[round + 1]) & p.high_mask;
  }
  return low | high << p.low_bits;
}

/* (v + r) mod d without leaving 32 bits. */
HD u32 rotated(u32 v, bijection p) { return v > p.wrap ? v - p.wrap - 1 : v + p.shift; }

/* pi(j) + r mod d, one index at a time. */
HD u32 subset_index(u32 j, bijection p) {
  do j = feistel(j, p);
  while (j > p.last);
  return rotated(j, p);
}

HD u64 mask_call(u64 e) { return (e >> 7) * MASK_LANES + (e & (MASK_LANES - 1)); }
HD int mask_word(u64 e) { return (int)(e >> 5) & 3; }
HD u32 mask32(u64 e, u64 key) { return random_at(mask_call(e), STREAM_MASK, key).w[mask_word(e)]; }

#endif
