#include "pack.cuh"

enum { PACK_WARPS = 8 };

extern "C" __global__ void __launch_bounds__(256) pack(const u16* codes, i64 n, i32 width, u8* out) {
  __shared__ u16 room[PACK_WARPS][PACK_ROOM];
  const i64 block = grid_warp(), start = block * PACK_BLOCK;
  if (start >= n) return;
  const u16* c = codes + start;
  warp_pack((int)(n - start < PACK_BLOCK ? n - start : PACK_BLOCK), width, out + block * packed_block_bytes(width),
            room[warp_of()], [&](int, int i) { return (u32)c[i]; });
}

extern "C" __global__ void __launch_bounds__(256) unpack(const u8* data, i64 n, i32 width, u16* out) {
  const i64 block = grid_warp(), start = block * PACK_BLOCK;
  if (start >= n) return;
  u16* o = out + start;
  warp_unpack(data + block * packed_block_bytes(width), (int)(n - start < PACK_BLOCK ? n - start : PACK_BLOCK), width,
              [&](int, int i, u32 code) { o[i] = (u16)code; });
}
