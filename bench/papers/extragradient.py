"""Mishchenko, Kovalev, Shulgin, Richtarik, Malitsky: Revisiting Stochastic Extragradient (AISTATS 2020). Twelve
statements, each with the figure measured here by the steps of compress.Extragradient, of compress.SGD, which on a game
is gradient descent-ascent, and of compress.torch.ExtraAdam. Without PyTorch it is ten.

The paper's game is that of Chavdarova et al. (2019): n components in 2n coordinates, each the product of two of them.
It is unbiased where all components are zero at the same point, biased where a_i and b_i are N(0, I/n). Runs start at
N(0, 100 I/n) and are of single elements, uniform. A step costs 2/n data passes: two gradients of components.

The GAN is the zero-sum game of Goodfellow et al. (2014), min over G, max over D of E log D(real) + E log(1 - D(G(z))),
on a mixture of 8 Gaussians in the plane. Its layers are the same for both optimizers, the step size of each is the best
of a list, and seeds that step sizes are chosen on are others than those reported.
"""

import math
import time
import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np

import compress
from compress import Key, Local
from compress.games import AffineOperator, BilinearGame
from compress.optimizers.extragradient import Extragradient
from compress.optimizers.sgd import SGD
from compress.problems import Box
from compress.sampling import FullBatch, Nice, SingleElement

from .. import console
from . import Check, report, stepwise
from .sgd import Worst

RUNS = 20  # of which bounds are held against the mean
BETAS = ((0.5, 0.9), (0.0, 0.999), (0.5, 0.999), (0.9, 0.999))  # of Adam
MODES, SPREAD, LATENT, BATCH = 8, 0.1, 4, 128  # of the mixture, and of the GAN
STEP_SIZES = (1e-3, 3e-3, 1e-2)  # at 3e-2 both fail on some of seeds 0 to 4
FIRST, DRAWN = 10, 3  # the first seed reported; how many go on to the end, for the figure
MEASURED = 2000  # samples that quality is measured on
SHARE = 0.75  # of them within three spreads of a mode


def start(game, seed=1):
    """10 N(0, I) over the square root of half the coordinates: 10 from 0 for each player."""
    return np.random.default_rng(seed).standard_normal(game.d) * 10 / math.sqrt(game.d / 2)


def traced(method, game, steps, every=1, seed=0, **more):
    """The trace of a run, also of one that diverges."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "diverged", RuntimeWarning)
        warnings.filterwarnings("ignore", "no convergence is proven", UserWarning)
        return compress.run(method, game, Local(1), start(game), Key(seed), steps=steps, every=every, **more)


def started(method, game):
    """The state before the first step, also of a run that is not known to converge."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no convergence is proven", UserWarning)
        return method.init(game, Local(1), start(game))


def single(game, eta, **more):
    return Extragradient(SingleElement.uniform(game.n), eta, **more)


def independent(game, eta):
    return single(game, eta, same_sample=False)


def factors(n, steps, runs):
    """1. Exact factors of one step on the game of Chavdarova et al."""
    game, off, rows = BilinearGame.chavdarova(n), [], []
    laws = {
        "same": (single, (0.2, 0.5, 0.707), lambda eta: -(eta**2 - eta**4) / n),
        "independent": (independent, (0.1, 0.3, 0.5), lambda eta: eta**2 * (1 / n - 2 / n**2) + eta**4 / n**2),
        "descent-ascent": (lambda game, eta: SGD(SingleElement.uniform(n), eta), (0.1, 0.3), lambda eta: eta**2 / n),
    }
    for name, (make, etas, law) in laws.items():
        for eta in etas:
            errors = [traced(make(game, eta), game, steps, seed=seed).error for seed in range(runs)]
            growth = float(np.mean(np.concatenate([e[1:] / e[:-1] for e in errors]))) - 1
            off.append(growth / law(eta) - 1)
            rows.append(f"{name} {eta:g}: {growth:.3g} ({law(eta):.3g})")
    return Check(
        "A step multiplies E||z||^2 by 1 - (eta^2 - eta^4)/n with the same sample, by 1 + eta^2 (1/n - 2/n^2) + "
        "eta^4/n^2 with independent ones, by 1 + eta^2/n without extrapolation: growth within 10% (unbiased, "
        f"n = {n}, mean of {runs} runs of {steps:,} steps)",
        f"within {max(map(abs, off)):.1%}; growth (law): " + ", ".join(rows),
        max(map(abs, off)) <= 0.1,
    )


