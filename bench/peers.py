"""What a user would install or write instead, each behind the same two calls, on real bytes.

A peer is a small class: `encode(x)` gives a bytes object from which `decode(payload, d)` alone gives the vector back
(scales, models and code books are inside; only d and the peer's own setting are agreed beforehand, as with a
compressor). `sweep()` lists the settings to measure. `needs` names the modules it imports. They run on one thread.

Not here, because no coder exists that sends what is claimed: EDEN, TurboQuant, QSGD in PyTorch. Their laws are ours:
`Eden`, `StandardDithering`.
"""

import importlib.util
import lzma
import struct
import subprocess
import sys
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np

STEPS = (24, 12, 8, 6, 5, 4, 3, 2.5, 2, 1.5, 1, 0.7, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015, 0.0075)  # standard deviations


@dataclass(frozen=True)
class Peer(ABC):
    needs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def sweep(cls): ...

    @abstractmethod
    def encode(self, x: np.ndarray) -> bytes: ...

    @abstractmethod
    def decode(self, payload: bytes, d: int) -> np.ndarray: ...

    @property
    def family(self):
        return type(self).__name__

    @property
    def name(self):
        values = [getattr(self, f.name) for f in fields(self)]
        return f"{self.family}({', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)})"


class Sign(Peer):
    """np.packbits of the signs, and the mean magnitude."""

    @classmethod
    def sweep(cls):
        return [cls()]

    def encode(self, x):
        return struct.pack("<f", np.abs(x).mean()) + np.packbits(x >= 0).tobytes()

    def decode(self, payload, d):
        (scale,) = struct.unpack_from("<f", payload)
        signs = np.unpackbits(np.frombuffer(payload, np.uint8, offset=4), count=d)
        return np.float32(2 * scale) * signs - np.float32(scale)


@dataclass(frozen=True)
class Partition(Peer):
    """Top-K by np.argpartition: 32-bit indices, 32-bit values."""

    share: float

    @classmethod
    def sweep(cls):
        return [cls(s) for s in (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)]

    def encode(self, x):
        k = max(1, round(self.share * x.size))
        kept = np.argpartition(np.abs(x), x.size - k)[x.size - k :].astype(np.uint32)
        return kept.tobytes() + x[kept].astype(np.float32).tobytes()

    def decode(self, payload, d):
        kept, values = np.split(np.frombuffer(payload, np.uint32), 2)
        y = np.zeros(d, np.float32)
        y[kept] = values.view(np.float32)
        return y


@dataclass(frozen=True)
class Rounded(Peer):
    """round(x / step) as 0, -1, 1, -2, ... -> 0, 1, 2, 3, ... in the fewest bytes, all low bytes first, then a general
    compressor. step in standard deviations."""

    step: float

    @classmethod
    def sweep(cls):
        return [cls(float(s)) for s in STEPS]

    def encode(self, x):
        step = np.float32(self.step * x.std(dtype=np.float64))
        codes = np.rint(x / step)
        if not step or np.abs(codes).max() >= 2**30:
            raise ValueError(f"x / {step} leaves 32-bit integers")
        codes = codes.astype(np.int32)
        codes = (codes << 1 ^ codes >> 31).view(np.uint32)
        codes = codes.astype(np.min_scalar_type(codes.max()))
        planes = codes.view(np.uint8).reshape(-1, codes.itemsize).T
        return struct.pack("<fB", step, codes.itemsize) + self.squeeze(planes.tobytes())

    def decode(self, payload, d):
        step, size = struct.unpack_from("<fB", payload)
        planes = np.frombuffer(self.expand(payload[5:], size * d), np.uint8).reshape(size, d)
        codes = np.ascontiguousarray(planes.T).view(f"<u{size}").ravel().astype(np.int32)
        return np.float32(step) * (codes >> 1 ^ -(codes & 1))


class Zlib(Rounded):
    def squeeze(self, codes):
        return zlib.compress(codes)

    def expand(self, payload, size):
        return zlib.decompress(payload)


