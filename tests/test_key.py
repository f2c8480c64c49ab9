import json
import struct
import zlib

import numpy as np
import pytest

import compress
from compress import Key


def test_every_field_changes_the_bits():
    keys = [Key(s).at(r) for s in (0, 1, 2**63) for r in (0, 1, 2**63)]
    keys += [k.worker(w) for k in keys for w in (0, 1, 2**40)]
    keys += [k.fold(f) for k in keys for f in (0, 1)] + [Key(0).fold(1).fold(2), Key(0).fold(2).fold(1)]
    assert len({k.word for k in keys}) == len(keys) == len(set(keys))


def test_shared_drops_the_worker_alone():
    key = Key(3).at(4).worker(5).fold(6)
    assert key.shared == Key(3).at(4).fold(6) == key.worker(9).shared
    assert key.shared.worker_index is None and key.shared.shared == key.shared


def test_repr_makes_the_key_again():
    for key in (Key(0), Key(5).at(7), Key(1).worker(0), Key(2).at(1).worker(3).fold(4).fold(5)):
        assert eval(repr(key), {"Key": Key}) == key


def test_a_key_is_frozen():
    with pytest.raises(AttributeError, match="frozen"):
        Key(0).seed = 1
    with pytest.raises(AttributeError, match="frozen"):
        Key(0).anything = 1


@pytest.mark.parametrize("bad, error", [(-1, ValueError), (2**64, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_words_are_named(bad, error):
    for make in (Key, Key(0).at, Key(0).worker, Key(0).fold):
        with pytest.raises(error, match=str(bad).split(".")[0]):
            make(bad)


def test_numpy_seeds():
    assert Key(np.random.SeedSequence(1)) == Key(np.random.SeedSequence(1)) != Key(np.random.SeedSequence(2))
    generator = np.random.default_rng(0)
    assert Key(generator) != Key(generator)
    assert Key(np.uint64(7)) == Key(7)


def frame(**changes):
    """A frame with a right checksum and a header that may be wrong."""
    header = {"codec": {"Identity": {}}, "size": 1, "dtype": "float32", "bits": 32, "key": [0, 0, None, []]}
    text = json.dumps(header | changes).encode()
    body = struct.pack("<4sBI", b"CMPF", 1, len(text)) + text + struct.pack("<Q", 4) + np.float32(1).tobytes()
    return body + struct.pack("<I", zlib.crc32(body))


def test_a_frame_by_hand():
    assert compress.loads(frame()) == [1]


@pytest.mark.parametrize(
    "changes",
    [
        {"size": float("inf")},
        {"size": True},
        {"size": 1.5},
        {"size": 2**62},
        {"dtype": "int8"},
        {"dtype": "nonsense"},
        {"key": [0]},
        {"key": [0, -1, None, []]},
        {"codec": {}},
        {"codec": {"Unknown": {}}},
        {"codec": {"RandK": {"k": -1}}},
        {"codec": {"RandK": {"z": 1}}},
        {"codec": {"Scaled": {"inner": {"TopK": {"k": 1}}}}},
        {"codec": {"Identity": 7}},
    ],
    ids=str,
)
def test_headers_that_no_writer_writes(changes):
    with pytest.raises(ValueError):
        compress.loads(frame(**changes))


def test_compressors_of_others_have_no_frame():
    class Mine(compress.Identity):
        pass

    class RandK(compress.RandK):
        """Of the same name as one that a reader would take for it."""

    for C in (Mine(), RandK(1), compress.Scaled(Mine()), compress.Induced(compress.TopK(1), RandK(1))):
        with pytest.raises(ValueError, match="not of this package"):
            compress.dumps(np.ones(3), C, Key(0))


@pytest.mark.parametrize("blob", [7, 10**12, "a path", None])
def test_a_frame_is_bytes(blob):
    with pytest.raises(TypeError, match="a frame is bytes"):
        compress.loads(blob)
