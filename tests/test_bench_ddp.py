"""`python -m bench ddp`: links, peers, tasks, the arithmetic of the model and of the report. No clock decides."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from rich.console import Console  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # bench is not installed; at the end, so that an installed compress stays first

import compress  # noqa: E402
from bench.__main__ import main  # noqa: E402
from bench.ddp import driver, link, model, peers, report, settings  # noqa: E402
from bench.ddp.pool import Failed, Pool  # noqa: E402
from bench.ddp.tasks import TASKS  # noqa: E402

SHAPES = [(64, 32), (32,), (4, 4)]  # a matrix, a vector and a small matrix


# Links


def best_links(n):
    """As the benchmark has them here."""
    return link.Loopback(n) if link.unavailable() else link.Links(n)


def namespaces():
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout


def test_a_bucket_holds_a_millisecond_and_the_queue_a_tenth_of_a_second():
    assert link._bucket(1000) == ["tbf", "rate", "1000000000bit", "burst", "125000", "limit", "12500000"]
    assert link._bucket(1)[4:] == ["3028", "limit", str(3028 + 20 * link.FRAME)]


def test_loopback_is_for_those_without_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert re.search(r"need root|need Linux|not found", link.unavailable())
    with link.Loopback(3) as links:
        assert not links.shaped and links.command(2) == [] and links.address(2) == "127.0.0.1"
        links.shape(None)
        with pytest.raises(ValueError, match="10 Mbit/s would not be kept"):
            links.shape(10)


def test_links_are_built_shaped_and_removed():
    if link.unavailable():  # so that it is loopback that the benchmark takes
        with pytest.raises(OSError):
            link.Links(2).__enter__()
        return
    with pytest.raises(RuntimeError, match="inside"), link.Links(2) as links:
        links.shape(10)
        for namespace, device in ((links.names[1], "link0"), (links.switch, "port1")):
            command = ["tc", "-n", namespace, "qdisc", "show", "dev", device]
            shown = subprocess.run(command, capture_output=True, text=True).stdout
            assert "tbf" in shown and "rate 10Mbit" in shown
        reach = [*links.command(0), sys.executable, "-c", "import socket; s = socket.socket(socket.AF_INET, "]
        reach[-1] += f"socket.SOCK_DGRAM); s.bind(('{links.address(0)}', 0)); print(s.getsockname()[0])"
        assert subprocess.run(reach, capture_output=True, text=True).stdout.strip() == "10.0.0.1"
        links.shape(None)
        raise RuntimeError("inside")
    assert all(name not in namespaces() for name in [*links.names, links.switch])


def test_what_a_killed_run_has_left_is_removed():
    if link.unavailable():
        assert link.remove_leftovers() == []
        return
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine, left = f"{link.PREFIX}-{os.getpid()}-test", f"{link.PREFIX}-{gone.pid}-test"
    for name in (mine, left):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        assert left in link.remove_leftovers()
        assert mine in namespaces() and left not in namespaces()
    finally:
        subprocess.run(["ip", "netns", "del", mine], check=True)


def test_links_are_gone_after_sigterm():
    if link.unavailable():
        with link.ending_on_sigterm(), pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        return
    code = """if True:
        import time
        from bench.ddp import link
        with link.ending_on_sigterm(), link.Links(2) as links:
            print(links.switch, flush=True)
            time.sleep(60)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        name = run.stdout.readline().strip()
        assert name in namespaces()
        run.terminate()
        assert run.wait(30) == 143
    finally:
        run.kill()
        run.wait()
        run.stdout.close()
    assert name.removesuffix("switch") not in namespaces()


# Ranks: one pool for all that need it


@pytest.fixture(scope="module")
def pool():
    with best_links(2) as links, Pool(links) as ranks:
        yield ranks


def trained(pool, setting, steps, **options):
    pool.call("begin", 60, task="cnn", setting=setting, seed=0, **{"warmup": 2, "auto": False} | options)
    ranks = pool.call("steps", 100, number=steps, test_every=2)
    return ranks, pool.call("end", 30)


