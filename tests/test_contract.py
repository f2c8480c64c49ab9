"""What every compressor of the catalogue promises, checked on each of them."""

import math
import tracemalloc

import numpy as np
import pytest
from conftest import families

import compress
from compress.compressor import Compressor, Contractive, Unbiased, name_of

CATALOGUE = compress.catalogue()
KEY = compress.Key(12345).at(3).worker(1)
SIZES = [1, 2, 3, 17, 63, 64, 255, 1000, 1024, 5000]

each = pytest.mark.parametrize("C", CATALOGUE, ids=repr)


def suits(C: Compressor, d: int) -> bool:
    """Whether the parameters of C allow d coordinates (k <= d)."""
    try:
        C.bits(d)
    except ValueError:
        return False
    return True


def sizes(C):
    found = [d for d in SIZES if suits(C, d)]
    assert found
    return found


def test_the_catalogue_is_complete():
    assert {name_of(C) for C in CATALOGUE} == {
        name
        for name in compress.__all__
        if isinstance(cls := getattr(compress, name), type)
        and issubclass(cls, Compressor)
        and cls not in (Compressor, Unbiased, Contractive)
    }


@each
def test_is_one_of_two_types_and_documents_its_constant(C):
    assert isinstance(C, Unbiased) != isinstance(C, Contractive)
    text = getattr(compress, name_of(C)).__doc__
    assert ">>>" in text and ("omega" in text or "alpha" in text)
    assert C.guarantee in ("proven", "high probability", "none")


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_are_the_bytes_that_leave(C, dtype):
    for d in sizes(C):
        x = np.random.default_rng(d).standard_normal(d).astype(dtype)
        message = C.encode(x, KEY)
        assert message.payload.dtype == np.uint8 and message.payload.ndim == 1
        assert message.payload.nbytes == -(-message.bits // 8)
        assert (message.size, message.dtype) == (d, np.dtype(dtype))
        bound = C.bits(d, dtype) if isinstance(C, compress.Identity) else C.bits(d)
        assert message.bits == bound if C.fixed_length else message.bits <= bound
        y = C.decode(message, KEY)
        assert y.shape == (d,) and y.dtype == dtype


@each
def test_same_key_same_bytes_and_other_key_other_bits(C):
    x = families(5000)["gaussian"]
    first, again = C.encode(x, KEY), C.encode(x, KEY)
    np.testing.assert_array_equal(first.payload, again.payload)
    np.testing.assert_array_equal(C.decode(first, KEY), C(x, KEY))
    deterministic = (compress.Identity, compress.TopK, compress.ScaledSign)
    if not isinstance(C, deterministic):
        assert not np.array_equal(C(x, KEY), C(x, KEY.at(4)))


def normalised(C, x, key):
    exact = x.astype(np.float64)
    error = C(x, key) - exact
    return float(error @ error) / float(exact @ exact)


@each
@pytest.mark.parametrize("d", [37, 1000])
@pytest.mark.parametrize("family", families(8))
def test_error_keeps_to_its_constant(C, d, family):
    if not suits(C, d):
        return
    x = families(d, seed=d)[family]
    trials = 60
    errors = np.array([normalised(C, x, KEY.at(t)) for t in range(trials)])
    bound = C.omega(d) if isinstance(C, Unbiased) else C.alpha(d)
    assert errors.mean() <= bound * (1 + 1e-5) + 4 * errors.std(ddof=1) / math.sqrt(trials) + 1e-12


@each
@pytest.mark.parametrize("family", families(8))
def test_unbiased_by_z_score(C, family):
    if not isinstance(C, Unbiased):
        return
    d, trials = 129, 3000
    if not suits(C, d):
        return
    x = families(d, seed=5)[family]
    samples = np.array([C(x, KEY.at(t)) for t in range(trials)], np.float64)
    chosen, samples = samples[: trials // 3], samples[trials // 3 :]
    # Random directions have a normal law; a coordinate has one if it moves often and has no rare large values.
    # It is chosen by samples that are not used again.
    directions = np.random.default_rng(0).choice([-1.0, 1.0], (64, d))
    even = family in ("gaussian", "ones", "half")
    if even:
        moving = (chosen != np.median(chosen, axis=0)).sum(0) >= 30
        directions = np.vstack([directions, np.eye(d)[moving]])
    projected = samples @ directions.T
    spread = projected.std(0, ddof=1) / math.sqrt(len(samples)) + 1e-6 * np.abs(x).max()
    z = (projected.mean(0) - directions @ x) / spread
    assert np.abs(z).max() < 5
    assert not even or (z**2).mean() < 1.6


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_stays_zero_and_odd_values_work(C, dtype):
    for d in sizes(C):
        zero = np.zeros(d, dtype)
        np.testing.assert_array_equal(C(zero, KEY), zero)
        np.testing.assert_array_equal(C(-zero, KEY), zero)
        assert np.isfinite(C(np.full(d, 1e30, dtype), KEY)).all()
        tiny = np.full(d, 1e-40, dtype)
        try:
            assert np.isfinite(C(tiny, KEY)).all()
        except ValueError as error:
            assert dtype is np.float64 and "wire='float64'" in str(error)


@each
def test_denormals_keep_their_scale(C):
    d = 1000
    if not suits(C, d):
        return
    x = families(d)["gaussian"] * np.float32(1e-39)
    bound = C.omega(d) if isinstance(C, Unbiased) else C.alpha(d)
    errors = [normalised(C, x, KEY.at(t)) for t in range(20)]
    assert np.mean(errors) <= bound * 1.2 + 1e-9


@each
def test_empty(C):
    empty = np.zeros(0, np.float32)
    message = C.encode(empty, KEY)
    assert message.bits == 0 and message.payload.size == 0
    assert C.decode(message, KEY).size == 0


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_inf_are_refused_with_count_and_place(C, bad, dtype):
    x = np.ones(5000, dtype)
    x[[4321, 17]] = bad
    with pytest.raises(ValueError, match=r"2 NaN or Inf among 5000 elements, the first at index 17"):
        C.encode(x, KEY)


@each
def test_bad_arguments_are_named(C):
    with pytest.raises(TypeError, match="int64"):
        C.encode(np.arange(5000), KEY)
    with pytest.raises(TypeError, match="list"):
        C.encode([1.0, 2.0], KEY)
    with pytest.raises(TypeError, match=">f4"):
        C.encode(np.ones(5000, ">f4"), KEY)
    with pytest.raises(ValueError, match=r"\(50, 100\)"):
        C.encode(np.ones((50, 100)), KEY)
    with pytest.raises(ValueError, match="contiguous"):
        C.encode(np.ones(10000)[::2], KEY)
    with pytest.raises(TypeError, match="Key"):
        C.encode(np.ones(5000), 7)
    message = C.encode(np.ones(5000), KEY)
    with pytest.raises(ValueError, match="4999"):
        C.decode(message, KEY, out=np.empty(4999))
    with pytest.raises(TypeError, match="float32"):
        C.decode(message, KEY, out=np.empty(5000, np.float32))
    with pytest.raises(TypeError):
        C.decode(message, KEY, out=[0.0] * 5000)
    with pytest.raises(TypeError):
        C.decode_add(message, KEY, None)
    with pytest.raises(ValueError, match="nan"):
        C.decode_add(message, KEY, np.empty(5000), float("nan"))


@each
def test_half_precision_is_widened(C):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = families(5000)["gaussian"]
    for dtype in (np.float16, ml_dtypes.bfloat16):
        narrow = x.astype(dtype)
        wide = narrow.astype(np.float32)
        np.testing.assert_array_equal(C.encode(narrow, KEY).payload, C.encode(wide, KEY).payload)


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_decode_into_and_add(C, dtype):
    x = families(5000, dtype=dtype)["student"]
    message = C.encode(x, KEY)
    y = C.decode(message, KEY)
    out = np.full(5000, np.nan, dtype)
    assert C.decode(message, KEY, out) is out
    np.testing.assert_array_equal(out, y)
    wide = C.decode(message, KEY, np.empty(5000))
    np.testing.assert_allclose(wide, y, rtol=2e-5, atol=2e-6 * np.abs(y).max())
    start = families(5000, seed=9, dtype=dtype)["gaussian"]
    total = start.copy()
    assert C.decode_add(message, KEY, total, 0.25) is total
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(total, start + 0.25 * y, atol=8 * eps * (np.abs(y) + np.abs(start)).max())


@each
def test_encode_into_a_buffer(C):
    x = families(5000)["gaussian"]
    message = C.encode(x, KEY)
    room = np.full(message.payload.size + 100, 0x55, np.uint8) if C.fixed_length else np.empty(1 << 16, np.uint8)
    into = C.encode(x, KEY, out=room)
    np.testing.assert_array_equal(into.payload, message.payload)
    assert np.shares_memory(into.payload, room)
    if C.fixed_length:
        assert (room[message.payload.size :] == 0x55).all()
    with pytest.raises(ValueError, match="bytes"):
        C.encode(x, KEY, out=np.empty(message.payload.size - 1, np.uint8))
    with pytest.raises(TypeError, match="uint8"):
        C.encode(x, KEY, out=np.empty(10**5, np.float32))


@each
def test_the_input_is_left_alone(C):
    x = families(5000)["gaussian"]
    before = x.copy()
    x.flags.writeable = False
    message = C.encode(x, KEY)
    payload = message.payload.copy()
    message.payload.flags.writeable = False
    C.decode(message, KEY)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(message.payload, payload)


@each
def test_frame_round_trip(C):
    x = families(1000)["gaussian"]
    blob = compress.dumps(x, C, KEY)
    np.testing.assert_array_equal(compress.loads(blob), C(x, KEY))
    frame = compress.message.read(blob)
    assert (frame.compressor, frame.key, frame.message.size) == (C, KEY, 1000)


@each
def test_anything_with_dlpack_is_taken(C):
    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    x = families(1000)["gaussian"]
    np.testing.assert_array_equal(C.encode(Foreign(x), KEY).payload, C.encode(x, KEY).payload)


@each
def test_encode_takes_one_vector_of_extra_memory_at_most(C):
    x = families(1 << 18)["gaussian"]
    room = np.empty(-(-C.bits(x.size) // 8), np.uint8)
    C.encode(x, KEY, out=room)
    tracemalloc.start()
    try:
        message = C.encode(x, KEY, out=room)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # parts of a combination are payloads of their own, and a random index set is as long as its values
    assert peak <= x.nbytes + 2.5 * message.payload.nbytes + 100_000


@each
def test_pickles(C):
    import pickle

    assert pickle.loads(pickle.dumps(C)) == C
    assert pickle.loads(pickle.dumps(KEY)) == KEY
