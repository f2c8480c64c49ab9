/* A k-subset of [0, n) as a number of a fixed length: one arithmetic code with the uniform law on all C(n, k) subsets.

   A. The code walks a binary tree. A node is a range of n positions that holds m of the subset; it is cut at the
      largest power of two below n, and the code tells how many, j, fall into the left part. Under the uniform law
      j is hypergeometric: p_j = C(a, j) C(b, m - j) / C(n, m), a and b the parts. Then left, then right. A node
      with m = 0 or m = n has nothing to tell, one with m = 1 tells the position, uniform on n. The probabilities
      multiply to 1 / C(n, k) for every subset: all cost the same, so a length table would be wasted on them.
   B. Frequencies are integers f_j = 1 + floor(p_j (2^24 - s)) of 2^24, s the number of possible j. The p_j come from
      ratios of neighbours, outwards from the mode, in float64 with +, *, / alone: the same on every machine.
   C. Arithmetic coder: an interval [low, low + range) of 64 bits, its leading 16 bits written whenever range < 2^48;
      symbol j takes [F_j r, F_(j+1) r) of it, r = floor(range / 2^24), F_j the sum of the frequencies below j. The
      record is the number in the last interval that ends in most zeros, most significant byte first.
   D. Length. f_j / 2^24 >= p_j (1 - s / 2^24), s <= m + 1, and the floor of r loses at most 2^-24 of it; of the rounding
      of p_j in float64, a relative 2^-30 is more than enough. Below a node the m of one depth add up to k at most and
      at most k nodes of a depth have a symbol, so the interval ends no narrower than
      (1 - 4 k depth / 2^24) / C(n, k) with depth = ceil(log2 n): a record is the least number of bytes whose bits hold
      C(n, k) / (1 - 4 k depth / 2^24), 59 bytes for 64 of 4096, where C(4096, 64) has 471.3 bits.
   E. Decoding: any bytes are some k-subset. The walk never leaves its node, the last j that is possible takes whatever
      no symbol covers, and bits after the end are zeros.
   F. Records are independent and of one length: on a GPU a lane takes a record, and a warp 32 of them. */
#ifndef COMPRESS_SUBSET_H
#define COMPRESS_SUBSET_H
#include "portable.h"

enum { SUBSET_BITS = 24, SUBSET_LOW_BITS = 48, SUBSET_UNIT = 16 };
enum { SUBSET_LEVELS = 17, SUBSET_MAX = 1 << (SUBSET_LEVELS - 1) }; /* ranges of 2^0 ... 2^16 positions */
#define SUBSET_TOTAL ((u32)1 << SUBSET_BITS)
#define SUBSET_LEAST_RANGE ((u64)1 << SUBSET_LOW_BITS)

/* floor(log2 n), n > 0: the exponent of the exact float64. */
HD int subset_level(u32 n) { return (int)(bits_f64((f64)n) >> 52) - 1023; }
/* The left part of a node of n >= 2 positions. */
HD u32 subset_cut(u32 n) { return (u32)1 << subset_level(n - 1); }

/* p_(j+1) / p_j for m of a + b positions. */
HD f64 subset_ratio(u32 a, u32 b, u32 m, u32 j) {
  return (f64)(a - j) * (f64)(m - j) / ((f64)(j + 1) * (f64)(b + j + 1 - m));
}

/* F_j for the possible j, least <= j <= most, into sum[j - least], one more at the end; weight is room for as many. */
HD u32 subset_least(u32 b, u32 m) { return m > b ? m - b : 0; }
HD u32 subset_most(u32 a, u32 m) { return m < a ? m : a; }
HD void subset_sums(u32 a, u32 b, u32 m, f64* weight, u32* sum) {
  u32 least = subset_least(b, m), most = subset_most(a, m), j, total = 0;
  u32 mode = (u32)((u64)(m + 1) * (a + 1) / ((u64)a + b + 2));
  f64 all = 0, factor;
  if (mode < least) mode = least;
  if (mode > most) mode = most;
  weight[mode - least] = 1;
  for (j = mode; j < most; ++j) weight[j + 1 - least] = weight[j - least] * subset_ratio(a, b, m, j);
  for (j = mode; j > least; --j) weight[j - 1 - least] = weight[j - least] / subset_ratio(a, b, m, j - 1);
  for (j = least; j <= most; ++j) all += weight[j - least];
  factor = (f64)(SUBSET_TOTAL - (most - least + 1)) / all;
  for (j = least; j <= most; ++j) {
    sum[j - least] = total;
    total += 1 + (u32)(weight[j - least] * factor);
  }
  sum[most + 1 - least] = total;
}

