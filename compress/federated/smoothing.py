"""Randomized smoothing: predictions of a noisy vote, and the radius within which nothing changes them.

The smoothed classifier of a model f and a noise N is g(x) = argmax_c P(f(N(x)) = c). Cohen, Rosenfeld, Kolter,
"Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, arXiv 1902.02918, for noise on pixels; Alfarra,
Bibi, Khan, Torr, Ghanem, "DeformRS", AAAI 2022, arXiv 2107.00996, for deformations; both on clients of a federation in
Alfarra, Perez, Shulgin, Richtarik, Ghanem, "Certified Robustness in Federated Learning", arXiv 2206.02535.

Design note
-----------
A. An image is never stored n times. A batch of samples is an image expanded by a stride of zero, of which a noise makes
   one new tensor. What is left after a batch is a count for each class.
B. All deformations are affine maps of the coordinates, so one sampler serves them, and a class says what its parameters
   do to the 2 x 3 matrix. Of the grid of a batch, the part in x varies over columns alone and that in y over rows: one
   broadcast sum makes it, several times faster than the product of matrices behind torch's affine_grid.
C. Coordinates have -1 and 1 in the centres of the outermost pixels (align_corners=True), or else the identity would not
   be one. x points right and y down. Rotations turn by true angles also where an image is not square.
D. A certificate of a deformation is about its parameters: for every |delta| below the radius, g has the same answer for
   the original deformed once, by phi + delta. An image that was resampled, saved and deformed again is another image.
E. The key of an image is the caller's seed with its index folded in. Rows are hence the same in whatever order, and
   after whatever break, they are made.
"""

from __future__ import annotations

import statistics
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from ..compressor import finite_number, positive_int
from ..key import Key
from .table import ABSTAIN, Certified, Table, bar
from .training import tensor, text_of


@dataclass(frozen=True)
class Noise(ABC):
    """A random perturbation of images, for which a vote of `p` or more certifies a radius.

    sigma: its size; what it means is for a subclass to say.

    Raises TypeError or ValueError for a sigma that is not a positive finite number.
    """

    sigma: float

    def __post_init__(self):
        if finite_number(self.sigma, "sigma") <= 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")

    @property
    def half_width(self) -> float | None:
        """Of the interval [-lam, lam] that the one parameter is uniform on; None where parameters are Gaussian."""
        return None

    @abstractmethod
    def draw(self, images, generator):
        """Images (m, c, h, w) in [0, 1], floating-point, each perturbed by a draw of its own: for votes, where they are
        one image expanded, as for training.

        generator: the torch.Generator of the draws, on the device of the images. Raises ValueError for images of
        another kind.
        """

    def radius(self, p):
        """What is certified where a class has probability p or more under the noise: sigma Phi^-1(p) for a Gaussian,
        2 lam (p - 1/2) for a uniform parameter; 0 where p <= 1/2. p: a number or an array in [0, 1].

        The Gaussian radius is that of Cohen et al., Theorem 1, with 1 - p for the second class. The uniform one: a
        shift by delta moves [-lam, lam] off a part delta/(2 lam) of itself, so a class loses no more than that.
        """
        p = np.asarray(p, np.float64)
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"p must be in [0, 1], got {p}")
        p = np.maximum(p, 0.5)
        if self.half_width is not None:
            radius = 2 * self.half_width * (p - 0.5)
        else:
            radius = self.sigma * _scipy("special").ndtri(p)
        return radius if radius.ndim else float(radius)


@dataclass(frozen=True)
class PixelNoise(Noise):
    """N(0, sigma^2) added to every pixel. Its radius is the l2 norm of a change to the image, in units of a pixel's
    [0, 1]. Nothing is clipped to [0, 1].

    >>> PixelNoise(0.25).radius([0.5, 0.9]).round(4)
    array([0.    , 0.3204])
    """

    def draw(self, images, generator):
        _check_images(images)
        noise = torch.empty(images.shape, dtype=images.dtype, device=images.device)
        return noise.normal_(0, self.sigma, generator=generator).add_(images)


