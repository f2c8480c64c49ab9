/* A block has a chunk, a thread 16 of its indices. Sizes of chunks become places by a prefix sum between two kernels. */
#include "block.cuh"
#include "rice.h"

enum { RICE_THREADS = 256, EACH = RICE_CHUNK / RICE_THREADS, CHUNK_ROOM = RICE_CHUNK + RICE_CHUNK / EACH };

/* Where number i is in shared memory: a gap after each 16 keeps threads that read 16 in a row off each other's banks. */
DEVICE int spread(int i) { return i + i / EACH; }

DEVICE int chunk_size(i64 k) {
  const i64 left = k - (i64)blockIdx.x * RICE_CHUNK;
  return left < RICE_CHUNK ? (int)left : RICE_CHUNK;
}

/* status[0]: all bits but those of the first fault, so that zero is none; status[1]: the bits of the code. */
DEVICE void report(u64* status, int fault) { atomicMax(status, ~((u64)blockIdx.x << 3 | (u64)fault)); }

/* The gap before index j of the chunk that starts at `start`. */
DEVICE u32 gap_at(const u32* index, i64 start, int j) {
  return index[start + j] - (start + j ? index[start + j - 1] : ~0u) - 1;
}

/* The length of the chunk with parameter l, from EACH gaps a thread. */
DEVICE u64 chunk_bits(const u32* gap, int n, int l, u64* room) {
  u64 sum = 0, total;
#pragma unroll
  for (int r = 0; r < EACH; ++r) sum += gap[r] >> l;
  block_scan(sum, room, &total);
  return rice_code_bits((u64)n, l, total);
}

/* What each chunk's table entry is and how many bytes its code takes; zeros for a chunk that cannot be coded. */
extern "C" __global__ void __launch_bounds__(256)
    rice_measure(const u32* index, i64 k, u64 d, u32* entry, u64* bytes, u64* status) {
  __shared__ u64 room[WARP + 1];
  const i64 start = (i64)blockIdx.x * RICE_CHUNK;
  const int n = chunk_size(k);
  u32 gap[EACH];
  u64 descends = 0;
#pragma unroll
  for (int r = 0; r < EACH; ++r) {
    const int j = r * RICE_THREADS + (int)threadIdx.x;
    gap[r] = j < n ? gap_at(index, start, j) : 0;
    descends += j < n && start + j && gap[r] >= index[start + j]; /* modulo 2^32, where index j is not the larger one */
  }
  block_scan(descends, room, &descends);
  const int fault = descends ? RICE_NOT_ASCENDING : index[start + n - 1] >= d ? RICE_INDEX : RICE_FINE;
  if (fault) {
    if (threadIdx.x == 0) {
      report(status, fault);
      entry[blockIdx.x] = 0;
      bytes[blockIdx.x] = 0;
    }
    return;
  }
  const u64 gaps = index[start + n - 1] - (start ? index[start - 1] : ~0u) - (u32)n;
  int l = rice_first_parameter((u64)n, gaps);
  u64 here = chunk_bits(gap, n, l, room), other;
  for (; l < RICE_MAX_PARAMETER && (other = chunk_bits(gap, n, l + 1, room)) < here; ++l) here = other;
  for (; l > 0 && (other = chunk_bits(gap, n, l - 1, room)) <= here; --l) here = other;
  if (threadIdx.x == 0) {
    entry[blockIdx.x] = rice_entry(l, (u32)here);
    bytes[blockIdx.x] = (here + 7) / 8;
  }
}

