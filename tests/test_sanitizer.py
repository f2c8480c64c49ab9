"""The tests of hostile bytes and of the kernels again, on a build with AddressSanitizer."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = [
    "hostile",
    "pack",
    "quantize",
    "reduce",
    "hadamard",
    "kashin",
    "select",
    "rice",
    "chunktopk",
    "dct",
    "product",
    "eden",
    "mean",
    "trellis",
]


def runtime() -> str | None:
    """The compiler's AddressSanitizer library, which must be loaded before Python is."""
    compiler = shutil.which("gcc")
    if not compiler or platform.system() != "Linux":
        return None
    path = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    return path if os.path.isabs(path) else None


def test_nothing_is_read_or_written_out_of_range(tmp_path):
    library = runtime()
    if library is None:
        pytest.skip("no gcc with AddressSanitizer")
    for name in ("csrc", "compress", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {**os.environ, "COMPRESS_SANITIZE": "1", "PYTHONPATH": str(tmp_path)}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(build, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    environment |= {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}
    files = [f"tests/test_{name}.py" for name in TESTS]
    # nothing new there but time; the grid has a run of its own (test_gpu_device.py)
    slow = "best_path or one_level_at_a_time or nearer or hundredth or no_bias or grid or gpu"
    run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", f"not ({slow})", *files]
    result = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
