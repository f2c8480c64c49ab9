"""Bytes that no encoder wrote: a ValueError or a vector, never a crash. Runs under AddressSanitizer too."""

import numpy as np
import pytest

import compress

KEY = compress.Key(7).worker(0)
SIZE = 1500
FLIPS = 10_000

each = pytest.mark.parametrize("C", compress.catalogue(), ids=repr)


def message_of(C):
    x = np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)
    return C.encode(x, KEY)


def survives(C, message):
    try:
        y = C.decode(message, KEY)
    except ValueError as error:
        assert str(error)
        return False
    assert y.shape == (SIZE,) and y.dtype == np.float32
    return True


def survives_adding(C, message, dtype):
    out = np.zeros(SIZE, dtype)
    try:
        C.decode_add(message._replace(dtype=np.dtype(dtype)), KEY, out, 0.5)
    except ValueError as error:
        assert str(error)


@each
def test_every_prefix(C):
    message = message_of(C)
    n = message.payload.size
    for cut in range(n) if n <= 4096 else [*range(64), *range(64, n, 7), *range(n - 64, n)]:
        decoded = survives(C, message._replace(payload=message.payload[:cut].copy()))
        assert not (decoded and C.fixed_length)


@each
def test_extended(C):
    message = message_of(C)
    longer = np.concatenate([message.payload, np.zeros(3, np.uint8)])
    decoded = survives(C, message._replace(payload=longer))
    assert not (decoded and C.fixed_length)


@each
def test_random_bit_flips(C):
    message = message_of(C)
    rng = np.random.default_rng(2)
    n = message.payload.size
    with np.errstate(all="ignore"):
        for bit in rng.integers(0, 8 * n, FLIPS):
            payload = message.payload.copy()
            payload[bit >> 3] ^= 1 << (bit & 7)
            survives(C, message._replace(payload=payload))


@each
def test_random_bytes(C):
    message = message_of(C)
    rng = np.random.default_rng(3)
    with np.errstate(all="ignore"):
        for _ in range(300):
            noise = message._replace(payload=rng.integers(0, 256, message.payload.size, np.uint8))
            survives(C, noise)
            survives_adding(C, noise, np.float32)
            survives_adding(C, noise, np.float64)
        for length in rng.integers(0, 3 * message.payload.size, 300):
            survives(C, message._replace(payload=rng.integers(0, 256, length, np.uint8)))
        for fill in (0, 255):
            survives(C, message._replace(payload=np.full(message.payload.size, fill, np.uint8)))


@each
def test_messages_that_lie_about_themselves(C):
    message = message_of(C)
    for size in (0, 1, SIZE - 1, SIZE + 1, 4 * SIZE):
        try:
            y = C.decode(message._replace(size=size), KEY)
        except ValueError:
            continue
        assert y.size == size
    with pytest.raises(ValueError, match="-1"):
        C.decode(message._replace(size=-1), KEY)
    with pytest.raises(ValueError, match="int32"):
        C.decode(message._replace(dtype=np.dtype(np.int32)), KEY)
    with pytest.raises(TypeError):
        C.decode(message._replace(payload=message.payload.tobytes()), KEY)
    with pytest.raises((TypeError, ValueError)):
        C.decode(message._replace(payload=np.repeat(message.payload, 2)[::2]), KEY)


@each
def test_damaged_frames_say_what_is_wrong(C):
    blob = compress.dumps(np.ones(SIZE, np.float32), C, KEY)
    for cut in [*range(0, min(len(blob), 400)), len(blob) - 1]:
        with pytest.raises(ValueError, match="frame"):
            compress.loads(blob[:cut])
    rng = np.random.default_rng(4)
    for bit in rng.integers(0, 8 * len(blob), 300):
        damaged = bytearray(blob)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(ValueError, match="frame"):
            compress.loads(bytes(damaged))
    with pytest.raises(ValueError, match="lengths say"):
        compress.loads(blob + b"x")
