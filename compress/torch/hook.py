"""DDPHook: DistributedDataParallel with compressed gradients.

Design note
-----------
A. Gradients come in buckets, as backward makes them, and DDP cuts its buckets anew after the first step. The matrices
   of a bucket are one vector of `AllReduce`, with a state of its own; what is small or of one dimension, and all of a
   dense step, goes by all_reduce. Small buckets of a compressed step wait for the next and are one vector with it: what
   their messages take is the time of an exchange. Where a vector has other parameters than before, its errors are put
   together from those of its parameters. Shifts start at zero there: the owner of a slice holds the mean of those of
   another slice.
B. One thread takes the buckets in order, while backward makes the next ones. It has a process group of its own: DDP
   uses its group meanwhile. Where cores are short a thread comes late: on the CPU dense steps are sent by backward
   itself, and the group's threads put the means in place. Nothing in backward waits for other ranks.
C. A step counts in full or not at all. States are replaced at its end; where it fails, its gradients are set to zero
   and backward() raises. DDP must not see the failure, which would leave it in the middle of a step: every bucket gets
   its answer, and the error is raised by a callback of the autograd engine that runs after DDP's own.
D. A rank that cannot encode says so in place of its message (`AllReduce`, note D), and a mean that is not finite is so
   everywhere: all ranks know, and tell each other what they have. What fails in another way the others may not know
   of: this rank then says nothing more, or it would answer their messages of one step with those of the next.
E. Errors are sums of gradients, so that a dense step can take them along: nothing is lost where the hook turns dense,
   but for rounding: a mean in bfloat16 or float16, as gradients or by `dense`, is rounded and no error knows of it.
   What the owner of a slice has left out of the mean counts n times in its own gradient.
F. After load_state_dict the first buckets are not yet those that the errors are of. They are held back until all are
   there, and go in the vectors that were saved: a run that goes on does so bit for bit.
G. A step begins with the first bucket and ends with the backward in which the last one comes: with several losses, or
   checkpoints that are reentrant, its buckets are of several graph tasks.
"""

from __future__ import annotations

import logging
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from .. import kernels
from .._gpu import device as _device
from ..allreduce import PATTERNS, AllReduce, AllReduceState, Refused, Spent, slices
from ..compressor import Compressor, positive_int
from ..key import Key
from ..message import VERSION
from ..power import PowerIteration
from .comm import Distributed

_LOG, _PACKAGE = logging.getLogger("compress"), import_module("..", __package__)
_FORMAT = 2  # of state_dict
_NONFINITE = "raise", "propagate"
_DTYPES = torch.float32, torch.float64, torch.float16, torch.bfloat16
_OPTIONS = "reduce", "dense", "nonfinite", "warmup_steps", "min_size", "key", "measures"
_NAMED = 8  # gradients in a refusal
_TOGETHER = 2**22  # bytes of gradients for which small buckets wait
_NOT_FINITE = "a mean of gradients is not finite"
_SETTLING, _MEASURED = 2, 5  # steps of a kind that "auto" lets pass, and then measures


@dataclass(frozen=True)
class Report:
    """What a hook has done, a step and rank, on average over its compressed steps.

    mode: "warm-up", "compressed", "dense" where "auto" has turned compression off, or "one rank". steps: compressed
    ones. parameters: numbers in the model, of which `compressed` travel compressed. bits: received for a parameter,
    those of the dense part among them; dense_bits: the same without compression, in float32. wire: bytes that this rank
    has received, with headers, and with what pads messages that are shorter than expected. encode, decode, wait, dense:
    seconds in encoders, in decoders, in waiting for compressed messages, and for the dense part; most of them beside
    backward, and on a GPU, whose kernels run after they have been launched, most of encode and decode in wait.
    dense_step, compressed_step: seconds from step to step that "auto" has measured.
    """

    mode: str
    steps: int
    parameters: int
    compressed: int
    bits: float
    dense_bits: float
    wire: float
    encode: float
    decode: float
    wait: float
    dense: float
    dense_step: float | None = None
    compressed_step: float | None = None

    @property
    def ratio(self) -> float:
        """How many times less is received than without compression; nan before the first compressed step."""
        return self.dense_bits / self.bits if self.bits else math.nan

    def __str__(self):
        lines = [f"{self.mode}, {self.steps} compressed steps"]
        if self.steps:
            lines += [
                f"received: {self.bits:.3f} bits a parameter, {self.ratio:.1f} times less than float32 "
                f"({self.compressed} of {self.parameters} parameters travel compressed)",
                f"seconds a step: encode {self.encode:.4f}, decode {self.decode:.4f}, wait {self.wait:.4f}, "
                f"dense part {self.dense:.4f}",
            ]
        if self.compressed_step is not None:
            lines.append(f"from step to step: {self.compressed_step:.4f} s compressed, {self.dense_step:.4f} s dense")
        return "\n".join(lines)


