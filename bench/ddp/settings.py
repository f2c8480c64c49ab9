"""What is compared: ways for DDP's ranks to average a gradient, and what a step of each costs by the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from math import ceil, prod
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

import compress

from . import peers

BASELINE = "bf16"
WARMUP = 10  # steps that ours sends dense first; with 2 the CNN ends at a higher loss
POWER_WARMUP = 2  # of PowerIteration
POWER_SGD_WARMUP = 2  # the fewest that torch allows; with 10 the CNN ends at the same loss
MIN_SIZE = 1024  # below, a tensor is dense
HEADER = 8 * 64  # bits of a message of ours
SILENT = "silent"
ONE_BUCKET = {"bucket_cap_mb": 25}  # given, it is also that of the first bucket, which otherwise is of 1 MiB


class Work(NamedTuple):
    """A step of a rank, one of n: bits that its link carries each way, messages that wait for each other, messages sent
    at once, coordinates to encode and to decode."""

    bits: float
    waits: int
    messages: int
    encoded: float
    decoded: float


@dataclass(frozen=True)
class Setting:
    """kind: "reference", "peer" or "ours". attach(model, **options): puts the hook on a DDP model; what it returns may
    have a report(). Its options: n ranks, warmup steps, and auto, whether a hook may choose to send dense.
    warmup: steps that are sent as those of the setting `dense` are, before all others. ddp: options for DDP itself.

    work(n, shapes, rate): see `Work`; rate: bits a coordinate of a message, as measured, for those whose length varies.
    coder(shapes): (encode, decode), of a float32 tensor and of what it became.
    """

    name: str
    kind: str
    attach: Callable
    work: Callable
    coder: Callable
    warmup: int = 0
    dense: str = BASELINE
    ddp: dict = field(default_factory=dict)


def count(shapes) -> int:
    return sum(map(prod, shapes))


def buckets(shapes) -> int:
    """Of DDP: one of about 1 MiB, and others of 25. Each is averaged by messages of its own."""
    left = 4 * count(shapes) - 2**20
    return 1 + max(0, ceil(left / (25 * 2**20)))


# References and peers


def _ring(bits, n, shapes, rate=None, rings=None):
    """The ring that gloo has: n - 1 messages of 1/n to sum, n - 1 to tell."""
    d = count(shapes)
    return Work(2 * (n - 1) / n * bits(shapes), (rings or buckets(shapes)) * 2 * (n - 1), 0, d, d)


def _casts(dtype, shapes):
    return lambda x: x.to(dtype), lambda message: message.float()


def _dense(name, kind, hook, dtype):
    def bits(shapes):
        return 8 * dtype.itemsize * count(shapes)

    def attach(model, **_):
        hook(model)

    return Setting(name, kind, attach, partial(_ring, bits), partial(_casts, dtype))


def _two_shot(name, codec, feedback):
    """Both shots send each of the others a message of d/n coordinates. Feedback decodes what it has encoded."""

    def work(n, shapes, rate=None):
        d = count(shapes)
        part = ceil(d / n / codec.block) * codec.block
        message = 8 * codec().encode(torch.zeros(1, part)).numel()
        encoded, times = d + d / n, buckets(shapes)
        return Work(2 * (n - 1) * message, 2 * times, 2 * times * (n - 1), encoded, 2 * d + feedback * encoded)

    def coder(shapes):
        made = codec()
        whole = count(shapes) // made.block * made.block
        return lambda x: made.encode(x[None, :whole]), made.decode

    def attach(model, **_):
        peers.TwoShot(codec(), feedback).register(model)

    return Setting(name, "peer", attach, work, coder)


def _power_sgd(rank):
    """Rings for what stays dense, for P and for Q. gloo mixes up those of two buckets, so that there must be one."""

    def bits(shapes):
        return 32 * sum(_factors(rank, s) if _low_rank(rank, s) else prod(s) for s in shapes)

    def attach(model, warmup, **_):
        peers.power_sgd(model, rank, warmup)

    def coder(shapes):
        matrices = [s for s in shapes if _low_rank(rank, s)]
        right = [torch.randn(prod(s[1:]), rank) for s in matrices]

        def encode(x):
            parts = x[: count(matrices)].split([prod(s) for s in matrices])
            found = []
            for part, s, q in zip(parts, matrices, right, strict=True):
                p, _ = torch.linalg.qr(part.view(s[0], -1) @ q)
                found.append((p, part.view(s[0], -1).T @ p))
            return found

        return encode, lambda found: [p @ q.T for p, q in found]

    work = partial(_ring, bits, rings=3)
    return Setting(f"PowerSGD({rank})", "peer", attach, work, coder, POWER_SGD_WARMUP, "float32", ONE_BUCKET)


def _factors(rank, shape):
    return rank * (shape[0] + prod(shape[1:]))


def _low_rank(rank, shape):
    """Whether torch's hook takes a gradient for a matrix worth its factors."""
    return len(shape) > 1 and 2 * _factors(rank, shape) < prod(shape)


