/* From a vector to symbols, a chunk of 131,072 coordinates at a time:

   A. With contexts level_arrange puts a = x / step + u in the order of coding, and level_guess_octaves follows the
      lanes.
   B. trellis_search has a block for a chunk (with 256 states, for 8 of its lanes). The recursion takes one step after
      the other, so nothing but additions and comparisons is in it; other warps prepare the costs of the steps to come.
   C. A cost lies in the upper half of a word. It wraps around there as 16 bits do on the CPU, and the lower half holds
      the last decisions on the way to it, the newest in the highest bit, 1 for the odd state before: of equal costs the
      one without is less, which is the CPU's choice. So one minimum compares, decides and remembers. Every window of
      steps these bits are stored, and the way back is one lookup a window.
   D. A thread holds 8 states; where there are more, a team of threads has a path. What comes of a thread's states stays
      with it for three steps, then the team exchanges them through shared memory.
   E. level_tell knows the states of the path: levels, symbols and moments are a map over coordinates. A warp takes the
      64 steps that moments are added along. Models of contexts follow the levels, which level_contexts does.

   No chunk is faster than its 4096 steps; about 500 chunks fill a device. */
#include "level.cuh"
#include "norm.cuh"

enum { ARRANGE_STEPS = 128, FOLLOW_STEPS = 16 };
/* float64 has room for fewer threads of a search, and blocks of level_tell, on a multiprocessor. */
enum { SEARCHERS = sizeof(real) == 4 ? 640 : 512, TELLERS = sizeof(real) == 4 ? 4 : 3 };

/* Coordinates: x, or what level_arrange made of it. Scratch of all kinds starts with chunk `base`. */
struct Source {
  const real* x;
  const f32* a;
  const u8* phase;
  f64 inverse;
  u64 key;
  int states, context;
};

/* The places of a lane are those of its steps below this: coordinates, or whole steps. */
DEVICE int end_of(const Chunk& c, int lane, int whole) { return lane < c.lanes ? whole ? c.steps * c.lanes : c.n : 0; }

/* Four steps of a lane as they lie in memory; zeros where there are none. */
DEVICE void fetch(const Source& s, const Chunk& c, i64 room, int t, int lane, real v[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int p = (t + j) * c.lanes + lane;
    v[j] = 0;
    if (p < end_of(c, lane, s.context)) v[j] = s.context ? (real)s.a[room + p] : s.x[c.first + p];
  }
}

/* Their a, and phases unless that is 0; t is a multiple of 4. */
template <int dithered>
DEVICE void scale_steps(const Source& s, const Chunk& c, i64 room, int t, int lane, const real v[4], f32 a[4],
                        u32* phase) {
  u32 word[4] = {0, 0, 0, 0};
  if (dithered && !s.context) {
    if (c.lanes == WARP) subtract_words((u64)c.first + t * WARP + lane, s.key, word);
    else
#pragma unroll
      for (int j = 0; j < 4; ++j) word[j] = subtract_word_of((u64)c.first + (t + j) * c.lanes + lane, s.key);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int p = (t + j) * c.lanes + lane, here = p < end_of(c, lane, 0);
    if (s.context) {
      a[j] = (f32)v[j];
      if (phase) phase[j] = dithered && here ? s.phase[room + p] : 0;
    } else {
      a[j] = here ? level_scaled((f64)v[j] * s.inverse, dithered ? level_dither_of(word[j], s.states) : 0) : 0;
      if (phase) phase[j] = level_phase(word[j]);
    }
  }
}