class Lzma(Rounded):
    """The slowest, and the strongest where rows of a gradient repeat each other: it finds them, unasked."""

    def squeeze(self, codes):
        return lzma.compress(codes, format=lzma.FORMAT_ALONE)

    def expand(self, payload, size):
        return lzma.decompress(payload)


@dataclass(frozen=True)
class Zstandard(Rounded):
    level: int
    needs = ("zstandard",)

    @classmethod
    def sweep(cls):
        return [*(cls(float(s), 1) for s in STEPS), *(cls(float(s), 19) for s in STEPS[::2])]

    def squeeze(self, codes):
        return load("zstandard").ZstdCompressor(level=self.level).compress(codes)

    def expand(self, payload, size):
        return load("zstandard").ZstdDecompressor().decompress(payload, max_output_size=size)


class Blosc2(Rounded):
    """Shuffled bits, then zstd, in cache-sized blocks."""

    needs = ("blosc2",)

    def squeeze(self, codes):
        b = load("blosc2")
        how = {"codec": b.Codec.ZSTD, "clevel": 5, "filters": [b.Filter.BITSHUFFLE], "nthreads": 1}
        return b.compress2(codes, typesize=1, **how)

    def expand(self, payload, size):
        return load("blosc2").decompress2(payload, nthreads=1)


@dataclass(frozen=True)
class Constriction(Peer):
    """round(x / step) and an ANS coder of its histogram, which travels with it (zlib); with the mean of every cell
    where the cells are few. The strongest that a user writes in ten lines."""

    step: float
    needs = ("constriction",)

    @classmethod
    def sweep(cls):
        return [cls(float(s)) for s in STEPS]

    def encode(self, x):
        step = np.float32(self.step * x.std(dtype=np.float64))
        codes = np.rint(x / step)
        low = codes.min()
        if not step or codes.max() - low >= 2**24:
            raise ValueError(f"x / {step} has too many cells for a histogram")
        codes = (codes - low).astype(np.int32)
        counts = np.bincount(codes)
        cells = np.flatnonzero(counts)
        means = b""
        if len(cells) <= 256:
            means = (np.bincount(codes, x)[cells] / counts[cells]).astype(np.float32).tobytes()
        table = np.diff(cells, prepend=0).astype(np.uint32).tobytes() + counts[cells].astype(np.uint32).tobytes()
        model = zlib.compress(table + means)
        head = struct.pack("<fiII", step, int(low), len(cells), len(model))
        return head + model + self.coder(counts[cells], (np.cumsum(counts > 0) - 1).astype(np.int32)[codes])

    def coder(self, counts, symbols):
        coder = load("constriction").stream.stack.AnsCoder()
        if len(counts) > 1:
            coder.encode_reverse(symbols, self.model(counts))
        return coder.get_compressed().tobytes()

    def model(self, counts):
        share = (counts / counts.sum()).astype(np.float32)
        return load("constriction").stream.model.Categorical(share, perfect=False)

    def decode(self, payload, d):
        step, low, n, length = struct.unpack_from("<fiII", payload)
        table = zlib.decompress(payload[16 : 16 + length])
        gaps, counts = np.frombuffer(table, np.uint32, 2 * n).reshape(2, n)
        values = np.float32(step) * (np.cumsum(gaps, dtype=np.int64) + low)
        if len(table) > 8 * n:
            values = np.frombuffer(table, np.float32, offset=8 * n)
        if n == 1:
            return np.full(d, values[0], np.float32)
        coder = load("constriction").stream.stack.AnsCoder(np.frombuffer(payload[16 + length :], np.uint32))
        return values.astype(np.float32)[coder.decode(self.model(counts), d)]


