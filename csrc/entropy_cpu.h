/* The chunk loops of the entropy coder: one symbol of 32 lanes at a time, in two vectors of 16 where there is AVX-512
   (a table lookup there is a gather), of fewer lanes in one, and in a plain loop elsewhere. */
#ifndef COMPRESS_ENTROPY_CPU_H
#define COMPRESS_ENTROPY_CPU_H
#include <string.h>
#include "entropy.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define ENTROPY_VECTOR 16
#endif

typedef enum { ENTROPY_FINE, ENTROPY_TRUNCATED, ENTROPY_DAMAGED } EntropyFault;

/* What a chunk is encoded from: symbols; the model of each, or NULL for one; low bits (entropy_extra), or NULL. */
typedef struct {
  const u8 *symbol, *model;
  const u16* extra;
  const u32* table;
} EntropySource;

HD u16* entropy_put1(u32* x, u32 code, u16* end) {
  const u32 full = (u32)entropy_full(*x, code);
  end[-1] = (u16)*x;
  *x = entropy_put(*x >> (full << 4), code);
  return end - full;
}

/* The symbols at `count` places from p on, one a lane or (`stride` 0) all of lane 0, into the stream that ends at `end`;
   returns its new beginning. Every symbol must have a frequency. */
HD u16* entropy_put_step(const EntropySource* s, i64 p, int count, u32* x, u16* end, const int stride) {
  int i;
  if (s->extra)
    for (i = count - 1; i >= 0; --i) end = entropy_put1(x + i * stride, entropy_extra_code(s->extra[p + i]), end);
  for (i = count - 1; i >= 0; --i)
    end = entropy_put1(x + i * stride, s->table[(s->model ? (u32)s->model[p + i] << 8 : 0) | s->symbol[p + i]], end);
  return end;
}

#ifdef ENTROPY_VECTOR
HD __m512i entropy_bytes(const u8* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }

HD u16* entropy_put16(__m512i* x, __m512i code, u16* end) {
  const __m512i one = _mm512_set1_epi32(1), f = _mm512_and_si512(code, _mm512_set1_epi32(0xffff));
  __m512i v = *x, q, r;
  __m512 g, inverse;
  const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(v, 20), f);
  __mmask16 under, over;
  if (full) { /* a store of nothing is slow on some processors */
    const int count = __builtin_popcount(full);
    end -= count;
    _mm256_mask_storeu_epi16(end, (__mmask16)((1u << count) - 1),
                             _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, v)));
    v = _mm512_mask_srli_epi32(v, full, v, 16);
  }
  /* v / f from an estimate of 1 / f and a step of Newton's: off by less than one, and put right */
  g = _mm512_cvtepi32_ps(f);
  inverse = _mm512_rcp14_ps(g);
  inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(g, inverse, _mm512_set1_ps(2)));
  q = _mm512_cvttps_epu32(_mm512_mul_ps(_mm512_cvtepu32_ps(v), inverse));
  r = _mm512_sub_epi32(v, _mm512_mullo_epi32(q, f));
  under = _mm512_movepi32_mask(r);
  over = _mm512_cmpge_epi32_mask(r, f);
  q = _mm512_mask_add_epi32(_mm512_mask_sub_epi32(q, under, q, one), over, q, one);
  r = _mm512_mask_sub_epi32(_mm512_mask_add_epi32(r, under, r, f), over, r, f);
  *x = _mm512_add_epi32(_mm512_slli_epi32(q, ENTROPY_PRECISION), _mm512_add_epi32(r, _mm512_srli_epi32(code, 16)));
  return end;
}

HD __m512i entropy_codes16(const EntropySource* s, i64 p, const int models) {
  __m512i index = entropy_bytes(s->symbol + p);
  if (models) index = _mm512_or_si512(index, _mm512_slli_epi32(entropy_bytes(s->model + p), 8));
  return _mm512_i32gather_epi32(index, (const int*)s->table, 4);
}

HD __m512i entropy_extra16(__m256i extra) {
  const __m512i e = _mm512_cvtepu16_epi32(extra), bits = _mm512_srli_epi32(e, 12),
                low = _mm512_and_si512(e, _mm512_set1_epi32(0xfff));
  return _mm512_or_si512(
      _mm512_srlv_epi32(_mm512_set1_epi32(ENTROPY_SLOTS), bits),
      _mm512_slli_epi32(_mm512_sllv_epi32(low, _mm512_sub_epi32(_mm512_set1_epi32(ENTROPY_PRECISION), bits)), 16));
}
#endif

/* `steps` whole steps of 32 lanes, from the last to the first. */
HD u16* entropy_put_steps(const EntropySource* s, i64 steps, u32* x, u16* end, const int models, const int extras) {
  i64 p = ENTROPY_LANES * (steps - 1);
#ifdef ENTROPY_VECTOR
  __m512i a = _mm512_loadu_si512(x), b = _mm512_loadu_si512(x + 16);
  for (; p >= 0; p -= ENTROPY_LANES) {
    if (extras) {
      end = entropy_put16(&b, entropy_extra16(_mm256_loadu_si256((const __m256i*)(s->extra + p + 16))), end);
      end = entropy_put16(&a, entropy_extra16(_mm256_loadu_si256((const __m256i*)(s->extra + p))), end);
    }
    end = entropy_put16(&b, entropy_codes16(s, p + 16, models), end);
    end = entropy_put16(&a, entropy_codes16(s, p, models), end);
  }
  _mm512_storeu_si512(x, a);
  _mm512_storeu_si512(x + 16, b);
#else
  (void)models, (void)extras;
  for (; p >= 0; p -= ENTROPY_LANES) end = entropy_put_step(s, p, ENTROPY_LANES, x, end, 1);
#endif
  return end;
}

