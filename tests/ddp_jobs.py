"""The jobs of test_ddp_hook.py: `python ddp_jobs.py NAME,NAME RANK RANKS STORE` calls these functions on a rank."""

import copy
import datetime
import io
import itertools
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
import zlib
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import compress
import compress.torch.hook
from compress.allreduce import Refused
from compress.power import PowerIteration
from compress.torch import DDPHook
from compress.torch.hook import _Step

RANK, RANKS = (int(word) for word in sys.argv[2:4])
SMALL = {"bucket_cap_mb": 0.01}  # several buckets
APART = {"trains", "nothing_is_lost", "switches", "power"}  # jobs in which small buckets do not wait for each other
TOGETHER = compress.torch.hook._TOGETHER


# A task: labels of a linear teacher, a network of three layers and one that is small


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).to(dtype)


def batches(start=0, dtype=torch.float32, size=16):
    """Of this rank, from a step on."""
    teacher = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    for step in itertools.count(start):
        x = torch.randn(size, 32, generator=torch.Generator().manual_seed(1000 * step + RANK))
        yield x.to(dtype), (x @ teacher).argmax(1)


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])


def train(model, steps, start=0, lr=0.3, dtype=torch.float32, optimizer=None):
    """Losses of this rank."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    losses = []
    for _, batch in zip(range(steps), batches(start, dtype), strict=False):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def distributed(hook=None, model=None, **options):
    model = DistributedDataParallel(model or network(), **(SMALL | options))
    if hook is not None:
        hook.register(model)
    return model


def everyone(value):
    values = [None] * RANKS
    dist.all_gather_object(values, value)
    return values


def same_everywhere(model):
    """The replicas, bit for bit."""
    state = b"".join(p.detach().view(torch.uint8).numpy().tobytes() for p in model.parameters())
    assert len(set(everyone(zlib.crc32(state)))) == 1


def near(a, b, tolerance=1e-5):
    assert torch.linalg.vector_norm(a - b) <= tolerance * torch.linalg.vector_norm(b), (a, b)


def raises(kind, match, call):
    try:
        call()
    except kind as error:
        assert re.search(match, str(error)), error
        return error
    raise AssertionError(f"no {kind.__name__} about {match}")


def bits_of(gradients):
    return [g.clone() for g in gradients]


# Jobs


def trains():
    """Every kind of hook: replicas stay identical, losses are near those without, reports are those of the ledger."""
    plain = distributed()
    dense = np.mean(everyone(train(plain, 60)[-20:]))
    for hook in (
        DDPHook(compress.ScaledSign(), warmup_steps=5, pattern="gather"),
        DDPHook(compress.ScaledSign(), warmup_steps=0, pattern="two-shot", dense=torch.bfloat16),
        DDPHook(compress.Eden(2), compress.Eden(4), warmup_steps=2, pattern="two-shot", decay=0.95),
        DDPHook(compress.ChunkTopK(64, 4), warmup_steps=2, pattern="gather", min_size=50),
        DDPHook(compress.UniformQuantizer(bits=2), warmup_steps=2, pattern="two-shot"),  # of varying length
        DDPHook(compress.StandardDithering(7, "linf", 1024), pattern="gather", shift=True, warmup_steps=2),
        DDPHook(compress.StandardDithering(7, "linf", 1024), pattern="two-shot", shift=True, warmup_steps=2),
        DDPHook(compress.StandardDithering(15, "linf", 1024), error_feedback=False, pattern="two-shot", warmup_steps=2),
    ):
        model, keys = distributed(hook), keys_of(hook)
        loss = np.mean(everyone(train(model, 60)[-20:]))
        same_everywhere(model)
        assert len(keys) == len(set(keys)) > 60  # two buckets
        assert loss < 1.1 * dense, (hook.reduce, loss, dense)
        report, ledger = hook.report(), hook.comm.ledger
        assert report.mode == "compressed" and report.steps == 60 - hook.warmup_steps
        large = 2048 + 4096 + (512 if hook.min_size <= 512 else 0)
        assert (report.parameters, report.compressed) == (6792, large)
        dense_part = 16 if hook.dense else 32
        # of two ranks, both patterns: everything that is dense is received once
        bits = (ledger.bits_down / RANKS + dense_part * (6792 - large) * report.steps) / report.steps / 6792
        assert abs(report.bits / bits - 1) < 1e-9 and report.dense_bits == 32
        wire = hook.comm.received / report.steps + dense_part / 8 * (6792 - large)
        assert abs(report.wire / wire - 1) < 1e-9 and 8 * report.wire > 6792 * bits
        assert report.ratio == 32 / report.bits > 2
        assert min(report.encode, report.decode, report.wait, report.dense) > 0
        assert f"{report.bits:.3f} bits a parameter" in str(report)


def keys_of(hook):
    """The keys of its reductions from here on."""
    name = "mean" if isinstance(hook, DDPHook) else "reduce_scatter"
    keys, reduced = [], getattr(type(hook.reduce), name)

    def watched(comm, state, rows, key, *args, **kwargs):
        beside = threading.current_thread().name.startswith("DDPHook")
        assert beside == isinstance(hook, DDPHook)  # beside backward, or in it
        keys.append(key)
        return reduced(hook.reduce, comm, state, rows, key, *args, **kwargs)

    object.__setattr__(hook.reduce, name, watched)
    return keys


def exact():
    """Without loss a hook is the mean: of every dtype, layout and kind of model."""
    lossless = compress.Identity()
    for options, more in (
        ({"pattern": "gather"}, {}),
        ({"pattern": "two-shot"}, {"gradient_as_bucket_view": True}),
        ({"pattern": "two-shot", "error_feedback": False}, {"static_graph": True}),
        ({"pattern": "gather", "error_feedback": False}, {"find_unused_parameters": True}),
        ({"pattern": "two-shot", "min_size": 0}, {"bucket_cap_mb": 25}),
    ):
        plain, model = distributed(**more), distributed(DDPHook(lossless, warmup_steps=1, **options), **more)
        for losses in zip(train(plain, 10), train(model, 10), strict=True):
            assert abs(losses[0] - losses[1]) < 1e-5
        same_everywhere(model)
    plain, model = distributed(), distributed(DDPHook(lossless, warmup_steps=0, pattern="gather"))
    for ddp in (plain, model):
        with ddp.no_sync():
            loss_of(ddp, next(batches())).backward()
        loss_of(ddp, next(batches(1))).backward()
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        near(q.grad, p.grad)
    for dtype, tolerance in ((torch.bfloat16, 0.02), (torch.float16, 0.003), (torch.float64, 1e-12)):
        for pattern in ("gather", "two-shot"):
            hook = DDPHook(lossless, warmup_steps=0, pattern=pattern)
            plain, model = distributed(model=network(dtype)), distributed(hook, network(dtype))
            for _, batch in zip(range(3), batches(dtype=dtype), strict=False):
                loss_of(plain, batch).backward()
                loss_of(model, batch).backward()
                for p, q in zip(plain.parameters(), model.parameters(), strict=True):
                    assert q.grad.dtype == dtype
                    near(q.grad.double(), p.grad.double(), tolerance)
    channels = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(5))  # memory in another order
    channels(torch.zeros(1, 3, 6, 6))
    channels.to(memory_format=torch.channels_last)
    plain = DistributedDataParallel(channels)
    gradients = []
    for hook in (None, DDPHook(lossless, warmup_steps=0, min_size=0, pattern="gather")):
        plain = distributed(hook, channels)
        channels.zero_grad()
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(RANK)).to(memory_format=torch.channels_last)
        plain(x).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in channels.parameters()]))
    near(gradients[1], gradients[0])


def nothing_is_lost():
    """What a hook gives and what its errors hold is the sum of the gradients: also where DDP cuts its buckets anew, and
    where the hook turns dense."""
    for options in ({"pattern": "gather"}, {"pattern": "two-shot"}, {"pattern": "two-shot", "min_size": 3000}, {}):
        with clock() as now:
            keeps(options, now)


def keeps(options, now):
    hook = DDPHook(compress.ChunkTopK(64, 4), warmup_steps=0, **options)
    model, other = distributed(hook), distributed()
    given = {name: torch.zeros_like(p) for name, p in model.module.named_parameters()}
    exact = {name: torch.zeros_like(p) for name, p in model.module.named_parameters()}
    if not options:
        slow(hook, now)
    layouts = []
    for step, batch in zip(range(17), batches(), strict=False):
        for ddp, sums in ((model, given), (other, exact)):
            ddp.zero_grad()
            loss_of(ddp, batch).backward()
            for name, p in ddp.module.named_parameters():
                sums[name] += p.grad
        state = hook.state_dict()
        layouts.append(state["groups"])
        assert (state["step"], hook.off) == (step + 1, not options and step >= 14)
        if options or step in (13, 16):
            owed = owes(state, {name: p.numel() for name, p in model.module.named_parameters()})
            assert bool(owed) == ((hook.step > 7 and not hook.off) or bool(options))
            for name, sum_ in exact.items():
                left = owed.get(name, torch.zeros(sum_.numel()))
                dist.all_reduce(left)
                near(given[name] + left.view_as(sum_) / RANKS, sum_)
    assert len(layouts[1]) == 2 and layouts[0] != layouts[1] and layouts[1:] == [layouts[1]] * 16, layouts


def owes(state, sizes):
    """By parameter, what a rank's state holds of the sum of all ranks' gradients."""
    owed = {}
    for each in state["states"]:
        (left,) = each["up"]
        left = left.clone()
        if each["down"]:
            start, stop = (j * left.numel() // RANKS for j in (RANK, RANK + 1))
            left[start:stop] += RANKS * each["down"][0]
        pieces = left.split([sizes[name] for name in each["names"]])
        owed |= dict(zip(each["names"], pieces, strict=True))
    return owed


@contextmanager
def clock():
    """The hook's clock, which stands still unless it is set: the seconds of what is measured are those of the test."""
    now, perf_counter = [0.0], compress.torch.hook.perf_counter
    compress.torch.hook.perf_counter = lambda: now[0]
    yield now
    compress.torch.hook.perf_counter = perf_counter


