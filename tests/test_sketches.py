"""Sketches: their moments against what is drawn, their constants, and what they refuse."""

import itertools

import numpy as np
import pytest

import compress
from compress.sketches import Cyclic, Sketch

KEY = compress.Key(5)
SCALES = np.random.default_rng(0).uniform(0.5, 2, (3, 7))
SKETCHES = {
    "Rand-K": Sketch(compress.RandK(3)),
    "Perm-K, n does not divide d": Sketch(compress.PermK(3)),
    "Perm-K, more workers than coordinates": Sketch(compress.PermK(9)),
    "Bernoulli": Sketch(compress.Bernoulli(0.3)),
    "cyclic": Cyclic(compress.RandK(3)),
    "scaled Perm-K": Sketch(compress.PermK(3), SCALES),
    "scaled Bernoulli": Sketch(compress.Bernoulli(0.3), SCALES[0]),
}


@pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES)
def test_moments_are_those_of_what_is_drawn(sketch):
    d, draws, worker = 7, 6000, 2
    keys = [KEY.at(k).worker(worker) for k in range(draws)]
    s = np.array([sketch(np.ones(d), key) for key in keys])
    products = np.einsum("ki,kj->kij", s, s)
    for drawn, exact in ((s, sketch.mean(d, worker)), (products, sketch.second_moment(d, worker))):
        error = drawn.std(axis=0) / np.sqrt(draws)
        z = (drawn.mean(axis=0) - exact)[error > 0] / error[error > 0]
        assert np.abs(z).max() < 4.5
        np.testing.assert_allclose(drawn.mean(axis=0)[error == 0], exact[error == 0], atol=1e-12)
    assert np.square(s).max() <= sketch.L_S_max(d) * (1 + 1e-12)
    diagonals = [sketch.second_moment(d, i).diagonal() for i in range(3)]
    assert np.isclose(np.max(diagonals), sketch.L_D(d)) and np.isclose(np.min(diagonals), sketch.mu_D(d))
    assert sketch.unbiased(d) == (sketch.scales is None)
    own = [(sketch.mu_D(d, i), sketch.L_D(d, i)) for i in range(3)]
    np.testing.assert_allclose(own, [(diagonal.min(), diagonal.max()) for diagonal in diagonals])


def test_an_unbiased_sketch_is_its_compressor():
    x = np.random.default_rng(1).standard_normal(50)
    for C in (compress.RandK(7, "float64"), compress.PermK(4, "float64"), compress.Bernoulli(0.2, "float64")):
        sketch, key = Sketch.of(C), KEY.worker(3)
        np.testing.assert_array_equal(sketch(x, key), C(x, key))
        assert sketch.L_D(50) == sketch.mu_D(50) == C.omega(50) + 1
        assert Sketch.of(sketch) is sketch and sketch.wire == np.float64


def test_the_sets_of_a_cyclic_sketch_are_its_pool():
    d, sketch = 11, Cyclic(compress.RandK(4))
    pool = [tuple(sorted(kept.tolist())) for kept in sketch.pool(d)]
    assert len(pool) == len(set(pool)) == d
    counts = np.bincount([pool.index(tuple(sorted(sketch.indices(d, KEY.at(k)).tolist()))) for k in range(2200)])
    assert np.sum((counts - 200) ** 2 / 200) < 30  # chi-squared of 10 degrees of freedom
    assert Sketch(compress.RandK(4)).pool(d) is None


def test_perm_k_pairs_agree_with_every_permutation():
    """Perm-K of n workers over d coordinates, cut as PermK cuts: all permutations and all turns."""
    d, n = 5, 2
    both = np.zeros((d, d))
    for order, turn in itertools.product(itertools.permutations(range(d)), range(n)):
        kept = np.isin(np.arange(d), order[turn * d // n : (turn + 1) * d // n])
        both += np.outer(kept, kept)
    both /= n * 120
    np.testing.assert_allclose(Sketch(compress.PermK(n)).joint(d), both, rtol=1e-12)


def test_scales_are_part_of_what_a_sketch_is():
    plain, scaled = Sketch(compress.PermK(3)), SKETCHES["scaled Perm-K"]
    others = [
        plain,
        scaled,
        Sketch(compress.PermK(3), SCALES[0]),
        Sketch(compress.PermK(3), SCALES[:1]),
        Sketch(compress.PermK(3), SCALES + 1),
        Sketch(compress.PermK(4), SCALES),
        Sketch(compress.RandK(3)),
        Cyclic(compress.RandK(3)),
    ]
    assert len(set(others)) == len(others) == len({repr(sketch) for sketch in others})
    same = Sketch(compress.PermK(3), SCALES.copy())
    assert same == scaled and hash(same) == hash(scaled) and repr(same) == repr(scaled) and scaled != 3
    assert repr(plain) == "Sketch(sets=PermK(n=3, wire='float32'))"
    assert repr(Sketch(compress.PermK(3), np.ones(7))).endswith("wire='float32'), scales=(7,), crc32=9cc989cc)")


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"sets must be RandK, PermK, Bernoulli or another sparsifier, got TopK"):
        Sketch(compress.TopK(3))
    with pytest.raises(ValueError, match="scales must be finite and positive, 2 of 3 are not"):
        Sketch(compress.PermK(3), [1.0, 0.0, np.nan])
    for scales, shape in ((np.ones((2, 2, 2)), r"\(2, 2, 2\)"), (1.0, r"\(\)")):
        with pytest.raises(ValueError, match=rf"scales must be \(d,\) or \(n, d\), got shape {shape}"):
            Sketch(compress.PermK(3), scales)
    with pytest.raises(ValueError, match=r"scales are \(3, 7\), asked for worker 3 and 7 coordinates"):
        SKETCHES["scaled Perm-K"].scale(7, 3)
    with pytest.raises(ValueError, match="asked for worker 0 and 8 coordinates"):
        SKETCHES["scaled Perm-K"].L_D(8)
    with pytest.raises(ValueError, match="scales are those of 3 workers, not of 2"):
        SKETCHES["scaled Perm-K"].check(2, 7)
    with pytest.raises(ValueError, match="scales are those of 7 coordinates, not of 8"):
        SKETCHES["scaled Perm-K"].check(3, 8)
    with pytest.raises(ValueError, match=r"Sketch\(.*k=3.*\) has no sets of 2 coordinates: k = 3 of a vector of 2"):
        SKETCHES["Rand-K"].check(1, 2)
    with pytest.raises(ValueError, match=r"PermK\(n=3, .*\) has sets for 3 workers, not for 4"):
        SKETCHES["Perm-K, n does not divide d"].check(4, 7)
    SKETCHES["Perm-K, more workers than coordinates"].check(7, 7)
    with pytest.raises(TypeError, match="Cyclic shifts the set of a RandK"):
        Cyclic(compress.PermK(3))
    with pytest.raises(TypeError, match="with scales"):
        Cyclic(compress.RandK(3), np.ones(7))
    with pytest.raises(ValueError, match="PermK needs to know the worker"):
        SKETCHES["scaled Perm-K"].indices(7, KEY)
    with pytest.raises(ValueError, match="k = 3 of a vector of 2"):
        SKETCHES["Rand-K"].L_D(2)
