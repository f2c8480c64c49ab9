"""What is made of a record: tables, bars with ok or not ok, files and a figure."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np

from ..papers import Check
from . import model, settings

SIZES = 8, 64, 512, 10_000  # ranks that the model is asked about
LOSS, POINTS = 0.5, 0.5  # per cent of the loss, points of accuracy: as good as the baseline
BARS = {10: (0.1, 0.8), 100: (0.35, 1.0)}  # Mbit/s: time of the baseline, of the best of the others, at most
NEVER_ABOVE = 1000, 1.05


@dataclass
class Row:
    """A setting on a task, with n ranks. bits: received by a rank in a step, for each parameter, at the interface.
    loss, accuracy: over the last tests, mean over seeds; the changes are from the baseline's of the same seed, in per
    cent and in points. steps: to the target, mean over seeds, or None where a seed does not reach it. seconds and
    dense_seconds: of a step and of one in the warm-up, by rate. modes: of "auto", where it was tried."""

    task: str
    n: int
    name: str
    kind: str
    warmup: int
    bits: float = math.nan
    loss: float = math.nan
    accuracy: float = math.nan
    loss_change: float = math.nan
    accuracy_change: float = math.nan
    steps: float | None = None
    reached: int = 0
    seeds: int = 0
    identical: bool = True
    seconds: dict = field(default_factory=dict)
    spread: dict = field(default_factory=dict)
    dense_seconds: dict = field(default_factory=dict)
    modes: dict = field(default_factory=dict)
    baseline_steps: float | None = None
    line: model.Line | None = None  # of the time to the target

    def time(self, rate) -> float:
        """Seconds to the target; infinite where it is not reached or was not timed."""
        if rate not in self.seconds or rate not in self.dense_seconds:
            return math.inf
        if self.modes.get(rate) == "dense":
            return math.inf if self.baseline_steps is None else self.baseline_steps * self.seconds[rate]
        if self.steps is None:
            return math.inf
        return model.total(self.steps, self.warmup, self.dense_seconds[rate], self.seconds[rate])

    @property
    def as_good(self) -> bool:
        return self.loss_change <= LOSS or self.accuracy_change >= -POINTS


def where(rows, **about) -> list[dict]:
    """The rows of a part of a record that are about this."""
    return [row for row in rows if all(row[name] == value for name, value in about.items())]


def summary(record, task, n) -> list[Row]:
    """A row for each setting that has run, the baseline first."""
    about = {each["name"]: each for each in record["settings"]}
    runs = {}
    for run in where(record["runs"], task=task, n=n):
        runs.setdefault(run["setting"], {})[run["seed"]] = run
    base = runs.get(settings.BASELINE, {})
    size = settings.count(record["setup"]["shapes"][task])
    rows = []
    for name, of_seed in runs.items():
        row = Row(task, n, name, about[name]["kind"], about[name]["warmup"], seeds=len(of_seed))
        row.bits = float(np.mean([8 * run["bytes"] / size for run in of_seed.values()]))
        row.identical = all(run["identical"] for run in of_seed.values())
        ends = {seed: _end(run["tests"]) for seed, run in of_seed.items()}
        row.loss, row.accuracy = map(float, np.mean(list(ends.values()), axis=0))
        shared = [seed for seed in of_seed if seed in base]
        if shared:
            pairs = [(ends[seed], _end(base[seed]["tests"])) for seed in shared]
            row.loss_change = float(np.mean([100 * (mine[0] / its[0] - 1) for mine, its in pairs]))
            row.accuracy_change = float(np.mean([100 * (mine[1] - its[1]) for mine, its in pairs]))
            targets = [model.target(base[seed]["tests"]) for seed in shared]
            found = [model.steps_to(of_seed[s]["tests"], loss) for s, loss in zip(shared, targets, strict=True)]
            row.reached = sum(steps is not None for steps in found)
            row.steps = float(np.mean(found)) if row.reached == len(found) else None
            own = [model.steps_to(base[s]["tests"], loss) for s, loss in zip(shared, targets, strict=True)]
            row.baseline_steps = float(np.mean(own))
        _time(row, record, about[name]["dense"])
        rows.append(row)
    return rows


def baseline(rows) -> Row | None:
    return next((row for row in rows if row.name == settings.BASELINE), None)


def _end(tests):
    """(loss, accuracy), means of the last tests."""
    return np.mean([test[1:] for test in tests[-model.SMOOTH :]], axis=0)


def seconds(record, task, n, setting, auto=False) -> dict:
    """By rate, those of all steps timed, None without a limit. auto: of hooks that were free to send dense. Where links
    had no limits, those of a rate are what was timed there and the bytes' own."""
    found = {}
    for each in where(record["times"], task=task, n=n, setting=setting, auto=auto):
        found.setdefault(each["rate"], []).extend(each["seconds"])
    runs = where(record["runs"], task=task, n=n, setting=setting)
    if not record["setup"]["shaped"] and None in found and runs:
        bits = 8 * np.mean([run["bytes"] for run in runs])
        found |= {rate: [t + bits / rate / 1e6 for t in found[None]] for rate in record["setup"]["rates"]}
    return found


