"""Rotated: any compressor behind a randomised Hadamard rotation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import kernels
from .compressor import Carrier, Compressor, Contractive, Unbiased, add_or_store, check_finite
from .quantize import ScaledSign, StandardDithering

_INNER = 1


@dataclass(frozen=True)
class Rotated(Carrier, Compressor):
    """C(x) = U' C_inner(U x), U random signs and then a Walsh-Hadamard transform, block by block.

    Blocks are 4096 coordinates, or the largest power of two that fits; where they do not fill x, one more overlaps
    the last and ends where x ends, so nothing is padded and no coordinate is left alone (csrc/hadamard.h). Signs come
    from key.shared: all workers rotate alike and a receiver can average before it rotates back.

    U is orthogonal, so omega and alpha are those of `inner`, for every input. What the rotation buys is the input:
    coordinates of U x are nearly Gaussian whatever x is, which turns the worst case of a quantiser into its
    typical one. Suresh, Yu, Kumar, McMahan, "Distributed mean estimation with limited communication", ICML 2017.

    ValueError where max|x| is so large that a decoded coordinate could leave the range of x's type: d max|x| 4096.

    >>> import numpy as np, compress
    >>> x = np.zeros(4096, np.float32); x[5] = 1
    >>> C = Rotated(compress.ScaledSign())
    >>> bool(np.allclose(C(x, compress.Key(3)), x, atol=1e-6))
    True
    """

    inner: Compressor

    def __new__(cls, inner=None):
        if cls is Rotated:
            if not isinstance(inner, Compressor):
                raise TypeError(f"inner must be a Compressor, got {inner!r}")
            cls = _RotatedUnbiased if isinstance(inner, Unbiased) else _RotatedContractive
        elif not isinstance(inner, Unbiased if issubclass(cls, Unbiased) else Contractive):
            raise TypeError(f"make a Rotated({inner!r}): it is of another type than this one")
        return object.__new__(cls)

    def __reduce__(self):
        return Rotated, (self.inner,)

    def __repr__(self):
        return f"Rotated({self.inner!r})"

    def _encode(self, x, key, out):
        largest = check_finite(x)
        if largest * x.size * 4096 > float(np.finfo(x.dtype).max):
            raise ValueError(f"max|x| = {largest:g} is too large to rotate in {x.dtype}")
        rotated = np.empty_like(x)
        kernels.of(x).rotate(x, rotated, key.shared.word)
        return self.inner._encode(rotated, key.fold(_INNER), out)

    def _decode(self, message, key, out, weight, add):
        rotated = np.empty_like(out) if add else out
        self.inner._decode(message, key.fold(_INNER), rotated, 1.0, False)
        kernels.of(out).rotate(rotated, rotated, key.shared.word, True)
        if add:
            add_or_store(rotated, out, weight, add)

    @classmethod
    def examples(cls):
        return [cls(StandardDithering(7)), cls(ScaledSign())] if cls is Rotated else []


class _RotatedUnbiased(Rotated, Unbiased):
    def omega(self, d: int) -> float:
        return self.inner.omega(d)


class _RotatedContractive(Rotated, Contractive):
    def alpha(self, d: int) -> float:
        return self.inner.alpha(d)