/* Costs: one row, or one for every octave. */
struct __align__(16) Row {
  i16 of[8];
};
struct Costs {
  TrellisCost one;
  TrellisTerms terms;
  const Row* rows;
};
/* The block has to meet before rows are looked up. */
DEVICE Costs costs_of(const f32* costs, const u8* octave, Row* rows) {
  Costs k = {{1, 0, 0, 0, 0, 1}, {0, 0, 0, 0}, rows};
  if (!costs) return k;
  const TrellisCost* cost = (const TrellisCost*)costs;
  k.one = cost[0];
  k.terms = trellis_terms(&k.one);
  for (int o = (int)threadIdx.x; octave && o < LEVEL_CONTEXTS; o += (int)blockDim.x) trellis_row(cost + o, rows[o].of);
  return k;
}
template <int plain, int contexts>
DEVICE i32 position_of(const Costs& k, f32 a, u32 octave, TrellisTerms* terms) {
  *terms = k.terms;
  if (!contexts) return trellis_position(a, k.one.scale, k.one.shift, plain);
  const Row row = k.rows[octave];
  terms->zero = row.of[2];
  terms->other = row.of[3];
  terms->odd = row.of[4];
  terms->unit = row.of[5];
  return trellis_position(a, trellis_row_scale(row.of[0]), trellis_row_shift(row.of[1]), plain);
}
DEVICE void fetch_octaves(const u8* octave, const Chunk& c, i64 room, int t, int lane, u32 v[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
    v[j] = octave && (t + j) * c.lanes + lane < end_of(c, lane, 1) ? octave[room + (t + j) * c.lanes + lane] : 0;
}

/* One of the ways to search: plain (dithered), or with costs of `labels`, by octave or not. */
#define SEARCH_WAYS(plain_way, labels_way, octave_way, call)                                                           \
  do {                                                                                                                 \
    if (plain_way) call(1, 0, 0);                                                                                      \
    else if (octave_way && labels_way) call(0, 1, 1);                                                                  \
    else if (octave_way) call(0, 0, 1);                                                                                \
    else if (labels_way) call(0, 1, 0);                                                                                \
    else call(0, 0, 0);                                                                                                \
  } while (0)

/* Costs of the four cosets at four steps of a lane. */
template <int plain, int labels, int contexts>
DEVICE void measure(const Source& s, const Chunk& c, const Costs& k, i64 room, int t, int lane, const real v[4],
                    const u32 octave[4], uint4* to, int stride) {
  f32 a[4];
  scale_steps<plain>(s, c, room, t, lane, v, a, 0);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    TrellisTerms terms;
    i16 m[4];
    const i32 position = position_of<plain, contexts>(k, a[j], octave[j], &terms);
    trellis_metrics(trellis_fraction(position), trellis_near(position), (i16)(a[j] < 0 ? -1 : 0), terms, labels, plain,
                    contexts, m);
    to[j * stride] = make_uint4((u32)m[0] << 16, (u32)m[1] << 16, (u32)m[2] << 16, (u32)m[3] << 16);
  }
}

/* Steps of a window: whole rounds of three between exchanges, and of four between subtractions. */
DEVICE constexpr int window_of(int states) { return states > 8 ? 12 : 16; }
enum { MOST_WINDOWS = 342 /* of a chunk */, EXCHANGE = 320 /* words of a warp */ };

DEVICE u32 least(u32 a, u32 b) { return (i32)a < (i32)b ? a : b; }
DEVICE u32 upper(u32 v) { return v & 0xffff0000u; }

/* How the states of a path lie in `size` threads. */
template <int states>
struct Team {
  enum {
    bits = states == 4    ? 2
           : states == 8  ? 3
           : states == 16 ? 4
           : states == 32 ? 5
           : states == 64 ? 6
                          : 8,
    local_bits = bits < 3 ? bits : 3,
    local = 1 << local_bits,
    size = states / local,
    round = size > 1 ? 3 : 1, /* steps from one exchange to the next */
    window = window_of(states),
    lanes = states == 256 ? 8 : 32,
    threads = lanes * size,
    room = states + 4 /* words of a path that is exchanged; 4 more keep it off its neighbours' banks */
  };

  /* State number i of thread `mate`, r steps after an exchange, and back. */
  DEVICE constexpr u32 state(int i, int mate, int r) {
    return (u32)(i >> (local_bits - r) << (bits - r) | mate << (local_bits - r) | (i & ((1 << (local_bits - r)) - 1)));
  }
  DEVICE int mate_of(u32 s, int r) { return (int)(s >> (local_bits - r)) & (size - 1); }
  DEVICE int number_of(u32 s, int r) {
    return (int)(s >> (bits - r) << (local_bits - r) | (s & ((1u << (local_bits - r)) - 1)));
  }

