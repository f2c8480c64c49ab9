"""Certificates hold as often as they say, deformations are the maps they say, and tables survive their writers."""

import itertools
import json
import math
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
stats = pytest.importorskip("scipy.stats")

from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from compress.federated.smoothing import (  # noqa: E402
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

NOISES = [PixelNoise(0.5), Rotation(0.1), Scaling(0.2), Translation(0.1), Affine(0.05)]
DEFORMATIONS = NOISES[1:]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def within(wrong, total, alpha):
    """No more than alpha of the total, by 3 standard deviations."""
    return wrong <= total * alpha + 3 * math.sqrt(total * alpha * (1 - alpha))


# Bounds and radii


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_clopper_pearson_is_the_exact_interval(alpha):
    for n in (1, 7, 1000):
        ks = sorted({0, 1, n // 3, n // 2, n - 1, n})
        exact = [stats.binomtest(k, n).proportion_ci(1 - 2 * alpha, method="exact").low for k in ks]
        np.testing.assert_allclose(clopper_pearson(np.array(ks), n, alpha), exact, rtol=1e-9)
        assert [clopper_pearson(k, n, alpha) for k in ks] == clopper_pearson(np.array(ks), n, alpha).tolist()


@pytest.mark.parametrize(("n", "least", "cap"), [(10**5, 50490, 3.8115), (10**4, 5156, 3.199), (1000, 550, 2.463)])
def test_what_a_count_can_certify(n, least, cap):
    below, at, top = clopper_pearson(np.array([least - 1, least, n]), n, 0.001)
    assert below < 0.5 <= at
    assert top == pytest.approx(0.001 ** (1 / n), rel=1e-12)
    for sigma in (0.12, 1.0):
        assert PixelNoise(sigma).radius(top) == pytest.approx(cap * sigma, abs=6e-4 * sigma)


def test_radii():
    p = np.array([0.0, 0.5, 0.6, 0.9, 1.0])
    gaussian = np.append(stats.norm.ppf(np.maximum(p[:-1], 0.5)), np.inf)
    for noise in (PixelNoise(0.25), Translation(0.25), Affine(0.25)):
        np.testing.assert_allclose(noise.radius(p), 0.25 * gaussian, rtol=1e-12)
    np.testing.assert_allclose(Rotation(0.25).radius(p), 0.5 * np.pi * (np.maximum(p, 0.5) - 0.5), rtol=1e-12)
    np.testing.assert_allclose(Scaling(0.25).radius(p), 0.5 * (np.maximum(p, 0.5) - 0.5), rtol=1e-12)
    for noise in NOISES:
        assert isinstance(noise.radius(0.7), float)
        for wrong in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
                noise.radius(wrong)


# Noises


def bilinear(image, matrix):
    """One image at matrix (x, y, 1)' for each of its pixels, 0 outside: by the definition."""
    c, h, w = image.shape
    result = np.zeros((c, h, w))
    for i, j in itertools.product(range(h), range(w)):
        x, y = matrix @ [2 * j / (w - 1) - 1, 2 * i / (h - 1) - 1, 1]
        column, row = (x + 1) / 2 * (w - 1), (y + 1) / 2 * (h - 1)
        for r, k in itertools.product(
            (math.floor(row), math.floor(row) + 1), (math.floor(column), math.floor(column) + 1)
        ):
            if 0 <= r < h and 0 <= k < w:
                result[:, i, j] += (1 - abs(row - r)) * (1 - abs(column - k)) * image[:, r, k]
    return result


@pytest.mark.parametrize("noise", DEFORMATIONS, ids=repr)
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 9), (1, 9, 4)])
def test_deformations_are_their_formula(noise, shape):
    c, h, w = shape
    images = torch.rand((6, c, h, w), generator=generator(), dtype=torch.float64)
    parameters = 3 * noise.sample(6, generator(1)).double()
    deformed = noise.deform(images, parameters)
    for image, result, p in zip(images.numpy(), deformed.numpy(), parameters.numpy(), strict=True):
        aspect = (h - 1) / (w - 1)
        matrix = {
            Rotation: lambda p, a=aspect: [
                [np.cos(p[0]), np.sin(p[0]) * a, 0],
                [-np.sin(p[0]) / a, np.cos(p[0]), 0],
            ],
            Scaling: lambda p: [[1 + p[0], 0, 0], [0, 1 + p[0], 0]],
            Translation: lambda p: [[1, 0, p[0]], [0, 1, p[1]]],
            Affine: lambda p: [[1 + p[0], p[1], p[2]], [p[3], 1 + p[4], p[5]]],
        }[type(noise)](p)
        np.testing.assert_allclose(result, bilinear(image, np.array(matrix)), atol=1e-12)


def test_rotations_turn_by_their_angle():
    image, turn = torch.rand((1, 3, 9, 9), generator=generator()), Rotation(1.0)
    for quarter in range(-2, 3):
        turned = turn.deform(image, torch.full((1, 1), quarter * math.pi / 2))
        torch.testing.assert_close(turned, torch.rot90(image, -quarter, (2, 3)), atol=1e-5, rtol=0)
    wide = torch.nn.functional.pad(image, (6, 6, 2, 2))  # 13 x 21: a right angle is one here too
    turned = turn.deform(wide, torch.full((1, 1), math.pi / 2))
    torch.testing.assert_close(turned[..., 2:-2, 6:-6], torch.rot90(image, -1, (2, 3)), atol=1e-5, rtol=0)


