"""Every compressor over its parameter range on one vector.

What is printed, and why two products are kept apart. The uncertainty principle (Safaryan, Shulgin, Richtarik 2022)
says alpha 4^{b/d} >= 1 for whatever is encoded in b bits with E||C(x) - x||^2 <= alpha ||x||^2 for EVERY x; an
unbiased compressor counts with alpha = omega / (1 + omega). So

  proven      takes alpha or omega from the compressor's theorem and b from the bytes: a worst case, never below 1.
  this input  takes the NMSE measured on this vector: how close the method comes here. A structured vector (sparse,
              heavy-tailed) can be told in fewer bits than the worst one, so it may be below 1 without contradiction.

Bits are counted from the bytes that left: 8 len(payload) / d. GB/s counts the bytes of x once; `x memcpy` is the time
over the time of copying x, measured in the same process and in between, so that it means the same on any machine.
`x ideal` is the NMSE over that of an ideal entropy-coded uniform quantiser on this vector at these bits (ideal.py):
below 1 is what no coder of independent rounded coordinates reaches.
"""

import csv
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from statistics import median
from time import perf_counter

import numpy as np

import compress
from compress import kernels

from . import console
from .ideal import IdealUniform

BUDGETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 4, 6, 8)
RATES = BUDGETS
FRACTIONS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
LEVELS = (1, 2, 3, 7, 15, 31, 63, 127)


def sweep(columns=None):
    """{class name: instances}: one list of parameter values a class; one that is not listed comes with the examples
    it has in the catalogue, so that a new compressor appears by itself. `columns`: of the matrix that the vector is."""
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
        "UniformQuantizer": [*at_rates(c.UniformQuantizer), *at_rates(c.UniformQuantizer, 0.25, unbiased=True)],
        "Trellis": [
            *at_rates(c.Trellis),
            *at_rates(c.Trellis, states=32),
            *at_rates(c.Trellis, context=True),
            *(at_rates(c.Trellis, context=True, shape=columns) if columns else []),
            *at_rates(c.Trellis, 0.25, unbiased=True),
            *at_rates(c.Trellis, 0.25, unbiased=True, context=True),
        ],
        "PowerSGD": [c.PowerSGD(r) for r in (1, 4, 16, 64)],
        "Scaled": [c.Scaled(inner) for inner in (c.RandK(0.1), c.TernGrad(), c.Kashin(2), c.Kashin(3), c.Kashin(16))],
        "Induced": [c.Induced(c.TopK(k), c.RandK(k)) for k in (0.003, 0.01, 0.03, 0.1)],
        "Composed": [
            *(c.Composed(c.RandK(k), c.NaturalCompression()) for k in (0.003, 0.01, 0.03, 0.1, 0.3)),
            *(c.Composed(c.RandK(2 * b), c.Trellis(bits=0.5, unbiased=True)) for b in RATES if b < 0.5),
            *(c.Composed(c.RandK(round(b / 2.33, 4)), c.Kashin(4, 1.16)) for b in RATES if b < 2.33),
        ],
    }
    found = {}
    for example in c.catalogue():
        found.setdefault(family(example), []).append(example)
    return {name: listed.get(name, examples) for name, examples in found.items()}


def at_rates(cls, least=0.0, **options):
    """A class of any rate at every rate from `least` on."""
    return [cls(bits=b, **options) for b in RATES if b >= least]


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
    """One line of the table: a compressor, or a peer, on a vector."""

    input: str
    compressor: str
    family: str
    kind: str  # unbiased, contractive, - (no constant at all) or peer
    guarantee: str
    bits: float  # per coordinate, from the bytes that left
    nmse: float  # mean of ||C(x) - x||^2 / ||x||^2 ...
    nmse_se: float  # ... and the standard error of that mean
    proven_product: float | None  # proven alpha 4^bits, or omega / (1 + omega) 4^bits: >= 1
    input_product: float  # nmse 4^bits: may be below 1
    ideal_ratio: float | None  # nmse over the ideal uniform quantiser's; None where that one has no error left
    encode_gbps: float
    encode_memcpy: float  # time over memcpy's
    decode_gbps: float
    decode_memcpy: float
    trials: int
    frontier: bool = False  # no other compressor of its kind has both fewer bits and a smaller error