  /* Step k of a window, r steps after an exchange. turn: where a thread's costs stand, relative to those of mate 0. */
  DEVICE void step(u32 cost[local], const u32* metric, int k, int r, const int turn[3], u32* exchange) {
    const int mate = (int)threadIdx.x & (size - 1);
    const u32* at = metric + 4 * lanes * k;
    u32 m[4], next[local];
    if (size > 1) {
#pragma unroll
      for (int i = 0; i < 4; ++i) m[i] = at[i ^ turn[r]];
    } else {
      const uint4 all = *(const uint4*)at;
      m[0] = all.x, m[1] = all.y, m[2] = all.z, m[3] = all.w;
    }
#pragma unroll
    for (int i = 0; i < local / 2; ++i)
#pragma unroll
      for (int b = 0; b < 2; ++b)
        next[b * local / 2 + i] =
            least(cost[2 * i] + m[trellis_metric(state(2 * i, 0, r), (u32)b, states)],
                  cost[2 * i + 1] + m[trellis_metric(state(2 * i + 1, 0, r), (u32)b, states)] + (1u << k));
#pragma unroll
    for (int i = 0; i < local; ++i) cost[i] = next[i];
    if (k % 4 == 3) { /* differences are all that matters: keep them small */
      const u32 zero = upper(size > 1 ? __shfl_sync(ALL_LANES, cost[0], 0, size) : cost[0]);
#pragma unroll
      for (int i = 0; i < local; ++i) cost[i] -= zero;
    }
    if (size > 1 && r == 2) {
#pragma unroll
      for (int i = 0; i < local; ++i) exchange[i * size + mate] = cost[i];
      __syncwarp();
#pragma unroll
      for (int i = 0; i < local; i += 4) {
        const uint4 four = *(const uint4*)(exchange + local * mate + i);
        cost[i] = four.x, cost[i + 1] = four.y, cost[i + 2] = four.z, cost[i + 3] = four.w;
      }
      __syncwarp();
    }
  }
  DEVICE void advance(u32 cost[local], const u32* metric, int count, const int turn[3], u32* exchange) {
    if (count >= window) {
#pragma unroll
      for (int k = 0; k < window; ++k) step(cost, metric, k, k % round, turn, exchange);
    } else {
#pragma unroll 1
      for (int k = 0; k < count; k += round)
#pragma unroll
        for (int r = 0; r < round; ++r)
          if (k + r < count) step(cost, metric, k + r, r, turn, exchange);
    }
  }

  /* The best path, from the last window to the first: for each the decisions and, above them, the state at its end, so
     that the state before step k of a window is the bits from k on. A thread reads the history that it has written. */
  DEVICE void back(const u32 cost[local], int steps, const uint4* history, int stride, u32* path) {
    const int mate = (int)threadIdx.x & (size - 1), windows = (steps + window - 1) / window;
    const int rest = steps - (windows - 1) * window;
    const u32 never = trellis_never(states, steps);
    int r = rest % round;
    i32 best = 0x7fffffff;
#pragma unroll
    for (int i = 0; i < local; ++i) {
      const u32 s = state(i, mate, r);
      const i32 key = (i32)(upper(cost[i]) | s);
      if (!(s & never) && key < best) best = key;
    }
    for (int half = size / 2; half; half /= 2) {
      const i32 other = __shfl_xor_sync(ALL_LANES, best, half);
      best = other < best ? other : best;
    }
    u32 s = (u32)best & 0xffff;
    for (int last = windows - 1; last >= 0; last -= 8) {
      uint4 held[8];
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (last >= j) held[j] = history[(i64)(last - j) * stride];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (last < j) continue;
        const int w = last - j, i = number_of(s, r);
        const u32 even = i & 4 ? held[j].z : held[j].x, odd = i & 4 ? held[j].w : held[j].y;
        u32 word = (i & 2 ? odd : even) >> (16 * (i & 1)) & 0xffff;
        if (size > 1) word = __shfl_sync(ALL_LANES, word, mate_of(s, r), size);
        if (w == 0) word &= ~(u32)(states - 1); /* the first states have one way back */
        word |= s << (w == windows - 1 ? rest : window);
        if (mate == 0) path[w * WARP] = word;
        s = word & (states - 1);
        r = 0;
      }
    }
  }
};

