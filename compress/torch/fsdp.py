"""FSDPHook: fully sharded training (FSDP2) with compressed gradients.

Design note
-----------
A. The reduce-scatter of a module's gradients is the first half of a "two-shot" (`AllReduce.reduce_scatter`): a rank is
   sent its shard of every other rank's gradient, compressed. Parameters are gathered by FSDP, as they are.
B. A module's gradients come as one vector, matrices and biases together, padded so that shards are of one length, and
   travel as one. Its error is as long: memory of the whole model on every rank. Parameters without a gradient are left
   out, and what is left may be as long without some as without others: such a vector travels dense, and the error stays
   for the next that is whole.
C. Calls are in the order of backward on every rank, in FSDP's own thread and process group. Steps end as DDPHook's do;
   that FSDP must not see a failure holds here as well. It goes on in the same group, in which a rank that has failed by
   itself says nothing more: what is raised in the end may be torch's timeout, and the log says why.
D. On a hybrid mesh (HSDP) FSDP averages shards over replicas when they have been averaged over a group. Before a step
   counts, replicas tell each other whether it does: a refusal is one on the whole mesh.
E. Checkpoints that are reentrant run backward within backward: what comes in the inner one belongs to the step of the
   outer one, if that has begun. A module that comes again, in another backward, begins a new step.
"""

from __future__ import annotations

import weakref
from time import perf_counter

import torch
import torch.distributed as dist

from ..allreduce import AllReduce, Refused
from ..compressor import Compressor
from .comm import Distributed
from .hook import _SHARED, Hook, Report, _array, _finite, same_stream

try:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
    from torch.distributed.tensor import DTensor
except ImportError:
    FSDPModule, ReduceScatter = None, object
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)  # its new name


