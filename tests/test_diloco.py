"""DiLoCo against its formulas, in one process; and on ranks, which join, leave, fail and die (diloco_jobs.py)."""

import copy
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from diloco_jobs import batch, checksum, network, sgd  # noqa: E402
from torch import nn  # noqa: E402

import compress  # noqa: E402
from compress.allreduce import Refused  # noqa: E402
from compress.torch import DiLoCo  # noqa: E402

DEADLINE = 150  # seconds for a job, several times what one takes


def job(name, size, processes, folder):
    """What each rank prints. Fails where one does, or has not ended in time."""
    command = [sys.executable, "-W", "error", str(Path(__file__).parent / "diloco_jobs.py"), name]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(compress.__file__).parents[1])}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    started = [subprocess.Popen([*command, str(rank), str(size), folder], **options) for rank in range(processes)]
    try:
        said = [process.communicate(timeout=DEADLINE)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


@pytest.mark.parametrize("name, size", [("same_as_local", 2), ("refusals", 2), ("leave_and_rejoin", 3), ("apart", 2)])
def test_on_ranks(name, size, tmp_path):
    for code, said in job(name, size, size, tmp_path):
        assert code == 0, said


def test_a_rank_dies_and_another_takes_its_place(tmp_path):
    (first, said), second, dead, (reborn, late) = job("killed", 3, 4, tmp_path)
    assert (first, second[0], dead[0], reborn) == (0, 0, 1, 0), (said, second[1], dead[1], late)
    assert all("went on" in text for text in (said, second[1], late))


# In one process


def workers(n, make=network):
    models = [make(0) for _ in range(n)]
    return models, [sgd(model) for model in models]


def advance(models, inner, outer, steps):
    """The mean loss of each step, over the workers."""
    losses = []
    for _ in range(steps):
        total = 0.0
        for i, (model, optimizer) in enumerate(zip(models, inner, strict=True)):
            inputs, outputs = batch(i, outer.steps)
            optimizer.zero_grad()
            loss = (model(inputs) - outputs).square().mean()
            loss.backward()
            optimizer.step()
            total += loss.item()
        outer.step()
        losses.append(total / len(models))
    return losses


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


class Reference:
    """n copies of a model, and torch's SGD on their mean move, part by part."""

    def __init__(self, n, period, lr, momentum, nesterov, parts):
        self.models, self.inner = workers(n)
        self.whole, self.period, self.steps = network(0), period, 0
        groups = [[p for i, p in enumerate(self.whole.parameters()) if i in part] for part in parts]
        self.parts = parts
        self.outer = [
            torch.optim.SGD(group, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0) for group in groups
        ]

    def step(self):
        self.steps += 1
        for p, (part, outer) in enumerate(zip(self.parts, self.outer, strict=True)):
            if (self.steps + p * self.period // len(self.parts)) % self.period:
                continue
            every = [list(model.parameters()) for model in self.models]
            for i, x in enumerate(self.whole.parameters()):
                if i in part:
                    x.grad = torch.stack([x.detach() - own[i].detach() for own in every]).mean(0)
            outer.step()
            with torch.no_grad():
                for i, x in enumerate(self.whole.parameters()):
                    for own in every if i in part else ():
                        own[i].copy_(x)


@pytest.mark.parametrize("n, parts", [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("lr, momentum, nesterov", [(0.7, 0.9, True), (0.5, 0.6, False), (1.0, 0.0, True)])
def test_without_compression_it_is_diloco(n, parts, lr, momentum, nesterov):
    # the first matrix is 80% of all parameters
    reference = Reference(n, 4, lr, momentum, nesterov, [{0, 1, 2, 3}] if parts == 1 else [{0}, {1, 2, 3}])
    models, inner = workers(n)
    options = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "fragments": parts}
    outer = DiLoCo(models, period=4, group=compress.Local(n), **options)
    for _ in range(6):
        advance(models, inner, outer, 4)
        advance(reference.models, reference.inner, reference, 4)
        for mine, theirs in zip(models, reference.models, strict=True):
            assert flat(mine) == pytest.approx(flat(theirs), abs=2e-6)
    assert outer.rounds == 6 * parts


def test_a_round_a_step_is_synchronous_sgd():
    models = [network(0) for _ in range(4)]
    inner = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    outer = DiLoCo(models, period=1, lr=1.0, momentum=0.0, group=compress.Local(4))
    advance(models, inner, outer, 20)
    model = network(0)
    for step in range(20):
        model.zero_grad()
        for i in range(4):
            inputs, outputs = batch(i, step)
            ((model(inputs) - outputs).square().mean() / 4).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    assert flat(models[0]) == pytest.approx(flat(model), abs=2e-6)


COMPRESSORS = {
    "SparseLoCo": {"compressor": compress.ChunkTopK(256, 16), "momentum": 0.0, "lr": 1.0, "decay": 0.95},
    "DeMo": {"compressor": compress.DCT(compress.ChunkTopK(64, 4)), "momentum": 0.5},
    "MuLoCo": {"compressor": compress.Eden(2), "momentum": 0.5},
    "Trellis": {"compressor": compress.Trellis(bits=0.5), "momentum": 0.5},
    "LowRank": {"compressor": compress.LowRank(0.5), "momentum": 0.5},
    "ahead": {"compressor": compress.LowRank(0.2), "momentum": 0.0, "lr": 1.0, "ahead": 1.0},
    "unbiased": {"compressor": compress.RandK(0.2), "down": compress.StandardDithering(7), "momentum": 0.5},
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed_rounds_train_as_exact_ones(name):
    """Replicas are the same, the loss falls nearly as far, and what is left out is remembered."""
    found = []
    for options in ({"momentum": 0.5}, COMPRESSORS[name]):
        models, inner = workers(4)
        outer = DiLoCo(models, period=5, group=compress.Local(4), **options)
        found.append(advance(models, inner, outer, 150))
        with outer.averaged():
            assert len({checksum(model) for model in models}) == 1
    exact, compressed = found
    first, last = np.mean(exact[:5]), np.mean(exact[-20:])
    assert last < 0.5 * first
    assert np.mean(compressed[-20:]) < last + 0.2 * (first - last)
    assert all(np.any(error) for error in outer._fragments[0].state.memory.up)


@pytest.mark.parametrize(
    "pattern, ahead, lr", [("gather", 0, 1), ("gather", 1, 1), ("gather", 0.7, 0.3), ("two-shot", 0, 0.5)]
)
def test_nothing_is_lost_but_what_is_remembered(pattern, ahead, lr):
    """Sum of all moves = sum of all means + what memories hold; also when the group is made anew."""
    models, _ = workers(3)
    group = compress.Local(3)
    options = {"lr": lr, "momentum": 0.0, "pattern": pattern, "ahead": ahead}
    outer = DiLoCo(models, compress.ChunkTopK(64, 4), period=1, group=group, **options)
    generator, start = torch.Generator().manual_seed(0), flat(models[0])
    moved = np.zeros_like(start)
    for step in range(12):
        before = [flat(model) for model in models]
        for p in (p for model in models for p in model.parameters()):
            with torch.no_grad():
                p -= torch.randn(p.shape, generator=generator)
        moved += sum(then - flat(model) for then, model in zip(before, models, strict=True)) / 3
        outer.step()
        whole, memory = outer._fragments[0].state.start, outer._fragments[0].state.memory
        left = sum(memory.up) / 3 + (np.concatenate(memory.down) if memory.down else 0)
        assert (start - whole) / lr + left == pytest.approx(moved, abs=1e-4)
        for model, error in zip(models, memory.up, strict=True):
            assert np.array_equal(flat(model), whole - np.float32(ahead * lr) * error)
        assert np.linalg.norm(left) > 0.1 * np.linalg.norm(moved)
        if step % 4 == 3:
            outer.regroup(compress.Local(3))
            assert sum(outer._fragments[0].state.memory.up) / 3 == pytest.approx(left, abs=1e-4)


def test_a_part_of_what_is_left_out_is_kept():
    """e <- decay (e + move - C(e + move)), which is SparseLoCo's error feedback."""
    models, C = [nn.Linear(64, 32, bias=False) for _ in range(2)], compress.ChunkTopK(64, 4)
    options = {"lr": 1.0, "momentum": 0.0, "decay": 0.75, "pattern": "gather", "group": compress.Local(2)}
    outer, rng = DiLoCo(models, C, **options), np.random.default_rng(0)
    errors = [np.zeros(64 * 32, np.float32) for _ in models]
    for _ in range(3):
        whole, means = outer._fragments[0].state.start, []
        for i, model in enumerate(models):
            move = rng.standard_normal(64 * 32).astype(np.float32)
            with torch.no_grad():
                model.weight.copy_(torch.from_numpy(whole - move).view(32, 64))
            target = errors[i] + move
            means.append(C(target, compress.Key(0)))
            errors[i] = 0.75 * (target - means[i])
        outer.synchronise()
        assert outer._fragments[0].state.start == pytest.approx(whole - np.mean(means, axis=0), abs=1e-5)
        for mine, error in zip(outer._fragments[0].state.memory.up, errors, strict=True):
            assert mine == pytest.approx(error, abs=1e-5) and np.any(error)


@pytest.mark.parametrize("pattern, most", [("gather", 256), ("auto", 64)])
def test_two_shot_makes_the_mean_sparse_as_well(pattern, most):
    models = [nn.Linear(4096, 16, bias=False) for _ in range(4)]
    outer = DiLoCo(models, compress.ChunkTopK(), lr=1.0, momentum=0.0, pattern=pattern, group=compress.Local(4))
    start = outer._fragments[0].state.start
    with torch.no_grad():
        for each in models:
            each.weight += torch.randn(each.weight.shape)
    outer.synchronise()
    moved = np.count_nonzero(outer._fragments[0].state.start - start)
    assert 0.9 * most * 16 < moved <= most * 16


def test_sparseloco_in_less_than_ten_bits_a_value():
    """What they send takes 14 bits a value: 12 of an index in a chunk of 4096, and 2."""
    model = nn.Linear(4096, 320, bias=False)
    models = [copy.deepcopy(model) for _ in range(2)]
    outer = DiLoCo(models, compress.ChunkTopK(), period=1, momentum=0.0, decay=0.95, group=compress.Local(2))
    with torch.no_grad():
        for each in models:
            each.weight += torch.randn(each.weight.shape)
    before = copy.copy(outer.comm.ledger)
    outer.step()
    after, values = outer.comm.ledger, 320 * 64
    agreement = 5 + 24  # bytes of a worker
    assert np.count_nonzero(outer._fragments[0].state.start - model.weight.detach().numpy().ravel()) > values
    assert (after.bits_up - before.bits_up) / 2 - 32 <= 9.6 * values
    assert (after.wire_up - before.wire_up) / 2 - agreement <= 9.6 * values / 8 + 24
    report = outer.report()
    assert report.sent == report.received == (after.wire_up - before.wire_up) / 2
    assert report.ratio > 200 and report.dense == 32
    assert "of 2 workers, 1,310,720 parameters: " in str(report) and f"{report.ratio:.4g} x fewer" in str(report)


def test_nan_is_refused_by_name_and_nothing_has_changed():
    models, inner = workers(3)
    outer = DiLoCo(models, compress.Eden(2), period=2, fragments=2, group=compress.Local(3))
    advance(models, inner, outer, 4)
    with torch.no_grad():
        models[1][0].weight[0, 3] = torch.inf
        models[2][2].weight.fill_(torch.nan)
        models[2][2].bias[0] = torch.nan
    before, states = [checksum(model) for model in models], [fragment.state for fragment in outer._fragments]
    report = outer.report()
    with pytest.raises(
        Refused, match=r"round 4 is refused, worker 2: 2.weight has 512 NaN or Inf among 512 elements, a"
    ):
        outer.step()
    with pytest.raises(Refused, match=r"worker 1: 0.weight has 1 NaN or Inf among 2560 elements$"):
        outer.step()
    assert before == [checksum(model) for model in models] and outer.rounds == 4 and outer.steps == 6
    assert outer.report() == report and 0 < report.encode + report.decode + report.wait < report.seconds
    assert min(report.encode, report.decode, report.wait) > 0
    assert all(fragment.state is state for fragment, state in zip(outer._fragments, states, strict=True))
    outer.restore()
    assert len({checksum(model) for model in models}) == 1
    inner = [sgd(model) for model in models]
    assert np.isfinite(advance(models, inner, outer, 4)).all() and outer.rounds == 8
    with torch.no_grad():
        models[1][2].bias[0] = torch.nan
    with pytest.raises(Refused):
        outer.synchronise()
    # the first fragment, which is before, has had its round
    assert outer.rounds == 9 and outer._fragments[1].names[-1] == "2.bias"


def test_an_outer_step_beyond_floats_changes_nothing():
    models = [nn.Linear(2, 1, bias=False) for _ in range(2)]
    outer = DiLoCo(models, period=1, lr=1e30, group=compress.Local(2))
    with torch.no_grad():
        models[0].weight.fill_(1e20)
    state = outer._fragments[0].state
    with pytest.raises(RuntimeError, match="takes weight out of the range of float32: lr = 1e\\+30"):
        outer.step()
    assert outer._fragments[0].state is state


def test_a_float16_model_stays_in_its_range():
    models = [nn.Linear(4, 3).half() for _ in range(2)]
    for model in models:
        model.norm = nn.BatchNorm1d(3)
        model.norm.running_var.fill_(1e9)  # float32
    outer = DiLoCo(models, lr=4.0, momentum=0.0, group=compress.Local(2))
    state = outer._fragments[0].state
    with torch.no_grad():
        for model in models:
            model.bias.fill_(30_000)
    with pytest.raises(RuntimeError, match=r"takes bias out of the range of float16: lr = 4\.0"):
        outer.synchronise()
    assert outer._fragments[0].state is state and all(model.bias.isfinite().all() for model in models)
    outer.lr = 1.0
    outer.synchronise()
    assert all(torch.equal(model.bias, torch.full((3,), 30_000).half()) for model in models)


def test_tensors_that_were_replaced_are_named():
    for replace, name in (
        (lambda model: model[0].load_state_dict(model[0].state_dict(), assign=True), "0.weight"),
        (lambda model: model.double(), "0.weight"),
        (lambda model: setattr(model[1], "running_mean", torch.zeros(6)), "1.running_mean"),
    ):
        models = [nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)) for _ in range(2)]
        outer = DiLoCo(models, group=compress.Local(2))
        outer.synchronise()
        replace(models[1])
        with pytest.raises(Refused, match=rf"round 1 is refused, worker 1: {name} is not the tensor it was: after to"):
            outer.synchronise()
        assert outer.rounds == 1
        DiLoCo(models, group=compress.Local(2)).synchronise() if "mean" in name else None
    model = nn.Linear(3, 3)
    first, second = (DiLoCo(model, group=compress.Local(1)) for _ in range(2))
    with pytest.raises(Refused, match="worker 0: a newer DiLoCo has the model"):
        first.synchronise()
    second.synchronise()


def test_work_is_on_the_device_and_stream_of_the_model(monkeypatch):
    """Whatever of a fragment CuPy may do is done inside of same_stream, in every public method."""
    import compress.torch.diloco as module

    inside, seen = [], set()

    @contextmanager
    def recorded(device):
        inside.append(device)
        yield
        inside.pop()

    def watched(name, method):
        def called(*args, **named):
            assert inside[-1:] == [torch.device("cpu")], name
            seen.add(name)
            return method(*args, **named)

        return called

    monkeypatch.setattr(module, "same_stream", recorded)
    names = "vector", "pieces", "moved", "refusal", "beyond", "checksum", "saved", "loaded"
    for name in names:
        monkeypatch.setattr(module._Fragment, name, watched(name, getattr(module._Fragment, name)))
    models, _ = workers(2)
    outer = DiLoCo(models, compress.Eden(1), pattern="gather", ahead=1.0, period=1, group=compress.Local(2))
    outer.step()
    outer.synchronise()
    outer.regroup(compress.Local(2))
    outer.load_state_dict(outer.state_dict())
    outer.restore()
    with outer.averaged():
        assert not inside
    assert not inside and seen == set(names)


def test_one_worker_is_the_outer_optimizer_alone():
    models, inner = workers(1)
    outer = DiLoCo(models[0], compress.ScaledSign(), period=3, group=compress.Local(1))
    advance(models, inner, outer, 12)
    assert outer.comm.ledger == compress.Ledger()
    report = outer.report()
    assert (report.rounds, report.bits, report.sent, report.ratio) == (4, 0, 0, np.inf)
    other, inner = workers(1)
    exact = DiLoCo(other, period=3, group=compress.Local(1))
    advance(other, inner, exact, 12)
    assert checksum(models[0]) == checksum(other[0])


def test_parameters_without_a_gradient_and_without_training_stay():
    models, inner = workers(2)
    for model in models:
        model.unused = nn.Linear(3, 3)
        model.frozen = nn.Parameter(torch.full((5,), 2.0), requires_grad=False)
        model.none = nn.Parameter(torch.empty(0, 4))
    models[1].unused.load_state_dict(models[0].unused.state_dict())
    inner = [sgd(model[:3]) for model in models]
    unused = models[0].unused.weight.detach().clone()
    assert outer_of(models, inner, compress.TopK(0.5)).report().parameters == 40 * 64 + 64 + 64 * 8 + 8 + 12
    for model in models:
        assert torch.equal(model.unused.weight, unused)
        assert torch.equal(model.frozen, torch.full((5,), 2.0))


def outer_of(models, inner, compressor, **options):
    outer = DiLoCo(models, compressor, period=3, group=compress.Local(len(models)), **options)
    for step in range(12):
        for i, (model, optimizer) in enumerate(zip(models, inner, strict=True)):
            inputs, outputs = batch(i, step)
            optimizer.zero_grad()
            (model[:3](inputs) - outputs).square().mean().backward()
            optimizer.step()
        outer.step()
    return outer


def test_bfloat16_models_have_float32_copies():
    """The global parameters are finer than the model, and its rounding is not taken for a move."""
    models = [nn.Linear(8, 8, bias=False).to(torch.bfloat16) for _ in range(2)]
    for model in models:
        nn.init.ones_(model.weight)
    outer = DiLoCo(models, period=1, lr=0.3, momentum=0.0, group=compress.Local(2))
    for model in models:
        nn.init.constant_(model.weight, 0.5)
    for _ in range(5):
        outer.step()
        assert outer._fragments[0].state.start.tolist() == [np.float32(0.85)] * 64
        assert all(torch.equal(model.weight, torch.full((8, 8), 0.85, dtype=torch.bfloat16)) for model in models)
    nn.init.constant_(models[0].weight, 0.5)
    outer.step()
    moved = float(torch.tensor(0.85).bfloat16()) - 0.5
    assert outer._fragments[0].state.start == pytest.approx(0.85 - 0.3 * moved / 2, rel=1e-6)


def test_statistics_of_batchnorm_are_averaged():
    models = [nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)) for _ in range(3)]
    outer = DiLoCo(models, compress.ScaledSign(), period=2, fragments=2, group=compress.Local(3))
    assert [fragment.names[-1] for fragment in outer._fragments] == ["1.running_var", "1.bias"]
    for i, model in enumerate(models):
        model[1].running_mean.copy_(torch.arange(6) * (i + 1.0))
        model[1].running_var.fill_(1e-6 * (i + 1))
        model[1].num_batches_tracked.fill_(i)
    outer.synchronise()
    for i, model in enumerate(models):
        assert model[1].running_mean.tolist() == pytest.approx([0, 2, 4, 6, 8, 10])
        assert model[1].running_var.tolist() == pytest.approx([2e-6] * 6, rel=1e-6)
        assert model[1].num_batches_tracked == i
    models[2][1].running_var[3] = torch.nan
    with pytest.raises(Refused, match=r"worker 2: 1.running_var has 1 NaN"):
        outer.synchronise()