/* cost: those of the four cosets, [window & 1][step][lane]. */
template <int states>
DEVICE void search(const Source& s, const Chunk& c, const Costs& k, const u8* octave, int labels, int dithered,
                   i64 room, int part, uint4* cost, u32* exchange, uint4* history, u32* path) {
  typedef Team<states> team;
  const int thread = (int)threadIdx.x, searches = thread < team::threads, mine = thread / team::size;
  const int mate = thread & (team::size - 1), lane = part * team::lanes + mine;
  const int other = thread - team::threads, quad = 4 * (other / team::lanes), column = other % team::lanes;
  const int from = part * team::lanes + column, prepares = !searches && quad < team::window;
  const int windows = (c.steps + team::window - 1) / team::window;
  real ahead[4];
  u32 octaves[4];
  u32 sum[team::local];
  int turn[3];
  exchange += thread / WARP * EXCHANGE + mine % (WARP / team::size) * team::room;
  history += (i64)lane * team::size + mate;
  if (searches) {
#pragma unroll
    for (int i = 0; i < team::local; ++i) sum[i] = team::state(i, mate, 0) ? 14000u << 16 : 0;
#pragma unroll
    for (int r = 0; r < 3; ++r) turn[r] = trellis_metric(team::state(0, mate, r), 0, states);
  } else if (prepares) {
    fetch(s, c, room, quad, from, ahead);
    fetch_octaves(octave, c, room, quad, from, octaves);
  }
  __syncthreads();
  for (int w = -1; w < windows; ++w) {
    if (searches && w >= 0) {
      const int left = c.steps - w * team::window;
      team::advance(sum, (const u32*)(cost + ((w & 1) * team::window * team::lanes + mine)),
                    left < team::window ? left : team::window, turn, exchange);
      uint4 held = make_uint4(sum[0] & 0xffff | sum[1] << 16, sum[2] & 0xffff | sum[3] << 16, 0, 0);
      if (team::local == 8) {
        held.z = sum[team::local - 4] & 0xffff | sum[team::local - 3] << 16;
        held.w = sum[team::local - 2] & 0xffff | sum[team::local - 1] << 16;
      }
      history[(i64)w * WARP * team::size] = held;
#pragma unroll
      for (int i = 0; i < team::local; ++i) sum[i] = upper(sum[i]);
    } else if (prepares && w + 1 < windows) {
      const int t = (w + 1) * team::window + quad;
      uint4* to = cost + (((w + 1) & 1) * team::window + quad) * team::lanes + column;
      real now[4];
      u32 octaves_now[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        now[j] = ahead[j];
        octaves_now[j] = octaves[j];
      }
      fetch(s, c, room, t + team::window, from, ahead);
      fetch_octaves(octave, c, room, t + team::window, from, octaves);
#define CALL(plain, with_labels, contexts)                                                                             \
  measure<plain, with_labels, contexts>(s, c, k, room, t, from, now, octaves_now, to, team::lanes)
      SEARCH_WAYS(dithered, labels, octave, CALL);
#undef CALL
    }
    __syncthreads();
  }
  if (searches) team::back(sum, c.steps, history, WARP * team::size, path + lane);
}

/* history: uint4, [chunk][window][lane][mate]; path: [chunk][window][lane], chunks from `base` on. SEARCHERS = 640
   stands for 96 registers: then four blocks of the 160 threads of 8 states fit on a processor. */
extern "C" __global__ void __launch_bounds__(SEARCHERS)
    trellis_search(const real* x, const f32* a, const u8* octave, const f32* costs, u64* history, u32* path, i64 d,
                   i64 base, f64 scale, f64 inverse, u64 key, i32 states, i32 labels, i32 dithered, i32 context) {
  DYNAMIC_SHARED(Row, rows);
  const int parts = states == 256 ? 4 : 1, part = (int)(blockIdx.x % parts), each = states < 8 ? 1 : states / 8;
  const i64 number = blockIdx.x / parts;
  const Chunk c = chunk_of(base + number, d, scale);
  if (part * (WARP / parts) >= c.lanes) return;
  const Source s = {x, a, 0, inverse, key, states, context};
  const Costs k = costs_of(costs, octave, rows);
  uint4* const cost = (uint4*)(rows + LEVEL_CONTEXTS);
  u32* const exchange = (u32*)(cost + 2 * window_of(states) * (WARP / parts));
  uint4* const held = (uint4*)history + number * MOST_WINDOWS * WARP * each;
  path += number * MOST_WINDOWS * WARP;
#define CALL(n) search<n>(s, c, k, octave, labels, dithered, number * ENTROPY_CHUNK, part, cost, exchange, held, path)
  switch (states) {
    case 4: CALL(4); break;
    case 8: CALL(8); break;
    case 16: CALL(16); break;
    case 32: CALL(32); break;
    case 64: CALL(64); break;
    default: CALL(256);
  }
#undef CALL
}

