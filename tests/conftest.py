"""Fixtures that every test file may use: instruction sets, the catalogue, input families."""

import importlib
import os
import sys
from pathlib import Path

import backends
import numpy as np
import pytest
from cuda_on_cpu import cupy_on_cpu

from compress._cpu import default
from compress._gpu import device

# what the grid compiles stays with the checkout
os.environ.setdefault("COMPRESS_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "kernels"))


def pytest_addoption(parser):
    parser.addoption("--only-gpu-skips", action="store_true", help="a skip that is not about a missing GPU fails")


def pytest_collection_modifyitems(items):
    """The longest test first, so that on several cores the others run beside it."""
    items.sort(key=lambda item: item.path.stem != "test_sanitizer")


def pytest_collection_finish(session):
    """Several processes with as many threads each as there are cores wait for each other most of the time."""
    if "PYTEST_XDIST_WORKER" in os.environ and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and item.config.getoption("--only-gpu-skips") and "GPU" not in str(report.longrepr):
        report.outcome = "failed"


INSTRUCTION_SETS = default.instruction_sets()


@pytest.fixture(params=[*INSTRUCTION_SETS, "grid", "gpu"])
def kernels(request):
    """The kernels: of each instruction set this processor runs, of the GPU on the host's grid, of a GPU."""
    if request.param in INSTRUCTION_SETS:
        yield importlib.import_module(f"compress._cpu.{request.param}")
        return
    yield backends.Kernels(request.param)
    device._cupy = None


@pytest.fixture
def grid():
    """The GPU's kernels on the host."""
    yield backends.Kernels("grid")
    device._cupy = None


@pytest.fixture(params=["grid", "gpu"])
def gpu(request):
    """The GPU's kernels, on the host and on a GPU."""
    yield backends.Kernels(request.param)
    device._cupy = None


@pytest.fixture(params=range(4))
def order(request):
    """Of threads and blocks of the grid: ascending, descending, two shuffled ones."""
    cupy_on_cpu.ORDER = request.param
    yield request.param
    cupy_on_cpu.ORDER = 0


@pytest.fixture
def in_any_order(grid, order):
    """The GPU's kernels on the host, once in each order."""
    return grid


@pytest.fixture(params=backends.NAMES)
def backend(request):
    """Where compressors work: backend(C) is C on NumPy, on the grid, on a GPU, with NumPy arrays in and out."""
    yield backends.Backend(request.param)
    device._cupy = None


@pytest.fixture
def C(request, backend):
    """The compressor that a test is parametrized with, on each backend."""
    return backend(request.param)


def families(d: int, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """The inputs that the constants are checked on, among them the worst known."""
    rng = np.random.default_rng(seed)
    spike = rng.standard_normal(d) * 1e-2
    spike[d // 3] = 10
    half = np.zeros(d)
    half[: d // 2 + 1] = 1
    edge = np.full(d, 1 / (1 + np.sqrt(d)))
    edge[0] = 1
    return {
        name: np.ascontiguousarray(x, dtype)
        for name, x in {
            "gaussian": rng.standard_normal(d),
            "student": rng.standard_t(2, d),
            "onehot": spike,
            "ones": np.ones(d),
            "half": half,
            "edge": edge,
        }.items()
    }
