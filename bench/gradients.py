"""Vectors to compress, fixed and made offline: what workers send, and synthetic ones with light, heavy and no tails.

The default is what a data-parallel worker sends: the mini-batch gradient of a 64-1024-1024-10 ReLU network
on scikit-learn's digits, after 20 steps of SGD. It is computed here, in NumPy and in about a second, so that
the benchmark needs no download and no deep learning framework. Like most gradients it is sparse (dead ReLUs
zero whole columns) and heavy-tailed, which is where compressors differ from what N(0, 1) says of them. INPUTS
has the others by name: what local steps, momentum and error feedback send instead, and a transformer's.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

LAYERS = (64, 1024, 1024, 10)
SIZE = sum((inputs + 1) * outputs for inputs, outputs in pairwise(LAYERS))  # 1,126,410
NETWORK = "-".join(map(str, LAYERS)) + " ReLU network on digits"


class Digits:
    """The network, its parameters [W1, b1, W2, b2, W3, b3] and its stream of mini-batches."""

    def __init__(self, seed, batch=64):
        from sklearn.datasets import load_digits

        inputs, self.labels = load_digits(return_X_y=True)
        self.inputs, self.batch = (inputs / 16).astype(np.float32), batch
        self.rng = np.random.default_rng(seed)
        weights = [
            self.rng.uniform(-1, 1, (m, n)).astype(np.float32) / np.float32(np.sqrt(m))  # the frameworks' default
            for m, n in pairwise(LAYERS)
        ]
        self.parameters = [p for w in weights for p in (w, np.zeros(w.shape[1], np.float32))]

    def gradient(self):
        """That of the next mini-batch, parameter by parameter."""
        rows = self.rng.choice(len(self.inputs), self.batch, replace=False)
        return _backpropagate(self.parameters, self.inputs[rows], self.labels[rows])

    def move(self, updates):
        self.parameters = [p - u for p, u in zip(self.parameters, updates, strict=True)]

    def sgd(self, steps, learning_rate=0.1):
        for _ in range(steps):
            self.move([np.float32(learning_rate) * g for g in self.gradient()])
        return self


def digits_gradient(seed=0, steps=20):
    """The float32 gradient (SIZE entries: W1, b1, W2, b2, W3, b3) that SGD's step `steps` + 1 would apply."""
    return flat(Digits(seed).sgd(steps).gradient())


def digits_adamw(seed=0, steps=30, learning_rate=1e-3, decay=0.1, beta1=0.9, beta2=0.999):
    """The pseudo-gradient of local training: parameters before minus after `steps` steps of AdamW (Loshchilov,
    Hutter 2019; fresh moments), from where digits_gradient is taken."""
    network = Digits(seed).sgd(20)
    before = flat(network.parameters)
    first = [np.zeros_like(p) for p in network.parameters]
    second = [np.zeros_like(p) for p in network.parameters]
    for t in range(1, steps + 1):
        updates = []
        for p, g, m, v in zip(network.parameters, network.gradient(), first, second, strict=True):
            m += np.float32(1 - beta1) * (g - m)
            v += np.float32(1 - beta2) * (g * g - v)
            direction = m / np.float32(1 - beta1**t) / (np.sqrt(v / np.float32(1 - beta2**t)) + np.float32(1e-8))
            updates.append(np.float32(learning_rate) * (direction + np.float32(decay) * p))
        network.move(updates)
    return before - flat(network.parameters)


def digits_momentum(seed=0, steps=50, momentum=0.9, learning_rate=0.02):
    """The buffer m <- momentum m + gradient of SGD with momentum after `steps` steps."""
    network = Digits(seed)
    buffer = [np.zeros_like(p) for p in network.parameters]
    for _ in range(steps):
        for m, g in zip(buffer, network.gradient(), strict=True):
            m *= np.float32(momentum)
            m += g
        network.move([np.float32(learning_rate) * m for m in buffer])
    return flat(buffer)


def digits_feedback(seed=0, rounds=100, learning_rate=0.1):
    """What error feedback holds back after `rounds` rounds of SGD that sends Top-K, k = 1%."""
    import compress

    network, key = Digits(seed), compress.Key(seed).worker(0)
    feedback = compress.ErrorFeedback(compress.TopK(0.01))
    state = feedback.init(SIZE)
    ends = np.cumsum([p.size for p in network.parameters])[:-1]
    for t in range(rounds):
        step = np.float32(learning_rate) * flat(network.gradient())
        message, state = feedback.encode(state, step, key.at(t))
        sent = np.split(feedback.compressor.decode(message, key.at(t)), ends)
        network.move([s.reshape(p.shape) for s, p in zip(sent, network.parameters, strict=True)])
    return state.error


