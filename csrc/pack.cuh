/* The codes of one block of pack.h by one warp: the lanes are those of the format.

   A. Lane l has codes 32 row + l. Eight rows come and go as one piece, the lane's eight codes in registers: their random
      bits can share a call, and their loads are in flight together. Nothing here depends on the width at compile time:
      a piece is 8 w bits whatever w is, put together in pairs, fours and eights while they fit a word.
   B. What crosses lanes, a block of trits and every tail, goes through shared memory: `room`, the warp's own. */
#ifndef COMPRESS_PACK_CUH
#define COMPRESS_PACK_CUH
#include "block.cuh"
#include "pack.h"

enum { PACK_PIECE = 8, PACK_ROOM = 1056 };

/* n <= 1024 codes in `room`, of which more is overwritten, to packed_bytes(n, width) bytes. */
DEVICE void warp_pack_room(int n, int width, u8* out, u16* room) {
  if (lane_of() < TRIT_DIGITS) room[n + lane_of()] = 0; /* digits that are wanting */
  __syncwarp();
  if (width == 0) {
    const int bytes = (n + TRIT_DIGITS - 1) / TRIT_DIGITS;
#pragma unroll 1
    for (int i = lane_of(); i < bytes; i += WARP) {
      u32 byte = 0;
#pragma unroll
      for (int j = TRIT_DIGITS - 1; j >= 0; --j) byte = 3 * byte + room[i + j * bytes];
      out[i] = (u8)byte;
    }
  } else { /* eight codes are `width` whole bytes, a lane's */
#pragma unroll 1
    for (int unit = lane_of(); 8 * unit < n; unit += WARP) {
      u8* to = out + unit * width;
      u32 held = 0;
      int bits = 0;
#pragma unroll 1
      for (int i = 8 * unit; i < 8 * unit + 8 && i < n; ++i) {
        held |= (u32)room[i] << bits;
#pragma unroll 1
        for (bits += width; bits >= 8; bits -= 8, held >>= 8) *to++ = (u8)held;
      }
      if (bits) *to = (u8)held;
    }
  }
  __syncwarp();
}

/* A whole block of width > 0: rows(row, code) makes the lane's codes of rows row .. row + 7. Where `out` does not take
   words they lie in `room` first. */
template <typename Rows>
DEVICE void warp_pack_words(int width, u8* out, u16* room, Rows rows) {
  u32* const staged = (u32*)(room + !aligned(room, 4));
  const int direct = aligned(out, 4);
  u32 held = 0;
  int bits = 0, at = lane_of();
  auto put = [&](u32 v, int count) {
    const u64 all = (u64)v << bits | held;
    held = (u32)all;
    bits += count;
    if (bits < 32) return;
    if (direct) ((u32*)out)[at] = held;
    else staged[at] = held;
    at += PACK_LANES;
    held = (u32)(all >> 32);
    bits -= 32;
  };
#pragma unroll 1
  for (int row = 0; row < PACK_ROWS; row += PACK_PIECE) {
    u32 code[PACK_PIECE];
    rows(row, code);
#pragma unroll
    for (int r = 0; r < 4; ++r) code[r] = code[2 * r] | code[2 * r + 1] << width;
    if (width > 8) {
#pragma unroll
      for (int r = 0; r < 4; ++r) put(code[r], 2 * width);
      continue;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) code[r] = code[2 * r] | code[2 * r + 1] << 2 * width;
    if (width > 4) {
#pragma unroll
      for (int r = 0; r < 2; ++r) put(code[r], 4 * width);
      continue;
    }
    put(code[0] | code[1] << 4 * width, 8 * width);
  }
  if (direct) return;
  __syncwarp();
  for (int i = lane_of(); i < 128 * width; i += WARP) out[i] = ((const u8*)staged)[i];
  __syncwarp();
}

/* Another code for a row of the lane's, in words that it has packed. */
DEVICE void lane_repack(int width, u8* out, int row, u32 code) {
  u8* to = out + row * width / 32 * 4 * PACK_LANES + 4 * lane_of();
  const int shift = row * width % 32;
  const u64 mask = (((u64)1 << width) - 1) << shift, bits = (u64)code << shift;
  store_u32(to, (load_u32(to) & ~(u32)mask) | (u32)bits);
  if (!(mask >> 32)) return;
  to += 4 * PACK_LANES;
  store_u32(to, (load_u32(to) & ~(u32)(mask >> 32)) | (u32)(bits >> 32));
}

/* n <= 1024 codes to packed_bytes(n, width) bytes, code(row, i) the i-th: lane l asks for i = 32 row + l in the order of
   rows, eight rows in a piece. `room`: PACK_ROOM codes of the warp's own. */
