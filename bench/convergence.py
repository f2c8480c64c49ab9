"""Error against bits: every method with every compressor on one problem, all named on the command line.

Runs start at x^0 = 0, with the largest step sizes that a theorem allows. None follow from a compressor without a proven
constant: its error on the gradients at x^0, ||C(g) - g||^2 / ||g||^2, is measured and takes the place of omega or
alpha. Such a run is marked "not proven".
"""

import ast
import csv
import json
import math
import warnings
from dataclasses import dataclass, replace

import numpy as np

import compress
from compress.data import binary, load, split, split_dirichlet, split_sorted

from . import console
from .frontier import name as short

METHODS = {
    cls.__name__: cls
    for cls in (
        compress.DCGD,
        compress.DCGDStar,
        compress.DIANA,
        compress.RandDIANA,
        compress.GDCI,
        compress.VRGDCI,
        compress.EF14,
        compress.EF21,
        compress.MARINA,
    )
}
SHARDS = ("equal", "sorted", "dirichlet")
CONCENTRATION = 0.5  # of dirichlet
DIMENSION = 256  # of quadratic
ROWS = 500  # of a curve in the JSON file
LINES = ("-", "--", ":", "-.")
ERROR = r"$\|x^k - x^*\|^2 / \|x^0 - x^*\|^2$"


