"""run: the loop, its rules, divergence, checkpoints and several processes."""

import builtins
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import namedtuple
from dataclasses import dataclass, replace
from typing import NamedTuple

import backends
import numpy as np
import pytest

import compress
from compress import Key
from compress._gpu import device
from compress.comm import Communicator

module = importlib.import_module("compress.optimizers.run")

N, D = 4, 6
X0 = np.ones(D)


@pytest.fixture(scope="module")
def problem():
    return compress.Quadratic.random(n=N, d=D, mu=1, L=10, seed=2)


@pytest.fixture
def diana(problem):
    return compress.DIANA.theoretical(problem, compress.RandK(0.5))


@dataclass(frozen=True)
class Descent(compress.Method):
    """Gradient descent whose state has a field of every kind; `fail` is raised in step `at`."""

    gamma: float = 0.05
    fail: Exception | None = None
    at: int = 0

    class State(NamedTuple):
        x: np.ndarray
        rows: list
        previous: np.ndarray | None
        count: int
        weight: float
        single: np.float32
        flag: bool
        oracle: int
        scratch: np.ndarray

    def limits(self, problem):
        return {}

    def init(self, problem, comm, x0):
        x = self._start(problem, comm.n, x0)
        state = [[np.zeros(i) for i in range(3)], None, 0, 0.1, np.float32(0.3), False, 0]
        return self.State(x, *state, np.full(problem.d, np.nan))

    def step(self, problem, comm, state, key):
        if self.fail is not None and key.round == self.at:
            raise self.fail
        assert [type(value) for value in state[2:]][-5:] == [float, np.float32, bool, int, np.ndarray]
        g = problem.full_gradient(state.x)
        state.x.__isub__(self.gamma * g * (0.5 if state.flag else 1))
        state.rows[2].__iadd__(key.fold(1).word / 2**64)
        state.x[0] += 1e-3 * state.rows[2][0] * state.single * state.weight
        after = {"previous": g, "count": state.count + 1, "weight": state.weight / 3, "flag": not state.flag}
        return state._replace(**after, single=state.single * np.float32(0.9), oracle=state.oracle + comm.n)


