"""Alfarra, Perez, Shulgin, Richtarik, Ghanem: Certified Robustness in Federated Learning (2022). Fourteen statements,
each with the figure measured here by compress.federated.

The paper's networks and CIFAR-10 are not for minutes on a CPU, and its numbers are not asserted. Here: scikit-learn's
digits, 8x8 pixels in [0, 1], 1442 images to train and 355 to test; ten clients with an equal random share of both, each
certifying its own tests; SmallCNN of 10,026 parameters, with GroupNorm. SGD as in the authors' code, momentum .9 that
clients keep, weight decay 5e-4, a tenth of the step size in the last third; 30 rounds of two local epochs; local-only
training has as many epochs. "Augmented" is trained under the noise that is certified, "nominal" without. Personalised:
the global model after 4 more epochs on a client's data at a tenth of the step size; from the nominal model, 15 epochs
at a fifth, now augmented.

Two seeds, of shards, initial weights and everything after; each certifies another quarter of the tests, so that 178
images in all are seen (--full: three seeds, a third each, all 355, with n = 10,000 and affine maps too). A gap between
two schemes is that of the mean certified radius (ACR), paired by images, with its standard error over them; those of
the seeds are given where a statement is about one. "Within the standard error of" an ACR is the error of that ACR
itself, over its images: what another draw of them would change. It is far wider than that of a paired gap, which is
printed beside.

Work is shared by a process for each core, torch on one thread in each: figures do not depend on how many there are.
"""

import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

try:
    import torch
except ImportError:
    raise ImportError('certified_fl needs PyTorch: pip install "compress-kernels[bench,torch]"') from None

import compress
from compress.federated import FedAvg, Links, LocalTraining, accuracy, fine_tune, interpolate
from compress.federated.models import SmallCNN
from compress.federated.smoothing import (
    ABSTAIN,
    Affine,
    Certified,
    PixelNoise,
    Rotation,
    Scaling,
    Smoothed,
    Translation,
    acr,
    acr_error,
    certified_accuracy,
    certify_set,
    clopper_pearson,
    throughput,
)

from .. import console
from . import Check, report

CLIENTS, CLASSES, ALPHA, N0, BATCH = 10, 10, 0.001, 100, 500
RATE, LOCAL_EPOCHS = 0.05, 2
PIXELS = PixelNoise(0.12), PixelNoise(0.25), PixelNoise(0.5)
SWEPT = PixelNoise(0.5)  # of mixtures and interpolation
LINKED = PixelNoise(0.25)  # of compressed links
LINKS = {
    "float32": Links(),
    "4 bits": Links(up=compress.Trellis(bits=4), down=compress.Trellis(bits=4)),
    "2 bits": Links(up=compress.Trellis(bits=2), down=compress.Trellis(bits=2)),
    "1 bit": Links(up=compress.Trellis(bits=1), down=compress.Trellis(bits=1)),
}
SPLITS = {"equal": None, "Dirichlet(0.3)": 0.3}
LAMBDAS = (0.03, 0.1, 1.0)  # beside 0, local training, and infinity, FedAvg
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
ATTACKED = Rotation(0.1), Scaling(0.2), Translation(0.1), Affine(0.1)


@dataclass(frozen=True)
class Scale:
    """How much of everything. stride: a seed certifies every so many tests. inputs: of the linear classifier. n: noisy
    samples of a certificate. attacks: images that are attacked, under each deformation."""

    rounds: int = 30
    seeds: int = 2
    stride: int = 4
    n: int = 1000
    inputs: int = 20_000
    attacks: int = 20
    noises: tuple = (*PIXELS, Rotation(0.1), Translation(0.1))


FULL = Scale(seeds=3, stride=3, n=10_000, attacks=50, noises=(*Scale.noises, Affine(0.1)))


# Training and certificates


