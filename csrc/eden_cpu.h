/* Eden's loops over up to 4096 coordinates, and the fields its codes are packed in. */
#ifndef COMPRESS_EDEN_CPU_H
#define COMPRESS_EDEN_CPU_H
#include "eden.h"
#include "pack_cpu.h"

/* word[i] = table[word[i]], a load at a time: gather instructions are slower on most machines. */
static void look_up(const u32* restrict table, u32* restrict word, i64 n) {
  i64 i;
#pragma GCC unroll 8
  for (i = 0; i < n; ++i) word[i] = table[word[i]];
}

enum { EDEN_CHUNK = 512 };

/* An alphabet as its loops read it. */
typedef struct {
  eden_alphabet a;
  i32 cells;
  u32 level[EDEN_LEVELS]; /* bits of float32 */
  u32 cell[EDEN_CELLS];
} eden_book;

static void eden_open(eden_book* book, int which) {
  i32 i, below = 0;
  book->a = eden_alphabet_of(which);
  book->cells = 2 * EDEN_RANGE * book->a.density;
  for (i = 0; i < book->a.levels; ++i) book->level[i] = bits_f32((f32)eden_level(book->a, i));
  for (i = 0; i < book->cells; ++i) book->cell[i] = eden_cell(book->a, i, &below);
}

#define EDEN_LOOPS(REAL, SUFFIX)                                                                                       \
  /* Codes and levels of z, unit = 1 / standard deviation. */                                                          \
  static void eden_round_##SUFFIX(const eden_book* book, const REAL* restrict z, i64 n, f64 unit, u32* restrict code,  \
                                  REAL* restrict level) {                                                              \
    const REAL per_unit = (REAL)(unit * book->a.density);                                                              \
    const i32 cells = book->cells;                                                                                     \
    u32 word[EDEN_CHUNK];                                                                                              \
    for (i64 start = 0; start < n; start += EDEN_CHUNK, z += EDEN_CHUNK, code += EDEN_CHUNK, level += EDEN_CHUNK) {    \
      const int m = (int)(n - start < EDEN_CHUNK ? n - start : EDEN_CHUNK);                                            \
      for (int i = 0; i < m; ++i) {                                                                                    \
        level[i] = eden_position_##SUFFIX(z[i], per_unit, cells);                                                      \
        word[i] = (u32)(i32)level[i];                                                                                  \
      }                                                                                                                \
      look_up(book->cell, word, m);                                                                                    \
      for (int i = 0; i < m; ++i) word[i] = code[i] = eden_code_##SUFFIX(level[i], word[i]);                           \
      look_up(book->level, word, m);                                                                                   \
      for (int i = 0; i < m; ++i) level[i] = (REAL)f32_bits(word[i]);                                                  \
    }                                                                                                                  \
  }                                                                                                                    \
  /* z = unit * level; the codes are overwritten. */                                                                   \
  static void eden_values_##SUFFIX(const eden_book* book, u32* restrict code, i64 n, REAL unit, REAL* restrict z) {    \
    i64 i;                                                                                                             \
    look_up(book->level, code, n);                                                                                     \
    for (i = 0; i < n; ++i) z[i] = unit * (REAL)f32_bits(code[i]);                                                     \
  }

EDEN_LOOPS(f32, f32)
EDEN_LOOPS(f64, f64)

/* n codes, overwritten (room for 4 more behind them), to eden_part_bytes(n, a) bytes. Fields grow in the place of
   their highest digits. */
static void eden_pack(u32* code, i64 n, eden_alphabet a, u8* out) {
  const i64 q = ceil_div(n, a.digits);
  u32* restrict field = code + (a.digits - 1) * q;
  i64 i;
  i32 j;
  for (i = n; i < q * a.digits; ++i) code[i] = 0;
  for (j = a.digits - 2; j >= 0; --j) {
    const u32* restrict digit = code + j * q;
    for (i = 0; i < q; ++i) field[i] = field[i] * (u32)a.levels + digit[i];
  }
  for (i = 0; i < q; i += PACK_BLOCK, out += packed_block_bytes(a.width))
    pack_codes(field + i, (int)(q - i < PACK_BLOCK ? q - i : PACK_BLOCK), a.width, out);
}

/* The inverse. A field that no encoder writes gives codes below a.levels all the same. */
static void eden_unpack(const u8* in, i64 n, eden_alphabet a, u32* code) {
  const i64 q = ceil_div(n, a.digits);
  const f32 inverse = 1.0f / (f32)a.levels;
  const u32 top = (u32)a.levels - 1;
  u32* restrict field = code + (a.digits - 1) * q;
  i64 i;
  i32 j;
  for (i = 0; i < q; i += PACK_BLOCK, in += packed_block_bytes(a.width))
    unpack_codes(in, (int)(q - i < PACK_BLOCK ? q - i : PACK_BLOCK), a.width, field + i);
  for (j = 0; j < a.digits - 1; ++j) {
    u32* restrict digit = code + j * q;
    for (i = 0; i < q; ++i) {
      u32 rest = quotient16(field[i], inverse);
      digit[i] = field[i] - rest * (u32)a.levels;
      field[i] = rest;
    }
  }
  for (i = 0; i < q; ++i) field[i] = field[i] < top ? field[i] : top;
}

#endif
