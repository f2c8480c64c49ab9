"""run: the loop around a method. It measures, stops and saves; what a step does is the method's.

Design note
-----------
A. All decisions follow from the rows of the trace, at the time they are recorded, so that every process stops at the
   same step. What `Method.iterate` gives is the same on all, bit for bit, whatever part of it each holds, and so is its
   distance from an x* that is agreed on once. A clock, or a function that measures the error, may say something else on
   each: rows are then those of process 0.
B. Between rows a step costs its key and a look at the largest coordinate: a run that diverges is seen before its
   compressors refuse to encode what is not finite. Where processes hold parts of the iterate, none can look for
   all: on every engine it is then seen at the next row.
C. A checkpoint is state, rows and ledger after a step, in one file a process, under a temporary name until it is
   whole. With several processes the file before it stays too: whenever they are killed, there is a step that all have.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np

from .. import kernels
from ..comm import Communicator
from ..compressor import finite_number, positive_int
from ..key import Key
from .method import Method, gradient, prox, zeros_like
from .trace import COLUMNS, Row, Trace

_DIVERGED = 1e12  # times the error at the start
_FAR = 1e15  # a coordinate so large has a row recorded at once
_FORMAT = 1  # of checkpoints
_PACKED = struct.Struct("".join(COLUMNS[name].char for name in Row._fields))  # a row of a table


def run(
    method: Method,
    problem,
    comm: Communicator,
    x0,
    key: Key = Key(0),  # noqa: B008 (it is frozen)
    *,
    steps: int,
    until: float | None = None,
    bits: float | None = None,
    seconds: float | None = None,
    every: int = 1,
    error=None,
    progress: bool = False,
    checkpoint=None,
    checkpoint_every: float = 60,
) -> Trace:
    """Take steps of a method until a rule stops it; the trace of them.

    method, problem, comm, x0: as `Method.init` takes them.
    key: of all randomness, without a worker; step k, from x^k to x^(k+1), has key.at(k).
    steps: the most to take.
    until: an error to stop at. bits: stop when all workers together have sent so many. seconds: stop when steps have
        taken so long.
    every: steps from one row of the trace to the next; start and end have a row too. Rules are looked at where one is.
    error: a function of the iterate, which it must neither change nor keep; ||x - x*||^2 / ||x0 - x*||^2 unless given.
        Where every worker has an iterate of its own, a function is given their mean, as the trace has it, and what is
        measured without one is the mean of their distances.
    progress: whether to show a bar on stderr.
    checkpoint: a file to save the run in, at its start and end and after every `checkpoint_every` seconds of steps.
        Where it exists, the run goes on from there and ends with the same bits as one without a break; a run that has
        ended returns at once, or goes on where the rules now allow more. Of several processes, each further one has a
        file of its own, ".1" and so on before the ending, in a folder that process 0 sees.

    A run that diverges, to an error that is not finite or above 10^12 times that at the start, ends with a
    RuntimeWarning, and its trace is returned. (Of several processes, one whose compressor refuses within a step cannot
    tell the others: that is an error instead.)

    Raises TypeError or ValueError for an argument of another kind or range, for a problem without x_star where `error`
    is not given, for a checkpoint that is damaged or of another run; ImportError for a bar without rich. What a step
    raises has a note that says which step.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.DIANA.theoretical(problem, compress.RandK(0.5))
    >>> trace = compress.run(method, problem, compress.Local(4), np.zeros(20), steps=10_000, until=1e-10)
    >>> bool(trace.error[-1] <= 1e-10), trace.reason
    (True, 'error 1e-10 reached')
    """
    for value, kind, name in ((method, Method, "method"), (comm, Communicator, "comm"), (key, Key, "key")):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
    if key.worker_index is not None:
        raise ValueError(f"key must be one without a worker, got {key!r}")
    if not (error is None or callable(error)):
        raise TypeError(f"error must be a function of the iterate, got {error!r}")
    steps, every = positive_int(steps, "steps"), positive_int(every, "every")
    until = -math.inf if until is None else _number(until, "until", -math.inf)
    bits = math.inf if bits is None else _number(bits, "bits")
    seconds = math.inf if seconds is None else _number(seconds, "seconds")
    checkpoint_every = _number(checkpoint_every, "checkpoint_every")

    ledger, before = comm.ledger, replace(comm.ledger)
    state, x0 = method.init(problem, comm, x0), kernels.vector(x0, "x0").copy()
    if error is None:
        measure, measured = _relative_distance(problem, comm, x0)
    else:
        measure, measured = (lambda x: error(_mean(x))), _name(error)
    replicated = type(method).iterate is Method.iterate
    alike = error is None and seconds == math.inf and checkpoint is None

    def row(step, elapsed):
        value = float(measure(method.iterate(comm, state)))
        value, elapsed = (value, elapsed) if alike else comm.agree((value, elapsed))
        up, down = ledger.bits_up - before.bits_up, ledger.bits_down - before.bits_down
        return Row(step, value, up, down, ledger.wire_bytes - before.wire_bytes, state.oracle, elapsed)

    rows = _Rows([row(0, 0.0)])
    if not math.isfinite(rows.last.error):
        raise ValueError(f"the error at x0 is {rows.last.error}")
    limit = _DIVERGED * abs(rows.last.error) or sys.float_info.max  # an error of zero at the start has no scale
    rules = _Rules(steps, until, bits, seconds, limit)
    file, saved = None, None
    if checkpoint is not None or comm.processes > 1:
        fingerprint = _fingerprint(method, problem, comm, x0, state, key, every, measured)
        if differ := _differences(comm.agree(fingerprint), fingerprint, "{} is {} on process 0, {} on this one"):
            raise ValueError(f"every process must make the same run: {differ}")
        seen = _seen(problem, comm, x0, rows.last.error)
        if problem.shared and (value := comm.agree(seen["value"])) != seen["value"]:
            raise ValueError(
                f"every process must have the same data, but f + R is {value} on process 0 and {seen['value']} on this "
                "one: set problem.shared = False where each has those of its own workers alone"
            )
    if checkpoint is not None:
        file = _Checkpoint(checkpoint, comm, fingerprint, seen)
        if found := file.load(state):
            state, rows, sent = found
            for name, count in sent.items():
                setattr(ledger, name, getattr(before, name) + count)
            saved = rows.last

    def save():
        nonlocal saved
        sent = {name: count - getattr(before, name) for name, count in asdict(ledger).items()}
        file.save(state, rows, sent)
        saved = rows.last

    if file and not saved:
        save()
    bar = _bar(progress and comm.process == 0, type(method).__name__, comm.n, steps, rows.last)
    with np.errstate(over="ignore", invalid="ignore"), bar as show:
        while not (reason := rules.reason(rows)):
            start, begin = rows.last, perf_counter()
            try:
                for k in range(start.step, min(steps, start.step - start.step % every + every)):
                    state = method.step(problem, comm, state, key.at(k))
                    if every > 1 and replicated and not kernels.of(state.x).max_abs(state.x) < _FAR:
                        break
                if type(state.x) is not np.ndarray:
                    kernels.host(state.x[:1])  # waits for the device
            except Exception as failure:
                refused = isinstance(failure, ValueError) and comm.processes == 1
                if not (refused and rules.diverged(float(measure(method.iterate(comm, state))))):
                    failure.add_note(f"in step {k} of {method!r}")
                    raise
            rows.append(row(k + 1, start.seconds + perf_counter() - begin))
            show(rows.last)
            if file and rows.last.seconds - saved.seconds >= checkpoint_every:
                save()
        show(rows.last, end=True)
    if file and saved is not rows.last:
        save()
    if rules.diverged(rows.last.error):
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
    table = rows.table()
    columns = {name: table[name].copy() for name in Row._fields}
    x = _mean(kernels.host(method.iterate(comm, state)))
    return Trace(**columns, x=x, reason=reason, method=repr(method), n=comm.n, measure=measured)


def _number(value, name: str, least: float = 0) -> float:
    """value as a float; TypeError or ValueError that names the argument."""
    number = finite_number(value, name)
    if number < least:
        raise ValueError(f"{name} must be finite and at least {least}, got {value}")
    return number


def _name(function) -> str:
    """What is known of a function that has no text of its own."""
    name = getattr(function, "__name__", type(function).__name__)
    return "error" if name == "<lambda>" else name


def _mean(x):
    """x, or the mean of its rows where it has some."""
    return x if x.ndim == 1 else x.mean(axis=0)


def _relative_distance(problem, comm, x0):
    """The function x -> ||x - x*||^2 / ||x0 - x*||^2, its mean over rows where x has some, and its name."""
    try:
        x_star = kernels.host(kernels.taken(problem.x_star, "x_star"))
    except (AttributeError, NotImplementedError) as failure:
        raise ValueError(f"{type(problem).__name__} has no x_star: give error=, a function of the iterate") from failure
    x_star = kernels.like(x0, np.asarray(comm.agree(x_star), np.float64))

    def squared_distance(x):
        difference = x - x_star
        if difference.ndim == 1:
            return kernels.of(difference).sum_squares(difference)
        return float(np.mean([kernels.of(row).sum_squares(row) for row in difference]))

    start = squared_distance(x0)
    if start == 0:
        raise ValueError("x0 is x*, so that a relative error has no scale: give error=, a function of the iterate")
    return lambda x: squared_distance(x) / start, "‖x - x*‖² / ‖x⁰ - x*‖²"


class _Rows:
    """Rows in one buffer, 56 bytes each."""

    def __init__(self, rows=()):
        self._bytes = bytearray()
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        self.last = row
        self._bytes += _PACKED.pack(*row)

    def table(self) -> np.ndarray:
        return np.frombuffer(self._bytes, COLUMNS).copy()  # a view would keep the buffer from growing


@dataclass(frozen=True)
class _Rules:
    """When a run ends: at the first row that meets one of these, or has an error beyond `limit`."""

    steps: int
    until: float
    bits: float
    seconds: float
    limit: float

    def diverged(self, error: float) -> bool:
        return not abs(error) <= self.limit  # NaN too

    def reason(self, rows: _Rows) -> str | None:
        """Why to stop, or None to go on."""
        step, error, sent, *_, elapsed = rows.last
        if self.diverged(error):
            *_, finite = (row for row in rows.table() if math.isfinite(row["error"]))
            return f"diverged at step {step}: the last finite error is {finite['error']:.6g}, at step {finite['step']}"
        if error <= self.until:
            return f"error {self.until:g} reached"
        if step >= self.steps:
            return f"{step} steps taken"
        if sent >= self.bits:
            return f"{self.bits:g} bits sent"
        if elapsed >= self.seconds:
            return f"{self.seconds:g} seconds spent"
        return None


def _fingerprint(method, problem, comm, x0, state, key, every, measured) -> dict[str, str]:
    """What a run depends on, in words, the same on every process."""
    base, more = problem.made_of()
    made = f", of {type(base).__name__} and {_described(more)}" if more else ""
    return {
        "method": _described(method),
        "state": ", ".join(state._fields),
        "problem": f"{type(problem).__name__} of n = {problem.n}, d = {problem.d}, "
        f"regularizer {_described(problem.regularizer)}{made}",
        "comm": f"{comm.n} workers, {comm.processes} processes",
        "x0": _described(kernels.host(x0)),
        "key": repr(key),
        "every": str(every),
        "error": measured,
    }


def _seen(problem, comm, x, error: float) -> dict[str, str]:
    """What this process sees of the data, in words, to the digits that no other order of sums changes.

    Taken beside x0, where values do not know the data if x0 = 0: the value, which has all of them, and of the gradients
    of the workers hosted here, for whom it is a step's work, a sum that tells whose they are.
    """
    digits = 9 if x.dtype == np.float64 else 4
    problem, _ = problem.made_of()
    beside = np.cos(np.arange(problem.d)) / math.sqrt(problem.d)  # of length 0.7, with no zero
    near, scratch, total = x + kernels.like(x, beside.astype(x.dtype)), zeros_like(x), 0.0
    prox(problem, near, 1e-3)  # where the regularizer is finite
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            value = float(problem.value(near))
            for i in comm.workers:
                total += math.cos(i) * float(beside @ kernels.host(gradient(problem, i, near, scratch)))
    except Exception as failure:
        failure.add_note("at a point near x0, where run() looks at the data that a checkpoint is of")
        raise
    return {
        "value": f"{value:.{digits}g} near x0",
        "gradients": f"{total:.{digits}g} near x0, summed with weights",
        "initial error": f"{error:.{digits}g}",
    }


def _differences(one: dict, other: dict, sentence: str) -> str:
    """What differs between two fingerprints, in words."""
    return "; ".join(
        sentence.format(name, one.get(name), value) for name, value in other.items() if one.get(name) != value
    )


def _described(value) -> str:
    """repr, with all that arrays hold, and of functions and objects without a text their name, not their address."""
    if is_dataclass(value):
        parts = (f"{field.name}={_described(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(_described, value))})"
    if hasattr(value, "__dlpack__"):
        value = kernels.host(kernels.taken(value))
        return f"{value.dtype}{list(value.shape)} with crc32 {zlib.crc32(np.ascontiguousarray(value)):08x}"
    return _name(value) if callable(value) or type(value).__repr__ is object.__repr__ else repr(value)


class _Checkpoint:
    """Where a run is saved: a .npz file without pickles, `meta` in JSON beside the arrays.

    fingerprint: of the run, and seen: of the data, by this process. A file is of this run where they are the same; what
    another process has seen is for that one to compare.
    """

    def __init__(self, path, comm, fingerprint, seen):
        self._path, self._comm, self._fingerprint, self._seen = Path(path), comm, fingerprint, seen

    def _files(self, process: int) -> list[Path]:
        """Those of a process: the last one saved, and with several processes the one before."""
        path = self._path.with_suffix(f".{process}{self._path.suffix}") if process else self._path
        return [path] if self._comm.processes == 1 else [path, path.with_name(f"{path.name}.before")]

    def save(self, state, rows: _Rows, sent: dict[str, int]) -> None:
        arrays = {"rows": rows.table()}
        plain = {
            name: _packed(getattr(state, name), f"state.{name}", arrays) for name in state._fields if name != "scratch"
        }
        meta = {"format": _FORMAT, "fingerprint": self._fingerprint | self._seen, "step": rows.last.step, "sent": sent}
        arrays["meta"] = np.frombuffer(json.dumps(meta | {"state": plain}).encode(), np.uint8)
        path, *before = self._files(self._comm.process)
        temporary = path.with_name(f"{path.name}.tmp")
        with open(temporary, "wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        if before and path.exists():
            path.replace(before[0])
        temporary.replace(path)

    def load(self, state):
        """(state, rows, what was sent) of the last step that all processes have saved, or None."""
        comm = self._comm
        step = comm.agree(self._common_step() if comm.process == 0 else None)
        if step is None:
            return None
        paths = self._files(comm.process)
        for path in filter(Path.exists, paths):
            meta, arrays = self._read(path, own=True)
            if meta["step"] == step:
                values = {name: _unpacked(plain, arrays, state.x) for name, plain in meta["state"].items()}
                return state._replace(**values), _Rows(map(Row._make, arrays["rows"].tolist())), meta["sent"]
        raise ValueError(f"checkpoint {paths[0]}: process {comm.process} does not see that it has saved step {step}")

    def _common_step(self) -> int | None:
        steps = [
            {self._read(path, own=False)[0]["step"] for path in filter(Path.exists, self._files(process))}
            for process in range(self._comm.processes)
        ]
        common = max(set.intersection(*steps), default=None)
        if common is None and any(map(any, steps)):  # otherwise nothing is saved, or the first save was cut short
            raise ValueError(
                f"checkpoint {self._path}: no step that all processes have saved, but "
                + ", ".join(f"{sorted(each)} (process {process})" for process, each in enumerate(steps))
            )
        return common

    def _read(self, path: Path, own: bool):
        """meta and, of a file of its `own`, all arrays; ValueError where it is damaged or of another run."""
        with open(path, "rb") as stream:
            try:
                if own and (damaged := zipfile.ZipFile(stream).testzip()):
                    raise ValueError(f"{damaged} does not match its checksum")
                stream.seek(0)
                with np.load(stream) as file:
                    meta = json.loads(file["meta"].tobytes())
                    arrays = {name: file[name] for name in file.files} if own else {}
                if meta["format"] != _FORMAT:
                    raise ValueError(f"format {meta['format']}, this library reads {_FORMAT}")
                saved = meta["fingerprint"]
            except Exception as failure:  # of any kind: what zip files and JSON raise is not listed anywhere
                raise ValueError(
                    f"checkpoint {path} is damaged, or of another library: {type(failure).__name__}: {failure}"
                ) from failure
        expected = self._fingerprint | (self._seen if own else {})
        if differ := _differences(saved, expected, "{} was {}, is {}"):
            raise ValueError(f"checkpoint {path} is of another run: {differ}")
        return meta, arrays


def _packed(value, name: str, arrays: dict):
    """A field of a state as JSON; arrays, and NumPy's numbers, go to `arrays`, and their names stand for them."""
    if isinstance(value, list):
        return [_packed(each, f"{name}.{i}", arrays) for i, each in enumerate(value)]
    if value is None or type(value) in (bool, int, float):
        return value
    arrays[name] = np.asarray(value) if isinstance(value, np.generic) else kernels.host(kernels.taken(value, name))
    return name


def _unpacked(plain, arrays: dict, like):
    if isinstance(plain, list):
        return [_unpacked(each, arrays, like) for each in plain]
    if isinstance(plain, str):
        return kernels.like(like, arrays[plain]) if arrays[plain].ndim else arrays[plain][()]
    return plain


@contextmanager
def _bar(shown: bool, name: str, n: int, steps: int, start: Row):
    """Gives the function that shows a row on a bar on stderr, ten times a second at most, if it is to be shown."""
    if not shown:
        yield lambda row, end=False: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        raise ImportError('progress=True needs rich: pip install "compress-kernels[bench]"') from None

    def figures(row):
        return {"completed": row.step, "error": row.error, "bits": row.bits_up / n / 1e6}

    texts = TextColumn("error {task.fields[error]:.2e}"), TextColumn("{task.fields[bits]:.3g} Mbit per worker")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *texts, TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task, due = bar.add_task(name, total=steps, **figures(start)), 0.0

        def show(row, end=False):
            nonlocal due
            if end or perf_counter() >= due:
                bar.update(task, refresh=True, **figures(row))
                due = perf_counter() + 0.1

        yield show
