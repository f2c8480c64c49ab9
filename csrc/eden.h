/* Eden: a block after a rotation is nearly Gaussian, and is rounded to the levels that are best for a Gaussian.

   A. An alphabet is L levels, the Lloyd-Max quantiser of N(0, 1): L cells, thresholds half way between levels, levels
      the means of their cells. Levels are integers in units of 2^-13, so that sums of their squares are exact
      whatever the machine; the table is part of the format. g codes of an alphabet fill a field of w bits (pack.h, E).
      The twenty alphabets are those below 16 bits a field that no mixture of two others beats.
   B. A rate between two alphabets is a mixture: the first coordinates of a block in the poorer one, the rest in the
      richer one, as many as the bits allow.
   C. A block is rounded as y = z sqrt(n) / |z|, and its scale makes scale * levels stand for z. z lies on the line of
      thresholds in cells of equal width, a power of two small enough that no cell has two thresholds: one
      look-up says how many thresholds lie below the cell and where the one in it is, one comparison the rest.
      Both are one word, the number in the 8 lowest bits of the threshold, a float32: it moves the threshold by 2^-16
      of itself, which costs nothing, and is what the format says.
   D. Blocks are those of the rotation (hadamard.h, C). Where they do not fill the vector, n = k B + r, the overlapping
      one leaves r coordinates of its neighbour: blocks k - 1 and k are these r coordinates and the last B. Coordinates
      of one block then have one variance, whatever x is. A span is what is rotated by itself: a block, or the last
      whole one and the r coordinates that follow it. */
#ifndef COMPRESS_EDEN_H
#define COMPRESS_EDEN_H
#include "hadamard.h"
#include "pack.h"
#include "reduce.h"

enum { EDEN_ALPHABETS = 20, EDEN_LEVELS = 256, EDEN_RANGE = 5, EDEN_CELLS = 640, EDEN_RATE_ONE = 65536 };

/* The unit of a level is 2^-13. */
#define EDEN_UNIT 0x1p-13

typedef struct {
  i32 levels, digits, width;
  i32 density; /* cells a unit of y */
  i32 first;   /* where its levels >= 0 start in the table */
} eden_alphabet;

HD eden_alphabet eden_alphabet_of(int which) {
  static const i32 table[EDEN_ALPHABETS][5] = {
      {2, 1, 1, 1, 0},     {3, 5, 8, 1, 1},      {4, 1, 2, 2, 3},      {5, 3, 7, 2, 5},       {6, 5, 13, 2, 8},
      {8, 1, 3, 2, 11},    {10, 3, 10, 4, 15},   {11, 2, 7, 4, 20},    {13, 4, 15, 4, 26},    {16, 1, 4, 4, 33},
      {20, 3, 13, 8, 41},  {25, 3, 14, 8, 51},   {32, 1, 5, 8, 64},    {40, 3, 16, 16, 80},   {45, 2, 11, 16, 100},
      {64, 1, 6, 16, 123}, {90, 2, 13, 32, 155}, {128, 1, 7, 32, 200}, {181, 2, 15, 64, 264}, {256, 1, 8, 64, 355}};
  const i32* row = table[which];
  eden_alphabet a;
  a.levels = row[0];
  a.digits = row[1];
  a.width = row[2];
  a.density = row[3];
  a.first = row[4];
  return a;
}

