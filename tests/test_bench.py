"""The benchmark's own promises: the same vector every time, honest helpers, and files with the right columns."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # bench is not installed; at the end, so that an installed compress stays first

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import compress  # noqa: E402
from bench import convergence, frontier, gradients, guide, ideal, peers  # noqa: E402
from bench.__main__ import main  # noqa: E402


def test_digits_gradient_is_the_documented_vector():
    pytest.importorskip("sklearn")
    x = gradients.digits_gradient()
    assert x.dtype == np.float32 and x.size == gradients.SIZE == 1_126_410
    assert np.array_equal(x, gradients.digits_gradient())
    assert not np.array_equal(x, gradients.digits_gradient(seed=1))
    assert 0.2 < np.mean(x == 0) < 0.35 and np.abs(x).max() > 50 * x.std()  # sparse and heavy-tailed


@pytest.mark.parametrize("name", gradients.INPUTS)
def test_named_inputs_are_fixed_finite_and_cached(name):
    made = gradients.INPUTS[name]
    pytest.importorskip("sklearn")
    if made.needs:
        pytest.importorskip(made.needs)
    x = gradients.named(name)
    assert x.dtype == np.float32 and 2**19 < x.size < 2**21 and np.isfinite(x).all() and x.std() > 0
    again = gradients.named(name)
    assert np.array_equal(x, again) and not np.shares_memory(x, again)  # a caller may write to its copy


def test_adamw_is_the_textbook_step():
    """One step from the same point: learning rate times (sign of the gradient, nearly, plus the decay)."""
    pytest.importorskip("sklearn")
    step = gradients.digits_adamw(steps=1, decay=0.0)
    gradient = gradients.digits_gradient(steps=20)
    large = np.abs(gradient) > 1e-5
    assert np.allclose(step[large], 1e-3 * np.sign(gradient[large]), rtol=2e-2)
    assert np.all(step[gradient == 0] == 0)


def test_ideal_uniform_against_a_histogram():
    x = gradients.synthetic("student", 20_000)
    for step in (0.3, 1.0, 4.0):
        cells, inverse, count = np.unique(np.rint(x / step), return_inverse=True, return_counts=True)
        bits = -np.sum(count / x.size * np.log2(count / x.size))
        means = np.bincount(inverse, x) / count
        for centroids, decoded in ((True, means[inverse]), (False, step * cells[inverse])):
            expected = np.sum((x - decoded) ** 2) / np.sum(x.astype(float) ** 2)
            assert ideal.ideal_uniform(x, bits, centroids) == pytest.approx(expected, rel=2e-3)


def test_ideal_uniform_on_a_gaussian_and_on_bad_vectors():
    x = gradients.synthetic("normal", 2**18)
    assert ideal.ideal_uniform(x, 3.0) * 4**3 == pytest.approx(np.pi * np.e / 6, rel=0.01)
    assert ideal.ideal_uniform(np.ones(100, np.float32), 1.0) == 0.0
    assert ideal.ideal_uniform(np.zeros(100, np.float32), 1.0) == 0.0
    outlier = np.concatenate([x[:1000], np.float32([1e30])])
    assert 0 <= ideal.ideal_uniform(outlier, 2.0) < 1e-6


def point(kind, bits, nmse):
    about = dict.fromkeys([f.name for f in fields(frontier.Point)], 0.0)
    about |= {"compressor": f"{kind} {bits}", "family": "Trellis" if kind == "contractive" else "", "kind": kind}
    return frontier.Point(**about | {"bits": bits, "nmse": nmse})


def test_who_holds_a_budget_and_which_peers_are_below():
    points = [
        point("unbiased", 1.0, 0.9),
        point("contractive", 1.0, 0.5),
        point("contractive", 2.0, 0.1),
        point("unbiased", 1.4, 0.23),  # of a rate that another has: no part of a curve
        point("peer", 1.0, 0.6),
        point("peer", 1.5, 0.2),  # ours at 1.5: sqrt(0.5 x 0.1) = 0.224
    ]
    held = {(budget, promise): p for budget, promise, p in frontier.holders(points)}
    assert (0.5, "any") not in held
    assert held[1, "unbiased"] is points[0] and held[1, "any"] is points[1] and held[1, "peer"] is points[4]
    assert held[8, "any"] is points[2] and held[8, "peer"] is points[5]
    ((peer, ratio),) = frontier.below(points)
    assert peer is points[5] and ratio == pytest.approx(0.2 / np.sqrt(0.05))


INSTALLED = [family for family in peers.FAMILIES if not peers.absent_modules(family)]


@pytest.mark.parametrize("family", INSTALLED, ids=lambda f: f.__name__)
def test_peers_send_bytes_and_read_them_back(family):
    """Of the extra [peers] those that are installed; each in a process of its own first, as wheels can crash."""
    assert not family.needs or peers.broken(family) == ""
    x = gradients.synthetic("normal", 5000)
    best = min(family.sweep()[-3:], key=lambda p: frontier.measure_peer(p, x, 1).nmse)
    measured = frontier.measure_peer(best, x, trials=2)
    assert isinstance(best.encode(x), bytes) and measured.bits == 8 * len(best.encode(x)) / x.size
    assert measured.nmse < 1 and measured.kind == "peer" and measured.trials == 2


def test_a_peer_that_crashes_is_listed_with_the_reason(monkeypatch):
    class Absent(peers.Peer):
        needs = ("no_such_module",)
        sweep = encode = decode = None

    monkeypatch.setattr(peers, "FAMILIES", (peers.Sign, Absent))
    works, missing = peers.available()
    assert works == [peers.Sign] and "no_such_module is not installed" in missing["Absent"]


def test_quick_frontier_with_peers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers, "FAMILIES", (peers.Sign, peers.Zlib, peers.Partition))
    main(["--quick", "--peers", "--distribution", "normal", "--size", "5000", "--out", str(tmp_path)])
    assert "peers below our curve" in capsys.readouterr().out
    saved = json.loads((tmp_path / "frontier.json").read_text())
    assert {"Sign", "Zlib", "Partition"} <= {p["family"] for p in saved["points"] if p["kind"] == "peer"}
    assert {h["best_of"] for h in saved["inputs"][0]["budgets"]} == {"unbiased", "any", "peer"}


def test_backpropagation_against_finite_differences():
    rng = np.random.default_rng(0)
    shapes = [(5, 7), (7,), (7, 6), (6,), (6, 3), (3,)]
    parameters = [rng.standard_normal(s) for s in shapes]
    inputs, labels = rng.standard_normal((4, 5)), np.array([0, 2, 1, 1])

    def loss(p):
        a = np.maximum(inputs @ p[0] + p[1], 0)
        a = np.maximum(a @ p[2] + p[3], 0) @ p[4] + p[5]
        return np.mean(np.log(np.exp(a).sum(axis=1)) - a[np.arange(4), labels])

    step = 1e-6
    for which, g in enumerate(gradients._backpropagate(parameters, inputs, labels)):
        direction = rng.standard_normal(g.shape)
        ahead, behind = list(parameters), list(parameters)
        ahead[which] = parameters[which] + step * direction
        behind[which] = parameters[which] - step * direction
        assert np.sum(g * direction) == pytest.approx((loss(ahead) - loss(behind)) / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("distribution", ["normal", "student", "onehot"])
def test_synthetic(distribution):
    x = gradients.synthetic(distribution, 1000)
    assert x.shape == (1000,) and x.dtype == np.float32 and np.isfinite(x).all() and x.any()


def test_pareto():
    bits = [1, 2, 2, 3, 1, 4, 2]
    error = [9, 5, 6, 5, 9, 1, 5]
    assert frontier.pareto(bits, error) == [True, True, False, False, False, True, False]
    assert frontier.pareto([], []) == []


def test_proven_product_is_never_below_one_and_never_invented():
    d = 1000
    assert frontier.proven_product(compress.RandK(10), d, 0.32) == pytest.approx(0.99 * 4**0.32)
    assert frontier.proven_product(compress.Identity(), d, 32.0) is None
    for c in compress.catalogue():
        if c.guarantee == "none":
            assert frontier.proven_product(c, d, 1.0) is None


def test_every_class_of_the_catalogue_is_swept():
    swept = frontier.sweep()
    assert {frontier.family(c) for c in compress.catalogue()} == set(swept)
    assert all(frontier.family(c) == name for name, instances in swept.items() for c in instances)
    names = [frontier.name(c) for instances in swept.values() for c in instances]
    assert len(set(names)) == len(names)


def test_names():
    assert frontier.name(compress.ScaledSign()) == "ScaledSign()"
    assert frontier.name(compress.RandK(0.01)) == "RandK(0.01)"
    assert frontier.name(compress.Kashin()) == "Kashin(3)"
    assert frontier.name(compress.Kashin(8, redundancy=2.0)) == "Kashin(8, redundancy=2)"
    assert frontier.name(compress.Rotated(compress.TernGrad())) == "Rotated(TernGrad())"


def test_measured_error_of_randk():
    x = gradients.synthetic("normal", 4096)
    point = frontier.measure(compress.RandK(0.25), x, trials=40)
    assert abs(point.nmse - 3) < 5 * point.nmse_se + 1e-6
    assert point.bits == pytest.approx(8, abs=0.1) and point.kind == "unbiased" and point.encode_gbps > 0


def test_quick_frontier_writes_its_three_files(tmp_path, capsys):
    np.save(tmp_path / "x.npy", gradients.synthetic("student", 3000).reshape(30, 100))
    main(["--quick", "--input", str(tmp_path / "x.npy"), "--out", str(tmp_path / "results")])
    printed = capsys.readouterr().out
    assert "RandK" in printed and "frontier" in printed
    columns = [f.name for f in fields(frontier.Point)]
    with open(tmp_path / "results" / "frontier.csv") as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == columns
    assert {"RandK", "TopK", "StandardDithering", "Kashin"} <= {r["family"] for r in rows}
    saved = json.loads((tmp_path / "results" / "frontier.json").read_text())
    assert saved["inputs"][0]["d"] == 3000 and len(saved["points"]) == len(rows)
    for p in saved["points"]:
        assert p["proven_product"] is None or p["proven_product"] >= 1 - 1e-9, p
    assert {h["best_of"] for h in saved["inputs"][0]["budgets"]} == {"unbiased", "any"}
    assert "best" in printed and "ideal" in printed
    assert (tmp_path / "results" / "frontier.png").stat().st_size > 10_000
    assert (tmp_path / "results" / "distance.png").stat().st_size > 10_000


def test_the_guide_is_measured_in_the_columns_it_has():
    x = gradients.synthetic("normal", 4096)
    for row in (compress.guide.TABLE[4], compress.guide.TABLE[-2]):
        columns = guide.columns(guide.measured(row, (x, x), trials=2))
        assert [len(column) for column in columns] == [len(row.rates)] * 4
        assert columns[0] == columns[1] == pytest.approx(row.normal, rel=0.3)


def test_a_backend_that_is_not_there_says_so():
    if compress.backends()["gpu"].startswith("unavailable"):
        with pytest.raises(SystemExit, match="unavailable"):
            main(["--backend", "gpu"])


def test_speed_files_its_bars(tmp_path):
    """In a process of its own: pytest does not nest."""
    command = [sys.executable, "-m", "bench", "speed", "-k", "rice", "--out", str(tmp_path)]
    alone = {name: value for name, value in os.environ.items() if "XDIST" not in name}  # it may run beside others
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Rice code of indices" in done.stdout and "bars met" in done.stdout
    cases = [b["extra_info"] for b in json.loads((tmp_path / "speed.json").read_text())["benchmarks"]]
    assert {c["size"] for c in cases} == {"2^16", "2^20", "2^24"}
    assert all(c["gbps"] > 0 and c["ratio_to_memcpy"] > 0 and 0.07 < c["bits"] < 0.09 for c in cases)
    assert all(bar["met"] for c in cases for bar in c["bars"])  # of lengths, not of times


def test_frontier_refuses_unknown_options(capsys):
    with pytest.raises(SystemExit):
        main(["--no-such-option"])
    assert "unrecognised" in capsys.readouterr().err


@pytest.mark.parametrize("distribution, size", [("student", 1), ("onehot", 300)])
def test_degenerate_vectors_have_a_table_and_a_figure(distribution, size, tmp_path):
    main(["--quick", "--distribution", distribution, "--size", str(size), "--out", str(tmp_path)])
    assert (tmp_path / "frontier.png").is_file()


def test_the_reference_problem_is_that_of_the_reference():
    """Its constants, printed to four digits there, and a run that draws nothing: both would tell another sample."""
    pytest.importorskip("sklearn")
    from bench.papers import shifted

    setup = shifted.Setup.reference()
    assert setup.constants() == "L = 381.2, mu = 1.470, L_max = 1441, kappa = 259"
    assert shifted.Setup.paper().constants() == "L = 308.9, mu = 1.737, L_max = 1427, kappa = 178"
    method = setup.method(compress.DIANA, 0.9)
    trace = setup.trace(method, 1e-2)
    assert setup.trace(method, steps=5) is trace and setup.trace(method, 1e-3) is not trace
    assert setup.steps(method, 1e-2) == trace.at(1e-2).step and trace.error[-1] <= 1e-2 < trace.error[-2]


def test_shifted_paper_on_a_small_problem(tmp_path, capsys, monkeypatch):
    """All of it, of few coordinates and runs: what the whole shows is not at stake, its table is another problem's."""
    pytest.importorskip("sklearn")
    from bench.papers import shifted

    small = {"D": 20, "RUNS": 2, "STEPS": 30, "GRID": (0.3,), "REFERENCE": {0.3: {"DCGD-STAR": 300, "DIANA": 900}}}
    for name, value in small.items():
        monkeypatch.setattr(shifted, name, value)
    assert shifted.run(tmp_path, full=True) == 1
    printed = capsys.readouterr().out
    assert "1e-12 linearly" in printed and printed.count(" ok ") >= 8
    for name in ("shifted.png", "shifted_sweeps.png", "shifted_bounds.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_compressors_are_read_from_expressions():
    text = "Identity; RandK(0.1, wire='float64');Induced(TopK(3), Rotated(StandardDithering(-0 + 4)));Trellis(bits=2);"
    with pytest.raises(ValueError, match="neither a literal nor a compressor"):
        convergence.compressors(text)
    assert convergence.compressors(text.replace("-0 + 4", "4")) == [
        compress.Identity(),
        compress.RandK(0.1, wire="float64"),
        compress.Induced(compress.TopK(3), compress.Rotated(compress.StandardDithering(4))),
        compress.Trellis(bits=2),
    ]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--methods", "Diana"], "unknown method 'Diana'; known: DCGD, "),
        (["--compressors", "RandQ(3)"], "unknown name 'RandQ'; known: Identity, RandK, "),
        (["--compressors", "RandK(2"], "was never closed"),
        (["--compressors", "RandK(0.0)"], "k must be a count of at least 1"),
        (["--compressors", "RandK(1, 2, 3)"], "positional arguments"),
        (["--compressors", "__import__('os').getcwd()"], "is no compressor such as"),
        (["--compressors", " ; "], "names none"),
        (["--problem", "lasso"], "unknown problem 'lasso'; known: quadratic, "),
        (["--problem", "quadratic:many"], "has D coordinates, got 'many'"),
        (["--problem", "ridge:nowhere"], "nowhere is neither a file nor one of breast_cancer, "),
        (["--shards", "odd"], "unknown shards 'odd'; known: equal, sorted, dirichlet"),
        (["--shards", "sorted"], "a quadratic has no rows"),
        (["--condition", "1"], "--condition must be above 1"),
        (["--until", "0"], "--until must lie in"),
        (["--workers", "0"], "--workers must be at least 1"),
    ],
)
def test_convergence_names_what_is_wrong(options, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["convergence", "--out", str(tmp_path), *options])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("shards", convergence.SHARDS)
@pytest.mark.parametrize("text, d", [("ridge:diabetes", 10), ("logistic:digits", 64), ("logistic:breast_cancer", 30)])
def test_problems_have_the_condition_asked_for(text, d, shards):
    pytest.importorskip("sklearn")
    problem = convergence.problem(text, 6, shards, condition=40.0)
    assert (problem.n, problem.d) == (6, d)
    assert problem.L / problem.mu == pytest.approx(40)
    if text == "logistic:digits":
        assert 0.4 < np.mean(problem.b > 0) < 0.6  # five digits and five
    if shards == "sorted":
        parts = [problem.b[problem._rows(i)] for i in range(6)]
        assert np.mean([part.std() for part in parts]) < 0.5 * problem.b.std()


