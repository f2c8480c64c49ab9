"""AllReduce: the mean of both patterns, its bits, its errors, and what both ends remember."""

import numpy as np
import pytest
from backends import same_on_the_grid

import compress
from compress.allreduce import AllReduce, AllReduceState, Spent, slices
from compress.combine import contractive
from compress.comm import HEADER

KEY = compress.Key(3).at(5)
CODERS = (
    compress.Identity(),
    compress.Eden(2),
    compress.ScaledSign(),
    compress.ChunkTopK(),
    compress.Kashin(3),
    compress.Trellis(bits=1),
    compress.TopK(0.01),
    compress.RandK(0.1),
)


def gaussian(n, d, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def one_round(reduce, rows, key=KEY, comm=None):
    comm = comm or compress.Local(len(rows))
    return reduce.mean(comm, reduce.init(comm, rows.shape[1], rows.dtype), rows, key)[0]


def nmse(x, y):
    return float(np.sum((np.float64(x) - y) ** 2) / np.sum(np.float64(y) ** 2))


class Received(compress.Local):
    """Local, which also adds up what each worker receives in bytes, headers and all."""

    def __init__(self, n):
        super().__init__(n)
        self.bytes = np.zeros(n, int)

    def _hear(self, worker, messages):
        self.bytes[worker] += sum(message.payload.nbytes + HEADER for message in messages)

    def _gather(self, messages, lengths=None):
        for j in range(self.n):
            self._hear(j, messages[:j] + messages[j + 1 :])
        return super()._gather(messages)

    def _swap(self, messages, lengths=None):
        heard = super()._swap(messages)
        for j, row in enumerate(heard[0]):
            self._hear(j, row[:j] + row[j + 1 :])
        return heard


# The mean


@pytest.mark.parametrize("C", CODERS, ids=repr)
@pytest.mark.parametrize(("n", "d"), [(1, 700), (2, 1), (3, 2), (4, 5000), (5, 4097), (8, 3)])
def test_the_mean_is_that_of_its_definition(C, n, d):
    """Against encode and decode alone, a worker, a slice at a time."""
    rows, D = gaussian(n, d), compress.Eden(4)
    gathered = np.zeros(d, np.float32)
    for i in range(n):
        k = KEY.worker(i).fold(0x7570)
        C.decode_add(C.encode(rows[i], k), k, gathered, 1 / n)
    assert one_round(AllReduce(C, pattern="gather"), rows).tobytes() == gathered.tobytes()
    shot = []
    for j in range(n):
        part = slice(j * d // n, (j + 1) * d // n)
        mean = np.zeros(part.stop - part.start, np.float32)
        for i in range(n):
            k = KEY.worker(i).fold(0x7570).fold(j)
            if i == j:
                compress.Identity().decode_add(compress.Identity().encode(rows[i][part], k), k, mean, 1 / n)
            else:
                C.decode_add(C.encode(rows[i][part], k), k, mean, 1 / n)
        shot.append(D(mean, KEY.worker(j).fold(0x646F776E)))
    assert one_round(AllReduce(C, D, "two-shot"), rows).tobytes() == np.concatenate(shot).tobytes()


@pytest.mark.parametrize("pattern", ["gather", "two-shot"])
@pytest.mark.parametrize("memory", ["none", "error", "shift"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_compression_it_is_the_mean(pattern, memory, dtype):
    rows, comm = gaussian(3, 1000, dtype), compress.Local(3)
    reduce = AllReduce(compress.Identity(), pattern=pattern, memory=memory)
    state = reduce.init(comm, 1000, dtype)
    for t in range(3):
        mean, state = reduce.mean(comm, state, rows, KEY.at(t))
        assert mean.dtype == dtype
        assert np.allclose(mean, rows.mean(axis=0, dtype=np.float64), atol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("pattern", ["gather", "two-shot"])
@pytest.mark.parametrize("memory", ["none", "error", "shift"])
def test_empty_and_tiny_vectors(n, pattern, memory):
    for d in (0, 1, 3):
        reduce, comm, rows = (
            AllReduce(compress.Eden(2), pattern=pattern, memory=memory),
            compress.Local(n),
            gaussian(n, d),
        )
        mean, state = reduce.mean(comm, reduce.init(comm, d), rows, KEY)
        mean, _ = reduce.mean(comm, state, rows, KEY.at(6))
        assert mean.shape == (d,) and np.isfinite(mean).all()


def test_out_and_kinds_of_rows():
    rows, comm, reduce = gaussian(2, 300), compress.Local(2), AllReduce(compress.Eden(2), memory="error")
    out = np.empty(300, np.float32)
    mean, _ = reduce.mean(comm, reduce.init(comm, like=rows[0]), rows, KEY, out)
    assert mean is out and out.tobytes() == one_round(reduce, rows).tobytes()
    half = rows.astype(np.float16)
    widened, _ = reduce.mean(comm, reduce.init(comm, 300), list(half), KEY)
    assert widened.tobytes() == one_round(reduce, half.astype(np.float32)).tobytes()


@pytest.mark.parametrize("C", [compress.Eden(2), compress.ChunkTopK(256, 16), compress.Kashin(3)], ids=repr)
@pytest.mark.parametrize("memory", ["none", "error", "shift"])
def test_the_bits_are_the_same_on_the_gpu(C, memory):
    """Its kernels, on the host."""
    comm, rows = compress.Local(3), gaussian(3, 3000)
    for pattern in ("gather", "two-shot"):
        reduce = AllReduce(C, pattern=pattern, memory=memory, decay=0.9)
        same_on_the_grid(reduce, comm, rows, KEY)


# What travels


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("C", [c for c in CODERS if c.fixed_length], ids=repr)
def test_what_a_worker_receives_is_that_of_an_all_reduce(n, C):
    d, comm = 1 << 20, Received(n)
    reduce = AllReduce(C)
    one_round(reduce, gaussian(n, d), comm=comm)
    assert comm.bytes.max() <= 1.02 * 2 * (n - 1) / n * C.bits(d) / 8
    payload = comm.bytes.max() - HEADER * (2 * (n - 1) if reduce.two_shot(n, d) else n - 1)
    assert 8 * payload - 8 * 2 * n < reduce.received_bits(n, d) <= 8 * payload
    assert comm.ledger.wire_down == comm.bytes.sum()


@pytest.mark.parametrize("n", [2, 4, 8])
def test_and_of_those_whose_length_varies(n):
    d = 1 << 20
    for C in (compress.Trellis(bits=1), compress.UniformQuantizer(bits=2)):
        rows, comm = gaussian(n, d), Received(n)
        one_round(AllReduce(C), rows, comm=comm)
        alone = np.mean([C.encode(row, KEY.worker(i)).bits for i, row in enumerate(rows)])
        assert comm.bytes.max() <= 1.02 * 2 * (n - 1) / n * alone / 8


@pytest.mark.parametrize(("n", "d"), [(1, 0), (3, 2), (4, 5000), (7, 4097)])
def test_what_is_received_is_that_of_who_receives_most(n, d):
    """Against a look at every slice."""
    C, D = compress.Eden(2), compress.Eden(4)
    sizes = [piece.stop - piece.start for piece in slices(n, d)]
    down = [D.bits(size) for size in sizes]
    most = max((n - 1) * C.bits(size) + sum(down) - own for size, own in zip(sizes, down, strict=True))
    assert AllReduce(C, D, "two-shot").received_bits(n, d) == most


def test_auto_takes_what_receives_less():
    for n, two_shot in ((1, False), (2, False), (3, True), (8, True)):
        assert AllReduce(compress.Eden(2)).two_shot(n, 100_000) == two_shot
    assert AllReduce(compress.Eden(1), compress.Eden(8)).two_shot(3, 100_000) is False  # 2 bits against 6
    assert AllReduce(compress.Eden(1), compress.Eden(8)).two_shot(16, 100_000) is True  # 15 against 8.4
    assert AllReduce(compress.Eden(2), pattern="gather").two_shot(8, 100_000) is False


# Its error


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("C", [c for c in CODERS if c != compress.Identity()], ids=repr)
def test_the_error_is_that_of_both_shots(C, alike):
    """The mean error of the uplinks, and that of the downlink, which is of what the uplinks made of the mean."""
    n, d = 4, 1 << 16
    rows = gaussian(n, d)
    if alike:
        rows[1:] = rows[0]
    D, mean = compress.Eden(3), rows.mean(axis=0, dtype=np.float64)
    comm = compress.Local(n)
    reduce = AllReduce(C, D, "two-shot", memory="none")
    parts, _ = reduce.reduce_scatter(comm, reduce.init(comm, d), rows, KEY)
    said, _ = reduce.mean(comm, reduce.init(comm, d), rows, KEY)
    cut = slices(n, d)
    up = np.mean(
        [
            sum(
                np.sum(
                    (C(np.ascontiguousarray(rows[i][cut[j]]), KEY.worker(i).fold(0x7570).fold(j)) - rows[i][cut[j]])
                    ** 2
                )
                for j in range(n)
                if j != i
            )
            for i in range(n)
        ]
    )
    down = np.sum((said - np.concatenate(parts)) ** 2)
    assert np.sum((said - mean) ** 2) <= 1.05 * (up + down)
    assert up > 0 and down > 0


def test_own_slices_are_not_compressed():
    comm, rows = compress.Local(4), np.zeros((4, 4000), np.float32)
    for i, part in enumerate(slices(4, 4000)):
        rows[i, part] = gaussian(1, 1000, seed=i)
    reduce = AllReduce(compress.ScaledSign(), pattern="two-shot", memory="error")
    parts, state = reduce.reduce_scatter(comm, reduce.init(comm, 4000), rows, KEY)
    for part, piece, row in zip(parts, slices(4, 4000), rows, strict=True):
        assert np.array_equal(part, row[piece] / 4)
    assert not any(error.any() for error in state.up)


# What is remembered


@pytest.mark.parametrize("C", [compress.Eden(1), compress.ChunkTopK(256, 8), compress.RandK(0.1)], ids=repr)
@pytest.mark.parametrize("pattern", ["gather", "two-shot"])
def test_nothing_is_lost_with_error_feedback(C, pattern):
    """What came, and what both ends still hold, is what was given: to rounding."""
    n, d, comm = 4, 3001, compress.Local(4)
    reduce = AllReduce(C, pattern=pattern, memory="error")
    state, came, given = reduce.init(comm, d), np.zeros(d), np.zeros(d)
    for t in range(10):
        rows = gaussian(n, d, seed=t)
        mean, state = reduce.mean(comm, state, rows, KEY.at(t))
        came += mean
        given += rows.mean(axis=0, dtype=np.float64)
    held = np.mean(state.up, axis=0, dtype=np.float64)
    if pattern == "two-shot":
        held += np.concatenate(state.down)
    assert np.abs(held).max() > 0.1
    assert np.allclose(came + held, given, atol=1e-4)


@pytest.mark.parametrize("pattern", ["gather", "two-shot"])
@pytest.mark.parametrize("decay", [0.5, 0.0])
def test_decay_forgets(pattern, decay):
    """Of workers and of owners of slices."""
    rows, comm, kept = gaussian(2, 3000), compress.Local(2), []
    for each in (1.0, decay):
        reduce = AllReduce(compress.TopK(0.01), pattern=pattern, memory="error", decay=each)
        _, state = reduce.mean(comm, reduce.init(comm, 3000), rows, KEY)
        kept.append([*state.up, *state.down])
    assert len(kept[0]) == (2 if pattern == "gather" else 4)
    for full, less in zip(*kept, strict=True):
        assert full.any() and np.array_equal(less, np.float32(decay) * full)
    lost = rows[0] - compress.TopK(0.01)(rows[0], KEY.worker(0).fold(0x7570))
    assert pattern == "two-shot" or np.array_equal(kept[0][0], lost)


@pytest.mark.parametrize("C", [compress.Eden(2), compress.ChunkTopK(256, 64), compress.RandK(0.3)], ids=repr)
@pytest.mark.parametrize("pattern", ["gather", "two-shot"])
def test_shifts_learn_vectors_that_stay(C, pattern):
    """EF21 and DIANA: the error of the mean vanishes, and all ends hold the same."""
    d, comm, rows = 4096, compress.Local(4), gaussian(4, 4096)
    reduce, errors = AllReduce(C, pattern=pattern, memory="shift"), []
    state = reduce.init(comm, d)
    for t in range(60):
        mean, state = reduce.mean(comm, state, rows, KEY.at(t))
        errors.append(nmse(mean, rows.mean(axis=0, dtype=np.float64)))
    assert errors[-1] < 1e-3 * errors[0] and errors[-1] < 1e-4
    held = np.concatenate(state.down) if pattern == "two-shot" else state.shared
    assert np.allclose(held, np.mean(state.up, axis=0, dtype=np.float64), atol=1e-5)


def test_the_step_of_a_shift():
    comm, rows, C = compress.Local(2), gaussian(2, 1000), compress.RandK(0.25)
    for step, expected in ((None, 0.25), (0.1, 0.1)):
        reduce = AllReduce(C, memory="shift", shift_step=step)
        _, state = reduce.mean(comm, reduce.init(comm, 1000), rows, KEY)
        assert np.allclose(state.up[0], expected * C(rows[0], KEY.worker(0).fold(0x7570)))
    _, state = (r := AllReduce(compress.TopK(10), memory="shift")).mean(comm, r.init(comm, 1000), rows, KEY)
    assert np.array_equal(state.up[0], compress.TopK(10)(rows[0], KEY.worker(0)))


def test_unbiased_ones_are_scaled_where_their_errors_are_kept():
    for C in (compress.RandK(0.1), compress.Kashin(3)):
        assert AllReduce(C, memory="error").up_coder == compress.Scaled(C) == contractive(C)
        assert AllReduce(C, memory="shift").up_coder == C == AllReduce(C).up_coder
    assert AllReduce(compress.Identity(), memory="error").up_coder == compress.Identity()
    assert AllReduce(compress.Eden(1), compress.RandK(0.5), memory="error").down_coder == compress.Scaled(
        compress.RandK(0.5)
    )


def test_a_round_on_the_scatter_alone():
    """FSDP's half: the slices of the mean, nothing said of them."""
    comm, rows = compress.Local(4), gaussian(4, 1001)
    reduce = AllReduce(compress.Identity(), pattern="two-shot", memory="error")
    spent = Spent()
    parts, _ = reduce.reduce_scatter(comm, reduce.init(comm, 1001), rows, KEY, spent)
    assert [part.size for part in parts] == [250, 250, 250, 251]
    assert np.allclose(np.concatenate(parts), rows.mean(axis=0), atol=1e-6)
    assert comm.ledger.messages == 12 and min(spent.encode, spent.decode, spent.wait) > 0


# What goes wrong


@pytest.mark.parametrize("pattern", ["gather", "two-shot"])
@pytest.mark.parametrize("memory", ["none", "error", "shift"])
@pytest.mark.parametrize("where", [(1, 3), (1, 500), (0, 999)])  # in another's slice, and in its own
def test_a_nan_is_refused_and_nothing_has_changed(pattern, memory, where):
    comm, rows = compress.Local(2), gaussian(2, 1000)
    reduce = AllReduce(compress.Eden(2), pattern=pattern, memory=memory)
    _, state = reduce.mean(comm, reduce.init(comm, 1000), rows, KEY)
    before = [x.copy() for x in (*state.up, *state.down)]
    bad = rows.copy()
    bad[where] = np.nan
    reason = f"worker {where[0]}: x has 1 NaN or Inf among 1000 elements, the first at index {where[1]}: nan"
    with pytest.raises(RuntimeError, match=reason):
        reduce.mean(comm, state, bad, KEY.at(6))
    assert all(np.array_equal(x, y) for x, y in zip(before, (*state.up, *state.down), strict=True))
    assert np.isfinite(reduce.mean(comm, state, rows, KEY.at(6))[0]).all()


def test_what_leaves_the_range_is_refused():
    comm, reduce = compress.Local(2), AllReduce(compress.Eden(2), memory="error")
    rows = 3e38 * np.sign(gaussian(2, 100))
    state = AllReduceState(tuple(rows.copy()))
    with pytest.raises(RuntimeError, match=r"worker 0: x has .* NaN or Inf among 100"):
        reduce.mean(comm, state, rows, KEY)


def test_bad_input_is_named():
    comm, C = compress.Local(2), compress.Eden(2)
    for arguments, error, match in (
        ({"compressor": 3}, TypeError, "compressor must be a Compressor, got 3"),
        ({"down": "Eden"}, TypeError, "down must be a Compressor, got 'Eden'"),
        ({"pattern": "ring"}, ValueError, "pattern must be one of auto, gather, two-shot, got 'ring'"),
        ({"memory": None}, ValueError, "memory must be one of none, error, shift, got None"),
        ({"decay": 1.5}, ValueError, r"decay must be in \[0, 1\], got 1.5"),
        ({"decay": "1"}, TypeError, "decay must be a number"),
        ({"shift_step": 0}, ValueError, r"shift_step must be in \(0, 1\], got 0"),
    ):
        with pytest.raises(error, match=match):
            AllReduce(**({"compressor": C} | arguments))
    with pytest.raises(TypeError, match="give d, or like=x"):
        AllReduce(C).init(comm)
    with pytest.raises(TypeError, match="it has no constant"):
        AllReduce(compress.UniformQuantizer(bits=2, unbiased=True), memory="error").init(comm, 100)
    reduce = AllReduce(C, memory="error")
    state = reduce.init(comm, 100)
    for rows, match in (
        (gaussian(3, 100), "3 rows, of 2 workers hosted here"),
        (gaussian(2, 99), r"rows of \[99, 99\] coordinates, float32; the state is of \[100, 100\]: make one by init"),
        ([np.ones(100, np.float32), np.ones(99, np.float32)], r"rows of \[100, 99\]"),
        (gaussian(2, 100, np.float64), r"float64; the state is of \[100, 100\]"),
    ):
        with pytest.raises(ValueError, match=match):
            reduce.mean(comm, state, rows, KEY)
    with pytest.raises(ValueError, match="make one by init"):
        AllReduce(C).mean(comm, state, gaussian(2, 100), KEY)
    for each in (reduce, AllReduce(C)):
        with pytest.raises(ValueError, match="0 rows, of 2 workers hosted here"):
            each.mean(comm, each.init(comm, 100), [], KEY)
    shifts = AllReduce(C, pattern="two-shot", memory="shift")
    with pytest.raises(ValueError, match="a reduce-scatter has errors or no memory, not shifts"):
        shifts.reduce_scatter(comm, shifts.init(comm, 100), gaussian(2, 100), KEY)
    assert comm.ledger.messages == 0
