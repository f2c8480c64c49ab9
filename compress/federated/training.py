"""What a client does with a model and its own examples."""

from __future__ import annotations

import contextlib
import copy
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ..compressor import positive_int
from ..key import Key

_BATCHES, _NOISE, _MODEL = 0x62, 0x6E, 0x6D  # sub-streams of a round's key


@dataclass(frozen=True)
class LocalTraining:
    """SGD with momentum on the cross entropy of a client's own examples, an epoch being one pass in a new order.

    epochs: of a round. batch: images a step, the last one of an epoch may be smaller; where one image would be left for
    it, and the model has BatchNorm, which may refuse that, the one before has it too. lr, momentum, weight_decay: as of
    torch.optim.SGD, momentum below 1. milestones: every so many epochs, counted over all rounds, lr is multiplied by
    factor; None: never. augment: None, or what perturbs a batch of images before each step, such as `PixelNoise(0.25)`:
    a function (images, generator) -> images, or a noise of `compress.federated.smoothing`; images and generator are
    where the model is.

    Momentum, and epochs done, are a client's own and survive from round to round (2206.02535's code: no reset).
    Whatever is random, dropout too, comes from the key, and torch's own generators are left as they were.

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
        for name, end in (("lr", math.inf), ("momentum", 1), ("weight_decay", math.inf), ("factor", math.inf)):
            value = getattr(self, name)
            if not 0 <= value < end:
                least = "finite and at least 0" if end == math.inf else f"in [0, {end})"
                raise ValueError(f"LocalTraining: {name} must be {least}, got {value}")
        if self.augment is not None and not (callable(self.augment) or hasattr(self.augment, "draw")):
            raise TypeError(f"LocalTraining: augment must be a noise or a function, got {self.augment!r}")

    def rate(self, epoch: int) -> float:
        """lr in an epoch, the first being 0."""
        return self.lr * (self.factor ** (epoch // self.milestones) if self.milestones else 1.0)

    def time(self, m: int, done: int = 0, model=None) -> float:
        """For how long a call with m examples follows the gradient after so many epochs: the sum of lr over its steps,
        over 1 - momentum. model: whose BatchNorm counts, None: there is none."""
        rates = sum(map(self.rate, range(done, done + self.epochs)))
        return len(self._sizes(m, model)) * rates / (1 - self.momentum)

    def _sizes(self, m: int, model) -> list[int]:
        """Of the batches of an epoch."""
        whole, rest = divmod(m, self.batch)
        if whole and rest == 1 and model and any(isinstance(each, _BatchNorm) for each in model.modules()):
            return [self.batch] * (whole - 1) + [self.batch + 1]
        return [self.batch] * whole + [rest] * (rest > 0)

    def __call__(self, model, images, labels, state: dict, key: Key) -> dict:
        """Train the model in place and return {"loss": its mean over the last epoch}.

        images: (m, c, h, w), taken to the model's floats, labels: (m,), tensors, here or where the model is.
        state: {} at first, and then what the last call has left there; momentum, a tensor for each parameter, and
        epochs done. key: of the round and the client; the same key gives the same steps.

        Raises ValueError without examples, for labels that are no class of the model, for the state of a model of other
        parameters, and where the loss is not finite; state is then as it was.
        """
        m = len(labels)
        if not m:
            raise ValueError("an empty shard: there are no examples to train on")
        order = np.random.Generator(np.random.Philox(key=key.fold(_BATCHES).word))
        parameters = [p for p in model.parameters() if p.requires_grad]
        device, (least, most) = parameters[0].device, (end.item() for end in labels.aminmax())
        noise = torch.Generator(device).manual_seed(key.fold(_NOISE).word % 2**63)
        optimizer = torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        if self.momentum and "momentum" in state:
            for p, buffer in zip(parameters, state["momentum"], strict=True):
                optimizer.state[p]["momentum_buffer"] = buffer.to(p, copy=True)
        done, model, sizes = state.get("epochs", 0), model.train(), self._sizes(m, model)
        with _seeded(device, key.fold(_MODEL).word % 2**63):
            for epoch in range(done, done + self.epochs):
                optimizer.param_groups[0]["lr"], losses = self.rate(epoch), []
                for rows in torch.from_numpy(order.permutation(m)).split(sizes):
                    rows = rows.to(images.device)
                    batch, said = images[rows].to(parameters[0]), labels[rows].to(device)
                    if self.augment is not None:
                        batch = getattr(self.augment, "draw", self.augment)(batch, noise)
                    try:
                        scores = model(batch)
                    except ValueError as error:
                        if len(rows) > 1:
                            raise
                        raise ValueError(
                            f"training on one image a step, of {m} with batch {self.batch}: {error}"
                        ) from None
                    if not 0 <= least <= most < scores.shape[-1]:  # -100 would be ignored, CUDA ends the process
                        classes = f"classes from 0 to {scores.shape[-1] - 1}"
                        raise ValueError(f"labels are from {least} to {most}, the model has {classes}")
                    loss = functional.cross_entropy(scores, said)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.detach() * (len(rows) / m))
                mean = math.fsum(torch.stack(losses).tolist())
                if not math.isfinite(mean):
                    bad = (~torch.isfinite(images.flatten(1)).all(1)).sum().item()
                    lr = f"a smaller lr than {self.rate(epoch):g} may help"
                    why = f"{bad} of {m} images have NaN or Inf" if bad else lr
                    raise ValueError(f"the loss is {mean} in epoch {epoch + 1}: {why}")
        state["epochs"] = done + self.epochs
        if self.momentum:
            state["momentum"] = [optimizer.state[p].get("momentum_buffer", torch.zeros_like(p)) for p in parameters]
        return {"loss": mean}


@contextlib.contextmanager
def _seeded(device, seed):
    """torch's generators of the CPU and of a device seeded here, and as they were after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class Layout:
    """Where the numbers of a model are: parameters that are trained, and statistics.

    Statistics are buffers of floats that `state_dict` has, such as BatchNorm's: averaged, never compressed. Parameters
    that are not trained, and buffers that are not persistent, are constants, the same everywhere. Other buffers, such
    as BatchNorm's count of batches, are a client's own (`counts`). A parameter that is in two places counts once.

    model: a torch.nn.Module, which may live on any device; vectors are NumPy's, float32, whatever float its numbers
    are. Raises ValueError where it has no parameters to train, or where a number of it is not finite; TypeError for
    parameters of less than float32, which autocast keeps in float32, and for complex ones.
    """

    def __init__(self, model):
        kept = model.state_dict().keys()
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        if not self._names:
            raise ValueError(f"{type(model).__name__} has no parameters to train")
        buffers = {name: b for name, b in model.named_buffers() if name in kept}
        self._floats = [name for name, b in buffers.items() if b.is_floating_point()]
        self._others = [name for name, b in buffers.items() if not b.is_floating_point()]
        for name in [*self._names, *self._floats]:
            tensor = model.get_parameter(name) if name in self._names else model.get_buffer(name)
            if name in self._names and tensor.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"{name} is of {tensor.dtype}; what is trained must be float32 or float64")
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} has NaN or Inf; a constant buffer is registered with persistent=False")
        self.shapes = [tuple(p.shape) for p in self._parameters(model)]
        self.shapes_of_statistics = [tuple(b.shape) for b in self._buffers(model)]
        self.d, self.statistics = (sum(map(math.prod, shapes)) for shapes in (self.shapes, self.shapes_of_statistics))

    def _parameters(self, model):
        return [model.get_parameter(name) for name in self._names]

    def _buffers(self, model):
        return [model.get_buffer(name) for name in self._floats]

    def places(self, model) -> list:
        """The tensors of a model where these numbers are, parameters and then statistics."""
        return [*self._parameters(model), *self._buffers(model)]

    def read(self, model) -> tuple[np.ndarray, np.ndarray]:
        """(x, statistics): float32 (d,) and (s,), copies."""
        return _joined(self._parameters(model)), _joined(self._buffers(model))

    def write(self, model, x: np.ndarray, statistics: np.ndarray | None = None) -> None:
        """Put them into a model."""
        _spread(x, self._parameters(model))
        if statistics is not None:
            _spread(statistics, self._buffers(model))

    def counts(self, model) -> list:
        """Copies of the buffers that are a client's own."""
        return [model.get_buffer(name).clone() for name in self._others]

    def write_counts(self, model, counts: list) -> None:
        """Put them into a model."""
        for name, count in zip(self._others, counts, strict=True):
            model.get_buffer(name).copy_(count)


