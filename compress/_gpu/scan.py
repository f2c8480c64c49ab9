"""Prefix sums of integers: csrc/scan.cu."""

from .device import empty, launch, zeros

_TILE = 8192  # elements of a block


def exclusive_scan(values):
    """values (u32 or u64) become, in place, the sums of those before them; returns a vector with the sum of all.

    One launch up to 8192 elements, three up to 2^26. Sums wrap around.
    """
    n, suffix = values.size, {4: "u32", 8: "u64"}[values.itemsize]
    if n == 0:
        return zeros(1, values.dtype)
    tiles = -(-n // _TILE)
    totals = empty(tiles, values.dtype)
    launch("scan", f"scan_{suffix}", tiles, 1024, values, n, totals)
    if tiles == 1:
        return totals
    total = exclusive_scan(totals)
    launch("scan", f"add_{suffix}", tiles, 1024, values, n, totals)
    return total
