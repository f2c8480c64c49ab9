"""The jobs of test_diloco.py: `python diloco_jobs.py NAME RANK SIZE FOLDER` calls the function NAME on every rank."""

import datetime
import os
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import compress
from compress.torch import DiLoCo

TIMEOUT = 60  # seconds that a group waits, also for a rank that has yet to start


def network(seed=0, width=40):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 8))


def batch(worker, step, width=40):
    """Inputs of a worker's own, and what a fixed network makes of them."""
    inputs = torch.randn(16, width, generator=torch.Generator().manual_seed(1000 * worker + step))
    return inputs, torch.sin(inputs[:, :8] + inputs[:, 8:16])


def sgd(model, lr=0.05):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)


def train(model, inner, outer, worker, steps):
    """The losses of inner steps that end where outer.steps is a multiple of what it was made for."""
    losses = []
    for _ in range(steps):
        inputs, outputs = batch(worker, outer.steps)
        inner.zero_grad()
        loss = (model(inputs) - outputs).square().mean()
        loss.backward()
        inner.step()
        outer.step()
        losses.append(loss.item())
    return losses


def checksum(model):
    return zlib.crc32(b"".join(value.detach().float().numpy().tobytes() for value in model.state_dict().values()))


def everywhere(value, group=None):
    """What every rank has."""
    found = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def one(values):
    """They are the same, this one."""
    assert len(set(values)) == 1, values
    return values[0]


def raised(kind, function, *args, **named):
    try:
        function(*args, **named)
    except kind as error:
        return str(error)
    raise AssertionError(f"{function} has not raised")


def start(rank, size, folder, name="world"):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{name}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )


def meet(folder, name, rank, ranks):
    """All are here before one goes on and closes its connections, which may take with them what was sent last."""
    Path(f"{folder}/{name}.{rank}").touch()
    until = time.monotonic() + TIMEOUT
    while missing := [other for other in ranks if not Path(f"{folder}/{name}.{other}").exists()]:
        assert time.monotonic() < until, f"{name}: ranks {missing} have not come"
        time.sleep(0.02)


# Jobs


def same_as_local(rank, size, folder):
    """n ranks go through what n workers in one process do, to the bit; and the ledgers say the same."""
    start(rank, size, folder)
    for options in (
        {"compressor": compress.Eden(2), "pattern": "two-shot", "fragments": 2},
        {"compressor": compress.ChunkTopK(256, 8), "pattern": "gather", "momentum": 0.0, "decay": 0.95},
        {"compressor": compress.Trellis(bits=1), "min_size": 300},
        {"compressor": compress.LowRank(0.5), "fragments": 3},
        {"compressor": compress.Trellis(bits=0.5), "ahead": 0.5},
        {},
    ):
        model, locals_ = network(rank), [network(i) for i in range(size)]
        outer, local = (
            DiLoCo(m, period=6, group=g, **options) for m, g in ((model, None), (locals_, compress.Local(size)))
        )
        assert one([checksum(m) for m in [*locals_, model]]) == checksum(network(0))
        inner, inners = sgd(model), [sgd(each) for each in locals_]
        train(model, inner, outer, rank, 18)
        for step in range(18):
            for i, (m, optimizer) in enumerate(zip(locals_, inners, strict=True)):
                inputs, outputs = batch(i, step)
                optimizer.zero_grad()
                (m(inputs) - outputs).square().mean().backward()
                optimizer.step()
            local.step()
        outer.synchronise()  # a second fragment has its rounds between
        local.synchronise()
        assert checksum(model) == checksum(locals_[rank])
        with outer.averaged(), local.averaged():
            assert checksum(model) == one([checksum(m) for m in locals_])
        assert outer.comm.ledger == local.comm.ledger
        timeless = dict.fromkeys(("seconds", "encode", "decode", "wait"), 0)
        assert replace(outer.report(), **timeless) == replace(local.report(), **timeless)
        for mine, theirs in zip(outer._fragments, local._fragments, strict=True):
            for error, every in zip(mine.state.memory[:2], theirs.state.memory[:2], strict=True):
                assert not error or np.array_equal(error[0], every[rank])
    groups = [dist.new_group([i]) for i in range(size)]
    model = network(rank)
    alone = DiLoCo(model, compress.ScaledSign(), period=2, group=groups[rank])
    losses = train(model, sgd(model), alone, rank, 60)
    assert alone.comm.ledger == compress.Ledger() and alone.rounds == 30 and losses[-1] < losses[0]