template <typename Code>
DEVICE void warp_pack(int n, int width, u8* out, u16* room, Code code) {
  if (n == PACK_BLOCK && width) {
    warp_pack_words(width, out, room, [&](int row, u32* piece) {
#pragma unroll
      for (int r = 0; r < PACK_PIECE; ++r) piece[r] = code(row + r, PACK_LANES * (row + r) + lane_of());
    });
    return;
  }
#pragma unroll 1
  for (int row = 0; PACK_LANES * row < n; row += PACK_PIECE) {
#pragma unroll
    for (int r = 0; r < PACK_PIECE; ++r) {
      const int i = PACK_LANES * (row + r) + lane_of();
      if (i < n) room[i] = (u16)code(row + r, i);
    }
  }
  warp_pack_room(n, width, out, room);
}

template <typename Rows>
DEVICE void warp_unpack_block(const u8* in, int width, Rows rows) {
  const int words = aligned(in, 4);
  const u32 mask = ((u32)1 << width) - 1;
  const u8* from = in + 4 * lane_of();
  u64 held = 0;
  u32 ahead = 0;
  int bits = 0, left = width; /* words to come, the next of them on its way */
  auto load = [&]() {
    if (left-- <= 0) return;
    ahead = words ? *(const u32*)from : load_u32(from);
    from += 4 * PACK_LANES;
  };
  auto take = [&](int count) {
    if (bits < count) {
      held |= (u64)ahead << bits;
      bits += 32;
      load();
    }
    const u32 v = (u32)held;
    held >>= count;
    bits -= count;
    return v;
  };
  load();
#pragma unroll 1
  for (int row = 0; row < PACK_ROWS; row += PACK_PIECE) {
    u32 code[PACK_PIECE];
    if (width == 0) {
#pragma unroll
      for (int r = 0; r < PACK_PIECE; ++r) {
        const int i = PACK_LANES * (row + r) + lane_of(), which = i * 5117 >> 20; /* i / TRIT_BLOCK_BYTES */
        code[r] = trit_digit(in[i - which * TRIT_BLOCK_BYTES], which);
      }
    } else if (width <= 4) {
      const u32 v = take(8 * width);
#pragma unroll
      for (int r = 0; r < PACK_PIECE; ++r) code[r] = v >> r * width & mask;
    } else if (width <= 8) {
#pragma unroll
      for (int half = 0; half < PACK_PIECE; half += 4) {
        const u32 v = take(4 * width);
#pragma unroll
        for (int r = 0; r < 4; ++r) code[half + r] = v >> r * width & mask;
      }
    } else {
#pragma unroll
      for (int pair = 0; pair < PACK_PIECE; pair += 2) {
        const u32 v = take(2 * width);
        code[pair] = v & mask;
        code[pair + 1] = v >> width & mask;
      }
    }
    rows(row, code);
  }
}

template <typename Rows>
DEVICE void warp_unpack_tail(const u8* in, int n, int width, Rows rows) {
  const int bytes = width ? (n * width + 7) / 8 : (n + TRIT_DIGITS - 1) / TRIT_DIGITS;
  const u32 mask = ((u32)1 << width) - 1;
#pragma unroll 1
  for (int row = 0; PACK_LANES * row < n; row += PACK_PIECE) {
    u32 code[PACK_PIECE];
#pragma unroll
    for (int r = 0; r < PACK_PIECE; ++r) {
      const int i = PACK_LANES * (row + r) + lane_of();
      code[r] = 0;
      if (i >= n) continue;
      if (width) {
        const int first = i * width >> 3;
        u32 v = in[first];
        if (first + 1 < bytes) v |= (u32)in[first + 1] << 8;
        if (first + 2 < bytes) v |= (u32)in[first + 2] << 16;
        code[r] = v >> (i * width & 7) & mask;
      } else {
        const int which = i / bytes;
        code[r] = trit_digit(in[i - which * bytes], which);
      }
    }
    rows(row, code);
  }
}

/* The inverse: rows(row, has, code) gets the codes of eight rows. */
template <typename Rows>
DEVICE void warp_unpack_rows(const u8* in, int n, int width, Rows rows) {
  if (n == PACK_BLOCK)
    warp_unpack_block(in, width, [&](int row, const u32* code) { rows(row, [](int) { return true; }, code); });
  else warp_unpack_tail(in, n, width, [&](int row, const u32* code) { rows(row, [&](int i) { return i < n; }, code); });
}

/* The same to sink(row, i, code), in the order of rows. */
template <typename Sink>
DEVICE void warp_unpack(const u8* in, int n, int width, Sink sink) {
  warp_unpack_rows(in, n, width, [&](int row, auto has, const u32* piece) {
#pragma unroll
    for (int r = 0; r < PACK_PIECE; ++r) {
      const int i = PACK_LANES * (row + r) + lane_of();
      if (has(i)) sink(row + r, i, piece[r]);
    }
  });
}

#endif