/* The same of at most 16 lanes. A symbol of frequency ENTROPY_SLOTS, that of lanes that are not there, changes nothing. */
HD u16* entropy_put_few(const EntropySource* s, i64 steps, int lanes, u32* x, u16* end) {
  i64 p = lanes * (steps - 1);
#ifdef ENTROPY_VECTOR
  const __mmask16 here = (__mmask16)((1u << lanes) - 1);
  const __m512i none = _mm512_set1_epi32(ENTROPY_SLOTS);
  __m512i a = _mm512_loadu_si512(x);
  for (; p >= 0; p -= lanes) {
    __m512i index = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(here, s->symbol + p));
    if (s->model)
      index =
          _mm512_or_si512(index, _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(here, s->model + p)), 8));
    if (s->extra) end = entropy_put16(&a, entropy_extra16(_mm256_maskz_loadu_epi16(here, s->extra + p)), end);
    end = entropy_put16(&a, _mm512_mask_i32gather_epi32(none, here, index, (const int*)s->table, 4), end);
  }
  _mm512_storeu_si512(x, a);
#else
  for (; p >= 0; p -= lanes) end = entropy_put_step(s, p, lanes, x, end, 1);
#endif
  return end;
}

/* The tail of a chunk (entropy.h, C): as many of the last steps as leave no more words than the other lanes have room
   for. Starts all lanes, returns the steps left. */
static i64 entropy_encode_tail(const EntropySource* s, i64 n, int lanes, u32* x) {
  u16 room[3 * ENTROPY_LANES], *const stop = room + 3 * ENTROPY_LANES, *begin = stop;
  const i64 steps = ceil_div(n, lanes);
  i64 t = steps;
  int i;
  x[0] = ENTROPY_LOW;
  while (lanes > 1 && t > 0 && steps - t < ENTROPY_TAIL) {
    const i64 p = (t - 1) * lanes;
    u32 next = x[0];
    u16* const earlier = entropy_put_step(s, p, n - p < lanes ? (int)(n - p) : lanes, &next, begin, 0);
    if (stop - earlier > lanes - 1) break;
    x[0] = next;
    begin = earlier;
    --t;
  }
  for (i = 1; i < ENTROPY_LANES; ++i) x[i] = ENTROPY_LOW | (i - 1 < stop - begin ? begin[i - 1] : 0);
  return t;
}

/* A chunk of n symbols, 0 < n <= ENTROPY_CHUNK. The words come before `end`, at most one a symbol and one for its low
   bits, and one more in front of them is overwritten; `head` takes ENTROPY_HEAD bytes, `tail` the steps that the other
   lanes hold. Returns the beginning of the words. */
static u16* entropy_encode_chunk(const EntropySource* s, i64 n, u16* end, u8* head, int* head_bytes, u32* tail) {
  const int lanes = entropy_lanes(n);
  u32 x[ENTROPY_LANES];
  i64 t = entropy_encode_tail(s, n, lanes, x);
  u64 held = 0;
  int i, bits = 0, at = (lanes + 1) / 2;
  *tail = (u32)(ceil_div(n, lanes) - t);
  if (t * lanes > n) {
    --t;
    end = entropy_put_step(s, t * lanes, (int)(n - t * lanes), x, end, 1);
  }
  if (lanes <= 2)
    while (t-- > 0) end = entropy_put_step(s, t * lanes, lanes, x, end, 1);
  else if (lanes < ENTROPY_LANES) end = entropy_put_few(s, t, lanes, x, end);
  else if (s->extra) end = entropy_put_steps(s, t, x, end, s->model != 0, 1);
  else if (s->model) end = entropy_put_steps(s, t, x, end, 1, 0);
  else end = entropy_put_steps(s, t, x, end, 0, 0);
  memset(head, 0, (size_t)at);
  for (i = 0; i < lanes; ++i) {
    u32 length = 16;
    while (x[i] >> length > 1) ++length;
    head[i / 2] |= (u8)((length - 16) << (i % 2 * 4));
    held |= (u64)(x[i] ^ 1u << length) << bits;
    for (bits += (int)length; bits >= 8; bits -= 8, held >>= 8) head[at++] = (u8)held;
  }
  if (bits) head[at++] = (u8)held;
  *head_bytes = at;
  return end;
}

/* A decoder of one chunk: the states and the words; stride = 0 in the tail, where all symbols are of lane 0. */
typedef struct {
  u32 x[ENTROPY_LANES];
  int stride;
  const u8 *word, *stop;
  u8 spare[6 * ENTROPY_LANES]; /* the last words again, with room behind them to read too far */
} EntropyReader;

