/* Ascending indices as Rice-coded gaps (Rice, Plaunt, IEEE Trans. Commun. 19, 1971).

   A. The indices are cut in chunks of 4096. Gap g_j = i_j - i_(j-1) - 1 counts the coordinates skipped, with
      i_(-1) = -1; the first gap of a chunk continues from the chunk before. A chunk has one parameter l: a gap is
      l low bits and q = g >> l in unary, q zeros and a one.
   B. Payload, little endian, bits from the least significant:
          table    one u32 a chunk: l in the top 5 bits, length of the chunk in bits in the low 27
          chunks   each from a byte boundary: n fields of l low bits, then the n unary strings; zeros to the byte
      Low bits and unary strings are apart because both then decode without a serial walk: the j-th one of the
      unary part stands at q_0 + ... + q_j + j, so a warp finds the sums of the quotients by counting bits, and
      field j is at bit l j. The lengths give every chunk its place; the only thing that passes from chunk to
      chunk is the last index, a prefix sum of chunk totals.
   C. l minimises the length of the chunk, the smallest such l on a tie. One step up, l -> l + 1, adds n bits and
      saves sum_j ceil(q_j / 2), which falls with l: the length is convex in l, and a walk downhill from any start
      ends at the minimum.
   D. Bound. The gaps of all k indices sum to at most d - k, so with one l for all chunks the codes take at most
      k (l + 1) + floor((d - k) / 2^l) bits; the best l of each chunk takes no more. The table adds 32 bits a chunk,
      the byte boundaries at most 7 for each chunk but the last, and the message ends with the last code.
   E. A chunk is never longer than 4096 * 21 + 2^32 / 2^20 = 90,112 bits (l = 20 in D), and a decoder refuses
      anything longer: it can copy a chunk to fixed, zero-padded memory and read whole words there.
   F. What a decoder accepts: n unary strings that end exactly where the table says, zeros after them, and a last
      index below d. Gaps are non-negative, so indices that decode are ascending and distinct. */
#ifndef COMPRESS_RICE_H
#define COMPRESS_RICE_H
#include "portable.h"

enum { RICE_CHUNK = 4096, RICE_MAX_PARAMETER = 31, RICE_MAX_BITS = 90112, RICE_WORDS = RICE_MAX_BITS / 64 + 2 };

/* What may be wrong with a chunk, in the order in which it is looked for; the first wrong chunk counts. */
enum rice_faults { RICE_FINE, RICE_NOT_ASCENDING, RICE_LENGTH, RICE_TRUNCATED, RICE_UNARY, RICE_INDEX, RICE_ROOM };

HD u32 rice_entry(int l, u32 bits) { return (u32)l << 27 | bits; }
HD int rice_parameter(u32 entry) { return (int)(entry >> 27); }
HD u32 rice_length(u32 entry) { return entry & 0x7ffffffu; }

/* Bits of n gaps whose quotients sum to `quotients`. */
HD u64 rice_code_bits(u64 n, int l, u64 quotients) { return n * (u64)(l + 1) + quotients; }
/* Whether n gaps can have the parameter and length of the entry. */
HD int rice_entry_fits(u32 entry, u64 n) {
  return rice_length(entry) >= rice_code_bits(n, rice_parameter(entry), 0) && rice_length(entry) <= RICE_MAX_BITS;
}
/* The logarithm of the mean gap, where the walk of C starts. */
HD int rice_first_parameter(u64 n, u64 gaps) {
  int l = 0;
  while (l < RICE_MAX_PARAMETER && gaps >> (l + 1) >= n) ++l;
  return l;
}

/* Field j of l < 32 bits of a chunk held in words, one spare word behind it. */
HD u32 rice_field(const u64* word, u32 j, int l) {
  u32 at = j * (u32)l, low = at & 63;
  u64 w = word[at >> 6] >> low | word[(at >> 6) + 1] << 1 << (63 - low);
  return (u32)w & (((u32)1 << l) - 1);
}

/* Design note D; k <= d <= 2^32. */
HD u64 rice_bound_bits(u64 d, u64 k) {
  u64 chunks = (k + RICE_CHUNK - 1) / RICE_CHUNK, best = ~(u64)0, bits;
  int l;
  if (k == 0) return 0;
  for (l = 0; l <= RICE_MAX_PARAMETER; ++l) {
    bits = rice_code_bits(k, l, (d - k) >> l);
    if (bits < best) best = bits;
  }
  return 32 * chunks + 7 * (chunks - 1) + best;
}

#endif