def explosion(n, steps):
    """2. Same sample against independent ones."""
    game, eta = BilinearGame.chavdarova(n), 0.7
    methods = {
        "same sample": single(game, eta),
        "same sample, beta = -0.3, eta = 0.9": single(game, 0.9, beta=-0.3),
        "independent samples": independent(game, eta),
        "gradient descent-ascent": SGD(SingleElement.uniform(n), eta),
    }
    traces = {name: traced(method, game, steps) for name, method in methods.items()}
    same, momentum, *others = (trace.error[-1] for trace in traces.values())
    return traces, Check(
        "At eta = 0.7 the same sample reaches 1e-20 of the squared distance where independent samples and descent-"
        f"ascent pass 1e8 (unbiased, n = {n}, {steps:,} steps)",
        ", ".join(
            f"{name} {trace.error[-1]:.1e} (step {trace.step[-1]:,}, {trace.oracle[-1] / n:.0f} passes)"
            for name, trace in traces.items()
        ),
        same < 1e-20 and momentum < 1e-20 and all(error > 1e8 for error in others),
    )


def step_sizes(n, steps):
    """3. Every step size."""
    game = BilinearGame.chavdarova(n)
    off, rows = [], []
    for eta in (0.05, 0.3, 0.7, 0.9, 0.97):
        # a pair of coordinates has its factor at every draw of it, so that this is the slope of almost every run
        slope = math.log(traced(single(game, eta), game, steps, steps).error[-1]) / steps
        off.append(slope * n / math.log(1 - eta**2 + eta**4) - 1)
        rows.append(f"{eta:g} {slope:.2e} ({off[-1]:+.1%})")
    fresh = {eta: traced(independent(game, eta), game, steps, steps).error[-1] for eta in (0.05, 0.1, 0.3, 0.5)}
    return Check(
        "With the same sample log ||z||^2 falls by -log(1 - eta^2 + eta^4)/n a step for eta from 0.05 to 0.97 (within "
        "10%), and with independent ones ||z||^2 grows to 10 x and more for eta = 0.05, 0.1, 0.3, 0.5 (unbiased, "
        f"n = {n}, one run of {steps:,} steps each)",
        "same: "
        + ", ".join(rows)
        + "; independent: "
        + ", ".join(f"{eta:g} {error:.1e} x" for eta, error in fresh.items()),
        max(map(abs, off)) <= 0.1 and min(fresh.values()) >= 10,
    )