def same(a, b):
    """Bit for bit, but for seconds."""
    for name in ("step", "error", "bits_up", "bits_down", "wire_bytes", "oracle", "x"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
        assert getattr(a, name).dtype == getattr(b, name).dtype
    assert (a.reason, a.method, a.n, a.measure) == (b.reason, b.method, b.n, b.measure)
    return True


class Clock:
    """Stands for perf_counter: time passes when the test says so."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)
    return clock


def slowed(monkeypatch, method, clock, seconds):
    """Steps of the method's class take so long."""
    step = type(method).step

    def slow(*arguments):
        clock.now += seconds
        return step(*arguments)

    monkeypatch.setattr(type(method), "step", slow)


# The loop


@pytest.mark.parametrize("every", [1, 7, 100])
def test_a_trace_is_what_a_loop_written_by_hand_sees(problem, diana, every):
    comm, hand = compress.Local(N), compress.Local(N)
    trace = compress.run(diana, problem, comm, X0, Key(5), steps=30, every=every)
    state, rows = diana.init(problem, hand, X0), []
    start = np.sum((X0 - problem.x_star) ** 2)
    for k in range(31):
        if k % every == 0 or k == 30:
            ledger = hand.ledger
            error = np.sum((state.x - problem.x_star) ** 2) / start
            rows.append((k, error, ledger.bits_up, ledger.bits_down, ledger.wire_bytes, state.oracle))
        state = diana.step(problem, hand, state, Key(5).at(k))
    step, error, *counts = zip(*rows, strict=True)
    assert trace.step.tolist() == list(step)
    np.testing.assert_allclose(trace.error, error, rtol=1e-12)
    assert [trace.bits_up.tolist(), trace.bits_down.tolist(), trace.wire_bytes.tolist(), trace.oracle.tolist()] == [
        list(column) for column in counts
    ]
    assert trace.error[0] == 1 and np.all(np.diff(trace.seconds) > 0) and trace.seconds[0] == 0
    assert trace.reason == "30 steps taken" and trace.method == repr(diana) and trace.n == N
    assert comm.ledger.bits_up == trace.bits_up[-1]


def test_the_last_iterate(problem, diana):
    state, comm = diana.init(problem, compress.Local(N), X0), compress.Local(N)
    for k in range(9):
        state = diana.step(problem, comm, state, Key(0).at(k))
    trace = compress.run(diana, problem, compress.Local(N), X0, steps=9)
    assert trace.x.tobytes() == state.x.tobytes()
    assert np.array_equal(X0, np.ones(D)), "x0 was changed"
    assert compress.run(diana, problem, compress.Local(N), X0.astype(np.float32), steps=2).x.dtype == np.float32


def test_bits_count_from_the_start_of_the_run(problem, diana):
    comm = compress.Local(N)
    first, second = (compress.run(diana, problem, comm, X0, steps=5) for _ in range(2))
    assert same(first, second)
    assert comm.ledger.bits_up == 2 * first.bits_up[-1]


# Rules


def test_it_stops_at_the_first_row_with_the_error(problem, diana):
    whole = compress.run(diana, problem, compress.Local(N), X0, steps=2000, every=3)
    trace = compress.run(diana, problem, compress.Local(N), X0, steps=2000, every=3, until=1e-6)
    assert trace.reason == "error 1e-06 reached"
    assert trace.error[-1] <= 1e-6 < trace.error[:-1].min()
    assert np.array_equal(trace.error, whole.error[: len(trace)])


def test_it_stops_when_the_bits_are_sent(problem, diana):
    a_step = int(compress.run(diana, problem, compress.Local(N), X0, steps=1).bits_up[-1])
    trace = compress.run(diana, problem, compress.Local(N), X0, steps=100, bits=7 * a_step - 1)
    assert trace.step[-1] == 7 and trace.reason == f"{7 * a_step - 1:g} bits sent"
    assert len(compress.run(diana, problem, compress.Local(N), X0, steps=100, bits=0)) == 1


def test_it_stops_after_the_seconds_and_counts_steps_alone(problem, monkeypatch, clock):
    method = Descent()
    slowed(monkeypatch, method, clock, 2)

    def error(x):
        clock.now += 1000
        return 1.0

    trace = compress.run(method, problem, compress.Local(N), X0, steps=100, every=3, seconds=11, error=error)
    assert trace.seconds.tolist() == [0, 6, 12] and trace.step.tolist() == [0, 3, 6]
    assert trace.reason == "11 seconds spent"


def test_an_error_of_ones_own(problem):
    class Unknown(compress.Problem):
        n, d = N, D

        def value(self, x):
            return x @ x / 2

        def gradient(self, i, x, out=None):
            return np.add(x, 0, out=out)

    def height(x):
        return x[0] - 2  # negative is allowed

    trace = compress.run(Descent(), Unknown(), compress.Local(N), X0, steps=100, error=height, until=-1.5)
    assert trace.measure == "height" and trace.error[0] == -1 and trace.error[-1] == trace.x[0] - 2 <= -1.5
    with pytest.raises(ValueError, match="Unknown has no x_star: give error="):
        compress.run(Descent(), Unknown(), compress.Local(N), X0, steps=1)
    assert compress.run(Descent(), problem, compress.Local(N), X0, steps=1, error=lambda x: 0).measure == "error"
    with pytest.raises(ValueError, match="error at x0 is nan"):
        compress.run(Descent(), problem, compress.Local(N), X0, steps=1, error=lambda x: np.nan)
    with pytest.raises(ValueError, match="x0 is x"):
        compress.run(Descent(), problem, compress.Local(N), problem.x_star.copy(), steps=1)


@pytest.mark.parametrize(
    ("named", "error", "match"),
    [
        ({"method": "DIANA"}, TypeError, "method must be a Method, got 'DIANA'"),
        ({"comm": 4}, TypeError, "comm must be a Communicator, got 4"),
        ({"key": 4}, TypeError, "key must be a Key, got 4"),
        ({"key": Key(1).worker(2)}, ValueError, r"without a worker, got Key\(1\).worker\(2\)"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 1e6}, TypeError, "steps must be an integer"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"until": "1e-6"}, TypeError, "until must be a number"),
        ({"until": np.nan}, ValueError, "until must be finite"),
        ({"bits": -1}, ValueError, "bits must be finite and at least 0, got -1"),
        ({"seconds": True}, TypeError, "seconds must be a number"),
        ({"seconds": np.inf}, ValueError, "seconds must be finite"),
        ({"checkpoint_every": -1}, ValueError, "checkpoint_every must be finite and at least 0"),
        ({"error": 1.0}, TypeError, "error must be a function"),
        ({"x0": np.ones(D + 1)}, ValueError, f"x0 has {D + 1} coordinates"),
        ({"x0": np.full(D, np.inf)}, ValueError, "Inf"),
        ({"comm": compress.Local(N + 1)}, ValueError, f"{N + 1} workers"),
    ],
)
def test_arguments_are_checked(problem, named, error, match):
    given = {"method": Descent(), "problem": problem, "comm": compress.Local(N), "x0": X0, "steps": 1} | named
    with pytest.raises(error, match=match):
        compress.run(**given)


