"""Shulgin, Richtarik: Shifted Compression Framework: Generalizations and Improvements (UAI 2022). Twelve statements,
each with the figure measured here by the steps of compress.optimizers.shifted.

The set-up is the paper's: ridge regression f(x) = ||Ax - y||^2 / 2 + lam/2 ||x||^2 on scikit-learn's make_regression,
m = 100, d = 80, lam = 1/m, rows split at random over n = 10 workers, x^0 ~ N(0, 10 I), theoretical step sizes. Rand-K
has q = K/d and sends K float32 values. Errors are ||x^k - x*||^2 / ||x^0 - x*||^2, bits those that one worker sent.

The paper prints curves. Numbers come from an independent implementation in dense NumPy, of one run each, on data that
NumPy's generator drew from the law of make_regression; `Setup.reference` makes the same data and start. Its Rand-K
draws other sets, and over such draws the steps to an accuracy have a standard deviation of 6% to 10%: hence the wide
bars on ratios of single runs.
"""

import math

import numpy as np

import compress
from compress.data import make_regression, split

from .. import console
from . import Check, report, stepwise

M, D, N = 100, 80, 10
SHARES, GRID = (0.1, 0.3, 0.9), tuple(q / 10 for q in range(1, 10))  # of q; the grid with --full
Q = 0.3  # where a statement is about one q
RUNS, STEPS = 20, 2000  # that bounds of expectations are held against
EXACT = {
    "DCGD-STAR": compress.DCGDStar,
    "DIANA": compress.DIANA,
    "Rand-DIANA": compress.RandDIANA,
    "VR-GDCI": compress.VRGDCI,
}
CLASSES = {"DCGD": compress.DCGD, "GDCI": compress.GDCI, **EXACT, "EF21": compress.EF21, "MARINA": compress.MARINA}
DETERMINISTIC = ("EF14", "EF21")  # Top-K draws nothing
LEVELS = (1e-4, 1e-8, 1e-12)
# q: steps to 1e-8 of the independent implementation
REFERENCE = {
    0.1: {"DCGD-STAR": 8189, "DIANA": 36913, "Rand-DIANA": 37276, "VR-GDCI": 36875},
    0.3: {"DCGD-STAR": 2957, "DIANA": 10649, "Rand-DIANA": 10779, "VR-GDCI": 10640},
}
REFERENCE_EF21 = 39019  # steps to 1e-4 with Top-K, q = 0.1: nothing is drawn


class Setup:
    """A problem, a start, and the runs from it: each is made when first asked for, and kept."""

    def __init__(self, A, y, parts, x0):
        self.problem = compress.Ridge(A, y, lam=1 / M, parts=parts, mean=False)
        self.x0 = x0
        self.distance = float(np.sum((x0 - self.problem.x_star) ** 2))
        self._known = {}

    @classmethod
    def paper(cls):
        return cls(*make_regression(M, D), split(M, N), np.random.default_rng(0).normal(0, math.sqrt(10), D))

    @classmethod
    def reference(cls):
        rng = np.random.default_rng(0)
        A, x = rng.standard_normal((M, D)), np.zeros(D)
        values = 100 * rng.random(10)
        x[rng.choice(D, 10, replace=False)] = values
        parts = np.array_split(rng.permutation(M), N)
        return cls(A, A @ x, parts, math.sqrt(10) * rng.standard_normal(D))

    def method(self, cls, q=Q, **parameters):
        """At its theoretical step sizes, with Rand-K, or Top-K where the method takes contractive compressors."""
        C = compress.RandK(q) if cls.needs is compress.Unbiased else compress.TopK(q)
        return cls.theoretical(self.problem, C, **parameters)

    def trace(self, method, until=0.0, steps=10**6, seed=0):
        """A run to an error of `until`, or of so many steps, or longer."""
        known = self._known.get((method, seed))
        if known is None or not (known.error.min() <= until or len(known) > steps):
            key, comm = compress.Key(seed), compress.Local(N)
            known = compress.run(method, self.problem, comm, self.x0, key, steps=steps, until=until)
            self._known[method, seed] = known
        return known

    def steps(self, method, error=1e-8):
        return self.trace(method, error).at(error).step

    def mbit(self, method, error=1e-8):
        return self.trace(method, error).at(error).bits_up / N / 1e6

    def bound(self, method, k):
        """Of the expected error."""
        return method.bound(self.problem, self.x0, k) / self.distance

    def constants(self):
        p = self.problem
        return f"L = {p.L:.1f}, mu = {p.mu:.3f}, L_max = {p.L_max:.0f}, kappa = {p.L / p.mu:.0f}"


