"""Safaryan, Shulgin, Richtarik: Uncertainty Principle for Communication Compression in Distributed and Federated
Learning and the Search for an Optimal Compressor (2022). Seven statements, each with the figure measured here.

Statements 3 and 7 are about the paper's own construction: a dense random orthogonal frame and the clip iteration of
Lyubarskii and Vershynin. It costs O(d D) a pass, so it lives in this script only; the package's Kashin uses a
randomised Hadamard frame and null-space descent, and is what the other statements measure.
"""

import math
from dataclasses import dataclass

import numpy as np

import compress

from .. import console, frontier
from . import Check, report, stepwise

D = 1000  # the dimension of statements 1, 4, 5 and 6
SIZES = [2**p for p in range(8, 15)]
REDUNDANCIES = (1.1, 1.25, 1.5, 2.0)


def inputs(d, seed=0):
    """Five directions: no tail, one spike, no spike at all, a heavy tail, half zeros."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(d)
    return {
        "normal": normal,
        "e1": np.eye(1, d)[0],
        "ones": np.ones(d),
        "student t2": rng.standard_t(2, d),
        "half zero": np.where(np.arange(d) % 2, rng.standard_normal(d), 0),
    }


def nmse(compressor, x, trials):
    """(mean of ||C(x) - x||^2 / ||x||^2, bits a coordinate from the bytes), every trial a new round."""
    error, sent = 0.0, 0
    for trial in range(trials):
        key = compress.Key(0).at(round=trial).worker(0)
        message = compressor.encode(x, key)
        error += np.sum((compressor.decode(message, key) - x) ** 2)
        sent += 8 * message.payload.nbytes
    return error / trials / (x @ x), sent / trials / x.size


def worst(compressor, d, trials):
    """The largest NMSE over the five inputs, and the most bits."""
    measured = [nmse(compressor, x, trials) for x in inputs(d).values()]
    return max(e for e, _ in measured), max(b for _, b in measured)


def uncertainty(trials=40):
    """1. No compressor is below the bound where the input is the worst of five."""
    points = []
    for instances in frontier.sweep().values():
        for c in instances:
            try:
                error, bits = worst(c, D, trials)
            except ValueError:  # a parameter that does not fit d
                continue
            unbiased = frontier.kind(c) == "unbiased"
            alpha = error / (1 + error) if unbiased else error
            proven = frontier.proven_product(c, D, bits)
            points.append((frontier.name(c), frontier.family(c), unbiased, bits, alpha, proven))
    lossy = [p for p in points if p[4] > 1e-12]
    lowest = min(lossy, key=lambda p: p[4] * 4 ** p[3])
    proofs = [p for p in points if p[5] is not None]
    lowest_proof = min(proofs, key=lambda p: p[5])
    return points, Check(
        f"No compressor beats the bound: alpha 4^(b/d) >= 1, with alpha = omega/(1 + omega) where it is unbiased "
        f"(d = {D}; measured on the worst of 5 inputs, and proven constants)",
        f"least measured {lowest[4] * 4 ** lowest[3]:.3f}, {lowest[0]}; least proven {lowest_proof[5]:.4f}, "
        f"{lowest_proof[0]}; {len(lossy)} compressors",
        lowest[4] * 4 ** lowest[3] >= 1 and lowest_proof[5] >= 1,
    )


def dimension_free():
    """2. omega against d."""
    contenders = {
        "Kashin": compress.Kashin(3, 2.0),
        "ternary": compress.StandardDithering(1),
        "rotated": compress.Rotated(compress.StandardDithering(4, "linf")),
    }
    normal = [(inputs(d)["normal"], max(20, 400_000 // d)) for d in SIZES]
    curves = {label: [nmse(c, x, trials)[0] for x, trials in normal] for label, c in contenders.items()}
    spread = max(curves["Kashin"]) / min(curves["Kashin"]) - 1
    exponent = np.polyfit(np.log(SIZES), np.log(curves["ternary"]), 1)[0]
    logarithmic = np.corrcoef(np.log(SIZES), curves["rotated"])[0, 1]
    growth = curves["rotated"][-1] / curves["rotated"][0]
    return curves, Check(
        "omega of Kashin compression does not grow with d (within 10% for d = 2^8 .. 2^14, normal input), that of "
        "ternary l2 grows as sqrt d, that of rotation + uniform levels as log d",
        f"Kashin spread {spread:.1%}; ternary d^{exponent:.2f}; rotated x {growth:.2f}, correlation with log d "
        f"{logarithmic:.3f}",
        spread < 0.1 and abs(exponent - 0.5) < 0.05 and logarithmic > 0.97 and growth > 1.2,
    )


@dataclass(frozen=True)
class OrthogonalFrame:
    """U in R^{d x D}, U U' = I: d rows of a random orthogonal matrix, dense."""

    U: np.ndarray

    @classmethod
    def random(cls, d, redundancy, seed=0):
        size = round(redundancy * d)
        q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
        return cls((q * np.sign(np.diag(r)))[:d])  # with these signs q is uniform over the orthogonal matrices

    def represent(self, x, eta, delta, iterations):
        """The clip iteration of Lyubarskii and Vershynin, with the last pass unclipped so that U a = x exactly.
        Returns a, the residuals ||r_k|| / ||x|| for k = 0, 1, ..., and whether the k-th step clipped anything."""
        a, r = np.zeros(self.U.shape[1]), x.copy()
        level = np.linalg.norm(x) / math.sqrt(delta * self.U.shape[1])
        residuals, clipped = [1.0], []
        for _ in range(iterations):
            coefficients = r @ self.U
            step = np.clip(coefficients, -level, level)
            clipped.append(bool(np.any(step != coefficients)))
            a += step
            r = r - self.U @ step
            level *= eta
            residuals.append(np.linalg.norm(r) / np.linalg.norm(x))
        return a + r @ self.U, np.array(residuals), clipped

    def omega(self, x, levels, eta, delta, iterations, trials, seed=0):
        """NMSE of rounding the representation without bias to `levels` grid points on [-m, m], m = max |a_i|."""
        rng = np.random.default_rng(seed)
        a, _, _ = self.represent(x, eta, delta, iterations)
        m = np.abs(a).max()
        step = 2 * m / (levels - 1)
        cell = np.floor((a + m) / step)
        up = rng.random((trials, a.size)) < (a + m) / step - cell
        error = ((cell + up) * step - m) @ self.U.T - x
        return np.mean(np.sum(error**2, axis=1)) / (x @ x)


