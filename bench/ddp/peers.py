"""What a user of torch alone has: its own hooks, and two-shot means in fp8 and in blocks of int4, written with torch.

Two shots: a bucket is cut into a part for each rank. Every rank encodes all parts and sends each to its owner
(all_to_all); the owner decodes what it got, averages in float32, encodes the mean and sends it to everybody
(all_gather). A coordinate travels twice, in 2 (n-1)/n messages of the size of the bucket, and all ranks decode the same
bytes, so that replicas stay equal bit for bit.

Design note.
(a) The values and scales of a part are one message: a mean is two collectives and not four.
(b) A thread of its own does them, a bucket after the other, while the backward pass goes on, as torch's hooks do.
(c) int4 keeps what it leaves out, at the sender and at the owner of the mean, and adds it at the next step (as 1-bit
    Adam does, Tang et al., ICML 2021). What is kept belongs to the parameters in a bucket, in their order: DDP
    rearranges its buckets after the first step.
(d) gloo does not know fp8 as a type: it travels as uint8.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook


class FP8:
    """e4m3: 8 bits a value, and 16 for the scale of a block.

    encode: r x m float32, m a multiple of `block`, to uint8 messages of r rows; decode: back.
    """

    block, largest = 128, torch.finfo(torch.float8_e4m3fn).max

    def encode(self, x):
        values, scales = _scaled(x, self.block, self.largest)
        return torch.cat([values.to(torch.float8_e4m3fn).view(torch.uint8), scales], 1)

    def decode(self, messages):
        codes, scales = _split(messages, self.block)
        return _unscaled(codes.view(torch.float8_e4m3fn).float(), scales, self.block)


class Int4:
    """15 levels, two values in a byte, and 16 bits for the scale of a block. As FP8."""

    block, largest = 64, 7.0

    def encode(self, x):
        values, scales = _scaled(x, self.block, self.largest)
        codes = values.round_().add_(8).to(torch.uint8)
        return torch.cat([codes[:, ::2] | codes[:, 1::2] << 4, scales], 1)

    def decode(self, messages):
        packed, scales = _split(messages, self.block // 2)
        codes = torch.stack([packed & 15, packed >> 4], 2).flatten(1)
        return _unscaled(codes.float().sub_(8), scales, self.block)


def _scaled(x, block, largest):
    """(x in units of its blocks' scales, within +-largest; the scales as bfloat16, in bytes)."""
    blocks = x.unflatten(1, (-1, block))
    scales = (blocks.abs().amax(2) / largest).bfloat16()
    values = blocks / scales.float().clamp_min(torch.finfo(torch.float32).tiny)[:, :, None]
    return values.clamp_(-largest, largest).flatten(1), scales.view(torch.uint8)  # rounding may make a scale smaller


def _unscaled(values, scales, block):
    return (values.unflatten(1, (-1, block)) * scales.view(torch.bfloat16).float()[:, :, None]).flatten(1)


def _split(messages, block):
    """(codes, scales) of messages with so many bytes of codes to a scale."""
    blocks = messages.shape[1] // (block + 2)
    return messages[:, : blocks * block].contiguous(), messages[:, blocks * block :].contiguous()


class TwoShot:
    """A hook for DDP: `TwoShot(Int4(), feedback=True).register(model)`, once the process group is there."""

    def __init__(self, codec, feedback: bool = False):
        self.codec, self.feedback = codec, feedback
        self.left_out = {}
        self.thread = ThreadPoolExecutor(1)

    def register(self, model):
        model.register_comm_hook(None, self.hook)

    def hook(self, state, bucket):
        future, x = torch.futures.Future(), bucket.buffer()
        parameters = tuple(map(id, bucket.parameters()))

        def work():
            try:
                self.mean(x, parameters)
                future.set_result(x)
            except Exception as error:
                future.set_exception(error)

        self.thread.submit(work)
        return future

    @torch.no_grad()
    def mean(self, x, name=None):
        """Of all ranks' x, in place. name: of what is left out between calls."""
        n, block = dist.get_world_size(), self.codec.block
        parts = x.new_zeros(n, -(-x.numel() // (n * block)) * block)
        parts.view(-1)[: x.numel()] = x
        received = torch.empty_like(sent := self._encode(parts, (name, "sent")))
        dist.all_to_all_single(received, sent)
        mean = self.codec.decode(received).mean(0, keepdim=True)
        message = self._encode(mean, (name, "mean"))
        gathered = message.new_empty(n, message.shape[1])
        dist.all_gather_into_tensor(gathered, message)
        x.copy_(self.codec.decode(gathered).view(-1)[: x.numel()])

    def _encode(self, x, name):
        if not self.feedback:
            return self.codec.encode(x)
        if name in self.left_out:
            x += self.left_out[name]
        messages = self.codec.encode(x)
        self.left_out[name] = x - self.codec.decode(messages)
        return messages


def float32(model):
    """The mean that DDP itself takes."""


def bf16(model):
    """torch's bf16_compress_hook. DDP refuses it without CUDA by its name; gloo sums bfloat16."""
    model.register_comm_hook(None, lambda state, bucket: default_hooks.bf16_compress_hook(state, bucket))


def fp16(model):
    """torch's fp16_compress_hook."""
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)


def power_sgd(model, rank: int, warmup: int):
    """torch's powerSGD_hook with error feedback and warm start, after `warmup` steps in float32, two at least."""
    options = {"start_powerSGD_iter": max(2, warmup), "min_compression_rate": 2, "orthogonalization_epsilon": 1e-8}
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, **options)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def silent(model):
    """Nothing is sent: what a step costs without communication. Replicas drift apart."""

    def hook(state, bucket):
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, hook)