def slow(hook, now, seconds=0.5):
    """A codec that takes its time; the calls."""
    calls, mean = [], type(hook.reduce).mean

    def late(*args, **kwargs):
        calls.append(hook.step)
        now[0] += seconds
        return mean(hook.reduce, *args, **kwargs)

    object.__setattr__(hook.reduce, "mean", late)
    return calls


def switches():
    """ "auto" measures, decides the same on all ranks, says so, and remembers."""
    text = io.StringIO()
    logging.getLogger("compress").addHandler(logging.StreamHandler(text))
    with clock() as now:
        hook = DDPHook(compress.ScaledSign(), warmup_steps=3)
        model = distributed(hook)
        calls = slow(hook, now, 1 + RANK)  # the slower rank's time counts
        train(model, 20)
        same_everywhere(model)
        report = hook.report()
        assert hook.off and report.mode == "dense" and report.steps == 7
        assert calls == [step for step in range(7, 14) for _ in range(2)]  # buckets
        assert (report.compressed_step, report.dense_step) == (4, 0)
        assert bool(re.search(r"DDPHook: a step takes .* compressed, .* dense: dense", text.getvalue())) == (RANK == 0)

        again, other = DDPHook(compress.ScaledSign(), warmup_steps=3), distributed()
        again.register(other)
        again.load_state_dict(hook.state_dict())  # a hook that is off
        assert again.off and again.step == 20 and again.report().mode == "dense"
        assert (again.report().compressed_step, again.report().dense_step) == (4, 0)
        calls = slow(again, now)
        train(other, 2)
        assert again.off and not calls and again.step == 22

        hook = DDPHook(compress.ScaledSign(), warmup_steps=3)
        model = distributed(hook)
        slow(hook, now)
        train(model, 12)  # in the middle of what it measures: 7 dense steps, 5 of 7 compressed ones
        again, other = DDPHook(compress.ScaledSign(), warmup_steps=3), distributed()
        again.register(other)
        again.load_state_dict(hook.state_dict())
        slow(again, now)
        for each, ddp in ((hook, model), (again, other)):
            train(ddp, 2)
            assert not each.off
            train(ddp, 1)  # the time of the last one before it was saved has nobody seen
            assert each.off == (each is hook) and len(each._times[False]) == 7
            train(ddp, 1)
            assert each.off and each.report().compressed_step == 1 and each.report().dense_step == 0

        hook = DDPHook(compress.ScaledSign())
        model = distributed(hook)
        train(model, 1)
        hook._times = {False: [1.5] * 9, True: [1.0 + RANK] * 9}  # one rank would, the other one would not
        train(model, 1)
        assert hook.off and (hook.report().compressed_step, hook.report().dense_step) == (2.0, 1.5)

        reduced = dist.all_reduce

        def slow_link(tensor, *args, **kwargs):
            now[0] += tensor.nbytes
            return reduced(tensor, *args, **kwargs)

        said = text.getvalue()
        hook = DDPHook(compress.ScaledSign(), warmup_steps=3)
        model = distributed(hook)
        dist.all_reduce = slow_link
        train(model, 20)
        dist.all_reduce = reduced
        report = hook.report()
        assert not hook.off and report.mode == "compressed" and report.steps == 13
        assert (report.compressed_step, report.dense_step) == (4 * (6792 - 6144), 4 * 6792)
        assert text.getvalue() == said  # what stays as it was is no warning

        hook = DDPHook(compress.ScaledSign(), pattern="gather", warmup_steps=3)
        model = distributed(hook)
        slow(hook, now)
        train(model, 20)
        assert not hook.off and hook.report().steps == 17 and hook.report().compressed_step is None


