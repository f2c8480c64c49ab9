"""What is run, in which order, and the record of it: plain numbers, of which `report` makes what is shown."""

from __future__ import annotations

import math
import os
import platform
from time import perf_counter

import numpy as np
import torch

from . import model, report, settings
from .link import Links, Loopback, unavailable
from .pool import Failed, Pool
from .tasks import TASKS

TEST_EVERY = 10  # steps
SETTLED = 4  # first steps that are not timed, with PowerSGD's two dense ones among them
VISIT = 2.5  # seconds that a setting is timed for, each time it is
FEWEST, MOST = 3, 12  # steps of a visit, the first of which is dropped: TCP adapts
ROUNDS = 2  # visits of each setting, one after the other, to times that are short
SHORT = 0.6  # seconds
DOUBT = 0.8  # of a dense step: a compressed one that takes less is what "auto" would choose
TRIAL, AFTER = 14, 8  # steps that "auto" takes to decide, and steps timed after that
SLACK = 60  # seconds, beyond ten times what is expected, before a job is given up


class Bench:
    """The record, filled job by job. What fails is named in it, and the others go on."""

    def __init__(self, tasks, ranks, rates, seeds, chosen, progress=lambda text: None):
        self.tasks, self.ranks, self.rates, self.seeds, self.chosen = tasks, ranks, rates, seeds, chosen
        self.progress = progress
        self.reason = unavailable()
        self.record = {
            "setup": {
                "tasks": {name: {"title": TASKS[name].title, "steps": TASKS[name].steps} for name in tasks},
                "shapes": {name: [list(p.shape) for p in TASKS[name].model().parameters()] for name in tasks},
                "ranks": ranks,
                "rates": rates,
                "seeds": seeds,
                "shaped": self.reason is None,
                "reason": self.reason,
                "machine": f"{platform.system()} {platform.release()}, {_cores()} cores, torch {torch.__version__}",
            },
            "settings": [
                {"name": each.name, "kind": each.kind, "warmup": each.warmup, "dense": each.dense}
                for each in self.chosen.values()
            ],
            "links": [],
            "runs": [],
            "times": [],
            "costs": [],
            "full": [],
            "failures": [],
        }

    def run(self):
        """All of it, into the record."""
        start = perf_counter()
        for n in self.ranks:
            with Loopback(n) if self.reason else Links(n) as self.links, Pool(self.links) as self.pool:
                self.n = n
                self.of_links()
                for task in self.tasks:
                    self.of_task(task)
                self.record["setup"]["minutes"] = (perf_counter() - start) / 60

    def attempt(self, what, job, task, setting, *more):
        """Do job(task, setting, *more). Where it fails, that is in the record, and this setting has no more jobs."""
        if report.where(self.record["failures"], task=task, n=self.n, setting=setting):
            return
        self.progress(f"{task}, {self.n} ranks, {setting}: {what}")
        try:
            job(task, setting, *more)
        except Failed as failure:
            about = {"task": task, "n": self.n, "setting": setting, "what": what, "reason": str(failure)}
            self.record["failures"].append(about)

    def call(self, job, expected, **options):
        """A job of all ranks that takes so many seconds or so."""
        return self.pool.call(job, SLACK + 10 * expected, **options)

    # Links

    def of_links(self):
        """What the links carry, and how long a byte takes."""
        for rate in [None, *self.rates] if self.links.shaped else [None]:
            self.progress(f"{self.n} ranks, link of {rate or 'any'} Mbit/s")
            self.links.shape(rate)
            size = int(min(rate or math.inf, 200) * 1e6 / 8)  # a second's worth
            found = self.call("link", 2, size=size)
            alpha, overhead = (max(each[what] for each in found[:2]) for what in ("latency", "overhead"))
            beta = float(np.median([each["rate"] for each in found]))
            about = {"n": self.n, "rate": rate, "alpha": alpha, "overhead": overhead, "beta": beta}
            self.record["links"].append(about)
        self.links.shape(None)

    # A task

    def of_task(self, task):
        most = self.n == max(self.ranks)
        for name, setting in self.chosen.items():
            once = not most or (setting.kind == "reference" and name != settings.BASELINE)
            for seed in self.seeds[:1] if once else self.seeds:
                self.attempt(f"training, seed {seed}", self.of_training, task, name, seed)
        for name in [settings.SILENT, *self.chosen]:
            self.attempt("cost", self.of_cost, task, name)
        for visit in range(ROUNDS):
            for name in self.chosen:
                self.attempt(f"timing {visit + 1} of {ROUNDS}", self.of_time, task, name, visit)
            for name, setting in self.chosen.items():
                for rate in self.rates if setting.kind == "ours" else []:
                    if self.in_doubt(task, name, rate):
                        what = f"auto at {rate:g} Mbit/s, {visit + 1} of {ROUNDS}"
                        self.attempt(what, self.of_auto, task, name, rate, visit)
        if most and task == self.tasks[0]:
            rate, rows = sorted(self.rates)[len(self.rates) // 2], report.summary(self.record, task, self.n)
            for row in self.for_full_runs(rows, rate):
                self.attempt(f"whole run at {rate:g} Mbit/s", self.of_full_run, task, row.name, row, rate)

    def of_training(self, task, name, seed):
        """Losses by step. They do not depend on the link, which has no limit here."""
        setting, count = self.chosen[name], TASKS[task].steps
        self.links.shape(None)
        self.call("begin", 10, task=task, setting=name, seed=seed, warmup=setting.warmup)
        ranks = self.call("steps", count, number=count, test_every=TEST_EVERY)
        ends = self.call("end", 1)
        received = [np.mean(each["received"][setting.warmup + SETTLED :]) for each in ranks]
        self.record["runs"].append(
            {
                "task": task,
                "n": self.n,
                "setting": name,
                "seed": seed,
                "tests": ranks[0]["tests"],
                "bytes": float(np.mean(received)) / (1 if self.links.shaped else self.n),
                "identical": len({each["checksum"] for each in ends}) == 1,
                "report": ends[0]["report"],
            }
        )

    def of_cost(self, task, name):
        """Seconds of a step without communication, or those of an encoder and a decoder, with all ranks at work."""
        row = {"task": task, "n": self.n, "setting": name}
        if name == settings.SILENT:
            self.links.shape(None)
            self.call("begin", 10, task=task, setting=name, seed=0, warmup=0)
            ranks = self.call("steps", 10, number=SETTLED + MOST)
            self.call("end", 1)
            row["compute"] = float(np.median([each["seconds"][SETTLED:] for each in ranks]))
        else:
            ranks = self.call("code", 10, task=task, setting=name)
            row |= {what: float(np.median([each[what] for each in ranks])) for what in ("encode", "decode", "bits")}
        self.record["costs"].append(row)

    def of_time(self, task, name, visit):
        """Seconds of a step, without a limit and at each rate. Long ones, in which noise is little, are timed once."""
        self.links.shape(None)
        self.call("begin", 10, task=task, setting=name, seed=0, warmup=0)
        free = self.call("steps", 10, number=SETTLED + FEWEST)[0]
        step, received = np.median(free["seconds"][SETTLED:]), np.median(free["received"][SETTLED:])
        for rate in [None, *self.rates] if self.links.shaped else [None]:
            expected = float(step + (0 if rate is None else 8e-6 * received / rate))
            if visit and expected > SHORT:
                continue
            self.links.shape(rate)
            number = 1 + int(np.clip(VISIT / expected, FEWEST, MOST))
            found = self.call("steps", number * expected, number=number)[0]["seconds"][1:]
            self.times(task, name, rate, visit, found)
        self.links.shape(None)
        self.call("end", 1)

    def times(self, task, name, rate, visit, seconds, **more):
        about = {"task": task, "n": self.n, "setting": name, "rate": rate, "visit": visit, "auto": bool(more)}
        self.record["times"].append(about | {"seconds": seconds} | more)

    def in_doubt(self, task, name, rate):
        """Whether a hook that may choose could choose to send dense."""
        both = [report.seconds(self.record, task, self.n, each) for each in (name, self.chosen[name].dense)]
        if not self.links.shaped or not all(rate in times for times in both):
            return False
        compressed, dense = (np.median(times[rate]) for times in both)
        return compressed > DOUBT * dense

    def of_auto(self, task, name, rate, visit):
        """The same, by a hook that measures and chooses; and once more of what it chooses against, right after it."""
        self.links.shape(None)
        self.call("begin", 10, task=task, setting=name, seed=0, warmup=0, auto=True)
        self.links.shape(rate)
        self.call("steps", 60, number=TRIAL + 1)
        found = self.call("steps", 60, number=AFTER)[0]["seconds"]
        end = self.call("end", 1)[0]
        self.times(task, name, rate, visit, found, mode=end["mode"], report=end["report"])
        self.links.shape(None)
        dense = self.chosen[name].dense
        self.call("begin", 10, task=task, setting=dense, seed=0, warmup=0)
        self.call("steps", 10, number=SETTLED)
        self.links.shape(rate)
        self.times(task, dense, rate, visit, self.call("steps", 60, number=1 + AFTER)[0]["seconds"][1:])
        self.call("end", 1)

    # Whole runs

    def for_full_runs(self, rows, rate):
        """Of those that reach the target the best of ours and, where rates are several, the baseline."""
        reached = [row for row in rows if row.steps is not None and row.modes.get(rate) != "dense"]
        reached = [row for row in reached if self.links.shaped and math.isfinite(row.time(rate))]
        ours = sorted((row for row in reached if row.kind == "ours"), key=lambda row: row.time(rate))
        base = report.baseline(reached)
        return ours[:1] + ([base] if base and len(self.rates) > 1 else [])

    def of_full_run(self, task, name, row, rate):
        """Seconds until the target is really reached, over links of that rate from the start."""
        of_base, own = (
            report.where(self.record["runs"], task=task, n=self.n, setting=each, seed=self.seeds[0])[0]["tests"]
            for each in (settings.BASELINE, name)
        )
        steps = math.ceil(model.steps_to(own, model.target(of_base)))
        setting = self.chosen[name]
        self.links.shape(None)
        options = {"seed": self.seeds[0], "warmup": setting.warmup, "auto": setting.kind == "ours"}
        self.call("begin", 10, task=task, setting=name, **options)
        self.links.shape(rate)
        found = self.call("steps", row.time(rate), number=steps)[0]["seconds"]
        self.links.shape(None)
        mode = self.call("end", 1)[0]["mode"]
        product = model.total(steps, setting.warmup, row.dense_seconds[rate], row.seconds[rate])
        about = {"task": task, "n": self.n, "setting": name, "rate": rate, "steps": steps, "mode": mode}
        self.record["full"].append(about | {"seconds": sum(found), "product": product})


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
