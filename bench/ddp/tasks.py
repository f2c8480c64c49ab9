"""What is trained: a small CNN on images and a small transformer on text, both there offline, about a million
parameters each.

A task is the same for all settings, ranks and rates: the batch of a step is drawn from (seed, step) for all ranks
together, and each takes its share of it, so that n ranks see what one would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import compress

# Of the CNN.
SHIFT, NOISE = 1, 0.2  # pixels, and the deviation of what is added to them
MEAN, DEVIATION = 0.3, 0.4  # of the pixels, which are made 0 and 1
COPIES = 2  # of each test image, under fixed shifts and noise

# Of the transformer.
WIDTH, DEPTH, HEADS, CONTEXT = 128, 4, 4, 64
TESTED = 128  # contexts


@dataclass(frozen=True)
class Task:
    """model(): freshly initialised by torch's generator. batch(seed, step): of all ranks together, a tuple of
    tensors with as many rows; tests(): such a tuple. scores(model, batch): mean cross-entropy and the share of right
    answers. optimizer(parameters); its rate rises over the first tenth of `steps` and falls as a cosine to a tenth."""

    name: str
    title: str
    steps: int
    model: Callable[[], nn.Module]
    batch: Callable[[int, int], tuple]
    tests: Callable[[], tuple]
    scores: Callable[[nn.Module, tuple], tuple]
    optimizer: Callable

    def rate(self, step: int) -> float:
        """Of the full learning rate, at a step from 0."""
        rise = max(1, self.steps // 10)
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, self.steps - rise))
        return 0.55 + 0.45 * float(np.cos(np.pi * done))

    def share(self, batch: tuple, rank: int, n: int) -> tuple:
        """The rows of a rank; the parts differ by one row at most."""
        return tuple(torch.tensor_split(part, n)[rank] for part in batch)


# Images


class CNN(nn.Sequential):
    """Two convolutions and a fat layer, as LeNet and AlexNet have: 0.95 million parameters, 0.92 of them in one."""

    def __init__(self, hidden=896):
        super().__init__(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(1024, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
        )
        for layer in self:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)


@cache
def _digits(part):
    images, labels = compress.data.images("digits", part)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _moved(images, generator):
    """Every image shifted by up to SHIFT pixels each way, with noise: what makes digits worth training for."""
    m, _, h, w = images.shape
    wide = F.pad(images, [SHIFT] * 4)
    down, right = torch.randint(2 * SHIFT + 1, (2, m, 1), generator=generator)
    rows, columns = down + torch.arange(h), right + torch.arange(w)
    moved = wide[torch.arange(m)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
    noisy = moved + NOISE * torch.randn(m, h, w, generator=generator)
    return ((noisy - MEAN) / DEVIATION)[:, None]


def _image_batch(rows, seed, step):
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    images, labels = _digits("train")
    chosen = torch.randint(len(labels), (rows,), generator=generator)
    return _moved(images[chosen], generator), labels[chosen]


@cache
def _image_tests():
    images, labels = _digits("test")
    return _moved(images.repeat(COPIES, 1, 1, 1), torch.Generator().manual_seed(7)), labels.repeat(COPIES)


# Text


class Transformer(nn.Module):
    """Causal, pre-norm, over characters: 0.83 million parameters."""

    def __init__(self, width=WIDTH, depth=DEPTH):
        super().__init__()
        self.characters, self.positions = nn.Embedding(128, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128)
        for embedding in (self.characters, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens):
        hidden = self.characters(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden)).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        heads = self.project(self.before(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.wide(self.between(x))


@cache
def _text():
    """(train, test): the text of Python's own help(), characters of ASCII; the last tenth of it is for tests."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore")
    text = torch.tensor(list(text))
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def _text_batch(rows, seed, step):
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    text, _ = _text()
    starts = torch.randint(len(text) - CONTEXT, (rows, 1), generator=generator)
    return _cut(text, starts)


@cache
def _text_tests():
    text = _text()[1]
    return _cut(text, torch.linspace(0, len(text) - CONTEXT - 1, TESTED).long()[:, None])


def _cut(text, starts):
    tokens = text[starts + torch.arange(CONTEXT + 1)]
    return tokens[:, :-1], tokens[:, 1:]


# Both


def _scores(model, batch):
    inputs, labels = batch
    outputs = model(inputs)
    return F.cross_entropy(outputs, labels), (outputs.argmax(1) == labels).float().mean()


TASKS = {
    task.name: task
    for task in (
        Task(
            "cnn",
            f"CNN on digits, shifted by up to {SHIFT} pixels, noise of {NOISE}; SGD with momentum",
            steps=250,
            model=CNN,
            batch=partial(_image_batch, 128),
            tests=_image_tests,
            scores=_scores,
            optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=5e-4),
        ),
        Task(
            "transformer",
            f"transformer on characters of English, {DEPTH} layers of width {WIDTH}; AdamW",
            steps=250,
            model=Transformer,
            batch=partial(_text_batch, 16),
            tests=_text_tests,
            scores=_scores,
            optimizer=partial(torch.optim.AdamW, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.1),
        ),
    )
}
