"""The kernels against memcpy: a pytest-benchmark file, run by `python -m bench speed` (pytest's options pass through,
`-k hadamard` and --benchmark-json=FILE for instance).

How it is measured. Every round copies x first and then runs the kernel, so both see the same machine in the same
moment; the ratio is the median of the rounds' ratios, GB/s comes from the median time. Buffers are touched beforehand
and given as out=; one thread; GB/s counts the float32 side once. `first` is that of the call that
came first, before any warm-up. A bar is what a kernel was built to reach on x86-64 with AVX-512; a miss is printed and
not raised, since another machine has other figures, and so has a busy one.
"""

import os
import tracemalloc
from fnmatch import fnmatchcase
from math import comb, lgamma, log, log2
from statistics import median
from time import perf_counter

import numpy as np
import pytest

import compress

from . import console
from .frontier import name

SIZES = {"16": 16, "2^16": 2**16, "2^20": 2**20, "2^24": 2**24}
LARGE = ("2^16", "2^20", "2^24")
KEY = compress.Key(0).at(round=1).worker(0)

# (kernel or pattern, sizes, metric, relation, bar)
BARS = [
    ("unpack + dequantise, 4 bit", "2^20 2^24", "x memcpy", "<=", 0.9),
    *((f"quantise + pack, {bits} bit", "2^20 2^24", "x memcpy", "<=", 1.2) for bits in (1, 2, 4, 8)),
    ("dithered quantise + pack, 4 bit", "2^20", "GB/s", ">=", 7.5),
    ("dithered quantise + pack, 4 bit", "2^24", "x memcpy", "<=", 2.2),
    ("StandardDithering(7).encode", "2^20", "GB/s", ">=", 6),
    ("Walsh-Hadamard", "2^20", "x memcpy", "<=", 7.5),
    ("Walsh-Hadamard", "2^24", "x memcpy", "<=", 3.2),
    ("Walsh-Hadamard", "2^20 2^24", "x scipy.fft.dct", ">=", 14),
    ("Top-K, 1%", "2^24", "x memcpy", "<=", 1.6),
    ("Top-K, 1%", "2^24", "x np.argpartition", ">=", 30),  # NumPy 2 selects with AVX-512, ten times faster than before
    ("RandK(0.01).encode", "2^24", "ms", "<=", 3),
    ("Rice code of indices, 1%", "2^20 2^24", "% over entropy", "<=", 0.5),
    ("Chunk Top-K, 64 of 4096", "2^20", "GB/s", ">=", 6),
    ("subset records, 64 of 4096", "2^20 2^24", "% over entropy", "<=", 0.5),
    ("ChunkTopK(4096).encode", "2^20 2^24", "GB/s", ">=", 1),
    ("ChunkTopK(4096).encode", "2^20 2^24", "bits a value", "<=", 9.6),
    ("ChunkTopK(4096).decode", "2^20", "GB/s", ">=", 5),
    ("cosine transform, blocks of 64", "2^20", "GB/s", ">=", 2.5),
    ("Kashin(3).encode", "2^20", "GB/s", ">=", 0.4),
    ("Kashin(3, redundancy=2).encode", "2^20", "GB/s", ">=", 0.25),
    *(
        (f"Eden({rate}).{call}", "2^20", "GB/s", ">=", 2.5)
        for rate in (1, 2, 2.5, 4, 8)
        for call in ("encode", "decode")
    ),
    ("Correlated(StandardDithering(7), workers=16).encode", "2^20", "GB/s", ">=", 2),
    *((f"UniformQuantizer(2).{call}", "2^20", "GB/s", ">=", 1.5) for call in ("encode", "decode")),
    *((f"Trellis(2).{call}", "2^20", "GB/s", ">=", 0.8) for call in ("encode", "decode")),
    ("Trellis(2, context=True).encode", "2^20", "GB/s", ">=", 0.2),
    ("Trellis(2, context=True).decode", "2^20", "GB/s", ">=", 0.3),
    ("trellis search, 8 states, 2 bit", "2^20", "GB/s", ">=", 1.5),  # AVX2 half
    *((f"entropy {call}, 2 bit", "2^20", "GB/s of symbols", ">=", 1.2) for call in ("encode", "decode")),
    *((f"entropy {call}, 4 bit", "2^20", "GB/s of symbols", ">=", 0.5) for call in ("encode", "decode")),
    *((f"{name}.encode", "16", "us", "<=", 10) for name in ("StandardDithering(7)", "RandK(0.01)", "ScaledSign()")),
    ("*.encode", "2^20 2^24", "buffers of d", "<=", 1.01),
]


