"""Builds the CPU kernels once per instruction set.

csrc/cpu.pyx is compiled as compress._cpu.default, .avx2 and .avx512 from the same text with other
compiler flags; compress/_cpu/__init__.py picks one when it is imported. Loops follow the width that the
compiler was told, no function chooses at run time, and the modules can be compared byte for byte.
"""

import glob
import os
import platform
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

INSTRUCTION_SETS = {"default": []}
if platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "win32":
    INSTRUCTION_SETS["avx2"] = ["-march=x86-64-v3"]
    INSTRUCTION_SETS["avx512"] = ["-march=x86-64-v4", "-mprefer-vector-width=512"]

# Contraction into fma would change the bytes from machine to machine; the other two change no value.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-unused-function"]
LINK = []
if sys.platform == "win32":
    FLAGS = ["/O2", "/fp:precise"]
if os.environ.get("COMPRESS_SANITIZE"):  # the tests build a second copy with AddressSanitizer
    FLAGS += ["-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"]
    LINK += ["-fsanitize=address"]


def extension(name, flags):
    ext = Extension(
        f"compress._cpu.{name}",
        ["csrc/cpu.pyx"],
        include_dirs=["csrc"],
        depends=glob.glob("csrc/*.h") + glob.glob("csrc/*.pyx"),
        extra_compile_args=FLAGS + flags,
        extra_link_args=LINK,
    )
    return cythonize(
        [ext],
        build_dir=f"build/cython/{name}",
        include_path=["csrc"],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
        },
    )[0]


class BuildParallel(build_ext):
    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()


setup(
    packages=[
        "compress",
        "compress._cpu",
        "compress._gpu",
        "compress._csrc",
        "compress.federated",
        "compress.optimizers",
        "compress.torch",
    ],
    package_dir={"compress._csrc": "csrc"},
    package_data={"compress._csrc": ["*.h", "*.pyx", "*.cu", "*.cuh"]},
    include_package_data=False,
    ext_modules=[extension(name, flags) for name, flags in INSTRUCTION_SETS.items()],
    cmdclass={"build_ext": BuildParallel},
)