def test_an_angle_between_is_that_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    y, x = np.mgrid[-15:16, -20:21]
    blob = np.exp(-((x - 6) ** 2) / 30 - (y + 3) ** 2 / 8)
    for degrees in (10, -35, 140):
        angle = torch.full((1, 1), math.radians(degrees), dtype=torch.float64)
        turned = Rotation(1.0).deform(torch.from_numpy(blob)[None, None], angle)[0, 0]
        expected = ndimage.rotate(blob, -degrees, reshape=False, order=1)  # counter-clockwise is positive there
        np.testing.assert_allclose(turned, expected, atol=2e-3)


def test_a_pixel_and_a_factor_of_two():
    image = torch.rand((1, 1, 5, 9), generator=generator())
    moved = Translation(0.1).deform(image, torch.tensor([[2 / 8, -2 / 4]]))[0, 0]  # one to the left, one down
    torch.testing.assert_close(moved[1:, :-1], image[0, 0, :-1, 1:], atol=1e-6, rtol=0)
    assert moved[0].abs().max() < 1e-6 and moved[:, -1].abs().max() < 1e-6
    shrunk = Scaling(0.5).deform(image, torch.tensor([[1.0]]))[0, 0]
    torch.testing.assert_close(shrunk[1:4, 2:7], image[0, 0, ::2, ::2], atol=1e-6, rtol=0)
    assert shrunk[0].abs().max() == shrunk[:, 0].abs().max() == 0


@pytest.mark.parametrize("noise", DEFORMATIONS, ids=repr)
def test_zero_parameters_change_nothing(noise):
    for shape in ((3, 2, 7, 5), (3, 1, 1, 1), (3, 1, 1, 6)):
        images = torch.rand(shape, generator=generator())
        torch.testing.assert_close(noise.deform(images, torch.zeros(3, noise.parameters)), images, atol=1e-5, rtol=0)
    half = torch.rand((3, 2, 7, 5), generator=generator()).to(torch.bfloat16)
    assert torch.equal(noise.deform(half, torch.zeros(3, noise.parameters)), half)


@pytest.mark.parametrize("noise", DEFORMATIONS, ids=repr)
def test_laws_of_parameters(noise):
    drawn = noise.sample(20_000, generator(5)).numpy()
    assert drawn.shape == (20_000, noise.parameters)
    width = {Rotation: math.pi * noise.sigma, Scaling: noise.sigma}.get(type(noise))
    law = stats.norm(0, noise.sigma) if width is None else stats.uniform(-width, 2 * width)
    for column in drawn.T:
        assert stats.kstest(column, law.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(drawn.T) - np.eye(noise.parameters)).max() < 4 / math.sqrt(20_000)