def test_every_setting_trains_equal_replicas_and_its_bytes_are_those_of_the_model(pool):
    names = [*settings.chosen(ours_text="ChunkTopK(); Eden(bits=1)")]
    shapes = [tuple(p.shape) for p in TASKS["cnn"].model().parameters()]
    losses, known = {}, settings.chosen(ours_text="ChunkTopK(); Eden(bits=1)")
    for name in names:
        ranks, ends = trained(pool, name, 16)
        assert ends[0]["checksum"] == ends[1]["checksum"], name
        assert ranks[0]["tests"] == ranks[1]["tests"]
        losses[name] = ranks[0]["tests"][-1][1]
        assert losses[name] < 0.9 * max(loss for _, loss, _ in ranks[0]["tests"]), name
        received = np.median([each["received"][4:] for each in ranks]) / (1 if pool.links.shaped else 2)
        bits = known[name].work(2, shapes).bits
        assert 0.98 < 8 * received / bits < 1.1 + 8e4 / bits, name  # frames, and acknowledgements
    for name, close in (("float32", 1e-2), ("fp16", 1e-2), ("fp8 two-shot", 3e-2), ("int4 two-shot", 5e-2)):
        assert losses[name] == pytest.approx(losses["bf16"], rel=close), name
    assert pool.call("code", 60, task="cnn", setting="Eden(1)")[0].keys() == {"encode", "decode", "bits"}


def test_a_hook_that_may_choose_says_what_it_did(pool):
    _, ends = trained(pool, "ScaledSign()", 16, auto=True)
    assert ends[0]["mode"] in ("compressed", "dense") and ends[0]["mode"] == ends[1]["mode"]
    assert "from step to step" in ends[0]["report"]


def test_links_are_measured(pool):
    for each in pool.call("link", 60, size=100_000):
        assert each["rate"] > 0
    assert each.keys() == {"latency", "overhead", "rate"}


def test_without_communication_replicas_drift(pool):
    ranks, ends = trained(pool, settings.SILENT, 3)
    assert ends[0]["checksum"] != ends[1]["checksum"]
    assert max(ranks[0]["received"]) < 1e5


def test_a_job_that_fails_is_named_and_the_next_one_runs(pool):
    with pytest.raises(Failed, match=r"ValueError: .*unknown name 'Nothing'"):
        pool.call("begin", 60, task="cnn", setting="Nothing()", seed=0, warmup=0)
    assert len(pool.call("link", 60, size=1000)) == 2  # by new ranks
    pool.processes[1].kill()
    pool.processes[1].wait()
    with pytest.raises(Failed, match="rank 1"):
        pool.call("link", 60, size=1000)
    with pytest.raises(Failed, match="no answer of rank 0, 1 after 0 s"):
        pool.call("link", 0.0, size=10**7)


# Peers


@pytest.mark.parametrize(
    ("codec", "bits", "error"), [(peers.FP8(), 8.125, 2e-3), (peers.Int4(), 4.25, 2e-2)], ids=["fp8", "int4"]
)
def test_codecs_of_peers(codec, bits, error):
    """Their size, an error that the bits allow, and rows that know nothing of each other."""
    x = torch.randn(3, 10 * codec.block, generator=torch.Generator().manual_seed(0))
    x[1] *= 1e4
    x[2, : codec.block] = 0
    messages = codec.encode(x.clone())
    assert messages.dtype == torch.uint8 and 8 * messages.shape[1] == bits * x.shape[1]
    decoded = codec.decode(messages)
    errors = ((decoded - x) ** 2).sum(1) / (x**2).sum(1)
    assert decoded.shape == x.shape and (errors < error).all() and errors.max() > error / 20
    assert torch.equal(codec.decode(messages[1:2])[0], decoded[1])
    assert (decoded[2, : codec.block] == 0).all()


def test_the_largest_of_a_block_is_exact_up_to_its_scale():
    for codec in (peers.FP8(), peers.Int4()):
        x = torch.zeros(1, codec.block)
        x[0, 5] = -3.3
        assert codec.decode(codec.encode(x.clone()))[0, 5].item() == pytest.approx(-3.3, rel=2**-8)


JOB = """
import sys, torch, torch.distributed as dist
from bench.ddp import peers
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
def vector(r, d):
    return torch.randn(d, generator=torch.Generator().manual_seed(r))
for d in (1, 1000, 4097):
    exact = (vector(0, d) + vector(1, d)) / 2
    for codec, error in ((peers.FP8(), 2e-3), (peers.Int4(), 3e-2)):
        x = vector(rank, d)
        peers.TwoShot(codec).mean(x)
        both = [torch.empty(d), torch.empty(d)]
        dist.all_gather(both, x)
        assert torch.equal(*both)
        assert ((x - exact) ** 2).sum() <= error * (exact ** 2).sum() + 1e-12, (d, codec)
    kept, total = peers.TwoShot(peers.Int4(), feedback=True), torch.zeros(d)
    for _ in range(50):
        x = vector(rank, d)
        kept.mean(x, "name")
        total += x
    # what is left out comes later: the error of a sum does not grow with its length
    assert ((total / 50 - exact) ** 2).sum() <= 1e-4 * (exact ** 2).sum() + 1e-12, d
print("rank", rank, "is done")
"""


