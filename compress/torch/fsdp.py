"""FSDPHook: fully sharded training (FSDP2) with compressed gradients.

Design note
-----------
A. The reduce-scatter of a module's gradients is the first half of a "two-shot" (`AllReduce.reduce_scatter`): a rank is
   sent its shard of every other rank's gradient, compressed. Parameters are gathered by FSDP, as they are.
B. A module's gradients come as one vector, matrices and biases together, padded so that shards are of one length, and
   travel as one. Its error is as long: memory of the whole model on every rank.
C. Calls are in the order of backward on every rank, in FSDP's own thread and process group. Steps end as DDPHook's do;
   that FSDP must not see a failure holds here as well.
"""

from __future__ import annotations

import weakref
from time import perf_counter

import torch
import torch.distributed as dist

from ..allreduce import AllReduce, Refused
from ..compressor import Compressor
from .comm import Distributed
from .hook import Hook, Report, _array, _finite, same_stream

try:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
except ImportError:
    FSDPModule, ReduceScatter = None, object
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)  # its new name


class FSDPHook(Hook):
    """Compressed reduce-scatters for a model of torch.distributed.fsdp.fully_shard.

    compressor, error_feedback, decay, warmup_steps, dense, nonfinite, seed: as in `DDPHook`. min_size: modules with
    fewer parameters travel dense.

    Errors take as much memory as the gradients of the whole model, in float32, on every rank: FSDP shards the rest.
    With error_feedback=False there are none; take an unbiased compressor then. Across replicas of a hybrid mesh (HSDP)
    gradients are averaged as they are. backward() raises as with `DDPHook`; a refusal names the module.

    TypeError or ValueError for other parameters.

    One process here, `torchrun --nproc-per-node 2 script.py` for two:

    >>> import tempfile, compress
    >>> from torch.distributed.fsdp import fully_shard
    >>> file = f"file://{tempfile.mkdtemp()}/store"
    >>> dist.init_process_group("gloo", init_method=file, rank=0, world_size=1)
    >>> mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    >>> model = fully_shard(torch.nn.Linear(100, 10), mesh=mesh)
    >>> hook = FSDPHook(compress.ChunkTopK())
    >>> hook.register(model)
    >>> model(torch.ones(3, 100)).sum().backward()
    >>> print(hook.report())
    one rank, 0 compressed steps
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        compressor: Compressor,
        error_feedback: bool = True,
        decay: float = 1.0,
        warmup_steps: int = 10,
        min_size: int = 1024,
        dense: torch.dtype | None = None,
        nonfinite: str = "raise",
        seed: int = 0,
    ):
        reduce = AllReduce(compressor, None, "two-shot", "error" if error_feedback else "none", decay)
        super().__init__(reduce, warmup_steps, min_size, dense, nonfinite, seed, None)
        self._modules, self._model, self._task = {}, None, None

    def register(self, model) -> None:
        """Take over the reduce-scatters of all sharded modules of a model, before its first backward.

        Raises TypeError where fully_shard has not been called on `model`, RuntimeError where the hook has a model.
        """
        if FSDPModule is None or not hasattr(FSDPModule, "set_custom_reduce_scatter"):
            raise RuntimeError("FSDPHook: this version of torch has no FSDPModule.set_custom_reduce_scatter")
        if not isinstance(model, FSDPModule):
            raise TypeError(f"FSDPHook: model must be sharded by fully_shard, got {type(model).__name__}")
        if self.comm is not None:
            raise RuntimeError("FSDPHook: this hook has a model already, make one for each")
        sharded = {name: module for name, module in model.named_modules() if isinstance(module, FSDPModule)}
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad and _shards(p)}
        groups = {_shards(p) for p in self._parameters.values()}
        if len(groups) != 1:
            raise ValueError(f"FSDPHook: parameters are sharded over {len(groups)} groups of ranks, it takes one")
        self.comm, self._model = Distributed(groups.pop()), weakref.ref(model)
        for name, module in sharded.items():
            module.set_custom_reduce_scatter(_Compressed(self, name or "the root module"))

    def report(self) -> Report:
        """What reduce-scatters have received, and how long they took. RuntimeError before `register`."""
        self._registered()
        n, large = self.comm.n, sum(size for size in self._modules.values() if size >= self.min_size)
        return self._report(compressed=large, dense_bits=32 * (n - 1) / n)

    def _keep(self, step):
        self._groups, self._states = [], self._states | step.states  # a module may have had no gradient this time

    @torch.no_grad()
    def _fill(self, value):
        model = self._model()
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for p in model.parameters():
            if _shards(p) and p.grad is not None:
                p.grad.to_local().fill_(value)

    def _scatter(self, name, output, vector, group, op) -> None:
        """This rank's shard of the mean, or of the sum, of the ranks' vectors of a module."""
        task = torch._C._current_graph_task_id()
        if self._now is None or self._task != task:
            self._task = task
            self._begin()
        step = self._now
        try:
            if step.failure is None:
                self._reduce(step, name, output, vector, group)
                if op == dist.ReduceOp.SUM:
                    output.mul_(self.comm.n)
                elif op != dist.ReduceOp.AVG:
                    raise ValueError("FSDPHook: a divide factor needs set_force_sum_reduction_for_comms(True)")
        except Exception as error:
            step.failure = error
        if step.failure is not None:
            output.zero_()

    def _reduce(self, step, name, output, vector, group) -> None:
        if group != self.comm.group:
            self.comm = Distributed(group)
        if not step.planned:
            self._plan(step)
        self._modules[name] = vector.numel()
        try:
            if step.compressed and vector.numel() >= self.min_size:
                with same_stream(vector.device):
                    self._compressed(step, name, output, vector)
            else:
                self._dense(step, output, vector)
        except Refused as refusal:
            raise self._blame({name: vector}, refusal) from None

    def _compressed(self, step, name, output, vector) -> None:
        row = _array(vector if vector.dtype in (torch.float32, torch.float64) else vector.float())
        names = name, str(row.size)  # without a gradient of some parameter, it is another vector
        state = self._states.get(names)
        if state is None:
            state = self.reduce.init(self.comm, like=row)
        key = self.key.at(self.step).fold(len(step.states))
        with self._counting(step):
            (mean,), step.states[names] = self.reduce.reduce_scatter(self.comm, state, [row], key, step.spent)
        output.copy_(torch.as_tensor(mean, device=output.device))

    def _dense(self, step, output, vector) -> None:
        start, n = perf_counter(), self.comm.n
        sent = vector / n
        sent = sent.to(self.dense or sent.dtype)
        bad = torch.tensor([float(not _finite(sent))], device=vector.device)
        dist.all_reduce(bad, dist.ReduceOp.MAX, group=self.comm.group)
        if bad.item():
            raise Refused("a gradient is not finite")
        received = sent.new_empty(output.shape)
        _reduce_scatter(received, sent, group=self.comm.group)
        output.copy_(received)
        step.totals["dense"] += perf_counter() - start
        step.totals["bits"] += 8 * (n - 1) * received.nbytes
        step.totals["wire"] += (n - 1) * received.nbytes


class _Compressed(ReduceScatter):
    """The reduce-scatter of a module."""

    def __init__(self, hook, name):
        self.hook, self.name = hook, name

    def allocate(self, size, *, dtype, device):
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False):
        self.hook._scatter(self.name, output_tensor, input_tensor, group, op)


def _shards(p):
    """The process group that a parameter is sharded over, None where it is not."""
    for where, placement in enumerate(getattr(p, "placements", ())):
        if placement.is_shard():
            return p.device_mesh.get_group(where)
    return None
