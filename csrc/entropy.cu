/* The entropy coder: a warp codes a chunk, its lanes are those of the format, and a step is one symbol of each.

   A. The steps of a chunk follow one another, and the largest vectors have four chunks a scheduler: how long a step
      takes is what counts. An encoder fetches symbols, their codes and inverses steps ahead. A decoder finds all that
      its next step depends on in shared memory: a slot, and the words to come.
   B. The words of a step stand in the order of its lanes: a ballot says who has one, a population count where.
   C. Chunks are encoded into scratch, backwards, and put behind each other when all lengths are known.
   D. The table of chunks says where each starts (entropy.h, D): a block adds up the entries before its own.
   E. A decoder's table is a word a slot or, for many models (`narrow`), a byte a slot, the symbol, and a word a symbol:
      32 models of 5 KB still fit in shared memory, for two lookups a step.
   F. Escapes are read in the order of coding, so whoever meets one takes the next from the list at once. */
#include "level.cuh"

/* Encoding */

enum {
  AHEAD = 8, /* steps that are fetched at once */
  HEAD_WORDS = ENTROPY_HEAD / 4,
  MOST_WARPS = 16
};

#define METHOD __device__ __forceinline__

DEVICE u32 lanes_before() { return ((u32)1 << lane_of()) - 1; }
DEVICE int low_full(u32 x, u32 extra) { return x >> 20 >= (u32)ENTROPY_SLOTS >> (extra >> 12); }

template <bool models, bool extras>
struct Encoder {
  const u8 *symbol, *model; /* of the chunk */
  const u16* extra;
  const u32* codes;
  const u64* inverses;
  int n, lanes;
  u32 x, before; /* of this lane; the lanes before it */
  u16* begin;    /* of the words */

  METHOD u32 code_of(u32 s, u32 m) const { return codes[models ? m << 8 | s : s]; }
  METHOD u64 inverse_of(u32 code) const { return inverses[code & (ENTROPY_SLOTS - 1)]; }
  /* What this lane puts in at step t: something certain, which changes nothing, where it has no symbol. */
  METHOD int has(int t) const { return lane_of() < lanes && t * lanes + lane_of() < n; }
  METHOD u32 code_at(int t) const {
    const int p = t * lanes + lane_of();
    return has(t) ? code_of(symbol[p], models ? model[p] : 0) : entropy_code(ENTROPY_SLOTS, 0);
  }
  METHOD u32 low_at(int t) const { return extras && has(t) ? extra[t * lanes + lane_of()] : 0; }

  /* The low 16 bits of the lanes that were full go before the words. */
  METHOD void spill(u32 number, int full) {
    const u32 all = __ballot_sync(ALL_LANES, full);
    begin -= __popc((int)all);
    if (full) begin[__popc((int)(all & before))] = (u16)number;
  }
  METHOD void put(u32 code, u64 inverse, u32 low) {
    u32 number = x;
    int full;
    if (extras && __any_sync(ALL_LANES, (int)low)) {
      full = low_full(number, low);
      x = entropy_put_low(full ? number >> 16 : number, low);
      spill(number, full);
      number = x;
    }
    full = entropy_full(number, code);
    x = entropy_put_by(full ? number >> 16 : number, code, inverse);
    spill(number, full);
  }

  /* The tail (entropy.h, C): all lanes follow lane 0 through as many of the last steps as leave no more words than the
     others have room for. Returns the steps left. */
  METHOD int tail() {
    const int lane = lane_of(), steps = (int)ceil_div(n, lanes);
    int t = steps, words = 0;
    u32 first = ENTROPY_LOW, word = 0; /* lane i keeps the i-th word that falls off */
    while (lanes > 1 && t > 0 && steps - t < ENTROPY_TAIL) {
      const u32 code = code_at(t - 1), low = low_at(t - 1);
      const u64 inverse = inverse_of(code);
      u32 v = first;
      int made = words;
      if (extras && __any_sync(ALL_LANES, (int)low))
        for (int i = lanes - 1; i >= 0; --i) {
          const u32 e = __shfl_sync(ALL_LANES, low, i);
          if (low_full(v, e)) {
            if (lane == made++) word = v;
            v >>= 16;
          }
          v = entropy_put_low(v, e);
        }
      for (int i = lanes - 1; i >= 0; --i) {
        const u32 c = __shfl_sync(ALL_LANES, code, i);
        const u64 by = __shfl_sync(ALL_LANES, inverse, i);
        if (entropy_full(v, c)) {
          if (lane == made++) word = v;
          v >>= 16;
        }
        v = entropy_put_by(v, c, by);
      }
      if (made > lanes - 1) break;
      words = made;
      first = v;
      --t;
    }
    const u32 held = __shfl_sync(ALL_LANES, word, words - lane); /* they are read in the other order */
    x = lane == 0 ? first : ENTROPY_LOW | (lane <= words ? held & 0xffff : 0);
    return t;
  }

