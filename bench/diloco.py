"""DiLoCo with compressed pseudo-gradients: loss against bytes, H = 30, a transformer on characters of English.

Four workers live in one process: the code of `compress.torch.DiLoCo` is that of ranks, and its ledger counts the same
messages. Each draws batches of its own and has its own AdamW, whose rate rises over the first tenth of all steps and
falls as a cosine to a tenth. Losses are those of the global parameters on the tests after the last round, the mean over
seeds, of initial weights and batches; all settings see the same ones.

Bytes are those that a worker receives in a round, headers and agreement with them: the messages of three others where
all go to all ("gather"), and two times 3/4 of one from the dense setting, whose messages go by halves ("two-shot"), as
in any all-reduce. In either pattern as many leave a worker. One setting is named beforehand (`CLAIMED`), and the exit
status is 0 where it does what is claimed. The model has 0.12 million parameters, so that 600 rounds can be had: what is
left out of a round comes in later ones, and a run that ends early ends behind (by 10% after 100 rounds, 1% after 200).
"""

import csv
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
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


SCALE = Scale(width=64, depth=2, rounds=600, rows=4, lr=4e-3)  # after a sixth of them compressed ones are still behind
QUICK = 8  # rounds


# What DiLoCo is made with, by the names in the table. Of the momenta 0, 0.4 and 0.6 at lr = 1, and 0.9 at 0.7, the
# dense one is best with 0.4; what tells most of a move is taken with the same, sparse ones as SparseLoCo has them.
NESTEROV, PLAIN = {"lr": 1.0, "momentum": 0.4}, {"lr": 1.0, "momentum": 0.0, "decay": 0.95, "pattern": "gather"}
AHEAD = NESTEROV | {"pattern": "gather", "ahead": 1.0}
DENSE, CLAIMED = "dense", "LowRank(0.073) ahead"
SETTINGS = {
    DENSE: NESTEROV,
    CLAIMED: AHEAD | {"compressor": compress.LowRank(0.073)},
    "LowRank(0.077) ahead": AHEAD | {"compressor": compress.LowRank(0.077)},
    "LowRank(0.073)": NESTEROV | {"compressor": compress.LowRank(0.073)},
    "SparseLoCo": PLAIN | {"compressor": compress.ChunkTopK()},
    "DeMo": PLAIN | {"compressor": compress.DCT(compress.ChunkTopK())},
    "Trellis(0.073)": PLAIN | {"compressor": compress.Trellis(bits=0.073, context=True)},
    "MuLoCo": NESTEROV | {"compressor": compress.Eden(2)},
}
USUAL = DENSE, CLAIMED, "SparseLoCo", "MuLoCo"


@dataclass(frozen=True)
class Run:
    """losses: on the tests, after every tenth round and the last. received: bytes of a worker and round, with headers.
    seconds: of a round, all workers together, without the inner steps."""

    name: str
    seed: int
    losses: list
    parameters: int
    received: float
    seconds: float


def train(scale, name, seed=0, every=10) -> Run:
    """All rounds of one setting."""
    torch.manual_seed(seed)
    task = scale.task()
    models = [task.model() for _ in range(WORKERS)]
    inner = [task.optimizer(model.parameters()) for model in models]
    outer = DiLoCo(models, period=PERIOD, seed=seed, group=compress.Local(WORKERS), **SETTINGS[name])
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
    return Run(name, seed, losses, cost.parameters, cost.received, cost.seconds)