@pytest.mark.parametrize("pattern, ahead", [("gather", 0), ("auto", 0.5), ("two-shot", 0)])
def test_a_checkpoint_goes_on_to_the_same_bits(pattern, ahead, tmp_path):
    def fresh():
        models, inner = workers(2)
        options = {"compressor": compress.Eden(1), "pattern": pattern, "ahead": ahead, "fragments": 2, "period": 4}
        return models, inner, DiLoCo(models, group=compress.Local(2), **options)

    models, inner, outer = fresh()
    advance(models, inner, outer, 9)
    torch.save([[each.state_dict() for each in (*models, *inner, outer)]], tmp_path / "saved")
    losses = advance(models, inner, outer, 11)
    again, inner, resumed = fresh()
    for each, state in zip(
        (*again, *inner, resumed), torch.load(tmp_path / "saved", weights_only=True)[0], strict=True
    ):
        each.load_state_dict(state)
    assert advance(again, inner, resumed, 11) == losses
    assert [checksum(model) for model in again] == [checksum(model) for model in models]
    for mine, theirs in zip(resumed._fragments, outer._fragments, strict=True):
        for a, b in zip(mine.state.memory[:2], theirs.state.memory[:2], strict=True):
            assert all(map(np.array_equal, a, b))
    assert (resumed.rounds, resumed.steps) == (outer.rounds, outer.steps) == (10, 20)


