"""How a measurement is told: on the terminal and in a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from rich.table import Table as Grid

from flatsparse.experiments.bench.results import Table
from flatsparse.experiments.report.figures import caption
from flatsparse.experiments.terminal import Console

COLORS = {"wall": "#999999", "implied": "#d55e00", "throughput": "#0072b2"}
COLORS |= {"inference": "#0072b2", "training": "#d55e00"}
NOTES = {
    "step": "Ratios to SGD, medians over rounds with bootstrap intervals. Implied: from the time inside the optimizer alone,"
    " which the noise of forward and backward does not reach; wall: of whole steps.",
    "throughput": "Ratios to plain training with the same method, medians over rounds with bootstrap intervals. Steps that"
    " change the masks are timed apart, and make the others longer by their share of the paper's run on CIFAR.",
    "memory": "Live tensors, counted to the byte; kept: between steps. Extra: over SGD on the same net, in buffers of the"
    " parameters' size.",
    "sparse": "How many times as fast as the dense net, medians over rounds with bootstrap intervals. Masked: zeros are"
    " multiplied like other weights. Gone: an ordinary net of narrower layers. CSR: patches, multiplied by live weights alone.",
}


def print_tables(name: str, tables: Sequence[Table], console: Console) -> None:
    """Print every table with its sentences."""
    for table in tables:
        console.print(table.title, style="bold", highlight=False, markup=False)
        grid = Grid(box=None, pad_edge=False)
        for place, heading in enumerate(table.head):
            grid.add_column(heading, justify="right" if place else "left", no_wrap=True)
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid, highlight=False)
        for sentence in table.found:
            console.print(f"- {sentence}", highlight=False, markup=False)
        console.print()
    console.print(NOTES[name], style="dim")


def picture(table: Table) -> Figure:
    """Every ratio of a table with its interval; the line is at 1."""
    figure = Figure(figsize=(8, 1 + 0.45 * len(table.ratios)), layout="constrained")
    axis = figure.subplots()
    shown = set()
    for place, kinds in enumerate(reversed(table.ratios.values())):
        for offset, (kind, ratio) in enumerate(kinds.items()):
            reach = [[max(0.0, ratio.mean - ratio.low)], [max(0.0, ratio.high - ratio.mean)]]
            label = None if kind in shown else kind
            height = place + 0.2 * offset
            axis.errorbar([ratio.mean], [height], xerr=reach, fmt="D", color=COLORS[kind], capsize=3, label=label)
            shown.add(kind)
    axis.axvline(1, color="#333333", linewidth=1)
    axis.set_yticks(range(len(table.ratios)), [caption(name) for name in reversed(table.ratios)])
    axis.set_xlabel("ratio")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(frameon=False)
    return figure