def goes_on():
    """A run that is saved and gone on with by other objects, bit for bit; of what does not fit nothing is taken."""
    folder = os.path.dirname(sys.argv[4])
    for k, options in enumerate(
        (
            {"compressor": compress.Eden(1), "pattern": "two-shot"},
            {"compressor": compress.StandardDithering(7, "linf", 1024), "pattern": "two-shot", "shift": True},
            {"compressor": compress.ChunkTopK(64, 4), "pattern": "gather", "dense": torch.bfloat16},
        )
    ):
        hook = DDPHook(warmup_steps=3, **options)
        model, path = distributed(hook), f"{folder}/{k}.{RANK}.pt"
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
        train(model, 20, optimizer=optimizer)
        saved = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "hook": hook.state_dict()}
        torch.save(saved, path)
        train(model, 20, start=20, optimizer=optimizer)

        saved = torch.load(path, weights_only=True)
        again = DDPHook(warmup_steps=3, **options)
        other = distributed(again)
        other.module.load_state_dict(saved["model"])
        again.load_state_dict(saved["hook"])
        assert again.step == 20 and again.report().mode == "compressed"
        optimizer = torch.optim.SGD(other.parameters(), lr=0.3, momentum=0.5)
        optimizer.load_state_dict(saved["optimizer"])
        train(other, 20, start=20, optimizer=optimizer)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q)
        assert again.step == hook.step == 40
        for mine, theirs in zip(again.state_dict()["states"], hook.state_dict()["states"], strict=True):
            assert mine["names"] == theirs["names"] and torch.equal(mine["up"][0], theirs["up"][0])

    fresh = DDPHook(warmup_steps=3, **options)
    raises(RuntimeError, "register the hook first", lambda: fresh.load_state_dict(saved["hook"]))
    model, state = distributed(fresh), saved["hook"]
    for change, match in (
        ({"world_size": 4}, "world_size 4 there, 2 here; start with a fresh hook"),
        ({"rank": 1 - RANK}, f"rank {1 - RANK} there, {RANK} here"),
        ({"configuration": state["configuration"] | {"min_size": 5}}, "min_size 5 there, 1024 here"),
        ({"configuration": state["configuration"] | {"parameters": "3 tensors"}}, "parameters 3 tensors there"),
        ({"format": 0}, "format"),
    ):
        raises(ValueError, match, lambda change=change: fresh.load_state_dict(state | change))
        assert fresh.step == 0 and not fresh.state_dict()["states"]
    if RANK:  # who has come further
        fresh.load_state_dict(state)
    raises(ValueError, "ranks differ in step: 0 on rank 0, 20 on rank 1", lambda: train(model, 1))


def refuses():
    """NaN and Inf: the step is refused on every rank, by name, and the next one goes on as if it had not been."""
    for options in ({"pattern": "gather"}, {"pattern": "two-shot"}, {"pattern": "two-shot", "warmup_steps": 50}):
        hook = DDPHook(compress.Eden(1), **({"warmup_steps": 2} | options))
        model = distributed(hook)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, 5, optimizer=optimizer)
        before, parameters = hook.state_dict(), bits_of(model.parameters())
        for name, value in (("2.weight", np.nan), ("0.weight", np.inf), ("4.bias", np.nan)):
            handle = dict(model.module.named_parameters())[name].register_hook(spoiler(value))
            optimizer.zero_grad()
            loss = loss_of(model, next(batches(5)))
            raises(Refused, rf"step 5 is refused .* {name}: 3 NaN or Inf among \d+ elements, on rank 1$", loss.backward)
            assert all(not p.grad.any() for p in model.parameters())
            optimizer.step()  # by nothing
            handle.remove()
            after = hook.state_dict()
            assert after["step"] == 5 and all(map(torch.equal, parameters, model.parameters()))
            for a, b in zip(before["states"], after["states"], strict=True):
                assert all(map(torch.equal, a["up"] + a["down"], b["up"] + b["down"]))
        train(model, 5, start=6, optimizer=optimizer)
        same_everywhere(model)
        other = distributed(DDPHook(compress.Eden(1), **({"warmup_steps": 2} | options)))
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        train(other, 5, optimizer=optimizer)
        train(other, 5, start=6, optimizer=optimizer)
        assert all(map(torch.equal, model.parameters(), other.parameters()))

    # finite, and too large for the compressor
    hook = DDPHook(compress.Composed(compress.RandK(0.1), compress.TernGrad()), pattern="gather", warmup_steps=0)
    model = distributed(hook)
    model.module[2].weight.register_hook(lambda gradient: torch.full_like(gradient, 3e38) if RANK else gradient)
    loss = loss_of(model, next(batches()))
    raises(Refused, "step 0 is refused and nothing has changed: worker 1: max", loss.backward)

    # a scaler of gradients finds an overflow by itself
    hook = DDPHook(compress.Eden(1), warmup_steps=0, pattern="gather", nonfinite="propagate")
    model = distributed(hook)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=1e38)
    for _, batch in zip(range(40), batches(), strict=False):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch) * (1 + 10 * RANK)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert 1e30 < scaler.get_scale() < 1e38 and 0 < hook.step < 40
    same_everywhere(model)


def spoiler(value):
    def spoil(gradient):
        if RANK == 1:
            gradient = gradient.clone()
            gradient.view(-1)[:3] = value
        return gradient

    return spoil