def test_checkpoints_that_do_not_fit():
    models, inner = workers(2)
    outer = DiLoCo(models, compress.Eden(1), period=2, group=compress.Local(2))
    advance(models, inner, outer, 4)
    saved = outer.state_dict()

    def other(n=2, make=network, **options):
        options = {"compressor": compress.Eden(1), "period": 2} | options
        return DiLoCo([make(0) for _ in range(n)], group=compress.Local(n), **options)

    way_out = r"load_state_dict\(state, errors=False\) takes all but the errors"
    for target, what in (
        (other(3), r"the state is of worker \[0, 1\] of 2, this is worker \[0, 1, 2\] of 3; " + way_out),
        (other(compressor=compress.Eden(2)), r"compressor: here are Eden\(rate=2.0.*, the state has .*; " + way_out),
        (other(pattern="gather"), "pattern: .*" + way_out),
        (other(error_feedback=False), "error_feedback: .*" + way_out),
    ):
        before = target._fragments[0].state
        with pytest.raises(ValueError, match=what):
            target.load_state_dict(saved)
        assert target._fragments[0].state is before and target.rounds == 0
        target.load_state_dict(saved, errors=False)
        state = target._fragments[0].state
        assert np.array_equal(state.start, outer._fragments[0].state.start) and (target.rounds, target.steps) == (2, 4)
        assert np.array_equal(state.momentum, outer._fragments[0].state.momentum)
        assert not any(np.any(error) for error in (*state.memory.up, *state.memory.down))
        target.restore()
        assert {checksum(model) for model in target._models} == {checksum(models[0])}
    for target, what in (
        (other(make=lambda seed: network(seed, width=30)), r"tensor 0: here are 0.weight \[64, 30\] .* \[64, 40\]"),
        (other(fragments=2), "fragments: here are 2, the state has 1"),
        (other(momentum=0.0), "momentum = 0 needs none"),
    ):
        for errors in (True, False):
            with pytest.raises(ValueError, match=what):
                target.load_state_dict(saved, errors=errors)
    for broken in ({}, None, {**saved, "fragments": [{}]}, {**saved, "fragments": None}, {**saved, "steps": "x"}):
        with pytest.raises(ValueError, match="DiLoCo"):
            outer.load_state_dict(broken)
    short = {**saved, "fragments": [saved["fragments"][0] | {"start": torch.zeros(3)}]}
    with pytest.raises(ValueError, match=r"a vector of \[3\] torch.float32, expected 3144"):
        outer.load_state_dict(short)
    assert outer.rounds == 2


