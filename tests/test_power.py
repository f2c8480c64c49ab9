"""PowerIteration: the mean of workers' matrices by few singular vectors, and nothing lost on the way."""

import numpy as np
import pytest
from backends import same_on_the_grid

import compress
from compress.allreduce import AllReduceState, Refused, Spent

KEY = compress.Key(2)
SHAPES = [(40, 30), (7,), (12, 3, 5, 2), (25, 1), (), (9, 64)]
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)


def gaussian(n, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, SIZE)).astype(dtype)


def low_rank(n, rank=3, noise=0.05, seed=0):
    """The same matrix of low rank for all, and noise of each worker's own."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, rank)) @ rng.standard_normal((rank, 80))
    return (X.ravel() + noise * rng.standard_normal((n, 4800))).astype(np.float32)


def nmse(x, y):
    return float(np.sum((np.float64(x) - y) ** 2) / np.sum(np.float64(y) ** 2))


def matrices(x, shapes=SHAPES):
    """Of a vector the matrices that it holds, and None for each tensor that is no matrix."""
    at = 0
    for shape in shapes:
        size = int(np.prod(shape))
        part = x[at : at + size].reshape(shape[0], -1) if len(shape) > 1 else None
        yield part if part is not None and min(part.shape) > 1 else None
        at += size


def test_a_round_is_a_step_of_power_iteration():
    """By numpy.linalg, from the Q of the state: what it says is the projection of the mean on Q X' made orthonormal."""
    rows, comm = gaussian(3, dtype=np.float64), compress.Local(3)
    reduce = compress.PowerIteration(4, compress.Identity()).of(SHAPES)
    state = reduce.init(comm, SIZE, np.float64)
    mean, after = reduce.mean(comm, state, rows, KEY)
    exact, at = rows.mean(axis=0), 0
    for found, X in zip(matrices(mean), matrices(exact), strict=True):
        if X is None:
            continue
        r, n = min(4, *X.shape), X.shape[1]
        Q = state.shared[at : at + r * n].reshape(r, n)
        W, _ = np.linalg.qr(X @ Q.T)
        np.testing.assert_allclose(found, W @ W.T @ X, atol=1e-12)
        B = after.shared[at : at + r * n].reshape(r, n)
        np.testing.assert_allclose(np.abs(B), np.abs(W.T @ X), atol=1e-12)  # qr's signs are its own
        at += r * n
    others = [slice(1200, 1207), slice(1567, 1592), slice(1592, 1593)]
    for part in others:
        np.testing.assert_allclose(mean[part], exact[part], atol=1e-12)


@pytest.mark.parametrize("values", [compress.Identity(), compress.Eden(4), compress.UniformQuantizer(bits=4)], ids=repr)
def test_of_low_rank_it_is_as_good_as_truncation_after_few_rounds(values):
    rows, comm = low_rank(4), compress.Local(4)
    X = rows.mean(axis=0).reshape(60, 80)
    u, s, vt = np.linalg.svd(X.astype(np.float64))
    best = nmse((u[:, :3] * s[:3]) @ vt[:3], X)
    reduce = compress.PowerIteration(3, values).of([(60, 80)])
    state = reduce.init(comm, 4800)
    for t in range(4):
        mean, after = reduce.mean(comm, state, rows, KEY.at(t))
        state = AllReduceState(state.up, (), after.shared)  # without what was left out: the same matrices again
    assert nmse(mean, X.ravel()) < best + (1e-6 if values == compress.Identity() else 0.04)


@pytest.mark.parametrize("values", [compress.Eden(2), compress.RandK(0.3), compress.Trellis(bits=1)], ids=repr)
@pytest.mark.parametrize(("n", "pattern"), [(1, "auto"), (2, "gather"), (3, "two-shot"), (5, "auto")])
def test_what_was_not_said_is_in_the_errors(values, n, pattern):
    comm, reduce = compress.Local(n), compress.PowerIteration(3, values, pattern).of(SHAPES)
    state, total, said = reduce.init(comm, SIZE, np.float64), np.zeros(SIZE), np.zeros(SIZE)
    for t in range(5):
        rows = gaussian(n, t, np.float64)
        mean, state = reduce.mean(comm, state, rows, KEY.at(t))
        total, said = total + rows.mean(axis=0), said + mean
    np.testing.assert_allclose(said + np.mean(state.up, axis=0), total, atol=1e-9)
    assert np.linalg.norm(state.up[0]) > 0.1