def listed(values, form):
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())


def expectations(setup, shares, full):
    """Means of 20 runs against the bounds"""
    curves = {}
    for q in shares:
        C, B = compress.RandK(q), compress.TopK(q)
        methods = {name: setup.method(cls, q) for name, cls in CLASSES.items()}
        methods["EF14"] = setup.method(compress.EF14, q)
        if full:
            shifts = np.array([setup.problem.gradient(i, setup.x0) for i in range(N)])
            methods["DCGD-SHIFT"] = compress.DCGDShift.theoretical(setup.problem, C, shifts)
            for name in ("DCGD-STAR", "DIANA"):
                methods[f"{name}, induced"] = EXACT[name].theoretical(setup.problem, compress.Induced(B, C))
        for name, method in methods.items():
            runs = 1 if name in DETERMINISTIC else RUNS
            errors = [setup.trace(method, steps=STEPS, seed=seed).error[: STEPS + 1] for seed in range(runs)]
            curves[name, q] = np.mean(errors, axis=0), setup.bound(method, np.arange(STEPS + 1))
    worst = {}
    for (name, _), (mean, bound) in curves.items():
        worst[name] = max(worst.get(name, 0), (mean / bound)[1:].max())
    return curves, Check(
        f"The bounds of all methods hold: the mean of {RUNS} runs is below them at each of the first {STEPS:,} steps "
        f"(one run of EF14 and EF21 with Top-K, which draws nothing; q = {', '.join(map(str, shares))})",
        f"largest mean / bound after the start: {listed(worst, '.3f')}",
        all(np.all(mean <= bound * (1 + 1e-12)) for mean, bound in curves.values()),  # at the start some are equal
    )