/* Level `code` of an alphabet. */
HD i32 eden_level(eden_alphabet a, i32 code) {
  static const u16 table[] = {
      6536,  0,     10027, 3709,  12373, 0,     6263,  14124, 2603,  8193,  15512, 2008,  6193,  11009, 17629, 1635,
      4996,  8666,  13036, 19211, 0,     3010,  6163,  9657,  13866, 19872, 0,     2570,  5229,  8085,  11315, 15274,
      21009, 1052,  3179,  5380,  7720,  10291, 13255, 16949, 22385, 850,   2562,  4313,  6132,  8058,  10146, 12480,
      15212, 18667, 23822, 0,     1373,  2759,  4172,  5628,  7145,  8749,  10474, 12369, 14515, 17058, 20309, 25216,
      540,   1622,  2715,  3823,  4956,  6121,  7328,  8592,  9927,  11357, 12912, 14641, 16619, 18987, 22046, 26712,
      434,   1304,  2179,  3063,  3958,  4869,  5801,  6759,  7749,  8777,  9855,  10992, 12204, 13513, 14949, 16556,
      18409, 20643, 23551, 28024, 0,     774,   1551,  2332,  3120,  3918,  4728,  5555,  6400,  7269,  8167,  9098,
      10070, 11091, 12174, 13333, 14588, 15969, 17521, 19315, 21487, 24323, 28702, 274,   821,   1370,  1922,  2476,
      3033,  3596,  4164,  4739,  5322,  5914,  6516,  7131,  7759,  8403,  9064,  9746,  10451, 11183, 11946, 12745,
      13587, 14480, 15434, 16463, 17587, 18833, 20245, 21891, 23899, 26546, 30672, 195,   586,   978,   1370,  1763,
      2158,  2554,  2953,  3353,  3757,  4163,  4573,  4987,  5405,  5828,  6256,  6689,  7129,  7576,  8031,  8494,
      8967,  9449,  9943,  10449, 10968, 11503, 12055, 12626, 13217, 13833, 14476, 15150, 15860, 16612, 17414, 18276,
      19211, 20238, 21383, 22687, 24218, 26096, 28587, 32502, 138,   414,   690,   966,   1242,  1519,  1797,  2075,
      2354,  2634,  2915,  3198,  3481,  3766,  4052,  4340,  4630,  4922,  5216,  5512,  5810,  6112,  6415,  6722,
      7032,  7346,  7663,  7984,  8309,  8639,  8973,  9312,  9657,  10007, 10364, 10728, 11098, 11477, 11863, 12259,
      12664, 13080, 13508, 13948, 14402, 14872, 15358, 15863, 16389, 16938, 17514, 18121, 18762, 19445, 20175, 20964,
      21823, 22770, 23831, 25045, 26476, 28241, 30597, 34322, 0,     195,   391,   586,   782,   978,   1174,  1370,
      1566,  1763,  1960,  2158,  2356,  2554,  2753,  2952,  3152,  3353,  3554,  3756,  3959,  4163,  4367,  4572,
      4779,  4986,  5194,  5404,  5615,  5827,  6040,  6254,  6471,  6688,  6907,  7128,  7351,  7575,  7801,  8030,
      8260,  8493,  8728,  8965,  9205,  9447,  9693,  9941,  10192, 10447, 10705, 10966, 11232, 11501, 11775, 12053,
      12335, 12623, 12916, 13215, 13519, 13830, 14148, 14473, 14805, 15147, 15497, 15856, 16227, 16608, 17002, 17410,
      17832, 18271, 18728, 19206, 19706, 20232, 20788, 21377, 22005, 22680, 23411, 24209, 25093, 26086, 27226, 28575,
      30246, 32485, 36046, 69,    208,   346,   484,   623,   761,   900,   1039,  1178,  1317,  1456,  1595,  1734,
      1874,  2013,  2153,  2293,  2434,  2574,  2715,  2856,  2997,  3139,  3281,  3423,  3566,  3709,  3852,  3996,
      4140,  4285,  4430,  4575,  4721,  4868,  5015,  5163,  5311,  5459,  5609,  5759,  5909,  6061,  6213,  6365,
      6519,  6673,  6828,  6984,  7140,  7298,  7456,  7615,  7776,  7937,  8099,  8263,  8427,  8593,  8760,  8928,
      9097,  9268,  9440,  9613,  9788,  9964,  10142, 10322, 10503, 10686, 10870, 11057, 11245, 11436, 11628, 11823,
      12020, 12219, 12421, 12625, 12832, 13042, 13254, 13470, 13689, 13911, 14136, 14365, 14598, 14835, 15077, 15322,
      15572, 15828, 16088, 16354, 16626, 16904, 17189, 17481, 17780, 18088, 18404, 18730, 19066, 19413, 19772, 20144,
      20530, 20933, 21353, 21792, 22254, 22740, 23255, 23802, 24387, 25016, 25699, 26448, 27278, 28214, 29291, 30570,
      32159, 34297, 37712,
  };
  i32 from_middle = 2 * code - (a.levels - 1), half = a.levels / 2;
  if (from_middle < 0) return -(i32)table[a.first + (a.levels & 1 ? half - code : half - 1 - code)];
  return table[a.first + code - half];
}

/* The word of a cell, cells counted from -EDEN_RANGE on: a threshold in cells, and how many lie below the cell in its
   8 lowest bits. `below` goes up with the cells: 0 before the first. */