def lines(path):
    with open(path, newline="") as file:
        return {(line["method"], line["compressor"]): line for line in csv.DictReader(file)}


CONVERGENCE = ["convergence", "--problem", "quadratic:40", "--workers", "4", "--until", "1e-4", "--condition", "5"]


def test_convergence_of_what_goes_together(tmp_path, capsys):
    pairs = ["--methods", "DIANA,EF21", "--compressors", "Identity;RandK(0.5);TopK(0.5);Trellis(bits=3);RandK(41)"]
    assert main([*CONVERGENCE, *pairs, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "skipped for DIANA, EF21: RandK(41): k = 41 of a vector of 40 coordinates" in printed
    assert "skipped for DIANA: TopK(0.5): biased" in printed
    assert "* EF21, Trellis(3): not proven: alpha = " in printed
    found = lines(tmp_path / "convergence.csv")
    assert list(found) == [
        ("DIANA", "Identity()"),
        ("DIANA", "RandK(0.5)"),
        ("EF21", "Scaled(Identity())"),
        ("EF21", "Scaled(RandK(0.5))"),
        ("EF21", "TopK(0.5)"),
        ("EF21", "Trellis(3)"),
    ]
    for line in found.values():
        assert float(line["error"]) <= 1e-4 and line["steps"] == line["steps_to_1e-04"]
        assert int(line["steps_to_1e-01"]) < int(line["steps_to_1e-02"]) < int(line["steps"])
        sent = float(line["bits_per_coordinate"]) * 40 * int(line["steps"]) / 1e6
        assert float(line["mbit_to_1e-04"]) == float(line["mbit_per_worker"]) == pytest.approx(sent)
    assert [float(line["bits_per_coordinate"]) for line in found.values()][:4] == [32, 16, 32, 16]
    descent = convergence.problem("quadratic:40", 4, condition=5.0)
    x = np.zeros(40)
    steps = 0
    while np.sum((x - descent.x_star) ** 2) > 1e-4 * np.sum(descent.x_star**2):
        x, steps = x - descent.full_gradient(x) / 5, steps + 1
    assert int(found["DIANA", "Identity()"]["steps"]) == steps  # gradient descent
    saved = json.loads((tmp_path / "convergence.json").read_text())
    assert saved["d"] == 40 and saved["L"] == 5 and len(saved["runs"]) == len(found) and len(saved["skipped"]) == 3
    curve = saved["runs"][1]["curve"]
    assert curve["error"][0] == 1 and curve["bits_up"][-1] == pytest.approx(4e6 * saved["runs"][1]["mbit_per_worker"])
    assert (tmp_path / "convergence.png").stat().st_size > 10_000


def test_a_run_that_diverges_is_in_the_table_and_says_so(tmp_path, capsys):
    pairs = ["--methods", "DCGD", "--compressors", "Identity", "--gamma", "10", "--steps", "1000"]
    assert main([*CONVERGENCE, *pairs, "--out", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "gamma given; DCGD: gamma = 10 is above" in printed and "diverged" in printed
    assert json.loads((tmp_path / "convergence.json").read_text())["runs"][0]["mbit_to_1e-04"] is None


def test_convergence_with_nothing_that_goes_together(tmp_path, capsys):
    assert main([*CONVERGENCE, "--methods", "DIANA", "--compressors", "TopK(0.1)", "--out", str(tmp_path)]) == 1
    assert "skipped for DIANA" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_convergence_on_two_ranks_is_that_on_one(tmp_path):
    from test_mpi import mpiexec

    pairs = ["--methods", "DIANA", "--compressors", "RandK(0.5)", "--steps", "50", "--out"]
    assert main([*CONVERGENCE, *pairs, str(tmp_path / "one")]) == 0
    command = [mpiexec(), "-n", "2", sys.executable, "-m", "mpi4py", "-m", "bench", *CONVERGENCE, *pairs]
    done = subprocess.run(
        [*command, str(tmp_path / "two"), "--mpi"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.count("steps and Mbit") == 1, done.stdout + done.stderr
    one, two = (lines(tmp_path / name / "convergence.csv")["DIANA", "RandK(0.5)"] for name in ("one", "two"))
    assert one | {"seconds": None} == two | {"seconds": None}
