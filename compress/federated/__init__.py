"""Federated learning on counted bits, and certified robustness.

Alfarra, Perez, Shulgin, Richtarik, Ghanem, "Certified Robustness in Federated Learning", 2022, arXiv 2206.02535.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise ImportError('compress.federated needs PyTorch: pip install "compress-kernels[torch]"') from None

from .fedavg import FedAvg, Round
from .links import Links
from .models import SmallCNN, resnet18
from .smoothing import (
    Affine,
    PixelNoise,
    Rotation,
    Scaling,
    Smoothed,
    Translation,
    acr,
    acr_error,
    certified_accuracy,
    certify_set,
)
from .table import ABSTAIN, Certified
from .training import LocalTraining, accuracy, fine_tune, interpolate

__all__ = [
    "ABSTAIN",
    "Affine",
    "Certified",
    "FedAvg",
    "Links",
    "LocalTraining",
    "PixelNoise",
    "Rotation",
    "Round",
    "Scaling",
    "SmallCNN",
    "Smoothed",
    "Translation",
    "accuracy",
    "acr",
    "acr_error",
    "certified_accuracy",
    "certify_set",
    "fine_tune",
    "interpolate",
    "resnet18",
]
