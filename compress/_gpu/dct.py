"""The block cosine transform: csrc/dct.cu."""

from .device import launch, match, view

_BLOCK = 64
_BLOCKS = 64  # of a CUDA block


def dct(x, out, inverse=False):
    view(x, "fd"), view(out, "fd")
    match(x, out, "dct")
    blocks, rest = divmod(x.size, _BLOCK)
    name = "dct_inverse" if inverse else "dct_forward"
    launch("dct", name, -(-blocks // _BLOCKS), 64, x, out, blocks, real=x.dtype)
    if rest:
        launch("dct", "dct_tail", 1, 192, x[-rest:], out[-rest:], rest, inverse, real=x.dtype)
