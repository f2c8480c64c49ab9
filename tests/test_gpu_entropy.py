"""The GPU's entropy coder against the CPU's, byte for byte."""

import numpy as np
import pytest

from compress._cpu import kernels as cpu
from compress._gpu import device

CODES = [  # states, labels, dithered, context, columns
    (1, False, 0, 0, 0),
    (1, False, 1, 0, 0),
    (1, False, 4, 0, 0),
    (8, False, 0, 0, 0),
    (8, True, 0, 0, 0),
    (8, False, 1, 0, 0),
    (8, False, 5, 0, 0),
    (8, False, 0, 1, 0),
    (8, True, 0, 1, 30),
    (1, False, 0, 2, 1),
    (1, False, 2, 3, 0),
    (16, False, 2, 3, 128),
    (256, True, 0, 0, 0),
    (256, False, 3, 3, 7),
]
every_code = pytest.mark.parametrize("code", CODES, ids=str)


def vector(n, spread, far=0, seed=0, dtype=np.float32):
    """Of many scales, spread / 4 steps and beyond."""
    rng = np.random.default_rng(seed + n)
    x = rng.standard_t(3, n) * np.repeat(rng.choice([0.1, 1, spread], n // 50 + 1), 50)[:n]
    x[rng.integers(n, size=far)] = 1e9 * rng.standard_normal(far)
    return x.astype(dtype)


def coded(x, code, wide=True, step=0.25, key=7):
    """What level_encode takes after the codes, made by the CPU."""
    models = cpu.level_model_count(code)
    symbol, model = np.zeros(x.size, np.uint8), np.zeros(x.size, np.uint8) if models > 1 else None
    extra, counts = np.zeros(x.size, np.uint16) if wide else None, np.zeros(models * 256, np.uint32)
    costs = np.tile(np.array([1, 0, 0, 0, 0, 1], np.float32), 48)
    how = (1 / step, key, costs, 0.6, 0.4, 1.0)
    _, escapes, sizes = cpu.level_encode_symbols(x, code, *how, symbol, model, extra, counts, None)
    return symbol, model, extra, counts, escapes, sizes


def payload(x, code, wide=True, sent=None):
    return np.frombuffer(bytes(cpu.level_encode(code, sent or code, *coded(x, code, wide))), np.uint8)


def decoded(kernels, data, code, n, dtype=np.float32, step=0.25, offsets=(0, 0, 0), weight=1.0, add=False):
    """The vector, or what is wrong."""
    out = np.random.default_rng(n).standard_normal(n).astype(dtype)
    try:
        kernels.level_decode(data, code, n, 7, step, offsets, out, weight, add)
    except ValueError as error:
        return str(error)
    return out.tobytes()


@every_code
@pytest.mark.parametrize("n", [1, 17, 1000, 5000, 40_000])
def test_bytes_and_vectors_are_the_cpus(gpu, code, n):
    for wide, spread, far in ((False, 1, 0), (True, 1, 0), (True, 3000, 3))[2 * (n > 5000) :]:
        given = coded(vector(n, spread, far), code, wide)
        data = bytes(cpu.level_encode(code, code, *given))
        assert gpu.level_encode(code, code, *given).tobytes() == data
        whole = np.frombuffer(b"123" + data, np.uint8)
        for skip in {0, n % 4}:  # a payload starts at any address
            view = whole[3:] if skip == 0 else np.concatenate([whole[3:], np.zeros(4, np.uint8)])[: len(data)]
            assert decoded(gpu, view, code, n) == decoded(cpu, view, code, n)
        for how in (
            dict(dtype=np.float64, offsets=(0.1, -0.2, 0.3)),
            dict(weight=-0.3, add=True),
            dict(dtype=np.float64, weight=1e-310, add=True, step=-1e300),
            dict(step=1e38, offsets=(0.3, 0.2, 0.1)),
            dict(step=3e-45),
        )[: 1 if n > 5000 else 5]:
            assert decoded(gpu, whole[3:], code, n, **how) == decoded(cpu, whole[3:], code, n, **how), how


@pytest.mark.parametrize("n", [2047, 2048, 32_767, 32_768, 131_071, 131_072, 131_849, 300_000])
def test_lanes_and_chunks(gpu, n):
    for code in CODES[n % 3 :: 5 if n > 100_000 else 3]:
        given = coded(vector(n, 100, 9), code)
        data = np.frombuffer(bytes(cpu.level_encode(code, code, *given)), np.uint8)
        assert gpu.level_encode(code, code, *given).tobytes() == data.tobytes()
        add = bool(n & 1)
        assert decoded(gpu, data, code, n, add=add) == decoded(cpu, data, code, n, add=add)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_threads_makes_no_difference(grid, order):
    module = device.cupy()
    module.ORDER = order
    try:
        for code in CODES[::4]:
            n = 4_000
            given = coded(vector(n, 100, 5), code)
            data = np.frombuffer(bytes(cpu.level_encode(code, code, *given)), np.uint8)
            assert grid.level_encode(code, code, *given).tobytes() == data.tobytes()
            assert decoded(grid, data, code, n) == decoded(cpu, data, code, n)
    finally:
        module.ORDER = 0


def test_models_that_do_not_fit_in_shared_memory(gpu, monkeypatch):
    from compress._gpu import entropy

    monkeypatch.setattr(entropy, "limits", lambda: (2, 36 << 10))
    for code in ((8, False, 0, 1, 0), (8, False, 1, 0, 0), (1, False, 0, 0, 0)):
        n = 140_000
        given = coded(vector(n, 100, 5), code)
        data = np.frombuffer(bytes(cpu.level_encode(code, code, *given)), np.uint8)
        assert gpu.level_encode(code, code, *given).tobytes() == data.tobytes()
        assert decoded(gpu, data, code, n) == decoded(cpu, data, code, n)


def test_coarser_models(gpu):
    code, n = (8, False, 2, 3, 0), 5000
    given = coded(vector(n, 10), code)
    for sent in (code, (8, False, 3, 5, 0), (8, False, 6, 7, 0)):
        data = bytes(cpu.level_encode(code, sent, *given))
        assert gpu.level_encode(code, sent, *given).tobytes() == data
        data = np.frombuffer(data, np.uint8)
        assert decoded(gpu, data, sent, n) == decoded(cpu, data, sent, n)


def test_counts_may_be_on_the_host(gpu):
    code = CODES[3]
    symbol, model, extra, counts, escapes, sizes = coded(vector(3000, 10), code)
    there = [device.to_device(v) for v in (symbol, model, extra)]
    data = gpu._module.level_encode(code, code, *there, counts, escapes, sizes)
    assert data.get().tobytes() == bytes(cpu.level_encode(code, code, symbol, model, extra, counts, escapes, sizes))


@pytest.mark.parametrize("code", [(1, False, 0, 0, 0), (8, True, 0, 0, 0), (1, False, 0, 1, 0)], ids=str)
def test_one_symbol_takes_no_words(gpu, code):
    for n, value in ((3000, 0.5), (131_073, 0.0), (140_000, 1e9)):
        given = coded(np.full(n, value, np.float32), code)
        data = bytes(cpu.level_encode(code, code, *given))
        assert gpu.level_encode(code, code, *given).tobytes() == data
        data = np.frombuffer(data, np.uint8)
        assert decoded(gpu, data, code, n) == decoded(cpu, data, code, n)


def test_no_symbols_at_all(gpu):
    code = (8, False, 0, 0, 0)
    given = coded(np.zeros(0, np.float32), code)
    data = bytes(cpu.level_encode(code, code, *given))
    assert gpu.level_encode(code, code, *given).tobytes() == data
    for bad in (data, data + b"x", b""):
        bad = np.frombuffer(b"-" + bad, np.uint8)[1:]
        assert decoded(gpu, bad, code, 0) == decoded(cpu, bad, code, 0)


@every_code
def test_hostile_bytes_fail_as_on_the_cpu(gpu, code):
    """The same vector or the same error; most flips are found, as lanes must end where they began."""
    rng = np.random.default_rng(3)
    wrong = set()
    for n, spread, far in ((700, 1, 0), (3000, 2000, 40), (132_000, 1, 3)):
        data = payload(vector(n, spread, far), code)
        models = cpu.level_models_decode(data, code)[1]
        for trial in range(40 if n < 5000 else 4):
            bad = data.copy()
            kind = trial % 4
            if kind == 0:  # the tables, heads and sizes
                at = int(rng.integers(min(data.size, models + 40)))
                bad[at] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                bad[int(rng.integers(data.size))] ^= 1 << int(rng.integers(8))
            elif kind == 2:
                bad = bad[: int(rng.integers(data.size))]
            else:
                bad = np.concatenate([bad, rng.integers(0, 256, int(rng.integers(1, 9))).astype(np.uint8)])
            mine, theirs = decoded(gpu, bad, code, n), decoded(cpu, bad, code, n)
            assert isinstance(mine, str) == isinstance(theirs, str) and mine == theirs, (n, trial)
            wrong.add(mine if isinstance(mine, str) else "")
    assert len(wrong) >= 3


def test_random_bytes_fail_as_on_the_cpu(gpu):
    rng = np.random.default_rng(4)
    for code in CODES[::3]:
        for size in rng.integers(0, 3000, 25):
            bad = rng.integers(0, 256, int(size)).astype(np.uint8)
            assert decoded(gpu, bad, code, 1500) == decoded(cpu, bad, code, 1500)


def test_wrong_arguments(gpu):
    code, x = (8, False, 0, 0, 0), vector(100, 1)
    names = "symbol model extra counts escapes sizes".split()
    given = dict(zip(names, coded(x, code), strict=True))
    data = payload(x, code)

    def encode(code=code, sent=code, **changed):
        return lambda k: k.level_encode(code, sent, *{**given, **changed}.values())

    def decode(code=code, n=100):
        return lambda k: k.level_decode(data, code, n, 0, 1.0, (0, 0, 0), x, 1.0, False)

    for call, match in (
        (encode(model=given["model"][:9]), "model has 9"),
        (encode(extra=given["extra"][:9]), "extra has 9"),
        (encode(counts=given["counts"][:9]), "counts has 9"),
        (encode(sizes=b""), "0 bytes of sizes"),
        (encode(sent=CODES[0]), "coarser"),
        (encode(code=(8, 0, 9, 0, 0)), "not a code"),
        (decode(n=101), "out has 100"),
        (decode(code=(8, 0, 1, 1, 0)), "models"),
    ):
        for kernels in (cpu, gpu):
            with pytest.raises(ValueError, match=match):
                call(kernels)
