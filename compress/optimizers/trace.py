"""Trace: what a run has measured, a row at a time, in files and in pictures."""

from __future__ import annotations

import csv
import json
import math
import re
import textwrap
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np

_FORMAT = 1


class Row(NamedTuple):
    """What is recorded after `step` steps; the fields are those of `Trace`."""

    step: int
    error: float
    bits_up: int
    bits_down: int
    wire_bytes: int
    oracle: int
    seconds: float


# A table of rows, and the types of the columns.
COLUMNS = np.dtype([(name, np.float64 if name in ("error", "seconds") else np.int64) for name in Row._fields])


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """The rows of a run, as one NumPy vector for each column, and how the run ended.

    step        steps taken; the first row, 0, is the start
    error       what `measure` names, by default ||x - x*||^2 / ||x0 - x*||^2
    bits_up     payload bits sent, all workers together
    bits_down   payload bits received, all workers together
    wire_bytes  bytes sent and received, with padding and headers
    oracle      gradients of components evaluated, all workers together
    seconds     spent in steps; measuring the error is not counted

    x: (d,), the last iterate. reason: why the run ended. method: its description. n: workers.

    >>> import numpy as np, compress
    >>> problem = compress.Quadratic.random(n=4, d=20, mu=1, L=10)
    >>> method = compress.DIANA.theoretical(problem, compress.RandK(0.5))
    >>> trace = compress.run(method, problem, compress.Local(4), np.ones(20), steps=1000)
    >>> row = trace.at(1e-3)  # the first to have reached an error
    >>> bool(row.error <= 1e-3 and row.bits_up == trace.bits_up[row.step])
    True
    """

    step: np.ndarray
    error: np.ndarray
    bits_up: np.ndarray
    bits_down: np.ndarray
    wire_bytes: np.ndarray
    oracle: np.ndarray
    seconds: np.ndarray
    x: np.ndarray
    reason: str
    method: str
    n: int
    measure: str

    def __len__(self):
        return len(self.step)

    def __repr__(self):
        end = self._row(-1)
        return (
            f"<Trace of {_short(self.method)}, n = {self.n}, d = {self.x.size}: error {end.error:.3g} "
            f"after {end.step} steps, {end.bits_up / self.n / 1e6:.3g} Mbit sent per worker, {end.seconds:.3g} s; "
            f"{self.reason}>"
        )

    def _row(self, index) -> Row:
        return Row(*(getattr(self, name)[index].item() for name in Row._fields))

    def at(self, error: float) -> Row | None:
        """The first row with an error of at most `error`, in plain numbers; None where there is none."""
        reached = np.flatnonzero(self.error <= error)
        return self._row(reached[0]) if reached.size else None

    def to_csv(self, path) -> None:
        """Write the columns, with their names in the first line. float() reads every number back as it was."""
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Row._fields)
            writer.writerows(zip(*(getattr(self, name).tolist() for name in Row._fields), strict=True))

    def to_json(self, path) -> None:
        """Write everything, for `from_json`. Numbers that JSON does not know are strings: "inf", "-inf", "nan"."""
        plain = {"trace": _FORMAT, "method": self.method, "n": self.n, "measure": self.measure, "reason": self.reason}
        plain |= {name: _plain(getattr(self, name)) for name in Row._fields}
        plain |= {"dtype": self.x.dtype.name, "x": _plain(self.x)}
        Path(path).write_text(json.dumps(plain) + "\n")

    @classmethod
    def from_json(cls, path) -> Trace:
        """The trace that `to_json` wrote, bit for bit. ValueError for another file."""
        try:
            plain = json.loads(Path(path).read_text())
            if plain["trace"] != _FORMAT:
                raise ValueError(f"format {plain['trace']}, this library reads {_FORMAT}")
            columns = {name: _vector(plain[name], COLUMNS[name]) for name in Row._fields}
            if not columns["step"].size or len({column.size for column in columns.values()}) > 1:
                raise ValueError(f"columns of {', '.join(str(column.size) for column in columns.values())} rows")
            x = _vector(plain["x"], {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64)}[plain["dtype"]])
            words = {name: str(plain[name]) for name in ("reason", "method", "measure")}
            return cls(**columns, x=x, n=int(plain["n"]), **words)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} is no trace of this library: {type(error).__name__}: {error}") from None


