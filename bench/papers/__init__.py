"""The statements of a paper that a machine can check: one module a paper. `run(out, full)` prints them and saves
a figure; full: at the size of the paper, where that takes longer than minutes."""

from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter


@dataclass(frozen=True)
class Check:
    """A statement in words, the figure measured for it here, and whether the figure bears it out."""

    statement: str
    measured: str
    ok: bool


@contextmanager
def stepwise(console, total):
    """Gives step(function, *arguments), which returns what the function does and shows the first line of its docstring
    beside a bar of so many steps."""
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=total)

        def step(function, *arguments):
            progress.update(task, description=function.__doc__.split("\n")[0])
            result = function(*arguments)
            progress.advance(task)
            return result

        yield step


_reported = []  # (title, checks) of every report


def report(title, checks, console):
    """Print the table; the exit status is 0 where every statement held."""
    from rich import box
    from rich.table import Table

    _reported.append((title, checks))
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", show_lines=True)
    table.add_column("")
    table.add_column("statement", ratio=5)
    table.add_column("measured", ratio=4)
    table.add_column("")
    for number, check in enumerate(checks, 1):
        table.add_row(str(number), check.statement, check.measured, "[green]ok[/]" if check.ok else "[red]not ok[/]")
    console.print(table)
    return int(not all(check.ok for check in checks))


def run_all(names, out, full):
    """The papers of these names, one after another, and a table of them; the exit status is 0 where all of it held."""
    from rich import box
    from rich.table import Table

    from .. import console

    table = Table(title="All papers", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in ("paper", "statements", "not ok", "minutes"):
        table.add_column(column, justify="left" if column == "paper" else "right")
    failed = 0
    for name in names:
        start = perf_counter()
        failed |= import_module(f"{__name__}.{name}").run(out, full)
        title, checks = _reported[-1]
        wrong = ", ".join(str(number) for number, check in enumerate(checks, 1) if not check.ok)
        table.add_row(title, str(len(checks)), wrong, f"{(perf_counter() - start) / 60:.1f}")
    console().print(table)
    return failed
