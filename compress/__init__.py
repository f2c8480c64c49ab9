"""compress: a vector goes in, real bytes come out, and every method counts exactly those bytes.

Names and modules are imported when they are first asked for, so that `import compress` costs next to nothing.
"""

from importlib import import_module as _import_module
from sys import modules as _modules

__version__ = "0.1.0"

# What each module gives.
_NAMES = {
    "kernels": ["asarray", "backends"],
    "key": ["Key"],
    "compressor": ["Compressor", "Contractive", "Identity", "Message", "Unbiased", "catalogue"],
    "message": ["dumps", "loads"],
    "metrics": ["Measurement", "measure"],
    "quantize": ["Correlated", "NaturalCompression", "NaturalDithering", "ScaledSign", "StandardDithering", "TernGrad"],
    "sparsify": ["Bernoulli", "PermK", "RandK", "TopK"],
    "chunk": ["ChunkTopK"],
    "lowrank": ["LowRank", "PowerSGD"],
    "kashin": ["Kashin"],
    "eden": ["Eden"],
    "trellis": ["Trellis", "UniformQuantizer"],
    "rotate": ["DCT", "Rotated"],
    "combine": ["Composed", "ErrorFeedback", "Induced", "Scaled"],
    "guide": ["recommend"],
    "comm": ["Communicator", "Ledger", "Local"],
    "mpi": ["MPI"],
    "allreduce": ["AllReduce"],
    "power": ["PowerIteration"],
    "problems": ["L1", "L2", "Box", "Logistic", "Problem", "Quadratic", "Ridge"],
    "sampling": [
        "Arbitrary",
        "FullBatch",
        "Independent",
        "Nice",
        "Partition",
        "Sampling",
        "SingleElement",
        "WithReplacement",
        "optimal_batch",
    ],
    "games": ["AffineOperator", "BilinearGame", "Operator"],
    "graphs": ["Graph", "Network"],
    "sketches": ["Cyclic", "Sketch"],
    "optimizers.method": ["Method"],
    "optimizers.shifted": [
        "DCGD",
        "DIANA",
        "EF14",
        "EF21",
        "GDCI",
        "MARINA",
        "VRGDCI",
        "DCGDShift",
        "DCGDStar",
        "RandDIANA",
    ],
    "optimizers.sgd": ["SGD"],
    "optimizers.mast": ["DSGD", "LSVRDSG", "SPAGE", "Sketched"],
    "optimizers.ist": ["IST", "ShiftedIST"],
    "optimizers.adom": ["ADOM"],
    "optimizers.extragradient": ["Extragradient"],
    "optimizers.run": ["run"],
    "optimizers.trace": ["Trace", "plot"],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = {module.partition(".")[0] for module in _NAMES} | {"data"}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        value = getattr(_import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return _import_module(f"{__name__}.{name}")
    # with the name and the module, Python adds what may have been meant
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=_modules[__name__])


def __dir__():
    return sorted({*globals(), *__all__, *_MODULES})
