"""Every compressor over its parameter range on one vector.

What is printed, and why two products are kept apart. The uncertainty principle (Safaryan, Shulgin, Richtarik 2022)
says alpha 4^{b/d} >= 1 for whatever is encoded in b bits with E||C(x) - x||^2 <= alpha ||x||^2 for EVERY x; an
unbiased compressor counts with alpha = omega / (1 + omega). So

  proven      takes alpha or omega from the compressor's theorem and b from the bytes: a worst case, never below 1.
  this input  takes the NMSE measured on this vector: how close the method comes here. A structured vector (sparse,
              heavy-tailed) can be told in fewer bits than the worst one, so it may be below 1 without contradiction.

Bits are counted from the bytes that left: 8 len(payload) / d. GB/s counts the bytes of x once; `x memcpy` is the time
over the time of copying x, measured in the same process and in between, so that it means the same on any machine.
"""

import csv
import json
import math
from dataclasses import asdict, dataclass, fields
from itertools import product
from statistics import median
from time import perf_counter

import numpy as np

import compress

from . import console

FRACTIONS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
LEVELS = (1, 2, 3, 7, 15, 31, 63, 127)


def sweep():
    """{class name: instances}: one list of parameter values a class; one that is not listed comes with the examples
    it has in the catalogue, so that a new compressor appears by itself."""
    c = compress
    listed = {
        "Identity": [c.Identity()],
        "RandK": [c.RandK(k) for k in FRACTIONS],
        "PermK": [c.PermK(n) for n in (2, 4, 16, 64, 256)],
        "Bernoulli": [c.Bernoulli(p) for p in FRACTIONS],
        "TopK": [c.TopK(k) for k in FRACTIONS],
        "ChunkTopK": [
            *(c.ChunkTopK(4096, k) for k in (4, 16, 64, 256, 1024)),
            *(c.ChunkTopK(4096, 64, bits) for bits in (1, 4, None)),
        ],
        "DCT": [c.DCT(c.ChunkTopK(4096, k)) for k in (16, 64, 256)],
        "StandardDithering": [c.StandardDithering(*p) for p in product(LEVELS, ("l2", "linf"), (None, 1024))],
        "NaturalDithering": [c.NaturalDithering(*p) for p in product((1, 3, 7, 15), ("l2", "linf"))],
        "Rotated": [
            *(c.Rotated(inner) for inner in (c.ScaledSign(), c.TernGrad())),
            *(c.Rotated(c.StandardDithering(s, "linf", 1024)) for s in LEVELS),
        ],
        "Kashin": [c.Kashin(L, r) for r in (1.1, 1.25, 1.5, 2.0) for L in (2, 3, 4, 8, 16, 64, 256)],
        "Eden": [c.Eden(b, scale) for scale in ("biased", "unbiased") for b in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)],
        "Correlated": [c.Correlated(c.StandardDithering(s, "linf", 1024), 16) for s in (1, 3, 7, 15)],
        "PowerSGD": [c.PowerSGD(r) for r in (1, 4, 16, 64)],
        "Scaled": [c.Scaled(inner) for inner in (c.RandK(0.1), c.TernGrad(), c.Kashin(2), c.Kashin(3), c.Kashin(16))],
        "Induced": [c.Induced(c.TopK(k), c.RandK(k)) for k in (0.003, 0.01, 0.03, 0.1)],
        "Composed": [c.Composed(c.RandK(k), c.NaturalCompression()) for k in (0.003, 0.01, 0.03, 0.1, 0.3)],
    }
    found = {}
    for example in c.catalogue():
        found.setdefault(family(example), []).append(example)
    return {name: listed.get(name, examples) for name, examples in found.items()}


def family(compressor):
    return compress.compressor.name_of(compressor)


def parameters(compressor):
    """What a reader needs to tell instances apart: `7, norm=linf, block=1024`. The first parameter always and
    without its name, the others where they differ from their defaults."""
    parts = []
    for i, f in enumerate(fields(compressor)):
        value = getattr(compressor, f.name)
        if value == f.default and (i > 0 or f.name == "wire"):
            continue
        if isinstance(value, compress.Compressor):
            text = name(value)
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(text if i == 0 or isinstance(value, compress.Compressor) else f"{f.name}={text}")
    return ", ".join(parts)