  /* The steps before the tail. */
  METHOD void body(int steps) {
    int t = steps;
    while (t > 0 && (lanes < WARP || t % AHEAD || t * WARP > n)) {
      const u32 code = code_at(--t);
      put(code, inverse_of(code), low_at(t));
    }
    u32 s[AHEAD], m[AHEAD], e[AHEAD];
    const auto fetch = [&](int from) {
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        s[k] = symbol[from - k * WARP];
        m[k] = models ? model[from - k * WARP] : 0;
        e[k] = extras ? extra[from - k * WARP] : 0;
      }
    };
    if (t) fetch((t - 1) * WARP + lane_of());
    while (t) {
      u32 code[AHEAD], low[AHEAD];
      u64 inverse[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) code[k] = code_of(s[k], m[k]), low[k] = e[k];
      t -= AHEAD;
      if (t) fetch((t - 1) * WARP + lane_of());
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) inverse[k] = inverse_of(code[k]);
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) put(code[k], inverse[k], low[k]);
    }
  }

  /* Lengths and states, put together in shared memory; returns their bytes. */
  METHOD u32 head(u32* room, u32* out) const {
    const int lane = lane_of();
    const u32 length = lane < lanes ? 31 - (u32)__clz((int)x) : 0, upto = warp_scan(length);
    const u32 at = 8 * entropy_head_bytes(lanes, 0) + upto - length, state = x ^ (u32)1 << length;
    for (int i = lane; i < HEAD_WORDS; i += WARP) room[i] = 0;
    __syncwarp();
    if (length) {
      atomicOr(room + lane / 8, (length - 16) << (4 * (lane & 7)));
      atomicOr(room + at / 32, state << (at & 31));
      if ((at & 31) + length > 32) atomicOr(room + at / 32 + 1, state >> (32 - (at & 31)));
    }
    __syncwarp();
    for (int i = lane; i < HEAD_WORDS; i += WARP) out[i] = room[i];
    return entropy_head_bytes(lanes, __shfl_sync(ALL_LANES, upto, WARP - 1));
  }

  METHOD u32 run(u16* end, u32* room, u32* out) {
    begin = end;
    before = lanes_before();
    const int steps = tail();
    body(steps);
    return entropy_entry((u32)(end - begin), head(room, out), (u32)(ceil_div(n, lanes) - steps));
  }
};

/* A chunk's words to the end of its `room` words, its head, its entry, and their bytes onto *total. In shared memory:
   inverses by frequency, and the codes of all models where `resident`. */
extern "C" __global__ void __launch_bounds__(512, 1)
    level_encode(const u8* symbol, const u8* model, const u16* extra, const u32* codes, i32 models, i32 resident, i64 n,
                 u16* words, i32 room, u32* heads, u32* entries, u64* total) {
  DYNAMIC_SHARED(u64, inverses);
  __shared__ u32 head[MOST_WARPS][HEAD_WORDS];
  u32* const near = (u32*)(inverses + ENTROPY_SLOTS);
  for (int i = (int)threadIdx.x; i < 256 * models; i += (int)blockDim.x) {
    const u32 code = codes[i], f = code & 0xffff;
    if (f) inverses[f & (ENTROPY_SLOTS - 1)] = entropy_inverse(f);
    if (resident) near[i] = code;
  }
  if (threadIdx.x == 0) inverses[0] = entropy_inverse(ENTROPY_SLOTS);
  __syncthreads();
  const Chunk c = chunk_of(grid_warp(), n, 1);
  if (c.first >= n) return;
  const i64 chunk = grid_warp();
  u32 entry;
#define RUN(models, extras)                                                                                            \
  {                                                                                                                    \
    Encoder<models, extras> e = {                                                                                      \
        symbol + c.first, model + c.first, extra + c.first, resident ? near : codes, inverses, c.n, c.lanes};          \
    entry = e.run(words + (chunk + 1) * room, head[warp_of()], heads + chunk * HEAD_WORDS);                            \
  }
  if (model && extra) RUN(true, true)
  else if (model) RUN(true, false)
  else if (extra) RUN(false, true)
  else RUN(false, false)
#undef RUN
  if (lane_of() == 0) {
    entries[chunk] = entry;
    atomicAdd(total, (u64)entropy_chunk_bytes(entry));
  }
}