def _short(method: str) -> str:
    """The description of a method with four digits of each number."""
    digits = re.sub(r"\d+\.\d{4,}(e[-+]?\d+)?", lambda number: f"{float(number[0]):.4g}", method)
    return digits.replace("(compressor=", "(")


def _plain(values: np.ndarray) -> list:
    return [value if math.isfinite(value) else str(value) for value in values.tolist()]


def _vector(values: list, dtype: np.dtype) -> np.ndarray:
    return np.array([float(value) if dtype.kind == "f" else int(value) for value in values], dtype)


# What plot writes along an axis, and what a column is multiplied by for it.
_AXES = {
    "step": ("steps", lambda trace: 1),
    "error": ("error", lambda trace: 1),
    "bits_up": ("Mbit sent per worker", lambda trace: 1e-6 / trace.n),
    "bits_down": ("Mbit received per worker", lambda trace: 1e-6 / trace.n),
    "wire_bytes": ("MB on the wire per worker", lambda trace: 1e-6 / trace.n),
    "oracle": ("gradients of components", lambda trace: 1),
    "seconds": ("seconds", lambda trace: 1),
}
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "savefig.dpi": 220,
}
_MARKERS = "osD^vP*X"


def plot(traces, x: str = "bits_up", y: str = "error", ax=None, path=None):
    """Curves of traces, y on a log scale; returns Matplotlib's axes.

    traces: a dict of them by label, a sequence (labelled by their methods), or one. x, y: columns of `Trace`; bits and
    bytes are shown per worker, in Mbit and MB. Rows where x is not finite or y has no logarithm are left out.
    ax: axes to draw in, a new figure of its own unless given; no window opens, and the backend stays what it is.
    path: where to save the figure; the ending says the format (.png, .pdf, .svg).

    Raises ImportError without Matplotlib, TypeError for what is no trace, ValueError for a column that is not there.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('plot needs Matplotlib: pip install "compress-kernels[bench]"') from None
    if isinstance(traces, Trace):
        traces = [traces]
    given = list(traces.values() if isinstance(traces, dict) else traces)
    for trace in given:
        if not isinstance(trace, Trace):
            raise TypeError(f"plot takes traces, got {trace!r}")
    if not given:
        raise ValueError("no trace to plot")
    labels = traces if isinstance(traces, dict) else [_short(trace.method) for trace in given]
    labels = [textwrap.fill(str(label), 70) for label in labels]
    for name in (x, y):
        if name not in _AXES:
            raise ValueError(f"a trace has no column {name!r}, but {', '.join(_AXES)}")
    measures = {trace.measure for trace in given}
    error = measures.pop() if len(measures) == 1 else "error"

    with matplotlib.rc_context(STYLE if ax is None else {}):
        if ax is None:
            lines = sum(1 + label.count("\n") for label in labels)
            ax = Figure(figsize=(4.8, 3.2 + 0.15 * lines), layout="constrained").subplots()
        for trace, label, marker in zip(given, labels, cycle(_MARKERS), strict=False):
            u, v = (getattr(trace, name) * _AXES[name][1](trace) for name in (x, y))
            shown = np.isfinite(u) & np.isfinite(v) & (v > 0)
            # a marker each eighth of the diagonal: curves differ in more than colour
            ax.plot(u[shown], v[shown], marker=marker, markersize=4, markevery=0.125, label=label)
        x_label, y_label = (error if name == "error" else _AXES[name][0] for name in (x, y))
        ax.set(xlabel=x_label, ylabel=y_label, yscale="log")
        # above the axes, where no curve runs
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3)
        if path is not None:
            ax.figure.savefig(path)
    return ax
