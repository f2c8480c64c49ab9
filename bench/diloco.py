"""DiLoCo with compressed pseudo-gradients: loss against bytes, H = 30, a transformer on characters of English.

Four workers live in one process: the code of `compress.torch.DiLoCo` is that of ranks, and its ledger counts the same
messages. Each draws batches of its own and has its own AdamW, whose rate rises over the first tenth of all steps and
falls as a cosine to a tenth. Losses are those of the global parameters on the tests after the last round, the mean over
seeds, of initial weights and batches; all settings see the same ones.

Bytes are those of a worker and round, headers and agreement with them. A message that goes to all is sent once and
received by n - 1; "fewer" compares what is sent, and received, with what the dense setting has there, whose messages go
by halves ("two-shot"), as in any all-reduce.
"""

import csv
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context

import numpy as np

try:
    import torch
except ImportError:
    raise ImportError('bench diloco needs PyTorch: pip install "compress-kernels[bench,torch]"') from None

import compress
from compress.torch import DiLoCo

from . import console
from .ddp.tasks import TASKS, Transformer
from .papers import Check, report

WORKERS, PERIOD = 4, 30
RATIO, EXCESS = 200, 0.005  # what is to be reached: times fewer bytes than the dense one, and how far above its loss
THEIRS, OURS = 14, 9.6  # bits a value in SparseLoCo's messages, and in ours at most