/* n bytes by threads that take every `step`-th word: `from` lies in scratch of whole words. */
DEVICE void copy_bytes(u8* to, const u8* from, int n, int thread, int step) {
  const int lead = (int)(-(i64)(u64)to & 3) < n ? (int)(-(i64)(u64)to & 3) : n, whole = (n - lead) / 4;
  const int skip = (int)((u64)(from + lead) & 3);
  const u32* const in = (const u32*)(from + lead - skip);
  u32* const out = (u32*)(to + lead);
#pragma unroll 4
  for (int i = thread; i < whole; i += step) out[i] = skip ? __funnelshift_r(in[i], in[i + 1], 8 * skip) : in[i];
  if (thread < 4) {
    if (thread < lead) to[thread] = from[thread];
    const int last = lead + 4 * whole + thread;
    if (last < n) to[last] = from[last];
  }
}

/* Bytes of the first `chunks` chunks. */
DEVICE i64 bytes_before(const u32* entries, i64 chunks, u64* room) {
  u64 sum = 0, total;
  for (i64 i = threadIdx.x; i < chunks; i += blockDim.x) sum += (u64)entropy_chunk_bytes(entries[i]);
  block_scan<u64>(sum, room, &total);
  return (i64)total;
}

/* The payload: `front`, which is `models` bytes of models, `sizes` of sizes and `escapes` of escapes, and between them
   the chunks, `pieces` blocks to each; the blocks after those bring the front. */
extern "C" __global__ void __launch_bounds__(256)
    level_assemble(const u8* front, i64 models, i64 sizes, i64 escapes, const u32* entries, const u32* heads,
                   const u16* words, i32 room, i64 chunks, i32 pieces, u8* out) {
  __shared__ u64 sums[WARP + 1];
  const i64 chunk = (i64)blockIdx.x / pieces < chunks ? (i64)blockIdx.x / pieces : chunks;
  const i64 table = 4 * chunks, behind = models + table + sizes;
  u8* to = out + behind + bytes_before(entries, chunk, sums);
  if (chunk < chunks) {
    const int thread = (int)((i64)blockIdx.x % pieces * blockDim.x + threadIdx.x), step = pieces * (int)blockDim.x;
    const u32 entry = entries[chunk];
    const int head = (int)entropy_head(entry), count = (int)entropy_words(entry);
    if (thread < head) to[thread] = ((const u8*)(heads + chunk * HEAD_WORDS))[thread];
    copy_bytes(to + head, (const u8*)(words + chunk * room + room - count), 2 * count, thread, step);
    return;
  }
  const i64 thread = ((i64)blockIdx.x - chunks * pieces) * blockDim.x + threadIdx.x;
  const i64 step = ((i64)gridDim.x - chunks * pieces) * blockDim.x;
  for (i64 i = thread; i < models; i += step) out[i] = front[i];
  for (i64 i = thread; i < chunks; i += step) store_u32(out + models + 4 * i, entries[i]);
  for (i64 i = thread; i < sizes; i += step) out[models + table + i] = front[models + i];
  for (i64 i = thread; i < escapes; i += step) to[i] = front[models + sizes + i];
}

/* Decoding */