def neighbourhoods(setup, shares):
    """Where DCGD and GDCI stall"""
    problem, measured, gaps, products = setup.problem, {}, [], []
    for q in shares:
        dcgd, gdci = setup.method(compress.DCGD, q), setup.method(compress.GDCI, q)
        for method, rate in ((dcgd, dcgd.gamma * problem.mu), (gdci, gdci.eta)):
            errors = setup.trace(method, steps=round(12 / rate)).error
            measured[q, type(method).__name__] = errors[len(errors) // 2 :].mean(), setup.bound(method, math.inf)
        gaps.append(measured[q, "GDCI"][0] / measured[q, "DCGD"][0])
        products.append(gdci.gamma * problem.mu)

    def distance(x):
        return np.sum((x - problem.x_star) ** 2) / setup.distance

    full, means = setup.method(compress.DCGD, 0.9), {}
    for gamma in (full.gamma, full.gamma / 2, full.gamma / 4):
        steps, method = round(8 / (gamma * problem.mu)), compress.DCGD(full.compressor, gamma)
        trace = compress.run(method, problem, compress.Local(N), problem.x_star, steps=steps, error=distance)
        means[gamma] = trace.error[steps // 4 :].mean()
    exponent = np.polyfit(np.log(list(means)), np.log(list(means.values())), 1)[0]
    return Check(
        "DCGD and GDCI stall, below their bounds; DCGD's neighbourhood is linear in gamma (exponent 0.8 to 1.2, "
        "q = 0.9), GDCI's is more than 100 x larger, at the largest eta, where gamma mu = 1",
        "; ".join(f"{name} {floor:.1e}, bound {bound:.1e} (q = {q})" for (q, name), (floor, bound) in measured.items())
        + f"; gamma^{exponent:.2f}; GDCI over DCGD: "
        + ", ".join(f"{gap:.0f} x" for gap in gaps)
        + "; gamma mu "
        + ", ".join(f"{product:.12g}" for product in products),
        all(floor < bound for floor, bound in measured.values())
        and 0.8 < exponent < 1.2
        and min(gaps) > 100
        and np.allclose(products, 1, rtol=1e-12, atol=0),
    )


def linear(setup, shares):
    """To 1e-12 at theoretical step sizes"""
    promised, straight = {}, []
    for name, cls in EXACT.items():
        for q in shares:
            method = setup.method(cls, q)
            first, second, third = (setup.steps(method, error) for error in LEVELS)
            straight.append((third - second) / (second - first))
            rate = -math.log(setup.bound(method, 1) / setup.bound(method, 0))
            promised.setdefault(name, []).append(third * rate / math.log(setup.bound(method, 0) / LEVELS[-1]))
    return Check(
        "DCGD-STAR, DIANA, Rand-DIANA and VR-GDCI reach 1e-12 linearly at theoretical step sizes, in fewer steps than "
        f"their bounds say; from 1e-8 on they are as fast as before, within 25% (q = {', '.join(map(str, shares))})",
        "steps over the bound's: "
        + ", ".join(f"{name} {min(each):.2f} to {max(each):.2f}" for name, each in promised.items())
        + f"; steps from 1e-8 to 1e-12 over those from 1e-4 to 1e-8: {min(straight):.2f} to {max(straight):.2f}",
        max(map(max, promised.values())) < 1 and 0.8 <= min(straight) and max(straight) <= 1.25,
    )


def benchmark(setup, shares):
    """DCGD-STAR, which knows x*"""
    best, gains, steps = True, [], []
    for q in shares:
        star, *others = (setup.method(cls, q) for cls in EXACT.values())
        best &= all(setup.steps(star) < setup.steps(other) and setup.mbit(star) < setup.mbit(other) for other in others)
        gains.append(setup.steps(others[0]) / setup.steps(star))
        steps.append(star.gamma / others[0].gamma)
    return Check(
        "DCGD-STAR is the fastest of the four in steps and bits to 1e-8, by about the ratio of step sizes (within 35%)",
        "fewer steps than DIANA: "
        + ", ".join(f"{g:.2f} x, step sizes {s:.2f} x (q = {q})" for g, s, q in zip(gains, steps, shares, strict=True)),
        best and all(abs(g / s - 1) < 0.35 for g, s in zip(gains, steps, strict=True)),
    )


def same_steps(setup, shares):
    """Rand-DIANA and VR-GDCI beside DIANA"""
    first = {}
    for name in ("DIANA", "Rand-DIANA"):
        method = setup.method(EXACT[name])
        first[name] = np.array([setup.trace(method, 1e-3, seed=seed).at(1e-3).step for seed in range(RUNS)])
    ratio = first["Rand-DIANA"].mean() / first["DIANA"].mean()
    spread = (first["Rand-DIANA"] - ratio * first["DIANA"]).std(ddof=1) / math.sqrt(RUNS) / first["DIANA"].mean()
    diana, rand, vr = ([setup.method(EXACT[name], q) for q in shares] for name in ("DIANA", "Rand-DIANA", "VR-GDCI"))
    bits = [setup.mbit(b) / setup.steps(b) / (setup.mbit(a) / setup.steps(a)) for a, b in zip(diana, rand, strict=True)]
    off = [setup.steps(b) / setup.steps(a) - 1 for a, b in zip(diana, vr, strict=True)]
    return [
        Check(
            "Rand-DIANA with p = 1/(1 + omega) takes as many steps as DIANA within 2%, and 2 x the bits a step: 32 p d "
            "for refreshes are Rand-K's own 32 K (steps: "
            f"means of {RUNS} runs to 1e-3, 2 standard errors aside; q = {Q})",
            f"steps {ratio:.3f} x, standard error {spread:.3f}; bits a step "
            + ", ".join(f"{b:.2f} x (q = {q})" for b, q in zip(bits, shares, strict=True)),
            abs(ratio - 1) <= 0.02 + 2 * spread and all(abs(b / 2 - 1) < 0.03 for b in bits),
        ),
        Check(
            "VR-GDCI takes as many steps to 1e-8 as DIANA within 1%",
            ", ".join(f"{o:+.2%} (q = {q})" for o, q in zip(off, shares, strict=True)),
            all(abs(o) <= 0.01 for o in off),
        ),
    ]


def sweep_p(setup):
    """Rand-DIANA: the probability of a refresh"""
    diana = setup.mbit(setup.method(compress.DIANA))
    bits = {p: setup.mbit(setup.method(compress.RandDIANA, p=p * Q)) for p in (1, 0.1, 0.02)}  # Q = 1/(1 + omega)
    return (diana, bits), Check(
        "A smaller p than 1/(1 + omega) wins Rand-DIANA's bits back: at 0.02/(1 + omega) they are at most 1.15 x "
        f"DIANA's (to 1e-8, q = {Q})",
        f"Mbit: DIANA {diana:.2f}, Rand-DIANA "
        + ", ".join(f"{b:.2f} (p = {p:g}/(1 + omega))" for p, b in bits.items()),
        bits[0.02] < 1.15 * diana and all(b < bits[1] for p, b in bits.items() if p < 1),
    )


def sweep_b(setup, error):
    """DIANA and Rand-DIANA: the multiplier b"""
    steps, off = {}, []
    for name in ("DIANA", "Rand-DIANA"):
        methods = {b: setup.method(EXACT[name], b=b) for b in (1.2, 2, 10)}
        steps[name] = {b: setup.steps(method, error) for b, method in methods.items()}
        product = {b: steps[name][b] * method.gamma for b, method in methods.items()}
        off += [p / product[2] - 1 for p in product.values()]
    return steps, Check(
        "A larger b slows DIANA and Rand-DIANA down as gamma falls, gamma = 1/(L + 2 (1 + b) omega L_max / n): steps "
        f"to {error:.0e} times gamma are the same for every b (within 20%, q = {Q})",
        "; ".join(f"{name}: " + ", ".join(f"{s:,} (b = {b:g})" for b, s in row.items()) for name, row in steps.items())
        + f"; steps x gamma {min(off):+.0%} to {max(off):+.0%} of b = 2's",
        max(map(abs, off)) <= 0.2,
    )


def induced(setup):
    """C + Q(. - C)"""
    both = compress.Induced(compress.TopK(Q), compress.RandK(Q))
    rng = np.random.default_rng(0)
    inputs = {"ones": np.ones(D), "normal": rng.standard_normal(D), "student t2": rng.standard_t(2, D)}
    measured = {name: compress.measure(both, x, trials=300) for name, x in inputs.items()}
    bias = max(m.bias / m.bias_se for m in measured.values())
    omega, flat = both.omega(D), measured["ones"]
    plain, method = setup.method(compress.DIANA), compress.DIANA.theoretical(setup.problem, both)
    return Check(
        "C(v) + Q(v - C(v)) is unbiased with omega (1 - delta) for omega, reached where all |v_j| are equal, and "
        f"DIANA takes fewer steps with it, at the bits of two messages (Top-K and Rand-K, K/d = {Q}, to 1e-8)",
        f"omega (1 - delta) {omega:.3f}, measured: "
        + ", ".join(f"{name} {m.nmse:.3f}" for name, m in measured.items())
        + f"; bias at most {bias:.1f} standard errors; steps {setup.steps(method):,}, DIANA's {setup.steps(plain):,}; "
        f"Mbit {setup.mbit(method):.2f}, DIANA's {setup.mbit(plain):.2f}",
        abs(flat.nmse - omega) <= 4 * flat.nmse_se + 1e-6
        and all(m.nmse <= omega + 4 * m.nmse_se for m in measured.values())
        and bias < 4
        and setup.steps(method) < setup.steps(plain),
    )


def neighbours(setup):
    """EF21 and MARINA beside DIANA"""
    methods = {name: setup.method(CLASSES[name]) for name in ("DIANA", "EF21", "MARINA")}
    for method in methods.values():
        setup.trace(method, LEVELS[1], setup.steps(methods["DIANA"]))  # what the figure shows of them
    steps = {name: setup.steps(method, LEVELS[0]) for name, method in methods.items()}
    mbit = {name: setup.mbit(method, LEVELS[0]) for name, method in methods.items()}
    return Check(
        "Of the three that learn at theoretical step sizes, EF21 with Top-K is the most conservative: 2 to 4 x DIANA's "
        f"steps to 1e-4, where MARINA takes fewer than DIANA (q = {Q})",
        f"steps {listed(steps, ',')}; Mbit {listed(mbit, '.2f')}",
        2 < steps["EF21"] / steps["DIANA"] < 4 and steps["MARINA"] < steps["DIANA"],
    )


def dithering(setup, levels):
    """Natural dithering"""
    steps = {}
    for s in levels:
        C = compress.NaturalDithering(s)
        for name, cls in EXACT.items():
            steps[name, s] = setup.steps(cls.theoretical(setup.problem, C))
    return Check(
        "With natural dithering of s levels the four go to 1e-8 too, DCGD-STAR first",
        "; ".join(f"s = {s}: " + ", ".join(f"{name} {steps[name, s]:,}" for name in EXACT) for s in levels),
        all(min(EXACT, key=lambda name: steps[name, s]) == "DCGD-STAR" for s in levels),
    )


def against_reference(setup, other, screen, full):
    """The table of the independent implementation"""
    from rich import box
    from rich.table import Table

    title = f"Steps to 1e-8, Mbit a worker, and steps over DIANA's. Here {setup.constants()}; there {other.constants()}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in ("method", "q", "steps here", "Mbit", "/ DIANA", "steps there", "/ DIANA", "ratio of ratios"):
        table.add_column(column, justify="left" if column == "method" else "right")
    off = {}
    for q, reference in REFERENCE.items():
        diana = setup.steps(setup.method(compress.DIANA, q))
        for name, there in reference.items():
            method = setup.method(EXACT[name], q)
            ours, theirs = setup.steps(method) / diana, there / reference["DIANA"]
            off[name, q] = ours / theirs - 1
            counts = f"{setup.steps(method):,}", f"{setup.mbit(method):.2f}", f"{ours:.3f}", f"{there:,}"
            table.add_row(name, f"{q:g}", *counts, f"{theirs:.3f}", f"{ours / theirs:.3f}")
    screen.print(table)
    seeds = range(5 if full else 1)

    def mean(method):
        return np.mean([other.trace(method, LEVELS[1], seed=seed).at(LEVELS[1]).step for seed in seeds])

    same = {
        f"{name} {there:,} (q = {q})": mean(other.method(EXACT[name], q)) / there - 1
        for q, reference in REFERENCE.items()
        for name, there in reference.items()
        if full or (q == Q and name in ("DCGD-STAR", "DIANA"))
    }
    if full:
        ef21 = other.steps(other.method(compress.EF21, 0.1), LEVELS[0])
        same[f"EF21 to 1e-4 {REFERENCE_EF21:,} (q = 0.1)"] = ef21 / REFERENCE_EF21 - 1
    return Check(
        "Order and ratios to DIANA's steps are those of the independent implementation on its data, within 25%; on the "
        f"same data and start so are the steps (runs: {len(seeds)})"
        + (", and EF21's, which draws nothing, to the step" if full else ""),
        f"ratios off by {min(off.values()):+.0%} to {max(off.values()):+.0%}; same data, over theirs: "
        + ", ".join(f"{name} {value:+.1%}" for name, value in same.items()),
        max(map(abs, off.values())) <= 0.25
        and max(map(abs, same.values())) <= 0.25
        and (not full or ef21 == REFERENCE_EF21),
    )


def figures(setup, shares, curves, p_sweep, b_sweep, error, out):
    """Errors against bits and steps; sweeps; means against bounds. Returns the paths."""
    from ..plot import MARKERS, SAFE, STYLE, plt

    relative = r"$\|x^k - x^*\|^2 / \|x^0 - x^*\|^2$"
    looks = {n: {"color": c, "marker": m} for n, c, m in zip(CLASSES, SAFE, MARKERS, strict=False)}
    looks["VR-GDCI"]["linestyle"] = "--"  # on DIANA's curve
    paths = [out / f"shifted{part}.png" for part in ("", "_sweeps", "_bounds")]
    with plt.rc_context(STYLE):
        page, axes = plt.subplots(1, 2, figsize=(9.6, 4.4), sharey=True, layout="constrained")
        for axis, column in zip(axes, ("bits_up", "step"), strict=True):
            for name, cls in CLASSES.items():
                trace = setup.trace(
                    setup.method(cls), steps=1
                )  # as far as it was followed; to 1e-8 if it does not stall
                reached = None if name in ("DCGD", "GDCI") else trace.at(LEVELS[1])
                end = reached and reached.step + 1
                marks = np.unique(np.geomspace(1, len(trace.error[1:end]), 9).astype(int)) - 1
                x = getattr(trace, column)[1:end] * (1e-6 / N if column == "bits_up" else 1)
                look = {"markevery": marks.tolist(), "markersize": 4, "label": name, **looks[name]}
                axis.plot(x, trace.error[1:end], **look)
        axes[0].set(xscale="log", yscale="log", xlabel="Mbit sent per worker", ylabel=relative)
        axes[1].set(xscale="log", xlabel="step k")
        page.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
        page.suptitle(
            f"Ridge regression, m = {M}, d = {D}, n = {N}, Rand-K (EF21: Top-K) with K/d = {Q}, theoretical step sizes"
        )
        page.savefig(paths[0])
        plt.close(page)

        page, (over_p, over_b, over_q) = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained")
        diana, rand = p_sweep
        over_p.plot(rand.keys(), rand.values(), markersize=4, label="Rand-DIANA", **looks["Rand-DIANA"])
        over_p.axhline(diana, color=looks["DIANA"]["color"], linestyle="--", label="DIANA")
        over_p.set(xscale="log", xlabel=r"$p\,(1 + \omega)$", ylabel="Mbit per worker to 1e-8", ylim=(0, None))
        over_p.set_xticks(list(rand), [f"{p:g}" for p in rand])
        over_p.set_title(f"Probability p of a refresh, q = {Q}")
        for name, steps in b_sweep.items():
            over_b.plot(steps.keys(), steps.values(), markersize=4, label=name, **looks[name])
        b = np.geomspace(1.1, 12)
        gammas = np.array([setup.method(compress.DIANA, b=value).gamma for value in b])
        law = setup.method(compress.DIANA).gamma * b_sweep["DIANA"][2] / gammas
        over_b.plot(b, law, color="0.6", linestyle=":", label=r"$\propto 1/\gamma$ from b = 2")
        over_b.set(xscale="log", xlabel="b", ylabel=f"steps to {error:.0e}", ylim=(0, None))
        over_b.set_title(f"Multiplier b of M, q = {Q}")
        over_b.set_xticks(list(b_sweep["DIANA"]), [f"{value:g}" for value in b_sweep["DIANA"]])
        for name, cls in EXACT.items():
            bits = [setup.mbit(setup.method(cls, q)) for q in shares]
            over_q.plot(shares, bits, markersize=4, label=name, **looks[name])
        over_q.set(xlabel="q = K/d", ylabel="Mbit per worker to 1e-8", ylim=(0, None), title="Share q of coordinates")
        for axis in (over_p, over_b, over_q):
            axis.minorticks_off()
            axis.legend()
        page.savefig(paths[1])
        plt.close(page)

        names = list(dict.fromkeys(name for name, _ in curves))
        page, axes = plt.subplots(
            3, len(names) // 3, figsize=(9.6, 6.6), sharex=True, sharey=True, layout="constrained"
        )
        for axis, name in zip(axes.flat, names, strict=True):
            mean, bound = curves[name, Q]
            axis.plot(bound, color="crimson", label="bound")
            label = "one run: nothing is drawn" if name in DETERMINISTIC else f"mean of {RUNS} runs"
            axis.plot(mean, color=SAFE[0], label=label)
            axis.set(yscale="log", title=name)
            axis.legend(loc="lower left")
        for axis in axes[-1]:
            axis.set_xlabel("step k")
        for axis in axes[:, 0]:
            axis.set_ylabel(relative)
        page.savefig(paths[2])
        plt.close(page)
    return paths


def run(out, full=False):
    shares = GRID if full else SHARES
    setup, screen = Setup.paper(), console()
    b_error = LEVELS[1] if full else LEVELS[0]
    with stepwise(screen, total=11) as step:
        # the longest runs first: others are their beginnings
        some = shares if full else [Q]
        exact, stalls, others = step(linear, setup, shares), step(neighbourhoods, setup, some), step(neighbours, setup)
        curves, bounds = step(expectations, setup, some, full)
        checks = [bounds, stalls, exact, step(benchmark, setup, shares), *step(same_steps, setup, shares)]
        p_sweep, over_p = step(sweep_p, setup)
        b_sweep, over_b = step(sweep_b, setup, b_error)
        checks += [over_p, over_b, step(induced, setup), others, step(dithering, setup, (2, 4, 8) if full else (8,))]
        checks.append(step(against_reference, setup, Setup.reference(), screen, full))
    status = report("Shifted compression: what can be checked", checks, screen)
    out.mkdir(parents=True, exist_ok=True)
    for path in figures(setup, shares, curves, p_sweep, b_sweep, b_error, out):
        screen.print(f"saved {path}")
    return status