class FSDPHook(Hook):
    """Compressed reduce-scatters for a model of torch.distributed.fsdp.fully_shard.

    compressor (no PowerIteration), error_feedback, decay, warmup_steps, dense, nonfinite, seed: as in `DDPHook`.
    min_size: modules with fewer parameters travel dense.

    Errors take as much memory as the gradients of the whole model, in float32, on every rank: FSDP shards the rest.
    With error_feedback=False there are none; take an unbiased compressor then. Across replicas of a hybrid mesh (HSDP)
    gradients are averaged as they are. backward() raises as with `DDPHook`, on all ranks of the mesh. A refusal names
    parameters; where some of a module have no gradient, it names the module, and its gradients travel dense.

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

    def _clear(self):
        super()._clear()
        self._layouts, self._model, self._task = {}, None, None

    def register(self, model) -> None:
        """Take over the reduce-scatters of all sharded modules of a model, before its first backward.

        Raises TypeError where fully_shard has not been called on `model`, and for parameters of a dtype that is none of
        `DDPHook`; RuntimeError where the hook has a model; ValueError where parameters are sharded over several groups
        of ranks, or in more than one way, as by tensor parallelism.
        """
        if FSDPModule is None or not hasattr(FSDPModule, "set_custom_reduce_scatter"):
            raise RuntimeError("FSDPHook: this version of torch has no FSDPModule.set_custom_reduce_scatter")
        if not isinstance(model, FSDPModule):
            raise TypeError(f"FSDPHook: model must be sharded by fully_shard, got {type(model).__name__}")
        if self.comm is not None:
            raise RuntimeError("FSDPHook: this hook has a model already, make one for each")
        names = {id(p): name for name, p in model.named_parameters()}
        layouts, modules, parameters = {}, {}, {}
        for where, module in model.named_modules():
            for group in _parameter_groups(module):
                if group not in modules:  # several modules may share one
                    name = where or "the root module"
                    modules[group], layouts[name] = (name, module), {}
                    for each in group.fsdp_params:
                        if (p := each.sharded_param).requires_grad:
                            layouts[name][names[id(p)]] = each.padded_sharded_param_size.numel()
                            parameters[names[id(p)]] = p
        groups = {_groups(name, p) for name, p in parameters.items()}
        if len(groups) != 1:
            raise ValueError(f"FSDPHook: parameters are sharded over {len(groups)} groups of ranks, it takes one")
        self._set_parameters(parameters)
        for name, module in modules.values():
            module.set_custom_reduce_scatter(_Compressed(self, name))
        ((shards, *self._replicas),) = groups
        self.comm, self._model, self._layouts = Distributed(shards), weakref.ref(model), layouts

    def report(self) -> Report:
        """What reduce-scatters have received, and how long they took. RuntimeError before `register`."""
        self._registered()
        large = [name for module, layout in self._layouts.items() if self._is_large(module) for name in layout]
        n, compressed = self.comm.n, sum(self._parameters[name].numel() for name in large)
        return self._report(compressed=compressed, dense_bits=32 * (n - 1) / n)

    def _length(self, module) -> int:
        """Of the vector of a module, all of whose parameters have a gradient."""
        return self.comm.n * sum(self._layouts[module].values())

    def _is_large(self, module) -> bool:
        return self._length(module) >= self.min_size

    def _settle(self, step):
        for group in self._replicas:
            try:
                failed = torch.tensor([float(step.failure is not None)], device=self._device)
                dist.all_reduce(failed, dist.ReduceOp.MAX, group=group)
                if failed.item():
                    everyone = [None] * dist.get_world_size(group)
                    here = step.failure and (isinstance(step.failure, _SHARED), str(step.failure))
                    dist.all_gather_object(everyone, here, group=group)
                    all_know, why = min(told for told in everyone if told)
                    if step.failure is None:
                        self._fail(step, (Refused if all_know else RuntimeError)(why))
            except Exception as error:
                self._fail(step, step.failure or error)

    @property
    def _device(self):
        return next(iter(self._parameters.values())).device

    def _keep(self, step):
        self._groups, self._states = [], self._states | step.states  # a module may have had no gradient this time

    @torch.no_grad()
    def _fill(self, value):
        model = self._model()
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for p in model.parameters():
            if isinstance(p, DTensor) and p.grad is not None:
                p.grad.to_local().fill_(value)

    def _scatter(self, name, output, vector, op) -> None:
        """This rank's shard of the mean, or of the sum, of the ranks' vectors of a module."""
        task = torch._C._current_graph_task_id()
        if self._now is None or (self._task != task and name in self._now.modules):  # one before has been broken off
            self._task = task
            self._ends(self._begin())
        step = self._now
        step.modules.add(name)
        try:
            if step.failure is None:
                self._reduce(step, name, output, vector)
                if op == dist.ReduceOp.SUM:
                    output.mul_(self.comm.n)
                elif op != dist.ReduceOp.AVG:
                    raise ValueError("FSDPHook: a divide factor needs set_force_sum_reduction_for_comms(True)")
        except Exception as error:
            self._fail(step, error)
        if step.failure is not None:
            output.zero_()

    def _reduce(self, step, name, output, vector) -> None:
        if not step.planned:
            self._plan(step)
        whole = vector.numel() == self._length(name)
        try:
            if step.compressed and whole and self._is_large(name):
                with same_stream(vector.device):
                    self._compressed(step, name, output, vector)
            else:
                self._dense(step, output, vector)
        except Refused as refusal:
            parts, layout = {name: vector}, self._layouts[name]
            if whole:  # for each rank its shards of all parameters
                shards = vector.view(self.comm.n, -1).split(list(layout.values()), dim=1)
                parts = dict(zip(layout, shards, strict=True))
            raise self._blame(parts, refusal) from refusal.__cause__

    def _compressed(self, step, name, output, vector) -> None:
        row = _array(vector if vector.dtype in (torch.float32, torch.float64) else vector.float())
        names = (name,)
        state = self._states.get(names)
        if state is None:
            state = self.reduce.init(self.comm, like=row)._replace(down=())  # nothing is said of slices
        key = self.key.at(self.step).fold(len(step.groups))
        for group in self._replicas:
            key = key.fold(dist.get_rank(group))
        with self._counting(step):
            (mean,), step.states[names] = self.reduce.reduce_scatter(self.comm, state, [row], key, step.spent)
        step.groups.append(names)
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
        self.hook._scatter(self.name, output_tensor, input_tensor, op)


def _parameter_groups(module) -> list:
    """Those that FSDP has made of the parameters of a module, for which it reduces and scatters."""
    if not isinstance(module, FSDPModule):
        return []
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)  # one, in earlier versions
    return [state._fsdp_param_group] * bool(state._fsdp_param_group) if groups is None else groups


def _groups(name, p) -> tuple:
    """The process groups that a parameter is sharded over and, of a hybrid mesh, replicated over."""
    *replicas, shards = p.placements
    if len(replicas) > 1 or not all(each.is_replicate() for each in replicas) or not shards.is_shard():
        raise ValueError(f"FSDPHook: {name} is placed as {p.placements}: it takes (Shard,) and (Replicate, Shard)")
    return tuple(p.device_mesh.get_group(where) for where in reversed(range(len(p.placements))))
