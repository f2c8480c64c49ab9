"""On a machine with a GPU: `python -m bench gpu_check` compares bytes with the CPU and measures every kernel,
`python -m bench speed --backend gpu` only measures.

How it is measured. Times are those between CUDA events around a batch of calls, the median of several batches. Before a
batch of kernels the device gets something to do for as long as the host takes to launch them all, so their times are
those of the device; whole calls (.encode, .decode) are timed as they come, with what the host does and waits for. A
copy from device memory to device memory runs before every batch, and the share is the bytes that a kernel must move at
least over the bytes that this copy moved in the same time. Arrays exceed the second-level cache from 2^24 on, where the
bars begin.
"""

import json
import shutil
import subprocess
import sys
from statistics import median

import numpy as np

import compress
from compress import kernels

from . import console
from .frontier import name

KEY = compress.Key(0).at(round=1).worker(0)
BATCHES, CALLS = 9, 5
BUSY = 2**29  # bytes that are copied eight times while kernels are launched: 2 ms or so
SIZES = (2**20, 2**24, 2**26)
BARS_FROM = 2**24

# What every entry of the catalogue is compared on; long vectors only where the CPU's turn takes seconds.
LENGTHS = (1, 31, 1000, 4097, 131_073, 1_000_003)
LONG = (2**24 + 1, 2**28)
SLOW = (compress.Trellis, compress.UniformQuantizer)
LONGEST = (compress.StandardDithering, compress.ScaledSign, compress.NaturalCompression, compress.RandK, compress.TopK)


def events(module, function, ahead=lambda: None):
    """Seconds that the device spent on CALLS calls, each; ahead: gives it something to do while they are launched."""
    start, end = module.cuda.Event(), module.cuda.Event()
    ahead()
    start.record()
    for _ in range(CALLS):
        function()
    end.record()
    end.synchronize()
    return module.cuda.get_elapsed_time(start, end) / 1000 / CALLS


def occupation(module):
    """What keeps the device busy while the host launches CALLS kernels or more."""
    room = module.empty(2 * BUSY, np.uint8)
    first, second = room[:BUSY].data, room[BUSY:].data

    def busy():
        for _ in range(8):
            second.copy_from_device_async(first, BUSY)

    return busy


def copying(module, x, target, busy):
    """Seconds that a copy of x takes."""
    return events(module, lambda: target.data.copy_from_device_async(x.data, x.nbytes), busy)


def race(module, function, moved, x, target, busy, whole=False):
    """(seconds of a call, its share of the copy's bandwidth); `moved`: the bytes that it must read and write; whole:
    with what the host does."""
    ratios, seconds = [], []
    function()
    for _ in range(BATCHES):
        copied = copying(module, x, target, busy)
        seconds.append(events(module, function) if whole else events(module, function, busy))
        ratios.append(moved / seconds[-1] / (2 * x.nbytes / copied))
    return median(seconds), median(ratios)