@dataclass(frozen=True)
class Scale:
    """A transformer, how long it is trained, rows of CONTEXT characters a step and worker, and the rate of AdamW."""

    width: int
    depth: int
    rounds: int
    rows: int
    lr: float

    def task(self):
        optimizer = partial(torch.optim.AdamW, lr=self.lr, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
        model = partial(Transformer, self.width, self.depth)
        return replace(TASKS["transformer"], steps=self.rounds * PERIOD, model=model, optimizer=optimizer)


FULL = Scale(width=128, depth=4, rounds=100, rows=4, lr=2e-3)
SMALL = Scale(width=64, depth=2, rounds=40, rows=4, lr=4e-3)


@dataclass(frozen=True)
class Setting:
    """A row of the table: its name, and what DiLoCo is made with."""

    name: str
    options: dict = field(default_factory=dict)


# Of the momenta 0, 0.4 and 0.6 at lr = 1, and 0.9 at 0.7, the dense one is best with 0.4; what is sent with many bits
# is then taken with the same, and the sparse ones as SparseLoCo has them.
NESTEROV, PLAIN = {"lr": 1.0, "momentum": 0.4}, {"lr": 1.0, "momentum": 0.0, "pattern": "gather"}
DENSE = Setting("dense", NESTEROV)
SPARSE = Setting("ChunkTopK() (SparseLoCo)", PLAIN | {"compressor": compress.ChunkTopK(), "decay": 0.95})
SETTINGS = (
    DENSE,
    SPARSE,
    Setting("DCT(ChunkTopK()) (DeMo)", PLAIN | {"compressor": compress.DCT(compress.ChunkTopK()), "decay": 0.95}),
    Setting("Eden(2) (MuLoCo)", NESTEROV | {"compressor": compress.Eden(2)}),
    Setting("Trellis(0.5)", NESTEROV | {"compressor": compress.Trellis(bits=0.5, context=True)}),
    Setting("Trellis(0.155)", PLAIN | {"compressor": compress.Trellis(bits=0.155, context=True)}),
    Setting("LowRank(0.155)", NESTEROV | {"compressor": compress.LowRank(0.155)}),
    Setting("LowRank(0.155), ahead", NESTEROV | {"compressor": compress.LowRank(0.155), "ahead": 1.0}),
    Setting("LowRank(0.077), ahead", NESTEROV | {"compressor": compress.LowRank(0.077), "ahead": 1.0}),
)


@dataclass(frozen=True)
class Run:
    """losses: on the tests, after every tenth round and the last. sent, received: bytes of a worker and round, with
    headers. seconds: of a round, all workers together."""

    name: str
    seed: int
    losses: list
    parameters: int
    sent: float
    received: float
    seconds: float


def train(scale, setting, seed=0, every=10) -> Run:
    """All rounds of one setting."""
    torch.manual_seed(seed)
    task = scale.task()
    models = [task.model() for _ in range(WORKERS)]
    inner = [task.optimizer(model.parameters()) for model in models]
    outer = DiLoCo(models, period=PERIOD, seed=seed, group=compress.Local(WORKERS), **setting.options)
    tests, losses = task.tests(), []
    for step in range(task.steps):
        for i, (model, optimizer) in enumerate(zip(models, inner, strict=True)):
            optimizer.param_groups[0]["lr"] = scale.lr * task.rate(step)
            batch = tuple(part[: scale.rows] for part in task.batch(WORKERS * seed + i, step))
            task.scores(model, batch)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        if outer.step() and (outer.rounds % every == 0 or step == task.steps - 1):
            with torch.no_grad(), outer.averaged():
                losses.append(float(task.scores(models[0], tests)[0]))
    cost = outer.report()
    return Run(setting.name, seed, losses, cost.parameters, cost.sent, cost.received, cost.seconds)


def run(out, quick=False, seeds=2, rounds=None):
    """Train all settings, print the table and what it says, save diloco.csv in `out`; the exit status is 0 where all of
    it held. quick: a smaller model for a shorter time, one seed."""
    from rich.progress import Progress

    scale, seeds = (SMALL, 1) if quick else (FULL, seeds)
    scale = replace(scale, rounds=rounds or scale.rounds)
    screen, runs = console(), []
    todo = [(scale, setting, seed) for seed in range(seeds) for setting in SETTINGS]
    with Progress(console=screen, transient=True) as progress, _pool() as pool:
        task = progress.add_task("", total=len(todo))
        futures = {pool.submit(train, *each): each for each in todo}
        try:
            for future in as_completed(futures):
                runs.append(future.result())
                progress.update(task, description=runs[-1].name, advance=1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rows = summary(runs)
    screen.print(table(rows, scale, seeds, runs[0].parameters))
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "diloco.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(runs[0])))
        writer.writeheader()
        writer.writerows(asdict(each) for each in sorted(runs, key=lambda each: (each.name, each.seed)))
    screen.print(f"saved diloco.csv in {out}")
    return report("DiLoCo over compressed messages", checks(rows), screen)


def _pool():
    """A process for each core, each of one thread."""
    return ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn"), torch.set_num_threads, (1,))


@dataclass(frozen=True)
class Row:
    """A setting over its seeds; excess: of the loss over the dense one's, the mean of the seeds and their range."""

    name: str
    loss: float
    excess: float
    least: float
    most: float
    sent: float
    received: float
    fewer_sent: float
    fewer_received: float
    seconds: float


def summary(runs) -> list[Row]:
    """Of each setting, in the order of SETTINGS, those that the dense one stands beside."""
    dense = {each.seed: each for each in runs if each.name == DENSE.name}
    rows = []
    for setting in SETTINGS:
        mine = [each for each in runs if each.name == setting.name]
        if not mine:
            continue
        above = [each.losses[-1] / dense[each.seed].losses[-1] - 1 for each in mine]
        sent, received, seconds = (
            float(np.mean([getattr(r, n) for r in mine])) for n in ("sent", "received", "seconds")
        )
        whole = dense[mine[0].seed]
        loss = float(np.mean([each.losses[-1] for each in mine]))
        spread = float(np.mean(above)), min(above), max(above)
        fewer = whole.sent / sent, whole.received / received
        rows.append(Row(setting.name, loss, *spread, sent, received, *fewer, seconds))
    return rows


def table(rows, scale, seeds, parameters):
    from rich import box
    from rich.table import Table

    title = (
        f"{parameters:,} parameters, {WORKERS} workers, {scale.rounds} rounds of {PERIOD} steps, "
        f"{seeds} seed{'s' * (seeds > 1)}"
    )
    found = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("", "loss", "over dense", "range", "sent", "received", "fewer sent", "fewer received", "s a round"):
        found.add_column(header, justify="right" if header else "left")
    for row in rows:
        found.add_row(
            row.name,
            f"{row.loss:.4f}",
            f"{row.excess:+.2%}",
            f"{row.least:+.2%} to {row.most:+.2%}" if seeds > 1 else "",
            f"{row.sent:,.0f}",
            f"{row.received:,.0f}",
            f"{row.fewer_sent:.0f} x",
            f"{row.fewer_received:.0f} x",
            f"{row.seconds:.2f}",
        )
    return found


def checks(rows) -> list[Check]:
    """What a machine can say of the table."""
    few = [row for row in rows if row.fewer_sent >= RATIO]
    best = min(few, key=lambda row: row.excess, default=None)
    said = "no setting"
    if best is not None:
        fewer = f"{best.fewer_sent:.0f} x fewer sent, {best.fewer_received:.0f} x fewer received"
        said = f"{best.name}: {best.excess:+.2%}, {fewer}"
    fits = best is not None and best.excess <= EXCESS
    bits = bits_a_value()
    return [
        Check(f"a loss within {EXCESS:.1%} of dense DiLoCo's at {RATIO} x fewer bytes or more", said, fits),
        Check(
            f"SparseLoCo's selection, 64 of 4096 in 2 bits, takes {OURS} bits a value where theirs takes {THEIRS}",
            f"{bits:.2f} bits a value, headers and agreement with them",
            bits <= OURS,
        ),
    ]


def bits_a_value(columns=4096, rows=1024) -> float:
    """What a worker sends in a round of ChunkTopK(), for each of the 64 values of a chunk."""
    models = [torch.nn.Linear(columns, rows, bias=False) for _ in range(2)]
    outer = DiLoCo(models, period=1, group=compress.Local(2), **SPARSE.options)
    with torch.no_grad():
        for model in models:
            model.weight += 0.01 * torch.randn(model.weight.shape)
    outer.step()
    return 8 * outer.report().sent / (64 * rows * columns / 4096)
