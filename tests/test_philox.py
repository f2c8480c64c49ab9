import numpy as np
import pytest

M0, M1, W0, W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85

# Known answers published with Random123 (kat_vectors, philox4x32 10 rounds).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox(counter, key):
    """The definition, in Python integers."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        p, q = a * M0, c * M1
        a, b, c, d = (q >> 32) ^ b ^ k0, q & 0xFFFFFFFF, (p >> 32) ^ d ^ k1, p & 0xFFFFFFFF
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return a, b, c, d


def random16(e, key):
    """The 16 bits that round coordinate e (philox.h, B)."""
    call = (e >> 8) * 32 + (e & 31)
    words = philox((call & 0xFFFFFFFF, call >> 32, 0, 0), (key & 0xFFFFFFFF, key >> 32))
    return words[(e >> 6) & 3] >> (16 * ((e >> 5) & 1)) & 0xFFFF


@pytest.mark.parametrize("counter, key, answer", KNOWN)
def test_published_known_answers(kernels, counter, key, answer):
    assert kernels.philox_block(*counter, *key) == answer
    assert philox(counter, key) == answer


def test_words_are_consecutive_calls(kernels):
    words = np.empty(12, np.uint32)
    start, stream, key = 2**32 - 1, 3, 0x0123456789ABCDEF
    kernels.philox_words(key, start, stream, words)
    for i in range(3):
        index = start + i
        expected = philox((index & 0xFFFFFFFF, index >> 32, stream, 0), (key & 0xFFFFFFFF, key >> 32))
        assert tuple(words[4 * i : 4 * i + 4]) == expected


def test_derived_keys_differ_by_every_argument(kernels):
    keys = {kernels.derive(k, w, s) for k in (0, 1, 2**63) for w in (0, 1, 2**40) for s in (0, 1)}
    assert len(keys) == 18
