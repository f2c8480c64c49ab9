"""What needs PyTorch: training over slow links, and optimizers of its kind.

`Distributed` is the communicator of a process group, `DDPHook` compresses the gradients of DistributedDataParallel,
`DiLoCo` averages models that train apart for many steps, `ExtraAdam` solves games.
"""

try:
    import torch  # noqa: F401
except ImportError:
    raise ImportError('compress.torch needs PyTorch: pip install "compress-kernels[torch]"') from None

from .comm import Distributed
from .extra_adam import ExtraAdam

__all__ = ["Distributed", "ExtraAdam"]