def input_free(d=256, redundancy=2.0, frames=8):
    """3. omega against the input, for the paper's frame."""
    spreads = {}
    for levels in (2, 3):
        omega = {}
        for seed in range(frames):
            frame = OrthogonalFrame.random(d, redundancy, seed)
            for label, x in inputs(d, seed).items():
                omega.setdefault(label, []).append(frame.omega(x, levels, 0.6, 2.0, 20, 200, seed))
        means = {label: np.mean(v) for label, v in omega.items()}
        spreads[levels] = (min(means.values()), max(means.values()))
    flat = compress.Kashin(2, 2.0)
    aligned = nmse(flat, inputs(d)["e1"], 50)[0]
    return Check(
        f"omega is the same for every input (within 10%) with the orthogonal frame (dense here, d = {d}, redundancy "
        f"{redundancy:g}, clip iteration, 5 inputs, {frames} frames)",
        "; ".join(f"L = {L}: {low:.3f} .. {high:.3f}" for L, (low, high) in spreads.items())
        + f". The Hadamard frame of the package at L = 2: {nmse(flat, inputs(d)['normal'], 50)[0]:.3f} on normal, "
        f"{aligned:.3f} on e1, which it spreads flat",
        all(high / low < 1.1 for low, high in spreads.values()),
    )


def against_ternary(trials=200):
    """4. Kashin against ternary at about two bits."""
    kashin, ternary = compress.Kashin(3, 1.25), compress.StandardDithering(1)
    (ours, our_bits), (theirs, their_bits) = worst(kashin, D, trials), worst(ternary, D, trials)
    return Check(
        f"At 1.6 - 2.4 bits a coordinate the worst-case omega of Kashin is more than 10 x below ternary l2's (d = {D})",
        f"worst of 5 inputs: Kashin {ours:.2f} at {our_bits:.2f} bits, ternary {theirs:.1f} at {their_bits:.2f}, "
        f"{theirs / ours:.0f} x; proven: {kashin.omega(D):.2f} and {ternary.omega(D):.1f}",
        theirs / ours > 10 and ternary.omega(D) / kashin.omega(D) > 10 and our_bits <= 2.4,
    )


def monotone(trials=200):
    """5. omega against redundancy."""
    rows = {L: [worst(compress.Kashin(L, r), D, trials)[0] for r in REDUNDANCIES] for L in (2, 3, 8)}
    return Check(
        f"omega falls with the redundancy at a fixed number of levels (redundancy {', '.join(map(str, REDUNDANCIES))})",
        "; ".join(f"L = {L}: " + ", ".join(f"{w:.3g}" for w in row) for L, row in rows.items()),
        all(np.all(np.diff(row) < 0) for row in rows.values()),
    )


