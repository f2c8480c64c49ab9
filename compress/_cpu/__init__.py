"""The CPU kernels, compiled from csrc/cpu.pyx once per instruction set; one set is picked here, at import.

COMPRESS_ISA=default|avx2|avx512 forces a set (the tests compare their bytes); without it the best one
that this processor and this build have.
"""

import importlib
import os

from . import default as _default


def _pick():
    runnable = _default.instruction_sets()
    wanted = os.environ.get("COMPRESS_ISA")
    if wanted:
        if wanted not in runnable:
            raise ImportError(f"COMPRESS_ISA={wanted!r}: this processor runs {', '.join(runnable)}")
        runnable = (wanted,)
    for name in reversed(runnable):
        try:
            return name, importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError:
            if wanted:
                raise
    raise ImportError("compress was built without its CPU kernels")


instruction_set, kernels = _pick()
