"""What every compressor of the catalogue promises, checked on each of them."""

import math
import tracemalloc
from dataclasses import dataclass

import backends
import numpy as np
import pytest
from conftest import families

import compress
from compress import kernels
from compress.compressor import Compressor, Contractive, Unbiased, add_or_store, check_finite, name_of

CATALOGUE = compress.catalogue()
KEY = compress.Key(12345).at(3).worker(1)
SIZES = [1, 2, 3, 17, 63, 64, 255, 1000, 1024, 5000]

each = pytest.mark.parametrize("C", CATALOGUE, ids=repr, indirect=True)  # on every backend
once = pytest.mark.parametrize("C", CATALOGUE, ids=repr)  # what no backend changes


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


@once
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
    deterministic = (compress.Identity, compress.TopK, compress.ChunkTopK, compress.ScaledSign)
    inner = C.inner if isinstance(C, compress.DCT) else C
    adaptive = isinstance(C, (compress.UniformQuantizer, compress.Trellis)) and not C.unbiased
    if not (adaptive or isinstance(inner, deterministic)):
        assert not np.array_equal(C(x, KEY), C(x, KEY.at(4)))


def constant(C, d):
    """omega or alpha, and infinity where the compressor promises nothing."""
    if C.guarantee == "none":
        return math.inf
    return C.omega(d) if isinstance(C, Unbiased) else C.alpha(d)


@once
def test_a_constant_without_a_guarantee_is_not_given(C):
    if C.guarantee == "none":
        with pytest.raises(TypeError):
            C.omega(100) if isinstance(C, Unbiased) else C.alpha(100)


def normalised(C, x, key):
    exact = x.astype(np.float64)
    error = C(x, key) - exact
    return float(error @ error) / float(exact @ exact)


def same_as_the_cpu(C, x, trials=3):
    """A few messages are the CPU's, byte for byte, and decode to the same: their law is the one tested there."""
    for key in map(KEY.at, range(trials)):
        there, here = C.encode(x, key), C.plain.encode(x, key)
        if C.exact:
            assert there == here
            np.testing.assert_array_equal(C.decode(there, key), C.plain.decode(here, key))
        else:
            np.testing.assert_allclose(C.decode(there, key), C.plain.decode(here, key), rtol=1e-3, atol=1e-6)


@each
@pytest.mark.parametrize("d", [37, 1000])
@pytest.mark.parametrize("family", families(8))
def test_error_keeps_to_its_constant(C, backend, d, family):
    if not suits(C, d):
        return
    x = families(d, seed=d)[family]
    if backend.name != "cpu":
        return same_as_the_cpu(C, x)
    trials = 60
    errors = np.array([normalised(C, x, KEY.at(t)) for t in range(trials)])
    bound = constant(C, d)
    assert errors.mean() <= bound * (1 + 1e-5) + 4 * errors.std(ddof=1) / math.sqrt(trials) + 1e-12


@each
@pytest.mark.parametrize("family", families(8))
def test_unbiased_by_z_score(C, backend, family):
    if not isinstance(C, Unbiased):
        return
    d, trials = 129, 3000 if C.fixed_length else 1200  # what looks for its step takes a while
    if not suits(C, d):
        return
    x = families(d, seed=5)[family]
    if backend.name != "cpu":
        return same_as_the_cpu(C, x)
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
            assert dtype is np.float64 and "float32's range" in str(error)


@each
def test_denormals_keep_their_scale(C, backend):
    d = 1000
    if not suits(C, d):
        return
    x = families(d)["gaussian"] * np.float32(1e-39)
    if backend.name != "cpu":
        return same_as_the_cpu(C, x)
    bound = constant(C, d)
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
        if C.exact:
            np.testing.assert_array_equal(C.encode(narrow, KEY).payload, C.encode(wide, KEY).payload)
        else:  # a BLAS may take another way for another address
            np.testing.assert_allclose(C(narrow, KEY), C(wide, KEY), rtol=1e-3, atol=1e-6)


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
def test_frame_round_trip(C, backend):
    x = families(1000)["gaussian"]
    there = backends.moved(x, []) if backend.name != "cpu" else x
    blob = compress.dumps(there, getattr(C, "plain", C), KEY)
    np.testing.assert_array_equal(compress.loads(blob), C(x, KEY))
    back = compress.loads(blob, backend="cpu" if backend.name == "cpu" else "gpu")
    assert type(back) is type(there)
    np.testing.assert_array_equal(kernels.host(back), C(x, KEY))
    frame = compress.message.read(blob)
    assert (frame.compressor, frame.key, frame.message.size) == (C, KEY, 1000)


@once
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


@once
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
    # a rotated trellis has its symbols beside the rotated vector;
    # parts of a combination are payloads of their own, and a random index set is as long as its values
    vectors = 1.5 if getattr(C, "rotate", False) else 1
    assert peak <= vectors * x.nbytes + 2.5 * message.payload.nbytes + 100_000