def _joined(tensors):
    x = torch.empty(sum(t.numel() for t in tensors), dtype=torch.float32)
    for piece, tensor in zip(_pieces(x, tensors), tensors, strict=True):
        piece.copy_(tensor.detach())
    return x.numpy()


def _spread(x, tensors):
    x = torch.from_numpy(x if x.flags.writeable else x.copy())
    with torch.no_grad():
        for piece, tensor in zip(_pieces(x, tensors), tensors, strict=True):
            tensor.copy_(piece)


def _pieces(x, tensors):
    """Views of a vector in the shapes of tensors."""
    pieces = x.split([t.numel() for t in tensors])
    return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]


def fine_tune(model, images, labels, training: LocalTraining, seed=0, state: dict | None = None):
    """A copy of the model after training on these examples alone, in eval mode.

    With a global model: personalisation. With the initial one and as many epochs as the federation had: the local-only
    baseline (2206.02535). state: of a client's optimizer, `fed.clients[i].optimizer`, to go on with its momentum and
    its schedule; it is not changed.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> images, labels = torch.rand(20, 1, 2, 2), torch.arange(20) % 2
    >>> tuned = fine_tune(model, images, labels, LocalTraining(lr=0.5, epochs=3))
    >>> tuned is model
    False
    """
    tuned = copy.deepcopy(model)
    training(tuned, *tensors(images, labels), dict(state or {}), Key(seed).worker(0))
    return tuned.eval()