def test_two_shots_give_the_mean_on_every_rank(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank, process in enumerate(ranks):
            said, complaint = process.communicate(timeout=60)
            assert said.strip() == f"rank {rank} is done", complaint
    finally:
        for process in ranks:
            process.kill()
            process.wait()


# Settings


def test_settings_are_chosen_by_name():
    found = settings.chosen("fp16, PowerSGD(2)", "Eden(bits=1)")
    assert list(found) == ["bf16", "float32", "fp16", "PowerSGD(2)", "Eden(1)"]
    assert [each.kind for each in found.values()] == ["reference", "reference", "peer", "peer", "ours"]
    assert list(settings.chosen("", "")) == ["bf16"]
    text = "PowerIteration(8, UniformQuantizer(bits=3)); PowerIteration(4, decay=0.9)"
    assert [*settings.chosen("", text)][1] == "PowerIteration(8, UniformQuantizer(3))"
    assert all(settings.named(name).name == name for name in settings.chosen("", text))
    with pytest.raises(ValueError, match=r"unknown peer 'fp17'; known: bf16, float32"):
        settings.chosen("fp17")


@pytest.mark.parametrize("name", settings.chosen())
def test_coders_take_a_gradient_and_give_it_back(name):
    setting = settings.chosen()[name]
    x = torch.randn(settings.count(SHAPES), generator=torch.Generator().manual_seed(0))
    encode, decode = setting.coder(SHAPES)
    decoded = decode(encode(x.clone()))
    if name in ("bf16", "float32", "fp16"):
        assert torch.allclose(decoded, x, rtol=1e-2)
    elif "PowerIteration" in name:
        assert decoded is None  # a whole step is what is timed
    elif setting.kind == "ours":
        assert np.sum((decoded - x.numpy()) ** 2) < x.square().sum()
    elif "PowerSGD" in name:
        assert [tuple(each.shape) for each in decoded] == [(64, 32)]
    else:
        whole = decoded.numel()
        assert ((decoded[0] - x[:whole]) ** 2).sum() < 0.02 * x.square().sum()


def test_work_by_hand():
    known, d = settings.chosen(), 64 * 32 + 32 + 16
    assert known["bf16"].work(4, SHAPES) == settings.Work(1.5 * 16 * d, 6, 0, d, d)
    message = 8 * (64 // 2 + 2) * math.ceil(d / 4 / 64)
    assert known["int4 two-shot"].work(4, SHAPES) == settings.Work(6 * message, 2, 6, 1.25 * d, 3.25 * d)
    sent = 2 * (64 + 32) + 32 + 16  # rank 2: the factors of the first, the others as they are
    assert known["PowerSGD(2)"].work(4, SHAPES).bits == 1.5 * 32 * sent
    eden = settings.ours(compress.Eden(2), "Eden(2)")
    reduce = compress.AllReduce(compress.Eden(2), memory="error")
    assert reduce.two_shot(4, 2048)
    work = eden.work(4, SHAPES)
    assert work.bits == reduce.received_bits(4, 2048) + 2 * settings.HEADER * 3 + 1.5 * 16 * 48
    assert work[1:] == (2 + 6, 6, 2048, 0.75 * 2048 + 2 * 2048)
    power = settings.ours(compress.PowerIteration(2), "PowerIteration(2)").work(4, SHAPES)  # gathered, both factors
    message = sum(compress.Eden(4).bits(2 * size) for size in SHAPES[0])
    assert power == settings.Work(3 * (message + 2 * settings.HEADER) + 1.5 * 16 * 48, 2 + 6, 6, 2048, 0)
    trellis = settings.ours(compress.Trellis(bits=0.5), "Trellis(0.5)")  # no fixed length: as was measured
    assert trellis.work(4, SHAPES, 0.5).bits == 6 * 0.5 * 512 + 2 * settings.HEADER * 3 + 1.5 * 16 * 48


# Tasks


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_fixed_shared_out_and_learnt(name):
    task = TASKS[name]
    torch.manual_seed(0)
    trained = task.model()
    size = sum(p.numel() for p in trained.parameters())
    assert 0.8e6 < size < 1.1e6
    batch = task.batch(0, 3)
    assert all(torch.equal(a, b) for a, b in zip(batch, task.batch(0, 3), strict=True))
    assert not torch.equal(batch[0], task.batch(1, 3)[0])
    shares = [task.share(batch, rank, 4) for rank in range(4)]
    assert all(
        torch.equal(torch.cat(parts), whole) for parts, whole in zip(zip(*shares, strict=True), batch, strict=True)
    )
    before, _ = task.scores(trained, task.tests())
    optimizer = task.optimizer(trained.parameters())
    for step in range(15):
        optimizer.zero_grad()
        task.scores(trained, task.batch(0, step))[0].backward()
        optimizer.step()
    after, right = task.scores(trained, task.tests())
    assert after < 0.9 * before and 0 < right < 1
    rates = [task.rate(step) for step in range(task.steps)]
    assert max(rates) == 1 and rates[0] < 0.1 and rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_transformer_does_not_see_what_comes():
    torch.manual_seed(0)
    net = TASKS["transformer"].model().eval()
    tokens = torch.randint(128, (1, 64))
    other = tokens.clone()
    other[0, 40:] = (other[0, 40:] + 1) % 128
    with torch.no_grad():
        a, b = net(tokens), net(other)
    assert torch.allclose(a[:, :, :40], b[:, :, :40], atol=1e-5) and not torch.allclose(a[:, :, 40:], b[:, :, 40:])


# The model


def test_steps_to_a_target():
    tests = [(10 * k, 1.0 - 0.01 * k, 0.5) for k in range(1, 21)]
    steps, losses = model.smoothed(tests)
    assert steps[6] == 70 and losses[0] == 0.99 and losses[6] == pytest.approx(0.95)
    assert model.target(tests) == pytest.approx(1 - 0.15)  # at step 170, the mean of steps 130 to 170
    assert model.steps_to(tests, 0.85) == pytest.approx(170)
    assert model.steps_to(tests, 0.855) == pytest.approx(165)
    assert model.steps_to(tests, 0.5) is None and model.steps_to(tests, 2.0) == 10


def test_lines_and_where_they_cross():
    assert model.fit([10, 100, 1000], [0.3, 0.12, 0.102]) == model.Line(pytest.approx(0.1), pytest.approx(2))
    assert model.fit([10, 100], [1.0, 2.0]).c == 0  # more bandwidth never takes longer
    assert model.fit([10, math.inf], [1.2, 0.2]) == model.Line(pytest.approx(0.2), pytest.approx(10))
    dense, slim = model.Line(0.1, 24), model.Line(0.2, 4)
    below = model.pays_below(slim, dense)
    assert below == pytest.approx(200) and slim(below) == pytest.approx(dense(below))
    assert (
        model.pays_below(model.Line(0.1, 4), dense) == math.inf and model.pays_below(model.Line(0.05, 30), dense) == 0
    )
    assert 2 * dense + slim == model.Line(pytest.approx(0.4), pytest.approx(52))
    assert model.total(100, 10, 5.0, 1.0) == 140 and model.total(4, 10, 5.0, 1.0) == 20


def test_a_step_by_the_model():
    work = settings.Work(bits=2e6, waits=6, messages=12, encoded=1e6, decoded=2e6)
    predicted = model.predict(work, model.Link(1e-3, 1e-4, 100), 0.05, 1e-9, 2e-9)
    assert predicted == pytest.approx(0.05 + 0.001 + 0.004 + 0.006 + 0.0012 + 0.02)


# The report


def recorded():
    """Two settings of ours, two peers and the baseline, with numbers that are easy to follow."""
    known = settings.chosen("bf16, float32, PowerSGD(2)", "Eden(bits=1); ScaledSign()")

    def tests(slower, floor=0.0, right=0.9):
        return [[10 * k, max(floor, 2 - 0.01 * 10 * k / slower), right] for k in range(1, 11)]

    curves = {
        "bf16": tests(1),
        "float32": tests(1),
        "PowerSGD(2)": tests(1.1),
        "Eden(1)": tests(1.05, right=0.896),
        "ScaledSign()": tests(1, floor=1.5, right=0.8),
    }
    step = {
        "bf16": (0.1, 24),
        "float32": (0.1, 48),
        "PowerSGD(2)": (0.2, 2),
        "Eden(1)": (0.15, 1),
        "ScaledSign()": (0.15, 1),
    }
    rates = [10.0, 100.0, 1000.0]
    runs = [
        {
            "task": "cnn",
            "n": 4,
            "setting": s,
            "seed": seed,
            "tests": curve,
            "bytes": 1e5,
            "identical": True,
            "report": None,
        }
        for s, curve in curves.items()
        for seed in (0, 1)
    ]
    times = [
        {
            "task": "cnn",
            "n": 4,
            "setting": s,
            "rate": rate,
            "visit": 0,
            "auto": False,
            "seconds": [a + c / (rate or math.inf)] * 3,
        }
        for s, (a, c) in step.items()
        for rate in (None, *rates)
    ]
    auto = {"task": "cnn", "n": 4, "rate": 1000.0, "visit": 0, "auto": True, "report": ""}
    times += [auto | {"setting": s, "seconds": [0.125], "mode": "dense"} for s in ("Eden(1)", "ScaledSign()")]
    costs = [{"task": "cnn", "n": 4, "setting": settings.SILENT, "compute": 0.1}]
    costs += [{"task": "cnn", "n": 4, "setting": s, "encode": 1e-9, "decode": 1e-9, "bits": 0.0} for s in curves]
    record = {
        "setup": {
            "tasks": {"cnn": {"title": "a net", "steps": 100}},
            "shapes": {"cnn": [[1000, 100]]},
            "ranks": [4],
            "rates": rates,
            "seeds": [0, 1],
            "shaped": True,
            "reason": None,
            "minutes": 1.0,
        },
        "settings": [{"name": s.name, "kind": s.kind, "warmup": s.warmup, "dense": s.dense} for s in known.values()],
        "links": [{"n": 4, "rate": r, "alpha": 1e-4, "overhead": 1e-5, "beta": r or 5000} for r in (None, *rates)],
        "runs": runs,
        "times": times,
        "costs": costs,
        "full": [
            {
                "task": "cnn",
                "n": 4,
                "setting": "bf16",
                "rate": 100.0,
                "steps": 80,
                "seconds": 30.0,
                "product": 27.2,
                "mode": None,
            }
        ],
        "failures": [{"task": "cnn", "n": 4, "setting": "fp16", "what": "training", "reason": "rank 1 has died"}],
    }
    return json.loads(json.dumps(record)), known


def test_a_record_is_summed_up():
    record, known = recorded()
    rows = {row.name: row for row in report.summary(record, "cnn", 4)}
    assert list(rows) == list(known)
    base, eden, sign, low_rank = (rows[name] for name in ("bf16", "Eden(1)", "ScaledSign()", "PowerSGD(2)"))
    assert base.bits == 8 and base.steps == 80 and base.time(10.0) == pytest.approx(80 * 2.5)
    assert eden.steps == pytest.approx(83, abs=0.5) and eden.reached == 2
    # ten dense steps, and the others compressed; at 1000 Mbit/s it was dense, with bf16's steps
    assert eden.time(100.0) == pytest.approx(10 * 0.34 + (eden.steps - 10) * 0.16)
    assert eden.time(1000.0) == pytest.approx(80 * 0.125) and eden.modes == {1000.0: "dense"}
    assert low_rank.time(10.0) == pytest.approx(2 * 4.9 + (low_rank.steps - 2) * 0.4)
    assert sign.steps is None and math.isinf(sign.time(10.0))
    assert eden.as_good and eden.accuracy_change == pytest.approx(-0.4) and not sign.as_good
    below = model.pays_below(eden.line, base.line)
    fixed = 10 * model.Line(0.1, 24) + (eden.steps - 10) * model.Line(0.15, 1)
    assert below == pytest.approx(model.pays_below(fixed, 80 * model.Line(0.1, 24)), rel=1e-6) and 100 < below < 1000


def test_bars_are_held_against_the_record():
    record, _ = recorded()
    rows = report.summary(record, "cnn", 4)
    checks = report.bars("cnn", rows)
    assert [check.ok for check in checks] == [True, False, False, False, True, True]
    eden = next(row for row in rows if row.name == "Eden(1)")
    assert checks[1].measured == f"{(10 * 2.5 + (eden.steps - 10) * 0.25) / 200:.3f} x (Eden(1))"
    assert report.bars("cnn", []) == []


def test_predictions_against_what_was_measured():
    record, known = recorded()
    found = {
        (name, rate): (measured, predicted) for *_, name, rate, measured, predicted in report.predictions(record, known)
    }
    measured, predicted = found["bf16", 10.0]
    assert measured == 2.5 and predicted == pytest.approx(0.1 + 2e-4 + 6e-4 + 1.5 * 16e5 / 1e7)
    many = report.scaled(record, known, "cnn", 4)
    assert many["bf16"][8, 10.0] == pytest.approx(0.1 + 2e-4 + 14e-4 + 1.75 * 16e5 / 1e7)
    assert all(math.isfinite(t) and t > 0.1 for cells in many.values() for t in cells.values())
    assert set(many["Eden(1)"]) == {(n, rate) for n in report.SIZES for rate in (10.0, 100.0, 1000.0)}


def test_tables_files_and_figure_of_a_record(tmp_path):
    record, known = recorded()
    rows = report.summary(record, "cnn", 4)
    screen = Console(width=150, record=True, file=open(os.devnull, "w"))
    report.of_links(record, screen)
    report.of_task(record, "cnn", 4, rows, screen)
    report.of_full(record, screen)
    report.of_model(record, known, screen)
    report.of_failures(record, screen)
    text = screen.export_text()
    screen.file.close()
    assert "rank 1 has died" in text and "0 of 2" in text and "(-9%)" in text
    assert any("Eden(1)" in line and "125d" in line for line in text.splitlines())
    report.save(record, rows, tmp_path)
    lines = (tmp_path / "ddp.csv").read_text().splitlines()
    assert len(lines) == 1 + 5 * 3 and len(lines[0].split(",")) == len(lines[1].split(",")) == 17
    report.figure(record, rows, tmp_path / "ddp.png")
    assert (tmp_path / "ddp.png").stat().st_size > 10_000


def test_a_record_is_shown_again(tmp_path, capsys):
    record, _ = recorded()
    (tmp_path / "ddp.json").write_text(json.dumps(record))
    assert main(["ddp", "--record", str(tmp_path / "ddp.json"), "--out", str(tmp_path)]) == 1  # three bars do not hold
    text = capsys.readouterr().out
    assert "0.216 x (Eden(1))" in text and (tmp_path / "ddp.png").exists() and (tmp_path / "ddp.csv").exists()


def test_without_links_bytes_stand_for_seconds():
    record, _ = recorded()
    record["setup"] |= {"shaped": False, "reason": "network namespaces need root"}
    record["times"] = [row for row in record["times"] if row["rate"] is None]
    rows = {row.name: row for row in report.summary(record, "cnn", 4)}
    assert rows["bf16"].seconds[10.0] == pytest.approx(0.1 + 8e5 / 1e7)


# The whole


def test_a_small_run_on_loopback(tmp_path, monkeypatch, capsys):
    """From the command line, with what has no root: every part of it, on a scale of seconds."""
    monkeypatch.setattr(driver, "unavailable", lambda: "network namespaces need root")
    monkeypatch.setattr(driver, "ROUNDS", 1)
    monkeypatch.setattr(driver, "TASKS", {"cnn": _short(TASKS["cnn"])})
    options = "--tasks cnn --ranks 2 --rates 10 --seeds 1 --peers= --ours Eden(bits=1)".split()
    status = main(["ddp", *options, "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "network namespaces need root" in text and "Eden(1)" in text
    record = json.loads((tmp_path / "ddp.json").read_text())
    assert not record["failures"] and {run["setting"] for run in record["runs"]} == {"bf16", "Eden(1)"}
    assert all(run["identical"] for run in record["runs"]) and status in (0, 1)


def _short(task):
    from dataclasses import replace

    return replace(task, steps=20)


def test_what_cannot_be_run_is_said(capsys):
    for options, said in (
        (["--tasks", "rnn"], "unknown task 'rnn'; known: cnn, transformer"),
        (["--ranks", "1"], "--ranks must be at least 2"),
        (["--ours", "Nothing()"], "unknown name 'Nothing'"),
        (["--ours", "LowRank(0.07)"], "is not exact: LowRank"),
        (["--peers", "mx9"], "unknown peer 'mx9'"),
        (["--record", "nosuch.json"], "--record nosuch.json: [Errno 2] No such file"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(["ddp", *options])
        assert exit.value.code == 2 and said in capsys.readouterr().err