def methods(text):
    """The classes that "DIANA,EF21" names. ValueError for a name that is not in METHODS."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return [METHODS[name] for name in names]


def compressors(text, also=()):
    """Those that "RandK(0.1); Induced(TopK(5), RandK(5))" names.

    An expression is a name of `compress.compressor.classes()`, or that of a class in `also`, with literals and such
    expressions as arguments; it is read, never evaluated. ValueError for anything else, and for arguments that the
    class refuses.
    """
    found, known = [], compress.compressor.classes() | {each.__name__: each for each in also}
    for part in filter(None, map(str.strip, text.split(";"))):
        try:
            found.append(_built(ast.parse(part, mode="eval").body, known))
        except SyntaxError as error:
            raise ValueError(f"compressor {part!r}: {error.msg}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"compressor {part!r}: {error}") from None
    if not found:
        raise ValueError("--compressors names none")
    return found


def _built(node, known):
    function = node.func if isinstance(node, ast.Call) else node
    if not isinstance(function, ast.Name):
        raise ValueError(
            f"{ast.unparse(node)!r} is no compressor such as RandK(0.1); several are separated by semicolons"
        )
    if function.id not in known:
        raise ValueError(f"unknown name {function.id!r}; known: {', '.join(known)}")
    if function is node:
        return known[function.id]()
    named = {keyword.arg: _argument(keyword.value, known) for keyword in node.keywords}
    return known[function.id](*(_argument(each, known) for each in node.args), **named)


def _argument(node, known):
    if isinstance(node, (ast.Call, ast.Name)):
        return _built(node, known)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)!r} is neither a literal nor a compressor") from None


def problem(text, n, shards="equal", condition=100.0, seed=0):
    """The Problem of n workers that "quadratic", "quadratic:D", "ridge:SOURCE" or "logistic:SOURCE" names.

    SOURCE as in `compress.data.load`; columns and targets are centred, columns scaled. Of more than two labels, the
    upper half of the values is +1. lam is such that L / mu is `condition`, or 0 where the data are better than that.
    ValueError for another name, for parts that cannot be made, for a condition that is not above 1.
    """
    kind, _, source = text.partition(":")
    if not condition > 1:
        raise ValueError(f"--condition must be above 1, got {condition}")
    if shards not in SHARDS:
        raise ValueError(f"unknown shards {shards!r}; known: {', '.join(SHARDS)}")
    if kind == "quadratic":
        if shards != "equal":
            raise ValueError(f"a quadratic has no rows to share out: --shards {shards} needs ridge or logistic")
        if source and not source.isdecimal():
            raise ValueError(f"quadratic:D has D coordinates, got {source!r}")
        return compress.Quadratic.random(n, int(source or DIMENSION), mu=1, L=condition, seed=seed)
    if kind not in ("ridge", "logistic") or not source:
        raise ValueError(f"unknown problem {text!r}; known: quadratic, quadratic:D, ridge:SOURCE, logistic:SOURCE")
    try:
        A, b = load(source, scale=True)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    classes = b
    if kind == "ridge":
        b = b - b.mean()
        classes = np.argsort(np.argsort(b)) * 10 // len(b)  # tenths of the targets
    else:
        values = np.unique(b)
        b = binary(b, values[len(values) // 2 :])
    if shards == "equal":
        parts = split(len(b), n, seed)
    elif shards == "sorted":
        parts = split_sorted(classes, n)
    else:
        parts = split_dirichlet(classes, n, CONCENTRATION, seed)
    cls = compress.Ridge if kind == "ridge" else compress.Logistic
    data = cls(A, b, 0.0, parts=parts)
    return cls(A, b, max(0.0, (data.L - condition * data.mu) / (condition - 1)), parts=parts)


@dataclass(frozen=True)
class Pair:
    """A method with its compressor and steps, and where the steps come from; or why there is none."""

    name: str
    compressor: compress.Compressor
    method: compress.Method | None
    note: str = ""


def pair(cls, C, problem, x0, gamma=None):
    """The method with that compressor, or with Scaled(C) where it takes contractive compressors and C is unbiased."""
    unbiased = isinstance(C, compress.Unbiased)
    try:
        C.bits(problem.d)  # refuses what does not suit d
        if cls.needs is compress.Unbiased and not unbiased:
            raise ValueError("biased; Induced(it, an unbiased one) is not")
        if cls.needs is compress.Contractive and unbiased:
            if C.guarantee == "none":
                raise ValueError("unbiased, without the proven omega that Scaled(it) needs")
            C = compress.Scaled(C)
        stand_in, note = _measured(C, problem, x0) if C.guarantee == "none" else (C, "")
        method = replace(cls.theoretical(problem, stand_in), compressor=C)
    except (TypeError, ValueError) as error:  # no constant, or one that does not suit
        return Pair(cls.__name__, C, None, str(error).removeprefix(f"{cls.__name__}: "))
    if gamma is not None:
        method, note = replace(method, gamma=gamma), "; ".join(filter(None, ["gamma given", note]))
    return Pair(cls.__name__, C, method, note)


def _measured(C, problem, x0):
    """A compressor whose proven constant is the error of C measured on the gradients at x0, and that in words."""
    gradients = [problem.gradient(i, x0) for i in range(problem.n)]
    error = compress.measure(C, gradients, trials=10).nmse
    if isinstance(C, compress.Unbiased):
        return compress.Bernoulli(1 / (1 + error)), f"not proven: omega = {error:.3g} measured at x0"
    if error >= 1:
        raise ValueError(f"measured alpha = {error:.3g}, no step size follows from one that is not below 1")
    return compress.Scaled(compress.Bernoulli(1 - error)), f"not proven: alpha = {error:.3g} measured at x0"


def levels(until):
    """Four errors, even on a log scale but for rounding, the last of them `until`."""
    whole = [10.0 ** round(math.log10(until) * k / 4) for k in (1, 2, 3)]
    return [level for level in dict.fromkeys(whole) if until < level < 1] + [until]


def row(pair, trace, d, until):
    """What the table and the files say of a run."""
    sent, steps = int(trace.bits_up[-1]), int(trace.step[-1])
    values = {
        "method": pair.name,
        "compressor": short(pair.compressor),
        "gamma": pair.method.gamma,
        "bits_per_coordinate": sent / (trace.n * d * steps),
        "steps": steps,
        "mbit_per_worker": sent / trace.n / 1e6,
        "error": float(trace.error[-1]),
        "seconds": float(trace.seconds[-1]),
        "note": pair.note,
        "reason": trace.reason,
    }
    for level in levels(until):
        reached = trace.at(level)
        values[f"steps_to_{level:.0e}"] = reached and reached.step
        values[f"mbit_to_{level:.0e}"] = reached and reached.bits_up / trace.n / 1e6
    return values


def table(rows, title, until, screen):
    from rich import box
    from rich.table import Table

    title += "\nsteps and Mbit per worker to an error of"
    shown = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    shown.add_column("method", no_wrap=True)
    shown.add_column("compressor", overflow="fold")
    shown.add_column("bits", justify="right", no_wrap=True)
    for level in levels(until):
        shown.add_column(f"{level:.0e}", justify="right", no_wrap=True)
    shown.add_column("at the end", justify="right", no_wrap=True)
    for values in rows:
        cells = [values["method"] + "*" * bool(values["note"]), values["compressor"]]
        cells.append(f"{values['bits_per_coordinate']:.2f}")
        for level in levels(until):
            steps = values[f"steps_to_{level:.0e}"]
            cells.append("-" if steps is None else f"{steps:,}  {values[f'mbit_to_{level:.0e}']:.3g}")
        shown.add_row(*cells, f"{values['error']:.1e}")
    screen.print(shown)
    screen.print("bits: sent a step for each coordinate of each worker, mean over steps")
    for values in rows:
        if values["note"]:
            screen.print(f"* {values['method']}, {values['compressor']}: {values['note']}", highlight=False)


def figure(traces, title, until, path):
    """Errors against bits and against steps. traces: (pair, trace) of every run."""
    from .plot import MARKERS, SAFE, STYLE, plt

    def sent(pair):
        C = pair.compressor
        return short(C.inner if isinstance(C, compress.Scaled) else C)

    colours = dict(zip(dict.fromkeys(sent(pair) for pair, _ in traces), SAFE * 4, strict=False))
    names = dict.fromkeys(pair.name for pair, _ in traces)
    looks = {name: {"marker": m, "linestyle": s} for name, m, s in zip(names, MARKERS, LINES * 3, strict=False)}
    with plt.rc_context(STYLE):
        page, axes = plt.subplots(1, 2, figsize=(9.6, 4.6), sharey=True, layout="constrained")
        for pair, trace in traces:
            marks = np.unique(np.geomspace(1, len(trace) - 1, 9).astype(int)) - 1
            for axis, x in zip(axes, (trace.bits_up / trace.n / 1e6, trace.step), strict=True):
                look = {"color": colours[sent(pair)], "markevery": marks.tolist(), "markersize": 4, **looks[pair.name]}
                axis.plot(x[1:], trace.error[1:], **look)  # bits and steps are on log scales: no start
        axes[0].set(xscale="log", yscale="log", xlabel="Mbit sent per worker", ylabel=ERROR, ylim=(until / 3, 3))
        axes[1].set(xscale="log", xlabel="steps")
        lines = [plt.Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
        page.legend(handles=lines, loc="outside lower left", ncols=3, title="compressor", alignment="left")
        lines = [plt.Line2D([], [], color="0.2", markersize=4, label=name, **look) for name, look in looks.items()]
        page.legend(handles=lines, loc="outside lower right", ncols=3, title="method", alignment="left")
        page.suptitle(title, fontsize=9)
        page.savefig(path)
        plt.close(page)


def save(rows, traces, skipped, setup, out):
    """convergence.csv, a line a run, and convergence.json, with the curves."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "convergence.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    runs = []
    for values, (_, trace) in zip(rows, traces, strict=True):
        at = np.unique(np.linspace(0, len(trace) - 1, ROWS).astype(int))
        curve = {name: getattr(trace, name)[at].tolist() for name in ("step", "error", "bits_up")}
        runs.append({**values, "curve": curve})
    plain = {**setup, "runs": runs, "skipped": skipped}
    (out / "convergence.json").write_text(json.dumps(_finite(plain), allow_nan=False) + "\n")


