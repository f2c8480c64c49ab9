/* Codes of a few bits as bytes.

   A. A block is 1024 codes as 32 rows x 32 lanes; code e of the block is row e / 32, lane e % 32.
      Every lane packs its 32 codes of b bits into b words, row 0 in the lowest bits:

        lane        0      1     ...    31
        word 0   [r0 r1 ...][r0 r1 ...] ...     32 words in a row of memory: a warp, or two vectors
        ...
        word b-1

      No bit crosses a lane, so a CPU packs with vector shifts and a GPU warp with coalesced stores.
   B. The tail (fewer than 1024 codes) is one little-endian string of bits: n codes take n b bits exactly.
   C. Three symbols would waste a fifth of two bits. A trit block of n <= 1024 codes is q = ceil(n / 5)
      bytes; byte i holds codes i, i + q, i + 2q, ... as digits of base 3: 1.602 bits a code. The same rule
      serves the full block and the tail.
   D. Words are little-endian in the payload.
   E. Alphabets of L levels that are no power of two: a field is g digits of base L as one number of w <= 16 bits, and
      fields are packed as codes are. n codes are q = ceil(n / g) fields; field i holds codes i, i + q, i + 2q, ...,
      the first in the lowest digit. */
#ifndef COMPRESS_PACK_H
#define COMPRESS_PACK_H
#include "portable.h"

enum { PACK_LANES = 32, PACK_ROWS = 32, PACK_BLOCK = 1024, TRIT_DIGITS = 5, TRIT_BLOCK_BYTES = 205 };

/* Bits that hold `symbols` different codes; 0 stands for base-3 digits (design note C). */
HD int code_width(u32 symbols) {
  int width = 1;
  if (symbols == 3) return 0;
  while ((u64)1 << width < symbols) ++width;
  return width;
}

HD i64 packed_block_bytes(int width) { return width ? 128 * (i64)width : TRIT_BLOCK_BYTES; }

/* Exact length of n packed codes in bits; the payload rounds it up to a byte. */
HD i64 packed_bits(i64 n, int width) {
  i64 tail = n % PACK_BLOCK;
  return n / PACK_BLOCK * 8 * packed_block_bytes(width) + (width ? tail * width : 8 * ceil_div(tail, TRIT_DIGITS));
}
HD i64 packed_bytes(i64 n, int width) { return ceil_div(packed_bits(n, width), 8); }

/* Digit `which` (0..4) of a trit byte: a third of what is left of byte / 3^(which + 1), in 16 bits. A byte above 242 is not
   a code; its last digit comes out as 3. */
HD u32 trit_digit(u32 byte, int which) {
  const u64 inverses = 0x032a097c1c725556ull; /* of 3, 9, 27, 81, rounded up */
  const u32 left = byte * ((u32)(inverses >> 16 * (which < 4 ? which : 3)) & 0xffffu);
  return which < 4 ? (left & 0xffffu) * 3 >> 16 : left >> 16;
}

#endif
