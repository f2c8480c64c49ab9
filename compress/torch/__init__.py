"""What needs PyTorch: training over slow links, and optimizers of its kind.

`Distributed` is the communicator of a process group, `DDPHook` compresses the gradients of DistributedDataParallel,
`FSDPHook` those of fully_shard (FSDP2), `DiLoCo` averages models that train apart for many steps, `ExtraAdam` solves
games.
"""

try:
    import torch  # noqa: F401
except ImportError:
    raise ImportError('compress.torch needs PyTorch: pip install "compress-kernels[torch]"') from None

from .comm import Distributed
from .diloco import DiLoCo
from .extra_adam import ExtraAdam
from .hook import DDPHook

__all__ = ["DDPHook", "DiLoCo", "Distributed", "ExtraAdam", "FSDPHook"]


def __getattr__(name):
    if name == "FSDPHook":  # torch's FSDP takes a while to import
        from .fsdp import FSDPHook

        return FSDPHook
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
