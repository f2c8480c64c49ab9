"""The statements of a paper that a machine can check: one module a paper. `run(out, full)` prints them and saves
a figure; full: at the size of the paper, where that takes longer than minutes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """A statement in words, the figure measured for it here, and whether the figure bears it out."""

    statement: str
    measured: str
    ok: bool


def report(title, checks, console):
    """Print the table; the exit status is 0 where every statement held."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", show_lines=True)
    table.add_column("")
    table.add_column("statement", ratio=5)
    table.add_column("measured", ratio=4)
    table.add_column("")
    for number, check in enumerate(checks, 1):
        table.add_row(str(number), check.statement, check.measured, "[green]ok[/]" if check.ok else "[red]not ok[/]")
    console.print(table)
    return int(not all(check.ok for check in checks))