enum {
  PIECE = 128, /* words that are fetched at once, four a lane */
  RING = 512,
  MIRROR = 32, /* the first words again behind the last, so that a step reads on without a wrap */
  TILE = 33    /* numbers of a lane's row, which keeps the banks apart */
};
/* What there is one decoder for: UNIFORM and TRELLIS where there is no more to a symbol than itself, else PLAIN. */
enum { UNIFORM, TRELLIS, PLAIN, DITHERED, CONTEXT, CONTEXT_DITHERED };
enum { TRUNCATED = 2, DAMAGED, ESCAPES, LONGER }; /* as level.pyx has them */
enum { EVERYTHING = 0, AT_LAST = 0x7ffffff };     /* in place of a chunk, plus one */

/* What all chunks share. */
struct Coded {
  const u8* data;
  i64 size, n;
  int choice, escaped;
  LevelCode code;
  u64 key;
  f64 step, near, mid, rest;
  real weight;
  int add;
  real* out;
  u32* status;

  /* The fault of the first chunk that has one stays. */
  METHOD void report(i64 chunk, int fault) const {
    if (lane_of() == 0) atomicMax(status, ~((u32)chunk * 8 + (u32)fault));
  }
  /* What is stored or added for a value. */
  METHOD real amount(f64 value) const {
    const real v = T(level_finite)(value);
    return add ? weight * v : v;
  }
  /* ... and where an escape is patched in, onto a zero. */
  METHOD real patch(f64 value) const { return add ? weight * 0 + amount(value) : amount(value); }
  METHOD f64 moved(i32 j) const { return level_moved(j, near, mid, rest); }
};

/* The words of a chunk, forward: a ring of them in shared memory, the piece after it on its way in registers. */
struct Words {
  u16 *ring, *here;
  const u8 *from, *stop;
  u64 next;
  u32 before; /* the lanes before this one */
  int at, have;

  /* Four words; zeros behind the data. */
  METHOD u64 fetch(int word) const {
    const u8* const p = from + 2 * word;
    const int skip = (int)((u64)p & 3);
    if (p + 12 <= stop) {
      const u32* const w = (const u32*)(p - skip);
      const u32 a = w[0], b = w[1], c = skip ? w[2] : 0;
      return (u64)__funnelshift_r(b, c, 8 * skip) << 32 | __funnelshift_r(a, b, 8 * skip);
    }
    u64 v = 0;
    for (int i = 0; i < 8; ++i)
      if (p + i < stop) v |= (u64)p[i] << (8 * i);
    return v;
  }
  METHOD void open(u16* room, const u8* first, const u8* end) {
    ring = here = room;
    from = first;
    stop = end;
    before = lanes_before();
    at = have = 0;
    next = fetch(4 * lane_of());
  }
  /* Before steps that read `count` words at most. */
  METHOD void keep(int count) {
    while (have - at < count) {
      const int lane = lane_of(), place = have & (RING - 1);
      __syncwarp();
      *(u64*)(ring + place + 4 * lane) = next;
      if (place == 0 && lane < MIRROR / 4) *(u64*)(ring + RING + 4 * lane) = next;
      have += PIECE;
      next = fetch(have + 4 * lane);
      __syncwarp();
    }
  }
  /* What a slot left of a lane's number, with 16 bits of the stream if it needs them. */
  METHOD u32 renew(u32 v, int active) {
    const u32 low = __ballot_sync(ALL_LANES, active && v < ENTROPY_LOW), word = here[__popc((int)(low & before))];
    at += __popc((int)low);
    here = ring + (at & (RING - 1));
    return v < ENTROPY_LOW ? v << 16 | word : v;
  }
};

struct Tables {
  const u32* slots;   /* 4096 a model, or */
  const u8* symbols;  /* 4096 a model and */
  const u32* codes;   /* 256 a model */
  const real* values; /* what is stored or added for a symbol, of either parity */
};

template <bool trellis, bool dithered, bool context, bool more, bool narrow>
struct Decoder {
  const Coded& m;
  const Tables& tables;
  LevelCode code;
  int n, lanes;
  u32 x, state;
  Words words;
  Past past;
  u32 spare; /* in the tail the word that this lane held ... */
  int spent; /* ... and how many of those have been read */
  real* tile;
  real* out;
  EntropyBits list;

