"""Kashin representations: exact, of the promised level, whatever the vector; and the compressor built on them."""

import importlib

import numpy as np
import pytest

from compress._cpu import default
from compress._cpu import kernels as cpu
from compress.kashin import Kashin, kashin_layout, kashin_level
from compress.key import Key

SETS = [importlib.import_module(f"compress._cpu.{name}") for name in default.instruction_sets()]
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)
SIGNS, ATTEMPT, BLOCK = 2, 1 << 40, 1 << 38


def few(count):
    def vector(rng, n):
        x = np.zeros(n)
        x[rng.choice(n, min(n, count), replace=False)] = 1
        return x

    return vector


FAMILIES = {
    "gaussian": lambda rng, n: rng.standard_normal(n),
    "student": lambda rng, n: rng.standard_t(2, n),
    "spike": lambda rng, n: 10 * few(1)(rng, n) + 0.01 * rng.standard_normal(n),
    "ones": lambda rng, n: np.ones(n),
    "half": lambda rng, n: rng.standard_normal(n) * (np.arange(n) < n // 2),
    "step": lambda rng, n: np.where(np.arange(n) < n // 2, 1.0, 0.0),
    **{f"{count} equal": few(count) for count in (1, 2, 3, 4, 5, 8, 16)},
}
families = pytest.mark.parametrize("family", FAMILIES)


def frames_of(family, count, n, dtype, seed=0):
    rng = np.random.default_rng([seed, n])
    return np.stack([FAMILIES[family](rng, n) for _ in range(count)]).astype(dtype)


def mask(rows, coordinates):
    data = np.empty(rows // 32, np.uint32)
    cpu.kashin_rows(rows, coordinates, data)
    return data


def represent(kernels, x, rows, limit, steps=8, key=7):
    """(coefficients, attempts, status) of equal frames, the rows of x."""
    count, coordinates = x.shape
    a, words = np.full((count, rows), np.nan, x.dtype), np.empty(count, np.uint32)
    status = kernels.kashin_representation(
        x.reshape(-1), a.reshape(-1), words, rows, coordinates, mask(rows, coordinates), limit, steps, key
    )
    return a, words, status


def sign(n, start, key):
    words = np.empty(4 * -(-(n + start % 128) // 128), np.uint32)
    cpu.philox_words(key, start // 128, SIGNS, words)
    return 1.0 - 2.0 * np.unpackbits(words.view(np.uint8), bitorder="little")[start % 128 :][:n]


def hadamard(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def oracle_frame(rows, coordinates, attempt, frame, key):
    """U (coordinates x rows) by matrices: H, signs, the rows that carry data, and the rotations of a later attempt."""
    at = np.flatnonzero(np.unpackbits(mask(rows, coordinates).view(np.uint8), bitorder="little"))
    offset = attempt * ATTEMPT + frame * rows
    u = (hadamard(rows) * sign(rows, offset, key))[:, at].T
    block = 1 << (coordinates.bit_length() - 1)
    for end in (1, 0) if attempt else ():
        rotation = np.eye(coordinates)
        part = slice(coordinates - block, None) if end else slice(block)
        rotation[part, part] = hadamard(block) * sign(block, offset + (1 + end) * BLOCK, key)
        u = rotation.T @ u
    return u


def few_on_grid(kernels, count):
    return -(-count // 20) if getattr(kernels, "name", "") == "grid" else count


@families
@dtypes
@pytest.mark.parametrize("rows, redundancy", [(64, 1.25), (256, 2.0), (512, 1.05), (4096, 1.5)])
def test_the_level_is_kept_and_the_representation_exact(kernels, family, dtype, rows, redundancy):
    n, limit = int(rows // redundancy), kashin_level(redundancy)
    x = frames_of(family, few_on_grid(kernels, 100 if rows < 4096 else 10), n, dtype)
    a, words, status = represent(kernels, x, rows, limit)
    assert status == -1
    norm = np.linalg.norm(x.astype(np.float64), axis=1)
    assert (np.abs(a).max(1) * np.sqrt(rows) <= limit * norm * (1 + 1e-6)).all()
    back = np.full_like(x, np.nan)
    kernels.kashin_synthesis(a.copy().reshape(-1), back.reshape(-1), words, rows, n, mask(rows, n), 7)
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    assert (np.linalg.norm(back - x, axis=1) <= tolerance * norm).all()


@pytest.mark.parametrize("rows, coordinates", [(64, 51), (64, 1), (128, 128), (256, 100), (512, 409)])
def test_frames_are_tight_and_are_what_the_header_says(kernels, rows, coordinates):
    x = frames_of("gaussian", 40, coordinates, np.float64)
    redundancy = rows / coordinates
    limit = kashin_level(redundancy) * (0.95 if redundancy > 1 else 1)  # low enough for several attempts
    a, words, status = represent(kernels, x, rows, limit, steps=8 if redundancy > 1 else 0)
    assert status == -1
    for frame in range(len(x)):
        u = oracle_frame(rows, coordinates, int(words[frame] & 31), frame, 7)
        assert np.allclose(u @ u.T, np.eye(coordinates), atol=1e-12)
        assert np.allclose(u @ a[frame], x[frame], atol=1e-12)
        level = (1 + (int(words[frame]) >> 5 & 0x7FFF) * 2.0**-15) * 2.0 ** ((int(words[frame]) >> 20) - 2048)
        assert np.abs(a[frame]).max() <= level <= np.abs(a[frame]).max() * (1 + 2.0**-15)
    if (rows, coordinates) == (64, 51):
        assert len(set(words & 31)) > 1  # the later attempts were among those checked


def test_rows_are_a_subset_fixed_by_the_size(kernels):
    for rows, coordinates in ((64, 1), (64, 64), (4096, 3276), (2048, 1024)):
        data = mask(rows, coordinates)
        assert np.unpackbits(data.view(np.uint8)).sum() == coordinates
        again = np.empty_like(data)
        kernels.kashin_rows(rows, coordinates, again)
        assert np.array_equal(data, again)
    assert mask(64, 20).tolist() == GOLDEN_ROWS


GOLDEN_ROWS = [0x13986084, 0x289333]


def clip_and_add(u, x, eta, delta, iterations):
    """The paper's iteration, by matrices: clip what is left, add it, shrink; the last pass is not clipped."""
    m, a, left = np.linalg.norm(x) / np.sqrt(delta * u.shape[1]), np.zeros(u.shape[1]), x.copy()
    for _ in range(iterations):
        b = np.clip(u.T @ left, -m, m)
        a, left, m = a + b, left - u @ b, m * eta
    return a + u.T @ left


def test_descent_beats_the_papers_iteration():
    rows, n = 512, 409
    x = frames_of("gaussian", 20, n, np.float64)
    a, words, _ = represent(cpu, x, rows, kashin_level(1.25))
    for frame in range(len(x)):
        u = oracle_frame(rows, n, int(words[frame] & 31), frame, 7)
        slow = clip_and_add(u, x[frame], 0.7, 2.0, 60)
        assert np.allclose(u @ slow, x[frame], atol=1e-10)
        assert np.abs(a[frame]).max() < 1.02 * np.abs(slow).max()


def test_no_attempt_succeeds_where_the_level_is_impossible(kernels):
    x = frames_of("gaussian", 3, 51, np.float32)
    assert represent(kernels, x, 64, 0.9)[2] == 0
    x[0] = 0
    assert represent(kernels, x, 64, 0.9)[2] == 1
    x[2, 5] = np.nan
    x[1] = 0
    assert represent(kernels, x, 64, 2.06)[2] == -2


@pytest.mark.parametrize("redundancy", [1.05, 1.25, 2.0, 4.0])
def test_an_attempt_rarely_fails(redundancy):
    """Exhaustion is 32 failures in a row: the rate of one is what keeps it away."""
    for rows in (64, 256):
        n = int(rows // redundancy)
        for family in FAMILIES:
            _, words, status = represent(cpu, frames_of(family, 300, n, np.float32), rows, kashin_level(redundancy))
            attempts = words & 31
            assert status == -1
            assert (attempts > 1).sum() <= 0.25 * (attempts > 0).sum() + 5


@dtypes
@pytest.mark.parametrize("size", ["tiny", "huge"])
def test_tiny_and_huge_frames_lose_nothing(kernels, dtype, size):
    """A power of two changes the exponent of a word and nothing else, to the ends of the range of the type."""
    info = np.finfo(dtype)
    tiny = int(np.log2(float(info.smallest_subnormal)))
    x = np.round(frames_of("gaussian", 5, 409, np.float64) * 1024).astype(dtype)  # 13 bits: no denormal rounds them
    power = tiny if size == "tiny" else info.maxexp - 14
    scaled = np.ldexp(x, power)
    _, words, status = represent(kernels, x, 512, kashin_level(1.25))
    a, moved, again = represent(kernels, scaled, 512, kashin_level(1.25))
    assert status == again == -1
    assert np.isfinite(a).all()
    assert np.array_equal(moved, words + (np.uint32(power % 4096) << 20))
    C, key = Kashin(levels=1001), Key(3)
    error = C(scaled.reshape(-1), key) - np.ldexp(C(x.reshape(-1), key), power)
    assert np.abs(error).max() <= info.smallest_subnormal


@dtypes
def test_instruction_sets_agree(dtype):
    x = frames_of("student", 6, 3276, dtype)
    reference = represent(SETS[0], x, 4096, 1.97, steps=5)
    assert len(set(reference[1] & 31)) > 1
    for kernels in SETS[1:]:
        a, words, status = represent(kernels, x, 4096, 1.97, steps=5)
        assert (a.tobytes(), words.tobytes(), status) == (reference[0].tobytes(), reference[1].tobytes(), -1)


@pytest.mark.parametrize("redundancy", [1.0, 1.05, 1.25, 1.5, 2.0, 3.3, 8.0])
def test_the_layout_covers_every_length(redundancy):
    for d in [*range(1, 300), 511, 512, 819, 820, 1000, 4095, 4096, 10_000, 123_457, 1 << 20]:
        runs = kashin_layout(d, redundancy)
        assert sum(frames * coordinates for frames, _, coordinates in runs) == d
        sizes = [rows for _, rows, _ in runs]
        assert sizes == sorted(sizes, reverse=True)
        assert all(rows in (64, 128, 256, 512, 1024, 2048, 4096) for rows in sizes)
        assert all(0 < coordinates * redundancy <= rows for _, rows, coordinates in runs)
        if d >= 1 << 9:
            assert sum(frames * rows for frames, rows, _ in runs) <= 1.15 * redundancy * d + 200


@dtypes
@pytest.mark.parametrize("d", [1, 2, 63, 64, 65, 500, 1023, 4096, 4097, 9001])
@pytest.mark.parametrize("C", [*Kashin.examples(), Kashin(3, 1.0), Kashin(5, 1.02), Kashin(7, 4.0)], ids=str)
def test_compressor(C, dtype, d):
    x = np.random.default_rng(d).standard_normal(d).astype(dtype)
    x[d // 3] = 5
    key = Key(11).worker(1)
    message = C.encode(x, key)
    assert message.bits == C.bits(d)
    assert message.payload.nbytes == -(-message.bits // 8)
    y = C.decode(message, key)
    assert np.sum((y - x) ** 2) <= 2 * C.omega(d) * np.sum(x**2)
    out = np.ones_like(x)
    C.decode_add(message, key, out, 0.5)
    assert np.allclose(out, 1 + 0.5 * y, rtol=1e-6, atol=1e-6)
    assert np.array_equal(C(np.zeros_like(x), key), np.zeros_like(x))


def nmse(C, x, trials, seed=0):
    errors = [np.sum((C(x, Key(seed).at(t)) - x) ** 2) / np.sum(x**2) for t in range(trials)]
    return np.mean(errors), np.std(errors) / np.sqrt(trials)


@pytest.mark.parametrize("family", ["gaussian", "student"])
def test_omega_is_flat_in_the_dimension(family):
    C = Kashin()
    flat = [nmse(C, frames_of(family, 1, d, np.float32)[0], max(4, (1 << 16) // d)) for d in (1 << 9, 1 << 13, 1 << 16)]
    for mean, error in flat:
        assert abs(mean - flat[-1][0]) <= 0.1 * flat[-1][0] + 4 * error


@families
def test_unbiased_with_at_most_omega(family):
    C, trials = Kashin(levels=3, redundancy=1.25), 400
    x = frames_of(family, 1, 100, np.float64)[0]
    y = np.stack([C(x, Key(t)) for t in range(trials)])
    assert np.mean(np.sum((y - x) ** 2, axis=1)) <= C.omega(100) * np.sum(x**2)
    z = (y.mean(0) - x) / (y.std(0) / np.sqrt(trials) + 1e-4)
    assert np.abs(z).max() < 5


def test_the_frame_is_shared_and_the_rounding_is_not():
    x = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    C = Kashin()
    one, two = (C.encode(x, Key(0).worker(w)).payload for w in (1, 2))
    frames = -(-C.bits(x.size) // 8) - 4 * sum(run[0] for run in kashin_layout(x.size, 1.25))
    assert np.array_equal(one[frames:], two[frames:])
    assert not np.array_equal(one[:frames], two[:frames])


def test_hostile_bytes():
    C, key = Kashin(), Key(0)
    message = C.encode(np.ones(1500, np.float32), key)
    rng = np.random.default_rng(0)
    for _ in range(200):
        payload = rng.integers(0, 256, message.payload.size, np.uint8)
        try:
            assert C.decode(message._replace(payload=payload), key).size == 1500
        except ValueError as error:
            assert "out of range" in str(error)
    with pytest.raises(ValueError, match="bytes"):
        C.decode(message._replace(payload=message.payload[:-1]), key)
    payload = message.payload.copy()
    payload[-1] = 255
    with pytest.raises(ValueError, match="level 3 of 4 in the payload is out of range"):
        C.decode(message._replace(payload=payload), key)


def test_parameters_and_values_are_checked():
    for bad in (0.99, 9, float("nan"), -1):
        with pytest.raises(ValueError, match="redundancy"):
            Kashin(3, bad)
    for bad in ("2", True, None):
        with pytest.raises(TypeError, match="redundancy"):
            Kashin(3, bad)
    with pytest.raises(ValueError, match="levels"):
        Kashin(1)
    with pytest.raises(ValueError, match="iterations"):
        Kashin(iterations=0)
    x = np.ones(5000)
    x[4321] = np.inf
    with pytest.raises(ValueError, match="1 NaN or Inf among 5000 elements, the first at index 4321"):
        Kashin().encode(x, Key(0))
    assert Kashin().encode(np.empty(0), Key(0)).bits == 0


def test_layouts_that_do_not_fit_are_refused(kernels):
    x, payload, data = np.ones(5000), np.zeros(100_000, np.uint8), np.full(256, 0xFFFFFFFF, np.uint32)

    def encode(layout, steps=8, levels=3, offset=50_000, limit=100.0):
        plan = np.array(layout, np.uint64)
        return kernels.kashin_encode(x, plan, data, limit, steps, levels, 1, 2, payload, offset)

    def decode(layout, offset=50_000):
        return kernels.kashin_decode(payload, offset, np.array(layout, np.uint64), data, 3, 1, x.copy())

    assert encode([1, 64, 64]) == -1 and decode([1, 64, 64]) == -1
    for layout, what in [
        ([1, 64, 64, 1, 128, 128], "rows must fall"),
        ([2**62, 64, 64], "frames for a vector of 5000"),
        ([100, 64, 64], "x has 5000 elements, 6400 are needed"),
        ([1, 96, 64], "power of two"),
        ([1, 64, 65], "as many coordinates"),
        ([1, 64, 40], "64 of 64 bits set for 40"),
    ]:
        for call in (encode, decode):
            with pytest.raises(ValueError, match=what):
                call(layout)
    for bad in ({"steps": -1}, {"levels": 1}, {"offset": 3}, {"offset": 99_999}):
        with pytest.raises(ValueError):
            encode([1, 64, 64], **bad)