def misused():
    """What is wrong from the start, and what ranks do differently."""
    hook = DDPHook(compress.ScaledSign(), warmup_steps=0)
    raises(TypeError, "must be a DistributedDataParallel, got Sequential", lambda: hook.register(network()))
    model = distributed(hook)
    raises(RuntimeError, "this hook has a model already", lambda: hook.register(distributed()))
    other = DDPHook(compress.ScaledSign(), warmup_steps=0)
    raises(RuntimeError, "can only be called once", lambda: other.register(model))
    builtin = distributed()
    builtin._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    groups = len(dist.distributed_c10d._world.pg_map)
    raises(RuntimeError, "can only be called once", lambda: other.register(builtin))
    assert len(dist.distributed_c10d._world.pg_map) == groups and other._thread is None
    raises(RuntimeError, "works within backward", hook._begin)
    train(model, 2)  # all the same

    taken = distributed(other)  # a hook that was refused is as it was
    train(taken, 2)
    assert other.step == 2
    other.close()
    assert len(dist.distributed_c10d._world.pg_map) == groups and other._thread is None and other.step == 0
    raises(RuntimeError, "register the hook first, it has no model", other.report)
    raises(RuntimeError, "register the hook first, it has no model", lambda: train(taken, 1))
    other.close()
    train(distributed(other), 1)
    assert other.step == 1

    copied, buffer = copy.deepcopy(model), io.BytesIO()  # of EMA, say
    torch.save(model, buffer)
    buffer.seek(0)
    for each in (copied, torch.load(buffer, weights_only=False)):
        assert all(map(torch.equal, each.parameters(), model.parameters()))
        _, state = each._comm_hooks[0]
        assert repr(state._configuration()) == repr(DDPHook(compress.ScaledSign(), warmup_steps=0)._configuration())
        assert state.comm is None and state.step == 0
        state.register(each)
        train(each, 2)
        assert state.step == 2
        same_everywhere(each)

    for group, match in (
        (model.process_group, "group is the model's own"),
        (dist.group.WORLD, "group is the model's own"),
        (dist.new_subgroups(1)[0], rf"group is of ranks \[{RANK}\], the model's of \[0, 1\]"),
    ):
        own = DDPHook(compress.ScaledSign(), group=group)
        raises(ValueError, match, lambda own=own: own.register(distributed()))
    own = DDPHook(compress.ScaledSign(), warmup_steps=0, group=dist.new_group())
    train(distributed(own, find_unused_parameters=True), 2)
    assert own.step == 2
    own.close()  # of which the group is not the hook's
    assert dist.get_world_size(own.group) == RANKS

    unknown = distributed(model=nn.Linear(64, 32, dtype=torch.complex64))
    raises(TypeError, "weight is torch.complex64", lambda: DDPHook(compress.Identity()).register(unknown))

    embedding = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 4))
    sparse = DistributedDataParallel(embedding)
    raises(ValueError, "gradients of 0 are sparse", lambda: DDPHook(compress.ScaledSign()).register(sparse))

    for options, match in (
        (
            lambda r: {"compressor": compress.Eden(1 + r)},
            r"reduction: .*Eden\(rate=1.* on rank 0, .*Eden\(rate=2.* on rank 1",
        ),
        (lambda r: {"seed": r}, r"key: Key\(0\) on rank 0, Key\(1\) on rank 1"),
        (lambda r: {"min_size": 10 + r}, "min_size: 10 on rank 0, 11 on rank 1"),
        (lambda r: {"dense": [None, torch.bfloat16][r]}, "dense: None on rank 0, torch.bfloat16 on rank 1"),
        (lambda r: {"warmup_steps": r}, "warmup_steps: 0 on rank 0, 1 on rank 1"),
    ):
        hook = DDPHook(**({"compressor": compress.Eden(1), "warmup_steps": 3} | options(RANK)))
        model = distributed(hook)
        for _ in range(2):
            error = raises(ValueError, match, lambda model=model: train(model, 1))
            assert "DDPHook: ranks differ in" in str(error)
            assert hook.step == 0 and not any(p.grad.any() for p in model.parameters())

    version = compress.__version__
    compress.__version__ += f".{RANK}"
    model = distributed(DDPHook(compress.Eden(1)))
    raises(ValueError, rf"version: {version}\.0, .* on rank 0, {version}\.1, .* on rank 1", lambda: train(model, 1))
    compress.__version__ = version

    class Short(compress.ScaledSign):
        def bits(self, d, dtype=np.float32):
            raise ValueError(f"{d} coordinates are too many")

    hook = DDPHook(Short(), warmup_steps=1)  # suits no vector
    model = distributed(hook)
    train(model, 7)
    raises(ValueError, r"\d+ coordinates are too many", lambda: train(model, 1))

    # a parameter that a rank, or nobody, uses
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.some, self.none = network(), nn.Linear(32, 64), nn.Linear(32, 64)

        def forward(self, x):
            return self.net(x + self.some(x)[:, :32] if RANK else x)

    torch.manual_seed(0)
    hook = DDPHook(compress.Eden(2), warmup_steps=2, pattern="two-shot")
    model = distributed(hook, Unused(), find_unused_parameters=True)
    losses = train(model, 60)
    same_everywhere(model)
    assert model.module.none.weight.grad is None and losses[-1] < losses[0]
    assert model.module.some.weight.grad.any()
    model = distributed(DDPHook(compress.Eden(2), warmup_steps=0, pattern="gather"), Unused())
    loss_of(model, next(batches())).backward()  # a step without an end
    raises(RuntimeError, "finished reduction in the prior iteration", lambda: loss_of(model, next(batches())))


