"""The reproduction of 2206.02535 on a scale of seconds: what the whole shows is not at stake."""

import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("rich")

from bench.papers import certified_fl as paper
from compress.federated.smoothing import Certified, PixelNoise, Rotation, Smoothed, acr

SMALL = paper.Scale(
    rounds=1, seeds=1, stride=36, n=30, inputs=40, attacks=1, noises=(PixelNoise(0.25), PixelNoise(0.5))
)


def table(radii, correct=True):
    n = len(radii)
    right = np.broadcast_to(correct, n)
    return Certified(np.arange(n), np.zeros(n, int), np.where(right, 0, 1), np.array(radii), right, np.zeros(n))


def test_what_counts_can_certify():
    assert paper.caps().ok


def test_a_linear_classifier_is_rarely_certified_too_far():
    found = paper.of_linear(paper.Scale(), 0, 0.05, 1000) | {("linear", paper.ALPHA, 0): (1000, 0, 50)}
    inputs, broken, abstained = found["linear", 0.05, 0]
    assert inputs == 1000 and 0 < broken and 0 < abstained < 200
    assert paper.coverage(found, paper.Scale()).ok
    found["linear", paper.ALPHA, 0] = 1000, 5, 50
    assert not paper.coverage(found, paper.Scale()).ok  # 4 would do


def test_gaps_are_paired_by_images():
    rows, others = [table([0.3, 0.5]), table([0.2, 0.9])], [table([0.2, 0.3]), table([0.1, 0.4], [True, False])]
    gap = paper.Gap.of(rows, others)
    d = np.array([0.1, 0.2, 0.1, 0.9])  # what is wrong has no radius
    assert gap.mean == pytest.approx(d.mean()) and gap.error == pytest.approx(d.std(ddof=1) / 2)
    assert gap.seeds == pytest.approx((0.15, 0.5))
    assert not gap.clear and not paper.Gap.of(others, rows).clear
    assert paper.Gap.of([table([0.5, 0.6, 0.7])], [table([0.3, 0.4, 0.6])]).clear
    assert not paper.Gap.of(
        [table([1.0] * 8), table([0.1])], [table([0.5] * 8), table([0.2])]
    ).clear  # one seed is below


def test_curves_are_weighted_by_images():
    rows = [table([0.1, 0.2, 0.3]), table([0.3], False)]
    assert paper.curve(rows, [0, 0.15, 0.3]) == pytest.approx([0.75, 0.5, 0.25])
    assert paper.pooled(rows).mean() == pytest.approx((3 * acr(rows[0]) + acr(rows[1])) / 4)
    assert paper.area(dict(enumerate(rows))).ok


def scheme(fed, local):
    scale = paper.Scale(seeds=1, noises=(PixelNoise(0.5),))
    found = {(PixelNoise(0.5), "FedAvg", 0): table(fed), (PixelNoise(0.5), "local", 0): table(local)}
    return paper.federated(found, scale, scale.noises, "Pixel noise").ok


def test_a_scheme_that_is_lower_somewhere_is_not_ok():
    assert scheme([0.5, 0.6, 0.7, 0.8], [0.4, 0.5, 0.6, 0.7])
    assert not scheme([0.4, 0.5, 0.6, 0.7], [0.5, 0.6, 0.7, 0.8])
    assert not scheme([0.9, 0.9, 0.9, 0.5], [0.1, 0.1, 0.1, 1.2])  # at large radii