# Divergence


@pytest.mark.parametrize("every", [1, 10**6])
@pytest.mark.parametrize("gamma", [0.5, 1e10, 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["DIANA", "EF21", "MARINA"])
def test_a_run_that_diverges_ends_with_its_trace(problem, name, dtype, gamma, every):
    C = compress.TopK(0.5) if name == "EF21" else compress.RandK(0.5)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        method = replace(getattr(compress, name).theoretical(problem, C), gamma=gamma)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trace = compress.run(method, problem, compress.Local(N), X0.astype(dtype), steps=10**6, every=every)
    caught = [w for w in seen if "is above" not in str(w.message)]  # the step size is, and init says so
    assert [(w.category, str(w.message)) for w in caught] == [(RuntimeWarning, trace.reason)]
    assert len(seen) > 1 and {w.filename for w in seen} == {__file__}
    step, finite = trace.step[-1], np.flatnonzero(np.isfinite(trace.error))[-1]
    assert trace.reason == (
        f"diverged at step {step}: the last finite error is {trace.error[finite]:.6g}, at step {trace.step[finite]}"
    )
    assert step < 200 and not trace.error[-1] <= 1e12 and np.all(trace.error[:-1] <= 1e12)


def test_a_compressor_that_refuses_what_has_blown_up(problem):
    """Only the ValueError tells: the step raises it after its own update, and no row was due."""

    @dataclass(frozen=True)
    class Jump(Descent):
        def step(self, problem, comm, state, key):
            state = super().step(problem, comm, state, key)
            if key.round == 3:
                state.x[0] = np.inf
                compress.Identity().encode(state.x, key)
            return state

    with pytest.warns(RuntimeWarning, match="diverged at step 4: the last finite error is 1, at step 0"):
        trace = compress.run(Jump(), problem, compress.Local(N), X0, steps=100, every=50)
    assert trace.step.tolist() == [0, 4] and not np.isfinite(trace.error[-1])


def test_an_error_of_zero_at_the_start_has_no_scale(problem):
    trace = compress.run(Descent(), problem, compress.Local(N), X0, steps=5, error=lambda x: 1e20 * abs(x[0] - 1))
    assert trace.reason == "5 steps taken"


@pytest.mark.parametrize("fail", [ValueError("of another kind"), RuntimeError("link down")])
def test_what_a_step_raises_has_a_note(problem, fail):
    method = Descent(fail=fail, at=13)
    with pytest.raises(type(fail), match=str(fail)) as caught:
        compress.run(method, problem, compress.Local(N), X0, steps=100, every=10)
    assert caught.value.__notes__ == [f"in step 13 of {method!r}"]


# Checkpoints


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.npz"


def broken_off(monkeypatch, method, k, *arguments, **named):
    """A run that somebody ends in step k."""
    step = type(method).step

    def until_k(self, problem, comm, state, key):
        if key.round == k:
            raise KeyboardInterrupt
        return step(self, problem, comm, state, key)

    with monkeypatch.context() as patch:
        patch.setattr(type(method), "step", until_k)
        with pytest.raises(KeyboardInterrupt):
            compress.run(method, *arguments, **named)


def all_methods():
    problem = compress.Quadratic.random(n=N, d=D, mu=1, L=10, seed=2)
    randk, topk = compress.RandK(0.5), compress.TopK(0.5)
    shifts = np.random.default_rng(0).standard_normal((N, D))
    yield Descent()
    yield compress.DCGDShift.theoretical(problem, randk, shifts)
    for cls in (compress.DCGD, compress.DCGDStar, compress.DIANA, compress.RandDIANA):
        yield cls.theoretical(problem, randk)
    for cls in (compress.GDCI, compress.VRGDCI, compress.MARINA):
        yield cls.theoretical(problem, randk)
    for cls in (compress.EF14, compress.EF21):
        yield cls.theoretical(problem, topk)
    yield compress.SGD.theoretical(problem, compress.Nice(N, 2))


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("method", list(all_methods()), ids=lambda method: type(method).__name__)
def test_a_run_goes_on_with_the_same_bits(problem, monkeypatch, path, method, every):
    def comm():
        return compress.Local(1 if isinstance(method, compress.SGD) else N)

    whole = compress.run(method, problem, comm(), X0, Key(7), steps=30, every=every)
    named = {"steps": 30, "every": every, "checkpoint": path, "checkpoint_every": 0}
    broken_off(monkeypatch, method, 11, problem, comm(), X0, Key(7), **named)
    broken_off(monkeypatch, method, 22, problem, comm(), X0, Key(7), **named)
    with np.load(path) as file:  # refuses pickles
        assert file["rows"]["step"][-1] == 22 - 22 % every
        assert not any("scratch" in name for name in file.files)
        seconds = file["rows"]["seconds"]
    last = comm()
    trace = compress.run(method, problem, last, X0, Key(7), **named)
    assert same(trace, whole) and last.ledger.bits_up == whole.bits_up[-1]
    assert np.array_equal(trace.seconds[: len(seconds)], seconds) and np.all(np.diff(trace.seconds) > 0)
    assert [p.name for p in path.parent.iterdir()] == ["run.npz"]


def test_a_finished_run_returns_at_once_and_goes_further_where_it_may(problem, monkeypatch, diana, path):
    named = {"checkpoint": path, "every": 5}
    ended = compress.run(diana, problem, compress.Local(N), X0, steps=20, **named)
    saved = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(type(diana), "step", None)
        again = compress.run(diana, problem, compress.Local(N), X0, steps=20, **named)
        early = compress.run(diana, problem, compress.Local(N), X0, steps=20, until=0.99, **named)
    assert same(again, ended) and np.array_equal(again.seconds, ended.seconds) and path.read_bytes() == saved
    assert early.reason == "error 0.99 reached"
    further = compress.run(diana, problem, compress.Local(N), X0, steps=43, **named)
    assert same(further, compress.run(diana, problem, compress.Local(N), X0, steps=43, every=5))
    again = compress.run(diana, problem, compress.Local(N), X0, steps=52, **named)
    assert again.step[-4:].tolist() == [43, 45, 50, 52]


def test_a_run_that_has_diverged_stays_so(problem, path):
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="diverged"):
            trace = compress.run(Descent(gamma=9.0), problem, compress.Local(N), X0, steps=100, checkpoint=path)
    assert not trace.error[-1] <= 1e12


