"""The bytes of every catalogue entry, pinned. `python tests/test_golden.py --write` after a deliberate change,
which is a new format version and a line in CHANGELOG.md.

A BLAS is in what LowRank encodes, but not in what it decodes, which must be the same everywhere: that is pinned."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import INSTRUCTION_SETS

import compress

FILE = Path(__file__).parent / "golden" / "payloads.json"
KEY = compress.Key(2020).at(8958).worker(2)


def vector(d: int, dtype) -> np.ndarray:
    """Heavy-tailed, with zeros, the same on every machine and with every NumPy."""
    i = np.arange(1, d + 1, dtype=np.uint64)
    u = (i * np.uint64(2654435761) % np.uint64(1 << 32)).astype(np.float64) / 2**31 - 1
    return np.where(i % np.uint64(7) == 0, 0, u * u * u).astype(dtype)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:32]


def entry(C) -> dict:
    """The whole payload at d = 100, digests of payload and decoded vector where blocks and tails meet."""
    found = {"payload d=100 float32": C.encode(vector(100, np.float32), KEY).payload.tobytes().hex()}
    for d in (1024, 9999):
        for dtype in (np.float32, np.float64):
            message = C.encode(vector(d, dtype), KEY)
            found[f"digests d={d} {np.dtype(dtype)}"] = [digest(message.payload), digest(C.decode(message, KEY))]
    return found


def decoded(C, payload: str) -> dict:
    """What an encoder has written, in hexadecimal, and digests of what it decodes to."""
    message = compress.Message(np.frombuffer(bytes.fromhex(payload), np.uint8), 4 * len(payload), 2000, None)
    both = [C.decode(message._replace(dtype=np.dtype(dtype)), KEY) for dtype in (np.float32, np.float64)]
    return {"payload d=2000": payload, "decoded": list(map(digest, both))}


def written(C) -> dict:
    return entry(C) if C.exact else decoded(C, C.encode(vector(2000, np.float32), KEY).payload.tobytes().hex())


def here(C, pinned: dict) -> dict:
    return entry(C) if C.exact else decoded(C, pinned["payload d=2000"])


ENTRIES = [C for C in compress.catalogue() if C.exact or isinstance(C, compress.LowRank)]


@pytest.mark.parametrize("C", ENTRIES, ids=repr)
def test_bytes_are_those_of_the_format(C):
    pinned = json.loads(FILE.read_text())[repr(C)]
    assert here(C, pinned) == pinned


def test_no_golden_entry_is_left_over():
    assert set(json.loads(FILE.read_text())) == set(map(repr, ENTRIES))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set_writes_the_same_bytes(instruction_set):
    result = subprocess.run(
        [sys.executable, __file__, "--check"],
        env={**os.environ, "COMPRESS_ISA": instruction_set},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split()[0] == instruction_set


def test_an_instruction_set_that_is_not_there_is_named():
    result = subprocess.run(
        [sys.executable, "-c", "import compress.kernels"],
        env={**os.environ, "COMPRESS_ISA": "vax"},
        capture_output=True,
        text=True,
    )
    assert result.returncode and "COMPRESS_ISA='vax'" in result.stderr


def main(argument: str) -> int:
    if argument == "--write":
        FILE.write_text(json.dumps({repr(C): written(C) for C in ENTRIES}, indent=1) + "\n")
        return 0
    pinned = json.loads(FILE.read_text())
    wrong = [repr(C) for C in ENTRIES if repr(C) not in pinned or here(C, pinned[repr(C)]) != pinned[repr(C)]]
    print(compress._cpu.instruction_set, "differs in" if wrong else "agrees", *wrong)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