def group_of_some():
    """A hook on two ranks of some more, in a process group of theirs."""
    group = dist.new_group([0, 2])
    if RANK not in (0, 2):
        return
    hook = DDPHook(compress.Eden(2 + RANK // 2), warmup_steps=0)
    raises(ValueError, "on rank 0, .* on rank 2", lambda: train(distributed(hook, process_group=group), 1))
    hook = DDPHook(compress.Eden(2), warmup_steps=0, pattern="two-shot")
    model = distributed(hook, process_group=group)
    losses = train(model, 30)
    assert hook.comm.n == 2 and hook.step == 30 and losses[-1] < losses[0]
    crc = torch.tensor([zlib.crc32(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))])
    crcs = [torch.zeros_like(crc) for _ in range(2)]
    dist.all_gather(crcs, crc, group=group)
    assert torch.equal(*crcs)


class Branches(nn.Module):
    """Layers behind checkpoints, or two outputs."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.a, self.b, self.c = how, nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 8)

    def forward(self, x):
        if self.how == "outputs":
            return self.a(x), self.c(self.b(torch.cat([x, x], 1)))
        x = self.a(x)
        x = checkpoint(lambda z: self.b(z).tanh(), x, use_reentrant=True)
        return checkpoint(self.c, x, use_reentrant=True) if self.how == "last" else self.c(x)


def several_tasks():
    """A step whose buckets come in several graph tasks, with whom its end comes as with DDP's."""
    for how, fails in itertools.product(("last", "inside", "outputs"), (False, True)):
        plain = distributed(model=Branches(how))
        hook = DDPHook(compress.Identity(), warmup_steps=0, pattern="gather")
        model, steps = distributed(hook, Branches(how)), 0
        for step, (x, y) in zip(range(4), batches(), strict=False):
            spoils = fails and step == 2
            for ddp in (plain, model):
                ddp.zero_grad()
                outputs = ddp(x * (np.nan if spoils and RANK == 1 else 1))
                outputs = outputs if how == "outputs" else [outputs]
                losses = [nn.functional.cross_entropy(output, y) for output in outputs]
                for loss in losses[:-1]:
                    loss.backward()
                if ddp is model and spoils:
                    raises(Refused, r"step 2 is refused .* NaN or Inf", losses[-1].backward)
                else:
                    losses[-1].backward()
            steps += not spoils
            assert hook.step == steps
            for p, q in zip(plain.parameters(), model.parameters(), strict=True):
                near(q.grad, p.grad) if not spoils else near(q.grad, torch.zeros_like(q))


def dense():
    """Steps that are dense, after the first, are sent by backward itself: of every dtype and kind of model; what is not
    finite is refused by name on all ranks, and they go on."""
    for dtype, tolerance in (
        (torch.float32, 1e-6),
        (torch.float64, 1e-12),
        (torch.bfloat16, 0.02),
        (torch.float16, 0.003),
    ):
        for more in ({}, {"gradient_as_bucket_view": True}, {"static_graph": True}, {"find_unused_parameters": True}):
            hook = DDPHook(compress.ScaledSign(), warmup_steps=100, pattern="gather")
            plain, model = distributed(model=network(dtype), **more), distributed(hook, network(dtype), **more)
            sent = directly(hook)
            for step, batch in zip(range(4), batches(dtype=dtype), strict=False):
                for ddp in (plain, model):
                    ddp.zero_grad()
                    if step == 2 and not more:
                        with ddp.no_sync():
                            loss_of(ddp, batch).backward()
                    loss_of(ddp, batch).backward()
                for p, q in zip(plain.parameters(), model.parameters(), strict=True):
                    near(q.grad.double(), p.grad.double(), tolerance)
            names = [name for names in sent for name in names]  # but for the first step, in which ranks agree
            assert hook.step == 4 and sorted(names) == sorted(3 * list(hook._parameters))
    for options in ({}, {"dense": torch.bfloat16}, {"nonfinite": "propagate"}):
        plain, hook = distributed(), DDPHook(compress.ScaledSign(), warmup_steps=100, pattern="gather", **options)
        model = distributed(hook)
        for losses in zip(train(plain, 5), train(model, 5), strict=True):
            assert abs(losses[0] - losses[1]) < (0.02 if "dense" in options else 1e-5)
        for name in ("4.bias", "0.weight"):  # in the first bucket, in the last
            handle = dict(model.module.named_parameters())[name].register_hook(spoiler(np.nan))
            model.zero_grad()
            loss, said = loss_of(model, next(batches(5))), rf"step 5 is refused .* {name}: 3 NaN or Inf .*, on rank 1$"
            if "nonfinite" in options:
                loss.backward()
                assert all(p.grad.isnan().all() for p in model.parameters())
            else:
                raises(Refused, said, loss.backward)
                assert not any(p.grad.any() for p in model.parameters())
            assert hook.step == 5
            handle.remove()
        train(model, 3, start=5)
        same_everywhere(model)
        assert hook.step == 8 and hook.report().mode == "warm-up"

    hook = DDPHook(compress.ScaledSign(), warmup_steps=100, pattern="gather")
    model = distributed(hook)
    train(model, 3)
    reduced = dist.all_reduce

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    dist.all_reduce = interrupted
    raises(KeyboardInterrupt, "", lambda: train(model, 1, start=3))
    dist.all_reduce = reduced
    raises(RuntimeError, "step 3 has failed on this rank, KeyboardInterrupt", lambda: train(model, 1, start=3))
    hook.close()


def interrupted():
    """Ctrl-C on one rank, which waits for the other: the step counts on both, as it does on the other."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background starts without
    signals = dist.FileStore(sys.argv[4] + ".interrupted", RANKS)
    for warmup, coder in ((100, compress.Eden(4)), (3, compress.Eden(4)), (3, PowerIteration(4))):
        hook = DDPHook(coder, warmup_steps=warmup, pattern="two-shot")
        model, case = distributed(hook), f"{warmup} {coder!r}"

        def wait(gradient, case=case):
            signals.wait([case])

        def interrupt(hook=hook, case=case):
            while not (hook._now and hook._now.closing):  # backward is over but for what it waits for
                time.sleep(0.01)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            signals.set(case, "sent")

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, 8, optimizer=optimizer)
        optimizer.zero_grad()
        loss = loss_of(model, next(batches(8)))
        if RANK == 0:
            threading.Thread(target=interrupt).start()
            raises(KeyboardInterrupt, "", loss.backward)
        else:
            model.module[0].weight.register_hook(wait)  # its answer comes at once from then on
            loss.backward()
        for step, batch in zip(range(9, 14), batches(9), strict=False):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            assert hook.step == step + 1
            bits = b"".join(p.grad.numpy().tobytes() for p in model.parameters())
            assert len(set(everyone(zlib.crc32(bits)))) == 1
            optimizer.step()
        same_everywhere(model)


def directly(hook):
    """What `hook` sends within backward from here on."""
    sent, send = [], hook._directly

    def watched(step, names, *args):
        assert threading.current_thread() is threading.main_thread()
        sent.append(names)
        return send(step, names, *args)

    hook._directly = watched
    return sent


def together():
    """Small buckets of compressed steps go together, those of dense ones as they come; the mean is the same."""
    for least, layouts in ((1, [2, 2]), (2**20, [2, 1])):
        compress.torch.hook._TOGETHER = least
        plain, hook = distributed(), DDPHook(compress.Identity(), warmup_steps=3, pattern="two-shot", min_size=50)
        model, groups = distributed(hook), []
        for steps in (3, 7):
            for losses in zip(train(plain, steps, lr=0.1), train(model, steps, lr=0.1), strict=True):
                assert abs(losses[0] - losses[1]) < 1e-5
            groups.append(hook.state_dict()["groups"])
        same_everywhere(model)
        assert [len(each) for each in groups] == layouts
        assert [sorted(name for group in each for name in group) for each in groups] == [sorted(hook._parameters)] * 2

        for saved in (3, 6):  # before the first compressed step, and later
            hook = DDPHook(compress.Eden(2), warmup_steps=3, pattern="gather")
            model = distributed(hook)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            train(model, saved, optimizer=optimizer)
            again, other = copy.deepcopy(hook), distributed()
            again.register(other)
            other.load_state_dict(model.state_dict())
            again.load_state_dict(hook.state_dict())
            train(model, 4, start=saved, optimizer=optimizer)
            train(other, 4, start=saved, optimizer=torch.optim.SGD(other.parameters(), lr=0.1))
            assert all(map(torch.equal, model.parameters(), other.parameters()))
            assert len(again.state_dict()["groups"]) == layouts[1] and again.report().steps == 4
        with clock() as now:  # "auto" turns dense while buckets of a step wait
            hook = DDPHook(compress.ScaledSign(), warmup_steps=3)
            model = distributed(hook)
            slow(hook, now, 1)
            train(model, 14)
            assert not hook.off and len(hook.state_dict()["groups"]) == layouts[1]
            train(model, 1)
            assert hook.off and len(hook.state_dict()["groups"]) == layouts[1]
            train(model, 1)
            assert len(hook.state_dict()["groups"]) == 2
            same_everywhere(model)
    compress.torch.hook._TOGETHER = TOGETHER
    plain, hook = (
        distributed(model=mixed()),
        DDPHook(compress.Identity(), warmup_steps=1, pattern="gather", min_size=50),
    )
    model = distributed(hook, mixed())  # buckets are of one dtype, and so are vectors
    for _, (x, labels) in zip(range(3), batches(), strict=False):
        for ddp in (plain, model):
            ddp.zero_grad()
            nn.functional.cross_entropy(ddp(x), labels).backward()
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            near(q.grad.double(), p.grad.double(), 1e-12 if p.dtype == torch.float64 else 1e-6)
    assert {state.up[0].dtype for state in hook._states.values()} == {np.dtype(np.float32), np.dtype(np.float64)}
    assert abs(hook.report().bits * 6792 / (32 * 2112 + 64 * 4680) - 1) < 1e-9


class mixed(nn.Module):
    """A network in two dtypes."""

    def __init__(self):
        super().__init__()
        self.first, self.rest = network()[:2], network(torch.float64)[2:]

    def forward(self, x):
        return self.rest(self.first(x).double())


def power():
    """PowerIteration in a compressor's place: the same replicas, refusals and runs that go on."""
    folder = os.path.dirname(sys.argv[4])
    for options in ({"pattern": "gather"}, {"pattern": "two-shot", "warmup_steps": 3, "dense": torch.bfloat16}):
        hook = DDPHook(PowerIteration(4, pattern=options["pattern"]), **({"warmup_steps": 0} | options))
        model = distributed(hook)
        losses = train(model, 1)
        layouts = [hook.state_dict()["groups"]]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
        losses += train(model, 29, start=1, optimizer=optimizer)
        layouts.append(hook.state_dict()["groups"])
        same_everywhere(model)
        assert layouts[0] != layouts[1] and hook.step == 30 and losses[-1] < losses[0]
        report = hook.report()
        assert report.steps == 30 - hook.warmup_steps and report.mode == "compressed" and report.ratio > 4

        before, parameters = hook.state_dict(), bits_of(model.parameters())
        for name, value in (("2.weight", np.nan), ("0.weight", np.inf), ("4.bias", np.nan)):
            handle = dict(model.module.named_parameters())[name].register_hook(spoiler(value))
            optimizer.zero_grad()
            loss = loss_of(model, next(batches(5)))
            raises(
                Refused, rf"step 30 is refused .* {name}: 3 NaN or Inf among \d+ elements, on rank 1$", loss.backward
            )
            assert all(not p.grad.any() for p in model.parameters()) and hook.step == 30
            handle.remove()
        assert len(before["states"]) == 2
        for a, b in zip(before["states"], hook.state_dict()["states"], strict=True):
            assert all(map(torch.equal, a["up"] + a["shared"], b["up"] + b["shared"]))

        path = f"{folder}/power.{RANK}.pt"
        saved = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "hook": before}
        torch.save(saved, path)
        again = copy.deepcopy(hook)
        other, saved = distributed(again), torch.load(path, weights_only=True)
        other.module.load_state_dict(saved["model"])
        again.load_state_dict(saved["hook"])
        resumed = torch.optim.SGD(other.parameters(), lr=0.3, momentum=0.5)
        resumed.load_state_dict(saved["optimizer"])
        for ddp, stepper in ((model, optimizer), (other, resumed)):
            train(ddp, 10, start=30, optimizer=stepper)
        assert not all(map(torch.equal, parameters, model.parameters()))
        assert all(map(torch.equal, model.parameters(), other.parameters()))
        for a, b in zip(again.state_dict()["states"], hook.state_dict()["states"], strict=True):
            assert a["names"] == b["names"] and all(map(torch.equal, a["up"] + a["shared"], b["up"] + b["shared"]))
    for options in ({"shift": True}, {"error_feedback": False}, {"down": compress.Eden(2)}, {"decay": 0.9}):
        raises(ValueError, "no shift, decay or down", lambda o=options: DDPHook(PowerIteration(4), **o))