@once
def test_pickles(C):
    import pickle

    assert pickle.loads(pickle.dumps(C)) == C
    assert pickle.loads(pickle.dumps(KEY)) == KEY


NESTED = [
    compress.Rotated(compress.Composed(compress.RandK(0.2), compress.Identity())),
    compress.Induced(compress.Rotated(compress.ScaledSign()), compress.Identity()),
    compress.Induced(compress.TopK(0.1), compress.Composed(compress.PermK(3), compress.RandK(0.3))),
    compress.Scaled(compress.Kashin(2, 1.5)),
    compress.Scaled(compress.Rotated(compress.Induced(compress.TopK(0.1), compress.Bernoulli(0.3)))),
    compress.Composed(compress.PermK(2), compress.Kashin()),
    compress.Rotated(compress.Kashin()),
]


@pytest.mark.parametrize("C", NESTED, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [21, 700])
def test_compressors_nest(C, dtype, d):
    x = families(d, dtype=dtype)["gaussian"]
    bound = C.omega(d) if isinstance(C, Unbiased) else C.alpha(d)
    errors = []
    for t in range(100):
        key = KEY.at(t).worker(t % 2)
        message = C.encode(x, key)
        bits = C.bits(d, dtype)
        assert message.bits == bits if C.fixed_length else message.bits <= bits
        assert message.payload.nbytes == -(-message.bits // 8)
        error = C.decode(message, key) - x.astype(float)
        errors.append(error @ error / (x.astype(float) @ x))
    assert np.mean(errors) <= bound * (1 + 1e-5) + 4 * np.std(errors) / 10 + 1e-9
    np.testing.assert_array_equal(compress.loads(compress.dumps(x, C, KEY)), C(x, KEY))


def test_composed_refuses_what_it_cannot_bound():
    with pytest.raises(TypeError, match="Bernoulli"):
        compress.Composed(compress.Bernoulli(0.9), compress.RandK(0.1))
    with pytest.raises(ValueError, match="wire"):
        compress.Composed(compress.RandK(0.1, wire="float64"), compress.NaturalCompression())
    C, d = compress.Composed(compress.PermK(2), compress.RandK(0.1)), 21
    assert C.omega(d) == 2 * 10 - 1  # ten values keep one, eleven keep two


@pytest.mark.parametrize("C", [compress.ScaledSign(), compress.TernGrad(), compress.StandardDithering(7)], ids=repr)
def test_scales_that_float32_cannot_carry_are_refused(C):
    for power in (-45, -60, 45):
        x = families(100, dtype=np.float64)["gaussian"] * 10.0**power
        with pytest.raises(ValueError, match="wire='float64' carries it"):
            C.encode(x, KEY)
        wide = type(C)(**{**vars(C), "wire": "float64"})
        error = wide(x, KEY) / 10.0**power - x / 10.0**power
        assert error @ error < 50 * 100


@each
def test_finite_input_never_decodes_to_inf(C):
    for value in (3e37, 3.4e38):
        x = np.full(1000, value, np.float32)
        try:
            y = C(x, KEY)
        except ValueError as error:
            assert "range" in str(error) or "too large" in str(error)
        else:
            assert np.isfinite(y).all()


@each
def test_a_payload_cannot_overwrite_its_input(C):
    x = families(5000)["gaussian"]
    with pytest.raises(ValueError, match="shares memory"):
        C.encode(x, KEY, out=x.view(np.uint8))


def test_parameters_become_plain_numbers():
    key = compress.Key(0)
    x = families(100)["gaussian"]
    for C in (
        compress.RandK(np.int32(10)),
        compress.RandK(np.float32(0.25)),
        compress.Bernoulli(np.float32(0.5)),
        compress.PowerSGD(np.int64(2), (np.int8(10), np.int64(10))),
        compress.StandardDithering(np.int8(100)),
        compress.Kashin(np.int64(3), np.int64(2), np.int16(4)),
    ):
        np.testing.assert_array_equal(compress.loads(compress.dumps(x, C, key)), C(x, key))
    assert compress.RandK(np.int32(10**8)).bits(2 * 10**8) == 32 * 10**8


def test_messages_compare():
    C, x = compress.TernGrad(), families(100)["gaussian"]
    assert C.encode(x, KEY) == C.encode(x, KEY)
    assert C.encode(x, KEY) != C.encode(x, KEY.at(9))


def test_a_combination_promises_no_more_than_its_parts():
    coded = compress.UniformQuantizer(bits=2, unbiased=True)
    for C in (
        compress.Composed(compress.RandK(0.5), coded),
        compress.Induced(compress.TopK(0.1), coded),
        compress.Induced(compress.Trellis(bits=1), compress.RandK(0.5)),
    ):
        assert C.guarantee == "none"
        with pytest.raises(TypeError, match="no constant"):
            C.omega(100)
    assert compress.Induced(compress.TopK(0.1), compress.RandK(0.5)).guarantee == "proven"


def test_error_feedback_wants_a_contraction():
    with pytest.raises(TypeError, match="Scaled"):
        compress.ErrorFeedback(compress.RandK(0.1))
    feedback = compress.ErrorFeedback(compress.Scaled(compress.RandK(0.1)))
    state, x = feedback.init(1000), families(1000)["gaussian"]
    sent = np.zeros(1000)
    for t in range(200):
        message, state = feedback.encode(state, x, KEY.at(t))
        feedback.compressor.decode_add(message, KEY.at(t), sent)
    # what was sent and what is kept add up to what was asked for
    np.testing.assert_allclose(sent + state.error, 200 * x.astype(float), rtol=1e-3, atol=1e-2)
    assert np.linalg.norm(state.error) < 100 * np.linalg.norm(x)


def test_power_sgd_warm_start_improves_on_a_fixed_matrix():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, 30)) @ np.diag(0.7 ** np.arange(30))).astype(np.float32).reshape(-1)
    C = compress.PowerSGD(2, (40, 30))
    state, errors = C.init(x.size, KEY), []
    for _ in range(6):
        message, state = C.encode_warm(state, x)
        errors.append(np.linalg.norm(C.decode(message, KEY) - x))
    best = np.linalg.norm(np.linalg.svd(x.reshape(40, 30), compute_uv=False)[2:])
    assert errors[-1] < errors[0] and errors[-1] < 1.05 * best
    with pytest.raises(ValueError, match="shape"):
        compress.PowerSGD(2, (40, 31)).encode(x, KEY)