def test_small_tensors_travel_exactly_where_asked():
    models, inner = workers(3)
    outer = DiLoCo(
        models, compress.ScaledSign(), period=2, min_size=1000, pattern="gather", momentum=0.0, lr=1.0,
        group=compress.Local(3),
    )  # fmt: skip
    moved = advance_once(models, inner, outer)
    assert outer._fragments[0].names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert outer._fragments[0].compressed == 2560
    assert flat(models[0])[2560:] == pytest.approx(moved[2560:], abs=1e-6)
    assert np.abs(flat(models[0])[:2560] - moved[:2560]).max() > 1e-4
    # both ways in float32 for 584 parameters, and a bit for the others, from each of two workers; 5 bytes of agreement
    assert outer.report().bits * 3144 == pytest.approx(2 * (2560 + 32 + 32) + 32 * 584 * 4 / 3, rel=0.01)
    vectors = DiLoCo(models, compress.ScaledSign(), min_size=10, group=compress.Local(3))
    assert vectors._fragments[0].names == ["0.weight", "2.weight", "0.bias", "2.bias"]
    assert vectors._fragments[0].compressed == 2560 + 512  # a bias has 64
    whole = DiLoCo(models, compress.ScaledSign(), min_size=10**6, group=compress.Local(3))
    assert whole._fragments[0].compressed == 0
    whole.synchronise()