def clock(function, repeats):
    """Median seconds of a call."""
    return median(seconds_of(function) for _ in range(repeats))


def seconds_of(function):
    start = perf_counter()
    function()
    return perf_counter() - start


@pytest.fixture
def race(benchmark):
    """race(kernel, size, function, x) times function() against copying x, judges the bars, and files it all under
    extra_info. `also` holds metrics that take the kernel's median seconds; `bits` are per coordinate; `first` is the
    time of the very first call, where that is told apart from the warm ones."""

    def run(kernel, size, function, x, bits=None, first=None, **also):
        target, copies = np.ones_like(x), []

        def copy():
            start = perf_counter()
            np.copyto(target, x)
            copies.append(perf_counter() - start)

        benchmark.group = kernel
        rounds = 400 if x.size < 2**17 else 60 if x.size < 2**22 else 30
        benchmark.pedantic(function, setup=copy, rounds=rounds, warmup_rounds=3)
        seconds = benchmark.stats.stats.median
        ratio = median(k / c for k, c in zip(benchmark.stats.stats.data, copies[-rounds:], strict=True))
        metrics = {"GB/s": x.nbytes / seconds / 1e9, "x memcpy": ratio}
        metrics |= {"ms": 1e3 * seconds, "us": 1e6 * seconds} | {name: f(seconds) for name, f in also.items()}
        bars = []
        for pattern, sizes, metric, relation, bar in BARS:
            if fnmatchcase(kernel, pattern) and size in sizes.split():
                value = metrics[metric]
                ok = value <= bar if relation == "<=" else value >= bar
                bars.append({"bar": f"{relation} {bar} {metric}", "measured": value, "met": ok})
        benchmark.extra_info.update(
            kernel=kernel, size=size, bits=bits, gbps=metrics["GB/s"], ratio_to_memcpy=metrics["x memcpy"], bars=bars
        )
        if first:
            benchmark.extra_info["first_gbps"] = x.nbytes / first / 1e9

    return run


def vector(size, seed=0):
    return np.random.default_rng(seed).standard_normal(SIZES[size], dtype=np.float32)


@pytest.mark.parametrize("size", LARGE)
def test_hadamard(race, size):
    from scipy.fft import dct

    x = vector(size)
    work, dct_seconds = x.copy(), clock(lambda: dct(x, norm="ortho"), 5)
    fwht = compress.kernels.of(x).fwht
    race("Walsh-Hadamard", size, lambda: fwht(work, work.size), x, **{"x scipy.fft.dct": lambda s: dct_seconds / s})


@pytest.mark.parametrize("size", LARGE)
def test_topk(race, size):
    x = vector(size)
    k, indices = x.size // 100, np.zeros(x.size // 100, np.uint32)
    numpy_seconds = clock(lambda: np.argpartition(np.abs(x), x.size - k), 3)
    topk = compress.kernels.of(x).topk
    race("Top-K, 1%", size, lambda: topk(x, indices), x, **{"x np.argpartition": lambda s: numpy_seconds / s})