def test_pixel_noise_is_its_law():
    images = torch.rand((40, 3, 20, 20), generator=generator())
    noisy = PixelNoise(0.3).draw(images, generator(1))
    assert stats.kstest((noisy - images).flatten().numpy(), stats.norm(0, 0.3).cdf).pvalue > 1e-3


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_draws_follow_their_seed_and_differ_over_a_batch(noise):
    image = torch.rand((2, 7, 5), generator=generator())
    one, same, other = (noise.draw(image.expand(4, 2, 7, 5), generator(seed)) for seed in (1, 1, 2))
    assert one.shape == (4, 2, 7, 5) and torch.equal(one, same) and not torch.equal(one, other)
    assert all(not torch.equal(one[i], one[j]) for i, j in itertools.combinations(range(4), 2))
    for wrong in (image, torch.zeros((4, 2, 7, 5), dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"images must be .* floating-point"):
            noise.draw(wrong, generator())


@pytest.mark.parametrize("kind", [PixelNoise, Rotation, Scaling, Translation, Affine])
def test_sigma(kind):
    for wrong in (0, -0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"sigma must be .*{wrong}"):
            kind(wrong)
    with pytest.raises(TypeError, match="sigma must be a number"):
        kind("0.5")
    assert Rotation(1).half_width == math.pi
    for over, most in ((lambda: Rotation(1.01), "at most 1"), (lambda: Scaling(1.0), "below 1")):
        with pytest.raises(ValueError, match=most):
            over()


def test_parameters_of_another_shape():
    with pytest.raises(ValueError, match=r"parameters must be \(3, 2\), got \(3, 1\)"):
        Translation(0.1).deform(torch.zeros(3, 1, 4, 4), torch.zeros(3, 1))


# Votes: a linear classifier has a true radius


class Linear(nn.Module):
    """Class 1 where the weighted sum of the pixels, less 0.5 each, is positive: |margin| is the radius."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights / weights.norm())

    def forward(self, images):
        score = (images.flatten(1) - 0.5) @ self.weights
        return torch.stack([torch.zeros_like(score), score], 1)


WEIGHTS = torch.tensor([3.0, -1.0, 2.0, 0.5])
LINEAR = Linear(WEIGHTS).eval()
SIGMA = 0.2  # pixels of images within 3 sigma of the plane are in [0, 1]


def at_margin(margin):
    return (0.5 + margin * WEIGHTS / WEIGHTS.norm()).reshape(1, 2, 2)


def test_coverage_over_20_000_inputs():
    """A certificate is broken where the class is not the true one, or the radius beyond the margin."""
    inputs, alpha = 20_000, 0.05
    smoothed = Smoothed(LINEAR, PixelNoise(SIGMA), 2, batch=400)
    margins = np.random.default_rng(3).uniform(-2.5 * SIGMA, 2.5 * SIGMA, inputs)
    shared, broken, abstained = generator(11), 0, 0
    for margin in margins:
        found, radius = smoothed.certify(at_margin(margin), 30, 400, alpha, seed=shared)
        abstained += found == ABSTAIN
        broken += found != ABSTAIN and (found != (margin > 0) or radius > abs(margin))
    assert within(broken, inputs, alpha)
    assert broken > 0.6 * alpha * inputs  # a bound that is much too low would never be
    assert abstained < 0.1 * inputs


@pytest.mark.parametrize(("n", "alpha"), [(1000, 0.05), (1000, 0.001), (10_000, 0.001)])
def test_coverage_of_the_bound(n, alpha):
    """The counts of a linear classifier are binomial: CERTIFY on 400,000 inputs of them."""
    rng, sigma, inputs = np.random.default_rng(n), 0.5, 400_000
    margins = rng.uniform(0, 2.5 * sigma, inputs)
    p = stats.norm.cdf(margins / sigma)
    right = rng.binomial(100, p) >= 50
    lower = clopper_pearson(rng.binomial(n, np.where(right, p, 1 - p)), n, alpha)
    broken = (lower >= 0.5) & (~right | (PixelNoise(sigma).radius(lower) > margins))
    assert within(broken.sum(), inputs, alpha)
    assert broken.sum() > 0.4 * alpha * inputs


def test_predict_is_rarely_wrong_and_abstains_between():
    smoothed, shared, alpha, inputs = Smoothed(LINEAR, PixelNoise(SIGMA), 2), generator(2), 0.05, 1000
    close = [smoothed.predict(at_margin(0.004 * SIGMA), 200, alpha, seed=shared) for _ in range(inputs)]
    assert within(close.count(0), inputs, alpha) and close.count(ABSTAIN) > 0.9 * inputs
    far = [m * SIGMA for m in (-2, -1, 1, 2)]
    assert all(smoothed.predict(at_margin(m), 200, alpha, seed=shared) == (m > 0) for m in far)


def votes(counts):
    """A model of which the given number of samples vote for each class, in turn."""
    answers = iter(np.repeat(np.arange(len(counts)), counts))

    def model(images):
        return nn.functional.one_hot(torch.tensor([next(answers) for _ in images]), len(counts)).float()

    return model


@pytest.mark.parametrize(("counts", "expected"), [((60, 40), ABSTAIN), ((70, 30), 0), ((0, 30, 70), 2), ((9, 0), 0)])
def test_predict_is_the_test_of_the_first_two(counts, expected):
    image = torch.zeros(1, 2, 2)
    assert Smoothed(votes(counts), PixelNoise(1), len(counts)).predict(image, sum(counts), 0.01, seed=0) == expected


def test_certify_is_that_of_the_note():
    image, alpha = torch.zeros(1, 2, 2), 0.001
    for selection, estimation in (((30, 70), (100, 900)), ((60, 40), (549, 451)), ((60, 40), (550, 450))):
        calls = iter([*np.repeat([0, 1], selection), *np.repeat([0, 1], estimation)])

        def model(images, calls=calls):
            return nn.functional.one_hot(torch.tensor([next(calls) for _ in images]), 2).float()

        found, radius = Smoothed(model, PixelNoise(0.5), 2, batch=64).certify(image, 100, 1000, alpha, seed=0)
        first = int(np.argmax(selection))
        p = stats.beta.ppf(alpha, estimation[first], 1000 - estimation[first] + 1)
        assert next(calls, None) is None  # n0 + n samples, no more
        assert (found, radius) == ((first, pytest.approx(0.5 * stats.norm.ppf(p))) if p >= 0.5 else (ABSTAIN, 0.0))


def test_selection_and_estimation_have_samples_of_their_own():
    """Were the class chosen by the samples that bound it, it would be the majority of them."""
    calls = iter([0] * 10 + [1] * 1000)

    def model(images):
        return nn.functional.one_hot(torch.tensor([next(calls) for _ in images]), 2).float()

    assert Smoothed(model, PixelNoise(1), 2).certify(torch.zeros(1, 1, 1), 10, 1000, seed=0) == (ABSTAIN, 0.0)
    seen = []

    def keeps(images):
        seen.append(images.flatten().clone())
        return images.new_zeros((len(images), 2))

    Smoothed(keeps, PixelNoise(1), 2, batch=50).certify(torch.zeros(1, 1, 1), 50, 125, seed=0)
    assert torch.cat(seen).unique().numel() == 175


def test_no_two_seeds_or_images_share_samples():
    """Nor seeds that are words of one another, as 5 and 7 are of 5 + 7 * 2^32."""
    seen, zero = [], torch.zeros(8, 1, 1, 1)

    def keeps(images):
        seen.append(images.flatten().tolist())
        return images.new_zeros((len(images), 2))

    smoothed, few = Smoothed(keeps, PixelNoise(1), 2), {"n0": 1, "n": 2}
    for seed in (5, 7, 5 + 7 * 2**32, 5 + 2**32):
        certify_set(smoothed, zero, [0] * 8, seed=seed, **few)
        smoothed.certify(zero[0], seed=seed, **few)
    drawn = [value for values in seen for value in values]
    assert len(drawn) == 4 * 9 * 3 == len(set(drawn))


def test_arrays_that_are_read_only():
    images = IMAGES.numpy().copy()
    images.flags.writeable = False
    torch.set_warn_always(True)  # or else a warning, here an error, is for the first of a process alone
    try:
        certified = table(images=images)
        assert Smoothed(LINEAR, PixelNoise(SIGMA), 2).certify(images[5], 10, 100, seed=0)[0] == 1
    finally:
        torch.set_warn_always(False)
    assert same(certified, table())


def test_a_batch_size_that_divides_nothing_counts_all():
    smoothed = Smoothed(LINEAR, Rotation(0.1), 2, batch=7)
    assert smoothed.counts(at_margin(0.1), 100, seed=0).sum() == 100
    assert smoothed.certify(at_margin(0.6), 10, 100, seed=1) == smoothed.certify(at_margin(0.6), 10, 100, seed=1)


# Deformations: a classifier that reads the parameters off the image has a true radius too

SIZE = 41
AXIS = torch.linspace(-1, 1, SIZE)


def blob(x, y):
    return torch.exp(-((AXIS - x) ** 2 + (AXIS[:, None] - y) ** 2) / (2 * 0.12**2))


def centres(images):
    """(m, c, 2): the x and y of the mass of each channel."""
    mass = images.sum((2, 3))
    return torch.stack([images.sum(2) @ AXIS / mass, images.sum(3) @ AXIS / mass], -1)


SPOTS = torch.tensor([[0.35, 0.0], [-0.2, 0.3], [-0.2, -0.3]])


def read_rotation(images):
    at = centres(images)[:, 0]
    return torch.atan2(at[:, 1], at[:, 0])[:, None]


def read_affine(images):
    """A (u, 1)' = spot for the three spots, seen at u: A from them."""
    seen = nn.functional.pad(centres(images), (0, 1), value=1.0)
    return (torch.linalg.solve(seen, SPOTS.expand(len(images), 3, 2)).mT - torch.eye(2, 3)).flatten(1)


READERS = {
    Rotation: (blob(0.35, 0.0)[None], read_rotation),
    Scaling: (blob(0.35, 0.0)[None], lambda images: 0.35 / centres(images)[:, 0, :1] - 1),
    Translation: (blob(0.0, 0.0)[None], lambda images: -centres(images)[:, 0]),
    Affine: (torch.stack([blob(*spot) for spot in SPOTS.tolist()]), read_affine),
}


@pytest.mark.parametrize("noise", DEFORMATIONS, ids=repr)
def test_certificates_of_deformations_hold(noise):
    """Classes on two sides of a plane in the space of parameters: its distance is the radius."""
    image, read = READERS[type(noise)]
    parameters = noise.sample(1000, generator(1))
    off = read(noise.deform(image.expand(1000, *image.shape), parameters)) - parameters
    blur = off.norm(dim=1).max().item()  # what pixels cost the reader
    assert blur < 0.1 * noise.sigma
    rng, alpha, inputs = np.random.default_rng(7), 0.05, 100
    normals = rng.standard_normal((inputs, noise.parameters))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    reach = noise.half_width or 1.5 * noise.sigma
    distances = rng.uniform(-reach, reach, inputs)
    broken, radii, shared = 0, np.zeros(inputs), generator(4)
    for i, (normal, distance) in enumerate(zip(normals, distances, strict=True)):
        normal = torch.from_numpy(normal).float()

        def model(images, normal=normal, distance=distance):
            score = read(images) @ normal + distance
            return torch.stack([-score, score], 1)

        smoothed = Smoothed(model, noise, 2, batch=500)
        found, radii[i] = smoothed.certify(image, 50, 500, alpha, seed=shared)
        broken += found != ABSTAIN and (found != (distance > 0) or radii[i] > abs(distance) + blur)
        if found != ABSTAIN and radii[i] <= abs(distance) and i % 10 == 0:  # and what it says is seen at its edge
            shifted = noise.sample(2000, shared) - found_side(found) * radii[i] * normal
            counts = model(noise.deform(image.expand(2000, *image.shape), shifted)).argmax(1).bincount(minlength=2)
            assert counts[found] > 1000 - 3 * math.sqrt(2000) / 2
    assert within(broken, inputs, alpha)
    assert radii.mean() > 0.6 * np.abs(distances).mean()


def found_side(found):
    """The sign of the score of a class: against it one gets out soonest."""
    return 1 if found == 1 else -1


# Memory and time


class SmallNet(nn.Module):
    """A small CNN that remembers the most images that it saw."""

    def __init__(self, channels=1, width=16, size=28):
        super().__init__()
        self.most = 0
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * (size // 2) ** 2, 10),
        )

    def forward(self, images):
        self.most = max(self.most, len(images))
        return self.layers(images)


class Sizes(TorchDispatchMode):
    """The most numbers in one tensor, and how many operations there were."""

    most = calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.untyped_storage().nbytes() // 4)
        return result


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_100_000_samples_hold_a_batch_of_memory():
    """All samples would be 314 MB. A net of one product sees them, and looks at the memory of the process."""
    seen, most = [], 0

    def net(images):
        nonlocal most
        most = max(most, len(images))
        seen.append(resident())
        return images.flatten(1)[:, :10]

    found, radius = Smoothed(net, PixelNoise(0.1), 10, batch=500).certify(torch.eye(28)[None], seed=0)
    assert most == 500 and len(seen) == 1 + 200
    assert found == 0 and radius == pytest.approx(0.1 * stats.norm.ppf(0.001**1e-5), rel=1e-9)
    assert max(seen) - seen[1] < 8e6  # 5 batches


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_no_tensor_is_larger_than_a_batch_and_none_is_of_a_sample(noise):
    image = torch.rand((3, 16, 16), generator=generator())

    def net(images):
        return images[:, :, 0, 0]

    seen = {}
    for batch in (50, 200):
        with Sizes() as seen[batch]:
            Smoothed(net, noise, 3, batch=batch).counts(image, 4 * batch, seed=0)
        assert seen[batch].most <= batch * 3 * 16 * 16
    assert seen[50].calls == seen[200].calls < 4 * 45  # of a batch, whatever its size


def test_throughput_times_the_same_samples():
    """How large the share is `python -m bench papers certified_fl` says."""
    smoothed = Smoothed(SmallNet(size=8).eval(), PixelNoise(0.25), 10, batch=50)
    measured = throughput(smoothed, torch.rand((1, 8, 8), generator=generator()), n=120, repeats=2)
    assert measured.forward > 0 and measured.vote > 0 and measured.share > 0
    assert smoothed.model.most == 50


# Bad input


def test_a_model_in_training_mode_is_refused():
    model, image = SmallNet(), torch.zeros(1, 28, 28)
    smoothed = Smoothed(model, PixelNoise(0.5), 10)
    calls = (
        lambda: smoothed.certify(image, 1, 1, seed=0),
        lambda: smoothed.predict(image, 1, seed=0),
        lambda: certify_set(smoothed, image[None], [0], n=10, seed=0),
    )
    for call in calls:
        model.train()
        with pytest.raises(ValueError, match=r"the model is in training mode: call model\.eval\(\) first"):
            call()
        model.eval().layers[2].train()
        with pytest.raises(ValueError, match=r"layers\.2 \(MaxPool2d\) of the model is in training mode"):
            call()
        model.eval()
        call()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n0": 0}, ValueError, "n0 must be at least 1, got 0"),
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": 10.0}, TypeError, "n must be an integer"),
        ({"alpha": 0}, ValueError, r"alpha must be in \(0, 1\), got 0"),
        ({"alpha": 1.0}, ValueError, r"alpha must be in \(0, 1\), got 1.0"),
        ({"alpha": math.nan}, ValueError, "alpha must be finite"),
        ({"seed": -1}, ValueError, r"seed must lie in \[0, 2\^64 - 1\), got -1"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
    ],
)
def test_bad_arguments(arguments, error, message):
    smoothed = Smoothed(LINEAR, PixelNoise(SIGMA), 2)
    with pytest.raises(error, match=message):
        smoothed.certify(at_margin(0.4), **{"n": 10, "seed": 0} | arguments)
    with pytest.raises(error, match=message):
        certify_set(smoothed, at_margin(0.4)[None], [0], **{"n": 10, "seed": 0} | arguments)
    if "n0" not in arguments:
        with pytest.raises(error, match=message):
            smoothed.predict(at_margin(0.4), **{"n": 10, "seed": 0} | arguments)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(4), r"must be \(c, h, w\) and not empty, got shape \(4,\)"),
        (torch.zeros(1, 1, 2, 2), r"got shape \(1, 1, 2, 2\)"),
        (torch.zeros(1, 0, 2), r"got shape \(1, 0, 2\)"),
        (torch.zeros(1, 2, 2, dtype=torch.uint8), r"torch.float32, as the model's parameters are, got torch.uint8"),
        (torch.zeros(1, 2, 2, dtype=torch.float64), "got torch.float64"),
        (torch.tensor([[[1.0, math.nan], [0.0, math.inf]]]), "finite, 2 of 4 values are not"),
        (255 * torch.eye(2)[None], r"an image must be in \[0, 1\], got values from 0\.0 to 255\.0"),
        (torch.eye(2)[None] - 0.5, r"an image must be in \[0, 1\], got values from -0\.5 to 0\.5"),
        (1 + 2**-23 * torch.eye(2)[None], r"an image must be in \[0, 1\], got values from 1\.0 to 1\.0000001"),
    ],
)
def test_bad_images(image, message):
    smoothed = Smoothed(LINEAR, PixelNoise(0.5), 2)
    for call in (smoothed.certify, smoothed.predict, smoothed.counts):
        with pytest.raises(ValueError, match=message):
            call(image, n=1, seed=0)
    with pytest.raises(ValueError, match=r"must be floating-point, got torch\.int64"):
        Smoothed(lambda images: images, PixelNoise(0.5), 2).certify(torch.ones(1, 2, 2).long(), 1, 1, seed=0)