/* The codes to their places: `before` has the bytes of the chunks before each. */
extern "C" __global__ void __launch_bounds__(256)
    rice_write(const u32* index, i64 k, const u32* entry, const u64* before, u8* out, i64 size, u64* status) {
  __shared__ u32 gap[CHUNK_ROOM], word[2 * RICE_WORDS], room[WARP + 1];
  const int n = chunk_size(k), l = rice_parameter(entry[blockIdx.x]), length = (int)rice_length(entry[blockIdx.x]);
  const int bytes = (length + 7) / 8;
  const i64 start = (i64)blockIdx.x * RICE_CHUNK, used = 4 * (i64)gridDim.x + (i64)before[blockIdx.x];
  if (length == 0) return;
  if (used + bytes > size) {
    if (threadIdx.x == 0) report(status, RICE_ROOM);
    return;
  }
  for (int j = (int)threadIdx.x; j < n; j += RICE_THREADS) gap[spread(j)] = gap_at(index, start, j);
  for (int i = (int)threadIdx.x; i < 2 * RICE_WORDS; i += RICE_THREADS) word[i] = 0;
  __syncthreads();
  const int first = EACH * (int)threadIdx.x;
  u32 mine[EACH], quotients = 0, total;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    mine[i] = first + i < n ? gap[spread(first) + i] : 0;
    quotients += mine[i] >> l;
  }
  u32 at = (u32)(n * l + first) + block_scan(quotients, room, &total);
  /* A thread's bits lie in a row: words that it has to itself come once, those it shares with its neighbours twice. */
  u32* to = word + (first * l >> 5);
  u64 held = 0;
  int bits = first * l & 31;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    if (first + i >= n) break;
    held |= (u64)(mine[i] & (((u32)1 << l) - 1)) << bits;
    bits += l;
    if (bits >= 32) {
      atomicOr(to++, (u32)held);
      held >>= 32;
      bits -= 32;
    }
  }
  if (held) atomicOr(to, (u32)held);
  u32 ones = 0, place = at >> 5;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    if (first + i >= n) break;
    at += mine[i] >> l;
    if (at >> 5 != place) {
      if (ones) atomicOr(word + place, ones);
      ones = 0;
      place = at >> 5;
    }
    ones |= (u32)1 << (at & 31);
    ++at;
  }
  if (ones) atomicOr(word + place, ones);
  __syncthreads();
  u8* code = out + used;
  for (int i = (int)threadIdx.x; i < bytes / 4; i += RICE_THREADS) {
    if (aligned(code, 4)) ((u32*)code)[i] = word[i];
    else store_u32(code + 4 * i, word[i]);
  }
  const int tail = (bytes & ~3) + (int)threadIdx.x;
  if (tail < bytes) code[tail] = (u8)(word[tail / 4] >> (8 * (tail & 3)));
  if (threadIdx.x == 0) {
    store_u32(out + 4 * (i64)blockIdx.x, entry[blockIdx.x]);
    if (blockIdx.x == gridDim.x - 1) status[1] = 8 * (u64)used + (u64)length;
  }
}

/* How many bytes each chunk of the table has; a thread has a chunk. */
extern "C" __global__ void __launch_bounds__(256)
    rice_table(const u8* data, i64 k, u64* bytes, i64 chunks, u64* status) {
  const i64 c = grid_thread();
  if (c >= chunks) return;
  const u32 entry = load_u32(data + 4 * c);
  const i64 left = k - c * RICE_CHUNK;
  const int fits = rice_entry_fits(entry, (u64)(left < RICE_CHUNK ? left : RICE_CHUNK));
  bytes[c] = fits ? (rice_length(entry) + 7) / 8 : 0;
  if (!fits) atomicMax(status, ~((u64)c << 3 | RICE_LENGTH));
}