  METHOD u32 look_up(u32 model, u32 number, u32* symbol) const {
    const u32 place = model << ENTROPY_PRECISION | (number & (ENTROPY_SLOTS - 1));
    if (narrow) {
      *symbol = tables.symbols[place];
      return entropy_take_code(number, tables.codes[model << 8 | *symbol]);
    }
    const u32 slot = tables.slots[place];
    *symbol = slot & 255;
    return entropy_take(number, slot);
  }

  /* 16 bits for lane 0 from the words that the others held; all lanes follow it. */
  METHOD u32 renew_alone(u32 v) {
    if (v >= ENTROPY_LOW) return v;
    const u32 word = __shfl_sync(ALL_LANES, spare, spent + 1);
    return v << 16 | (++spent < lanes ? word : 0);
  }

  /* The symbols of step t, of `count` lanes, and their values to out[place], which holds `old`. word: the random bits
     behind this lane's dither. alone: in the tail, where all symbols are of lane 0. */
  METHOD void step(int t, int count, int place, u32 word, real old, int alone) {
    const int lane = lane_of(), active = count == WARP || lane < count;
    const u32 phase = dithered ? level_phase(word) : 0, q = trellis ? trellis_q(state, code.states) : 0;
    const u32 model = level_model(&code, q, phase, context ? octave_of(past) : 0);
    u32 symbol = 128, low = 0;
    real amount = 0;
    if (!alone) {
      const u32 v = look_up(model, x, &symbol);
      if (!dithered) amount = tables.values[q << 8 | symbol];
      x = words.renew(v, active);
    } else {
      for (int i = 0; i < count; ++i) {
        u32 found;
        x = renew_alone(look_up(__shfl_sync(ALL_LANES, model, i), x, &found));
        symbol = lane == i ? found : symbol;
      }
      if (!dithered) amount = tables.values[q << 8 | symbol];
    }
    i32 level = (i32)symbol - 128;
    const int odd = more && active && level_is_more(symbol), escape = odd && symbol < 2;
    const int rare = more && __any_sync(ALL_LANES, odd);
    if (rare) {
      const u32 bucket = (u32)(level < 0 ? -level : level), bits = odd && !escape ? level_bucket_bits(bucket) : 0;
      if (!alone) {
        low = entropy_low(x, bits);
        x = words.renew(entropy_take(x, entropy_low_slot(x, bits)), active);
      } else
        for (int i = 0; i < count; ++i) {
          const u32 b = __shfl_sync(ALL_LANES, bits, i);
          low = lane == i ? entropy_low(x, b) : low;
          x = renew_alone(entropy_take(x, entropy_low_slot(x, b)));
        }
      const i32 size = (i32)(level_bucket_first(bucket, bits) | low);
      level = level < 0 ? -size : size;
    }
    const i32 wrap = dithered ? level_wrap(phase, q, code.states) : 0;
    const i32 j = level_from(level + wrap, q, code.labels);
    const f32 u = dithered ? level_dither_of(word, code.states) : 0;
    const u32 bit = escape ? symbol : (u32)level & 1;
    if (dithered) amount = m.amount(m.step * level_undithered(j, u));
    if (rare) {
      if (!dithered && odd) amount = m.amount(m.step * m.moved(j));
      for (u32 left = __ballot_sync(ALL_LANES, escape); left; left &= left - 1) {
        int far;
        f64 v = level_read_escape(&list, &far);
        if (lane != __ffs((int)left) - 1) continue;
        if (!far) {
          const i32 listed = level_from((i32)v + wrap, q, m.code.labels);
          v = dithered ? listed : m.moved(listed);
        }
        if (dithered) v -= u;
        amount = m.patch(v * m.step);
      }
    }
    if (context) tile[TILE * lane + (t & (WARP - 1))] = amount;
    else if (active) out[place] = m.add ? old + amount : amount;
    if (trellis) state = trellis_next(state, bit, code.states);
    if (context) remember(past, escape ? (u32)LEVEL_CAP : level_magnitude(j, phase));
  }

