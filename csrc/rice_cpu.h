/* The position of the lowest one of a nonzero word: an instruction that C has no name for. */
#ifndef COMPRESS_RICE_CPU_H
#define COMPRESS_RICE_CPU_H
#include "portable.h"

#if defined(__GNUC__)
HD int lowest_one(u64 w) { return __builtin_ctzll(w); }
#else
#include <intrin.h>
HD int lowest_one(u64 w) {
  unsigned long at;
  _BitScanForward64(&at, w);
  return (int)at;
}
#endif

#endif
