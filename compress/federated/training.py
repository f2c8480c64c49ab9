"""What a client does with a model and its own examples."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..compressor import positive_int
from ..key import Key

_BATCHES, _NOISE = 0x62, 0x6E  # sub-streams of a round's key


@dataclass(frozen=True)
class LocalTraining:
    """SGD with momentum on the cross entropy of a client's own examples, an epoch being one pass in a new order.

    epochs: of a round. batch: images a step, the last one of an epoch may be smaller. lr, momentum, weight_decay: as of
    torch.optim.SGD. milestones: every so many epochs, counted over all rounds, lr is multiplied by factor; None: never.
    augment: None, or what perturbs a batch of images before each step, such as `PixelNoise(0.25)`: a function
    (images, generator) -> images, or a noise of `compress.federated.smoothing`.

    Momentum, and epochs done, are a client's own and survive from round to round (2206.02535's code: no reset).

    Raises ValueError or TypeError for other parameters.
    """

    lr: float = 0.1
    epochs: int = 1
    batch: int = 64
    momentum: float = 0.0
    weight_decay: float = 0.0
    milestones: int | None = None
    factor: float = 0.1
    augment: Any = None

    def __post_init__(self):
        positive_int(self.epochs, "epochs")
        positive_int(self.batch, "batch")
        if self.milestones is not None:
            positive_int(self.milestones, "milestones")
        for name, least in (("lr", 0), ("momentum", 0), ("weight_decay", 0), ("factor", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ValueError(f"LocalTraining: {name} must be finite and at least {least}, got {value}")
        if self.augment is not None and not (callable(self.augment) or hasattr(self.augment, "draw")):
            raise TypeError(f"LocalTraining: augment must be a noise or a function, got {self.augment!r}")

    def __call__(self, model, images, labels, state: dict, key: Key, centre=None, penalty: float = 0.0) -> dict:
        """Train the model in place and return {"loss": its mean over the last epoch}.

        images: (m, c, h, w), labels: (m,), tensors. state: {} at first, and then what the last call has left there.
        key: of the round and the client; the same key gives the same steps. centre, penalty: after each step all
        parameters w move to the minimum of penalty/2 ||w - centre||^2 + ||w - w now||^2/(2 lr); centre a vector of
        them, and penalty inf puts them there.

        Raises ValueError without examples, and where the loss is not finite.
        """
        m = len(labels)
        if not m:
            raise ValueError("an empty shard: there are no examples to train on")
        order = np.random.Generator(np.random.Philox(key=key.fold(_BATCHES).word))
        noise = torch.Generator().manual_seed(key.fold(_NOISE).word % 2**63)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        done, total, model = state.get("epochs", 0), 0.0, model.train()
        for epoch in range(done, done + self.epochs):
            lr = self.lr * (self.factor ** (epoch // self.milestones) if self.milestones else 1.0)
            optimizer.param_groups[0]["lr"], total = lr, 0.0
            share = lr * penalty / (1 + lr * penalty) if penalty < math.inf else 1.0
            for rows in torch.from_numpy(order.permutation(m)).split(self.batch):
                batch = images[rows]
                if self.augment is not None:
                    batch = getattr(self.augment, "draw", self.augment)(batch, noise)
                loss = functional.cross_entropy(model(batch), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if penalty:
                    vector_to_parameters(torch.lerp(parameters_to_vector(parameters), centre, share), parameters)
                total += loss.item() * len(rows)
            if not math.isfinite(total):
                raise ValueError(f"the loss is {total} in epoch {epoch + 1}: a smaller lr than {lr:g} may help")
        state |= {"optimizer": optimizer.state_dict(), "epochs": done + self.epochs}
        return {"loss": total / m}


class Layout:
    """Where the numbers of a model are: parameters that are trained, and statistics.

    Statistics are buffers of floats, such as BatchNorm's: averaged, never compressed. Parameters that are not trained
    and buffers of integers stay what they are at each client.

    model: a torch.nn.Module. Raises ValueError where it has no parameters to train.
    """

    def __init__(self, model):
        self.d = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.statistics = sum(b.numel() for b in self._buffers(model))
        if not self.d:
            raise ValueError(f"{type(model).__name__} has no parameters to train")

    @staticmethod
    def _buffers(model):
        return [b for b in model.buffers() if b.is_floating_point()]

    def read(self, model) -> tuple[np.ndarray, np.ndarray]:
        """(x, statistics): float32 (d,) and (s,)."""
        with torch.no_grad():
            parts = [p for p in model.parameters() if p.requires_grad], self._buffers(model)
            return tuple(
                torch.cat([p.detach().reshape(-1).float() for p in part] or [torch.zeros(0)]).numpy() for part in parts
            )

    def write(self, model, x: np.ndarray, statistics: np.ndarray | None = None) -> None:
        """Put them into a model."""
        with torch.no_grad():
            parts = [([p for p in model.parameters() if p.requires_grad], x)]
            if statistics is not None:
                parts.append((self._buffers(model), statistics))
            for tensors, values in parts:
                for tensor, piece in zip(tensors, _pieces(tensors, values), strict=True):
                    tensor.copy_(piece)


def _pieces(tensors, values):
    ends = np.cumsum([t.numel() for t in tensors])
    for tensor, end in zip(tensors, ends.tolist(), strict=True):
        yield torch.from_numpy(values[end - tensor.numel() : end].copy()).view_as(tensor)


def fine_tune(model, images, labels, training: LocalTraining, seed=0):
    """A copy of the model after training on these examples alone.

    With a global model: personalisation. With the initial one and as many epochs as the federation had: the local-only
    baseline (2206.02535).

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> images, labels = torch.rand(20, 1, 2, 2), torch.arange(20) % 2
    >>> tuned = fine_tune(model, images, labels, LocalTraining(lr=0.5, epochs=3))
    >>> tuned is model
    False
    """
    tuned = copy.deepcopy(model)
    training(tuned, *tensors(images, labels), {}, Key(seed).worker(0))
    return tuned.eval()


def interpolate(share: float, local, other):
    """A copy of `other` with weights share * local + (1 - share) * other, statistics too.

    share in [0, 1]: 1 is local. Raises ValueError for another share, and for models of other shapes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    layouts = Layout(local), Layout(other)
    if len({(layout.d, layout.statistics) for layout in layouts}) > 1:
        raise ValueError(f"models of {layouts[0].d} and {layouts[1].d} parameters cannot be mixed")
    mixed, weight = copy.deepcopy(other), np.float32(share)
    parts = zip(layouts[0].read(local), layouts[1].read(other), strict=True)
    layouts[1].write(mixed, *(weight * a + (1 - weight) * b for a, b in parts))
    return mixed.eval()


def tensors(images, labels):
    """(images, labels) as tensors of float32 and int64; ValueError unless there are as many of both."""
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    if images.ndim < 2 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(f"images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}")
    return images.float(), labels.long()


def accuracy(model, images, labels, batch: int = 1000) -> float:
    """The share of images whose label the model says, in eval mode."""
    images, labels = tensors(images, labels)
    was, model = model.training, model.eval()
    with torch.no_grad():
        right = sum(
            (model(x).argmax(1) == y).sum().item()
            for x, y in zip(images.split(batch), labels.split(batch), strict=True)
        )
    model.train(was)
    return right / len(labels)