/* a and phase in the order of coding, 128 steps of all lanes to a block; zeros where there is no coordinate. */
extern "C" __global__ void __launch_bounds__(256)
    level_arrange(const real* x, f32* a, u8* phase, i64 d, i64 base, f64 scale, f64 inverse, u64 key, i32 states,
                  i32 dithered) {
  __shared__ f32 values[WARP][ARRANGE_STEPS + 1];
  __shared__ u8 phases[WARP][ARRANGE_STEPS + 4];
  const int pieces = ENTROPY_STEPS / ARRANGE_STEPS;
  const i64 number = blockIdx.x / pieces, room = number * ENTROPY_CHUNK;
  const int from = (int)(blockIdx.x % pieces) * ARRANGE_STEPS;
  const Chunk c = chunk_of(base + number, d, scale);
  for (int lane = warp_of(); lane < c.lanes; lane += (int)blockDim.x / WARP) {
    const int run = c.n / c.lanes + (lane < c.n % c.lanes);
    const i64 start = c.first + level_place(lane, c.n, c.lanes, 1) + from + lane_of();
    u32 word[4] = {0, 0, 0, 0};
    if (dithered) subtract_words((u64)start, key, word);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int t = lane_of() + j * WARP;
      const f32 u = dithered ? level_dither_of(word[j], states) : 0;
      values[lane][t] = from + t < run ? level_scaled((f64)x[start + j * WARP] * inverse, u) : 0;
      phases[lane][t] = (u8)level_phase(word[j]);
    }
  }
  __syncthreads();
  const int places = (c.steps - from < ARRANGE_STEPS ? c.steps - from : ARRANGE_STEPS) * c.lanes;
  const int shift = __ffs(c.lanes) - 1;
  for (int i = (int)threadIdx.x; i < places; i += (int)blockDim.x) {
    const int lane = i & (c.lanes - 1), t = i >> shift;
    a[room + from * c.lanes + i] = values[lane][t];
    if (dithered) phase[room + from * c.lanes + i] = phases[lane][t];
  }
}

/* A warp follows the lanes of a chunk: load(p) is asked for ahead of time, size(what came) is a magnitude. */
template <typename Load, typename Size, typename Sink>
DEVICE void follow(const Chunk& c, int columns, u32* above, Load load, Size size, Sink sink) {
  Past past = forget(above, columns);
  u32 next[FOLLOW_STEPS];
  if (lane_of() >= c.lanes) return;
  const auto fetch = [&](int first) {
    const u32 p = (u32)(first * c.lanes + lane_of());
    const int all = first + FOLLOW_STEPS <= c.steps;
#pragma unroll
    for (int j = 0; j < FOLLOW_STEPS; ++j) next[j] = all || first + j < c.steps ? load(p + (u32)(j * c.lanes)) : 0;
  };
  fetch(0);
  for (int first = 0; first < c.steps; first += FOLLOW_STEPS) {
    const u32 p = (u32)(first * c.lanes + lane_of());
    u32 now[FOLLOW_STEPS];
#pragma unroll
    for (int j = 0; j < FOLLOW_STEPS; ++j) now[j] = next[j];
    fetch(first + FOLLOW_STEPS);
    if (first + FOLLOW_STEPS < c.steps) {
#pragma unroll
      for (int j = 0; j < FOLLOW_STEPS; ++j) {
        sink(p + (u32)(j * c.lanes), octave_of(past), now[j]);
        remember(past, size(now[j]));
      }
    } else {
#pragma unroll
      for (int j = 0; j < FOLLOW_STEPS; ++j)
        if (p + (u32)(j * c.lanes) < (u32)(c.steps * c.lanes)) {
          sink(p + (u32)(j * c.lanes), octave_of(past), now[j]);
          remember(past, size(now[j]));
        }
    }
  }
}

