"""The GPU's Kashin against the CPU, byte for byte: sizes, levels, later attempts, extremes, hostile bytes."""

import backends
import numpy as np
import pytest
from test_kashin import few

from compress._cpu import kernels as cpu
from compress._gpu import device
from compress.kashin import _plan, kashin_level
from compress.key import Key

KEY, FRAME_KEY = Key(5).word, Key(6).word
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)


def encode(kernels, x, redundancy=1.25, levels=3, limit=None, steps=8, skip=0):
    """(status, payload, where the level words start); the payload starts `skip` bytes behind a multiple of 16."""
    plan = _plan(x.size, redundancy)
    offset = -(-cpu.pack_bits(plan.rows, cpu.pack_width(levels)) // 8)
    payload = np.full(16 + skip + offset + 4 * plan.frames, 0x55, np.uint8)
    payload = payload[-payload.ctypes.data % 16 + skip :][: offset + 4 * plan.frames]
    limit = limit or kashin_level(redundancy)
    steps = steps if redundancy >= 1.05 else 0
    arguments = x, plan.layout, plan.data, limit, steps, levels, FRAME_KEY, KEY, payload, offset
    return int(kernels.kashin_encode(*arguments)), payload, offset


def decode(kernels, payload, offset, d, dtype, redundancy=1.25, levels=3):
    plan, out = _plan(d, redundancy), np.full(d, np.nan, dtype)
    return int(kernels.kashin_decode(payload, offset, plan.layout, plan.data, levels, FRAME_KEY, out)), out


def same(gpu, x, **named):
    """Both ways, both backends; the words of the levels."""
    status, payload, offset = encode(cpu, x, **named)
    again, bytes_, _ = encode(gpu, x, **named)
    assert (again, bytes_.tobytes()) == (status, payload.tobytes())
    code = {k: v for k, v in named.items() if k in ("redundancy", "levels")}
    found, out = decode(cpu, payload, offset, x.size, x.dtype, **code)
    again, values = decode(gpu, payload, offset, x.size, x.dtype, **code)
    assert (again, values.tobytes()) == (found, out.tobytes()) and found == -1
    return payload[offset:].view(np.uint8).copy().view(np.uint32)


@dtypes
@pytest.mark.parametrize("d", [*range(1, 9), 51, 63, 64, 65, 100, 511, 819, 820, 1023, 1024, 3276, 3277, 5000])
def test_sizes(gpu, d, dtype):
    same(gpu, np.random.default_rng(d).standard_t(2, d + 1).astype(dtype)[1:])  # aligned to an element alone


@dtypes
@pytest.mark.parametrize("redundancy", [1.0, 1.1, 1.25, 2.0, 8.0])
@pytest.mark.parametrize("levels", [2, 3, 4, 16, 32767])
def test_redundancies_and_levels(gpu, redundancy, levels, dtype):
    for d in (37, 2001, int(4096 / redundancy) + 300):
        x = np.random.default_rng(d).standard_normal(d).astype(dtype)
        same(gpu, x, redundancy=redundancy, levels=levels, skip=levels % 5)


@dtypes
def test_later_attempts(gpu, dtype):
    """Vectors of a few equal coordinates, and a promise that most attempts miss."""
    rng, attempts = np.random.default_rng(0), set()
    for redundancy in (1.1, 1.25, 2.0):
        for d in (3, 51, 102, 153, 700):
            for count in (1, 3, 4):
                attempts |= set(same(gpu, few(count)(rng, d).astype(dtype), redundancy=redundancy) & 31)
    for d, limit in ((51, 1.75), (102, 1.8), (409, 1.87), (1638, 1.93)):
        for _ in range(3):
            attempts |= set(same(gpu, rng.standard_normal(d).astype(dtype), limit=limit) & 31)
    assert max(attempts) > 4
    for d in (1, 2, 3, 5):
        x = np.ones(d, dtype)
        assert encode(gpu, x, limit=0.5)[0] == encode(cpu, x, limit=0.5)[0] == 0


def test_attempts_of_the_largest_frames(gpu):
    x = np.random.default_rng(1).standard_t(2, 6 * 3276).astype(np.float32)
    assert len(set(same(gpu, x, limit=1.97, steps=5) & 31)) > 1


def test_steps(gpu):
    x = np.random.default_rng(2).standard_normal(4000).astype(np.float32)
    for steps, limit in ((1, 3.0), (2, 2.6), (3, 2.3), (33, 2.0)):
        same(gpu, x, steps=steps, limit=limit)


@dtypes
def test_extremes(gpu, dtype):
    """A frame of zeros of either sign between others, denormals, numbers near the end of the range."""
    rng = np.random.default_rng(3)
    info = np.finfo(dtype)
    x = rng.standard_normal(3276 * 3 + 900).astype(dtype)
    x[3276 : 2 * 3276] = 0
    x[4000:5000] = -0.0
    x[-40:] = -0.0
    same(gpu, x)
    for scale in (1e-40, 1e37, info.smallest_subnormal * 3, info.max / 8, info.tiny):
        x = (rng.standard_normal(4100) * float(scale)).astype(dtype)
        x[5] = -0.0
        same(gpu, x, levels=2)
        same(gpu, x, levels=16)
    x = np.full(500, info.max, dtype)
    same(gpu, x, levels=2)
    same(gpu, np.where(np.arange(500) % 7, info.smallest_subnormal, info.max).astype(dtype))


@dtypes
def test_what_fails_is_the_first_frame_in_order(gpu, dtype):
    """Two frames, of 409 and 173 coordinates."""
    x = np.random.default_rng(4).standard_normal(409 + 173).astype(dtype)
    for bad in ({}, {570: np.nan}, {100: np.inf, 540: np.nan}, {409: -np.inf}):
        for limit in (None, 0.9):
            y = x.copy()
            y[:409] = 0
            for i, v in bad.items():
                y[i] = v
            assert encode(gpu, y, limit=limit)[0] == encode(cpu, y, limit=limit)[0]
    assert encode(gpu, x, limit=0.9)[0] == 0
    x[570] = np.nan
    assert encode(gpu, x)[0] == -2


@dtypes
def test_hostile_bytes(gpu, dtype):
    rng = np.random.default_rng(5)
    for d, levels in ((1500, 3), (3900, 16), (4000, 5)):
        x = rng.standard_normal(d).astype(dtype)
        _, payload, offset = encode(cpu, x, levels=levels)
        for trial in range(6):
            hostile = rng.integers(0, 256, payload.size, np.uint8)
            if trial < 4:  # levels that are words of an encoder, so that the codes are looked at
                words = rng.integers(0, 2**20, (payload.size - offset) // 4, np.uint32)
                words |= (2048 + rng.integers(-1100, 1100, words.size).astype(np.uint32)) << 20
                hostile[offset:] = words.view(np.uint8)
            found, out = decode(cpu, hostile, offset, d, dtype, levels=levels)
            again, values = decode(gpu, hostile, offset, d, dtype, levels=levels)
            assert again == found
            assert found >= 0 or values.tobytes() == out.tobytes()


@dtypes
@pytest.mark.parametrize("order", [1, 2, 3])
def test_orders_of_threads(grid, order, dtype):
    from cuda_on_cpu import cupy_on_cpu

    cupy_on_cpu.ORDER = order
    try:
        same(grid, np.random.default_rng(6).standard_normal(3276 + 1000).astype(dtype))
        same(grid, few(3)(np.random.default_rng(7), 51).astype(dtype), limit=2.0)
    finally:
        cupy_on_cpu.ORDER = 0


@dtypes
def test_layouts_of_many_frames_of_a_size(gpu, dtype):
    """Small frames that share blocks of codes, large ones of every size; layout and masks as NumPy or CuPy arrays."""
    runs = [(1, 4096, 4000), (2, 2048, 1000), (1, 1024, 1024), (3, 512, 300), (0, 256, 9), (5, 64, 51), (9, 64, 1)]
    masks = [np.empty(rows // 32, np.uint32) for _, rows, _ in runs]
    for (_, rows, coordinates), mask in zip(runs, masks, strict=True):
        cpu.kashin_rows(rows, coordinates, mask)
    layout, data = np.array(runs, np.uint64).reshape(-1), np.concatenate(masks)
    d, rows = (sum(run[0] * run[i] for run in runs) for i in (2, 1))
    x = np.random.default_rng(8).standard_normal(d).astype(dtype)
    for levels in (3, 4, 7):
        offset = -(-cpu.pack_bits(rows, cpu.pack_width(levels)) // 8)
        payloads = [np.zeros(offset + 4 * 21, np.uint8) for _ in range(3)]
        outs = [np.full(d, np.nan, dtype) for _ in range(3)]
        there = backends.importlib.import_module("compress._gpu.kernels")
        module = device.cupy()
        code = module.zeros(payloads[0].size, np.uint8)
        status = there.kashin_encode(module.asarray(x), layout, data, 9.0, 3, levels, FRAME_KEY, KEY, code, offset)
        out = module.asarray(outs[2])
        assert status == -1
        assert there.kashin_decode(code, offset, layout, data, levels, FRAME_KEY, out) == -1
        payloads[2][...], outs[2][...] = code.get(), out.get()
        for kernels, payload, out in zip((cpu, gpu), payloads, outs, strict=False):
            assert kernels.kashin_encode(x, layout, data, 9.0, 3, levels, FRAME_KEY, KEY, payload, offset) == -1
            assert kernels.kashin_decode(payload, offset, layout, data, levels, FRAME_KEY, out) == -1
        assert payloads[0].tobytes() == payloads[1].tobytes() == payloads[2].tobytes()
        assert outs[0].tobytes() == outs[1].tobytes() == outs[2].tobytes()


def test_nothing_is_uploaded_twice(gpu, monkeypatch):
    x = np.random.default_rng(9).standard_normal(1000).astype(np.float32)
    plan, module = _plan(x.size, 1.25), device.cupy()
    there = backends.importlib.import_module("compress._gpu.kernels")
    given, payload = module.asarray(x), module.zeros(10_000, np.uint8)

    def run():
        arguments = plan.layout, plan.data, 2.06, 8, 3, FRAME_KEY, KEY, payload, 9000
        return there.kashin_encode(given, *arguments)

    run()
    for name in ("asarray", "ascontiguousarray"):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(device, "read", None)
    status = run()
    monkeypatch.undo()
    assert status == -1


def test_mistakes_are_refused_as_on_the_cpu(gpu):
    x, payload, data = np.ones(5000), np.zeros(100_000, np.uint8), np.full(256, 0xFFFFFFFF, np.uint32)
    layouts = [
        [1, 64, 64, 1, 128, 128],
        [2**62, 64, 64],
        [100, 64, 64],
        [1, 96, 64],
        [1, 64, 65],
        [1, 64, 40],
        [1, 32, 32],
    ]
    cases = [(layout, {}) for layout in layouts]
    cases += [([1, 64, 64], bad) for bad in ({"steps": -1}, {"levels": 1}, {"offset": 3}, {"offset": 99_999})]
    for layout, named in cases:
        texts = []
        for kernels in (cpu, gpu):
            p = {"steps": 8, "levels": 3, "offset": 50_000, **named}
            plan = np.array(layout, np.uint64)
            with pytest.raises(ValueError) as error:
                kernels.kashin_encode(x, plan, data, 100.0, p["steps"], p["levels"], 1, 2, payload, p["offset"])
            texts.append(str(error.value))
        assert texts[0] == texts[1]
