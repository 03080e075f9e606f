"""Rehearsals on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table as Grid
from rich.text import Text

from flatsparse.experiments.labels import label
from flatsparse.experiments.terminal import Console

HEADINGS = ("runs", "masks", "params", "GB", "inference", "training", "GPU h")
Record = Mapping[str, Any]


def print_rehearsal(record: Record, console: Console) -> None:
    """Print the cells of each rehearsed table, then what must be known to read them and what is missing."""
    for table in record["tables"]:
        console.print(f"{table['name']}: {table['title']}, {record['scale']}", style="italic", highlight=False)
        if not table["cells"]:
            console.print(" measured without runs: nothing to rehearse", highlight=False)
            continue
        console.print(_grid(table, record), highlight=False)
    for sentence in _sentences(record):
        console.print(f"- {sentence}", style="dim", highlight=False)


def _grid(table: Record, record: Record) -> Grid:
    grid = Grid(box=None, pad_edge=False)
    grid.add_column("", overflow="fold", min_width=12)
    for heading in HEADINGS:
        grid.add_column(heading, no_wrap=True, justify="right")
    before = None
    for cell in table["cells"]:
        if (place := f"{cell['row']}, {cell['column']}") != before:
            grid.add_row(Text(place, style="bold"))
        grid.add_row(f" {cell['control'] or label(cell['sharpness'])}", *_numbers(record["runs"][cell["run"]]))
        before = place
    return grid


def _numbers(run: Record) -> tuple[str, ...]:
    if not run["runs"]:
        return ("no" if run["runs"] is False else "not here",)
    flops = run["flops"]
    return (
        "yes",
        f"{run['steps']['moved']:,}",
        f"{run['parameters'] / 1e6:.2f}M",
        f"{run['memory']['total'] / 1e9:.1f}",
        f"{flops['inference'] / 1e9:.3f}G {flops['inference_share']:.3f}",
        f"{flops['train']:.2e} {flops['train_share']:.3f}",
        f"{run['gpu_hours']:.1f}",
    )


def _sentences(record: Record) -> list[str]:
    runs = record["runs"].values()
    batch = record["samples"]
    sentences = [
        f"each of {len(runs)} runs took {record['steps']} of its own steps on the {record['device']}, on made-up data of the real"
        f" shapes, with {batch} samples in each and masks that change every 2 steps",
        "masks: weights that left or joined them in these steps; GB: at the samples that are computed at once, without workspaces"
        " of operations; inference: FLOPs a sample and their share of dense; training: FLOPs of the whole run and their share of"
        " one dense training of ordinary length",
        f"GPU h: an estimate for one GPU of {record['gpu_tflops']:g} TFLOP/s that reaches {record['utilization']:.0%} of it, for"
        " products with zeros too, without evaluations and what is measured after training",
    ]
    missing = Counter(reason for run in runs for reason in run["missing"])
    sentences += [f"missing for {count} runs: {reason}" for reason, count in missing.items()]
    failed = Counter(run["why"] for run in runs if run["why"])
    return sentences + [f"{count} runs were not rehearsed: {reason}" for reason, count in failed.items()]