def bounds(steps):
    """4. The theorem."""
    regularized = BilinearGame.chavdarova(10, biased=True, mu=0.05)
    quadratic = AffineOperator.random(20, 20, 0.05, 1.0)
    boxed = AffineOperator(quadratic.A, quadratic.b, Box(-0.5, 0.5))
    setups = {
        "biased, mu = 0.05, eta = 1/(2L)": (regularized, Extragradient.theoretical),
        "biased, mu = 0.05, eta = 0.1/L": (
            regularized,
            lambda game, sampling: Extragradient(sampling, 0.1 / game.L_max),
        ),
        "quadratic": (quadratic, Extragradient.theoretical),
        "quadratic, in a box": (boxed, Extragradient.theoretical),
        "quadratic, 4-nice": (quadratic, lambda game, _: Extragradient.theoretical(game, Nice(game.n, 4))),
    }
    sharp, published, rows, curve = Worst(), Worst(), [], None
    for name, (game, make) in setups.items():
        method, k = make(game, SingleElement.uniform(game.n)), np.arange(steps + 1)
        scale = float(np.sum((start(game) - game.x_star) ** 2))
        squares = np.array([traced(method, game, steps, seed=seed).error for seed in range(RUNS)]) * scale
        noise = method.sampling.gradient_noise(game.gradients_star)
        theorem = (1 - 2 * method.eta * game.mu / 3) ** k * scale + 3 * method.eta * noise / game.mu
        sharp.see(squares, method.bound(game, start(game), k))
        published.see(squares, theorem)
        rows.append(f"{name} {float(np.max(squares.mean(axis=0) / theorem)):.2f}")
        if curve is None:
            curve = squares.mean(axis=0) / scale, method.bound(game, start(game), k) / scale, theorem / scale
    return curve, Check(
        "E||x^k - x*||^2 <= (1 - 2 eta mu/3)^k ||x^0 - x*||^2 + 3 eta sigma^2/mu at every k, sigma^2 that at x* alone "
        f"(mean of {RUNS} runs less 3 standard errors, k <= {steps:,}, {len(setups)} set-ups), and so the sharper "
        "Extragradient.bound",
        f"the paper's: {published} ({', '.join(rows)}); Extragradient.bound: {sharp}",
        published.ok and sharp.ok,
    )


def rate(errors):
    """The slope of the logarithm over the second half."""
    k = np.arange(len(errors) // 2, len(errors))
    return float(np.polyfit(k, np.log(errors[k]), 1)[0])


def momentum(n, steps):
    """5. The sign of momentum."""
    game, best = BilinearGame.chavdarova(n), {}
    for beta in (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3):
        rates = {
            eta: rate(traced(single(game, eta, beta=beta), game, steps).error) for eta in (0.5, 0.6, 0.7, 0.8, 0.9)
        }
        best[beta] = min(rates.items(), key=lambda pair: pair[1])
    chosen = min(best, key=lambda beta: best[beta][1])
    B, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))
    orthogonal, radii = BilinearGame(B[None]), {}
    for beta, eta in ((0.0, 1 / math.sqrt(2)), (-0.2, 2 / math.sqrt(5))):
        errors = traced(Extragradient(FullBatch(1), eta, beta=beta), orthogonal, 60, until=1e-25).error
        k = np.arange(len(errors))
        # two equal roots make the error fall as k^2 radius^(2k)
        radii[beta] = math.exp(rate(errors / np.maximum(k, 1) ** (2 if beta else 0)) / 2)
    return Check(
        f"With equal step sizes the best momentum in -0.3 .. 0.3 is negative (unbiased, n = {n}, best eta for each); "
        "on an orthogonal game beta = -1/5, eta = 2/sqrt(5) has the spectral radius 1/sqrt(5) = 0.447, without "
        "momentum sqrt(3)/2 = 0.866 (within 2%)",
        f"best beta {chosen:g}; log error a step at its best eta: "
        + ", ".join(f"{beta:g}: {value:.4f} ({eta:g})" for beta, (eta, value) in best.items())
        + f"; radii {radii[-0.2]:.3f}, {radii[0.0]:.3f}",
        chosen < 0 and abs(radii[-0.2] * math.sqrt(5) - 1) < 0.02 and abs(radii[0.0] / math.sqrt(0.75) - 1) < 0.02,
    )


