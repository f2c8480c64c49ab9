"""Rotated and DCT: any compressor behind an orthogonal transform, random or fixed."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import kernels
from .chunk import ChunkTopK
from .compressor import Carrier, Compressor, Contractive, Unbiased, add_or_store, check_finite, name_of, public_class
from .key import Key
from .quantize import ScaledSign, StandardDithering

_INNER = 1


@dataclass(frozen=True)
class _Transformed(Carrier, Compressor):
    """C(x) = U' C_inner(U x) for an orthogonal U: unbiased or contractive as `inner` is, with its constant."""

    inner: Compressor
    _block: ClassVar[int]  # coordinates that U mixes

    def __new__(cls, inner=None):
        if kinds := cls.__subclasses__():
            if not isinstance(inner, Compressor):
                raise TypeError(f"inner must be a Compressor, got {inner!r}")
            cls = next(kind for kind in kinds if issubclass(kind, Unbiased) == isinstance(inner, Unbiased))
        elif not isinstance(inner, Unbiased if issubclass(cls, Unbiased) else Contractive):
            raise TypeError(f"make a {cls.__name__}({inner!r}): it is of another type than this one")
        return object.__new__(cls)

    def __reduce__(self):
        return public_class(self), (self.inner,)

    def __repr__(self):
        return f"{name_of(self)}({self.inner!r})"

    @abstractmethod
    def _transform(self, x: np.ndarray, out: np.ndarray, key: Key, inverse: bool) -> None:
        """out = U x, or U' x; out may be x."""

    @abstractmethod
    def _inner_key(self, key: Key) -> Key: ...

    def _encode(self, x, key, out):
        largest = check_finite(x)
        if largest * x.size * self._block > float(np.finfo(x.dtype).max):
            raise ValueError(f"max|x| = {largest:g} is too large to transform in {x.dtype}")
        transformed = np.empty_like(x)
        self._transform(x, transformed, key, False)
        return self.inner._encode(transformed, self._inner_key(key), out)

    def _decode(self, message, key, out, weight, add):
        transformed = np.empty_like(out) if add else out
        self.inner._decode(message, self._inner_key(key), transformed, 1.0, False)
        self._transform(transformed, transformed, key, True)
        if add:
            add_or_store(transformed, out, weight, add)


class _KeepsOmega(Unbiased):
    def omega(self, d: int) -> float:
        return self.inner.omega(d)


class _KeepsAlpha(Contractive):
    def alpha(self, d: int) -> float:
        return self.inner.alpha(d)


class Rotated(_Transformed):
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

    _block: ClassVar[int] = 4096

    def _transform(self, x, out, key, inverse):
        kernels.of(x).rotate(x, out, key.shared.word, inverse)

    def _inner_key(self, key):
        return key.fold(_INNER)

    @classmethod
    def examples(cls):
        return [cls(StandardDithering(7)), cls(ScaledSign())] if cls is Rotated else []


class _RotatedUnbiased(Rotated, _KeepsOmega):
    pass


class _RotatedContractive(Rotated, _KeepsAlpha):
    pass


class DCT(_Transformed):
    """C(x) = U' C_inner(U x), U the orthonormal cosine transform (DCT-II) of every 64 coordinates.

    What is left over, fewer than 64, is cut in blocks of 32, 16, ..., 1, not padded (csrc/dct.h). U is orthogonal, so
    omega and alpha are those of `inner`, for every input. What it buys: where neighbouring coordinates are alike,
    the energy gathers in few coefficients, and Top-K keeps more of it. On gradients without such order it buys nothing.
    With ChunkTopK inside it is the compressor of DeMo (Peng, Quesnelle, Kingma, "Decoupled momentum optimization",
    2024), whose blocks are two-dimensional.

    ValueError where max|x| is so large that a decoded coordinate could leave the range of x's type: d max|x| 64.

    >>> import numpy as np, compress
    >>> x = np.cos(np.pi * (np.arange(64) + 0.5) * 3 / 64)
    >>> C = DCT(compress.TopK(1, wire="float64"))
    >>> bool(np.allclose(C(x, compress.Key(0)), x))
    True
    """

    _block: ClassVar[int] = 64

    def _transform(self, x, out, key, inverse):
        kernels.of(x).dct(x, out, inverse)

    def _inner_key(self, key):
        return key

    @classmethod
    def examples(cls):
        return [cls(ChunkTopK(1024, 32)), cls(StandardDithering(7))] if cls is DCT else []


class _DCTUnbiased(DCT, _KeepsOmega):
    pass


class _DCTContractive(DCT, _KeepsAlpha):
    pass
