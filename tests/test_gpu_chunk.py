"""Top-K inside chunks and the levels of its values: csrc/chunk.cu against the CPU, byte for byte."""

import numpy as np
import pytest

from compress._cpu import kernels as cpu
from compress._gpu import chunk as plans


def inputs(n, dtype, seed=0):
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    normal = rng.standard_normal(n)
    found = {
        "normal": normal,
        "ties": np.round(2 * normal),
        "equal": np.full(n, -3.0),
        "zero": np.where(normal < 0, -0.0, 0.0),
        "sparse": normal * (rng.random(n) < 0.003),
        "denormal": rng.integers(-9, 10, n) * info.smallest_subnormal,
        "extreme": rng.choice([info.max, -info.max, info.tiny, info.smallest_subnormal, -0.0, 1], n),
        "rising": np.arange(n),
        "falling": -np.arange(n)[::-1],
    }
    return {name: np.asarray(x, dtype) for name, x in found.items()}


def selected(kernels, x, chunk, k):
    n = x.size // chunk * k + -(-k * (x.size % chunk) // chunk)
    room = np.full(n + 2, 0xAAAAAAAA, np.uint32)
    kernels.chunk_topk(x, chunk, k, room[1:-1])
    assert room[0] == room[-1] == 0xAAAAAAAA
    return room[1:-1]


# (chunk, k): few warps and many, threshold by one warp and by all, k too large for a threshold, rows in no register
SHAPES = [(16, 1), (16, 16), (33, 32), (64, 8), (512, 7), (513, 30), (1000, 999), (4096, 64), (4096, 250), (4096, 1500)]
LONG = [(8192, 20), (9000, 560), (16384, 1000), (16385, 40), (40_000, 2000), (65536, 5), (65536, 6000)]


def test_shapes_take_every_way():
    for itemsize in (4, 8):
        ways = [plans._topk_plan(chunk, k, itemsize) for chunk, k in SHAPES + LONG]
        assert {way[0] for way in ways} == {"chunk_topk", "chunk_topk_wide", "chunk_topk_long"}
        assert {way[3] for way in ways} >= {0, 1, 2, 8}
        for (chunk, _), (_, warps, rows, split) in zip(SHAPES + LONG, ways, strict=True):
            assert 32 * warps * (rows - 1) < chunk <= 32 * warps * rows and warps <= 32
            assert split * 32 * warps * itemsize <= 64 << 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunk, k", SHAPES)
