/* What both directions share on a GPU: how chunks lie, the dither, and what a lane remembers (level.h). */
#ifndef COMPRESS_LEVEL_CUH
#define COMPRESS_LEVEL_CUH
#include "block.cuh"
#include "level.h"
#include "philox.h"

struct Chunk {
  i64 first; /* coordinate */
  int n, lanes, steps;
};
DEVICE Chunk chunk_of(i64 number, i64 d, f64 scale) {
  Chunk c;
  c.first = number * ENTROPY_CHUNK;
  c.n = (int)(d - c.first < ENTROPY_CHUNK ? d - c.first : ENTROPY_CHUNK);
  c.lanes = level_lanes(c.n, scale);
  c.steps = (c.n + c.lanes - 1) / c.lanes;
  return c;
}

/* subtract_word of e, e + 32, e + 64 and e + 96. */
DEVICE void subtract_words(u64 e, u64 key, u32 w[4]) {
  const int odd = subtract_place(e) & 1, two = subtract_place(e) & 2;
  const philox_out a = random_at(subtract_call(e), STREAM_SUBTRACT, key);
  philox_out b = a;
  if (odd | two) b = random_at(subtract_call(e) + 32, STREAM_SUBTRACT, key);
  const u32 v0 = odd ? a.w[1] : a.w[0], v1 = odd ? a.w[2] : a.w[1], v2 = odd ? a.w[3] : a.w[2],
            v3 = odd ? b.w[0] : a.w[3], v4 = odd ? b.w[1] : b.w[0], v5 = odd ? b.w[2] : b.w[1];
  w[0] = two ? v2 : v0;
  w[1] = two ? v3 : v1;
  w[2] = two ? v4 : v2;
  w[3] = two ? v5 : v3;
}
DEVICE u32 subtract_word_of(u64 e, u64 key) {
  const philox_out a = random_at(subtract_call(e), STREAM_SUBTRACT, key);
  const u32 low = subtract_place(e) & 1 ? a.w[1] : a.w[0], high = subtract_place(e) & 1 ? a.w[3] : a.w[2];
  return subtract_place(e) & 2 ? high : low;
}

/* Means of magnitudes along a lane's run and, in shared memory, down its columns: at each step octave_of, then
   remember. */
struct Past {
  u32 mean, up, *above;
  int columns, column, row, row_gain;
};
DEVICE Past forget(u32* above, int columns) {
  for (int i = 0; i < columns; ++i) above[i * WARP + lane_of()] = 0;
  const Past p = {0, 0, above + lane_of(), columns, 0, 0, level_column_gain(0)};
  return p;
}
DEVICE u32 octave_of(Past& p) {
  if (!p.columns) return level_octave(p.mean);
  p.up = p.above[p.column * WARP];
  return level_octave_between(p.mean, p.row ? p.up : p.mean); /* the middle of two equal ones is theirs */
}
DEVICE void remember(Past& p, u32 magnitude) {
  p.mean = level_mean(p.mean, magnitude, level_gain(p.column));
  if (p.columns) p.above[p.column * WARP] = level_mean(p.up, magnitude, p.row_gain);
  ++p.column;
  if (p.columns && p.column == p.columns) {
    p.column = 0;
    p.row_gain = level_column_gain(++p.row);
  }
}

#endif