def test_it_saves_as_often_as_it_should(problem, monkeypatch, clock, path):
    method, saved = Descent(), []
    slowed(monkeypatch, method, clock, 2)
    save = module._Checkpoint.save
    monkeypatch.setattr(
        module._Checkpoint,
        "save",
        lambda self, state, rows, sent: saved.append(rows.last.step) or save(self, state, rows, sent),
    )
    compress.run(method, problem, compress.Local(N), X0, steps=11, checkpoint=path, checkpoint_every=5)
    assert saved == [0, 3, 6, 9, 11]


def test_a_kill_while_saving_loses_nothing(problem, monkeypatch, diana, path):
    whole = compress.run(diana, problem, compress.Local(N), X0, steps=20)
    named = {"steps": 20, "checkpoint": path, "checkpoint_every": 0}
    fsync, calls = os.fsync, []

    def killed(descriptor):
        calls.append(descriptor)
        if len(calls) == 9:
            raise KeyboardInterrupt
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            compress.run(diana, problem, compress.Local(N), X0, **named)
    assert sorted(p.name for p in path.parent.iterdir()) == ["run.npz", "run.npz.tmp"]
    assert same(compress.run(diana, problem, compress.Local(N), X0, **named), whole)


SCRIPT = """
import sys, numpy as np, compress
problem = compress.Quadratic.random(n=2, d=5, mu=1, L=10)
method = compress.DIANA.theoretical(problem, compress.RandK(0.5))
run = lambda steps, **named: compress.run(method, problem, compress.Local(2), np.ones(5), steps=steps, **named)
if __name__ == "__main__":
    run(10**7, checkpoint=sys.argv[1], checkpoint_every=0.02)
"""


