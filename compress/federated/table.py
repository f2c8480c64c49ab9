"""The table of a certification: its rows in a file from which a run goes on, and on a bar.

A file is TSV, with the columns of the implementation of Cohen et al. (ICML 2019, arXiv 1902.02918). What rows are of,
the settings of the run, is in a JSON file beside it.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import numpy as np

ABSTAIN = -1  # in place of a class

_FORMAT = 1  # of the settings


@dataclass(frozen=True, eq=False)
class Certified:
    """A row for each image that was certified: arrays of one length.

    idx: its index; label: its true class; predict: the class found, or ABSTAIN; radius: certified, 0 where it abstains;
    correct: whether predict is label; time: seconds that it took.
    """

    idx: np.ndarray
    label: np.ndarray
    predict: np.ndarray
    radius: np.ndarray
    correct: np.ndarray
    time: np.ndarray

    @classmethod
    def read(cls, path) -> Certified:
        """The table in a file that `certify_set` wrote, or the implementation of Cohen et al.

        Lines end in LF or CRLF. A last row that was cut is left out, with a RuntimeWarning that names its line. Raises
        ValueError for a damaged one elsewhere, with the line too.
        """
        return cls.of(_read(Path(path), stacklevel=3)[0])

    @classmethod
    def of(cls, rows) -> Certified:
        """Of tuples (idx, label, predict, radius, correct, time)."""
        types = (np.int64, np.int64, np.int64, np.float64, bool, np.float64)
        columns = zip(*rows, strict=True) if rows else ((),) * len(types)
        return cls(*(np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)))

    def __len__(self) -> int:
        return len(self.idx)


_COLUMNS = tuple(field.name for field in fields(Certified))
_HEADER = "\t".join(_COLUMNS)


class Table:
    """Rows (idx, label, predict, radius, correct, time) of a run: those that a file has, and those that are added.

    path: of the file, in which a row is as soon as it is added; None: rows are in memory alone. settings: of the run, a
    dict for JSON. wanted: (idx, label) of all its rows, in order.

    rows: the list of them. A last row that was cut in the middle is left out, with a RuntimeWarning that names its
    line. Raises FileNotFoundError for a path in a folder that is missing; ValueError for a file that is no such table,
    for a damaged row, with its line, for rows that are not the wanted ones, and for those without settings or of
    others. Nothing is written before all that is found is known to fit.
    """

    def __init__(self, path, settings: dict, wanted: list):
        self.rows, self._file = [], None
        if path is None:
            return
        path, size, settings = Path(path), 0, {"format": _FORMAT} | settings
        beside = path.with_name(f"{path.name}.json")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}, the folder of {path.name}, is missing")
        if path.exists():
            self.rows, size = _read(path, stacklevel=4)
        if self.rows:
            _check(path, beside, settings, self.rows, wanted)
        else:
            temporary = beside.with_name(f"{beside.name}.tmp")
            temporary.write_text(json.dumps(settings, indent=1) + "\n")
            temporary.replace(beside)
        self._file = open(path, "a", encoding="ascii", newline="\n")
        self._file.truncate(size)
        if not size:
            self._write(_HEADER)

    def add(self, row) -> None:
        """A further row, in the file before this returns."""
        self.rows.append(row)
        idx, label, found, radius, correct, seconds = row
        self._write(f"{idx}\t{label}\t{found}\t{radius!r}\t{correct:d}\t{timedelta(seconds=seconds)}")

    def _write(self, line):
        if self._file:
            self._file.write(f"{line}\n")
            self._file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if self._file:
            self._file.close()


def _check(path, beside, settings, rows, wanted):
    try:
        saved = json.loads(beside.read_text())
        differ = [
            f"{name} was {saved.get(name)}, is {value}" for name, value in settings.items() if saved.get(name) != value
        ]
    except FileNotFoundError:
        raise ValueError(f"{path} has rows, but {beside.name}, which says of what run, is missing") from None
    except (ValueError, AttributeError) as failure:
        raise ValueError(f"{beside} is damaged: {failure}") from failure
    if differ:
        raise ValueError(f"{path} is of another run, delete it or name another: {'; '.join(differ)}")
    for place, (idx, label, *_) in enumerate(rows):
        if place >= len(wanted) or (idx, label) != wanted[place]:
            raise ValueError(f"{path}, line {place + 2}, is damaged: image {idx} of label {label} is not next")


_TIME = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def _parsed(line: str):
    """A row from its line. Raises ValueError, which says what is wrong."""
    parts = line.split("\t")
    if len(parts) != len(_COLUMNS):
        raise ValueError(f"{len(parts)} columns, {len(_COLUMNS)} are needed")
    idx, label, found, correct = (int(parts[i]) for i in (0, 1, 2, 4))
    radius, time = float(parts[3]), _TIME.fullmatch(parts[5])
    if not time:
        raise ValueError(f"{parts[5]!r} is not a time")
    if not 0 <= radius < np.inf or found < ABSTAIN or correct != (found == label):
        raise ValueError("the values do not go together")
    days, hours, minutes, seconds = time.groups()
    took = timedelta(int(days or 0), hours=int(hours), minutes=int(minutes), seconds=float(seconds))
    return idx, label, found, radius, bool(correct), took.total_seconds()


def _read(path: Path, stacklevel: int):
    """(rows, the bytes that hold them and the header) of a table; a last line without its end is left out."""
    *lines, cut = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines or [cut], 1):  # a file of another kind may have no whole line
        try:
            text = line.decode("ascii").removesuffix("\r")
            if number > 1:
                rows.append(_parsed(text))
            elif text != _HEADER and (lines or not _HEADER.startswith(text)):
                raise ValueError(f"the header must be {_HEADER!r}, got {text[:80]!r}")
        except ValueError as failure:
            raise ValueError(f"{path}, line {number}, is damaged: {failure}") from failure
    if cut:
        warnings.warn(
            f"{path}, line {len(lines) + 1}, was cut in the middle and is left out: {cut[:80]!r}",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
    return rows, sum(len(line) + 1 for line in lines)


@contextmanager
def bar(wanted: bool, what: str, total: int):
    """Gives the function that shows rows on a bar, if it is wanted and there is a terminal and rich."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        wanted = False
    if not (wanted and sys.stderr.isatty()):
        yield lambda rows: None
        return
    text = TextColumn("accuracy {task.fields[accuracy]:.3f}, radius {task.fields[radius]:.3g}")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task(what, total=total, accuracy=0, radius=0)
        due, seen, right, sum_of_radii = 0.0, 0, 0, 0.0

        def show(rows):
            nonlocal due, seen, right, sum_of_radii
            for *_, radius, correct, _ in rows[seen:]:
                right, sum_of_radii = right + correct, sum_of_radii + radius * correct
            seen = len(rows)
            if seen == total or perf_counter() >= due:
                figures = {"accuracy": right / max(seen, 1), "radius": sum_of_radii / max(seen, 1)}
                progress.update(task, completed=seen, refresh=True, **figures)
                due = perf_counter() + 0.1

        yield show