def sharded():
    """FSDP2: losses near those without a hook, the bytes that its report says, refusals, and runs that go on."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from compress.torch import FSDPHook

    mesh = init_device_mesh("cpu", (RANKS,))

    def fresh(hook=None, dtype=torch.float32, keep=True):
        model = network(dtype)
        for layer in model[::2]:
            fully_shard(layer, mesh=mesh, reshard_after_forward=keep)
        fully_shard(model, mesh=mesh)
        if hook is not None:
            hook.register(model)
        return model

    def shards(model):
        return [p.to_local().clone() for p in model.parameters()]

    dense = np.mean(everyone(train(fresh(), 60)[-20:]))
    for hook in (
        FSDPHook(compress.ScaledSign(), warmup_steps=5),
        FSDPHook(compress.Eden(2), warmup_steps=0, decay=0.95),
        FSDPHook(compress.Eden(6), warmup_steps=2, error_feedback=False, dense=torch.bfloat16, min_size=3000),
    ):
        model, sent = fresh(hook), [0]
        swap, scatter = dist.all_to_all_single, dist.reduce_scatter_single

        def counted(output, *args, swap=swap, sent=sent, **kwargs):
            sent[0] += output.nbytes - 64 * (RANKS - 1) if output.dtype == torch.uint8 else 0  # without headers
            return swap(output, *args, **kwargs)

        train(model, hook.warmup_steps)
        keys = keys_of(hook)
        dist.all_to_all_single = counted
        losses = train(model, 60 - hook.warmup_steps, start=hook.warmup_steps)
        dist.all_to_all_single, dist.reduce_scatter_single = swap, scatter
        loss = np.mean(everyone(losses[-20:]))
        assert loss < 1.1 * dense, (hook.reduce, loss, dense)
        assert len(keys) == len(set(keys)) >= 60 - hook.warmup_steps
        report = hook.report()
        large = 6792 if hook.min_size == 1024 else 4096 + 64  # with biases
        large -= 0 if hook.min_size == 3000 else 520  # the last module
        assert (report.parameters, report.compressed) == (6792, large)
        dense_bytes = 2 * (6792 - large) if hook.dense else 4 * (6792 - large)
        dense_bytes *= (RANKS - 1) / RANKS
        assert abs(8 * (sent[0] / report.steps + dense_bytes) / 6792 / report.bits - 1) < 0.01
        assert report.dense_bits == 16 and report.ratio > 2 and report.steps == 60 - hook.warmup_steps

    lossless = {"compressor": compress.Identity(), "warmup_steps": 1}
    for options in ({}, {"dtype": torch.bfloat16}, {"keep": False}):
        plain, model = fresh(**options), fresh(FSDPHook(**lossless), **options)
        for losses in zip(train(plain, 5, **dtype_of(options)), train(model, 5, **dtype_of(options)), strict=True):
            assert abs(losses[0] - losses[1]) < (0.1 if "dtype" in options else 1e-5)
    sums(mesh)
    some_without_gradient(mesh)

    hook = FSDPHook(compress.Eden(2), warmup_steps=2)
    model = fresh(hook, keep=False)
    train(model, 10, lr=0.1)
    state, before = hook.state_dict(), shards(model)
    handle = model[2].register_forward_hook(lambda module, x, y: y * (np.nan if RANK == 1 else 1))
    seen = []
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.to_local().abs().max().item()))
    raises(
        Refused,
        r"step 10 is refused .*: 4.weight: \d+ NaN or Inf among 512 elements, on rank 1; 4.bias: 8 NaN .*, on rank 1$",
        lambda: train(model, 1, 10),
    )
    handle.remove()
    assert hook.step == 10 and all(map(torch.equal, before, shards(model)))
    assert seen == [0]
    states = dict(hook._states)
    hook._keep(_Step())  # a step in which no module had a gradient
    assert hook._states == states and len(states) == 2
    state = {"hook": state, "model": [p.detach().to_local().clone() for p in model.parameters()]}
    train(model, 10, start=10, lr=0.1)
    again = FSDPHook(compress.Eden(2), warmup_steps=2)
    other = fresh(again)
    with torch.no_grad():
        for p, shard in zip(other.parameters(), state["model"], strict=True):
            p.to_local().copy_(shard)
    again.load_state_dict(state["hook"])
    train(other, 10, start=10, lr=0.1)
    assert all(map(torch.equal, shards(model), shards(other)))
    assert not any(state["down"] for state in again.state_dict()["states"])

    hook = FSDPHook(compress.Eden(2), warmup_steps=0, nonfinite="propagate")
    model = fresh(hook)
    model[0].register_forward_hook(lambda module, x, y: y * (np.nan if RANK == 1 else 1))
    train(model, 1)  # nobody stops
    assert hook.step == 0 and all(torch.isnan(p.grad.to_local()).all() for p in model.parameters())

    raises(
        TypeError, "must be sharded by fully_shard, got Sequential", lambda: FSDPHook(**lossless).register(network())
    )
    raises(RuntimeError, "has a model already", lambda: hook.register(fresh()))
    hook = FSDPHook(compress.Eden(1 + RANK), warmup_steps=2)
    raises(ValueError, "FSDPHook: ranks differ in reduction", lambda: train(fresh(hook), 1))
    unknown = fully_shard(nn.Linear(64, 32, dtype=torch.complex64), mesh=mesh)
    raises(TypeError, "weight is torch.complex64", lambda: FSDPHook(**lossless).register(unknown))


def sums(mesh):
    """Where FSDP asks for the sum of the gradients, and divides it itself."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from compress.torch import FSDPHook

    for half, warmup in itertools.product((False, True), (0, 5)):
        gradients = []
        for hook in (None, FSDPHook(compress.Identity(), warmup_steps=warmup)):
            policy = MixedPrecisionPolicy(reduce_dtype=torch.float16 if half else None)
            model = fully_shard(network(), mesh=mesh, mp_policy=policy)
            if not half:
                model.set_gradient_divide_factor(4.0)
                model.set_force_sum_reduction_for_comms(True)
            if hook:
                hook.register(model)
            loss_of(model, next(batches())).backward()
            gradients.append(torch.cat([p.grad.to_local().flatten() for p in model.parameters()]))
        near(gradients[1], gradients[0], 0.002 if half else 1e-5)


