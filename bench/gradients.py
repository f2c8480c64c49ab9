"""Vectors to compress: a real gradient, and synthetic ones with light, heavy and no tails.

The real one is what a data-parallel worker sends: the mini-batch gradient of a 64-1024-1024-10 ReLU network
on scikit-learn's digits, after 20 steps of SGD. It is computed here, in NumPy and in about a second, so that
the benchmark needs no download and no deep learning framework. Like most gradients it is sparse (dead ReLUs
zero whole columns) and heavy-tailed, which is where compressors differ from what N(0, 1) says of them.
"""

from itertools import pairwise

import numpy as np

LAYERS = (64, 1024, 1024, 10)
SIZE = sum((inputs + 1) * outputs for inputs, outputs in pairwise(LAYERS))  # 1,126,410


def digits_gradient(seed=0, steps=20, batch=64, learning_rate=0.1):
    """The float32 gradient (SIZE entries: W1, b1, W2, b2, W3, b3) that step `steps` + 1 would apply."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    inputs = (inputs / 16).astype(np.float32)
    rng = np.random.default_rng(seed)
    weights = [
        rng.uniform(-1, 1, (m, n)).astype(np.float32) / np.float32(np.sqrt(m))  # the frameworks' default
        for m, n in pairwise(LAYERS)
    ]
    parameters = [p for w in weights for p in (w, np.zeros(w.shape[1], np.float32))]
    for step in range(steps + 1):
        rows = rng.choice(len(inputs), batch, replace=False)
        gradient = _backpropagate(parameters, inputs[rows], labels[rows])
        if step < steps:
            parameters = [p - np.float32(learning_rate) * g for p, g in zip(parameters, gradient, strict=True)]
    return np.concatenate([g.ravel() for g in gradient])


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