def test_a_killed_process_goes_on(path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)])
    saved = 0
    try:
        while saved < 50 and process.poll() is None:
            time.sleep(0.02)
            if path.exists():
                with np.load(path) as file:
                    saved = file["rows"]["step"][-1]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    names = {}
    exec(SCRIPT, names)
    with np.load(path) as file:
        steps = int(file["rows"]["step"][-1]) + 30
    assert same(names["run"](steps, checkpoint=path), names["run"](steps))


CHANGES = {
    "method": {"method": Descent(0.04)},
    "problem": {"problem": type("Other", (compress.Quadratic,), {}).random(n=N, d=D, mu=1, L=10, seed=2)},
    "value": {"problem": compress.Quadratic.random(n=N, d=D, mu=1, L=10, seed=3)},
    "x0": {"x0": np.nextafter(X0, 2)},
    "key": {"key": Key(1)},
    "every": {"every": 2},
    "error": {"error": lambda x: 2.0},
    "state": {},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_run_is_named(problem, monkeypatch, path, name):
    given = {"method": Descent(), "problem": problem, "comm": compress.Local(N), "x0": X0, "key": Key(0), "steps": 3}
    compress.run(**given, checkpoint=path)
    if name == "state":
        monkeypatch.setattr(Descent, "State", namedtuple("State", [*Descent.State._fields[:-2], "oracle", "buffer"]))
    with pytest.raises(ValueError, match=rf"run.npz is of another run: {name} was .*, is ") as caught:
        compress.run(**given | CHANGES[name], checkpoint=path)
    others = {f"{other} was" for other in CHANGES} - {f"{name} was"}
    if name != "problem":  # its x* is another one too
        assert not any(other in str(caught.value) for other in others)


def halves(n, swapped=False):
    """Rows in two parts, of which two rows have changed places, or not."""
    order = np.arange(n)
    if swapped:
        order[[0, -1]] = order[[-1, 0]]
    return np.array_split(order, 2)


def models():
    """(name of what differs, a problem, another one), where the values at zero know no difference."""
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((12, D)), np.where(np.arange(12) % 2, -1.0, 1.0)
    last = b * np.where(np.arange(12) == 11, -1, 1)
    yield "value", *(compress.Quadratic.random(n=2, d=D, mu=1, L=10, seed=seed) for seed in (2, 3))
    yield "value", *(compress.Logistic(A, labels, 0.1, workers=2) for labels in (b, last))
    yield "gradients", *(compress.Ridge(A, b, 0.1, parts=halves(12, swapped)) for swapped in (False, True))
    yield "problem", *(compress.Ridge(A, b, 0.1, workers=2, regularizer=compress.L1(lam)) for lam in (0.1, 0.2))
    boxed = {"regularizer": compress.Box(0.0, 9.0)}
    yield "value", *(compress.Logistic(A, labels, 0.1, workers=2, **boxed) for labels in (b, last))
    yield "value", *(compress.Logistic(A, labels, 0.1) for labels in (b, last))  # for SGD


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "problem", "other"), list(models()))
def test_other_data_are_known_where_x0_is_zero(path, name, problem, other, dtype):
    zero = np.zeros(D, dtype)
    assert problem.value(zero) == other.value(zero)
    method = (
        compress.DIANA.theoretical(problem, compress.RandK(0.5))
        if problem.n == 2
        else compress.SGD.theoretical(problem, compress.Nice(problem.n, 2))
    )
    n = 2 if problem.n == 2 else 1
    named = {"steps": 3, "checkpoint": path, "error": lambda x: 1.0 + float(x @ x)}
    for _ in range(2):
        compress.run(method, problem, compress.Local(n), zero, **named)
    with pytest.raises(ValueError, match=rf"is of another run: .*{name} was .*, is "):
        compress.run(method, other, compress.Local(n), zero, **named)


def test_a_gradient_that_raises_where_the_data_are_looked_at(problem, path):
    class Fussy(compress.Quadratic):
        def gradient(self, i, x, out=None):
            raise RuntimeError("no data here")

    problem = Fussy(problem.A, problem.b)
    with pytest.raises(RuntimeError, match="no data here") as caught:
        compress.run(Descent(), problem, compress.Local(N), X0, steps=3, error=lambda x: 1.0, checkpoint=path)
    assert "near x0" in caught.value.__notes__[0]


