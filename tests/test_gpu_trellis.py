"""Symbols, models, low bits, counts, moments and escapes from the GPU's kernels, byte for byte those of the CPU."""

from itertools import product

import numpy as np
import pytest

from compress._cpu import kernels as cpu
from compress._gpu import trellis

CODES = [  # states, labels, dithered, context, columns
    (1, False, 0, 0, 0),
    (1, False, 1, 0, 0),
    (1, False, 3, 3, 0),
    (1, False, 0, 7, 5),
    (4, False, 0, 0, 0),
    (4, True, 0, 3, 100),
    (8, False, 0, 0, 0),
    (8, True, 0, 0, 0),
    (8, False, 1, 0, 0),
    (8, False, 3, 2, 0),
    (8, False, 0, 1, 0),
    (8, True, 0, 1, 5),
    (16, True, 0, 0, 0),
    (16, False, 0, 3, 5),
    (32, True, 0, 3, 0),
    (32, False, 3, 3, 100),
    (64, False, 0, 0, 0),
    (64, True, 0, 1, 1),
    (256, False, 1, 0, 0),
    (256, True, 0, 3, 0),
]
KEY = 0x123456789ABCDEF
COST = np.array([0.8, 0.3, -0.5, 0.4, 0.2, 1.25], np.float32)
ROWS = np.tile(COST, 48) * np.random.default_rng(4).uniform(0.8, 1.2, 288).astype(np.float32)