@dataclass(frozen=True)
class Deformation(Noise):
    """Coordinates moved by a random affine map, and the image read where they came to.

    Pixel (x, y) of the result is the image at A (x, y, 1)', bilinearly, and 0 outside of it. x in [-1, 1] points right
    and y in [-1, 1] down, from centre to centre of the outermost pixels: one pixel is 2/(w - 1) and 2/(h - 1).
    """

    parameters: ClassVar[int]  # of one image

    @abstractmethod
    def matrices(self, parameters, h: int, w: int):
        """A, (m, 2, 3), of parameters (m, d) for images of h x w pixels."""

    def sample(self, m: int, generator):
        """Parameters (m, d) of m images, float32 on the generator's device: N(0, sigma^2) or uniform on
        [-half_width, half_width]."""
        drawn = torch.empty((m, self.parameters), device=generator.device)
        if self.half_width is None:
            return drawn.normal_(0, self.sigma, generator=generator)
        return drawn.uniform_(-self.half_width, self.half_width, generator=generator)

    def deform(self, images, parameters):
        """Images (m, c, h, w), each deformed by its row of parameters (m, d).

        >>> upright = torch.eye(3).flip(1).reshape(1, 1, 3, 3)
        >>> Translation(0.1).deform(upright, torch.tensor([[1.0, 0.0]]))[0, 0].round()  # a pixel to the left
        tensor([[0., 1., 0.],
                [1., 0., 0.],
                [0., 0., 0.]])
        """
        _check_images(images)
        m, _, h, w = images.shape
        if parameters.shape != (m, self.parameters):
            raise ValueError(f"parameters must be {(m, self.parameters)}, got {tuple(parameters.shape)}")
        dtype = images.dtype
        if dtype.itemsize < 4:  # positions in half precision are off by much of a pixel
            images = images.float()
        A = self.matrices(parameters.to(images), h, w)[..., None]
        x, y = _axis(w, images), _axis(h, images)[:, None]
        grid = (A[:, :, 0] * x + A[:, :, 2]).unsqueeze(2) + A[:, :, 1, :, None] * y
        grid = grid.permute(0, 2, 3, 1)
        return torch.nn.functional.grid_sample(images, grid, padding_mode="zeros", align_corners=True).to(dtype)

    def draw(self, images, generator):
        return self.deform(images, self.sample(len(images), generator))


@dataclass(frozen=True)
class Rotation(Deformation):
    """A turn about the centre, by an angle uniform on [-pi sigma, pi sigma], sigma in (0, 1]. Clockwise is positive.
    Its radius is an angle in radians.

    >>> Rotation(0.1).radius(1.0) / np.pi
    0.1
    """

    parameters = 1

    def __post_init__(self):
        super().__post_init__()
        if self.sigma > 1:
            raise ValueError(f"sigma of a Rotation must be at most 1, a whole turn, got {self.sigma}")

    @property
    def half_width(self):
        return np.pi * self.sigma

    def matrices(self, parameters, h, w):
        cos, sin = parameters[:, 0].cos(), parameters[:, 0].sin()
        aspect = max(h - 1, 1) / max(w - 1, 1)  # a unit of y in units of x
        zero = torch.zeros_like(cos)
        return torch.stack([cos, sin * aspect, zero, -sin / aspect, cos, zero], 1).reshape(-1, 2, 3)


@dataclass(frozen=True)
class Scaling(Deformation):
    """Coordinates times a factor 1 + a, with a uniform on [-sigma, sigma], sigma in (0, 1). Its radius is a change of
    the factor."""

    parameters = 1

    def __post_init__(self):
        super().__post_init__()
        if self.sigma >= 1:
            raise ValueError(f"sigma of a Scaling must be below 1, where factors reach 0, got {self.sigma}")

    @property
    def half_width(self):
        return self.sigma

    def matrices(self, parameters, h, w):
        factor, zero = 1 + parameters[:, 0], torch.zeros_like(parameters[:, 0])
        return torch.stack([factor, zero, zero, zero, factor, zero], 1).reshape(-1, 2, 3)