def refusals(rank, size, folder):
    """What is wrong on one rank is said on all, and has changed nothing."""
    start(rank, size, folder)
    model = network()
    outer = DiLoCo(model, compress.Eden(2), period=3)
    inner = sgd(model)
    train(model, inner, outer, rank, 5)
    if rank == 1:
        with torch.no_grad():
            model[2].bias[3:5] = float("nan")
    before = checksum(model), dict(outer.state_dict(), fragments=None), outer._fragments[0].state
    inner.zero_grad(set_to_none=True)
    said = raised(RuntimeError, outer.step)
    assert one(everywhere(said)) == ("DiLoCo: round 1 is refused, worker 1: 2.bias has 2 NaN or Inf among 8 elements")
    assert checksum(model) == before[0] and outer._fragments[0].state is before[2]
    assert dict(outer.state_dict(), fragments=None) == before[1] | {"steps": 6}
    outer.restore()
    one(everywhere(checksum(model)))
    if rank == 1:
        inner.state.clear()
    train(model, inner, outer, rank, 3)
    assert outer.rounds == 2
    one(everywhere(checksum(model)))

    # one rank alone goes back, or on with another rate
    state = outer.state_dict()
    train(model, inner, outer, rank, 3)
    if rank == 0:
        outer.load_state_dict(state)
        outer.steps += 3
    said = raised(RuntimeError, train, model, inner, outer, rank, 3)
    assert one(everywhere(said)) == "DiLoCo: workers differ: rounds: worker 0 has 2, worker 1 has 3"
    outer.regroup()
    one(everywhere((outer.rounds, outer.steps)))
    train(model, inner, outer, rank, 3)
    assert outer.rounds == 4
    one(everywhere(checksum(model)))
    outer.lr = 0.7 if rank else 0.5
    said = raised(RuntimeError, train, model, inner, outer, rank, 3)
    assert one(everywhere(said)) == "DiLoCo: workers differ: lr: worker 0 has 0.5, worker 1 has 0.7"

    outer.lr = 0.7

    # or has other global parameters, which nothing else tells
    kept = outer._fragments[0].state
    changed = kept._replace(start=kept.start + np.float32(rank))
    outer._fragments[0].state = changed
    said = one(everywhere(raised(RuntimeError, outer.synchronise)))
    assert said.startswith("DiLoCo: workers differ: sum of |x| of the global parameters: worker 0 has "), said
    outer._fragments[0].state = kept
    said = one(everywhere(raised(RuntimeError, outer.regroup if rank else outer.synchronise)))
    assert said == "DiLoCo: workers take different steps: worker 0 does a round, worker 1 regroups"
    rounds = outer.rounds
    outer.synchronise()
    assert outer.rounds == rounds + 1

    # and in what they are made with
    for mine, what in (
        ({"period": 3 + rank}, "period: worker 0 has 3, worker 1 has 4"),
        ({"compressor": compress.Eden(1 + rank)}, "compressor: worker 0 has Eden(rate=1.0, scale='biased', wire="),
        (
            {"model": network(width=40 + rank)},
            "tensor 0: worker 0 has 0.weight [64, 40] torch.float32, worker 1 has 0.weight [64, 41] torch.float32",
        ),
        (
            {"model": network() if rank else network()[:1]},
            "tensor 2: worker 0 has none, worker 1 has 2.weight [8, 64] torch.float32",
        ),
    ):
        said = raised(RuntimeError, DiLoCo, **{"model": network()} | mine)
        assert what in one(everywhere(said)), said

    # a checkpoint: each its own, to the same bits; or one for all without errors
    train(*(fresh := made(rank, 3)), rank, 7)
    torch.save([fresh[0].state_dict(), fresh[1].state_dict(), fresh[2].state_dict()], f"{folder}/saved.{rank}")
    train(*fresh, rank, 7)
    resumed = made(rank, 3)
    for each, saved in zip(resumed, torch.load(f"{folder}/saved.{rank}", weights_only=True), strict=True):
        each.load_state_dict(saved)
    train(*resumed, rank, 7)
    assert checksum(fresh[0]) == checksum(resumed[0])
    other = torch.load(f"{folder}/saved.{1 - rank}", weights_only=True)[2]
    said = raised(ValueError, resumed[2].load_state_dict, other)
    assert f"the state is of worker [{1 - rank}] of 2, this is worker [{rank}] of 2; load_state_dict(state, err" in said
    resumed[2].load_state_dict(torch.load(f"{folder}/saved.0", weights_only=True)[2], errors=False)
    resumed[2].restore()
    train(*resumed, rank, 5)
    one(everywhere(checksum(resumed[0])))


def made(rank, period):
    model = network(rank)
    return model, sgd(model), DiLoCo(model, compress.Eden(1), period=period, pattern="two-shot")


