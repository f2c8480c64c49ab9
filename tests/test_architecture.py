"""Imports point one way, the core needs NumPy alone, and the README's examples run."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from importlib.util import find_spec
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
    ["quantize", "sparsify", "chunk", "kashin", "eden", "trellis"],
    ["rotate", "combine", "lowrank"],
    ["guide"],
    ["comm", "mpi", "allreduce", "power"],
    ["problems", "games", "sampling", "data", "graphs", "sketches"],
    ["optimizers.method", "optimizers.trace"],
    ["optimizers.shifted", "optimizers.sgd", "optimizers.extragradient", "optimizers.mast", "optimizers.ist"],
    ["optimizers.adom", "optimizers.run"],
    ["torch.comm", "torch.extra_adam", "torch.hook", "torch.fsdp", "torch.diloco"],
    ["federated.links", "federated.models", "federated.table", "federated.training", "federated.smoothing"],
    ["federated.fedavg"],
    ["federated.flower"],
]
# Of the package these take the checks of parameters alone.
ARRAYS_ONLY = ["problems", "games", "sampling", "data", "graphs"]
# What a module may import beside the standard library and NumPy, in functions that say what to install.
LAZY = {
    "mpi": {"mpi4py"},
    "torch.comm": {"torch"},
    "torch.diloco": {"torch"},
    "torch.extra_adam": {"torch"},
    "torch.fsdp": {"torch"},
    "torch.hook": {"torch"},
    "data": {"sklearn"},
    "optimizers.run": {"rich"},
    "optimizers.trace": {"matplotlib"},
    "federated.models": {"torch"},
    "federated.table": {"rich"},
    "federated.smoothing": {"torch", "scipy"},
    "federated.training": {"torch"},
    "federated.fedavg": {"torch"},
    "federated.flower": {"flwr"},
}
# What needs an extra of its own, and no name of which is a name of the package.
EXTRAS = {"torch": ["torch"], "federated": ["torch"], "federated.flower": ["torch", "flwr"]}
RANK = {name: (row, column) for row, names in enumerate(ORDER) for column, name in enumerate(names)}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path):
    """(modules of the package, other packages) that a file imports."""
    relative, absolute = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = module_name(path).split(".")[: -node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            relative |= {".".join([*package, name]) for name in names}
        elif isinstance(node, ast.ImportFrom):
            absolute.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            absolute |= {alias.name.split(".")[0] for alias in node.names}
    return relative, absolute


FOLDERS = PACKAGE, PACKAGE / "optimizers", PACKAGE / "torch", PACKAGE / "federated"
MODULES = sorted(path for folder in FOLDERS for path in folder.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path):
    name, (relative, absolute) = module_name(path), imports(path)
    assert name in RANK, f"{name} has no place in ORDER"
    for other in relative:
        # a kernel module of a backend counts as the backend
        rank = RANK[other] if other in RANK else RANK[other.split(".")[0]]
        assert rank < RANK[name], f"{name} imports {other}"
    assert name not in ARRAYS_ONLY or relative <= {"compressor", *ARRAYS_ONLY}, f"{name} sees more than arrays"
    assert absolute <= sys.stdlib_module_names | {"numpy"} | LAZY.get(name, set())


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
    assert not loaded & {"cupy", "scipy", "torch", "flwr", "mpi4py", "matplotlib", "sklearn", "rich", "numpy"}


def test_what_is_missing_is_named():
    """Without PyTorch the package is whole, but for what needs it, which says so."""
    code = (
        "import sys; sys.modules['torch'] = None; import compress; [getattr(compress, n) for n in dir(compress)]\n"
        "try: import compress.federated\nexcept ImportError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert said.stdout.strip() == 'compress.federated needs PyTorch: pip install "compress-kernels[torch]"', said.stderr


def test_every_name_and_module_is_there():
    for name in dir(compress):
        assert getattr(compress, name) is not None
    assert {module_name(path).split(".")[0] for path in MODULES} - set(EXTRAS) <= set(dir(compress))
    assert not set(EXTRAS) & set(compress.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Topk'"):
        compress.__getattr__("Topk")


def test_the_catalogue_has_one_order():
    listing = "import compress.compressor; print(*compress.compressor.classes())"
    orders = [
        subprocess.run([sys.executable, "-c", code + listing], capture_output=True, text=True, cwd=ROOT).stdout
        for code in ("", "import compress.trellis, compress.combine; ")
    ]
    assert orders[0] == orders[1] and orders[0].startswith("Identity RandK PermK ")


def test_instruction_sets_have_one_surface():
    surfaces = {
        name: {n for n in dir(importlib.import_module(f"compress._cpu.{name}")) if not n.startswith("_")}
        for name in compress._cpu._default.instruction_sets()
    }
    assert len({frozenset(s) for s in surfaces.values()}) == 1


@pytest.mark.parametrize("name", [module_name(path) for path in MODULES])
def test_docstring_examples(name):
    for extra in EXTRAS.get(name, EXTRAS.get(name.split(".")[0], [])):
        pytest.importorskip(extra)
    result = doctest.testmod(importlib.import_module(f"compress.{name}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_readme_examples(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks:
        imported = " ".join(re.findall(r"^(?:from|import) .*", block, re.M))
        if not all(find_spec(package) for package in ("torch", "flwr") if package in imported):
            continue
        exec(compile(block, "README.md", "exec"), namespace)


def test_every_public_name_is_documented():
    for name in compress.__all__:
        assert getattr(compress, name).__doc__, name


def test_an_unknown_backend_is_named():
    assert compress.backends()["cpu"].startswith("available")
    with pytest.raises(ValueError, match="tpu"):
        compress.asarray([1.0], "tpu")
