"""Shulgin, Richtarik: Towards a Better Theoretical Understanding of Independent Subnetwork Training (ICML 2024). Nine
statements, each with the figure measured here by the steps of compress.optimizers.ist.

Quadratics: n = d = 10 unless said otherwise, A_i = Q_i diag(1 .. 10, evenly spaced on a log scale) Q_i' with random
rotations, b_i ~ N(0, I) or 0, x^0 ~ N(0, I); the paper's own matrices are not published. L is the mean of the A_i, and
||v||_L^2 = v'L v. Values travel as float64.

Network: two layers on scikit-learn's digits, 1437 images to train and 360 to test, relu, softmax, no bias of the
output, H hidden units. Worker i of n has its share of the images, and in each round H/n of the units, drawn by Perm-K:
their incoming weights, biases and outgoing weights are all that it is sent and trains, ten gradient steps a round.
"""

import math
import warnings

import numpy as np

import compress
from compress.data import load, split
from compress.optimizers.ist import IST, ShiftedIST, jacobi, scaled_permutation
from compress.sketches import Sketch

from .. import console
from . import Check, report, stepwise

N, KAPPA, WIRE = 10, 10.0, "float64"
GAMMAS = (1.0, 0.5, 0.2, 0.05)
HIDDEN, LOCAL_STEPS, RATE, WORKERS = 240, 10, 0.5, (1, 2, 4, 8, 16, 48)


def quadratic(n=N, d=N, zero=False, alike=False, seed=0):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((1 if alike else n, d, d)))[0]
    A = (Q * np.geomspace(1, KAPPA, d)) @ Q.transpose(0, 2, 1)
    A = np.broadcast_to((A + A.transpose(0, 2, 1)) / 2, (n, d, d))
    b = rng.standard_normal((1 if alike else n, d)) * (not zero)
    return compress.Quadratic(A, np.broadcast_to(b, (n, d)))


def start(d=N):
    return np.random.default_rng(1).standard_normal(d)


def iterates(method, problem, steps, seed=0, x0=None):
    """(steps + 1, d)."""
    comm, key = compress.Local(problem.n), compress.Key(seed)
    state = method.init(problem, comm, start(problem.d) if x0 is None else x0)
    out = np.empty((steps + 1, problem.d))
    for k in range(steps):
        out[k] = state.x
        state = method.step(problem, comm, state, key.at(k))
    out[steps] = state.x
    return out


def squared(x, L):
    """||x||_L^2 of rows."""
    return np.einsum("...i,ij,...j->...", x, L, x)


def one_step():
    """b = 0, scaled Perm-1"""
    ends, off = {}, 0.0
    for n in (10, 100):
        f = quadratic(n, n, zero=True)
        L, sketch = f.A.mean(axis=0), scaled_permutation(f, WIRE)
        ends[n] = squared(iterates(IST(sketch, 1.0), f, 1), L)
        for gamma in (0.5, 0.1):
            errors = squared(iterates(IST(sketch, gamma), f, 20), L)
            off = max(off, np.abs(errors / errors[0] / (1 - gamma) ** (2 * np.arange(21)) - 1).max())
    return Check(
        "b = 0, scaled Perm-1 (n = d): ||x||_L^2 falls by (1 - gamma)^2 a step (20 steps, within 1e-9), and at "
        "gamma = 1 is below 1e-25 after one step",
        "; ".join(f"n = {n}: {before:.3g}, then {after:.1e}" for n, (before, after) in ends.items())
        + f"; gamma = 0.5 and 0.1: within {off:.1e} of (1 - gamma)^2k for 20 steps",
        max(after for _, after in ends.values()) < 1e-25 and off < 1e-9,
    )


def homogeneous():
    """Workers alike"""
    f = quadratic(zero=True, alike=True)
    g = jacobi(f)
    method = IST.theoretical(g, compress.PermK(N, WIRE))
    before, after = squared(iterates(method, g, 1), g.A[0])
    same = quadratic(alike=True)
    one, other = (iterates(IST.theoretical(same, compress.PermK(N, WIRE)), same, 100, seed) for seed in (0, 1))
    spread = np.abs(one - other).max()
    return Check(
        "Workers alike: Perm-1 has no variance (two seeds take the same 100 steps, within 1e-13), and after "
        "preconditioning by Diag(L)^-1/2 its theoretical step size is 1/n and reaches x* = 0 in one step",
        f"seeds within {spread:.1e} over 100 steps; gamma n = {method.gamma * N:.12f}; ||x||_L^2 {before:.3g}, then "
        f"{after:.1e}",
        spread < 1e-13 and abs(method.gamma * N - 1) < 1e-9 and after < 1e-25,
    )


