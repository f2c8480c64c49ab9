import numpy as np
import pytest

LENGTHS = [0, 1, 5, 31, 32, 1023, 1024, 1025, 2048, 5000]


def pack(codes, width):
    """pack.h design notes A to C, slowly."""
    out = []
    for start in range(0, codes.size, 1024):
        block = [int(c) for c in codes[start : start + 1024]]
        if width == 0:
            q = -(-len(block) // 5)
            padded = block + [0] * (5 * q - len(block))
            out += [sum(padded[i + q * j] * 3**j for j in range(5)) for i in range(q)]
        elif len(block) == 1024:
            lanes = [sum(block[32 * row + lane] << (width * row) for row in range(32)) for lane in range(32)]
            for word in range(width):
                for lane in range(32):
                    out += (lanes[lane] >> (32 * word) & 0xFFFFFFFF).to_bytes(4, "little")
        else:
            string = sum(c << (width * i) for i, c in enumerate(block))
            out += string.to_bytes(-(-len(block) * width // 8), "little")
    return np.array(out, np.uint8)


@pytest.mark.parametrize("width", range(17))
def test_every_width_and_length(kernels, width):
    rng = np.random.default_rng(width)
    for n in LENGTHS:
        codes = rng.integers(0, 3 if width == 0 else 2**width, n).astype(np.uint16)
        expected = pack(codes, width)
        assert expected.size == -(-kernels.pack_bits(n, width) // 8)
        packed = np.full(expected.size + 8, 0xAA, np.uint8)
        kernels.pack(codes, width, packed[: expected.size])
        np.testing.assert_array_equal(packed[: expected.size], expected)
        assert (packed[expected.size :] == 0xAA).all()
        back = np.empty_like(codes)
        kernels.unpack(expected, width, back)
        np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("symbols, width", [(2, 1), (3, 0), (4, 2), (5, 3), (15, 4), (16, 4), (17, 5), (65536, 16)])
def test_width_of_an_alphabet(kernels, symbols, width):
    assert kernels.pack_width(symbols) == width


@pytest.mark.parametrize("n, width, bits", [(1000, 4, 4000), (1024, 0, 1640), (7, 0, 16), (2049, 3, 6147)])
def test_predicted_lengths(kernels, n, width, bits):
    assert kernels.pack_bits(n, width) == bits


def test_any_byte_unpacks_to_some_trits(kernels):
    codes = np.empty(1024, np.uint16)
    for start in (0, 51):
        kernels.unpack(np.arange(start, start + 205, dtype=np.uint8), 0, codes)
        assert codes.max() <= 3


def test_wrong_lengths_and_widths_are_refused(kernels):
    codes = np.zeros(1000, np.uint16)
    with pytest.raises(ValueError, match="out has 499 elements, 500 are needed"):
        kernels.pack(codes, 4, np.empty(499, np.uint8))
    with pytest.raises(ValueError, match="data has 499 elements"):
        kernels.unpack(np.empty(499, np.uint8), 4, codes)
    with pytest.raises(ValueError, match="17"):
        kernels.pack(codes, 17, np.empty(5000, np.uint8))