/* The octaves there would be if every level were the nearest integer. */
extern "C" __global__ void __launch_bounds__(32)
    level_guess_octaves(const f32* a, u8* octave, i64 d, i64 base, f64 scale, i32 columns) {
  DYNAMIC_SHARED(u32, above);
  const Chunk c = chunk_of(base + blockIdx.x, d, scale);
  a += (i64)blockIdx.x * ENTROPY_CHUNK;
  octave += (i64)blockIdx.x * ENTROPY_CHUNK;
  const auto load = [&](u32 p) { return bits_f32(a[p]); };
  const auto size = [](u32 v) { return level_guess(f32_bits(v)); };
  const auto sink = [&](u32 p, u32 o, u32) { octave[p] = (u8)o; };
  if (columns) follow(c, columns, above, load, size, sink);
  else follow(c, 0, above, load, size, sink);
}

/* The model of every level: past, what level_tell says of it, has its magnitude and, from bit 16 on, the model without
   contexts. */
extern "C" __global__ void __launch_bounds__(32) level_contexts(const u32* past, u8* model, i64 d, i64 base, f64 scale,
                                                                i32 states, i32 dithered, i32 context, i32 columns) {
  DYNAMIC_SHARED(u32, above);
  const LevelCode code = {states, 0, dithered, context, columns};
  const Chunk c = chunk_of(base + blockIdx.x, d, scale);
  past += (i64)blockIdx.x * ENTROPY_CHUNK;
  model += c.first;
  const auto load = [&](u32 p) { return past[p]; };
  const auto size = [](u32 v) { return v & 0xffff; };
  const auto sink = [&](u32 p, u32 o, u32 v) {
    if (p < (u32)c.n) model[p] = (u8)((v >> 16) + level_model(&code, 0, 0, o));
  };
  if (columns) follow(c, columns, above, load, size, sink);
  else follow(c, 0, above, load, size, sink);
}

/* What level_tell writes; what is not wanted is 0. */
struct Sinks {
  u8 *symbol, *model;
  u16* extra;
  u32* past;
};

/* 64 steps of a chunk by a warp. part: sums of moments. */
template <int dithered, int labels, int contexts, int searched>
DEVICE void tell(const Source& s, const Chunk& c, const Costs& k, const LevelCode& code, const u8* octave,
                 const u32* path, i64 room, int from, f32 dead, f32 rounding, const Sinks& to, int measured,
                 f32 part[LEVEL_MOMENTS]) {
  const int lane = lane_of(), bits = trellis_memory(s.states);
  const int end = c.steps < from + LEVEL_MOMENT_STEPS ? c.steps : from + LEVEL_MOMENT_STEPS;
  real ahead[4];
  u32 octaves[4];
  fetch(s, c, room, from, lane, ahead);
  fetch_octaves(octave, c, room, from, lane, octaves);
  for (int t = from; t < end; t += 4) {
    const int window = s.states > 8 ? t / window_of(16) : t / window_of(8);
    const u32 states = searched ? path[window * WARP + lane] >> (t - window * window_of(s.states)) : 0;
    f32 a[4];
    u32 phase[4], octaves_now[4];
    scale_steps<dithered>(s, c, room, t, lane, ahead, a, phase);
#pragma unroll
    for (int j = 0; j < 4; ++j) octaves_now[j] = octaves[j];
    if (t + 4 < end) {
      fetch(s, c, room, t + 4, lane, ahead);
      fetch_octaves(octave, c, room, t + 4, lane, octaves);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int p = (t + j) * c.lanes + lane, here = p < end_of(c, lane, 0);
      i32 w;
      if (searched) {
        TrellisTerms terms;
        const i32 position = position_of<dithered, contexts>(k, a[j], octaves_now[j], &terms);
        const u32 state = states >> j & (u32)(s.states - 1);
        const i32 q = (i32)trellis_q(state, s.states);
        const i32 bit = (i32)(states >> (j + bits) ^ parity(state & trellis_branch_polynomial(s.states))) & 1;
        w = level_taken(trellis_level(position, a[j] < 0 ? 1 : 0, q, bit, terms, labels, dithered), a[j], q, bit,
                        labels);
      } else {
        w = level_uniform(a[j], dead, rounding, dithered);
      }
      if (measured) {
        const LevelMoment m = level_moment(a[j], w, here, code.labels);
#pragma unroll
        for (int i = 0; i < LEVEL_MOMENTS; ++i) part[i] += m.of[i];
      }
      const u32 q = (u32)w & 1;
      u32 extra;
      const u32 symbol =
          level_symbol((w >> 1) - (dithered ? level_wrap(phase[j], q, s.states) : 0), to.extra != 0, &extra);
      if (!here) continue;
      const u32 without = level_model(&code, q, phase[j], 0);
      to.symbol[c.first + p] = (u8)symbol;
      if (to.extra) to.extra[c.first + p] = (u16)extra;
      if (to.past) to.past[room + p] = level_magnitude(level_from(w >> 1, q, labels), phase[j]) | without << 16;
      else if (to.model) to.model[c.first + p] = (u8)without;
    }
  }
}