@cache
def transformer(seed=0, steps=30, width=128, depth=5, context=128, batch=8):
    """A character-level transformer (pre-norm, GELU, about a million parameters) on the text of Python's own help():
    its gradient after `steps` steps of AdamW, and the pseudo-gradient of the next `steps`. One thread."""
    from pydoc_data.topics import topics

    import torch
    from torch import nn

    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore")
    text = torch.tensor(list(text))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.characters, self.positions = nn.Embedding(128, width), nn.Embedding(context, width)
            layer = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 4 * width, **layer) for _ in range(depth))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128)

        def forward(self, tokens):
            hidden = self.characters(tokens) + self.positions.weight
            for layer in self.layers:
                hidden = layer(hidden, src_mask=causal, is_causal=True)
            return self.head(self.norm(hidden))

    def loss():
        starts = torch.randint(len(text) - context, (batch, 1))
        tokens = text[starts + torch.arange(context + 1)]
        return nn.functional.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])

    def train():
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    def parameters():
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums however many cores there are
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            causal = nn.Transformer.generate_square_subsequent_mask(context)
            model = Model()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1)
            train()
            optimizer.zero_grad()
            loss().backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            before = parameters()
            train()
            return gradient.numpy(), (before - parameters()).numpy()
    finally:
        torch.set_num_threads(threads)


class Input(NamedTuple):
    make: Callable  # seed -> vector
    title: str
    columns: int | None = None  # of most of the matrices in it, one after the other
    needs: str | None = None


INPUTS = {
    "normal": Input(lambda seed: synthetic("normal", 2**20, seed), "N(0, 1)"),
    "student": Input(lambda seed: synthetic("student", 2**20, seed), "Student-t, 3 degrees of freedom"),
    "digits": Input(digits_gradient, f"gradient of a {NETWORK}", LAYERS[1]),
    "adamw": Input(digits_adamw, f"pseudo-gradient of 30 AdamW steps, {NETWORK}", LAYERS[1]),
    "momentum": Input(digits_momentum, f"momentum buffer after 50 steps, {NETWORK}", LAYERS[1]),
    "feedback": Input(digits_feedback, f"error-feedback buffer after 100 rounds of Top-K, {NETWORK}", LAYERS[1]),
    "transformer": Input(lambda seed: transformer(seed)[0], "gradient of a small transformer on text", 128, "torch"),
    "transformer_adamw": Input(
        lambda seed: transformer(seed)[1], "pseudo-gradient of 30 AdamW steps, small transformer on text", 128, "torch"
    ),
}


@cache
def _made(name, seed):
    return INPUTS[name].make(seed)


def named(name, seed=0):
    """A copy of the vector called `name` in INPUTS, which is made once a process."""
    return _made(name, seed).copy()


def flat(arrays):
    return np.concatenate([a.ravel() for a in arrays])


def _backpropagate(parameters, inputs, labels):
    """Gradient of the mean cross-entropy with respect to [W1, b1, W2, b2, W3, b3]."""
    weights, biases = parameters[::2], parameters[1::2]
    activations = [inputs]
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        activations.append(np.maximum(activations[-1] @ w + b, 0))
    logits = activations[-1] @ weights[-1] + biases[-1]
    logits -= logits.max(axis=1, keepdims=True)
    error = np.exp(logits)
    error /= error.sum(axis=1, keepdims=True)  # softmax ...
    error[np.arange(len(labels)), labels] -= 1  # ... minus one-hot
    error /= len(labels)
    gradient = []
    for w, a in zip(weights[::-1], activations[::-1], strict=True):
        gradient = [a.T @ error, error.sum(axis=0), *gradient]
        error = (error @ w.T) * (a > 0)
    return gradient


def synthetic(distribution, size=SIZE, seed=0):
    """normal: N(0, 1). student: Student-t with 3 degrees of freedom. onehot: e_i, all the energy in one entry."""
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    rng = np.random.default_rng(seed)
    if distribution == "normal":
        return rng.standard_normal(size, dtype=np.float32)
    if distribution == "student":
        return rng.standard_t(3, size).astype(np.float32)
    if distribution == "onehot":
        x = np.zeros(size, np.float32)
        x[rng.integers(size)] = 1
        return x
    raise ValueError(f"distribution must be normal, student or onehot, got {distribution!r}")


def load(path):
    """The vector in a .npy file, flattened; float32 and float64 stay, other numbers become float32."""
    try:
        x = np.load(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiub":
        raise ValueError(f"{path} does not hold one array of real numbers")
    x = np.ascontiguousarray(x.ravel())
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