def test_bad_logits():
    image = at_margin(0.4)

    def nan(images):
        return torch.where(torch.arange(len(images))[:, None] < 3, math.nan, torch.ones(len(images), 2))

    with pytest.raises(ValueError, match="the model returned NaN for 3 of 10 noisy samples"):
        Smoothed(nan, PixelNoise(0.5), 2).certify(image, 10, 10, seed=0)
    for classes in (3, 5):
        with pytest.raises(ValueError, match=rf"\(10, {classes}\) logits for .* and {classes} classes, got \(10, 4\)"):
            Smoothed(lambda images: images.flatten(1), PixelNoise(0.5), classes).certify(image, 10, 10, seed=0)


def test_bad_parts():
    for make, error, message in (
        (lambda: Smoothed("net", PixelNoise(1), 2), TypeError, "model must be a function"),
        (lambda: Smoothed(LINEAR, 0.5, 2), TypeError, "noise must be a Noise, got 0.5"),
        (lambda: Smoothed(LINEAR, PixelNoise(1), 1), ValueError, "classes must be at least 2"),
        (lambda: Smoothed(LINEAR, PixelNoise(1), 2, batch=0), ValueError, "batch must be at least 1"),
        (lambda: certify_set(LINEAR, IMAGES, LABELS, seed=0), TypeError, "smoothed must be a Smoothed, got Linear"),
        (lambda: Smoothed(LINEAR, PixelNoise(1), 2).counts("x", 1, seed=0), TypeError, "an image must be .*, got 'x'"),
        (lambda: table(images="digits"), TypeError, "images must be a tensor or an array, got 'digits'"),
        (lambda: table(images=torch.utils.data.TensorDataset(IMAGES)), TypeError, "images must be .*, got <.*Dataset"),
        (lambda: table(labels="digits"), ValueError, r"labels must be 6 integers, got <U6 of shape \(\)"),
        (lambda: clopper_pearson(0.5, 1, 0.1), TypeError, "k must be integers"),
        (lambda: clopper_pearson(2, 1, 0.1), ValueError, r"k must be in \[0, 1\], got 2"),
        (lambda: clopper_pearson(0, 0, 0.1), ValueError, "n must be at least 1"),
        (lambda: clopper_pearson(0, 1, 1), ValueError, r"alpha must be in \(0, 1\)"),
    ):
        with pytest.raises(error, match=message):
            make()


