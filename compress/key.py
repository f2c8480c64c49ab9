"""Key: where every random bit comes from."""

from __future__ import annotations

import numpy as np

from ._cpu import kernels as _kernels

_WORD = 2**64
_FOLD = 1


class Key:
    """A frozen (seed, round, worker): the two sides of a message that hold the same key draw the same bits.

    `seed` is an int in [0, 2^64 - 1), a `numpy.random.SeedSequence` or a `numpy.random.Generator` (which is
    advanced by one draw). `shared` is the key without the worker, for what all workers must agree on (a
    frame, a rotation, a permutation). `fold(word)` is an independent sub-stream.

    Bits are Philox4x32-10 of a counter under a 64-bit word derived from the fields; nothing depends on the
    machine or on who asks first.

    >>> key = Key(0).at(round=7).worker(3)
    >>> key
    Key(0).at(7).worker(3)
    >>> key.shared == Key(0).at(round=7)
    True
    >>> key.fold(1) == key.fold(2)
    False
    """

    __slots__ = ("_path", "_round", "_seed", "_word", "_worker")

    def __init__(self, seed=0):
        if isinstance(seed, np.random.SeedSequence):
            seed = int(seed.generate_state(1, np.uint64)[0]) % (_WORD - 1)
        elif isinstance(seed, np.random.Generator):
            seed = int(seed.integers(_WORD - 1, dtype=np.uint64))
        self._set(_natural(seed, "seed"), 0, None, ())

    def _set(self, seed, round, worker, path):
        put = object.__setattr__
        put(self, "_seed", seed)
        put(self, "_round", round)
        put(self, "_worker", worker)
        put(self, "_path", path)
        put(self, "_word", None)

    def _with(self, round, worker, path) -> Key:
        key = object.__new__(Key)
        key._set(self._seed, round, worker, path)
        return key

    def __setattr__(self, name, value):
        raise AttributeError("a Key is frozen: at(), worker() and fold() make new ones")

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def round(self) -> int:
        return self._round

    @property
    def worker_index(self) -> int | None:
        """The worker, or None for a key that all workers share."""
        return self._worker

    @property
    def path(self) -> tuple[int, ...]:
        """The words folded in, in order."""
        return self._path

    def at(self, round: int) -> Key:
        """The key of a round of communication."""
        return self._with(_natural(round, "round"), self._worker, self._path)

    def worker(self, index: int) -> Key:
        """The key of a worker."""
        return self._with(self._round, _natural(index, "worker"), self._path)

    def fold(self, word: int) -> Key:
        """An independent sub-stream."""
        return self._with(self._round, self._worker, (*self._path, _natural(word, "word")))

    @property
    def shared(self) -> Key:
        """The key without the worker."""
        return self if self._worker is None else self._with(self._round, None, self._path)

    @property
    def word(self) -> int:
        """The 64 bits that key the generator."""
        word = self._word
        if word is None:
            derive = _kernels.derive
            word = derive(self._seed, self._round)
            word = derive(word, 0 if self._worker is None else self._worker + 1)
            for fold in self._path:
                word = derive(word, fold, _FOLD)
            object.__setattr__(self, "_word", word)
        return word

    def _fields(self):
        return self._seed, self._round, self._worker, self._path

    def __eq__(self, other):
        return isinstance(other, Key) and self._fields() == other._fields()

    def __hash__(self):
        return hash(self._fields())

    def __repr__(self):
        parts = [f"Key({self._seed})"]
        if self._round:
            parts.append(f"at({self._round})")
        if self._worker is not None:
            parts.append(f"worker({self._worker})")
        return ".".join([*parts, *(f"fold({word})" for word in self._path)])

    def __reduce__(self):
        return from_fields, self._fields()


def from_fields(seed: int, round: int, worker: int | None, path=()) -> Key:
    """The Key with these fields, as a frame or a pickle carries them."""
    key = Key(seed).at(round)
    if worker is not None:
        key = key.worker(worker)
    for word in path:
        key = key.fold(word)
    return key


def _natural(value, name: str) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not 0 <= value < _WORD - 1:
        raise ValueError(f"{name} must lie in [0, 2^64 - 1), got {value}")
    return int(value)