  /* What the tile holds of the steps before t goes to the runs that its rows belong to. */
  METHOD void flush(int t) {
    const int lane = lane_of(), at = ((t - 1) & ~(WARP - 1)) + lane, each = n / lanes, left = n % lanes;
    __syncwarp();
#pragma unroll 4
    for (int i = 0; i < lanes; ++i) {
      if (at >= t || at >= each + (i < left)) continue;
      real* const to = out + i * each + (i < left ? i : left) + at;
      *to = m.add ? *to + tile[TILE * i + lane] : tile[TILE * i + lane];
    }
    __syncwarp();
  }

  /* The number of this lane, from a head of `bytes` bytes; false where that is not its length. */
  METHOD int open(const u8* head, u32 bytes) {
    const int lane = lane_of();
    const u32 lengths = entropy_head_bytes(lanes, 0);
    if (bytes < lengths) return 0;
    const u32 length = lane < lanes ? 16 + (head[lane / 2] >> (4 * (lane & 1)) & 15) : 0, upto = warp_scan(length);
    if (entropy_head_bytes(lanes, __shfl_sync(ALL_LANES, upto, WARP - 1)) != bytes) return 0;
    const u32 first = upto - length;
    u64 held = 0;
    for (u32 i = 0; 8 * i < (first & 7) + length; ++i) held |= (u64)head[lengths + first / 8 + i] << (8 * i);
    x = lane < lanes ? (u32)1 << length | ((u32)(held >> (first & 7)) & (((u32)1 << length) - 1)) : ENTROPY_LOW;
    return 1;
  }

  /* The chunk that starts at `at`, with escapes from `listed` on. */
  METHOD void run(i64 chunk, i64 at, u32 entry, i64 listed, u32 escapes, u8* room) {
    const Chunk of = chunk_of(chunk, m.n, 1);
    const int lane = lane_of(), steps = of.steps, tail = (int)entropy_tail(entry), whole = steps - tail;
    n = of.n;
    lanes = of.lanes;
    code = m.code;
    code.labels = dithered ? 0 : code.labels;
    code.dithered = dithered ? code.dithered : 0;
    code.context = context ? code.context : 0;
    code.columns = context ? code.columns : 0;
    const i64 left = m.size - at;
    if (m.choice && left < entropy_chunk_bytes(entry)) {
      if (m.escaped) m.report(EVERYTHING, TRUNCATED);
      else m.report(chunk + 1, DAMAGED);
      return;
    }
    const int missing = escapes > m.size - listed;
    list = entropy_bits_at(m.data, listed, missing ? listed : listed + escapes);
    x = ENTROPY_LOW;
    if (whole < 0 || (m.choice && !open(m.data + at, entropy_head(entry)))) {
      m.report(chunk + 1, DAMAGED);
      return;
    }
    const u8* const stop = m.data + m.size;
    words.open((u16*)room, m.choice ? m.data + at + entropy_head(entry) : stop, stop);
    u32* const above = (u32*)(room + 2 * (RING + MIRROR));
    past = forget(above, code.columns);
    tile = (real*)(above + WARP * code.columns);
    out = m.out + of.first;
    state = 0;
    spent = 0;

    const int adding = !context && m.add;
    const int full = dithered || context || lanes < WARP ? 0 : (tail ? whole : n / WARP) & ~3;
    const auto held = [&](int p) { return adding && lane < lanes && p < n ? out[p] : 0; };
    real a = held(lane), b = held(lanes + lane), c = held(2 * lanes + lane), d = held(3 * lanes + lane);
    int t = 0, wrong = 0;
    if (!dithered && !context)
      for (; t < full; t += 4) {
        words.keep((more ? 8 : 4) * WARP);
#pragma unroll
        for (int k = 0; k < 4; ++k) { /* what is added to is fetched before */
          const int p = (t + k) * WARP + lane;
          const real old = a;
          a = b, b = c, c = d, d = adding && p + 4 * WARP < n ? out[p + 4 * WARP] : 0;
          step(t + k, WARP, p, 0, old, 0);
        }
      }
    const i64 start = of.first + level_place(lane < lanes ? lane : 0, n, lanes, context), stride = context ? 1 : lanes;
    philox_out bits = {{0, 0, 0, 0}};
    for (; t < steps; ++t) {
      const int count = n - t * lanes < lanes ? n - t * lanes : lanes;
      const real old = a;
      const u32 number = x;
      u32 word = 0;
      a = b, b = c, c = d, d = held((t + 4) * lanes + lane);
      if (dithered) { /* 128 coordinates share 32 calls */
        const u64 e = (u64)(start + t * stride);
        if (context || lanes < WARP || (t & 3) == 0) bits = random_at(subtract_call(e), STREAM_SUBTRACT, m.key);
        const int i = subtract_place(e);
        word = i & 2 ? (i & 1 ? bits.w[3] : bits.w[2]) : (i & 1 ? bits.w[1] : bits.w[0]);
      }
      if (tail && t == whole) wrong |= open_tail(entry);
      words.keep(2 * WARP);
      step(t, count, t * lanes + lane, word, old, t >= whole);
      if (t < whole && lane >= count) x = number;
      if (context && (t & (WARP - 1)) == WARP - 1) flush(t + 1);
    }
    if (context && (steps & (WARP - 1))) flush(steps);
    wrong |= tail ? x != ENTROPY_LOW || spent > lanes - 1 || (lane > spent && lane < lanes && spare)
                  : words.at != (int)entropy_words(entry) || (lane < lanes && x != ENTROPY_LOW);
    if (__any_sync(ALL_LANES, wrong)) m.report(chunk + 1, DAMAGED);
    else if (missing) m.report(chunk + 1, TRUNCATED);
    else if (list.at > list.stop) m.report(chunk + 1, ESCAPES);
  }