def test_what_a_method_holds_is_described_in_full():
    @dataclass
    class Holds:
        values: object

    class Plain:
        pass

    a, b = np.zeros(3000), np.zeros(3000)
    b[1500] = 1e-12  # repr would leave it out
    described = module._described
    assert repr([a]) == repr([b])
    for held in (lambda x: x, lambda x: [x, 1], lambda x: (1, (x,)), lambda x: Holds(x), lambda x: [Holds((x,))]):
        assert described(held(a)) == described(held(a.copy())) != described(held(b))
    assert described((a, b)) != described((b, a)) and described([1]) != described((1,))
    assert described([Plain()]) == described([Plain()]) == "list(Plain)"  # without an address


def test_arrays_in_a_method_count(problem, path):
    shifts = np.zeros((N, D))
    for value in (0, 0.5):
        shifts[2, 3] = value
        method = compress.DCGDShift.theoretical(problem, compress.RandK(0.5), shifts.copy())
        if value:
            with pytest.raises(ValueError, match=r"method was .*crc32"):
                compress.run(method, problem, compress.Local(N), X0, steps=3, checkpoint=path)
        else:
            compress.run(method, problem, compress.Local(N), X0, steps=3, checkpoint=path)


def test_damaged_files_are_named(problem, diana, path):
    def go():
        return compress.run(diana, problem, compress.Local(N), X0, steps=2, checkpoint=path)

    whole = go()
    good = path.read_bytes()
    for cut in range(0, len(good), 61):
        path.write_bytes(good[:cut])
        with pytest.raises(ValueError, match=rf"{path} is damaged"):
            go()
    refused = 0
    for position in range(0, len(good), 13):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        try:
            assert same(go(), whole)  # a date, say
        except ValueError as error:
            refused += str(path) in str(error)
    assert refused > len(good) / 13 / 2
    path.write_bytes(good.replace(f"({D},)".encode(), f"({D - 1},)".encode()))  # arrays a little shorter
    with pytest.raises(ValueError, match=r"does not match its checksum"):
        go()
    np.savez(path, x=X0)
    with pytest.raises(ValueError, match=r"is damaged, or of another library: KeyError.*meta"):
        go()


