"""Benchmarks that can be checked: `python -m bench [COMMAND]`.

frontier  Every compressor over its parameter range on one vector: bits that left, error, proven constants, speed;
          --input all on several, --peers beside other packages.
speed     Every kernel against memcpy in the same process, and against the bar set for it; --backend gpu against a copy
          on the device.
gpu_check On a machine with a GPU: every message byte for byte against the CPU's, compute-sanitizer where it is
          installed, and the speeds.
guide     The table behind compress.recommend: errors and speeds of every row, measured again.
convergence
          Error against bits: methods with compressors on a problem of your choice.
ddp       Training over rate-limited links by DDP: time to a loss beside bf16, fp16, PowerSGD, fp8 and int4, and from
          which bandwidth it pays; links need root.
diloco    DiLoCo over compressed messages: loss against bytes.
papers    The statements of a paper that a machine can check, each with the figure measured here and ok or not.

Needs the extra: pip install "compress-kernels[bench]".
"""


def console():
    """Where tables go: the terminal, or a file or pipe wide enough for them."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=max(110, found.width))