def some_without_gradient(mesh):
    """A vector in which some parameters are missing is dense, and the error stays where it belongs."""
    from torch.distributed.fsdp import fully_shard

    from compress.torch import FSDPHook

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.experts = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(2))

        def forward(self, x, used):
            return sum(self.experts[k](x).sum() for k in used)

    hook = FSDPHook(compress.ChunkTopK(64, 8), warmup_steps=0)
    model = fully_shard(Experts(), mesh=mesh)
    hook.register(model)

    def gradients(x, *used):
        model.zero_grad()
        model(x, used).backward()
        return [None if p.grad is None else p.grad.full_tensor() for p in model.parameters()]

    gradients(100 * torch.ones(4, 64), 0, 1)
    ((error,),) = [state.up for state in hook._states.values()]
    assert hook.step == 1 and list(hook._states) == [("the root module",)] and error.any()
    for k in range(2):
        found = gradients(torch.full((1, 64), RANK + 1.0), k)
        assert torch.equal(found[k], torch.full((64, 64), 1.5)) and found[1 - k] is None
    ((kept,),) = [state.up for state in hook._states.values()]
    assert kept is error and hook.step == 3
    raises(Refused, r"the root module: \d+ NaN or Inf among 4096", lambda: gradients(torch.full((1, 64), np.nan), 0))
    frozen = Experts()
    frozen.experts[1].requires_grad_(False)
    hook = FSDPHook(compress.ChunkTopK(64, 8), warmup_steps=0)
    model = fully_shard(frozen, mesh=mesh)
    hook.register(model)
    gradients(torch.ones(4, 64), 0, 1)
    assert hook.report().compressed == 4096 and [state.up[0].size for state in hook._states.values()] == [4096]

    plain, model = Branches("inside"), Branches("inside")  # a module of the outer graph task comes first
    hook = FSDPHook(compress.Identity(), warmup_steps=0)
    for each in (plain, model):
        for layer in (each.a, each.b, each.c):
            fully_shard(layer, mesh=mesh)
        fully_shard(each, mesh=mesh)
    hook.register(model)
    for step, batch in zip(range(3), batches(), strict=False):
        for each in (plain, model):
            each.zero_grad()
            loss_of(each, batch).backward()
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            near(q.grad.to_local(), p.grad.to_local())
        assert hook.step == step + 1 and len(hook._states) == 2


def replicated():
    """FSDP2 on a hybrid mesh: a step counts on all ranks of it or on none."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from compress.torch import FSDPHook

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))

    def fresh(hook=None):
        model = network()
        fully_shard(model[2], mesh=mesh)
        fully_shard(model, mesh=mesh)
        if hook is not None:
            hook.register(model)
        return model

    def same_on_replicas(model):
        state = b"".join(p.to_local().detach().numpy().tobytes() for p in model.parameters())
        found = everyone(zlib.crc32(state))
        assert found[:2] == found[2:] and found[0] != found[1]

    lossless = FSDPHook(compress.Identity(), warmup_steps=1)
    for losses in zip(train(fresh(), 5), train(fresh(lossless), 5), strict=True):
        assert abs(losses[0] - losses[1]) < 1e-5
    assert lossless.step == 5

    hook = FSDPHook(compress.Eden(2), warmup_steps=1)
    model, keys = fresh(hook), keys_of(hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    train(model, 4, optimizer=optimizer)
    everyones = [str(key) for of_rank in everyone(keys) for key in of_rank]
    assert len(keys) == 6 and len(set(everyones)) == 12  # of two groups of ranks
    before = bits_of(p.to_local() for p in model.parameters())
    handle = model[2].register_forward_hook(lambda module, x, y: y * (np.nan if RANK == 3 else 1))
    optimizer.zero_grad()
    loss = loss_of(model, next(batches()))
    raises(Refused, r"step 4 is refused .*NaN or Inf among \d+ elements, on rank 3", loss.backward)
    assert not any(p.grad.to_local().any() for p in model.parameters())
    handle.remove()
    assert hook.step == 4 and all(map(torch.equal, before, (p.to_local() for p in model.parameters())))
    train(model, 4, start=4, optimizer=optimizer)
    same_on_replicas(model)
    assert hook.step == 8

    hook = FSDPHook(compress.Eden(2), warmup_steps=0, nonfinite="propagate")
    model = fresh(hook)
    model[2].register_forward_hook(lambda module, x, y: y * (np.nan if RANK == 3 else 1))
    train(model, 1)
    assert hook.step == 0 and all(torch.isnan(p.grad.to_local()).all() for p in model.parameters())

    hook = FSDPHook(compress.Eden(2), warmup_steps=RANK // 2)  # ranks of a replica are alike
    raises(
        ValueError,
        "ranks differ in warmup_steps: 0 on rank 0, 0 on rank 1, 1 on rank 2, 1 on rank 3",
        lambda: train(fresh(hook), 1),
    )
    twice = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    layer = torch.distributed.tensor.parallel.parallelize_module(
        nn.Linear(64, 64), twice["tensor"], torch.distributed.tensor.parallel.ColwiseParallel()
    )
    fully_shard(layer, mesh=twice["data"])
    raises(ValueError, r"weight is placed as", lambda: FSDPHook(compress.Eden(2)).register(layer))


class Given(nn.Module):
    """A network whose gradients are what it is called with, to the bit."""

    SHAPES = (64, 70), (40,), (90, 64), (8, 3, 50)

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(shape, dtype=dtype) for shape in self.SHAPES)

    def forward(self, gradients):
        return sum((p * g).sum() for p, g in zip(self.weights, gradients, strict=True))

    @classmethod
    def gradients(cls, step, device, dtype=torch.float32):
        """Of this rank in a step, the same on every device."""
        generator = torch.Generator().manual_seed(1000 * step + RANK)
        return [torch.randn(shape, generator=generator).to(device, dtype) for shape in cls.SHAPES]


def given_alike(models, hooks, step, local=lambda gradient: gradient, dtype=torch.float32):
    """A step of the model on each device, after which gradients and what the hooks hold are the same bits; nearly so
    where BLAS has a part in what a worker sends."""
    found = []
    for device, model in models.items():
        model.zero_grad()
        model(Given.gradients(step, device, dtype)).backward()
        gradients = [local(p.grad) for p in model.parameters()]
        assert all(gradient.device.type == device for gradient in gradients)
        state = hooks[device].state_dict()["states"]
        left = [t for each in state for what in ("up", "down", "shared") for t in each[what]]
        assert all(t.device.type == device for t in left)
        found.append([t.cpu().contiguous() for t in (*gradients, *left)])
    power = isinstance(hooks["cpu"].reduce, PowerIteration)
    for here, there in zip(*found, strict=True):
        if power:
            near(there, here, 0.05)
        else:
            assert torch.equal(here.view(torch.uint8), there.view(torch.uint8)), step
    assert any(gradient.any() for gradient in found[0])
    if not isinstance(hooks["cpu"], DDPHook):
        return
    for each in found:  # means, on both ranks
        same = [zlib.crc32(t.view(torch.uint8).numpy().tobytes()) for t in each[: len(gradients)]]
        assert len(set(map(tuple, everyone(same)))) == 1


def on_a_gpu():
    """What a hook makes of gradients on a GPU is what it makes of them on the CPU; a run goes on there."""
    for options in (
        {"compressor": compress.ScaledSign(), "pattern": "two-shot", "dense": torch.bfloat16},
        {"compressor": compress.Eden(2), "pattern": "two-shot", "decay": 0.9},
        {"compressor": compress.Eden(2), "pattern": "gather", "dtype": torch.bfloat16},
        {"compressor": compress.ChunkTopK(64, 4), "pattern": "gather", "dtype": torch.float64},
        {"compressor": compress.Trellis(bits=1), "pattern": "two-shot"},  # of varying length
        {"compressor": compress.StandardDithering(7, "linf", 1024), "pattern": "two-shot", "shift": True},
        {"compressor": PowerIteration(4, pattern="two-shot"), "pattern": "two-shot"},
        {"compressor": PowerIteration(2, compress.UniformQuantizer(bits=3), pattern="gather"), "pattern": "gather"},
        {"compressor": compress.Eden(2)},  # which measures
    ):
        options = dict(options)
        dtype = options.pop("dtype", torch.float32)
        hooks = {device: DDPHook(warmup_steps=1, min_size=100, **options) for device in ("cpu", "cuda")}
        models = {device: distributed(hook, Given(dtype).to(device)) for device, hook in hooks.items()}
        for step in range(5 if "pattern" in options else 12):
            given_alike(models, hooks, step, dtype=dtype)
        on_gpu = hooks["cuda"]
        assert on_gpu.report().wire == hooks["cpu"].report().wire > 0
        if "pattern" not in options:
            continue
        bad = Given.gradients(step, "cuda", dtype)
        if RANK:
            bad[2][5, 5] = np.nan
        loss = models["cuda"](bad)
        raises(Refused, r"weights\.2: 1 NaN or Inf among 5760 elements, on rank 1", loss.backward)
        again = copy.deepcopy(on_gpu)
        model = distributed(again, Given(dtype).to("cuda"))
        again.load_state_dict(on_gpu.state_dict())
        hooks["cuda"], models["cuda"] = again, model
        given_alike(models, hooks, step + 1, dtype=dtype)


def sharded_on_a_gpu():
    """The same of FSDP2."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from compress.torch import FSDPHook

    for options in (
        {"compressor": compress.Eden(2), "decay": 0.9},
        {"compressor": compress.Trellis(bits=1)},
        {"compressor": compress.Eden(6), "error_feedback": False},
    ):
        hooks = {device: FSDPHook(warmup_steps=1, **options) for device in ("cpu", "cuda")}
        models = {}
        for device, hook in hooks.items():
            models[device] = fully_shard(Given().to(device), mesh=init_device_mesh(device, (RANKS,)))
            hook.register(models[device])
        for step in range(5):
            given_alike(models, hooks, step, lambda gradient: gradient.to_local())