/* sums: f64, [moment][group], or 0. */
extern "C" __global__ void __launch_bounds__(256, TELLERS)
    level_tell(const real* x, const f32* a, const u8* phase, const u8* octave, const f32* costs, const u32* path,
               u8* symbol, u8* model, u16* extra, u32* past, f64* sums, i64 groups, i64 d, i64 base, f64 scale,
               f64 inverse, u64 key, f32 dead, f32 rounding, i32 states, i32 labels, i32 dithered, i32 context) {
  __shared__ Row rows[LEVEL_CONTEXTS];
  const int each = ENTROPY_STEPS / LEVEL_MOMENT_STEPS;
  const i64 number = grid_warp() / each;
  const int group = (int)(grid_warp() % each), from = group * LEVEL_MOMENT_STEPS;
  const Source s = {x, a, phase, inverse, key, states, context};
  const LevelCode code = {states, labels, dithered, context, 0};
  const Sinks to = {symbol, model, extra, past};
  const Costs k = costs_of(costs, octave, rows);
  __syncthreads();
  const Chunk c = chunk_of(base + number, d, scale);
  if (from >= c.steps) return;
  f32 part[LEVEL_MOMENTS] = {0, 0, 0, 0, 0, 0, 0};
#define CALL(plain, with_labels, contexts)                                                                             \
  tell<plain, with_labels, contexts, 1>(s, c, k, code, octave, path + number * MOST_WINDOWS * WARP,                    \
                                        number * ENTROPY_CHUNK, from, dead, rounding, to, sums != 0, part)
  if (states > 1) {
    SEARCH_WAYS(dithered, labels, octave, CALL);
  } else if (dithered) {
    tell<1, 0, 0, 0>(s, c, k, code, octave, path, number * ENTROPY_CHUNK, from, dead, rounding, to, sums != 0, part);
  } else {
    tell<0, 0, 0, 0>(s, c, k, code, octave, path, number * ENTROPY_CHUNK, from, dead, rounding, to, sums != 0, part);
  }
#undef CALL
  if (!sums) return;
#pragma unroll
  for (int i = 0; i < LEVEL_MOMENTS; ++i) {
    const f64 sum = warp_fold((f64)part[i]);
    if (lane_of() == 0) sums[i * groups + (base + number) * each + group] = sum;
  }
}

/* The sums of all groups, a block to a moment; shared memory for a number a leaf (reduce.h). */
extern "C" __global__ void __launch_bounds__(256) level_moments(const f64* sums, i64 groups, f64* moments) {
  DYNAMIC_SHARED(f64, leaf);
  const int leaves = (int)ceil_div(groups, REDUCE_LEAF);
  sums += blockIdx.x * groups;
  for (int i = warp_of(); i < leaves; i += (int)blockDim.x / WARP) {
    const i64 left = groups - (i64)i * REDUCE_LEAF;
    const f64 sum = warp_sum<TERM_SELF>(sums + (i64)i * REDUCE_LEAF, left < REDUCE_LEAF ? left : REDUCE_LEAF, 1);
    if (lane_of() == 0) leaf[i] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= WARP) return;
  const f64 sum = leaves > 1 ? warp_sum<TERM_SELF>(leaf, leaves, 1) : leaf[0];
  if (lane_of() == 0) moments[blockIdx.x] = sum;
}

/* count[model][symbol] += their numbers. A block counts symbols from `least` on, `width` of them, in shared memory, as
   often as there are copies: equal symbols of neighbours would wait for each other. */
