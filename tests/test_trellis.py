"""Levels, entropy coder, UniformQuantizer and Trellis, against slow oracles and against the bound."""

import math
import pickle

import numpy as np
import pytest
from conftest import families

import compress
from compress import Key, Trellis, UniformQuantizer

KEY = Key(5).worker(2)
POLYNOMIALS = {4: (0o2, 0o5), 8: (0o4, 0o13), 16: (0o4, 0o23), 32: (0o10, 0o45), 64: (0o24, 0o103), 256: (0o362, 0o515)}


def attempt(kernels, x, code, step=0.25, key=7, sent=None, scale=1.0, wide=True):
    """Symbols of x / step as the encoder makes them, with plain distance."""
    models = kernels.level_model_count(code)
    costs = np.tile(np.array([1, 0, 0, 0, 0, 0, 1.5, 2], np.float32), 96)
    room = dict(
        symbol=np.zeros(x.size, np.uint8),
        model=np.zeros(x.size, np.uint8) if models > 1 else None,
        extra=np.zeros(x.size, np.uint16) if wide else None,
        counts=np.zeros(models * 256, np.uint32),
    )
    moments = np.zeros(7)
    escapes, data, sizes = kernels.level_encode_symbols(
        x, code, 1 / step, key, costs, 0.6, 0.4, scale, *room.values(), moments
    )
    return room, escapes, kernels.level_encode(code, sent or code, *room.values(), data, sizes), moments


def decoded(kernels, data, code, n, step=0.25, key=7, dtype=np.float32):
    out = np.empty(n, dtype)
    kernels.level_decode(np.frombuffer(data, np.uint8), code, n, key, step, (0, 0, 0), out, 1.0, False)
    return out