def advance_once(models, inner, outer):
    """The mean of what the workers have just before a round."""
    advance(models, inner, outer, outer.period - 1)
    outer.step, kept = lambda: None, outer.step
    advance(models, inner, outer, 1)
    mean = np.mean([flat(model) for model in models], axis=0)
    outer.step = kept
    outer.step()
    return mean


def test_fragments_are_cut_by_whole_tensors():
    class Many(nn.Module):
        def __init__(self, sizes):
            super().__init__()
            self.parts = nn.ParameterList(torch.zeros(size) for size in sizes)

    outer = DiLoCo(Many([10] * 12), period=8, fragments=4, group=compress.Local(1))
    assert [len(fragment.names) for fragment in outer._fragments] == [3, 3, 3, 3]
    assert [[step for step in range(1, 17) if (outer_due(outer, step) == k)] for k in range(4)] == [
        [8, 16], [6, 14], [4, 12], [2, 10],
    ]  # fmt: skip
    outer = DiLoCo(Many([10, 10, 500, 10]), period=8, fragments=4, group=compress.Local(1))
    assert [len(fragment.names) for fragment in outer._fragments] == [2, 1, 1]
    assert [outer.step() for _ in range(8)] == [False, True, False, True, False, False, False, True]


def outer_due(outer, step):
    return next((k for k, f in enumerate(outer._fragments) if (step + f.lead) % outer.period == 0), None)