@pytest.mark.parametrize("split", list(paper.SPLITS))
def test_links_must_keep_the_radius_within_its_own_standard_error(split):
    """Of the uncompressed one, either way and over the images of all seeds; and 1/14 of the bits, but for 4 bits."""
    rng, scale = np.random.default_rng(0), paper.Scale(rounds=1)
    radii, jitter = rng.uniform(0.2, 0.8, (2, 100)), rng.normal(0, 0.01, (2, 100))
    jitter -= jitter.mean()

    def check(off, bits, worse):
        found = {}
        for name in paper.LINKS:
            at = (paper.LINKED, "FedAvg") if (split, name) == ("equal", "float32") else ("links", split, name)
            for seed in range(2):
                found[*at, seed] = table(radii[seed] + (name != "float32") * jitter[seed] + (name == worse) * off)
                found["bits", split, name, seed] = (3200, 3200) if name == "float32" else (bits[name], bits[name])
        return paper.linked(found, scale, split)[1]

    few = {"1 bit": 228, "2 bits": 228, "4 bits": 400}
    error, paired = (each.std(ddof=1) / math.sqrt(200) for each in (radii, jitter))
    for worse in set(few) & set(paper.compared(split)):
        for sign in (-1, 1):
            assert check(sign * 0.99 * error, few, worse).ok
            assert not check(sign * 1.01 * error, few, worse).ok
        assert check(0.0, few | {worse: 229}, worse).ok == (worse == "4 bits")
    told = check(0.01, few, "1 bit").measured
    assert f"+- {error:.4f}, " in told and f"paired gap +0.0100 +- {paired:.4f}" in told


def test_the_same_seed_gives_the_same_figures_and_links_are_counted():
    one, other = (paper.of_links(SMALL, 0, "equal", "1 bit") for _ in range(2))
    at, bits = ("links", "equal", "1 bit", 0), ("bits", "equal", "1 bit", 0)
    assert one[bits] == other[bits]
    for name in ("idx", "label", "predict", "radius"):
        assert np.array_equal(getattr(one[at], name), getattr(other[at], name))
    plain = paper.of_links(SMALL, 0, "equal", "float32")["bits", "equal", "float32", 0]
    d = 9930 + 96  # and the scales and shifts of GroupNorm
    assert 10 * 32 * d < plain[0] < 10 * (32 * d + 8 * 400) and plain[1] < 10 * 8 * 400  # the first model is known
    assert plain[0] > 14 * one[bits][0]
    assert len(one[at]) == len(range(0, 355, SMALL.stride))


def test_the_reproduction_on_a_small_scale(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(paper, "N0", 20)
    monkeypatch.setattr(paper, "LAMBDAS", (0.3,))
    monkeypatch.setattr(paper, "LINKS", {name: paper.LINKS[name] for name in ("float32", "1 bit")})
    monkeypatch.setattr(paper, "SHARES", (0.0, 0.5, 1.0))
    monkeypatch.setattr(paper, "ATTACKED", (Rotation(0.1),))
    monkeypatch.setattr(paper, "speed", lambda: paper.Check("speed", "not measured", True))
    assert paper.run(tmp_path, scale=SMALL, workers=1) in (0, 1)
    printed = capsys.readouterr().out
    assert printed.count(" ok ") >= 4 and " 14 " in printed
    for said in ("Trellis with error feedback", "lambda = inf", "Dirichlet(0.3)", "Rotation 0.1", "3.8115 sigma"):
        assert said in printed
    assert (tmp_path / "certified_fl.png").stat().st_size > 10_000


def test_speed_and_memory_are_measured(monkeypatch):
    slow = paper.throughput
    monkeypatch.setattr(paper, "throughput", lambda *a, **k: slow(*a, **(k | {"n": 200, "repeats": 1})))
    monkeypatch.setattr(paper, "held", lambda n, shape: (1000, 40.9 * 2**20 if shape == (1, 32, 32) else 0))
    check = paper.speed()
    assert "391 MiB" in check.statement and "largest batch 1,000, +40.9 MiB" in check.measured and not check.ok


class Hoarding(Smoothed):
    """Keeps all samples."""

    def __init__(self, model, *settings):
        kept = []

        def keep(images):
            kept.append(images.clone())
            return model(images)

        super().__init__(keep, *settings)


def test_samples_that_are_kept_are_seen():
    n, shape = 50_000, (1, 32, 32)
    whole = 4 * n * 1024
    most, grown = paper.held(n, shape)
    assert most == 1000 and grown < whole / 10
    assert paper.held(n, shape, Hoarding)[1] > whole / 2


def test_without_torch_the_other_papers_are_run(capsys, monkeypatch):
    from bench import __main__ as command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setattr("bench.papers.run_all", lambda names, out, full: names)
    assert command.main(["papers"]) == [name for name in command.PAPERS if name != "certified_fl"]
    assert "certified_fl is missing: torch is not installed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["papers", "certified_fl"])
    assert "certified_fl needs torch: pip install torch" in capsys.readouterr().err
