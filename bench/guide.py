"""The table behind compress.recommend, measured again: every row at a few rates, on N(0, 1) and on a gradient."""

from compress import guide

from . import console, gradients
from .frontier import measure

FIELDS = ("bits", "nmse", "encode_gbps", "decode_gbps")


def measured(choice, inputs, trials=7, backend="cpu"):
    """A Point on every input, at every rate of a row."""
    return [[measure(choice.make(bits), x, trials, backend=backend) for x in inputs] for bits in choice.rates]


def columns(points):
    """normal, gradient, encode and decode of a Choice, to three and two digits."""
    found = [
        (*(p.nmse for p in pair), min(p.encode_gbps for p in pair), min(p.decode_gbps for p in pair)) for pair in points
    ]
    return [
        tuple(float(f"{v:.{n}g}") for v in values)
        for n, values in zip((3, 3, 2, 2), zip(*found, strict=True), strict=True)
    ]


def run(backend="cpu"):
    """Print what is measured now, N(0, 1) first, and under it the columns as the table has them."""
    from rich import box
    from rich.table import Table

    inputs = gradients.synthetic("normal", 2**20, seed=0), gradients.digits_gradient()
    table = Table(title="compress.recommend: N(0, 1) | gradient", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("compressor", "bits", "NMSE", "encode GB/s", "decode GB/s"):
        table.add_column(header, overflow="fold")
    lines = []
    for choice in guide.TABLE:
        found = measured(choice, inputs, backend=backend)
        for pair in found:
            cells = [" | ".join(f"{getattr(p, field):.3g}" for p in pair) for field in FIELDS]
            table.add_row(pair[0].compressor, *cells)
        table.add_section()
        lines += [f"# {choice.why}", *(f"        {column}," for column in columns(found))]
    screen = console()
    screen.print(table)
    screen.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