def _time(row, record, dense):
    """Fill in what is known of seconds."""
    steps, warm = (seconds(record, row.task, row.n, name) for name in (row.name, dense if row.warmup else row.name))
    row.seconds, row.dense_seconds = _medians(steps), _medians(warm)
    row.spread = {rate: float(np.subtract(*np.percentile(times, [75, 25])) / 2) for rate, times in steps.items()}
    if row.steps is not None and row.seconds and row.dense_seconds:
        first = min(row.steps, row.warmup)
        row.line = first * _line(row.dense_seconds) + (row.steps - first) * _line(row.seconds)
    for rate, times in seconds(record, row.task, row.n, row.name, auto=True).items():
        tried = where(record["times"], task=row.task, n=row.n, setting=row.name, rate=rate, auto=True)
        modes = [each["mode"] for each in tried]
        row.modes[rate] = max(sorted(set(modes)), key=modes.count)
        row.seconds[rate] = float(np.median(times))


def _medians(times):
    return {rate: float(np.median(each)) for rate, each in times.items()}


def _line(medians):
    return model.fit([math.inf if rate is None else rate for rate in medians], list(medians.values()))


# Tables


def _table(title, columns):
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        table.add_column(
            column, justify="left" if column in ("setting", "task") else "right", no_wrap=column != "setting"
        )
    return table


def number(value, digits=3):
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "any"
    return f"{value:,.0f}" if value >= 100 else f"{value:.{digits}g}"


def of_links(record, screen):
    setup = record["setup"]
    if setup["reason"]:
        screen.print(
            f"No links of a given rate: {setup['reason']}. Ranks are on loopback; times at a rate are those measured "
            "there, and the bytes counted over the rate.",
            highlight=False,
        )
    table = _table("Links", ["ranks", "Mbit/s", "carried", "a byte, us", "in a burst, us"])
    for link in record["links"]:
        rate = "no limit" if link["rate"] is None else f"{link['rate']:g}"
        table.add_row(
            str(link["n"]), rate, number(link["beta"]), number(1e6 * link["alpha"]), number(1e6 * link["overhead"])
        )
    screen.print(table)


def of_task(record, task, n, rows, screen):
    rates = record["setup"]["rates"]
    base = baseline(rows)
    size = settings.count(record["setup"]["shapes"][task])
    title = f"{task}, {n} ranks: {record['setup']['tasks'][task]['title']}\nd = {size:,}; at each rate ms a step and "
    title += "seconds to the target; sooner there than bf16 below so many Mbit/s"
    columns = ["setting", "bits", "loss", "%", "accuracy", "steps"]
    table = _table(title, [*columns, *(f"{rate:g} Mbit/s" for rate in rates), "below"])
    for row in rows:
        cells = [row.name, f"{row.bits:.3g}", f"{row.loss:.4f}"]
        cells += ["-" if row is base else f"{row.loss_change:+.2f}", f"{100 * row.accuracy:.1f}"]
        cells.append(f"{row.steps:.0f}" if row.steps is not None else f"{row.reached} of {row.seeds}")
        for rate in rates:
            mark = "d" if row.modes.get(rate) == "dense" else ""
            step = number(1e3 * row.seconds.get(rate, math.nan)) + mark
            cells.append(f"{step}  {'-' if math.isinf(row.time(rate)) else number(row.time(rate))}")
        if row is base or row.line is None or base is None or base.line is None:
            cells.append("-")
        else:
            cells.append(number(model.pays_below(row.line, base.line)))
        table.add_row(*cells)
    screen.print(table)
    spreads = [(row.spread[r] / row.seconds[r], row.name, r) for row in rows for r in rates if r in row.spread]
    if spreads:
        usual, (most, name, rate) = np.median([each[0] for each in spreads]), max(spreads)
        screen.print(
            f"Seconds are medians; half the distance of quartiles is {100 * usual:.0f}% of them as a rule, "
            f"{100 * most:.0f}% for {name} at {rate:g} Mbit/s. d: auto has turned to dense.",
            highlight=False,
        )
    for row in rows:
        if not row.identical:
            screen.print(f"[red]{row.name}: replicas differ[/]")


def of_full(record, screen):
    for each in record["full"]:
        who = f"{each['task']}, {each['n']} ranks, {each['setting']}" + f" ({each['mode']} by auto)" * bool(
            each["mode"]
        )
        took, product = each["seconds"], each["product"]
        screen.print(
            f"{who}: a whole run at {each['rate']:g} Mbit/s was at the target after {took:.1f} s; steps times seconds "
            f"a step: {product:.1f} s ({100 * (product / took - 1):+.0f}%)",
            highlight=False,
        )