@dataclass(frozen=True)
class SZ3(Peer):
    """Error-bounded: |error| <= step / 2. Without its predictors, which a vector of noise has no use for, and with."""

    step: float
    predictor: str
    needs = ("pysz",)

    @classmethod
    def sweep(cls):
        return [cls(float(s), p) for p in ("NOPRED", "INTERP_LORENZO") for s in STEPS]

    def encode(self, x):
        sz = load("pysz")
        config = sz.szConfig()
        config.errorBoundMode, config.cmprAlgo = sz.szErrorBoundMode.ABS, getattr(sz.szAlgorithm, self.predictor)
        config.absErrorBound, config.openmp = float(self.step * x.std(dtype=np.float64)) / 2, False
        return sz.sz.compress(x, config)[0].tobytes()

    def decode(self, payload, d):
        return load("pysz").sz.decompress(np.frombuffer(payload, np.uint8), np.float32, (d,))[0]


@dataclass(frozen=True)
class Zfp(Peer):
    """Fixed rate, or a tolerance in standard deviations. (Rates below 3 write out of range: zfpy 1.0.1 crashes.)"""

    mode: str
    value: float
    needs = ("zfpy",)

    @classmethod
    def sweep(cls):
        rates = [cls("rate", float(r)) for r in (4, 6, 8)]
        return [*rates, *(cls("tolerance", float(s)) for s in (8, 4, 2, 1, 0.5, 0.25))]

    def encode(self, x):
        value = self.value if self.mode == "rate" else self.value * float(x.std(dtype=np.float64))
        return load("zfpy").compress_numpy(x, **{self.mode: value})

    def decode(self, payload, d):
        return load("zfpy").decompress_numpy(payload)