# Tables

IMAGES = torch.stack([at_margin(margin) for margin in (0.36, -0.28, 0.0, 0.16, -0.04, 0.6)])
LABELS = np.array([1, 0, 1, 0, 0, 1])
SETTINGS = {"n0": 20, "n": 300, "seed": 9}


def table(path=None, smoothed=None, labels=LABELS, images=IMAGES, **changes):
    smoothed = smoothed or Smoothed(LINEAR, PixelNoise(SIGMA), 2)
    return certify_set(smoothed, images, labels, path, **SETTINGS | changes)


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in ("idx", "label", "predict", "radius", "correct")
    )


def test_a_table_and_its_file(tmp_path):
    path = tmp_path / "table.tsv"
    certified = table(path)
    lines = path.read_text().splitlines()
    assert lines[0] == "idx\tlabel\tpredict\tradius\tcorrect\ttime" and len(lines) == 7
    assert certified.idx.tolist() == [*range(6)] and np.array_equal(certified.label, LABELS)
    assert certified.predict.tolist() == [1, 0, ABSTAIN, 1, 0 if certified.predict[4] == 0 else ABSTAIN, 1]
    assert np.array_equal(certified.correct, certified.predict == LABELS)
    assert certified.radius[2] == 0 and certified.radius[5] > certified.radius[3] > 0 and (certified.time > 0).all()
    assert same(certified, table()) and same(certified, Certified.read(path)) and same(certified, table(path))
    assert not same(certified, table(seed=10))
    np.testing.assert_allclose(Certified.read(path).time, certified.time, atol=1e-6)
    third = table(every=3)  # the seed of an image is its own
    assert third.idx.tolist() == [0, 3] and np.array_equal(third.radius, certified.radius[::3])
    from_numpy = table(images=IMAGES.numpy(), labels=torch.from_numpy(LABELS))
    assert same(certified, from_numpy)