@dataclass(frozen=True)
class Translation(Deformation):
    """Coordinates plus (a, b), each N(0, sigma^2): an image moves left by a and up by b, in half widths and half
    heights. Its radius is the l2 norm of a change of (a, b)."""

    parameters = 2

    def matrices(self, parameters, h, w):
        identity = torch.eye(2, dtype=parameters.dtype, device=parameters.device)
        return torch.cat([identity.expand(len(parameters), 2, 2), parameters[..., None]], 2)


@dataclass(frozen=True)
class Affine(Deformation):
    """Coordinates (x, y) plus (a x + b y + c, d x + e y + f), the six N(0, sigma^2). Its radius is the l2 norm of a
    change of the six."""

    parameters = 6

    def matrices(self, parameters, h, w):
        identity = torch.eye(2, 3, dtype=parameters.dtype, device=parameters.device)
        return identity + parameters.reshape(-1, 2, 3)


def clopper_pearson(k, n: int, alpha: float):
    """A lower bound of a probability that had k successes in n: it holds with probability 1 - alpha or more.

    The alpha-quantile of Beta(k, n - k + 1); 0 where k is 0. k: an integer or an array of them, in [0, n].

    Raises TypeError or ValueError for k, n >= 1 or alpha in (0, 1) that are not so; ImportError without SciPy.

    >>> round(clopper_pearson(99_000, 100_000, 0.001), 4)
    0.989
    """
    n, alpha, k = positive_int(n, "n"), _level(alpha), np.asarray(k)
    if k.dtype.kind not in "iu":
        raise TypeError(f"k must be integers, got {k.dtype}")
    if not ((k >= 0) & (k <= n)).all():
        raise ValueError(f"k must be in [0, {n}], got {k}")
    bound = np.where(k > 0, _scipy("stats").beta.ppf(alpha, np.maximum(k, 1), n - np.maximum(k, 1) + 1), 0.0)
    return bound if bound.ndim else float(bound)