def cases(x):
    """(kernel, bytes moved at least, call, bar as a share of the copy's bandwidth or None)"""
    k, n = kernels.of(x), x.size
    out = kernels.empty(x, n, np.float32)
    payload = kernels.empty(x, 2 * n + 64, np.uint8)
    scale = kernels.like(x, np.float32([4.0]).view(np.uint8))
    from compress._gpu import reduce

    yield "norm", 4 * n, lambda: reduce.norms(x, n, k.NORM_L2), 0.9
    for bits in (1, 2, 4, 8):
        bar = 0.85 if bits == 1 else 0.8
        for how in ("nearest ", "dithered "):
            yield (
                f"{how}quantise + pack, {bits} bit",
                (4 + bits / 8) * n,
                lambda bits=bits, how=how: k.quantize_pack(
                    x, scale, 0, 4, n, 2**bits, KEY.word, payload, how == "nearest "
                ),
                bar,
            )
        yield (
            f"unpack + dequantise, {bits} bit",
            (4 + bits / 8) * n,
            lambda bits=bits: k.unpack_scale(payload, scale, 0, 4, n, 2**bits, 1.0, out),
            bar,
        )
    yield "natural compression", 5.125 * n, lambda: k.power_pack(x, KEY.word, payload), 0.85
    yield "natural decompression", 5.125 * n, lambda: k.unpower_scale(payload, 1.0, out), 0.85
    work = x.copy()
    for block in (2**8, 2**12, 2**15):
        if block <= n:
            yield f"Walsh-Hadamard, rows of {block}", 8 * n, lambda block=block: k.fwht(work, block), 0.85
    if n >= 2**24:
        passes = 2 if n <= 2**24 else 3
        yield f"Walsh-Hadamard, one row, {passes} passes", 8 * passes * n, lambda: k.fwht(work, n), 0.8
    yield "rotation", 8 * n, lambda: k.rotate(x, out, KEY.word), 0.85
    yield "cosine transform", 8 * n, lambda: k.dct(x, out), None
    count = max(1, n // 100)
    indices = kernels.empty(x, count, np.uint32)
    values = kernels.empty(x, count, np.float32)
    yield "Top-K, 1%", 8 * n + 8 * count, lambda: k.topk(x, indices), 0.5
    yield "Rand-K, 1%", 4 * count, lambda: k.random_subset(KEY.word, n, 0, indices), None
    yield "gather, 1%", 12 * count, lambda: k.gather(x, indices, values, True), None
    if n >= 4096:
        best = kernels.empty(x, n // 64, np.uint32)
        yield "Chunk Top-K, 64 of 4096", 4 * n, lambda: k.chunk_topk(x, 4096, 64, best), 0.6


def whole_calls(n):
    """(compressor, bytes that encode must move, its bar)"""
    yield compress.StandardDithering(7), 8.5 * n, 0.7
    yield compress.ScaledSign(), 8.125 * n, None
    yield compress.NaturalCompression(), 9.125 * n, None
    yield compress.TopK(0.01), 12 * n, None
    yield compress.ChunkTopK(), 8 * n, None
    yield compress.Rotated(compress.TernGrad()), 16 * n, None
    yield compress.Kashin(3), 4.3 * n, None
    yield compress.Eden(2), 4.25 * n, None
    if n <= 2**24:
        yield compress.UniformQuantizer(bits=2), None, None
        yield compress.Trellis(bits=2), None, None


def kashin_iteration(module, x, target, busy):
    """An iteration in a frame: the difference between many and few, over the rows of all frames."""
    few, many = (compress.Kashin(3, iterations=steps) for steps in (4, 12))
    copied = median(copying(module, x, target, busy) for _ in range(BATCHES))
    times = [median(events(module, lambda C=C: C.encode(x, KEY)) for _ in range(BATCHES)) for C in (few, many)]
    rows = 1.25 * x.size
    seconds = max((times[1] - times[0]) / 8, 1e-12)
    return seconds, 16 * rows / seconds / (2 * x.nbytes / copied)


def entropy(module, x):
    """Seconds to decode a vector of one-byte symbols at two bits each, values included."""
    C = compress.UniformQuantizer(bits=2)
    message, out = C.encode(x, KEY), kernels.empty(x, x.size, np.float32)
    C.decode(message, KEY, out)
    return median(events(module, lambda: C.decode(message, KEY, out)) for _ in range(BATCHES))


def row(kernel, n, seconds, share=None, bar=None, unit="share of copy"):
    """A line of the table; the bar is on the share, or on the symbols a second."""
    made = {"kernel": kernel, "size": n, "seconds": seconds, "GB/s": 4 * n / seconds / 1e9, "share": share}
    if bar and n >= BARS_FROM:
        reached = share if unit == "share of copy" else n / seconds / 1e9
        made |= {"bar": bar, "unit": unit, "met": reached >= bar}
    return made


def measure(module, n):
    """The rows of one size."""
    x = kernels.like(module.empty(0, np.uint8), np.random.default_rng(0).standard_normal(n, dtype=np.float32))
    target = kernels.empty(x, n, np.float32)
    busy = occupation(module)
    copied = median(copying(module, x, target, busy) for _ in range(BATCHES))
    yield row("device-to-device copy", n, copied, 1.0)
    for kernel, moved, function, bar in cases(x):
        yield row(kernel, n, *race(module, function, moved, x, target, busy), bar)
    yield row("Kashin iteration", n, *kashin_iteration(module, x, target, busy), 0.7)
    for C, moved, bar in whole_calls(n):
        out = kernels.empty(x, -(-C.bits(n) // 8), np.uint8)
        seconds, share = race(module, lambda C=C, out=out: C.encode(x, KEY, out=out), moved or 0, x, target, busy, True)
        yield row(f"{name(C)}.encode", n, seconds, share if moved else None, bar)
        message = C.encode(x, KEY, out=out)
        seconds, _ = race(module, lambda C=C, m=message: C.decode(m, KEY, target), 0, x, target, busy, True)
        yield row(f"{name(C)}.decode", n, seconds)
    yield row("rANS decode, 2 bit", n, entropy(module, x), None, 250, "GB/s of symbols")
    yield from peers(module, x)


def peers(module, x):
    """What others take for the same, where they are installed: of their code anything can be raised."""

    def clock(function):
        return median(events(module, function) for _ in range(BATCHES))

    try:
        import torch

        tensor, k = torch.from_dlpack(x), max(1, x.size // 100)
        yield row("torch.topk, 1%", x.size, clock(lambda: tensor.abs().topk(k, sorted=False)))
        from fast_hadamard_transform import hadamard_transform

        for block in (2**12, 2**15):
            if block <= x.size:
                rows = tensor.view(-1, block)
                seconds = clock(lambda rows=rows: hadamard_transform(rows))
                yield row(f"fast-hadamard-transform, rows of {block}", x.size, seconds)
    except Exception as error:
        print(f"not measured beside us: {type(error).__name__}: {error}")


# Bytes


def inputs(n, dtype):
    """Families that a GPU could get wrong: denormals, signed zeros, outliers, the ends of the range."""
    x = np.random.default_rng(n).standard_normal(n, dtype=dtype)
    yield "normal", x
    if n > 2_000_000:
        return
    tiny = np.finfo(dtype).tiny
    yield "denormal", (x * tiny * dtype(0.25)).astype(dtype)
    zeros = x.copy()
    zeros[::3], zeros[1::3] = 0.0, -0.0
    yield "signed zeros", zeros
    outlier = x * dtype(1e-3)
    outlier[n // 2] = 1e4
    yield "outlier", outlier
    yield "large", x * dtype(1e30)


def differences(C, x, device):
    """What is not the same on both sides: an empty list where all is."""

    def outcome(where):
        given = kernels.like(where, x)
        try:
            message = C.encode(given, KEY)
            total = kernels.like(where, np.ones(x.size, x.dtype))
            decoded = C.decode(message, KEY)
            C.decode_add(message, KEY, total, 0.3)
        except Exception as error:  # a ValueError on both sides, or the report of a failure on one
            return f"{type(error).__name__}: {error}"
        return message.bits, *(kernels.host(a).tobytes() for a in (message.payload, decoded, total))

    host, there = outcome(x), outcome(device)
    if isinstance(host, str) or isinstance(there, str):
        return [] if host == there else [f"raises: {host!r} and {there!r}"]
    parts = zip(("bits", "payload", "decoded", "added"), host, there, strict=True)
    return [part for part, first, second in parts if first != second]


def compare(module, lengths=LENGTHS, long=LONG):
    """(compressor, length, dtype, input, what differs) of everything that does; counts what was compared."""
    device, wrong, count = module.empty(0, np.uint8), [], 0
    for n in (*lengths, *long):
        for dtype in (np.float32, np.float64) if n <= 2_000_000 else (np.float32,):
            for family, x in inputs(n, dtype):
                for C in compress.catalogue():
                    if not C.exact or not suits(C, n) or (n in long and isinstance(C, SLOW)):
                        continue
                    if n == max(LONG) and not isinstance(C, LONGEST):
                        continue
                    count += 1
                    if found := differences(C, x, device):
                        wrong.append((repr(C), n, np.dtype(dtype).name, family, ", ".join(found)))
    return wrong, count


def suits(C, n):
    try:
        C.bits(n)
    except ValueError:
        return False
    return True


def sanitize():
    """compute-sanitizer over a short comparison, where it is installed: its verdict in words."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "compute-sanitizer is not installed: not run"
    command = [tool, "--error-exitcode", "9", sys.executable, "-m", "bench", "gpu_check", "--quick", "--bytes-only"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "compute-sanitizer: not done in 300 s"
    return "compute-sanitizer: no error" if result.returncode == 0 else f"compute-sanitizer: {result.stdout[-2000:]}"


# Reports


def show(rows, title):
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for header in ("kernel", "size", "us", "GB/s", "share", "bar", "ok"):
        table.add_column(header, justify="left" if header == "kernel" else "right")
    for row in rows:
        table.add_row(*cells(row))
    console().print(table)


def cells(row):
    share = "" if row["share"] is None else f"{row['share']:.2f}"
    bar = f">= {row['bar']} {row['unit']}" if "bar" in row else ""
    verdict = ("ok" if row["met"] else "no") if "bar" in row else ""
    size = f"2^{row['size'].bit_length() - 1}" if row["size"] & (row["size"] - 1) == 0 else str(row["size"])
    return row["kernel"], size, f"{1e6 * row['seconds']:.1f}", f"{row['GB/s']:.1f}", share, bar, verdict


def save(rows, out, label, notes):
    """<gpu>.json and <gpu>.md in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "".join(c if c.isalnum() else "-" for c in label.lower())
    header = ("kernel", "size", "us", "GB/s", "share of copy", "bar", "ok")
    lines = [f"# {label}", "", *notes, "", " | ".join(("", *header, "")).strip(), "|" + "---|" * len(header)]
    lines += [" | ".join(("", *cells(row), "")).strip() for row in rows]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    path.with_suffix(".json").write_text(json.dumps({"device": label, "notes": notes, "rows": rows}, indent=1) + "\n")
    return path.with_suffix(".md")


def run(out, quick=False, check=True, speed=True, sanitizer=True):
    """0 where no byte differs; bars that are missed are printed, not raised."""
    from compress._gpu import device

    module = device.cupy()
    label, notes, wrong = device.name(), [], []
    if check:
        wrong, count = compare(module, LENGTHS[:4] if quick else LENGTHS, () if quick else LONG)
        notes.append(f"{count - len(wrong)} of {count} messages are those of the CPU, byte for byte.")
        for C, n, dtype, family, what in wrong:
            notes.append(f"DIFFERS: {C}, d = {n}, {dtype}, {family}: {what}")
        if sanitizer:
            notes.append(sanitize())
    rows, failed = [], False
    for n in ((2**16,) if quick else SIZES) if speed else ():
        try:
            rows.extend(measure(module, n))  # what was measured before a failure stays
        except Exception as error:
            failed = True
            notes.append(f"FAILED at {n} elements, after {len(rows)} rows: {type(error).__name__}: {error}")
    if rows:
        show(rows, f"{label}, float32; share of the bandwidth of a copy")
        bars = [row["met"] for row in rows if "met" in row]
        if bars:
            notes.append(f"{sum(bars)} of {len(bars)} bars met.")
    print(*notes, sep="\n")
    if rows:
        print(f"saved {save(rows, out, label, notes)}")
    return int(bool(wrong) or failed)
