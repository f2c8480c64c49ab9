"""compress: a vector goes in, real bytes come out, and every method counts exactly those bytes."""

from .chunk import ChunkTopK
from .combine import Composed, ErrorFeedback, Induced, Scaled
from .compressor import Compressor, Contractive, Identity, Message, Unbiased, catalogue
from .eden import Eden
from .guide import recommend
from .kashin import Kashin
from .kernels import asarray, backends
from .key import Key
from .lowrank import PowerSGD
from .message import dumps, loads
from .metrics import Measurement, measure
from .quantize import Correlated, NaturalCompression, NaturalDithering, ScaledSign, StandardDithering, TernGrad
from .rotate import DCT, Rotated
from .sparsify import Bernoulli, PermK, RandK, TopK
from .trellis import Trellis, UniformQuantizer

__version__ = "0.1.0"

__all__ = [
    "DCT",
    "Bernoulli",
    "ChunkTopK",
    "Composed",
    "Compressor",
    "Contractive",
    "Correlated",
    "Eden",
    "ErrorFeedback",
    "Identity",
    "Induced",
    "Kashin",
    "Key",
    "Measurement",
    "Message",
    "NaturalCompression",
    "NaturalDithering",
    "PermK",
    "PowerSGD",
    "RandK",
    "Rotated",
    "Scaled",
    "ScaledSign",
    "StandardDithering",
    "TernGrad",
    "TopK",
    "Trellis",
    "Unbiased",
    "UniformQuantizer",
    "asarray",
    "backends",
    "catalogue",
    "dumps",
    "loads",
    "measure",
    "recommend",
]