@dataclass(frozen=True, eq=False)
class Smoothed:
    """The vote of a model over a noise.

    model: a function of images (m, c, h, w) that returns logits (m, classes); a torch.nn.Module is to be in eval mode,
        in all its parts.
    noise: what perturbs the images; the model should have been trained under the same.
    classes: how many there are.
    batch: the most samples to have in memory.

    Images are tensors or arrays (c, h, w) of floating-point numbers in [0, 1]; they are taken to the device of the
    model's parameters. seed: an integer in [0, 2^64 - 1), or a torch.Generator on that device.

    Raises TypeError or ValueError for arguments of another kind or range; ValueError for an image that leaves [0, 1],
    with its least and greatest value, for a model, or a part of it, in training mode, and for logits of another shape
    or with NaN among them.

    >>> bright = lambda images: torch.stack([0 * images[:, 0, 0, 0], images.mean((1, 2, 3)) - 0.5], 1)
    >>> smoothed = Smoothed(bright, PixelNoise(0.5), classes=2)
    >>> image = torch.full((1, 4, 4), 0.6)  # the mean is 0.1 above the threshold: 0.4 away in the l2 norm
    >>> smoothed.predict(image, n=1000, seed=0)
    1
    >>> found, radius = smoothed.certify(image, n=10_000, seed=0)
    >>> found, 0.35 < radius < 0.4
    (1, True)
    """

    model: object
    noise: Noise
    classes: int
    batch: int = 1000

    def __post_init__(self):
        if not callable(self.model):
            raise TypeError(f"model must be a function of images, got {self.model!r}")
        if not isinstance(self.noise, Noise):
            raise TypeError(f"noise must be a Noise, got {self.noise!r}")
        positive_int(self.classes, "classes", least=2)
        positive_int(self.batch, "batch")

    def predict(self, x, n: int = 1000, alpha: float = 0.001, *, seed) -> int:
        """The class of most votes among n, or ABSTAIN where they leave in doubt whether it is that of g: a two-sided
        binomial test of the first two has a p-value above alpha. A class that is returned is not that of g with
        probability alpha or less (Cohen et al., PREDICT, Proposition 1)."""
        n, alpha = positive_int(n, "n"), _level(alpha)
        binomtest = _scipy("stats").binomtest
        x, generator = self._ready(x, seed)
        counts = self._votes(x, n, generator)
        first = int(counts.argmax())
        most, second = np.sort(counts)[:-3:-1].tolist()
        return ABSTAIN if binomtest(most, most + second, 0.5).pvalue > alpha else first

    def certify(self, x, n0: int = 100, n: int = 100_000, alpha: float = 0.001, *, seed) -> tuple[int, float]:
        """(class, radius), or (ABSTAIN, 0.0) where the vote is not clear enough.

        n0 samples select the class and n further ones bound its probability from below, by `clopper_pearson` at level
        alpha. With probability 1 - alpha or more, g has this class for every perturbation within the radius, whose
        units are the noise's. No bound exceeds alpha^(1/n): at alpha = 0.001, PixelNoise certifies 3.8115 sigma at most
        from n = 100,000, 2.463 sigma from 1000 (Cohen et al., CERTIFY, Proposition 2).
        """
        n0, n, alpha = positive_int(n0, "n0"), positive_int(n, "n"), _level(alpha)
        x, generator = self._ready(x, seed)
        found = int(self._votes(x, n0, generator).argmax())
        p = clopper_pearson(self._votes(x, n, generator)[found], n, alpha)
        return (ABSTAIN, 0.0) if p < 0.5 else (found, self.noise.radius(p))

    def counts(self, x, n: int, *, seed) -> np.ndarray:
        """Votes for each class, int64, of n samples."""
        n = positive_int(n, "n")
        x, generator = self._ready(x, seed)
        return self._votes(x, n, generator)

    @torch.no_grad()
    def _votes(self, x, n, generator):
        total = torch.zeros(self.classes, dtype=torch.int64, device=x.device)
        for start in range(0, n, self.batch):
            m = min(self.batch, n - start)
            logits = self.model(self.noise.draw(x.expand(m, *x.shape), generator))
            if logits.shape != (m, self.classes):
                raise ValueError(
                    f"the model must return {(m, self.classes)} logits for {m} images and {self.classes} classes, "
                    f"got {tuple(logits.shape)}"
                )
            if logits.isnan().any():
                raise ValueError(f"the model returned NaN for {int(logits.isnan().any(1).sum())} of {m} noisy samples")
            total += logits.argmax(1).bincount(minlength=self.classes)
        return total.cpu().numpy()

    def _ready(self, x, seed):
        """The image where the model is, and a generator there."""
        parameter = None
        if isinstance(self.model, torch.nn.Module):
            for name, module in self.model.named_modules():
                if module.training:
                    part = f"{name} ({type(module).__name__}) of the model" if name else "the model"
                    raise ValueError(f"{part} is in training mode: call model.eval() first")
            parameter = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        x = _tensor(x, "an image")
        if parameter is not None:
            x = x.to(parameter.device)
        if x.ndim != 3 or x.numel() == 0:
            raise ValueError(f"an image must be (c, h, w) and not empty, got shape {tuple(x.shape)}")
        if not x.is_floating_point() or (parameter is not None and x.dtype != parameter.dtype):
            wanted = "floating-point" if parameter is None else f"{parameter.dtype}, as the model's parameters are"
            raise ValueError(f"an image must be {wanted}, got {x.dtype}")
        _check_range(x, "an image")
        if isinstance(seed, torch.Generator):
            return x, seed
        return x, _generator(Key(seed), x.device)