def test_a_table_of_the_reference_implementation(tmp_path):
    path = tmp_path / "sigma_0.25"
    rows = "0\t3\t3\t0.434\t1\t0:02:04.500000\n20\t0\t-1\t0.0\t0\t1 day, 0:00:01\n"
    path.write_text(f"idx\tlabel\tpredict\tradius\tcorrect\ttime\n{rows}")
    certified = Certified.read(path)
    assert certified.radius.tolist() == [0.434, 0] and certified.time.tolist() == [124.5, 86401]


def test_a_file_cut_anywhere_is_resumed(tmp_path):
    path = tmp_path / "table.tsv"
    certified = table(path)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        line = content[:size].count(b"\n") + 1
        if content[:size].endswith(b"\n") or size == 0:
            resumed = table(path)
        else:
            with pytest.warns(RuntimeWarning, match=rf"table\.tsv, line {line}, was cut in the middle"):
                resumed = table(path)
        assert same(resumed, certified) and same(Certified.read(path), certified)
        assert path.read_bytes().count(b"\n") == 7


def test_lines_that_end_in_crlf(tmp_path):
    path = tmp_path / "table.tsv"
    certified = table(path)
    lines = path.read_text().splitlines()
    for kept in range(len(lines) + 1):
        path.write_bytes("".join(f"{line}\r\n" for line in lines[:kept]).encode())
        assert len(Certified.read(path)) == max(kept - 1, 0)
        assert same(table(path), certified) and same(Certified.read(path), certified)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing, the folder of table\.tsv, is missing"):
        table(tmp_path / "missing" / "table.tsv")