def remark():
    """Remark 1"""
    L = np.array([[10.0, 3.0], [3.0, 1.0]])
    f = compress.Quadratic(np.array([L, L]), np.zeros((2, 2)))
    W = np.diag(np.diag(L)) @ L + L @ np.diag(np.diag(L))
    x0 = np.linalg.eigh(W)[1][:, 0].copy()
    gamma = IST.theoretical(f, compress.PermK(2)).gamma
    rises = {}
    for share in (1.0, 0.1, 1e-3):
        before, after = (f.value(x) for x in iterates(IST(compress.PermK(2, WIRE), share * gamma), f, 1, x0=x0))
        rises[share] = after / before - 1
    end = iterates(IST(compress.PermK(2, WIRE), gamma), f, 2000, x0=x0)[-1]
    return Check(
        "b = 0, unscaled Perm-1 on [[10, 3], [3, 1]] (remark 1: c = 3 > 2ab/(a + b) = 1.82): f rises at the first step "
        "from some x^0, for gamma = 1/calL, a tenth and a thousandth of it, although L > 0; it is no divergence",
        f"lambda_min(W) = {np.linalg.eigvalsh(W)[0]:.2f}; f rises by "
        + ", ".join(f"{rise:.2%}" for rise in rises.values())
        + f"; f after 2000 steps {f.value(end):.1e}",
        min(rises.values()) > 0 and f.value(end) < 1e-20,
    )


def tails(steps, runs):
    """What is left for b != 0, by step size: the mean iterate, and the squared norm of gradients."""
    f = quadratic()
    sketch, L = scaled_permutation(f, WIRE), f.A.mean(axis=0)
    x = {}
    for gamma in GAMMAS:
        method, burn = IST(sketch, gamma), math.ceil(20 / gamma)
        x[gamma] = np.concatenate([iterates(method, f, steps + burn, seed)[burn + 1 :] for seed in range(runs)])
    return f, IST(sketch, 1.0), L, x


def bias(f, method, L, x):
    """The mean iterate"""
    h, limit = method.bias(f), method.x_infinity(f)
    diagonals = np.diagonal(f.A, axis1=1, axis2=2)
    closed = np.mean(f.b / np.sqrt(diagonals), axis=0) / math.sqrt(N)
    away, ratios = {}, {}
    for gamma, rows in x.items():
        blocks = rows.reshape(20, -1, N).mean(axis=1)  # far longer than the memory of 1/gamma steps
        error = blocks.std(axis=0, ddof=1) / math.sqrt(20)
        away[gamma] = np.sqrt(np.mean(((blocks.mean(axis=0) - limit) / error) ** 2))
        ratios[gamma] = np.linalg.norm(blocks.mean(axis=0) - f.x_star) / np.linalg.norm(h)
    return Check(
        "b != 0, scaled Perm-1: for step sizes 20 x apart the mean iterate goes to (1/sqrt n)(1/n) sum_i D_i^-1/2 b_i "
        "(root mean square within 2 standard errors), so that it stays ||h|| from x* (within 10%)",
        f"closed form within {np.abs(closed - limit).max():.1e}; "
        + "; ".join(
            f"gamma = {gamma:g}: {away[gamma]:.2f} standard errors, distance from x* {ratios[gamma]:.3f} ||h||"
            for gamma in x
        ),
        max(away.values()) < 2 and all(abs(ratio - 1) < 0.1 for ratio in ratios.values()),
    )