def vector(n, dtype, seed=0):
    """Heavy tails, scales that change, and what is far, tiny, zero of either sign."""
    rng = np.random.default_rng(seed + n)
    x = rng.standard_t(2, n) * np.repeat(rng.choice([0.05, 1, 40], n // 100 + 1), 100)[:n]
    odd = [1e12, -1e12, 0.0, -0.0, 1e-42, -np.finfo(dtype).max, np.finfo(dtype).max, 16250.0, -32499.9, 7.9]
    at = rng.integers(n, size=min(len(odd), n // 4))
    x[at] = odd[: len(at)]
    return x.astype(dtype)


def encoded(kernels, x, code, wide=True, measured=True, step=0.25, costs=ROWS, dead=0.6, rounding=0.4, scale=1.0):
    models = cpu.level_model_count(code)
    room = dict(
        symbol=np.zeros(x.size, np.uint8),
        model=np.zeros(x.size, np.uint8) if models > 1 else None,
        extra=np.zeros(x.size, np.uint16) if wide else None,
        counts=np.ones(models * 256, np.uint32),
        moments=np.ones(7) if measured else None,
    )
    how = 1 / step, KEY, costs, dead, rounding, scale
    told = kernels.level_encode_symbols(x, code, *how, *room.values())
    return *told, *room.values()


def same(gpu, x, code, **named):
    for ours, theirs in zip(encoded(gpu, x, code, **named), encoded(cpu, x, code, **named), strict=True):
        if isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(ours.view(np.uint8), theirs.view(np.uint8))
        else:
            assert ours == theirs


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 17, 1000, 2047, 5000, 33_001])
def test_bytes_are_those_of_the_cpu(gpu, code, n):
    dtype = np.float64 if n == 1000 or (code[0] + n) % 3 == 0 else np.float32
    same(gpu, vector(n, dtype), code, wide=n != 5000, measured=n != 2047)


@pytest.mark.parametrize("code", [CODES[i] for i in (1, 7, 11, 14, 19)], ids=str)
def test_several_chunks_a_wave_each(gpu, code, monkeypatch):
    monkeypatch.setattr(trellis, "_ROOM", 1)
    same(gpu, vector(131_072 + 777, np.float32), code)


@pytest.mark.parametrize("code", [CODES[i] for i in (1, 9, 10, 13)], ids=str)
@pytest.mark.parametrize("n", [4095, 4096, 9000])
def test_a_sample_is_cut_like_whole_chunks(gpu, code, n):
    same(gpu, vector(n, np.float32), code, scale=7.5)


@pytest.mark.parametrize("code", [CODES[i] for i in (0, 6, 11, 12, 17, 18)], ids=str)
def test_the_order_of_threads_and_blocks_says_nothing(grid, order, code):
    same(grid, vector(3001, np.float32), code)


def test_costs_that_leave_sixteen_bits(gpu):
    """Wrapped around as on the CPU; ties are broken as there."""
    rng = np.random.default_rng(2)
    for i, states in enumerate([4, 8, 16, 32, 64, 256] * 5):
        n = int(rng.choice([1, 2, 5, 100, 2500]))
        code = (states, bool(rng.integers(2)), 0, int(rng.choice([0, 7])), 0)
        costs = rng.uniform([0.2, 0, -9, -9, -5, 1], [1, 4, 9, 9, 5, 4], (48, 6)).astype(np.float32).ravel()
        x = (rng.standard_normal(n) * rng.choice([0.1, 1, 20])).astype(np.float32 if i % 2 else np.float64)
        x[: n // 3] = 0
        same(gpu, x, code, step=1.0, costs=costs)
        same(gpu, np.round(x), code, step=1.0, costs=np.tile(np.array([1, 0, 0, 0, 0, 1], np.float32), 48))


@pytest.mark.parametrize(
    "dead, rounding, step", [(0.6, 0.4, -0.25), (0.5, 0.5, 1.0), (0.99, 0.5, 2.0), (0.7, 0.3, 1e-9)]
)
def test_dead_zones_steps_and_signs(gpu, dead, rounding, step):
    for code, wide in product([CODES[0], CODES[1], CODES[8]], (False, True)):
        same(gpu, vector(1111, np.float32), code, step=step, dead=dead, rounding=rounding, wide=wide)


def test_what_is_rare_is_escaped(gpu):
    """Large levels among many small ones: symbols and counts change once all are counted."""
    x = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    x[::1000] = 15 * 1.06 ** np.arange(100) * np.tile([1, -1], 50)
    for code in (CODES[0], CODES[6], (8, False, 6, 0, 0)):
        for scale in (1.0, 3.0):
            assert encoded(cpu, x, code, scale=scale)[0] > 10
            same(gpu, x, code, scale=scale)


def test_buffers_at_any_address(gpu):
    n, code = 2500, (8, True, 0, 1, 5)
    expected = encoded(cpu, vector(n, np.float32), code)
    space = np.zeros(2 * n + 8, np.uint8)
    symbol, model = space[1 : n + 1], space[n + 4 : 2 * n + 4]
    extra, counts = np.zeros(n + 1, np.uint16)[1:], np.zeros(256 * 96, np.uint32)
    x = np.concatenate([[0], vector(n, np.float32)]).astype(np.float32)[1:]
    gpu.level_encode_symbols(x, code, 4.0, KEY, ROWS, 0.6, 0.4, 1.0, symbol, model, extra, counts, None)
    for ours, theirs in zip((symbol, model, extra, counts), expected[3:7], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not space[0] and not space[n + 1 : n + 4].any() and not space[2 * n + 4 :].any()


def test_arguments_are_checked(gpu):
    x, code = np.zeros(10, np.float32), (8, False, 0, 0, 0)
    room = dict(symbol=np.zeros(10, np.uint8), model=np.zeros(10, np.uint8), extra=None)
    room |= dict(counts=np.zeros(512, np.uint32), moments=None)
    for change, error in (
        (dict(symbol=np.zeros(9, np.uint8)), ValueError),
        (dict(counts=np.zeros(511, np.uint32)), ValueError),
        (dict(extra=np.zeros(9, np.uint16)), ValueError),
        (dict(moments=np.zeros(6)), ValueError),
        (dict(model=np.zeros(10, np.uint16)), TypeError),
        (dict(moments=np.zeros(7, np.float32)), TypeError),
    ):
        told = []
        for kernels in (cpu, gpu):
            with pytest.raises(error) as caught:
                kernels.level_encode_symbols(x, code, 1.0, 0, ROWS, 0.6, 0.4, 1.0, *(room | change).values())
            told.append(str(caught.value))
        assert told[0] == told[1]
    for bad in ((8, False, 7, 0, 0), (8, False, 1, 1, 0), (12, False, 0, 0, 0), (8, False, 0, 1, 129)):
        with pytest.raises(ValueError, match=r"is not a code|models, more"):
            gpu.level_encode_symbols(x, bad, 1.0, 0, ROWS, 0.6, 0.4, 1.0, *room.values())
    empty = [np.zeros(0, np.uint8), np.zeros(0, np.uint8), None, np.ones(512, np.uint32), np.ones(7)]
    assert gpu.level_encode_symbols(x[:0], code, 1.0, 0, ROWS, 0.6, 0.4, 1.0, *empty) == (0, b"", b"")
    assert not empty[3].any() and not empty[4].any()