def test_errors_do_not_grow():
    """Those of a worker. Told from the mean, as PowerSGD does, they go on growing: 620 after 100 rounds of this, 1232
    after 400 (note D)."""
    rng, comm = np.random.default_rng(0), compress.Local(4)
    X = 3 * (rng.standard_normal((60, 2)) @ rng.standard_normal((2, 80))).ravel()
    reduce = compress.PowerIteration(4, compress.Eden(4)).of([(60, 80)])
    state, sizes = reduce.init(comm, 4800), []
    for t in range(400):
        rows = (X + np.random.default_rng(t + 1).standard_normal((4, 4800))).astype(np.float32)
        _, state = reduce.mean(comm, state, rows, KEY.at(t))
        sizes.append(np.linalg.norm(state.up[0]))
    assert sizes[399] < 1.2 * sizes[99] < 500


def test_decay_forgets():
    rows, comm = gaussian(2), compress.Local(2)
    states = []
    for decay in (1.0, 0.25):
        reduce = compress.PowerIteration(2, decay=decay).of(SHAPES)
        states.append(reduce.mean(comm, reduce.init(comm, SIZE), rows, KEY)[1])
    for whole, quarter in zip(states[0].up, states[1].up, strict=True):
        np.testing.assert_array_equal(quarter, whole * np.float32(0.25))


@pytest.mark.parametrize("pattern", ["gather", "two-shot"])
def test_what_is_not_finite_is_refused_and_nothing_changes(pattern):
    comm, reduce = compress.Local(3), compress.PowerIteration(2, pattern=pattern).of(SHAPES)
    state = reduce.init(comm, SIZE)
    for bad in (np.nan, np.inf):
        rows = gaussian(3)
        rows[1, 5] = bad
        before = [x.tobytes() for x in (*state.up, state.shared)]
        with pytest.raises((Refused, ValueError), match="NaN or Inf"):
            reduce.mean(comm, state, rows, KEY)
        assert before == [x.tobytes() for x in (*state.up, state.shared)]
    rows = np.full((3, SIZE), 3e38, np.float32)  # finite, its factors are not
    with pytest.raises((Refused, ValueError)):
        reduce.mean(comm, state, rows, KEY)


def test_nothing_at_all():
    comm = compress.Local(2)
    for shapes, d in (([], 0), ([(0, 5)], 0), ([(30, 20)], 600), ([(5,)], 5)):
        reduce = compress.PowerIteration(3).of(shapes)
        state = reduce.init(comm, d)
        mean, after = reduce.mean(comm, state, [np.zeros(d, np.float32)] * 2, KEY)
        assert mean.size == d and not mean.any()
        assert after.shared.tobytes() == state.shared.tobytes()  # a Q of zeros would find nothing ever after
    rows = low_rank(2)[:, :600]
    reduce = compress.PowerIteration(3, compress.Identity()).of([(30, 20)])
    _, state = reduce.mean(comm, reduce.init(comm, 600), np.zeros((2, 600), np.float32), KEY)
    assert reduce.mean(comm, state, rows, KEY)[0].any()


@pytest.mark.parametrize("pattern", ["auto", "gather", "two-shot"])
def test_bits_are_those_of_both_factors(pattern):
    for n, r, shape in ((2, 8, (300, 400)), (4, 8, (300, 400)), (4, 32, (900, 1200))):
        comm, d = compress.Local(n), shape[0] * shape[1]
        reduce = compress.PowerIteration(r, pattern=pattern).of([shape])
        reduce.mean(comm, reduce.init(comm, d), np.ones((n, d), np.float32), KEY)
        received = comm.ledger.bits_down / n
        assert received == pytest.approx(reduce.received_bits(n, d), rel=0.01)
        gathered = pattern == "gather" or (pattern == "auto" and r == 8)  # 4 and 5 KiB are few
        messages = n - 1 if gathered else 2 * (n - 1) / n
        assert received == pytest.approx(4 * r * sum(shape) * messages, rel=0.1)


