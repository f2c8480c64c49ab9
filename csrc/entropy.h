/* Symbols of small alphabets as interleaved range asymmetric numeral systems (rANS; Duda, arXiv:1311.2540; interleaved
   as in Giesen, arXiv:1402.3392), with static models.

   A. A symbol has a frequency f and a start c out of 2^12: its model. A lane holds a number x; a symbol goes in as
          x -> (x / f) 2^12 + x mod f + c
      and comes out where x mod 2^12 falls in [c, c + f). 2^16 <= x < 2^32 between two symbols; before a symbol goes in
      an x that would leave that range gives its low 16 bits to the stream, and x grows back from it on the way out.
   B. Symbols are cut in chunks of 131,072, each coded by itself. A chunk has 32 lanes (fewer where that would leave
      less than 1,024 symbols a lane), symbol p belongs to lane p mod 32, and a step is one symbol of every lane. A
      warp decodes a step at once, a vector unit in two halves. The words of a step stand in the order of its lanes,
      and a decoder reads the stream forward, so an encoder writes it backward.
   C. A lane that starts from x = 2^16 ends with 16 bits that say nothing. So the last steps of a chunk, at most 15, are
      all of lane 0, which starts from there; the words that this leaves, one a lane at the most, are the low 16 bits
      that the other lanes start from (then zeros). A decoder that has read the last word finds them, goes on with lane 0
      alone, and ends at 2^16, or the bytes are damaged.
   D. Payload: one u32 a chunk, its number of words, from bit 20 the bytes of its lengths and states, and from bit 28
      the steps of C, so that the table alone says where every chunk starts; then the chunks:
          lengths   4 bits a lane, two to a byte: the bits of its state beyond 17
          states    the bits of x below its leading one, lane after lane in one little-endian string of bits
          words     u16, from a byte boundary
      Beyond the models that is 48 bits a chunk, 3.5 bits a lane on average and what C leaves empty, half a step: 0.0014
      bits a symbol in a whole chunk at 2 bits, where it would be 0.005 without C. Below one bit 15 steps do not fill the
      lanes; more of them would slow a warp down.
   E. Low bits of a symbol too wide for a table are one more step, with the 2^b values of b bits equally likely:
      f = 2^(12 - b). b = 0 changes nothing in x, so lanes may differ in b.
   F. A model is its frequencies, written in the order of entropy_order and each in as many bits as what is left of 4096
      needs, until nothing is left.
   G. Division: x < 2^20 f, so x / f in float32, or x times an inverse that is good to 2^-22, is off by less than one
      and is put right by the remainder. In integers with i = ceil(2^44 / f): x (i f - 2^44) < 2^32 2^12, so x i / 2^44
      has the integer part of x / f, and x i < 2^64 as f^2 <= 2^24.
   H. Which model a symbol has may depend on anything that the decoder knows by then. The tables of model m start at
      256 m (encoder, one entry a symbol) and 4096 m (decoder, one a slot).

   What was tried and not taken: symbols in groups of two or four, one lookup for all of them. It is what makes a
   scalar loop fast, and it is impossible where the model depends on state or context; with 16 lanes a vector
   the lookups are no longer what takes the time. */
#ifndef COMPRESS_ENTROPY_H
#define COMPRESS_ENTROPY_H
#include "portable.h"

enum {
  ENTROPY_LANES = 32,
  ENTROPY_STEPS = 4096,
  ENTROPY_CHUNK = ENTROPY_LANES * ENTROPY_STEPS,
  ENTROPY_PRECISION = 12,
  ENTROPY_SLOTS = 1 << ENTROPY_PRECISION,
  ENTROPY_LOW = 1 << 16,
  ENTROPY_SYMBOLS = 241, /* in entropy_order, all that there are */
  ENTROPY_TAIL = 15,
  ENTROPY_HEAD = ENTROPY_LANES / 2 + 4 * ENTROPY_LANES, /* bytes of lengths and states at most */
  ENTROPY_HEAD_SHIFT = 20,                              /* in the table of chunks */
  ENTROPY_TAIL_SHIFT = 28
};

