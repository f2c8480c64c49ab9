"""Two networks for images in [0, 1], with a layer of their own that normalises them."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from ..compressor import finite_number, positive_int

NORMS = ("none", "group", "batch")
_GROUP = 8  # channels that are normalised together


class Normalize(nn.Module):
    """(x - mean) / std of each channel, so that perturbations of images are in [0, 1] and not in units of the data.

    channels: of images. mean, std: a number for all, or one for each: (0.4914, 0.4822, 0.4465) and (0.2470, 0.2435,
    0.2616) for CIFAR-10, 0.1307 and 0.3081 for MNIST. They are constants: no part of state_dict, and not averaged.

    Raises ValueError for numbers that are not finite, std that is not positive, and images of other channels.

    >>> Normalize(1, 0.5, 0.25)(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    def __init__(self, channels: int, mean=0.5, std=0.25):
        super().__init__()
        self.channels = positive_int(channels, "channels")
        for name, value in (("mean", mean), ("std", std)):
            values = list(value) if isinstance(value, (list, tuple)) else [value] * self.channels
            values = [finite_number(each, name) for each in values]
            if len(values) != self.channels:
                raise ValueError(f"{name} must be a number or {self.channels} of them, got {value!r}")
            if name == "std" and not all(each > 0 for each in values):
                raise ValueError(f"std must be positive, got {value!r}")
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, x):
        if x.ndim != 4 or x.shape[1] != self.channels:  # one channel would be spread over three without a word
            raise ValueError(f"images must be (m, {self.channels}, h, w), got {tuple(x.shape)}")
        return (x - self.mean) / self.std


def _norm(kind: str, width: int) -> list:
    if kind == "group":
        return [nn.GroupNorm(max(1, width // _GROUP), width)]
    return [nn.BatchNorm2d(width)] if kind == "batch" else []


class SmallCNN(nn.Sequential):
    """Two 3x3 convolutions, of width and 2 width channels, and one linear layer on 4x4 means: for images of 8x8 to
    32x32 pixels and CPUs.

    channels, classes: of images. width: 16 has 9,930 parameters for digits, one channel and 10 classes. norm: "none",
    "group" (of 8 channels, where width is a multiple of 8), or "batch", which has statistics to average. mean, std: of
    `Normalize`.

    Raises TypeError or ValueError for other parameters.

    >>> SmallCNN(1, 10)(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: int, classes: int, width: int = 16, norm: str = "none", mean=0.5, std=0.25):
        classes, width = positive_int(classes, "classes"), positive_int(width, "width")
        if norm not in NORMS:
            raise ValueError(f"SmallCNN: norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if norm == "group" and width > _GROUP and width % _GROUP:
            raise ValueError(f"SmallCNN: width must be a multiple of {_GROUP} for groups, got {width}")
        super().__init__(
            Normalize(channels, mean, std),
            nn.Conv2d(channels, width, 3, padding=1),
            *_norm(norm, width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            *_norm(norm, 2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * width, classes),
        )


class _Block(nn.Module):
    """x + f(x), f two 3x3 convolutions; x through a 1x1 one where channels or size change."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.skip = nn.Sequential()
        if stride > 1 or before != width:
            self.skip = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        return torch.relu(self.path(x) + self.skip(x))


def resnet18(channels: int = 3, classes: int = 10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)):
    """ResNet-18 with the stem for small images: a 3x3 convolution and no pooling before the blocks, widths 64 to 512.

    channels, classes: of images, which are 16x16 or larger: on smaller ones the last blocks are left with a pixel,
    and BatchNorm in training refuses a batch of one image. mean, std: of `Normalize`, CIFAR-10's unless given; with
    other than 3 channels give them.
    11,173,962 parameters for 3 channels and 10 classes. He, Zhang, Ren, Sun, "Deep Residual Learning for Image
    Recognition", 2016, arXiv 1512.03385, table 1, with the stem of its section 4.2.

    Raises TypeError or ValueError for other parameters.
    """
    classes = positive_int(classes, "classes")
    parts = [("normalize", Normalize(channels, mean, std)), ("stem", nn.Conv2d(channels, 64, 3, padding=1, bias=False))]
    parts += [("norm", nn.BatchNorm2d(64)), ("relu", nn.ReLU())]
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        blocks = _Block(before, width, 1 if stage == 1 else 2), _Block(width, width, 1)
        parts.append((f"stage{stage}", nn.Sequential(*blocks)))
        before = width
    parts += [("mean", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("head", nn.Linear(512, classes))]
    return nn.Sequential(OrderedDict(parts))