def of_failures(record, screen):
    for each in record["failures"]:
        screen.print(f"[red]{each['task']}, {each['n']} ranks, {each['setting']}, {each['what']}: {each['reason']}[/]")


# The model of n ranks


def predictions(record, known):
    """Rows (task, n, setting, rate, measured, predicted) in seconds a step. known: the settings by name."""
    found = []
    links = {
        (each["n"], each["rate"]): model.Link(each["alpha"], each["overhead"], each["beta"]) for each in record["links"]
    }
    for (task, n, name), cost in _costs(record).items():
        for rate, times in seconds(record, task, n, name).items():
            if (n, rate) in links:
                work = known[name].work(n, record["setup"]["shapes"][task], cost["bits"])
                predicted = model.predict(work, links[n, rate], cost["compute"], cost["encode"], cost["decode"])
                found.append((task, n, name, rate, float(np.median(times)), predicted))
    return found


def _costs(record):
    """(task, n, setting): compute, encode and decode, where all are known."""
    compute = {(c["task"], c["n"]): c["compute"] for c in record["costs"] if "compute" in c}
    return {
        (c["task"], c["n"], c["setting"]): c | {"compute": compute[c["task"], c["n"]]}
        for c in record["costs"]
        if "encode" in c and (c["task"], c["n"]) in compute
    }


def of_model(record, known, screen):
    found = predictions(record, known)
    setup = record["setup"]
    rates = [None, *setup["rates"]] if setup["shaped"] else [None]
    for task in setup["tasks"]:
        places = [(n, rate) for n in setup["ranks"] for rate in rates]
        heads = [f"{n} x {'free' if rate is None else f'{rate:g}'}" for n, rate in places]
        title = f"{task}: error of the model, per cent of the step measured (ranks x Mbit/s)"
        table = _table(title, ["setting", *heads])
        for name in known:
            cells = {(n, rate): 100 * (p / m - 1) for t, n, s, rate, m, p in found if (t, s) == (task, name)}
            if cells:
                table.add_row(name, *(f"{cells[place]:+.0f}" if place in cells else "-" for place in places))
        screen.print(table)
    errors = [abs(p / m - 1) for *_, m, p in found]
    if errors:
        screen.print(f"median error {100 * np.median(errors):.0f}%, largest {100 * max(errors):.0f}%", highlight=False)
    smallest = min(setup["ranks"])
    for task in setup["tasks"]:
        title = f"{task}: seconds a step by the model, codecs and compute as with {smallest} ranks"
        table = _table(title, ["Mbit/s", "setting", *(f"{n:,} ranks" for n in SIZES)])
        found = scaled(record, known, task, smallest)
        for rate in setup["rates"]:
            for name, cells in found.items():
                table.add_row(f"{rate:g}", name, *(number(cells[n, rate]) for n in SIZES))
            table.add_section()
        screen.print(table)


def scaled(record, known, task, smallest):
    """{setting: {(n, rate): seconds a step}} by the model."""
    links = {each["rate"]: each for each in record["links"] if each["n"] == smallest}
    found = {}
    for (t, n, name), cost in _costs(record).items():
        if (t, n) != (task, smallest) or name not in known:
            continue
        for rate in record["setup"]["rates"]:
            measured = links.get(rate, links[None] | {"beta": rate})
            link = model.Link(measured["alpha"], measured["overhead"], measured["beta"])
            for size in SIZES:
                work = known[name].work(size, record["setup"]["shapes"][task], cost["bits"])
                seconds = model.predict(work, link, cost["compute"], cost["encode"], cost["decode"])
                found.setdefault(name, {})[size, rate] = seconds
    return found


# Bars