def spectra():
    """6. Momentum by the spectrum."""

    def radius(eta, beta, s):
        linear = 1 + beta - 1j * eta * s - eta**2 * s**2
        root = np.sqrt(linear**2 - 4 * beta)
        return np.maximum(abs(linear + root), abs(linear - root)) / 2

    etas, betas = np.arange(0.4, 1.3, 0.02), np.arange(-0.4, 0.41, 0.02)
    rows, ok = [], True
    for low in (0.5, 0.2, 0.1):
        s = np.geomspace(low, 1, 10)
        table = radius(etas[:, None, None], betas[:, None], s).max(axis=-1)
        i, j = np.unravel_index(table.argmin(), table.shape)
        eta, beta = etas[i], betas[j]
        plain = table[:, np.abs(betas).argmin()]
        game = AffineOperator(BilinearGame.random(1, 20, low, 1.0).A, np.zeros((1, 20)))
        found = {}
        for name, (e, m, expected) in {
            "with": (eta, beta, table.min()),
            "without": (etas[plain.argmin()], 0.0, plain.min()),
        }.items():
            errors = traced(Extragradient(FullBatch(1), float(e), beta=float(m)), game, 3000, until=1e-24).error
            found[name] = math.exp(rate(errors) / 2)
            ok &= abs(math.log(found[name]) / math.log(expected) - 1) < 0.1
        ok &= beta < 0
        rows.append(f"{low:g}: beta {beta:.2f}, radius {found['with']:.4f} ({found['without']:.4f} without)")
    return Check(
        "For singular values from s to 1 too the best momentum is negative (the roots of lambda^2 - (1 + beta - i eta "
        "s - eta^2 s^2) lambda + beta on a grid), and runs have the radii of those roots (log within 10%, n = 1)",
        "s = " + "; ".join(rows),
        bool(ok),
    )