HD u32 eden_cell(eden_alphabet a, i32 cell, i32* below) {
  const f64 halves = a.density * (EDEN_UNIT / 2), middle = EDEN_RANGE * a.density;
  f64 threshold = 1e9;
  while (*below < a.levels - 1) {
    threshold = (eden_level(a, *below) + eden_level(a, *below + 1)) * halves + middle;
    if (threshold > cell) break;
    ++*below;
    threshold = 1e9;
  }
  if (!(threshold < cell + 1)) threshold = 1e9;
  return (bits_f32((f32)threshold) & ~255u) | (u32)*below;
}

#define EDEN_FORMULAS(REAL, SUFFIX)                                                                                    \
  /* Where z lies among `cells` cells; per_unit = cells a unit of z. */                                                \
  HD REAL eden_position_##SUFFIX(REAL z, REAL per_unit, i32 cells) {                                                   \
    const REAL middle = (REAL)(cells / 2), top = (REAL)cells - (REAL)0.5;                                              \
    REAL t = z * per_unit + middle;                                                                                    \
    t = t < top ? t : top;                                                                                             \
    return t > 0 ? t : 0;                                                                                              \
  }                                                                                                                    \
  HD u32 eden_code_##SUFFIX(REAL position, u32 word) { /* one more where the threshold lies below it */                \
    return (word & 255u) + (u32)(bits_##SUFFIX((REAL)f32_bits(word) - position) >> (8 * sizeof(REAL) - 1));            \
  }

EDEN_FORMULAS(f32, f32)
EDEN_FORMULAS(f64, f64)

/* How a block of n coordinates is cut at rate / EDEN_RATE_ONE bits each: `poorer` alphabet, then the next one. */
typedef struct {
  int poorer;
  i64 n[2];
} eden_split;

HD eden_split eden_split_of(i64 n, i64 rate) {
  eden_split s;
  eden_alphabet a, b;
  s.poorer = 0;
  for (;;) {
    a = eden_alphabet_of(s.poorer);
    b = eden_alphabet_of(s.poorer + 1);
    if (s.poorer + 2 == EDEN_ALPHABETS || (i64)b.width * EDEN_RATE_ONE > rate * b.digits) break;
    ++s.poorer;
  }
  s.n[1] = n * (rate * a.digits - (i64)a.width * EDEN_RATE_ONE) * b.digits /
           ((i64)(b.width * a.digits - a.width * b.digits) * EDEN_RATE_ONE);
  s.n[1] = s.n[1] < n ? s.n[1] : n;
  s.n[0] = n - s.n[1];
  return s;
}

/* The length of the span that starts at `start`. */
HD i64 eden_span(i64 start, i64 n, i64 block) { return n - start < 2 * block ? n - start : block; }

/* 1 / variance of n coordinates whose squares sum to `square`. */
HD f64 eden_precision(f64 square, i64 n) { return square > 0 ? (f64)n / square : 0; }

/* A block's scale from the sums of z^2, z level and level^2. */
HD f64 eden_scale(f64 square, f64 product, f64 levels, int unbiased) {
  if (!(product > 0) || !(levels > 0)) return 0;
  return (unbiased ? square / product : product / levels) / EDEN_UNIT;
}

/* z / factor; what rounding has carried beyond the range becomes its largest number. */
HD f32 eden_restore_f32(f64 z, f64 factor) {
  const f64 top = f32_bits(INFINITE_F32 - 1);
  z /= factor;
  z = z > -top ? z : -top;
  return (f32)(z < top ? z : top);
}
HD f64 eden_restore_f64(f64 z, f64 factor) {
  const f64 top = f64_bits(INFINITE_F64 - 1);
  z /= factor;
  z = z > -top ? z : -top;
  return z < top ? z : top;
}

/* Bytes of the codes of n coordinates in an alphabet, and of a block. */
HD i64 eden_part_bytes(i64 n, eden_alphabet a) { return packed_bytes(ceil_div(n, a.digits), a.width); }
HD i64 eden_block_bytes(i64 n, i64 rate) {
  eden_split s = eden_split_of(n, rate);
  return eden_part_bytes(s.n[0], eden_alphabet_of(s.poorer)) + eden_part_bytes(s.n[1], eden_alphabet_of(s.poorer + 1));
}

#endif