def test_measure():
    x = families(2000)["student"]
    m = compress.measure(compress.RandK(0.1), x, trials=200)
    assert abs(m.nmse - 9) < 5 * m.nmse_se and abs(m.bias) < 5 * m.bias_se
    assert m.bits == 32 * 200 and m.distance == pytest.approx(m.nmse / (1 + m.nmse) * 4**3.2)
    biased = compress.measure(compress.TopK(0.1), x, trials=3)
    assert biased.bias == pytest.approx(biased.nmse)
    for scale in (1e200, 1e-200):
        m = compress.measure(compress.Identity(), np.array([scale, -scale]))
        assert m.nmse == 0
        m = compress.measure(compress.RandK(1, wire="float64"), np.array([scale, -scale]), trials=50)
        assert m.nmse == pytest.approx(1)
    with pytest.raises(ValueError, match="zero or empty"):
        compress.measure(compress.Identity(), np.zeros(3))
    with pytest.raises(ValueError, match="trials"):
        compress.measure(compress.Identity(), x, trials=1)


def test_a_class_of_ones_own_works_everywhere():
    """The example in compressor.py's docstring, filled in."""

    @dataclass(frozen=True)
    class BernoulliSign(Unbiased):
        def omega(self, d):
            return math.sqrt(d) - 1

        def bits(self, d, dtype=np.float32):
            return 2 * d + 64

        def _encode(self, x, key, out):
            m = math.sqrt(float(x.astype(float) @ x)) * check_finite(x) ** 0
            payload = kernels.buffer(-(-self.bits(x.size) // 8), out)
            random = np.random.Generator(np.random.Philox(key=key.word)).random(x.size)
            payload[:8] = np.frombuffer(np.float64(m).tobytes(), np.uint8)
            kept = np.packbits(np.concatenate([random * m < np.abs(x), x < 0]))
            payload[8:] = kept
            return payload, self.bits(x.size)

        def _decode(self, message, key, out, weight, add):
            m = np.frombuffer(message.payload[:8].tobytes())[0]
            kept, minus = np.unpackbits(message.payload[8:])[: 2 * message.size].reshape(2, -1)
            add_or_store(m * kept * (1.0 - 2.0 * minus), out, weight, add)

    x, C = families(200)["gaussian"], BernoulliSign()
    for made in (C, compress.Scaled(C), compress.Rotated(C), compress.Induced(compress.TopK(0.1), C)):
        found = compress.measure(made, x, trials=100)
        bound = made.omega(200) if isinstance(made, Unbiased) else made.alpha(200)
        assert found.nmse <= bound + 4 * found.nmse_se
    with pytest.raises(ValueError, match="NaN"):
        C.encode(np.full(3, np.nan), KEY)


def test_a_wrong_length_is_found_where_it_is_made():
    class Liar(compress.Identity):
        def _encode(self, x, key, out):
            payload, bits = super()._encode(x, key, out)
            return payload, bits - 8

    with pytest.raises(AssertionError, match="says 88 bits and sends 12 bytes"):
        Liar().encode(np.ones(3, np.float32), KEY)
