/* The codes of one block of pack.h by one warp: the lanes are those of the format. */
#ifndef COMPRESS_PACK_CUH
#define COMPRESS_PACK_CUH
#include "block.cuh"
#include "pack.h"

/* Codes that a warp keeps in shared memory where they change lanes: in a block of trits, and in every tail. */
enum { PACK_ROOM = 1056 };

/* n <= 1024 codes, code(row, i) the i-th, to packed_bytes(n, width) bytes; `room`: PACK_ROOM codes of the warp's own.
   Lane l asks for i = 32 row + l in the order of rows, eight rows in a piece, so that their bits can share a call. */
template <typename Code>
DEVICE void warp_pack(int n, int width, u8* out, u16* room, Code code) {
  const int lane = lane_of();
  if (n == PACK_BLOCK && width) {
    const int words = aligned(out, 4);
    u64 held = 0;
    int bits = 0;
    u8* to = out + 4 * lane;
    for (int group = 0; group < PACK_ROWS; group += 8) {
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        held |= (u64)code(group + r, PACK_LANES * (group + r) + lane) << bits;
        bits += width;
        if (bits >= 32) {
          if (words) *(u32*)to = (u32)held;
          else store_u32(to, (u32)held);
          to += 4 * PACK_LANES;
          held >>= 32;
          bits -= 32;
        }
      }
    }
    return;
  }
  for (int group = 0; group < PACK_ROWS && PACK_LANES * group < n; group += 8) {
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const int i = PACK_LANES * (group + r) + lane;
      if (i < PACK_BLOCK) room[i] = i < n ? (u16)code(group + r, i) : (u16)0;
    }
  }
  if (lane < PACK_ROOM - PACK_BLOCK) room[PACK_BLOCK + lane] = 0;
  __syncwarp();
  if (width == 0) {
    const int bytes = (n + TRIT_DIGITS - 1) / TRIT_DIGITS;
    for (int i = lane; i < bytes; i += WARP) {
      u32 byte = 0;
      for (int j = TRIT_DIGITS - 1; j >= 0; --j) {
        const int at = i + j * bytes;
        byte = 3 * byte + (at < n ? room[at] : 0);
      }
      out[i] = (u8)byte;
    }
  } else {
    const int bytes = (n * width + 7) / 8;
    for (int i = lane; i < bytes; i += WARP) {
      int j = 8 * i / width, at = j * width - 8 * i; /* where code j starts in the byte, before it perhaps */
      u32 byte = 0;
      for (; at < 8 && j < n; ++j, at += width) byte |= at < 0 ? (u32)room[j] >> -at : (u32)room[j] << at;
      out[i] = (u8)byte;
    }
  }
  __syncwarp();
}

/* The inverse: sink(row, i, code) in the order in which warp_pack asks. */
template <typename Sink>
DEVICE void warp_unpack(const u8* in, int n, int width, Sink sink) {
  const int lane = lane_of();
  if (n == PACK_BLOCK && width) {
    const int words = aligned(in, 4);
    const u32 mask = ((u32)1 << width) - 1;
    u64 held = 0;
    int bits = 0;
    const u8* from = in + 4 * lane;
    for (int group = 0; group < PACK_ROWS; group += 8) {
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        if (bits < width) {
          held |= (u64)(words ? *(const u32*)from : load_u32(from)) << bits;
          from += 4 * PACK_LANES;
          bits += 32;
        }
        sink(group + r, PACK_LANES * (group + r) + lane, (u32)held & mask);
        held >>= width;
        bits -= width;
      }
    }
    return;
  }
  const int bytes = width ? (n * width + 7) / 8 : (n + TRIT_DIGITS - 1) / TRIT_DIGITS;
  for (int group = 0; group < PACK_ROWS && PACK_LANES * group < n; group += 8) {
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const int i = PACK_LANES * (group + r) + lane;
      if (i >= n) continue;
      u32 code = 0;
      if (width) {
        const int first = i * width >> 3, shift = i * width & 7;
        for (int b = 0; b < 3 && first + b < bytes; ++b) code |= (u32)in[first + b] << (8 * b);
        code = code >> shift & (((u32)1 << width) - 1);
      } else {
        code = trit_digit(in[i % bytes], i / bytes);
      }
      sink(group + r, i, code);
    }
  }
}

#endif