extern "C" __global__ void __launch_bounds__(256)
    level_count(const u8* symbol, const u8* model, i64 n, i32 models, i32 least, i32 width, i32 copies, u32* count) {
  DYNAMIC_SHARED(u32, mine);
  const int size = models * width, copy = lane_of() & (copies - 1);
  for (int i = (int)threadIdx.x; i < size * copies; i += (int)blockDim.x) mine[i] = 0;
  __syncthreads();
  const auto add = [&](u32 key, u32 times) {
    const int at = (int)(key & 255) - least;
    if (at >= 0 && at < width) atomicAdd(mine + ((int)(key >> 8) * width + at) * copies + copy, times);
    else atomicAdd(count + key, times);
  };
  const int words = aligned(symbol, 16) && aligned(model, 16);
  for (i64 first = 16 * grid_thread(); first < n; first += 16 * grid_threads()) {
    u32 s[4] = {0, 0, 0, 0}, m[4] = {0, 0, 0, 0}, key = 0, times = 0;
    const int here = n - first < 16 ? (int)(n - first) : 16;
    if (words && here == 16) {
      const uint4 v = *(const uint4*)(symbol + first);
      s[0] = v.x, s[1] = v.y, s[2] = v.z, s[3] = v.w;
      if (model) {
        const uint4 u = *(const uint4*)(model + first);
        m[0] = u.x, m[1] = u.y, m[2] = u.z, m[3] = u.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 16; ++i)
        if (i < here) {
          s[i / 4] |= (u32)symbol[first + i] << (8 * (i % 4));
          if (model) m[i / 4] |= (u32)model[first + i] << (8 * (i % 4));
        }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (i >= here) continue;
      const u32 next = (s[i / 4] >> (8 * (i % 4)) & 255) | (m[i / 4] >> (8 * (i % 4)) & 255) << 8;
      if (next != key && times) {
        add(key, times);
        times = 0;
      }
      key = next;
      ++times;
    }
    add(key, times);
  }
  __syncthreads();
  for (int i = (int)threadIdx.x; i < size; i += (int)blockDim.x) {
    u32 sum = 0;
    for (int j = 0; j < copies; ++j) sum += mine[i * copies + (j + lane_of()) % copies];
    if (sum) atomicAdd(count + i / width * 256 + least + i % width, sum);
  }
}

/* Escapes what is larger than its model keeps, and lists all escapes in any order: twice the place, plus 1 where it is
   far, and the float64 to tell. found: how many there are, at most `most`. */
extern "C" __global__ void __launch_bounds__(256)
    level_list(const real* x, u8* symbol, const u8* model, u16* extra, u32* count, const u8* keep, u64* listed,
               u64* found, i64 most, i64 d, f64 scale, f64 inverse, u64 key, i32 states, i32 dithered, i32 context) {
  for (i64 first = grid_warp() * WARP; first < d; first += grid_warps() * WARP) {
    const i64 i = first + lane_of();
    const u32 s = i < d ? symbol[i] : 128, m = i < d && model ? model[i] : 0;
    const u32 bucket = s > 127 ? s - 128 : 128 - s;
    const int escapes = bucket > keep[m];
    const u32 all = __ballot_sync(ALL_LANES, escapes);
    if (!all) continue;
    u64 place = 0;
    if (lane_of() == 0) place = atomicAdd(found, (u64)__popc(all));
    place = __shfl_sync(ALL_LANES, place, 0) + (u64)__popc(all & ((1u << lane_of()) - 1));
    if (!escapes || place >= (u64)most) continue;
    f64 value;
    if (s < 2) {
      const Chunk c = chunk_of(i / ENTROPY_CHUNK, d, scale);
      const i64 at = c.first + level_place(i - c.first, c.n, c.lanes, context);
      value = (f64)x[at] * inverse;
      if (dithered) value += (f64)level_dither_of(subtract_word_of((u64)at, key), states);
    } else {
      const u32 size = level_bucket_first(bucket, level_bucket_bits(bucket)) | (extra ? extra[i] & 0xfffu : 0);
      value = s > 127 ? (f64)size : -(f64)size;
      atomicAdd(count + 256 * m + s, 0xffffffffu);
      atomicAdd(count + 256 * m + (size & 1), 1u);
      symbol[i] = (u8)(size & 1);
      if (extra) extra[i] = 0;
    }
    listed[2 * place] = 2 * (u64)i + (s < 2);
    listed[2 * place + 1] = bits_f64(value);
  }
}
