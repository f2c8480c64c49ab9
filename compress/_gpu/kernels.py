"""The GPU kernels: the names and signatures of the CPU's (compress/_cpu), on CuPy arrays.

A module a topic, as in csrc; what concerns no array (lengths, layouts, tables) is the CPU's own function. Functions
return as soon as their work is queued on CuPy's current stream; a number that a kernel found is waited for where it is
looked at. `device` has the rest.
"""

from .._cpu import kernels as _host
from .chunk import chunk_topk, chunk_values_decode, chunk_values_encode
from .dct import dct
from .eden import eden_decode, eden_encode
from .entropy import level_decode, level_encode
from .hadamard import fwht, rotate
from .kashin import kashin_decode, kashin_encode, kashin_representation, kashin_rows, kashin_synthesis
from .pack import pack, unpack
from .philox import correlated_dither, philox_words
from .product import orthonormal, outer_sum
from .quantize import bad_scale, power_pack, quantize_pack, unpack_scale, unpower_scale, write_scales
from .reduce import count_nonfinite, max_abs, norm, sum_abs, sum_squares
from .rice import rice_decode, rice_encode
from .select import (
    add_or_store,
    bernoulli_count,
    bernoulli_indices,
    gather,
    random_subset,
    scatter_add,
    topk,
)
from .subset import subset_decode, subset_encode
from .trellis import level_encode_symbols

# What is computed from numbers alone.
_SHAPES = [
    name
    for name in dir(_host)
    if name.isupper()
    or name
    in (
        "chunk_values_bytes",
        "derive",
        "eden_alphabets",
        "eden_layout",
        "eden_levels",
        "entropy_lane_count",
        "level_bits",
        "level_costs",
        "level_escape_bytes",
        "level_fault",
        "level_keep",
        "level_model_count",
        "level_models_decode",
        "level_models_encode",
        "pack_bits",
        "pack_width",
        "philox_block",
        "rice_bound",
        "subset_bytes",
    )
]
globals().update({name: getattr(_host, name) for name in _SHAPES})