class World:
    """Shards, tests and initial weights of a seed."""

    def __init__(self, scale, seed, split="equal"):
        self.scale, self.seed = scale, seed
        images, labels = compress.data.images("digits", "train")
        concentration = SPLITS[split]
        if concentration is None:
            parts = compress.data.split(len(labels), CLIENTS, seed)
        else:
            parts = compress.data.split_dirichlet(labels, CLIENTS, concentration, seed)
        self.shards = [(torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])) for rows in parts]
        self.tests = images, labels = compress.data.images("digits", "test")
        rows = np.arange(seed % scale.stride, len(labels), scale.stride)
        self.own = [(images[rows[part]], labels[rows[part]]) for part in compress.data.split(len(rows), CLIENTS, seed)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.start = SmallCNN(1, CLASSES, norm="group")

    def training(self, noise, epochs=LOCAL_EPOCHS, rate=RATE):
        third = math.ceil(2 * self.scale.rounds * LOCAL_EPOCHS / 3)
        return LocalTraining(rate, epochs, 48, 0.9, 5e-4, milestones=third, augment=noise)

    def federate(self, noise, links=LINKS["float32"], mixture=None):
        fed = FedAvg(self.start, self.shards, self.training(noise), links, mixture=mixture, seed=self.seed)
        for row in fed.run(self.scale.rounds):
            if row.left_out:
                raise RuntimeError(f"{noise}, {links}: {row}")
        return fed

    def tuned(self, model, training):
        """A model for each client, trained further on its own data."""
        return [fine_tune(model, *shard, training, self.seed * CLIENTS + i) for i, shard in enumerate(self.shards)]

    def local(self, noise):
        return self.tuned(self.start, self.training(noise, self.scale.rounds * LOCAL_EPOCHS))

    def personalised(self, model, noise):
        return self.tuned(model, self.training(noise, 4, RATE / 10))

    def certify(self, models, noise):
        """The clients' tables, one after the other. models: one, or one for each."""
        models = models if isinstance(models, list) else [models] * CLIENTS
        rows = []
        for i, (model, own) in enumerate(zip(models, self.own, strict=True)):
            smoothed, seed = Smoothed(model, noise, CLASSES, BATCH), self.seed * CLIENTS + i
            rows.append(certify_set(smoothed, *own, n0=N0, n=self.scale.n, alpha=ALPHA, seed=seed, progress=False))
        return joined(rows)

    def clean(self, models):
        """Accuracy without noise: of one model on all tests, of the clients' models their mean."""
        models = models if isinstance(models, list) else [models]
        return float(np.mean([accuracy(model, *self.tests) for model in models]))


def joined(rows):
    """Tables as one, the rows of each after those of the one before."""
    names = Certified.__dataclass_fields__
    return Certified(*(np.concatenate([getattr(row, name) for row in rows]) for name in names))


def distance(models):
    """The root of the mean of ||w_i - mean w||^2, relative to ||mean w||."""
    x = np.array([torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy() for model in models])
    mean = x.mean(axis=0)
    return float(np.sqrt(np.mean(np.sum((x - mean) ** 2, axis=1))) / np.linalg.norm(mean))


# Jobs, each in whatever process: {name: figures}


def of_noise(scale, seed, noise):
    """Schemes that are trained under a noise; of one noise, all on the way between global and local weights too."""
    world = World(scale, seed)
    fed, local = world.federate(noise), world.local(noise)
    schemes = {"local": local, "FedAvg": fed.model, "personalised": world.personalised(fed.model, noise)}
    found = {(noise, name, seed): world.certify(models, noise) for name, models in schemes.items()}
    found |= {("clean", noise, name, seed): world.clean(models) for name, models in schemes.items()}
    if noise == LINKED:
        found["bits", "equal", "float32", seed] = fed.comm.ledger.bits_up, fed.comm.ledger.bits_down
    if noise == SWEPT:
        found["distance", "mixture", 0.0, seed] = distance(local)
        found["distance", "mixture", math.inf, seed] = 0.0
        training = world.training(noise, scale.rounds * LOCAL_EPOCHS)
        far = world.tuned(fed.model, training)
        found["interpolated", 0.0, seed] = found[noise, "FedAvg", seed]
        found["distance", "interpolated", 0.0, seed] = 0.0
        for share in SHARES[1:]:
            models = [interpolate(share, each, fed.model) for each in far]
            found["interpolated", share, seed] = world.certify(models, noise)
            found["distance", "interpolated", share, seed] = distance(models)
    return found


def of_nominal(scale, seed):
    """Nominal FedAvg under every noise, as it is and fine-tuned."""
    world, found = World(scale, seed), {}
    model = world.federate(None).model
    found["clean", None, "FedAvg", seed] = world.clean(model)
    for noise in scale.noises:
        found[noise, "nominal", seed] = world.certify(model, noise)
        tuned = world.tuned(model, world.training(noise, 15, RATE / 5))
        found[noise, "nominal, tuned", seed] = world.certify(tuned, noise)
    if seed == 0:
        found["attacks", seed] = {noise: attacks(world, model, noise) for noise in ATTACKED}
    return found


def of_mixture(scale, seed, strength):
    world = World(scale, seed)
    fed = world.federate(SWEPT, mixture=strength)
    models = [fed.personal(i) for i in range(CLIENTS)]
    return {
        ("mixture", strength, seed): world.certify(models, SWEPT),
        ("distance", "mixture", strength, seed): distance(models),
    }


def compared(split):
    """Names of LINKS: 4 bits, which the bar of bits is not about, with equal shards only."""
    return [name for name in LINKS if split == "equal" or name != "4 bits"]


def of_links(scale, seed, split, name):
    world = World(scale, seed, split)
    fed = world.federate(LINKED, LINKS[name])
    ledger = fed.comm.ledger
    return {
        ("links", split, name, seed): world.certify(fed.model, LINKED),
        ("bits", split, name, seed): (ledger.bits_up, ledger.bits_down),
    }


def attacks(world, model, noise):
    """(attacks, certificates broken, the least share of votes left to a certified class).

    An image that was certified to radius R is deformed by phi + delta, |delta| = .999 R, in both directions of a
    single parameter and eight random ones of several. Broken: the class has so few votes of a thousand that its
    probability is below one half, at level alpha.
    """
    images, labels = world.tests
    images, labels = torch.from_numpy(images[:: len(labels) // world.scale.attacks]), labels
    smoothed, rng = Smoothed(model, noise, CLASSES, BATCH), np.random.default_rng(world.seed)
    generator, total, broken, least, n = torch.Generator().manual_seed(world.seed), 0, 0, 1.0, 1000
    for i, image in enumerate(images):
        found, radius = smoothed.certify(image, N0, world.scale.n, ALPHA, seed=i)
        if found == ABSTAIN:
            continue
        way = unit(np.ones((1, 1)) if noise.parameters == 1 else rng.standard_normal((4, noise.parameters)))
        for delta in torch.from_numpy(np.float32(0.999 * radius * way)):
            moved = noise.sample(n, generator) + delta
            with torch.no_grad():
                votes = model(noise.deform(image.expand(n, *image.shape), moved)).argmax(1).eq(found).sum().item()
            total, least = total + 1, min(least, votes / n)
            broken += clopper_pearson(n - votes, n, ALPHA) > 0.5
    return total, broken, least


def unit(way):
    """Directions and their opposites, of length one."""
    way = way / np.linalg.norm(way, axis=1, keepdims=True)
    return np.concatenate([way, -way])


def of_linear(scale, seed, alpha, inputs):
    """Certificates of a linear classifier, whose true radius is the margin, that say too much."""
    weights, sigma = torch.tensor([1.0, -2.0, 3.0, 0.5]), 0.1  # 0.5 / 0.8 is 6 sigma: images are in [0, 1]

    def model(images):
        score = (images.flatten(1) - 0.5) @ weights
        return torch.stack([-score, score], 1)

    smoothed, rng = Smoothed(model, PixelNoise(sigma), 2), np.random.default_rng((seed, 1))
    generator, broken, abstained = torch.Generator().manual_seed(seed), 0, 0
    for margin in rng.normal(0, sigma, inputs):
        image = (0.5 + margin * weights / weights.norm()).reshape(1, 2, 2)
        found, radius = smoothed.certify(image, N0, 1000, alpha, seed=generator)
        abstained += found == ABSTAIN
        broken += found != ABSTAIN and (found != (margin > 0) or radius > abs(margin))
    return {("linear", alpha, seed): (inputs, broken, abstained)}


# Statements


def tables(found, *at, seeds):
    """Of a scheme, the tables of all seeds."""
    return [found[(*at, seed)] for seed in range(seeds)]


def pooled(rows):
    """(the certified radius, 0 where the class is wrong) of every image of all seeds."""
    return np.concatenate([row.radius * row.correct for row in rows])


@dataclass(frozen=True)
class Gap:
    """By how much the ACR of one list of tables is above that of another, paired by images."""

    mean: float
    error: float
    seeds: tuple

    @classmethod
    def of(cls, rows, others):
        each = [pooled([row]) - pooled([other]) for row, other in zip(rows, others, strict=True)]
        d = np.concatenate(each)
        return cls(float(d.mean()), float(d.std(ddof=1) / math.sqrt(d.size)), tuple(float(x.mean()) for x in each))

    @property
    def clear(self):
        """Above 0 by two standard errors, and so in every seed."""
        return self.mean > 2 * self.error and min(self.seeds) > 0

    def __str__(self):
        return f"{self.mean:+.4f} +- {self.error:.4f}"


def label(noise):
    return f"{type(noise).__name__} {noise.sigma:g}"


def cap(noise, n):
    """The largest radius that n samples can certify."""
    return noise.radius(ALPHA ** (1 / n))


def reaches(row, radii):
    """Whether an image is certified, rightly, to these radii: (images, radii)."""
    return np.float64((row.radius[:, None] >= radii) & row.correct[:, None])


def curve(rows, radii):
    """Certified accuracy at these radii, of all seeds together."""
    return np.average([certified_accuracy(row, radii) for row in rows], axis=0, weights=[len(row) for row in rows])


def coverage(found, scale):
    sums = {}
    for alpha in (0.05, ALPHA):
        rows = [row for at, row in found.items() if at[:2] == ("linear", alpha)]
        inputs, broken, abstained = map(sum, zip(*rows, strict=True))
        sums[alpha] = broken, abstained / inputs, alpha * inputs + 3 * math.sqrt(alpha * (1 - alpha) * inputs), inputs
    return Check(
        f"CERTIFY (n0 = {N0}, n = 1000) on a linear classifier, whose true radius is the margin, N(0, sigma^2): wrong "
        f"classes and radii beyond it, of {scale.inputs:,} inputs, no more than alpha and three standard deviations",
        "; ".join(
            f"alpha = {alpha:g}: {broken:,} ({broken / inputs:.2%}), {most:.0f} allowed; {abstained:.1%} abstain"
            for alpha, (broken, abstained, most, inputs) in sums.items()
        ),
        all(broken <= most for broken, _, most, _ in sums.values()),
    )


def caps():
    """What counts can certify"""
    sure = Smoothed(lambda images: torch.stack([images.sum((1, 2, 3)) * 0, 1 + 0 * images[:, 0, 0, 0]], 1), LINKED, 2)
    told, good = [], True
    for n, said, least in ((10**5, 3.8115, 50_490), (10**4, 3.199, 5156), (1000, 2.463, 550)):
        ratio = sure.certify(torch.zeros(1, 1, 1), 1, n, ALPHA, seed=0)[1] / LINKED.sigma
        bounds = clopper_pearson(np.arange(n // 2, n + 1), n, ALPHA)
        first = n // 2 + int(np.argmax(bounds >= 0.5))
        good &= abs(ratio - said) < 5e-4 and first == least and bool((np.diff(bounds) > 0).all())
        told.append(f"n = {n:,}: {ratio:.4f} sigma, k >= {first:,}")
    return Check(
        "The largest radius is Phi^-1(alpha^(1/n)) sigma: 3.8115, 3.199 and 2.463 sigma for n = 1e5, 1e4 and 1e3 at "
        "alpha = .001; CERTIFY abstains iff k < 50,490, 5156 and 550; radii grow with k",
        "; ".join(told),
        good,
    )


def area(found):
    off, rows = 0.0, [row for row in found.values() if isinstance(row, Certified)]
    for row in rows:
        radii = np.unique(np.concatenate([[0.0], row.radius]))  # CA is constant up to the next of them
        off = max(off, abs(np.sum(certified_accuracy(row, radii[1:]) * np.diff(radii)) - acr(row)))
    return Check(
        "ACR is the area under certified accuracy as a function of the radius, within 1e-6, in every table made here",
        f"{len(rows)} tables, {sum(map(len, rows)):,} certificates: within {off:.1e}",
        off < 1e-6,
    )


def federated(found, scale, noises, name):
    """FedAvg against local-only."""
    told, good = [], True
    for noise in noises:
        fed, local = (tables(found, noise, scheme, seeds=scale.seeds) for scheme in ("FedAvg", "local"))
        gap, radii = Gap.of(fed, local), np.linspace(0, cap(noise, scale.n), 11)
        lead = np.concatenate([reaches(one, radii) - reaches(two, radii) for one, two in zip(fed, local, strict=True)])
        mean, error = lead.mean(axis=0), lead.std(axis=0, ddof=1) / math.sqrt(len(lead))
        good &= gap.clear and bool((mean >= -2 * error).all())
        told.append(
            f"{label(noise)}: ACR {pooled(local).mean():.4f} and {pooled(fed).mean():.4f}, gap {gap} (seeds "
            f"{', '.join(f'{x:+.3f}' for x in gap.seeds)}); lead in certified accuracy {100 * mean.min():+.1f} to "
            f"{100 * mean.max():+.1f} points, below 0 at {np.count_nonzero(mean < 0)} radii"
        )
    return Check(
        f"{name}: FedAvg is more robust than local-only training, both augmented. Its certified accuracy is no lower, "
        "by more than two standard errors, at any of 11 radii from 0 to the largest, its ACR is higher by more than "
        "two, and in every seed",
        "; ".join(told),
        good,
    )


def nominal(found, scale):
    """FedAvg without noise."""
    told, tuning, gaps, good, cleans = [], [], {}, True, {}
    plain = np.mean([found["clean", None, "FedAvg", seed] for seed in range(scale.seeds)])
    for noise in scale.noises:
        fed, bare, tuned = (tables(found, noise, s, seeds=scale.seeds) for s in ("FedAvg", "nominal", "nominal, tuned"))
        clean = cleans[noise] = np.mean([found["clean", noise, "FedAvg", seed] for seed in range(scale.seeds)])
        far = 0.5 * cap(noise, scale.n)
        below, above = (float(curve(rows, [far])[0]) for rows in (bare, fed))
        good &= below < above
        told.append(f"{label(noise)}: {clean:.1%} clean; at radius {far:.2f}, {below:.1%} against {above:.1%}")
        gap = gaps[noise] = Gap.of(tuned, bare)
        tuning.append(f"{label(noise)}: {pooled(bare).mean():.4f}, {gap}; augmented FedAvg {pooled(fed).mean():.4f}")
    return [
        Check(
            "FedAvg without noise has the lower certified accuracy at half the largest radius, under every noise, and "
            f"is more accurate on clean images than FedAvg with {label(PIXELS[-1])}. Not confirmed: that it is, than "
            "with less noise",
            f"nominal {plain:.1%} clean; augmented " + "; ".join(told),
            bool(good and plain > cleans[PIXELS[-1]] and not all(plain > cleans[noise] for noise in PIXELS)),
        ),
        Check(
            f"Fine-tuning it with noise for 15 epochs, at clients, raises its ACR at {label(PIXELS[-1])} (more than "
            "two standard errors and in every seed). Not confirmed as a rule: not so at every noise, nor to what "
            "augmented FedAvg has",
            "; ".join(tuning),
            gaps[PIXELS[-1]].clear and not all(gap.clear for gap in gaps.values()),
        ),
    ]


def personalised(found, scale):
    told, against, good = [], [], [True, True]
    for noise in scale.noises:
        own, fed, local = (tables(found, noise, s, seeds=scale.seeds) for s in ("personalised", "FedAvg", "local"))
        above, beside = Gap.of(own, local), Gap.of(own, fed)
        good[0] &= above.mean >= 0
        good[1] &= beside.clear
        told.append(f"{label(noise)}: {pooled(own).mean():.4f}, {above}")
        against.append(f"{label(noise)}: {beside}")
    return [
        Check(
            "Personalised from augmented FedAvg: ACR no lower than local-only training's (ACR, and by how much)",
            "; ".join(told),
            bool(good[0]),
        ),
        Check(
            "Not confirmed: that they are more robust than the global model too. Under no more than some of the noises "
            "is their ACR above augmented FedAvg's (two standard errors, every seed); clients here have samples of one "
            "distribution",
            "; ".join(against),
            not good[1],
        ),
    ]


def sweeps(found, scale):
    """From global to local."""
    seeds, kinds, told, good = scale.seeds, {}, [], True
    mixed = {math.inf: "FedAvg", **dict.fromkeys(sorted(LAMBDAS, reverse=True)), 0.0: "local"}
    kinds["mixture"] = {
        strength: tables(found, *((SWEPT, name) if name else ("mixture", strength)), seeds=seeds)
        for strength, name in mixed.items()
    }
    kinds["interpolated"] = {share: tables(found, "interpolated", share, seeds=seeds) for share in SHARES}
    lines = {}
    for kind, rows in kinds.items():
        values = {at: float(pooled(row).mean()) for at, row in rows.items()}
        spread = {at: float(np.mean(tables(found, "distance", kind, at, seeds=seeds))) for at in rows}
        best, last = max(values, key=values.get), list(rows)[-1]
        gap = Gap.of(rows[best], rows[last])
        good &= best != last and gap.clear and list(spread.values()) == sorted(spread.values())
        name = "lambda" if kind == "mixture" else "a"
        told.append(
            ", ".join(f"{name} = {at:g}: {value:.4f} at {spread[at]:.2f}" for at, value in values.items())
            + f"; best against the local end {gap}"
        )
        lines[kind] = [(spread[at], values[at], Gap.of(rows[at], rows[last]).error, at) for at in rows]
    return lines, Check(
        f"Robustness falls as local models leave the global one ({label(SWEPT)}): from lambda = inf (FedAvg) to 0 "
        "(local), and from a = 0 (global) to 1 (trained on alone, as long again) of a w_local + (1 - a) w_global, the "
        "distance ||w_i - mean w|| / ||mean w|| grows, and the local end is below the best by more than two standard "
        "errors and in every seed (ACR at distance)",
        "; ".join(told),
        bool(good),
    )


def linked(found, scale, split):
    """Compressed links against float32."""
    seeds, names, told, rows, points, good = range(scale.seeds), compared(split), [], {}, {}, True
    for name in names:
        at = (LINKED, "FedAvg") if (split, name) == ("equal", "float32") else ("links", split, name)
        rows[name] = tables(found, *at, seeds=scale.seeds)
    total = {name: sum(sum(found["bits", split, name, seed]) for seed in seeds) for name in names}
    bar = acr_error(joined(rows["float32"]))
    for name in names:
        share, mean = total["float32"] / total[name], float(pooled(rows[name]).mean())
        each = total[name] / 8e3 / CLIENTS / scale.rounds / scale.seeds
        said = f"{name}: ACR {mean:.4f}"
        if name == "float32":
            points[name] = 32, mean, bar
            told.append(f"{said} +- {bar:.4f}, {each:.1f} kB a client and round")
            continue
        gap = Gap.of(rows[name], rows["float32"])
        points[name] = 32 / share, mean, gap.error
        good &= abs(gap.mean) <= bar and (name == "4 bits" or share >= 14)
        told.append(
            f"{said}, {each:.1f} kB, 1/{share:.1f}, paired gap {gap} (seeds "
            f"{', '.join(f'{x:+.4f}' for x in gap.seeds)})"
        )
    apart = "" if split == "equal" else "Reported apart, as clients' data differ: "
    return points, Check(
        f"{apart}FedAvg over compressed links both ways, Trellis with error feedback, {split} shards, {label(LINKED)}: "
        "ACR within the standard error of the uncompressed one, bits of all packets, headers too, at most 1/14 of "
        "float32's with 1 and 2 bits",
        "; ".join(told),
        bool(good),
    )


def resident():
    """Bytes that this process has in memory; the most it ever had where the system does not say."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held(n, shape, smoothed=Smoothed):
    """(largest batch, bytes by which a process grows at most) while n samples of an image are classified, by one
    linear layer: what there is besides samples is next to nothing. The process is a new one: in another, memory that
    was given back would hide what is taken."""
    with ProcessPoolExecutor(1, get_context("spawn"), one_thread) as pool:
        return pool.submit(held_here, n, shape, smoothed).result()


def held_here(n, shape, smoothed):
    image, sizes, seen = torch.zeros(shape), set(), []
    weights = torch.ones(image.numel(), 2)

    def watched(images):
        sizes.add(len(images))
        seen.append(resident())
        return images.flatten(1) @ weights

    vote = smoothed(watched, LINKED, 2)
    vote.certify(image, N0, N0, ALPHA, seed=0)  # once before: libraries take what they need
    before = resident()
    vote.certify(image, N0, n, ALPHA, seed=0)
    return max(sizes), max(seen) - before


def speed():
    """Throughput and memory, here and now."""
    model, generator = SmallCNN(1, CLASSES, norm="group").eval(), torch.Generator().manual_seed(0)
    image, shares = torch.rand((1, 8, 8), generator=generator), {}
    for noise in (PixelNoise(0.25), Rotation(0.1), Translation(0.1)):
        tries = [throughput(Smoothed(model, noise, CLASSES), image, n=4000, repeats=5) for _ in range(3)]
        shares[noise] = sorted(tries, key=lambda row: row.share)[1]
    n, shape = 100_000, (1, 32, 32)
    most, grown = held(n, shape)
    whole = 4 * n * math.prod(shape)
    return Check(
        "Certification runs at 90% of the model's own forward pass or more, under pixel noise and deformations; n = "
        f"{n:,} samples of an image of 32x32 pixels, {whole / 2**20:.0f} MiB, are never in memory together: the "
        "largest batch is of 1000, and the process grows by less than a tenth of that, ten such batches",
        "; ".join(
            f"{label(noise)}: {row.vote:,.0f} samples/s, {row.share:.0%} of {row.forward:,.0f}"
            for noise, row in shares.items()
        )
        + f"; largest batch {most:,}, {grown / 2**20:+.1f} MiB",
        min(row.share for row in shares.values()) >= 0.9 and most == 1000 and grown < whole / 10,
    )


def attacked(found):
    rows = found["attacks", 0]
    total, broken = sum(row[0] for row in rows.values()), sum(row[1] for row in rows.values())
    return Check(
        "Certificates of deformations hold: of attacks with parameters at .999 of the radius (FedAvg, nominal), no "
        "more change the smoothed class than alpha and three standard deviations allow",
        "; ".join(
            f"{label(noise)}: {bad} of {count} attacks, {least:.1%} of votes left at least"
            for noise, (count, bad, least) in rows.items()
        ),
        min(row[0] for row in rows.values()) > 0 and broken <= ALPHA * total + 3 * math.sqrt(ALPHA * total),
    )


def figure(found, scale, lines, points, path):
    """Certified accuracy under every noise; ACR on the way from global to local; ACR against bits."""
    from ..plot import SAFE, STYLE, plt

    schemes = {
        "local": "local only",
        "FedAvg": "FedAvg",
        "personalised": "personalised",
        "nominal": "FedAvg, nominal",
        "nominal, tuned": "nominal, tuned",
    }
    columns = math.ceil((len(scale.noises) + 3) / 2)
    with plt.rc_context(STYLE):
        page, axes = plt.subplots(2, columns, figsize=(3.3 * columns, 6.2), layout="constrained")
        panels = list(axes.flat)
        for axis, noise in zip(panels, scale.noises, strict=False):
            radii = np.linspace(0, cap(noise, scale.n), 200)
            for (scheme, name), colour in zip(schemes.items(), SAFE, strict=False):
                line = "--" if scheme.startswith("nominal") else "-"
                rows = tables(found, noise, scheme, seeds=scale.seeds)
                axis.plot(radii, curve(rows, radii), line, color=colour, label=name)
            unit = {"Rotation": "rad", "PixelNoise": r"$\ell_2$"}.get(type(noise).__name__, "parameters")
            axis.set(xlabel=f"radius ({unit})", title=label(noise), ylim=(0, 1.02), xlim=(0, None))
        for axis in axes[:, 0]:
            axis.set_ylabel("certified accuracy")
        panels[0].legend(loc="lower left")
        gaps, way, bits = panels[len(scale.noises) : len(scale.noises) + 3]
        pairs = ("FedAvg", "local"), ("personalised", "FedAvg"), ("nominal, tuned", "nominal")
        for k, ((better, worse), colour) in enumerate(zip(pairs, SAFE, strict=False)):
            for at, noise in enumerate(scale.noises):
                gap = Gap.of(*(tables(found, noise, scheme, seeds=scale.seeds) for scheme in (better, worse)))
                y, error = np.array([gap.mean, 2 * gap.error]) / cap(noise, scale.n)
                name = f"{better} over {worse}" if at == 0 else None
                gaps.errorbar(at + (k - 1) / 6, y, error, fmt="o", color=colour, label=name, capsize=2, markersize=3)
        gaps.axhline(0, color="grey", linewidth=0.6)
        short = [label(noise).replace("PixelNoise", "pixels").replace(" ", "\n").lower() for noise in scale.noises]
        gaps.set_xticks(range(len(scale.noises)), short)
        gaps.set(ylabel="ACR gap / largest radius (2 s.e.)", title="Gaps between schemes")
        low, high = gaps.get_ylim()
        gaps.set_ylim(low, high + 0.35 * (high - low))  # for the legend
        gaps.legend(loc="upper right")
        for (kind, row), colour in zip(lines.items(), SAFE, strict=False):
            x, y, error, ats = zip(*row, strict=True)
            name = r"mixture, $\lambda$" if kind == "mixture" else "interpolation, a"
            way.errorbar(x, y, error, fmt="o-", color=colour, label=name, capsize=2, markersize=3)
            side = "right" if kind == "mixture" else "left"
            offset = (-4, -9) if kind == "mixture" else (3, 4)
            for each, at in zip(zip(x, y, strict=True), ats, strict=True):
                said = r"$\infty$" if at == math.inf else f"{at:g}"
                way.annotate(said, each, offset, textcoords="offset points", fontsize=6.5, color=colour, ha=side)
        way.set(
            xlabel=r"distance $\|w_i - \bar w\| / \|\bar w\|$",
            ylabel="ACR (s.e. of the gap to the local end)",
            title=f"From global to local, {label(SWEPT)}",
        )
        for (split, row), colour in zip(points.items(), SAFE, strict=False):
            x, y, error = zip(*row.values(), strict=True)
            bits.errorbar(x, y, error, fmt="o-", color=colour, label=f"{split} shards", capsize=2, markersize=3)
            bits.axhspan(y[0] - error[0], y[0] + error[0], color=colour, alpha=0.08, linewidth=0)
        bits.set(xscale="log", xticks=[1, 2, 4, 8, 16, 32], xticklabels=[1, 2, 4, 8, 16, 32])
        bits.minorticks_off()
        bits.set(xlabel="bits a coordinate, all packets", ylabel="ACR (s.e.; compressed: of the gap)")
        bits.set_title(f"Compressed links, {label(LINKED)}")
        for axis in (way, bits):
            axis.legend()
        for axis in panels[len(scale.noises) + 3 :]:
            axis.set_visible(False)
        page.savefig(path)
        plt.close(page)


def jobs(scale):
    """Functions and arguments, the longest first."""
    seeds = range(scale.seeds)
    yield from ((of_noise, seed, noise) for noise in sorted(scale.noises, key=lambda n: n != SWEPT) for seed in seeds)
    yield from ((of_nominal, seed) for seed in seeds)
    for split in SPLITS:
        names = [name for name in compared(split) if (split, name) != ("equal", "float32")]
        yield from ((of_links, seed, split, name) for name in names for seed in seeds)
    yield from ((of_mixture, seed, strength) for strength in LAMBDAS for seed in seeds)
    pieces = 4
    for alpha in (0.05, ALPHA):
        yield from ((of_linear, piece, alpha, scale.inputs // pieces) for piece in range(pieces))


def one_thread():
    torch.set_num_threads(1)


def worked(scale, progress, workers=None):
    """The figures of all jobs. workers: processes, of which one alone is this one; as many as there are cores."""
    todo, found = list(jobs(scale)), {}
    task, workers = progress.add_task("training and certifying", total=len(todo)), workers or os.cpu_count()
    if workers == 1:
        threads = torch.get_num_threads()
        one_thread()
        try:
            for function, *arguments in todo:
                found |= function(scale, *arguments)
                progress.advance(task)
        finally:
            torch.set_num_threads(threads)
        return found
    with ProcessPoolExecutor(workers, get_context("spawn"), one_thread) as pool:
        futures = [pool.submit(function, scale, *arguments) for function, *arguments in todo]
        try:
            for future in as_completed(futures):
                found |= future.result()
                progress.advance(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has not begun never does
            raise
    return found


def run(out, full=False, scale=None, workers=None):
    from rich.progress import Progress

    scale, screen = scale or (FULL if full else Scale()), console()
    with Progress(console=screen, transient=True) as progress:
        found = worked(scale, progress, workers)
        progress.add_task("speed and memory", total=None)
        fast = speed()
    lines, swept = sweeps(found, scale)
    links = {split: linked(found, scale, split) for split in SPLITS}
    deformations = [noise for noise in scale.noises if noise not in PIXELS]
    checks = [
        coverage(found, scale),
        caps(),
        area(found),
        federated(found, scale, [noise for noise in scale.noises if noise in PIXELS], "Pixel noise"),
        federated(found, scale, deformations, "Deformations"),
        *nominal(found, scale),
        *personalised(found, scale),
        swept,
        *(check for _, check in links.values()),
        fast,
        attacked(found),
    ]
    status = report("Certified robustness in federated learning: what can be checked", checks, screen)
    out.mkdir(parents=True, exist_ok=True)
    points = {split: row for split, (row, _) in links.items()}
    figure(found, scale, lines, points, out / "certified_fl.png")
    screen.print(f"saved {out / 'certified_fl.png'}")
    return status