def floors(f, method, L, x, draws=20_000):
    """The floor of gradients"""
    h = float(squared(method.bias(f), L))
    rng = np.random.default_rng(2)
    orders = np.argsort(rng.random((draws, N)), axis=1)  # coordinate orders[k, i] is worker i's
    scaled = f.b / np.sqrt(np.diagonal(f.A, axis1=1, axis2=2)) / math.sqrt(N)
    g = np.zeros((draws, N))
    np.put_along_axis(g, orders, scaled[np.arange(N), orders], axis=1)
    sigma = float(np.mean(squared(g - scaled.mean(axis=0), L)))
    measured = {gamma: float(np.mean(squared(rows - f.x_star, L))) for gamma, rows in x.items()}
    bounds = {gamma: h + gamma * sigma for gamma in x}
    small = min(GAMMAS)
    exact = {gamma: h + gamma / (2 - gamma) * sigma for gamma in x}  # B = I: the variance is that of AR(1)
    return (h, measured, bounds), Check(
        "Theorem 2 at beta = 1/2: the tail of ||grad f||^2 in the norm of L^-1 is at most ||h||_L^2 + gamma sigma^2 "
        "(at gamma = 1 equal, within 3%), and what is left as gamma goes to 0 is ||h||_L^2: it is ||h||_L^2 + "
        "gamma/(2 - gamma) sigma^2 within 3%",
        f"||h||_L^2 = {h:.4f}, sigma^2 = {sigma:.3f}; "
        + "; ".join(
            f"gamma = {gamma:g}: {measured[gamma]:.4f}, bound {bounds[gamma]:.4f}, exact {exact[gamma]:.4f}"
            for gamma in x
        ),
        all(measured[gamma] <= bounds[gamma] * (1.03 if gamma == 1 else 1) for gamma in x)
        and all(abs(measured[gamma] / exact[gamma] - 1) < 0.03 for gamma in x)
        and measured[small] > h,
    )


def compressed_gradients():
    """Against compressed gradients"""
    f, C = quadratic(alike=True), compress.PermK(N, WIRE)
    traces = {}
    for method in (compress.DCGD(compress.RandK(1, WIRE), 1 / (2 * f.L * N)), IST.theoretical(f, C)):
        name = type(method).__name__
        steps = 20_000 if name == "DCGD" else 1000
        traces[name] = compress.run(method, f, compress.Local(N), start(), steps=steps, until=1e-20, every=10)
    h = IST(C, 0.01).bias(f)
    predicted = np.sum(h**2) / np.sum((start() - f.x_star) ** 2)
    end = traces["IST"].error[-1]
    return traces, Check(
        "Workers alike, one coordinate each: compressed gradients (DCGD, Rand-1) reach 1e-20; IST, whose mask also "
        "covers the model, ends at ||h||^2 (within 1%)",
        f"DCGD: {traces['DCGD'].reason}, {traces['DCGD'].step[-1]:,} steps; IST {end:.4g}, ||h||^2 {predicted:.4g}",
        traces["DCGD"].error[-1] <= 1e-20 and abs(end / predicted - 1) < 0.01,
    )