def test_bad_parameters_are_named():
    model = network()
    for options, kind, what in (
        ({"compressor": "topk"}, TypeError, "compressor"),
        ({"period": 0}, ValueError, "period"),
        ({"period": 2.0}, TypeError, "period"),
        ({"lr": 0}, ValueError, "lr must be positive"),
        ({"lr": float("nan")}, ValueError, "lr"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\)"),
        ({"decay": 1.5}, ValueError, "decay"),
        ({"pattern": "ring"}, ValueError, "pattern"),
        ({"fragments": 31}, ValueError, r"fragments must be in \[1, 30\]"),
        ({"min_size": -1}, ValueError, "min_size"),
        ({"seed": -1}, ValueError, "seed"),
        ({"compressor": compress.LowRank(0.1), "pattern": "two-shot"}, ValueError, "the shapes of a compressor"),
        ({"compressor": compress.LowRank(0.1), "down": compress.Eden(1)}, ValueError, "the shapes of a compressor"),
        ({"compressor": compress.Eden(1), "ahead": 1, "pattern": "two-shot"}, ValueError, "ahead of the mean is"),
        ({"compressor": compress.Eden(1), "ahead": 1.5}, ValueError, r"ahead must be in \[0, 1\], got 1.5"),
        ({"compressor": compress.Eden(1), "ahead": 1, "error_feedback": False}, ValueError, "nothing of it is rem"),
        ({"ahead": 0.5}, ValueError, "ahead is by what messages leave out"),
        ({"pattern": "gather", "down": compress.Eden(1)}, ValueError, "down is of averaged slices"),
        ({"lr": -1.0}, ValueError, "lr must be positive"),
        ({"model": [model, model], "group": compress.Local(2)}, ValueError, "models share parameters"),
        ({"compressor": compress.LowRank(0.01)}, ValueError, "vectors, and a singular vector of the largest matrix"),
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"model": object.__new__(nn.parallel.DistributedDataParallel)}, TypeError, "give its `module`"),
        ({"model": []}, ValueError, "no parameters that require gradients"),
        ({"model": [model, 3]}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"model": [model, network(width=9)]}, ValueError, "the models differ in their parameters"),
        ({"model": [model, network()]}, ValueError, "2 models, of 1 workers hosted here"),
        ({"model": nn.ReLU()}, ValueError, "no parameters that require gradients"),
        ({"model": nn.LazyLinear(3)}, TypeError, "weight is without a shape yet"),
        ({"model": nn.Linear(3, 3, device="meta")}, TypeError, "weight is a Tensor of torch.float32 on meta"),
        ({"model": nn.Linear(3, 3, dtype=torch.complex64)}, TypeError, "weight is a Tensor of torch.complex64"),
        ({"group": None}, RuntimeError, "there is no process group"),
    ):
        with pytest.raises(kind, match=what):
            DiLoCo(**{"model": model, "group": compress.Local(1)} | options)
    outer = DiLoCo(model, group=compress.Local(1))
    for lr, kind in ((-1, ValueError), (float("inf"), ValueError), ("1", TypeError)):
        with pytest.raises(kind, match="lr"):
            outer.lr = lr
    outer.lr = np.float32(0.5)
    assert type(outer.lr) is float and outer.lr == 0.5
    ledger = (group := compress.Local(1)).ledger
    outer.regroup(group)
    assert group.ledger is ledger