/* An entry of the table of chunks, and what it says. */
HD u32 entropy_entry(u32 words, u32 head, u32 tail) {
  return words | head << ENTROPY_HEAD_SHIFT | tail << ENTROPY_TAIL_SHIFT;
}
HD u32 entropy_words(u32 entry) { return entry & ((1u << ENTROPY_HEAD_SHIFT) - 1); }
HD u32 entropy_head(u32 entry) { return entry >> ENTROPY_HEAD_SHIFT & 255; }
HD u32 entropy_tail(u32 entry) { return entry >> ENTROPY_TAIL_SHIFT; }
HD i64 entropy_chunk_bytes(u32 entry) { return entropy_head(entry) + 2 * (i64)entropy_words(entry); }
HD u32 entropy_head_bytes(int lanes, u32 bits) { return ((u32)lanes + 1) / 2 + (bits + 7) / 8; }

HD int entropy_lanes(i64 n) {
  int lanes = ENTROPY_LANES;
  while (lanes > 1 && n < 1024 * (i64)lanes) lanes >>= 1;
  return lanes;
}

/* The tables: frequency and start of a symbol; symbol, frequency and offset of a slot. */
HD u32 entropy_code(u32 frequency, u32 start) { return frequency | start << 16; }
HD u32 entropy_slot(u32 symbol, u32 frequency, u32 offset) { return symbol | (frequency - 1) << 8 | offset << 20; }

/* Low bits have slots without a table: the next `bits` of them, and their slot. */
HD u32 entropy_low(u32 x, u32 bits) { return (x & (ENTROPY_SLOTS - 1)) >> (ENTROPY_PRECISION - bits); }
HD u32 entropy_low_slot(u32 x, u32 bits) { return entropy_slot(0, 4096u >> bits, x & ((4096u >> bits) - 1)); }
HD u32 entropy_low_code(u32 low, u32 bits) { return entropy_code(4096u >> bits, low << (ENTROPY_PRECISION - bits)); }

/* Low bits with their number, for a step of their own. */
HD u32 entropy_extra(u32 low, u32 bits) { return bits << 12 | low; }
HD u32 entropy_extra_code(u32 extra) { return entropy_low_code(extra & 0xfff, extra >> 12); }

/* The symbols from the middle outward, the two lowest first: 0, 1, 128, 129, 127, 130, ... */
HD u32 entropy_order(int i) { return i < 2 ? (u32)i : i & 1 ? 128 + (u32)(i - 1) / 2 : 128 - (u32)(i - 2) / 2; }

HD int entropy_full(u32 x, u32 code) { return x >> 20 >= (code & 0xffff); }
HD u32 entropy_put(u32 x, u32 code) {
  const u32 f = code & 0xffff, q = x / f;
  return (q << ENTROPY_PRECISION) + (x - q * f) + (code >> 16);
}
HD u32 entropy_take(u32 x, u32 slot) {
  const u32 high = x >> ENTROPY_PRECISION;
  return (slot >> 8 & 0xfff) * high + (high + (slot >> 20));
}

/* The same by the inverse of G, by shifts where the symbol is low bits, and by a code in place of a slot. */
HD u64 entropy_inverse(u32 frequency) { return (((u64)1 << 44) + frequency - 1) / frequency; }
HD u32 entropy_put_by(u32 x, u32 code, u64 inverse) {
  return x + (u32)(x * inverse >> 44) * (ENTROPY_SLOTS - (code & 0xffff)) + (code >> 16);
}
HD u32 entropy_put_low(u32 x, u32 extra) {
  const u32 shift = ENTROPY_PRECISION - (extra >> 12), rest = x & ((1u << shift) - 1);
  return (x >> shift << ENTROPY_PRECISION) + rest + ((extra & 0xfff) << shift);
}
HD u32 entropy_take_code(u32 x, u32 code) {
  return (code & 0xffff) * (x >> ENTROPY_PRECISION) + (x & (ENTROPY_SLOTS - 1)) - (code >> 16);
}

/* A string of bits, least significant first; zeros, and at > stop, where it ends. */
typedef struct {
  const u8* data;
  i64 at, stop;
  u64 held;
  int bits;
} EntropyBits;
HD EntropyBits entropy_bits_at(const u8* data, i64 at, i64 stop) {
  const EntropyBits r = {data, at, stop, 0, 0};
  return r;
}
HD u64 entropy_bits(EntropyBits* r, int n) { /* n <= 32 */
  u64 value;
  for (; r->bits < n; r->bits += 8, ++r->at)
    if (r->at < r->stop) r->held |= (u64)r->data[r->at] << r->bits;
  value = r->held & (((u64)1 << n) - 1);
  r->held >>= n;
  r->bits -= n;
  return value;
}

#endif