def shifted():
    """The bias that is not irreducible"""
    traces, ratios = {}, {}
    for n, d in ((10, 10), (4, 12)):
        f, C = quadratic(n, d), compress.PermK(n, WIRE)
        x0, comm = start(d), compress.Local(n)
        plain, moved = IST.theoretical(f, C), ShiftedIST.theoretical(f, C)
        traces[n, d] = [
            compress.run(plain, f, comm, x0, steps=5000, every=20),
            compress.run(moved, f, comm, x0, steps=100_000, until=1e-20, every=20),
        ]
        mean = iterates(plain, f, 5000)[1000:].mean(axis=0)
        ratios[n, d] = np.linalg.norm(mean - f.x_star) / np.linalg.norm(plain.bias(f))
    halves = {at: row[1].step[-1] / row[1].step[row[1].error <= 1e-10][0] for at, row in traces.items()}
    worst = [row[0].error[len(row[0]) // 2 :].mean() for row in traces.values()]
    return traces, Check(
        "Beyond the paper: around a shift that follows x (ShiftedIST) the bias called irreducible is gone, also for "
        "different workers: 1e-20 at its proven step size, and linearly (from 1e-10 to there it takes as many steps as "
        "to 1e-10, within a quarter), where IST stays above 1e-4 and its mean iterate at ||h||, within 10% "
        "(n = d = 10, Perm-1; n = 4, d = 12, Perm-3)",
        "; ".join(
            f"n = {n}, d = {d}: IST {floor:.2g}, mean iterate at {ratios[n, d]:.3f} ||h||; ShiftedIST "
            f"{row[1].reason}, {row[1].step[-1]:,} steps, {halves[n, d]:.2f} x those to 1e-10, "
            f"{row[1].bits_up[-1] / row[1].step[-1] / (64 * d):.2f} x the "
            "bits a step"
            for ((n, d), row), floor in zip(traces.items(), worst, strict=True)
        ),
        all(row[1].error[-1] <= 1e-20 for row in traces.values())
        and all(abs(ratio - 2) <= 0.25 for ratio in halves.values())
        and min(worst) > 1e-4
        and all(abs(ratio - 1) < 0.1 for ratio in ratios.values()),
    )


def growth():
    """The bias as n = d grows"""
    shares = {}
    for n in (5, 10, 20, 40, 80):
        f = quadratic(n, n)
        shares[n] = [
            np.linalg.norm(IST(sketch, 0.1).bias(f)) / np.linalg.norm(f.x_star)
            for sketch in (scaled_permutation(f), Sketch(compress.PermK(n)))
        ]
    first, last = shares[5], shares[80]
    return shares, Check(
        "The text's remark that the bias vanishes for large n = d is not borne out on these matrices: ||h|| grows with "
        "n = d, of Perm-1 towards ||x*|| (above 0.95 of it at n = 80), since x_infinity = (1/n) Diag(L)^-1 b",
        "||h|| / ||x*||, scaled and unscaled: "
        + "; ".join(f"n = {n}: {scaled:.3f}, {plain:.3f}" for n, (scaled, plain) in shares.items()),
        last[0] > first[0] and 1 > last[1] > max(first[1], 0.95),
    )


# A network

WIDTH = 64 + 1 + 10  # of a hidden unit: incoming weights, bias, outgoing weights


class Units(Sketch):
    """Hidden units, whole, in place of coordinates; kept weights are as they are, so that a part is a network."""

    def indices(self, d, key):
        units = self.sets.indices(d // WIDTH, key)
        return (units[:, None] * np.uint32(WIDTH) + np.arange(WIDTH, dtype=np.uint32)).ravel()

    def scale(self, d, worker=0):
        return 1.0


class Network(compress.Problem):
    """Mean cross-entropy of a network of any number of units: x is (units, WIDTH), flattened."""

    convex = False

    def __init__(self, images, labels, parts, units):
        self.parts = [(images[part], labels[part]) for part in parts]
        self.n, self.d = len(parts), units * WIDTH

    @staticmethod
    def forward(x, images):
        units = x.reshape(-1, WIDTH)
        hidden = np.maximum(images @ units[:, :64].T + units[:, 64], 0)
        logits = hidden @ units[:, 65:]
        return units, hidden, logits

    @classmethod
    def loss(cls, x, images, labels):
        logits = cls.forward(x, images)[2]
        logits -= logits.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]))

    @classmethod
    def accuracy(cls, x, images, labels):
        return float(np.mean(cls.forward(x, images)[2].argmax(axis=1) == labels))

    def value(self, x):
        return float(np.mean([self.loss(x, *part) for part in self.parts]))

    def gradient(self, i, x, out=None):
        """Of the loss of worker i, for as many units as x has."""
        images, labels = self.parts[i]
        units, hidden, logits = self.forward(x, images)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(labels)), labels] -= 1
        p /= len(labels)
        back = (p @ units[:, 65:].T) * (hidden > 0)
        out = np.empty_like(x) if out is None else out
        into = out.reshape(units.shape)
        into[:, :64], into[:, 64], into[:, 65:] = back.T @ images, back.sum(axis=0), hidden.T @ p
        return out

    def partial_gradient(self, i, indices, y):
        return self.gradient(i, y)  # of the network of those units alone


def network(rounds, seeds):
    """Two layers on digits"""
    images, labels = load("digits")
    images, labels = np.float32(images / 16), labels.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1437], order[1437:]
    accuracy, bits, shares, curves = {}, {}, {}, {}
    for n in WORKERS:
        f = Network(images[train], labels[train], split(len(train), n), HIDDEN)
        sketch = Units(compress.PermK(n))
        method, found, losses = IST(sketch, n * RATE, LOCAL_STEPS), [], []
        for seed in range(seeds):
            rng, comm = np.random.default_rng(seed), compress.Local(n)
            x0 = np.float32(rng.standard_normal((HIDDEN, WIDTH)) * math.sqrt(2 / 64))
            x0[:, 64], x0[:, 65:] = 0, x0[:, 65:] / math.sqrt(HIDDEN / 64 / n)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that no theorem is about networks and local steps
                state = method.init(f, comm, x0.ravel())
            for k in range(rounds):
                if k % 5 == 0:
                    losses.append(1 - f.accuracy(state.x, images[test], labels[test]))
                state = method.step(f, comm, state, compress.Key(seed).at(k))
            found.append(f.accuracy(state.x, images[test], labels[test]))
        accuracy[n] = np.mean(found), np.std(found)
        bits[n] = comm.ledger.bits_down / rounds / n
        shares[n] = bits[n] / 32 / f.d
        curves[n] = np.reshape(losses, (seeds, -1)).mean(axis=0)
    dense, least = accuracy[1][0], accuracy[WORKERS[-1]][0]
    return curves, Check(
        f"Two layers on digits, {HIDDEN} units, {rounds} rounds of {LOCAL_STEPS} local steps: IST comes within a point "
        "of the whole network's test accuracy, above 90%, for n <= 8, while a worker is sent, holds and trains 1/n of "
        f"the weights, within 1% of that; it is lower at n = {WORKERS[-1]}, by more than two standard deviations",
        "; ".join(
            f"n = {n}: {mean:.1%} +- {deviation:.1%}, {shares[n]:.1%} of the weights, {bits[n] / 8e3:.1f} kB down"
            for n, (mean, deviation) in accuracy.items()
        )
        + f" ({seeds} seeds)",
        dense > 0.9
        and all(dense - accuracy[n][0] < 0.01 for n in WORKERS if n <= 8)
        and all(abs(shares[n] * n - 1) < 0.01 for n in WORKERS)
        and least < dense - 2 * max(deviation for _, deviation in accuracy.values()),
    )