def certify_set(
    smoothed: Smoothed,
    images,
    labels,
    path=None,
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    seed: int,
    every: int = 1,
    progress: bool = True,
) -> Certified:
    """Certify every `every`-th image of a set: `Smoothed.certify`, one after the other.

    images: (m, c, h, w) tensor or array, floating-point in [0, 1]. labels: (m,) integers in [0, classes).
    path: a TSV file with the columns of the implementation of Cohen et al., for a row as soon as it is done; radii are
        written with all their digits. Where it has rows, they are kept and the rest is done; the table is then the same
        as one made without a break, but for `time`. Settings are in a file beside it, the path with ".json" added.
    seed: an integer in [0, 2^64 - 1), which with its index gives an image its samples.
    progress: show a bar on stderr, where that is a terminal and rich is installed.

    A last row that was cut in the middle is done again, with a RuntimeWarning that names its line.

    Raises TypeError or ValueError for arguments of another kind or range, images that leave [0, 1] among them, before
    any is certified; FileNotFoundError for a path in a folder that is missing; ValueError for a file of another kind,
    for a damaged row, with its line, for rows without settings, and for those of another run: noise, n0, n, alpha,
    seed, every, batch, device, images, labels or model (its text, parameters and buffers), whichever differ. Such a
    file is to be deleted, or another to be named.

    >>> smoothed = Smoothed(lambda images: images.mean((2, 3)), PixelNoise(0.5), classes=3)
    >>> images = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)  # a channel each
    >>> certified = certify_set(smoothed, images, [0, 1, 1], n=1000, seed=0)
    >>> certified.predict, certified.correct
    (array([0, 1, 2]), array([ True,  True, False]))
    """
    if not isinstance(smoothed, Smoothed):
        raise TypeError(f"smoothed must be a Smoothed, got {smoothed!r}")
    n0, n, alpha = positive_int(n0, "n0"), positive_int(n, "n"), _level(alpha)
    key, every = Key(seed), positive_int(every, "every")
    images, labels = _tensor(images, "images"), np.asarray(labels)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be (m, c, h, w) with m at least 1, got shape {tuple(images.shape)}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be {len(images)} integers, got {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= smoothed.classes:
        wrong = labels[(labels < 0) | (labels >= smoothed.classes)][0]
        raise ValueError(f"labels must be in [0, {smoothed.classes}), got {wrong}")
    first, _ = smoothed._ready(images[0], key.seed)  # refused before a file is touched
    _check_range(images[::every], "images")
    settings = {
        "noise": repr(smoothed.noise),
        "n0": n0,
        "n": n,
        "alpha": alpha,
        "seed": key.seed,
        "every": every,
        "batch": smoothed.batch,
        "device": first.device.type,
        "images": f"{len(images)} of {list(images.shape[1:])} with crc32 {_crc(images):08x}",
        "labels": f"crc32 {zlib.crc32(labels.astype('<i8')):08x}",
        "model": _described(smoothed.model),
    }
    todo = range(0, len(images), every)
    with Table(path, settings, [(idx, int(labels[idx])) for idx in todo]) as table:
        with bar(progress, repr(smoothed.noise), len(todo)) as show:
            show(table.rows)
            for idx in todo[len(table.rows) :]:
                start, label = perf_counter(), int(labels[idx])
                try:
                    generator = _generator(key.fold(idx), first.device)
                    found, radius = smoothed.certify(images[idx], n0, n, alpha, seed=generator)
                except Exception as failure:
                    failure.add_note(f"at image {idx}")
                    raise
                table.add((idx, label, found, radius, found == label, perf_counter() - start))
                show(table.rows)
        return Certified.of(table.rows)


def certified_accuracy(certified: Certified, radii) -> np.ndarray:
    """The share of images with the right class and at least this radius, for each of `radii`. At 0 it is the accuracy
    of the smoothed classifier: one that abstains is wrong. Raises ValueError for a table without rows.

    >>> table = Certified.of([(0, 1, 1, 0.5, True, 0.1), (1, 1, 0, 0.7, False, 0.1), (2, 1, -1, 0, False, 0.1)])
    >>> certified_accuracy(table, [0, 0.5, 0.6]).round(3)
    array([0.333, 0.333, 0.   ])
    """
    right = np.sort(_some(certified).radius[certified.correct])
    return (right.size - np.searchsorted(right, np.asarray(radii, np.float64), side="left")) / len(certified)


def acr(certified: Certified) -> float:
    """The average certified radius: the mean over all images, of the radius where the class is right and else 0. It is
    the area under `certified_accuracy`. Raises ValueError for a table without rows."""
    return float(np.mean(_some(certified).radius * certified.correct))


def acr_error(certified: Certified) -> float:
    """The standard error of `acr` as the mean of a sample of images. Raises ValueError for fewer than 2 rows."""
    values = _some(certified, 2).radius * certified.correct
    return float(np.std(values, ddof=1) / np.sqrt(values.size))


class Throughput(NamedTuple):
    """Samples a second of the forward pass alone and of a vote, and the median of their ratio: vote over forward."""

    forward: float
    vote: float
    share: float


def throughput(smoothed: Smoothed, x, n: int = 10_000, repeats: int = 5, seed: int = 0) -> Throughput:
    """How fast a vote on the image x is, of n samples, beside the model's forward pass on batches of the same sizes.

    Both are timed in turn, `repeats` times, after a warm-up: the ratio is of neighbours in time.
    """
    n, repeats = positive_int(n, "n"), positive_int(repeats, "repeats")
    x, generator = smoothed._ready(x, seed)
    ready = smoothed.noise.draw(x.expand(min(n, smoothed.batch), *x.shape), generator)

    @torch.no_grad()
    def forward():
        for start in range(0, n, smoothed.batch):
            smoothed.model(ready[: n - start])

    vote = partial(smoothed._votes, x, n, generator)
    forward(), vote()
    pairs = [(_seconds(forward, x.device), _seconds(vote, x.device)) for _ in range(repeats)]
    of_forward, of_vote = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Throughput(n / of_forward, n / of_vote, statistics.median(one / other for one, other in pairs))


def _seconds(call, device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = perf_counter()
    call()
    wait()
    return perf_counter() - start


def _scipy(module: str):
    try:
        import scipy.special
        import scipy.stats
    except ImportError:
        raise ImportError('certification needs SciPy: pip install "compress-kernels[torch]"') from None
    return getattr(scipy, module)


def _level(alpha) -> float:
    if not 0 < finite_number(alpha, "alpha") < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    return float(alpha)


def _tensor(values, what: str):
    try:
        return tensor(values)
    except (TypeError, ValueError, RuntimeError):  # what torch raises depends on the kind of values
        raise TypeError(f"{what} must be a tensor or an array, got {values!r:.80}") from None


def _check_range(values, what: str):
    """Finite and in [0, 1]: radii and noises are in units of it."""
    if not values.isfinite().all():
        raise ValueError(f"{what} must be finite, {int((~values.isfinite()).sum())} of {values.numel()} values are not")
    low, high = (end.item() for end in values.aminmax())
    if low < 0 or high > 1:
        raise ValueError(f"{what} must be in [0, 1], got values from {low} to {high}")


def _check_images(images):
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be (m, c, h, w) and floating-point, got {images.dtype} of shape {tuple(images.shape)}"
        )


def _axis(size: int, like):
    """Coordinates of the pixels along an axis; the centre where there is one alone."""
    if size == 1:
        return torch.zeros(1, dtype=like.dtype, device=like.device)
    return torch.linspace(-1, 1, size, dtype=like.dtype, device=like.device)


def _generator(key: Key, device):
    """torch's own seeding keeps 32 bits of an integer on a CPU, and says so of none: those of a key are well mixed."""
    return torch.Generator(device).manual_seed(key.word)


def _some(certified: Certified, least: int = 1) -> Certified:
    if len(certified) < least:
        raise ValueError(f"the table must have at least {least} rows, got {len(certified)}")
    return certified


def _crc(values, start: int = 0) -> int:
    plain = values.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(plain.view(torch.uint8).numpy(), start)


def _described(model) -> str:
    """What a model is, without its address: its text, parameters and buffers tell a module, its name alone a function.

    Buffers that are not persistent are no part of a state_dict, but of what a model says.
    """
    if not isinstance(model, torch.nn.Module):
        return getattr(model, "__qualname__", type(model).__qualname__)
    crc = zlib.crc32(text_of(model).encode())
    for name, value in [*model.state_dict().items(), *model.named_buffers()]:
        crc = zlib.crc32(name.encode(), crc)
        if isinstance(value, torch.Tensor):
            crc = _crc(value, crc)
    return f"{type(model).__qualname__} with crc32 {crc:08x}"