@pytest.mark.parametrize(
    "content", [b"the only copy", b"the only copy\n", b"\x89PNG\r\n", b"idx\tlabel, of mine", b"idx\tlabels\n0\t1"]
)
def test_a_file_of_another_kind_is_left_alone(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    for read in (table, Certified.read):
        with pytest.raises(ValueError, match=r"notes, line 1, is damaged"):
            read(path)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_the_warning_is_where_a_table_was_asked_for(tmp_path):
    path = tmp_path / "table.tsv"
    table(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="line 7, was cut") as caught:
        Certified.read(path)
        certify_set(Smoothed(LINEAR, PixelNoise(SIGMA), 2), IMAGES, LABELS, path, **SETTINGS)
    assert [warning.filename for warning in caught] == [__file__] * 2


class Shifted(Linear):
    """Of a constant that its state_dict has not."""

    def __init__(self, shift, text=""):
        super().__init__(WEIGHTS)
        self.text = text
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def extra_repr(self):
        return self.text

    def forward(self, images):
        return super().forward(images + self.shift)


def test_another_model_of_the_same_parameters_is_refused(tmp_path):
    def shifted(*of):
        return Smoothed(Shifted(*of).eval(), PixelNoise(SIGMA), 2)

    path = tmp_path / "table.tsv"
    certified = table(path, shifted(0.0, "<function f at 0x7f00>"))
    assert same(table(path, shifted(0.0, "<function f at 0x7fff>")), certified)
    for other in (shifted(0.5, "<function f at 0x7f00>"), shifted(0.0, "<function g at 0x7f00>")):
        with pytest.raises(ValueError, match=r"of another run, .*: model was Shifted with crc32 \w+, is Shifted with"):
            table(path, other)


def test_a_run_that_stops_keeps_its_rows(tmp_path):
    path, calls = tmp_path / "table.tsv", []

    class Stops(Linear):
        def forward(self, images):
            calls.append(path.read_text().count("\n"))
            if calls[-1] == 4:
                raise RuntimeError("out of memory")
            return super().forward(images)

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        table(path, Smoothed(Stops(WEIGHTS).eval(), PixelNoise(SIGMA), 2))
    assert caught.value.__notes__ == ["at image 3"]
    assert calls == [1, 1, 2, 2, 3, 3, 4]  # a row is on disk before the next image
    assert len(Certified.read(path)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(smoothed=Smoothed(LINEAR, PixelNoise(0.3), 2)), r"noise was PixelNoise\(sigma=0.2\), is .*0.3"),
        (dict(smoothed=Smoothed(LINEAR, PixelNoise(SIGMA), 2, batch=10)), "batch was 1000, is 10"),
        (dict(smoothed=Smoothed(Linear(-WEIGHTS).eval(), PixelNoise(SIGMA), 2)), "model was Linear with crc32"),
        (dict(n0=21), "n0 was 20, is 21$"),
        (dict(n=301, alpha=0.01), "n was 300, is 301; alpha was 0.001, is 0.01$"),
        (dict(seed=1), "seed was 9, is 1$"),
        (dict(every=2), "every was 1, is 2$"),
        (dict(labels=1 - LABELS), "labels was crc32"),
        (dict(images=IMAGES[:5], labels=LABELS[:5]), r"images was 6 of \[1, 2, 2\] .*, is 5 of"),
        (dict(images=IMAGES + 1e-6), r"images was 6 of"),
    ],
)
def test_a_file_of_another_run_is_refused(tmp_path, change, message):
    path = tmp_path / "table.tsv"
    table(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"table\.tsv is of another run, delete it or name another: {message}"):
        table(path, **change)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "idx\tlabel", "the header must be"),
        (3, "1\t0\t0", "3 columns, 6 are needed"),
        (3, "", "1 columns"),
        (3, "1\t0\tcat\t0.5\t1\t0:00:01", "invalid literal"),
        (3, "1\t0\t0\tnan\t1\t0:00:01", "do not go together"),
        (3, "1\t0\t0\t-0.5\t1\t0:00:01", "do not go together"),
        (3, "1\t0\t0\t0.5\t0\t0:00:01", "do not go together"),
        (3, "1\t0\t0\t0.5\t1\tsoon", "'soon' is not a time"),
        (3, "1\t0\t0\t0.5\t1\t0:00:0é", "is damaged"),
        (3, "2\t1\t1\t0.5\t1\t0:00:01", "image 2 of label 1 is not next"),
        (3, "1\t1\t1\t0.5\t1\t0:00:01", "image 1 of label 1 is not next"),
        (7, "5\t1", "2 columns"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, line, text, message):
    path = tmp_path / "table.tsv"
    table(path)
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"table\.tsv, line {line}, is damaged: .*{message}|line {line}, {message}"):
        table(path)
    assert path.read_bytes() == before