def _finite(plain):
    """With None for what JSON has no number for: the errors of a run that diverged."""
    if isinstance(plain, dict):
        return {name: _finite(value) for name, value in plain.items()}
    if isinstance(plain, list):
        return [_finite(value) for value in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def run(args):
    """Every method with every compressor; the exit status is 0 where at least one pair went together."""
    classes, chosen = methods(args.methods), compressors(args.compressors)
    if not 0 < args.until < 1:
        raise ValueError(f"--until must lie in (0, 1), got {args.until}")
    if args.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {args.workers}")
    comm = compress.MPI(args.workers) if args.mpi else compress.Local(args.workers)
    made = problem(args.problem, args.workers, args.shards, args.condition, args.seed)
    x0 = np.zeros(made.d, args.dtype)
    first, screen = comm.process == 0, console()
    pairs = [pair(cls, C, made, x0, args.gamma) for cls in classes for C in chosen]
    traces = []
    for each in pairs:
        if each.method is None:
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            key, options = compress.Key(args.seed), {"steps": args.steps, "until": args.until}
            trace = compress.run(each.method, made, comm, x0, key, progress=args.progress, **options)
        said = "; ".join(filter(None, [each.note, *(str(warning.message) for warning in caught)]))
        traces.append((replace(each, note=said), trace))
    skipped = {}
    for each in pairs:
        if each.method is None:
            skipped.setdefault(f"{short(each.compressor)}: {each.note}", []).append(each.name)
    if not first:
        return int(not traces)
    setup = {"problem": args.problem, "n": made.n, "d": made.d, "L": made.L, "mu": made.mu, "L_max": made.L_max}
    setup |= {"shards": args.shards, "dtype": args.dtype, "seed": args.seed, "until": args.until}
    title = f"{args.problem}, {args.shards} shards, " if args.problem != "quadratic" else "quadratic, "
    title += f"n = {made.n}, d = {made.d}, L / mu = {made.L / made.mu:.4g}, L_max / L = {made.L_max / made.L:.3g}"
    if traces:
        rows = [row(each, trace, made.d, args.until) for each, trace in traces]
        table(rows, title, args.until, screen)
        save(rows, traces, skipped, setup, args.out)
        figure(traces, title, args.until, args.out / "convergence.png")
    for reason, names in skipped.items():
        screen.print(f"skipped for {', '.join(names)}: {reason}", highlight=False)
    if traces:
        screen.print(f"saved convergence.csv, .json and .png in {args.out}")
    return int(not traces)