def dtype_of(options):
    return {key: value for key, value in options.items() if key == "dtype"}


def killed(warmup_steps=2):
    """A rank that dies in the middle of a step: the other one's backward raises in time, and it can end."""
    hook = DDPHook(compress.ScaledSign(), warmup_steps=warmup_steps, pattern="two-shot")
    model = distributed(hook)
    train(model, 5)
    if RANK == 1:
        model.module[2].weight.register_hook(lambda gradient: os.kill(os.getpid(), signal.SIGKILL))
    raises(RuntimeError, ".", lambda: train(model, 2, start=5))
    assert hook.step == 5
    print("noticed", flush=True)
    dist.destroy_process_group()
    sys.exit(7)  # in good order


def killed_while_dense():
    text = io.StringIO()
    logging.getLogger("compress").addHandler(logging.StreamHandler(text))
    try:
        killed(100)
    finally:
        assert text.getvalue().count("has failed on this rank") == 1, text.getvalue()


def stalls():
    """A rank that fails alone: it logs why and says nothing more, and the other one ends with the timeout of its
    model's group, that the hook's own group has as well."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    from compress.torch import FSDPHook

    text = io.StringIO()
    logging.getLogger("compress").addHandler(logging.StreamHandler(text))

    def fails(*args, **kwargs):
        raise MemoryError("no room for 6792 numbers")

    hook = DDPHook(compress.ScaledSign(), warmup_steps=2, pattern="gather")
    model = distributed(hook, process_group=dist.new_group(timeout=datetime.timedelta(seconds=4)))
    train(model, 5)
    if RANK == 1:
        object.__setattr__(hook.reduce, "mean", fails)
        error = raises(MemoryError, "no room", lambda: train(model, 1, start=5))
        assert error.__notes__ == ["DDPHook: in step 5, of which nothing has changed"]
        assert text.getvalue() == "DDPHook: step 5 has failed on this rank: MemoryError('no room for 6792 numbers')\n"
        raises(RuntimeError, "step 5 has failed on this rank, MemoryError", lambda: train(model, 1, start=5))
        assert text.getvalue().count("\n") == 1
    else:
        raises(RuntimeError, "[Tt]imed out|[Tt]imeout", lambda: train(model, 1, start=5))
    assert hook.step == 5 and not any(p.grad.any() for p in model.parameters())

    group, hook = dist.new_group(timeout=datetime.timedelta(seconds=4)), FSDPHook(compress.Eden(2), warmup_steps=2)
    model = network()
    for layer in (*model[::2], model):
        fully_shard(layer, mesh=DeviceMesh.from_group(group, "cpu"))
    hook.register(model)
    train(model, 5)
    if RANK == 1:
        object.__setattr__(hook.reduce, "reduce_scatter", fails)
    raises((RuntimeError, MemoryError), ".", lambda: train(model, 1, start=5))  # by whichever sees it first
    assert RANK == 0 or "FSDPHook: step 5 has failed on this rank: MemoryError" in text.getvalue()
    assert hook.step == 5
    print("noticed", flush=True)
    dist.destroy_process_group()
    sys.exit(7)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    jobs, store = sys.argv[1].split(","), sys.argv[4]
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=RANK, world_size=RANKS, timeout=timeout)
    for job in jobs:
        compress.torch.hook._TOGETHER = 0 if job in APART else TOGETHER
        globals()[job]()
    dist.barrier()
    dist.destroy_process_group()
    print(f"rank {RANK} is done")