def test_a_folder_that_is_not_there_is_known_at_the_start(problem, diana, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        compress.run(diana, problem, compress.Local(N), X0, steps=10**9, checkpoint=tmp_path / "nowhere" / "run.npz")


# Several processes


class Half(Communicator):
    """One of two processes, which are threads that meet."""

    def __init__(self, n, process, meeting, slots):
        super().__init__(n, range(n // 2) if process == 0 else range(n // 2, n), process, 2)
        self._meeting, self._slots = meeting, slots

    def _meet(self, mine):
        self._slots[self.process] = mine
        self._meeting.wait()
        both = list(self._slots)
        self._meeting.wait()
        return both

    def _gather(self, messages, lengths=None):
        return [message for half in self._meet(messages) for message in half]

    def _swap(self, messages, lengths=None):
        raise AssertionError("nothing here is told to one alone")

    def agree(self, value):
        return self._meet(value)[0]


def on_both(function, n=N + 1):
    """What function(communicator) returns on each of two processes; raises what the first of them to fail did."""
    meeting, slots, results, failures = threading.Barrier(2, timeout=60), [None, None], [None, None], []

    def work(process):
        try:
            results[process] = function(Half(n, process, meeting, slots))
        except BaseException as failure:
            failures.append(failure)
            meeting.abort()

    threads = [threading.Thread(target=work, args=(process,)) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


@pytest.fixture(scope="module")
def shared():
    """A problem whose workers are spread unevenly, and a method for it."""
    problem = compress.Quadratic.random(n=N + 1, d=D, mu=1, L=10, seed=2)
    return compress.DIANA.theoretical(problem, compress.RandK(0.5)), problem


def test_processes_see_what_one_alone_sees(shared):
    method, problem = shared
    alone = compress.run(method, problem, compress.Local(N + 1), X0, steps=500, until=1e-4)
    for trace in on_both(lambda comm: compress.run(method, problem, comm, X0, steps=500, until=1e-4)):
        assert same(trace, alone)


def test_processes_stop_by_the_clock_of_the_first(shared, monkeypatch, path):
    method, problem = shared
    clocks = threading.local()

    def clock():
        clocks.now = getattr(clocks, "now", 0) + (1 if threading.current_thread().name.endswith("0") else 50)
        return clocks.now

    monkeypatch.setattr(module, "perf_counter", clock)

    def work(comm):
        threading.current_thread().name = f"process {comm.process}"
        return compress.run(method, problem, comm, X0, steps=500, seconds=7, checkpoint=path, checkpoint_every=2)

    first, second = on_both(work)
    assert same(first, second) and first.step[-1] == 7
    assert np.array_equal(first.seconds, second.seconds)


def test_each_process_saves_its_own(shared, monkeypatch, path):
    method, problem = shared
    whole = compress.run(method, problem, compress.Local(N + 1), X0, steps=20)
    folder, names = path.parent, ["run.1.npz", "run.1.npz.before", "run.npz", "run.npz.before"]

    def go(comm, steps=20):
        return compress.run(method, problem, comm, X0, steps=steps, checkpoint=path, checkpoint_every=0)

    on_both(lambda comm: go(comm, 9))
    assert sorted(p.name for p in folder.iterdir()) == names
    kept = {name: (folder / name).read_bytes() for name in names}

    def restore(**absent):
        for name in names:
            (folder / name).unlink(missing_ok=True)
            if name not in absent.values():
                (folder / name).write_bytes(kept[name])

    # killed when the first had saved step 9 and the second, with 8 and 7, had not begun, or was between its renames
    on_both(lambda comm: go(comm, 10))
    (folder / "run.1.npz").write_bytes(kept["run.1.npz"])
    (folder / "run.1.npz.before").write_bytes(kept["run.1.npz.before"])
    for trace in on_both(go):
        assert same(trace, whole)
    restore(newest="run.1.npz")
    for trace in on_both(go):
        assert same(trace, whole)
    restore(newest="run.1.npz", before="run.1.npz.before")
    with pytest.raises(ValueError, match=r"no step that all processes have saved, but \[8, 9\] \(process 0\), \[\]"):
        on_both(go)
    restore()
    with pytest.raises(ValueError, match="comm was 5 workers, 2 processes, is 5 workers, 1 processes"):
        go(compress.Local(N + 1))


class Own(compress.Problem):
    """The data of the workers hosted by a process, whose value is that of no other."""

    shared = False

    def __init__(self, whole, comm):
        self.n, self.d, self.x_star = whole.n, whole.d, whole.x_star
        self._whole, self._hosted = whole, comm.workers

    def value(self, x):
        return sum(float(x @ self.gradient(i, x)) for i in self._hosted)

    def gradient(self, i, x, out=None):
        assert i in self._hosted
        return self._whole.gradient(i, x, out)


def test_processes_that_hold_their_own_data_go_on(shared, path):
    method, whole = shared
    other = compress.Quadratic(whole.A, np.concatenate([whole.b[:-1], 2 * whole.b[-1:]]))
    alone = compress.run(method, whole, compress.Local(N + 1), X0, steps=20)

    def go(comm, steps, problem=whole):
        own = Own(problem, comm)
        return compress.run(method, own, comm, X0, steps=steps, checkpoint=path, error=lambda x: float(x @ x))

    on_both(lambda comm: go(comm, 9))
    for trace in on_both(lambda comm: go(comm, 20)):
        assert trace.step.tolist() == list(range(21)) and trace.x.tobytes() == alone.x.tobytes()
    with pytest.raises(ValueError, match=r"run.1.npz is of another run: value was .*; gradients was"):
        on_both(lambda comm: go(comm, 20, other))  # on process 1


def test_a_process_that_does_not_see_its_files_is_told(shared, path):
    method, problem = shared
    (path.parent / "elsewhere").mkdir()

    def go(comm, folder="."):
        where = path.parent / folder / path.name if comm.process else path
        return compress.run(method, problem, comm, X0, steps=5, checkpoint=where)

    on_both(go)
    with pytest.raises(ValueError, match=r"elsewhere/run.1.npz: process 1 does not see that it has saved step 5"):
        on_both(lambda comm: go(comm, "elsewhere"))


def test_a_kill_in_the_first_save_starts_again(shared, monkeypatch, path):
    method, problem = shared

    def go(comm):
        return compress.run(method, problem, comm, X0, steps=5, checkpoint=path)

    broken_off(monkeypatch, method, 0, problem, compress.Local(N + 1), X0, steps=5)
    with monkeypatch.context() as patch:
        patch.setattr(type(method), "step", None)
        with pytest.raises(TypeError):
            on_both(go)
    (path.parent / "run.1.npz").unlink()
    first, second = on_both(go)
    assert same(first, second) and same(first, compress.run(method, problem, compress.Local(N + 1), X0, steps=5))


def test_a_divergence_is_seen_on_all_processes_at_once(shared):
    method, problem = shared
    method = replace(method, gamma=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traces = on_both(lambda comm: compress.run(method, problem, comm, X0, steps=10**6, every=10**5))
    assert same(*traces) and traces[0].reason.startswith("diverged")


def test_a_compressor_that_refuses_on_one_process_is_an_error(shared):
    """Its neighbour waits for messages and cannot be told."""
    method, problem = shared

    @dataclass(frozen=True)
    class Jump(type(method)):
        def step(self, problem, comm, state, key):
            if key.round == 3 and comm.process == 1:
                state.x[0] = np.inf
                compress.Identity().encode(state.x, key)
            return super().step(problem, comm, state, key)

    method = Jump(method.compressor, method.gamma, method.shift_step)
    with pytest.raises(ValueError, match="Inf") as caught:
        on_both(lambda comm: compress.run(method, problem, comm, X0, steps=100, every=50))
    assert caught.value.__notes__ == [f"in step 3 of {method!r}"]


# The bar


def test_a_bar_on_stderr(problem, diana, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    trace = compress.run(diana, problem, compress.Local(N), X0, steps=40, progress=True)
    out, err = capsys.readouterr()
    assert not out
    assert "DIANA" in err and "40/40" in err and f"error {trace.error[-1]:.2e}" in err
    assert f"{trace.bits_up[-1] / N / 1e6:.3g} Mbit per worker" in err


def test_a_bar_is_drawn_ten_times_a_second(problem, monkeypatch, clock):
    from rich.progress import Progress

    drawn = []
    monkeypatch.setattr(Progress, "refresh", lambda self: drawn.append(clock.now))
    method = Descent()
    slowed(monkeypatch, method, clock, 0.01)
    compress.run(method, problem, compress.Local(N), X0, steps=1000, progress=True)
    assert 90 <= len(drawn) <= 110


def test_a_bar_without_rich(problem, diana, monkeypatch):
    found = builtins.__import__

    def without_rich(name, *arguments, **named):
        if name.startswith("rich"):
            raise ImportError(name)
        return found(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    with pytest.raises(ImportError, match=r'needs rich: pip install "compress-kernels\[bench\]"'):
        compress.run(diana, problem, compress.Local(N), X0, steps=4, progress=True)


# A GPU


@pytest.fixture(params=["grid", "gpu"])
def cupy(request):
    backends.use(request.param)
    yield device.cupy()
    device._cupy = None


def test_a_run_on_a_device(cupy, monkeypatch, path):
    """x <- 0.9 x + 0.1 x* through a compressor, with the state on a device all along."""

    class Centre(compress.Problem):
        n, d, x_star = 1, D, np.arange(1.0, D + 1)

        def value(self, x):
            return x.max()

        def gradient(self, i, x, out=None):
            out[...] = x - cupy.asarray(self.x_star)
            return out

    @dataclass(frozen=True)
    class Approach(compress.Method):
        class State(NamedTuple):
            x: object
            target: object
            oracle: int

        def limits(self, problem):
            return {}

        def init(self, problem, comm, x0):
            return self.State(self._start(problem, comm.n, x0), cupy.asarray(problem.x_star), 0)

        def step(self, problem, comm, state, key):
            C, key = compress.Identity(), key.worker(0)
            (message,) = comm.allgather([C.encode(state.target - state.x, key)])
            C.decode_add(message, key, state.x, 0.1)
            return state._replace(oracle=state.oracle + 1)

    given = Approach(), Centre(), compress.Local(1), cupy.asarray(np.zeros(D))
    trace = compress.run(*given, steps=200, until=1e-6, every=2)
    assert isinstance(trace.x, np.ndarray) and trace.reason == "error 1e-06 reached"
    np.testing.assert_allclose(trace.error, 0.81 ** trace.step.astype(float), rtol=1e-9)
    named = {"steps": 200, "until": 1e-6, "every": 2, "checkpoint": path, "checkpoint_every": 0}
    broken_off(monkeypatch, *given[:1], 31, *given[1:], **named)
    assert same(compress.run(*given[:2], compress.Local(1), given[3], **named), trace)