def figure(tail, gradients, moved, shares, curves, path):
    """Four panels: the floor by step size; IST, compressed gradients and shifts; bias against n = d; the network."""
    from ..plot import COLOURS, STYLE, plt

    with plt.rc_context(STYLE):
        page, ((floor, error), (growing, digits)) = plt.subplots(2, 2, figsize=(9.6, 7.2), layout="constrained")
        h, measured, bounds = tail
        floor.plot(measured.keys(), measured.values(), "o-", color=COLOURS[0], label="measured")
        floor.plot(bounds.keys(), bounds.values(), "--", color=COLOURS[0], label=r"$\|h\|_L^2 + \gamma \sigma^2$")
        floor.axhline(h, color=COLOURS[1], label=r"$\|h\|_L^2$")
        floor.set(
            xscale="log", yscale="log", xlabel=r"$\gamma$", title=r"Tail of $\|\nabla f\|^2_{L^{-1}}$ (scaled Perm-1)"
        )

        plain, shift = moved[N, N]
        lines = {
            "IST": plain,
            "ShiftedIST": shift,
            "IST, workers alike": gradients["IST"],
            "DCGD, alike": gradients["DCGD"],
        }
        for (name, trace), colour in zip(lines.items(), COLOURS, strict=False):
            error.plot(trace.step, trace.error, color=colour, label=name)
        error.set(xscale="symlog", yscale="log", xlabel="steps", title="Perm-1, n = d = 10, theoretical step sizes")
        error.set_ylabel(r"$\|x^k - x^*\|^2 / \|x^0 - x^*\|^2$")

        for k, name in enumerate(("scaled Perm-1", "Perm-1")):
            growing.plot(shares.keys(), [row[k] for row in shares.values()], "o-", color=COLOURS[k], label=name)
        growing.set(
            xscale="log",
            xticks=list(shares),
            xticklabels=list(shares),
            xlabel="n = d",
            ylabel=r"$\|h\| / \|x^*\|$",
            title="The bias",
            ylim=(0, None),
        )
        growing.minorticks_off()

        for (n, curve), colour in zip(curves.items(), COLOURS, strict=False):
            name = "whole network" if n == 1 else f"n = {n}"
            digits.plot(5 * np.arange(len(curve)), curve, color=colour, label=name)
        digits.set(yscale="log", xlabel="rounds", ylabel="test error", title="Two layers on digits")
        for axis in (floor, error, growing, digits):
            axis.legend()
        page.savefig(path)
        plt.close(page)


def run(out, full=False):
    steps, runs, rounds, seeds = (20_000, 5, 300, 10) if full else (4000, 1, 100, 3)
    screen = console()
    with stepwise(screen, total=9) as step:
        checks = [step(one_step), step(homogeneous), step(remark)]
        known = step(tails, steps, runs)
        checks.append(step(bias, *known))
        tail, theorem = step(floors, *known)
        gradients, cgd = step(compressed_gradients)
        moved, exact = step(shifted)
        shares, grows = step(growth)
        curves, trained = step(network, rounds, seeds)
        checks += [theorem, cgd, exact, grows, trained]
    status = report("Independent subnetwork training: what can be checked", checks, screen)
    out.mkdir(parents=True, exist_ok=True)
    figure(tail, gradients, moved, shares, curves, out / "ist.png")
    screen.print(f"saved {out / 'ist.png'}")
    return status