def test_selection(gpu, chunk, k, dtype):
    for n in (0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk + chunk // 3):
        for name, x in inputs(n + 1, dtype, n).items():
            x = x[1:]  # aligned to an element alone
            np.testing.assert_array_equal(selected(gpu, x, chunk, k), selected(cpu, x, chunk, k), f"{name} {n}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunk, k", LONG)
def test_selection_in_long_chunks(gpu, chunk, k, dtype):
    n = chunk + chunk // 5
    for name, x in inputs(n, dtype, n).items():
        if name in ("normal", "ties", "equal", "zero", "sparse"):
            np.testing.assert_array_equal(selected(gpu, x, chunk, k), selected(cpu, x, chunk, k), name)


def test_selection_depends_on_no_order(in_any_order):
    for chunk, k in [(64, 8), (4096, 64), (5000, 700), (20_000, 900)]:
        for name, x in inputs(2 * chunk + 100, np.float32, 1).items():
            np.testing.assert_array_equal(selected(in_any_order, x, chunk, k), selected(cpu, x, chunk, k), name)


def test_more_chunks_than_blocks(gpu, monkeypatch):
    monkeypatch.setattr(plans, "_MOST_BLOCKS", 3)
    x = inputs(10_000, np.float32)["ties"]
    for chunk, k in [(64, 8), (1000, 30), (32, 30)]:
        np.testing.assert_array_equal(selected(gpu, x, chunk, k), selected(cpu, x, chunk, k))
    assert encoded(gpu, x, 4, 3).tobytes() == encoded(cpu, x, 4, 3).tobytes()


def values(n, dtype, k, seed=0):
    """What an encoder may get: squares are within the range."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(n)
    tiny = 1e-40 if dtype == np.float32 else 1e-150
    found = {
        "normal": normal,
        "equal": np.full(n, -3.0),
        "zero": np.where(normal < 0, -0.0, 0.0),
        "some": normal * (np.arange(n) // k % 3 == 1),
        "tiny": normal * tiny,
        "mixed": normal * 10.0 ** rng.uniform(-30, 30, n),
        "chunks": normal * 10.0 ** np.repeat(rng.uniform(-30, 30, -(-n // k)), k)[:n],
        "giant": np.where(np.arange(n) % k == k // 2, 1e30, normal * 1e-30),
        "below": normal * np.where(np.arange(n) < k, 1e30, tiny),
    }
    return {name: np.asarray(x, dtype) for name, x in found.items()}


def encoded(kernels, x, k, width):
    room = np.full(cpu.chunk_values_bytes(x.size, k, width) + 4, 0xAA, np.uint8)
    kernels.chunk_values_encode(x, k, width, room[1:-3])
    assert room[0] == 0xAA and (room[-3:] == 0xAA).all()
    return room[1:-3]


def decoded(kernels, data, n, k, width, dtype):
    out = np.full(n + 1, 7, dtype)
    kernels.chunk_values_decode(data, k, width, out[1:])
    assert out[0] == 7
    return out[1:]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", range(1, 9))
def test_values(gpu, width, dtype):
    for n, k in [
        (0, 3),
        (1, 1),
        (2, 64),
        (31, 1),
        (33, 32),
        (1023, 31),
        (1024, 64),
        (1025, 33),
        (2100, 700),
        (5000, 5000),
    ]:
        for name, x in values(n + 1, dtype, k, n).items():
            if width > 2 and n > 1024 and name not in ("normal", "some", "mixed"):
                continue
            x = x[1:]
            data = encoded(cpu, x, k, width)
            assert encoded(gpu, x, k, width).tobytes() == data.tobytes(), (name, n, k)
            if n:
                back = decoded(gpu, data, n, k, width, dtype)
                assert back.tobytes() == decoded(cpu, data, n, k, width, dtype).tobytes(), (name, n, k)


def test_values_depend_on_no_order(in_any_order):
    for width, k in [(1, 8), (2, 64), (4, 5)]:
        for name, x in values(3000, np.float32, k, 2).items():
            data = encoded(cpu, x, k, width)
            assert encoded(in_any_order, x, k, width).tobytes() == data.tobytes(), name
            assert (
                decoded(in_any_order, data, 3000, k, width, np.float32).tobytes()
                == decoded(cpu, data, 3000, k, width, np.float32).tobytes()
            )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_bytes_decode_as_on_the_cpu(gpu, dtype):
    rng = np.random.default_rng(5)
    top = int(np.float64(np.finfo(dtype).max).view(np.uint64) >> 32)
    for trial in range(60):
        n, k, width = int(rng.integers(1, 2500)), int(rng.integers(1, 90)), int(rng.integers(1, 9))
        data = rng.integers(0, 256, cpu.chunk_values_bytes(n, k, width)).astype(np.uint8)
        highest = int(rng.integers(0, top + 1)) if trial % 4 else top
        lowest = int(rng.integers(0, highest + 1)) if trial % 3 else 0
        header = np.array([lowest, highest, rng.integers(0, (8 << 20) + 1)], np.uint32)
        data[:12] = header.view(np.uint8)
        assert decoded(gpu, data, n, k, width, dtype).tobytes() == decoded(cpu, data, n, k, width, dtype).tobytes()


def outcome(function, *arguments):
    try:
        function(*arguments)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    return None


def test_errors_are_those_of_the_cpu(gpu):
    x, indices, data = np.ones(100, np.float32), np.zeros(7, np.uint32), np.zeros(300, np.uint8)
    calls = [
        ("chunk_topk", x, 4, 5, indices),
        ("chunk_topk", x, 4, 0, indices),
        ("chunk_topk", x, 1 << 17, 1, indices),
        ("chunk_topk", x, 10, 1, indices),
        ("chunk_values_encode", x, 0, 2, data),
        ("chunk_values_encode", x, 8, 9, data),
        ("chunk_values_encode", x, 8, 2, data[:50]),
        ("chunk_values_decode", data, 8, 0, x),
        ("chunk_values_decode", data[:50], 8, 2, x),
    ]
    for at, word in [(0, 0x7FF00000), (4, 0x7FF00000), (4, 0x48000000), (8, (8 << 20) + 1), (0, 1)]:
        wrong = data.copy()
        wrong[at : at + 4] = np.frombuffer(np.uint32(word).tobytes(), np.uint8)
        calls.append(("chunk_values_decode", wrong, 8, 2, x))
    for name, *arguments in calls:
        expected = outcome(getattr(cpu, name), *arguments)
        assert expected and outcome(getattr(gpu, name), *arguments) == expected, (name, arguments)
