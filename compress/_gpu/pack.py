"""Codes of a few bits as bytes: csrc/pack.cu."""

from .._cpu import kernels as host
from .device import launch, need, view

BLOCK = 1024  # codes of a warp


def packed_bytes(n, width):
    return -(-host.pack_bits(n, width) // 8)


def check_width(width):
    if not 0 <= width <= 16:
        raise ValueError(f"width must lie in [0, 16], got {width}")


def warps_of(n):
    """Blocks of eight warps, a warp for each 1024 of n."""
    return -(-n // (8 * BLOCK))


def pack(codes, width, out):
    view(codes, "H"), view(out, "B")
    check_width(width)
    need(out, packed_bytes(codes.size, width), "out")
    launch("pack", "pack", warps_of(codes.size), 256, codes, codes.size, width, out)


def unpack(data, width, out):
    view(data, "B"), view(out, "H")
    check_width(width)
    need(data, packed_bytes(out.size, width), "data")
    launch("pack", "unpack", warps_of(out.size), 256, data, out.size, width, out)