def grid(x, bits):
    """2^bits points on [-max |x|, max |x|], as quantize_pack takes them, and room for the codes:
    (arguments that describe the grid, codes, bits a coordinate)."""
    kernels, levels = compress.kernels.of(x), 2**bits
    scale = np.abs(x).max(keepdims=True).view(np.uint8)
    codes = np.zeros(-(-kernels.pack_bits(x.size, kernels.pack_width(levels)) // 8), np.uint8)
    return (scale, 0, 4, x.size, levels), codes, 8 * codes.size / x.size


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("rounding", ["", "dithered "])
def test_quantize_pack(race, rounding, bits, size):
    x = vector(size)
    points, codes, sent = grid(x, bits)
    pack, nearest = compress.kernels.of(x).quantize_pack, not rounding
    race(f"{rounding}quantise + pack, {bits} bit", size, lambda: pack(x, *points, KEY.word, codes, nearest), x, sent)


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_unpack_scale(race, bits, size):
    x = vector(size)
    points, codes, sent = grid(x, bits)
    kernels, out = compress.kernels.of(x), np.zeros_like(x)
    kernels.quantize_pack(x, *points, KEY.word, codes, True)
    race(f"unpack + dequantise, {bits} bit", size, lambda: kernels.unpack_scale(codes, *points, 1.0, out), x, sent)


@pytest.mark.parametrize("size", LARGE)
def test_rice(race, size):
    """The bits are those of a random set: the bound is what any code spends on it on average."""
    x = vector(size)
    d, k, kernels = x.size, x.size // 100, compress.kernels.of(x)
    indices = np.sort(np.random.default_rng(0).choice(d, k, replace=False)).astype(np.uint32)
    out = np.zeros(-(-kernels.rice_bound(d, k) // 8), np.uint8)
    bits = kernels.rice_encode(indices, d, out)
    least = (lgamma(d + 1) - lgamma(k + 1) - lgamma(d - k + 1)) / log(2)
    excess = {"% over entropy": lambda seconds: 100 * (bits / least - 1)}
    race("Rice code of indices, 1%", size, lambda: kernels.rice_encode(indices, d, out), x, bits / d, **excess)


@pytest.mark.parametrize("size", LARGE)
def test_chunk_topk(race, size):
    x = vector(size)
    indices, topk = np.zeros(x.size // 64, np.uint32), compress.kernels.of(x).chunk_topk
    race("Chunk Top-K, 64 of 4096", size, lambda: topk(x, 4096, 64, indices), x)


@pytest.mark.parametrize("size", LARGE)
def test_subsets(race, size):
    x = vector(size)
    kernels, indices = compress.kernels.of(x), np.zeros(x.size // 64, np.uint32)
    kernels.chunk_topk(x, 4096, 64, indices)
    out = np.zeros(x.size // 4096 * kernels.subset_bytes(4096, 64), np.uint8)
    excess = {"% over entropy": lambda seconds: 100 * (8 * kernels.subset_bytes(4096, 64) / log2(comb(4096, 64)) - 1)}
    bits = 8 * out.size / x.size
    race(
        "subset records, 64 of 4096", size, lambda: kernels.subset_encode(indices, 0, 4096, 64, out), x, bits, **excess
    )


@pytest.mark.parametrize("size", LARGE)
def test_dct(race, size):
    x = vector(size)
    work, dct = x.copy(), compress.kernels.of(x).dct
    race("cosine transform, blocks of 64", size, lambda: dct(work, work), x)


def levels(x, states, bits):
    """(a call that quantises x, what level_encode takes): at the step at which the symbols' entropy is `bits`."""
    kernels = compress.kernels.of(x)
    code = (states, False, 0, 0, 0)  # without dither or contexts
    models = kernels.level_model_count(code)
    costs = np.array([1, 0, 0, 0, 0, 1], np.float32)  # of distance alone
    symbols, counts = np.zeros(x.size, np.uint8), np.zeros(256 * models, np.uint32)
    which = np.zeros(x.size, np.uint8) if models > 1 else None

    def quantise(inverse):
        how = code, inverse, 0, costs, 0.6, 0.4, 1.0
        return kernels.level_encode_symbols(x, *how, symbols, which, None, counts, None)

    low, high = 0.0, 64.0
    for _ in range(20):
        middle = (low + high) / 2
        _, *escapes = quantise(middle)
        low, high = (low, middle) if kernels.level_bits(code, counts, 1.0)[0] > bits * x.size else (middle, high)
    return lambda: quantise(middle), (code, code, symbols, which, None, counts, *escapes)


@pytest.mark.parametrize("size", ["2^16", "2^20"])
@pytest.mark.parametrize("states", [4, 8, 32, 256])
def test_trellis_search(race, states, size):
    x = vector(size)
    search, _ = levels(x, states, 2)
    race(f"trellis search, {states} states, 2 bit", size, search, x)


@pytest.mark.parametrize("size", ["2^16", "2^20"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("call", ["encode", "decode"])
def test_entropy(race, call, bits, size):
    """The coder alone, one byte a symbol; decoding ends in float32, as there is no way to stop before."""
    x = vector(size)
    kernels, out = compress.kernels.of(x), np.zeros_like(x)
    _, (code, *coded) = levels(x, 1, bits)

    def encode():
        return kernels.level_encode(code, *coded)

    def decode():
        kernels.level_decode(payload, code, x.size, 0, 1.0, (0, 0, 0), out, 1.0, False)

    payload = np.frombuffer(encode(), np.uint8)
    rate = {"GB/s of symbols": lambda seconds: x.size / seconds / 1e9}
    work = encode if call == "encode" else decode
    race(f"entropy {call}, {bits} bit", size, work, x, 8 * payload.size / x.size, **rate)


WHOLE_CALLS = [
    compress.StandardDithering(7),
    compress.RandK(0.01),
    compress.TopK(0.01),
    compress.ChunkTopK(),
    compress.ScaledSign(),
    compress.TernGrad(),
    compress.NaturalCompression(),
    compress.Rotated(compress.TernGrad()),
    compress.Kashin(3),
    compress.Kashin(3, 2.0),
    *(compress.Eden(rate) for rate in (1, 2, 2.5, 4, 8)),
    compress.Correlated(compress.StandardDithering(7), 16),
]
CODED = [
    *(compress.UniformQuantizer(bits=2, unbiased=unbiased) for unbiased in (False, True)),
    *(compress.Trellis(bits=2, states=states) for states in (8, 32, 256)),
    compress.Trellis(bits=2, context=True),
    compress.Trellis(bits=2, unbiased=True),
]
CALLS = [
    *((compressor, size) for compressor in WHOLE_CALLS for size in SIZES),
    *((compressor, size) for compressor in CODED for size in ("16", "2^16", "2^20")),
]
CALLS = pytest.mark.parametrize("compressor, size", CALLS, ids=lambda v: v if isinstance(v, str) else name(v))


@CALLS
def test_encode(race, compressor, size):
    """The whole call, and the memory it asks Python for, in units of x (at most one such buffer)."""
    x = vector(size)
    out = np.zeros(-(-compressor.bits(x.size) // 8), np.uint8)
    first = seconds_of(lambda: compressor.encode(x, KEY, out=out))
    tracemalloc.start()
    message = compressor.encode(x, KEY, out=out)
    extra = tracemalloc.get_traced_memory()[1] / x.nbytes
    tracemalloc.stop()
    bits = 8 * message.payload.nbytes / x.size
    memory = {"buffers of d": lambda seconds: extra}
    if isinstance(compressor, compress.ChunkTopK):
        memory["bits a value"] = lambda seconds: message.bits / compressor.count(x.size)
    race(f"{name(compressor)}.encode", size, lambda: compressor.encode(x, KEY, out=out), x, bits, first, **memory)


@CALLS
def test_decode(race, compressor, size):
    x = vector(size)
    message, out = compressor.encode(x, KEY), np.zeros_like(x)
    bits = 8 * message.payload.nbytes / x.size
    first = seconds_of(lambda: compressor.decode(message, KEY, out=out))
    race(f"{name(compressor)}.decode", size, lambda: compressor.decode(message, KEY, out=out), x, bits, first)


NUMBERS = ("bits", "GB/s", "first", "x memcpy")


def run(out, arguments=()):
    """pytest on this file, then one table. Saves speed.json (pytest-benchmark's) in `out`."""
    from rich import box
    from rich.table import Table

    out.mkdir(parents=True, exist_ok=True)
    results = Results()
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--benchmark-only", "--benchmark-warmup=off"]
    if not any(a.startswith("--benchmark-json") for a in arguments):
        options.append(f"--benchmark-json={out / 'speed.json'}")
    status = pytest.main([*options, *arguments, __file__], plugins=[results])
    table = Table(title="Kernels, one thread, float32", title_justify="left", title_style="bold")
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    table.add_column("kernel", max_width=40, overflow="fold")
    for header in ("size", "bits", "GB/s", "first", "x memcpy", "measured and bar", "ok"):
        table.add_column(header, justify="right" if header in NUMBERS else "left", no_wrap=True)
    bars, before = [], None
    kernels = list(dict.fromkeys(info["kernel"] for info in results.infos))
    for info in sorted(results.infos, key=lambda i: (kernels.index(i["kernel"]), SIZES[i["size"]])):
        bits = "" if info["bits"] is None else f"{info['bits']:.2f}"
        first = f"{info['first_gbps']:.2f}" if "first_gbps" in info else ""
        figures = [info["size"], bits, f"{info['gbps']:.2f}", first, f"{info['ratio_to_memcpy']:.2f}"]
        cells = ["" if info["kernel"] == before else info["kernel"], *figures]
        before = info["kernel"]
        for bar in info["bars"] or [None]:
            verdict = ("", "")
            if bar:
                bars.append(bar["met"])
                measured = f"{bar['measured']:.3g}" if bar["measured"] >= 0.001 else "0"
                verdict = f"{measured} {bar['bar']}", "[green]ok[/]" if bar["met"] else "[red]no[/]"
            table.add_row(*cells, *verdict)
            cells = [""] * len(cells)
    screen = console()
    screen.print(table)
    screen.print(f"{sum(bars)} of {len(bars)} bars met; saved {out / 'speed.json'}")
    return int(status)


class Results:
    """A pytest plugin that keeps every extra_info; the table at the end stands in for pytest-benchmark's own."""

    def __init__(self):
        self.infos = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_benchmark_group_stats(self, benchmarks):
        self.infos = [b["extra_info"] for b in benchmarks]
        return []