@dataclass
class _Step:
    """What a step has come to. Nothing of it counts before its end."""

    planned: bool = False
    compressed: bool = False
    together: bool = False  # small buckets wait for each other
    groups: list = field(default_factory=list)  # the names of parameters that came together
    modules: set = field(default_factory=set)  # of FSDP, those that have come
    states: dict = field(default_factory=dict)  # by the names of those that went compressed
    held: list = field(default_factory=list)  # buckets that wait for the next (note A) or for the last (note F)
    owed: dict | None = None  # errors by parameter, once they were needed
    direct: bool = False  # dense, and nothing has to be found out before
    closing: bool = False  # backward is over, but for what ends the step
    suspects: dict = field(default_factory=dict)  # gradients, by name, whose mean is not finite
    spent: Spent = field(default_factory=Spent)
    totals: dict = field(default_factory=lambda: {"dense": 0.0, "bits": 0.0, "wire": 0.0})
    failure: Exception | None = None


class _Bucket(NamedTuple):
    names: tuple
    parts: list  # gradients, vectors in the memory of the buffer
    buffer: torch.Tensor
    future: torch.futures.Future
    ready: object  # an event of CUDA


class _Differ(ValueError):
    """Ranks are configured differently, and all know."""


_SHARED = Refused, _Differ  # failures that all ranks know of


