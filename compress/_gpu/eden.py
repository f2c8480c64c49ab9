"""Eden: csrc/eden.cu."""

import functools

import numpy as np

from .._cpu import kernels as host
from .device import Status, cupy, empty, launch, need, read, view, zeros

_BLOCK, _RATE_ONE = 4096, 65536
_TABLES = 1808  # words of eden_plan
_SHARES = 4096  # CUDA blocks that share an encoder's spans: more spans than one make up for copying the tables
_BLOCKS = 512  # that share the rest


@functools.cache
def _tables(module, device, rate):
    """The alphabets of a rate. Kernels of any stream may read them: the first call of a rate waits once."""
    tables = empty(_TABLES, np.uint32)
    launch("eden", "eden_open", 5, 128, rate, tables)
    read(tables[:1])
    return tables


class _Spans:
    """How n coordinates are shared between the kernels: `whole` spans of 4096 in registers; in shared memory the rest,
    and of those before what is on the list."""

    def __init__(self, n, rate):
        block = min(_BLOCK, 1 << (n.bit_length() - 1))
        spans, over = divmod(n, block)
        self.whole = spans - (over > 0) if block == _BLOCK else 0
        longest = block + over
        self.rest = n, self.whole, longest, rate
        self.blocks = min(spans, _BLOCKS)
        self.shared = 9 * (_BLOCK if longest <= _BLOCK else 2 * _BLOCK)  # float64 and a byte of code
        self.todo = zeros(2, np.uint64), empty(max(self.whole, 1), np.uint32)  # a failure, how many are on the list; it
        self.width = 0 if rate % _RATE_ONE else rate // _RATE_ONE  # of codes, where there is one alphabet of 2^width
        self.kind = "" if self.width else "_mixed"
        self.tables = _tables(cupy(), cupy().cuda.Device().id, rate)


def eden_encode(x, rate, unbiased, wire, key, payload):
    view(x, "fd"), view(payload, "B")
    offset, count = host.eden_layout(x.size, rate, wire)
    need(payload, offset + wire * count, "payload")
    if x.size == 0:
        return 0
    s, run = _Spans(x.size, rate), functools.partial(launch, "eden", real=x.dtype)
    into = bool(unbiased), payload, offset, wire, *s.todo
    run(f"eden_encode{s.kind}", min(s.whole, _SHARES), 128, x, s.whole, key, s.tables, s.width, *into)
    run("eden_encode_spans", s.blocks, 512, x, *s.rest, key, s.tables, *into, shared=s.shared)
    return Status(s.todo[0].view(np.uint8))  # the lowest byte of the failure


def eden_decode(payload, rate, wire, key, weight, out, add=False):
    view(payload, "B"), view(out, "fd")
    offset, count = host.eden_layout(out.size, rate, wire)
    need(payload, offset + wire * count, "payload")
    if out.size == 0:
        return
    s, run = _Spans(out.size, rate), functools.partial(launch, "eden", real=out.dtype)
    message, into = (payload, offset, wire), (weight, bool(add), out, *s.todo)
    run(f"eden_decode{s.kind}", s.whole, 128, *message, key, s.tables, s.width, *into)
    run("eden_decode_spans", s.blocks, 512, *message, *s.rest, key, s.tables, *into, shared=s.shared)