def test_what_is_no_larger_than_its_factors_travels_whole():
    rows, comm = gaussian(2)[:, :576], compress.Local(2)
    for shape, rank, whole in (((64, 9), 8, True), ((64, 9), 7, False), ((24, 24), 12, True), ((24, 24), 11, False)):
        reduce = compress.PowerIteration(rank, compress.Identity()).of([shape])
        mean, _ = reduce.mean(comm, reduce.init(comm, 576), rows, KEY)
        assert np.allclose(mean, rows.mean(axis=0), atol=1e-6) == whole
        assert comm.ledger.messages == (2 if whole else 4)
        comm.ledger.messages = 0


def test_few_are_gathered_by_their_rate():
    """bits(d) of a Trellis allows for numbers that cost far more."""
    few, many = compress.PowerIteration(8, compress.Trellis(bits=3)).of([(1000, 3000)]).parts(4)
    assert few[0] == 8000 and few[1].pattern == "gather" and many[0] == 24000
    assert compress.PowerIteration(8, compress.Trellis(bits=4)).of([(1000, 3000)]).parts(4)[1][1].pattern == "auto"


def test_every_message_has_a_key_of_its_own():
    class Watched(compress.Eden):
        def _encode(self, x, key, out):
            keys.append(key)
            return super()._encode(x, key, out)

    keys = []
    for pattern, count in (("gather", 2 * 3), ("two-shot", 2 * 3 * 3)):
        comm, reduce = compress.Local(3), compress.PowerIteration(2, Watched(4), pattern).of([(20, 30)])
        state = reduce.init(comm, 600)
        for t in range(2):
            _, state = reduce.mean(comm, state, gaussian(3)[:, :600], KEY.at(t))
        assert len(keys) == len(set(keys)) == 2 * count
        keys.clear()


@pytest.mark.parametrize("pattern", ["gather", "two-shot"])
def test_the_bits_are_the_same_on_the_gpu(pattern):
    """Its kernels, on the host."""
    rows, comm = gaussian(3), compress.Local(3)
    reduce = compress.PowerIteration(4, pattern=pattern, decay=0.9).of(SHAPES)
    same_on_the_grid(reduce, comm, rows, KEY)


def test_the_same_in_float64_by_out_and_by_key():
    rows, comm, spent = gaussian(2), compress.Local(2), Spent()
    reduce = compress.PowerIteration(3).of(SHAPES)
    state, out = reduce.init(comm, like=rows[0]), np.empty(SIZE, np.float32)
    mean, _ = reduce.mean(comm, state, rows, KEY, spent=spent)
    same, _ = reduce.mean(comm, state, rows, KEY, out)
    assert same is out and same.tobytes() == mean.tobytes() and spent.encode > 0 and spent.decode > 0
    other, _ = reduce.mean(comm, state, rows, KEY.at(1))
    assert other.tobytes() != mean.tobytes()
    wide, _ = reduce.mean(comm, reduce.init(comm, SIZE, np.float64), rows.astype(np.float64), KEY)
    assert wide.dtype == np.float64 and nmse(wide, mean) < 1e-3


def test_parameters_are_checked():
    for bad, error in (
        ({"rank": 0}, ValueError),
        ({"rank": 2.5}, TypeError),
        ({"values": "Eden"}, TypeError),
        ({"pattern": "ring"}, ValueError),
        ({"decay": 2}, ValueError),
    ):
        with pytest.raises(error):
            compress.PowerIteration(**bad)
    comm, reduce = compress.Local(2), compress.PowerIteration().of([(3, 4)])
    with pytest.raises(ValueError, match="tensors of 12 coordinates in a vector of 13"):
        reduce.init(comm, 13)
    with pytest.raises(TypeError, match="give d, or like"):
        reduce.init(comm)
    state = reduce.init(comm, 12)
    for rows in ([], [np.ones(12, np.float32)], [np.ones(11, np.float32)] * 2, [np.ones(12)] * 2):
        with pytest.raises(ValueError, match="make one by init"):
            reduce.mean(comm, state, rows, KEY)