CODES = [  # states, labels, dithered, context, columns
    (1, False, 0, 0, 0),
    (1, False, 1, 0, 0),
    (4, True, 0, 0, 0),
    (8, False, 0, 0, 0),
    (8, False, 2, 0, 0),
    (8, True, 0, 1, 0),
    (16, False, 0, 2, 0),
    (16, True, 0, 1, 30),
    (32, False, 2, 3, 7),
    (64, False, 4, 3, 0),
    (256, False, 0, 0, 0),
]


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("n", [1, 33, 1500, 70_001])
def test_what_goes_in_comes_out_within_the_step(kernels, code, n):
    rng = np.random.default_rng(n)
    x = (rng.standard_t(2, n) * np.repeat(rng.choice([0.05, 1, 40], n // 100 + 1), 100)[:n]).astype(np.float32)
    x[0] = 1e30
    room, escapes, data, _ = attempt(kernels, x, code)
    assert escapes == np.count_nonzero(room["symbol"] < 2) >= 1
    y = decoded(kernels, data, code, n)
    assert abs(y[0] / x[0] - 1) < 1e-6
    # a dead zone of 0.6 of two levels; a path may pass by the nearest level, but not by those beyond the next
    np.testing.assert_array_less(np.abs(y - x)[1:], (3.01 if code[0] > 1 else 1.21) * 0.25 + 1e-5 * np.abs(x[1:]))


@pytest.mark.parametrize("code", CODES, ids=str)
def test_every_instruction_set_writes_the_same_bytes(code):
    import importlib

    from conftest import INSTRUCTION_SETS

    x = families(150_000)["student"]
    payloads = [attempt(importlib.import_module(f"compress._cpu.{name}"), x, code)[2] for name in INSTRUCTION_SETS]
    assert all(p == payloads[0] for p in payloads)


def best_path(a, states):
    """Least squared distance over all paths, one lane, by the textbook recursion."""
    even, branch = POLYNOMIALS[states]
    cost = {0: 0.0}
    for v in a:
        new = {}
        for s, c in cost.items():
            q = (s & even).bit_count() & 1
            for bit in (0, 1):
                offset = q + 2 * bit
                j = 4 * np.round((v - offset) / 4) + offset
                b = bit ^ ((s & branch & (states - 1)).bit_count() & 1)
                to = s >> 1 | b * states // 2
                new[to] = min(new.get(to, math.inf), c + (v - j) ** 2)
        cost = new
    return min(cost.values())


@pytest.mark.parametrize("states", sorted(POLYNOMIALS))
def test_the_search_finds_the_best_path(kernels, states):
    x = np.random.default_rng(states).standard_normal(700).astype(np.float32)  # one lane
    *_, moments = attempt(kernels, x, (states, False, 0, 0, 0), step=0.25)
    assert moments[0] == pytest.approx(best_path(x.astype(np.float64) / 0.25, states), rel=1e-5)


def test_more_states_are_nearer(kernels):
    x = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)
    errors = [attempt(kernels, x, (s, False, 1, 0, 0))[3][0] / x.size for s in (4, 8, 16, 32, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 4 / 12 * 0.76  # a quantiser with step 2: 4/12; granular gain 1.19 dB at least


def test_coder_costs_a_hundredth_of_a_bit(kernels):
    x = np.random.default_rng(1).standard_normal(1 << 20).astype(np.float32)
    for step in (0.5, 0.12):
        room, _, data, _ = attempt(kernels, x, (1, False, 0, 0, 0), step=step)
        c = room["counts"][room["counts"] > 0].astype(float)
        entropy = -np.sum(c * np.log2(c / c.sum())) / x.size
        assert entropy < 8 * len(data) / x.size < entropy + 0.01


def test_one_symbol_takes_no_words(kernels):
    assert len(attempt(kernels, np.full(1 << 18, 0.5, np.float32), (1, False, 0, 0, 0))[2]) < 10


def test_damaged_bytes_give_an_error_or_a_vector(kernels):
    rng = np.random.default_rng(3)
    x = families(5000)["student"]
    for code in CODES:
        data = bytes(attempt(kernels, x, code)[2])
        found = 0
        for _ in range(60):
            bad = bytearray(data)
            bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
            if rng.random() < 0.3:
                bad = bad[: rng.integers(len(bad))]
            try:
                decoded(kernels, bad, code, x.size)
            except ValueError:
                found += 1
        assert found > 30  # lanes must end where they began


@pytest.mark.parametrize("bits", [0.05, 0.3, 1.0, 2.0, 5.0, 8.0])
@pytest.mark.parametrize("name", ["gaussian", "student"])
def test_bits_are_met_to_a_hundredth(bits, name):
    x = families(1 << 17)[name]
    assert UniformQuantizer(bits=bits).encode(x, KEY).bits / x.size == pytest.approx(bits, rel=0.01)
    # the step must not know the dither, so the bits of one message scatter about what was asked for
    sent = UniformQuantizer(bits=bits, unbiased=True).encode(x, KEY).bits / x.size
    assert sent == pytest.approx(bits, rel=0.01 + 3 / math.sqrt(bits * x.size / 4))


@pytest.mark.parametrize("nmse", [0.5, 0.05, 1e-3])
@pytest.mark.parametrize("name", ["gaussian", "student"])
def test_nmse_is_met_to_a_hundredth(nmse, name):
    x = families(1 << 17)[name].astype(np.float64)
    for C in (UniformQuantizer(nmse=nmse), Trellis(nmse=nmse), Trellis(nmse=nmse, context=True)):
        assert np.sum((C(x, KEY) - x) ** 2) / np.sum(x**2) == pytest.approx(nmse, rel=0.01)


@pytest.mark.parametrize(
    "C, bound",
    [
        (UniformQuantizer(bits=2.0), 1.45),
        (UniformQuantizer(bits=0.2), 1.13),
        (Trellis(bits=2.0), 1.14),
        (Trellis(bits=2.0, states=32), 1.11),
        (Trellis(bits=2.0, unbiased=True), 1.14),
        (Trellis(bits=1.0, unbiased=True), 1.14),
    ],
    ids=str,
)
def test_distance_from_the_uncertainty_principle(C, bound):
    x = np.random.default_rng(2).standard_normal(1 << 18).astype(np.float32)
    message = C.encode(x, KEY)
    error = float(np.sum((C.decode(message, KEY) - x).astype(np.float64) ** 2) / np.sum(x.astype(np.float64) ** 2))
    if C.unbiased:
        error /= 1 + error
    assert 1 < error * 4 ** (message.bits / x.size) < bound


@pytest.mark.parametrize("C", [UniformQuantizer(step=0.8, unbiased=True), Trellis(bits=1.0, unbiased=True)], ids=str)
@pytest.mark.parametrize("name", ["gaussian", "onehot", "ones", "half"])
def test_subtractive_dither_has_no_bias_and_forgets_the_input(C, name):
    x = families(512)[name]
    errors = np.array([C(x, KEY.at(t)) - x for t in range(300)], np.float64)
    z = errors.mean(0) / (errors.std(0) / math.sqrt(len(errors)))
    assert abs(np.mean(z**2) - 1) < 6 * math.sqrt(2 / 512)
    assert abs(errors.mean()) < 5 * errors.std() / math.sqrt(errors.size)


def test_context_pays_where_scales_vary():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(1 << 17) * np.repeat(np.exp(rng.standard_normal(1 << 10)), 128)).astype(np.float32)
    plain, context = (np.sum((C(x, KEY) - x) ** 2) for C in (Trellis(bits=1.0), Trellis(bits=1.0, context=True)))
    assert context < 0.75 * plain


def test_parameters_are_refused():
    for bad in (dict(), dict(bits=1, nmse=0.1), dict(bits=-1), dict(nmse=2), dict(bits=math.nan)):
        for cls in (UniformQuantizer, Trellis):
            with pytest.raises(ValueError):
                cls(**bad)
    with pytest.raises(ValueError, match="states"):
        Trellis(bits=1, states=12)
    with pytest.raises(TypeError, match="states"):
        Trellis(bits=1, states=8.0)
    assert UniformQuantizer(2.0) == UniformQuantizer(bits=2.0)


def test_names_and_constants():
    C = UniformQuantizer(nmse=0.05, unbiased=True)
    assert C.omega(100) == 0.05 and C.guarantee == "proven"
    assert repr(C) == "UniformQuantizer(nmse=0.05, unbiased=True)"
    for C in compress.catalogue():
        if isinstance(C, (UniformQuantizer, Trellis)):
            assert pickle.loads(pickle.dumps(C)) == C == eval(repr(C), vars(compress))
