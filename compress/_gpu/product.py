"""Products of factors of low rank: csrc/product.cu."""

from .._cpu import kernels as host
from .device import launch, match, need, read, to_device, view

_MOST = 1 << 16  # blocks


def outer_sum(w, b, r, m, n, out):
    for x in (w, b, out):
        view(x, "fd")
    if min(r, m, n) < 0:
        raise ValueError(f"outer_sum: sizes must not be negative, got {r}, {m} and {n}")
    if not w.dtype == b.dtype == out.dtype:
        raise ValueError("outer_sum: w, b and out must be of one type")
    need(w, r * m, "w"), need(b, r * n, "b"), need(out, m * n, "out")
    if m * n:
        launch("product", "outer_sum", min(-(-m * n // 256), _MOST), 256, w, b, r, m, n, out, real=out.dtype)


def orthonormal(w, r, out):
    """On the host: factors are small, and each row needs all before it."""
    view(w, "fd"), view(out, "fd"), match(w, out, "orthonormal")
    found = read(w)
    host.orthonormal(found, r, found)
    out[...] = to_device(found)