def references_and_peers() -> list[Setting]:
    return [
        _dense(BASELINE, "reference", peers.bf16, torch.bfloat16),
        _dense("float32", "reference", peers.float32, torch.float32),
        _dense("fp16", "peer", peers.fp16, torch.float16),
        _two_shot("fp8 two-shot", peers.FP8, False),
        _two_shot("int4 two-shot", peers.Int4, True),
        *(_power_sgd(rank) for rank in (1, 2, 4)),
    ]


def silent() -> Setting:
    """A step without communication."""

    def attach(model, **_):
        peers.silent(model)

    return Setting(SILENT, "", attach, work=None, coder=None)


# Ours


@cache
def _group():
    """For the hooks of this process, which come one after the other."""
    return dist.new_group()


def ours(compressor, name: str) -> Setting:
    """compress.torch.DDPHook with a compressor or a PowerIteration, error feedback at both ends and bfloat16 for what
    stays dense."""
    from compress.torch import DDPHook

    DDPHook(compressor)  # it may not take it
    power = isinstance(compressor, compress.PowerIteration)
    reduce = compress.AllReduce(compressor.values if power else compressor, memory="error")

    def attach(model, n, warmup, auto):
        d = sum(p.numel() for p in model.parameters())
        pattern = "auto" if auto else "two-shot" if reduce.two_shot(n, d) else "gather"
        options = {"warmup_steps": warmup, "min_size": MIN_SIZE, "pattern": pattern, "dense": torch.bfloat16}
        hook = DDPHook(compressor, error_feedback=True, group=_group(), **options)
        hook.register(model)
        return hook

    def sent(shapes):
        return [s for s in shapes if len(s) > 1 and prod(s) >= MIN_SIZE]

    def work(n, shapes, rate=None):
        large = sent(shapes)
        d, small, times = count(large), count(shapes) - count(large), ceil(4 * count(shapes) / (25 * 2**20))
        parts = [part for part in compressor.of(large).parts(n) if part[0]] if power else [(d, reduce)]
        bits, waits, messages, decoded = 0.0, 0, 0, 0.0
        for size, each in parts:
            shots, fixed = 1 + each.two_shot(n, size), each.up_coder.fixed_length
            length = size if shots == 1 else ceil(size / n)
            message = each.up_coder.bits(length) if fixed else rate * length * d / sum(part[0] for part in parts)
            expected = each.up_coder.expected_bits(length)
            exchanges = shots * times * (2 if expected is None else 1)  # lengths that nobody expects are told first
            bits, waits = bits + (n - 1) * shots * (message + times * HEADER), waits + exchanges
            messages += exchanges * (n - 1)
            decoded += n * size if shots == 1 else (n - 1) / n * size + size  # own slices stay at home
        if small:
            bits, waits = bits + 2 * (n - 1) / n * 16 * small, waits + 2 * (n - 1) * times
        if power:  # a step of one worker is what is timed, in which the decoder of factors is little
            return Work(bits, waits, messages, d, 0)
        return Work(bits, waits, messages, d, decoded + d)  # feedback decodes what it has encoded

    def coder(shapes):
        key, d = compress.Key(0).worker(0), count(shapes)
        if not power:
            C = reduce.up_coder
            C.encode(np.zeros(d, np.float32), key)
            return lambda x: C.encode(x.numpy(), key), lambda message: C.decode(message, key)
        one, mean = compress.Local(1), compressor.of(shapes)
        state = mean.init(one, d)

        def encode(x):
            before = one.ledger.bits_up
            mean.mean(one, state, [x.numpy()], key)
            return SimpleNamespace(bits=one.ledger.bits_up - before)

        return encode, lambda message: None

    return Setting(name, "ours", attach, work, coder, POWER_WARMUP if power else WARMUP)


def named(name: str) -> Setting:
    """The setting of that name; ours by the compressor's expression, which it is. ValueError for another one."""
    for setting in [*references_and_peers(), silent()]:
        if setting.name == name:
            return setting
    return next(setting for setting in chosen("", name).values() if setting.kind == "ours")


def chosen(peers_text: str = "all", ours_text: str = "PowerIteration(); Eden(bits=2)") -> dict[str, Setting]:
    """The settings by name: bf16, what dense steps of others are, the peers that are named, separated by commas, and
    ours, compressors and PowerIterations separated by semicolons. ValueError for unknown names."""
    from ..frontier import name as short

    known = {setting.name: setting for setting in references_and_peers()}
    names = list(known) if peers_text == "all" else [name.strip() for name in peers_text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown peer {unknown[0]!r}; known: {', '.join(known)}")
    dense = [known[name].dense for name in names if known[name].warmup]
    found = {name: known[name] for name in dict.fromkeys([BASELINE, *dense, *names])}
    for text in filter(None, map(str.strip, ours_text.split(";"))):
        (C,) = _read(text)
        power = isinstance(C, compress.PowerIteration)
        name = f"PowerIteration({C.rank}, {short(C.values)})" if power else short(C)
        name = name if _read(name) == [C] else repr(C)  # a rank makes it of its name
        found[name] = ours(C, name)
    return found


def _read(text: str) -> list:
    """The compressors and PowerIterations that a text names."""
    from ..convergence import compressors

    return compressors(text, also=[compress.PowerIteration])
