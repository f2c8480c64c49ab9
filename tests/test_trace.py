"""Trace: rows, files that give back every bit, pictures."""

import builtins
import csv
import json
import math
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import compress
from compress.optimizers.trace import Row


def trace(error, x=(0.1, -2.5), n=4, **named):
    """A trace with these errors at steps 0, 10, ..., and as many bits as make it easy to tell."""
    step = 10 * np.arange(len(error))
    counts = {"bits_up": step * 10**6, "bits_down": 3 * step * 10**6, "wire_bytes": step * 10**6, "oracle": 4 * step}
    words = {"reason": "steps", "method": "DIANA(gamma=0.1)", "measure": "‖x - x*‖² / ‖x⁰ - x*‖²"} | named
    return compress.Trace(step, np.array(error, float), **counts, seconds=step / 3, x=np.array(x), n=n, **words)


def equal(a, b):
    for name in (*Row._fields, "x"):
        u, v = getattr(a, name), getattr(b, name)
        assert u.dtype == v.dtype and u.tobytes() == v.tobytes(), name
    return (a.reason, a.method, a.n, a.measure) == (b.reason, b.method, b.n, b.measure)


FALLING = [1.0, 0.3, 0.01, 0.02, 1e-9]


def test_the_first_row_to_reach_an_error():
    t = trace(FALLING)
    assert t.at(0.02) == Row(20, 0.01, 20 * 10**6, 60 * 10**6, 20 * 10**6, 80, 20 / 3)
    assert t.at(0.01) == t.at(0.02) and t.at(0.005).step == 40 and t.at(5).step == 0
    assert t.at(1e-10) is None and trace([1.0, math.nan]).at(0.5) is None
    assert all(type(value) in (int, float) for value in t.at(0.02))
    assert len(t) == 5


def test_its_gist():
    assert repr(trace(FALLING)) == (
        "<Trace of DIANA(gamma=0.1), n = 4, d = 2: error 1e-09 after 40 steps, 10 Mbit sent per worker, 13.3 s; steps>"
    )
    long = trace(FALLING, method="EF21(compressor=TopK(k=0.1, wire='float32'), gamma=0.00034824897)")
    assert "Trace of EF21(TopK(k=0.1, wire='float32'), gamma=0.0003482), n = 4" in repr(long)


ROUGH = [1.0, math.pi, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, 0.1 + 0.2]


def test_csv_has_every_digit(tmp_path):
    t = trace(ROUGH)
    t.to_csv(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="") as file:
        first, *rows = csv.reader(file)
    assert first == list(Row._fields) and len(rows) == len(t)
    for name, column in zip(first, zip(*rows, strict=True), strict=True):
        np.testing.assert_array_equal(np.array(column, getattr(t, name).dtype), getattr(t, name))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_json_gives_back_every_bit(tmp_path, dtype):
    t = trace(ROUGH, np.array([1 / 3, math.nan, -math.inf, -0.0, 1e-45], dtype), reason='said "é∞"')
    t.to_json(tmp_path / "t.json")
    assert equal(compress.Trace.from_json(tmp_path / "t.json"), t)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "t.json").read_text(), parse_constant=refuse)


def test_other_files_are_named(tmp_path):
    path = tmp_path / "t.json"
    trace(FALLING).to_json(path)
    good = json.loads(path.read_text())
    bad = [
        "",
        "[]",
        "3",
        "{}",
        path.read_text()[:200],
        json.dumps(good | {"trace": 2}),
        json.dumps(good | {"step": []}),
    ]
    bad += [json.dumps({k: v for k, v in good.items() if k != name}) for name in good]
    bad += [
        json.dumps(good | {name: value}) for name in ("step", "x", "error") for value in (3, [None], ["one"], {"a": 1})
    ]
    bad += [
        json.dumps(good | {"dtype": "float16"}),
        json.dumps(good | {"error": [1.0]}),
        json.dumps(good | {"step": [2**70] * 5}),
    ]
    for text in bad:
        path.write_text(text)
        with pytest.raises(ValueError, match=r"t\.json is no trace of this library"):
            compress.Trace.from_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no trace"):
        compress.Trace.from_json(path)
    with pytest.raises(FileNotFoundError):
        compress.Trace.from_json(tmp_path / "none.json")


def curves(ax):
    return {line.get_label(): line.get_xydata() for line in ax.get_lines()}


@pytest.mark.parametrize(
    ("x", "unit", "label"),
    [
        ("step", 1, "steps"),
        ("bits_up", 4e6, "Mbit sent per worker"),
        ("bits_down", 4e6, "Mbit received per worker"),
        ("wire_bytes", 4e6, "MB on the wire per worker"),
        ("oracle", 1, "gradients of components"),
        ("seconds", 1, "seconds"),
    ],
)
def test_a_plot_has_units(x, unit, label):
    t = trace(FALLING)
    ax = compress.plot({"mine": t}, x=x)
    np.testing.assert_allclose(curves(ax)["mine"], np.column_stack([getattr(t, x) / unit, FALLING]))
    assert ax.get_xlabel() == label and ax.get_ylabel() == t.measure and ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mine"]


def test_a_plot_of_several():
    first, second = trace(FALLING), trace(FALLING, method="EF21()", measure="height")
    ax = compress.plot([first, second], y="seconds", x="error")
    assert list(curves(ax)) == ["DIANA(gamma=0.1)", "EF21()"] and ax.get_xlabel() == "error"
    lines = ax.get_lines()
    assert lines[0].get_color() != lines[1].get_color() and lines[0].get_marker() != lines[1].get_marker()
    assert list(curves(compress.plot(first))) == ["DIANA(gamma=0.1)"]


def test_what_has_no_logarithm_is_left_out(tmp_path):
    ax = compress.plot(trace([1.0, 0.5, 0.0, -1.0, math.inf, math.nan, 0.25]), path=tmp_path / "a.png")
    assert curves(ax)["DIANA(gamma=0.1)"][:, 1].tolist() == [1.0, 0.5, 0.25]
    compress.plot(trace([0.0]), path=tmp_path / "b.png")


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_plot_opens_no_window(tmp_path, monkeypatch, ending):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it fails
    before = matplotlib.rcParams.copy()  # without asking it for the backend, which would choose one
    compress.plot([trace(FALLING)], path=tmp_path / f"t.{ending}")
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending]
    assert (tmp_path / f"t.{ending}").read_bytes().startswith(start)
    assert matplotlib.rcParams.copy() == before


def test_a_plot_in_given_axes():
    left, right = Figure().subplots(1, 2)
    assert compress.plot(trace(FALLING), ax=right) is right
    assert not left.get_lines() and len(right.get_lines()) == 1


def test_bad_plots():
    with pytest.raises(TypeError, match="takes traces, got 7"):
        compress.plot({1: 7})
    with pytest.raises(ValueError, match="no trace"):
        compress.plot([])
    with pytest.raises(ValueError, match="no column 'bits', but step"):
        compress.plot(trace(FALLING), x="bits")


def test_a_plot_without_matplotlib(monkeypatch):
    found = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return found(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'needs Matplotlib: pip install "compress-kernels\[bench\]"'):
        compress.plot(trace(FALLING))
