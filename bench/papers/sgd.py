"""Gower, Loizou, Qian, Sailanbayev, Shulgin, Richtarik: SGD: General Analysis and Improved Rates (ICML 2019). Twelve
statements, each with the figure measured here by the steps of compress.SGD.

Every figure about errors is of the mean over 20 runs (keys 0 to 19). A bound on the expectation is held against that
mean less three of its standard errors, at every step; the largest mean / bound is printed beside it.

Data: rows N(0, I), or N(0, s^2 I) with log s ~ N(0, spread^2) drawn for each row; targets A x + noise N(0, 1), x ~
N(0, I), and their signs for logistic losses; lam = 1/n. Runs start at 0.
"""

import math
from dataclasses import dataclass

import numpy as np

from compress import Key, Local
from compress.data import binary, load
from compress.optimizers.sgd import SGD
from compress.problems import Logistic, Quadratic, Ridge
from compress.sampling import (
    Arbitrary,
    FullBatch,
    Independent,
    Nice,
    Partition,
    SingleElement,
    WithReplacement,
    optimal_batch,
)

from .. import console
from . import Check, report, stepwise

RUNS = 20


def gaussian(n, d, noise=1.0, spread=0.0, seed=0):
    """(A, b), rows and targets."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, d)) * np.exp(spread * rng.standard_normal(n))[:, None]
    return A, A @ rng.standard_normal(d) + noise * rng.standard_normal(n)


def ridge(n, d, **more):
    return Ridge(*gaussian(n, d, **more), lam=1 / n)


def logistic(n, d, **more):
    A, b = gaussian(n, d, **more)
    return Logistic(A, np.sign(b), lam=1 / n)


def pca(n, d, factor=1.5):
    """f_i = x'(nu I - a_i a_i')x/2 - b'x with ||a_i|| = 1 and nu = factor lambda_max((1/n) sum_i a_i a_i'): a step of
    shifted inverse iteration for PCA, a strongly convex mean of functions none of which is convex."""
    A, _ = gaussian(n, d)
    A /= np.linalg.norm(A, axis=1)[:, None]
    nu = factor * np.linalg.eigvalsh(A.T @ A / n)[-1]
    return Quadratic(nu * np.eye(d) - np.einsum("ij,ik->ijk", A, A), np.tile(A.mean(axis=0), (n, 1)))


def kinds(problem, tau=8):
    """A sampling of every kind, by name."""
    n, L_i = problem.n, problem.L_i
    return {
        "single": SingleElement.uniform(n),
        "single, importance": SingleElement.importance(L_i),
        "independent, partially biased": Independent.partially_biased(L_i, tau),
        f"{tau}-nice": Nice(n, tau),
        "with replacement": WithReplacement.uniform(n, tau),
        "partition": Partition.uniform(np.array_split(np.arange(n), n // tau)),
    }


def errors(method, problem, steps, first=0):
    """||x^k - x*||^2 for k = 0, ..., steps, a row for each of the keys from the first on."""
    comm, step = Local(1), method.step
    squares, iterates = np.empty((RUNS, steps + 1)), np.empty((steps + 1, problem.d))
    for run, row in enumerate(squares):
        key, state = Key(first + run), method.init(problem, comm, np.zeros(problem.d))
        iterates[0] = state.x
        for k in range(steps):
            state = step(problem, comm, state, key.at(k))
            iterates[k + 1] = state.x
        np.sum((iterates - problem.x_star) ** 2, axis=1, out=row)
    return squares


def steps_to(method, problem, target, most):
    """(steps until the mean error is at most target, the means so far); math.inf where `most` are not enough."""
    comm, step, star = Local(1), method.step, problem.x_star
    keys = [Key(run) for run in range(RUNS)]
    states = [method.init(problem, comm, np.zeros(problem.d)) for _ in keys]
    means = []
    for k in range(most + 1):
        means.append(float(np.mean(np.sum((np.array([state.x for state in states]) - star) ** 2, axis=1))))
        if means[-1] <= target:
            return k, means
        states = [step(problem, comm, state, key.at(k)) for state, key in zip(states, keys, strict=True)]
    return math.inf, means


class Worst:
    """The largest mean / bound, and the largest (mean - 3 standard errors) / bound, of all that it has seen."""

    def __init__(self):
        self.ratio = self.certain = 0.0
        self.seen = 0

    def see(self, squares, bound):
        mean, error = squares.mean(axis=0), squares.std(axis=0, ddof=1) / math.sqrt(len(squares))
        self.ratio = max(self.ratio, float(np.max(mean / bound)))
        self.certain = max(self.certain, float(np.max((mean - 3 * error) / bound)))
        self.seen += 1

    @property
    def ok(self):
        return self.certain <= 1 + 1e-9  # the bound may be met exactly, and be rounded

    def __str__(self):
        return f"largest mean / bound {self.ratio:.3f}, less 3 standard errors {self.certain:.3f}"


def start(problem):
    """||x^0 - x*||^2 at x^0 = 0."""
    return float(problem.x_star @ problem.x_star)


def published(method, problem, k):
    """The right side of theorem 3.2."""
    noise = method.sampling.gradient_noise(problem.gradients_star) / problem.mu**2
    return 8 * noise / k + (method.switch / (math.e * k)) ** 2 * start(problem)


def steps_for(method, problem, eps):
    """max(2 calL/mu, 4 sigma^2/(eps mu^2)) log(2 ||x^0 - x*||^2/eps), the number of steps that theorem 3.1 gives."""
    return math.ceil(math.log(2 * start(problem) / eps) / (method.gamma * problem.mu))


def exact_smoothness(sampling, hessians):
    """calL of quadratic components by enumeration: lambda_max(M^-1/2 E M_v^2 M^-1/2)."""
    n = len(hessians)
    second = 0
    for probability, indices, weights in sampling.outcomes():
        M_v = np.einsum("i,ijk->jk", weights, hessians[indices]) / n
        second = second + probability * M_v @ M_v
    eigenvalues, Q = np.linalg.eigh(hessians.mean(axis=0))
    root = Q / np.sqrt(eigenvalues) @ Q.T
    return float(np.linalg.eigvalsh(root @ second @ root)[-1])


def enumerated_noise(sampling, h):
    return sum(p * np.sum((weights @ h[indices] / len(h)) ** 2) for p, indices, weights in sampling.outcomes())


def constants(seeds=5):
    """1. The table of samplings, against enumeration."""
    n, d, off, rows, others = 12, 10, 0.0, [], []
    for seed in range(seeds):
        A, b = gaussian(n, d, seed=seed)
        A *= np.geomspace(0.3, 3, n)[:, None]
        problem = Ridge(A, b, lam=1 / n)
        hessians, h = np.einsum("ij,ik->ijk", A, A) + np.eye(d) / n, problem.gradients_star
        table = [
            SingleElement.uniform(n),
            SingleElement.importance(problem.L_i),
            Independent.uniform(n, 3),
            Independent.importance(problem.L_i, 3),
            Nice(n, 2),
            Nice(n, 6),
            Partition.uniform(np.split(np.arange(n), 4)),
            WithReplacement.uniform(n, 3),
            FullBatch(n),
        ]
        beside = [
            SingleElement.partially_biased(problem.L_i),
            Independent.partially_biased(problem.L_i, 3),
            Arbitrary([range(5), range(3, 9), [*range(8, n), 0]], [0.3, 0.3, 0.4]),
        ]
        for samplings, ratios in ((table, rows), (beside, others)):
            for sampling in samplings:
                ratios.append(sampling.expected_smoothness(problem) / exact_smoothness(sampling, hessians))
                if not isinstance(sampling, FullBatch):  # 0, where enumeration has rounding alone
                    off = max(off, abs(sampling.gradient_noise(h) / enumerated_noise(sampling, h) - 1))
    return Check(
        "The table of samplings, against all that they can draw: sigma^2 is equal to 1e-10, and exact calL <= formula "
        f"<= 1.15 exact (ridge, n = {n}, d = {d}, row norms a decade apart, {len(table)} samplings, {seeds} data sets)",
        f"sigma^2 within {off:.1e}; calL formula / exact {min(rows):.3f} .. {max(rows):.3f}; beside the table, "
        f"partially biased ones and overlapping sets, {min(others):.3f} .. {max(others):.3f}",
        off <= 1e-10 and min(rows + others) >= 1 - 1e-10 and max(rows) <= 1.15,
    )


def theorem_constant(n, d, steps):
    """2. Constant steps against theorem 3.1."""
    worst = Worst()
    for make in (ridge, logistic):
        problem = make(n, d)
        for sampling in kinds(problem).values():
            method = SGD.theoretical(problem, sampling)
            worst.see(errors(method, problem, steps), method.bound(problem, np.zeros(d), np.arange(steps + 1)))
    return Check(
        f"gamma = 1/(2 calL): E||x^k - x*||^2 <= (1 - gamma mu)^k ||x^0 - x*||^2 + 2 gamma sigma^2/mu at every k <= "
        f"{steps:,} (theorem 3.1; ridge and logistic, n = {n}, d = {d}, {worst.seen // 2} samplings each)",
        str(worst),
        worst.ok,
    )


def theorem_switching(n, d, steps):
    """3, 4. The switching rule, against theorem 3.2 and against constant steps."""
    quadratic, losses = ridge(n, d), logistic(n, d)
    setups = [(f"ridge, {name}", quadratic, sampling) for name, sampling in list(kinds(quadratic).items())[:4]]
    setups.append(("logistic, 8-nice", losses, Nice(n, 8)))
    worst, after, proof, slopes, gains, curves = Worst(), Worst(), 0.0, {}, {}, {}
    for name, problem, sampling in setups:
        switching, constant = SGD.theoretical(problem, sampling, switching=True), SGD.theoretical(problem, sampling)
        at = 25 * switching.switch  # 100 K
        k = np.arange(max(steps, at) + 1)
        squares, plain = errors(switching, problem, k[-1]), errors(constant, problem, at)
        bound, later = switching.bound(problem, np.zeros(d), k), k > switching.switch
        theorem = published(switching, problem, k[later])
        worst.see(squares, bound)
        after.see(squares[:, later], theorem)
        proof = max(proof, float(np.max(bound[later] / theorem)))
        tail, means = k >= k[-1] / 10, squares.mean(axis=0)
        slopes[name] = float(np.polyfit(np.log(k[tail]), np.log(means[tail]), 1)[0])
        gains[name] = float(plain[:, at].mean() / means[at])
        if not curves:
            scale = start(problem)
            curves["constant step"] = (
                plain.mean(axis=0) / scale,
                constant.bound(problem, np.zeros(d), k[: at + 1]) / scale,
            )
            curves["switching"] = means / scale, bound / scale
    return curves, [
        Check(
            "Switching from 1/(2 calL) to (2k + 1)/((k + 1)^2 mu) after 4 ceil(K) steps, K = calL/mu: E||x^k - x*||^2 "
            "<= (8/k) sigma^2/mu^2 + (16 ceil(K)^2/(e^2 k^2)) ||x^0 - x*||^2 at every later k (theorem 3.2); its slope "
            f"over the last decade is -1 +- 0.1 (n = {n}, d = {d}, {len(slopes)} set-ups, k to 100 K and {steps:,})",
            f"{after}; against SGD.bound at every k: {worst.ratio:.3f}, {worst.certain:.3f}; SGD.bound / theorem at "
            f"most {proof:.3f}; slopes: " + ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items()),
            worst.ok and after.ok and proof <= 1 and all(-1.1 <= slope <= -0.9 for slope in slopes.values()),
        ),
        Check(
            "Switching beats the same constant step by 10 x and more after 100 K steps (the same runs)",
            ", ".join(f"{name} {gain:.0f} x" for name, gain in gains.items()),
            min(gains.values()) >= 10,
        ),
    ]


def ends(n, d, steps=300):
    """5. tau = 1 and tau = n."""
    problem = ridge(n, d)
    whole = SGD.theoretical(problem, Nice(n, n))
    x, state = np.zeros(d), whole.init(problem, Local(1), np.zeros(d))
    difference = 0.0
    for k in range(steps):
        x = x - whole.gamma * problem.full_gradient(x)
        state = whole.step(problem, Local(1), state, Key(0).at(k))
        difference = max(difference, float(np.linalg.norm(state.x - x) / np.linalg.norm(x)))
    one, single = (SGD.theoretical(problem, s) for s in (Nice(n, 1), SingleElement.uniform(n)))
    a, b = errors(one, problem, steps), errors(single, problem, steps, first=RUNS)
    z = (a.mean(axis=0) - b.mean(axis=0))[1:] / np.sqrt((a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1))[1:] / RUNS)
    rms = float(np.sqrt(np.mean(z**2)))
    return Check(
        "tau-nice sampling is gradient descent at tau = n (iterates) and uniform single elements at tau = 1 (step "
        f"size; mean errors over {steps} steps, whose difference has a root mean square below 2 standard errors)",
        f"iterates within {difference:.1e}; step sizes within {abs(one.gamma / single.gamma - 1):.1e}; {rms:.2f} "
        "standard errors",
        difference < 1e-12 and abs(one.gamma / single.gamma - 1) < 1e-12 and rms < 2,
    )


SIZED = {Nice: Nice, Independent: Independent.uniform}


@dataclass
class Work:
    """Gradient evaluations until the mean error is eps, measured and as theorem 3.1 has them at most, by batch size;
    errors: the means on the way, relative to that of the start."""

    best: int
    measured: dict
    theory: dict
    errors: dict

    @classmethod
    def of(cls, problem, kind, sizes):
        """With eps = 1e-2 ||x^0 - x*||^2, at these sizes and at tau*."""
        eps = 1e-2 * start(problem)
        work = cls(optimal_batch(problem, eps, kind), {}, {}, {})
        for tau in sorted({*sizes, work.best}):
            method = SGD.theoretical(problem, SIZED[kind](problem.n, tau), eps)
            most = steps_for(method, problem, eps)
            steps, means = steps_to(method, problem, eps, most)
            work.measured[tau], work.theory[tau] = tau * steps, tau * most
            work.errors[tau] = np.array(means) / start(problem)
        return work

    @property
    def least(self):
        return min(self.measured, key=self.measured.get)

    @property
    def ok(self):
        sizes = list(self.measured)
        return abs(sizes.index(self.least) - sizes.index(self.best)) <= 1

    def __str__(self):
        table = ", ".join(f"{tau}: {evaluations:,}" for tau, evaluations in self.measured.items())
        return f"tau* = {self.best}, least at {self.least} ({table})"


def batch_sizes(n, d):
    """6, 7. Total work against the size of the batch."""
    works, sizes = {}, (1, 4, 16, 64, n // 2, n)
    for noise in (0.0, 1.0, 3.0):
        problem = ridge(n, d, noise=noise)
        for kind in SIZED:
            works[noise, kind.__name__] = Work.of(problem, kind, sizes)
        if noise == 0:
            theory = n * problem.L / problem.L_max
    quiet = list(works[0.0, "Nice"].measured.values())
    ratio = quiet[-1] / quiet[0]
    rising = all(later >= 0.9 * max(quiet[:i]) for i, later in enumerate(quiet) if i)
    return works, [
        Check(
            "Total work is least at tau*: gradient evaluations until the mean error is 1e-2 ||x^0 - x*||^2, with the "
            f"step for that, have their minimum within one size of it (ridge, n = {n}, d = {d}, noise 0, 1, 3)",
            "; ".join(f"noise {noise:g}, {kind}: {work}" for (noise, kind), work in works.items()),
            all(work.ok for work in works.values()),
        ),
        Check(
            "Without noise work rises with tau (no fall by more than 10%), and tau = n costs about n L / L_max times "
            "what tau = 1 does (within a factor of 1.5)",
            f"{ratio:.2f} x, theory {theory:.2f} x",
            rising and 1 / 1.5 <= ratio / theory <= 1.5,
        ),
    ]


def accuracies(n, d):
    """8. The number of steps that theorem 3.1 gives for an accuracy."""
    problem = ridge(n, d)
    eps = 1e-2 * start(problem)
    reached = {}
    for name, sampling in kinds(problem).items():
        method = SGD.theoretical(problem, sampling, eps)
        steps = steps_for(method, problem, eps)
        reached[name] = float(errors(method, problem, steps)[:, -1].mean() / eps)
    return Check(
        "max(2 calL/mu, 4 sigma^2/(eps mu^2)) log(2 ||x^0 - x*||^2/eps) steps of min(1/(2 calL), eps mu/(4 sigma^2)) "
        f"give E||x - x*||^2 <= eps (eps = 1e-2 ||x^0 - x*||^2, ridge, n = {n}, d = {d})",
        "mean error / eps: " + ", ".join(f"{name} {value:.2f}" for name, value in reached.items()),
        max(reached.values()) <= 1,
    )


def importance(n, d):
    """9. Importance against uniform probabilities."""
    problem = ridge(n, d, noise=0.1, spread=0.7)
    L_i, target, steps, curves = problem.L_i, 1e-2 * start(problem), {}, {}
    samplings = {
        "uniform": SingleElement.uniform(n),
        "importance": SingleElement.importance(L_i),
        "partially biased": SingleElement.partially_biased(L_i),
    }
    for name, sampling in samplings.items():
        method = SGD.theoretical(problem, sampling)
        steps[name], means = steps_to(method, problem, target, math.ceil(10 / (method.gamma * problem.mu)))
        curves[name] = np.array(means) / start(problem)
    calL = {name: s.expected_smoothness(problem) for name, s in samplings.items()}
    noise = {name: s.gradient_noise(problem.gradients_star) for name, s in samplings.items()}
    biased = calL["partially biased"] <= 2 * problem.L_mean and noise["partially biased"] <= 2 * noise["uniform"]
    return curves, Check(
        "Probabilities as L_i need at most half the steps of uniform ones to 1e-2 of the start where L_max >= 4 L_mean "
        f"(ridge, n = {n}, d = {d}, spread 0.7, noise 0.1, gamma = 1/(2 calL)); partially biased ones at most double "
        "L_mean and sigma^2",
        f"L_max / L_mean {problem.L_max / problem.L_mean:.1f}; steps "
        + ", ".join(f"{name} {k:,}" for name, k in steps.items())
        + "; calL / L_mean "
        + ", ".join(f"{value / problem.L_mean:.2f}" for value in calL.values())
        + "; sigma^2 over uniform's "
        + ", ".join(f"{value / noise['uniform']:.2f}" for value in noise.values()),
        problem.L_max >= 4 * problem.L_mean and steps["importance"] <= steps["uniform"] / 2 and biased,
    )


def not_convex(n, d, steps):
    """10. Components that are not convex."""
    problem = pca(n, d)
    worst, gains, single = Worst(), {}, SingleElement.uniform(n)
    for name, sampling in {"single": single, "8-nice": Nice(n, 8)}.items():
        switching, constant = SGD.theoretical(problem, sampling, switching=True), SGD.theoretical(problem, sampling)
        at = 25 * switching.switch
        k, squares, plain = np.arange(at + 1), errors(switching, problem, at), errors(constant, problem, max(at, steps))
        worst.see(squares, switching.bound(problem, np.zeros(d), k))
        worst.see(plain, constant.bound(problem, np.zeros(d), np.arange(plain.shape[1])))
        gains[name] = float(plain[:, at].mean() / squares[:, at].mean())
    formula, exact = single.expected_smoothness(problem), exact_smoothness(single, problem.A)
    work = Work.of(problem, Nice, (1, 8, 32, n // 2, n))
    return Check(
        "The same holds where f is convex and no f_i is, with calL = c L + (1/(n^2 mu)) sum_i e_i L_i^2 (derived in "
        "compress.sampling, no enumeration): both theorems at every k, switching 10 x better after 100 K steps, work "
        f"least within one size of tau* (PCA, n = {n}, d = {d}, nu = 1.5 lambda_max)",
        f"{worst}; "
        + ", ".join(f"{name} {gain:.0f} x" for name, gain in gains.items())
        + f"; {work}; calL of a single element {formula:.3g}, exact {exact:.3g}, L_max {problem.L_max:.3g}",
        worst.ok and min(gains.values()) >= 10 and work.ok and exact <= formula,
    )


def real_data(steps):
    """11, 12. Data that was not made for this."""
    A, b = load("diabetes", scale=True)
    diabetes = Ridge(A, (b - b.mean()) / b.std(), lam=1 / len(b))
    A, b = load("breast_cancer", scale=True)
    cancer, strongly = (Logistic(A, binary(b), lam) for lam in (1 / len(b), 0.1))
    worst, gains = Worst(), {}
    for name, problem in {"diabetes": diabetes, "breast cancer": cancer}.items():
        sampling = Independent.partially_biased(problem.L_i, 32)
        switching, constant = SGD.theoretical(problem, sampling, switching=True), SGD.theoretical(problem, sampling)
        k = np.arange(max(steps, 2 * switching.switch) + 1)
        for method in (switching, constant):
            squares = errors(method, problem, k[-1])
            worst.see(squares, method.bound(problem, np.zeros(problem.d), k))
            gains[name] = float(squares[:, -1].mean()) / gains.get(name, 1)
    work = Work.of(strongly, Nice, (4, 16, 64, 300, strongly.n))
    return work, [
        Check(
            "Both theorems hold at every k on real data (diabetes, ridge, 442 x 10; breast cancer, logistic, 569 x 30; "
            "columns standardised, lam = 1/n; independent, partially biased, tau = 32; k to 2 x the switch and "
            f"{steps:,})",
            f"{worst}; constant over switching at the end: "
            + ", ".join(f"{name} {gain:.1f} x" for name, gain in gains.items()),
            worst.ok,
        ),
        Check(
            "Total work is least within one size of tau* (breast cancer, logistic, lam = 0.1, tau-nice, to 1e-2)",
            str(work),
            work.ok,
        ),
    ]


def figure(curves, n, works, biased, cancer, path):
    """Four panels: the two step sizes against their bounds; work against tau; probabilities; batches on real data."""
    from ..plot import COLOURS, STYLE, plt

    with plt.rc_context(STYLE):
        page, ((steps, batch), (probabilities, real)) = plt.subplots(2, 2, figsize=(9.6, 7.2), layout="constrained")

        for (name, (mean, bound)), colour in zip(curves.items(), COLOURS, strict=False):
            epochs = np.arange(len(mean)) / n
            steps.plot(epochs, mean, color=colour, label=name)
            steps.plot(epochs, bound, color=colour, linestyle="--", label="its bound")
        steps.set(xscale="log", yscale="log", title="Switching after 4 ceil(calL/mu) steps (ridge, single elements)")

        for ((noise, kind), work), colour in zip(works.items(), np.repeat(COLOURS, 2, axis=0), strict=False):
            if kind == "Nice":
                name = rf"noise {noise:g}, $\tau^*$ = {work.best}"
                batch.plot(
                    work.measured.keys(), work.measured.values(), color=colour, marker="o", markersize=3, label=name
                )
                batch.plot(work.theory.keys(), work.theory.values(), color=colour, linestyle="--", label="its bound")
                batch.plot(work.best, work.measured[work.best], "*", color=colour, markersize=9)
        batch.set(xscale="log", yscale="log", xlabel=r"$\tau$", ylabel="gradient evaluations to 1e-2")
        batch.set_title(r"Total work of $\tau$-nice sampling (ridge)")
        batch.margins(y=0.2)

        for (name, mean), colour in zip(biased.items(), COLOURS, strict=False):
            probabilities.plot(np.arange(len(mean)) / n, mean, color=colour, label=name)
        probabilities.set(yscale="log", title="Probabilities of single elements (ridge, rows of unequal norm)")

        for (tau, mean), colour in zip(cancer.errors.items(), COLOURS, strict=False):
            name = rf"$\tau$ = {tau}" + (r" = $\tau^*$" if tau == cancer.best else "")
            real.plot(np.arange(len(mean)) * tau / max(cancer.errors), mean, color=colour, label=name)
        real.set(yscale="log", title=r"$\tau$-nice sampling for an accuracy of 1e-2 (breast cancer, logistic)")

        for axis in (steps, probabilities, real):
            axis.set(xlabel="epochs", ylabel=r"$\|x^k - x^*\|^2 / \|x^0 - x^*\|^2$")
        for axis in (steps, batch, probabilities, real):
            axis.legend(**({"ncols": 3, "fontsize": 6.5} if axis is batch else {}))
        page.savefig(path)
        plt.close(page)


def run(out, full=False):
    n, d, steps = (1000, 100, 60_000) if full else (200, 10, 2_000)
    screen = console()
    with stepwise(screen, total=9) as step:
        checks = [step(constants), step(theorem_constant, n, d, steps)]
        curves, more = step(theorem_switching, n, d, steps)
        checks += [*more, step(ends, n, d)]
        works, more = step(batch_sizes, n if full else 300, d)
        checks += [*more, step(accuracies, n, d)]
        biased, ninth = step(importance, n, d)
        checks += [ninth, step(not_convex, 200, 10, steps)]
        cancer, more = step(real_data, steps)
        checks += more
    status = report("SGD with arbitrary sampling: what can be checked", checks, screen)
    out.mkdir(parents=True, exist_ok=True)
    figure(curves, n, works, biased, cancer, out / "sgd.png")
    screen.print(f"saved {out / 'sgd.png'}")
    return status