def test_settings_that_are_missing_damaged_or_of_no_rows(tmp_path):
    path, beside = tmp_path / "table.tsv", tmp_path / "table.tsv.json"
    certified = table(path)
    assert json.loads(beside.read_text())["n"] == 300
    for content in ("{", "[]"):
        beside.write_text(content)
        with pytest.raises(ValueError, match=r"table\.tsv\.json is damaged"):
            table(path)
    beside.unlink()
    with pytest.raises(ValueError, match=r"has rows, but table\.tsv\.json, which says of what run, is missing"):
        table(path)
    path.unlink()
    beside.write_text("{")  # of a table without rows there is nothing to protect
    assert same(table(path), certified)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(images=IMAGES[0]), r"images must be \(m, c, h, w\).*got shape \(1, 2, 2\)"),
        (dict(images=IMAGES[:0], labels=LABELS[:0]), "m at least 1"),
        (dict(labels=LABELS[1:]), r"labels must be 6 integers, got int64 of shape \(5,\)"),
        (dict(labels=LABELS / 2), "labels must be 6 integers, got float64"),
        (dict(labels=2 * LABELS), r"labels must be in \[0, 2\), got 2"),
        (dict(labels=-LABELS), r"labels must be in \[0, 2\), got -1"),
        (dict(every=0), "every must be at least 1"),
        (dict(images=255 * IMAGES), r"an image must be in \[0, 1\], got values from"),
        (dict(images=IMAGES + 0.1), r"images must be in \[0, 1\], got values from 0\.\d+ to 1\.0\d+"),
        (dict(images=torch.cat([IMAGES[:5], IMAGES[5:] * math.nan])), "images must be finite, 4 of 24 values are not"),
    ],
)
def test_bad_sets(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path / "table.tsv", **change)
    assert not list(tmp_path.iterdir())


def test_the_bar(capsys, monkeypatch):
    table()
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    table(progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    certified = table()
    shown = capsys.readouterr().err
    assert "6/6" in shown and f"accuracy {certified.correct.mean():.3f}, radius {acr(certified):.3g}" in shown
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert same(table(), certified) and capsys.readouterr().err == ""


# Measures


def rows(seed, m):
    rng = np.random.default_rng(seed)
    found = rng.integers(-1, 3, m)
    radius = np.where(found < 0, 0, np.round(rng.exponential(0.5, m), rng.integers(1, 9)))
    label = rng.integers(0, 3, m)
    return Certified(np.arange(m), label, found, radius, found == label, np.ones(m))


@pytest.mark.parametrize("seed", range(5))
def test_the_average_radius_is_the_area_under_the_curve(seed):
    certified = rows(seed, 301)
    ends = np.unique(np.append(0, certified.radius))
    steps = certified_accuracy(certified, ends[1:])  # CA is constant up to each radius, which it still counts
    assert acr(certified) == pytest.approx(float(np.sum(steps * np.diff(ends))), abs=1e-12)
    for radius in (0, 0.1, *ends[:9]):
        by_hand = np.mean((certified.predict == certified.label) & (certified.radius >= radius))
        assert certified_accuracy(certified, radius) == pytest.approx(by_hand, abs=1e-15)


def test_the_error_of_the_average_radius():
    averages = np.array([acr(rows(seed, 200)) for seed in range(400)])
    errors = np.array([acr_error(rows(seed, 200)) for seed in range(400)])
    # the deviation of a standard deviation of 400, by its kurtosis, is some 5 per cent
    assert np.sqrt((errors**2).mean()) == pytest.approx(averages.std(ddof=1), rel=0.2)
    assert acr(rows(0, 1)) >= 0
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        acr_error(rows(0, 1))
    for measure in (acr, lambda certified: certified_accuracy(certified, 0.5)):
        with pytest.raises(ValueError, match="at least 1 rows, got 0"):
            measure(rows(0, 0))


def test_the_extra_is_named(monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "scipy.stats", None)
        for call in (lambda: clopper_pearson(1, 2, 0.1), lambda: PixelNoise(1).radius(0.9)):
            with pytest.raises(ImportError, match=r'needs SciPy: pip install "compress-kernels\[torch\]"'):
                call()
        PixelNoise(1).draw(torch.zeros(1, 1, 2, 2), generator())  # training needs none
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert any(need.startswith("scipy") for need in project["optional-dependencies"]["torch"])