  METHOD int open_tail(u32 entry) {
    const int lane = lane_of();
    const int wrong = words.at != (int)entropy_words(entry) || (lane > 0 && lane < lanes && x >> 16 != 1);
    spare = x & 0xffff;
    x = __shfl_sync(ALL_LANES, x, 0);
    return wrong;
  }
};

/* store(place of a slot, symbol, code, offset in the symbol) for all slots of all models: a warp takes 32 symbols. */
template <typename Store>
DEVICE void for_slots(const u32* codes, int models, i64 warp, i64 warps, Store store) {
  for (i64 row = warp; row < 8 * models; row += warps) {
    const u32 code = codes[WARP * row + lane_of()];
    for (u32 left = __ballot_sync(ALL_LANES, code & 0xffff); left; left &= left - 1) {
      const int i = __ffs((int)left) - 1;
      const u32 c = __shfl_sync(ALL_LANES, code, i), symbol = (u32)(row & 7) * WARP + i;
      const u32 place = (u32)(row >> 3 << ENTROPY_PRECISION) + (c >> 16);
      for (u32 k = lane_of(); k < (c & 0xffff); k += WARP) store(place + k, symbol, c, k);
    }
  }
}

/* The bytes of narrow tables where they do not fit in shared memory. */
extern "C" __global__ void level_tables(const u32* codes, i32 models, u8* symbols) {
  for_slots(codes, models, grid_warp(), grid_warps(),
            [&](u32 place, u32 symbol, u32, u32) { symbols[place] = (u8)symbol; });
}

/* Numbers in the table of chunks or of sizes, at any address. */
DEVICE u32 table_entry(const u8* table, i64 i) {
  return aligned(table, 4) ? ((const u32*)table)[i] : load_u32(table + 4 * i);
}

/* A chunk a warp. `data` has models (`at` bytes, read), then perhaps the table of chunks, perhaps sizes of escapes,
   chunks, escapes. kind: of decoder. In shared memory: values of symbols; `table_bytes` of tables,
   slots or, where narrow, codes and (`symbols` = 0) the symbols of slots; `room` bytes a warp. */
