"""Data-parallel training over links of 10, 100 and 1000 Mbit/s: when compressed gradients pay.

A small CNN and a small transformer are trained by torch's DistributedDataParallel, on 2 and on 4 ranks, with bfloat16
all-reduce (the baseline), torch's own fp16 and PowerSGD hooks, two-shot means in fp8 and int4 as a user would write
them, and compress.torch.DDPHook. All have the same batches, optimizer and learning rate. What is reported:

- bits: received by a rank in a step for each parameter, counted at its network interface, headers and all;
- the final loss, and the target: the loss that bf16 has by 85% of its steps, a mean over five tests, the same rule for
  all, seed by seed;
- the time to the target: steps to it times seconds a step. Losses do not depend on the link, so that a run without
  limits gives them, and a short one at each rate the seconds; a whole run at one rate says whether the product holds;
- the bandwidth below which a setting reaches the target sooner than bf16, from T(B) = a + c / B through those seconds;
- a model of n ranks from what a codec, a message and a byte cost, checked against 2 and 4 ranks (model.py).

Ranks share the cores of this machine, so that with more ranks than cores compute and codecs take longer than they would
elsewhere, for all settings alike.
"""

from __future__ import annotations

import json

FULL = {
    "tasks": ["cnn", "transformer"],
    "ranks": [2, 4],
    "rates": [10.0, 100.0, 1000.0],
    "seeds": 3,
    "peers": "fp16, fp8 two-shot, int4 two-shot, PowerSGD(2), PowerSGD(4)",
    "ours": "PowerIteration(8); PowerIteration(20, UniformQuantizer(bits=3)); Eden(bits=2)",
}
QUICK = {
    "tasks": ["cnn"],
    "ranks": [2],
    "rates": [100.0],
    "seeds": 1,
    "peers": "int4 two-shot, PowerSGD(4)",
    "ours": "PowerIteration(8)",
}


def run(args) -> int:
    """The benchmark from the command line; the exit status is 0 where every bar holds."""
    from .. import console
    from . import driver, link, settings
    from .tasks import TASKS

    screen = console()
    if args.record:
        try:
            record = json.loads(args.record.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"--record {args.record}: {error}") from None
        return show(record, args.out, screen)
    tasks, ranks, rates = args.tasks, sorted(set(args.ranks)), sorted(set(args.rates))
    if unknown := [name for name in tasks if name not in TASKS]:
        raise ValueError(f"unknown task {unknown[0]!r}; known: {', '.join(TASKS)}")
    if min(ranks) < 2 or min(rates) <= 0 or args.seeds < 1:
        raise ValueError("--ranks must be at least 2, --rates above 0, --seeds at least 1")
    with screen.status("") as status, link.ending_on_sigterm():
        chosen = settings.chosen(args.peers, args.ours)
        args.out.mkdir(parents=True, exist_ok=True)
        bench = driver.Bench(tasks, ranks, rates, list(range(args.seeds)), chosen, status.update)
        try:
            bench.run()
        finally:  # what has been measured until an interruption, too
            (args.out / "ddp.json").write_text(json.dumps(bench.record, allow_nan=False) + "\n")
    return show(bench.record, args.out, screen)


def show(record, out, screen) -> int:
    """Print what a record says, and save the table and the figure; the exit status is 0 where every bar holds."""
    from ..papers import report as verdicts
    from . import report, settings

    tasks, ranks = record["setup"]["tasks"], record["setup"]["ranks"]
    known = {each["name"]: settings.named(each["name"]) for each in record["settings"]}
    of_place = {(task, n): report.summary(record, task, n) for task in tasks for n in ranks}
    report.of_links(record, screen)
    for (task, n), rows in of_place.items():
        report.of_task(record, task, n, rows, screen)
    report.of_full(record, screen)
    report.of_model(record, known, screen)
    report.of_failures(record, screen)
    everything = [row for rows in of_place.values() for row in rows]
    report.save(record, everything, out)
    report.figure(record, everything, out / "ddp.png")
    screen.print(f"saved ddp.csv and .png in {out}; the measurements took {record['setup']['minutes']:.0f} minutes")
    checks = [check for task in tasks for check in report.bars(task, of_place[task, ranks[-1]])]
    return verdicts(f"Bars, {ranks[-1]} ranks", checks, screen)
