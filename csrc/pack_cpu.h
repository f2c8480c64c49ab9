/* The packing loops. The width is a constant parameter of an always-inlined body, so that shifts are
   immediate and words stay in registers; a switch chooses the instance. */
#ifndef COMPRESS_PACK_CPU_H
#define COMPRESS_PACK_CPU_H
#include <string.h>
#include "pack.h"

/* A buffer of codes has this many entries: a trit block touches index 1024 (5 x 205 = 1025 digits). */
enum { CODE_BUFFER = 1040 };

HD void pack_words(const u32* code, u8* out, const int width) {
  u32 word[PACK_LANES * 16];
  int row, i;
  memset(word, 0, (size_t)(128 * width));
#pragma GCC unroll 32
  for (row = 0; row < PACK_ROWS; ++row) {
    const int bit = row * width, first = bit >> 5, shift = bit & 31;
    for (i = 0; i < PACK_LANES; ++i) {
      word[PACK_LANES * first + i] |= code[PACK_LANES * row + i] << shift;
      if (shift + width > 32) word[PACK_LANES * (first + 1) + i] |= code[PACK_LANES * row + i] >> (32 - shift);
    }
  }
  memcpy(out, word, (size_t)(128 * width));
}

HD void unpack_words(const u8* in, u32* code, const int width) {
  const u32 mask = (1u << width) - 1;
  u32 word[PACK_LANES * 16];
  int row, i;
  memcpy(word, in, (size_t)(128 * width));
#pragma GCC unroll 32
  for (row = 0; row < PACK_ROWS; ++row) {
    const int bit = row * width, first = bit >> 5, shift = bit & 31;
    for (i = 0; i < PACK_LANES; ++i) {
      u32 c = word[PACK_LANES * first + i] >> shift;
      if (shift + width > 32) c |= word[PACK_LANES * (first + 1) + i] << (32 - shift);
      code[PACK_LANES * row + i] = c & mask;
    }
  }
}

/* The trit loops for a number of bytes, a constant where speed counts: the digits of different rows are then
   known not to overlap. Digits beyond n are zero; CODE_BUFFER has room for them. */
HD void pack_digits(const u32* restrict code, u8* restrict out, const int bytes) {
  int i;
  for (i = 0; i < bytes; ++i)
    out[i] = (u8)(code[i] + 3 * code[i + bytes] + 9 * code[i + 2 * bytes] + 27 * code[i + 3 * bytes] +
                  81 * code[i + 4 * bytes]);
}

HD void unpack_digits(const u8* restrict in, u32* restrict code, const int bytes) {
  int i;
  for (i = 0; i < bytes; ++i) {
    u32 a = in[i], b = a * 171 >> 9, c = b * 171 >> 9, d = c * 171 >> 9, e = d * 171 >> 9; /* thirds */
    code[i] = a - 3 * b;
    code[i + bytes] = b - 3 * c;
    code[i + 2 * bytes] = c - 3 * d;
    code[i + 3 * bytes] = d - 3 * e;
    code[i + 4 * bytes] = e;
  }
}

static void pack_trits(u32* code, int n, u8* out) {
  const int bytes = (n + TRIT_DIGITS - 1) / TRIT_DIGITS;
  int i;
  for (i = n; i < TRIT_DIGITS * bytes; ++i) code[i] = 0;
  if (bytes == TRIT_BLOCK_BYTES) pack_digits(code, out, TRIT_BLOCK_BYTES);
  else pack_digits(code, out, bytes);
}

static void unpack_trits(const u8* in, int n, u32* code) {
  const int bytes = (n + TRIT_DIGITS - 1) / TRIT_DIGITS;
  if (bytes == TRIT_BLOCK_BYTES) unpack_digits(in, code, TRIT_BLOCK_BYTES);
  else unpack_digits(in, code, bytes);
}

/* One little-endian string of bits (design note B of pack.h). */
static void pack_string(const u32* code, int n, int width, u8* out) {
  u64 held = 0;
  int bits = 0, i;
  for (i = 0; i < n; ++i) {
    held |= (u64)code[i] << bits;
    bits += width;
    if (bits >= 32) {
      const u32 word = (u32)held;
      memcpy(out, &word, 4);
      out += 4;
      held >>= 32;
      bits -= 32;
    }
  }
  for (; bits > 0; bits -= 8, held >>= 8) *out++ = (u8)held;
}

static void unpack_string(const u8* in, int n, int width, u32* code) {
  const u8* end = in + (n * width + 7) / 8;
  const u32 mask = (1u << width) - 1;
  u64 held = 0;
  u32 word;
  int bits = 0, i;
  for (i = 0; i < n; ++i) {
    if (bits < width) {
      if (end - in >= 4) {
        memcpy(&word, in, 4);
        held |= (u64)word << bits;
        in += 4;
        bits += 32;
      } else
        for (; bits < width; bits += 8) held |= (u64)*in++ << bits;
    }
    code[i] = (u32)held & mask;
    held >>= width;
    bits -= width;
  }
}

#define FOR_WIDTH(F, a, b)                                                                                             \
  case 1: F(a, b, 1); break;                                                                                           \
  case 2: F(a, b, 2); break;                                                                                           \
  case 3: F(a, b, 3); break;                                                                                           \
  case 4: F(a, b, 4); break;                                                                                           \
  case 5: F(a, b, 5); break;                                                                                           \
  case 6: F(a, b, 6); break;                                                                                           \
  case 7: F(a, b, 7); break;                                                                                           \
  case 8: F(a, b, 8); break;                                                                                           \
  case 9: F(a, b, 9); break;                                                                                           \
  case 10: F(a, b, 10); break;                                                                                         \
  case 11: F(a, b, 11); break;                                                                                         \
  case 12: F(a, b, 12); break;                                                                                         \
  case 13: F(a, b, 13); break;                                                                                         \
  case 14: F(a, b, 14); break;                                                                                         \
  case 15: F(a, b, 15); break;                                                                                         \
  case 16: F(a, b, 16); break;

/* n <= 1024 codes of a width (0: trits) to packed_bytes(n, width) bytes, and back. */
static void pack_codes(u32* code, int n, int width, u8* out) {
  if (width == 0) pack_trits(code, n, out);
  else if (n < PACK_BLOCK) pack_string(code, n, width, out);
  else switch (width) {
      FOR_WIDTH(pack_words, code, out)
    }
}
static void unpack_codes(const u8* in, int n, int width, u32* code) {
  if (width == 0) unpack_trits(in, n, code);
  else if (n < PACK_BLOCK) unpack_string(in, n, width, code);
  else switch (width) {
      FOR_WIDTH(unpack_words, in, code)
    }
}

#endif