def bars(task, rows) -> list[Check]:
    """What was asked of ours, each with what was measured."""
    base = baseline(rows)
    ours = [row for row in rows if row.kind == "ours"]
    others = [row for row in rows if row.kind == "peer"]
    if base is None or not ours:
        return []
    checks = []
    good = [row for row in ours if row.as_good]
    said = "; ".join(f"{row.name} {row.loss_change:+.2f}%, {row.accuracy_change:+.2f} points" for row in ours)
    checks.append(
        Check(f"{task}: final loss within {LOSS}%, or {POINTS} points of accuracy, of bf16's", said, bool(good))
    )
    for rate, (of_base, of_others) in BARS.items():
        if rate not in base.seconds:
            continue
        best = min(good, key=lambda row: row.time(rate), default=None)
        if best is None or math.isinf(best.time(rate)):
            checks.append(Check(f"{task}, {rate} Mbit/s: time to target", "none of ours is there", False))
            continue
        ratio = best.time(rate) / base.time(rate)
        statement = f"{task}, {rate} Mbit/s: time to target <= {of_base:g} x bf16"
        checks.append(Check(statement, f"{ratio:.3f} x ({best.name})", ratio <= of_base))
        other = min(others, key=lambda row: row.time(rate), default=None)
        if other is not None and not math.isinf(other.time(rate)):
            ratio = best.time(rate) / other.time(rate)
            statement = f"{task}, {rate} Mbit/s: <= {of_others:g} x the best of the others"
            checks.append(Check(statement, f"{ratio:.3f} x {other.name} ({best.name})", ratio <= of_others))
    rate, most = NEVER_ABOVE
    if rate in base.seconds:
        ratios = {row.name: row.time(rate) / base.time(rate) for row in good}
        said = "; ".join(f"{name} {'not reached' if math.isinf(r) else f'{r:.3f}'}" for name, r in ratios.items())
        statement = f"{task}, {rate} Mbit/s: none of ours with such a loss above {most} x bf16"
        checks.append(Check(statement, said or "none", max(ratios.values(), default=math.inf) <= most))
    return checks


# Files


def save(record, rows, out):
    """ddp.csv, a line for a setting at a rate."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "ddp.csv", "w", newline="") as file:
        writer = csv.writer(file)
        head = (
            "task ranks setting kind bits_per_parameter loss loss_change_percent accuracy accuracy_change_points steps"
        )
        head += " rate_mbit seconds_per_step spread seconds_to_target of_bf16 pays_below_mbit auto"
        writer.writerow(head.split())
        for row in rows:
            base = baseline([each for each in rows if (each.task, each.n) == (row.task, row.n)])
            below = "" if None in (row.line, base and base.line) else model.pays_below(row.line, base.line)
            about = [row.task, row.n, row.name, row.kind, row.bits, row.loss, row.loss_change, row.accuracy]
            about += [row.accuracy_change, row.steps]
            for rate in record["setup"]["rates"]:
                time = row.time(rate)
                ratio = time / base.time(rate) if base and math.isfinite(base.time(rate)) else math.nan
                more = [rate, row.seconds.get(rate), row.spread.get(rate), time, ratio, below, row.modes.get(rate)]
                writer.writerow([*about, *more])


def figure(record, rows, path):
    """Of each task, with most ranks: time to the target over bf16's against bandwidth, and loss against seconds."""
    from matplotlib.ticker import LogLocator

    from ..plot import COLOURS, MARKERS, STYLE, plt

    setup, n = record["setup"], max(record["setup"]["ranks"])
    rate = sorted(setup["rates"])[len(setup["rates"]) // 2]
    lines = {"reference": ":", "peer": "--", "ours": "-"}
    with plt.rc_context(STYLE):
        page, axes = plt.subplots(
            len(setup["tasks"]), 2, figsize=(9.6, 3.6 * len(setup["tasks"]) + 0.8), squeeze=False, layout="constrained"
        )
        kinds = {row.name: row.kind for row in rows}
        looks = {
            name: {"linestyle": lines[kind], "color": colour, "marker": marker, "markersize": 4}
            for (name, kind), colour, marker in zip(kinds.items(), cycle(COLOURS), cycle(MARKERS), strict=False)
        }
        for (left, right), task in zip(axes, setup["tasks"], strict=True):
            mine = [row for row in rows if (row.task, row.n) == (task, n)]
            base = baseline(mine)
            if base is None or not base.seconds:  # a record of a run that was interrupted
                left.axis("off")
                right.axis("off")
                continue
            for row in mine:
                here = [r for r in setup["rates"] if base and math.isfinite(row.time(r) / base.time(r))]
                left.plot(here, [row.time(r) / base.time(r) for r in here], **looks[row.name])
                run = where(record["runs"], task=task, n=n, setting=row.name)[0]
                if rate in row.seconds and rate in row.dense_seconds:
                    steps, losses = model.smoothed(run["tests"])
                    at = [model.total(s, row.warmup, row.dense_seconds[rate], row.seconds[rate]) for s in steps]
                    right.plot(at, losses, **looks[row.name] | {"markevery": max(1, len(at) // 6)})
            left.set(xscale="log", yscale="log", xlabel="Mbit/s", ylabel="time to the target over that of bf16")
            left.set_title(f"{task}, {n} ranks")
            right.set(xscale="log", xlabel=f"seconds at {rate:g} Mbit/s", ylabel="test loss")
            for axis in (left.xaxis, left.yaxis, right.xaxis):
                axis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter="")
        handles = [plt.Line2D([], [], label=name, **look) for name, look in looks.items()]
        page.legend(handles=handles, loc="outside lower center", ncols=5)
        page.savefig(path)
        plt.close(page)