def gradient_descent(compressor, condition=10.0, target=1e-6, seed=0):
    """Compressed gradient descent x <- x - gamma C(grad f(x)), gamma = 1 / (L (1 + omega)) with the proven omega, on
    f(x) = x'Ax / 2 - b'x in R^D. Returns cumulative bits and relative suboptimality after every step."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((D, D)))
    A = q * np.geomspace(1 / condition, 1, D) @ q.T  # L = 1
    solution = rng.standard_normal(D)
    x = np.zeros(D)
    gamma = 1 / (1 + compressor.omega(D))
    bits, gaps = [0], [1.0]
    start = solution @ A @ solution
    while gaps[-1] > target and len(gaps) < 20_000:
        gradient = (A @ (x - solution)).astype(np.float32)
        key = compress.Key(seed).at(round=len(gaps)).worker(0)
        message = compressor.encode(gradient, key)
        x -= gamma * compressor.decode(message, key)
        bits.append(bits[-1] + 8 * message.payload.nbytes)
        gaps.append((x - solution) @ A @ (x - solution) / start)
    return np.array(bits), np.array(gaps)


def descent():
    """6. Bits to an accuracy."""
    contenders = {
        "Kashin, 3 levels, 1.25": compress.Kashin(3, 1.25),
        "Kashin, 2 levels, 1.25": compress.Kashin(2, 1.25),
        "ternary l2": compress.StandardDithering(1),
        "ternary linf": compress.TernGrad(),
        "natural": compress.NaturalCompression(),
        "no compression": compress.Identity(),
    }
    runs = {label: gradient_descent(c) for label, c in contenders.items()}
    needed = {label: bits[-1] / 1e6 for label, (bits, _) in runs.items()}
    finished = all(gaps[-1] <= 1e-6 for _, gaps in runs.values())
    kashin = min(v for k, v in needed.items() if k.startswith("Kashin"))
    ternary = min(v for k, v in needed.items() if k.startswith("ternary"))
    return runs, Check(
        f"Compressed gradient descent with gamma = 1/(L(1 + omega)) reaches 1e-6 in fewer bits with Kashin than with "
        f"ternary (quadratic, d = {D}, condition number 10)",
        "Mbit: " + ", ".join(f"{label} {v:.2f}" for label, v in needed.items()) + f"; {ternary / kashin:.1f} x fewer",
        finished and kashin < ternary,
    )


def residuals(d=256, redundancy=2.0, iterations=30):
    """7. Geometric decay and exactness."""
    frame = OrthogonalFrame.random(d, redundancy)
    curves, ratio, exact = {}, 0.0, 0.0
    for eta, delta in ((0.9, 1.0), (0.6, 1.5)):
        worst_curve = np.zeros(iterations + 1)
        for x in inputs(d).values():
            a, r, clipped = frame.represent(x, eta, delta, iterations)
            active = [k for k in range(1, iterations + 1) if all(clipped[:k])]
            ratio = max([ratio, *(r[k] / eta**k for k in active)])
            exact = max(exact, np.linalg.norm(frame.U @ a - x) / np.linalg.norm(x))
            worst_curve = np.maximum(worst_curve, r)
        curves[eta, delta] = worst_curve
    return curves, Check(
        "While clipping is active the residual falls at least as eta^k; the last, unclipped pass makes U a = x exact "
        "(< 1e-12). Orthogonal frame, redundancy 2, (eta, delta) = (.9, 1) and (.6, 1.5), 5 inputs",
        f"largest residual / eta^k {ratio:.2f}; largest reconstruction error {exact:.1e}",
        ratio <= 1 and exact < 1e-12,
    )


def run(out, full=False):
    from ..plot import kashin_figure

    screen = console()
    with stepwise(screen, total=7) as step:
        points, first = step(uncertainty)
        omegas, second = step(dimension_free)
        third, fourth, fifth = step(input_free), step(against_ternary), step(monotone)
        runs, sixth = step(descent)
        decay, seventh = step(residuals)
    status = report(
        "Uncertainty principle and Kashin compression: what can be checked",
        [first, second, third, fourth, fifth, sixth, seventh],
        screen,
    )
    out.mkdir(parents=True, exist_ok=True)
    kashin_figure(points, SIZES, omegas, runs, decay, D, out / "kashin.png")
    screen.print(f"saved {out / 'kashin.png'}")
    return status