def interpolate(share: float, local, other):
    """A copy of `other` with weights share * local + (1 - share) * other, statistics too, in eval mode.

    share in [0, 1]: 1 is local, to the bit, and 0 other. Raises ValueError for another share, and for models of other
    shapes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    one, two = Layout(local), Layout(other)
    if (one.shapes, one.shapes_of_statistics) != (two.shapes, two.shapes_of_statistics):
        raise ValueError(f"models of other shapes cannot be mixed: {one.d} and {two.d} parameters")
    mixed = copy.deepcopy(other)
    with torch.no_grad():
        for theirs, here in zip(one.places(local), two.places(mixed), strict=True):
            here.lerp_(theirs.to(here), share)  # exact at both ends
    return mixed.eval()


def text_of(value) -> str:
    """repr(value), wherever it lives: without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def tensors(images, labels):
    """(images, labels) as tensors of float32 and int64; ValueError unless there are as many of both, and labels are
    whole numbers, TypeError for images that are not of floats."""
    images, labels = (tensor(each) for each in (images, labels))
    if not images.is_floating_point():
        raise TypeError(f"images must be of floats, got {images.dtype}: divide pixels from 0 to 255 by 255")
    if images.ndim < 2 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(f"images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}")
    whole = labels.long()
    if not torch.equal(whole.to(labels), labels):
        raise ValueError("labels must be whole numbers")
    return images.float(), whole


def tensor(values):
    """Values as a tensor, sharing memory where that may be written to."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # torch has no tensors that are read only
    return torch.as_tensor(values)


def accuracy(model, images, labels, batch: int = 1000) -> float:
    """The share of images whose label the model says, in eval mode; modes are then as they were.

    Images are taken to the floats of the model. Raises ValueError without images, TypeError for images of integers.
    """
    images, labels = tensors(images, labels)
    if not len(labels):
        raise ValueError("accuracy of no images")
    like = next(model.parameters())
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            pairs = zip(images.split(batch), labels.split(batch), strict=True)
            right = sum((model(x.to(like)).argmax(1) == y.to(like.device)).sum().item() for x, y in pairs)
    finally:
        for module, mode in modes:
            module.training = mode
    return right / len(labels)