def name(compressor):
    """`Kashin(3, redundancy=2)`: short enough for a table and a figure."""
    return f"{family(compressor)}({parameters(compressor)})"


@dataclass
class Point:
    """One line of the table: a compressor on a vector."""

    compressor: str
    family: str
    kind: str  # unbiased, contractive or - (no constant at all)
    guarantee: str
    bits: float  # per coordinate, from the bytes that left
    nmse: float  # mean of ||C(x) - x||^2 / ||x||^2 ...
    nmse_se: float  # ... and the standard error of that mean
    proven_product: float | None  # proven alpha 4^bits, or omega / (1 + omega) 4^bits: >= 1
    input_product: float  # nmse 4^bits: may be below 1
    encode_gbps: float
    encode_memcpy: float  # time over memcpy's
    decode_gbps: float
    decode_memcpy: float
    trials: int
    frontier: bool = False  # no other compressor of its kind has both fewer bits and a smaller error


def measure(compressor, x, trials, seed=0):
    """One Point. Every trial is a new round, which renews shared and private randomness alike; buffers are reused, as
    a training loop would."""
    key = compress.Key(seed).worker(0)
    message = compressor.encode(x, key)
    y = compressor.decode(message, key)
    room = np.empty(max(message.payload.nbytes, -(-compressor.bits(x.size) // 8)), np.uint8)
    energy = float(np.dot(x, x)) or 1.0
    seconds = {"copy": [], "encode": [], "decode": []}
    errors, sizes = [], []
    for trial in range(trials):
        key = key.at(round=trial)
        start = perf_counter()
        np.copyto(y, x)
        copied = perf_counter()
        message = compressor.encode(x, key, out=room)
        encoded = perf_counter()
        compressor.decode(message, key, out=y)
        decoded = perf_counter()
        seconds["copy"].append(copied - start)
        seconds["encode"].append(encoded - copied)
        seconds["decode"].append(decoded - encoded)
        sizes.append(8 * message.payload.nbytes / x.size)
        np.subtract(y, x, out=y)
        errors.append(float(np.dot(y, y)) / energy)
    time = {name: median(s) for name, s in seconds.items()}
    bits, nmse = float(np.mean(sizes)), float(np.mean(errors))
    return Point(
        compressor=name(compressor),
        family=family(compressor),
        kind=kind(compressor),
        guarantee=compressor.guarantee,
        bits=bits,
        nmse=nmse,
        nmse_se=float(np.std(errors, ddof=1) / math.sqrt(trials)) if trials > 1 else math.nan,
        proven_product=proven_product(compressor, x.size, bits),
        input_product=times_4(nmse, bits),
        encode_gbps=x.nbytes / time["encode"] / 1e9,
        encode_memcpy=time["encode"] / time["copy"],
        decode_gbps=x.nbytes / time["decode"] / 1e9,
        decode_memcpy=time["decode"] / time["copy"],
        trials=trials,
    )


def kind(compressor):
    if isinstance(compressor, compress.Unbiased):
        return "unbiased"
    return "contractive" if isinstance(compressor, compress.Contractive) else "-"


def proven_product(compressor, d, bits):
    """alpha 4^{b/d} with the proven alpha; None without a proof, and for a lossless code (alpha = 0), whose
    inputs are not all of R^d but the floats. Where the length varies b is the worst case, C.bits(d)."""
    if compressor.guarantee != "proven" or kind(compressor) == "-":
        return None
    if kind(compressor) == "unbiased":
        omega = compressor.omega(d)
        alpha = omega / (1 + omega)
    else:
        alpha = compressor.alpha(d)
    if not compressor.fixed_length:
        bits = compressor.bits(d) / d
    return times_4(alpha, bits) if alpha > 0 else None


def times_4(error, bits):
    """error 4^bits; inf beyond float64, which the headers of a vector of a few coordinates reach."""
    return error * 4.0**bits if bits < 500 else math.inf


def pareto(bits, error):
    """Mask of the points that no other point beats: none has at most as many bits and a smaller error, or
    fewer bits and at most the error. Of equal points the first stays."""
    order = sorted(range(len(bits)), key=lambda i: (bits[i], error[i], i))
    keep, best = [False] * len(bits), math.inf
    for i in order:
        if error[i] < best:
            keep[i], best = True, error[i]
    return keep


def mark_frontier(points):
    """Contractive and unbiased compressors are different promises: each kind has its own frontier."""
    for k in {p.kind for p in points}:
        group = [p for p in points if p.kind == k]
        for p, on in zip(group, pareto([p.bits for p in group], [p.nmse for p in group]), strict=True):
            p.frontier = on


def run(x, title, out, seed=0, quick=False, trials=None):
    """Measure, print the table, save frontier.csv, .json and .png in `out`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .plot import frontier_figure

    trials = trials or (2 if quick else 20)
    entries = [
        c for instances in sweep().values() for c in (instances[:: max(1, len(instances) // 3)] if quick else instances)
    ]
    screen, points, skipped = console(), [], []
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task("", total=len(entries))
        for compressor in entries:
            progress.update(task, description=name(compressor))
            try:
                points.append(measure(compressor, x, trials, seed))
            except ValueError as reason:  # parameters that do not fit this vector, a k above d say
                skipped.append(f"{name(compressor)}: {reason}")
            progress.advance(task)
    mark_frontier(points)
    screen.print(table(points, f"{title}: d = {x.size:,}, {x.dtype}, {trials} trials"))
    screen.print(
        "[dim]proven x 4^b: the theorem's constant (unbiased: omega/(1+omega)) times 4^bits of the longest message, a "
        "worst case over all inputs, never below 1. NMSE x 4^b: on this input, may be below 1 where it is structured. "
        "x memcpy: time over that of copying x. * on the frontier of its kind.[/]"
    )
    for line in skipped:
        screen.print(f"[dim]skipped {line}[/]")
    out.mkdir(parents=True, exist_ok=True)
    save(points, out, title=title, d=x.size, dtype=str(x.dtype), seed=seed)
    frontier_figure(points, title, x.size, out / "frontier.png")
    screen.print(f"saved {out / 'frontier'}.csv, .json, .png")


def table(points, title):
    from rich import box
    from rich.table import Table

    t = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")
    t.add_column("compressor", overflow="fold", max_width=30)
    products, speeds = ("proven\nx 4^b", "NMSE\nx 4^b"), ("encode\nGB/s", "x\nmemcpy", "decode\nGB/s", "x\nmemcpy")
    for header in ("bits", "NMSE", "+-", *products, *speeds):
        t.add_column(header, justify="right", no_wrap=True)
    group = None
    for p in points:
        if (p.family, p.kind) != group:
            group = p.family, p.kind
            t.add_section()
            t.add_row(f"[bold]{p.family}[/] [dim]{p.kind}{'' if p.guarantee == 'proven' else f', {p.guarantee}'}[/]")
        t.add_row(
            f"{'*' if p.frontier else ' '} {p.compressor.removeprefix(p.family)[1:-1]}",
            f"{p.bits:.3f}",
            f"{p.nmse:.3g}",
            f"{p.nmse_se:.0e}" if p.nmse_se else "0",
            "-" if p.proven_product is None else figure(p.proven_product),
            figure(p.input_product),
            *(f"{v:.2f}" for v in (p.encode_gbps, p.encode_memcpy, p.decode_gbps, p.decode_memcpy)),
        )
    return t


def figure(value):
    """Three digits, and powers of ten only where they are needed."""
    return (
        f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.0e}" if value < 1e9 else ">1e9"
    )


def save(points, out, **about):
    rows = [asdict(p) for p in points]
    with open(out / "frontier.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=[field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(rows)
    about |= {"backends": compress.backends(), "points": rows}
    (out / "frontier.json").write_text(json.dumps(about, indent=1))
