"""What is special about the sparsifiers; the contract that all compressors share is tested elsewhere."""

import math

import numpy as np
import pytest

from compress import Bernoulli, Key, PermK, RandK, TopK

KEY = Key(11).at(4).worker(1)


def normal(d, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(d).astype(dtype)


@pytest.mark.parametrize("family", [RandK, TopK])
def test_k_is_a_count_or_a_fraction(family):
    assert family(3).bits(10) >= 96 and family(0.1).bits(30) == family(3).bits(30)
    assert family(0.001).bits(10) == family(1).bits(10)
    assert family(0.34).bits(10) == family(4).bits(10)
    for k in (0, -1, 0.0, 1.0, -0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"\bk must be .*" + str(k).replace("-", "\\-")):
            family(k)
    for k in (True, "3", None):
        with pytest.raises(TypeError, match="k must be"):
            family(k)
    with pytest.raises(ValueError, match="k = 11 of a vector of 10 coordinates"):
        family(11).encode(normal(10), KEY)
    with pytest.raises(ValueError, match="wire must be"):
        family(1, wire="float16")


def test_randk_sends_k_values_and_scales_them():
    x = normal(1000)
    for wire, width in (("float32", 32), ("float64", 64)):
        C = RandK(50, wire=wire)
        message = C.encode(x, KEY)
        assert message.bits == C.bits(1000) == 50 * width and C.omega(1000) == 19
        y = C.decode(message, KEY)
        kept = np.flatnonzero(y)
        assert kept.size == 50 and np.array_equal(y[kept], np.float32(20) * x[kept])
    other = RandK(50)(x, KEY.at(5)), RandK(50)(x, KEY.worker(2))
    assert all(not np.array_equal(np.flatnonzero(z), kept) for z in other)


def test_omega_is_an_equality():
    d, x = 40, normal(40, np.float64)
    for C in (RandK(8), Bernoulli(0.2), PermK(5)):
        assert C.omega(d) == pytest.approx(4)
        errors = [np.sum((C(x, Key(t).worker(3)) - x) ** 2) / np.sum(x**2) for t in range(4000)]
        assert abs(np.mean(errors) - 4) < 5 * np.std(errors) / math.sqrt(4000)


def test_topk_keeps_the_largest_at_the_lowest_index():
    x = np.float32([0, 2, -3, 3, -3, 1])
    assert TopK(2)(x, KEY).tolist() == [0, 0, -3, 3, 0, 0]
    assert TopK(0.5).alpha(6) == 0.5
    y = normal(5000)
    C = TopK(0.05)
    z = C(y, KEY)
    assert np.count_nonzero(z) == 250 and np.abs(y[z == 0]).max() <= np.abs(z[z != 0]).min()
    assert np.sum((z - y) ** 2) <= C.alpha(5000) * np.sum(y**2)
    wide = normal(5000, np.float64)
    assert np.array_equal(TopK(0.05, wire="float64")(wide, KEY)[z := np.argsort(-np.abs(wide))[:250]], wide[z])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d,n", [(1, 3), (2, 3), (12, 4), (13, 4), (100, 7), (1001, 10), (5000, 1)])
def test_the_messages_of_a_permk_round_average_to_x(d, n, dtype):
    x, C = normal(d, dtype), PermK(n, wire=np.dtype(dtype).name)
    for seed in range(5):
        total, seen = np.zeros(d, dtype), np.zeros(d, int)
        for worker in range(n):
            key = Key(seed).worker(worker)
            message = C.encode(x, key)
            assert message.bits <= C.bits(d)
            seen += C.decode(message, key) != 0
            C.decode_add(message, key, total, 1 / n)
        assert np.array_equal(total, x) and np.all(seen == 1)


def test_permk_gives_every_worker_every_coordinate_equally_often():
    """Ranges of 2, 1, 2 coordinates: the shared turn is what makes a worker's share 1/n exactly."""
    n, trials = 3, 6000
    C, x = PermK(n), np.ones(5, np.float32)
    for worker in range(n):
        hits = sum(C(x, Key(t).worker(worker)) != 0 for t in range(trials))
        z = (hits - trials / n) / math.sqrt(trials / n * (1 - 1 / n))
        assert np.abs(z).max() < 5


def test_permk_needs_a_worker_below_n():
    with pytest.raises(ValueError, match="needs to know the worker"):
        PermK(4).encode(normal(10), Key(0))
    with pytest.raises(ValueError, match="workers 0 to 3, the key has worker 4"):
        PermK(4).encode(normal(10), Key(0).worker(4))
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        PermK(0)


def test_bernoulli_rounds_p_and_stays_unbiased():
    C = Bernoulli(1 / 3)
    assert C.scale(10) == 2**32 / round(2**32 / 3) and C.omega(10) == C.scale(10) - 1
    x = normal(20_000)
    message = C.encode(x, KEY)
    y = C.decode(message, KEY)
    kept = np.flatnonzero(y)
    assert message.bits == 32 * kept.size == 32 * C.count(20_000, KEY) <= C.bits(20_000)
    assert abs(kept.size - 20_000 / 3) < 5 * math.sqrt(20_000 * 2 / 9)
    assert np.array_equal(y[kept], np.float32(C.scale(1)) * x[kept])
    assert np.array_equal(Bernoulli(1)(x, KEY), x)
    for p in (0, -0.1, 1.1, math.nan, 2.0**-33):
        with pytest.raises(ValueError, match="p must lie in"):
            Bernoulli(p)
    with pytest.raises(TypeError, match="p must be a number"):
        Bernoulli("0.5")


def test_bernoulli_where_the_first_guess_of_the_count_is_too_small(monkeypatch):
    x = normal(3000)
    expected = Bernoulli(0.5)(x, KEY)
    monkeypatch.setattr("compress.sparsify.math.sqrt", lambda v: -200 / 6)
    assert np.array_equal(Bernoulli(0.5)(x, KEY), expected)


def test_values_outside_the_wire_name_the_wire():
    x = np.full(100, 1e300)
    for C in (RandK(1), TopK(1), Bernoulli(0.5), PermK(2)):
        with pytest.raises(ValueError, match=r"leaves float32's range; wire='float64' carries it"):
            C.encode(x, KEY)
    assert TopK(1, wire="float64")(x, KEY)[0] == 1e300
    with pytest.raises(ValueError, match=r"times 100 leaves float64's range"):
        RandK(1, wire="float64").encode(np.full(100, 1e307), KEY)


def test_payloads_at_odd_addresses():
    x = normal(1000)
    for C in (RandK(0.1), TopK(0.1), Bernoulli(0.1), PermK(4)):
        message = C.encode(x, KEY)
        room = np.empty(20_001, np.uint8)[1:]
        assert np.array_equal(C.encode(x, KEY, out=room).payload, message.payload)
        odd = np.r_[np.uint8([0]), message.payload][1:]
        assert np.array_equal(C.decode(message._replace(payload=odd), KEY), C.decode(message, KEY))


def test_what_decode_refuses():
    x = normal(1000)
    for C in (TopK(20), Bernoulli(0.1), PermK(4)):
        message = C.encode(x, KEY)
        for payload in (message.payload[:-1], np.r_[message.payload, np.uint8([0])]):
            with pytest.raises(ValueError, match=r"bytes|codes|truncated"):
                C.decode(message._replace(payload=payload.copy()), KEY)
        bad = message.payload.copy()
        bad[:4] = np.float32([np.nan]).view(np.uint8)
        with pytest.raises(ValueError, match="1 NaN or Inf"):
            C.decode(message._replace(payload=bad), KEY)
    message = TopK(20).encode(x, KEY)
    with pytest.raises(ValueError, match="20 values alone have 80"):
        TopK(20).decode(message._replace(payload=message.payload[:79].copy()), KEY)
    with pytest.raises(ValueError, match="leaves a vector of size 30"):
        TopK(20).decode(message._replace(size=30), KEY)


def test_values_and_scatter_add_are_encode_and_decode():
    """What Composed uses."""
    x = normal(300)
    for C in (RandK(0.1), Bernoulli(0.1), PermK(4)):
        values, out = C.values(x, KEY), np.zeros(300, np.float32)
        assert values.size == C.count(300, KEY) <= C.most_values(300)
        C.scatter_add(values, KEY, out, 0.5)
        assert np.array_equal(out, C.decode_add(C.encode(x, KEY), KEY, np.zeros(300, np.float32), 0.5))
