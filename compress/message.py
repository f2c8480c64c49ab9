"""The self-describing frame: a message with everything its receiver must know, and a checksum.

    "CMPF"  u8 version  u32 header length  header (JSON, UTF-8)  u64 payload length  payload  u32 crc32

little-endian throughout. The header names the compressor and its parameters, d, dtype, the key's fields and
the exact bit length; the checksum covers everything before it.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from . import kernels
from . import key as _key
from .compressor import Compressor, Message, build, classes, name_of, parameters, positive_int, public_class
from .key import Key

MAGIC, VERSION = b"CMPF", 1
_HEAD, _LENGTH, _CHECK = struct.Struct("<4sBI"), struct.Struct("<Q"), struct.Struct("<I")


class Frame(NamedTuple):
    """What `read` finds in a frame."""

    compressor: Compressor
    message: Message
    key: Key


def dumps(x, compressor: Compressor, key: Key) -> bytes:
    """x compressed, as one self-describing block of bytes for `loads`.

    >>> import numpy as np, compress
    >>> blob = dumps(np.float32([1, 2, 3]), compress.Identity(), compress.Key(0))
    >>> loads(blob).tolist()
    [1.0, 2.0, 3.0]
    """
    _check_known(compressor)
    message = compressor.encode(x, key)
    header = json.dumps(
        {
            "codec": {name_of(compressor): parameters(compressor)},
            "size": message.size,
            "dtype": np.dtype(message.dtype).name,
            "bits": message.bits,
            "key": [key.seed, key.round, key.worker_index, list(key.path)],
        },
        separators=(",", ":"),
    ).encode()
    payload = kernels.host(kernels.taken(message.payload)).tobytes()
    body = b"".join((_HEAD.pack(MAGIC, VERSION, len(header)), header, _LENGTH.pack(len(payload)), payload))
    return body + _CHECK.pack(zlib.crc32(body))


def _check_known(compressor: Compressor) -> None:
    """ValueError for a compressor, or a part of one, that no reader of the frame would know."""
    if classes().get(name_of(compressor)) is not public_class(compressor):
        raise ValueError(f"{compressor!r} is not of this package: no reader of the frame would know it")
    for field in fields(compressor):
        if isinstance(part := getattr(compressor, field.name), Compressor):
            _check_known(part)


def loads(blob: bytes, out=None, backend: str | None = None):
    """The vector in a frame, decoded where `out` lives, or on `backend` ("cpu" unless given).

    ValueError that says what is wrong with a damaged frame; RuntimeError with the reason for a backend not there;
    TypeError for both out and backend.
    """
    compressor, message, key = read(blob)
    if out is not None and backend is not None:
        raise TypeError("give out or backend, not both")
    if out is not None:
        message = message._replace(payload=kernels.like(kernels.taken(out, "out"), message.payload))
    elif backend is not None:
        where = kernels.asarray(np.empty(0), backend)
        message = message._replace(payload=kernels.like(where, message.payload))
    return compressor.decode(message, key, out)


def read(blob: bytes) -> Frame:
    """The parts of a frame, undecoded; ValueError that says what is wrong with a damaged one."""
    try:
        blob = bytes(memoryview(blob))
    except TypeError:
        raise TypeError(f"a frame is bytes, got {type(blob).__name__}") from None
    if len(blob) < _HEAD.size:
        raise ValueError(f"frame: {len(blob)} bytes, the head alone has {_HEAD.size}")
    magic, version, header_length = _HEAD.unpack_from(blob)
    if magic != MAGIC:
        raise ValueError(f"frame: starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise ValueError(f"frame: format version {version}, this library reads {VERSION}")
    position = _HEAD.size + header_length
    if len(blob) < position + _LENGTH.size:
        raise ValueError(f"frame: cut inside its header ({len(blob)} bytes)")
    (payload_length,) = _LENGTH.unpack_from(blob, position)
    start = position + _LENGTH.size
    expected = start + payload_length + _CHECK.size
    if len(blob) != expected:
        raise ValueError(f"frame: {len(blob)} bytes, its lengths say {expected}")
    (check,) = _CHECK.unpack_from(blob, len(blob) - _CHECK.size)
    if zlib.crc32(blob[: -_CHECK.size]) != check:
        raise ValueError("frame: checksum does not match, some bytes were changed")
    try:
        header = json.loads(blob[_HEAD.size : position])
        ((name, plain),) = header["codec"].items()
        size, bits = (positive_int(header[field], field, 0, 2**48) for field in ("size", "bits"))
        dtype = np.dtype(header["dtype"])
        seed, round, worker, path = header["key"]
        key = _key.from_fields(seed, round, worker, path)
        compressor = build(name, plain)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"frame: header is not one this library writes: {type(error).__name__}: {error}") from None
    payload = np.frombuffer(blob, np.uint8, payload_length, start)
    return Frame(compressor, Message(payload, bits, size, dtype), key)
