/* A thread takes a record, for the code is one number from its first bit to its last: thousands of records run at once. */
#include "block.cuh"
#include "subset.h"

/* Frequency sums of nodes of 2^level positions, 1 < m <= known of them in the subset: row m of a level is at
   subset_row(m), and the level's first at table[level]. */
DEVICE u32 subset_row(u32 m) { return m * (m + 3) / 2; }

extern "C" __global__ void __launch_bounds__(128) subset_table(u32 known, f64* weight, u32* table) {
  const u32 i = (u32)grid_thread(), m = i % (known + 1), n = (u32)1 << i / (known + 1);
  if (n > SUBSET_MAX) return;
  u32 start = SUBSET_LEVELS;
  for (u32 size = 1; size < n; size *= 2) start += subset_row((size < known ? size : known) + 1);
  if (m == 0) table[subset_level(n)] = start;
  if (m > 1 && m < n) subset_sums(n / 2, n / 2, m, weight + start + subset_row(m), table + start + subset_row(m));
}

/* Where a thread gets frequency sums: from the table, or by its own hands in its own memory. */
typedef struct {
  const u32* table;
  u32 known;
  f64* weight;
  u32* sum;
} subset_source;

DEVICE const u32* node_sums(subset_source from, u32 n, u32 a, u32 m) {
  if ((n & (n - 1)) == 0 && m <= from.known) return from.table + from.table[subset_level(n)] + subset_row(m);
  subset_sums(a, n - a, m, from.weight, from.sum);
  return from.sum;
}

/* Walks the tree of a k-subset of n positions in the order of its code. tell(at, size, done, m) is for nodes with
   something to tell, `at` their first position and `done` the indices before it; it returns how many of the m lie in the
   left part. whole(at, done, m) is for nodes without a gap. The lanes of a warp tell something in every turn, whatever
   their trees. left_over[WARP * level]: how many indices lie before the end of the right part that waits at a position
   with so many zeros in its number, of which there is one at most. */
template <typename Tell, typename Whole>
DEVICE void subset_walk(u32 n, u32 k, u32* left_over, Tell tell, Whole whole) {
  u32 at = 0, size = n, done = 0, m = k;
  for (;;) {
    while (m == 0 || m == size) {
      if (m) whole(at, done, m);
      at += size;
      done += m;
      if (at == n) return;
      const u32 unit = at & (0 - at);
      size = unit < n - at ? unit : n - at;
      m = left_over[WARP * subset_level(unit)] - done;
    }
    const u32 left = tell(at, size, done, m);
    if (m > 1) {
      const u32 cut = subset_cut(size);
      left_over[WARP * subset_level(cut)] = done + m;
      size = cut;
      m = left;
    } else {
      at += size;
      ++done;
      size = m = 0; /* nothing is left of the node */
    }
  }
}

/* bad: count - i for the first range i whose indices do not ascend within it. */
extern "C" __global__ void __launch_bounds__(32)
    subset_encode(const u32* index, u32 start, u32 n, u32 k, i64 count, u32 bytes, const u32* table, u32 known,
                  f64* weight, u32* sum, u8* out, u64* bad) {
  __shared__ u32 left_over[SUBSET_LEVELS * WARP];
  const i64 room = grid_thread() * ((i64)k + 2);
  const subset_source from = {table, known, weight + room, sum + room};
  for (i64 i = grid_thread(); i < count; i += grid_threads()) {
    const u32* mine = index + i * k;
    const u32 first = start + (u32)(i * n);
    int wrong = 0;
    u32 before = mine[0];
    if (before - first >= n) wrong = 1;
    for (u32 j = 1; j < k; ++j) {
      const u32 next = mine[j];
      if (next - first >= n || next <= before) wrong = 1;
      before = next;
    }
    if (wrong) atomicMax(bad, (u64)(count - i));
    if (wrong || bytes == 0) continue;
    subset_writer c = {0, ~(u64)0, out + i * bytes};
    subset_walk(
        n, k, left_over + lane_of(),
        [&](u32 at, u32 size, u32 done, u32 m) {
          subset_part part;
          u32 low = 0;
          if (m == 1) {
            part.size = subset_share(c.range, size);
            part.start = (mine[done] - first - at) * part.size;
          } else {
            const u32 cut = subset_cut(size);
            for (u32 high = m; low < high;) { /* how many lie before the cut */
              const u32 middle = (low + high) / 2;
              if (mine[done + middle] - first < at + cut) low = middle + 1;
              else high = middle;
            }
            part = subset_symbol(c.range, node_sums(from, size, cut, m), low - subset_least(size - cut, m));
          }
          subset_put(&c, part);
          return low;
        },
        [](u32, u32, u32) {});
    subset_close(&c, out + (i + 1) * bytes);
  }
}

extern "C" __global__ void __launch_bounds__(32)
    subset_decode(const u8* data, u32 start, u32 n, u32 k, i64 count, u32 bytes, const u32* table, u32 known,
                  f64* weight, u32* sum, u32* index) {
  __shared__ u32 left_over[SUBSET_LEVELS * WARP];
  const i64 room = grid_thread() * ((i64)k + 2);
  const subset_source from = {table, known, weight + room, sum + room};
  for (i64 i = grid_thread(); i < count; i += grid_threads()) {
    u32* mine = index + i * k;
    const u32 first = start + (u32)(i * n);
    subset_reader c = subset_open(data + i * bytes, bytes);
    subset_walk(
        n, k, left_over + lane_of(),
        [&](u32 at, u32 size, u32 done, u32 m) {
          subset_part part;
          u32 left = 0;
          if (m == 1) {
            mine[done] = first + at + subset_find_position(&c, size, &part);
          } else {
            const u32 cut = subset_cut(size), least = subset_least(size - cut, m);
            left = least + subset_find(&c, node_sums(from, size, cut, m), subset_most(cut, m) - least + 1, &part);
          }
          subset_take(&c, part);
          return left;
        },
        [&](u32 at, u32 done, u32 m) {
          for (u32 j = 0; j < m; ++j) mine[done + j] = first + at + j;
        });
  }
}