extern "C" __global__ void __launch_bounds__(512, 1)
    level_decode(const u8* data, i64 size, i64 at, i32 choice, i32 escaped, const u32* codes, i32 models,
                 const u8* symbols, i32 kind, i32 table_bytes, i32 room, i64 n, i32 states, i32 labels, i32 dithered,
                 i32 context, i32 columns, u64 key, f64 step, f64 near, f64 mid, f64 rest, f64 weight, i32 add,
                 real* out, u32* status) {
  DYNAMIC_SHARED(u8, shared);
  __shared__ u64 sums[WARP + 1];
  const Coded m = {data, size, n,     choice, escaped, {states, labels, dithered, context, columns},
                   key,  step, near,  mid,    rest,    (real)weight,
                   add,  out,  status};
  const int narrow = kind >= DITHERED, warps = (int)blockDim.x / WARP, warp = warp_of();
  real* const values = (real*)shared;
  u8* const tables = shared + 512 * sizeof(real);
  u8* const own = tables + table_bytes + warp * room;
  Tables t = {(const u32*)tables, symbols, codes, values};
  if (!dithered)
    for (int i = (int)threadIdx.x; i < 512; i += (int)blockDim.x)
      values[i] = m.amount(step * m.moved(level_from((i & 255) - 128, (u32)i >> 8, labels)));
  if (!narrow) {
    u32* const slots = (u32*)tables;
    for_slots(codes, models, warp, warps, [&](u32 place, u32 symbol, u32 code, u32 offset) {
      slots[place] = entropy_slot(symbol, code & 0xffff, offset);
    });
  } else if (!symbols) {
    u32* const copied = (u32*)tables;
    u8* const filled = tables + 1024 * models;
    for (int i = (int)threadIdx.x; i < 256 * models; i += (int)blockDim.x) copied[i] = codes[i];
    for_slots(codes, models, warp, warps, [&](u32 place, u32 symbol, u32, u32) { filled[place] = (u8)symbol; });
    t.codes = copied;
    t.symbols = filled;
  }

  /* where this block's chunks and their escapes start: sums over what stands before them */
  const i64 chunks = ceil_div(n, ENTROPY_CHUNK), block = (i64)blockIdx.x * warps, chunk = block + warp;
  const u8* const entries = data + at;
  const u8* const sizes = entries + 4 * chunks * choice;
  u64 before = 0, all = 0, lists = 0, total;
  if (choice)
    for (i64 i = threadIdx.x; i < (escaped ? chunks : block); i += blockDim.x) {
      const u64 bytes = (u64)entropy_chunk_bytes(table_entry(entries, i));
      all += bytes;
      before += i < block ? bytes : 0;
    }
  if (escaped)
    for (i64 i = threadIdx.x; i < block; i += blockDim.x) lists += table_entry(sizes, i);
  block_scan<u64>(before, sums, &total);
  before = total;
  block_scan<u64>(all, sums, &total);
  all = total;
  block_scan<u64>(lists, sums, &total);
  lists = total;
  if (chunk >= chunks) return;
  const i64 mine = block + lane_of();
  const u32 entry = choice && mine <= chunk ? table_entry(entries, mine) : 0;
  const u32 list = escaped && mine <= chunk ? table_entry(sizes, mine) : 0;
  const u64 upto = warp_scan((u64)entropy_chunk_bytes(entry)), listed = warp_scan((u64)list);
  const u32 own_entry = __shfl_sync(ALL_LANES, entry, warp), own_list = __shfl_sync(ALL_LANES, list, warp);
  const i64 base = at + 4 * chunks * (choice + escaped);
  const i64 ends = base + (i64)(before + __shfl_sync(ALL_LANES, upto, warp));
  const i64 list_ends = base + (i64)(all + lists + __shfl_sync(ALL_LANES, listed, warp));
  const i64 start = ends - entropy_chunk_bytes(own_entry), list_start = list_ends - own_list;
  if (chunk == chunks - 1 && (escaped ? list_ends : ends) != size) m.report(AT_LAST, LONGER);

#define CALL(...)                                                                                                      \
  {                                                                                                                    \
    Decoder<__VA_ARGS__> d = {m, t};                                                                                   \
    d.run(chunk, start, own_entry, list_start, own_list, own);                                                         \
  }
  switch (kind) { /* trellis, dithered, context, more, narrow */
    case UNIFORM: CALL(false, false, false, false, false) break;
    case TRELLIS: CALL(true, false, false, false, false) break;
    case PLAIN: CALL(true, false, false, true, false) break;
    case DITHERED: CALL(true, true, false, true, true) break;
    case CONTEXT: CALL(true, false, true, true, true) break;
    default: CALL(true, true, true, true, true)
  }
#undef CALL
}