def test_float64_models_keep_their_digits():
    models = [nn.Linear(30, 10).double() for _ in range(2)]
    outer = DiLoCo(models, period=1, lr=1.0, momentum=0.0, group=compress.Local(2))
    with torch.no_grad():
        models[0].weight += 1e-12
    before = models[1].weight.detach().clone()
    outer.step()
    assert (models[1].weight.detach() - before).numpy() == pytest.approx(5e-13, rel=1e-3)
    assert outer.report().bits > 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_workers_ahead_go_on_from_where_they_were(dtype):
    """What a worker has not yet told stays in its model, is not told twice, and is not in the average."""
    models = [nn.Linear(16, 16, bias=False, dtype=dtype) for _ in range(2)]
    options = {"period": 1, "lr": 1.0, "momentum": 0.0, "ahead": 1.0, "group": compress.Local(2)}
    outer = DiLoCo(models, compress.TopK(1), **options)
    start = flat_of(models[0])
    with torch.no_grad():
        models[0].weight -= 0.5 + torch.arange(256).view(16, 16) / 256
    apart = flat_of(models[0])
    for told in range(1, 200):
        outer.step()
        assert np.count_nonzero(outer._fragments[0].state.start != start) == min(told, 256)
        if told == 1:
            # the last weight has moved most: half of it is in the mean, and so in both
            for model, then in zip(models, (apart, start), strict=True):
                assert np.array_equal(flat_of(model)[:-1], then[:-1])
        before = [checksum(model) for model in models]
        with outer.averaged():
            assert len({checksum(model) for model in models}) == 1
        assert before == [checksum(model) for model in models]
        outer.restore()
        assert before == [checksum(model) for model in models]


def flat_of(model):
    return torch.cat([p.detach().float().reshape(-1) for p in model.parameters()]).numpy()


# The benchmark


