"""Imports point one way, the core needs NumPy alone, and the README's examples run."""

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import compress

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "compress"

# Each module may import those in rows above its own, and those of its own row that stand left of it.
ORDER = [
    ["_cpu"],
    ["_gpu"],
    ["kernels", "key"],
    ["compressor"],
    ["message", "metrics"],
    ["quantize", "sparsify", "chunk", "lowrank", "kashin", "eden", "trellis"],
    ["rotate", "combine"],
    ["guide"],
]
RANK = {name: (row, column) for row, names in enumerate(ORDER) for column, name in enumerate(names)}


def imports(path: Path):
    """(relative modules, absolute packages) that a file imports."""
    relative, absolute = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            relative |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            absolute.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            absolute |= {alias.name.split(".")[0] for alias in node.names}
    return relative, absolute


MODULES = sorted(p for p in PACKAGE.glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_point_one_way(path):
    relative, absolute = imports(path)
    assert path.stem in RANK, f"{path.stem} has no place in ORDER"
    for other in relative:
        assert RANK[other] < RANK[path.stem], f"{path.stem} imports {other}"
    assert absolute <= sys.stdlib_module_names | {"numpy"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "_gpu").glob("*.py")), ids=lambda p: p.stem)
def test_gpu_kernels_see_cupy_through_one_module(path):
    _, absolute = imports(path)
    assert absolute <= sys.stdlib_module_names | {"numpy"} | ({"cupy"} if path.stem == "device" else set())


def test_every_topic_has_its_kernels_for_both():
    topics = {p.stem for p in (ROOT / "csrc").glob("*.pyx")} - {"cpu"}
    served = {p.stem for p in (PACKAGE / "_gpu").glob("*.py")} - {"__init__", "kernels", "device", "scan"}
    assert topics - {"level"} == served  # a level is told by trellis.py (to symbols) and entropy.py (to bytes)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, compress; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert not loaded & {"cupy", "scipy", "torch", "mpi4py", "matplotlib", "sklearn", "rich"}


def test_instruction_sets_have_one_surface():
    surfaces = {
        name: {n for n in dir(importlib.import_module(f"compress._cpu.{name}")) if not n.startswith("_")}
        for name in compress._cpu._default.instruction_sets()
    }
    assert len({frozenset(s) for s in surfaces.values()}) == 1


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.iter_modules([str(PACKAGE)]) if m.name not in ("_cpu", "_gpu")]
)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(f"compress.{name}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_readme_examples(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_every_public_name_is_documented():
    for name in compress.__all__:
        assert getattr(compress, name).__doc__, name


def test_an_unknown_backend_is_named():
    assert compress.backends()["cpu"].startswith("available")
    with pytest.raises(ValueError, match="tpu"):
        compress.asarray([1.0], "tpu")
