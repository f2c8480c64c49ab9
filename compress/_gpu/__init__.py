"""The GPU kernels: the names and signatures of the CPU's (compress/_cpu), on CuPy arrays.

A module a topic, as in csrc; what concerns no array (lengths, layouts, tables) is the CPU's own function. Functions
return as soon as their work is queued on CuPy's current stream; a number that a kernel found is waited for where it is
looked at. `device` has the rest.
"""

from .._cpu import kernels as _host
from .pack import pack, unpack
from .philox import correlated_dither, philox_words
from .reduce import count_nonfinite, max_abs, norm, sum_abs, sum_squares

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
        "level_model_count",
        "pack_bits",
        "pack_width",
        "philox_block",
        "rice_bound",
        "subset_bytes",
    )
]
globals().update({name: getattr(_host, name) for name in _SHAPES})