def biased(n, steps):
    """7, 8. Games without a common zero."""
    game, comm, every = BilinearGame.chavdarova(n, biased=True), Local(1), 10
    scale = float(np.sum((start(game) - game.x_star) ** 2))
    curves = {}
    for eta in (0.4, 0.1):
        method = single(game, eta, average=True)
        state, both = started(method, game), []
        for k in range(steps):
            if k % every == 0:
                both.append([np.sum((x - game.x_star) ** 2) / scale for x in (state.iterate, state.x)])
            state = method.step(game, comm, state, Key(0).at(k))
        curves[eta] = np.array(both).T
    last = {eta: float(iterate[len(iterate) // 2 :].mean()) for eta, (iterate, _) in curves.items()}
    mean = {eta: float(average[-1]) for eta, (_, average) in curves.items()}
    noise = float(np.mean(np.sum(game.gradients_star**2, axis=1)))
    predicted = {eta: n * noise / (1 - eta**2) / scale for eta in last}
    fresh = traced(independent(game, 0.1), game, steps, every)
    two = staged(game, steps, every) / scale
    floor = float(two[len(two) // 2 :].mean())
    passes = np.arange(len(two)) * every * 2 / n
    lines = {
        "same sample, last iterate": (passes, curves[0.1][0]),
        "same sample, average": (passes, curves[0.1][1]),
        "same sample, two step sizes": (passes, two),
        "independent samples": (fresh.oracle / n, fresh.error),
    }
    return lines, [
        Check(
            "Without a common zero the last iterate stays at n sigma^2/(1 - eta^2) (within 25%), which a smaller eta "
            "brings no closer, and a quarter of eta brings the average of the u 5 x closer and more; independent "
            f"samples explode (biased, n = {n}, {steps:,} steps, squared distance over that of the start)",
            "last iterate (mean of the second half) "
            + ", ".join(f"{last[eta]:.3f} at eta = {eta:g} ({value:.3f})" for eta, value in predicted.items())
            + f"; average {mean[0.4]:.1e}, {mean[0.1]:.1e}; independent, eta = 0.1, {fresh.error[-1]:.0e}",
            all(abs(last[eta] / predicted[eta] - 1) < 0.25 for eta in last)
            and mean[0.4] >= 5 * mean[0.1]
            and fresh.error[-1] > 1e3,
        ),
        Check(
            "Two step sizes bring the last iterate closer: gamma = 0.5 to look ahead, eta falling from 0.1 as 1/sqrt(k)"
            " (the same game and steps; mean of the second half, below half of the above)",
            f"{floor:.3f}",
            floor < min(last.values()) / 2,
        ),
    ]


def staged(game, steps, every):
    """||x^k - x*||^2 at every such k, with gamma = 0.5 and eta = 0.1/sqrt(1 + k/1000) for 100 steps each."""
    comm, method = Local(1), single(game, 0.1, gamma=0.5)
    state, errors = started(method, game), []
    for k in range(steps):
        if k % 100 == 0:
            method = replace(method, eta=0.1 / math.sqrt(1 + k / 1000))
        if k % every == 0:
            errors.append(np.sum((state.x - game.x_star) ** 2))
        state = method.step(game, comm, state, Key(0).at(k))
    return np.array(errors)


def deterministic(steps=200):
    """9. One component."""
    game = AffineOperator.random(1, 20, 0.05, 1.0)
    ends = [
        traced(Extragradient(SingleElement.uniform(1), 0.5, same_sample=same), game, steps).x for same in (True, False)
    ]
    return Check(
        f"With one component both samplings are the same method, bit for bit (quadratic game, {steps} steps)",
        f"largest difference {np.abs(ends[0] - ends[1]).max():g}",
        bool(np.array_equal(*ends)),
    )


def peers(n, target, most):
    """10. Data passes against the full batch."""
    games = {
        "Chavdarova": BilinearGame.chavdarova(n),
        **{f"random, s = {low:g}": BilinearGame.random(n, 20, low, 1.0, interpolation=True) for low in (0.5, 0.1)},
    }
    one, whole = SingleElement.uniform(n), FullBatch(n)
    rows, gains = [], {}
    for name, game in games.items():
        L, mean_L = game.L_max, game.lipschitz(np.arange(n), np.full(n, 1 / n))
        methods = {
            "single": Extragradient.theoretical(game, one),
            "single, momentum": Extragradient(one, 0.9 / L, beta=-0.3),
            "full batch": Extragradient.theoretical(game, whole),
            "full batch, momentum": Extragradient(whole, 0.9 / mean_L, beta=-0.2),
        }
        passes = {}
        for label, method in methods.items():
            steps = most // 2 * (1 if method.sampling is whole else n)
            trace = traced(method, game, steps, until=target)
            row = trace.at(target)
            passes[label] = row.oracle / n if row else math.inf
        gains[name] = passes["full batch, momentum"] / passes["single, momentum"]
        counts = (f"{label} {value:.0f}" if value <= most else f"{label} > {most}" for label, value in passes.items())
        rows.append(f"{name}: " + ", ".join(counts))
    return Check(
        "Where components have much in common single elements need at most a tenth of the data passes of the full "
        "batch, at its own larger step, and negative momentum helps both; on the game of Chavdarova et al., whose "
        f"components have nothing in common, they need more (a common zero, n = {n}, to {target:g})",
        "; ".join(rows),
        gains.pop("Chavdarova") < 1 and min(gains.values()) >= 10,
    )


def adam_games(steps):
    """11. Adam and ExtraAdam on x'y."""
    import torch

    from compress.torch import ExtraAdam

    def end(cls, betas, decreasing=False):
        z = torch.randn(20, dtype=torch.float64, generator=seeded(0))
        z = (z * math.sqrt(15.2) / z.norm()).requires_grad_()
        turn = torch.kron(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64), torch.eye(10))
        optimizer = cls([z], lr=0.01, betas=betas)
        for k in range(steps):
            if decreasing:
                optimizer.param_groups[0]["lr"] = 0.01 / math.sqrt(1 + k / 1000)
            z.grad = turn @ z.detach()
            if cls is ExtraAdam:
                optimizer.extrapolation()
                z.grad = turn @ z.detach()
            optimizer.step()
        return float(z.detach() @ z.detach())

    rows = {betas: (end(torch.optim.Adam, betas), end(ExtraAdam, betas)) for betas in BETAS}
    decreasing = end(ExtraAdam, BETAS[0], decreasing=True)
    return Check(
        "On f = x'y (d = 10, lr = 0.01, squared distance from 15.2) ExtraAdam ends closer than Adam for all momenta, "
        "by 10 x and more with beta_1 <= 0.5; decreasing steps bring it closer still, positive momentum hurts "
        f"({steps:,} steps)",
        "; ".join(f"beta {b1:g}, {b2:g}: Adam {a:.3g}, ExtraAdam {e:.3g}" for (b1, b2), (a, e) in rows.items())
        + f"; lr/sqrt(1 + k/1000) at beta 0.5, 0.9: {decreasing:.2g}",
        all(a > e * (10 if b1 <= 0.5 else 1) for (b1, _), (a, e) in rows.items())
        and decreasing < rows[BETAS[0]][1]
        and rows[0.9, 0.999][1] > max(rows[0.0, 0.999][1], rows[0.5, 0.999][1]),
    )


def seeded(seed):
    import torch

    return torch.Generator().manual_seed(seed)


def mixture(count, generator):
    """Samples of 8 Gaussians on a circle of radius 2."""
    import torch

    angles = 2 * math.pi / MODES * torch.randint(MODES, (count,), generator=generator)
    centres = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    return centres + SPREAD * torch.randn(count, 2, generator=generator)


def quality(samples):
    """(modes that have a tenth of their share within three spreads, share of all samples that lies there)"""
    angles = 2 * np.pi / MODES * np.arange(MODES)
    centres = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    near = np.linalg.norm(samples[:, None] - centres, axis=2) < 3 * SPREAD
    return int(np.sum(near.mean(axis=0) >= 0.1 / MODES)), float(near.any(axis=1).mean())


@dataclass
class Training:
    """A GAN on the way: iterations, seconds, modes and shares at each measurement, and its last samples."""

    iterations: list
    seconds: list
    modes: list
    shares: list
    samples: np.ndarray

    def good(self):
        """(iterations, seconds) until all modes are covered and SHARE of samples is near one; infinite if never."""
        for iteration, second, modes, share in zip(self.iterations, self.seconds, self.modes, self.shares, strict=True):
            if modes == MODES and share >= SHARE:
                return iteration, second
        return math.inf, math.inf

    @classmethod
    def of(cls, name, lr, iterations, seed, every=50, to_the_end=True):
        """An iteration is a step of both players on a fresh batch, which ExtraAdam uses in both of its half steps."""
        import torch
        from torch.nn import Linear, ReLU, Sequential
        from torch.nn.functional import softplus

        from compress.torch import ExtraAdam

        def network(inputs, outputs):
            layers = Sequential(Linear(inputs, 64), ReLU(), Linear(64, 64), ReLU(), Linear(64, outputs))
            for p in layers.parameters():  # PyTorch's own law, from a generator of our own
                bound = 1 / math.sqrt(p.shape[-1])
                p.data.uniform_(-bound, bound, generator=generator)
            return layers

        generator, fixed = seeded(seed), torch.randn(MEASURED, LATENT, generator=seeded(10**6))
        G, D = network(LATENT, 2), network(2, 1)
        players = [list(G.parameters()), list(D.parameters())]
        made = {"Adam": torch.optim.Adam, "ExtraAdam": ExtraAdam}[name]
        optimizer = made([p for player in players for p in player], lr=lr, betas=BETAS[0])

        def gradients(real, z):
            value = -softplus(-D(real)).mean() - softplus(D(G(z))).mean()
            grads = torch.autograd.grad(value, [*players[0], *players[1]])
            for k, (p, g) in enumerate(zip([*players[0], *players[1]], grads, strict=True)):
                p.grad = g if k < len(players[0]) else -g

        training, spent = cls([], [], [], [], np.empty(0)), 0.0
        for k in range(1, iterations + 1):
            begin = time.perf_counter()
            real, z = mixture(BATCH, generator), torch.randn(BATCH, LATENT, generator=generator)
            gradients(real, z)
            if name == "ExtraAdam":
                optimizer.extrapolation()
                gradients(real, z)
            optimizer.step()
            spent += time.perf_counter() - begin
            if k % every == 0:
                with torch.no_grad():
                    training.samples = G(fixed).numpy()
                modes, share = quality(training.samples)
                training.iterations.append(k)
                training.seconds.append(spent)
                training.modes.append(modes)
                training.shares.append(share)
                if not to_the_end and math.isfinite(training.good()[0]):
                    break
        return training


def spread(values):
    """(mean, its standard error), not numbers where a value is infinite."""
    with np.errstate(invalid="ignore"):
        return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


def pair(values, digits):
    return "{:.{digits}f} +- {:.{digits}f}".format(*spread(values), digits=digits)


def gan(iterations, seeds, tries):
    """12. A GAN on a mixture of 8 Gaussians."""
    import torch

    names, threads = ("Adam", "ExtraAdam"), torch.get_num_threads()

    def trained(name, lr, seeds, **more):
        return [Training.of(name, lr, iterations, seed, **more) for seed in seeds]

    def reached(trainings):
        return np.array([training.good() for training in trainings])

    torch.set_num_threads(1)
    try:
        tried = {
            (name, lr): reached(trained(name, lr, range(tries), to_the_end=False))[:, 0].mean()
            for name in names
            for lr in STEP_SIZES
        }
        best = {name: min(STEP_SIZES, key=lambda lr: tried[name, lr]) for name in names}
        runs = {name: trained(name, lr, range(FIRST, FIRST + DRAWN)) for name, lr in best.items()}
        others = range(FIRST + DRAWN, FIRST + seeds)
        more = {name: trained(name, lr, others, to_the_end=False) for name, lr in best.items()}
    finally:
        torch.set_num_threads(threads)
    (adam, adam_seconds), (extra, extra_seconds) = (reached(runs[name] + more[name]).T for name in names)
    fewer, error = spread(np.minimum(adam, iterations) - extra)  # the same seed has the same networks and data
    rows = [
        f"{name}, lr {best[name]:g}: {1e3 * np.mean([t.seconds[-1] for t in trainings]) / iterations:.1f} ms an "
        f"iteration, at the end {np.mean([t.modes[-1] for t in trainings]):.3g} modes and "
        f"{np.mean([t.shares[-1] for t in trainings]):.0%} ({DRAWN} seeds)"
        for name, trainings in runs.items()
    ]
    choice = ", ".join(f"{name} {lr:g}: {iteration:.0f}" for (name, lr), iteration in tried.items())
    return (
        {f"{name}, lr {best[name]:g}": trainings for name, trainings in runs.items()},
        Check(
            "On a GAN ExtraAdam needs fewer data passes than Adam, by three standard errors of the mean difference and "
            f"more, each at its best step size of three, until all {MODES} modes are covered and {SHARE:.0%} of "
            f"samples lie within three sigma of one (at most {iterations:,} iterations of a batch of {BATCH}, mean of "
            f"{seeds} seeds +- its standard error; the choice is of {tries} others)",
            f"{pair(extra, 0)} against {pair(adam, 0)} iterations, {fewer:.0f} +- {error:.0f} fewer, "
            f"{extra.mean() / adam.mean():.2f} x; in seconds, of two gradients an iteration, {pair(extra_seconds, 1)} "
            f"against {pair(adam_seconds, 1)}, {extra_seconds.mean() / adam_seconds.mean():.2f} x; {'; '.join(rows)}; "
            f"iterations when choosing: {choice}",
            bool(fewer > 3 * error),
        ),
    )


def figure(traces, lines, curve, n, path):
    """Three panels: with a common zero, without one, and the theorem."""
    from ..plot import MARKERS, SAFE, STYLE, plt

    relative = r"$\|x^k - x^*\|^2 / \|x^0 - x^*\|^2$"
    with plt.rc_context(STYLE):
        page, (common, without, theorem) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
        unbiased = {name: (trace.oracle / n, trace.error) for name, trace in traces.items()}
        for axis, curves, floor in ((common, unbiased, 1e-22), (without, lines, 1e-4)):
            for (name, (passes, errors)), colour, marker in zip(curves.items(), SAFE, MARKERS, strict=False):
                axis.plot(passes, errors, color=colour, marker=marker, markersize=4, markevery=0.15, label=name)
            axis.set(yscale="log", ylim=(floor, 1e6), xlabel="data passes", ylabel=relative)
        common.set_title(f"Unbiased game of Chavdarova et al., n = {n}")
        without.set_title("The biased game, n = 20, eta = 0.1")
        for errors, name, style in zip(
            curve, (f"mean of {RUNS} runs", "Extragradient.bound", "the paper's bound"), ("-", "--", ":"), strict=True
        ):
            theorem.plot(errors, style, color=SAFE[0] if style == "-" else "crimson", label=name)
        theorem.set(yscale="log", xlabel="step k", ylabel=relative)
        theorem.set_title("Biased, with mu = 0.05, eta = 1/(2L)")
        for axis in (common, without, theorem):
            axis.legend(fontsize=7)
        page.savefig(path)
        plt.close(page)


def gan_figure(runs, path):
    """Samples of the mixture and of both; shares near a mode against data and time, the mean of seeds."""
    from ..plot import MARKERS, SAFE, STYLE, plt

    pictures = {"real": mixture(MEASURED, seeded(0)).numpy()}
    pictures |= {f"{name}, {t.iterations[-1]:,} iterations": t.samples for name, (t, *_) in runs.items()}
    with plt.rc_context(STYLE):
        page, axes = plt.subplots(1, 5, figsize=(16, 3.6), width_ratios=(1, 1, 1, 1.3, 1.3), layout="constrained")
        for axis, (name, samples) in zip(axes, pictures.items(), strict=False):
            axis.scatter(*samples.T, s=2, linewidth=0, alpha=0.5, color=SAFE[0])
            modes, share = quality(samples)
            axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"{name}\n{modes} modes, {share:.0%} near one")
        for axis, column, label in ((axes[3], "iterations", f"batches of {BATCH}"), (axes[4], "seconds", "seconds")):
            for (name, trainings), colour, marker in zip(runs.items(), SAFE, MARKERS, strict=False):
                x, y = (np.mean([getattr(t, each) for t in trainings], axis=0) for each in (column, "shares"))
                axis.plot(x, y, color=colour, marker=marker, markersize=3, markevery=0.2, label=name)
            axis.set(xlabel=label, ylabel="share of samples near a mode", ylim=(0, 1))
        axes[3].legend(fontsize=7)
        page.savefig(path)
        plt.close(page)


def run(out, full=False):
    n, steps, screen = 100, 80_000 if full else 40_000, console()
    with stepwise(screen, total=11) as step:
        checks = [step(factors, 20, 1000, 40 if full else 10)]
        traces, check = step(explosion, n, 20_000)
        checks += [check, step(step_sizes, 10, 20_000)]
        curve, check = step(bounds, 5000 if full else 1000)
        checks += [check, step(momentum, 20, 10_000 if full else 3000), step(spectra)]
        lines, more = step(biased, 20, steps)
        checks += [*more, step(deterministic), step(peers, n, 1e-10, 2000 if full else 400)]
        trained = None
        if find_spec("torch"):
            checks.append(step(adam_games, 20_000))
            trained, check = step(gan, 5000 if full else 1500, *((40, 5) if full else (16, 2)))
            checks.append(check)
    status = report("Stochastic extragradient: what can be checked", checks, screen)
    if trained is None:
        screen.print(
            'statements about ExtraAdam are left out: PyTorch is missing, pip install "compress-kernels[torch]"'
        )
    out.mkdir(parents=True, exist_ok=True)
    figure(traces, lines, curve, n, out / "extragradient.png")
    screen.print(f"saved {out / 'extragradient.png'}")
    if trained is not None:
        gan_figure(trained, out / "extragradient_gan.png")
        screen.print(f"saved {out / 'extragradient_gan.png'}")
    return status