/* The part of an interval that a node's answer takes: from `start` on, `size`. */
typedef struct {
  u64 start, size;
} subset_part;

/* Symbol j of these frequency sums. */
HD subset_part subset_symbol(u64 range, const u32* sum, u32 j) {
  const u64 r = range >> SUBSET_BITS;
  const subset_part part = {sum[j] * r, (sum[j + 1] - sum[j]) * r};
  return part;
}
/* A position that is uniform on n: what each of them takes. */
HD u64 subset_share(u64 range, u32 n) { return n & (n - 1) ? range / n : range >> subset_level(n); }

/* The decoder's interval: `at` is where the code lies in it. The bytes from `next` on are still to come. */
typedef struct {
  u64 at, range;
  const u8* next;
  const u8* end;
} subset_reader;

HD u64 subset_unit(subset_reader* c) {
  u64 high = c->next < c->end ? *c->next++ : 0, low = c->next < c->end ? *c->next++ : 0;
  return high << 8 | low;
}
HD subset_reader subset_open(const u8* data, u32 bytes) {
  subset_reader c;
  int i;
  c.at = 0;
  c.range = ~(u64)0;
  c.next = data;
  c.end = data + bytes;
  for (i = 0; i < 64; i += SUBSET_UNIT) c.at = c.at << SUBSET_UNIT | subset_unit(&c);
  return c;
}
HD void subset_take(subset_reader* c, subset_part part) {
  c->at -= part.start;
  c->range = part.size;
  while (c->range < SUBSET_LEAST_RANGE) {
    c->at = c->at << SUBSET_UNIT | subset_unit(c);
    c->range <<= SUBSET_UNIT;
  }
}

/* What the code says, `part` the part that it takes: the symbol, of `symbols` with the sums of their frequencies and the
   total behind them, or a position that is uniform on n. */
HD u32 subset_find(const subset_reader* c, const u32* sum, u32 symbols, subset_part* part) {
  const u64 r = c->range >> SUBSET_BITS;
  u32 low = 0, high = symbols;
  while (high - low > 1) {
    u32 middle = (low + high) / 2;
    if (sum[middle] * r <= c->at) low = middle;
    else high = middle;
  }
  *part = subset_symbol(c->range, sum, low);
  return low;
}
HD u32 subset_find_position(const subset_reader* c, u32 n, subset_part* part) {
  const u64 r = subset_share(c->range, n);
  u64 position = c->at / r;
  if (position >= n) position = n - 1;
  part->start = position * r;
  part->size = r;
  return (u32)position;
}

/* The encoder's interval; what has been written lies before `next`. */
typedef struct {
  u64 low, range;
  u8* next;
} subset_writer;

HD void subset_put(subset_writer* c, subset_part part) {
  u8* p = c->next;
  u64 before = c->low;
  c->low += part.start;
  c->range = part.size;
  if (c->low < before)
    while (++*--p == 0) {
    }
  while (c->range < SUBSET_LEAST_RANGE) {
    *c->next++ = (u8)(c->low >> 56);
    *c->next++ = (u8)(c->low >> 48);
    c->low <<= SUBSET_UNIT;
    c->range <<= SUBSET_UNIT;
  }
}
/* The last bytes, up to `end`: the multiple of 2^cut in the interval, which is no narrower (design note D). */
HD void subset_close(subset_writer* c, u8* end) {
  i64 left = end - c->next, cut = left < 8 ? 64 - 8 * left : 0;
  u64 mask = ((u64)1 << cut) - 1;
  subset_part last;
  int i;
  last.start = (0 - c->low) & mask;
  last.size = SUBSET_LEAST_RANGE;
  subset_put(c, last);
  for (i = 56; c->next < end; i -= 8) *c->next++ = (u8)(i >= 0 ? c->low >> i : 0);
}

#endif