class Hook:
    """What DDPHook and FSDPHook share: configuration, states by vector, steps that count in full or not at all."""

    def __init__(self, reduce, warmup_steps, min_size, dense, nonfinite, seed, group):
        if nonfinite not in _NONFINITE:
            raise ValueError(f"{self._name}: nonfinite must be one of {', '.join(_NONFINITE)}, got {nonfinite!r}")
        if dense is not None and not (isinstance(dense, torch.dtype) and dense.is_floating_point):
            raise TypeError(f"{self._name}: dense must be a floating-point torch.dtype, got {dense!r}")
        self.reduce, self.dense, self.nonfinite, self.group = reduce, dense, nonfinite, group
        self.warmup_steps = positive_int(warmup_steps, "warmup_steps", 0)
        self.min_size = positive_int(min_size, "min_size", 0)
        self.key, self.measures = Key(seed), False
        self._clear()

    def _clear(self) -> None:
        """No model, and nothing done."""
        self.step, self.off, self.comm = 0, False, None
        self._parameters, self._groups, self._states = {}, [], {}
        self._now, self._agreed, self._resumed, self._replicas = None, False, False, ()
        self._broken = None
        self._counted, self._totals = 0, dict.fromkeys(("encode", "decode", "wait", "dense", "bits", "wire"), 0.0)

    def __getstate__(self):
        """What a copy has: the configuration, and neither model nor state, which state_dict carries over."""
        return {name: getattr(self, name) for name in _OPTIONS}

    def __setstate__(self, state):
        vars(self).update(state, group=None)
        self._clear()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _set_parameters(self, parameters) -> None:
        """Those that the hook is for, by name; TypeError for a dtype that it does not know."""
        if unknown := [f"{name} is {p.dtype}" for name, p in parameters.items() if p.dtype not in _DTYPES]:
            raise TypeError(f"{self._name}: gradients of {', '.join(map(str, _DTYPES))}, {', '.join(unknown)}")
        self._parameters = parameters

    def _configuration(self) -> dict:
        """What must be the same on every rank, and in a checkpoint."""
        parameters = repr([(name, tuple(p.shape), str(p.dtype)) for name, p in self._parameters.items()])
        return {
            "hook": self._name,
            "reduction": repr(self.reduce),
            "warmup_steps": self.warmup_steps,
            "min_size": self.min_size,
            "measures": self.measures,
            "dense": str(self.dense),
            "nonfinite": self.nonfinite,
            "key": repr(self.key),
            "parameters": f"{len(self._parameters)} tensors, crc32 {zlib.crc32(parameters.encode()):08x}",
        }

    # Steps

    def _begin(self) -> _Step:
        """A new step. One before it that has not come to its end is forgotten."""
        if torch._C._current_graph_task_id() < 0:
            raise RuntimeError(f"{self._name}: it works within backward() alone, not for join()")
        before, self._now = self._now, _Step()
        if before is not None and before.closing:  # Ctrl-C has kept its end from this rank, others have counted it
            self._settle(before)
            if before.failure is None:
                self._count(before)
        return self._now

    def _ends(self, step) -> None:
        """Let a step end when this backward does, after what has callbacks queued until then."""
        engine = Variable._execution_engine

        def close():
            step.closing = True
            engine.queue_callback(lambda: self._end(step))

        engine.queue_callback(close)

    def _fail(self, step, error: Exception) -> None:
        """A step does not count. Where the others may not know why, what happens next may hide it: it is logged."""
        if step.failure is not None and not isinstance(step.failure, _SHARED):
            return
        step.failure = error
        if not isinstance(error, _SHARED) and self._broken is None:
            _LOG.error("%s: step %d has failed on this rank: %r", self._name, self.step, error)

    def _end(self, step) -> None:
        """Make a step count, or raise why it does not."""
        if self._now is not step:
            return
        self._now = None
        self._settle(step)
        if step.failure is None:
            self._count(step)
        elif isinstance(step.failure, Refused) and self.nonfinite == "propagate":
            self._fill(math.nan)
        else:
            self._fill(0.0)
            if not isinstance(step.failure, _SHARED) and self._broken is None:
                self._broken = f"{self._name}: step {self.step} has failed on this rank, {step.failure!r}"
                step.failure.add_note(f"{self._name}: in step {self.step}, of which nothing has changed")
            raise step.failure

    def _count(self, step) -> None:
        self._keep(step)
        self.step += 1
        if step.compressed:
            self._counted += 1
            for name, value in (step.totals | vars(step.spent)).items():
                self._totals[name] += value

    def _settle(self, step) -> None:
        """Learn of failures that only others know of."""

    def _keep(self, step) -> None:
        """What a step has come to, in place of what was before."""
        raise NotImplementedError

    def _fill(self, value: float) -> None:
        """All gradients of a step that does not count."""
        raise NotImplementedError

    def _plan(self, step) -> None:
        """What kind of step this is. Collective."""
        if self._broken is not None:
            raise RuntimeError(self._broken)
        step.planned = True
        if not self._agreed:
            self._agree()
        self._decide()
        step.compressed = self._is_due

    @property
    def _is_due(self) -> bool:
        """Whether steps are compressed from here on, as far as this rank knows."""
        return self.step >= self._warmup and not self.off

    @property
    def _warmup(self) -> int:
        return self.warmup_steps

    def _decide(self) -> None:
        """Turn the hook off where it does not pay."""

    def _agree(self) -> None:
        """ValueError on every rank where they are not configured alike, or have not come equally far."""
        here = self._configuration() | {"step": self.step, "off": self.off}
        here["vectors"] = f"crc32 {zlib.crc32(repr((self._groups, list(self._states))).encode()):08x}"
        here["version"] = f"{_PACKAGE.__version__}, format {VERSION}"  # another one may have other messages
        everyone = self._everyone(here, *self._replicas)
        for what in here:
            if len({str(each[what]) for each in everyone.values()}) > 1:
                said = ", ".join(f"{each[what]} on rank {rank}" for rank, each in sorted(everyone.items()))
                raise _Differ(f"{self._name}: ranks differ in {what}: {said}")
        self._agreed = self.comm.agreed = True

    def _everyone(self, here, *further) -> dict:
        """By rank, an object of each in the group; with further groups of those that they are in."""
        found = {dist.get_rank(): here}
        for group in (self.comm.group, *further):
            gathered = [None] * dist.get_world_size(group)
            dist.all_gather_object(gathered, found, group=group)
            found = {rank: what for each in gathered for rank, what in each.items()}
        return found

    def _blame(self, parts: dict, refusal: Refused) -> Refused:
        """The refusal, with whose gradients are to blame. Collective."""
        bad = [
            f"{name}: {int((~torch.isfinite(part)).sum())} NaN or Inf among {part.numel()} elements"
            for name, part in parts.items()
            if not _finite(part)
        ]
        everyone = self._everyone(bad)
        found = [f"{what}, on rank {rank}" for rank, of_rank in everyone.items() for what in of_rank]
        if len(found) > _NAMED:
            found[_NAMED:] = [f"and {len(found) - _NAMED} more"]
        why = "; ".join(found) or str(refusal)
        return Refused(f"{self._name}: step {self.step} is refused and nothing has changed: {why}")

    @contextmanager
    def _counting(self, step):
        """Adds what compressed messages weigh to those of a step."""
        comm, bits, wire = self.comm, self.comm.ledger.bits_down, self.comm.received
        yield
        step.totals["bits"] += (comm.ledger.bits_down - bits) / comm.n
        step.totals["wire"] += comm.received - wire

    # Reports and checkpoints

    def _report(self, **more) -> Report:
        n, steps, total = self.comm.n, max(1, self._counted), sum(p.numel() for p in self._parameters.values())
        each = {name: value / steps for name, value in self._totals.items()}
        if n == 1:
            mode = "one rank"
        elif self.off:
            mode = "dense"
        else:
            mode = "warm-up" if self.step < self._warmup else "compressed"
        each["bits"] /= max(1, total)
        return Report(mode, self._counted, total, **each, **more)

    def state_dict(self) -> dict:
        """What a run needs to go on, of this rank: tensors, numbers and strings, which torch.load(weights_only=True)
        takes. Every rank saves its own. RuntimeError before `register`."""
        self._registered()
        return self._more_state() | {
            "format": _FORMAT,
            "configuration": self._configuration(),
            "world_size": self.comm.n,
            "rank": self.comm.process,
            "step": self.step,
            "off": self.off,
            "groups": [list(names) for names in self._groups],
            "states": [
                {"names": list(names), "up": _tensors(up), "down": _tensors(down), "shared": _tensors([shared])}
                for names, (up, down, shared) in self._states.items()
            ],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where the run was that has saved `state` on this rank: bit for bit, once its buckets had been rebuilt,
        which is after the first step, and with "auto" once it had decided: it measures the time of steps.

        Raises ValueError, with what differs, for a state of another configuration, other parameters, another rank or
        number of ranks; nothing has changed then. What errors hold belongs to a rank: on another number of ranks start
        with a fresh hook, which costs what the messages so far have left out, a few steps' worth at most.
        """
        self._registered()
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(f"{self._name}: not a state of this hook's format, {_FORMAT}")
        saved = dict(state["configuration"], world_size=state["world_size"], rank=state["rank"])
        here = dict(self._configuration(), world_size=self.comm.n, rank=self.comm.process)
        if differs := [
            f"{what} {saved.get(what)} there, {here[what]} here" for what in here if saved.get(what) != here[what]
        ]:
            more = "; start with a fresh hook on another number of ranks" if saved["world_size"] != self.comm.n else ""
            if not more and saved["rank"] != self.comm.process:
                more = "; every rank saves a state of its own, and loads that"
            raise ValueError(f"{self._name}: the state is of another run: {'; '.join(differs)}{more}")
        device = next(iter(self._parameters.values())).device
        states = {}
        for each in state["states"]:
            vectors = [
                [_array(t.detach().to(device, copy=True)) for t in each[what]] for what in ("up", "down", "shared")
            ]
            up, down, shared = map(tuple, vectors)
            states[tuple(each["names"])] = AllReduceState(up, down, *shared)
        self._groups, self._states = [tuple(names) for names in state["groups"]], states
        self.step, self.off = state["step"], state["off"]
        self._agreed, self._resumed = False, bool(self._groups)
        self._restore(state)

    def _more_state(self) -> dict:
        return {}

    def _restore(self, state) -> None:
        """What _more_state has given."""

    def _registered(self) -> None:
        if self.comm is None:
            raise RuntimeError(f"{self._name}: register the hook first, it has no model")


class DDPHook(Hook):
    """A communication hook of DistributedDataParallel that averages gradients over compressed messages.

    compressor, down, decay: as in `AllReduce`: of gradients, of averaged slices, and of errors. A `PowerIteration` in
    the compressor's place has a decay and a pattern of its own, and no `down`; the hook's pattern then says no more
    than whether to measure. error_feedback: what a message leaves out goes
    into the next one; an unbiased compressor is then used as Scaled(it). shift: DIANA's shifts instead.
    warmup_steps: first steps, dense. min_size: smaller tensors, and those of one dimension, travel dense.
    pattern: "gather" or "two-shot"; "auto" takes whichever receives less, and measures: the first steps dense (7 at
    least), the next 7 compressed, and where dense is the faster the hook stays dense, says so (logger "compress", and
    report()), and adds what errors hold to the next gradient. dense: dtype of what travels dense, the gradient's unless
    given; torch.bfloat16 halves it. nonfinite: what NaN or Inf in a gradient does, "raise" or "propagate" (below).
    seed: of all randomness but the first Q of a PowerIteration. group: a process group for the hook alone, over the
    ranks of the model's; made by `register` unless given, and destroyed by `close`.

    Gradients are float32, float64, or float16 and bfloat16, which are widened. Replicas stay identical, bit for bit;
    compressors that are not `exact` are refused. Errors are a float32 vector as long as what travels compressed
    (float64 of such gradients), and "two-shot" has 1/n more, a PowerIteration its Q; shifts are two. A step holds the
    old and the new ones. A tensor that no rank uses in a step (find_unused_parameters=True) keeps its gradient, as with
    DDP alone, and what the step's messages carry of its errors is lost. With one rank nothing travels and gradients
    pass as they are.
    A copy of the hook, as in a copy or a pickle of the model, has its configuration alone, and no model. Each model has
    a hook of its own: where several have part in one backward and one refuses, the others' gradients are not touched,
    and what is to be done with them is the caller's.

    backward() raises on every rank, nothing counts and gradients become zero, and the next step may go on. Optimizers
    that step within backward, by hooks of parameters, may have used gradients of earlier buckets by then.
    - compress.allreduce.Refused, a RuntimeError, where a gradient holds NaN or Inf, with its name and rank. With
      nonfinite="propagate" there is no error, and all gradients become NaN on every rank: torch.amp.GradScaler then
      skips the step, as it must be able to where gradients are scaled.
    - ValueError in the first step where ranks are configured differently, with what differs.
    - what torch raises where a rank is gone, at the latest after the timeout of the group; RuntimeError from then on.

    TypeError or ValueError for other parameters.

    One process here, `torchrun --nproc-per-node 2 script.py` for two:

    >>> import tempfile, compress
    >>> file = f"file://{tempfile.mkdtemp()}/store"
    >>> dist.init_process_group("gloo", init_method=file, rank=0, world_size=1)
    >>> model = DistributedDataParallel(torch.nn.Linear(100, 10))
    >>> hook = DDPHook(compress.ChunkTopK(), dense=torch.bfloat16)
    >>> hook.register(model)
    >>> model(torch.ones(3, 100)).sum().backward()
    >>> print(hook.report())
    one rank, 0 compressed steps
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        compressor: Compressor,
        down: Compressor | None = None,
        error_feedback: bool = True,
        decay: float = 1.0,
        shift: bool = False,
        warmup_steps: int = 10,
        min_size: int = 1024,
        pattern: str = "auto",
        dense: torch.dtype | None = None,
        nonfinite: str = "raise",
        seed: int = 0,
        group=None,
    ):
        memory = "shift" if shift else "error" if error_feedback else "none"
        if pattern not in PATTERNS:
            raise ValueError(f"DDPHook: pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
        if isinstance(compressor, PowerIteration):
            if memory != "error" or down is not None or decay != 1:
                raise ValueError(
                    "DDPHook: PowerIteration has error feedback, a decay and one coder for all: no shift, decay or down"
                )
            reduce, coders = compressor, [compressor.values]
        else:
            reduce = AllReduce(compressor, down, pattern, memory, decay)
            coders = [reduce.up_coder, reduce.down_coder]
        if inexact := [coder for coder in coders if not coder.exact]:
            raise ValueError(f"DDPHook: replicas must be the same on all machines, this is not exact: {inexact[0]!r}")
        super().__init__(reduce, warmup_steps, min_size, dense, nonfinite, seed, group)
        self.measures = pattern == "auto"

    def _clear(self):
        super()._clear()
        self._times, self._verdict, self._last = {True: [], False: []}, None, None
        self._names, self._thread, self._made, self._streams, self._room = {}, None, None, {}, None

    def register(self, model: DistributedDataParallel) -> None:
        """Make this the communication hook of a model, before its first backward. Collective.

        Raises TypeError for what is no DistributedDataParallel, and for parameters of a dtype that is not named above;
        RuntimeError where the model has a hook or the hook a model; ValueError where an embedding makes sparse
        gradients, or `group` is the model's own or of other ranks; ImportError for a model on a GPU without CuPy. The
        hook is as it was then.
        """
        if not isinstance(model, DistributedDataParallel):
            raise TypeError(f"DDPHook: model must be a DistributedDataParallel, got {type(model).__name__}")
        if self.comm is not None:
            raise RuntimeError("DDPHook: this hook has a model already, make one for each")
        kinds = torch.nn.Embedding, torch.nn.EmbeddingBag
        if sparse := [
            name for name, module in model.module.named_modules() if isinstance(module, kinds) and module.sparse
        ]:
            raise ValueError(f"DDPHook: gradients of {', '.join(sparse)} are sparse, make them with sparse=False")
        theirs, group = model.process_group, self.group
        if group is not None:
            ranks, expected = dist.get_process_group_ranks(group), dist.get_process_group_ranks(theirs)
            if group is theirs:
                raise ValueError("DDPHook: group is the model's own, which DDP uses meanwhile: make one for the hook")
            if ranks != expected:
                raise ValueError(f"DDPHook: group is of ranks {ranks}, the model's of {expected}")
        ignored = getattr(model, "parameters_to_ignore", ())
        parameters = model.module.named_parameters()
        self._set_parameters({name: p for name, p in parameters if p.requires_grad and name not in ignored})
        self._names = {id(p): name for name, p in self._parameters.items()}
        self._on_cpu = all(p.device.type == "cpu" for p in self._parameters.values())
        try:
            if theirs.size() > 1:
                for device in {p.device for p in self._parameters.values()}:
                    with same_stream(device):  # needs CuPy
                        pass
                if group is None:
                    group = self._made = _group_like(theirs)
            self.comm = Distributed(theirs if group is None else group)
            self._thread = ThreadPoolExecutor(1, "DDPHook")  # ends with the hook
            model.register_comm_hook(self, compressed_mean)
        except BaseException as error:
            if self._made is not None and isinstance(error, Exception):
                with suppress(Exception):
                    dist.barrier(group=self._made)  # others may still be making it
            self.close()
            raise

    def close(self) -> None:
        """Give back the thread and the process group that `register` has made; of a hook that is only dropped the group
        stays, and so does that of a model on some ranks alone, whose name torch would use again. Collective, between
        steps. The hook is as new, and the model can have no backward any more."""
        if self._thread is not None:
            self._thread.shutdown()
        if self._made is not None and dist.is_initialized() and _is_world(self._made):
            with suppress(ValueError):  # it is gone with the world that it was of
                dist.destroy_process_group(self._made)
        self._clear()

    def report(self) -> Report:
        """What has travelled, how long it took, and what "auto" has made of that. RuntimeError before `register`."""
        self._registered()
        dense, compressed = self._verdict or (None, None)
        n, large = self.comm.n, sum(p.numel() for p in self._parameters.values() if self._is_large(p))
        return self._report(compressed=large, dense_bits=64 * (n - 1) / n, dense_step=dense, compressed_step=compressed)

    def _more_state(self):
        return {"dense": list(self._times[False]), "compressed": list(self._times[True]), "verdict": self._verdict}

    def _restore(self, state):
        self._times, self._last = {False: list(state["dense"]), True: list(state["compressed"])}, None
        self._verdict = state["verdict"]

    def _keep(self, step):
        self._groups, self._states, self._resumed = step.groups, step.states, False

    def _fill(self, value):
        for p in self._parameters.values():
            if p.grad is not None:
                p.grad.detach().fill_(value)

    # What "auto" measures

    @property
    def _warmup(self):
        return max(self.warmup_steps, _SETTLING + _MEASURED) if self.measures else self.warmup_steps

    def _clock(self, step) -> None:
        """From the first bucket of a step to that of the next: the time of a step of its kind."""
        now = perf_counter()
        if self._last is not None and self.measures and self._verdict is None:
            last, then = self._last
            if last.failure is None:
                self._times[last.compressed].append(now - then)
        self._last = step, now

    @property
    def _is_measured(self) -> bool:
        return self.measures and self._verdict is None and len(self._times[True]) >= _SETTLING + _MEASURED

    def _decide(self):
        if not self._is_measured:
            return
        here = median(self._times[False][_SETTLING:] or [0.0]), median(self._times[True][_SETTLING:])
        everyone = self._everyone(here).values()
        dense, compressed = self._verdict = [max(of_ranks) for of_ranks in zip(*everyone, strict=True)]
        self.off = compressed > dense
        if self.comm.process == 0:
            said = "a step takes %.4g s compressed, %.4g s dense: %s"
            level, what = (logging.WARNING, "dense from here on") if self.off else (logging.INFO, "compressed it stays")
            _LOG.log(level, f"DDPHook: {said}", compressed, dense, what)

    # Buckets

    def _take(self, bucket):
        """A bucket that backward has filled, and the future of its mean."""
        self._registered()
        buffer = bucket.buffer()
        if self.comm.n == 1:
            return _answer(buffer)
        if bucket.index() == 0:
            step = self._begin()
            self._clock(step)
            step.together = self._is_due  # as it is before the thread decides on this step
            settled = self._agreed and not (self._states or self._resumed or self._broken or self._is_measured)
            step.direct = step.planned = settled and not step.together and self._on_cpu
        step = self._now
        if bucket.is_last():
            self._ends(step)
        names = tuple(self._names[id(p)] for p in bucket.parameters())
        parts = [g.as_strided((g.numel(),), (1,)) for g in bucket.gradients()]  # in the order of memory
        if step.direct:
            return self._directly(step, names, parts, buffer)
        future = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
        ready = torch.cuda.current_stream(buffer.device).record_event() if buffer.is_cuda else None
        if not self._resumed and step.held and _kind(step.held[-1].buffer) != _kind(buffer):
            self._submit(step)
        step.held.append(_Bucket(names, parts, buffer, future, ready))
        waits = self._resumed or (step.together and sum(each.buffer.nbytes for each in step.held) < _TOGETHER)
        if bucket.is_last() or not waits:
            self._submit(step)
        return future

    def _submit(self, step) -> None:
        self._thread.submit(self._work, step, step.held)
        step.held = []

    def _directly(self, step, names, parts, buffer):
        """Sends a bucket of a dense step; the future of its mean. Others send theirs, whatever becomes of it."""
        gradients = {name: part for name, part in zip(names, parts, strict=True) if part.numel()}

        def finish(travelled):
            try:
                arrived(travelled.value)
            except Refused:
                step.suspects |= gradients
            except Exception as error:
                self._fail(step, error)
            return buffer

        step.groups.append(names)
        if gradients and step.failure is None:
            try:
                travel, arrived = self._dense(step, gradients)
                return travel.get_future().then(finish)
            except BaseException as error:  # Ctrl-C among them: DDP must have its answer
                self._fail(step, error)
        return _answer(buffer)

    def _settle(self, step):
        if step.suspects and step.failure is None:
            try:
                self._fail(step, self._blame(step.suspects, Refused(_NOT_FINITE)))
            except Exception as error:
                self._fail(step, error)

    def _work(self, step, buckets) -> None:
        """Means in place of the gradients in buckets, in the thread. DDP gets its answers whatever happens."""
        try:
            with self._stream(buckets):
                try:
                    if step.failure is None and not step.planned:
                        self._plan(step)
                    for names, parts in self._groups_of(step, buckets):
                        if step.failure is None:
                            self._reduce(step, names, parts)
                except Exception as error:
                    self._fail(step, error)
                for bucket in buckets:  # in the stream, or DDP would not wait for what is in it
                    bucket.future.set_result(bucket.buffer)
        except Exception as error:
            self._fail(step, error)
            for bucket in buckets:
                if not bucket.future.done():
                    bucket.future.set_result(bucket.buffer)

    @contextmanager
    def _stream(self, buckets):
        """Where buckets live on a GPU, a stream of the hook's own, which has waited for them."""
        device = buckets[0].buffer.device
        if device.type != "cuda":
            yield
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        with torch.cuda.device(device), torch.cuda.stream(stream), same_stream(device):
            for bucket in buckets:
                stream.wait_event(bucket.ready)
                bucket.buffer.record_stream(stream)
            yield

    def _is_large(self, p) -> bool:
        """Whether a parameter's gradient travels compressed."""
        return p.dim() >= 2 and p.numel() >= self.min_size

    def _groups_of(self, step, buckets):
        """(names, gradients) of buckets together or of each, or after load_state_dict of what was one (note F)."""
        parts = {name: part for bucket in buckets for name, part in zip(bucket.names, bucket.parts, strict=True)}
        if self._resumed:
            groups = self._groups_together() if step.together and not self._states else self._groups
        else:
            groups = [tuple(parts)] if step.together else [bucket.names for bucket in buckets]
        return [(names, [parts[name] for name in names]) for names in groups]

    def _groups_together(self) -> list:
        """What buckets of a dense step are in the compressed one after it (`_take`)."""
        groups, held, kind = [], 0, None
        for names in self._groups:
            parameters = [self._parameters[name] for name in names]
            if groups and held < _TOGETHER and kind == _kind(parameters[0]):
                groups[-1] += names
            else:
                groups.append(names)
                held, kind = 0, _kind(parameters[0])
            held += sum(p.numel() * p.element_size() for p in parameters)
        return groups

    def _reduce(self, step, names, parts) -> None:
        """Means in place of gradients. Collective."""
        gradients = {name: part for name, part in zip(names, parts, strict=True) if part.numel()}
        large = {
            name: part for name, part in gradients.items() if step.compressed and self._is_large(self._parameters[name])
        }
        small = {name: part for name, part in gradients.items() if name not in large}
        try:
            travel, arrived = self._dense(step, small) if small else (None, None)
            try:
                if large:  # while the small ones travel
                    self._compressed(step, large)
            except Refused:  # of which all know
                if small:
                    with suppress(Refused):
                        arrived(travel.wait)
                raise
            if small:
                arrived(travel.wait)
        except Refused as refusal:
            raise self._blame(gradients, refusal) from refusal.__cause__
        step.groups.append(names)

    def _state(self, step, names, like) -> AllReduceState:
        """The state of a vector of parameters before this step."""
        state = self._states.get(names)
        if state is None:
            state = self._reduction(names).init(self.comm, like=like)
            if self._states and self.reduce.memory == "error":
                start = 0
                for name in names:
                    size = self._parameters[name].numel()
                    if name in self._owed(step):
                        state.up[0][start : start + size] = step.owed[name]
                    start += size
            elif self._states and self.reduce.memory == "shift":
                _LOG.info("%s: in a new bucket, the shifts of %s start at zero", self._name, ", ".join(names))
        return state

    def _reduction(self, names):
        """That of a vector of these parameters."""
        if not isinstance(self.reduce, PowerIteration):
            return self.reduce
        return self.reduce.of([self._parameters[name].shape for name in names])

    def _owed(self, step) -> dict:
        """What this rank has left out of the gradients of parameters so far (note E)."""
        if step.owed is None:
            step.owed = {}
            for names, state in self._states.items():
                left, start = state.up[0], 0
                if state.down:
                    own = slices(self.comm.n, left.size)[self.comm.process]
                    left = left.copy()
                    left[own] += self.comm.n * state.down[0]
                for name in names:
                    size = self._parameters[name].numel()
                    step.owed[name] = left[start : start + size]
                    start += size
        return step.owed

    def _compressed(self, step, gradients) -> None:
        """Their means, by compressed messages."""
        names, parts = tuple(gradients), list(gradients.values())
        row, own = self._row(parts)
        x, key = _array(row), self.key.at(self.step).fold(len(step.groups))
        state = self._state(step, names, x)
        with self._counting(step):
            reduce = self._reduction(names)
            _, step.states[names] = reduce.mean(self.comm, state, [x], key, out=x, spent=step.spent)
        if not own:
            _spread(row, parts)

    def _row(self, parts) -> tuple[torch.Tensor, bool]:
        """Gradients as one vector of float32 or float64, and whether that is their own memory."""
        dtype = torch.float64 if parts[0].dtype == torch.float64 else torch.float32
        if parts[0].dtype == dtype and (row := _adjoining(parts)) is not None:
            return row, True
        sizes = [part.numel() for part in parts]
        room = self._room
        if room is None or room.numel() < sum(sizes) or (room.dtype, room.device) != (dtype, parts[0].device):
            room = self._room = parts[0].new_empty(sum(sizes), dtype=dtype)
        row = room[: sum(sizes)]
        torch._foreach_copy_(list(row.split(sizes)), parts)
        return row, False

    def _dense(self, step, gradients):
        """Sends them to an all_reduce, with what errors still hold of them. Returns its work, and a function that waits
        for the means, as it is told to, and puts them in their place."""
        start, n, parts = perf_counter(), self.comm.n, list(gradients.values())
        adjoining = _adjoining(parts)
        vector = torch.cat(parts) if adjoining is None else adjoining
        owing = self._states and not step.compressed and self.reduce.memory == "error"
        if self.dense == torch.bfloat16 and vector.dtype == torch.float32 and n & (n - 1) == 0 and not owing:
            sent = vector.to(torch.bfloat16).div_(n)  # it has float32's range, and this rounds once
        else:
            sent = vector / n
            if owing:
                for name, part in zip(gradients, sent.split([part.numel() for part in parts]), strict=True):
                    if name in self._owed(step):
                        part.add_(torch.as_tensor(step.owed[name], device=part.device), alpha=1 / n)
            sent = sent.to(self.dense or sent.dtype)
        travel = dist.all_reduce(sent, group=self.comm.group, async_op=True)
        step.totals["dense"] += perf_counter() - start

        def arrived(wait):
            start = perf_counter()
            wait()
            if not _finite(sent):
                raise Refused(_NOT_FINITE)
            if adjoining is None:
                _spread(sent, parts)
            else:
                adjoining.copy_(sent)
            step.totals["dense"] += perf_counter() - start
            received = 2 * (n - 1) / n * sent.nbytes
            step.totals["bits"] += 8 * received
            step.totals["wire"] += received

        return travel, arrived


def _kind(x) -> tuple:
    return x.dtype, x.device


def _answer(buffer):
    """The future of a bucket that is as it is."""
    future = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
    future.set_result(buffer)
    return future


def compressed_mean(hook, bucket):
    return hook._take(bucket)


def _is_world(group) -> bool:
    return group.size() == dist.get_world_size()


def _group_like(group):
    """A new process group of the same ranks, backends and timeout. Collective."""
    config = dist.get_backend_config(group)
    kind, backends = "cuda" if "nccl" in config else "cpu", {each.rpartition(":")[2] for each in config.split(",")}
    try:
        timeout = group._get_backend(torch.device(kind)).options._timeout
    except (AttributeError, RuntimeError):  # of another backend
        timeout = None
    return dist.new_group(
        dist.get_process_group_ranks(group),
        timeout=timeout,
        backend=backends.pop() if len(backends) == 1 else config,
        use_local_synchronization=not _is_world(group),
    )


@contextmanager
def same_stream(device):
    """CuPy's work on torch's current stream, where the device is a GPU."""
    if device.type != "cuda":
        yield
        return
    cuda, stream = _device.cupy().cuda, _Foreign(torch.cuda.current_stream(device).cuda_stream)
    with cuda.Device(device.index), cuda.Stream.from_external(stream):
        yield


class _Foreign(int):
    """A stream's handle, by CUDA's protocol, which not all versions of torch speak."""

    def __cuda_stream__(self):
        return 0, int(self)


def _adjoining(parts) -> torch.Tensor | None:
    """Vectors as the one that they are in memory, None where they are not."""
    first, end = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        end += part.nbytes
    return first.as_strided((sum(part.numel() for part in parts),), (1,))


def _spread(vector, parts) -> None:
    """The pieces of a vector to where they belong."""
    torch._foreach_copy_(parts, list(vector.split([part.numel() for part in parts])))


def _finite(x) -> bool:
    return not x.numel() or all(math.isfinite(end) for end in torch.aminmax(x))


def _array(x):
    """A tensor as the NumPy or CuPy array that shares its memory."""
    return x.numpy() if x.device.type == "cpu" else kernels.taken(x)


def _tensors(arrays) -> list[torch.Tensor]:
    return [torch.as_tensor(array) for array in arrays if array is not None]