def test_benchmark_trains_and_counts():
    from bench import diloco as bench

    scale = bench.Scale(width=16, depth=1, rounds=3, rows=2, lr=4e-3)
    runs = [bench.train(scale, name, seed=1, every=1) for name in (bench.DENSE, "SparseLoCo")]
    dense, sparse = bench.summary(runs)
    assert len(runs[0].losses) == 3 and runs[0].losses[-1] < runs[0].losses[0] < np.log(128) + 0.5
    assert runs[0].parameters == sum(p.numel() for p in scale.task().model().parameters())
    assert (dense.excess, dense.fewer) == (0, 1)
    # from three others; the agreement is 29 bytes, which is much where parameters are few
    assert runs[1].received == 3 * (29 + 24 + compress.ChunkTopK().bits(runs[1].parameters) / 8)
    assert sparse.fewer == runs[0].received / runs[1].received < 100
    assert sparse.excess == runs[1].losses[-1] / runs[0].losses[-1] - 1
    assert bench.bits_a_value(rows=256) <= 9.7


def test_the_claimed_setting_receives_200_times_less():
    """By one round of the whole model, which is not trained for it."""
    from bench import diloco as bench

    received = {}
    for name in (bench.DENSE, bench.CLAIMED):
        models = [bench.SCALE.task().model() for _ in range(bench.WORKERS)]
        outer = DiLoCo(models, group=compress.Local(bench.WORKERS), **bench.SETTINGS[name])
        with torch.no_grad():
            for model in models:
                for p in model.parameters():
                    p += 0.01 * torch.randn(p.shape)
        outer.synchronise()
        received[name] = outer.report().received
    assert received[bench.DENSE] > bench.RATIO * received[bench.CLAIMED]


def test_benchmark_judges_what_was_measured():
    from bench import diloco as bench

    def rows(losses, received, name=bench.CLAIMED):
        runs = [bench.Run("dense", seed, [9.0, 2.0 - seed], 1000, 40000.0, 0.1) for seed in (0, 1)]
        return bench.summary(
            runs + [bench.Run(name, seed, [9.0, loss], 1000, received, 0.1) for seed, loss in enumerate(losses)]
        )

    good = rows((2.0, 1.008), 160.0)
    assert [row.name for row in good] == ["dense", bench.CLAIMED]
    assert good[1].loss == pytest.approx(1.504) and good[1].fewer == 250
    assert (good[1].excess, good[1].least, good[1].most) == pytest.approx((0.004, 0.0, 0.008))
    check, bits = bench.checks(good)
    assert check.ok and check.measured == "+0.40% (+0.00% to +0.80%), 250.0 x fewer" and bits.ok
    assert not bench.checks(rows((2.0, 1.012), 160.0))[0].ok  # 0.6%
    assert not bench.checks(rows((2.0, 1.008), 320.0))[0].ok  # 125 x
    assert not bench.checks(rows((2.02, 1.0), 200.5))[0].ok
    for others in (bench.checks(rows((2.0, 1.0), 1.0, "SparseLoCo")), bench.checks(good, losses=False)):
        assert [each.statement for each in others] == [bits.statement]
    assert bench.table(good, bench.SCALE, 2, 1000).row_count == 2


def test_benchmark_runs_from_the_command_line(tmp_path, monkeypatch, capsys):
    from bench import diloco as bench
    from bench.__main__ import main

    monkeypatch.setattr(bench, "SCALE", bench.Scale(width=16, depth=1, rounds=3, rows=2, lr=4e-3))
    monkeypatch.setattr(bench, "bits_a_value", lambda: 9.5)
    common = ["diloco", "--quick", "--rounds", "2", "--out", str(tmp_path)]
    assert main([*common, "--seeds", "2", "--settings", "SparseLoCo"]) == 0
    with open(tmp_path / "diloco.csv", newline="") as file:
        saved = list(csv.DictReader(file))
    assert [(row["name"], row["seed"]) for row in saved] == [
        ("SparseLoCo", "0"), ("SparseLoCo", "1"), ("dense", "0"), ("dense", "1"),
    ]  # fmt: skip
    assert len(json.loads(saved[0]["losses"])) == 1  # after the last of two rounds
    said = capsys.readouterr().out
    assert "2 rounds of 30 steps, 2 seeds" in said and "saved diloco.csv" in said
    monkeypatch.setattr(bench, "bits_a_value", lambda: 9.7)
    monkeypatch.setattr(bench, "_pool", lambda: ThreadPoolExecutor(1))
    assert main([*common, "--settings", "SparseLoCo"]) == 1
    for options, what in (
        (["--settings", "Top"], "no setting 'Top'; known: dense, "),
        (["--rounds", "0"], "1 or more"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*common, *options])
        assert what in capsys.readouterr().err