/* The indices of each chunk as if it were the first, modulo 2^32, and by how much the chunks after it start later. */
extern "C" __global__ void __launch_bounds__(256)
    rice_read(const u8* data, i64 size, i64 k, const u64* before, u32* out, u64* advance, u64* status) {
  __shared__ u64 word[RICE_WORDS], room[WARP + 1];
  __shared__ u32 value[CHUNK_ROOM];
  const int n = chunk_size(k);
  const i64 start = (i64)blockIdx.x * RICE_CHUNK, used = 4 * (i64)gridDim.x + (i64)before[blockIdx.x];
  const u32 entry = load_u32(data + 4 * (i64)blockIdx.x);
  const int l = rice_parameter(entry), length = (int)rice_length(entry), bytes = (length + 7) / 8;
  if (threadIdx.x == 0) {
    advance[blockIdx.x] = 0;
    if (blockIdx.x == gridDim.x - 1) advance[gridDim.x] = 0;
  }
  if (!rice_entry_fits(entry, (u64)n)) return; /* rice_table has reported it */
  if (bytes > size - used) {
    if (threadIdx.x == 0) report(status, RICE_TRUNCATED);
    return;
  }
  u32* half = (u32*)word;
  const u8* code = data + used;
  for (int i = (int)threadIdx.x; i < 2 * RICE_WORDS; i += RICE_THREADS) {
    u32 w = 0;
    if (4 * i + 4 <= bytes) {
      w = aligned(code, 4) ? ((const u32*)code)[i] : load_u32(code + 4 * i);
    } else {
      for (int b = 4 * i; b < bytes; ++b) w |= (u32)code[b] << (8 * (b & 3));
    }
    half[i] = w;
  }
  __syncthreads();
  /* The ones of the unary part: thread after thread has some words, and the rank of its first one is a prefix sum. */
  const int unary = n * l, words = (bytes + 3) / 4, part = (words - unary / 32 + RICE_THREADS - 1) / RICE_THREADS;
  const int from = unary / 32 + part * (int)threadIdx.x, to = from + part < words ? from + part : words;
  const u32 mask = ~0u << (unary & 31);
  u64 ones = 0, total;
  for (int w = from; w < to; ++w) ones += (u64)__popc(w == unary / 32 ? half[w] & mask : half[w]);
  int rank = (int)block_scan(ones, room, &total);
  if (total == (u64)n)
    for (int w = from; w < to; ++w)
      for (u32 left = w == unary / 32 ? half[w] & mask : half[w]; left; left &= left - 1, ++rank)
        value[spread(rank)] = (u32)(32 * w + __ffs((int)left) - 1 - unary - rank);
  __syncthreads();
  if (total != (u64)n || (int)value[spread(n - 1)] + unary + n != length) {
    if (threadIdx.x == 0) report(status, RICE_UNARY);
    return;
  }
  const int first = EACH * (int)threadIdx.x;
  u64 lows = 0;
#pragma unroll
  for (int i = 0; i < EACH; ++i)
    if (first + i < n) lows += rice_field(word, (u32)(first + i), l);
  const u64 quotients = value[spread(n - 1)];
  u32 sum = (u32)block_scan(lows, room, &total);
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    if (first + i >= n) break;
    sum += rice_field(word, (u32)(first + i), l);
    value[spread(first) + i] = (value[spread(first) + i] << l) + sum + (u32)(first + i);
  }
  __syncthreads();
  for (int j = (int)threadIdx.x; j < n; j += RICE_THREADS) out[start + j] = value[spread(j)];
  if (threadIdx.x == 0) {
    advance[blockIdx.x] = (quotients << l) + total + (u64)n;
    if (blockIdx.x == gridDim.x - 1) status[1] = 8 * (u64)used + (u64)length;
  }
}

/* The index that a chunk starts from onto its indices: one more number in `first` than chunks. */
extern "C" __global__ void __launch_bounds__(256) rice_shift(u32* out, i64 k, u64 d, const u64* first, u64* status) {
  const int n = chunk_size(k);
  u32* o = out + (i64)blockIdx.x * RICE_CHUNK;
  const u32 from = (u32)first[blockIdx.x];
#pragma unroll 4
  for (int j = (int)threadIdx.x; j < n; j += RICE_THREADS) o[j] += from;
  if (threadIdx.x == 0 && first[blockIdx.x + 1] > d) report(status, RICE_INDEX);
}