def measure(compressor, x, trials, seed=0, seconds=math.inf, backend="cpu"):
    """One Point. Every trial is a new round, which renews shared and private randomness alike; buffers are reused, as
    a training loop would. No trial but the first two begins after `seconds`."""
    key, x = compress.Key(seed).worker(0), compress.asarray(x, backend)
    keys = [key.at(round=trial) for trial in range(trials)]
    message = compressor.encode(x, key)
    y = compressor.decode(message, key)
    room = kernels.empty(x, max(message.payload.nbytes, -(-compressor.bits(x.size) // 8)), np.uint8)
    figures = clock(
        lambda trial: compressor.encode(x, keys[trial], out=room),
        lambda trial, message: compressor.decode(message, keys[trial], out=y),
        lambda message: message.payload.nbytes,
        *(x, y, trials, seconds),
    )
    return Point(
        input="",
        compressor=name(compressor),
        family=family(compressor),
        kind=kind(compressor),
        guarantee=compressor.guarantee,
        proven_product=proven_product(compressor, x.size, figures["bits"]),
        ideal_ratio=None,
        **figures,
    )


def measure_peer(peer, x, trials, seconds=math.inf):
    """The same of a peer (peers.py), as float32, which is what they take."""
    from . import peers

    x = np.ascontiguousarray(x, np.float32)
    with peers.one_thread():
        peer.decode(peer.encode(x), x.size)
        figures = clock(
            lambda trial: peer.encode(x),
            lambda trial, payload: peer.decode(payload, x.size),
            len,
            *(x, np.empty_like(x), trials, seconds),
        )
    about = {"input": "", "compressor": peer.name, "family": peer.family, "kind": "peer", "guarantee": "none"}
    return Point(**about, proven_product=None, ideal_ratio=None, **figures)


def clock(encode, decode, length, x, y, trials, seconds):
    """The measured fields of a Point. y: a vector to copy x to, and into which decode may write."""
    exact = kernels.host(x)
    energy, error = float(np.dot(exact, exact)) or 1.0, np.empty_like(exact)
    copy, wait = copying(x, y)
    times, errors, sizes = {"copy": [], "encode": [], "decode": []}, [], []
    began = perf_counter()
    for trial in range(trials):
        if trial >= 2 and perf_counter() - began > seconds:
            break
        start = perf_counter()
        copy()
        wait()
        copied = perf_counter()
        payload = encode(trial)
        wait()
        encoded = perf_counter()
        decoded = decode(trial, payload)
        wait()
        end = perf_counter()
        times["copy"].append(copied - start)
        times["encode"].append(encoded - copied)
        times["decode"].append(end - encoded)
        sizes.append(8 * length(payload) / x.size)
        np.subtract(kernels.host(decoded), exact, out=error)
        errors.append(float(np.dot(error, error)) / energy)
    time = {name: median(s) for name, s in times.items()}
    bits, nmse = float(np.mean(sizes)), float(np.mean(errors))
    return {
        "bits": bits,
        "nmse": nmse,
        "nmse_se": float(np.std(errors, ddof=1) / math.sqrt(len(errors))) if len(errors) > 1 else math.nan,
        "input_product": times_4(nmse, bits),
        "encode_gbps": x.nbytes / time["encode"] / 1e9,
        "encode_memcpy": time["encode"] / time["copy"],
        "decode_gbps": x.nbytes / time["decode"] / 1e9,
        "decode_memcpy": time["decode"] / time["copy"],
        "trials": len(errors),
    }


def copying(x, y):
    """(a call that copies x to y where they live, a call that returns once that has been done)"""
    if isinstance(x, np.ndarray):
        return lambda: np.copyto(y, x), lambda: None
    from compress._gpu.device import cupy

    stream = cupy().cuda.get_current_stream()
    return lambda: y.data.copy_from_device_async(x.data, x.nbytes), stream.synchronize


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
    fewer bits and at most the error. Of equal points the first stays. A hundredth of the bits, as near as a coder
    comes to its rate, counts as none."""
    order = sorted(range(len(bits)), key=lambda i: (bits[i], error[i], i))
    best = []
    for i in order:
        if not best or error[i] < error[best[-1]]:
            if best and bits[i] <= 1.01 * bits[best[-1]]:
                best.pop()
            best.append(i)
    return [i in best for i in range(len(bits))]


def mark_frontier(points):
    """Contractive and unbiased compressors are different promises: each kind has its own frontier."""
    for k in {p.kind for p in points}:
        group = [p for p in points if p.kind == k]
        for p, on in zip(group, pareto([p.bits for p in group], [p.nmse for p in group]), strict=True):
            p.frontier = on


def holders(points):
    """[(budget, promise, Point)]: of the unbiased, of all compressors and of the peers, the one with the smallest
    error in at most 1.01 x budget bits."""
    promises = {
        "unbiased": [p for p in points if p.kind == "unbiased"],
        "any": [p for p in points if p.kind != "peer"],
        "peer": [p for p in points if p.kind == "peer"],
    }
    found = []
    for budget in BUDGETS:
        for promise, group in promises.items():
            if fitting := [p for p in group if p.bits <= 1.01 * budget]:
                found.append((budget, promise, min(fitting, key=lambda p: p.nmse)))
    return found


ANY_RATE = ("Trellis", "UniformQuantizer")


def below(points):
    """[(peer, its NMSE over ours)] of the peers at 0.05 to 8 bits that are below our curve: the best of all in at most
    as many bits, or what a coder of any rate has there, log NMSE linear in bits between two that were measured and from
    the zero vector (no bits, NMSE 1) on."""
    ours = sorted((p.bits, p.nmse) for p in points if p.kind != "peer" and p.nmse > 0)
    curve = [(0.0, 0.0)]
    for bits, nmse in sorted((p.bits, p.nmse) for p in points if p.family in ANY_RATE and p.nmse > 0):
        if math.log(nmse) < curve[-1][1]:
            while bits <= 1.02 * curve[-1][0]:  # at one rate the best alone
                curve.pop()
            curve.append((bits, math.log(nmse)))
    found = []
    for p in points:
        if p.kind == "peer" and 0.05 <= p.bits <= 8:
            best = min((nmse for bits, nmse in ours if bits <= p.bits), default=1.0)
            ratio = p.nmse / min(best, math.exp(np.interp(p.bits, *zip(*curve, strict=True))))
            if ratio < 1:
                found.append((p, ratio))
    return sorted(found, key=lambda pair: pair[1])


def run(inputs, out, seed=0, quick=False, trials=None, peers=False, detail=True, backend="cpu"):
    """Measure on every (name, title, x, columns) of `inputs`, print the tables (the long one with `detail`), save
    frontier.csv, .json and the figures in `out`. Peers work on the CPU, whatever the backend."""
    from .plot import distance_figure, frontier_figure

    trials = trials or (2 if quick else 20)
    rivals, missing = peer_entries(quick) if peers else ([], {})
    screen, results = console(), []
    for name, title, x, columns in inputs:
        entries = [c for instances in sweep(columns).values() for c in thinned(instances, quick)]
        points, skipped = measure_all(entries, rivals, x, trials, seed, screen, backend)
        points = [replace(p, input=name) for p in points]
        results.append((name, title, x, points, skipped))
        title = f"{title}: d = {x.size:,}, {x.dtype}, {trials} trials"
        if detail:
            screen.print(table(points, title))
            screen.print(f"[dim]{LEGEND}[/]")
        screen.print(budget_table(points, title))
        for line in skipped:
            screen.print(f"[dim]skipped {line}[/]")
        if rivals:
            under = [f"{p.compressor} at {p.bits:.3f} bits, {ratio:.2f} x its NMSE" for p, ratio in below(points)]
            more = f"; and {len(under) - 6} more, see frontier.json" * (len(under) > 6)
            screen.print(f"peers below our curve, 0.05 to 8 bits: {'; '.join(under[:6]) or 'none'}{more}")
    for family, reason in missing.items():
        screen.print(f"[dim]peer {family} is missing: {reason}[/]")
    out.mkdir(parents=True, exist_ok=True)
    save(results, out, seed=seed, missing_peers=missing)
    saved = [out / "frontier.csv", out / "frontier.json", out / "distance.png"]
    if len(results) == 1:
        _, title, x, points, _ = results[0]
        frontier_figure(points, title, x.size, out / "frontier.png")
        saved.append(out / "frontier.png")
    distance_figure([(name, title, points) for name, title, _, points, _ in results], out / "distance.png")
    screen.print(f"saved {', '.join(map(str, saved))}")


def thinned(instances, quick):
    """All of them, or about three."""
    return instances[:: max(1, len(instances) // 3)] if quick else instances


def peer_entries(quick):
    from . import peers

    families, missing = peers.available()
    return [p for family in families for p in thinned(family.sweep(), quick)], missing


def measure_all(entries, rivals, x, trials, seed, screen, backend="cpu"):
    """(points, why the others are not among them)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    points, skipped = [], []
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task("", total=len(entries) + len(rivals))
        for compressor in entries:
            progress.update(task, description=name(compressor))
            try:
                points.append(measure(compressor, x, trials, seed, seconds=1, backend=backend))
            except ValueError as reason:  # parameters that do not fit this vector, a k above d say
                skipped.append(f"{name(compressor)}: {reason}")
            progress.advance(task)
        for peer in rivals:
            progress.update(task, description=peer.name)
            try:
                points.append(measure_peer(peer, x, min(trials, 5), seconds=0.3))
            except Exception as reason:  # of other people's code anything can be raised
                skipped.append(f"{peer.name}: {reason}")
            progress.advance(task)
    mark_frontier(points)
    ideal = IdealUniform(x)
    for p in points:
        error = ideal.nmse(p.bits) if 0 < p.bits < 16 else 0.0
        p.ideal_ratio = p.nmse / error if error else None
    return points, skipped


LEGEND = (
    "proven x 4^b: the theorem's constant (unbiased: omega/(1+omega)) times 4^bits of the longest message, a worst "
    "case over all inputs, never below 1. NMSE x 4^b: on this input, may be below 1 where it is structured. x ideal: "
    "NMSE over that of an ideal entropy-coded uniform quantiser at the same bits (no bytes, its model for free). "
    "x memcpy: time over that of copying x. * on the frontier of its kind."
)


def table(points, title):
    from rich import box
    from rich.table import Table

    t = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")
    t.add_column("compressor", overflow="fold", max_width=30)
    products, speeds = (
        ("proven\nx 4^b", "NMSE\nx 4^b", "x\nideal"),
        ("encode\nGB/s", "x\nmemcpy", "decode\nGB/s", "x\nmemcpy"),
    )
    for header in ("bits", "NMSE", "+-", *products, *speeds):
        t.add_column(header, justify="right", no_wrap=True)
    group = None
    for p in points:
        if (p.family, p.kind) != group:
            group = p.family, p.kind
            t.add_section()
            promise = p.kind if p.guarantee == "proven" or p.kind == "peer" else f"{p.kind}, {p.guarantee}"
            t.add_row(f"[bold]{p.family}[/] [dim]{promise}[/]")
        t.add_row(
            f"{'*' if p.frontier else ' '} {p.compressor.removeprefix(p.family)[1:-1]}",
            f"{p.bits:.3f}",
            f"{p.nmse:.3g}",
            f"{p.nmse_se:.0e}" if p.nmse_se else "0",
            "-" if p.proven_product is None else figure(p.proven_product),
            figure(p.input_product),
            ratio(p.ideal_ratio),
            *(f"{v:.2f}" for v in (p.encode_gbps, p.encode_memcpy, p.decode_gbps, p.decode_memcpy)),
        )
    return t


def budget_table(points, title):
    """Which compressor holds each budget."""
    from rich import box
    from rich.table import Table

    t = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")
    t.add_column("bits\nat most", justify="right", no_wrap=True)
    t.add_column("best\nof")
    t.add_column("compressor", overflow="fold", max_width=40)
    for header in ("bits", "NMSE", "NMSE\nx 4^b", "x\nideal", "encode\nGB/s", "decode\nGB/s"):
        t.add_column(header, justify="right", no_wrap=True)
    last = None
    for budget, promise, p in holders(points):
        if budget != last:
            t.add_section()
        t.add_row(
            f"{budget:g}" if budget != last else "",
            promise,
            p.compressor,
            f"{p.bits:.3f}",
            f"{p.nmse:.3g}",
            figure(p.input_product),
            ratio(p.ideal_ratio),
            f"{p.encode_gbps:.2f}",
            f"{p.decode_gbps:.2f}",
        )
        last = budget
    return t


def ratio(value):
    return "-" if value is None else figure(value)


def figure(value):
    """Three digits, and powers of ten only where they are needed."""
    return (
        f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.0e}" if value < 1e9 else ">1e9"
    )


def save(results, out, **about):
    """frontier.csv: every Point. frontier.json: those, who holds each budget, and what was not measured and why."""
    rows = [asdict(p) for *_, points, _ in results for p in points]
    with open(out / "frontier.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=[field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(rows)
    inputs = [
        {
            "name": name,
            "title": title,
            "d": x.size,
            "dtype": str(x.dtype),
            "budgets": [{"budget": b, "best_of": promise, **asdict(p)} for b, promise, p in holders(points)],
            "peers_below": [{"compressor": p.compressor, "bits": p.bits, "ratio": r} for p, r in below(points)],
            "skipped": skipped,
        }
        for name, title, x, points, skipped in results
    ]
    about |= {"backends": compress.backends(), "inputs": inputs, "points": rows}
    (out / "frontier.json").write_text(json.dumps(about, indent=1))