@dataclass(frozen=True)
class TorchRows(Peer):
    """PyTorch's own packed rows: minimum and scale of every row, 8, 4 or 2 bits a coordinate."""

    bits: int
    row: int
    needs = ("torch",)

    @classmethod
    def sweep(cls):
        return [cls(b, r) for b in (2, 4, 8) for r in (64, 128, 1024)]

    def operator(self, direction):
        kind = "byte" if self.bits == 8 else f"{self.bits}bit"
        return getattr(load("torch").ops.quantized, f"embedding_bag_{kind}_{direction}")

    def encode(self, x):
        rows = np.zeros((-(-x.size // self.row), self.row), np.float32)
        rows.ravel()[: x.size] = x
        return self.operator("prepack")(load("torch").from_numpy(rows)).numpy().tobytes()

    def decode(self, payload, d):
        packed = load("torch").frombuffer(bytearray(payload), dtype=load("torch").uint8)
        return self.operator("unpack")(packed.view(-(-d // self.row), -1)).numpy().ravel()[:d]


class TorchFloat8(Peer):
    """float8 e4m3 after one scale."""

    needs = ("torch",)

    @classmethod
    def sweep(cls):
        return [cls()]

    def encode(self, x):
        torch = load("torch")
        scale = np.float32(max(np.abs(x).max() / 448, np.finfo(np.float32).tiny))
        codes = (torch.from_numpy(x) / float(scale)).to(torch.float8_e4m3fn)
        return struct.pack("<f", scale) + codes.view(torch.uint8).numpy().tobytes()

    def decode(self, payload, d):
        torch = load("torch")
        (scale,) = struct.unpack_from("<f", payload)
        codes = torch.frombuffer(bytearray(payload[4:]), dtype=torch.uint8).view(torch.float8_e4m3fn)
        return (codes.to(torch.float32) * scale).numpy()


@dataclass(frozen=True)
class BitsAndBytes(Peer):
    """Blockwise code books: int8 (its dynamic 8-bit map), nf4, fp4, with a float32 maximum a block."""

    kind: str
    block: int
    needs = ("torch", "bitsandbytes")

    @classmethod
    def sweep(cls):
        return [*(cls("int8", b) for b in (64, 256, 4096)), *(cls(k, b) for k in ("nf4", "fp4") for b in (64, 1024))]

    def encode(self, x):
        f, x = load("bitsandbytes.functional"), load("torch").from_numpy(x)
        if self.kind == "int8":
            codes, state = f.quantize_blockwise(x, blocksize=self.block)
        else:
            codes, state = f.quantize_4bit(x, blocksize=self.block, quant_type=self.kind)
        return state.absmax.numpy().tobytes() + codes.numpy().tobytes()

    def decode(self, payload, d):
        torch, f = load("torch"), load("bitsandbytes.functional")
        blocks = -(-d // self.block)
        scales = torch.frombuffer(bytearray(payload[: 4 * blocks]), dtype=torch.float32)
        codes = torch.frombuffer(bytearray(payload[4 * blocks :]), dtype=torch.uint8)
        if self.kind == "int8":
            return f.dequantize_blockwise(codes, absmax=scales, blocksize=self.block).numpy()
        state = f.QuantState(
            scales,
            shape=torch.Size([d]),
            code=f.get_4bit_type(self.kind, device="cpu"),
            blocksize=self.block,
            quant_type=self.kind,
            dtype=torch.float32,
        )
        return f.dequantize_4bit(codes.view(-1, 1), state).numpy().ravel()


@dataclass(frozen=True)
class PiQuant(Peer):
    """pi-quant: one scale and zero point a vector, 2, 4 or 8 bits, to nearest."""

    bits: int
    needs = ("piquant",)

    @classmethod
    def sweep(cls):
        return [cls(b) for b in (2, 4, 8)]

    def context(self):
        piquant = load("piquant")
        if not hasattr(PiQuant, "_context"):
            PiQuant._context = piquant.Context(1)
        return PiQuant._context, piquant, getattr(piquant.DataType, f"UINT{self.bits}")

    def encode(self, x):
        context, piquant, kind = self.context()
        scale, zero = context.compute_quant_params_ptr_float32(x.ctypes.data, kind, x.size)
        codes = np.empty(-(-x.size * self.bits // 8), np.uint8)
        where = x.ctypes.data, piquant.DataType.F32, codes.ctypes.data, kind
        context.quantize_ptr(*where, x.size, scale, zero, piquant.RoundMode.NEAREST)
        return struct.pack("<fq", scale, zero) + codes.tobytes()

    def decode(self, payload, d):
        context, piquant, kind = self.context()
        scale, zero = struct.unpack_from("<fq", payload)
        codes, y = np.frombuffer(payload, np.uint8, offset=12), np.empty(d, np.float32)
        where = codes.ctypes.data, kind, y.ctypes.data, piquant.DataType.F32
        context.dequantize_ptr(*where, d, scale, zero, piquant.ReduceOp.SET)
        return y


FAMILIES = (
    *(Sign, Partition, Zlib, Lzma),  # NumPy and the standard library alone
    *(Zstandard, Blosc2, Constriction, SZ3, Zfp, TorchRows, TorchFloat8, BitsAndBytes, PiQuant),
)


def load(module):
    return importlib.import_module(module)


def available():
    """(families that work here, {family: why it does not}). Each that needs a module round-trips a vector in a
    process of its own first: a wheel that crashes costs its place in the table, not the run."""
    works, missing = [], {}
    for family in FAMILIES:
        if reason := family.needs and broken(family):
            missing[family.__name__] = reason
        else:
            works.append(family)
    return works, missing


def absent_modules(family):
    return [module for module in family.needs if importlib.util.find_spec(module) is None]


def broken(family):
    """Why a family does not work here, in one line; "" if it does."""
    if absent := absent_modules(family):
        return f"{absent[0]} is not installed: pip install -e '.[peers]'"
    script = f"from bench import peers; peers.round_trip(peers.{family.__name__})"
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "no answer within 120 s"
    if done.returncode < 0:
        return f"crashes with signal {-done.returncode}"
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def round_trip(family):
    """Every setting once, on two small vectors."""
    for d in (10_000, 10_001):
        x = np.random.default_rng(0).standard_normal(d).astype(np.float32)
        for peer in family.sweep():
            y = peer.decode(peer.encode(x), d)
            if y.shape != x.shape or not np.isfinite(y).all():
                raise ValueError(f"{peer.name} does not give its vector back")


def one_thread():
    """Peers on one thread, as everything else here; the torch pool too."""
    from threadpoolctl import threadpool_limits

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return threadpool_limits(1)