def run(out, quick=False, seeds=None, rounds=None, settings=None):
    """Train settings, the dense one among them, print the table and what it says, save diloco.csv in `out`; the exit
    status is 0 where all of it held. quick: a few rounds, of which no loss is claimed."""
    from rich.progress import Progress

    settings = dict.fromkeys([DENSE, *(settings or USUAL)])
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise ValueError(f"there is no setting {unknown[0]!r}; known: {', '.join(SETTINGS)}")
    scale, seeds = replace(SCALE, rounds=rounds or (QUICK if quick else SCALE.rounds)), seeds or (1 if quick else 3)
    out.mkdir(parents=True, exist_ok=True)
    screen, runs = console(), []
    todo = [(scale, name, seed) for seed in range(seeds) for name in settings]
    with Progress(console=screen, transient=True) as progress, _pool() as pool:
        task = progress.add_task("", total=len(todo))
        try:
            for future in as_completed([pool.submit(train, *each) for each in todo]):
                runs.append(future.result())
                progress.update(task, description=runs[-1].name, advance=1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rows = summary(runs)
    screen.print(table(rows, scale, seeds, runs[0].parameters))
    with open(out / "diloco.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(runs[0])))
        writer.writeheader()
        writer.writerows(asdict(each) for each in sorted(runs, key=lambda each: (each.name, each.seed)))
    screen.print(f"saved diloco.csv in {out}")
    return report("DiLoCo over compressed messages", checks(rows, losses=not quick), screen)


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
    received: float
    fewer: float
    seconds: float


def summary(runs) -> list[Row]:
    """Of each setting, in the order of SETTINGS, those that the dense one stands beside."""
    dense = {each.seed: each for each in runs if each.name == DENSE}
    rows = []
    for name in SETTINGS:
        if not (mine := [each for each in runs if each.name == name]):
            continue
        above = [each.losses[-1] / dense[each.seed].losses[-1] - 1 for each in mine]
        loss, received, seconds = (
            float(np.mean(each)) for each in zip(*((r.losses[-1], r.received, r.seconds) for r in mine), strict=True)
        )
        fewer = float(np.mean([dense[each.seed].received for each in mine])) / received
        rows.append(Row(name, loss, float(np.mean(above)), min(above), max(above), received, fewer, seconds))
    return rows


def table(rows, scale, seeds, parameters):
    from rich import box
    from rich.table import Table

    title = (
        f"{parameters:,} parameters, {WORKERS} workers, {scale.rounds} rounds of {PERIOD} steps, "
        f"{seeds} seed{'s' * (seeds > 1)}"
    )
    found = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("", "loss", "over dense", "range", "bytes received", "fewer", "s a round"):
        found.add_column(header, justify="right" if header else "left")
    for row in rows:
        found.add_row(
            row.name,
            f"{row.loss:.4f}",
            f"{row.excess:+.2%}",
            f"{row.least:+.2%} to {row.most:+.2%}" if seeds > 1 else "",
            f"{row.received:,.0f}",
            f"{row.fewer:.1f} x",
            f"{row.seconds:.2f}",
        )
    return found


def checks(rows, losses=True) -> list[Check]:
    """What a machine can say of the table; losses: also of those."""
    found = [
        Check(
            f"{row.name}: a loss within {EXCESS:.1%} of dense DiLoCo's, and {RATIO} x fewer bytes received or more",
            f"{row.excess:+.2%} ({row.least:+.2%} to {row.most:+.2%}), {row.fewer:.1f} x fewer",
            row.excess <= EXCESS and row.fewer >= RATIO,
        )
        for row in rows
        if row.name == CLAIMED and losses
    ]
    bits = bits_a_value()
    return [
        *found,
        Check(
            f"SparseLoCo's selection, 64 of 4096 in 2 bits, takes {OURS} bits a value where theirs takes {THEIRS}",
            f"{bits:.2f} bits a value, headers and agreement with them",
            bits <= OURS,
        ),
    ]


def bits_a_value(columns=4096, rows=1024) -> float:
    """What a worker receives from another in a round of ChunkTopK(), for each of the 64 values of a chunk."""
    models = [torch.nn.Linear(columns, rows, bias=False) for _ in range(2)]
    outer = DiLoCo(models, period=1, group=compress.Local(2), **SETTINGS["SparseLoCo"])
    with torch.no_grad():
        for model in models:
            model.weight += 0.01 * torch.randn(model.weight.shape)
    outer.step()
    return 8 * outer.report().received / (64 * rows * columns / 4096)
