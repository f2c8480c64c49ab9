"""Subsets as records: csrc/subset.cu against the CPU, byte for byte."""

import numpy as np
import pytest

from compress._cpu import kernels as cpu
from compress._gpu import subset as plans


def subsets(n, k, count, seed=0):
    """Scattered, clustered, at either end, and in equal steps: count records, one after the other."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        shape = rng.choice(["any", "left", "right", "first", "last", "steps"])
        at = rng.random(n)
        if shape in ("left", "right"):
            at = at ** rng.choice([20.0, 300.0]) + (np.arange(n) if shape == "left" else -np.arange(n)) / n
        chosen = {"first": np.arange(k), "last": np.arange(n - k, n), "steps": np.arange(k) * n // k}
        records.append(i * n + np.sort(chosen[shape] if shape in chosen else np.argsort(at)[:k]))
    return np.concatenate(records)


def encoded(kernels, indices, start, n, k):
    room = np.full(cpu.subset_bytes(n, k) * (indices.size // k) + 4, 0xAA, np.uint8)
    kernels.subset_encode(indices, start, n, k, room[1:-3])
    assert room[0] == 0xAA and (room[-3:] == 0xAA).all()
    return room[1:-3]


def decoded(kernels, data, start, n, k, count):
    room = np.full(count * k + 2, 0xAAAAAAAA, np.uint32)
    kernels.subset_decode(data, start, n, k, room[1:-1])
    assert room[0] == room[-1] == 0xAAAAAAAA
    return room[1:-1]


def check(kernels, n, k, count, start=0):
    indices = (start + subsets(n, k, count, n + k)).astype(np.uint32)
    data = encoded(cpu, indices, start, n, k)
    assert encoded(kernels, indices, start, n, k).tobytes() == data.tobytes(), (n, k)
    np.testing.assert_array_equal(decoded(kernels, data, start, n, k, count), indices, f"{n} {k}")


SMALL = [(1, 1), (2, 1), (3, 2), (7, 3), (16, 16), (17, 1), (31, 30), (32, 31), (64, 32), (65, 3), (100, 50)]
LARGE = [(1000, 30), (4095, 64), (4096, 64), (4097, 65), (3000, 2990), (4096, 1024), (65536, 1), (65536, 300)]


@pytest.mark.parametrize("n, k", SMALL)
def test_small_ranges(gpu, n, k):
    for count in (1, 2, 31, 32, 33, 100):
        check(gpu, n, k, count, start=5 * count)


@pytest.mark.parametrize("n, k", LARGE)
def test_large_ranges(gpu, n, k):
    check(gpu, n, k, 40 if k <= 64 else 6)


def test_more_than_the_tables_know(gpu):
    check(gpu, 4096, 1500, 3)
    check(gpu, 65536, 20_000, 1)
    check(gpu, 65535, 65_000, 1)


def test_the_last_ranges_of_the_longest_vector(gpu):
    check(gpu, 4096, 64, 3, start=2**32 - 3 * 4096)
    check(gpu, 1000, 30, 1, start=2**32 - 1000)


def test_a_bounded_workspace(gpu, monkeypatch):
    monkeypatch.setattr(plans, "_WORKSPACE", 1)
    check(gpu, 1000, 30, 100)
    monkeypatch.setattr(plans, "_MOST_BLOCKS", 1)
    check(gpu, 64, 8, 100)


def test_no_order_matters(in_any_order):
    for n, k in [(4096, 64), (1000, 30), (100, 70)]:
        check(in_any_order, n, k, 70)


def test_nothing_to_do(gpu):
    nothing = np.empty(0, np.uint32)
    for n, k in [(100, 5), (5, 5), (5, 0), (0, 0)]:
        gpu.subset_encode(nothing, 0, n, k, np.empty(0, np.uint8))
        gpu.subset_decode(np.empty(0, np.uint8), 0, n, k, nothing)


def test_any_bytes_decode_as_on_the_cpu(gpu):
    rng = np.random.default_rng(0)
    for n, k in [(4096, 64), (1000, 100), (65, 3), (300, 299), (4096, 2000), (1, 1), (9, 4)]:
        size, count = cpu.subset_bytes(n, k), 40
        data = rng.integers(0, 256, size * count).astype(np.uint8)
        data[:size] = 0
        data[size : 2 * size] = 255
        found = decoded(gpu, data, 50, n, k, count)
        np.testing.assert_array_equal(found, decoded(cpu, data, 50, n, k, count))
        ranges = found.reshape(count, k).astype(int) - 50 - n * np.arange(count)[:, None]
        assert (np.diff(ranges, axis=1) > 0).all() and ranges.min() >= 0 and ranges.max() < n


def outcome(function, *arguments):
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("n, k", [(10, 3), (100, 100), (4096, 64)])
def test_the_first_wrong_range_is_named(in_any_order, n, k):
    count = 75
    right = (7 + subsets(n, k, count)).astype(np.uint32)
    out = np.empty(cpu.subset_bytes(n, k) * count, np.uint8)
    for first in (0, 1, 33, 74):
        for at, value in [
            (0, 7 + first * n - 1),
            (k - 1, 7 + first * n + n),
            (1, int(right[first * k])),
            (k - 1, 2**32 - 1),
        ]:
            wrong = right.copy()
            wrong[first * k + at] = value & 0xFFFFFFFF
            if first < 70:
                wrong[70 * k] = 0
            message = outcome(in_any_order.subset_encode, wrong, 7, n, k, out)
            assert (
                message
                == outcome(cpu.subset_encode, wrong, 7, n, k, out)
                == (f"indices of range {first} do not ascend within it")
            )


def test_errors_are_those_of_the_cpu(gpu):
    out = np.empty(1000, np.uint8)
    calls = [
        ("subset_decode", out[:2], 0, 4096, 64, np.empty(64, np.uint32)),
        ("subset_decode", out, 0, 4096, 64, np.empty(65, np.uint32)),
        ("subset_decode", out, 0, 64, 65, np.empty(65, np.uint32)),
        ("subset_encode", np.arange(130, dtype=np.uint32), 0, 4096, 64, out),
        ("subset_encode", np.arange(128, dtype=np.uint32), 0, 4096, 64, out[:117]),
        ("subset_encode", np.arange(5, dtype=np.uint32), 0, 1 << 17, 5, out),
        ("subset_encode", np.arange(5, dtype=np.uint32), 0, 5, 0, out),
    ]
    for name, *arguments in calls:
        expected = outcome(getattr(cpu, name), *arguments)
        assert expected and outcome(getattr(gpu, name), *arguments) == expected, (name, arguments)