def leave_and_rejoin(rank, size, folder):
    """Rank 2 leaves, misses rounds and comes back."""
    start(rank, size, folder)
    model, inner, outer = made(rank, 4)
    first = np.mean(train(model, inner, outer, rank, 40)[:5])
    pair = dist.new_group([0, 1])
    if rank < 2:
        outer.regroup(pair)
        assert (outer.comm.n, outer.rounds, outer.steps) == (2, 10, 40)
        train(model, inner, outer, rank, 22)
        one(everywhere(checksum_of_global(outer), pair))
    else:
        train(model, inner, FreeRun(outer), rank, 3)
    errors, mine = outer._fragments[0].state.memory, checksum(model)
    outer.regroup()
    assert one(everywhere((outer.comm.n, outer.rounds, outer.steps))) == (3, 15, 62)
    one(everywhere(checksum_of_global(outer)))
    kept = outer._fragments[0].state.memory.up[0]
    if rank < 2:
        assert checksum(model) == mine and np.any(kept)
        lost = sum(np.sum(error, dtype=np.float64) for error in (*errors.up, *(3 * each for each in errors.down)))
        assert abs(np.sum(kept, dtype=np.float64) - lost) < 1e-4
    else:
        assert not np.any(kept) and checksum(model) == checksum_of_global(outer)
        inner.state.clear()
    d = outer.report().parameters
    assert 8 * d <= outer.comm.ledger.wire_down < 8 * d + 1000  # parameters and momentum, once
    losses = train(model, inner, outer, rank, 42)
    assert one(everywhere(outer.rounds)) == 26
    one(everywhere(checksum(model)))
    assert np.mean(losses[-5:]) < 0.6 * first, (first, losses[-5:])


def apart(rank, size, folder):
    """The network splits: each goes on alone for as many rounds as the other, with what it had still to say."""
    start(rank, size, folder)
    groups = [dist.new_group([i]) for i in range(size)]
    model = network()
    outer = DiLoCo(model, compress.TopK(0.01), period=3, lr=0.5, momentum=0.0, pattern="gather")
    inner = sgd(model)
    train(model, inner, outer, rank, 6)
    one(everywhere(checksum(model)))
    before = outer._fragments[0].state
    assert np.any(before.memory.up[0])
    outer.regroup(groups[rank])
    outer.synchronise()  # without a step since: what it had left out alone
    after = outer._fragments[0].state
    assert np.allclose(after.start, before.start - 0.5 * before.memory.up[0], atol=1e-7)
    assert not np.any(after.memory.up[0])
    train(model, inner, outer, rank, 6)
    assert len(set(everywhere(checksum(model)))) == size and one(everywhere(outer.rounds)) == 5
    mine = checksum(model)
    outer.regroup()
    assert one(everywhere(checksum_of_global(outer))) == checksum_of_global(outer)
    assert (checksum(model) == mine) == (rank == 0)  # all have what worker 0 has
    one(everywhere(checksum(model)))
    losses = train(model, inner, outer, rank, 30)
    assert one(everywhere(outer.rounds)) == 15 and np.isfinite(losses).all()
    one(everywhere(checksum(model)))


class FreeRun:
    """Steps that nobody else hears of."""

    def __init__(self, outer):
        self.steps = outer.steps

    def step(self):
        self.steps += 1


def checksum_of_global(outer):
    return zlib.crc32(b"".join(fragment.state.start.tobytes() for fragment in outer._fragments))


def killed(rank, size, folder):
    """Rank 2 dies before a round. The others hear of it, go on as two, and are three again with a new process."""
    reborn = Path(f"{folder}/reborn")
    if rank == 3:
        return born_again(folder, reborn)
    start(rank, size, folder)
    model, inner, outer = made(rank, 4)
    train(model, inner, outer, rank, 10)
    meet(folder, "ten", rank, range(size))
    if rank == 2:
        os._exit(1)
    state, began = outer._fragments[0].state, time.monotonic()
    said = raised(RuntimeError, train, model, inner, outer, rank, 2)
    assert time.monotonic() - began < 1.5 * TIMEOUT, said
    assert outer._fragments[0].state is state and outer.rounds == 2
    pair = dist.new_group([0, 1], use_local_synchronization=True, timeout=datetime.timedelta(seconds=TIMEOUT))
    outer.regroup(pair)
    train(model, inner, outer, rank, 8)
    assert one(everywhere(outer.rounds, pair)) == 4
    one(everywhere(checksum(model), pair))

    meet(folder, "pair", rank, range(2))
    dist.destroy_process_group()
    reborn.touch()
    start(rank, size, folder, "again")
    outer.regroup()
    goes_on(model, inner, outer, rank)


def born_again(folder, reborn):
    """The process that takes the place of the dead one."""
    while not reborn.exists():
        time.sleep(0.05)
    start(2, 3, folder, "again")
    goes_on(*made(5, 4), 2)


def goes_on(model, inner, outer, rank):
    assert one(everywhere((outer.comm.n, outer.rounds, outer.steps))) == (3, 4, 20)
    train(model, inner, outer, rank, 8)
    assert one(everywhere(outer.rounds)) == 6
    one(everywhere(checksum(model)))
    print("went on")


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, (rank, size), folder = sys.argv[1], map(int, sys.argv[2:4]), sys.argv[4]
    globals()[name](rank, size, folder)
    meet(folder, "end", min(rank, size - 1), range(size))  # one may have taken the place of the last
    dist.destroy_process_group()