/* Reads the head of a chunk at `data`, where `size` bytes are left. */
static EntropyFault entropy_open(EntropyReader* reader, const u8* data, i64 size, u32 entry, int lanes) {
  u64 held = 0;
  i64 at = (lanes + 1) / 2;
  int i, bits = 0;
  if (size < at) return ENTROPY_TRUNCATED;
  memset(reader, 0, sizeof *reader);
  reader->stride = 1;
  for (i = 0; i < ENTROPY_LANES; ++i) reader->x[i] = ENTROPY_LOW;
  for (i = 0; i < lanes; ++i) {
    const int length = 16 + (data[i / 2] >> (i % 2 * 4) & 15);
    for (; bits < length; bits += 8) {
      if (at == size) return ENTROPY_TRUNCATED;
      held |= (u64)data[at++] << bits;
    }
    reader->x[i] = 1u << length | ((u32)held & ((1u << length) - 1));
    held >>= length;
    bits -= length;
  }
  if (at != entropy_head(entry)) return ENTROPY_DAMAGED;
  if (entropy_chunk_bytes(entry) > size) return ENTROPY_TRUNCATED;
  reader->word = data + at;
  reader->stop = data + entropy_chunk_bytes(entry);
  return ENTROPY_FINE;
}

/* Before a step: makes what it may read safe to read. False where words were read that are not there. */
HD int entropy_refill(EntropyReader* reader) {
  const i64 left = reader->stop - reader->word;
  if (left >= 2 * ENTROPY_LANES) return 1;
  if (left < 0) return 0;
  if (reader->word < reader->spare || reader->word > reader->spare + 4 * ENTROPY_LANES) {
    memcpy(reader->spare, reader->word, (size_t)left);
    reader->word = reader->spare;
    reader->stop = reader->spare + left;
  }
  return 1;
}

/* x after its slot has gone out of it, with 16 bits from the stream if it needs them. */
HD u32 entropy_take_slot(u32* x, u32 slot, const u8** word) {
  const u32 v = entropy_take(*x, slot), low = v < ENTROPY_LOW;
  u16 w;
  memcpy(&w, *word, 2);
  *x = v << (low << 4) | (w & (0 - low)); /* a branch here would be mispredicted */
  *word += 2 * low;
  return slot;
}
HD u32 entropy_take1(u32* x, const u32* table, const u8** word) {
  return entropy_take_slot(x, table[*x & (ENTROPY_SLOTS - 1)], word);
}
/* The next `bits` low bits. */
HD u32 entropy_take_low(u32* x, u32 bits, const u8** word) {
  const u32 low = entropy_low(*x, bits);
  entropy_take_slot(x, entropy_low_slot(*x, bits), word);
  return low;
}

#ifdef ENTROPY_VECTOR
/* Of the lanes that are `here`; the others stay ENTROPY_LOW. */
HD __m512i entropy_take16(__m512i* x, __m512i slot, const u8** word, const __mmask16 here) {
  const __m512i f =
      _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(slot, 8), _mm512_set1_epi32(0xfff)), _mm512_set1_epi32(1));
  const __m512i v = _mm512_mask_add_epi32(*x, here, _mm512_mullo_epi32(f, _mm512_srli_epi32(*x, ENTROPY_PRECISION)),
                                          _mm512_srli_epi32(slot, 20));
  const __mmask16 low = _mm512_cmplt_epu32_mask(v, _mm512_set1_epi32(ENTROPY_LOW));
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)*word));
  *x = _mm512_mask_or_epi32(v, low, _mm512_slli_epi32(v, 16), _mm512_maskz_expand_epi32(low, words));
  *word += 2 * __builtin_popcount(low);
  return slot;
}
#endif

/* Goes on with the words that the lanes but the first hold when all others have been read. */
static EntropyFault entropy_open_tail(EntropyReader* reader, int lanes) {
  int i;
  if (reader->word != reader->stop) return ENTROPY_DAMAGED;
  memset(reader->spare, 0, sizeof reader->spare);
  for (i = 1; i < lanes; ++i) {
    if (reader->x[i] >> 16 != 1) return ENTROPY_DAMAGED;
    reader->spare[2 * i - 2] = (u8)reader->x[i];
    reader->spare[2 * i - 1] = (u8)(reader->x[i] >> 8);
    reader->x[i] = ENTROPY_LOW;
  }
  reader->word = reader->spare;
  reader->stop = reader->spare + 2 * (lanes - 1);
  reader->stride = 0;
  return ENTROPY_FINE;
}

/* All words read, but for zeros in a tail, and every lane where its encoder started? */
static EntropyFault entropy_close(const EntropyReader* reader) {
  const u8* word = reader->word;
  u32 wrong = 0;
  int i;
  for (i = 0; i < ENTROPY_LANES; ++i) wrong |= reader->x[i] ^ ENTROPY_LOW;
  for (; !reader->stride && word < reader->stop; ++word) wrong |= *word;
  return wrong == 0 && word == reader->stop ? ENTROPY_FINE : ENTROPY_DAMAGED;
}

#endif
